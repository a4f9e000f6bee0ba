"""Losses of several kinds of evidence, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from edgekd.errors import InputError
from edgekd.train.distill.evidence import balanced_weights, info_nce, soft_losses

YES = torch.tensor([True, True, True])
OWN = torch.arange(3)


def test_each_kind_has_its_temperature_and_its_places() -> None:
    """Two classes, logits 0 and a: KL of two coins."""

    def kl(a: float, b: float, t: float) -> float:
        p, q = (1 / (1 + math.exp(-value / t)) for value in (a, b))
        return t * t * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))

    scores = torch.tensor([[0.0, 1.0], [0.0, -2.0], [0.0, 0.5]])
    teachers = {"image": torch.tensor([[0.0, 3.0]] * 3), "text": torch.tensor([[0.0, -1.0]] * 3)}
    found = soft_losses(
        scores, teachers, {"image": 3.0, "text": 4.0},
        {"image": YES, "text": torch.tensor([True, False, False])},
    )  # fmt: skip
    by_hand = sum(kl(3.0, value, 3.0) for value in (1.0, -2.0, 0.5)) / 3
    assert found["image"].item() == pytest.approx(by_hand, rel=1e-5)
    assert found["text"].item() == pytest.approx(kl(-1.0, 1.0, 4.0), rel=1e-5)


def test_a_kind_that_no_place_has_gives_nothing() -> None:
    none = {"image": torch.zeros(2, dtype=torch.bool)}
    found = soft_losses(torch.ones(2, 2), {"image": torch.rand(2, 2)}, {"image": 3.0}, none)
    assert found["image"].item() == 0


def test_info_nce_by_hand() -> None:
    """Unit vectors at right angles: own place 1, others 0."""
    axes = torch.eye(3)
    found = info_nce({"a": 5 * axes, "b": axes}, {"a": YES, "b": YES}, {"a": OWN, "b": OWN}, 0.5)
    assert found.item() == pytest.approx(-math.log(math.e**2 / (math.e**2 + 2)), rel=1e-6)
    swapped = axes[[1, 0, 2]]
    worse = info_nce({"a": axes, "b": swapped}, {"a": YES, "b": YES}, {"a": OWN, "b": OWN}, 0.5)
    lost = math.log(math.e**2 + 2)
    assert worse.item() == pytest.approx((2 * lost + lost - 2) / 3, rel=1e-6)


def test_both_directions_count() -> None:
    """Both of b look like a0: from a, place 1 is lost; from b, place 0 is not told from 1."""
    axes = torch.eye(2)
    kinds = {"a": axes, "b": axes[[0, 0]]}
    yes, own = dict.fromkeys("ab", YES[:2]), dict.fromkeys("ab", OWN[:2])
    from_a = (math.log(2 * math.e) - 1 + math.log(2)) / 2  # rows (1, 1) and (0, 0)
    from_b = (math.log(math.e + 1) - 1 + math.log(math.e + 1)) / 2  # rows (1, 0) and (1, 0)
    assert info_nce(kinds, yes, own, 1.0).item() == pytest.approx((from_a + from_b) / 2, rel=1e-6)


def test_the_same_series_is_no_negative() -> None:
    """Places 0 and 1 share one series: only place 2 is told from them."""
    axes = torch.eye(3)
    kinds = {"image": axes, "series": axes[[0, 0, 2]]}
    yes = {"image": YES, "series": YES}
    found = info_nce(kinds, yes, {"image": OWN, "series": torch.tensor([7, 7, 9])}, 1.0)
    rows = [[1.0, None, 0.0], [None, 0.0, 0.0], [0.0, 0.0, 1.0]]

    def loss(table: list[list[float | None]]) -> float:
        each = []
        for number, row in enumerate(table):
            total = sum(math.exp(value) for value in row if value is not None)
            own = row[number]
            assert own is not None
            each.append(math.log(total) - own)
        return sum(each) / 3

    turned = [[rows[j][i] for j in range(3)] for i in range(3)]
    assert found.item() == pytest.approx((loss(rows) + loss(turned)) / 2, rel=1e-6)
    as_negatives = info_nce(kinds, yes, {"image": OWN, "series": OWN}, 1.0)
    assert as_negatives.item() > found.item() + 0.1


def test_places_without_a_kind_are_left_out() -> None:
    torch.manual_seed(0)
    kinds = {name: torch.randn(5, 8) for name in "ab"}
    there = torch.tensor([True, True, False, True, True])
    own = torch.arange(5)
    found = info_nce(kinds, {"a": there, "b": torch.ones(5, dtype=torch.bool)},
                     {"a": own, "b": own}, 0.1)  # fmt: skip
    few = {name: value[there] for name, value in kinds.items()}
    yes = torch.ones(4, dtype=torch.bool)
    assert found.item() == pytest.approx(
        info_nce(few, {"a": yes, "b": yes}, {"a": own[:4], "b": own[:4]}, 0.1).item(), rel=1e-6
    )


def test_three_kinds_are_three_pairs_and_learning_draws_places_together() -> None:
    torch.manual_seed(1)
    kinds = {name: torch.randn(6, 4, requires_grad=True) for name in ("image", "series", "text")}
    yes = dict.fromkeys(kinds, torch.ones(6, dtype=torch.bool))
    own = dict.fromkeys(kinds, torch.arange(6))
    pairs = [
        info_nce({a: kinds[a], b: kinds[b]}, yes, own, 0.2)
        for a, b in (("image", "series"), ("image", "text"), ("series", "text"))
    ]
    whole = info_nce(kinds, yes, own, 0.2)
    assert whole.item() == pytest.approx(sum(item.item() for item in pairs) / 3, rel=1e-6)
    optimiser = torch.optim.Adam(kinds.values(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        loss = info_nce(kinds, yes, own, 0.2)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1 < whole.item()


@pytest.mark.parametrize("there", [[False] * 3, [True, False, False], [True] * 3])
def test_nothing_to_tell_apart_is_a_loss_of_0_with_a_gradient(there: list[bool]) -> None:
    kinds = {"a": torch.randn(3, 2, requires_grad=True), "b": torch.randn(3, 2)}
    sources = {"a": OWN, "b": torch.zeros(3, dtype=torch.int64)}  # all share one series
    found = info_nce(kinds, {"a": torch.tensor(there), "b": YES}, sources, 0.1)
    found.backward()
    assert found.item() == 0 and kinds["a"].grad is not None


def test_shares_are_what_was_asked_for() -> None:
    losses = {"image": 4.0, "series": 0.5, "text": 1.0}
    found = balanced_weights(losses, {"image": 1.0, "series": 1.0, "text": 2.0})
    parts = {kind: found[kind] * losses[kind] for kind in losses}
    total = sum(parts.values())
    assert {kind: round(part / total, 6) for kind, part in parts.items()} == {
        "image": 0.25, "series": 0.25, "text": 0.5,
    }  # fmt: skip
    assert total == pytest.approx(0.25 * 4 + 0.25 * 0.5 + 0.5 * 1.0), "the size of the mean"
    silent = balanced_weights({"a": 0.0, "b": 2.0}, {"a": 1.0, "b": 1.0})
    assert math.isfinite(silent["a"]), "a teacher who agrees is not multiplied without end"


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="teacher text has no temperature"):
        soft_losses(torch.ones(1, 2), {"text": torch.ones(1, 2)}, {}, {"text": YES[:1]})
    with pytest.raises(InputError, match="teacher text has no presence"):
        soft_losses(torch.ones(1, 2), {"text": torch.ones(1, 2)}, {"text": 1.0}, {})
    for kinds, temperature in (({"a": OWN}, 0.1), ({"a": OWN, "b": OWN}, 0.0)):
        with pytest.raises(InputError, match="two kinds of evidence"):
            info_nce(kinds, {}, {}, temperature)
    for weights in ({"a": 0.0}, {"a": -1.0}, {"b": 1.0}):
        with pytest.raises(InputError, match="expected one of at least 0"):
            balanced_weights({"a": 1.0}, weights)
