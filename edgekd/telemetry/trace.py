"""Traces on disk: what a sensor said and how many tiles were done, on one clock.

A CSV begins with ``# edgekd.trace {json}`` (the sensor, the interval asked for, the start), then a
header and a row per reading, and ends with ``# end {json}`` (what went wrong, the interval
achieved). Times are s since the start, on the monotonic clock. Columns, those of all readings until
the first that has power, at most of 20 or of 5 s:

``t_s, power_w [, energy_j] [, tiles, tiles_per_s]``, ``NAME_w`` per rail, ``NAME_c`` per zone,
``NAME_mhz`` and ``NAME_load`` per unit, and ``why`` where a reading has no power. A line
``# mark {json}`` names a moment.

Rows are then handed to the system one by one: a process that is killed leaves what it had, without
the end. A name that ends in ``.parquet`` gives the same table as Parquet (extra ``parquet``), which
is written whole when the trace ends: of a killed process nothing is left. Its header is in the
schema's metadata.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import datetime as dt
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO, get_args

import numpy as np
import numpy.typing as npt

from edgekd import __version__
from edgekd.contracts.artifacts import prepare_parent, publish_file, read_bytes
from edgekd.errors import InputError, OutputError
from edgekd.telemetry import parquet
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, Scope, SensorInfo
from edgekd.telemetry.tegrastats import Counts

MAGIC = "# edgekd.trace "
TRACE_SCHEMA = 1
_MARK, _END = "# mark ", "# end "
_MOST_TILES = 2**53  # what a float counts
#: columns that may stand behind the first two; those of parts end otherwise
_OPTIONAL = ("energy_j", "tiles", "tiles_per_s")
#: readings without power that are kept back, until one tells which columns there are
_MOST_HELD, _LONGEST_HELD_S = 20, 5.0


@dataclass
class Trace:
    """Samples with what was done meanwhile.

    Attributes:
        samples: times of readings are s since the start where it was read from a file.
        tiles: tiles done since the start, at each reading; None where none were counted.
        started_utc: ISO 8601; of a meter without a zone its own words.
        whole: False where its writer was killed.
        unavailable: why it has no power; readings then have ``watts`` None and tiles alone count.
        marks: ``(t_s, name)`` of moments.
        counts: what an imported file consisted of.
        tiles_done, ended_s: when the trace ended, a little behind its last reading.
    """

    samples: Samples
    tiles: npt.NDArray[np.int64] | None = None
    started_utc: str = ""
    whole: bool = True
    unavailable: str = ""
    marks: list[tuple[float, str]] = field(default_factory=list)
    counts: Counts | None = None
    tiles_done: int | None = None
    ended_s: float | None = None

    def dropped(self) -> dict[str, int]:
        """Lines of its source that were none of its own whole ones, by kind."""
        return dict(self.samples.dropped if self.counts is None else self.counts.damaged)

    def faults(self) -> list[str]:
        """Why it cannot be trusted as a whole; empty where it can."""
        if self.unavailable:
            return [f"power is unavailable: {self.unavailable}"]
        killed = [] if self.whole else ["its writer was killed: the end of the trace is missing"]
        return [*self.samples.faults(), *killed]


def utc_now() -> str:
    """ISO 8601 with milliseconds."""
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")


def check_suffix(path: Path) -> None:
    """Refuse a name that says no format, or one that cannot be written here.

    Raises:
        OutputError: another suffix.
        EnvironmentLacksError: ``.parquet`` without pyarrow.
    """
    if path.suffix not in (".csv", ".parquet"):
        raise OutputError(f"a trace is .csv or .parquet, received {path}; name it {path.stem}.csv")
    if path.suffix == ".parquet":
        parquet.need()


class TraceWriter:
    """Writes a trace while it happens.

    Args:
        path: to write; what is there is replaced.
        info: of the sensor.
        interval_s: asked for.
        started_utc, start_s: the same moment as ISO 8601 and on the monotonic clock.
        counting: whether there are tiles.
        unavailable, counts: see :class:`Trace`.

    Raises:
        OutputError, EnvironmentLacksError: see :func:`check_suffix`; the place cannot be written.
    """

    def __init__(
        self,
        path: Path,
        info: SensorInfo,
        interval_s: float,
        *,
        started_utc: str,
        start_s: float,
        counting: bool = False,
        unavailable: str = "",
        counts: Counts | None = None,
    ) -> None:
        check_suffix(path)
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give the name of a file to write")
        prepare_parent(path)
        self.path, self.rows = path, 0
        self._start, self._counting, self._unavailable = start_s, counting, unavailable
        self._header = {
            "schema": TRACE_SCHEMA, "edgekd": __version__, "started_utc": started_utc,
            "interval_s": interval_s, "sensor": dataclasses.asdict(info),
            "unavailable": unavailable,
            "counts": None if counts is None else vars(counts),
        }  # fmt: skip
        self._columns: _Columns | None = None
        self._held: list[tuple[Reading, int | None]] = []
        self._marks: list[tuple[float, str]] = []
        self._table: list[list[str]] = []
        self._before: tuple[float, int] | None = None
        self._stream: TextIO | None = None
        if path.suffix == ".csv":
            try:
                # a line at a time, so that what was said is there if this process is killed
                self._stream = path.open("w", encoding="utf-8", newline="", buffering=1)
                self._line(MAGIC + json.dumps(self._header, allow_nan=False))
            except OSError as err:
                if self._stream is not None:
                    self.abandon()
                    path.unlink(missing_ok=True)  # nothing is in it
                raise OutputError(f"{path} cannot be written: {err.strerror or err}") from err

    def add(self, reading: Reading, tiles: int | None = None) -> None:
        """Write a reading; ``tiles`` were done since the start.

        Raises:
            OSError: the disk is full, or gone.
        """
        if self._columns is None:
            self._held.append((reading, tiles))
            waited_s = reading.at_s - self._held[0][0].at_s
            if (
                reading.watts is not None
                or self._unavailable
                or len(self._held) >= _MOST_HELD
                or waited_s >= _LONGEST_HELD_S
            ):
                self._let_go()
            return
        self._add(self._columns, reading, tiles)

    def columns_of(self, readings: Sequence[Reading]) -> None:
        """The columns are those of these readings, before any is written."""
        if readings:
            self._columns = _Columns.of(readings, self._counting)
            self._line(_row(self._columns.names()))

    def _let_go(self) -> None:
        """Write what was kept back."""
        held, self._held = self._held, []
        self.columns_of([reading for reading, _ in held])
        for reading, tiles in held:
            self.add(reading, tiles)

    def _add(self, columns: _Columns, reading: Reading, tiles: int | None) -> None:
        cells = columns.cells(reading, reading.at_s - self._start, bool(self._unavailable))
        if self._counting:
            done = tiles or 0
            before, self._before = self._before, (reading.at_s, done)
            pause = 0.0 if before is None else reading.at_s - before[0]
            rate = "" if before is None or pause <= 0 else _number((done - before[1]) / pause)
            place = columns.tiles_at
            cells[place : place + 2] = [str(done), rate]
        self.rows += 1
        if self._stream is None:
            self._table.append(cells)
        self._line(_row(cells))

    def mark(self, at_s: float, name: str) -> None:
        """Name a moment of the monotonic clock."""
        self._marks.append((round(at_s - self._start, 6), name))
        self._line(_MARK + json.dumps({"t_s": self._marks[-1][0], "name": name}))

    def close(
        self,
        samples: Samples,
        tiles_done: int | None = None,
        ended_s: float | None = None,
        *,
        whole: bool = True,
    ) -> None:
        """End the trace with what was noticed; one that is not whole gets no end.

        Raises:
            OSError, OutputError: the disk is full, or gone.
        """
        end = None if not whole else {
            "lost": samples.lost, "restarts": samples.restarts, "without": samples.without,
            "dropped": samples.dropped,
            "restarted": [at_s - self._start for at_s in samples.restarted_s],
            "stalls": [[a - self._start, b - self._start] for a, b in samples.stalls],
            "achieved_s": samples.achieved_s, "tiles": tiles_done,
            "t_s": None if ended_s is None else ended_s - self._start,
        }  # fmt: skip
        if self._stream is not None:
            try:
                self._let_go()
                if end is not None:
                    self._line(_END + json.dumps(end, allow_nan=False))
            finally:
                self.abandon()
            return
        self._let_go()
        names = [] if self._columns is None else self._columns.names()
        content = self._header | {"columns": names, "marks": self._marks, "end": end}
        parquet.write_table(self.path, names, self._table, json.dumps(content, allow_nan=False))

    def abandon(self) -> None:
        """Let go of the file as it is."""
        stream, self._stream = self._stream, None
        if stream is not None:
            with contextlib.suppress(OSError):  # what could not be written was told when it was
                stream.close()

    def _line(self, text: str) -> None:
        if self._stream is not None:
            self._stream.write(text + "\n")


def _row(cells: list[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _number(value: float) -> str:
    return format(value, ".10g")


def _printable(text: str) -> str:
    """A name or reason that stays on its line."""
    return "".join(c if c.isprintable() else "?" for c in text)


@dataclass
class _Columns:
    """What the columns hold: of each kind the names in order."""

    energy: bool
    tiles: bool
    rails: list[str]
    zones: list[str]
    clocks: list[str]
    loads: list[str]

    @classmethod
    def of(cls, readings: Sequence[Reading], counting: bool) -> _Columns:
        """Of all of them, in the order in which they appear."""
        energy = any(item.energy_j is not None for item in readings)
        kinds = [(r.rails_w, r.temperatures_c, r.clocks_mhz, r.loads) for r in readings]
        names = (list(dict.fromkeys(itertools.chain(*kind))) for kind in zip(*kinds, strict=True))
        return cls(energy, counting, *names)

    @property
    def tiles_at(self) -> int:
        return 3 if self.energy else 2

    def names(self) -> list[str]:
        kinds = (self.rails, "w"), (self.zones, "c"), (self.clocks, "mhz"), (self.loads, "load")
        return [
            "t_s", "power_w", *(["energy_j"] if self.energy else []),
            *(["tiles", "tiles_per_s"] if self.tiles else []),
            *(f"{_printable(name)}_{unit}" for names, unit in kinds for name in names), "why",
        ]  # fmt: skip

    def cells(self, reading: Reading, t_s: float, without_why: bool) -> list[str]:
        def cell(value: float | None) -> str:
            return "" if value is None else _number(value)

        kinds = (
            (self.rails, reading.rails_w), (self.zones, reading.temperatures_c),
            (self.clocks, reading.clocks_mhz), (self.loads, reading.loads),
        )  # fmt: skip
        return [
            f"{t_s:.6f}", cell(reading.watts), *([cell(reading.energy_j)] if self.energy else []),
            *(["", ""] if self.tiles else []),
            *(cell(values.get(name)) for names, values in kinds for name in names),
            "" if without_why else _printable(reading.why),
        ]  # fmt: skip


def write_trace(path: Path, trace: Trace) -> None:
    """Write a trace at once; it appears when it is whole.

    Raises:
        OutputError, EnvironmentLacksError: see :class:`TraceWriter`.
    """
    check_suffix(path)
    with publish_file(path) as part:
        try:
            _write_whole(part, trace)
        except OutputError as err:
            raise OutputError(str(err).replace(str(part), str(path))) from err


def _write_whole(path: Path, trace: Trace) -> None:
    writer = TraceWriter(
        path, trace.samples.info, trace.samples.interval_s, started_utc=trace.started_utc,
        start_s=0.0, counting=trace.tiles is not None, unavailable=trace.unavailable,
        counts=trace.counts,
    )  # fmt: skip
    try:
        writer.columns_of(trace.samples.readings)
        for place, reading in enumerate(trace.samples.readings):
            writer.add(reading, None if trace.tiles is None else int(trace.tiles[place]))
        for at_s, name in trace.marks:
            writer.mark(at_s, name)
        writer.close(trace.samples, trace.tiles_done, trace.ended_s, whole=trace.whole)
    finally:
        writer.abandon()


def read_trace(path: Path) -> Trace:
    """Read a trace, also one whose writer was killed.

    Raises:
        InputError: missing, empty, no trace, or damaged; says where.
        EnvironmentLacksError: Parquet without pyarrow.
    """
    content = read_bytes(path)
    if content.startswith(parquet.MAGIC):
        return _read_parquet(path)
    text = content.decode("utf-8", errors="replace")
    if not text.startswith(MAGIC):
        raise InputError(
            f"{path} is no trace of edgekd; another power file becomes one by: edgekd power import "
            f"{path} -o {path.stem}-trace.csv"
        )
    *lines, _half = text.rstrip("\0").split("\n")  # a row without its end was cut with its writer
    if not lines:
        raise InputError(f"{path} was cut in its first line; there is nothing in it")
    header = _json(path, 1, lines[0][len(MAGIC) :])
    end: dict[str, Any] | None = None
    marks: list[tuple[float, str]] = []
    rows: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines[1:], 2):
        if end is not None:
            raise InputError(f"{path} is damaged: line {number} follows the end")
        if line.startswith(_MARK):
            item = _json(path, number, line[len(_MARK) :])
            marks.append((_finite(path, number, item.get("t_s")), str(item.get("name"))))
        elif line.startswith(_END):
            end = _json(path, number, line[len(_END) :])
        else:
            try:
                rows.append((number, next(csv.reader([line]), [])))
            except csv.Error as err:
                raise InputError(
                    f"{path} is damaged: line {number} is not what edgekd wrote"
                ) from err
    return _make(path, header, rows, marks, end)


def _json(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as err:
        raise InputError(f"{path} is damaged: line {number} is not what edgekd wrote") from err
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged: line {number} is not what edgekd wrote")
    return value


def _finite(path: Path, number: int, value: Any) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise InputError(f"{path} is damaged: line {number} holds {str(value)[:40]!r} for a number")
    return found


def _info(path: Path, header: dict[str, Any]) -> tuple[SensorInfo, float]:
    if header.get("schema") != TRACE_SCHEMA:
        raise InputError(
            f"{path} is a trace of schema {header.get('schema')}, this edgekd reads {TRACE_SCHEMA}"
        )
    try:
        value = dict(header["sensor"])
        if value["scope"] not in get_args(Scope):
            raise ValueError(value["scope"])
        value["total"] = tuple(str(rail) for rail in value["total"])
        for name in ("resolution_w", "lag_s"):
            value[name] = None if value[name] is None else float(value[name])
        return SensorInfo(**value), float(header["interval_s"])
    except (KeyError, TypeError, ValueError) as err:
        raise InputError(f"{path} is damaged: its first line describes no sensor") from err


def _make(
    path: Path,
    header: dict[str, Any],
    rows: list[tuple[int, list[str]]],
    marks: list[tuple[float, str]],
    end: dict[str, Any] | None,
) -> Trace:
    info, interval_s = _info(path, header)
    samples = Samples(info, interval_s)
    unavailable = str(header.get("unavailable") or "")
    counts = header.get("counts")
    tiles: list[int] | None = None
    if rows:
        names = rows[0][1]
        if names[:2] != ["t_s", "power_w"] or names[-1:] != ["why"]:
            raise InputError(f"{path} is damaged: line {rows[0][0]} holds no columns of a trace")
        tiles = [] if "tiles" in _fixed(names) else None
        for number, cells in rows[1:]:
            if len(cells) != len(names):
                raise InputError(
                    f"{path} is damaged: line {number} has {len(cells)} columns, its header "
                    f"{len(names)}"
                )
            reading, done = _reading(path, number, names, cells)
            if samples.readings and reading.at_s <= samples.readings[-1].at_s:
                raise InputError(
                    f"{path} is damaged: line {number} is not later than the one before"
                )
            if reading.watts is None:
                why = unavailable or reading.why
                reading = dataclasses.replace(reading, why=why)
                samples.without[why] = samples.without.get(why, 0) + 1
            samples.readings.append(reading)
            if tiles is not None:
                tiles.append(done)
    trace = Trace(
        samples,
        tiles=None if tiles is None else np.array(tiles, np.int64),
        started_utc=str(header.get("started_utc") or ""),
        whole=end is not None,
        unavailable=unavailable,
        marks=marks,
    )
    try:
        if counts is not None:
            damaged, aside = Counter(counts.pop("damaged")), Counter(counts.pop("aside"))
            trace.counts = Counts(**counts, damaged=damaged, aside=aside)
        if end is not None:
            samples.lost, samples.restarts = str(end["lost"]), int(end["restarts"])
            samples.dropped = {str(key): int(n) for key, n in end.get("dropped", {}).items()}
            samples.restarted_s = [float(at_s) for at_s in end.get("restarted", [])]
            samples.stalls = [(float(start), float(stop)) for start, stop in end["stalls"]]
            trace.tiles_done = None if end["tiles"] is None else int(end["tiles"])
            trace.ended_s = None if end["t_s"] is None else float(end["t_s"])
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as err:
        raise InputError(f"{path} is damaged: its last line tells no end of a trace") from err
    return trace


def _fixed(names: list[str]) -> list[str]:
    """The columns in front, which are no part's."""
    return [*names[:2], *(name for name in names[2:-1] if name in _OPTIONAL)]


def _reading(path: Path, number: int, names: list[str], cells: list[str]) -> tuple[Reading, int]:
    def value(text: str) -> float | None:
        return None if text == "" else _finite(path, number, text)

    fixed = dict(zip(_fixed(names), cells, strict=False))
    groups: dict[str, dict[str, float]] = {"w": {}, "c": {}, "mhz": {}, "load": {}}
    for name, text in list(zip(names, cells, strict=True))[len(fixed) : -1]:
        label, _, unit = name.rpartition("_")
        found = value(text)
        if unit in groups and found is not None:
            groups[unit][label] = found
    reading = Reading(
        at_s=_finite(path, number, fixed["t_s"]),
        watts=value(fixed["power_w"]),
        rails_w=groups["w"],
        energy_j=value(fixed.get("energy_j", "")),
        temperatures_c=groups["c"],
        clocks_mhz=groups["mhz"],
        loads=groups["load"],
        why=cells[-1],
    )
    tiles = value(fixed.get("tiles", "")) or 0
    if not 0 <= tiles < _MOST_TILES:
        raise InputError(f"{path} is damaged: line {number} holds {tiles:g} tiles")
    return reading, int(tiles)


def _read_parquet(path: Path) -> Trace:
    columns, content = parquet.read_table(path)
    if content is None:
        raise InputError(f"{path} is Parquet, but no trace of edgekd")
    header = _json(path, 1, content)
    rows = [(1, [str(name) for name in header.get("columns") or []])] if columns else []
    rows += [(place + 2, list(row)) for place, row in enumerate(zip(*columns, strict=True))]
    marks = [(float(at_s), str(name)) for at_s, name in header.get("marks") or []]
    return _make(path, header, rows, marks, header.get("end"))
