"""A square metre of a map is not one of the ground: areas of pixels in any CRS, or none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.warp
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.crs import CRS

from edgekd.contracts import areas
from edgekd.contracts.areas import EVEN, MOST_UNEVEN, row_areas_m2
from edgekd.contracts.imageio import Raster, gdal_environment
from tests.helpers.rasters import write_raster

LONLAT = CRS.from_epsg(4326)


def placed(
    crs: CRS, lon: float, lat: float, pixel: float, height: int, width: int, turned: float = 0
) -> Affine:
    """The transform of a scene whose middle is there."""
    with gdal_environment():
        (x,), (y,) = rasterio.warp.transform(LONLAT, crs, [lon], [lat])
    middle = Affine.translation(-width / 2, -height / 2)
    return Affine.translation(x, y) * Affine.rotation(turned) * Affine.scale(pixel, -pixel) * middle


def measured(crs: Any, transform: Affine, height: int, width: int) -> np.ndarray | None:
    with gdal_environment() as rasterio_module:
        return row_areas_m2(rasterio_module, CRS.from_user_input(crs), transform, height, width)


def true_area(crs: CRS, transform: Affine, box: tuple[float, float, float, float]) -> float:
    """m² of a box of pixels (y0, x0, y1, x1): its outline on an equal-area map around it."""
    y0, x0, y1, x1 = box
    t = np.linspace(0, 1, 33)[:-1]
    columns = np.concatenate([x0 + t * (x1 - x0), 0 * t + x1, x1 - t * (x1 - x0), 0 * t + x0])
    rows = np.concatenate([0 * t + y0, y0 + t * (y1 - y0), 0 * t + y1, y1 - t * (y1 - y0)])
    x, y = transform * (columns, rows)
    with gdal_environment():
        middle = transform * ((x0 + x1) / 2, (y0 + y1) / 2)
        (lon,), (lat,) = rasterio.warp.transform(crs, LONLAT, [middle[0]], [middle[1]])
        plane = CRS.from_string(f"+proj=laea +lat_0={lat} +lon_0={lon} +datum=WGS84")
        u, v = map(np.array, rasterio.warp.transform(crs, plane, x, y))
    return float(abs((u * np.roll(v, -1) - v * np.roll(u, -1)).sum()) / 2)


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "expected"),
    [
        # 100 m² of the map, m² of the ground; Mercator: cos² of the latitude, and the ellipsoid
        ("EPSG:3832", 150, 60, 25.126),
        ("ESRI:54004", 0, 60, 25.126),
        ("EPSG:3395", 0, 0, 100),
        ("EPSG:3857", 0, 0, 99.331),
        ("EPSG:3994", 100, -65, None),
        ("EPSG:3857", 0, 60, 25.084),
        ("EPSG:3857", 179.9999, 60, 25.084),  # over the antimeridian
        ("ESRI:102113", 0, 60, 25.084),  # the same, on a sphere with WGS 84's latitudes
        ("EPSG:4087", 5, 60, 50.168),  # plate carrée
        ("EPSG:32662", 5, 60, 50.168),
        ("EPSG:3031", 0, -60, 92.004),  # polar stereographic
        ("EPSG:3413", -45, 60, 92.557),
        ("EPSG:3413", 0, 90, 106.312),  # over the pole
        ("EPSG:32631", 9.5, 45, None),  # UTM, beyond its zone
        ("EPSG:6933", 0, 60, 100),
    ],
)
@pytest.mark.parametrize("turned", [0, 33])
def test_100_m2_of_a_map(crs: str, lon: float, lat: float, expected: float | None, turned: float):
    system = CRS.from_user_input(crs)
    for pixel, size in ((10.0, 40), (0.1, 600)):
        transform = placed(system, lon, lat, pixel, size, size, turned)
        found = measured(crs, transform, size, size)
        assert found is not None and found.shape == (size,)
        for row in (0, size // 3, size - 1):
            # an equal-area map of that sphere is another; PROJ 9.1's is coarse at the pole
            if crs != "ESRI:102113" and lat != 90:
                true = true_area(system, transform, (row, 0, row + 1, size)) / size
                assert found[row] == pytest.approx(true, rel=2e-5)
        if expected is not None:
            assert found[size // 2] * (10 / pixel) ** 2 == pytest.approx(expected, rel=2e-4)


@pytest.mark.parametrize(
    ("crs", "lon", "lat", "expected"),
    [
        ("EPSG:32631", 3, 45, 100),
        ("EPSG:32631", 6, 0.5, 100),  # at the edge of its zone
        ("EPSG:32660", 180, 10, 100),
        ("EPSG:2263", -74, 40.7, 100 * 0.3048006096**2),  # US feet
        ("EPSG:2154", 3, 46.5, 100),
        ("EPSG:7415", 5, 52, 100),  # with heights
        ("+proj=utm +zone=31 +ellps=intl +towgs84=-87,-98,-121", 3, 45, 100),
        ("+proj=sinu +R=6371007.181", 40, 60, 100),  # an equal-area map of a sphere
    ],
)
def test_where_the_ground_is_as_declared_every_pixel_is_the_same(
    crs: str, lon: float, lat: float, expected: float
) -> None:
    """To the last digit: 0.2 % is less than anybody asks, and equal rows are counted fast."""
    system = CRS.from_user_input(crs)
    for turned in (0, 20):
        transform = placed(system, lon, lat, 10, 100, 100, turned)
        found = measured(crs, transform, 100, 100)
        assert found is not None and (found == found[0]).all()
        assert found[0] == pytest.approx(expected, rel=1e-9)


def test_degrees_of_other_globes_and_units() -> None:
    degrees, grads = Affine(9, 0, -180, 0, -9, 90), Affine(10, 0, -200, 0, -10, 100)
    for crs, transform, radius, polar in (
        ("EPSG:4326", degrees, 6378137, 6356752.314245),
        ("EPSG:4979", degrees, 6378137, 6356752.314245),
        ("EPSG:4289", degrees, 6377397.155, 6356078.962818),  # Bessel
        ("EPSG:4807", grads, 6378249.2, 6356515),  # Clarke
        ("+proj=longlat +R=1737400", degrees, 1737400, 1737400),  # the Moon
    ):
        e = (1 - (polar / radius) ** 2) ** 0.5
        share = (1 - e * e) * np.arctanh(e) / e if e else 1
        found = measured(crs, transform, 20, 40)
        assert found is not None
        assert found.sum() * 40 == pytest.approx(2 * np.pi * radius**2 * (1 + share), rel=1e-9)


def test_the_world_in_large_pixels() -> None:
    """Rows of a map of the world add up to the Earth, whatever the size of its pixels."""
    half = np.pi * 6378137
    for height in (20, 400, 20_000):
        step = half / height
        transform = Affine(step, 0, -half, 0, -step, half / 2)
        found = measured("EPSG:4087", transform, height, 2 * height)
        assert found is not None
        assert found.sum() * 2 * height == pytest.approx(510_065_621.724e6, rel=1e-4)


TURNED_POLE = "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 +datum=WGS84"


def test_degrees_that_are_turned(tmp_path: Path) -> None:
    """A transform that is not north-up, and a CRS whose pole is elsewhere."""
    step = 1e-4
    across = Affine.translation(10, 60) * Affine.rotation(30) * Affine.scale(step, -step)
    for crs, transform in (
        ("EPSG:4326", across),
        (TURNED_POLE, Affine(step, 0, 4, 0, -step, 6)),
    ):
        found = measured(crs, transform, 50, 50)
        assert found is not None
        true = true_area(CRS.from_user_input(crs), transform, (0, 0, 50, 50))
        assert found.sum() * 50 == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize(
    ("crs", "transform", "shape"),
    [
        ('LOCAL_CS["site",UNIT["metre",1]]', Affine(1, 0, 0, 0, -1, 0), (9, 9)),
        ("EPSG:4978", Affine(1, 0, 0, 0, -1, 0), (9, 9)),  # coordinates in space
        ("EPSG:4326", Affine(1, 0, 0, 0, -1, 95), (9, 9)),  # beyond the pole
        ("EPSG:4326", Affine(1, 0.1, 0, 0.1, -1, 70), (9, 9)),  # 1 % in a row
        ("EPSG:4087", Affine(1e4, 0, 0, 0, -1e4, 1.01e7), (9, 9)),  # beyond the pole
        ("EPSG:3395", Affine(1, 0, 0, 0, -1, 1e9), (9, 9)),  # the pole itself
        ("EPSG:32631", Affine(10, 0, 3e7, 0, -10, 0), (9, 9)),  # nowhere
        ("EPSG:32631", Affine(1e14, 0, 0, 0, -1e14, 0), (9, 9)),
        ("EPSG:32631", Affine(1e-170, 0, 5e5, 0, -1e-170, 5e6), (9, 9)),
        ("EPSG:32631", Affine(1, 2, 5e5, 2, 4, 5e6), (9, 9)),  # a line
        ("ESRI:54009", Affine(1e5, 0, -1.8e7, 0, -1e5, 9e6), (180, 360)),  # corners off the map
        ("EPSG:3031", Affine(1e3, 0, -3e6, 0, -1e3, 3e6), (6000, 6000)),  # 8 % in a row
        ("EPSG:3034", Affine(1e3, 0, 2.5e6, 0, -1e3, 4e6), (3000, 3000)),
        ("+proj=geos +h=35785831 +datum=WGS84", Affine(3e3, 0, -5e6, 0, -3e3, 5e6), (3600, 3600)),
    ],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_area_rather_than_a_wrong_one(
    tmp_path: Path, crs: str, transform: Affine, shape: tuple[int, int]
) -> None:
    image = np.zeros(shape, np.uint8)
    system = CRS.from_user_input(crs)
    path = write_raster(tmp_path / "a.tif", image, crs=system, transform=transform)
    with Raster(path) as raster:
        assert raster.crs is not None
        assert raster.row_areas_m2() is None


@settings(deadline=None, max_examples=60)
@given(
    crs=st.sampled_from(["EPSG:3857", "EPSG:3395", "EPSG:4087", "EPSG:3413", "EPSG:32633"]),
    lon=st.floats(5, 25),
    lat=st.floats(-5, 84),
    pixel=st.sampled_from([0.05, 0.5, 10.0, 300.0]),
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    turned=st.floats(-180, 180),
)
def test_whatever_the_scene_no_pixel_is_far_off(
    crs: str, lon: float, lat: float, pixel: float, height: int, width: int, turned: float
) -> None:
    system = CRS.from_user_input(crs)
    transform = placed(system, lon, lat, pixel, height, width, turned)
    found = measured(crs, transform, height, width)
    if found is None:
        assert max(height, width) * pixel > 5000, "small scenes have areas"
        return
    for row in {0, height // 2, height - 1}:
        for column in {0, width // 2, width - 1}:
            # the area that PROJ sees must not drown in the digits of its coordinates
            size = max(1.0, 20 / pixel)
            y, x = row + 0.5 - size / 2, column + 0.5 - size / 2
            true = true_area(system, transform, (y, x, y + size, x + size)) / size**2
            assert found[row] == pytest.approx(true, rel=MOST_UNEVEN + EVEN + 1e-3)


def test_tall_scenes_cost_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    to_ground = areas._to_ground

    def counted(crs: Any, ground: Any, x: Any, y: Any) -> Any:
        asked.append(x.size)
        return to_ground(crs, ground, x, y)

    monkeypatch.setattr(areas, "_to_ground", counted)
    transform = placed(CRS.from_epsg(3395), 5, 60, 0.1, 40_000, 40_000)
    found = measured("EPSG:3395", transform, 40_000, 40_000)
    assert found is not None and (np.diff(found) > 0).mean() > 0.999
    assert sum(asked) < 40_000, "0.04 s of PROJ"
