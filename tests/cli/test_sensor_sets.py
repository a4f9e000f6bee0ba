"""``validate``, ``inspect``, ``finetune`` and ``eval`` on a sensor set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from edgekd.cli._common import open_images
from edgekd.cli.main import main
from edgekd.contracts.recipe import load_recipe
from tests.helpers.labelled import make_set, write_recipe
from tests.helpers.sensors import (
    BLOCKS,
    chain_values,
    edit_set,
    materials,
    sensor_values,
    write_set,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A blocked set with a recipe, in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "set")
    values = sensor_values(data={"blocks": BLOCKS, "labels_per_class": 20}, name="rocks")
    values["finetune"] |= {"steps": 2, "val_every_steps": 1, "crop_px": 64}
    write_recipe(tmp_path, values)
    return tmp_path


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(command: str, code: int = 0) -> str:
        found = main(command.split())
        out, err = capfd.readouterr()
        assert found == code, err
        return out if code == 0 else err

    return run


def test_the_description_of_a_set_alone(here: Path, told: Any) -> None:
    for place in ("set", "set/sensors.yaml"):
        said = told(f"validate {place}")
        assert "valid description of sensor set 'rocks'" in said and "its files are there" in said
        assert f"edgekd validate RECIPE --set data.root={place}" in said
    value = json.loads(told("validate set --json"))["results"][0]
    assert value["kind"] == "sensor set" and value["valid"]
    next((here / "set").glob("*.npy")).unlink()
    assert "names files that do not exist" in told("validate set", 2)


def test_weights_that_are_not_here_are_told(here: Path, told: Any) -> None:
    values = chain_values(here / "set")
    values["teachers"] = [{"name": "geology_fusion", "weights": "gone.ckpt"}]
    write_recipe(here, values | {"name": "chain"})
    assert f"teachers[0].weights: {here / 'gone.ckpt'} is not on this machine" in told(
        "validate chain.yaml"
    )


def test_what_a_chain_leaves_is_shown_and_measured(here: Path, told: Any) -> None:
    values = chain_values(here / "set", cross_modal={"keep": "best", "val_every_steps": 3})
    write_recipe(here, values | {"name": "chain"})
    told("distill chain.yaml -o run --accelerator cpu")
    (teacher,) = (here / "run" / "teachers").glob("2-*")
    for place in (teacher, teacher / "teacher.ckpt"):
        said = told(f"inspect {place}").splitlines()
        assert said[0] == "teacher of recipe 'chain'" and "pixel" in said[1]
        assert said[1].endswith("sees visual (3 bands), few (3 bands)")
        assert said[2].startswith("distilled on rocks, 6 steps, taught by a teacher of other")
        assert len(said) == 3, "no power is declared"
        value = json.loads(told(f"eval {place} --data set --json"))
        assert value["what"] == "teacher" and 0 <= value["balanced_accuracy"] <= 1
    said = told("inspect run").splitlines()
    assert "options variant nano, pretrained False)" in said[1]
    assert "taught by a teacher of other sensors; validation balanced accuracy" in said[2]
    assert json.loads(told("eval run --data set --json"))["balanced_accuracy"] >= 0
    # a set with splits of its own is measured by them, whatever blocks the recipe cut its own into
    whole = {
        name: {**materials(seed=4 + n), "split": name} for n, name in enumerate(("train", "test"))
    }
    write_set(here / "elsewhere", whole, simulated=False)
    for place in ("run", str(teacher)):
        value = json.loads(told(f"eval {place} --data elsewhere --json"))
        assert value["samples"] == 1 and value["simulated"] is False
        assert "SIMULATED: the set was computed" in told(f"eval {place} --data set")
        assert "SIMULATED" not in told(f"eval {place} --data elsewhere")
    make_set(here / "pictures")  # blocks are of the set that it learnt from, and are not asked for
    assert "classes" in told("eval run --data pictures", 2)


def test_scenes_without_a_sensor_of_the_teacher_are_named(here: Path, told: Any) -> None:
    values = chain_values(here / "set")
    values["sensors"]["lidar"]["missing"] = "allowed"
    write_recipe(here, values | {"name": "chain"})
    told("distill chain.yaml -o run --accelerator cpu")
    (teacher,) = (here / "run" / "teachers").glob("1-*")
    scenes = {name: {**materials(seed=n), "split": "test"} for n, name in enumerate("abcdefg")}
    for name in "bcdefg":
        del scenes[name]["lidar"]
    write_set(here / "site", {**scenes, "t": {**materials(seed=9), "split": "train"}})
    value = json.loads(told(f"eval {teacher} --data site --json"))
    assert value["lacking"] == {"lidar": list("bcdefg")} and value["samples"] == 7
    said = told(f"eval {teacher} --data site")
    assert "without lidar, which this teacher sees: b, c, d, e and 2 more, 6 of 7 scenes" in said
    assert json.loads(told(f"eval {teacher} --data set --json"))["lacking"] == {}


def test_calibration_takes_a_sensor_set(here: Path, told: Any) -> None:
    """Of a folder with images and of a set of sensors alike; its own splits count."""
    values = sensor_values(data={"blocks": BLOCKS, "labels_per_class": 20}, name="rocks")
    values["calibration"] = {"set": "other", "tiles": 2}
    path = write_recipe(here, values)
    parts = {"a": "train", "b": "train", "c": "val"}
    write_set(
        here / "other",
        {name: {**materials(seed=n), "split": parts[name]} for n, name in enumerate(parts)},
    )
    images = open_images(load_recipe(path), path, None, None)
    assert images.calibration is not None and images.data is not None
    assert images.calibration.root == here / "other" / "sensors.yaml"
    assert {item.id: item.split for item in images.calibration.samples} == parts
    pixels, _ = images.calibration.load(images.calibration.samples[0])
    assert pixels.dtype == np.uint8 and pixels.shape == (48, 60, 3)
    make_set(here / "pictures", count=2)
    values["calibration"]["set"] = "pictures"
    path = write_recipe(here, values)
    found = open_images(load_recipe(path), path, None, None).calibration
    assert found is not None and {item.id for item in found.samples} == {"t0", "t1", "v0", "e0"}


def test_inspect_shows_the_files(here: Path, told: Any) -> None:
    lines = told("inspect set").splitlines()
    assert lines[0] == "sensor set rocks: no title (SIMULATED, not measured)"
    assert [line.split() for line in lines[4:7]][1][:4] == ["one", "spectral", "24", "60x48"]
    assert lines[-1] == "as a recipe sees it: edgekd inspect set --recipe RECIPE"
    value = json.loads(told("inspect set/sensors.yaml --json"))
    assert value["simulated"] is True and value["scenes"][0]["sensors"]["lidar"]["bands"] == 1
    assert value["labels"]["quartz"]["no split"] > 0


def test_inspect_shows_what_a_recipe_makes_of_it(here: Path, told: Any) -> None:
    text = told("inspect set --recipe rocks.yaml --set data.blocks.fold=2")
    assert "visual (from spectral)" in text and "400-1100 nm" in text
    assert "fold 2 of 4" in text and "SIMULATED: this set was computed" in text
    value = json.loads(told("inspect set --recipe rocks.yaml --json"))
    assert [row["train"] for row in value["labels"].values()] == [20, 20, 20]
    assert value["dropped"] == {"spectral": []} and len(value["sha256"]) == 64
    parts = value["scenes"][0]["parts_px"]
    assert sum(parts.values()) == 48 * 60 and min(parts.values()) > 0


def test_validate_opens_the_set(here: Path, told: Any) -> None:
    text = told("validate rocks.yaml")
    assert "valid recipe 'rocks'" in text
    assert "  sensor lidar: elevation, 1 channel, 2 m\n" in text
    assert "  sensor visual: image, 3 channels, 2 m, from spectral\n" in text
    assert "  data: rocks, 1 scene, labels: train 60, val " in text
    assert "  spectral: 24 of 24 bands left, 0 dropped\n" in text
    (value,) = json.loads(told("validate rocks.yaml --json"))["results"]
    assert value["valid"] and any("fold 0 of 4" in line for line in value["data"])
    edit_set(here / "set" / "sensors.yaml", lambda v: v["classes"][0].update(name="garnet"))
    assert "1 garnet" in told("validate rocks.yaml", code=2)
    for file in (here / "set").glob("*.npy"):
        file.unlink()
    assert "set is not on this machine, so it was not looked at" in told("validate rocks.yaml")


def test_validate_without_the_library_checks_the_recipe_alone(
    here: Path, told: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.contracts import sensor_set
    from edgekd.errors import EnvironmentLacksError

    def lacks(*_: Any, **__: Any) -> None:
        raise EnvironmentLacksError("scipy is not installed")

    monkeypatch.setattr(sensor_set, "open_sensor_set", lacks)
    assert "data: not looked at: scipy is not installed" in told("validate rocks.yaml")


def test_unknown_keys_in_named_places_are_named(here: Path, told: Any) -> None:
    values = yaml.safe_load((here / "rocks.yaml").read_text())
    values["sensors"]["lidar"]["gsd"] = 1
    (here / "rocks.yaml").write_text(yaml.safe_dump(values))
    assert "unknown key 'gsd' in sensors.lidar; did you mean 'gsd_m'" in told(
        "validate rocks.yaml", code=2
    )


def test_tuning_and_evaluation_take_a_sensor_set_as_any_other(here: Path, told: Any) -> None:
    torch.set_num_threads(1)
    made = json.loads(told("finetune rocks.yaml --accelerator cpu -o run --json"))
    assert made["steps_done"] == 2 and Path(made["checkpoint"]).is_file()
    found = json.loads(told("eval run --data set --split test --json"))
    parts = json.loads(told("inspect set --recipe rocks.yaml --json"))
    assert found["pixels"] == parts["scenes"][0]["parts_px"]["test"]
    assert found["data_sha256"] == parts["sha256"] and found["samples"] == 1
