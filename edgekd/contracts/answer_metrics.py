"""Figures of answers for places: how often right, how well they know it, whether they obey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.contracts.projection import OBEYED, Limits, past_bounds
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.floating]
IntArray = npt.NDArray[np.integer]
#: of equal width, for the expected calibration error
BINS: Final = 15


def accuracy(probabilities: FloatArray, labels: IntArray) -> float:
    """Part of the places whose highest class is the label, 0-1.

    Args:
        probabilities: ``(N, classes)``, or scores: only their order counts.
        labels: ``(N,)`` class numbers.

    Raises:
        InputError: no place, shapes that do not fit, a label that is no class, or a value that is
            not finite; so do all functions here.
    """
    values, truth = _checked(probabilities, labels)
    return float((values.argmax(1) == truth).mean())


def balanced_accuracy(probabilities: FloatArray, labels: IntArray) -> float:
    """Mean over the classes that have labels of the part that was found, 0-1."""
    values, truth = _checked(probabilities, labels)
    hit = values.argmax(1) == truth
    return float(np.mean([hit[truth == label].mean() for label in np.unique(truth)]))


def ece(probabilities: FloatArray, labels: IntArray, bins: int = BINS) -> float:
    """Expected calibration error of the highest probability, 0-1.

    Places are put into ``bins`` of equal width, ``(0, 1/bins], (1/bins, 2/bins], ...``, by their
    highest probability; of each bin the mean probability is held against the part that is right,
    weighted by its places (Naeini et al. 2015; Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Raises:
        InputError: also where they are no probabilities.
    """
    values, truth = _checked(probabilities, labels)
    if values.min() < -OBEYED or np.abs(values.sum(1) - 1).max() > 1e-3:
        raise InputError("ece takes probabilities, which are 0 or above and sum to 1")
    top, hit = values.max(1), values.argmax(1) == truth
    place = np.clip(np.ceil(top * bins).astype(np.int64) - 1, 0, bins - 1)
    apart = np.bincount(place, weights=top - hit, minlength=bins)
    return float(np.abs(apart).sum() / len(top))


class Compliance(NamedTuple):
    """How answers stand to the rules of their places.

    Attributes:
        obey: part of the places past no bound by more than
            :data:`edgekd.contracts.projection.OBEYED`, 0-1.
        winners_obey: the same, were each place's highest class certain: what is acted upon.
        mean_past, worst_past: by how much the worst rule is exceeded, over all places, 0 where all
            are met; in the rules' units of probability.
    """

    obey: float
    winners_obey: float
    mean_past: float
    worst_past: float


def compliance(probabilities: FloatArray, limits: Sequence[Limits]) -> Compliance:
    """Hold answers against the rules, ``limits`` of each place.

    Args:
        probabilities: ``(N, classes)``.
        limits: N of them.

    Raises:
        InputError: also where there is another number of rules.
    """
    values = np.asarray(probabilities)
    if not len(limits) or len(limits) != len(values):
        raise InputError(f"{len(limits)} sets of rules for {len(values)} places; give one for each")
    rules = np.stack([item.rules for item in limits])
    bounds = np.stack([item.bounds for item in limits])
    past = past_bounds(values, rules, bounds)
    winners = np.eye(values.shape[1], dtype=np.float64)[values.argmax(1)]
    beyond = np.maximum(past, 0)
    return Compliance(
        obey=float((past <= OBEYED).mean()),
        winners_obey=float((past_bounds(winners, rules, bounds) <= OBEYED).mean()),
        mean_past=float(beyond.mean()),
        worst_past=float(beyond.max()),
    )


def answer_figures(
    probabilities: FloatArray, labels: IntArray, limits: Sequence[Limits] | None = None
) -> dict[str, Any]:
    """Everything of the above as JSON-ready values; ``compliance`` is None without rules."""
    return {
        "accuracy": accuracy(probabilities, labels),
        "balanced_accuracy": balanced_accuracy(probabilities, labels),
        "ece": ece(probabilities, labels),
        "compliance": None if limits is None else compliance(probabilities, limits)._asdict(),
    }


def _checked(probabilities: FloatArray, labels: IntArray) -> tuple[FloatArray, IntArray]:
    values, truth = np.asarray(probabilities), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1] or not len(truth):
        raise InputError(
            f"answers {values.shape} and labels {truth.shape} do not fit: expected (N, classes) "
            "and (N,), with one place at least"
        )
    if not np.isfinite(values).all():
        raise InputError("the answers hold a value that is not finite")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise InputError(f"a label is outside 0..{values.shape[1] - 1}")
    return values, truth
