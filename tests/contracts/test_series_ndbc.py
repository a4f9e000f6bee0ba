"""NDBC's standard meteorological files: all the formats of fifty years, gaps by column."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.series import Series
from edgekd.contracts.series_files import read_ndbc
from edgekd.errors import InputError

REALTIME = """\
#YY  MM DD hh mm WDIR WSPD GST  WVHT   DPD   APD MWD   PRES  ATMP  WTMP  DEWP  VIS PTDY  TIDE
#yr  mo dy hr mn degT m/s  m/s     m   sec   sec degT   hPa  degC  degC  degC  nmi  hPa    ft
2014 09 11 16 50 120  5.0  6.0   0.6     6   4.2 134 1016.5  29.3  30.5  24.4   MM +0.3    MM
2014 09 11 16 40  99   MM  9.9    MM    MM    MM  MM  999.0  -9.9  30.4    MM  1.0 -0.3  2.00
"""
YEAR_2013 = """\
#YY  MM DD hh mm WDIR WSPD GST  WVHT   DPD   APD MWD   PRES  ATMP  WTMP  DEWP  VIS  TIDE
#yr  mo dy hr mn degT m/s  m/s     m   sec   sec degT   hPa  degC  degC  degC   mi    ft
2012 12 31 23 50 999 99.0 99.0  1.93  7.69 99.00  99 9999.0 999.0  15.1 999.0 99.0 99.00
"""
YEAR_2005 = """\
YYYY MM DD hh mm  WD  WSPD GST  WVHT  DPD   APD  MWD  BAR    ATMP  WTMP  DEWP  VIS  TIDE
2005 12 31 23 30  11  1.9  2.2 99.00 99.00 99.00 999  987.7   8.5   8.6   7.4 99.0 99.00
"""
YEAR_2000 = """\
YYYY MM DD hh WD   WSPD GST  WVHT  DPD   APD  MWD  BAR    ATMP  WTMP  DEWP  VIS  TIDE
2000 07 31 23  69  4.5  6.1 99.00 99.00 99.00 999 1021.6   7.6 999.0   4.8 99.0
2000 08 01 00  70  4.5  6.1 99.00 99.00 99.00 999 1021.6   7.6 999.0   4.8 99.0 99.00
"""
YEAR_1986 = """\
YY MM DD hh WD   WSPD GST  WVHT  DPD   APD  MWD  BAR    ATMP  WTMP  DEWP  VIS
86 02 21 03 110 03.1 03.6 02.60 14.30 99.00 999 1012.0  25.0  25.7 999.0 99.0
"""
GAP = math.nan


def read(tmp_path: Path, text: str | bytes, name: str = "46041h2013.txt") -> Series:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_ndbc(path)


def row(item: Series, index: int = 0) -> dict[str, float]:
    return dict(zip(item.channels, item.values[index].tolist(), strict=True))


def test_realtime(tmp_path: Path) -> None:
    item = read(tmp_path, REALTIME, "46041.txt")
    assert (
        item.times.tolist() == np.array(["2014-09-11T16:40", "2014-09-11T16:50"], "M8[s]").tolist()
    )
    assert item.station == "46041" and item.datum == "MLLW"
    # 99 degrees and 999 hPa are values, each in its column
    expected = {
        "wind_direction_deg": 99, "wind_speed_m_s": GAP, "gust_m_s": 9.9, "wave_height_m": GAP,
        "wave_period_s": GAP, "mean_wave_period_s": GAP, "wave_direction_deg": GAP,
        "pressure_hpa": 999, "air_temperature_c": -9.9, "water_temperature_c": 30.4,
        "dew_point_c": GAP, "visibility_m": 1852, "pressure_tendency_hpa": -0.3,
        "water_level_m": 0.6096,
    }  # fmt: skip
    assert row(item) == pytest.approx(expected, nan_ok=True)
    assert row(item, 1)["wave_height_m"] == 0.6 and row(item, 1)["wind_direction_deg"] == 120
    assert "times went back at 1 of 2 rows: sorted by time" in item.notes


@pytest.mark.parametrize(
    ("text", "time", "expected"),
    [
        (YEAR_2013, "2012-12-31T23:50",
         {"wind_direction_deg": GAP, "wind_speed_m_s": GAP, "gust_m_s": GAP, "wave_height_m": 1.93,
          "wave_period_s": 7.69, "mean_wave_period_s": GAP, "wave_direction_deg": 99,
          "pressure_hpa": GAP, "air_temperature_c": GAP, "water_temperature_c": 15.1,
          "dew_point_c": GAP, "visibility_m": GAP, "water_level_m": GAP}),
        (YEAR_2005, "2005-12-31T23:30",
         {"wind_direction_deg": 11, "wind_speed_m_s": 1.9, "wave_height_m": GAP,
          "wave_direction_deg": GAP, "pressure_hpa": 987.7, "dew_point_c": 7.4}),
        (YEAR_2000, "2000-07-31T23:00", {"wind_direction_deg": 69, "water_level_m": GAP}),
        (YEAR_1986, "1986-02-21T03:00",
         {"wind_speed_m_s": 3.1, "wave_height_m": 2.6, "wave_period_s": 14.3,
          "mean_wave_period_s": GAP, "pressure_hpa": 1012, "water_temperature_c": 25.7}),
    ],
)  # fmt: skip
def test_years(tmp_path: Path, text: str, time: str, expected: dict[str, float]) -> None:
    for raw in (text.encode(), gzip.compress(text.replace("\n", "\r\n").encode())):
        item = read(tmp_path, raw)
        assert item.times[0] == np.datetime64(time) and item.station == "46041"
        got = row(item)
        assert {name: got[name] for name in expected} == pytest.approx(expected, nan_ok=True)
        assert item.datum == ("MLLW" if "TIDE" in text else None)
    assert ("1 lines end before TIDE: gaps" in item.notes) == (text == YEAR_2000)


def test_columns_stand_anywhere(tmp_path: Path) -> None:
    names = "#YY MM DD hh mm WTMP PRES DPD WVHT GST WSPD\n"
    remark = "# the buoy was moved\n\n"
    item = read(
        tmp_path, names + "2014 01 01 00 00 10.0 1000.0 8.0 1.5 7.0 5.0\n" + remark, "a.txt"
    )
    assert row(item)["wave_height_m"] == 1.5 and row(item)["water_temperature_c"] == 10
    assert item.station == "" and item.datum is None and len(item.times) == 1


def year(rows: list[str], header: str = YEAR_2013.splitlines()[0]) -> str:
    return header + "\n" + "\n".join(rows) + "\n"


def line(minute: int = 0, **cells: str) -> str:
    given = {"WDIR": "120", "WSPD": "5.0", "GST": "6.0", "WVHT": "1.00", "DPD": "8.00",
             "APD": "5.00", "MWD": "134", "PRES": "1016.5", "ATMP": "9.3", "WTMP": "10.5",
             "DEWP": "4.4", "VIS": "99.0", "TIDE": "99.00"}  # fmt: skip
    clock = str(np.datetime64("2013-01-01T00:00") + minute)
    return " ".join([*clock.replace("T", "-").replace(":", "-").split("-"),
                     *{**given, **cells}.values()])  # fmt: skip


def test_a_value_nature_does_not_have_is_a_gap(tmp_path: Path) -> None:
    rows = [line(minute, WVHT="55.00" if minute == 7 else "1.00") for minute in range(100)]
    item = read(tmp_path, year(rows))
    assert np.isnan(item.channel("wave_height_m")).nonzero()[0].tolist() == [7]
    said = "1 of 100 values of WVHT lie outside 0 to 40 (wave_height_m), first 55 on line 9: gaps"
    assert said in item.notes
    rows[8] = line(8, WVHT="55.00")
    with pytest.raises(InputError, match="2 of 100 values of WVHT .* probably in another unit"):
        read(tmp_path, year(rows))


def test_nines_are_gaps_by_column_and_counted(tmp_path: Path) -> None:
    rows = [line(minute) for minute in range(10)]
    rows[3] = line(3, WVHT="99.00", PRES="9999.0", WTMP="99.0", ATMP="MM", WDIR="99")
    rows[4] = line(4, WVHT="9999.0", PRES="999.0")
    item = read(tmp_path, year(rows))
    assert np.isnan(item.channel("wave_height_m")).nonzero()[0].tolist() == [3, 4]
    assert np.isnan(item.channel("water_temperature_c")).nonzero()[0].tolist() == [3]
    assert item.channel("wind_direction_deg")[3] == 99 and item.channel("pressure_hpa")[4] == 999
    assert item.notes[1:] == (
        "1 values of WVHT are 99: gaps",
        "1 values of WVHT are 9999, the nines of another column: gaps",
        "1 values of PRES are 9999: gaps",
        "1 values of ATMP are MM: gaps",
        "1 values of WTMP are 99, the nines of another column: gaps",
        "10 values of VIS are 99: gaps",
        "10 values of TIDE are 99: gaps",
        "the station is taken from the file's name",
    )


HEADER, UNITS, DATA = YEAR_2013.splitlines()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (HEADER + "\n" + UNITS + "\n", "has a header and no rows"),
        ("t,v,s,f,q\n1,2\n", "begins with 't,v,s,f,q', expected the header of NDBC"),
        ("#YY MM DD hh mm WDIR WSPD GDR GST GTIME\n", "column 'GDR' \\(continuous winds\\)"),
        ("#YY MM DD hh mm WVHT SwH SwP WWH WWP\n", "column 'SwH' \\(spectral wave summaries\\)"),
        ("#YY MM DD hh mm DEPTH OTMP COND SAL\n", "oceanographic data"),
        ("#STN LAT LON YYYY MM DD hh mm WDIR\n", "latest observations of all stations"),
        (HEADER.replace("WVHT", "") + "\n", "has no column WVHT, expected WSPD, GST"),
        (HEADER.replace("TIDE", "WDIR") + "\n", "a column twice"),
        (HEADER.replace("PTDY", "X").replace("VIS", "VIZ") + "\n", "column 'VIZ'.* did you mean"),
        (f"{HEADER}\n{UNITS.replace('m/s', 'kts')}\n{DATA}\n", "column WSPD is in 'kts', expected"),
        (f"{HEADER}\n{UNITS} ft\n{DATA}\n", "line of units has 14 for 13 columns"),
        (f"{HEADER}\n{DATA}\n{REALTIME}", "line 3 begins other columns than the first line"),
        (f"{HEADER}\n{DATA[:-20]}\n", "line 2 has 15 fields for 18 columns"),
        (f"{HEADER}\n{DATA} 1\n", "line 2 has 19 fields"),
        (year([line(WVHT="1.0.0")]), "line 2 has '1.0.0' for WVHT, expected a number or MM"),
        (year([line(WVHT="nan")]), "line 2 has 'nan' for WVHT"),
        (year([line(PRES="inf")]), "line 2 has 'inf' for PRES"),
        (year([line(PRES="N/A")]), "line 2 has 'N/A' for PRES"),
        (year([line(WTMP="68.0")]), "values of WTMP lie outside -5 to 45"),
        (year([line(WDIR="361")]), "values of WDIR lie outside 0 to 360"),
        (year([line(PRES="30.02")]), "values of PRES lie outside 850 to 1090"),
        (year([line(), line(WVHT="1.10")]), "line 3 has 2013-01-01T00:00:00 with other .* line 2"),
        (year([line().replace("2013", "13")]), "year '13', expected 70 to 98"),
        (year([line().replace("2013 01", "2013 13")]), "line 2 has the time '2013-13-01 00:00'"),
        (year([line().replace("2013", "x")]), "line 2 begins with 'x 01 01 00 00', expected"),
        (b"\x89PNG\r\n\x1a\n\x00", "is no text"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


CELLS = {
    "WDIR": (st.integers(0, 360).map(str), "999"),
    "WSPD": (st.integers(0, 900).map(lambda value: f"{value / 10:.1f}"), "99.0"),
    "WVHT": (st.integers(0, 3999).map(lambda value: f"{value / 100:.2f}"), "99.00"),
    "PRES": (st.integers(8500, 10899).map(lambda value: f"{value / 10:.1f}"), "9999.0"),
    "WTMP": (st.integers(-50, 450).map(lambda value: f"{value / 10:.1f}"), "999.0"),
}


@given(
    st.dictionaries(
        st.integers(0, 50_000),
        st.fixed_dictionaries({name: st.none() | cell for name, (cell, _) in CELLS.items()}),
        min_size=1, max_size=20,
    ),
    st.booleans(), st.randoms(),
)  # fmt: skip
def test_round_trip(
    tmp_path_factory: Any, cells: dict[int, dict[str, str | None]], nines: bool, random: Any
) -> None:
    """Any order, MM or nines: what was written is what is read, also what looks like a gap."""
    minutes = list(cells)
    random.shuffle(minutes)
    rows = [
        line(minute, **{name: cell or (CELLS[name][1] if nines else "MM")
                        for name, cell in cells[minute].items()})
        for minute in minutes
    ]  # fmt: skip
    item = read(tmp_path_factory.mktemp("round"), year(rows))
    channels = {"WDIR": "wind_direction_deg", "WSPD": "wind_speed_m_s", "WVHT": "wave_height_m",
                "PRES": "pressure_hpa", "WTMP": "water_temperature_c"}  # fmt: skip
    for name, channel in channels.items():
        expected = [float(cells[minute][name] or "nan") for minute in sorted(cells)]
        np.testing.assert_array_equal(item.channel(channel), expected)
    assert item.times[0] == np.datetime64("2013-01-01T00:00") + min(cells)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_comes_is_read_or_refused(tmp_path_factory: Any, raw: bytes) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for text in (raw, YEAR_1986.encode() + raw, gzip.compress(raw), HEADER.encode() + raw):
        try:
            read(folder, text)
        except InputError as err:
            assert str(err)
