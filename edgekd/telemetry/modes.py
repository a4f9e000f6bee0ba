"""Power modes of a Jetson: which one is set, which there are, and changing them.

``nvpmodel -q`` tells the mode to any user, among warnings; ``-m ID`` sets it, needs root, may ask
whether to reboot, and may keep the old mode without a word, so it is asked again afterwards. As
another user than root ``sudo`` must allow it without a password. Modes are declared in
``/etc/nvpmodel.conf`` and the one that was set is kept in ``/var/lib/nvpmodel/status`` (NVIDIA
Jetson Linux Developer Guide, "Power Mode Controls"). The numbers differ from board to board: only
names may be compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from edgekd.contracts.board import Absent, read_small
from edgekd.contracts.schema import Document
from edgekd.errors import EdgeKDError, EnvironmentLacksError

_ANSWER = re.compile(
    r"^NV Power Mode:[ \t]*(?P<name>\S[^\n]*?)\s*\n(?:NVPM [^\n]*\n)*(?P<id>\d{1,6})\s*$",
    re.MULTILINE,
)
_MODEL = re.compile(r"^[ \t]*<\s*POWER_MODEL\s([^>\n]*)>", re.MULTILINE)
_PAIR = re.compile(r"(\w+)=(\S+)")
_STATUS = re.compile(r"pmode:(\d{1,6})\b")
#: that nvpmodel has for an answer, s; setting takes some seconds at most
_ASK_S, _SET_S = 10.0, 60.0
_END_S = 2.0
#: the guard tries three times and asks between
_GUARD_LIMITS = 8
_TOLD = re.compile(r"POWER_MODEL: ID=([0-9]{1,6}) NAME=(\S+)")
_GUARD = Path(__file__).with_name("_mode_guard.py")


class Mode(Document):
    """A power mode: its number on this board, and its name."""

    id: int
    name: str


def read_mode(root: Path = Path("/")) -> Mode:
    """The mode of now: by ``nvpmodel -q`` on this machine, else by the files below ``root``.

    Raises:
        Absent: no mode can be told.
    """
    program = _program() if root == Path("/") else None
    asked = ""
    if program is not None:
        try:
            return _ask(program)
        except Absent as err:
            asked = f"{err}; "
    try:
        text = read_small(root, "var/lib/nvpmodel/status")
        match = _STATUS.search(text)
        if match is None:
            raise Absent(f"/var/lib/nvpmodel/status is not understood: {text[:60]!r}")
        number = int(match[1])
        for mode in list_modes(root):
            if mode.id == number:
                return mode
        raise Absent(f"mode {number} of /var/lib/nvpmodel/status is not in /etc/nvpmodel.conf")
    except Absent as err:
        raise Absent(f"{asked}{err}") from err


def list_modes(root: Path = Path("/")) -> list[Mode]:
    """The modes that ``/etc/nvpmodel.conf`` declares, by number; on this machine, where there is no
    such file, those that ``nvpmodel -p --verbose`` tells (it may read another file).

    Raises:
        Absent: neither tells any.
    """
    try:
        return parse_modes(read_small(root, "etc/nvpmodel.conf"))
    except Absent:
        program = _program() if root == Path("/") else None
        if program is None:
            raise
        said, code = _run([program, "-p", "--verbose"], _ASK_S)
        found = {int(match[1]): match[2] for match in _TOLD.finditer(said)}
        if code is None or not found:
            raise
        return [Mode(id=number, name=found[number]) for number in sorted(found)]


def known_modes(root: Path = Path("/")) -> list[Mode]:
    """As :func:`list_modes`, for who cannot go on without.

    Raises:
        EnvironmentLacksError: they cannot be told; says what was looked for and what to do.
    """
    try:
        return list_modes(root)
    except Absent as err:
        raise EnvironmentLacksError(
            f"the power modes of this machine cannot be told: {err}; they stand in "
            "/etc/nvpmodel.conf, which belongs to a Jetson with JetPack. In a container, mount it"
        ) from err


def parse_modes(text: str) -> list[Mode]:
    """Modes of a configuration, by number; its attributes come in any order.

    Raises:
        Absent: there is none.
    """
    found: dict[int, Mode] = {}
    for match in _MODEL.finditer(text):
        pairs = dict(_PAIR.findall(match[1]))
        number = pairs.get("ID", "")
        if re.fullmatch(r"[0-9]{1,6}", number) and pairs.get("NAME"):
            found.setdefault(int(number), Mode(id=int(number), name=pairs["NAME"]))
    if not found:
        raise Absent("/etc/nvpmodel.conf declares no power mode")
    return [found[number] for number in sorted(found)]


def parse_answer(text: str) -> Mode:
    """The mode in what ``nvpmodel -q`` wrote to both its outputs.

    Raises:
        Absent: there is none.
    """
    match = _ANSWER.search(text)
    if match is None:
        said = " ".join(text.split())[:80]
        raise Absent(f"nvpmodel -q names no mode: {said!r}")
    return Mode(id=int(match["id"]), name=match["name"])


def set_mode(mode: Mode, *, limit_s: float = _SET_S) -> None:
    """Set a mode and see that it is set; does nothing where it is already.

    Args:
        limit_s: that nvpmodel has for it, s.

    Raises:
        EnvironmentLacksError: it is not set, with why and what to type.
    """
    program = _needed()
    before = _asked(program)
    if before.id == mode.id:
        return
    prefix = _prefix()
    said, code = _run([*prefix, program, "-m", str(mode.id)], limit_s)
    now = _asked(program)
    if now.id == mode.id:
        return
    kept = f"the power mode stayed {now.name} and is not {mode.name}"
    typed = f"sudo nvpmodel -m {mode.id}"
    short = " ".join(said.split())[-160:]
    if code is None:
        why = f"nvpmodel did not end in {limit_s:.0f} s; type: {typed}"
    elif "reboot" in said.lower():
        why = f"this mode needs a reboot; type: {typed}, and answer YES"
    elif prefix and said.startswith("sudo:"):
        why = f"nvpmodel needs root ({short}); run as root, or let sudo run it without a password"
    elif re.search(r"root|permission|not permitted|: 13\b", said, re.IGNORECASE):
        why = f"nvpmodel needs root ({short}); type: {typed}"
    else:
        why = f"nvpmodel ended with {code} and said {short!r}; type: {typed}"
    raise EnvironmentLacksError(f"{kept}: {why}")


@contextlib.contextmanager
def restored_mode(*, limit_s: float = _SET_S) -> Iterator[Mode]:
    """Puts the mode that it found back, whatever happens inside.

    A guard, a process in a session of its own, does it where this one cannot: it was killed, or
    its own attempt failed or was interrupted.

    Raises:
        EnvironmentLacksError: modes cannot be changed here (nothing was done then), or the old
            mode could not be put back, with what to type.
    """
    program = _needed()
    old = _asked(program)
    prefix = _prefix()
    if prefix:
        said, code = _run([*prefix, program, "-q"], _ASK_S)
        if code != 0:
            raise EnvironmentLacksError(
                f"power modes can be changed by root alone ({' '.join(said.split())[:120]}); run "
                f"as root, or let sudo run {program} without a password"
            )
    guard = subprocess.Popen(
        [sys.executable, "-I", "-S", str(_GUARD), str(os.getpid()), str(limit_s), program,
         str(old.id), old.name, *prefix],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    assert guard.stdin is not None
    word, failure = b"", None
    try:
        yield old
    finally:
        try:
            set_mode(old, limit_s=limit_s)
            word = b"done"
        except EdgeKDError as err:
            failure = err
        finally:
            with contextlib.suppress(OSError):
                guard.stdin.write(word)
            with contextlib.suppress(OSError):
                guard.stdin.close()  # without the word the guard has its try
            with contextlib.suppress(subprocess.TimeoutExpired):
                guard.wait(_GUARD_LIMITS * limit_s)
        if failure is not None and not _is(program, old):
            raise EnvironmentLacksError(
                f"the power mode {old.name} COULD NOT BE PUT BACK ({failure}); type: "
                f"sudo nvpmodel -m {old.id}"
            ) from failure


def _is(program: str, mode: Mode) -> bool:
    try:
        return _ask(program).id == mode.id
    except Absent:
        return False


def _program() -> str | None:
    return shutil.which("nvpmodel") or shutil.which("nvpmodel", path="/usr/sbin:/sbin")


def _needed() -> str:
    program = _program()
    if program is None:
        raise EnvironmentLacksError(
            "there is no nvpmodel on PATH; power modes belong to a Jetson with JetPack"
        )
    return program


def _prefix() -> list[str]:
    """What makes a command root's; nothing where this process is."""
    if os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    if sudo is None:
        raise EnvironmentLacksError("nvpmodel needs root to set a mode, and there is no sudo")
    return [sudo, "-n"]


def _ask(program: str) -> Mode:
    said, code = _run([program, "-q"], _ASK_S)
    if code is None:
        raise Absent(f"nvpmodel -q did not end in {_ASK_S:.0f} s")
    return parse_answer(said)


def _asked(program: str) -> Mode:
    try:
        return _ask(program)
    except Absent as err:
        raise EnvironmentLacksError(f"the power mode cannot be told: {err}") from err


def _run(command: list[str], limit_s: float) -> tuple[str, int | None]:
    """What a command wrote to both outputs, and how it ended; None where it did not in time.

    It has a session of its own, so that Ctrl-C does not stop it half way, and no input: it cannot
    be asked anything. A file and not a pipe, since a child of it that stays would keep a pipe open.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            return f"{command[0]} cannot be started: {err.strerror}", 126
        code: int | None
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
            with contextlib.suppress(OSError):  # root's is not ours to end
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_S)
        output.seek(0)
        return output.read().decode("utf-8", errors="replace"), code
