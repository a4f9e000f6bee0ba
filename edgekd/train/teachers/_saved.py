"""Teachers of several sensors on disk: weights with what is needed to use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from edgekd.contracts import registry
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_set import SensorSet
from edgekd.errors import CheckpointError, InputError
from edgekd.train.checkpoint import in_folder, read_torch, save_torch, whole
from edgekd.train.teachers._sensors import SensorPlan, SensorTeacher

FORMAT = 2
#: bands whose wavelengths differ less are one
_SAME_NM = 0.5
TEACHER_NAME = "teacher.ckpt"
Wavelengths: TypeAlias = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class TeacherCheckpoint:
    """A trained teacher.

    Attributes:
        recipe: the resolved recipe as plain values.
        teacher: name, variant, number of classes, and per sensor its kind, channels and, of a
            spectral one, the wavelengths of the bands that it sees.
        weights: state dict, with the sensors' means and deviations.
        data: name and digest of the sensor set.
        distilled: what was done.
    """

    recipe: dict[str, Any]
    teacher: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, Any]
    distilled: dict[str, Any]


def build_teacher(
    name: str, num_classes: int, plans: dict[str, SensorPlan], variant: str | None
) -> SensorTeacher:
    """A teacher of several sensors with random weights.

    Raises:
        InputError: no such teacher or variant, or one that sees images alone.
    """
    module = registry.load("edgekd.train.teachers", name, "teacher")
    if not getattr(module, "SENSORS", False):
        raise InputError(
            f"teacher {name} sees images alone; method cross_modal takes a teacher of several "
            "sensors, e.g. geology_fusion"
        )
    built: SensorTeacher = module.build_sensors(num_classes, plans, variant)
    return built


def describe_teacher(teacher: SensorTeacher, nm: Wavelengths) -> dict[str, Any]:
    """What a checkpoint says of its teacher; ``nm`` are those of the bands that it sees."""
    return {
        "name": teacher.name,
        "variant": teacher.variant,
        "num_classes": teacher.num_classes,
        "sensors": {
            name: {
                "kind": plan.kind,
                "channels": plan.channels,
                "wavelengths_nm": _listed(nm, name),
            }
            for name, plan in teacher.plans.items()
        },
        "parameters": sum(item.numel() for item in teacher.parameters()),
    }


def _listed(nm: Wavelengths, name: str) -> list[float] | None:
    return None if name not in nm else [round(float(value), 3) for value in nm[name]]


def save_teacher(path: Path, teacher: TeacherCheckpoint) -> None:
    """Write a teacher so that ``path`` appears whole or keeps what it had."""
    save_torch({"edgekd_teacher": FORMAT, **asdict(teacher)}, path)


def teacher_file(path: Path) -> Path:
    """The file of a teacher, given it or the folder of its stage."""
    return in_folder(path, TEACHER_NAME)


def load_teacher(path: Path) -> TeacherCheckpoint:
    """Read a teacher.

    Args:
        path: the file, or the folder of a stage (its ``teacher.ckpt`` is taken).

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    path = teacher_file(path)
    value = read_torch(path, "edgekd_teacher", FORMAT, "edgekd distill RECIPE")
    return whole(TeacherCheckpoint, value, path, "a teacher")


def rebuild_teacher(saved: TeacherCheckpoint, source: str) -> SensorTeacher:
    """The teacher with its weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights do not fit the teacher they claim to be of.
    """
    said = saved.teacher
    plans = {
        name: SensorPlan(item["kind"], item["channels"]) for name, item in said["sensors"].items()
    }
    teacher = build_teacher(said["name"], said["num_classes"], plans, said["variant"])
    try:
        teacher.load_state_dict(saved.weights, strict=True)
    except RuntimeError as err:
        detail = " ".join(str(err).split())[:240]
        raise CheckpointError(
            f"{source} does not hold weights of the teacher {said['name']}: {detail}"
        ) from err
    return teacher.eval().requires_grad_(False)


def check_teacher(
    saved: TeacherCheckpoint,
    recipe: Recipe,
    data: SensorSet,
    path: Path,
    sensors: Sequence[str] | None = None,
) -> None:
    """A teacher must know these classes and sensors, band for band.

    Args:
        sensors: that the recipe says it sees; None where it does not say.

    Raises:
        CheckpointError: names what differs.
    """
    theirs = [(item["index"], item["name"]) for item in saved.recipe["io"]["classes"]]
    ours = [(item.index, item.name) for item in recipe.io.classes]
    if theirs != ours:
        raise CheckpointError(
            f"{path} was trained for the classes {[name for _, name in theirs]}, the recipe "
            f"'{recipe.name}' has {[name for _, name in ours]}"
        )
    seen = list(saved.teacher["sensors"])
    if sensors is not None and set(sensors) != set(seen):
        raise CheckpointError(
            f"{path} sees {', '.join(seen)}, and recipe '{recipe.name}' says {', '.join(sensors)}; "
            f"write teachers[].sensors: [{', '.join(seen)}], or leave it out"
        )
    for name, item in saved.teacher["sensors"].items():
        if name not in data.sensors:
            raise CheckpointError(f"{path} sees {name}, which recipe '{recipe.name}' does not have")
        kind = data.sensors[name].kind
        if kind != item["kind"]:
            raise CheckpointError(
                f"{path} sees {name} as {item['kind']}, and recipe '{recipe.name}' has it as "
                f"{kind} (sensors.{name}.kind); take the recipe that the teacher was trained by"
            )
        if data.channels[name] != item["channels"]:
            raise CheckpointError(
                f"{path} sees {item['channels']} bands of {name}, and the set has "
                f"{data.channels[name]} good ones; train the teacher on these bands"
            )
        theirs_nm, ours_nm = item["wavelengths_nm"], _listed(data.wavelengths_nm, name)
        if theirs_nm is None or ours_nm is None:
            continue
        for at, (asked, given) in enumerate(zip(theirs_nm, ours_nm, strict=True)):
            if abs(asked - given) > _SAME_NM:
                raise CheckpointError(
                    f"{path} sees {name} at {asked:g} nm in its input {at}, and the set has "
                    f"{given:g} nm there: other bands were dropped; drop the same ones "
                    f"(sensors.{name}.bad_bands), or train the teacher on these"
                )
