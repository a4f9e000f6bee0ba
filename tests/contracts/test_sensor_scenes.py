"""One grid, one size of a pixel, the recipe's wavelengths: georeferenced files of a scene."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from spectral.io import envi

from edgekd.contracts.sensor_scenes import RawScene, shared_notes
from edgekd.contracts.sensor_set import SensorSet, open_sensor_set
from edgekd.errors import DatasetError, ImageError
from tests.helpers.rasters import write_raster
from tests.helpers.sensors import (
    LIDAR,
    NM,
    SPECTRAL,
    VISUAL,
    edit_set,
    materials,
    sensor_recipe,
    write_set,
)

UTM = rasterio.crs.CRS.from_epsg(32611)
PLACE = rasterio.transform.from_origin(580000, 4150000, 2.0, 2.0)
ON_GRID = {"crs": UTM, "transform": PLACE}
HEADER = {
    "wavelength": list(NM), "wavelength units": "Nanometers",
    "map info": ["UTM", 1, 1, 580000, 4150000, 2, 2, 11, "North", "WGS-84"],
}  # fmt: skip


def georeferenced(
    folder: Path,
    header: dict[str, Any] | None = None,
    lidar: dict[str, Any] | None = None,
    labels: dict[str, Any] | None = None,
) -> Path:
    """The usual scene as ENVI, GeoTIFF and GeoTIFF on one grid, but for what is given."""
    arrays = materials()
    path = write_set(folder, {"one": {**arrays, "split": "train"}})
    envi.save_image(
        str(folder / "cube.hdr"), arrays["spectral"], metadata={**HEADER, **(header or {})},
        force=True,
    )  # fmt: skip
    write_raster(folder / "dsm.tif", arrays["lidar"], **{**ON_GRID, **(lidar or {})})
    write_raster(folder / "labels.tif", arrays["labels"], **{**ON_GRID, **(labels or {})})

    def rename(values: dict[str, Any]) -> None:
        scene = values["scenes"][0]
        scene["files"] = {"spectral": {"file": "cube.hdr"}, "lidar": {"file": "dsm.tif"}}
        scene["labels"] = {"file": "labels.tif"}

    edit_set(path, rename)
    return path


def opened(path: Path, **changes: Any) -> SensorSet:
    base = copy.deepcopy({"spectral": SPECTRAL, "lidar": LIDAR, "visual": VISUAL})
    for name, values in changes.items():
        base[name] = {**base[name], **values}
    return open_sensor_set(sensor_recipe(base), path)


def test_a_scene_of_four_kinds_of_files_on_one_grid(tmp_path: Path) -> None:
    found = opened(georeferenced(tmp_path))
    scene = found.load("one")
    assert scene.crs == UTM and scene.transform.almost_equals(PLACE, 1e-6)
    arrays = materials()
    np.testing.assert_array_equal(scene.sensors["spectral"], arrays["spectral"].transpose(2, 0, 1))
    np.testing.assert_array_equal(scene.sensors["lidar"][0], arrays["lidar"])
    assert not [line for line in found.report if "georeference" in line or "stands as" in line]
    names = [path.name for path in (tmp_path / "cube.hdr", tmp_path / "cube.img")]
    assert all((tmp_path / name).is_file() for name in names)
    before = found.digest
    with (tmp_path / "cube.img").open("r+b") as stream:  # the pixels count, not the header alone
        stream.write(b"\0\0\0\0")
    assert opened(tmp_path / "sensors.yaml").digest != before


def moved(x_m: float, y_m: float, size_m: float = 2.0) -> dict[str, Any]:
    return {
        "transform": rasterio.transform.from_origin(580000 + x_m, 4150000 + y_m, size_m, size_m)
    }


@pytest.mark.parametrize("kind", ["lidar", "labels"])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (moved(0.21, 0), r"lies 0.1[01] px beside that of .*cube.hdr, allowed are 0.1; .*gdalwarp"),
        (moved(0, -12), r"lies 6.00 px beside"),
        (moved(0, 0, 2.01), r"lies 0.30 px beside"),
        ({"crs": rasterio.crs.CRS.from_epsg(32612)}, "the CRS EPSG:32612, and .* EPSG:32611"),
    ],
)
def test_another_grid_is_refused(
    tmp_path: Path, kind: str, options: dict[str, Any], words: str
) -> None:
    file = {"lidar": "dsm.tif", "labels": "labels.tif"}[kind]
    with pytest.raises(DatasetError, match=rf"scene one: .*{file}.*{words}"):
        opened(georeferenced(tmp_path, **{kind: options}))


def test_a_tenth_of_a_pixel_is_the_same_grid(tmp_path: Path) -> None:
    opened(georeferenced(tmp_path, lidar=moved(0.19, -0.19), labels=moved(0.1, 0)))


def test_without_a_georeference_only_the_size_is_compared_and_that_is_told(tmp_path: Path) -> None:
    found = opened(georeferenced(tmp_path, lidar={"crs": None, "transform": None}))
    assert (
        "one: dsm.tif has no georeference, so of its grid only the size could be compared"
        in found.report
    )
    path = georeferenced(tmp_path / "b", {"map info": ["Arbitrary", 1, 1, 0, 0, 2, 2]},
                         lidar={"crs": None, "transform": None}, labels={"crs": None,
                         "transform": None})  # fmt: skip
    told = opened(path).report
    assert any("its map info names 'Arbitrary'" in line for line in told)
    assert any("gsd_m 2 of spectral stands as declared" in line for line in told)


@pytest.mark.parametrize(
    ("gsd", "fits"), [(2.0, True), (2.019, True), (2.03, False), (1.9, False), (1.0, False)]
)
def test_the_size_of_a_pixel_is_compared_with_the_recipe(
    tmp_path: Path, gsd: float, fits: bool
) -> None:
    changes = {name: {"gsd_m": gsd} for name in ("spectral", "lidar", "visual")}
    path = georeferenced(tmp_path)
    if fits:
        opened(path, **changes)
        return
    with pytest.raises(DatasetError, match=rf"cube.hdr have 2(\.00\d)? m on the ground, and "
                       rf"sensors.spectral.gsd_m of the recipe is {gsd:g}; correct"):  # fmt: skip
        opened(path, **changes)


def test_the_size_is_that_on_the_ground(tmp_path: Path) -> None:
    """At 60 degrees north a pixel of 4 m of Web Mercator has 2 m of ground."""
    from rasterio.warp import transform

    x, y = transform("EPSG:4326", "EPSG:3857", [10], [60])
    place = {"crs": rasterio.crs.CRS.from_epsg(3857),
             "transform": rasterio.transform.from_origin(x[0], y[0], 4.0, 4.0)}  # fmt: skip
    path = georeferenced(tmp_path, lidar=place, labels=place)
    header = (tmp_path / "cube.hdr").read_text()
    lines = [line for line in header.splitlines() if not line.startswith("map info")]
    (tmp_path / "cube.hdr").write_text("\n".join(lines))
    opened(path)
    with pytest.raises(DatasetError, match=r"dsm.tif have (2.00\d|1.99\d|2) m on the ground"):
        opened(path, **{name: {"gsd_m": 4.0} for name in ("spectral", "lidar", "visual")})


SPACING = float(NM[1] - NM[0])


@pytest.mark.parametrize(
    ("wavelengths", "words"),
    [
        (NM + 0.49 * SPACING, ""),
        (NM + 0.52 * SPACING, r"cube.hdr: band 1 has 415.8 nm, and sensors.spectral.wavelengths_nm "
         r"of the recipe 400.0 nm, more than half a band \(15.2 nm\) away \(24 of 24 bands are\)"),
        (NM + 20 * (np.arange(24) == 5), r"band 6 has 572.2 nm, .*\(1 of 24 bands are\)"),
        (NM[::-1], r"wavelengths must rise, and band 2 has 1069.57 nm after 1100 nm; sort"),
        (NM - SPACING * (np.arange(24) == 5), "wavelengths must rise, and band 6"),
        (NM / 1000, "band 1 has 0.4 nm, and sensors.spectral.wavelengths_nm"),  # micrometres
    ],
)  # fmt: skip
def test_wavelengths_are_compared_with_the_recipe(
    tmp_path: Path, wavelengths: np.ndarray, words: str
) -> None:
    path = georeferenced(tmp_path, {"wavelength": [float(value) for value in wavelengths]})
    if not words:
        assert not any("says no wavelengths" in line for line in opened(path).report)
        return
    with pytest.raises(DatasetError, match=words):
        opened(path)


def test_the_headers_bad_bands_are_left_out(tmp_path: Path) -> None:
    flags = [1] * 24
    flags[20] = flags[22] = 0
    path = georeferenced(tmp_path, {"bbl": flags})
    found = opened(path, spectral={"bad_bands": None})
    assert [(item.band, item.cause) for item in found.dropped["spectral"]] == [
        (21, "header"), (23, "header")
    ]  # fmt: skip
    assert "spectral: dropped band 23 (1070 nm): marked bad in its file (bbl)" in found.report
    assert found.load("one").sensors["spectral"].shape[0] == 22


def test_a_damaged_file_of_a_scene_is_named(tmp_path: Path) -> None:
    path = georeferenced(tmp_path)
    with (tmp_path / "cube.img").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(ImageError, match=r"cube.img has 1,000 bytes and its header cube.hdr decl"):
        opened(path)


def test_what_several_scenes_say_alike_is_said_once() -> None:
    def scene(name: str, *notes: str) -> RawScene:
        return RawScene(name, {}, np.zeros((1, 1), np.uint8), None, None, (Path(f"{name}.hdr"),),
                        tuple(f"{name}: {note}" for note in notes))  # fmt: skip

    scenes = [scene("a", "a.hdr: values times 2", "odd"), scene("b", "b.hdr: values times 2")]
    assert shared_notes(scenes) == ["a and 1 more: values times 2", "a: odd"]
    assert shared_notes(scenes[:1]) == ["a: a.hdr: values times 2", "a: odd"]
