"""The range of an activation: a histogram of absolute values that grows with what it sees.

Three ways to choose the value that becomes the largest integer: the largest seen (``minmax``), a
quantile (``percentile``), or the one whose 8-bit histogram tells least wrong (``entropy``: Migacz,
"8-bit Inference with TensorRT", GTC 2017, slides 19-38).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError

Method = Literal["minmax", "percentile", "entropy"]
BINS = 2048
_PIECE = 1 << 15
#: 8-bit symmetric: 0 to 127.
LEVELS = 128


class Histogram:
    """Counts of ``|x|`` in :data:`BINS` bins over ``[0, width * BINS)``.

    The width doubles, and pairs of bins are added, when a larger value comes: nothing is kept of
    the samples, one pass is enough, and the order of samples does not matter for counts.

    Attributes:
        largest: absolute value seen, exact.
        count: number of values.
    """

    def __init__(self) -> None:
        self.largest = 0.0
        self.count = 0
        self._counts = np.zeros(BINS, np.int64)
        self._exponent: int | None = None  # the width is 2**exponent

    def add(self, values: npt.NDArray[np.float32]) -> None:
        """Count an array of any shape.

        Raises:
            InputError: a value is not finite.
        """
        flat = np.asarray(values, dtype=np.float32).reshape(-1)
        if not flat.size:
            return
        top = max(float(flat.max()), -float(flat.min()))
        if not np.isfinite(top):
            raise InputError("an activation is NaN or infinite")
        self.largest = max(self.largest, top)
        self.count += flat.size
        if top > 0:
            self._widen(top)
        if self._exponent is None:  # zeros only; they are bin 0 of any width
            self._counts[0] += flat.size
            return
        # A piece at a time that stays in the processor's cache: half the time of all at once.
        size, place = np.empty(_PIECE, np.float32), np.empty(_PIECE, np.intp)
        for start in range(0, flat.size, _PIECE):
            piece = flat[start : start + _PIECE]
            some, where = size[: piece.size], place[: piece.size]
            np.abs(piece, out=some)
            # Exact: dividing by a power of two does not round; what underflows is bin 0 anyway.
            np.ldexp(some, -self._exponent, out=some)
            np.copyto(where, some, casting="unsafe")
            self._counts += np.bincount(where, minlength=BINS)

    def _widen(self, top: float) -> None:
        needed = int(np.frexp(top / BINS)[1])  # top < 2**needed * BINS
        if self._exponent is None:
            self._exponent = needed
        while self._exponent < needed:
            halves = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.concatenate([halves, np.zeros(BINS // 2, np.int64)])
            self._exponent += 1

    def value(self, method: Method, percentile: float = 99.99) -> float:
        """Absolute value that becomes 127.

        Args:
            method: see the module's docstring.
            percentile: of ``percentile``, part of the values in percent that are not clipped.

        Returns:
            Positive, never above ``largest``; 0 when nothing but zeros was seen.
        """
        if self._exponent is None or method == "minmax":
            return self.largest
        width = 2.0**self._exponent
        if method == "percentile":
            reached = np.cumsum(self._counts) >= self.count * percentile / 100
            return min((int(np.argmax(reached)) + 1) * width, self.largest)
        used = int(np.flatnonzero(self._counts)[-1]) + 1
        return min(_least_divergent(self._counts[:used].astype(np.float64)) * width, self.largest)


def _least_divergent(counts: npt.NDArray[np.float64]) -> int:
    """Number of bins to keep, so that 128 levels tell the distribution with the least loss.

    For each candidate the tail is added to the last bin kept (it will be clipped to it), the bins
    are merged to 128 levels and spread again over those that were not empty, and the
    Kullback-Leibler divergence between the two is taken.
    """
    if len(counts) <= LEVELS:
        return len(counts)
    best, choice = np.inf, len(counts)
    total = counts.sum()
    for keep in range(LEVELS, len(counts) + 1):
        kept = counts[:keep]
        reference = kept.copy()
        reference[-1] += total - kept.sum()
        starts = np.arange(LEVELS) * keep // LEVELS
        filled = reference > 0
        sums = np.add.reduceat(kept, starts)
        sizes = np.add.reduceat(filled.astype(np.float64), starts)
        share = np.divide(sums, sizes, out=np.zeros(LEVELS), where=sizes > 0)
        spread = np.repeat(share, np.diff(starts, append=keep))
        loss = _divergence(reference, np.where(filled, spread, 0.0))
        if loss < best:
            best, choice = loss, keep
    return choice


def _divergence(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """KL(p || q) of unnormalised counts, with a little of everything in q where p has something."""
    p = p / p.sum()
    total = q.sum()
    if total <= 0:
        return float(np.inf)
    q = np.where((p > 0) & (q <= 0), 1e-4 / len(q), q / total)
    q = q / q.sum()
    part = p > 0
    return float(np.sum(p[part] * np.log(p[part] / q[part])))
