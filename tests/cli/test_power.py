"""``edgekd power`` and ``edgekd run --trace`` as typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.telemetry import energy, power
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Polled, Reading, SensorInfo, SensorLost
from edgekd.telemetry.trace import Trace, read_trace, write_trace
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def make_power(path: Path, seconds: float = 60.0, lag_s: float | None = 0.02) -> Path:
    """5 W with a little of everything around it, 50 a second."""
    info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, lag_s)
    readings = [
        Reading(n / 50, 5 + 0.1 * (n % 3 - 1), {"VDD_IN": 5.0}, temperatures_c={"tj": 49.5})
        for n in range(int(seconds * 50))
    ]
    write_trace(path, Trace(Samples(info, 0.02, readings)))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_power(tmp_path / "p.csv")
    return tmp_path


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str], here: Path) -> Any:
    def run(command: str) -> tuple[int, str, str]:
        code = main(command.split())
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def value(call: Any) -> Any:
    """The one JSON object of a command."""

    def run(command: str, code: int = 0) -> dict[str, Any]:
        words, dashes, program = command.partition(" -- ")
        found, out, err = call(f"{words} --json{dashes}{program}")
        assert found == code, err
        assert out.startswith("{\n") and out.endswith("}\n")
        return dict(json.loads(out))

    return run


def test_energy_of_a_part_and_of_all(call: Any, value: Any) -> None:
    found = value("power energy p.csv --from 10 --to 40 --idle 45,55")
    assert found["mean_w"]["value"] == pytest.approx(5.0, abs=0.01)
    assert found["energy_j"] == pytest.approx(150, rel=2e-3) and found["duration_s"] == 30
    assert abs(found["net_w"]["value"]) < 0.02 and found["valid"] is True
    assert (found["scope"], found["source"], found["lag_s"]) == ("module", "measured", 0.02)
    assert found["achieved_s"] == pytest.approx(0.02) and found["samples"] == 1501
    assert found["p95_w"] == found["max_w"] == 5.1
    code, out, err = call("power energy p.csv")
    assert code == 0 and err == "" and "energy 299.9 J" in out and "95 %" in out


def test_energy_that_the_samples_cannot_carry(call: Any, value: Any) -> None:
    code, out, err = call("power energy p.csv --from 1 --to 1.2")
    assert code == 1 and "NOT VALID 11 samples" in out
    assert err.startswith("error: p.csv: the figure is not valid: 11 samples, at least 20")
    assert value("power energy p.csv --from 1 --to 1.2", 1)["valid"] is False


def line(now: int, second: float) -> str:
    return (
        f"{1750866191 + second:.4f}::RAM 519/7607MB (lfb 61x4MB) CPU [10%@1728] NEW 5 tj@49.5C "
        f"VDD_IN {now}mW/{now}mW\n"
    )


def test_a_log_becomes_a_trace(call: Any, value: Any, here: Path) -> None:
    rows = [line(4000 + n, n / 10) for n in range(50)]
    (here / "t.log").write_text("".join([*rows[:20], "Sun Apr 19\n", *rows[20:]]) + "RAM 5")
    found = value("power import t.log -o t.csv")
    assert found["lines"] == 50 and found["dropped"] == {"foreign": 1, "cut": 1}
    assert found["tokens_understood"] == 200 and found["tokens_aside"] == {"NEW": 50}
    assert found["duration_s"] == pytest.approx(4.9, abs=1e-3)
    assert found["mean_w"] == pytest.approx(4.0245, abs=1e-4)
    assert found["source"] == "replay: t.log"
    one, two = value("power energy t.csv"), value("power energy t.log")
    assert one["energy_j"] == pytest.approx(two["energy_j"], rel=1e-6)
    code, out, err = call("power import t.log -o again.csv")
    assert code == 0 and "dropped: 1 foreign, 1 cut" in out and "set aside: NEW 50" in out
    assert err == "next: edgekd power energy again.csv\n"
    bare = "".join(row.partition("::")[2] for row in rows)
    (here / "bare.log").write_text(bare)
    code, _, err = call("power import bare.log -o b.csv")
    assert code == 2 and "--interval" in err and not (here / "b.csv").exists()
    assert value("power import bare.log -o b.csv --interval 0.5")["duration_s"] == 24.5


def test_a_meter_becomes_a_trace(value: Any, call: Any, here: Path) -> None:
    (here / "m.csv").write_text("time,power_w\n" + "".join(f"{n},{n % 2}\n" for n in range(60)))
    code, _, err = call("power import m.csv -o t.csv")
    assert code == 2 and "--scope wall" in err
    found = value("power import m.csv -o t.csv --scope wall")
    assert (found["scope"], found["source"]) == ("wall", "meter: csv")
    assert found["mean_w"] == pytest.approx(0.5, abs=0.02)
    assert value("power energy t.csv")["scope"] == "wall"
    code, _, err = call("power import m.csv -o m.csv --scope wall")
    assert code == 2 and "is the file that is read" in err


def test_record_for_some_seconds(value: Any, call: Any, here: Path) -> None:
    found = value("power record -o r.csv --power replay:p.csv --seconds 1.3")
    assert found["source"] == "replay: p.csv" and found["trace"] == "r.csv"
    assert found["status"] == "replay"
    assert found["mean_w"]["value"] == pytest.approx(5.0, abs=0.05)
    assert 0.5 < found["duration_s"] < 30
    assert read_trace(here / "r.csv").whole
    code, out, err = call("power record --power replay:p.csv --seconds 1.2")
    assert code == 0 and "scope module, source replay: p.csv" in out
    assert "recording ina3221 (module, replay: p.csv)" in err and "49.5 °C" in err
    assert " W (replay)  49.5" in err and "\npower (replay) " in out


def test_record_while_a_command_runs(value: Any, call: Any, here: Path) -> None:
    found = value("power record -o r.csv --power replay:p.csv -- sleep 1.5")
    assert found["command"]["exit_code"] == 0 and found["command"]["argv"] == ["sleep", "1.5"]
    took = found["command"]["end_s"] - found["command"]["begin_s"]
    assert found["duration_s"] == pytest.approx(took) and took >= 1.5, "exactly its time"
    assert found["energy_j"] == pytest.approx(5 * took, rel=0.08)
    assert "lags by 0.02 s" in found["notes"][0]
    trace = read_trace(here / "r.csv")
    assert [name for _, name in trace.marks] == ["begin", "end"]
    begin, end = (at_s for at_s, _ in trace.marks)
    at_s, _ = trace.samples.power()
    assert at_s[0] < begin - 0.5 and at_s[-1] > end + 0.5, "there is a guard on either side"
    marks = value("power energy r.csv")["marks"]
    assert [item["name"] for item in marks] == ["begin", "end"]


def test_a_command_that_fails_is_told_with_what_else_is_wrong(call: Any, here: Path) -> None:
    (here / "fail.sh").write_text("sleep 0.6; exit 7")
    code, out, err = call("power record --power replay:p.csv -- sh fail.sh")
    assert code == 1 and "command   ended with 7 after 0." in out
    assert err.splitlines()[-1] == "error: sh ended with 7"
    (here / "fail.sh").write_text("exit 7")
    code, out, err = call("power record --power replay:p.csv -- sh fail.sh")
    assert code == 1 and "NOT VALID" in out
    assert "sh ended with 7; the recording is not valid: " in err.splitlines()[-1]


def test_the_commands_own_output_does_not_disturb_json(here: Path, capfd: Any) -> None:
    code = "import time; print('mine', '--debug'); time.sleep(0.6)"
    args = [
        "power",
        "record",
        "--power",
        "replay:p.csv",
        "--json",
        "--",
        sys.executable,
        "-c",
        code,
    ]
    assert main(args) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["command"]["exit_code"] == 0 and "mine --debug" in err


def test_the_commands_own_debug_is_not_ours(call: Any) -> None:
    assert "Traceback" in call("power record --debug --power none -- true")[2]
    assert "Traceback" not in call("power record --power none -- true --debug")[2]


def test_the_lag_of_a_sensor_is_told_in_joules(here: Path, capfd: Any) -> None:
    """A load that begins and ends with the command, seen through 0.3 s."""
    info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.3)
    at_s = np.arange(0, 12, 0.02)
    watts = np.where(at_s < 2.8, 14.0, 4.0 + 10 * np.exp(-np.maximum(at_s - 2.8, 0) / 0.3))
    readings = [Reading(float(t), float(w)) for t, w in zip(at_s, watts, strict=True)]
    write_trace(here / "lag.csv", Trace(Samples(info, 0.02, readings)))
    args = ["power", "record", "--power", "replay:lag.csv", "--json", "--", "sleep", "1.3"]
    assert main(args) == 0
    note = json.loads(capfd.readouterr().out)["notes"][0]
    late = float(note.partition(": ")[2].split()[0])
    assert 2.3 < late < 3.3, "10 W times 0.3 s"


def test_a_sensor_that_ends_makes_it_invalid(value: Any, here: Path) -> None:
    make_power(here / "short.csv", 1.0)
    found = value("power record -o r.csv --power replay:short.csv --seconds 9", 1)
    assert found["faults"] == ["the sensor was lost: the replay has come to its end"]
    assert found["duration_s"] < 5, "nobody waits for a sensor that is gone"


class Gone:
    """Was found, and is not there when it is opened, or never says anything."""

    info = SensorInfo("ina3221", "module", ("VDD_IN",))

    def __init__(self, opens: bool) -> None:
        self._opens = opens

    def open(self, interval_s: float) -> Polled:
        if not self._opens:
            raise SensorLost("rail VDD_IN is gone")
        return Polled(self._ask, interval_s)

    def _ask(self) -> Reading:
        raise SensorLost("rail VDD_IN is gone")


@pytest.mark.parametrize("opens", [False, True])
def test_a_sensor_that_is_gone_at_once_is_one_line(
    call: Any, here: Path, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    monkeypatch.setattr(power, "choose_sensor", lambda asked: Gone(opens))
    code, out, err = call("power record -o r.csv --seconds 9")
    assert code == 3 and out == ""
    assert err.splitlines()[-1].startswith(
        "error: power sensor ina3221 gives no reading: rail VDD_IN is gone; edgekd doctor"
    )


def test_a_lag_that_is_not_known_has_the_longest_guard(
    value: Any, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "UNKNOWN_LAG_S", 0.3)
    make_power(here / "p.csv", lag_s=None)
    found = value("power record -o r.csv --power replay:p.csv -- sleep 0.5")
    assert "the sensor's lag is not known" in found["notes"][0]
    at_s, _ = read_trace(here / "r.csv").samples.power()
    assert found["command"]["begin_s"] >= 1.5 and at_s[-1] > found["command"]["end_s"] + 1.2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_recording_cleanly(here: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", "power", "record", "-o", "r.csv", "--power",
         "replay:p.csv"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stderr is not None
    process.stderr.readline()
    time.sleep(1.0)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "\npower (replay) " in out and "W (95 %" in out and "Traceback" not in err
    assert read_trace(here / "r.csv").whole


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("power record --power none", 3, "there is nothing to record: not asked for"),
        ("power record --power rapl --seconds 1", 3, "power sensor rapl cannot be read"),
        ("power record --power ina322", 2, "did you mean 'ina3221'"),
        ("power record --power replay:x.csv", 2, "x.csv does not exist"),
        ("power record --power replay:p.csv --seconds 1 -- sleep 1", 2, "leave one of them out"),
        (
            "power record --power replay:p.csv -- no-such-program",
            2,
            "command 'no-such-program' is not found",
        ),
        ("power record -o r.txt --power replay:p.csv --seconds 1", 2, "is .csv or .parquet"),
        ("power record --interval 0", 2, "interval"),
        ("power energy p.csv --idle 3", 2, "expected two times like 0,30, received '3'"),
        ("power import p.csv -o q.txt", 2, "name it q.csv"),
        ("power import p.csv -o q.csv --format fnirsy", 2, "did you mean 'fnirsi'"),
        ("power imports", 2, "No such command 'imports'"),
    ],
)
def test_wrong_use(call: Any, here: Path, command: str, code: int, words: str) -> None:
    if "rapl" in command and os.access("/sys/class/powercap/intel-rapl:0/energy_uj", os.R_OK):
        pytest.skip("this machine lets RAPL be read")
    found, out, err = call(command)
    assert (found, out) == (code, "") and words in err.splitlines()[-1], err
    assert err.splitlines()[-1].startswith("error: ")
    assert {item.name for item in here.iterdir()} == {"p.csv"}


# ------------------------------------------------------------------------------- run --trace


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("b")
    return make_bundle(folder / "slow", tile_px=64, classes=3, width=48, layers=6)


def test_run_with_a_trace(value: Any, call: Any, here: Path, bundle: Path) -> None:
    write_raster(here / "in.tif", smooth_image(700, 900))
    found = value(f"run {bundle} in.tif -o m.tif --trace t.csv --power replay:p.csv --streams 1")
    traced = found["trace"]
    assert traced["tiles"] == found["windows_run"] and "no idle" in traced["note"]
    power = traced["power"]
    assert power["status"] == "replay" and power["source"] == "replay: p.csv"
    assert power["mean_w"]["value"] == pytest.approx(5.0, abs=0.1)
    expected = power["energy_j"] / power["tiles"]
    assert power["gross_j_per_tile"] == pytest.approx(expected)
    assert 5 * found["total_s"] / found["windows_run"] == pytest.approx(expected, rel=0.5)
    trace = read_trace(here / "t.csv")
    assert trace.tiles_done == found["windows_run"] and trace.whole
    code, out, _ = call(f"run {bundle} in.tif -o n.tif --trace u.csv --power none")
    assert code == 0 and "power unavailable: not asked for" in out and "trace: u.csv" in out
    code, out, _ = call(f"run {bundle} in.tif -o o.tif --trace v.csv --power replay:p.csv")
    assert "not a benchmark: no idle, no warm-up" in out and "J per tile gross" in out
    assert "source replay: p.csv" in out and "power (replay) of this run" in out
    assert "J per tile gross (replay)" in out


def test_a_run_goes_on_without_the_sensor_that_is_gone(
    value: Any, here: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "choose_sensor", lambda asked: Gone(False))
    write_raster(here / "in.tif", smooth_image(200, 200))
    found = value(f"run {bundle} in.tif -o m.tif --trace t.csv")
    assert (here / "m.tif").exists() and found["trace"]["tiles"] == found["windows_run"]
    assert found["trace"]["power"]["status"] == "unavailable"
    assert "rail VDD_IN is gone" in found["trace"]["power"]["reason"]


def test_a_folder_with_a_trace(value: Any, here: Path, bundle: Path) -> None:
    (here / "in").mkdir()
    for name in ("a.tif", "b.tif"):
        write_raster(here / "in" / name, smooth_image(200, 200))
    found = value(f"run {bundle} in -o out --trace t.csv --power none")
    assert len(found["done"]) == 2
    assert found["trace"]["tiles"] == read_trace(here / "t.csv").tiles_done > 10
    assert found["trace"]["power"] == {"status": "unavailable", "reason": "not asked for"}
    again = value(f"run {bundle} in -o out2")
    assert "trace" not in again


def test_run_refuses_before_it_works(call: Any, here: Path, bundle: Path) -> None:
    write_raster(here / "in.tif", smooth_image(70, 70))
    code, _, err = call(f"run {bundle} in.tif -o m.tif --power none")
    assert code == 2 and "--power none is about --trace" in err
    code, _, err = call(f"run {bundle} in.tif -o m.tif --trace t.csv --power tegrastat")
    assert code == 2 and "did you mean 'tegrastats'" in err
    code, _, err = call(f"run {bundle} in.tif -o m.tif --trace t.log")
    assert code == 2 and "a trace is .csv or .parquet" in err
    assert not (here / "m.tif").exists() and not list(here.glob("t.*"))


def test_the_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Usage: edgekd power") and "  record" in out and err == ""
