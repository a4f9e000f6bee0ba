"""RAPL: energy counters of Intel's and AMD's processors (kernel:
Documentation/power/powercap/powercap.rst).

``/sys/class/powercap/intel-rapl:N`` is a package, ``intel-rapl:N:M`` a part of it or its memory. A
package holds its cores and what is beside them, so parts are never added; memory (``dram``) is
counted apart and is. ``psys`` holds all packages and is left alone: few machines have it, and what
it covers differs. Counters wrap at ``max_energy_range_uj``, about every minute under load where
they have 32 bits. Since CVE-2020-8694 only root may read them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
    Unavailable,
)

PREFERENCE = 40
_UJ = 1e-6


@dataclass
class _Counter:
    """One domain.

    Attributes:
        name: e.g. ``package-0``.
        path: of the counter, in µJ.
        range_uj: where it wraps; None where the kernel does not tell.
        last_uj, energy_j: of the last reading, and since the first.
    """

    name: str
    path: Path
    range_uj: int | None
    last_uj: int | None = None
    energy_j: float = 0.0

    def read(self) -> None:
        """Add what came since the last reading.

        Raises:
            OSError, ValueError: the counter cannot be read.
            SensorLost: it went back, and nobody knows how far it had gone.
        """
        now = int(self.path.read_text())
        if self.last_uj is not None:
            step = now - self.last_uj
            if step < 0:
                if self.range_uj is None:
                    raise SensorLost(f"{self.name} wrapped, and its range cannot be read")
                step += self.range_uj
            self.energy_j += step * _UJ
        self.last_uj = now


class _Rapl:
    def __init__(self, counters: list[_Counter]) -> None:
        self._counters = counters
        names = tuple(item.name for item in counters)
        self.info = SensorInfo("rapl", "module", names, "measured")
        self._last: tuple[float, float] | None = None

    def ask(self) -> Reading:
        """Energy since the first reading, and the mean power since the one before, which is that of
        the middle between them."""
        before = {item.name: item.energy_j for item in self._counters}
        for item in self._counters:
            try:
                item.read()
            except (OSError, ValueError) as err:
                raise SensorLost(f"{item.name} cannot be read: {err}") from err
        now, energy = time.monotonic(), sum(item.energy_j for item in self._counters)
        last, self._last = self._last, (now, energy)
        if last is None or now <= last[0]:
            return Reading(now, None, energy_j=energy, why="a counter tells power from its second")
        pause = now - last[0]
        rails = {item.name: (item.energy_j - before[item.name]) / pause for item in self._counters}
        watts = (energy - last[1]) / pause
        return Reading(now - pause / 2, watts, rails, energy, over_s=pause)

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        self.ask()  # the first tells no power
        return Polled(self.ask, interval_s)


def find(root: Path) -> PowerSensor | Unavailable:
    """Packages and memory, where they can be read."""
    folder = root / "sys" / "class" / "powercap"
    counters: list[_Counter] = []
    for domain in sorted(folder.glob("intel-rapl:*")):
        try:
            name = (domain / "name").read_text().strip()
        except OSError:
            continue
        if not name.startswith("package") and name != "dram":
            continue
        parent = domain.name.split(":")[1]
        try:
            wraps = int((domain / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            wraps = None
        label = name if name != "dram" else f"dram-{parent}"
        counters.append(_Counter(label, domain / "energy_uj", wraps))
    if not counters:
        return Unavailable("no package is at /sys/class/powercap/intel-rapl:*")
    for counter in counters:
        try:
            int(counter.path.read_text())
        except PermissionError:
            return Unavailable(f"{counter.path} may be read by root alone (CVE-2020-8694)")
        except (OSError, ValueError) as err:
            return Unavailable(f"{counter.path} cannot be read: {err}")
    return _Rapl(counters)
