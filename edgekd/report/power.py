"""Power of a measurement: windows, energy per tile, and what must stand beside the figures.

The samples of a record are cut into phases: idle, load pulse, warm-up, guard, work, idle. Figures
rest on the phases of work alone, behind a guard of five lags of the sensor's filter
(:data:`edgekd.telemetry.energy.GUARD_LAGS`), with their edges at the edges of calls, so that work
and energy are of the same time. *Gross* is all that the scope drew; *net* is that less what it
drew idle, before and after.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.schema import Document
from edgekd.telemetry.energy import (
    LEAST_REPEATS,
    Estimate,
    energy_j,
    faults,
    guard_s,
    half_of_repeats,
    pooled_power_w,
)
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, Scope, SensorInfo, Status

FloatArray = npt.NDArray[np.float64]
Kind = Literal["idle", "pulse", "warm_up", "guard", "engine", "streams", "rules", "scene", "other"]
Work = Literal["engine", "scene"]

#: samples of a window below which it gives no figure; faults begin far above
LEAST_FOR_FIGURES = 4
#: m² in a km², and px in a Mpx
_M2, _PX = 1e6, 1e6


class Figure(Document):
    """A value with its 95 % interval, in the unit of the field's name."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Estimate) -> Figure:
        """Of an estimate."""
        return cls(value=estimate.value, low=estimate.low, high=estimate.high)

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


class Phase(Document):
    """A stretch of the measurement, on the clock of the record.

    Attributes:
        kind: ``streams`` is the bare engine with several calls at once, ``rules`` that of a
            bundle of places with its rules and without, call by call, ``other`` work of the bundle
            that is measured in turns with this one.
        start_s, end_s: s.
        tiles: that left the model; of a bundle of places, answers.
        pixels: unique pixels with data that were mapped; of the bare engine those of its tiles.
        area_m2: of those pixels; null where the input has no size on the ground.
    """

    kind: Kind
    start_s: float
    end_s: float
    tiles: int = 0
    pixels: int = 0
    area_m2: float | None = None

    @pydantic.model_validator(mode="after")
    def _order(self) -> Phase:
        if not self.start_s < self.end_s:
            raise ValueError("a phase ends before it begins")
        return self


class SensorUsed(Document):
    """What a sensor is; see :class:`edgekd.telemetry.sensors._base.SensorInfo`."""

    name: str
    scope: Scope
    total: list[str]
    source: str
    resolution_w: float | None
    lag_s: float | None
    config: dict[str, str]


class PowerTrace(Document):
    """Raw samples.

    Attributes:
        at_s: arrival on the clock of the record, s.
        watts: total, W.
        zone: the zone of ``temperature_c``: the hottest one; null where none was read.
        temperature_c: at each sample; null where that one had none.
    """

    at_s: list[float] = pydantic.Field(min_length=2)
    watts: list[float]
    zone: str | None = None
    temperature_c: list[float | None] = []

    @pydantic.model_validator(mode="after")
    def _same_length(self) -> PowerTrace:
        sizes = {len(self.at_s), len(self.watts), len(self.temperature_c) or len(self.at_s)}
        if len(sizes) != 1:
            raise ValueError("times, powers and temperatures differ in number")
        return self


class Idle(Document):
    """Power without work.

    Attributes:
        before_w, after_w: of the two windows; null where one was not taken.
        mean_w: of both.
    """

    before_w: Figure | None
    after_w: Figure | None
    mean_w: Figure


class WorkPower(Document):
    """Power and energy of one kind of work, over all its windows together. Of a bundle of places a
    tile is an answer.

    Attributes:
        windows, seconds: how many, and their time, s.
        tiles, pixels, area_m2: work done in them, see :class:`Phase`.
        tiles_per_s: tiles over seconds: of the same time as the watts, so that this times joules
            per tile is the power. The record's other rates are of all calls, guards included.
        mean_w: with its interval; p50_w, p95_w, max_w: of the samples.
        joules: energy of the windows.
        gross_j_per_tile, gross_j_per_mpx, gross_j_per_km2: energy over work; null where there is
            no such work.
        net_j_per_tile, net_j_per_mpx, net_j_per_km2: what the work added to idling.
        tiles_per_j: 1 / gross_j_per_tile: the same as tiles per second per watt; null where no
            energy was drawn.
    """

    windows: int
    seconds: float
    tiles: int
    pixels: int
    area_m2: float | None
    tiles_per_s: float
    mean_w: Figure
    p50_w: float
    p95_w: float
    max_w: float
    joules: float
    gross_j_per_tile: Figure
    gross_j_per_mpx: Figure | None
    gross_j_per_km2: Figure | None
    net_j_per_tile: Figure | None
    net_j_per_mpx: Figure | None
    net_j_per_km2: Figure | None
    tiles_per_j: float | None


class Synchronised(Document):
    """How the clock of an external meter was brought to that of the record.

    Attributes:
        offset_s: the meter's clock minus the record's.
        lag_s: time constant of the meter that fits best.
        score: correlation of load and power, -1 to 1.
        margin: by how much the next best offset is worse.
        drift_s: of the offset from the first third to the last; null where the load does not tell.
    """

    offset_s: float
    lag_s: float
    score: float
    margin: float
    drift_s: float | None


class PowerPending(Document):
    """A measurement whose power an external meter recorded by itself; its file is to be added.

    Attributes:
        reason: one sentence.
        guard_s, phases: see :class:`PowerRecord`.
    """

    status: Literal["pending"] = "pending"
    reason: str
    guard_s: float
    phases: list[Phase]


class PowerRecord(Document):
    """Power of a measurement.

    Attributes:
        status: "measured"; "estimate" where a formula made power of something else; "replay" where
            the samples are those of another time, and say nothing about this work.
        interval_asked_s, interval_s: between samples: asked for, and their median.
        guard_s: left out behind each change of the load.
        lag_known: False where the guard rests on a lag that nobody measured.
        dropped: lines of the sensor's source that were none of its own whole ones, by kind.
        faults: of the sampling as a whole; see :meth:`edgekd.telemetry.sampler.Samples.faults`.
        idle: null where no idle window was taken.
        engine, scene: null where a window has too few samples for any figure.
        without: engine or scene -> why it has no figures.
        synchronised: of an external meter.
    """

    status: Status
    sensor: SensorUsed
    interval_asked_s: float
    interval_s: float
    guard_s: float
    lag_known: bool
    phases: list[Phase]
    dropped: dict[str, int]
    faults: list[str]
    idle: Idle | None
    engine: WorkPower | None
    scene: WorkPower | None
    without: dict[str, str]
    synchronised: Synchronised | None = None
    trace: PowerTrace

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> PowerRecord:
        figures = evaluate(self.trace, self.phases, self.sensor.resolution_w)
        for name in ("idle", "engine", "scene"):
            given, expected = getattr(self, name), getattr(figures, name)
            if not _same(given, expected):
                raise ValueError(f"power.{name} does not follow from the samples")
        if self.without != figures.without:
            raise ValueError("power.without does not follow from the samples")
        pause = float(np.median(np.diff(self.trace.at_s)))
        if not math.isclose(self.interval_s, pause, rel_tol=1e-3, abs_tol=2e-6):
            raise ValueError("power.interval_s does not follow from the samples")
        if self.lag_known != (self.sensor.lag_s is not None):
            raise ValueError("power.lag_known does not follow from the sensor's lag")
        s = self.sensor
        if self.status != SensorInfo(s.name, s.scope, tuple(s.total), s.source).status:
            raise ValueError("power.status does not follow from the sensor's source")
        return self


#: part of a machine that a figure of its scope is of, where that is not one of its components
WHOLE = "the whole"


def part_of(power: PowerRecord) -> str:
    """What of a machine a figure is of, where its scope alone does not tell."""
    return {"rapl": "the processor", "nvml": "the card"}.get(power.sensor.name, WHOLE)


@dataclass(frozen=True)
class Figures:
    """What follows from samples and phases."""

    idle: Idle | None
    engine: WorkPower | None
    scene: WorkPower | None
    without: dict[str, str]


def make_power(
    samples: Samples,
    phases: Sequence[Phase],
    origin_s: float,
    synchronised: Synchronised | None = None,
    guard: float | None = None,
) -> PowerRecord | str:
    """The record's part, or why there is none.

    Args:
        samples: of the whole measurement.
        phases: in order, on the record's clock.
        origin_s: where that clock begins, monotonic, s.
        synchronised: of an external meter.
        guard: that was kept, s; that of the sensor if absent.
    """
    readings = [item for item in samples.readings if item.watts is not None]
    trace = make_trace(readings, origin_s)
    pause = samples.achieved_s
    if trace is None or pause is None:
        found = samples.faults()
        return "; ".join(found) or f"{samples.info.name} gave fewer than two samples"
    rounded = round_phases(phases)
    info = samples.info
    figures = evaluate(trace, rounded, info.resolution_w)
    return PowerRecord(
        status=info.status,
        sensor=SensorUsed(
            name=info.name, scope=info.scope, total=list(info.total), source=info.source,
            resolution_w=info.resolution_w, lag_s=info.lag_s, config=info.config,
        ),
        interval_asked_s=samples.interval_s,
        interval_s=round(pause, 6),
        guard_s=guard_s(info) if guard is None else guard,
        lag_known=info.lag_s is not None,
        phases=rounded,
        dropped=samples.dropped,
        faults=samples.faults(),
        idle=figures.idle,
        engine=figures.engine,
        scene=figures.scene,
        without=figures.without,
        synchronised=synchronised,
        trace=trace,
    )  # fmt: skip


def round_phases(phases: Sequence[Phase]) -> list[Phase]:
    """Phases with edges to 1 µs, as they are stored."""
    return [
        phase.model_copy(
            update={"start_s": round(phase.start_s, 6), "end_s": round(phase.end_s, 6)}
        )
        for phase in phases
    ]


def make_trace(readings: Sequence[Reading], origin_s: float) -> PowerTrace | None:
    """Samples with power, rounded to 1 µs and 0.1 mW; None for fewer than two."""
    at = np.round(np.array([item.at_s for item in readings]) - origin_s, 6)
    keep = np.flatnonzero(np.diff(at, prepend=-math.inf) > 0)
    if len(keep) < 2:
        return None
    kept = [readings[int(place)] for place in keep]
    zone = _hottest(kept)
    temperatures = [] if zone is None else [item.temperatures_c.get(zone) for item in kept]
    return PowerTrace(
        at_s=at[keep].tolist(),
        watts=[round(item.watts, 4) for item in kept if item.watts is not None],
        zone=zone,
        temperature_c=temperatures,
    )


def evaluate(trace: PowerTrace, phases: Sequence[Phase], resolution_w: float | None) -> Figures:
    """Figures of the phases, from the raw samples."""
    at, watts = np.array(trace.at_s), np.array(trace.watts)
    without: dict[str, str] = {}
    idle = _idle(at, watts, [item for item in phases if item.kind == "idle"], phases, resolution_w)
    found: dict[str, WorkPower | None] = {}
    for kind in ("engine", "scene"):
        mine = [item for item in phases if item.kind == kind]
        why = _absent(at, mine)
        if not why and not all(item.tiles for item in mine):
            why = "a window holds no tile"
        if why:
            without[kind] = why
        found[kind] = None if why else _work(at, watts, mine, idle, resolution_w)
    return Figures(idle, found["engine"], found["scene"], without)


def window_faults(at_s: FloatArray, phases: Sequence[Phase]) -> list[str]:
    """Why the samples cannot carry figures of these windows; empty where they can."""
    return [
        f"window {number}: {fault}" if len(phases) > 1 else fault
        for number, phase in enumerate(phases, 1)
        for fault in faults(at_s, phase.start_s, phase.end_s)
    ]


def _absent(at: FloatArray, phases: Sequence[Phase]) -> str:
    """Why no figure at all can be had of these windows; empty where one can."""
    if not phases:
        return "no window was long enough"
    for item in phases:
        if not at[0] <= item.start_s or not item.end_s <= at[-1]:
            return "the samples do not hold all of its windows"
        count = int(((at >= item.start_s) & (at <= item.end_s)).sum())
        if count < LEAST_FOR_FIGURES:
            return f"a window has {count} samples"
    return ""


def _idle(
    at: FloatArray, watts: FloatArray, idle: list[Phase], phases: Sequence[Phase],
    resolution_w: float | None,
) -> Idle | None:  # fmt: skip
    whole = [item for item in idle if not _absent(at, [item])]
    if not whole:
        return None
    busy = [item.start_s for item in phases if item.kind in ("engine", "scene", "warm_up")]
    begin = min(busy, default=math.inf)

    def figure(items: list[Phase]) -> Figure | None:
        windows = [(item.start_s, item.end_s) for item in items]
        if not windows:
            return None
        return Figure.of(pooled_power_w(at, watts, windows, resolution_w, between=False))

    both = figure(whole)
    assert both is not None
    before = figure([item for item in whole if item.start_s < begin])
    after = figure([item for item in whole if item.start_s >= begin])
    if before is not None and after is not None:
        # where it lay in between, nobody knows: half of what it moved belongs to the interval
        half = math.hypot(both.half, (after.value - before.value) / 2)
        both = Figure(value=both.value, low=both.value - half, high=both.value + half)
    return Idle(before_w=before, after_w=after, mean_w=both)


def _work(
    at: FloatArray, watts: FloatArray, phases: list[Phase], idle: Idle | None,
    resolution_w: float | None,
) -> WorkPower:  # fmt: skip
    windows = [(item.start_s, item.end_s) for item in phases]
    power = pooled_power_w(at, watts, windows, resolution_w)
    steady = pooled_power_w(at, watts, windows, resolution_w, between=False)
    seconds = np.array([end - start for start, end in windows])
    joules = np.array([energy_j(at, watts, start, end) for start, end in windows])
    areas = [item.area_m2 for item in phases if item.area_m2 is not None]
    tiles, pixels = sum(item.tiles for item in phases), sum(item.pixels for item in phases)
    within = np.concatenate([watts[(at >= start) & (at <= end)] for start, end in windows])

    def per(amounts: list[float], net: bool) -> Figure | None:
        """Energy over work. The interval is the wider of that of power within the windows, and of
        that of the windows' own ratios: not only power differs from repeat to repeat."""
        if not all(amounts) or (net and idle is None):
            return None
        base = idle.mean_w if net and idle is not None else None
        work = np.array(amounts)
        energy = joules if base is None else joules - base.value * seconds
        scale = float(seconds.sum() / work.sum())
        half = steady.half * scale
        if len(work) >= LEAST_REPEATS:
            half = max(half, half_of_repeats(energy / work, work))
        if base is not None:
            half = math.hypot(half, base.half * scale)
        value = float(energy.sum() / work.sum())
        return Figure(value=value, low=value - half, high=value + half)

    per_tile = [float(item.tiles) for item in phases]
    per_mpx = [item.pixels / _PX for item in phases]
    per_km2 = [area / _M2 for area in areas] if len(areas) == len(phases) else [0.0]
    gross = per(per_tile, net=False)
    assert gross is not None  # every window holds tiles
    return WorkPower(
        windows=len(windows),
        seconds=float(seconds.sum()),
        tiles=tiles,
        pixels=pixels,
        area_m2=sum(areas) if len(areas) == len(phases) else None,
        tiles_per_s=tiles / float(seconds.sum()),
        mean_w=Figure.of(power),
        p50_w=_rank(within, 50),
        p95_w=_rank(within, 95),
        max_w=float(within.max()),
        joules=float(joules.sum()),
        gross_j_per_tile=gross,
        gross_j_per_mpx=per(per_mpx, net=False),
        gross_j_per_km2=per(per_km2, net=False),
        net_j_per_tile=per(per_tile, net=True),
        net_j_per_mpx=per(per_mpx, net=True),
        net_j_per_km2=per(per_km2, net=True),
        tiles_per_j=1 / gross.value if gross.value > 0 else None,
    )


def _rank(values: FloatArray, percent: float) -> float:
    """By nearest rank, as latencies."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _hottest(readings: Sequence[Reading]) -> str | None:
    """The zone with the highest mean; ``PMIC`` and the like tell a constant and are left out."""
    sums: dict[str, list[float]] = {}
    for item in readings:
        for zone, value in item.temperatures_c.items():
            sums.setdefault(zone, []).append(value)
    moving = {zone: values for zone, values in sums.items() if len(set(values)) > 1}
    known = moving or {k: v for k, v in sums.items() if not k.upper().startswith("PMIC")}
    if not known:
        return None
    return max(known, key=lambda zone: sum(known[zone]) / len(known[zone]))


def _same(given: Document | None, expected: Document | None) -> bool:
    if given is None or expected is None:
        return given is expected
    return close(given.model_dump(), expected.model_dump())


def close(a: object, b: object) -> bool:
    """Whether two JSON-like values agree, their numbers to a millionth."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    return a == b
