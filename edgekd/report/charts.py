"""Charts beside the time block: histogram, energy with intervals, records against each other."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import numpy as np

from edgekd.report.compare import Difference, group_of, tiles_per_s
from edgekd.report.plot import WIDTH, Plot, Scale, nice_ticks, padded, tick_text
from edgekd.report.power import WHOLE, PowerRecord
from edgekd.report.record import BenchmarkRecord
from edgekd.report.timeline import top_ms
from edgekd.report.words import figure, interval, power_mark

#: height of a row of a chart in rows, and of histogram and scatter, CSS pixels
_ROW_PX, _HISTOGRAM_PX, _SCATTER_PX = 42, 180, 320
#: share of a chart that a figure with its interval needs
_ROOM = 0.4
#: plot width that labels of the scatter are kept apart for, CSS pixels, and height of one
_NARROW_PX, _LABEL_PX, _CHARACTER_PX = 300, 16, 7.0
#: characters from which on points are numbered
_LONG_LABEL = 18


def histogram(record: BenchmarkRecord) -> str:
    """How often each latency occurs, with the median and the 90th and 99th percentile."""
    values = [latency * 1e3 for latency in record.engine.latencies_s]
    summary = record.engine.summary
    low, top = min(values), top_ms(values, summary)
    pad = (top - low) * 0.04 or low * 0.01
    low, top = max(low - pad, 0.0), top + pad
    inside = [value for value in values if value <= top]
    bins = min(40, max(8, round(math.sqrt(len(inside)))))
    counts = [0] * bins
    for value in inside:
        counts[min(int((value - low) / (top - low) * bins), bins - 1)] += 1
    plot = Plot(Scale(low, top, WIDTH), Scale(0, max(counts) * 1.35, _HISTOGRAM_PX, True),
                "histogram of the latencies")  # fmt: skip
    plot.y_ticks(3)
    step = (top - low) / bins
    for index, count in enumerate(counts):
        if count:
            left = low + step * index
            plot.rect(left + 0.06 * step, left + 0.94 * step, 0, count, "bar engine")
    # labels on their own rows, so that neighbouring percentiles do not cover each other
    marks = (("p50", summary.p50_s), ("p90", summary.p90_s), ("p99", summary.p99_s))
    for row, (name, value_s) in enumerate(marks):
        at = value_s * 1e3
        end = " end" if plot.x.at(at) > 0.7 * WIDTH else ""
        head = plot.y.high * (1 - (3 + 15 * row) / _HISTOGRAM_PX)
        plot.line(at, 0, at, head, "mark")
        plot.text(at, head, f"{name} {at:#.4g} ms", f"tag{end}", 1)
    beyond = len(values) - len(inside)
    calls = "1 call" if beyond == 1 else f"{beyond} calls"
    note = f" ({calls} beyond, up to {figure(max(values))} ms)" if beyond else ""
    return plot.html() + plot.x_axis(f"latency, ms{note}", 5)


def energy(power: PowerRecord, valid: bool = True, unit: str = "tile") -> str:
    """Joules per tile or answer with their intervals: gross and net, bare engine and end to end."""
    rows = []
    for kind, name, work in (
        ("engine", "bare engine", power.engine),
        ("scene", "end to end", power.scene),
    ):
        if work is not None:
            rows.append((kind, name, "gross", work.gross_j_per_tile))
            if work.net_j_per_tile is not None:
                rows.append((kind, name, "net of idle", work.net_j_per_tile))
    if not rows:
        return ""
    height = _ROW_PX * len(rows)
    ends = padded([0.0, *(value.high for *_, value in rows), *(value.low for *_, value in rows)],
                  1e-9, zero=True)  # fmt: skip
    plot = Plot(Scale(*ends, WIDTH), Scale(0, len(rows), height, True),
                f"energy per {unit}{power_mark(power)}, J", "rows")  # fmt: skip
    plot.x_grid(5)
    for index, (kind, name, what, value) in enumerate(rows):
        y = len(rows) - index - 0.68
        state = "" if valid else " hollow"
        shade = " net" if what != "gross" else ""
        plot.whisker(y, value.low, value.high, f"whisker {kind}{shade}{state}")
        _marker(plot, value.value, y, f"marker {kind}{shade}", valid)
        plot.text(plot.x.low, y, f"{name}, {what}", "row", 18)
        words = interval(value) + ("" if valid else " NOT VALID")
        before, behind = plot.x.at(value.low), WIDTH - plot.x.at(value.high)
        if max(before, behind) < _ROOM * WIDTH:  # a whisker from end to end
            plot.text(plot.x.high, y, words, "row end strong", 18)
        elif behind >= before:
            plot.text(value.high, y, words, "beside strong", 0)
        else:
            plot.text(value.low, y, words, "beside end strong", 0)
    return plot.html() + plot.x_axis(f"J per {unit}{power_mark(power)}", 5)


def scatters(
    records: Sequence[BenchmarkRecord], names: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """(title, chart) of tiles/s against J/tile: one for each scope and status of power, since those
    may not be compared, and for each size of tile; answers apart. Then who is in none, and why."""
    groups: dict[tuple[str, str, str, str], list[int]] = {}
    left_out = []
    for index, record in enumerate(records):
        group = group_of(record)
        if group is None:
            left_out.append(f"{names[index]}: no power")
        else:
            work = "answers" if record.answers else f"tiles of {record.bundle.tile_px} px"
            groups.setdefault((*group, work), []).append(index)
    found = []
    for (scope, status, part, work), held in groups.items():
        mark = f" ({status})" if status != "measured" else ""
        of = f"the {scope}" if part == WHOLE else part
        what = f"power of {of}{mark}, {work}"
        if len(held) == 1:
            left_out.append(f"{names[held[0]]}: {what}, alone of its kind")
            continue
        chart = _scatter([records[i] for i in held], [names[i] for i in held], mark)
        unit = records[held[0]].unit
        found.append((f"Energy per {unit}{mark} against throughput: {what}", chart))
    return found, left_out


def _scatter(records: Sequence[BenchmarkRecord], names: Sequence[str], mark: str) -> str:
    points, keys = [], []
    unit = records[0].unit
    numbered = max(map(len, names)) > _LONG_LABEL
    for number, (record, name) in enumerate(zip(records, names, strict=True), 1):
        assert isinstance(record.power, PowerRecord) and record.power.engine is not None
        joules, found = record.power.engine.gross_j_per_tile, tiles_per_s(record)
        low, high = (
            (0.0, 0.0) if isinstance(found, str)
            else (found.low - found.value, found.high - found.value)
        )  # fmt: skip
        rate = record.power.engine.tiles_per_s  # of the same seconds as the joules
        state = "" if record.valid else " NOT VALID"
        keys.append(f"{number}: {name}{mark}{state}")
        text = f"{number if numbered else name}{mark}{state}"
        points.append((rate, joules, rate + low, rate + high, text, record.valid))
    rates = [value for p in points for value in (p[0], p[2], p[3])]
    energies = [value for p in points for value in (p[1].value, p[1].low, p[1].high)]
    x, y = (padded(values, 0.3 * max(values)) for values in (rates, energies))
    plot = Plot(Scale(*x, WIDTH), Scale(*y, _SCATTER_PX, True),
                f"energy per {unit}{mark} against throughput", "scatter")  # fmt: skip
    plot.y_ticks(5)
    plot.x_grid()
    _equal_power(plot, [(p[0], p[1].value) for p in points], mark)
    for rate, joules, low, high, _, valid in points:
        state = "" if valid else " hollow"
        plot.whisker(joules.value, low, high, f"whisker engine{state}")
        plot.line(rate, joules.low, rate, joules.high, f"whisker engine{state}")
        _marker(plot, rate, joules.value, "marker engine", valid)
    placed = _apart([(plot.x.at(p[0]), plot.y.at(p[1].value), p[4]) for p in points])
    for (rate, joules, *_, text, _), (end, down) in zip(points, placed, strict=True):
        plot.text(rate, joules.value, text, "beside end" if end else "beside", -down)
    return (
        f'<div class="ytitle">J per {unit}{mark}</div>{plot.html()}'
        f"{plot.x_axis(f'{unit}s/s, bare engine')}{_keys(keys) if numbered else ''}"
    )


def _keys(texts: Sequence[str]) -> str:
    """Names that are too long to stand beside their points."""
    return "".join(f'<div class="who">{html.escape(text)}</div>' for text in texts)


def _equal_power(plot: Plot, points: Sequence[tuple[float, float]], mark: str) -> None:
    """Lines of equal power behind the points: J per tile times tiles per s is W."""
    x, y = plot.x, plot.y
    least, most = max(x.low, 1e-9) * max(y.low, 1e-9), x.high * y.high

    def room(end: tuple[float, float]) -> float:
        return min(
            math.hypot(x.at(end[0]) - x.at(a), 3 * (y.at(end[1]) - y.at(b))) for a, b in points
        )

    for watts in nice_ticks(least, most, 4):
        first = max(x.low, watts / y.high, 1e-9)
        last = min(x.high, watts / y.low) if y.low > 0 else x.high
        if watts <= 0 or last - first < 0.15 * (x.high - x.low):
            continue
        rates = np.linspace(first, last, 40)
        plot.curve(rates, watts / rates, "iso")
        ends = [(rate, watts / rate) for rate in rates[[2, -3]].tolist()]
        rate, joules = max(ends, key=room)
        right = " end" if x.at(rate) > 0.85 * WIDTH else ""
        plot.text(rate, joules, f"{tick_text(watts)} W{mark}", f"iso{right}", 7)


def _apart(points: Sequence[tuple[float, float, str]]) -> list[tuple[bool, float]]:
    """For each label: whether it stands left of its point, and how far it is moved down, px."""
    taken: list[tuple[float, float, float]] = []
    found = []
    for left, top, text in points:
        size = len(text) * _CHARACTER_PX / _NARROW_PX * WIDTH
        end = left + size > WIDTH
        span = (left - size, left) if end else (left, left + size)
        down = next(
            (
                move
                for step in range(len(points) + 1)
                for move in (_LABEL_PX * step, -_LABEL_PX * step)
                if 0 <= top + move <= _SCATTER_PX
                and not any(
                    span[0] < b and a < span[1] and abs(top + move - at) < _LABEL_PX
                    for a, b, at in taken
                )
            ),
            0.0,
        )
        taken.append((*span, top + down))
        found.append((end, down))
    return found


def _marker(plot: Plot, x: float, y: float, kind: str, valid: bool) -> None:
    """A dot; one of a record that is not valid is a ring."""
    plot.marker(x, y, kind if valid else f"{kind} ring")


def reach(differences: Sequence[Difference]) -> float:
    """End of the axis, on both sides of 0, that holds all changes: a round share, at most 3."""
    edges = [
        abs(edge)
        for item in differences
        if item.relative is not None
        for edge in (item.relative.low, item.relative.high)
    ]
    widest = max(edges, default=0.0)
    return next(
        (end for end in (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2) if widest <= end),
        3.0,
    )


def change_chart(difference: Difference, end: float) -> str:
    """One change with its interval around a line at zero; the axis goes to ``end`` as a share."""
    relative = difference.relative
    if relative is None:
        return ""
    plot = Plot(Scale(-end, end, WIDTH), Scale(0, 1, 22, True),
                f"change of {difference.name}", "change")  # fmt: skip
    plot.line(0, 0, 0, 1, "zero")
    kind = "real" if difference.verdict == "real" else "unsure"
    plot.whisker(0.5, relative.low, relative.high, f"whisker {kind}")
    plot.marker(relative.value, 0.5, f"marker {kind}")
    return plot.html()


def change_words(difference: Difference) -> tuple[str, str]:
    """``+0.120 ± 0.031 J`` and ``+15.2 %``; empty where nothing was compared."""
    change, relative = difference.change, difference.relative
    if change is None:
        return "", ""
    half = change.half
    digits = max(0, 1 - math.floor(math.log10(half))) if 0 < half < 100 else 0
    text = f"{change.value:+,.{digits}f} ± {half:.{digits}f}" if half else f"{change.value:+.3g}"
    share = "" if relative is None else f"{100 * relative.value:+.1f} %"
    return f"{text} {difference.unit}".replace("-", "−"), share.replace("-", "−")
