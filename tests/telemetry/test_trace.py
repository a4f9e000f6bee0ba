"""Traces on disk: what was written is what is read, and what was damaged is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts import optional
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError, OutputError
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.tegrastats import Counts
from edgekd.telemetry.trace import Trace, TraceWriter, read_trace, write_trace

INFO = SensorInfo("made-up", "wall", ("A", "B"), "estimate", 0.04, 0.45, {"chip.samples": "64"})


def some(count: int = 5, tiles: bool = True) -> Trace:
    readings = [
        Reading(0.1 * n + 0.01, 5.0 + n / 3, {"VDD_IN": 5.0 + n / 3, "a,\"b\"": -0.398},
                energy_j=12.5 * n, temperatures_c={"tj": 49.5}, clocks_mhz={"gr3d": 1018.0},
                loads={"gr3d": 99.0})
        for n in range(count)
    ]  # fmt: skip
    return Trace(
        Samples(
            INFO, 0.1, readings, lost="it ended", stalls=[(0.1, 1.5)], restarts=2, restarted_s=[0.3]
        ),
        tiles=np.arange(count) * 3 if tiles else None,
        started_utc="2026-01-02T03:04:05.678+00:00",
        marks=[(0.2, "begin"), (0.3, "end")],
        counts=Counts(5, Counter(cut=1), 60, Counter(NEW=5), 2),
        tiles_done=17 if tiles else None,
        ended_s=0.7,
    )


def same(one: Trace, other: Trace) -> None:
    assert one.samples.info == other.samples.info
    assert one.samples.interval_s == other.samples.interval_s
    assert one.samples.faults() == other.samples.faults()
    assert one.samples.restarted_s == pytest.approx(other.samples.restarted_s)
    assert (one.started_utc, one.whole, one.unavailable, one.tiles_done, one.counts) == (
        other.started_utc, other.whole, other.unavailable, other.tiles_done, other.counts,
    )  # fmt: skip
    assert [name for _, name in one.marks] == [name for _, name in other.marks]
    assert [at for at, _ in one.marks] == pytest.approx([at for at, _ in other.marks])
    assert (one.tiles is None) == (other.tiles is None)
    if one.tiles is not None and other.tiles is not None:
        np.testing.assert_array_equal(one.tiles, other.tiles)
    assert len(one.samples.readings) == len(other.samples.readings)
    for a, b in zip(one.samples.readings, other.samples.readings, strict=True):
        assert a.at_s == pytest.approx(b.at_s, abs=6e-7)
        assert a.why == b.why and (a.watts is None) == (b.watts is None)
        for x, y in (
            ([a.watts or 0.0, a.energy_j or 0.0], [b.watts or 0.0, b.energy_j or 0.0]),
            (a.rails_w, b.rails_w), (a.temperatures_c, b.temperatures_c),
            (a.clocks_mhz, b.clocks_mhz), (a.loads, b.loads),
        ):  # fmt: skip
            assert x == pytest.approx(y, rel=1e-9)


def test_a_trace_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.csv"
    write_trace(path, some())
    same(read_trace(path), some())
    lines = path.read_text().splitlines()
    assert lines[0].startswith('# edgekd.trace {"schema": 1, ')
    header = (
        't_s,power_w,energy_j,tiles,tiles_per_s,VDD_IN_w,"a,""b""_w",tj_c,gr3d_mhz,gr3d_load,why'
    )
    assert lines[1] == header
    assert lines[2] == "0.010000,5,0,0,,5,-0.398,49.5,1018,99,"
    assert lines[3].startswith("0.110000,5.333333333,12.5,3,30,")
    assert lines[-1].startswith("# end ") and json.loads(lines[-1][6:])["achieved_s"] is not None


@settings(max_examples=60)
@given(data=st.data())
def test_any_trace_comes_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    number = st.floats(-1e5, 1e5).map(lambda x: float(f"{x:.9g}"))
    names = st.lists(
        st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S")), max_size=8),
        unique=True, max_size=3,
    )  # fmt: skip
    rails, zones, units = data.draw(names), data.draw(names), data.draw(names)
    energy, count = data.draw(st.booleans()), data.draw(st.integers(0, 8))
    tiles = data.draw(st.booleans())
    readings = []
    at_s = 0.0
    for _ in range(count):
        at_s += data.draw(st.floats(1e-4, 1e4))
        watts = data.draw(st.none() | number)
        readings.append(Reading(
            at_s, watts, {name: data.draw(number) for name in rails},
            data.draw(number) if energy else None,
            {name: data.draw(number) for name in zones},
            {name: data.draw(number) for name in units},
            {name: data.draw(number) for name in units},
            "" if watts is not None else data.draw(st.sampled_from(["why, so", "gone"])),
        ))  # fmt: skip
    without = Counter(item.why for item in readings if item.watts is None)
    made = Trace(
        Samples(INFO, 0.5, readings, without=dict(without)),
        tiles=np.cumsum([data.draw(st.integers(0, 99)) for _ in range(count)], dtype=np.int64)
        if tiles and count else None,
        started_utc="x",
    )  # fmt: skip
    path = tmp_path_factory.mktemp("t") / "t.csv"
    write_trace(path, made)
    same(read_trace(path), made)


def test_without_power_tiles_alone_count(tmp_path: Path) -> None:
    info = SensorInfo("null", "module", (), "unavailable")
    readings = [Reading(float(n), None, why="not asked for") for n in range(3)]
    samples = Samples(info, 1.0, readings, without={"not asked for": 3})
    trace = Trace(samples, np.array([0, 2, 5]), unavailable="not asked for")
    write_trace(tmp_path / "t.csv", trace)
    found = read_trace(tmp_path / "t.csv")
    same(found, trace)
    assert found.faults() == ["power is unavailable: not asked for"]
    assert [item.watts for item in found.samples.readings] == [None] * 3


def text_of(tmp_path: Path) -> str:
    write_trace(tmp_path / "good.csv", some())
    return (tmp_path / "good.csv").read_text()


def test_a_killed_writer_leaves_what_it_had(tmp_path: Path) -> None:
    """Cut at every byte: rows that are whole are there, and nothing else."""
    content = text_of(tmp_path).encode()
    path = tmp_path / "t.csv"
    whole = some().samples.readings
    first = content.index(b"\n") + 1
    for cut in range(first, len(content) - 1, 7):
        path.write_bytes(content[:cut])
        found = read_trace(path)
        assert not found.whole and "killed" in found.faults()[-1]
        rows = [n for n in content[:cut].split(b"\n")[2:-1] if not n.startswith(b"#")]
        assert len(found.samples.readings) == len(rows)
        for a, b in zip(found.samples.readings, whole, strict=False):
            assert a.watts == pytest.approx(b.watts)
    path.write_bytes(content[:-40] + b"\0" * 512)  # what a power cut leaves on some file systems
    assert len(read_trace(path).samples.readings) == len(whole)


_KILLED = """
import sys, time
from pathlib import Path
from edgekd.telemetry.recorder import Recorder
from edgekd.telemetry.power import PowerUnavailable
with Recorder(Path(sys.argv[1]), PowerUnavailable(reason="a test", sensors={}), 0.02, lambda: 7):
    print("on", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(path)], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.4)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    found = read_trace(path)
    assert not found.whole and len(found.samples.readings) > 5 and found.tiles is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: "", "is empty"),
        (lambda s: "\n \n", "is empty"),
        (lambda s: "no trace\n", "is no trace of edgekd; another power file becomes one"),
        (lambda s: s[:30], "cut in its first line"),
        (lambda s: s.replace('"schema": 1', '"schema": 9', 1), "schema 9, this edgekd reads 1"),
        (lambda s: s.replace('{"schema"', '{schema"', 1), "line 1 is not what edgekd wrote"),
        (lambda s: s.replace('"scope": "wall"', '"scope": "moon"', 1), "describes no sensor"),
        (lambda s: s.replace('"interval_s"', '"interval"', 1), "describes no sensor"),
        (lambda s: s.replace("t_s,power_w", "power_w,t_s", 1), "line 2 holds no columns"),
        (lambda s: s.replace("\n0.110000,", "\n0.110000,,", 1), "line 4 has 12 columns"),
        (lambda s: s.replace("\n0.110000,", "\n0.001,", 1), "line 4 is not later"),
        (lambda s: s.replace("0.110000,5.333333333", "0.110000,five", 1), "line 4 holds 'five'"),
        (lambda s: s.replace("0.110000,5.333333333", "0.110000,nan", 1), "line 4 holds 'nan'"),
        (lambda s: s.replace("# end {", "# end [", 1), "is not what edgekd wrote"),
        (lambda s: s.replace('"restarts": 2', '"restarts": "x"'), "no end of a trace"),
        (lambda s: s.replace("\n0.110000,", "\n0.11\r0,", 1), "line 4 is not what edgekd wrote"),
        (lambda s: s + "9.0,1,2,3,4,5,6,7,8,9,\n", "follows the end"),
        (lambda s: s.replace('# mark {"t_s": 0.2', '# mark {"t_s": "soon"'), "holds 'soon'"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_refused_in_one_line(tmp_path: Path, change: Any, words: str) -> None:
    text = text_of(tmp_path)
    path = tmp_path / "t.csv"
    path.write_text(change(text))
    with pytest.raises(InputError) as caught:
        read_trace(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@settings(max_examples=60)
@given(data=st.data())
def test_damage_anywhere_gives_one_line_or_a_trace(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("t")
    content = bytearray(text_of(folder).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "t.csv"
    path.write_bytes(content)
    try:
        read_trace(path)
    except EdgeKDError as err:
        assert "\n" not in str(err)


def test_missing_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_trace(tmp_path / "x.csv")
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path)
    with pytest.raises(OutputError, match="is .csv or .parquet, received .*x.txt; name it x.csv"):
        write_trace(tmp_path / "x.txt", some())
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_trace(tmp_path / "d.csv", some())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        write_trace(tmp_path / "file" / "x.csv", some())


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(EnvironmentLacksError, match=r'pip install "edgekd\[parquet\]"'):
        write_trace(tmp_path / "t.parquet", some())
    (tmp_path / "t.parquet").write_bytes(b"PAR1....")
    with pytest.raises(EnvironmentLacksError, match="pyarrow is not installed"):
        read_trace(tmp_path / "t.parquet")


@pytest.mark.parametrize("tiles", [True, False])
def test_parquet_comes_back(tmp_path: Path, tiles: bool) -> None:
    pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    for trace in (some(tiles=tiles), some(0, tiles=False)):
        write_trace(path, trace)
        same(read_trace(path), trace)
    part = some()
    part.samples.readings[2] = dataclasses.replace(part.samples.readings[2], watts=None, why="off")
    part.samples.without = {"off": 1}
    write_trace(path, part)
    same(read_trace(path), part)
    cut = dataclasses.replace(
        part, samples=Samples(INFO, 0.1, part.samples.readings, without={"off": 1}), whole=False,
        tiles_done=None, ended_s=None,
    )  # fmt: skip
    for name in ("t.parquet", "t.csv"):  # of a writer that was killed, taken over
        write_trace(tmp_path / name, cut)
        same(read_trace(tmp_path / name), cut)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="is damaged"):
        read_trace(path)


def test_a_trace_that_is_not_whole_stays_so(tmp_path: Path) -> None:
    samples = Samples(INFO, 0.1, some().samples.readings)
    write_trace(tmp_path / "t.csv", Trace(samples, whole=False))
    assert not read_trace(tmp_path / "t.csv").whole


def test_a_first_reading_without_power_takes_no_rails_away(tmp_path: Path) -> None:
    """Of a trace that is written whole the columns are those of all readings."""
    readings = [
        Reading(0.1, None, why="not yet"),
        Reading(0.2, 5.0, {"A": 5.0}, clocks_mhz={"cpu": 1000.0}),
        Reading(0.3, 6.0, {"A": 4.0, "B": 2.0}, energy_j=3.0, temperatures_c={"tj": 40.0}),
    ]
    made = Trace(Samples(INFO, 0.1, readings, without={"not yet": 1}))
    write_trace(tmp_path / "t.csv", made)
    same(read_trace(tmp_path / "t.csv"), dataclasses.replace(made))
    found = read_trace(tmp_path / "t.csv").samples.readings
    assert found[2].rails_w == {"A": 4.0, "B": 2.0} and found[2].energy_j == 3.0
    assert found[1].rails_w == {"A": 5.0}


@pytest.mark.parametrize(
    ("pause_s", "empty", "rows"),
    [(0.1, 1, 0), (0.1, 19, 0), (0.1, 20, 20), (1.0, 5, 0), (1.0, 6, 6)],
)
def test_a_writer_waits_a_little_for_power(
    tmp_path: Path, pause_s: float, empty: int, rows: int
) -> None:
    path = tmp_path / "t.csv"
    writer = TraceWriter(path, INFO, 0.1, started_utc="", start_s=0.0, counting=True)
    for n in range(empty):
        writer.add(Reading(n * pause_s, None, loads={"cpu": 1.0}, why="not yet"), n)
    writer.mark(0.05, "early")
    assert len(read_trace(path).samples.readings) == rows, "what a kill would leave"
    last = (empty + 1) * pause_s
    writer.add(Reading(last, 5.0, {"A": 5.0}), 99)
    assert len(read_trace(path).samples.readings) == empty + 1
    writer.close(Samples(INFO, 0.1))
    found = read_trace(path)
    assert found.tiles is not None and list(found.tiles) == [*range(empty), 99]
    assert found.samples.readings[0].loads == {"cpu": 1.0}
    assert found.samples.readings[-1].rails_w == ({} if rows else {"A": 5.0})
    assert found.marks == [(0.05, "early")]


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_what_was_kept_back_is_written_at_the_end(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow.parquet")
    writer = TraceWriter(tmp_path / name, INFO, 0.1, started_utc="", start_s=0.0)
    writer.add(Reading(0.5, None, why="never"))
    writer.close(Samples(INFO, 0.1))
    assert [item.why for item in read_trace(tmp_path / name).samples.readings] == ["never"]


def test_columns_do_not_change_later(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t.csv", INFO, 0.1, started_utc="", start_s=100.0)
    writer.add(Reading(100.5, 1.0, {"A": 1.0}, temperatures_c={"cpu": 40.0}))
    writer.add(Reading(101.0, None, {"A": 2.0, "B": 3.0}, why="line\nbreak"))
    writer.close(Samples(INFO, 0.1))
    first, second = read_trace(tmp_path / "t.csv").samples.readings
    assert (first.at_s, second.at_s) == (0.5, 1.0)
    assert second.rails_w == {"A": 2.0} and second.temperatures_c == {}
    assert second.why == "line?break"
