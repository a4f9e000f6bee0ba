"""What TensorRT says, kept for the call that it was said to.

TensorRT takes one logger per process, and calls it from whichever thread has something to say.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

#: characters of a line and of a whole reason, and lines kept of one call; beyond, it says so.
LINE_CHARS, REASON_CHARS, LINES = 600, 4000, 200


class Heard:
    """What was said to one call.

    Attributes:
        errors, warnings: lines, oldest first, each once.
        unsure: errors of a thread that no call owns, while several calls ran: each of them has
            them, since one of them is meant.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self.clear()

    def clear(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.unsure: list[str] = []

    def why(self, otherwise: str = "it gave no reason") -> str:
        """All errors in one line: this call's, then those whose call is not known."""
        before = self._log.take_between()
        parts = [
            *self.errors,
            *(f"said while several calls ran: {line}" for line in self.unsure),
            *(f"said between calls: {line}" for line in before),
        ]
        return joined(parts) or otherwise


def make_log(trt: Any) -> Any:
    """The logger to give to TensorRT; its ``listen()`` opens a :class:`Heard` for a call."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._guard = threading.Lock()
            self._open: list[tuple[int, Heard]] = []
            self._between: list[str] = []

        @contextlib.contextmanager
        def listen(self) -> Iterator[Heard]:
            """What this thread's calls to TensorRT say from here on; the innermost one hears."""
            heard = Heard(self)
            entry = (threading.get_ident(), heard)
            with self._guard:
                self._open.append(entry)
            try:
                yield heard
            finally:
                with self._guard:
                    self._open.remove(entry)

        def take_between(self) -> list[str]:
            """Errors that were said while no call ran; they are told once."""
            with self._guard:
                lines, self._between = self._between, []
            return lines

        def log(self, severity: Any, msg: str) -> None:
            bad = severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR)
            if not bad and severity != trt.ILogger.WARNING:
                return
            line = " ".join(msg.split())[:LINE_CHARS]
            thread = threading.get_ident()
            with self._guard:
                innermost = dict(self._open)
                heard = [innermost[thread]] if thread in innermost else [*innermost.values()]
                if not heard and bad:
                    _keep(self._between, line)
                for item in heard:
                    errors = item.errors if len(heard) == 1 else item.unsure
                    _keep(errors if bad else item.warnings, line)

    return Log()


def _keep(lines: list[str], line: str) -> None:
    if line not in lines and len(lines) <= LINES:
        lines.append(line if len(lines) < LINES else "further lines were not kept")


def joined(parts: list[str]) -> str:
    """The first parts that fit in one line, and how many do not."""
    text = ""
    for number, part in enumerate(parts):
        if len(text) + len(part) > REASON_CHARS:
            return f"{text}; and {len(parts) - number} more"
        text += f"; {part}" if text else part
    return text
