"""Named validity checks: is this measurement fit to be shown and compared?

Each check is a function from the evidence to pass, fail or unknown with a sentence; adding one
means adding a function to :data:`CHECKS`. A failed check makes the record invalid. ``unknown``
is a check that the machine does not allow to make; it never counts as passed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgekd.report.latency import percentile
from edgekd.report.power import PowerRecord, WorkPower, window_faults
from edgekd.report.record import (
    Asked,
    BenchmarkRecord,
    Check,
    Clock,
    Disturbance,
    EngineWindow,
    Golden,
    Machine,
    Power,
    SceneWindow,
    WarmUp,
)
from edgekd.telemetry.energy import GUARD_LAGS, energy_j
from edgekd.telemetry.power import PowerUnavailable

#: fewest calls of the engine window: with 30, the median is known to about a tenth of the spread.
MIN_TILES = 30
#: fewest runs over the scene: with fewer, a disturbed one cannot be told from the others.
MIN_SCENE_RUNS = 3
#: share of the cores that others may use; on 2 cores 0.20 is 40 % of one.
OTHERS_BOUND = 0.20
#: spread of the mean clock between blocks; governors step by 100 MHz of about 2 GHz.
FREQUENCY_BOUND = 0.10
#: change of the median latency from the first to the last third of the window.
DRIFT_BOUND = 0.10
#: power's change from the first to the last window of a kind of work, and idle's from before to
#: behind; never less than two steps of the sensor
POWER_DRIFT_BOUND, IDLE_DRIFT_BOUND = 0.05, 0.10
#: of a meter's clock over a measurement, s; the guard takes up far more
METER_DRIFT_S = 0.5
#: (slowest - fastest) / median of the runs over the scene; of so many that one of them may be
#: disturbed, without the tenth at either end
MANY_RUNS = 10
REPEATS_BOUND = 0.25


@dataclass(frozen=True)
class Evidence:
    """What the checks look at.

    Attributes:
        machine: what may have held it back; None where nobody looked.
        target, target_arch: what the bundle was built for.
        arch: of this machine.
        unit: what a call gives, in a word.
    """

    asked: Asked
    warm_up: WarmUp
    engine: EngineWindow
    scene: SceneWindow
    disturbance: Disturbance
    machine: Machine | None
    clock: Clock
    golden: Golden
    target: str
    target_arch: str
    arch: str
    unit: str = "tile"


def _verdict(name: str, passed: bool, detail: str) -> Check:
    return Check(name=name, status="pass" if passed else "fail", detail=detail)


def enough_samples(e: Evidence) -> Check:
    """Enough calls, for long enough, and enough runs over the scene."""
    n, runs = e.engine.summary.n, len(e.scene.runs)
    passed = n >= MIN_TILES and e.engine.duration_s >= e.asked.duration_s and runs >= MIN_SCENE_RUNS
    return _verdict(
        "enough_samples",
        passed,
        f"{n} {e.unit}s in {e.engine.duration_s:.1f} s and {runs} runs over the input; needed are "
        f"{MIN_TILES} {e.unit}s, {e.asked.duration_s:g} s and {MIN_SCENE_RUNS} runs",
    )


def warm_up_steady(e: Evidence) -> Check:
    """Latency had become steady before the first counted call."""
    return _verdict("warm_up_steady", e.warm_up.steady, e.warm_up.detail)


def latency_steady(e: Evidence) -> Check:
    """Latency stayed steady: no heating up, no throttling, no growing queue."""
    values = e.engine.latencies_s
    third = max(len(values) // 3, 1)
    first, last = statistics.median(values[:third]), statistics.median(values[-third:])
    change = last / first - 1
    return _verdict(
        "latency_steady",
        abs(change) <= DRIFT_BOUND,
        f"median latency changed by {100 * change:+.1f} % from the first to the last third; "
        f"allowed are {100 * DRIFT_BOUND:.0f} %",
    )


def repeats_agree(e: Evidence) -> Check:
    """The runs over the scene took about the same time."""
    times = sorted(run.total_s for run in e.scene.runs)
    few = len(times) < MANY_RUNS
    low, high = (times[0], times[-1]) if few else (percentile(times, 10), percentile(times, 90))
    spread = (high - low) / statistics.median(times)
    which = "" if few else " (the tenth at either end left out)"
    return _verdict(
        "repeats_agree",
        spread <= REPEATS_BOUND,
        f"{len(times)} runs{which} differ by {100 * spread:.1f} % of their median; allowed are "
        f"{100 * REPEATS_BOUND:.0f} %",
    )


def not_disturbed(e: Evidence) -> Check:
    """Other processes left the cores alone."""
    share = e.disturbance.other_cpu_share
    if share is None:
        reason = e.disturbance.absent["other_cpu_share"]
        return Check(name="not_disturbed", status="unknown", detail=reason)
    return _verdict(
        "not_disturbed",
        share <= OTHERS_BOUND,
        f"other processes used {100 * share:.1f} % of all cores; allowed are "
        f"{100 * OTHERS_BOUND:.0f} %",
    )


def frequency_stable(e: Evidence) -> Check:
    """The CPU's clock was the same after every block, the GPU's in every block of the engine."""
    told, passed = [], True
    for name, values in (("CPU", e.disturbance.frequency_mhz), ("GPU", e.disturbance.gpu_mhz)):
        if not values:
            continue
        spread = (max(values) - min(values)) / max(values)
        passed = passed and spread <= FREQUENCY_BOUND
        told.append(f"{name} {min(values):.0f} to {max(values):.0f} MHz ({100 * spread:.1f} %)")
    if not told:
        reason = e.disturbance.absent["frequency_mhz"]
        return Check(name="frequency_stable", status="unknown", detail=reason)
    bound = f"allowed are {100 * FREQUENCY_BOUND:.0f} %"
    return _verdict("frequency_stable", passed, f"mean clocks: {', '.join(told)}; {bound}")


def clock_sound(e: Evidence) -> Check:
    """Time went forward, calls do not overlap, and the clock is fine enough."""
    faults = []
    if not e.clock.monotonic:
        faults.append("the clock is not monotonic")
    pairs = zip(e.engine.starts_s, e.engine.latencies_s, strict=True)
    end_s = 0.0
    for number, (start_s, latency_s) in enumerate(pairs):
        if start_s < end_s - 1e-6:  # stored with 0.1 µs; 1 µs leaves room for rounding
            faults.append(f"call {number} starts before the one before it ended")
            break
        end_s = start_s + latency_s
    if e.clock.tick_s > 0.01 * e.engine.summary.p50_s:
        faults.append(f"its resolution of {e.clock.tick_s:.2g} s exceeds 1 % of the median latency")
    detail = "; ".join(faults) or f"calls in order, resolution {e.clock.tick_s:.1g} s"
    return _verdict("clock_sound", not faults, detail)


def device_fits(e: Evidence) -> Check:
    """The bundle was measured on the architecture that it was built for."""
    return _verdict(
        "device_fits",
        e.target_arch == e.arch,
        f"built for {e.target} ({e.target_arch}), measured on {e.arch}",
    )


def outputs_right(e: Evidence) -> Check:
    """The engine reproduces the outputs that the bundle stores: a fast wrong one is no result."""
    error, bound = e.golden.error_logits, e.golden.bound_logits
    shown = "no number" if error is None else f"{error:.3g} logits"
    return _verdict(
        "outputs_right",
        error is not None and error <= bound,
        f"golden outputs differ by {shown} at most; allowed are {bound:.3g}",
    )


def not_throttled(e: Evidence) -> Check:
    """Neither heat, current nor voltage held the machine back."""
    return _held(e, "not_throttled", "throttled", "nothing was throttled")


def mode_unchanged(e: Evidence) -> Check:
    """The power mode was the same at the end."""
    return _held(e, "mode_unchanged", "mode_changed", "the power mode stayed")


def clocks_unchanged(e: Evidence) -> Check:
    """Nobody changed the limits of the clocks or their governor."""
    return _held(e, "clocks_unchanged", "clocks_changed", "limits of clocks and governor stayed")


def _held(e: Evidence, name: str, key: str, well: str) -> Check:
    if e.machine is None or key not in e.machine.found:
        why = "this machine does not tell"
        if e.machine is not None and e.machine.failure:
            why = f"looking at the machine failed: {e.machine.failure}"
        return Check(name=name, status="unknown", detail=why)
    found = e.machine.found[key]
    return _verdict(name, not found, "; ".join(found) or well)


def power_sampled(power: PowerRecord) -> Check | None:
    """The sensor was there the whole time: not lost, not stalled, not begun again."""
    wrong = [
        f"{name} power is {value.mean_w.value:.3g} W, and no whole draws less than nothing"
        for name, value in (("idle", power.idle), ("engine", power.engine), ("scene", power.scene))
        if value is not None and value.mean_w.value < 0
    ]
    wrong = [*power.faults, *wrong]
    pause = f"{power.interval_s:.3g} s apart (asked {power.interval_asked_s:g} s)"
    detail = "; ".join(wrong) or f"{len(power.trace.at_s)} samples, {pause}"
    return _verdict("power_sampled", not wrong, detail)


def power_windows(power: PowerRecord) -> Check | None:
    """Windows are long enough, and samples cover them without gaps."""
    at = np.array(power.trace.at_s)
    found = [f"{name}: {why}" for name, why in power.without.items()]
    for kind in ("idle", "engine", "scene"):
        mine = [phase for phase in power.phases if phase.kind == kind]
        if kind not in power.without:
            found += [f"{kind} {fault}" for fault in window_faults(at, mine)]
    if power.idle is None or None in (power.idle.before_w, power.idle.after_w):
        found.append("idle power was not had on both sides")
    lag_s = power.sensor.lag_s
    if lag_s is not None and power.guard_s < 0.99 * GUARD_LAGS * lag_s:
        found.append(
            f"the guard of {power.guard_s:.3g} s is shorter than five times the lag of {lag_s:g} s"
        )
    lag = "the sensor's lag" if power.lag_known else "a lag that was not measured,"
    well = f"windows begin {power.guard_s:.3g} s behind a change, five times {lag}"
    if not power.lag_known:
        well = f"{well} taken as {power.guard_s / 5:.2g} s"
    return _verdict("power_windows", not found, "; ".join(found) or well)


def power_steady(power: PowerRecord) -> Check | None:
    """Power of the same work did not drift from the first window to the last."""
    told, passed = [], True
    for kind, work in (("engine", power.engine), ("scene", power.scene)):
        if work is None:
            continue
        first, last = _ends(power, kind, work)
        bound = _bound(power, POWER_DRIFT_BOUND * abs(first))
        passed = passed and abs(last - first) <= bound
        told.append(f"{kind} {first:.4g} to {last:.4g} W (allowed {bound:.2g} W)")
    if not told:
        return Check(name="power_steady", status="fail", detail="no window has power")
    return _verdict("power_steady", passed, "; ".join(told))


def _ends(power: PowerRecord, kind: str, work: WorkPower) -> tuple[float, float]:
    """Mean power of the first and the last window, of one alone of its halves, W."""
    at, watts = np.array(power.trace.at_s), np.array(power.trace.watts)
    windows = [(item.start_s, item.end_s) for item in power.phases if item.kind == kind]
    if work.windows == 1:
        (start, end), middle = windows[0], sum(windows[0]) / 2
        windows = [(start, middle), (middle, end)]
    means = [energy_j(at, watts, start, end) / (end - start) for start, end in windows]
    return means[0], means[-1]


def idle_steady(power: PowerRecord) -> Check | None:
    """The machine idled behind as it did before: what is subtracted is known."""
    if power.idle is None:
        return None
    before, after = power.idle.before_w, power.idle.after_w
    if before is None or after is None:
        return None  # power_windows says so
    bound = _bound(power, IDLE_DRIFT_BOUND * abs(before.value))
    return _verdict(
        "idle_steady",
        abs(after.value - before.value) <= bound,
        f"{before.value:.4g} W before and {after.value:.4g} W behind (allowed {bound:.2g} W)",
    )


def synchronised(power: PowerRecord) -> Check | None:
    """The sensor sees the work: more power than idle, and a meter's clock that was found."""
    if power.idle is None or power.engine is None:
        return None
    idle, work = power.idle.mean_w, power.engine.mean_w
    rise = work.value - idle.value
    passed = rise > 0 and work.low > idle.high
    detail = f"{rise:+.3g} W while the engine ran"
    if not passed:
        detail += ", no more than idle: it reads something else, or its clock is off"
    if power.synchronised is not None:
        found = power.synchronised
        detail += (
            f"; the first call lies {found.offset_s:.2f} s behind the meter's first sample, "
            f"correlation {found.score:.2f}"
        )
        if found.drift_s is not None:
            detail += f", drifting by {found.drift_s:+.2f} s (allowed {METER_DRIFT_S:g} s)"
            passed = passed and abs(found.drift_s) <= METER_DRIFT_S
    return _verdict("synchronised", passed, detail)


def _bound(power: PowerRecord, share_w: float) -> float:
    return max(share_w, 2 * (power.sensor.resolution_w or 0.0))


CHECKS: tuple[Callable[[Evidence], Check], ...] = (
    outputs_right,
    device_fits,
    enough_samples,
    warm_up_steady,
    latency_steady,
    repeats_agree,
    not_disturbed,
    frequency_stable,
    clock_sound,
    not_throttled,
    mode_unchanged,
    clocks_unchanged,
)
#: of power, where there is any
POWER_CHECKS: tuple[Callable[[PowerRecord], Check | None], ...] = (
    power_sampled,
    power_windows,
    power_steady,
    idle_steady,
    synchronised,
)


def run_checks(evidence: Evidence) -> list[Check]:
    """Every check of the measurement itself, in the order of :data:`CHECKS`."""
    return [check(evidence) for check in CHECKS]


def check_power(power: Power, asked: Asked) -> list[Check]:
    """Every check of power that applies, in the order of :data:`POWER_CHECKS`. A sensor that was
    there and gave nothing is a fault; none that was found, or asked for, is not."""
    if isinstance(power, PowerRecord):
        found = (check(power) for check in POWER_CHECKS)
        return [item for item in found if item is not None]
    if isinstance(power, PowerUnavailable) and asked.interval_s > 0:
        return [_verdict("power_sampled", False, power.reason)]
    return []


def judge(record: BenchmarkRecord) -> list[Check]:
    """Every check of a record, from what it holds."""
    evidence = Evidence(
        asked=record.asked,
        warm_up=record.warm_up,
        engine=record.engine,
        scene=record.scene,
        disturbance=record.disturbance,
        machine=record.machine,
        clock=record.clock,
        golden=record.golden,
        target=record.bundle.target,
        target_arch=record.bundle.target_arch,
        arch=record.environment.arch,
        unit=record.unit,
    )
    return run_checks(evidence) + check_power(record.power, record.asked)
