"""Do INT8 bundles for Arm boards give the classes of x86? Asked without a board.

    apt-get install qemu-user-static
    python benchmarks/arm_emulation.py --fetch --root ROOT --site SITE \\
        --bundle rpi4=BUNDLE --bundle rpi5=BUNDLE [IMAGE ...] [--write]

Runs the runtime itself (``benchmarks/_arm_child.py``: load, infer, run, verify) as 64-bit Arm code
under qemu's user mode, once per bundle with the CPU of its board, and once natively with
``any_device=True``, where INT8 graphs run as they are written. On the bundle's golden tiles the
cells' classes are compared with x86 and with the stored outputs, on the centre tiles of IMAGEs with
x86. Ends with 1 when any agreement is below 99.5 %, the runtime refuses the bundle or its golden
outputs on Arm, or ONNX Runtime left no operator there that sums integers.

Of bundles that answer for places, with ``--places SET [--rules FILE]`` in place of IMAGEs
(``benchmarks/_arm_places.py``): likeliest classes of the set's test places, before and after the
rules, against x86; every answer obeys; embeddings of a few texts against x86. Some places lack a
kind of evidence. Golden places are judged by ``verify`` alone: they are too few for a percentage.

ROOT holds an arm64 Python of the distribution, SITE arm64 wheels; ``--fetch`` makes what is not
there yet (some 450 MB), see ``_emulated.py``; ``pip install uv`` for it.

Each core sees only what its model has: the emulated Cortex-A72 has no 8-bit dot products and ends
with SIGILL where a kernel uses one. What an emulator cannot show is time: the seconds in the record
say nothing about a board.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from _arm_asked import COUNT, TEXTS, AskedPlaces
from _arm_places import examine_places, print_places
from _arm_run import BOUND, Arrays, head, read_int8, run_both
from _emulated import CPUS, REPOSITORY, Emulator, fetch_root, fetch_site

from edgekd.contracts.artifacts import sha256_bytes, write_json
from edgekd.contracts.imageio import Raster
from edgekd.contracts.manifest import Manifest
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError
from edgekd.telemetry.environment import read_environment

CHILD = REPOSITORY / "benchmarks" / "_arm_child.py"
FOLDER = REPOSITORY / "benchmarks" / "results" / "emulated-arm"
RECORD, PLACES_RECORD = FOLDER / "int8_classes.json", FOLDER / "int8_answers.json"


def agreement(
    found: Sequence[npt.NDArray[np.float32]], other: Sequence[npt.NDArray[np.float32]]
) -> dict[str, Any]:
    """Compare logits ``(classes, h, w)`` of the same tiles; NaN or infinity agrees with nothing."""
    same, cells, worst = 0, 0, 0.0
    for mine, theirs in zip(found, other, strict=True):
        if mine.shape != theirs.shape:
            raise InputError(f"logits of shape {mine.shape} and {theirs.shape} do not compare")
        sound = np.isfinite(mine).all(axis=0) & np.isfinite(theirs).all(axis=0)
        same += int((sound & (mine.argmax(axis=0) == theirs.argmax(axis=0))).sum())
        cells += sound.size
        worst = max(worst, float(np.abs(mine - theirs).max())) if sound.all() else np.inf
    return {
        "cells": cells,
        "cells_differ": cells - same,
        "agreement": same / cells,
        "max_abs_logits": worst if np.isfinite(worst) else None,
    }


def pixels_same(arm: Arrays, x86: Arrays, numbers: range) -> float:
    """Part of the pixels that ``Session.run`` gives the same class."""
    return float(np.mean([np.mean(arm[f"classes_{n}"] == x86[f"classes_{n}"]) for n in numbers]))


def centre_tiles(images: Sequence[Path], manifest: Manifest) -> list[npt.NDArray[np.uint8]]:
    """The middle of each image, as large as the model's tile."""
    side, tiles = manifest.inputs[0].tile_px, []
    for path in images:
        with Raster(path) as raster:
            pixels = raster.read_all(raster.choose_bands(None, manifest.inputs[0].channel_count))
        top, left = ((size - side) // 2 for size in pixels.shape[:2])
        if top < 0 or left < 0:
            raise InputError(f"{path} is smaller than the tile of {side} px")
        tiles.append(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    return tiles


def examine(
    name: str, bundle: Path, images: Sequence[Path], emulator: Emulator, timeout: float
) -> dict[str, Any]:
    """Run one bundle both ways and compare."""
    manifest = read_int8(name, bundle)
    manifest.of_maps(bundle)
    output, golden = manifest.outputs[0].name, manifest.golden.count
    with np.load(bundle / manifest.golden.file) as file:
        tiles = [file[f"image_{n}"] for n in range(golden)]
        stored = [file[f"{output}_{n}"] for n in range(golden)]
    stored = [item.reshape(item.shape[-3:]) for item in stored]
    tiles += centre_tiles(images, manifest)
    result: dict[str, Any] = {
        **head(name, manifest),
        "images_sha256": sha256_bytes(b"".join(item.tobytes() for item in tiles[golden:])),
    }
    given = {f"image_{n}": tile for n, tile in enumerate(tiles)}
    x86, arm = run_both(CHILD, bundle, given, name, emulator, timeout)
    if isinstance(arm, str):
        return {**result, "failed": arm, "passed": False}
    both = {
        who: [arrays[f"logits_{n}"] for n in range(len(tiles))]
        for who, arrays in (("arm", arm.arrays), ("x86", x86.arrays))
    }
    compared = {
        "golden_x86": agreement(both["arm"][:golden], both["x86"][:golden]),
        "golden_stored": agreement(both["arm"][:golden], stored),
        "x86_stored": agreement(both["x86"][:golden], stored),
    }
    pixels = {"golden": pixels_same(arm.arrays, x86.arrays, range(golden))}
    if images:
        compared["images_x86"] = agreement(both["arm"][golden:], both["x86"][golden:])
        pixels["images"] = pixels_same(arm.arrays, x86.arrays, range(golden, len(tiles)))
    verified = arm.facts["verify"]
    agreed = all(item["agreement"] >= BOUND for item in compared.values())
    return {
        **result,
        "compared": compared,
        "pixels_same_as_x86": pixels,
        "verify": {**verified, "allowed_logits": manifest.golden.atol},
        "integer_operators_on_arm": arm.integer,
        "arm": arm.facts,
        "x86": x86.facts,
        "failed": None,
        # where nothing is summed in integers, nothing was said about INT8
        "passed": agreed and verified["passed"] and bool(arm.integer),
    }


def _print(result: Mapping[str, Any]) -> None:
    click.echo(f"{result['target']} ({result['emulated_cpu']}), {result['bundle']}")
    if result["failed"]:
        click.echo(f"  FAILED: {result['failed']}")
        return
    titles = {
        "golden_x86": "golden tiles, Arm against x86",
        "golden_stored": "golden tiles, Arm against stored",
        "x86_stored": "golden tiles, x86 against stored",
        "images_x86": "other tiles, Arm against x86",
    }
    for key, item in result["compared"].items():
        worst = item["max_abs_logits"]
        click.echo(
            f"  {titles[key]:34s} same class {100 * item['agreement']:6.2f} % of {item['cells']} "
            f"cells, largest difference {'not finite' if worst is None else f'{worst:.3g}'} logits"
        )
    pixels = ", ".join(
        f"{who} {100 * part:.2f} %" for who, part in result["pixels_same_as_x86"].items()
    )
    click.echo(f"  pixels of Session.run as on x86: {pixels}")
    verified = result["verify"]
    said = f"{verified['error_logits']:.3g} logits" if verified["passed"] else verified["why"]
    click.echo(f"  verify: {'ok' if verified['passed'] else 'REFUSED'}, {said}")
    click.echo(f"  integer operators on Arm: {result['integer_operators_on_arm'] or 'NONE'}")


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    """Faults as the command line shows them."""
    try:
        yield
    except EdgeKDError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(3 if isinstance(err, EnvironmentLacksError) else 2)


def _bundles(given: Sequence[str]) -> dict[str, Path]:
    bundles: dict[str, Path] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if name not in CPUS or not folder:
            raise InputError(f"--bundle {text}: expected TARGET=FOLDER, TARGET: {', '.join(CPUS)}")
        bundles[name] = Path(folder).resolve()
    return bundles


@click.command()
@click.argument("images", nargs=-1, type=click.Path(path_type=Path))
@click.option("--root", type=click.Path(path_type=Path), required=True, help="arm64 system.")
@click.option("--site", type=click.Path(path_type=Path), required=True, help="arm64 wheels.")
@click.option("--fetch", is_flag=True, help="Make ROOT and SITE where they are not there yet.")
@click.option("--bundle", "given", multiple=True, required=True, metavar="TARGET=FOLDER",
              help="INT8 bundle for rpi4 or rpi5; may be repeated.")  # fmt: skip
@click.option("--places", "place_set", type=click.Path(path_type=Path), metavar="SET",
              help="Bundles answer for places; ask about this set's test split.")  # fmt: skip
@click.option("--rules", type=click.Path(path_type=Path), help="Default: those of SET.")
@click.option("--count", type=click.IntRange(1), default=COUNT, show_default=True,
              help="Places, spread over the split.")  # fmt: skip
@click.option("--texts", type=click.IntRange(0), default=TEXTS, show_default=True,
              help="Texts that both embed.")  # fmt: skip
@click.option("--embeddings", type=click.Path(path_type=Path),
              help="Of SET's texts (.npy), where a bundle has no encoder of texts.")  # fmt: skip
@click.option("--day", type=click.DateTime(["%Y-%m-%d"]), help="Of the rules; default: today.")
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Per run, s.")
@click.option("--write", is_flag=True, help="Write benchmarks/results/emulated-arm/.")
def main(
    images: tuple[Path, ...],
    root: Path,
    site: Path,
    fetch: bool,
    given: tuple[str, ...],
    place_set: Path | None,
    rules: Path | None,
    count: int,
    texts: int,
    embeddings: Path | None,
    day: datetime.datetime | None,
    timeout: float,
    write: bool,
) -> None:
    """Compare, print, and end with 1 when Arm and x86 do not agree."""
    root, site = root.resolve(), site.resolve()
    if images and place_set:
        raise click.UsageError(
            "IMAGEs are for bundles that make maps; leave them out with --places"
        )
    if not place_set and (rules or embeddings or day):
        raise click.UsageError(
            "--rules, --embeddings and --day are about places; give --places SET"
        )
    asked = None
    with _one_line():
        bundles = _bundles(given)
        if platform.machine() != "x86_64":
            raise EnvironmentLacksError("compares with x86-64 and must run on such a machine")
        emulator = Emulator.find(root, site)
        if place_set:
            when = day.date() if day else datetime.date.today()
            asked = AskedPlaces.read(place_set, rules, when, count, texts, embeddings)
        if fetch:
            fetch_root(root)
            fetch_site(root, site, ("onnxrt", "geo", "text"))
        results = []
        for name, bundle in bundles.items():
            click.echo(f"{name}: emulating ...", err=True)
            if asked is None:
                results.append(examine(name, bundle, images, emulator, timeout))
                _print(results[-1])
            else:
                results.append(examine_places(name, bundle, asked, emulator, timeout))
                print_places(results[-1])
        passed = all(item["passed"] for item in results)
        click.echo(f"at least {100 * BOUND:.1f} % and verified: {'ok' if passed else 'MISSED'}")
        if write:
            of_maps: dict[str, Any] = {
                "what": "INT8 bundles for Arm boards: same class per cell as x86, and as stored",
                "images": [path.name for path in images],
            }
            record = {
                **(of_maps if asked is None else asked.about()),
                "emulated": "CPU emulated by qemu in user mode, no board; the seconds are those "
                "of the emulator and say nothing about a board",
                "emulator": emulator.version(),
                "x86_runs": "with any_device=True: the graph as it is written, INT8 not fused",
                "bound": BOUND,
                "bundles": results,
                "passed": passed,
                "emulated_on": read_environment().model_dump(mode="json"),
            }
            path = RECORD if asked is None else PLACES_RECORD
            write_json(path, record)
            click.echo(f"written: {path}", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
