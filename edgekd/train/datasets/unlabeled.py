"""Images without labels, of any size, as training crops: what they are, and how they are drawn.

Rules, which :attr:`UnlabeledSet.rules` repeats in words for the files at hand:

* 8-bit pixels are used as they are. 16-bit ones (uint16, int16) and float32 are scaled linearly,
  with one pair of numbers per file for all bands: ``range`` of the recipe, or else the 2nd and
  98th percentile of the chosen bands where they hold data, become 0 and 255; clipped and rounded.
  The percentiles are those of at most 2**20 pixels: every k-th of a small file, or 8 x 8 windows of
  128 px spread over a large one. Other types are refused.
* Where a file has as many colour bands as the model has channels, these are used (alpha is none);
  one band alone is repeated to all channels; for anything else ``bands`` must say which.
* Pixels without data are those that the file declares (nodata value, mask, alpha) and those that
  are not finite. A crop with more of them than ``max_nodata`` is drawn again, file and place, at
  most 20 times, and the last is taken as it is; the pixels left are filled with the mean of the
  crop's others (0 where there are none).
* A file is drawn with probability in proportion to its area, counted up to that of 16 crops, so
  that one scene among many tiles is not all that is seen. The place in it is uniform.
* Broken files, and files without any data, are left out, counted and named; more than 5 % of them
  are refused. Small files and those that cannot be read in part (PNG, JPEG, WebP, BMP) are decoded
  whole when the set is opened; of large GeoTIFFs, windows on a grid are. What shows later counts
  too, and its crops are drawn anew in a way that depends on nothing but the files.
"""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.distill import JitterSpec, UnlabeledSpec
from edgekd.contracts.imageio import BoolArray, Raster, UInt8Array, gdal_environment, open_quietly
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError, ImageError, InputError
from edgekd.train.datasets._find import SEQUENTIAL, find_images
from edgekd.train.datasets._recolour import draw_window, filled, recolour, resized, to_bytes, turned

_DTYPES = ("uint8", "uint16", "int16", "float32")
#: files of at most this many pixels are decoded whole, and kept decoded up to CACHE_BYTES.
_WHOLE_PX = 1024 * 1024
_WHOLE_SEQUENTIAL_PX = 4096 * 4096
CACHE_BYTES = 256 << 20
_OPEN_FILES = 64
_SAMPLE_PX = 1 << 20
BROKEN_SHARE = 0.05
AREA_CROPS = 16
_TRIES = 20
#: keeps a file that turned out broken for all processes; returns all that are known.
Noted = Callable[[Path, str], list[tuple[Path, str]]]
_PLACE, _COLOUR = 1, 2  # which stream of random numbers


@dataclass(frozen=True)
class _File:
    """A usable file: ``bands`` become channels, the values ``low`` and ``high`` 0 and 255."""

    path: Path
    name: str
    size: int
    height: int
    width: int
    count: int
    dtype: str
    bands: tuple[int, ...]
    low: float
    high: float
    whole: bool

    def read(self, raster: Raster, window: Window) -> tuple[UInt8Array, BoolArray | None]:
        """Pixels ``(h, w, bands)`` uint8, and where they hold data (None: everywhere)."""
        values, valid = _values(raster, window, self.bands)
        return to_bytes(values, self.low, self.high), valid


class UnlabeledSet:
    """Usable images in a fixed order, by name; made by :func:`open_unlabeled`.

    Open files and decoded pixels belong to one process: a forked or spawned worker opens its
    own. Not for several threads at once.

    Attributes:
        broken: files left out and why; grows when one turns out broken while it is read.
        rules: how pixels are made of these files, a sentence each.
        digest: sha256 over name (relative to its root), bytes, width, height, bands and type of
            every file. Equal digests mean equal order; pixels are not looked at.
        channels: bands of a crop.
        max_nodata: largest part of pixels without data in a crop.
    """

    def __init__(
        self,
        files: Sequence[_File],
        broken: Sequence[tuple[Path, str]],
        spec: UnlabeledSpec,
        crop_px: int,
        channels: int,
    ) -> None:
        self._files = sorted(files, key=lambda file: (_identity(file), str(file.path)))
        self._total = len(files) + len(broken)
        self.broken = list(broken)
        self.noted: Noted | None = None
        self.channels = channels
        self.max_nodata = spec.max_nodata
        self.digest = sha256_bytes(canonical_json([_identity(f) for f in self._files]).encode())
        self.rules = list(_rules(self._files, spec, crop_px, channels))
        self._forget()

    def __len__(self) -> int:
        return len(self._files)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each file, px."""
        return [(file.height, file.width) for file in self._files]

    def check_crop(self, crop_px: int) -> None:
        """Raise unless a crop of ``crop_px`` px fits into every file.

        Raises:
            DatasetError: names the first that is smaller, and how many are.
        """
        small = [file for file in self._files if min(file.height, file.width) < crop_px]
        if small:
            first, more = small[0], len(small) - 1
            side = min(min(file.height, file.width) for file in small)
            raise DatasetError(
                f"{first.path} is {first.width} x {first.height} px, smaller than the crop of "
                f"{crop_px} px{f' (and {more} more)' if more else ''}; set distill.crop_px to "
                f"{side} or less, or leave these files out"
            )

    def read(self, index: int, window: Window) -> tuple[UInt8Array, BoolArray | None]:
        """Pixels of a window inside file ``index``, scaled to 8 bits by :attr:`rules`.

        Returns:
            ``(h, w, channels)`` uint8, possibly a view of kept pixels: copy before changing it; and
            ``(h, w)`` bool, True where there is data, or None where there is everywhere.

        Raises:
            ImageError: the file cannot be decoded.
            DatasetError: it is another than when the set was opened.
        """
        if self._process != os.getpid():
            self._forget()
        file = self._files[index]
        if not file.whole:
            pixels, valid = file.read(self._raster(index), window)
        else:
            if index not in self._decoded:
                self._decode(index)
            self._decoded.move_to_end(index)
            rows, columns = slice(window.y0, window.y1), slice(window.x0, window.x1)
            pixels, valid = self._decoded[index]
            pixels, valid = pixels[rows, columns], None if valid is None else valid[rows, columns]
        shape = (*pixels.shape[:2], self.channels)
        return np.broadcast_to(pixels, shape), valid

    def drop(self, index: int, why: str) -> None:
        """Count a file that turned out broken (``noted`` tells the other processes).

        Raises:
            DatasetError: more than 5 % of the files are broken.
        """
        path = self._files[index].path
        if any(path == known for known, _ in self.broken):
            return
        self.broken = self.noted(path, why) if self.noted else [*self.broken, (path, why)]
        warnings.warn(f"skipped a broken file: {why}", RuntimeWarning, stacklevel=2)
        _check_broken(self.broken, self._total)

    def _raster(self, index: int) -> Raster:
        if index not in self._rasters:
            file = self._files[index]
            raster = _open(file.path)
            found = (raster.height, raster.width, raster.count, raster.dtypes[file.bands[0] - 1])
            if found != (file.height, file.width, file.count, file.dtype):
                raster.close()
                raise DatasetError(
                    f"{file.path} was {file.width} x {file.height} px of {file.dtype} and is now "
                    f"{found[1]} x {found[0]} px of {found[3]}; leave the images alone during a run"
                )
            self._rasters[index] = raster
            while len(self._rasters) > _OPEN_FILES:
                self._rasters.popitem(last=False)[1].close()
        self._rasters.move_to_end(index)
        return self._rasters[index]

    def _decode(self, index: int) -> None:
        file, raster = self._files[index], self._raster(index)
        try:
            pixels, valid = file.read(raster, Window(0, 0, file.height, file.width))
        finally:
            self._rasters.pop(index).close()
        self._decoded[index] = (np.ascontiguousarray(pixels), valid)
        self._decoded_bytes += pixels.nbytes
        while self._decoded_bytes > CACHE_BYTES and len(self._decoded) > 1:
            self._decoded_bytes -= self._decoded.popitem(last=False)[1][0].nbytes

    def _forget(self) -> None:
        """Start without open files, as a process that inherited them must."""
        self._inherited: list[Any] = [*getattr(self, "_rasters", {}).values()]
        self._process = os.getpid()
        self._rasters: OrderedDict[int, Raster] = OrderedDict()
        self._decoded: OrderedDict[int, tuple[UInt8Array, BoolArray | None]] = OrderedDict()
        self._decoded_bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        kept = {"_rasters": OrderedDict(), "_decoded": OrderedDict(), "_decoded_bytes": 0}
        return self.__dict__ | kept | {"_inherited": [], "_process": -1}


class Crop(NamedTuple):
    """One item; the default ``collate`` of torch makes a Crop of batches of it.

    Attributes:
        clean: ``(channels, crop, crop)`` uint8, placed, scaled, mirrored and turned.
        view: the same with other colours; ``clean`` itself where colours do not change.
        number: which item.
    """

    clean: Tensor
    view: Tensor
    number: int


class UnlabeledCrops(Dataset[Crop]):
    """Crop ``number`` is a function of the files, ``seed`` and ``number`` alone.

    Neither the number of workers, nor batches, nor the process's rank changes it.

    Args:
        data: the images.
        crop_px: side of a crop.
        augment: random changes. Scales at which the source would not fit into the image are not
            drawn: of [low, high] the part from crop / (the image's shorter side) is used, or that
            scale itself where it lies above.
        length: number of crops.
        seed: of everything random here, at least 0.
        pool: number of different clean crops; file, place, scale, mirroring and turn then depend
            on ``number % pool``, colours still on ``number``. 0: every crop is another.

    Raises:
        DatasetError: an image is smaller than the crop.
        InputError: a length, seed or pool below 0.
    """

    def __init__(
        self,
        data: UnlabeledSet,
        crop_px: int,
        augment: JitterSpec,
        length: int,
        seed: int,
        pool: int = 0,
    ) -> None:
        if min(length, seed, pool) < 0:
            raise InputError(f"length {length}, seed {seed} and pool {pool} must not be negative")
        data.check_crop(crop_px)
        self._data = data
        self._crop = crop_px
        self._augment = augment
        self._length = length
        self._seed = seed
        self._pool = pool
        self._sizes = data.sizes
        areas = [min(h * w, AREA_CROPS * crop_px * crop_px) for h, w in self._sizes]
        total = np.cumsum(areas, dtype=np.float64)
        self._cumulative: npt.NDArray[np.float64] = total / total[-1]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Crop:
        """Crop ``number``, from 0.

        Raises:
            IndexError: there is no such number.
            DatasetError: too many files turned out broken.
        """
        if not 0 <= number < self._length:
            raise IndexError(f"crop {number} of {self._length}")
        clean = self._clean(number % self._pool if self._pool else number)
        random = np.random.default_rng([self._seed, number, 0, _COLOUR])
        changed = recolour(clean, self._augment, 0.0, random)
        tensor = _planes(clean)
        return Crop(tensor, tensor if changed is clean else _planes(changed), number)

    def _clean(self, slot: int) -> UInt8Array:
        found: tuple[UInt8Array, BoolArray | None, np.random.Generator] | None = None
        for attempt in range(_TRIES):
            random = np.random.default_rng([self._seed, slot, attempt, _PLACE])
            index = int(np.searchsorted(self._cumulative, random.random(), side="right"))
            height, width = self._sizes[index]
            window = draw_window(height, width, self._crop, self._augment.scale, random)
            try:
                pixels, valid = self._data.read(index, window)
            except ImageError as err:
                # Another place of the file may be whole, and another process may not know yet:
                # only what this very window gives decides, so that all processes draw alike.
                self._data.drop(index, str(err))
                continue
            found = pixels, valid, random
            if valid is None or 1 - valid.mean() <= self._data.max_nodata:
                break
        if found is None:
            raise DatasetError(
                f"{_TRIES} crops in a row lie in broken files, the last {self._data.broken[-1][1]}"
            )
        pixels, valid, random = found
        pixels = resized(np.ascontiguousarray(filled(pixels, valid)), self._crop)
        return turned([pixels], self._augment, random)[0]


def open_unlabeled(
    roots: Sequence[Path],
    spec: UnlabeledSpec,
    crop_px: int,
    channels: int = 3,
    log: Callable[[str], None] | None = None,
) -> UnlabeledSet:
    """Find images, look whether they can be read, and settle how their pixels are used.

    Args:
        roots: folders (searched with their subfolders, links followed, names that begin with a dot
            left out), images, or lists (.txt, .lst, .list: one image or folder per line, relative
            to the list; blank lines and those that begin with # do not count). An image found
            twice, also through a link, counts once.
        spec: bands, range and max_nodata; its ``roots`` are not looked at.
        crop_px: side of the crops that must fit into every image.
        channels: what the model takes.
        log: takes lines of text: the rules, and every file left out.

    Raises:
        InputError: a root is missing, or is nothing of the above.
        DatasetError: no image; bands, pixel type or size that cannot be used; or more than 5 % of
            the files are broken.
    """
    say = log or (lambda line: None)
    named: dict[Path, tuple[str, Path]] = {}
    for root in roots:
        for name, path in find_images(Path(root)):
            named.setdefault(path.resolve(), (name, path))
    if not named:
        raise DatasetError("distill.data.roots is empty; name a folder with images")
    files, broken = [], []
    for name, path in named.values():
        try:
            files.append(_inspect(path, name, spec, channels))
        except ImageError as err:
            broken.append((path, str(err)))
    for _, why in broken:
        say(f"skipped a broken file: {why}")
    if broken:
        say(f"{len(broken)} of {len(named)} files are broken")
    _check_broken(broken, len(named))
    data = UnlabeledSet(files, broken, spec, crop_px, channels)
    data.check_crop(crop_px)
    for rule in data.rules:
        say(rule)
    return data


def _open(path: Path) -> Raster:
    # GDAL would list the whole folder for every file it opens, to look for companions.
    with gdal_environment() as rasterio, rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"):
        return Raster(path)


def _inspect(path: Path, name: str, spec: UnlabeledSpec, channels: int) -> _File:
    """Header and a look at the pixels of one file.

    Raises:
        ImageError: it is broken.
        DatasetError: it is whole and cannot be used.
    """
    with _open(path) as raster:
        bands = _choose_bands(raster, spec.bands, channels)
        dtype = raster.dtypes[bands[0] - 1]
        if dtype not in _DTYPES:
            raise DatasetError(
                f"{path} has {dtype} pixels, expected {', '.join(_DTYPES)}; convert it, e.g. "
                f"gdal_translate -ot UInt16 {path.name} converted.tif"
            )
        area = raster.height * raster.width
        sequential = path.suffix.lower() in SEQUENTIAL
        whole = area <= (_WHOLE_SEQUENTIAL_PX if sequential else _WHOLE_PX)
        asked = spec.range is None and dtype != "uint8"
        sample = [
            _valid_values(raster, window, bands)
            for window in _probes(raster.height, raster.width, whole, asked)
        ]
        if not whole and not any(len(part) for part in sample):  # look closer before saying so
            windows = _probes(raster.height, raster.width, whole, many=True)
            sample = [_valid_values(raster, window, bands) for window in windows]
        if not any(len(part) for part in sample):
            raise ImageError(f"{path} holds no pixel with data where it was looked at")
        low, high = spec.range or (0.0, 255.0)
        if asked:
            low, high = _percentiles(sample)
    shape = (raster.height, raster.width, raster.count)
    return _File(path, name, path.stat().st_size, *shape, dtype, tuple(bands), low, high, whole)


def _choose_bands(raster: Raster, asked: list[int] | None, channels: int) -> list[int]:
    if asked is not None:
        if len(asked) not in (1, channels):
            raise DatasetError(
                f"distill.data.bands names {len(asked)} bands and the model takes {channels}"
            )
        if max(asked) > raster.count:
            raise DatasetError(
                f"distill.data.bands names band {max(asked)}, but {raster.path} has "
                f"{raster.count}; leave the file out or correct the bands"
            )
        if len({raster.dtypes[band - 1] for band in asked}) > 1:
            raise DatasetError(f"{raster.path}: the bands {asked} have different pixel types")
        return asked
    bands: list[int] = []
    for count in (channels, 1):
        try:
            bands = raster.choose_bands(None, count)
        except ImageError:
            continue
        break
    if not bands:
        example = list(range(1, channels + 1))
        raise DatasetError(
            f"{raster.path} has {raster.count} bands and the model takes {channels}; say which in "
            f"distill.data.bands, e.g. bands: {example}"
        )
    if len(bands) == 1 and raster.dtype == "uint8" and _has_palette(raster.path):
        raise DatasetError(
            f"{raster.path} holds numbers of a palette, which are no brightness; convert it: "
            f"gdal_translate -expand rgb {raster.path.name} converted.tif"
        )
    return bands


def _has_palette(path: Path) -> bool:
    with gdal_environment() as rasterio, open_quietly(rasterio, path) as data:
        return rasterio.enums.ColorInterp.palette in data.colorinterp


def _probes(height: int, width: int, whole: bool, many: bool) -> list[Window]:
    """Windows to look at: the whole file, or a grid that reaches its corners."""
    if whole:
        return [Window(0, 0, height, width)]
    count, side = (8, 128) if many else (3, 64)
    tall, wide = min(side, height), min(side, width)
    return [
        Window(y, x, y + tall, x + wide)
        for y in np.linspace(0, height - tall, count).astype(int).tolist()
        for x in np.linspace(0, width - wide, count).astype(int).tolist()
    ]


def _values(
    raster: Raster, window: Window, bands: Sequence[int]
) -> tuple[npt.NDArray[Any], BoolArray | None]:
    values = raster.read(window, list(bands))
    valid = raster.read_valid(window) if raster.masked else None
    if values.dtype.kind == "f":
        finite: BoolArray = np.isfinite(values).all(axis=2)
        valid = finite if valid is None else valid & finite
    return values, None if valid is None or valid.all() else valid


def _valid_values(raster: Raster, window: Window, bands: Sequence[int]) -> npt.NDArray[Any]:
    """Values ``(n, bands)`` of every k-th pixel that holds data."""
    values, valid = _values(raster, window, bands)
    step = max(1, int(np.ceil(np.sqrt(window.height * window.width / _SAMPLE_PX))))
    values = values[::step, ::step]
    return values.reshape(-1, len(bands)) if valid is None else values[valid[::step, ::step]]


def _percentiles(sample: list[npt.NDArray[Any]]) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(np.concatenate(sample), [2, 98]))
    return (low, high) if low < high else (low, low + 1.0)


def _planes(pixels: UInt8Array) -> Tensor:
    """``(H, W, C)`` as a tensor ``(C, H, W)`` of its own memory."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _identity(file: _File) -> list[Any]:
    return [file.name, file.size, file.width, file.height, file.count, file.dtype]


def _check_broken(broken: Sequence[tuple[Path, str]], total: int) -> None:
    if len(broken) > BROKEN_SHARE * total:
        names = ", ".join(str(path) for path, _ in broken[1:4])
        more = f"; also {names}" if names else ""
        more += f" and {len(broken) - 4} more" if len(broken) > 4 else ""
        raise DatasetError(
            f"{len(broken)} of {total} files are broken, more than {BROKEN_SHARE:.0%}: "
            f"{broken[0][1]}{more}; fetch them again or leave them out"
        )


def _rules(
    files: Sequence[_File], spec: UnlabeledSpec, crop_px: int, channels: int
) -> Iterator[str]:
    area = sum(file.height * file.width for file in files) / 1e6
    scaled = [file for file in files if file.dtype != "uint8"]
    single = [file for file in files if len(file.bands) < channels]
    slow = [f for f in files if not f.whole and f.path.suffix.lower() in SEQUENTIAL]
    yield (
        f"images: {len(files)} with {area:.1f} megapixels; each is drawn in proportion to its "
        f"area, counted up to {AREA_CROPS} crops of {crop_px} px"
    )
    if len(scaled) < len(files):
        yield f"8-bit images ({len(files) - len(scaled)}): pixels are used as they are"
    if scaled:
        first = scaled[0]
        what = "given values" if spec.range else "each image's 2nd and 98th percentile"
        yield (
            f"images of {' and '.join(sorted({file.dtype for file in scaled}))} ({len(scaled)}): "
            f"{what} become 0 and 255, linearly, clipped and rounded ({first.name}: {first.low:g} "
            f"and {first.high:g})"
        )
    if spec.bands:
        yield f"bands {', '.join(map(str, spec.bands))} of every image are used"
    if single:
        yield f"images of which one band is used ({len(single)}): repeated to {channels} channels"
    yield (
        f"crops with more than {spec.max_nodata:.0%} of pixels without data, as the files declare "
        f"it, are drawn again, at most {_TRIES} times; what is left is filled with the crop's mean"
    )
    if slow:
        yield (
            f"images so large that each crop decodes from the first row ({len(slow)}, e.g. "
            f"{slow[0].name}): gdal_translate -co TILED=YES makes a GeoTIFF that is read in parts"
        )
