"""Runs a model over a scene of any size in a band of rows.

Memory: one strip of pixels (a window high, the scene wide), one band of cell probabilities and
a few rows of output. Nothing depends on the scene's height.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import Blend, Window, blend_weights, padded_size, plan
from edgekd.errors import GateError
from edgekd.runtime.blend import BandBlender, RowUpsampler, softmax
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
        progress: called with (windows done, windows planned) after every window.

    Raises:
        GateError: the model gave NaN or infinity.
    """
    tile, s = geometry.tile_px, geometry.stride_px
    rows = plan(source.height, source.width, tile, geometry.overlap_px, s)
    stats.windows = sum(len(row) for row in rows)
    cells = tile // s
    overlap_cells = -(-geometry.overlap_px // s)
    blender = BandBlender(
        geometry.classes,
        padded_size(source.width, tile, s) // s,
        cells,
        blend_weights(cells, overlap_cells, geometry.blend),
    )
    upsampler = RowUpsampler(s, source.height, source.width)
    strip = _Strip(source, fill, tile)
    uniform = np.full((geometry.classes, cells, cells), 1 / geometry.classes, dtype=np.float32)
    tensor = np.empty((1, normalize.channels, tile, tile), dtype=np.float32)
    for index, row in enumerate(rows):
        strip.move(row[0].y0, min(row[0].y1, source.height))
        for window in row:
            pixels, valid = strip.tile(window)
            if valid.any():
                normalize(_padded(pixels, tile), out=tensor[0])
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
                probabilities = softmax(logits)[0]
            else:
                stats.skipped += 1
                probabilities = uniform
            blender.add(window.y0 // s, window.x0 // s, probabilities)
            if progress is not None:
                progress(stats.run + stats.skipped, stats.windows)
        last = index == len(rows) - 1
        end = row[0].y1 if last else rows[index + 1][0].y0
        for y0, channel, confidence in upsampler.push(blender.advance(end // s), last):
            yield Rows(y0, channel, confidence, strip.valid_rows(y0, y0 + len(channel)))


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
        self._y0 = self._y1 = 0
        # Validity reaches back to the first row that is not written yet; without a mask it is one
        # value that looks like an array.
        self._valid: BoolArray = np.zeros((0, source.width), dtype=np.bool_)
        self._valid_y0 = 0
        self._all_valid: BoolArray = np.broadcast_to(np.True_, (source.height, source.width))

    def move(self, y0: int, y1: int) -> None:
        """Hold the pixel rows ``y0`` to ``y1``; both only ever grow."""
        start = max(self._y1, y0)
        if start > y0:
            self._pixels[: start - y0] = self._pixels[y0 - self._y0 : start - self._y0]
        masks = [self._valid]
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
                masks.append(valid)
            start = end
        if self._source.masked:
            self._valid = np.concatenate(masks)
        self._y0, self._y1 = y0, y1

    def tile(self, window: Window) -> tuple[UInt8Array, BoolArray]:
        """Pixels and validity of the part of ``window`` that lies in the scene."""
        rows = slice(window.y0 - self._y0, self._y1 - self._y0)
        columns = slice(window.x0, min(window.x1, self._source.width))
        if not self._source.masked:
            return self._pixels[rows, columns], self._all_valid[window.y0 : self._y1, columns]
        first = window.y0 - self._valid_y0
        return (
            self._pixels[rows, columns],
            self._valid[first : first + self._y1 - window.y0, columns],
        )

    def valid_rows(self, y0: int, y1: int) -> BoolArray:
        """Validity of rows that are written now; rows above ``y0`` are forgotten."""
        if not self._source.masked:
            return self._all_valid[y0:y1]
        self._valid = self._valid[y0 - self._valid_y0 :]
        self._valid_y0 = y0
        return self._valid[: y1 - y0]


def _padded(pixels: UInt8Array, tile: int) -> UInt8Array:
    """Mirror a tile that reaches beyond the scene to full size."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile, tile):
        return pixels
    return np.pad(pixels, ((0, tile - height), (0, tile - width), (0, 0)), mode="symmetric")
