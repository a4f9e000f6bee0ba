"""The page in a real browser: charts drawn, nothing asked for, readable on a phone and on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.report.render import render_html
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sensors._base import SensorInfo
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.powers import (
    ORIGIN_S,
    TURN_S,
    make_phases,
    make_power_record,
    make_powered,
    make_samples,
)
from tests.helpers.records import make_golden
from tests.helpers.systems import with_system, without_power

REPLAY = SensorInfo("replay", "module", ("VDD_IN",), "replay: x.log", 0.04, 0.45)
NARROW_PX, WIDE_PX = 400, 1400

#: marks that are drawn: of each class how many, and the least and largest side of their boxes
MARKS = """(() => {
  const found = {};
  for (const mark of document.querySelectorAll(".plot svg *, .plot i")) {
    const box = mark.getBoundingClientRect(), style = getComputedStyle(mark);
    const colour = {rect: style.fill, i: style.borderTopColor}[mark.localName] ?? style.stroke;
    const paint = !["none", "rgba(0, 0, 0, 0)"].includes(colour);
    const name = mark.getAttribute("class");
    const item = found[name] ??= {count: 0, side: 0, painted: true};
    item.count += 1;
    item.side = Math.max(item.side, box.width, box.height);
    item.painted &&= paint;
  }
  return found;
})()"""

#: text that is cut by the window or by its plot's figure, and texts of a plot that overlap
TEXTS = """(() => {
  const shown = [...document.querySelectorAll(".t")].filter(t => t.offsetParent && t.offsetWidth);
  const boxes = shown.map(t => [t, t.getBoundingClientRect()]);
  const outside = boxes.filter(([t, b]) => b.left < 0 || b.right > innerWidth);
  const crossed = [];
  for (const [a, p] of boxes) for (const [b, q] of boxes)
    if (a !== b && a.parentNode === b.parentNode && p.left < q.right - 1 && q.left < p.right - 1
        && p.top < q.bottom - 3 && q.top < p.bottom - 3) crossed.push(a.textContent + " / " +
        b.textContent);
  for (const [t, b] of boxes.filter(([t]) => t.closest(".lane"))) {
    const bands = [...t.parentNode.querySelectorAll("rect")].map(r => r.getBoundingClientRect());
    if (!bands.some(r => r.left - 2 <= b.left && b.right <= r.right + 2))
      crossed.push(t.textContent);
  }
  return {count: shown.length, outside: outside.map(([t]) => t.textContent), crossed};
})()"""

#: words of the tables of the whole system that go on in the next line
CUT_WORDS = """(() => {
  const cut = [];
  for (const cell of document.querySelectorAll(".system td, .system th")) {
    const node = cell.firstChild, range = document.createRange();
    for (const word of node ? node.textContent.matchAll(/[^\\s-]+/g) : []) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (range.getClientRects().length > 1) cut.push(word[0]);
    }
  }
  return cut;
})()"""

#: least contrast (WCAG 2.1) of all text that is shown, and whose it is
CONTRAST = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = c => c.slice(0, 3).map(v => v / 255).map(
    v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  let worst = [99, ""];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, item = node.parentElement;
    if (!node.textContent.trim() || ["SCRIPT", "STYLE"].includes(item.tagName)) continue;
    if (!item.getClientRects().length) continue;
    let back = null;
    for (let up = item; up && !back; up = up.parentElement) {
      const colour = rgba(getComputedStyle(up).backgroundColor);
      if (colour[3] === 255) back = colour;
    }
    const [a, b] = [light(rgba(getComputedStyle(item).color)), light(back)].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < worst[0]) worst = [ratio, item.className + ": " + node.textContent.trim()];
  }
  return worst;
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser(find_chromium()) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A record with power, one without, one that is neither valid nor measured, and four modes."""
    folder = tmp_path_factory.mktemp("pages")
    modes = [
        make_powered(
            latency,
            power=make_power_record(
                make_samples(engine_w=watts, seed=seed), make_phases(1 / latency / 1.005)
            ),
            name=f"mode-{watts:g}",
        )
        for seed, (latency, watts) in enumerate([(0.042, 19.5), (0.05, 16.0), (0.085, 10.4)])
    ]
    replay = make_power_record(make_samples(info=REPLAY))
    bad = make_powered(power=replay, golden=make_golden(1.0), name="bad")
    # turns that differ by far more than their mean: whiskers from end to end of the chart
    steps = make_samples(info=REPLAY)
    steps.readings = [
        replace(item, watts=4.0 if (item.at_s - ORIGIN_S) < TURN_S else 19.0)
        for item in steps.readings
    ]
    wide = make_powered(power=make_power_record(steps), golden=make_golden(1.0))
    none = make_powered(power=PowerUnavailable(reason="no sensor", sensors={}))
    # a source of many words leaves little room for the columns beside it
    wall = "a workstation with two cards, by a meter at the wall, over an hour of real flights"
    spec = {"teacher_computing": {"watts": 60.0, "source": wall}, "survey_m2_per_s": 250.0}
    system = with_system(make_powered(), sensors=without_power("lidar"), system=spec)
    found = {
        "powered": [make_powered()],
        "none": [none],
        "bad": [bad],
        "wide": [wide],
        "system": [system],
        "modes": [*modes, bad, none, make_powered(name="a-name-as-long-as-bundles-have")],
    }
    for name, records in found.items():
        (folder / f"{name}.html").write_text(render_html(records), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


@pytest.mark.parametrize("width_px", [NARROW_PX, WIDE_PX])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["powered", "none", "bad", "wide", "system", "modes"])
def test_the_page_is_whole(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool, width_px: int
) -> None:
    tab = browser.open(pages[name], width_px, dark=dark)
    marks: dict[str, dict[str, Any]] = tab.evaluate(MARKS)
    wanted = {"none": ["step engine", "step scene", "bar engine", "mark", "grid"]}.get(
        name, ["trace", "trace warm", "mean engine", "mean scene", "level idle", "band idle",
               "band warm_up", "band engine", "band scene", "step engine", "bar engine"],
    )  # fmt: skip
    for kind in wanted:
        assert marks[kind]["count"] and marks[kind]["side"] > 5, (kind, marks[kind])
        assert marks[kind]["painted"], kind
    if name == "system":
        for kind in ("seg sensor told", "seg computing told", "seg computing seen", "seg open"):
            assert marks[kind]["painted"] and marks[kind]["side"] > 5, kind
        assert tab.evaluate(CUT_WORDS) == []
    if name != "none":
        assert marks["trace"]["side"] > 0.7 * min(width_px, 1180) - 60
    texts = tab.evaluate(TEXTS)
    assert texts["count"] > 20
    assert texts["outside"] == [] and texts["crossed"] == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= width_px
    names = tab.evaluate("[...document.querySelectorAll('.diff .who')].map(n => n.offsetWidth)")
    assert bool(names) == (name == "modes") and min(names, default=99) >= 80
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(re.findall(r"\d+", background)[0])
    assert red < 60 if dark else red > 200
    ratio, whose = tab.evaluate(CONTRAST)
    assert ratio >= 4.5, (ratio, whose)
    assert tab.requests() == [] and tab.complaints() == []


def test_the_policy_stops_a_request(browser: Browser, pages: dict[str, Path]) -> None:
    """What the page's own policy forbids is refused, so that nothing added later can call home."""
    tab = browser.open(pages["none"], WIDE_PX)
    tab.evaluate("new Promise(done => { const i = new Image(); i.onload = i.onerror = done;"
                 " i.src = 'http://127.0.0.1:9/x.png'; })")  # fmt: skip
    assert any("Content Security Policy" in text for text in tab.complaints())


@pytest.mark.parametrize("way", ["mouse", "touch"])
def test_the_crosshair_tells_all_panels(browser: Browser, pages: dict[str, Path], way: str) -> None:
    tab = browser.open(pages["powered"], WIDE_PX if way == "mouse" else NARROW_PX)
    if way == "touch":
        tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    tab.evaluate("document.querySelector('.timeline').scrollIntoView()")
    place = (
        "(() => { const b = document.querySelector('.panel .plot').getBoundingClientRect();"
        "const c = document.querySelector('.timeline').dataset;"
        "return [b.left + b.width * (8 - c.low) / (c.high - c.low), b.top + 40, b.left] })()"
    )
    x, y, left = tab.evaluate(place)
    tip = "(t => [getComputedStyle(t).display, t.innerText])(document.querySelector('.tip'))"
    assert tab.evaluate(tip)[0] == "none"
    tab.mouse(x, y) if way == "mouse" else tab.touch(x, y)
    shown, text = tab.evaluate(tip)
    assert shown == "block"
    for expected in (r"8\.0 s\s+bare engine", r"power, W\s+1[56]\.", r"temperature, °C\s+4\d",
                     r"throughput, tiles/s\s+19\.9", r"latency, ms\s+50\."):  # fmt: skip
        assert re.search(expected, text), (expected, text)
    box = json.loads(tab.evaluate("JSON.stringify(document.querySelector('.tip')"
                                  ".getBoundingClientRect())"))  # fmt: skip
    assert box["left"] >= 0 and box["right"] <= (WIDE_PX if way == "mouse" else NARROW_PX)
    if way == "mouse":
        tab.mouse(left - 20, y)
        assert tab.evaluate(tip)[0] == "none"
    assert tab.complaints() == []


def test_on_paper(browser: Browser, pages: dict[str, Path]) -> None:
    """Light whatever the reader's setting, nothing folded away, charts there, pages of A4."""
    tab = browser.open(pages["powered"], 700, dark=True, print_media=True)
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate(CONTRAST)[0] >= 4.5
    heights = tab.evaluate("[...document.querySelectorAll('details')].map(d => d.offsetHeight)")
    assert heights and min(heights) > 100
    marks = tab.evaluate(MARKS)
    assert marks["trace"]["side"] > 400 and marks["marker engine"]["side"] > 5
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF") and len(pdf) > 20_000
    boxes = {tuple(round(float(v)) for v in box.split())
             for box in re.findall(rb"/MediaBox \[([\d. ]+)\]", pdf)}  # fmt: skip
    assert boxes == {(0, 0, 595, 842)}
    assert 3 <= len(re.findall(rb"/Type /Page\b", pdf)) <= 7


def test_the_page_is_complete_without_its_script(browser: Browser, pages: dict[str, Path]) -> None:
    with_script = browser.open(pages["powered"], WIDE_PX).evaluate(MARKS)
    tab = browser.open(pages["powered"], WIDE_PX, scripts=False)
    assert tab.evaluate(MARKS) == with_script
    assert tab.evaluate("document.querySelector('.timeline.live')") is None
