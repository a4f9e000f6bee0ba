"""How a measurement goes: how long, how often, in which order, and when its warm-up is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgekd.errors import InputError
from edgekd.report.blocks import Flat
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import PowerSensor, Reading

#: power is flat where the means of two neighbouring stretches differ by less than this share
FLAT_POWER = 0.02
#: and the hottest zone by less than this, K
FLAT_TEMPERATURE_K = 0.5
#: length of such a stretch, s, at most; a third of the window where that is shorter
FLAT_S = 10.0
#: kept for an external meter, whose lag nobody knows yet, s
METER_GUARD_S = 5.0


#: of any part of a measurement, s, and of turns
LONGEST_S, MOST_REPEATS = 86_400.0, 1000


@dataclass(frozen=True)
class External:
    """A meter that records by itself; its file is added to the record later."""

    guard_s: float = METER_GUARD_S


@dataclass(frozen=True)
class Plan:
    """How to measure.

    Attributes:
        duration_s: least time of the bare engine's blocks together, s; they also hold at least 30
            calls. With power the runs over the input last as long, too.
        warmup_s: least warm-up, s; it goes on until latency (and power, and temperature) is steady,
            at most five times as long (or 24 calls where that takes longer).
        repeats: turns of engine and runs over the input.
        overlap_px: of the runs; the bundle's own if absent.
        idle_s: of each idle window, before and behind, s; only with power.
        interval_s: between samples of power, s.
        power: what was asked for, in words.
        pulse: ``(busy, quiet)`` s of a load pulse behind the first idle window, by which an
            external meter's clock is found.
    """

    duration_s: float = 10.0
    warmup_s: float = 2.0
    repeats: int = 3
    overlap_px: int | None = None
    idle_s: float = 30.0
    interval_s: float = 0.1
    power: str = "none"
    pulse: Sequence[tuple[float, float]] = ()

    def require(self, bundles: int = 1) -> None:
        """Refuse what measures nothing, and turns that favour a bundle.

        Raises:
            InputError: a duration or number that measures nothing, or an odd number of turns of
                several bundles.
        """
        if bundles > 1 and self.repeats % 2:
            raise InputError(
                f"bundles in turns (ABBA) need an even number of repeats, received {self.repeats}: "
                "otherwise what drifts falls on one of them"
            )
        times = (self.duration_s, self.warmup_s, self.idle_s)
        if not all(value <= LONGEST_S for value in times) or self.repeats > MOST_REPEATS:
            raise InputError(
                f"expected times up to {LONGEST_S:g} s and at most {MOST_REPEATS} repeats, "
                f"received {self.duration_s:g} s, a warm-up of {self.warmup_s:g} s, idling of "
                f"{self.idle_s:g} s and {self.repeats} repeats"
            )
        if self.duration_s <= 0 or self.warmup_s < 0 or self.repeats < 1 or self.idle_s <= 0:
            raise InputError(
                f"expected a duration and idling above 0 s, a warm-up of at least 0 s and at least "
                f"1 repeat, received {self.duration_s:g} s, {self.idle_s:g} s, {self.warmup_s:g} s "
                f"and {self.repeats}"
            )
        if not 0.001 <= self.interval_s <= 10:
            raise InputError(
                f"expected an interval of 0.001 to 10 s between samples, received "
                f"{self.interval_s:g} s"
            )

    @property
    def flat_s(self) -> float:
        """What is looked back at to see whether power is flat, s."""
        return min(FLAT_S, self.duration_s / 3)

    def least_s(self, guard: float, bundles: int = 1) -> float:
        """Shortest time of a measurement with power, s."""
        work = self.duration_s + self.repeats * guard
        warm = max(self.warmup_s, 2 * self.flat_s)
        return 2 * (self.idle_s + guard) + sum(map(sum, self.pulse)) + bundles * (warm + 2 * work)


DEFAULT_PLAN = Plan()


def turn_order(count: int, number: int) -> list[int]:
    """Places of ``count`` bundles in turn ``number``: every second turn goes backwards (ABBA), so
    that over an even number of turns what drifts falls on all alike."""
    places = list(range(count))
    return places if number % 2 == 0 else places[::-1]


def require_length(sensor: PowerSensor, least_s: float) -> None:
    """Refuse a replay that ends before the measurement does."""
    duration_s = getattr(sensor, "duration_s", None)
    if duration_s is not None and duration_s < least_s:
        raise InputError(
            f"{sensor.info.source} holds {duration_s:.1f} s and this measurement takes at least "
            f"{least_s:.1f} s; measure for less with --seconds, --idle and --warmup, or replay a "
            "longer trace"
        )


def flatness(samples: Samples, since_s: float, stretch_s: float) -> Flat:
    """Whether power and temperature became flat: over two stretches that end now.

    Args:
        samples: as they come.
        since_s: begin of the warm-up, monotonic clock, s.
        stretch_s: length of each, s.
    """

    def flat(elapsed_s: float) -> tuple[bool, str]:
        now = since_s + elapsed_s
        recent = [item for item in list(samples.readings) if item.at_s >= now - 2 * stretch_s]
        late = [item for item in recent if item.at_s >= now - stretch_s]
        early = recent[: len(recent) - len(late)]
        watts = [[item.watts for item in part if item.watts is not None] for part in (early, late)]
        if min(len(part) for part in watts) < 2:
            return False, "power was not sampled"
        means = [sum(part) / len(part) for part in watts]
        bound = max(FLAT_POWER * abs(means[0]), 2 * (samples.info.resolution_w or 0))
        rise = _rise(early, late)
        text = (
            f"power went from {means[0]:.3g} to {means[1]:.3g} W within {2 * stretch_s:.3g} s "
            f"(allowed {bound:.2g} W)"
        )
        if rise is not None:
            text += f", the hottest zone by {rise:+.2f} K (allowed {FLAT_TEMPERATURE_K:g} K)"
        steady = abs(means[1] - means[0]) <= bound
        return steady and (rise is None or abs(rise) <= FLAT_TEMPERATURE_K), text

    return flat


def _rise(early: Sequence[Reading], late: Sequence[Reading]) -> float | None:
    """Change of the zone that changes most, K; None where no temperature was read."""
    changes = []
    for zone in late[-1].temperatures_c:
        parts = [
            [item.temperatures_c[zone] for item in part if zone in item.temperatures_c]
            for part in (early, late)
        ]
        if all(parts):
            first, second = (sum(part) / len(part) for part in parts)
            changes.append(second - first)
    return max(changes, key=abs, default=None)
