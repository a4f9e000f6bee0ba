"""Stations: heights by hand, what contradicts itself, and the real one of Seattle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.series import Series
from edgekd.contracts.station import flood_levels, read_station, to_datum
from edgekd.errors import InputError

HEIGHTS = {"STND": 0.0, "MHHW": 10.0, "MSL": 6.0, "MLLW": 2.0, "NAVD88": 3.0, "GT": 8.0, "HWI": 1.0}


def entry(**more: Any) -> dict[str, Any]:
    datums = {
        "units": "feet",
        "datums": [{"name": name, "value": value} for name, value in HEIGHTS.items()],
        "HAT": 11.0, "LAT": None, "min": -1.0, "max": 14.0,
    }  # fmt: skip
    datums.update(more.pop("datums", {}))
    return {
        "id": "9447130", "name": "Here", "lat": 47.6, "lng": -122.3, "timezonecorr": -8,
        "datums": datums,
        "floodlevels": {"nos_minor": 12.0, "nws_minor": 9.5, "action": None, "self": "https://x"},
        **more,
    }  # fmt: skip


def written(tmp_path: Path, whole: Any) -> Path:
    path = tmp_path / "station.json"
    path.write_text(whole if isinstance(whole, str) else json.dumps(whole), encoding="utf-8")
    return path


def level(value: float, datum: str | None = "MLLW", station: str = "") -> Series:
    channel = "water_level_m" if datum else "gust_m_s"
    return Series(
        np.array(["2015-01-01"], "M8[s]"), np.array([[value]]), (channel,), "made", station, datum
    )


def test_heights_are_metres_above_the_zero(tmp_path: Path) -> None:
    station = read_station(written(tmp_path, {"stations": [entry()]}))
    assert station.height_m("MHHW") == pytest.approx(3.048)
    assert station.height_m("navd") == station.height_m("NAVD88") == pytest.approx(0.9144)
    assert set(station.datums_m) == {"STND", "MHHW", "MSL", "MLLW", "NAVD88", "HAT"}
    assert station.flood_levels_m == pytest.approx({"nos_minor": 3.6576, "nws_minor": 2.8956})
    assert flood_levels(station, "MLLW") == pytest.approx({"nos_minor": 3.048, "nws_minor": 2.286})
    assert station.record_m == pytest.approx((-0.3048, 4.2672)) and station.utc_offset_h == -8
    metric = read_station(written(tmp_path, {"stations": [entry(datums={"units": "meters"})]}))
    assert metric.height_m("MHHW") == 10


def test_levels_change_their_datum(tmp_path: Path) -> None:
    station = read_station(written(tmp_path, {"stations": [entry()]}))
    higher = to_datum(level(1.0), station, "NAVD")
    # MLLW lies a foot below NAVD88 here, so the same water stands a foot less above it
    assert higher.values[0, 0] == pytest.approx(1 - 0.3048) and higher.datum == "NAVD88"
    assert higher.notes == (
        "levels from MLLW to NAVD88: -0.3048 m added, by the datums of station 9447130",
    )
    assert to_datum(higher, station, "MLLW").values[0, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("series", "datum", "message"),
    [
        (level(1), "NAVD89", "has no datum 'NAVD89'; did you mean 'NAVD88'"),
        (level(1), "IGLD", "has no datum 'IGLD85'"),
        (level(1), "GT", "'GT' is a range or an interval"),
        (level(1), "HWI", "'HWI' is a range or an interval"),
        (level(1, "LWD"), "MSL", "has no datum 'LWD'"),
        (level(1, None), "MSL", "has no levels, so no datum"),
        (level(1, station="1234567"), "MSL", "is of station 1234567 and the datums are of 9447130"),
    ],
)
def test_datums_that_are_refused(tmp_path: Path, series: Series, datum: str, message: str) -> None:
    station = read_station(written(tmp_path, {"stations": [entry()]}))
    with pytest.raises(InputError, match=message):
        to_datum(series, station, datum)


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "the file is no JSON object"),
        ({"error": {"message": "No station\nfound"}}, "the service's error: 'No station found'"),
        ({"stations": [entry(), entry()]}, "lists 2 stations, expected one"),
        ({"what": 1}, "lists no stations"),
        ({"stations": [entry(datums={"units": "fathoms"})]}, "in the unit 'fathoms'"),
        ({"stations": [entry(datums={"datums": None})]}, "has no list of datums; fetch it again"),
        ({"stations": [entry(datums={"datums": [{"name": "MSL", "value": "x"}]})]},
         "datum MSL is 'x', expected a number"),
        ('{"stations": [{"datums": {"units": "feet", "HAT": NaN, "datums": []}}]}', "NaN"),
        ({"stations": [entry(datums={"datums": [{"name": "STND", "value": 1}]})]}, "STND is"),
        ({"stations": [entry(datums={"datums": [{"name": "MLLW", "value": 2},
                                                {"name": "MHHW", "value": 1}]})]},
         "MLLW .* lies above MHHW"),
        # 12 ft written in metres, beside datums in feet; and the other way round
        ({"stations": [entry(floodlevels={"nos_minor": 3.66})]}, "different units or zeros"),
        ({"stations": [entry(floodlevels={"nws_major": 43.0})]}, "different units or zeros"),
        ({"stations": [entry(floodlevels=[1])]}, "'floodlevels' is no JSON object"),
        ({"stations": [entry(lat=None)]}, "'lat' is 'None'"),
        ({"stations": [entry(lat=91)]}, "no place"),
        ({"stations": [entry(timezonecorr="PST")]}, "'timezonecorr' is 'PST'"),
    ],
)  # fmt: skip
def test_files_that_are_refused(tmp_path: Path, whole: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_station(written(tmp_path, whole))


def test_seattle(test_data: Path) -> None:
    station = read_station(test_data / "coastal" / "seattle_9447130_metadata.json")
    assert (station.id, station.name, station.utc_offset_h) == ("9447130", "Seattle", -8)
    assert station.height_m("MLLW") == pytest.approx(7.94 * 0.3048)
    # 7.94 ft and 10.28 ft above the zero: NAVD88 lies 2.34 ft above MLLW
    assert to_datum(level(3.888), station, "NAVD88").values[0, 0] == pytest.approx(3.888 - 0.713232)
    # NOAA's rule: 1.04 GT + 0.50 m above MLLW; only with feet above STND does the file obey it
    assert flood_levels(station, "MLLW")["nos_minor"] == pytest.approx(
        1.04 * 11.36 * 0.3048 + 0.5, abs=0.005
    )
    assert len(station.flood_levels_m) == 6 and "GT" not in station.datums_m
