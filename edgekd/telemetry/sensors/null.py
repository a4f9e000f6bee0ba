"""The sensor of machines without one: always unavailable."""

from __future__ import annotations

from pathlib import Path

from edgekd.telemetry.sensors._base import PowerSensor, Unavailable

PREFERENCE = 99


def find(root: Path) -> PowerSensor | Unavailable:
    """Say that there is nothing to read."""
    return Unavailable("stands for no sensor and has no reading")
