"""Measures a loaded bundle: bare engine and end to end, in turns.

The engine's blocks and the runs over the input alternate (A B A B ...), so that whatever else
the machine does falls on both. Durations come from ``time.perf_counter``; a backend's call
returns when its result is there, so both edges of every interval are synchronised.
"""

from __future__ import annotations

import datetime
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

import edgekd
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import axis_starts, plan
from edgekd.errors import ImageError, InputError
from edgekd.report.checks import MIN_TILES, Evidence, run_checks
from edgekd.report.record import (
    RATIO_DEFINITION,
    Asked,
    BenchmarkRecord,
    BundleIdentity,
    Disturbance,
    EngineWindow,
    InputUsed,
    LatencySummary,
    Ratio,
    SceneRun,
    SceneWindow,
    StreamsWindow,
    WarmUp,
)
from edgekd.runtime.scene import RasterSource
from edgekd.runtime.session import Session
from edgekd.telemetry.environment import read_environment
from edgekd.telemetry.power import PowerUnavailable, find_power
from edgekd.telemetry.process import (
    CpuCounters,
    other_cpu_share,
    peak_rss_mib,
    read_cpu,
    read_frequencies,
)

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

#: different tiles that the bare engine sees in turn, so that no single one stays in the cache.
TILES = 8
#: change between the medians of the last two quarters of the warm-up that counts as steady.
STEADY_BOUND = 0.05
#: a warm-up that is not steady ends after this many times the asked time.
WARMUP_LIMIT = 5
_MIN_QUARTER = 6


def measure(
    session: Session,
    source: Path | None = None,
    bands: list[int] | None = None,
    *,
    duration_s: float = 10.0,
    warmup_s: float = 2.0,
    scene_runs: int = 3,
    overlap_px: int | None = None,
    progress: Progress | None = None,
    root: Path = Path("/"),
) -> BenchmarkRecord:
    """Measure and judge.

    Args:
        session: a loaded bundle.
        source: image or scene; None measures on synthetic pixels (noise from a fixed seed, two
            tiles square) and says so in the record.
        bands: 1-based bands to feed.
        duration_s: least time of the bare engine's blocks together, s; they also hold at least
            30 calls.
        warmup_s: least warm-up, s; it goes on until latency is steady, at most five times as
            long (or 24 calls where that takes longer).
        scene_runs: runs over the whole input.
        overlap_px: of the runs; the bundle's own if absent.
        progress: called with (steps done, steps in all).
        root: of the file system, for sensors and environment.

    Raises:
        InputError: a duration or number that measures nothing, or an impossible overlap.
        ImageError: the input cannot be read or does not fit the model.
    """
    if duration_s <= 0 or warmup_s < 0 or scene_runs < 1:
        raise InputError(
            f"expected a duration above 0 s, a warm-up of at least 0 s and at least 1 run, "
            f"received {duration_s:g} s, {warmup_s:g} s and {scene_runs}"
        )
    geometry = session.geometry(overlap_px)
    # refuses an impossible overlap now and not after the first block
    axis_starts(geometry.tile_px, geometry.tile_px, geometry.overlap_px, geometry.stride_px)
    environment = read_environment(root)
    steps = 2 * scene_runs + 1
    _tell(progress, 0, steps)
    normalize = Normalizer(session.manifest.inputs[0])
    if source is None:
        image = synthetic_image(2 * geometry.tile_px, session.channels)
        tiles, used = _synthetic_tiles(image, geometry.tile_px, normalize)
    else:
        image = None
        tiles, used = _file_tiles(Path(source), bands, geometry.tile_px, normalize)
    golden_error = session.golden_error()
    warm_up = _warm_up(session, tiles, warmup_s)
    _tell(progress, 1, steps)

    engine = _EngineBlocks(session, tiles)
    streams = session.streams_for(used.height_px, used.width_px, overlap_px)
    concurrent = _StreamBlocks(session, tiles, streams) if streams > 1 else None
    watch = _Watch(root)
    runs = []
    with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
        output = Path(folder) / "map.tif"
        for number in range(scene_runs):
            watch.begin()
            engine.block(duration_s / scene_runs, -(-MIN_TILES // scene_runs))
            if concurrent is not None:
                concurrent.block(duration_s / scene_runs)
            watch.end()
            _tell(progress, 2 + 2 * number, steps)
            watch.begin()
            runs.append(
                _scene_run(session, source, image, output, bands, overlap_px, engine.origin_s)
            )
            watch.end(clock=False)
            _tell(progress, 3 + 2 * number, steps)
    window = engine.window(geometry.tile_px)
    scene = _scene_window(runs, source is None, geometry.overlap_px)
    disturbance = watch.disturbance(environment.load_1min)
    asked = Asked(duration_s=duration_s, warmup_s=warmup_s, scene_runs=scene_runs)
    manifest = session.manifest
    clock = time.get_clock_info("perf_counter")
    checks = run_checks(
        Evidence(
            asked=asked,
            warm_up=warm_up,
            engine=window,
            scene=scene,
            disturbance=disturbance,
            tick_s=clock.resolution,
            monotonic=clock.monotonic,
            target=manifest.target.name,
            target_arch=manifest.target.arch,
            arch=platform.machine(),
            golden_error=golden_error,
            golden_bound=manifest.golden.atol,
        )
    )
    redundancy = scene.windows_run * geometry.tile_px**2 / scene.pixels_unique
    window_streams = concurrent.window(geometry.tile_px) if concurrent else None
    ratio = scene.unique_mpx_per_s / window.mpx_per_s
    return BenchmarkRecord(
        created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        asked=asked,
        bundle=_identity(session),
        environment=environment,
        input=used,
        warm_up=warm_up,
        engine=window,
        engine_streams=window_streams,
        scene=scene,
        ratio=Ratio(
            definition=RATIO_DEFINITION,
            end_to_end_over_engine=ratio,
            end_to_end_over_streams=scene.unique_mpx_per_s / window_streams.mpx_per_s
            if window_streams
            else None,
            redundancy=redundancy,
            tiles_over_engine=ratio * redundancy,
        ),
        disturbance=disturbance,
        peak_rss_mib=round(peak_rss_mib(root), 1),
        power=_power(root),
        checks=checks,
        valid=all(check.status != "fail" for check in checks),
    )


def synthetic_image(side_px: int, channels: int) -> UInt8Array:
    """Uniform noise from seed 0, ``(side, side, channels)`` uint8: no real scene looks like it,
    but a convolution takes the same time for it."""
    return np.random.default_rng(0).integers(0, 256, (side_px, side_px, channels), dtype=np.uint8)


def _tell(progress: Progress | None, done: int, steps: int) -> None:
    if progress is not None:
        progress(done, steps)


def _synthetic_tiles(
    image: UInt8Array, tile_px: int, normalize: Normalizer
) -> tuple[list[FloatArray], InputUsed]:
    side = image.shape[0]
    tiles = [
        normalize(image[w.y0 : w.y1, w.x0 : w.x1])[None]
        for row in plan(side, side, tile_px, 0)
        for w in row
    ]
    name = "synthetic: uniform noise, NumPy default_rng(0)"
    return tiles[:TILES], InputUsed(
        kind="synthetic", name=name, width_px=side, height_px=side, bands=None, sha256=None
    )


def _file_tiles(
    path: Path, bands: list[int] | None, tile_px: int, normalize: Normalizer
) -> tuple[list[FloatArray], InputUsed]:
    """Up to :data:`TILES` tiles with data, spread evenly over the scene.

    Raises:
        ImageError: the input cannot be read, does not fit, or holds no data at all.
    """
    with Raster(path, "auto") as raster:  # the rule of Session.run_scene
        source = RasterSource(raster, bands, normalize.channels)
        windows = [w for row in plan(raster.height, raster.width, tile_px, 0) for w in row]
        tiles: list[FloatArray] = []
        step = max(len(windows) // TILES, 1)
        # the evenly spread ones first, then the rest, for scenes that are mostly without data
        for window in dict.fromkeys([*windows[step // 2 :: step], *windows]):
            inside = type(window)(
                window.y0, window.x0, min(window.y1, raster.height), min(window.x1, raster.width)
            )
            if not source.read_valid(inside).any():
                continue
            pixels = np.empty((inside.height, inside.width, normalize.channels), dtype=np.uint8)
            source.read(inside, pixels)
            pad = [(0, tile_px - pixels.shape[0]), (0, tile_px - pixels.shape[1]), (0, 0)]
            tiles.append(normalize(np.pad(pixels, pad, mode="symmetric"))[None])
            if len(tiles) == TILES:
                break
        used = InputUsed(
            kind="file",
            name=path.name,
            width_px=raster.width,
            height_px=raster.height,
            bands=source.bands,
            sha256=sha256_file(path),
        )
    if not tiles:
        raise ImageError(f"{path} holds no pixel with data, so there is nothing to measure")
    return tiles, used


def _warm_up(session: Session, tiles: list[FloatArray], warmup_s: float) -> WarmUp:
    """Call the model until the medians of the last two quarters of the calls agree."""
    latencies: list[float] = []
    begin = time.perf_counter()
    steady, change = False, float("inf")
    while True:
        start = time.perf_counter()
        session.infer(tiles[len(latencies) % len(tiles)])
        now = time.perf_counter()
        latencies.append(now - start)
        quarter = max(_MIN_QUARTER, len(latencies) // 4)
        if len(latencies) < 2 * quarter or now - begin < warmup_s:
            continue
        last = statistics.median(latencies[-quarter:])
        before = statistics.median(latencies[-2 * quarter : -quarter])
        change = last / before - 1
        steady = abs(change) <= STEADY_BOUND
        if steady or (now - begin >= WARMUP_LIMIT * warmup_s and len(latencies) >= 24):
            break
    total_s = time.perf_counter() - begin
    verdict = "steady" if steady else "not steady"
    return WarmUp(
        total_s=total_s,
        iterations=len(latencies),
        steady=steady,
        detail=f"{verdict} after {total_s:.1f} s and {len(latencies)} calls: the medians of the "
        f"last two quarters ({quarter} calls each) differ by {100 * change:+.1f} %; allowed are "
        f"{100 * STEADY_BOUND:.0f} %",
        latencies_s=_rounded(latencies),
    )


class _EngineBlocks:
    """Collects the calls of the bare engine."""

    def __init__(self, session: Session, tiles: list[FloatArray]) -> None:
        self._session, self._tiles = session, tiles
        self._starts: list[float] = []
        self._latencies: list[float] = []
        self._block_n: list[int] = []
        self._duration_s = 0.0
        self.origin_s = time.perf_counter()

    def block(self, duration_s: float, least: int) -> None:
        """Call the model for at least ``duration_s`` and ``least`` times."""
        done = len(self._latencies)
        begin = time.perf_counter()
        if not done:
            self.origin_s = begin
        while True:
            tile = self._tiles[len(self._latencies) % len(self._tiles)]
            start = time.perf_counter()
            self._session.infer(tile)
            end = time.perf_counter()
            self._starts.append(start - self.origin_s)
            self._latencies.append(end - start)
            if end - begin >= duration_s and len(self._latencies) - done >= least:
                break
        self._duration_s += end - begin
        self._block_n.append(len(self._latencies) - done)

    def window(self, tile_px: int) -> EngineWindow:
        """The record's part."""
        latencies = _rounded(self._latencies)
        summary = LatencySummary.of(latencies)
        return EngineWindow(
            tiles=len(self._tiles),
            duration_s=self._duration_s,
            block_n=self._block_n,
            starts_s=_rounded(self._starts),
            latencies_s=latencies,
            summary=summary,
            tiles_per_s=1 / summary.mean_s,
            mpx_per_s=tile_px**2 / 1e6 / summary.mean_s,
        )


class _StreamBlocks:
    """Counts calls of the bare engine, several at once."""

    def __init__(self, session: Session, tiles: list[FloatArray], streams: int) -> None:
        self._session, self._tiles, self._streams = session, tiles, streams
        self._calls = 0
        self._duration_s = 0.0
        self._rates: list[float] = []
        for _ in range(2):  # opens what it needs, and makes its memory
            self._together(0.0)

    def _together(self, duration_s: float) -> list[tuple[int, float]]:
        """Calls and their time of every thread; each makes at least one."""

        def work(number: int) -> tuple[int, float]:
            begin, calls = time.perf_counter(), 0
            while True:
                tile = self._tiles[(number + calls * self._streams) % len(self._tiles)]
                self._session.infer_stream(tile)
                calls += 1
                elapsed = time.perf_counter() - begin
                if elapsed >= duration_s:
                    return calls, elapsed

        with ThreadPoolExecutor(self._streams) as pool:
            return list(pool.map(work, range(self._streams)))

    def block(self, duration_s: float) -> None:
        """Call the model from all threads for at least ``duration_s``."""
        begin = time.perf_counter()
        done = self._together(duration_s)
        self._duration_s += time.perf_counter() - begin
        self._calls += sum(calls for calls, _ in done)
        self._rates.append(sum(calls / elapsed for calls, elapsed in done))

    def window(self, tile_px: int) -> StreamsWindow:
        """The record's part."""
        rate = statistics.fmean(self._rates)
        return StreamsWindow(
            streams=self._streams,
            calls=self._calls,
            duration_s=self._duration_s,
            tiles_per_s=rate,
            mpx_per_s=rate * tile_px**2 / 1e6,
            block_tiles_per_s=self._rates,
        )


class _Watch:
    """Adds up what other processes did during the measured parts."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: CpuCounters | None = None
        self._parts: list[tuple[float, float]] = []
        self._clock_mhz: list[float] | None = []

    def begin(self) -> None:
        """A measured part begins."""
        self._open = read_cpu(self._root)

    def end(self, clock: bool = True) -> None:
        """It ends; ``clock`` reads the CPU's frequency, which is still that of the load."""
        frequencies = read_frequencies(self._root) if clock else None
        now = read_cpu(self._root)
        if self._open is not None and now is not None and now.at_s > self._open.at_s:
            self._parts.append((now.at_s - self._open.at_s, other_cpu_share(self._open, now)))
        if clock and self._clock_mhz is not None:
            if frequencies is None:
                self._clock_mhz = None
            else:
                self._clock_mhz.append(statistics.fmean(frequencies))

    def disturbance(self, load_before: float | None) -> Disturbance:
        """The record's part."""
        absent = {}
        share = None
        if self._parts:
            share = sum(t * s for t, s in self._parts) / sum(t for t, _ in self._parts)
        else:
            absent["other_cpu_share"] = "/proc/stat shows no CPU time here"
        if self._clock_mhz is None:
            absent["frequency_mhz"] = "no readable cpufreq/scaling_cur_freq on this machine"
        after = read_environment(self._root)
        if load_before is None:
            absent["load_1min_before"] = "/proc/loadavg is not readable"
        if after.load_1min is None:
            absent["load_1min_after"] = after.absent["load_1min"]
        return Disturbance(
            other_cpu_share=share,
            load_1min_before=load_before,
            load_1min_after=after.load_1min,
            frequency_mhz=self._clock_mhz,
            absent=absent,
        )


def _scene_run(
    session: Session,
    source: Path | None,
    image: UInt8Array | None,
    output: Path,
    bands: list[int] | None,
    overlap_px: int | None,
    origin_s: float,
) -> tuple[SceneRun, int, int, int, int]:
    """One run: times, pixels with data, windows run, windows skipped, streams."""
    start = time.perf_counter()
    if source is None:
        assert image is not None
        stats = session.run(image, overlap_px).stats
        total_s = time.perf_counter() - start
        infer_s, pixels = stats.infer_s, int(image.shape[0] * image.shape[1])
        windows, skipped, streams = stats.run, stats.skipped, stats.streams
    else:
        result = session.run_scene(source, output, bands, overlap_px)
        total_s = time.perf_counter() - start
        infer_s, pixels = result.infer_s, result.pixels_valid
        windows, skipped = result.windows_run, result.windows_skipped
        streams = result.streams
    run = SceneRun(start_s=start - origin_s, total_s=total_s, infer_s=infer_s)
    return run, pixels, windows, skipped, streams


def _scene_window(
    runs: list[tuple[SceneRun, int, int, int, int]], synthetic: bool, overlap_px: int
) -> SceneWindow:
    _, pixels, windows, skipped, streams = runs[0]
    total_s = statistics.median(run.total_s for run, *_ in runs)
    total = sum(run.total_s for run, *_ in runs) * streams
    share = sum(run.infer_s for run, *_ in runs) / total
    what = (
        "Session.run on the image in memory: windows, model, blending"
        if synthetic
        else "Session.run_scene: open, read, windows, model, blending, write a GeoTIFF"
    )
    return SceneWindow(
        what=what,
        runs=[run for run, *_ in runs],
        pixels_unique=pixels,
        windows_run=windows,
        windows_skipped=skipped,
        overlap_px=overlap_px,
        total_s=total_s,
        unique_mpx_per_s=pixels / 1e6 / total_s,
        tiles_per_s=windows / total_s,
        streams=streams,
        engine_share=min(share, 1.0),
    )


def _identity(session: Session) -> BundleIdentity:
    manifest = session.manifest
    stride = manifest.outputs[0].stride_px
    assert stride is not None
    return BundleIdentity(
        name=manifest.name,
        title=manifest.title,
        model_sha256=manifest.files[session.model],
        recipe_sha256=manifest.provenance.recipe_sha256,
        checkpoint_sha256=manifest.provenance.checkpoint_sha256,
        data_name=manifest.provenance.data_name,
        student=str(manifest.provenance.student.get("name", "unnamed")),
        precision=session.precision,
        precision_asked=manifest.precision.asked,
        target=manifest.target.name,
        target_arch=manifest.target.arch,
        backend=session.backend.details,
        tile_px=manifest.inputs[0].tile_px,
        stride_px=stride,
        overlap_px=manifest.tiling.overlap_px,
        classes=[item.name for item in manifest.classes],
        gates={gate.name: gate.passed for gate in manifest.gates},
        built_utc=manifest.provenance.created_utc,
    )


def _power(root: Path) -> PowerUnavailable:
    found = find_power(root)
    if isinstance(found, PowerUnavailable):
        return found
    reason = (
        f"sensor {found.info.name} can be read, but edgekd {edgekd.__version__} takes no samples"
    )
    return PowerUnavailable(reason=reason, sensors={found.info.name: "readable, not sampled"})


def _rounded(values: list[float]) -> list[float]:
    """To 0.1 µs, far below what a call takes; keeps a record of 10,000 calls small."""
    return [round(value, 7) for value in values]
