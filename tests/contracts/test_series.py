"""Series: what one is, joining, and equal steps by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.series import Series, in_order, joined, on_grid
from edgekd.errors import InputError

START = np.datetime64("2015-01-01T00:00:00")
GAP = float("nan")


def series(
    minutes: list[float], values: list[Any], channels: tuple[str, ...] = ("gust_m_s",), **more: Any
) -> Series:
    times = START + (np.array(minutes) * 60).astype("timedelta64[s]")
    column = np.array(values, dtype=float).reshape(len(minutes), len(channels))
    return Series(times, column, channels, more.pop("source", "made"), **more)


def grid(item: Series, step_min: int, count: int, gap_min: float, start: Any = START) -> list[Any]:
    cells = on_grid(item, start, step_min * 60, count, most_gap_s=gap_min * 60)
    return [None if np.isnan(value) else round(float(value), 6) for value in cells.values[:, 0]]


@pytest.mark.parametrize(
    ("minutes", "values", "step_min", "count", "gap_min", "expected"),
    [
        ([0, 6, 12], [1, 2, 3], 6, 3, 0, [1, 2, 3]),
        ([0, 6, 12, 18], [1, 2, 3, 5], 12, 2, 0, [1.5, 4]),  # a cell is closed at its start
        ([11.999, 12], [1, 9], 12, 2, 0, [1, 9]),  # and open at its end
        ([0, 18], [1, 4], 6, 4, 12, [1, 2, 3, 4]),  # two empty cells last 12 minutes
        ([0, 18], [1, 4], 6, 4, 11, [1, None, None, 4]),
        ([6, 12], [1, 2], 6, 4, 60, [None, 1, 2, None]),  # nothing is extrapolated
        ([-6, 0, 6], [9, 1, 2], 6, 2, 60, [1, 2]),  # what lies before is not used
        ([0, 6, 12, 18], [1, GAP, GAP, 4], 6, 4, 12, [1, 2, 3, 4]),
        ([0, 6, 12, 18, 24], [GAP, 2, GAP, 4, GAP], 6, 5, 6, [None, 2, 3, 4, None]),
        ([0, 6, 24], [0, 1, 4], 6, 5, 6, [0, 1, None, None, 4]),
        ([600], [1], 6, 2, 60, [None, None]),
    ],
)
def test_equal_steps(
    minutes: list[float], values: list[float], step_min: int, count: int, gap_min: float,
    expected: list[float | None],
) -> None:  # fmt: skip
    assert grid(series(minutes, values), step_min, count, gap_min) == expected


def test_directions_are_averaged_as_directions() -> None:
    item = series([0, 1, 6, 18, 24, 25], [350, 30, 350, 50, 90, 270], ("wind_direction_deg",))
    assert grid(item, 6, 5, 0) == [10, 350, None, 50, None]
    assert grid(item, 6, 5, 6)[2] == 20
    turned = on_grid(item, START, 360, 5, most_gap_s=0).values
    assert np.nanmin(turned) >= 0 and np.nanmax(turned) < 360


def test_a_grid_says_what_it_did() -> None:
    done = on_grid(series([-6, 0, 12], [9, 1, 3]), "2015-01-01", 360, 4, most_gap_s=360)
    assert done.times[1] - done.times[0] == np.timedelta64(360, "s") and done.times[0] == START
    assert done.notes[-1] == (
        "on a grid of 4 steps of 360 s from 2015-01-01T00:00:00: 2 values are means of samples, "
        "1 are filled linearly in gaps of at most 360 s, 1 have none; 1 rows lie outside"
    )


@given(
    st.lists(st.tuples(st.integers(-50, 250), st.floats(-9, 9) | st.just(GAP)), min_size=1,
             unique_by=lambda row: row[0]),
    st.integers(1, 9), st.integers(1, 40), st.integers(0, 60),
)  # fmt: skip
def test_a_grid_agrees_with_a_slow_one(
    rows: list[tuple[int, float]], step: int, count: int, gap: int
) -> None:
    rows.sort()
    times = START + np.array([row[0] for row in rows]).astype("timedelta64[s]")
    values = np.array([[row[1]] for row in rows])
    fast = on_grid(Series(times, values, ("gust_m_s",), "made"), START, step, count, most_gap_s=gap)
    cells: list[list[float]] = [[] for _ in range(count)]
    for second, value in rows:
        if 0 <= second < step * count and not np.isnan(value):
            cells[second // step].append(value)
    slow = [sum(cell) / len(cell) if cell else GAP for cell in cells]
    have = [index for index, cell in enumerate(cells) if cell]
    for low, high in itertools.pairwise(have):
        if (high - low - 1) * step <= gap:
            for index in range(low + 1, high):
                slow[index] = slow[low] + (slow[high] - slow[low]) * (index - low) / (high - low)
    np.testing.assert_allclose(fast.values[:, 0], slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": "today"}, "start is 'today', expected a time"),
        ({"start": np.datetime64("NaT")}, "start is 'NaT'"),
        ({"start": "2015-02-30"}, "start is '2015-02-30'"),
        ({"step_s": 0}, "1 to 100,000,000 steps"),
        ({"step_s": 1.5}, "1 to 100,000,000 steps"),
        ({"count": 0}, "1 to 100,000,000 steps"),
        ({"count": 100_000_001}, "1 to 100,000,000 steps"),
        ({"most_gap_s": -1}, "most_gap_s is -1, expected a number of seconds"),
        ({"most_gap_s": GAP}, "most_gap_s is nan"),
    ],
)
def test_grids_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"start": START, "step_s": 60, "count": 2, "most_gap_s": 0}
    with pytest.raises(InputError, match=message):
        on_grid(series([0], [1]), **{**valid, **arguments})


@pytest.mark.parametrize(
    ("minutes", "values", "channels", "message"),
    [
        ([0, 0], [1, 2], ("gust_m_s",), "times must increase"),
        ([6, 0], [1, 2], ("gust_m_s",), "times must increase"),
        ([0], [float("inf")], ("gust_m_s",), "a value is infinite"),
        ([0], [1], ("gust",), "end in its unit"),
        ([0], [1, 2], ("gust_m_s", "gust_m_s"), "must be there once"),
        ([0], [1], ("water_level_m",), "levels need a datum"),
        ([], [], ("gust_m_s",), "expected at least one of each"),
    ],
)
def test_series_that_are_none(
    minutes: list[float], values: list[float], channels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        series(minutes, values, channels)


def test_a_series_cannot_be_changed() -> None:
    item = series([0], [1])
    with pytest.raises(ValueError, match="read-only"):
        item.values[0] = 2
    with pytest.raises(InputError, match="no channel 'gust_ms'; did you mean 'gust_m_s'"):
        item.channel("gust_ms")


def test_months_are_joined() -> None:
    level = {"datum": "MLLW", "station": "1"}
    first = series([0, 6], [1, 2], ("water_level_m",), source="jan", notes=("kept",), **level)
    second = series([6, 12], [2, GAP], ("water_level_m",), source="feb", **level)
    whole = joined([first, second])
    np.testing.assert_array_equal(whole.values[:, 0], [1, 2, GAP])
    assert whole.source == "jan, feb" and whole.datum == "MLLW"
    assert whole.notes == ("jan: kept", "1 rows repeated another to the digit: dropped")
    np.testing.assert_array_equal(joined([second, first]).values, whole.values)
    other = series([6], [3], ("water_level_m",), source="feb", **level)
    with pytest.raises(InputError, match="feb has 2015-01-01T00:06:00 with other values than jan"):
        joined([first, other])
    with pytest.raises(InputError, match="feb has datum 'MSL' and jan 'MLLW'"):
        joined([first, series([6], [2], ("water_level_m",), source="feb", station="1",
                              datum="MSL")])  # fmt: skip
    with pytest.raises(InputError, match="no series to join"):
        joined([])


@given(
    st.lists(st.tuples(st.integers(0, 20), st.just(0.5) | st.just(GAP)), min_size=1, max_size=20)
)
def test_order(rows: list[tuple[int, float]]) -> None:
    times = START + np.array([row[0] for row in rows]).astype("timedelta64[s]")
    values = np.array([[row[1]] for row in rows])
    kinds: dict[int, set[str]] = {}
    for second, value in rows:
        kinds.setdefault(second, set()).add(str(value))
    if any(len(kind) > 1 for kind in kinds.values()):
        with pytest.raises(InputError, match="with other values"):
            in_order(times, values, source="made", place=str)
        return
    out, column, notes = in_order(times, values, source="made", place=str)
    assert [int(item) for item in (out - START).astype(int)] == sorted(kinds)
    assert [str(item) for item in column[:, 0]] == [
        kinds[key].copy().pop() for key in sorted(kinds)
    ]
    back = any(a[0] > b[0] for a, b in itertools.pairwise(rows))
    assert any("went back" in note for note in notes) == back
    assert any("repeated" in note for note in notes) == (len(kinds) < len(rows))
