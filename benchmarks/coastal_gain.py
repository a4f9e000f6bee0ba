"""What the coastal student is worth: ``python benchmarks/coastal_gain.py [--write]``.

On SIMULATED coasts (a real station's tide, all else invented), of which the test coasts were
never trained on: three teachers that see one kind of evidence each, their ensemble, the student
from labels alone and the student distilled; each with every kind of evidence missing in turn.
Accuracy, expected calibration error, how many answers obey the rules before and after the
projection, and milliseconds of an answer on this CPU. Five seeds, of teachers and students alike;
the coasts are the same, so gains have an interval over the seeds, and one over coasts and seeds.
The zone of a place, and so its rules, is drawn from the truth: what is right after the rules is
partly the rules' own. A run that was stopped goes on where it was.

Asked for: within 4 points of the ensemble, 15 times faster, and every answer obeys. Ends with 0
where that holds, with 1 where it does not, or where nothing was timed (--kept without a record that
has milliseconds), so that "faster" was not judged. With --no-timing the other two decide alone; the
verdict names what was not judged.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import _coastal_table as tables
import click
import numpy as np
from _coastal_pieces import ARMS, Piece, make
from _coastal_plot import draw
from _records import here

from edgekd.contracts.artifacts import publish_file, write_json
from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
from edgekd.contracts.place_set import PlaceSet
from edgekd.contracts.policy import load_policy
from edgekd.contracts.policy_rows import compile_zone
from edgekd.contracts.projection import Limits
from edgekd.train.places.run import open_for_training

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "engines" / "coastal.yaml"
#: the set, as it is made where it is not there
MADE = ("--coasts", "90", "--places", "60", "--split", "70:10:10", "--seed", "0")
_DAY = datetime.date(2026, 1, 1)  # the made-up rules hold on every day


def limits_of(places: PlaceSet, rows: list[int], room: int) -> list[Limits]:
    """The set's own rules at every place.

    Raises:
        InputError: the set has none.
    """
    assert places.about.rules is not None
    policy = load_policy(places.root / places.about.rules)
    zones = {
        zone: compile_zone(policy, zone, _DAY, places.classes, places.facts, room).limits
        for zone in sorted({row.zone for row in places.rows})
    }
    return [zones[places.rows[at].zone] for at in rows]


def said_of(pieces: dict[int, dict[str, Piece]]) -> dict[str, Any]:
    """Minutes and shares of the pieces."""
    taught = [group["distilled"] for group in pieces.values()]
    return {
        "minutes": {
            arm: float(np.mean([group[arm].minutes for group in pieces.values()])) for arm in ARMS
        },
        "shares": {
            kind: float(np.mean([piece.shares[kind] for piece in taught]))
            for kind in taught[0].shares
        },
    }


def timed_before() -> dict[str, Any] | None:
    """Milliseconds of this device's record, which says that they were taken over; None without."""
    path = here()[0] / "coastal_gain.json"
    if not path.is_file():
        return None
    found: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8"))["timing"]
    if found is None:
        return None
    said = "taken over from an earlier record, not measured with the figures above:"
    lines = [line for line in found["lines"] if line != said]
    return {**found, "taken_over": True, "lines": [said, *lines]}


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/coastal_gain",
              show_default=True, help="Folder of the pieces; what is done is kept.")  # fmt: skip
@click.option("--data", type=click.Path(path_type=Path), default=ROOT / "out/coast",
              show_default=True, help="The set; made where it is not there.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--only", type=int, multiple=True, help="Seeds to train now; others are not asked.")
@click.option("--set", "changes", multiple=True, metavar="KEY=VALUE", help="Of the recipe.")
@click.option("--no-timing", is_flag=True, help="Leave milliseconds out; \"faster\" "
              "is not judged.")  # fmt: skip
@click.option("--kept", is_flag=True, help="Train and time nothing: pieces that are there, and "
              "the milliseconds of the record that is there.")  # fmt: skip
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/coastal_gain.*")
def main(
    output: Path,
    data: Path,
    seeds: int,
    only: tuple[int, ...],
    changes: tuple[str, ...],
    no_timing: bool,
    kept: bool,
    write: bool,
) -> None:
    recipe = load_any_recipe(RECIPE, list(changes))
    assert isinstance(recipe, PlaceRecipe)
    if not (data / "places.yaml").is_file():
        subprocess.run(
            [sys.executable, "-m", "edgekd", "simulate", "coast", "-o", str(data), *MADE],
            check=True,
        )
    say = click.echo
    opened = open_for_training(recipe, RECIPE.parent, data, output / "cache", say)
    pieces: dict[int, dict[str, Piece]] = {}
    for seed in only or range(seeds):
        pieces[seed] = {
            arm: make(recipe, RECIPE.parent, opened, output, arm, seed, say, kept) for arm in ARMS
        }
    places, rows = opened.data.places, opened.data.rows
    labels = {split: opened.data.labels[rows[split]] for split in ("val", "test")}
    limits = limits_of(places, rows["test"], recipe.io.rules.rows)
    found = {seed: tables.of_seed(group, labels, limits) for seed, group in pieces.items()}
    every = tables.together(found)
    timing: dict[str, Any] | None = None
    if kept:
        timing = timed_before()
    elif not no_timing:
        from _coastal_time import measure

        trained = output / f"seed_{min(pieces)}" / "distilled"
        timing = measure(recipe, RECIPE.parent, opened, trained, limits[0])
    verdict = tables.verdict(found, every, None if timing is None else timing["times"])
    coasts = [places.rows[at].group for at in rows["test"]]
    gains = {
        f"distilled less {other}": {
            **tables.paired(found, "distilled", other),
            "coasts_and_seeds": tables.drawn_again(found, coasts, "distilled", other),
        }
        for other in ("labels", "ensemble")
    }
    lines = [f"SIMULATED coasts: {places.about.source}", *tables.table(every, len(found))]
    lines += [*tables.gain_lines(gains), *(f"note: {note}" for note in tables.NOTES)]
    if timing is not None:
        lines += timing["lines"]
    lines.append(json.dumps(verdict))
    say("\n".join(lines))
    if write:
        folder, environment = here()
        record = {
            "what": __doc__.splitlines()[0],
            "simulated": True,
            "notes": tables.NOTES,
            "set": {"source": places.about.source, "sha256": opened.data.digest,
                    "places": {name: len(at) for name, at in rows.items()}},
            "recipe": recipe.plain(),
            "text_encoder": opened.text,
            "ensemble_is": {seed: item["ensemble_is"] for seed, item in found.items()},
            "rows": every,
            "seeds": {seed: item["rows"] for seed, item in found.items()},
            "gains": gains,
            "timing": timing,
            **said_of(pieces),
            "verdict": verdict,
            "environment": environment.model_dump(mode="json"),
        }  # fmt: skip
        write_json(folder / "coastal_gain.json", record)
        with publish_file(folder / "coastal_gain.txt") as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        ensembles = {seed: str(item["ensemble_is"]) for seed, item in found.items()}
        draw(folder / "coastal_gain.png", every, pieces, ensembles, labels["test"])
        say(f"written: {os.path.relpath(folder)}/coastal_gain.json, .txt, .png")
    sys.exit(0 if tables.held(verdict, no_timing) else 1)


if __name__ == "__main__":
    main()
