"""``edgekd run``: a bundle over a scene."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    parse_bands,
    parse_nodata,
    percent,
    progress_bar,
    shared_options,
    signer_option,
    table,
)

if TYPE_CHECKING:
    from edgekd.contracts.imageio import Nodata


@click.command("run")
@click.argument("bundle", type=PathArgument)
@click.argument("scene", metavar="INPUT", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, required=True, help="GeoTIFF to write.")
@click.option("--bands", callback=parse_bands, help="1-based bands to feed as R,G,B, e.g. 1,2,3.")
@click.option("--overlap", type=int, help="Pixels that windows share; default: the bundle's own.")
@click.option("--nodata", default="auto", callback=parse_nodata, show_default=True,
              help="auto, declared, none, or the value that every band holds there.")  # fmt: skip
@click.option("--streams", type=click.IntRange(min=0), default=0, show_default=True,
              help="Tiles in the model at once, at most; 1 needs the least memory, 0 is one per "
              "core.")  # fmt: skip
@click.option("--any-device", is_flag=True, help="Run a bundle of another architecture.")
@signer_option
@shared_options
def command(
    bundle: Path,
    scene: Path,
    output: Path,
    bands: list[int] | None,
    overlap: int | None,
    nodata: Nodata,
    streams: int,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Run BUNDLE over the image INPUT and write a class map with the same georeference."""
    from edgekd.runtime.session import load

    with (
        load(bundle, any_device=any_device, streams=streams, signer=signer) as session,
        progress_bar("run", "tile") as update,
    ):
        result = session.run_scene(scene, output, bands, overlap, update, nodata)
    rows = []
    for name, count in result.class_pixels.items():
        area = "" if result.class_area_m2 is None else f"{result.class_area_m2[name]:,.0f} m²"
        share = percent(count / result.pixels_valid) if result.pixels_valid else "-"
        rows.append([name, f"{count:,}", share, area])
    emit(
        result.plain(),
        [
            *table(["class", "pixels", "share", "area"], rows),
            f"{result.pixels:,} px = {result.pixels_valid:,} valid + {result.pixels_nodata:,} "
            f"nodata; {result.windows_run} of {result.windows} windows run",
            f"nodata {result.nodata_rule}",
            f"{result.total_s:.1f} s, {result.mpx_per_s:.2f} Mpx/s",
            f"map: {result.output}",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd bench {bundle} {scene}" + (" --any-device" if any_device else ""))
