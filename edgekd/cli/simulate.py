"""``edgekd simulate``: scenes that are computed, for training and proof where truth is known."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, progress_bar, shared_options, table

_LIBRARY = "hsi/USGS_1995_Library.mat"


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
        raise click.BadParameter(
            f"expected scenes of train, val and test like 4:1:1, received '{value}'"
        ) from err
    return train, val, test


def _library(given: Path | None) -> Path:
    """``--library``, or the file where the real test data is."""
    from edgekd.errors import InputError

    if given is not None:
        return given
    folder = os.environ.get("EDGEKD_TEST_DATA")
    if not folder:
        raise InputError(
            "no library of spectra: give the file USGS_1995_Library.mat with --library, or set "
            f"EDGEKD_TEST_DATA to a folder that holds {_LIBRARY}"
        )
    return Path(folder) / _LIBRARY


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
        made = write_geology(output, _library(library), order, update)
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
