"""The smallest head: one 1 x 1 convolution on the deepest feature map.

It measures what the encoder knows (a linear probe) and costs next to nothing; outlines are as
coarse as the deepest stride. There is no norm in it: encoders hand over normalised features.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgekd.errors import InputError


class LinearHead(nn.Module):
    """Per-cell linear classifier.

    Args:
        channels: channels of the last feature map.
        stride: input pixels per cell of the last feature map.
        num_classes: output channels.

    Attributes:
        stride: input pixels per logit.
        side_multiple: the sides of the image must be multiples of this many pixels.
    """

    def __init__(self, channels: int, stride: int, num_classes: int) -> None:
        super().__init__()
        self.stride = stride
        self.side_multiple = stride
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps, the last ``(N, C, h, w)`` -> logits ``(N, num_classes, h, w)``."""
        logits: Tensor = self.classify(features[-1])
        return logits


def build(
    in_channels: list[int], in_strides: list[int], num_classes: int, *, width: int | None = None
) -> LinearHead:
    """Build the head for feature maps of these channels and strides (the last one is used).

    Args:
        in_channels: channels of each feature map.
        in_strides: input pixels per cell of each feature map.
        num_classes: output channels.
        width: must stay ``None``: this head has no inner width.

    Raises:
        InputError: ``width`` is given.
    """
    if width is not None:
        raise InputError(f"the linear head has no inner width (received {width}); leave it out")
    return LinearHead(in_channels[-1], in_strides[-1], num_classes)
