"""Polygons of a map: nothing lost, nothing twice, however the rows are cut into blocks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.imageio import Raster
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.runtime.polygons import Outline, write_polygons
from tests.helpers.rasters import smooth_image, write_raster

CLASSES = [ClassSpec(index=i, name=f"c{i}", color="#000000") for i in range(3)]
EXACT = Outline(simplify_px=0, min_area_px=0)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def polygons(
    folder: Path, values: np.ndarray, block: int, outline: Outline = EXACT
) -> list[tuple[int, int, shapely.Polygon]]:
    """(class, pixels, polygon in pixels), of a scene without a CRS."""
    scene = write_raster(folder / "s.tif", smooth_image(*values.shape))
    blocks = ((y, values[y : y + block]) for y in range(0, len(values), block))
    with Raster(scene) as raster:
        count = write_polygons(folder / "p.geojson", blocks, CLASSES, raster, None, outline)
    features = json.loads((folder / "p.geojson").read_text())["features"]
    assert len(features) == count
    return [
        (f["properties"]["class"], f["properties"]["pixels"], shapely.geometry.shape(f["geometry"]))
        for f in features
    ]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), height=st.integers(1, 40), width=st.integers(1, 30),
    block=st.integers(1, 45), grain=st.integers(1, 6),
)  # fmt: skip
def test_blocks_do_not_show(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, block: int,
    grain: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    coarse = rng.choice(np.array([0, 1, 2, MAP_NODATA], np.uint8), (height, width))
    values = np.kron(coarse, np.ones((grain, grain), np.uint8))[:height, :width]
    folder = tmp_path_factory.mktemp("p")
    found = polygons(folder, values, block)
    for index in range(3):
        mine = [(pixels, shape) for at, pixels, shape in found if at == index]
        assert sum(pixels for pixels, _ in mine) == int((values == index).sum())
        assert all(shape.area == pixels for pixels, shape in mine)
    whole = polygons(folder, values, height)
    assert len(found) == len(whole)
    theirs = {(at, shapely.normalize(shape).wkb) for at, _, shape in whole}
    ours = {(at, shapely.normalize(shapely.simplify(shape, 0)).wkb) for at, _, shape in found}
    assert ours == {(at, shapely.normalize(shapely.simplify(shapely.from_wkb(w), 0)).wkb)
                    for at, w in theirs}  # fmt: skip


def test_specks_take_the_class_around_them_also_at_the_edge_of_a_block(tmp_path: Path) -> None:
    values = np.zeros((60, 40), np.uint8)
    values[5, 5] = 1  # inside a block
    values[19:21, 30] = 2  # across two blocks of 20
    values[30:36, 10:16] = 1  # 36 px: stays
    outline = Outline(simplify_px=0, min_area_px=16)
    found = polygons(tmp_path, values, 20, outline)
    assert sorted((at, pixels) for at, pixels, _ in found) == [(0, 60 * 40 - 36), (1, 36)]


def test_a_map_without_a_pixel_of_data(tmp_path: Path) -> None:
    values = np.full((30, 30), MAP_NODATA, np.uint8)
    assert polygons(tmp_path, values, 7) == []
    with rasterio.open(tmp_path / "s.tif") as data, Raster(tmp_path / "s.tif") as raster:
        assert data.count == 3
        blocks = iter([(0, values)])
        assert write_polygons(tmp_path / "p.gpkg", blocks, CLASSES, raster, None, EXACT) == 0
    assert (tmp_path / "p.gpkg").stat().st_size > 0
