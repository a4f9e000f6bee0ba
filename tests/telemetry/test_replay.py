"""A file in the place of a sensor: at its own pace, to its end, and never without the word."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.errors import InputError
from edgekd.telemetry.power import choose_sensor
from edgekd.telemetry.sampler import Sampler, Samples
from edgekd.telemetry.sensors import replay
from edgekd.telemetry.sensors._base import PowerSensor, Reading, SensorInfo, SensorLost, Unavailable
from edgekd.telemetry.trace import Trace, write_trace


def make(tmp_path: Path, pause_s: float = 0.05, count: int = 21, source: str = "measured") -> Path:
    info = SensorInfo("ina3221", "module", ("VDD_IN",), source, 0.04, 0.45)
    readings = [Reading(3 + n * pause_s, 5.0 + n, {"VDD_IN": 5.0 + n}) for n in range(count)]
    write_trace(tmp_path / "t.csv", Trace(Samples(info, pause_s, readings)))
    return tmp_path / "t.csv"


def test_it_plays_at_its_own_pace_until_its_end(tmp_path: Path) -> None:
    sensor = replay.open_replay(make(tmp_path))
    assert isinstance(sensor, PowerSensor)
    assert sensor.duration_s == pytest.approx(1.0)
    assert sensor.info.source == "replay: t.csv" and sensor.info.scope == "module"
    begin = time.monotonic()
    with Sampler(sensor, 0.01) as sampler:
        while not sampler.samples.lost and time.monotonic() < begin + 5:
            time.sleep(0.02)
    at_s, watts = sampler.samples.power()
    np.testing.assert_allclose(watts, 5 + np.arange(21))
    np.testing.assert_allclose(np.diff(at_s), 0.05, rtol=1e-6)
    assert begin <= at_s[0] and time.monotonic() - begin > 0.95
    assert sampler.samples.faults() == ["the sensor was lost: the replay has come to its end"]


def test_it_can_be_read_faster_and_in_between(tmp_path: Path) -> None:
    sensor = replay.open_replay(make(tmp_path), speed=10)
    assert sensor.duration_s == pytest.approx(0.1)
    stream = sensor.open(0.1)
    assert len(stream.read(0.1)) >= 1
    time.sleep(0.15)
    assert len(stream.read(0.0)) == 21 - 1, "what is due is given at once, each with its own time"
    with pytest.raises(SensorLost, match="come to its end"):
        stream.read(0.1)


def test_a_slow_file_is_not_stalled(tmp_path: Path) -> None:
    """A plug tells power every few seconds, whatever interval was asked for."""
    sensor = replay.open_replay(make(tmp_path, pause_s=1.2, count=4))
    with Sampler(sensor, 0.05) as sampler:
        time.sleep(2.6)
    assert sampler.samples.faults() == [] and len(sampler.samples.readings) == 3


def test_an_estimate_stays_one(tmp_path: Path) -> None:
    sensor = replay.open_replay(make(tmp_path, source="estimate"))
    assert sensor.info.source == "replay: t.csv (of an estimate)"
    assert sensor.info.status == "replay"


def test_a_restart_is_played_when_it_was(tmp_path: Path) -> None:
    info = SensorInfo("tegrastats", "module", ("VDD_IN",))
    readings = [Reading(n / 50, 5.0) for n in range(10)]
    samples = Samples(info, 0.02, readings, restarts=2, restarted_s=[0.1])
    write_trace(tmp_path / "t.csv", Trace(samples))
    stream = replay.open_replay(tmp_path / "t.csv").open(0.1)
    assert stream.restarts == 1, "of one nobody knows when"
    with Sampler(replay.open_replay(tmp_path / "t.csv"), 0.1) as sampler:
        end = time.monotonic() + 5
        while not sampler.samples.lost and time.monotonic() < end:
            time.sleep(0.02)
    found = sampler.samples
    assert found.restarts == 2 and len(found.restarted_s) == 2
    assert found.restarted_s[1] >= found.readings[5].at_s


def test_what_cannot_be_played(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x.csv does not exist"):
        choose_sensor(f"replay:{tmp_path / 'x.csv'}", tmp_path)
    with pytest.raises(InputError, match="holds no power that could be replayed"):
        choose_sensor(f"replay:{make(tmp_path, count=1)}", tmp_path)
    info = SensorInfo("null", "module", (), "unavailable")
    none = Trace(
        Samples(info, 1.0, [Reading(1.0, None), Reading(2.0, None)]), unavailable="not asked for"
    )
    write_trace(tmp_path / "none.csv", none)
    with pytest.raises(InputError, match="no power that could be replayed: not asked for"):
        replay.open_replay(tmp_path / "none.csv")
    assert choose_sensor(f"replay:{make(tmp_path)}", tmp_path).info.source == "replay: t.csv"  # type: ignore[union-attr]
    found = replay.find(tmp_path)
    assert isinstance(found, Unavailable) and "--power replay:FILE" in found.reason
