"""The information projection: answers worked out by hand, and conditions that only it meets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts import projection
from edgekd.contracts.policy_rows import padded
from edgekd.contracts.projection import OBEYED, Limits, past_bounds, project
from edgekd.errors import InputError
from tests.helpers.policies import exact, problem

Z = np.log(np.array([[0.5, 0.3, 0.2]]))
Z_TEN = np.linspace(-1, 1, 10)[None]
INSIDE = np.array([0.1, 0.5, 0.4])


def limits_of(rules: object, bounds: object) -> Limits:
    return padded(rules, bounds, len(np.asarray(bounds)))


def stacked(parts: list[Limits]) -> tuple[np.ndarray, ...]:
    return tuple(np.stack(values) for values in zip(*parts, strict=True))


def test_what_obeys_already_is_left_as_it_is() -> None:
    found = project(Z, *limits_of([[1.0, 0, 0]], [0.9]))
    assert np.abs(found - np.exp(Z)).max() < 1e-6


@pytest.mark.parametrize("more", [0.0, 1e-6, -1e-6, 1e-4, -1e-4])
def test_bounds_where_the_answer_is_already_are_as_exact(more: float) -> None:
    """The barrier pushes most where a rule is met just so, and its multiplier is about 0."""
    own = np.exp(Z[0])
    rules = np.array([[1.0, 0, 0], [0, 1.0, 0], [1.0, 1.0, 0]])
    bounds = rules @ own + [more, 0.0, 1.0]
    inside = np.array([0.45, 0.25, 0.3])
    found = project(Z, rules, bounds, inside)[0]
    rest = own[1:] / own[1:].sum()
    nearest = [own[0] + more, *rest * (1 - own[0] - more)] if more < 0 else own
    nearest = np.asarray(nearest)
    if nearest[1] > bounds[1]:
        nearest = np.array([nearest[0], bounds[1], 1 - nearest[0] - bounds[1]])
    assert np.abs(found - nearest).max() < 1e-4


@pytest.mark.parametrize(
    ("rules", "bounds", "expected"),
    [
        # a bound on one class: the others keep their proportions
        ([[1.0, 0, 0]], [0.2], [0.2, 0.8 * 0.6, 0.8 * 0.4]),
        # none of it: the class is gone
        ([[1.0, 0, 0]], [0.0], [0, 0.6, 0.4]),
        # at least 0.6 of the last one
        ([[0.0, 0, -1]], [-0.6], [0.25, 0.15, 0.6]),
        # two classes together: inside they keep theirs
        ([[1.0, 1, 0]], [0.4], [0.25, 0.15, 0.6]),
        # one is implied by the other
        ([[1.0, 0, 0], [1.0, 0, 0]], [0.2, 0.7], [0.2, 0.48, 0.32]),
        # both meet: nothing is left to choose
        ([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0]], [0.1, -0.1, 0.7, -0.7],
         [0.1, 0.7, 0.2]),
        # one class alone is left
        ([[1.0, 0, 0], [0, 1.0, 0]], [0, 0], [0, 0, 1]),
        # twice the second is at most the first
        ([[-0.5, 1.0, 0]], [0.0], None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_answers_by_hand(
    rules: list[list[float]], bounds: list[float], expected: list[float] | None, kind: type
) -> None:
    found = project(Z.astype(kind), *limits_of(rules, bounds))
    assert found.dtype == kind and found.sum() == pytest.approx(1, abs=1e-6)
    if expected is None:  # along p = (2 t, t, 1 - 3 t): log p1 - z1 twice, log p2 - z2 once
        t = found[0, 1]
        assert found[0, 0] == pytest.approx(2 * t, abs=1e-5)
        stationary = 2 * np.log(2 * t / 0.5) + np.log(t / 0.3) - 3 * np.log((1 - 3 * t) / 0.2)
        assert abs(stationary) < 1e-3
    else:
        assert np.abs(found[0] - expected).max() < 1e-5


def test_rows_without_effect_have_none() -> None:
    few = project(Z, *limits_of([[1.0, 0, 0]], [0.2]))
    assert np.abs(project(Z, *padded([[1.0, 0, 0]], [0.2], 16)) - few).max() < 1e-6


def test_each_of_a_batch_has_its_own_rules() -> None:
    random = np.random.default_rng(0)
    parts = [problem(random) for _ in range(20)]
    rows = max(len(bounds) for _, _, bounds in parts)
    scores = np.stack([z for z, _, _ in parts])
    filled = [padded(a, b, rows) for _, a, b in parts]
    whole = project(scores, *stacked(filled))
    for number in range(20):
        alone = project(scores[number : number + 1], *filled[number])
        assert np.abs(whole[number] - alone[0]).max() < 1e-9


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_it_obeys_and_is_the_nearest(seed: int) -> None:
    """Single precision: within 1e-4 of the optimum, which certifies itself."""
    z, rules, bounds = problem(np.random.default_rng(seed))
    limits = padded(rules, bounds, 17)
    found = project(z[None].astype(np.float32), *limits)
    assert past_bounds(found, *limits[:2])[0] <= OBEYED
    best = exact(z, *(value.astype(float) for value in limits[:2]))
    assert np.abs(found[0] - best).max() <= 1e-4


def test_scores_that_differ_by_a_constant_are_the_same() -> None:
    limits = limits_of([[1.0, 0, 0]], [0.2])
    far = project(Z + 300, *limits)
    assert np.abs(far - project(Z, *limits)).max() < 1e-9
    steep = project(np.array([[200.0, -200.0, 0.0]], np.float32), *limits)
    assert np.abs(steep[0] - [0.2, 0, 0.8]).max() < 1e-5


def test_how_far_past_the_worst_rule() -> None:
    rules, bounds = np.array([[1.0, 0, 0], [0, 1.0, 1.0]]), np.array([0.2, 0.4])
    found = past_bounds(
        np.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.1, 0.1, 0.1]]), rules, bounds
    )
    assert np.allclose(found, [0.3, 0.5, -0.1])


@pytest.mark.parametrize(
    ("scores", "rules", "bounds", "words"),
    [
        (Z[0], [[1.0, 0, 0]], [0.2], r"scores must be \(N, classes\)"),
        (Z.astype(int), [[1.0, 0, 0]], [0.2], "of floats of 32 bits or more, received int64"),
        (Z, [[1.0, 0]], [0.2], "do not fit scores"),
        (Z, [[1.0, 0, 0]], [0.2, 0.3], "do not fit scores"),
        (Z, np.ones((2, 1, 3)), np.ones((2, 1)), "2 sets of rules for 1 scores"),
        (Z + np.nan, [[1.0, 0, 0]], [0.2], "scores hold a value that is not finite"),
        (Z, [[1.0, 0, 0]], [np.inf], "bounds hold a value that is not finite"),
    ],
)
def test_what_does_not_fit_is_refused(
    scores: np.ndarray, rules: np.ndarray, bounds: np.ndarray, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        project(np.asarray(scores), np.asarray(rules), np.asarray(bounds), INSIDE)


def test_a_point_that_does_not_obey_is_refused() -> None:
    rules, bounds = np.array([[1.0, 0, 0]]), np.array([0.2])
    with pytest.raises(InputError, match="inside does not obey the rules"):
        project(Z, rules, bounds, np.array([0.5, 0.3, 0.2]))
    with pytest.raises(InputError, match="does not fit scores"):
        project(Z, rules, bounds, np.array([0.5, 0.5]))
    for none in ([0.0, 0.0, 0.0], [-5.0, 3.0, 3.0]):
        with pytest.raises(InputError, match="inside holds no probabilities"):
            project(Z, rules, bounds, np.array(none))
    with pytest.raises(InputError, match="of 32 bits or more, received float16"):
        project(Z.astype(np.float16), rules, bounds, INSIDE)


def test_it_obeys_whatever_becomes_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step at all: the answer is on the way to the point that obeys, no further than needed."""
    monkeypatch.setattr("edgekd.contracts.projection.STEPS", 0)
    random = np.random.default_rng(3)
    parts = [problem(random) for _ in range(200)]
    filled = stacked([padded(a, b, 17) for _, a, b in parts])
    found = project(np.stack([z for z, _, _ in parts]), *filled)
    past = past_bounds(found, *filled[:2])
    assert past.max() <= OBEYED and np.abs(found.sum(1) - 1).max() < 1e-6 and found.min() >= 0
    plain = np.exp(np.stack([z for z, _, _ in parts]) - filled[0].sum(1))  # weights of 1 each
    plain /= plain.sum(1, keepdims=True)
    drawn = past_bounds(plain, *filled[:2]) > 0
    assert drawn.mean() > 0.2 and past[drawn].min() > -1e-5, "as little as makes it obey"


def surest(number: int) -> tuple[np.ndarray, Limits]:
    """One of 600 problems whose scores are ten times as sure."""
    random = np.random.default_rng(5)
    scores, rules, bounds = [problem(random) for _ in range(number + 1)][number]
    return 10 * scores, padded(rules, bounds, 17)


@pytest.mark.parametrize("number", [457, 546])
def test_steps_are_enough_for_scores_that_are_very_sure(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, limits = surest(number)
    found = project(scores[None], *limits)[0]
    assert np.abs(found - exact(scores, *limits[:2])).max() < 1e-4
    monkeypatch.setattr("edgekd.contracts.projection.STEPS", 26)
    assert np.abs(project(scores[None], *limits)[0] - found).max() > 1e-3, "it needs more"


def test_steps_end_where_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    solve = projection._solve
    monkeypatch.setattr(projection, "_solve", lambda *a: (taken.append(1), solve(*a))[1])
    project(Z, *limits_of([[1.0, 0, 0]], [0.2]))
    easy = len(taken)
    assert 9 <= easy <= 14, "the barrier alone takes nine"
    taken.clear()
    scores, limits = surest(546)
    project(scores[None], *limits)
    assert 30 < len(taken) < projection.STEPS


def test_an_answer_does_not_depend_on_those_beside_it() -> None:
    hard, limits = surest(546)
    alone = project(Z_TEN, *limits)
    beside = project(np.concatenate([Z_TEN, hard[None]]), *limits)
    assert np.array_equal(beside[0], alone[0])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_sets_without_width(kind: type) -> None:
    """Rules whose relaxed order leaves a line or a point, the usual end of contradictions."""
    random = np.random.default_rng(2)
    for _ in range(60):
        rules = np.round(random.normal(size=(4, 5)), 2)
        point = random.dirichlet(np.ones(5))
        rules = np.concatenate([rules, -rules[:3]])
        limits = padded(rules, rules @ point, 8)
        found = project(random.normal(0, 3, (50, 5)).astype(kind), *limits)
        assert past_bounds(found, *limits[:2]).max() <= OBEYED
