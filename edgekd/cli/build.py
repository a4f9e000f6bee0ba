"""``edgekd build``: recipe and checkpoint to a sealed bundle."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("build")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("--target", required=True, help="Class of device; see edgekd ls targets.")
@click.option("--precision", type=click.Choice(["fp32", "int8"]),
              help="Only this one; default: the lowest allowed that keeps its gates.")  # fmt: skip
@click.option("--checkpoint", type=PathArgument, help="Default: runs/NAME/best.ckpt.")
@click.option("-o", "--output", type=PathArgument, help="Folder; default bundles/NAME-TARGET.")
@click.option("--data", type=PathArgument, help="Labelled set in place of the recipe's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set tiling.overlap_px=64.")  # fmt: skip
@shared_options
def command(
    recipe_path: Path,
    target: str,
    precision: str | None,
    checkpoint: Path | None,
    output: Path | None,
    data: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export, check, compare, lower the precision, build for TARGET, store golden data, seal."""
    from edgekd.contracts.labelled import open_labelled
    from edgekd.contracts.optional import require
    from edgekd.contracts.recipe import data_root, load_recipe
    from edgekd.contracts.schema import resolve_path
    from edgekd.contracts.target import load_target

    changes = [*overrides, *([f"precision.allowed=[{precision}]"] if precision else [])]
    recipe = load_recipe(recipe_path, changes)
    load_target(target)
    require("torch", "deploy", "build bundles")
    require("onnx", "deploy", "build bundles")
    place = data or data_root(recipe, recipe_path)
    labelled = None
    if data is not None or place.exists():  # a set that is there must be whole
        labelled = open_labelled(place, recipe.data.split)
    else:
        note(f"note: {place} is not here, so there are no real pixels to compare on; a synthetic "
             "picture is used and the manifest says so (--data gives another place)")  # fmt: skip
    from edgekd.deploy.bundle import build, default_folder

    calibration = None
    lowers = recipe.precision.allowed != ["fp32"]
    if lowers and recipe.calibration is not None and recipe.calibration.set is not None:
        calibration = open_labelled(
            resolve_path(recipe.calibration.set, recipe_path.resolve().parent), None
        )
    out = output or default_folder(recipe, target)
    result = build(
        recipe,
        target,
        checkpoint or Path("runs") / recipe.name,
        out,
        labelled,
        None if as_json else lambda text: note(f"build: {text}"),
        calibration,
    )
    manifest = result.manifest
    lines = [
        f"gate {gate.name}: {gate.value:.3g}, {gate.sense} {gate.bound:.3g} "
        f"({gate.unit}; {gate.detail})"
        for gate in manifest.gates
    ]
    emit(
        {"bundle": str(out), "manifest": manifest.plain()},
        [*lines, f"bundle: {out} ({manifest.precision.done}, {len(manifest.files)} files, sealed)"],
        as_json,
    )
    if not as_json:
        here = manifest.target.arch == platform.machine()
        first = "" if here else f"copy {out} to a {manifest.target.arch} device, and there: "
        note(f"next: {first}edgekd run {out} SCENE.tif -o map.tif --bands 1,2,3")
