"""Places of a set as evidence: what fits a product, and what is refused."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydantic import ValidationError

from edgekd.contracts.place_evaluation import evaluate_places, same_facts
from edgekd.contracts.place_evidence import (
    PlaceReader,
    check_fits,
    read_embeddings,
    read_picture,
    set_rules,
)
from edgekd.contracts.place_set import PlaceSet, SeriesShape, load_places
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import project
from edgekd.contracts.tensors import SeriesInput
from edgekd.errors import EdgeKDError, InputError
from tests.helpers.place_line import (
    CLASSES,
    FACTS,
    ROWS,
    embeddings,
    make_place_set,
    place_recipe,
    place_values,
)

DAY = datetime.date(2026, 1, 1)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> PlaceSet:
    return load_places(make_place_set(tmp_path_factory.mktemp("p") / "set"))


def reader_of(places: PlaceSet) -> PlaceReader:
    return PlaceReader(places, place_recipe().io.image, embeddings(places))


def test_a_place_is_what_its_row_says(places: PlaceSet) -> None:
    reader = reader_of(places)
    row = places.rows[30]
    found = reader(30)
    want = cv2.imread(str(row.image))[..., ::-1]
    assert found.image is not None and np.array_equal(found.image, want), "RGB, as it was drawn"
    assert np.array_equal(found.series, places.series[row.series], equal_nan=True)
    assert np.array_equal(found.text, reader.texts[30])
    less = reader(30, ("image", "text"))
    assert less.image is None and less.text is None and less.series is not None


def test_rows_of_a_split_are_its_own(places: PlaceSet) -> None:
    reader = reader_of(places)
    for split in ("train", "val", "test"):
        assert {places.rows[at].split for at in reader.rows_of(split)} == {split}
    assert reader.rows_of("all") == list(range(len(places.rows)))
    with pytest.raises(InputError, match="no place of split none"):
        reader.rows_of("none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": {"shape": ["N", 3, 96, 96], "mean": [0] * 3, "std": [1] * 3}}, "side, px"),
        ({"series": {"days": 50, "features": place_recipe().io.series.features}}, "days of a"),
        ({"series": {"days": 40, "features": ["wind_m_s", "level_m", "pressure_hpa"]}}, "features"),
        ({"classes": [{"index": n, "name": name, "color": "#000000"}
                      for n, name in enumerate(CLASSES[::-1])]}, "classes"),
    ],
)  # fmt: skip
def test_sets_of_another_product_are_refused(
    places: PlaceSet, change: dict[str, object], words: str
) -> None:
    values = place_values()
    io = place_recipe(io=values["io"] | change).io
    with pytest.raises(InputError, match=f"the product and the set .* differ in .*{words}"):
        check_fits("the product", io.classes, io.image, io.series, places)


@pytest.mark.parametrize(
    ("model", "of_set", "fits"),
    [
        (None, None, True), (None, "MLLW", True), ("MHHW", None, True),
        ("MHHW", "mhhw", True), ("NAVD88", "NAVD", True), ("MHHW", "MLLW", False),
    ],
)  # fmt: skip
def test_levels_above_another_datum_are_refused(
    places: PlaceSet, model: str | None, of_set: str | None, fits: bool
) -> None:
    values = place_values()
    series = {k: v for k, v in place_recipe().io.series.model_dump().items() if k != "mean"}
    series = {k: v for k, v in series.items() if k != "std"} | {"datum": model}
    io = place_recipe(io=values["io"] | {"series": series}).io
    shape = SeriesShape.model_validate(places.about.series.model_dump() | {"datum": of_set})
    there = replace(places, about=places.about.model_copy(update={"series": shape}))
    if fits:
        check_fits("the product", io.classes, io.image, io.series, there)
        return
    with pytest.raises(InputError, match="takes levels above MHHW, .* above MLLW.*--to-datum MHHW"):
        check_fits("the product", io.classes, io.image, io.series, there)


def test_a_datum_is_a_name_and_absent_ones_are_not_written() -> None:
    shape = {"days": 40, "features": ["level_m"]}
    assert "datum" not in SeriesInput.model_validate(shape).model_dump()
    assert SeriesInput.model_validate(shape | {"datum": " navd "}).model_dump()["datum"] == "NAVD88"
    for wrong in ("", "above the sea", "a" * 33, 7):
        with pytest.raises(ValidationError):
            SeriesInput.model_validate(shape | {"datum": wrong})


def test_pictures_of_another_size_or_depth_are_refused(places: PlaceSet, tmp_path: Path) -> None:
    row = places.rows[0]
    with pytest.raises(EdgeKDError, match="has 64 x 64 px, expected 32 x 32"):
        read_picture(row, 32)
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), np.zeros((64, 64, 3), np.uint16))
    with pytest.raises(EdgeKDError, match="has uint16 pixels"):
        read_picture(replace(row, image=deep), 64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((3, 8), np.float32), r"float32 \(3, 8\), expected float32 \(52, 8\)"),
        (np.zeros((52, 8)), "float64"),
        (np.full((52, 8), np.nan, np.float32), "not finite"),
        (b"no array", "cannot be read"),
    ],
)
def test_embeddings_that_do_not_fit(
    places: PlaceSet, tmp_path: Path, content: object, words: str
) -> None:
    file = tmp_path / "t.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=words):
        read_embeddings(file, places, place_recipe().io.text)


def test_an_evaluation_asks_by_the_zones_rules_and_leaves_kinds_out(places: PlaceSet) -> None:
    pytest.importorskip("scipy")
    reader, seen = reader_of(places), []

    def ask(given, limits):
        seen.extend((item.image is None, item.series is None, item.text is None) for item in given)
        from edgekd.contracts.evidence import Answers

        scores = np.tile(np.array([[0, 4, 0, 0]], np.float32), (len(given), 1))
        rules, bounds, inside = (np.stack(part) for part in zip(*limits, strict=True))
        before = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        return Answers(scores, before, project(scores, rules, bounds, inside))

    facts = {name: ClassFacts(**value) for name, value in FACTS.items()}
    found = evaluate_places(ask, reader, "test", facts, ROWS, DAY)
    assert set(found["evidence"]) == {"all", "without image", "without series", "without text"}
    assert (
        seen
        == [(False,) * 3] * 12
        + [(True, False, False)] * 12
        + [(False, True, False)] * 12
        + [(False, False, True)] * 12
    )
    both = found["evidence"]["all"]
    # houses are forbidden on the shore, half the places, and labels go round by four
    assert both["before"]["accuracy"] == 0.25 and both["before"]["compliance"]["obey"] == 0.5
    assert both["after"]["compliance"]["obey"] == 1.0
    assert both["before"]["compliance"]["winners_obey"] == 0.5
    assert both["after"]["compliance"]["winners_obey"] == 1.0
    assert found["simulated"] and found["rules"]["name"] == "made-up"
    assert found["labels"] == dict.fromkeys(CLASSES, 3) and found["day"] == "2026-01-01"


def test_a_set_without_rules_has_no_figures_of_them(tmp_path: Path) -> None:
    places = load_places(make_place_set(tmp_path / "set", rules=False))
    assert set_rules(places) is None

    def ask(given, limits):
        from edgekd.contracts.evidence import Answers

        assert limits is None
        flat = np.full((len(given), 4), 0.25, np.float32)
        return Answers(flat, flat, flat)

    found = evaluate_places(ask, reader_of(places), "val", {}, ROWS, DAY)
    assert found["rules"] is None and found["evidence"]["all"]["after"] is None


def test_facts_of_product_and_set_are_one() -> None:
    mine = {"house": ClassFacts(height_m=8.0)}
    assert same_facts({}, mine, "x") == mine and same_facts(mine, {}, "x") == mine
    assert same_facts(mine, mine | {"park": ClassFacts()}, "x") == mine
    with pytest.raises(InputError, match="says other facts of the classes"):
        same_facts(mine, {"house": ClassFacts(height_m=9.0)}, "x")
