"""Minerals from several sensors: an encoder each, attention across them, one answer per pixel.

Per pixel, every sensor gives one token: 256 channels of a camera, 512 of a spectrum, 128 of an
elevation. Each is projected to the shared 256 (Linear, LayerNorm, GELU, Linear); eight heads of
attention let the sensors look at each other; their mean is the feature, and a small perceptron
classifies it.

Variant ``pixel`` looks at single pixels, ``around`` at 5 x 5 pixels of cameras and elevation, for
sets with many labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.errors import InputError
from edgekd.train.teachers._base import choose_variant
from edgekd.train.teachers._sensors import SensorPlan, SensorTeacher

__all__ = ["SENSORS", "VARIANTS", "build_sensors"]

SENSORS = True
VARIANTS = ("pixel", "around")
#: width of a sensor's encoder, by its kind
WIDTHS = {"image": 256, "spectral": 512, "elevation": 128}
SHARED = 256
HEADS = 8
#: pixels around a pixel that the encoders of images and elevation see
REACH_PX = 2


class Around(nn.Module):
    """Two 3 x 3 convolutions and one 1 x 1, borders repeated: the sides stay as they are."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 64, 3), nn.BatchNorm2d(64), nn.GELU(),
            nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128), nn.GELU(),
            nn.Conv2d(128, width, 1),
        )  # fmt: skip

    def forward(self, values: Tensor) -> Tensor:
        """Values normalised."""
        padded = F.pad(values, (REACH_PX,) * 4, mode="replicate")
        found: Tensor = self.layers(padded)
        return found


class Alone(nn.Sequential):
    """The pixel's own bands through a perceptron: ``(N, C, H, W)`` -> ``(N, width, H, W)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, 128, 1), nn.GELU(), nn.Conv2d(128, width, 1), nn.GELU()
        )


class GeologyFusion(SensorTeacher):
    """See the module."""

    name = "geology_fusion"
    width = SHARED

    def __init__(self, num_classes: int, plans: dict[str, SensorPlan], variant: str) -> None:
        super().__init__(num_classes, plans)
        self.variant = variant
        self.encoders, self.projections = nn.ModuleDict(), nn.ModuleDict()
        for name, plan in plans.items():
            width = WIDTHS[plan.kind]
            around = variant == "around" and plan.kind != "spectral"
            self.encoders[name] = (Around if around else Alone)(plan.channels, width)
            self.projections[name] = nn.Sequential(
                nn.Linear(width, SHARED), nn.LayerNorm(SHARED), nn.GELU(),
                nn.Linear(SHARED, SHARED),
            )  # fmt: skip
        self.qkv = nn.Linear(SHARED, 3 * SHARED)
        self.mix = nn.Linear(SHARED, SHARED)
        self.classifier = nn.Sequential(
            nn.Linear(SHARED, 128), nn.GELU(), nn.Dropout(0.3), nn.Linear(128, num_classes)
        )

    def forward(
        self,
        sensors: dict[str, Tensor],
        present: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`SensorTeacher.forward`."""
        self.check_sensors(sensors)
        first = next(iter(sensors.values()))
        samples, (height, width) = len(first), first.shape[-2:]
        wanted = at if at is not None else first.new_ones(samples, height, width, dtype=torch.bool)
        where = wanted.nonzero(as_tuple=True)
        seen = (
            first.new_ones(len(where[0]), len(self.plans), dtype=torch.bool)
            if present is None
            else present[where[0]]
        )
        tokens = []
        for number, name in enumerate(self.plans):
            there = None if present is None else present[:, number]
            encoded = self._encoded(name, sensors[name], where, there)
            tokens.append(self.projections[name](encoded))
        feature = self._attend(torch.stack(tokens, 1), seen)
        scores: Tensor = self.classifier(feature)
        if at is not None:
            return scores, feature
        shape = (samples, height, width, -1)
        return scores.reshape(shape), feature.reshape(shape)

    def _encoded(
        self, name: str, values: Tensor, where: tuple[Tensor, ...], there: Tensor | None
    ) -> Tensor:
        """A sensor's features ``(P, width)`` of the wanted pixels.

        Samples that lack the sensor (``there``, ``(N,)`` bool) get zeros and are in no statistics
        of a batch.
        """
        sample, row, column = where
        encoder, values = self.encoders[name], self.normalized(name, values)
        if isinstance(encoder, Alone):  # only of pixels that are wanted
            pixels = values[sample, :, row, column]
            if self.plans[name].kind == "spectral":
                pixels = self.whitened(name, pixels)
            alone: Tensor = encoder(pixels[:, :, None, None])[:, :, 0, 0]
            return alone
        if there is None or bool(there.all()):
            around: Tensor = encoder(values)[sample, :, row, column]
            return around
        found = values.new_zeros(len(sample), WIDTHS[self.plans[name].kind])
        if bool(there.any()):
            having = there[sample]
            place = there.cumsum(0) - 1  # of a sample among those that have the sensor
            maps = encoder(values[there])
            found[having] = maps[place[sample[having]], :, row[having], column[having]].to(found)
        return found

    def _attend(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Tokens ``(P, S, 256)``, which sensors are there ``(P, S)`` -> their mean ``(P, 256)``."""
        pixels, count, _ = tokens.shape
        parts = self.qkv(tokens).reshape(pixels, count, 3, HEADS, SHARED // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen[:, None, None])
        mixed = mixed.transpose(1, 2)
        mixed = self.mix(mixed.reshape(pixels, count, SHARED)) * seen[..., None]
        mean: Tensor = mixed.sum(1) / seen.sum(1, keepdim=True)
        return mean


def build_sensors(
    num_classes: int, sensors: dict[str, SensorPlan], variant: str | None = None
) -> GeologyFusion:
    """Build the teacher with random weights.

    Args:
        num_classes: channels of the scores.
        sensors: what it sees, at least one.
        variant: ``pixel`` (None: the same) or ``around``.

    Raises:
        InputError: no sensor, or no such variant.
    """
    chosen = choose_variant("geology_fusion", variant, VARIANTS)
    if not sensors:
        raise InputError("teacher geology_fusion needs at least one sensor")
    return GeologyFusion(num_classes, sensors, chosen)
