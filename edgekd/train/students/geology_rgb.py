"""Geology from a colour camera: a pixel's colour, and what lies around it, kept apart.

Fully convolutional. One path sees single pixels through 1 x 1 convolutions, the other one their
surroundings through 3 x 3 convolutions, some of them dilated; their scores are added. With few
labels the second path can fit the few places that have one: while training it is left out of
every other crop (stochastic depth, Huang et al. 2016), so that the colour path must stand alone.
``student.drop_path: 0`` keeps it; which of the two is better depends on the data, and
``benchmarks/README.md`` has the trials.

Plain convolutions, batch norm (folded at export), ReLU6 and additions: all of it has an exact
counterpart in integers. Sizes hold numbers only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError
from edgekd.train.students._base import Segmenter

__all__ = ["ATTENTIONS", "DROP_PATH", "HEADS", "VARIANTS", "build"]

ATTENTIONS = (None,)  # a convolutional network has none
HEADS = (None,)
#: normalisation of the recipe is free: there are no weights from elsewhere
MEAN, STD = (127.5, 127.5, 127.5), (64.0, 64.0, 64.0)


#: part of the crops that go without their surroundings while training, unless the recipe says
DROP_PATH = 0.5


class Size(NamedTuple):
    """One size.

    Attributes:
        colour: channels of the colour path.
        width: channels of the path that sees the surroundings.
        dilations: of its residual blocks, two 3 x 3 convolutions each, at half resolution.
    """

    colour: int
    width: int
    dilations: tuple[int, ...]


VARIANTS = {"small": Size(32, 32, (1, 2, 4)), "nano": Size(16, 16, (1, 2))}
#: input pixels per cell of the path that sees the surroundings
CONTEXT_STRIDE = 2


class ConvUnit(nn.Sequential):
    """Convolution, batch norm, ReLU6: ``(N, C, H, W)`` -> ``(N, channels, H / stride, ...)``."""

    def __init__(
        self, inputs: int, channels: int, side: int = 3, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (side // 2)
        super().__init__(
            nn.Conv2d(inputs, channels, side, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(inplace=True),
        )


class Residual(nn.Module):
    """``x + BN(conv(unit(x)))``, then ReLU6; both convolutions with the same dilation."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.unit = ConvUnit(channels, channels, dilation=dilation)
        self.conv = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, C, H, W)`` -> the same shape."""
        return F.relu6(x + self.norm(self.conv(self.unit(x))))


class Encoder(nn.Module):
    """Normalised image ``(N, 3, H, W)`` -> colour features at stride 1, surroundings at 2."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.colour = nn.Sequential(
            ConvUnit(3, size.colour, side=1), ConvUnit(size.colour, size.colour, side=1)
        )
        self.context = nn.Sequential(
            ConvUnit(3, size.width, stride=CONTEXT_STRIDE),
            *(Residual(size.width, dilation) for dilation in size.dilations),
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """``(N, 3, H, W)`` -> ``[(N, colour, H, W), (N, width, H / 2, W / 2)]``."""
        return [self.colour(image), self.context(image)]


class Decoder(nn.Module):
    """Scores of both paths, added at stride 1; the second one is brought there bilinearly.

    Attributes:
        drop_path: part of the crops that go without their surroundings while training, 0-1.
    """

    def __init__(self, size: Size, num_classes: int, drop_path: float = DROP_PATH) -> None:
        super().__init__()
        self.colour = nn.Conv2d(size.colour, num_classes, 1)
        self.context = nn.Conv2d(size.width, num_classes, 1)
        nn.init.zeros_(self.context.weight)
        nn.init.zeros_(self.context.bias)  # type: ignore[arg-type]
        self.drop_path = drop_path

    def forward(self, features: list[Tensor]) -> Tensor:
        """``[(N, colour, H, W), (N, width, H / 2, W / 2)]`` -> logits ``(N, classes, H, W)``."""
        colour, context = features
        around = self.context(context)
        if self.training and self.drop_path:
            keep = 1 - self.drop_path
            drawn = torch.rand(len(around), 1, 1, 1, device=around.device) < keep
            # Divided by the chance, so that its mean is that of inference, where it is always in.
            around = around * drawn / keep
        scores: Tensor = self.colour(colour)
        return scores + F.interpolate(
            around, scale_factor=float(CONTEXT_STRIDE), mode="bilinear", align_corners=False
        )


def build(
    num_classes: int,
    *,
    variant: str | None = None,
    attention: str | None = None,
    head: str | None = None,
    pretrained: bool | None = None,
    drop_path: float | None = None,
) -> Segmenter:
    """Build the student.

    Args:
        num_classes: channels of the logits.
        variant: ``small`` (None: the same) or ``nano``.
        attention, head: must be None.
        pretrained: ``True`` is refused (there are no bundled weights).
        drop_path: part of the crops, 0-1, that go without their surroundings while training; None
            is :data:`DROP_PATH`, for few labels.

    Raises:
        InputError: no such size, or an option that the student does not have.
    """
    for what, asked in (("attention", attention), ("head", head), ("pretrained", pretrained)):
        if asked:
            raise InputError(
                f"student geology_rgb got {what} {asked!r}, and has no such option; remove the key"
            )
    name = variant or next(iter(VARIANTS))
    if name not in VARIANTS:
        raise InputError(
            f"student geology_rgb has no variant '{name}'{nearest(name, list(VARIANTS))} (valid: "
            f"{', '.join(VARIANTS)})"
        )
    size = VARIANTS[name]
    return Segmenter(
        Encoder(size),
        Decoder(size, num_classes, DROP_PATH if drop_path is None else drop_path),
        name="geology_rgb",
        num_classes=num_classes,
        stride=1,
        side_multiple=CONTEXT_STRIDE,
        mean=MEAN,
        std=STD,
        options={"variant": name, "attention": None, "head": None, "pretrained": False},
    )
