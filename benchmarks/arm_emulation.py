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

ROOT holds an arm64 Python of the distribution, SITE arm64 wheels; ``--fetch`` makes what is not
there yet (some 450 MB), see ``_emulated.py``; ``pip install uv`` for it.

Each core sees only what its model has: the emulated Cortex-A72 has no 8-bit dot products and ends
with SIGILL where a kernel uses one. What an emulator cannot show is time: the seconds in the record
say nothing about a board.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt
from _emulated import CPUS, REPOSITORY, Emulator, check_seen, fetch_root, fetch_site

from edgekd.contracts.artifacts import sha256_bytes, write_json
from edgekd.contracts.imageio import Raster
from edgekd.contracts.manifest import Manifest
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError
from edgekd.runtime.bundle import read_manifest
from edgekd.telemetry.environment import read_environment

CHILD = REPOSITORY / "benchmarks" / "_arm_child.py"
RECORD = REPOSITORY / "benchmarks" / "results" / "emulated-arm" / "int8_classes.json"
#: part of the cells that must have the same class.
BOUND = 0.995
#: ONNX Runtime's operators whose sums are integers.
INTEGER_OPERATORS = (
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "QLinearConv", "QLinearMatMul",
)  # fmt: skip

Arrays = dict[str, npt.NDArray[Any]]


class ChildFailed(Exception):
    """The program under test did not finish; the text says how it ended."""


class Result(NamedTuple):
    """What the child left behind."""

    facts: dict[str, Any]
    arrays: Arrays
    integer: dict[str, int] | None


def run_child(
    command: Sequence[str | Path], path: Sequence[Path], words: Sequence[str | Path], timeout: float
) -> Result:
    """Run ``_arm_child.py`` by ``command`` and read its results.

    Args:
        command: interpreter with its options.
        path: for ``PYTHONPATH``.
        words: bundle, tiles, and options.
        timeout: s.
    """
    # Nothing of this Python or its loader may reach the other one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    environment["PYTHONPATH"] = os.pathsep.join(str(item.resolve()) for item in path)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    bundle, tiles, *options = words
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        out = Path(folder)
        parts = [*command, CHILD, bundle, tiles, out, *options]
        try:
            done = subprocess.run(
                [str(word) for word in parts], env=environment, cwd=out,  # qemu drops cores here
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            raise ChildFailed(f"not done after {timeout:.0f} s") from err
        if done.returncode:
            how = f"ended with {done.returncode}"
            if done.returncode < 0:
                how = f"died of {signal.Signals(-done.returncode).name}"
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise ChildFailed(": ".join([how, *said[-1:]]))
        with np.load(out / "outputs.npz") as stored:
            arrays = dict(stored)
        graph = out / "graph.onnx"
        integer = count_integer(graph) if graph.exists() else None
        return Result(json.loads((out / "facts.json").read_text()), arrays, integer)


def count_integer(graph: Path) -> dict[str, int]:
    """Operator -> nodes with integer sums in a graph that ONNX Runtime has rewritten."""
    import onnx

    model = onnx.load(graph)
    counts = collections.Counter(node.op_type for node in model.graph.node)
    return {name: counts[name] for name in INTEGER_OPERATORS if counts[name]}


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
    manifest = read_manifest(bundle)
    if manifest.target.name != name or manifest.precision.done != "int8":
        raise InputError(
            f"{bundle} is {manifest.precision.done} for {manifest.target.name}, expected int8 for "
            f"{name}; build it with: --set 'precision.allowed=[int8]' --target {name}"
        )
    output, golden = manifest.outputs[0].name, manifest.golden.count
    with np.load(bundle / manifest.golden.file) as file:
        tiles = [file[f"image_{n}"] for n in range(golden)]
        stored = [file[f"{output}_{n}"] for n in range(golden)]
    stored = [item.reshape(item.shape[-3:]) for item in stored]
    tiles += centre_tiles(images, manifest)
    cpu, student = CPUS[name], manifest.provenance.student
    result: dict[str, Any] = {
        "target": name,
        "emulated_cpu": cpu.model,
        "dot_product": cpu.dot_product,
        "bundle": manifest.name,
        "student": {key: student[key] for key in ("name", "options", "parameters")},
        "model_sha256": manifest.files[manifest.model],
        "golden_source": manifest.golden.source,
        "images_sha256": sha256_bytes(b"".join(item.tobytes() for item in tiles[golden:])),
    }
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        given = Path(folder) / "tiles.npz"
        np.savez(given, **{f"image_{n}": tile for n, tile in enumerate(tiles)})
        words: list[str | Path] = [bundle, given]
        try:
            x86 = run_child([sys.executable], [REPOSITORY], [*words, "--any-device"], timeout)
        except ChildFailed as err:
            raise InputError(f"{bundle} does not run on this machine: {err}") from err
        python = emulator.interpreter(cpu, Path(folder))
        try:
            arm = run_child([python], [REPOSITORY], words, timeout)
        except ChildFailed as err:
            return {**result, "failed": str(err), "passed": False}
    check_seen(arm.facts, cpu)
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
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Per run, s.")
@click.option("--write", is_flag=True, help="Write benchmarks/results/emulated-arm/.")
def main(
    images: tuple[Path, ...],
    root: Path,
    site: Path,
    fetch: bool,
    given: tuple[str, ...],
    timeout: float,
    write: bool,
) -> None:
    """Compare, print, and end with 1 when Arm and x86 do not agree."""
    root, site = root.resolve(), site.resolve()
    with _one_line():
        bundles = _bundles(given)
        if platform.machine() != "x86_64":
            raise EnvironmentLacksError("compares with x86-64 and must run on such a machine")
        emulator = Emulator.find(root, site)
        if fetch:
            fetch_root(root)
            fetch_site(root, site, ("onnxrt", "geo"))
        results = []
        for name, bundle in bundles.items():
            click.echo(f"{name}: emulating ...", err=True)
            results.append(examine(name, bundle, images, emulator, timeout))
            _print(results[-1])
        passed = all(item["passed"] for item in results)
        click.echo(f"at least {100 * BOUND:.1f} % and verified: {'ok' if passed else 'MISSED'}")
        if write:
            record = {
                "what": "INT8 bundles for Arm boards: same class per cell as x86, and as stored",
                "emulated": "CPU emulated by qemu in user mode, no board; the seconds are those "
                "of the emulator and say nothing about a board",
                "emulator": emulator.version(),
                "x86_runs": "with any_device=True: the graph as it is written, INT8 not fused",
                "bound": BOUND,
                "images": [path.name for path in images],
                "bundles": results,
                "passed": passed,
                "emulated_on": read_environment().model_dump(mode="json"),
            }
            write_json(RECORD, record)
            click.echo(f"written: {RECORD}", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
