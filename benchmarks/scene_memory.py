"""Does memory stay flat? ``python benchmarks/scene_memory.py [--write]``.

Peak resident memory of ``Session.run_scene``, in a process set up as ``edgekd run`` is, over
generated GeoTIFFs of 5000, 10 000 and 20 000 px a side, each in a process of its own: a backend
that computes almost nothing (so that what is measured is ours), and a ``vit_nano`` of random
weights on ONNX Runtime. "Beside the engine" is the peak less what the process held when the
model had answered once.

Bounds: largest over smallest at most 1.05, and at most 600 MB beside the engine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from _records import here

from edgekd.contracts.artifacts import write_json

ROOT = Path(__file__).resolve().parents[1]
SIDES = (5000, 10_000, 20_000)
MOST_GROWTH, MOST_BYTES = 1.05, 600e6

_CHILD = """
import json, resource, sys, time
import numpy as np
from pathlib import Path
from edgekd.contracts.memory import separate_large_memory
from edgekd.runtime.backends.fake import FakeBackend
from edgekd.runtime.session import load

def status(key):
    for line in open("/proc/self/status"):
        if line.startswith(key):
            return int(line.split()[1]) * 1024

bundle, scene, out, kind, streams = sys.argv[1:6]
separate_large_memory()  # as edgekd run does
session = load(bundle, streams=int(streams), any_device=True)
side = session.manifest.inputs[0].tile_px
if kind == "fake":
    session.backend = FakeBackend(side, len(session.manifest.classes),
                                  session.manifest.outputs[0].stride_px)
tile = np.zeros((1, 3, side, side), np.float32)
session.infer(tile)
if session.backend.streams > 1:
    session.infer_stream(tile)
before = status("VmRSS")
start = time.perf_counter()
result = session.run_scene(scene, out)
print(json.dumps({"before_bytes": before, "peak_bytes": status("VmHWM"),
                  "seconds": round(time.perf_counter() - start, 1),
                  "windows_run": result.windows_run, "streams": result.streams}))
"""


def make_scene(path: Path, side: int) -> None:
    """A GeoTIFF of smooth colours, written and read in tiles."""
    import numpy as np
    import rasterio

    step = 256
    x = np.arange(side)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", tiled=True,
        blockxsize=256, blockysize=256, compress="deflate", zlevel=1, crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 4e5, 0, -10, 5e6), BIGTIFF="IF_SAFER",
    ) as data:  # fmt: skip
        for y0 in range(0, side, step):
            y = np.arange(y0, min(y0 + step, side))[:, None]
            planes = [127 + 120 * np.sin((x + k * y) / (90 + 40 * k)) for k in range(3)]
            rows = np.stack([np.broadcast_to(p, (len(y), side)) for p in planes]).astype(np.uint8)
            data.write(rows, window=rasterio.windows.Window(0, y0, side, len(y)))


def vit_bundle(folder: Path) -> Path:
    """``edgekd build`` of a vit_nano with random weights."""
    sys.path.insert(0, str(ROOT))
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images
    from tests.helpers.checkpoints import make_checkpoint

    recipe = load_recipe(
        ROOT / "benchmarks" / "distill_gain.yaml",
        ["precision.allowed=[fp32]", "targets=[x86-cpu]"],
    )
    make_checkpoint(folder / "vit.ckpt", recipe.plain())
    return build(recipe, "x86-cpu", folder / "vit.ckpt", folder / "vit", Images(None)).path


@click.command(help=__doc__)
@click.option("--sides", default=",".join(map(str, SIDES)), show_default=True)
@click.option("--kinds", default="fake,vit_nano", show_default=True)
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(sides: str, kinds: str, write: bool) -> None:
    rows: list[dict[str, Any]] = []
    wanted = [int(part) for part in sides.split(",")]
    with tempfile.TemporaryDirectory(prefix="edgekd-memory-") as name:
        folder = Path(name)
        bundle = vit_bundle(folder)
        for side in wanted:
            scene = folder / f"{side}.tif"
            make_scene(scene, side)
            for kind in kinds.split(","):
                done = subprocess.run(
                    [sys.executable, "-c", _CHILD, str(bundle), str(scene),
                     str(folder / "map.tif"), kind, "0"],
                    capture_output=True, text=True, cwd=ROOT, check=False,
                )  # fmt: skip
                if done.returncode:
                    raise click.ClickException(done.stderr[-2000:])
                row = {"kind": kind, "side_px": side, **json.loads(done.stdout)}
                row["beside_bytes"] = row["peak_bytes"] - row["before_bytes"]
                rows.append(row)
                click.echo(
                    f"{kind} {side}: peak {row['peak_bytes'] / 1e6:.0f} MB, beside the engine "
                    f"{row['beside_bytes'] / 1e6:.0f} MB, {row['seconds']} s"
                )
            scene.unlink()
    verdict: dict[str, Any] = {}
    for kind in kinds.split(","):
        mine = [row for row in rows if row["kind"] == kind]
        growth = max(r["peak_bytes"] for r in mine) / min(r["peak_bytes"] for r in mine)
        beside = max(r["beside_bytes"] for r in mine)
        verdict[kind] = {
            "growth": round(growth, 4), "beside_bytes": beside,
            "holds": growth <= MOST_GROWTH and beside <= MOST_BYTES,
        }  # fmt: skip
        click.echo(f"{kind}: largest over smallest {growth:.3f} (at most {MOST_GROWTH}), "
                   f"{beside / 1e6:.0f} MB beside the engine (at most {MOST_BYTES / 1e6:.0f}): "
                   + ("holds" if verdict[kind]["holds"] else "MISSED"))  # fmt: skip
    if write:
        folder, environment = here()
        record = {
            "question": "does the memory of a scene depend on its size?",
            "command": "python benchmarks/scene_memory.py --write",
            "rows": rows, "verdict": verdict, "bounds": [MOST_GROWTH, MOST_BYTES],
            "cpu": environment.cpu_model, "packages": environment.packages,
        }  # fmt: skip
        place = folder / "scene_memory.json"
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if all(item["holds"] for item in verdict.values()) else 1)


if __name__ == "__main__":
    main()
