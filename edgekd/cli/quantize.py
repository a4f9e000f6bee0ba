"""``edgekd quantize``: lowered ONNX files of an exported model."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("quantize")
@click.argument("recipe_path", metavar="RECIPE", type=PathArgument)
@click.argument("model", metavar="MODEL.onnx", type=PathArgument)
@click.option("--target", required=True, help="Class of device; see edgekd ls targets.")
@click.option("-o", "--output", required=True, type=PathArgument, help="Folder to write.")
@click.option("--data", type=PathArgument, help="Labelled set in place of the recipe's.")
@click.option("--calibration", type=PathArgument, metavar="FILE",
              help="calibration.json of an earlier run on the same model.")  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set precision.range=entropy.")  # fmt: skip
@shared_options
def command(
    recipe_path: Path,
    model: Path,
    target: str,
    output: Path,
    data: Path | None,
    calibration: Path | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Calibrate MODEL and write the files in lower precision that TARGET takes, with their cost.

    What edgekd build does between export and bundle, for a model that is at hand: INT8 as Q/DQ for
    ONNX Runtime; INT8 and FP16 in the forms of TensorRT 8.6 to 11 for a Jetson.
    """
    from edgekd.contracts.manifest import row
    from edgekd.contracts.optional import require
    from edgekd.contracts.recipe import load_recipe
    from edgekd.contracts.target import load_target

    recipe = load_recipe(recipe_path, list(overrides))
    declared = load_target(target)
    require("onnx", "deploy", "quantise models")
    from edgekd.cli._common import open_images
    from edgekd.deploy.quantize.run import quantize

    images = open_images(recipe, recipe_path, data, calibration)
    done = quantize(
        model, recipe, declared, images, output,
        (lambda text: None) if as_json else (lambda text: note(f"quantize: {text}")),
    )  # fmt: skip
    emit(
        {
            "folder": str(output),
            "files": done.files,
            "precision": done.precision.model_dump(mode="json"),
            "portable": [item.model_dump(mode="json") for item in done.portable],
        },
        [*(row(item) for item in done.precision.candidates),
         *(f"{output / name}" for name in done.files)],
        as_json,
    )  # fmt: skip
    if not as_json:
        models = [item.file for item in done.portable]
        first = (models or [name for name in done.files if name.endswith(".onnx")])[0]
        note(f"next: edgekd check {output / first} --target {target}")
