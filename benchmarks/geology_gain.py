"""What an RGB student gains from sensors that it lacks: ``python benchmarks/geology_gain.py``.

Three sets (MUUFL Gulfport, Cuprite, a simulated district), spatial block cross-validation with a
buffer, 5, 20 and all labels per class, several draws of labels per fold. Arms, all with the same
student, steps and jitter:

* ``labels``: the student from labels alone;
* ``distilled``: a teacher learns from the same labels, the student from it, over all training
  pixels. The teacher sees the spectrum alone: in these sets camera and LiDAR beside it cost it
  accuracy at few labels;
* ``progressive``: with a multispectral teacher in between.

The figure is balanced accuracy on the test blocks; arms are compared pair by pair, (fold, draw) by
(fold, draw). Rare classes, those with less than half of an equal share of the pixels, are counted
apart as well.

What this does not show:

* Settings were chosen by looking at draw 0 of the same five folds, so whoever chose them has seen
  results on the test blocks. The training labels of the draws that count differ, the test truth
  does not.
* No test pixel, and none of the buffer round them, is seen in training
  (``SensorSet.training_view``). But the buffers of 2 and 3 px are smaller than what the student
  sees, 31 px to each side: inputs (never labels) of training pixels lie in the context of test
  pixels.

Three 95 % intervals (``_geology_stats.interval``): Student's over the pairs (fold, draw), of which
the issue asks for at least 20; one that allows for training sets that overlap between folds
(Nadeau and Bengio 2003); and Student's over the means of the folds. The last two allow for what
pairs share: folds most of their training pixels, draws their test blocks. The verdict names where
each excludes 0, and rests on the first: ends with 1 unless, with the fewest labels per class that
were asked for (all is not few), ``distilled`` minus ``labels`` is above 0 by it over at least 20
pairs on at least two sets. Other numbers of labels are judged by themselves, ``progressive`` is
not.

Finished pieces are kept and read again where settings, data and the teacher that they start from
are the same, whatever the code; a record that more than one state of the code made says so. The
real data is needed (EDGEKD_TEST_DATA); without it the script says so and ends with 2.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a piece per core: spinning threads eat each other

import click
from _geology_sets import (
    MAKERS,
    code_files,
    files_digest,
    make_set,
    part_pixels,
    rare_classes,
    set_digest,
)
from _geology_stats import ARMS, MEANING, lines, summarise, verdict
from _records import here

from edgekd.contracts.artifacts import publish_file, sha256_bytes, sha256_file, write_json
from edgekd.contracts.recipe import Recipe, data_root, load_recipe

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")
SETS = ("muufl", "cuprite", "simulated")
FOLDS = 5
#: as the train package names it, which is not imported before its piece begins
TEACHER_NAME = "teacher.ckpt"


@dataclass(frozen=True)
class Piece:
    """One training: a set, labels per class (None: all), fold, draw of labels and seed, arm."""

    name: str
    labels: int | None
    fold: int
    draw: int
    arm: str

    @property
    def key(self) -> str:
        """Name of its files."""
        return f"{self.name}-{self.labels or 'all'}-{self.fold}-{self.draw}"


@dataclass(frozen=True)
class Run:
    """What all pieces of a run share.

    Attributes:
        out: folder of what is kept.
        changes: of all recipes, from the command line.
        data: set -> digest of its files.
        code: see :func:`code_digest`.
    """

    out: Path
    changes: tuple[str, ...]
    data: dict[str, str]
    code: str


def recipe_path(name: str) -> Path:
    """Recipe of a set."""
    return Path(__file__).with_name(f"geology_gain_{name}.yaml")


def overrides(piece: Piece, teacher: Path | None) -> list[str]:
    """What a piece changes in its recipe."""
    changes = [
        f"preset={piece.arm}",
        f"data.blocks.fold={piece.fold}",
        f"data.labels_per_class={piece.labels or 'null'}",
        f"data.label_seed={piece.draw}",
        f"distill.seed={piece.draw}",
    ]
    if piece.arm == "progressive":
        changes.append(f"teachers.0.weights={teacher}")
    return changes


def set_root(name: str, out: Path, recipe: Recipe) -> Path:
    """Where a set lies: made ones in ``out``, others where the recipe says."""
    return out / "sets" / name if name in MAKERS else data_root(recipe, recipe_path(name))


def work(piece: Piece, run: Run) -> dict[str, Any]:
    """Train one piece and measure it on the test blocks; a finished one is read."""
    out = run.out
    result = out / "pieces" / f"{piece.key}-{piece.arm}.json"
    path = recipe_path(piece.name)
    kept = out / "teachers" / piece.key / TEACHER_NAME
    if piece.arm == "progressive" and not kept.is_file():
        raise click.UsageError(
            f"progressive starts from the teacher of distilled, and there is no {kept}; remove "
            f"{result.with_name(f'{piece.key}-distilled.json')}, if it is there, and run with "
            "--arms labels,distilled,progressive"
        )
    recipe = load_recipe(path, [*overrides(piece, kept), *run.changes])
    said = made_from(recipe, run.data[piece.name], kept if piece.arm == "progressive" else None)
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["made_from"] == said:
            return found
    result.unlink(missing_ok=True)  # its teacher and student are about to be replaced
    import torch

    from edgekd.contracts.sensor_labelled import camera_view
    from edgekd.contracts.sensor_set import open_sensor_set
    from edgekd.train.checkpoint import load_checkpoint, rebuild
    from edgekd.train.distill.chain import distill_chain
    from edgekd.train.evaluate import evaluate_model, evaluate_teacher
    from edgekd.train.teachers._saved import load_teacher, rebuild_teacher

    torch.set_num_threads(1)
    begin = time.perf_counter()
    root = set_root(piece.name, out, recipe)
    data = open_sensor_set(recipe, root)
    folder = out / "runs" / f"{piece.key}-{piece.arm}"
    shutil.rmtree(folder, ignore_errors=True)
    distill_chain(recipe, path.parent, root, folder, accelerator="cpu", data=data)
    figures: dict[str, Any] = {
        "made_from": said, "code": run.code, "data": run.data[piece.name], **asdict(piece),
        "simulated": data.simulated, "pixels": part_pixels(data), "rare": rare_classes(data),
    }  # fmt: skip
    student = rebuild(load_checkpoint(folder), str(folder))
    view = camera_view(data)
    figures["student"] = _short(evaluate_model(student, view, "test", recipe.io, recipe.tiling))
    teachers = sorted((folder / "teachers").glob("*")) if piece.arm != "labels" else []
    for place in teachers:
        teacher = rebuild_teacher(load_teacher(place), str(place))
        figures[place.name.partition("-")[2]] = _short(evaluate_teacher(teacher, data, "test"))
    if piece.arm == "distilled":
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(teachers[0] / TEACHER_NAME, kept)
    figures["seconds"] = time.perf_counter() - begin
    keep = out / "students" / f"{piece.key}-{piece.arm}.ckpt"
    keep.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "best.ckpt", keep)
    shutil.rmtree(folder)
    result.parent.mkdir(parents=True, exist_ok=True)
    write_json(result, figures)
    return figures


def made_from(recipe: Recipe, data: str, teacher: Path | None) -> str:
    """Digest of what decides a piece: its settings, its data, and the teacher it starts from.

    Args:
        recipe: with all changes; where its data lies decides nothing.
        data: digest of the set, see :func:`_geology_sets.set_digest`.
        teacher: its file, counted by its content.
    """
    values = recipe.plain()
    if teacher is not None:
        values["teachers"][0]["weights"] = sha256_file(teacher)
    for key in ("title", "search", "finetune", "targets", "gates"):
        values.pop(key, None)
    values["data"]["root"] = data
    return sha256_bytes(json.dumps(values, sort_keys=True).encode())


def code_digest() -> str:
    """Of the code that reads, simulates and trains: a record tells whether one made all pieces."""
    return files_digest(code_files("contracts", "train", "simulate"))[:12]


def _short(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "balanced_accuracy": metrics["balanced_accuracy"],
        "recall": {item["name"]: item["recall"] for item in metrics["per_class"]},
    }


def draw_maps(path: Path, names: list[str], labels: int | None, number: int, run: Run) -> None:
    """Maps of one scene of each set, from a draw."""
    from _geology_maps import draw, stitched

    from edgekd.contracts.sensor_set import open_sensor_set

    rows = {}
    for name in names:
        folds = [Piece(name, labels, fold, number, "distilled") for fold in range(FOLDS)]
        opened = []
        for piece in folds:
            recipe = load_recipe(recipe_path(name), [*overrides(piece, None), *run.changes])
            opened.append((recipe, open_sensor_set(recipe, set_root(name, run.out, recipe))))
        students = {
            arm: [run.out / "students" / f"{piece.key}-{arm}.ckpt" for piece in folds]
            for arm in ("labels", "distilled")
        }
        teachers = [run.out / "teachers" / piece.key for piece in folds]
        rows[f"{name}, {labels or 'all'} labels per class"] = stitched(opened, students, teachers)
    draw(path, rows)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/geology_gain",
              show_default=True, help="Folder of the pieces; finished ones are kept.")  # fmt: skip
@click.option("--sets", default=",".join(SETS), show_default=True)
@click.option("--labels", default="5,20,all", show_default=True, help="Per class.")
@click.option("--draws", default=4, show_default=True, help="Of labels and seeds, per fold.")
@click.option("--first-draw", default=1, show_default=True, help="0 is the one of trials.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of all recipes.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/geology_gain.*")
def main(
    output: Path, sets: str, labels: str, draws: int, first_draw: int, arms: str,
    changes: tuple[str, ...], jobs: int, write: bool,
) -> None:  # fmt: skip
    """Do what is missing, print the table, and end with 1 when distillation does not help."""
    if not (DATA / "hsi").is_dir():
        raise click.UsageError(f"no real data at {DATA}; set EDGEKD_TEST_DATA")
    output = output.resolve()
    names, chosen = sets.split(","), [arm for arm in ARMS if arm in arms.split(",")]
    for name in names:
        if name in MAKERS:
            make_set(name, DATA / "hsi", output / "sets" / name)
    described = {name: load_recipe(recipe_path(name), list(changes)) for name in names}
    digests = {name: set_digest(set_root(name, output, described[name])) for name in names}
    run = Run(output, changes, digests, code_digest())
    numbers = [None if text == "all" else int(text) for text in labels.split(",")]
    counted = range(first_draw, first_draw + draws)
    pieces = [
        Piece(name, count, fold, draw, arm)
        for name in names for count in numbers for draw in counted for fold in range(FOLDS)
        for arm in chosen
    ]  # fmt: skip
    results: dict[Piece, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        # progressive needs the teacher that distilled has trained
        for now in (("labels", "distilled"), ("progressive",)):
            todo = {pool.submit(work, piece, run): piece
                    for piece in pieces if piece.arm in now}  # fmt: skip
            for number, done in enumerate(as_completed(todo), start=1):
                piece = todo[done]
                results[piece] = done.result()
                figure = results[piece]["student"]["balanced_accuracy"]
                click.echo(f"{number}/{len(todo)} {piece.key} {piece.arm}: {figure:.3f}", err=True)
    rows = summarise([results[piece] for piece in pieces])
    judged = verdict(rows)
    codes = Counter(item["code"] for item in results.values())
    for line in lines(rows, codes):
        click.echo(line)
    click.echo(json.dumps(judged))
    if write:
        folder, environment = here()
        record = {
            "what": "balanced accuracy on test blocks; gains are paired differences to labels only",
            "meaning": MEANING,
            "command": f"python benchmarks/geology_gain.py --sets {sets} --labels {labels} "
            f"--draws {draws} --first-draw {first_draw} --arms {arms} --write"
            + "".join(f" --set {shlex.quote(text)}" for text in changes),
            "folds": FOLDS,
            "draws": draws,
            "first_draw": first_draw,
            "changes": list(changes),
            "jobs_at_once": jobs,
            "minutes": "of one core, on a machine that other work may have shared",
            "code": codes,
            "one_code": len(codes) == 1,
            "data": digests,
            "rows": rows,
            "verdict": judged,
            "pieces": [results[piece] for piece in pieces],
            "environment": environment.model_dump(mode="json"),
        }
        write_json(folder / "geology_gain.json", record)
        with publish_file(folder / "geology_gain.txt") as part:
            part.write_text("\n".join(lines(rows, codes)) + "\n")
        if {"labels", "distilled"} <= set(chosen):
            draw_maps(folder / "geology_gain.png", names, numbers[0], first_draw, run)
        click.echo(f"written: {folder}/geology_gain.*", err=True)
    sys.exit(0 if judged["passed"] else 1)


if __name__ == "__main__":
    main()
