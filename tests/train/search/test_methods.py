"""The cube, its values, and how both methods spend a budget; with answers that are computed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.recipe import Recipe
from edgekd.contracts.search import RangeSpec
from edgekd.train.search.methods import METHODS, Candidate, best_of, search
from edgekd.train.search.space import Axis, Space, Values, name_of, yaml_text
from tests.helpers.sensors import chain_values

C = "distill.cross_modal"
RANGES = {f"{C}.temperature.start": [1, 8], f"{C}.feature_weight": [0, 2]}


def recipe(ranges: dict[str, Any] | None = None, **changes: Any) -> Recipe:
    values = chain_values(Path("set"))
    values["search"] = {"ranges": ranges or RANGES, "population": 6, **changes}
    return Recipe.model_validate(values)


def hill(values: Values) -> float:
    """Largest, 1, at temperature 5.2 and weight 1.3."""
    start, weight = values[f"{C}.temperature.start"], values[f"{C}.feature_weight"]
    return 1 - ((start - 5.2) / 7) ** 2 - ((weight - 1.3) / 2) ** 2


def run(method: str, limit: int, seed: int = 0, answer: Any = None, **more: Any) -> list[Candidate]:
    found = recipe(**more)
    assert found.search is not None
    each = answer or (lambda asked: [[hill(values)] for values in asked])
    return search(method, Space(found), found.search, seed, limit, each)


@pytest.mark.parametrize(
    ("spec", "whole", "expected"),
    [
        ({"low": 1, "high": 8}, False, {0: 1.0, 0.5: 4.5, 1: 8.0, 2: 8.0, -1: 1.0}),
        ({"low": 1e-4, "high": 1e-2, "scale": "log"}, False, {0: 1e-4, 0.5: 1e-3, 1: 1e-2}),
        ({"low": 2, "high": 4}, True, {0: 2, 0.33: 2, 0.34: 3, 0.66: 3, 0.67: 4, 1: 4}),
        ({"low": 1, "high": 16, "scale": "log"}, True, {0: 1, 0.25: 2, 0.5: 4, 1: 16}),
        ({"choices": ["a", "b", True]}, False, {0: "a", 0.34: "b", 0.67: True, 1: True}),
        ({"low": 0.1234567, "high": 0.1234568}, False, {0: 0.1234568, 1: 0.1234568}),
    ],
)
def test_values_at_points(spec: Any, whole: bool, expected: dict[float, Any]) -> None:
    axis = Axis("key", RangeSpec.model_validate(spec), whole)
    for part, value in expected.items():
        assert axis.at(part) == value and type(axis.at(part)) is type(value), part


@given(st.floats(0, 1), st.floats(1e-5, 1), st.floats(1.001, 1e6), st.booleans(), st.booleans())
def test_values_lie_within_and_read_back(
    part: float, low: float, times: float, log: bool, whole: bool
) -> None:
    ends = (math.ceil(low), math.ceil(low * times) + 1) if whole else (low, low * times)
    spec = RangeSpec(low=ends[0], high=ends[1], scale="log" if log else "linear")
    axis = Axis("key", spec, whole)
    value = axis.at(part)
    assert ends[0] <= value <= ends[1]
    assert yaml.safe_load(yaml_text(value)) == value
    again = axis.part_of(value)
    assert again is not None and axis.at(again) == pytest.approx(value, rel=2e-5)
    assert not whole or (axis.at(again) == value and isinstance(value, int))
    assert axis.part_of(ends[1] + 1) is None


def test_whole_numbers_are_known_by_the_schema() -> None:
    space = Space(recipe({"distill.batch": [1, 4], "distill.lr": [1, 4],
                          f"{C}.augment.flip": {"choices": [True, False]}}))  # fmt: skip
    assert [axis.whole for axis in space.axes] == [True, False, False]
    assert [axis.count for axis in space.axes] == [4, 2, None] and space.count is None
    values = space.values([0.99, 0.0, 0.5])
    assert values == {"distill.batch": 4, "distill.lr": 2.5, f"{C}.augment.flip": True}
    made = space.recipe(values, 7, ["a.ckpt", "b.ckpt"])
    assert made.distill is not None and (made.distill.batch, made.distill.seed) == (4, 7)
    assert [item.weights for item in made.teachers] == ["a.ckpt", "b.ckpt"]
    assert made.search is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("limit", [6, 7, 11, 12, 13, 40])
def test_the_budget_is_kept_exactly_and_prefixes_agree(method: str, limit: int) -> None:
    trained: list[Values] = []

    def answer(asked: list[Values]) -> list[list[float | None]]:
        trained.extend(asked)
        return [[hill(values)] for values in asked]

    tried = run(method, limit, answer=answer)
    assert len(tried) == limit == len(trained)
    assert len({name_of(item) for item in trained}) == limit, "none is trained twice"
    assert [item.number for item in tried] == list(range(1, limit + 1))
    assert tried == run(method, 60)[:limit], "a larger budget goes on with the same search"
    assert tried[0].values == {f"{C}.temperature.start": 3.0, f"{C}.feature_weight": 0.5}


def test_the_order_of_keys_changes_nothing() -> None:
    assert run("de", 20, ranges=dict(reversed(RANGES.items()))) == run("de", 20)


@pytest.mark.parametrize("method", METHODS)
def test_seeds_differ_and_repeat(method: str) -> None:
    assert run(method, 20, seed=1) == run(method, 20, seed=1)
    assert run(method, 20, seed=1)[1:] != run(method, 20, seed=2)[1:]


def test_the_first_generation_is_spread_evenly() -> None:
    tried = run("de", 6)[1:]  # the first stands for the recipe as written
    for key, low, high in ((f"{C}.temperature.start", 1, 8), (f"{C}.feature_weight", 0, 2)):
        parts = {int((item.values[key] - low) / (high - low) * 6) for item in tried}
        assert len(parts) == 5, "one in each sixth"


def test_evolution_climbs_where_chance_does_not() -> None:
    found = {
        method: [best_of(run(method, 60, seed)).value for seed in range(5)]  # type: ignore[union-attr]
        for method in METHODS
    }
    assert np.mean(found["de"]) > np.mean(found["random"])
    assert min(found["de"]) > 0.997


def test_equal_answers_are_no_reason_to_stop() -> None:
    tried = run("de", 31, answer=lambda asked: [[0.5]] * len(asked))
    assert len(tried) == 31 and best_of(tried) == tried[0], "the earliest of equals"


def test_what_diverged_loses() -> None:
    def answer(asked: list[Values]) -> list[list[float | None]]:
        low = [hill(values) - 3 for values in asked]  # less than what may be taken for no value
        return [
            [value, None if item[f"{C}.temperature.start"] > 4 else value]  # one of two trainings
            for item, value in zip(asked, low, strict=True)
        ]

    tried = run("de", 40, answer=answer)
    best = best_of(tried)
    assert best is not None and best.values[f"{C}.temperature.start"] <= 4
    lost = [item.value is None for item in tried]
    assert any(lost[:12]) and sum(lost[20:]) < 10
    nothing = run("de", 20, answer=lambda asked: [[None]] * len(asked))
    assert len(nothing) == 20 and best_of(nothing) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_space_that_is_used_up_ends_the_search(method: str) -> None:
    ranges = {f"{C}.temperature.schedule": {"choices": ["linear", "cosine"]},
              "distill.batch": [1, 4]}  # fmt: skip
    calls: list[int] = []

    def answer(asked: list[Values]) -> list[list[float | None]]:
        calls.append(len(asked))
        return [[0.1 * values["distill.batch"]] for values in asked]

    tried = run(method, 8, answer=answer, ranges=ranges)
    assert len({name_of(item.values) for item in tried}) == len(tried) == sum(calls) <= 8
    assert len(calls) <= 100 * 8 / 6 + 1
    assert method == "de" or len(tried) == 8


@pytest.mark.parametrize("method", METHODS)
def test_a_search_that_finds_no_others_ends(method: str) -> None:
    """A range narrower than the digits of a value."""
    ranges = {"distill.lr": [0.1234567, 0.1234568]}
    assert len(run(method, 6, ranges=ranges, answer=lambda asked: [[0.5]] * len(asked))) == 1


def test_own_values_outside_the_ranges_are_not_tried() -> None:
    ranges = {f"{C}.temperature.start": [4, 8]}
    assert Space(recipe(ranges)).written() == ({f"{C}.temperature.start": 3.0}, None)
    tried = run("random", 20, ranges=ranges, answer=lambda asked: [[0.0]] * len(asked))
    assert all(item.values[f"{C}.temperature.start"] >= 4 for item in tried)
