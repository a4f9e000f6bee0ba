"""A new site: what adaptation may see of it, which labels it gets, and what is held out.

Pixels that are held out reach adaptation in no way: a picture that is shown holds the nearest shown
pixel wherever one is hidden, as a training view of a sensor set does. Neighbouring pixels are
nearly the same pixel, so what is held out is apart in space: other images, or blocks with a buffer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.blocks import TEST, TRAIN, BlockSpec, assign
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.labelled import IGNORE, LabelledSet, Sample, check_same_classes, open_labelled
from edgekd.contracts.optional import require
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_labelled import (
    SceneSample,
    SensorLabelledSet,
    camera_view,
    with_cameras_alone,
)
from edgekd.contracts.sensor_scenes import load_set, sensor_set_file
from edgekd.contracts.sensor_set import open_sensor_set
from edgekd.contracts.tensors import ClassSpec
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError

BoolArray = npt.NDArray[np.bool_]
#: blocks of a site that names no held-out part: side and buffer, px
BLOCKS = (32, 8)
#: of two groups of blocks one is labelled and seen, one is measured on
_FOLDS = 2


@dataclass(frozen=True)
class Picture:
    """What adaptation sees of an image.

    Attributes:
        pixels: ``(H, W, 3)`` uint8; a hidden pixel holds the nearest shown one.
        shown: ``(H, W)`` bool.
        target: ``(H, W)`` uint8 channels of the labels that may be drawn, IGNORE elsewhere.
    """

    pixels: UInt8Array
    shown: BoolArray
    target: UInt8Array


@dataclass(frozen=True)
class HeldOut:
    """What is measured on: ``(H, W, 3)`` uint8 and ``(H, W)`` uint8 channels, IGNORE elsewhere."""

    pixels: UInt8Array
    target: UInt8Array


@dataclass(frozen=True)
class Site:
    """A site whose images are read when they are asked for.

    Attributes:
        name, digest, simulated: of the set; the digest is that of its contents and of the split.
        classes: in the order of the channels.
        shown: id -> reads the picture that adaptation sees.
        held_out: id -> reads what is measured on; empty where nothing is held out.
        split: in words: how the two were told apart.
    """

    name: str
    digest: str
    simulated: bool
    classes: list[ClassSpec]
    shown: dict[str, Callable[[], Picture]]
    held_out: dict[str, Callable[[], HeldOut]]
    split: str


def open_site(recipe: Recipe, path: Path, blocks: tuple[int, int] | None, seed: int) -> Site:
    """Find out what of a labelled set is shown and what is held out.

    Args:
        recipe: of the checkpoint; its sensors, split and blocks hold for sensor sets, its classes
            for all.
        path: a sensor set, or whatever :func:`~edgekd.contracts.labelled.open_labelled` takes.
        blocks: side and buffer, px, to cut every image into blocks whatever the set says; None
            takes the set's or the recipe's own split, and :data:`BLOCKS` where there is none.
        seed: of the deal of blocks.

    Raises:
        DatasetError: nothing there, other classes, or blocks that do not fit the images.
        ImageError, InputError, RecipeError, EnvironmentLacksError: see ``open_sensor_set``.
    """
    path = Path(path)
    file = sensor_set_file(path)
    if file is not None:
        data: LabelledSet = _sensor_set(recipe, file, blocks, seed)
    else:
        data = open_labelled(path, None if blocks else recipe.data.split)
    check_same_classes(data.classes, list(recipe.io.classes), str(data.root))
    if not data.samples:
        raise DatasetError(f"{path} holds no image; there is nothing to adapt to")
    if file is None and (blocks or not _is_split(data)):
        return _cut(data, blocks or BLOCKS, seed)
    if not any(item.split == "train" for item in data.samples):
        raise DatasetError(
            f"{path} has no sample in split train, so no label may be drawn; name samples in "
            "splits.json, or cut the images themselves with --blocks SIDE,BUFFER"
        )
    splits = {item.split for item in data.samples}
    measured = next((name for name in ("test", "val") if name in splits), None)
    return Site(
        data.name,
        data.digest,
        isinstance(data, SensorLabelledSet) and data.sensor_set.simulated,
        data.classes,
        {item.id: _shown(data, item) for item in data.samples if item.split == "train"},
        {item.id: _held_out(data, item) for item in data.samples if item.split == measured},
        f"labels from split train, {_measured_on(measured)}" + _of_blocks(data),
    )


def _sensor_set(
    recipe: Recipe, file: Path, blocks: tuple[int, int] | None, seed: int
) -> SensorLabelledSet:
    """The camera's view; how few labels the recipe trained with does not bind a new site."""
    changes: dict[str, object] = {"labels_per_class": None}
    rule = recipe.data.split
    scenes = load_set(file)[0].scenes
    split = [item.split or (rule.split_of(item.id) if rule else None) for item in scenes]
    if blocks or not (any(split) or recipe.data.blocks):
        changes |= {"blocks": _block_spec(blocks or BLOCKS, seed), "split": None}
    elif any(split):
        changes |= {"blocks": None}
    recipe = with_cameras_alone(recipe, file)
    asked = recipe.model_copy(update={"data": recipe.data.model_copy(update=changes)})
    try:
        found = open_sensor_set(asked, file, every_class=False, resplit=blocks is not None)
        return camera_view(found)
    except DatasetError as err:
        if "blocks" in changes and "data.blocks.side_px" in str(err):
            raise DatasetError(f"{err}, with --blocks SIDE,BUFFER") from err
        raise


def _measured_on(split: str | None) -> str:
    return "nothing held out to measure on" if split is None else f"measured on split {split}"


def _of_blocks(data: LabelledSet) -> str:
    spec = data.sensor_set.data.blocks if isinstance(data, SensorLabelledSet) else None
    if spec is None:
        return ""
    return (
        f" (blocks of {spec.side_px} px, fold {spec.fold} of {spec.folds}, buffer {spec.buffer_px} "
        "px)"
    )


def _is_split(data: LabelledSet) -> bool:
    return any(item.split is not None for item in data.samples)


def _block_spec(blocks: tuple[int, int], seed: int) -> BlockSpec:
    side, buffer = blocks
    return BlockSpec(side_px=side, buffer_px=buffer, folds=_FOLDS, val=0, seed=seed)


def _cut(data: LabelledSet, blocks: tuple[int, int], seed: int) -> Site:
    """Every image in blocks: half of them shown, half held out."""
    side, buffer = blocks

    def parts(sample: Sample, target: UInt8Array) -> UInt8Array:
        salt = int.from_bytes(hashlib.sha256(sample.id.encode()).digest()[:4], "big")
        try:
            height, width = target.shape
            return assign(height, width, _block_spec(blocks, seed), target, salt=salt)
        except DatasetError as err:
            raise DatasetError(
                f"{sample.id} of {data.root} ({target.shape[1]}x{target.shape[0]} px) cannot be "
                f"cut into blocks of {side} px with a buffer of {buffer} px, half of them to be "
                "measured on; give others with --blocks SIDE,BUFFER, or name whole images of "
                "train and test in splits.json"
            ) from err

    def shown(sample: Sample) -> Callable[[], Picture]:
        def read() -> Picture:
            pixels, target = data.load(sample)
            mine = parts(sample, target) == TRAIN
            return hidden(
                pixels, mine & valid_pixels(sample), np.where(mine, target, np.uint8(IGNORE))
            )

        return read

    def held_out(sample: Sample) -> Callable[[], HeldOut]:
        def read() -> HeldOut:
            pixels, target = data.load(sample)
            mine = parts(sample, target) == TEST
            return HeldOut(pixels, np.where(mine, target, np.uint8(IGNORE)))

        return read

    return Site(
        data.name,
        data.digest,
        False,
        data.classes,
        {item.id: shown(item) for item in data.samples},
        {item.id: held_out(item) for item in data.samples},
        f"every image in blocks of {side} px with a buffer of {buffer} px: half for labels, half "
        "measured on",
    )


def _shown(data: LabelledSet, sample: Sample) -> Callable[[], Picture]:
    def read() -> Picture:
        if isinstance(data, SensorLabelledSet) and isinstance(sample, SceneSample):
            view = data.sensor_set.training_view(sample.scene)
            return Picture(view.visual8, view.valid, view.target)
        pixels, target = data.load(sample)
        return hidden(pixels, valid_pixels(sample), target)

    return read


def _held_out(data: LabelledSet, sample: Sample) -> Callable[[], HeldOut]:
    def read() -> HeldOut:
        return HeldOut(*data.load(sample))

    return read


def valid_pixels(sample: Sample) -> BoolArray:
    """Where an image has data."""
    with Raster(sample.image) as image:
        return image.read_valid(sample.region or Window(0, 0, image.height, image.width))


def hidden(pixels: UInt8Array, shown: BoolArray, target: UInt8Array) -> Picture:
    """A picture in which every pixel that is not shown holds the nearest one that is.

    Raises:
        EnvironmentLacksError: scipy is not installed.
    """
    if shown.any() and not shown.all():
        require("scipy", "sensors", "fill pixels that must not be seen")
        from scipy.ndimage import distance_transform_edt

        rows, columns = distance_transform_edt(~shown, return_distances=False, return_indices=True)
        pixels = pixels[rows, columns]
    return Picture(pixels, shown, np.where(shown, target, np.uint8(IGNORE)))
