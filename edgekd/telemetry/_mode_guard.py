"""A process that puts a power mode back when the one that started it cannot any more.

Run by :func:`edgekd.telemetry.modes.restored_mode` with its process number, the time limit, the
``nvpmodel`` to call, number and name of the mode, and what to put before the call. It waits for its
input to end; with the word ``done`` in it there is nothing left to do. It imports nothing of edgekd
and stays small, since it lives while power is measured.
"""

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

_LOOK_S = 2.0  # a forked child of the parent may hold the pipe open: then the parent's end tells
_TRIES = 3
_LOOKS, _PAUSE_S = 3, 1.0


def _said(command: list[str], limit_s: float) -> str:
    """What a command wrote; one that does not end in time is killed, and left if it cannot be."""
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            return f"did not end in {limit_s:.0f} s"
        except OSError as err:
            return str(err)
        output.seek(0)
        return output.read().decode("utf-8", errors="replace")


def main() -> int:
    """Wait, and act if nobody says that all is well."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent, limit_s, program, mode, name, *prefix = sys.argv[1:]
    heard = b""
    while os.getppid() == int(parent):
        if select.select([0], [], [], _LOOK_S)[0]:
            data = os.read(0, 100)
            if not data:
                break
            heard += data
    if select.select([0], [], [], 0)[0]:
        heard += os.read(0, 100)
    if b"done" in heard:
        return 0

    def is_back() -> bool:
        # a call that the parent had begun may still be under way: the mode must stay
        for _ in range(_LOOKS):
            lines = _said([program, "-q"], float(limit_s)).splitlines()
            if not any(re.fullmatch(rf"\s*0*{mode}\s*", line) for line in lines):
                return False
            time.sleep(_PAUSE_S)
        return True

    said = ""
    for _ in range(_TRIES):
        if is_back():
            return 0
        said = _said([*prefix, program, "-m", mode], float(limit_s))
    if is_back():
        return 0
    text = f"edgekd: the power mode {name} COULD NOT BE PUT BACK ({' '.join(said.split())[-160:]})"
    os.write(2, f"{text}; type: sudo nvpmodel -m {mode}\n".encode())
    return 1


if __name__ == "__main__":
    sys.exit(main())
