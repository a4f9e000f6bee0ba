"""Where the records of a machine lie, one folder for each."""

from __future__ import annotations

import platform
import re
from pathlib import Path

from edgekd.telemetry.environment import Environment, read_environment

RESULTS = Path(__file__).parent / "results"


def folder_of(device: str) -> Path:
    """``results/<device>``, its name in small letters and hyphens."""
    return RESULTS / re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def here() -> tuple[Path, Environment]:
    """The folder of this machine, by its board or processor, and what it is."""
    environment = read_environment()
    return folder_of(environment.board or environment.cpu_model or platform.machine()), environment
