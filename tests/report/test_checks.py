"""Every check passes on flawless evidence and fails on the one thing it is for."""

from __future__ import annotations

from typing import Any

import pytest

from edgekd.report.checks import CHECKS, Evidence, run_checks
from edgekd.report.record import Asked, Disturbance, EngineWindow, WarmUp
from tests.helpers.records import make_evidence, make_record, make_scene


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
    ("outputs_right", {"golden_error": 0.0011}),
    ("device_fits", {"arch": "aarch64"}),
    ("enough_samples", {"latencies_s": [0.1] * 29}),
    ("enough_samples", {"asked": Asked(duration_s=3.5, warmup_s=1, scene_runs=3)}),
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
    ("not_disturbed", {"disturbance": disturbance(0.21, [2000.0])}),
    ("frequency_stable", {"disturbance": disturbance(0.0, [2000.0, 1750.0])}),
    ("clock_sound", {"monotonic": False}),
    ("clock_sound", {"tick_s": 0.001}),
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


def test_a_nan_golden_error_fails() -> None:
    assert verdicts(make_evidence(golden_error=float("nan")))["outputs_right"] == "fail"
