"""Light feature pyramid decoder for convolutional students, friendly to integer inference.

Every operation has an exact counterpart with int8 weights and activations on small boards: 1x1
and 3x3 convolutions, batch normalisation (folded into the convolution before it when the model is
exported), ReLU6, bilinear upsampling by exactly 2, addition. The idea is that of Feature Pyramid
Networks (Lin et al., 2017, https://arxiv.org/abs/1612.03144) with depthwise separable 3x3
convolutions (MobileNet, Howard et al., 2017, https://arxiv.org/abs/1704.04861).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import InputError


class SeparableConv(nn.Sequential):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch norm, then ReLU6.

    Args:
        width: channels in and out; ``(N, width, h, w)`` -> the same shape.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
        )


class PyramidDecoder(nn.Module):
    """Coarse features are upsampled by 2 and added to the next finer ones, down to the finest.

    Args:
        in_channels: channels of each feature map, finest first.
        num_classes: channels of the logits.
        width: channels inside the decoder.
        dropout: share of whole channels zeroed before the last layer while training, 0-1.

    ``forward`` takes ``[(N, C_i, H / s_i, W / s_i), ...]``, finest first, and returns logits
    ``(N, num_classes, H / s_0, W / s_0)``.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, width: int, dropout: float
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False), nn.BatchNorm2d(width))
            for c in in_channels
        )
        self.smooth = nn.ModuleList(SeparableConv(width) for _ in in_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.05)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps, finest first -> logits at the finest stride."""
        top: Tensor = self.smooth[-1](self.laterals[-1](features[-1]))
        for level in range(len(features) - 2, -1, -1):
            # A fixed factor, not a size: exports to one Resize node with constant scales.
            up = F.interpolate(top, scale_factor=2.0, mode="bilinear", align_corners=False)
            top = self.smooth[level](self.laterals[level](features[level]) + up)
        logits: Tensor = self.classifier(self.dropout(top))
        return logits


def build(
    in_channels: list[int],
    in_strides: list[int],
    num_classes: int,
    *,
    width: int = 64,
    dropout: float = 0.1,
) -> PyramidDecoder:
    """Make the decoder for an encoder's features.

    Args:
        in_channels: channels of each feature map, finest first.
        in_strides: input pixels per feature, finest first; each must be twice the one before it.
            The logits have the first one.
        num_classes: channels of the logits, at least 1.
        width: channels inside the decoder.
        dropout: share of whole channels zeroed before the last layer while training, 0-1.

    Raises:
        InputError: the lists differ in length, are empty, or the strides do not double.
    """
    if len(in_channels) != len(in_strides) or not in_channels:
        raise InputError(
            f"the pyramid head got {len(in_channels)} channel counts and {len(in_strides)} strides;"
            " it needs one of each per feature map, finest first"
        )
    if any(b != 2 * a for a, b in pairwise(in_strides)):
        raise InputError(
            f"the pyramid head got feature strides {in_strides}; each must be twice the one before"
            " it, because features are upsampled by 2 and added (for a ViT, take head upernet)"
        )
    return PyramidDecoder(in_channels, num_classes, width=width, dropout=dropout)
