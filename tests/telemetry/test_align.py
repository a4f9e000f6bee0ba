"""A meter's clock is found by what the device did, or refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgekd.telemetry.align import PULSE, align
from tests.helpers.powers import pulse

BUSY = [*pulse(1010.3), (1040.1, 1075.7)]
SPAN = (1005.0, 1080.0)
OFFSET = 3 * 3600 + 0.377


def meter(
    rng: np.random.Generator,
    busy: Sequence[tuple[float, float]],
    rate_hz: float,
    lag_s: float,
    noise_w: float,
    step_w: float = 0.0,
    span: tuple[float, float] = (960.0, 1130.0),
) -> tuple[np.ndarray, np.ndarray]:
    """4 W and 8 W more while busy, through a first-order lag, on a clock ``OFFSET`` ahead."""
    fine = 0.005
    t = np.arange(*span, fine)
    load = np.zeros_like(t)
    for start, end in busy:
        load[(t >= start) & (t < end)] = 8.0
    value, power = 0.0, np.empty_like(t)
    share = 1.0 if lag_s == 0 else 1 - np.exp(-fine / lag_s)
    for place, wanted in enumerate(load):
        value += share * (wanted - value)
        power[place] = 4 + value
    at_s = np.arange(span[0] + rng.random() / rate_hz, span[1] - 1 / rate_hz, 1 / rate_hz)
    watts = np.interp(at_s, t, power) + rng.normal(0, noise_w, len(at_s))
    return at_s + OFFSET, np.round(watts / step_w) * step_w if step_w else watts


@pytest.mark.parametrize("rate_hz", [100.0, 10.0, 1.0])
@pytest.mark.parametrize("lag_s", [0.0, 0.45, 1.1, 2.0])
@pytest.mark.parametrize(("noise_w", "step_w"), [(0.05, 0.0), (0.8, 0.0), (0.2, 1.0)])
def test_the_offset_is_found(rate_hz: float, lag_s: float, noise_w: float, step_w: float) -> None:
    rng = np.random.default_rng(int(rate_hz * 7 + lag_s * 10))
    found = align(*meter(rng, BUSY, rate_hz, lag_s, noise_w, step_w), BUSY, SPAN)
    assert abs(found.offset_s - OFFSET) < min(1 / rate_hz, 0.5) + 0.1
    assert found.score > 0.95 and found.margin > 0.2 and abs(found.lag_s - lag_s) <= 0.3


def test_a_clock_that_drifts_is_told() -> None:
    rng = np.random.default_rng(3)
    busy = [*pulse(1010.0), (1040.0, 1290.0), *pulse(1300.0)]
    at_s, watts = meter(rng, busy, 10, 0.45, 0.1, span=(960, 1370))
    start = 1010.0 + OFFSET
    found = align(start + (at_s - start) * 1.004, watts, busy, (1005.0, 1325.0))
    assert found.drift_s == pytest.approx(0.004 * 250, abs=0.35)
    steady = align(at_s, watts, busy, (1005.0, 1325.0))
    assert steady.drift_s == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("rate_hz", [100.0, 10.0, 1.0])
@pytest.mark.parametrize("kind", ["noise", "drift"])
def test_what_is_no_load_is_refused(rate_hz: float, kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):
        at_s = np.arange(0, 300, 1 / rate_hz)
        steps = rng.normal(0, 1 if kind == "noise" else rate_hz**-0.5, len(at_s))
        watts = 5 + (steps if kind == "noise" else np.cumsum(steps))
        with pytest.raises(ValueError, match="correlation|at several places|at the end of"):
            align(at_s, watts, BUSY, SPAN)


def test_a_load_that_hardly_shows_is_refused() -> None:
    """Unique, and yet half of the meter's power is something else."""
    at_s, watts = meter(np.random.default_rng(8), BUSY, 10, 0.45, 7.0)
    with pytest.raises(ValueError, match="does not follow the load: correlation 0.[45]"):
        align(at_s, watts, BUSY, SPAN)


def test_a_load_that_repeats_itself_is_refused_and_a_pulse_mends_it() -> None:
    rng = np.random.default_rng(6)
    work = [(1000 + 3.0 * n, 1001.5 + 3 * n) for n in range(40)]
    at_s, watts = meter(rng, work, 10, 0.45, 0.2, span=(900, 1300))
    with pytest.raises(ValueError, match="at several places .* a load pulse tells which"):
        align(at_s, watts, work, (995.0, 1125.0))
    busy = [*pulse(970.0), *work]
    at_s, watts = meter(rng, busy, 10, 0.45, 0.2, span=(900, 1300))
    found = align(at_s, watts, busy, (965.0, 998.0))  # that of the pulse alone
    assert abs(found.offset_s - OFFSET) < 0.2


@pytest.mark.parametrize(
    ("busy", "span", "window", "words"),
    [
        (BUSY, SPAN, (1020.0, 1075.0), "do not reach over the 75 s that are compared"),
        (BUSY, SPAN, (1005.0, 1130.0), "at the end of the meter's samples|does not follow"),
        ([], SPAN, (960.0, 1130.0), "busy all the time or never"),
        ([(0.0, 9e9)], SPAN, (960.0, 1130.0), "busy all the time or never"),
        ([(1000.0, 1001.0)], (1006.0, 1006.1), (960.0, 1130.0), "too few"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(
    busy: list[tuple[float, float]],
    span: tuple[float, float],
    window: tuple[float, float],
    words: str,
) -> None:
    rng = np.random.default_rng(7)
    at_s, watts = meter(rng, BUSY, 10, 0.45, 0.1)
    kept = (at_s - OFFSET >= window[0]) & (at_s - OFFSET <= window[1])
    with pytest.raises(ValueError, match=words):
        align(at_s[kept], watts[kept], busy, span)
    with pytest.raises(ValueError, match="every 5 s, too slowly"):
        align(at_s[::50], watts[::50], BUSY, SPAN)


def test_the_pulse_has_one_peak() -> None:
    """Barker: of the code as +1 and -1, no shift of whole chips agrees by more than one chip."""
    assert sum(map(sum, PULSE)) == 19.5
    chips = np.concatenate([
        np.repeat([1, -1], [int(busy / 1.5), int(quiet / 1.5)]) for busy, quiet in PULSE
    ])  # fmt: skip
    sides = np.correlate(chips, chips, "full")
    assert len(chips) == 13 and sides.max() == 13
    assert np.abs(np.delete(sides, 12)).max() <= 1
    assert pulse(5.0)[0] == (5.0, 12.5) and pulse(5.0)[-1][1] == 24.5
