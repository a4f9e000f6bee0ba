"""Reading rasters through rasterio (GDAL): GeoTIFF, COG, VRT, PNG and JPEG, by window.

Damaged files must fail, not come back half grey: libjpeg's warnings are turned into errors, what a
file is and names is looked at before GDAL opens it (:mod:`edgekd.contracts.imagefiles`), sizes that
no memory holds are refused before anything is decoded, and every failure becomes one
:class:`edgekd.errors.ImageError` that names the file. Formats that GDAL reads without noticing
damage are not accepted.
"""

from __future__ import annotations

import contextlib
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekd.contracts.areas import row_areas_m2
from edgekd.contracts.imagefiles import examine
from edgekd.contracts.optional import require
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError

#: GDAL keeps decoded and unwritten blocks in a cache that by default may take 5 % of the
#: machine's memory; a fixed bound (in bytes: rasterio passes it on as such) keeps the memory of a
#: run independent of the scene.
_CACHE_BYTES = 32 << 20
_GDAL_OPTIONS = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": True,
    "GDAL_VRT_ENABLE_PYTHON": "NO",
}
#: what a file may declare. A block is decoded as a whole, so it bounds the memory of any reading; a
#: side decides that of a row, the pixels that of the window plan, and bands are opened one by one.
MOST_SIDE_PX = 1 << 20
MOST_PIXELS = 10**11
MOST_BANDS = 4096
MOST_BLOCK_BYTES = 256 << 20
#: blocks that need no place in the file: so many are read as zeros at once
_FREE_BLOCKS = 1 << 16

#: coordinates of a map, in whatever unit: the Earth's girth is 4e10 mm
_FARTHEST = 1e15

#: what counts as a pixel without data; see :class:`Raster`
Nodata = float | Literal["auto", "declared", "none"]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]


_CACHE = threading.Lock()
_CACHE_WANTED: list[int] = []  # bytes, of everybody who is inside
_CACHE_BEFORE = [0]  # bytes, what the application had


@contextlib.contextmanager
def gdal_environment(
    options: Mapping[str, str] = MappingProxyType({}), cache_bytes: int = _CACHE_BYTES
) -> Iterator[Any]:
    """The rasterio module inside an environment with bounded cache and strict decoding.

    The cache is the process's: while anybody is inside it has the least size that anybody wants,
    and the last one out gives back what the application had. Other options are this thread's.

    Args:
        options: further ones of GDAL.
        cache_bytes: of decoded and unwritten blocks.
    """
    rasterio = require("rasterio", "geo", "read and write images and scenes")
    from rasterio.env import get_gdal_config, set_gdal_config

    with rasterio.Env(**_GDAL_OPTIONS, **options):
        with _CACHE:
            if not _CACHE_WANTED:
                _CACHE_BEFORE[0] = int(get_gdal_config("GDAL_CACHEMAX"))
            _CACHE_WANTED.append(cache_bytes)
            set_gdal_config("GDAL_CACHEMAX", min(_CACHE_WANTED))
        try:
            yield rasterio
        finally:
            with _CACHE:
                _CACHE_WANTED.remove(cache_bytes)
                set_gdal_config("GDAL_CACHEMAX", min(_CACHE_WANTED, default=_CACHE_BEFORE[0]))


def open_quietly(rasterio: Any, path: Path, *arguments: Any, **options: Any) -> Any:
    """``rasterio.open`` without its warning that an image has no georeference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, *arguments, **options)


def gdal_failures(rasterio: Any) -> tuple[type[Exception], ...]:
    """What rasterio raises for a fault of the file: its own errors and GDAL's, bare."""
    # rasterio stops at texts of the file that are no UTF-8, even in the words of an error
    errors = rasterio.errors
    return (
        errors.RasterioError,
        errors.CRSError,
        rasterio._err.CPLE_BaseError,
        UnicodeDecodeError,
    )


class Raster:
    """An open image or scene; use it in a ``with`` block.

    Attributes:
        path: the file.
        height, width: px.
        count: number of bands.
        dtype: element type of the first band, as NumPy names it.
        dtypes: element type of each band; only a VRT may mix them.
        descriptions: what the file calls each band, empty where it does not.
        tags: of the file.
        crs: coordinate reference system (rasterio ``CRS``) or None.
        transform: affine pixel-to-CRS transform, or None for an image without one.
        gcps: ground control points and their CRS (empty where the file names none), or None.
        nodata: the declared nodata value, or None.
        nodata_rule: what counts as "no data" here and why, in words.
        masked: whether any pixel may be without data.
        block_rows, block_columns: rows and columns that are stored together.

    Args:
        path: the file.
        nodata: what counts as a pixel without data. ``declared``: what the file says by a nodata
            value, mask or alpha band. ``auto``: the same, and for an 8-bit file that declares
            nothing and whose four corners hold 0, or 255, in every band: the pixels that hold
            that in every band. ``none``: nothing. A number: the pixels that hold it in every
            band, beside what the file declares.

    Raises:
        ImageError: the file is missing, empty, damaged or of no known format, declares more than
            edgekd reads, is a VRT of anything but such files on this machine, or ``nodata`` is no
            value of its pixels.
        EnvironmentLacksError: rasterio is not installed.
    """

    def __init__(self, path: Path, nodata: Nodata = "declared") -> None:
        self.path = Path(path)
        driver, sources = examine(self.path)
        with gdal_environment() as rasterio:
            self._failure = gdal_failures(rasterio)
            self._window = rasterio.windows.Window
            if driver not in rasterio.Env().drivers():
                raise ImageError(f"{path} is a {driver} file, which this build of GDAL cannot read")
            stored_px = self._look_at_sources(rasterio, sources)
            try:
                self._data = open_quietly(rasterio, self.path, driver=driver)
            except self._failure as err:
                raise ImageError(f"{path} cannot be opened as an image: {cause_text(err)}") from err
            try:
                self._describe(rasterio, stored_px)
            except self._failure as err:
                self._data.close()
                raise ImageError(f"{path} is damaged ({cause_text(err)}); fetch it again") from err
            except BaseException:
                self._data.close()
                raise

        try:
            self._choose_nodata(nodata)
        except ImageError:
            self.close()
            raise

    def _look_at_sources(self, rasterio: Any, sources: dict[Path, str]) -> int:
        """What holds for an image holds for those of a VRT; columns of the widest blocks, px."""
        widest = 0
        for path, kind in sources.items():
            try:
                with open_quietly(rasterio, path, driver=kind) as data:
                    _require_sizes(path, data)
                    _require_blocks(path, data)
                    widest = max(widest, int(data.block_shapes[0][1]) if data.count else 0)
            except self._failure as err:
                raise ImageError(
                    f"{self.path} cannot be read: {path} cannot be opened as an image: "
                    f"{cause_text(err)}"
                ) from err
            except ImageError as err:
                raise ImageError(f"{self.path} cannot be read: {err}") from err
        return widest

    def _choose_nodata(self, asked: Nodata) -> None:
        """Decide what counts as "no data" and put it into words."""
        self._fill: float | None = None
        if asked == "none":
            self._declared = False
            self.nodata_rule = "none: every pixel counts, as asked"
        elif isinstance(asked, str):
            if self._declared:
                value = "" if self.nodata is None else f" (value {self.nodata:g})"
                self.nodata_rule = f"declared by the file{value}"
            else:
                self._fill = self._detect_fill() if asked == "auto" else None
                self.nodata_rule = (
                    "none: the file declares none"
                    if self._fill is None
                    else f"detected: the file declares none, and its four corners hold "
                    f"{self._fill:g} in every band"
                )
        else:
            kind = np.dtype(self.dtype)
            fits = kind.kind == "f" or (
                float(asked).is_integer() and np.iinfo(kind).min <= asked <= np.iinfo(kind).max
            )
            if not fits:
                raise ImageError(f"nodata {asked:g} is no value of {self.path}, which holds {kind}")
            self._fill = asked
            self.nodata_rule = f"given: {asked:g} in every band"
        self.masked = self._declared or self._fill is not None

    def _describe(self, rasterio: Any, stored_px: int) -> None:
        data = self._data
        self.height, self.width, self.count = int(data.height), int(data.width), int(data.count)
        if self.count == 0:
            raise ImageError(f"{self.path} holds no bands of its own; open one of its sub-datasets")
        _require_sizes(self.path, data)
        self.dtypes = [str(dtype) for dtype in data.dtypes]
        self.dtype = self.dtypes[0]
        self.descriptions: list[str] = [text or "" for text in data.descriptions]
        for dtype in self.dtypes:
            if dtype.startswith("complex"):
                raise ImageError(f"{self.path} holds complex numbers, expected real ones")
        _require_blocks(self.path, data)
        self.crs = data.crs
        self.transform = None if data.transform.is_identity else self._checked_place(data.transform)
        points, system = data.gcps
        self.gcps = (points, system or rasterio.crs.CRS()) if points else None
        self.nodata = data.nodata
        self.block_rows, columns = map(int, data.block_shapes[0])
        self.block_columns = max(columns, stored_px)
        self.tags: dict[str, str] = dict(data.tags())
        flags = rasterio.enums.MaskFlags.all_valid
        self._declared = any(flags not in band for band in data.mask_flag_enums)
        self._alpha = [
            index
            for index, meaning in enumerate(data.colorinterp, start=1)
            if meaning == rasterio.enums.ColorInterp.alpha
        ]

    def _checked_place(self, transform: Any) -> Any:
        """The transform, unless it maps pixels to no number or beyond every map's units."""
        ends = np.array([transform * (x, y) for x in (0, self.width) for y in (0, self.height)])
        if not (np.abs(ends) <= _FARTHEST).all():  # NaN is not
            numbers = ", ".join(f"{value:g}" for value in tuple(transform)[:6])
            raise ImageError(
                f"{self.path} is damaged: its transform ({numbers}) is no place on a map; fetch it "
                "again, or write its place anew: gdal_edit.py -a_ullr ULX ULY LRX LRY"
            )
        return transform

    def row_areas_m2(self) -> npt.NDArray[np.float64] | None:
        """Area of a pixel of each row on the ground, ``(height,)`` m²; None where none can be told.

        See :func:`edgekd.contracts.areas.row_areas_m2`. UTM within its zone: what the transform
        says, within 0.2 % of the ground.
        """
        if self.crs is None or self.transform is None:
            return None
        with gdal_environment() as rasterio:
            try:
                return row_areas_m2(rasterio, self.crs, self.transform, self.height, self.width)
            except self._failure:  # PROJ finds no way to longitude and latitude
                return None

    def thumbnail(self, bands: list[int], side_px: int) -> npt.NDArray[np.float64]:
        """Pixels ``(len(bands), h, w)`` of the middle, thinned to at most ``side_px``.

        The middle is at most eight times as wide, since a thinned reading decodes every block.
        """
        height, width = (min(side, 8 * side_px) for side in (self.height, self.width))
        y0, x0 = (self.height - height) // 2, (self.width - width) // 2
        middle = Window(y0, x0, y0 + height, x0 + width)
        shape = (len(bands), min(height, side_px), min(width, side_px))
        found = self._checked(
            lambda: self._data.read(indexes=bands, window=self._box(middle), out_shape=shape),
            middle,
        )
        return np.asarray(found, np.float64)

    def choose_bands(self, bands: list[int] | None, channels: int) -> list[int]:
        """The bands to feed, checked.

        Args:
            bands: 1-based band numbers as the user gave them; None takes all colour bands, and
                is only accepted when their number is right (an alpha band is not a colour).
            channels: how many the model takes.

        Raises:
            ImageError: wrong number, a band that does not exist, or bands of different types.
        """
        if bands is None:
            bands = self.colour_bands()
            if len(bands) != channels:
                count = f"{len(bands)} band{'' if len(bands) == 1 else 's'}"
                numbers = ",".join(map(str, range(1, channels + 1)))
                advice = (
                    f"say which with --bands, e.g. --bands {numbers}"
                    if len(bands) > channels
                    else "give a colour image"
                )
                raise ImageError(
                    f"{self.path} has {count} and the model takes {channels}; {advice}"
                )
        if len(bands) != channels:
            raise ImageError(
                f"--bands names {len(bands)} bands ({','.join(map(str, bands))}) and the model "
                f"takes {channels}"
            )
        for band in bands:
            if not 1 <= band <= self.count:
                raise ImageError(
                    f"--bands names band {band}, but {self.path} has bands 1 to {self.count}"
                )
        kinds = {self.dtypes[band - 1] for band in bands}
        if len(kinds) > 1:
            raise ImageError(
                f"{self.path}: the bands {','.join(map(str, bands))} have different pixel types "
                f"({', '.join(sorted(kinds))}); scale them to 8 bits first"
            )
        return bands

    def read(
        self, window: Window, bands: list[int], out: UInt8Array | None = None
    ) -> npt.NDArray[np.generic]:
        """Pixels of a window inside the raster, ``(height, width, len(bands))``.

        A view with the bands as contiguous planes, as GDAL delivers them; or ``out``, if given,
        ``(height, width, len(bands))`` of the raster's own type in any layout.

        Raises:
            ImageError: the pixels cannot be decoded (a damaged or cut file).
        """
        planes = self._checked(
            lambda: self._data.read(
                indexes=bands,
                window=self._box(window),
                out=None if out is None else np.moveaxis(out, 2, 0),
            ),
            window,
        )
        pixels: npt.NDArray[np.generic] = np.moveaxis(planes, 0, 2)
        return pixels

    def read_valid(self, window: Window) -> BoolArray:
        """Which pixels of a window hold data, ``(height, width)`` bool; see ``nodata``."""
        valid: BoolArray = np.ones((window.height, window.width), dtype=np.bool_)
        if self._declared:
            mask = self._checked(lambda: self._data.dataset_mask(window=self._box(window)), window)
            valid &= np.asarray(mask, dtype=np.uint8) > 0
        if self._fill is not None:
            colours = self.colour_bands()
            if len({self.dtypes[band - 1] for band in colours}) == 1:
                valid &= (self.read(window, colours) != self._fill).any(axis=2)
            else:  # rasterio reads bands of one type at a time
                seen = [self.read(window, [band])[..., 0] != self._fill for band in colours]
                valid &= np.logical_or.reduce(seen)
        return valid

    def _detect_fill(self) -> int | None:
        """0 or 255 where the four corners hold it in every band of an 8-bit image."""
        if set(self.dtypes) != {"uint8"}:
            return None
        corners = {
            int(value)
            for y in (0, self.height - 1)
            for x in (0, self.width - 1)
            for value in self.read(Window(y, x, y + 1, x + 1), self.colour_bands()).ravel()
        }
        return corners.pop() if corners in ({0}, {255}) else None

    def colour_bands(self) -> list[int]:
        """Numbers of the bands that are no alpha, counted from 1."""
        return [band for band in range(1, self.count + 1) if band not in self._alpha]

    def scale_of(self, band: int) -> tuple[float, float]:
        """What a band's numbers are to be multiplied by, and what is added then, as declared."""
        return float(self._data.scales[band - 1]), float(self._data.offsets[band - 1])

    def wavelength_nm(self, band: int) -> float | None:
        """A band's wavelength, nm, as GDAL keeps it, or None where the file does not say it.

        Raises:
            ImageError: the file's words cannot be read.
        """
        try:
            own, left = self._data.tags(band, ns="IMAGERY"), self._data.tags(band)
        except self._failure as err:
            raise ImageError(f"{self.path} is damaged ({cause_text(err)}); fetch it again") from err
        if "CENTRAL_WAVELENGTH_UM" in own:
            text, nm = own["CENTRAL_WAVELENGTH_UM"], 1e3
        else:  # what GDAL's ENVI driver leaves
            text, unit = left.get("wavelength", ""), left.get("wavelength_units", "").lower()
            nm = {"nanometers": 1.0, "micrometers": 1e3}.get(unit, math.nan)
        try:
            value = float(text) * nm
        except ValueError:
            return None
        return value if math.isfinite(value) and value > 0 else None

    def read_all(self, bands: list[int] | None = None) -> npt.NDArray[np.generic]:
        """The whole raster, ``(height, width, bands)``; for images that fit in memory."""
        window = Window(0, 0, self.height, self.width)
        return self.read(window, bands or list(range(1, self.count + 1)))

    def _box(self, window: Window) -> Any:
        return self._window(window.x0, window.y0, window.width, window.height)

    def _checked(self, action: Any, window: Window) -> Any:
        # The options are set around every access, not around the life of the object: rasters
        # that overlap in time, or are read by another thread, must not switch them off.
        try:
            with gdal_environment():
                return action()
        except self._failure as err:
            raise ImageError(
                f"{self.path} is damaged: rows {window.y0}-{window.y1} cannot be decoded "
                f"({cause_text(err)}); fetch it again"
            ) from err

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self._data.close()

    def __enter__(self) -> Raster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _require_sizes(path: Path, data: Any) -> None:
    """Refuse what only a damaged or made-up header declares, before anything is decoded."""
    height, width, count = int(data.height), int(data.width), int(data.count)
    if "OVERVIEW_FILE" in {key.upper() for key in data.tags(ns="OVERVIEWS")}:
        raise ImageError(
            f"{path} names another file for its thinned pixels; write it anew: gdal_translate "
            f"{path} scene.tif"
        )
    if max(height, width) > MOST_SIDE_PX or height * width > MOST_PIXELS:
        raise ImageError(
            f"{path} declares {width} x {height} px, expected at most "
            f"{MOST_SIDE_PX:,} a side and {MOST_PIXELS:,} in all; fetch it again, or cut it "
            "into parts, e.g. with gdal_retile.py"
        )
    if count > MOST_BANDS:
        raise ImageError(
            f"{path} declares {count} bands, expected at most {MOST_BANDS}; fetch it "
            f"again, or take some: gdal_translate -b 1 -b 2 -b 3 {path} scene.tif"
        )


def _require_blocks(path: Path, data: Any) -> None:
    """Refuse blocks that are too large to decode, and more of them than the file can hold."""
    if not data.count:
        return
    rows, columns = data.block_shapes[0]
    dtypes = [str(dtype) for dtype in data.dtypes]
    pixel = data.driver == "GTiff" and str(getattr(data.interleaving, "value", "")) == "PIXEL"
    kinds = dtypes if pixel else dtypes[:1]
    size = int(rows) * int(columns) * sum(np.dtype(kind).itemsize for kind in kinds)
    if size > MOST_BLOCK_BYTES:
        raise ImageError(
            f"{path} is stored in parts of {columns} x {rows} px, {size >> 20} MiB each, "
            f"expected at most {MOST_BLOCK_BYTES >> 20}, since each is decoded as a whole; "
            f"store it in tiles: gdal_translate -co TILED=YES {path} scene.tif"
        )
    blocks = -(-int(data.height) // int(rows)) * -(-int(data.width) // int(columns))
    blocks *= 1 if pixel else int(data.count)
    # the table of their places takes at least two bytes each
    if data.driver == "GTiff" and blocks > max(_FREE_BLOCKS, path.stat().st_size // 2):
        raise ImageError(
            f"{path} is damaged: it declares {blocks:,} parts and has no room for them in "
            f"{path.stat().st_size:,} bytes; fetch it again"
        )


def cause_text(err: BaseException) -> str:
    """The deepest cause of a rasterio error, on one line."""
    while err.__cause__ is not None:
        err = err.__cause__
    return " ".join(str(err).split())[:200]
