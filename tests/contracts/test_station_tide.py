"""Levels in a wrong unit or above a wrong datum, which the station's own tide tells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.series import Series
from edgekd.contracts.series_levels import check_station
from edgekd.contracts.series_windows import read_levels
from edgekd.contracts.station import Station, read_station
from edgekd.errors import InputError

HEIGHTS = {"STND": 0.0, "MLLW": 2.0, "MSL": 4.0, "NAVD88": 2.7, "MHHW": 5.5}
STATION = Station(
    id="1", name="Here", latitude_deg=47.0, longitude_deg=-122.0, utc_offset_h=-8.0,
    datums_m=HEIGHTS, flood_levels_m={}, record_m=None,
)  # fmt: skip


def tide(mean: float, half_range: float, days: int = 30, step_s: int = 3600, **rest: str) -> Series:
    """A tide of so many metres about a mean, above MLLW unless said."""
    times = np.datetime64("2026-01-01", "s") + np.arange(0, days * 86_400, step_s)
    hours = np.arange(len(times)) * step_s / 3600
    values = mean + half_range * np.cos(2 * np.pi * hours / 12.0)
    return Series(
        times, values[:, None], ("water_level_m",), "levels.csv", station="1",
        datum=rest.get("datum", "MLLW"),
    )  # fmt: skip


def test_a_tide_as_the_station_has_it_passes() -> None:
    assert check_station(tide(2.0, 1.75), STATION) == []
    assert check_station(tide(2.0, 1.75, step_s=360), STATION) == []
    assert check_station(tide(4.0, 1.75, datum="STND"), STATION) == []


@pytest.mark.parametrize(
    ("mean", "half", "words"),
    [
        (2.0 * 0.3048, 1.75 * 0.3048, "differ by 1.07 m on average, and the tide .* by 3.50 m"),
        (2.0 / 0.3048, 1.75 / 0.3048, "differ by 11.48 m on average"),
        (4.0, 1.75, "levels are 4.00 m above MLLW on average, and mean sea level .* is 2.00 m"),
        (0.5, 1.75, "levels are 0.50 m above MLLW"),
    ],
)
def test_feet_and_other_datums_are_refused(mean: float, half: float, words: str) -> None:
    with pytest.raises(InputError, match=f"levels.csv: .*{words}"):
        check_station(tide(mean, half), STATION)


def test_what_may_be_a_storm_is_told() -> None:
    (said,) = check_station(tide(2.7, 1.75), STATION)
    assert said.endswith("0.70 m apart, look at the datum")


def test_where_nothing_can_be_said_nothing_is() -> None:
    wrong = tide(2.0 * 0.3048, 1.75 * 0.3048)
    few_days = tide(9.0, 1.75, days=13)
    means_of_days = replace(tide(9.0, 0.1, days=60, step_s=86_400), source="daily.csv")
    for series in (few_days, means_of_days, tide(9.0, 0.1, datum="IGLD85")):
        assert check_station(series, STATION) == []
    small = replace(STATION, datums_m={"MLLW": 2.0, "MHHW": 2.4})  # the weather has more
    assert check_station(wrong, small) == []
    gone = np.full_like(wrong.values, np.nan)
    assert check_station(replace(wrong, values=gone), STATION) == []


def test_gaps_do_not_count(recwarn: pytest.WarningsRecorder) -> None:
    series = tide(2.0, 1.75)
    values = series.values.copy()
    values[100:400] = np.nan
    assert check_station(replace(series, values=values), STATION) == []
    assert not recwarn.list


@pytest.mark.parametrize(
    ("units", "datum", "words"),
    [
        ("metric", "MLLW", None), ("english", "MLLW", "a foot is 0.3048 m"),
        ("metric", "MSL", "2.12 m above MSL"), ("metric", "STND", "4.44 m above it"),
    ],
)  # fmt: skip
def test_a_real_month_of_seattle(
    test_data: Path, units: str, datum: str, words: str | None
) -> None:
    station = read_station(test_data / "coastal" / "seattle_9447130_metadata.json")
    path = test_data / "coastal" / "seattle_9447130_201501_6min_MLLW_gmt.csv"
    given = {"units": units, "datum": datum, "time_zone": "gmt", "metadata": station}
    if words is None:
        assert "look at the datum" not in " ".join(read_levels([path], **given).notes)
        return
    with pytest.raises(InputError, match=words):
        read_levels([path], **given)
