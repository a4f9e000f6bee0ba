"""What happened over time: power, temperature, throughput and latency under one another.

All panels share the record's clock, whose zero is the first call of the bare engine, and the same
shaded phases. Every panel carries its values on one grid of times for the page's crosshair.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekd.report.compare import block_edges
from edgekd.report.latency import LatencySummary
from edgekd.report.plot import WIDTH as PLOT_WIDTH
from edgekd.report.plot import FloatArray, Plot, Scale, padded
from edgekd.report.power import Phase, PowerRecord
from edgekd.report.record import BenchmarkRecord
from edgekd.report.words import figure, interval, power_mark
from edgekd.telemetry.energy import LONGEST_GAP, energy_j

#: phase -> its name and what the legend says of it
PHASES = {
    "idle": ("idle", "idle"),
    "pulse": ("pulse", "load pulse, finds a meter's clock"),
    "warm_up": ("warm-up", "warm-up"),
    "guard": ("guard", "guard, not counted"),
    "engine": ("engine", "bare engine"),
    "streams": ("at once", "bare engine, several calls at once"),
    "rules": ("rules", "bare engine with rules and without, call by call"),
    "scene": ("end to end", "end to end"),
    "other": ("other bundle", "other bundle in turns"),
}
#: heights of the panels, CSS pixels
_POWER_PX, _SMALL_PX, _LATENCY_PX = 190, 92, 130
#: with more calls than this, a column shows the range and the median of its calls
_MOST_DOTS, _DOT_COLUMNS = 500, 240
#: times of the crosshair's grid
_GRID = 400
#: throughput is counted over at least this long, and over this many calls, s
_COUNT_S, _COUNT_CALLS = 1.0, 5


@dataclass(frozen=True)
class _Time:
    """The shared axis, in s or, for long records, minutes."""

    low_s: float
    high_s: float

    @property
    def unit_s(self) -> float:
        return 60.0 if self.high_s - self.low_s > 900 else 1.0

    def scale(self) -> Scale:
        return Scale(self.low_s / self.unit_s, self.high_s / self.unit_s, PLOT_WIDTH)

    def title(self) -> str:
        return f"time since the first call, {'s' if self.unit_s == 1 else 'min'}"


@dataclass(frozen=True)
class _Panel:
    title: str
    note: str
    legend: list[tuple[str, str]]
    plot: Plot
    name: str
    values: FloatArray


def timeline(record: BenchmarkRecord) -> str:
    """The block of panels as HTML: well-formed, everything escaped."""
    phases = shown_phases(record)
    time = _axis(record, phases)
    grid = time.low_s + (np.arange(_GRID) + 0.5) / _GRID * (time.high_s - time.low_s)
    panels: list[_Panel] = []
    if isinstance(record.power, PowerRecord):
        panels.append(_power(record.power, time, phases, grid))
        warm = _temperature(record.power, time, phases, grid)
        panels += [warm] if warm is not None else []
    panels += [_throughput(record, time, phases, grid), _latency(record, time, phases, grid)]
    spans = ";".join(
        f"{phase.start_s:.2f} {phase.end_s:.2f} {PHASES[phase.kind][1]}" for phase in phases
    )
    parts = [
        f'<div class="timeline" data-low="{time.low_s:.3f}" data-high="{time.high_s:.3f}" '
        f'data-phases="{html.escape(spans)}">',
        _legend(phases),
    ]
    if not record.valid:
        parts.append('<p class="stamp">NOT VALID: not to be compared or quoted</p>')
    parts += ['<div class="stack">', _lane(time, phases)]
    for panel in panels:
        keys = "".join(
            f'<span class="key"><i class="{kind}"></i>{html.escape(text)}</span>'
            for kind, text in panel.legend
        )
        note = f'<span class="soft">{html.escape(panel.note)}</span>' if panel.note else ""
        parts.append(
            f'<div class="panel" data-name="{html.escape(panel.name)}" '
            f'data-v="{_compact(panel.values)}"><div class="phead"><b>'
            f"{html.escape(panel.title)}</b>{note}{keys}</div>{panel.plot.html()}</div>"
        )
    axis = Plot(time.scale(), Scale(0, 1, 1, True), "time").x_axis(time.title(), 8)
    parts += [axis, '<div class="hair"></div><div class="tip"></div></div></div>']
    return "".join(parts)


def shown_phases(record: BenchmarkRecord) -> list[Phase]:
    """Those of the power record; without one, the engine's blocks and the runs over the scene."""
    if isinstance(record.power, PowerRecord):
        return record.power.phases
    engine, found = record.engine, []
    for first, last in block_edges(record):
        end = engine.starts_s[last - 1] + engine.latencies_s[last - 1]
        found.append(Phase(kind="engine", start_s=engine.starts_s[first], end_s=end))
    stretches: list[list[float]] = []  # runs that follow each other are one phase
    for run in sorted(record.scene.runs, key=lambda run: run.start_s):
        end = run.start_s + run.total_s
        if stretches and run.start_s - stretches[-1][1] < 0.25 * run.total_s:
            stretches[-1][1] = end
        else:
            stretches.append([run.start_s, end])
    found += [Phase(kind="scene", start_s=a, end_s=b) for a, b in stretches]
    return sorted(found, key=lambda phase: phase.start_s)


def top_ms(latencies_ms: Sequence[float], summary: LatencySummary) -> float:
    """Upper end of a latency axis: the largest, unless few rare ones would flatten all."""
    largest, p99 = max(latencies_ms), summary.p99_s * 1e3
    return largest if largest <= 2.5 * p99 else p99 * 1.5


def _axis(record: BenchmarkRecord, phases: Sequence[Phase]) -> _Time:
    engine = record.engine
    last = max(run.start_s + run.total_s for run in record.scene.runs)
    times = [0.0, last, engine.starts_s[-1] + engine.latencies_s[-1]]
    times += [edge for phase in phases for edge in (phase.start_s, phase.end_s)]
    if isinstance(record.power, PowerRecord):
        times += [record.power.trace.at_s[0], record.power.trace.at_s[-1]]
    return _Time(min(times), max(times))


def _plot(time: _Time, ends: tuple[float, float], height_px: int, label: str,
          phases: Sequence[Phase]) -> Plot:  # fmt: skip
    plot = Plot(time.scale(), Scale(*ends, height_px, True), label)
    for phase in phases:
        plot.band(phase.start_s / time.unit_s, phase.end_s / time.unit_s, f"band {phase.kind}")
    plot.y_ticks(4 if height_px > 100 else 2)
    return plot


def _power(power: PowerRecord, time: _Time, phases: Sequence[Phase], grid: FloatArray) -> _Panel:
    at, watts = np.array(power.trace.at_s), np.array(power.trace.watts)
    mark, unit = power_mark(power), time.unit_s
    plot = _plot(time, padded([*watts, 1.0], 1.0, zero=True, head=0.2), _POWER_PX,
                 f"power over time{mark}", phases)  # fmt: skip
    gap = LONGEST_GAP * power.interval_s
    plot.curve(at / unit, watts, "trace", gap / unit)
    legend: list[tuple[str, str]] = []
    if power.idle is not None:
        mean = power.idle.mean_w
        plot.line(time.low_s / unit, mean.value, time.high_s / unit, mean.value, "level idle")
        legend.append(("dash idle", f"idle {interval(mean)} W"))
        work = [p for p in phases if p.kind in ("engine", "scene")]
        if work:
            middle = (work[0].start_s + work[-1].end_s) / 2 / unit
            plot.text(middle, mean.value, f"idle {figure(mean.value)} W", "mid idle halo", 17)
    for kind, of in (("engine", power.engine), ("scene", power.scene)):
        if of is None:
            continue
        legend.append((f"bar {kind}", f"{PHASES[kind][1]} {interval(of.mean_w)} W"))
        for phase in (p for p in phases if p.kind == kind):
            inside = (at >= phase.start_s) & (at <= phase.end_s)
            joules = energy_j(at, watts, phase.start_s, phase.end_s)
            mean_w = joules / (phase.end_s - phase.start_s)
            a, b = phase.start_s / unit, phase.end_s / unit
            plot.line(a, mean_w, b, mean_w, f"mean {kind}")
            text = f"{figure(mean_w)} W"
            fits = plot.fitting(a, b, text)
            top = float(np.percentile(watts[inside], 99))
            plot.text((a + b) / 2, top, text, f"mid halo strong {kind} {fits}", 20)
    near = np.abs(at[np.clip(np.searchsorted(at, grid), 1, len(at) - 1)] - grid)
    shown = np.interp(grid, at, watts, math.nan, math.nan)
    shown[near > gap] = math.nan
    title = f"Power, W{mark}"
    note = f"{power.sensor.name}, {power.sensor.scope}"
    return _Panel(title, note, legend, plot, f"power{mark}, W", shown)


def _temperature(
    power: PowerRecord, time: _Time, phases: Sequence[Phase], grid: FloatArray
) -> _Panel | None:
    trace = power.trace
    held = [(t, c) for t, c in zip(trace.at_s, trace.temperature_c, strict=False) if c is not None]
    if trace.zone is None or not held:
        return None
    at, values = np.array([t for t, _ in held]), np.array([c for _, c in held])
    mark = power_mark(power)
    plot = _plot(time, padded(values, 8.0), _SMALL_PX, f"temperature over time{mark}", phases)
    plot.curve(at / time.unit_s, values, "trace warm", LONGEST_GAP * power.interval_s / time.unit_s)
    note = f"zone {trace.zone}, the hottest; {values.min():.3g} to {values.max():.3g} °C"
    shown = np.interp(grid, at, values, math.nan, math.nan)
    return _Panel(f"Temperature, °C{mark}", note, [], plot, f"temperature{mark}, °C", shown)


def throughput(record: BenchmarkRecord) -> tuple[FloatArray, FloatArray]:
    """Tiles per second of the bare engine over time, as steps.

    Each block is cut into stretches of about 1 s, of five calls where a call is slower. A call that
    spans two of them counts in each by its share, so that whole calls make no false steps.

    Returns:
        edges, shape (n, 2), of each stretch, s; tiles per second, shape (n,).
    """
    engine = record.engine
    least = max(_COUNT_S, _COUNT_CALLS * engine.summary.mean_s)
    edges, rates = [], []
    for first, last in block_edges(record):
        starts = np.array(engine.starts_s[first:last])
        ends = starts + np.array(engine.latencies_s[first:last])
        count = max(int((ends[-1] - starts[0]) / least), 1)
        cuts = np.linspace(starts[0], ends[-1], count + 1)
        times = np.stack([starts, ends], 1).ravel()
        done = np.repeat(np.arange(last - first + 1), 2)[1:-1]
        tiles = np.interp(cuts, times, done)
        edges.append(np.stack([cuts[:-1], cuts[1:]], 1))
        rates.append(np.diff(tiles) / np.diff(cuts))
    return np.concatenate(edges), np.concatenate(rates)


def _throughput(
    record: BenchmarkRecord, time: _Time, phases: Sequence[Phase], grid: FloatArray
) -> _Panel:
    edges, rates = throughput(record)
    scene, unit = record.scene, time.unit_s
    runs = [(run.start_s, run.start_s + run.total_s, scene.windows_run / run.total_s)
            for run in scene.runs]  # fmt: skip
    top = [*rates, *(rate for *_, rate in runs)]
    plot = _plot(time, padded(top, 1e-9, zero=True), _SMALL_PX, "throughput over time", phases)
    pause = 1.5 * float(np.diff(edges, axis=1).max()) / unit
    plot.curve(edges.ravel() / unit, np.repeat(rates, 2), "step engine", pause)
    shown = np.full(len(grid), math.nan)
    for (start, end), rate in zip(edges, rates, strict=True):
        shown[(grid >= start) & (grid < end)] = rate
    for start, end, rate in runs:
        plot.line(start / unit, rate, end / unit, rate, "step scene")
        shown[(grid >= start) & (grid < end)] = rate
    legend = [
        ("bar engine", f"bare engine {figure(record.engine.tiles_per_s)}"),
        ("bar scene", f"end to end {figure(scene.tiles_per_s)} (each run)"),
    ]
    rate_of = f"throughput, {record.unit}s/s"
    return _Panel(rate_of.capitalize(), "", legend, plot, rate_of, shown)


def _latency(
    record: BenchmarkRecord, time: _Time, phases: Sequence[Phase], grid: FloatArray
) -> _Panel:
    engine, unit = record.engine, time.unit_s
    starts = np.array(engine.starts_s)
    values = np.array(engine.latencies_s) * 1e3
    top = top_ms(values.tolist(), engine.summary)
    p50 = engine.summary.p50_s * 1e3
    ends = padded([*values[values <= top], top], 0.12 * p50)
    plot = _plot(time, ends, _LATENCY_PX, "latency of each model call over time", phases)
    inside = [(s / unit, v) for s, v in zip(starts, values, strict=True) if v <= top]
    note = f"each of {len(values)} calls"
    if len(inside) <= _MOST_DOTS:
        plot.dots(inside, "dots engine")
    else:
        columns: dict[int, list[float]] = {}
        for start, value in inside:
            part = plot.x.at(start) / PLOT_WIDTH
            columns.setdefault(min(int(part * _DOT_COLUMNS), _DOT_COLUMNS - 1), []).append(value)
        span = (plot.x.high - plot.x.low) / _DOT_COLUMNS
        held = [(plot.x.low + (c + 0.5) * span, sorted(v)) for c, v in columns.items()]
        plot.bars([(at, many[0], many[-1]) for at, many in held], "range engine")
        plot.dots([(at, many[len(many) // 2]) for at, many in held], "dots small engine")
        note = f"{len(values)} calls: range and median of neighbours"
    above = values > top
    if above.any():
        places = sorted({round(plot.x.at(s / unit), 0) for s in starts[above]})
        plot.dots([(plot.x.low + p / PLOT_WIDTH * (plot.x.high - plot.x.low), ends[1])
                   for p in places], "dots over")  # fmt: skip
        note += f"; {int(above.sum())} above the axis, up to {figure(values.max())} ms"
    plot.line(plot.x.low, p50, plot.x.high, p50, "level p50")
    last = np.searchsorted(starts, grid, side="right") - 1
    shown = np.where(
        (last >= 0) & (grid < starts[last] + values[last] / 1e3), values[last], math.nan
    )
    legend = [("dash ink", f"median {figure(p50)} ms")]
    title = "Latency per tile, ms" if record.answers is None else "Latency of the bare engine, ms"
    return _Panel(title, note, legend, plot, "latency, ms", shown)


def _lane(time: _Time, phases: Sequence[Phase]) -> str:
    """The phases' names in a row above the panels, where they fit."""
    plot = Plot(time.scale(), Scale(0, 1, 20, True), "phases of the measurement", "lane")
    for phase in phases:
        a, b = phase.start_s / time.unit_s, phase.end_s / time.unit_s
        plot.band(a, b, f"solid {phase.kind}")
        if phase.kind != "guard":
            text = PHASES[phase.kind][0]
            plot.text((a + b) / 2, 0.5, text, f"mid {plot.fitting(a, b, text)}")
    return plot.html()


def _legend(phases: Sequence[Phase]) -> str:
    kinds = [kind for kind in PHASES if any(phase.kind == kind for phase in phases)]
    keys = "".join(
        f'<span class="key"><i class="box {kind}"></i>{PHASES[kind][1]}</span>' for kind in kinds
    )
    return f'<div class="legend">{keys}</div>'


def _compact(values: FloatArray) -> str:
    return " ".join("" if math.isnan(value) else f"{value:.4g}" for value in values)


def why_no_power(record: BenchmarkRecord) -> str | None:
    """A sentence where a record holds no power."""
    if isinstance(record.power, PowerRecord):
        return None
    return f"No power was measured: {record.power.reason.rstrip('.')}."
