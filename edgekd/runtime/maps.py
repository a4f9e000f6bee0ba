"""Georeferenced results as Cloud Optimized GeoTIFF: class maps, confidences, probabilities.

A COG has its overviews in front, so it can only be written when all is known: rows go to plain
GeoTIFFs first, one for each level, which GDAL's COG driver then copies with bounded memory. Thinned
here, while the rows are at hand, a level costs a tenth of what GDAL takes for the mode, and no
second reading. What was written is read back before it gets its name, since GDAL does not report a
full disk when it closes a file.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.imageio import (
    Raster,
    UInt8Array,
    cause_text,
    gdal_environment,
    gdal_failures,
    open_quietly,
)
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.errors import GateError, OutputError

#: blocks of the plain file: narrow, because as many rows are held as wide as the scene
_BLOCK_PX, _BLOCK_ROWS = 256, 64
#: blocks of the COG; what is read back is compared in columns so wide
COG_BLOCK_PX = 512
#: while a map is copied, each of its blocks passes once
COPY_CACHE_BYTES = 8 << 20
#: What decides the bytes of a map is not left to the environment: GDAL takes any of these from
#: there, and looks for no overview beside a file where it may not read the folder.
MAP_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "FALSE",
    "GDAL_TIFF_ENDIANNESS": "LITTLE",
    "GDAL_TIFF_OVR_BLOCKSIZE": str(COG_BLOCK_PX),
    "COMPRESS_OVERVIEW": "DEFLATE",
    "PREDICTOR_OVERVIEW": "1",
    "ZLEVEL_OVERVIEW": "6",
    "PHOTOMETRIC_OVERVIEW": "",
}
#: that compress it; the bytes are the same with any number
_THREADS = "ALL_CPUS"
#: a probability of 1; 255 is no data
SCORE_TOP = 254
#: tag with the classes, ``{"index": "name"}`` as JSON; what a file with several bands is
CLASS_TAG, PRODUCT_TAG, PROBABILITIES = "CLASS_NAMES", "EDGEKD_PRODUCT", "probabilities"


@dataclass(frozen=True)
class Look:
    """What an 8-bit raster says of itself.

    Attributes:
        bands: description of each band.
        thin: rows to those of the next overview.
        palette: value -> RGBA; None is grey.
        scale: what a value is multiplied with; None says nothing.
        smooth: neighbouring values are near each other, so that their differences are stored.
        tags: of the file.
        band_tags: of each band; none where absent.
    """

    bands: tuple[str, ...]
    thin: Callable[[UInt8Array], UInt8Array]
    palette: dict[int, tuple[int, int, int, int]] | None = None
    scale: float | None = None
    smooth: bool = False
    tags: dict[str, str] = field(default_factory=dict)
    band_tags: tuple[dict[str, str], ...] = ()


def class_look(classes: list[ClassSpec], tags: dict[str, str]) -> Look:
    """Palette, the class names as tags (``CLASS_NAMES`` as JSON and ``CLASS_<index>`` each)."""
    palette = dict.fromkeys(range(256), (0, 0, 0, 255))
    palette |= {item.index: (*item.rgb, 255) for item in classes}
    palette[MAP_NODATA] = (0, 0, 0, 0)
    names = {str(item.index): item.name for item in classes}
    return Look(
        bands=("class",),
        thin=thin_classes,
        palette=palette,
        tags={CLASS_TAG: json.dumps(names, sort_keys=True), **tags},
        band_tags=({f"CLASS_{key}": name for key, name in names.items()},),
    )


def score_look(tags: dict[str, str]) -> Look:
    """Confidence of the winning class: value / 254."""
    return Look(bands=("confidence",), thin=thin_scores, scale=1 / SCORE_TOP, tags=tags)


def probability_look(classes: list[ClassSpec], tags: dict[str, str]) -> Look:
    """Probability of each class, value / 254: a band each, which the class's name describes.

    ``CLASS_NAMES`` as in the class map; the band's ``CLASS_INDEX`` is the class's value there.
    """
    names = {str(item.index): item.name for item in classes}
    return Look(
        bands=tuple(item.name for item in classes),
        thin=thin_scores,
        scale=1 / SCORE_TOP,
        smooth=True,
        tags={
            CLASS_TAG: json.dumps(names, sort_keys=True),
            PRODUCT_TAG: PROBABILITIES,
            **tags,
        },
        band_tags=tuple({"CLASS_INDEX": str(item.index)} for item in classes),
    )


def thin_classes(rows: UInt8Array) -> UInt8Array:
    """The most frequent class of each 2 x 2 pixels with data, ``(h, w)`` -> ``(ceil(h / 2),
    ceil(w / 2))``; of equally frequent ones the first, row by row. Nodata where none has data."""
    first, second, third, last = corners = _corners(rows)
    whole = not any((item == MAP_NODATA).any() for item in corners)
    thin: UInt8Array = last.copy()
    for item in (third, second, first):  # the first with data
        np.copyto(thin, item, where=whole or item != MAP_NODATA)
    twice = ((third, third == last), (second, (second == third) | (second == last)),
             (first, (first == second) | (first == third) | (first == last)))  # fmt: skip
    for item, more in twice:  # what is there twice wins over what is not
        np.copyto(thin, item, where=more if whole else more & (item != MAP_NODATA))
    return thin


def thin_scores(rows: UInt8Array) -> UInt8Array:
    """The mean of each 2 x 2 pixels with data, rounded half up; shapes as in thin_classes."""
    corners = _corners(rows)
    total, count = (np.zeros(corners[0].shape, np.uint16) for _ in range(2))
    for item in corners:
        valid = item != MAP_NODATA
        np.add(total, item, out=total, where=valid)
        count += valid
    thin = (total * 2 + count) // np.maximum(count * 2, 1)
    thin[count == 0] = MAP_NODATA
    codes: UInt8Array = thin.astype(np.uint8)
    return codes


def _corners(rows: UInt8Array) -> tuple[UInt8Array, UInt8Array, UInt8Array, UInt8Array]:
    """Upper left, upper right, lower left and lower right of each 2 x 2; nodata beyond the edge."""
    height, width = rows.shape
    if height % 2 or width % 2:
        rows = np.pad(rows, ((0, height % 2), (0, width % 2)), constant_values=MAP_NODATA)
    one, two, three, four = (np.ascontiguousarray(rows[y::2, x::2]) for y in (0, 1) for x in (0, 1))
    return one, two, three, four


def code_scores(confidence: npt.NDArray[np.float32]) -> UInt8Array:
    """Probabilities 0-1 as 0 to :data:`SCORE_TOP`, rounded."""
    scaled = confidence * np.float32(SCORE_TOP)
    codes: UInt8Array = np.rint(scaled, out=scaled).astype(np.uint8)
    return codes


class _Level:
    """A band of the map or of an overview as a plain file: takes rows from top to bottom, and hands
    them thinned to the next level.

    Attributes:
        checksums: CRC-32 of each column of blocks of the COG.
        below: the next overview.
    """

    def __init__(
        self,
        dataset: Any,
        rasterio: Any,
        failure: tuple[type[Exception], ...],
        path: Path,
        thin: Callable[[UInt8Array], UInt8Array],
        band: int,
    ) -> None:
        self._dataset, self._rasterio, self._band = dataset, rasterio, band
        self._failure, self._path, self._thin = failure, path, thin
        self._width, self._height = int(dataset.width), int(dataset.height)
        self._buffer = np.empty((_BLOCK_ROWS, self._width), dtype=np.uint8)
        self._filled = 0
        self._row = 0
        self.checksums = [0] * len(range(0, self._width, COG_BLOCK_PX))
        self.below: _Level | None = None

    def write(self, rows: UInt8Array) -> None:
        """Append rows ``(n, width)`` uint8; whole blocks go to disk.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            GateError: more rows than the map has.
        """
        if self._row + self._filled + len(rows) > self._height:
            raise GateError(f"{self._path}: more rows came than the {self._height} of the map")
        start = 0
        while start < len(rows):
            count = min(len(rows) - start, _BLOCK_ROWS - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[start : start + count]
            self._filled += count
            start += count
            if self._filled == _BLOCK_ROWS:
                self._flush()

    def _flush(self) -> None:
        """Write what is buffered: whole pairs of rows, but at the end."""
        if not self._filled:
            return
        rows = self._buffer[: self._filled]
        window = self._rasterio.windows.Window(0, self._row, self._width, self._filled)
        try:
            self._dataset.write(rows, self._band, window=window)
        except self._failure as err:
            raise OutputError(
                f"{self._path} cannot be written ({cause_text(err)}); is the disk full?"
            ) from err
        for number, start in enumerate(range(0, self._width, COG_BLOCK_PX)):
            part = rows[:, start : start + COG_BLOCK_PX]
            self.checksums[number] = zlib.crc32(part.tobytes(), self.checksums[number])
        if self.below is not None:
            self.below.write(self._thin(rows))
        self._row += self._filled
        self._filled = 0

    def finish(self) -> None:
        """Write what is buffered; every row must have come.

        Raises:
            GateError: rows are missing.
        """
        self._flush()
        if self._row != self._height:
            raise GateError(f"{self._path}: {self._row} rows came, the map has {self._height}")
        if self.below is not None:
            self.below.finish()


class MapWriter:
    """Takes the rows of a map from top to bottom, band after band; see :func:`create_map`."""

    def __init__(
        self,
        rasterio: Any,
        path: Path,
        part: Path,
        plain: Path,
        size: tuple[int, int],
        profile: dict[str, Any],
        look: Look,
        georeference: Raster | None,
    ) -> None:
        self._rasterio, self._path, self._part, self._plain = rasterio, path, part, plain
        self._failure = gdal_failures(rasterio)
        self._files: list[Path] = []
        self._plains: list[Any] = []
        self._look = look
        self._checksums: list[list[list[int]]] = []  # band, level, column of blocks
        self._open = contextlib.ExitStack()
        self._bytes = 0
        for level, (rows, columns) in enumerate(_sizes(*size)):
            # GDAL finds the overview of a file, and that of an overview, by this name
            self._files.append(plain.with_name(plain.name + ".ovr" * level))
            dataset = self._open.enter_context(
                open_quietly(rasterio, self._files[-1], "w", height=rows, width=columns, **profile)
            )
            self._plains.append(dataset)
            if not level:
                _describe(dataset, look, georeference)
        self._levels = self._chain()

    def _chain(self) -> list[_Level]:
        """The levels of the next band, each with the one below."""
        band = len(self._checksums) + 1
        levels = [
            _Level(dataset, self._rasterio, self._failure, self._path, self._look.thin, band)
            for dataset in self._plains
        ]
        for level, below in pairwise(levels):
            level.below = below
        return levels

    def write(self, rows: UInt8Array) -> None:
        """Append rows ``(n, width)`` uint8 of the current band.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            GateError: more rows than the map has.
        """
        self._levels[0].write(rows)

    def next_band(self) -> None:
        """Go on with the first row of the next band.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            GateError: rows of this one are missing.
        """
        self._end_band()
        self._levels = self._chain()

    def _end_band(self) -> None:
        self._levels[0].finish()
        self._checksums.append([level.checksums for level in self._levels])

    def complete(self) -> int:
        """Make the whole file of what was written, and read it back; its bytes. It gets its name
        when the ``with`` block ends.

        Raises:
            OutputError: the disk is full or the file cannot be written.
            GateError: rows, or bands, are missing.
        """
        if self._bytes:
            return self._bytes
        self._end_band()
        if len(self._checksums) != len(self._look.bands):
            raise GateError(
                f"{self._path}: {len(self._checksums)} bands came, the map has "
                f"{len(self._look.bands)}"
            )
        try:
            self._open.close()
            with gdal_environment(cache_bytes=COPY_CACHE_BYTES):
                predictor = "STANDARD" if self._look.smooth else "NO"
                copy_as_cog(self._rasterio, self._plain, self._part, predictor)
                count = _count_levels(self._rasterio, self._part)
                found = [_checksums(self._rasterio, self._part, level) for level in range(count)]
        except self._failure as err:
            raise OutputError(
                f"{self._path} cannot be written ({cause_text(err)}); is the disk full?"
            ) from err
        self._remove()
        if found != [list(level) for level in zip(*self._checksums, strict=True)]:
            raise OutputError(f"{self._path} cannot be written: it reads back differently")
        self._bytes = self._part.stat().st_size
        return self._bytes

    def close(self) -> None:
        """Drop what is no part of the file."""
        with contextlib.suppress(*self._failure):  # of a file that nobody wants any more
            self._open.close()
        self._remove()

    def _remove(self) -> None:
        for file in self._files:
            file.unlink(missing_ok=True)


def require_map_place(path: Path, scene: Path | None) -> None:
    """Raise unless a GeoTIFF can be meant by ``path``.

    Raises:
        OutputError: another suffix than .tif or .tiff, or the input itself.
    """
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"the map is a GeoTIFF: give a name that ends in .tif, received {path}")
    if scene is not None and path.exists() and path.samefile(scene):
        raise OutputError(f"{path} is the input; write the map to another file")


@contextlib.contextmanager
def create_map(
    path: Path,
    height: int,
    width: int,
    look: Look,
    georeference: Raster | None,
    scratch: Path | None = None,
) -> Iterator[MapWriter]:
    """Create an 8-bit COG that appears at ``path`` only when it is whole.

    Tiled, deflate, overviews inside, :data:`MAP_NODATA` as nodata, and CRS, transform and ground
    control points of ``georeference``. The same rows give the same bytes.

    Args:
        scratch: folder for the plain file; beside ``path`` where absent.

    Raises:
        OutputError: another suffix than .tif or .tiff, or the place cannot be written.
    """
    path = Path(path)
    require_map_place(path, None if georeference is None else georeference.path)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": len(look.bands),
        "nodata": MAP_NODATA,
        "compress": "packbits",  # read once: what deflate saves in room it costs in time
        "tiled": True,
        "blockxsize": _BLOCK_PX,
        "blockysize": _BLOCK_ROWS,
        "BIGTIFF": "IF_SAFER",
    }
    if look.palette is not None:
        profile["photometric"] = "palette"
    if len(look.bands) > 1:  # by itself GDAL takes three for colours, and a fourth for alpha
        profile |= {"photometric": "minisblack", "alpha": "unspecified", "interleave": "band"}
    if georeference is not None:
        profile["crs"] = georeference.crs
        if georeference.transform is not None:
            profile["transform"] = georeference.transform
    with gdal_environment(MAP_OPTIONS) as rasterio, publish_file(path) as part:
        plain = part.with_name(part.name + ".plain") if scratch is None else scratch / part.name
        try:
            writer = MapWriter(
                rasterio, path, part, plain, (height, width), profile, look, georeference
            )
        except gdal_failures(rasterio) as err:
            raise OutputError(
                f"{path} cannot be written ({cause_text(err)}); is the disk full?"
            ) from err
        with contextlib.closing(writer):
            yield writer
            writer.complete()


def _sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of the map and of its overviews, down to one block."""
    sizes = [(height, width)]
    while max(sizes[-1]) > COG_BLOCK_PX:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def _describe(dataset: Any, look: Look, georeference: Raster | None) -> None:
    if look.palette is not None:
        dataset.write_colormap(1, look.palette)
    if look.scale is not None:
        dataset.scales = (look.scale,) * len(look.bands)
    for number, description in enumerate(look.bands, start=1):
        dataset.set_band_description(number, description)
    if georeference is not None and georeference.gcps is not None:
        dataset.gcps = georeference.gcps
    dataset.update_tags(**look.tags)
    for number, tags in enumerate(look.band_tags, start=1):
        dataset.update_tags(number, **tags)


def copy_as_cog(rasterio: Any, plain: Path, part: Path, predictor: str, **more: str) -> None:
    """A plain GeoTIFF as a COG, with the overviews that it has, or else GDAL's.

    Args:
        rasterio: the module, inside its environment.
        predictor: what is compressed, see GDAL's driver: ``NO``, ``STANDARD``, ``FLOATING_POINT``.
        more: options of the driver.
    """
    import warnings

    from rasterio.shutil import copy

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        copy(
            plain,
            part,
            driver="COG",
            COMPRESS="DEFLATE",
            LEVEL=6,
            PREDICTOR=predictor,
            OVERVIEW_COMPRESS="DEFLATE",
            OVERVIEW_PREDICTOR=predictor,
            BLOCKSIZE=COG_BLOCK_PX,
            BIGTIFF="IF_SAFER",
            NUM_THREADS=_THREADS,
            **more,
        )


def _count_levels(rasterio: Any, path: Path) -> int:
    with open_quietly(rasterio, path) as dataset:
        return 1 + len(dataset.overviews(1))


def _checksums(rasterio: Any, path: Path, level: int) -> list[list[int]]:
    """CRC-32 of each column of blocks, for each band, read back from disk a block at a time;
    ``level`` 0 is the map, the others its overviews."""
    found: list[list[int]] = []
    options = {"overview_level": level - 1} if level else {}
    with open_quietly(rasterio, path, **options) as dataset:
        step = COG_BLOCK_PX
        for x in range(0, dataset.width, step):
            totals = [0] * dataset.count
            for y in range(0, dataset.height, step):
                size = min(step, dataset.width - x), min(step, dataset.height - y)
                window = rasterio.windows.Window(x, y, *size)
                planes = dataset.read(window=window)  # a block holds all bands
                totals = [zlib.crc32(p.data, n) for p, n in zip(planes, totals, strict=True)]
            found.append(totals)
    return [list(band) for band in zip(*found, strict=True)]
