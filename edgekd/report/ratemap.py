"""A georeferenced map of numbers: a float32 COG that is written by blocks and appears whole."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.imageio import (
    Raster,
    cause_text,
    gdal_environment,
    gdal_failures,
    open_quietly,
)
from edgekd.contracts.windows import Window
from edgekd.errors import OutputError
from edgekd.runtime.maps import COG_BLOCK_PX, COPY_CACHE_BYTES, MAP_OPTIONS, copy_as_cog

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Quantity:
    """What the numbers are.

    Attributes:
        description: of the band.
        unit: of the band.
        tags: of the file.
    """

    description: str
    unit: str
    tags: dict[str, str] = field(default_factory=dict)


class RateWriter:
    """Takes a map block by block; see :func:`create_rate_map`."""

    def __init__(self, rasterio: Any, path: Path, dataset: Any) -> None:
        self._rasterio, self._path, self._dataset = rasterio, path, dataset
        self._failure = gdal_failures(rasterio)
        self.checksums: dict[tuple[int, int], int] = {}

    def write(self, window: Window, values: Float32Array) -> None:
        """Pixels of a window whose corner is that of a block, ``(h, w)``; NaN is no data.

        Raises:
            OutputError: the disk is full or the file cannot be written.
        """
        try:
            self._dataset.write(values, 1, window=_box(self._rasterio, window))
        except self._failure as err:
            raise _full(self._path, err) from err
        for y in range(0, window.height, COG_BLOCK_PX):
            for x in range(0, window.width, COG_BLOCK_PX):
                block = values[y : y + COG_BLOCK_PX, x : x + COG_BLOCK_PX]
                self.checksums[window.y0 + y, window.x0 + x] = zlib.crc32(block.tobytes())


@contextlib.contextmanager
def create_rate_map(path: Path, quantity: Quantity, georeference: Raster) -> Iterator[RateWriter]:
    """Create a one-band float32 COG of the size and place of another file.

    Overviews hold means. What was written is read back before it gets its name, since GDAL does
    not report a full disk when it closes a file.

    Raises:
        OutputError: the place cannot be written.
    """
    raster = georeference
    profile: dict[str, Any] = {
        "driver": "GTiff", "dtype": "float32", "count": 1, "nodata": float("nan"),
        "height": raster.height, "width": raster.width, "crs": raster.crs, "tiled": True,
        "blockxsize": COG_BLOCK_PX, "blockysize": COG_BLOCK_PX, "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    if raster.transform is not None:
        profile["transform"] = raster.transform
    with gdal_environment(MAP_OPTIONS) as rasterio, publish_file(path) as part:
        plain = part.with_name(part.name + ".plain")
        failure = gdal_failures(rasterio)
        try:
            with open_quietly(rasterio, plain, "w", **profile) as dataset:
                dataset.units = (quantity.unit,)
                dataset.set_band_description(1, quantity.description)
                dataset.update_tags(**quantity.tags)
                if raster.gcps is not None:
                    dataset.gcps = raster.gcps
                writer = RateWriter(rasterio, path, dataset)
                yield writer
            with gdal_environment(cache_bytes=COPY_CACHE_BYTES):
                means = {"RESAMPLING": "AVERAGE", "OVERVIEW_RESAMPLING": "AVERAGE"}
                copy_as_cog(rasterio, plain, part, "FLOATING_POINT", **means)
                found = _read_back(rasterio, part)
        except failure as err:
            raise _full(path, err) from err
        plain.unlink()
        if found != writer.checksums:
            raise OutputError(f"{path} cannot be written: it reads back differently")


def _read_back(rasterio: Any, path: Path) -> dict[tuple[int, int], int]:
    found = {}
    with open_quietly(rasterio, path) as dataset:
        height, width, step = int(dataset.height), int(dataset.width), COG_BLOCK_PX
        for y in range(0, height, step):
            for x in range(0, width, step):
                box = Window(y, x, min(y + step, height), min(x + step, width))
                block = dataset.read(1, window=_box(rasterio, box))
                found[y, x] = zlib.crc32(block.tobytes())
    return found


def _box(rasterio: Any, window: Window) -> Any:
    return rasterio.windows.Window(window.x0, window.y0, window.width, window.height)


def _full(path: Path, err: BaseException) -> OutputError:
    return OutputError(f"{path} cannot be written ({cause_text(err)}); is the disk full?")
