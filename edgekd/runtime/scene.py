"""Where the runtime's pixels come from: images in memory, rasters of any pixel type."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, Raster, UInt8Array
from edgekd.contracts.preprocess import check_pixels
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError, InputError

#: side of the thumbnail that a scale is suggested from, px
_LOOK_PX = 512


class Source(Protocol):
    """Where the tiler gets pixels from; windows lie inside the scene.

    Attributes:
        height, width: px.
        masked: whether any pixel may be without data; False spares asking.
        block_rows, block_columns: rows and columns that are stored together; reading multiples of
            them decodes nothing twice.
    """

    height: int
    width: int
    masked: bool
    block_rows: int
    block_columns: int

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
        self.masked = False
        self.block_rows = self.block_columns = 1
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
    """An open raster and the bands to feed, as 8-bit pixels.

    Args:
        raster: open.
        bands: 1-based, in the order of the model's channels; None takes the colours.
        channels: of the model.
        scale: (low, high) for each band, or one for all: what becomes 0 and 255. Values between
            are rounded, values beyond are cut off, NaN and infinities are no data. None leaves
            8-bit pixels as they are, and no other type is accepted.

    Attributes:
        seen: ``[first row, end row, first column, end column, CRC-32]`` of every reading of 8-bit
            pixels, in order.

    Raises:
        ImageError: wrong band count, or a pixel type other than 8 bit without a scale.
        InputError: a scale that is none.
    """

    def __init__(
        self,
        raster: Raster,
        bands: list[int] | None,
        channels: int,
        scale: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
    ) -> None:
        self._raster = raster
        self.bands = raster.choose_bands(bands, channels)
        self.height, self.width = raster.height, raster.width
        self.masked = raster.masked
        self.block_rows, self.block_columns = raster.block_rows, raster.block_columns
        self.seen: list[list[int]] = []
        kind = np.dtype(raster.dtypes[self.bands[0] - 1])  # all chosen bands have one type
        self.scale = _checked_scale(scale, channels)
        self._finite = self.scale is not None and kind.kind == "f"
        self.masked |= self._finite
        if self.scale is None and kind != np.uint8:
            corner = raster.read(
                Window(0, 0, min(512, self.height), min(512, self.width)), self.bands
            )
            with _file_named(raster.path, self._advice()):
                check_pixels(corner, channels)
        self._not_finite: dict[Window, BoolArray] = {}

    def _advice(self) -> str:
        """A scale to begin with: the 2nd and 98th percentile of a thumbnail."""
        values = self._raster.thumbnail(self.bands, _LOOK_PX)
        values = values[np.isfinite(values)]
        if not values.size:
            return "; no pixel of it is finite"
        low, high = np.percentile(values, (2, 98))
        if not low < high:
            low, high = float(values.min()), float(values.max()) + 1.0
        return (
            f", or say what becomes 0 and 255 with --scale (scale=), as the model was trained; "
            f"its 2nd and 98th percentiles would be --scale {low:g},{high:g}"
        )

    def read(self, window: Window, out: UInt8Array) -> None:
        """See :class:`Source`."""
        if self.scale is None:
            self._raster.read(window, self.bands, out)
        else:
            values = self._raster.read(window, self.bands)
            for channel, (low, high) in enumerate(self.scale):
                plane = values[..., channel].astype(np.float32)
                plane -= np.float32(low)
                plane *= np.float32(255.0 / (high - low))
                np.nan_to_num(plane, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
                np.rint(np.clip(plane, 0.0, 255.0, out=plane), out=plane)
                out[..., channel] = plane
            if self._finite:
                # Asked for by read_valid right afterwards; kept so that nothing is decoded twice.
                self._not_finite = {window: ~np.isfinite(values).all(axis=2)}
        self.seen.append([window.y0, window.y1, window.x0, window.x1, _crc(out)])

    def read_valid(self, window: Window) -> BoolArray:
        """See :class:`Source`."""
        valid = self._raster.read_valid(window)
        if self._finite:
            wrong = self._not_finite.pop(window, None)
            if wrong is None:
                wrong = ~np.isfinite(self._raster.read(window, self.bands)).all(axis=2)
            valid &= ~wrong
        return valid

    def require_unchanged(self, seen: list[list[int]]) -> None:
        """Read again what an earlier run saw.

        Raises:
            ImageError: other pixels are there now.
        """
        for y0, y1, x0, x1, checksum in seen:
            planes = np.empty((len(self.bands), y1 - y0, x1 - x0), np.uint8)
            self.read(Window(y0, x0, y1, x1), np.moveaxis(planes, 0, 2))
            if self.seen.pop()[-1] != checksum:
                raise ImageError(
                    f"{self._raster.path} holds other pixels in rows {y0}-{y1} than when the run "
                    "began; begin again with --restart (restart=True)"
                )


def _crc(pixels: UInt8Array) -> int:
    """CRC-32 of ``(h, w, C)`` pixels, plane by plane."""
    total = 0
    for plane in np.moveaxis(pixels, 2, 0):
        total = zlib.crc32(np.ascontiguousarray(plane).data, total)
    return total


def _checked_scale(
    scale: Sequence[tuple[float, float]] | tuple[float, float] | None, channels: int
) -> list[tuple[float, float]] | None:
    if scale is None:
        return None
    try:
        given: Any = scale
        alone = len(given) == 2 and all(isinstance(item, int | float) for item in given)
        pairs = [(float(low), float(high)) for low, high in ([given] if alone else given)]
    except (TypeError, ValueError) as err:
        raise InputError(
            f"scale is (low, high), or one such pair for each band, received {scale!r}"
        ) from err
    if len(pairs) == 1:
        pairs *= channels
    if len(pairs) != channels:
        raise InputError(
            f"--scale gives {len(pairs)} pairs of numbers, expected one for all bands or "
            f"{channels}, one for each"
        )
    for low, high in pairs:
        if not (np.isfinite([low, high]).all() and high > low):
            raise InputError(
                f"--scale {low:g},{high:g}: the second number, which becomes 255, must be larger "
                "than the first, which becomes 0"
            )
    return pairs


@contextlib.contextmanager
def _file_named(path: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except ImageError as err:
        raise ImageError(f"{path}: {err}{advice}") from err
