"""What precisions of a product are calibrated and judged on: samples of its own kind."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.labelled import IGNORE, LabelledSet
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import CalibrationSpec, Recipe
from edgekd.contracts.tensors import ImageInput
from edgekd.deploy.parity import Tensors
from edgekd.deploy.quantize.calibrate import WATCHED_TILES
from edgekd.deploy.quantize.ranges import input_sha256, read_calibration
from edgekd.deploy.tiles import LabelledTile, labelled_tiles
from edgekd.errors import InputError

Measure = Literal["mIoU", "accuracy"]
#: validation tiles that a precision is judged on, between the two numbers
MOST_JUDGED, FEWEST_JUDGED = 32, 4
#: and their pixels: 4 tiles of 1024 px, 16 of 512
JUDGED_PX = 4 << 20


@dataclass(frozen=True)
class Sample:
    """An input of the model, with what is known of the answer.

    Attributes:
        inputs: makes the input's tensors, which are large, when they are wanted.
        labels: channel numbers uint8: ``(H, W)`` of a tile, with
            :data:`~edgekd.contracts.labelled.IGNORE` where nothing is known, or ``(N,)`` of N
            places; None where there are none.
        size_px: pixels of the pictures in it.
        count: of tiles or places in it.
    """

    inputs: Callable[[], Tensors]
    labels: npt.NDArray[np.uint8] | None
    size_px: int
    count: int = 1


class Material(abc.ABC):
    """Where samples come from.

    Attributes:
        unit: what one is: ``tile`` or ``place``.
        measure: what a gate of accuracy is about.
        classes: of the answers.
        saved: a calibration file to use in place of calibrating; None calibrates.
    """

    unit: str
    measure: Measure
    classes: int
    saved: Path | None

    @abc.abstractmethod
    def require(self) -> None:
        """Raise InputError unless there is something to judge on, and ``saved`` can be read."""

    @property
    @abc.abstractmethod
    def input_sha256(self) -> Sha256:
        """Hash of what evidence becomes before the model sees it."""

    @abc.abstractmethod
    def judged(self) -> list[Sample]:
        """Of the validation split."""

    @abc.abstractmethod
    def calibrating(self, spec: CalibrationSpec | None) -> tuple[Sequence[Sample], int, str]:
        """Of the split that calibrates, one tile or place in each.

        Args:
            spec: of the recipe; None where it has none, and few are enough.

        Returns:
            the samples, how many of them are wanted, and where they come from, in words.
        """


@dataclass(frozen=True)
class Images:
    """Where tiles come from.

    Attributes:
        data: labelled set whose validation split judges; None where it is not here.
        calibration: set that calibration tiles come from; None where it is not here.
        saved: a calibration file to use in place of calibrating.
    """

    data: LabelledSet | None
    calibration: LabelledSet | None = None
    saved: Path | None = None


def require_images(images: Images) -> None:
    """Raise InputError without a set to judge on, or with a calibration file that is none."""
    if images.data is None:
        raise InputError(
            "a lower precision is judged on real images, and the data set is not here; give "
            "its place with --data, or allow fp32 only: --set precision.allowed=[fp32]"
        )
    if images.saved is not None:
        read_calibration(images.saved)


def tile_samples(tiles: Sequence[LabelledTile], image: ImageInput) -> list[Sample]:
    """Tiles as samples of a model with this input."""
    normalize = Normalizer(image)

    def sample(tile: LabelledTile) -> Sample:
        return Sample(
            lambda: {image.name: normalize(tile.pixels)[None]},
            tile.target,
            tile.pixels[..., 0].size,
        )

    return [sample(tile) for tile in tiles]


class TileMaterial(Material):
    """Tiles of labelled images.

    Args:
        recipe: of maps.
        images: the sets.
    """

    unit, measure = "tile", "mIoU"

    def __init__(self, recipe: Recipe, images: Images) -> None:
        self._images, self._spec = images, recipe.io.inputs[0]
        self.classes, self.saved = len(recipe.io.classes), images.saved

    def require(self) -> None:
        """See :func:`require_images`."""
        require_images(self._images)

    @property
    def input_sha256(self) -> Sha256:
        """Of the recipe's input: channels, tile and normalisation."""
        return input_sha256(self._spec)

    def judged(self) -> list[Sample]:
        """Spread over the validation images."""
        data = self._images.data
        assert data is not None  # of require()
        side = self._spec.tile_px
        count = min(MOST_JUDGED, max(FEWEST_JUDGED, JUDGED_PX // (side * side)))
        found = tile_samples(labelled_tiles(data, "val", side, count), self._spec)
        if not any(item.labels is not None and (item.labels != IGNORE).any() for item in found):
            raise InputError(
                f"the validation tiles of {data.name} hold no labelled pixel, so nobody can "
                "say what a lower precision costs; label some, or allow fp32 only: "
                "--set precision.allowed=[fp32]"
            )
        return found

    def calibrating(self, spec: CalibrationSpec | None) -> tuple[Sequence[Sample], int, str]:
        """No two equal."""
        data = self._images.calibration or self._images.data
        assert data is not None  # of require()
        asked = spec or CalibrationSpec(tiles=WATCHED_TILES)
        tiles = labelled_tiles(data, asked.split, self._spec.tile_px, asked.tiles, distinct=True)
        wanted = asked.tiles if spec else min(asked.tiles, len(tiles))
        names = ", ".join(sorted({tile.name.split(" at ")[0] for tile in tiles}))
        source = f"{data.name}, split {asked.split}: {names}"
        return tile_samples(tiles, self._spec), wanted, source
