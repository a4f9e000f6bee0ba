"""Ordinary work that is logged: ``session.trace`` in an application."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import edgekd
from edgekd.errors import EnvironmentLacksError, InputError, OutputError
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.trace import Trace, read_trace, write_trace
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

TILE = 64
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("b") / "tiny", tile_px=TILE, classes=3)


@pytest.fixture(scope="module")
def powers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty seconds of a module's power, 20 a second."""
    info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.45)
    readings = [Reading(n / 20, 5 + n % 3, {"VDD_IN": 5.0 + n % 3}) for n in range(400)]
    path = tmp_path_factory.mktemp("p") / "power.csv"
    write_trace(path, Trace(Samples(info, 0.05, readings)))
    return path


def test_every_tile_is_counted_once(bundle: Path, tmp_path: Path) -> None:
    image = smooth_image(300, 400)
    scene = write_raster(tmp_path / "in.tif", image)
    with edgekd.load(bundle, streams=4) as session:
        assert session.tiles_done == 0
        result = session.run_scene(scene, tmp_path / "m.tif")
        assert result.windows_run > 20 and session.tiles_done == result.windows_run
        before = session.tiles_done
        tile = session.normalize(image[:TILE, :TILE])[None]
        with ThreadPoolExecutor(8) as pool:
            calls = [session.infer, session.infer_stream] * 100
            list(pool.map(lambda call: call(tile), calls))
        assert session.tiles_done - before == 200
        with pytest.raises(Exception, match="."):
            session.infer(tile[:, :1])
        assert session.tiles_done - before == 200, "what failed left no model"


def test_counting_costs_nothing_that_can_be_measured(bundle: Path) -> None:
    """Far below a call of the smallest model there is; a bound, so that noise cannot break it."""
    with edgekd.load(bundle) as session:
        logits = np.zeros((1, 3, 4, 4), np.float32)
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(2000):
                session._counted(logits)
            best = min(best, (time.perf_counter() - start) / 2000)
    assert best < 20e-6


def test_a_scene_is_logged_with_tiles_and_power(bundle: Path, powers: Path, tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "in.tif", smooth_image(300, 400))
    path = tmp_path / "deep" / "t.csv"
    with edgekd.load(bundle) as session:
        session.run(smooth_image(TILE, TILE))  # what was done before does not count
        with session.trace(path, f"replay:{powers}", 0.05) as trace:
            result = session.run_scene(scene, tmp_path / "m.tif")
            trace.mark("map is there")
            time.sleep(0.4)
            live = [item.watts for item in list(trace.samples.readings)]
    assert live and set(live) <= {5.0, 6.0, 7.0}, "an application can show them while it works"
    found = read_trace(path)
    assert found.whole and found.faults() == [] and found.tiles is not None
    assert found.tiles_done == result.windows_run == found.tiles[-1]
    assert found.samples.info.source == "replay: power.csv"
    assert [name for _, name in found.marks] == ["map is there"]


def test_without_power_tiles_are_logged_and_the_reason(bundle: Path, tmp_path: Path) -> None:
    with edgekd.load(bundle) as session, session.trace(tmp_path / "t.csv", "none", 0.02):
        session.run(smooth_image(200, 200))
        time.sleep(0.1)
    found = read_trace(tmp_path / "t.csv")
    assert found.unavailable == "not asked for" and found.tiles_done and found.tiles is not None
    assert found.tiles[-1] == found.tiles_done


def test_what_cannot_be_traced_is_told_before_the_work(bundle: Path, tmp_path: Path) -> None:
    with edgekd.load(bundle) as session:
        with pytest.raises(InputError, match="'tegrastat' does not exist; did you mean"):
            session.trace(tmp_path / "t.csv", "tegrastat")
        with pytest.raises(EnvironmentLacksError, match="power sensor pmic cannot be read"):
            session.trace(tmp_path / "t.csv", "pmic")
        (tmp_path / "file").touch()
        with pytest.raises(OutputError, match="cannot be made"), \
                session.trace(tmp_path / "file" / "t.csv", "none"):  # fmt: skip
            pytest.fail("the block must not begin")
        with pytest.raises(InputError, match="interval above 0"):
            session.trace(tmp_path / "t.csv", "none", 0)
    assert threading.active_count() < 20


def test_an_application_needs_no_telemetry_until_it_traces(bundle: Path) -> None:
    code = (
        "import sys, edgekd\n"
        f"with edgekd.load({str(bundle)!r}) as session: session.golden_error()\n"
        "print([name for name in sys.modules if name.startswith('edgekd.telemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
