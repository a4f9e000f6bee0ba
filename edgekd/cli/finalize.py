"""``edgekd finalize``: build the engine of a portable bundle, on the board."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, cast

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options, signer_option


@click.command("finalize")
@click.argument("bundle", metavar="BUNDLE", type=PathArgument)
@click.option("-o", "--output", type=PathArgument,
              help="Finished bundle; default: in place of BUNDLE.")  # fmt: skip
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]),
              help="Build this one alone; default: all it holds, the fastest wins.")  # fmt: skip
@click.option("--typing", type=click.Choice(["flags", "graph"]),
              help="How TensorRT learns precisions; default: flags below 10.12.")  # fmt: skip
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True,
              help="Largest batch of the engine.")  # fmt: skip
@click.option("--workspace-mib", type=click.IntRange(min=1),
              help="Scratch memory of the builder; default a quarter of the GPU's.")  # fmt: skip
@click.option("--dla", "dla_core", type=click.IntRange(min=0), metavar="CORE",
              help="Use this deep learning accelerator where layers fit it.")  # fmt: skip
@click.option("--timing-cache", type=PathArgument, metavar="FILE",
              help="Measured tactics to use and update; default: kept in the bundle.")  # fmt: skip
@click.option("--any-device", is_flag=True,
              help="Build on another class of device than the target.")  # fmt: skip
@signer_option
@shared_options
def command(
    bundle: Path,
    output: Path | None,
    precision: str | None,
    typing: str | None,
    batch: int,
    workspace_mib: int | None,
    dla_core: int | None,
    timing_cache: Path | None,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Build BUNDLE's engine here, compare it with the golden outputs, time it, and seal it.

    For bundles of targets with TensorRT, on the board, once; again after an update of TensorRT.
    Each precision in the bundle is built; the fastest that keeps its bounds is taken.
    """
    from edgekd.contracts.manifest import trial_row
    from edgekd.contracts.trust import SIGNATURE_NAME, requirements
    from edgekd.deploy.finalize import Options, finalize

    signed = (bundle / SIGNATURE_NAME).exists()
    manifest = finalize(
        bundle,
        output,
        requirements(signer),
        Options(
            precision=precision,
            typing=cast("Literal['flags', 'graph'] | None", typing),
            any_device=any_device,
            batch_max=batch,
            workspace_mib=workspace_mib,
            dla_core=dla_core,
            timing_cache=timing_cache,
        ),
        (lambda text: None) if as_json else (lambda text: note(f"finalize: {text}")),
    )
    out = output or bundle
    engine = manifest.engine
    assert engine is not None
    emit(
        {"bundle": str(out), "signature_dropped": signed, "manifest": manifest.plain()},
        [
            *(trial_row(item) for item in engine.trials),
            f"bundle: {out} ({engine.precision}, TensorRT {engine.machine.tensorrt}, "
            f"{engine.machine.gpu}, sealed)",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd run {out} SCENE.tif -o map.tif --bands 1,2,3")
