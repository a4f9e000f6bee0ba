"""What a scene costs beside its model, and other tools:
``python benchmarks/scene_throughput.py --geodeep PYTHON [--write]``.

1. Ratio. A ViT-Small of random weights on ONNX Runtime, over a real georeferenced image mirrored to
   ``--side`` px. In one process, in turns: the bare engine on as many tiles as the scene has
   windows, and the whole scene from GeoTIFF to class map. "Pixels that the model saw" are windows x
   tile²; in the scene, seen pixels/s must be at least 0.95 of the bare engine's, without overlap
   and with the bundle's own (medians over ``--repeats``). The bare engine makes as many calls at
   once as the scene does; the ratio to one call at a time, with all cores to itself, is shown as
   well, and so are the scene's own pixels/s, which pay for the overlap.
2. Other tools, with the same ONNX file: edgekd, GeoDeep (``--geodeep``: a Python that has it), and
   the loop that people write (read, infer, write, no overlap), each in a process of its own, in
   turns. The file is the bundle's network with what GeoDeep expects around it: pixels / 255 as
   input, answers of the tile's size, its keys in the metadata. Beside them edgekd with the bundle
   itself. Time with and without loading, peak resident memory, whether CRS and transform are kept,
   and the classes: agreement with a whole-array program of the same overlap, cosine
   (``tests/helpers/reference.py``); GeoDeep does not blend, it crops.
3. Truth. The same tools with a model of colours, whose class is known for each pixel, over a scene
   with a corner that is declared to hold no data: right classes, and classes where no data is.
   GeoDeep runs a 5 x 5 median over class indices; its classes without that are shown as well.

Ends with 1 when the bound is missed. ``--student vit_nano --side 768 --repeats 1`` is a trial.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from _records import here

from edgekd.contracts.artifacts import sha256_file, write_json

ROOT = Path(__file__).resolve().parents[1]
CHILDREN = Path(__file__).with_name("_throughput_child.py")
SCENE = ROOT / "calibration" / "neon_canopy" / "yell_528000.tif"
BOUND = 0.95
RECIPES = {"vit_small": ROOT / "engines" / "landcover.yaml",
           "vit_nano": ROOT / "benchmarks" / "distill_gain.yaml"}  # fmt: skip
#: the model of colours: red, green and blue of each class, 0-255
COLOURS = [[90, 110, 70], [150, 140, 120], [40, 60, 50], [200, 200, 190]]
NODATA = 255


def make_scene(path: Path, side: int, corner: int = 0) -> npt.NDArray[np.uint8]:
    """A real image mirrored at its edges, with its own CRS; returns the pixels ``(side, side, 3)``.

    Args:
        path: GeoTIFF to write, tiled, deflate: lossless, so that all see the same.
        side: px.
        corner: side of a corner that holds no data, px; its value is declared.
    """
    import rasterio

    with rasterio.open(SCENE) as data:
        pixels = np.moveaxis(data.read([1, 2, 3]), 0, 2)
        place = {"crs": data.crs, "transform": data.transform}
    more = [(0, max(side - have, 0)) for have in pixels.shape[:2]]
    pixels = np.pad(pixels, [*more, (0, 0)], mode="symmetric")[:side, :side]
    if corner:
        pixels = np.minimum(pixels, NODATA - 1)
        pixels[:corner, :corner] = NODATA
        place["nodata"] = NODATA
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", tiled=True,
        blockxsize=512, blockysize=512, compress="deflate", photometric="rgb", **place,
    ) as data:  # fmt: skip
        data.write(np.moveaxis(pixels, 2, 0))
    return np.ascontiguousarray(pixels)


def vit_bundle(folder: Path, student: str) -> Path:
    """``edgekd build`` of a student with random weights."""
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images
    from tests.helpers.checkpoints import make_checkpoint

    recipe = load_recipe(RECIPES[student], ["precision.allowed=[fp32]", "targets=[x86-cpu]"])
    make_checkpoint(folder / "vit.ckpt", recipe.plain())
    return build(recipe, "x86-cpu", folder / "vit.ckpt", folder / "vit", Images(None)).path


def as_others_want_it(model: Any, manifest: dict[str, Any]) -> Any:
    """The network with ``pixels / 255`` as input and logits of the tile's size as output."""
    from onnx import helper, numpy_helper

    spec, stride = manifest["inputs"][0], manifest["outputs"][0]["stride_px"]
    graph, tile = model.graph, spec["shape"][-1]
    mean, std = (np.array(spec[key], np.float32).reshape(1, -1, 1, 1) for key in ("mean", "std"))
    source, answer = graph.input[0].name, graph.output[0].name
    graph.initializer.extend([
        numpy_helper.from_array(np.float32(255) / std, "_factor"),
        numpy_helper.from_array(-mean / std, "_offset"),
        numpy_helper.from_array(np.array([1, 1, stride, stride], np.float32), "_scales"),
    ])  # fmt: skip
    nodes = list(graph.node)
    first = [helper.make_node("Mul", ["pixels", "_factor"], ["_scaled"]),
             helper.make_node("Add", ["_scaled", "_offset"], [source])]  # fmt: skip
    last = helper.make_node("Resize", [answer, "", "_scales"], ["classes"], mode="linear",
                            coordinate_transformation_mode="half_pixel")  # fmt: skip
    del graph.node[:], graph.input[:], graph.output[:]
    graph.node.extend([*first, *nodes, last])
    count, float32 = len(manifest["classes"]), 1
    graph.input.append(helper.make_tensor_value_info("pixels", float32, ["N", 3, tile, tile]))
    graph.output.append(helper.make_tensor_value_info("classes", float32, ["N", count, tile, tile]))
    return model


def colour_model(tile: int) -> Any:
    """The nearest of :data:`COLOURS`; exact in float32, the first wins at the same distance."""
    from onnx import helper, numpy_helper

    centres = np.array(COLOURS, np.float64)
    # less a common term: 2 c·x - |c|², in units of which neighbours differ by 1/4 at least
    offset = -(centres**2).sum(axis=1) - 0.25 * np.arange(len(centres))
    weights = (2 * centres * 255)[:, :, None, None] / 64
    graph = helper.make_graph(
        [helper.make_node("Conv", ["pixels", "w", "b"], ["classes"], kernel_shape=[1, 1])],
        "colours",
        [helper.make_tensor_value_info("pixels", 1, ["N", 3, tile, tile])],
        [helper.make_tensor_value_info("classes", 1, ["N", len(COLOURS), tile, tile])],
        [numpy_helper.from_array(weights.astype(np.float32), "w"),
         numpy_helper.from_array((offset / 64).astype(np.float32), "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    return model


def colour_truth(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The class of each pixel, in integers."""
    best = np.full(pixels.shape[:2], np.iinfo(np.int64).max)
    truth = np.zeros(pixels.shape[:2], np.uint8)
    for number, centre in enumerate(COLOURS):
        distance = ((pixels.astype(np.int64) - np.array(centre)) ** 2).sum(axis=2)
        truth[distance < best] = number
        best = np.minimum(best, distance)
    return truth


def same_file(folder: Path, model: Any, classes: int, tile: int, overlap: int) -> Path:
    """Metadata that GeoDeep reads, and a bundle of that very file for edgekd.

    Returns:
        Place of the ONNX file, in the bundle's folder.
    """
    import onnx

    from edgekd.contracts.manifest import MANIFEST_NAME
    from edgekd.runtime.session import sealed_json
    from tests.helpers.bundles import make_bundle

    names = {str(index): f"class {index}" for index in range(classes)}
    onnx.helper.set_model_props(model, {
        "model_type": '"Segmentor"', "class_names": json.dumps(names),
        "tiles_overlap": str(100 * overlap / tile),
        "resolution": "1e-9",  # never shrink the scene
        "seg_thresh": "-1e30",  # logits, of which it would set all below to 0
        "seg_small_segment": "0",  # leave small areas; its median filter cannot be switched off
    })  # fmt: skip
    bundle = make_bundle(folder, tile, 1, classes, overlap_px=overlap, name=folder.name, width=1)
    place = bundle / "model.onnx"
    onnx.save(model, place)
    values = json.loads((bundle / MANIFEST_NAME).read_text())
    values.pop("seal", None)
    values["inputs"][0] |= {"name": "pixels", "mean": [0, 0, 0], "std": [255, 255, 255]}
    values["outputs"][0]["name"] = "classes"
    values["classes"] = [
        {"index": index, "name": names[str(index)], "color": f"#{index:06x}"}
        for index in range(classes)
    ]
    # no golden outputs of this file: nothing here asks for them
    values["files"]["model.onnx"] = sha256_file(place)
    (bundle / MANIFEST_NAME).write_text(sealed_json(values), encoding="utf-8")
    return place


def run_child(python: str, *words: object) -> dict[str, Any]:
    """What a child said, with the time from its start to its end."""
    start = time.perf_counter()
    done = subprocess.run(
        [python, str(CHILDREN), *map(str, words)], capture_output=True, text=True, check=False,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if done.returncode:
        raise click.ClickException(f"{words[0]} failed: {done.stderr[-2000:]}")
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**value, "process_s": time.perf_counter() - start}


def judge(
    out: Path, scene: Path, expected: npt.NDArray[np.uint8], index: list[int] | None
) -> dict[str, Any]:
    """Georeference and classes of a map; ``expected`` holds 255 where there is no data."""
    import rasterio

    with rasterio.open(out) as found, rasterio.open(scene) as data:
        kept = {"crs": found.crs == data.crs, "transform": found.transform == data.transform,
                "size": found.shape == data.shape}  # fmt: skip
        values = found.read(1)
    if index is not None:  # class indices back to channels
        table = np.full(256, 255, np.uint8)
        table[index] = range(len(index))
        values = table[values]
    valid = expected != NODATA
    return {
        "kept": all(kept.values()), **kept,
        "right": float((values[valid] == expected[valid]).mean()),
        "classes_without_data": int(np.count_nonzero(values[~valid] != NODATA)),
    }  # fmt: skip


def compare(
    tools: dict[str, list[object]],
    scene: Path,
    expected: dict[str, npt.NDArray[np.uint8]],
    index: dict[str, list[int]],
    repeats: int,
    python: str,
) -> list[dict[str, Any]]:
    """Run tools in turns; medians, and what the last map of each is worth."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in tools}
    for number in range(repeats):
        for name, words in tools.items():
            click.echo(f"{scene.stem}, turn {number + 1}: {name} ...", err=True)
            command = python if str(words[0]).startswith("geodeep") else sys.executable
            out = scene.with_name(f"{re.sub('[^a-z0-9]+', '-', name.lower())}.tif")
            runs[name].append({**run_child(command, *words, scene, out), "out": out})
    rows = []
    for name, found in runs.items():
        row: dict[str, Any] = {"tool": name}
        for key in ("scene_s", "load_s", "process_s", "peak_mib"):
            row[key] = statistics.median(item[key] for item in found)
            row[f"{key}_all"] = [item[key] for item in found]
        row |= {key: found[0][key] for key in ("tiles", "version")}
        row |= judge(found[-1]["out"], scene, expected[name], index.get(name))
        rows.append(row)
    return rows


@click.command(help=__doc__)
@click.option("--student", type=click.Choice(sorted(RECIPES)), default="vit_small")
@click.option("--bundle", type=click.Path(path_type=Path, exists=True), help="Built before.")
@click.option("--side", default=3072, show_default=True, help="Of the scene, px.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--geodeep", default="", help="A Python that has geodeep.")
@click.option("--keep", type=click.Path(path_type=Path), help="Keep the built bundle there.")
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(
    student: str, bundle: Path | None, side: int, repeats: int, geodeep: str, keep: Path | None,
    write: bool,
) -> None:  # fmt: skip
    import onnx

    sys.path.insert(0, str(ROOT))
    load_before = os.getloadavg()
    with tempfile.TemporaryDirectory(prefix="edgekd-throughput-") as name:
        folder = Path(name)
        if bundle is None:
            click.echo(f"building {student} ...", err=True)
            bundle = vit_bundle(folder, student)
        if keep is not None:
            shutil.copytree(bundle, keep)
        manifest = json.loads((bundle / "manifest.json").read_text())
        tile, overlap = manifest["tiling"]["window_px"], manifest["tiling"]["overlap_px"]
        count = len(manifest["classes"])
        scene = folder / "scene.tif"
        make_scene(scene, side)

        click.echo("bare engine and scene in turns ...", err=True)
        ratio = run_child(
            sys.executable, "ratio", bundle, repeats, overlap, scene, folder / "m.tif"
        )

        tools: dict[str, list[object]] = {}
        expected: dict[str, npt.NDArray[np.uint8]] = {}
        for shared in (0, overlap):
            model = as_others_want_it(onnx.load(bundle / manifest["model"]), manifest)
            place = same_file(folder / f"same{shared}", model, count, tile, shared)
            mine = {f"edgekd, overlap {shared}": ["edgekd", place.parent, shared]}
            if geodeep:
                mine[f"GeoDeep, overlap {shared}"] = ["geodeep", place, shared]
            if not shared:
                mine["plain loop"] = ["plain", place, 0]
            click.echo(f"whole arrays, overlap {shared} ...", err=True)
            answers = []
            for kind, start in (("same", place.parent), ("own", bundle)):
                out = folder / f"{kind}{shared}.npy"
                run_child(sys.executable, "reference", start, shared, scene, out)
                answers.append(np.load(out))
            expected |= dict.fromkeys(mine, answers[0])
            mine_own = f"edgekd, its own bundle, overlap {shared}"
            expected[mine_own] = answers[1]
            tools |= mine | {mine_own: ["edgekd", bundle, shared]}
        index = {
            key: [item["index"] for item in manifest["classes"]] for key in tools if "own" in key
        }
        rows = compare(tools, scene, expected, index, repeats, geodeep)

        small = 4 * 256 + 100
        place = same_file(folder / "colours", colour_model(256), len(COLOURS), 256, 32)
        holes = folder / "holes.tif"
        truth = colour_truth(make_scene(holes, small, corner=300))
        truth[:300, :300] = NODATA
        some: dict[str, list[object]] = {"edgekd": ["edgekd", place.parent, 32]}
        if geodeep:
            some["GeoDeep"] = ["geodeep", place, 32]
            some["GeoDeep without its median filter"] = ["geodeep_unfiltered", place, 32]
        some["plain loop"] = ["plain", place, 0]
        exact = compare(some, holes, dict.fromkeys(some, truth), {}, 1, geodeep)

    holds = min(item["engine_ratio"] for item in ratio["overlaps"]) >= BOUND
    report(ratio, rows, exact, side)
    click.echo(f"at least {BOUND}: {'holds' if holds else 'MISSED'}")
    if write:
        folder, environment = here()
        record = {
            "question": "scene pixels/s over bare-engine pixels/s, and beside other tools",
            "command": "python benchmarks/scene_throughput.py --geodeep PYTHON --write"
            + (f" --student {student} --side {side}" if student != "vit_small" else ""),
            "student": student, "weights": "random", "model_sha256": manifest["files"]
            [manifest["model"]], "tile_px": tile, "scene_side_px": side, "scene": SCENE.name,
            "bound": BOUND, "holds": holds, "ratio": ratio, "tools": rows, "truth": exact,
            "load_before": load_before, "cpu": environment.cpu_model,
            "cores": environment.cores_usable, "packages": environment.packages,
        }  # fmt: skip
        place = folder / f"scene_throughput-{student}.json"
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


def report(
    ratio: dict[str, Any], rows: list[dict[str, Any]], exact: list[dict[str, Any]], side: int
) -> None:
    """Three tables."""
    click.echo(
        "| overlap, px | windows | calls at once | seen, Mpx/s | over the bare engine "
        "| over one call at a time | scene's own, Mpx/s |\n" + "|---" * 7 + "|"
    )
    for item in ratio["overlaps"]:
        click.echo(
            f"| {item['overlap_px']} | {item['windows']} | {item['streams']} | "
            f"{item['seen_mpx_per_s']:.3f} | {item['engine_ratio']:.3f} | "
            f"{item['single_ratio']:.3f} | {item['own_mpx_per_s']:.3f} |"
        )
    for title, table, area in (("scene", rows, side**2), ("colours", exact, 0)):
        click.echo(
            f"\n| {title} | tiles | scene, s | loading, s | process, s | Mpx/s | peak, MiB | "
            "CRS and place | classes right | classes without data |\n" + "|---" * 10 + "|"
        )
        for row in table:
            speed = f"{area / row['scene_s'] / 1e6:.3f}" if area else "-"
            click.echo(
                f"| {row['tool']} | {row['tiles']} | {row['scene_s']:.2f} | {row['load_s']:.2f} | "
                f"{row['process_s']:.2f} | {speed} | {row['peak_mib']:.0f} | "
                f"{'kept' if row['kept'] else 'LOST'} | {100 * row['right']:.3f} % | "
                f"{row['classes_without_data']} |"
            )


if __name__ == "__main__":
    main()
