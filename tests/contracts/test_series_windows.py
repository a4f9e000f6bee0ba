"""Windows of series: which days of two are the same, what can be added, and damaged records."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.series import Series
from edgekd.contracts.series_windows import Measured, Source, leaks, read_record
from edgekd.errors import InputError
from tests.helpers.series_record import record_of, record_values, source

JANUARY, MARCH = ("2015-01-01", "2015-01-31"), ("2015-03-01", "2015-03-31")
FROM_25 = ("2015-01-25", "2015-02-10")


@pytest.mark.parametrize(
    ("one", "other", "days"),
    [
        (source("a"), source("a"), 7),
        (source("a"), source("b"), 0),
        (source(buoy="a"), source(buoy="a"), 7),
        (source("a", "x"), source("b", "x"), 7),
        (source("a", "x"), source("b", "y"), 0),
        (source("a"), source(buoy="a"), 0),
        (source(), source(), 0),
        (source("", "", None, "1", "2"), source("", "", None, "2"), 7),
        (source("", "", None, "1"), source("", "", None, "2"), 0),
    ],
)
def test_days_of_one_station_buoy_or_file_are_shared(one, other, days) -> None:
    for windows in ([(0, *JANUARY), (1, *FROM_25)], [(0, *FROM_25), (1, *JANUARY)]):
        found = leaks(record_of(windows, [one, other]), {0: "train", 1: "test"})
        expected = (
            f"series 0 (train) and 1 (test) share {days} days of one station: what is learned "
            "would be tested on itself"
        )
        assert found == ([expected] if days else [])


def test_one_source_is_one_place_whatever_it_says() -> None:
    windows = [(0, *JANUARY), (0, *MARCH), (0, *FROM_25)]
    record = record_of(windows, [source()])
    assert leaks(record, {0: "train", 1: "test"}) == []
    assert leaks(record, {0: "train", 1: "test", 2: "train"}) == []
    said = leaks(record, {0: "train", 1: "train", 2: "val"})
    assert len(said) == 1 and "0 (train) and 2 (val) share 7 days" in said[0]
    assert leaks(record, {1: "test", 2: "val"}) == []


def test_one_day_is_shared_and_the_next_is_not() -> None:
    sides = {0: "train", 1: "test"}
    for first, count in (("2015-01-31", 1), ("2015-02-01", 0)):
        record = record_of([(0, *JANUARY), (0, first, "2015-02-10")], [source()])
        assert [" share 1 days " in said for said in leaks(record, sides)] == [True] * count


def test_leaks_are_those_of_every_pair() -> None:
    random = np.random.default_rng(2)
    sources = [source(str(random.integers(3)), str(random.integers(4))) for _ in range(6)]
    begin = datetime.date(2015, 1, 1)
    windows = []
    for _ in range(40):
        first = begin + datetime.timedelta(days=int(random.integers(200)))
        last = first + datetime.timedelta(days=int(random.integers(30)))
        windows.append((int(random.integers(6)), first.isoformat(), last.isoformat()))
    record = record_of(windows, sources)
    sides = {n: ("train", "val", "test")[n % 3] for n in range(40)}
    expected = []
    for one in range(40):
        for other in range(one + 1, 40):
            a, b = record.series[one], record.series[other]
            here, there = record.sources[a.source], record.sources[b.source]
            alike = here.station == there.station or here.buoy == there.buoy
            days = (min(a.last_day, b.last_day) - max(a.first_day, b.first_day)).days + 1
            if alike and days > 0 and sides[one] != sides[other]:
                expected.append(f"series {one} ({sides[one]}) and {other} ({sides[other]}) share "
                                f"{days} days")  # fmt: skip
    found = leaks(record, sides)
    assert [said.split(" of one")[0] for said in found] == expected and len(expected) > 10


def test_thousands_of_windows_are_held_against_each_other_in_no_time() -> None:
    """A station's years for each of ten thousand series, which a pair at a time takes minutes."""
    days = [datetime.date(1000, 1, 1) + datetime.timedelta(days=30 * n) for n in range(10_000)]
    windows = [(0, d.isoformat(), (d + datetime.timedelta(days=29)).isoformat()) for d in days]
    record = record_of(windows, [source("a")])
    begun = time.perf_counter()
    assert leaks(record, {n: "train" if n % 2 else "test" for n in range(10_000)}) == []
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize(
    "window", [(1, "2015-01-01", "2015-01-31"), (0, "2015-01-31", "2015-01-01")]
)
def test_a_record_that_cannot_be_is_refused(tmp_path: Path, window: tuple[int, str, str]) -> None:
    from edgekd.contracts.artifacts import sha256_file

    np.savez(tmp_path / "series.npz", values=np.ones((1, 31, 1), np.float32))
    digest = sha256_file(tmp_path / "series.npz")
    values = record_values([window], [source()], sha256=digest)
    (tmp_path / "series.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"series.json is damaged: series 0 is of source"):
        read_record(tmp_path / "series.npz")


def hours(first: str, last: str) -> Series:
    """Hourly values, both ends inside."""
    times = np.arange(np.datetime64(first, "s"), np.datetime64(last, "s") + 1, 3600)
    return Series(times, np.ones((len(times), 1)), ("x_m",), f"{first} to {last}")


@pytest.mark.parametrize("swapped", [False, True])
def test_whole_days_are_those_of_levels_and_weather(swapped: bool) -> None:
    """One begins later and the other ends earlier; a day is whole to its last hour."""
    long, short = hours("2015-01-01T00", "2015-03-01T12"), hours("2015-01-05T06", "2015-02-10T22")
    about = Source(station="", buoy="", datum=None, levels=[], weather=[], notes=[])
    given = (short, long) if swapped else (long, short)
    days = [datetime.date(2015, 1, 6), datetime.date(2015, 2, 9)]
    assert list(Measured(*given, about).whole_days()) == days
    later, sooner = hours("2015-01-03T00", "2015-03-01T12"), hours("2015-01-01T06", "2015-02-10T23")
    given = (later, sooner) if swapped else (sooner, later)
    days = [datetime.date(2015, 1, 3), datetime.date(2015, 2, 10)]
    assert list(Measured(*given, about).whole_days()) == days
