"""Mask-CDKD: teacher and student see the same visible patches, reconstruct, and meet in between.

The teacher's backbone is frozen; adapters (MMoA) in each of its blocks learn from its own
reconstruction and, unless ``detach_teacher``, from the distillation loss as well, so that both
sides move towards each other. The student learns from its own reconstruction and from the teacher's
features at three depths. Weights of the three losses come from the schedule.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.contracts.recipe import Recipe
from edgekd.errors import InputError
from edgekd.train.distill.mae import MaeBranch
from edgekd.train.distill.masking import take_positions, take_visible
from edgekd.train.distill.measures import kd_loss
from edgekd.train.distill.methods._base import (
    Batch,
    Bridges,
    Losses,
    MaskedViT,
    Method,
    Pixels,
    Weights,
)
from edgekd.train.distill.mmoa import MMoA
from edgekd.train.students._base import Segmenter
from edgekd.train.students._vit import ViT
from edgekd.train.teachers._base import Teacher, TransformerTeacher


class Side(nn.Module):
    """What is trained on one teacher's side: adapters, reconstruction branch, projectors.

    Default pairs are blocks at a quarter, half and three quarters of both depths; with 24 and 12
    blocks these are the paper's {6, 12, 18} and {3, 6, 9}.
    """

    adapters: list[MMoA]

    def __init__(
        self, recipe: Recipe, number: int, teacher: Teacher, student: ViT, name: str
    ) -> None:
        super().__init__()
        spec = recipe.distill
        assert spec is not None
        if not isinstance(teacher, TransformerTeacher):
            raise InputError(
                f"method mask_cdkd needs teachers of transformer blocks; teachers[{number}] "
                f"({teacher.name}) has none; take sam, or method feature"
            )
        if teacher.patch_px != student.patch_px:
            raise InputError(
                f"teachers[{number}] has patches of {teacher.patch_px} px and {name} of "
                f"{student.patch_px} px; with mask_cdkd both must see the same patches"
            )
        adapter = spec.adapter
        self.adapters = nn.ModuleList(  # type: ignore[assignment]
            MMoA(teacher.dim, adapter.reduction, adapter.multi_scale, adapter.gate)
            for _ in range(teacher.depth)
        )
        depth = len(student.blocks)
        pairs = recipe.teachers[number].pairs or [
            [max(1, teacher.depth * part // 4), max(1, depth * part // 4)] for part in (1, 2, 3)
        ]
        self.bridges = Bridges(
            recipe.teachers[number],
            number,
            pairs,
            dict.fromkeys(range(1, teacher.depth + 1), teacher.dim),
            dict.fromkeys(range(1, depth + 1), student.dim),
        )
        self.norm = nn.LayerNorm(teacher.dim)  # the residual stream of SAM grows with depth
        self.branch = MaeBranch(
            teacher.dim, teacher.patch_px, spec.mae.dim, spec.mae.depth, spec.mae.heads
        )
        self.pixels = Pixels(teacher.mean, teacher.std)


class MaskCdkd(Method):
    """The losses of Mask-CDKD."""

    staged = True
    masked: MaskedViT
    sides: list[Side]

    def __init__(self, recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> None:
        super().__init__(recipe, student, teachers)
        self.masked = MaskedViT(student.encoder, student.name, self.spec, branch=True)
        vit = self.masked.encoder[0]
        self.sides = nn.ModuleList(  # type: ignore[assignment]
            Side(recipe, number, teacher, vit, student.name)
            for number, teacher in enumerate(teachers)
        )

    def forward(
        self, batch: Batch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`."""
        part, vit = self.masked, self.masked.encoder[0]
        assert part.branch is not None
        image = self.pixels(batch.view)
        index = part.index(batch.numbers, image.device)
        blocks = {len(vit.blocks)}.union(*(side.bridges.student_taps for side in self.sides))
        tokens = take_visible(vit.patchify(image), index)
        tokens = tokens + take_positions(vit.positions_for(*part.grid), index)
        streams = vit.run_blocks(tokens, sorted(blocks), self.spec.checkpointing)
        student = dict(zip(sorted(blocks), streams, strict=True))
        last = vit.norm(student[len(vit.blocks)])
        student_mae, painted = part.painted(last, index, image, part.branch, vit.patch_px)

        zero = torch.zeros((), device=image.device)
        distance, teacher_mae = zero, zero
        result = Losses(total=zero, parts={})
        back, patch_px = self.pixels.back, vit.patch_px
        if draw:
            result.pictures = {
                "tile": batch.view.float(),
                "masked": back(part.masked(index, image, patch_px)),
                "student": back(part.picture(painted, index, image, patch_px)),
            }
        for number, side in enumerate(self.sides):
            features, top = self._teacher(number, batch.view, index)
            reconstruction, predicted = part.painted(
                side.norm(top), index, image, side.branch, patch_px
            )
            if self.spec.detach_teacher:
                features = {tap: item.detach() for tap, item in features.items()}
            gap = side.bridges.loss(student, features, kd_loss)
            distance = distance + self.shares[number] * gap
            teacher_mae = teacher_mae + self.shares[number] * reconstruction
            name = f"teacher{number or ''}"
            if len(self.sides) > 1:
                result.parts[f"kd_{number}"] = gap.detach()
                result.parts[f"teacher_mae_{number}"] = reconstruction.detach()
            if inspect:
                result.features[name] = features[max(features)].detach()
            if draw:
                result.pictures[name] = back(part.picture(predicted, index, image, patch_px))
        if inspect:
            result.features["student"] = student[max(self.sides[0].bridges.student_taps)].detach()
        result.parts |= {
            "kd": distance.detach(),
            "teacher_mae": teacher_mae.detach(),
            "student_mae": student_mae.detach(),
        }
        kd_weight, teacher_weight, student_weight = weights
        result.total = (
            kd_weight * distance + teacher_weight * teacher_mae + student_weight * student_mae
        )
        return result

    def _teacher(
        self, number: int, view: Tensor, index: Tensor
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Tap -> features at the visible patches, and those of the last block."""
        teacher, side = self.teachers[number], self.sides[number]
        assert isinstance(teacher, TransformerTeacher)
        with torch.no_grad():  # nothing before the first adapter is trained
            tokens = take_visible(teacher.patchify(side.pixels(view)), index)
        taps = sorted({*side.bridges.teacher_taps, teacher.depth})
        streams = teacher.run_blocks(tokens, taps, list(side.adapters), self.spec.checkpointing)
        found = dict(zip(taps, streams, strict=True))
        return found, found[teacher.depth]


def build(recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> Method:
    """See :mod:`edgekd.train.distill.methods._base`."""
    return MaskCdkd(recipe, student, teachers)
