"""A map that ``edgekd run`` wrote, read by blocks: classes, or the probabilities of all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.tensors import MAP_NODATA
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError, InputError
from edgekd.runtime.maps import CLASS_TAG, COG_BLOCK_PX, PROBABILITIES, PRODUCT_TAG

#: values of all bands, and columns, that are read at once
_READ, _READ_PX = 1 << 24, 1 << 13
#: what the file's tags may say of the model that made it, and of the scene
_MODEL_TAGS = ("EDGEKD_VERSION", "EDGEKD_BUNDLE", "EDGEKD_MODEL_SHA256", "SIMULATED")


@dataclass(frozen=True)
class Part:
    """Pixels of a window of the map.

    Attributes:
        window: where; its corner is that of a block of a COG.
        classes: number of each pixel's class in the map's list, ``(h, w)`` uint8: the highest of
            the probabilities. 255 without data.
        codes: of a map of probabilities, ``(K, h, w)`` uint8; else None.
        scale: what codes are multiplied with, so that each pixel's are 1 together, and those
            without data 0; ``(h, w)`` float32.
    """

    window: Window
    classes: UInt8Array
    codes: UInt8Array | None = None
    scale: npt.NDArray[np.float32] | None = None

    def chance(self, number: int) -> npt.NDArray[np.float32]:
        """Probability of a class, ``(h, w)``; 0 without data."""
        assert self.codes is not None and self.scale is not None
        chance: npt.NDArray[np.float32] = self.codes[number] * self.scale
        return chance

    def chances(self) -> npt.NDArray[np.float64]:
        """Sums of the probabilities of all classes over each row, ``(h, K)``."""
        assert self.codes is not None
        rows = [self.chance(n).sum(axis=1, dtype=np.float64) for n in range(len(self.codes))]
        return np.stack(rows, axis=1)


class ClassMap:
    """An open map; use it in a ``with`` block.

    Args:
        path: GeoTIFF with the tag ``CLASS_NAMES``: one band of class indices, or a band of
            probabilities for each class.

    Attributes:
        raster: the file.
        classes: (index, name) of each class; of probabilities in the order of the bands.
        soft: whether it holds probabilities.
        model: what the file says of the model that made it.

    Raises:
        ImageError: it cannot be read.
        InputError: it is no such map.
    """

    def __init__(self, path: Path) -> None:
        self.raster = Raster(path, "none")
        try:
            self.classes, self.soft = _classes(self.raster)
        except InputError:
            self.raster.close()
            raise
        tags = self.raster.tags
        self.model = {key.lower(): tags[key] for key in _MODEL_TAGS if key in tags}
        self._channel = np.full(256, MAP_NODATA, np.uint8)
        for number, (index, _) in enumerate(self.classes):
            self._channel[index] = number

    def areas_m2(self, gsd_m: float | None) -> tuple[npt.NDArray[np.float64], str]:
        """Area of a pixel of each row, ``(height,)`` m², and in words where it is from.

        Args:
            gsd_m: side of a pixel on the ground, m, for a map that does not tell.

        Raises:
            InputError: neither tells, or both do.
        """
        raster = self.raster
        areas = raster.row_areas_m2()
        if areas is not None and gsd_m is not None:
            raise InputError(
                f"--gsd-m {gsd_m:g} is for a map without a place, and {raster.path} has one "
                f"({raster.crs}), which tells areas; leave --gsd-m out"
            )
        if areas is not None:
            return areas, f"on the ground, from {raster.crs}"
        if gsd_m is not None:
            return np.full(raster.height, gsd_m**2), f"given: pixels of {gsd_m:g} m (--gsd-m)"
        lacks = "has no CRS"
        if raster.crs is not None:
            lacks = f"has a CRS that tells no area ({raster.crs})"
        raise InputError(
            f"{raster.path} {lacks}, so nobody knows how large its pixels are; run over a scene "
            "with a place, or give the side of a pixel on the ground in m with --gsd-m"
        )

    def parts(self) -> Iterator[Part]:
        """The whole map, every pixel once, a bounded number at a time.

        Raises:
            ImageError: the pixels cannot be decoded.
            InputError: a value that is no class, or a pixel without any probability.
        """
        raster, step = self.raster, COG_BLOCK_PX
        bands = list(range(1, raster.count + 1))
        across = max(min(_READ // (step * len(bands)), _READ_PX) // step, 1) * step
        for y in range(0, raster.height, step):
            for x in range(0, raster.width, across):
                window = Window(
                    y, x, min(y + step, raster.height), min(x + across, raster.width)
                )  # fmt: skip
                planes = np.moveaxis(raster.read(window, bands), 2, 0).astype(np.uint8, copy=False)
                yield self._soft(window, planes) if self.soft else self._hard(window, planes[0])

    def _hard(self, window: Window, values: UInt8Array) -> Part:
        classes = self._channel[values]
        wrong = (values != MAP_NODATA) & (classes == MAP_NODATA)
        if wrong.any():
            y, x = (int(place[0]) for place in np.nonzero(wrong))
            raise InputError(
                f"{self.raster.path} holds {values[y, x]} at row {window.y0 + y}, column "
                f"{window.x0 + x}, which is none of its classes "
                f"({', '.join(f'{i} {n}' for i, n in self.classes)}); run it again"
            )
        return Part(window, classes)

    def _soft(self, window: Window, codes: UInt8Array) -> Part:
        valid = (codes != MAP_NODATA).all(axis=0)
        nothing = valid & ~codes.any(axis=0)
        if nothing.any():
            y, x = (int(place[0]) for place in np.nonzero(nothing))
            raise InputError(
                f"{self.raster.path} gives every class the probability 0 at row {window.y0 + y}, "
                f"column {window.x0 + x}; it was changed since edgekd wrote it: run it again"
            )
        classes = codes.argmax(axis=0).astype(np.uint8)
        classes[~valid] = MAP_NODATA
        total = codes.sum(axis=0, dtype=np.float32)
        scale = np.divide(1, total, where=valid, out=np.zeros_like(total))
        return Part(window, classes, codes, scale)

    def close(self) -> None:
        """Close the file; safe to call twice."""
        self.raster.close()

    def __enter__(self) -> ClassMap:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _classes(raster: Raster) -> tuple[list[tuple[int, str]], bool]:
    """(index, name) of each class in the order of the bands, and whether they are probabilities."""
    named = _names(raster)
    soft = raster.tags.get(PRODUCT_TAG) == PROBABILITIES
    if set(raster.dtypes) == {"uint8"}:
        if soft and sorted(raster.descriptions) == sorted(named.values()):
            index = {name: number for number, name in named.items()}
            return [(index[name], name) for name in raster.descriptions], True
        if not soft and raster.count == 1 and raster.tags.get(PRODUCT_TAG) is None:
            return sorted(named.items()), False
    pairs = zip(raster.descriptions, raster.dtypes, strict=True)
    bands = ", ".join(f"{text or 'unnamed'} ({kind})" for text, kind in pairs)
    raise InputError(
        f"{raster.path} is no map of edgekd: it names the classes {', '.join(named.values())} and "
        f"has the bands {bands}, expected one of 8-bit classes, or a probability of each; {_ADVICE}"
    )


_ADVICE = "make one: edgekd run BUNDLE SCENE.tif -o map.tif --probabilities chance.tif"


def _names(raster: Raster) -> dict[int, str]:
    text = raster.tags.get(CLASS_TAG)
    if text is None:
        raise InputError(
            f"{raster.path} is no map of edgekd: it lacks the tag {CLASS_TAG}, which names its "
            f"classes; {_ADVICE}"
        )
    try:
        named = {int(index): name for index, name in json.loads(text).items()}
        good = bool(named) and all(isinstance(name, str) for name in named.values())
        good &= len(set(named.values())) == len(named)
        good &= all(0 <= index < MAP_NODATA for index in named)
    except (ValueError, AttributeError):
        good = False
    if not good:
        raise ImageError(
            f"{raster.path} is damaged: its tag {CLASS_TAG} names no classes ({text[:80]!r}); "
            f"{_ADVICE}"
        )
    return named
