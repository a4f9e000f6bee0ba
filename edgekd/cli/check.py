"""``edgekd check``: will this model run on that target?"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("check")
@click.argument("model", metavar="MODEL.onnx|BUNDLE", type=PathArgument)
@click.option("--target", required=True, help="Class of device; see edgekd ls targets.")
@click.option("--tensorrt", metavar="VERSION",
              help="Rules of this TensorRT, e.g. 8.6, in place of the target's.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "fp16"]),
              help="What the engine is to compute in where the file holds FP32: fp16 is the "
              "builder's flag (TensorRT to 10.11), fp32 is meant so. Without it the file is taken "
              "as it stands, and FP32 attention is refused.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
              help="Largest batch that the compile is made for.")  # fmt: skip
@click.option("--max-activation-mib", type=click.FloatRange(min=0, min_open=True),
              help="Refuse more activation memory; default an eighth of the target's.")  # fmt: skip
@click.option("--require-compile", is_flag=True,
              help="End with 3 where the model cannot be compiled here.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=600,
              show_default=True, help="Seconds until the compile is given up.")  # fmt: skip
@shared_options
def command(
    model: Path,
    target: str,
    tensorrt: str | None,
    precision: Literal["fp32", "fp16"] | None,
    batch: int,
    max_activation_mib: float | None,
    require_compile: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Say whether MODEL suits TARGET, without the device and without a GPU.

    Rules on the graph for the target's version; for TensorRT also a real compile with TensorRT-RTX
    where it is installed (extra check). Ends with 1 when the target would refuse the model.
    """
    from edgekd.contracts.optional import require
    from edgekd.contracts.target import load_target

    declared = load_target(target)
    require("onnx", "deploy", "check models")
    from edgekd.deploy.check.run import Options, check_model, refusal

    report = check_model(
        model,
        declared,
        Options(
            tensorrt=tensorrt,
            precision=precision,
            require_compile=require_compile,
            batch_max=batch,
            max_activation_mib=max_activation_mib,
            timeout_s=timeout_s,
        ),
    )
    emit(report.plain(), report.lines(), as_json)
    if report.errors:
        raise refusal(report)
    if not as_json:
        if not model.is_dir():
            note(f"next: edgekd build RECIPE --target {target}")
        elif declared.backend == "trt":
            note(f"next: on the {target}, edgekd finalize {model}")
        else:
            from edgekd.cli._answers import answers_for_places

            given = "SET -o answers.csv --rules FILE"
            if not answers_for_places(model, None):
                given = "SCENE.tif -o map.tif"
            note(f"next: on the {target}, edgekd run {model} {given}")
