"""Checkpoints: what is refused and how."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError
from edgekd.train.checkpoint import check_matches, load_checkpoint, rebuild, save_checkpoint
from edgekd.train.finetune import finetune
from tests.helpers.labelled import make_set, recipe_values


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    values = recipe_values()
    values["finetune"] |= {"steps": 1, "val_every_steps": 1}
    data = make_set(folder / "data")
    return finetune(Recipe.model_validate(values), data, folder / "run", accelerator="cpu").best


def test_loads_from_the_file_and_from_the_folder(best: Path) -> None:
    a, b = load_checkpoint(best), load_checkpoint(best.parent)
    assert a.student == b.student and a.tuning == b.tuning
    assert a.parsed_recipe("x") == b.parsed_recipe("x")
    model = rebuild(a, "x")
    assert not model.training and model.name == "vit_nano"


@pytest.mark.parametrize("keep", [0, 1, 1000, -1000, -1])
def test_a_cut_file_is_refused(best: Path, tmp_path: Path, keep: int) -> None:
    file = tmp_path / "cut.ckpt"
    file.write_bytes(best.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"cut\.ckpt is damaged or no checkpoint"):
        load_checkpoint(file)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"edgekd_checkpoint": 1, "weights": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_other_files_of_torch_are_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="format mark"):
        load_checkpoint(tmp_path / "foreign.ckpt")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "missing.ckpt")


def test_weights_of_another_student_are_refused(best: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(best)
    del checkpoint.weights[next(iter(checkpoint.weights))]
    save_checkpoint(tmp_path / "lacking.ckpt", checkpoint)
    with pytest.raises(CheckpointError, match="does not hold weights of the student vit_nano"):
        rebuild(load_checkpoint(tmp_path / "lacking.ckpt"), "lacking.ckpt")


@pytest.mark.parametrize(
    ("student", "text"),
    [
        ({"name": "lite0"}, "student vit_nano .* asks for name lite0"),
        ({"name": "vit_nano", "attention": "global"}, "attention windowed.*asks for attention gl"),
        ({"name": "vit_nano", "head": "upernet"}, "head linear.*asks for head upernet"),
    ],
)
def test_checkpoint_must_be_of_the_recipe(best: Path, student: dict, text: str) -> None:
    recipe = Recipe.model_validate(recipe_values(student=student))
    with pytest.raises(CheckpointError, match=text):
        check_matches(load_checkpoint(best), recipe, "best.ckpt")


def test_classes_must_be_those_of_the_recipe(best: Path) -> None:
    values = recipe_values()
    values["io"]["classes"] = [
        *values["io"]["classes"],
        {"index": 2, "name": "x", "color": "#000000"},
    ]
    with pytest.raises(CheckpointError, match="tuned for the classes"):
        check_matches(load_checkpoint(best), Recipe.model_validate(values), "best.ckpt")


def test_normalisation_must_be_that_of_the_weights(best: Path) -> None:
    values = recipe_values()
    values["io"]["inputs"][0]["mean"] = [0, 0, 0]
    with pytest.raises(CheckpointError, match=r"tuned with io\.inputs\[0\]\.mean \[127"):
        check_matches(load_checkpoint(best), Recipe.model_validate(values), "best.ckpt")
