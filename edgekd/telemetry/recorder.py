"""Records power and tiles beside ordinary work: a sampler with a trace that is written meanwhile.

Whatever happens to the sensor or the disk, the work that is observed goes on. A sensor that is lost
stands in the trace, also one that was gone before its first reading; a disk that is full ends the
file, not the samples, and is an error when the block is left, so that nobody takes half a file for
the whole.
"""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from edgekd.errors import InputError, OutputError
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sampler import Sampler, Samples
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
)
from edgekd.telemetry.trace import Trace, TraceWriter, utc_now


class _NoPower:
    """Keeps the grid where there is no sensor, so that tiles are written all the same."""

    def __init__(self, reason: str) -> None:
        self.info = SensorInfo("null", "module", (), "unavailable")
        self._reason = reason

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return Polled(lambda: Reading(time.monotonic(), None, why=self._reason), interval_s)


def reason_of(power: PowerUnavailable) -> str:
    """Why there is no power, with what each sensor says."""
    said = [f"{name}: {why}" for name, why in power.sensors.items() if name != "null"]
    return power.reason + (f" ({'; '.join(said)})" if said else "")


class Recorder:
    """Records from entering a ``with`` block to leaving it.

    Args:
        path: the trace to write, see :mod:`~edgekd.telemetry.trace`; None writes none.
        sensor: to read; without one, tiles alone are written and the trace says why.
        interval_s: asked for, s.
        tiles: how many tiles are done so far, asked at every reading.

    Attributes:
        samples: so far, times on the monotonic clock.
        start_s, started_utc: when the block was entered.

    Raises:
        InputError: an interval that is none.
        OutputError, EnvironmentLacksError: on entering: the trace cannot be written; on leaving: it
            could not be written to its end. An error of the block itself comes first.
    """

    def __init__(
        self,
        path: Path | None,
        sensor: PowerSensor | PowerUnavailable,
        interval_s: float = 0.2,
        tiles: Callable[[], int] | None = None,
    ) -> None:
        if not (math.isfinite(interval_s) and interval_s > 0):
            raise InputError(f"expected an interval above 0 s, received {interval_s}")
        self._path, self._interval, self._count = path, interval_s, tiles
        self._unavailable = reason_of(sensor) if isinstance(sensor, PowerUnavailable) else ""
        self._sensor = (
            _NoPower(self._unavailable) if isinstance(sensor, PowerUnavailable) else sensor
        )
        self._tiles: list[int] = []
        self._tiles_before = 0
        self._writer: TraceWriter | None = None
        self._failure: OSError | OutputError | None = None
        self._lock = threading.Lock()  # of the file: a mark comes from the caller's thread
        self._marks: list[tuple[float, str]] = []
        self._ended_s: float | None = None
        self._tiles_done: int | None = None
        self._sampler = Sampler(self._sensor, interval_s, self._each)
        self._begun = False
        self.start_s, self.started_utc = 0.0, ""

    @property
    def samples(self) -> Samples:
        """What was read so far."""
        return self._sampler.samples

    @property
    def failure(self) -> Exception | None:
        """What counting tiles raised; nothing is recorded from then on. Raised again on leaving."""
        return self._sampler.failure

    @property
    def trace(self) -> Trace:
        """What was recorded so far, as it is read from the file: times are s since the start."""
        start = self.start_s
        readings = list(self.samples.readings)
        if self._count is not None:  # of the last one the tiles may still be asked for
            readings = readings[: len(self._tiles)]
        return Trace(
            dataclasses.replace(self.samples, readings=readings).since(start),
            tiles=None if self._count is None else np.array(self._tiles[: len(readings)], np.int64),
            started_utc=self.started_utc, whole=True, unavailable=self._unavailable,
            marks=[(at_s - start, name) for at_s, name in self._marks],
            tiles_done=self._tiles_done,
            ended_s=None if self._ended_s is None else self._ended_s - start,
        )  # fmt: skip

    def mark(self, name: str, at_s: float | None = None) -> float:
        """Name this moment, or one of the monotonic clock; returns it."""
        at_s = time.monotonic() if at_s is None else at_s
        self._marks.append((at_s, name))
        self._write(lambda writer: writer.mark(at_s, name))
        return at_s

    def __enter__(self) -> Recorder:
        if self.started_utc:
            raise InputError("a trace is begun once; ask for another one")
        self.started_utc, self.start_s = utc_now(), time.monotonic()
        self._tiles_before = 0 if self._count is None else self._count()
        if self._path is not None:
            self._writer = TraceWriter(
                self._path, self._sensor.info, self._interval, started_utc=self.started_utc,
                start_s=self.start_s, counting=self._count is not None,
                unavailable=self._unavailable,
            )  # fmt: skip
        try:
            self._sampler.__enter__()
            self._begun = True
        except SensorLost as err:
            self.samples.lost = str(err)
        except BaseException:
            if self._writer is not None:
                self._writer.abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended_s = time.monotonic()
        if self._count is not None:
            self._tiles_done = self._count() - self._tiles_before
        try:
            if self._begun:
                self._sampler.__exit__(kind, error, trace)
        finally:
            self._finish()
        if self._failure is not None and error is None:
            by_row = self._writer is not None and self._writer.path.suffix == ".csv"
            rows = self._writer.rows if self._writer is not None and by_row else 0
            said = getattr(self._failure, "strerror", None) or self._failure
            raise OutputError(
                f"{self._path} could not be written to its end: {said}; it holds {rows} of "
                f"{len(self.samples.readings)} readings"
            ) from self._failure

    def _each(self, reading: Reading) -> None:
        done = None
        if self._count is not None:
            done = self._count() - self._tiles_before
            self._tiles.append(done)
        self._write(lambda writer: writer.add(reading, done))

    def _write(self, write: Callable[[TraceWriter], None]) -> None:
        """Nothing of the file's troubles reaches the work; the first of them is kept."""
        with self._lock:
            if self._writer is None or self._failure is not None:
                return
            try:
                write(self._writer)
            except (OSError, OutputError) as err:
                self._failure = err

    def _finish(self) -> None:
        self._write(lambda writer: writer.close(self.samples, self._tiles_done, self._ended_s))
        if self._writer is not None:
            self._writer.abandon()
