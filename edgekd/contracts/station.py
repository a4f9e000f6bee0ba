"""A tide station of NOAA CO-OPS: its place, datums and flood levels, from its metadata."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekd.contracts.artifacts import read_bytes
from edgekd.contracts.datum import datum_name
from edgekd.contracts.registry import nearest
from edgekd.contracts.series import LEVELS, Series
from edgekd.errors import InputError

FOOT_M = 0.3048
_MOST_JSON_BYTES = 50_000_000
UNITS_M = {"feet": FOOT_M, "ft": FOOT_M, "meters": 1.0, "metres": 1.0, "m": 1.0}
#: entries of the list of datums that are ranges (of length) and intervals (of time), no heights
_NO_HEIGHTS = ("GT", "MN", "DHQ", "DLQ", "HWI", "LWI")
_RISING = ("MLLW", "MLW", "MTL", "MHW", "MHHW")
_FLOODS = (
    "nos_minor", "nos_moderate", "nos_major", "nws_minor", "nws_moderate", "nws_major", "action",
)  # fmt: skip


@dataclass(frozen=True)
class Station:
    """A station, all heights in metres above its own zero (station datum, STND).

    Attributes:
        id, name: of the operator.
        latitude_deg, longitude_deg: north and east positive.
        utc_offset_h: local standard time less UTC; None where the file has none.
        datums_m: name of the datum to its height.
        flood_levels_m: name (``nos_minor``, ``nws_major``, ``action``, ...) to its height.
        record_m: lowest and highest level ever measured, or None.
        notes: sentences on what was read and converted.
    """

    id: str
    name: str
    latitude_deg: float
    longitude_deg: float
    utc_offset_h: float | None
    datums_m: Mapping[str, float]
    flood_levels_m: Mapping[str, float]
    record_m: tuple[float, float] | None
    notes: tuple[str, ...] = ()

    def height_m(self, datum: str) -> float:
        """Height of a datum above the station's zero.

        Raises:
            InputError: the station lacks it, or it is a range or a time; names the nearest.
        """
        name = datum_name(datum)
        if name in _NO_HEIGHTS:
            raise InputError(
                f"'{datum}' is a range or an interval of the tide, no height; expected one of "
                f"{', '.join(self.datums_m)}"
            )
        if name not in self.datums_m:
            raise InputError(
                f"station {self.id} ({self.name}) has no datum '{datum}'"
                f"{nearest(name, list(self.datums_m))} (it has: {', '.join(self.datums_m)})"
            )
        return self.datums_m[name]


def to_datum(series: Series, station: Station, datum: str) -> Series:
    """The series with levels above another datum of the station.

    A level above A is a level above B plus the height of A less the height of B, both above the
    station's zero. CO-OPS gives these to 0.01 ft, so to some 3 mm.

    Raises:
        InputError: the series has no levels or is of another station, or a datum is lacking.
    """
    if series.datum is None:
        raise InputError(f"{series.source} has no levels, so no datum to change")
    if series.station and series.station != station.id:
        raise InputError(
            f"{series.source} is of station {series.station} and the datums are of {station.id} "
            f"({station.name}): heights of datums differ from place to place"
        )
    name = datum_name(datum)
    shift = station.height_m(series.datum) - station.height_m(name)
    values = series.values.copy()
    for index, channel in enumerate(series.channels):
        if channel in LEVELS:
            values[:, index] += shift
    note = (
        f"levels from {series.datum} to {name}: {shift:+.4f} m added, by the datums of station "
        f"{station.id}"
    )
    return replace(series, values=values, datum=name, notes=(*series.notes, note))


def flood_levels(station: Station, datum: str) -> dict[str, float]:
    """The station's flood levels in metres above one of its datums.

    Raises:
        InputError: the station lacks the datum.
    """
    zero = station.height_m(datum)
    return {name: height - zero for name, height in station.flood_levels_m.items()}


def read_station(path: Path) -> Station:
    """Read a station of the CO-OPS metadata service (MDAPI), one station to a file.

    It is fetched with ``stations/ID.json?expand=details,datums,floodlevels``. The list of datums
    names its unit (feet, unless metric was asked for); flood levels name neither unit nor datum.
    They are in the unit of the datums and above the station's zero, not above MLLW: of Seattle
    (9447130) ``nos_minor`` is 21.39 ft where MHHW is 19.30 ft, and NOAA's own rule for it (1.04
    times the diurnal range GT plus 0.50 m above MLLW; Technical Report NOS CO-OPS 086) gives
    7.94 + 1.04 * 11.36 + 1.64 = 21.39 ft above that zero. So a file is refused where a NOS level
    lies below MHHW or any level 10 m above it: one of the two has another unit.

    Raises:
        InputError: not such a file, more than one station, or heights that contradict each other.
    """
    whole = _mapping(parse_json(path, read_json_bytes(path)), path, "the file")
    refuse_error(path, whole)
    listed = whole.get("stations", [whole] if "lat" in whole else None)
    if not isinstance(listed, list) or len(listed) != 1:
        number = len(listed) if isinstance(listed, list) else "no"
        raise InputError(
            f"{path} lists {number} stations, expected one: fetch stations/ID.json?expand="
            "details,datums,floodlevels of the CO-OPS metadata service"
        )
    entry = _mapping(listed[0], path, "the station")
    datums = _mapping(entry.get("datums"), path, "'datums'")
    if not isinstance(datums.get("datums"), list):
        raise InputError(
            f"{path} has no list of datums; fetch it again with ?expand=details,datums,floodlevels"
        )
    unit = str(datums.get("units", "")).strip().lower()
    if unit not in UNITS_M:
        raise InputError(f"{path}: datums are in the unit '{unit}', expected feet or meters")
    factor = UNITS_M[unit]
    heights: dict[str, float] = {}
    for item in datums["datums"]:
        item = _mapping(item, path, "a datum")
        name = datum_name(str(item.get("name", "")))
        if item.get("value") is not None and name not in _NO_HEIGHTS:
            heights[name] = _number(item["value"], path, f"datum {name}") * factor
    for name in ("HAT", "LAT"):
        if datums.get(name) is not None:
            heights[name] = _number(datums[name], path, f"datum {name}") * factor
    _check_datums(path, heights)
    record = None
    if datums.get("min") is not None and datums.get("max") is not None:
        low, high = (_number(datums[key], path, f"'{key}'") * factor for key in ("min", "max"))
        record = (low, high)
    floods = {
        key: _number(value, path, f"flood level {key}") * factor
        for key, value in _mapping(entry.get("floodlevels") or {}, path, "'floodlevels'").items()
        if key in _FLOODS and value is not None
    }
    _check_floods(path, heights, floods)
    offset = entry.get("timezonecorr")
    place = {key: _number(entry.get(key), path, f"'{key}'") for key in ("lat", "lng")}
    if abs(place["lat"]) > 90 or abs(place["lng"]) > 360:
        raise InputError(f"{path}: the station lies at {place['lat']}, {place['lng']}: no place")
    return Station(
        str(entry.get("id", "")),
        str(entry.get("name", "")),
        place["lat"],
        place["lng"],
        None if offset is None else _number(offset, path, "'timezonecorr'"),
        heights,
        floods,
        record,
        (
            f"heights of {len(heights)} datums and {len(floods)} flood levels read in {unit}, all "
            "above the station's zero (STND)",
        ),
    )


def _check_datums(path: Path, heights: Mapping[str, float]) -> None:
    if abs(heights.get("STND", 0.0)) > 1e-9:
        raise InputError(f"{path}: datum STND is {heights['STND']:g} m, expected 0: it is the zero")
    rising = [(name, heights[name]) for name in _RISING if name in heights]
    for (low, below), (high, above) in itertools.pairwise(rising):
        if below > above:
            raise InputError(
                f"{path}: datum {low} ({below:.3f} m) lies above {high} ({above:.3f} m); the list "
                "is damaged: fetch it again"
            )


def _check_floods(path: Path, heights: Mapping[str, float], floods: Mapping[str, float]) -> None:
    if "MHHW" not in heights:
        return  # lakes have no tide to check against
    top = heights["MHHW"]
    for name, height in floods.items():
        if (name.startswith("nos_") and height < top) or height > top + 10:
            raise InputError(
                f"{path}: flood level {name} lies {height - top:+.2f} m from mean higher high "
                "water, expected 0 to 10 m above it: flood levels and datums have different units "
                "or zeros; fetch both with the same units"
            )


def read_json_bytes(path: Path) -> bytes:
    """The bytes of a file of JSON that is not too large to be one.

    Raises:
        InputError: missing, empty, or above 50 MB.
    """
    if path.is_file() and path.stat().st_size > _MOST_JSON_BYTES:
        raise InputError(
            f"{path} has {path.stat().st_size:,} bytes, expected at most {_MOST_JSON_BYTES:,} of "
            "JSON; fetch shorter spans"
        )
    return read_bytes(path)


def parse_json(path: Path, raw: bytes) -> Any:
    """Parsed JSON; NaN and infinity, which JSON does not have, are refused.

    Raises:
        InputError: not JSON.
    """

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no number of JSON")

    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except (ValueError, RecursionError) as err:
        words = " ".join(str(err).split())[:160]
        raise InputError(f"{path} is not JSON: {words}; fetch it again") from err


def refuse_error(path: Path, value: Mapping[str, Any]) -> None:
    """Raise the service's own words where it answered with an error.

    Raises:
        InputError: it did.
    """
    if "error" in value:
        error = value["error"]
        said = error.get("message", error) if isinstance(error, Mapping) else error
        words = " ".join(str(said).split())[:300]
        raise InputError(
            f"{path} holds no data but the service's error: '{words}'; ask it again for what it has"
        )


def _mapping(value: Any, path: Path, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(
            f"{path}: {what} is no JSON object, expected the metadata of a CO-OPS station"
        )
    return value


def _number(value: Any, path: Path, what: str) -> float:
    try:
        if isinstance(value, bool) or not math.isfinite(number := float(value)):
            raise ValueError
    except (TypeError, ValueError, OverflowError) as err:
        raise InputError(f"{path}: {what} is {str(value)[:40]!r}, expected a number") from err
    return number
