"""INA3221 on Jetson's power rails, by sysfs.

JetPack 5 and later: ``/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/``: ``inK_label`` names rail K (1
to 3), ``inK_input`` is mV, ``currK_input`` mA (kernel: Documentation/hwmon/ina3221.rst). ``in4`` to
``in7`` are shunt voltages and their sum: no rails, although in7 has a label. JetPack 4:
``/sys/bus/i2c/drivers/ina3221x/*/iio:device*/``: ``rail_name_K``, ``in_powerK_input`` in mW.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edgekd.telemetry.rails import Total, find_total
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorLost,
    Unavailable,
)

PREFERENCE = 10
_HWMON = "sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*"
_IIO = "sys/bus/i2c/drivers/ina3221x/*/iio:device*"
_CHANNELS = (1, 2, 3)


@dataclass(frozen=True)
class _Rail:
    name: str
    read_mw: Callable[[], float]


def _number(path: Path) -> float:
    return float(path.read_text().strip())


def _hwmon_rail(folder: Path, channel: int) -> _Rail | None:
    label = folder / f"in{channel}_label"
    if not label.exists():
        return None
    volts, amperes = folder / f"in{channel}_input", folder / f"curr{channel}_input"
    return _Rail(label.read_text().strip(), lambda: _number(volts) * _number(amperes) / 1000)


def _iio_rail(folder: Path, channel: int) -> _Rail | None:
    name = folder / f"rail_name_{channel - 1}"
    if not name.exists():
        return None
    power = folder / f"in_power{channel - 1}_input"
    return _Rail(name.read_text().strip(), lambda: _number(power))


def find_rails(root: Path) -> tuple[dict[str, _Rail], dict[str, str]]:
    """Rails by name, and what the chips are set to.

    Raises:
        OSError: a label that cannot be read.
    """
    rails: dict[str, _Rail] = {}
    config: dict[str, str] = {}
    for pattern, make in ((_HWMON, _hwmon_rail), (_IIO, _iio_rail)):
        for folder in sorted(root.glob(pattern)):
            for channel in _CHANNELS:
                rail = make(folder, channel)
                if rail is not None and rail.name not in ("", "NC"):
                    rails[rail.name] = rail
            for setting in ("samples", "update_interval"):
                if (folder / setting).exists():
                    chip = folder.parent.parent.name
                    config[f"{chip}.{setting}"] = (folder / setting).read_text().strip()
    return rails, config


class _Ina3221:
    def __init__(self, rails: dict[str, _Rail], total: Total, config: dict[str, str]) -> None:
        self._rails, self._total = rails, total
        self.info = total.info("ina3221", "measured", config)

    def ask(self) -> Reading:
        """One reading of all rails; the total's own decide about it."""
        values: dict[str, float] = {}
        for name, rail in self._rails.items():
            try:
                values[name] = rail.read_mw()
            except FileNotFoundError as err:
                if name in self._total.rails:
                    raise SensorLost(f"rail {name} is gone ({err.filename})") from err
            except (OSError, ValueError) as err:
                if name in self._total.rails:
                    return Reading(time.monotonic(), None, why=f"rail {name} gives nothing: {err}")
        watts = self._total.watts(values)
        return Reading(time.monotonic(), watts, {k: v / 1000 for k, v in values.items()})

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return Polled(self.ask, interval_s)


def find(root: Path) -> PowerSensor | Unavailable:
    """The chips of this board, where their rails make a total."""
    try:
        rails, config = find_rails(root)
    except OSError as err:
        return Unavailable(f"{err.filename} cannot be read: {err.strerror}; needs root?")
    if not rails:
        return Unavailable("no INA3221 is at /sys/bus/i2c/drivers/ina3221 or ina3221x")
    total = find_total(list(rails))
    if total is None:
        return Unavailable(f"nobody knows which of the rails {', '.join(sorted(rails))} add up")
    sensor = _Ina3221(rails, total, config)
    try:
        first = sensor.ask()
    except SensorLost as err:
        return Unavailable(str(err))
    return sensor if first.watts is not None else Unavailable(first.why)
