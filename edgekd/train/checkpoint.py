"""Checkpoints: weights of a student, or of a distilled encoder, with what is needed to use them."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from edgekd.contracts import registry
from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.recipe import Recipe, parse_recipe
from edgekd.errors import CheckpointError, InputError, OutputError
from edgekd.train.run import GO_ON
from edgekd.train.students._base import Segmenter

T = TypeVar("T")
FORMAT = 1
#: what torch.load raises for files that are cut, of another kind, or hold code.
_UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError,
    LookupError, ValueError, AttributeError, TypeError,
)  # fmt: skip
ENCODER_FORMAT = 1
#: mark of a file -> what it is, in words.
KINDS = {
    "edgekd_checkpoint": "it is a student: a checkpoint of edgekd finetune, distill or adapt",
    "edgekd_encoder": "it is an encoder of edgekd distill",
    "edgekd_places": "it is a student that answers for places, of edgekd distill with a recipe of "
    "kind: places",
    "edgekd_teacher": "it is a teacher of several sensors, of edgekd distill",
    "edgekd_place_teacher": "it is a teacher of one kind of evidence, of edgekd distill with a "
    "recipe of kind: places",
    "edgekd_distill": "edgekd distill --resume goes on from it; the result lies beside it when the "
    "run is done: best.ckpt, encoder.ckpt or teacher.ckpt",
}
BEST_NAME = "best.ckpt"
ENCODER_NAME = "encoder.ckpt"
LAST_NAME = "last.ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """A student after tuning.

    Attributes:
        recipe: the resolved recipe as plain values.
        student: name, options as built, number of classes, stride, normalisation.
        weights: state dict of the student (the averaged weights where the recipe asks for them).
        data: name and digest of the labelled set.
        tuning: what was done: steps, best validation figures, seconds, seed, precision, device.
        state: optimiser, schedule, averaged weights and random state, to resume; empty in a
            checkpoint that only serves to evaluate and export.
    """

    recipe: dict[str, Any]
    student: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, str]
    tuning: dict[str, Any]
    state: dict[str, Any] = field(default_factory=dict)

    def parsed_recipe(self, source: str) -> Recipe:
        """The recipe that travelled with the weights, validated again."""
        return parse_recipe(self.recipe, f"the recipe inside {source}")


def describe_student(model: Segmenter) -> dict[str, Any]:
    """What a checkpoint says of its student."""
    return {
        "name": model.name,
        "options": dict(model.options),
        "num_classes": model.num_classes,
        "stride": model.stride,
        "side_multiple": model.side_multiple,
        "mean": list(model.mean),
        "std": list(model.std),
        "parameters": sum(item.numel() for item in model.parameters()),
    }


def save_torch(value: dict[str, Any], path: Path) -> None:
    """``torch.save`` to a file that appears whole.

    Raises:
        OutputError: it cannot be written; torch itself hides the system's reason.
    """
    with publish_file(path) as part:
        try:
            torch.save(value, part)
        except RuntimeError as err:
            free = shutil.disk_usage(part.parent).free / 2**20
            raise OutputError(
                f"{path} cannot be written ({free:.0f} MiB are free on its disk); {GO_ON}"
            ) from err


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint so that ``path`` appears whole or keeps what it had."""
    save_torch({"edgekd_checkpoint": FORMAT, **asdict(checkpoint)}, path)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; only tensors and plain values are unpickled.

    Args:
        path: the file, or the folder of a run (its ``best.ckpt`` is taken).

    Raises:
        CheckpointError: missing, empty, damaged, or not one of ours.
    """
    path = in_folder(path, BEST_NAME)
    value = read_torch(path, "edgekd_checkpoint", FORMAT, "edgekd finetune RECIPE")
    return whole(Checkpoint, value, path, "a checkpoint")


def in_folder(path: Path, name: str) -> Path:
    """The file itself, or the one of this name in a folder."""
    path = Path(path)
    return path / name if path.is_dir() else path


def whole(kind: Callable[..., T], value: dict[str, Any], path: Path, what: str) -> T:
    """Parts that were read, put together.

    Raises:
        CheckpointError: one is missing, or there is one too many.
    """
    try:
        return kind(**value)
    except TypeError as err:
        raise CheckpointError(f"{path} lacks a part of {what}: {err}") from err


def read_torch(path: Path, mark: str, version: int, command: str) -> dict[str, Any]:
    """Read a file that torch saved; only tensors and plain values are unpickled.

    Args:
        path: the file.
        mark: key that tells its kind and holds its format; taken out of the result.
        version: the format that is read here.
        command: makes such a file, for messages.

    Raises:
        CheckpointError: missing, empty, damaged, of another kind or format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; make one with: {command}")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as err:
        raise CheckpointError(
            f"{path} is damaged or no checkpoint of edgekd; copy it again, or make one with: "
            f"{command} (--debug shows what torch says)"
        ) from err
    if not isinstance(value, dict) or mark not in value:
        known = [key for key in value if str(key).startswith("edgekd_")] if value else []
        kind = KINDS.get(known[0], known[0]) if known else "it lacks its format mark"
        raise CheckpointError(
            f"{path} is not what is needed here ({kind}); make one with: {command}"
        )
    if value.pop(mark) != version:
        raise CheckpointError(f"{path} has another format than {version}; run again: {command}")
    return dict(value)


def kind_of(path: Path) -> str | None:
    """The mark of a file that torch saved, one of :data:`KINDS`; None where it has none of ours.

    A folder, or a file that cannot be read, has none: who reads it says why.
    """
    if not path.is_file():
        return None
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _UNREADABLE:
        return None
    marks = [key for key in KINDS if isinstance(value, dict) and key in value]
    return marks[0] if marks else None


@dataclass(frozen=True)
class EncoderCheckpoint:
    """A distilled encoder, to be tuned with a decoder by ``edgekd finetune --encoder``.

    Attributes:
        recipe: the resolved recipe as plain values.
        student: as in :class:`Checkpoint`; the number of classes is that of the recipe.
        weights: state dict of the student's encoder.
        data: digest and number of the unlabeled images.
        distilled: what was done: method, steps, teachers with their weights' hashes, last losses.
    """

    recipe: dict[str, Any]
    student: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, Any]
    distilled: dict[str, Any]


def save_encoder(path: Path, encoder: EncoderCheckpoint) -> None:
    """Write an encoder so that ``path`` appears whole or keeps what it had."""
    save_torch({"edgekd_encoder": ENCODER_FORMAT, **asdict(encoder)}, path)


def load_encoder(path: Path) -> EncoderCheckpoint:
    """Read a distilled encoder.

    Args:
        path: the file, or the folder of a distillation (its ``encoder.ckpt`` is taken).

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    path = in_folder(path, ENCODER_NAME)
    value = read_torch(path, "edgekd_encoder", ENCODER_FORMAT, "edgekd distill RECIPE")
    return whole(EncoderCheckpoint, value, path, "an encoder")


def use_encoder(model: Segmenter, encoder: EncoderCheckpoint, source: str) -> None:
    """Put a distilled encoder's weights into a student.

    Raises:
        CheckpointError: it is the encoder of another student, or was trained with another
            normalisation.
    """
    said = encoder.student
    ours = {"name": model.name, "attention": model.options.get("attention")}
    theirs = {"name": said["name"], "attention": said["options"].get("attention")}
    if ours != theirs:
        raise CheckpointError(
            f"{source} is the encoder of student {theirs['name']} (attention "
            f"{theirs['attention']}), the recipe asks for {ours['name']} (attention "
            f"{ours['attention']}); distil that one, or change student in the recipe"
        )
    try:
        model.encoder.load_state_dict(encoder.weights, strict=True)
    except RuntimeError as err:
        detail = " ".join(str(err).split())[:240]
        raise CheckpointError(f"{source} does not fit {model.name}'s encoder: {detail}") from err


def check_same_input(encoder: EncoderCheckpoint, recipe: Recipe, source: str) -> None:
    """Raise unless an encoder was distilled with this recipe's channels and normalisation.

    Raises:
        CheckpointError: names what differs.
    """
    _check_input(encoder.recipe, recipe, f"{source} was distilled")


def build_student(
    name: str,
    num_classes: int,
    *,
    variant: str | None = None,
    attention: str | None,
    head: str | None,
    pretrained: bool | None,
    drop_path: float | None = None,
) -> Segmenter:
    """Build a student by name.

    Raises:
        InputError: no such student, or an option that it does not have.
        EnvironmentLacksError: weights are asked for and their package is not installed.
    """
    module = registry.load("edgekd.train.students", name, "student")
    options: dict[str, Any] = {"attention": attention, "head": head, "pretrained": pretrained}
    if hasattr(module, "VARIANTS"):
        options["variant"] = variant
    elif variant is not None:
        raise InputError(
            f"student {name} comes in one size and got variant '{variant}'; remove the key"
        )
    if hasattr(module, "DROP_PATH"):
        options["drop_path"] = drop_path
    elif drop_path is not None:
        raise InputError(
            f"student {name} has no path that can be left out and got drop_path {drop_path:g}; "
            "remove the key"
        )
    model: Segmenter = module.build(num_classes, **options)
    return model


def build_for(recipe: Recipe) -> Segmenter:
    """The student that a recipe asks for; see :func:`build_student`."""
    spec = recipe.student
    return build_student(
        spec.name,
        len(recipe.io.classes),
        variant=spec.variant,
        attention=spec.attention,
        head=spec.head,
        pretrained=spec.pretrained,
        drop_path=spec.drop_path,
    )


def rebuild(checkpoint: Checkpoint, source: str) -> Segmenter:
    """The student of a checkpoint with its weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights do not fit the student they claim to be of.
    """
    said = checkpoint.student
    model = build_student(
        said["name"],
        said["num_classes"],
        variant=said["options"].get("variant"),
        attention=said["options"].get("attention"),
        head=said["options"].get("head"),
        pretrained=False,
    )
    try:
        model.load_state_dict(checkpoint.weights, strict=True)
    except RuntimeError as err:
        detail = " ".join(str(err).split())[:240]
        raise CheckpointError(
            f"{source} does not hold weights of the student {said['name']}: {detail}"
        ) from err
    return model.eval()


def check_matches(checkpoint: Checkpoint, recipe: Recipe, source: str) -> None:
    """Raise unless a checkpoint is one of this recipe's student and classes.

    Raises:
        CheckpointError: names what differs.
    """
    said, want = checkpoint.student, recipe.student
    asked = {
        "name": want.name,
        "variant": want.variant,
        "attention": want.attention,
        "head": want.head,
    }
    have = {
        "name": said["name"],
        "variant": said["options"].get("variant"),
        "attention": said["options"].get("attention"),
        "head": said["options"].get("head"),
    }
    for key, value in asked.items():
        if value is not None and have[key] != value:
            raise CheckpointError(
                f"{source} is a checkpoint of student {have['name']} ({key} {have[key]}), the "
                f"recipe '{recipe.name}' asks for {key} {value}; give the checkpoint of this "
                "recipe or tune one with: edgekd finetune RECIPE"
            )
    theirs = [(item["index"], item["name"]) for item in checkpoint.recipe["io"]["classes"]]
    ours = [(item.index, item.name) for item in recipe.io.classes]
    if theirs != ours:
        raise CheckpointError(
            f"{source} was tuned for the classes {[name for _, name in theirs]}, the recipe "
            f"'{recipe.name}' has {[name for _, name in ours]}"
        )
    _check_input(checkpoint.recipe, recipe, f"{source} was tuned")


def _check_input(trained: dict[str, Any], recipe: Recipe, said: str) -> None:
    """Raise CheckpointError where channels or normalisation of two recipes differ."""
    before, now = trained["io"]["inputs"][0], recipe.io.inputs[0]
    for key in ("channels", "mean", "std"):
        if before[key] != getattr(now, key):
            raise CheckpointError(
                f"{said} with io.inputs[0].{key} {before[key]}, the recipe '{recipe.name}' has "
                f"{getattr(now, key)}; the weights only fit the first"
            )
