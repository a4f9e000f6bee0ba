"""Every check passes on flawless evidence and fails on the one thing it is for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from edgekd.report.checks import CHECKS, POWER_CHECKS, Evidence, check_power, run_checks
from edgekd.report.record import Asked, Clock, Disturbance, EngineWindow, Machine, WarmUp
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sampler import Samples
from tests.helpers.powers import (
    GUARD_S,
    ORIGIN_S,
    ORIN,
    REPEATS,
    TURN_S,
    make_power_record,
    make_samples,
)
from tests.helpers.records import make_evidence, make_golden, make_machine, make_record, make_scene

ASKED = make_evidence().asked


def disturbance(share: float | None = 0.0, clocks: list[float] | None = None) -> Disturbance:
    absent = {} if share is not None else {"other_cpu_share": "no counters"}
    absent |= {} if clocks is not None else {"frequency_mhz": "no cpufreq"}
    return Disturbance(
        other_cpu_share=share,
        load_1min_before=0,
        load_1min_after=0,
        frequency_mhz=clocks,
        absent=absent,
    )


def gpu(clocks: list[float]) -> Disturbance:
    return disturbance(0.0, [2000.0]).model_copy(update={"gpu_mhz": clocks})


def verdicts(evidence: Evidence) -> dict[str, str]:
    return {check.name: check.status for check in run_checks(evidence)}


def test_flawless_evidence_passes_every_check() -> None:
    found = verdicts(make_evidence())
    assert set(found) == {check.__name__ for check in CHECKS}
    assert set(found.values()) == {"pass"}
    assert make_record().valid


def overlapping() -> EngineWindow:
    engine = make_evidence().engine
    return engine.model_copy(update={"starts_s": [0.0] * len(engine.starts_s)})


FAULTS: list[tuple[str, dict[str, Any]]] = [
    ("outputs_right", {"golden": make_golden(0.0011)}),
    ("device_fits", {"arch": "aarch64"}),
    ("enough_samples", {"latencies_s": [0.1] * 29}),
    ("enough_samples", {"asked": Asked(duration_s=3.5, warmup_s=1, repeats=3)}),
    ("enough_samples", {"scene": make_scene([2.0, 2.0])}),
    (
        "warm_up_steady",
        {
            "warm_up": WarmUp(
                total_s=5, iterations=9, steady=False, detail="wild", latencies_s=[0.1]
            )
        },
    ),
    ("latency_steady", {"latencies_s": [0.05] * 40 + [0.056] * 20}),
    ("latency_steady", {"latencies_s": [0.05] * 40 + [0.044] * 20}),
    ("repeats_agree", {"scene": make_scene([2.0, 2.0, 2.6])}),
    ("repeats_agree", {"scene": make_scene([2.0] * 8 + [2.6] * 2)}),
    ("not_disturbed", {"disturbance": disturbance(0.21, [2000.0])}),
    ("frequency_stable", {"disturbance": disturbance(0.0, [2000.0, 1750.0])}),
    ("not_throttled", {"machine": make_machine(throttled=["too hot"])}),
    ("mode_unchanged", {"machine": make_machine(mode_changed=["from 15W to 25W"])}),
    ("clocks_unchanged", {"machine": make_machine(clocks_changed=["governor"])}),
    ("frequency_stable", {"disturbance": gpu([1000.0, 800.0])}),
    ("clock_sound", {"clock": Clock(tick_s=1e-9, monotonic=False)}),
    ("clock_sound", {"clock": Clock(tick_s=0.001, monotonic=True)}),
    ("clock_sound", {"engine": overlapping()}),
]


def test_every_check_has_a_fault_in_the_table() -> None:
    assert {name for name, _ in FAULTS} == {check.__name__ for check in CHECKS}


@pytest.mark.parametrize(("name", "changes"), FAULTS)
def test_a_fault_fails_its_check_alone_and_makes_the_record_invalid(
    name: str, changes: dict[str, Any]
) -> None:
    evidence = make_evidence(**changes)
    found = verdicts(evidence)
    assert [check for check, status in found.items() if status == "fail"] == [name]
    record = make_record(evidence)
    assert not record.valid
    assert [check.name for check in record.failed()] == [name]


@pytest.mark.parametrize(
    ("name", "held"),
    [
        ("not_disturbed", disturbance(None, [2000.0])),
        ("frequency_stable", disturbance(0.0, None)),
    ],
)
def test_what_cannot_be_checked_is_unknown_with_a_reason(name: str, held: Disturbance) -> None:
    checks = {check.name: check for check in run_checks(make_evidence(disturbance=held))}
    assert checks[name].status == "unknown"
    assert checks[name].detail in held.absent.values()


@pytest.mark.parametrize("machine", [None, Machine(**dict(make_machine()) | {"found": {}})])
def test_a_machine_that_does_not_tell_is_unknown(machine: Machine | None) -> None:
    found = verdicts(make_evidence(machine=machine))
    for name in ("not_throttled", "mode_unchanged", "clocks_unchanged"):
        assert found[name] == "unknown"


def test_of_many_runs_a_slow_one_does_not_decide() -> None:
    assert verdicts(make_evidence(scene=make_scene([2.0] * 9 + [3.0])))["repeats_agree"] == "pass"


def test_looks_that_failed_are_said_to_have_failed() -> None:
    machine = Machine(**dict(make_machine()) | {"found": {}, "failure": "OSError: gone"})
    checks = {check.name: check for check in run_checks(make_evidence(machine=machine))}
    assert checks["not_throttled"].status == "unknown"
    assert "looking at the machine failed: OSError: gone" in checks["not_throttled"].detail


def test_a_sensor_that_was_there_and_gave_nothing_is_a_fault() -> None:
    nothing = PowerUnavailable(reason="tegrastats was read and gave no power", sensors={})
    powered = ASKED.model_copy(update={"interval_s": 0.1})
    (check,) = check_power(nothing, powered)
    assert (check.name, check.status) == ("power_sampled", "fail")
    assert check_power(nothing, ASKED) == []


def test_flawless_power_passes_every_check() -> None:
    checks = check_power(make_power_record(), ASKED)
    assert [check.name for check in checks] == [check.__name__ for check in POWER_CHECKS]
    assert {check.status for check in checks} == {"pass"}, checks


def samples(**changes: Any) -> Samples:
    found = make_samples()
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def without(start_s: float, end_s: float) -> Samples:
    """A gap, on the record's clock."""
    found = make_samples()
    found.readings = [item for item in found.readings if not start_s < item.at_s - ORIGIN_S < end_s]
    return found


def climbing(idle: bool) -> Samples:
    """Power that rises by a tenth over the work, or idle that does."""
    found = make_samples()
    readings = []
    for item in found.readings:
        at, watts = item.at_s - ORIGIN_S, item.watts or 0.0
        end = REPEATS * TURN_S
        if idle and at > end:
            watts += 1.2 * min((at - end) / GUARD_S, 1)
        if not idle and 0 < at < end:
            watts *= 1 + 0.1 * at / end
        readings.append(replace(item, watts=watts))
    found.readings = readings
    return found


POWER_FAULTS: list[tuple[set[str], Samples, str]] = [
    ({"power_sampled"}, samples(lost="tegrastats ended with 1"), "lost: tegrastats ended"),
    ({"power_sampled"}, samples(stalls=[(1.0, 3.0)]), "said nothing for 2 s"),
    ({"power_sampled"}, samples(restarts=1), "began again"),
    ({"power_sampled"}, samples(without={"needs root": 3}), "3 readings without power"),
    (
        {"power_sampled", "synchronised"},
        make_samples(idle_w=-1.0, engine_w=-3.0, scene_w=-2.0),
        "engine power is -3 W, and no whole draws less than nothing",
    ),
    ({"power_windows"}, without(4.0, 4.5), "engine window 1: a gap of 0."),
    ({"power_windows"}, without(-30.0, -29.0), "idle window 1: a gap of 1"),
    ({"power_windows"}, make_samples(spacing_s=0.9), "samples, at least 20"),
    ({"power_windows", "power_steady"}, without(-20.0, 200.0), "engine: the samples do not hold"),
    ({"power_windows"}, without(74.0, 200.0), "idle power was not had on both sides"),
    ({"power_steady"}, climbing(idle=False), "engine 16."),
    ({"idle_steady"}, climbing(idle=True), "W before and 7."),
    ({"synchronised"}, make_samples(idle_w=16.0), "no more than idle"),
]


def test_every_check_of_power_has_a_fault_in_the_table() -> None:
    assert {name for names, *_ in POWER_FAULTS for name in names} == {
        check.__name__ for check in POWER_CHECKS
    }


@pytest.mark.parametrize(("names", "held", "words"), POWER_FAULTS)
def test_a_fault_of_power_fails_its_check_alone(names: set[str], held: Samples, words: str) -> None:
    checks = check_power(make_power_record(held), ASKED)
    failed = {check.name: check.detail for check in checks if check.status == "fail"}
    assert set(failed) == names, failed
    assert any(words in detail for detail in failed.values()), failed


def test_a_lag_that_nobody_measured_is_told() -> None:
    info = replace(ORIN, lag_s=None)
    checks = {c.name: c for c in check_power(make_power_record(make_samples(info=info)), ASKED)}
    assert checks["power_windows"].status == "pass"
    assert "a lag that was not measured, taken as 0.5 s" in checks["power_windows"].detail


def test_a_nan_golden_error_fails() -> None:
    assert verdicts(make_evidence(golden=make_golden(None)))["outputs_right"] == "fail"
