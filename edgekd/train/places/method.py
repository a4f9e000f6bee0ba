"""Losses of students and teachers of places (see :class:`PlaceDistillSpec` for the formula)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.distill import DistillSpec
from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_recipe import PlaceDistillSpec, PlaceRecipe, PlaceTeacher
from edgekd.train.distill.evidence import balanced_weights, info_nce, soft_losses
from edgekd.train.distill.methods._base import Losses, Method, Pixels, Weights
from edgekd.train.places.networks import KindTeacher
from edgekd.train.places.students._base import PlaceStudent
from edgekd.train.run import freeze, hold_statistics

#: decay of the running mean of what was heard, which is told and moves nothing
_HEARD = 0.98


class PlaceBatch(NamedTuple):
    """What a step is made of.

    Attributes:
        image: ``(N, 3, side, side)`` uint8.
        series: ``(N, days, 2 features)``.
        text: ``(N, width)``.
        label: ``(N,)`` int64.
        present: ``(N, 3)`` of 0 and 1, which kinds the student is given.
        sources: ``(N, 3)`` int64.
        answers: kind -> ``(N, classes)`` logits of the teacher that sees it.
        features: ``(N, width)`` of a teacher's encoder, where they are known already.
        there: ``(N, 3)`` of 0 and 1, which kinds the places have at all; None is every kind. A
            teacher has nothing to say of a place without its kind, nor has InfoNCE.
    """

    image: Tensor
    series: Tensor
    text: Tensor
    label: Tensor
    present: Tensor
    sources: Tensor
    answers: Mapping[str, Tensor]
    features: Tensor | None = None
    there: Tensor | None = None

    def having(self, kind: str) -> Tensor:
        """``(N,)`` bool: which places have a kind."""
        if self.there is None:
            return torch.ones_like(self.label, dtype=torch.bool)
        return self.there[:, KINDS.index(kind)] > 0


class KindMethod(Method):
    """A teacher of one kind of evidence, from labels."""

    def __init__(self, spec: DistillSpec, learner: KindTeacher) -> None:
        nn.Module.__init__(self)
        self.spec, self.learner = spec, learner
        self.teachers = []
        self.masked = None

    def forward(
        self, batch: PlaceBatch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`."""
        del weights, draw
        features = batch.features
        if features is None:
            features = self.learner.features(getattr(batch, self.learner.sees))
        loss = F.cross_entropy(self.learner.head(features), batch.label)
        seen = {"student": features.detach()} if inspect else {}
        return Losses(total=loss, parts={"label": loss.detach()}, features=seen)

    def train(self, mode: bool = True) -> KindMethod:
        """A frozen encoder stays in evaluation mode."""
        nn.Module.train(self, mode)
        if not self.learner.tuned and isinstance(
            encoder := getattr(self.learner, "encoder", None), nn.Module
        ):
            encoder.eval()
        return self

    def trained_state(self) -> dict[str, Tensor]:
        """What learns: the head alone where the encoder is frozen."""
        state = super().trained_state()
        if self.learner.tuned:
            return state
        return {k: v for k, v in state.items() if not k.startswith("learner.encoder.")}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`trained_state`."""
        kept = self.state_dict() | state
        self.load_state_dict(kept, strict=True)


class PlaceMethod(Method):
    """The student, from its teachers and labels.

    Args:
        recipe: how.
        spec: of the loop.
        learner: the student.

    Attributes:
        means: running means of the teachers' losses, in the order of :data:`KINDS`.
        heard: what part of what is learned from teachers each had so far, as a running mean.
    """

    means: Tensor
    heard: Tensor
    steps: Tensor

    def __init__(self, recipe: PlaceRecipe, spec: DistillSpec, learner: PlaceStudent) -> None:
        nn.Module.__init__(self)
        self.spec, self.learner = spec, learner
        self.rules: PlaceDistillSpec = recipe.distill
        self.teachers = []
        self.masked = None
        entries: dict[str, PlaceTeacher] = {item.sees: item for item in recipe.teachers}
        self.kinds: list[str] = [kind for kind in KINDS if kind in entries]
        self.temperatures: dict[str, float] = {
            kind: entries[kind].temperature for kind in self.kinds
        }
        self.weights: dict[str, float] = {kind: entries[kind].weight for kind in self.kinds}
        self.pixels = Pixels(recipe.io.image.mean, recipe.io.image.std)
        freeze(learner, learner.name, self.rules.freeze, "distill.freeze")
        self.register_buffer("means", torch.zeros(len(KINDS)))
        self.register_buffer("heard", torch.zeros(len(KINDS)))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self, batch: PlaceBatch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`."""
        del weights, draw
        learner, rules = self.learner, self.rules
        tokens = learner.tokens(self.pixels(batch.image), batch.series, batch.text)
        asked = [batch.present]
        if self.kinds and rules.kd_weight and rules.taught == "alone":
            asked += [_only(batch.present, kind) for kind in self.kinds]
        scores, *alone = learner.answers(tokens, torch.stack(asked)).unbind()
        label = F.cross_entropy(scores, batch.label)
        total = rules.label_weight * label
        parts = {"label": label.detach()}
        if self.kinds and rules.kd_weight:
            soft, told = self._taught(scores, dict(zip(self.kinds, alone, strict=False)), batch)
            total = total + rules.kd_weight * soft
            parts |= {"kd": soft.detach(), **told}
        if rules.contrast.weight:
            every = {kind: batch.having(kind) for kind in KINDS}
            sources = {kind: batch.sources[:, at] for at, kind in enumerate(KINDS)}
            contrast = info_nce(
                learner.embeddings(tokens),
                every,
                sources,
                rules.contrast.temperature,
            )
            total = total + rules.contrast.weight * contrast
            parts["contrast"] = contrast.detach()
        seen = {"student": scores.detach()} if inspect else {}
        return Losses(total=total, parts=parts, features=seen)

    def _taught(
        self, scores: Tensor, alone: Mapping[str, Tensor], batch: PlaceBatch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighed sum of the teachers' losses; what each was, and its share.

        Args:
            scores: of the student, from all evidence that it was given.
            alone: kind -> its scores from that kind alone; empty where ``scores`` are taught.
            batch: of the step.
        """
        losses: dict[str, Tensor] = {}
        heard: list[str] = []
        for kind in self.kinds:
            at = KINDS.index(kind)
            there = batch.having(kind) if alone else batch.present[:, at] > 0
            if bool(there.any()):
                heard.append(kind)
            ours = alone.get(kind, scores)
            losses |= soft_losses(
                ours, {kind: batch.answers[kind]}, self.temperatures, {kind: there}
            )
        if self.training:
            self._remember({kind: losses[kind] for kind in heard})
        means = {kind: float(self.means[KINDS.index(kind)]) for kind in self.kinds}
        given = (
            balanced_weights(means, self.weights)
            if self.rules.balance == "shares"
            else {k: w / sum(self.weights.values()) for k, w in self.weights.items()}
        )
        each = {kind: given[kind] * loss for kind, loss in losses.items()}
        total = torch.stack(list(each.values())).sum()
        parts = {f"kd_{kind}": loss.detach() for kind, loss in losses.items()}
        for kind, part in each.items():
            share = part.detach() / total.detach().clamp(min=1e-12)
            at = KINDS.index(kind)
            if self.training:
                self.heard[at] = share if self.steps == 1 else _blend(self.heard[at], share, _HEARD)
            parts[f"share_{kind}"] = self.heard[at].clone()
        return total, parts

    def train(self, mode: bool = True) -> PlaceMethod:
        """What is frozen keeps its statistics, too."""
        nn.Module.train(self, mode)
        part = self.learner.pretrained_part()
        if self.rules.freeze_bn and part is not None:
            hold_statistics(part)
        for path in self.rules.freeze:
            hold_statistics(self.learner.get_submodule(path))
        return self

    @torch.no_grad()
    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        self.steps += 1
        for kind, loss in losses.items():
            at = KINDS.index(kind)
            now = loss.detach()
            first = self.steps == 1 or not bool(self.means[at])  # in no batch before
            decay = self.rules.balance_decay
            self.means[at] = now if first else _blend(self.means[at], now, decay)


def _only(present: Tensor, kind: str) -> Tensor:
    """That kind is there, and no other."""
    found = torch.zeros_like(present)
    found[:, KINDS.index(kind)] = 1
    return found


def _blend(old: Tensor, new: Tensor, decay: float) -> Tensor:
    return decay * old + (1 - decay) * new
