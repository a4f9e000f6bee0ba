"""Who asked for which change, when, and what became of it: one line of JSON for each, on the disk.

What is told are texts of rules that the store was given: those that came into force, and those that
it refused. A request that is turned away before the store has its text (a wrong token, a page of
elsewhere, a body of another type, nobody's name, no room) is its caller's fault, and no line.

A line is on the disk before what it tells takes effect, and before anybody reads it here. A process
that is killed while it writes leaves a line without its end; that is put aside, byte for byte, when
the trail is opened again.

What changes nothing (a refusal, the same text again) can be had as often as somebody likes, so only
so many of such lines are written (:class:`Allowance`), and the next line that is tells how many
were not; a store that is closed writes one for it. So a stranger does not fill the disk. Changes
are always told. A process that is killed (``kill -9``, a power cut) takes with it how many were not
written since the last line, and no more: what was written stays.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final, Literal

import pydantic

from edgekd.contracts.artifacts import publish_file, sync
from edgekd.contracts.schema import Document, parse_document
from edgekd.errors import InputError, OutputError

#: events that :meth:`Trail.last` has in memory; the file has all
KEPT: Final = 1000
#: letters of a sentence; a text with a thousand faults must not fill the disk when it is refused
_LONGEST = 2000
#: lines that change nothing: so many at once, and then one in so many seconds (some 3 MB a day at
#: worst)
AT_ONCE: Final = 100
EVERY_S: Final = 600.0


class Allowance:
    """Whether one more line that changes nothing may be written; the caller has a lock.

    Attributes:
        kept_back: lines since the last one that was written; in memory alone.
    """

    def __init__(self) -> None:
        self.kept_back = 0
        self._left, self._at_s = float(AT_ONCE), time.monotonic()

    def take(self) -> bool:
        """Take one, or count it as kept back."""
        now = time.monotonic()
        self._left = min(self._left + (now - self._at_s) / EVERY_S, AT_ONCE)
        self._at_s = now
        if self._left < 1:
            self.kept_back += 1
            return False
        self._left -= 1
        return True

    def told(self) -> str:
        """What the next line says of those before it, at its end; empty where all were written."""
        if not self.kept_back:
            return ""
        return f" ({self.kept_back} refused or unchanged before it were not written)"


class Event(Document):
    """A line of the trail.

    Attributes:
        when: UTC, ISO 8601.
        who: as the caller named himself; None where that was no name, or the store itself speaks.
        event: ``accepted``: a new version is about to come into force. ``unchanged``: the text is
            the one in force. ``refused``: nothing changed. ``opened``: the store found what a
            process that ended had left, and says what became of it. ``closed``: the store ended,
            and says how many lines were not written; where all were, it says nothing.
        version_before, version_after: in force, 0 where there were no rules.
        digest: SHA-256 of the text that was given; None where there was none.
        sentence: what happened, or why not.
    """

    when: str
    who: str | None
    event: Literal["accepted", "unchanged", "refused", "opened", "closed"]
    version_before: int = pydantic.Field(ge=0)
    version_after: int = pydantic.Field(ge=0)
    digest: str | None
    sentence: str


class Trail:
    """The file of events; the caller sees to it that one process has it.

    One thread writes at a time, and others wait for it. Whoever reads never waits for the disk,
    which may take seconds for a line: a card that tidies itself up must not stop a service.

    Args:
        path: of the file; made where there is none.

    Attributes:
        torn: where a line without its end was put aside at opening; None where there was none.

    Raises:
        InputError: a line that is no event; says which.
        OutputError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.torn: Path | None = None
        self._writing = threading.Lock()
        #: held for as long as a list takes, and never while anything is written
        self._memory = threading.Lock()
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as err:
            raise OutputError(f"{path} cannot be written: {err.strerror}") from err
        try:
            sync(path.parent)
            content = path.read_bytes()
            self._end = content.rfind(b"\n") + 1
            if self._end < len(content):
                self.torn = self._put_aside(content[self._end :])
            lines = content[: self._end].split(b"\n")[:-1]
            self._events = deque((self._event(n, line) for n, line in enumerate(lines, 1)), KEPT)
        except BaseException as err:
            self.close()
            if isinstance(err, OSError):
                raise OutputError(f"{path} cannot be written: {err.strerror}") from err
            raise

    def _put_aside(self, tail: bytes) -> Path:
        number = 1
        while (place := self.path.with_name(f"{self.path.stem}.torn-{number}.jsonl")).exists():
            number += 1
        with publish_file(place) as part:
            part.write_bytes(tail)
        os.ftruncate(self._file, self._end)
        os.fsync(self._file)
        return place

    def _event(self, number: int, line: bytes) -> Event:
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("no object")
        except ValueError as err:
            raise InputError(
                f"{self.path} is damaged: line {number} is no event; move the file elsewhere to "
                "begin another trail, which will say so"
            ) from err
        return parse_document(Event, value, {}, f"line {number} of {self.path}")

    def append(self, event: Event) -> None:
        """Bring an event to the disk and then tell it, or leave the trail as it was.

        Raises:
            OutputError: the disk is full, or the trail is closed.
        """
        if len(event.sentence) > _LONGEST:
            rest = f" ... ({len(event.sentence)} letters in all)"
            event = event.model_copy(update={"sentence": event.sentence[:_LONGEST] + rest})
        # escaped: whatever somebody calls himself stays inside its line
        line = json.dumps(event.model_dump(mode="json"), ensure_ascii=True).encode() + b"\n"
        with self._writing:
            try:
                if os.fstat(self._file).st_size != self._end:  # what could not be cut off before
                    os.ftruncate(self._file, self._end)
                left = line
                while left:
                    left = left[os.write(self._file, left) :]
                os.fsync(self._file)
            except OSError as err:
                with contextlib.suppress(OSError):  # else the next one does, or the next opening
                    os.ftruncate(self._file, self._end)
                raise OutputError(f"{self.path} cannot be written: {err.strerror}") from err
            self._end += len(line)
            self._last = len(line)
            with self._memory:
                self._events.append(event)

    def take_back(self) -> None:
        """Cut off the event that was just appended, since what it tells could not be done."""
        with self._writing:
            self._end -= self._last
            self._last = 0
            with self._memory:
                self._events.pop()
            with contextlib.suppress(OSError):  # else as above
                os.ftruncate(self._file, self._end)

    def last(self, limit: int) -> list[Event]:
        """The newest events first, at most ``limit``; at once, whatever is being written."""
        with self._memory:
            return list(self._events)[::-1][:limit]

    def close(self) -> None:
        """Safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
