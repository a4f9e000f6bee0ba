"""Numerical comparison of two forms of a model on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from edgekd.contracts.manifest import Gate

FloatArray = npt.NDArray[np.float32]
#: input name -> normalised array, the batch first
Tensors = Mapping[str, FloatArray]
#: a form of a model: its inputs -> logits ``(N, K, ...)``
Model = Callable[[Tensors], FloatArray]
#: one with a single input: ``(N, C, H, W)`` -> logits
TileModel = Callable[[FloatArray], FloatArray]
Given = TypeVar("Given")


@dataclass(frozen=True)
class Parity:
    """How far two forms of a model are apart.

    Attributes:
        max_abs: largest absolute difference over all inputs, in logits.
        logit_range: largest minus smallest logit of the reference; what the difference is to be
            seen against.
        agreement: part of the cells (of places: the answers) with the same winning class, 0-1.
        inputs: number of inputs compared.
    """

    max_abs: float
    logit_range: float
    agreement: float
    inputs: int

    def gate(self, name: str, atol: float, cells: str = "cells") -> Gate:
        """The verdict against a bound; a NaN anywhere fails. ``cells``: what has a class."""
        return Gate(
            name=name,
            value=self.max_abs if np.isfinite(self.max_abs) else float(np.finfo(np.float64).max),
            bound=atol,
            unit="logits, largest absolute difference",
            passed=bool(self.max_abs <= atol),
            detail=(
                f"{self.inputs} inputs, logits span {self.logit_range:.3g}, same class in "
                f"{100 * self.agreement:.4f} % of the {cells}"
            ),
        )


def compare(
    reference: Callable[[Given], FloatArray],
    candidate: Callable[[Given], FloatArray],
    inputs: Iterable[Given],
) -> Parity:
    """Run both on every input.

    Args:
        reference, candidate: normalised input, or several by name -> logits ``(N, K, ...)``.
        inputs: at least one batch.

    Raises:
        ValueError: no input, or outputs of different shapes.
    """
    worst, low, high, same, cells, count = 0.0, np.inf, -np.inf, 0, 0, 0
    for tensor in inputs:
        want, have = reference(tensor), candidate(tensor)
        if want.shape != have.shape:
            raise ValueError(f"outputs of shape {want.shape} and {have.shape}")
        difference = np.abs(want.astype(np.float64) - have.astype(np.float64)).max()
        worst = float("nan") if np.isnan(difference) else max(worst, float(difference))
        low, high = min(low, float(want.min())), max(high, float(want.max()))
        same += int((want.argmax(1) == have.argmax(1)).sum())
        cells += int(want[:, 0].size)
        count += len(want)
        if np.isnan(worst):
            break
    if not count:
        raise ValueError("no input to compare on")
    return Parity(worst, high - low, same / cells, count)
