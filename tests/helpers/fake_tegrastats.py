"""A ``tegrastats`` that replays lines through a real pipe, with the faults of real ones."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python}
import os, signal, sys, time
interval = float(sys.argv[sys.argv.index("--interval") + 1]) / 1000 / {speed}
{setup}
def say(data):
    os.write(1, data)
for number, line in enumerate(open({log!r}, "rb")):
    line = line.rstrip(b"\\n")
    time.sleep(interval)
{each}
    say(line + {end!r})
{after}
"""


def make_tegrastats(
    folder: Path, lines: list[str], *, speed: float = 1, setup: str = "", each: str = "",
    after: str = "", end: bytes = b"\n",
) -> Path:  # fmt: skip
    """An executable ``tegrastats`` in a folder.

    Args:
        speed: how many times as fast as it is asked for.
        setup: code before the first line.
        each: code before line ``number``, which may change ``line`` or ``say`` more.
        after: code behind the last.
        end: of a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "lines.log"
    log.write_text("".join(f"{line}\n" for line in lines))
    program = folder / "tegrastats"
    indented = "\n".join(f"    {row}" for row in each.splitlines()) or "    pass"
    program.write_text(
        _PROGRAM.format(python=sys.executable, speed=speed, setup=setup, log=str(log),
                        each=indented, after=after, end=end)
    )  # fmt: skip
    program.chmod(0o755)
    return program
