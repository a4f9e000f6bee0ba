"""A search from its beginning to its files: teachers once, candidates by the budget, tables.

The test part is never opened: candidates learn from training views and are judged on views for
validation (:meth:`edgekd.contracts.sensor_set.SensorSet.view`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch

import edgekd
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.schema import resolve_path
from edgekd.contracts.search import SearchSpec
from edgekd.contracts.sensor_set import SensorSet, open_sensor_set
from edgekd.errors import DatasetError, InputError
from edgekd.train.distill.chain import train_teachers
from edgekd.train.distill.loop import Progress, Say
from edgekd.train.run import make_room, only_one
from edgekd.train.search.journal import NAME, Job, Journal
from edgekd.train.search.methods import METHODS, Candidate, search
from edgekd.train.search.space import Space, Values
from edgekd.train.search.training import FOLDER, Setting, Trainer, Workers
from edgekd.train.search.written import FILES, summary, write_files
from edgekd.train.teachers._saved import teacher_file

#: called with (trainings asked for so far, of all, text)
Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Run:
    """One search of a folder.

    Attributes:
        method: ``de`` or ``random``.
        seed: of the search.
    """

    method: str
    seed: int


def run_search(
    recipe: Recipe,
    recipe_folder: Path,
    data_path: Path,
    out: Path,
    runs: Sequence[Run],
    budget: int,
    *,
    workers: int = 1,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    progress: Told | None = None,
    teacher_progress: Progress | None = None,
    say: Say | None = None,
    trainer: Trainer | None = None,
    called: str = "RECIPE",
) -> dict[str, Any]:
    """Search better values for a recipe's distillation.

    Args:
        recipe: of method ``cross_modal``, with ``search``.
        recipe_folder: paths of weights are relative to it.
        data_path: the sensor set; it must have validation labels.
        out: folder: ``journal.jsonl``, ``teachers/``, ``table.csv``, ``best.json``, ``best.yaml``,
            ``plot.svg``.
        runs: searches to do, each with the whole budget; trainings that several ask for are done
            once.
        budget: trainings of students of each run; teachers are trained once, beside it.
        workers: trainings at once, a process and a core each. On the CPU the result does not
            depend on it.
        resume: go on with what ``out`` holds; a search that was killed ends as if it had not been.
        fresh: start anew although ``out`` holds a search, which is lost.
        accelerator: kind of device.
        progress, teacher_progress: called after every training; every step of a teacher.
        say: gets lines as they come.
        trainer: in place of processes, for tests.
        called: the recipe with its options, as a command that trains the best must name them.

    Returns:
        What ``best.json`` holds.

    Raises:
        InputError: no search in the recipe, a budget that does not fit, a search in the way or
            nothing to resume, or one that was made from something else.
        DatasetError: no validation labels.
        CheckpointError, EnvironmentLacksError, OutputError: as
            :func:`edgekd.train.distill.chain.distill_chain`.
    """
    tell = say or (lambda text: None)
    spec = check_budget(recipe, runs, budget)
    space = Space(recipe)
    check_space(space, spec, budget)
    if recipe.data.blocks is not None and recipe.data.blocks.val < 1:
        raise DatasetError(
            f"data.blocks.val of recipe '{recipe.name}' is 0, and a search judges by validation "
            "blocks alone; type: --set data.blocks.val=1"
        )
    with only_one(out):
        if resume and not (out / NAME).is_file():
            raise InputError(f"{out / NAME} does not exist: there is nothing to resume")
        data = open_sensor_set(recipe, data_path)
        _check_validation(data)
        if not resume:
            make_room(out, [NAME, *FILES], NAME, fresh)
        shutil.rmtree(out / FOLDER, ignore_errors=True)  # what a killed search was at
        made_from = _made_from(recipe, recipe_folder, data, accelerator)
        with Journal(out / NAME, made_from) as journal:
            if journal.known:
                tell(f"{len(journal.known)} trainings are known from {journal.path}")
            paths, _ = train_teachers(
                recipe, recipe_folder, data, out, resume=resume, fresh=fresh,
                accelerator=accelerator, progress=teacher_progress, say=say,
            )  # fmt: skip
            for line in _first_lines(recipe, space, data):
                tell(line)
            weights = tuple(str(path.resolve()) for path in paths)
            setting = Setting(recipe, data_path.resolve(), weights, out.resolve(), accelerator)
            with contextlib.ExitStack() as stack:
                found = trainer or stack.enter_context(Workers(setting, workers))
                results = [
                    (run, _one(run, number, len(runs), space, spec, budget, journal, found,
                               _first_seed(recipe), progress))
                    for number, run in enumerate(runs)
                ]  # fmt: skip
        shutil.rmtree(out / FOLDER, ignore_errors=True)
        facts = {
            "recipe": recipe.name,
            "data": {"name": data.name, "sha256": data.digest, "simulated": data.simulated},
            "teachers": [
                {"file": os.path.relpath(path, out), "sha256": sha256_file(path)} for path in paths
            ],
            "trained": [entry.weights == "train" for entry in recipe.teachers],
        }
        value = summary(recipe, space, spec, budget, results, facts)
        write_files(out, recipe_folder, space, value, results, called)
    return value


def check_budget(recipe: Recipe, runs: Sequence[Run], budget: int) -> SearchSpec:
    """The recipe's search, if the budget is one for it.

    Raises:
        InputError: it is not, or there is no search.
    """
    spec = recipe.search
    if spec is None:
        raise InputError(
            f"recipe '{recipe.name}' has no search section; add search: {{ranges: "
            "{distill.cross_modal.temperature.start: [1, 8], "
            "distill.cross_modal.feature_weight: [0, 2]}}"
        )
    for run in runs:
        assert run.method in METHODS
    least = spec.population * spec.repeats
    each = f" of {spec.repeats} trainings" if spec.repeats > 1 else ""
    if budget < least:
        raise InputError(
            f"--budget {budget} is less than one generation: {spec.population} candidates{each}; "
            f"give {least} at least, better {4 * least}, or a smaller search.population (5 at "
            "least)"
        )
    if budget % spec.repeats:
        low = budget // spec.repeats * spec.repeats
        raise InputError(
            f"--budget {budget} is no multiple of the {spec.repeats} trainings of a candidate "
            f"(search.repeats); give {low} or {low + spec.repeats}"
        )
    return spec


def check_space(space: Space, spec: SearchSpec, budget: int) -> None:
    """Raise where the ranges hold fewer candidates than the budget pays for.

    Raises:
        InputError: says how many there are.
    """
    count, limit = space.count, budget // spec.repeats
    if count is not None and count < limit:
        most = count * spec.repeats
        raise InputError(
            f"the ranges of search hold {count} different candidates, and --budget {budget} pays "
            f"for {limit}; give {most} or less, or wider ranges"
        )


def _check_validation(data: SensorSet) -> None:
    if not any(data.label_counts()["val"]):
        raise DatasetError(
            f"{data.file} has no validation label, and a search judges by nothing else (the test "
            "part is not looked at); give data.blocks.val: 1, or scenes of split val"
        )


def _first_lines(recipe: Recipe, space: Space, data: SensorSet) -> list[str]:
    counts = data.label_counts()["val"]
    labels = ", ".join(f"{item.name} {n}" for item, n in zip(data.classes, counts, strict=True))
    lines = [f"candidates are judged by validation labels alone: {labels}"]
    if recipe.teachers:
        lines.append("teachers are trained once, as the recipe is written; candidates share them")
    values, point = space.written()
    if point is None:
        outside = [axis.key for axis in space.axes if axis.part_of(values[axis.key]) is None]
        lines.append(
            f"the recipe's own values are not tried: {', '.join(outside)} outside the range"
        )
    return lines


def _first_seed(recipe: Recipe) -> int:
    assert recipe.distill is not None
    return recipe.distill.seed


def _one(
    run: Run, number: int, count: int, space: Space, spec: SearchSpec, budget: int,
    journal: Journal, trainer: Trainer, first_seed: int, progress: Told | None,
) -> list[Candidate]:  # fmt: skip
    """Candidates of one run; trainings that the journal knows are taken from it."""
    done = number * budget
    best: float | None = None

    def answer(asked: list[Values]) -> list[list[float | None]]:
        nonlocal done, best
        jobs = [[Job(v, first_seed + r) for r in range(spec.repeats)] for v in asked]
        new = [job for row in jobs for job in row if job.name not in journal.known]
        done += sum(map(len, jobs)) - len(new)
        for job, outcome in trainer.run(new):
            journal.add(job, outcome)
            done += 1
            if outcome.value is not None and (best is None or outcome.value > best):
                best = outcome.value
            if progress is not None:
                text = f"{run.method} {run.seed}" + ("" if best is None else f", best {best:.4f}")
                progress(done, count * budget, text)
        return [[journal.known[job.name].value for job in row] for row in jobs]

    return search(run.method, space, spec, run.seed, budget // spec.repeats, answer)


def _made_from(
    recipe: Recipe, recipe_folder: Path, data: SensorSet, accelerator: str
) -> dict[str, Any]:
    """What a training rests on, by the names that a refusal mentions."""
    given = [
        teacher_file(resolve_path(entry.weights, recipe_folder))
        for entry in recipe.teachers if entry.weights != "train"
    ]  # fmt: skip
    plain = recipe.plain()
    kept = {key: plain[key] for key in ("distill", "student", "sensors", "io", "tiling", "search")}
    cuda = accelerator == "cuda" or (accelerator == "auto" and torch.cuda.is_available())
    return {
        **kept,
        "teachers": plain["teachers"],
        "weights of teachers": [sha256_file(path) for path in given if path.is_file()],
        "data": data.digest,
        "device": "cuda" if cuda else "cpu",
        "versions": {
            "edgekd": edgekd.__version__,
            "torch": str(torch.__version__), "numpy": np.__version__, "scipy": scipy.__version__,
        },
    }  # fmt: skip
