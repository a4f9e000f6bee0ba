"""The offset between a meter's clock and the device's, by a load that both saw.

A meter beside the device has a clock of its own, hours away at worst. What the device did and when
is known; the meter saw it as power, later and smoothed by its own filter. The offset is where the
two agree best, searched with the meter's lag together, since a lag looks like an offset. It is
believed only where they agree well and at no other place nearly as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

#: (busy, quiet) of a load pulse, s: Barker's code of 13 with chips of 1.5 s, whose autocorrelation
#: has no second peak above 1/13 (Barker 1953); 19.5 s
PULSE: tuple[tuple[float, float], ...] = ((7.5, 3.0), (3.0, 1.5), (1.5, 1.5), (1.5, 0.0))

#: least agreement, a coefficient of correlation
LEAST_SCORE = 0.6
#: the same of what changes within so many s: any slow drift agrees with one long load
LEAST_FAST, _FAST_S = 0.5, 10.0
#: highest second peak, as a share of the first
HIGHEST_SECOND = 0.85
#: where a peak ends, as a share of it
_FOOT = 0.75
#: time constants of a meter that are tried, s
_LAGS = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
_COARSE_LAGS = (0.0, 0.5, 1.0, 2.0)
_COARSE_S = 0.1  # grid of the search; a slower meter has its own
_FINE_S = 0.05  # samples of a faster meter are averaged to this
_STEP_S = 0.01  # of the pattern
_DRIFT_PART = 3  # of the span, each


@dataclass(frozen=True)
class Alignment:
    """How the clocks lie.

    Attributes:
        offset_s: the meter's clock minus the device's.
        lag_s: time constant of the meter that fits best.
        score: agreement, a coefficient of correlation, 1 at most.
        margin: how far it is above the best other place.
        drift_s: how much more the offset is in the last third of the span than in the first; None
            where the load there does not tell.
    """

    offset_s: float
    lag_s: float
    score: float
    margin: float
    drift_s: float | None


def align(
    meter_at_s: FloatArray,
    meter_w: FloatArray,
    busy: Sequence[tuple[float, float]],
    span: tuple[float, float],
) -> Alignment:
    """Find the offset of a meter's clock.

    Args:
        meter_at_s, meter_w: the meter's samples on its own clock, rising.
        busy: when the device worked, on its clock: pulses and the work itself.
        span: the part of the device's clock to compare: within it, everything outside ``busy`` was
            quiet. Where the work repeats itself, that of the pulse alone is better than all of it.

    Raises:
        ValueError: not synchronised, and why: the meter's file is too short, the load has no
            pattern, they do not agree, or they do at several places.
    """
    length = span[1] - span[0]
    if len(meter_at_s) < 4 or meter_at_s[-1] - meter_at_s[0] <= length:
        raise ValueError(
            f"the meter's samples do not reach over the {length:.0f} s that are compared; let it "
            "run from before the measurement until after it"
        )
    pause = float(np.median(np.diff(meter_at_s)))
    if pause > _FAST_S / 4:
        raise ValueError(
            f"the meter tells power every {pause:.3g} s, too slowly for the edges of a load; it "
            f"takes {_FAST_S / 4:g} s or less"
        )
    coarse = max(_COARSE_S, pause)
    starts, scores = _search(meter_at_s, meter_w, busy, span, coarse)
    best = int(np.argmax(scores))
    if not scores[best] >= LEAST_SCORE:
        raise ValueError(
            f"the meter's power does not follow the load: correlation {scores[best]:.2f} at best, "
            f"at least {LEAST_SCORE} is needed; is it the meter of this device?"
        )
    if best in (0, len(scores) - 1):
        raise ValueError(
            "the best place is at the end of the meter's samples, so that part of the measurement "
            "may lie outside; let it run from before the measurement until after it"
        )
    second = _second(scores, best)
    if second > HIGHEST_SECOND * scores[best]:
        raise ValueError(
            f"the load fits the meter's power at several places ({scores[best]:.2f} and "
            f"{second:.2f}); a load pulse tells which"
        )
    at_s, watts = _thin(meter_at_s, meter_w, _FINE_S)
    middle, reach = starts[best] - span[0], 2 * coarse + max(_LAGS) / 2
    offset, lag, score = _refine(at_s, watts, busy, span, middle, reach, _LAGS)
    fast = _fast(at_s, watts, busy, span, offset, lag)
    if not fast >= LEAST_FAST:
        raise ValueError(
            f"the meter follows no edge of the load: correlation {fast:.2f} of what changes "
            f"within {_FAST_S:.0f} s, at least {LEAST_FAST} is needed; is it this device's meter?"
        )
    drift = _drift(at_s, watts, busy, span, offset, lag, max(2 * coarse, 0.5))
    return Alignment(offset, lag, score, score - second, drift)


def _pattern(
    busy: Sequence[tuple[float, float]], span: tuple[float, float], lag_s: float
) -> FloatArray:
    """The load behind a first-order lag, every ``_STEP_S`` over the span."""
    before = int(8 * lag_s / _STEP_S)  # what a lag carries into the span
    count = int(np.ceil((span[1] - span[0]) / _STEP_S)) + 1 + before
    grid = span[0] + np.arange(-before, count - before) * _STEP_S
    load = np.zeros(count)
    for start, end in busy:
        load[(grid >= start) & (grid < end)] = 1.0
    if lag_s <= 0:
        return load
    # exp(-t / lag) as a kernel, by FFT: a recursion in Python would take seconds
    kernel = np.exp(-np.arange(before + 1) * _STEP_S / lag_s)
    kernel /= kernel.sum()
    size = 1 << int(count + len(kernel)).bit_length()
    smooth = np.fft.irfft(np.fft.rfft(load, size) * np.fft.rfft(kernel, size), size)
    return smooth[before:count]


def _search(
    at_s: FloatArray,
    watts: FloatArray,
    busy: Sequence[tuple[float, float]],
    span: tuple[float, float],
    step_s: float,
) -> tuple[FloatArray, FloatArray]:
    """Where the span may begin on the meter's clock, and how well each place agrees."""
    grid = np.arange(at_s[0], at_s[-1], step_s)
    power = np.interp(grid, *_thin(at_s, watts, step_s))
    power = power - power.mean()
    count = int((span[1] - span[0]) / step_s)
    if count < 4 or count >= len(power):
        raise ValueError("the meter's samples are too few for what is compared")
    sums = np.concatenate([[0.0], np.cumsum(power)])
    squares = np.concatenate([[0.0], np.cumsum(power**2)])
    spread = squares[count:] - squares[:-count]
    spread = spread - (sums[count:] - sums[:-count]) ** 2 / count
    spread = np.sqrt(np.maximum(spread, 1e-12 * max(float(squares[-1]), 1e-300)))
    size = 1 << int(len(power) + count).bit_length()
    spectrum = np.fft.rfft(power, size)
    best = np.full(len(spread), -1.0)
    known = False
    for lag in _COARSE_LAGS:
        fine = _pattern(busy, span, lag)
        places = np.minimum((np.arange(count) * step_s / _STEP_S).astype(int), len(fine) - 1)
        form = fine[places] - fine[places].mean()
        norm = float(np.sqrt((form**2).sum()))
        if norm < 1e-9:
            continue
        known = True
        products = np.fft.irfft(spectrum * np.conj(np.fft.rfft(form, size)), size)[: len(spread)]
        best = np.maximum(best, products / (norm * spread))
    if not known:
        raise ValueError("the device was busy all the time or never: there is nothing to compare")
    return grid[: len(best)], best


def _second(scores: FloatArray, best: int) -> float:
    """The best place that is not on the slopes of the best one."""
    foot = scores < _FOOT * scores[best]
    left = np.flatnonzero(foot[:best])
    right = np.flatnonzero(foot[best:])
    others = np.concatenate([
        scores[: left[-1] + 1] if len(left) else scores[:0],
        scores[best + right[0] :] if len(right) else scores[:0],
    ])  # fmt: skip
    return float(others.max()) if len(others) else 0.0


def _thin(at_s: FloatArray, watts: FloatArray, step_s: float) -> tuple[FloatArray, FloatArray]:
    """Samples averaged over steps, those of a slower meter as they are."""
    bins = np.floor((at_s - at_s[0]) / step_s).astype(np.int64)
    first = np.flatnonzero(np.concatenate([[True], np.diff(bins) > 0]))
    counts = np.diff(np.concatenate([first, [len(bins)]]))
    return np.add.reduceat(at_s, first) / counts, np.add.reduceat(watts, first) / counts


def _refine(
    at_s: FloatArray,
    watts: FloatArray,
    busy: Sequence[tuple[float, float]],
    span: tuple[float, float],
    middle_s: float,
    reach_s: float,
    lags: Sequence[float],
) -> tuple[float, float, float]:
    """Offset, lag and agreement around an offset; first in wide steps, then in narrow ones."""
    patterns = {lag: _pattern(busy, span, lag) for lag in lags}
    found = middle_s, lags[0], -1.0
    for step, reach in ((0.1, reach_s), (0.02, 0.2)):
        centre = found[0]
        for offset in np.arange(centre - reach, centre + reach + step / 2, step):
            inside = (at_s - offset >= span[0]) & (at_s - offset <= span[1])
            places = ((at_s[inside] - offset - span[0]) / _STEP_S).astype(np.int64)
            power = watts[inside]
            if len(power) < 4:
                continue
            for lag, pattern in patterns.items():
                score = _correlate(pattern[places], power)
                if score > found[2]:
                    found = float(offset), lag, score
    return found


def _fast(
    at_s: FloatArray,
    watts: FloatArray,
    busy: Sequence[tuple[float, float]],
    span: tuple[float, float],
    offset_s: float,
    lag_s: float,
) -> float:
    """Agreement of both without their means over ``_FAST_S``."""
    inside = (at_s - offset_s >= span[0]) & (at_s - offset_s <= span[1])
    places = ((at_s[inside] - offset_s - span[0]) / _STEP_S).astype(np.int64)
    width = max(int(_FAST_S / float(np.median(np.diff(at_s)))), 1)
    window = np.ones(width)
    counts = np.convolve(np.ones(len(places)), window, "same")
    pair = [
        values - np.convolve(values, window, "same") / counts
        for values in (_pattern(busy, span, lag_s)[places], watts[inside])
    ]
    return _correlate(*pair)


def _correlate(one: FloatArray, other: FloatArray) -> float:
    one, other = one - one.mean(), other - other.mean()
    norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / norm if norm > 0 else -1.0


def _drift(
    at_s: FloatArray,
    watts: FloatArray,
    busy: Sequence[tuple[float, float]],
    span: tuple[float, float],
    offset_s: float,
    lag_s: float,
    reach_s: float,
) -> float | None:
    """How the offset moves over the span."""
    part = (span[1] - span[0]) / _DRIFT_PART
    found = []
    for piece in ((span[0], span[0] + part), (span[1] - part, span[1])):
        edges = [edge for pair in busy for edge in pair if piece[0] < edge < piece[1]]
        offset, _, score = _refine(at_s, watts, busy, piece, offset_s, reach_s, [lag_s])
        if not edges or score < LEAST_SCORE:
            return None
        found.append(offset)
    return found[1] - found[0]
