"""Losses, weights and temperatures of method cross_modal, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from edgekd.contracts.distill import BalanceSpec, CrossModalSpec, DistillSpec, TemperatureSpec
from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.tensors import ImageInput
from edgekd.train.distill.methods.cross_modal import (
    CrossModal,
    SensorBatch,
    chosen_pixels,
    class_weights,
    soft_loss,
)
from edgekd.train.students._base import Segmenter
from edgekd.train.teachers._sensors import SensorPlan, SensorTeacher

DoubleArray = npt.NDArray[np.float64]


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


class TwoMaps(nn.Module):
    """What it is given, and its first channel with the other sign."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, -image[:, :1]]


class First(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[0]


class Stub(SensorTeacher):
    """The same as a teacher."""

    name, variant, width = "stub", None, 4

    def forward(
        self,
        sensors: dict[str, Tensor],
        present: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        values = self.normalized("visual", sensors["visual"]).permute(0, 2, 3, 1)[at]
        return values, torch.cat([values, -values[:, :1]], dim=1)


def stub_student() -> Segmenter:
    return Segmenter(
        TwoMaps(), First(), name="stub", num_classes=3, stride=1, side_multiple=2,
        mean=(0, 0, 0), std=(1, 1, 1), options={},
    )  # fmt: skip


def stub_teacher() -> SensorTeacher:
    teacher = Stub(3, {"visual": SensorPlan("image", 3)})
    teacher.set_statistics("visual", [10.0] * 3, [4.0] * 3)
    return teacher


#: of six pixels: labels, scores of the learner and of the teacher, features of the teacher; the
#: last one does not count. The teacher is sure of the first and the fourth alone.
LABELS = np.array([0, 1, 0, IGNORE, IGNORE, 2])
OURS = np.array([[1.0, 0.5, -1], [2, 0, 0.5], [0, 1.5, 1], [-1, 2, 0.5], [0.5, 0, 1], [90, -90, 0]])
THEIRS = np.array([[6.0, 0, 1], [1, 0.5, 0], [0, 1, 0.5], [0, 5, 0], [1, 0, 1.5], [-90, 0, 90]])
WANTED = np.array([[1.0, 2], [-1, 0.5], [3, 1], [0.5, -2], [-1, -1], [70, -70]])
PROJECT = np.array([[0.5, 1, 0, 0.25], [-1, 0, 0.75, 0.5]])
COUNTS, EXPECTED, BETA = [3, 1, 40], [30.0, 10.0, 2.0], 0.9
TEMPERATURE = 1.5
RULES: dict[str, Any] = {
    "kd_weight": 0.5, "feature_weight": 0.75, "label_weight": 1.25, "trust": 0.9,
    "balance": {"beta": BETA},
}  # fmt: skip


def softmax(scores: DoubleArray) -> DoubleArray:
    chance: DoubleArray = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    return chance


def class_weights_by_hand(pixels: list[Any], kind: str) -> DoubleArray:
    raw = np.array([1 if kind == "none" else (1 - BETA) / (1 - BETA**n) for n in pixels])
    weights: DoubleArray = raw / raw.mean()
    return weights


def by_hand(
    rules: dict[str, Any], ours: DoubleArray, temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Parts of the loss, and the total, of the five pixels that count."""
    ours, theirs, labels = ours[:5], THEIRS[:5], LABELS[:5]
    kind = rules["balance"].get("kind", "effective_number")
    known = labels != IGNORE
    of_label = class_weights_by_hand(COUNTS, kind)[labels[known]]
    wrong = -np.log(softmax(ours[known])[np.arange(known.sum()), labels[known]])
    p, q = softmax(theirs / temperature), softmax(ours / temperature)
    apart = (p * np.log(p / q)).sum(1)
    trusted = known | (softmax(theirs).max(1) >= rules["trust"])
    weight = trusted * (softmax(theirs) @ class_weights_by_hand(EXPECTED, kind))
    mine = np.concatenate([ours, -ours[:, :1]], axis=1) @ PROJECT.T
    norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(WANTED[:5], axis=1)
    cosine = (mine * WANTED[:5]).sum(1) / norms
    parts = {
        "label": (of_label * wrong).sum() / of_label.sum(),
        "kd": temperature**2 * (weight * apart).sum() / weight.sum(),
        "feature": (1 - cosine)[trusted].mean(),
        "trusted": trusted.mean(),
        "temperature": temperature,
    }
    total = sum(rules[f"{name}_weight"] * parts[name] for name in ("label", "kd", "feature"))
    return {name: float(value) for name, value in parts.items()} | {"total": float(total)}


def losses(
    make: Callable[[], Segmenter | SensorTeacher], rules: dict[str, Any], temperature: float
) -> tuple[dict[str, float], DoubleArray]:
    """What the method says, and its gradient by the learner's scores ``(6, 3)``."""
    spec = DistillSpec.model_validate(
        {"method": "cross_modal", "crop_px": 8, "batch": 1, "steps": 1, "cross_modal": rules}
    )
    image = ImageInput(shape=["N", 3, 64, 64], mean=[10.0] * 3, std=[4.0] * 3)
    method = CrossModal(spec, make(), image, COUNTS, 2)
    method.expect(EXPECTED)
    method.temperature = temperature
    if method.project is not None:
        state = {"weight": torch.tensor(PROJECT), "bias": torch.zeros(2)}
        method.project.load_state_dict(state)

    def planes(values: DoubleArray) -> Tensor:
        return torch.tensor(values.T.reshape(1, -1, 2, 3), dtype=torch.float32)

    picture = planes(10 + 4 * OURS).requires_grad_()
    batch = SensorBatch(
        {"visual": picture}, torch.ones(1, 1, dtype=torch.bool),
        torch.tensor(LABELS).reshape(1, 2, 3),
        (torch.arange(6) < 5).reshape(1, 2, 3),
        planes(THEIRS), torch.tensor(WANTED, dtype=torch.float16).reshape(1, 2, 3, 2),
    )  # fmt: skip
    found = method(batch, (1.0, 1.0, 1.0))
    found.total.backward()
    assert picture.grad is not None
    slope = 4 * picture.grad[0].reshape(3, 6).T.double().numpy()
    values = {name: float(value) for name, value in found.parts.items()}
    return values | {"total": float(found.total.detach())}, slope


def numeric_slope(rules: dict[str, Any], temperature: float) -> DoubleArray:
    slope = np.zeros_like(OURS)
    for place in np.ndindex(OURS.shape):
        step = np.zeros_like(OURS)
        step[place] = 1e-5
        above, below = (by_hand(rules, OURS + sign * step, temperature) for sign in (1, -1))
        slope[place] = (above["total"] - below["total"]) / 2e-5
    return slope


@pytest.mark.parametrize("make", [stub_student, stub_teacher])
@pytest.mark.parametrize(
    ("changed", "temperature"),
    [
        ({}, TEMPERATURE), ({}, 1.0), ({}, 4.0),
        ({"kd_weight": 2.0}, TEMPERATURE), ({"kd_weight": 0.0}, TEMPERATURE),
        ({"feature_weight": 2.0}, TEMPERATURE), ({"feature_weight": 0.0}, TEMPERATURE),
        ({"label_weight": 3.0}, TEMPERATURE), ({"label_weight": 0.0}, TEMPERATURE),
        ({"trust": 0.0}, TEMPERATURE), ({"trust": 1.0}, TEMPERATURE),
        ({"balance": {"kind": "none"}}, TEMPERATURE),
    ],
)  # fmt: skip
def test_the_loss_by_hand(
    make: Callable[[], Segmenter | SensorTeacher], changed: dict[str, Any], temperature: float
) -> None:
    """Every key that is changed changes what is expected, and the learner must follow."""
    rules = RULES | changed
    expected = by_hand(rules, OURS, temperature)
    if changed or temperature != TEMPERATURE:
        assert abs(expected["total"] - by_hand(RULES, OURS)["total"]) > 0.01
    for name in ("label", "feature"):
        if not rules[f"{name}_weight"]:
            del expected[name]  # is not computed
    found, slope = losses(make, rules, temperature)
    assert found == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(slope, numeric_slope(rules, temperature), atol=2e-5)
