"""Power modes: what is read, what a change answers, and that the old mode always comes back."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.board import Absent
from edgekd.errors import EnvironmentLacksError
from edgekd.telemetry import modes
from edgekd.telemetry.modes import (
    Mode,
    known_modes,
    list_modes,
    parse_answer,
    parse_modes,
    read_mode,
    restored_mode,
    set_mode,
)
from tests.helpers.fake_nvpmodel import FakeNvpmodel
from tests.helpers.roots import put, put_modes, put_program
from tests.helpers.signals import by_default

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNvpmodel:
    made = FakeNvpmodel(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{made.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(modes.os, "geteuid", lambda: 0)
    return made


@pytest.mark.parametrize(
    ("text", "number", "name"),
    [
        ("NV Power Mode: 25W\n1\n", 1, "25W"),
        ("NVPM WARN: fan mode is not set!\nNV Power Mode: MAXN\n0\n", 0, "MAXN"),
        ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\n"
         "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
         7, "MODE_15W_DESKTOP"),
        ("NV Power Mode: MAXN_SUPER\nNVPM WARN: x\n2\n", 2, "MAXN_SUPER"),
    ],
)  # fmt: skip
def test_an_answer_among_warnings_is_understood(text: str, number: int, name: str) -> None:
    assert parse_answer(text) == Mode(id=number, name=name)


@pytest.mark.parametrize(
    "text", ["", "NV Power Mode:\n", "NV Power Mode: 25W\n", "NV Power Mode: 25W\nerror 1\n",
             "NVPM ERROR: optMask is 1, no request for power mode", "1\n"],
)  # fmt: skip
def test_half_an_answer_is_none(text: str) -> None:
    with pytest.raises(Absent, match="names no mode"):
        parse_answer(text)


def test_collected_answers(test_data: Path) -> None:
    text = (test_data / "telemetry/samples/nvpmodel_q.txt").read_text()
    found = [parse_answer(part.partition("\n")[2]) for part in re.split(r"^---", text, flags=re.M)
             if "NV Power Mode" in part]  # fmt: skip
    assert [(mode.name, mode.id) for mode in found] == [
        ("MAXN", 0), ("MODE_30W_2CORE", 2), ("25W", 1), ("MAXN_SUPER", 2)
    ]  # fmt: skip


def test_declared_modes_come_in_any_order_and_comments_are_none() -> None:
    text = """
# < POWER_MODEL ID=9 NAME=OLD >
< POWER_MODEL NAME=15W ID=2 >
<POWER_MODEL ID=0 NAME=MAXN>
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=x NAME=BAD >
< POWER_MODEL ID=3 >
< PM_CONFIG DEFAULT=2 >
"""
    assert parse_modes(text) == [Mode(id=0, name="MAXN"), Mode(id=2, name="15W")]
    with pytest.raises(Absent, match="declares no power mode"):
        parse_modes("< PM_CONFIG DEFAULT=2 >")


@given(st.text(alphabet="<>= POWER_MODELIDNAM0123\n\t²", max_size=200))
def test_no_text_breaks_the_parsers(text: str) -> None:
    for parse in (parse_modes, parse_answer):
        try:
            parse(text)
        except Absent:
            continue


def test_a_root_tells_by_its_files_and_its_links_stay_inside(tmp_path: Path) -> None:
    put_modes(tmp_path, "nvpmodel_p3767_0003.conf", ["15W", "25W", "MAXN_SUPER"], 2)
    assert (tmp_path / "etc/nvpmodel.conf").readlink().is_absolute()
    assert read_mode(tmp_path) == Mode(id=2, name="MAXN_SUPER")
    assert [mode.name for mode in list_modes(tmp_path)] == ["15W", "25W", "MAXN_SUPER"]
    assert known_modes(tmp_path) == list_modes(tmp_path)
    put(tmp_path, {"var/lib/nvpmodel/status": "pmode:0009"})
    with pytest.raises(Absent, match="mode 9 of .* is not in /etc/nvpmodel.conf"):
        read_mode(tmp_path)
    put(tmp_path, {"var/lib/nvpmodel/status": "fmode:quiet"})
    with pytest.raises(Absent, match="not understood"):
        read_mode(tmp_path)
    (tmp_path / "var/lib/nvpmodel/status").unlink()
    with pytest.raises(Absent, match="status does not exist"):
        read_mode(tmp_path)


def test_another_root_never_asks_this_machine(tmp_path: Path, fake: FakeNvpmodel) -> None:
    assert read_mode() == Mode(id=0, name="MAXN")
    fake.calls.clear()
    before = len(fake.calls)
    with pytest.raises(Absent):
        read_mode(tmp_path)
    assert len(fake.calls) == before


def test_a_mode_is_set_and_asked_again(fake: FakeNvpmodel) -> None:
    set_mode(Mode(id=1, name="15W"))
    assert fake.mode == 1 and fake.calls == ["-q", "-m 1", "-q"]
    set_mode(Mode(id=1, name="15W"))
    assert fake.calls[3:] == ["-q"], "what is set already is not set: some ask for a reboot then"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("root", "needs root .*sudo nvpmodel -m 1"),
        ("reboot", "needs a reboot; type: sudo nvpmodel -m 1, and answer YES"),
        ("keep", "stayed MAXN and is not 15W.*ended with 0"),
        ("hang", "did not end in 1 s"),
    ],
)
def test_a_mode_that_does_not_change_is_told_with_what_to_type(
    fake: FakeNvpmodel, fault: str, words: str
) -> None:
    fake.fail(fault)
    start = time.monotonic()
    with pytest.raises(EnvironmentLacksError, match=words) as told:
        set_mode(Mode(id=1, name="15W"), limit_s=1 if fault == "hang" else 20)
    assert fake.mode == 0 and "\n" not in str(told.value)
    assert time.monotonic() - start < 10


def test_a_number_that_this_board_does_not_have(fake: FakeNvpmodel) -> None:
    with pytest.raises(EnvironmentLacksError, match="request for bad power mode 7"):
        set_mode(Mode(id=7, name="50W"))


def test_nvpmodel_that_does_not_answer_is_left_in_time(
    fake: FakeNvpmodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modes, "_ASK_S", 0.3)
    fake.fail("hang-asked")
    with pytest.raises(Absent, match="nvpmodel -q did not end in 0 s; /var/lib/nvpmodel"):
        read_mode()
    with pytest.raises(EnvironmentLacksError, match="cannot be told"):
        set_mode(Mode(id=1, name="15W"))


def test_without_root_sudo_is_asked_and_its_refusal_is_told(
    fake: FakeNvpmodel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(modes.os, "geteuid", lambda: 1000)
    sudo = put_program(tmp_path, "sudo", 'echo "sudo: a password is required" >&2; exit 1')
    sudo.rename(fake.folder / "sudo")
    with pytest.raises(EnvironmentLacksError, match="a password is required"):
        set_mode(Mode(id=1, name="15W"))
    with pytest.raises(EnvironmentLacksError, match="by root alone"), restored_mode():
        raise AssertionError("nothing may begin that cannot be undone")
    (fake.folder / "sudo").write_text('#!/bin/sh\nshift\nexec "$@"\n')
    with restored_mode() as old:
        set_mode(Mode(id=2, name="25W"))
        assert fake.mode == 2
    assert fake.mode == old.id == 0


def test_no_nvpmodel_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modes, "_program", lambda: None)
    with pytest.raises(EnvironmentLacksError, match="there is no nvpmodel on PATH"):
        set_mode(Mode(id=0, name="MAXN"))
    with pytest.raises(EnvironmentLacksError, match="no nvpmodel"), restored_mode():
        pass


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit])
def test_the_old_mode_comes_back(fake: FakeNvpmodel, error: type[BaseException] | None) -> None:
    try:
        with restored_mode() as old:
            set_mode(Mode(id=1, name="15W"))
            assert fake.mode == 1
            if error is not None:
                raise error
    except (ValueError, KeyboardInterrupt, SystemExit) as err:
        assert type(err) is error
    assert fake.mode == old.id == 0


def test_a_mode_that_cannot_be_put_back_is_said_loudly(fake: FakeNvpmodel) -> None:
    with (
        pytest.raises(EnvironmentLacksError, match=r"COULD NOT BE PUT BACK.*nvpmodel -m 0$"),
        restored_mode(),
    ):
        set_mode(Mode(id=1, name="15W"))
        fake.fail("reboot")
    assert fake.mode == 1


def test_the_guard_tries_where_the_first_attempt_failed(
    fake: FakeNvpmodel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(mode: Mode, *, limit_s: float) -> None:
        raise EnvironmentLacksError("not now")

    with restored_mode():
        set_mode(Mode(id=1, name="15W"))
        monkeypatch.setattr(modes, "set_mode", refuse)
    assert fake.mode == 0


CHILD = """
import sys, time
from edgekd.telemetry.modes import Mode, restored_mode, set_mode
with restored_mode(limit_s=20):
    set_mode(Mode(id=1, name="15W"))
    if "fork" in sys.argv:
        import os
        forked = os.fork()
        if forked == 0:
            time.sleep(60)  # holds the pipe to the guard
            os._exit(0)
        print(forked, flush=True)
    print("set", flush=True)
    if "begin" in sys.argv:
        sys.stdin.readline()
        set_mode(Mode(id=2, name="25W"))
    time.sleep(60)
"""


def start(how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
        preexec_fn=by_default,
    )  # fmt: skip


def wait_for(true: Callable[[], bool], limit_s: float = 15) -> bool:
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if true():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
    ids=["killed", "terminated", "ctrl-c", "hung-up"],
)  # fmt: skip
def test_the_old_mode_comes_back_when_a_whole_group_ends(
    fake: FakeNvpmodel, number: signal.Signals
) -> None:
    with start("") as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "set\n" and fake.mode == 1
        os.killpg(child.pid, number)  # as a terminal does, and a service manager
        child.wait(20)
        assert wait_for(lambda: fake.mode == 0)


def test_a_forked_child_that_holds_the_pipe_does_not_hold_the_guard(fake: FakeNvpmodel) -> None:
    with start("fork") as child:
        assert child.stdout is not None
        forked = int(child.stdout.readline())
        assert child.stdout.readline() == "set\n" and fake.mode == 1
        child.kill()
        child.wait(20)
        try:
            assert wait_for(lambda: fake.mode == 0)
        finally:
            os.kill(forked, signal.SIGKILL)


def test_a_call_under_way_when_the_process_is_killed_is_undone_too(fake: FakeNvpmodel) -> None:
    with start("begin") as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        fake.fail("slow")
        child.stdin.write("\n")
        child.stdin.flush()
        assert wait_for(lambda: "-m 2" in fake.calls)
        fake.fail("")  # so that the guard is the faster one, and then overtaken
        child.kill()
    assert wait_for(lambda: "-m 0" in fake.calls)
    assert wait_for(lambda: fake.mode == 2), "it was under way"
    assert wait_for(lambda: fake.mode == 0)
    assert fake.calls.count("-m 0") == 2


@pytest.mark.parametrize("text", [None, "# nothing\n"])
def test_modes_that_cannot_be_told_are_one_clear_line(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/nvpmodel.conf").write_text(text)
    with pytest.raises(EnvironmentLacksError, match="/etc/nvpmodel.conf.*In a container, mount it"):
        known_modes(tmp_path)
