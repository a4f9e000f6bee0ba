"""Damaged and evil image files, and a child process that opens thousands of them.

A case is a word: ``mutate:NUMBER`` (a base file, changed as the number says) or ``cut:BASE:BYTES``.
The same word gives the same file, so a crash is repeated with

    python -m tests.helpers.image_fuzz mutate:123

The child says each case before it begins it, so that whoever waits for it knows which one it died
of; it dies of a hang by its own watchdog, and of memory by the kernel's limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.control
import rasterio.rpc
import rasterio.shutil

from edgekd.contracts.imageio import Raster, gdal_environment
from edgekd.contracts.windows import Window
from edgekd.errors import CancelledError, EdgeKDError
from tests.helpers.rasters import smooth_image, write_raster

ROOT = Path(__file__).resolve().parents[2]
#: of one file, beside what the process held before; a decoded block is the largest part of it
MOST_MIB = 400
#: CPU time of one file
MOST_S = 5.0
#: wall-clock time after which a case hangs
HANG_S = 60
TILE_PX = 64

# ---------------------------------------------------------------------------------- valid files

_TILED = {"tiled": True, "blockxsize": 16, "blockysize": 32}
_UTM = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6)}
_GREY = {"photometric": "minisblack"}
#: name -> (dtype, bands, options)
_TIFFS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "strips.tif": ("uint8", 3, _UTM),
    "tiles.tif": ("uint8", 3, {**_UTM, **_TILED}),
    "planes.tif": ("uint8", 3, {"interleave": "band", **_TILED}),
    "big.tif": ("uint8", 3, {"BIGTIFF": "YES", **_TILED, **_UTM}),
    "big_strips.tif": ("uint8", 3, {"BIGTIFF": "YES", "blockysize": 4}),
    "motorola.tif": ("uint16", 3, {"ENDIANNESS": "BIG", "compress": "lzw", **_GREY}),
    "deflate16.tif": ("uint16", 3, {"compress": "deflate", "predictor": 2, **_TILED, **_GREY}),
    "float.tif": ("float32", 3, {"compress": "deflate", "predictor": 3, **_TILED, **_GREY}),
    "double.tif": ("float64", 1, {"nodata": float("nan"), **_GREY}),
    "complex.tif": ("complex64", 1, {}),
    "lzw.tif": ("uint8", 3, {"compress": "lzw", "predictor": 2}),
    "zstd.tif": ("uint8", 3, {"compress": "zstd", **_TILED}),
    "packbits.tif": ("uint8", 3, {"compress": "packbits"}),
    "lzma.tif": ("uint8", 3, {"compress": "lzma"}),
    "webp.tif": ("uint8", 3, {"compress": "webp", **_TILED}),
    "lerc.tif": ("uint8", 3, {"compress": "lerc", **_TILED}),
    "jpeg.tif": ("uint8", 3, {"compress": "jpeg", "photometric": "ycbcr", **_TILED}),
    "jpeg_grey.tif": ("uint8", 3, {"compress": "jpeg", "interleave": "band", **_GREY}),
    "alpha.tif": ("uint8", 4, {"alpha": True, **_TILED, **_UTM}),
    "nodata.tif": ("uint8", 3, {"nodata": 0, **_UTM}),
    "one_bit.tif": ("uint8", 1, {"NBITS": 1}),
    "fax.tif": ("uint8", 1, {"NBITS": 1, "compress": "ccittfax4"}),
    "twelve_bits.tif": ("uint16", 1, {"NBITS": 12, "compress": "deflate"}),
    "palette.tif": ("uint8", 1, {"palette": {i: (i, 0, 255 - i, 255) for i in range(256)}}),
}
_OTHERS: dict[str, dict[str, Any]] = {
    "cog.tif": {"driver": "COG", "blocksize": 128, "compress": "deflate"},
    "cog_jpeg.tif": {"driver": "COG", "blocksize": 128, "compress": "jpeg"},
    "a.png": {},
    "a.jpg": {},
    "progressive.jpg": {"PROGRESSIVE": "ON"},
    "a.webp": {"driver": "WEBP"},
    "a.bmp": {"driver": "BMP"},
    "a.jp2": {"driver": "JP2OpenJPEG"},
}
VRTS = ("a.vrt", "warped.vrt")


def make_bases(folder: Path) -> list[str]:
    """Write one valid small file of each kind; returns their names."""
    made = []
    for name, (dtype, bands, options) in _TIFFS.items():
        image = smooth_image(50, 70, bands=bands)
        values = image.astype(dtype)
        if "NBITS" in options:
            values = (image > 127).astype(dtype)
        with contextlib.suppress(rasterio.errors.RasterioError):  # a codec that GDAL lacks here
            write_raster(folder / name, values, **options)
            made.append(name)
    source = folder / "strips.tif"
    with gdal_environment():
        for name, options in _OTHERS.items():
            with contextlib.suppress(rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError):
                rasterio.shutil.copy(source, folder / name, **options)
                made.append(name)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            path = write_raster(folder / "mask.tif", smooth_image(50, 70), compress="deflate")
            with rasterio.open(path, "r+") as data:
                data.write_mask(smooth_image(50, 70)[:, :, 0] > 99)
        made.append("mask.tif")
        made += _georeferenced(folder)
        rasterio.shutil.copy(source, folder / "warped.vrt", driver="VRT")
    for leftover in folder.glob("*.aux.xml"):
        leftover.unlink()
    (folder / "a.vrt").write_text(vrt_text(["strips.tif"] * 3))
    return [*made, *VRTS]


def _georeferenced(folder: Path) -> list[str]:
    """Ground control points, coefficients of a camera, and names of all kinds."""
    point = rasterio.control.GroundControlPoint
    gcps = [point(0, 0, 10, 50), point(0, 20, 11, 50), point(20, 0, 10, 49), point(9, 9, 10, 49)]
    image = smooth_image(50, 70)
    write_raster(folder / "gcps.tif", image, gcps=gcps, crs="EPSG:4326", **_TILED)
    numbers = [0.5] * 20
    rpc = rasterio.rpc.RPC(1, 1, 1, 1, numbers, numbers, 1, 1, 1, 1, numbers, numbers, 1, 1)
    write_raster(folder / "rpc.tif", image, rpcs=rpc)
    path = write_raster(folder / "named.tif", image, **_UTM)
    with rasterio.open(path, "r+") as data:
        data.update_tags(NAME="Wasser ü", TIFFTAG_SOFTWARE="x" * 40)
        data.update_tags(1, AREA="1")
        data.set_band_description(1, "red")
        data.scales = (2.0, 1.0, 1.0)
        data.build_overviews([2, 4])
    return ["gcps.tif", "rpc.tif", "named.tif"]


# ------------------------------------------------------------------------------------- mutations

_EVIL = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 64, 127, 128, 255, 256, 32767,
    32768, 65535, 65536, 1 << 20, (1 << 20) + 16, 1 << 24, (1 << 31) - 16, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 16, (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
]  # fmt: skip
_CODECS = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 32766, 32771, 32773, 32809, 32895, 32946, 34661, 34676, 34677,
    34712, 34887, 34925, 34926, 34933, 34934, 50000, 50001, 50002, 65535,
]  # fmt: skip
#: width, height, bits, compression, photometric, offsets, samples, rows, counts, planes, ...
_TAGS = [
    254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 305, 317, 320, 322, 323, 324,
    325, 330, 338, 339, 347, 530, 532, 33550, 33922, 34264, 34735, 34736, 34737, 42112, 42113,
    50674, 50844, 65000,
]  # fmt: skip
_FLOATS = [float("nan"), float("inf"), float("-inf"), 0.0, 1e308, -1e308, 5e-324, -1.0, 1e20]


class Tiff:
    """The directories of a TIFF, by place; enough of the format to lie in it."""

    def __init__(self, blob: bytes) -> None:
        self.order = ">" if blob[:2] == b"MM" else "<"
        self.big = struct.unpack_from(self.order + "H", blob, 2)[0] == 43
        self.word, self.size = ("Q", 8) if self.big else ("I", 4)
        self.entries: list[int] = []  # place of each entry
        self.next: list[int] = []  # places of pointers to a directory
        place = 8 if self.big else 4
        seen = set()
        while True:
            self.next.append(place)
            (start,) = struct.unpack_from(self.order + self.word, blob, place)
            if start == 0 or start in seen or start > len(blob):
                break
            seen.add(start)
            (count,) = struct.unpack_from(self.order + ("Q" if self.big else "H"), blob, start)
            first = start + (8 if self.big else 2)
            length = 20 if self.big else 12
            if count > len(blob):
                raise struct.error("a change before made the directory longer than the file")
            self.entries += [first + i * length for i in range(count)]
            place = first + count * length

    def put(self, blob: bytearray, place: int, kind: str, value: int) -> None:
        mask = (1 << 8 * struct.calcsize("<" + kind)) - 1
        struct.pack_into(self.order + kind, blob, place, value & mask)

    def value(self, blob: bytes, entry: int) -> int:
        """Place of an entry's values in the file."""
        kind, count = struct.unpack_from(self.order + "H" + self.word, blob, entry + 2)
        width = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 12: 8, 16: 8}.get(kind, 1)
        place = entry + 4 + self.size
        if count * width <= self.size:
            return place
        return int(struct.unpack_from(self.order + self.word, blob, place)[0])


def _evil(rng: random.Random, size: int) -> int:
    near = [size - 1, size, size + 1, size // 2, 8, 16]
    return rng.choice([rng.choice(_EVIL), rng.choice(_EVIL), rng.choice(near), rng.randrange(size)])


def _lie(blob: bytearray, rng: random.Random) -> bytearray:
    """Change one fact in a TIFF's directories."""
    tiff = Tiff(bytes(blob))
    size = len(blob)
    entry = rng.choice(tiff.entries)
    wanted = rng.choice(_TAGS)
    for place in tiff.entries:  # half of the time a fact that matters
        if rng.random() < 0.5 and struct.unpack_from(tiff.order + "H", blob, place)[0] == wanted:
            entry = place
    (tag,) = struct.unpack_from(tiff.order + "H", blob, entry)
    place = entry + 4 + tiff.size  # of the value
    kind = rng.choice("H" if rng.random() < 0.3 else "I" + tiff.word)
    what = rng.randrange(10)
    if what == 0:
        tiff.put(blob, entry, "H", rng.choice(_TAGS))
    elif what == 1:
        tiff.put(blob, entry + 2, "H", rng.choice([*range(20), 65535]))
    elif what == 2:
        tiff.put(blob, entry + 4, tiff.word, _evil(rng, size))
    elif what == 3:
        tiff.put(blob, rng.choice(tiff.next), tiff.word, _evil(rng, size))
    elif what in (4, 5):  # the values where they are, one or all
        inner = tiff.value(bytes(blob), entry)
        if inner + 8 <= size:
            tiff.put(blob, inner + rng.choice([0, 0, 2, 4]), kind, _evil(rng, size - 8))
    elif what == 6:  # floating point
        inner = tiff.value(bytes(blob), entry) + 8 * rng.randrange(6)
        if inner + 8 <= size:
            struct.pack_into(tiff.order + "d", blob, inner, rng.choice(_FLOATS))
    elif what == 7:  # a text, or numbers, of noise
        inner = tiff.value(bytes(blob), entry)
        for index in range(inner, min(inner + rng.randrange(1, 40), size)):
            blob[index] = rng.randrange(256)
    elif tag == 259:
        tiff.put(blob, place, "H", rng.choice(_CODECS))
    else:
        tiff.put(blob, place, kind, _evil(rng, size))
    return blob


def _flip(blob: bytearray, rng: random.Random) -> bytearray:
    """A few bytes, in what comes first or anywhere."""
    most = len(blob) if rng.random() < 0.3 else min(len(blob), 1200)
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(most)
        blob[place] = rng.choice(
            [0, 255, blob[place] ^ (1 << rng.randrange(8)), rng.randrange(256)]
        )
    return blob


def _cut(blob: bytearray, rng: random.Random) -> bytearray:
    return blob[: rng.randrange(1, len(blob))]


def _swap(blob: bytearray, rng: random.Random) -> bytearray:
    """A part over another part: tables that overlap, structures where none should be."""
    length = rng.randrange(1, 200)
    source, target = rng.randrange(len(blob)), rng.randrange(len(blob))
    part = blob[source : source + length]
    blob[target : target + len(part)] = part
    return blob


def _png_lie(blob: bytearray, rng: random.Random) -> bytearray:
    """Change a chunk and mend its checksum, so that a decoder believes it."""
    place, chunks = 8, []
    while place + 12 <= len(blob):
        (length,) = struct.unpack_from(">I", blob, place)
        chunks.append((place, length))
        place += 12 + length
    place, length = chunks[0] if rng.random() < 0.6 else rng.choice(chunks)
    if place == 8 and rng.random() < 0.7:
        struct.pack_into(">I", blob, 16 + 4 * rng.randrange(2), _evil(rng, 1000) & 0xFFFFFFFF)
        if rng.random() < 0.5:
            blob[24 + rng.randrange(5)] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 255])
    elif length:
        blob[place + 8 + rng.randrange(length)] = rng.randrange(256)
    struct.pack_into(
        ">I", blob, place + 8 + length, zlib.crc32(bytes(blob[place + 4 : place + 8 + length]))
    )
    return blob


def _jpeg_lie(blob: bytearray, rng: random.Random) -> bytearray:
    """Other sizes, samplings or lengths in a JPEG's headers."""
    places = [found.start() for found in re.finditer(rb"\xff[\xc0-\xfe]", bytes(blob))]
    place = rng.choice(places[: max(1, min(len(places), 16))])
    inner = place + rng.choice([1, 2, 3, 5, 7, 9, 10, 11, 12])
    if inner + 2 <= len(blob):
        struct.pack_into(">H", blob, inner, _evil(rng, 1000) & 0xFFFF)
    return blob


def vrt_text(sources: Sequence[str], width: int = 70, height: int = 50, more: str = "") -> str:
    bands = [
        f'<VRTRasterBand dataType="Byte" band="{number}"><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">{name}</SourceFilename>'
        f'<SourceBand>{number}</SourceBand><SrcRect xOff="0" yOff="0" xSize="70" ySize="50"/>'
        f'<DstRect xOff="0" yOff="0" xSize="70" ySize="50"/></SimpleSource></VRTRasterBand>'
        for number, name in enumerate(sources, start=1)
    ]
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>EPSG:32617</SRS>'
        f"<GeoTransform>5e5, 0.5, 0, 4e6, 0, -0.5</GeoTransform>{more}{''.join(bands)}</VRTDataset>"
    )


def evil_sources(port: int) -> list[str]:
    """What a VRT must not be made to read: the network, itself, what is no file."""
    address = f"http://127.0.0.1:{port}/x.tif"
    service = f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}</ServerUrl></Service></GDAL_WMS>'
    escaped = service.replace("<", "&lt;").replace('"', "&quot;")
    return [
        f"/vsicurl/{address}", f"/vsicurl?url={address}", f"/vsicurl_streaming/{address}", address,
        f"/vsizip//vsicurl/{address}", f"/vsizip/{{/vsicurl/{address}}}/x.tif",
        f"/vsisubfile/0_100,/vsicurl/{address}", f"/vsicached?file=/vsicurl/{address}",
        f"vrt:///vsicurl/{address}", f"GTIFF_DIR:1:/vsicurl/{address}", f"WMS:{address}",
        f"WMTS:{address}", f"WCS:{address}", f"PLMOSAIC:{address}", escaped,
        f"ZARR:/vsicurl/{address}", f"STACIT:{address}", f"/vsis3/{address}", f"VSICURL:{address}",
        f"DERIVED_SUBDATASET:AMPLITUDE:/vsicurl/{address}", f"vrt://{address}?bands=1",
        "a.vrt", "./a.vrt", "case.vrt", "../case.vrt", "/dev/zero", "/dev/stdin", "/vsistdin/",
        "/proc/self/mem", "..", "", " ", "/etc/passwd", "absent.tif", "strips.tif" * 100,
        "GTIFF_DIR:1:strips.tif", "GTIFF_DIR:9:strips.tif", "vrt://strips.tif?bands=3,2,1",
        "fifo", "/vsimem/x.tif", "/vsisparse/strips.tif", "/vsigzip/strips.tif",
    ]  # fmt: skip


def _vrt_lie(text: str, rng: random.Random, port: int) -> str:
    what = rng.randrange(8)
    if what <= 2:
        return re.sub(r">[^<>]*</SourceFilename>",
                      lambda _: f">{rng.choice(evil_sources(port))}</SourceFilename>",
                      text, count=rng.choice([1, 3]))  # fmt: skip
    numbers = list(re.finditer(r'(?<=")-?[0-9.]+(?=")|(?<=>)[0-9]+(?=<)', text))
    if what <= 5 and numbers:
        found = rng.choice(numbers)
        new = rng.choice([str(rng.choice(_EVIL)), "-1", "nan", "1e308", "", "x", "-2147483648"])
        return text[: found.start()] + new + text[found.end() :]
    tags = list(re.finditer(r"<[^>]*>", text))
    found = rng.choice(tags)
    if what == 6:
        return text[: found.start()] + text[found.end() :]
    other = rng.choice(tags).group()
    extra = rng.choice([
        other, found.group() * 3, "<MaskBand>", "<Overview>", '<ColorInterp>Alpha</ColorInterp>',
        "<NoDataValue>nan</NoDataValue>", "<NoDataValue>1e400</NoDataValue>",
        "<BlockXSize>2147483647</BlockXSize><BlockYSize>2147483647</BlockYSize>",
        '<VRTRasterBand dataType="Byte" subClass="VRTRawRasterBand"><SourceFilename>/etc/passwd'
        "</SourceFilename></VRTRasterBand>",
        '<VRTRasterBand dataType="CFloat64" band="9"/>',
        '<VRTRasterBand dataType="Byte" subClass="VRTDerivedRasterBand"><PixelFunctionLanguage>'
        "Python</PixelFunctionLanguage><PixelFunctionType>x</PixelFunctionType></VRTRasterBand>",
        "<Metadata><MDI key='\xff'>\x01</MDI></Metadata>", "<SRS>EPSG:1</SRS>",
        "<SRS>GARBAGE</SRS>",
    ])  # fmt: skip
    return text[: found.start()] + extra + text[found.start() :]


def _work(until_s: float) -> None:
    while time.process_time() < until_s:
        pass


#: cases that show that the child sees what it is there to see
BREAKERS: dict[str, Callable[[], Any]] = {
    "abort": os.abort,
    "hang": lambda: time.sleep(3600),
    "eat": lambda: np.ones((MOST_MIB + 100) << 20, np.uint8),
    "work": lambda: _work(time.process_time() + 1.0),
    "raise": lambda: [][0],
}


def case_bytes(folder: Path, names: Sequence[str], case: str, port: int) -> tuple[str, bytes]:
    """Suffix and content of a case; ``folder`` holds the valid files ``names``."""
    kind, _, rest = case.partition(":")
    if kind == "cut":
        name, _, count = rest.rpartition(":")
        return Path(name).suffix, (folder / name).read_bytes()[: int(count)]
    rng = random.Random(case)
    name = rng.choice([*names, *VRTS, *VRTS])
    blob = bytearray((folder / name).read_bytes())
    suffix = Path(name).suffix
    if suffix == ".vrt":
        text = blob.decode()
        for _ in range(rng.choice([1, 1, 2, 3])):
            text = _vrt_lie(text, rng, port)
        blob = bytearray(text.encode("utf-8", "surrogateescape"))
        return suffix, bytes(_flip(blob, rng) if rng.random() < 0.1 else blob)
    special: dict[str, Callable[[bytearray, random.Random], bytearray]] = {
        ".tif": _lie, ".png": _png_lie, ".jpg": _jpeg_lie,
    }  # fmt: skip
    usual = special.get(suffix, _flip)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 5])):
        if len(blob) < 60:
            break
        change = rng.choices([usual, _flip, _swap, _cut], [12, 5, 1, 1])[0]
        # a change before may have made it another format
        with contextlib.suppress(struct.error, IndexError):
            blob = change(blob, rng)
    return suffix, bytes(blob)


# ------------------------------------------------------------------------------------- exercise


def exercise(path: Path, number: int, session: Any, out: Path) -> None:
    """Everything that edgekd does with an image; raises EdgeKDError where it is refused."""
    nodata: Any = ("auto", "declared", "none", 0)[number % 4]
    with Raster(path, nodata) as raster:
        raster.row_areas_m2()
        bands = raster.choose_bands([1 + (k % raster.count) for k in range(3)], 3)
        height, width = raster.height, raster.width
        small = height * width <= 1 << 20
        for y, x in ((0, 0), (height // 2, width // 2), (max(height - 40, 0), max(width - 40, 0))):
            window = Window(y, x, min(y + 40, height), min(x + 40, width))
            raster.read(window, bands)
            raster.read_valid(window)
        raster.thumbnail(bands, 32)
        if small and len(set(raster.dtypes)) == 1 and raster.count <= 8:
            raster.read_all()
        scale = None if raster.dtype == "uint8" else [(0.0, 255.0)]
    if number % 4 == 0 and width <= 1 << 15:
        windows = [0]
        kind = "p.gpkg" if number % 8 else "p.geojson"

        def enough() -> bool:
            windows[0] += 1
            return not small and windows[0] > 3

        with contextlib.suppress(CancelledError):
            session.run_scene(
                path, out / "m.tif", bands, nodata=nodata, scale=scale, cancel=enough,
                scores=out / "c.tif", polygons=out / kind, summary=out / "s.json", restart=True,
            )  # fmt: skip
        json.loads((out / "s.json").read_text(), parse_constant=_no_constant) if small else None


def _no_constant(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def _status_mib(key: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"{key} is not in /proc/self/status")


def child(
    cases: Sequence[str],
    bases: Path,
    bundle: Path,
    port: int,
    hang_s: float,
    most_s: float,
    verbose: bool,
) -> int:
    """Run cases; one line of JSON on stdout for each that is not as it should be."""
    from edgekd.runtime.session import load

    warnings.simplefilter("ignore")
    names = sorted(item.name for item in bases.iterdir() if item.is_file())
    limit = (8 << 30, 8 << 30)
    resource.setrlimit(resource.RLIMIT_AS, limit)
    with tempfile.TemporaryDirectory() as name, load(bundle, streams=1) as session:
        out = Path(name)
        for item in bases.iterdir():
            (out / item.name).symlink_to(item)
        os.mkfifo(out / "fifo")
        for number, case in enumerate(["", *cases]):
            if not case:  # libraries are loaded before anything is measured
                exercise(bases / "strips.tif", 0, session, out)
                continue
            print(case, file=sys.stderr, flush=True)
            suffix, blob = ("", b"") if case in BREAKERS else case_bytes(bases, names, case, port)
            path = out / f"case{suffix}"
            path.write_bytes(blob)
            gc.collect() if number % 50 == 0 else None
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before, start = _status_mib("VmRSS"), time.process_time()
            faulthandler.dump_traceback_later(hang_s, exit=True)
            said = ""
            try:
                if case in BREAKERS:
                    BREAKERS[case]()
                else:
                    exercise(path, number, session, out)
                print("opened", file=sys.stderr, flush=True)
            except EdgeKDError as err:
                print("refused", file=sys.stderr, flush=True)
                if "\n" in str(err):
                    said = f"more than one line: {err}"
                if verbose:
                    print(f"{type(err).__name__}: {err}")
            except Exception:  # noqa: BLE001 - whatever it is, it is a finding
                said = traceback.format_exc()
            faulthandler.cancel_dump_traceback_later()
            used_s, grown = time.process_time() - start, _status_mib("VmHWM") - before
            if used_s > most_s:
                said += f"{used_s:.1f} s of CPU"
            if grown > MOST_MIB:
                said += f"{grown:.0f} MiB"
            if said:
                print(json.dumps({"case": case, "said": said}), flush=True)
            if verbose:
                print(f"{used_s:.3f} s, {grown:.0f} MiB, {len(blob)} bytes")
    return 0


@dataclass
class Tally:
    """What came of a run."""

    opened: int = 0
    refused: int = 0
    findings: dict[str, str] = field(default_factory=dict)


def run_cases(
    cases: Sequence[str],
    bases: Path,
    bundle: Path,
    port: int,
    hang_s: float = HANG_S,
    most_s: float = MOST_S,
) -> Tally:
    """Run cases in children, one after the other; whoever dies is named and left out.

    Args:
        cases: words.
        bases: folder of :func:`make_bases`.
        bundle: that is run over what opens; tile of 64 px, three classes.
        port: of this machine, that VRTs name as a place in the network.
        hang_s: wall-clock time of a case, s.
        most_s: CPU time of a case, s.
    """
    tally, left, known = Tally(), list(cases), set(cases)
    while left:
        done = subprocess.run(
            [sys.executable, "-m", "tests.helpers.image_fuzz", "--bases", str(bases), str(bundle),
             str(port), str(hang_s), str(most_s)],
            input=json.dumps(left), capture_output=True, text=True, cwd=ROOT, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, errors="replace",
        )  # fmt: skip
        said = [line for line in done.stderr.splitlines() if line in known]
        for line in done.stdout.splitlines():
            value = json.loads(line)
            tally.findings[value["case"]] = value["said"]
        words = done.stderr.splitlines()
        tally.opened += words.count("opened")
        tally.refused += words.count("refused")
        if done.returncode == 0:
            break
        if not said:
            raise AssertionError(f"the child did not begin: {done.stderr[-2000:]}")
        tally.findings[said[-1]] = f"ended with {done.returncode}: {done.stderr[-1500:]}"
        left = left[left.index(said[-1]) + 1 :]
    return tally


def main() -> int:
    if "--bases" in sys.argv:
        bases, bundle, port, hang_s, most_s = sys.argv[2:7]
        cases = json.load(sys.stdin)
        return child(
            cases, Path(bases), Path(bundle), int(port), float(hang_s), float(most_s), False
        )
    from tests.helpers.bundles import make_bundle

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bases"
        folder.mkdir()
        make_bases(folder)
        bundle = make_bundle(Path(name) / "bundle", tile_px=TILE_PX, classes=3)
        return child(sys.argv[1:], folder, bundle, 9, HANG_S, MOST_S, True)


if __name__ == "__main__":
    sys.exit(main())
