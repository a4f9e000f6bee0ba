"""What is told of before and after, and when nothing can be told."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edgekd.train.adapt.measure import LEAST_SQUARES, SQUARE_PX, measure
from edgekd.train.adapt.run import _warning
from edgekd.train.adapt.site import HeldOut, Site
from tests.helpers.checkpoints import parsed, random_student
from tests.helpers.recoloured import site_values


@pytest.mark.parametrize("squares", [1, LEAST_SQUARES - 1, LEAST_SQUARES])
def test_few_places_give_no_interval(squares: int) -> None:
    """Drawn again and again, one square is always itself: an interval of width 0 would be a lie."""
    recipe = parsed(site_values())
    random = np.random.default_rng(1)
    side = 4 * SQUARE_PX
    pixels = random.integers(0, 255, (side, side, 3), dtype=np.uint8)
    target = np.full((side, side), 255, dtype=np.uint8)
    for number in range(squares):
        y, x = number // 4 * SQUARE_PX, number % 4 * SQUARE_PX
        target[y : y + 8, x : x + 8] = random.integers(0, len(recipe.io.classes), (8, 8))
    site = Site(
        "site", "0", False, list(recipe.io.classes), {}, {"a": lambda: HeldOut(pixels, target)}, "x"
    )
    found = measure(random_student(recipe, 1), random_student(recipe, 2), site, recipe)
    intervals = [found[key]["interval_95"] for key in ("before", "after", "difference")]
    assert found["squares"] == squares
    if squares < LEAST_SQUARES:
        assert intervals == [None] * 3
    else:
        assert all(low < high for low, high in intervals)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (None, r"fell by 2.0 points \(3 squares are too few to tell it from chance\); keep the"),
        ([-0.05, 0.01], r"\(95 % interval -5.0 to \+1.0, which may be chance\); keep"),
        ([-0.05, -0.01], r"\(95 % interval -5.0 to -1.0\); keep the old checkpoint old.ckpt"),
    ],
)
def test_a_warning_tells_how_sure_it_is(interval: list[float] | None, words: str) -> None:
    fell = {"difference": {"balanced_accuracy": -0.02, "interval_95": interval}, "squares": 3}
    said = _warning(fell, Path("old.ckpt"))
    assert said is not None
    assert re.search(words, said)
    fell["difference"]["balanced_accuracy"] = 0.0  # type: ignore[index]
    assert _warning(fell, Path("old.ckpt")) is None
