"""Power is a sensor's reading or unavailable with reasons, never a number that nobody read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.contracts import registry
from edgekd.telemetry import power
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    Unavailable,
)

SENSORS = registry.module_names("edgekd.telemetry.sensors")


def test_the_folder_holds_sensors() -> None:
    assert "null" in SENSORS


@pytest.mark.parametrize("name", SENSORS)
def test_every_sensor_says_why_it_is_not_there(name: str, tmp_path: Path) -> None:
    found = registry.load("edgekd.telemetry.sensors", name, "sensor").find(tmp_path)
    assert isinstance(found, Unavailable)
    assert found.reason.strip()


def test_without_a_sensor_power_is_unavailable_with_the_reason_of_each(tmp_path: Path) -> None:
    found = power.find_power(tmp_path)
    assert isinstance(found, power.PowerUnavailable)
    assert found.status == "unavailable"
    assert set(found.sensors) == set(SENSORS)
    assert not any(isinstance(value, (int, float)) for value in found.model_dump().values())


class _Meter:
    info = SensorInfo("meter", "board", ("VIN",))

    def open(self, interval_s: float) -> Polled:
        return Polled(lambda: Reading(0.0, 7.5), interval_s)


def test_the_first_readable_sensor_is_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    finders = {
        "broken": lambda root: Unavailable("needs root"),
        "meter": lambda root: _Meter(),
        "null": lambda root: Unavailable("nothing"),
    }
    monkeypatch.setattr(power.registry, "module_names", lambda package: sorted(finders))
    monkeypatch.setattr(
        power.registry,
        "load",
        lambda package, name, kind: SimpleNamespace(find=finders[name], PREFERENCE=1),
    )
    found = power.find_power(tmp_path)
    assert isinstance(found, PowerSensor)
    assert found.info.name == "meter"
    del finders["meter"]
    found = power.find_power(tmp_path)
    assert isinstance(found, power.PowerUnavailable)
    assert found.sensors["broken"] == "needs root"
