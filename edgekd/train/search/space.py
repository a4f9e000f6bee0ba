"""The unit cube that a search moves in, and the values of a recipe that its points stand for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.contracts.recipe import Recipe
from edgekd.contracts.search import RangeSpec, replaced, value_at

#: digits that a value has: enough for any search, and short enough to be typed
_DIGITS = 6

Values = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One key.

    Attributes:
        key: dotted, of the recipe.
        spec: what it may be.
        whole: whether it takes whole numbers alone.
    """

    key: str
    spec: RangeSpec
    whole: bool

    @property
    def count(self) -> int | None:
        """Different values; None where they are a continuum."""
        if self.spec.choices is not None:
            return len(self.spec.choices)
        return int(self._high - self._low) + 1 if self.whole else None

    def at(self, part: float) -> Any:
        """The value at ``part`` (0-1) of the way."""
        part = min(max(part, 0.0), 1.0)
        if self.spec.choices is not None:
            return self.spec.choices[min(int(part * len(self.spec.choices)), self._last)]
        if self.spec.scale == "log":
            value = math.exp(
                math.log(self._low) + part * (math.log(self._high) - math.log(self._low))
            )
        elif self.whole:
            return int(self._low) + min(int(part * (self._last + 1)), self._last)
        else:
            value = self._low + part * (self._high - self._low)
        value = round(value) if self.whole else float(f"{value:.{_DIGITS}g}")
        return type(value)(min(max(value, self._low), self._high))

    def part_of(self, value: Any) -> float | None:
        """Inverse of :meth:`at`; None for a value outside the range."""
        if self.spec.choices is not None:
            if value not in self.spec.choices:
                return None
            return (self.spec.choices.index(value) + 0.5) / len(self.spec.choices)
        number = not isinstance(value, bool) and isinstance(value, int | float)
        if not number or not self._low <= value <= self._high:
            return None
        if self.spec.scale == "log":
            return math.log(value / self._low) / math.log(self._high / self._low)
        if self.whole:
            return float((value - self._low + 0.5) / (self._last + 1))
        return float((value - self._low) / (self._high - self._low))

    @property
    def _low(self) -> float:
        assert self.spec.low is not None
        return self.spec.low

    @property
    def _high(self) -> float:
        assert self.spec.high is not None
        return self.spec.high

    @property
    def _last(self) -> int:
        count = self.count
        assert count is not None
        return count - 1


class Space:
    """All keys of a search.

    Args:
        recipe: with ``search``.

    Attributes:
        axes: one per key, by name, so that their order in a recipe changes no search.
    """

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.search is not None
        self._plain = recipe.plain() | {"search": None}
        self.axes = [
            Axis(key, spec, self._holds_whole(key, spec))
            for key, spec in sorted(recipe.search.ranges.items())
        ]

    def _holds_whole(self, key: str, spec: RangeSpec) -> bool:
        """Whether the schema knows whole numbers alone at a key."""
        if spec.choices is not None:
            return False
        tried = Recipe.model_validate(replaced(self._plain, {key: spec.low}))
        return isinstance(value_at(tried.plain(), key), int)

    @property
    def count(self) -> int | None:
        """Different candidates; None where they are a continuum."""
        counts = [axis.count for axis in self.axes]
        return None if None in counts else math.prod(c for c in counts if c is not None)

    def values(self, vector: Sequence[float]) -> Values:
        """The candidate at a point of the cube."""
        return {axis.key: axis.at(part) for axis, part in zip(self.axes, vector, strict=True)}

    def written(self) -> tuple[Values, list[float] | None]:
        """The recipe's own values; and their point, None where one lies outside its range."""
        values = {axis.key: value_at(self._plain, axis.key) for axis in self.axes}
        parts = [axis.part_of(values[axis.key]) for axis in self.axes]
        return values, None if None in parts else [p for p in parts if p is not None]

    def recipe(self, values: Mapping[str, Any], seed: int, weights: Sequence[str]) -> Recipe:
        """The recipe of one training.

        Args:
            values: of the candidate.
            seed: of the training.
            weights: file of each teacher.
        """
        new = replaced(self._plain, {**values, "distill.seed": seed})
        for teacher, path in zip(new["teachers"], weights, strict=True):
            teacher |= {"weights": path, "stage": None}
        return Recipe.model_validate(new)


def name_of(values: Mapping[str, Any]) -> str:
    """What tells a candidate from others: its values as one line of JSON."""
    return json.dumps(values, sort_keys=True)


def yaml_text(value: Any) -> str:
    """A value as YAML that reads back as the same: ``1e-05`` alone would be a word."""
    text = json.dumps(value)
    if isinstance(value, float) and "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text if not isinstance(value, str) else value
