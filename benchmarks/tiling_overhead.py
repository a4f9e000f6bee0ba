"""What tiling costs: ``python benchmarks/tiling_overhead.py [BUNDLE] [--write]``.

1. Speed. Bare engine and whole scene alternate in one run (``edgekd.report.measure``), once
   without overlap and once with the bundle's own. Without overlap, and with a scene side that is
   a multiple of the tile, every pixel goes through the model once, and scene pixels/s over
   bare-engine pixels/s (one call after the other, each on the whole device) must be at least
   0.90. The ratio to a bare engine with as many calls at once as the scene makes is shown too.
   With overlap the same pixels go through the model several times; that factor is geometry, and
   is shown beside the figure without being hidden.
2. Memory. Peak resident memory of a run over 4096² and 8192² pixels, each in its own process,
   may differ by 10 % at most.

The scenes are a mirrored mosaic of ``--image`` (so that neighbouring parts join). Without BUNDLE
it is the one that ``make demo`` left.
Ends with 1 when a bound is missed.
"""

from __future__ import annotations

import json
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

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.imageio import Raster, gdal_environment
from edgekd.report.measure import measure
from edgekd.report.plan import Plan
from edgekd.report.record import BenchmarkRecord
from edgekd.runtime.session import load
from edgekd.telemetry.environment import read_environment
from edgekd.telemetry.process import peak_rss_mib

#: what the runtime promises.
SPEED_BOUND = 0.90
MEMORY_BOUND = 0.10
SIDES_PX = (4096, 8192)
_BLOCK_PX = 512
_ROOT = Path(__file__).resolve().parent.parent
#: what is measured when nothing else is named: the demo's bundle and scene.
DEMO = _ROOT / "out" / "demo" / "bundle"
SCENE = _ROOT / "calibration" / "neon_canopy" / "yell_528000.tif"


def texture(image: Path | None, bands: list[int] | None) -> npt.NDArray[np.uint8]:
    """Pixels ``(h, w, 3)`` to fill scenes with: an image, or noise from seed 0, 1024² px."""
    if image is None:
        return np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    with Raster(image) as raster:
        return np.asarray(raster.read_all(raster.choose_bands(bands, 3)), dtype=np.uint8)


def write_scene(path: Path, side_px: int, pixels: npt.NDArray[np.uint8]) -> None:
    """A tiled 8-bit RGB GeoTIFF of ``side_px`` squared, ``pixels`` mirrored at every seam."""
    height, width = pixels.shape[:2]

    def mirrored(start: int, stop: int, size: int) -> npt.NDArray[np.int64]:
        index = np.arange(start, stop) % (2 * size)
        return np.where(index < size, index, 2 * size - 1 - index)

    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 3, "height": side_px, "width": side_px,
        "tiled": True, "blockxsize": _BLOCK_PX, "blockysize": _BLOCK_PX,
        "photometric": "rgb", "crs": "EPSG:32618",
    }  # fmt: skip
    columns = mirrored(0, side_px, width)
    with gdal_environment() as rasterio:
        profile["transform"] = rasterio.transform.from_origin(400000, 3800000, 0.5, 0.5)
        with rasterio.open(path, "w", **profile) as dataset:
            for row in range(0, side_px, _BLOCK_PX):
                stop = min(row + _BLOCK_PX, side_px)
                rows = pixels[mirrored(row, stop, height)][:, columns]
                window = rasterio.windows.Window(0, row, side_px, stop - row)
                dataset.write(np.moveaxis(rows, 2, 0), window=window)


def run_once(bundle: Path, scene: Path, any_device: bool) -> dict[str, Any]:
    """Run a scene in this process; its peak memory and time."""
    with tempfile.TemporaryDirectory() as folder, load(bundle, any_device=any_device) as session:
        start = time.perf_counter()
        result = session.run_scene(scene, Path(folder) / "map.tif")
        total_s = time.perf_counter() - start
    return {
        "side_px": result.width,
        "windows": result.windows_run,
        "total_s": total_s,
        "peak_rss_mib": peak_rss_mib(),
    }


def run_apart(bundle: Path, scene: Path, any_device: bool) -> dict[str, Any]:
    """:func:`run_once` in a fresh process, so that nothing before it counts."""
    command = [sys.executable, __file__, str(bundle), "--only", str(scene)]
    command += ["--any-device"] if any_device else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def speed(record: BenchmarkRecord) -> dict[str, Any]:
    """Figures of one measurement; block by block, so that drift between blocks shows."""
    engine, scene = record.engine, record.scene
    tile_px2 = record.bundle.tile_px**2
    streams = record.engine_streams
    ratios, first = [], 0
    for count, run in zip(engine.block_n, scene.runs, strict=True):
        mean_s = statistics.fmean(engine.latencies_s[first : first + count])
        ratios.append(scene.pixels_unique / run.total_s / (tile_px2 / mean_s))
        first += count
    return {
        "overlap_px": scene.overlap_px,
        "scene_over_engine": record.ratio.end_to_end_over_engine,
        "scene_over_streams": record.ratio.end_to_end_over_streams,
        "pairs": ratios,
        "pairs_median": statistics.median(ratios),
        "redundancy": record.ratio.redundancy,
        "tiles_over_engine": record.ratio.tiles_over_engine,
        "engine_share": scene.engine_share,
        "engine_p50_s": engine.summary.p50_s,
        "engine_mpx_per_s": engine.mpx_per_s,
        "streams": scene.streams,
        "engine_streams_mpx_per_s": streams.mpx_per_s if streams else None,
        "scene_unique_mpx_per_s": scene.unique_mpx_per_s,
        "runs_s": [run.total_s for run in scene.runs],
        "other_cpu_share": record.disturbance.other_cpu_share,
        "valid": record.valid,
        "failed": [check.name for check in record.failed()],
    }


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), default=DEMO)
@click.option("--image", type=click.Path(path_type=Path), default=SCENE, show_default=True,
              help="Texture of the scenes.")  # fmt: skip
@click.option("--bands", help="1-based bands of --image, e.g. 1,2,3.")
@click.option(
    "--tiles", type=click.IntRange(min=2), default=6, show_default=True,
    help="Side of the scene for the speed, in tiles.",
)  # fmt: skip
@click.option("--seconds", type=float, default=15.0, show_default=True)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--skip-memory", is_flag=True, help="Leave out the 4096² and 8192² scenes.")
@click.option("--any-device", is_flag=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--only", type=click.Path(path_type=Path), hidden=True)
def main(
    bundle: Path,
    image: Path | None,
    bands: str | None,
    tiles: int,
    seconds: float,
    runs: int,
    skip_memory: bool,
    any_device: bool,
    write: bool,
    as_json: bool,
    only: Path | None,
) -> None:
    """Measure, print, and end with 1 when a bound is missed."""
    if only is not None:
        click.echo(json.dumps(run_once(bundle, only, any_device)))
        return
    chosen = [int(part) for part in bands.split(",")] if bands else None
    pixels = texture(image, chosen)
    speeds: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="edgekd-tiling-") as folder:
        scene = Path(folder) / "scene.tif"
        with load(bundle, any_device=any_device) as session:
            write_scene(scene, tiles * session.tiling.window_px, pixels)
            name, model = session.manifest.name, session.manifest.files[session.manifest.model]
            for overlap_px in (0, session.tiling.overlap_px):
                click.echo(f"speed, overlap {overlap_px} px ...", err=True)
                record = measure(
                    session,
                    scene,
                    plan=Plan(duration_s=seconds, repeats=runs, overlap_px=overlap_px),
                )
                speeds.append(speed(record))
        for side_px in () if skip_memory else SIDES_PX:
            click.echo(f"memory, {side_px}² px ...", err=True)
            write_scene(scene, side_px, pixels)
            memory.append(run_apart(bundle, scene, any_device))
    growth = memory[1]["peak_rss_mib"] / memory[0]["peak_rss_mib"] - 1 if memory else None
    # A measurement that was disturbed proves nothing, whichever way it points.
    passed_speed = speeds[0]["valid"] and speeds[0]["scene_over_engine"] >= SPEED_BOUND
    passed_memory = growth is None or abs(growth) <= MEMORY_BOUND
    result = {
        "bundle": name,
        "model_sha256": model,
        "texture": image.name if image else "noise, seed 0",
        "scene_side_tiles": tiles,
        "speed_bound": SPEED_BOUND,
        "speed": speeds,
        "memory_bound": MEMORY_BOUND,
        "memory": memory,
        "memory_growth": growth,
        "passed": passed_speed and passed_memory,
        "environment": read_environment().model_dump(mode="json"),
    }
    if as_json:
        click.echo(json.dumps(result, indent=2))
    else:
        _print(result, passed_speed, passed_memory)
    if write:
        path = here()[0] / f"tiling_overhead-{name}.json"
        write_json(path, result)
        click.echo(f"written: {path}", err=True)
    sys.exit(0 if result["passed"] else 1)


def _print(result: dict[str, Any], passed_speed: bool, passed_memory: bool) -> None:
    for item in result["speed"]:
        pairs = " ".join(f"{ratio:.3f}" for ratio in item["pairs"])
        click.echo(
            f"overlap {item['overlap_px']} px: scene {item['scene_unique_mpx_per_s']:.3f} Mpx/s "
            f"over engine {item['engine_mpx_per_s']:.3f} Mpx/s = {item['scene_over_engine']:.3f} "
            f"(pairs {pairs}); tile pixels / scene pixels {item['redundancy']:.3f}, tiles end to "
            f"end over engine {item['tiles_over_engine']:.3f}"
        )
        if item["engine_streams_mpx_per_s"] is not None:
            click.echo(
                f"  over engine with {item['streams']} calls at once "
                f"{item['engine_streams_mpx_per_s']:.3f} Mpx/s = {item['scene_over_streams']:.3f}"
            )
        if item["failed"]:
            click.echo(f"  NOT VALID: {', '.join(item['failed'])}")
    click.echo(f"at least {SPEED_BOUND:.2f} without overlap: {'ok' if passed_speed else 'MISSED'}")
    for item in result["memory"]:
        click.echo(
            f"{item['side_px']}² px: peak {item['peak_rss_mib']:.0f} MiB, {item['total_s']:.1f} s"
        )
    if result["memory_growth"] is not None:
        verdict = "ok" if passed_memory else "MISSED"
        click.echo(
            f"{100 * result['memory_growth']:+.1f} %, allowed {100 * MEMORY_BOUND:.0f} %: {verdict}"
        )


if __name__ == "__main__":
    main()
