"""Places that lack a kind of evidence, and series with values that nothing has."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgekd.contracts.evidence import KINDS, Answers
from edgekd.contracts.place_evaluation import evaluate_places
from edgekd.contracts.place_evidence import PlaceReader, check_fits, row_embeddings
from edgekd.contracts.place_set import load_places
from edgekd.errors import InputError
from tests.helpers.place_changes import blank, put_value, some_lack
from tests.helpers.place_line import (
    CLASSES,
    MEAN,
    STD,
    WIDTH,
    make_place_set,
    place_recipe,
    vectors_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_place_set(tmp_path / "set", rules=False)


def test_a_place_may_lack_kinds(folder: Path) -> None:
    places = load_places(blank(folder, some_lack))
    assert [row.kinds for row in places.part("test")[:8]] == [
        KINDS, ("series", "text"), KINDS, ("image", "text"), KINDS, ("image", "series"),
        ("image",), ("series",),
    ]  # fmt: skip
    vectors = row_embeddings(places, WIDTH, vectors_of)
    has = np.array([row.text is not None for row in places.rows])
    assert (np.abs(vectors).sum(1) > 0).tolist() == has.tolist() and not has.all()
    asked: list[list[str]] = []
    row_embeddings(places, WIDTH, lambda texts: (asked.append(texts), vectors_of(texts))[1])
    of_test = row_embeddings(
        places, WIDTH, lambda texts: (asked.append(texts), vectors_of(texts))[1], "test"
    )
    mine = [at for at, row in enumerate(places.rows) if row.split == "test"]
    others = [at for at, row in enumerate(places.rows) if row.split != "test"]
    assert np.array_equal(of_test[mine], vectors[mine]) and not of_test[others].any()
    assert set(asked.pop()) == {places.rows[at].text for at in mine} - {None}
    assert asked == [places.texts] and len(places.texts) == len(set(places.texts))
    reader = PlaceReader(places, place_recipe().io.image, vectors)
    for at in reader.rows_of("test"):
        found, kinds = reader(at), places.rows[at].kinds
        assert tuple(k for k in KINDS if getattr(found, k) is not None) == kinds
        assert reader.left(at, ("image",)) == tuple(k for k in kinds if k != "image")


def test_a_place_of_nothing_is_one_line(folder: Path) -> None:
    blank(
        folder, lambda split, number: "image series text" if (split, number) == ("val", 2) else ""
    )
    with pytest.raises(InputError) as caught:
        load_places(folder)
    assert str(caught.value).endswith(
        "places.csv, line 28: place val_02 has neither image nor series nor text; one is needed at "
        "least, or leave the row out"
    )


def test_a_set_without_series_needs_no_file_of_them(folder: Path) -> None:
    (folder / "series.npz").unlink()
    with pytest.raises(InputError, match="series.npz cannot be read"):
        load_places(folder)
    found = load_places(blank(folder, lambda split, number: "series"))
    assert found.series.shape == (0, 40, 3) and {row.series for row in found.rows} == {None}


def test_a_kind_is_left_out_of_places_that_have_another(folder: Path, tmp_path: Path) -> None:
    places = load_places(blank(folder, some_lack))
    reader = PlaceReader(places, place_recipe().io.image, row_embeddings(places, WIDTH, vectors_of))
    seen: list[tuple[bool, ...]] = []

    def ask(given: Any, limits: Any) -> Answers:
        assert limits is None
        seen.extend(tuple(getattr(item, kind) is not None for kind in KINDS) for item in given)
        flat = np.full((len(given), len(CLASSES)), 1 / len(CLASSES), np.float32)
        return Answers(flat, flat, flat)

    done: list[tuple[int, int]] = []
    day = datetime.date(2026, 1, 1)
    found = evaluate_places(
        ask, reader, "test", {}, 5, day, lambda at, total: done.append((at, total))
    )
    parts = {name: part["places"] for name, part in found["evidence"].items()}
    assert parts == {"all": 12, "without image": 11, "without series": 11, "without text": 12}
    assert found["has"] == {"image": 9, "series": 9, "text": 9}
    assert all(any(kinds) for kinds in seen) and done[-1] == (len(seen), len(seen)) == (46, 46)
    other = blank(make_place_set(tmp_path / "alone", rules=False), lambda *_: "image text")
    alone = PlaceReader(load_places(other), place_recipe().io.image, reader.texts)
    found = evaluate_places(ask, alone, "test", {}, 5, day)
    assert found["evidence"]["without series"] == {"places": 0, "before": None, "after": None}
    assert found["evidence"]["without text"]["places"] == 12


def fits(folder: Path, trained: bool = False, **series: Any) -> None:
    io = place_recipe().io
    given = io.series.model_copy(update=series)
    if trained:
        given = given.model_copy(update={"mean": MEAN, "std": STD})
    check_fits("the product", io.classes, io.image, given, load_places(folder))


def test_an_impossible_value_is_refused_when_a_set_is_opened(folder: Path) -> None:
    fits(folder)
    put_value(folder, 4, 7, 2, 9999)
    with pytest.raises(InputError) as caught:
        fits(folder)
    assert str(caught.value) == (
        f"{folder / 'series.npz'}: series 4 (place val_01 and 4 more): day 7 has 9999 for "
        "pressure_hpa, expected 850 to 1090 (what a coast can have); a gap is NaN, and a range of "
        "its own is declared in a recipe's io.series.ranges"
    )
    fits(folder, ranges={"pressure_hpa": [0, 10_000]})
    with pytest.raises(InputError, match="day 7 has 9999 .* expected 0 to 9000 .as declared"):
        fits(folder, ranges={"pressure_hpa": [0, 9000]})


def test_what_training_saw_bounds_features_that_nobody_knows(folder: Path) -> None:
    put_value(folder, 0, 3, 0, 99)
    fits(folder)  # nothing is known of level_m before training
    with pytest.raises(InputError, match=r"series 0 \(place train_00 .* expected -24 to 26 \(50 s"):
        fits(folder, trained=True)


def test_a_set_may_say_what_its_features_can_have(folder: Path) -> None:
    put_value(folder, 4, 7, 2, 500)
    places = load_places(folder)
    with pytest.raises(InputError, match="day 7 has 500 for pressure_hpa"):
        places.require_plausible(places.known_ranges())
    about = yaml.safe_load((folder / "places.yaml").read_text())
    about["series"]["ranges"] = {"pressure_hpa": [400, 1090]}  # a lake in the mountains
    (folder / "places.yaml").write_text(yaml.safe_dump(about))
    places = load_places(folder)
    places.require_plausible(places.known_ranges())
    about["series"]["ranges"] = {"pressure": [400, 1090]}
    (folder / "places.yaml").write_text(yaml.safe_dump(about))
    with pytest.raises(InputError, match="no feature 'pressure'"):
        load_places(folder)


def test_too_few_days_and_none_say_what_to_do(folder: Path) -> None:
    values = np.load(folder / "series.npz")["values"]
    values[5, 29:] = np.nan
    np.savez(folder / "series.npz", values=values)
    with pytest.raises(InputError, match=r"series 5 .place val_02 .* 29 of 40 .* column series of"):
        fits(folder)
    values[5] = np.nan
    np.savez(folder / "series.npz", values=values)
    with pytest.raises(InputError, match="nothing but gaps; leave the column series of its places"):
        load_places(folder)
