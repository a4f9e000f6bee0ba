"""Readers of what NOAA hands out as text: water levels of CO-OPS, weather and waves of NDBC."""

from __future__ import annotations

import contextlib
import csv
import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.contracts.datum import datum_name
from edgekd.contracts.plausible import KNOWN, SENTINELS
from edgekd.contracts.registry import nearest
from edgekd.contracts.series import Floats, Series, in_order
from edgekd.contracts.series_levels import MOST_OUTSIDE, check_levels
from edgekd.contracts.series_text import head, read_lines, read_times, read_value, whole_json
from edgekd.contracts.station import (
    FOOT_M,
    Station,
    parse_json,
    refuse_error,
)
from edgekd.errors import InputError

DATUMS = (
    "MLLW", "MLW", "MTL", "MSL", "DTL", "MHW", "MHHW", "NAVD88", "STND", "LAT", "HAT", "IGLD85",
    "LWD", "CRD", "NGVD29",
)  # fmt: skip
#: the columns by which the products of CO-OPS that are no water levels are known
_PRODUCTS = {
    "pressure": "air_pressure", "speed": "wind", "gust": "wind", "d": "wind",
    "water temperature": "water_temperature", "air temperature": "air_temperature",
    "humidity": "humidity", "visibility": "visibility", "conductivity": "conductivity",
    "salinity": "salinity", "air gap": "air_gap", "ty": "high_low", "type": "predictions at "
    "high and low water (interval=hilo)",
}  # fmt: skip
_DOWNLOAD_FLAGS = {"o or i (for verified)", "o", "i", "f", "r", "l", "t"}


@dataclass
class _Levels:
    """Rows of levels as they are read."""

    channel: str = "water_level_m"
    station: str = ""
    places: list[str] = field(default_factory=list)
    times: list[str] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    flagged: list[bool] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, path: Path, place: str, time: str, level: str, flags: str, quality: str) -> None:
        """One row; ``flags`` is empty or a list with commas."""
        value = read_value(path, place, level, "level", {""})
        self.places.append(place)
        self.times.append(time)
        self.values.append(value)
        self.flagged.append(False)
        if math.isnan(value):
            return
        if quality not in ("v", "p", ""):
            raise InputError(
                f"{path}: {place} has the quality '{quality[:20]}', expected v (verified) or p "
                "(preliminary)"
            )
        self.counts[quality] += 1
        words = [word.strip() for word in flags.split(",")] if flags.strip(" ,") else []
        if not all(word.isdecimal() and len(word) < 6 for word in words) or len(words) not in (
            0, 2, 4,
        ):  # fmt: skip
            raise InputError(
                f"{path}: {place} has the flags '{flags[:40]}', expected four whole numbers with "
                "commas (two of hourly heights)"
            )
        numbers = [int(word) for word in words]
        if not numbers:
            return
        first = "outliers" if quality == "p" else "inferred"
        names = (first, "flat", "rate", "limit") if len(numbers) == 4 else ("inferred", "limit")
        raised = [name for name, number in zip(names, numbers, strict=True) if number]
        self.counts.update(raised)
        self.flagged[-1] = bool(set(raised) - {"outliers"})


def read_coops(
    path: Path,
    *,
    units: str,
    datum: str,
    time_zone: str,
    metadata: Station | None = None,
    drop_flagged: bool = False,
) -> Series:
    """Read water levels or predictions of NOAA CO-OPS, CSV or JSON, plain or gzip.

    Read are the API's CSV (``Date Time, Water Level, Sigma, O or I (for verified), F, R, L,
    Quality``; ``Date Time, Prediction``), its JSON (``data`` or ``predictions``), and that JSON's
    rows as CSV (``t,v,s,f,q``). None of them says units, datum or zone, so they are to be given
    as they were asked for. An empty level is a gap.

    A level of exactly 99, 999, 9999 or 99999, or less these, is a code for a gap where it is no
    level that the station can have; such are gaps, and counted in the notes. (The Niagara does
    stand at 99 m above IGLD 1985, which is kept.) Any other level that cannot be is an error.

    Feet that are said to be metres show where the station's record is at hand (``metadata``);
    without it where levels span more than 20 m, which no sea does: the largest tide has 16.3 m.
    Smaller tides in feet look like any: nothing but what was asked of the service tells them.

    The four flags (the API's response help): of preliminary levels the first is O, the number of
    1 s samples farther than three sigma from the mean; of verified ones I, 1 where the level was
    inferred and not measured. F: the flat tolerance, R: the rate of change, L (T): the highest or
    lowest expected level was exceeded. Hourly heights have I and L. All are counted in the notes;
    with ``drop_flagged`` levels with I, F, R or L become gaps. O is a count that any rough sea
    raises, so it drops nothing.

    Args:
        units: ``metric`` or ``english`` (feet, converted).
        datum: what levels are above: MLLW, MSL, NAVD (NAVD88), STND, ...
        time_zone: ``gmt``, or ``lst``: local standard time, converted by ``metadata``.
        metadata: the station. Its id is the series'; levels are held against its record.
        drop_flagged: make gaps of flagged levels.

    Returns:
        One channel, ``water_level_m`` or ``predicted_level_m``.

    Raises:
        InputError: not such a file, another product, an error the service sent, a value that is
            no number, a time with two values, levels or a span of them that no sea has, or above
            200 MB.
    """
    name = _choice("units", units, ("metric", "english"), "what was asked of the API with units=")
    zone = _choice("time_zone", time_zone, ("gmt", "lst", "lst_ldt"), "the API's time_zone=")
    above = datum_name(datum)
    if above not in DATUMS:
        raise InputError(
            f"datum is '{datum}'{nearest(above, list(DATUMS))} (expected one of: "
            f"{', '.join(DATUMS)})"
        )
    shift_s = _shift_s(path, zone, metadata)
    begin = head(path)
    if not begin:
        raise InputError(f"{path} is empty")
    rows = _coops_json(path) if begin.startswith(b"{") else _coops_csv(path)
    if not rows.times:
        raise InputError(f"{path} has a header and no rows; ask the service for other dates")
    station = rows.station
    if metadata is not None:
        if station and station != metadata.id:
            raise InputError(
                f"{path} is of station {station}, and the metadata of {metadata.id} "
                f"({metadata.name}); give the metadata of the same station"
            )
        station = metadata.id
    counts = rows.counts
    times = read_times(path, rows.times, rows.places) - np.timedelta64(shift_s, "s")
    values = np.array(rows.values, dtype=np.float64)[:, None]
    flagged = np.array(rows.flagged)
    notes = [f"{len(values):,} rows, of them {int(np.isnan(values).sum()):,} without a level"]
    if counts["v"] or counts["p"]:
        notes.append(f"{counts['v']:,} levels are verified, {counts['p']:,} preliminary")
    for key, words in (
        ("outliers", "samples beyond three sigma (flag O), kept"),
        ("inferred", "been inferred and not measured (flag I)"),
        ("flat", "exceeded the flat tolerance (flag F)"),
        ("rate", "exceeded the rate of change (flag R)"),
        ("limit", "exceeded the expected highest or lowest level (flag L or T)"),
    ):
        if counts[key]:
            notes.append(f"{counts[key]:,} levels have {words}")
    if flagged.any():
        done = "dropped: they are gaps now" if drop_flagged else "kept"
        notes.append(f"{int(flagged.sum()):,} levels with flag I, F, R or L: {done}")
        if drop_flagged:
            values[flagged] = np.nan
    codes = np.isin(values[:, 0], SENTINELS)
    if name == "english":
        values *= FOOT_M
        notes.append(f"levels converted from feet to metres ({FOOT_M} m)")
    if shift_s:
        notes.append(f"times converted from local standard time to UTC ({-shift_s / 3600:+g} h)")
    notes += check_levels(path, values[:, 0], codes, rows.places, above, name, metadata)
    times, values, done_notes = in_order(
        times, values, source=str(path), place=rows.places.__getitem__
    )
    return Series(
        times, values, (rows.channel,), str(path), station, above, (*notes, *done_notes)
    )  # fmt: skip


def _choice(what: str, given: str, valid: tuple[str, ...], why: str) -> str:
    if given not in valid:
        raise InputError(
            f"{what} is '{given}'{nearest(given, list(valid))} (expected {' or '.join(valid)}: "
            f"{why}; the file does not say)"
        )
    return given


def _shift_s(path: Path, zone: str, metadata: Station | None) -> int:
    """Seconds by which the file's times are ahead of UTC."""
    if zone == "lst_ldt":
        raise InputError(
            f"{path}: times with daylight saving (lst_ldt) have one hour twice each autumn, and "
            "nothing tells the two apart; fetch the data with time_zone=gmt"
        )
    if zone == "gmt":
        return 0
    if metadata is None or metadata.utc_offset_h is None:
        raise InputError(
            f"{path}: local standard time (lst) needs the station's offset from UTC; give its "
            "metadata (read_station) or fetch the data with time_zone=gmt"
        )
    return round(metadata.utc_offset_h * 3600)


def _coops_csv(path: Path) -> _Levels:
    rows = _Levels()
    with contextlib.closing(read_lines(path)) as lines:
        reader = csv.reader(lines, skipinitialspace=True, strict=True)
        try:
            header = [word.strip().lower() for word in next(reader, [])]
            order = _coops_columns(path, header)
            if "prediction" in header:
                rows.channel = "predicted_level_m"
            for row in reader:
                if not any(word.strip() for word in row):
                    continue
                place = f"line {reader.line_num}"
                if len(row) != len(header):
                    raise InputError(
                        f"{path}: {place} has {len(row)} fields for {len(header)} columns; it was "
                        "cut or changed: fetch it again"
                    )
                words = [word.strip() for word in row]
                flags = ",".join(words[index] for index in order["flags"])
                quality = words[order["q"][0]] if order["q"] else ""
                rows.add(
                    path, place, words[order["t"][0]], words[order["v"][0]], flags, quality
                )  # fmt: skip
        except csv.Error as err:
            raise InputError(f"{path}: line {reader.line_num} is no CSV: {err}") from err
    return rows


def _coops_columns(path: Path, header: list[str]) -> dict[str, list[int]]:
    """Where time, level, flags and quality stand."""
    plain = header in (["t", "v", "s", "f", "q"], ["t", "v", "s", "f"])
    names = ("t", "v", "f", "q") if plain else ("date time", "water level", "", "quality")
    if header == ["date time", "prediction"]:
        return {"t": [0], "v": [1], "flags": [], "q": []}
    flags = {"f"} if plain else _DOWNLOAD_FLAGS
    known = {"t", "v", "s", "f", "q"} if plain else {*names, "sigma", *_DOWNLOAD_FLAGS}
    if set(header) <= known and {names[0], names[1]} <= set(header):
        where = {word: [header.index(word)] for word in header}
        if len(where) == len(header):
            return {
                "t": where[names[0]],
                "v": where[names[1]],
                "flags": [index for index, word in enumerate(header) if word in flags],
                "q": where.get(names[3], []),
            }
    said = ", ".join(header)[:200]
    if header and header[0].startswith("error"):
        raise InputError(f"{path} holds no data but the service's error: '{said}'; ask it again")
    if header and header[0].startswith("<"):
        raise InputError(f"{path} is XML or a web page; fetch it with format=csv or format=json")
    raise _not_levels(path, header, f"the columns '{said}'")


def _not_levels(path: Path, keys: Iterable[str], said: str) -> InputError:
    product = next((_PRODUCTS[key] for key in keys if key in _PRODUCTS), "")
    kind = f" of the product {product}" if product else ""
    return InputError(
        f"{path} has {said}{kind}, expected water levels of CO-OPS: 'Date Time, Water Level, "
        "Sigma, ...', 't,v,s,f,q' or 'Date Time, Prediction' (product=water_level, hourly_height "
        "or predictions)"
    )


def _coops_json(path: Path) -> _Levels:
    whole = parse_json(path, whole_json(path))
    refuse_error(path, whole)
    rows = _Levels()
    listed = whole.get("data")
    if listed is None:
        listed, rows.channel = whole.get("predictions"), "predicted_level_m"
    if not isinstance(listed, list):
        raise InputError(f"{path} has neither 'data' nor 'predictions', expected a CO-OPS answer")
    about = whole.get("metadata")
    if isinstance(about, dict):
        rows.station = str(about.get("id", ""))
    needed = {"t", "v"} if rows.channel == "predicted_level_m" else {"t", "v", "s", "f"}
    for number, row in enumerate(listed, start=1):
        place = f"row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{path}: {place} is no JSON object")
        if not needed <= set(row) or not set(row) <= {*needed, "q"}:
            raise _not_levels(path, row, f"{place} with the keys '{', '.join(row)[:200]}'")
        words = [_word(path, place, row.get(key, "")) for key in ("t", "v", "f", "q")]
        rows.add(path, place, *words)
    return rows


def _word(path: Path, place: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise InputError(f"{path}: {place} has {str(value)[:40]!r} where a text is expected")
    return str(value).strip()


@dataclass(frozen=True)
class _Column:
    """A column of NDBC's standard meteorological files: what it is here, and its own gap."""

    channel: str
    missing: tuple[float, ...]
    units: tuple[str, ...]
    factor: float = 1.0


_DEGREES = ("degT", "deg", "degt")
_COLUMNS = {
    "WDIR": _Column("wind_direction_deg", (999.0,), _DEGREES),
    "WSPD": _Column("wind_speed_m_s", (99.0,), ("m/s",)),
    "GST": _Column("gust_m_s", (99.0,), ("m/s",)),
    "WVHT": _Column("wave_height_m", (99.0,), ("m",)),
    "DPD": _Column("wave_period_s", (99.0,), ("sec", "s")),
    "APD": _Column("mean_wave_period_s", (99.0,), ("sec", "s")),
    "MWD": _Column("wave_direction_deg", (999.0,), _DEGREES),
    "PRES": _Column("pressure_hpa", (9999.0,), ("hPa",)),
    "ATMP": _Column("air_temperature_c", (999.0,), ("degC",)),
    "WTMP": _Column("water_temperature_c", (999.0,), ("degC",)),
    "DEWP": _Column("dew_point_c", (999.0,), ("degC",)),
    # old headers say "mi" and mean the same nautical miles
    "VIS": _Column("visibility_m", (99.0,), ("nmi", "mi"), 1852.0),
    "PTDY": _Column("pressure_tendency_hpa", (99.0,), ("hPa",)),
    "TIDE": _Column("water_level_m", (99.0,), ("ft",), FOOT_M),
}
_OLD_NAMES = {"WD": "WDIR", "BAR": "PRES", "BARO": "PRES"}
_NEEDED = ("WSPD", "GST", "WVHT", "DPD", "PRES", "WTMP")
_OTHERS = {
    "GDR": "continuous winds", "GTIME": "continuous winds", "SwH": "spectral wave summaries",
    "OTMP": "oceanographic data", "DEP01": "ocean currents", "SRAD1": "solar radiation",
    "SEP_FREQ": "raw spectral waves", "STN": "latest observations of all stations",
    "T": "water levels of tsunami buoys", "HEIGHT": "water levels of tsunami buoys",
}  # fmt: skip


def read_ndbc(path: Path) -> Series:
    """Read a standard meteorological file of NDBC: realtime2 and historical, plain or gzip.

    The format has changed often: a header with or without ``#``, a line of units since 2007, the
    year as ``YY`` (1970 to 1998) or ``YYYY``, minutes since 2005, ``WD`` and ``BAR`` for what is
    now ``WDIR`` and ``PRES``, ``TIDE`` since 2000. Columns are found by name. Times are UTC. What
    is missing is ``MM`` in realtime files and nines in historical ones, by the column's own rule:
    999 of directions and temperatures, 9999 of pressure, 99 of all others; so a wind from 99
    degrees and a pressure of 999 hPa are values (NDBC, Measurement Descriptions and Units).
    Visibility is converted from nautical miles, ``TIDE`` (feet above MLLW) to metres.

    How many are missing so is counted in the notes. Nines of another column's rule (99.0 for a
    temperature) are taken for missing, too, where the column cannot have such a value.

    Any other value that nature does not have (:data:`edgekd.contracts.plausible.KNOWN`) becomes a
    gap, counted in the notes; where more than 1 % of a column are such, the file is refused.

    Returns:
        A channel for each column of the file, also where nothing was measured; ``datum`` is MLLW
        where the file has ``TIDE``. The station is taken from a name such as ``46041h2013.txt.gz``.

    Raises:
        InputError: not such a file, another kind of NDBC's, a column missing, unknown or in
            another unit, a line too short, a value that is no number, a time with two rows, or
            above 200 MB.
    """
    header: list[str] = []
    names: list[str] = []
    clock = 4
    places: list[str] = []
    stamps: list[str] = []
    rows: list[list[float]] = []
    short = 0
    with contextlib.closing(read_lines(path)) as lines:
        for number, line in enumerate(lines, start=1):
            words = line.split()
            bare = line.lstrip("# \t").split()
            place = f"line {number}"
            if not bare:
                continue
            if not header:
                header = bare
                clock, names = _ndbc_header(path, header)
                continue
            if bare[0] in ("YY", "YYYY") and bare != header:
                raise InputError(
                    f"{path}: {place} begins other columns than the first line; read the files "
                    "that were put together one by one"
                )
            if bare[0] == "yr":
                _ndbc_units(path, names, bare[clock:])
                continue
            if words[0].startswith("#") or bare == header:
                continue  # a remark, e.g. on a buoy that was moved
            if len(words) == len(header) - 1 and names[-1] == "TIDE":
                words.append("MM")  # files of 2000 gained the column in August
                short += 1
            if len(words) != len(header):
                raise InputError(
                    f"{path}: {place} has {len(words)} fields for {len(header)} columns; it was "
                    "cut or changed: fetch it again"
                )
            stamps.append(_stamp(path, place, words[:clock]))
            places.append(place)
            rows.append(
                [
                    read_value(path, place, word, name, {"MM"})
                    for name, word in zip(names, words[clock:], strict=True)
                ]
            )
    if not header:
        raise InputError(f"{path} is empty")
    if not rows:
        raise InputError(f"{path} has a header and no rows; fetch another year")
    values = np.array(rows, dtype=np.float64)
    notes = [f"{len(rows):,} rows of {len(names)} columns"]
    if short:
        notes.append(f"{short:,} lines end before TIDE: gaps")
    for index, name in enumerate(names):
        notes += _ndbc_column(path, name, values[:, index], places)
    times, values, done = in_order(
        read_times(path, stamps, places), values, source=str(path), place=places.__getitem__
    )
    station = re.match(r"([A-Za-z0-9]{5})(h\d{4})?\.", path.name)
    if station is not None:
        notes.append("the station is taken from the file's name")
    return Series(
        times,
        values,
        tuple(_COLUMNS[name].channel for name in names),
        str(path),
        station[1].upper() if station else "",
        "MLLW" if "TIDE" in names else None,
        (*notes, *done),
    )


def _ndbc_header(path: Path, header: list[str]) -> tuple[int, list[str]]:
    """Number of columns of time, and today's names of the others."""
    clock = 5 if header[4:5] == ["mm"] else 4
    names = [_OLD_NAMES.get(name, name) for name in header[clock:]]
    strange = [name for name in names if name not in _COLUMNS]
    other = next((_OTHERS[name] for name in (*header, *names) if name in _OTHERS), "")
    kind = f" ({other})" if other else ""
    if header[0] not in ("YY", "YYYY") or header[1:4] != ["MM", "DD", "hh"]:
        raise InputError(
            f"{path} begins with '{' '.join(header)[:80]}'{kind}, expected the header of NDBC's "
            "standard meteorological data: 'YY MM DD hh mm WDIR WSPD GST WVHT ...'"
        )
    if strange:
        raise InputError(
            f"{path} has the column '{strange[0][:20]}'{kind}, which standard meteorological data "
            f"do not have{nearest(strange[0], list(_COLUMNS))} (they have: {', '.join(_COLUMNS)})"
        )
    lacking = [name for name in _NEEDED if name not in names]
    if lacking or len(set(names)) != len(names):
        raise InputError(
            f"{path} has {'no column ' + lacking[0] if lacking else 'a column twice'}{kind}, "
            f"expected {', '.join(_NEEDED)} of NDBC's standard meteorological data, each once"
        )
    return clock, names


def _ndbc_units(path: Path, names: list[str], units: list[str]) -> None:
    if len(units) != len(names):
        raise InputError(
            f"{path}: the line of units has {len(units)} for {len(names)} columns; fetch it again"
        )
    for name, unit in zip(names, units, strict=True):
        if unit not in _COLUMNS[name].units:
            raise InputError(
                f"{path}: column {name} is in '{unit}', expected {_COLUMNS[name].units[0]}: NDBC's "
                "own files are; undo what changed it"
            )


def _ndbc_column(path: Path, name: str, column: Floats, places: list[str]) -> list[str]:
    """Make gaps of what is missing or impossible, convert, and say so; changes ``column``."""
    rule = _COLUMNS[name]
    low, high = KNOWN[rule.channel]
    empty = np.isnan(column)
    notes = [f"{int(empty.sum()):,} values of {name} are MM: gaps"] if empty.any() else []
    own = np.isin(column, rule.missing)
    other = np.isin(column, SENTINELS) & ~own
    column *= rule.factor
    outside = (column < low) | (column > high)
    other &= outside
    for which, whose in ((own, ""), (other, ", the nines of another column")):
        if which.any():
            code = column[int(np.argmax(which))] / rule.factor
            notes.append(f"{int(which.sum()):,} values of {name} are {code:g}{whose}: gaps")
    column[own | other] = np.nan
    outside &= ~(own | other)
    measured, count = int(np.isfinite(column).sum()), int(outside.sum())
    if not count:
        return notes
    first = int(np.argmax(outside))
    said = (
        f"{count:,} of {measured:,} values of {name} lie outside {low:g} to {high:g} "
        f"({rule.channel}), first {column[first]:g} on {places[first]}"
    )
    if count > MOST_OUTSIDE * measured:
        raise InputError(f"{path}: {said}; the column is probably in another unit")
    column[outside] = np.nan
    return [*notes, f"{said}: gaps"]


def _stamp(path: Path, place: str, words: list[str]) -> str:
    if not all(word.isascii() and word.isdigit() and len(word) <= 4 for word in words):
        raise InputError(f"{path}: {place} begins with '{' '.join(words)[:40]}', expected a time")
    year, month, day, hour, minute = (*(int(word) for word in words), 0)[:5]
    if len(words[0]) <= 2:
        if year < 70:
            raise InputError(
                f"{path}: {place} has the year '{words[0]}', expected 70 to 98 where years have "
                "two digits, for NDBC writes four since 1999"
            )
        year += 1900
    return f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}"
