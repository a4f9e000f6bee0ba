"""NVML by a made-up ``pynvml`` with the names of nvidia-ml-py."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from edgekd.telemetry.sampler import Sampler
from edgekd.telemetry.sensors import nvml as sensor
from edgekd.telemetry.sensors._base import SensorLost, Unavailable

ROOT = Path("/")


class Board:
    """What the made-up driver tells; None is "Not Supported"."""

    def __init__(self) -> None:
        self.names: list[Any] = ["NVIDIA H200"]
        self.energy_mj: Any = lambda: 1000 * time.monotonic() * 75
        self.instant_mw: int | None = 71000
        self.usage_mw: int | None = 69000
        self.architecture = 9
        self.old = False
        self.init = True


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    made = Board()
    nvml: Any = ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def told(value: Any) -> Any:
        if value is None:
            raise NVMLError("Not Supported")
        return value() if callable(value) else value

    def init() -> None:
        if not made.init:
            raise NVMLError("NVML Shared Library Not Found")

    def fields(handle: int, wanted: list[int]) -> list[Any]:
        assert wanted == [186]
        value = SimpleNamespace(uiVal=made.instant_mw or 0)
        return [SimpleNamespace(nvmlReturn=0 if made.instant_mw else 3, value=value)]

    nvml.NVMLError, nvml.NVML_SUCCESS = NVMLError, 0
    nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_DEVICE_ARCH_AMPERE = 186, 7
    nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM = 0, 1
    nvml.nvmlInit = init
    nvml.nvmlSystemGetDriverVersion = lambda: b"560.35"
    nvml.nvmlDeviceGetCount = lambda: len(made.names)
    nvml.nvmlDeviceGetHandleByIndex = lambda number: number
    nvml.nvmlDeviceGetName = lambda handle: made.names[handle]
    nvml.nvmlDeviceGetUUID = lambda handle: f"GPU-{handle}abc"
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: told(made.energy_mj)
    nvml.nvmlDeviceGetFieldValues = fields
    nvml.nvmlDeviceGetPowerUsage = lambda handle: told(made.usage_mw)
    nvml.nvmlDeviceGetArchitecture = lambda handle: made.architecture
    nvml.nvmlDeviceGetTemperature = lambda handle, kind: 45
    nvml.nvmlDeviceGetClockInfo = lambda handle, kind: told(None)
    nvml.nvmlDeviceGetUtilizationRates = lambda handle: SimpleNamespace(gpu=98, memory=3)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return made


def found(board: Board) -> Any:
    made = sensor.find(ROOT)
    assert not isinstance(made, Unavailable), made
    return made


def test_the_counter_comes_first(board: Board) -> None:
    gpu = found(board)
    info = gpu.info
    assert (info.scope, info.total, info.source) == ("module", ("GPU 0: NVIDIA H200",), "measured")
    assert info.config == {"reading": "energy counter", "driver": "560.35"}
    with Sampler(gpu, 0.02) as sampler:
        time.sleep(0.4)
    readings = sampler.samples.readings
    assert sampler.samples.faults() == [] and len(readings) > 5
    for item in readings:
        assert item.watts == pytest.approx(75, rel=0.02)
    assert readings[0].temperatures_c == {"gpu": 45} and readings[0].loads == {"gpu": 98}
    assert readings[0].clocks_mhz == {}, "what it does not tell is absent"
    gained = (readings[-1].energy_j or 0) - (readings[0].energy_j or 0)
    ends = [item.at_s + item.over_s / 2 for item in readings]
    assert gained == pytest.approx(75 * (ends[-1] - ends[0]), rel=0.02)
    starts = [item.at_s - item.over_s / 2 for item in readings]
    assert starts[1:] == pytest.approx(ends[:-1]), "each is the middle of what it is the mean over"


def test_a_counter_that_stands_still_tells_no_0_watts(board: Board) -> None:
    """It moves every 100 ms or so: asked in between, it has no new reading."""
    board.energy_mj = lambda: 7500 * int(time.monotonic() / 0.1)
    with Sampler(found(board), 0.02) as sampler:
        time.sleep(0.75)
    readings = sampler.samples.readings
    assert 2 <= len(readings) <= 8  # of some 37 that were asked for
    for item in readings:
        assert 20 < (item.watts or 0) < 200  # 0 and 375 W in turns is what asking would tell


def test_a_counter_that_goes_back_is_lost(board: Board) -> None:
    # looked for at first; a step, twice, each read again; then two readings
    values = iter([5000, 5000, 6000, 6000, 6000, 7000, 7000, 8000, 1000])
    board.energy_mj = lambda: next(values)
    gpu = found(board)
    gpu.open(0.01)
    gpu.ask()
    with pytest.raises(SensorLost, match="its energy counter went back"):
        gpu.ask()


def test_without_a_counter_power_of_the_moment_then_usage(board: Board) -> None:
    board.energy_mj = None
    gpu = found(board)
    assert gpu.info.config["reading"] == "power instant" and gpu.info.lag_s is None
    assert gpu.ask().watts == 71.0
    board.instant_mw = None
    gpu = found(board)
    assert gpu.info.config["reading"] == "power usage" and gpu.info.lag_s == 1.0
    assert "mean of about the last second" in gpu.info.config["note"]
    assert gpu.ask().watts == 69.0
    board.architecture = 5
    assert found(board).info.lag_s is None, "before Ampere it is no mean"
    board.usage_mw = None
    with pytest.raises(SensorLost, match="Not Supported"):
        gpu.ask()


def test_a_jetsons_gpu_has_no_power(board: Board) -> None:
    board.energy_mj = board.instant_mw = board.usage_mw = None
    board.names = [b"Orin (nvgpu)"]
    made = sensor.find(ROOT)
    assert isinstance(made, Unavailable)
    assert (
        made.reason
        == "GPU 0: Orin (nvgpu) tells no power: Not Supported; a Jetson's GPU never does"
    )


def test_of_several_gpus_one_must_be_named(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    board.names = ["A", "B"]
    made = sensor.find(ROOT)
    assert isinstance(made, Unavailable) and "2 GPUs and nothing says which" in made.reason
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert isinstance(sensor.find(ROOT), Unavailable), "CUDA counts the fastest first"
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert found(board).info.total == ("GPU 1: B",)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert isinstance(sensor.find(ROOT), Unavailable)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1a")
    assert found(board).info.total == ("GPU 1: B",)
    board.names = []
    assert "sees no GPU" in sensor.find(ROOT).reason  # type: ignore[union-attr]


def test_what_is_missing_is_told(
    board: Board, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert sensor.find(tmp_path).reason == "can be asked on this machine only"  # type: ignore[union-attr]
    board.init = False
    assert "cannot be asked: NVML Shared Library" in sensor.find(ROOT).reason  # type: ignore[union-attr]
    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.setattr(sys, "path", [])
    found = sensor.find(ROOT)
    assert isinstance(found, Unavailable) and 'pip install "edgekd[nvml]"' in found.reason
