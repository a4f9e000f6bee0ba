"""Power is a sensor's reading or unavailable with reasons, never a number that nobody read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from edgekd.contracts import registry
from edgekd.errors import EnvironmentLacksError, InputError
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


def test_a_sensor_is_chosen_by_name_or_refused_with_its_reason(tmp_path: Path) -> None:
    none = power.choose_sensor("none", tmp_path)
    assert isinstance(none, power.PowerUnavailable) and none.reason == "not asked for"
    auto = power.choose_sensor("auto", tmp_path)
    assert isinstance(auto, power.PowerUnavailable) and len(auto.sensors) >= 10
    with pytest.raises(InputError, match="'tegrastat' does not exist; did you mean 'tegrastats'"):
        power.choose_sensor("tegrastat", tmp_path)
    with pytest.raises(EnvironmentLacksError, match="rapl cannot be read: no package is at /sys"):
        power.choose_sensor("rapl", tmp_path)
    chip = tmp_path / "sys/class/hwmon/hwmon2"
    chip.mkdir(parents=True)
    (chip / "name").write_text("ina238\n")
    (chip / "power1_input").write_text("16800000\n")
    with pytest.raises(EnvironmentLacksError, match="no Jetson Thor: nobody knows what it measur"):
        power.choose_sensor("ina238", tmp_path)
    tree = tmp_path / "proc/device-tree/compatible"
    tree.parent.mkdir(parents=True)
    tree.write_text("nvidia,p3834-0008\0nvidia,tegra264\0")
    for asked in ("auto", "ina238"):
        found = power.choose_sensor(asked, tmp_path)
        assert not isinstance(found, power.PowerUnavailable) and found.info.name == "ina238"
