"""Power and tiles beside work: on one clock, whatever happens to the sensor or the disk."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.errors import InputError, OutputError
from edgekd.telemetry.figures import figures
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.recorder import Recorder
from edgekd.telemetry.sensors._base import Polled, Reading, SensorInfo, SensorLost
from edgekd.telemetry.trace import TraceWriter, read_trace

INFO = SensorInfo("made-up", "board", ("VIN",), "measured", 0.01, 0.1)
NONE = PowerUnavailable(reason="no power sensor can be read here", sensors={"rapl": "needs root"})


class Made:
    info = INFO

    def __init__(self, ask: Any = None) -> None:
        self._ask = ask or (lambda: Reading(time.monotonic(), 5.0, {"VIN": 5.0}))

    def open(self, interval_s: float) -> Polled:
        return Polled(self._ask, interval_s)


class Gone:
    """Was found, and is not there when it is opened."""

    info = INFO

    def open(self, interval_s: float) -> Polled:
        raise SensorLost("its plug was pulled")


class Tiles:
    """40 a second; some were done before."""

    def __init__(self) -> None:
        self.begin = time.monotonic() - 100

    def __call__(self) -> int:
        return int((time.monotonic() - self.begin) * 40)


def test_power_and_tiles_on_one_clock(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    with Recorder(path, Made(), 0.02, Tiles()) as recorder:
        time.sleep(0.5)
        assert len(recorder.samples.readings) > 2, "can be read while it runs"
        recorder.mark("half")
        time.sleep(0.5)
    trace = read_trace(path)
    assert trace.whole and not trace.samples.lost and trace.samples.info == INFO
    assert trace.tiles is not None and trace.tiles_done is not None and trace.ended_s is not None
    assert 1.0 <= trace.ended_s < 60
    assert trace.tiles_done == pytest.approx(40 * trace.ended_s, abs=20, rel=0.1), (
        "those before, 4000 of them, do not count"
    )
    at_s = np.array([item.at_s for item in trace.samples.readings])
    assert at_s[0] >= 0 and at_s[-1] <= trace.ended_s + 5 and (np.diff(trace.tiles) >= 0).all()
    late = np.abs(trace.tiles - at_s * 40)  # a sample that waited was counted later
    assert np.median(late) <= 3
    assert trace.marks[0][1] == "half" and 0.5 <= trace.marks[0][0] <= trace.ended_s - 0.5
    live = recorder.trace
    assert live.tiles_done == trace.tiles_done and live.faults() == trace.faults()
    np.testing.assert_allclose(live.samples.power()[0], trace.samples.power()[0], atol=1e-6)
    found = figures(trace)
    assert found.mean_w is not None and found.mean_w.value == pytest.approx(5.0)
    assert found.gross_j_per_tile == pytest.approx(5 / 40, rel=0.5)
    assert found.energy_j is not None and found.tiles is not None
    assert found.gross_j_per_tile == pytest.approx(found.energy_j / found.tiles)


def test_without_a_sensor_tiles_are_written_on_the_same_grid(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t.csv", NONE, 0.02, Tiles()) as recorder:
        time.sleep(0.4)
    trace = read_trace(tmp_path / "t.csv")
    reason = "no power sensor can be read here (rapl: needs root)"
    assert trace.unavailable == recorder.trace.unavailable == reason
    assert trace.tiles is not None and len(trace.tiles) > 2 and trace.tiles[-1] > 0
    assert {item.watts for item in trace.samples.readings} == {None}, "never 0 W"
    with pytest.raises(InputError, match="power is unavailable: no power sensor"):
        figures(trace)


def test_a_sensor_that_is_lost_stands_in_the_trace(tmp_path: Path) -> None:
    left = iter(range(10))

    def ask() -> Reading:
        if next(left, None) is None:
            raise SensorLost("rail VIN is gone")
        return Reading(time.monotonic(), 5.0)

    with Recorder(tmp_path / "t.csv", Made(ask), 0.01, Tiles()):
        time.sleep(0.3)
    assert read_trace(tmp_path / "t.csv").samples.faults() == [
        "the sensor was lost: rail VIN is gone"
    ]


def test_a_sensor_that_is_gone_when_it_is_opened_does_not_stop_the_work(tmp_path: Path) -> None:
    with Recorder(tmp_path / "t.csv", Gone(), 0.01, Tiles()) as recorder:
        assert recorder.samples.lost == "its plug was pulled", "at once"
        recorder.mark("work")
        time.sleep(0.2)
    for trace in (read_trace(tmp_path / "t.csv"), recorder.trace):
        assert trace.whole and trace.faults() == ["the sensor was lost: its plug was pulled"]
        assert trace.tiles_done and trace.marks[0][1] == "work"
    with pytest.raises(InputError, match="holds no power .* its plug was pulled"):
        figures(recorder.trace)


def test_tiles_that_cannot_be_counted_are_seen_at_once(tmp_path: Path) -> None:
    calls = iter([0, 1, 2])

    def count() -> int:
        return next(calls, None) or 1 // 0

    with pytest.raises(ZeroDivisionError), Recorder(None, Made(), 0.01, count) as recorder:
        end = time.monotonic() + 5
        while recorder.failure is None and time.monotonic() < end:
            time.sleep(0.01)
        assert isinstance(recorder.failure, ZeroDivisionError)


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_full_disk_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    real, done = TraceWriter.add, []
    held = 5 if name.endswith("csv") else 0

    def full(self: TraceWriter, reading: Reading, tiles: int | None = None) -> None:
        if self.rows == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, reading, tiles)

    monkeypatch.setattr(TraceWriter, "add", full)
    with (
        pytest.raises(
            OutputError, match=f"to its end: No space left on device; it holds {held} of"
        ),
        Recorder(tmp_path / name, Made(), 0.01, Tiles()) as recorder,
    ):
        time.sleep(0.4)
        done.append("work")
    assert done == ["work"] and len(recorder.samples.readings) > 6, "samples go on"
    if name == "t.csv":
        assert not read_trace(tmp_path / name).whole


def test_the_works_own_error_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TraceWriter, "add", full)
    with pytest.raises(KeyError, match="mine"), Recorder(tmp_path / "t.csv", Made(), 0.01):
        time.sleep(0.05)
        raise KeyError("mine")


def test_a_real_full_device() -> None:
    """Linux has one: what is written to it never fits."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    writer = TraceWriter.__new__(TraceWriter)
    writer._stream = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        writer._line("a row")
    writer.abandon()


def test_wrong_use(tmp_path: Path) -> None:
    for interval in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="interval above 0 s"):
            Recorder(None, Made(), interval)
    with pytest.raises(OutputError, match="is .csv or .parquet"), \
            Recorder(tmp_path / "t.log", Made(), 0.1):  # fmt: skip
        pass
    with Recorder(None, Made(), 0.01) as recorder:
        time.sleep(0.1)
    assert recorder.trace.tiles is None and len(recorder.samples.readings) > 3
    assert list(tmp_path.iterdir()) == []
