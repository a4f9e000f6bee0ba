"""What is done of a scene, on disk: finished rows as they came, whole after a kill at any byte.

A folder beside the output, ``.<name>.edgekd``, holds ``job.json`` (what was asked of which scene by
which model) and ``rows``: an append-only file of records, each with its own checksum. A *commit*
record says how many rows of windows are behind; it is on the disk before the next one is begun.
Whatever stands behind the last commit is cut off when the journal is opened again, so a journal is
always at a place where :func:`edgekd.runtime.tiler.run_tiles` can start. The lock is the system's
and ends with the process, however that ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import struct
import zlib
from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgekd.contracts.artifacts import canonical_json
from edgekd.contracts.imageio import UInt8Array
from edgekd.errors import InputError, OutputError

JOB_NAME, ROWS_NAME = "job.json", "rows"
#: rows that are compressed together
BLOCK_ROWS = 256
_HEAD = struct.Struct("<4sIIII")  # kind, first row, rows, bytes of classes, bytes of scores
_CRC = struct.Struct("<I")
#: what the caller looks into: a scene that was fetched again may be the same
_MAY_CHANGE = ("scene_mtime_ns",)
_ROWS, _COMMIT = b"EKR1", b"EKC1"
#: a class map shrinks as well as it needs to, in two thirds of the time of the usual level
_LEVEL = 1


@dataclass
class Commit:
    """State behind some rows of windows.

    Attributes:
        windows: rows of windows that are behind.
        rows: pixel rows of the map that are in the journal.
        run, skipped: windows so far, see :class:`~edgekd.runtime.tiler.TileStats`.
        valid: pixels with data in ``rows``.
        infer_s: time inside the model so far, s.
        total_s: wall-clock time of all attempts so far, s.
        attempts: times that the job was begun.
        read: ``[first row, end row, CRC-32]`` of the pixels that these windows saw, in reading
            order.
    """

    windows: int = 0
    rows: int = 0
    run: int = 0
    skipped: int = 0
    valid: int = 0
    infer_s: float = 0.0
    total_s: float = 0.0
    attempts: int = 1
    read: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Block:
    """Rows of the map as they are kept.

    Attributes:
        y0: first pixel row.
        classes: class index, or the map's nodata value, ``(n, W)`` uint8.
        scores: confidence ``(n, W)`` uint8 as :mod:`edgekd.runtime.products` codes it, or None.
    """

    y0: int
    classes: UInt8Array
    scores: UInt8Array | None


def journal_folder(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(f".{output.name}.edgekd")


class Journal:
    """The journal of one output; use it in a ``with`` block.

    Args:
        output: the file that is being made.
        job: what is asked, JSON-ready; a journal of another job is refused.
        width: of the scene, px.
        resume: go on where an earlier attempt ended, if there is one.
        restart: forget an earlier attempt.

    Attributes:
        folder: where it lies; room for temporary files of the output.
        state: the last commit.
        earlier: the job as it was first begun.

    Raises:
        InputError: an earlier attempt is there and nobody said what is to become of it, or it was
            another job.
        OutputError: another process is writing this output, or the disk is full.
    """

    def __init__(
        self,
        output: Path,
        job: dict[str, Any],
        width: int,
        resume: bool = False,
        restart: bool = False,
    ) -> None:
        self.output, self.folder = output, journal_folder(output)
        self._width = width
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = (self.folder / ROWS_NAME).open("a+b")
        try:
            self._lock()
            place = self.folder / JOB_NAME
            if restart:
                self._clear()
            known = self._read_job(place)
            self.earlier = job if known is None else known
            if known is None:
                self._clear()
                with self._writing():
                    part = place.with_suffix(".part")
                    part.write_text(canonical_json(job), encoding="utf-8")
                    _sync(part)
                    part.replace(place)
                    _sync(self.folder)
                    _sync(self.folder.parent)
                self.state, self._end = Commit(), 0
            else:
                self.state, self._end = self._scan()
                if not resume:
                    raise InputError(
                        f"an earlier run of {output} did not end ({self.state.rows} rows are done, "
                        f"kept in {self.folder}); add --resume (resume=True) to finish it, or "
                        "--restart (restart=True) to begin again"
                    )
                self._require_same(job)
                with self._writing():
                    self._file.truncate(self._end)
                self.state.attempts += 1
            self._file.seek(self._end)
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                return  # a file system without locks
            raise OutputError(
                f"another process is writing {self.output}; wait for it, or choose another place "
                "with -o"
            ) from err

    def _clear(self) -> None:
        with self._writing():
            self._file.truncate(0)
            for item in self.folder.iterdir():
                if item.name != ROWS_NAME:
                    item.unlink()

    def _read_job(self, place: Path) -> dict[str, Any] | None:
        try:
            job = json.loads(place.read_text(encoding="utf-8"))
        except FileNotFoundError:  # killed before there was one; it appears by rename
            return None
        except ValueError as err:
            raise InputError(
                f"{place} is damaged, so nothing says what its rows are; begin again with "
                "--restart (restart=True)"
            ) from err
        except OSError as err:
            raise InputError(f"{place} cannot be read: {err.strerror}") from err
        assert isinstance(job, dict)
        return job

    def _require_same(self, job: dict[str, Any]) -> None:
        for key in sorted({*job, *self.earlier}):
            if key not in _MAY_CHANGE and job.get(key) != self.earlier.get(key):
                raise InputError(
                    f"the earlier run of {self.output} had another {key} "
                    f"({_short(self.earlier.get(key))}, now {_short(job.get(key))}), so its rows "
                    "cannot be used; give the same, or begin again with --restart (restart=True)"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise OutputError(
                f"{self.folder} cannot be written: {err.strerror or err}; what is done stays "
                "there: make room and go on with --resume (resume=True)"
            ) from err

    def _scan(self) -> tuple[Commit, int]:
        """The last commit and the byte behind it; anything that does not check ends the search."""
        state, end = Commit(), 0
        for kind, _, parts, after in self._records(None):
            if kind == _COMMIT:
                state, end = Commit(**json.loads(parts[0])), after
        return state, end

    def _records(
        self, stop: int | None
    ) -> Generator[tuple[bytes, tuple[int, int], tuple[bytes, bytes], int], None, None]:
        """(kind, (first row, rows), payloads, byte behind) up to a fault or ``stop``."""
        size = os.fstat(self._file.fileno()).st_size
        limit = size if stop is None else stop
        place = 0
        with (self.folder / ROWS_NAME).open("rb") as stream:
            while place + _HEAD.size + _CRC.size <= limit:
                head = stream.read(_HEAD.size)
                kind, y0, rows, first, second = _HEAD.unpack(head)
                after = place + _HEAD.size + first + second + _CRC.size
                if kind not in (_ROWS, _COMMIT) or after > limit:
                    return
                payload = stream.read(first + second)
                (checksum,) = _CRC.unpack(stream.read(_CRC.size))
                if zlib.crc32(payload, zlib.crc32(head)) != checksum:
                    return
                yield kind, (y0, rows), (payload[:first], payload[first:]), after
                place = after

    def append(self, y0: int, classes: UInt8Array, scores: UInt8Array | None) -> None:
        """Keep rows; they count from the next :meth:`commit` on.

        Raises:
            OutputError: the disk is full.
        """
        second = b"" if scores is None else zlib.compress(np.ascontiguousarray(scores).data, _LEVEL)
        first = zlib.compress(np.ascontiguousarray(classes).data, _LEVEL)
        self._write(_ROWS, y0, len(classes), first, second)

    def commit(self, state: Commit) -> None:
        """Bring everything to the disk: from here a later attempt goes on.

        Raises:
            OutputError: the disk is full.
        """
        self._write(_COMMIT, state.rows, 0, json.dumps(asdict(state)).encode(), b"")
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
        self._end = self._file.tell()
        self.state = state

    def _write(self, kind: bytes, y0: int, rows: int, first: bytes, second: bytes) -> None:
        head = _HEAD.pack(kind, y0, rows, len(first), len(second))
        checksum = zlib.crc32(second, zlib.crc32(first, zlib.crc32(head)))
        with self._writing():
            self._file.write(b"".join((head, first, second, _CRC.pack(checksum))))

    def blocks(self) -> Generator[Block, None, None]:
        """The committed rows from the top.

        Raises:
            OutputError: the file was changed since.
        """
        row = 0
        for kind, (y0, rows), (first, second), _ in self._records(self._end):
            if kind != _ROWS:
                continue
            classes = _rows(first, rows, self._width)
            yield Block(y0, classes, _rows(second, rows, self._width) if second else None)
            row = y0 + rows
        if row != self.state.rows:
            raise OutputError(
                f"{self.folder} was changed: it gives {row} of {self.state.rows} rows; begin again "
                "with --restart (restart=True)"
            )

    def discard(self) -> None:
        """Remove it: the output is there, or nothing was done that is worth keeping."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def close(self) -> None:
        """Give the lock back; safe to call twice."""
        with contextlib.suppress(OSError):  # a full disk was reported when it was written
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rows(content: bytes, rows: int, width: int) -> UInt8Array:
    return np.frombuffer(zlib.decompress(content), np.uint8).reshape(rows, width)


def _sync(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
