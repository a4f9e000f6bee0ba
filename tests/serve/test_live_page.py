"""The live page in a real browser: what it shows, on a desk and on a phone, and from where."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.browser import Browser, Tab, find_chromium
from tests.helpers.rules import most, text
from tests.helpers.serving import YAML, Process, series

TOKEN = "a-secret-of-the-test"
BAD = "<img src=x onerror=alert(1)>"
RULES = (
    text(
        most("towers", {"tower": 1}, 0.25, source="Ordinance of the bay, § 4"),
        most("dry-ground", {"house": 1, "tower": 1}, 0.6, zones=["A"], priority=2,
             source="Flood map 2024, sheet 3 " + BAD),
        most("coming", {"house": 1}, 0.5, valid={"from": "2999-01-01"}),
    )
    + "texts: {A: In this zone buildings of more than two floors need a permit of the port.}\n"
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_chromium()) as found:
        yield found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A service that has answered for a while."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "tokens").write_text(f"Ana {TOKEN}\n")
    who = {"authorization": f"Bearer {TOKEN}"}
    with (
        Process(folder, "--token-file", str(folder / "tokens"), rules=RULES,
                title=f"Ten answers for a block {BAD}") as process,
        httpx.Client(base_url=process.url, headers=who) as client,
    ):  # fmt: skip
        process.ready()
        client.put("/v1/constraints", content=RULES + "# again\n", headers=YAML)
        client.put("/v1/constraints", content="nothing", headers=YAML)
        for second in range(14):
            for place in ({"zone": "A", "series": series()}, {"zone": "B", "series": series(2.0)},
                          {"zone": "B", "text": "A tall hotel beside the water."}):  # fmt: skip
                answer = client.post("/v1/predict", json={"places": [place]})
                assert answer.status_code == 200, answer.text
            if second % 2:
                time.sleep(0.8)
        yield process


def shown(tab: Tab) -> str:
    """The page's text, once it has data."""
    end = time.monotonic() + 15
    while not tab.evaluate("!document.getElementById('shown').hidden && "
                           "document.querySelectorAll('#answers > li').length > 3"):  # fmt: skip
        assert time.monotonic() < end, tab.evaluate("document.body.innerText")
        time.sleep(0.05)
    words = tab.evaluate("document.body.innerText")
    assert isinstance(words, str)
    return words


def give_token(tab: Tab, token: str) -> None:
    """Type it as a person does."""
    end = time.monotonic() + 15
    while tab.evaluate("document.getElementById('ask').hidden"):
        assert time.monotonic() < end
        time.sleep(0.05)
    tab.evaluate(f"document.getElementById('token').value = {token!r};"
                 "document.querySelector('#ask button').click()")  # fmt: skip


@pytest.mark.parametrize(
    ("width", "dark"), [(1280, False), (1280, True), (390, False), (390, True)]
)
def test_the_page(
    browser: Browser, served: Process, width: int, dark: bool, tmp_path: Path
) -> None:
    tab = browser.open(f"{served.url}/", width, dark=dark, height_px=844 if width < 500 else 900)
    give_token(tab, TOKEN)
    words = shown(tab)
    assert (
        tab.evaluate("getComputedStyle(document.getElementById('watts-curve')).display") == "none"
    )
    for part in ("Ten answers for a block", "answers requests", "SIMULATED", "per second",
                 "no power sensor", "Rules in force", "Version 2 of bay, put by Ana",
                 "Ordinance of the bay, § 4", "other rules begin on 2999-01-01",
                 "In this zone buildings of more than two floors", "limited by towers",
                 "the model alone: tower", "text of the rules", "accepted, version 2", "refused",
                 "priority 2", "Flood map 2024"):  # fmt: skip
        assert part.lower() in words.lower(), (part, words)
    # what somebody wrote into a rule or a title is text, and nothing else
    assert BAD in words and tab.evaluate("document.images.length") == 0
    wide = tab.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"the page is {wide} px wide in a window of {width}"
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 19, 22)" if dark else "rgb(245, 246, 247)")
    assert tab.evaluate("document.querySelector('#rate-curve path').getAttribute('d').length") > 10
    small = tab.evaluate(
        "[...document.querySelectorAll('main *')].filter(e => e.children.length === 0 && "
        "e.textContent.trim() && parseFloat(getComputedStyle(e).fontSize) < 11.5).length"
    )
    assert small == 0
    assert tab.complaints() == ["Failed to load resource: the server responded with a status of "
                                "401 (Unauthorized)"]  # fmt: skip
    assert {url.removeprefix(served.url).partition("?")[0] for url in tab.requests()} <= {
        "/page.css", "/page.js", "/v1/status", "/v1/constraints", "data:,"
    }  # fmt: skip
    place = Path(os.environ.get("EDGEKD_SCREENSHOTS", tmp_path))
    tab.screenshot(place / f"serve-{width}-{'dark' if dark else 'light'}.png")


def test_a_wrong_token_shows_nothing(browser: Browser, served: Process) -> None:
    tab = browser.open(f"{served.url}/", 1280)
    tab.evaluate("sessionStorage.clear(); location.reload()")
    time.sleep(0.5)
    give_token(tab, "wrong")
    end = time.monotonic() + 15
    while "not known here" not in tab.evaluate("document.body.innerText"):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "Rules in force" not in tab.evaluate("document.body.innerText")


def test_a_service_that_is_gone_is_said(browser: Browser, tmp_path: Path) -> None:
    with Process(tmp_path, rules=RULES) as process:
        tab = browser.open(f"{process.ready().url}/", 390)
        end = time.monotonic() + 15
        while tab.evaluate("document.getElementById('shown').hidden"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert process.end() == 0
        while "does not answer" not in tab.evaluate("document.body.innerText"):
            assert time.monotonic() < end
            time.sleep(0.05)
