"""Adds the file of an external meter to a record that was measured beside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgekd.errors import InputError
from edgekd.report.checks import POWER_CHECKS, check_power
from edgekd.report.power import (
    Phase,
    PowerPending,
    PowerRecord,
    Synchronised,
    make_power,
)
from edgekd.report.record import BenchmarkRecord
from edgekd.report.system import Bench, make_system
from edgekd.telemetry.align import align
from edgekd.telemetry.trace import Trace


def busy_intervals(phases: list[Phase]) -> list[tuple[float, float]]:
    """When the device worked: everything but idling and the guard before it."""
    found = []
    for place, phase in enumerate(phases):
        before_idle = place + 1 < len(phases) and phases[place + 1].kind == "idle"
        if phase.kind != "idle" and not (phase.kind == "guard" and before_idle):
            found.append((phase.start_s, phase.end_s))
    return found


def add_meter(record: BenchmarkRecord, trace: Trace, name: str) -> BenchmarkRecord:
    """The record with the meter's power, on the record's clock, judged anew.

    Args:
        record: measured with ``--power external``.
        trace: of the meter, on a clock of its own.
        name: of the meter's file, for messages.

    Raises:
        InputError: the record waits for no meter, or the meter's clock cannot be found.
    """
    pending = record.power
    if not isinstance(pending, PowerPending):
        raise InputError(
            f"the record's power is {pending.status}, it waits for no meter; measure with "
            "edgekd bench ... --power external"
        )
    at_s, watts = trace.samples.power()
    span = pending.phases[0].start_s, pending.phases[-1].end_s
    try:
        found = align(np.asarray(at_s), np.asarray(watts), busy_intervals(pending.phases), span)
    except ValueError as err:
        raise InputError(f"{name} and the record are not synchronised: {err}") from err
    info = trace.samples.info
    if info.lag_s is None:
        info = replace(info, lag_s=found.lag_s)
    samples = replace(trace.samples.since(found.offset_s), info=info)
    synchronised = Synchronised(
        offset_s=found.offset_s, lag_s=found.lag_s, score=found.score, margin=found.margin,
        drift_s=found.drift_s,
    )  # fmt: skip
    power = make_power(samples, pending.phases, 0.0, synchronised, pending.guard_s)
    if not isinstance(power, PowerRecord):
        raise InputError(f"{name} gives no power: {power}")
    own = {check.__name__ for check in POWER_CHECKS}
    checks = [check for check in record.checks if check.name not in own] + check_power(
        power, record.asked
    )
    valid = all(check.status != "fail" for check in checks)
    system = record.system
    if system is not None:
        bench = Bench.of(record.environment, power, record.scene, valid)
        system = make_system(system.declared, bench)
    plain = record.plain() | {
        "power": power.model_dump(mode="json"),
        "system": None if system is None else system.model_dump(mode="json"),
        "checks": [check.model_dump(mode="json") for check in checks],
        "valid": valid,
    }
    return BenchmarkRecord.model_validate(plain)
