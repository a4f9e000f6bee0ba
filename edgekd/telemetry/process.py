"""CPU time, clock frequency and memory, read from ``/proc`` and ``/sys`` (Linux).

Units are the kernel's: ``/proc/stat`` and ``/proc/self/stat`` count ticks (100 a second on every
common kernel), cpufreq files hold kHz, ``/proc/self/status`` KiB. See the kernel's
``Documentation/filesystems/proc.rst`` and ``Documentation/admin-guide/pm/cpufreq.rst``.
"""

from __future__ import annotations

import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CpuCounters:
    """CPU time at one moment.

    Attributes:
        at_s: monotonic clock, s.
        busy_s: time that all cores together were busy since boot, s.
        own_s: time that this process and all its threads were busy, s.
        cores: logical cores that ``busy_s`` counts.
    """

    at_s: float
    busy_s: float
    own_s: float
    cores: int


def read_cpu(
    root: Path = Path("/"), clock: Callable[[], float] = time.perf_counter
) -> CpuCounters | None:
    """Counters of now, or None where the kernel does not show them."""
    try:
        lines = (root / "proc/stat").read_text().splitlines()
        own = (root / "proc/self/stat").read_text()
        ticks = os.sysconf("SC_CLK_TCK")
        values = [int(part) for part in lines[0].split()[1:]]
        # user nice system idle iowait irq softirq steal; guest is inside user already
        busy = sum(values[:3]) + sum(values[5:8])
        cores = sum(1 for line in lines if re.match(r"cpu\d", line))
        # the command's name may hold spaces and brackets; utime and stime follow the last one
        fields = own.rpartition(")")[2].split()
        own_ticks = int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return None
    if not cores or not sum(values):
        return None
    return CpuCounters(clock(), busy / ticks, own_ticks / ticks, cores)


def other_cpu_share(start: CpuCounters, end: CpuCounters) -> float:
    """Share of all cores that other processes used between two moments, 0-1.

    Time stolen by a hypervisor counts as others'. Small negative values, which come from the
    counters' tick of 10 ms, are 0.

    Raises:
        ValueError: the second moment is not later than the first.
    """
    elapsed = end.at_s - start.at_s
    if elapsed <= 0:
        raise ValueError(f"the counters are {elapsed} s apart; the second must be later")
    others = (end.busy_s - start.busy_s) - (end.own_s - start.own_s)
    return min(max(others / (elapsed * start.cores), 0.0), 1.0)


def read_frequencies(root: Path = Path("/"), name: str = "scaling_cur_freq") -> list[float] | None:
    """Clock of every core, MHz, in the order of their numbers; None where not readable."""
    folder = root / "sys/devices/system/cpu"
    values = []
    paths = folder.glob(f"cpu[0-9]*/cpufreq/{name}")
    for path in sorted(paths, key=lambda path: int(path.parts[-3][3:])):
        try:
            values.append(int(path.read_text()) / 1000)
        except (OSError, ValueError):
            return None
    return values or None


def peak_rss_mib(root: Path = Path("/")) -> float:
    """Largest resident memory of this process so far, MiB.

    ``VmHWM`` where the kernel shows it; ``ru_maxrss`` otherwise, which a process inherits from
    the one that started it.
    """
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB", (root / "proc/self/status").read_text(), re.M)
        if match:
            return int(match[1]) / 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rss_mib(root: Path = Path("/")) -> float | None:
    """Resident memory of this process now, MiB; None where the kernel does not show it."""
    try:
        match = re.search(r"^VmRSS:\s+(\d+) kB", (root / "proc/self/status").read_text(), re.M)
    except OSError:
        return None
    return int(match[1]) / 1024 if match else None
