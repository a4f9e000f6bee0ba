"""``edgekd finetune``: tune a student on labelled tiles."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, percent, progress_bar, shared_options


@click.command("finetune")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, help="Folder of the run; default runs/NAME.")
@click.option("--data", type=PathArgument, help="Labelled set in place of the recipe's.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped.")
@click.option("--fresh", is_flag=True, help="Start anew although the folder holds a run.")
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
    with _run_folder(out), progress_bar("finetune", "step") as update:
        result = finetune(
            recipe,
            data or data_root(recipe, recipe_path),
            out,
            resume=resume,
            fresh=fresh,
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
            f"checkpoint: {result.best}",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd build {recipe_path} --target {recipe.targets[-1]} "
             f"--checkpoint {result.best}")  # fmt: skip


@contextlib.contextmanager
def _run_folder(out: Path) -> Iterator[None]:
    """Make the run's folder at once, and take it away again if the run leaves no checkpoint.

    A place that cannot be written must be found before hours of work, not after them.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    from edgekd.errors import OutputError

    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(
            f"the run's folder {out} cannot be made: {err.strerror}; choose another with -o"
        ) from err
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(
            f"the run's folder {out} is not writable; choose another with -o or change its "
            "permissions"
        )
    try:
        yield
    except BaseException:
        if out in missing and not any(out.glob("*.ckpt")):
            shutil.rmtree(out, ignore_errors=True)
            with contextlib.suppress(OSError):  # a parent that another run uses by now stays
                for folder in missing[1:]:
                    folder.rmdir()
        raise
