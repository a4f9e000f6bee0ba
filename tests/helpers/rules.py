"""A small place with rules, for the tests of the service's store."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import yaml

from edgekd.contracts.policy import ClassFacts
from edgekd.serve.rules import RuleStore

CLASSES = ["water", "meadow", "house", "tower"]
FACTS = {
    "meadow": ClassFacts(height_m=0),
    "house": ClassFacts(height_m=9, floor_m=0.5),
    "tower": ClassFacts(height_m=40, floor_m=4.0),
}
NOON = datetime.datetime(2026, 6, 1, 12, tzinfo=datetime.timezone.utc)


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> datetime.datetime:
        return self.now


def most(name: str, classes: dict[str, float], bound: float, **more: Any) -> dict[str, Any]:
    """A linear rule."""
    return {"id": name, "type": "linear", "coefficients": classes, "max": bound, "priority": 1,
            "source": "made up", **more}  # fmt: skip


def rules(*items: dict[str, Any], zones: str = "AB") -> dict[str, Any]:
    """A file of rules."""
    return {"schema": 1, "name": "bay", "zones": dict.fromkeys(zones, "a zone"),
            "rules": list(items)}  # fmt: skip


def text(*items: dict[str, Any], zones: str = "AB") -> str:
    """The same as YAML."""
    return yaml.safe_dump(rules(*items, zones=zones), sort_keys=False)


def towers(bound: float) -> str:
    """At most this of towers, everywhere."""
    return text(most("towers", {"tower": 1}, bound))


def store(folder: Path, **more: Any) -> RuleStore:
    """A store for the classes above, at noon of 2026-06-01."""
    return RuleStore(folder, CLASSES, FACTS, more.pop("rows", 4), **{"clock": Clock(), **more})
