"""Teachers of a recipe of places one after the other, and the student from all of them.

Every teacher is a run of the loop in a folder of its own below ``teachers/``, the student's is the
run's folder itself. A teacher that is done is not trained again; one that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts import registry
from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_recipe import PLACE_TEACHERS, PlaceRecipe, PlaceTeacher
from edgekd.contracts.schema import resolve_path
from edgekd.errors import CheckpointError, InputError
from edgekd.train.checkpoint import LAST_NAME
from edgekd.train.distill.chain import FOLDER
from edgekd.train.distill.loop import DistillResult, Progress, Say, run_task
from edgekd.train.distill.tasks import Task
from edgekd.train.places.checkpoint import build_student
from edgekd.train.places.data import PlaceData, open_places_for
from edgekd.train.places.networks import build_kind_teacher
from edgekd.train.places.task import KindTask, StudentTask
from edgekd.train.places.teachers._saved import load_kind_teacher
from edgekd.train.places.text import TextEncoder, embeddings_of
from edgekd.train.teachers._saved import TEACHER_NAME

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Taught:
    """What a recipe's teachers say.

    Attributes:
        answers: kind -> ``(rows, classes)`` logits for the whole table.
        sha256: kind -> of all that decides about them.
        paths: kind -> file of the teacher.
    """

    answers: dict[str, Float32]
    sha256: dict[str, str]
    paths: dict[str, Path]


def distill_places(
    recipe: PlaceRecipe,
    recipe_folder: Path,
    data: PlaceData,
    text: Mapping[str, str],
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
) -> DistillResult:
    """Train the recipe's teachers one after the other, then its student.

    Args:
        recipe: what to train and how.
        recipe_folder: paths of weights are relative to it.
        data: the set, opened for this recipe.
        text: name and sha256 of what made its embeddings.
        out: folder of the run: the student's ``best.ckpt``, ``last.ckpt``, ``curves.csv``,
            ``log.txt``; below ``teachers/`` the same of each teacher, with ``teacher.ckpt``.
        cache: folder of what frozen encoders say of pictures; None is each teacher's own.
        resume, fresh, accelerator, progress, say: as :func:`edgekd.train.distill.loop.distill`.

    Raises:
        InputError, DatasetError, CheckpointError, EnvironmentLacksError, OutputError: as there.
    """
    if resume and not any(_begun(out, recipe)):
        raise CheckpointError(
            f"{out} holds no checkpoint of this recipe's stages: there is nothing to resume; leave "
            "out --resume, and add --fresh if an earlier run was stopped before its first "
            "checkpoint"
        )
    recipe = data.recipe
    build_student(recipe.student.name, recipe.io, recipe.student.pretrained)  # told before hours
    taught = train_kind_teachers(
        recipe, recipe_folder, data, text, out, cache=cache, resume=resume, fresh=fresh,
        accelerator=accelerator, progress=progress, say=say,
    )  # fmt: skip
    spec = recipe.distill.loop(recipe.io.image.tile_px)

    def make(log: Say) -> Task:
        del log
        learner = build_student(recipe.student.name, recipe.io, recipe.student.pretrained)
        return StudentTask(recipe, spec, data, learner, taught.answers, taught.sha256, text)

    going_on = resume and (out / LAST_NAME).is_file()
    return run_task(
        recipe, make, out, spec=spec, resume=going_on, fresh=fresh, accelerator=accelerator,
        progress=progress, say=say,
    )  # fmt: skip


@dataclass(frozen=True)
class OpenedPlaces:
    """A set opened for a recipe.

    Attributes:
        data: the set with its embeddings.
        encoder: what made them.
        text: its name and sha256, as checkpoints keep them.
    """

    data: PlaceData
    encoder: TextEncoder
    text: dict[str, str]


def open_for_training(
    recipe: PlaceRecipe, recipe_folder: Path, root: Path, cache: Path | None, say: Say
) -> OpenedPlaces:
    """Read a set, hold it against a recipe, and make the embeddings of its texts.

    Args:
        recipe: with ``io.text.encoder``.
        recipe_folder: paths of weights are relative to it.
        root: of the set.
        cache: folder of embeddings that were made before; None for none.
        say: takes lines.

    Raises:
        InputError, DatasetError: the set cannot be read or does not fit, or the encoder's width is
            not ``io.text.width``.
        CheckpointError, EnvironmentLacksError: the encoder is damaged or not installed.
    """
    places = open_places_for(recipe, root)
    encoder = text_encoder(recipe, recipe_folder)
    vectors = row_embeddings(
        places, encoder.width, lambda texts: embeddings_of(texts, encoder, cache, say=say)
    )
    data = PlaceData(recipe, places, vectors)
    return OpenedPlaces(data, encoder, {"name": encoder.name, "sha256": encoder.sha256})


def text_encoder(recipe: PlaceRecipe, recipe_folder: Path) -> TextEncoder:
    """The encoder of ``io.text``.

    Raises:
        InputError: it gives embeddings of another width.
        CheckpointError, EnvironmentLacksError: damaged, or not installed.
    """
    asked = recipe.io.text
    module = registry.load(PLACE_TEACHERS, asked.encoder, "encoder of texts")
    if module.SEES != "text":
        raise InputError(f"io.text.encoder is {asked.encoder}, which sees {module.SEES}")
    weights: str | Path = asked.weights
    if weights != "package":
        weights = resolve_path(asked.weights, recipe_folder)
    encoder: TextEncoder = module.encoder(asked.variant, weights)
    if encoder.width != asked.width:
        raise InputError(
            f"io.text.width is {asked.width}, and {asked.encoder} gives embeddings of "
            f"{encoder.width}; write that"
        )
    return encoder


def _folders(out: Path, recipe: PlaceRecipe) -> list[Path]:
    """Folder of each teacher's stage."""
    return [
        out / FOLDER / f"{number}-{entry.called}"
        for number, entry in enumerate(recipe.teachers, start=1)
    ]


def _begun(out: Path, recipe: PlaceRecipe) -> list[bool]:
    """Whether each stage, the student's last, left something to go on from."""
    return [
        any((folder / name).is_file() for name in (LAST_NAME, TEACHER_NAME))
        for folder in (*_folders(out, recipe), out)
    ]


def train_kind_teachers(
    recipe: PlaceRecipe,
    recipe_folder: Path,
    data: PlaceData,
    text: Mapping[str, str],
    out: Path,
    *,
    cache: Path | None = None,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
) -> Taught:
    """Train the recipe's teachers, or take those that are there.

    Args, Raises: as :func:`distill_places`.
    """
    recipe = data.recipe
    taught = Taught({}, {}, {})
    for number, (entry, folder) in enumerate(
        zip(recipe.teachers, _folders(out, recipe), strict=True)
    ):
        path = _stage(
            recipe, recipe_folder, entry, data, text, folder, cache, resume, fresh, accelerator,
            progress, say, number == 0,
        )  # fmt: skip
        saved = load_kind_teacher(path)
        if saved["data"]["sha256"] != data.digest:
            raise CheckpointError(
                f"{path} was trained on another set than {data.places.root}; train it again with "
                "--fresh, or give another folder with -o"
            )
        taught.answers[entry.sees] = saved["answers"].numpy()
        taught.sha256[entry.sees] = saved["sha256"]
        taught.paths[entry.sees] = path
    return taught


def _stage(
    recipe: PlaceRecipe,
    recipe_folder: Path,
    entry: PlaceTeacher,
    data: PlaceData,
    text: Mapping[str, str],
    folder: Path,
    cache: Path | None,
    resume: bool,
    fresh: bool,
    accelerator: str,
    progress: Progress | None,
    say: Say | None,
    first: bool,
) -> Path:
    """Train one teacher, unless it is there already; its file."""
    stage = entry.stage
    spec = recipe.distill.loop(
        recipe.io.image.tile_px, steps=stage.steps, batch=stage.batch, lr=stage.lr,
        weight_decay=stage.weight_decay, warmup_fraction=0.1, decay="cosine",
    )  # fmt: skip
    mark, path = folder / "made_from.txt", folder / TEACHER_NAME
    io = recipe.plain()["io"]
    # these decide about what is refused, not about what is learned
    for name in ("ranges", "datum", "unmeasured"):
        io["series"].pop(name, None)
    made_from = sha256_bytes(
        canonical_json(
            {
                "entry": entry.model_dump(mode="json", exclude={"temperature", "weight"}),
                "augment": recipe.distill.augment.model_dump(mode="json"),
                "seed": spec.seed,
                "text": dict(text) if entry.sees == "text" else None,
                "io": io,
                "data": data.digest,
            }
        ).encode()
    )
    if resume and path.is_file() and mark.is_file() and mark.read_text() == made_from:
        there = load_kind_teacher(path)["entry"]
        if (there["name"], there["sees"]) != (entry.name, entry.sees):
            raise CheckpointError(
                f"{path} is a teacher {there['name']} of {there['sees']}, expected {entry.name} of "
                f"{entry.sees}; remove it, and --resume trains this one again"
            )
        return path
    if entry.sees == "text" and entry.name != text["name"]:
        raise InputError(
            f"teacher {entry.called} of texts is {entry.name}, and io.text.encoder is "
            f"{text['name']}; the embeddings are made by one of them"
        )

    def make(log: Say) -> Task:
        del log
        learner = build_kind_teacher(entry, recipe, recipe_folder, text["sha256"])
        return KindTask(recipe, entry, spec, data, learner, first, cache)

    run_task(
        recipe, make, folder, spec=spec, resume=resume and (folder / LAST_NAME).is_file(),
        fresh=fresh, accelerator=accelerator, progress=progress, say=say,
    )  # fmt: skip
    mark.write_text(made_from)
    return path
