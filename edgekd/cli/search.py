"""``edgekd search``: better values for a recipe's distillation, by its validation part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    percent,
    progress_bar,
    repeated,
    run_folder,
    shared_options,
    table,
)

#: candidates that a person is shown
_SHOWN = 10


@click.command("search")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("--budget", type=click.IntRange(min=1), required=True,
              help="Trainings of students, of each search.")  # fmt: skip
@click.option("--method", type=click.Choice(["de", "random"]), default="de", show_default=True,
              help="Differential evolution, or random draws.")  # fmt: skip
@click.option("--compare", is_flag=True, help="Both methods, with the same budget.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the search; trainings have the recipe's.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True,
              help="Searches, with --seed and the next; each has the budget.")  # fmt: skip
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True,
              help="Trainings at once, a core each; the result is the same.")  # fmt: skip
@click.option("-o", "--output", type=PathArgument,
              help="Folder of the search; default runs/NAME[-PRESET]-search.")  # fmt: skip
@click.option("--data", type=PathArgument, help="Sensor set in place of the recipe's.")
@click.option("--resume", is_flag=True,
              help="Go on with a search that was stopped, or with a larger budget.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Start anew although the folder holds a search.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="Kind of device.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set search.population=6.")  # fmt: skip
@shared_options
def command(
    recipe_path: Path,
    budget: int,
    method: str,
    compare: bool,
    seed: int,
    seeds: int,
    workers: int,
    output: Path | None,
    data: Path | None,
    resume: bool,
    fresh: bool,
    accelerator: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Search RECIPE's ranges (search.ranges) for the student that validates best.

    The recipe is one of method cross_modal. Its teachers are trained once; every candidate trains a
    student, judged by the validation part alone. The test part is not looked at.
    """
    from edgekd.contracts.optional import require
    from edgekd.contracts.recipe import data_root, load_recipe
    from edgekd.errors import EnvironmentLacksError, GateError

    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    recipe = load_recipe(recipe_path, list(overrides))
    torch = require("torch", "train", "search")
    require("scipy", "train", "search")
    from edgekd.train.search.run import Run, run_search
    from edgekd.train.search.written import as_options, settings

    if accelerator == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacksError(
            "--accelerator cuda: torch sees no CUDA device on this machine; leave it out or give "
            "cpu"
        )
    parts = [recipe.name, *([recipe.preset] if recipe.preset else []), "search"]
    out = output or Path("runs") / "-".join(parts)
    methods = ["de", "random"] if compare else [method]
    runs = [Run(name, number) for number in range(seed, seed + seeds) for name in methods]
    place = data or data_root(recipe, recipe_path)
    folder = recipe_path.resolve().parent
    called = f"{recipe_path}{f' --data {data}' if data else ''}{repeated(overrides)}"
    with (
        run_folder(out),
        progress_bar("teachers", "step") as teachers,
        progress_bar("search", "training") as told,
    ):
        found = run_search(
            recipe, folder, place, out, runs, budget, workers=workers, resume=resume, fresh=fresh,
            accelerator=accelerator, progress=told, teacher_progress=teachers, say=note,
            called=called,
        )  # fmt: skip
    if found["best"] is None:
        raise GateError(
            f"all {budget} trainings diverged, so there is no best; narrow the ranges of search, "
            "or lower distill.lr"
        )
    emit({"folder": str(out), **found}, _lines(found, out), as_json)
    if not as_json:
        sets = as_options(settings(found, out, folder))
        note(f"next: edgekd distill {called}{sets}")


def _lines(found: dict[str, Any], out: Path) -> list[str]:
    """The best candidates, the best of all, and what it is worth."""
    import csv

    keys: list[str] = found["keys"]
    with (out / "table.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["val_balanced_accuracy"]]
    rows.sort(key=lambda row: -float(row["val_balanced_accuracy"]))
    head = ["search", "number", *_short(keys), "val balanced accuracy"]
    shown = [
        [f"{row['method']} {row['seed']}", row["number"], *(row[key] for key in keys),
         percent(float(row["val_balanced_accuracy"]))]
        for row in rows[:_SHOWN]
    ]  # fmt: skip
    best, written = found["best"], found["as_written"]
    before = (
        f"; as written {percent(written['value'])}"
        if written["tried"]
        else "; not tried as written"
    )
    lines = [
        *table(head, shown),
        f"best: {percent(best['value'])} on the validation part (number {best['number']} of "
        f"{found['method']} {found['seed']}){before}; the best of many is an optimistic figure",
    ]
    for run in found["runs"]:
        name = f"{run['method']} {run['seed']}"
        if run["trainings"] < run["budget"]:
            lines.append(f"{name}: {run['trainings']} of {run['budget']} trainings; the search "
                         "came to no further candidates")  # fmt: skip
        if run["diverged"]:
            lines.append(f"{name}: {run['diverged']} candidates diverged")
    if (compared := found["compared"]) is not None:
        lines += _compared(compared)
    if found["data"]["simulated"]:
        lines.append("SIMULATED data: figures made with it are no measurements")
    return [*lines, f"table.csv, best.yaml and plot.svg: {out}"]


def _compared(found: dict[str, Any]) -> list[str]:
    rows = [
        [str(row["seed"]), percent(row["de"]), percent(row["random"]),
         f"{100 * row['difference']:+.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    spread = found["sd_difference"]
    mean = f"{100 * found['mean_difference']:+.2f} points"
    if spread is not None:
        mean += f" (standard deviation {100 * spread:.2f})"
    return [
        *table(["seed", "best of DE", "best of random", "points"], rows),
        f"DE less random at equal budget: {mean} on the validation part, better in "
        f"{found['de_better']} and worse in {found['random_better']} of {len(rows)} seeds",
    ]


def _short(keys: list[str]) -> list[str]:
    """Keys without what all share in front."""
    split = [key.split(".") for key in keys]
    for length in range(1, max(map(len, split)) + 1):
        names = [".".join(parts[-length:]) for parts in split]
        if len(set(names)) == len(names) and not {"start", "end", "kind"} & set(names):
            return names
    return keys
