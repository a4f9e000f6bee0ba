"""Exponential moving average of a network's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of weights and buffers; decay 0 is the weights themselves.

    The decay is smaller at first, ``min(decay, (1 + t) / (10 + t))``, so that the random start
    is forgotten.

    Attributes:
        shadow: the averaged state; empty with decay 0.
        updates: number of steps taken in.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.updates = 0
        self.shadow: dict[str, Tensor] = (
            {name: value.detach().clone() for name, value in model.state_dict().items()}
            if decay
            else {}
        )

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after a step."""
        if not self._decay:
            return
        self.updates += 1
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.shadow[name].lerp_(value, 1 - decay)
            else:
                self.shadow[name].copy_(value)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights to evaluate and save, on the CPU."""
        source = self.shadow if self._decay else model.state_dict()
        return {name: value.detach().cpu().clone() for name, value in source.items()}

    def applied(self, model: nn.Module) -> Swapped:
        """``with``: the model has the averaged weights inside the block."""
        return Swapped(model, self.shadow if self._decay else None)


class Swapped:
    """Other weights for the length of a ``with`` block."""

    def __init__(self, model: nn.Module, shadow: dict[str, Tensor] | None) -> None:
        self._model, self._shadow = model, shadow

    def __enter__(self) -> None:
        if self._shadow is not None:
            self._kept = {
                name: value.detach().clone() for name, value in self._model.state_dict().items()
            }
            self._model.load_state_dict(self._shadow)

    def __exit__(self, *_: object) -> None:
        if self._shadow is not None:
            self._model.load_state_dict(self._kept)
