"""What two calls at once and CUDA graphs gain with TensorRT, on the board.

    python benchmarks/trt_streams.py BUNDLE [SECONDS]

Runs the engine of a finished bundle on random tiles: one call at a time and two at once, each with
and without graphs, in turns (A B C D A B C D ...); prints the median of the turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from edgekd.errors import EdgeKDError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.trt import TensorRtBackend
from edgekd.runtime.bundle import open_bundle

TURNS = 5


def time_tiles(backend: Backend, threads: int, duration_s: float) -> float:
    """Seconds per tile of ``threads`` that call for at least ``duration_s``."""
    rng = np.random.default_rng(0)
    tiles = {
        name: rng.standard_normal([1 if side is None else side for side in shape]).astype(
            backend.input_dtypes[name]
        )
        for name, shape in backend.input_shapes.items()
    }

    def work(_: int) -> int:
        done, end = 0, time.perf_counter() + duration_s
        while time.perf_counter() < end:
            backend.infer(tiles, stream=threads > 1)
            done += 1
        return done

    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        count = sum(pool.map(work, range(threads)))
        return (time.perf_counter() - start) / count


def main(bundle: Path, duration_s: float) -> None:
    """Print the table."""
    opened = open_bundle(bundle)
    engine = opened.manifest.engine
    if engine is None:
        raise SystemExit(f"error: {bundle} has no engine; type: edgekd finalize {bundle}")
    plan = opened.file(opened.manifest.model)
    with (
        TensorRtBackend(plan, engine.machine, engine.dla_core) as graphs,
        TensorRtBackend(plan, engine.machine, engine.dla_core, cuda_graph=False) as calls,
    ):
        cases = [(backend, threads) for backend in (calls, graphs) for threads in (1, 2)]
        times: list[list[float]] = [[] for _ in cases]
        for _ in range(TURNS):
            for mine, (backend, threads) in zip(times, cases, strict=True):
                mine.append(time_tiles(backend, threads, duration_s / TURNS / len(cases)))
        for mine, (backend, threads) in zip(times, cases, strict=True):
            graph = backend.details["cuda_graph"]
            print(f"{1e3 * statistics.median(mine):9.3f} ms/tile  {threads} at once  graph {graph}")
        for line in graphs.warnings:
            print(f"TensorRT warned: {line}")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60.0)
    except EdgeKDError as err:
        raise SystemExit(f"error: {err}") from err
