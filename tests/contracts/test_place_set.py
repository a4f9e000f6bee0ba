"""Sets of places: what is read, and what is refused with its line."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from edgekd.contracts.place_set import COLUMNS, load_places
from edgekd.errors import EdgeKDError, InputError
from tests.helpers.series_record import write_record

ABOUT: dict[str, Any] = {
    "schema": 1, "name": "three", "source": "made up", "licence": "none", "simulated": True,
    "classes": [{"name": "water"}, {"name": "house", "facts": {"height_m": 8}}],
    "image_px": 8, "gsd_m": 2.0, "series": {"days": 4, "features": ["level_m", "wind_m_s"]},
}  # fmt: skip
ROWS = [
    ["a", "train", "north", "shore", "water", "a.png", "0", "Keep it, as it is."],
    ["b", "train", "north", "upland", "house", "b.png", "0", 'A "house" is\nallowed.'],
    ["c", "test", "south", "shore", "house", "c.png", "1", "No walls."],
]


def write(
    folder: Path,
    about: dict[str, Any] | None = None,
    rows: list[list[str]] | None = None,
    series: np.ndarray | None = None,
    columns: tuple[str, ...] = COLUMNS,
) -> Path:
    for name in "abc":
        cv2.imwrite(str(folder / f"{name}.png"), np.full((8, 8, 3), 9, np.uint8))
    with (folder / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *(ROWS if rows is None else rows)])
    values = np.ones((2, 4, 2), np.float32) if series is None else series
    np.savez(folder / "series.npz", values=values)
    (folder / "places.yaml").write_text(yaml.safe_dump(ABOUT | (about or {})))
    return folder


def test_a_set_is_read(tmp_path: Path) -> None:
    series = np.ones((2, 4, 2), np.float32)
    series[1, 2] = np.nan
    found = load_places(write(tmp_path, series=series))
    assert found.classes == ["water", "house"] and found.facts["house"].height_m == 8
    assert [row.name for row in found.part("train")] == ["a", "b"]
    last = found.part("test")[0]
    assert (last.label, last.series, last.zone, last.group) == (1, 1, "shore", "south")
    assert found.rows[1].text == 'A "house" is\nallowed.' and last.image == tmp_path / "c.png"
    assert np.isnan(found.series[1, 2]).all() and found.about.simulated
    assert load_places(tmp_path / "places.yaml").rows == found.rows
    with pytest.raises(InputError, match=r"no place of split val \(it has test, train\)"):
        found.part("val")


def changed(row: int, column: str, value: str) -> list[list[str]]:
    rows = [list(item) for item in ROWS]
    rows[row][COLUMNS.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rows": changed(1, "label", "hous")}, r"line 4: label 'hous' is no class .*house"),
        ({"rows": changed(0, "split", "learn")}, "line 2: split is 'learn', expected train"),
        ({"rows": changed(2, "series", "2")}, "series is '2', expected a number from 0 to 1"),
        ({"rows": changed(2, "series", "-1")}, "series is '-1'"),
        ({"rows": changed(2, "series", "1.0")}, "series is '1.0'"),
        ({"rows": changed(2, "series", "9" * 5000)}, "series is '99999"),
        ({"rows": changed(1, "text", "a\0b")}, "holds a zero byte"),
        ({"rows": changed(2, "image", "d.png")}, "there is no picture d.png"),
        ({"rows": changed(2, "image", "../c.png")}, "there is no picture"),
        ({"rows": changed(2, "image", "/c.png")}, "there is no picture"),
        ({"rows": changed(1, "name", "a")}, "place a stands in line 2 too"),
        ({"rows": changed(1, "zone", " ")}, "zone is empty"),
        ({"rows": [[*ROWS[0][:5], "", " ", ""]]}, "place a has neither image nor series nor text"),
        ({"rows": changed(1, "group", "south")}, "group south is in split train and in test"),
        ({"rows": changed(1, "series", "1")}, "series 1 is in split train and in test"),
        ({"rows": [ROWS[0][:-1]]}, "expected 8 values"),
        ({"rows": [[*ROWS[0], "more"]]}, "expected 8 values"),
        ({"rows": []}, "has no rows"),
        ({"columns": COLUMNS[::-1]}, "has the columns text, .* expected name"),
        ({"series": np.ones((2, 4, 3), np.float32)}, r"expected float32 \(series, 4 days, 2"),
        ({"series": np.ones((2, 4, 2))}, "holds float64"),
        ({"series": np.full((2, 4, 2), np.inf, np.float32)}, "infinite"),
        ({"series": np.full((2, 4, 2), np.nan, np.float32)}, "series 0 .* nothing but gaps"),
        ({"about": {"classes": [{"name": "water"}]}}, "classes"),
        ({"about": {"classes": [{"name": "a"}, {"name": "a"}]}}, "classes has 'a' twice"),
        ({"about": {"series": {"days": 4, "features": ["x", "x"]}}}, "features has 'x' twice"),
        ({"about": {"colour": "red"}}, "colour"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    with pytest.raises(EdgeKDError, match=words) as caught:
        load_places(write(tmp_path, **given))
    assert caught.value.exit_code == 2


def spoil_series(folder: Path, content: bytes | None) -> None:
    """Other bytes, or half of its own."""
    path = folder / "series.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "places.yaml").unlink(), "is no set of places"),
        (lambda folder: (folder / "places.csv").unlink(), "cannot read .*places.csv"),
        (lambda folder: (folder / "series.npz").unlink(), "cannot be read as a .npz file"),
        (lambda folder: spoil_series(folder, b"PK"), "cannot be read as a .npz file"),
        (lambda folder: spoil_series(folder, b""), "cannot be read as a .npz file"),
        (lambda folder: spoil_series(folder, b"hello"), "cannot be read as a .npz file"),
        (lambda folder: spoil_series(folder, None), "cannot be read as a .npz file"),
        (lambda folder: np.save((folder / "series.npz").open("wb"), np.ones(3)), "as a .npz file"),
        (lambda folder: (folder / "places.csv").write_bytes(b"\xff\xfe"), "cannot read"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    write(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError, match=words):
        load_places(tmp_path)


POLICY = """
schema: 1
name: town
zones: {shore: by the water}
rules: []
"""


@pytest.mark.parametrize(
    ("about", "key"),
    [
        ({"table": "../places.csv"}, "table"),
        ({"table": "/etc/passwd"}, "table"),
        ({"series": {"days": 4, "features": ["a", "b"], "file": "x/../../series.npz"}}, "series.f"),
        ({"rules": "../rules.yaml"}, "rules"),
        ({"rules": "/rules.yaml"}, "rules"),
        ({"rules": ""}, "rules"),
    ],
)
def test_a_set_names_nothing_outside_its_folder(
    tmp_path: Path, about: dict[str, Any], key: str
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder)
    for name in ("places.csv", "series.npz"):  # what is named is there: it is refused all the same
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "rules.yaml").write_text(POLICY)
    write(folder, about=about)
    with pytest.raises(InputError, match=f"{key}.* is not in the folder of the set"):
        load_places(folder)


def test_zones_of_the_table_are_zones_of_the_rules(tmp_path: Path) -> None:
    write(tmp_path, about={"rules": "rules.yaml"})
    (tmp_path / "rules.yaml").write_text(POLICY)
    with pytest.raises(InputError, match=r"place b is in zone 'upland', .*\(valid: shore\)"):
        load_places(tmp_path)
    (tmp_path / "rules.yaml").write_text(POLICY.replace("{shore:", "{upland: x, shore:"))
    assert len(load_places(tmp_path).rows) == 3
    (tmp_path / "rules.yaml").unlink()
    with pytest.raises(InputError, match=r"rules\.yaml"):
        load_places(tmp_path)


def unlabelled(column: bool) -> tuple[list[list[str]], tuple[str, ...]]:
    """Rows of places that nobody knows the truth of, the second alone or all."""
    if column:
        return [ROWS[0], [*ROWS[1][:4], "", *ROWS[1][5:]], ROWS[2]], COLUMNS
    return [[*row[:4], *row[5:]] for row in ROWS], tuple(n for n in COLUMNS if n != "label")


@pytest.mark.parametrize("column", [True, False])
def test_places_without_a_label_are_answered_for_and_not_learned_from(
    tmp_path: Path, column: bool
) -> None:
    rows, columns = unlabelled(column)
    folder = write(tmp_path, rows=rows, columns=columns)
    found = load_places(folder, labels=False)
    assert [row.label for row in found.rows] == ([0, None, 1] if column else [None] * 3)
    assert [row.text for row in found.rows] == [row[7] for row in ROWS]
    line, name = (4, "b") if column else (2, "a")  # the second place's text has two lines
    with pytest.raises(
        InputError, match=rf"csv, line {line}: place {name} has no label, and learning"
    ):
        load_places(folder)


def test_a_wrong_label_is_one_wherever_labels_are_not_needed(tmp_path: Path) -> None:
    folder = write(tmp_path, rows=[[*ROWS[0][:4], "watr", *ROWS[0][5:]]])
    with pytest.raises(InputError, match="label 'watr' is no class of the set"):
        load_places(folder, labels=False)


def test_other_columns_may_not_be_absent(tmp_path: Path) -> None:
    folder = write(tmp_path, rows=[row[:7] for row in ROWS], columns=COLUMNS[:7])
    with pytest.raises(InputError, match=r"expected name, .*text \(label may be absent"):
        load_places(folder, labels=False)


def test_blanks_at_the_ends_of_cells_count_in_texts_alone(tmp_path: Path) -> None:
    rows = [[f" {cell}\t" for cell in row] for row in ROWS]
    plain, found = load_places(write(tmp_path)).rows, load_places(write(tmp_path, rows=rows)).rows
    assert [row.text for row in found] == [f" {row[7]}\t" for row in ROWS]
    texts = [row.text for row in plain]
    assert [replace(row, text=text) for row, text in zip(found, texts, strict=True)] == plain


def test_a_group_with_a_blank_is_no_other_group(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="group north is in split train and in test"):
        load_places(write(tmp_path, rows=changed(2, "group", "north ")))
    with pytest.raises(InputError, match="place a stands in line 2 too"):
        load_places(write(tmp_path, rows=changed(1, "name", "a ")))


SHAPE = {"days": 4, "features": ["level_m", "wind_m_s"], "datum": "MHHW"}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"sha256": "0" * 64}, "series.npz is not the file that .*series.json tells of"),
        ({"datum": "MLLW"}, "places.yaml says that levels are above MHHW, and series.json that "
         "they are above MLLW; correct series.datum"),
        ({"features": ["wind_m_s", "level_m"]}, "places.yaml says that the features are level_m, "
         "wind_m_s, and series.json that they are wind_m_s, level_m; correct"),
        ({"series": []}, "series.json tells of 0 series, and .*series.npz holds 2"),
        ({"sources": []}, "series.json is damaged: series 0 is of source 0 of 0"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("labels", [True, False])
def test_a_record_of_other_series_is_refused_wherever_a_set_is_opened(
    tmp_path: Path, more: dict[str, Any], words: str, labels: bool
) -> None:
    write(tmp_path, about={"series": SHAPE})
    write_record(tmp_path, [2014, 2015])
    assert len(load_places(tmp_path, labels).record.series) == 2
    write_record(tmp_path, [2014, 2015], **more)
    with pytest.raises(InputError, match=words):
        load_places(tmp_path, labels)


def test_days_in_two_splits_are_refused_where_a_set_is_learned_from_or_judges(
    tmp_path: Path,
) -> None:
    write(tmp_path, about={"series": SHAPE})
    write_record(tmp_path, [2015, 2015])
    found = load_places(tmp_path, labels=False)  # answers are all that is wanted
    words = r"series 0 \(train\) and 1 \(test\) share 35 days of one station.*into one split"
    for fails in (found.require_apart, lambda: load_places(tmp_path)):
        with pytest.raises(InputError, match=words):
            fails()
    write(tmp_path, about={"series": SHAPE}, rows=ROWS[:2])  # nobody names the second
    write_record(tmp_path, [2015, 2015])
    assert load_places(tmp_path).record is not None
    (tmp_path / "series.json").unlink()
    assert load_places(tmp_path).record is None
