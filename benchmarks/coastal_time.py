"""What an answer of the coastal student costs here: ``python benchmarks/coastal_time.py RUN``.

RUN is what ``edgekd distill engines/coastal.yaml`` left: student and teachers. Milliseconds of an
answer on one thread of this CPU, the student in FP32 and as ``edgekd build`` makes it for the class
of this processor, against the ensemble of its teachers. They are those of ``coastal_gain.py``,
without its five seeds: times are the shapes' and not the weights', and another machine has others.

Asked for: 15 times faster than the ensemble. Ends with 0 where that holds, with 1 where it does
not.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import _coastal_table as tables
import click
from _coastal_time import measure
from _records import here
from coastal_gain import RECIPE, ROOT, limits_of

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
from edgekd.train.places.run import open_for_training


@click.command(help=__doc__)
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", type=click.Path(path_type=Path, exists=True), default=ROOT / "out/coast",
              show_default=True, help="The set that it learned from.")  # fmt: skip
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/coastal_time.json")
def main(run: Path, data: Path, write: bool) -> None:
    recipe = load_any_recipe(RECIPE)
    assert isinstance(recipe, PlaceRecipe)
    opened = open_for_training(recipe, RECIPE.parent, data, run / "cache", click.echo)
    places, rows = opened.data.places, opened.data.rows
    limits = limits_of(places, rows["test"], recipe.io.rules.rows)
    found = measure(recipe, RECIPE.parent, opened, run, limits[0])
    click.echo("\n".join(found["lines"]))
    least = tables.LEAST_TIMES
    said = "holds" if found["times"] >= least else "missed"
    click.echo(f"asked for: {least} times; the student as built, both in ONNX Runtime: {said}")
    if write:
        folder, environment = here()
        record = {
            "what": str(__doc__).splitlines()[0],
            "simulated": places.about.simulated,
            "set": {"source": places.about.source, "sha256": opened.data.digest},
            **found,
            "environment": environment.model_dump(mode="json"),
        }
        folder.mkdir(exist_ok=True)
        write_json(folder / "coastal_time.json", record)
        click.echo(f"written: {os.path.relpath(folder)}/coastal_time.json")
    sys.exit(0 if found["times"] >= least else 1)


if __name__ == "__main__":
    main()
