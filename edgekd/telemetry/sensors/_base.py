"""What a file of this folder holds, and what a sensor can do.

A sensor file defines ``find(root: Path) -> PowerSensor | Unavailable`` and ``PREFERENCE``: where
several sensors are there, the lowest is taken. ``find`` looks for its files below ``root``; a
machine without the sensor, a sensor that only root may read and a reading that makes no sense are
all ``Unavailable`` with the reason, never 0 W.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

#: what a reading includes: the compute module, the whole board, or the wall socket with the
#: power supply's loss. Figures of different scope must not be compared.
Scope = Literal["module", "board", "wall"]
#: how a figure came to be; the first two stand beside every one of them
Status = Literal["replay", "estimate", "measured"]


@dataclass(frozen=True)
class Unavailable:
    """No reading, and why, as a clause that can follow a colon."""

    reason: str


class SensorLost(Exception):
    """A sensor that was read gives nothing any more; the text says why. The sampler answers it."""


@dataclass(frozen=True)
class SensorInfo:
    """What must stand beside every figure of a sensor.

    Attributes:
        name: the file's name.
        scope: see :data:`Scope`.
        total: the rails that are added, or the counter's name.
        source: "measured"; "estimate" where power is derived by a formula; "replay: FILE";
            "meter: FORMAT".
        resolution_w: least step of a reading, W; None where it is not known.
        lag_s: time constant of its filter, s; None where it is not known.
        config: settings that decide about a reading, as the system tells them.
    """

    name: str
    scope: Scope
    total: tuple[str, ...]
    source: str = "measured"
    resolution_w: float | None = None
    lag_s: float | None = None
    config: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """As the source says: what was neither replayed nor estimated is measured."""
        if self.source.startswith("replay"):
            return "replay"
        return "estimate" if self.source.startswith("estimate") else "measured"

    @property
    def word(self) -> str:
        """What is put behind the name of a figure: `` (replay)``, `` (estimate)`` or nothing."""
        return "" if self.status == "measured" else f" ({self.status})"


@dataclass(frozen=True)
class Reading:
    """A sample.

    Attributes:
        at_s: the moment that ``watts`` is of, monotonic clock, s: when it arrived, or the middle of
            what it is the mean over.
        watts: the total; None where it was not to be had at this moment.
        rails_w: everything that was read, W, parts and parents alike.
        energy_j: a counter that only rises, where the sensor has one; as it was read, at the end of
            what ``watts`` is the mean over.
        temperatures_c, clocks_mhz, loads: of zones and units by name; loads in percent.
        why: why ``watts`` is None.
        over_s: how long ``watts`` is the mean over, s; 0 where it is of a moment.
    """

    at_s: float
    watts: float | None
    rails_w: dict[str, float] = field(default_factory=dict)
    energy_j: float | None = None
    temperatures_c: dict[str, float] = field(default_factory=dict)
    clocks_mhz: dict[str, float] = field(default_factory=dict)
    loads: dict[str, float] = field(default_factory=dict)
    why: str = ""
    over_s: float = 0.0


class Stream(Protocol):
    """A sensor that is being read."""

    @property
    def restarts(self) -> int:
        """How often the source began again by itself."""
        ...

    def read(self, timeout_s: float) -> list[Reading]:
        """Readings since the last call; waits for one, ``timeout_s`` at most.

        Raises:
            SensorLost: there will be no more.
        """
        ...

    def close(self) -> None:
        """End it, with all that it started."""
        ...


@runtime_checkable
class PowerSensor(Protocol):
    """A sensor that was found and can be read.

    Attributes:
        info: see :class:`SensorInfo`.
    """

    info: SensorInfo

    def open(self, interval_s: float) -> Stream:
        """Begin to read.

        Args:
            interval_s: asked for, s; what is achieved is told by the samples.

        Raises:
            SensorLost: it is not there any more.
        """
        ...


class Polled:
    """A stream of readings that are asked for one by one, on a grid of the monotonic clock: a slow
    reading delays itself and not those after it.

    Args:
        ask: takes a reading.
        interval_s: of the grid, s.
    """

    def __init__(
        self,
        ask: Callable[[], Reading],
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ask, self._interval, self._clock, self._sleep = ask, interval_s, clock, sleep
        self._next = clock()

    @property
    def restarts(self) -> int:
        """Never: each reading is asked for."""
        return 0

    def read(self, timeout_s: float) -> list[Reading]:
        """See :class:`Stream`."""
        pause = self._next - self._clock()
        if pause > timeout_s:
            self._sleep(timeout_s)
            return []
        if pause > 0:
            self._sleep(pause)
        reading = self._ask()
        late = self._clock() - self._next
        self._next += self._interval * (1 + max(int(late / self._interval), 0))
        return [reading]

    def close(self) -> None:
        """Nothing is open."""
