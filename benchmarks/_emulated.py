"""An Arm computer made of qemu's user mode, a distribution's arm64 Python, and arm64 wheels.

Needs Debian (tried on 12) and no root; nothing of the system is changed: apt gets a state of its
own with arm64 as its architecture. Only one process and its children are emulated, so neither a
container engine nor binfmt is needed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from edgekd.contracts.artifacts import publish_folder, sha256_bytes, write_json
from edgekd.errors import EnvironmentLacksError, InputError

REPOSITORY = Path(__file__).resolve().parent.parent
#: left in a folder that was fetched: what was asked for, and what is in it.
MARKER = "fetched.json"
#: Debian packages; apt adds what they need. rasterio's GDAL wants libexpat1, which python3 brings.
DEBIAN_PACKAGES = ("python3", "libstdc++6")
#: glibc of Debian 12, as uv spells it.
PLATFORM = "aarch64-manylinux_2_36"


class Cpu(NamedTuple):
    """An emulated CPU and what Linux says of it in ``/proc/cpuinfo`` on the board."""

    model: str
    part: str
    variant_revision: tuple[str, str]
    features: str

    @property
    def dot_product(self) -> bool:
        """Whether it has 8-bit dot products."""
        return "asimddp" in self.features.split()

    def write(self, prefix: Path) -> None:
        """Put ``/proc/cpuinfo`` and the list of cores under ``prefix``, where qemu looks first.

        Without them ONNX Runtime sees this computer's and ends while it is imported.
        """
        variant, revision = self.variant_revision
        core = (
            f"BogoMIPS\t: 108.00\nFeatures\t: {self.features}\nCPU implementer\t: 0x41\n"
            f"CPU architecture: 8\nCPU variant\t: {variant}\nCPU part\t: {self.part}\n"
            f"CPU revision\t: {revision}\n\n"
        )
        text = "".join(f"processor\t: {number}\n{core}" for number in range(4))
        files = {f"sys/devices/system/cpu/{n}": "0-3\n" for n in ("possible", "present", "online")}
        for name, content in {"proc/cpuinfo": text, **files}.items():
            (prefix / name).parent.mkdir(parents=True, exist_ok=True)
            (prefix / name).write_text(content, encoding="ascii")


#: target -> its CPU; parts and features as Linux prints them on these boards.
CPUS = {
    "rpi4": Cpu("cortex-a72", "0xd08", ("0x0", "3"), "fp asimd evtstrm crc32 cpuid"),
    "rpi5": Cpu(
        "cortex-a76", "0xd0b", ("0x4", "1"),
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc "
        "dcpop asimddp",
    ),
}  # fmt: skip


def tool(name: str, package: str) -> str:
    """Path of a program, or the sentence that says what to install."""
    found = shutil.which(name)
    if found is None:
        raise EnvironmentLacksError(f"{name} is not installed; apt-get install {package}")
    return found


def uv() -> list[str]:
    """uv, which reads environment markers for the other machine; pip reads them for this one."""
    if importlib.util.find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    found = shutil.which("uv")
    if found is None:
        raise EnvironmentLacksError("uv is not installed; pip install uv")
    return [found]


def quiet(*command: str | Path) -> None:
    """Run a command; its last line is the error where it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        tail = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise EnvironmentLacksError(f"{command[0]} ended with {done.returncode}: {' '.join(tail)}")


def fetch_root(root: Path) -> None:
    """An arm64 Python with the libraries it needs, from the distribution, into ``root``."""
    if (root / MARKER).exists():
        return
    click.echo(f"fetching {', '.join(DEBIAN_PACKAGES)} for arm64 ...", err=True)
    apt, dpkg = tool("apt-get", "apt"), tool("dpkg-deb", "dpkg")
    with tempfile.TemporaryDirectory(prefix="edgekd-apt-") as folder:
        own = Path(folder)
        for name in ("state/lists/partial", "cache/archives/partial"):
            (own / name).mkdir(parents=True)
        (own / "status").touch()  # nothing is installed, so everything needed is downloaded
        sandbox = f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"
        settings = [
            "APT::Architecture=arm64", "APT::Architectures::=arm64", f"Dir::State={own}/state",
            f"Dir::State::status={own}/status", f"Dir::Cache={own}/cache", sandbox,
        ]  # fmt: skip
        options = [word for setting in settings for word in ("-o", setting)]
        quiet(apt, *options, "update")
        quiet(
            apt, *options, "install", "--download-only", "--yes", "--no-install-recommends",
            *DEBIAN_PACKAGES,
        )  # fmt: skip
        archives = sorted((own / "cache/archives").glob("*.deb"))
        root.parent.mkdir(parents=True, exist_ok=True)
        with publish_folder(root, MARKER) as part:
            for archive in archives:
                quiet(dpkg, "-x", archive, part)
            write_json(part / MARKER, [item.stem for item in archives])


def fetch_site(root: Path, site: Path, extras: Sequence[str], more: Sequence[str] = ()) -> None:
    """arm64 wheels for the Python in ``root``, in the versions that are installed here.

    Args:
        root: see :func:`fetch_root`.
        site: where they go; replaced where something else was asked for when it was made.
        extras: of this project.
        more: packages beside it.
    """
    version = arm_python(root).name.removeprefix("python")
    here = {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()}
    # A local version, as torch's "+cpu", exists in no index; nothing that is wanted has one.
    pinned = [f"{name}=={number}" for name, number in sorted(here.items()) if "+" not in number]
    asked = {
        "python": version, "platform": PLATFORM, "extras": list(extras), "more": list(more),
        "pyproject": sha256_bytes((REPOSITORY / "pyproject.toml").read_bytes()), "pinned": pinned,
    }  # fmt: skip
    if (site / MARKER).exists() and json.loads((site / MARKER).read_text())["asked"] == asked:
        return
    click.echo("fetching wheels for arm64 ...", err=True)
    site.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="edgekd-site-") as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text("\n".join(pinned), encoding="utf-8")
        with publish_folder(site, MARKER) as part:
            quiet(
                *uv(), "pip", "install", "--quiet", "--target", part, "--only-binary=:all:",
                "--python-platform", PLATFORM, "--python-version", version, "--no-python-downloads",
                "--constraint", constraints, "--requirement", REPOSITORY / "pyproject.toml",
                *(f"--extra={name}" for name in extras), *more,
            )  # fmt: skip
            write_json(part / MARKER, {"asked": asked, "installed": installed(part)})


def installed(site: Path) -> dict[str, str]:
    """Distribution -> version in a folder of packages."""
    found = importlib.metadata.distributions(path=[str(site)])
    return {item.metadata["Name"]: item.version for item in found}


def arm_python(root: Path) -> Path:
    """The interpreter under ``root``."""
    found = [p for p in root.glob("usr/bin/python3.*") if re.fullmatch(r"python3\.\d+", p.name)]
    if len(found) != 1:
        raise InputError(f"{root} holds {len(found)} of usr/bin/python3.N, expected 1; add --fetch")
    return found[0]


class Emulator(NamedTuple):
    """qemu with the folders of the other architecture."""

    qemu: str
    root: Path
    site: Path

    @classmethod
    def find(cls, root: Path, site: Path) -> Emulator:
        """With the qemu of this computer."""
        qemu = shutil.which("qemu-aarch64") or tool("qemu-aarch64-static", "qemu-user-static")
        return cls(qemu, root.resolve(), site.resolve())

    def interpreter(self, cpu: Cpu, folder: Path) -> Path:
        """A Python of ``cpu``, a script in ``folder``; what it calls itself is the script.

        So ``sys.executable`` starts an emulated Python, too. It runs without ``site``, which would
        add this computer's packages.
        """
        prefix = folder.resolve() / cpu.model
        prefix.mkdir(parents=True)
        cpu.write(prefix)
        for item in self.root.iterdir():
            if item.name not in ("proc", "sys"):
                (prefix / item.name).symlink_to(item)
        script = prefix / "python"
        script.write_text(
            "#!/bin/sh\n"
            f'PYTHONPATH="${{PYTHONPATH:+$PYTHONPATH:}}{self.site}" exec {self.qemu} -0 "$0" '
            f'-cpu {cpu.model} -L {prefix} {arm_python(self.root)} -S "$@"\n'
        )
        script.chmod(0o755)
        return script

    def version(self) -> str:
        """As qemu says it."""
        said = subprocess.run([self.qemu, "--version"], capture_output=True, text=True, check=True)
        return said.stdout.splitlines()[0]


def check_seen(facts: Mapping[str, Any], cpu: Cpu) -> None:
    """Raise unless a process saw an Arm machine with this CPU, in both places that tell.

    Args:
        facts: of ``_arm_child.machine()``.
    """
    seen = tuple(
        facts.get(name)
        for name in ("machine", "cpu_part", "cpuinfo_dot_product", "hwcap_dot_product")
    )
    expected = ("aarch64", cpu.part, cpu.dot_product, cpu.dot_product)
    if seen != expected:
        raise EnvironmentLacksError(f"the emulated process saw {seen}, expected {expected}")
