"""The machine that a measurement was made on, as far as it can be read without asking anybody.

Sources: the device tree (``/proc/device-tree``), DMI (``/sys/class/dmi/id``), ``/proc/cpuinfo``,
``/proc/meminfo``, ``/etc/os-release``, ``/etc/nv_tegra_release`` and cpufreq (the kernel's
documentation of each), and the metadata of installed packages (nothing is imported).
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pydantic

import edgekd
from edgekd.contracts.schema import Document
from edgekd.telemetry.process import read_frequencies

#: package -> names of the distributions that may bring it, as installed.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "rasterio": ("rasterio",),
}

_T = TypeVar("_T")

_L4T = re.compile(r"#\s*R(?P<major>\d+)\s*\(release\),\s*REVISION:\s*(?P<revision>\d+(?:\.\d+)*)")


class Environment(Document):
    """A machine and its software; null fields have their reason in ``absent``.

    Attributes:
        hostname: left out unless asked for (a record is meant to be shown to others).
        board: model of the board or computer.
        board_source: file that ``board`` was read from.
        compatible: names in the device tree, most specific first; tells modules apart whose
            model text is equal.
        arch: machine architecture.
        cpu_model: as ``/proc/cpuinfo`` names it.
        cores: logical processors.
        cores_usable: logical processors that this process may use (affinity).
        cpu_quota_cores: cores' worth of CPU time that a container limit (cgroup) leaves.
        memory_mib: physical memory.
        os, kernel, python: names with versions.
        edgekd: version of this package.
        packages: version per package; null where it is not installed.
        l4t: NVIDIA's Linux for Tegra release, e.g. ``36.4.7``. The JetPack version is not
            derived from it: a revision that no table knows would be guessed.
        governor: CPU frequency governors in use, joined with a comma.
        frequency_mhz: current clock per CPU, MHz.
        frequency_max_mhz: highest clock the hardware allows, per CPU, MHz.
        load_1min: load average of the last minute when this was read.
        container: what hints at a container, ``none seen`` if nothing does.
        absent: field -> why it is null.
    """

    hostname: str | None
    board: str | None
    board_source: str | None
    compatible: list[str] | None
    arch: str
    cpu_model: str | None
    cores: int | None
    cores_usable: int | None
    cpu_quota_cores: float | None
    memory_mib: float | None
    os: str | None
    kernel: str
    python: str
    edgekd: str
    packages: dict[str, str | None]
    l4t: str | None
    governor: str | None
    frequency_mhz: list[float] | None
    frequency_max_mhz: list[float] | None
    load_1min: float | None
    container: str
    absent: dict[str, str]

    @pydantic.model_validator(mode="after")
    def _reasons(self) -> Environment:
        empty = {name for name in type(self).model_fields if getattr(self, name) is None}
        if empty != set(self.absent):
            raise ValueError(
                f"null fields {sorted(empty)} and reasons {sorted(self.absent)} do not agree"
            )
        return self


class _Absent(Exception):
    """A value that is not there; the text is the reason."""


def read_environment(root: Path = Path("/"), *, hostname: bool = False) -> Environment:
    """Describe this machine.

    Args:
        root: where the file system begins; another folder in tests.
        hostname: whether to record the computer's name.
    """
    absent: dict[str, str] = {}

    def get(field: str, read: Callable[[Path], _T]) -> _T | None:
        try:
            return read(root)
        except _Absent as err:
            absent[field] = str(err)
            return None

    board = get("board", read_board)
    if board is None:
        absent["board_source"] = absent["board"]
    return Environment(
        hostname=get("hostname", lambda _: _hostname(hostname)),
        board=board[0] if board else None,
        board_source=board[1] if board else None,
        compatible=get("compatible", _compatible),
        arch=platform.machine(),
        cpu_model=get("cpu_model", _cpu_model),
        cores=get("cores", _cores),
        cores_usable=get("cores_usable", _cores_usable),
        cpu_quota_cores=get("cpu_quota_cores", _cpu_quota),
        memory_mib=get("memory_mib", _memory_mib),
        os=get("os", _os_name),
        kernel=f"{platform.system()} {platform.release()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        edgekd=edgekd.__version__,
        packages=read_packages(),
        l4t=get("l4t", read_l4t),
        governor=get("governor", _governor),
        frequency_mhz=get("frequency_mhz", lambda r: _frequencies(r, "scaling_cur_freq")),
        frequency_max_mhz=get("frequency_max_mhz", lambda r: _frequencies(r, "cpuinfo_max_freq")),
        load_1min=get("load_1min", _load),
        container=read_container(root),
        absent=absent,
    )


def _text(root: Path, name: str) -> str:
    """A small file of the pseudo file systems; NUL bytes (device tree) become line ends."""
    try:
        data = (root / name).read_bytes()
    except FileNotFoundError as err:
        raise _Absent(f"/{name} does not exist") from err
    except OSError as err:
        raise _Absent(f"/{name} cannot be read: {err.strerror}") from err
    text = data.decode("utf-8", errors="replace").replace("\0", "\n").strip()
    if not text:
        raise _Absent(f"/{name} is empty")
    return text


def _hostname(wanted: bool) -> str:
    if not wanted:
        raise _Absent("left out for privacy")
    return socket.gethostname()


def read_board(root: Path) -> tuple[str, str]:
    """Model of the board and the file that says so: device tree, else DMI.

    Raises:
        _Absent: neither is there (e.g. inside a virtual machine without DMI).
    """
    name = "proc/device-tree/model"
    try:
        return _text(root, name).splitlines()[0].strip(), f"/{name}"
    except _Absent:
        pass
    parts = []
    for part in ("sys_vendor", "product_name"):
        try:
            parts.append(_text(root, f"sys/class/dmi/id/{part}").splitlines()[0].strip())
        except _Absent:
            continue
    if not parts:
        raise _Absent("neither /proc/device-tree/model nor /sys/class/dmi/id names a board")
    return " ".join(parts), "/sys/class/dmi/id"


def _compatible(root: Path) -> list[str]:
    return _text(root, "proc/device-tree/compatible").splitlines()


def _cpu_model(root: Path) -> str:
    """``model name`` (x86, some ARM), else the part numbers that ARM kernels print."""
    fields: dict[str, str] = {}
    for line in _text(root, "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        if colon and value.strip():
            fields.setdefault(key.strip(), value.strip())
    if "model name" in fields:
        return fields["model name"]
    if "CPU part" in fields:
        return (
            f"ARM implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']} "
            f"(revision {fields.get('CPU revision', '?')})"
        )
    raise _Absent("/proc/cpuinfo names no CPU model")


def _cores(root: Path) -> int:
    count = len(re.findall(r"^processor\s*:", _text(root, "proc/cpuinfo"), re.MULTILINE))
    if not count:
        raise _Absent("/proc/cpuinfo lists no processors")
    return count


def _cores_usable(_: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        raise _Absent("this system does not tell the affinity of a process")
    return len(os.sched_getaffinity(0))


def _cpu_quota(root: Path) -> float:
    """cgroup v2 ``cpu.max``: quota and period in microseconds, or ``max`` for no limit."""
    parts = _text(root, "sys/fs/cgroup/cpu.max").split()
    if parts[0] == "max":
        raise _Absent("no limit is set")
    try:
        return round(int(parts[0]) / int(parts[1]), 3)
    except (ValueError, IndexError, ZeroDivisionError) as err:
        raise _Absent(f"/sys/fs/cgroup/cpu.max is not understood: {' '.join(parts)[:60]}") from err


def _memory_mib(root: Path) -> float:
    """``MemTotal`` is in KiB although the file writes kB."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(root, "proc/meminfo"), re.MULTILINE)
    if match is None:
        raise _Absent("/proc/meminfo has no MemTotal")
    return round(int(match[1]) / 1024, 1)


def _os_name(root: Path) -> str:
    match = re.search(
        r"^PRETTY_NAME=[\"']?(.*?)[\"']?$", _text(root, "etc/os-release"), re.MULTILINE
    )
    if match is None or not match[1]:
        raise _Absent("/etc/os-release has no PRETTY_NAME")
    return match[1]


def read_l4t(root: Path) -> str:
    """L4T release, ``R36 (release), REVISION: 4.7`` -> ``36.4.7``.

    The file's BOARD is ``generic`` from R36 on and says nothing about the board.

    Raises:
        _Absent: not a Jetson, or a line that is not understood.
    """
    text = _text(root, "etc/nv_tegra_release")
    match = _L4T.match(text)
    if match is None:
        raise _Absent(f"/etc/nv_tegra_release is not understood: {text.splitlines()[0][:60]!r}")
    return f"{match['major']}.{match['revision']}"


def _governor(root: Path) -> str:
    folder = root / "sys/devices/system/cpu"
    found = set()
    for path in sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_governor")):
        try:
            found.add(_text(root, str(path.relative_to(root))))
        except _Absent:
            continue
    if not found:
        raise _Absent("no readable /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    return ",".join(sorted(found))


def _frequencies(root: Path, name: str) -> list[float]:
    values = read_frequencies(root, name)
    if values is None:
        raise _Absent(f"no readable /sys/devices/system/cpu/cpu*/cpufreq/{name}")
    return values


def _load(root: Path) -> float:
    text = _text(root, "proc/loadavg")
    try:
        return float(text.split()[0])
    except ValueError as err:
        raise _Absent(f"/proc/loadavg is not understood: {text[:60]!r}") from err


def read_packages() -> dict[str, str | None]:
    """Installed versions of the packages that decide about speed; null where not installed."""
    return {name: package_version(*names) for name, names in _PACKAGES.items()}


def package_version(*distributions: str) -> str | None:
    """Version of the first of ``distributions`` that is installed, without importing it."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def read_container(root: Path) -> str:
    """What hints at a container; a container sees the host's load but not always its limits."""
    hints = [f"/{name}" for name in (".dockerenv", "run/.containerenv") if (root / name).exists()]
    try:
        words = "docker|containerd|kubepods|lxc|podman|libpod"
        found = re.search(words, _text(root, "proc/1/cgroup"))
        if found:
            hints.append(f"/proc/1/cgroup names {found[0]}")
    except _Absent:
        pass
    return ", ".join(hints) if hints else "none seen"
