"""Ranges of a search: what may be written, and what of a recipe it is held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from edgekd.contracts.recipe import Recipe, load_recipe
from edgekd.contracts.search import RangeSpec
from edgekd.errors import RecipeError
from tests.helpers.sensors import chain_values

T = "distill.cross_modal.temperature"


def values(ranges: dict[str, Any], **search: Any) -> dict[str, Any]:
    result = chain_values(Path("set"))
    result["search"] = {"ranges": ranges, **search}
    return result


def test_a_search_is_part_of_a_recipe() -> None:
    recipe = Recipe.model_validate(
        values({f"{T}.start": [1, 8], f"{T}.schedule": {"choices": ["linear", "cosine"]},
                "distill.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}})
    )  # fmt: skip
    assert recipe.search is not None
    assert recipe.search.ranges[f"{T}.start"] == RangeSpec(low=1, high=8)
    assert (recipe.search.population, recipe.search.repeats) == (8, 1)
    assert (recipe.search.mutation, recipe.search.recombination) == ([0.5, 1.0], 0.7)
    assert Recipe.model_validate(recipe.plain()) == recipe  # as it travels in a checkpoint


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ({f"{T}.start": [8, 1]}, r"low < high, received \[8, 1\]"),
        ({f"{T}.start": [3, 3]}, r"low < high, received \[3, 3\]"),
        ({f"{T}.start": [1, 2, 3]}, r"a range is \[low, high\], received \[1, 2, 3\]"),
        ({f"{T}.start": {"low": 1}}, "give low and high, or choices"),
        ({f"{T}.start": {"low": 0, "high": 1, "scale": "log"}}, "scale log needs low > 0"),
        ({f"{T}.start": {"low": 1, "high": 2, "choices": [1, 2]}}, "give either choices, or"),
        ({f"{T}.schedule": {"choices": ["linear"]}}, "at least 2 items"),
        ({f"{T}.schedule": {"choices": ["linear", "linear"]}}, "stands twice"),
        ({}, "at least 1 item"),
        ({f"{T}.begin": [1, 8]}, r"temperature has no key 'begin'.*valid: end, schedule, start"),
        ({"distil.lr": [1, 8]}, r"the recipe has no key 'distil', nearest is 'distill'|did you"),
        ({T: {"choices": [1, 2]}}, "holds keys of its own; search one of them: end, sched"),
        ({f"{T}.start.x": [1, 8]}, "temperature.start has no key 'x'"),
        ({f"{T}.start": [-1, 8]}, r"holds -1.0, which gives no valid recipe: input should be gr"),
        ({"distill.cross_modal.ema": [0.5, 1]}, "holds 1.0, which gives no valid recipe: input"),
        ({"distill.batch": [1.5, 4]}, "holds 1.5, which gives no valid recipe: input should be a"),
        ({f"{T}.schedule": {"choices": ["linear", "steps"]}}, "holds 'steps', which gives no val"),
        ({"distill.epochs": [1, 4]}, "holds 1.0, which gives no valid recipe: give either steps"),
        ({"distill.seed": [0, 9]}, "is not searched: candidates share data, teachers and student"),
        ({"distill.method": {"choices": ["mae", "feature"]}}, "is not searched"),
        ({"distill.mask.ratio": [0, 1]}, "is not searched"),
        ({"data.labels_per_class": [1, 9]}, "is not searched"),
        ({"teachers.0.stage.lr": [1e-4, 1e-2]}, "teachers are trained once and shared by all"),
    ],
)
def test_wrong_ranges_are_refused(ranges: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(values(ranges))


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ({"mutation": [1.0, 0.5]}, "mutation must be"),
        ({"mutation": [0.5, 2.0]}, "mutation must be"),
        ({"population": 4}, "greater than or equal to 5"),
        ({"repeats": 0}, "greater than or equal to 1"),
        ({"recombination": 0}, "greater than 0"),
        ({"objective": "test_balanced_accuracy"}, "val_balanced_accuracy"),
    ],
)
def test_wrong_search_is_refused(search: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe.model_validate(values({f"{T}.start": [1, 8]}, **search))


def test_a_search_needs_cross_modal_and_keys_that_count() -> None:
    given = values({"distill.lr": [1e-4, 1e-2]})
    del given["distill"], given["teachers"]
    with pytest.raises(ValueError, match="cross_modal, and there is no distill section"):
        Recipe.model_validate(given)
    given = values({"distill.lr": [1e-4, 1e-2]})
    del given["teachers"]
    given["distill"] |= {"method": "mae", "crop_px": 64, "data": {"roots": ["x"]}}
    with pytest.raises(ValueError, match="cross_modal, and it is mae"):
        Recipe.model_validate(given)
    for key in (f"{T}.start", "distill.cross_modal.feature_weight", "distill.cross_modal.trust"):
        given = values({key: [0.1, 0.5]})
        Recipe.model_validate(given)
        given["teachers"] = []
        with pytest.raises(ValueError, match="changes nothing: the recipe has no teacher"):
            Recipe.model_validate(given)
    given = values({"distill.cross_modal.label_weight": [0.1, 0.5]})
    Recipe.model_validate(given | {"teachers": []})


def test_a_fault_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values({f"{T}.start": [8, 1]}), sort_keys=False))
    line = next(
        at for at, text in enumerate(path.read_text().splitlines(), 1) if f"{T}.start" in text
    )
    with pytest.raises(RecipeError, match=f"line {line}: search.ranges.*low < high") as err:
        load_recipe(path)
    assert len(err.value.problems) == 1
    # a fault elsewhere is told alone: what depends on it is not looked at
    with pytest.raises(RecipeError, match="has 1 fault"):
        load_recipe(path, ["distill.lr=-1", f"search={{ranges: {{{T}.begin: [1, 8]}}}}"])
