"""Georeferenced reading and writing: what is carried over, and what never appears."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.control
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.imageio import Raster, gdal_environment
from edgekd.contracts.tensors import MAP_NODATA, ClassSpec
from edgekd.contracts.windows import Window
from edgekd.errors import GateError, ImageError, OutputError
from edgekd.runtime import maps
from edgekd.runtime.maps import class_look, create_map
from edgekd.runtime.scene import ArraySource, RasterSource
from tests.helpers.rasters import smooth_image, write_raster

CLASSES = [
    ClassSpec(index=0, name="land", color="#102030"),
    ClassSpec(index=7, name="Wasser ü", color="#0000ff"),
]
LOOK = class_look(CLASSES, {})
BANDS = maps.probability_look(CLASSES, {})
UTM = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.1, 0.01, 5e5, 0.01, -0.1, 4e6)}


pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def answer(height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.choice(np.array([0, 7, MAP_NODATA], np.uint8), (height, width))


@pytest.mark.parametrize("height", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("step", [1, 64, 1000])
def test_a_map_reads_back_exactly(tmp_path: Path, height: int, step: int) -> None:
    rows = answer(height, 130)
    with create_map(tmp_path / "m.tif", height, 130, LOOK, None) as writer:
        for y in range(0, height, step):
            writer.write(rows[y : y + step])
    with rasterio.open(tmp_path / "m.tif") as data:
        np.testing.assert_array_equal(data.read(1), rows)


def slow_thin(rows: np.ndarray, scores: bool) -> np.ndarray:
    """What an overview is, pixel by pixel."""
    height, width = rows.shape
    thin = np.empty(((height + 1) // 2, (width + 1) // 2), np.uint8)
    for y, x in np.ndindex(thin.shape):
        values = [int(v) for v in rows[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flat if v != 255]
        if not values:
            thin[y, x] = MAP_NODATA
        elif scores:
            thin[y, x] = int(sum(values) / len(values) + 0.5)
        else:
            thin[y, x] = max(values, key=values.count)  # the first of several
    return thin


@given(st.data(), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_thinning(data: st.DataObject, height: int, width: int, scores: bool) -> None:
    some = [0, 1, 7, 255] if not scores else [0, 1, 2, 127, 253, 254, 255]
    rows = np.array(
        data.draw(
            st.lists(st.sampled_from(some), min_size=height * width, max_size=height * width)
        ),
        np.uint8,
    ).reshape(height, width)
    thin = maps.thin_scores if scores else maps.thin_classes
    np.testing.assert_array_equal(thin(rows), slow_thin(rows, scores))


@pytest.mark.parametrize("scores", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "levels"), [(512, 512, 0), (513, 100, 1), (1025, 1537, 2), (3, 2050, 3)]
)
def test_overviews(tmp_path: Path, scores: bool, height: int, width: int, levels: int) -> None:
    """A COG of as many levels as GDAL makes, each the thinned one above it, palette and all."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (height, width), dtype=np.uint8) if scores else None
    rows = answer(height, width) if rows is None else rows
    look = maps.score_look({}) if scores else LOOK
    with create_map(tmp_path / "m.tif", height, width, look, None) as writer:
        for y in range(0, height, 100):
            writer.write(rows[y : y + 100])
    assert [item.name for item in tmp_path.iterdir()] == ["m.tif"]
    with rasterio.open(tmp_path / "m.tif") as data:
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert data.overviews(1) == [2**level for level in range(1, levels + 1)]
    for level in range(levels):
        rows = slow_thin(rows, scores)
        with rasterio.open(tmp_path / "m.tif", overview_level=level) as data:
            np.testing.assert_array_equal(data.read(1), rows)
            assert data.nodata == MAP_NODATA
            if not scores:
                assert data.colormap(1)[7][:3] == (0, 0, 255)


@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_a_band_for_each_class(tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three bands are no colours and the fourth is no alpha; thinned, described, the same bytes."""
    classes = [
        ClassSpec(index=10 + 3 * n, name=f"Gestein ü {n}", color="#102030") for n in range(count)
    ]
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 256, (count, 600, 530), dtype=np.uint8)
    look, found = maps.probability_look(classes, {"EDGEKD_BUNDLE": "b"}), set()
    path = tmp_path / "p.tif"
    for threads in ("1", "ALL_CPUS"):
        monkeypatch.setattr(maps, "_THREADS", threads)
        with create_map(path, 600, 530, look, None) as writer:
            for number, plane in enumerate(planes):
                if number:
                    writer.next_band()
                for y in range(0, 600, 70):
                    writer.write(plane[y : y + 70])
        found.add(path.read_bytes())
    assert len(found) == 1 and [item.name for item in tmp_path.iterdir()] == ["p.tif"]
    kinds = rasterio.enums.ColorInterp
    with rasterio.open(path) as data:
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        np.testing.assert_array_equal(data.read(), planes)
        assert data.descriptions == tuple(item.name for item in classes)
        assert data.scales == (1 / 254,) * count and data.offsets == (0.0,) * count
        assert data.nodatavals == (MAP_NODATA,) * count
        assert set(data.colorinterp) <= {kinds.gray, kinds.undefined}
        assert [data.tags(n)["CLASS_INDEX"] for n in data.indexes] == [
            str(item.index) for item in classes
        ]
        tags = data.tags()
        assert json.loads(tags["CLASS_NAMES"]) == {str(c.index): c.name for c in classes}
        assert tags["EDGEKD_PRODUCT"] == "probabilities" and tags["EDGEKD_BUNDLE"] == "b"
        np.testing.assert_array_equal(data.read_masks(count) > 0, planes[-1] != MAP_NODATA)
    with rasterio.open(path, overview_level=0) as data:
        for number in {0, 1, count - 1}:
            np.testing.assert_array_equal(data.read(number + 1), maps.thin_scores(planes[number]))


def test_a_map_with_missing_bands_never_appears(tmp_path: Path) -> None:
    path = tmp_path / "p.tif"
    with (
        pytest.raises(GateError, match="1 bands came, the map has 2"),
        create_map(path, 300, 50, BANDS, None) as writer,
    ):
        writer.write(answer(300, 50))
    with (
        pytest.raises(GateError, match="7 rows came, the map has 300"),
        create_map(path, 300, 50, BANDS, None) as writer,
    ):
        writer.write(answer(7, 50))
        writer.next_band()
    assert list(tmp_path.iterdir()) == []


def test_the_same_rows_give_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, found = answer(1500, 2100), set()
    for number, threads in enumerate(["1", "2", "7", "7", "ALL_CPUS"]):
        monkeypatch.setattr(maps, "_THREADS", threads)
        path = tmp_path / f"{number}.tif"
        with create_map(path, 1500, 2100, LOOK, None) as writer:
            writer.write(rows)
        found.add(path.read_bytes())
    assert len(found) == 1


def test_what_a_map_says_of_itself(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "in.tif", smooth_image(300, 270), **UTM)
    rows = answer(300, 270)
    with (
        Raster(source) as raster,
        create_map(
            tmp_path / "m.tif", 300, 270, class_look(CLASSES, {"EDGEKD_BUNDLE": "b"}), raster
        ) as writer,
    ):
        writer.write(rows)
    with rasterio.open(tmp_path / "m.tif") as data:
        assert data.crs == rasterio.CRS.from_epsg(32617)
        assert data.transform == UTM["transform"] and data.shape == (300, 270)
        assert data.nodata == MAP_NODATA and data.dtypes == ("uint8",) and data.count == 1
        assert data.colorinterp[0] == rasterio.enums.ColorInterp.palette
        palette = data.colormap(1)
        assert palette[0][:3] == (16, 32, 48) and palette[7][:3] == (0, 0, 255)
        tags = data.tags()
        assert json.loads(tags["CLASS_NAMES"]) == {"0": "land", "7": "Wasser ü"}
        assert tags["EDGEKD_BUNDLE"] == "b" and data.tags(1)["CLASS_7"] == "Wasser ü"
        assert data.profile["tiled"] and data.profile["compress"] == "deflate"
        np.testing.assert_array_equal(data.read_masks(1) > 0, rows != MAP_NODATA)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["in.tif", "m.tif"]


def test_ground_control_points_are_carried_over(tmp_path: Path) -> None:
    point = rasterio.control.GroundControlPoint
    gcps = [point(0, 0, 10, 50), point(0, 20, 11, 50), point(20, 0, 10, 49)]
    path = write_raster(tmp_path / "in.tif", smooth_image(20, 20), gcps=gcps, crs="EPSG:4326")
    with (
        Raster(path) as raster,
        create_map(tmp_path / "m.tif", 20, 20, LOOK, raster) as writer,
    ):
        assert raster.gcps is not None
        writer.write(answer(20, 20))
    with rasterio.open(tmp_path / "m.tif") as data:
        found, crs = data.gcps
    assert crs.to_epsg() == 4326
    assert [(g.row, g.col, g.x, g.y) for g in found] == [(g.row, g.col, g.x, g.y) for g in gcps]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, ImageError])
def test_a_failure_in_the_middle_leaves_nothing(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    path = tmp_path / "m[1].tif"
    with pytest.raises(failure), create_map(path, 600, 50, LOOK, None) as writer:
        writer.write(answer(300, 50))
        assert not path.exists()
        raise failure("in the middle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, 255, 256, 299])
def test_a_map_with_missing_rows_never_appears(tmp_path: Path, count: int) -> None:
    path = tmp_path / "m.tif"
    words = f"{count} rows came, the map has 300"
    with (
        pytest.raises(GateError, match=words),
        create_map(path, 300, 50, LOOK, None) as writer,
    ):
        writer.write(answer(300, 50)[:count])
    with (
        pytest.raises(GateError, match="more rows came than the 300"),
        create_map(path, 300, 50, LOOK, None) as writer,
    ):
        writer.write(answer(301, 50))
    assert list(tmp_path.iterdir()) == []


_FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from typing import Any
from edgekd.contracts.tensors import ClassSpec
from edgekd.errors import OutputError
from edgekd.runtime.maps import class_look, create_map
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
classes = [ClassSpec(index=i, name=str(i), color="#000000") for i in (0, 1)]
rows = np.random.default_rng(0).integers(0, 2, (700, 600)).astype(np.uint8)
free = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
def attempt(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, free))
    try:
        with create_map(Path("m.tif"), 700, 600, class_look(classes, {}), None) as writer:
            writer.write(rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, free))
attempt(free)
whole = Path("m.tif").stat().st_size
Path("m.tif").unlink()
for limit in [100, 4000, whole // 2, *range(whole - 3000, whole, 300), whole - 1]:
    try:
        attempt(limit)
    except OutputError as err:
        assert "cannot be written" in str(err), err
    else:
        sys.exit(f"a map of {whole} bytes was published on {limit} bytes of space")
    assert list(Path(".").iterdir()) == [], list(Path(".").iterdir())
print("refused")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of a file")
def test_a_full_disk_never_leaves_a_cut_map(tmp_path: Path) -> None:
    """GDAL says nothing when the last blocks of a file cannot be written."""
    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        [sys.executable, "-c", _FULL_DISK],
        cwd=tmp_path,
        env={"PYTHONPATH": str(root), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.stdout.strip() == "refused", result.stdout + result.stderr


_ELSEWHERE = """
import sys
import numpy as np
from pathlib import Path
from edgekd.contracts.tensors import ClassSpec
from edgekd.runtime.maps import class_look, create_map, score_look
rng = np.random.default_rng(0)
for name, look in (
    ("classes.tif", class_look([ClassSpec(index=0, name="land", color="#102030")], {})),
    ("scores.tif", score_look({})),
):
    with create_map(Path(name), 1100, 1300, look, None) as writer:
        writer.write(rng.integers(0, 3, (1100, 1300), dtype=np.uint8))
"""


def test_the_same_rows_give_the_same_bytes_whatever_gdal_is_set_to(tmp_path: Path) -> None:
    """Containers set some of these, and GDAL takes all of them from the environment."""
    root, found = Path(__file__).resolve().parents[2], []
    for number, settings in enumerate((
        {},
        {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR", "COMPRESS_OVERVIEW": "JPEG",
            "PREDICTOR_OVERVIEW": "2", "BIGTIFF_OVERVIEW": "YES", "GDAL_TIFF_OVR_BLOCKSIZE": "128",
            "INTERLEAVE_OVERVIEW": "PIXEL", "GDAL_NUM_THREADS": "7", "USE_RRD": "YES",
        },
        {
            "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "COMPRESS_OVERVIEW": "ZSTD",
            "ZLEVEL_OVERVIEW": "1", "PHOTOMETRIC_OVERVIEW": "YCBCR", "GDAL_CACHEMAX": "64",
            "GDAL_TIFF_ENDIANNESS": "BIG", "SPARSE_OK_OVERVIEW": "ON", "GTIFF_DIRECT_IO": "YES",
        },
    )):  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        result = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ELSEWHERE], cwd=folder, text=True, timeout=120,
            env={"PYTHONPATH": str(root), "PATH": "", **settings}, capture_output=True,
        )  # fmt: skip
        assert result.returncode == 0, (settings, result.stderr[-300:])
        assert {item.name for item in folder.iterdir()} == {"classes.tif", "scores.tif"}
        found.append([item.read_bytes() for item in sorted(folder.iterdir())])
    assert found[0] == found[1] == found[2]


def test_the_cache_of_the_application_is_given_back() -> None:
    """However the environments of two threads overlap."""
    from rasterio.env import get_gdal_config, set_gdal_config

    before = get_gdal_config("GDAL_CACHEMAX")
    try:
        set_gdal_config("GDAL_CACHEMAX", 100 << 20)
        stages = [threading.Event() for _ in range(3)]

        def other() -> None:
            with gdal_environment(cache_bytes=8 << 20):
                stages[0].set()
                stages[1].wait(10)
            stages[2].set()

        with gdal_environment():
            thread = threading.Thread(target=other)
            thread.start()
            stages[0].wait(10)
            assert get_gdal_config("GDAL_CACHEMAX") == 8 << 20
        assert get_gdal_config("GDAL_CACHEMAX") == 8 << 20, "somebody is still inside"
        stages[1].set()
        stages[2].wait(10)
        thread.join()
        assert get_gdal_config("GDAL_CACHEMAX") == 100 << 20
    finally:
        set_gdal_config("GDAL_CACHEMAX", before)


@pytest.mark.parametrize("spoilt", [0, 1])
@pytest.mark.parametrize("look", [LOOK, BANDS], ids=["a band", "two bands"])
def test_a_map_that_reads_back_differently_never_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoilt: int, look: maps.Look
) -> None:
    real = maps._checksums

    def other(rasterio: Any, path: Path, level: int) -> list[list[int]]:
        found = real(rasterio, path, level)
        found[-1][-1] ^= level == spoilt
        return found

    monkeypatch.setattr(maps, "_checksums", other)
    with (
        pytest.raises(OutputError, match="reads back differently"),
        create_map(tmp_path / "m.tif", 300, 700, look, None) as writer,
    ):
        writer.write(answer(300, 700))
        for _ in look.bands[1:]:
            writer.next_band()
            writer.write(answer(300, 700))
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_refused(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "in.tif", smooth_image(20, 20))
    before = source.read_bytes()
    (tmp_path / "link.tif").symlink_to(source)
    (tmp_path / "file").write_text("x")
    with Raster(source) as raster:
        for path, words in (
            (tmp_path / "m.png", "ends in .tif, received"),
            (tmp_path / "m", "ends in .tif"),
            (source, "is the input"),
            (tmp_path / "link.tif", "is the input"),
            (tmp_path / "file" / "m.tif", "cannot be made"),
        ):
            with (
                pytest.raises(OutputError, match=words),
                create_map(path, 20, 20, LOOK, raster),
            ):
                pytest.fail("the block must not start")
    assert source.read_bytes() == before


def test_an_image_in_memory() -> None:
    image = smooth_image(9, 7)
    source = ArraySource(image[::-1], 3)
    pixels = np.empty((3, 6, 3), np.uint8)
    source.read(Window(2, 1, 5, 7), pixels)
    np.testing.assert_array_equal(pixels, image[::-1][2:5, 1:7])
    assert source.read_valid(Window(0, 0, 9, 7)).all()
    for bad in (image[:, :, 0], image.astype(np.int16), image[:, :, :2]):
        with pytest.raises(ImageError):
            ArraySource(bad, 3)
    for empty in (image[:0], image[:, :0]):
        with pytest.raises(ImageError, match="no pixels"):
            ArraySource(empty, 3)


def test_other_pixel_types_are_refused_with_the_file_named(tmp_path: Path) -> None:
    nan = smooth_image(20, 20).astype(np.float32)
    nan[3, 4] = np.nan
    for image, words in (
        (nan, "received float32 with 3 NaN or infinite values"),
        (smooth_image(20, 20).astype(np.uint16), "received uint16"),
        (smooth_image(20, 20).astype(np.int16), "received int16"),
    ):
        path = write_raster(tmp_path / "a.tif", image, photometric="minisblack")
        with Raster(path) as raster, pytest.raises(ImageError) as caught:
            RasterSource(raster, None, 3)
        assert words in str(caught.value) and str(path) in str(caught.value)


def test_a_wide_band_among_8_bit_ones_is_not_cut_to_8_bits(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", smooth_image(20, 20))
    wide = smooth_image(20, 20, bands=1)[:, :, 0].astype(np.uint16) * 100
    write_raster(tmp_path / "wide.tif", wide)
    band = (
        '<VRTRasterBand dataType="{}" band="{}"><SimpleSource><SourceFilename relativeToVRT="1">'
        "{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
    )
    kinds = [
        ("Byte", "a.tif"),
        ("UInt16", "wide.tif"),
        ("UInt16", "wide.tif"),
        ("UInt16", "wide.tif"),
    ]
    bands = "".join(band.format(kind, n, name) for n, (kind, name) in enumerate(kinds, 1))
    path = tmp_path / "mixed.vrt"
    path.write_text(f'<VRTDataset rasterXSize="20" rasterYSize="20">{bands}</VRTDataset>')
    with Raster(path) as raster:
        for chosen in ([2, 3, 4], [1, 2, 3]):
            with pytest.raises(ImageError):
                RasterSource(raster, chosen, 3)
        RasterSource(raster, [1, 1, 1], 3)
