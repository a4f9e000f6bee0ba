"""Comparing features of a student with those of its teacher, and watching both for collapse.

All features here are channels-last, ``(..., C)``: tokens ``(N, h, w, D)`` as the transformers
give them. Maps ``(N, C, h, w)`` have to be permuted first.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from edgekd.errors import InputError

NORM_EPS = 1e-6
NORMS = ("none", "layer", "standardize")
PROJECTORS = ("linear", "mlp")
#: a measure below this part of the largest seen is a collapse ...
COLLAPSED_PART = 0.1
#: ... for the rank only if it is also below this: good features may well lose rank as they learn.
COLLAPSED_RANK = 4.0
#: measurements that their median is taken of.
COLLAPSED_OVER = 5
#: features that vary less than this part of their size do not vary at all (float32 rounding).
CONSTANT = 1e-6


def kd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error over everything, in float32 or wider; gradients reach both sides.

    Args:
        student, teacher: features of one shape; the student's are projected already.

    Raises:
        InputError: shapes differ (PyTorch would repeat the smaller one).
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"features cannot be compared: the student's are {tuple(student.shape)} after the "
            f"projector and the teacher's {tuple(teacher.shape)}"
        )
    return functional.mse_loss(_wide(student), _wide(teacher))


class Projector(nn.Module):
    """From the student's width to the teacher's, on the last dimension.

    Args:
        in_dim, out_dim: widths of the student's and the teacher's features.
        kind: ``linear``, without bias, or ``mlp``: Linear, GELU, Linear, ``out_dim`` wide inside.

    Raises:
        InputError: no such kind.
    """

    def __init__(self, in_dim: int, out_dim: int, kind: str) -> None:
        super().__init__()
        _check("projector", kind, PROJECTORS)
        self.map: nn.Module
        if kind == "linear":
            self.map = nn.Linear(in_dim, out_dim, bias=False)
        else:
            self.map = nn.Sequential(
                nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim)
            )

    def forward(self, features: Tensor) -> Tensor:
        """``(..., in_dim)`` -> ``(..., out_dim)``."""
        out: Tensor = self.map(features)
        return out


class TeacherNorm(nn.Module):
    """Bring a teacher's features to a common scale before they are compared.

    Args:
        dim: channels, the last dimension.
        kind: ``none``; ``layer``: LayerNorm over channels, without gain and bias; ``standardize``:
            ``(x - mean) / sqrt(variance + 1e-6)`` per channel, with the mean and the population
            variance of everything given to :meth:`observe` so far.

    Attributes:
        count, mean, squares: ``standardize`` only: tokens seen (int64), their mean and summed
            squared deviation per channel (float64). Saved with the weights.

    Raises:
        InputError: no such kind.
    """

    count: Tensor
    mean: Tensor
    squares: Tensor

    def __init__(self, dim: int, kind: str) -> None:
        super().__init__()
        _check("teacher norm", kind, NORMS)
        self.dim = dim
        self.kind = kind
        if kind == "standardize":
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
            self.register_buffer("squares", torch.zeros(dim, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, features: Tensor) -> None:
        """Take in ``(..., dim)`` features; does nothing in evaluation mode and for other kinds.

        Batches are joined with the exact update of Chan et al. 1979, which does not cancel where
        the mean is large. Where ``torch.distributed`` is initialised, all ranks must call this
        together, and all end with the same numbers.
        """
        if self.kind != "standardize" or not self.training:
            return
        rows = features.reshape(-1, self.dim).double()
        # One vector: sums of every channel, then the number of tokens.
        sums = _over_ranks(torch.cat([rows.sum(dim=0), rows.new_tensor([len(rows)])]))
        count, mean = sums[-1], sums[:-1] / sums[-1].clamp(min=1)
        squares = _over_ranks((rows - mean).square().sum(dim=0))
        total = (self.count + count).clamp(min=1)
        shift = mean - self.mean
        self.mean += shift * (count / total)
        self.squares += squares + shift.square() * (self.count * count / total)
        self.count += count.to(self.count.dtype)

    def forward(self, features: Tensor) -> Tensor:
        """``(..., dim)`` -> ``(..., dim)``.

        ``standardize`` changes nothing before anything was observed; what was observed is a
        constant, which gradients do not reach.
        """
        if self.kind == "none":
            return features
        if self.kind == "layer":
            return functional.layer_norm(features, (self.dim,), eps=NORM_EPS)
        seen = self.count > 0
        variance = self.squares / self.count.clamp(min=1)
        scale = torch.where(seen, (variance + NORM_EPS).rsqrt(), torch.ones_like(variance))
        dtype = torch.promote_types(features.dtype, torch.float32)
        return (features - self.mean.to(dtype)) * scale.to(dtype)


@torch.no_grad()
def feature_std(features: Tensor) -> float:
    """Standard deviation over all tokens, averaged over channels; 0 when all tokens are equal.

    Args:
        features: ``(..., C)``.
    """
    rows = _wide(features).reshape(-1, features.shape[-1])
    return float(rows.std(dim=0, unbiased=False).mean())


@torch.no_grad()
def effective_rank(features: Tensor, tokens: int = 1024) -> float:
    """How many directions the features use (Roy and Vetterli 2007).

    The exponential of the entropy of the singular values of the centred features, which are
    scaled to sum 1: 1 for features on a line, k for k equally strong directions.

    Args:
        features: ``(..., C)``.
        tokens: largest number of tokens to look at, evenly spaced over all of them.

    Returns:
        1 .. min(tokens - 1, C); 0 where the features do not vary; NaN where they are not finite.
    """
    rows = features.detach().reshape(-1, features.shape[-1])
    if len(rows) > tokens:
        rows = rows[torch.linspace(0, len(rows) - 1, tokens).round().long().to(rows.device)]
    rows = rows.cpu().double()
    size = float(rows.norm())
    if not math.isfinite(size):
        return math.nan
    rows = rows - rows.mean(dim=0)
    if float(rows.norm()) <= CONSTANT * size:
        return 0.0
    # Singular values from the smaller product, in float64: half the time, error 1e-8 of the first.
    product = rows.T @ rows if rows.shape[0] > rows.shape[1] else rows @ rows.T
    singular = torch.linalg.eigvalsh(product).clamp(min=0.0).sqrt()
    part = singular / singular.sum()
    return math.exp(float(torch.special.entr(part).sum()))


class CollapseWatch:
    """Remembers the largest deviation and rank of every feature, and says when they are lost.

    Both are taken as the median of the last five measurements, for single batches of plain images
    have little deviation. A feature has collapsed when its standard deviation falls below 10 % of
    the largest seen (all tokens become equal), or its effective rank below 10 % of the largest
    seen and below 4 (tokens differ along a few directions only; a rank that was never above 10
    cannot fall so far), or when one of the two is not finite. It is said once, and again after it
    had recovered. Bidirectional distillation can end there: a constant teacher is easy to follow.
    """

    def __init__(self) -> None:
        self._last: dict[str, list[tuple[float, float]]] = {}
        self._largest: dict[str, tuple[float, float]] = {}
        self._warned: set[str] = set()

    def update(self, step: int, name: str, std: float, rank: float) -> str | None:
        """Take in one measurement.

        Args:
            step: of the run, for the sentence.
            name: of the feature, e.g. ``teacher block 12``.
            std: :func:`feature_std`. rank: :func:`effective_rank`.

        Returns:
            One sentence with the reason when this feature has collapsed and that was not said
            yet; else None.
        """
        reason = None
        if not (math.isfinite(std) and math.isfinite(rank)):
            reason = f"its values are not finite (deviation {std}, effective rank {rank})"
        else:
            last = [*self._last.get(name, []), (std, rank)][-COLLAPSED_OVER:]
            self._last[name] = last
            std, rank = (statistics.median(values) for values in zip(*last, strict=True))
            most_std, most_rank = self._largest.get(name, (0.0, 0.0))
            most_std, most_rank = max(most_std, std), max(most_rank, rank)
            self._largest[name] = (most_std, most_rank)
            if len(last) < COLLAPSED_OVER:
                return None
            if std < COLLAPSED_PART * most_std:
                reason = f"its deviation over tokens fell from {most_std:.3g} to {std:.3g}"
            elif rank < min(COLLAPSED_PART * most_rank, COLLAPSED_RANK):
                reason = f"its effective rank fell from {most_rank:.3g} to {rank:.3g}"
            elif std > 2 * COLLAPSED_PART * most_std:
                self._warned.discard(name)
        if reason is None or name in self._warned:
            return None
        self._warned.add(name)
        return f"step {step}: {name} has collapsed: {reason}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values, exact through JSON."""
        return {
            "last": {name: [list(pair) for pair in pairs] for name, pairs in self._last.items()},
            "largest": {name: list(values) for name, values in self._largest.items()},
            "warned": sorted(self._warned),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is not a state of this watch; nothing is changed.
        """
        try:
            largest = {
                str(name): (float(std), float(rank))
                for name, (std, rank) in state["largest"].items()
            }
            warned = {str(name) for name in state["warned"]}
            last = {
                str(name): [(float(std), float(rank)) for std, rank in pairs]
                for name, pairs in state.get("last", {}).items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"this is not the state of a collapse watch ({type(error).__name__}: {error}); "
                "expected largest and warned"
            ) from error
        self._largest, self._warned, self._last = largest, warned, last


def _over_ranks(values: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise InputError(f"{what} '{value}' does not exist (valid: {', '.join(valid)})")
