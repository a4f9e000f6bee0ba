"""Water levels of CO-OPS: every form gives the same series, and what is refused says where."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts import series_text
from edgekd.contracts.series import Series
from edgekd.contracts.series_files import read_coops
from edgekd.contracts.station import Station, read_station
from edgekd.errors import InputError

API = "Date Time, Water Level, Sigma, O or I (for verified), F, R, L, Quality \n"
ROWS = [
    ("2015-01-01 00:00", "1.798", "0.023", "0,0,0,0", "v"),
    ("2015-01-01 00:06", "1.7", "0.018", "1,0,0,0", "v"),
    ("2015-01-01 00:12", "", "", "", ""),
    ("2015-01-01 00:18", "-0.5", "0.02", "7,0,1,0", "p"),
]
METRIC = {"units": "metric", "datum": "MLLW", "time_zone": "gmt"}
STATION = Station("1", "Here", 47.0, -122.0, -8.0, {"STND": 0.0, "MLLW": 2.0}, {}, (0.5, 7.0))


def plain(rows: list[tuple[str, ...]]) -> str:
    return "t,v,s,f,q\n" + "".join(f'{t},{v},{s},"{f}",{q}\n' for t, v, s, f, q in rows)


def api(rows: list[tuple[str, ...]]) -> str:
    return API + "".join(f"{t},{v},{s},{f or ',,,'},{q}\n" for t, v, s, f, q in rows)


def as_json(rows: list[tuple[str, ...]]) -> str:
    listed = [dict(zip("tvsfq", row, strict=True)) for row in rows]
    return json.dumps({"metadata": {"id": "1", "name": "Here", "lat": "47"}, "data": listed})


FORMS = {"plain": plain, "api": api, "json": as_json}


def read(tmp_path: Path, text: str | bytes, **more: Any) -> Series:
    path = tmp_path / "levels.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_coops(path, **{**METRIC, **more})


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("form", FORMS)
def test_all_forms_are_one_series(tmp_path: Path, form: str, ends: str, packed: bool) -> None:
    raw = FORMS[form](ROWS).replace("\n", ends).encode()
    item = read(tmp_path, gzip.compress(raw) if packed else b"\xef\xbb\xbf" + raw)
    np.testing.assert_array_equal(item.values[:, 0], [1.798, 1.7, np.nan, -0.5])
    assert item.times.tolist() == np.array([row[0] for row in ROWS], "M8[s]").tolist()
    assert item.channels == ("water_level_m",) and item.datum == "MLLW"
    assert item.station == ("1" if form == "json" else "")
    assert item.notes == (
        "4 rows, of them 1 without a level",
        "2 levels are verified, 1 preliminary",
        "1 levels have samples beyond three sigma (flag O), kept",
        "1 levels have been inferred and not measured (flag I)",
        "1 levels have exceeded the rate of change (flag R)",
        "2 levels with flag I, F, R or L: kept",
    )


@pytest.mark.parametrize(
    ("flags", "quality", "dropped"),
    [
        ("0,0,0,0", "v", False), ("0,0,0,0", "p", False), ("1,0,0,0", "v", True),
        ("9,0,0,0", "p", False), ("0,1,0,0", "p", True), ("0,0,1,0", "v", True),
        ("0,0,0,1", "p", True),
    ],
)  # fmt: skip
def test_flagged_levels_are_dropped_when_asked(
    tmp_path: Path, flags: str, quality: str, dropped: bool
) -> None:
    text = plain([("2015-01-01 00:00", "1", "0", flags, quality)])
    assert read(tmp_path, text).values[0, 0] == 1
    item = read(tmp_path, text, drop_flagged=True)
    assert np.isnan(item.values[0, 0]) == dropped
    assert ("dropped: they are gaps now" in " ".join(item.notes)) == dropped


def test_hourly_heights_and_predictions(tmp_path: Path) -> None:
    hourly = "Date Time, Water Level, Sigma, I, L \n2015-01-01 00:00,1.5,0.0,1,0\n"
    assert "1 levels have been inferred" in " ".join(read(tmp_path, hourly).notes)
    rows = json.dumps({"data": [{"t": "2015-01-01 00:00", "v": "1.5", "s": "0.0", "f": "1,0"}]})
    np.testing.assert_array_equal(read(tmp_path, rows).values, read(tmp_path, hourly).values)
    forms = [
        "Date Time, Prediction\n2015-01-01 00:00,1.25\n",
        json.dumps({"predictions": [{"t": "2015-01-01 00:00", "v": "1.25"}]}),
    ]
    for text in forms:
        item = read(tmp_path, text)
        assert item.channels == ("predicted_level_m",) and item.values[0, 0] == 1.25


def test_units_zone_and_station(tmp_path: Path) -> None:
    item = read(tmp_path, plain(ROWS), units="english", time_zone="lst", metadata=STATION)
    assert item.values[0, 0] == pytest.approx(1.798 * 0.3048)
    assert item.times[0] == np.datetime64("2015-01-01T08:00:00") and item.station == "1"
    assert "levels converted from feet to metres (0.3048 m)" in item.notes
    assert "times converted from local standard time to UTC (+8 h)" in item.notes
    assert read(tmp_path, plain(ROWS), datum="navd").datum == "NAVD88"


def test_order_and_repeats(tmp_path: Path) -> None:
    item = read(tmp_path, plain([*ROWS[::-1], ROWS[1]]))
    np.testing.assert_array_equal(item.values[:, 0], [1.798, 1.7, np.nan, -0.5])
    assert item.notes[-2:] == (
        "times went back at 3 of 5 rows: sorted by time",
        "1 rows repeated another to the digit: dropped",
    )
    other = [*ROWS, ("2015-01-01 00:06", "1.701", "0", "0,0,0,0", "v")]
    with pytest.raises(InputError, match="line 6 has 2015-01-01T00:06:00 with other .* line 3"):
        read(tmp_path, plain(other))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "code", ["99.0", "99", "-99", "999.000", "-999.000", "9999", "-9999", "99999", "-99999"]
)
@pytest.mark.parametrize("units", ["metric", "english"])
def test_codes_for_a_gap_are_gaps_and_counted(
    tmp_path: Path, form: str, code: str, units: str
) -> None:
    rows = [*ROWS, ("2015-01-01 00:24", code, "0", "0,0,0,0", "v"),
            ("2015-01-01 00:30", code, "0", "0,0,0,0", "v")]  # fmt: skip
    item = read(tmp_path, FORMS[form](rows), units=units)
    factor = 0.3048 if units == "english" else 1
    np.testing.assert_allclose(
        item.values[:, 0], np.array([1.798, 1.7, np.nan, -0.5, np.nan, np.nan]) * factor
    )
    where = "row 5" if form == "json" else "line 6"
    assert [note for note in item.notes if "codes for a gap" in note] == [
        "2 levels are codes for a gap (99, 999, 9999, 99999 or less these), first on "
        f"{where}: gaps now"
    ]


def test_a_level_that_can_be_is_no_code(tmp_path: Path) -> None:
    item = read(tmp_path, one("99.0"), datum="IGLD")  # the Niagara stands there
    assert item.values[0, 0] == 99 and "codes" not in " ".join(item.notes)
    assert np.isnan(read(tmp_path, one("99.0"), metadata=STATION).values).all()


def many(levels: list[float]) -> str:
    start = np.datetime64("2015-01-01T00:00")
    return plain(
        [
            (str(start + 6 * n).replace("T", " "), f"{level:.3f}", "0", "0,0,0,0", "v")
            for n, level in enumerate(levels)
        ]
    )


def test_a_lone_level_is_no_reason_to_think_of_feet(tmp_path: Path) -> None:
    tide = [2 * math.sin(n / 20) for n in range(400)]
    for level, words in (
        (31.0, "1 of 400 levels are so: leave theirs empty"),
        (25.0, "line 202 has a level of 25.000 m, and all but 2 % of them lie"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            read(tmp_path, many([*tide[:200], level, *tide[201:]]))
        assert "feet" not in str(caught.value)


def test_a_span_that_no_sea_has_is_feet_without_metadata(tmp_path: Path) -> None:
    tide = [14 * math.sin(n / 20) for n in range(400)]  # some 28 ft, in Cook Inlet
    with pytest.raises(InputError, match=r"go from -14.00 to 14.00 m, .* 16.3 m; .*feet\?"):
        read(tmp_path, many(tide))
    assert np.ptp(read(tmp_path, many(tide), units="english").values) < 9
    fundy = [8.15 * math.sin(n / 20) for n in range(400)]
    assert np.ptp(read(tmp_path, many(fundy)).values) > 16
    wide = Station("1", "Far", 47.0, -122.0, -8.0, {"STND": 0.0, "MLLW": 20.0}, {}, (5.0, 35.0))
    read(tmp_path, many(tide), metadata=wide)


def one(level: str = "1", time: str = "2015-01-01 00:00", flags: str = "0,0,0,0",
        quality: str = "v") -> str:  # fmt: skip
    return plain([(time, level, "0", flags, quality)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty"),
        (b"\x00\x01\x02 1", "is no text of lines"),
        (b"t,v,s,f,q\n\xff\xfe\n", "is no text, expected CSV"),
        (b"t" * 20_000, "is no text of lines"),
        (b"\x1f\x8b\x08nonsense", "cannot be unpacked"),
        (gzip.compress(api(ROWS).encode())[:-12], "cannot be unpacked"),
        ("t,v,s,f,q\n", "has a header and no rows"),
        ("<html><body>Sorry</body></html>\n", "XML or a web page"),
        ("Error: No data was found. This product\n", "the service's error: 'error: no data was"),
        ('{"error": {"message": "No data was found."}}', "the service's error: 'No data was found"),
        ("a,b\n1,2\n", "has the columns 'a, b', expected water levels of CO-OPS"),
        ("Date Time, Pressure, X, N, R \n2015-01-01 00:00,1013,0,0,0\n", "product air_pressure"),
        ("Date Time, Speed, Direction, Direction, Gust, X, R \n", "product wind"),
        ("Date Time, Water Temperature, X, N, R \n", "product water_temperature"),
        ("t,v\n2015-01-01 00:00,1\n", "has the columns 't, v', expected"),
        ("Date Time, Sigma\n", "expected water levels"),
        ("t,s,f,q\n", "expected water levels"),
        ('{"data": [{"t": "2015-01-01 00:00", "v": "1013", "f": "0,0,0"}]}',
         "row 1 with the keys 't, v, f', expected"),
        ('{"data": [{"t": "2015-01-01 00:00", "s": "1", "d": "2", "dr": "N", "g": "3", "f": ""}]}',
         "product wind"),
        ('{"predictions": [{"t": "2015-01-01 00:00", "v": "1", "type": "H"}]}', "interval=hilo"),
        ('{"what": 1}', "neither 'data' nor 'predictions'"),
        ('{"data": [1]}', "row 1 is no JSON object"),
        ('{"data": [{"t": [], "v": "1", "s": "", "f": ""}]}', "row 1 has '.*' where a text"),
        ('{"data": [{"t": "2015-01-01 00:00", "v": NaN, "s": "", "f": ""}]}', "is not JSON: NaN"),
        ('{"data": [', "is not JSON"),
        ('{"data": []}', "has a header and no rows"),
        (plain(ROWS) + "2015-01-01 00:24,1.7", "line 6 has 2 fields for 5 columns"),
        (plain(ROWS) + '2015-01-01 00:24,1.7,0,"0,0', "is no CSV"),
        (one("1.2x"), "line 2 has '1.2x' for level, expected a number, or nothing for a gap"),
        (one("nan"), "line 2 has 'nan' for level"),
        (one("inf"), "line 2 has 'inf' for level"),
        (one("1e999"), "line 2 has '1e999' for level"),
        (one("1_0"), "line 2 has '1_0' for level"),
        (one("\u0661"), "for level"),
        (one("30.001"), "line 2 has a level of 30.001 m above MLLW, expected -30.0 to 30.0"),
        (one("-31"), "probably others \\(feet\\?\\)"),
        (one(quality="x"), "line 2 has the quality 'x', expected v"),
        (one(flags="0,0,0"), "line 2 has the flags '0,0,0', expected four"),
        (one(flags="0,0,a,0"), "line 2 has the flags '0,0,a,0'"),
        (one(flags="0,0,-1,0"), "line 2 has the flags"),
        (one(time="2015-02-30 00:00"), "line 2 has the time '2015-02-30 00:00', expected one"),
        (one(time="2015-01-01 24:00"), "line 2 has the time '2015-01-01 24:00'"),
        (one(time="01/02/2015 00:00"), "line 2 has the time '01/02/2015 00:00'"),
        (one(time="today"), "line 2 has the time 'today'"),
        (one(time="2015-01-01 00:00Z"), "line 2 has the time"),
        (one(time=""), "line 2 has the time ''"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": "metrics"}, "units is 'metrics'; did you mean 'metric'"),
        ({"units": ""}, "expected metric or english: .* the file does not say"),
        ({"time_zone": "utc"}, "time_zone is 'utc'"),
        ({"time_zone": "lst_ldt"}, "have one hour twice each autumn"),
        ({"time_zone": "lst"}, "needs the station's offset from UTC"),
        ({"datum": "NAVD8"}, "datum is 'NAVD8'; did you mean 'NAVD88'"),
        ({"datum": ""}, "datum is ''"),
    ],
)
def test_arguments_that_are_refused(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, plain(ROWS), **arguments)


def test_metadata_must_fit(tmp_path: Path) -> None:
    other = Station("2", "There", 0.0, 0.0, -8.0, {}, {}, None)
    with pytest.raises(InputError, match="is of station 1, and the metadata of 2 \\(There\\)"):
        read(tmp_path, as_json(ROWS), metadata=other)
    read(tmp_path, one("6.9"), metadata=STATION)
    with pytest.raises(InputError, match="7.100 m above MLLW, expected -3.5 to 7.0 m: station 1 "):
        read(tmp_path, one("7.1"), metadata=STATION)
    # of a datum that the station does not have nothing is known
    read(tmp_path, one("7.1"), metadata=STATION, datum="MSL")
    assert read(tmp_path, one("183.4"), datum="IGLD").values[0, 0] == 183.4


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_text, "MOST_BYTES", 4000)
    many = plain([(f"2015-01-01 00:{i:02d}", "1", "0", "0,0,0,0", "v") for i in range(60)])
    assert len(read(tmp_path, many[:1500].rsplit("\n", 1)[0]).times) > 20
    rows = many + many[many.index("\n") + 1 :] * 2
    for raw in (rows.encode(), gzip.compress(rows.encode())):
        with pytest.raises(InputError, match="more than 4,000 bytes"):
            read(tmp_path, raw)
    with pytest.raises(InputError, match="more than 4,000 bytes"):
        read(tmp_path, gzip.compress(as_json(ROWS * 10).encode()))
    with pytest.raises(InputError, match="does not exist"):
        read_coops(tmp_path / "absent.csv", **METRIC)
    with pytest.raises(InputError, match="cannot be read"):
        read_coops(tmp_path, **METRIC)


LEVEL = st.integers(-9_999, 9_999).map(lambda number: f"{number / 1000:.3f}") | st.just("")


@given(st.dictionaries(st.integers(0, 10_000), LEVEL, min_size=1, max_size=30), st.randoms())
def test_round_trip(tmp_path_factory: Any, levels: dict[int, str], random: Any) -> None:
    """Gaps, order and every form: what was written is what is read."""
    minutes = list(levels)
    random.shuffle(minutes)
    start = np.datetime64("2015-01-01T00:00")
    rows = [
        (str(start + 6 * minute).replace("T", " "), levels[minute], "0", "0,0,0,0", "v")
        for minute in minutes
    ]
    folder = tmp_path_factory.mktemp("round")
    for form in FORMS.values():
        item = read(folder, form(rows))
        assert item.times.tolist() == [
            (start + 6 * minute).astype("M8[s]").item() for minute in sorted(levels)
        ]
        expected = [float(levels[minute] or "nan") for minute in sorted(levels)]
        np.testing.assert_array_equal(item.values[:, 0], expected)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_comes_is_read_or_refused(tmp_path_factory: Any, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for text in (raw, plain(ROWS).encode() + raw, b'{"data":' + raw, gzip.compress(raw)):
        try:
            read(folder, text)
        except InputError as err:
            assert str(err)


def test_seattle(test_data: Path) -> None:
    path = test_data / "coastal" / "seattle_9447130_201501_6min_MLLW_gmt.csv"
    station = read_station(path.with_name("seattle_9447130_metadata.json"))
    item = read_coops(path, **METRIC, metadata=station)
    assert item.values.shape == (7201, 1) and item.station == "9447130"
    assert (item.values.min(), item.values.max()) == (-0.787, 3.888)
    assert item.times[-1] == np.datetime64("2015-01-31T00:00:00")
    assert item.notes == (
        "7,201 rows, of them 0 without a level",
        "7,201 levels are verified, 0 preliminary",
        "30 levels have been inferred and not measured (flag I)",
        "30 levels with flag I, F, R or L: kept",
    )
    dropped = read_coops(path, **METRIC, drop_flagged=True)
    assert np.isnan(dropped.values).sum() == 30
