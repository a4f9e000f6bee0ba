"""Arrays of a sensor, from ENVI, MATLAB, GeoTIFF (whatever GDAL may open here) and NumPy files.

Each reader gives the same: float32 planes with NaN where the file has no data, and of place and
wavelengths what the file says. What they mean is checked in :mod:`edgekd.contracts.sensor_scenes`.
"""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.envi import open_envi
from edgekd.contracts.imageio import Raster
from edgekd.contracts.optional import require
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError, ImageError

FloatArray = npt.NDArray[np.float32]
Layout = Literal["hwc", "chw"]
_RASTERS = (".tif", ".tiff", ".vrt", ".png", ".jpg", ".jpeg", ".jp2", ".webp", ".bmp")
_ARRAYS = (".mat", ".npy", ".npz")
_ENVI_DATA = (".img", ".dat", ".bsq", ".bil", ".bip")
#: what a damaged file makes SciPy's and NumPy's readers raise
_ARRAY_FAULTS = (
    OSError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, MemoryError,
    AttributeError, SyntaxError, UnicodeError, zlib.error, zipfile.BadZipFile,
    tokenize.TokenError, UnboundLocalError,  # the last one is a slip in scipy's own code
)  # fmt: skip


class FileSpec(Document):
    """An array in a file.

    Attributes:
        file: relative to the YAML; ``${NAME}`` and ``${NAME:-default}`` from the environment.
        variable: which one of a ``.mat`` or ``.npz`` file.
        layout: axes of an array with three of them, in ``.mat``, ``.npy`` and ``.npz``: ``hwc``
            (rows, columns, bands) or ``chw``.
        bands: which ones to take, counted from 1; absent, all (an alpha band is none).
        scale: factor of the values; absent, what the file itself says (ENVI's reflectance scale
            factor, GDAL's scale and offset), else 1.
        nodata: value of pixels without data, beside what the file says and NaN.
        wavelengths: variable of a ``.mat`` or ``.npz`` file that holds the wavelengths, nm.
    """

    file: str
    variable: str | None = None
    layout: Layout | None = None
    bands: list[int] | None = pydantic.Field(default=None, min_length=1)
    scale: float | None = None
    nodata: float | None = None
    wavelengths: str | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> FileSpec:
        if self.bands is not None and min(self.bands) < 1:
            raise ValueError(f"bands are counted from 1, received {self.bands}")
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale must be above 0, received {self.scale:g}")
        suffix = Path(self.file).suffix.lower()
        if suffix in (".mat", ".npz") and self.variable is None:
            raise ValueError(f"{suffix} files hold several arrays; name one with variable")
        if suffix not in (".mat", ".npz") and (self.variable or self.wavelengths):
            raise ValueError("variable and wavelengths are of .mat and .npz files")
        if suffix not in _ARRAYS and self.layout is not None:
            raise ValueError("layout is of .mat, .npy and .npz files; others know their own")
        return self


@dataclass(frozen=True)
class SensorArray:
    """What a file holds.

    Attributes:
        path: the file; of ENVI its header.
        files: every file that was read, for hashing.
        values: ``(C, H, W)`` float32, NaN where the file has no data.
        crs, transform: rasterio's, or None.
        wavelengths_nm: ``(C,)`` as the file says, or None.
        good: ``(C,)`` bool, False where the file itself calls a band bad; or None.
        notes: what was found and done, for the report.
    """

    path: Path
    files: tuple[Path, ...]
    values: FloatArray
    crs: Any = None
    transform: Any = None
    wavelengths_nm: npt.NDArray[np.float64] | None = None
    good: npt.NDArray[np.bool_] | None = None
    notes: tuple[str, ...] = field(default=())


def read_sensor(path: Path, spec: FileSpec) -> SensorArray:
    """Read an array by the suffix of its file.

    Raises:
        ImageError: missing, damaged, or of no kind that is read here.
        DatasetError: the file does not hold what ``spec`` says.
        EnvironmentLacksError: the library for this kind is not installed.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise ImageError(f"{path} does not exist")
    if suffix == ".hdr":
        found = _envi(path, spec)
    elif suffix in _ARRAYS:
        found = _array(path, spec)
    elif suffix in _RASTERS:
        found = _raster(path, spec)
    elif suffix in _ENVI_DATA:
        raise ImageError(f"{path}: of an ENVI image name the header (.hdr), not the pixels")
    else:
        valid = ", ".join((".hdr (ENVI)", *_ARRAYS, *_RASTERS))
        raise ImageError(f"{path} has no suffix that is read here (valid: {valid})")
    if not found.values.size:
        raise ImageError(f"{path} holds no pixel: its array has the shape {found.values.shape}")
    return found


def _planes(values: npt.NDArray[Any], ignore: list[float], factor: float) -> FloatArray:
    """``(C, H, W)`` float32 of an array with those axes; what is to be ignored becomes NaN."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is no measurement
        planes = np.array(values, dtype=np.float32, order="C")
    for value in ignore:
        planes[np.asarray(values) == value] = np.nan
    planes[~np.isfinite(planes)] = np.nan
    if factor != 1.0:
        planes *= np.float32(factor)
    return planes


def _chosen(path: Path, spec: FileSpec, count: int) -> list[int]:
    """The bands that are taken, counted from 0."""
    if spec.bands is None:
        return list(range(count))
    if max(spec.bands) > count:
        raise DatasetError(f"{path} has {count} bands; bands names {max(spec.bands)}")
    return [band - 1 for band in spec.bands]


def _scale(path: Path, spec: FileSpec, own: float | None, says: str) -> tuple[float, list[str]]:
    """Factor of the values and what to report of it.

    Raises:
        DatasetError: the set and the file say different things.
    """
    if own is None:
        return (1.0 if spec.scale is None else spec.scale), []
    if spec.scale is not None and abs(spec.scale - own) > 1e-6 * abs(own):
        raise DatasetError(
            f"{path}: scale is {spec.scale:g} in the set, and its {says} makes {own:g}; leave "
            "scale out, or correct the file"
        )
    return own, [f"{path.name}: values times {own:g}, from its {says}"] if own != 1.0 else []


def _envi(path: Path, spec: FileSpec) -> SensorArray:
    image = open_envi(path)
    own = None if image.factor is None else 1.0 / image.factor
    factor, notes = _scale(path, spec, own, "reflectance scale factor")
    bands = _chosen(path, spec, image.pixels.shape[2])
    ignore = [value for value in (image.ignore, spec.nodata) if value is not None]
    if image.unplaced:
        notes.append(f"{path.name}: {image.unplaced}, so its CRS is not known")
    return SensorArray(
        path,
        (path, image.data),
        _planes(np.moveaxis(image.pixels, 2, 0)[bands], ignore, factor),
        image.crs,
        image.transform,
        None if image.wavelengths_nm is None else image.wavelengths_nm[bands],
        None if image.good is None else image.good[bands],
        tuple(notes),
    )


def _raster(path: Path, spec: FileSpec) -> SensorArray:
    with Raster(path) as image:
        colours = image.colour_bands()
        bands = [colours[at] for at in _chosen(path, spec, len(colours))]
        window = Window(0, 0, image.height, image.width)
        values = np.concatenate(
            [np.moveaxis(image.read(window, [band]), 2, 0).astype(np.float64) for band in bands]
        )
        valid = image.read_valid(window)
        own = {image.scale_of(band) for band in bands}
        scale, offset, wavelength = _said(path, own, [image.wavelength_nm(b) for b in bands])
        factor, notes = _scale(path, spec, scale, "bands' scale")
        ignore = [value for value in (image.nodata, spec.nodata) if value is not None]
        planes = _planes(values, ignore, 1.0)
        planes[:, ~valid] = np.nan
        if factor != 1.0 or offset:
            planes *= np.float32(factor)
            planes += np.float32(offset)
        return SensorArray(
            path, (path,), planes, image.crs, image.transform, wavelength, None, tuple(notes)
        )


def _said(
    path: Path, scales: set[tuple[float, float]], wavelengths: list[float | None]
) -> tuple[float | None, float, npt.NDArray[np.float64] | None]:
    """Scale (None where bands say nothing), offset and wavelengths of a GDAL file's bands."""
    if len(scales) > 1:
        raise DatasetError(
            f"{path}: its bands have different scales or offsets; write it with values that mean "
            "the same in all of them: gdal_translate -unscale IN OUT"
        )
    scale, offset = next(iter(scales))
    known = [value for value in wavelengths if value is not None]
    found = np.asarray(known, dtype=np.float64) if len(known) == len(wavelengths) else None
    return (None if (scale, offset) == (1.0, 0.0) else scale), offset, found


def _array(path: Path, spec: FileSpec) -> SensorArray:
    reader: Callable[..., dict[str, Any]] = {
        ".mat": _read_mat, ".npy": _read_npy, ".npz": _read_npz,
    }[path.suffix.lower()]  # fmt: skip
    wanted = [name for name in (spec.variable, spec.wavelengths) if name is not None]
    held = reader(path, wanted)
    where = f"{path}: {spec.variable}" if spec.variable else str(path)
    values = held[spec.variable or ""]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiub":
        raise DatasetError(f"{where} is no array of real numbers")
    if values.ndim == 2:
        values = values[None]
    elif values.ndim == 3 and spec.layout == "hwc":
        values = np.moveaxis(values, 2, 0)
    elif values.ndim == 3 and spec.layout is None:
        raise DatasetError(
            f"{where} has the shape {values.shape}; say which axis is which: layout: hwc (rows, "
            "columns, bands) or chw"
        )
    elif values.ndim != 3:
        raise DatasetError(f"{where} has {values.ndim} axes {values.shape}, expected two or three")
    bands = _chosen(path, spec, values.shape[0])
    factor, notes = _scale(path, spec, None, "")
    wavelengths = None
    if spec.wavelengths is not None:
        wavelengths = np.asarray(held[spec.wavelengths], dtype=np.float64).ravel()
        if len(wavelengths) != values.shape[0]:
            raise DatasetError(
                f"{path}: {spec.wavelengths} has {len(wavelengths)} values for {values.shape[0]} "
                "bands"
            )
        wavelengths = wavelengths[bands]
    ignore = [] if spec.nodata is None else [spec.nodata]
    planes = _planes(values[bands], ignore, factor)
    return SensorArray(path, (path,), planes, wavelengths_nm=wavelengths, notes=tuple(notes))


def _pick(path: Path, wanted: list[str], there: list[str]) -> None:
    for name in wanted:
        if name not in there:
            raise DatasetError(
                f"{path} has no variable '{name}'{nearest(name, there)} "
                f"(valid: {', '.join(sorted(there)) or 'none'})"
            )


def _read_mat(path: Path, wanted: list[str]) -> dict[str, Any]:
    require("scipy", "sensors", "read MATLAB files")
    from scipy.io import loadmat, whosmat
    from scipy.io.matlab import MatReadError

    try:
        _pick(path, wanted, [item[0] for item in whosmat(str(path), appendmat=False)])
        return dict(loadmat(str(path), appendmat=False, variable_names=wanted))
    except NotImplementedError as err:
        raise ImageError(
            f"{path} is a MATLAB 7.3 file (HDF5), which is not read; in MATLAB type: load('"
            f"{path.name}'); save('{path.stem}_v7.mat', '-v7'), or in Python store its arrays with "
            "h5py and numpy.savez (MATLAB's axes come out reversed there)"
        ) from err
    except (MatReadError, *_ARRAY_FAULTS) as err:
        raise _damaged(path, "MATLAB", err) from err


def _read_npy(path: Path, wanted: list[str]) -> dict[str, Any]:
    try:
        return {"": np.load(path, allow_pickle=False, mmap_mode="r")}
    except _ARRAY_FAULTS as err:
        raise _damaged(path, "NumPy", err) from err


def _read_npz(path: Path, wanted: list[str]) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as held:
            _pick(path, wanted, list(getattr(held, "files", [])))
            return {name: held[name] for name in wanted}
    except _ARRAY_FAULTS as err:
        raise _damaged(path, "NumPy", err) from err


def _damaged(path: Path, kind: str, err: BaseException) -> ImageError:
    words = " ".join(str(err).split())[:160] or type(err).__name__
    return ImageError(f"{path} cannot be read as a {kind} file: {words}; fetch it again")
