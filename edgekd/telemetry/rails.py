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

import math
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
#: rails of Xavier NX, Orin NX and Orin Nano; the ``VDD_IN`` of a TX1 or TX2 has others beside it
#: and nothing is known of its step and lag
_SMALL = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
_AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
#: least step of a rail's reading, mW, by the rails that tell the board: 8 mA of an INA3221 behind
#: 5 mOhm at 5 V; AGX Orin's rails of 20 V and of 5 V
_STEPS_MW: tuple[tuple[tuple[str, ...], dict[str, int]], ...] = (
    (_SMALL, {"VDD_IN": 40}),
    (_AGX_ORIN, {"VDD_GPU_SOC": 400, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 100}),
)
#: time constant of the chip's averaging, s: 0.40 to 0.48 on an Orin Nano, whose chip takes the mean
#: of 64 samples, each of three channels with two conversions of 1.1 ms
_LAG_S, _SAMPLES, _INTERVAL_MS = 0.45, 64, 422.4
_LAG_NOTE = "measured on an Orin Nano with JetPack 6 alone"


@dataclass(frozen=True)
class Total:
    """How a board's power is had from its rails.

    Attributes:
        rails: that are added.
        scope: of the sum.
        step_mw: least difference between two readings where it is known; of a sum the root of the
            sum of its rails' squares, since they step each for itself.
        lag_s: time constant of its filter, s, where it is known.
    """

    rails: tuple[str, ...]
    scope: Scope
    step_mw: float | None = None
    lag_s: float | None = None

    def watts(self, rails_mw: Mapping[str, float]) -> float | None:
        """The sum, W; None where a rail is missing, since a part is no total."""
        if any(name not in rails_mw for name in self.rails):
            return None
        return sum(rails_mw[name] for name in self.rails) / 1000

    def lacks(self, names: Collection[str]) -> str:
        """Why there is no sum; empty where there is one."""
        missing = [name for name in self.rails if name not in names]
        if not missing:
            return ""
        one = len(missing) == 1
        return f"rail{'' if one else 's'} {', '.join(missing)} {'is' if one else 'are'} missing"

    def info(self, sensor: str, source: str, config: Mapping[str, str]) -> SensorInfo:
        """What must stand beside a figure of a sensor that reads these rails.

        Args:
            sensor, source: see :class:`SensorInfo`.
            config: settings of the chips, ``CHIP.samples`` and ``CHIP.update_interval`` (ms) among
                them where they can be read: under others than those of the measurement the lag is
                not known.
        """
        step = None if self.step_mw is None else round(self.step_mw / 1000, 4)
        lag, note = self.lag_s, {}
        if lag is not None:
            differs = _other_averaging(config)
            lag = None if differs else lag
            note = {"lag": f"not known: {differs}" if differs else _LAG_NOTE}
        return SensorInfo(sensor, self.scope, self.rails, source, step, lag, {**config, **note})


def _other_averaging(config: Mapping[str, str]) -> str:
    """How the chips average otherwise than where the lag was measured; empty where they do not."""
    for key, text in config.items():
        setting = key.rpartition(".")[2]
        if setting == "samples" and text != str(_SAMPLES):
            return f"{key} is {text}, and it was measured with {_SAMPLES}"
        if setting == "update_interval":
            try:
                near = 0.8 < float(text) / _INTERVAL_MS < 1.25
            except ValueError:
                near = False
            if not near:
                return f"{key} is {text} ms, and it was measured with {_INTERVAL_MS:.0f}"
    return ""


def find_total(names: Collection[str]) -> Total | None:
    """The rails that add up to the whole, or None where nobody knows. It is chosen once, of all
    rails that there are: of the rest of a board that lost one, another total would be found."""
    for rails, scope in _ADD_UP:
        if all(name in names for name in rails):
            return Total(rails, scope, _step_mw(rails, names), _lag_s(names))
    return None


def _step_mw(rails: tuple[str, ...], names: Collection[str]) -> float | None:
    for board, steps in _STEPS_MW:
        if all(name in names for name in board) and all(name in steps for name in rails):
            return math.hypot(*(steps[name] for name in rails))
    return None


def _lag_s(names: Collection[str]) -> float | None:
    return _LAG_S if all(name in names for name in _SMALL) else None
