"""The part of a recipe that says which of its values a search may change, and how far."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document

#: values of ``distill`` that a search may change, beside those of ``cross_modal``
OWN_KEYS = (
    "crop_px", "batch", "steps", "epochs", "lr", "weight_decay", "warmup_fraction", "decay",
    "grad_clip",
)  # fmt: skip
#: keys of ``cross_modal`` that do nothing where there is no teacher
_TAUGHT = ("temperature", "kd_weight", "feature_weight", "trust")
_PREFIX = "distill.cross_modal."

Choice = bool | int | float | str


class RangeSpec(Document):
    """Values that one key may take; ``[low, high]`` is short for ``{low: ..., high: ...}``.

    Attributes:
        low, high: both ends; a key that holds whole numbers takes those between.
        scale: ``log`` where factors count and not differences, e.g. of a learning rate.
        choices: in place of both ends: these values and no others.
    """

    low: float | None = None
    high: float | None = None
    scale: Literal["linear", "log"] = "linear"
    choices: Annotated[list[Choice], pydantic.Field(min_length=2)] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, list):
            if len(value) != 2:
                raise ValueError(
                    f"a range is [low, high], received {value}; single values are "
                    f"{{choices: {value}}}"
                )
            return {"low": value[0], "high": value[1]}
        return value

    @pydantic.model_validator(mode="after")
    def _one_kind(self) -> RangeSpec:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.scale != "linear":
                raise ValueError("give either choices, or low and high with scale")
            if any(value in self.choices[:at] for at, value in enumerate(self.choices)):
                raise ValueError(f"something stands twice in choices {self.choices}")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if not self.low < self.high:
            raise ValueError(
                f"a range is [low, high] with low < high, received [{self.low:g}, {self.high:g}]"
            )
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"scale log needs low > 0, received {self.low:g}")
        return self

    def ends(self) -> list[Any]:
        """Both ends, or all choices."""
        return list(self.choices) if self.choices is not None else [self.low, self.high]


class SearchSpec(Document):
    """A search for better values of a recipe of method ``cross_modal``, by its validation part.

    Teachers are trained once, with the values as written; what is searched is of the student.

    Attributes:
        ranges: dotted key below ``distill`` -> its values.
        objective: what is to be large: balanced accuracy of the student on the validation part.
        repeats: trainings of every candidate, with seeds ``distill.seed``, the next, and so on;
            their mean counts.
        population: candidates of a generation.
        mutation: factor of differences between candidates, drawn anew between both for every
            generation.
        recombination: chance that a value of a candidate is exchanged.
    """

    ranges: dict[str, RangeSpec] = pydantic.Field(min_length=1)
    objective: Literal["val_balanced_accuracy"] = "val_balanced_accuracy"
    repeats: int = pydantic.Field(default=1, ge=1)
    population: int = pydantic.Field(default=8, ge=5)
    mutation: Annotated[list[float], pydantic.Field(min_length=2, max_length=2)] = [0.5, 1.0]
    recombination: float = pydantic.Field(default=0.7, gt=0, le=1)

    @pydantic.field_validator("mutation")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if not 0 <= value[0] < value[1] < 2:  # what scipy takes
            raise ValueError(f"mutation must be [low, high] with 0 <= low < high < 2: {value}")
        return value


def replaced(values: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's plain values with others at dotted keys, which must be there."""
    result = copy.deepcopy(dict(values))
    for key, value in new.items():
        *path, last = key.split(".")
        place: Any = result
        for part in path:
            place = place[part]
        place[last] = value
    return result


def value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key."""
    found: Any = values
    for part in key.split("."):
        found = found[part]
    return found


def check_search(
    spec: SearchSpec, values: Mapping[str, Any], validate: Callable[[dict[str, Any]], object]
) -> None:
    """Hold every range against the recipe it stands in.

    Args:
        spec: of the recipe.
        values: the recipe's own plain values.
        validate: raises pydantic.ValidationError for values that are no recipe.

    Raises:
        ValueError: for pydantic: no such key, one that a search may not change, or that changes
            nothing here, or an end of its range that gives no valid recipe.
    """
    distill = values["distill"]
    if distill is None or distill["method"] != "cross_modal":
        found = "there is no distill section" if distill is None else f"it is {distill['method']}"
        raise ValueError(f"a search needs distill.method: cross_modal, and {found}")
    for key, item in spec.ranges.items():
        _check_key(key, values)
        for value in item.ends():
            try:
                validate(replaced(values, {key: value}))
            except pydantic.ValidationError as err:
                fault = err.errors()[0]
                why = str(fault["msg"]).removeprefix("Value error, ")
                raise ValueError(
                    f"ranges.{key} holds {value!r}, which gives no valid recipe: "
                    f"{why[0].lower()}{why[1:]}"
                ) from err


def _check_key(key: str, values: Mapping[str, Any]) -> None:
    if key.startswith("teachers"):
        raise ValueError(
            f"ranges.{key}: teachers are trained once and shared by all candidates, so a search "
            "cannot change them; search keys of distill"
        )
    found: Any = values
    done: list[str] = []
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            where = ".".join(done) or "the recipe"
            valid = sorted(found) if isinstance(found, Mapping) else []
            inside = f" (valid: {', '.join(valid)})" if valid else ""
            raise ValueError(
                f"ranges.{key}: {where} has no key '{part}'{nearest(part, valid)}{inside}"
            )
        found = found[part]
        done.append(part)
    if isinstance(found, Mapping):
        raise ValueError(
            f"ranges.{key} holds keys of its own; search one of them: {', '.join(sorted(found))}"
        )
    own = len(done) == 2 and done[0] == "distill" and done[1] in OWN_KEYS
    if not own and not key.startswith(_PREFIX):
        raise ValueError(
            f"ranges.{key} is not searched: candidates share data, teachers and student, and "
            f"differ in {_PREFIX}* and distill.{{{', '.join(OWN_KEYS)}}}"
        )
    if not values["teachers"] and done[-1 if own else 2] in _TAUGHT:
        raise ValueError(
            f"ranges.{key} changes nothing: the recipe has no teacher; name one, or leave it out"
        )
