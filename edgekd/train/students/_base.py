"""What every student is: an encoder, a decoder, and a few facts about its geometry.

A student is one file in this folder; the file's name is the student's name. The file offers
the names ``ATTENTIONS`` and ``HEADS`` (what may be asked for; ``(None,)`` where there is no
choice) and one function::

    def build(num_classes: int, *, attention: str | None = None, head: str | None = None,
              pretrained: bool | None = None) -> Segmenter

``None`` asks for the student's own choice; what was chosen is kept in ``Segmenter.options``. An
option that has no meaning for the student (``attention`` for a convolutional network,
``pretrained=True`` where no weights exist) is refused with :class:`edgekd.errors.InputError`.
Files that begin with an underscore are shared parts, not students.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Segmenter(nn.Module):
    """Semantic segmentation network: encoder features in, per-class logits out.

    Args:
        encoder: takes a normalised image ``(N, 3, H, W)`` float and returns a list of feature
            maps ``(N, C_i, H / s_i, W / s_i)``, finest first.
        decoder: takes that list and returns logits ``(N, num_classes, H / stride, W / stride)``.
        name: the student's name (the file it comes from).
        num_classes: number of output channels.
        stride: input pixels per logit, the same in both directions.
        side_multiple: the sides of the input must be multiples of this many pixels.
        mean, std: per-channel (R, G, B) normalisation in units of 0-255 pixel values,
            ``(pixel - mean) / std``, that the encoder's weights were trained with.
        options: what was really built (``attention``, ``head``, ``pretrained``).

    Logits are raw (no softmax). Bilinear resizing to full resolution is the caller's work, with
    pixel centres at half-integers (``align_corners=False``).
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        *,
        name: str,
        num_classes: int,
        stride: int,
        side_multiple: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.name = name
        self.num_classes = num_classes
        self.stride = stride
        self.side_multiple = side_multiple
        self.mean = mean
        self.std = std
        self.options = options

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image ``(N, 3, H, W)`` -> logits ``(N, num_classes, H/stride, W/stride)``."""
        logits: Tensor = self.decoder(self.encoder(image))
        return logits
