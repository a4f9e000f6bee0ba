"""Masked autoencoding without a teacher (He et al. 2022): the control of every comparison."""

from __future__ import annotations

from edgekd.contracts.recipe import Recipe
from edgekd.train.distill.masking import take_positions, take_visible
from edgekd.train.distill.methods._base import Batch, Losses, MaskedViT, Method, Weights
from edgekd.train.students._base import Segmenter
from edgekd.train.teachers._base import Teacher


class Mae(Method):
    """The student sees a part of the patches and reconstructs the others."""

    masked: MaskedViT

    def __init__(self, recipe: Recipe, student: Segmenter) -> None:
        super().__init__(recipe, student, [])
        self.masked = MaskedViT(self.student, student.name, self.spec, branch=True)

    def forward(
        self, batch: Batch, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """See :meth:`Method.forward`."""
        del weights
        part, vit = self.masked, self.masked.encoder[0]
        assert part.branch is not None
        image = self.pixels(batch.view)
        index = part.index(batch.numbers, image.device)
        tokens = take_visible(vit.patchify(image), index)
        tokens = tokens + take_positions(vit.positions_for(*part.grid), index)
        (last,) = vit.run_blocks(tokens, [len(vit.blocks)], self.spec.checkpointing)
        last = vit.norm(last)
        loss, predicted = part.painted(last, index, image, part.branch, vit.patch_px)
        result = Losses(total=loss, parts={"student_mae": loss.detach()})
        if inspect:
            result.features["student"] = last.detach()
        if draw:
            back = self.pixels.back
            result.pictures = {
                "tile": batch.view.float(),
                "masked": back(part.masked(index, image, vit.patch_px)),
                "student": back(part.picture(predicted, index, image, vit.patch_px)),
            }
        return result


def build(recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> Method:
    """See :mod:`edgekd.train.distill.methods._base`."""
    del teachers
    return Mae(recipe, student)
