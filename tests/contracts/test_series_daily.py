"""The twelve figures of a day, on tides and weather whose figures are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgekd.contracts.series import Series
from edgekd.contracts.series_daily import FEATURES, daily_features
from edgekd.errors import InputError

START = np.datetime64("2015-03-01T00:00:00")
M2_S, K1_S = 12.4206 * 3600, 23.9345 * 3600
WEATHER = (
    "wind_direction_deg", "wind_speed_m_s", "gust_m_s", "wave_height_m", "wave_period_s",
    "pressure_hpa", "water_temperature_c",
)  # fmt: skip


def levels(
    days: int = 3, before: int = 31, step_s: int = 360, period_s: float = M2_S, **more: Any
) -> Series:
    """A tide of 1 m about 2 m; ``surge_m`` is added from the second day on."""
    seconds = np.arange(-before * 86400, days * 86400, step_s)
    values = 2 + np.cos(2 * np.pi * seconds / period_s)
    values = values + np.where(seconds >= 86400, more.get("surge_m", 0.0), 0.0)
    for low, high in more.get("gaps_h", []):
        values[(seconds >= low * 3600) & (seconds < high * 3600)] = np.nan
    times = START + seconds.astype("timedelta64[s]")
    return Series(times, values[:, None], ("water_level_m",), "tide", datum="MLLW")


def weather(days: int = 3, step_s: int = 3600) -> Series:
    seconds = np.arange(0, days * 86400, step_s)
    hour = seconds / 3600 % 24
    day = seconds // 86400
    columns = [hour, 5 + 0 * hour, 5 + hour / 2, 1 + day + 0 * hour, 8 + 0 * hour, 1013 - hour,
               10 + 0.1 * hour]  # fmt: skip
    times = START + seconds.astype("timedelta64[s]")
    return Series(times, np.stack(columns, axis=1), WEATHER, "buoy")


def without(series: Series, channel: str, low_h: float, high_h: float) -> Series:
    values = series.values.copy()
    hours = (series.times - START).astype(int) / 3600
    values[(hours >= low_h) & (hours < high_h), series.channels.index(channel)] = np.nan
    return Series(series.times, values, series.channels, series.source, datum=series.datum)


def of(out: Any, name: str) -> list[float]:
    return [float(value) for value in out[:, FEATURES.index(name)]]


def test_figures_of_a_tide_and_of_weather() -> None:
    out, names, mask = daily_features(levels(), weather(), "2015-03-01", 3)
    assert out.shape == mask.shape == (3, 12) and out.dtype == np.float32 and mask.all()
    assert names == FEATURES and len(set(names)) == 12
    assert of(out, "level_mean_m") == pytest.approx([2, 2, 2], abs=0.04)
    assert of(out, "level_high_m") == pytest.approx([3, 3, 3], abs=0.01)
    # quantiles of a cosine at 5 and 95 %: +-cos(0.05 pi)
    assert of(out, "level_range_m") == pytest.approx([2 * np.cos(0.05 * np.pi)] * 3, abs=0.03)
    # steepest hour: 2 sin(pi / 12.42) times the amplitude
    assert of(out, "level_rise_m") == pytest.approx([2 * np.sin(np.pi * 3600 / M2_S)] * 3, abs=1e-3)
    assert of(out, "wave_height_mean_m") == of(out, "wave_height_high_m") == [1, 2, 3]
    assert of(out, "wave_period_mean_s") == [8, 8, 8]
    assert of(out, "wind_speed_mean_m_s") == [5, 5, 5]
    assert of(out, "gust_high_m_s") == [16.5] * 3
    assert of(out, "pressure_low_hpa") == [990] * 3
    assert of(out, "water_temperature_mean_c") == pytest.approx([11.15] * 3)


def test_figures_of_whole_tides_are_exact() -> None:
    out = daily_features(levels(period_s=43_200), weather(), "2015-03-01", 3)[0]
    assert of(out, "level_mean_m") == pytest.approx([2] * 3, abs=1e-6)
    assert of(out, "level_range_m") == pytest.approx([2 * np.cos(0.05 * np.pi)] * 3, abs=2e-3)


def test_the_tide_is_no_surge_and_a_surge_of_days_is_one() -> None:
    for period_s, left_m in ((M2_S, 0.02), (K1_S, 0.06)):
        calm = daily_features(levels(period_s=period_s), weather(), "2015-03-01", 3)[0]
        assert max(map(abs, of(calm, "subtidal_high_m"))) < left_m
    stormy = daily_features(levels(surge_m=0.5), weather(), "2015-03-01", 3)[0]
    calm = daily_features(levels(), weather(), "2015-03-01", 3)[0]
    raised = np.subtract(of(stormy, "subtidal_high_m"), of(calm, "subtidal_high_m"))
    # 24 of 25 hours at the second day's end, all of them on the third, less the month's share
    assert raised == pytest.approx([0, 0.5 * (24 / 25 - 1 / 29.5), 0.5 * (1 - 2 / 29.5)], abs=0.02)


def test_nothing_behind_a_day_is_used() -> None:
    first = daily_features(levels(), weather(), "2015-03-01", 2)[0]
    changed = without(levels(surge_m=0.5), "water_level_m", 30, 99)
    other = without(weather(), "gust_m_s", 24, 99)
    again = daily_features(changed, other, "2015-03-01", 2)[0]
    np.testing.assert_array_equal(first[0], again[0])
    assert not np.array_equal(first[1], again[1])


def test_a_short_record_has_no_month() -> None:
    _, _, mask = daily_features(levels(40, 0), weather(40), START, 40)
    column = mask[:, FEATURES.index("subtidal_high_m")]
    assert not column[:22].any() and column[23:].all()
    assert mask[1:, :4].all()


@pytest.mark.parametrize(
    ("missing_h", "least", "there"),
    [(6, 0.75, True), (6.1, 0.75, False), (6.1, 0.7, True), (12, 0.5, True), (0.1, 1.0, False)],
)
def test_a_day_of_levels_needs_its_share(missing_h: float, least: float, there: bool) -> None:
    item = levels(gaps_h=[(24, 24 + missing_h)])
    out, _, mask = daily_features(item, weather(), START, 3, least=least)
    assert mask[:, :2].tolist() == [[True, True], [there, there], [True, True]]
    np.testing.assert_array_equal(np.isfinite(out), mask)


@pytest.mark.parametrize(("missing_h", "there"), [(6, True), (7, False)])
@pytest.mark.parametrize("step_s", [600, 3600])
def test_a_day_of_weather_needs_its_hours_by_channel(
    step_s: int, missing_h: int, there: bool
) -> None:
    item = without(weather(step_s=step_s), "wave_height_m", 24, 24 + missing_h)
    out, _, mask = daily_features(levels(), item, START, 3)
    assert not there or of(out, "wave_height_mean_m") == [1, 2, 3]
    assert mask[:, 5].tolist() == mask[:, 6].tolist() == [True, there, True]
    assert mask[:, 7:].all()


def test_dense_hours_weigh_no_more() -> None:
    coarse, fine = weather(1), weather(1, 600)
    use = ((fine.times - START).astype(int) < 6 * 3600) | np.isin(fine.times, coarse.times)
    mixed = Series(fine.times[use], fine.values[use], fine.channels, "mixed")
    low = daily_features(levels(1), mixed, START, 1)[0]
    high = daily_features(levels(1), coarse, START, 1)[0]
    assert of(low, "water_temperature_mean_c") == pytest.approx(
        of(high, "water_temperature_mean_c"), abs=0.03
    )


@pytest.mark.parametrize("step_s", [60, 360, 600, 900, 3600])
def test_figures_hardly_depend_on_the_sampling(step_s: int) -> None:
    out, _, mask = daily_features(levels(step_s=step_s), weather(), START, 3)
    assert mask.all()
    assert of(out, "level_high_m") == pytest.approx([3, 3, 3], abs=0.04)
    assert of(out, "level_rise_m") == pytest.approx([2 * np.sin(np.pi * 3600 / M2_S)] * 3, abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 4}, "tide: series has 3 days, expected 4 from 2015-03-01 on"),
        ({"days": 365}, "series has 3 days, expected 365"),
        ({"start_day": "2015-03-02"}, "series has 2 days, expected 3 from 2015-03-02"),
        ({"start_day": "2016-03-02"}, "series has 0 days, expected 3"),
        ({"start_day": "2015-02-28"}, "buoy: series has 2 days, expected 3"),
        ({"start_day": "2015-03-01T06:00"}, "expected a day such as"),
        ({"days": 0}, "expected 1 to 36,525 days"),
        ({"least": 0.0}, "a share above 0"),
        ({"least": 1.1}, "a share above 0"),
        ({"levels": weather()}, "no channel 'water_level_m'"),
        ({"weather": levels()}, "no channel 'wave_height_m'"),
        ({"levels": levels(step_s=6 * 3600)}, "levels are 21600 s apart, expected one an hour"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    valid: dict[str, Any] = {"levels": levels(), "weather": weather(), "start_day": "2015-03-01",
                             "days": 3}  # fmt: skip
    with pytest.raises(InputError, match=message):
        daily_features(**{**valid, **change})
