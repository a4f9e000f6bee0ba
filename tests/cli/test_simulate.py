"""``edgekd simulate``: what it prints, and wrong input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.cli.main import main
from tests.helpers.spectra import make_library


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGEKD_TEST_DATA", raising=False)
    make_library(tmp_path / "lib.mat")
    (tmp_path / "notes.mat").write_text("not a library")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    return tmp_path


def test_a_set(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = "simulate geology -o set --scenes 2 --side 64 --split 1:0:1 --library lib.mat"
    assert main(command.split()) == 0
    out, err = capfd.readouterr()
    assert "SIMULATED: 2 scenes of 64 x 64 px" in out and "wollastonite" in out
    assert "next: edgekd inspect set" in err and "edgekd distill RECIPE --data set" in err
    assert (here / "set" / "sensors.yaml").is_file()


def test_json_and_the_library_of_the_test_data(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "data" / "hsi").mkdir(parents=True)
    make_library(here / "data" / "hsi" / "USGS_1995_Library.mat")
    monkeypatch.setenv("EDGEKD_TEST_DATA", str(here / "data"))
    assert main(["simulate", "geology", "-o", "big", "--rgb-only", "--side", "64", "--json"]) == 0
    value = json.loads(capfd.readouterr().out)
    assert value["simulated"] is True and value["scenes"] == 1 and value["split"] == "0:0:1"
    counts = value["class_pixels"]
    assert len(counts) == 12
    assert sum(item["test"] for item in counts.values()) == 64 * 64
    assert sum(item["train"] for item in counts.values()) == 0


def test_alone_it_shows_its_help(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate"]) == 0
    assert "geology" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "no library of spectra: give the file USGS_1995_Library.mat with --library"),
        ("--library absent.mat", "the library absent.mat does not exist"),
        ("--library notes.mat", "notes.mat cannot be read as a MATLAB file"),
        ("--library lib.mat --side 32", "side must be 64 to 8192 px, received 32"),
        ("--library lib.mat --scenes 5", "the split 4:1:1 adds up to 6 scenes"),
        ("--library lib.mat --split 4:1", "expected scenes of train, val and test like 4:1:1"),
        ("--library lib.mat --split a:b:c", "received 'a:b:c'"),
        ("--library lib.mat --seed -3", "a seed is 0 or above, received -3"),
        ("--library lib.mat -o taken", "taken exists and is not empty; choose another folder"),
    ],
)
def test_wrong_input(
    here: Path, capfd: pytest.CaptureFixture[str], options: str, words: str
) -> None:
    before = sorted(item.name for item in here.iterdir())
    assert main(f"simulate geology -o new {options}".split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert sorted(item.name for item in here.iterdir()) == before
    assert (here / "taken" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize(("kind", "things"), [("coast", "coasts"), ("geology", "scenes")])
def test_a_split_speaks_of_what_is_split(
    here: Path, capfd: pytest.CaptureFixture[str], kind: str, things: str
) -> None:
    assert main(["simulate", kind, "-o", "new", "--split", "a:b"]) == 2
    assert f"expected {things} of train, val and test" in capfd.readouterr().err
