"""Window geometry: exact windows as a table, and what must hold for every size."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.windows import (
    Blend,
    Window,
    axis_starts,
    blend_profile,
    blend_weights,
    padded_size,
    plan,
)
from edgekd.errors import InputError

TABLE = [
    # size, window, overlap, align -> starts
    (1, 64, 0, 1, [0]),
    (64, 64, 0, 1, [0]),
    (65, 64, 0, 1, [0, 1]),
    (128, 64, 0, 1, [0, 64]),
    (128, 64, 16, 1, [0, 32, 64]),
    (112, 64, 16, 1, [0, 48]),
    (113, 64, 16, 1, [0, 24, 49]),
    (100, 32, 8, 4, [0, 20, 44, 68]),
    (101, 32, 8, 4, [0, 24, 48, 72]),  # padded to 104
    (10, 8, 0, 4, [0, 4]),  # padded to 12
    (33, 32, 0, 32, [0, 32]),  # padded to 64
    (100, 32, 5, 4, [0, 20, 44, 68]),  # overlap rounded up to 8
    (70, 64, 63, 1, [0, 1, 2, 3, 4, 5, 6]),
    (2472, 1024, 128, 4, [0, 724, 1448]),
    (2299, 1024, 128, 4, [0, 636, 1276]),  # padded to 2300
]


@pytest.mark.parametrize(("size", "window", "overlap", "align", "expected"), TABLE)
def test_starts_as_a_table(
    size: int, window: int, overlap: int, align: int, expected: list[int]
) -> None:
    assert axis_starts(size, window, overlap, align) == expected


@st.composite
def axes(draw: st.DrawFn) -> tuple[int, int, int, int]:
    align = draw(st.sampled_from([1, 2, 4, 8, 16, 32]))
    cells = draw(st.integers(1, 24))
    overlap = draw(st.integers(0, (cells - 1) * align))
    return draw(st.integers(1, 1500)), cells * align, overlap, align


@given(axes())
def test_every_pixel_is_covered_and_no_window_is_superfluous(
    axis: tuple[int, int, int, int],
) -> None:
    size, window, overlap, align = axis
    starts = axis_starts(size, window, overlap, align)
    length = padded_size(size, window, align)
    assert starts[0] == 0 and starts[-1] + window == length
    assert length >= size and (length == window or length - size < align)
    for before, after in itertools.pairwise(starts):
        assert before < after
        assert before + window - after >= overlap, "neighbours share less than was asked"
    assert all(start % align == 0 for start in starts)
    rounded = -(-overlap // align) * align
    fewest = 1 + max(0, -(-(length - window) // (window - rounded)))
    assert len(starts) == fewest
    covered = np.zeros(length, dtype=int)
    for start in starts:
        covered[start : start + window] += 1
    assert covered.min() >= 1
    # without any one of them, a pixel or the overlap would be lost
    for left, right in zip(starts, starts[2:], strict=False):
        assert left + window - right < max(rounded, 1)


@given(axes())
def test_blend_weights_are_positive_and_symmetric(axis: tuple[int, int, int, int]) -> None:
    _, window, overlap, _ = axis
    for blend in get_args(Blend):
        weights = blend_weights(window, overlap, blend)
        assert weights.shape == (window, window) and weights.dtype == np.float32
        assert (weights > 0).all() and (weights <= 1).all()
        np.testing.assert_array_equal(weights, weights[::-1])
        np.testing.assert_array_equal(weights, weights.T)


@given(st.integers(1, 64), st.integers(0, 64))
def test_cosine_weights_sum_to_one_at_the_exact_overlap(overlap: int, rest: int) -> None:
    profile = blend_profile(2 * overlap + rest, overlap, "cosine")
    both = profile[-overlap:] + profile[:overlap]
    np.testing.assert_allclose(both, 1.0, atol=1e-6)
    assert (profile[overlap : overlap + rest] == 1).all()


def test_profile_is_a_hann_flank() -> None:
    expected = np.sin(np.pi / 2 * (np.array([0.5, 1.5]) / 2)) ** 2
    np.testing.assert_allclose(
        blend_profile(5, 2, "cosine"), [*expected, 1, *expected[::-1]], atol=1e-7
    )
    np.testing.assert_array_equal(blend_profile(5, 2, "constant"), np.ones(5))


def test_plan_is_rows_from_top_to_bottom_and_left_to_right() -> None:
    rows = plan(100, 70, 64, 0, 1)
    assert rows == [
        [Window(0, 0, 64, 64), Window(0, 6, 64, 70)],
        [Window(36, 0, 100, 64), Window(36, 6, 100, 70)],
    ]
    assert (rows[1][1].height, rows[1][1].width) == (64, 64)


@pytest.mark.parametrize(
    ("size", "window", "overlap", "align", "words"),
    [
        (0, 64, 0, 1, "nothing to process"),
        (100, 0, 0, 1, "positive multiple"),
        (100, 30, 0, 4, "output stride (4 px)"),
        (100, 64, 64, 1, "smaller than the window of 64 px"),
        (100, 64, 61, 4, "received 61 px"),  # rounds up to the whole window
        (100, 64, -1, 4, "received -1 px"),  # would round up to 0
    ],
)
def test_impossible_geometry_is_refused(
    size: int, window: int, overlap: int, align: int, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        axis_starts(size, window, overlap, align)
    assert words in str(caught.value)


def test_gaussian_and_crop_by_hand() -> None:
    profile = blend_profile(9, 4, "gaussian")
    assert profile[4] == 1.0 and (profile == profile[::-1]).all()
    assert profile[0] == pytest.approx(np.exp(-0.5 * (4 / 1.125) ** 2), rel=1e-6)
    assert (np.diff(profile[:5]) > 0).all()
    np.testing.assert_array_equal(
        blend_profile(8, 4, "crop"), np.float32([1e-6, 1e-6, 1, 1, 1, 1, 1e-6, 1e-6])
    )
    np.testing.assert_array_equal(blend_profile(8, 1, "crop"), np.ones(8))
