"""What rules of a priority must yield, for ``policy_exact.py``: ours against Clarabel's.

Ours are linear programmes in HiGHS, by the simplex method; these are written down anew and solved
by Clarabel's interior point method.
"""

from __future__ import annotations

import datetime
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.contracts.policy import policy_of
from edgekd.contracts.policy_rows import ZoneRules, compile_zone
from edgekd.contracts.projection import past_bounds, project

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
DAY = datetime.date(2026, 1, 1)
#: what is left of the probabilities may be a point, which rounding makes empty: bounds have room
ROOMS = (1e-8, 3e-8, 1e-7)
#: smaller coefficients are left out: rules may not span more than a factor of 1000
SMALLEST = 2e-3


class Held(NamedTuple):
    """A set of rules held against Clarabel.

    Attributes:
        yields: whether some rule yields.
        uneven: whether two rules of one priority yield.
        apart: the largest difference of a priority's sum or maximum.
        surely: the same, less what rounding of the bounds explains.
        past: of answers, how far they exceed what is left.
    """

    yields: bool
    uneven: bool
    apart: float
    surely: float
    past: FloatArray


def solve_cone(
    cost: FloatArray, left: FloatArray, right: FloatArray, cones: list[Any]
) -> tuple[FloatArray, FloatArray]:
    """``min cost @ x`` with ``right - left @ x`` in the cones: x and the multipliers."""
    import clarabel
    from scipy import sparse

    settings = clarabel.DefaultSettings()
    settings.verbose = False
    for name in ("tol_gap_abs", "tol_gap_rel", "tol_feas"):
        setattr(settings, name, 1e-10)
    none = sparse.csc_matrix((len(cost), len(cost)))
    solver = clarabel.DefaultSolver(none, cost, sparse.csc_matrix(left), right, cones, settings)
    found = solver.solve()
    if "Solved" not in str(found.status):
        raise RuntimeError(f"Clarabel ended with {found.status}")
    return np.array(found.x), np.array(found.z)


def alone(random: np.random.Generator, classes: int) -> tuple[FloatArray, FloatArray, IntArray]:
    """Six rules of six priorities, each of which can be met by itself, bounds, priorities."""
    rules = _rules(random, 6, classes)
    low, high = rules.min(1), rules.max(1)
    return rules, low + random.random(6) ** 2 * 0.7 * (high - low) + 1e-3, np.arange(1, 7)


def shared(random: np.random.Generator, classes: int) -> tuple[FloatArray, FloatArray, IntArray]:
    """Two or three rules of each of four priorities, which some probabilities meet, often just so;
    those of one priority are not those of another.

    Half of the sets are sums of classes (coefficients 0, 1 and -1), as rules of law are: with
    arbitrary coefficients hardly ever two ways have the same sum, and the maximum would decide
    nothing.
    """
    sizes = random.integers(2, 4, 4)
    rules = _rules(random, int(sizes.sum()), classes)
    if random.random() < 0.5:
        rules = np.sign(rules)
    priorities = np.repeat(np.arange(1, 5), sizes)
    points = random.dirichlet(np.full(classes, 0.1), 4)[priorities - 1]
    room = random.choice([0, 0.01, 0.1], len(rules)) * random.random(len(rules))
    bounds = (rules * points).sum(1) + room
    bounds[np.abs(bounds) < 2e-6] = 2e-6  # smaller ones are refused
    return rules, bounds, priorities


def _rules(random: np.random.Generator, count: int, classes: int) -> FloatArray:
    rules = random.normal(size=(count, classes))
    rules[random.random(rules.shape) < 0.4] = 0
    rules[:, 0] += np.where(np.abs(rules).max(1) == 0, 1.0, 0.0)
    rules /= np.abs(rules).max(1, keepdims=True)
    rules[np.abs(rules) < SMALLEST] = 0
    return rules


def settled(rules: FloatArray, bounds: FloatArray, priorities: IntArray, rows: int) -> ZoneRules:
    """The rules by :func:`edgekd.contracts.policy_rows.compile_zone`."""
    names = [f"c{number}" for number in range(rules.shape[1])]
    given = zip(rules, bounds, priorities, strict=True)
    policy = policy_of(
        {
            "schema": 1, "name": "random", "zones": {"A": "all"},
            "rules": [
                {"id": f"r{number}", "type": "linear", "priority": int(priority),
                 "coefficients": dict(zip(names, row.tolist(), strict=True)), "max": float(bound),
                 "source": "random"}
                for number, (row, bound, priority) in enumerate(given)
            ],
        },
        "random",
    )  # fmt: skip
    return compile_zone(policy, "A", DAY, names, {}, rows)


def held_against(
    rules: FloatArray,
    bounds: FloatArray,
    priorities: IntArray,
    random: np.random.Generator,
    rows: int,
) -> Held:
    """Settle rules by both, and ask for answers under ours.

    Args:
        rules, bounds, priorities: of :func:`alone` or :func:`shared`, by priority.
        random: draws scores.
        rows: room for rules.
    """
    ours = settled(rules, bounds, priorities, rows)
    yielded = np.array([row.relaxed for row in ours.rows])
    apart, surely = [0.0], [0.0]
    for priority in np.unique(priorities):
        level, before = priorities == priority, priorities < priority
        found = least(rules[before], bounds[before] + yielded[before], rules[level], bounds[level])
        mine = (float(yielded[level].sum()), float(yielded[level].max()))
        for value, (theirs, unsure) in zip(mine, found, strict=True):
            apart.append(abs(value - theirs))
            surely.append(abs(value - theirs) - unsure)
    drawn = random.normal(0, 3, (50, rules.shape[1])).astype(np.float32)
    return Held(
        yields=bool(yielded.max() > 1e-6),
        uneven=any((yielded[priorities == p] > 1e-6).sum() > 1 for p in np.unique(priorities)),
        apart=max(apart),
        surely=max(surely),
        past=np.asarray(past_bounds(project(drawn, *ours.limits), *ours.limits[:2])),
    )


def least(
    before: FloatArray, leave: FloatArray, rules: FloatArray, bounds: FloatArray
) -> list[tuple[float, float]]:
    """The least sum that the rules of a priority yield, and of those with it the least maximum.

    Args:
        before, leave: rules of the priorities before and the bounds that they have left.
        rules, bounds: of this priority.

    Returns:
        Two values, each with what rounding of the bounds makes of it: rooms of up to 1.4e-7, by
        the programme's own multipliers.
    """
    first = len(before)
    for room in ROOMS:
        leave = leave + room
        try:
            total, multipliers = _programme(before, leave, rules, bounds, None)
            break
        except RuntimeError:
            if room == ROOMS[-1]:
                raise
    unsure = sum(ROOMS) * float(multipliers[1 : 1 + first].sum())
    total = max(0.0, total)
    if len(rules) == 1 or total < 1e-7:
        return [(total, unsure)] * 2
    for room in ROOMS:
        try:
            most, beside = _programme(before, leave, rules, bounds, total + room)
            break
        except RuntimeError:
            if room == ROOMS[-1]:
                raise
    more = sum(ROOMS) * float(beside[1 : 1 + first].sum()) + (unsure + room) * float(beside[-1])
    return [(total, unsure), (max(0.0, most), more)]


def _programme(
    before: FloatArray,
    leave: FloatArray,
    rules: FloatArray,
    bounds: FloatArray,
    total: float | None,
) -> tuple[float, FloatArray]:
    """The least sum, or with a sum of at most ``total`` the least maximum; and the multipliers."""
    import clarabel

    count, n = rules.shape
    a = len(before)
    # unknowns: probabilities, what each rule yields, at most how much
    one = np.concatenate([np.ones(n), np.zeros(count + 1)])
    parts = [
        one[None],
        np.hstack([before, np.zeros((a, count + 1))]),
        np.hstack([rules, -np.eye(count), np.zeros((count, 1))]),
        np.hstack([np.zeros((count, n)), np.eye(count), -np.ones((count, 1))]),
        -np.eye(n + count + 1),
        np.concatenate([np.zeros(n), np.ones(count), [0.0]])[None],
    ]
    free = 3.0 * count  # no rule ever yields more than 2
    right = np.concatenate([np.zeros(len(part)) for part in parts])
    right[0], right[1 : 1 + a], right[1 + a : 1 + a + count] = 1, leave, bounds
    right[-1] = free if total is None else total
    cost: FloatArray = parts[-1][0] if total is None else np.eye(n + count + 1)[-1]
    left = np.concatenate(parts)
    cones: list[Any] = [clarabel.ZeroConeT(1), clarabel.NonnegativeConeT(len(left) - 1)]
    x, multipliers = solve_cone(cost, left, right, cones)
    return float(cost @ x), multipliers
