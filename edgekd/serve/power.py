"""The power that is drawn while the service runs; where nothing can be read, that, and why."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from edgekd.telemetry.power import PowerUnavailable, choose_sensor
from edgekd.telemetry.sampler import Sampler
from edgekd.telemetry.sensors._base import Reading, SensorLost

#: between samples, s; the service shows power, it does not measure energy
INTERVAL_S: Final = 1.0
#: older than that a reading is no reading of now, s
_OLD_S: Final = 10.0
#: samples that stay in memory: a service runs for months
_KEPT: Final = 60


@dataclass(frozen=True)
class PowerNow:
    """The last reading.

    Attributes:
        watts: None where there is none; never 0 in its place.
        sensor: its name, and scope: what the figure includes; empty where there is none.
        status: ``measured``, ``estimate`` or ``replay``; empty where there is no sensor.
        why: why there is no figure.
    """

    watts: float | None
    sensor: str = ""
    scope: str = ""
    status: str = ""
    why: str = ""


class PowerWatch:
    """Samples a power sensor from :meth:`start` to :meth:`close`.

    Args:
        asked: see :func:`edgekd.telemetry.power.choose_sensor`.
        root: of the file system.
        each: called with every power, W, in the sampler's thread.

    Raises:
        InputError, EnvironmentLacksError: see :func:`edgekd.telemetry.power.choose_sensor`.
    """

    def __init__(
        self, asked: str = "auto", root: Path = Path("/"), each: Callable[[float], object] = abs
    ) -> None:
        self._sensor = choose_sensor(asked, root)
        self._each = each
        self._sampler: Sampler | None = None
        self._last: Reading | None = None
        self._why = ""
        if isinstance(self._sensor, PowerUnavailable):
            absent = self._sensor.reason == "no power sensor can be read here"
            self._why = "no power sensor on this machine" if absent else self._sensor.reason

    def start(self) -> None:
        """Begin to read; a sensor that has gone meanwhile is said, and nothing else."""
        if isinstance(self._sensor, PowerUnavailable):
            return
        sampler = Sampler(self._sensor, INTERVAL_S, self._take)
        try:
            sampler.__enter__()
        except SensorLost as err:
            self._why = f"the sensor was lost: {err}"
            return
        self._sampler = sampler

    def now(self) -> PowerNow:
        """The last reading, if it is of now."""
        if isinstance(self._sensor, PowerUnavailable):
            return PowerNow(None, why=self._why)
        info = self._sensor.info
        about = (info.name, info.scope, info.status)
        last = self._last
        lost = "" if self._sampler is None else self._sampler.samples.lost
        if self._why or lost:
            return PowerNow(None, *about, why=self._why or f"the sensor was lost: {lost}")
        if last is None:
            return PowerNow(None, *about, why="no reading yet")
        age_s = time.monotonic() - last.at_s
        if age_s > _OLD_S:
            return PowerNow(None, *about, why=f"the sensor has said nothing for {age_s:.0f} s")
        return PowerNow(last.watts, *about, why=last.why)

    def close(self) -> None:
        """End it; safe to call twice."""
        sampler, self._sampler = self._sampler, None
        if sampler is not None:
            sampler.__exit__(None, None, None)

    def _take(self, reading: Reading) -> None:
        self._last = reading
        if reading.watts is not None:
            self._each(reading.watts)
        if self._sampler is not None:
            samples = self._sampler.samples
            for kept in (samples.readings, samples.stalls, samples.restarted_s):
                del kept[:-_KEPT]
