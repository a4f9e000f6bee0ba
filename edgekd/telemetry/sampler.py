"""Samples a power sensor in a thread of its own, and notices when it stops telling the truth."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekd.telemetry.sensors._base import PowerSensor, Reading, SensorInfo, SensorLost

#: a sensor is stalled after so many intervals without a reading, but at least so many seconds
STALL_INTERVALS, STALL_LEAST_S = 10.0, 1.0
_WAIT_S = 0.1


@dataclass
class Samples:
    """What a sensor said between two moments.

    Attributes:
        info: of the sensor.
        interval_s: asked for.
        readings: in the order of their arrival, each later than the one before.
        lost: why the sensor ended by itself; empty while it did not.
        stalls: ``(from, to)`` of pauses in which it said nothing, s.
        restarts: how often its source began again.
        restarted_s: when, where that is known: the readings behind it, s.
        without: readings that had no total, by reason.
        dropped: lines of a source that were none of its own whole ones, by kind.
    """

    info: SensorInfo
    interval_s: float
    readings: list[Reading] = field(default_factory=list)
    lost: str = ""
    stalls: list[tuple[float, float]] = field(default_factory=list)
    restarts: int = 0
    restarted_s: list[float] = field(default_factory=list)
    without: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def power(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Times, s, and total power, W, of the readings that have one."""
        pairs = [(item.at_s, item.watts) for item in self.readings if item.watts is not None]
        values = np.array(pairs, np.float64).reshape(-1, 2)
        return values[:, 0], values[:, 1]

    def since(self, origin_s: float) -> Samples:
        """The same on a clock that begins at a moment of theirs."""
        return dataclasses.replace(
            self,
            readings=[
                dataclasses.replace(item, at_s=item.at_s - origin_s) for item in self.readings
            ],
            stalls=[(start - origin_s, end - origin_s) for start, end in self.stalls],
            restarted_s=[at_s - origin_s for at_s in self.restarted_s],
        )

    @property
    def achieved_s(self) -> float | None:
        """Median pause between readings, s; None where there are too few."""
        times, _ = self.power()
        return float(np.median(np.diff(times))) if len(times) > 1 else None

    def faults(self) -> list[str]:
        """Why these samples cannot be trusted as a whole; empty where they can."""
        found = []
        if self.lost:
            found.append(f"the sensor was lost: {self.lost}")
        found += [f"the sensor said nothing for {end - start:.3g} s" for start, end in self.stalls]
        if self.restarts:
            found.append(f"the sensor's source began again {self.restarts} times")
        found += [f"{count} readings without power: {why}" for why, count in self.without.items()]
        return found


class Sampler:
    """Samples a sensor from entering a ``with`` block to leaving it.

    Args:
        sensor: to read.
        interval_s: asked for, s.
        each: called with every reading in the sampler's thread; what it raises ends the sampling
            and is raised again when the block is left.

    Attributes:
        samples: so far; whole when the block was left.
        failure: what ``each`` raised, as soon as it did; there are no more samples then.

    Raises:
        SensorLost: on entering: the sensor is not there any more.
    """

    def __init__(
        self,
        sensor: PowerSensor,
        interval_s: float = 0.1,
        each: Callable[[Reading], None] | None = None,
    ) -> None:
        self.samples = Samples(sensor.info, interval_s)
        self._sensor, self._interval, self._each = sensor, interval_s, each
        self._stop = threading.Event()
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="edgekd-power", daemon=True)

    def __enter__(self) -> Sampler:
        self._stream = self._sensor.open(self._interval)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._stream.close()
        if self.failure is not None and error is None:
            raise self.failure

    def _run(self) -> None:
        try:
            self._sample()
        except SensorLost as err:
            self.samples.lost = str(err)
        except Exception as err:  # noqa: BLE001 (raised again when the block is left)
            self.failure = err
        finally:
            counts = getattr(self._stream, "counts", None)
            if counts is not None:
                self.samples.dropped = dict(counts.damaged)

    def _sample(self) -> None:
        samples = self.samples
        # a source with a pace of its own is not asked more often than it answers
        interval = max(self._interval, getattr(self._stream, "interval_s", 0.0))
        patience = max(STALL_INTERVALS * interval, STALL_LEAST_S)
        heard = time.monotonic()
        while not self._stop.is_set():
            try:
                found = self._stream.read(_WAIT_S)
            finally:
                began = self._stream.restarts - samples.restarts
                samples.restarts += began
            if began and found:
                samples.restarted_s += [found[-1].at_s] * began
            for reading in found:
                if samples.readings and reading.at_s <= samples.readings[-1].at_s:
                    continue  # a clock that stood still: the same moment has one reading
                ended = reading.at_s + reading.over_s / 2  # a mean is not told before its end
                if ended - heard > patience:
                    samples.stalls.append((heard, ended))
                heard = ended
                samples.readings.append(reading)
                if reading.watts is None:
                    samples.without[reading.why] = samples.without.get(reading.why, 0) + 1
                if self._each is not None:
                    self._each(reading)
        now = time.monotonic()
        if now - heard > patience:
            samples.stalls.append((heard, now))
