"""Chains of teachers: stages in order, what each learns, and going on after a stop or a kill."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_labelled import camera_view
from edgekd.contracts.sensor_set import open_sensor_set
from edgekd.errors import CheckpointError, DatasetError, InputError
from edgekd.train.checkpoint import build_for, load_checkpoint, rebuild
from edgekd.train.distill.chain import SensorTask, distill_chain, stage_spec
from edgekd.train.distill.methods.cross_modal import CrossModal, SensorBatch
from edgekd.train.evaluate import answer, evaluate_model, evaluate_teacher
from edgekd.train.run import read_curves
from edgekd.train.teachers._saved import load_teacher, rebuild_teacher
from tests.helpers.sensors import BLOCKS, chain_values, materials, write_set


@pytest.fixture(scope="module")
def rocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("rocks"))


def run(values: dict[str, Any], rocks: Path, out: Path, **options: Any) -> Any:
    recipe = Recipe.model_validate(values)
    return distill_chain(recipe, rocks.parent, rocks, out, accelerator="cpu", **options)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True)["weights"])


def same(first: Path, second: Path) -> bool:
    ours, theirs = weights(first), weights(second)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


FILES = ["teachers/1-fusion/teacher.ckpt", "teachers/2-few/teacher.ckpt", "best.ckpt"]


def test_each_stage_learns_from_the_one_before(rocks: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    result = run(chain_values(rocks), rocks, tmp_path, say=lines.append)
    assert result.path == tmp_path / "best.ckpt"
    said = [line for line in lines if line.startswith("learns")]
    assert said == [
        "learns geology_fusion from visual, spectral, lidar, taught by labels alone",
        "learns geology_fusion from visual, few, taught by teacher geology_fusion",
        "learns geology_rgb from visual, taught by teacher geology_fusion",
    ]
    columns = [set(read_curves((tmp_path / name).parent / "curves.csv")[0]) for name in FILES]
    assert "kd" not in columns[0] and {"kd", "feature", "temperature"} <= columns[1] & columns[2]
    first, second = (load_teacher(tmp_path / name) for name in FILES[:2])
    assert list(first.teacher["sensors"]) == ["visual", "spectral", "lidar"]
    assert first.distilled["teacher_sha256"] is None and second.distilled["teacher_sha256"]
    student = load_checkpoint(tmp_path)
    assert student.tuning["teacher_sha256"] != second.distilled["teacher_sha256"]
    assert student.student["options"]["variant"] == "nano" and student.tuning["simulated"]
    curve = [float(row["temperature"]) for row in read_curves(tmp_path / "curves.csv")]
    assert curve[0] == 3.0 and curve[-1] == pytest.approx(1.0) and curve == sorted(curve)[::-1]


def test_classes_of_the_teachers_answers_are_weighed_by_what_it_expects(
    rocks: Path, tmp_path: Path
) -> None:
    """Five labels of each class say nothing of how rare it is; the teacher's answers do."""
    values = chain_values(rocks, {"labels_per_class": 5}, steps=30, batch=16)
    values["teachers"] = values["teachers"][:1]
    lines: list[str] = []
    run(values, rocks, tmp_path, say=lines.append)
    (told,) = (line for line in lines if line.startswith("pixels that it expects: "))
    counts = [float(item.rpartition(" ")[2]) for item in told.partition(": ")[2].split(", ")]
    recipe = Recipe.model_validate(values)
    data = open_sensor_set(recipe, rocks)
    teacher = rebuild_teacher(load_teacher(tmp_path / FILES[0]), "teacher")
    view = data.training_view("one")
    scores, _ = answer(teacher, view)
    expected = torch.from_numpy(scores[:, view.valid]).softmax(0).sum(1)
    assert counts == pytest.approx(expected.tolist(), abs=0.6)
    assert sum(counts) == pytest.approx(int(view.valid.sum()), abs=2)
    learner = build_for(recipe)
    method = CrossModal(recipe.distill, learner, recipe.io.inputs[0], [5, 5, 5], teacher.width)
    method.expect([100.0, 10.0, 0.0])
    given = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]).T.reshape(1, 3, 1, 2).repeat(1, 1, 32, 16)
    picture = torch.rand(1, 3, 32, 32) * 255
    none = torch.full((1, 32, 32), IGNORE)
    there = torch.ones(1, 32, 32, dtype=torch.bool)
    batch = SensorBatch(
        {"visual": picture}, torch.ones(1, 1, dtype=torch.bool), none, there, given,
        torch.zeros(1, 32, 32, teacher.width),
    )  # fmt: skip
    method.eval()
    whole = method(batch, (1.0, 1.0, 1.0)).parts["kd"]
    first = there.clone()
    first[..., 1::2] = False
    parts = [method(batch._replace(counted=w), (1.0, 1.0, 1.0)).parts["kd"]
             for w in (first, ~first)]  # fmt: skip
    beta = recipe.distill.cross_modal.balance.beta
    rare = (1 - beta**100) / (1 - beta**10)  # weight of a pixel of the rare class
    assert whole.item() == pytest.approx((parts[0] + rare * parts[1]).item() / (1 + rare), rel=1e-2)


def test_it_learns(rocks: Path, tmp_path: Path) -> None:
    """Materials of a few hundred pixels with clear spectra: every stage must find them."""
    values = chain_values(rocks, {"labels_per_class": 10}, steps=60, batch=8, lr=5e-3)
    values["teachers"][0]["stage"] |= {"lr": 1e-3, "batch": 32}
    run(values, rocks, tmp_path)
    recipe = Recipe.model_validate(values)
    data = open_sensor_set(recipe, rocks)
    for name in FILES[:2]:
        teacher = rebuild_teacher(load_teacher(tmp_path / name), name)
        assert evaluate_teacher(teacher, data, "test")["balanced_accuracy"] > 0.9, name
    student = rebuild(load_checkpoint(tmp_path), "student")
    found = evaluate_model(student, camera_view(data), "test", recipe.io, recipe.tiling)
    assert found["balanced_accuracy"] > 0.9


def test_stopped_and_resumed_equals_one_run_at_every_stage(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path / "whole")

    class Stop(Exception):
        pass

    for stop_at in (5, 9, 15):  # of 18 steps in all; the last checkpoint is one or two before
        count = 0

        def stop(step: int, steps: int, text: str) -> None:
            nonlocal count
            count += 1
            if count == stop_at:  # noqa: B023
                raise Stop

        out = tmp_path / f"cut{stop_at}"
        with pytest.raises(Stop):
            run(values, rocks, out, progress=stop)
        done = [(out / name).exists() for name in FILES]
        assert done == [stop_at > 6, stop_at > 12, False]
        before = [(out / name).stat().st_mtime_ns for name in FILES if (out / name).exists()]
        run(values, rocks, out, resume=True)
        for name in FILES:
            assert same(tmp_path / "whole" / name, out / name), (stop_at, name)
        after = [(out / name).stat().st_mtime_ns for name in FILES]
        assert after[: len(before)] == before, "what was done is not done again"


def test_killed_and_resumed_equals_one_run(rocks: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(chain_values(rocks, steps=20)))
    command = [sys.executable, "-m", "edgekd", "distill", str(recipe), "--accelerator", "cpu"]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, "-o", str(whole)], check=True, stderr=subprocess.PIPE)
    process = subprocess.Popen([*command, "-o", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    curves = out / "teachers" / "2-few" / "curves.csv"
    while time.monotonic() < deadline and process.poll() is None and len(read_curves(curves)) < 5:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and not (out / "best.ckpt").exists()
    done = subprocess.run(
        [*command, "-o", str(out), "--resume", "--json"], check=True, stdout=subprocess.PIPE
    )
    assert json.loads(done.stdout)["steps"] == 20
    assert all(same(whole / name, out / name) for name in FILES)


def test_another_recipe_makes_later_stages_anew(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path)
    kept = (tmp_path / FILES[0]).stat().st_mtime_ns
    changed = copy.deepcopy(values)
    changed["teachers"][1]["stage"] = {"steps": 4}
    with pytest.raises(CheckpointError, match="another recipe, data, teacher"):
        run(changed, rocks, tmp_path, resume=True)
    run(changed, rocks, tmp_path, fresh=True)
    assert (tmp_path / FILES[0]).stat().st_mtime_ns != kept
    assert load_teacher(tmp_path / FILES[1]).distilled["steps"] == 4


def test_a_finished_run_is_not_overwritten_unasked(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks, teachers=[])
    run(values, rocks, tmp_path)
    with pytest.raises(InputError, match="already holds a run"):
        run(values, rocks, tmp_path)


def test_a_teacher_that_is_there_is_used(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path / "first")
    path = tmp_path / "first" / FILES[1]
    values["teachers"] = [{"name": "geology_fusion", "weights": str(path)}]
    run(values, rocks, tmp_path / "second")
    assert not (tmp_path / "second" / "teachers").exists()
    assert same(tmp_path / "first" / "best.ckpt", tmp_path / "second" / "best.ckpt")


def test_spectra_are_whitened_where_it_is_asked_for(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    values["teachers"][0]["whitening"] = "noise"
    run(values, rocks, tmp_path)
    first, second = (weights(tmp_path / name) for name in FILES[:2])
    assert torch.equal(second["whitening_few"], torch.eye(3))
    matrix = first["whitening_spectral"]
    assert not torch.allclose(matrix, torch.eye(24)) and torch.allclose(matrix, matrix.T, atol=1e-6)
    assert "whitening_visual" not in first and "whitening_lidar" not in first
    data = open_sensor_set(Recipe.model_validate(values), rocks)
    teacher = rebuild_teacher(load_teacher(tmp_path / FILES[0]), "teacher")
    scores, _ = answer(teacher, data.load("one"))
    teacher.set_whitening("spectral", torch.eye(24))
    assert not np.allclose(scores, answer(teacher, data.load("one"))[0], atol=1e-3)


def test_another_teacher_than_the_named_one_is_refused(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    values["teachers"][1]["sha256"] = "0" * 64
    with pytest.raises(InputError, match=r"teachers\[1\].sha256 .* weights is train"):
        run(values, rocks, tmp_path / "first")
    path = tmp_path / "first" / FILES[0]
    values["teachers"] = [
        {"name": "geology_fusion", "weights": str(path.parent), "sha256": "0" * 64}
    ]
    with pytest.raises(CheckpointError, match="has sha256 .* says 000000000000"):
        run(values, rocks, tmp_path / "second")


def test_what_changes_no_weight_may_change_before_a_resume(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path)
    (tmp_path / "best.ckpt").unlink()
    before = [(tmp_path / name).stat().st_mtime_ns for name in FILES[:2]]
    values["distill"] |= {"log_every_steps": 3, "save_every_steps": 1}
    run(values, rocks, tmp_path, resume=True)
    assert (tmp_path / "best.ckpt").is_file()
    assert [(tmp_path / name).stat().st_mtime_ns for name in FILES[:2]] == before


def test_nothing_to_resume_is_said_and_nothing_is_lost(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        run(values, rocks, tmp_path, resume=True)
    assert not any(tmp_path.rglob("*"))
    run(values, rocks, tmp_path)
    for name in FILES:
        (tmp_path / name).with_name("last.ckpt").unlink()
    (tmp_path / FILES[1]).with_name("made_from.txt").unlink()
    before = [(tmp_path / name).stat().st_mtime_ns for name in FILES]
    with pytest.raises(InputError, match="already holds a run"):
        run(values, rocks, tmp_path, resume=True)
    assert [(tmp_path / name).stat().st_mtime_ns for name in FILES] == before


def test_the_last_step_is_validated_where_the_length_is_in_epochs(
    rocks: Path, tmp_path: Path
) -> None:
    values = chain_values(rocks, teachers=[], cross_modal={"keep": "best"})
    del values["distill"]["steps"]
    values["distill"]["epochs"] = 12
    run(values, rocks, tmp_path)
    tuning = load_checkpoint(tmp_path).tuning
    assert tuning["best_step"] == tuning["steps"]


def test_a_teacher_of_other_classes_or_bands_is_refused(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path / "first")
    path = tmp_path / "first" / FILES[0]
    values["teachers"] = [{"name": "geology_fusion", "weights": str(path)}]
    values["sensors"]["spectral"]["bad_bands"] = {"bands": [1, 2]}
    with pytest.raises(CheckpointError, match="sees 24 bands of spectral.*has 22 good ones"):
        run(values, rocks, tmp_path / "bands")
    # as many bands, and others
    values["sensors"]["spectral"]["bad_bands"] = {"bands": [2]}
    values["teachers"][0]["weights"] = "train"
    values["teachers"][0]["sensors"] = ["spectral"]
    run(values, rocks, tmp_path / "second")
    (kept,) = (tmp_path / "second" / "teachers").glob("*/teacher.ckpt")
    values["teachers"] = [{"name": "geology_fusion", "weights": str(kept)}]
    values["sensors"]["spectral"]["bad_bands"] = {"bands": [21]}
    with pytest.raises(CheckpointError, match=r"sees spectral at 460.87 nm in its input 1, and the "
                       r"set has 430.435 nm there: other bands were dropped"):  # fmt: skip
        run(values, rocks, tmp_path / "others")
    values["teachers"] = [{"name": "geology_fusion", "weights": str(path)}]
    values["sensors"]["spectral"]["bad_bands"] = {}
    del values["sensors"]["lidar"]
    with pytest.raises(CheckpointError, match="sees lidar, which recipe"):
        run(values, rocks, tmp_path / "sensors")
    values = chain_values(rocks)
    values["teachers"] = [
        {"name": "geology_fusion", "weights": str(path), "sensors": ["visual", "spectral"]}
    ]
    with pytest.raises(CheckpointError, match=r"sees visual, spectral, lidar, and recipe .* says "
                       r"visual, spectral; write teachers"):  # fmt: skip
        run(values, rocks, tmp_path / "said")
    # one channel either way: nothing but the kind tells a height from a grey value
    values = chain_values(rocks)
    values["sensors"]["lidar"]["kind"] = "image"
    values["teachers"] = [{"name": "geology_fusion", "weights": str(path)}]
    with pytest.raises(CheckpointError, match=r"sees lidar as elevation, .* has it as image"):
        run(values, rocks, tmp_path / "kinds")


@pytest.mark.parametrize("keep", ["last", "best"])
def test_hidden_parts_change_no_weight(rocks: Path, tmp_path: Path, keep: str) -> None:
    """Pixels and labels of test blocks and buffers are other ones: all stays bit for bit.

    Those of validation, too, where they choose nothing.
    """
    rules = {"keep": keep, "val_every_steps": 2 if keep == "best" else 100}
    blocks = {"blocks": {**BLOCKS, "stratified": False}}
    values = chain_values(rocks, blocks, steps=4, cross_modal=rules)
    values["teachers"][0]["whitening"] = "noise"
    if keep == "best":
        del values["teachers"][1]
    run(values, rocks, tmp_path / "plain")
    plain = open_sensor_set(Recipe.model_validate(values), rocks)
    parts = plain.load("one").parts
    hidden = parts > 0 if keep == "last" else parts > 1
    arrays = materials()
    random = np.random.default_rng(1)
    arrays["spectral"][hidden] = random.random((int(hidden.sum()), 24))
    arrays["lidar"][hidden] = 50.0
    arrays["labels"][hidden] = random.choice(
        [1, 4, 7, 255], int(hidden.sum()), p=[0.6, 0.2, 0.1, 0.1]
    )
    spoiled = write_set(tmp_path / "spoiled", {"one": arrays})
    values["data"]["root"] = str(spoiled)
    counts = open_sensor_set(Recipe.model_validate(values), spoiled).label_counts()
    assert counts["test"] != plain.label_counts()["test"]
    assert (counts["val"] != plain.label_counts()["val"]) == (keep == "last")
    run(values, spoiled, tmp_path / "other")
    for name in FILES if keep == "last" else [FILES[0], FILES[2]]:
        files = [tmp_path / which / name for which in ("plain", "other")]
        assert same(*files), name
        ours, theirs = (read_curves(path.with_name("curves.csv")) for path in files)
        assert [row["loss"] for row in ours] == [row["loss"] for row in theirs]
        if keep == "best":
            found, again = (
                [row["val_balanced_accuracy"] for row in rows] for rows in (ours, theirs)
            )
            assert found == again and sum(map(bool, found)) == 2, name


def test_the_best_on_validation_is_kept_where_asked_for(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks, teachers=[], cross_modal={"keep": "best", "val_every_steps": 2})
    run(values, rocks, tmp_path / "best")
    rows = read_curves(tmp_path / "best" / "curves.csv")
    found = {int(row["step"]): float(row["val_balanced_accuracy"]) for row in rows
             if row["val_balanced_accuracy"]}  # fmt: skip
    assert sorted(found) == [2, 4, 6]
    done = load_checkpoint(tmp_path / "best").tuning
    assert done["best_val_balanced_accuracy"] == max(found.values())
    assert found[done["best_step"]] == max(found.values())
    values["data"]["blocks"]["val"] = 0
    with pytest.raises(InputError, match="no validation label"):
        run(values, rocks, tmp_path / "none")


class Watched:
    """Scripted accuracies on validation; averages of the student's weights by their formula.

    Attributes:
        raw, averaged: step -> weights after it.
    """

    def __init__(self, patch: pytest.MonkeyPatch, found: dict[int, float], decay: float) -> None:
        self.raw: dict[int, dict[str, torch.Tensor]] = {}
        self.averaged: dict[int, dict[str, torch.Tensor]] = {}
        start, stepped, validate = SensorTask.begin, SensorTask.stepped, SensorTask.validate

        def begin(task: SensorTask, *args: Any) -> None:
            self.raw[0] = self.averaged[0] = copy.deepcopy(task.learner.state_dict())
            start(task, *args)

        def step(task: SensorTask) -> None:
            stepped(task)
            number = len(self.raw)
            new = self.raw[number] = copy.deepcopy(task.learner.state_dict())
            old, part = self.averaged[number - 1], min(decay, (1 + number) / (10 + number))
            self.averaged[number] = {
                k: old[k] * part + new[k] * (1 - part) if v.is_floating_point() else new[k]
                for k, v in new.items()
            }

        def validated(task: SensorTask, number: int) -> dict[str, float]:
            given = validate(task, number)
            assert alike(task.learner.state_dict(), self.raw[number]), "training goes on with raw"
            return given

        def measured(task: SensorTask, part: str) -> dict[str, float]:
            number = task.keeper.average.updates
            assert part == "val" and alike(task.learner.state_dict(), self.averaged[number])
            return {"balanced_accuracy": found[number]}

        for name, method in (("begin", begin), ("stepped", step), ("validate", validated),
                             ("measured", measured)):  # fmt: skip
            patch.setattr(SensorTask, name, method)


def alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(ours[k], theirs[k], rtol=1e-4, atol=1e-6) for k in theirs)


@pytest.mark.parametrize(("keep", "step"), [("best", 4), ("last", 6)])
def test_averaged_weights_are_measured_and_kept(
    rocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str, step: int
) -> None:
    rules = {"keep": keep, "val_every_steps": 2, "ema": 0.3}
    values = chain_values(rocks, teachers=[], cross_modal=rules)
    seen = Watched(monkeypatch, {2: 0.5, 4: 0.7, 6: 0.7}, 0.3)  # of equal ones the first
    run(values, rocks, tmp_path)
    kept = weights(tmp_path / "best.ckpt")
    assert alike(kept, seen.averaged[step])
    assert not alike(kept, seen.raw[step]) and not alike(kept, seen.averaged[10 - step])
    tuning = load_checkpoint(tmp_path).tuning
    assert tuning.get("best_step") == (4 if keep == "best" else None)
    assert tuning.get("best_val_balanced_accuracy") == (0.7 if keep == "best" else None)


def test_the_best_so_far_outlives_a_stop(
    rocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best is step 2; the run stops at step 5 and goes on from the checkpoint of step 4."""
    values = chain_values(rocks, teachers=[], cross_modal={"keep": "best", "val_every_steps": 2})

    def measured(task: SensorTask, part: str) -> dict[str, float]:
        return {"balanced_accuracy": {2: 0.9, 4: 0.5, 6: 0.6}[task.keeper.average.updates]}

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, text: str) -> None:
        if step == 5:
            raise Stop

    monkeypatch.setattr(SensorTask, "measured", measured)
    run(values, rocks, tmp_path / "whole")
    with pytest.raises(Stop):
        run(values, rocks, tmp_path / "cut", progress=stop)
    run(values, rocks, tmp_path / "cut", resume=True)
    for name in ("whole", "cut"):
        tuning = load_checkpoint(tmp_path / name).tuning
        assert (tuning["best_step"], tuning["best_val_balanced_accuracy"]) == (2, 0.9)
    assert same(tmp_path / "whole" / "best.ckpt", tmp_path / "cut" / "best.ckpt")


def test_stages_change_what_they_name(rocks: Path) -> None:
    values = chain_values(rocks, cross_modal={"trust": 0.3, "augment": {"colour": 0.2}})
    values["teachers"][0]["stage"] = {
        "steps": 9, "lr": 0.1, "cross_modal": {"augment": {"spectral_gain": 0.5}}
    }  # fmt: skip
    recipe = Recipe.model_validate(values)
    assert recipe.distill is not None
    spec = stage_spec(recipe.distill, recipe.teachers[0].stage)
    assert (spec.steps, spec.lr, spec.batch) == (9, 0.1, 2)
    rules = spec.cross_modal
    assert (rules.trust, rules.augment.colour, rules.augment.spectral_gain) == (0.3, 0.2, 0.5)
    assert stage_spec(recipe.distill, None) == recipe.distill


def test_wrong_input_is_one_line(rocks: Path, tmp_path: Path) -> None:
    values = chain_values(rocks)
    values["teachers"][0]["stage"] = {"cross_modal": {"trusts": 1}}
    with pytest.raises(Exception, match="trusts"):
        Recipe.model_validate(values)
    values = chain_values(rocks, teachers=[{"name": "sam", "weights": "train"}])
    with pytest.raises(InputError, match="sees images alone"):
        run(values, rocks, tmp_path)
    values = chain_values(rocks, cross_modal={"label_weight": 0})
    with pytest.raises(InputError, match="learns from labels alone, and .*label_weight is 0"):
        run(values, rocks, tmp_path)
    arrays = materials()
    arrays["labels"][arrays["labels"] == 4] = 255
    path = write_set(tmp_path / "lacking", {"one": {**arrays, "split": "train"}})
    values = chain_values(path)
    del values["data"]["blocks"]
    with pytest.raises(DatasetError, match="not a single training label of basalt"):
        run(values, path, tmp_path / "x")


def test_answers_in_parts_are_those_of_the_whole(
    rocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = chain_values(rocks)
    run(values, rocks, tmp_path)
    teacher = rebuild_teacher(load_teacher(tmp_path / FILES[0]), "x")
    view = open_sensor_set(Recipe.model_validate(values), rocks).training_view("one")
    whole, features = answer(teacher, view, features=True)
    monkeypatch.setattr("edgekd.train.evaluate._ROWS_PX", 300)
    parts, again = answer(teacher, view, features=True)
    assert features is not None and again is not None and features.shape == (48, 60, 256)
    np.testing.assert_allclose(parts, whole, atol=1e-5)


def test_a_student_that_does_not_fit_is_told_before_the_teachers_train(
    rocks: Path, tmp_path: Path
) -> None:
    values = chain_values(rocks)
    values["student"] = {"name": "lite0"}
    with pytest.raises(InputError, match="mean"):
        run(values, rocks, tmp_path)
    assert not (tmp_path / "teachers").exists()
