"""Tiles of labelled sets and synthetic ones: what a build compares, calibrates and judges on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.labelled import IGNORE, LabelledSet
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.windows import plan
from edgekd.errors import DatasetError, InputError


@dataclass(frozen=True)
class LabelledTile:
    """A tile of the model's input.

    Attributes:
        name: image and place.
        pixels: ``(tile, tile, C)`` uint8.
        target: ``(tile, tile)`` uint8 channel numbers, IGNORE where nothing is known; None where
            there are no labels.
    """

    name: str
    pixels: UInt8Array
    target: UInt8Array | None


def check_enough(data: LabelledSet, split: str, tile_px: int, count: int) -> None:
    """Raise where a split has fewer places for tiles than are asked for; no pixel is read.

    Raises:
        InputError: says how many there are.
        DatasetError: the split is empty.
    """
    sizes = [data.size(sample) for sample in data.split(split)]
    places = sum(len(row) for h, w in sizes for row in plan(h, w, tile_px, 0))
    if places < count:
        fewer = f", or ask for fewer: --set calibration.tiles={places}" if places >= 2 else ""
        raise InputError(
            f"calibration asks for {count} tiles of {tile_px} px, and split {split} of {data.name} "
            f"has room for {places}; give more images{fewer}"
        )


def labelled_tiles(
    data: LabelledSet, split: str, tile_px: int, count: int, distinct: bool = False
) -> list[LabelledTile]:
    """Tiles of a split, spread evenly over its images and places, no two of them equal.

    Images smaller than a tile are mirrored to full size; what was mirrored has no label. Where two
    places look the same (black margins of a scene), another one is taken. The first and the last
    tile are the same for every ``count`` from 2 on.

    Args:
        data, split: the set and its part.
        tile_px: side of a tile.
        count: most tiles.
        distinct: refuse a set in which two images hold the same picture.

    Raises:
        DatasetError: with ``distinct``, the first two such images.
    """
    places: list[tuple[int, int]] = []
    samples = data.split(split)
    windows = []
    for number, sample in enumerate(samples):
        region = data.size(sample)
        mine = [w for row in plan(region[0], region[1], tile_px, 0) for w in row]
        windows.append(mine)
        places += [(number, place) for place in range(len(mine))]
    last = len(places) - 1
    count = min(count, len(places))
    picks = np.unique(np.linspace(0, last, count).round().astype(int)).tolist()
    seen: dict[bytes, str] = {}
    held: tuple[int, UInt8Array, UInt8Array] | None = None

    def take(pick: int) -> LabelledTile | None:
        """The tile of a place; None where another one holds the same pixels."""
        nonlocal held
        number, place = places[pick]
        if held is None or held[0] != number:
            pixels, target = data.load(samples[number])
            height, width = target.shape
            more = ((0, max(0, tile_px - height)), (0, max(0, tile_px - width)))
            held = (
                number,
                np.pad(pixels, (*more, (0, 0)), mode="symmetric"),
                np.pad(target, more, constant_values=IGNORE),
            )
        window = windows[number][place]
        cut = (slice(window.y0, window.y1), slice(window.x0, window.x1))
        mark = hashlib.sha256(held[1][cut].tobytes()).digest()
        name = samples[number].id
        if mark in seen:
            if distinct and seen[mark] != name and np.ptp(held[1][cut]) > 0:
                raise DatasetError(
                    f"{seen[mark]} and {name} of {data.name}, split {split}, hold the same pixels; "
                    "a set that repeats itself looks larger than it is: remove copies"
                )
            return None
        seen[mark] = name
        return LabelledTile(
            name=f"{samples[number].id} at row {window.y0} column {window.x0}",
            pixels=np.ascontiguousarray(held[1][cut]),
            target=np.ascontiguousarray(held[2][cut]),
        )

    def first(order: Iterable[int], most: int) -> dict[int, LabelledTile]:
        found: dict[int, LabelledTile] = {}
        for pick in order:
            if len(found) >= most:
                break
            tile = take(pick)
            if tile is not None:
                found[pick] = tile
        return found

    # The two ends are found first and alike for every count: a bundle's golden tiles are the ends
    # of what its precisions are judged on.
    ends = list(first(dict.fromkeys([0, last, *range(last)]), min(count, 2)).items())
    tried = {pick for pick, _ in ends}
    rest = dict.fromkeys([*picks, *range(last + 1)])
    middle = first((pick for pick in rest if pick not in tried), count - len(ends))
    inner = [tile for _, tile in sorted(middle.items())]
    tiles = [ends[0][1], *inner, *(tile for _, tile in ends[1:])] if ends else []
    return tiles


def golden_tiles(
    recipe: Recipe, data: LabelledSet | None, count: int
) -> tuple[list[UInt8Array], str]:
    """Tiles ``(tile, tile, C)`` uint8 to compare on, and a sentence where they come from.

    Taken from validation images, so that neither tuning crops nor test pixels are shipped.
    """
    from edgekd.deploy.export.onnx_export import synthetic_tile

    spec = recipe.io.inputs[0]
    if data is None:
        picture = synthetic_tile(spec.tile_px, spec.channel_count)
        return [picture], "synthetic picture (no data set at hand)"
    tiles = labelled_tiles(data, "val", spec.tile_px, count)
    names = ", ".join(tile.name for tile in tiles)
    return [tile.pixels for tile in tiles], f"real pixels of {data.name}, split val: {names}"
