"""A trained student of places on disk: weights, its recipe, the scale of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from edgekd.contracts import registry
from edgekd.contracts.datum import differ
from edgekd.contracts.place_recipe import PlaceIo, PlaceRecipe, parse_place_recipe
from edgekd.errors import CheckpointError
from edgekd.train.checkpoint import BEST_NAME, in_folder, read_torch, save_torch, whole
from edgekd.train.places.students._base import PlaceStudent

FORMAT = 1
MARK = "edgekd_places"
COMMAND = "edgekd distill RECIPE"


@dataclass(frozen=True)
class PlaceCheckpoint:
    """A student after training.

    Attributes:
        recipe: the resolved recipe as plain values; ``io.series`` has the statistics.
        student: name, whether pretrained, number of parameters.
        weights: state dict.
        data: name and sha256 of the set.
        tuning: what was done, and whether the set was simulated.
        text: name and sha256 of the encoder whose embeddings it learned, ``{}`` for given ones.
    """

    recipe: dict[str, Any]
    student: dict[str, Any]
    weights: dict[str, Tensor]
    data: dict[str, str]
    tuning: dict[str, Any]
    text: dict[str, str]

    def parsed_recipe(self, source: str) -> PlaceRecipe:
        """The recipe that travelled with the weights, validated again."""
        return parse_place_recipe(self.recipe, f"the recipe inside {source}")


def build_student(name: str, io: PlaceIo, pretrained: bool | None) -> PlaceStudent:
    """A student of places by name: ``(image, series, text, present)`` -> logits.

    Raises:
        InputError: no such student, or inputs that it does not take.
        EnvironmentLacksError: weights are asked for and their package is not installed.
    """
    module = registry.load("edgekd.train.places.students", name, "student of places")
    model: PlaceStudent = module.build_places(io, pretrained=pretrained)
    return model


def with_statistics(
    recipe: PlaceRecipe,
    mean: list[float],
    std: list[float],
    datum: str | None = None,
    unmeasured: Sequence[str] = (),
) -> PlaceRecipe:
    """The recipe with the scale that training found for its series.

    Args:
        datum: what the levels that were learned from are above; the recipe's own, if it says one,
            was compared with it.
        unmeasured: features that no series had a value of.
    """
    values = recipe.plain()
    values["io"]["series"] |= {"mean": mean, "std": std}
    if datum is not None:
        values["io"]["series"]["datum"] = datum
    if unmeasured:
        values["io"]["series"]["unmeasured"] = list(unmeasured)
    return parse_place_recipe(values, f"recipe '{recipe.name}'")


def save_places(path: Path, checkpoint: PlaceCheckpoint) -> None:
    """Write a checkpoint so that ``path`` appears whole or keeps what it had."""
    save_torch({MARK: FORMAT, **asdict(checkpoint)}, path)


def load_places_checkpoint(path: Path) -> PlaceCheckpoint:
    """Read a checkpoint; only tensors and plain values are unpickled.

    Args:
        path: the file, or the folder of a run (its ``best.ckpt`` is taken).

    Raises:
        CheckpointError: missing, empty, damaged, or another kind of file.
    """
    path = in_folder(path, BEST_NAME)
    value = read_torch(path, MARK, FORMAT, COMMAND)
    return whole(PlaceCheckpoint, value, path, "a checkpoint of places")


def rebuild_places(checkpoint: PlaceCheckpoint, source: str) -> PlaceStudent:
    """The student with its weights, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: the weights do not fit the student they claim to be of.
    """
    recipe = checkpoint.parsed_recipe(source)
    model = build_student(checkpoint.student["name"], recipe.io, pretrained=False)
    try:
        model.load_state_dict(checkpoint.weights, strict=True)
    except RuntimeError as err:
        detail = " ".join(str(err).split())[:240]
        raise CheckpointError(
            f"{source} does not hold weights of the student {checkpoint.student['name']}: {detail}"
        ) from err
    return model.eval()


def check_matches_places(checkpoint: PlaceCheckpoint, recipe: PlaceRecipe, source: str) -> None:
    """Raise unless a checkpoint is one of this recipe's student, inputs and classes.

    Raises:
        CheckpointError: names what differs.
    """
    then, now = checkpoint.parsed_recipe(source), recipe
    pairs: list[tuple[str, Any, Any]] = [
        ("student.name", checkpoint.student["name"], now.student.name),
        ("io.classes", [c.name for c in then.io.classes], [c.name for c in now.io.classes]),
        ("io.image", _plain(then, "image"), _plain(now, "image")),
        ("io.series.days", then.io.series.days, now.io.series.days),
        ("io.series.features", then.io.series.features, now.io.series.features),
        ("io.text", _plain(then, "text"), _plain(now, "text")),
    ]
    if differ(then.io.series.datum, now.io.series.datum):
        pairs.append(("io.series.datum", then.io.series.datum, now.io.series.datum))
    for key, before, after in pairs:
        if before != after:
            raise CheckpointError(
                f"{source} was trained with {key} {before}, the recipe '{recipe.name}' has "
                f"{after}; give a checkpoint of this recipe, or make one with: {COMMAND}"
            )


def check_same_text(made: Mapping[str, str], learned: Mapping[str, str], source: str) -> None:
    """Raise unless embeddings come from the encoder that a student learned with.

    Args:
        made: ``name`` and ``sha256`` of the encoder.
        learned: the same of the checkpoint; empty where embeddings were given to it.
        source: of the checkpoint.

    Raises:
        CheckpointError: another encoder: its embeddings would be answered, and mean nothing.
    """
    if learned and dict(learned) != dict(made):
        raise CheckpointError(
            f"the encoder of texts is {made['name']} ({made['sha256'][:12]}…), and {source} "
            f"learned with {learned.get('name')} ({learned.get('sha256', '')[:12]}…); take that "
            "one, or give its embeddings with --embeddings"
        )


def _plain(recipe: PlaceRecipe, key: str) -> dict[str, Any]:
    values: dict[str, Any] = recipe.plain()["io"][key]
    return values
