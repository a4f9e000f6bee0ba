"""A power file, played in real time in the place of a sensor.

For demonstrations and tests: what is measured with it says "replay" everywhere, since the power is
not that of the work beside it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

from edgekd.errors import InputError
from edgekd.telemetry.logs import read_power_file
from edgekd.telemetry.sensors._base import PowerSensor, Reading, SensorInfo, SensorLost, Unavailable
from edgekd.telemetry.trace import Trace

PREFERENCE = 90


class ReplayStream:
    """A file that is being played.

    Attributes:
        interval_s: median pause of the file's readings, as they are played.
        restarts: how often the file's own source began again until now.
    """

    def __init__(self, trace: Trace, speed: float) -> None:
        self._readings, self._speed, self._next = trace.samples.readings, speed, 0
        self._start = time.monotonic()
        samples = trace.samples
        self._restarted_s = samples.restarted_s
        self._restarts = samples.restarts - len(samples.restarted_s)  # of which the time is unknown
        self.interval_s = (trace.samples.achieved_s or 0.0) / speed

    @property
    def restarts(self) -> int:
        """See :class:`~edgekd.telemetry.sensors._base.Stream`."""
        until = self._readings[self._next - 1].at_s if self._next else -math.inf
        return self._restarts + sum(at_s <= until for at_s in self._restarted_s)

    def _due(self, place: int) -> float:
        passed = self._readings[place].at_s - self._readings[0].at_s
        return self._start + passed / self._speed

    def read(self, timeout_s: float) -> list[Reading]:
        """See :class:`~edgekd.telemetry.sensors._base.Stream`."""
        if self._next == len(self._readings):
            raise SensorLost("the replay has come to its end")
        pause = self._due(self._next) - time.monotonic()
        if pause > 0:
            time.sleep(min(pause, timeout_s))
        now, found = time.monotonic(), []
        while self._next < len(self._readings) and (due := self._due(self._next)) <= now:
            found.append(dataclasses.replace(self._readings[self._next], at_s=due))
            self._next += 1
        return found

    def close(self) -> None:
        """Nothing is open."""


class Replay:
    """A sensor that plays a file.

    Attributes:
        info: that of the file's sensor, with "replay" for its source.
        duration_s: from the first reading to the last; a measurement must not take longer.
    """

    def __init__(self, trace: Trace, name: str, speed: float) -> None:
        self._trace, self._speed = trace, speed
        info, times = trace.samples.info, [item.at_s for item in trace.samples.readings]
        self.duration_s = (times[-1] - times[0]) / speed
        original = " (of an estimate)" if "estimate" in info.source else ""
        self.info: SensorInfo = dataclasses.replace(info, source=f"replay: {name}{original}")

    def open(self, interval_s: float) -> ReplayStream:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`; the file has its own pauses."""
        return ReplayStream(self._trace, self._speed)


def open_replay(path: Path, interval_s: float | None = None, speed: float = 1.0) -> Replay:
    """A sensor out of a power file.

    Args:
        path, interval_s: see :func:`~edgekd.telemetry.logs.read_power_file`.
        speed: how many times as fast as it was recorded; 1 for all but tests.

    Raises:
        InputError: it cannot be read, or holds no power.
    """
    trace = read_power_file(path, interval_s)
    if len(trace.samples.power()[0]) < 2:
        why = trace.unavailable or "; ".join(trace.samples.without) or "it has no readings"
        raise InputError(f"{path} holds no power that could be replayed: {why}")
    return Replay(trace, path.name, speed)


def find(root: Path) -> PowerSensor | Unavailable:
    """Chosen by name alone."""
    return Unavailable("is chosen by name: --power replay:FILE")
