"""EfficientNet-Lite0 with a light pyramid head: the student for integer inference.

Made for small CPUs and fixed-point accelerators: ReLU6 instead of swish and no
squeeze-and-excitation, so that activations have a known range and every layer is a plain
convolution. The one to take for a Raspberry Pi. The network and what is special about its ImageNet
weights (kernels turned by 180 degrees, normalisation) stand in ``_efficientnet_lite.py``.
"""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import InputError
from edgekd.train.heads import pyramid
from edgekd.train.students import _efficientnet_lite as network
from edgekd.train.students._base import Segmenter
from edgekd.train.students._efficientnet_lite import (
    CLASSIFIER_KEYS,
    FEATURE_STAGES,
    MEAN,
    RENAMED,
    STD,
    STRIDES,
    Encoder,
    load_imagenet,
    renamed,
)

__all__ = [
    "ATTENTIONS",
    "CLASSIFIER_KEYS",
    "FEATURE_CHANNELS",
    "FEATURE_STRIDES",
    "HEADS",
    "RENAMED",
    "WEIGHTS_PACKAGE",
    "Encoder",
    "build",
    "load_imagenet",
    "renamed",
    "weights_path",
]

SIDE_MULTIPLE = 32
ATTENTIONS = (None,)  # a convolutional network has none
HEADS = ("pyramid",)
WEIGHTS_PACKAGE = network.weights_package("lite0")
FEATURE_CHANNELS = [network.STAGES[stage - 1].channels for stage in FEATURE_STAGES]
FEATURE_STRIDES = [STRIDES[stage] for stage in FEATURE_STAGES]


def weights_path() -> Path:
    """Where the installed weights package keeps its file.

    Raises:
        EnvironmentLacksError: the package is not installed.
    """
    return network.weights_path(
        "lite0", "start student lite0 from ImageNet weights (or pretrained: false)"
    )


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
