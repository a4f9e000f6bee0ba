"""Losses, weights and temperatures of method cross_modal, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from edgekd.contracts.distill import BalanceSpec, CrossModalSpec, TemperatureSpec
from edgekd.contracts.labelled import IGNORE
from edgekd.train.distill.methods.cross_modal import (
    SensorBatch,
    chosen_pixels,
    class_weights,
    soft_loss,
)


@pytest.mark.parametrize(
    ("schedule", "part", "expected"),
    [
        ("constant", 0.0, 4.0), ("constant", 1.0, 4.0),
        ("linear", 0.0, 4.0), ("linear", 0.25, 3.25), ("linear", 1.0, 1.0),
        # 4 + (1 - 4) (1 - cos(pi / 4)) / 2
        ("cosine", 0.0, 4.0), ("cosine", 0.25, 3.5606601717798214), ("cosine", 0.5, 2.5),
        ("cosine", 1.0, 1.0),
    ],
)  # fmt: skip
def test_temperature_is_annealed(schedule: str, part: float, expected: float) -> None:
    spec = TemperatureSpec(start=4.0, end=1.0, schedule=schedule)  # type: ignore[arg-type]
    assert spec.at(part) == pytest.approx(expected, abs=1e-12)


def test_weights_follow_the_effective_number() -> None:
    """beta 0.9: n = 1 gives 0.1 / 0.1 = 1, n = 2 gives 0.1 / 0.19, n = 20 gives 0.1 / 0.878..."""
    raw = [1.0, 0.1 / 0.19, 0.1 / (1 - 0.9**20)]
    mean = sum(raw) / 3
    found = class_weights([1, 2, 20], BalanceSpec(beta=0.9))
    assert found.tolist() == pytest.approx([value / mean for value in raw], rel=1e-6)


def test_a_class_without_a_label_weighs_nothing() -> None:
    found = class_weights([4, 0, 4], BalanceSpec(beta=0.99))
    assert found.tolist() == [1.0, 0.0, 1.0]
    assert class_weights([9, 1], BalanceSpec(kind="none")).tolist() == [1.0, 1.0]
    # nor does one of which a teacher expects less than a pixel in all
    assert class_weights([4.2, 0.9, 4.2], BalanceSpec(beta=0.99)).tolist() == [1.0, 0.0, 1.0]


def test_rare_classes_weigh_more_the_nearer_beta_is_to_one() -> None:
    even = class_weights([5, 500], BalanceSpec(beta=0.0))
    assert even.tolist() == [1.0, 1.0]
    ratios = []
    for beta in (0.9, 0.99, 0.9999):
        rare, common = class_weights([5, 500], BalanceSpec(beta=beta)).tolist()
        ratios.append(rare / common)
    assert ratios == sorted(ratios) and 1 < ratios[0] < ratios[-1] < 100


def test_soft_loss_by_hand() -> None:
    """Two classes, T = 2: p = softmax(2, 0) at T gives sigmoid(1), q = softmax(0, 0) gives 1/2."""
    p = 1 / (1 + math.exp(-1.0))
    expected = 4 * (p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p)))
    ours, theirs = torch.zeros(1, 2), torch.tensor([[2.0, 0.0]])
    assert soft_loss(ours, theirs, 2.0, torch.ones(1)).item() == pytest.approx(expected, rel=1e-6)
    # a second pixel that agrees, with three times the weight
    both = soft_loss(
        torch.tensor([[0.0, 0.0], [5.0, 1.0]]), torch.tensor([[2.0, 0.0], [5.0, 1.0]]), 2.0,
        torch.tensor([1.0, 3.0]),
    )  # fmt: skip
    assert both.item() == pytest.approx(expected / 4, rel=1e-6)
    assert soft_loss(ours, theirs, 2.0, torch.zeros(1)).item() == 0.0


def batch(scores: torch.Tensor, counted: torch.Tensor, target: torch.Tensor) -> SensorBatch:
    return SensorBatch({}, torch.ones(1, 1, dtype=torch.bool), target, counted, scores, scores)


def test_labelled_pixels_come_first_and_uncounted_ones_never() -> None:
    torch.manual_seed(0)
    target = torch.full((1, 8, 8), IGNORE)
    target[0, 0, :3] = 1
    counted = torch.ones(1, 8, 8, dtype=torch.bool)
    counted[0, 4:] = False
    target[0, 7, 7] = 0  # has a label, but is no training pixel
    with_teacher = batch(torch.zeros(1, 2, 8, 8), counted, target)
    for pixels, labelled in ((1000, 3), (10, 3), (3, 3), (1, 1)):
        chosen = chosen_pixels(with_teacher, CrossModalSpec(pixels=pixels))
        assert int(chosen.sum()) == min(pixels, 32) and int(chosen[0, 0, :3].sum()) == labelled
        assert not chosen[0, 4:].any()
    alone = chosen_pixels(batch(torch.zeros(0), counted, target), CrossModalSpec())
    assert alone.nonzero().tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2]]
