"""The power chip of a Raspberry Pi 5, by ``vcgencmd pmic_read_adc``.

It tells voltage and current of twelve supplies behind it. Their sum is not the board's power: USB,
PCIe and HAT loads and the chip's own loss are missing. So power is an **estimate**, by a line that
was fitted against a USB-C meter (jfikar, RPi5-power: 1.1327 x sum + 0.6444 W); the sum is kept as
rail ``pmic_sum``. Readings jump; minutes of them are worth something, one is not. A supply that is
missing makes the sum no estimate at all, so the supplies are those that were there at first.
"""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

from edgekd.contracts.board import find_program
from edgekd.telemetry.sensors._base import (
    Polled,
    PowerSensor,
    Reading,
    SensorInfo,
    SensorLost,
    Unavailable,
)

PREFERENCE = 50
_SLOPE, _OFFSET_W = 1.1327, 0.6444
#: the formula was fitted to the sum of all of these
_SUPPLIES = (
    "3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS", "0V8_SW", "VDD_CORE",
    "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI",
)  # fmt: skip
#: a process and a mailbox call each; more often only loads the board
_LEAST_INTERVAL_S = 0.2
_LIMIT_S = 5.0
_VALUE = re.compile(r"^\s*(\w+)_(A|V) (?:current|volt)\(\d+\)=(-?\d+(?:\.\d+)?)[AV]$")


def read_adc(text: str) -> dict[str, float]:
    """Supply -> W of those that have both voltage and current; their numbers do not match, so
    they are paired by name.

    Raises:
        ValueError: an error in the place of an answer; no supply has both.
    """
    said = " ".join(text.split())[:80]
    if text.lstrip().startswith("error="):
        raise ValueError(said)
    values: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        match = _VALUE.match(line.rstrip())
        if match:
            values.setdefault(match[1], {})[match[2]] = float(match[3])
    powers = {name: pair["A"] * pair["V"] for name, pair in values.items() if len(pair) == 2}
    if not powers:
        raise ValueError(f"no supply has voltage and current: {said!r}")
    return powers


def _ask(program: str) -> dict[str, float]:
    """Supply -> W of now.

    Raises:
        SensorLost: no answer.
    """
    try:
        done = subprocess.run(
            [program, "pmic_read_adc"], capture_output=True, text=True,
            timeout=_LIMIT_S, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            said = " ".join((done.stderr or done.stdout).split())[:80]
            raise ValueError(f"ended with {done.returncode}: {said!r}")
        return read_adc(done.stdout)
    except (OSError, subprocess.TimeoutExpired, ValueError) as err:
        raise SensorLost(f"{program}: {err}") from err


class _Pmic:
    def __init__(self, program: str, supplies: tuple[str, ...]) -> None:
        self._program, self._supplies = program, supplies
        formula = f"{_SLOPE} * sum + {_OFFSET_W} W"
        self.info = SensorInfo(
            "pmic", "board", ("pmic_sum",), "estimate", config={"formula": formula}
        )

    def ask(self) -> Reading:
        """One reading of all supplies."""
        powers = _ask(self._program)
        lacks = _lacks(self._supplies, powers)
        if lacks:
            return Reading(time.monotonic(), None, powers, why=lacks)
        total = sum(powers[name] for name in self._supplies)
        rails = {**powers, "pmic_sum": total}
        return Reading(time.monotonic(), _SLOPE * total + _OFFSET_W, rails)

    def open(self, interval_s: float) -> Polled:
        """See :class:`~edgekd.telemetry.sensors._base.PowerSensor`; at most five a second."""
        return Polled(self.ask, max(interval_s, _LEAST_INTERVAL_S))


def _lacks(supplies: tuple[str, ...], powers: dict[str, float]) -> str:
    missing = [name for name in supplies if name not in powers]
    return f"the power chip does not tell {', '.join(missing)}" if missing else ""


def find(root: Path) -> PowerSensor | Unavailable:
    """A ``vcgencmd`` that answers: that of a Pi 4 has no such chip behind it."""
    program = find_program(root, "vcgencmd")
    if program is None:
        return Unavailable("there is no vcgencmd; it belongs to Raspberry Pi OS")
    try:
        powers = _ask(program)
    except SensorLost as err:
        return Unavailable(f"{err}; only a Raspberry Pi 5 has this chip")
    lacks = _lacks(_SUPPLIES, powers)
    if lacks:
        return Unavailable(f"{lacks}, and the estimate is of all {len(_SUPPLIES)} supplies")
    return _Pmic(program, tuple(powers))
