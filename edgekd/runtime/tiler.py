"""Runs a model over a scene of any size in a band of rows.

Three stages overlap: reading and normalising in a thread of its own, the model in as many threads
as the backend has streams, and blending with what the caller does (writing) in the caller's. Order
and results are those of a plain loop. A row of windows is worked through in panels, some windows at
a time, each finished when the next is begun. Memory: a tile or two for each stream, a panel of
pixels and of cell probabilities (a window high), and, as wide as the scene, what two rows of
windows share. Nothing depends on the scene's height.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import Blend, Window, blend_weights, padded_size, plan
from edgekd.errors import GateError
from edgekd.runtime.blend import BandBlender, Upsampler, softmax
from edgekd.runtime.pipeline import ahead, spread
from edgekd.runtime.scene import Source

Infer = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]


#: rows that are read in one go, at least; bounds the memory of decoding.
_READ_ROWS = 128
#: columns that are worked on together, at most, where a window is not wider
PANEL_PX = 2048


@dataclass(frozen=True)
class Piece:
    """A finished piece of the map.

    Pieces of a panel come from top to bottom, panels from left to right, and then those of the next
    row of windows: every pixel comes once.

    Attributes:
        y0, x0: first pixel row and column.
        channel: winning channel ``(h, w)`` uint8; meaningless where ``valid`` is False.
        confidence: its probability ``(h, w)`` float32.
        valid: which pixels hold data, ``(h, w)`` bool.
        planes: probabilities of all channels ``(K, h, w)`` as codes, where they are asked for; see
            :class:`~edgekd.runtime.blend.Pixels`.
        windows: rows of windows that are behind, where this is the last piece that they give; a
            run that starts again behind them gives the same pieces from here on. None elsewhere.
    """

    y0: int
    x0: int
    channel: UInt8Array
    confidence: npt.NDArray[np.float32]
    valid: BoolArray
    windows: int | None = None
    planes: UInt8Array | None = None

    @property
    def y1(self) -> int:
        """Row behind the last."""
        return self.y0 + int(self.channel.shape[0])

    @property
    def x1(self) -> int:
        """Column behind the last."""
        return self.x0 + int(self.channel.shape[1])


@dataclass
class TileStats:
    """What a run over a scene did, filled in while it goes on.

    Attributes:
        windows: planned windows; ``run`` and ``skipped`` add up to it.
        run: windows that the model saw.
        skipped: windows without a single pixel of data.
        streams: model calls that ran at once.
        infer_s: time inside the model, s; calls that ran at once all count.
        latencies_s: time of each model call, s, in tile order; a call is a batch of tiles.
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
    batch: int = 1,
    planes: bool = False,
) -> Generator[Piece, None, None]:
    """Yield the map, every pixel exactly once.

    Args:
        source: pixels and validity.
        infer: ``(N, C, tile, tile)`` float32 -> logits ``(N, K, tile/stride, tile/stride)``; called
            in ``streams`` threads, with ``batch`` tiles at most.
        normalize: pixels to engine input.
        geometry: window, overlap and blend.
        stats: filled in as the run proceeds.
        fill: value per channel that replaces pixels without data, uint8.
        progress: called with (windows done, windows planned) after every window.
        confidence: False leaves :attr:`Piece.confidence` undefined, where nobody wants it.
        streams: calls of ``infer`` that run at once.
        behind: rows of windows whose rows of the map are there already (:attr:`Piece.windows` of an
            earlier run); only what comes after them is given, with the same bits. Some of these
            windows are run again, because what follows is blended with them; they are not counted.
        batch: tiles of a call; the last call has what is left.
        planes: whether somebody wants :attr:`Piece.planes`.

    Raises:
        GateError: the model gave NaN or infinity.
    """
    tile, s, classes = geometry.tile_px, geometry.stride_px, geometry.classes
    rows = plan(source.height, source.width, tile, geometry.overlap_px, s)
    groups = _groups(rows[0], source.width, panel_px(source))
    stats.windows = sum(len(row) for row in rows)
    again = _first_needed(rows, behind, s)
    done = sum(map(len, rows[:again]))
    cells, width = tile // s, padded_size(source.width, tile, s) // s
    blender = BandBlender(
        classes,
        width,
        cells,
        blend_weights(cells, -(-geometry.overlap_px // s), geometry.blend),
        _shared(rows) // s,
        max(rows[0][group][-1].x1 - rows[0][group][0].x0 for group in groups) // s,
    )
    blender.begin(rows[again][0].y0 // s)
    upsampler = Upsampler(s, source.height, source.width, width, confidence, planes)
    upsampler.begin(rows[again][0].y0 // s)
    uniform = np.full((classes, cells, cells), 1 / classes, dtype=np.float32)
    stats.streams = streams
    panels = _panels(rows, groups, source, s, again, rows_given(rows, behind, s))
    strip = _Strip(source, fill, tile, _shared(rows), s, panels)
    # alive at once: one batch being filled, one ready, streams + 1 with the workers
    tiles = _prepare(source, strip, panels, normalize, tile)
    batches = ahead(_batches(tiles, (batch, normalize.channels, tile, tile), streams + 3), 1)
    answers = _answer(batches, infer, stats, streams, sum(map(len, rows[again:behind])))
    with contextlib.closing(answers):
        for panel in panels:
            for _ in panel.windows:
                window, logits, valid = next(answers)
                chance = uniform if logits is None else _probabilities(logits, window)
                blender.add(window.y0 // s, window.x0 // s, chance)
                if progress is not None:
                    progress(done + blender.windows, stats.windows)
            assert valid is not None
            area, last = panel.area, panel.row == len(rows) - 1
            blended = blender.advance(panel.next_y // s, panel.next_x // s)
            for y0, x0, channel, best, codes in upsampler.push(blended, last):
                above = max(area.y0 - y0, 0)  # given by an earlier run
                if above < len(channel):
                    y0, y1 = y0 + above, y0 + len(channel)
                    ends = y1 == area.y1 and area.x1 == source.width
                    yield Piece(
                        y0, x0, channel[above:], best[above:],
                        valid[y0 - area.y0 : y1 - area.y0], panel.row + 1 if ends else None,
                        None if codes is None else codes[:, above:],
                    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Panel:
    """Some windows of a row of windows, and what is finished with them.

    Attributes:
        row: number of the row of windows.
        windows: neighbours, from the left.
        area: pixels of the map that can be given behind them.
        next_y, next_x: where the next row, and the next panel, of windows starts; the end of the
            padded scene behind the last.
    """

    row: int
    windows: list[Window]
    area: Window
    next_y: int
    next_x: int


def panel_px(source: Source) -> int:
    """Columns that are worked on together, at most; all where so many are stored together."""
    stored = min(source.block_columns, source.width)
    return source.width if stored == source.width or stored > PANEL_PX else PANEL_PX


def _groups(row: list[Window], width: int, most_px: int) -> list[slice]:
    """Neighbouring windows of a row whose pixels are together at most so wide; one at least."""
    starts = [0]
    for number, window in enumerate(row):
        if number > starts[-1] and min(window.x1, width) - row[starts[-1]].x0 > most_px:
            starts.append(number)
    ends = [*starts[1:], len(row)]
    return [slice(start, end) for start, end in zip(starts, ends, strict=True)]


def _panels(
    rows: list[list[Window]], groups: list[slice], source: Source, stride_px: int, again: int,
    first: int,
) -> list[_Panel]:  # fmt: skip
    """The work in its order, from row of windows ``again`` and pixel row ``first`` on."""
    found = []
    for index, row in enumerate(rows[again:], start=again):
        y0 = max(rows_given(rows, index, stride_px), first)
        y1 = min(rows_given(rows, index + 1, stride_px), source.height)
        next_y = rows[index + 1][0].y0 if index + 1 < len(rows) else row[0].y1
        x0 = 0
        for group in groups:
            last = group.stop == len(row)
            next_x = row[-1].x1 if last else row[group.stop].x0
            x1 = source.width if last else next_x - stride_px  # interpolated with the next
            found.append(_Panel(index, row[group], Window(y0, x0, y1, x1), next_y, next_x))
            x0 = x1
    return found


def _shared(rows: list[list[Window]]) -> int:
    """Pixel rows that two rows of windows share, at most."""
    return max((a[0].y1 - b[0].y0 for a, b in pairwise(rows)), default=0)


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


#: a window, its tile or logits (None without a pixel of data), and with the last window of a panel
#: the validity of its area
_Step = tuple[Window, "npt.NDArray[np.float32] | None", "BoolArray | None"]
#: puts a tile into ``(C, tile, tile)``; None for a window without a pixel of data
_Fill = Callable[[npt.NDArray[np.float32]], None]


def _prepare(
    source: Source, strip: _Strip, panels: list[_Panel], normalize: Normalizer, tile: int
) -> Generator[tuple[Window, _Fill | None, BoolArray | None], None, None]:
    """Read panel after panel; what is yielded fills in a tile, before the next is asked for."""
    for panel in panels:
        strip.move(panel)
        for window in panel.windows:
            pixels, valid = strip.tile(window)
            fill = None
            if not source.masked or valid.any():
                fill = partial(_normalize, normalize, pixels, tile)
            yield window, fill, strip.valid(panel) if window is panel.windows[-1] else None


def _normalize(
    normalize: Normalizer, pixels: UInt8Array, tile: int, out: npt.NDArray[np.float32]
) -> None:
    normalize(_padded(pixels, tile), out=out)


@dataclass(frozen=True)
class _Batch:
    """Windows in their order, and the tiles of those that the model is to see."""

    steps: list[_Step]
    tensor: npt.NDArray[np.float32] | None


def _batches(
    tiles: Generator[tuple[Window, _Fill | None, BoolArray | None], None, None],
    shape: tuple[int, ...],
    buffers: int,
) -> Generator[_Batch, None, None]:
    """Normalise tile after tile into batches, in ``buffers`` tensors in turns.

    A batch ends with its row of windows, so that a run that starts again has the same ones.
    """
    ring = [np.empty(shape, dtype=np.float32) for _ in range(buffers)]
    number = count = 0
    tensor, steps = ring[0], list[_Step]()
    for window, fill, valid in tiles:
        if count and window.y0 != steps[0][0].y0:
            yield _Batch(steps, tensor[:count])
            number, steps, count = number + 1, [], 0
        tensor, place = ring[number % buffers], None
        if fill is not None:
            place = tensor[count]
            fill(place)
            count += 1
        steps.append((window, place, valid))
        if count == shape[0] or not count or len(steps) > 2 * shape[0]:  # empty ones do not wait
            yield _Batch(steps, tensor[:count] if count else None)
            number, steps, count = number + (count > 0), [], 0
    if steps:
        yield _Batch(steps, tensor[:count])


def _answer(
    batches: Generator[_Batch, None, None],
    infer: Infer,
    stats: TileStats,
    streams: int,
    repeated: int,
) -> Generator[_Step, None, None]:
    """Run the model on batch after batch, ``streams`` at once; the first windows do not count."""

    def run(batch: _Batch) -> tuple[_Batch, npt.NDArray[np.float32] | None, float]:
        if batch.tensor is None:
            return batch, None, 0.0
        start = time.perf_counter()
        logits = infer(batch.tensor)
        return batch, logits, time.perf_counter() - start

    number = 0
    with contextlib.closing(spread(batches, run, streams)) as answers:
        for batch, logits, elapsed in answers:
            place = 0
            if logits is not None and number + len(batch.steps) > repeated:
                stats.infer_s += elapsed
                stats.latencies_s.append(elapsed)
            for window, tile, valid in batch.steps:
                if number >= repeated:  # an earlier run counted it
                    stats.run += tile is not None
                    stats.skipped += tile is None
                number += 1
                answer = None
                if tile is not None and logits is not None:
                    answer = logits[place : place + 1]
                    place += 1
                yield window, answer, valid


def _probabilities(logits: npt.NDArray[np.float32], window: Window) -> npt.NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise GateError(
            f"the model gave NaN or infinite logits for the window at row {window.y0}, "
            f"column {window.x0}; its answer is not to be trusted"
        )
    probabilities: npt.NDArray[np.float32] = softmax(logits)[0]
    return probabilities


class _Strip:
    """Pixels of the current panel, in a buffer that is never given up.

    Of the panel before, columns are moved over; of the row of windows above, rows are kept, as wide
    as the scene; the others are read, a few rows at a time. So nothing is read twice. A cell more
    is held at the left and above, where what is given lags behind the windows.
    """

    def __init__(
        self, source: Source, fill: npt.NDArray[np.uint8], tile: int, shared: int, cell: int,
        panels: list[_Panel],
    ) -> None:  # fmt: skip
        self._source, self._fill, self._cell = source, fill, cell
        widest = max(item.windows[-1].x1 - item.windows[0].x0 for item in panels)
        size = min(tile + cell, source.height), min(widest + cell, source.width)
        kept = min(shared + cell, source.height), source.width
        self._pixels = _planes(len(fill), *size)
        self._kept = _planes(len(fill), *kept)
        masked = int(source.masked)
        self._valid: BoolArray = np.empty((size[0] * masked, size[1]), dtype=np.bool_)
        self._kept_valid: BoolArray = np.empty((kept[0] * masked, kept[1]), dtype=np.bool_)
        self._row = -1
        self._y0 = self._x0 = self._x1 = 0  # of the buffer: first row; first column and its end
        self._known = self._keep = (0, 0)  # rows that are kept: from above, and for below

    def move(self, panel: _Panel) -> None:
        """Hold the pixels of a panel; panels come in their order."""
        source, cell = self._source, self._cell
        first, last = panel.windows[0], panel.windows[-1]
        y1, x1 = min(first.y1, source.height), min(last.x1, source.width)
        x0 = max(first.x0 - cell, 0)
        if panel.row != self._row:
            self._row, self._known = panel.row, self._keep
            self._y0, self._x1 = max(first.y0 - cell, 0), 0
            self._keep = (max(panel.next_y - cell, 0), y1)
        elif self._x1 > x0:
            for buffer in self._buffers():
                buffer[:, : self._x1 - x0] = buffer[:, x0 - self._x0 : self._x1 - self._x0]
        self._x0 = x0
        known, columns = self._known, slice(self._x1, x1)
        start = max(known[1], first.y0)
        if columns.start < columns.stop:
            here = slice(self._x1 - x0, x1 - x0)
            pairs = list(zip(self._buffers(), self._buffers(kept=True), strict=True))
            for buffer, kept in pairs:
                held = slice(self._y0 - known[0], known[1] - known[0])
                if known[1] > self._y0:
                    buffer[: known[1] - self._y0, here] = kept[held, columns]
            self._read(Window(start, columns.start, y1, columns.stop))
            if self._keep[1] > self._keep[0]:
                rows = slice(self._keep[0] - self._y0, self._keep[1] - self._y0)
                for buffer, kept in pairs:
                    kept[: rows.stop - rows.start, columns] = buffer[rows, here]
        self._x1 = x1

    def _buffers(self, kept: bool = False) -> list[npt.NDArray[Any]]:
        pixels, valid = (
            (self._kept, self._kept_valid) if kept else (self._pixels, self._valid)
        )  # fmt: skip
        return [pixels, valid] if self._source.masked else [pixels]

    def _read(self, window: Window) -> None:
        source, start = self._source, window.y0
        step = -(-_READ_ROWS // source.block_rows) * source.block_rows
        while start < window.y1:
            end = min(start - start % step + step, window.y1)
            part = Window(start, window.x0, end, window.x1)
            place = self._part(part)
            source.read(part, self._pixels[place])
            if source.masked:
                valid = source.read_valid(part)
                if not valid.all():
                    self._pixels[place][~valid] = self._fill
                self._valid[place] = valid
            start = end

    def _part(self, window: Window) -> tuple[slice, slice]:
        return (
            slice(window.y0 - self._y0, window.y1 - self._y0),
            slice(window.x0 - self._x0, window.x1 - self._x0),
        )

    def tile(self, window: Window) -> tuple[UInt8Array, BoolArray]:
        """Pixels and validity of the part of ``window`` that lies in the scene."""
        y1, x1 = min(window.y1, self._source.height), min(window.x1, self._source.width)
        part = self._part(Window(window.y0, window.x0, y1, x1))
        return self._pixels[part], self._valid[part]

    def valid(self, panel: _Panel) -> BoolArray:
        """Validity of a panel's area."""
        area = panel.area
        if not self._source.masked:
            shape = (max(area.height, 0), max(area.width, 0))
            everything: BoolArray = np.broadcast_to(np.True_, shape)
            return everything
        valid: BoolArray = self._valid[self._part(area)].copy()
        return valid


def _planes(channels: int, rows: int, columns: int) -> UInt8Array:
    """``(rows, columns, channels)``, each channel by itself in memory, as GDAL delivers them."""
    return np.moveaxis(np.empty((channels, rows, columns), dtype=np.uint8), 0, 2)


def _padded(pixels: UInt8Array, tile: int) -> UInt8Array:
    """Mirror a tile that reaches beyond the scene to full size."""
    height, width = pixels.shape[:2]
    if (height, width) == (tile, tile):
        return pixels
    return np.pad(pixels, ((0, tile - height), (0, tile - width), (0, 0)), mode="symmetric")
