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


def find_sensors(root: Path = Path("/")) -> tuple[list[PowerSensor], dict[str, str]]:
    """Sensors that can be read, the preferred one first, and why the others cannot.

    Preferred is what reads the whole board, and of those what reads it most directly.
    """
    found: list[tuple[int, str, PowerSensor]] = []
    reasons: dict[str, str] = {}
    for name in registry.module_names(_PACKAGE):
        module = registry.load(_PACKAGE, name, "sensor")
        sensor = module.find(root)
        if isinstance(sensor, Unavailable):
            reasons[name] = sensor.reason
        else:
            found.append((module.PREFERENCE, name, sensor))
    return [sensor for _, _, sensor in sorted(found, key=lambda item: item[:2])], reasons


def find_power(root: Path = Path("/")) -> PowerSensor | PowerUnavailable:
    """The sensor to take, else the reasons of all."""
    found, reasons = find_sensors(root)
    if found:
        return found[0]
    real = [name for name in reasons if name != "null"]
    return PowerUnavailable(
        reason="no power sensor can be read here"
        if real
        else "this version of edgekd reads no power sensor",
        sensors=reasons,
    )
