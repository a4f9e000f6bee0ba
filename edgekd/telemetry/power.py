"""Finds a power sensor that can be read on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edgekd.contracts import registry
from edgekd.contracts.schema import Document
from edgekd.errors import EnvironmentLacksError, InputError
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


#: what ``--power`` takes beside a sensor's name
REPLAY = "replay:"
#: modules that are no sensor of a machine: nothing, and files
_NOT_READ = ("null", "meter_csv", "replay")
_WORDS = ("auto", "none", "replay:FILE")


def choose_sensor(
    asked: str, root: Path = Path("/"), also: Sequence[str] = ()
) -> PowerSensor | PowerUnavailable:
    """The sensor that a caller asked for.

    Args:
        asked: ``auto``, the preferred one, or the reasons of all where there is none; ``none``; a
            sensor's name; or ``replay:FILE``.
        root: of the file system.
        also: what else the caller takes, for the message.

    Raises:
        InputError: no such sensor, or a file that cannot be replayed.
        EnvironmentLacksError: the sensor that was named cannot be read here: nobody who asks for
            one wants another, or none.
    """
    if asked == "auto":
        return find_power(root)
    if asked == "none":
        return PowerUnavailable(reason="not asked for", sensors={})
    if asked.startswith(REPLAY):
        from edgekd.telemetry.sensors.replay import open_replay

        if asked == REPLAY:
            raise InputError("replay: names no file; give one: replay:FILE")
        return open_replay(Path(asked[len(REPLAY) :]))
    names = [name for name in registry.module_names(_PACKAGE) if name not in _NOT_READ]
    if asked not in names:
        valid = [*_WORDS, *also, *names]
        raise InputError(
            f"power sensor '{asked}' does not exist{registry.nearest(asked, valid)} "
            f"(valid: {', '.join(valid)})"
        )
    sensor = registry.load(_PACKAGE, asked, "sensor").find(root)
    if isinstance(sensor, Unavailable):
        raise EnvironmentLacksError(
            f"power sensor {asked} cannot be read: {sensor.reason}; edgekd doctor tells which can"
        )
    found: PowerSensor = sensor
    return found
