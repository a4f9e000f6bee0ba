"""Pictures and series that two splits have in common: told, with a number and an example."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.contracts.place_set import load_places
from edgekd.contracts.place_twins import picture_hashes, twins
from tests.helpers.tiny_places import write_tiny_places

Capture = pytest.CaptureFixture[str]
END = "; where that is a copy, what is learned is tested on itself"


def told(folder: Path) -> list[str]:
    places = load_places(folder)
    return twins(places, picture_hashes(places))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_places(tmp_path / "places", (4, 4, 4))


def copy(folder: Path, one: str, other: str) -> None:
    (folder / f"{other}.png").write_bytes((folder / f"{one}.png").read_bytes())


def test_nothing_is_told_of_pictures_that_differ_or_stand_in_one_split(folder: Path) -> None:
    assert told(folder) == []
    copy(folder, "train_00", "train_01")
    assert told(folder) == []


def test_pictures_of_two_splits(folder: Path, capsys: Capture) -> None:
    copy(folder, "train_00", "train_01")
    for number in ("01", "02", "03"):
        copy(folder, "train_00", f"test_{number}")
    said = ("3 pictures of test are byte for byte in train, too, e.g. test_01.png and "
            f"train_00.png{END}")  # fmt: skip
    assert told(folder) == [said]
    copy(folder, "test_00", "val_02")
    one = f"1 picture of test is byte for byte in val, too, e.g. test_00.png and val_02.png{END}"
    assert told(folder) == [said, one]
    assert main(["validate", str(folder)]) == 0, "a note, and no fault"
    out = capsys.readouterr().out
    assert f"  {said}\n  {one}\n" in out


def name_train_00_for_two_of_test(folder: Path) -> None:
    with (folder / "places.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    for row in rows[-2:]:
        row[5] = "train_00.png"
    with (folder / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_one_file_of_two_splits(folder: Path) -> None:
    name_train_00_for_two_of_test(folder)
    assert told(folder) == [
        f"1 picture of test is byte for byte in train, too, e.g. train_00.png{END}"
    ]


def test_series_of_two_splits(folder: Path) -> None:
    with np.load(folder / "series.npz") as stored:
        values = stored["values"]
    values[2] = values[0]
    gaps = np.isnan(values[2])
    values.view(np.uint32)[2][gaps] |= 1 << 31  # a gap whose bits are others
    np.savez(folder / "series.npz", values=values)
    assert told(folder) == [f"1 series of val is value for value in train, too, e.g. 2 and 0{END}"]
    values[3] = values[1]
    np.savez(folder / "series.npz", values=values)
    assert told(folder) == [f"2 series of val are value for value in train, too, e.g. 2 and 0{END}"]


def test_every_picture_is_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name_train_00_for_two_of_test(folder)
    places, read = load_places(folder), list[str]()
    whole = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    twins(places, picture_hashes(places))
    assert sorted(read) == sorted({row.image.name for row in places.rows if row.image})
