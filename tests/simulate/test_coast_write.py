"""A set of made-up places on disk: it reads back, says what it is, and comes back by its seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("scipy")

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.imageio import Raster
from edgekd.contracts.place_set import load_places
from edgekd.contracts.policy import load_policy
from edgekd.contracts.policy_rows import compile_zone
from edgekd.errors import EdgeKDError
from edgekd.simulate.coast_levels import LEAD_DAYS, load_tide, make_year
from edgekd.simulate.coast_places import CLASSES, make_shore, places_of
from edgekd.simulate.coast_write import CoastOrder, features_of, write_coast
from tests.helpers.stations import STATION


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("station") / "station.json"
    path.write_text(json.dumps(STATION))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, station: Path) -> Path:
    out = tmp_path_factory.mktemp("set") / "made"
    write_coast(out, station, CoastOrder(3, 10, 7, (1, 1, 1)))
    return out


def test_what_is_written_reads_back(made: Path) -> None:
    found = load_places(made)
    assert found.about.simulated and found.classes == list(CLASSES) and len(found.rows) == 30
    assert found.series.shape == (18, 365, 12) and np.isfinite(found.series).mean() > 0.9
    for name in ("train", "val", "test"):
        assert len({row.group for row in found.part(name)}) == 1
    picture = cv2.imread(str(found.rows[0].image))
    assert picture.shape == (128, 128, 3)
    for path in (made / "places.yaml", made / "rules.yaml"):
        assert path.read_text().startswith("# SIMULATED")
    provenance = json.loads((made / "provenance.json").read_text())
    assert provenance["simulated"] and provenance["seed"] == 7
    assert sum(sum(part.values()) for part in provenance["places"].values()) == 30


def test_a_place_has_its_own_year_and_its_picture_its_colours(made: Path, station: Path) -> None:
    found = load_places(made)
    shore = make_shore(7, 0, load_tide(station))
    places = list(places_of(shore, 7, 10, held_out=False))
    rows = found.part("train")
    assert len({row.series for row in rows}) > 1
    for place, row in zip(places, rows, strict=True):
        own = features_of(shore.years[place.year])
        assert np.array_equal(found.series[row.series], own, equal_nan=True)
        with Raster(row.image) as picture:
            pixels = np.asarray(picture.read_all())
        assert np.array_equal(pixels, place.tile)


def test_its_rules_compile_for_its_classes(made: Path) -> None:
    import datetime

    found = load_places(made)
    policy = load_policy(made / "rules.yaml")
    for zone in {row.zone for row in found.rows}:
        rules = compile_zone(policy, zone, datetime.date(2026, 1, 1), CLASSES, found.facts, 8)
        assert rules.rows and not rules.relaxed


def test_a_coast_does_not_depend_on_how_many_there_are(made: Path, station: Path) -> None:
    out = made.parent / "fewer"
    write_coast(out, station, CoastOrder(1, 10, 7, (1, 0, 0)))
    first = [row for row in load_places(made).rows if row.group == "coast_000"]
    again = load_places(out).rows
    assert [(row.name, row.label, row.text) for row in first] == [
        (row.name, row.label, row.text) for row in again
    ]
    assert sha256_file(first[3].image) == sha256_file(again[3].image)


def test_the_years_highest_water_is_in_its_days(station: Path) -> None:
    """A year without a gap: the largest of the daily highs is what the truth is made of."""
    year = make_year(np.random.default_rng(1), load_tide(station), 0.5, 0.1, 0.8)
    whole = year.level_m.copy()
    whole[np.isnan(whole)] = 0
    days = features_of(year)
    assert days.shape == (365, 12)
    gaps = np.isnan(year.level_m[LEAD_DAYS * 24 :]).any()
    assert gaps or abs(np.nanmax(days[:, 1]) - year.highest_m) < 0.06


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"coasts": 0}, "expected 1 to 999 coasts"),
        ({"places": 0}, "expected 1 to 2000 places"),
        ({"seed": -1}, "a seed is 0 or above"),
        ({"coasts": 5, "split": (2, 1, 1)}, "does not go into 5 coasts"),
        ({"split": (0, 0, 0)}, "does not go into"),
    ],
)
def test_orders_that_make_no_sense(
    tmp_path: Path, station: Path, order: dict[str, Any], words: str
) -> None:
    with pytest.raises(EdgeKDError, match=words):
        write_coast(tmp_path / "set", station, CoastOrder(**order))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path, station: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(EdgeKDError, match="exists and is not empty"):
        write_coast(tmp_path, station, CoastOrder())
    assert [item.name for item in tmp_path.iterdir()] == ["mine.txt"]
