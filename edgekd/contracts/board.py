"""What board this is: device tree, DMI and NVIDIA's release file."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath

_L4T = re.compile(r"#\s*R(?P<major>\d+)\s*\(release\),\s*REVISION:\s*(?P<revision>\d+(?:\.\d+)*)")


class Absent(Exception):
    """A value that is not there; the text is the reason."""


#: links that a path may pass through, as Linux has it
_LINKS = 40


def inside(root: Path, name: str) -> Path:
    """``root/name`` where a link to an absolute place, or above the root, stays below ``root``.

    ``/etc/nvpmodel.conf`` is such a link; followed plainly, another root would be described by
    files of this machine.

    Raises:
        Absent: links that lead in a circle.
    """
    if root == Path("/"):
        return root / name
    place, ahead, links = root, list(reversed(PurePosixPath(name).parts)), 0
    while ahead:
        part = ahead.pop()
        if part in ("/", ".."):
            place = root if part == "/" or place == root else place.parent
            continue
        step = place / part
        if not step.is_symlink():
            place = step
            continue
        links += 1
        if links > _LINKS:
            raise Absent(f"/{name} is a circle of links")
        ahead += reversed(step.readlink().parts)
    return place


def find_program(root: Path, name: str) -> str | None:
    """A program on PATH, of another root the one in its ``/usr/bin``; None if there is none."""
    if root == Path("/"):
        return shutil.which(name)
    place = root / "usr" / "bin" / name
    return str(place) if os.access(place, os.X_OK) else None


def read_small(root: Path, name: str) -> str:
    """A small file of the pseudo file systems; NUL bytes (device tree) become line ends."""
    try:
        data = inside(root, name).read_bytes()
    except FileNotFoundError as err:
        raise Absent(f"/{name} does not exist") from err
    except OSError as err:
        raise Absent(f"/{name} cannot be read: {err.strerror}") from err
    text = data.decode("utf-8", errors="replace").replace("\0", "\n").strip()
    if not text:
        raise Absent(f"/{name} is empty")
    return text


def read_board(root: Path) -> tuple[str, str]:
    """Model of the board and the file that says so: device tree, else DMI.

    Raises:
        Absent: neither is there (e.g. inside a virtual machine without DMI).
    """
    name = "proc/device-tree/model"
    try:
        return read_small(root, name).splitlines()[0].strip(), f"/{name}"
    except Absent:
        pass
    parts = []
    for part in ("sys_vendor", "product_name"):
        try:
            parts.append(read_small(root, f"sys/class/dmi/id/{part}").splitlines()[0].strip())
        except Absent:
            continue
    if not parts:
        raise Absent("neither /proc/device-tree/model nor /sys/class/dmi/id names a board")
    return " ".join(parts), "/sys/class/dmi/id"


def read_l4t(root: Path) -> str:
    """L4T release, ``R36 (release), REVISION: 4.7`` -> ``36.4.7``.

    The file's BOARD is ``generic`` from R36 on and says nothing about the board.

    Raises:
        Absent: not a Jetson, or a line that is not understood.
    """
    text = read_small(root, "etc/nv_tegra_release")
    match = _L4T.match(text)
    if match is None:
        raise Absent(f"/etc/nv_tegra_release is not understood: {text.splitlines()[0][:60]!r}")
    return f"{match['major']}.{match['revision']}"
