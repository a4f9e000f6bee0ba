"""Power files of every kind: told apart by content, the right times, and nothing guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.errors import EdgeKDError, InputError
from edgekd.telemetry.energy import energy_j
from edgekd.telemetry.figures import figures
from edgekd.telemetry.logs import FORMATS, read_power_file, spread
from edgekd.telemetry.sensors import meter_csv
from edgekd.telemetry.sensors._base import Unavailable
from edgekd.telemetry.trace import read_trace, write_trace


def line(now: int, stamp: str = "", rails: bool = True) -> str:
    rail = f" VDD_IN {now}mW/{now}mW VDD_CPU_GPU_CV 5mW/5mW VDD_SOC 9mW/9mW" if rails else ""
    return f"{stamp}RAM 519/7607MB (lfb 61x4MB) CPU [10%@1728] GR3D_FREQ 9%@[1018] tj@49.5C{rail}"


def put(tmp_path: Path, *lines: str, name: str = "power.log") -> Path:
    path = tmp_path / name
    path.write_text("".join(f"{text}\n" for text in lines))
    return path


def powers(path: Path, **more: object) -> tuple[list[float], list[float]]:
    at_s, watts = read_power_file(path, **more).samples.power()  # type: ignore[arg-type]
    return at_s.tolist(), watts.tolist()


def test_epoch_stamps_are_times(tmp_path: Path) -> None:
    stamps = (1750866191.5, 1750866191.75, 1750866191.7, 1750866193.0)
    path = put(tmp_path, *(line(1000 + n, f"{at}::") for n, at in enumerate(stamps)), "foreign")
    trace = read_power_file(path)
    assert powers(path) == ([0, 0.25, 1.5], [1.0, 1.001, 1.003])
    assert trace.started_utc == "2025-06-25T15:43:11.500000+00:00"
    info = trace.samples.info
    assert info.source == "replay: power.log" and info.total == ("VDD_IN",) and info.lag_s == 0.45
    assert trace.counts is not None and trace.counts.lines == 4
    assert trace.counts.damaged == {"foreign": 1, "without a time, or with one that runs back": 1}


def test_whole_seconds_are_spread_within_them(tmp_path: Path) -> None:
    """Ten a second, of which the first second held the last three and the last the first two."""
    seconds = [10] * 3 + [11] * 10 + [12] * 10 + [13] * 2
    path = put(tmp_path, *(line(9, f"04-19-2026 01:31:{s} ") for s in seconds))
    times = powers(path)[0]
    np.testing.assert_allclose(np.diff(times), 0.1, rtol=0.05)
    assert times[-1] == pytest.approx(2.4, abs=0.1), "and not 3 s"
    skipped = [*range(10, 20), *range(21, 31)]  # 1.005 s in place of 1 s, and the like
    slow = put(tmp_path, *(line(9, f"04-19-2026 01:31:{s} ") for s in skipped))
    pauses = np.diff(powers(slow)[0])  # below one a second the stamps stand
    assert set(pauses.round(6)) == {1.0, 2.0} and pauses.mean() == pytest.approx(1.05, abs=0.06)
    late = put(tmp_path, *(line(9, f"04-19-2026 01:31:{s} ") for s in (10, 11, 11, 12, 40, 40, 41)))
    assert powers(late)[0] == pytest.approx([0, 0.5, 1, 1.75, 29.5, 30, 30.5]), "a stall stays one"


@pytest.mark.parametrize("gone", [[], [30], [5, 15, 25, 35, 45]])
def test_a_line_that_is_missing_stretches_no_time(gone: list[int]) -> None:
    """20 W at one line a second for a minute."""
    stamps = [float(int(1000 + 1.005 * n)) for n in range(60) if n not in gone]
    times = np.array(spread(stamps)) + stamps[0]
    assert np.abs(times - np.array(stamps) - 0.5).max() <= 0.5
    assert times[-1] - times[0] == pytest.approx(59, abs=0.6)
    fast = [float(int(1000 + 0.109 * n)) for n in range(600) if not 100 < n < 100 + 4 * len(gone)]
    times = np.array(spread(fast)) + fast[0]
    assert ((times > np.array(fast) - 0.01) & (times < np.array(fast) + 1.01)).all()


@given(st.floats(0, 0.999), st.floats(0.01, 0.49), st.integers(4, 40))
def test_an_even_pace_is_found_from_whole_seconds(begin: float, pause: float, seconds: int) -> None:
    true = begin + np.arange(max(3, int(seconds / pause))) * pause
    stamps = np.floor(true)
    times = np.array(spread(stamps.tolist())) + stamps[0]
    assert (np.diff(times) > 0).all() and abs(
        times - np.floor(times + 1e-6) - 0.5
    ).max() <= 0.5 + 1e-6
    assert ((times > stamps - 1e-6) & (times < stamps + 1 + 1e-6)).all()
    if len(set(stamps)) > 1:
        np.testing.assert_allclose(np.diff(times), np.diff(times)[0], rtol=1e-4)
        assert abs((times[-1] - times[0]) - (true[-1] - true[0])) <= max(2 * pause, 1e-3)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=9).filter(lambda c: c[0] and c[-1]))
def test_any_seconds_are_kept_in_order(counts: list[int]) -> None:
    stamps = [float(second) for second, count in enumerate(counts) for _ in range(count)]
    times = np.array(spread(stamps))
    pause = np.diff(times).max() if len(times) > 1 else 1.0
    assert (np.diff(times) > 0).all()
    assert ((times > np.array(stamps) - pause) & (times < np.array(stamps) + 1 + pause)).all()


def test_without_times_the_interval_is_asked_for(tmp_path: Path) -> None:
    path = put(tmp_path, line(1000), line(2000), line(3000))
    with pytest.raises(InputError, match=r"3 lines of tegrastats without times; .*--interval S"):
        read_power_file(path)
    assert powers(path, interval_s=0.5) == ([0, 0.5, 1.0], [1, 2, 3])
    one = put(tmp_path, *(line(9, "04-19-2026 01:31:10 ") for _ in range(3)), name="one.log")
    with pytest.raises(InputError, match="all of one second"):
        read_power_file(one)
    assert powers(one, interval_s=0.1)[0] == pytest.approx([0, 0.1, 0.2])
    both = put(tmp_path, line(9, "1750866191.5::"), line(9, "1750866192.5::"), name="both.log")
    with pytest.raises(InputError, match="times of its own; leave --interval out"):
        read_power_file(both, 0.1)


def test_a_total_is_chosen_once_for_a_log(tmp_path: Path) -> None:
    parts = "RAM 5/9MB (lfb 1x4MB) VDD_GPU 1mW/1mW VDD_CPU_SOC_MSS 4mW/4mW VIN_SYS_5V0 5mW/5mW"
    rows = [f"{1750866191 + n}.5::{parts} VIN 16800mW/16800mW" for n in range(4)]
    rows[1:3] = [row.partition(" VIN ")[0] + " tj@40C" for row in rows[1:3]]
    trace = read_power_file(put(tmp_path, *rows))
    assert [item.watts for item in trace.samples.readings] == [16.8, None, None, 16.8]
    assert trace.samples.info.total == ("VIN",)
    assert trace.samples.faults() == ["2 readings without power: rail VIN is missing"]


def test_a_restart_in_a_log_has_its_time(tmp_path: Path) -> None:
    rows = [line(mw, f"{1750866191 + n}.5::") for n, mw in enumerate([5000, 5000, 9000, 9000])]
    rows = [row.replace(" 9mW/9mW", f" {9 + n}mW/{9 + n}mW") for n, row in enumerate(rows)]
    samples = read_power_file(put(tmp_path, *rows)).samples
    assert samples.restarts == len(samples.restarted_s) and 2.0 in samples.restarted_s


def test_a_log_without_rails_has_no_power(tmp_path: Path) -> None:
    path = put(tmp_path, *(line(0, f"{1750866191 + n}.5::", rails=False) for n in range(4)))
    trace = read_power_file(path)
    assert "needs root" in trace.unavailable and len(trace.samples.power()[0]) == 0
    write_trace(tmp_path / "t.csv", trace)
    assert "needs root" in read_trace(tmp_path / "t.csv").unavailable


LOGS = {
    "agx-orin-32gb_jp5_epochprefix-idle-basic.log": None,
    "agx-orin-32gb_jp5_epochprefix-idle-sudo.log": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "agx-orin-64gb_jp6_epochprefix-11ms.log": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "agx-orin-64gb_jp6_epochprefix-idle-sudo.log": ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    "agx-xavier-16gb_jp4_epochprefix-idle-basic.log": None,
    "agx-xavier-16gb_jp4_epochprefix-idle-sudo.log": ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
    "orin-nano-8gb_jp6_sudo-vlm-trt-100ms.log": ("VDD_IN",),
    "orin-nx-16gb_jp6_epochprefix-idle-basic.log": ("VDD_IN",),
    "orin-nx-16gb_jp6_epochprefix-idle-sudo.log": ("VDD_IN",),
    "xavier-nx-8gb_jp5_epochprefix-idle-basic.log": None,
    "xavier-nx-8gb_jp5_epochprefix-idle-sudo.log": ("VDD_IN",),
}  # fmt: skip


def test_every_real_log(test_data: Path, tmp_path: Path) -> None:
    """Mean, energy and duration beside figures that are computed here from the bytes alone."""
    logs = sorted((test_data / "telemetry").glob("*.log"))
    assert {path.name for path in logs} == set(LOGS)
    for path in logs:
        total, text = LOGS[path.name], path.read_text()
        trace = read_power_file(path)
        assert trace.counts is not None and not trace.counts.damaged, path.name
        assert len(trace.samples.readings) == len(text.splitlines())
        if total is None:
            assert "needs root" in trace.unavailable
            continue
        rows = text.splitlines()
        mw = sum(
            np.array([int(re.search(rf" {rail} (-?\d+)(?:mW)?/", row)[1]) for row in rows])  # type: ignore[index]
            for rail in total
        )
        at_s, watts = trace.samples.power()
        np.testing.assert_allclose(watts, mw / 1000)
        if "epochprefix" in path.name:
            stamps = np.array([float(row.partition("::")[0]) for row in rows])
            np.testing.assert_allclose(at_s, stamps - stamps[0], atol=1e-6)
        else:
            # 661 lines of tegrastats in 01:31:10 to 01:32:22
            assert at_s[-1] == pytest.approx(72.2, abs=0.25)
            stamps = np.linspace(0, at_s[-1], len(rows))
        joules = float((np.diff(stamps) * (mw[1:] + mw[:-1]) / 2000).sum())
        assert energy_j(at_s, watts, at_s[0], at_s[-1]) == pytest.approx(joules, rel=1e-3)
        write_trace(tmp_path / "t.csv", trace)
        back = read_trace(tmp_path / "t.csv")
        assert back.counts == trace.counts
        np.testing.assert_allclose(back.samples.power()[0], at_s, atol=1e-6)


# ------------------------------------------------------------------------------------- meters

FNIRSI = "timestamp sample_in_packet voltage_V current_A dp_V dn_V temp_C_ema energy_Ws capacity_As"


def fnirsi(count: int, late: dict[int, float] | None = None, lost: range = range(0)) -> list[str]:
    """100 a second, packets of four; ``late`` packets carry a wrong time of arrival."""
    rows = []
    for n in range(count):
        packet = n // 4
        if packet in lost:
            continue
        begin = 1657568326.5 + packet * 0.04 + (late or {}).get(packet, 0.0)
        rows.append(f"{begin + n % 4 * 0.01:.3f} {n % 4} 5.00000 {1 + n / 1000:.5f} 1.1 1.0 30.500 "
                    f"{5 * n / 100:.6f} 0.1")  # fmt: skip
    return rows


def test_fnirsi_times_that_run_backwards_are_mended(tmp_path: Path) -> None:
    late = {0: 0.2, 1: 0.17, 2: 0.13, 50: 0.15, 51: 0.12}
    path = put(tmp_path, "", FNIRSI, *fnirsi(2000, late))
    stamps = [float(row.split()[0]) for row in fnirsi(2000, late)]
    assert min(np.diff(stamps)) < 0, "as the tool writes them"
    trace = read_power_file(path)
    at_s, watts = trace.samples.power()
    np.testing.assert_allclose(np.diff(at_s), 0.01, rtol=2e-3)
    np.testing.assert_allclose(watts, 5 * (1 + np.arange(2000) / 1000), rtol=1e-5)
    assert at_s[-1] == pytest.approx(19.99, abs=0.02)
    info = trace.samples.info
    assert (info.scope, info.source) == ("board", "meter: fnirsi")
    last = trace.samples.readings[-1]
    assert last.energy_j == pytest.approx(5 * 19.99) and last.temperatures_c == {"meter": 30.5}


def test_fnirsi_packets_that_were_lost_leave_a_gap(tmp_path: Path) -> None:
    path = put(tmp_path, FNIRSI, *fnirsi(2000, lost=range(200, 250)), "1657568347.0 0 5.0")
    trace = read_power_file(path)
    at_s, _ = trace.samples.power()
    gaps = np.diff(at_s)
    assert gaps.max() == pytest.approx(2.01, abs=0.02) and (gaps > 0.02).sum() == 1
    assert at_s[-1] == pytest.approx(19.99, abs=0.02)
    assert trace.counts is not None and trace.counts.damaged == {"cut": 1}


def test_fnirsi_energy_in_watt_hours(tmp_path: Path) -> None:
    path = put(
        tmp_path, FNIRSI.replace("energy_Ws capacity_As", "energy_Wh capacity_Ah"), *fnirsi(8)
    )
    assert read_power_file(path).samples.readings[-1].energy_j == pytest.approx(5 * 0.07 * 3600)


def tasmota(second: int, power: object, wrapped: bool = False) -> str:
    value = {"Time": f"2024-10-03T12:49:{second:02d}", "ENERGY": {"Total": 381.701, "Power": power}}
    return json.dumps({"StatusSNS": value} if wrapped else value)


def test_tasmota_in_both_forms(tmp_path: Path) -> None:
    path = put(
        tmp_path, "tele/plug/SENSOR " + tasmota(13, 5), tasmota(15, 0, wrapped=True), "{cut",
        tasmota(16, 7), tasmota(17, [3, 4]), tasmota(18, None), tasmota(14, 9),
    )  # fmt: skip
    trace = read_power_file(path)
    assert powers(path) == ([0, 2, 3], [5, 0, 7]), "0 W is a reading"
    info = trace.samples.info
    assert (info.scope, info.source, info.resolution_w) == ("wall", "meter: tasmota", 1.0)
    assert trace.started_utc == "2024-10-03T12:49:13 (the meter's local time)"
    assert trace.samples.readings[0].energy_j == pytest.approx(381.701 * 3.6e6)
    assert trace.counts is not None and sum(trace.counts.damaged.values()) == 4
    assert trace.counts.damaged["of several channels"] == 1
    fine = put(tmp_path, tasmota(1, 5.25), tasmota(2, 5), name="fine.log")
    assert read_power_file(fine).samples.info.resolution_w == 0.01
    fast = put(tmp_path, *(tasmota(n // 2, n) for n in range(8)), name="fast.log")
    assert powers(fast)[0] == pytest.approx([n / 2 for n in range(8)], abs=0.1)


def shelly(power: float, **more: object) -> str:
    return json.dumps({"id": 0, "output": True, "apower": power, "aenergy": {
        "total": 18.015, "by_minute": [73.9], "minute_ts": 1682952864}, **more})  # fmt: skip


def test_shelly_needs_times_of_its_own(tmp_path: Path) -> None:
    bare = put(tmp_path, shelly(10.7), shelly(4.1))
    with pytest.raises(InputError, match=r"without their times \(minute_ts is none.*date"):
        read_power_file(bare)
    front = put(tmp_path, f"1682952864.5 {shelly(10.7)}", f"1682952865.25 {shelly(4)}", shelly(3))
    trace = read_power_file(front)
    assert powers(front) == ([0, 0.75], [10.7, 4.0])
    assert trace.samples.info.scope == "wall" and trace.samples.info.resolution_w == 0.1
    assert trace.counts is not None and trace.counts.damaged == {"without time": 1}
    iso = put(tmp_path, f"[2026-01-01T00:00:00.5Z] {shelly(1)}",
              f"[2026-01-01T01:00:01.5+01:00] {shelly(2)}")  # fmt: skip
    assert powers(iso)[0] == [0, 1]
    inside = put(tmp_path, shelly(1, ts=5.5), shelly(2, ts=7.0))
    assert powers(inside)[0] == [0, 1.5]
    note = {"method": "NotifyStatus", "params": {"ts": 3.5, "switch:0": {"apower": 8.5}}}
    both = {"method": "NotifyStatus", "params": {"ts": 4.5, "a": {"apower": 1}, "b": {"apower": 2}}}
    told = put(tmp_path, json.dumps(note), json.dumps(both))
    assert powers(told) == ([0], [8.5])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["time,power", "0,5", "1,6"], ([0, 1], [5, 6])),
        (["Timestamp;Power (W)", "2026-01-01 00:00:00.5;5", "2026-01-01 00:00:02;6"],
         ([0, 1.5], [5, 6])),
        (["t_s\tvoltage_V\tcurrent_A", "1\t5\t2", "2\t5.0\t-1"], ([0, 1], [10, -5])),
        (["timestamp,apower,other", "1682952864500,1,x", "1682952865500,2,y"], ([0, 1], [1, 2])),
        (["epoch,watts", "10,1", "11", "12,nan", "soon,3", "9,4", "13,5"], ([0, 3], [1, 5])),
    ],
)  # fmt: skip
def test_any_csv(
    tmp_path: Path, rows: list[str], expected: tuple[list[float], list[float]]
) -> None:
    path = put(tmp_path, *rows, name="m.csv")
    with pytest.raises(InputError, match="add --scope wall .* or --scope board"):
        read_power_file(path)
    assert powers(path, scope="wall") == expected
    assert read_power_file(path, scope="board").samples.info.source == "meter: csv"


def test_the_real_samples_of_meters(test_data: Path, tmp_path: Path) -> None:
    text = (test_data / "telemetry" / "samples" / "meters.txt").read_text().splitlines()
    fnirsi_rows = [row for row in text if re.match(r"\d{10}\.\d{3} \d", row)]
    json_rows = [row for row in text if row.startswith("{")]
    assert len(fnirsi_rows) == 9 and len(json_rows) == 4
    first = put(tmp_path, "", next(row for row in text if row.startswith("timestamp")),
                *fnirsi_rows[:6])  # fmt: skip
    at_s, watts = powers(first)
    np.testing.assert_allclose(np.diff(at_s), 0.01, rtol=0.05)
    assert watts == [0.0] * 6
    live = put(tmp_path, FNIRSI, *fnirsi_rows[6:])
    assert powers(live)[1][0] == pytest.approx(5.02325 * 0.05776)
    plug = read_power_file(put(tmp_path, *json_rows[:2])).samples
    assert plug.info.source == "meter: tasmota" and plug.power()[1].tolist() == [1, 0]
    stamped = [f"{n} {row}" for n, row in enumerate(json_rows[2:])]
    assert powers(put(tmp_path, *stamped)) == ([0, 1], [10.7, 4.1])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"this is a text file\nwith two lines\n", "is no power file; expected a trace"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "is no power file"),
        (b'{"a": 1}\n', "is no power file"),
        (b"name,size\na,1\n", "is no power file"),
        (b"RAM 519/7607MB (lfb 61x4MB) CPU [10%@17", "no whole line of tegrastats: 1 cut"),
        (FNIRSI.encode() + b"\nx\n", "holds no reading of a FNIRSI meter: 1 foreign"),
        (b"timestamp sample_in_packet volts\n1 2 3\n", "its header has no voltage_V"),
        (b'{"Time": "soon", "ENERGY": {"Power": 3}}\n', "no reading of a Tasmota plug: 1 without"),
    ],
)
def test_what_is_no_power_file_gets_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "p.log"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_power_file(path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = put(tmp_path, tasmota(1, 5), shelly(5, ts=3.0), shelly(6, ts=4.0))
    assert powers(path)[1] == [5] and powers(path, form="shelly")[1] == [5, 6]
    with pytest.raises(InputError, match="'fnirsy' does not exist; did you mean 'fnirsi'"):
        read_power_file(path, form="fnirsy")
    for form in FORMATS:
        try:
            read_power_file(path, form=form, scope="wall" if form == "csv" else None)
        except EdgeKDError as err:
            assert form not in ("tasmota", "shelly") and "\n" not in str(err)
    with pytest.raises(InputError, match="is a file of tasmota, whose scope is known"):
        read_power_file(path, scope="board")


@given(
    st.sampled_from([
        "\n".join(["", FNIRSI, *fnirsi(9)]), "\n".join(tasmota(n, n) for n in range(4)),
        "\n".join(f"{n} {shelly(n)}" for n in range(4)), "time,power\n1,2\n2,3\n",
        "\n".join(line(n, f"{1750866191 + n}.5::") for n in range(4)),
    ]),
    st.data(),
)  # fmt: skip
def test_damage_anywhere_gives_one_line_or_finite_numbers(
    tmp_path_factory: pytest.TempPathFactory, text: str, data: st.DataObject
) -> None:
    content = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("p") / "p.log"
    path.write_bytes(content)
    try:
        trace = read_power_file(path, scope="wall")
    except EdgeKDError as err:
        assert "\n" not in str(err)
        return
    at_s, watts = trace.samples.power()
    assert np.isfinite(watts).all() and (np.diff(at_s) > 0).all()


def test_a_meter_is_no_sensor_of_a_machine() -> None:
    found = meter_csv.find(Path("/"))
    assert isinstance(found, Unavailable) and "edgekd power import METER.csv" in found.reason


def test_a_carriage_return_in_the_midst_of_a_line_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no power file"):
        read_power_file(put(tmp_path, "\rimestamp power_w", "1 2"))
    rows = ["time,power_w", *(f"{n},{n % 3}" for n in range(9)), "9\r5,1", "10,1"]
    trace = read_power_file(put(tmp_path, *rows), scope="wall")
    assert len(trace.samples.readings) == 10 and trace.counts is not None
    assert trace.counts.damaged == {"cut": 1}


@pytest.mark.parametrize("gone", [range(30, 60), range(0, 5)])
def test_a_total_that_is_missing_in_part_of_a_log_is_told(tmp_path: Path, gone: range) -> None:
    """Thor: the board's input beside the module's three rails, which never stand in for it."""
    module = "VDD_GPU 4000mW/4000mW VDD_CPU_SOC_MSS 4000mW/4000mW VIN_SYS_5V0 3000mW/3000mW"
    rows = [
        line(n, f"{1750866191 + n}.5::").split(" VDD_IN")[0] + " " + module
        + ("" if n in gone else " VIN 20000mW/20000mW")
        for n in range(60)
    ]  # fmt: skip
    trace = read_power_file(put(tmp_path, *rows))
    assert (trace.samples.info.scope, trace.samples.info.total) == ("board", ("VIN",))
    assert set(trace.samples.power()[1]) == {20.0}
    found = figures(trace)
    assert any("readings without power: rail VIN is missing" in text for text in found.faults)
    at_s, _ = trace.samples.power()
    assert not figures(trace, float(at_s[2]), float(at_s[-3])).faults
