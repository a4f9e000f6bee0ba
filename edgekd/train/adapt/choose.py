"""Which change is made, decided by the labels at hand alone.

Every candidate is judged on labels that its fit has not seen (cross-validation), by the
cross-entropy after a temperature that was fitted on the other labels as well, so that a change is
not chosen for being less sure of itself. No change is the candidate to beat: another one must be
better by more than the standard error of the paired differences, and find no fewer of the labels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from edgekd.train.adapt.features import Features
from edgekd.train.adapt.head import balanced, temperature, tune
from edgekd.train.adapt.labels import IntArray

#: part of the batch-norm statistics that becomes the site's
PARTS = (0.0, 0.5, 1.0)
#: pulls of the last layers to their old weights, strong to weak
PULLS = (1.0, 0.1, 0.01)
#: weight of the KL to the old answers; measured, see CHANGELOG
KEEP = 0.3


@dataclass(frozen=True)
class Candidate:
    """A change.

    Attributes:
        norms: part of the batch-norm statistics that is re-estimated, 0-1.
        pull: of the last layers to their old weights; None leaves them.
    """

    norms: float
    pull: float | None

    @property
    def name(self) -> str:
        """In words."""
        said = [f"statistics {100 * self.norms:.0f} % the site's"] if self.norms else []
        said += [f"last layers tuned, pull {self.pull:g}"] if self.pull is not None else []
        return ", ".join(said) or "no change"


NO_CHANGE = Candidate(0.0, None)


@dataclass(frozen=True)
class View:
    """The student with one share of the site's statistics, as the last layers see it.

    Attributes:
        labelled: of the labels.
        unlabeled: of pixels without one.
        matrix, bias: the last layers; None where scores are not linear in features.
    """

    labelled: Features
    unlabeled: Features
    matrix: Tensor | None
    bias: Tensor | None


@dataclass(frozen=True)
class Judged:
    """A candidate's answers to labels that its fit has not seen.

    Attributes:
        loss: mean cross-entropy, every class counting the same.
        better_by, error: mean and standard error of how much less that is than with no change.
        accuracy: balanced accuracy, 0-1.
    """

    candidate: Candidate
    loss: float
    better_by: float
    error: float
    accuracy: float

    def plain(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "change": self.candidate.name,
            "norms": self.candidate.norms,
            "pull": self.candidate.pull,
            "loss": self.loss,
            "better_by": self.better_by,
            "standard_error": self.error,
            "balanced_accuracy": self.accuracy,
        }


def candidates(views: dict[float, View]) -> list[Candidate]:
    """What the student allows, no change first."""
    pulls = [None, *(PULLS if views[0.0].matrix is not None else ())]
    return [Candidate(part, pull) for part in views for pull in pulls]


def judge(views: dict[float, View], channel: Tensor, fold: IntArray) -> list[Judged]:
    """Cross-validate every candidate.

    Args:
        views: share of the site's statistics -> what the last layers see; 0 is among them.
        channel: ``(n,)`` int64 of the labels.
        fold: ``(n,)``, two or more different ones.
    """
    classes = views[0.0].labelled.scores.shape[1]
    weights = balanced(channel, classes)
    losses: dict[Candidate, Tensor] = {}
    hits: dict[Candidate, Tensor] = {}
    parts = [
        (torch.from_numpy(np.flatnonzero(fold == number)),
         torch.from_numpy(np.flatnonzero(fold != number)))
        for number in np.unique(fold)
    ]  # fmt: skip
    for candidate in candidates(views):
        view = views[candidate.norms]
        scores = view.labelled.scores.clone()
        if candidate.pull is not None:
            for out, rest in parts:
                matrix, bias = fit(view, channel, candidate.pull, rest)
                scores[out] = view.labelled.values[out] @ matrix.T + bias
        loss = torch.zeros(len(channel), dtype=torch.float64)
        for out, rest in parts:  # scores of the rest, too, are of fits that had not seen them
            divisor = temperature(scores[rest], channel[rest], balanced(channel[rest], classes))
            loss[out] = F.cross_entropy(scores[out] / divisor, channel[out], reduction="none")
        losses[candidate] = loss
        hits[candidate] = (scores.argmax(1) == channel).double()
    result = []
    for candidate, loss in losses.items():
        gain = losses[NO_CHANGE] - loss
        mean = float((weights * gain).sum())
        spread = float((weights.square() * (gain - mean).square()).sum())
        error = math.sqrt(spread * len(channel) / max(1, len(channel) - 1))
        accuracy = float((weights * hits[candidate]).sum())
        result.append(Judged(candidate, float((weights * loss).sum()), mean, error, accuracy))
    return result


def fit(
    view: View, channel: Tensor, pull: float, rows: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Last layers tuned on the labels of ``rows``, or on all."""
    assert view.matrix is not None and view.bias is not None
    values = view.labelled.values
    return tune(
        values if rows is None else values[rows],
        channel if rows is None else channel[rows],
        view.unlabeled.values,
        view.matrix,
        view.bias,
        pull=pull,
        keep=KEEP,
    )


def choose(judged: list[Judged]) -> Judged:
    """The best of those that the labels speak for, see above; else no change."""
    none = next(item for item in judged if item.candidate == NO_CHANGE)
    for_it = [
        item
        for item in judged
        if item.candidate != NO_CHANGE
        and item.better_by > item.error
        and item.accuracy >= none.accuracy
    ]
    return min(for_it, key=lambda item: item.loss, default=none)
