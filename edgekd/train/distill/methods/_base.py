"""What every method of distillation is: a module whose forward gives losses.

A method is one file in this folder; the file's name is what ``distill.method`` says. It
offers::

    def build(recipe: Recipe, student: Segmenter, teachers: list[Teacher]) -> Method

``cross_modal`` is made by a task of its own (:mod:`edgekd.train.distill.chain`), which trains
teachers, too.

The loop (:mod:`edgekd.train.distill.loop`) owns optimiser, data, checkpoints and logs, and is the
same for all methods. Files that begin with an underscore are shared parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.contracts.distill import DistillSpec, TeacherSpec
from edgekd.contracts.recipe import Recipe
from edgekd.errors import InputError
from edgekd.train.distill.mae import MaeBranch, patches, reconstruction_loss, unpatch
from edgekd.train.distill.masking import batch_index, hidden_mask
from edgekd.train.distill.measures import Projector, TeacherNorm
from edgekd.train.distill.mmoa import MMoA
from edgekd.train.students._base import Segmenter
from edgekd.train.students._vit import Block, ViT
from edgekd.train.teachers._base import Teacher

#: weights of the losses (KD, teacher's reconstruction, student's reconstruction)
Weights = tuple[float, float, float]


class Batch(NamedTuple):
    """What a step is made of.

    Attributes:
        clean, view: crops ``(N, 3, H, W)`` uint8, without and with changed colours.
        numbers: of the crops; masks are drawn from them.
        features: teacher -> its features ``(N, C, h, w)`` per tap, where they are known already.
    """

    clean: Tensor
    view: Tensor
    numbers: Sequence[int]
    features: dict[int, list[Tensor]] | None = None


@dataclass
class Losses:
    """What a forward gives.

    Attributes:
        total: to minimise, with gradient.
        parts: ``kd``, ``teacher_mae``, ``student_mae`` where the method has them, detached.
        features: side -> features ``(..., D)``, detached, when asked for.
        pictures: name -> image ``(N, 3, H, W)`` in 0-255, when asked for.
    """

    total: Tensor
    parts: dict[str, Tensor]
    features: dict[str, Tensor] = field(default_factory=dict)
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Pixels(nn.Module):
    """uint8 pixels to a network's input and back; moves with its module."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """``(N, C, H, W)`` uint8 -> float32."""
        return (pixels.float() - self.mean) / self.std

    def back(self, image: Tensor) -> Tensor:
        """Inverse, clipped to 0-255 and not rounded."""
        return (image.float() * self.std + self.mean).clamp(0, 255)


class Method(nn.Module):
    """Losses of a batch.

    Attributes:
        spec: ``distill`` of the recipe.
        student: the encoder that is wanted.
        teachers: frozen; their weights are no part of a checkpoint.
        staged: whether the weights of the losses come from the schedule.
        pixels: normalisation of the student.
        masked: the masked student where the method hides patches, else None.
    """

    staged = False
    teachers: list[Teacher]  # in truth an nn.ModuleList, as below
    masked: MaskedViT | None

    def __init__(self, recipe: Recipe, student: Segmenter, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        assert recipe.distill is not None
        self.spec: DistillSpec = recipe.distill
        self.student = student.encoder
        self.teachers = nn.ModuleList(teachers)  # type: ignore[assignment]
        self.teacher_specs = list(recipe.teachers)
        total = sum(spec.weight for spec in self.teacher_specs)
        self.shares = [spec.weight / total for spec in self.teacher_specs]
        self.pixels = Pixels(recipe.io.inputs[0].mean, recipe.io.inputs[0].std)
        crop = self.spec.crop_px
        for number, teacher in enumerate(teachers):
            if crop % teacher.side_multiple:
                unit = math.lcm(
                    *(item.side_multiple for item in teachers),
                    getattr(student.encoder, "side_multiple", 1)
                    * (1 if self.spec.mask.kind == "none" else self.spec.mask.cell),
                )
                raise InputError(
                    f"distill.crop_px is {crop} px; teachers[{number}] ({teacher.name}) takes "
                    f"multiples of {teacher.side_multiple} px; all networks of this recipe take "
                    f"multiples of {unit} px"
                )

    def forward(
        self, batch: Any, weights: Weights, *, inspect: bool = False, draw: bool = False
    ) -> Losses:
        """Losses of one batch.

        Args:
            batch: on the method's device; a :class:`Batch`, or what the method's task makes.
            weights: of the losses, from the schedule; methods without stages do not use them.
            inspect: return the features that were compared.
            draw: return pictures.
        """
        raise NotImplementedError

    @property
    def draws(self) -> bool:
        """Whether there are pictures: something is reconstructed."""
        return self.masked is not None and self.masked.branch is not None

    def trained_state(self) -> dict[str, Tensor]:
        """State of everything but the teachers, on the CPU."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.state_dict().items()
            if not name.startswith("teachers.")
        }

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`trained_state`; raises RuntimeError when it does not fit."""
        frozen = {k: v for k, v in self.state_dict().items() if k.startswith("teachers.")}
        self.load_state_dict({**state, **frozen}, strict=True)

    def compile_blocks(self) -> None:
        """Let torch compile each transformer block and adapter on its own, teachers' too."""
        for teacher in self.teachers:
            teacher.compile_blocks()
        for module in list(self.modules()):
            if isinstance(module, (Block, MMoA)):
                module.compile()

    def train(self, mode: bool = True) -> Method:
        """Teachers stay in evaluation mode (see :class:`Teacher`)."""
        super().train(mode)
        return self


class MaskedViT(nn.Module):
    """The part of a method that runs a ViT student on visible tokens and paints the hidden ones.

    Args:
        encoder: the student.
        spec: ``distill`` of the recipe.
        branch: whether hidden patches are reconstructed.

    Raises:
        InputError: the crop or the mask does not fit the student.
    """

    def __init__(self, encoder: nn.Module, name: str, spec: DistillSpec, branch: bool) -> None:
        super().__init__()
        if not isinstance(encoder, ViT):
            raise InputError(
                f"masking needs a student of transformer blocks, {name} has none; take a vit_* "
                "student, or method feature with mask.kind: none"
            )
        check_crop(encoder, name, spec)
        self.encoder = [encoder]  # in a list: the method owns its parameters
        self._spec = spec
        self.branch = (
            MaeBranch(encoder.dim, encoder.patch_px, spec.mae.dim, spec.mae.depth, spec.mae.heads)
            if branch
            else None
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along the crop's sides."""
        side = self._spec.crop_px // self.encoder[0].patch_px
        return side, side

    def index(self, numbers: Sequence[int], device: torch.device) -> Tensor:
        """Visible patches ``(N, h', w')`` of the crops with these numbers."""
        mask = self._spec.mask
        return batch_index(mask.kind, mask.cell, self.grid, self._spec.seed, numbers, device)

    def painted(
        self, visible: Tensor, index: Tensor, image: Tensor, branch: MaeBranch, patch_px: int
    ) -> tuple[Tensor, Tensor]:
        """Reconstruction loss, and the predicted patches ``(N, h*w, patch*patch*3)``."""
        predicted = branch(visible, index, self.grid)
        target = patches(image, patch_px)
        hidden = hidden_mask(index, self.grid)
        loss = reconstruction_loss(
            predicted.float(), target.float(), hidden, self._spec.mae.patch_norm
        )
        return loss, predicted

    def picture(self, predicted: Tensor, index: Tensor, image: Tensor, patch_px: int) -> Tensor:
        """Visible patches as they are and hidden ones as predicted, ``(N, 3, H, W)``."""
        target = patches(image, patch_px)
        values = predicted.detach().float()
        if self._spec.mae.patch_norm:
            mean = target.mean(dim=-1, keepdim=True)
            values = values * (target.var(dim=-1, keepdim=True) + 1e-6).sqrt() + mean
        hidden = hidden_mask(index, self.grid)[..., None]
        return unpatch(torch.where(hidden, values, target), self.grid, patch_px)

    def masked(self, index: Tensor, image: Tensor, patch_px: int) -> Tensor:
        """Hidden patches grey (0 of the normalised image), ``(N, 3, H, W)``."""
        target = patches(image, patch_px)
        hidden = hidden_mask(index, self.grid)[..., None]
        return unpatch(torch.where(hidden, torch.zeros_like(target), target), self.grid, patch_px)


def check_crop(encoder: ViT, name: str, spec: DistillSpec) -> None:
    """Raise InputError unless crop and mask fit a ViT."""
    crop, patch, cell = spec.crop_px, encoder.patch_px, spec.mask.cell
    unit = encoder.side_multiple * cell
    if crop % unit:
        why = f"{cell}x{cell} cells of {patch} px patches" if cell > 1 else f"{patch} px patches"
        windows = " in windows of 16 visible patches" if encoder.side_multiple > patch else ""
        raise InputError(
            f"distill.crop_px is {crop} px; {name} with mask {spec.mask.kind} takes multiples of "
            f"{unit} px ({why}{windows})"
        )


class Bridges(nn.Module):
    """Projectors from a student's features to one teacher's, and that teacher's normalisation.

    Args:
        spec: the teacher's entry in the recipe.
        number: its place there, for messages.
        pairs: (teacher tap, student block), 1-based.
        teacher_dims, student_dims: tap or block -> width.

    Raises:
        InputError: a pair lies outside the depth.
    """

    projectors: list[Projector]
    norms: list[TeacherNorm]

    def __init__(
        self,
        spec: TeacherSpec,
        number: int,
        pairs: Sequence[Sequence[int]],
        teacher_dims: dict[int, int],
        student_dims: dict[int, int],
    ) -> None:
        super().__init__()
        for teacher, student in pairs:
            for side, tap, dims in (
                (spec.name, teacher, teacher_dims),
                ("the student", student, student_dims),
            ):
                if tap not in dims:
                    raise InputError(
                        f"teachers[{number}].pairs holds [{teacher}, {student}], and {side} has "
                        f"the blocks {min(dims)} to {max(dims)}"
                    )
        self.pairs = [(teacher, student) for teacher, student in pairs]
        self.projectors = nn.ModuleList(  # type: ignore[assignment]
            Projector(student_dims[student], teacher_dims[teacher], spec.projector)
            for teacher, student in self.pairs
        )
        self.norms = nn.ModuleList(  # type: ignore[assignment]
            TeacherNorm(teacher_dims[teacher], spec.norm) for teacher, _ in self.pairs
        )

    @property
    def teacher_taps(self) -> list[int]:
        """Taps of the teacher that are compared, rising."""
        return sorted({teacher for teacher, _ in self.pairs})

    @property
    def student_taps(self) -> list[int]:
        """Blocks of the student that are compared, rising."""
        return sorted({student for _, student in self.pairs})

    def loss(
        self,
        student: dict[int, Tensor],
        teacher: dict[int, Tensor],
        distance: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Mean over the pairs of ``distance(projected student, normalised teacher)``."""
        losses = []
        for (tap, block), project, norm in zip(
            self.pairs, self.projectors, self.norms, strict=True
        ):
            if self.training:
                norm.observe(teacher[tap].detach())
            losses.append(distance(project(student[block]), norm(teacher[tap])))
        return torch.stack(losses).mean()


@torch.no_grad()
def map_widths(student: Segmenter) -> dict[int, int]:
    """Channels of the feature maps that a student gives its decoder, numbered from 1."""
    side = student.side_multiple
    was = student.training
    student.eval()
    maps = student.encoder(torch.zeros(1, 3, side, side))
    student.train(was)
    return {number: int(item.shape[1]) for number, item in enumerate(maps, start=1)}


def to_grid(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Teacher features ``(N, C, h, w)`` on another grid, as ``(N, h', w', C)``.

    A finer map is averaged over the cells of the coarser grid, a coarser one interpolated
    bilinearly; cell centres stay where they are in the image in both cases.
    """
    if tuple(features.shape[-2:]) != grid:
        if features.shape[-2] > grid[0]:
            features = functional.adaptive_avg_pool2d(features, grid)
        else:
            features = functional.interpolate(features, grid, mode="bilinear", align_corners=False)
    return features.permute(0, 2, 3, 1)
