"""Dense feature distillation from frozen teachers, spatially aligned.

The teacher sees the whole crop, without changed colours; its features are brought to the student's
grid. The student sees the crop with changed colours: all of it (``mask.kind: none``), or the
visible patches only, and then features are compared where it sees. With ``mae.weight`` above 0
the hidden patches are painted by a MAE branch besides. Any student can learn this way as long as
nothing is masked; masking needs a ViT.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgekd.contracts.recipe import Recipe
from edgekd.errors import InputError
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
    check_crop,
    map_widths,
    to_grid,
)
from edgekd.train.students._base import Segmenter
from edgekd.train.students._vit import ViT
from edgekd.train.teachers._base import Teacher


class Feature(Method):
    """Student features, projected, against those of one or several frozen teachers."""

    inputs: list[Pixels]
    bridges: list[Bridges]

    def __init__(self, recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> None:
        super().__init__(recipe, student, teachers)
        encoder = student.encoder
        hides = self.spec.mask.kind != "none"
        self.masked = (
            MaskedViT(encoder, student.name, self.spec, self.spec.mae.weight > 0) if hides else None
        )
        if isinstance(encoder, ViT):
            if not hides:
                check_crop(encoder, student.name, self.spec)
            dims = dict.fromkeys(range(1, len(encoder.blocks) + 1), encoder.dim)
        else:
            dims = map_widths(student)
        self.inputs = torch.nn.ModuleList(  # type: ignore[assignment]
            Pixels(item.mean, item.std) for item in teachers
        )
        self.bridges = torch.nn.ModuleList(  # type: ignore[assignment]
            Bridges(spec, number, spec.pairs or [[max(item.channels), max(dims)]],
                    item.channels, dims)
            for number, (spec, item) in enumerate(zip(recipe.teachers, teachers, strict=True))
        )  # fmt: skip

        deepest = max(tap for bridge in self.bridges for tap in bridge.student_taps)
        if deepest < max(dims) and not self.draws:
            raise InputError(
                f"the deepest student block in teachers[].pairs is {deepest} of {max(dims)}: what "
                "lies behind it would stay random; compare the last one too, or add a MAE branch "
                "with distill.mae.weight and a mask"
            )

    @torch.no_grad()
    def teacher_features(self, number: int, clean: Tensor) -> list[Tensor]:
        """Features ``(N, C, h, w)`` of one teacher at the taps that are compared."""
        teacher, bridge = self.teachers[number], self.bridges[number]
        features: list[Tensor] = teacher.features(self.inputs[number](clean), bridge.teacher_taps)
        return features

    def forward(
        self, batch: Batch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`."""
        del weights
        image = self.pixels(batch.view)
        taps = sorted({tap for bridge in self.bridges for tap in bridge.student_taps})
        student, index = self._student(image, batch, taps)
        known = batch.features or {}
        distance = torch.zeros((), device=image.device)
        result = Losses(total=distance, parts={})
        for number, bridge in enumerate(self.bridges):
            maps = known.get(number) or self.teacher_features(number, batch.clean)
            teacher = {}
            for tap, features in zip(bridge.teacher_taps, maps, strict=True):
                grid = to_grid(features.float(), self._grid(student))
                teacher[tap] = grid if index is None else take_visible(grid, index)
            loss = bridge.loss(student, teacher, kd_loss)
            distance = distance + self.shares[number] * loss
            if len(self.bridges) > 1:
                result.parts[f"kd_{number}"] = loss.detach()
            if inspect:
                result.features[f"teacher{number or ''}"] = teacher[max(teacher)]
        result.parts["kd"] = distance.detach()
        result.total = distance
        part = self.masked
        if part is not None and part.branch is not None:
            assert index is not None
            vit = part.encoder[0]
            loss, predicted = part.painted(student[0], index, image, part.branch, vit.patch_px)
            result.parts["student_mae"] = loss.detach()
            result.total = distance + self.spec.mae.weight * loss
            if draw:
                back = self.pixels.back
                result.pictures = {
                    "tile": batch.view.float(),
                    "masked": back(part.masked(index, image, vit.patch_px)),
                    "student": back(part.picture(predicted, index, image, vit.patch_px)),
                }
        if inspect:
            result.features["student"] = student[taps[-1]].detach()
        return result

    def _grid(self, student: dict[int, Tensor]) -> tuple[int, int]:
        """The student's full grid; its blocks must share one."""
        if self.masked is not None:
            return self.masked.grid
        first = next(iter(student.values()))
        return int(first.shape[1]), int(first.shape[2])

    def _student(
        self, image: Tensor, batch: Batch, taps: list[int]
    ) -> tuple[dict[int, Tensor], Tensor | None]:
        """Block -> features ``(N, h, w, D)`` as a decoder gets them, 0 -> the last block's."""
        encoder = self.student
        if not isinstance(encoder, ViT):
            maps = encoder(image)
            return {tap: maps[tap - 1].permute(0, 2, 3, 1) for tap in taps}, None
        tokens = encoder.patchify(image)
        index = None
        if self.masked is None:
            tokens = encoder.place(tokens)
        else:
            index = self.masked.index(batch.numbers, image.device)
            positions = encoder.positions_for(tokens.shape[1], tokens.shape[2])
            tokens = take_visible(tokens, index) + take_positions(positions, index)
        wanted = taps
        if self.masked is not None and self.masked.branch is not None:
            wanted = sorted({*taps, len(encoder.blocks)})
        streams = encoder.run_blocks(tokens, wanted, self.spec.checkpointing)
        found = {tap: encoder.norm(item) for tap, item in zip(wanted, streams, strict=True)}
        if wanted != taps or (self.masked is not None and self.masked.branch is not None):
            found[0] = found[wanted[-1]]
        return found, index


def build(recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> Method:
    """See :mod:`edgekd.train.distill.methods._base`."""
    return Feature(recipe, student, teachers)
