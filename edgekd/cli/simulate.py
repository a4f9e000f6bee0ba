"""``edgekd simulate``: scenes that are computed, for training and proof where truth is known."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, progress_bar, shared_options, table

_LIBRARY = "hsi/USGS_1995_Library.mat"
_STATION = "coastal/seattle_9447130_metadata.json"


@click.group(
    "simulate", epilog="Each takes --json and --debug.", invoke_without_command=True
)  # fmt: skip
@click.pass_context
def command(context: click.Context) -> None:
    """Computed scenes with known truth; everything they write says that it is simulated."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _split(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int, int] | None:
    if value is None:
        return None
    try:
        train, val, test = (int(part) for part in value.split(":"))
    except ValueError as err:
        things = "coasts" if context.info_name == "coast" else "scenes"
        raise click.BadParameter(
            f"expected {things} of train, val and test like 4:1:1, received '{value}'"
        ) from err
    return train, val, test


def _measured(given: Path | None, file: str, what: str, option: str) -> Path:
    """A measured file that a simulation stands on: given, or where the real test data is."""
    from edgekd.errors import InputError

    if given is not None:
        return given
    folder = os.environ.get("EDGEKD_TEST_DATA")
    if not folder:
        raise InputError(
            f"no {what}: give the file {Path(file).name} with {option}, or set EDGEKD_TEST_DATA "
            f"to a folder that holds {file}"
        )
    return Path(folder) / file


@command.command("geology")
@click.option("-o", "--output", type=PathArgument, required=True, metavar="DIR",
              help="Folder of the sensor set; must not exist, or be empty.")  # fmt: skip
@click.option("--scenes", type=int, help="How many; default 6, with --rgb-only 1.")
@click.option("--side", "side_px", type=int, default=128, show_default=True,
              help="Rows and columns of a scene, px of 2 m.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True,
              help="Same seed, same bytes; scene 3 of six is scene 3 of sixty.")  # fmt: skip
@click.option("--split", callback=_split, metavar="TRAIN:VAL:TEST",
              help="Scenes of each, in turn; default 4:1:1, with --rgb-only 0:0:1.")  # fmt: skip
@click.option("--library", type=PathArgument, metavar="MAT",
              help="USGS_1995_Library.mat; default: hsi/ in EDGEKD_TEST_DATA.")  # fmt: skip
@click.option("--rgb-only", is_flag=True,
              help="No spectrometer: pictures, heights and labels of large scenes.")  # fmt: skip
@shared_options
def geology(
    output: Path,
    scenes: int | None,
    side_px: int,
    seed: int,
    split: tuple[int, int, int] | None,
    library: Path | None,
    rgb_only: bool,
    as_json: bool,
) -> None:
    """A mineral district of 12 classes as camera, spectrometer (224 bands) and LiDAR see it.

    Spectra are measured ones (USGS); where rocks stand, how minerals mix, light and noise are
    computed.
    """
    from edgekd.contracts.optional import require

    require("scipy", "sensors", "simulate scenes")
    from edgekd.simulate.minerals import CLASS_NAMES
    from edgekd.simulate.write import SET_FILE, Order, write_geology

    order = Order(
        scenes=scenes if scenes is not None else (1 if rgb_only else 6),
        side_px=side_px,
        seed=seed,
        split=split or ((0, 0, 1) if rgb_only else (4, 1, 1)),
        rgb_only=rgb_only,
    )
    begin = time.monotonic()
    with progress_bar("simulate", "row") as update:
        spectra = _measured(library, _LIBRARY, "library of spectra", "--library")
        made = write_geology(output, spectra, order, update)
    seconds = time.monotonic() - begin
    found = made["scenes"]
    pixels = {
        name: {
            split_name: sum(
                item["class_pixels"][index] for item in found if item["split"] == split_name
            )
            for split_name in ("train", "val", "test")
        }
        for index, name in enumerate(CLASS_NAMES)
    }
    total = order.scenes * order.side_px**2
    rows = [
        [name, f"{100 * sum(counts.values()) / total:.2f} %",
         *(str(value) for value in counts.values())]
        for name, counts in pixels.items()
    ]  # fmt: skip
    value = {
        "set": str(output / SET_FILE), "simulated": True, "seed": order.seed,
        "scenes": order.scenes, "side_px": order.side_px, "rgb_only": order.rgb_only,
        "split": made["split"], "class_pixels": pixels, "seconds": round(seconds, 3),
    }  # fmt: skip
    emit(
        value,
        [
            *table(["class", "share", "train px", "val px", "test px"], rows),
            f"SIMULATED: {order.scenes} scenes of {side_px} x {side_px} px in {seconds:.1f} s",
            f"set       {output / SET_FILE}",
        ],
        as_json,
    )
    if as_json:
        return
    first = output / "scene_000_rgb.tif"
    if rgb_only:
        note(f"next: edgekd run BUNDLE {first} -o map.tif")
    else:
        note(f"next: edgekd inspect {output}")
        note(f"next: edgekd distill RECIPE --data {output}")


@command.command("coast")
@click.option("-o", "--output", type=PathArgument, required=True, metavar="DIR",
              help="Folder of the set of places; must not exist, or be empty.")  # fmt: skip
@click.option("--coasts", type=int, default=20, show_default=True, help="How many.")
@click.option("--places", type=int, default=60, show_default=True, help="Of each coast.")
@click.option("--seed", type=int, default=0, show_default=True,
              help="Same seed, same places; coast 3 of ten is coast 3 of a hundred.")  # fmt: skip
@click.option("--split", callback=_split, metavar="TRAIN:VAL:TEST", default="14:3:3",
              show_default=True, help="Coasts of each, in turn.")  # fmt: skip
@click.option("--station", type=PathArgument, metavar="JSON",
              help="Metadata of a NOAA station with harmonic constituents, whose tide is taken; "
                   "default: coastal/ in EDGEKD_TEST_DATA.")  # fmt: skip
@shared_options
def coast(
    output: Path,
    coasts: int,
    places: int,
    seed: int,
    split: tuple[int, int, int],
    station: Path | None,
    as_json: bool,
) -> None:
    """Places on made-up coasts: a picture, a year of sensors, a zoning clause; ten classes.

    The tide is a real station's; ground, storms, towns and texts are computed. What is to be done
    with a block follows from all three by a rule, so the truth is known.
    """
    from edgekd.contracts.optional import require

    require("scipy", "sensors", "simulate coasts")
    from edgekd.contracts.place_set import SET_FILE, SPLITS
    from edgekd.simulate.coast_write import CoastOrder, write_coast

    order = CoastOrder(coasts=coasts, places=places, seed=seed, split=split)
    begin = time.monotonic()
    with progress_bar("simulate", "coast") as update:
        taken = _measured(station, _STATION, "station's tide", "--station")
        made = write_coast(output, taken, order, update)
    seconds = time.monotonic() - begin
    counts = made["places"]
    rows = [[name, *(str(counts[part][name]) for part in SPLITS)] for name in counts["train"]]
    value = {
        "set": str(output / SET_FILE), "simulated": True, "seed": seed, "coasts": coasts,
        "places_of_each": places, "split": made["split"], "places": counts,
        "seconds": round(seconds, 3),
    }  # fmt: skip
    emit(
        value,
        [
            *table(["class", *SPLITS], rows),
            f"SIMULATED: {coasts} coasts of {places} places in {seconds:.1f} s",
            f"set       {output / SET_FILE}",
        ],
        as_json,
    )
