"""Every recipe and every target: valid, named by its file, usable, and with its commands on top."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from edgekd.cli.main import main
from edgekd.contracts import registry
from edgekd.contracts.labelled import check_same_classes
from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
from edgekd.contracts.recipe import Recipe, data_root, load_recipe, preset_names
from edgekd.contracts.sensor_labelled import is_here, open_data
from edgekd.contracts.series_daily import FEATURES
from edgekd.contracts.target import Target, load_target, target_names
from edgekd.errors import InputError
from edgekd.simulate.coast_places import CLASSES
from edgekd.train.checkpoint import build_student, load_checkpoint
from tests.conftest import ROOT

ALL = sorted((ROOT / "engines").glob("*.yaml"))
PLACES = [path for path in ALL if "\nkind: places\n" in path.read_text()]
RECIPES = [path for path in ALL if path not in PLACES]
TARGETS = sorted((ROOT / "engines" / "targets").glob("*.yaml"))


def build(recipe: Recipe) -> object:
    said = recipe.student
    return build_student(
        said.name,
        len(recipe.io.classes),
        variant=said.variant,
        attention=said.attention,
        head=said.head,
        pretrained=False,
    )


def test_every_file_is_found() -> None:
    assert len(RECIPES) == 6 and len(PLACES) == 1 and len(TARGETS) == 7
    assert sorted(path.stem for path in ALL) == registry.yaml_names(registry.engines_root())
    assert sorted(path.stem for path in TARGETS) == target_names()
    others = {path.name for path in (ROOT / "engines").iterdir()} - {path.name for path in ALL}
    assert others == {
        "targets",
        "coefficients",
    }  # a .yml, or one in a folder, would be tested by nobody


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem and recipe.title
    model = build(recipe)
    spec = recipe.io.inputs[0]
    assert spec.tile_px % model.side_multiple == 0
    assert recipe.finetune.crop_px % model.side_multiple == 0
    assert list(model.mean) == pytest.approx(spec.mean)  # one normalisation in three places
    assert list(model.std) == pytest.approx(spec.std)
    assert spec.channel_count == 3 and recipe.tiling.overlap_px % model.stride == 0
    assert main(["validate", str(path)]) == 0
    assert f"valid recipe '{path.stem}'" in capfd.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_header_says_what_to_type(path: Path) -> None:
    head = path.read_text().split("schema:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    commands = re.findall(r"^#   edgekd +(\w+) +(.*)$", head, re.MULTILINE)
    first_words = [name for name, _ in commands if name != "simulate"]
    recipe = load_recipe(path)
    stages = ["finetune"] if recipe.distill is None else ["distill", "finetune"]
    assert first_words[: len(stages)] == stages and "build" in first_words
    backends = set()
    for name, rest in commands:
        words = rest.split()
        if name in ("distill", "finetune", "build"):
            assert words[0] == f"engines/{path.name}"
        if name == "build":
            assert words[words.index("--target") + 1] in recipe.targets
            backends.add(load_target(words[words.index("--target") + 1]).backend)
        for word in words:
            if word.startswith("runs/"):
                assert word in (f"runs/{recipe.name}", f"runs/{recipe.name}-distill")
            if word.startswith("bundles/"):
                assert word in {f"bundles/{recipe.name}-{target}" for target in recipe.targets}
            if word.startswith("calibration/"):
                assert (ROOT / word).exists()
        assert main([name, "--help"]) == 0
    assert ("finalize" in first_words) == ("trt" in backends)
    # the line "next:" that finetune prints takes the last target
    assert load_target(recipe.targets[-1]).backend == "onnxrt"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_bound_has_its_reason_beside_it(path: Path) -> None:
    lines = path.read_text().splitlines()
    gates = lines.index("gates:")
    for number, line in enumerate(lines[gates + 1 :], start=gates + 1):
        if "atol" in line:
            assert "#" in line or lines[number - 1].strip().startswith("#"), line


def test_the_gates_lie_far_below_what_changes_a_class() -> None:
    for path in RECIPES:
        assert load_recipe(path).gates.onnx_vs_torch.atol <= 1e-3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_data_it_names_fits(path: Path) -> None:
    recipe = load_recipe(path)
    root = data_root(recipe, path)
    if not is_here(root):
        pytest.skip(f"{root.name}: the data of this recipe is not on this machine")
    data = open_data(recipe, root)
    check_same_classes(data.classes, list(recipe.io.classes), path.name)
    names = {split: {item.id for item in data.split(split)} for split in ("train", "val", "test")}
    assert all(names.values())
    assert not names["train"] & names["test"] and not names["val"] & names["test"]
    colors = {item.name: item.color.lower() for item in data.classes}
    assert {item.name: item.color.lower() for item in recipe.io.classes} == colors


def test_the_carried_data_is_used_and_carried() -> None:
    for name in ("canopy", "smoke"):
        path = ROOT / "engines" / f"{name}.yaml"
        root = data_root(load_recipe(path), path)
        assert root.is_relative_to(ROOT) and root.is_dir()


def test_every_student_has_a_recipe() -> None:
    used = {load_recipe(path).student.name for path in RECIPES}
    assert used == set(registry.module_names("edgekd.train.students"))


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.stem)
def test_recipe_of_places(path: Path) -> None:
    recipe = load_any_recipe(path)
    assert isinstance(recipe, PlaceRecipe) and recipe.name == path.stem and recipe.title
    assert recipe.io.series.features == list(FEATURES)
    assert [item.name for item in recipe.io.classes] == list(CLASSES)
    with pytest.raises(InputError, match="recipe of places"):
        load_recipe(path)


def test_every_student_of_places_has_a_recipe() -> None:
    used = {load_any_recipe(path).student.name for path in PLACES}
    assert used == set(registry.module_names("edgekd.train.places.students"))


def test_every_target_is_named_by_a_recipe() -> None:
    assert {name for path in RECIPES for name in load_recipe(path).targets} == set(target_names())


@pytest.mark.parametrize("path", TARGETS, ids=lambda path: path.stem)
def test_target(path: Path) -> None:
    target = load_target(path.stem)
    assert target.name == path.stem and target.title
    assert path.read_text().startswith("# ")
    assert (target.backend == "trt") == (target.compute_capability is not None)
    if target.backend == "trt":
        assert target.arch == "aarch64" and target.compute_capability == "8.7"  # Orin
    if path.stem.startswith("rpi"):
        assert target.arch == "aarch64" and target.threads == 4


def test_target_schema_refuses_a_typing_error() -> None:
    value = yaml.safe_load(TARGETS[0].read_text())
    with pytest.raises(ValueError, match="Extra inputs"):
        Target.model_validate(value | {"memory_gb": 8})


def test_smoke_recipe_tunes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    code = main(
        ["finetune", str(ROOT / "engines" / "smoke.yaml"), "-o", str(tmp_path / "run"),
         "--accelerator", "cpu", "--set", "finetune.steps=2", "--set", "finetune.batch=1",
         "--set", "finetune.val_every_steps=2"]
    )  # fmt: skip
    assert code == 0, capfd.readouterr().err
    checkpoint = load_checkpoint(tmp_path / "run")
    assert checkpoint.student["name"] == "vit_nano" and checkpoint.data["name"] == "neon_canopy"


PRESETS = [(path, name) for path in RECIPES for name in preset_names(path)]


def test_presets_are_found() -> None:
    assert [(path.stem, name) for path, name in PRESETS] == [
        ("geology", "progressive"),
        ("landcover", "tiny"),
        ("landcover", "small-cpu"),
    ]


@pytest.mark.parametrize(("path", "name"), PRESETS, ids=lambda item: getattr(item, "stem", item))
def test_preset(path: Path, name: str) -> None:
    from edgekd.train.distill.methods import mask_cdkd
    from edgekd.train.distill.teaching import build_teachers
    from edgekd.train.teachers._saved import build_teacher as sensor_teacher
    from edgekd.train.teachers._sensors import SensorPlan

    recipe = load_recipe(path, [f"preset={name}"])
    assert recipe.preset == name and recipe.distill is not None
    if recipe.distill.method == "cross_modal":
        for entry in recipe.teachers:
            plans = {
                name: SensorPlan(recipe.sensors[name].kind, recipe.sensors[name].channels)
                for name in entry.sensors or recipe.sensors
            }
            sensor_teacher(entry.name, len(recipe.io.classes), plans, entry.variant)
    else:
        mask_cdkd.build(recipe, build(recipe), build_teachers(recipe, path.parent))
    nothing = {item.weights for item in recipe.teachers} <= {"random", "train"}
    assert nothing, "nothing to download"


def test_landcover_is_the_papers_size() -> None:
    """reference: Mask-CDKD, table of parts, optimiser and schedule."""
    from edgekd.contracts.distill import StagesSpec

    recipe = load_recipe(ROOT / "engines" / "landcover.yaml")
    spec = recipe.distill
    assert spec is not None and spec.method == "mask_cdkd"
    assert (recipe.student.name, recipe.teachers[0].variant) == ("vit_small", "vit_l")
    assert recipe.teachers[0].pairs == [[6, 3], [12, 6], [18, 9]]
    assert (spec.crop_px, spec.batch, spec.epochs, spec.lr) == (1024, 4, 120, 1e-5)
    assert (spec.weight_decay, spec.grad_clip, spec.decay) == (0.01, 1.0, "none")
    assert (spec.mask.kind, spec.mask.ratio, spec.mae.depth) == ("lattice", 0.75, 4)
    assert (spec.adapter.reduction, spec.adapter.multi_scale, spec.adapter.gate) == (
        4, True, "softmax")  # fmt: skip
    assert not spec.detach_teacher and spec.stages == StagesSpec()
    assert spec.stages.early == [0.2, 0.4, 0.4] and spec.stages.late == [0.7, 0.15, 0.15]
    assert (spec.stages.to_middle, spec.stages.to_late) == (0.85, 0.95)
