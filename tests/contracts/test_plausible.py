"""What a feature can be: declared, known, or as far as training went."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from edgekd.contracts.evidence import never_measured
from edgekd.contracts.plausible import KNOWN, Plausible, known_ranges, ranges_of
from edgekd.contracts.series_daily import FEATURES
from edgekd.contracts.tensors import SeriesInput
from edgekd.errors import InputError

COAST = SeriesInput(
    days=40, features=list(FEATURES), mean=[0.0] * len(FEATURES), std=[1.0] * len(FEATURES)
)


def test_every_feature_of_a_coast_is_known() -> None:
    recipe = yaml.safe_load(Path("engines/coastal.yaml").read_text())
    assert set(recipe["io"]["series"]["features"]) == set(FEATURES) <= set(KNOWN)
    assert all(low < high for low, high in KNOWN.values())


@pytest.mark.parametrize(
    ("feature", "value"),
    [
        ("level_mean_m", 99.0), ("level_mean_m", 9999.0), ("level_high_m", 1e12),
        ("level_high_m", -31.0), ("level_range_m", -0.1), ("level_range_m", 20.1),
        ("level_rise_m", 15.1), ("subtidal_high_m", -15.1), ("wave_height_mean_m", -5.0),
        ("wave_height_high_m", 41.0), ("wave_period_mean_s", 99.0), ("wind_speed_mean_m_s", 96.0),
        ("gust_high_m_s", 121.0), ("pressure_low_hpa", 0.0), ("pressure_low_hpa", 1091.0),
        ("water_temperature_mean_c", -6.0), ("water_temperature_mean_c", 99.0),
    ],
)  # fmt: skip
def test_what_no_coast_has_is_refused(feature: str, value: float) -> None:
    check = Plausible.of(COAST)
    values = np.full((40, len(FEATURES)), np.nan, np.float32)
    check.require(values, "NaN")
    at = FEATURES.index(feature)
    values[:, at] = sum(KNOWN[feature]) / 2
    values[0, at], values[1, at] = KNOWN[feature]  # the ends belong to it
    check.require(values, "NaN")
    values[11, at] = value
    low, high = KNOWN[feature]
    with pytest.raises(InputError) as caught:
        check.require(values, "null")
    assert str(caught.value) == (
        f"the series: day 12 has {value:.6g} for {feature}, expected {low:g} to {high:g} (what a "
        "coast can have); a gap is null"
    )
    assert not check.outside(check.clipped(values)).any()


def test_a_declared_range_comes_before_a_known_one() -> None:
    lake = COAST.model_copy(update={"ranges": {"level_mean_m": [70.0, 190.0]}})
    found = dict(zip(FEATURES, ranges_of(lake), strict=True))
    assert found["level_mean_m"] == (70, 190, "as declared")
    assert found["level_high_m"] is not None and found["level_high_m"][:2] == (-30, 30)


def test_a_feature_that_is_neither_goes_as_far_as_training_with_room() -> None:
    series = SeriesInput(days=40, features=["rain_mm"], mean=[3.0], std=[8.0])
    (found,) = ranges_of(series)
    assert found is not None and found[:2] == (-397, 403)
    assert "50 standard deviations about the mean that training saw" in str(found)
    bare = SeriesInput(days=40, features=["rain_mm"])
    assert ranges_of(bare) == known_ranges(["rain_mm"]) == [None]
    Plausible.of(bare).require(np.full((40, 1), 1e12, np.float32), "NaN")


@pytest.mark.parametrize(
    ("ranges", "words"),
    [
        ({"level": [0, 1]}, "no feature 'level'"),
        ({"level_mean_m": [1, 1]}, "goes from 1 to 1: lowest first"),
        ({"level_mean_m": [2]}, "at least 2"),
        ({"level_mean_m": [1, float("inf")]}, "finite"),
    ],
)
def test_ranges_that_are_none(ranges: dict[str, list[float]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SeriesInput(days=40, features=["level_mean_m"], ranges=ranges)


def test_files_without_ranges_are_what_they_were() -> None:
    bare = SeriesInput(days=40, features=["level_mean_m"])
    assert set(json.loads(bare.model_dump_json())) == {"name", "days", "features", "mean", "std"}
    lake = SeriesInput(days=40, features=["level_mean_m"], ranges={"level_mean_m": [70, 190]})
    assert SeriesInput.model_validate(lake.model_dump(mode="json")) == lake


def test_a_feature_that_training_never_saw_takes_no_value() -> None:
    """It would go into the network as it is, 1013 where others are about 0."""
    scale = {"mean": [0.1, 0.0], "std": [0.5, 1.0]}
    series = SeriesInput(days=40, features=["level_mean_m", "pressure_low_hpa"],
                         unmeasured=["pressure_low_hpa"], **scale)  # fmt: skip
    assert SeriesInput.model_validate(series.model_dump(mode="json")) == series
    plain = SeriesInput(days=40, features=["level_mean_m", "pressure_low_hpa"], **scale)
    assert "unmeasured" not in plain.model_dump()
    values = np.full((40, 2), np.nan, np.float32)
    values[:, 0] = 0.2
    check = Plausible.of(series)
    check.require(values, "NaN")
    values[4, 1] = 1013.0
    Plausible.of(plain).require(values, "NaN")
    with pytest.raises(InputError, match="day 5 has 1013 for pressure_low_hpa, expected none .*tr"):
        check.require(values, "NaN")
    made = check.clipped(np.array([[0.3, 1000.0], [99.0, 5.0]]))
    assert np.isnan(made[:, 1]).all() and made[0, 0] == np.float32(0.3) and made[1, 0] < 99
    with pytest.raises(ValidationError, match="there is no feature 'pressure'"):
        SeriesInput(days=40, features=["level_mean_m"], unmeasured=["pressure"])
    both = np.stack([values, values])
    assert never_measured(both, plain.features) == []
    both[:, 4, 1] = np.nan
    assert never_measured(both, plain.features) == ["pressure_low_hpa"]
