"""A sensor set's description, and one scene of it as its files have it, checked.

Here nothing is derived or left out yet; :mod:`edgekd.contracts.sensor_set` does that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.areas import row_areas_m2
from edgekd.contracts.calibration import Split
from edgekd.contracts.imageio import gdal_environment, gdal_failures
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, load_document, read_yaml, resolve_path
from edgekd.contracts.sensor_files import FileSpec, SensorArray, read_sensor
from edgekd.contracts.sensors import Name, Sensors, SensorSpec
from edgekd.contracts.spectra import spacing_nm
from edgekd.contracts.tensors import Classes, ClassSpec
from edgekd.errors import DatasetError, InputError

UInt8Array = npt.NDArray[np.uint8]
SET_NAME = "sensors.yaml"
#: target value of pixels that count neither way; that of :mod:`edgekd.contracts.labelled`
IGNORE = 255
#: grids that differ less are one
_SAME_PX = 0.1
_SAME_GSD = 0.01
_MAX_NAMED = 5


class LabelSpec(FileSpec):
    """Labels of a scene: class indices, or the share of each class.

    Attributes:
        abundances: the array has one plane for each class, in the order of ``classes``, with its
            share of the pixel; the largest is the label (the first of equal ones).
        purity_min: pixels whose largest share is less have no label.
    """

    abundances: bool = False
    purity_min: float = pydantic.Field(default=0.0, ge=0, le=1)

    @pydantic.model_validator(mode="after")
    def _purity(self) -> LabelSpec:
        if self.purity_min and not self.abundances:
            raise ValueError("purity_min is of abundances; add abundances: true")
        return self


class SceneSpec(Document):
    """One scene, all of it on one grid.

    Attributes:
        id: unique name.
        split: what the whole scene is for; absent, the recipe's ``data.split`` or ``data.blocks``
            says it.
        files: sensor of the recipe -> its array; derived sensors have none.
        labels: absent, no pixel has a label.
    """

    id: Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    split: Split | None = None
    files: dict[Name, FileSpec] = pydantic.Field(min_length=1)
    labels: LabelSpec | None = None


class SensorSetSpec(Document):
    """A sensor set; kept as ``sensors.yaml`` in its folder, or under a name of its own.

    Attributes:
        simulated: whether anything in it was computed and not measured; every figure made from it
            says so.
        ignore_index: label value that counts neither way.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    name: str = pydantic.Field(min_length=1)
    title: str = ""
    simulated: bool
    source: str
    licence: str
    attribution: str = ""
    ignore_index: int | None = pydantic.Field(default=255, ge=0, le=255)
    classes: Classes
    scenes: list[SceneSpec] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SensorSetSpec:
        ids = [scene.id for scene in self.scenes]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"scene id {', '.join(twice)} stands twice")
        if any(item.index == self.ignore_index for item in self.classes):
            raise ValueError(f"ignore_index {self.ignore_index} is also a class")
        return self


def sensor_set_file(path: Path) -> Path | None:
    """The YAML of a sensor set at ``path`` (itself, or the folder that holds it); None for others.

    Raises:
        InputError, RecipeError: a YAML that cannot be read.
    """
    if path.is_dir():
        inside = path / SET_NAME
        return inside if inside.is_file() else None
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    return path if "scenes" in read_yaml(path)[0] else None


def load_set(path: Path) -> tuple[SensorSetSpec, Path]:
    """The description of a sensor set and its file.

    Raises:
        DatasetError: there is none.
        RecipeError: lists its faults.
    """
    file = sensor_set_file(path)
    if file is None:
        fault = "is no sensor set" if path.exists() else "does not exist"
        raise DatasetError(
            f"{path} {fault}; expected a folder with {SET_NAME}, or a YAML with the key scenes "
            '(README, "Sensor sets")'
        )
    return load_document(SensorSetSpec, file), file


@dataclass(frozen=True)
class RawScene:
    """A scene as its files have it.

    Attributes:
        arrays: sensor -> array, of those with files; ``(C, H, W)`` with NaN for no data.
        labels: ``(H, W)`` channel numbers (places in ``classes``), IGNORE without a label.
        crs, transform: of the grid, or None.
        files: everything that was read.
        notes: for the report.
    """

    id: str
    arrays: dict[str, SensorArray]
    labels: UInt8Array
    crs: Any
    transform: Any
    files: tuple[Path, ...]
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.labels.shape[0], self.labels.shape[1]


def check_names(spec: SensorSetSpec, sensors: Sensors, file: Path) -> list[str]:
    """Raise unless every scene has files of the recipe's sensors; what is not read, in words.

    Raises:
        DatasetError: names the scene and the sensor.
    """
    notes = [
        f"{name}: no scene has a file of it (missing: allowed), so nothing is learned from it"
        for name, item in sensors.items()
        if item.derive is None and not any(name in scene.files for scene in spec.scenes)
    ]
    for scene in spec.scenes:
        used = [name for name, item in sensors.items() if item.derive is None]
        others = [name for name in scene.files if name not in used]
        for name in used:
            if name not in scene.files and sensors[name].missing == "refuse":
                raise DatasetError(
                    f"{file}: scene {scene.id} has no file of the sensor {name}"
                    f"{nearest(name, others)} (it has {', '.join(scene.files)}); add it under "
                    f"files, or allow it in the recipe: sensors.{name}.missing: allowed"
                )
        for name in others:
            why = "the recipe derives it" if name in sensors else "the recipe does not name it"
            notes.append(f"{scene.id}: its file of {name} is not read: {why}")
        if not any(name in scene.files for name in used):
            raise DatasetError(
                f"{file}: scene {scene.id} has files of {', '.join(scene.files)}, of which the "
                f"recipe names none (its sensors with files: {', '.join(used)})"
            )
    return notes


def read_scene(spec: SensorSetSpec, scene: SceneSpec, sensors: Sensors, file: Path) -> RawScene:
    """Read and check the files of a scene.

    Raises:
        ImageError: a file is missing or damaged.
        DatasetError: bands, wavelengths, grid or labels are not as declared.
    """
    base = file.resolve().parent
    arrays: dict[str, SensorArray] = {}
    notes: list[str] = []
    crs = transform = None
    first: SensorArray | None = None
    for name, item in sensors.items():
        if item.derive is not None or name not in scene.files:
            continue
        found = _read(scene.files[name], base)
        _check_bands(found, name, item)
        notes += [f"{scene.id}: {text}" for text in found.notes]
        if item.kind == "spectral" and found.wavelengths_nm is None:
            notes.append(
                f"{scene.id}: {found.path.name} says no wavelengths; those of the recipe are taken"
            )
        if first is None:
            first = found
        else:
            notes += _check_grid(first, found, scene.id)
        arrays[name] = found
        crs = found.crs if crs is None else crs
        transform = found.transform if transform is None else transform
    assert first is not None
    notes += _check_gsd(arrays, sensors, scene.id)
    labels = np.full(first.values.shape[1:], IGNORE, dtype=np.uint8)
    read = [path for item in arrays.values() for path in item.files]
    if scene.labels is not None:
        marks = _read(scene.labels, base)
        notes += _check_grid(first, marks, scene.id)
        labels = _labels(marks, scene.labels, spec)
        read += marks.files
    files = tuple(dict.fromkeys(read))
    return RawScene(scene.id, arrays, labels, crs, transform, files, tuple(notes))


def _read(spec: FileSpec, base: Path) -> SensorArray:
    return read_sensor(resolve_path(spec.file, base), spec)


def _check_bands(found: SensorArray, name: str, spec: SensorSpec) -> None:
    count = found.values.shape[0]
    if count != spec.channels:
        bands = "band" if count == 1 else "bands"
        raise DatasetError(
            f"{found.path} has {count} {bands}, and sensors.{name}.channels of the recipe is "
            f"{spec.channels}; correct one of them, or choose with bands in the set"
        )
    own = found.wavelengths_nm
    if own is None or spec.kind != "spectral":
        return
    falls = np.flatnonzero(~(np.diff(own) > 0))
    if len(falls):
        at = int(falls[0])
        raise DatasetError(
            f"{found.path}: wavelengths must rise, and band {at + 2} has {own[at + 1]:g} nm after "
            f"{own[at]:g} nm; sort the bands, or leave out with bands those that overlap"
        )
    declared = spec.wavelengths()
    half = spacing_nm(declared) / 2
    wrong = np.flatnonzero(np.abs(own - declared) > half)
    if len(wrong):
        at = int(wrong[0])
        raise DatasetError(
            f"{found.path}: band {at + 1} has {own[at]:.1f} nm, and sensors.{name}.wavelengths_nm "
            f"of the recipe {declared[at]:.1f} nm, more than half a band ({half[at]:.1f} nm) away "
            f"({len(wrong)} of {count} bands are); write the file's wavelengths into the recipe"
        )


def _check_grid(first: SensorArray, other: SensorArray, scene: str) -> list[str]:
    """Raise unless two arrays lie on one grid; what could not be compared, in words."""
    height, width = first.values.shape[1:]
    rows, columns = other.values.shape[1:]
    if (rows, columns) != (height, width):
        raise DatasetError(
            f"scene {scene}: {other.path} has {columns}x{rows} px and {first.path} {width}x{height}"
            " px; all of a scene lies on one grid: bring it there, e.g. with gdalwarp -tr -te"
        )
    if first.path == other.path:
        return []
    if first.crs is not None and other.crs is not None and first.crs != other.crs:
        raise DatasetError(
            f"scene {scene}: {other.path} has the CRS {other.crs}, and {first.path} {first.crs}; "
            "all of a scene lies on one grid: bring it there, e.g. with gdalwarp -t_srs -tr -te"
        )
    if first.transform is None or other.transform is None:
        lacking = other if other.transform is None else first
        return [
            f"{scene}: {lacking.path.name} has no georeference, so of its grid only the size could "
            "be compared"
        ]
    back = ~first.transform * other.transform
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    moved = max(
        max(abs(x - column), abs(y - row))
        for (column, row), (x, y) in ((corner, back * corner) for corner in corners)
    )
    if not moved <= _SAME_PX:
        raise DatasetError(
            f"scene {scene}: the grid of {other.path} lies {moved:.2f} px beside that of "
            f"{first.path}, allowed are {_SAME_PX}; all of a scene lies on one grid: bring it "
            "there, e.g. with gdalwarp -tr -te"
        )
    return []


def shared_notes(scenes: Sequence[RawScene]) -> list[str]:
    """Notes of all scenes, one that several scenes share once."""
    having: dict[str, list[tuple[str, str]]] = {}
    for scene in scenes:
        names = [f"{path.name}: " for path in scene.files]
        for note in scene.notes:
            said = note.removeprefix(f"{scene.id}: ")
            for name in names:
                said = said.removeprefix(name)
            having.setdefault(said, []).append((scene.id, note))
    return [
        found[0][1] if len(found) == 1
        else f"{found[0][0]} and {len(found) - 1} more: {said}"
        for said, found in having.items()
    ]  # fmt: skip


def _check_gsd(arrays: dict[str, SensorArray], sensors: Sensors, scene: str) -> list[str]:
    """Raise where a file's pixels have another size on the ground; what is not known, in words."""
    notes = []
    for name, found in arrays.items():
        declared = sensors[name].gsd_m
        if found.transform is None:
            continue
        side = pixel_side_m(found)
        if side is None:
            notes.append(
                f"{scene}: {found.path.name} does not tell the size of a pixel in metres; gsd_m "
                f"{declared:g} of {name} stands as declared"
            )
        elif abs(side - declared) > _SAME_GSD * declared:
            raise DatasetError(
                f"scene {scene}: pixels of {found.path} have {side:.4g} m on the ground, and "
                f"sensors.{name}.gsd_m of the recipe is {declared:g}; correct the recipe"
            )
    return notes


def pixel_side_m(found: SensorArray) -> float | None:
    """Side of a pixel on the ground, m, as the root of its mean area; None where not known."""
    if found.crs is None or found.transform is None:
        return None
    _, height, width = found.values.shape
    with gdal_environment() as rasterio:
        try:
            areas = row_areas_m2(rasterio, found.crs, found.transform, height, width)
        except gdal_failures(rasterio):
            return None
    return None if areas is None else float(np.sqrt(areas.mean()))


def read_labels(described: SensorSetSpec, spec: LabelSpec, base: Path) -> UInt8Array:
    """Labels of a scene by themselves: ``(H, W)`` channel numbers, IGNORE without a label.

    Raises:
        ImageError: the file is missing or damaged.
        DatasetError: it holds something else than the classes of the set.
    """
    return _labels(_read(spec, base), spec, described)


def _labels(found: SensorArray, spec: LabelSpec, described: SensorSetSpec) -> UInt8Array:
    classes = described.classes
    values = found.values
    if spec.abundances:
        if len(values) != len(classes):
            raise DatasetError(
                f"{found.path} has abundances of {len(values)} classes, and the set names "
                f"{len(classes)}: {', '.join(item.name for item in classes)}"
            )
        known = np.isfinite(values).all(0)
        filled = np.where(known, values, 0)
        most = filled.max(0)
        target: UInt8Array = filled.argmax(0).astype(np.uint8)
        target[~known | (most <= 0) | (most < np.float32(spec.purity_min))] = IGNORE
        return target
    if len(values) != 1:
        raise DatasetError(
            f"{found.path} has {len(values)} planes of labels, expected one of class indices; for "
            "the shares of classes add abundances: true"
        )
    return _indexed(found.path, values[0], classes, described.ignore_index)


def _indexed(
    path: Path, values: npt.NDArray[np.float32], classes: list[ClassSpec], ignore: int | None
) -> UInt8Array:
    known = np.isfinite(values)
    whole = np.where(known, values, 0)
    table = {float(item.index): channel for channel, item in enumerate(classes)}
    if ignore is not None:
        table[float(ignore)] = IGNORE
    found, place = np.unique(whole[known], return_inverse=True)
    wrong = [value for value in found.tolist() if value not in table]
    if wrong:
        row, column = (int(axis[0]) for axis in np.nonzero(known & (whole == wrong[0])))
        valid = ", ".join(f"{item.index} {item.name}" for item in classes)
        if ignore is not None:
            valid += f"; ignored: {ignore}"
        shown = ", ".join(f"{value:g}" for value in wrong[:_MAX_NAMED])
        raise DatasetError(
            f"{path} holds class index {shown} (first at row {row}, column {column}), which is not "
            f"in the classes ({valid}); correct the labels, or name the class in the set"
        )
    indexed = np.full(values.shape, IGNORE, dtype=np.uint8)
    indexed[known] = np.array([table[value] for value in found.tolist()], dtype=np.uint8)[place]
    return indexed


def scene_files(spec: SensorSetSpec, file: Path) -> list[Path]:
    """Every file that the set names, as absolute paths.

    Raises:
        InputError: a name holds a variable that is not set.
    """
    base = file.resolve().parent
    named = [item for scene in spec.scenes for item in (*scene.files.values(), scene.labels)]
    found = [resolve_path(item.file, base) for item in named if item is not None]
    return list(dict.fromkeys(found))


def require_files(spec: SensorSetSpec, file: Path) -> None:
    """Raise at once for all files that are not there.

    Raises:
        InputError: names the first few.
    """
    lacking = [str(path) for path in scene_files(spec, file) if not path.is_file()]
    if lacking:
        more = f" and {len(lacking) - _MAX_NAMED} more" if len(lacking) > _MAX_NAMED else ""
        raise InputError(
            f"{file} names files that do not exist: {', '.join(lacking[:_MAX_NAMED])}{more}"
        )
