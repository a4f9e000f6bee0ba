"""What training draws of a set: each place once an epoch, changes that keep the truth, no leak."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_recipe import PlaceJitter
from edgekd.errors import ImageError, InputError
from edgekd.train.places.data import PlaceData, PlaceItems, open_places_for
from tests.helpers.series_record import write_record
from tests.helpers.tiny_places import (
    DAYS,
    SIDE,
    fake_embeddings,
    load_tiny,
    tiny_recipe,
    tiny_values,
    write_tiny_places,
)

STILL = PlaceJitter(
    flip=False, quarter_turn=False, brightness=0, contrast=0, noise=0, gaps=0, shift_days=0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_places(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def data(folder: Path) -> PlaceData:
    return PlaceData(tiny_recipe(), *load_tiny(folder))


def test_the_scale_is_that_of_training_places_alone(data: PlaceData) -> None:
    used = data.places.series[[0, 1]]
    series = data.recipe.io.series
    assert series.mean == pytest.approx(np.nanmean(used, (0, 1)), abs=1e-5)
    assert series.std == pytest.approx(np.nanstd(used, (0, 1)), abs=1e-5)
    assert "SIMULATED" in data.report[0]


def test_every_training_place_comes_once_in_an_epoch(data: PlaceData) -> None:
    items = PlaceItems(data, STILL, 72, seed=1)
    epochs = [[items.row(24 * epoch + n) for n in range(24)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == data.rows["train"]
    assert epochs[0] != epochs[1] != epochs[2]
    other = PlaceItems(data, STILL, 72, seed=2)
    assert [other.row(n) for n in range(24)] != epochs[0]


def test_without_changes_an_item_is_its_evidence(data: PlaceData) -> None:
    item = PlaceItems(data, STILL, 1, seed=0)[0]
    expected = data.tensors([data.evidence(item.row)])
    assert (item.series.numpy() == expected["series"][0]).all()
    assert (item.image.numpy() == data.picture(item.row).transpose(2, 0, 1)).all()
    assert (item.text.numpy() == data.text[item.row]).all()
    row = data.places.rows[item.row]
    assert item.label == row.label and item.sources.tolist()[:2] == [item.row, row.series]


def test_an_item_is_a_function_of_its_number(data: PlaceData) -> None:
    items = PlaceItems(data, PlaceJitter(), 8, seed=3)
    first, again, other = items[5], items[5], items[6]
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    assert not torch.equal(first.series, other.series)


def test_a_turned_picture_has_the_same_pixels(data: PlaceData) -> None:
    rules = STILL.model_copy(update={"flip": True, "quarter_turn": True})
    seen = set()
    for number in range(48):
        item = PlaceItems(data, rules, 48, seed=0)[number]
        plain = torch.from_numpy(data.picture(item.row).transpose(2, 0, 1).copy())
        turns = [torch.rot90(plain, k, (1, 2)) for k in range(4)]
        every = turns + [turn.flip(2) for turn in turns]
        found = [k for k, picture in enumerate(every) if torch.equal(picture, item.image)]
        assert len(found) == 1
        seen |= set(found)
    assert seen == set(range(8))


def test_gaps_and_shifts_take_days_and_their_presence(data: PlaceData) -> None:
    rules = STILL.model_copy(update={"gaps": 0.5, "shift_days": 5})
    lost = []
    for number in range(24):
        item = PlaceItems(data, rules, 24, seed=0)[number]
        values, there = item.series[:, :2], item.series[:, 2:]
        assert bool((values[there == 0] == 0).all())
        gone = (there[:, 1] == 0).nonzero()[:, 0]
        lost.append(len(gone))
        steps = gone.diff()
        assert int((steps > 1).sum()) <= 1  # the newest days that are not there, and one gap
    assert max(lost) > DAYS // 4 and min(lost) < DAYS // 4


def test_a_shift_puts_older_days_into_the_newest_rows(data: PlaceData) -> None:
    """The newest days fall off, and the oldest rows have none."""
    rules, seen = STILL.model_copy(update={"shift_days": 5}), set()
    for number in range(48):
        item = PlaceItems(data, rules, 48, seed=0)[number]
        plain = data.tensors([data.evidence(item.row)])["series"][0]
        by = next(n for n in range(6) if np.array_equal(item.series[n:], plain[: DAYS - n]))
        assert not item.series[:by].any()
        seen.add(by)
    assert seen == set(range(6))


def test_a_text_s_noise_has_its_length(data: PlaceData) -> None:
    rules = STILL.model_copy(update={"text_noise": 0.1})
    item = PlaceItems(data, rules, 1, seed=0)[0]
    step = item.text - torch.from_numpy(data.text[item.row])
    assert float(step.norm()) == pytest.approx(0.1, abs=1e-5)


def test_no_place_of_another_split_is_drawn(data: PlaceData) -> None:
    items = PlaceItems(data, STILL, 200, seed=0, balanced=KINDS)
    assert {items.row(n) for n in range(200)} <= set(data.rows["train"])


def test_what_does_not_fit_is_refused(folder: Path) -> None:
    values = tiny_values()
    values["io"]["classes"][1]["name"] = "lower"
    with pytest.raises(InputError, match=r"differ in classes: \['dry', 'lower'"):
        open_places_for(tiny_recipe(io=values["io"]), folder)
    values = tiny_values()
    values["io"]["series"]["days"] = 30
    with pytest.raises(InputError, match="days of a series: 30 and 35"):
        open_places_for(tiny_recipe(io=values["io"]), folder)
    places, text = load_tiny(folder)
    with pytest.raises(InputError, match=r"float32 \(39, 8\), expected float32 \(40, 8\)"):
        PlaceData(tiny_recipe(), places, text[1:])


def test_a_picture_of_another_size_is_told(tmp_path: Path) -> None:
    import cv2

    folder = write_tiny_places(tmp_path / "p", (1, 1, 1))
    cv2.imwrite(str(folder / "val_00.png"), np.zeros((SIDE, SIDE + 1, 3), np.uint8))
    places = open_places_for(tiny_recipe(), folder)
    data = PlaceData(tiny_recipe(), places, fake_embeddings(places))
    with pytest.raises(ImageError, match="64 x 65 px, expected 64 x 64"):
        data.picture(1)


def test_the_digest_is_of_all_that_is_read(folder: Path, tmp_path: Path) -> None:
    one = PlaceData(tiny_recipe(), *load_tiny(folder)).digest
    copy = write_tiny_places(tmp_path / "copy")
    assert PlaceData(tiny_recipe(), *load_tiny(copy)).digest == one
    picture = copy / "train_03.png"
    picture.write_bytes(picture.read_bytes() + b"x")
    assert PlaceData(tiny_recipe(), *load_tiny(copy)).digest != one


@pytest.mark.parametrize("asked", [None, "MHHW"])
@pytest.mark.parametrize("given", [True, False])
def test_the_datum_is_the_set_s_whoever_gives_the_scale(
    folder: Path, given: bool, asked: str | None
) -> None:
    values = tiny_values()
    values["io"]["series"] |= {"mean": [0.5, 5.0], "std": [1.0, 2.0]} if given else {}
    values["io"]["series"] |= {"datum": asked} if asked else {}
    series = PlaceData(tiny_recipe(io=values["io"]), *load_tiny(folder)).recipe.io.series
    assert series.datum == "MHHW" and (series.mean == [0.5, 5.0]) == given


def test_a_datum_that_only_the_recipe_says_stays(tmp_path: Path) -> None:
    folder = write_tiny_places(tmp_path / "p", (2, 1, 1))
    about = (folder / "places.yaml").read_text()
    (folder / "places.yaml").write_text(about.replace("datum: MHHW", "datum: null"))
    values = tiny_values()
    values["io"]["series"] |= {"mean": [0.5, 5.0], "std": [1.0, 2.0], "datum": "MLLW"}
    data = PlaceData(tiny_recipe(io=values["io"]), *load_tiny(folder))
    assert data.recipe.io.series.datum == "MLLW"


@pytest.mark.parametrize(
    ("years", "more", "words"),
    [
        ([2010, 2011, 2012, 2013, 2011, 2015], {}, r"series 1 \(train\) and 4 \(test\) share 35"),
        (range(2010, 2016), {"datum": "MLLW"}, "above MHHW, and series.json that they are above M"),
        (range(2010, 2016), {"sha256": "0"}, "is not the file that"),
    ],
)
def test_a_set_whose_series_are_others_is_not_learned_from(
    tmp_path: Path, years: list[int], more: dict[str, str], words: str
) -> None:
    folder = write_tiny_places(tmp_path / "p", (4, 4, 4))
    write_record(folder, range(2010, 2016))
    open_places_for(tiny_recipe(), folder)
    write_record(folder, years, **more)
    with pytest.raises(InputError, match=words):
        open_places_for(tiny_recipe(), folder)


def test_pictures_of_two_splits_are_told_and_the_digest_is_what_it_was(tmp_path: Path) -> None:
    folder = write_tiny_places(tmp_path / "p", (2, 2, 2))
    (folder / "test_01.png").write_bytes((folder / "train_00.png").read_bytes())
    data = PlaceData(tiny_recipe(), *load_tiny(folder))
    said = "1 picture of test is byte for byte in train, too, e.g. test_01.png and train_00.png"
    assert [line for line in data.report if line.startswith(said)]
    digest = hashlib.sha256()
    for name in ("places.yaml", "places.csv", "series.npz"):
        digest.update((folder / name).read_bytes())
    for row in data.places.rows:
        digest.update(hashlib.sha256(row.image.read_bytes()).digest())
    assert data.digest == digest.hexdigest(), "runs that were begun go on"
