"""Losses against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from edgekd.train.losses import balanced_weights, segmentation_loss


def loss(logits: torch.Tensor, target: torch.Tensor, **changes: object) -> float:
    arguments = {"ce_weight": 1.0, "dice_weight": 0.0, "class_weights": None} | changes
    return float(segmentation_loss(logits, target, **arguments))


def test_cross_entropy_of_an_undecided_network_is_log_k() -> None:
    assert loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8).long()) == pytest.approx(math.log(3))


def test_ignored_pixels_do_not_count() -> None:
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1, 1] = 50.0  # sure of class 1 in the lower half
    target = torch.full((1, 2, 2), 1)
    right = loss(logits, target)
    target[0, 1] = 255
    assert loss(logits, target) == pytest.approx(math.log(2))
    assert right < math.log(2)
    for dice in (0.0, 1.0):
        nothing = torch.full((1, 2, 2), 255)
        assert loss(logits, nothing, dice_weight=dice) == 0.0


def test_dice_of_right_and_wrong_answers() -> None:
    target = torch.zeros(1, 4, 4).long()
    target[0, :2] = 1
    right = torch.stack([1.0 - target.float(), target.float()], dim=1) * 100
    assert loss(right, target, ce_weight=0.0, dice_weight=1.0) == pytest.approx(0.0, abs=1e-6)
    wrong = right.flip(1)
    # 8 pixels each: overlap 0, so Dice is (0 + 1) / (8 + 8 + 1) per class
    assert loss(wrong, target, ce_weight=0.0, dice_weight=1.0) == pytest.approx(1 - 1 / 17)


def test_dice_leaves_out_classes_that_do_not_occur() -> None:
    target = torch.zeros(1, 4, 4).long()
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 100
    assert loss(logits, target, ce_weight=0.0, dice_weight=1.0) == pytest.approx(0.0, abs=1e-6)


def test_ignored_pixels_do_not_count_in_dice() -> None:
    target = torch.zeros(1, 4, 4).long()
    target[0, 2:] = 255
    logits = torch.zeros(1, 2, 4, 4)
    logits[:, 0, :2] = 100
    logits[:, 1, 2:] = 100
    assert loss(logits, target, ce_weight=0.0, dice_weight=1.0) == pytest.approx(0.0, abs=1e-6)


def test_balanced_weights() -> None:
    weights = balanced_weights([100, 400, 0])
    assert weights.tolist() == pytest.approx([4 / 3, 2 / 3, 0.0])
