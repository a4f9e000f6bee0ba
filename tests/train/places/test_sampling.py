"""Places drawn by kinds of evidence: how often each kind comes, and that nothing changes where all
places have all kinds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.place_set import load_places
from edgekd.train.places.checkpoint import build_student, load_places_checkpoint
from edgekd.train.places.data import PlaceData, PlaceItems, kind_weights, sampled_kinds
from edgekd.train.places.run import distill_places
from edgekd.train.places.task import StudentTask, said_of_seen
from tests.helpers.place_changes import blank, some_lack
from tests.helpers.place_line import vectors_of
from tests.helpers.tiny_places import SIDE, WIDTH, tiny_recipe, tiny_values, write_tiny_places

TEXT = {"name": "minilm", "sha256": "0" * 64}
STILL = tiny_recipe().distill.augment
Lacks = Callable[[str, int], str]


def opened(recipe: PlaceRecipe, folder: Path) -> PlaceData:
    places = load_places(folder)
    return PlaceData(recipe, places, row_embeddings(places, WIDTH, vectors_of))


def of(folder: Path, lacks: Lacks) -> PlaceData:
    """24 training places."""
    return opened(tiny_recipe(), blank(write_tiny_places(folder), lacks))


def with_distill(**changes: Any) -> PlaceRecipe:
    return tiny_recipe(distill=tiny_values()["distill"] | changes)


def drawn(items: PlaceItems, epochs: int) -> list[int]:
    return [items.row(number) for number in range(24 * epochs)]


def every_eighth_has_a_series(_: str, number: int) -> str:
    return "" if number % 8 == 0 else "series"


def one_has_a_series(_: str, number: int) -> str:
    return "" if number == 0 else "series"


def a_quarter_has_a_series_alone(_: str, number: int) -> str:
    return "image text" if number % 4 == 0 else "series"


@pytest.mark.parametrize(
    ("lacks", "want"),
    [
        # 3 of 24 count 8, 21 count 1: 24 of 45
        (every_eighth_has_a_series, (1, 24 / 45, 1)),
        # 1 of 24 would count 24 and counts 10, 23 count 1: 10 of 33
        (one_has_a_series, (1, 10 / 33, 1)),
        # 6 of 24 count 4, 18 count 24 / 18: 24 of 48
        (a_quarter_has_a_series_alone, (1 / 2, 1 / 2, 1 / 2)),
    ],
)
def test_rare_kinds_come_as_often_as_the_set_allows(
    tmp_path: Path, lacks: Lacks, want: tuple[float, ...]
) -> None:
    data = of(tmp_path / "set", lacks)
    items = PlaceItems(data, STILL, 2400, seed=1, balanced=KINDS)
    seen = items.seen(2400)
    assert list(seen.values()) == pytest.approx(want, abs=0.01)
    weights = kind_weights(data.present[data.rows["train"]])
    times = 24 * weights / weights.sum()
    for epoch in range(5):  # each place to within one, in each epoch
        count = Counter(items.row(number) for number in range(24 * epoch, 24 * epoch + 24))
        for row, expected in zip(data.rows["train"], times, strict=True):
            assert abs(count[row] - expected) < 1
    whole = Counter(drawn(items, 100))
    assert [whole[row] / 100 for row in data.rows["train"]] == pytest.approx(times, abs=0.2)


def test_plain_is_each_place_once(tmp_path: Path) -> None:
    data = of(tmp_path / "set", every_eighth_has_a_series)
    items = PlaceItems(data, STILL, 24, seed=1)
    assert sorted(drawn(items, 1)) == data.rows["train"]
    assert list(items.seen(24).values()) == [1, 1 / 8, 1]


def test_which_kinds_are_balanced(tmp_path: Path) -> None:
    """Those that are taught; all where nobody teaches; none where nothing is to be balanced."""
    lacking = of(tmp_path / "lacking", every_eighth_has_a_series)
    whole = of(tmp_path / "whole", lambda *_: "")
    halves = of(tmp_path / "halves", lambda _, n: "series" if n % 2 else "image text")
    image, series, text = tiny_values()["teachers"]
    assert sampled_kinds(tiny_recipe(), lacking) == KINDS
    assert sampled_kinds(tiny_recipe(teachers=[]), lacking) == KINDS
    silent = tiny_values()["distill"] | {"kd_weight": 0}
    assert sampled_kinds(tiny_recipe(teachers=[image], distill=silent), lacking) == KINDS
    assert sampled_kinds(tiny_recipe(teachers=[series, text]), lacking) == ("series", "text")
    assert sampled_kinds(tiny_recipe(teachers=[image, text]), lacking) == ()
    assert sampled_kinds(with_distill(sampling="plain"), lacking) == ()
    assert sampled_kinds(tiny_recipe(), whole) == sampled_kinds(tiny_recipe(), halves) == ()


def test_where_all_have_all_kinds_the_order_is_what_it_always_was(tmp_path: Path) -> None:
    data = of(tmp_path / "set", lambda *_: "")
    rows = np.array(data.rows["train"])
    former = [
        int(rows[np.random.default_rng([5, 0, 0, epoch]).permutation(24)[place]])
        for epoch in range(3)
        for place in range(24)
    ]
    for balanced in ((), KINDS):
        assert drawn(PlaceItems(data, STILL, 72, seed=5, balanced=balanced), 3) == former


def test_an_item_is_a_function_of_its_number(tmp_path: Path) -> None:
    """Whatever was asked before, so that a run may be resumed anywhere, by any worker."""
    data = of(tmp_path / "set", some_lack)
    first = drawn(PlaceItems(data, STILL, 96, seed=2, balanced=KINDS), 4)
    again = PlaceItems(data, STILL, 96, seed=2, balanced=KINDS)
    order = np.random.default_rng(0).permutation(96).tolist()
    assert [again.row(number) for number in order] == [first[number] for number in order]
    assert drawn(PlaceItems(data, STILL, 96, seed=3, balanced=KINDS), 4) != first
    epochs = [sorted(first[at : at + 24]) for at in range(0, 96, 24)]
    assert epochs[0] != epochs[1], "which places come once more is drawn anew"


def task(recipe: PlaceRecipe, data: PlaceData) -> StudentTask:
    learner = build_student("coastal", data.recipe.io, pretrained=False)
    return StudentTask(recipe, recipe.distill.loop(SIDE), data, learner, {}, {}, TEXT)


def test_a_run_is_known_where_the_same_places_come(tmp_path: Path) -> None:
    """What a run calls itself tells orders apart, and nothing else."""
    whole, lacking = of(tmp_path / "whole", lambda *_: ""), of(tmp_path / "lacking", some_lack)
    plain, kinds = with_distill(sampling="plain"), with_distill()
    assert kinds.distill.sampling == "kinds"
    assert task(kinds, whole).identity() == task(plain, whole).identity()
    former = task(plain, lacking).identity()
    assert set(former) == {"data", "teacher", "text", "rules"}, "as before sampling was a key"
    assert "sampling" not in former["rules"]
    assert task(kinds, lacking).identity() == former | {"sampled": list(KINDS)}


def test_a_run_goes_on_as_it_would_have_and_tells_what_it_saw(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, steps: int, text: str) -> None:
        if step == 3:  # behind the checkpoint of step 2
            raise Stop

    recipe = tiny_recipe(teachers=[])
    folder = blank(write_tiny_places(tmp_path / "set"), every_eighth_has_a_series)
    data = opened(recipe, folder)
    given = (recipe, tmp_path, data, TEXT)
    path = distill_places(*given, tmp_path / "a", accelerator="cpu").path
    with pytest.raises(Stop):
        distill_places(*given, tmp_path / "b", accelerator="cpu", progress=stop)
    again = distill_places(*given, tmp_path / "b", accelerator="cpu", resume=True).path
    one, two = load_places_checkpoint(path), load_places_checkpoint(again)
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    items = PlaceItems(data, STILL, 16, seed=0, balanced=KINDS)
    seen = one.tuning["seen"]
    assert seen == two.tuning["seen"]
    count = sum(row % 8 == 0 for row in (items.row(number) for number in range(16)))
    assert seen["series"] == {"items": count / 16, "places": 1 / 8} and count > 4
    assert said_of_seen(seen) in (tmp_path / "a" / "log.txt").read_text()


def test_where_all_have_all_kinds_a_run_gives_the_same_weights(tmp_path: Path) -> None:
    folder, found = write_tiny_places(tmp_path / "set"), []
    for sampling in ("plain", "kinds"):
        recipe = tiny_recipe(teachers=[], distill=tiny_values()["distill"] | {"sampling": sampling})
        given = (recipe, tmp_path, opened(recipe, folder), TEXT, tmp_path / sampling)
        found.append(load_places_checkpoint(distill_places(*given, accelerator="cpu").path))
    one, two = found
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert one.tuning["seen"]["series"] == {"items": 1, "places": 1}


def test_what_was_seen_is_said_in_percent() -> None:
    said = said_of_seen(
        {
            "image": {"items": 1.0, "places": 1.0},
            "series": {"items": 0.534, "places": 0.125},
            "text": {"items": 0.0098, "places": 0.001},
        }
    )
    assert said == (
        "image 100 %, series 53 % (of 12 % of the places), text 0.98 % (of 0.1 % of the places)"
    )
