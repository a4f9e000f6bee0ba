"""NVIDIA's ``tegrastats`` as a process: power, temperatures and clocks in one line.

The lines carry no stamp finer than a second, so they are stamped when they arrive. A process that
writes several at once (a buffer that was full) had them at even pauses since the one before.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from pathlib import Path

from edgekd.contracts.board import find_program
from edgekd.telemetry.rails import Total, find_total
from edgekd.telemetry.sensors._base import (
    PowerSensor,
    Reading,
    SensorLost,
    Unavailable,
)
from edgekd.telemetry.tegrastats import Counts, Line, Reader

PREFERENCE = 20
#: until the first line is there, s; tegrastats writes it after one interval
_FIRST_S = 5.0
_END_S = 2.0


def to_reading(line: Line, at_s: float, total: Total | None) -> Reading:
    """A line as a sample; without one of the total's rails it has no power."""
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
        why=total.lacks(mw) if total is not None and mw else _why(line),
    )


def _why(line: Line) -> str:
    if line.rails:
        return f"nobody knows which of the rails {', '.join(sorted(line.rails))} add up"
    return "tegrastats shows no rails; on JetPack 4 and 5 it needs root"


class TegrastatsStream:
    """A running tegrastats.

    Attributes:
        total: what power is the sum of; where none was given, that of the first line that has one.
        counts: what its lines were.
        restarts: how often it began again.
    """

    def __init__(self, program: str, interval_s: float, total: Total | None = None) -> None:
        self._program, self.total = program, total
        self._reader = Reader()
        self._last_s, self._closed = time.monotonic(), False
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
            raise SensorLost(f"{self._program} {self._ended()}")
        lines = self._reader.feed(data)
        pause = (now - self._last_s) / max(len(lines), 1)
        found = []
        for place, line in enumerate(lines):
            self.total = self.total or find_total(line.rails)
            found.append(to_reading(line, now - pause * (len(lines) - 1 - place), self.total))
        if lines:
            self._last_s = now
        return found

    def _ended(self) -> str:
        """What became of a process that says no more; it is over then."""
        try:
            said = f"ended with {self._process.wait(_END_S)}"
        except subprocess.TimeoutExpired:
            said = "closed its output and did not end"
        self.close()
        return said

    def close(self) -> None:
        """End the process and all that it started. Who does not listen is killed, also where the
        first of them did; what belongs to root (under sudo) ends when it writes to nobody."""
        if self._closed:
            return
        self._closed = True
        self._signal(signal.SIGTERM)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._wait()
        self._signal(signal.SIGKILL)
        self._wait()

    def _wait(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class _Tegrastats:
    def __init__(self, program: str, total: Total) -> None:
        self._program, self._total = program, total
        self.info = total.info("tegrastats", "measured", {})

    def open(self, interval_s: float) -> TegrastatsStream:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        return TegrastatsStream(self._program, interval_s, self._total)


def find(root: Path) -> PowerSensor | Unavailable:
    """Start it for a line, which says what rails it shows to this user."""
    program = find_program(root, "tegrastats")
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
    if stream.total is None or readings[-1].watts is None:
        return Unavailable(readings[-1].why)
    return _Tegrastats(program, stream.total)
