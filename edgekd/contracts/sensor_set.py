"""Sensor sets: scenes seen by several sensors, as training and evaluation get them. Without torch.

All of it is in memory. What is learned from the data on the way here (bad bands, the range of an
image, means and deviations, which labels are kept) is learned from training pixels alone, and
training code sees scenes through :meth:`SensorSet.training_view`, where no other pixel is left.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import canonical_json, sha256_bytes, sha256_file
from edgekd.contracts.blocks import BUFFER, PART_NAMES, TRAIN, VAL, assign
from edgekd.contracts.labelled import check_same_classes
from edgekd.contracts.optional import require
from edgekd.contracts.recipe import DataSpec, Recipe
from edgekd.contracts.sensor_bands import Bands, find_bands
from edgekd.contracts.sensor_checks import check_picture, check_values
from edgekd.contracts.sensor_scenes import (
    IGNORE,
    RawScene,
    SceneSpec,
    SensorSetSpec,
    check_names,
    load_set,
    read_scene,
    require_files,
    shared_notes,
)
from edgekd.contracts.sensors import VISUAL, Sensors, SensorSpec
from edgekd.contracts.spectra import camera_file
from edgekd.contracts.tensors import ClassSpec
from edgekd.errors import DatasetError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]
BoolArray = npt.NDArray[np.bool_]
Part = Literal["train", "val", "test"]

#: percentiles of an image's training pixels that become 0 and 255 where the recipe gives no range
_RANGE = (1.0, 99.0)
#: keys of a set that are words, not data
_WORDS = {"title", "source", "licence", "attribution"}


@dataclass(frozen=True)
class SensorScene:
    """A scene, or what of it may be seen. The arrays are read-only.

    Attributes:
        sensors: name -> ``(C, H, W)`` float32 without bad bands and without NaN; images hold their
            8-bit values, 0-255. A sensor that the scene lacks is not there.
        visual8: ``(H, W, 3)`` uint8, what the student sees.
        valid: ``(H, W)`` bool, where every sensor has data; elsewhere stands the nearest such
            pixel's.
        target: ``(H, W)`` uint8 channel numbers, IGNORE (255) without a label or where it must not
            be known.
        parts: ``(H, W)`` uint8, see :mod:`edgekd.contracts.blocks`.
        crs, transform: rasterio's, or None.
    """

    id: str
    sensors: dict[str, FloatArray]
    visual8: UInt8Array
    valid: BoolArray
    target: UInt8Array
    parts: UInt8Array
    crs: Any
    transform: Any


@dataclass(frozen=True)
class BandStatistics:
    """Of one sensor's bands over the training pixels: ``(C,)`` float64 each."""

    mean: DoubleArray
    std: DoubleArray


class SensorSet:
    """An open sensor set; made by :func:`open_sensor_set`.

    Attributes:
        spec, file: the description and where it stands.
        sensors: of the recipe.
        data: the recipe's split, blocks and number of labels.
        report: what was found, done and left out, in words.
        dropped: spectral sensor -> its bad bands.
        wavelengths_nm: spectral sensor -> ``(C,)`` of the bands that are left.
        channels: sensor -> number of bands that are left.
        ranges: image sensor -> values that become 0 and 255.
        digest: sha256 over all that decides what is trained and measured: contents of the files,
            sensors, classes, split, blocks and labels.
    """

    def __init__(self, spec: SensorSetSpec, file: Path, sensors: Sensors, data: DataSpec) -> None:
        self.spec, self.file, self.sensors, self.data = spec, file, sensors, data
        self.report: list[str] = []
        self.ranges: dict[str, tuple[float, float]] = {}
        self._statistics: dict[str, BandStatistics] | None = None
        if spec.simulated:
            self.report.append("SIMULATED: this set was computed, not measured")
        self.report += check_names(spec, sensors, file)
        raw = [read_scene(spec, scene, sensors, file) for scene in spec.scenes]
        check_values(raw, sensors, file)
        self.report += shared_notes(raw)
        self._parts = {
            scene.id: self._split(described, scene)
            for scene, described in zip(raw, spec.scenes, strict=True)
        }
        self.digest = self._digest(raw)
        try:
            bands = find_bands(raw, self._parts, sensors, file.resolve().parent)
        except DatasetError as err:
            raise DatasetError(f"{file}: {err}") from err
        self.report += bands.report
        self.dropped, self.wavelengths_nm = bands.dropped, bands.wavelengths_nm
        self.channels = {name: len(bands.kept(name)) for name in sensors}
        self._scenes = self._compose(raw, bands)
        self._truth = {scene.id: scene.target for scene in self._scenes.values()}
        self._keep_few_labels()
        for scene in self._scenes.values():
            _freeze(scene)

    @property
    def name(self) -> str:
        """Of the set."""
        return self.spec.name

    @property
    def simulated(self) -> bool:
        """Whether it was computed and not measured; figures made from it say so."""
        return self.spec.simulated

    @property
    def classes(self) -> list[ClassSpec]:
        """The classes, in the order of the channels."""
        return self.spec.classes

    @property
    def scene_ids(self) -> list[str]:
        """Scenes, in the order of the set."""
        return list(self._scenes)

    @property
    def training_ids(self) -> list[str]:
        """Scenes with training pixels, in the order of the set."""
        return [name for name, scene in self._scenes.items() if _known(scene, "train").any()]

    def load(self, scene_id: str) -> SensorScene:
        """A whole scene. For measuring and for maps; training code takes :meth:`training_view`.

        Raises:
            DatasetError: no such scene.
        """
        if scene_id not in self._scenes:
            raise DatasetError(
                f"{self.file} has no scene '{scene_id}' (valid: {', '.join(self._scenes)})"
            )
        return self._scenes[scene_id]

    def has(self, scene_id: str, part: Part) -> bool:
        """Whether a scene has a pixel with data in a part."""
        scene = self.load(scene_id)
        return bool(((scene.parts == PART_NAMES[part]) & scene.valid).any())

    def training_view(self, scene_id: str) -> SensorScene:
        """A scene as training may see it: see :meth:`view`."""
        return self.view(scene_id, "train")

    def view(self, scene_id: str, part: Part) -> SensorScene:
        """A scene as work on one of its parts may see it.

        ``train`` shows training pixels alone, ``val`` those and validation pixels, ``test`` all.
        Every other pixel, of all sensors, holds the nearest pixel that is shown, so that no
        receptive field reaches over the border; ``valid`` is False there. The target is IGNORE
        outside the part.

        Raises:
            DatasetError: no such scene or part, or the scene has no pixel of the part.
            EnvironmentLacksError: scipy is not installed.
        """
        scene = self.load(scene_id)
        if part not in PART_NAMES:
            raise DatasetError(f"part '{part}' does not exist (valid: {', '.join(PART_NAMES)})")
        mine = scene.parts == PART_NAMES[part]
        if not (mine & scene.valid).any():
            raise DatasetError(
                f"scene {scene_id} of {self.file} has no pixel with data in the part {part}"
            )
        shown = replace(
            scene,
            target=np.where(mine, scene.target, np.uint8(IGNORE)),
            valid=_known(scene, part),
        )
        if part != "test":
            shown = _filled(shown, shown.valid)
        _freeze(shown)
        return shown

    def truth(self, scene_id: str) -> UInt8Array:
        """All labels ``(H, W)`` uint8 of a scene, those too that training must not know."""
        return self._truth[self.load(scene_id).id]

    def statistics(self) -> dict[str, BandStatistics]:
        """Mean and standard deviation of every band over the training pixels with data.

        Raises:
            DatasetError: the set has no training pixel.
        """
        if self._statistics is None:
            found = {name: self._band_statistics(name) for name in self.sensors}
            self._statistics = {name: item for name, item in found.items() if item is not None}
            if not self._statistics:
                raise DatasetError(f"{self.file} has no training pixel to take statistics from")
        return self._statistics

    def label_counts(self) -> dict[str, list[int]]:
        """Labelled pixels of each class in ``train``, ``val`` and ``test``."""
        counts = {name: np.zeros(len(self.classes), dtype=np.int64) for name in PART_NAMES}
        for scene in self._scenes.values():
            for name, part in PART_NAMES.items():
                values = scene.target[scene.parts == part]
                counts[name] += np.bincount(values, minlength=256)[: len(self.classes)]
        return {name: [int(value) for value in found] for name, found in counts.items()}

    def require_one_of(self, sensors: list[str], scenes: list[str], who: str) -> None:
        """Raise unless each of these scenes has at least one of the sensors that ``who`` sees.

        Raises:
            DatasetError: names the first scene that has none.
        """
        for name in scenes:
            if not any(sensor in self.load(name).sensors for sensor in sensors):
                raise DatasetError(
                    f"scene {name} of {self.file} has none of the sensors that {who} sees "
                    f"({', '.join(sensors)}); let it see one that the scene has, such as {VISUAL}, "
                    "or put the scene into no split"
                )

    def require_labels(self) -> None:
        """Raise unless every class has a label to train on.

        Raises:
            DatasetError: names the classes that have none.
        """
        counts = self.label_counts()["train"]
        lacking = [item.name for item, n in zip(self.classes, counts, strict=True) if n == 0]
        if lacking:
            blocks = self.data.blocks
            advice = (
                "; try another data.blocks.seed, smaller side_px or fewer folds"
                if blocks is not None
                else "; give labels of it in a scene of split train"
            )
            raise DatasetError(
                f"{self.file} has not a single training label of {', '.join(lacking)}, so it "
                f"cannot be learned{advice}"
            )

    def _split(self, described: SceneSpec, raw: RawScene) -> UInt8Array:
        """Part of every pixel of a scene."""
        height, width = raw.size
        rule, blocks = self.data.split, self.data.blocks
        split: str | None = described.split
        if blocks is not None:
            if split is not None:
                raise DatasetError(
                    f"{self.file} puts scene {raw.id} into split {split}, and the recipe cuts "
                    "scenes with data.blocks; say it in one place only"
                )
            salt = int.from_bytes(hashlib.sha256(raw.id.encode()).digest()[:4], "big")
            try:
                parts = assign(height, width, blocks, raw.labels, salt=salt)
            except DatasetError as err:
                raise DatasetError(f"scene {raw.id} of {self.file}: {err}") from err
            self._report_blocks(raw.id, parts)
            return parts
        if rule is not None:
            other = rule.split_of(raw.id)
            if split is not None and other is not None and other != split:
                raise DatasetError(
                    f"{self.file} puts scene {raw.id} into split {split}, the recipe's data.split "
                    f"into {other}; say it in one place only"
                )
            split = split or other
        if split is None:
            self.report.append(f"{raw.id}: in no split, so it is not used")
        part = BUFFER if split is None else PART_NAMES[split]
        return np.full((height, width), part, dtype=np.uint8)

    def _report_blocks(self, scene: str, parts: UInt8Array) -> None:
        spec = self.data.blocks
        assert spec is not None
        how = "chosen so that classes spread evenly" if spec.stratified else "as drawn"
        counts = ", ".join(
            f"{name} {int((parts == part).sum()):,} px" for name, part in PART_NAMES.items()
        )
        self.report.append(
            f"{scene}: blocks of {spec.side_px} px, fold {spec.fold} of {spec.folds}, seed "
            f"{spec.seed}, {how}: {counts}, unused (buffer {spec.buffer_px} px) "
            f"{int((parts == BUFFER).sum()):,} px"
        )

    def _compose(self, raw: list[RawScene], bands: Bands) -> dict[str, SensorScene]:
        """Leave bad bands out, find where there is data, and make images 8 bit."""
        valid: dict[str, BoolArray] = {}
        planes = bands.planes
        for scene in raw:
            found = planes[scene.id]
            for name in list(found):
                kept = bands.kept(name)
                if len(kept) < len(found[name]):
                    found[name] = found[name][kept]
            whole = {name: _whole(values) for name, values in found.items()}
            valid[scene.id] = np.logical_and.reduce(list(whole.values()))
            if not valid[scene.id].any():
                why = _why_empty(whole, found, bands)
                raise DatasetError(f"scene {scene.id} of {self.file} {why}")
        training = {name: valid[name] & (self._parts[name] == TRAIN) for name in valid}
        for name, spec in self.sensors.items():
            if spec.kind == "image":
                self.ranges[name] = self._range(name, spec, planes, training)
                low, high = self.ranges[name]
                before = _extremes(name, planes)
                for found in planes.values():
                    if name in found:
                        found[name] = _eight_bit(found[name], low, high, spec.gamma)
                pictures = {scene: found[name] for scene, found in planes.items() if name in found}
                learned = any(mask.any() for mask in training.values())
                looked_at = training if learned else valid
                check_picture(name, pictures, looked_at, (low, high), before, self.file)
        result = {}
        for scene in raw:
            sensors = {
                name: planes[scene.id][name] for name in self.sensors if name in planes[scene.id]
            }
            picture = np.ascontiguousarray(np.moveaxis(_zeroed(sensors[VISUAL]), 0, 2), np.uint8)
            known = valid[scene.id]
            composed = SensorScene(
                scene.id,
                sensors,
                picture,
                known,
                np.where(known, scene.labels, np.uint8(IGNORE)),
                self._parts[scene.id],
                scene.crs,
                scene.transform,
            )
            result[scene.id] = _filled(composed, known)
            share = float(1 - known.mean())
            if share:
                self.report.append(f"{scene.id}: {100 * share:.2f} % of the pixels lack data")
        return result

    def _range(
        self,
        name: str,
        spec: SensorSpec,
        planes: dict[str, dict[str, FloatArray]],
        training: dict[str, BoolArray],
    ) -> tuple[float, float]:
        """Values of an image that become 0 and 255."""
        if spec.range is not None:
            return spec.range[0], spec.range[1]
        values = [found[name][:, training[scene]].ravel() for scene, found in planes.items()
                  if name in found]  # fmt: skip
        every = np.concatenate(values) if values else np.zeros(0, dtype=np.float32)
        if not every.size:
            raise DatasetError(
                f"{self.file} has no training pixel of {name} to take its range from; give "
                f"sensors.{name}.range: [low, high] in the recipe"
            )
        low, high = (float(value) for value in np.percentile(every, _RANGE))
        if not low < high:
            raise DatasetError(
                f"the training pixels of {name} in {self.file} hold {low:g} nearly everywhere, so "
                f"they give no range; give sensors.{name}.range: [low, high] in the recipe"
            )
        self.report.append(
            f"{name}: {low:.6g} becomes 0 and {high:.6g} becomes 255 (1st and 99th percentile of "
            f"the training pixels, all channels together); for a product write range: [{low:.6g}, "
            f"{high:.6g}] into the recipe, and scale the camera's images alike"
        )
        return low, high

    def _keep_few_labels(self) -> None:
        """Leave ``labels_per_class`` training labels of each class; the rest become IGNORE."""
        count = self.data.labels_per_class
        if count is None:
            return
        targets = {name: scene.target.copy() for name, scene in self._scenes.items()}
        for channel, item in enumerate(self.classes):
            mine = {
                name: np.flatnonzero(
                    (scene.target == channel) & (scene.parts == TRAIN) & scene.valid
                )
                for name, scene in self._scenes.items()
            }
            total = sum(len(places) for places in mine.values())
            # the first ones of a permutation, so that fewer labels are part of more
            order = np.random.default_rng([self.data.label_seed, channel]).permutation(total)
            drop = np.ones(total, dtype=np.bool_)
            drop[order[:count]] = False
            start = 0
            for name, places in mine.items():
                lost = places[drop[start : start + len(places)]]
                targets[name].reshape(-1)[lost] = IGNORE
                start += len(places)
            if total < count:
                self.report.append(
                    f"labels: {item.name} has {total} training labels, fewer than the {count} "
                    "asked for; all are kept"
                )
        self._scenes = {
            name: replace(scene, target=targets[name]) for name, scene in self._scenes.items()
        }
        self.report.append(
            f"labels: at most {count} of each class are kept to train on (seed "
            f"{self.data.label_seed}); the other training pixels have none"
        )

    def _band_statistics(self, name: str) -> BandStatistics | None:
        parts = [
            (scene.sensors[name], _known(scene, "train"))
            for scene in self._scenes.values()
            if name in scene.sensors
        ]
        if not any(known.any() for _, known in parts):
            return None
        mean, std = np.empty(self.channels[name]), np.empty(self.channels[name])
        for band in range(self.channels[name]):  # of all at once a copy would be needed
            values = np.concatenate([planes[band][known] for planes, known in parts])
            mean[band] = values.mean(dtype=np.float64)
            std[band] = values.std(dtype=np.float64)
        return BandStatistics(mean, std)

    def _digest(self, raw: list[RawScene]) -> str:
        cameras = [
            camera_file(item.derive.camera, self.file.resolve().parent)
            for item in self.sensors.values()
            if item.derive is not None and item.derive.camera is not None
        ]
        files = [path for scene in raw for path in scene.files]
        contents = {
            "set": self.spec.model_dump(mode="json", exclude=_WORDS),
            "files": [sha256_file(path) for path in files],
            "cameras": [sha256_file(path) for path in cameras if path is not None],
            "sensors": {
                name: item.model_dump(mode="json", exclude={"power"})
                for name, item in self.sensors.items()
            },
            "data": self.data.model_dump(mode="json", exclude={"root"}),
        }
        return sha256_bytes(canonical_json(contents).encode())


def open_sensor_set(
    recipe: Recipe, path: Path, *, every_class: bool = True, resplit: bool = False
) -> SensorSet:
    """Open a sensor set as a recipe's sensors, split and labels say.

    Args:
        recipe: with sensors.
        path: a folder with ``sensors.yaml``, or such a YAML.
        every_class: refuse a set that has no training label of some class.
        resplit: what the set says of its scenes' splits does not count, the recipe's word does.

    Raises:
        DatasetError: no sensor set, other classes than the recipe's, or something in it is not as
            declared.
        RecipeError: a description with faults.
        ImageError, InputError: a file is missing or damaged.
        EnvironmentLacksError: a library for the kind of file is not installed.
    """
    if not recipe.sensors:
        raise DatasetError(
            f"{path} is a sensor set, and recipe '{recipe.name}' names no sensors; add sensors: to "
            "the recipe"
        )
    spec, file = load_set(Path(path))
    asked = list(recipe.io.classes)
    check_same_classes(spec.classes, asked, str(file), f"recipe '{recipe.name}'")
    require_files(spec, file)
    if resplit:
        scenes = [scene.model_copy(update={"split": None}) for scene in spec.scenes]
        spec = spec.model_copy(update={"scenes": scenes})
    found = SensorSet(spec, file, recipe.sensors, recipe.data)
    if every_class:
        found.require_labels()
    return found


def _known(scene: SensorScene, part: Part) -> BoolArray:
    """Pixels with data that work on a part may see."""
    if part == "test":
        return scene.valid
    shown: BoolArray = np.isin(scene.parts, [TRAIN, VAL] if part == "val" else [TRAIN])
    known: BoolArray = scene.valid & shown
    return known


def _whole(planes: FloatArray) -> BoolArray:
    return np.asarray(np.isfinite(planes).all(axis=0), dtype=np.bool_)


def _why_empty(whole: dict[str, BoolArray], found: dict[str, FloatArray], bands: Bands) -> str:
    shares = ", ".join(f"{name} {100 * item.mean():.0f} %" for name, item in whole.items())
    empty = [
        f"band {bands.kept(name)[at] + 1} of {name}"
        for name, values in found.items()
        for at in np.flatnonzero(~np.isfinite(values).any((1, 2)))
    ]
    hint = f"; {empty[0]} has none at all, see bad_bands" if empty else ""
    return f"has no pixel with data in all sensors (pixels with data: {shares}){hint}"


def _extremes(name: str, planes: dict[str, dict[str, FloatArray]]) -> tuple[float, float]:
    """The lowest and highest value of a sensor over all scenes."""
    each = [found[name] for found in planes.values() if name in found]
    return (
        min(float(np.nanmin(item, initial=np.inf)) for item in each),
        max(float(np.nanmax(item, initial=-np.inf)) for item in each),
    )


def _zeroed(planes: FloatArray) -> FloatArray:
    return np.where(np.isfinite(planes), planes, np.float32(0))


def _eight_bit(planes: FloatArray, low: float, high: float, gamma: float) -> FloatArray:
    """Values 0-255, whole, as float32; NaN stays."""
    share = np.clip((planes.astype(np.float64) - low) / (high - low), 0, 1)
    return np.rint(255 * share ** (1 / gamma)).astype(np.float32)


def _filled(scene: SensorScene, known: BoolArray) -> SensorScene:
    """The scene with the nearest known pixel wherever none is known."""
    if known.all():
        return scene
    require("scipy", "sensors", "fill pixels that must not be seen")
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return replace(
        scene,
        sensors={name: planes[:, rows, columns] for name, planes in scene.sensors.items()},
        visual8=scene.visual8[rows, columns],
    )


def _freeze(scene: SensorScene) -> None:
    arrays: list[npt.NDArray[Any]] = [*scene.sensors.values(), scene.visual8, scene.valid]
    for array in (*arrays, scene.target, scene.parts):
        array.setflags(write=False)
