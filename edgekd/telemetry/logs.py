"""Power files of any kind as traces: edgekd's own, logs of tegrastats, and what meters leave.

Formats are told apart by what is in the file, since names say nothing: people call all of them
``power.log``. Lines that are not understood are counted by what they were and never guessed at.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from edgekd.contracts.artifacts import read_bytes
from edgekd.contracts.registry import nearest
from edgekd.errors import InputError
from edgekd.telemetry.rails import find_total
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors import meter_csv
from edgekd.telemetry.sensors._base import Scope, SensorInfo
from edgekd.telemetry.sensors.meter_csv import Meter
from edgekd.telemetry.sensors.tegrastats import to_reading
from edgekd.telemetry.tegrastats import Line, Reader
from edgekd.telemetry.trace import MAGIC, Trace, read_trace

Format = Literal["trace", "tegrastats", "fnirsi", "tasmota", "shelly", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
_TEGRASTATS = re.compile(r"(?:^|\s|::)RAM \d+/\d+MB ")
#: lines that are looked at to tell a format
_LOOK = 200
_BACK = "without a time, or with one that runs back"


def read_power_file(
    path: Path,
    interval_s: float | None = None,
    *,
    scope: Scope | None = None,
    form: str | None = None,
) -> Trace:
    """Read a power file.

    Args:
        path: a trace, a log of tegrastats, or a meter's file (FNIRSI, Tasmota, Shelly, CSV).
        interval_s: pause between the lines of a log without stamps.
        scope: what a meter measured, where its file does not say (CSV).
        form: one of :data:`FORMATS`; absent, the file tells.

    Raises:
        InputError: missing, empty, of no known format, without a reading; stamps are missing and
            no interval is given, or both are there.
        EnvironmentLacksError: Parquet without pyarrow.
    """
    if form is not None and form not in FORMATS:
        raise InputError(
            f"power format '{form}' does not exist{nearest(form, list(FORMATS))} "
            f"(valid: {', '.join(FORMATS)})"
        )
    content = read_bytes(path)
    form = form or _tell(path, content)
    if form == "trace":
        _no_interval(path, interval_s, "a trace")
        _no_scope(path, scope, "a trace")
        return read_trace(path)
    if form != "csv":
        _no_scope(path, scope, f"a file of {form}")
    if form == "tegrastats":
        return _read_tegrastats(path, content, interval_s)
    _no_interval(path, interval_s, "a meter's file")
    lines = [line.rstrip("\r") for line in content.decode("utf-8", "replace").split("\n")]
    if form == "csv":
        if meter_csv.csv_columns(next((line for line in lines if line.strip()), "")) is None:
            raise _unknown(path)
        return _of_meter(path, meter_csv.read_csv(path, lines, scope))
    read: Callable[[Path, list[str]], Meter] = {
        "fnirsi": meter_csv.read_fnirsi,
        "tasmota": meter_csv.read_tasmota,
        "shelly": meter_csv.read_shelly,
    }[form]
    if form == "fnirsi" and not meter_csv.is_fnirsi(lines):
        raise _unknown(path)
    return _of_meter(path, read(path, lines))


def _no_interval(path: Path, interval_s: float | None, what: str) -> None:
    if interval_s is not None:
        raise InputError(f"{path} is {what} with times of its own; leave --interval out")


def _no_scope(path: Path, scope: Scope | None, what: str) -> None:
    if scope is not None:
        raise InputError(f"{path} is {what}, whose scope is known; leave --scope out")


def _unknown(path: Path) -> InputError:
    return InputError(
        f"{path} is no power file; expected a trace of edgekd, a log of tegrastats, or a meter's "
        "file: FNIRSI, Tasmota, Shelly, or CSV with columns time and power_w"
    )


def _tell(path: Path, content: bytes) -> Format:
    """The format by content.

    Raises:
        InputError: none that is known.
    """
    if content.startswith((MAGIC.encode(), b"PAR1")):
        return "trace"
    text = content.decode("utf-8", "replace")
    lines = [line for line in itertools.islice(text.split("\n"), _LOOK) if line.strip()]
    if meter_csv.is_fnirsi(lines):
        return "fnirsi"
    if any(_TEGRASTATS.search(line) for line in lines):
        return "tegrastats"
    for _, value in meter_csv.json_lines(lines):
        if meter_csv.tasmota_energy(value) is not None:
            return "tasmota"
        if meter_csv.shelly_status(value) is not None:
            return "shelly"
    if lines and meter_csv.csv_columns(lines[0]) is not None:
        return "csv"
    raise _unknown(path)


def _median(times: Sequence[float]) -> float:
    return float(np.median(np.diff(times))) if len(times) > 1 else 0.0


def _of_meter(path: Path, meter: Meter) -> Trace:
    """Times since the first; readings whose stamp is not later than those before are dropped."""
    stamps = meter.times_s
    shared = meter.whole and len(set(stamps)) < len(stamps)
    kept = _later(stamps, equal=shared)
    times = [stamps[place] for place in kept]
    if shared:
        times = spread(times)
    if len(kept) < len(stamps):
        meter.counts.damaged[_BACK] = len(stamps) - len(kept)
    readings = [
        dataclasses.replace(meter.readings[place], at_s=at_s - times[0])
        for place, at_s in zip(kept, times, strict=True)
    ]
    samples = Samples(meter.info, _median(times), readings)
    return Trace(samples, started_utc=meter.started, counts=meter.counts)


def _later(stamps: Sequence[float], equal: bool) -> list[int]:
    """Places of stamps that are later than all before them, or as late where that is no fault."""
    highest, found = -float("inf"), []
    for place, at_s in enumerate(stamps):
        if at_s > highest or (equal and at_s == highest):
            highest = at_s
            found.append(place)
    return found


#: a slower pace is that of the stamps themselves
_SLOWEST_PACE_S = 0.5


def spread(stamps: Sequence[float]) -> list[float]:
    """Times of samples whose stamps are whole seconds and do not fall, s since the first second.

    Where one even pace of several a second explains all stamps to within a tenth of a pause, that
    is it: tegrastats keeps its own. A sample that is missing would stretch such a pace over all,
    and at one a second or fewer it could not be told from a slower one. So otherwise,
    samples of one second are spread evenly within it. The first and the
    last second were not seen whole: there samples keep the pause of the second beside them, at its
    end and at its start, so that the duration is right to a pause and not to a second.
    """
    groups = [(second - stamps[0], len(list(g))) for second, g in itertools.groupby(stamps)]
    if len(groups) > 1:
        pause, first, slack = _pace(groups)
        if pause < _SLOWEST_PACE_S and slack >= -pause / 10:
            return [first + place * pause for place in range(len(stamps))]
    times: list[float] = []
    for place, (second, count) in enumerate(groups):
        pause = 1.0 / count
        if place == 0 and len(groups) > 1:
            pause = min(pause, 1.0 / groups[1][1])
            times += [second + 1 - (count - n - 0.5) * pause for n in range(count)]
            continue
        if place == len(groups) - 1 and len(groups) > 1:
            pause = min(pause, 1.0 / groups[-2][1])
        times += [second + (n + 0.5) * pause for n in range(count)]
    return times


def _pace(groups: list[tuple[float, int]]) -> tuple[float, float, float]:
    """Pause, first time and slack of the even pace that lies best within the seconds ``(second,
    samples in it)``; it is within all of them where the slack is not negative."""
    counts = np.array([count for _, count in groups])
    seconds = np.array([second for second, _ in groups])
    firsts = np.cumsum(counts) - counts
    lasts = firsts + counts - 1

    def bounds(pause: float) -> tuple[float, float]:
        return float((seconds - firsts * pause).max()), float((seconds + 1 - lasts * pause).min())

    low, high = 0.0, 2 * (float(seconds[-1]) + 1) / max(int(lasts[-1]), 1)
    while high - low > 1e-9:  # the slack has one highest place
        one, two = low + (high - low) / 3, high - (high - low) / 3
        earliest, latest = bounds(one), bounds(two)
        if earliest[1] - earliest[0] < latest[1] - latest[0]:
            low = one
        else:
            high = two
    begin, end = bounds(low)
    return low, (begin + end) / 2, end - begin


def _read_tegrastats(path: Path, content: bytes, interval_s: float | None) -> Trace:
    reader = Reader()
    lines = reader.feed(content)
    reader.close()
    counts = reader.counts
    if not lines:
        said = ", ".join(f"{count} {what}" for what, count in counts.damaged.items())
        raise InputError(f"{path} holds no whole line of tegrastats: {said or 'nothing'}")
    lines, times, started = _times(path, lines, interval_s, counts.damaged)
    total = find_total({name for line in lines for name in line.rails})
    readings = [
        to_reading(line, at_s - times[0], total) for line, at_s in zip(lines, times, strict=True)
    ]
    source = f"replay: {path.name}"
    if total is None:
        info = SensorInfo("tegrastats", "module", (), source)
    else:
        info = total.info("tegrastats", source, {})
    restarted = [
        reading.at_s for line, reading in zip(lines, readings, strict=True) if line.restarted
    ]
    samples = Samples(
        info, interval_s or _median(times), readings, restarts=counts.restarts,
        restarted_s=restarted,
    )  # fmt: skip
    for reading in readings:
        if reading.watts is None:
            samples.without[reading.why] = samples.without.get(reading.why, 0) + 1
    unavailable = "; ".join(samples.without) if total is None else ""
    return Trace(samples, started_utc=started, counts=counts, unavailable=unavailable)


def _times(
    path: Path, lines: list[Line], interval_s: float | None, damaged: dict[str, int]
) -> tuple[list[Line], list[float], str]:
    """Lines with their times, s, and the first in words. Stamps are all of one kind: a line that
    has none where others have is dropped."""
    epochs = [line.epoch_s for line in lines if line.epoch_s is not None]
    walls = [line.wall for line in lines if line.wall is not None]
    if epochs:
        _no_interval(path, interval_s, "a log")
        stamped = [line for line in lines if line.epoch_s is not None]
        kept = _later(epochs, equal=False)
        times = [epochs[place] for place in kept]
        started = dt.datetime.fromtimestamp(times[0], dt.timezone.utc).isoformat()
    elif len(set(walls)) > 1 or (walls and interval_s is None and len(lines) == 1):
        _no_interval(path, interval_s, "a log")
        stamped = [line for line in lines if line.wall is not None]
        seconds = [wall.replace(tzinfo=dt.timezone.utc).timestamp() for wall in walls]
        kept = _later(seconds, equal=True)
        times = spread([seconds[place] for place in kept])
        started = f"{walls[0].isoformat()} (local time)"
    else:
        if interval_s is None:
            why = "all of one second" if walls else "without times"
            raise InputError(
                f"{path} holds {len(lines)} lines of tegrastats {why}; give the pause between them "
                f"with --interval: edgekd power import {path} --interval S -o TRACE.csv"
            )
        stamped, kept = lines, list(range(len(lines)))
        times = [place * interval_s for place in kept]
        started = f"{walls[0].isoformat()} (local time)" if walls else ""
    if len(kept) < len(lines):
        damaged[_BACK] = len(lines) - len(kept)
    return [stamped[place] for place in kept], times, started
