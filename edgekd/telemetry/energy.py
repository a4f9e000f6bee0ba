"""From power samples to energy, with what may be said about its certainty.

Energy is the integral of instantaneous samples over a window by the trapezoid rule, on the times at
which they arrived, with the edges of the window interpolated: never a mean of means, and never
samples times an interval that was asked for (tegrastats keeps 109 ms where 100 were asked for).

Samples follow each other more closely than a sensor's lag, so they are no independent draws. The
interval is that of batch means (Law, Simulation Modeling and Analysis, 9.5): the window is cut into
batches, each many times as long as power remembers itself, whose means are treated as independent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.telemetry.sensors._base import SensorInfo

FloatArray = npt.NDArray[np.float64]

#: fewest samples in a window
LEAST_SAMPLES = 20
#: longest pause between samples, in median pauses
LONGEST_GAP = 3.0
#: least share of a window that lies between samples which are not too far apart
LEAST_COVERAGE = 0.95
#: a window begins so many lags of the sensor behind a change of the load: exp(-5) is 0.7 %
GUARD_LAGS = 5.0
#: lag that is assumed of a sensor whose lag is not known, s: a little above the longest measured
UNKNOWN_LAG_S = 0.5
#: fewest windows whose means tell how far repeats are apart
LEAST_REPEATS = 2
#: batches of a window, and how many times as long as power remembers itself each is
_MOST_BATCHES, _FEWEST_BATCHES, _MEMORIES = 30, 5, 10.0
#: values from which on their differences tell a step
_FEWEST_LEVELS = 4
#: Student's t, 97.5 %, by degrees of freedom from 1 (NIST/SEMATECH e-Handbook 1.3.6.7.2)
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval.

    Attributes:
        value, low, high: in one unit.
        batches: independent pieces that it rests on.
    """

    value: float
    low: float
    high: float
    batches: int

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit; ``factor`` > 0."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor, self.batches)

    def minus(self, other: Estimate) -> Estimate:
        """The difference of two figures that know nothing of each other."""
        value, half = self.value - other.value, math.hypot(self.half, other.half)
        return Estimate(value, value - half, value + half, min(self.batches, other.batches))


def guard_s(info: SensorInfo) -> float:
    """What is left out behind a change of the load, s."""
    return GUARD_LAGS * (UNKNOWN_LAG_S if info.lag_s is None else info.lag_s)


def energy_j(at_s: FloatArray, watts: FloatArray, start_s: float, end_s: float) -> float:
    """Energy between two moments, J.

    Args:
        at_s: when each sample was taken, s, rising.
        watts: power at that moment, W; negative is allowed (a rail that is off).
        start_s, end_s: between the first and the last sample.

    Raises:
        ValueError: a window that the samples do not hold, or times that do not rise.
    """
    if at_s.shape != watts.shape or at_s.ndim != 1:
        raise ValueError(f"expected as many times as powers, received {at_s.shape}, {watts.shape}")
    if len(at_s) < 2 or not (np.diff(at_s) > 0).all():
        raise ValueError("expected at least two samples at rising times")
    if not np.isfinite(watts).all():
        raise ValueError("expected numbers, received nan or infinity")
    if not at_s[0] <= start_s < end_s <= at_s[-1]:
        raise ValueError(
            f"the window {start_s:g} to {end_s:g} s is not within the samples, "
            f"{at_s[0]:g} to {at_s[-1]:g} s"
        )
    inside = (at_s > start_s) & (at_s < end_s)
    times = np.concatenate([[start_s], at_s[inside], [end_s]])
    powers = np.concatenate([
        [np.interp(start_s, at_s, watts)], watts[inside], [np.interp(end_s, at_s, watts)],
    ])  # fmt: skip
    return float((np.diff(times) * (powers[1:] + powers[:-1]) / 2).sum())


def faults(at_s: FloatArray, start_s: float, end_s: float) -> list[str]:
    """Why samples cannot carry a figure of a window; empty where they can.

    Args:
        at_s: times of samples, s, rising.
        start_s, end_s: the window.
    """
    found = []
    inside = at_s[(at_s >= start_s) & (at_s <= end_s)]
    if len(inside) < LEAST_SAMPLES:
        found.append(f"{len(inside)} samples, at least {LEAST_SAMPLES} are needed")
    if len(inside) < 2:
        return found
    pause = float(np.median(np.diff(inside)))
    edges = np.concatenate([[start_s], inside, [end_s]])
    gaps = np.diff(edges)
    wide = gaps > LONGEST_GAP * pause
    if wide.any():
        place = int(np.argmax(gaps))
        found.append(
            f"a gap of {gaps[place]:.3g} s at {edges[place] - start_s:.3g} s, where samples are "
            f"{pause:.3g} s apart"
        )
    coverage = 1 - float(gaps[wide].sum()) / (end_s - start_s)
    if coverage < LEAST_COVERAGE:
        found.append(f"samples cover {coverage:.0%} of the window")
    return found


def mean_power_w(
    at_s: FloatArray,
    watts: FloatArray,
    start_s: float,
    end_s: float,
    resolution_w: float | None = None,
) -> Estimate:
    """Mean power over a window with its interval, W.

    Args:
        at_s, watts, start_s, end_s: see :func:`energy_j`.
        resolution_w: least step of the sensor; where nobody knows it, that of the readings. A
            reading is anywhere within it, with a standard
            deviation of step / sqrt(12) that no number of samples makes smaller.

    Raises:
        ValueError: see :func:`energy_j`.
    """
    return pooled_power_w(at_s, watts, [(start_s, end_s)], resolution_w)


def pooled_power_w(
    at_s: FloatArray,
    watts: FloatArray,
    windows: Sequence[tuple[float, float]],
    resolution_w: float | None = None,
    between: bool = True,
) -> Estimate:
    """Mean power over several windows of the same work, W: their energy over their time.

    The interval is the wider of two: that of the batches within the windows, and from two windows
    on that of the windows' own means, since what differs from one repeat to the next (heat, what
    else the machine does) does not show within one.

    Args:
        at_s, watts: see :func:`energy_j`.
        windows: ``(start_s, end_s)`` of each, at least one.
        resolution_w: see :func:`mean_power_w`.
        between: whether the windows are repeats of the same; False leaves that of the batches.

    Raises:
        ValueError: see :func:`energy_j`.
    """
    if not windows:
        raise ValueError("expected at least one window")
    shares = np.array([end - start for start, end in windows], np.float64)
    shares /= shares.sum()
    parts = [_batch_means(at_s, watts, start, end) for start, end in windows]
    means = np.array([energy_j(at_s, watts, *window) / (window[1] - window[0])
                      for window in windows])  # fmt: skip
    value = float((shares * means).sum())
    errors = np.array([part.std(ddof=1) / math.sqrt(len(part)) for part in parts])
    batches = sum(len(part) for part in parts)
    # a reading is within half a step of the truth however often it is taken: no Student's t
    step = 2 / math.sqrt(12) * (step_of(watts) if resolution_w is None else resolution_w)
    within = student_t(batches - len(parts)) * float(np.hypot.reduce(shares * errors))
    half = math.hypot(within, step)
    if between and len(windows) >= LEAST_REPEATS:
        half = max(half, half_of_repeats(means, shares))
    return Estimate(value, value - half, value + half, batches)


def step_of(watts: FloatArray) -> float:
    """Step of readings whose sensor does not tell its own, W: the last decimal that any of them
    uses (to 0.1 mW), or what the differences of values that come again have in common."""
    digits = next(n for n in range(5) if n == 4 or np.allclose(watts, watts.round(n), atol=1e-9))
    units = np.unique((watts * 10**digits).round().astype(np.int64))
    step = 10.0**-digits
    if _FEWEST_LEVELS <= len(units) < len(watts) / 2:  # two levels may be two loads
        step *= int(np.gcd.reduce(np.diff(units)))
    return step


def half_of_repeats(values: FloatArray, shares: FloatArray) -> float:
    """Half the 95 % interval of a weighted mean of repeats, by Student's t over the repeats.

    Args:
        values: of each, at least two.
        shares: weights; only their ratios count.
    """
    weights = shares / shares.sum()
    apart = float((weights * (values - (weights * values).sum()) ** 2).sum())
    return student_t(len(values) - 1) * math.sqrt(apart / (len(values) - 1))


def student_t(freedom: int) -> float:
    """97.5 % quantile of Student's t; of more than 30 degrees of freedom that of 30."""
    return _T[min(freedom, len(_T)) - 1]


def _batch_means(at_s: FloatArray, watts: FloatArray, start_s: float, end_s: float) -> FloatArray:
    """Means of pieces of a window that are long beside what power remembers of itself, W."""
    duration = end_s - start_s
    memory = _memory_s(at_s, watts, start_s, end_s)
    batches = int(duration / (_MEMORIES * memory)) if memory > 0 else _MOST_BATCHES
    batches = min(max(batches, _FEWEST_BATCHES), _MOST_BATCHES)
    edges = np.linspace(start_s, end_s, batches + 1)
    edges[-1] = end_s
    return np.array([
        energy_j(at_s, watts, first, last) / (last - first)
        for first, last in itertools.pairwise(edges)
    ])  # fmt: skip


def _memory_s(at_s: FloatArray, watts: FloatArray, start_s: float, end_s: float) -> float:
    """How long power remembers itself: the integrated autocorrelation time, by Geyer's initial
    positive sequence (Statistical Science 7, 1992)."""
    count = int(((at_s >= start_s) & (at_s <= end_s)).sum())
    if count < 4:
        return 0.0
    grid = np.linspace(start_s, end_s, count)
    values = np.interp(grid, at_s, watts)
    mean = float(values.mean())
    values -= mean
    spectrum = np.abs(np.fft.rfft(values, 2 * count)) ** 2
    covariance = np.fft.irfft(spectrum)[:count]
    if covariance[0] <= np.finfo(np.float64).eps * mean**2:
        return 0.0  # constant: what is left of it is rounding, which remembers itself anyhow
    correlation = covariance / covariance[0]
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0)
    total = 2 * float(pairs[: ends[0] if len(ends) else len(pairs)].sum()) - 1
    return max(total, 1.0) * float(grid[1] - grid[0])
