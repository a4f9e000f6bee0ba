"""``edgekd run``: a bundle over a scene, or over every image of a folder."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli._common import (
    PathArgument,
    day_option,
    embeddings_option,
    emit,
    note,
    percent,
    progress_bar,
    refuse_others,
    scene_options,
    shared_options,
    signer_option,
    stop_on_signals,
    table,
    typed,
)

if TYPE_CHECKING:
    from edgekd.contracts.imageio import Nodata
    from edgekd.runtime.session import SceneResult, Session
    from edgekd.telemetry.recorder import Recorder


@click.command("run")
@click.argument("bundle", type=PathArgument)
@click.argument("scene", metavar="INPUT", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, required=True,
              help="GeoTIFF to write; of a folder, the folder of the results.")  # fmt: skip
@click.option("--scores", type=PathArgument, metavar="TIF",
              help="Confidence of each pixel as 8 bits: value / 254.")  # fmt: skip
@click.option("--probabilities", type=PathArgument, metavar="TIF",
              help="Probability of each class as 8 bits: a band each, value / 254.")  # fmt: skip
@click.option("--polygons", type=PathArgument, metavar="GPKG|GEOJSON",
              help="The map as simplified polygons with areas.")  # fmt: skip
@click.option("--summary", type=PathArgument, metavar="JSON",
              help="Areas, confidences and sizes: the smallest product.")  # fmt: skip
@click.option("--trace", type=PathArgument, metavar="CSV|PARQUET",
              help="Log tiles and power on one clock while it runs.")  # fmt: skip
@click.option("--power", metavar="auto|none|SENSOR|replay:FILE",
              help="Where the power of --trace comes from; default: auto.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Finish an earlier run that did not end.")
@click.option("--restart", is_flag=True, help="Forget an earlier run that did not end.")
@click.option("--rules", metavar="FILE|set|none",
              help="Of places: the rules that answers obey; set: those that come with the "
              "set.")  # fmt: skip
@click.option("--zone-column", type=click.Choice(["zone", "group"]), default="zone",
              show_default=True, help="Of places: column of the table that names the rules' "
              "zone.")  # fmt: skip
@day_option
@click.option("--split", default="all", show_default=True,
              help="Of places: train, val, test or all.")  # fmt: skip
@embeddings_option
@scene_options
@signer_option
@shared_options
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    scene: Path,
    output: Path,
    scores: Path | None,
    probabilities: Path | None,
    polygons: Path | None,
    summary: Path | None,
    trace: Path | None,
    power: str | None,
    resume: bool,
    restart: bool,
    rules: str | None,
    zone_column: str,
    day: str | None,
    split: str,
    embeddings: Path | None,
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
    """Run BUNDLE over the image INPUT and write a class map with the same georeference.

    What is done is kept beside the map until it is whole: after a kill, a power cut or a full disk,
    the same command with --resume goes on and gives the same bytes. SIGTERM and Ctrl-C end it
    cleanly, a second one at once. Of a folder, every image gets a map in the output folder;
    --scores, --probabilities, --polygons and --summary then take what their names end in, e.g.
    --polygons .gpkg.
    With --trace the power is that of this very run: no benchmark, which edgekd bench is.

    Of a bundle that answers for places INPUT is a set of places, and the output a CSV file with the
    answer for each, which obeys --rules.
    """
    from edgekd.cli import _answers

    mine = ("rules", "zone_column", "day", "split", "embeddings")
    given = typed(context)
    if _answers.answers_for_places(bundle, signer):
        known = {*mine, "bundle", "scene", "output", "any_device", "signer", "as_json", "debug"}
        refuse_others(given - known, f"{bundle} answers for places")
        import datetime

        when = _answers.day_of(day) or datetime.date.today()
        _answers.run(
            bundle, scene, output, rules, zone_column, split, when, embeddings, any_device, signer,
            as_json,
        )  # fmt: skip
        return
    refuse_others(given & set(mine), f"{bundle} makes maps")
    from edgekd.contracts.memory import separate_large_memory
    from edgekd.errors import CancelledError, InputError
    from edgekd.runtime.polygons import Outline
    from edgekd.runtime.session import load

    if resume and restart:
        raise InputError("--resume goes on with an earlier run and --restart forgets it; give one")
    if power is not None and trace is None:
        raise InputError(
            f"--power {power} is about --trace, which is missing; add --trace FILE.csv"
        )
    outline = Outline(simplify_px=simplify, min_area_px=min_area)
    separate_large_memory()
    with (
        load(
            bundle, any_device=any_device, streams=streams, provider=provider, signer=signer
        ) as session,
        stop_on_signals() as asked,
    ):
        if scene.is_dir():
            from edgekd.runtime.folder import Wanted, run_folder

            wanted = Wanted(
                bands=bands, overlap_px=overlap, nodata=nodata, scale=scale,
                scores=scores is not None, probabilities=probabilities is not None,
                polygons=None if polygons is None else Path(f"x{polygons.name}").suffix,
                summary=summary is not None, outline=outline,
            )  # fmt: skip
            with _recording(session, trace, power) as recorder:
                tally = run_folder(
                    session, scene, output, wanted, resume=resume, restart=restart, say=note,
                    stop=asked.is_set,
                )  # fmt: skip
            logged, told = _logged(recorder, trace)
            emit(
                tally.plain() | logged,
                [f"{len(tally.done)} maps in {output}, {len(tally.failed)} images failed",
                 *(f"failed: {why}" for why in tally.failed.values()), *told],
                as_json,
            )  # fmt: skip
            if tally.stopped:
                raise CancelledError(
                    f"{scene} was stopped after {len(tally.done)} maps; what is done of the next "
                    "one is kept, go on with --resume"
                )
            if tally.failed:
                raise InputError(
                    f"{len(tally.failed)} of {len(tally.failed) + len(tally.done)} images of "
                    f"{scene} could not be processed; mend them and run again with --restart"
                )
            return
        with _recording(session, trace, power) as recorder, progress_bar("run", "tile") as update:
            result = session.run_scene(
                scene, output, bands, overlap, update, nodata, scale=scale, scores=scores,
                probabilities=probabilities, polygons=polygons, summary=summary, outline=outline,
                resume=resume, restart=restart, cancel=asked.is_set,
            )  # fmt: skip
    logged, told = _logged(recorder, trace)
    emit(result.plain() | logged, [*_lines(result), *told], as_json)
    if not as_json:
        note(f"next: edgekd bench {bundle} {scene}" + (" --any-device" if any_device else ""))


def _recording(
    session: Session, trace: Path | None, power: str | None
) -> contextlib.AbstractContextManager[Recorder | None]:
    if trace is None:
        return contextlib.nullcontext()
    return session.trace(trace, power or "auto")


def _logged(recorder: Recorder | None, path: Path | None) -> tuple[dict[str, Any], list[str]]:
    """What the trace says of the run, for JSON and for a person."""
    from edgekd.errors import InputError
    from edgekd.telemetry.figures import figures

    if recorder is None:
        return {}, []
    trace = recorder.trace
    value: dict[str, Any] = {
        "file": str(path), "tiles": trace.tiles_done,
        "note": "not a benchmark: no idle, no warm-up",
    }  # fmt: skip
    lines = [f"trace: {path}"]
    try:
        found = figures(trace)
    except InputError as err:
        reason = trace.unavailable or str(err)
        value["power"] = {"status": "unavailable", "reason": reason}
        lines.append(f"power unavailable: {reason}; {trace.tiles_done} tiles were counted")
    else:
        value["power"] = found.plain()
        lines += [
            f"power{found.info.word} of this run (not a benchmark: no idle, no warm-up)",
            *found.lines(),
        ]
    return {"trace": value}, lines


def _lines(result: SceneResult) -> list[str]:
    rows = []
    for name, count in result.class_pixels.items():
        area = "" if result.class_area_m2 is None else f"{result.class_area_m2[name]:,.0f} m²"
        share = percent(count / result.pixels_valid) if result.pixels_valid else "-"
        rows.append([name, f"{count:,}", share, area])
    resumed = (
        f", resumed behind row {result.resumed_rows} (attempt {result.attempts})"
        if result.attempts > 1
        else ""
    )
    sizes = ", ".join(f"{name} {size:,} bytes" for name, size in result.file_bytes.items())
    return [
        *table(["class", "pixels", "share", "area"], rows),
        f"{result.pixels:,} px = {result.pixels_valid:,} valid + {result.pixels_nodata:,} "
        f"nodata; {result.windows_run} of {result.windows} windows run",
        f"nodata {result.nodata_rule}",
        f"{result.total_s:.1f} s, {result.mpx_per_s:.2f} Mpx/s{resumed}",
        f"map: {result.output}" + (f" ({sizes})" if sizes else ""),
    ]
