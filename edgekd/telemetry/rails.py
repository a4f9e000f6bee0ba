"""Which rails add up to what.

A rail may contain others: ``VDD_IN`` of an Orin NX is all that the module draws, its other rails
are parts of that. Summing all of them reads 42 to 77 % too much. Which rails make the total is
known by their names:

========================================  ======  ==========================================
total                                     scope   boards
========================================  ======  ==========================================
``POM_5V_IN``                             board   Nano
``VDD_IN``                                module  TX1, TX2, Xavier NX, Orin NX, Orin Nano
GPU + CPU + SOC + CV + VDDRQ + SYS5V      module  AGX Xavier
``VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0``  module  AGX Orin; ``VDDQ_VDD2_1V8AO`` is behind
                                                  ``VIN_SYS_5V0``
``VIN``                                   board   Thor's carrier, which holds the rails below
``VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0``  module  Thor
========================================  ======  ==========================================

Sources: NVIDIA Jetson Linux Developer Guide ("Software-Based Power Consumption Modeling"), NVIDIA's
forum for AGX Orin (217088, 223111) and Xavier NX (200883), design guide DG-09840 for AGX Xavier.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from edgekd.telemetry.sensors._base import Scope, SensorInfo

_ADD_UP: tuple[tuple[tuple[str, ...], Scope], ...] = (
    (("POM_5V_IN",), "board"),
    (("VIN",), "board"),
    (("VDD_IN",), "module"),
    (("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"), "module"),
    (("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"), "module"),
    (("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"), "module"),
)
#: least step of a reading, mW, by the total's rails: 8 mA of an INA3221 behind 5 mOhm at 5 V, and
#: AGX Orin's 20 V rails
_STEP_MW = {("VDD_IN",): 40, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"): 400}
#: time constant of the chip's averaging, s: 0.40 to 0.48 on ``VDD_IN`` of an Orin Nano
_LAG_S: dict[tuple[str, ...], float] = {("VDD_IN",): 0.45}
_LAG_NOTE = "measured on an Orin Nano with JetPack 6 alone"


@dataclass(frozen=True)
class Total:
    """How a board's power is had from its rails.

    Attributes:
        rails: that are added.
        scope: of the sum.
        step_mw: least difference between two readings where it is known.
        lag_s: time constant of its filter, s, where it is known.
    """

    rails: tuple[str, ...]
    scope: Scope
    step_mw: int | None = None
    lag_s: float | None = None

    def watts(self, rails_mw: Mapping[str, float]) -> float | None:
        """The sum, W; None where a rail is missing, since a part is no total."""
        if any(name not in rails_mw for name in self.rails):
            return None
        return sum(rails_mw[name] for name in self.rails) / 1000

    def info(self, sensor: str, source: str, config: Mapping[str, str]) -> SensorInfo:
        """What must stand beside a figure of a sensor that reads these rails."""
        step = None if self.step_mw is None else self.step_mw / 1000
        note = {} if self.lag_s is None else {"lag": _LAG_NOTE}
        return SensorInfo(
            sensor, self.scope, self.rails, source, step, self.lag_s, {**config, **note}
        )


def find_total(names: Collection[str]) -> Total | None:
    """The rails that add up to the whole, or None where nobody knows."""
    for rails, scope in _ADD_UP:
        if all(name in names for name in rails):
            return Total(rails, scope, _STEP_MW.get(rails), _LAG_S.get(rails))
    return None
