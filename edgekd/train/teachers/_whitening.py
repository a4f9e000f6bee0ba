"""Whitening of spectra by the noise between neighbouring pixels.

Bands of a spectrometer are correlated, and the directions that tell materials apart are seldom
those in which spectra vary most (light, shadow). Pixels side by side are mostly of one material, so
their differences show how much spectra of one material vary, without a label. Divided by that, a
distance of 1 means the same in every direction: the first step of the minimum noise fraction
transform (Green et al. 1988), and what linear discriminant analysis does with labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
#: planes ``(C, H, W)`` in the sensor's units, and which pixels count ``(H, W)``
Scene = tuple[FloatArray, npt.NDArray[np.bool_]]

#: part of the pairs that is looked at, those that differ least: others lie across a border
SHARE = 0.5
#: added to the covariance, as a part of its mean variance: a few labels cannot use finer directions
RIDGE = 0.1
_ROWS = 64


def noise_whitening(
    scenes: Callable[[], Iterable[Scene]], mean: DoubleArray, std: DoubleArray
) -> FloatArray:
    """Symmetric matrix ``(C, C)`` for standardised spectra.

    Args:
        scenes: gives the training pixels, each time it is called.
        mean, std: of the bands over them, ``(C,)``.

    Returns:
        ``(S + RIDGE * trace(S) / C * I)^(-1/2)`` with the covariance S of the differences, scaled
        so that the mean variance of training pixels stays 1. The identity where no two training
        pixels lie side by side.
    """
    count = len(mean)
    lengths = [(pairs**2).sum(axis=1) for pairs in _differences(scenes(), mean, std)]
    if not sum(len(item) for item in lengths):
        return np.eye(count, dtype=np.float32)
    most = float(np.quantile(np.concatenate(lengths), SHARE))
    noise, pixels = np.zeros((count, count)), 0
    for pairs in _differences(scenes(), mean, std):
        near = pairs[(pairs**2).sum(axis=1) <= most].astype(np.float64)
        noise += near.T @ near
        pixels += len(near)
    noise /= 2 * pixels  # of a difference of two
    noise += (RIDGE * np.trace(noise) / count + 1e-12) * np.eye(count)
    values, vectors = np.linalg.eigh(noise)
    matrix = (vectors / np.sqrt(values)) @ vectors.T
    total, seen = 0.0, 0
    for planes, known in scenes():
        for row in range(0, known.shape[0], _ROWS):
            at = known[row : row + _ROWS]
            spectra = _standardised(planes[:, row : row + _ROWS], mean, std)[:, at].T @ matrix
            total += float((spectra**2).sum())
            seen += len(spectra)
    scaled: FloatArray = (matrix / np.sqrt(total / (seen * count))).astype(np.float32)
    return scaled


def _standardised(planes: FloatArray, mean: DoubleArray, std: DoubleArray) -> FloatArray:
    found: FloatArray = (planes - mean[:, None, None].astype(np.float32)) / np.maximum(
        std, 1e-6
    ).astype(np.float32)[:, None, None]
    return found


def _differences(
    scenes: Iterable[Scene], mean: DoubleArray, std: DoubleArray
) -> Iterator[FloatArray]:
    """``(P, C)`` of neighbours in a row and in a column, where both count."""
    for planes, known in scenes:
        for row in range(0, known.shape[0], _ROWS):
            part = _standardised(planes[:, row : row + _ROWS + 1], mean, std)
            at = known[row : row + _ROWS + 1]
            inside = at[:_ROWS]
            yield (part[:, :_ROWS, 1:] - part[:, :_ROWS, :-1])[:, inside[:, 1:] & inside[:, :-1]].T
            yield (part[:, 1:] - part[:, :-1])[:, at[1:] & at[:-1]].T
