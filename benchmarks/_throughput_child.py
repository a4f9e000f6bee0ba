"""One tool over one scene, in a process of its own; started by ``scene_throughput.py``.

The last line on stdout is JSON. Imports are inside, since one of the tools lives in an environment
without edgekd.
"""

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def peak_mib() -> float:
    """Largest resident memory of this process so far."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) / 1024


def edgekd(bundle: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    from edgekd import __version__
    from edgekd.runtime.session import load

    start = time.perf_counter()
    with load(bundle, any_device=True) as session:
        middle = time.perf_counter()
        result = session.run_scene(scene, out, overlap_px=int(overlap), restart=True)
        end = time.perf_counter()
    return {"load_s": middle - start, "scene_s": end - middle, "tiles": result.windows_run,
            "version": f"edgekd {__version__}"}  # fmt: skip


def geodeep(model: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    """What ``geodeep SCENE MODEL --output mask`` does; the overlap stands in the model."""
    from importlib.metadata import version

    import geodeep.geodeep as tool  # type: ignore[import-not-found]
    from geodeep.segmentation import save_mask_to_raster  # type: ignore[import-not-found]

    load_s: list[float] = []
    tiles: list[int] = []
    create, execute = tool.create_session, tool.execute_segmentation

    def timed(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        made = create(*arguments, **options)
        load_s.append(time.perf_counter() - start)
        return made

    def counted(*arguments: Any) -> Any:
        tiles.append(1)
        return execute(*arguments)

    tool.create_session, tool.execute_segmentation = timed, counted
    start = time.perf_counter()
    mask = tool.run(scene, model, output_type="raw")
    save_mask_to_raster(scene, mask, out)
    scene_s = time.perf_counter() - start - load_s[0]
    versions = f"geodeep {version('geodeep')}, onnxruntime {version('onnxruntime')}"
    return {"load_s": load_s[0], "scene_s": scene_s, "tiles": len(tiles), "version": versions}


def geodeep_unfiltered(model: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    """The same without its 5 x 5 median over class indices, which no option of it switches off."""
    import geodeep.geodeep as tool

    tool.median_filter = lambda mask, size: mask
    return geodeep(model, overlap, scene, out)


def plain(model: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    """Read, infer, write: a tile after the other, as most programs have it."""
    import numpy as np
    import onnxruntime as ort
    import rasterio
    from rasterio.windows import Window

    start = time.perf_counter()
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0]
    tile, tiles = source.shape[-1], 0
    middle = time.perf_counter()
    with rasterio.open(scene) as src:
        profile = {**src.profile, "count": 1, "photometric": "minisblack"}
        with rasterio.open(out, "w", **profile) as dst:
            for y in range(0, src.height, tile):
                for x in range(0, src.width, tile):
                    window = Window(x, y, tile, tile)
                    pixels = src.read([1, 2, 3], window=window, boundless=True, fill_value=0)
                    tensor = pixels[None].astype(np.float32) / 255
                    classes = session.run(None, {source.name: tensor})[0][0].argmax(axis=0)
                    height, width = min(tile, src.height - y), min(tile, src.width - x)
                    part = Window(x, y, width, height)
                    dst.write(classes[:height, :width].astype(np.uint8), 1, window=part)
                    tiles += 1
    end = time.perf_counter()
    versions = f"onnxruntime {ort.__version__}, rasterio {rasterio.__version__}"
    return {"load_s": middle - start, "scene_s": end - middle, "tiles": tiles, "version": versions}


def reference(bundle: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    """Channels of the same ONNX file by whole arrays in float64, without edgekd's tiler."""
    import numpy as np
    import onnxruntime as ort
    import rasterio

    from tests.helpers.reference import probabilities

    values = json.loads((Path(bundle) / "manifest.json").read_text())
    session = ort.InferenceSession(Path(bundle) / values["model"],
                                   providers=["CPUExecutionProvider"])  # fmt: skip
    spec, tiling = values["inputs"][0], values["tiling"]

    def model(tile: Any) -> Any:
        return session.run(None, {spec["name"]: tile})[0]

    with rasterio.open(scene) as data:
        image = np.moveaxis(data.read([1, 2, 3]), 0, 2)
    found = probabilities(
        image, np.ones(image.shape[:2], bool), model, len(values["classes"]),
        tiling["window_px"], values["outputs"][0]["stride_px"], int(overlap), tiling["blend"],
        np.array(spec["mean"]), np.array(spec["std"]), np.zeros(3, np.uint8),
    )  # fmt: skip
    np.save(out, found.argmax(axis=0).astype(np.uint8))
    return {}


def ratio(bundle: str, repeats: str, overlap: str, scene: str, out: str) -> dict[str, Any]:
    """The bare engine and the scene in turns, for no overlap and for ``overlap``."""
    import statistics
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from edgekd.contracts.imageio import Raster
    from edgekd.contracts.windows import Window, plan
    from edgekd.runtime.session import load

    rows = []
    with load(bundle, any_device=True) as session:
        geometry = session.geometry(0)
        tile = geometry.tile_px
        with Raster(Path(scene)) as raster:
            height, width = raster.height, raster.width
            pixels = np.asarray(raster.read(Window(0, 0, tile, tile), [1, 2, 3]), np.uint8)
        tensor = session.normalize(pixels)[None]

        def bare(infer: Callable[[Any], Any], count: int, streams: int) -> float:
            """Time of so many tiles, so many at once, s."""
            with ThreadPoolExecutor(streams) as pool:
                start = time.perf_counter()
                for _ in pool.map(lambda _: infer(tensor).shape, range(count)):
                    pass
                return time.perf_counter() - start

        for shared in sorted({0, int(overlap)}):
            geometry = session.geometry(shared)
            infer, streams = session.calls_for(height, width, geometry)
            windows = sum(map(len, plan(height, width, tile, shared, geometry.stride_px)))
            bare(infer, streams, streams)  # warm
            turns = []
            for _ in range(int(repeats)):
                turn = {"bare_s": bare(infer, windows, streams)}
                start = time.perf_counter()
                result = session.run_scene(scene, out, overlap_px=shared, restart=True)
                turn["scene_s"] = time.perf_counter() - start
                turn["single_s"] = (
                    bare(session.infer, windows, 1) if streams > 1 else turn["bare_s"]
                )
                assert result.windows_run == windows
                turns.append(turn)
            scene_s = statistics.median(turn["scene_s"] for turn in turns)
            rows.append({
                "overlap_px": shared, "windows": windows, "streams": streams, "turns": turns,
                "seen_mpx_per_s": windows * tile**2 / scene_s / 1e6,
                "own_mpx_per_s": height * width / scene_s / 1e6,
                "engine_ratio": statistics.median(t["bare_s"] / t["scene_s"] for t in turns),
                "single_ratio": statistics.median(t["single_s"] / t["scene_s"] for t in turns),
                "redundancy": windows * tile**2 / (height * width),
            })  # fmt: skip
    return {"overlaps": rows}


if __name__ == "__main__":
    tools: dict[str, Callable[..., dict[str, Any]]] = {
        item.__name__: item
        for item in (edgekd, geodeep, geodeep_unfiltered, plain, reference, ratio)
    }
    said = tools[sys.argv[1]](*sys.argv[2:])
    print(json.dumps({**said, "peak_mib": peak_mib()}))
