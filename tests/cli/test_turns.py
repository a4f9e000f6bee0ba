"""``edgekd bench --sweep`` and ``--interleave``, as a user types them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekd.cli.main import main
from edgekd.report.record import read_record
from tests.helpers.bundles import make_bundle
from tests.helpers.fake_nvpmodel import FakeNvpmodel
from tests.helpers.records import decide
from tests.helpers.signals import by_default

pytest.importorskip("onnxruntime")
FAST = ["--seconds", "0.05", "--warmup", "0", "--power", "none"]
NAMES = ("MAXN_SUPER", "15W", "25W")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64)


@pytest.fixture
def nvpmodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvpmodel:
    found = FakeNvpmodel(tmp_path / "bin", NAMES, mode=2)
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    return found


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine may be busy."""
    decide(monkeypatch)


def test_a_sweep_measures_in_each_mode_and_puts_the_old_one_back(
    bundle: Path, tmp_path: Path, nvpmodel: FakeNvpmodel, modes: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "sweep"
    words = ["bench", str(bundle), "--sweep", "power-modes", "-o", str(folder), *FAST]
    assert main(words) == 0, capsys.readouterr()
    out, err = capsys.readouterr()
    assert sorted(path.name for path in folder.iterdir()) == [
        "15W.json", "25W.json", "MAXN_SUPER.json", "report.html",
    ]  # fmt: skip
    for name in NAMES:
        record = read_record(folder / f"{name}.json")
        assert record.environment.power_mode == name
        assert record.machine is not None and record.machine.before.power_mode == name
        assert name in out and "--sweep power-modes" in (record.command or "")
        assert name in (folder / "report.html").read_text()
    assert "mode 15W (2 of 3; 25W is put back at the end)" in err
    assert nvpmodel.mode == 2


def test_modes_that_cannot_be_set_are_named_and_the_sweep_ends_with_1(
    bundle: Path, tmp_path: Path, nvpmodel: FakeNvpmodel, modes: None,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    nvpmodel.fail("reboot")
    folder = tmp_path / "sweep"
    words = ["bench", str(bundle), "--sweep", "power-modes", "-o", str(folder), *FAST, "--json"]
    assert main(words) == 1
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert list(value["records"]) == ["25W"] and list(value["skipped"]) == ["MAXN_SUPER", "15W"]
    assert "needs a reboot" in value["skipped"]["15W"]
    assert "skipped: MAXN_SUPER, 15W" in err


def test_without_nvpmodel_a_sweep_is_3_and_one_line(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", str(bundle), "--sweep", "power-modes", "-o", str(tmp_path / "s"), *FAST]
    assert main(words) == 3
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == 1 and "nvpmodel" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_stopped_puts_the_mode_back(
    bundle: Path, tmp_path: Path, nvpmodel: FakeNvpmodel, number: int
) -> None:
    words = ["bench", str(bundle), "--sweep", "power-modes", "-o", str(tmp_path / "sweep")]
    words += ["--power", "none", "--seconds", "60", "--warmup", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekd", *words],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=by_default,
    )
    end = time.monotonic() + 60
    while nvpmodel.mode != 0 and time.monotonic() < end:
        time.sleep(0.05)
    assert nvpmodel.mode == 0, "the first mode was never set"
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait(30) != 0
    end = time.monotonic() + 30
    while nvpmodel.mode != 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert nvpmodel.mode == 2


def test_two_bundles_in_turns_leave_two_records_and_a_report(
    bundle: Path, tmp_path: Path, modes: None, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_bundle(tmp_path / "other", tile_px=64)
    folder = tmp_path / "turns"
    words = ["bench", str(bundle), "--interleave", str(other), "-o", str(folder), *FAST]
    assert main([*words, "--repeats", "2"]) == 0, capsys.readouterr()
    records = [read_record(folder / f"{letter}.json") for letter in "AB"]
    for record, letter in zip(records, "AB", strict=True):
        assert record.turns is not None
        assert (record.turns.order, record.turns.letter) == ("ABBA", letter)
    assert (folder / "report.html").exists()
    assert "report: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "power-modes"], "-o FOLDER"),
        (["--interleave", "BUNDLE"], "-o FOLDER"),
        (["--sweep", "power-modes", "--interleave", "BUNDLE", "-o", "x"], "give one"),
        (["--interleave", "nowhere", "-o", "OUT"], "is not a bundle"),
        (["--interleave", "BUNDLE", "--repeats", "3", "-o", "OUT"], "even number of repeats"),
        (["--power", "none", "--trace", "t.csv"], "--trace needs a power sensor"),
        (["--power", "nosuch"], "sensor 'nosuch'"),
        (["--power", "replay:nowhere.log"], "does not exist"),
        (["--idle", "0"], "idling above 0 s"),
        (["--seconds", "nan"], "expected times up to 86400 s"),
        (["--seconds", "inf"], "expected times up to 86400 s"),
        (["--idle", "nan"], "expected times up to 86400 s"),
        (["--warmup", "inf"], "expected times up to 86400 s"),
        (["--repeats", "99999999"], "at most 1000 repeats"),
        (["-o", "map.tif"], "a record ends in .json"),
        (["-o", "/proc/x.json"], "/proc/x.json cannot be written"),
        (["--interval", "nan"], "interval of 0.001 to 10 s"),
        (["--interval", "100"], "interval of 0.001 to 10 s"),
        (["--sweep", "fans"], "power-modes"),
    ],
)
def test_wrong_use_is_one_line_and_2(
    bundle: Path, tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"BUNDLE": str(bundle), "OUT": str(tmp_path / "out")}
    assert main(["bench", str(bundle), *(given.get(word, word) for word in words)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == 1 and said in err, err
