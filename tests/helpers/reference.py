"""The tiler again, written the plain way: whole scene in float64, no bands, no OpenCV.

It shares no code with edgekd: windows, weights, padding and interpolation are worked out here
from their definitions, so that an error has to be made twice to go unseen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Model = Callable[[np.ndarray], np.ndarray]


def starts(size: int, tile: int, overlap: int, stride: int) -> tuple[list[int], int]:
    """First pixels of the windows, and the padded length of the axis."""
    length = max(tile, int(np.ceil(size / stride)) * stride)
    step = tile - int(np.ceil(overlap / stride)) * stride
    gaps = int(np.ceil((length - tile) / step))
    even = [(length - tile) * i / max(gaps, 1) for i in range(gaps + 1)]
    return [int(np.floor(place / stride + 1e-9)) * stride for place in even], length


def flank(cells: int, overlap: int, blend: str) -> np.ndarray:
    """Weights along one axis, cell by cell: sin² of the cell centre over the overlap, a bell of an
    eighth of the window, or next to nothing in the outer half of the overlap."""
    ramp = min(overlap, cells // 2)
    weights = np.ones(cells)
    for i in range(ramp if blend == "cosine" else 0):
        weights[i] = weights[-1 - i] = np.sin((i + 0.5) / ramp * np.pi / 2) ** 2
    for i in range(cells):
        if blend == "gaussian":
            middle = (cells - 1) / 2
            weights[i] = np.exp(-((i - middle) ** 2) / (2 * (cells / 8) ** 2))
        if blend == "crop" and min(i, cells - 1 - i) < ramp // 2:
            weights[i] = 1e-6
    return weights


def bilinear(grid: np.ndarray, stride: int) -> np.ndarray:
    """``(K, h, w)`` cells to pixels; pixel centres at half-integers, edges held."""

    def axis(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = np.clip((np.arange(count * stride) + 0.5) / stride - 0.5, 0, count - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, count - 1), place - low

    y0, y1, fy = axis(grid.shape[1])
    x0, x1, fx = axis(grid.shape[2])
    rows = grid[:, y0] * (1 - fy)[None, :, None] + grid[:, y1] * fy[None, :, None]
    return rows[:, :, x0] * (1 - fx) + rows[:, :, x1] * fx


def probabilities(
    image: np.ndarray,
    valid: np.ndarray,
    model: Model,
    classes: int,
    tile: int,
    stride: int,
    overlap: int,
    blend: str,
    mean: np.ndarray,
    std: np.ndarray,
    fill: np.ndarray,
) -> np.ndarray:
    """Blended probabilities per pixel, ``(K, H, W)`` float64."""
    height, width = valid.shape
    ys, rows = starts(height, tile, overlap, stride)
    xs, columns = starts(width, tile, overlap, stride)
    filled = np.where(valid[:, :, None], image, fill)
    total = np.zeros((classes, rows // stride, columns // stride))
    weight = np.zeros(total.shape[1:])
    one = flank(tile // stride, int(np.ceil(overlap / stride)), blend)
    window = one[:, None] * one[None, :]
    for y in ys:
        for x in xs:
            # mirror by index: 0 1 2 2 1 0 0 1 2 ...
            yy = np.arange(tile) % (2 * (min(y + tile, height) - y))
            xx = np.arange(tile) % (2 * (min(x + tile, width) - x))
            yy = np.minimum(yy, 2 * (min(y + tile, height) - y) - 1 - yy) + y
            xx = np.minimum(xx, 2 * (min(x + tile, width) - x) - 1 - xx) + x
            if valid[y : y + tile, x : x + tile].any():
                pixels = filled[yy][:, xx].astype(np.float64)
                tensor = ((pixels - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
                logits = model(tensor)[0].astype(np.float64)
                power = np.exp(logits - logits.max(axis=0))
                part = power / power.sum(axis=0)
            else:
                part = np.full((classes, tile // stride, tile // stride), 1 / classes)
            at_y = slice(y // stride, (y + tile) // stride)
            at_x = slice(x // stride, (x + tile) // stride)
            total[:, at_y, at_x] += part * window
            weight[at_y, at_x] += window
    return bilinear(total / weight, stride)[:, :height, :width]
