"""Teachers and student of places: what is trained, resumed, refused; what is said of shares."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.errors import CheckpointError, InputError
from edgekd.train.places.checkpoint import (
    check_matches_places,
    load_places_checkpoint,
    rebuild_places,
)
from edgekd.train.places.data import PlaceData
from edgekd.train.places.predict import student_scores
from edgekd.train.places.run import distill_places
from edgekd.train.places.teachers._saved import load_kind_teacher
from edgekd.train.run import read_curves
from tests.helpers.tiny_places import load_tiny, tiny_recipe, tiny_values, write_tiny_places

TEXT = {"name": "minilm", "sha256": "0" * 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_places(tmp_path_factory.mktemp("places"))


def trained(recipe: PlaceRecipe, folder: Path, out: Path, **options: Any) -> Path:
    data = PlaceData(recipe, *load_tiny(folder))
    return distill_places(
        recipe, folder, data, TEXT, out, accelerator="cpu", **options
    ).path  # fmt: skip


def with_distill(**changes: Any) -> PlaceRecipe:
    return tiny_recipe(distill=tiny_values()["distill"] | changes)


@pytest.fixture(scope="module")
def run(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "out"
    trained(with_distill(), folder, out)
    return out


def test_a_run_leaves_teachers_student_and_curves(run: Path, folder: Path) -> None:
    names = ["1-efficientnet_lite", "2-temporal_conv", "3-minilm"]
    assert sorted(p.name for p in (run / "teachers").iterdir()) == names
    places, _ = load_tiny(folder)
    for name, kind in zip(names, ("image", "series", "text"), strict=True):
        saved = load_kind_teacher(run / "teachers" / name)
        assert saved["answers"].shape == (len(places.rows), 4) and saved["entry"]["sees"] == kind
        assert saved["distilled"]["simulated"] and torch.isfinite(saved["answers"]).all()
    checkpoint = load_places_checkpoint(run)
    assert checkpoint.text == TEXT and checkpoint.tuning["simulated"]
    assert set(checkpoint.tuning["shares"]) == {"image", "series", "text"}
    learned = checkpoint.parsed_recipe("x").io.series
    assert learned.mean is not None and learned.datum == "MHHW", "the set's, for it was not said"
    rows = read_curves(run / "curves.csv")
    assert len(rows) == 4
    for row in rows:
        shares = [float(row[f"share_{kind}"]) for kind in ("image", "series", "text")]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
    assert [row["val_accuracy"] != "" for row in rows] == [False, True, False, True]


def test_a_checkpoint_and_a_recipe_of_another_datum(run: Path) -> None:
    checkpoint, values = load_places_checkpoint(run), tiny_values()
    for datum, fits in ((None, True), ("mhhw", True), ("MLLW", False)):
        series = values["io"]["series"] | {"datum": datum}
        now = tiny_recipe(io=values["io"] | {"series": series})
        with nullcontext() if fits else pytest.raises(CheckpointError, match="series.datum MHHW"):
            check_matches_places(checkpoint, now, "x")


def test_a_checkpoint_answers_as_the_run_did(run: Path, folder: Path) -> None:
    checkpoint = load_places_checkpoint(run / "best.ckpt")
    model = rebuild_places(checkpoint, "x")
    data = PlaceData(checkpoint.parsed_recipe("x"), *load_tiny(folder))
    scores = student_scores(model, data, data.rows["val"])
    right = float((scores.argmax(1) == data.labels[data.rows["val"]]).mean())
    assert right == pytest.approx(float(read_curves(run / "curves.csv")[-1]["val_accuracy"]))
    without = student_scores(model, data, data.rows["val"], ["series", "text"])
    assert np.isfinite(without).all() and np.abs(without - scores).max() > 1e-6
    assert not model.training


def test_a_stopped_run_goes_on_to_the_same_weights(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def stop(step: int, steps: int, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 3 + 2 + 0:  # in the second teacher
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        trained(with_distill(), folder, out, progress=stop)
    calls = 0

    def again(step: int, steps: int, text: str) -> None:
        if steps == 4 and step == 3:  # in the student, behind its checkpoint
            raise Stop

    with pytest.raises(Stop):
        trained(with_distill(), folder, out, resume=True, progress=again)
    first = (out / "teachers" / "1-efficientnet_lite" / "teacher.ckpt").stat().st_mtime_ns
    path = trained(with_distill(), folder, out, resume=True)
    assert (out / "teachers" / "1-efficientnet_lite" / "teacher.ckpt").stat().st_mtime_ns == first
    one, two = load_places_checkpoint(run).weights, load_places_checkpoint(path).weights
    assert set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)
    # teachers of another recipe are trained anew, and a student's checkpoint does not fit
    with pytest.raises((CheckpointError, InputError), match="another recipe|already holds a run"):
        trained(with_distill(seed=1), folder, out, resume=True)


class Stop(Exception):
    """A run that is stopped on purpose."""


def test_a_teacher_goes_on_under_the_same_changes_alone(folder: Path, tmp_path: Path) -> None:
    """One that is half trained is no beginning for other random changes of the evidence."""

    def stop(step: int, steps: int, text: str) -> None:
        if step == 3:  # behind the first teacher's checkpoint
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        trained(with_distill(), folder, out, progress=stop)
    first = out / "teachers" / "1-efficientnet_lite"
    assert (first / "last.ckpt").is_file() and not (first / "teacher.ckpt").is_file()
    other = with_distill(augment={"brightness": 0.3})
    with pytest.raises(CheckpointError, match="was made with another recipe"):
        trained(other, folder, out, resume=True)
    assert trained(with_distill(), folder, out, resume=True).is_file()


def test_a_finished_teacher_is_read_whatever_a_half_trained_one_needs(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run of another version calls itself does not matter to one that is done."""
    from edgekd.train.places.task import KindTask

    out = shutil.copytree(run, tmp_path / "out")
    monkeypatch.setattr(KindTask, "identity", lambda self: {"another": "version"})
    names = [path for path in out.glob("teachers/*/teacher.ckpt")]
    before = [path.stat().st_mtime_ns for path in names]
    trained(with_distill(), folder, out, resume=True)
    assert len(names) == 3 and [path.stat().st_mtime_ns for path in names] == before


def test_a_place_learns_from_what_teachers_say_of_it(folder: Path) -> None:
    """Answers are of the whole table; a batch takes those of its own rows, in its own order."""
    from torch.utils.data import default_collate

    from edgekd.train.places.checkpoint import build_student
    from edgekd.train.places.data import PlaceItems
    from edgekd.train.places.task import StudentTask

    recipe = with_distill()
    data = PlaceData(recipe, *load_tiny(folder))
    count = len(data.places.rows)
    said = {
        kind: np.arange(count, dtype=np.float32)[:, None] + 100 * at + np.zeros((1, 4), np.float32)
        for at, kind in enumerate(("image", "series", "text"))
    }
    learner = build_student("coastal", recipe.io, pretrained=False)
    task = StudentTask(data.recipe, recipe.distill.loop(64), data, learner, said, {}, TEXT)
    items = task.dataset(8)
    assert isinstance(items, PlaceItems)
    drawn = [items[number] for number in range(8)]
    rows = [item.row for item in drawn]
    assert rows != list(range(8)), "places come in an order of their own"
    batch = task.batch(default_collate(drawn), torch.device("cpu"), lambda: None)
    for at, kind in enumerate(("image", "series", "text")):
        assert batch.answers[kind].tolist() == [[float(row + 100 * at)] * 4 for row in rows]
    assert batch.label.tolist() == [int(data.labels[row]) for row in rows]


def test_labels_alone_need_no_teacher(folder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(teachers=[])
    path = trained(recipe, folder, tmp_path / "out")
    assert not (tmp_path / "out" / "teachers").exists()
    done = load_places_checkpoint(path).tuning
    assert done["shares"] == {} and done["teachers"] == {}
    assert "kd" not in read_curves(tmp_path / "out" / "curves.csv")[0]


def test_nothing_is_learned_from_other_splits(folder: Path, tmp_path: Path) -> None:
    """Other pictures, series, texts and labels of val and test: the same weights."""
    import cv2

    other = write_tiny_places(tmp_path / "other")
    table = (other / "places.csv").read_text().splitlines()
    for at, line in enumerate(table):
        if line.startswith("test"):
            table[at] = line.replace("Walls may be built.", "Walls?").replace("dry", "wall")
    (other / "places.csv").write_text("\n".join(table) + "\n")
    for picture in other.glob("test_*.png"):
        cv2.imwrite(str(picture), np.full((64, 64, 3), 200, np.uint8))
    stored = np.load(other / "series.npz")["values"]
    stored[4:] += 50
    np.savez(other / "series.npz", values=stored)
    one = load_places_checkpoint(trained(with_distill(), folder, tmp_path / "a"))
    two = load_places_checkpoint(trained(with_distill(), other, tmp_path / "b"))
    assert one.data != two.data
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert one.recipe["io"] == two.recipe["io"]


def test_resume_needs_something_to_resume(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        trained(tiny_recipe(), folder, tmp_path / "none", resume=True)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"name": "efficientnet_lite", "variant": "lite0", "sees": "image", "weights": "random",
          "image_px": 80}, "pictures of 80 px, expected a multiple of 32"),
        ({"name": "temporal_conv", "sees": "series", "weights": "net.pt"}, "write weights: random"),
        ({"name": "minilm", "sees": "series"}, "sees text, the recipe says series"),
        ({"name": "hf_text", "sees": "text"}, "io.text.encoder is minilm"),
    ],
)  # fmt: skip
def test_teachers_that_do_not_fit(
    folder: Path, tmp_path: Path, teacher: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        trained(tiny_recipe(teachers=[teacher]), folder, tmp_path / "out")


def test_a_frozen_encoder_stays_as_it_came_and_a_tuned_one_learns(
    folder: Path, tmp_path: Path
) -> None:
    entry = tiny_values()["teachers"][0]
    found = {}
    for tune in ("head", "network"):
        stage = entry["stage"] | {"tune": tune}
        recipe = tiny_recipe(teachers=[entry | {"stage": stage}])
        trained(recipe, folder, tmp_path / tune)
        found[tune] = load_kind_teacher(tmp_path / tune / "teachers" / "1-efficientnet_lite")
    from edgekd.train.teachers.efficientnet_lite import build

    fresh = build("lite0", "random").state_dict()
    name = next(k for k in found["head"]["weights"] if k.endswith("weight") and "encoder." in k)
    plain = fresh[name.removeprefix("encoder.")]
    assert torch.equal(found["head"]["weights"][name], plain)
    assert not torch.equal(found["network"]["weights"][name], plain)
    assert list((tmp_path / "head" / "teachers" / "1-efficientnet_lite").glob("features-*.npz"))


def test_a_pretrained_part_learns_at_its_own_rate(folder: Path) -> None:
    from edgekd.train.places.checkpoint import build_student
    from edgekd.train.places.task import StudentTask

    recipe = with_distill(encoder_lr_factor=0.1)
    data = PlaceData(recipe, *load_tiny(folder))
    learner = build_student("coastal", recipe.io, pretrained=False)
    learner.pretrained = True
    task = StudentTask(data.recipe, recipe.distill.loop(64), data, learner, {}, {}, TEXT)
    rates = {name: task.rate(name) for name, _ in task.method.named_parameters()}
    assert {r for n, r in rates.items() if n.startswith("learner.encoder.")} == {0.1}
    assert {r for n, r in rates.items() if not n.startswith("learner.encoder.")} == {1.0}
