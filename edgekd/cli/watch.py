"""``edgekd watch``: files as they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    scene_options,
    shared_options,
    signer_option,
    stop_on_signals,
)

if TYPE_CHECKING:
    from edgekd.contracts.imageio import Nodata


@click.command("watch")
@click.argument("bundle", type=PathArgument)
@click.argument("inputs", metavar="IN", type=PathArgument)
@click.argument("outputs", metavar="OUT", type=PathArgument)
@click.option("--scores", is_flag=True, help="Write NAME.scores.tif as well.")
@click.option("--probabilities", is_flag=True, help="Write NAME.probabilities.tif as well.")
@click.option("--polygons", type=click.Choice(["gpkg", "geojson"]),
              help="Write NAME.gpkg or NAME.geojson as well.")  # fmt: skip
@click.option("--summary", is_flag=True, help="Write NAME.json as well.")
@click.option("--settle", "settle_s", type=click.FloatRange(min=0), default=2.0, show_default=True,
              help="Seconds without a change after which a file is whole.")  # fmt: skip
@click.option("--once", is_flag=True, help="End when nothing is waiting.")
@scene_options
@signer_option
@shared_options
def command(
    bundle: Path,
    inputs: Path,
    outputs: Path,
    scores: bool,
    probabilities: bool,
    polygons: str | None,
    summary: bool,
    settle_s: float,
    once: bool,
    bands: list[int] | None,
    scale: list[tuple[float, float]] | None,
    overlap: int | None,
    nodata: Nodata,
    streams: int,
    provider: list[str] | None,
    simplify: float,
    min_area: int,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Run BUNDLE over every image that arrives in IN and write its results into OUT.

    Finished images move to IN/done, those that cannot be read to IN/failed beside a text that says
    why. Safe to kill and to start again: nothing is lost and nothing is done twice. Ends cleanly on
    SIGTERM and Ctrl-C.
    """
    from edgekd.contracts.memory import separate_large_memory
    from edgekd.runtime.folder import Wanted, watch
    from edgekd.runtime.polygons import Outline
    from edgekd.runtime.session import load

    wanted = Wanted(
        bands=bands, overlap_px=overlap, nodata=nodata, scale=scale, scores=scores,
        probabilities=probabilities, polygons=f".{polygons}" if polygons else None, summary=summary,
        outline=Outline(simplify_px=simplify, min_area_px=min_area),
    )  # fmt: skip
    separate_large_memory()
    with (
        load(
            bundle, any_device=any_device, streams=streams, provider=provider, signer=signer
        ) as session,
        stop_on_signals() as asked,
    ):
        tally = watch(
            session, inputs, outputs, wanted, settle_s=settle_s, once=once, say=note,
            stop=asked.is_set,
        )  # fmt: skip
    emit(
        tally.plain(),
        [f"{len(tally.done)} images done, {len(tally.failed)} set aside in {inputs / 'failed'}"],
        as_json,
    )
