"""External meters: what FNIRSI's USB testers, smart plugs and others leave in files.

None of these files has a standard, and none has the device's clock. Formats: FNIRSI FNB48/58/C1 as
the free fnirsi_logger writes it; Tasmota's ``SENSOR`` and ``Status 8`` messages, a line each
(Tasmota, "JSON Status Responses"); Shelly's ``Switch.GetStatus`` and ``NotifyStatus`` (Shelly API
Docs, Gen2 Switch), a line each; and CSV with a column of time and one of power.
"""

from __future__ import annotations

import csv
import datetime as dt
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError
from edgekd.telemetry.sensors._base import PowerSensor, Reading, Scope, SensorInfo, Unavailable
from edgekd.telemetry.tegrastats import Counts

PREFERENCE = 80
_WH_J = 3600.0
#: packets of a FNIRSI meter that are further apart than this were not all received, s
_LOST_PACKET_S = 0.25
#: stamps of so many packets tell the meter's own pace, fewer that of its first samples
_ENOUGH_PACKETS = 50
_PLUG = "a smart plug tells a change after 1 to 10 s: for runs of minutes"


@dataclass
class Meter:
    """What a meter's file holds.

    Attributes:
        info: of the meter.
        times_s: stamps as they are, s; ``whole`` says that they are seconds without a fraction.
        readings: ``at_s`` is not set yet.
        started: the first stamp in words.
    """

    info: SensorInfo
    times_s: list[float]
    readings: list[Reading]
    counts: Counts
    started: str
    whole: bool = False


@dataclass
class _Found:
    """Lines that were understood so far."""

    times: list[float] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    def drop(self, what: str) -> None:
        self.counts.damaged[what] += 1

    def add(self, at_s: float, watts: float, energy_j: float | None = None, **more: Any) -> None:
        self.counts.lines += 1
        self.times.append(at_s)
        self.readings.append(Reading(0.0, watts, energy_j=energy_j, **more))

    def finish(self, path: Path, what: str) -> None:
        if not self.readings:
            said = ", ".join(f"{count} {kind}" for kind, count in self.counts.damaged.items())
            raise InputError(f"{path} holds no reading of {what}" + (f": {said}" if said else ""))


def _finite(text: Any) -> float | None:
    """A number, or None: JSON knows more than numbers, and true is none."""
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return None
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


# ------------------------------------------------------------------------------------ FNIRSI


def is_fnirsi(lines: Iterable[str]) -> bool:
    """Whether the first line that holds something is the logger's header."""
    first = next((line for line in lines if line.strip()), "")
    return first.split()[:2] == ["timestamp", "sample_in_packet"]


def read_fnirsi(path: Path, lines: list[str]) -> Meter:
    """100 samples a second, in packets of four with the time at which each packet arrived.

    Stamps run backwards where packets arrive late and then at once, so that neither they nor their
    sorting are the times of samples. The order in the file is: a sample of the meter's own clock
    follows the other, and the line through all stamps says when. Where packets are missing a new
    line begins.
    """
    lines = [line for line in lines if line.strip()]
    names = lines[0].split()
    for name in ("voltage_V", "current_A"):
        if name not in names:
            raise InputError(f"{path}: its header has no {name}; received {' '.join(names)[:80]}")
    energy_unit = 1.0 if "energy_Ws" in names else _WH_J if "energy_Wh" in names else None
    found = _Found()
    packets: list[int] = []
    for line in lines[1:]:
        cells = [_finite(cell) for cell in line.split()]
        if len(cells) != len(names) or None in cells:
            found.drop("cut" if line.split()[:1] and cells[0] is not None else "foreign")
            continue
        row = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
        if row["sample_in_packet"] == 0 or not packets:
            packets.append(len(found.times))
        energy = next((row[n] for n in ("energy_Ws", "energy_Wh") if n in row), None)
        zone = {"meter": row["temp_C_ema"]} if "temp_C_ema" in row else {}
        found.add(
            row["timestamp"], row["voltage_V"] * row["current_A"],
            None if energy is None or energy_unit is None else energy * energy_unit,
            temperatures_c=zone,
        )  # fmt: skip
    found.finish(path, "a FNIRSI meter")
    started = _utc(found.times[0])
    times = _mend(np.array(found.times), packets)
    info = SensorInfo("meter_csv", "board", ("voltage * current",), "meter: fnirsi")
    return Meter(info, times.tolist(), found.readings, found.counts, started)


def _mend(stamps: npt.NDArray[np.float64], packets: list[int]) -> npt.NDArray[np.float64]:
    """Times of samples that follow each other evenly, by the stamps of their packets."""
    same = np.ones(len(stamps), bool)
    same[packets] = False
    inner = np.diff(stamps)[same[1:]]
    inner = inner[inner > 0]
    step = float(np.median(inner)) if len(inner) else 0.01
    times = np.empty_like(stamps)
    first = 0
    for place, index in enumerate([*packets[1:], len(stamps)], 1):
        last = index == len(stamps)
        before = packets[place - 1]
        if not last and stamps[index] - stamps[before] < (index - before) * step + _LOST_PACKET_S:
            continue
        heads = np.array([n for n in packets[:place] if n >= first], np.float64)
        pace = step
        if len(heads) >= _ENOUGH_PACKETS:
            pace = float(
                np.polyfit(heads - heads[0], stamps[heads.astype(int)] - stamps[first], 1)[0]
            )
            pace = pace if 0.5 * step < pace < 2 * step else step
        begin = float(np.median(stamps[heads.astype(int)] - heads * pace))
        times[first:index] = begin + np.arange(first, index) * pace
        if first and times[first] <= times[first - 1]:
            times[first:index] += times[first - 1] + step - times[first]
        first = index
    return times


# ------------------------------------------------------------------------- plugs, a JSON each line

_STAMP_NAMES = ("ts", "time", "timestamp", "unixtime", "Time")


def json_lines(lines: Iterable[str]) -> list[tuple[str, dict[str, Any] | None]]:
    """What stands before the object of each line, and the object; None where there is none."""
    found: list[tuple[str, dict[str, Any] | None]] = []
    for line in lines:
        if not line.strip():
            continue
        before, brace, rest = line.partition("{")
        try:
            value = json.loads(brace + rest)
        except (ValueError, RecursionError):
            value = None
        found.append((before.strip(), value if isinstance(value, dict) else None))
    return found


def tasmota_energy(value: dict[str, Any] | None) -> tuple[Any, dict[str, Any]] | None:
    """``(Time, ENERGY)`` of a message in either form."""
    inner = value.get("StatusSNS", value) if value else None
    if not isinstance(inner, dict) or not isinstance(inner.get("ENERGY"), dict):
        return None
    return inner.get("Time"), inner["ENERGY"]


def _decimals(value: Any) -> int:
    """How finely a value is written: that is the meter's least step."""
    text = str(value)
    return 0 if "e" in text or text.endswith(".0") else len(text.partition(".")[2])


def read_tasmota(path: Path, lines: list[str]) -> Meter:
    """``Power`` is whole watts unless ``WattRes`` is set; ``Time`` is local, without its zone."""
    found, decimals, started = _Found(), 0, ""
    for _, value in json_lines(lines):
        message = tasmota_energy(value)
        if message is None:
            found.drop("foreign")
            continue
        stamp, energy = read_stamp(message[0]), message[1]
        watts, total = energy.get("Power"), _finite(energy.get("Total"))
        if isinstance(watts, list):
            found.drop("of several channels")
        elif stamp is None or (power := _finite(watts)) is None:
            found.drop("without time or power")
        else:
            decimals = max(decimals, _decimals(watts))
            started = started or f"{message[0]} (the meter's local time)"
            found.add(stamp, power, None if total is None else total * 1000 * _WH_J)
    found.finish(path, "a Tasmota plug")
    info = SensorInfo(
        "meter_csv", "wall", ("Power",), "meter: tasmota", 10.0**-decimals, config={"note": _PLUG}
    )
    whole = all(time.is_integer() for time in found.times)
    return Meter(info, found.times, found.readings, found.counts, started, whole)


def shelly_status(value: dict[str, Any] | None) -> tuple[Any, dict[str, Any]] | None:
    """``(stamp or None, status)`` of an answer or a notification."""
    if not value:
        return None
    inner = value.get("params", value.get("result", value))
    if not isinstance(inner, dict):
        return None
    stamp = next((inner[name] for name in _STAMP_NAMES if name in inner), None)
    if "apower" in inner:
        return stamp, inner
    parts = [part for part in inner.values() if isinstance(part, dict) and "apower" in part]
    return (stamp, parts[0]) if len(parts) == 1 else None


def read_shelly(path: Path, lines: list[str]) -> Meter:
    """``apower`` is W, ``aenergy.total`` Wh. The answers hold no time of their own
    (``minute_ts`` is that of the energy's last minute), so one must have been written with them:
    before the object, or in it as ``ts``."""
    found, unstamped, decimals, started = _Found(), 0, 0, ""
    for before, value in json_lines(lines):
        message = shelly_status(value)
        if message is None:
            found.drop("foreign")
            continue
        own = message[0] if message[0] is not None else before or None
        stamp, power = read_stamp(own), _finite(message[1].get("apower"))
        if power is None:
            found.drop("without power")
        elif stamp is None:
            unstamped += 1
            found.drop("without time")
        else:
            energy = message[1].get("aenergy")
            total = _finite(energy.get("total")) if isinstance(energy, dict) else None
            decimals = max(decimals, _decimals(message[1]["apower"]))
            started = started or _words(own, stamp)
            found.add(stamp, power, None if total is None else total * _WH_J)
    if unstamped and not found.readings:
        raise InputError(
            f"{path} holds answers of a Shelly without their times (minute_ts is none of a "
            'sample); write them with a time in front, e.g. echo "$(date +%s.%N) $(curl -s '
            '"http://PLUG/rpc/Switch.GetStatus?id=0")", or as CSV with columns time,power_w'
        )
    found.finish(path, "a Shelly plug")
    info = SensorInfo(
        "meter_csv", "wall", ("apower",), "meter: shelly", 10.0**-decimals, config={"note": _PLUG}
    )
    whole = all(time.is_integer() for time in found.times)
    return Meter(info, found.times, found.readings, found.counts, started, whole)


# ---------------------------------------------------------------------------------------- CSV

_TIMES = ("t_s", "time", "timestamp", "time_s", "epoch", "ts", "unixtime")
_POWERS = ("power_w", "power", "watts", "apower", "watt", "w", "p_w")
_VOLTS = ("voltage_v", "voltage", "volts", "v")
_AMPERES = ("current_a", "current", "amperes", "amps", "a")


def _cells(line: str, delimiter: str) -> list[str]:
    """Of a line; none where it is no CSV (a carriage return or NUL in its midst)."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def csv_columns(line: str) -> dict[str, int] | None:
    """Places of ``time`` and ``power``, or of ``volts`` and ``amperes``; None: no such header."""
    cells = _cells(line, _delimiter(line))
    names = [re.sub(r"\W+", "_", cell.strip().lower()).strip("_") for cell in cells]

    def place(wanted: tuple[str, ...]) -> int | None:
        return next((names.index(name) for name in wanted if name in names), None)

    found = {"time": place(_TIMES), "power": place(_POWERS), "volts": place(_VOLTS),
             "amperes": place(_AMPERES)}  # fmt: skip
    have = {name: at for name, at in found.items() if at is not None}
    enough = "power" in have or {"volts", "amperes"} <= set(have)
    return have if "time" in have and enough else None


def _delimiter(line: str) -> str:
    return next((c for c in (",", ";", "\t") if c in line), ",")


def read_csv(path: Path, lines: list[str], scope: Scope | None) -> Meter:
    """A column of time (s, or ISO 8601) and one of power in W, or of voltage and current."""
    lines = [line for line in lines if line.strip() and not line.startswith("#")]
    columns = csv_columns(lines[0])
    assert columns is not None  # its header is how it was recognised
    if scope is None:
        raise InputError(
            f"{path} does not say what its meter measured; add --scope wall (with the power "
            "supply's loss) or --scope board (at the board's input)"
        )
    found, started = _Found(), ""
    delimiter = _delimiter(lines[0])
    for line in lines[1:]:
        cells = _cells(line, delimiter)
        if len(cells) <= max(columns.values()):
            found.drop("cut")
            continue
        stamp = read_stamp(cells[columns["time"]].strip())
        if "power" in columns:
            watts = _finite(cells[columns["power"]])
        else:
            pair = [_finite(cells[columns[name]]) for name in ("volts", "amperes")]
            watts = None if None in pair else math.prod(p for p in pair if p is not None)
        if stamp is None or watts is None:
            found.drop("without time or power")
            continue
        started = started or _words(cells[columns["time"]].strip(), stamp)
        found.add(stamp, watts)
    found.finish(path, "a meter")
    if all(time > 1e11 for time in found.times):  # ms since 1970; as s that is the year 5138
        found.times = [time / 1000 for time in found.times]
    info = SensorInfo("meter_csv", scope, ("power",), "meter: csv")
    whole = all(time.is_integer() for time in found.times)
    return Meter(info, found.times, found.readings, found.counts, started, whole)


# -------------------------------------------------------------------------------------- stamps


_ISO = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?P<part>\.\d+)?"
    r"(?P<zone>Z|[+-]\d\d:\d\d)?"
)


def read_stamp(text: Any) -> float | None:
    """s of a number or of ISO 8601; None where it is neither. Local time is taken as it stands."""
    number = _finite(text)
    if number is not None or not isinstance(text, str):
        return number
    text = text.strip().strip("[]:").removesuffix(",")
    number = _finite(text)
    if number is not None:
        return number
    match = _ISO.fullmatch(text)  # datetime.fromisoformat of Python 3.10 reads less
    if match is None:
        return None
    try:
        zone = (match["zone"] or "+00:00").replace("Z", "+00:00")
        moment = dt.datetime.fromisoformat(f"{match['day']}T{match['time']}{zone}")
    except ValueError:
        return None
    return moment.timestamp() + float(match["part"] or 0)


def _words(stamp: Any, at_s: float) -> str:
    return stamp if isinstance(stamp, str) and _finite(stamp) is None else _utc(at_s)


def _utc(at_s: float) -> str:
    try:
        return dt.datetime.fromtimestamp(at_s, dt.timezone.utc).isoformat(timespec="milliseconds")
    except (OverflowError, ValueError, OSError):
        return ""


def find(root: Path) -> PowerSensor | Unavailable:
    """Read from a file alone."""
    return Unavailable("is read from a file: edgekd power import METER.csv -o TRACE.csv")
