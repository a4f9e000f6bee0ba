"""Are two records different, or is it chance? Each difference has its interval and a verdict.

Sources of the intervals, all 95 %:

- energy and power: as the record holds them (:mod:`edgekd.telemetry.energy`);
- throughput and median latency: Student's t over the blocks of the bare engine, whose runs over the
  scene in between make them repeats (:func:`over_blocks`); calls within a block follow each other
  too closely to be independent;
- a difference: the two half-widths added in squares (:meth:`Estimate.minus`). With few blocks this
  is wider than Welch's interval, so that fewer than 5 % of equal pairs are called different.

What is not compared: anything with a record that is not valid; power of different scope, or of
different status (measured, estimate, replay); figures per tile of tiles of different size, in whose
place those per Mpx stand. The intervals hold what varied while measuring, neither the sensor's own
accuracy nor what changed between two measurements that were not made in turns.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgekd.report.power import Figure, PowerRecord, part_of
from edgekd.report.record import BenchmarkRecord
from edgekd.report.words import device_name, power_mark, rules_words
from edgekd.telemetry.energy import Estimate, half_of_repeats

Verdict = Literal["real", "not distinguishable", "not compared"]

#: fewest blocks of calls that tell how far repeats are apart
LEAST_BLOCKS = 2


@dataclass(frozen=True)
class Quantity:
    """Something that two records can differ in.

    Attributes:
        name, unit: as shown.
        power: needs power of one scope and one status.
        per_tile: of tiles of one size; its sibling per Mpx is for others.
        of: its figure, or why there is none.
    """

    name: str
    unit: str
    power: bool
    per_tile: bool | None
    of: Callable[[BenchmarkRecord], Estimate | str]


@dataclass(frozen=True)
class Difference:
    """One quantity of a record less that of the first.

    Attributes:
        name, unit: of the quantity, with `` (replay)`` or `` (estimate)`` where that is so.
        first, other: the two figures; None where one has none.
        change: other - first; None where they are not compared.
        verdict: "real" where the interval leaves out 0.
        why: of a verdict of "not compared".
    """

    name: str
    unit: str
    first: Estimate | None
    other: Estimate | None
    change: Estimate | None
    verdict: Verdict
    why: str = ""

    @property
    def relative(self) -> Estimate | None:
        """The change as a share of the first's value, which is taken as exact."""
        if self.change is None or self.first is None or not self.first.value:
            return None
        return self.change.scaled(1 / abs(self.first.value))


def over_blocks(values: Sequence[float], shares: Sequence[float], value: float) -> Estimate | str:
    """A figure with Student's t over blocks, weighted by their shares; or why not.

    Args:
        values: of each block.
        shares: how much of the whole each block is.
        value: the figure of all blocks together.
    """
    count = len(values)
    if count < LEAST_BLOCKS:
        return "one block of calls tells no interval; measure with --repeats 3 or more"
    half = half_of_repeats(np.array(values), np.array(shares, np.float64))
    return Estimate(value, value - half, value + half, count)


def block_edges(record: BenchmarkRecord) -> list[tuple[int, int]]:
    """First call and the one behind the last of each block of the bare engine."""
    edges = [0, *itertools.accumulate(record.engine.block_n)]
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _blocks(record: BenchmarkRecord) -> list[list[float]]:
    return [record.engine.latencies_s[a:b] for a, b in block_edges(record)]


def tiles_per_s(record: BenchmarkRecord) -> Estimate | str:
    """Of the bare engine, one call at a time."""
    blocks = _blocks(record)
    rates = [len(block) / sum(block) for block in blocks]
    return over_blocks(rates, [sum(block) for block in blocks], record.engine.tiles_per_s)


def latency_p50_ms(record: BenchmarkRecord) -> Estimate | str:
    """Median of the bare engine, ms."""
    blocks = _blocks(record)
    medians = [float(np.median(block)) * 1e3 for block in blocks]
    return over_blocks(medians, [len(b) for b in blocks], record.engine.summary.p50_s * 1e3)


def _mpx_per_s(record: BenchmarkRecord) -> Estimate | str:
    found = tiles_per_s(record)
    return found if isinstance(found, str) else found.scaled(record.bundle.tile_px**2 / 1e6)


def _of_power(name: str) -> Callable[[BenchmarkRecord], Estimate | str]:
    def get(record: BenchmarkRecord) -> Estimate | str:
        power = record.power
        if not isinstance(power, PowerRecord):
            return f"no power: {power.reason}"
        if power.engine is None:
            return f"no power of the bare engine: {power.without['engine']}"
        if power.engine.windows < LEAST_BLOCKS:
            return "one window tells nothing of repeats; measure with --repeats 3 or more"
        found: Figure | None = getattr(power.engine, name)
        if found is None:
            return "no such figure"
        return Estimate(found.value, found.low, found.high, power.engine.windows)

    return get


QUANTITIES = (
    Quantity("energy per tile", "J", True, True, _of_power("gross_j_per_tile")),
    Quantity("energy per Mpx", "J", True, False, _of_power("gross_j_per_mpx")),
    Quantity("power", "W", True, None, _of_power("mean_w")),
    Quantity("throughput", "tiles/s", False, True, tiles_per_s),
    Quantity("throughput", "Mpx/s", False, False, _mpx_per_s),
    Quantity("latency p50", "ms", False, True, latency_p50_ms),
)


def compare(first: BenchmarkRecord, other: BenchmarkRecord) -> list[Difference]:
    """Differences of the bare engine, a quantity each."""
    same_tile = first.bundle.tile_px == other.bundle.tile_px
    if "answer" in (first.unit, other.unit):
        same_tile = True  # an answer is one whatever the size of its picture
    wanted = [item for item in QUANTITIES if item.per_tile in (None, same_tile)]
    return [_difference(item, first, other) for item in wanted]


def _difference(item: Quantity, first: BenchmarkRecord, other: BenchmarkRecord) -> Difference:
    a, b = item.of(first), item.of(other)
    marks = {power_mark(first.power), power_mark(other.power)} if item.power else {""}
    word = first.unit if first.unit == other.unit else "tile or answer"
    unit = item.unit.replace("tiles", f"{word}s")
    name = item.name.replace("tile", word) + "".join(sorted(marks))
    why = _not_comparable(item, first, other)
    if not why:
        named = (("the first", a), ("this one", b))
        why = "; ".join(f"{which}: {text}" for which, text in named if isinstance(text, str))
    if why or isinstance(a, str) or isinstance(b, str):
        one, two = (None if isinstance(x, str) else x for x in (a, b))
        return Difference(name, unit, one, two, None, "not compared", why)
    change = b.minus(a)
    real = change.low > 0 or change.high < 0
    return Difference(name, unit, a, b, change, "real" if real else "not distinguishable")


def _not_comparable(item: Quantity, first: BenchmarkRecord, other: BenchmarkRecord) -> str:
    """Why two records must not be compared in a quantity; empty where they may."""
    for which, record in (("the first record", first), ("this record", other)):
        if not record.valid:
            return f"{which} is NOT VALID"
    if first.unit != other.unit:
        return f"the first is of {first.unit}s, this one of {other.unit}s"
    a, b = first.power, other.power
    if not item.power or not isinstance(a, PowerRecord) or not isinstance(b, PowerRecord):
        return ""
    if a.sensor.scope != b.sensor.scope:
        return f"power of the {a.sensor.scope} and of the {b.sensor.scope} are different things"
    if part_of(a) != part_of(b):
        return f"power of {part_of(a)} and of {part_of(b)} are different things"
    if a.status != b.status:
        words = {"measured": "measured", "estimate": "an estimate", "replay": "a replay"}
        return f"the first is {words[a.status]}, this one {words[b.status]}"
    if a.status == "replay":
        return "a replay says nothing about this work"
    return ""


def caution(first: BenchmarkRecord, other: BenchmarkRecord) -> str:
    """What an interval does not hold of two records; empty where they were measured in turns."""
    found = []
    a_turns, b_turns = first.turns, other.turns
    if not a_turns or not b_turns or a_turns.measurement != b_turns.measurement:
        found.append("not measured in turns, so what changed in between is part of the difference")
    if first.answers is not None and other.answers is not None:
        if rules_words(first.answers) != rules_words(other.answers):
            found.append("not under the same rules, and rules cost time")
        if first.input != other.input:
            found.append("not asked about the same places")
    a, b = first.power, other.power
    sensors = [(device_name(first), a.sensor.name)] if isinstance(a, PowerRecord) else []
    if isinstance(b, PowerRecord) and sensors not in ([], [(device_name(other), b.sensor.name)]):
        found.append("another sensor, whose accuracy is not part of the interval")
    return "; ".join(found)


def group_of(record: BenchmarkRecord) -> tuple[str, str, str] | None:
    """Scope, status and part: only records of one group may stand in one plot of power."""
    power = record.power
    if not isinstance(power, PowerRecord) or power.engine is None:
        return None
    return power.sensor.scope, power.status, part_of(power)


def power_mode(record: BenchmarkRecord) -> str | None:
    """Name of the power mode, where the board has such and the record knows it."""
    return record.environment.power_mode


def labels(records: Sequence[BenchmarkRecord]) -> list[str]:
    """A short name per record: what differs among them, the device only where nothing else does;
    each name once."""
    parts = (_name, _precision, lambda record: power_mode(record) or "")
    differing = [part for part in parts if len({part(record) for record in records}) > 1]

    def named(chosen: Sequence[Callable[[BenchmarkRecord], str]]) -> list[str]:
        return [" · ".join(filter(None, (part(record) for part in chosen))) for record in records]

    names = named(differing or [_name])
    devices = {device_name(record) for record in records}
    if len(set(names)) < len(names) and len(devices) > 1:
        names = named([*differing, _short_device])
    return [
        name if names.count(name) == 1 else f"{name} #{names[: index + 1].count(name)}"
        for index, name in enumerate(names)
    ]


def _name(record: BenchmarkRecord) -> str:
    return record.bundle.name


def _precision(record: BenchmarkRecord) -> str:
    return record.bundle.precision


def _short_device(record: BenchmarkRecord) -> str:
    return textwrap.shorten(device_name(record), 28, placeholder=" …")


def plain_difference(difference: Difference) -> dict[str, Any]:
    """JSON-ready."""

    def numbers(value: Estimate | None) -> dict[str, float] | None:
        if value is None:
            return None
        return {"value": value.value, "low": value.low, "high": value.high}

    return {
        "quantity": difference.name,
        "unit": difference.unit,
        "first": numbers(difference.first),
        "other": numbers(difference.other),
        "change": numbers(difference.change),
        "change_share": numbers(difference.relative),
        "verdict": difference.verdict,
        "why": difference.why,
    }
