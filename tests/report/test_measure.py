"""Measuring a real small bundle, and with an engine of known speed."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import edgekd
from edgekd.contracts.imageio import gdal_environment
from edgekd.errors import ImageError, InputError
from edgekd.report import measure as module
from edgekd.report.measure import measure
from edgekd.report.record import read_record, write_record
from edgekd.runtime.session import Session
from tests.helpers.bundles import make_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64)


def write_image(path: Path, height: int, width: int, nodata: bool = False) -> Path:
    pixels = np.random.default_rng(1).integers(1, 256, (3, height, width), dtype=np.uint8)
    if nodata:
        pixels[:] = 0
    with (
        gdal_environment() as rasterio,
        rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", count=3, height=height, width=width, nodata=0
        ) as dataset,
    ):
        dataset.write(pixels)
    return path


def test_a_file_is_measured_end_to_end(bundle: Path, tmp_path: Path) -> None:
    scene = write_image(tmp_path / "scene.tif", 150, 200)
    steps: list[tuple[int, int]] = []
    with edgekd.load(bundle) as session:
        record = measure(
            session,
            scene,
            duration_s=0.3,
            warmup_s=0.05,
            scene_runs=3,
            progress=lambda done, total: steps.append((done, total)),
        )
    assert steps == [(done, 7) for done in range(8)]
    assert record.input.name == "scene.tif"
    assert (record.input.width_px, record.input.height_px) == (200, 150)
    assert record.input.bands == [1, 2, 3]
    assert record.engine.duration_s >= 0.3
    assert record.engine.summary.n >= 30
    assert len(record.engine.block_n) == len(record.scene.runs) == 3
    assert record.scene.pixels_unique == 150 * 200
    # 64 px windows, 8 px overlap, step 56: starts 0, 56, 86 and 0, 56, 112, 136
    assert record.scene.windows_run == 12
    assert record.ratio.redundancy == pytest.approx(12 * 64**2 / 30000)
    assert record.power.status == "unavailable"
    assert record.peak_rss_mib > 20
    verdict = {check.name: check.status for check in record.checks}
    assert verdict["outputs_right"] == verdict["device_fits"] == "pass"
    assert verdict["enough_samples"] == verdict["clock_sound"] == "pass"
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json", "scene.tif"]
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()


def test_engine_and_scene_take_turns(bundle: Path) -> None:
    with edgekd.load(bundle) as session:
        record = measure(session, duration_s=0.2, warmup_s=0.02, scene_runs=3)
    first = 0
    previous_end_s = 0.0
    for count, run in zip(record.engine.block_n, record.scene.runs, strict=True):
        last = first + count - 1
        assert record.engine.starts_s[first] >= previous_end_s - 1e-6
        assert run.start_s >= record.engine.starts_s[last] + record.engine.latencies_s[last] - 1e-6
        previous_end_s = run.start_s + run.total_s
        first += count


def test_synthetic_pixels_are_said_to_be_synthetic_and_are_the_same_each_time(
    bundle: Path,
) -> None:
    with edgekd.load(bundle) as session:
        record = measure(session, duration_s=0.1, warmup_s=0.02, overlap_px=0)
    assert record.input.kind == "synthetic"
    assert "synthetic" in record.input.name
    assert (record.input.width_px, record.input.bands, record.input.sha256) == (128, None, None)
    assert record.ratio.redundancy == 1.0
    assert np.array_equal(module.synthetic_image(8, 3), module.synthetic_image(8, 3))


def test_an_engine_of_known_speed_is_measured_at_that_speed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Session, tiles: np.ndarray) -> np.ndarray:
        time.sleep(0.004)
        return np.zeros((len(tiles), 2, 16, 16), dtype=np.float32)

    monkeypatch.setattr(Session, "infer", slow)
    with edgekd.load(bundle) as session:
        record = measure(session, duration_s=0.2, warmup_s=0.02)
    assert record.engine.summary.min_s >= 0.004
    assert record.engine.summary.p50_s < 0.05
    assert record.engine.mpx_per_s == pytest.approx(64**2 / 1e6 / record.engine.summary.mean_s)
    # zeros are not what the bundle promised: a fast wrong engine is no result
    assert "outputs_right" in [check.name for check in record.failed()]
    assert not record.valid


@pytest.mark.parametrize(("growth", "steady", "calls"), [(1.05, False, 24), (1.0, True, 12)])
def test_the_warm_up_ends_when_latency_settles_or_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, growth: float, steady: bool, calls: int
) -> None:
    now_s = [0.0]
    latency_s = [0.01]

    def infer(tiles: np.ndarray) -> None:
        now_s[0] += latency_s[0]
        latency_s[0] *= growth

    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    warm_up = module._warm_up(SimpleNamespace(infer=infer), [np.zeros(1)], 0.05)  # type: ignore[arg-type]
    assert warm_up.steady is steady
    assert warm_up.iterations == len(warm_up.latencies_s) == calls
    assert warm_up.detail.startswith("steady" if steady else "not steady")


def test_a_small_image_and_one_with_little_data_can_be_measured(
    bundle: Path, tmp_path: Path
) -> None:
    scene = write_image(tmp_path / "small.tif", 10, 20)
    with edgekd.load(bundle) as session:
        record = measure(session, scene, duration_s=0.05, warmup_s=0)
    assert record.scene.windows_run == 1
    assert record.engine.tiles == 1


def test_an_image_without_data_is_an_error(bundle: Path, tmp_path: Path) -> None:
    scene = write_image(tmp_path / "empty.tif", 100, 100, nodata=True)
    with edgekd.load(bundle) as session, pytest.raises(ImageError, match="no pixel with data"):
        measure(session, scene)


@pytest.mark.parametrize(
    "values", [{"duration_s": 0}, {"duration_s": -1}, {"warmup_s": -1}, {"scene_runs": 0}]
)
def test_a_measurement_of_nothing_is_refused(bundle: Path, values: dict[str, float]) -> None:
    with edgekd.load(bundle) as session, pytest.raises(InputError, match="above 0"):
        measure(session, **values)  # type: ignore[arg-type]
