"""A linear layer tuned on a handful of labels, held to what it was.

``cross-entropy + pull * |change|² + keep * KL(old answers, new answers)``: the pull to the old
weights is L2-SP (Li et al. 2018, arXiv:1802.01483), measured by what a change does to the scores of
the site's pixels; the KL over unlabeled pixels is learning without forgetting (Li and Hoiem 2016,
arXiv:1606.09282), which speaks for classes that have no label here. Convex, so there is one answer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STEPS = 30


def balanced(channel: Tensor, classes: int) -> Tensor:
    """``(n,)`` float64 weights that add up to 1 and make the classes that occur equal."""
    counts = torch.bincount(channel, minlength=classes).double()
    weights = 1.0 / counts[channel]
    return weights / weights.sum()


def temperature(scores: Tensor, channel: Tensor, weights: Tensor) -> float:
    """Divisor of the scores with the least cross-entropy (Guo et al. 2017), of 1 to 8.

    Without it a change would be chosen for being less sure of itself alone. Scores are made no
    surer: where the one wrong label is left out, the others would ask for certainty, and that
    label alone would decide (measured: a choice that cost 11 points on ten labels of MUUFL).
    """
    grid = torch.logspace(0, 3, 25, base=2.0, dtype=torch.float64)
    losses = [
        float((F.cross_entropy(scores / value, channel, reduction="none") * weights).sum())
        for value in grid
    ]
    return float(grid[int(torch.tensor(losses).argmin())])


def tune(
    features: Tensor,
    channel: Tensor,
    unlabeled: Tensor,
    matrix: Tensor,
    bias: Tensor,
    *,
    pull: float,
    keep: float,
) -> tuple[Tensor, Tensor]:
    """New ``(K, D)`` and ``(K,)`` for labelled features.

    Args:
        features: ``(n, D)`` of the labelled pixels.
        channel: ``(n,)`` int64.
        unlabeled: ``(m, D)`` of unlabeled pixels of the site.
        matrix, bias: the old ones.
        pull: per unit of variance of the change of a score, summed over classes.
        keep: weight of the KL.
    """
    middle = unlabeled.mean(0)
    scale = unlabeled.std(0)
    # A feature that is the same everywhere here says nothing here, and its weights stay.
    scale = torch.where(scale > 1e-6 * (1 + middle.abs()), scale, torch.inf)
    weights = balanced(channel, len(bias))
    labelled, around = (features - middle) / scale, (unlabeled - middle) / scale
    old_labelled, old_around = features @ matrix.T + bias, unlabeled @ matrix.T + bias
    target = old_around.softmax(1)
    change = torch.zeros(len(bias), features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [change], max_iter=_STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        slope, offset = change[:, :-1], change[:, -1]
        new = old_labelled + labelled @ slope.T + offset
        total = (F.cross_entropy(new, channel, reduction="none") * weights).sum()
        total = total + pull * change.square().sum()
        if keep:
            moved = old_around + around @ slope.T + offset
            total = total + keep * F.kl_div(moved.log_softmax(1), target, reduction="batchmean")
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    slope = change.detach()[:, :-1] / scale
    return matrix + slope, bias + change.detach()[:, -1] - slope @ middle
