"""Finds a power sensor that can be read on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from edgekd.contracts import registry
from edgekd.contracts.schema import Document
from edgekd.telemetry.sensors._base import PowerSensor, Unavailable

_PACKAGE = "edgekd.telemetry.sensors"


class PowerUnavailable(Document):
    """No power figure in a record, and why; there is no number that could be taken for one.

    Attributes:
        reason: one sentence.
        sensors: name of each sensor that was tried -> why it gives no reading.
    """

    status: Literal["unavailable"] = "unavailable"
    reason: str
    sensors: dict[str, str]


def find_power(root: Path = Path("/")) -> PowerSensor | PowerUnavailable:
    """The first sensor file (by name) whose sensor can be read, else the reasons of all."""
    reasons: dict[str, str] = {}
    for name in registry.module_names(_PACKAGE):
        found = registry.load(_PACKAGE, name, "sensor").find(root)
        if not isinstance(found, Unavailable):
            sensor: PowerSensor = found
            return sensor
        reasons[name] = found.reason
    real = [name for name in reasons if name != "null"]
    return PowerUnavailable(
        reason="no power sensor can be read here"
        if real
        else "this version of edgekd reads no power sensor",
        sensors=reasons,
    )
