"""Arithmetic of overlapping windows, a band of rows at a time.

Probabilities are blended on the student's own grid of cells (``stride_px`` pixels each) and
brought to pixels once, after blending: 16 times less work and memory for a stride of 4 than
blending pixels, and never class indices.
"""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

#: rows of cells that are brought to pixels in one go; bounds the size of the temporary arrays.
_CHUNK_CELLS = 8


def softmax(logits: FloatArray) -> FloatArray:
    """Probabilities over axis 1 of ``(N, K, h, w)`` logits, float32."""
    shifted: FloatArray = logits - logits.max(axis=1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=1, keepdims=True)
    return shifted


class BandBlender:
    """Weighted mean of window probabilities over one band of cell rows.

    Args:
        classes: number of channels.
        width: cells across the (padded) scene.
        window: cells along a window's side.
        weights: ``(window, window)`` float32, all > 0.

    Windows must arrive with rows of windows from top to bottom; ``windows`` counts them.
    """

    def __init__(self, classes: int, width: int, window: int, weights: FloatArray) -> None:
        self._sum = np.zeros((classes, window, width), dtype=np.float32)
        self._weight = np.zeros((window, width), dtype=np.float32)
        self._weights = weights
        self._window = window
        self._top = 0
        self.windows = 0

    def begin(self, y: int) -> None:
        """Let the first band start at cell row ``y``; the scene above it is done."""
        self._top = y

    def add(self, y: int, x: int, probabilities: FloatArray) -> None:
        """Add a window whose first cell is ``(y, x)``; ``probabilities`` is ``(K, w, w)``.

        Raises:
            ValueError: the window does not start in the first row of the band.
        """
        if y != self._top:
            raise ValueError(f"window starts at cell row {y}, the band at {self._top}")
        self.windows += 1
        part = slice(x, x + self._window)
        self._sum[:, :, part] += probabilities * self._weights
        self._weight[:, part] += self._weights

    def advance(self, y: int) -> FloatArray:
        """Finish the cell rows above ``y`` and move the band down to start there.

        Returns:
            Blended probabilities ``(K, y - old start, width)`` float32.

        Raises:
            ValueError: a cell of those rows was covered by no window.
        """
        count = y - self._top
        weight = self._weight[:count]
        if not (weight > 0).all():
            raise ValueError(f"cell rows {self._top}-{y} are not covered by windows")
        done = self._sum[:, :count] / weight
        keep = self._window - count
        if keep > 0:
            self._sum[:, :keep] = self._sum[:, count:].copy()
            self._weight[:keep] = self._weight[count:].copy()
        self._sum[:, max(keep, 0) :] = 0
        self._weight[max(keep, 0) :] = 0
        self._top = y
        return done


class RowUpsampler:
    """Cell probabilities to pixel classes: bilinear, pixel centres at half-integers.

    The same as ``interpolate(..., mode="bilinear", align_corners=False)`` of the whole grid,
    but fed in bands of rows. Yields ``(y0, channel, confidence)``: first pixel row, winning
    channel ``(n, width_px)`` uint8 (the lower index on ties) and its probability, float32.

    Args:
        stride_px: pixels per cell.
        height_px, width_px: of the scene; what lies beyond (padding) is cut off.
        confidence: False leaves the third value undefined, where nobody wants it.
    """

    def __init__(
        self, stride_px: int, height_px: int, width_px: int, confidence: bool = True
    ) -> None:
        self._stride = stride_px
        self._confidence = confidence
        self._height, self._width = height_px, width_px
        self._held: FloatArray | None = None  # cell rows from the one above self._next on
        self._next = 0

    def begin(self, row: int) -> None:
        """Let the first cells pushed be those of cell row ``row``.

        Below the scene's first row they are taken for what the next one is interpolated with, and
        pixels come from there on.
        """
        self._next = row + 1 if row else 0

    def push(self, rows: FloatArray, last: bool) -> Iterator[tuple[int, UInt8Array, FloatArray]]:
        """Take the next finished cell rows ``(K, n, width)``; ``last`` ends the scene."""
        held = rows[:, :0] if self._held is None else self._held
        size = held.shape[1]

        def cells(start: int, stop: int) -> FloatArray:
            """Rows ``start`` to ``stop`` of what is held followed by what came."""
            new = rows[:, max(start - size, 0) : max(stop - size, 0)]
            return new if start >= size else np.concatenate([held[:, start:stop], new], axis=1)

        total = size + rows.shape[1]
        row = 1 if self._next > 0 else 0
        end = total - (0 if last else 1)
        while row < end:
            stop = min(row + _CHUNK_CELLS, end)
            first = max(row - 1, 0)
            yield from self._chunk(cells(first, min(stop + 1, total)), row - first, stop - row)
            row = stop
        self._held = cells(max(row - 1, 0), total).copy()

    def _chunk(
        self, cells: FloatArray, skip: int, count: int
    ) -> Iterator[tuple[int, UInt8Array, FloatArray]]:
        s = self._stride
        y0 = self._next * s
        self._next += count
        height = min(count * s, self._height - y0)
        if height <= 0:
            return
        if len(cells) == 2:
            # The two add up to 1, so their difference says it all and is resized once.
            difference = self._resized(cells[1] - cells[0], skip, height)
            channel = (difference > 0).view(np.uint8)
            if self._confidence:
                np.abs(difference, out=difference)
                difference *= np.float32(0.5)
                difference += np.float32(0.5)
            yield y0, channel, difference
            return
        best = self._resized(cells[0], skip, height)
        channel = np.zeros((height, self._width), dtype=np.uint8)
        for index, plane in enumerate(cells[1:], start=1):
            part = self._resized(plane, skip, height)
            channel[part > best] = index
            np.maximum(best, part, out=best)
        yield y0, channel, best

    def _resized(self, plane: FloatArray, skip: int, height: int) -> FloatArray:
        """Cells to pixels; without the first ``skip`` cell rows and what lies beyond the scene."""
        s = self._stride
        size = (plane.shape[1] * s, plane.shape[0] * s)
        full = plane if s == 1 else cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)
        rows = full[skip * s : skip * s + height, : self._width]
        return np.array(rows) if s == 1 else np.asarray(rows, dtype=np.float32)
