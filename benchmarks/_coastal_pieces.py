"""Pieces of ``coastal_gain.py``: a seed's teachers and students, their scores on unseen coasts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import canonical_json, publish_file, sha256_bytes
from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_recipe import BALANCE_DECAY, PlaceRecipe, parse_place_recipe
from edgekd.errors import InputError
from edgekd.train.places.checkpoint import load_places_checkpoint, rebuild_places
from edgekd.train.places.data import PlaceData, sampled_kinds
from edgekd.train.places.predict import student_scores
from edgekd.train.places.run import OpenedPlaces, distill_places
from edgekd.train.places.teachers._saved import load_kind_teacher

Float32 = npt.NDArray[np.float32]
ARMS = ("distilled", "labels")
#: what a student is asked without, in turn
CASES: dict[str, tuple[str, ...]] = {
    "all": (),
    **{f"no {kind}": (kind,) for kind in KINDS},
    **{f"{kind} alone": tuple(k for k in KINDS if k != kind) for kind in KINDS},
}
SCORES_NAME, FIGURES_NAME, BEGUN_NAME = "scores.npz", "made_from.json", "begun.txt"


@dataclass(frozen=True)
class Piece:
    """One trained student with what it and its teachers answer.

    Attributes:
        arm, seed: which.
        scores: ``val/all``, ``test/no text``, ``test/teacher image``, ... -> ``(N, classes)``.
        minutes: of training, teachers included.
        shares: of the teachers.
    """

    arm: str
    seed: int
    scores: dict[str, Float32]
    minutes: float
    shares: dict[str, float]


def recipe_of(recipe: PlaceRecipe, arm: str, seed: int) -> PlaceRecipe:
    """The recipe of a piece: another seed, and for ``labels`` nobody teaches.

    Labels alone are the same student, steps and augmentation; its loss is the cross-entropy, and
    the contrast between kinds, which needs no teacher, stays.
    """
    values = recipe.plain()
    values["distill"]["seed"] = seed
    if arm == "labels":
        values["teachers"] = []
        values["distill"]["label_weight"] = 1.0
    return parse_place_recipe(values, recipe.name)


def make(
    recipe: PlaceRecipe,
    folder: Path,
    opened: OpenedPlaces,
    out: Path,
    arm: str,
    seed: int,
    say: Callable[[str], None],
    kept: bool = False,
) -> Piece:
    """Train a piece, or take what is there; one that was stopped goes on.

    Args:
        recipe: of the product.
        folder: paths of weights are relative to it.
        opened: the set.
        out: of the benchmark.
        arm, seed: which piece.
        say: takes lines.
        kept: take what is there and nothing else; nothing is trained, nor removed.

    Raises:
        InputError: with ``kept``, the piece is not there, or was made from something else.
    """
    here = out / f"seed_{seed}" / arm
    mine = recipe_of(recipe, arm, seed)
    sampled = sampled_kinds(mine, opened.data)
    made_from = sha256_bytes(
        canonical_json(
            {
                "recipe": _that_matters(mine),
                "data": opened.data.digest,
                "text": opened.text,
                **({"sampled": list(sampled)} if sampled else {}),
            }
        ).encode()
    )
    mark = here / FIGURES_NAME
    if mark.is_file() and json.loads(mark.read_text())["made_from"] == made_from:
        about = json.loads(mark.read_text())
        with np.load(here / SCORES_NAME) as stored:
            scores = {name: stored[name] for name in stored.files}
        return Piece(arm, seed, scores, about["minutes"], about["shares"])
    if kept:
        raise InputError(
            f"{here} holds no finished piece of this recipe and set; leave out --kept to train it, "
            "or give the folder that has it with -o"
        )
    begun = here / BEGUN_NAME
    if begun.is_file() and begun.read_text() != made_from:
        shutil.rmtree(here)  # of other settings
    here.mkdir(parents=True, exist_ok=True)
    begun.write_text(made_from)
    data = PlaceData(mine, opened.data.places, opened.data.text)
    going_on = any(here.rglob("last.ckpt"))
    result = distill_places(
        mine, folder, data, opened.text, here, cache=out / "cache", resume=going_on,
        accelerator="cpu", say=say,
    )  # fmt: skip
    checkpoint = load_places_checkpoint(result.path)
    model = rebuild_places(checkpoint, str(result.path))
    scores = {}
    for split in ("val", "test"):
        rows = data.rows[split]
        for case, without in CASES.items():
            scores[f"{split}/{case}"] = student_scores(model, data, rows, without)
    seconds = float(checkpoint.tuning["seconds"])
    for path in sorted(here.glob("teachers/*/teacher.ckpt")):
        saved = load_kind_teacher(path)
        seconds += float(saved["distilled"]["seconds"])
        for split in ("val", "test"):
            kind = saved["entry"]["sees"]
            scores[f"{split}/teacher {kind}"] = saved["answers"].numpy()[data.rows[split]]
    with publish_file(here / SCORES_NAME) as part, part.open("wb") as file:
        np.savez(file, **scores)
    about = {
        "made_from": made_from,
        "minutes": seconds / 60,
        "shares": checkpoint.tuning["shares"],
    }
    with publish_file(mark) as part:
        part.write_text(json.dumps(about))
    return Piece(arm, seed, scores, about["minutes"], about["shares"])


def _that_matters(recipe: PlaceRecipe) -> dict[str, Any]:
    values = {k: v for k, v in recipe.plain().items() if k not in _NOT_TRAINED}
    if values["distill"]["balance_decay"] == BALANCE_DECAY:
        del values["distill"]["balance_decay"]  # pieces from before it was a key had this
    del values["distill"]["sampling"]  # what it does depends on the set; see sampled_kinds
    return values


#: parts of a recipe that no weight depends on
_NOT_TRAINED = ("title", "targets", "gates", "precision", "calibration")
