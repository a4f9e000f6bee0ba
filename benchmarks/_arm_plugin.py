"""A pytest plugin for emulated processors: only bounds of time are lifted, since the emulator's
speed says nothing about a board's."""

from __future__ import annotations

import os
import platform

from hypothesis import settings

settings.register_profile("emulated", deadline=None)
settings.load_profile("emulated")
if platform.machine() == "aarch64":
    os.environ["EDGEKD_EMULATED"] = "1"  # the tests of CPU time look at it
