"""Which board, module and JetPack this is, from files below a root.

The module comes from the part numbers in the device tree's ``compatible``, never from the model's
text: a file that says "Orin NX Engineering Reference" was found on a module with 6 cores. JetPack
comes from L4T by a table; a revision that the table does not have stays unknown, since the nearest
would be a guess.

Sources: NVIDIA's JetPack archive (developer.nvidia.com/embedded/jetpack-archive) and, for revisions
that came by apt alone, jetson_stats' and jetson-containers' tables where they agree; the kernel's
``Documentation/devicetree/bindings/arm/tegra.yaml`` and the device trees of Jetson Linux for the
part numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import pydantic

from edgekd.contracts.board import Absent, read_board, read_l4t, read_small
from edgekd.contracts.schema import Document

Family = Literal["jetson", "raspberry-pi", "other"]

#: L4T -> JetPack. JetPack 3 is left out, and so are 36.4.2, 35.6.2 and 38.2.2: tables of other
#: projects contradict each other about them.
JETPACK = {
    "39.2.1": "7.2.1", "39.2.0": "7.2", "38.4.0": "7.1", "38.2.1": "7.0", "38.2.0": "7.0",
    "36.5.2": "6.2.3", "36.5.0": "6.2.2", "36.4.7": "6.2.1", "36.4.4": "6.2.1", "36.4.3": "6.2",
    "36.4.0": "6.1", "36.3.0": "6.0", "36.2.0": "6.0 DP",
    "35.6.1": "5.1.5", "35.6.0": "5.1.4", "35.5.0": "5.1.3", "35.4.1": "5.1.2", "35.3.1": "5.1.1",
    "35.2.1": "5.1", "35.1.0": "5.0.2", "34.1.1": "5.0.1 DP", "34.1.0": "5.0 DP",
    "32.7.6": "4.6.6", "32.7.5": "4.6.5", "32.7.4": "4.6.4", "32.7.3": "4.6.3", "32.7.2": "4.6.2",
    "32.7.1": "4.6.1", "32.6.1": "4.6", "32.5.1": "4.5.1", "32.5.0": "4.5", "32.4.4": "4.4.1",
    "32.4.3": "4.4", "32.4.2": "4.4 DP", "32.3.1": "4.3", "32.2.3": "4.2.3", "32.2.1": "4.2.2",
    "32.2.0": "4.2.1", "32.1.0": "4.2",
}  # fmt: skip

#: part number -> module. AGX Xavier, Xavier NX and the AGX Orin of the first kits have one device
#: tree for several memory sizes, so their names hold none.
MODULES = {
    "p3834-0008": "Jetson T5000",
    "p3767-0000": "Jetson Orin NX 16GB", "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB", "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB (developer kit)",
    "p3701-0000": "Jetson AGX Orin (developer kit)", "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB", "p3701-0008": "Jetson AGX Orin Industrial",
    "p3668-0000": "Jetson Xavier NX (developer kit)", "p3668-0001": "Jetson Xavier NX",
    "p2888-0001": "Jetson AGX Xavier", "p2888-0008": "Jetson AGX Xavier Industrial",
    "p3636-0001": "Jetson TX2 NX", "p3489-0000": "Jetson TX2i", "p3489-0888": "Jetson TX2 4GB",
    "p3310-1000": "Jetson TX2", "p2180-1000": "Jetson TX1",
    "p3448-0000": "Jetson Nano 4GB (developer kit)", "p3448-0002": "Jetson Nano 4GB",
    "p3448-0003": "Jetson Nano 2GB (developer kit)",
}  # fmt: skip
#: part numbers of modules; others in ``compatible`` are of carriers
_MODULE_PARTS = {number[:5] for number in MODULES}
_PART = re.compile(r"p\d{4}-\d{4}")
_T = TypeVar("_T")


class Described(Document):
    """A document whose null fields have their reason in ``absent``."""

    absent: dict[str, str]

    @pydantic.model_validator(mode="after")
    def _reasons(self) -> Described:
        empty = {name for name in type(self).model_fields if getattr(self, name) is None}
        if empty != set(self.absent):
            raise ValueError(
                f"null fields {sorted(empty)} and reasons {sorted(self.absent)} do not agree"
            )
        return self


class Board(Described):
    """A board.

    Attributes:
        name: its model, as the device tree or DMI has it.
        family: by the device tree's ``compatible``, or by L4T being there.
        module: compute module of a Jetson, by part number.
        pi_model: e.g. ``Raspberry Pi 5 Model B Rev 1.0``.
        l4t: NVIDIA's Linux for Tegra release, e.g. ``36.4.7``.
        jetpack: version that the release belongs to, where that is known.
    """

    name: str | None
    family: Family
    module: str | None
    pi_model: str | None
    l4t: str | None
    jetpack: str | None


def identify(root: Path = Path("/")) -> Board:
    """The board whose files are below ``root``."""
    absent: dict[str, str] = {}

    def get(field: str, read: Callable[[], _T]) -> _T | None:
        try:
            return read()
        except Absent as err:
            absent[field] = str(err)
            return None

    try:
        compatible = read_small(root, "proc/device-tree/compatible").splitlines()
        lacks = ""
    except Absent as err:
        compatible, lacks = [], str(err)
    name = get("name", lambda: read_board(root)[0])
    l4t = get("l4t", lambda: find_l4t(root))
    family: Family = "other"
    if any(entry.startswith("raspberrypi,") for entry in compatible):
        family = "raspberry-pi"
    elif l4t is not None or any(entry.startswith("nvidia,tegra") for entry in compatible):
        family = "jetson"
    return Board(
        name=name,
        family=family,
        module=get("module", lambda: _module(family, compatible, lacks)),
        pi_model=get("pi_model", lambda: _pi_model(family, name)),
        l4t=l4t,
        jetpack=get("jetpack", lambda: find_jetpack(l4t)),
        absent=absent,
    )


def _module(family: Family, compatible: list[str], lacks: str) -> str:
    if family != "jetson":
        raise Absent("not a Jetson")
    if lacks:
        raise Absent(lacks)
    numbers = {number for entry in compatible for number in _PART.findall(entry)}
    found = sorted(number for number in numbers if number[:5] in _MODULE_PARTS)
    shown = ", ".join(compatible)[:100]
    if not found:
        raise Absent(f"/proc/device-tree/compatible has no module's part number: {shown}")
    if len(found) > 1:
        raise Absent(f"/proc/device-tree/compatible names several modules: {', '.join(found)}")
    if found[0] not in MODULES:
        raise Absent(f"module {found[0]} is not known to this version of edgekd")
    return MODULES[found[0]]


def _pi_model(family: Family, name: str | None) -> str:
    if family != "raspberry-pi":
        raise Absent("not a Raspberry Pi")
    if name is None:
        raise Absent("/proc/device-tree/model names no board")
    return name


def find_l4t(root: Path) -> str:
    """L4T release by NVIDIA's release file, else by the package that all others need.

    Raises:
        Absent: neither is there.
    """
    try:
        return read_l4t(root)
    except Absent as err:
        reason = err
    try:
        return read_dpkg(root, "nvidia-l4t-core").partition("-")[0]
    except Absent:
        raise reason from None


def find_jetpack(l4t: str | None) -> str:
    """JetPack of an L4T release; ``36.3`` and ``36.3.0`` are one.

    Raises:
        Absent: no release, or one that the table does not have.
    """
    if l4t is None:
        raise Absent("there is no L4T release to tell it by")
    padded = ".".join([*l4t.split("."), "0", "0"][:3]) if l4t.count(".") < 2 else l4t
    if padded not in JETPACK:
        raise Absent(f"L4T {l4t} is not in the table of this version of edgekd")
    return JETPACK[padded]


def read_dpkg(root: Path, *names: str) -> str:
    """Version of the first of some Debian packages that is installed, e.g. ``10.3.0.30-1``.

    Raises:
        Absent: none is, or there is no dpkg.
    """
    place = "var/lib/dpkg/status"
    found: dict[str, str] = {}
    for entry in read_small(root, place).split("\n\n"):
        first, _, rest = entry.lstrip().partition("\n")
        name = first.removeprefix("Package: ")
        if name in names and "\nStatus: install ok installed\n" in f"\n{rest}\n":
            version = re.search(r"^Version: (\S+)", rest, re.MULTILINE)
            if version:
                found[name] = version[1]
    for name in names:
        if name in found:
            return found[name]
    raise Absent(f"/{place} has none of {', '.join(names)} installed")
