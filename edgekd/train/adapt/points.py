"""A site whose labels are single points in a table, as who walked it or clicked on it has them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.contracts.artifacts import canonical_json, read_text, sha256_bytes, sha256_file
from edgekd.contracts.blocks import grown
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.labelled import IGNORE, Sample
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.registry import nearest
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError
from edgekd.train.adapt.site import BLOCKS, BoolArray, HeldOut, Picture, Site, hidden, valid_pixels

COLUMNS = ("image", "column", "row", "class")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class Point:
    """A labelled pixel: 0-based, from the upper left; ``line`` is that of the table."""

    line: int
    row: int
    column: int
    channel: int
    held_out: bool


def open_points(recipe: Recipe, folder: Path, table: Path, buffer_px: int | None) -> Site:
    """A folder of images and a table of points.

    Args:
        recipe: names the classes.
        folder: holds the images, or ``images/`` with them; masks beside them are not looked at.
        table: CSV with the columns image (file name, with or without suffix), column, row, class
            (a name), and, optionally, split: ``train`` (or empty) or ``test``.
        buffer_px: what lies so near to a test point is not shown; None is that of blocks.

    Raises:
        DatasetError: a column, image or class that is not there, a point outside its image, two
            classes for one pixel, or a point of train too near to one of test.
        ImageError: an image cannot be read.
    """
    buffer = BLOCKS[1] if buffer_px is None else buffer_px
    images = _images(folder)
    points = _read(table, images, folder, [item.name for item in recipe.io.classes])
    samples = {name: Sample(name, None, path) for name, path in images.items()}
    for name, found in points.items():
        _check(name, found, images[name], table, buffer)
    files = {path.name: sha256_file(path) for path in images.values()}
    text = canonical_json({"points": sha256_file(table), "images": files})
    classes = list(recipe.io.classes)

    def shown(name: str) -> Callable[[], Picture]:
        def read() -> Picture:
            pixels = _pixels(samples[name])
            of_test = _plane(points.get(name, []), pixels.shape[:2], held_out=True)
            seen = valid_pixels(samples[name]) & ~_near(of_test, buffer)
            mine = _plane(points.get(name, []), pixels.shape[:2], held_out=False)
            return hidden(pixels, seen, mine)

        return read

    def held_out(name: str) -> Callable[[], HeldOut]:
        def read() -> HeldOut:
            pixels = _pixels(samples[name])
            return HeldOut(pixels, _plane(points[name], pixels.shape[:2], held_out=True))

        return read

    measured = [name for name, found in points.items() if any(item.held_out for item in found)]
    return Site(
        folder.name,
        sha256_bytes(text.encode()),
        False,
        classes,
        {name: shown(name) for name in images},
        {name: held_out(name) for name in measured},
        f"points of {table.name}"
        + (f", measured on those of split test, {buffer} px around them not shown" if measured
           else ", none of split test"),
    )  # fmt: skip


def _images(folder: Path) -> dict[str, Path]:
    inside = folder / "images"
    place = inside if inside.is_dir() else folder
    if not place.is_dir():
        raise DatasetError(f"{folder} is no folder; --points wants the folder of the images")
    found: dict[str, Path] = {}
    for file in sorted(place.iterdir()):
        if file.suffix.lower() in _SUFFIXES:
            if file.stem in found:
                raise DatasetError(
                    f"{place} holds both {found[file.stem].name} and {file.name}; points name "
                    "images without suffix too, so remove one"
                )
            found[file.stem] = file
    if not found:
        raise DatasetError(f"{place} holds no image ({', '.join(_SUFFIXES)})")
    return found


def _read(
    table: Path, images: dict[str, Path], folder: Path, classes: list[str]
) -> dict[str, list[Point]]:
    reader = csv.DictReader(io.StringIO(read_text(table)))
    if reader.fieldnames is None or any(name not in reader.fieldnames for name in COLUMNS):
        raise DatasetError(
            f"{table} must have the columns {', '.join(COLUMNS)} (and, optionally, split); it has "
            f"{', '.join(reader.fieldnames or []) or 'none'}"
        )
    names = {path.name: stem for stem, path in images.items()} | {stem: stem for stem in images}
    found: dict[str, list[Point]] = {}
    try:
        for values in reader:
            line = reader.line_num
            told = {key: (values.get(key) or "").strip() for key in (*COLUMNS, "split")}
            where = f"{table} line {line}"
            if told["image"] not in names:
                near = nearest(told["image"], list(names))
                raise DatasetError(f"{where}: {folder} has no image '{told['image']}'{near}")
            if told["class"] not in classes:
                near = nearest(told["class"], classes)
                raise DatasetError(
                    f"{where}: the checkpoint has no class '{told['class']}'{near} (valid: "
                    f"{', '.join(classes)})"
                )
            if told["split"] not in ("", "train", "test"):
                raise DatasetError(
                    f"{where}: split is '{told['split']}', expected train, test or nothing"
                )
            try:
                row, column = int(told["row"]), int(told["column"])
            except ValueError as err:
                raise DatasetError(
                    f"{where}: column '{told['column']}' and row '{told['row']}' must be whole "
                    "pixels, counted from 0 at the upper left"
                ) from err
            point = Point(line, row, column, classes.index(told["class"]), told["split"] == "test")
            found.setdefault(names[told["image"]], []).append(point)
    except csv.Error as err:
        raise DatasetError(f"{table} line {reader.line_num}: not CSV: {err}") from err
    return found


def _check(name: str, points: list[Point], image: Path, table: Path, buffer: int) -> None:
    with Raster(image) as opened:
        height, width = opened.height, opened.width
    at: dict[tuple[int, int], Point] = {}
    for point in points:
        if not (0 <= point.row < height and 0 <= point.column < width):
            raise DatasetError(
                f"{table} line {point.line}: column {point.column}, row {point.row} is outside "
                f"{name} of {width}x{height} px"
            )
        other = at.setdefault((point.row, point.column), point)
        if other.channel != point.channel:
            raise DatasetError(
                f"{table} line {point.line} gives another class than line {other.line} to the "
                "same pixel"
            )
    tests = [item for item in points if item.held_out]
    for point in points:
        near = [
            item for item in tests
            if max(abs(item.row - point.row), abs(item.column - point.column)) <= buffer
        ]  # fmt: skip
        if near and not point.held_out:
            raise DatasetError(
                f"{table} line {point.line} is within {buffer} px of a point of split test (line "
                f"{near[0].line}), which would be learned by heart; leave one out, or give a "
                f"smaller buffer: --blocks {BLOCKS[0]},BUFFER"
            )


def _plane(points: list[Point], size: tuple[int, ...], *, held_out: bool) -> UInt8Array:
    target = np.full(size, IGNORE, dtype=np.uint8)
    for item in points:
        if item.held_out == held_out:
            target[item.row, item.column] = item.channel
    return target


def _near(target: UInt8Array, buffer: int) -> BoolArray:
    return grown(target != IGNORE, buffer)


def _pixels(sample: Sample) -> UInt8Array:
    """Of a whole image, as a labelled set reads them."""
    with Raster(sample.image) as image:
        bands = image.choose_bands(None, 3)
        dtype = image.dtypes[bands[0] - 1]
        if dtype != "uint8":
            raise DatasetError(f"{sample.image} has {dtype} pixels, expected uint8")
        window = Window(0, 0, image.height, image.width)
        return np.ascontiguousarray(image.read(window, bands), dtype=np.uint8)
