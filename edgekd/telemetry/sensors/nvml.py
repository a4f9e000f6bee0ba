"""An NVIDIA GPU on a card, by NVML (NVIDIA, "NVML API Reference"; Python: nvidia-ml-py).

It is the card's power, not the computer's. In order of worth: the counter of energy in mJ since the
driver was loaded (Volta and later), power of the moment (``NVML_FI_DEV_POWER_INSTANT``), and
``nvmlDeviceGetPowerUsage``, which from Ampere on is the mean of about a second. A Jetson's GPU has
none of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from edgekd.contracts.optional import require
from edgekd.errors import EnvironmentLacksError
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
    Unavailable,
)

PREFERENCE = 60
#: longest pause between steps of the energy counter that is waited for, s
_STEP_S = 1.0
#: what power usage is a mean over, from Ampere on, s
_MEAN_S = 1.0


def _text(value: Any) -> str:
    """Older bindings give bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


class _Nvml:
    """One GPU.

    Attributes:
        reading: which of NVML's figures is read.
    """

    def __init__(self, nvml: ModuleType, handle: Any, label: str) -> None:
        self._nvml, self._handle = nvml, handle
        self._last: Reading | None = None
        self._counted: tuple[float, float] | None = None
        self.reading, self._read = self._choose()
        lag = _MEAN_S if self.reading == "power usage" and self._averages() else None
        config = {"reading": self.reading, "driver": _text(nvml.nvmlSystemGetDriverVersion())}
        if lag is not None:
            config["note"] = "power usage is the mean of about the last second"
        self.info = SensorInfo("nvml", "module", (label,), "measured", None, lag, config)

    def _choose(self) -> tuple[str, Callable[[], float]]:
        """The first figure that this GPU has.

        Raises:
            nvml.NVMLError: it has none.
        """
        for name, read in (("energy counter", self._joules), ("power instant", self._instant)):
            try:
                read()
                return name, read
            except (self._nvml.NVMLError, AttributeError):  # bindings older than the figure
                continue
        self._usage()
        return "power usage", self._usage

    def _joules(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000

    def _instant(self) -> float:
        nvml = self._nvml
        answer = nvml.nvmlDeviceGetFieldValues(self._handle, [nvml.NVML_FI_DEV_POWER_INSTANT])[0]
        if answer.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(answer.nvmlReturn)
        return float(answer.value.uiVal) / 1000  # mW

    def _usage(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1000  # mW

    def _averages(self) -> bool:
        try:
            kind = self._nvml.nvmlDeviceGetArchitecture(self._handle)
        except (self._nvml.NVMLError, AttributeError):
            return True
        return bool(kind >= self._nvml.NVML_DEVICE_ARCH_AMPERE)

    def ask(self) -> Reading:
        """One reading; power out of a counter is that of the middle between two of its steps. A
        counter that did not move yet gives the last one again."""
        nvml, handle = self._nvml, self._handle
        try:
            value = self._read()
        except nvml.NVMLError as err:
            raise SensorLost(f"{self.info.total[0]} cannot be read: {err}") from err
        now = time.monotonic()
        watts: float | None = value
        energy, why, over = None, "", 0.0
        if self.reading == "energy counter":
            before = self._counted
            if before is not None and value < before[1]:
                raise SensorLost(f"{self.info.total[0]}: its energy counter went back")
            if before is not None and value == before[1] and self._last is not None:
                return self._last
            self._counted, energy = (now, value), value
            watts, why = None, "a counter tells power from its second"
            if before is not None:
                over = max(now - before[0], 1e-6)
                watts, why = (value - before[1]) / over, ""
        self._last = Reading(
            now - over / 2, watts, {}, energy, why=why, over_s=over,
            temperatures_c=self._extra(
                "gpu", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            clocks_mhz=self._extra(
                "gpu", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            ),
            loads=self._extra("gpu", lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        )  # fmt: skip
        return self._last

    def _await_step(self) -> None:
        """The counter moves now and then: from a moment between, its first step would be told as
        many times the power."""
        end = time.monotonic() + _STEP_S
        try:
            first = self._read()
            while self._read() == first and time.monotonic() < end:
                time.sleep(0.001)
        except self._nvml.NVMLError as err:
            raise SensorLost(f"{self.info.total[0]} cannot be read: {err}") from err

    def _extra(self, name: str, read: Callable[[], Any]) -> dict[str, float]:
        """What stands beside power, where this GPU tells it."""
        try:
            return {name: float(read())}
        except (self._nvml.NVMLError, AttributeError):
            return {}

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`."""
        self._counted = self._last = None
        if self.reading == "energy counter":
            for _ in range(2):  # the first tells no power
                self._await_step()
                self.ask()
        return Polled(self.ask, interval_s)


def _choose_gpu(nvml: ModuleType) -> tuple[int, Any] | Unavailable:
    """The GPU that works: the only one, or the one that CUDA_VISIBLE_DEVICES leaves."""
    count = nvml.nvmlDeviceGetCount()
    handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(count)]
    if count == 1:
        return 0, handles[0]
    if not count:
        return Unavailable("NVIDIA's driver sees no GPU")
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if named.startswith("GPU-") and "," not in named:
        for number, handle in enumerate(handles):
            if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(named):
                return number, handle
    # CUDA counts the fastest first unless it is told to count as NVML does
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    if by_bus and named.isdecimal() and int(named) < count:
        return int(named), handles[int(named)]
    return Unavailable(
        f"there are {count} GPUs and nothing says which one works; set CUDA_VISIBLE_DEVICES to the "
        "GPU-... name of one (nvidia-smi -L)"
    )


def find(root: Path) -> PowerSensor | Unavailable:
    """This machine's GPU, where it tells power."""
    if root != Path("/"):
        return Unavailable("can be asked on this machine only")
    try:
        nvml = require("pynvml", "nvml", "ask NVIDIA's driver")
    except EnvironmentLacksError as err:
        return Unavailable(str(err))
    try:
        nvml.nvmlInit()
        chosen = _choose_gpu(nvml)
        if isinstance(chosen, Unavailable):
            return chosen
        number, handle = chosen
        label = f"GPU {number}: {_text(nvml.nvmlDeviceGetName(handle))}"
    except nvml.NVMLError as err:
        return Unavailable(f"NVIDIA's driver cannot be asked: {err}")
    try:
        return _Nvml(nvml, handle, label)
    except nvml.NVMLError as err:
        return Unavailable(f"{label} tells no power: {err}; a Jetson's GPU never does")
