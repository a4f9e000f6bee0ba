"""The student's loss by hand: each teacher by its kind, shares, contrast, labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.evidence import KINDS
from edgekd.train.places.method import PlaceBatch, PlaceMethod
from edgekd.train.places.students._base import PlaceStudent
from tests.helpers.tiny_places import DAYS, SIDE, WIDTH, tiny_recipe, tiny_values

WEIGHTS = (1.0, 0.0, 0.0)


class Plain(PlaceStudent):
    """The answer is a sum over the kinds that are there, so that it can be written down."""

    name, pretrained = "plain", False

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({k: nn.Linear(4, 4) for k in KINDS})

    def tokens(self, image: Tensor, series: Tensor, text: Tensor) -> dict[str, Tensor]:
        return {
            "image": image.mean((2, 3))[:, None, [0, 1, 2, 0]],
            "series": series.mean(1)[:, None],
            "text": text[:, None, :4],
        }

    def answer(self, tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
        return torch.stack(
            [
                self.parts[k](tokens[k][:, 0]) * present[:, at, None]
                for at, k in enumerate(KINDS)
                if k in tokens
            ]
        ).sum(0)

    def embeddings(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {kind: tokens[kind][:, 0] for kind in KINDS}


def some(count: int = 6) -> PlaceBatch:
    random = torch.Generator().manual_seed(0)
    present = torch.ones(count, 3)
    present[0, 0] = present[1, 1] = present[2, 2] = 0
    return PlaceBatch(
        image=torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=random, dtype=torch.uint8),
        series=torch.randn(count, DAYS, 4, generator=random),
        text=torch.randn(count, WIDTH, generator=random),
        label=torch.arange(count) % 4,
        present=present,
        sources=torch.stack(
            [torch.arange(count), torch.arange(count) // 2, torch.arange(count)], 1
        ),
        answers={k: 3 * torch.randn(count, 4, generator=random) for k in KINDS},
    )


def method(**changes: Any) -> PlaceMethod:
    torch.manual_seed(1)
    recipe = tiny_recipe(distill=tiny_values()["distill"] | changes)
    return PlaceMethod(recipe, recipe.distill.loop(SIDE), Plain())


def kl(ours: Tensor, theirs: Tensor, t: float) -> Tensor:
    p, q = (theirs / t).softmax(1), (ours / t).softmax(1)
    return t * t * (p * (p.log() - q.log())).sum(1)


TEMPERATURES = {"image": 3.0, "series": 4.0, "text": 2.0}


def alone(net: PlaceMethod, batch: PlaceBatch, kind: str) -> Tensor:
    tokens = net.learner.tokens(net.pixels(batch.image), batch.series, batch.text)
    found: Tensor = net.learner.parts[kind](tokens[kind][:, 0])  # type: ignore[index,union-attr]
    return found


def test_each_teacher_is_held_against_what_its_kind_says_alone() -> None:
    net, batch = method(balance="none", contrast={"weight": 0}, kd_weight=2.0), some()
    losses = net(batch, WEIGHTS)
    each = {
        k: kl(alone(net, batch, k), batch.answers[k], t).mean() for k, t in TEMPERATURES.items()
    }
    soft = 0.25 * each["image"] + 0.25 * each["series"] + 0.5 * each["text"]
    tokens = net.learner.tokens(net.pixels(batch.image), batch.series, batch.text)
    label = F.cross_entropy(net.learner.answer(tokens, batch.present), batch.label)
    assert losses.total.item() == pytest.approx((0.7 * label + 2 * soft).item(), rel=1e-5)
    for kind, loss in each.items():
        assert float(losses.parts[f"kd_{kind}"]) == pytest.approx(float(loss), rel=1e-5)
        weight = 0.5 if kind == "text" else 0.25
        assert float(losses.parts[f"share_{kind}"]) == pytest.approx(
            float(weight * loss / soft), rel=1e-5
        )
    assert "contrast" not in losses.parts


def test_against_all_evidence_only_places_that_have_it_count() -> None:
    net, batch = method(taught="all", contrast={"weight": 0}), some()
    losses = net(batch, WEIGHTS)
    tokens = net.learner.tokens(net.pixels(batch.image), batch.series, batch.text)
    scores = net.learner.answer(tokens, batch.present)
    for at, (kind, t) in enumerate(TEMPERATURES.items()):
        there = batch.present[:, at] > 0
        assert int(there.sum()) == 5
        expected = kl(scores, batch.answers[kind], t)[there].mean()
        assert float(losses.parts[f"kd_{kind}"]) == pytest.approx(float(expected), rel=1e-5)


def test_no_teacher_drowns_the_others() -> None:
    """A teacher whose loss is a hundred times the others' has its share all the same."""
    net, batch = method(contrast={"weight": 0}), some()
    loud = batch._replace(answers=batch.answers | {"image": 30 * batch.answers["image"]})
    for _ in range(3):
        losses = net(loud, WEIGHTS)
    shares = [float(losses.parts[f"share_{k}"]) for k in KINDS]
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=1e-3)
    plain = method(contrast={"weight": 0}, balance="none")
    assert float(plain(loud, WEIGHTS).parts["share_image"]) > 0.6


@pytest.mark.parametrize(
    ("decay", "least", "most"), [(0.0, 0.0, 1e-4), (0.9, 0.01, 0.03), (0.98, 0.1, 0.2)]
)
def test_shares_on_losses_that_fall(decay: float, least: float, most: float) -> None:
    """Losses that fall by 1, 3 and 2 percent of a step: how far the logged shares are from the
    weights, 0.25, 0.25 and 0.5; the one that falls slowest is heard more."""
    net, batch = method(contrast={"weight": 0}, balance_decay=decay), some()
    for part in net.learner.parameters():
        part.data.zero_()  # KL against equal probabilities, near 0 as the square of the logits
    falls = {"image": 0.99, "series": 0.97, "text": 0.98}
    for step in range(150):
        answers = {k: 0.2 * falls[k] ** (step / 2) * v for k, v in batch.answers.items()}
        losses = net(batch._replace(answers=answers), WEIGHTS)
    assert float(losses.parts["kd_series"]) < 0.1 * float(losses.parts["kd_image"])
    shares = np.array([float(losses.parts[f"share_{k}"]) for k in KINDS])
    apart = shares - [0.25, 0.25, 0.5]
    assert least <= np.abs(apart).max() <= most
    if least:
        assert apart[0] > 0 > apart[1]


def test_the_decay_that_runs_always_had_is_no_news() -> None:
    """Runs and pieces from before it was a key are still known; others are told apart."""
    plain, same, other = (
        tiny_recipe(distill=tiny_values()["distill"] | change).distill.that_matter()
        for change in ({}, {"balance_decay": 0.98}, {"balance_decay": 0.9})
    )
    assert plain == same and "balance_decay" not in plain
    assert other == plain | {"balance_decay": 0.9}
    assert {"augment", "seed", "steps", "balance"} <= set(plain) and "workers" not in plain


def test_means_run_and_are_part_of_a_checkpoint() -> None:
    net, batch = method(contrast={"weight": 0}), some()
    first = {k: float(v) for k, v in net(batch, WEIGHTS).parts.items()}
    other = batch._replace(answers={k: v.flip(0) for k, v in batch.answers.items()})
    second = net(other, WEIGHTS).parts
    expected = 0.98 * first["kd_text"] + 0.02 * float(second["kd_text"])
    assert float(net.means[2]) == pytest.approx(expected, rel=1e-5)
    assert int(net.trained_state()["steps"]) == 2
    net.eval()
    net(batch, WEIGHTS)
    assert int(net.steps) == 2, "what is only measured is not remembered"


def test_the_contrast_is_of_the_whole_batch_by_its_weight() -> None:
    from edgekd.train.distill.evidence import info_nce

    batch = some()
    with_it = method(contrast={"weight": 0.5, "temperature": 0.2}, kd_weight=0)
    total = with_it(batch, WEIGHTS).total
    without = method(contrast={"weight": 0}, kd_weight=0)(batch, WEIGHTS).total
    tokens = with_it.learner.tokens(with_it.pixels(batch.image), batch.series, batch.text)
    every = {k: torch.ones(6, dtype=torch.bool) for k in KINDS}
    sources = {k: batch.sources[:, at] for at, k in enumerate(KINDS)}
    expected = info_nce(with_it.learner.embeddings(tokens), every, sources, 0.2)
    assert float(total - without) == pytest.approx(0.5 * float(expected), rel=1e-4)


def test_without_teachers_labels_are_all_there_is() -> None:
    recipe = tiny_recipe(
        teachers=[], distill=tiny_values()["distill"] | {"contrast": {"weight": 0}}
    )
    torch.manual_seed(1)
    net = PlaceMethod(recipe, recipe.distill.loop(SIDE), Plain())
    batch = some()._replace(answers={})
    losses = net(batch, WEIGHTS)
    assert set(losses.parts) == {"label"}
    assert losses.total.item() == pytest.approx(0.7 * float(losses.parts["label"]))
