"""``edgekd build``: recipe and checkpoint to a sealed bundle."""

from __future__ import annotations

import platform
from pathlib import Path

import click

from edgekd.cli._common import PathArgument, embeddings_option, emit, note, shared_options


@click.command("build")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.option("--target", required=True, help="Class of device; see edgekd ls targets.")
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]),
              help="Only this one; default: what the recipe allows.")  # fmt: skip
@click.option("--checkpoint", type=PathArgument, help="Default: runs/NAME/best.ckpt.")
@click.option("-o", "--output", type=PathArgument, help="Folder; default bundles/NAME-TARGET.")
@click.option("--data", type=PathArgument, help="Labelled set in place of the recipe's.")
@click.option("--calibration", type=PathArgument, metavar="FILE",
              help="calibration.json of an earlier build of the same model.")  # fmt: skip
@embeddings_option
@click.option("--text-encoder", type=click.Choice(["int8", "fp32", "none"]), default="int8",
              show_default=True, help="Of places: the encoder of texts that the bundle carries; "
              "none takes embeddings alone.")  # fmt: skip
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
    calibration: Path | None,
    embeddings: Path | None,
    text_encoder: str,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Export, compare, lower the precision, check, pack for TARGET, store golden data, seal.

    For a target with TensorRT the bundle is portable: copy it to the board, edgekd finalize there.
    A recipe of places gives a bundle that answers for places, for targets with ONNX Runtime.
    """
    from edgekd.contracts.optional import require
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
    from edgekd.contracts.target import load_target
    from edgekd.errors import InputError

    changes = [*overrides, *([f"precision.allowed=[{precision}]"] if precision else [])]
    recipe = load_any_recipe(recipe_path, changes)
    load_target(target)
    require("torch", "deploy", "build bundles")
    require("onnx", "deploy", "build bundles")
    if isinstance(recipe, PlaceRecipe):
        from edgekd.cli import _answers

        _answers.build(
            recipe, recipe_path, target, checkpoint, output, data, calibration, embeddings,
            text_encoder, as_json,
        )  # fmt: skip
        return
    if embeddings is not None or text_encoder != "int8":
        raise InputError(
            f"--embeddings and --text-encoder are about places, and {recipe_path} makes maps"
        )
    from edgekd.cli._common import open_images
    from edgekd.deploy.bundle import build, default_folder

    images = open_images(recipe, recipe_path, data, calibration)
    out = output or default_folder(recipe, target)
    result = build(
        recipe,
        target,
        checkpoint or Path("runs") / recipe.name,
        out,
        images,
        None if as_json else lambda text: note(f"build: {text}"),
    )
    manifest = result.manifest
    lines = [
        f"gate {gate.name}: {gate.value:.4g}, {gate.sense} {gate.bound:.4g} "
        f"({gate.unit}; {gate.detail})"
        for gate in manifest.gates
    ]
    done = manifest.precision.done
    if done is None:
        held = ", ".join(dict.fromkeys(item.precision for item in manifest.portable))
        done = f"portable: {held}; no engine yet"
    emit(
        {"bundle": str(out), "manifest": manifest.plain()},
        [*lines, f"bundle: {out} ({done}, {len(manifest.files)} files, sealed)"],
        as_json,
    )
    if as_json:
        return
    if manifest.portable:
        note(f"next: copy {out} to the {target}, and there: edgekd finalize {out}")
        return
    here = manifest.target.arch == platform.machine()
    first = "" if here else f"copy {out} to the {target}, and there: "
    note(f"next: {first}edgekd run {out} SCENE.tif -o map.tif --bands 1,2,3")
