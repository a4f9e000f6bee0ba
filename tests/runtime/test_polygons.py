"""Polygons of a map: nothing lost, nothing twice, however the rows are cut into blocks."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.control
import rasterio.crs
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.imageio import Raster
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.errors import EnvironmentLacksError, ImageError, InputError
from edgekd.runtime import outlines
from edgekd.runtime import polygons as writing
from edgekd.runtime.polygons import Outline, require_polygon_place, write_polygons
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


def noise(height: int, width: int, seed: int, grain: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = -(-height // grain), -(-width // grain)
    coarse = rng.choice(np.array([0, 0, 0, 1, 2, MAP_NODATA], np.uint8), shape)
    return np.kron(coarse, np.ones((grain, grain), np.uint8))[:height, :width]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31), height=st.integers(20, 90), width=st.integers(1, 30),
    block=st.integers(1, 45), grain=st.integers(1, 4), corners=st.sampled_from([30, 10**6]),
)  # fmt: skip
def test_only_what_is_large_is_cut_and_nothing_is_lost(
    tmp_path_factory: pytest.TempPathFactory, seed: int, height: int, width: int, block: int,
    grain: int, corners: int,
) -> None:  # fmt: skip
    values, folder = noise(height, width, seed, grain), tmp_path_factory.mktemp("p")
    whole = polygons(folder, values, height)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outlines, "CUT_ROWS", 16)
        patch.setattr(outlines, "CUT_CORNERS", corners)
        found = polygons(folder, values, block)
    ends = {*range(0, height, block), *range(0, height, 16), height}
    allowed = ends if corners == 30 else {*range(0, height, 16), height}
    for index in range(3):
        mine = [(pixels, shape) for at, pixels, shape in found if at == index]
        theirs = [shape for at, _, shape in whole if at == index]
        assert sum(pixels for pixels, _ in mine) == int((values == index).sum())
        assert all(shape.is_valid and shape.area == pixels for pixels, shape in mine)
        assert shapely.union_all([shape for _, shape in mine]).equals(shapely.union_all(theirs))
        uncut = {shapely.normalize(shapely.simplify(s, 0)).wkb for _, s in mine}
        for shape in theirs:
            _, top, _, bottom = shape.bounds
            if bottom - top < 16 and corners > 30:
                assert shapely.normalize(shapely.simplify(shape, 0)).wkb in uncut
        was = {shapely.normalize(shapely.simplify(s, 0)).wkb for s in theirs}
        for _, shape in mine:
            _, top, _, bottom = shape.bounds
            assert bottom - top < 32
            if shapely.normalize(shapely.simplify(shape, 0)).wkb not in was:
                assert any(top <= line <= bottom for line in allowed)


def test_what_a_cut_leaves_is_kept_however_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlines, "CUT_ROWS", 32)
    values = np.zeros((65, 10), np.uint8)
    values[64, :] = 1
    values[64, 4] = 0  # one pixel goes on below the cut
    found = polygons(tmp_path, values, 16, Outline(simplify_px=0, min_area_px=0))
    assert (0, 1) in [(at, pixels) for at, pixels, _ in found]
    values[64, :] = MAP_NODATA
    values[64, 4] = 0
    found = polygons(tmp_path, values, 16, Outline(simplify_px=0, min_area_px=16))
    assert sorted(pixels for _, pixels, _ in found) == [1, 320, 320]


def test_a_part_is_united_once_and_little_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outlines, "CUT_ROWS", 64)
    monkeypatch.setattr(writing, "_BATCH", 50)
    united, batches = [], []
    union, add = shapely.union_all, writing._GeoJSON.add

    def counted(parts: Any) -> Any:
        united.append(sum(len(shapely.get_rings(part)) for part in parts))
        return union(parts)

    def noted(self: Any, geometries: Any, fields: Any) -> None:
        batches.append(len(fields))
        add(self, geometries, fields)

    monkeypatch.setattr(shapely, "union_all", counted)
    monkeypatch.setattr(writing._GeoJSON, "add", noted)
    total = {}
    for height in (640, 1280):
        united.clear()
        batches.clear()
        found = polygons(tmp_path, noise(height, 40, 5, 2), 16)
        total[height] = sum(united)
        assert sum(batches) == len(found) and max(batches) < 400
        assert max(united) < 900  # two stretches of rows, not the scene
    assert 1.8 < total[1280] / total[640] < 2.2


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_batches_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    values = noise(200, 60, 7, 3)
    scene = write_raster(tmp_path / "s.tif", smooth_image(200, 60), crs="EPSG:32617",
                         transform=rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6))  # fmt: skip
    path = tmp_path / f"p.{kind}"

    def written() -> tuple[bytes, list[dict[str, Any]]]:
        blocks = ((y, values[y : y + 16]) for y in range(0, 200, 16))
        with Raster(scene) as raster:
            areas = raster.row_areas_m2()
            count = write_polygons(path, blocks, CLASSES, raster, areas, EXACT)
        _, _, geometries, columns = pyogrio.raw.read(path)
        rows = [repr(row) for row in zip(geometries, *columns, strict=True)]
        assert len(rows) == count == pyogrio.read_info(path, force_feature_count=True)["features"]
        assert sum(columns[3]) == pytest.approx(0.25 * (values != MAP_NODATA).sum())
        return path.read_bytes(), rows

    once = written()
    monkeypatch.setattr(writing, "_BATCH", 100)
    twice = written()
    assert twice == written() and twice[1] == once[1]
    if kind == "geojson":
        assert twice == once
        assert "4096 rows" in json.loads(path.read_text())["EDGEKD_CUT"]
    else:
        assert "4096 rows" in pyogrio.read_info(path)["layer_metadata"]["EDGEKD_CUT"]


def test_many_holes_are_simplified_as_few_are() -> None:
    values = (np.random.default_rng(3).random((300, 300)) > 0.3).astype(np.uint8)
    traced = outlines._trace(shapely, outlines._sieve(None, values, None, 4), 7)
    exact = traced.polygons[np.argmax(shapely.area(traced.polygons))]
    assert shapely.get_num_interior_rings(exact) > 1000
    for tolerance in (0.5, 1.0, 3.0):
        ours = outlines.simplify_by_ring(exact, tolerance)
        theirs = shapely.simplify(exact, tolerance)
        assert ours.is_valid
        off, allowed = (
            shapely.hausdorff_distance(shapely.get_rings(shape), shapely.get_rings(exact)).max()
            for shape in (ours, theirs)
        )
        assert off <= allowed
        assert shapely.get_num_coordinates(ours) < 1.1 * shapely.get_num_coordinates(theirs)
        assert ours.area == pytest.approx(theirs.area, rel=0.01)
    assert (outlines._simplified(shapely, np.array([exact]), 20.0)[0]).is_valid


def test_gaps_between_neighbours_are_those_of_the_tolerance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = noise(256, 120, 11, 8)
    values[values == MAP_NODATA] = 0

    def off() -> float:
        found = [shape for *_, shape in polygons(tmp_path, values, 32, Outline(1.0, 0))]
        covered = shapely.union_all(found).area
        return float(values.size - covered + sum(shape.area for shape in found) - covered)

    whole = off()
    monkeypatch.setattr(outlines, "CUT_ROWS", 64)
    assert off() <= whole + 3 * 120  # three cuts, a pixel at most


def test_places_need_their_libraries_and_longitudes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(missing: str) -> Any:
        def require(module: str, *rest: str) -> Any:
            if module == missing:
                raise EnvironmentLacksError(module)
            return __import__(module)

        return require

    local = rasterio.crs.CRS.from_wkt('LOCAL_CS["a",UNIT["metre",1]]')
    scene = write_raster(tmp_path / "s.tif", smooth_image(20, 20))
    with Raster(scene) as raster:
        require_polygon_place(tmp_path / "p.geojson", raster)
        raster.crs = local
        require_polygon_place(tmp_path / "p.gpkg", raster)
        with pytest.raises(ImageError, match=r"s\.tif"):
            require_polygon_place(tmp_path / "p.geojson", raster)
        monkeypatch.setattr(writing, "require", fail("pyogrio"))
        raster.crs = None
        require_polygon_place(tmp_path / "p.geojson", raster)
        with pytest.raises(EnvironmentLacksError, match="pyogrio"):
            require_polygon_place(tmp_path / "p.gpkg", raster)
        monkeypatch.setattr(writing, "require", fail("shapely"))
        with pytest.raises(EnvironmentLacksError, match="shapely"):
            require_polygon_place(tmp_path / "p.geojson", raster)


def test_a_scene_whose_corners_lie_beside_the_earth_has_longitudes(tmp_path: Path) -> None:
    geos = rasterio.crs.CRS.from_proj4("+proj=geos +h=35785831 +lon_0=0 +units=m")
    step = rasterio.Affine(275e3, 0, -5.5e6, 0, -275e3, 5.5e6)
    scene = write_raster(tmp_path / "s.tif", smooth_image(40, 40), crs=geos, transform=step)
    with Raster(scene) as raster:
        require_polygon_place(tmp_path / "p.geojson", raster)


def test_the_date_of_writing_is_ours_alone_while_we_write() -> None:
    option = "OGR_CURRENT_DATE"
    inside, go = threading.Event(), threading.Event()
    seen: list[str | None] = []

    def one() -> None:
        with writing._constant_date(pyogrio):
            inside.set()
            go.wait(10)
            seen.append(pyogrio.get_gdal_config_option(option))

    def other() -> None:
        inside.wait(10)
        with writing._constant_date(pyogrio):
            pass
        seen.append("out")

    threads = [threading.Thread(target=one), threading.Thread(target=other)]
    pyogrio.set_gdal_config_options({option: "2001-01-01T00:00:00.000Z"})
    try:
        for thread in threads:
            thread.start()
        threads[1].join(0.3)
        assert seen == []  # waits
        go.set()
        for thread in threads:
            thread.join(10)
        assert sorted(map(str, seen)) == ["1970-01-01T00:00:00.000Z", "out"]
        assert pyogrio.get_gdal_config_option(option) == "2001-01-01T00:00:00.000Z"
    finally:
        pyogrio.set_gdal_config_options({option: None})


@pytest.mark.parametrize("size", [0, 1, 2, 3, 16, 100_000])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 2), (4, 4), (1, 700), (600, 1)])
def test_a_scene_that_is_smaller_than_the_least_area(
    tmp_path: Path, size: int, height: int, width: int
) -> None:
    scene = write_raster(tmp_path / "in.tif", smooth_image(height, width), crs="EPSG:32617",
                         transform=rasterio.Affine(1, 0, 5e5, 0, -1, 4e6))  # fmt: skip
    values = np.zeros((height, width), np.uint8)
    with Raster(scene) as raster:
        for name in ("p.gpkg", "p.geojson"):
            count = write_polygons(
                tmp_path / name, [(0, values)], CLASSES, raster, None,
                Outline(simplify_px=0, min_area_px=size),
            )  # fmt: skip
            assert count == (1 if size <= height * width else 0)


@pytest.mark.parametrize(
    "numbers", [{"simplify_px": np.nan}, {"simplify_px": np.inf}, {"min_area_px": -1}]
)
def test_outlines_that_are_none(numbers: dict[str, float]) -> None:
    with pytest.raises(InputError, match="expected numbers of pixels from 0 on"):
        Outline(**numbers)  # type: ignore[arg-type]


def test_places_that_polygons_cannot_have_are_told_before(tmp_path: Path) -> None:
    point = rasterio.control.GroundControlPoint
    gcps = [point(0, 0, 10, 50), point(0, 20, 11, 50), point(20, 0, 10, 49)]
    path = write_raster(tmp_path / "g.tif", smooth_image(20, 20), gcps=gcps, crs="EPSG:4326")
    with Raster(path) as raster:
        for name in ("p.gpkg", "p.geojson"):
            with pytest.raises(ImageError, match="control points alone"):
                require_polygon_place(tmp_path / name, raster)
    path = write_raster(
        tmp_path / "w.tif", smooth_image(20, 20), transform=rasterio.Affine(10, 0, 5e5, 0, -10, 6e6)
    )
    with Raster(path) as raster:
        require_polygon_place(tmp_path / "p.gpkg", raster)
        with pytest.raises(ImageError, match="a place without a CRS"):
            require_polygon_place(tmp_path / "p.geojson", raster)
