"""jetson-stats by a made-up client with the shapes of both API generations."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekd.telemetry.sampler import Sampler
from edgekd.telemetry.sensors import jtop as sensor
from edgekd.telemetry.sensors._base import SensorLost, Unavailable

ROOT = Path("/")
NEW = {
    "rail": {
        "VDD_CPU_GPU_CV": {"volt": 5000, "curr": 300, "power": 1500, "avg": 1, "online": True},
        "VDD_SOC": {"volt": 5000, "curr": 400, "power": 2000, "avg": 1, "online": True},
        "GONE": {"power": 900, "avg": 1, "online": False},
    },
    "tot": {"name": "VDD_IN", "volt": 5000, "curr": 1200, "power": 6000, "avg": 9999},
}  # fmt: skip
AGX = {
    "rail": {
        "VDD_GPU_SOC": {"power": 4000, "avg": 1},
        "VDD_CPU_CV": {"power": 2000, "avg": 1},
        "VIN_SYS_5V0": {"power": 4500, "avg": 1},
        "VDDQ_VDD2_1V8AO": {"power": 500, "avg": 1},
        "ucsi-source-psy-1": {"power": 60000, "avg": 1},
    },
    "tot": {"power": 71000, "avg": 1},
}  # fmt: skip
OLD_MW = {"GPU": 4000, "CPU": 2000, "SOC": 1500, "CV": 1000, "VDDRQ": 500, "SYS5V": 1500}
OLD = ({"cur": 10500, "avg": 1}, {name: {"cur": mw, "avg": 1} for name, mw in OLD_MW.items()})
UNNAMED = ({"cur": 6000, "avg": 1}, {"VDD_CPU_GPU_CV": {"cur": 1500}, "VDD_SOC": {"cur": 2000}})


def client(
    monkeypatch: pytest.MonkeyPatch,
    power: Any,
    *,
    start: str = "",
    count: int = 10**9,
    then: Any = None,
) -> list[Any]:
    """A module ``jtop`` whose client sends ``power`` every interval, ``count`` times, and ``then``
    from the fourth on; returns the clients that were made."""
    clients: list[Any] = []

    class JtopException(Exception):
        pass

    class Client(threading.Thread):
        temperature = {"tj": {"temp": 49.5, "online": True}, "gpu": {"temp": -256.0}, "cpu": 47.0}

        def __init__(self, interval: float) -> None:
            super().__init__(daemon=True)
            self.interval, self.observer, self.on = interval, None, True
            self.power, self.closed = power, False
            clients.append(self)

        def attach(self, observer: Any) -> None:
            self.observer = observer

        def start(self) -> None:
            if start:
                raise JtopException(start)
            super().start()

        def run(self) -> None:
            for number in range(count):
                if not self.on:
                    return
                if then is not None and number >= 3:
                    self.power = then
                self.observer(self)  # type: ignore[misc]
                time.sleep(self.interval)

        def ok(self, spin: bool = False) -> bool:
            raise JtopException("Lost connection with jtop server")

        def close(self) -> None:
            self.on, self.closed = False, True

    module = ModuleType("jtop")
    module.jtop, module.JtopException, module.__version__ = Client, JtopException, "4.3.1"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jtop", module)
    return clients


def test_from_4_2_the_total_comes_back_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    client(monkeypatch, NEW)
    found = sensor.find(ROOT)
    assert not isinstance(found, Unavailable)
    info = found.info
    assert (info.name, info.scope, info.total, info.resolution_w, info.lag_s) == (
        "jtop", "module", ("VDD_IN",), 0.04, 0.45)  # fmt: skip
    assert info.config["jetson_stats"] == "4.3.1" and "Orin Nano" in info.config["lag"]
    with Sampler(found, 0.02) as sampler:
        time.sleep(0.3)
    readings = sampler.samples.readings
    assert sampler.samples.faults() == [] and len(readings) > 5
    assert {item.watts for item in readings} == {6.0}, "never the average"
    assert readings[0].rails_w == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.5, "VDD_SOC": 2.0}
    assert readings[0].temperatures_c == {"tj": 49.5, "cpu": 47.0}


@pytest.mark.parametrize(("power", "watts"), [(AGX, 10.5), (OLD, 10.5)])
def test_rails_are_added_by_our_own_table(
    monkeypatch: pytest.MonkeyPatch, power: Any, watts: float
) -> None:
    client(monkeypatch, power)
    found = sensor.find(ROOT)
    assert not isinstance(found, Unavailable)
    stream = found.open(0.02)
    assert stream.read(2.0)[0].watts == watts, "jtop's own total has parts and supplies in it"
    stream.close()


def test_a_rail_that_goes_off_leaves_no_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without VIN the rest has a total, too: that of the module."""
    parts = {name: {"power": 1000} for name in ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0")}
    on, off = ({"rail": {**parts, "VIN": {"power": 16800, "online": is_on}}, "tot": {}}
               for is_on in (True, False))  # fmt: skip
    client(monkeypatch, on, then=off)
    found = sensor.find(ROOT)
    assert not isinstance(found, Unavailable) and found.info.total == ("VIN",)
    stream = found.open(0.01)
    readings: list[Any] = []
    while len(readings) < 6:
        readings += stream.read(2.0)
    stream.close()
    assert [item.watts for item in readings[:3]] == [16.8] * 3
    assert {(item.watts, item.why) for item in readings[3:]} == {(None, "rail VIN is missing")}


def test_a_client_that_cannot_start_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = client(monkeypatch, NEW, start="no service")
    with pytest.raises(SensorLost, match="no service"):
        sensor.JtopStream(0.1)
    assert [item.closed for item in clients] == [True]


@pytest.mark.parametrize(
    ("power", "more", "words"),
    [
        (UNNAMED, {}, "jetson-stats before 4.2 does not name its total"),
        ({"rail": {}, "tot": {}}, {}, "jtop shows no rails"),
        ("none", {}, "jtop: jetson.power is 'none'"),
        (NEW, {"start": "The jetson_stats.service is not active. Please run:\nsudo x"},
         "jtop: The jetson_stats.service is not active. Please run: sudo x"),
        (NEW, {"count": 0}, "Lost connection with jtop server"),
    ],
)  # fmt: skip
def test_what_gives_no_total_has_its_reason(
    monkeypatch: pytest.MonkeyPatch, power: Any, more: Any, words: str
) -> None:
    client(monkeypatch, power, **more)
    monkeypatch.setattr(sensor, "_FIRST_S", 0.5)
    found = sensor.find(ROOT)
    assert isinstance(found, Unavailable) and words in found.reason and "\n" not in found.reason


def test_a_service_that_ends_is_a_lost_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    client(monkeypatch, NEW, count=3)
    stream = sensor.JtopStream(0.01)
    with pytest.raises(SensorLost, match="Lost connection with jtop server"):
        for _ in range(100):
            stream.read(0.05)


def test_without_the_library_and_on_another_root(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = sensor.find(tmp_path)
    assert isinstance(found, Unavailable) and found.reason == "can be asked on this machine only"
    monkeypatch.setitem(sys.modules, "jtop", None)
    found = sensor.find(ROOT)
    assert isinstance(found, Unavailable) and "jtop" in found.reason
