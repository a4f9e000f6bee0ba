"""What a teacher is that sees several sensors: scores and features of every pixel.

Such a teacher is one file in this folder whose module says ``SENSORS = True`` and offers::

    def build_sensors(num_classes: int, sensors: dict[str, SensorPlan], variant: str | None)
        -> SensorTeacher

It is trained by the recipe that uses it (``weights: train``) or read from a ``teacher.ckpt``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError


@dataclass(frozen=True)
class SensorPlan:
    """What a teacher must know of a sensor to be built.

    Attributes:
        kind: ``image``, ``spectral`` or ``elevation``.
        channels: number of bands that are left when bad ones are gone.
    """

    kind: str
    channels: int


class SensorTeacher(nn.Module):
    """Dense scores and features from named sensors.

    Attributes:
        name, variant: which one.
        plans: the sensors that it sees, in the order in which they are put together.
        num_classes: channels of the scores.
        width: channels of the features.
    """

    name: str
    variant: str | None
    plans: dict[str, SensorPlan]
    num_classes: int
    width: int

    def __init__(self, num_classes: int, plans: dict[str, SensorPlan]) -> None:
        super().__init__()
        self.num_classes, self.plans = num_classes, dict(plans)
        for name, plan in plans.items():
            for what, value in (("mean", 0.0), ("std", 1.0)):
                filled = torch.full((plan.channels, 1, 1), value)
                self.register_buffer(f"{what}_{name}", filled)
            if plan.kind == "spectral":
                self.register_buffer(f"whitening_{name}", torch.eye(plan.channels))

    def set_statistics(self, name: str, mean: Any, std: Any) -> None:
        """Take ``(C,)`` mean and standard deviation of a sensor's training pixels as its scale."""
        for what, value in (("mean", mean), ("std", std)):
            buffer: Tensor = getattr(self, f"{what}_{name}")
            buffer.copy_(torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1))

    def set_whitening(self, name: str, matrix: Any) -> None:
        """Take a matrix ``(C, C)`` by which a sensor's standardised spectra are multiplied."""
        buffer: Tensor = getattr(self, f"whitening_{name}")
        buffer.copy_(torch.as_tensor(matrix, dtype=torch.float32))

    def whitened(self, name: str, spectra: Tensor) -> Tensor:
        """``(P, C)`` standardised spectra, multiplied by the sensor's matrix."""
        matrix: Tensor = getattr(self, f"whitening_{name}")
        return spectra @ matrix

    def normalized(self, name: str, values: Tensor) -> Tensor:
        """``(N, C, H, W)`` in the sensor's units -> zero mean, unit deviation per band."""
        mean: Tensor = getattr(self, f"mean_{name}")
        std: Tensor = getattr(self, f"std_{name}")
        return (values - mean) / std.clamp(min=1e-6)

    def forward(
        self,
        sensors: dict[str, Tensor],
        present: Tensor | None = None,
        at: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Scores and features of pixels.

        Args:
            sensors: name -> ``(N, C, H, W)`` in the sensors' own units; all of :attr:`plans`.
            present: ``(N, S)`` bool, which sensors a sample has; all where None. What stands in
                place of an absent one is not looked at.
            at: ``(N, H, W)`` bool, the pixels that are wanted; all where None.

        Returns:
            Scores ``(N, H, W, K)`` and features ``(N, H, W, width)``, or ``(P, K)`` and ``(P,
            width)`` of the pixels of ``at`` in their order.

        Raises:
            InputError: a sensor is missing from ``sensors``.
        """
        raise NotImplementedError

    def check_sensors(self, sensors: dict[str, Tensor]) -> None:
        """Raise InputError unless all sensors are there with their channels."""
        for name, plan in self.plans.items():
            if name not in sensors:
                raise InputError(
                    f"teacher {self.name} sees {', '.join(self.plans)}, and {name} is not given"
                    f"{nearest(name, list(sensors))}"
                )
            if sensors[name].ndim != 4 or sensors[name].shape[1] != plan.channels:
                raise InputError(
                    f"teacher {self.name} takes {name} as (N, {plan.channels}, H, W), received "
                    f"{tuple(sensors[name].shape)}"
                )
