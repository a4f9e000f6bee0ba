"""The camera's view of a sensor set as a labelled set, for all that knows only RGB images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.contracts.blocks import PART_NAMES
from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.labelled import LabelledSet, Sample, open_labelled
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_scenes import load_set, scene_files, sensor_set_file
from edgekd.contracts.sensor_set import Part, SensorSet, open_sensor_set
from edgekd.contracts.sensors import VISUAL
from edgekd.errors import DatasetError


@dataclass(frozen=True)
class SceneSample(Sample):
    """A part of a scene.

    Attributes:
        scene: its id; the sample's own is ``scene``, or ``scene.part`` where the scene has several.
        part: ``train``, ``val`` or ``test``.
    """

    scene: str = ""
    part: Part = "test"


@dataclass(frozen=True)
class SensorLabelledSet(LabelledSet):
    """What the camera sees of a sensor set, and its labels.

    A training sample is a scene's training view and a validation sample its view for validation
    (:meth:`~edgekd.contracts.sensor_set.SensorSet.view`); a test sample is the whole scene. Labels
    outside the part are IGNORE.

    Attributes:
        sensor_set: all sensors.
    """

    sensor_set: SensorSet

    @property
    def simulated(self) -> bool:
        """Whether the set was computed and not measured."""
        return self.sensor_set.simulated

    @property
    def split_advice(self) -> str:
        """How scenes, or blocks of them, get into a split."""
        return (
            f"give scenes a split in {self.root} (split: test), or cut them with data.blocks in "
            "the recipe"
        )

    def size(self, sample: Sample) -> tuple[int, int]:
        """Height and width of a sample's scene, px."""
        height, width = self.sensor_set.load(self._of(sample).scene).target.shape
        return height, width

    def load(self, sample: Sample) -> tuple[UInt8Array, UInt8Array]:
        """Pixels ``(H, W, 3)`` uint8 and targets ``(H, W)`` uint8 of a sample.

        Raises:
            DatasetError: the sample is of another set.
        """
        mine = self._of(sample)
        view = self.sensor_set.view(mine.scene, mine.part)
        return view.visual8.copy(), view.target.copy()

    def _of(self, sample: Sample) -> SceneSample:
        if not isinstance(sample, SceneSample):
            raise DatasetError(f"sample {sample.id} is of no scene of {self.root}")
        return sample


def open_data(recipe: Recipe, path: Path, *, training: bool = True) -> LabelledSet:
    """The labelled set that a recipe is tuned, measured and built with.

    Args:
        recipe: its sensors, split, blocks and labels decide what of a sensor set is what.
        path: a sensor set, or whatever :func:`~edgekd.contracts.labelled.open_labelled` takes.
        training: refuse what only training minds: a sensor set without a training label of some
            class; blocks or a number of labels for a set of images, where they mean nothing.

    Raises:
        DatasetError: nothing there that can be used; a sensor set and a recipe without sensors;
            what training minds.
        ImageError, InputError, RecipeError, EnvironmentLacksError: see ``open_sensor_set``.
    """
    path = Path(path)
    file = sensor_set_file(path)
    if file is None:
        asked = [
            f"data.{key}" for key in ("blocks", "labels_per_class")
            if getattr(recipe.data, key) is not None
        ]  # fmt: skip
        if training and asked and path.exists():
            raise DatasetError(
                f"{path} is no sensor set, and {' and '.join(asked)} of recipe '{recipe.name}' "
                "apply to sensor sets alone; give one (a folder with sensors.yaml), or leave them "
                f"out: {' '.join(f'--set {key}=null' for key in asked)}"
            )
        return open_labelled(path, recipe.data.split)
    if not training:
        recipe = with_cameras_alone(by_own_split(recipe, file), file)
    return camera_view(open_sensor_set(recipe, path, every_class=training))


def by_own_split(recipe: Recipe, file: Path) -> Recipe:
    """The recipe for a set that it was not trained on: blocks give way to splits of the scenes.

    Raises:
        InputError, RecipeError: a description that cannot be read.
    """
    if recipe.data.blocks is None or not any(item.split for item in load_set(file)[0].scenes):
        return recipe
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"blocks": None})})


def with_cameras_alone(recipe: Recipe, file: Path) -> Recipe:
    """The recipe for a set of which the camera is enough: scenes may lack the other sensors.

    A set that has them all is read as the recipe says.

    Raises:
        InputError, RecipeError: a description that cannot be read.
    """
    if not recipe.sensors:
        return recipe
    needed, name = {VISUAL}, VISUAL
    while (derived := recipe.sensors[name].derive) is not None:
        name = derived.source
        needed.add(name)
    lacking = [
        name
        for name, spec in recipe.sensors.items()
        if name not in needed and spec.derive is None
        and not all(name in scene.files for scene in load_set(file)[0].scenes)
    ]  # fmt: skip
    if not lacking:
        return recipe
    sensors = {
        name: spec if name in needed else spec.model_copy(update={"missing": "allowed"})
        for name, spec in recipe.sensors.items()
    }
    return recipe.model_copy(update={"sensors": sensors})


def is_here(path: Path) -> bool:
    """Whether a labelled set is on this machine; of a sensor set that is described, its files.

    A set of which some files are there and others not is here, and opening it names those.

    Raises:
        InputError, RecipeError: a description that cannot be read.
    """
    file = sensor_set_file(path)
    if file is None:
        return path.exists()
    return any(item.is_file() for item in scene_files(*load_set(file)))


def camera_view(found: SensorSet) -> SensorLabelledSet:
    """What the camera sees of an open sensor set."""
    samples = []
    for name in found.scene_ids:
        scene = found.load(name)
        there = [
            part
            for part, value in PART_NAMES.items()
            if ((scene.parts == value) & scene.valid).any()
        ]
        whole = len(there) == 1 and np.ptp(scene.parts) == 0
        for part in there:
            samples.append(
                SceneSample(
                    id=name if whole else f"{name}.{part}",
                    split=part,
                    image=found.file,
                    scene=name,
                    part=part,  # type: ignore[arg-type]
                )
            )
    return SensorLabelledSet(
        name=found.name,
        root=found.file,
        classes=list(found.classes),
        ignore_index=found.spec.ignore_index,
        samples=list(samples),
        box_shape="box",
        digest=found.digest,
        sensor_set=found,
    )
