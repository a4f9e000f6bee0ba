"""The machine that a measurement was made on, as far as it can be read without asking anybody.

Sources: the device tree (``/proc/device-tree``), DMI (``/sys/class/dmi/id``), ``/proc/cpuinfo``,
``/proc/meminfo``, ``/etc/os-release``, ``/etc/nv_tegra_release`` and cpufreq (the kernel's
documentation of each), dpkg's list, and the metadata of installed packages (nothing is imported).
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

import edgekd
from edgekd.contracts.board import Absent, read_board, read_small
from edgekd.telemetry.boards import Described, identify, read_dpkg
from edgekd.telemetry.process import read_frequencies
from edgekd.telemetry.state import State, read_state

#: package -> names of the distributions that may bring it, as installed.
_PACKAGES: dict[str, tuple[str, ...]] = {
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "opencv": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "rasterio": ("rasterio",),
}

#: where JetPack's TensorRT is found among dpkg's packages, the newest first
_TENSORRT_DEBS = ("libnvinfer10", "libnvinfer8", "libnvinfer7", "tensorrt")
#: fields that are asked of the machine this runs on, whatever the root
OF_THIS_MACHINE = ("hostname", "arch", "cores_usable", "kernel", "python", "edgekd", "packages")

_T = TypeVar("_T")


class Environment(Described):
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
        module: compute module of a Jetson, by its part number.
        l4t: NVIDIA's Linux for Tegra release, e.g. ``36.4.7``.
        jetpack: version that the release belongs to; a revision that no table knows is not
            guessed.
        tensorrt: version of its Python package, else of JetPack's.
        power_mode: of a Jetson, by name: numbers differ from board to board.
        governor: CPU frequency governors in use, joined with a comma.
        frequency_mhz: current clock per CPU, MHz.
        frequency_max_mhz: highest clock the hardware allows, per CPU, MHz.
        gpu_frequency_mhz, gpu_frequency_max_mhz: the GPU's clock, and the highest that is allowed
            now, MHz.
        fan: what its chips tell, e.g. ``pwmfan pwm1 65 of 255``.
        temperatures_c: by thermal zone.
        load_1min: load average of the last minute when this was read.
        container: what hints at a container, ``none seen`` if nothing does.
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
    module: str | None
    l4t: str | None
    jetpack: str | None
    tensorrt: str | None
    power_mode: str | None
    governor: str | None
    frequency_mhz: list[float] | None
    frequency_max_mhz: list[float] | None
    gpu_frequency_mhz: float | None
    gpu_frequency_max_mhz: float | None
    fan: str | None
    temperatures_c: dict[str, float] | None
    load_1min: float | None
    container: str


def read_environment(root: Path = Path("/"), *, hostname: bool = False) -> Environment:
    """Describe this machine.

    Args:
        root: where the file system begins; for another root the fields of
            :data:`OF_THIS_MACHINE` are still this machine's.
        hostname: whether to record the computer's name.
    """
    known, state = identify(root), read_state(root)
    absent: dict[str, str] = {}

    def get(field: str, read: Callable[[Path], _T]) -> _T | None:
        try:
            return read(root)
        except Absent as err:
            absent[field] = str(err)
            return None

    reasons = {**known.absent, **state.absent}
    for field, name in (("module", "module"), ("l4t", "l4t"), ("jetpack", "jetpack"),
                        ("power_mode", "power_mode"), ("gpu_frequency_mhz", "gpu_mhz"),
                        ("gpu_frequency_max_mhz", "gpu_max_mhz"), ("fan", "fans"),
                        ("temperatures_c", "temperatures_c")):  # fmt: skip
        if name in reasons:
            absent[field] = reasons[name]
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
        module=known.module,
        l4t=known.l4t,
        jetpack=known.jetpack,
        tensorrt=get("tensorrt", _tensorrt),
        power_mode=state.power_mode,
        governor=get("governor", _governor),
        frequency_mhz=get("frequency_mhz", lambda r: _frequencies(r, "scaling_cur_freq")),
        frequency_max_mhz=get("frequency_max_mhz", lambda r: _frequencies(r, "cpuinfo_max_freq")),
        gpu_frequency_mhz=state.gpu_mhz,
        gpu_frequency_max_mhz=state.gpu_max_mhz,
        fan=_fan(state),
        temperatures_c=state.temperatures_c,
        load_1min=get("load_1min", _load),
        container=read_container(root),
        absent=absent,
    )


def _hostname(wanted: bool) -> str:
    if not wanted:
        raise Absent("left out for privacy")
    return socket.gethostname()


def _compatible(root: Path) -> list[str]:
    return read_small(root, "proc/device-tree/compatible").splitlines()


def _cpu_model(root: Path) -> str:
    """``model name`` (x86, some ARM), else the part numbers that ARM kernels print."""
    fields: dict[str, str] = {}
    for line in read_small(root, "proc/cpuinfo").splitlines():
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
    raise Absent("/proc/cpuinfo names no CPU model")


def _cores(root: Path) -> int:
    count = len(re.findall(r"^processor\s*:", read_small(root, "proc/cpuinfo"), re.MULTILINE))
    if not count:
        raise Absent("/proc/cpuinfo lists no processors")
    return count


def _cores_usable(_: Path) -> int:
    if not hasattr(os, "sched_getaffinity"):
        raise Absent("this system does not tell the affinity of a process")
    return len(os.sched_getaffinity(0))


def _cpu_quota(root: Path) -> float:
    """cgroup v2 ``cpu.max``: quota and period in microseconds, or ``max`` for no limit."""
    parts = read_small(root, "sys/fs/cgroup/cpu.max").split()
    if parts[0] == "max":
        raise Absent("no limit is set")
    try:
        return round(int(parts[0]) / int(parts[1]), 3)
    except (ValueError, IndexError, ZeroDivisionError) as err:
        raise Absent(f"/sys/fs/cgroup/cpu.max is not understood: {' '.join(parts)[:60]}") from err


def _memory_mib(root: Path) -> float:
    """``MemTotal`` is in KiB although the file writes kB."""
    match = re.search(r"^MemTotal:\s+(\d+) kB", read_small(root, "proc/meminfo"), re.MULTILINE)
    if match is None:
        raise Absent("/proc/meminfo has no MemTotal")
    return round(int(match[1]) / 1024, 1)


def _os_name(root: Path) -> str:
    match = re.search(
        r"^PRETTY_NAME=[\"']?(.*?)[\"']?$", read_small(root, "etc/os-release"), re.MULTILINE
    )
    if match is None or not match[1]:
        raise Absent("/etc/os-release has no PRETTY_NAME")
    return match[1]


def _governor(root: Path) -> str:
    folder = root / "sys/devices/system/cpu"
    found = set()
    for path in sorted(folder.glob("cpu[0-9]*/cpufreq/scaling_governor")):
        try:
            found.add(read_small(root, str(path.relative_to(root))))
        except Absent:
            continue
    if not found:
        raise Absent("no readable /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor")
    return ",".join(sorted(found))


def _frequencies(root: Path, name: str) -> list[float]:
    values = read_frequencies(root, name)
    if values is None:
        raise Absent(f"no readable /sys/devices/system/cpu/cpu*/cpufreq/{name}")
    return values


def _tensorrt(root: Path) -> str:
    """By the package's metadata on this machine, else by dpkg below ``root``."""
    version = package_version("tensorrt") if root == Path("/") else None
    return version or read_dpkg(root, *_TENSORRT_DEBS)


def _fan(state: State) -> str | None:
    if state.fans is None:
        return None
    units = {"pwm1": " of 255", "cur_pwm": " of 255", "fan1_input": " rpm"}
    return ", ".join(
        f"{name} {value:g}{units.get(name.rpartition(' ')[2], '')}"
        for name, value in state.fans.items()
    )


def _load(root: Path) -> float:
    text = read_small(root, "proc/loadavg")
    try:
        return float(text.split()[0])
    except ValueError as err:
        raise Absent(f"/proc/loadavg is not understood: {text[:60]!r}") from err


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
        found = re.search(words, read_small(root, "proc/1/cgroup"))
        if found:
            hints.append(f"/proc/1/cgroup names {found[0]}")
    except Absent:
        pass
    return ", ".join(hints) if hints else "none seen"
