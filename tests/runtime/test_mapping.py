"""Scenes to maps: what a stop of any kind leaves, and what is there after going on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from edgekd.cli._common import stop_on_signals
from edgekd.cli.main import main
from edgekd.contracts.tensors import MAP_NODATA
from edgekd.errors import (
    CancelledError,
    EnvironmentLacksError,
    ImageError,
    InputError,
    OutputError,
)
from edgekd.runtime import tiler
from edgekd.runtime.session import load
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

TILE = 64
UTM = {"crs": "EPSG:32617", "transform": rasterio.Affine(0.5, 0, 5e5, 0, -0.5, 4e6)}
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "tiny", tile_px=TILE, classes=3)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    image = smooth_image(300, 190)
    image[:90, :100] = 0  # a corner of nodata, wider than a window
    return write_raster(tmp_path / "in.tif", image, nodata=0, **UTM)


def everything(folder: Path, kind: str = "gpkg") -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    return {
        "scores": folder / "scores.tif",
        "probabilities": folder / "chance.tif",
        "polygons": folder / f"p.{kind}",
        "summary": folder / "s.json",
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
@pytest.mark.parametrize("panels", [False, True], ids=["whole rows", "panels"])
def test_stopped_after_any_window_and_resumed_it_gives_the_same_bytes(
    tmp_path: Path,
    bundle: Path,
    scene: Path,
    kind: str,
    panels: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if panels:
        scene = in_tiles(scene)
        monkeypatch.setattr(tiler, "PANEL_PX", 100)
    with load(bundle, streams=1) as session:
        seen: list[int] = []
        whole = session.run_scene(
            scene, tmp_path / "a" / "m.tif", progress=lambda done, total: seen.append(done),
            **everything(tmp_path / "a", kind),
        )  # fmt: skip
        assert seen == list(range(1, whole.windows + 1)) and whole.attempts == 1
        expected = contents(tmp_path / "a")
        assert sorted(expected) == ["chance.tif", "m.tif", f"p.{kind}", "s.json", "scores.tif"]
        for stop in range(1, whole.windows + 1, 3):
            folder = tmp_path / f"b{stop}"
            calls: list[int] = []

            def cancel(calls: list[int] = calls, stop: int = stop) -> bool:
                calls.append(1)
                return len(calls) == stop

            products: dict[str, Any] = everything(folder, kind)
            with pytest.raises(CancelledError, match=f"after {stop} of {whole.windows} windows"):
                session.run_scene(scene, folder / "m.tif", cancel=cancel, **products)
            assert set(contents_of_files(folder)) == set()
            again = session.run_scene(scene, folder / "m.tif", resume=True, **products)
            assert contents(folder) == expected
            for name in ("windows_run", "windows_skipped", "pixels_valid", "class_pixels"):
                assert getattr(again, name) == getattr(whole, name), name
            kept = again.resumed_rows > 0
            assert again.attempts == (2 if kept else 1)


def in_tiles(scene: Path) -> Path:
    """The same pixels in blocks, so that a part of a row can be read by itself."""
    place = scene.with_name("tiled.tif")
    rasterio.shutil.copy(scene, place, tiled=True, blockxsize=16, blockysize=16)
    return place


def test_panels_do_not_show(
    tmp_path: Path, bundle: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The map of a scene whose rows are worked on in parts is that of one worked on in whole."""
    maps = []
    monkeypatch.setattr(tiler, "PANEL_PX", 100)
    with load(bundle, streams=1) as session:
        for place in (scene, in_tiles(scene)):
            with rasterio.open(place) as data:
                assert (data.block_shapes[0][1] < data.width) == (place != scene)
            session.run_scene(
                place, tmp_path / "m.tif", scores=tmp_path / "s.tif",
                probabilities=tmp_path / "p.tif",
            )  # fmt: skip
            found = [rasterio.open(tmp_path / f"{name}.tif").read() for name in "msp"]
            maps.append(found)
    for one, other in zip(*maps, strict=True):
        np.testing.assert_array_equal(one, other)


def contents_of_files(folder: Path) -> list[str]:
    return [item.name for item in folder.iterdir() if item.is_file()]


_CHILD = """
import sys, time
from edgekd.runtime import tiler
from edgekd.runtime.session import load
from tests.helpers.bundles import slow_down
session = load(sys.argv[1], streams=1)
slow_down(session, float(sys.argv[4]))
places = {name: f"{sys.argv[3]}/{name}.tif" for name in ("scores", "probabilities")}
session.run_scene(sys.argv[2], sys.argv[3] + "/m.tif", resume=True, **places)
"""


def child(bundle: Path, scene: Path, folder: Path, delay_s: float) -> subprocess.Popen[bytes]:
    root = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(bundle), str(scene), str(folder), str(delay_s)],
        env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_killed_at_moments_of_its_own_choosing(tmp_path: Path, bundle: Path, scene: Path) -> None:
    """kill -9 as soon as the journal has grown; benchmarks/kill_resume.py does it at random."""
    with load(bundle, streams=1) as session:
        (tmp_path / "a").mkdir()
        places = {name: tmp_path / "a" / f"{name}.tif" for name in ("scores", "probabilities")}
        session.run_scene(scene, tmp_path / "a" / "m.tif", **places)
    folder = tmp_path / "b"
    folder.mkdir()
    size, kills = 0, 0
    journal = folder / ".m.tif.edgekd" / "rows"
    while True:
        process = child(bundle, scene, folder, 0.02)
        while process.poll() is None:
            if journal.exists() and journal.stat().st_size > size:
                size = journal.stat().st_size
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.001)
        said = process.communicate()[1]
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said.decode()
    assert kills >= 3
    assert contents(folder) == contents(tmp_path / "a")


def test_a_scene_that_was_touched_and_one_that_was_changed(
    tmp_path: Path, bundle: Path, scene: Path
) -> None:
    with load(bundle, streams=1) as session:
        expected = session.run_scene(scene, tmp_path / "a.tif")
        place = tmp_path / "m.tif"

        def start() -> None:
            calls: list[int] = []
            with pytest.raises(CancelledError):
                session.run_scene(
                    scene, place, cancel=lambda: calls.append(1) or len(calls) == 18, restart=True
                )

        start()
        os.utime(scene, ns=(1, 1))
        resumed = session.run_scene(scene, place, resume=True)
        assert resumed.resumed_rows > 0 and resumed.class_pixels == expected.class_pixels
        assert place.read_bytes() == (tmp_path / "a.tif").read_bytes()
        start()
        content = bytearray(scene.read_bytes())
        content[-200_000 if len(content) > 400_000 else len(content) // 2 - 20_000] ^= 1
        scene.write_bytes(content)
        with pytest.raises(ImageError, match=r"holds other pixels in rows \d+-\d+ than when the"):
            session.run_scene(scene, place, resume=True)
        assert session.run_scene(scene, place, restart=True).attempts == 1


def test_an_input_that_is_cut_under_way(tmp_path: Path, bundle: Path) -> None:
    """What was done is kept; with the whole file back the result is as if nothing had been."""
    scene = write_raster(tmp_path / "in.tif", smooth_image(600, 190), compress="deflate", **UTM)
    content = scene.read_bytes()
    with load(bundle, streams=1) as session:
        session.run_scene(scene, tmp_path / "a.tif")
        calls: list[int] = []

        def cut() -> bool:
            calls.append(1)
            if len(calls) == 12:
                os.truncate(scene, len(content) // 2)
            return False

        with pytest.raises(ImageError, match=r"in.tif is damaged.* rows are done and kept, go on"):
            session.run_scene(scene, tmp_path / "m.tif", cancel=cut)
        with pytest.raises(ImageError, match="damaged|cannot be opened"):
            session.run_scene(scene, tmp_path / "m.tif", resume=True)
        scene.write_bytes(content)
        again = session.run_scene(scene, tmp_path / "m.tif", resume=True)
    assert again.resumed_rows > 0
    assert (tmp_path / "m.tif").read_bytes() == (tmp_path / "a.tif").read_bytes()


def test_what_was_asked_must_be_the_same(tmp_path: Path, bundle: Path, scene: Path) -> None:
    calls: list[int] = []
    with load(bundle, streams=1) as session:
        with pytest.raises(CancelledError):
            session.run_scene(
                scene, tmp_path / "m.tif", cancel=lambda: calls.append(1) or len(calls) == 18
            )
        with pytest.raises(InputError, match=r"did not end .*--resume"):
            session.run_scene(scene, tmp_path / "m.tif")
        for changes, words in (
            ({"overlap_px": 0}, "another overlap"),
            ({"bands": [3, 2, 1]}, "another choice of bands"),
            ({"scale": [(0, 200)]}, "another scale"),
            ({"nodata": "none"}, "another nodata_rule"),
            ({"scores": tmp_path / "s.tif"}, "another confidence"),
            ({"probabilities": tmp_path / "p.tif"}, "another probabilities"),
        ):
            with pytest.raises(InputError, match=words):
                session.run_scene(scene, tmp_path / "m.tif", resume=True, **changes)
        other = write_raster(tmp_path / "other.tif", smooth_image(300, 190), **UTM)
        with pytest.raises(InputError, match="had another scene "):
            session.run_scene(other, tmp_path / "m.tif", resume=True)
        session.run_scene(scene, tmp_path / "m.tif", resume=True)
    assert sorted(contents_of_files(tmp_path)) == ["in.tif", "m.tif", "other.tif"]
    assert not (tmp_path / ".m.tif.edgekd").exists()


@pytest.mark.parametrize("name", ["manifest.json", "new.json", "sub/new.json"])
def test_nothing_is_written_into_the_bundle(
    tmp_path: Path, bundle: Path, scene: Path, name: str
) -> None:
    before = contents_of_files(bundle)
    with load(bundle) as session:
        with pytest.raises(OutputError, match="is in the bundle, which is sealed"):
            session.run_scene(scene, tmp_path / "m.tif", summary=bundle / name)
        with pytest.raises(OutputError, match="is in the bundle"):
            session.run_scene(scene, bundle / "m.tif")
    assert contents_of_files(bundle) == before


def test_who_asks_for_no_probabilities_gets_what_was_there_before(
    tmp_path: Path, bundle: Path, scene: Path
) -> None:
    """The other results have the same bytes, and so has the journal but for what it holds more."""
    rows, jobs, maps = {}, {}, {}
    with load(bundle, streams=1) as session:
        for name in ("with", "without"):
            folder = tmp_path / name
            more = {"probabilities": folder / "p.tif"} if name == "with" else {}
            options: dict[str, Any] = {"scores": folder / "s.tif", **more}
            left = iter(range(19))
            with pytest.raises(CancelledError):
                session.run_scene(
                    scene, folder / "m.tif", cancel=lambda left=left: next(left, None) is None,
                    **options,
                )  # fmt: skip
            journal = folder / ".m.tif.edgekd"
            rows[name] = (journal / "rows").read_bytes()
            jobs[name] = json.loads((journal / "job.json").read_text())
            session.run_scene(scene, folder / "m.tif", resume=True, **options)
            maps[name] = {end: (folder / end).read_bytes() for end in ("m.tif", "s.tif")}
    assert maps["with"] == maps["without"]
    assert jobs["with"] == jobs["without"] | {"probabilities": True}
    assert b"EKB" in rows["with"] and b"EKB" not in rows["without"]


def test_one_scale_may_be_given_as_it_is(tmp_path: Path, bundle: Path, scene: Path) -> None:
    with load(bundle) as session:
        session.run_scene(scene, tmp_path / "a.tif", scale=(0, 200))
        session.run_scene(scene, tmp_path / "b.tif", scale=[(0, 200)])
        for wrong in ((0, 1, 2), [0], "0,200", [(0, 1), 3], [("a", "b")]):
            with pytest.raises(InputError, match="scale"):
                session.run_scene(scene, tmp_path / "c.tif", scale=wrong)  # type: ignore[arg-type]
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()


def test_products_say_the_same(tmp_path: Path, bundle: Path, scene: Path) -> None:
    import shapely

    with load(bundle) as session:
        result = session.run_scene(
            scene, tmp_path / "o" / "m.tif", **everything(tmp_path / "o", "geojson")
        )
        with rasterio.open(scene) as data:
            image = np.moveaxis(data.read(), 0, 2)
        expected = session.run(image)
    with rasterio.open(tmp_path / "o" / "m.tif") as data:
        classes = data.read(1)
        assert data.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert data.crs.to_epsg() == 32617 and data.transform == UTM["transform"]
    with rasterio.open(tmp_path / "o" / "scores.tif") as data:
        scores = data.read(1)
        assert data.scales == (1 / 254,) and data.nodata == MAP_NODATA
        assert data.crs.to_epsg() == 32617
    with rasterio.open(tmp_path / "o" / "chance.tif") as data:
        planes = data.read()
        assert data.descriptions == tuple(result.class_pixels) and data.count == 3
        assert data.crs.to_epsg() == 32617 and data.transform == UTM["transform"]
        assert data.tags()["EDGEKD_MODEL_SHA256"]
    valid = (image != 0).any(axis=2)
    assert (planes[:, ~valid] == MAP_NODATA).all()
    np.testing.assert_array_equal(planes.argmax(axis=0)[valid], classes[valid])
    np.testing.assert_array_equal(planes.max(axis=0), scores)
    assert np.abs(planes[:, valid].sum(axis=0, dtype=int) - 254).max() <= 3
    assert ((classes == MAP_NODATA) == ~valid).all() and ((scores == MAP_NODATA) == ~valid).all()
    counts = {n: int((classes == i).sum()) for i, n in enumerate(result.class_pixels)}
    assert counts == result.class_pixels and sum(counts.values()) == result.pixels_valid
    assert result.class_area_m2 == {name: count * 0.25 for name, count in counts.items()}
    inside = valid & (classes == expected.classes)
    assert inside.sum() > 0.8 * valid.sum()  # the model sees the fill in place of nodata
    assert np.abs(scores[inside] / 254 - expected.confidence[inside])[30:].mean() < 0.02
    summary = json.loads((tmp_path / "o" / "s.json").read_text())
    for name, count in counts.items():
        item = summary["classes"][name]
        assert item["pixels"] == count and item["area_m2"] == pytest.approx(count * 0.25)
        assert sum(item["confidence_histogram"]) == count
    assert summary["bytes"]["scene"] == scene.stat().st_size
    assert summary["pixels_nodata"] == result.pixels_nodata
    features = json.loads((tmp_path / "o" / "p.geojson").read_text())["features"]
    assert len(features) == result.polygons == summary["polygons"] > 3
    shapes = [shapely.geometry.shape(item["geometry"]) for item in features]
    assert all(item.is_valid for item in shapes)
    west, south, east, north = shapely.total_bounds(shapes)
    assert -81.1 < west < east < -80.9 and 36.1 < south < north < 36.2  # UTM 17 N, 4 000 km


@pytest.mark.parametrize("kind", ["gpkg", "geojson"])
def test_cancelled_while_results_are_written_it_goes_on_with_the_same_bytes(
    tmp_path: Path, bundle: Path, scene: Path, kind: str
) -> None:
    left = [0]  # questions until the answer is yes

    def cancel() -> bool:
        left[0] -= 1
        return left[0] <= 0

    folder = tmp_path / "b"
    with load(bundle, streams=1) as session:
        left[0] = 10**6
        whole = session.run_scene(
            scene, tmp_path / "a" / "m.tif", cancel=cancel, **everything(tmp_path / "a", kind)
        )
        passes = 5  # one for the polygons, one for the map, one for each class
        blocks, rest = divmod(10**6 - left[0] - whole.windows, passes)
        assert blocks >= 5 and not rest
        for block in range(1, passes * blocks + 1):
            left[0] = block if block > 1 else whole.windows + 1
            with pytest.raises(CancelledError, match=r"results were written.*--resume"):
                session.run_scene(
                    scene, folder / "m.tif", cancel=cancel, resume=block > 1,
                    **everything(folder, kind),
                )  # fmt: skip
            names = {item.name for item in folder.iterdir()}
            assert names == {".m.tif.edgekd"} | ({f"p.{kind}"} if block > blocks else set())
        again = session.run_scene(scene, folder / "m.tif", resume=True, **everything(folder, kind))
        assert again.resumed_rows == again.height
    assert contents(folder) == contents(tmp_path / "a")


_STOPPED = """
import os, signal, sys
from edgekd.cli.main import main
from edgekd.runtime import outlines
trace = outlines._trace
def stopped(*arguments):
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
    return trace(*arguments)
outlines._trace = stopped
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_is_heard_while_polygons_are_made(tmp_path: Path, bundle: Path, name: str) -> None:
    scene = write_raster(tmp_path / "in.tif", smooth_image(1000, 70), **UTM)
    command = ["run", str(bundle), str(scene), "-o", str(tmp_path / "m.tif"), "--polygons",
               str(tmp_path / "p.gpkg"), "--streams", "1"]  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", _STOPPED, name, *command], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    code = 128 + getattr(signal, name)  # as a shell has it of a process that the signal ended
    assert done.returncode == code and "cancelled while results were written" in done.stderr
    assert sorted(item.name for item in tmp_path.iterdir()) == [".m.tif.edgekd", "in.tif"]
    assert main([*command, "--resume"]) == 0
    assert (tmp_path / "m.tif").exists() and (tmp_path / "p.gpkg").exists()


def test_the_second_signal_does_what_it_did_before() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with stop_on_signals() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert asked.wait(5) and not seen
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_missing_library_is_told_before_anything_is_done(
    tmp_path: Path, bundle: Path, scene: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyogrio", None)
    asked: list[int] = []
    with load(bundle) as session, pytest.raises(EnvironmentLacksError, match="pyogrio"):
        session.run_scene(
            scene, tmp_path / "m.tif", polygons=tmp_path / "p.gpkg",
            progress=lambda done, total: asked.append(done),
        )  # fmt: skip
    assert not asked and [item.name for item in tmp_path.iterdir()] == ["in.tif"]


def test_bad_places_are_refused_before_anything_is_done(
    tmp_path: Path, bundle: Path, scene: Path
) -> None:
    with load(bundle) as session:
        for products, words in (
            ({"scores": tmp_path / "s.png"}, "ends in .tif"),
            ({"probabilities": tmp_path / "s.png"}, "ends in .tif"),
            ({"polygons": tmp_path / "p.shp"}, "ends in .gpkg or .geojson"),
            ({"summary": tmp_path / "s.txt"}, "ends in .json"),
            ({"scores": tmp_path / "m.tif"}, "named for two results"),
            ({"scores": scene}, "is the input"),
            ({"polygons": tmp_path / "d.gpkg"}, "is a folder"),
        ):
            (tmp_path / "d.gpkg").mkdir(exist_ok=True)
            with pytest.raises(OutputError, match=words):
                session.run_scene(scene, tmp_path / "m.tif", **products)
    shutil.rmtree(tmp_path / "d.gpkg")
    assert [item.name for item in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize("kind", ["uint16", "int16", "float32"])
def test_wider_pixels_with_a_scale_are_the_8_bit_scene(
    tmp_path: Path, bundle: Path, kind: str
) -> None:
    image = smooth_image(150, 130)
    wide = (image.astype(np.float64) * 10 + 100).astype(kind)
    options = dict(UTM)
    if kind == "float32":
        wide[:70, :70, 1] = np.nan
        wide[100, 100, 0] = np.inf
    path = write_raster(tmp_path / "wide.tif", wide, **options)
    plain = write_raster(tmp_path / "plain.tif", image, **options)
    with load(bundle) as session:
        with pytest.raises(
            ImageError, match=r"--scale \(scale=\).* would be --scale [\d.]+,[\d.]+"
        ):
            session.run_scene(path, tmp_path / "m.tif")
        result = session.run_scene(path, tmp_path / "m.tif", scale=[(100, 2650)])
        assert result.scale == [(100.0, 2650.0)] * 3
        expected = session.run_scene(plain, tmp_path / "n.tif")
    if kind == "float32":
        assert result.pixels_nodata == 70 * 70 + 1 and result.windows_skipped > 0
        return
    assert result.class_pixels == expected.class_pixels
    with rasterio.open(tmp_path / "m.tif") as a, rasterio.open(tmp_path / "n.tif") as b:
        np.testing.assert_array_equal(a.read(1), b.read(1))


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ([(5, 5)], "the second number, which becomes 255, must be larger"),
        ([(0, float("nan"))], "must be larger"),
        ([(0, 1), (0, 1)], "gives 2 pairs of numbers, expected one for all bands or 3"),
    ],
)
def test_scales_that_are_none(
    tmp_path: Path, bundle: Path, scene: Path, scale: list[tuple[float, float]], words: str
) -> None:
    with load(bundle) as session, pytest.raises(InputError, match=words):
        session.run_scene(scene, tmp_path / "m.tif", scale=scale)
