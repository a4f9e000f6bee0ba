"""Energy: against sums that are known, against numpy on real logs, and intervals that cover."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.telemetry.energy import (
    GUARD_LAGS,
    UNKNOWN_LAG_S,
    Estimate,
    energy_j,
    faults,
    guard_s,
    mean_power_w,
    pooled_power_w,
    step_of,
)
from edgekd.telemetry.rails import find_total
from edgekd.telemetry.sensors._base import SensorInfo
from edgekd.telemetry.tegrastats import Reader


def trapezoid(values: np.ndarray, times: np.ndarray) -> float:
    """NumPy's, which has another name before 2.0."""
    return float(getattr(np, "trapezoid" if hasattr(np, "trapezoid") else "trapz")(values, times))


LAG_S = 0.45  # Orin Nano, measured: 0.40 to 0.48 s


@given(
    st.lists(st.tuples(st.floats(0.01, 2), st.floats(-5, 50)), min_size=2, max_size=40),
    st.floats(0, 0.45), st.floats(0.55, 1),
)  # fmt: skip
def test_energy_is_that_of_the_lines_between_samples(
    steps: list[tuple[float, float]], first: float, last: float
) -> None:
    """Cut anywhere, the parts add up; and each is the integral on a fine grid."""
    times = np.cumsum([pause for pause, _ in steps])
    watts = np.array([power for _, power in steps])
    start = times[0] + first * (times[-1] - times[0])
    end = times[0] + last * (times[-1] - times[0])
    whole = energy_j(times, watts, times[0], times[-1])
    parts = energy_j(times, watts, start, end)
    for a, b in ((times[0], start), (end, times[-1])):
        parts += energy_j(times, watts, a, b) if b > a else 0
    assert parts == pytest.approx(whole, abs=1e-9 * max(1, abs(whole)) + 1e-7)
    fine = np.union1d(np.linspace(start, end, 2000), times[(times > start) & (times < end)])
    expected = trapezoid(np.interp(fine, times, watts), fine)
    assert energy_j(times, watts, start, end) == pytest.approx(expected, rel=1e-9, abs=1e-7)


@pytest.mark.parametrize(
    ("times", "watts", "window", "words"),
    [
        ([0, 1, 2], [1, 1], (0, 1), "as many times as powers"),
        ([0], [1], (0, 1), "at least two"),
        ([0, 1, 1], [1, 1, 1], (0, 1), "rising times"),
        ([0, 2, 1], [1, 1, 1], (0, 1), "rising times"),
        ([0, 1, 2], [1, np.nan, 1], (0, 1), "nan or infinity"),
        ([0, 1, 2], [1, 1, 1], (-0.1, 1), "not within the samples, 0 to 2 s"),
        ([0, 1, 2], [1, 1, 1], (0, 2.1), "not within"),
        ([0, 1, 2], [1, 1, 1], (1, 1), "not within"),
    ],
)
def test_what_has_no_energy_is_refused(
    times: list[float], watts: list[float], window: tuple[float, float], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        energy_j(np.array(times, float), np.array(watts, float), *window)


@pytest.mark.parametrize(
    ("times", "words"),
    [
        (np.arange(0, 10, 0.1), []),
        (np.arange(0, 10, 0.6), ["17 samples, at least 20 are needed"]),
        (np.r_[0:4:41j, 4.35:9.95:57j], ["a gap of 0.35 s at 4 s, where samples are 0.1 s apart"]),
        (np.r_[0:4:41j, 5:10:51j], ["a gap of 1 s at 4 s", "samples cover 90% of the window"]),
        (np.arange(0, 9, 0.1), ["a gap of 1.1 s at 8.9 s", "cover 89%"]),
        (np.arange(1, 10.05, 0.1), ["a gap of 1 s at 0 s", "cover 90%"]),
        (np.array([1.0]), ["1 samples"]),
        (np.array([]), ["0 samples"]),
    ],
)
def test_gaps_and_few_samples_are_faults(times: np.ndarray, words: list[str]) -> None:
    found = faults(times, 0.0, 10.0)
    assert len(found) == len(words), found
    for sentence, expected in zip(found, words, strict=True):
        assert expected in sentence


def lagged(load_w: np.ndarray, dt_s: float, lag_s: float = LAG_S) -> np.ndarray:
    """What a sensor with a first-order lag shows of a load."""
    shown = np.empty_like(load_w)
    value = load_w[0]
    for place, power in enumerate(load_w):
        value += (power - value) * (1 - np.exp(-dt_s / lag_s))
        shown[place] = value
    return shown


def test_a_guard_of_five_lags_takes_the_lag_out() -> None:
    """Idle at 6 W, 20 s at 21 W, idle: known energy of the load behind the guard."""
    fine = 0.001
    time = np.arange(0, 60, fine)
    load = np.where((time >= 20) & (time < 40), 21.0, 6.0)
    shown = lagged(load, fine)
    at, watts = time[::109], shown[::109]  # tegrastats at 100 ms
    known = 21.0 * 20
    bare = energy_j(at, watts, 20.0, 40.0)
    assert (known - bare) / known == pytest.approx(15 * LAG_S / known, rel=0.05), "6.75 J are lost"
    guard = GUARD_LAGS * LAG_S
    guarded = energy_j(at, watts, 20.0 + guard, 40.0)
    assert abs(guarded / (21.0 * (20 - guard)) - 1) < 0.01
    # or all that the load added, with the tail: the lag keeps nothing for itself
    tail = energy_j(at, watts, 15.0, 40.0 + 2 * guard) - 6.0 * (25 + 2 * guard)
    assert tail == pytest.approx(15.0 * 20, rel=0.01)


@pytest.mark.parametrize("seconds", [30, 60])
def test_intervals_cover_the_truth(seconds: int) -> None:
    """1000 random traces: a load that goes on and off at random, noise that remembers itself, the
    sensor's lag, its step and its uneven pauses. 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(seconds)
    held, count = 0, 1000
    for _ in range(count):
        pauses = 0.109 * (1 + 0.05 * rng.standard_normal(int(seconds / 0.1) + 120))
        at = np.cumsum(pauses)
        true_w, swing_w = 4 + 20 * rng.random(), 0.2 + 2 * rng.random()
        memory = rng.choice([0.1, LAG_S, 0.8])
        keep = np.exp(-0.109 / memory)
        noise = rng.standard_normal(len(at))
        state, values = noise[0], np.empty(len(at))
        for place, item in enumerate(noise):
            state = keep * state + np.sqrt(1 - keep**2) * item
            values[place] = state
        watts = np.round((true_w + swing_w * values) / 0.04) * 0.04
        found = mean_power_w(at, watts, at[5], at[5] + seconds, 0.04)
        held += found.low <= true_w <= found.high
        assert found.low < found.value < found.high
    assert 0.93 <= held / count <= 0.97, held


def test_white_noise_intervals_would_not_cover() -> None:
    """The test above can fail: with the usual s / sqrt(n) two thirds of the intervals miss."""
    rng = np.random.default_rng(0)
    keep, held = np.exp(-0.109 / LAG_S), 0
    for _ in range(300):
        values = np.empty(500)
        state = rng.standard_normal()
        for place in range(500):
            state = keep * state + np.sqrt(1 - keep**2) * rng.standard_normal()
            values[place] = state
        held += abs(values.mean()) < 1.96 * values.std() / np.sqrt(500)
    assert held / 300 < 0.7


@pytest.mark.parametrize("step", [0.04, 0.4])
def test_no_interval_is_narrower_than_the_sensors_step(step: float) -> None:
    at = np.arange(0, 60, 0.1)
    found = mean_power_w(at, np.full(len(at), 5.2), 1, 59, step)
    assert found.value == pytest.approx(5.2) and found.half >= 1.96 * step / np.sqrt(12)


@pytest.mark.parametrize(
    ("watts", "step"),
    [
        ([15.0] * 30, 1.0),
        ([15.0, 16.0, 17.0] * 10, 1.0),
        ([5.2] * 30, 0.1),
        ([5.0, 5.04, 5.08, 5.16] * 10, 0.04),
        ([5.123, 5.2], 0.001),
        ([5.0] * 30 + [11.0] * 30, 1.0),  # two loads, no step of 6 W
        (list(5 + 0.3 * np.random.default_rng(0).standard_normal(100)), 1e-4),
    ],
)
def test_a_step_that_nobody_told_is_that_of_the_readings(watts: list[float], step: float) -> None:
    """So that a meter of whole watts has no interval of zero width."""
    assert step_of(np.array(watts)) == pytest.approx(step)
    at = np.arange(len(watts)) * 0.1
    if len(watts) > 20:
        found = mean_power_w(at, np.array(watts), at[0], at[-1])
        assert found.half >= 1.96 * step / np.sqrt(12)


def test_figures_are_scaled_and_compared() -> None:
    one, other = Estimate(10, 9, 11, 20), Estimate(4, 3.25, 4.75, 8)
    assert one.scaled(2) == Estimate(20, 18, 22, 20)
    assert one.minus(other) == Estimate(6, 4.75, 7.25, 8)


def stamps(lines: list[object], name: str) -> np.ndarray:
    """Arrival where jetsontools wrote it; else tegrastats' whole seconds, spread evenly."""
    epochs = [line.epoch_s for line in lines]  # type: ignore[attr-defined]
    if all(item is not None for item in epochs):
        return np.array(epochs)
    walls = [line.wall for line in lines]  # type: ignore[attr-defined]
    seconds = (walls[-1] - walls[0]) / dt.timedelta(seconds=1)
    return np.linspace(0, seconds, len(lines))


def test_real_logs_against_numpy(test_data: Path) -> None:
    """Mean, energy and duration of each log's total, by numpy alone and by us."""
    count = 0
    for path in sorted((test_data / "telemetry").glob("*.log")):
        reader = Reader()
        lines = reader.feed(path.read_bytes())
        total = find_total(lines[0].rails)
        if total is None:
            assert "basic" in path.name and not lines[0].rails
            continue
        count += 1
        at = stamps(lines, path.name)  # type: ignore[arg-type]
        watts = np.array([
            total.watts({name: rail.now_mw for name, rail in line.rails.items()}) for line in lines
        ], float)  # fmt: skip
        words = [
            sum(int(re.search(rf"\b{name} (-?\d+)(?:mW)?/", text)[1]) for name in total.rails)  # type: ignore[index]
            for text in path.read_text().splitlines()
        ]
        np.testing.assert_allclose(watts * 1000, words)
        keep = np.r_[True, np.diff(at) > 0]
        at, watts = at[keep], watts[keep]
        expected = float(trapezoid(np.array(words)[keep] / 1000, at))
        found = energy_j(at, watts, at[0], at[-1])
        assert found == pytest.approx(expected, rel=1e-3), path.name
        mean = mean_power_w(at, watts, at[0], at[-1])
        assert mean.value == pytest.approx(expected / (at[-1] - at[0]), rel=1e-3)
        assert mean.low < mean.value < mean.high
    assert count == 8


def test_the_second_figure_is_the_mean_since_the_start(test_data: Path) -> None:
    """On the Orin Nano's log, each rail, within 1 mW; and idle, load and idle are there."""
    path = test_data / "telemetry" / "orin-nano-8gb_jp6_sudo-vlm-trt-100ms.log"
    lines = Reader().feed(path.read_bytes())
    for name in ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"):
        now = np.array([line.rails[name].now_mw for line in lines], float)
        mean = np.array([line.rails[name].mean_mw for line in lines])
        running = np.cumsum(now) / np.arange(1, len(now) + 1)
        assert np.abs(running - mean).max() <= 1
    power = np.array([line.rails["VDD_IN"].now_mw for line in lines]) / 1000
    assert power.mean() == pytest.approx(12.128, abs=0.001)
    busy = power > 12
    first, last = np.flatnonzero(busy)[[0, -1]]
    assert power[: first - 10].mean() < 7 < 15 < power[first + 10 : last - 10].mean()
    assert last < len(power) - 5 and power[-3:].mean() < 7


@pytest.mark.parametrize("apart_w", [0.0, 0.3])
def test_intervals_over_repeats_cover_the_truth(apart_w: float) -> None:
    """1000 random records of five windows each, whose means differ by what shows between repeats
    alone: the mean of the batches would be far too sure of itself."""
    rng = np.random.default_rng(int(apart_w * 10))
    held, alone, count = 0, 0, 1000
    keep = np.exp(-0.1 / LAG_S)
    at = np.arange(0, 60, 0.1)
    windows = [(start + 2.0, start + 11.5) for start in range(0, 60, 12)]
    for _ in range(count):
        noise = rng.standard_normal((len(at), 1))
        state, values = noise[0, 0], np.empty(len(at))
        for place, item in enumerate(noise[:, 0]):
            state = keep * state + np.sqrt(1 - keep**2) * item
            values[place] = state
        watts = 12 + 0.3 * values + np.repeat(apart_w * rng.standard_normal(5), 120)
        found = pooled_power_w(at, watts, windows)
        held += found.low <= 12 <= found.high
        one = pooled_power_w(at, watts, windows, between=False)
        alone += one.low <= 12 <= one.high
    assert 0.94 <= held / count <= 0.99, held / count  # the wider of two is a little too wide
    assert alone / count < 0.8 if apart_w else alone / count > 0.9


def test_windows_are_weighed_by_their_length() -> None:
    at = np.arange(0, 40, 0.1)
    watts = np.where(at < 20.05, 5.0, 8.0)
    found = pooled_power_w(at, watts, [(0, 15), (25, 30)])
    assert found.value == pytest.approx((5 * 15 + 8 * 5) / 20)
    with pytest.raises(ValueError, match="at least one window"):
        pooled_power_w(at, watts, [])


@pytest.mark.parametrize("watts", [5.12, 5.04, 4.97, 0.1, 1e-3, 1234.567, 0.0, -0.398])
def test_constant_power_is_as_certain_at_any_level(watts: float) -> None:
    """What rounding leaves of it is no memory."""
    at_s = np.arange(0, 60, 0.109)
    found = mean_power_w(at_s, np.full(len(at_s), watts), 1.0, 58.0, 0.04)
    assert found.value == pytest.approx(watts)
    assert found.batches == 30
    assert found.half == pytest.approx(2 * 0.04 / math.sqrt(12), rel=1e-6)


def test_the_guard_of_a_lag() -> None:
    known = SensorInfo("x", "module", ("VDD_IN",), lag_s=0.3)
    assert guard_s(known) == pytest.approx(1.5)
    assert guard_s(dataclasses.replace(known, lag_s=None)) == GUARD_LAGS * UNKNOWN_LAG_S == 2.5
