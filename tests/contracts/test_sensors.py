"""Sensors of a recipe: every contradiction is a fault of the recipe, with its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgekd.contracts.recipe import Recipe, load_recipe
from edgekd.errors import RecipeError
from tests.helpers.labelled import recipe_values, write_recipe
from tests.helpers.sensors import BLOCKS, NM, sensor_recipe, sensor_values

MS = {"kind": "spectral", "channels": 2, "gsd_m": 2.0,
      "derive": {"from": "spectral", "windows_nm": [[400, 500], [600, 700]]}}  # fmt: skip


def test_a_recipe_with_sensors() -> None:
    recipe = sensor_recipe(data={"blocks": BLOCKS, "labels_per_class": 5, "label_seed": 3})
    assert list(recipe.sensors) == ["spectral", "lidar", "visual"]
    assert recipe.sensors["spectral"].wavelengths() == pytest.approx(NM)
    assert recipe.data.blocks is not None and recipe.data.blocks.val == 1
    assert Recipe.model_validate(recipe.plain()) == recipe, "it travels in checkpoints and bundles"


def put(*place: Any) -> Callable[[dict[str, Any]], None]:
    """Set ``values[a][b]... = value`` for ``put(a, b, ..., value)``."""

    def change(values: dict[str, Any]) -> None:
        for key in place[:-2]:
            values = values[key]
        values[place[-2]] = place[-1]

    return change


def gone(*place: str) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        for key in place[:-1]:
            values = values[key]
        del values[place[-1]]

    return change


SPLIT = {"pattern": "(.*)", "train": ["a"], "val": ["b"], "test": ["c"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (gone("sensors", "visual"), "the camera that the student sees must be named visual, of "
         "kind image with 3 channels; it is not there"),
        (put("sensors", "visual", {"kind": "image", "channels": 1, "gsd_m": 2.0}),
         "it has 1 of image"),
        (put("sensors", "visual", "missing", "allowed"), "missing: allowed is not for visual"),
        (put("sensors", "visual", "derive", "from", "specral"), "from 'specral', no sensor"),
        (put("sensors", "visual", "derive", "bands", [9, 6, 25]), "takes band 25 of spectral"),
        (put("sensors", "visual", "derive", {"from": "lidar", "nm": [600, 500, 400]}),
         "derived by wavelength, and lidar has none"),
        (put("sensors", "visual", "gsd_m", 1.0), "a derived sensor lies on its source's grid"),
        (put("sensors", "visual", "derive", {"from": "spectral", "nm": [1, 2, 3], "bands": [1]}),
         "give one of bands, nm, windows_nm, camera; received bands, nm"),
        (put("sensors", "visual", "derive", "bands", [9, 6]), "channels is 3, and derive makes 2"),
        (put("sensors", "visual", "range", [1, 1]), "low < high"),
        (put("sensors", "lidar", "gamma", 2.2), "range and gamma are of images"),
        (put("sensors", "lidar", "channels", 2), "elevation has one channel, received 2"),
        (put("sensors", "lidar", "wavelengths_nm", [500]), "of spectral sensors, not elev"),
        (gone("sensors", "spectral", "wavelengths_nm"), "a spectral sensor needs wavelengths_nm"),
        (put("sensors", "spectral", "wavelengths_nm", [400, 500]), "2 values and channels is 24"),
        (put("sensors", "spectral", "wavelengths_nm", "first", 1200), "must rise; band 2 has"),
        (put("sensors", "spectral", "bad_bands", {"bands": [25]}), "names band 25, and there"),
        (put("sensors", "spectral", "bad_bands", {"windows_nm": [[900, 800]]}),
         r"a window is \[low, high\] with low < high, received \[900.0, 800.0\]"),
        (put("sensors", "ms", {**MS, "wavelengths_nm": [450, 650]}),
         "wavelengths of a derived sensor follow from its source"),
        (put("sensors", "ms", {**MS, "derive": {"from": "ms", "bands": [1, 2]}}), "in a circle"),
        (put("sensors", "spectral", "missing", "allowed"),
         "visual is derived from spectral, which may be missing .*every scene needs visual"),
        (lambda values: values["sensors"].update(
            ms={**MS, "derive": {"from": "ms2", "bands": [1, 2]}}, ms2={**MS, "missing": "allowed"}
        ), "so ms may be missing as well; say so of ms"),
        (put("sensors", "lidar", "gsd", 1), r"unknown key 'gsd' in sensors.lidar; did you mean"),
        (put("data", {"root": "x", "blocks": BLOCKS, "split": SPLIT}),
         "split puts whole scenes, blocks parts of them; give one"),
        (put("data", "labels_per_class", 0), "greater than or equal to 1"),
        (put("data", "blocks", {**BLOCKS, "side": 3}), "unknown key 'side' in data.blocks"),
    ],
)  # fmt: skip
def test_a_contradiction_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    values = copy.deepcopy(sensor_values(name="rocks"))
    change(values)
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(write_recipe(tmp_path, values))
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith("line ")


def test_blocks_need_sensors(tmp_path: Path) -> None:
    values = recipe_values(data={"root": "x", "blocks": BLOCKS, "labels_per_class": 5})
    with pytest.raises(RecipeError, match="blocks and labels_per_class apply to sensor sets; name"):
        load_recipe(write_recipe(tmp_path, values))
    # a fault of the sensors is not followed by another of the data
    values = sensor_values(data={"blocks": BLOCKS})
    values["sensors"]["lidar"]["kind"] = "height"
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, values))
    assert len(caught.value.problems) == 1
