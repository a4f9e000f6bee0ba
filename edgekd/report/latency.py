"""Figures of latencies."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from edgekd.contracts.schema import Document


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile: the smallest value with at least ``percent`` % at or below it.

    The result is always one of the values (nothing is interpolated), so the 99th percentile of
    fewer than 100 values is the largest. It is ``sorted(values)[ceil(percent / 100 * n) - 1]``.

    Args:
        values: at least one.
        percent: 0 < percent <= 100.

    Raises:
        ValueError: no values, or a percent outside the range.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"expected values and 0 < percent <= 100, received {percent}")
    # percent * n first: 0.07 * 100 is 7.000000000000001 and would move the rank by one
    return sorted(values)[max(math.ceil(percent * len(values) / 100), 1) - 1]


class LatencySummary(Document):
    """Figures of a list of latencies, s; percentiles by nearest rank (:func:`percentile`)."""

    n: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    min_s: float
    max_s: float

    @classmethod
    def of(cls, latencies_s: Sequence[float]) -> LatencySummary:
        """Summarise at least one latency."""
        return cls(
            n=len(latencies_s),
            mean_s=statistics.fmean(latencies_s),
            p50_s=percentile(latencies_s, 50),
            p90_s=percentile(latencies_s, 90),
            p99_s=percentile(latencies_s, 99),
            min_s=min(latencies_s),
            max_s=max(latencies_s),
        )


def nearly(a: float, b: float) -> bool:
    """Whether a stored figure is the one that follows from the samples."""
    return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)


def rounded(values: Sequence[float]) -> list[float]:
    """To 0.1 µs, far below what a call takes; keeps a record of 10,000 calls small."""
    return [round(value, 7) for value in values]
