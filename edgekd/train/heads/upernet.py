"""UPerNet (Xiao et al. 2018): pyramid pooling on the coarsest map, then a feature pyramid.

Four levels at strides 4, 8, 16 and 32 are made from whatever feature maps the encoder offers. A
plain ViT offers all of them at stride 16; they are brought to their level by transposed
convolutions that halve the channels at each doubling (the simple pyramid of ViTDet, Li et al.
2022) and by max pooling, as in BEiT's segmentation head (Bao et al. 2022).

Three choices keep it cheap and easy to compile for a small device:

* **The channels sit where the cells are few.** Pyramid pooling keeps the encoder's width at
  stride 32 (1024 cells of a 1024 x 1024 tile), the pyramid itself is ``width`` wide at stride 4
  (65 536 cells). Published UPerNets use 512 everywhere, which costs ten times a small encoder.
* **BatchNorm, not GroupNorm.** At inference BatchNorm is a fixed scale and shift, which folds
  into the convolution before it and leaves no op behind, also under INT8. GroupNorm would be a
  reduction over each whole map at run time, and has no op before ONNX opset 18. Batch statistics
  are sound even at batch 1 because every normalised map has at least 64 cells. The pooled maps
  (down to 1 x 1) would not have enough of them, and so carry no norm.
* **Pooling with fixed kernels.** Bins are means over equal blocks, the coarser ones taken from
  the finer ones, so the graph holds plain ``AveragePool`` and no adaptive op.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekd.errors import InputError

LEVEL_STRIDES = (4, 8, 16, 32)
BINS = (8, 4, 2, 1)
SIDE_MULTIPLE = LEVEL_STRIDES[-1] * BINS[0]


def _conv_norm(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _double(in_channels: int, out_channels: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)


def _resample(channels: int, from_stride: int, to_stride: int) -> tuple[nn.Module, int]:
    """Module that brings a map from one stride to another, and its output channels."""
    if from_stride == to_stride:
        return nn.Identity(), channels
    if from_stride == 2 * to_stride:
        return _double(channels, channels // 2), channels // 2
    if from_stride == 4 * to_stride:
        middle = nn.Sequential(nn.BatchNorm2d(channels // 2), nn.ReLU(inplace=True))
        up = nn.Sequential(
            _double(channels, channels // 2), middle, _double(channels // 2, channels // 4)
        )
        return up, channels // 4
    if 2 * from_stride == to_stride:
        return nn.MaxPool2d(kernel_size=2, stride=2), channels
    raise InputError(
        f"the upernet head cannot bring a feature map of stride {from_stride} to stride "
        f"{to_stride}; it handles factors 4, 2, 1 and 1/2"
    )


class PyramidPooling(nn.Module):
    """Means over 8 x 8, 4 x 4, 2 x 2 and 1 x 1 blocks, beside the map itself (Zhao et al. 2017).

    Args:
        channels: channels of the map, also of each pooled branch.
        width: output channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, kernel_size=1), nn.ReLU(inplace=True))
            for _ in BINS
        )
        self.merge = _conv_norm(channels * (1 + len(BINS)), channels, kernel=3)
        self.reduce = _conv_norm(channels, width, kernel=1)

    def forward(self, feature: Tensor) -> Tensor:
        """``(N, channels, h, w)``, h and w multiples of 8 -> ``(N, width, h, w)``."""
        height, width = feature.shape[-2], feature.shape[-1]
        maps = [feature]
        pooled = functional.avg_pool2d(feature, kernel_size=(height // BINS[0], width // BINS[0]))
        for bins, branch in zip(BINS, self.branches, strict=True):
            if bins != BINS[0]:
                pooled = functional.avg_pool2d(pooled, kernel_size=2)
            scale = (float(height // bins), float(width // bins))
            maps.append(_enlarge(branch(pooled), scale))
        out: Tensor = self.reduce(self.merge(torch.cat(maps, dim=1)))
        return out


def _enlarge(feature: Tensor, scale: tuple[float, float]) -> Tensor:
    """Bilinear enlargement by whole factors, pixel centres at half-integers."""
    if scale == (1.0, 1.0):
        return feature
    return functional.interpolate(feature, scale_factor=scale, mode="bilinear", align_corners=False)


class UPerNet(nn.Module):
    """The head; see the module docstring.

    Args:
        in_channels: channels of the encoder's feature maps.
        in_strides: their strides in input pixels per cell. With fewer or more than four maps
            each level takes the map at the same relative depth.
        num_classes: output channels.
        width: channels of the pyramid levels.

    Attributes:
        stride: input pixels per logit, 4.
        side_multiple: image sides must be multiples of 256 px, so that 8 bins divide stride 32.
    """

    def __init__(
        self, in_channels: list[int], in_strides: list[int], num_classes: int, *, width: int
    ) -> None:
        super().__init__()
        self.stride = LEVEL_STRIDES[0]
        self.side_multiple = SIDE_MULTIPLE
        self.in_strides = list(in_strides)
        count = len(in_channels)
        self.sources = [level * count // len(LEVEL_STRIDES) for level in range(len(LEVEL_STRIDES))]
        resamplers = []
        channels = []
        for stride, source in zip(LEVEL_STRIDES, self.sources, strict=True):
            module, made = _resample(in_channels[source], in_strides[source], stride)
            resamplers.append(module)
            channels.append(made)
        self.resample = nn.ModuleList(resamplers)
        self.pooling = PyramidPooling(channels[-1], width)
        self.lateral = nn.ModuleList(_conv_norm(made, width, kernel=1) for made in channels[:-1])
        self.smooth = nn.ModuleList(_conv_norm(width, width, kernel=3) for _ in channels[:-1])
        self.fuse = _conv_norm(width * len(channels), width, kernel=3)
        self.classify = nn.Conv2d(width, num_classes, kernel_size=1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Feature maps ``(N, C_i, H / s_i, W / s_i)`` -> logits ``(N, classes, H / 4, W / 4)``.

        Raises:
            InputError: the image behind the maps is not a multiple of 256 px in both directions.
        """
        height = features[-1].shape[-2] * self.in_strides[-1]
        width = features[-1].shape[-1] * self.in_strides[-1]
        if height % SIDE_MULTIPLE or width % SIDE_MULTIPLE:
            raise InputError(
                f"image of {height} x {width} px (height x width) does not fit: the upernet head "
                f"needs both sides to be multiples of {SIDE_MULTIPLE} px; choose such a tile size"
            )
        maps = [
            resample(features[source])
            for resample, source in zip(self.resample, self.sources, strict=True)
        ]
        level = self.pooling(maps[-1])
        levels = [level]
        for index in reversed(range(len(self.lateral))):
            level = self.lateral[index](maps[index]) + _enlarge(level, (2.0, 2.0))
            levels.insert(0, level)
        fine = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=False)]
        enlarged = [fine[0]]
        for index, level in enumerate([*fine[1:], levels[-1]], start=1):
            enlarged.append(_enlarge(level, (float(2**index), float(2**index))))
        logits: Tensor = self.classify(self.fuse(torch.cat(enlarged, dim=1)))
        return logits


def build(
    in_channels: list[int], in_strides: list[int], num_classes: int, *, width: int = 64
) -> UPerNet:
    """Build the head.

    Args:
        in_channels: channels of each feature map, finest (or shallowest) first.
        in_strides: input pixels per cell of each feature map.
        num_classes: output channels.
        width: channels of the pyramid levels. 64 brings ``vit_small`` to about the size and the
            arithmetic of the published student with decoder (29.65 M parameters, 119.76 G
            multiply-adds per 1024 x 1024 tile without attention products).
    """
    return UPerNet(in_channels, in_strides, num_classes, width=width)
