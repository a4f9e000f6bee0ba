"""``edgekd distill``: train a student's encoder on unlabeled images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    progress_bar,
    repeated,
    run_folder,
    shared_options,
)

if TYPE_CHECKING:
    from edgekd.contracts.recipe import Recipe


@click.command("distill")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("-o", "--output", type=PathArgument,
              help="Folder of the run; default runs/NAME[-PRESET]-distill.")  # fmt: skip
@click.option("--data", type=PathArgument, multiple=True,
              help="Images in place of the recipe's: folder, image or list.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--fresh", is_flag=True, help="Start anew although the folder holds a run.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="Kind of device.")  # fmt: skip
@click.option("--devices", type=click.IntRange(min=1), default=1, show_default=True,
              help="Processes per node, one device each.")  # fmt: skip
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True,
              help="Nodes; start the command on each by torchrun or SLURM.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set preset=small-cpu.")  # fmt: skip
@shared_options
def command(
    recipe_path: Path,
    output: Path | None,
    data: tuple[Path, ...],
    resume: bool,
    fresh: bool,
    accelerator: str,
    devices: int,
    nodes: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train the encoder of RECIPE's student on unlabeled images, guided by its teachers.

    With method cross_modal: the teachers of several sensors, one after the other, and then the
    whole student. So it is with a recipe of places (kind: places): a teacher of pictures, one of
    series and one of texts, and then the student, which has all three.
    """
    from edgekd.contracts.optional import require
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
    from edgekd.contracts.recipe import unlabeled_roots
    from edgekd.errors import EnvironmentLacksError

    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    recipe = load_any_recipe(recipe_path, list(overrides))
    torch = require("torch", "train", "distil students")
    from edgekd.train.distill.loop import distill

    if accelerator == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacksError(
            "--accelerator cuda: torch sees no CUDA device on this machine; leave it out or give "
            "cpu"
        )
    parts = [recipe.name, *([recipe.preset] if recipe.preset else []), "distill"]
    out = output or Path("runs") / "-".join(parts)
    if isinstance(recipe, PlaceRecipe):
        from edgekd.cli import _places

        _places.distill(
            recipe, recipe_path, out, data, resume, fresh, accelerator, devices * nodes, overrides,
            as_json,
        )  # fmt: skip
        return
    if recipe.distill is not None and recipe.distill.method == "cross_modal":
        _chain(
            recipe, recipe_path, out, data, resume, fresh, accelerator, devices * nodes, overrides,
            as_json,
        )  # fmt: skip
        return
    with run_folder(out), progress_bar("distill", "step") as update:
        result = distill(
            recipe,
            recipe_path.resolve().parent,
            list(data) or unlabeled_roots(recipe, recipe_path),
            out,
            resume=resume,
            fresh=fresh,
            accelerator=accelerator,
            devices=devices,
            nodes=nodes,
            progress=update,
            say=note,
        )
    if not result.main:
        return
    done = result.distilled
    losses = ", ".join(f"{name} {value:.4f}" for name, value in done["losses"].items())
    emit(
        {"encoder": str(result.path), **done},
        [
            f"{done['steps']} steps, {done['crops']:,} crops in {done['seconds']:.0f} s; {losses}",
            f"encoder: {result.path}",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd finetune {recipe_path} --encoder {out}{repeated(overrides)}")


def _chain(
    recipe: Recipe,
    recipe_path: Path,
    out: Path,
    data: tuple[Path, ...],
    resume: bool,
    fresh: bool,
    accelerator: str,
    processes: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Teachers of several sensors one after the other, and the student."""
    from edgekd.contracts.recipe import data_root
    from edgekd.errors import InputError
    from edgekd.train.distill.chain import distill_chain

    if processes > 1:
        raise InputError("method cross_modal runs in one process; leave --devices and --nodes out")
    if len(data) > 1:
        raise InputError(
            f"method cross_modal takes one sensor set, received {len(data)} times --data"
        )
    place = data[0] if data else data_root(recipe, recipe_path)
    with run_folder(out), progress_bar("distill", "step") as update:
        result = distill_chain(
            recipe,
            recipe_path.resolve().parent,
            place,
            out,
            resume=resume,
            fresh=fresh,
            accelerator=accelerator,
            progress=update,
            say=note,
        )
    done = result.distilled
    losses = ", ".join(f"{name} {value:.4f}" for name, value in done["losses"].items())
    simulated = ["SIMULATED data: figures made with it are no measurements"]
    emit(
        {"checkpoint": str(result.path), **done},
        [
            f"student: {done['steps']} steps in {done['seconds']:.0f} s; {losses}",
            f"checkpoint: {result.path}",
            *(simulated if done["simulated"] else []),
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd eval {result.path} --data {place} --split test")
        note(f"      edgekd build {recipe_path} --target {recipe.targets[0]} --checkpoint {out}"
             f"{repeated(overrides)}")  # fmt: skip
