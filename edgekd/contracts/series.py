"""Series of a coast's sensors: times, values with gaps, and the rules that hold for all of them.

Readers are in :mod:`edgekd.contracts.series_files`, days in :mod:`edgekd.contracts.series_daily`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.datetime64]

#: channels that are heights above the series' datum
LEVELS = ("water_level_m", "predicted_level_m")
_UNITS = ("_m", "_s", "_m_s", "_hpa", "_c", "_deg")
_MOST_CELLS = 100_000_000
_TIME = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d(:\d\d(:\d\d)?)?)?", re.ASCII)


@dataclass(frozen=True, eq=False)
class Series:
    """What sensors measured at one place.

    Attributes:
        times: ``(n,)`` datetime64[s] in UTC, strictly increasing, n >= 1.
        values: ``(n, channels)`` float64, NaN where nothing was measured, else finite.
        channels: names that end in their unit: ``water_level_m``, ``wind_speed_m_s``,
            ``pressure_hpa``, ``water_temperature_c``, ``wind_direction_deg`` (0-360, from which).
        source: the file or files.
        station: the operator's id of the place, empty where it is not known.
        datum: what levels are heights above, e.g. ``MLLW``; None where there are no levels.
        notes: sentences on what was found and done (converted, sorted, dropped, flagged).

    Raises:
        InputError: one of these does not hold.
    """

    times: Times
    values: Floats
    channels: tuple[str, ...]
    source: str
    station: str = ""
    datum: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        times = np.array(self.times, dtype="datetime64[s]")
        values = np.array(self.values, dtype=np.float64)
        if times.ndim != 1 or values.shape != (len(times), len(self.channels)) or not values.size:
            raise InputError(
                f"{self.source}: values have the shape {values.shape} for {len(times)} times and "
                f"{len(self.channels)} channels, expected at least one of each"
            )
        if np.isnat(times).any() or (np.diff(times) <= np.timedelta64(0, "s")).any():
            raise InputError(f"{self.source}: times must increase from row to row")
        if np.isinf(values).any():
            raise InputError(f"{self.source}: a value is infinite, expected a number or a gap")
        for name in self.channels:
            if not name.endswith(_UNITS) or self.channels.count(name) > 1:
                raise InputError(
                    f"channel '{name}' must be there once and end in its unit: {', '.join(_UNITS)}"
                )
        if self.datum is None and set(LEVELS) & set(self.channels):
            raise InputError(
                f"{self.source}: levels need a datum: a height says nothing without what it is "
                "above"
            )
        for array in (times, values):
            array.flags.writeable = False
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "values", values)

    def channel(self, name: str) -> Floats:
        """Values ``(n,)`` of one channel.

        Raises:
            InputError: there is no such channel; names the nearest and all.
        """
        if name not in self.channels:
            raise InputError(
                f"{self.source} has no channel '{name}'{nearest(name, list(self.channels))} "
                f"(it has: {', '.join(self.channels)})"
            )
        return self.values[:, self.channels.index(name)]


def in_order(
    times: Times, values: Floats, *, source: str, place: Callable[[int], str]
) -> tuple[Times, Floats, list[str]]:
    """Rows by time, each time once, and sentences on what was done for it.

    Args:
        times, values: ``(n,)`` and ``(n, channels)``, as they were read.
        place: the words for row ``i``, e.g. ``line 7``.

    Raises:
        InputError: one time has two different rows (a value and a gap differ too).
    """
    notes: list[str] = []
    back = int((np.diff(times) < np.timedelta64(0, "s")).sum())
    order = np.argsort(times, kind="stable")
    if back:
        notes.append(f"times went back at {back:,} of {len(times):,} rows: sorted by time")
        times, values = times[order], values[order]
    again = times[1:] == times[:-1]
    after, before = values[1:], values[:-1]
    equal = ((after == before) | (np.isnan(after) & np.isnan(before))).all(axis=1)
    if (again & ~equal).any():
        row = int(np.argmax(again & ~equal))
        raise InputError(
            f"{source}: {place(int(order[row + 1]))} has {times[row]} with other values than "
            f"{place(int(order[row]))}: which is right cannot be told; remove one"
        )
    if again.any():
        notes.append(f"{int(again.sum()):,} rows repeated another to the digit: dropped")
        keep = np.concatenate([[True], ~again])
        times, values = times[keep], values[keep]
    return times, values, notes


def joined(parts: Sequence[Series]) -> Series:
    """One series of several of the same station, channels and datum, e.g. of twelve months.

    Times that two parts share must have the same values; they stand once in the result.

    Raises:
        InputError: no parts, parts that differ in kind, or times with different values.
    """
    if not parts:
        raise InputError("no series to join; give at least one")
    first = parts[0]
    for part in parts[1:]:
        for what in ("channels", "datum", "station"):
            have, expected = getattr(part, what), getattr(first, what)
            if have != expected:
                raise InputError(
                    f"{part.source} has {what} {have!r} and {first.source} {expected!r}: only "
                    "series of one kind can be joined"
                )
    names = [part.source for part in parts for _ in range(len(part.times))]
    times, values, done = in_order(
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.values for part in parts]),
        source="joined series",
        place=lambda row: names[row],
    )
    told = [f"{part.source}: {note}" for part in parts for note in part.notes]
    source = ", ".join(part.source for part in parts)
    return replace(first, times=times, values=values, source=source, notes=(*told, *done))


def on_grid(
    series: Series, start: np.datetime64 | str, step_s: int, count: int, *, most_gap_s: float
) -> Series:
    """The series in equal steps: cell ``i`` is the mean of what lies in ``[t, t + step_s)`` with
    ``t = start + i * step_s``, and has the time ``t``.

    Empty cells between two measured ones are filled linearly where ``k`` of them in a row last no
    longer than ``most_gap_s`` (``k * step_s``); longer gaps, and cells before the first or behind
    the last measured one, stay NaN: nothing is extrapolated. Samples outside the grid are not
    used. Channels in degrees are averaged and filled as directions (350 and 10 give 0); opposite
    directions have no mean and give NaN.

    Args:
        start: first cell's time, UTC.
        step_s: whole seconds, at least 1.
        count: number of cells, 1 to 100,000,000.
        most_gap_s: longest gap that is filled; 0 fills none.

    Raises:
        InputError: an argument is outside its range.
    """
    if step_s < 1 or int(step_s) != step_s or not 1 <= count <= _MOST_CELLS:
        raise InputError(
            f"a grid of {count} steps of {step_s} s, expected 1 to {_MOST_CELLS:,} steps of at "
            "least 1 s, both whole numbers"
        )
    if not (math.isfinite(most_gap_s) and most_gap_s >= 0):
        raise InputError(f"most_gap_s is {most_gap_s}, expected a number of seconds from 0 on")
    begin = instant(start, "start")
    cells = (series.times - begin).astype(np.int64) // int(step_s)
    inside = (cells >= 0) & (cells < count)
    cells, rows = cells[inside], series.values[inside]
    out = np.full((count, len(series.channels)), np.nan)
    measured = filled = 0
    for index, name in enumerate(series.channels):
        there = np.isfinite(rows[:, index])
        where, column = cells[there], rows[there, index]
        number = np.bincount(where, minlength=count)
        have = np.flatnonzero(number)
        turning = name.endswith("_deg")
        parts = [column]
        if turning:
            parts = [np.cos(np.radians(column)), np.sin(np.radians(column))]
        means = []
        for part in parts:
            mean = np.full(count, np.nan)
            mean[have] = np.bincount(where, weights=part, minlength=count)[have] / number[have]
            means.append(_filled(mean, have, int(step_s), most_gap_s))
        if turning:
            length = np.hypot(*means)
            angle = np.degrees(np.arctan2(means[1], means[0])) % 360.0
            out[:, index] = np.where(length > 1e-9, angle, np.nan)
        else:
            out[:, index] = means[0]
        measured += len(have)
        filled += int(np.isfinite(means[0]).sum()) - len(have)
    note = (
        f"on a grid of {count:,} steps of {step_s} s from {begin}: {measured:,} values are means "
        f"of samples, {filled:,} are filled linearly in gaps of at most {most_gap_s:g} s, "
        f"{out.size - measured - filled:,} have none; {int((~inside).sum()):,} rows lie outside"
    )
    times = begin + (np.arange(count) * int(step_s)).astype("timedelta64[s]")
    return replace(series, times=times, values=out, notes=(*series.notes, note))


def _filled(mean: Floats, have: npt.NDArray[np.intp], step_s: int, most_gap_s: float) -> Floats:
    """``mean`` with its short gaps filled; ``have`` are the cells that hold a value."""
    empty = np.flatnonzero(np.isnan(mean))
    if len(have) < 2 or not len(empty):
        return mean
    after = np.searchsorted(have, empty)
    between = (after > 0) & (after < len(have))
    empty, after = empty[between], after[between]
    long_s = (have[after] - have[after - 1] - 1) * float(step_s)
    empty = empty[long_s <= most_gap_s]
    mean[empty] = np.interp(empty, have, mean[have])
    return mean


def instant(value: np.datetime64 | str, what: str) -> np.datetime64:
    """A time in seconds, UTC.

    Raises:
        InputError: it is none (numpy itself would take "now" and "today").
    """
    text = str(value)
    try:
        if not _TIME.fullmatch(text):
            raise ValueError
        return np.array([text], dtype="datetime64[s]")[0]  # type: ignore[no-any-return]
    except ValueError as err:
        raise InputError(
            f"{what} is '{text}', expected a time (UTC) such as 2015-01-01 or 2015-01-01T06:00"
        ) from err
