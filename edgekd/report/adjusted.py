"""How large classes really are, from a map and a sample of its errors.

A map's own areas are wrong by what it mistakes. Where the truth is known for a sample, the rate
``q[i, j]`` at which pixels mapped as ``i`` are truly ``j`` corrects them: ``area[j] = sum_i
mapped[i] q[i, j]``. That is the stratified (here: poststratified) estimator of Olofsson et al.,
"Good practices for estimating area and assessing accuracy of land change", Remote Sensing of
Environment 148 (2014), equations 8 to 11, with mapped classes as strata.

Its standard error (equation 10) counts every sample unit as drawn by itself. Pixels of an evaluated
image were not: neighbours are mistaken together, and a million of them would give an interval of
nothing. So by default the unit is the evaluated sample (image or region): the areas are made again
without each of them in turn, and their spread is the error (the jackknife; Efron and Stein, Annals
of Statistics 9 (1981), show that it errs towards too wide). Student's t has as many degrees of
freedom as samples carry the variance: Kish's effective number, less one.

The variance of a sum ``sum_k c_k A_k`` with uncertain weights is exact where these are independent
of the areas and of each other: ``c' S c + sum_k A_k^2 s_k^2 + sum_k s_k^2 S_kk``, with the
covariance ``S`` of areas and the standard deviations ``s`` of weights. Degrees of freedom are then
Welch's and Satterthwaite's, with infinitely many for the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import read_json, sha256_file
from edgekd.contracts.coefficients import NORMAL_95
from edgekd.errors import InputError
from edgekd.telemetry.energy import student_t

FloatArray = npt.NDArray[np.float64]
#: what was drawn by itself when the errors were counted
Independent = Literal["samples", "pixels"]
#: units from which on a class's error rate is more than an impression (Olofsson et al. give rare
#: classes 50 to 100 points)
FEW = {"samples": 5, "pixels": 50}
#: units without which nothing tells how far one may be off
_LEAST = 2


@dataclass(frozen=True)
class Reference:
    """What the map was found to mistake, where the truth is known.

    Attributes:
        counts: pixels ``(m, K, K)`` of each unit: rows are the truth, columns the map. One unit
            that holds all where pixels are the units.
        independent: what was drawn by itself.
        about: file, hash, model and data, for the record.
    """

    counts: FloatArray
    independent: Independent
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A sum over the map with its 95 % interval.

    Attributes:
        value: the estimate.
        variance: of its sampling error.
        freedom: degrees of freedom of the variance; infinite for pixels.
        below, above: by how much more it may be off, for sure: what is mapped as classes whose
            errors nobody has seen, taken for the worst.
    """

    value: float
    variance: float
    freedom: float
    below: float
    above: float

    def interval(self) -> tuple[float, float]:
        """Low and high."""
        half = quantile(self.freedom) * float(np.sqrt(self.variance))
        return self.value - half - self.below, self.value + half + self.above


def quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t, or of the normal distribution where freedom is infinite."""
    return NORMAL_95 if np.isinf(freedom) else student_t(max(int(freedom), 1))


class AdjustedAreas:
    """Areas corrected for the map's mistakes.

    Args:
        mapped_m2: area of each class in the map, ``(K,)``.
        reference: its mistakes, of the same classes.

    Attributes:
        areas_m2: corrected, ``(K,)``; their sum is that of ``mapped_m2``.
        covariance_m4: of their sampling errors, ``(K, K)``.
        unseen: classes that are mapped and of whose errors fewer than two units tell: their areas
            stay as mapped, and the interval holds whatever they may be.
        unseen_m2: how much is mapped as these.
        few: classes that are mapped and told of by few units, see :data:`FEW`.
        faultless: classes that are mapped and of which no mistake was seen.

    Raises:
        ValueError: the errors of no class that is mapped were seen.
    """

    def __init__(self, mapped_m2: FloatArray, reference: Reference) -> None:
        self._mapped = np.asarray(mapped_m2, np.float64)
        self._by_samples = reference.independent == "samples"
        counts = np.asarray(reference.counts, np.float64).transpose(0, 2, 1)  # unit, mapped, true
        here = self._mapped > 0
        seen_px = counts.sum(axis=2)
        units = (seen_px > 0).sum(axis=0) if self._by_samples else seen_px.sum(axis=0)
        known = units >= _LEAST
        if not (here & known).any():
            raise ValueError("the errors of no class that is mapped were seen")
        self.unseen = [int(k) for k in np.flatnonzero(here & ~known)]
        few = FEW[reference.independent]
        self.few = [int(k) for k in np.flatnonzero(here & known & (units < few))]
        self._known_m2 = np.where(known, self._mapped, 0.0)
        self._unseen_m2 = np.where(known, 0.0, self._mapped)
        self.unseen_m2 = float(self._unseen_m2.sum())
        total = counts.sum(axis=0)
        self._rates = _rates(total)
        self.faultless = [
            int(k) for k in np.flatnonzero(here & known & (np.diag(total) == total.sum(axis=1)))
        ]
        self._shares = seen_px / np.maximum(total.sum(axis=1), 1)
        self.areas_m2: FloatArray = self._known_m2 @ self._rates + self._unseen_m2
        self.covariance_m4 = self._jackknife(counts) if self._by_samples else self._of_pixels(total)

    def _jackknife(self, counts: FloatArray) -> FloatArray:
        units, total = len(counts), counts.sum(axis=0)
        without = np.stack([self._known_m2 @ _rates(total - item) for item in counts])
        apart = without - self._known_m2 @ self._rates
        spread: FloatArray = (units - 1) / units * apart.T @ apart
        return spread

    def _of_pixels(self, total: FloatArray) -> FloatArray:
        """Olofsson et al., equation 10, and the covariances that belong to it."""
        spread = np.zeros_like(total)
        for area, rates, count in zip(self._known_m2, self._rates, total.sum(axis=1), strict=True):
            if area > 0:
                spread += area**2 / (count - 1) * (np.diag(rates) - np.outer(rates, rates))
        return spread

    def sum(self, weights: FloatArray, spreads: FloatArray | None = None) -> Figure:
        """What the classes add up to with a weight for each.

        Args:
            weights: ``(K,)``; ``1, 0, 0`` gives the area of the first.
            spreads: their standard deviations; exact where absent.
        """
        weights = np.asarray(weights, np.float64)
        spreads = np.zeros_like(weights) if spreads is None else np.asarray(spreads, np.float64)
        own = max(float(weights @ self.covariance_m4 @ weights), 0.0)
        more = float(spreads**2 @ (self.areas_m2**2 + np.diag(self.covariance_m4)))
        freedom = self._freedom(weights)
        if more > 0:
            freedom = freedom * (1 + more / own) ** 2 if own > 0 else math.inf
        # what nobody has seen may be of any class, and that class's weight may be off
        wide = NORMAL_95 * float(spreads.max()) * self.unseen_m2
        return Figure(
            value=float(weights @ self.areas_m2),
            variance=own + more,
            freedom=freedom,
            below=float(self._unseen_m2 @ (weights - weights.min())) + wide,
            above=float(self._unseen_m2 @ (weights.max() - weights)) + wide,
        )

    def _freedom(self, weights: FloatArray) -> float:
        if not self._by_samples:
            return math.inf
        apart = self._rates @ weights**2 - (self._rates @ weights) ** 2  # within a mapped class
        carried = (self._shares**2) @ (self._known_m2**2 * np.maximum(apart, 0.0))
        if not carried.any():
            return float(len(carried) - 1)
        return max(float(carried.sum() ** 2 / (carried**2).sum()) - 1, 1.0)


def _rates(counts: FloatArray) -> FloatArray:
    """Counts (mapped, true) as parts of each mapped class; a class that none was mapped as: 0."""
    rates: FloatArray = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return rates


def read_reference(
    path: Path, classes: list[tuple[int, str]], where: Path, independent: Independent
) -> Reference:
    """The confusion matrix that ``edgekd eval -o FILE`` wrote.

    Args:
        path: the JSON file.
        classes: (index, name) of the map, in the order of its bands.
        where: the map, for messages.
        independent: what was drawn by itself: ``samples``, the evaluated images or regions, or
            ``pixels``, where each labelled pixel was chosen by chance.

    Raises:
        InputError: no such file, of other classes, or it cannot tell what is asked of it.
    """
    value = read_json(path)
    found = _classes(value)
    counts = None if found is None else _matrix(value.get("confusion"), len(found))
    if found is None or counts is None or not counts.any():
        raise InputError(
            f"{path} is not what edgekd eval writes: it has no confusion matrix with its classes; "
            f"make one: edgekd eval BUNDLE --data DIR -o {path.name}"
        )
    if value.get("what") == "teacher":
        raise InputError(
            f"{path} is of a teacher, which made no map; evaluate the model that made it: edgekd "
            f"eval BUNDLE --data DIR -o {path.name}"
        )
    if sorted(found) != sorted(classes):
        theirs, ours = (", ".join(f"{i} {n}" for i, n in sorted(kind)) for kind in (found, classes))
        raise InputError(
            f"{path} has the classes {theirs}, and {where} has {ours}; evaluate the model that "
            "made the map"
        )
    order = [found.index(item) for item in classes]
    units = [counts]
    if independent == "samples":
        units = _by_sample(value, counts, path)
    return Reference(
        np.stack(units)[:, order][:, :, order],
        independent,
        {
            "file": str(path),
            "sha256": sha256_file(path),
            "independent": independent,
            "units": len(units) if independent == "samples" else int(counts.sum()),
            **{key: value.get(key) for key in ("what", "model", "model_sha256", "data", "split")},
        },
    )


def _classes(value: Any) -> list[tuple[int, str]] | None:
    try:
        return [(int(item["index"]), str(item["name"])) for item in value["per_class"]]
    except (TypeError, KeyError, ValueError):
        return None


def _matrix(value: Any, size: int) -> FloatArray | None:
    """A square matrix of counts, or None."""
    try:
        counts = np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
    good = counts.shape == (size, size) and bool((counts >= 0).all()) and np.isfinite(counts).all()
    return counts if good and (counts == counts.round()).all() else None


def _by_sample(value: dict[str, Any], total: FloatArray, path: Path) -> list[FloatArray]:
    listed = value.get("confusion_by_sample")
    advice = (
        "evaluate again with this version, or say --independent pixels if each labelled pixel was "
        "chosen by chance, by itself"
    )
    if not isinstance(listed, list) or not listed:
        raise InputError(
            f"{path} does not say which sample its pixels are from, and pixels of one image are "
            f"mistaken together: {advice}"
        )
    units = [_matrix(item.get("confusion"), len(total)) for item in listed if type(item) is dict]
    whole = [item for item in units if item is not None]
    if len(whole) != len(listed) or not np.array_equal(np.sum(whole, axis=0), total):
        raise InputError(f"{path} was changed: its samples do not add up to its confusion matrix")
    whole = [item for item in whole if item.any()]
    if len(whole) < _LEAST:
        raise InputError(
            f"{path} is of one sample, which cannot tell how far another may differ: evaluate on "
            "several images, or say --independent pixels if each labelled pixel was chosen by "
            "chance, by itself"
        )
    return whole
