"""Places on made-up coasts, and what a planner decides for each: ten classes.

The truth is a rule, so it is known exactly. It takes three things, none of which the others show:

* what stands on a block now, and whether it is sea (the picture),
* how deep the year's highest water stands on it (levels against ground, and a way to the sea),
* what the zoning clause allows (the text).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from edgekd.simulate.coast import (
    Coast,
    UInt8Array,
    flooded,
    make_coast,
    tile_of,
)
from edgekd.simulate.coast_levels import Tide, Year, make_year
from edgekd.simulate.coast_text import USES, clause
from edgekd.simulate.terrain import Seeds

CLASSES: Final = (
    "open_water", "leave_natural", "managed_retreat", "open_space", "low_rise",
    "low_rise_elevated", "mid_rise", "mid_rise_elevated", "high_rise", "protect",
)  # fmt: skip
#: what rules ask of the classes with buildings: height and lowest floor above MHHW, m
FACTS: Final[dict[str, dict[str, float]]] = {
    "low_rise": {"height_m": 8, "floor_m": 0.5},
    "low_rise_elevated": {"height_m": 11, "floor_m": 3.5},
    "mid_rise": {"height_m": 20, "floor_m": 0.5},
    "mid_rise_elevated": {"height_m": 23, "floor_m": 3.5},
    "high_rise": {"height_m": 55, "floor_m": 0.5},
}
#: water of less than the first is a puddle; from the second on nobody builds on stilts
WET_M, DEEP_M = 0.25, 1.0
BUILT: Final = ("low", "mid", "high")
#: zones of the map of rules: where the year's highest water stands, and where not
ZONES: Final = ("shore", "upland")
_YEARS, _TRIES = 6, 80


@dataclass(frozen=True)
class Place:
    """One place of a set.

    Attributes:
        name: unique.
        coast, year: numbers of what it shares with others.
        tile: ``(128, 128, 3)`` uint8, 2 m a pixel; the block in question is its middle 48 m.
        text: the zoning clause.
        zone: one of :data:`ZONES`.
        label: number in :data:`CLASSES`.
        cover, use, protects, depth_m: what the label follows from.
    """

    name: str
    coast: int
    year: int
    tile: UInt8Array
    text: str
    zone: str
    label: int
    cover: str
    use: str
    protects: bool
    depth_m: float


def decide(*, water: bool, cover: str, use: str, protects: bool, depth_m: float) -> str:
    """What is to be done with a block.

    Args:
        water: it is sea already.
        cover: what it is used for now.
        use: what the clause allows.
        protects: whether walls against the sea are allowed.
        depth_m: of the year's highest water on it.
    """
    if water:
        return "open_water"
    built, deep, wet = cover in BUILT, depth_m >= DEEP_M, depth_m >= WET_M
    if use == "preserve":
        return "managed_retreat" if built and wet else "leave_natural"
    if use == "recreation":
        return "managed_retreat" if built and deep else "open_space"
    if deep:
        if built:
            return "protect" if protects else "managed_retreat"
        return "leave_natural" if cover == "natural" else "open_space"
    if not wet:
        return f"{use}_rise"
    if use == "high":
        return "protect" if protects else "mid_rise_elevated"
    return f"{use}_rise_elevated"


@dataclass(frozen=True)
class Shore:
    """A coast with its years."""

    number: int
    coast: Coast
    years: list[Year]


def make_shore(seed: int, number: int, tide: Tide) -> Shore:
    """A coast of a set with the years that its station measured."""
    seeds = Seeds(seed, number)
    random = seeds.rng("sea")
    exposure, part = random.uniform(0, 1), random.uniform(0.3, 1.0)
    years = [
        make_year(seeds.rng("year", n), tide, exposure, float(random.uniform(0, 0.8)), part)
        for n in range(_YEARS)
    ]
    return Shore(number, make_coast(seeds), years)


def places_of(shore: Shore, seed: int, count: int, *, held_out: bool) -> Iterator[Place]:
    """Places of a coast, its classes as even as the coast allows.

    Args:
        shore: the coast.
        seed: of the set.
        count: how many.
        held_out: texts with the words of the test split.

    A class that the coast does not have is another one's place after some tries.
    """
    random = Seeds(seed, shore.number).rng("places")
    sea = flooded(shore.coast.height_m, 0.0)
    depths = [_depths(shore.coast, year.highest_m) for year in shore.years]
    waters = [bool(sea[block.cells].mean() > 0.5) for block in shore.coast.blocks]
    used: set[tuple[int, int]] = set()
    for number in range(count):
        wanted = CLASSES[number % len(CLASSES)]
        for _ in range(_TRIES):
            at, year = int(random.integers(len(waters))), int(random.integers(_YEARS))
            use, protects = USES[int(random.integers(len(USES)))], bool(random.random() < 0.5)
            block, depth = shore.coast.blocks[at], depths[year][at]
            found = decide(
                water=waters[at], cover=block.cover, use=use, protects=protects, depth_m=depth
            )
            if found == wanted and (at, year) not in used:
                break
        used.add((at, year))
        turn = float(random.uniform(0, 360))
        yield Place(
            name=f"c{shore.number:03d}_{number:04d}",
            coast=shore.number,
            year=year,
            tile=tile_of(shore.coast, block, turn),
            text=clause(random, use, protects, held_out=held_out),
            zone=ZONES[0] if depth >= WET_M else ZONES[1],
            label=CLASSES.index(found),
            cover=block.cover,
            use=use,
            protects=protects,
            depth_m=depth,
        )


def _depths(coast: Coast, level_m: float) -> list[float]:
    """Median depth on every block at a level, m."""
    water = np.where(flooded(coast.height_m, level_m), level_m - coast.height_m, 0.0)
    return [float(np.median(water[block.cells])) for block in coast.blocks]


def rules_of_law(name: str) -> dict[str, Any]:
    """A file of rules (:mod:`edgekd.contracts.policy`) that every true answer obeys.

    On the shore no floor may lie lower than 2.5 m; above it nobody retreats, and neither walls nor
    stilts are paid for.
    """
    return {
        "schema": 1,
        "name": name,
        "zones": {zone: f"{zone} of the made-up coasts" for zone in ZONES},
        "rules": [
            {
                "id": "flood-1", "type": "flood_zone", "min_floor_m": 2.5, "zones": ["shore"],
                "priority": 1, "source": "invented",
            },
            {
                "id": "upland-1", "type": "linear", "zones": ["upland"], "priority": 2,
                "coefficients": {
                    "protect": 1, "managed_retreat": 1, "low_rise_elevated": 1,
                    "mid_rise_elevated": 1,
                },
                "max": 0, "source": "invented",
            },
        ],
    }  # fmt: skip
