"""Training with places that lack a kind: who is shown to whom, and what is learned from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_set import load_places
from edgekd.errors import DatasetError, InputError
from edgekd.train.places.data import PlaceData, PlaceItems
from edgekd.train.places.method import PlaceBatch
from edgekd.train.places.run import distill_places, train_kind_teachers
from edgekd.train.places.task import StudentTask
from edgekd.train.places.teachers._saved import load_kind_teacher
from tests.helpers.place_changes import blank, put_value, some_lack
from tests.helpers.place_line import vectors_of
from tests.helpers.tiny_places import SIDE, WIDTH, tiny_recipe, tiny_values, write_tiny_places
from tests.train.places.test_method import method, some

TEXT = {"name": "minilm", "sha256": "0" * 64}


def opened(folder: Path, **changes: Any) -> PlaceData:
    places = load_places(folder)
    return PlaceData(tiny_recipe(**changes), places, row_embeddings(places, WIDTH, vectors_of))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return blank(write_tiny_places(tmp_path / "set"), some_lack)


def test_an_item_says_what_is_there(folder: Path) -> None:
    data = opened(folder)
    jitter = tiny_recipe().distill.augment
    items = PlaceItems(data, jitter, 24, seed=1)
    for number in range(24):
        item = items[number]
        kinds = data.places.rows[item.row].kinds
        assert item.present.tolist() == [float(kind in kinds) for kind in KINDS]
        assert bool(item.series[:, 2:].any()) == ("series" in kinds)
        assert bool(item.text.any()) == ("text" in kinds)
        assert (float(item.image.float().std()) > 1) == ("image" in kinds)
    assert "places without a kind: image 10, series 10, text 15" in data.report


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_shown_places_of_its_kind_alone(folder: Path, kind: str) -> None:
    data = opened(folder)
    rows = data.having("train", kind)
    assert 0 < len(rows) < len(data.rows["train"])
    items = PlaceItems(data, tiny_recipe().distill.augment, len(rows), seed=1, kind=kind)
    assert sorted(items.row(number) for number in range(len(rows))) == rows


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_teaches_where_the_kind_is_not(kind: str) -> None:
    batch, at = some(), KINDS.index(kind)
    there = torch.ones(6, 3)
    there[[1, 4], at] = 0
    batch = batch._replace(there=there, present=batch.present * there)
    learner = method(contrast={"weight": 0.3})
    want = learner(batch, {})
    answers = dict(batch.answers)
    answers[kind] = answers[kind].clone()
    answers[kind][[1, 4]] = 1e3  # whatever stands there
    other = {"image": batch.image, "series": batch.series, "text": batch.text}
    other[kind] = other[kind].clone()
    other[kind][[1, 4]] = 77
    found = method(contrast={"weight": 0.3})(batch._replace(answers=answers, **other), {})
    assert float(found.total) == pytest.approx(float(want.total), rel=1e-6)
    everywhere = method(contrast={"weight": 0.3})(batch._replace(there=None), {})
    assert float(everywhere.parts[f"kd_{kind}"]) != pytest.approx(float(want.parts[f"kd_{kind}"]))


def test_a_batch_without_a_kind_does_not_pull_its_mean_to_zero() -> None:
    learner, batch = method(), some()
    learner(batch, {})
    before = learner.means.clone()
    nobody = torch.ones(6, 3)
    nobody[:, 2] = 0
    other = {kind: -values for kind, values in batch.answers.items()}
    learner(batch._replace(there=nobody, present=batch.present * nobody, answers=other), {})
    assert learner.means[2] == before[2] > 0 and (learner.means[:2] != before[:2]).all()


def test_no_place_loses_all_that_it_has(folder: Path) -> None:
    missing = {"image": 0.6, "series": 0.6, "text": 0.6}
    data = opened(folder, distill=tiny_values()["distill"] | {"missing": missing})
    recipe = data.recipe
    from edgekd.train.places.checkpoint import build_student

    learner = build_student("coastal", recipe.io, pretrained=False)
    task = StudentTask(recipe, recipe.distill.loop(SIDE), data, learner, {}, {}, TEXT)
    items = task.dataset(24)
    given = torch.utils.data.default_collate([items[number] for number in range(24)])
    for _ in range(20):
        batch: PlaceBatch = task.batch(given, torch.device("cpu"), torch.no_grad)
        assert batch.there is not None and (batch.present <= batch.there).all()
        assert batch.present.sum(1).min() >= 1 and (batch.present < batch.there).any()


def test_a_run_learns_from_places_that_lack_kinds(folder: Path, tmp_path: Path) -> None:
    data = opened(folder)
    result = distill_places(tiny_recipe(), folder, data, TEXT, tmp_path / "out", accelerator="cpu")
    assert all(np.isfinite(value) for value in result.distilled["losses"].values())
    for saved in (tmp_path / "out" / "teachers").iterdir():
        teacher = load_kind_teacher(saved)
        at = KINDS.index(teacher["entry"]["sees"])
        said = teacher["answers"].abs().sum(1) > 0
        assert said.tolist() == (data.present[:, at] > 0).tolist()
    # what is refused is no matter of what was learned
    io = tiny_values()["io"]
    more = tiny_recipe(io=io | {"series": io["series"] | {"ranges": {"level_m": [-9, 9]}}})
    files = sorted((tmp_path / "out" / "teachers").glob("*/teacher.ckpt"))
    before = [path.stat().st_mtime_ns for path in files]
    again = opened(folder, io=more.plain()["io"])
    train_kind_teachers(more, folder, again, TEXT, tmp_path / "out", resume=True, accelerator="cpu")
    assert [path.stat().st_mtime_ns for path in files] == before and len(files) == 3


def test_a_kind_that_no_training_place_has_is_refused(tmp_path: Path) -> None:
    folder = blank(write_tiny_places(tmp_path), lambda split, _: "text" if split == "train" else "")
    with pytest.raises(DatasetError, match="no place of split train of .* has a text; what is nev"):
        opened(folder)


def test_an_impossible_value_is_refused_before_training(folder: Path) -> None:
    put_value(folder, 5, 4, 0, 9999)  # of the test split: training's own values bound it
    with pytest.raises(InputError, match=r"series 5 .*: day 4 has 9999 for level_m, expected -7"):
        opened(folder)


def test_a_feature_that_no_training_place_has_is_known_as_one(tmp_path: Path) -> None:
    folder = write_tiny_places(tmp_path / "set")
    places = load_places(folder)
    gone = places.series.copy()
    train = sorted({row.series for row in places.part("train") if row.series is not None})
    gone[train, :, 1] = np.nan
    name = places.about.series.features[1]

    def learns_from(series: np.ndarray[Any, Any]) -> PlaceData:
        changed = replace(places, series=series)
        return PlaceData(tiny_recipe(), changed, row_embeddings(changed, WIDTH, vectors_of))

    with pytest.raises(InputError, match=f"for {name}, expected none .training had no value of it"):
        learns_from(gone)  # validation and test have it
    gone[:, :, 1] = np.nan
    data = learns_from(gone)
    assert data.recipe.io.series.unmeasured == [name]
    assert any(line.startswith(f"never measured: {name}; ") for line in data.report)
    assert learns_from(places.series).recipe.io.series.unmeasured == []
