"""A made-up ``nvpmodel`` that keeps its mode in a file, with the faults of the real one."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python} -IS
import os, sys, time
folder = {folder!r}
names = {names!r}
def text(name):
    try:
        with open(os.path.join(folder, name)) as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return ""
def say(line):
    os.write(2, (line + "\\n").encode())
with open(os.path.join(folder, "calls"), "a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\\n")
fault = text("fault")
if sys.argv[1] == "-q":
    if fault == "hang-asked":
        time.sleep(600)
    mode = int(text("mode"))
    say("NVPM WARN: fan mode is not set!")
    os.write(1, ("NV Power Mode: %s\\n%d\\n" % (names[mode], mode)).encode())
    say("NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13")
    sys.exit(0)
if sys.argv[1] == "-p":
    if fault != "silent":
        for number, name in enumerate(names):
            say("NVPM VERB: POWER_MODEL: ID=%d NAME=%s" % (number, name))
    sys.exit(0)
mode = int(sys.argv[2])
if mode >= len(names):
    say("NVPM ERROR: request for bad power mode %d" % mode)
    sys.exit(255)
if fault == "root":
    say("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13")
    sys.exit(255)
if fault == "reboot":
    say("NVPM WARN: Golden image context is already created")
    say("NVPM WARN: Reboot required for changing to this power mode: %d" % mode)
    say("NVPM WARN: DO YOU WANT TO REBOOT NOW? enter YES/yes to confirm:")
    say("NVPM ERROR: bad input!" if not sys.stdin.read(3) else "rebooting")
    sys.exit(255)
if fault == "keep":
    sys.exit(0)
if fault == "hang":
    time.sleep(600)
if fault == "slow":
    time.sleep(0.7)
with open(os.path.join(folder, "mode.new"), "w") as stream:
    stream.write(str(mode))
os.replace(os.path.join(folder, "mode.new"), os.path.join(folder, "mode"))
"""


class FakeNvpmodel:
    """An executable ``nvpmodel`` in a folder, to be put first on PATH.

    Args:
        folder: made if it is not there.
        names: of its modes, by number.
        mode: that is set.

    Attributes:
        folder: where it is.
    """

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("MAXN", "15W", "25W"), mode: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        program = folder / "nvpmodel"
        program.write_text(
            _PROGRAM.format(python=sys.executable, folder=str(folder), names=list(names))
        )
        program.chmod(0o755)
        (folder / "mode").write_text(str(mode))

    @property
    def mode(self) -> int:
        """The mode that is set."""
        return int((self.folder / "mode").read_text())

    @property
    def calls(self) -> list[str]:
        """Its arguments, a line for each call so far."""
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def fail(self, fault: str) -> None:
        """From now on: root, reboot, keep, hang, hang-asked, slow, or nothing with ""."""
        (self.folder / "fault").write_text(fault)
