"""Records with power of known size: a load through a sensor's lag."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekd.report.power import Phase, PowerRecord, Synchronised, make_power
from edgekd.report.record import BenchmarkRecord, SceneRun
from edgekd.telemetry.align import PULSE
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from tests.helpers.records import make_engine, make_evidence, make_record, make_scene

ORIN = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.45)
#: where the record's clock begins on the monotonic one
ORIGIN_S = 1000.0
GUARD_S, BLOCK_S, IDLE_S, WARM_S = 2.25, 10.0, 20.0, 15.0
#: a turn: engine behind its guard, scene behind its own
TURN_S = 2 * (GUARD_S + BLOCK_S)
REPEATS = 3


def make_phases(
    tiles_per_s: float = 20.0, km2: bool = True, spread: float = 0.0, seed: int = 0
) -> list[Phase]:
    """Idle, warm-up, three turns of engine and scene, idle; the first call is at 0 s.

    Args:
        spread: standard deviation of tiles per second from turn to turn, as a share.
    """
    rates = tiles_per_s * (1 + spread * np.random.default_rng(seed).standard_normal(REPEATS))
    phases = [
        Phase(kind="guard", start_s=-WARM_S - IDLE_S - GUARD_S, end_s=-WARM_S - IDLE_S),
        Phase(kind="idle", start_s=-WARM_S - IDLE_S, end_s=-WARM_S),
        Phase(kind="warm_up", start_s=-WARM_S, end_s=0),
    ]
    for turn in range(REPEATS):
        at = turn * TURN_S
        phases += [
            Phase(kind="guard", start_s=at, end_s=at + GUARD_S),
            Phase(kind="engine", start_s=at + GUARD_S, end_s=at + GUARD_S + BLOCK_S,
                  tiles=int(BLOCK_S * rates[turn]), pixels=int(BLOCK_S * rates[turn]) * 10**6),
        ]  # fmt: skip
        at += GUARD_S + BLOCK_S
        phases += [
            Phase(kind="guard", start_s=at, end_s=at + GUARD_S),
            Phase(kind="scene", start_s=at + GUARD_S, end_s=at + GUARD_S + BLOCK_S, tiles=100,
                  pixels=20_000_000, area_m2=80e6 if km2 else None),
        ]  # fmt: skip
    end = REPEATS * TURN_S
    return [
        *phases,
        Phase(kind="guard", start_s=end, end_s=end + GUARD_S),
        Phase(kind="idle", start_s=end + GUARD_S, end_s=end + GUARD_S + IDLE_S),
    ]


def pulse(start_s: float) -> list[tuple[float, float]]:
    """Busy intervals of a :data:`PULSE` that begins at a moment."""
    found = []
    for busy_s, quiet_s in PULSE:
        found.append((start_s, start_s + busy_s))
        start_s += busy_s + quiet_s
    return found


def make_samples(
    idle_w: float = 6.0,
    engine_w: float = 16.0,
    scene_w: float = 13.0,
    info: SensorInfo = ORIN,
    lag_s: float = 0.45,
    seed: int = 0,
    spacing_s: float = 0.109,
    noise_w: float = 0.25,
    rise_k: float = 0.3,
) -> Samples:
    """What a sensor shows of :func:`make_phases`, ORIGIN_S later."""
    rng = np.random.default_rng(seed)
    begin, end = -WARM_S - IDLE_S - GUARD_S - 0.5, REPEATS * TURN_S + GUARD_S + IDLE_S + 0.5
    at = np.arange(begin, end, spacing_s)
    within = np.mod(at, TURN_S) < TURN_S / 2
    working = (at >= -WARM_S) & (at < REPEATS * TURN_S)
    load = np.where(working, np.where((at < 0) | within, engine_w, scene_w), idle_w)
    samples = Samples(info, 0.1)
    shown, warm = load[0], 45.0
    for time_s, watts in zip(at, load, strict=True):
        shown += (watts - shown) * (1 - np.exp(-spacing_s / lag_s)) if lag_s else watts - shown
        warm += (45 + rise_k * (watts - idle_w) - warm) * spacing_s / 8
        value = shown + noise_w * rng.standard_normal()
        step = info.resolution_w
        samples.readings.append(
            Reading(
                ORIGIN_S + float(time_s),
                float(value if step is None else round(value / step) * step),
                temperatures_c={"tj": float(round(warm * 8) / 8), "PMIC": 100.0},
            )
        )
    return samples


def make_power_record(
    samples: Samples | None = None, phases: list[Phase] | None = None,
    synchronised: Synchronised | None = None,
) -> PowerRecord:  # fmt: skip
    """Power as ``measure`` would record it."""
    made = make_power(samples or make_samples(), phases or make_phases(), ORIGIN_S, synchronised)
    assert isinstance(made, PowerRecord), made
    return made


def make_powered(
    latency_s: float = 0.05,
    seed: int = 0,
    power: PowerRecord | PowerUnavailable | None = None,
    name: str = "tiny",
    quality: dict[str, Any] | None = None,
    **changes: Any,
) -> BenchmarkRecord:
    """A record on the time line of :func:`make_phases`, with power.

    Args:
        power: that of :func:`make_power_record` if absent.
        changes: of the evidence.
    """
    rng = np.random.default_rng(seed)
    count = int((GUARD_S + BLOCK_S) / latency_s / 1.02)
    starts, latencies = [], []
    for turn in range(REPEATS):
        at = turn * TURN_S
        for value in latency_s * (1 + 0.01 * rng.random(count)):
            starts.append(at)
            latencies.append(float(value))
            at += value
    runs = [
        SceneRun(start_s=turn * TURN_S + TURN_S / 2 + 2.45 * number, total_s=2.4, infer_s=1.9)
        for turn in range(REPEATS)
        for number in range(5)
    ]
    parts: dict[str, Any] = {
        "engine": make_engine(latencies, starts, [count] * REPEATS),
        "scene": make_scene([2.4] * len(runs)).model_copy(update={"runs": runs}),
    }
    evidence = make_evidence(**(parts | changes))
    power = power or make_power_record(phases=make_phases(1 / latency_s / 1.005))
    return make_record(evidence, name=name, quality=quality, power=power)
