"""What a file of this folder holds, and what a sensor can do.

A sensor file defines ``find(root: Path) -> PowerSensor | Unavailable``. It looks for its files
below ``root`` and opens nothing else; a machine without the sensor, a sensor that only root may
read and a reading that makes no sense are all ``Unavailable`` with the reason, never 0 W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

#: what a reading includes: the compute module, the whole board, or the wall socket with the
#: power supply's loss. Figures of different scope must not be compared.
Scope = Literal["module", "board", "wall"]


@dataclass(frozen=True)
class Unavailable:
    """No reading, and why, as a clause that can follow a colon."""

    reason: str


@runtime_checkable
class PowerSensor(Protocol):
    """A sensor that was found and can be read.

    Attributes:
        name: the file's name.
        scope: see :data:`Scope`.
    """

    name: str
    scope: Scope

    def read_w(self) -> float | Unavailable:
        """Power of this moment, W."""
        ...
