"""Charts: marks where the numbers are, extremes kept, and words on what is no measurement."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.report import charts
from edgekd.report.compare import labels
from edgekd.report.plot import (
    WIDTH,
    FloatArray,
    Plot,
    Scale,
    envelope,
    fit_class,
    nice_ticks,
    padded,
    tick_text,
)
from edgekd.report.power import PowerRecord
from edgekd.report.record import BenchmarkRecord
from edgekd.report.timeline import shown_phases, throughput, timeline
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sensors._base import SensorInfo
from tests.helpers.powers import make_phases, make_power_record, make_powered, make_samples
from tests.helpers.records import make_engine, make_evidence, make_golden, make_record, make_scene

REPLAY = SensorInfo("replay", "module", ("VDD_IN",), "replay: x.log", 0.04, 0.45)
ESTIMATE = SensorInfo("pmic", "board", ("sum",), "estimate: sum of rails", None, None)


@pytest.fixture(scope="module")
def powered() -> BenchmarkRecord:
    return make_powered()


def elements(html: str, kind: str) -> list[ElementTree.Element]:
    """Those whose classes hold all of ``kind``'s; what is not well-formed raises."""
    wanted = set(kind.split())
    return [
        item
        for item in ElementTree.fromstring(f"<div>{html}</div>").iter()
        if wanted <= set(item.get("class", "").split())
    ]


def words(html: str, kind: str) -> list[str]:
    return ["".join(item.itertext()) for item in elements(html, kind)]


def power_of(record: BenchmarkRecord) -> PowerRecord:
    assert isinstance(record.power, PowerRecord)
    return record.power


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


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (-0.0, "0"), (-20, "−20"), (0.5, "0.5"), (12000, "12,000")]
)
def test_numbers_of_ticks(value: float, text: str) -> None:
    assert tick_text(value) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_scale_keeps_order_and_ends(
    low: float, span: float, a: float, b: float, up: bool
) -> None:
    scale = Scale(low, low + span, 200, up)
    assert scale.at(scale.low) == (200 if up else 0)
    assert scale.at(scale.high) == (0 if up else 200)
    first, last = low + min(a, b) * span, low + max(a, b) * span
    assert scale.at(first) >= scale.at(last) if up else scale.at(first) <= scale.at(last)
    assert 0 <= scale.clipped(first) <= 200
    assert scale.clipped(low - span) == scale.at(low)


@given(st.lists(st.floats(-50, 1e5), min_size=1, max_size=30), st.floats(1e-6, 100), st.booleans())
def test_an_axis_holds_its_values(values: list[float], least: float, zero: bool) -> None:
    low, high = padded(values, least, zero)
    assert low <= min(values) and max(values) <= high and high > low
    assert not zero or low <= 0
    assert low >= 0 or min(values) < 0


@given(st.integers(0, 10_000), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_an_envelope_is_short_and_keeps_the_extremes(count: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(0, WIDTH, count + 2))
    y = rng.standard_normal(count + 2)
    a, b = envelope(x, y, columns)
    assert len(a) == len(b) <= 2 * columns + 2
    assert b.min() == y.min() and b.max() == y.max()
    assert (a[0], a[-1]) == (x[0], x[-1])
    assert (np.diff(a) >= 0).all()
    column = np.minimum((x / WIDTH * columns).astype(int), columns - 1)
    kept = np.minimum((a / WIDTH * columns).astype(int), columns - 1)
    if len(x) > 2 * columns:  # of every column
        for place in np.unique(column)[:20]:
            assert y[column == place].max() == b[kept == place].max()


def test_a_curve_is_broken_where_samples_are_missing() -> None:
    plot = Plot(Scale(0, 10, WIDTH), Scale(0, 1, 100, True), "x")
    plot.curve([0, 1, 2, 8, 9], [0, 1, 0, 1, 0], "trace", gap=3)
    path = elements(plot.html(), "trace")[0].get("d", "")
    assert path.count("M") == 2 and "M800.0" in path


def test_labels_hide_where_they_do_not_fit() -> None:
    assert fit_class(1, "engine") == "fit0"
    assert fit_class(0.1, "engine") == "fit480"
    assert fit_class(0.001, "engine") == "fitno"


def panels(html: str) -> dict[str, str]:
    found = elements(html, "panel")
    return {item.get("data-name", ""): ElementTree.tostring(item, "unicode") for item in found}


def test_phases_are_shaded_where_they_are(powered: BenchmarkRecord) -> None:
    html = timeline(powered)
    chart = elements(html, "timeline")[0]
    low, high = float(chart.get("data-low", "")), float(chart.get("data-high", ""))
    phases = power_of(powered).phases
    shown = panels(html)
    assert list(shown) == [
        "power, W", "temperature, °C", "throughput, tiles/s", "latency, ms"
    ]  # fmt: skip
    for panel in shown.values():
        bands = elements(panel, "band")
        assert len(bands) == len(phases)
        for band, phase in zip(bands, phases, strict=True):
            assert phase.kind in band.get("class", "").split()
            left = (phase.start_s - low) / (high - low) * WIDTH
            width = (phase.end_s - phase.start_s) / (high - low) * WIDTH
            assert float(band.get("x", "")) == pytest.approx(left, abs=0.1)
            assert float(band.get("width", "")) == pytest.approx(width, abs=0.1)
    legend = words(html, "legend")[0]
    for name in ("idle", "warm-up", "guard, not counted", "bare engine", "end to end"):
        assert name in legend
    assert words(elements_html(html, "lane"), "mid")[:2] == ["idle", "warm-up"]


def elements_html(html: str, kind: str) -> str:
    return ElementTree.tostring(elements(html, kind)[0], "unicode")


def test_means_and_idle_stand_at_their_watts(powered: BenchmarkRecord) -> None:
    power = panels(timeline(powered))["power, W"]
    ticks = {text: item for text, item in zip(words(power, "ytick"), elements(power, "ytick"),
                                              strict=True)}  # fmt: skip

    def top(item: ElementTree.Element) -> float:
        match = re.search(r"top:([\d.]+)px", item.get("style", ""))
        assert match is not None
        return float(match[1])

    zero, ten = top(ticks["0"]), top(ticks["10"])

    def watts(line: ElementTree.Element) -> float:
        assert line.get("y1") == line.get("y2")
        return (zero - float(line.get("y1", ""))) / (zero - ten) * 10

    for kind, expected, count in (("engine", 16.0, 3), ("scene", 13.0, 3)):
        lines = elements(power, f"mean {kind}")
        assert len(lines) == count
        assert [watts(line) for line in lines] == pytest.approx([expected] * count, abs=0.15)
        assert all(text.startswith(("16.", "15.9", "13.", "12.9"))
                   for text in words(power, f"strong {kind}"))  # fmt: skip
    assert watts(elements(power, "level idle")[0]) == pytest.approx(6, abs=0.1)
    assert "idle 6.00" in " ".join(words(power, "t idle")) and " ± " in power


def test_the_trace_keeps_a_spike_and_shows_a_hole() -> None:
    samples = make_samples()
    spike = next(i for i, item in enumerate(samples.readings) if item.at_s > 1030)
    held = samples.readings[spike]
    samples.readings[spike] = type(held)(held.at_s, 31.0, temperatures_c=held.temperatures_c)
    del samples.readings[spike + 50 : spike + 80]
    record = make_powered(power=make_power_record(samples))
    power = panels(timeline(record))["power, W"]
    path = elements(power, "trace")[0].get("d", "")
    heights = [float(text.split()[1]) for text in re.findall(r"[ML]([\d.]+ [\d.]+)", path)]
    assert min(heights) < 40  # 31 W of an axis to about 37
    assert path.count("M") == 2


def test_a_long_trace_stays_light() -> None:
    """10 min at 10 Hz, 50 calls per second."""
    phases = make_phases()
    rng = np.random.default_rng(0)
    samples = make_samples(spacing_s=0.109)
    last = samples.readings[-1]
    reading = type(last)
    for number in range(6000):
        samples.readings.append(
            reading(last.at_s + 0.1 * (number + 1), 6 + float(rng.standard_normal()),
                    temperatures_c={"tj": 45 + float(rng.random())})
        )  # fmt: skip
    count = 30_000
    starts = (np.arange(count) * 0.02).tolist()
    latencies = (0.018 + 0.002 * rng.random(count)).tolist()
    record = make_powered(power=make_power_record(samples, phases),
                            engine=make_engine(latencies, starts, [count // 3] * 3))  # fmt: skip
    text = timeline(record)
    assert len(text) < 120_000
    assert "range and median" in text


@pytest.mark.parametrize(("info", "word"), [(REPLAY, "(replay)"), (ESTIMATE, "(estimate)")])
def test_what_was_not_measured_says_so_in_every_panel_of_power(
    info: SensorInfo, word: str, powered: BenchmarkRecord
) -> None:
    record = make_powered(power=make_power_record(make_samples(info=info, lag_s=0)))
    shown = panels(timeline(record))
    for name, panel in shown.items():
        assert (word in name) == name.startswith(("power", "temperature")), name
        assert (word in words(panel, "phead")[0]) == (word in name)
    assert word in charts.energy(power_of(record))
    ((title, scatter),), _ = charts.scatters([record, record], ["a", "b"])
    assert word in title and words(scatter, "beside") == [f"a {word}", f"b {word}"]
    assert all(word in text for text in words(scatter, "t iso"))
    clean = timeline(powered) + charts.energy(power_of(powered))
    assert "replay" not in clean and "estimate" not in clean


def test_without_power_there_are_latency_and_throughput() -> None:
    record = make_powered(power=PowerUnavailable(reason="none here", sensors={}))
    assert list(panels(timeline(record))) == ["throughput, tiles/s", "latency, ms"]
    kinds = [phase.kind for phase in shown_phases(record)]
    assert kinds == ["engine", "scene"] * 3


def test_throughput_counts_calls_by_their_share() -> None:
    latencies = [0.5] * 20 + [0.25] * 40
    starts = [*np.arange(20) * 0.5, *(30 + np.arange(40) * 0.25)]
    engine = make_engine(latencies, [float(s) for s in starts], [20, 40])
    record = make_record(make_evidence(engine=engine))
    edges, rates = throughput(record)
    assert (edges[0, 0], edges[-1, 1]) == (0, 40)
    first = rates[edges[:, 0] < 10]
    assert first == pytest.approx(np.full(len(first), 2))
    assert rates[edges[:, 0] >= 30] == pytest.approx(np.full(len(rates) - len(first), 4))
    assert float((rates * np.diff(edges, axis=1)[:, 0]).sum()) == pytest.approx(60)


@given(st.lists(st.floats(1e-5, 100), min_size=1, max_size=60))
def test_charts_are_well_formed_and_stay_inside(values: list[float]) -> None:
    record = make_record(make_evidence(latencies_s=values))
    for html in (timeline(record), charts.histogram(record)):
        for item in ElementTree.fromstring(f"<div>{html}</div>").iter("svg"):
            _, _, width, height = map(float, item.attrib["viewBox"].split())
            for mark in item.iter():
                for key, bound in (("x", width), ("x1", width), ("x2", width), ("y", height),
                                   ("y1", height), ("y2", height)):  # fmt: skip
                    if key in mark.attrib:
                        assert -1 <= float(mark.attrib[key]) <= bound + 1, (mark.tag, mark.attrib)
                numbers = re.findall(r"[-\d.]+", mark.get("d", ""))
                assert all(math.isfinite(float(number)) for number in numbers)
        for text in re.findall(r"left:([-\d.]+)%", html):
            assert 0 <= float(text) <= 100
    assert elements(charts.histogram(record), "bar engine")


def test_a_histogram_counts_every_call() -> None:
    values = np.random.default_rng(0).gamma(9, 1e-4, 20000).tolist()
    values[100] = 5.0
    record = make_record(make_evidence(latencies_s=values))
    html = charts.histogram(record)
    assert "1 call beyond, up to 5,000 ms" in html and len(html) < 20_000
    assert "1 above the axis, up to 5,000 ms" in timeline(record)
    heights: FloatArray = np.array([float(b.get("height", "")) for b in elements(html, "bar")])
    assert heights.min() > 0 and heights.max() / 180 == pytest.approx(1 / 1.35, abs=0.01)


def test_energy_has_a_dot_and_a_whisker_per_figure(powered: BenchmarkRecord) -> None:
    html = charts.energy(power_of(powered))
    assert words(html, "row") == [
        "bare engine, gross", "bare engine, net of idle", "end to end, gross",
        "end to end, net of idle",
    ]  # fmt: skip
    assert len(elements(html, "marker")) == 4 and not elements(html, "ring")
    engine = power_of(powered).engine
    assert engine is not None
    gross = engine.gross_j_per_tile
    lines = [e for e in elements(html, "whisker engine") if e.get("y1") == e.get("y2")]
    ends = [float(lines[0].get(key, "")) for key in ("x1", "x2")]
    left = float(re.findall(r"left:([\d.]+)%", elements(html, "marker")[0].get("style", ""))[0])
    assert ends[0] < left * 10 < ends[1]
    assert (ends[1] - ends[0]) / (left * 10) == pytest.approx(2 * gross.half / gross.value, rel=0.1)


def test_what_is_not_valid_is_hollow_and_says_so(powered: BenchmarkRecord) -> None:
    bad = make_powered(golden=make_golden(1.0))
    assert not bad.valid
    assert "NOT VALID" in timeline(bad) and "NOT VALID" not in timeline(powered)
    html = charts.energy(power_of(bad), bad.valid)
    assert len(elements(html, "ring")) == 4 and html.count("NOT VALID") == 4
    assert len(elements(html, "whisker hollow")) == len(elements(html, "whisker"))
    ((_, scatter),), left_out = charts.scatters([powered, bad], labels([powered, bad]))
    assert not left_out
    assert len(elements(scatter, "ring")) == 1 and len(elements(scatter, "marker")) == 2
    assert [("NOT VALID" in text) for text in words(scatter, "beside")] == [False, True]


def test_labels_of_a_scatter_are_kept_apart() -> None:
    records = [make_powered(seed=seed) for seed in range(5)]
    ((_, html),), _ = charts.scatters(records, labels(records))
    tops = sorted(float(re.findall(r"top:([\d.]+)px", e.get("style", ""))[0])
                  for e in elements(html, "beside"))  # fmt: skip
    assert len(tops) == 5 and min(np.diff(tops)) >= 10


def test_other_scopes_have_a_scatter_of_their_own(powered: BenchmarkRecord) -> None:
    board = make_powered(power=make_power_record(make_samples(info=ESTIMATE, lag_s=0)))
    none = make_record(make_evidence(scene=make_scene([1.0, 1.0, 1.0])))
    records = [powered, board, none, powered, board]
    found, left_out = charts.scatters(records, ["a", "b", "c", "d", "e"])
    assert [words(html, "beside") for _, html in found] == [
        ["a", "d"], ["b (estimate)", "e (estimate)"]
    ]  # fmt: skip
    assert "module" in found[0][0] and "board (estimate)" in found[1][0]
    assert left_out == ["c: no power"]
    none_drawn, left_out = charts.scatters(records[:2], ["a", "b"])
    assert none_drawn == [] and "b: power of the board (estimate)" in left_out[1]


def test_long_names_of_a_scatter_stand_below_it(powered: BenchmarkRecord) -> None:
    names = ["a name that is longer than half a phone is wide", "b"]
    ((_, html),), _ = charts.scatters([powered, powered], names)
    assert words(html, "beside") == ["1", "2"]
    assert words(html, "who") == [f"1: {names[0]}", "2: b"]
