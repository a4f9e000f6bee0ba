"""Rules of a place in a small file: what they limit, where, since when, and which of them yields.

A file is what a planning office can write and a lawyer can read; rules have no numbers of classes
in them. What a class is (how high, how near to the shore, how high its lowest floor) is said once,
with the product. :mod:`edgekd.contracts.policy_rows` makes the rows ``A p <= b`` of the two.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.datum import Datum, differ
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, load_document
from edgekd.errors import InputError

Name = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
#: letters of a zone's text; some 1000 words, and more than encoders of sentences take
MOST_LETTERS = 8000
Clause = Annotated[str, pydantic.Field(min_length=1, max_length=MOST_LETTERS)]


class ClassFacts(Document):
    """What rules ask of a class; a rule says nothing of classes without its fact.

    Attributes:
        height_m: of the highest building that the class allows, m above ground.
        setback_m: between the shoreline and the nearest building, m.
        floor_m: of the lowest floor in use, m above the datum of the water levels.
    """

    height_m: float | None = pydantic.Field(default=None, ge=0)
    setback_m: float | None = pydantic.Field(default=None, ge=0)
    floor_m: float | None = None


def _day(value: object) -> object:
    """A day as a law writes it: no clock and no zone, in which it would be another day."""
    plain = isinstance(value, str) and re.fullmatch("[0-9]{4}-[0-9]{2}-[0-9]{2}", value)
    if value is None or plain or type(value) is datetime.date:
        return value
    raise ValueError(f"expected a day as YYYY-MM-DD, received {str(value)[:40]!r}")


Day = Annotated[datetime.date, pydantic.BeforeValidator(_day)]


class Valid(Document):
    """When a rule is in force: from the first day to before the last one; open where absent.

    Attributes:
        from: first day, as ``YYYY-MM-DD``; absent, ever since.
        until: first day on which it is no longer in force; absent, for good.
    """

    from_: Day | None = pydantic.Field(default=None, alias="from")
    until: Day | None = None

    @pydantic.model_validator(mode="after")
    def _forward(self) -> Valid:
        if self.from_ is not None and self.until is not None and self.from_ >= self.until:
            raise ValueError(f"until {self.until} is not after from {self.from_}")
        return self

    def holds(self, day: datetime.date) -> bool:
        """Whether a day is inside."""
        return (self.from_ is None or self.from_ <= day) and (
            self.until is None or day < self.until
        )

    def meets(self, other: Valid) -> bool:
        """Whether some day is inside both."""
        low = max(self.from_ or datetime.date.min, other.from_ or datetime.date.min)
        high = min(self.until or datetime.date.max, other.until or datetime.date.max)
        return low < high


#: type -> the key that it asks for beside ``coefficients``
_ASKS = {
    "height_limit": "max_m", "setback": "min_m", "flood_zone": "min_floor_m", "linear": "max",
}  # fmt: skip

#: sizes of the numbers of a linear rule, whose quotients single precision must hold
_LEAST, _MOST = 1e-6, 1e6
#: of the largest coefficient to the smallest: a rule is met to within 1e-6 of its largest, which
#: must be little beside the smallest, too
MOST_SPAN = 1e3


class Rule(Document):
    """One paragraph.

    Attributes:
        id: of the paragraph; several versions may share it as long as no day has two of them.
        type: ``height_limit``: no class that allows buildings above ``max_m``, m above ground.
            ``setback``: none with buildings nearer to the shoreline than ``min_m``, m.
            ``flood_zone``: none whose lowest floor is below ``min_floor_m``, m above the datum.
            ``linear``: sum of ``coefficients`` x probabilities at most ``max``, for what no other
            type says; numbers are 0 or of a size from 1e-6 to 1e6, and no coefficient is more
            than 1000 times another.
        max_m: of height_limit, m above ground.
        min_m: of setback, m from the shoreline.
        min_floor_m: of flood_zone, m above the datum of the water levels.
        coefficients: of linear, class -> number.
        max: of linear, what the sum may be at most.
        share: what the classes that break the rule may have of the probability; not of linear.
        zones: where it applies; absent, in all zones of the file.
        priority: 1 yields last; of rules that contradict each other the higher number is relaxed.
        valid: when it is in force; absent, always.
        source: where it stands: the ordinance and its paragraph.
    """

    id: Name
    type: Literal["height_limit", "setback", "flood_zone", "linear"]
    max_m: float | None = pydantic.Field(default=None, ge=0)
    min_m: float | None = pydantic.Field(default=None, ge=0)
    min_floor_m: float | None = None
    coefficients: dict[str, float] | None = pydantic.Field(default=None, min_length=1)
    max: float | None = None
    share: float | None = pydantic.Field(default=None, ge=0, lt=1)
    zones: list[Name] | None = pydantic.Field(default=None, min_length=1)
    priority: int = pydantic.Field(ge=1, le=99)
    valid: Valid = Valid()
    source: str = pydantic.Field(min_length=3)

    @pydantic.field_validator("coefficients", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """``true`` would be read as 1."""
        for name, number in value.items() if isinstance(value, dict) else ():
            if isinstance(number, bool):
                raise ValueError(
                    f"{name} has {str(number).lower()} (yes/no in YAML), expected a number"
                )
        return value

    @pydantic.model_validator(mode="after")
    def _of_its_type(self) -> Rule:
        mine = {_ASKS[self.type], *(["coefficients"] if self.type == "linear" else ["share"])}
        for key in (*_ASKS.values(), "coefficients", "share"):
            given = getattr(self, key) is not None
            if given and key not in mine:
                raise ValueError(
                    f"rule {self.id} is of type {self.type}, to which {key} does not apply"
                )
            if not given and key in mine and key != "share":
                raise ValueError(f"rule {self.id} is of type {self.type} and lacks {key}")
        if self.coefficients is not None and not any(self.coefficients.values()):
            raise ValueError(f"all coefficients of rule {self.id} are 0, so it limits nothing")
        for value in (*(self.coefficients or {}).values(), self.max or 0.0):
            if value and not _LEAST <= abs(value) <= _MOST:
                raise ValueError(
                    f"rule {self.id} has the number {value:g}, expected 0 or a size from "
                    f"{_LEAST:g} to {_MOST:g}; others are lost in single precision"
                )
        sizes = sorted(abs(value) for value in (self.coefficients or {}).values() if value)
        if sizes and sizes[-1] > MOST_SPAN * sizes[0]:
            raise ValueError(
                f"rule {self.id} has coefficients from {sizes[0]:g} to {sizes[-1]:g}, expected "
                f"none more than {MOST_SPAN:g} times another: a rule is met to within a millionth "
                "of its largest, in which the small ones drown; give those a rule of their own"
            )
        return self


class Policy(Document):
    """The rules of a place.

    Attributes:
        schema: of this file, 1.
        name, title: of the place.
        zones: name -> what it is, for a person.
        texts: zone -> what the ordinance says there, in words; for models that read. Zones may be
            absent.
        datum: what ``min_floor_m`` is above, e.g. ``MHHW``; absent, what the product's levels and
            floors are above. Another than the product's is refused.
        rules: in any order.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    name: Name
    title: str = ""
    zones: dict[Name, str] = pydantic.Field(min_length=1)
    texts: dict[Name, Clause] = {}
    datum: Datum | None = None
    rules: list[Rule]

    @pydantic.model_serializer(mode="wrap")
    def _without_nothing(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where no datum is said the key is left out: rules from before have the same digest."""
        values: dict[str, Any] = handler(self)
        if self.datum is None:
            values.pop("datum", None)
        return values

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Policy:
        for zone, words in self.texts.items():
            if zone not in self.zones:
                raise ValueError(
                    f"there is a text of zone '{zone}', which is not there"
                    f"{nearest(zone, list(self.zones))} (valid: {', '.join(self.zones)})"
                )
            if not words.strip():
                raise ValueError(f"the text of zone {zone} says nothing; leave it out")
        for number, rule in enumerate(self.rules):
            for zone in rule.zones or []:
                if zone not in self.zones:
                    raise ValueError(
                        f"rule {rule.id} names zone '{zone}', which is not there"
                        f"{nearest(zone, list(self.zones))} (valid: {', '.join(self.zones)})"
                    )
            for other in self.rules[:number]:
                if rule.id != other.id or not rule.valid.meets(other.valid):
                    continue
                shared = set(rule.zones or self.zones) & set(other.zones or self.zones)
                if shared:
                    raise ValueError(
                        f"rule {rule.id} stands twice for the same days in zone "
                        f"{sorted(shared)[0]}; end the earlier version with valid.until on the "
                        "day on which the later one begins"
                    )
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of what the file says, whatever its spelling."""
        value = self.model_dump(mode="json", by_alias=True)
        return sha256_bytes(canonical_json(value).encode())

    def require_datum(self, datum: str | None, whose: str) -> None:
        """Raise where floors are known to be above another datum than a product's.

        Args:
            datum: of the product's levels and of the floors of its classes; None: nobody said it.
            whose: who has or takes it, with the verb: ``bundle x takes``.

        Raises:
            InputError: names both.
        """
        if differ(self.datum, datum):
            raise InputError(
                f"the rules '{self.name}' have heights above {self.datum}, and {whose} those above "
                f"{datum}; convert every min_floor_m, and write datum: {datum}"
            )

    def in_force(self, zone: str, day: datetime.date) -> list[Rule]:
        """The rules of a zone on a day, as the file orders them.

        Raises:
            InputError: no such zone.
        """
        if zone not in self.zones:
            raise InputError(
                f"policy '{self.name}' has no zone '{zone}'{nearest(zone, list(self.zones))} "
                f"(valid: {', '.join(self.zones)})"
            )
        return [
            rule for rule in self.rules
            if (rule.zones is None or zone in rule.zones) and rule.valid.holds(day)
        ]  # fmt: skip

    def next_change(self, day: datetime.date) -> datetime.date | None:
        """The first later day on which other rules are in force; None where none is known."""
        edges = {edge for rule in self.rules for edge in (rule.valid.from_, rule.valid.until)}
        return min((edge for edge in edges if edge is not None and edge > day), default=None)


def load_policy(path: Path) -> Policy:
    """Read a file of rules.

    Raises:
        InputError: missing, not text.
        RecipeError: every fault, each with its line.
    """
    return load_document(Policy, path)


def policy_of(value: dict[str, Any], source: str) -> Policy:
    """Rules given as plain values, e.g. the body of a request.

    Raises:
        RecipeError: every fault.
    """
    from edgekd.contracts.schema import parse_document

    return parse_document(Policy, value, {}, source)
