"""``edgekd series``: from files of NOAA to a set of places that is read, and wrong input."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from edgekd.cli.main import main
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.place_set import load_places
from edgekd.contracts.series_daily import FEATURES
from tests.conftest import ROOT

Capture = pytest.CaptureFixture[str]
START = np.datetime64("2014-11-20T00:00")
ASKED = ["--units", "metric", "--datum", "MLLW", "--time-zone", "gmt"]
BUOY_HEAD = """\
#YY  MM DD hh mm WDIR WSPD GST  WVHT   DPD   APD MWD   PRES  ATMP  WTMP  DEWP  VIS  TIDE
#yr  mo dy hr mn degT m/s  m/s     m   sec   sec degT   hPa  degC  degC  degC   mi    ft
"""


def levels_text(first: int, days: int, shift: float = 0.0) -> str:
    """Hourly levels of a tide, above MLLW; day 45 has no value after noon but one."""
    rows = ["t,v,s,f,q"]
    for hour in range(first * 24, (first + days) * 24):
        level = f"{2 + shift + np.cos(hour / 1.9769):.3f}"
        if hour // 24 == 45 and hour % 24 > 6:
            level = ""
        time = str(START + np.timedelta64(hour, "h")).replace("T", " ")
        rows.append(f'{time},{level},0.01,"0,0,0,0",v')
    return "\n".join(rows) + "\n"


def buoy_text(first: int, days: int) -> str:
    """Hourly weather whose wind is the hour; waves are never measured."""
    rows = []
    for hour in range(first * 24, (first + days) * 24):
        time = str(START + np.timedelta64(hour, "h"))
        for mark in "-T:":
            time = time.replace(mark, " ")
        rows.append(
            f"{time} 999 {hour % 24:4.1f} {hour % 24 + 1:4.1f} 99.00 99.00 99.00 999 "
            f"{900 + hour // 24:6.1f} 999.0 10.0 999.0 99.0 99.00"
        )
    return BUOY_HEAD + "\n".join(rows) + "\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "levels").mkdir()
    (tmp_path / "levels" / "a.csv").write_text(levels_text(0, 60))
    (tmp_path / "levels" / "b.csv").write_text(levels_text(60, 60))
    (tmp_path / "46041h2014.txt").write_text(buoy_text(0, 42))
    (tmp_path / "46041h2015.txt").write_text(buoy_text(42, 78))
    return tmp_path


BOTH = ["--levels", "levels", *ASKED, "--buoy", "46041h2014.txt", "--buoy", "46041h2015.txt"]


@pytest.fixture
def made(here: Path, capfd: Capture) -> Callable[..., dict[str, Any]]:
    def make(*more: str) -> dict[str, Any]:
        assert main(["series", "-o", "set/series.npz", *more, "--json"]) == 0, capfd.readouterr()
        value: dict[str, Any] = json.loads(capfd.readouterr().out)
        return value

    return make


def values_of(path: Path) -> Any:
    with np.load(path / "set" / "series.npz", allow_pickle=False) as stored:
        return stored["values"]


def test_the_newest_whole_days_of_all_files(here: Path, made: Callable[..., Any]) -> None:
    found = made(*BOTH, "--days", "60")
    values = values_of(here)
    assert values.dtype == np.float32 and values.shape == (1, 60, 12)
    window = found["windows"][0]
    assert (window["first_day"], window["last_day"]) == ("2015-01-19", "2015-03-19")
    by_name = dict(zip(FEATURES, values[0].T, strict=True))
    assert by_name["level_mean_m"] == pytest.approx(2, abs=0.15)
    assert by_name["gust_high_m_s"].tolist() == [24.0] * 60
    assert by_name["pressure_low_hpa"].tolist() == [900.0 + day for day in range(60, 120)]
    assert np.isnan(by_name["wave_height_mean_m"]).all()
    assert window["days_measured"]["wave_height_mean_m"] == 0
    source = found["source"]
    assert source["buoy"] == "46041" and source["datum"] == "MLLW"
    assert [item["name"] for item in source["levels"]] == ["a.csv", "b.csv"]
    assert source["levels"][1]["sha256"] == sha256_file(here / "levels" / "b.csv")
    assert any("a.csv: 1,440 rows, of them 17 without a level" in note for note in source["notes"])
    told = "water_level_m: 2,863 of 2,880 rows hold a value, at most 18.0 h from one to the next"
    assert told in source["notes"]
    assert "wave_height_m: no row holds a value" in source["notes"]
    record = (here / "set" / "series.json").read_text()
    assert str(here) not in record and "levels/" not in record
    assert json.loads(record)["sha256"] == sha256_file(here / "set" / "series.npz")


def test_a_day_with_too_few_values_is_a_gap(here: Path, made: Callable[..., Any]) -> None:
    made(*BOTH, "--days", "60", "--last-day", "2015-01-31")
    gap = 45 - (72 - 59)  # day 45 of the files, in a window that ends with their day 72
    mean = values_of(here)[0][:, 0]
    assert np.flatnonzero(np.isnan(mean)).tolist() == [gap]


def test_several_windows_and_the_names_of_a_recipe(here: Path, made: Callable[..., Any]) -> None:
    recipe = yaml.safe_load((ROOT / "engines" / "coastal.yaml").read_text())
    recipe["io"]["series"] = {"days": 40, "features": ["gust_high_m_s", "level_mean_m"]}
    (here / "r.yaml").write_text(yaml.safe_dump(recipe))
    found = made(*BOTH, "--recipe", "r.yaml", "--every", "30")
    days = [item["last_day"] for item in found["windows"]]
    assert days == ["2015-01-18", "2015-02-17", "2015-03-19"]
    values = values_of(here)
    assert values.shape == (3, 40, 2) and (values[:, :, 0] == 24).all()
    assert values[2, :10] == pytest.approx(values[1, 30:], abs=1e-6)  # days that both have
    again = made(*BOTH, "--recipe", "r.yaml", "--last-day", "2015-01-20,2015-01-30", "--add")
    assert again["numbers"] == [3, 4] and len(values_of(here)) == 5
    np.testing.assert_array_equal(values_of(here)[:3], values)
    assert len(json.loads((here / "set" / "series.json").read_text())["sources"]) == 2


@pytest.mark.parametrize(
    ("given", "gaps", "words"),
    [
        (["--levels", "levels", *ASKED], slice(5, None), "no buoy was given"),
        (["--buoy", "46041h2015.txt"], slice(0, 5), "no levels were given"),
    ],
)
def test_what_nobody_measured_is_a_gap_and_told(
    here: Path, capfd: Capture, given: list[str], gaps: slice, words: str
) -> None:
    assert main(["series", "-o", "set/series.npz", *given, "--days", "40"]) == 0
    out, _ = capfd.readouterr()
    assert words in out and "set/series.npz" in out
    values = values_of(here)
    assert np.isnan(values[..., gaps]).all() and np.isfinite(values[0, -1]).any()


def fill(here: Path, splits: tuple[str, ...]) -> None:
    """What a person adds to a starter, for a place of each series."""
    place = here / "set"
    text = (place / "places.yaml").read_text()
    (place / "places.yaml").write_text(text + "source: me\nlicence: mine\ngsd_m: 2.0\n")
    (place / "tiles").mkdir()
    with (place / "places.csv").open("a", newline="") as file:
        for number, split in enumerate(splits):
            name = f"p{number}"
            cv2.imwrite(str(place / "tiles" / f"{name}.png"), np.zeros((128, 128, 3), np.uint8))
            csv.writer(file).writerow(
                [name, split, name, "shore", "protect", f"tiles/{name}.png", number, "No levees."]
            )


def test_from_files_to_a_set_that_is_valid(here: Path, capfd: Capture) -> None:
    arguments = ["series", "-o", "set/series.npz", *BOTH, "--days", "40", "--every", "40"]
    recipe = str(ROOT / "engines" / "coastal.yaml")
    assert main([*arguments, "--recipe", recipe, "--starter"]) == 0
    assert "next: fill in" in capfd.readouterr().err
    assert main(["validate", "set"]) == 2
    err = capfd.readouterr().err
    assert all(f"lacks the key '{key}'" in err for key in ("source", "licence", "gsd_m"))
    fill(here, ("train", "val", "test"))
    assert main(["validate", "set"]) == 0
    out = capfd.readouterr().out
    assert "3 places, 3 series" in out
    assert "series: of station not known above MLLW, buoy 46041, 2014-11-20 to 2015-03-19" in out
    assert "\n  levels are above MLLW\n" in out
    shape = load_places(here / "set").about.series
    assert shape.days == 40 and shape.datum == "MLLW"
    about = here / "set" / "places.yaml"
    about.write_text(about.read_text().replace("datum: MLLW", "datum: MHHW"))
    assert main(["validate", "set"]) == 2
    assert "series.json that they are above MLLW; correct series.datum" in capfd.readouterr().err
    about.write_text(about.read_text().replace("  datum: MHHW\n", ""))
    assert main(["validate", "set"]) == 0
    assert "\n  levels are above MLLW\n" in capfd.readouterr().out, "as series.json says"
    (here / "set" / "series.json").unlink()
    assert main(["validate", "set"]) == 0
    assert "series.datum is not said" in capfd.readouterr().out


def test_series_of_a_recipe_with_another_datum(here: Path, capfd: Capture) -> None:
    (here / "r.yaml").write_text(
        (ROOT / "engines" / "coastal.yaml").read_text()
        .replace("    days: 365\n", "    days: 365\n    datum: MHHW\n")
    )  # fmt: skip
    arguments = ["series", "-o", "set/series.npz", *BOTH, "--days", "40", "--recipe", "r.yaml"]
    assert main(arguments) == 2 and not (here / "set" / "series.npz").exists()
    err = capfd.readouterr().err
    assert "r.yaml takes levels above MHHW, and these are above MLLW" in err
    assert "--to-datum MHHW" in err


def test_series_of_two_splits_share_no_days(here: Path, capfd: Capture) -> None:
    arguments = ["series", "-o", "set/series.npz", *BOTH, "--days", "40", "--every", "30"]
    recipe = str(ROOT / "engines" / "coastal.yaml")
    assert main([*arguments, "--recipe", recipe, "--starter"]) == 0
    fill(here, ("train", "train", "test"))
    capfd.readouterr()
    assert main(["validate", "set"]) == 2
    err = capfd.readouterr().err
    assert "series 1 (train) and 2 (test) share 10 days of one station" in err


def test_levels_of_another_datum(here: Path, made: Callable[..., Any]) -> None:
    station = {
        "stations": [
            {"id": "1", "name": "Here", "lat": 47.0, "lng": -122.0,
             "datums": {"units": "meters", "datums": [
                 {"name": "STND", "value": 0.0}, {"name": "MLLW", "value": 1.0},
                 {"name": "MHHW", "value": 4.5}]}}
        ]
    }  # fmt: skip
    (here / "station.json").write_text(json.dumps(station))
    found = made(
        "--levels", "levels", *ASKED, "--days", "60", "--metadata", "station.json",
        "--to-datum", "MHHW",
    )  # fmt: skip
    assert found["source"]["datum"] == "MHHW" and found["source"]["station"] == "1"
    assert values_of(here)[0, :, 0] == pytest.approx(2 - 3.5, abs=0.15)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("", "nothing to read; give --levels FILE, --buoy FILE, or both"),
        ("--levels levels", "--levels needs --units, --datum, --time-zone too"),
        ("--levels levels --units metric --datum MLLW", "--levels needs --time-zone too"),
        ("--buoy 46041h2015.txt --datum MLLW", "--datum is about --levels, which is missing"),
        ("--buoy 46041h2015.txt --starter", "give --recipe"),
        ("--buoy 46041h2015.txt --last-day 2015-01-01 --every 3", "give one"),
        ("--buoy 46041h2015.txt --last-day soon", "expected days like 2024-12-31"),
        ("--buoy absent.txt", "absent.txt"),
        ("--buoy levels/a.csv --days 40", "expected the header of NDBC's"),
        ("--buoy noise.txt --days 40", "noise.txt"),
        ("--buoy empty", "--buoy empty is a folder without files"),
        ("--buoy 46041h2015.txt", "cover 78 whole days (2015-01-01 to 2015-03-19, UTC)"),
        ("--buoy 46041h2015.txt --days 40 --last-day 2015-09-01", "series has"),
        ("--buoy 46041h2015.txt --recipe map.yaml", "makes maps"),
        ("--buoy 46041h2015.txt --days 40 --add", "is not there, so there is nothing to add to"),
        ("--buoy 46041h2014.txt --buoy weather_of_may.txt --days 40", "name the files as NDBC"),
        ("--buoy 46041h2014.txt --buoy 46042h2015.txt --days 40", "of one kind can be joined"),
        ("{levels} --levels of_1.json --units metric --datum MLLW --time-zone gmt", "--metadata"),
        ("{levels} --units feet --datum MLLW --time-zone gmt", "units is 'feet'"),
        ("{levels} --units metric --datum MLLV --time-zone gmt", "datum is 'MLLV'"),
        ("{levels} --units metric --datum MLLW --time-zone gmt --to-datum MHHW", "--metadata"),
        ("{predicted} --units metric --datum MLLW --time-zone gmt", "holds predicted levels"),
    ],
)
def test_wrong_input(here: Path, capfd: Capture, options: str, words: str) -> None:
    (here / "empty").mkdir()
    (here / "noise.txt").write_bytes(bytes(range(256)))
    (here / "p.csv").write_text("Date Time, Prediction\n2015-01-01 00:00,1.2\n")
    for name in ("weather_of_may.txt", "46042h2015.txt"):
        (here / name).write_text((here / "46041h2015.txt").read_text())
    row = {"t": "2016-01-01 00:00", "v": "1.0", "s": "0", "f": "0,0,0,0", "q": "v"}
    (here / "of_1.json").write_text(json.dumps({"metadata": {"id": "1"}, "data": [row]}))
    (here / "map.yaml").write_text((ROOT / "engines" / "landcover-lite0.yaml").read_text())
    given = options.format(levels="--levels levels", predicted="--levels p.csv")
    assert main(["series", "-o", "set/series.npz", *given.split()]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert words in err
    assert not (here / "set").exists()


def test_what_is_there_is_not_lost(here: Path, capfd: Capture, made: Callable[..., Any]) -> None:
    made(*BOTH, "--days", "60")
    before = sha256_file(here / "set" / "series.npz")
    more = ["series", "-o", "set/series.npz", *BOTH]
    for options, words in (
        (["--days", "60"], "add behind them with --add"),
        (["--days", "59", "--add"], "has days 60, and what is to be added 59"),
        (["--days", "60", "--add", "--least", "0.5"], "has least share of a day 0.75"),
    ):
        assert main([*more, *options]) == 2
        assert words in capfd.readouterr().err
    assert main([*more, "--days", "60", "--add", "--datum", "MHHW"]) == 2
    said = capfd.readouterr().err
    assert "has datum of the levels MLLW, and what is to be added MHHW; all series" in said
    assert sha256_file(here / "set" / "series.npz") == before
    assert main([*more[:3], *BOTH[-4:], "--days", "60", "--add"]) == 0, "weather has no datum"
    capfd.readouterr()
    (here / "set" / "series.npz").write_bytes(b"other")
    assert main([*more, "--days", "60", "--add"]) == 2
    assert "is not the file that" in capfd.readouterr().err
    (here / "set" / "series.npz").unlink()
    assert main([*more, "--days", "60"]) == 0
    assert sha256_file(here / "set" / "series.npz") == before


def test_the_real_station(tmp_path: Path, capfd: Capture) -> None:
    data = Path(os.environ.get("EDGEKD_TEST_DATA", ROOT.parent / "shared" / "data")) / "coastal"
    file = data / "seattle_9447130_201501_6min_MLLW_gmt.csv"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    out = tmp_path / "series.npz"
    assert main(["series", "-o", str(out), "--levels", str(file), *ASKED, "--metadata",
                 str(data / "seattle_9447130_metadata.json"), "--to-datum", "MHHW",
                 "--days", "30", "--json"]) == 0  # fmt: skip
    found = json.loads(capfd.readouterr().out)
    assert found["source"]["station"] == "9447130"
    assert any("30 levels have been inferred" in note for note in found["source"]["notes"])
    measured = found["windows"][0]["days_measured"]
    assert measured["level_high_m"] == 30 and measured["subtidal_high_m"] == 8
    with np.load(out) as stored:
        high = stored["values"][0][:, FEATURES.index("level_high_m")]
    assert -1 < high.min() < high.max() < 0.5  # metres about mean higher high water
