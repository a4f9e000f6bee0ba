"""Reading ENVI files: the header by the library ``spectral``, the pixels memory mapped.

GDAL reads ENVI too, but neither notices a cut file nor gives the bad band list; see
:mod:`edgekd.contracts.imagefiles` for what it may open.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import gdal_environment, gdal_failures
from edgekd.contracts.optional import require
from edgekd.errors import ImageError

_NM_PER_UNIT = {
    "nanometers": 1.0, "nanometer": 1.0, "nm": 1.0,
    "micrometers": 1e3, "micrometer": 1e3, "microns": 1e3, "um": 1e3, "µm": 1e3,
}  # fmt: skip


@dataclass(frozen=True)
class Envi:
    """An open ENVI image.

    Attributes:
        data: its file of pixels.
        pixels: ``(H, W, bands)`` of the file's own type, memory mapped.
        ignore: value of pixels without data, or None.
        factor: what the values are to be divided by to be reflectance, or None.
        wavelengths_nm: ``(bands,)``, or None where the header has none.
        good: ``(bands,)`` bool from the header's bad band list, or None.
        crs, transform: rasterio's, or None; ``unplaced`` says why, where there is something that
            could not be read.
    """

    data: Path
    pixels: npt.NDArray[Any]
    ignore: float | None
    factor: float | None
    wavelengths_nm: npt.NDArray[np.float64] | None
    good: npt.NDArray[np.bool_] | None
    crs: Any
    transform: Any
    unplaced: str


def open_envi(path: Path) -> Envi:
    """Open an ENVI image by its header.

    Raises:
        ImageError: the header is damaged, its file of pixels absent or shorter than it says, or
            what it says is not understood.
        EnvironmentLacksError: ``spectral`` is not installed.
    """
    require("spectral", "sensors", "read ENVI files")
    from spectral.io import envi, spyfile

    if not path.is_file():
        raise ImageError(f"{path} does not exist")
    faults = (
        spyfile.SpyException, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of every key that is not in small letters
        try:
            image = envi.open(str(path.absolute()))
            header: dict[str, Any] = image.metadata
        except envi.EnviDataFileNotFoundError as err:
            raise ImageError(
                f"{path} has no file of pixels beside it; expected one of the same name with the "
                "suffix .img, .dat, .bsq, .bil, .bip or none"
            ) from err
        except faults as err:
            raise ImageError(
                f"{path} is no header of an ENVI image: {_words(err)}; fetch it again"
            ) from err
    if not isinstance(image, spyfile.SpyFile):
        raise ImageError(f"{path} is a spectral library, expected an image")
    interleave = str(header.get("interleave", "")).strip().lower()
    if interleave not in ("bsq", "bil", "bip"):
        raise ImageError(
            f"{path}: interleave is '{interleave}', expected bsq, bil or bip: the order in which "
            "the file holds bands, lines and samples"
        )
    data = Path(image.filename)
    if str(header.get("file compression", "0")).strip() not in ("0", ""):
        raise ImageError(f"{data} is compressed; write it plain, e.g. with ENVI's Save As")
    if np.dtype(image.dtype).kind == "c":
        raise ImageError(f"{data} holds complex numbers, expected real ones")
    if min(image.nrows, image.ncols, image.nbands) < 1 or image.offset < 0:
        raise ImageError(
            f"{path} declares {image.nrows} lines, {image.ncols} samples, {image.nbands} bands; "
            "expected at least one of each"
        )
    size = image.nrows * image.ncols * image.nbands * np.dtype(image.dtype).itemsize
    held = data.stat().st_size
    if held < size + image.offset:
        raise ImageError(
            f"{data} has {held:,} bytes and its header {path.name} declares {size + image.offset:,}"
            "; it was cut: fetch it again"
        )
    try:
        pixels = image.open_memmap(interleave="bip", writable=False)
    except faults as err:
        raise ImageError(f"{data} cannot be mapped into memory: {_words(err)}") from err
    if pixels is None:
        raise ImageError(f"{data} cannot be mapped into memory")
    bands = int(image.nbands)
    crs, transform, unplaced = _place(path, header)
    return Envi(
        data,
        pixels,
        _number(path, header, "data ignore value"),
        _number(path, header, "reflectance scale factor"),
        _wavelengths(path, header, bands),
        _good(path, header, bands),
        crs,
        transform,
        unplaced,
    )


def _words(err: BaseException) -> str:
    return " ".join(str(err).split())[:160] or type(err).__name__


def _number(path: Path, header: dict[str, Any], key: str) -> float | None:
    if key not in header:
        return None
    try:
        value = float(header[key])
    except (TypeError, ValueError) as err:
        raise ImageError(f"{path}: '{key}' is {header[key]!r}, expected a number") from err
    if key == "reflectance scale factor" and not (math.isfinite(value) and value > 0):
        raise ImageError(f"{path}: '{key}' is {value:g}, expected a number above 0")
    return value


def _list(path: Path, header: dict[str, Any], key: str, bands: int) -> list[float] | None:
    if key not in header:
        return None
    try:
        values = [float(item) for item in header[key]]
    except (TypeError, ValueError) as err:
        raise ImageError(f"{path}: '{key}' is no list of numbers") from err
    if len(values) != bands:
        raise ImageError(f"{path}: '{key}' has {len(values)} values for {bands} bands")
    return values


def _wavelengths(path: Path, header: dict[str, Any], bands: int) -> npt.NDArray[np.float64] | None:
    values = _list(path, header, "wavelength", bands)
    if values is None:
        return None
    unit = str(header.get("wavelength units", "")).strip()
    factor = _NM_PER_UNIT.get(unit.lower())
    if factor is None:
        raise ImageError(
            f"{path} gives wavelengths in the unit '{unit or 'none'}'; write 'wavelength units = "
            "Nanometers' or 'Micrometers' into it"
        )
    return np.asarray(values, dtype=np.float64) * factor


def _good(path: Path, header: dict[str, Any], bands: int) -> npt.NDArray[np.bool_] | None:
    values = _list(path, header, "bbl", bands)
    return None if values is None else np.asarray(values) != 0


def _place(path: Path, header: dict[str, Any]) -> tuple[Any, Any, str]:
    """CRS and transform of ``map info``, as GDAL's ENVI driver has them."""
    info = header.get("map info")
    if info is None:
        return None, None, ""
    try:
        words = [str(item).strip() for item in info]
        column, row, east, north, width, height = (float(item) for item in words[1:7])
        turn = [float(item.split("=")[1]) for item in words if item.startswith("rotation=")]
    except (ValueError, TypeError, IndexError) as err:
        raise ImageError(f"{path}: 'map info' is no place of a map: {info}") from err
    with gdal_environment() as rasterio:
        angle = -math.radians(turn[0] if turn else 0.0)
        across, down = math.cos(angle), math.sin(angle)
        linear = rasterio.Affine(
            width * across, -width * down, 0, -height * down, -height * across, 0
        )
        x, y = linear * (column - 1, row - 1)
        transform = rasterio.Affine.translation(east - x, north - y) * linear
        if abs(transform.determinant) < 1e-30 or not all(map(math.isfinite, transform)):
            raise ImageError(f"{path}: 'map info' is no place of a map: {info}")
        try:
            crs, why = _system(rasterio, header, words)
        except gdal_failures(rasterio) as err:
            crs, why = None, f"its coordinate system is not understood ({_words(err)})"
    return crs, transform, why


def _system(rasterio: Any, header: dict[str, Any], words: list[str]) -> tuple[Any, str]:
    text = header.get("coordinate system string")
    if text is not None:
        wkt = text if isinstance(text, str) else ",".join(text)
        return rasterio.crs.CRS.from_wkt(wkt.strip("{}")), ""
    if words[0] == "UTM" and len(words) > 9 and words[9] in ("WGS-84", "WGS84"):
        zone, north = int(float(words[7])), words[8].lower().startswith("n")
        return rasterio.crs.CRS.from_epsg((32600 if north else 32700) + zone), ""
    if words[0] == "Geographic Lat/Lon" and len(words) > 7 and words[7] in ("WGS-84", "WGS84"):
        return rasterio.crs.CRS.from_epsg(4326), ""
    return None, f"its map info names '{words[0]}' without a coordinate system string"
