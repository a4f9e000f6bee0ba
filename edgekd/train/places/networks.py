"""Teachers of places: an encoder of one kind of evidence, and a small network that answers.

Pictures go through any teacher that maps have (:mod:`edgekd.train.teachers`), series through a
network of :mod:`edgekd.train.places.teachers`, and texts come as embeddings already, which is what
their encoder is for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts import registry
from edgekd.contracts.place_recipe import PLACE_TEACHERS, PlaceRecipe, PlaceTeacher
from edgekd.errors import InputError
from edgekd.train.distill.methods._base import Pixels
from edgekd.train.distill.teaching import build_teacher
from edgekd.train.teachers._base import Teacher, choose_variant
from edgekd.train.teachers._weights import state_sha256

_HIDDEN, _DROPPED = 256, 0.5


class KindTeacher(nn.Module):
    """Answers from one kind of evidence.

    Attributes:
        sees: ``image``, ``series`` or ``text``; what :meth:`forward` is given.
        tuned: whether the encoder learns too; else it is frozen.
        encoder_sha256: of an encoder's weights as they came, empty where they began at random.
        head: features -> logits.
    """

    sees: str
    tuned: bool
    encoder_sha256: str = ""
    head: nn.Module

    def features(self, evidence: Tensor) -> Tensor:
        """``(N, width)``, before :attr:`head`."""
        raise NotImplementedError

    def forward(self, evidence: Tensor) -> Tensor:
        """Logits ``(N, classes)``."""
        found: Tensor = self.head(self.features(evidence))
        return found


def _head(width: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, _HIDDEN), nn.GELU(), nn.Dropout(_DROPPED),
        nn.Linear(_HIDDEN, classes),
    )  # fmt: skip


class ImageTeacher(KindTeacher):
    """``(N, 3, side, side)`` uint8: features of the whole picture and of its middle.

    Args:
        encoder: gives maps.
        entry: of the recipe.
        side_px: to which pictures are brought.
        classes: answers.
    """

    sees = "image"

    def __init__(self, encoder: Teacher, entry: PlaceTeacher, side_px: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.side_px = encoder, side_px
        self.tuned = entry.stage.tune == "network"
        self.encoder_sha256 = encoder.weights_sha256
        self.tap = max(encoder.channels)
        self.pixels = Pixels(encoder.mean, encoder.std)
        self.head = _head(2 * encoder.channels[self.tap], classes)
        encoder.requires_grad_(self.tuned)

    def features(self, evidence: Tensor) -> Tensor:
        """Mean of the last maps, and mean of their middle half."""
        image = self.pixels(evidence)
        if image.shape[-1] != self.side_px:
            image = F.interpolate(
                image, (self.side_px, self.side_px), mode="bilinear", align_corners=False,
                antialias=self.side_px < image.shape[-1],
            )  # fmt: skip
        with torch.set_grad_enabled(self.tuned and torch.is_grad_enabled()):
            maps = self.encoder.features(image, [self.tap])[0]
        edge = maps.shape[-1] // 4
        middle = maps[:, :, edge : maps.shape[-2] - edge, edge : maps.shape[-1] - edge]
        return torch.cat([maps.mean((2, 3)), middle.mean((2, 3))], dim=1)


class SeriesTeacher(KindTeacher):
    """``(N, days, 2 features)``; the network learns from the beginning."""

    sees, tuned = "series", True

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.width
        assert isinstance(width, int)
        self.head = _head(width, classes)

    def features(self, evidence: Tensor) -> Tensor:
        """As the encoder gives them."""
        found: Tensor = self.encoder(evidence)
        return found


class TextTeacher(KindTeacher):
    """``(N, width)`` embeddings."""

    sees, tuned = "text", False

    def __init__(self, width: int, classes: int, encoder_sha256: str) -> None:
        super().__init__()
        self.encoder_sha256 = encoder_sha256
        self.head = _head(width, classes)

    def features(self, evidence: Tensor) -> Tensor:
        """The embedding itself."""
        return evidence


def build_kind_teacher(
    entry: PlaceTeacher, recipe: PlaceRecipe, folder: Path, text_sha256: str
) -> KindTeacher:
    """A teacher of the recipe, its encoder with weights, its head with random ones.

    Args:
        entry: which.
        recipe: sizes and classes.
        folder: paths of weights are relative to it.
        text_sha256: of the encoder that makes the set's embeddings.

    Raises:
        InputError: a side or variant that does not fit, or a text encoder that is not the set's.
        CheckpointError, EnvironmentLacksError: as the teacher's own ``build``.
    """
    classes = len(recipe.io.classes)
    if entry.sees == "image":
        side = entry.image_px or recipe.io.image.tile_px
        encoder = build_teacher(entry, recipe.teachers.index(entry), folder)
        if side % encoder.side_multiple:
            raise InputError(
                f"teacher {entry.called} takes pictures of {side} px, expected a multiple of "
                f"{encoder.side_multiple} px; set its image_px"
            )
        return ImageTeacher(encoder, entry, side, classes)
    if entry.sees == "series":
        module: Any = registry.load(PLACE_TEACHERS, entry.name, "teacher of series")
        _require_sees(module, entry)
        if entry.weights not in ("random", "package"):
            raise InputError(
                f"teacher {entry.called} has weights: {entry.weights}; it is trained by the "
                "recipe, so write weights: random"
            )
        variant = choose_variant(entry.name, entry.variant, module.VARIANTS)
        channels = 2 * len(recipe.io.series.features)
        return SeriesTeacher(module.build_series(channels, variant, entry.causal), classes)
    module = registry.load(PLACE_TEACHERS, entry.name, "teacher of texts")
    _require_sees(module, entry)
    return TextTeacher(recipe.io.text.width, classes, text_sha256)


def _require_sees(module: Any, entry: PlaceTeacher) -> None:
    if entry.sees != module.SEES:
        raise InputError(f"teacher {entry.name} sees {module.SEES}, the recipe says {entry.sees}")


def answers_sha256(teacher: KindTeacher) -> str:
    """Of everything that decides about a teacher's answers."""
    return state_sha256(teacher.state_dict(), {"sees": teacher.sees})
