"""Ranges of activations: exact where they can be, the same in any order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from edgekd.deploy.quantize import histogram as module
from edgekd.deploy.quantize.histogram import BINS, Histogram
from edgekd.errors import InputError


def counted(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part.astype(np.float32))
    return histogram


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        npst.arrays(
            np.float32,
            st.integers(1, 50),
            elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_neither_order_nor_cutting_matters(parts: list[np.ndarray]) -> None:
    one, other, whole = counted(*parts), counted(*reversed(parts)), counted(np.concatenate(parts))
    values = np.abs(np.concatenate(parts))
    for item in (one, other, whole):
        assert item.largest == float(values.max()) == item.value("minmax")
        assert item.count == values.size == item._counts.sum()
        assert item.value("percentile", 90) == one.value("percentile", 90)
        assert 0 <= item.value("percentile", 90) <= item.largest
        assert np.array_equal(item._counts, one._counts)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.9])
def test_percentile_is_a_quantile_within_a_bin(percentile: float) -> None:
    values = np.random.default_rng(0).normal(0, 3, 50_000)
    found = counted(*np.array_split(values, 7)).value("percentile", percentile)
    expected = np.quantile(np.abs(values), percentile / 100)
    width = 2.0 ** np.ceil(np.log2(np.abs(values).max() / BINS))
    assert expected - width <= found <= expected + 2 * width


def test_one_outlier_moves_minmax_and_not_the_others() -> None:
    values = np.random.default_rng(0).normal(0, 1, 100_000)
    spoilt = np.append(values, 1000.0)
    assert counted(spoilt).value("minmax") == 1000.0
    assert counted(spoilt).value("percentile", 99.99) < 8
    assert counted(spoilt).value("entropy") < 100


def test_entropy_keeps_a_flat_distribution_and_cuts_a_long_tail() -> None:
    flat = counted(np.linspace(-1, 1, 200_001))
    assert flat.value("entropy") > 0.95
    tail = np.random.default_rng(1).standard_t(2.5, 200_000)
    assert counted(tail).value("entropy") < 0.5 * np.abs(tail).max()


def test_entropy_is_that_of_a_plain_implementation() -> None:
    """Written again from the slides, without arrays."""
    counts = counted(np.random.default_rng(2).gamma(1.5, 1.0, 20_000))
    used = int(np.flatnonzero(counts._counts)[-1]) + 1
    bins = [float(value) for value in counts._counts[:used]]

    def loss(keep: int) -> float:
        p = [*bins[: keep - 1], sum(bins[keep - 1 :])]
        q = [0.0] * keep
        edges = [keep * level // 128 for level in range(129)]
        for start, end in itertools.pairwise(edges):
            filled = [n for n in range(start, end) if p[n] > 0]
            for n in filled:
                q[n] = sum(bins[start:end]) / len(filled)
        total_p, total_q = sum(p), sum(q)
        q = [1e-4 / keep if a > 0 and b <= 0 else b / total_q for a, b in zip(p, q, strict=True)]
        scale = sum(q)
        return sum(
            a / total_p * np.log(a / total_p / (b / scale))
            for a, b in zip(p, q, strict=True)
            if a > 0
        )

    found = module._least_divergent(np.array(bins))
    assert 128 <= found <= used
    others = [loss(keep) for keep in range(128, used + 1, 61)]
    assert loss(found) <= min(others) + 1e-12 < max(others)


def test_zeros_and_nothing() -> None:
    assert counted(np.zeros(10)).value("percentile") == 0.0
    assert Histogram().value("entropy") == 0.0
    mixed = counted(np.zeros(10), np.full(10, 3.0), np.zeros(5))
    assert mixed.count == 25 and mixed.value("percentile", 50) < 0.01


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(InputError, match="NaN or infinite"):
        counted(np.array([1.0, value]))
