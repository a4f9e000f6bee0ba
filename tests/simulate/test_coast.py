"""Made-up coasts: connected floods by hand, the planner's rule, what no single evidence shows."""

from __future__ import annotations

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("scipy")

from edgekd.contracts.policy import ClassFacts, policy_of
from edgekd.contracts.policy_rows import compile_zone
from edgekd.contracts.projection import past_bounds
from edgekd.errors import InputError
from edgekd.simulate.coast import BLOCK_CELLS, COVERS, Coast, flooded, make_coast, tile_of
from edgekd.simulate.coast_levels import DAYS, HOURS, LEAD_DAYS, Tide, load_tide, make_year
from edgekd.simulate.coast_places import (
    BUILT,
    CLASSES,
    DEEP_M,
    FACTS,
    WET_M,
    ZONES,
    Place,
    decide,
    make_shore,
    places_of,
    rules_of_law,
)
from edgekd.simulate.coast_text import FRAMES, PROTECTION, THINGS, USES, WALLS, clause, kept
from edgekd.simulate.terrain import Seeds
from tests.helpers.stations import STATION

TIDE = Tide(
    "made up", np.array([1.0, 0.5]), np.array([0.0, 90.0]), np.array([28.984104, 15.041069]), 0.7
)


@pytest.fixture(scope="module")
def coast() -> Coast:
    return make_coast(Seeds(3, 0))


@pytest.fixture(scope="module")
def places() -> list[Place]:
    return [
        place
        for number in range(4)
        for place in places_of(make_shore(5, number, TIDE), 5, 100, held_out=False)
    ]


@pytest.mark.parametrize(
    ("ground", "level", "expected"),
    [
        # low ground behind a whole dune stays dry
        ([[-1, 3, 0, 0]], 1.0, [[1, 0, 0, 0]]),
        # a dune lower than the water does not help
        ([[-1, 0.5, 0, 0]], 1.0, [[1, 1, 1, 1]]),
        # through a gap, and across a corner
        ([[-1, 3, 0], [-1, 0, 3], [-1, 3, 3]], 1.0, [[1, 0, 1], [1, 1, 0], [1, 0, 0]]),
        # at the level itself there is no water
        ([[-1, 1.0, 0.9]], 1.0, [[1, 0, 0]]),
        # the first column is the sea however high it lies
        ([[5, 0.2]], 1.0, [[1, 1]]),
    ],
)
def test_water_needs_a_way(
    ground: list[list[float]], level: float, expected: list[list[int]]
) -> None:
    before = np.array(ground, dtype=np.float32)
    found = flooded(before, level)
    assert np.array_equal(found, np.array(expected, bool))
    assert np.array_equal(before, np.array(ground, dtype=np.float32)), "heights stay as they are"


def test_higher_water_covers_what_lower_water_did(coast: Coast) -> None:
    waters = [flooded(coast.height_m, level) for level in (0.0, 0.7, 1.5, 3.0)]
    for low, high in itertools.pairwise(waters):
        assert (high | ~low).all() and high.sum() > low.sum()


def test_a_coast_comes_back_and_another_seed_is_another(coast: Coast) -> None:
    again = make_coast(Seeds(3, 0))
    assert np.array_equal(again.picture, coast.picture) and again.blocks == coast.blocks
    assert not np.array_equal(make_coast(Seeds(3, 1)).picture, coast.picture)
    assert {block.cover for block in coast.blocks} == set(COVERS)
    assert coast.picture.dtype == np.uint8 and 40 < coast.picture.mean() < 200


def test_a_tile_shows_its_block_in_the_middle(coast: Coast) -> None:
    """Without a turn it is a cut of the picture; a turn by 90 degrees moves the sea."""
    block = next(item for item in coast.blocks if item.row > 200 and item.column > 100)
    tile = tile_of(coast, block, 0.0)
    rows = slice(block.row + BLOCK_CELLS // 2 - 64, block.row + BLOCK_CELLS // 2 + 64)
    columns = slice(block.column + BLOCK_CELLS // 2 - 64, block.column + BLOCK_CELLS // 2 + 64)
    assert np.array_equal(tile, coast.picture[rows, columns])
    turned = tile_of(coast, block, 90.0)
    best = min(
        np.abs(turned.astype(int) - np.rot90(tile, turns).astype(int)).mean() for turns in (1, 3)
    )
    assert best < 1.0


@pytest.mark.parametrize(
    ("water", "cover", "use", "protects", "depth", "expected"),
    [
        (True, "natural", "high", True, 3.0, "open_water"),
        (False, "natural", "preserve", False, 0.0, "leave_natural"),
        (False, "low", "preserve", False, 0.1, "leave_natural"),
        (False, "low", "preserve", True, WET_M, "managed_retreat"),
        (False, "mid", "recreation", True, 0.99, "open_space"),
        (False, "mid", "recreation", True, DEEP_M, "managed_retreat"),
        (False, "open", "recreation", False, 2.0, "open_space"),
        (False, "natural", "low", False, 0.0, "low_rise"),
        (False, "high", "mid", True, 0.2, "mid_rise"),
        (False, "low", "high", True, 0.0, "high_rise"),
        (False, "open", "low", True, 0.5, "low_rise_elevated"),
        (False, "open", "mid", False, 0.5, "mid_rise_elevated"),
        (False, "open", "high", True, 0.5, "protect"),
        (False, "open", "high", False, 0.5, "mid_rise_elevated"),
        (False, "low", "mid", True, 1.5, "protect"),
        (False, "low", "mid", False, 1.5, "managed_retreat"),
        (False, "natural", "mid", True, 1.5, "leave_natural"),
        (False, "open", "high", True, 1.5, "open_space"),
    ],
)
def test_what_a_planner_decides(
    water: bool, cover: str, use: str, protects: bool, depth: float, expected: str
) -> None:
    found = decide(water=water, cover=cover, use=use, protects=protects, depth_m=depth)
    assert found == expected


def test_every_true_answer_obeys_the_law() -> None:
    """All combinations, in the zone that their depth puts them in."""
    facts = {name: ClassFacts(**FACTS.get(name, {})) for name in CLASSES}
    policy = policy_of(rules_of_law("law"), "law")
    import datetime

    day = datetime.date(2026, 1, 1)
    zones = {name: compile_zone(policy, name, day, CLASSES, facts, 8).limits for name in ZONES}
    for cover, use, protects, depth in itertools.product(
        COVERS, USES, (True, False), (0.0, 0.2, WET_M, 0.6, DEEP_M, 3.0)
    ):
        found = decide(water=False, cover=cover, use=use, protects=protects, depth_m=depth)
        answer = np.zeros((1, len(CLASSES)))
        answer[0, CLASSES.index(found)] = 1
        limits = zones[ZONES[0] if depth >= WET_M else ZONES[1]]
        assert past_bounds(answer, *limits[:2])[0] <= 0, (cover, use, protects, depth, found)
    shore = np.eye(len(CLASSES))
    refused = (past_bounds(shore, *zones["shore"][:2]) > 0).sum()
    assert refused == 3, "low_rise, mid_rise and high_rise stand in the water"


def test_no_single_evidence_decides_and_all_three_do(places: list[Place]) -> None:
    """The best guess by a table of what each evidence can show at most."""

    def best(key: Callable[[Place], object]) -> float:
        table: dict[object, Counter[int]] = defaultdict(Counter)
        for place in places:
            table[key(place)][place.label] += 1
        return sum(max(counts.values()) for counts in table.values()) / len(places)

    def water(place: Place) -> bool:
        return CLASSES[place.label] == "open_water"

    def wet(place: Place) -> int:
        return int(place.depth_m >= WET_M) + int(place.depth_m >= DEEP_M)

    # a picture and levels together give the depth; each alone gives less than this allows it
    assert best(lambda p: (p.cover, water(p))) < 0.45
    assert best(lambda p: (p.use, p.protects)) < 0.7
    assert best(wet) < 0.45
    assert best(lambda p: (p.cover, water(p), wet(p))) < 0.6, "picture and levels"
    assert best(lambda p: (p.cover, water(p), p.use, p.protects)) < 0.85, "picture and text"
    built = {cover: cover in BUILT for cover in COVERS}
    everything = best(
        lambda p: (built[p.cover], p.cover == "natural", water(p), wet(p), p.use, p.protects)
    )
    assert everything == 1.0


def test_classes_are_even_enough_and_names_unique(places: list[Place]) -> None:
    counts = Counter(place.label for place in places)
    assert len(counts) == len(CLASSES) and min(counts.values()) >= 0.03 * len(places)
    assert len({place.name for place in places}) == len(places)
    assert all((place.zone == "shore") == (place.depth_m >= WET_M) for place in places)


def test_words_of_the_test_split_are_never_in_training() -> None:
    random = np.random.default_rng(0)
    for use, protects in itertools.product(USES, (True, False)):
        for held_out in (False, True):
            for _ in range(40):
                text = clause(random, use, protects, held_out=held_out)
                for phrases in (THINGS[use], WALLS):
                    said = [phrase for phrase in phrases if phrase in text]
                    # "flood walls" holds no other thing, but "seawalls" may stand in one
                    assert said and set(said) & set(kept(phrases, held_out=held_out)), text
                    assert not set(said) & set(kept(phrases, held_out=not held_out)), text
                others = [things for name, things in THINGS.items() if name != use]
                assert not any(f" {thing}." in text for things in others for thing in things)
                assert ("{" not in text) and text.startswith("Sec. ")
    for phrases in (FRAMES, WALLS, *THINGS.values(), *PROTECTION.values()):
        assert len(set(phrases)) == len(phrases)


def test_a_years_levels_are_the_tide_and_storms() -> None:
    calm = make_year(np.random.default_rng(4), TIDE, 0.0, 0.0, 1.0)
    rough = make_year(np.random.default_rng(4), TIDE, 1.0, 0.5, 1.0)
    for year in (calm, rough):
        assert year.level_m.shape == (HOURS,) == ((DAYS + LEAD_DAYS) * 24,)
        measured = year.level_m[LEAD_DAYS * 24 :]
        assert np.isnan(year.level_m).mean() < 0.2
        assert abs(np.nanmax(measured) - year.highest_m) < 0.1 or np.isnan(measured).any()
    assert rough.highest_m > calm.highest_m + 0.5
    flat = Tide("none", np.zeros(1), np.zeros(1), np.ones(1), 0.0)
    still = make_year(np.random.default_rng(4), flat, 0.0, 0.0, 1.0)
    assert np.nanstd(still.level_m) < 0.3 < np.nanstd(calm.level_m)


def test_a_constituent_by_hand() -> None:
    hours = np.array([0.0, 6.0, 12.0])
    tide = Tide("one", np.array([2.0]), np.array([60.0]), np.array([30.0]), 0.0)
    assert np.allclose(tide.levels_m(hours), [1.0, 2 * np.cos(np.radians(120)), 1.0])


def test_a_file_that_is_no_station_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "station.json"
    for text in ("{", "{}", '{"stations": []}', '{"stations": [{"name": "x"}]}'):
        wrong.write_text(text)
        with pytest.raises(InputError, match="station.json"):
            load_tide(wrong)


@pytest.mark.parametrize(
    "part",
    [
        None,
        {"units": "feet"},
        {"units": "feet", "HarmonicConstituents": []},
        {"units": "yards", "HarmonicConstituents": []},
    ],
)
def test_a_station_without_a_tide_is_refused(tmp_path, part) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "station.json"
    station = STATION["stations"][0] | {"harmonicConstituents": part}
    path.write_text(json.dumps({"stations": [station]}))
    with pytest.raises(InputError, match="no harmonic constituents"):
        load_tide(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"amplitude": -3.0}, "a constituent of"),
        ({"amplitude": 1e300}, "a constituent of"),
        ({"phase_GMT": 1e9}, "a constituent of"),
        ({"speed": 0.0}, "a constituent of"),
        ({"amplitude": 0.001}, "in another unit than it says"),
    ],
)
def test_constituents_that_make_no_tide(
    tmp_path: Path, change: dict[str, float], words: str
) -> None:
    path = tmp_path / "station.json"
    one = {"amplitude": 3.5, "phase_GMT": 10.8, "speed": 28.984104} | change
    part = {"units": "feet", "HarmonicConstituents": [one]}
    path.write_text(
        json.dumps({"stations": [STATION["stations"][0] | {"harmonicConstituents": part}]})
    )
    with pytest.raises(InputError, match=words):
        load_tide(path)


@pytest.mark.parametrize("part", [0.3, 1.0])
def test_the_mean_of_higher_high_waters_is_the_zero(part: float) -> None:
    """A pure daily tide of 1 m: its high waters are 1 m above the mean, whatever its part."""
    tide = Tide("one", np.array([1.0]), np.array([0.0]), np.array([15.0]), 1.0)
    year = make_year(np.random.default_rng(0), tide, 0.0, 0.0, part)
    days = year.level_m.reshape(-1, 24)
    highs = days[np.isfinite(days).all(axis=1)].max(axis=1)
    assert len(highs) > 300 and abs(np.median(highs)) < 0.15


def test_the_month_before_the_year_is_not_what_the_truth_is_made_of() -> None:
    """Where its storm was the highest, the year's own highest water counts."""
    lower = []
    for seed in range(80):
        year = make_year(np.random.default_rng(seed), TIDE, 1.0, 0.0, 1.0)
        before, within = year.level_m[: LEAD_DAYS * 24], year.level_m[LEAD_DAYS * 24 :]
        if np.nanmax(before) > np.nanmax(within) + 0.3:
            lower.append(year.highest_m < np.nanmax(before) - 0.2)
        assert year.highest_m > np.nanmax(within) - 0.1
        for values in (year.wave_height_m, year.gust_m_s, year.wind_m_s, year.wave_period_s):
            assert np.nanmin(values) >= 0
    assert lower and any(lower)
