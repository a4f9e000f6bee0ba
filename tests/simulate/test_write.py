"""The sensor set on disk: what it says of itself, and that the same seed gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import spectral
import yaml
from rasterio.crs import CRS

from edgekd.contracts.artifacts import sha256_file
from edgekd.errors import InputError, OutputError
from edgekd.simulate.minerals import CLASS_NAMES
from edgekd.simulate.write import Order, _Raster, write_geology
from tests.helpers.spectra import make_library

ROOT = Path(__file__).resolve().parents[2]
SIDE = 64
FILES = ("rgb.tif", "lidar.tif", "labels.tif", "abundance.tif", "spectral.hdr", "spectral.img")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_library(tmp_path_factory.mktemp("library") / "lib.mat")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    out = tmp_path_factory.mktemp("set") / "made"
    write_geology(out, library, Order(3, SIDE, 7, (1, 1, 1)))
    return out


def test_the_folder_holds_what_the_set_names(made: Path) -> None:
    told: dict[str, Any] = yaml.safe_load((made / "sensors.yaml").read_text())
    assert told["schema"] == 1 and told["simulated"] is True and told["ignore_index"] == 255
    assert told["name"] == "geology-simulated" and "seed 7" in told["source"]
    assert set(told) == {
        "schema", "name", "title", "simulated", "source", "licence", "ignore_index", "classes",
        "scenes",
    }  # fmt: skip
    assert [item["name"] for item in told["classes"]] == list(CLASS_NAMES)
    assert [item["index"] for item in told["classes"]] == list(range(12))
    assert [item["split"] for item in told["scenes"]] == ["train", "val", "test"]
    named = {"README", "sensors.yaml", "provenance.json"}
    for scene in told["scenes"]:
        assert set(scene) == {"id", "split", "files", "labels"}
        assert set(scene["files"]) == {"spectral", "visual", "lidar"}
        named |= {entry["file"] for entry in (*scene["files"].values(), scene["labels"])}
        named |= {f"{scene['id']}_{name}" for name in ("abundance.tif", "spectral.img")}
    assert {item.name for item in made.iterdir()} == named


def test_every_file_says_that_it_is_simulated(made: Path) -> None:
    tifs = sorted(made.glob("*.tif"))
    assert len(tifs) == 12
    for path in tifs:
        with rasterio.open(path) as data:
            tags = data.tags()
            assert tags["SIMULATED"] == "YES", path
            assert tags["TIFFTAG_IMAGEDESCRIPTION"].startswith("SIMULATED")
            assert tags["SEED"] == "7"
    for path in made.glob("*.hdr"):
        header = spectral.open_image(str(path)).metadata
        assert header["description"].strip().startswith("SIMULATED")
        assert header["sensor type"] == "SIMULATED"
        text = header["coordinate system string"]  # whole, with its commas, for who reads that
        assert CRS.from_wkt(",".join(text)) == CRS.from_epsg(32611)
    assert (made / "README").read_text().startswith("SIMULATED")
    assert (made / "sensors.yaml").read_text().startswith("# SIMULATED")
    assert json.loads((made / "provenance.json").read_text())["simulated"] is True


def test_all_sensors_lie_on_one_grid(made: Path) -> None:
    seen = set()
    for number in range(3):
        grids = set()
        for name in FILES:
            if name.endswith(".hdr"):
                continue
            with rasterio.open(made / f"scene_00{number}_{name}") as data:
                assert data.shape == (SIDE, SIDE), name
                assert data.crs.to_epsg() in (32611, None) and data.crs == CRS.from_epsg(32611)
                grids.add(tuple(data.transform))
        assert len(grids) == 1
        grid = grids.pop()
        assert grid[0] == 2.0 and grid[4] == -2.0
        seen.add(grid)
    assert len(seen) == 3  # scenes lie beside each other


def test_values_and_their_units(made: Path) -> None:
    kinds = {"rgb": ("uint8", 3), "labels": ("uint8", 1), "lidar": ("float32", 1)}
    for name, (dtype, count) in kinds.items():
        with rasterio.open(made / f"scene_000_{name}.tif") as data:
            assert data.dtypes[0] == dtype and data.count == count, name
            if name == "lidar":
                heights = data.read(1, masked=True)
                assert data.nodata == -9999 and 0 < heights.mask.sum() < 0.05 * SIDE**2
                assert heights.min() > 1000
            if name == "labels":
                labels = data.read(1)
                assert data.nodata == 255 and labels.max() < 12
                assert data.tags()["CLASS_0"] == "olivine"
    with rasterio.open(made / "scene_000_abundance.tif") as data:
        parts = data.read() * data.scales[0]
        assert data.descriptions == CLASS_NAMES
        assert np.allclose(parts.sum(0), 1, atol=1e-3)
        assert (parts.argmax(0) == labels).mean() > 0.99  # but for ties of the rounded
    cube = spectral.open_image(str(made / "scene_000_spectral.hdr"))
    assert cube.shape == (SIDE, SIDE, 224) and cube.scale_factor == 10_000
    nm = np.array(cube.bands.centers)
    assert (np.diff(nm) > 0).all() and cube.bands.band_unit.lower().startswith("nano")
    values = cube.load()  # divided by its scale
    assert 0.02 < np.median(values) < 0.9
    with rasterio.open(made / "scene_000_spectral.img") as data:
        band = data.read(51)
    assert np.allclose(band / 10_000, values[:, :, 50].squeeze())


def test_the_provenance_is_whole(made: Path, library: Path) -> None:
    told = json.loads((made / "provenance.json").read_text())
    assert told["library"]["sha256"] == sha256_file(library) and told["seed"] == 7
    assert told["library"]["file"] == "lib.mat"  # no path of this machine
    assert set(told["files"]) == {
        item.name
        for item in made.iterdir()
        if item.name not in ("README", "sensors.yaml", "provenance.json")
    }
    for name, sha256 in told["files"].items():
        assert sha256_file(made / name) == sha256
    assert [item["id"] for item in told["scenes"]] == ["scene_000", "scene_001", "scene_002"]
    for number, item in enumerate(told["scenes"]):
        with rasterio.open(made / f"scene_00{number}_labels.tif") as data:
            counts = np.bincount(data.read(1).ravel(), minlength=12)
        assert item["class_pixels"] == counts.tolist()
        assert 0 <= item["shadow_share"] < 0.5 and item["height_min_m"] < item["height_max_m"]


def test_the_same_seed_gives_the_same_bytes(made: Path, library: Path, tmp_path: Path) -> None:
    write_geology(tmp_path / "again", library, Order(3, SIDE, 7, (1, 1, 1)))
    names = sorted(item.name for item in made.iterdir())
    assert len(names) == 3 + 3 * len(FILES)
    for name in names:
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_bytes_do_not_depend_on_the_number_of_threads(
    made: Path, library: Path, tmp_path: Path
) -> None:
    code = (
        "import sys; from pathlib import Path; from edgekd.simulate.write import *;"
        f"write_geology(Path(sys.argv[1]), Path(sys.argv[2]), Order(1, {SIDE}, 7, (1, 0, 0)))"
    )
    for threads in ("1", "3"):
        given = {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
        out = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", code, str(out), str(library)], cwd=ROOT, check=True,
            env={**os.environ, **given},
        )  # fmt: skip
        for name in FILES:
            file = f"scene_000_{name}"
            assert (made / file).read_bytes() == (out / file).read_bytes(), (threads, file)


def test_a_scene_does_not_depend_on_how_many_there_are(
    made: Path, library: Path, tmp_path: Path
) -> None:
    write_geology(tmp_path / "two", library, Order(2, SIDE, 7, (1, 1, 0)))
    for number in range(2):
        for name in FILES:
            file = f"scene_00{number}_{name}"
            assert (made / file).read_bytes() == (tmp_path / "two" / file).read_bytes(), file


def test_large_scenes_have_no_cube(library: Path, tmp_path: Path) -> None:
    told = write_geology(tmp_path / "large", library, Order(1, 600, 0, (0, 0, 1), rgb_only=True))
    names = {item.name for item in (tmp_path / "large").iterdir()}
    assert names == {
        "README", "sensors.yaml", "provenance.json", "scene_000_rgb.tif", "scene_000_labels.tif",
        "scene_000_lidar.tif",
    }  # fmt: skip
    assert told["rgb_only"] is True and max(told["wavelengths_nm"]) < 720
    listed = yaml.safe_load((tmp_path / "large" / "sensors.yaml").read_text())["scenes"]
    assert [(item["split"], sorted(item["files"])) for item in listed] == [
        ("test", ["lidar", "visual"])
    ]
    with rasterio.open(tmp_path / "large" / "scene_000_rgb.tif") as data:
        assert data.profile["tiled"] and data.block_shapes[0] == (256, 256)
        picture = data.read()
    assert picture.shape == (3, 600, 600) and (picture[:, -50:].std((1, 2)) > 5).all()


@pytest.mark.parametrize("steps", [[700], [1] * 700, [300, 9, 391]])
def test_a_rasters_bytes_do_not_depend_on_how_its_rows_came(
    tmp_path: Path, steps: list[int]
) -> None:
    rows = np.random.default_rng(0).integers(0, 9, (700, 520, 3), dtype=np.uint8)
    profile = {"width": 520, "height": 700, "count": 3, "dtype": "uint8", "crs": "EPSG:32611",
               "transform": rasterio.transform.from_origin(0, 0, 2, 2)}  # fmt: skip

    def write(path: Path, parts: list[int]) -> bytes:
        raster = _Raster(rasterio, path, profile, {})
        first = 0
        with raster.data:
            for part in parts:
                raster.add(rows[first : first + part])
                first += part
        return path.read_bytes()

    assert write(tmp_path / "a.tif", steps) == write(tmp_path / "b.tif", [350, 350])
    with rasterio.open(tmp_path / "a.tif") as data:
        assert np.array_equal(np.moveaxis(data.read(), 0, 2), rows)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (Order(side_px=63), "a scene's side must be 64 to 8192 px, received 63"),
        (Order(side_px=9000), "received 9000"),
        (Order(scenes=0), "expected 1 to 999 scenes, received 0"),
        (Order(scenes=1000), "received 1000"),
        (Order(seed=-1), "a seed is 0 or above"),
        (Order(scenes=8), "the split 4:1:1 adds up to 6 scenes, which must go into the 8"),
        (Order(split=(0, 0, 0)), "the split 0:0:0 adds up to 0"),
        (Order(split=(7, -1, 0)), "the split 7:-1:0"),
    ],
)
def test_orders_that_cannot_be_met(order: Order, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        write_geology(tmp_path / "x", tmp_path / "lib.mat", order)
    assert list(tmp_path.iterdir()) == []


def test_the_split_goes_round() -> None:
    order = Order(scenes=12, split=(4, 1, 1))
    order.check()
    turn = ["train"] * 4 + ["val", "test"]
    assert [order.split_of(number) for number in range(12)] == turn * 2
    assert [Order(split=(0, 0, 1)).split_of(number) for number in range(3)] == ["test"] * 3


def test_nothing_is_overwritten(made: Path, library: Path, tmp_path: Path) -> None:
    before = sha256_file(made / "sensors.yaml")
    with pytest.raises(OutputError, match="exists and is not empty; choose another folder with -o"):
        write_geology(made, library, Order(1, SIDE, 0, (1, 0, 0)))
    assert sha256_file(made / "sensors.yaml") == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="choose another folder"):
        write_geology(tmp_path / "file", library, Order(1, SIDE, 0, (1, 0, 0)))
    (tmp_path / "empty").mkdir()
    write_geology(tmp_path / "empty", library, Order(1, SIDE, 0, (1, 0, 0)))
    assert (tmp_path / "empty" / "sensors.yaml").is_file()
