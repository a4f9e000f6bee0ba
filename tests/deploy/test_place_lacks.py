"""Builds from sets in which places lack a kind, and with ranges that a recipe declares."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.place_set import load_places
from edgekd.contracts.plausible import Plausible
from edgekd.contracts.recipe import CalibrationSpec
from edgekd.deploy.place_samples import PlaceMaterial, golden_places, open_reader
from edgekd.deploy.places import build_places
from edgekd.errors import InputError
from edgekd.runtime.bundle import read_manifest
from edgekd.runtime.places import open_places
from edgekd.train.places.checkpoint import with_statistics
from tests.helpers.place_changes import blank, some_lack
from tests.helpers.place_line import (
    DAYS,
    FEATURES,
    MEAN,
    STD,
    WIDTH,
    PlaceLine,
    embeddings,
    make_place_set,
    place_recipe,
    place_values,
    reuse_export,
    vectors_of,
)

DAY = datetime.date(2026, 1, 1)
DECLARED = {"pressure_hpa": [900.0, 1100.0]}


def declared() -> PlaceRecipe:
    io = place_values()["io"]
    return place_recipe(io=io | {"series": io["series"] | {"ranges": DECLARED}})


def test_a_place_keeps_the_one_kind_that_it_has(tmp_path: Path) -> None:
    folder = blank(make_place_set(tmp_path / "set"), some_lack)
    places = load_places(folder)
    recipe = with_statistics(place_recipe(), MEAN, STD)
    reader = open_reader(recipe, places, row_embeddings(places, WIDTH, vectors_of))
    material = PlaceMaterial(recipe, reader, None)
    present = [sample.inputs()["present"] for sample in material.judged()]
    samples, _, source = material.calibrating(CalibrationSpec(tiles=16))
    present += [sample.inputs()["present"] for sample in samples]
    assert np.concatenate(present).sum(1).min() >= 1
    lacking = sum(int(sample.inputs()["present"].sum() < 3) for sample in samples)
    assert source.endswith(f"; {lacking} of them lack a kind")
    golden = golden_places(recipe, reader, places.facts, DAY)
    having = [[getattr(item, kind) is not None for kind in KINDS] for item in golden.places]
    assert having[:6] == [[True] * 3] * 6 and having[-1] == [False, False, True]
    alone = blank(make_place_set(tmp_path / "alone"), lambda *_: "image text")
    places = load_places(alone)
    reader = open_reader(recipe, places, row_embeddings(places, WIDTH, vectors_of))
    golden = golden_places(recipe, reader, places.facts, DAY)
    assert all(item.series is not None and item.image is None for item in golden.places)


def test_made_up_places_are_ones_that_can_be() -> None:
    io = place_values()["io"]
    recipe = place_recipe(io=io | {"series": io["series"] | {"ranges": {"level_m": [0.9, 1.1]}}})
    recipe = with_statistics(recipe, MEAN, STD)
    check = Plausible.of(recipe.io.series)
    for item in golden_places(recipe, None, {}, DAY).places:
        assert item.series is None or check.first(item.series) is None


def test_what_is_refused_is_no_matter_of_calibration() -> None:
    marks = {
        PlaceMaterial(with_statistics(recipe, MEAN, STD), None, None).input_sha256
        for recipe in (place_recipe(), declared())
    }
    assert len(marks) == 1


def test_declared_ranges_travel_into_the_bundle(
    place_line: PlaceLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse_export(monkeypatch, place_line)
    places = place_line.places()
    path = build_places(
        declared(), "x86-cpu", place_line.checkpoint, tmp_path / "b", places, embeddings(places)
    ).path
    evidence = read_manifest(path).evidence
    assert evidence is not None and evidence.series.ranges == DECLARED
    with open_places(path) as session:
        session.verify()
        values = np.tile(np.float32(MEAN), (DAYS, 1))
        from edgekd.contracts.evidence import Evidence

        values[3, FEATURES.index("pressure_hpa")] = 1095
        session.answer([Evidence(series=values)])
        values[3, FEATURES.index("pressure_hpa")] = 899
        with pytest.raises(
            InputError, match="day 4 has 899 for pressure_hpa, .* 900 to 1100 .as d"
        ):
            session.answer([Evidence(series=values)])
