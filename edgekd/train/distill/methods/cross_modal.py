"""From sensors that a network does not have: soft answers, features, and what labels there are.

The learner is a student (its camera alone) or a teacher of the next stage (its own sensors). What
the teacher before it says of the same pixels is known already: it looked at each scene once. Per
pixel the loss is

    label_weight * CE + kd_weight * T^2 * KL(p_teacher(T) || p_learner(T))
    + feature_weight * (1 - cos(projected feature, teacher's feature))

with softened answers after Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), features after
Romero et al. 2015, and weights of classes after Cui et al. 2019 (effective number of samples).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.distill import BalanceSpec, CrossModalSpec, DistillSpec
from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.sensors import VISUAL
from edgekd.contracts.tensors import ImageInput
from edgekd.train.distill.methods._base import Losses, Method, Pixels, Weights, map_widths
from edgekd.train.students._base import Segmenter
from edgekd.train.teachers._sensors import SensorTeacher


class SensorBatch(NamedTuple):
    """What a step is made of; see :class:`edgekd.train.datasets.sensor_crops.SensorCrop`.

    Attributes:
        sensors: name -> ``(N, C, H, W)``.
        present: ``(N, S)`` bool.
        target: ``(N, H, W)`` int64.
        counted: ``(N, H, W)`` bool.
        scores, features: of the teacher, ``(N, K, H, W)`` and ``(N, H, W, D)``, or empty.
    """

    sensors: dict[str, Tensor]
    present: Tensor
    target: Tensor
    counted: Tensor
    scores: Tensor
    features: Tensor


def class_weights(pixels: Sequence[float], spec: BalanceSpec) -> Tensor:
    """Weight per class from its number of pixels, mean 1 over those that have any.

    ``effective_number``: ``(1 - beta) / (1 - beta^n)`` (Cui et al. 2019, equation 2). A class with
    less than one pixel has weight 0: no label asks for it, or no teacher knows it.
    """
    counts = torch.tensor(pixels, dtype=torch.float64)
    if spec.kind == "none":
        weights = torch.ones_like(counts)
    else:
        weights = (1 - spec.beta) / (1 - spec.beta ** counts.clamp(min=1))
    weights = torch.where(counts >= 1, weights, torch.zeros_like(weights))
    return (weights / weights[counts >= 1].mean()).float()


def soft_loss(scores: Tensor, teacher: Tensor, temperature: float, weights: Tensor) -> Tensor:
    """``T^2 * KL(teacher || learner)`` of softened answers, as a weighted mean over pixels.

    Args:
        scores, teacher: ``(P, K)`` logits of both.
        temperature: T.
        weights: ``(P,)``, at least 0; all 0 gives 0.
    """
    log_ours = F.log_softmax(scores / temperature, dim=1)
    log_theirs = F.log_softmax(teacher / temperature, dim=1)
    each = (log_theirs.exp() * (log_theirs - log_ours)).sum(dim=1)
    return temperature**2 * (each * weights).sum() / weights.sum().clamp(min=1e-9)


class CrossModal(Method):
    """See the module.

    Args:
        spec: of the stage.
        learner: a student, or a teacher of this stage.
        image: the student's input, for its normalisation.
        labels: labelled training pixels of each class.
        teacher_width: channels of the teacher's features; None without a teacher.

    Attributes:
        learner: what learns.
        temperature: of the next step, set by the task.
    """

    def __init__(
        self,
        spec: DistillSpec,
        learner: Segmenter | SensorTeacher,
        image: ImageInput,
        labels: Sequence[int],
        teacher_width: int | None,
    ) -> None:
        nn.Module.__init__(self)
        self.spec, self.rules = spec, spec.cross_modal
        self.learner = learner
        self.teachers = []
        self.masked = None
        self.pixels = Pixels(image.mean, image.std)
        self.temperature = self.rules.temperature.at(0.0)
        self.balance: Tensor
        self.register_buffer("balance", class_weights(labels, self.rules.balance), persistent=False)
        self.answered: Tensor
        self.register_buffer("answered", torch.ones(len(labels)), persistent=False)
        self.project: nn.Module | None = None
        if teacher_width is not None and self.rules.feature_weight > 0:
            width = (
                learner.width
                if isinstance(learner, SensorTeacher)
                else sum(map_widths(learner).values())
            )
            self.project = nn.Linear(width, teacher_width)

    def expect(self, pixels: Sequence[float]) -> None:
        """Weigh the classes of the teacher's answers.

        Args:
            pixels: of each class, as the teacher expects them: the sum of its probabilities over
                the training pixels. With few labels per class these are alike, and what the
                teacher answers is not: without weights the student learns the common classes.
        """
        self.answered.copy_(class_weights(pixels, self.rules.balance))

    def forward(
        self, batch: SensorBatch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`; weights of stages are not used, and nothing is drawn."""
        del weights, draw
        at = chosen_pixels(batch, self.rules)
        scores, features = self._answers(batch, at)
        target = batch.target[at]
        rules, parts = self.rules, {}
        total = scores.sum() * 0.0
        if rules.label_weight and bool((target != IGNORE).any()):
            label = F.cross_entropy(scores, target, weight=self.balance, ignore_index=IGNORE)
            total = total + rules.label_weight * label
            parts["label"] = label.detach()
        seen: dict[str, Tensor] = {}
        if batch.scores.numel():
            theirs = batch.scores.permute(0, 2, 3, 1)[at]
            chance = theirs.softmax(dim=1)
            trusted = (chance.max(dim=1).values >= rules.trust) | (target != IGNORE)
            weight = (chance @ self.answered) * trusted
            soft = soft_loss(scores, theirs, self.temperature, weight)
            total = total + rules.kd_weight * soft
            parts["kd"] = soft.detach()
            parts["trusted"] = trusted.float().mean()
            parts["temperature"] = torch.tensor(self.temperature, device=scores.device)
            if self.project is not None:
                wanted = batch.features[at].float()
                ours = self.project(features)
                apart = 1 - F.cosine_similarity(ours, wanted, dim=1)
                aligned = (apart * trusted).sum() / trusted.sum().clamp(min=1)
                total = total + rules.feature_weight * aligned
                parts["feature"] = aligned.detach()
        if inspect:
            seen["student"] = features.detach()
        return Losses(total=total, parts=parts, features=seen)

    def _answers(self, batch: SensorBatch, at: Tensor) -> tuple[Tensor, Tensor]:
        """Scores ``(P, K)`` and features ``(P, D)`` of the learner at the chosen pixels."""
        learner = self.learner
        if isinstance(learner, SensorTeacher):
            sensors = {name: batch.sensors[name] for name in learner.plans}
            places = [list(batch.sensors).index(name) for name in learner.plans]
            found: tuple[Tensor, Tensor] = learner(sensors, batch.present[:, places], at)
            return found
        maps = learner.encoder(self.pixels(batch.sensors[VISUAL]))
        scores = learner.decoder(maps)
        side = at.shape[-2:]
        where = at.nonzero(as_tuple=True)
        features = [_at_pixels(item, side, where) for item in maps]
        return _at_pixels(scores, side, where), torch.cat(features, dim=1)


def _at_pixels(maps: Tensor, side: Sequence[int], where: tuple[Tensor, ...]) -> Tensor:
    """``(N, C, h, w)`` at chosen pixels of the crop, ``(P, C)``; coarser maps bilinearly."""
    if tuple(maps.shape[-2:]) != tuple(side):
        maps = F.interpolate(maps, tuple(side), mode="bilinear", align_corners=False)
    return maps[where[0], :, where[1], where[2]]


def chosen_pixels(batch: SensorBatch, rules: CrossModalSpec) -> Tensor:
    """``(N, H, W)`` bool: at most ``rules.pixels`` pixels, labelled ones first, drawn at random.

    Without a teacher the others teach nothing and are left out.
    """
    labelled = batch.counted & (batch.target != IGNORE)
    chosen = _some(labelled, rules.pixels)
    room = rules.pixels - int(chosen.sum())
    if batch.scores.numel() and room:
        chosen = chosen | _some(batch.counted & ~labelled, room)
    return chosen


def _some(where: Tensor, most: int) -> Tensor:
    """At most so many of the True elements; drawn on the CPU, whose random state is kept."""
    places = where.reshape(-1).nonzero()[:, 0]
    if len(places) <= most:
        return where
    chosen = torch.zeros_like(where).reshape(-1)
    chosen[places[torch.randperm(len(places))[:most].to(places.device)]] = True
    return chosen.reshape(where.shape)
