"""jetson-stats, by its service (``jtop``): the rails of a Jetson for users who may not read them.

Up to 4.1.5 ``jetson.power`` is ``(total, rails)`` with ``cur`` and ``avg`` in mW, out of
tegrastats; from 4.2 ``{"rail": {name: {"power", "avg", ...}}, "tot": {"name", "power", ...}}`` out
of sysfs (jetson-stats' sources, jtop/jtop.py and jtop/core/power.py). Its total adds parts to
their parent on an AGX Orin, and its average is half the sum of the last average and this reading:
neither is used. Where one rail is the total it is missing among the rails; it is taken back by its
name, which versions before 4.2 do not tell.
"""

from __future__ import annotations

import contextlib
import queue
import time
from pathlib import Path
from typing import Any

from edgekd.contracts.optional import require
from edgekd.errors import EnvironmentLacksError
from edgekd.telemetry.rails import Total, find_total
from edgekd.telemetry.sensors._base import (
    PowerSensor,
    Reading,
    SensorLost,
    Unavailable,
)

PREFERENCE = 30
#: the service answers once an interval of its own, s
_FIRST_S = 5.0


def read_rails(power: Any) -> dict[str, float]:
    """Rail -> mW, of either form; rails that are off are absent.

    Raises:
        ValueError: neither form.
    """
    if isinstance(power, dict) and isinstance(power.get("rail"), dict):
        rails, total, key = dict(power["rail"]), power.get("tot"), "power"
        if isinstance(total, dict) and total.get("name"):
            rails.setdefault(str(total["name"]), total)
    elif isinstance(power, tuple | list) and len(power) == 2 and isinstance(power[1], dict):
        rails, key = dict(power[1]), "cur"
    else:
        raise ValueError(f"jetson.power is {str(power)[:80]!r}")
    return {
        str(name): float(rail[key])
        for name, rail in rails.items()
        if isinstance(rail, dict) and rail.get("online", True) and rail.get(key) is not None
    }


def _temperatures(value: Any) -> dict[str, float]:
    """Zone -> °C: plain numbers, and from 4.2 with whether they are online."""
    found: dict[str, float] = {}
    for name, item in value.items() if isinstance(value, dict) else ():
        if isinstance(item, dict):
            item = item.get("temp") if item.get("online", True) else None
        if isinstance(item, int | float) and item > -256:
            found[str(name)] = float(item)
    return found


class JtopStream:
    """A connection to the service: what it sends is a reading when it arrives.

    Attributes:
        total: what power is the sum of; where none was given, that of the first message that has
            one.
        restarts: never told; the service is asked again by its own client.
    """

    restarts = 0

    def __init__(self, interval_s: float, total: Total | None = None) -> None:
        self._arrived: queue.SimpleQueue[Reading | Exception] = queue.SimpleQueue()
        self.total = total
        self.interval_s = interval_s
        self._client: Any = None
        try:
            self._client = require("jtop", "jetson", "ask jetson-stats").jtop(interval=interval_s)
            self._client.attach(self._take)
            self._client.start()
        except Exception as err:
            self.close()
            raise SensorLost(f"jtop: {' '.join(str(err).split())}") from err

    def _take(self, client: Any) -> None:
        """In jtop's thread."""
        now = time.monotonic()
        try:
            rails = read_rails(client.power)
            total = self.total = self.total or find_total(rails)
            self._arrived.put(Reading(
                now, None if total is None else total.watts(rails),
                {name: value / 1000 for name, value in rails.items()},
                temperatures_c=_temperatures(client.temperature),
                why=total.lacks(rails) if total is not None and rails else _why(rails),
            ))  # fmt: skip
        except Exception as err:  # noqa: BLE001 (given to the thread that reads)
            self._arrived.put(err)

    def read(self, timeout_s: float) -> list[Reading]:
        """See :class:`~edgekd.telemetry.sensors._base.Stream`."""
        found: list[Reading] = []
        try:
            item = self._arrived.get(timeout=timeout_s)
            while True:
                if isinstance(item, Exception):
                    raise SensorLost(f"jtop: {item}")
                found.append(item)
                item = self._arrived.get_nowait()
        except queue.Empty:
            pass
        if not found and not self._client.is_alive():
            raise SensorLost(f"jtop: {self._ended()}")
        return found

    def _ended(self) -> str:
        try:
            self._client.ok(spin=True)
        except Exception as err:  # noqa: BLE001 (jtop raises again what ended its thread)
            return " ".join(str(err).split())
        return "its service sends nothing any more"

    def close(self) -> None:
        """End the connection."""
        if self._client is not None:
            with contextlib.suppress(Exception):  # a service that is gone cannot be told
                self._client.close()


def _why(rails: dict[str, float]) -> str:
    if not rails:
        return "jtop shows no rails"
    return (
        f"nobody knows which of the rails {', '.join(sorted(rails))} add up; jetson-stats before "
        "4.2 does not name its total"
    )


class _Jtop:
    def __init__(self, total: Total, version: str) -> None:
        self._total = total
        self.info = total.info("jtop", "measured", {"jetson_stats": version})

    def open(self, interval_s: float) -> JtopStream:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return JtopStream(interval_s, self._total)


def find(root: Path) -> PowerSensor | Unavailable:
    """The service of this machine, if it runs and shows a total."""
    if root != Path("/"):
        return Unavailable("can be asked on this machine only")
    try:
        version = str(getattr(require("jtop", "jetson", "ask jetson-stats"), "__version__", "?"))
        stream = JtopStream(0.5)
    except (EnvironmentLacksError, SensorLost) as err:
        return Unavailable(str(err))
    try:
        readings = stream.read(_FIRST_S)
    except SensorLost as err:
        return Unavailable(str(err))
    finally:
        stream.close()
    if not readings:
        return Unavailable(f"jtop's service said nothing in {_FIRST_S:.0f} s")
    total = stream.total
    if total is None or readings[-1].watts is None:
        return Unavailable(readings[-1].why)
    return _Jtop(total, version)
