"""The camera's view of a sensor set: what tuning, evaluation and building get of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd.contracts.blocks import TEST, TRAIN, VAL
from edgekd.contracts.labelled import IGNORE, Sample, open_labelled
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_labelled import SensorLabelledSet, is_here, open_data
from edgekd.errors import DatasetError
from tests.helpers.labelled import make_set
from tests.helpers.sensors import (
    BLOCKS,
    LIDAR,
    SPECTRAL,
    edit_set,
    materials,
    sensor_recipe,
    sensor_values,
    write_set,
)


def test_whole_scenes_are_samples(tmp_path: Path) -> None:
    path = write_set(tmp_path, {"one": {**materials(), "split": "train"},
                                "two": {**materials(seed=1), "split": "test"},
                                "rest": materials(seed=2)})  # fmt: skip
    data = open_data(sensor_recipe(), path)
    assert [(item.id, item.split) for item in data.samples] == [("one", "train"), ("two", "test")]
    assert [item.name for item in data.classes] == ["olivine", "basalt", "quartz"]
    assert isinstance(data, SensorLabelledSet) and data.name == "rocks"
    scene = data.sensor_set.load("two")
    pixels, target = data.load(data.split("test")[0])
    np.testing.assert_array_equal(pixels, scene.visual8)
    np.testing.assert_array_equal(target, scene.target)
    assert pixels.flags.writeable and target.flags.writeable and pixels.flags.c_contiguous
    assert data.size(data.samples[0]) == (48, 60)
    assert data.digest == data.sensor_set.digest


def test_blocks_make_a_sample_of_each_part(tmp_path: Path) -> None:
    data = open_data(sensor_recipe(data={"blocks": BLOCKS}), write_set(tmp_path))
    assert isinstance(data, SensorLabelledSet)
    assert [item.id for item in data.samples] == ["one.train", "one.val", "one.test"]
    scene = data.sensor_set.load("one")
    for name, part, shown in (("train", TRAIN, [TRAIN]), ("val", VAL, [TRAIN, VAL]),
                              ("test", TEST, [0, 1, 2, 3])):  # fmt: skip
        (sample,) = data.split(name)
        pixels, target = data.load(sample)
        np.testing.assert_array_equal(target != IGNORE, scene.parts == part)
        same = (pixels == scene.visual8).all(2)
        visible = np.isin(scene.parts, shown)
        assert same[visible].all()
        if not visible.all():
            assert same[~visible].mean() < 0.2, "hidden pixels hold others"
    with pytest.raises(DatasetError, match="sample x is of no scene"):
        data.load(Sample("x", None, tmp_path))


def test_everything_else_is_opened_as_before(tmp_path: Path) -> None:
    folder = make_set(tmp_path / "rgb")
    assert open_data(sensor_recipe(), folder).digest == open_labelled(folder).digest
    with pytest.raises(DatasetError, match="rgb is no sensor set, and data.labels_per_class of"):
        open_data(sensor_recipe(data={"labels_per_class": 5}), folder)
    to_measure = sensor_recipe(data={"labels_per_class": 5, "blocks": BLOCKS})
    assert open_data(to_measure, folder, training=False).samples
    with pytest.raises(DatasetError, match="does not exist; expected a folder with images"):
        open_data(sensor_recipe(data={"blocks": BLOCKS}), tmp_path / "gone")


def test_a_class_without_a_label_matters_to_training_alone(tmp_path: Path) -> None:
    arrays = materials()
    arrays["labels"][arrays["labels"] == 7] = 1
    path = write_set(tmp_path, {"one": {**arrays, "split": "train"}})
    with pytest.raises(DatasetError, match="not a single training label of quartz"):
        open_data(sensor_recipe(), path)
    assert open_data(sensor_recipe(), path, training=False).samples


def test_a_student_needs_its_camera_alone(tmp_path: Path) -> None:
    """A site that nobody surveyed is measured; training on it is refused as before."""
    bare = {"one": {**materials(), "split": "test"}, "two": {**materials(seed=1), "split": "train"}}
    bare["one"]["visual"] = bare["one"]["spectral"][..., :3]
    for item in bare.values():
        item.pop("lidar")
    camera = {"kind": "image", "channels": 3, "gsd_m": 2.0, "range": [0, 1]}
    bare["two"]["visual"] = bare["two"].pop("spectral")[..., :3]
    bare["one"].pop("spectral")
    few = {"kind": "spectral", "channels": 1, "gsd_m": 2.0,
           "derive": {"from": "spectral", "windows_nm": [[400, 600]]}}  # fmt: skip
    recipe = sensor_recipe({"spectral": SPECTRAL, "lidar": LIDAR, "few": few, "visual": camera})
    path = write_set(tmp_path, bare)
    with pytest.raises(DatasetError, match="scene one has no file of the sensor spectral"):
        open_data(recipe, path)
    data = open_data(recipe, path, training=False)
    (sample,) = data.split("test")
    pixels, target = data.load(sample)
    assert pixels.shape == (48, 60, 3) and (target != IGNORE).any()
    # derived from what is not there, the camera is missing, and that is said
    with pytest.raises(DatasetError, match="scene one has no file of the sensor spectral"):
        open_data(sensor_recipe(), path, training=False)
    # what is there is read as the recipe says, so that the digest stays
    both = {"one": {**materials(), "split": "test"}, "two": {**materials(seed=1), "split": "train"}}
    whole = write_set(tmp_path / "whole", both)
    assert open_data(sensor_recipe(), whole, training=False).digest == open_data(
        sensor_recipe(), whole).digest  # fmt: skip


def test_whether_a_set_is_here(tmp_path: Path) -> None:
    path = write_set(tmp_path / "set")
    assert is_here(path) and is_here(path.parent) and not is_here(tmp_path / "gone")
    (path.parent / "one_lidar.npy").unlink()
    assert is_here(path), "opening it names what lacks"
    for file in path.parent.glob("*.npy"):
        file.unlink()
    assert not is_here(path) and not is_here(path.parent)
    assert is_here(make_set(tmp_path / "rgb"))


def test_the_described_set_on_real_pixels(test_data: Path) -> None:
    """MUUFL Gulfport as ``calibration/muufl_gulfport.yaml`` has it, over all folds."""
    from tests.conftest import ROOT

    sensors = {
        "spectral": {"kind": "spectral", "channels": 64, "gsd_m": 1.0, "bad_bands": {},
                     "wavelengths_nm": {"first": 375, "last": 1050, "count": 64}},
        "lidar": {"kind": "elevation", "channels": 1, "gsd_m": 1.0},
        "visual": {"kind": "image", "channels": 3, "gsd_m": 1.0,
                   "derive": {"from": "spectral", "bands": [28, 18, 8]}},
        "eye": {"kind": "image", "channels": 3, "gsd_m": 1.0,
                "derive": {"from": "spectral", "camera": "cie1931"}},
    }  # fmt: skip
    path = ROOT / "calibration" / "muufl_gulfport.yaml"
    tested = np.zeros((90, 90), dtype=int)
    for fold in range(5):
        blocks = {"side_px": 15, "buffer_px": 3, "folds": 5, "fold": fold}
        values = sensor_values(sensors, {"blocks": blocks})
        values["io"]["classes"] = yaml.safe_load(path.read_text())["classes"]
        data = open_data(Recipe.model_validate(values), path)
        assert isinstance(data, SensorLabelledSet) and not data.sensor_set.simulated
        scene = data.sensor_set.load("gulfport")
        tested += scene.parts == TEST
        counts = data.sensor_set.label_counts()
        assert all(min(counts[part]) > 0 for part in ("train", "val", "test"))
        # even folds of a stratified deal: no class has more than twice its share in the test
        whole = np.bincount(scene.target.ravel(), minlength=5)
        assert (np.array(counts["test"]) < 2 * whole / 5).all()
        low, high = data.sensor_set.ranges["visual"]
        assert 0.05 < low < 0.15 and 0.4 < high < 0.7
        # bands 28, 18, 8 and the standard observer see much the same picture
        pair = [scene.sensors[name].mean(0).ravel() for name in ("visual", "eye")]
        assert np.corrcoef(pair)[0, 1] > 0.97
    assert (tested == 1).all()
    assert [item.name for item in data.classes] == ["roof", "grass", "tree", "shadow", "asphalt"]
    assert np.bincount(scene.target.ravel()).tolist() == [1565, 1938, 1196, 2255, 1146]
    assert scene.valid.all()


def test_a_recipe_with_a_camera_of_its_own_kind_is_refused(tmp_path: Path) -> None:
    path = write_set(tmp_path, {"one": {**materials(), "split": "train"}})
    edit_set(path, lambda values: values["scenes"][0].pop("labels"))
    with pytest.raises(DatasetError, match="not a single training label of olivine, basalt, quar"):
        open_data(sensor_recipe(), path)
