"""From a sensor to the page, as a user types it: bench with a replay, report, browser."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.report.power import PowerRecord
from edgekd.report.record import read_record
from edgekd.telemetry.logs import read_power_file
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.trace import Trace, write_trace
from tests.helpers.browser import Browser, find_chromium
from tests.helpers.bundles import make_bundle

pytest.importorskip("onnxruntime")
ORIN_LOG = "telemetry/orin-nano-8gb_jp6_sudo-vlm-trt-100ms.log"
FAST = ["--seconds", "0.9", "--idle", "0.6", "--warmup", "0.1", "--interval", "0.02"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64)


def write_replay(path: Path, seconds: float = 60.0) -> Path:
    """Some 12 W at 50 samples a second, with temperatures."""
    rng = np.random.default_rng(0)
    info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.05)
    readings = [
        Reading(0.02 * n, 12 + 0.2 * float(rng.standard_normal()), {"VDD_IN": 12.0},
                temperatures_c={"tj": 45 + 0.1 * (n % 20)})
        for n in range(int(seconds / 0.02))
    ]  # fmt: skip
    write_trace(path, Trace(Samples(info, 0.02, readings), started_utc="2026-01-01T00:00:00Z"))
    return path


def test_bench_with_a_replay_and_its_page(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_replay(tmp_path / "orin.csv")
    record, page, kept = (tmp_path / name for name in ("r.json", "report.html", "kept.csv"))
    words = ["bench", str(bundle), "--power", f"replay:{trace}", *FAST, "-o", str(record)]
    assert main([*words, "--trace", str(kept)]) in (0, 1), capsys.readouterr().err
    out, _ = capsys.readouterr()
    power = read_record(record).power
    assert isinstance(power, PowerRecord) and power.status == "replay"
    assert power.sensor.source == "replay: orin.csv"
    assert str(tmp_path) not in record.read_text()
    assert power.engine is not None
    assert power.engine.mean_w.value == pytest.approx(12, rel=0.02)
    assert "energy per tile, J" in out and "(replay)" in out
    assert "Power is that of another time (replay: orin.csv), not of this work." in out
    # what is replayed twice is a replay still
    assert read_power_file(kept).samples.info.source == "replay: orin.csv"

    assert main(["report", str(record), "-o", str(page)]) == 0
    assert main(["report", str(record), "-o", str(tmp_path / "report.md")]) == 0
    assert main(["report", str(record), "-o", str(tmp_path / "report.json")]) == 0
    assert "(replay)" in (tmp_path / "report.md").read_text()
    assert "replay" in json.dumps(json.loads((tmp_path / "report.json").read_text()))
    with Browser(find_chromium()) as browser:
        for dark in (False, True):
            tab = browser.open(page, 1200, dark=dark)
            size = "(m => [m.width, m.height])(document.querySelector('.trace')"
            width, height = tab.evaluate(f"{size}.getBoundingClientRect())")
            assert width > 300 and height > 3
            assert "(replay)" in tab.evaluate("document.body.innerText")
            assert tab.requests() == [] and tab.complaints() == []


def test_a_replay_that_is_too_short_is_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_replay(tmp_path / "short.csv", 3.0)
    words = ["bench", str(bundle), "--power", f"replay:{trace}", "-o", str(tmp_path / "r.json")]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == 1
    assert "replay: short.csv holds 3.0 s and this measurement takes at least" in err
    assert not (tmp_path / "r.json").exists()


def test_a_trace_that_cannot_be_written_is_found_before_the_work(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = write_replay(tmp_path / "orin.csv")
    (tmp_path / "folder.csv").mkdir()
    words = ["bench", str(bundle), "--power", f"replay:{trace}", *FAST]
    words += ["-o", str(tmp_path / "r.json"), "--trace", str(tmp_path / "folder.csv")]
    begin = time.monotonic()
    assert main(words) == 2
    assert time.monotonic() - begin < 5
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == 1 and not (tmp_path / "r.json").exists()


def test_a_real_log_is_replayed_in_a_run_and_its_trace_is_read_back(
    bundle: Path, tmp_path: Path, test_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In an embedding application: power of a real Orin Nano, tiles of this machine, one clock."""
    import edgekd

    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    path = tmp_path / "t.csv"
    with (
        edgekd.load(bundle) as session,
        session.trace(path, power=f"replay:{test_data / ORIN_LOG}", interval_s=0.1) as recorder,
    ):
        while len(recorder.samples.readings) < 15:
            session.run(image)
    trace = read_power_file(path)
    at_s, watts = trace.samples.power()
    assert trace.tiles is not None and trace.tiles[-1] > 0 and (np.diff(trace.tiles) >= 0).all()
    assert 5 < watts.mean() < 8 and len(at_s) >= 15  # idle at the log's begin
    assert np.median(np.diff(at_s)) == pytest.approx(0.109, abs=0.01)
    assert main(["power", "energy", str(path), "--json"]) in (0, 1)
    value = json.loads(capsys.readouterr().out)
    assert "replay" in json.dumps(value)
