"""Spatial blocks: which pixels of a scene train, validate and test, with a gap between them.

Neighbouring pixels of a scene are nearly the same pixel, so a split by random pixels tests on what
was trained on. Here whole blocks are dealt to folds, and what lies within the buffer of another
part is used for nothing (block cross-validation, Roberts et al. 2017, Ecography 40).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.schema import Document
from edgekd.errors import DatasetError

UInt8Array = npt.NDArray[np.uint8]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: values of a map of parts; BUFFER is used for nothing
TRAIN, VAL, TEST, BUFFER = 0, 1, 2, 3
PART_NAMES = {"train": TRAIN, "val": VAL, "test": TEST}
#: deals among which a stratified one is chosen
_DEALS = 300
#: target value without a label; that of :mod:`edgekd.contracts.labelled`, which imports recipes
_IGNORE = 255


class BlockSpec(Document):
    """Spatial block cross-validation within every scene.

    Attributes:
        side_px: largest side of a block; blocks are spread evenly, so that none is a sliver.
        buffer_px: pixels at most so far (Chebyshev distance) from a test pixel neither train nor
            validate, nor do any train so near a validation pixel; at least what a network sees
            beyond a pixel, where maps are judged by pixels.
        folds: number of groups that the blocks are dealt to; each is the test once.
        fold: which group is the test here, counted from 0.
        val: number of further groups that validate.
        seed: of the deal.
        stratified: choose, among 300 deals, the one in which the classes are spread over the folds
            most evenly; it looks at the labels of all blocks, those of the test too, for the deal
            alone. Without, the first deal stands.
    """

    side_px: int = pydantic.Field(ge=1)
    buffer_px: int = pydantic.Field(ge=0)
    folds: int = pydantic.Field(ge=2)
    fold: int = pydantic.Field(default=0, ge=0)
    val: int = pydantic.Field(default=1, ge=0)
    seed: int = pydantic.Field(default=0, ge=0)
    stratified: bool = True

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> BlockSpec:
        if self.fold >= self.folds:
            raise ValueError(
                f"fold is {self.fold}, but {self.folds} folds count from 0 to {self.folds - 1}"
            )
        if self.folds - 1 - self.val < 1:
            raise ValueError(
                f"of {self.folds} folds one tests and {self.val} validate; none is left to train"
            )
        return self


def deal(
    height: int,
    width: int,
    spec: BlockSpec,
    target: UInt8Array | None = None,
    *,
    salt: int = 0,
) -> UInt8Array:
    """Fold of every pixel, ``(height, width)`` uint8; the same for every ``spec.fold``.

    Args:
        height, width: of the scene, px.
        spec: blocks.
        target: ``(height, width)`` channel numbers, 255 without a label; with it, and
            ``spec.stratified``, the deal that spreads the classes most evenly is taken: first that
            as few (class, fold) pairs as may be are empty, then the least squared difference of
            the folds' shares of each class.
        salt: tells scenes apart that share a seed.

    Raises:
        DatasetError: fewer blocks than folds.
    """
    rows, columns = _edges(height, spec.side_px), _edges(width, spec.side_px)
    blocks = rows[-1] * (columns[-1] + 1) + columns[-1] + 1 if height and width else 0
    if blocks < spec.folds:
        raise DatasetError(
            f"blocks of {spec.side_px} px cut a scene of {width}x{height} px into {blocks}, fewer "
            f"than the {spec.folds} folds; give a smaller data.blocks.side_px or fewer folds"
        )
    number: IntArray = rows[:, None] * (columns[-1] + 1) + columns[None, :]
    random = np.random.default_rng([spec.seed, salt])
    tries = _DEALS if spec.stratified and target is not None else 1
    even = np.arange(blocks) % spec.folds
    deals = [random.permutation(even) for _ in range(tries)]
    best = 0
    if tries > 1 and target is not None:
        counts = _counts(number, target, int(blocks))
        scores = [_unevenness(counts, folds, spec.folds) for folds in deals]
        best = min(range(tries), key=scores.__getitem__)
    dealt: UInt8Array = deals[best].astype(np.uint8)[number]
    return dealt


def assign(
    height: int,
    width: int,
    spec: BlockSpec,
    target: UInt8Array | None = None,
    *,
    salt: int = 0,
) -> UInt8Array:
    """Part of every pixel, ``(height, width)`` uint8: TRAIN, VAL, TEST or BUFFER.

    Over the folds every pixel is TEST exactly once. Validation are the folds after the test's.
    What is near is measured from pixels that are used: a block's pixels that fell to the test's
    buffer keep no distance of their own.

    Args:
        height, width, spec, target, salt: see :func:`deal`.

    Raises:
        DatasetError: fewer blocks than folds, or the buffer leaves no pixel to train on, or none
            to validate on.
    """
    folds = deal(height, width, spec, target, salt=salt)
    parts = np.full((height, width), TRAIN, dtype=np.uint8)
    for step in range(1, spec.val + 1):
        parts[folds == (spec.fold + step) % spec.folds] = VAL
    test = folds == spec.fold
    parts[grown(test, spec.buffer_px)] = BUFFER
    parts[test] = TEST
    near = grown(parts == VAL, spec.buffer_px) & (parts == TRAIN)
    parts[near] = BUFFER
    for name, part in (("train", TRAIN), ("val", VAL)):
        if (part == TRAIN or spec.val) and not (parts == part).any():
            raise DatasetError(
                f"fold {spec.fold} of blocks of {spec.side_px} px with a buffer of "
                f"{spec.buffer_px} px leaves no {name} pixel in a scene of {width}x{height} px; "
                "give larger data.blocks.side_px or a smaller buffer_px"
            )
    return parts


def grown(mask: BoolArray, by_px: int) -> BoolArray:
    """Pixels at most ``by_px`` (Chebyshev distance) from one that is set, those included."""
    found = np.asarray(mask, dtype=np.bool_)
    for axis in (0, 1):
        size = found.shape[axis]
        total = np.concatenate(
            [np.zeros_like(found.take([0], axis), dtype=np.int64), found.cumsum(axis)], axis
        )
        place = np.arange(size)
        last = np.minimum(place + by_px + 1, size)
        first = np.maximum(place - by_px, 0)
        found = total.take(last, axis) > total.take(first, axis)
    return found


def _edges(length: int, side_px: int) -> IntArray:
    """Number of the block of each pixel along an axis."""
    count = -(-length // side_px)
    return np.arange(length, dtype=np.int64) * count // max(length, 1)


def _counts(number: IntArray, target: UInt8Array, blocks: int) -> IntArray:
    """Labelled pixels ``(blocks, classes that occur)``."""
    known = target != _IGNORE
    classes, channel = np.unique(target[known], return_inverse=True)
    flat = number[known] * len(classes) + channel
    counts = np.bincount(flat, minlength=blocks * len(classes))
    return counts.reshape(blocks, len(classes)).astype(np.int64)


def _unevenness(counts: IntArray, folds: IntArray, count: int) -> tuple[int, float]:
    """(empty pairs of class and fold, squared difference from even shares): less is better."""
    per_fold = np.stack([counts[folds == fold].sum(0) for fold in range(count)])
    shares = per_fold / np.maximum(per_fold.sum(0), 1)
    return int((per_fold == 0).sum()), float(((shares - 1 / count) ** 2).sum())
