"""Georeferenced reading and writing for the runtime."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.imageio import (
    BoolArray,
    Raster,
    UInt8Array,
    cause_text,
    gdal_environment,
    gdal_failures,
    open_quietly,
)
from edgekd.contracts.preprocess import check_pixels
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.contracts.windows import Window
from edgekd.errors import GateError, ImageError, OutputError

_BLOCK_PX = 256


class Source(Protocol):
    """Where the tiler gets pixels from; windows lie inside the scene.

    Attributes:
        height, width: px.
        masked: whether any pixel may be without data; False spares asking.
        block_rows: rows that are stored together; reading multiples of it decodes nothing twice.
    """

    height: int
    width: int
    masked: bool
    block_rows: int

    def read(self, window: Window, out: UInt8Array) -> None:
        """Put the pixels of a window into ``out``, ``(h, w, C)`` uint8."""
        ...

    def read_valid(self, window: Window) -> BoolArray:
        """Which pixels hold data, ``(h, w)`` bool."""
        ...


class ArraySource:
    """An image in memory, ``(H, W, C)`` uint8; every pixel holds data."""

    def __init__(self, image: npt.NDArray[np.generic], channels: int) -> None:
        check_pixels(image, channels)
        self._image = np.asarray(image, dtype=np.uint8)
        self.masked, self.block_rows = False, 1
        self.height, self.width = int(image.shape[0]), int(image.shape[1])
        if self.height == 0 or self.width == 0:
            raise ImageError(f"the image has no pixels (shape {image.shape})")

    def read(self, window: Window, out: UInt8Array) -> None:
        """See :class:`Source`."""
        out[...] = self._image[window.y0 : window.y1, window.x0 : window.x1]

    def read_valid(self, window: Window) -> BoolArray:
        """See :class:`Source`."""
        return np.ones((window.height, window.width), dtype=np.bool_)


class RasterSource:
    """An open raster and the bands to feed.

    Raises:
        ImageError: wrong band count or a pixel type other than 8 bit.
    """

    def __init__(self, raster: Raster, bands: list[int] | None, channels: int) -> None:
        self._raster = raster
        self.bands = raster.choose_bands(bands, channels)
        self.height, self.width = raster.height, raster.width
        self.masked, self.block_rows = raster.masked, raster.block_rows
        if raster.dtypes[self.bands[0] - 1] != "uint8":  # all chosen bands have one type
            corner = raster.read(
                Window(0, 0, min(512, self.height), min(512, self.width)), self.bands
            )
            with _file_named(raster.path):
                check_pixels(corner, channels)

    def read(self, window: Window, out: UInt8Array) -> None:
        """See :class:`Source`."""
        self._raster.read(window, self.bands, out)

    def read_valid(self, window: Window) -> BoolArray:
        """See :class:`Source`."""
        return self._raster.read_valid(window)


@contextlib.contextmanager
def _file_named(path: Path) -> Iterator[None]:
    try:
        yield
    except ImageError as err:
        raise ImageError(f"{path}: {err}") from err


class MapWriter:
    """Writes class rows from top to bottom into a tiled GeoTIFF; see :func:`create_map`."""

    def __init__(
        self, dataset: Any, rasterio: Any, failure: tuple[type[Exception], ...], path: Path
    ) -> None:
        self._dataset, self._rasterio = dataset, rasterio
        self._failure, self._path = failure, path
        self._width, self._height = int(dataset.width), int(dataset.height)
        self._buffer = np.empty((_BLOCK_PX, self._width), dtype=np.uint8)
        self._filled = 0
        self._row = 0
        self.crc32 = 0

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
            count = min(len(rows) - start, _BLOCK_PX - self._filled)
            self._buffer[self._filled : self._filled + count] = rows[start : start + count]
            self._filled += count
            start += count
            if self._filled == _BLOCK_PX:
                self.flush()

    def flush(self) -> None:
        """Write what is buffered."""
        if not self._filled:
            return
        window = self._rasterio.windows.Window(0, self._row, self._width, self._filled)
        try:
            self._dataset.write(self._buffer[: self._filled], 1, window=window)
        except self._failure as err:
            raise OutputError(
                f"{self._path} cannot be written ({cause_text(err)}); is the disk full?"
            ) from err
        self.crc32 = zlib.crc32(self._buffer[: self._filled].data, self.crc32)
        self._row += self._filled
        self._filled = 0

    def finish(self) -> None:
        """Write what is buffered; every row must have come.

        Raises:
            GateError: rows are missing.
        """
        self.flush()
        if self._row != self._height:
            raise GateError(f"{self._path}: {self._row} rows came, the map has {self._height}")


@contextlib.contextmanager
def create_map(
    path: Path,
    height: int,
    width: int,
    classes: list[ClassSpec],
    georeference: Raster | None,
    tags: dict[str, str],
) -> Iterator[MapWriter]:
    """Create a class map that appears at ``path`` only when it is whole.

    Tiled, deflate-compressed 8-bit GeoTIFF with class indices, :data:`MAP_NODATA` as nodata, a
    palette, the class names as tags (``CLASS_NAMES`` as JSON and ``CLASS_<index>`` each), and
    CRS, transform and ground control points of ``georeference``.

    Raises:
        OutputError: another suffix than .tif or .tiff, or the place cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise OutputError(f"the map is a GeoTIFF: give a name that ends in .tif, received {path}")
    if georeference is not None and path.exists() and path.samefile(georeference.path):
        raise OutputError(f"{path} is the input; write the map to another file")
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": height,
        "width": width,
        "nodata": MAP_NODATA,
        "compress": "deflate",
        "zlevel": 1,  # a class map shrinks as well as it needs to, in two thirds of the time
        "num_threads": 2,  # of the compression; the bytes are the same
        "tiled": True,
        "blockxsize": _BLOCK_PX,
        "blockysize": _BLOCK_PX,
        "BIGTIFF": "IF_SAFER",
        "photometric": "palette",
    }
    if georeference is not None:
        profile["crs"] = georeference.crs
        if georeference.transform is not None:
            profile["transform"] = georeference.transform
    with gdal_environment() as rasterio, publish_file(path) as part:
        failure = gdal_failures(rasterio)
        try:
            with open_quietly(rasterio, part, "w", **profile) as dataset:
                palette = dict.fromkeys(range(256), (0, 0, 0, 255))
                palette |= {item.index: (*item.rgb, 255) for item in classes}
                palette[MAP_NODATA] = (0, 0, 0, 0)
                dataset.write_colormap(1, palette)
                dataset.set_band_description(1, "class")
                if georeference is not None and georeference.gcps is not None:
                    dataset.gcps = georeference.gcps
                names = {str(item.index): item.name for item in classes}
                dataset.update_tags(CLASS_NAMES=json.dumps(names, sort_keys=True), **tags)
                dataset.update_tags(1, **{f"CLASS_{key}": name for key, name in names.items()})
                writer = MapWriter(dataset, rasterio, failure, path)
                yield writer
                writer.finish()
            # GDAL does not report that the disk is full when it closes a file
            whole = _crc32(rasterio, part) == writer.crc32
        except failure as err:
            raise OutputError(
                f"{path} cannot be written ({cause_text(err)}); is the disk full?"
            ) from err
        if not whole:
            raise OutputError(f"{path} cannot be written: it reads back differently")


def _crc32(rasterio: Any, path: Path) -> int:
    """CRC-32 of the first band, read back from disk a block row at a time."""
    total = 0
    with open_quietly(rasterio, path) as dataset:
        for row in range(0, dataset.height, _BLOCK_PX):
            count = min(_BLOCK_PX, dataset.height - row)
            window = rasterio.windows.Window(0, row, dataset.width, count)
            total = zlib.crc32(dataset.read(1, window=window), total)
    return total
