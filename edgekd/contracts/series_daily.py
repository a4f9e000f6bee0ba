"""Days of a coast: the twelve figures of each that the coastal student takes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekd.contracts.series import Floats, Series, instant, on_grid
from edgekd.errors import InputError

FEATURES = (
    "level_mean_m",
    "level_high_m",
    "level_range_m",
    "level_rise_m",
    "subtidal_high_m",
    "wave_height_mean_m",
    "wave_height_high_m",
    "wave_period_mean_s",
    "wind_speed_mean_m_s",
    "gust_high_m_s",
    "pressure_low_hpa",
    "water_temperature_mean_c",
)
#: features that are heights above the levels' datum; the other three of levels are differences
HEIGHTS = FEATURES[:2]
#: (channel, what is taken of a day) behind the seven features of weather, in their order
_WEATHER = (
    ("wave_height_m", "mean"),
    ("wave_height_m", "high"),
    ("wave_period_s", "mean"),
    ("wind_speed_m_s", "mean"),
    ("gust_m_s", "high"),
    ("pressure_hpa", "low"),
    ("water_temperature_c", "mean"),
)
_STEPS_S = (360, 600, 720, 900, 1200, 1800, 3600)
_DAY_S, _HOUR_S = 86_400, 3_600
_TIDE_S = 25 * _HOUR_S
_MONTH_S = 708 * _HOUR_S
_BEFORE_DAYS = 31


def daily_features(
    levels: Series,
    weather: Series,
    start_day: np.datetime64 | str,
    days: int = 365,
    *,
    least: float = 0.75,
) -> tuple[npt.NDArray[np.float32], tuple[str, ...], npt.NDArray[np.bool_]]:
    """Twelve figures of each UTC day, for the risk of floods.

    No figure of a day uses anything behind that day's end. Levels are first averaged in steps of
    6 minutes (or the next coarser divisor of an hour that holds a sample in each step); a day of
    them counts where ``least`` of its steps were measured. Of weather a day counts, channel by
    channel, where ``least`` of its 24 hours hold a sample. Nothing is interpolated.

    ============================ ===== ==========================================================
    feature                      unit  definition
    ============================ ===== ==========================================================
    ``level_mean_m``             m     mean level, above the series' datum
    ``level_high_m``             m     highest step, above the datum
    ``level_range_m``            m     95 % quantile less 5 % quantile of the steps
    ``level_rise_m``             m     highest of level(t) - level(t - 1 h), t within the day
    ``subtidal_high_m``          m     highest of [mean of the last 25 h] - [mean of the last
                                       29.5 days], t within the day
    ``wave_height_mean_m``       m     mean of the hourly means of significant wave height
    ``wave_height_high_m``       m     highest significant wave height
    ``wave_period_mean_s``       s     mean of the hourly means of dominant wave period
    ``wind_speed_mean_m_s``      m/s   mean of the hourly means of wind speed
    ``gust_high_m_s``            m/s   highest gust
    ``pressure_low_hpa``         hPa   lowest pressure at sea level
    ``water_temperature_mean_c`` °C    mean of the hourly means of water temperature
    ============================ ===== ==========================================================

    On ``subtidal_high_m``: level less its 25 h mean would mostly be the tide itself, so the mean
    is what is kept. 25 h are two lunar tides (24.84 h): M2 is damped to 0.6 %, the daily K1 and O1
    to 4 % and 3 %. The month takes away datum, season and sea level rise. It is no storm surge:
    that is observed less predicted level; what lasts for hours is damped here, and comes up to
    half a day late. The mean of 25 h needs ``least`` of its steps, the month ``least`` of its own;
    so give levels from 30 days before ``start_day``, or the first 22 days have no value.

    Wind direction is not among them, since the mean of a direction is no number a student can
    use without knowing which way the coast looks.

    Args:
        levels: with the channel ``water_level_m``, hourly or denser.
        weather: with the channels of :func:`~edgekd.contracts.series_files.read_ndbc`.
        start_day: first day, UTC.
        days: number of days, 1 to 36,525.
        least: share of a day that must be measured, above 0, at most 1.

    Returns:
        ``(days, 12)`` float32 with NaN where a day does not count, the names, and ``(days, 12)``
        bool of what was measured.

    Raises:
        InputError: a channel is missing, levels are sparser than hourly, or a series covers fewer
            than ``days`` days from ``start_day`` on.
    """
    begin = instant(start_day, "start_day")
    if begin != begin.astype("datetime64[D]"):
        raise InputError(f"start_day is {begin}, expected a day such as 2015-01-01 (UTC)")
    if not 1 <= days <= 36_525 or not 0 < least <= 1:
        raise InputError(
            f"days is {days} and least {least}, expected 1 to 36,525 days and a share above 0 and "
            "at most 1"
        )
    level = levels.channel("water_level_m")
    columns = {name: weather.channel(name) for name, _ in _WEATHER}
    for series in (levels, weather):
        _require_days(series, begin, days)
    out = np.full((days, len(FEATURES)), np.nan)
    out[:, :5] = _of_levels(levels, level, begin, days, least)
    hours = on_grid(weather, begin, _HOUR_S, days * 24, most_gap_s=0)
    number = (weather.times - begin).astype(np.int64) // _DAY_S
    for index, (name, kind) in enumerate(_WEATHER, start=5):
        hourly = hours.channel(name).reshape(days, 24)
        counts = np.isfinite(hourly).sum(axis=1) >= least * 24
        if kind == "mean":
            column = _means(hourly)
        else:
            use = np.isfinite(columns[name]) & (number >= 0) & (number < days)
            fold, worst = (np.maximum, -np.inf) if kind == "high" else (np.minimum, np.inf)
            column = np.full(days, worst)
            fold.at(column, number[use], columns[name][use])
        out[:, index] = np.where(counts, column, np.nan)
    return out.astype(np.float32), FEATURES, np.isfinite(out)


def _require_days(series: Series, begin: np.datetime64, days: int) -> None:
    first = (series.times[0] - begin).astype(np.int64) // _DAY_S
    last = (series.times[-1] - begin).astype(np.int64) // _DAY_S
    covered = max(0, min(int(last), days - 1) - max(int(first), 0) + 1)
    if covered < days:
        raise InputError(
            f"{series.source}: series has {covered} days, expected {days} from "
            f"{begin.astype('datetime64[D]')} on (it goes from {series.times[0]} to "
            f"{series.times[-1]} UTC); join more files to it or ask for fewer days"
        )


def _of_levels(
    levels: Series, level: Floats, begin: np.datetime64, days: int, least: float
) -> Floats:
    """The five figures of levels, ``(days, 5)``."""
    measured = levels.times[np.isfinite(level)]
    apart_s = float(np.median(np.diff(measured).astype(np.int64))) if len(measured) > 1 else 0.0
    if not 0 < apart_s <= _HOUR_S:
        raise InputError(
            f"{levels.source}: levels are {apart_s:g} s apart, expected one an hour or more; "
            "high and low waters alone do not tell how a day went"
        )
    step_s = next(step for step in _STEPS_S if step >= apart_s)
    per_day, per_hour = _DAY_S // step_s, _HOUR_S // step_s
    lead = _BEFORE_DAYS * per_day
    grid = on_grid(
        levels,
        begin - np.timedelta64(_BEFORE_DAYS, "D"),
        step_s,
        lead + days * per_day,
        most_gap_s=0,
    ).channel("water_level_m")
    subtidal = _trailing(grid, _TIDE_S // step_s, least) - _trailing(
        grid, _MONTH_S // step_s, least
    )
    rise = np.full(len(grid), np.nan)
    rise[per_hour:] = grid[per_hour:] - grid[:-per_hour]
    out = np.full((days, 5), np.nan)
    daily, rises, slow = (item[lead:].reshape(days, per_day) for item in (grid, rise, subtidal))
    for day in range(days):
        steps = daily[day][np.isfinite(daily[day])]
        if len(steps) >= least * per_day:
            low, high = np.quantile(steps, (0.05, 0.95))
            out[day, :3] = steps.mean(), steps.max(), high - low
        for column, item in ((3, rises[day]), (4, slow[day])):
            there = item[np.isfinite(item)]
            if len(there) >= least * per_day:
                out[day, column] = there.max()
    return out


def _trailing(grid: Floats, steps: int, least: float) -> Floats:
    """Mean of the last ``steps`` values up to each, NaN where fewer than ``least`` are there."""
    there = np.isfinite(grid)
    sums = np.concatenate([[0.0], np.cumsum(np.where(there, grid, 0.0))])
    numbers = np.concatenate([[0], np.cumsum(there)])
    ends = np.arange(1, len(grid) + 1)
    starts = np.maximum(ends - steps, 0)
    number = numbers[ends] - numbers[starts]
    mean = (sums[ends] - sums[starts]) / np.maximum(number, 1)
    return np.where(number >= max(least * steps, 1), mean, np.nan)


def _means(rows: Floats) -> Floats:
    there = np.isfinite(rows)
    sums: Floats = np.where(there, rows, 0.0).sum(axis=1)
    mean: Floats = sums / np.maximum(there.sum(axis=1), 1)
    return mean
