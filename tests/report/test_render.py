"""The page and the Markdown: self-contained, escaped, and loud about what is not valid."""

from __future__ import annotations

import html.parser
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.errors import InputError
from edgekd.report.plot import histogram_svg, nice_ticks, series_svg
from edgekd.report.render import quality_tables, render_html, render_markdown
from tests.helpers.records import make_evidence, make_record

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
EVIL = '<script>alert(1)</script>"&|`*'


class _Page(html.parser.HTMLParser):
    """Collects tags and addresses, and checks that tags are closed in order."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "circle", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "action", "data")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def parse(text: str) -> _Page:
    page = _Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def test_the_page_loads_nothing() -> None:
    text = render_html([make_record(), make_record(name="other")], [("a picture", PNG)])
    page = parse(text)
    assert page.addresses and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert "prefers-color-scheme: dark" in text
    assert 'name="viewport"' in text


def test_figures_stand_in_both_renderings() -> None:
    record = make_record()
    for text in (render_html([record]), render_markdown([record])):
        assert "50.0" in text  # ms
        assert "20.0" in text  # tiles/s
        assert "2.00" in text  # Mpx/s end to end
        assert "0.100" in text  # 2 Mpx/s over 20 Mpx/s
        assert "largest of 60" in text
        assert "no sensor in a test" in text
        assert "left out for privacy" in text
        assert record.bundle.model_sha256 in text


def test_an_invalid_record_says_so_everywhere_and_a_valid_one_does_not() -> None:
    invalid = make_record(make_evidence(golden_error=1.0))
    for render in (render_html, render_markdown):
        text = render([invalid])
        assert "NOT VALID" in text
        assert text.index("NOT VALID") < text.index("50.0")
        assert "golden outputs differ" in text
        assert "NOT VALID" not in render([make_record()])
        both = render([make_record(), invalid])
        assert "Side by side" in both
        assert "NO" in both


def test_unknown_checks_are_named_beside_valid() -> None:
    evidence = make_evidence()
    held = evidence.disturbance.model_copy(
        update={"frequency_mhz": None, "absent": {"frequency_mhz": "no cpufreq"}}
    )
    for render in (render_html, render_markdown):
        text = render([make_record(make_evidence(disturbance=held))])
        assert re.search(r"Not checkable here: frequency\\?_stable", text)


def test_everything_from_a_record_is_escaped() -> None:
    quality = {EVIL: EVIL, "rows": [{EVIL: EVIL}], "baselines": {EVIL: {"iou": 1}}, "iou": 2}
    record = make_record(name=EVIL, quality=quality)
    page = render_html([record, record], [(EVIL, PNG)], title=EVIL)
    assert "<script" not in page
    assert "script" not in parse(page).tags
    markdown = render_markdown([record, record])
    assert "<script" not in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            cells = re.split(r"(?<!\\)\|", line)
            assert len(cells) in (3, 4, 5, 13), line


def test_quality_is_put_beside_its_baselines() -> None:
    tables = quality_tables(
        {
            "canopy_iou": 0.61234,
            "accuracy": 0.9,
            "split": "test",
            "baselines": {"constant": {"canopy_iou": 0.2}, "excess green": {"canopy_iou": 0.31}},
            "per_class": [{"name": "canopy", "iou": 0.6}, {"name": "other", "iou": None}],
            "confusion": [[1, 2], [3, 4]],
        }
    )
    assert tables[0] == (
        "Quality beside baselines",
        ["", "canopy_iou"],
        [
            ["this bundle", "0.6123"],
            ["baseline constant", "0.2"],
            ["baseline excess green", "0.31"],
        ],
    )
    assert tables[1] == ("Quality: more", ["", ""], [["accuracy", "0.9"], ["split", "test"]])
    assert tables[2][2] == [["canopy", "0.6"], ["other", "-"]]
    assert len(tables) == 3
    assert quality_tables(None) == quality_tables({}) == []


def test_a_report_of_nothing_and_a_picture_of_another_kind_are_refused() -> None:
    for render in (render_html, render_markdown):
        with pytest.raises(InputError, match="at least one"):
            render([])
    with pytest.raises(InputError, match="not PNG"):
        render_html([make_record()], [("jpeg", b"\xff\xd8\xff")])


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=60))
def test_plots_are_well_formed_and_stay_inside(values: list[float]) -> None:
    record = make_record(make_evidence(latencies_s=values))
    for svg in (series_svg(record), histogram_svg(record)):
        root = ElementTree.fromstring(svg)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        for item in root.iter():
            for key, bound in (("x", width), ("cx", width), ("y", height), ("cy", height)):
                if key in item.attrib:
                    assert -1 <= float(item.attrib[key]) <= bound + 1, (item.tag, item.attrib)
    bars = ElementTree.fromstring(histogram_svg(record)).findall(".//rect[@class='bar']")
    assert bars


def test_many_calls_do_not_make_a_large_plot() -> None:
    values = np.random.default_rng(0).gamma(9, 1e-4, 20000).tolist()
    values[100] = 5.0
    svg = series_svg(make_record(make_evidence(latencies_s=values)))
    assert len(svg) < 60_000
    assert "1 of 20000 calls above, up to 5e+03 ms" in svg


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (30, 95, [40, 60, 80])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(expected)


@given(st.floats(0, 1e6), st.floats(1e-9, 1e6))
def test_ticks_lie_inside_and_are_few(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert len(ticks) <= 7
    slack = 1e-6 * (low + span)
    assert all(low - slack <= tick <= low + span + slack for tick in ticks)
