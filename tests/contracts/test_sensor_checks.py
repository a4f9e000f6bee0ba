"""Values that cannot be what they are said to be are refused before anything is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.sensor_set import open_sensor_set
from edgekd.errors import DatasetError
from tests.helpers.sensors import SPECTRAL, materials, sensor_recipe, write_set

OWN = {"kind": "image", "channels": 3, "gsd_m": 2.0}


def scenes(**changes: Any) -> dict[str, dict[str, np.ndarray]]:
    """Two of them; ``changes`` replace arrays of the second one."""
    first = {**materials(), "split": "train"}
    return {"one": first, "two": {**materials(seed=1), "split": "test", **changes}}


def picture(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.integers(20, 230, (48, 60, 3)).astype(np.uint8)


def with_camera(one: np.ndarray, two: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
    found = scenes()
    for name, pixels in (("one", one), ("two", two)):
        found[name]["visual"] = pixels
        del found[name]["lidar"]
    return found


def test_a_scene_that_stands_twice(tmp_path: Path) -> None:
    same = write_set(tmp_path / "a", scenes(spectral=materials()["spectral"]))
    with pytest.raises(DatasetError, match="scenes one and two of .* have the same values of spec"):
        open_sensor_set(sensor_recipe(), same)
    heights = write_set(tmp_path / "b", scenes(lidar=materials()["lidar"]))
    with pytest.raises(DatasetError, match="have the same values of lidar"):
        open_sensor_set(sensor_recipe(), heights)
    flat = {name: {**item, "lidar": np.zeros((48, 60))} for name, item in scenes().items()}
    assert open_sensor_set(sensor_recipe(), write_set(tmp_path / "c", flat)).scene_ids == [
        "one", "two",
    ]  # fmt: skip


@pytest.mark.parametrize(("factor", "fine"), [(1e4, False), (1e-3, False), (5.0, True)])
def test_scenes_in_several_units(tmp_path: Path, factor: float, fine: bool) -> None:
    path = write_set(tmp_path, scenes(spectral=materials(seed=1)["spectral"] * factor))
    if fine:
        open_sensor_set(sensor_recipe(), path)
        return
    with pytest.raises(DatasetError, match=r"have spectral in several units: .* in .*give a scale"):
        open_sensor_set(sensor_recipe(), path)


def test_values_that_are_no_readings(tmp_path: Path) -> None:
    cube = materials(seed=1)["spectral"]
    cube[7] = 1e30
    path = write_set(tmp_path, scenes(spectral=cube))
    with pytest.raises(DatasetError, match=r"two of .* values of spectral up to 1e\+30, .* nodata"):
        open_sensor_set(sensor_recipe(), path)


@pytest.mark.parametrize(
    ("kind", "factor", "bounds", "words"),
    [
        (np.uint16, 40, [0, 255], "has values from 800 to 9160, of which the range .0, 255. leaves "
         "one grey, 255 to 255"),
        (np.float32, 1 / 255, [0, 255], "leaves one grey, 0 to 1 of 255"),
        (np.uint8, 1, [5000, 9000], "leaves one grey, 0 to 0"),
        (np.uint8, 1, [0, 255], None),
        (np.uint16, 40, [0, 10200], None),
        (np.uint16, 40, None, None),
    ],
)  # fmt: skip
def test_a_range_that_leaves_no_picture(
    tmp_path: Path, kind: type, factor: float, bounds: list[float] | None, words: str | None
) -> None:
    path = write_set(
        tmp_path,
        with_camera(*((picture(seed).astype(float) * factor).astype(kind) for seed in (1, 2))),
    )
    camera = {**OWN, **({"range": bounds} if bounds else {})}
    recipe = sensor_recipe({"spectral": SPECTRAL, "visual": camera})
    if words is None:
        found = open_sensor_set(recipe, path).load("one").visual8
        assert np.abs(found.astype(int) - picture(1)).max() <= (12 if bounds else 40)
        return
    with pytest.raises(DatasetError, match=words):
        open_sensor_set(recipe, path)
