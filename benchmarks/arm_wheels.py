"""Does every dependency of every image resolve for 64-bit Arm? ``make check-wheels``.

    pip install uv
    python benchmarks/arm_wheels.py [--python 3.10 ...] [--write]

For each Dockerfile (its ``EXTRAS`` and ``NUMPY``, on the glibc of its base image) and each Python
that may be there, uv resolves ``pyproject.toml`` for Linux on aarch64, and every wheel that it
takes is looked at once more here: does its file name fit that Python and that glibc? Nothing is
downloaded but metadata. Ends with 1 where something does not resolve, and names it.

pip is not asked: with ``--platform`` and ``--python-version`` it chooses wheels for the other
machine but reads environment markers (``platform_machine``, ``python_version``) for its own.

Not resolved here: TensorRT on a Jetson, which JetPack and the base image bring. pycuda has no
wheels at all and is compiled on the board (``docker/runtime-jetson.Dockerfile``).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
from _emulated import REPOSITORY, uv
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import parse_wheel_filename

from edgekd.contracts.artifacts import write_json
from edgekd.errors import EdgeKDError

RECORD = REPOSITORY / "benchmarks" / "results" / "arm_wheels.json"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


class Base(NamedTuple):
    """What an image stands on: glibc, and the Pythons that there may be."""

    glibc: tuple[int, int]
    pythons: tuple[str, ...] = PYTHONS


#: Debian 12 has glibc 2.36, Ubuntu 22.04 of JetPack 6 has 2.35 and Python 3.10; JetPack 7 has 3.12.
BASES = {
    "runtime-rpi": Base((2, 36)),
    "runtime-jetson": Base((2, 35), PYTHONS[:3]),
    "deploy": Base((2, 36)),
    "train": Base((2, 36)),
}
#: what has no wheels, and where it is compiled.
FROM_SOURCE = {"pycuda": "compiled against CUDA's headers: on the board, or in the first stage"}


class Resolved(NamedTuple):
    """One package for one Python: ``wheel`` is its file, or empty where it comes from source."""

    name: str
    version: str
    wheel: str


def build_arguments(image: str) -> dict[str, str]:
    """``ARG`` -> default in a Dockerfile."""
    text = (REPOSITORY / "docker" / f"{image}.Dockerfile").read_text(encoding="utf-8")
    found = re.findall(r"^ARG (\w+)=(.*)$", text, flags=re.MULTILINE)
    return {name: value.strip().strip('"') for name, value in found}


def fitting_tags(python: str, glibc: tuple[int, int]) -> set[Tag]:
    """Tags of the wheels that this Python takes on Linux, aarch64, with this glibc."""
    version = tuple(int(part) for part in python.split("."))
    name = f"cp{python.replace('.', '')}"
    major, newest = glibc
    platforms = [f"manylinux_{major}_{minor}_aarch64" for minor in range(newest, 16, -1)]
    platforms += ["manylinux2014_aarch64", "linux_aarch64"]
    return {
        *cpython_tags(python_version=version, abis=[name], platforms=platforms),
        *compatible_tags(python_version=version, interpreter=name, platforms=platforms),
    }


def read_lock(text: str) -> list[Resolved]:
    """Packages of a ``pylock.toml`` that uv wrote for one platform."""
    found = []
    for block in re.split(r"^\[\[packages\]\]$", text, flags=re.MULTILINE)[1:]:
        name = re.search(r'^name = "(.+)"$', block, flags=re.MULTILINE)
        version = re.search(r'^version = "(.+)"$', block, flags=re.MULTILINE)
        if name is None or version is None:
            raise ValueError(f"not understood in the lock file: {block.strip()[:80]!r}")
        wheels = re.findall(r'"[^"]*/([^"/]+\.whl)"', block)
        found.append(Resolved(name[1], version[1], wheels[0] if wheels else ""))
    return found


def faults(packages: Sequence[Resolved], tags: set[Tag]) -> list[str]:
    """What would not install there: no wheel, or a wheel for another machine."""
    said = []
    for item in packages:
        if not item.wheel:
            if item.name not in FROM_SOURCE:
                said.append(f"{item.name} {item.version} has no wheel")
        elif not parse_wheel_filename(item.wheel)[3] & tags:
            said.append(f"{item.wheel} does not fit")
    return said


def resolve(
    requirements: Path, extras: Sequence[str], more: Sequence[str], python: str,
    glibc: tuple[int, int],
) -> tuple[list[Resolved], str]:  # fmt: skip
    """The packages, and why there are none.

    Args:
        requirements: a ``pyproject.toml`` or a list of requirements.
        extras: of the project in it.
        more: further requirements.
        python: as ``3.10``.
        glibc: of the system.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-wheels-") as folder:
        added = Path(folder) / "more.in"
        added.write_text("\n".join(more), encoding="utf-8")
        done = subprocess.run(
            [*uv(), "pip", "compile", str(requirements), str(added), "--quiet",
             "--no-header", "--format=pylock.toml", "--no-python-downloads",
             f"--python-platform=aarch64-manylinux_{glibc[0]}_{glibc[1]}",
             f"--python-version={python}", "--only-binary=:all:",
             *(f"--no-binary={name}" for name in FROM_SOURCE),
             *(f"--extra={name}" for name in extras)],
            capture_output=True, text=True, cwd=folder,
        )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines()]
        return [], " ".join(line for line in lines if line and not line.startswith("warning"))
    return read_lock(done.stdout), ""


def short(wheel: str) -> str:
    """The part of a wheel's name that says where it runs."""
    if not wheel:
        return "source"
    parts = wheel.removesuffix(".whl").split("-")[-3:]
    return "any" if parts[-1] == "any" else "-".join([parts[0], parts[-1].split(".")[-1]])


@click.command()
@click.option("--python", "pythons", multiple=True, default=PYTHONS, show_default=True)
@click.option("--image", "images", multiple=True, type=click.Choice(list(BASES)))
@click.option("--write", is_flag=True, help="Write benchmarks/results/.")
def main(pythons: tuple[str, ...], images: tuple[str, ...], write: bool) -> None:
    """Resolve, print a table per image, and end with 1 where something does not resolve."""
    record: dict[str, Any] = {}
    passed = True
    try:
        for image in images or BASES:
            given = build_arguments(image)
            extras = given["EXTRAS"].split(",")
            more = [given["NUMPY"]] if "NUMPY" in given else []
            glibc = BASES[image].glibc
            asked = [python for python in BASES[image].pythons if python in pythons]
            click.echo(f"{image}: {given['EXTRAS']} {' '.join(more)}, glibc {glibc[0]}.{glibc[1]}")
            table: dict[str, dict[str, str]] = {}
            said: dict[str, list[str]] = {}
            for python in asked:
                packages, why = resolve(
                    REPOSITORY / "pyproject.toml", extras, more, python, glibc
                )  # fmt: skip
                said[python] = [why] if why else faults(packages, fitting_tags(python, glibc))
                for item in packages:
                    table.setdefault(item.name, {})[python] = f"{item.version} {short(item.wheel)}"
            width = max((len(cell) for row in table.values() for cell in row.values()), default=0)
            for name, row in sorted(table.items()):
                cells = (row.get(python, "-").ljust(width) for python in asked)
                click.echo(f"  {name:34s} {'  '.join(cells)}".rstrip())
            for python in asked:
                verdict = "; ".join(said[python]) or "every one resolves"
                click.echo(f"  Python {python}: {verdict}")
                passed &= not said[python]
            source = sorted(set(table) & set(FROM_SOURCE))
            record[image] = {
                "extras": extras, "more": more, "glibc": f"{glibc[0]}.{glibc[1]}", "pythons": asked,
                "packages": table, "faults": {k: v for k, v in said.items() if v},
                "from_source": {name: FROM_SOURCE[name] for name in source},
            }  # fmt: skip
    except EdgeKDError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)
    click.echo(f"every dependency for aarch64: {'ok' if passed else 'FAILED'}")
    if write:
        said_by = subprocess.run([*uv(), "--version"], capture_output=True, text=True, check=True)
        write_json(RECORD, {
            "question": "does every dependency of every image resolve for aarch64?",
            "command": "make check-wheels ARM_ARGS=--write",
            "resolver": said_by.stdout.split(" (")[0].strip(), "images": record, "passed": passed,
        })  # fmt: skip
        click.echo(f"written: {RECORD.relative_to(REPOSITORY)}", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
