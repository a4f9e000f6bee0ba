"""INA238 on a carrier board (Jetson Thor), by sysfs.

``/sys/class/hwmon/hwmon*/`` with ``name`` ina238: ``power1_input`` is µW (kernel:
Documentation/hwmon/ina238.rst). Thor's measures ``VIN``, what the whole board takes; on any other
machine the chip may sit on a HAT or behind one output of a power supply, and does not say so.
"""

from __future__ import annotations

import time
from pathlib import Path

from edgekd.telemetry.boards import identify
from edgekd.telemetry.sensors import ina3221
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
    Unavailable,
)

PREFERENCE = 5
_THOR = "Jetson T5000"
#: of its module, where the device tree does not name it
_THOR_RAILS = {"VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"}


class _Ina238:
    def __init__(self, power: Path, config: dict[str, str]) -> None:
        self._power = power
        self.info = SensorInfo("ina238", "board", ("VIN",), "measured", config=config)

    def ask(self) -> Reading:
        """One reading."""
        try:
            watts = float(self._power.read_text()) * 1e-6
        except (OSError, ValueError) as err:
            raise SensorLost(f"{self._power} cannot be read: {err}") from err
        return Reading(time.monotonic(), watts, {"VIN": watts})

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return Polled(self.ask, interval_s)


def _is_thor(root: Path) -> bool:
    if identify(root).module == _THOR:
        return True
    try:
        rails, _ = ina3221.find_rails(root)
    except OSError:
        return False
    return set(rails) >= _THOR_RAILS


def find(root: Path) -> PowerSensor | Unavailable:
    """The chip of a Thor, if it is the only one: of several nobody knows which is the board's."""
    found = []
    for folder in sorted((root / "sys" / "class" / "hwmon").glob("hwmon*")):
        try:
            if (folder / "name").read_text().strip() == "ina238":
                found.append(folder)
        except OSError:
            continue
    if not found:
        return Unavailable("no INA238 is at /sys/class/hwmon")
    if len(found) > 1:
        names = ", ".join(folder.name for folder in found)
        return Unavailable(f"there are several INA238 ({names}), and none says what it measures")
    if not _is_thor(root):
        return Unavailable(
            f"there is an INA238 ({found[0].name}), but this is no Jetson Thor: nobody knows what "
            "it measures"
        )
    config = {}
    setting = found[0] / "update_interval"
    if setting.exists():
        config["update_interval"] = setting.read_text().strip()
    sensor = _Ina238(found[0] / "power1_input", config)
    try:
        sensor.ask()
    except SensorLost as err:
        return Unavailable(str(err))
    return sensor
