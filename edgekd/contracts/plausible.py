"""What a feature of a coast's series can be: one rule for readers, sets, models and requests.

A range is the recipe's own (``io.series.ranges``), else that of a known feature, else as far as
training's values went, with room. A value outside is no measurement: a sensor's code for a gap,
another unit, a broken sensor. It is refused and never answered for, since a network answers
whatever it is given, and its answer to 9999 m of water looks like any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.contracts.tensors import SeriesInput
from edgekd.errors import InputError

Float32 = npt.NDArray[np.float32]

_LEVEL, _SURGE = (-30.0, 30.0), (-15.0, 15.0)
_WAVE, _PERIOD = (0.0, 40.0), (0.0, 60.0)
_WIND, _GUST = (0.0, 95.0), (0.0, 120.0)
_PRESSURE, _WATER = (850.0, 1090.0), (-5.0, 45.0)
#: Channels of the readers, and figures of their days, in the unit of their names. Sources:
#:
#: * levels: the largest tide is 16.3 m (Burntcoat Head, Bay of Fundy; NOAA, Canadian Hydrographic
#:   Service) and the highest surge told of some 13 m (Mahina, Queensland, 1899; Nott et al. 2014):
#:   30 m together, to either side of a datum. The range of a day is that tide and a common surge;
#:   that tide rises by 4.1 m in an hour (pi * 16.3 m / 12.42 h), a wave of a tsunami by more. Lakes
#:   above IGLD or another far datum need ranges of their own.
#: * waves: 19.0 m is the highest significant height that a buoy measured (North Atlantic, 2013; WMO
#:   World Weather and Climate Extremes Archive); the range is twice that. Gravity waves end at 30 s
#:   (Munk 1950); twice that, too.
#: * wind: 95 m/s for a minute (Patricia 2015; National Hurricane Center), a gust of 113.2 m/s
#:   (Olivia, Barrow Island 1996; WMO).
#: * pressure at sea level: 870 hPa (Tip 1979) to 1083.8 hPa (Agata 1968; WMO).
#: * water: sea water of 35 g/kg freezes at -1.9 degrees C; 38.4 were measured in a shallow bay
#:   (Manatee Bay, Florida, 2023; NDBC).
KNOWN: Final[Mapping[str, tuple[float, float]]] = {
    "level_mean_m": _LEVEL,
    "level_high_m": _LEVEL,
    "level_range_m": (0.0, 20.0),
    "level_rise_m": (-5.0, 15.0),
    "subtidal_high_m": _SURGE,
    "wave_height_mean_m": _WAVE,
    "wave_height_high_m": _WAVE,
    "wave_period_mean_s": _PERIOD,
    "wind_speed_mean_m_s": _WIND,
    "gust_high_m_s": _GUST,
    "pressure_low_hpa": _PRESSURE,
    "water_temperature_mean_c": _WATER,
    "water_level_m": _LEVEL,
    "predicted_level_m": _LEVEL,
    "wave_height_m": _WAVE,
    "wave_period_s": _PERIOD,
    "mean_wave_period_s": _PERIOD,
    "wave_direction_deg": (0.0, 360.0),
    "wind_speed_m_s": _WIND,
    "gust_m_s": _GUST,
    "wind_direction_deg": (0.0, 360.0),
    "pressure_hpa": _PRESSURE,
    "pressure_tendency_hpa": (-60.0, 60.0),
    "air_temperature_c": (-70.0, 60.0),
    "water_temperature_c": _WATER,
    "dew_point_c": (-90.0, 45.0),
    "visibility_m": (0.0, 185_000.0),
}
#: of a feature that is neither declared nor known: so many standard deviations of training's
#: values about their mean. Wide, since rain or discharge has days of 30; a code for a gap has more.
DEVIATIONS: Final = 50.0
#: codes that sensors' networks write where they have no value. They are gaps where they lie outside
#: what the channel can be; 99 degrees and 999 hPa are values.
SENTINELS: Final = (99.0, 999.0, 9999.0, 99999.0, -99.0, -999.0, -9999.0, -99999.0)


class Range(NamedTuple):
    """Lowest and highest value of a feature, in its unit, and where they come from."""

    low: float
    high: float
    why: str

    def __str__(self) -> str:
        if self.is_empty:
            return f"none ({self.why})"
        return f"{self.low:g} to {self.high:g} ({self.why})"

    @property
    def is_empty(self) -> bool:
        """Whether no value is inside."""
        return self.low > self.high


#: of a feature that training never saw a value of
NEVER = Range(float("inf"), float("-inf"), "training had no value of it")


class Outside(NamedTuple):
    """The first value of a series that its feature cannot have; ``day`` counts from 1."""

    day: int
    feature: str
    value: float
    range: Range

    def __str__(self) -> str:
        said = f"{self.value:.6g}"
        return f"day {self.day} has {said} for {self.feature}, expected {self.range}"


def known_ranges(
    features: Sequence[str], declared: Mapping[str, Sequence[float]] | None = None
) -> list[Range | None]:
    """Range of each feature where one is declared or known, else None."""
    declared = declared or {}
    found: list[Range | None] = []
    for name in features:
        if name in declared:
            found.append(Range(float(declared[name][0]), float(declared[name][1]), "as declared"))
        elif name in KNOWN:
            found.append(Range(*KNOWN[name], "what a coast can have"))
        else:
            found.append(None)
    return found


def ranges_of(series: SeriesInput) -> list[Range | None]:
    """Range of each feature that a model takes: declared, known, or of training's values.

    :data:`NEVER` where training had none: such a feature would go into the network as a number
    whose meaning was never learned.

    None only of a feature that is neither, in a recipe whose model was not trained yet.
    """
    found = known_ranges(series.features, series.ranges)
    for name in series.unmeasured:
        found[series.features.index(name)] = NEVER
    if series.mean is None or series.std is None:
        return found
    why = f"{DEVIATIONS:g} standard deviations about the mean that training saw"
    return [
        item or Range(mean - DEVIATIONS * std, mean + DEVIATIONS * std, why)
        for item, mean, std in zip(found, series.mean, series.std, strict=True)
    ]


class Plausible:
    """Tells whether values are ones that features can have.

    Args:
        features: names, of the last axis.
        ranges: of each; None bounds nothing.
    """

    def __init__(self, features: Sequence[str], ranges: Sequence[Range | None]) -> None:
        self.features, self.ranges = tuple(features), tuple(ranges)
        inf = float("inf")
        self._low = np.array([-inf if r is None else r.low for r in self.ranges], np.float32)
        self._high = np.array([inf if r is None else r.high for r in self.ranges], np.float32)

    def __str__(self) -> str:
        pairs = zip(self.features, self.ranges, strict=True)
        return "; ".join(f"{name} {'any' if r is None else r}" for name, r in pairs)

    @classmethod
    def of(cls, series: SeriesInput) -> Plausible:
        """By :func:`ranges_of`."""
        return cls(series.features, ranges_of(series))

    def outside(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where ``values (..., features)`` are impossible; a gap (NaN) is not."""
        found: npt.NDArray[np.bool_] = (values < self._low) | (values > self._high)
        return found

    def first(self, values: Float32) -> Outside | None:
        """The first impossible value of ``(days, features)``, by day."""
        bad = self.outside(values)
        if not bad.any():
            return None
        day, at = (int(number) for number in np.argwhere(bad)[0])
        given = self.ranges[at]
        assert given is not None  # none is outside of no range
        return Outside(day + 1, self.features[at], float(values[day, at]), given)

    def require(self, values: Float32, gap: str) -> None:
        """Raise for the first impossible value of one series ``(days, features)``.

        Args:
            gap: what stands for one where the values come from: ``null``, ``NaN``.

        Raises:
            InputError: names day, feature, value and range.
        """
        if (found := self.first(values)) is not None:
            raise InputError(f"the series: {found}; a gap is {gap}")

    def clipped(self, values: npt.NDArray[Any]) -> Float32:
        """``values (..., features)`` brought into their ranges, for what is made up.

        Of a feature that takes none it is a gap, NaN.
        """
        found: Float32 = np.clip(values.astype(np.float32), self._low, self._high)
        found[..., self._low > self._high] = np.nan
        return found
