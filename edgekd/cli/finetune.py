"""``edgekd finetune``: tune a student on labelled tiles."""

from __future__ import annotations

from pathlib import Path

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
)


@click.command("finetune")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, help="Folder of the run; default runs/NAME.")
@click.option("--data", type=PathArgument, help="Labelled set in place of the recipe's.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--fresh", is_flag=True, help="Start anew although the folder holds a run.")
@click.option("--encoder", metavar="FOLDER|random",
              help="Start from an encoder that edgekd distill made; random is a control for "
              "finetune.scope: decoder.")  # fmt: skip
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="Kind of device.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set finetune.steps=100.")  # fmt: skip
@shared_options
def command(
    recipe_path: Path,
    output: Path | None,
    data: Path | None,
    resume: bool,
    fresh: bool,
    encoder: str | None,
    accelerator: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Tune RECIPE's student; the weights with the best validation mIoU are kept."""
    from edgekd.contracts.optional import require
    from edgekd.contracts.recipe import data_root, load_recipe
    from edgekd.errors import EnvironmentLacksError

    if resume and fresh:
        raise click.UsageError("--resume and --fresh exclude each other")
    recipe = load_recipe(recipe_path, list(overrides))
    torch = require("torch", "train", "tune students")
    from edgekd.train.finetune import finetune

    if accelerator == "cuda" and not torch.cuda.is_available():
        raise EnvironmentLacksError(
            "--accelerator cuda: torch sees no CUDA device on this machine; leave it out or give "
            "cpu"
        )
    out = output or Path("runs") / recipe.name
    with run_folder(out), progress_bar("finetune", "step") as update:
        result = finetune(
            recipe,
            data or data_root(recipe, recipe_path),
            out,
            resume=resume,
            fresh=fresh,
            encoder=Path(encoder) if encoder and encoder != "random" else None,
            random_encoder=encoder == "random",
            accelerator=accelerator,
            progress=update,
        )
    tuning = result.tuning
    stopped = " (stopped early)" if tuning["stopped_early"] else ""
    emit(
        {"checkpoint": str(result.best), **tuning},
        [
            f"{tuning['steps_done']} steps{stopped} in {tuning['seconds']:.0f} s",
            f"validation mIoU {percent(tuning['best_val_miou'])} at step {tuning['best_step']}",
            *(
                ["SIMULATED data: figures made with it are no measurements"]
                if tuning["simulated"]
                else []
            ),
            f"checkpoint: {result.best}",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd build {recipe_path} --target {recipe.targets[-1]} "
             f"--checkpoint {result.best}{repeated(overrides)}")  # fmt: skip
