"""Steps that crops of labelled and of unlabelled images are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import BoolArray, UInt8Array
from edgekd.contracts.windows import Window


class Turning(Protocol):
    """Which mirrorings and turns are drawn."""

    flip: bool
    quarter_turn: bool


class Colours(Protocol):
    """Largest change of each property, as in :class:`edgekd.contracts.recipe.AugmentSpec`."""

    brightness: float
    contrast: float
    saturation: float


def draw_side(crop_px: int, low: float, high: float, random: np.random.Generator) -> int:
    """Side of the source of a crop, px, at a magnification drawn log-uniformly in [low, high]."""
    scale = float(np.exp(random.uniform(np.log(low), np.log(high))))
    return max(8, round(crop_px / scale))


def draw_window(
    height: int, width: int, crop_px: int, scale: Sequence[float], random: np.random.Generator
) -> Window:
    """A square source at a random place inside an image of ``height`` x ``width`` px.

    Args:
        height, width: of the image; neither below ``crop_px``.
        crop_px: side that the source is resized to.
        scale: smallest and largest magnification, see ``UnlabeledCrops``.
        random: generator drawn from.
    """
    fits = crop_px / min(height, width)
    low = max(scale[0], fits)
    side = min(draw_side(crop_px, low, max(scale[1], low), random), height, width)
    y = int(random.integers(height - side + 1))
    x = int(random.integers(width - side + 1))
    return Window(y, x, y + side, x + side)


def resized(pixels: UInt8Array, crop_px: int) -> UInt8Array:
    """A square ``(side, side, C)`` as ``(crop_px, crop_px, C)``: area mean down, bilinear up."""
    side = pixels.shape[0]
    if side == crop_px:
        return pixels
    kind = cv2.INTER_AREA if side > crop_px else cv2.INTER_LINEAR
    found = cv2.resize(pixels, (crop_px, crop_px), interpolation=kind)
    return np.asarray(found, dtype=np.uint8).reshape(crop_px, crop_px, pixels.shape[2])


def turned(
    planes: Sequence[UInt8Array], spec: Turning, random: np.random.Generator
) -> list[UInt8Array]:
    """Arrays ``(H, W, ...)`` mirrored with probability 0.5 and turned by 0 to 3 quarters, alike."""
    result = list(planes)
    if spec.flip and random.random() < 0.5:
        result = [plane[:, ::-1] for plane in result]
    if spec.quarter_turn:
        turns = int(random.integers(4))
        result = [np.rot90(plane, turns) for plane in result]
    return result


def recolour(
    pixels: UInt8Array, spec: Colours, tint: float, random: np.random.Generator
) -> UInt8Array:
    """Random gain, contrast around the mean, saturation around grey, and tint.

    Args:
        pixels: ``(H, W, C)`` uint8; returned as it is where nothing may change.
        spec: largest changes; each factor is drawn uniformly from 1 - amount to 1 + amount.
        tint: largest part of 255 added to each channel on its own.
        random: generator that the factors are drawn from.
    """
    if not (spec.brightness or spec.contrast or spec.saturation or tint):
        return pixels
    gain, contrast, saturation = (
        1 + random.uniform(-1, 1) * amount
        for amount in (spec.brightness, spec.contrast, spec.saturation)
    )
    values: npt.NDArray[np.float32] = pixels.astype(np.float32) * np.float32(gain)
    mean = values.mean()
    values -= mean
    values *= np.float32(contrast)
    values += mean
    channels = pixels.shape[2]
    # numpy's mean over an axis this short takes six times as long, and adds in the same order
    total = functools.reduce(np.add, (values[:, :, channel] for channel in range(channels)))
    grey = (total / np.float32(channels))[:, :, None]
    values -= grey
    values *= np.float32(saturation)
    values += grey
    values += random.uniform(-tint, tint, int(channels)).astype(np.float32) * 255
    return np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)


def to_bytes(values: npt.NDArray[Any], low: float, high: float) -> UInt8Array:
    """Pixels of any shape as uint8: ``low`` and ``high`` become 0 and 255, clipped and rounded.

    uint8 is returned as it is; other integers have at most 16 bits.
    """
    if values.dtype == np.uint8:
        return values

    def scale(numbers: npt.NDArray[Any]) -> UInt8Array:
        scaled = (numbers.astype(np.float64) - low) * 255 / (high - low)
        return np.clip(np.rint(np.nan_to_num(scaled)), 0, 255).astype(np.uint8)

    if values.dtype.kind == "f":
        return scale(values)
    least = int(np.iinfo(values.dtype).min)
    table = scale(np.arange(least, np.iinfo(values.dtype).max + 1))
    result: UInt8Array = table[values.astype(np.int32) - least]
    return result


def filled(pixels: UInt8Array, valid: BoolArray | None) -> UInt8Array:
    """``(H, W, C)`` with the mean of its valid pixels where ``valid (H, W)`` is False."""
    if valid is None or valid.all():
        return pixels
    result: UInt8Array = pixels.copy()
    result[~valid] = np.rint(pixels[valid].mean(axis=0)) if valid.any() else 0
    return result
