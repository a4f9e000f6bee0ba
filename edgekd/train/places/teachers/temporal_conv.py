"""Temporal convolutions over a year of days: what sensor series alone can say.

Blocks of two dilated convolutions with a skip (Bai et al. 2018, https://arxiv.org/abs/1803.01271),
dilations 1, 2, 4, ..., so that a day sees all others. ``causal`` pads before the first day alone:
what is said of a day uses no later one, so the network can run as days come in; otherwise each side
gets half. The answer is read from the mean and the highest of all days, and from the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: the kind of evidence that it sees
SEES = "series"
VARIANTS = ("base", "small")
_WIDTH = {"base": 96, "small": 32}
_KERNEL, _DILATIONS = 5, (1, 2, 4, 8, 16, 32)


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int, causal: bool) -> None:
        super().__init__()
        reach = (_KERNEL - 1) * dilation
        self.pad = (reach, 0) if causal else (reach // 2, reach - reach // 2)
        self.first = nn.Conv1d(width, width, _KERNEL, dilation=dilation)
        self.second = nn.Conv1d(width, width, 1)
        self.norm = nn.GroupNorm(1, width) if not causal else _DayNorm(width)

    def forward(self, days: Tensor) -> Tensor:
        found = F.gelu(self.first(F.pad(self.norm(days), self.pad)))
        added: Tensor = days + self.second(found)
        return added


class _DayNorm(nn.Module):
    """Normalises each day by its own features, so that no later day is looked at."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, days: Tensor) -> Tensor:
        found: Tensor = self.norm(days.transpose(1, 2)).transpose(1, 2)
        return found


class TemporalConv(nn.Module):
    """``(N, days, 2 features)`` -> features ``(N, width)``; see the module.

    Args:
        channels: two times the features of a day.
        width: of the blocks.
        causal: look back only.
    """

    def __init__(self, channels: int, width: int, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.begin = nn.Conv1d(channels, width, 1)
        self.blocks = nn.ModuleList(_Block(width, step, causal) for step in _DILATIONS)
        self.width = 3 * width

    def days(self, series: Tensor) -> Tensor:
        """``(N, width, days)``."""
        found: Tensor = self.begin(series.transpose(1, 2))
        for block in self.blocks:
            found = block(found)
        return found

    def forward(self, series: Tensor) -> Tensor:
        """``(N, 3 width)``: mean, highest and last."""
        days = self.days(series)
        return torch.cat([days.mean(2), days.amax(2), days[:, :, -1]], dim=1)


def build_series(channels: int, variant: str | None, causal: bool) -> TemporalConv:
    """Make the network, with random weights.

    Args:
        channels: two times the features of a day.
        variant: of :data:`VARIANTS`; None is ``base``.
        causal: look back only.
    """
    return TemporalConv(channels, _WIDTH[variant or VARIANTS[0]], causal)
