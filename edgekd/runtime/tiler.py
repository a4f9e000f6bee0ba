"""Runs a model over a scene of any size in a band of rows.

Three stages overlap: reading and normalising in a thread of its own, the model in as many threads
as the backend has streams, and blending with what the caller does (writing) in the caller's. Order
and results are those of a plain loop. Memory: a tile or two for each stream, one strip of pixels (a
window high, the scene wide), a band of cell probabilities and a few rows of output. Nothing depends
on the scene's height.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import Blend, Window, blend_weights, padded_size, plan
from edgekd.errors import GateError
from edgekd.runtime.blend import BandBlender, RowUpsampler, softmax
from edgekd.runtime.pipeline import ahead, spread
from edgekd.runtime.scene import Source

Infer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]


#: rows that are read in one go, at least; bounds the memory of decoding.
_READ_ROWS = 128


@dataclass(frozen=True)
class Rows:
    """Finished rows of the map.

    Attributes:
        y0: first pixel row.
        channel: winning channel ``(n, W)`` uint8; meaningless where ``valid`` is False.
        confidence: its probability ``(n, W)`` float32.
        valid: which pixels hold data, ``(n, W)`` bool.
        windows: rows of windows that are behind, where these are the last rows that they give; a
            run that starts again behind them gives the same rows from here on. None elsewhere.
    """

    y0: int
    channel: UInt8Array
    confidence: npt.NDArray[np.float32]
    valid: BoolArray
    windows: int | None = None


@dataclass
class TileStats:
    """What a run over a scene did, filled in while it goes on.

    Attributes:
        windows: planned windows; ``run`` and ``skipped`` add up to it.
        run: windows that the model saw.
        skipped: windows without a single pixel of data.
        streams: model calls that ran at once.
        infer_s: time inside the model, s; calls that ran at once all count.
        latencies_s: time of each model call, s, in tile order.
    """

    windows: int = 0
    run: int = 0
    skipped: int = 0
    streams: int = 1
    infer_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TilePlan:
    """Geometry of a run.

    Attributes:
        tile_px: side of the window.
        stride_px: pixels per cell of the model's output.
        classes: channels of the model's output.
        overlap_px: shared pixels of neighbouring windows, at least.
        blend: kind of weights.
    """

    tile_px: int
    stride_px: int
    classes: int
    overlap_px: int
    blend: Blend


def run_tiles(
    source: Source,
    infer: Infer,
    normalize: Normalizer,
    geometry: TilePlan,
    stats: TileStats,
    fill: npt.NDArray[np.uint8],
    progress: Progress | None = None,
    confidence: bool = True,
    streams: int = 1,
    behind: int = 0,
) -> Generator[Rows, None, None]:
    """Yield the map from top to bottom, every pixel row exactly once.

    Args:
        source: pixels and validity.
        infer: ``(1, C, tile, tile)`` float32 -> logits ``(1, K, tile/stride, tile/stride)``; called
            in ``streams`` threads.
        normalize: pixels to engine input.
        geometry: window, overlap and blend.
        stats: filled in as the run proceeds.
        fill: value per channel that replaces pixels without data, uint8.
        progress: called with (windows done, windows planned) after every window.
        confidence: False leaves :attr:`Rows.confidence` undefined, where nobody wants it.
        streams: calls of ``infer`` that run at once.
        behind: rows of windows whose rows of the map are there already (:attr:`Rows.windows` of an
            earlier run); only what comes after them is given, with the same bits. Some of these
            windows are run again, because what follows is blended with them; they are not counted.

    Raises:
        GateError: the model gave NaN or infinity.
    """
    tile, s, classes = geometry.tile_px, geometry.stride_px, geometry.classes
    rows = plan(source.height, source.width, tile, geometry.overlap_px, s)
    stats.windows = sum(len(row) for row in rows)
    first = rows_given(rows, behind, s)
    again = _first_needed(rows, behind, s)
    top = rows[again][0].y0
    skip = s if top else 0  # the first row of cells is there for the next one alone
    cells = tile // s
    blender = BandBlender(
        classes,
        padded_size(source.width, tile, s) // s,
        cells,
        blend_weights(cells, -(-geometry.overlap_px // s), geometry.blend),
    )
    blender.begin(top // s)
    upsampler = RowUpsampler(s, source.height, source.width, confidence)
    upsampler.begin(top // s)
    uniform = np.full((classes, cells, cells), 1 / classes, dtype=np.float32)
    validity: list[BoolArray] = []
    stats.streams = streams
    # alive at once: one tile being filled, one ready, streams + 1 with the workers
    tiles = ahead(_prepare(source, rows[again:], normalize, tile, fill, streams + 3), 1)
    repeated = sum(map(len, rows[again:behind]))
    answers = _answer(tiles, infer, stats, streams, repeated)
    done = sum(map(len, rows[:again]))
    with contextlib.closing(answers):
        for index, row in enumerate(rows[again:], start=again):
            for _ in row:
                window, logits, added = next(answers)
                if added is not None:
                    validity.append(added[skip:])
                    skip = 0
                chance = uniform if logits is None else _probabilities(logits, window)
                blender.add(window.y0 // s, window.x0 // s, chance)
                if progress is not None:
                    progress(done + blender.windows, stats.windows)
            last = index == len(rows) - 1
            end = row[0].y1 if last else rows[index + 1][0].y0
            given = min(rows_given(rows, index + 1, s), source.height)
            for y0, channel, best in upsampler.push(blender.advance(end // s), last):
                y1 = y0 + len(channel)
                valid = _take(validity, len(channel))
                if y1 <= first:
                    continue
                part = slice(max(first - y0, 0), None)
                windows = index + 1 if y1 == given else None
                yield Rows(y0 + (part.start or 0), channel[part], best[part], valid[part], windows)


def rows_given(rows: list[list[Window]], behind: int, stride_px: int) -> int:
    """Pixel rows of the map that the first ``behind`` rows of windows give.

    Up to where the next row of windows starts, less a cell, which is interpolated with what is
    below it.
    """
    if behind == 0:
        return 0
    if behind == len(rows):
        return rows[-1][0].y1
    return rows[behind][0].y0 - stride_px


def _first_needed(rows: list[list[Window]], behind: int, stride_px: int) -> int:
    """The first row of windows that shares a cell with what is still to be given.

    The first row of pixels that is missing is interpolated from the cell above it as well.
    """
    if behind in (0, len(rows)):
        return min(behind, len(rows) - 1)
    cell = rows_given(rows, behind, stride_px) - stride_px
    return next(i for i, row in enumerate(rows) if row[0].y1 > cell)


#: a window, its tile or logits (None without a pixel of data), and the validity of the pixel rows
#: that its row of windows adds (with the first window of a row).
_Step = tuple[Window, "npt.NDArray[np.float32] | None", "BoolArray | None"]


def _prepare(
    source: Source,
    rows: list[list[Window]],
    normalize: Normalizer,
    tile: int,
    fill: npt.NDArray[np.uint8],
    buffers: int,
) -> Generator[_Step, None, None]:
    """Read and normalise tile after tile, into ``buffers`` tensors in turns."""
    strip = _Strip(source, fill, tile)
    shape = (1, normalize.channels, tile, tile)
    ring = [np.empty(shape, dtype=np.float32) for _ in range(buffers)]
    number = 0
    for row in rows:
        added: BoolArray | None = strip.move(row[0].y0, min(row[0].y1, source.height))
        for window in row:
            pixels, valid = strip.tile(window)
            tensor = None
            if not source.masked or valid.any():
                tensor = ring[number % len(ring)]
                number += 1
                normalize(_padded(pixels, tile), out=tensor[0])
            yield window, tensor, added
            added = None


def _answer(
    tiles: Generator[_Step, None, None],
    infer: Infer,
    stats: TileStats,
    streams: int,
    repeated: int,
) -> Generator[_Step, None, None]:
    """Run the model on tile after tile, ``streams`` at once; the first are not counted."""

    def run(step: _Step) -> tuple[_Step, float]:
        window, tensor, added = step
        if tensor is None:
            return step, 0.0
        start = time.perf_counter()
        logits = infer(tensor)
        return (window, logits, added), time.perf_counter() - start

    with contextlib.closing(spread(tiles, run, streams)) as answers:
        for number, (step, elapsed) in enumerate(answers):
            if number < repeated:
                pass  # an earlier run counted it
            elif step[1] is None:
                stats.skipped += 1
            else:
                stats.run += 1
                stats.infer_s += elapsed
                stats.latencies_s.append(elapsed)
            yield step


def _probabilities(logits: npt.NDArray[np.float32], window: Window) -> npt.NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise GateError(
            f"the model gave NaN or infinite logits for the window at row {window.y0}, "
            f"column {window.x0}; its answer is not to be trusted"
        )
    probabilities: npt.NDArray[np.float32] = softmax(logits)[0]
    return probabilities


def _take(pending: list[BoolArray], count: int) -> BoolArray:
    """Cut the first ``count`` rows off a list of consecutive row blocks."""
    first = pending[0]
    if len(first) < count:
        first = np.concatenate(pending)
        del pending[1:]
    taken: BoolArray = first[:count]
    pending[0] = first[count:]
    if not len(pending[0]) and len(pending) > 1:
        del pending[0]
    return taken


class _Strip:
    """Pixels of the current row of windows, in one buffer that is never given up.

    Rows that the next row of windows shares are moved up, not read again; new rows are read a
    few at a time, so that no second strip ever exists.
    """

    def __init__(self, source: Source, fill: npt.NDArray[np.uint8], rows: int) -> None:
        self._source, self._fill = source, fill
        rows = min(rows, source.height)
        planes = np.empty((len(fill), rows, source.width), dtype=np.uint8)
        self._pixels: UInt8Array = np.moveaxis(planes, 0, 2)
        masked = rows if source.masked else 0
        self._valid: BoolArray = np.empty((masked, source.width), dtype=np.bool_)
        self._y0 = self._y1 = 0

    def move(self, y0: int, y1: int) -> BoolArray:
        """Hold the pixel rows ``y0`` to ``y1`` (both only grow); returns validity of new rows."""
        first = start = max(self._y1, y0)
        if start > y0:
            for buffer in (self._pixels, self._valid):
                if len(buffer):
                    buffer[: start - y0] = buffer[y0 - self._y0 : start - self._y0]
        step = -(-_READ_ROWS // self._source.block_rows) * self._source.block_rows
        while start < y1:
            end = min(start - start % step + step, y1)
            window = Window(start, 0, end, self._source.width)
            rows = self._pixels[start - y0 : end - y0]
            self._source.read(window, rows)
            if self._source.masked:
                valid = self._source.read_valid(window)
                if not valid.all():
                    rows[~valid] = self._fill
                self._valid[start - y0 : end - y0] = valid
            start = end
        self._y0, self._y1 = y0, y1
        if self._source.masked:
            added: BoolArray = self._valid[first - y0 : y1 - y0].copy()
            return added
        everything: BoolArray = np.broadcast_to(np.True_, (y1 - first, self._source.width))
        return everything

    def tile(self, window: Window) -> tuple[UInt8Array, BoolArray]:
        """Pixels and validity of the part of ``window`` that lies in the scene."""
        rows = slice(0, self._y1 - self._y0)
        columns = slice(window.x0, min(window.x1, self._source.width))
        return self._pixels[rows, columns], self._valid[rows, columns]


def _padded(pixels: UInt8Array, tile: int) -> UInt8Array:
    """Mirror a tile that reaches beyond the scene to full size."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile, tile):
        return pixels
    return np.pad(pixels, ((0, tile - height), (0, tile - width), (0, 0)), mode="symmetric")
