"""Plots of latencies as inline SVG; colours come from the page's style sheet by class."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgekd.report.record import BenchmarkRecord

#: size of a plot in its own units; narrow, so that text stays readable on a phone.
_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 34, 44
#: with more calls than this, a column shows the range and the median of its calls.
_MOST_POINTS = 400
_COLUMNS = 150


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values (1, 2 or 5 times a power of ten apart) inside ``low..high``."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


class _Axes:
    """Maps values to the plot and collects its SVG."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], label: str) -> None:
        self._x, self._y = x, y
        self._parts = [
            f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">'
        ]

    def px(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low or 1) * (_WIDTH - _LEFT - _RIGHT)

    def py(self, value: float) -> float:
        low, high = self._y
        part = (value - low) / (high - low or 1)
        return _HEIGHT - _BOTTOM - part * (_HEIGHT - _TOP - _BOTTOM)

    def add(self, text: str) -> None:
        self._parts.append(text)

    def line(self, x0: float, y0: float, x1: float, y1: float, kind: str) -> None:
        self.add(f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>')

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "middle") -> None:
        self.add(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
        )

    def frame(self, x_label: str, y_label: str) -> None:
        bottom = _HEIGHT - _BOTTOM
        for tick in nice_ticks(*self._y):
            self.line(_LEFT, self.py(tick), _WIDTH - _RIGHT, self.py(tick), "grid")
            self.text(_LEFT - 6, self.py(tick) + 4, f"{tick:g}", anchor="end")
        for tick in nice_ticks(*self._x):
            self.line(self.px(tick), bottom, self.px(tick), bottom + 4, "axis")
            self.text(self.px(tick), bottom + 17, f"{tick:g}")
        self.line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, "label")
        self.text(6, 14, y_label, "label", "start")

    def svg(self) -> str:
        return "".join([*self._parts, "</svg>"])


def _top_ms(latencies_ms: Sequence[float], p99_ms: float) -> float:
    """Upper end of the latency axis: the largest value, unless few rare ones would flatten all."""
    largest = max(latencies_ms)
    return largest * 1.05 if largest <= 2.5 * p99_ms else p99_ms * 1.5


def series_svg(record: BenchmarkRecord) -> str:
    """Latency of every call over time; grey spans are the runs over the whole input.

    Calls above the axis are drawn as triangles at its upper end and counted in words.
    """
    engine = record.engine
    values = [latency * 1e3 for latency in engine.latencies_s]
    top = _top_ms(values, engine.summary.p99_s * 1e3)
    ends = [run.start_s + run.total_s for run in record.scene.runs]
    last = max([*ends, engine.starts_s[-1] + engine.latencies_s[-1]])
    axes = _Axes((0.0, last), (0.0, top), "latency of each model call over time")
    for run in record.scene.runs:
        x0, x1 = axes.px(run.start_s), axes.px(run.start_s + run.total_s)
        axes.add(
            f'<rect class="span" x="{x0:.1f}" y="{_TOP}" width="{max(x1 - x0, 1):.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        )
    axes.frame("time since the first call, s", "latency, ms")
    inside = [(s, v) for s, v in zip(engine.starts_s, values, strict=True) if v <= top]
    above = [(s, v) for s, v in zip(engine.starts_s, values, strict=True) if v > top]
    if len(inside) <= _MOST_POINTS:
        for start, value in inside:
            x, y = axes.px(start), axes.py(value)
            axes.add(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2"/>')
    else:
        columns: dict[int, list[float]] = {}
        for start, value in inside:
            columns.setdefault(int(start / last * _COLUMNS), []).append(value)
        for column, held in columns.items():
            x = axes.px((column + 0.5) / _COLUMNS * last)
            held.sort()
            axes.line(x, axes.py(held[0]), x, axes.py(held[-1]) - 1, "range")
            y = axes.py(held[len(held) // 2])
            axes.add(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="1.6"/>')
    for start in sorted({round(axes.px(start)) for start, _ in above}):
        axes.add(f'<path class="over" d="M{start - 4} {_TOP + 7}l4 -7l4 7z"/>')
    if above:
        words = f"{len(above)} of {len(values)} calls above, up to {max(values):.3g} ms"
        axes.text(_WIDTH - _RIGHT, 14, words, "note", "end")
    return axes.svg()


def histogram_svg(record: BenchmarkRecord) -> str:
    """How often each latency occurs, with the median and the 90th and 99th percentile."""
    values = [latency * 1e3 for latency in record.engine.latencies_s]
    summary = record.engine.summary
    low, top = min(values), _top_ms(values, summary.p99_s * 1e3)
    pad = (top - low) * 0.04 or low * 0.05
    low = max(low - pad, 0.0)
    inside = [value for value in values if value <= top]
    bins = min(40, max(8, round(math.sqrt(len(inside)))))
    counts = [0] * bins
    for value in inside:
        counts[min(int((value - low) / (top - low) * bins), bins - 1)] += 1
    axes = _Axes((low, top), (0.0, max(counts) * 1.08), "histogram of the latencies")
    axes.frame("latency, ms", "calls")
    bottom = _HEIGHT - _BOTTOM
    for index, count in enumerate(counts):
        if count:
            x0 = axes.px(low + (top - low) * index / bins)
            x1 = axes.px(low + (top - low) * (index + 1) / bins)
            y = axes.py(count)
            axes.add(
                f'<rect class="bar" x="{x0 + 0.5:.1f}" y="{y:.1f}" width="{x1 - x0 - 1:.1f}" '
                f'height="{bottom - y:.1f}"/>'
            )
    # labels on their own rows, so that neighbouring percentiles do not cover each other
    marks = (("p50", summary.p50_s), ("p90", summary.p90_s), ("p99", summary.p99_s))
    for row, (name, value_s) in enumerate(marks):
        x, y = axes.px(value_s * 1e3), _TOP + 4 + 15 * row
        axes.line(x, y - 8, x, bottom, "mark")
        right = x < _WIDTH - 110
        axes.text(
            x + (4 if right else -4), y + 3, f"{name} {value_s * 1e3:.3g}", "mark-label",
            "start" if right else "end",
        )  # fmt: skip
    if len(inside) < len(values):
        words = f"{len(values) - len(inside)} calls beyond {top:.3g} ms"
        axes.text(_WIDTH - _RIGHT, 14, words, "note", "end")
    return axes.svg()
