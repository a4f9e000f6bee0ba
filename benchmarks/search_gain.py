"""What differential evolution is worth: ``python benchmarks/search_gain.py [--write]``.

The same ranges are searched by differential evolution and by random draws, with the same number of
trainings and several seeds, on real data (MUUFL Gulfport; EDGEKD_TEST_DATA, without it the script
says so and ends with 2). It is ``edgekd search --compare``; ``search_gain.yaml`` holds the ranges.
Judged is the best of each on the validation blocks, which is what a search can see; the test blocks
are not looked at.

A run that was stopped goes on where it was. Ends with 0 whatever the outcome: that the one beats
the other is the question, not a demand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from _records import here

from edgekd.contracts.artifacts import sha256_file, write_json

ROOT = Path(__file__).resolve().parent.parent
RECIPE = Path(__file__).with_suffix(".yaml")
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")


def journal_seconds(path: Path) -> list[float]:
    """Seconds of every training in a search's journal."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    return [float(json.loads(line)["seconds"]) for line in lines]


def rows(found: dict[str, Any]) -> list[str]:
    """The table: a line per seed, and the difference."""
    written = found["as_written"]["value"]
    said = [f"as written: {100 * written:.2f} %"] if written is not None else []
    compared = found["compared"]
    for row in compared["rows"]:
        said.append(
            f"seed {row['seed']}: DE {100 * row['de']:.2f} %, random {100 * row['random']:.2f} %, "
            f"{100 * row['difference']:+.2f} points"
        )
    spread = compared["sd_difference"]
    mean = f"DE less random: {100 * compared['mean_difference']:+.2f} points"
    return [*said, mean + ("" if spread is None else f", standard deviation {100 * spread:.2f}")]


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/search_gain",
              show_default=True, help="Folder of the search; what is done is kept.")  # fmt: skip
@click.option("--budget", type=click.IntRange(min=1), default=32, show_default=True,
              help="Trainings of each search.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True,
              help="Trainings at once, a core each.")  # fmt: skip
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the recipe.")
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/search_gain.json")
def main(
    output: Path, budget: int, seeds: int, workers: int, changes: tuple[str, ...], write: bool
) -> None:
    if not (DATA / "hsi" / "muufl_gulfport_crop_hsi_lidar.mat").is_file():
        raise click.UsageError(f"no MUUFL Gulfport at {DATA}; set EDGEKD_TEST_DATA")
    words = [
        "search", os.path.relpath(RECIPE), "--budget", str(budget), "--compare", "--seeds",
        str(seeds), "--workers", str(workers), "--accelerator", "cpu",
        *(f"--set={text}" for text in changes),
    ]  # fmt: skip
    command = [sys.executable, "-m", "edgekd", *words, "-o", str(output), "--json"]
    if (output / "journal.jsonl").is_file():
        command.append("--resume")
    begin = time.monotonic()
    environ = os.environ | {"EDGEKD_TEST_DATA": str(DATA), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environ)
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    seconds = journal_seconds(output / "journal.jsonl")
    for line in rows(found):
        click.echo(line)
    click.echo(f"{len(seconds)} trainings, {sum(seconds) / 60:.1f} minutes of a core")
    if write:
        folder, environment = here()
        write_json(
            folder / "search_gain.json",
            {
                "what": "best balanced accuracy on validation blocks of MUUFL Gulfport, by "
                "differential evolution and by random draws of the same budget",
                "command": f"edgekd {' '.join(words)}",
                "recipe_sha256": sha256_file(RECIPE),
                "changes": list(changes),
                "budget": budget,
                "found": {key: value for key, value in found.items() if key != "folder"},
                "seconds_of_trainings": seconds,
                "wall_clock_s_of_the_last_part": round(time.monotonic() - begin, 1),
                "times": "on a machine that other work may have shared",
                "environment": environment.model_dump(mode="json"),
            },
        )
        click.echo(f"written: {folder}/search_gain.json", err=True)


if __name__ == "__main__":
    main()
