"""Loading a bundle, running it, and refusing it when a single byte is not what was sealed."""

from __future__ import annotations

import json
import platform
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import rasterio

import edgekd
from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.errors import (
    BundleError,
    EdgeKDError,
    EnvironmentLacksError,
    GateError,
    ImageError,
    InputError,
    OutputError,
)
from edgekd.runtime.session import Session, load, read_manifest, sealed_json
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

TILE = 64
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "tiny", tile_px=TILE, classes=3)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return make_bundle(tmp_path / "tiny", tile_px=TILE, classes=3)


def reseal(bundle: Path, **changes: object) -> None:
    path = bundle / MANIFEST_NAME
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(sealed_json(value | changes), encoding="utf-8")


def test_a_session_runs_an_image(bundle: Path) -> None:
    image = smooth_image(100, 150)
    with load(bundle) as session:
        result = session.run(image)
        whole = session.run(image[:TILE, :TILE], overlap_px=0)
        logits = session.infer(session.normalize(image[:TILE, :TILE])[None])
    assert result.classes.shape == result.confidence.shape == (100, 150)
    assert result.classes.dtype == np.uint8 and set(np.unique(result.classes)) <= {0, 1, 2}
    assert (result.confidence >= 1 / 3 - 1e-6).all() and (result.confidence <= 1 + 1e-6).all()
    assert result.stats.windows == result.stats.run == 6
    # the centre of a cell is not interpolated with stride 4: pixels 1 and 2 lie beside it
    assert (whole.classes[2:-2:4, 2:-2:4] == logits[0].argmax(0)[:-1, :-1]).mean() > 0.8


def test_class_indices_are_those_of_the_bundle_not_channel_numbers(tmp_path: Path) -> None:
    classes = [{"index": index, "name": f"c{index}", "color": "#000000"} for index in (40, 2, 254)]
    bundle = make_bundle(tmp_path / "b", TILE, classes=3, changes={"classes": classes})
    plain = make_bundle(tmp_path / "p", TILE, classes=3)
    image = smooth_image(90, 90, seed=3)
    with load(bundle) as session, load(plain) as other:
        table = np.array([40, 2, 254], np.uint8)
        np.testing.assert_array_equal(session.run(image).classes, table[other.run(image).classes])
        scene = write_raster(tmp_path / "in.tif", image)
        result = session.run_scene(scene, tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as data:
        found = data.read(1)
    for index in (40, 2, 254):
        assert result.class_pixels[f"c{index}"] == int((found == index).sum())


@pytest.mark.parametrize("size", [(1, 1), (TILE, TILE), (65, 40), (130, 200)])
def test_a_file_and_an_array_give_the_same_map(
    tmp_path: Path, bundle: Path, size: tuple[int, int]
) -> None:
    image = smooth_image(*size)
    scene = write_raster(tmp_path / "in.tif", image)
    with load(bundle) as session:
        expected = session.run(image).classes
        result = session.run_scene(scene, tmp_path / "m.tif")
    with rasterio.open(tmp_path / "m.tif") as data:
        np.testing.assert_array_equal(data.read(1), expected)
    assert result.pixels == result.pixels_valid == size[0] * size[1]
    assert sum(result.class_pixels.values()) == result.pixels and result.pixels_nodata == 0
    assert (result.height, result.width) == size and result.class_area_m2 is None
    assert len(result.latencies_s) == result.windows_run and "latencies_s" not in result.plain()
    json.dumps(result.plain(), allow_nan=False)


def test_nodata_of_the_scene_is_nodata_of_the_map(tmp_path: Path, bundle: Path) -> None:
    image = np.minimum(smooth_image(200, 220), 254)
    hole = np.hypot(*np.mgrid[-100:100, -110:110]) > 50
    image[hole] = 255
    transform = rasterio.Affine(0.5, 0, 4e5, 0, -0.5, 5e6)
    scene = write_raster(
        tmp_path / "in.tif", image, nodata=255, crs="EPSG:32617", transform=transform
    )
    with load(bundle) as session:
        result = session.run_scene(scene, tmp_path / "m.tif", overlap_px=0)
    with rasterio.open(tmp_path / "m.tif") as data:
        np.testing.assert_array_equal(data.read(1) == 255, hole)
        assert data.crs.to_epsg() == 32617 and data.transform == transform
    assert result.pixels_nodata == hole.sum() and result.windows_skipped > 0
    assert result.windows_run + result.windows_skipped == result.windows
    assert result.class_area_m2 is not None
    assert sum(result.class_area_m2.values()) == pytest.approx(0.25 * (~hole).sum())


def test_a_scene_without_any_data(tmp_path: Path, bundle: Path) -> None:
    scene = write_raster(tmp_path / "in.tif", np.full((70, 70, 3), 9, np.uint8), nodata=9)
    with load(bundle) as session:
        result = session.run_scene(scene, tmp_path / "m.tif")
    assert (result.pixels_valid, result.windows_run, result.infer_s) == (0, 0, 0.0)


def test_bands_are_fed_in_the_order_given(tmp_path: Path, bundle: Path) -> None:
    image = smooth_image(70, 80, bands=4)
    scene = write_raster(tmp_path / "in.tif", image, photometric="minisblack")
    with load(bundle) as session:
        session.run_scene(scene, tmp_path / "m.tif", bands=[4, 1, 2])
        expected = session.run(np.ascontiguousarray(image[:, :, [3, 0, 1]])).classes
        with pytest.raises(ImageError, match="say which with --bands"):
            session.run_scene(scene, tmp_path / "x.tif")
    with rasterio.open(tmp_path / "m.tif") as data:
        np.testing.assert_array_equal(data.read(1), expected)
    assert not (tmp_path / "x.tif").exists()


def test_bad_scenes_leave_nothing_behind(tmp_path: Path, bundle: Path) -> None:
    image = smooth_image(300, 200)
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    good = write_raster(tmp_path / "good.tif", image, **tiled)
    source = tmp_path / "cog.tif"
    from rasterio.shutil import copy

    copy(good, source, driver="COG", blocksize=128)
    blob = source.read_bytes()
    (tmp_path / "cut.tif").write_bytes(blob[: len(blob) // 2])
    (tmp_path / "half.tif").write_bytes(good.read_bytes()[: len(blob) // 2])
    (tmp_path / "empty.tif").touch()
    before = sorted(item.name for item in tmp_path.iterdir())
    with load(bundle) as session:
        for name in ("cut.tif", "half.tif", "empty.tif", "absent.tif"):
            with pytest.raises(ImageError, match=name):
                session.run_scene(tmp_path / name, tmp_path / "m.tif")
            assert sorted(item.name for item in tmp_path.iterdir()) == before
        with pytest.raises(OutputError, match="is the input"):
            session.run_scene(good, good)
        for overlap in (-1, TILE, TILE - 1):
            with pytest.raises(InputError, match="overlap"):
                session.run_scene(good, tmp_path / "m.tif", overlap_px=overlap)
    assert sorted(item.name for item in tmp_path.iterdir()) == before
    with rasterio.open(good) as data:
        np.testing.assert_array_equal(np.moveaxis(data.read(), 0, 2), image)


def test_a_map_that_does_not_add_up_never_appears(
    tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = write_raster(tmp_path / "in.tif", smooth_image(70, 70))
    with load(bundle) as session:
        session.index = np.array([0, 1, 77], np.uint8)  # no class of the bundle
        with pytest.raises(GateError, match="the map was dropped"):
            session.run_scene(scene, tmp_path / "m.tif")
    assert [item.name for item in tmp_path.iterdir()] == ["in.tif"]


@pytest.mark.parametrize("name", [MANIFEST_NAME, "model.onnx", "golden.npz"])
def test_one_changed_byte_anywhere_is_refused(own: Path, name: str) -> None:
    path = own / name
    blob = path.read_bytes()
    places = set(np.linspace(0, len(blob) - 1, 60).astype(int).tolist())
    flips = [(place, blob[place] ^ 1) for place in sorted(places)]
    if name == MANIFEST_NAME:  # white space too, which a JSON reader does not see
        spaces = [place for place, byte in enumerate(blob) if byte in b" \n"]
        for place in (*spaces[:: len(spaces) // 20], spaces[-1]):
            flips += [(place, other) for other in b"\r\t\n " if other != blob[place]]
    for place, byte in flips:
        path.write_bytes(blob[:place] + bytes([byte]) + blob[place + 1 :])
        with pytest.raises(BundleError, match="was changed after") as caught:
            read_manifest(own)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for changed in (blob[:-1], blob + b"\n", b"", blob[: len(blob) // 2]):
        path.write_bytes(changed)
        with pytest.raises(BundleError, match=name):
            load(own)
    path.unlink()
    with pytest.raises(BundleError, match=name):
        load(own)
    path.write_bytes(blob)
    load(own).close()


def test_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest\.json"):
            load(path)
    for text in ("[]", "null", "{}", '{"seal": 1}', "\ufffd", "{", "[" * 100_000):
        (tmp_path / MANIFEST_NAME).write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match="was changed after it was sealed"):
            load(tmp_path)
    (tmp_path / MANIFEST_NAME).write_bytes(b"\xff\xfe{}")
    with pytest.raises(BundleError, match="was changed after it was sealed"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schema": 1}, "has schema 1, this edgekd"),
        ({"schema": None}, "has schema None"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"classes": []}, "classes: List should have at least 2 items"),
        ({"files": {}}, "gives no sha256 for model.onnx"),
        ({"model": "other.onnx"}, "gives no sha256 for other.onnx"),
        ({"outputs": [{"name": "logits"}]}, "tile, window and stride"),
        ({"outputs": [{"name": "logits", "stride_px": 8}]}, "the manifest promises"),
        ({"outputs": [{"name": "scores", "stride_px": 4}]}, "the manifest promises"),
        ({"tiling": {"window_px": 32, "overlap_px": 0, "blend": "cosine"}}, "do not agree"),
    ],
)
def test_a_sealed_manifest_that_does_not_fit(
    own: Path, changes: dict[str, object], words: str
) -> None:
    reseal(own, **changes)
    with pytest.raises(BundleError) as caught:
        load(own)
    assert words in str(caught.value)


def test_another_architecture(tmp_path: Path) -> None:
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    bundle = make_bundle(tmp_path / "b", TILE, arch=other)
    with pytest.raises(BundleError, match=f"{other}.*this is {platform.machine()}.*--any-device"):
        load(bundle)
    with load(bundle, any_device=True) as session:
        session.verify()


def test_a_backend_that_is_not_here(own: Path) -> None:
    value = json.loads((own / MANIFEST_NAME).read_text())
    reseal(own, target=value["target"] | {"backend": "trt"})
    with pytest.raises(BundleError, match="portable models belong to the backend trt"):
        load(own)


def repack(own: Path, **arrays: np.ndarray) -> None:
    """Other golden data under a valid seal."""
    from edgekd.contracts.artifacts import sha256_file

    np.savez(own / "golden.npz", **arrays)
    files = json.loads((own / MANIFEST_NAME).read_text())["files"]
    reseal(own, files=files | {"golden.npz": sha256_file(own / "golden.npz")})


def test_golden_outputs(own: Path) -> None:
    with np.load(own / "golden.npz") as stored:
        image, logits = stored["image_0"], stored["logits_0"]
    with load(own) as session:
        bound = session.manifest.golden.atol
        assert session.verify() <= bound
    off = logits.copy()
    off.flat[7] += 2 * bound
    nan = logits.copy()
    nan.flat[7] = np.nan
    repack(own, image_0=image, logits_0=logits[0])  # without the batch axis
    with load(own) as session:
        assert session.verify() <= bound
    for wrong in (off, nan, -logits):
        repack(own, image_0=image, logits_0=wrong)
        with load(own) as session, pytest.raises(GateError, match="golden outputs differ by"):
            session.verify()
    for wrong_shape in (logits[:, :1], logits[:, :, :1], logits.mean()):
        repack(own, image_0=image, logits_0=wrong_shape)
        with load(own) as session, pytest.raises(BundleError, match="has shape"):
            session.verify()
    repack(own, image_0=image)
    with load(own) as session, pytest.raises(BundleError, match="lacks image_0 or logits_0"):
        session.verify()


def test_a_closed_session_says_so(bundle: Path) -> None:
    session = load(bundle)
    session.close()
    session.close()
    with pytest.raises(EdgeKDError, match="the session is closed"):
        session.run(smooth_image(10, 10))


def test_threads_share_a_session(bundle: Path) -> None:
    images = [smooth_image(90 + 7 * n, 110, seed=n) for n in range(6)]
    with load(bundle) as session:
        expected = [session.run(image) for image in images]
        found: dict[int, object] = {}

        def work(number: int) -> None:
            found[number] = session.run(images[number])

        threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, plain in enumerate(expected):
        result = found[number]
        np.testing.assert_array_equal(result.classes, plain.classes)
        np.testing.assert_array_equal(result.confidence, plain.confidence)
        assert result.stats.run == plain.stats.run


def test_a_scene_in_streams_is_the_scene_one_by_one(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = smooth_image(400, 500)
    with load(bundle) as session:
        session.backend.streams = 1
        expected = session.run(image)
    assert expected.stats.streams == 1
    with load(bundle) as session:
        session.backend.streams = 3
        session._free_streams = threading.BoundedSemaphore(3)
        inside, most = [], []
        original = session.backend._infer

        def counted(inputs: object, stream: bool) -> object:
            inside.append(stream)
            most.append(len(inside))
            time.sleep(0.002)
            try:
                return original(inputs, stream)
            finally:
                inside.pop()

        monkeypatch.setattr(session.backend, "_infer", counted)
        with ThreadPoolExecutor(2) as pool:  # two scenes share the streams of one session
            found = list(pool.map(session.run, [image, image]))
        assert max(most) == 3
        for result in found:
            assert result.stats.streams == 3
            assert result.stats.run == expected.stats.run
            np.testing.assert_array_equal(result.classes, expected.classes)
            np.testing.assert_allclose(result.confidence, expected.confidence, atol=1e-6)
        inside.clear()
        most.clear()
        assert session.run(smooth_image(60, 60)).stats.streams == 1  # one window: one call


def test_a_negative_number_of_streams_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="streams"):
        load(bundle, streams=-1)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), np.float32),
    ],
)
def test_images_that_do_not_fit_are_refused(bundle: Path, image: np.ndarray) -> None:
    with load(bundle) as session, pytest.raises(ImageError):
        session.run(image)


def test_views_of_an_image_give_the_same_as_a_copy(bundle: Path) -> None:
    image = smooth_image(80, 90)
    with load(bundle) as session:
        for view in (image[::-1], image[:, ::2], image[:, :, ::-1], image.transpose(1, 0, 2)):
            np.testing.assert_array_equal(
                session.run(view).classes, session.run(np.ascontiguousarray(view)).classes
            )
    assert edgekd.load is load and edgekd.Session is Session


def test_real_sentinel_scene(test_data: Path, tmp_path: Path) -> None:
    scene = test_data / "scenes" / "s2_beaufort_rgbn_8bit.tif"
    bundle = make_bundle(tmp_path / "b", tile_px=256, stride_px=8, width=4, classes=4)
    with load(bundle) as session:
        plain = session.run_scene(scene, tmp_path / "p.tif", bands=[1, 2, 3], nodata="declared")
        assert (plain.pixels_nodata, plain.nodata_rule) == (0, "none: the file declares none")
        result = session.run_scene(scene, tmp_path / "m.tif", bands=[1, 2, 3])
    assert "detected" in result.nodata_rule and "255" in result.nodata_rule
    with rasterio.open(scene) as source, rasterio.open(tmp_path / "m.tif") as data:
        assert (data.crs, data.transform) == (source.crs, source.transform)
        assert (data.width, data.height) == (source.width, source.height) == (2629, 2201)
        nodata = (source.read() == 255).all(axis=0)
        found = data.read(1)
    np.testing.assert_array_equal(found == 255, nodata)
    assert 0 < result.pixels_nodata == nodata.sum()
    assert result.pixels == 2629 * 2201 == result.pixels_valid + result.pixels_nodata
    assert result.pixels_covered == result.pixels_valid == sum(result.class_pixels.values())
    assert result.windows == result.windows_run + result.windows_skipped
    assert 0 < result.windows_skipped < result.windows


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "a/b.onnx", ".hidden", ""])
def test_a_manifest_cannot_point_out_of_its_folder(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "b")
    value = json.loads((bundle / "manifest.json").read_text())
    for change in ({"model": name}, {"files": {name: "0" * 64}}):
        (bundle / "manifest.json").write_text(sealed_json(value | change))
        with pytest.raises(BundleError):
            load(bundle)


def test_a_bundle_with_a_failed_gate_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    value = json.loads((bundle / "manifest.json").read_text())
    gate = {"name": "onnx_vs_torch", "value": 2.0, "bound": 1.0, "unit": "logits", "detail": ""}
    for passed, words in ((False, "gate onnx_vs_torch did not hold"), (True, "does not follow")):
        value["gates"] = [gate | {"passed": passed}]
        (bundle / "manifest.json").write_text(sealed_json(value))
        with pytest.raises(BundleError, match=words):
            load(bundle)


def test_a_provider_is_the_one_asked_for_or_an_error(tmp_path: Path) -> None:
    """Azure's is in ONNX Runtime's wheel and runs no ordinary node."""
    import onnxruntime

    azure, cpu = "AzureExecutionProvider", "CPUExecutionProvider"
    if azure not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CPU's provider alone")
    bundle = make_bundle(tmp_path / "b", tile_px=64)
    with load(bundle) as session:
        assert session.backend.details["provider"] == cpu
    with load(bundle, provider=[azure, cpu]) as session:
        assert session.backend.details["provider"] == f"{azure}, {cpu}"
    with pytest.raises(BundleError, match=f"{azure} cannot run all of it"):
        load(bundle, provider=azure)
    with pytest.raises(EnvironmentLacksError, match="has no TensorrtExecutionProvider"):
        load(bundle, provider="TensorrtExecutionProvider")
    from edgekd.cli.main import main

    arguments = ["bench", str(bundle), "--provider", azure, "--seconds", "0.1"]
    assert main(arguments) == 2
