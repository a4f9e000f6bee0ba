"""What water levels can be: codes for gaps among them, and levels that no sea has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.plausible import KNOWN
from edgekd.contracts.series import Floats, Series
from edgekd.contracts.station import Station
from edgekd.errors import InputError

#: heights that a level can have, m, of datums with their own; the Great Lakes lie up to 184 m above
#: IGLD 1985
_PLAUSIBLE_M = {"IGLD85": (0.0, 250.0)}
_RECORD_MARGIN_M = 2.0
#: from the lowest to the highest level of a file: the tide of the Bay of Fundy (16.3 m, the largest
#: there is) and a surge on it. More is feet where metres were said; lakes are not told apart so.
_MOST_SPAN_M = 20.0
#: part of the values that may be impossible before the whole is taken for another unit
MOST_OUTSIDE = 0.01

#: days, and samples in each, that a mean is taken of
_DAYS_OF_MEAN, _SAMPLES_OF_DAY = 14, 20
#: smaller tides drown in the weather, m
_TIDE_LEAST_M = 0.5
#: from mean sea level: what two weeks of storms, or a century of rise, may be off, m; and what is
#: told
_MEAN_OFF_M, _MEAN_ODD_M = 1.0, 0.5


def check_levels(
    path: Path,
    values: Floats,
    codes: npt.NDArray[np.bool_],
    places: list[str],
    datum: str,
    units: str,
    metadata: Station | None,
) -> list[str]:
    """Make gaps of codes for gaps, refuse other levels that cannot be; what was done, in words.

    Args:
        path: of the file, for the sentence.
        values: ``(n,)``, m above ``datum``; changed.
        codes: ``(n,)``, where the file had a number that may be a code for a gap.
        places: the words for each row.
        units: as they were given.
        metadata: of the station, whose record bounds its levels.

    Raises:
        InputError: a level, or the span of all, is none that a sea has.
    """
    low, high = _PLAUSIBLE_M.get(datum, KNOWN["water_level_m"])
    why, bounded = "no sea stands so", datum in _PLAUSIBLE_M
    if metadata is not None and metadata.record_m is not None and datum in metadata.datums_m:
        zero, bounded = metadata.height_m(datum), True
        low, high = (
            metadata.record_m[0] - zero - _RECORD_MARGIN_M,
            metadata.record_m[1] - zero + _RECORD_MARGIN_M,
        )
        why = f"station {metadata.id} never measured one {_RECORD_MARGIN_M:g} m near it"
    outside = (values < low) | (values > high)  # a gap is neither
    gaps = outside & codes
    notes = []
    if gaps.any():
        notes.append(
            f"{int(gaps.sum()):,} levels are codes for a gap (99, 999, 9999, 99999 or less these), "
            f"first on {places[int(np.argmax(gaps))]}: gaps now"
        )
        values[gaps] = np.nan
        outside &= ~gaps
    probably = f"units were given as {units}, so they or the datum are probably others (feet?)"
    measured = int(np.isfinite(values).sum())
    if outside.any():
        row, count = int(np.argmax(outside)), int(outside.sum())
        few = f"{count:,} of {measured:,} levels are so: leave theirs empty, which is a gap"
        raise InputError(
            f"{path}: {places[row]} has a level of {values[row]:.3f} m above {datum}, expected "
            f"{low:.1f} to {high:.1f} m: {why}; "
            f"{probably if count > MOST_OUTSIDE * measured else few}"
        )
    if measured and not bounded:
        _check_span(path, values, places, probably)
    return notes


def check_station(series: Series, station: Station) -> list[str]:
    """Hold a station's levels against its own tide; what was noticed, in words.

    A level that was given in the wrong unit, or above the wrong datum, is often one that the
    station could have. Their mean and their daily range are not: a month's mean lies near mean sea
    level, and a day's range near the great diurnal range, MHHW less MLLW.

    Raises:
        InputError: the range is half or twice what it should be, or the mean 1 m off.
    """
    datum, heights = series.datum, station.datums_m
    days = (series.times - series.times[0]).astype("timedelta64[D]").astype(np.int64)
    values = series.channel("water_level_m")
    there = np.isfinite(values)
    _, starts, counts = np.unique(days[there], return_index=True, return_counts=True)
    whole = counts >= _SAMPLES_OF_DAY
    if datum is None or datum not in heights or whole.sum() < _DAYS_OF_MEAN:
        return []
    known = values[there]
    highs, lows = np.maximum.reduceat(known, starts), np.minimum.reduceat(known, starts)
    seen = float((highs - lows)[whole].mean())
    if {"MHHW", "MLLW"} <= heights.keys():
        tide = heights["MHHW"] - heights["MLLW"]
        if tide >= _TIDE_LEAST_M and not 0.5 <= seen / tide <= 2:
            raise InputError(
                f"{series.source}: levels of a day differ by {seen:.2f} m on average, and the tide "
                f"of station {station.id} by {tide:.2f} m; units are probably others than given "
                "(a foot is 0.3048 m), or it is another station"
            )
    if "MSL" not in heights:
        return []
    mean, expected = float(known.mean()), heights["MSL"] - heights[datum]
    off = abs(mean - expected)
    said = (
        f"levels are {mean:.2f} m above {datum} on average, and mean sea level of station "
        f"{station.id} is {expected:.2f} m above it"
    )
    if off > _MEAN_OFF_M:
        raise InputError(
            f"{series.source}: {said}; units or datum are probably others than given, or it is "
            "another station"
        )
    return [f"{said}: {off:.2f} m apart, look at the datum"] if off > _MEAN_ODD_M else []


def _check_span(path: Path, values: Floats, places: list[str], probably: str) -> None:
    least, most = float(np.nanmin(values)), float(np.nanmax(values))
    if most - least <= _MOST_SPAN_M:
        return
    low, middle, high = np.nanquantile(values, (MOST_OUTSIDE, 0.5, 1 - MOST_OUTSIDE))
    if high - low <= _MOST_SPAN_M:
        row = int(np.nanargmax(np.abs(values - middle)))
        raise InputError(
            f"{path}: {places[row]} has a level of {values[row]:.3f} m, and all but "
            f"{100 * 2 * MOST_OUTSIDE:g} % of them lie from {low:.2f} to {high:.2f} m; leave it "
            "empty, which is a gap"
        )
    raise InputError(
        f"{path}: levels go from {least:.2f} to {most:.2f} m, and the largest tide there is has "
        f"16.3 m; {probably}; if they are right, give the station's metadata, whose record bounds "
        "them then"
    )
