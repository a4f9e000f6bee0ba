"""What may be said about a part of a trace: power, energy, tiles, and why not.

This is no benchmark: nothing was warmed up and no idle was measured, unless the caller names the
part of the trace that was. What is wrong stands beside the figures, which are then not valid.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekd.errors import InputError
from edgekd.telemetry.energy import Estimate, energy_j, faults, mean_power_w
from edgekd.telemetry.sensors._base import SensorInfo
from edgekd.telemetry.trace import Trace


@dataclass(frozen=True)
class Figures:
    """Of a window of a trace.

    Attributes:
        info: of the sensor: scope, source, lag and resolution stand beside every figure.
        start_s, end_s: the window, on the trace's clock.
        samples: with power, in the window.
        achieved_s: median pause between them.
        mean_w: mean power with its 95 % interval; None where there are too few samples.
        energy_j: over the window.
        p50_w, p95_w, max_w: of samples, by nearest rank: ``sorted[ceil(p * n) - 1]``.
        idle_w, net_w, net_j: mean of the idle part; what is above it. None without one.
        tiles: done in the window; None where none were counted.
        dropped: lines of the source that were none of its own whole ones, by kind.
        faults: why none of it is valid; empty where it is.
    """

    info: SensorInfo
    start_s: float
    end_s: float
    samples: int
    achieved_s: float | None
    mean_w: Estimate | None = None
    energy_j: float | None = None
    p50_w: float | None = None
    p95_w: float | None = None
    max_w: float | None = None
    idle_w: Estimate | None = None
    net_w: Estimate | None = None
    net_j: Estimate | None = None
    tiles: float | None = None
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Of the window."""
        return self.end_s - self.start_s

    @property
    def gross_j_per_tile(self) -> float | None:
        """Energy over tiles, idle included; None where one of them is not known."""
        if self.energy_j is None or not self.tiles:
            return None
        return self.energy_j / self.tiles

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        value = dataclasses.asdict(self)
        sensor = value.pop("info")
        value["faults"] = list(self.faults)
        return {
            "valid": not self.faults, "status": self.info.status, "sensor": sensor["name"],
            **{key: sensor[key] for key in ("scope", "source", "total", "resolution_w", "lag_s")},
            "duration_s": self.duration_s, **value, "gross_j_per_tile": self.gross_j_per_tile,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For a person."""
        word, total = self.info.word, " + ".join(self.info.total)
        known = [f"scope {self.info.scope}", f"source {self.info.source}", f"total {total}"]
        known += [] if self.info.lag_s is None else [f"lag {self.info.lag_s:g} s"]
        if self.info.resolution_w is not None:
            known.append(f"resolution {self.info.resolution_w:g} W")
        rows = [f"sensor    {self.info.name}: {', '.join(known)}"]
        pause = "" if self.achieved_s is None else f", {self.achieved_s:.4g} s apart"
        rows.append(
            f"window    {self.start_s:.3f} to {self.end_s:.3f} s = {self.duration_s:.3f} s, "
            f"{self.samples} samples{pause}"
        )
        if self.dropped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.dropped.items())
            rows.append(f"dropped   {kinds} lines")
        if self.mean_w is not None and self.energy_j is not None:
            rows.append(
                f"{_name('power', word)}{watts(self.mean_w)}; energy{word} {self.energy_j:.4g} J"
            )
            rows.append(
                f"{_name('samples', word)}p50 {self.p50_w:.4g} W, p95 {self.p95_w:.4g} W, "
                f"max {self.max_w:.4g} W"
            )
        if self.idle_w is not None and self.net_w is not None and self.net_j is not None:
            rows.append(
                f"{_name('net', word)}{watts(self.net_w)} above an idle of {watts(self.idle_w)}; "
                f"{self.net_j.value:.4g} J"
            )
        if self.tiles is not None:
            each = self.gross_j_per_tile
            said = "" if each is None else f", {each:.4g} J per tile gross{word}"
            rate = self.tiles / self.duration_s if self.duration_s > 0 else 0.0
            rows.append(f"tiles     {self.tiles:.6g}, {rate:.4g} tiles/s{said}")
        if self.faults:
            rows.append(f"NOT VALID {'; '.join(self.faults)}")
        return rows


def _name(text: str, word: str) -> str:
    return f"{text}{word}".ljust(9) + " "


def watts(estimate: Estimate) -> str:
    """``5.123 W (95 %: 5.1 to 5.15)``."""
    return f"{estimate.value:.4g} W (95 %: {estimate.low:.4g} to {estimate.high:.4g})"


def figures(
    trace: Trace,
    start_s: float | None = None,
    end_s: float | None = None,
    idle: tuple[float, float] | None = None,
) -> Figures:
    """Figures of a part of a trace.

    Args:
        trace: whose clock the times are on.
        start_s, end_s: the part; all that has power if absent.
        idle: the part in which nothing was done.

    Raises:
        InputError: a part that the trace does not hold; a trace without power.
    """
    at_s, power = trace.samples.power()
    if len(at_s) < 2:
        why = "; ".join(trace.faults()) or f"{len(at_s)} readings with power, it takes two"
        raise InputError(f"the trace holds no power that could be added up: {why}")
    first, last = _window(at_s, start_s, end_s)
    inside = (at_s >= first) & (at_s <= last)
    found = [*_trace_faults(trace, first, last), *faults(at_s, first, last)]
    resolution = trace.samples.info.resolution_w
    mean = mean_power_w(at_s, power, first, last, resolution)
    if start_s is None and end_s is None:  # the whole was asked for, and this is a part of it
        found += [f"{count} readings without power: {why}"
                  for why, count in trace.samples.without.items()]  # fmt: skip
    if mean.value < 0:
        found.append(f"the mean is {mean.value:.3g} W, and no whole draws less than nothing")
    values = power[inside] if inside.any() else np.interp([first, last], at_s, power)
    idle_w = net_w = net_j = None
    if idle is not None:
        quiet = _window(at_s, *idle)
        found += [
            f"idle: {fault}" for fault in (*_trace_faults(trace, *quiet), *faults(at_s, *quiet))
        ]
        idle_w = mean_power_w(at_s, power, *quiet, resolution)
        net_w = mean.minus(idle_w)
        net_j = net_w.scaled(last - first)
    pauses = np.diff(at_s[inside])
    ordered = np.sort(values)
    p50, p95 = (ordered[math.ceil(percent * len(ordered) / 100) - 1] for percent in (50, 95))
    return Figures(
        trace.samples.info, first, last, int(inside.sum()),
        float(np.median(pauses)) if len(pauses) else None,
        mean, energy_j(at_s, power, first, last), float(p50), float(p95), float(values.max()),
        idle_w, net_w, net_j, _tiles(trace, first, last), trace.dropped(),
        tuple(dict.fromkeys(found)),
    )  # fmt: skip


def _trace_faults(trace: Trace, start_s: float, end_s: float) -> list[str]:
    """What went wrong with the sensor within a window. One that was lost, or whose writer was
    killed, was so behind the last sample: a window that ends before that has all that it needs."""
    samples, stalls = trace.samples, trace.samples.stalls
    inside = [item for item in samples.readings if start_s <= item.at_s <= end_s]
    known = samples.readings[0].at_s, samples.readings[-1].at_s
    times = [at_s for at_s in samples.restarted_s if known[0] <= at_s <= known[1]]
    timeless = samples.restarts - len(times)
    cut = end_s >= float(samples.power()[0][-1])
    part = dataclasses.replace(
        samples,
        lost=samples.lost if cut else "",
        stalls=[(first, last) for first, last in stalls if first < end_s and last > start_s],
        restarts=timeless + sum(start_s < at_s <= end_s for at_s in times),
        without=dict(Counter(item.why for item in inside if item.watts is None)),
    )
    return dataclasses.replace(trace, samples=part, whole=trace.whole or not cut).faults()


def _window(at_s: Any, start_s: float | None, end_s: float | None) -> tuple[float, float]:
    """A window within the samples. One that goes past them by less than a pause ends at them: the
    trace begins a little before its first reading."""
    first, last = float(at_s[0]), float(at_s[-1])
    slack = float(np.median(np.diff(at_s)))
    start = first if start_s is None else start_s
    end = last if end_s is None else end_s
    if first - slack <= start < first:
        start = first
    if last < end <= last + slack:
        end = last
    if not first <= start < end <= last:
        raise InputError(
            f"the window {start:g} to {end:g} s is not within the samples, which are from "
            f"{first:.6g} to {last:.6g} s; choose another with --from and --to"
        )
    return start, end


def _tiles(trace: Trace, start_s: float, end_s: float) -> float | None:
    if trace.tiles is None:
        return None
    at_s = [item.at_s for item in trace.samples.readings]
    done = np.interp([start_s, end_s], at_s, trace.tiles)
    return float(done[1] - done[0])
