"""``edgekd export``: checkpoint to ONNX."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("export")
@click.argument("checkpoint_path", metavar="CHECKPOINT", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, default=Path("model.onnx"), show_default=True,
              help="ONNX file to write.")  # fmt: skip
@shared_options
def command(checkpoint_path: Path, output: Path, as_json: bool) -> None:
    """Write CHECKPOINT as ONNX (opset 17) and compare it with torch.

    The input is a normalised tile, the output logits at the student's stride.
    """
    from edgekd.contracts.artifacts import publish_file, sha256_file
    from edgekd.contracts.optional import require
    from edgekd.errors import GateError, InputError

    if output.suffix != ".onnx":
        raise InputError(f"give the model a name that ends in .onnx, received {output}")
    require("torch", "deploy", "export checkpoints")
    from edgekd.contracts.preprocess import Normalizer
    from edgekd.deploy.export.onnx_export import export_onnx, synthetic_tile, torch_model
    from edgekd.deploy.parity import compare
    from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
    from edgekd.train.checkpoint import load_checkpoint, rebuild

    checkpoint = load_checkpoint(checkpoint_path)
    recipe = checkpoint.parsed_recipe(str(checkpoint_path))
    model = rebuild(checkpoint, str(checkpoint_path))
    spec = recipe.io.inputs[0]
    tile = Normalizer(spec)(synthetic_tile(spec.tile_px, spec.channel_count))[None]
    with publish_file(output) as part:  # appears when it has also been compared
        exported = export_onnx(model, recipe, part)
        with OnnxRuntimeBackend(part) as backend:
            parity = compare(
                torch_model(model),
                lambda tensor: backend.infer({exported.input_name: tensor})[exported.output_name],
                [tile],
            )
        gate = parity.gate("onnx_vs_torch", recipe.gates.onnx_vs_torch.atol)
        if not gate.passed:
            raise GateError(
                f"ONNX and torch differ by {gate.value:.3g} logits, allowed are "
                f"{gate.bound:.3g} ({gate.detail}); {output} was not written"
            )
    emit(
        {
            "onnx": str(output),
            "sha256": sha256_file(output),
            "opset": 17,
            "input": {"name": exported.input_name, "tile_px": exported.tile_px},
            "output": {"name": exported.output_name, "stride_px": exported.stride_px},
            "operators": exported.operators,
            "parity": gate.model_dump(),
        },
        [
            f"{output}: opset 17, {sum(exported.operators.values())} nodes, "
            f"{output.stat().st_size / 1e6:.1f} MB",
            f"largest difference to torch {gate.value:.2g} logits (allowed {gate.bound:.2g}; "
            f"{gate.detail}; synthetic picture)",
        ],
        as_json,
    )
    if not as_json:
        note(
            f"next: edgekd check {output} --target orin-nx-16gb --precision fp16, or edgekd build "
            f"RECIPE --target x86-cpu --checkpoint {checkpoint_path}"
        )
