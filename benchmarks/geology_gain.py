"""What an RGB student gains from sensors that it lacks: ``python benchmarks/geology_gain.py``.

Three sets (MUUFL Gulfport, Cuprite, a simulated district), spatial block cross-validation with a
buffer, 5, 20 and all labels per class, several draws of labels per fold. Arms, all with the same
student, steps and jitter:

* ``labels``: the student from labels alone;
* ``distilled``: a teacher of several sensors learns from the same labels, the student from it, over
  all training pixels;
* ``progressive``: with a multispectral teacher in between.

Settings were chosen on draw 0, which is not among the draws that count. Rare classes, those with
less than half of an equal share of the pixels, are counted apart as well.

Test pixels and the buffer round them are seen by nobody (``SensorSet.training_view``). The figure
is balanced accuracy on the test blocks; arms are compared pair by pair, (fold, draw) by (fold,
draw). The 95 % interval is Student's over the pairs; beside it stands the one that allows for
training sets that overlap between folds (Nadeau and Bengio 2003), which is wider.

Finished pieces are kept and not done again. Ends with 1 when the interval of ``distilled`` or
``progressive`` minus ``labels`` does not exclude 0 on at least two sets with few labels. The real
data is needed (EDGEKD_TEST_DATA); without it the script says so and ends with 2.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a piece per core: spinning threads eat each other

import click
from _geology_sets import MAKERS

from edgekd.contracts.artifacts import publish_file, sha256_bytes, sha256_file, write_json
from edgekd.contracts.recipe import Recipe
from edgekd.telemetry.environment import read_environment

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")
SETS = ("muufl", "cuprite", "simulated")
ARMS = ("labels", "distilled", "progressive")
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


def work(piece: Piece, out: Path, sets: Path, changes: tuple[str, ...]) -> dict[str, Any]:
    """Train one piece and measure it on the test blocks; a finished one is read."""
    from edgekd.contracts.recipe import data_root, load_recipe

    result = out / "pieces" / f"{piece.key}-{piece.arm}.json"
    path = recipe_path(piece.name)
    kept = out / "teachers" / piece.key / TEACHER_NAME
    recipe = load_recipe(path, [*overrides(piece, kept), *changes])
    said = made_from(recipe, kept if piece.arm == "progressive" else None)
    if result.is_file():
        found: dict[str, Any] = json.loads(result.read_text())
        if found["made_from"] == said:
            return found
    import torch

    from edgekd.contracts.sensor_labelled import camera_view
    from edgekd.contracts.sensor_set import open_sensor_set
    from edgekd.train.checkpoint import load_checkpoint, rebuild
    from edgekd.train.distill.chain import distill_chain
    from edgekd.train.evaluate import evaluate_model, evaluate_teacher
    from edgekd.train.teachers._saved import load_teacher, rebuild_teacher

    torch.set_num_threads(1)
    begin = time.perf_counter()
    root = sets / piece.name if piece.name in MAKERS else data_root(recipe, path)
    data = open_sensor_set(recipe, root)
    folder = out / "runs" / f"{piece.key}-{piece.arm}"
    shutil.rmtree(folder, ignore_errors=True)
    distill_chain(recipe, path.parent, root, folder, accelerator="cpu", data=data)
    figures: dict[str, Any] = {
        "made_from": said, "code": code_digest(), **asdict(piece), "simulated": data.simulated,
        "rare": rare_classes(data),
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


def made_from(recipe: Recipe, teacher: Path | None) -> str:
    """Digest of what decides a piece: its settings, and the teacher that it starts from."""
    values = recipe.plain()
    if teacher is not None:
        values["teachers"][0]["weights"] = sha256_file(teacher)
    for key in ("title", "search", "finetune", "targets", "gates"):
        values.pop(key, None)
    return sha256_bytes(json.dumps(values, sort_keys=True).encode())


def code_digest() -> str:
    """Of the code that trains, so that a record can tell whether all pieces were made by one."""
    files = sorted((ROOT / "edgekd").glob("train/**/*.py"))
    return sha256_bytes(b"".join(path.read_bytes() for path in files))[:12]


def rare_classes(data: Any) -> list[str]:
    """Classes with less than half of an equal share of the pixels whose truth is known."""
    counts = {item.name: 0 for item in data.classes}
    for name in data.training_ids:
        truth = data.truth(name)
        for number, item in enumerate(data.classes):
            counts[item.name] += int((truth == number).sum())
    least = 0.5 * sum(counts.values()) / len(counts)
    return [name for name, count in counts.items() if count < least]


def _short(metrics: dict[str, Any]) -> dict[str, Any]:
    return {
        "balanced_accuracy": metrics["balanced_accuracy"],
        "recall": {item["name"]: item["recall"] for item in metrics["per_class"]},
    }


def interval(values: list[float], folds: int = FOLDS) -> dict[str, float]:
    """Mean of paired differences and half its 95 % interval, two ways."""
    from scipy.stats import t

    count = len(values)
    mean, spread = statistics.fmean(values), statistics.stdev(values)
    factor = float(t.ppf(0.975, count - 1)) * spread
    return {
        "mean": mean,
        "half": factor * (1 / count) ** 0.5,
        "half_overlap": factor * (1 / count + 1 / (folds - 1)) ** 0.5,
        "pairs": count,
    }


def summarise(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per set and number of labels."""
    rows = []
    keys = dict.fromkeys((item["name"], item["labels"]) for item in pieces)
    for name, labels in keys:
        mine = [item for item in pieces if (item["name"], item["labels"]) == (name, labels)]
        row: dict[str, Any] = {
            "set": name,
            "labels_per_class": labels,
            "simulated": mine[0]["simulated"],
        }
        of: dict[str, dict[tuple[int, int], float]] = {arm: {} for arm in ARMS}
        teacher: dict[tuple[int, int], float] = {}
        for item in mine:
            place = (item["fold"], item["draw"])
            of[item["arm"]][place] = item["student"]["balanced_accuracy"]
            if item["arm"] == "distilled":
                teacher[place] = item["fusion"]["balanced_accuracy"]
        row["teacher"] = _mean(teacher.values())
        for arm in ARMS:
            row[arm] = _mean(of[arm].values())
            if arm != "labels" and row[arm] is not None:
                both = sorted(of[arm].keys() & of["labels"].keys())
                if len(both) > 1:
                    row[f"{arm}_gain"] = interval([of[arm][p] - of["labels"][p] for p in both])
                if row["teacher"]:
                    row[f"{arm}_kept"] = row[arm] / row["teacher"]
        row["rare"] = rare(mine)
        row["recall"] = {
            "teacher": _recalls([item["fusion"] for item in mine if "fusion" in item]),
            **{arm: _recalls([item["student"] for item in mine if item["arm"] == arm])
               for arm in ARMS},
        }  # fmt: skip
        row["minutes"] = sum(item["seconds"] for item in mine) / 60
        rows.append(row)
    return rows


def rare(mine: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean recall over the rare classes of each arm, and the paired gain."""
    names = mine[0]["rare"]
    of: dict[str, dict[tuple[int, int], float]] = {arm: {} for arm in ARMS}
    for item in mine:
        values = [item["student"]["recall"][name] for name in names]
        if known := [value for value in values if value is not None]:
            of[item["arm"]][item["fold"], item["draw"]] = statistics.fmean(known)
    taught = [item["fusion"]["recall"][name] for item in mine if "fusion" in item for name in names]
    found: dict[str, Any] = {
        "classes": names,
        "teacher": _mean(value for value in taught if value is not None),
    }
    for arm in ARMS:
        found[arm] = _mean(of[arm].values())
        both = sorted(of[arm].keys() & of["labels"].keys())
        if arm != "labels" and len(both) > 1:
            found[f"{arm}_gain"] = interval([of[arm][p] - of["labels"][p] for p in both])
    return found


def _mean(values: Any) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _recalls(items: list[dict[str, Any]]) -> dict[str, float | None]:
    names = items[0]["recall"] if items else {}
    return {
        name: _mean(item["recall"][name] for item in items if item["recall"][name] is not None)
        for name in names
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """On which sets the gain's interval excludes 0 for 5 and for 20 labels."""
    held: dict[str, list[str]] = {}
    for row in rows:
        if row["labels_per_class"] is None:
            continue
        for arm in ("distilled", "progressive"):
            gain = row.get(f"{arm}_gain")
            if gain and gain["mean"] - gain["half"] > 0:
                held.setdefault(row["set"], []).append(f"{arm}, {row['labels_per_class']} labels")
    return {"excludes_zero": held, "passed": len(held) >= 2}


def lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The table, as text."""
    yield (
        f"{'set':10s} {'labels':>6s} {'teacher':>8s} {'labels only':>12s} {'distilled':>10s} "
        f"{'gain':>16s} {'progressive':>12s} {'gain':>16s} {'kept':>6s} {'min':>5s}"
    )

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def gain(value: dict[str, float] | None) -> str:
        if value is None:
            return "-"
        return f"{100 * value['mean']:+.1f} ±{100 * value['half']:.1f} ({value['pairs']:.0f})"

    for row in rows:
        rare = row["rare"]
        kept = [row.get("distilled_kept"), row.get("progressive_kept")]
        best = max((value for value in kept if value is not None), default=None)
        yield (
            f"{row['set']:10s} {row['labels_per_class'] or 'all':>6} {share(row['teacher']):>8s} "
            f"{share(row['labels']):>12s} "
            f"{share(row['distilled']):>10s} {gain(row.get('distilled_gain')):>16s} "
            f"{share(row['progressive']):>12s} {gain(row.get('progressive_gain')):>16s} "
            f"{share(best):>6s} {row['minutes']:>5.1f}"
        )
        if rare["classes"]:
            yield (
                f"{'':10s} {'rare':>6s} {share(rare['teacher']):>8s} "
                f"{share(rare['labels']):>12s} "
                f"{share(rare['distilled']):>10s} {gain(rare.get('distilled_gain')):>16s} "
                f"{share(rare['progressive']):>12s} {gain(rare.get('progressive_gain')):>16s}   "
                f"({', '.join(rare['classes'])})"
            )


def draw_maps(path: Path, names: list[str], labels: int | None, out: Path, sets: Path) -> None:
    """Maps of one scene of each set, from the first draw that counts."""
    from _geology_maps import draw, stitched

    from edgekd.contracts.recipe import data_root, load_recipe
    from edgekd.contracts.sensor_set import open_sensor_set

    rows = {}
    for name in names:
        folds = [Piece(name, labels, fold, 1, "distilled") for fold in range(FOLDS)]
        opened = []
        for piece in folds:
            recipe = load_recipe(recipe_path(name), overrides(piece, None))
            root = sets / name if name in MAKERS else data_root(recipe, recipe_path(name))
            opened.append((recipe, open_sensor_set(recipe, root)))
        students = {
            arm: [out / "students" / f"{piece.key}-{arm}.ckpt" for piece in folds]
            for arm in ("labels", "distilled")
        }
        maps = stitched(opened, students, [out / "teachers" / piece.key for piece in folds])
        rows[f"{name}, {labels or 'all'} labels per class"] = maps
    draw(path, rows)


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/geology_gain",
              show_default=True, help="Folder of the pieces; finished ones are kept.")  # fmt: skip
@click.option("--sets", default=",".join(SETS), show_default=True)
@click.option("--labels", default="5,20,all", show_default=True, help="Per class.")
@click.option("--draws", default=4, show_default=True, help="Of labels and seeds, per fold.")
@click.option("--arms", default=",".join(ARMS), show_default=True)
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of all recipes.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/geology_gain.*")
def main(
    output: Path, sets: str, labels: str, draws: int, arms: str, changes: tuple[str, ...],
    jobs: int, write: bool,
) -> None:  # fmt: skip
    """Do what is missing, print the table, and end with 1 when distillation does not help."""
    if not (DATA / "hsi").is_dir():
        raise click.UsageError(f"no real data at {DATA}; set EDGEKD_TEST_DATA")
    output = output.resolve()
    place = output / "sets"
    names, chosen = sets.split(","), [arm for arm in ARMS if arm in arms.split(",")]
    for name in names:
        if name in MAKERS:
            MAKERS[name](DATA / "hsi", place / name)
    numbers = [None if text == "all" else int(text) for text in labels.split(",")]
    counted = range(1, draws + 1)  # draw 0 chose the settings
    pieces = [
        Piece(name, count, fold, draw, arm)
        for name in names for count in numbers for draw in counted for fold in range(FOLDS)
        for arm in chosen
    ]  # fmt: skip
    results: dict[Piece, dict[str, Any]] = {}
    with ProcessPoolExecutor(jobs) as pool:
        # progressive needs the teacher that distilled has trained
        for now in (("labels", "distilled"), ("progressive",)):
            todo = {pool.submit(work, piece, output, place, changes): piece
                    for piece in pieces if piece.arm in now}  # fmt: skip
            for number, done in enumerate(as_completed(todo), start=1):
                piece = todo[done]
                results[piece] = done.result()
                figure = results[piece]["student"]["balanced_accuracy"]
                click.echo(f"{number}/{len(todo)} {piece.key} {piece.arm}: {figure:.3f}", err=True)
    rows = summarise([results[piece] for piece in pieces])
    judged = verdict(rows)
    for line in lines(rows):
        click.echo(line)
    click.echo(json.dumps(judged))
    if write:
        environment = read_environment()
        device = environment.board or environment.cpu_model or platform.machine()
        folder = Path(__file__).parent / "results" / re.sub(r"[^a-z0-9]+", "-", device.lower())
        record = {
            "what": "balanced accuracy on test blocks; gains are paired differences to labels only",
            "command": f"python benchmarks/geology_gain.py --sets {sets} --labels {labels} "
            f"--draws {draws} --arms {arms} --write",
            "folds": FOLDS,
            "draws": draws,
            "changes": list(changes),
            "jobs_at_once": jobs,
            "minutes": "of one core, on a machine that other work may have shared",
            "code": sorted({item["code"] for item in results.values()}),
            "rows": rows,
            "verdict": judged,
            "pieces": [results[piece] for piece in pieces],
            "environment": environment.model_dump(mode="json"),
        }
        write_json(folder / "geology_gain.json", record)
        with publish_file(folder / "geology_gain.txt") as part:
            part.write_text("\n".join(lines(rows)) + "\n")
        if {"labels", "distilled"} <= set(chosen):
            draw_maps(folder / "geology_gain.png", names, numbers[0], output, place)
        click.echo(f"written: {folder}/geology_gain.*", err=True)
    sys.exit(0 if judged["passed"] else 1)


if __name__ == "__main__":
    main()
