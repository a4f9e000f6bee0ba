"""What ``benchmarks/policy_exact.py`` holds of rules of one priority, on a few sets."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from edgekd.contracts.projection import OBEYED

pytest.importorskip("clarabel")
pytest.importorskip("scipy")


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    return importlib.import_module("_policy_order")


def test_the_least_sum_and_its_least_maximum_by_hand(order: ModuleType) -> None:
    """0.6 of the third class is promised; two rules want 0.3 of the others, and 0.4 is left."""
    before, leave = np.array([[0.0, 0, -1]]), np.array([-0.6])
    rules, bounds = np.array([[-1.0, 0, 0], [0, -1, 0]]), np.array([-0.3, -0.3])
    (total, _), (most, _) = order.least(before, leave, rules, bounds)
    assert (total, most) == (pytest.approx(0.2, abs=1e-6), pytest.approx(0.1, abs=1e-6))
    # what the first does not need goes to the second: 0.2 and 0.3, of which 0.1 yield in all
    (total, _), (most, _) = order.least(before, leave, rules, np.array([-0.2, -0.3]))
    assert (total, most) == (pytest.approx(0.1, abs=1e-6), pytest.approx(0.05, abs=1e-6))
    ours = order.settled(
        np.vstack([before, rules]), np.array([*leave, -0.2, -0.3]), np.array([1, 2, 2]), 8
    )
    assert [row.relaxed for row in ours.rows] == pytest.approx([0, 0.05, 0.05], abs=1e-6)


@pytest.mark.parametrize("make", ["alone", "shared"])
def test_sets_of_priorities_are_settled_as_an_exact_solver_does(
    order: ModuleType, make: str
) -> None:
    random = np.random.default_rng(3)
    held = [
        order.held_against(*getattr(order, make)(random, 6), random, 17) for _ in range(12)
    ]  # fmt: skip
    assert sum(item.yields for item in held) >= 6
    assert (sum(item.uneven for item in held) >= 4) == (make == "shared")
    assert max(item.surely for item in held) <= 1e-6 and max(item.apart for item in held) <= 1e-5
    assert max(item.past.max() for item in held) <= OBEYED
