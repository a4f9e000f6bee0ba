"""The work that is measured: calls of the bare engine, several at once, and whole scenes.

Each kind of work comes in blocks, which take turns. Times are those of the monotonic clock, which
samples of power carry too. A backend's call returns when its result is there, so both edges of
every interval are synchronised.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from edgekd.contracts.imageio import UInt8Array
from edgekd.report.latency import LatencySummary, rounded
from edgekd.report.power import Kind, Phase
from edgekd.report.record import (
    Disturbance,
    EngineWindow,
    SceneRun,
    SceneWindow,
    StreamsWindow,
    WarmUp,
)
from edgekd.runtime.session import Session
from edgekd.telemetry.environment import read_environment
from edgekd.telemetry.process import CpuCounters, other_cpu_share, read_cpu, read_frequencies
from edgekd.telemetry.sensors._base import Reading

#: whether power is flat by now, and a clause that says what was seen
Flat = Callable[[float], tuple[bool, str]]

#: change between the medians of the last two quarters of the warm-up that counts as steady.
STEADY_BOUND = 0.05
#: a warm-up that is not steady ends after this many times the asked time.
WARMUP_LIMIT = 5
#: a scene that takes so many guards hides what the lag carries over at its begin: below 1 % of
#: the difference between the work before and this
LONG_SCENE = 20
_MIN_QUARTER = 6
_LEAST_GUARD_S = 0.001
#: between questions whether power is flat, s
_ASK_S = 0.5


@dataclass(frozen=True)
class Pace:
    """How long blocks last.

    Attributes:
        block_s: least time of a block behind its guard, s.
        least: fewest calls of the bare engine in it.
        guard_s: s; 0 where no power is measured.
    """

    block_s: float
    least: int
    guard_s: float = 0.0


class Engine(Protocol):
    """What is called: a session; ``feed`` is whatever its model takes."""

    def infer(self, feed: Any, /) -> Any:
        """Call the model once and wait for the result."""


class Observer(Protocol):
    """Is told how a measurement goes."""

    def step(self, done: int, steps: int) -> None:
        """So many of all steps are done."""

    def phase(self, kind: Kind, seconds: float | None = None) -> None:
        """A phase begins that lasts about so long, s."""

    def called(self, latency_s: float) -> None:
        """The bare engine was called."""

    def reading(self, reading: Reading) -> None:
        """Power was read; comes from the sampler's thread."""


class Silent:
    """An observer that does nothing."""

    def step(self, done: int, steps: int) -> None:
        """See :class:`Observer`."""

    def phase(self, kind: Kind, seconds: float | None = None) -> None:
        """See :class:`Observer`."""

    def called(self, latency_s: float) -> None:
        """See :class:`Observer`."""

    def reading(self, reading: Reading) -> None:
        """See :class:`Observer`."""


def warm_up(
    session: Engine,
    tiles: Sequence[Any],
    warmup_s: float,
    flat: Flat | None = None,
    flat_s: float = 0.0,
    observer: Observer | None = None,
) -> WarmUp:
    """Call the model until the medians of the last two quarters of the calls agree, and power and
    temperature are flat.

    Args:
        warmup_s: least time, s.
        flat: asked with the time since the begin, s; None where no power is measured.
        flat_s: what it looks back, s.
    """
    watcher = observer or Silent()
    latencies: list[float] = []
    least_s = max(warmup_s, 2 * flat_s)
    begin = time.monotonic()
    steady, change = False, float("inf")
    is_flat, seen = True, ""
    asked_s = 0.0
    while True:
        start = time.monotonic()
        session.infer(tiles[len(latencies) % len(tiles)])
        now = time.monotonic()
        latencies.append(now - start)
        watcher.called(now - start)
        quarter = max(_MIN_QUARTER, len(latencies) // 4)
        if len(latencies) < 2 * quarter or now - begin < least_s:
            continue
        last = statistics.median(latencies[-quarter:])
        before = statistics.median(latencies[-2 * quarter : -quarter])
        change = last / before - 1
        steady = abs(change) <= STEADY_BOUND
        at_end = now - begin >= WARMUP_LIMIT * least_s and len(latencies) >= 24
        if flat is not None and (at_end or now - asked_s >= _ASK_S):
            asked_s = now
            is_flat, seen = flat(now - begin)
        if (steady and is_flat) or at_end:
            break
    total_s = time.monotonic() - begin
    verdict = "steady" if steady and is_flat else "not steady"
    return WarmUp(
        total_s=total_s,
        iterations=len(latencies),
        steady=steady and is_flat,
        detail=f"{verdict} after {total_s:.1f} s and {len(latencies)} calls: the medians of the "
        f"last two quarters ({quarter} calls each) differ by {100 * change:+.1f} %; allowed are "
        f"{100 * STEADY_BOUND:.0f} %" + (f"; {seen}" if seen else ""),
        latencies_s=rounded(latencies),
    )


class EngineBlocks:
    """Collects the calls of the bare engine.

    Args:
        tiles: what it is fed in turn, each of ``pixels``.

    Attributes:
        origin_s: begin of the first call, monotonic clock, s.
    """

    def __init__(
        self,
        session: Engine,
        tiles: Sequence[Any],
        pixels: int,
        observer: Observer | None = None,
    ) -> None:
        self._session, self._tiles, self._pixels = session, tiles, pixels
        self._starts: list[float] = []
        self._latencies: list[float] = []
        self._block_n: list[int] = []
        self._duration_s = 0.0
        self._called = (observer or Silent()).called
        self.origin_s = time.monotonic()

    def block(self, pace: Pace) -> list[Phase]:
        """Call the model until the guard is over, then for the time and number of the pace.

        Returns:
            Guard and window, monotonic clock; all calls count for latency.
        """
        done = len(self._latencies)
        begin = time.monotonic()
        if not done:
            self.origin_s = begin
        behind: tuple[int, float] | None = None  # the first call behind the guard
        while True:
            tile = self._tiles[len(self._latencies) % len(self._tiles)]
            start = time.monotonic()
            if behind is None and start - begin >= pace.guard_s:
                behind = len(self._latencies), start
            self._session.infer(tile)
            end = time.monotonic()
            self._starts.append(start - self.origin_s)
            self._latencies.append(end - start)
            self._called(end - start)
            if behind is None:
                continue
            counted = len(self._latencies) - behind[0]
            if end - behind[1] >= pace.block_s and counted >= pace.least:
                break
        self._duration_s += end - begin
        self._block_n.append(len(self._latencies) - done)
        window = Phase(
            kind="engine", start_s=behind[1], end_s=end, tiles=counted,
            pixels=counted * self._pixels,
        )  # fmt: skip
        return [*guard_phase(begin, behind[1]), window]

    def window(self) -> EngineWindow:
        """The record's part."""
        latencies = rounded(self._latencies)
        summary = LatencySummary.of(latencies)
        return EngineWindow(
            tiles=len(self._tiles),
            duration_s=self._duration_s,
            block_n=self._block_n,
            starts_s=rounded(self._starts),
            latencies_s=latencies,
            summary=summary,
            tiles_per_s=1 / summary.mean_s,
            mpx_per_s=self._pixels / 1e6 / summary.mean_s,
        )


def guard_phase(start_s: float, end_s: float) -> list[Phase]:
    """A guard, where it is any time long: phases are stored with microseconds."""
    if end_s - start_s < _LEAST_GUARD_S:
        return []
    return [Phase(kind="guard", start_s=start_s, end_s=end_s)]


class StreamBlocks:
    """Counts calls of the bare engine, several at once."""

    def __init__(self, session: Session, tiles: Sequence[Any], streams: int) -> None:
        self._session, self._tiles, self._streams = session, tiles, streams
        self._calls = 0
        self._duration_s = 0.0
        self._rates: list[float] = []
        for _ in range(2):  # opens what it needs, and makes its memory
            self._together(0.0)

    def _together(self, duration_s: float) -> list[tuple[int, float]]:
        """Calls and their time of every thread; each makes at least one."""

        def work(number: int) -> tuple[int, float]:
            begin, calls = time.monotonic(), 0
            while True:
                tile = self._tiles[(number + calls * self._streams) % len(self._tiles)]
                self._session.infer_stream(tile)
                calls += 1
                elapsed = time.monotonic() - begin
                if elapsed >= duration_s:
                    return calls, elapsed

        with ThreadPoolExecutor(self._streams) as pool:
            return list(pool.map(work, range(self._streams)))

    def block(self, duration_s: float) -> None:
        """Call the model from all threads for at least ``duration_s``."""
        begin = time.monotonic()
        done = self._together(duration_s)
        self._duration_s += time.monotonic() - begin
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


@dataclass(frozen=True)
class Run:
    """One run over the input.

    Attributes:
        start_s: monotonic clock; total_s: of the whole run, infer_s: of the model's calls.
        pixels, area_m2: with data; windows, skipped: with data and without; streams: calls at once.
    """

    start_s: float
    total_s: float
    infer_s: float
    pixels: int
    area_m2: float | None
    windows: int
    skipped: int
    streams: int


class RunBlocks:
    """Runs over the whole input.

    Args:
        fills: whether runs fill the time of a block where no power is measured, too.

    Attributes:
        what: a run does, in words.
    """

    what: str

    def __init__(self, fills: bool = False) -> None:
        self._fills = fills
        self._runs: list[Run] = []

    def run(self) -> Run:
        """Once over the input."""
        raise NotImplementedError

    def block(self, pace: Pace) -> list[Phase]:
        """One run; with a guard, or where runs fill, runs until those that began behind it fill
        the time of the pace. A run that is long beside the guard counts from its begin.

        Returns:
            Guard and window, monotonic clock; all runs count for throughput.
        """
        begin = time.monotonic()
        counted: list[Run] = []
        while not counted or ((pace.guard_s or self._fills) and _span(counted) < pace.block_s):
            run = self.run()
            self._runs.append(run)
            late = run.start_s - begin >= pace.guard_s
            if late or run.total_s >= LONG_SCENE * pace.guard_s:
                counted.append(run)
        areas = [run.area_m2 for run in counted if run.area_m2 is not None]
        end = counted[-1].start_s + counted[-1].total_s
        window = Phase(
            kind="scene", start_s=counted[0].start_s, end_s=end,
            tiles=sum(run.windows for run in counted), pixels=sum(run.pixels for run in counted),
            area_m2=sum(areas) if len(areas) == len(counted) else None,
        )  # fmt: skip
        return [*guard_phase(begin, counted[0].start_s), window]

    def window(self, overlap_px: int, origin_s: float) -> SceneWindow:
        """The record's part; ``origin_s`` is where the record's clock begins."""
        first = self._runs[0]
        total_s = statistics.median(run.total_s for run in self._runs)
        all_s = sum(run.total_s for run in self._runs) * first.streams
        share = sum(run.infer_s for run in self._runs) / all_s
        return SceneWindow(
            what=self.what,
            runs=[
                SceneRun(start_s=run.start_s - origin_s, total_s=run.total_s, infer_s=run.infer_s)
                for run in self._runs
            ],
            pixels_unique=first.pixels,
            area_m2=first.area_m2,
            windows_run=first.windows,
            windows_skipped=first.skipped,
            overlap_px=overlap_px,
            total_s=total_s,
            unique_mpx_per_s=first.pixels / 1e6 / total_s,
            tiles_per_s=first.windows / total_s,
            streams=first.streams,
            engine_share=min(share, 1.0),
        )


class SceneBlocks(RunBlocks):
    """Runs over the whole input: reading, tiling, blending, writing.

    Args:
        source: image or scene; None for ``image``.
        image: ``(H, W, C)`` uint8 in memory, where there is no file.
        bands, overlap_px: see :func:`edgekd.report.measure.measure`.
    """

    def __init__(
        self,
        session: Session,
        source: Path | None,
        image: UInt8Array | None,
        bands: list[int] | None,
        overlap_px: int | None,
    ) -> None:
        super().__init__()
        self._session, self._source, self._image = session, source, image
        self._bands, self._overlap_px = bands, overlap_px
        self.what = (
            "Session.run on the image in memory: windows, model, blending"
            if source is None
            else "Session.run_scene: open, read, windows, model, blending, write a GeoTIFF"
        )

    def run(self) -> Run:
        """See :class:`RunBlocks`."""
        session = self._session
        start = time.monotonic()
        if self._source is None:
            assert self._image is not None
            stats = session.run(self._image, self._overlap_px).stats
            total_s = time.monotonic() - start
            pixels = int(self._image.shape[0] * self._image.shape[1])
            return Run(start, total_s, stats.infer_s, pixels, None, stats.run, stats.skipped,
                        stats.streams)  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="edgekd-bench-") as folder:
            output = Path(folder) / "map.tif"
            start = time.monotonic()
            done = session.run_scene(self._source, output, self._bands, self._overlap_px)
            total_s = time.monotonic() - start
        area = None if done.class_area_m2 is None else sum(done.class_area_m2.values())
        return Run(start, total_s, done.infer_s, done.pixels_valid, area, done.windows_run,
                    done.windows_skipped, done.streams)  # fmt: skip


def _span(runs: list[Run]) -> float:
    return runs[-1].start_s + runs[-1].total_s - runs[0].start_s


class Watch:
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
