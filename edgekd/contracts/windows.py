"""Window geometry: which rectangles of a scene the engine sees, and how they are blended.

A *window* is geometry, a *tile* the pixels in it. Everything here is integer arithmetic on
pixel counts; the training side and the runtime both use it, so that a checkpoint and a bundle
are evaluated on the same windows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError

Blend = Literal["cosine", "gaussian", "crop", "constant"]
#: of a window's side, as MONAI and nnU-Net have it
GAUSSIAN_SIGMA = 0.125
#: weight of what is cropped: it counts where no other window says anything
CROPPED = 1e-6


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle in scene pixels; ``y1`` and ``x1`` are exclusive and may exceed the scene."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def height(self) -> int:
        """Rows, px."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Columns, px."""
        return self.x1 - self.x0


def padded_size(size_px: int, window_px: int, align_px: int) -> int:
    """Length of an axis after padding: at least one window, and a multiple of ``align_px``."""
    if size_px < 1:
        raise InputError(f"a scene axis of {size_px} px has nothing to process")
    return max(window_px, -(-size_px // align_px) * align_px)


def axis_starts(size_px: int, window_px: int, overlap_px: int, align_px: int = 1) -> list[int]:
    """First pixels of the windows along one axis.

    As few as overlap by at least ``overlap_px``, spread evenly over the (padded) axis (Isensee et
    al. 2021, nnU-Net), so that no two of them share much more than others.

    Args:
        size_px: length of the scene's axis, at least 1.
        window_px: window length; a multiple of ``align_px``.
        overlap_px: 0 <= overlap < window, rounded up to a multiple of ``align_px``.
        align_px: every start is a multiple of this (the output stride of the student).

    Raises:
        InputError: a length that cannot give a positive step.
    """
    if window_px < 1 or align_px < 1 or window_px % align_px:
        raise InputError(
            f"window of {window_px} px must be a positive multiple of the output stride "
            f"({align_px} px)"
        )
    rounded = -(-overlap_px // align_px) * align_px
    if overlap_px < 0 or rounded >= window_px:
        raise InputError(
            f"overlap must be at least 0 and smaller than the window of {window_px} px to keep a "
            f"positive step (in steps of {align_px} px); received {overlap_px} px"
        )
    length = padded_size(size_px, window_px, align_px)
    room = (length - window_px) // align_px
    gaps = -(-room * align_px // (window_px - rounded))
    return [align_px * (number * room // gaps) for number in range(gaps + 1)] if gaps else [0]


def plan(
    height_px: int, width_px: int, window_px: int, overlap_px: int, align_px: int = 1
) -> list[list[Window]]:
    """Windows that cover a scene, as rows from top to bottom, each from left to right."""
    columns = [(x, x + window_px) for x in axis_starts(width_px, window_px, overlap_px, align_px)]
    rows = [(y, y + window_px) for y in axis_starts(height_px, window_px, overlap_px, align_px)]
    return [[Window(y0, x0, y1, x1) for x0, x1 in columns] for y0, y1 in rows]


def blend_profile(length: int, overlap: int, blend: Blend) -> npt.NDArray[np.float32]:
    """Weights along one axis of a window, ``(length,)`` float32, all > 0, symmetric.

    ``cosine`` rises over ``overlap`` cells as sin² of the cell centre (a Hann flank), so that two
    windows that overlap by exactly ``overlap`` have weights that add up to 1. ``gaussian`` falls
    from the middle with a deviation of :data:`GAUSSIAN_SIGMA` of the window, whatever the overlap
    (Isensee et al. 2021, nnU-Net). ``crop`` leaves half of the overlap out at each side, so that
    windows meet there and nothing is mixed. ``constant`` is 1 everywhere. Weights are never 0, so
    that scene borders, where only one window contributes, stay defined after division by the
    summed weight.
    """
    profile = np.ones(length, dtype=np.float32)
    ramp = min(overlap, length // 2)
    if blend == "cosine" and ramp > 0:
        phase = (np.arange(ramp, dtype=np.float64) + 0.5) / ramp * (np.pi / 2)
        flank = np.sin(phase).astype(np.float32) ** 2
        profile[:ramp] = flank
        profile[length - ramp :] = flank[::-1]
    elif blend == "gaussian":
        place = np.arange(length, dtype=np.float64) - (length - 1) / 2
        profile = np.exp(-0.5 * (place / (GAUSSIAN_SIGMA * length)) ** 2).astype(np.float32)
    elif blend == "crop" and ramp > 1:
        profile[: ramp // 2] = CROPPED
        profile[length - ramp // 2 :] = CROPPED
    return profile


def blend_weights(length: int, overlap: int, blend: Blend) -> npt.NDArray[np.float32]:
    """Separable window weights ``(length, length)`` float32, see :func:`blend_profile`."""
    profile = blend_profile(length, overlap, blend)
    return np.outer(profile, profile).astype(np.float32)
