"""Accuracy before and after on what was held out, with an interval over places."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.metrics import Confusion
from edgekd.contracts.recipe import Recipe
from edgekd.train.adapt.site import Site
from edgekd.train.evaluate import predict
from edgekd.train.students._base import Segmenter

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: squares that are drawn anew together, px: neighbouring pixels are no independent trials
SQUARE_PX = 16
#: fewer give no interval
LEAST_SQUARES = 5
_DRAWS = 1000
_AT_ONCE = 50


def measure(before: Segmenter, after: Segmenter, site: Site, recipe: Recipe) -> dict[str, Any]:
    """Metrics of both students on the site's held-out pixels.

    Returns:
        ``before`` and ``after`` as of :meth:`~edgekd.contracts.metrics.Confusion.summary`, and
        ``difference`` (after - before) of the balanced accuracy; all three with 95 % intervals:
        percentiles over 1000 draws of squares of :data:`SQUARE_PX` (bootstrap of blocks, Kunsch
        1989), seeded; None with fewer than :data:`LEAST_SQUARES` squares, whose draws say nothing.

    Raises:
        DatasetError: no held-out pixel has a label.
    """
    classes = len(site.classes)
    totals = Confusion(classes), Confusion(classes)
    squares: list[IntArray] = []
    for read in site.held_out.values():
        held = read()
        if not (held.target < classes).any():
            continue
        pair = []
        for model, total in zip((before, after), totals, strict=True):
            said = predict(model, held.pixels, recipe.io, recipe.tiling)
            total.add(held.target, said)
            pair.append(_by_square(held.target, said, classes))
        both = np.stack(pair, axis=1)
        squares.append(both[both.any(axis=(1, 2, 3))])
    result: dict[str, Any] = {
        name: total.summary(site.classes)
        for name, total in zip(("before", "after"), totals, strict=True)
    }
    every = np.concatenate(squares)
    found: list[list[float] | None] = [None, None, None]
    if len(every) >= LEAST_SQUARES:
        low, high = _intervals(every)
        found = [[float(low[number]), float(high[number])] for number in range(3)]
    for number, name in enumerate(("before", "after")):
        result[name]["interval_95"] = found[number]
    gain = result["after"]["balanced_accuracy"] - result["before"]["balanced_accuracy"]
    return result | {
        "difference": {"balanced_accuracy": gain, "interval_95": found[2]},
        "squares": len(every),
        "square_px": SQUARE_PX,
    }


def _by_square(
    target: npt.NDArray[np.uint8], said: npt.NDArray[np.uint8], classes: int
) -> IntArray:
    """Confusion ``(squares, classes, classes)`` of each square of an image."""
    height, width = target.shape
    across = -(-width // SQUARE_PX)
    rows, columns = np.nonzero(target < classes)
    square = rows // SQUARE_PX * across + columns // SQUARE_PX
    pair = target[rows, columns].astype(np.int64) * classes + said[rows, columns]
    count = -(-height // SQUARE_PX) * across
    counts = np.bincount(square * classes**2 + pair, minlength=count * classes**2)
    return counts.reshape(count, classes, classes).astype(np.int64)


def _intervals(squares: IntArray) -> tuple[FloatArray, FloatArray]:
    """2.5th and 97.5th percentile of (before, after, after - before), ``(3,)`` each.

    Args:
        squares: ``(squares, 2, classes, classes)``.
    """
    random = np.random.default_rng(0)
    even = np.full(len(squares), 1 / len(squares))
    hit = np.einsum("smkk->smk", squares).reshape(len(squares), -1).astype(np.float64)
    every = squares[:, 0].sum(2).astype(np.float64)  # labels of each class
    found = []
    for start in range(0, _DRAWS, _AT_ONCE):
        draws = random.multinomial(len(squares), even, size=min(_AT_ONCE, _DRAWS - start))
        hits = (draws @ hit).reshape(len(draws), 2, -1)
        total = (draws @ every)[:, None]
        with np.errstate(invalid="ignore"):
            recall = np.where(total > 0, hits / total, np.nan)
        scores = np.nanmean(recall, axis=2)
        found.append(np.column_stack([scores, scores[:, 1] - scores[:, 0]]))
    both = np.percentile(np.concatenate(found), (2.5, 97.5), axis=0)
    return both[0], both[1]
