"""The parts of adapting, each against what can be counted or computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from edgekd.contracts.recipe import Recipe
from edgekd.errors import DatasetError
from edgekd.train.adapt.choose import KEEP, NO_CHANGE, PULLS, Candidate, Judged, View, choose, judge
from edgekd.train.adapt.features import Features, LastLayers, look_around, look_at_labels
from edgekd.train.adapt.head import temperature, tune
from edgekd.train.adapt.labels import Labels, draw, folds, shares
from edgekd.train.adapt.norms import with_norms
from edgekd.train.adapt.points import open_points
from edgekd.train.adapt.site import Site, open_site
from tests.helpers.checkpoints import parsed, random_student
from tests.helpers.labelled import lite0_values
from tests.helpers.recoloured import CLASSES, SHIFTED, site_values, write_site


@pytest.mark.parametrize(
    ("available", "wanted", "given"),
    [
        ([10, 10, 10], 6, {2}),
        ([10, 1, 10], 9, {4, 1}),
        ([0, 3, 40], 20, {0, 3, 17}),
        ([5, 5, 5], 15, {5}),
    ],
)
def test_shares_are_even_as_far_as_there_are_labels(
    available: list[int], wanted: int, given: set[int]
) -> None:
    found = shares(available, wanted, np.random.default_rng(0))
    assert sum(found) == wanted and set(found) == given
    assert all(a <= b for a, b in zip(found, available, strict=True))


def test_near_labels_share_a_fold_and_far_ones_of_a_class_do_not() -> None:
    row, channel = np.array([0, 3, 40, 80, 41, 120]), np.array([0, 0, 0, 1, 1, 1])
    labels = Labels(["a"], np.zeros(6, int), row, np.zeros(6, int), channel, [3, 3])
    found = folds(labels, 0)
    assert found[0] == found[1] and found[2] == found[4]
    assert len({found[0], found[2], found[3], found[5]}) == 4


@pytest.fixture
def site(tmp_path: Path) -> Site:
    path = write_site(
        tmp_path / "site", {"t": 11, "e": 12}, SHIFTED, {"train": ["t"], "test": ["e"]}
    )
    return open_site(parsed(site_values()), path, None, 0)


@pytest.mark.parametrize("values", [site_values(), lite0_values()], ids=["geology_rgb", "lite0"])
def test_scores_are_linear_in_features_and_written_back(site: Site, values: Any) -> None:
    values["io"]["classes"] = CLASSES
    recipe = parsed(values)
    model = random_student(values)
    last, labels = LastLayers(model), draw(site, 30, 0)
    assert len(last.layers) == (2 if values["name"] == "ground" else 1)
    look = look_at_labels(site, labels, recipe, 64, model.side_multiple)
    found = last.look(look)
    assert found.linear
    pixels = site.shown["t"]().pixels  # a label's place in a window is its place in the image
    for (number, row, column), y, x in zip(look.places, labels.row, labels.column, strict=True):
        assert (look.pixels[number, row, column] == pixels[y, x]).all()
    matrix, bias = last.weights()
    new = matrix * 1.1 + 0.05, bias - 0.7
    last.write(*new)
    after = last.look(look)
    assert after.linear
    torch.testing.assert_close(after.scores, found.values @ new[0].T + new[1], atol=1e-3, rtol=1e-4)


def test_all_statistics_of_the_site_make_its_shown_pixels_standard(tmp_path: Path) -> None:
    values = site_values()
    model, recipe = random_student(values), parsed(values)
    site = open_site(recipe, write_site(tmp_path / "site", {"t": 11}, SHIFTED), (24, 5), 0)
    look = look_around(site, recipe, 64, 2, 0)
    adapted = with_norms(model, look, 1.0)
    first = adapted.encoder.colour[0]  # type: ignore[index]
    with torch.inference_mode():
        made = first[0](look.images())
        out = (made - first[1].running_mean[:, None, None]) / first[1].running_var.sqrt()[
            :, None, None
        ]
    seen = out.permute(0, 2, 3, 1)[look.shown[:, 0] > 0]
    torch.testing.assert_close(seen.mean(0), torch.zeros(seen.shape[1]), atol=1e-3, rtol=0)
    torch.testing.assert_close(seen.std(0), torch.ones(seen.shape[1]), atol=1e-3, rtol=0)
    half = with_norms(model, look, 0.5).encoder.colour[0][1].running_mean  # type: ignore[index]
    old = model.encoder.colour[0][1].running_mean  # type: ignore[index]
    torch.testing.assert_close(half, (old + first[1].running_mean) / 2)


def test_a_pull_holds_and_the_kl_keeps_classes_without_a_label() -> None:
    torch.manual_seed(0)
    around = torch.randn(300, 4).double()
    matrix, bias = torch.randn(3, 4).double(), torch.zeros(3).double()
    features, channel = torch.randn(8, 4).double(), torch.tensor([0, 1] * 4)  # none of class 2

    def third(pull: float, keep: float) -> tuple[float, float]:
        new, offset = tune(features, channel, around, matrix, bias, pull=pull, keep=keep)
        chance = (around @ new.T + offset).softmax(1)[:, 2].mean()
        return float(chance), float((new - matrix).abs().max())

    old = float((around @ matrix.T).softmax(1)[:, 2].mean())
    assert third(1e6, 0.0)[1] < 1e-4
    assert third(0.01, 0.0)[0] < 0.5 * old < third(0.01, 1.0)[0]
    fitted, offset = tune(features, channel, around, matrix, bias, pull=1e-4, keep=0.0)
    before = F.cross_entropy(features @ matrix.T + bias, channel)
    assert F.cross_entropy(features @ fitted.T + offset, channel) < 0.3 * before


def test_scores_are_made_less_sure_and_never_surer() -> None:
    weights = torch.full((4,), 0.25).double()
    right = torch.tensor([[4.0, 0.0]] * 4).double()
    assert temperature(right, torch.zeros(4, dtype=torch.int64), weights) == 1.0
    assert temperature(right, torch.tensor([0, 1, 0, 1]), weights) == pytest.approx(8.0)


def entropy(scores: np.ndarray, channel: np.ndarray) -> np.ndarray:
    each: np.ndarray = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(channel)), channel]
    return each


def divisor_by_hand(scores: np.ndarray, channel: np.ndarray) -> float:
    weights = 1 / np.bincount(channel)[channel]
    grid = [2 ** (step / 8) for step in range(25)]
    return min(grid, key=lambda value: float(weights @ entropy(scores / value, channel)))


@pytest.mark.parametrize("counts", [[4, 4, 4], [6, 4, 2]])
def test_candidates_are_judged_on_labels_that_no_fit_has_seen(
    monkeypatch: pytest.MonkeyPatch, counts: list[int]
) -> None:
    """``tune`` is a stand-in whose answer tells which rows it got; the rest is done by hand."""
    random = np.random.default_rng(6)
    channel, fold = np.repeat([0, 1, 2], counts), np.tile([0, 1, 2], 4)
    features = {part: random.normal(0, 2, (12, 3)) for part in (0.0, 1.0)}
    for values in features.values():  # right, mostly
        values[np.arange(12), channel] += 3
    matrix, bias = torch.eye(3).double() * 2, torch.tensor([0.5, 0, -0.5]).double()
    views = {}
    for part, values in features.items():
        seen = Features(torch.tensor(values), torch.tensor(values) @ matrix.T + bias, True)
        views[part] = View(seen, Features(seen.values + 100, seen.scores, True), matrix, bias)
    calls: list[tuple[float, float, list[int]]] = []

    def of_classes(values: np.ndarray) -> float:
        return float(np.mean([values[channel == number].mean() for number in range(3)]))

    def moved(pull: float, rows: list[int]) -> np.ndarray:
        return np.array([0, 1, -1]) * 0.1 * sum(rows) * pull

    def stand_in(
        values: torch.Tensor, labels: torch.Tensor, around: torch.Tensor, *old: torch.Tensor,
        pull: float, keep: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
        ((part, rows),) = (
            (part, found)
            for part, known in features.items()
            if -1 not in (found := [_row(known, value) for value in values.numpy()])
        )
        assert labels.tolist() == channel[rows].tolist() and keep == KEEP
        assert torch.equal(around, views[part].unlabeled.values)
        assert torch.equal(old[0], matrix) and torch.equal(old[1], bias)
        calls.append((part, pull, sorted(rows)))
        return matrix, bias + torch.tensor(moved(pull, rows))

    monkeypatch.setattr("edgekd.train.adapt.choose.tune", stand_in)
    judged = {item.candidate: item for item in judge(views, torch.tensor(channel), fold)}
    others = [np.flatnonzero(fold != number).tolist() for number in range(3)]
    assert sorted(calls) == sorted((p, q, rows) for p in features for q in PULLS for rows in others)
    losses: dict[Candidate, np.ndarray] = {}
    divisors = set()
    for candidate, found in judged.items():
        scores = views[candidate.norms].labelled.scores.numpy().copy()
        if candidate.pull is not None:
            for number, rows in enumerate(others):
                scores[fold == number] += moved(candidate.pull, rows)
        loss = losses[candidate] = np.zeros(12)
        for number, rows in enumerate(others):
            divisors.add(divisor_by_hand(scores[rows], channel[rows]))
            loss[fold == number] = entropy(
                scores[fold == number] / divisor_by_hand(scores[rows], channel[rows]),
                channel[fold == number],
            )
        hits = scores.argmax(1) == channel
        assert found.loss == pytest.approx(of_classes(loss))
        assert found.accuracy == pytest.approx(of_classes(hits))
    assert len(divisors) > 4 and max(divisors) > 2
    for candidate, found in judged.items():
        gain = losses[NO_CHANGE] - losses[candidate]
        assert found.better_by == pytest.approx(of_classes(gain))
        if counts == [4, 4, 4]:
            assert found.error == pytest.approx(gain.std(ddof=1) / 12**0.5)


def _row(known: np.ndarray, value: np.ndarray) -> int:
    """Number of a row, -1 if there is none."""
    places = np.flatnonzero((known == value).all(1))
    return int(places[0]) if len(places) else -1


def test_a_change_must_be_surely_better_and_find_as_many() -> None:
    none = Judged(NO_CHANGE, 1.0, 0.0, 0.0, 0.6)
    unsure = Judged(Candidate(1.0, None), 0.5, 0.5, 0.6, 0.9)
    blind = Judged(Candidate(0.5, None), 0.6, 0.4, 0.1, 0.5)
    good = Judged(Candidate(0.0, 0.1), 0.8, 0.2, 0.1, 0.6)
    assert choose([none, unsure, blind, good]) is good
    assert choose([none, unsure, blind]) is none


@pytest.fixture
def recipe() -> Recipe:
    return parsed(site_values())


def table(folder: Path, *rows: str, head: str = "image,column,row,class,split") -> Path:
    path = folder / "points.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_points_are_labels_and_those_of_test_are_hidden(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site", {"t": 11, "u": 12})
    path = table(
        tmp_path,
        "t.png,5,7,olivine,",
        "t,60,30,quartz,test",
        "u,1,2,basalt,train",
        "t,5,70,basalt,",
    )
    site = open_points(recipe, folder, path, 4)
    assert list(site.shown) == ["t", "u"] and list(site.held_out) == ["t"]
    seen, held = site.shown["t"](), site.held_out["t"]()
    assert seen.target[7, 5] == 0 and (seen.target != 255).sum() == 2
    assert held.target[30, 60] == 2 and (held.target != 255).sum() == 1
    assert (~seen.shown).sum() == 81 and not seen.shown[26:35, 56:65].any()
    assert site.shown["u"]().target[2, 1] == 1
    assert len(draw(site, None, 0)) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["t,5,7,olivin,"], "line 2: the checkpoint has no class 'olivin'; did you mean 'olivine'"),
        (["v,5,7,olivine,"], "line 2: .* has no image 'v'"),
        (["t,96,7,olivine,"], "column 96, row 7 is outside t of 96x96 px"),
        (["t,-1,7,olivine,"], "outside t"),
        (["t,5.5,7,olivine,"], "must be whole pixels"),
        (["t,5,7,olivine,val"], "split is 'val', expected train, test or nothing"),
        (["t,5,7,olivine,", "t,5,7,basalt,"], "line 3 gives another class than line 2"),
        (["t,5,7,olivine,", "t,9,9,basalt,test"], "line 2 is within 8 px of a point .*line 3"),
    ],
)
def test_wrong_points_are_refused(
    recipe: Recipe, tmp_path: Path, rows: list[str], words: str
) -> None:
    folder = write_site(tmp_path / "site", {"t": 11})
    with pytest.raises(DatasetError, match=words):
        open_points(recipe, folder, table(tmp_path, *rows), None)


def test_a_table_without_its_columns_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    folder = write_site(tmp_path / "site", {"t": 11})
    with pytest.raises(
        DatasetError, match="must have the columns image, column, row, class .*x, y"
    ):
        open_points(recipe, folder, table(tmp_path, head="x,y"), None)
