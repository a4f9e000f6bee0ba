"""The files of a finished search. They hold no times: the same search gives the same bytes."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.contracts.artifacts import publish_file, write_json
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.search import SearchSpec
from edgekd.train.search.methods import Candidate, best_of
from edgekd.train.search.plot import draw
from edgekd.train.search.space import Space, Values, yaml_text

if TYPE_CHECKING:
    from edgekd.train.search.run import Run

FILES = ("table.csv", "best.json", "best.yaml", "plot.svg")
Results = Sequence[tuple["Run", list[Candidate]]]


def summary(
    recipe: Recipe, space: Space, spec: SearchSpec, budget: int, results: Results,
    facts: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    """What ``best.json`` holds: asked, done, the best of all and of each run.

    Args:
        recipe, space, spec: of the search.
        budget: trainings of each run.
        results: runs with their candidates.
        facts: of data and teachers.
    """
    written, point = space.written()
    runs: list[dict[str, Any]] = []
    for run, tried in results:
        best = best_of(tried)
        runs.append(
            {
                "method": run.method,
                "seed": run.seed,
                "budget": budget,
                "trainings": sum(len(item.each) for item in tried),
                "candidates": len(tried),
                "diverged": sum(item.value is None for item in tried),
                "best": None if best is None else plain(best),
            }
        )
    found = [(item["best"]["value"], -at) for at, item in enumerate(runs) if item["best"]]
    first = runs[-max(found)[1]] if found else None
    first_tried = results[0][1][0] if point is not None else None
    return {
        **facts,
        "objective": spec.objective,
        "judged_on": "val",
        "note": "the best of many on the validation part: an optimistic figure; the test part was "
        "not looked at",
        "keys": [axis.key for axis in space.axes],
        "repeats": spec.repeats,
        "seeds_of_trainings": [_seed(recipe) + at for at in range(spec.repeats)],
        "as_written": {
            "values": written,
            "value": None if first_tried is None else first_tried.value,
            "tried": first_tried is not None,
        },
        "method": None if first is None else first["method"],
        "seed": None if first is None else first["seed"],
        "best": None if first is None else first["best"],
        "runs": runs,
        "compared": compared(runs),
    }


def _seed(recipe: Recipe) -> int:
    assert recipe.distill is not None
    return recipe.distill.seed


def plain(candidate: Candidate) -> dict[str, Any]:
    """A candidate as JSON-ready values."""
    return {
        "number": candidate.number, "round": candidate.round, "values": candidate.values,
        "value": candidate.value, "each": candidate.each,
    }  # fmt: skip


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Best of differential evolution less best of random draws, seed by seed.

    None where no seed has both. Both had the same budget, ranges and first candidate.
    """
    by = {(item["method"], item["seed"]): item["best"] for item in runs}
    rows = []
    for method, seed in by:
        ours, theirs = by[method, seed], by.get(("random", seed))
        if method == "de" and ours is not None and theirs is not None:
            rows.append(
                {
                    "seed": seed, "de": ours["value"], "random": theirs["value"],
                    "difference": ours["value"] - theirs["value"],
                }
            )  # fmt: skip
    if not rows:
        return None
    differences = [row["difference"] for row in rows]
    return {
        "rows": rows,
        "mean_difference": statistics.fmean(differences),
        "sd_difference": statistics.stdev(differences) if len(rows) > 1 else None,
        "de_better": sum(value > 0 for value in differences),
        "random_better": sum(value < 0 for value in differences),
    }


def settings(value: dict[str, Any], out: Path, recipe_folder: Path) -> list[str]:
    """``key=value`` of ``--set`` that give the best student again.

    Teachers are those of the search: a chain that trains its own would train them with the values
    that were found, which nobody has tried.
    """
    if value["best"] is None:
        return []
    texts = [f"{key}={yaml_text(item)}" for key, item in value["best"]["values"].items()]
    for number, (teacher, trained) in enumerate(
        zip(value["teachers"], value["trained"], strict=True)
    ):
        if trained:
            place = os.path.relpath((out / teacher["file"]).resolve(), recipe_folder.resolve())
            texts += [f"teachers.{number}.weights={place}", f"teachers.{number}.stage=null"]
    return texts


def write_files(
    out: Path,
    recipe_folder: Path,
    space: Space,
    value: dict[str, Any],
    results: Results,
    called: str,
) -> None:
    """Write table, best and plot; each appears whole or not at all.

    Args:
        called: the recipe and the options that the search was given.
    """
    _write(out / FILES[0], _table(space, results))
    write_json(out / FILES[1], value)
    texts = settings(value, out, recipe_folder)
    lines = [
        "# The best of a search. With OMP_NUM_THREADS=1 the CPU trains the same student again:",
        f"#   edgekd distill {called}{as_options(texts)}",
        *(text.replace("=", ": ", 1) for text in texts),
    ]
    _write(out / FILES[2], "\n".join(lines) + "\n")
    title = f"{value['recipe']}: best balanced accuracy on the validation part so far"
    if value["data"]["simulated"]:
        title += " (SIMULATED data)"
    curves = [(run.method, run.seed, [item.value for item in tried]) for run, tried in results]
    _write(out / FILES[3], draw(title, curves, value["as_written"]["value"]))


def _write(path: Path, text: str) -> None:
    with publish_file(path) as part:
        part.write_text(text, encoding="utf-8")


def _table(space: Space, results: Results) -> str:
    """CSV of all candidates in the order in which they were tried."""
    keys = [axis.key for axis in space.axes]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["method", "seed", "number", "round", *keys, "val_balanced_accuracy", "each", "best"]
    writer.writerow(head)
    for run, tried in results:
        best: float | None = None
        for item in tried:
            if item.value is not None and (best is None or item.value > best):
                best = item.value
            writer.writerow([
                run.method, run.seed, item.number, item.round, *_cells(keys, item.values),
                "" if item.value is None else item.value, json.dumps(item.each),
                "" if best is None else best,
            ])  # fmt: skip
    return text.getvalue()


def _cells(keys: Sequence[str], values: Values) -> list[str]:
    return [yaml_text(values[key]) for key in keys]


def as_options(texts: Sequence[str]) -> str:
    """`` --set ...`` of each, quoted for a shell."""
    return "".join(f" --set {shlex.quote(text)}" for text in texts)
