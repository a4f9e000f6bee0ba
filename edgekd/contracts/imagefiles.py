"""What a file is and what it reads, looked at before GDAL opens it.

GDAL reads 150 formats, some of which are names of places in the network, and a VRT is a list of
whatever GDAL can open. Here the first bytes say the format, and everything that a VRT names, and
what that names in turn, must be an image file on this machine: nothing is fetched, no device or
pipe is waited for, no list refers to itself. The checksums of a PNG are compared as well, since
GDAL returns the rest of a cut one as zeros, without an error.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from edgekd.errors import ImageError

_PNG = b"\x89PNG\r\n\x1a\n"
#: first bytes -> GDAL's name of the format; each was cut at many places and never came back with
#: wrong pixels.
_ACCEPTED = {
    b"II*\0": "GTiff", b"MM\0*": "GTiff", b"II+\0": "GTiff", b"MM\0+": "GTiff",
    _PNG: "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG", b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}  # fmt: skip
#: formats that are told by their name, though not read
_REFUSED = {
    b"EHFA_HEADER_TAG": "HFA", b"\x89HDF": "HDF5", b"CDF": "netCDF", b"NITF": "NITF",
    b"GRIB": "GRIB", b"GIF8": "GIF", b"SIMPLE": "FITS", b"<GDAL_WMS": "WMS", b"SQLite": "SQLite",
}  # fmt: skip
FORMATS = (*dict.fromkeys(_ACCEPTED.values()), "WEBP", "VRT")
#: GDAL looks for a VRT's root in as many first bytes, whatever stands before it
_HEAD_BYTES = 1024
#: files that GDAL opens beside a raster, by itself
_BESIDE = (".msk", ".MSK", ".ovr", ".OVR")
#: a VRT of 50,000 images has about as much
_VRT_MAX_BYTES = 32 << 20
_VRT_MAX_DEPTH = 8
#: images that a VRT comes to through other VRTs, counted as often as they are named
_VRT_MAX_IMAGES = 100_000
#: kinds of VRT whose sources are all named as below; None is the usual one
_VRT_KINDS = {None, "VRTWarpedDataset"}
#: GDAL compares names without case, and takes an attribute where it looks for an element
_SOURCE_NAMES = {
    "sourcefilename", "sourcedataset", "rpc_dem", "dempath", "x_dataset", "y_dataset",
    "overview_file",
}  # fmt: skip
#: what GDAL takes for something else than a file: virtual file systems, services, sub-datasets
_NO_FILE = re.compile(r"/vsi|<|[A-Za-z]\w*:")


def examine(path: Path) -> tuple[str, dict[Path, str]]:
    """GDAL's name of a file's format; all that it reads is an image file here.

    Args:
        path: an image.

    Returns:
        The format, and of a VRT the images that it comes to with theirs.

    Raises:
        ImageError: missing, empty, no plain file, of no accepted format, a damaged PNG, or a VRT
            that reads anything else than accepted files on this machine.
    """
    look = _Look()
    kind = look.file(path, ())
    return kind, look.kinds if kind == "VRT" else {}


class _Look:
    """One examination; a file that is named often is looked at once."""

    def __init__(self) -> None:
        self._images: dict[Path, int] = {}  # file -> images that it comes to
        self.kinds: dict[Path, str] = {}  # of those that are no VRT

    def file(self, path: Path, above: tuple[Path, ...]) -> str:
        """Examine a file that the VRTs ``above`` it name; its format."""
        head = _head(path)
        kind = _format(path, head)
        place = path.resolve()
        if place in above:
            raise ImageError(f"{path} reads itself; nothing can come of it")
        if place not in self._images:
            for suffix in _BESIDE:
                beside = path.with_name(path.name + suffix)
                if beside.exists() and _format(beside, _head(beside)) == "VRT":
                    raise ImageError(f"{beside} is a VRT; expected a mask or overviews as TIFF")
            notes = path.with_name(f"{path.name}.aux.xml")
            if notes.exists() and any(True for _ in _sources(notes, "PAMDataset")):
                raise ImageError(f"{notes} names another file's pixels for {path}; remove it")
            if kind == "PNG":
                _check_png(path)
            if kind != "VRT":
                self.kinds[path] = kind
            self._images[place] = 1 if kind != "VRT" else self._list(path, (*above, place))
        return kind

    def _list(self, path: Path, above: tuple[Path, ...]) -> int:
        if len(above) > _VRT_MAX_DEPTH:
            raise ImageError(
                f"{path} is a VRT in a VRT, {len(above)} deep; expected at most {_VRT_MAX_DEPTH}: "
                f"write it as one image, e.g. gdal_translate {above[0]} scene.tif"
            )
        images = 0
        for source in _sources(path):
            try:
                self.file(source, above)
            except ImageError as err:
                raise ImageError(f"{path} cannot be read: {err}") from err
            images += self._images[source.resolve()]
            if images > _VRT_MAX_IMAGES:
                raise ImageError(
                    f"{path} comes to more than {_VRT_MAX_IMAGES:,} images; write it as one, e.g. "
                    f"gdal_translate {above[0]} scene.tif"
                )
        return images


def _head(path: Path) -> bytes:
    """The first bytes of a plain file."""
    try:
        str(path).encode()
    except UnicodeEncodeError as err:
        raise ImageError(f"the name {str(path)!a} is no UTF-8; rename it") from err
    try:
        if not path.exists():
            raise ImageError(f"{path} does not exist")
        if path.is_dir():
            raise ImageError(f"{path} is a folder; give an image file")
        if not path.is_file():
            raise ImageError(f"{path} is a device or a pipe; give an image file")
        with path.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except (OSError, ValueError) as err:  # a name too long, or with a zero byte
        said = err.strerror if isinstance(err, OSError) else err
        raise ImageError(f"{str(path)[:200]} cannot be read: {said}") from err
    if not head:
        raise ImageError(f"{path} is empty (0 bytes); fetch it again")
    return head


def _format(path: Path, head: bytes) -> str:
    if b"<VRTDataset" in head:  # GDAL asks its VRT driver first
        return "VRT"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for first, name in _ACCEPTED.items():
        if head.startswith(first):
            return name
    for first, name in _REFUSED.items():
        if head.lstrip().startswith(first):
            raise ImageError(
                f"{path} is a {name} file; convert it first, e.g. gdal_translate {path} scene.tif "
                f"(accepted are {', '.join(FORMATS)})"
            )
    raise ImageError(
        f"{path} cannot be opened as an image: it begins as none of {', '.join(FORMATS)}"
    )


def _sources(path: Path, kind: str = "VRTDataset") -> Iterator[Path]:
    """The files that a VRT, or what GDAL notes beside an image, names."""
    if path.stat().st_size > _VRT_MAX_BYTES:
        raise ImageError(f"{path} has more than {_VRT_MAX_BYTES >> 20} MiB, too much for XML")
    try:
        text = path.read_bytes().decode("utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ImageError(f"{path} defines words of its own (DOCTYPE); GDAL writes no such XML")
        root = ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError, ValueError) as err:
        raise ImageError(f"{path} is damaged: it is no XML ({err}); make it again") from err
    if root.tag != kind:
        raise ImageError(f"{path} is damaged: its root is {root.tag[:40]}, expected {kind}")
    for item in root.iter("*"):
        values = {key.lower(): value for key, value in item.attrib.items()}
        way = values.get("subclass")
        if item.tag.lower() == "vrtdataset" and way not in _VRT_KINDS:
            raise ImageError(
                f"{path} is a VRT of the kind {str(way)[:40]}; write it as an image first, e.g. "
                f"gdal_translate {path} scene.tif"
            )
        named = {item.tag.lower(), values.get("name", "").lower(), values.get("key", "").lower()}
        for key, value in values.items():
            if key in _SOURCE_NAMES:
                yield _local(path, value, "0")
        for value in (item.text or "", *values.values()):
            if value.strip().lower().startswith("/vsi"):  # wherever GDAL may look for a name
                _local(path, value, "0")
        if named & _SOURCE_NAMES:
            inner = "" if len(item) else item.text or ""
            yield _local(path, inner, values.get("relativetovrt", "0"))


def _local(vrt: Path, name: str, relative: str) -> Path:
    """A source as GDAL finds it; a link to a VRT stands for the VRT itself."""
    plain = name.isprintable() and name == name.strip() and Path(name).name
    if not plain or _NO_FILE.match(name) or relative not in ("0", "1"):
        raise ImageError(
            f"{vrt} names the source {name[:80]!r}; expected an image file on this machine: fetch "
            "it first and make the VRT of that"
        )
    while vrt.is_symlink():
        vrt = vrt.parent / vrt.readlink()
    return vrt.parent / name if relative == "1" else Path(name)


def _check_png(path: Path) -> None:
    """Raise unless every chunk of a PNG is whole.

    Raises:
        ImageError: the file ends early, or a checksum differs.
    """
    with path.open("rb") as stream:
        stream.seek(len(_PNG))
        while True:
            start = stream.tell()
            head = stream.read(8)
            if len(head) < 8:
                raise ImageError(f"{path} is cut: it ends at byte {start}; fetch it again")
            length, kind = struct.unpack(">I4s", head)
            total, left = zlib.crc32(kind), length
            while left > 0 and (block := stream.read(min(left, 1 << 20))):
                total, left = zlib.crc32(block, total), left - len(block)
            if left or stream.read(4) != struct.pack(">I", total):
                raise ImageError(
                    f"{path} is damaged: the part that starts at byte {start} is cut or changed; "
                    "fetch it again"
                )
            if kind == b"IEND":
                return
