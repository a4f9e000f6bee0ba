"""Runs a model over a scene of any size in a band of rows.

Three stages overlap, each in a thread of its own: reading and normalising, the model with
blending, and bringing rows to pixels (with the caller's writing). Order and results are those of
a plain loop. Memory: one strip of pixels (a window high, the scene wide), a band of cell
probabilities and a few rows of output. Nothing depends on the scene's height.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import Blend, Window, blend_weights, padded_size, plan
from edgekd.errors import GateError
from edgekd.runtime.blend import BandBlender, RowUpsampler, softmax
from edgekd.runtime.pipeline import ahead
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
    """

    y0: int
    channel: UInt8Array
    confidence: npt.NDArray[np.float32]
    valid: BoolArray


@dataclass
class TileStats:
    """What a run over a scene did, filled in while it goes on.

    Attributes:
        windows: planned windows; ``run`` and ``skipped`` add up to it.
        run: windows that the model saw.
        skipped: windows without a single pixel of data.
        infer_s: time inside the model, s.
        latencies_s: time of each model call, s, in tile order.
    """

    windows: int = 0
    run: int = 0
    skipped: int = 0
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
) -> Iterator[Rows]:
    """Yield the map from top to bottom, every pixel row exactly once.

    Args:
        source: pixels and validity.
        infer: ``(1, C, tile, tile)`` float32 -> logits ``(1, K, tile/stride, tile/stride)``.
        normalize: pixels to engine input.
        geometry: window, overlap and blend.
        stats: filled in as the run proceeds.
        fill: value per channel that replaces pixels without data, uint8.
        progress: called with (windows done, windows planned) after every window, in the thread
            of the model.

    Raises:
        GateError: the model gave NaN or infinity.
    """
    rows = plan(
        source.height, source.width, geometry.tile_px, geometry.overlap_px, geometry.stride_px
    )
    stats.windows = sum(len(row) for row in rows)
    tiles = _prepare(source, rows, normalize, geometry.tile_px, fill)
    bands = _blend(tiles, source, rows, infer, geometry, stats, progress)
    upsampler = RowUpsampler(geometry.stride_px, source.height, source.width)
    pending: list[BoolArray] = []
    for cells, valid, last in ahead(bands, 2):
        pending.append(valid)
        for y0, channel, confidence in upsampler.push(cells, last):
            yield Rows(y0, channel, confidence, _take(pending, len(channel)))


#: a window, its normalised tile (None without a pixel of data), and the validity of the pixel
#: rows that its row of windows adds (only with the first window of a row).
_Tile = tuple[Window, "npt.NDArray[np.float32] | None", "BoolArray | None"]
_Band = tuple["npt.NDArray[np.float32]", BoolArray, bool]


def _prepare(
    source: Source,
    rows: list[list[Window]],
    normalize: Normalizer,
    tile: int,
    fill: npt.NDArray[np.uint8],
) -> Generator[_Tile, None, None]:
    """Read and normalise tile after tile."""
    strip = _Strip(source, fill, tile)
    # Two tiles wait, one is in the model and one is being filled.
    ring = [np.empty((1, normalize.channels, tile, tile), dtype=np.float32) for _ in range(4)]
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


def _blend(
    tiles: Generator[_Tile, None, None],
    source: Source,
    rows: list[list[Window]],
    infer: Infer,
    geometry: TilePlan,
    stats: TileStats,
    progress: Progress | None,
) -> Generator[_Band, None, None]:
    """Run the model and blend; yields finished cell rows with the validity of the added rows."""
    tile, s, classes = geometry.tile_px, geometry.stride_px, geometry.classes
    cells = tile // s
    blender = BandBlender(
        classes,
        padded_size(source.width, tile, s) // s,
        cells,
        blend_weights(cells, -(-geometry.overlap_px // s), geometry.blend),
    )
    uniform = np.full((classes, cells, cells), 1 / classes, dtype=np.float32)
    prepared = ahead(tiles, 2)
    for index, row in enumerate(rows):
        added: BoolArray | None = None
        for _ in row:
            window, tensor, valid = next(prepared)
            added = valid if valid is not None else added
            if tensor is None:
                stats.skipped += 1
                probabilities = uniform
            else:
                probabilities = _probabilities(infer, tensor, window, stats)
            blender.add(window.y0 // s, window.x0 // s, probabilities)
            if progress is not None:
                progress(stats.run + stats.skipped, stats.windows)
        last = index == len(rows) - 1
        end = row[0].y1 if last else rows[index + 1][0].y0
        assert added is not None
        yield blender.advance(end // s), added, last


def _probabilities(
    infer: Infer, tensor: npt.NDArray[np.float32], window: Window, stats: TileStats
) -> npt.NDArray[np.float32]:
    start = time.perf_counter()
    logits = infer(tensor)
    elapsed = time.perf_counter() - start
    stats.run += 1
    stats.infer_s += elapsed
    stats.latencies_s.append(elapsed)
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
            rows[:] = self._source.read(window)
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
