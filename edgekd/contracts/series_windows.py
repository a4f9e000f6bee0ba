"""Series of a set of places from files of NOAA: levels and weather into windows of daily figures.

What comes of it is ``series.npz`` (``values (series, days, features)`` float32, NaN for gaps; see
:mod:`edgekd.contracts.place_set`) and beside it ``series.json``, which says of each series where,
when and of what it is, and what was done on the way.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd import __version__
from edgekd.contracts.artifacts import publish_file, read_json, sha256_file, write_json
from edgekd.contracts.evidence import LEAST_DAYS
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, parse_document
from edgekd.contracts.series import Series, joined
from edgekd.contracts.series_daily import FEATURES, daily_features
from edgekd.contracts.series_files import read_coops, read_ndbc
from edgekd.contracts.series_levels import check_station
from edgekd.contracts.station import Station, to_datum
from edgekd.errors import InputError, OutputError

#: of a month before the first day, which ``subtidal_high_m`` looks back on
LOOK_BACK_DAYS = 31
_LEVEL_FEATURES = frozenset(FEATURES[:5])
_WEATHER = (
    "wave_height_m", "wave_period_s", "wind_speed_m_s", "gust_m_s", "pressure_hpa",
    "water_temperature_c",
)  # fmt: skip
_DAY, _HOUR = np.timedelta64(1, "D"), np.timedelta64(1, "h")
_MOST_SERIES = 10_000


class SourceFile(Document):
    """A file that was read: its name and hash."""

    name: str
    sha256: str


class Source(Document):
    """What series were made of.

    Attributes:
        station, buoy: ids of the operators; empty where the files do not say.
        datum: what levels are above; none without levels.
        levels, weather: the files.
        notes: what was found in them and done.
    """

    station: str
    buoy: str
    datum: str | None
    levels: list[SourceFile]
    weather: list[SourceFile]
    notes: list[str]


class Window(Document):
    """One series.

    Attributes:
        source: number in the list of sources.
        first_day, last_day: UTC, both inside.
        days_measured: feature -> days with a value.
    """

    source: Annotated[int, pydantic.Field(ge=0)]
    first_day: datetime.date
    last_day: datetime.date
    days_measured: dict[str, int]


class SeriesRecord(Document):
    """``series.json``.

    Attributes:
        file, sha256: of the arrays.
        edgekd_version: that wrote it last.
        days, features: of every series.
        least: share of a day that had to be measured.
        sources, series: in the order of their numbers.
    """

    schema_: Literal[1] = pydantic.Field(alias="schema")
    file: str
    sha256: str
    edgekd_version: str
    days: int
    features: list[str]
    least: float
    sources: list[Source]
    series: list[Window]


@dataclass(frozen=True)
class Measured:
    """What was read at one place: levels, weather, or both."""

    levels: Series | None
    weather: Series | None
    source: Source

    def whole_days(self) -> tuple[datetime.date, datetime.date]:
        """First and last day that all of it covers from begin to end, UTC.

        Raises:
            InputError: there is none.
        """
        parts = [item for item in (self.levels, self.weather) if item is not None]
        first = max(_ceil(item.times[0] - _HOUR) for item in parts)
        last = min((item.times[-1] + _HOUR).astype("datetime64[D]") for item in parts) - _DAY
        if first > last:
            spans = "; ".join(f"{i.source}: {i.times[0]} to {i.times[-1]}" for i in parts)
            raise InputError(
                f"no whole day is in all of the files ({spans}, UTC); give files of the same time"
            )
        return first.item(), last.item()


def _ceil(time: Any) -> Any:
    """The first midnight at or behind a time."""
    day = time.astype("datetime64[D]")
    return day if day == time else day + _DAY


def read_levels(
    files: Sequence[Path],
    *,
    units: str,
    datum: str,
    time_zone: str,
    metadata: Station | None = None,
    drop_flagged: bool = False,
    above: str | None = None,
) -> Series:
    """Files of one station's levels as one series; see :func:`read_coops`.

    Args:
        above: datum to convert to, by ``metadata``; None keeps that of the files.

    Raises:
        InputError: a file does not fit, holds predictions, or is of another station.
    """
    parts = []
    for path in files:
        part = read_coops(
            path, units=units, datum=datum, time_zone=time_zone, metadata=metadata,
            drop_flagged=drop_flagged,
        )  # fmt: skip
        if "water_level_m" not in part.channels:
            raise InputError(
                f"{path} holds predicted levels, and floods are what was measured; fetch "
                "product=water_level or hourly_height"
            )
        parts.append(part)
    _one_place(parts, "give the station's metadata (--metadata), which says it of all")
    whole = joined(parts)
    if metadata is not None:
        whole = replace(whole, notes=(*whole.notes, *check_station(whole, metadata)))
    if above is None:
        return whole
    if metadata is None:
        raise InputError(
            f"levels above {above} need the station's datums: give its metadata (--metadata)"
        )
    return to_datum(whole, metadata, above)


def read_weather(files: Sequence[Path]) -> Series:
    """Files of one buoy as one series of the channels that days are made of.

    Columns came and went over the years, so only those that are needed are kept.

    Raises:
        InputError: a file does not fit, or is of another buoy.
    """
    parts = []
    for path in files:
        part = read_ndbc(path)
        kept = np.stack([part.channel(name) for name in _WEATHER], axis=1)
        parts.append(replace(part, values=kept, channels=_WEATHER, datum=None))
    _one_place(parts, "name the files as NDBC does, e.g. 46041h2013.txt.gz")
    return joined(parts)


def _one_place(parts: Sequence[Series], remedy: str) -> None:
    """Raise where some files say their station and others do not."""
    known = next((part for part in parts if part.station), None)
    silent = next((part for part in parts if not part.station), None)
    if known is not None and silent is not None:
        raise InputError(
            f"{known.source} is of station {known.station}, and {silent.source} does not say of "
            f"which; {remedy}"
        )


def measured(
    levels: Series | None,
    weather: Series | None,
    level_files: Sequence[Path],
    weather_files: Sequence[Path],
) -> Measured:
    """What was read, with the hashes of its files.

    Raises:
        InputError: neither levels nor weather.
    """
    if levels is None and weather is None:
        raise InputError("no levels and no weather; give files of CO-OPS, of NDBC, or of both")
    notes: list[str] = []
    for part, files in ((levels, level_files), (weather, weather_files)):
        if part is not None:  # several files are named by joined()
            one = f"{files[0]}: " if len(files) == 1 else ""
            notes += [note if note.startswith(one) else f"{one}{note}" for note in part.notes]
            notes += _gaps(part)
    names = {str(path): path.name for path in (*level_files, *weather_files)}
    for full in sorted(names, key=len, reverse=True):  # a record names no folders of a machine
        notes = [note.replace(full, names[full]) for note in notes]
    return Measured(
        levels,
        weather,
        Source(
            station="" if levels is None else levels.station,
            buoy="" if weather is None else weather.station,
            datum=None if levels is None else levels.datum,
            levels=[SourceFile(name=p.name, sha256=sha256_file(p)) for p in level_files],
            weather=[SourceFile(name=p.name, sha256=sha256_file(p)) for p in weather_files],
            notes=notes,
        ),
    )


def _gaps(series: Series) -> list[str]:
    """How much of each channel was measured; what is missing by the file's own marks is a gap."""
    found = []
    for name in series.channels:
        times = series.times[np.isfinite(series.channel(name))]
        if not len(times):
            found.append(f"{name}: no row holds a value")
            continue
        between = np.diff(times).astype(np.int64)
        longest_h = float(between.max()) / 3600 if len(between) else 0.0
        found.append(
            f"{name}: {len(times):,} of {len(series.times):,} rows hold a value, at most "
            f"{longest_h:.1f} h from one to the next"
        )
    return found


def last_days(found: Measured, days: int, every: int | None) -> list[datetime.date]:
    """Last days of windows: the newest that is whole, and with ``every`` those so many days before.

    Raises:
        InputError: the files are shorter than one window.
    """
    first, last = found.whole_days()
    there = (last - first).days + 1
    if there < days:
        raise InputError(
            f"the files cover {there} whole days ({first} to {last}, UTC), expected {days} or "
            "more; join more files, or ask for fewer days"
        )
    step = every or there
    return [last - datetime.timedelta(days=back) for back in range(0, there - days + 1, step)][::-1]


def make_window(
    found: Measured, last_day: datetime.date, days: int, features: Sequence[str], least: float
) -> npt.NDArray[np.float32]:
    """One series ``(days, features)``; figures of what nobody measured are gaps.

    Raises:
        InputError: an unknown feature, files that do not cover the window, or too little measured.
    """
    for name in features:
        if name not in FEATURES:
            raise InputError(
                f"feature '{name}' is none that is made of such files"
                f"{nearest(name, list(FEATURES))} (valid: {', '.join(FEATURES)})"
            )
    start = np.datetime64(last_day, "s") - (days - 1) * _DAY
    hours = np.arange(start, start + days * _DAY, _HOUR)
    # figures that stand on a stand-in are taken away again below
    levels = found.levels or Series(
        hours, np.zeros((len(hours), 1)), ("water_level_m",), "no levels", datum="MSL"
    )
    weather = found.weather or Series(
        hours, np.full((len(hours), len(_WEATHER)), np.nan), _WEATHER, "no weather"
    )
    values, names, _ = daily_features(levels, weather, start, days, least=least)
    if found.levels is None:
        values[:, [name in _LEVEL_FEATURES for name in names]] = np.nan
    values = values[:, [names.index(name) for name in features]]
    there = int(np.isfinite(values).any(axis=1).sum())
    if there < min(LEAST_DAYS, days):
        raise InputError(
            f"the series of {days} days to {last_day} has values on {there} of them, expected "
            f"{min(LEAST_DAYS, days)} or more; take other days, or files without so many gaps"
        )
    return values


def record_path(path: Path) -> Path:
    """Where the record of a file of series is."""
    return path.with_suffix(".json")


def read_record(path: Path) -> SeriesRecord:
    """The record of ``series.npz``.

    Raises:
        InputError: missing, damaged, or of another file than the one that is there.
    """
    place = record_path(path)
    value = read_json(place)
    if not isinstance(value, dict):
        raise InputError(f"{place} is damaged: expected an object")
    record = parse_document(SeriesRecord, value, {}, str(place))
    if record.sha256 != sha256_file(path):
        raise InputError(
            f"{path} is not the file that {place} tells of: it was changed or written by "
            "something else; make both again"
        )
    for number, window in enumerate(record.series):
        if window.source >= len(record.sources) or window.last_day < window.first_day:
            raise InputError(
                f"{place} is damaged: series {number} is of source {window.source} of "
                f"{len(record.sources)}, {window.first_day} to {window.last_day}; make both again"
            )
    return record


def write_series(
    path: Path,
    found: Measured,
    last: Sequence[datetime.date],
    days: int,
    features: Sequence[str],
    least: float,
    add: bool = False,
) -> SeriesRecord:
    """Make windows and write them, or add them behind those that are there.

    Args:
        path: ``series.npz``.
        last: last day of each window.
        days, features, least: see :func:`make_window`.
        add: the file is there, and of the same days, features and datum.

    Raises:
        InputError: a window cannot be made, or what is there does not fit.
        OutputError: the file is there and ``add`` was not said, or it cannot be written.
    """
    if path.suffix != ".npz":
        raise OutputError(f"series are a .npz file, received {path}")
    if path.exists() and not add:
        raise OutputError(
            f"{path} is there, and places name its series by number; add behind them with --add, "
            "or give another file"
        )
    if add and not path.exists():
        raise InputError(f"{path} is not there, so there is nothing to add to; leave --add out")
    before: list[npt.NDArray[np.float32]] = []
    sources, windows = list[Source](), list[Window]()
    if add:
        record = read_record(path)
        _same(path, record, days, features, least, found.source.datum)
        with np.load(path, allow_pickle=False) as stored:
            before = [np.asarray(stored["values"])]
        sources, windows = list(record.sources), list(record.series)
    if len(windows) + len(last) > _MOST_SERIES:
        raise InputError(f"{len(windows) + len(last)} series, expected at most {_MOST_SERIES:,}")
    made = [make_window(found, day, days, features, least) for day in last]
    windows += [
        Window(
            source=len(sources),
            first_day=day - datetime.timedelta(days=days - 1),
            last_day=day,
            days_measured={
                name: int(np.isfinite(values[:, at]).sum()) for at, name in enumerate(features)
            },
        )
        for day, values in zip(last, made, strict=True)
    ]
    with publish_file(path) as part:
        np.savez(part, values=np.concatenate([*before, np.stack(made)]))
    done = SeriesRecord(
        schema=1, file=path.name, sha256=sha256_file(path), edgekd_version=__version__, days=days,
        features=list(features), least=least, sources=[*sources, found.source], series=windows,
    )  # fmt: skip
    write_json(record_path(path), done.model_dump(mode="json", by_alias=True))
    return done


def _same(
    path: Path, record: SeriesRecord, days: int, features: Sequence[str], least: float,
    datum: str | None,
) -> None:  # fmt: skip
    datums = [item.datum for item in record.sources if item.datum is not None]
    pairs: list[tuple[str, Any, Any]] = [
        ("days", record.days, days),
        ("features", record.features, list(features)),
        ("least share of a day", record.least, least),
    ]
    if datums and datum is not None:
        pairs.append(("datum of the levels", datums[0], datum))
    for what, there, given in pairs:
        if there != given:
            raise InputError(
                f"{path} has {what} {there}, and what is to be added {given}; all series of a "
                "file are alike"
            )


def leaks(record: SeriesRecord, sides: Mapping[int, str]) -> list[str]:
    """Sentences on series of different splits that have days of one station or buoy in common.

    Args:
        sides: number of a series -> its split; series that no place names may be absent.
    """
    alike: dict[str, list[int]] = {}
    for number in sides:
        of = record.series[number].source
        for origin in _origins(of, record.sources[of]):
            alike.setdefault(origin, []).append(number)
    shared: dict[tuple[int, int], int] = {}
    for numbers in alike.values():
        numbers.sort(key=lambda number: record.series[number].first_day)
        for at, one in enumerate(numbers):
            last = record.series[one].last_day
            # thousands of windows are quick this way: few of them begin before this one ends
            for place in range(at + 1, len(numbers)):
                other = numbers[place]
                window = record.series[other]
                if window.first_day > last:
                    break
                if sides[one] != sides[other]:
                    days = (min(last, window.last_day) - window.first_day).days + 1
                    shared[min(one, other), max(one, other)] = days
    return [
        f"series {one} ({sides[one]}) and {other} ({sides[other]}) share {days} days of one "
        "station: what is learned would be tested on itself"
        for (one, other), days in sorted(shared.items())
    ]


def _origins(number: int, source: Source) -> set[str]:
    """What days of a source are of; two that have one of these in common measured the same."""
    found = {f"source {number}"} | {f"file {f.sha256}" for f in (*source.levels, *source.weather)}
    if source.station:
        found.add(f"station {source.station}")
    if source.buoy:
        found.add(f"buoy {source.buoy}")
    return found
