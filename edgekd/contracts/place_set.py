"""A set of places, each with three kinds of evidence: a picture, sensor series, a text.

A folder with ``places.yaml`` (what all places share), ``places.csv`` (a row for each), pictures and
``series.npz``. Series belong to a station and a year, so places name one by its number. A place may
lack a kind or two: the columns ``image``, ``series`` and ``text`` may be empty, not all of them.
Blanks at the ends of a cell count in texts alone.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pydantic

from edgekd.contracts.datum import Datum, differ
from edgekd.contracts.evidence import KINDS, LEAST_DAYS
from edgekd.contracts.plausible import Plausible, Range, known_ranges
from edgekd.contracts.policy import ClassFacts, Name, load_policy
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, load_document
from edgekd.contracts.series_windows import SeriesRecord, leaks, read_record, record_path
from edgekd.contracts.tensors import Ranges
from edgekd.errors import InputError

SET_FILE = "places.yaml"
SPLITS = ("train", "val", "test")
COLUMNS = ("name", "split", "group", "zone", "label", "image", "series", "text")
#: the column that places without a known truth lack
LABEL = "label"
_MOST_ROWS, _MOST_TEXT = 1_000_000, 100_000


class PlaceClass(Document):
    """A class of the set.

    Attributes:
        name: as in the table's column ``label``.
        facts: what rules ask of it.
    """

    name: Name
    facts: ClassFacts = ClassFacts()


class SeriesShape(Document):
    """What ``series.npz`` holds: ``values (series, days, features)`` float32, NaN for gaps.

    Attributes:
        file: beside ``places.yaml``.
        days: rows of one series.
        features: names of its columns.
        ranges: feature -> ``[lowest, highest]`` that it can have here, in place of what is known
            of coasts; what a model takes is said in its recipe (``io.series.ranges``).
        datum: what levels are heights above, e.g. ``MHHW``; None where nobody said it. A model
            keeps that of what it learned from, and refuses another.
    """

    file: str = "series.npz"
    days: Annotated[int, pydantic.Field(ge=1, le=100_000)]
    features: Annotated[list[str], pydantic.Field(min_length=1, max_length=1000)]
    datum: Datum | None = None
    ranges: Ranges = {}


class PlaceSetFile(Document):
    """``places.yaml``.

    Attributes:
        name, title, source, licence: of the set.
        simulated: whether it was computed; everything made from it says so.
        classes: in the order of their numbers.
        image_px: side of every picture; ``gsd_m``: of a pixel.
        series: what the sensors' series are.
        table: the CSV file.
        rules: a file of rules that the true answers obey, if there is one.
    """

    schema_: Literal[1] = pydantic.Field(alias="schema")
    name: Name
    title: str = ""
    source: str
    licence: str
    simulated: bool
    classes: Annotated[list[PlaceClass], pydantic.Field(min_length=2, max_length=1000)]
    image_px: Annotated[int, pydantic.Field(ge=8, le=8192)]
    gsd_m: Annotated[float, pydantic.Field(gt=0)]
    series: SeriesShape
    table: str = "places.csv"
    rules: str | None = None

    @pydantic.model_validator(mode="after")
    def _once(self) -> PlaceSetFile:
        for what, names in (
            ("classes", [item.name for item in self.classes]),
            ("features", self.series.features),
        ):
            twice = [name for name, count in Counter(names).items() if count > 1]
            if twice:
                raise ValueError(f"{what} has '{twice[0]}' twice")
        return self


@dataclass(frozen=True)
class PlaceRow:
    """One row of the table.

    Attributes:
        name: unique in the set.
        split: train, val or test.
        group: what must not be on both sides of a split: a coast, a town.
        zone: of the rules.
        label: number of the class; None where nobody knows, which only a set that is read
            without labels may have.
        image: path of its picture.
        series: number in ``series.npz``.
        text: what the place's papers say. Of these three None is missing, and one is there.
    """

    name: str
    split: str
    group: str
    zone: str
    label: int | None
    image: Path | None
    series: int | None
    text: str | None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of evidence that it has, one at least."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)


@dataclass(frozen=True)
class PlaceSet:
    """A set that was read and checked.

    Attributes:
        root: its folder.
        about: ``places.yaml``.
        rows: all places, in the order of the table.
        series: ``(series, days, features)`` float32, NaN for gaps; none where no place has one.
        record: ``series.json``, which fits them; None where ``edgekd series`` did not make them.
    """

    root: Path
    about: PlaceSetFile
    rows: list[PlaceRow]
    series: npt.NDArray[np.float32]
    record: SeriesRecord | None = None

    @property
    def classes(self) -> list[str]:
        """Names, by number."""
        return [item.name for item in self.about.classes]

    @property
    def facts(self) -> dict[str, ClassFacts]:
        """What rules ask of the classes."""
        return {item.name: item.facts for item in self.about.classes}

    @property
    def texts(self) -> list[str]:
        """Every text once, in the order of the table."""
        return list(dict.fromkeys(row.text for row in self.rows if row.text is not None))

    def require_plausible(self, ranges: Sequence[Range | None]) -> None:
        """Raise where a series holds a value that its feature cannot have, or hardly any.

        Args:
            ranges: of each feature; a model's own (:func:`edgekd.contracts.plausible.ranges_of`).

        Raises:
            InputError: names place, day, feature, value and range.
        """
        check = Plausible(self.about.series.features, ranges)
        path = self.root / self.about.series.file
        for number, values in enumerate(self.series):
            if (found := check.first(values)) is not None:
                raise InputError(
                    f"{path}: {self._whose(number)}: {found}; a gap is NaN, and a range of its own "
                    "is declared in a recipe's io.series.ranges"
                )
            measured = int((~np.isnan(values)).any(axis=1).sum())
            if measured < LEAST_DAYS:
                raise InputError(
                    f"{path}: {self._whose(number)} has values on {measured} of {len(values)} "
                    f"days, expected {LEAST_DAYS} or more; leave the column series of its "
                    "places empty"
                )

    def require_apart(self) -> None:
        """Raise where series of two splits have days of one station in common.

        Raises:
            InputError: names two such series, and how many more there are.
        """
        if self.record is None:
            return
        sides = {row.series: row.split for row in self.rows if row.series is not None}
        shared = leaks(self.record, sides)
        if shared:
            more = f" (and {len(shared) - 1} more such pairs)" if len(shared) > 1 else ""
            raise InputError(f"{self.root}: {shared[0]}{more}; put both into one split")

    def known_ranges(self) -> list[Range | None]:
        """Of the features: what the set declares, or what is known of coasts."""
        return known_ranges(self.about.series.features, self.about.series.ranges)

    def _whose(self, number: int) -> str:
        names = [row.name for row in self.rows if row.series == number]
        if not names:
            return f"series {number} (of no place)"
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"series {number} (place {names[0]}{more})"

    def part(self, split: str) -> list[PlaceRow]:
        """Rows of a split.

        Raises:
            InputError: it has none.
        """
        found = [row for row in self.rows if row.split == split]
        if not found:
            there = sorted({row.split for row in self.rows})
            raise InputError(
                f"{self.root} has no place of split {split} (it has {', '.join(there)})"
            )
        return found


def load_places(root: Path, labels: bool = True) -> PlaceSet:
    """Read a set and check that its parts fit; pictures are only looked for.

    Args:
        root: the folder, or its ``places.yaml``.
        labels: whether it is learned from or judged by: then every place must have a label, and
            series of two splits share no days of a station. Otherwise the column may be empty or
            absent, and splits mean nothing.

    Raises:
        InputError: a file that is missing or outside the folder, a row that does not fit or lacks
            a label that is needed, a group in two splits, a zone that the set's rules do not
            have, or a ``series.json`` that is of other series.
    """
    file = root if root.is_file() else root / SET_FILE
    if not file.is_file():
        raise InputError(f"{root} is no set of places: it has no {SET_FILE}")
    about = load_document(PlaceSetFile, file)
    for key, name in (
        ("table", about.table), ("series.file", about.series.file), ("rules", about.rules)
    ):  # fmt: skip
        if name is not None and not _inside(name):
            raise InputError(
                f"{file}: {key} is '{name}', which is not in the folder of the set; a set is one "
                "folder: put the file there and name it by its path in it"
            )
    stored = file.parent / about.series.file
    # a set of places without series needs no file of them
    series = _series(stored, about.series) if stored.is_file() else None
    rows = _rows(file.parent, about, None if series is None else len(series), labels)
    if series is None and any(row.series is not None for row in rows):
        series = _series(stored, about.series)
    if series is None:
        series = np.zeros((0, about.series.days, len(about.series.features)), np.float32)
    _no_leak(rows, file)
    if about.rules is not None:
        _zones_known(rows, file.parent / about.rules)
    record = _record(stored, about.series, len(series)) if len(series) else None
    if record is not None and about.series.datum is None:
        datum = next((item.datum for item in record.sources if item.datum is not None), None)
        shape = about.series.model_copy(update={"datum": datum})
        about = about.model_copy(update={"series": shape})
    found = PlaceSet(file.parent, about, rows, series, record)
    if labels:
        found.require_apart()
    return found


def _record(path: Path, shape: SeriesShape, count: int) -> SeriesRecord | None:
    """What ``edgekd series`` wrote of the series, where it made them.

    Raises:
        InputError: it is damaged, of another file, or says something else of them than the set.
    """
    place = record_path(path)
    if not place.is_file():
        return None
    record = read_record(path)
    if len(record.series) != count:
        raise InputError(
            f"{place} tells of {len(record.series)} series, and {path} holds {count}; make both "
            "again"
        )
    if record.features != shape.features:
        raise InputError(
            f"{path.parent}: {SET_FILE} says that the features are {', '.join(shape.features)}, "
            f"and {place.name} that they are {', '.join(record.features)}; correct series.features"
        )
    for datum in sorted({item.datum for item in record.sources if item.datum is not None}):
        if differ(datum, shape.datum):
            raise InputError(
                f"{path.parent}: {SET_FILE} says that levels are above {shape.datum}, and "
                f"{place.name} that they are above {datum}; correct series.datum"
            )
    return record


def _series(path: Path, shape: SeriesShape) -> npt.NDArray[np.float32]:
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as stored:
            values = np.asarray(stored["values"])
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as err:
        raise InputError(
            f"{path} cannot be read as a .npz file with the array 'values' "
            f"({type(err).__name__}); write it again"
        ) from err
    expected = (shape.days, len(shape.features))
    if values.dtype != np.float32 or values.ndim != 3 or values.shape[1:] != expected:
        raise InputError(
            f"{path} holds {values.dtype} {values.shape}, expected float32 (series, {expected[0]} "
            f"days, {expected[1]} features)"
        )
    if np.isinf(values).any():
        raise InputError(f"{path} holds infinite values; a gap is NaN")
    empty = np.isnan(values).all(axis=1)
    if empty.all(axis=1).any():
        number = int(np.flatnonzero(empty.all(axis=1))[0])
        raise InputError(
            f"series {number} of {path} is nothing but gaps; leave the column series of its places "
            "empty, which says that they have none, and take it out of the file"
        )
    return values


def _rows(root: Path, about: PlaceSetFile, series: int | None, labels: bool) -> list[PlaceRow]:
    path = root / about.table
    names = [item.name for item in about.classes]
    found: list[PlaceRow] = []
    seen: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            columns = tuple(reader.fieldnames or ())
            unlabelled = columns == tuple(name for name in COLUMNS if name != LABEL)
            if columns != COLUMNS and not unlabelled:
                raise InputError(
                    f"{path} has the columns {', '.join(columns or ['none'])}, expected "
                    f"{', '.join(COLUMNS)} ({LABEL} may be absent where answers are all that is "
                    "wanted)"
                )
            for row in reader:
                line = reader.line_num
                where = f"{path}, line {line}"
                found.append(_row(root, where, row, len(columns), names, series, labels))
                if found[-1].name in seen:
                    raise InputError(
                        f"{path}, line {line}: place {found[-1].name} stands in line "
                        f"{seen[found[-1].name]} too"
                    )
                seen[found[-1].name] = line
                if len(found) > _MOST_ROWS:
                    raise InputError(f"{path} has more than {_MOST_ROWS:,} rows")
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(f"cannot read {path}: {err}") from err
    if not found:
        raise InputError(f"{path} has no rows")
    return found


def _row(
    root: Path, where: str, row: dict[str, Any], columns: int, classes: list[str],
    series: int | None, labels: bool,
) -> PlaceRow:  # fmt: skip
    if None in row or None in row.values():
        raise InputError(f"{where}: expected {columns} values")
    # 'north ' beside 'north' would be two groups, and a coast in two splits
    row = {key: value if key == "text" else value.strip() for key, value in row.items()}
    said = row.get(LABEL, "")
    label = classes.index(said) if said in classes else None
    if labels and not said:
        raise InputError(
            f"{where}: place {row['name']} has no {LABEL}, and learning and counting mistakes need "
            f"one (valid: {', '.join(classes)}); edgekd run answers for places without"
        )
    if row["split"] not in SPLITS:
        raise InputError(f"{where}: split is '{row['split']}', expected {', '.join(SPLITS)}")
    if said and label is None:
        raise InputError(
            f"{where}: label '{said}' is no class of the set"
            f"{nearest(said, classes)} (valid: {', '.join(classes)})"
        )
    there = {kind: bool(row[kind].strip()) for kind in KINDS}
    if not any(there.values()):
        raise InputError(
            f"{where}: place {row['name']} has neither image nor series nor text; one is needed at "
            "least, or leave the row out"
        )
    number = row["series"]
    digits = number.isascii() and number.isdigit() and len(number) <= 9
    if there["series"] and (not digits or (series is not None and int(number) >= series)):
        known = "on" if series is None else f"to {series - 1}"
        raise InputError(
            f"{where}: series is '{number[:20]}', expected a number from 0 {known}, or nothing "
            "where there is none"
        )
    for key in ("name", "group", "zone"):
        if not row[key]:
            raise InputError(f"{where}: {key} is empty")
    if "\0" in row["text"]:
        raise InputError(f"{where}: text holds a zero byte, so it is no text")
    if len(row["text"]) > _MOST_TEXT:
        raise InputError(f"{where}: text has more than {_MOST_TEXT:,} characters")
    image = root / row["image"]
    if there["image"] and (not _inside(row["image"]) or not image.is_file()):
        raise InputError(f"{where}: there is no picture {row['image']} in {root}")
    return PlaceRow(
        row["name"], row["split"], row["group"], row["zone"], label,
        image if there["image"] else None,
        int(number) if there["series"] else None,
        row["text"] if there["text"] else None,
    )  # fmt: skip


def _inside(name: str) -> bool:
    """Whether a path stays in the folder that it is relative to."""
    path = Path(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def _zones_known(rows: list[PlaceRow], path: Path) -> None:
    """Every place is in a zone of the rules."""
    zones = list(load_policy(path).zones)
    for row in rows:
        if row.zone not in zones:
            raise InputError(
                f"place {row.name} is in zone '{row.zone}', which {path} does not have"
                f"{nearest(row.zone, zones)} (valid: {', '.join(zones)})"
            )


def _no_leak(rows: list[PlaceRow], file: Path) -> None:
    """A group, and a series, is on one side of every split."""
    for what in ("group", "series"):
        sides: dict[str | int, str] = {}
        for row in rows:
            key = getattr(row, what)
            if key is None:
                continue
            if sides.setdefault(key, row.split) != row.split:
                raise InputError(
                    f"{file}: {what} {key} is in split {sides[key]} and in {row.split} (place "
                    f"{row.name}), so what is learned would be tested on itself"
                )
