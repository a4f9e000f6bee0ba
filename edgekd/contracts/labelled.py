"""Labelled images: how they are laid out, split, read and checked. Without torch.

Two layouts are understood:

* a folder with ``images/``, ``masks/`` (8-bit index images, same stem) and ``classes.json``
  (``{"classes": [{"index", "name", "rgb_hex"}], "ignore_index"}``); the split comes from
  ``splits.json`` (``{"train": [stems], "val": [...], "test": [...]}``) in the folder or from a
  rule in the recipe;
* a described set: a YAML file of :mod:`edgekd.contracts.calibration`, given itself or as the
  folder of the same name beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import (
    canonical_json,
    read_json,
    read_text,
    sha256_bytes,
    sha256_file,
)
from edgekd.contracts.calibration import CalibrationSet
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.recipe import SplitRule
from edgekd.contracts.schema import load_document
from edgekd.contracts.tensors import ClassSpec, check_classes
from edgekd.contracts.windows import Window
from edgekd.errors import DatasetError

#: target value of pixels that count neither way; class channels are 0, 1, 2, ...
IGNORE = 255
SPLITS = ("train", "val", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class Sample:
    """One labelled region.

    Attributes:
        region: part of the image that belongs to the sample; None is all of it.
        boxes: ``(n, 5)`` int64 rows xmin, ymin, xmax, ymax, class index, or None for masks.
        weight: relative frequency in tuning, per pixel of area.
    """

    id: str
    split: str | None
    image: Path
    mask: Path | None = None
    boxes: npt.NDArray[np.int64] | None = None
    region: Window | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class LabelledSet:
    """Samples with a common list of classes.

    Attributes:
        classes: the classes, in the order of the model's channels; the ignore index is not one.
        digest: sha256 over everything that decides what is trained and measured: the contents of
            the files, split and classes.
    """

    name: str
    root: Path
    classes: list[ClassSpec]
    ignore_index: int | None
    samples: list[Sample]
    box_shape: str
    digest: str

    @property
    def simulated(self) -> bool | None:
        """Whether the set was computed and not measured; None where it does not say."""
        return None

    @property
    def split_advice(self) -> str:
        """How samples get into a split."""
        return (
            'name samples in splits.json ({"train": [...], "val": [...], "test": [...]}) or set '
            "data.split in the recipe"
        )

    def split(self, name: str) -> list[Sample]:
        """The samples of a split; ``all`` gives every one.

        Raises:
            DatasetError: no such split, or it is empty.
        """
        if name not in (*SPLITS, "all"):
            raise DatasetError(f"split '{name}' does not exist (valid: train, val, test, all)")
        chosen = [item for item in self.samples if name in ("all", item.split)]
        if not chosen:
            raise DatasetError(f"{self.root} has no sample in split '{name}'; {self.split_advice}")
        return chosen

    def size(self, sample: Sample) -> tuple[int, int]:
        """Height and width of a sample, px, without reading its pixels.

        Raises:
            ImageError: the image cannot be opened.
        """
        if sample.region is not None:
            return sample.region.y1 - sample.region.y0, sample.region.x1 - sample.region.x0
        with Raster(sample.image) as image:
            return image.height, image.width

    def load(self, sample: Sample) -> tuple[UInt8Array, UInt8Array]:
        """Pixels ``(H, W, 3)`` uint8 and targets ``(H, W)`` uint8 of a sample.

        Targets are channel numbers (position in :attr:`classes`), :data:`IGNORE` where the label
        counts neither way.

        Raises:
            ImageError: an image or mask cannot be read.
            DatasetError: sizes differ, or a label is outside the classes.
        """
        with Raster(sample.image) as image:
            bands = image.choose_bands(None, 3)
            window = sample.region or Window(0, 0, image.height, image.width)
            if window.y1 > image.height or window.x1 > image.width:
                raise DatasetError(
                    f"sample {sample.id}: its region ends at row {window.y1}, column {window.x1}, "
                    f"but {sample.image} has {image.height} rows and {image.width} columns"
                )
            dtype = image.dtypes[bands[0] - 1]
            if dtype != "uint8":
                raise DatasetError(f"{sample.image} has {dtype} pixels, expected uint8")
            pixels = np.ascontiguousarray(image.read(window, bands), dtype=np.uint8)
            valid = image.read_valid(window)
            size = (image.height, image.width)
        if sample.mask is not None:
            target = self._mask(sample, window, size)
        else:
            target = self._boxes(sample, window)
        target[~valid] = IGNORE
        return pixels, target

    def _mask(self, sample: Sample, window: Window, size: tuple[int, int]) -> UInt8Array:
        assert sample.mask is not None
        with Raster(sample.mask) as mask:
            if mask.count != 1 or mask.dtype != "uint8":
                raise DatasetError(
                    f"{sample.mask} must be one band of 8-bit class indices; it has {mask.count} "
                    f"band(s) of {mask.dtype}"
                )
            if (mask.height, mask.width) != size:
                raise DatasetError(
                    f"{sample.mask} is {mask.width}x{mask.height} px but its image is "
                    f"{size[1]}x{size[0]} px"
                )
            values = np.asarray(mask.read(window, [1])[:, :, 0], dtype=np.uint8)
        table = np.full(256, -1, dtype=np.int16)
        for channel, item in enumerate(self.classes):
            table[item.index] = channel
        if self.ignore_index is not None:
            table[self.ignore_index] = IGNORE
        target = table[values]
        if (target < 0).any():
            row, column = (int(axis[0]) for axis in np.nonzero(target < 0))
            known = ", ".join(f"{item.index} {item.name}" for item in self.classes)
            if self.ignore_index is not None:
                known += f"; ignored: {self.ignore_index}"
            raise DatasetError(
                f"{sample.mask} holds class index {values[row, column]} (first at row "
                f"{row + window.y0}, column {column + window.x0}), which is not in the classes "
                f"({known}); correct the mask, or name the class in classes.json and the recipe"
            )
        return target.astype(np.uint8)

    def _boxes(self, sample: Sample, window: Window) -> UInt8Array:
        assert sample.boxes is not None
        channel_of = {item.index: channel for channel, item in enumerate(self.classes)}
        target = np.zeros((window.height, window.width), dtype=np.uint8)
        for xmin, ymin, xmax, ymax, index in sample.boxes:
            x0, x1 = max(int(xmin), window.x0), min(int(xmax), window.x1)
            y0, y1 = max(int(ymin), window.y0), min(int(ymax), window.y1)
            if x0 >= x1 or y0 >= y1:
                continue
            part = target[y0 - window.y0 : y1 - window.y0, x0 - window.x0 : x1 - window.x0]
            channel = channel_of[int(index)]
            if self.box_shape == "box":
                part[:] = channel
                continue
            u = (np.arange(x0, x1) + 0.5 - (xmin + xmax) / 2) / ((xmax - xmin) / 2)
            v = (np.arange(y0, y1) + 0.5 - (ymin + ymax) / 2) / ((ymax - ymin) / 2)
            part[(v * v)[:, None] + (u * u)[None, :] <= 1.0] = channel
        return target


def open_labelled(path: Path, rule: SplitRule | None = None) -> LabelledSet:
    """Find out what is at ``path`` and read its index.

    Args:
        path: a described set (``.yaml`` or its folder) or a folder with images and masks.
        rule: split by name, for sets that do not say it themselves.

    Raises:
        DatasetError: nothing there that is laid out as this module says, or the set and the rule
            put a sample into different splits.
        RecipeError: a descriptor with faults.
    """
    path = Path(path)
    found = _open(path, rule)
    if rule is not None:
        for sample in found.samples:
            other = rule.split_of(sample.id)
            if other is not None and other != sample.split:
                raise DatasetError(
                    f"{path} puts sample {sample.id} into split {sample.split}, the recipe's "
                    f"data.split into {other}; say it in one place only"
                )
    return found


def _open(path: Path, rule: SplitRule | None) -> LabelledSet:
    if path.suffix in (".yaml", ".yml"):
        return _described(path)
    if path.name in ("", ".."):
        path = path.resolve()
    described = path.parent / f"{path.name}.yaml"
    if described.is_file():
        return _described(described)
    if not path.is_dir():
        fault = "is no folder" if path.exists() else "does not exist"
        raise DatasetError(
            f"{path} {fault}; expected a folder with images, masks and "
            "classes.json, or a .yaml that describes a set"
        )
    return _folder(path, rule)


def _described(path: Path) -> LabelledSet:
    spec = load_document(CalibrationSet, path)
    root = (path.parent / spec.root).resolve()
    checked: set[tuple[str, str]] = set()

    def verified(name: str, digest: str | None) -> Path:
        file = root / name
        if (name, digest) in checked:
            return file
        if not file.is_file():
            raise DatasetError(f"{file} is named in {path} and does not exist")
        if digest is None:
            raise DatasetError(f"{path} gives no sha256 for {name}")
        if sha256_file(file) != digest:
            raise DatasetError(f"{file} is not the file that {path} describes (sha256 differs)")
        checked.add((name, digest))
        return file

    samples = []
    for item in spec.samples:
        image = verified(item.image, item.image_sha256)
        region = None
        if item.region_xyxy is not None:
            x0, y0, x1, y1 = item.region_xyxy
            region = Window(y0, x0, y1, x1)
        mask = boxes = None
        if spec.labels == "masks":
            mask = verified(str(item.mask), item.mask_sha256)
        else:
            boxes = _read_boxes(verified(str(item.boxes), item.boxes_sha256), item.box_labels)
        samples.append(Sample(item.id, item.split, image, mask, boxes, region, item.weight))
    told = {"title", "source", "licence", "attribution"}  # words, not data
    digest = sha256_bytes(canonical_json(spec.model_dump(mode="json", exclude=told)).encode())
    return LabelledSet(
        spec.name, root, spec.classes, spec.ignore_index, samples, spec.box_shape, digest
    )


def _read_boxes(path: Path, labels: dict[str, int]) -> npt.NDArray[np.int64]:
    rows = []
    reader = csv.DictReader(io.StringIO(read_text(path)))
    columns = ("xmin", "ymin", "xmax", "ymax", "label")
    if reader.fieldnames is None or any(name not in reader.fieldnames for name in columns):
        raise DatasetError(f"{path} must have the columns {', '.join(columns)}")
    for line, row in _csv_rows(path, reader):
        try:
            box = [int(row[name]) for name in columns[:4]]
        except (TypeError, ValueError) as err:
            raise DatasetError(f"{path} line {line}: box edges must be whole pixels") from err
        if box[0] >= box[2] or box[1] >= box[3]:
            raise DatasetError(f"{path} line {line}: box {box} has no area")
        if row["label"] not in labels:
            raise DatasetError(
                f"{path} line {line}: label '{row['label']}' is not among "
                f"{', '.join(labels) or 'the declared labels (none)'}"
            )
        rows.append([*box, labels[row["label"]]])
    return np.asarray(rows, dtype=np.int64).reshape(-1, 5)


def _csv_rows(path: Path, reader: csv.DictReader[str]) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as err:
        raise DatasetError(f"{path} line {reader.line_num}: not CSV: {err}") from err


def _folder(root: Path, rule: SplitRule | None) -> LabelledSet:
    for name in ("images", "masks"):
        if not (root / name).is_dir():
            raise DatasetError(
                f"{root} has no folder {name}/; expected images/, masks/ and classes.json"
            )
    if not (root / "classes.json").is_file():
        raise DatasetError(f"{root} has no classes.json; it names the classes and their indices")
    classes, ignore_index = _read_classes(root / "classes.json")
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")
    if not images:
        raise DatasetError(f"{root / 'images'} holds no image ({', '.join(_SUFFIXES)})")
    lacking = sorted(set(images) - set(masks))
    if lacking:
        raise DatasetError(
            f"{len(lacking)} image(s) in {root} have no mask of the same name, e.g. {lacking[0]}"
        )
    splits = _read_splits(root / "splits.json", set(images))
    samples = []
    for stem, image in images.items():
        split = splits.get(stem) if splits is not None else rule and rule.split_of(stem)
        samples.append(Sample(stem, split or None, image, masks[stem]))
    digest = sha256_bytes(
        canonical_json(
            {
                "classes": [item.model_dump() for item in classes],
                "ignore_index": ignore_index,
                "samples": [
                    [item.id, item.split, sha256_file(item.image), sha256_file(masks[item.id])]
                    for item in samples
                ],
            }
        ).encode()
    )
    return LabelledSet(root.name, root, classes, ignore_index, samples, "box", digest)


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() not in _SUFFIXES:
            continue
        if file.stem in found:
            raise DatasetError(
                f"{folder} holds both {found[file.stem].name} and {file.name}; images and masks "
                "are paired by name without suffix, so remove one"
            )
        found[file.stem] = file
    return found


def _read_classes(path: Path) -> tuple[list[ClassSpec], int | None]:
    value = read_json(path)
    try:
        ignore = value.get("ignore_index")
        if ignore is not None and (type(ignore) is not int or not 0 <= ignore <= 255):
            raise ValueError(f"ignore_index is {ignore!r}, expected null or a whole number 0-255")
        classes = [
            ClassSpec(index=item["index"], name=item["name"], color=item["rgb_hex"])
            for item in value["classes"]
            if item["index"] != ignore
        ]
        check_classes(classes)
    except (AttributeError, KeyError, TypeError, ValueError) as err:
        raise DatasetError(
            f'{path} must be {{"classes": [{{"index": 0, "name": "...", "rgb_hex": "#rrggbb"}}], '
            f'"ignore_index": null}}; {_why(err)}'
        ) from err
    if len(classes) < 2:
        raise DatasetError(f"{path} names fewer than two classes beside the ignored one")
    return classes, ignore


def _why(err: Exception) -> str:
    if isinstance(err, KeyError):
        return f"it lacks the key {err}"
    return " ".join(str(err).split())[:160]


def _read_splits(path: Path, stems: set[str]) -> dict[str, str] | None:
    if not path.is_file():
        return None
    value = read_json(path)
    if not isinstance(value, dict) or any(key not in SPLITS for key in value):
        raise DatasetError(f"{path} may only hold the keys train, val and test")
    result: dict[str, str] = {}
    for split, names in value.items():
        if not isinstance(names, list):
            raise DatasetError(f"{path}: '{split}' must be a list of file stems")
        for name in names:
            if name not in stems:
                raise DatasetError(f"{path}: '{name}' in '{split}' is no image of the set")
            if name in result:
                raise DatasetError(f"{path}: '{name}' stands in {result[name]} and in {split}")
            result[name] = split
    return result


def check_same_classes(
    found: list[ClassSpec], expected: list[ClassSpec], where: str, who: str = "the model"
) -> None:
    """Raise unless a data set and a model speak of the same classes, by index and name.

    Raises:
        DatasetError: says which classes differ.
    """
    have = [(item.index, item.name) for item in found]
    want = [(item.index, item.name) for item in expected]
    if have != want:
        raise DatasetError(f"{where} has the classes {_listed(have)}, {who} has {_listed(want)}")


def _listed(pairs: list[tuple[int, str]]) -> str:
    return ", ".join(f"{index} {name}" for index, name in pairs)
