"""From the rows of a finished journal to the files asked for, each whole or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import edgekd
from edgekd.contracts.artifacts import prepare_parent, write_json
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.errors import CancelledError, GateError, OutputError
from edgekd.runtime.journal import Block, Journal
from edgekd.runtime.maps import (
    SCORE_TOP,
    class_look,
    create_map,
    probability_look,
    require_map_place,
    score_look,
)
from edgekd.runtime.polygons import Outline, require_polygon_place, write_polygons

SUMMARY_SCHEMA = 1
#: bars of the confidence histogram over 0-1
HISTOGRAM_BINS = 20
#: pixels that are counted at once
_COUNTED_PX = 1 << 24
#: rows whose polygons are traced together
_POLYGON_ROWS = 256


@dataclass(frozen=True)
class Products:
    """What is made of a scene.

    Attributes:
        map: class map, GeoTIFF.
        scores: confidence of each pixel's class as 8 bits, GeoTIFF.
        probabilities: those of all classes as 8 bits, a GeoTIFF with a band each.
        polygons: ``.gpkg`` or ``.geojson``; ``outline`` says how they are drawn.
        summary: JSON with areas, confidences and sizes.
    """

    map: Path
    scores: Path | None = None
    probabilities: Path | None = None
    polygons: Path | None = None
    summary: Path | None = None
    outline: Outline = field(default_factory=Outline)

    @property
    def confidence(self) -> bool:
        """Whether anybody wants to know it."""
        return self.scores is not None or self.summary is not None

    def paths(self) -> list[Path]:
        """Everything that will be there, the map last."""
        more = (self.scores, self.probabilities, self.polygons, self.summary)
        return [*(item for item in more if item is not None), self.map]

    def require_places(self, raster: Raster) -> None:
        """Raise unless all of it can be made of this scene, where it was asked for.

        Raises:
            OutputError: a name that does not fit, one name twice, or the input.
            ImageError: the scene has no place that the polygons' format could tell.
            EnvironmentLacksError: a library that writes polygons is not installed.
        """
        scene = raster.path
        require_map_place(self.map, scene)
        for other in (self.scores, self.probabilities):
            if other is not None:
                require_map_place(other, scene)
        if self.polygons is not None:
            require_polygon_place(self.polygons, raster)
        if self.summary is not None and self.summary.suffix.lower() != ".json":
            raise OutputError(
                f"the summary is JSON: give a name that ends in .json, received {self.summary}"
            )
        named = [item.resolve() for item in self.paths()]
        for path, place in zip(self.paths(), named, strict=True):
            if named.count(place) > 1:
                raise OutputError(f"{path} is named for two results; give each a name of its own")
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give the name of a file to write")
            if path.exists() and path.samefile(scene):
                raise OutputError(f"{path} is the input; choose another file")
            prepare_parent(path)


@dataclass
class Figures:
    """What the rows of a map add up to.

    Attributes:
        class_pixels: by class name.
        class_area_m2: likewise; None where the CRS tells no area.
        nodata: pixels without a class.
        histogram: class name -> counts of pixels by confidence, :data:`HISTOGRAM_BINS` bars over
            0-1; empty where nobody asked.
        polygons: number written.
        file_bytes: result -> bytes.
    """

    class_pixels: dict[str, int] = field(default_factory=dict)
    class_area_m2: dict[str, float] | None = None
    nodata: int = 0
    histogram: dict[str, list[int]] = field(default_factory=dict)
    polygons: int | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)


class _Counter:
    """Counts pixels by class and confidence, and the areas of rows."""

    def __init__(self, classes: list[ClassSpec], areas_m2: npt.NDArray[np.float64] | None) -> None:
        self._classes, self._areas_m2 = classes, areas_m2
        #: all rows cover the same, and need no counts of their own
        self._even = areas_m2 is not None and bool((areas_m2 == areas_m2[0]).all())
        self._pixels = np.zeros(256, np.int64)
        self._area = np.zeros(256)
        self._scores = np.zeros((256, 256), np.int64)

    def add(self, block: Block) -> None:
        step = max(_COUNTED_PX // block.classes.shape[1], 1)
        for start in range(0, len(block.classes), step):
            rows = slice(start, start + step)
            if block.scores is None:
                self._pixels += _histogram(block.classes[rows])
            else:
                pairs = _histogram(block.classes[rows], block.scores[rows])
                self._scores += pairs
                self._pixels += pairs.sum(axis=1)
        if self._areas_m2 is not None and not self._even:
            for number, values in enumerate(block.classes):
                counts = np.bincount(values, minlength=256)
                self._area += self._areas_m2[block.y0 + number] * counts

    def figures(self) -> Figures:
        if self._areas_m2 is not None and self._even:
            self._area = self._areas_m2[0] * self._pixels
        bars = {}
        if self._scores.any():
            place = np.minimum(
                np.arange(SCORE_TOP + 1) * HISTOGRAM_BINS // SCORE_TOP, HISTOGRAM_BINS - 1
            )
            for item in self._classes:
                counts = self._scores[item.index, : SCORE_TOP + 1]
                bars[item.name] = [
                    int(n) for n in np.bincount(place, counts, minlength=HISTOGRAM_BINS)
                ]
        return Figures(
            class_pixels={item.name: int(self._pixels[item.index]) for item in self._classes},
            class_area_m2=None
            if self._areas_m2 is None
            else {item.name: float(self._area[item.index]) for item in self._classes},
            nodata=int(self._pixels[MAP_NODATA]),
            histogram=bars,
        )


def _histogram(*planes: UInt8Array) -> npt.NDArray[np.int64]:
    """How often each value, or each pair of values, is there: ``(256,)`` or ``(256, 256)``.

    OpenCV's, without NumPy's 8 bytes a pixel; it counts in float32, exact to 2^24.
    """
    count = len(planes)
    found = cv2.calcHist(list(planes), list(range(count)), None, [256] * count, [0, 256] * count)
    return np.asarray(found, np.int64).reshape((256,) * count)


def finish(
    journal: Journal,
    raster: Raster,
    classes: list[ClassSpec],
    products: Products,
    tags: dict[str, str],
    about: dict[str, Any],
    cancel: Callable[[], bool] | None = None,
) -> Figures:
    """Write every product from the journal's rows; the map gets its name last, so that where it is
    everything is.

    The same rows give the same bytes, so this can be done again after a kill.

    Args:
        journal: with all rows committed.
        raster: the scene, for its georeference.
        classes: of the map.
        products: what is wanted.
        tags: of the GeoTIFFs.
        about: lines for the summary.
        cancel: asked between blocks of rows; True ends it, and the journal has all that is needed.

    Raises:
        CancelledError: as asked by ``cancel``.
        GateError: the counts do not add up to the scene's pixels.
        OutputError: a place cannot be written.
    """

    def blocks(plane: int | None = None) -> Iterator[Block]:
        for block in journal.blocks(plane):
            if cancel is not None and cancel():
                raise CancelledError(
                    f"{products.map} was cancelled while results were written; all rows are done "
                    "and kept, go on with --resume (resume=True)"
                )
            yield block

    height, width = raster.height, raster.width
    areas = raster.row_areas_m2()
    counter = _Counter(classes, areas)
    polygons = None
    if products.polygons is not None:
        polygons = write_polygons(
            products.polygons, _joined(blocks()), classes, raster, areas, products.outline
        )
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(
            create_map(
                products.map, height, width, class_look(classes, tags), raster, journal.folder
            )
        )
        scores = None
        if products.scores is not None:
            scores = stack.enter_context(
                create_map(products.scores, height, width, score_look(tags), raster, journal.folder)
            )
        for block in blocks():
            counter.add(block)
            writer.write(block.classes)
            if scores is not None and block.scores is not None:
                scores.write(block.scores)
        figures = counter.figures()
        figures.polygons = polygons
        covered, valid = sum(figures.class_pixels.values()), journal.state.valid
        if covered != valid or covered + figures.nodata != height * width:
            raise GateError(
                f"{covered} pixels have a class, {valid} hold data and {figures.nodata} are nodata "
                f"of {height * width}: the map was dropped"
            )
        sizes = {"map": writer.complete()}
        if scores is not None:
            sizes["scores"] = scores.complete()
        if products.probabilities is not None:
            planes = stack.enter_context(
                create_map(
                    products.probabilities, height, width, probability_look(classes, tags), raster,
                    journal.folder,
                )
            )  # fmt: skip
            # a class at a time, so that memory does not grow with their number
            for number in range(len(classes)):
                if number:
                    planes.next_band()
                seen = 0
                for block in blocks(number):
                    planes.write(block.classes)
                    seen += int(np.count_nonzero(block.classes != MAP_NODATA))
                if seen != valid:
                    raise GateError(
                        f"{seen} pixels have a probability of {classes[number].name}, {valid} hold "
                        "data: the map was dropped"
                    )
            sizes["probabilities"] = planes.complete()
        if products.polygons is not None:
            sizes["polygons"] = products.polygons.stat().st_size
        if products.summary is not None:
            write_json(products.summary, _summary(raster, figures, sizes, about))
            sizes["summary"] = products.summary.stat().st_size
        figures.file_bytes = sizes
    return figures


def _joined(blocks: Iterable[Block]) -> Iterator[tuple[int, UInt8Array]]:
    """(first row, classes) in larger blocks, which leave fewer polygons to be joined."""
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if block.y0 + len(block.classes) - held[0].y0 >= _POLYGON_ROWS:
            yield held[0].y0, np.concatenate([item.classes for item in held])
            held = []
    if held:
        yield held[0].y0, np.concatenate([item.classes for item in held])


def _summary(
    raster: Raster, figures: Figures, sizes: dict[str, int], about: dict[str, Any]
) -> dict[str, Any]:
    """The smallest product: what is where, how sure the model was, what it costs to send."""
    valid = sum(figures.class_pixels.values())
    before = raster.path.stat().st_size
    return {
        "schema": SUMMARY_SCHEMA,
        "edgekd": edgekd.__version__,
        **about,
        "scene": raster.path.name,
        "width": raster.width,
        "height": raster.height,
        "crs": None if raster.crs is None else str(raster.crs),
        "transform": None if raster.transform is None else list(raster.transform)[:6],
        "pixels_valid": valid,
        "pixels_nodata": figures.nodata,
        "classes": {
            name: {
                "pixels": count,
                "share": count / valid if valid else None,
                "area_m2": None
                if figures.class_area_m2 is None
                else round(figures.class_area_m2[name], 3),
                "confidence_histogram": figures.histogram.get(name),
            }
            for name, count in figures.class_pixels.items()
        },
        "polygons": figures.polygons,
        "bytes": {"scene": before, **sizes},
        "scene_over_product": {
            name: round(before / size, 1) for name, size in sizes.items() if size
        },
    }
