"""Signals of a child: a test run in the background hands on that they are ignored."""

from __future__ import annotations

import signal


def by_default() -> None:
    """As ``preexec_fn``: what ends a program ends the child."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
