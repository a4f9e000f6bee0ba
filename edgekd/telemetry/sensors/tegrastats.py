"""NVIDIA's ``tegrastats`` as a process: power, temperatures and clocks in one line.

The lines carry no stamp finer than a second, so they are stamped when they arrive. A process that
writes several at once (a buffer that was full) had them at even pauses since the one before.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import time
from pathlib import Path

from edgekd.telemetry.rails import find_total
from edgekd.telemetry.sensors._base import (
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
    Unavailable,
)
from edgekd.telemetry.tegrastats import Counts, Line, Reader

PREFERENCE = 20
#: until the first line is there, s; tegrastats writes it after one interval
_FIRST_S = 5.0
_END_S = 2.0


def to_reading(line: Line, at_s: float) -> Reading:
    """A line as a sample."""
    total = find_total(line.rails)
    mw = {name: rail.now_mw for name, rail in line.rails.items()}
    clocks = {name.lower(): float(max(u.mhz)) for name, u in line.units.items() if u.mhz}
    cores = [core.mhz[0] for core in line.cores if core.mhz]
    loads = {name.lower(): float(u.load) for name, u in line.units.items() if u.load is not None}
    busy = [core.load for core in line.cores if core.load is not None]
    return Reading(
        at_s=at_s,
        watts=None if total is None else total.watts(mw),
        rails_w={name: value / 1000 for name, value in mw.items()},
        temperatures_c=line.temperatures_c,
        clocks_mhz={**clocks, **({"cpu": float(max(cores))} if cores else {})},
        loads={**loads, **({"cpu": sum(busy) / len(busy)} if busy else {})},
        why="" if total is not None else _why(line),
    )


def _why(line: Line) -> str:
    if line.rails:
        return f"nobody knows which of the rails {', '.join(sorted(line.rails))} add up"
    return "tegrastats shows no rails; on JetPack 4 and 5 it needs root"


class TegrastatsStream:
    """A running tegrastats.

    Attributes:
        counts: what its lines were.
        restarts: how often it began again.
    """

    def __init__(self, program: str, interval_s: float) -> None:
        self._program = program
        self._reader = Reader()
        self._last_s = time.monotonic()
        try:
            # a group of its own, since under sudo or a wrapper the parent's end is not its end
            self._process = subprocess.Popen(
                [program, "--interval", str(max(round(interval_s * 1000), 1))],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            raise SensorLost(f"{program} cannot be started: {err.strerror}") from err
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)

    @property
    def counts(self) -> Counts:
        """What its lines were so far."""
        return self._reader.counts

    @property
    def restarts(self) -> int:
        """How often it began again."""
        return self._reader.counts.restarts

    def read(self, timeout_s: float) -> list[Reading]:
        """See :class:`~edgekd.telemetry.sensors._base.Stream`."""
        ready, _, _ = select.select([self._pipe], [], [], timeout_s)
        if not ready:
            return []
        data = os.read(self._pipe, 1 << 16)
        now = time.monotonic()
        if not data:
            self._reader.close()
            code = self._process.wait()
            raise SensorLost(f"{self._program} ended with {code}")
        lines = self._reader.feed(data)
        pause = (now - self._last_s) / max(len(lines), 1)
        found = [
            to_reading(line, now - pause * (len(lines) - 1 - place))
            for place, line in enumerate(lines)
        ]
        if lines:
            self._last_s = now
        return found

    def close(self) -> None:
        """End the process and what it started; one that does not listen is killed."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
                break
        if self._process.stdout is not None:
            self._process.stdout.close()


class _Tegrastats:
    def __init__(self, program: str, info: SensorInfo) -> None:
        self._program, self.info = program, info

    def open(self, interval_s: float) -> TegrastatsStream:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return TegrastatsStream(self._program, interval_s)


def find(root: Path) -> PowerSensor | Unavailable:
    """Start it for a line, which says what rails it shows to this user."""
    if root == Path("/"):
        program = shutil.which("tegrastats")
    else:
        place = root / "usr" / "bin" / "tegrastats"
        program = str(place) if os.access(place, os.X_OK) else None
    if program is None:
        return Unavailable("there is no tegrastats on PATH; it belongs to JetPack")
    try:
        stream = TegrastatsStream(program, 0.1)
    except SensorLost as err:
        return Unavailable(str(err))
    try:
        end = time.monotonic() + _FIRST_S
        readings: list[Reading] = []
        while not readings and (left := end - time.monotonic()) > 0:
            readings = stream.read(left)
    except SensorLost as err:
        return Unavailable(str(err))
    finally:
        stream.close()
    if not readings:
        counts = stream.counts
        said = ", ".join(f"{n} {what}" for what, n in counts.damaged.items())
        return Unavailable(
            f"{program} said nothing in {_FIRST_S:.0f} s" + (f" but {said} lines" if said else "")
        )
    reading = readings[-1]
    total = find_total(list(reading.rails_w))
    if total is None or reading.watts is None:
        return Unavailable(reading.why)
    return _Tegrastats(program, total.info("tegrastats", "measured", {}))
