"""What is done of a scene, on disk: finished rows as they came, whole after a kill at any byte.

A folder beside the output, ``.<name>.edgekd``, holds ``job.json`` (what was asked of which scene by
which model) and ``rows``: an append-only file of records, each with its own checksum: *pieces* of
the map as they were finished, behind a piece *planes* of probabilities where they are asked for,
and *commits*. A commit says how many rows of windows are behind; it
is on the disk before the next one is begun.
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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from edgekd.contracts.artifacts import canonical_json, sync
from edgekd.contracts.imageio import UInt8Array
from edgekd.errors import InputError, OutputError

JOB_NAME, ROWS_NAME, STARTS_NAME = "job.json", "rows", "starts"
#: rows that are compressed together
BLOCK_ROWS = 64
#: kind; first row, rows, first column, columns; bytes of classes, bytes of scores
_HEAD = struct.Struct("<4sIIIIII")
_CRC = struct.Struct("<I")
#: what the caller looks into: a scene that was fetched again may be the same
_MAY_CHANGE = ("scene_mtime_ns",)
#: what a person calls it; of several differences the first is told, which the others follow from
_WORDS = {
    "edgekd": "version of edgekd", "scene": "scene", "size_px": "size of the scene",
    "manifest_sha256": "bundle", "model_sha256": "model", "backend": "backend",
    "bands": "choice of bands", "overlap_px": "overlap", "panel_px": "layout of the scene's file",
    "concurrent": "way to call the model, several at once or one (--streams)",
}  # fmt: skip
_PIECE, _COMMIT = b"EKP2", b"EKC2"
#: of a plane of probabilities, before the number of its class; only where they are asked for
_PLANE = b"EKB"
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
        read: ``[first row, end row, first column, end column, CRC-32]`` of the pixels that these
            windows saw, in reading order; in the file, of those since the commit before.
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
    """Rows of the map.

    Attributes:
        y0: first pixel row.
        classes: class index, or the map's nodata value, ``(n, W)`` uint8.
        scores: confidence ``(n, W)`` uint8 as :mod:`edgekd.runtime.products` codes it, or None.
    """

    y0: int
    classes: UInt8Array
    scores: UInt8Array | None


@dataclass(frozen=True)
class _Record:
    """A record: ``box`` is first row, rows, first column, columns; ``after`` the byte behind it."""

    kind: bytes
    box: tuple[int, int, int, int]
    first: bytes
    second: bytes
    size: int
    after: int = 0


def journal_folder(output: Path) -> Path:
    """Where the journal of an output lies."""
    return output.with_name(f".{output.name}.edgekd")


def count_starts(output: Path) -> int:
    """How often a run of this output was begun, and killed, since it last got a row further.

    A run that was stopped, or ended in words, is not counted.
    """
    try:
        return (journal_folder(output) / STARTS_NAME).stat().st_size
    except OSError:
        return 0


def discard_journal(output: Path) -> None:
    """Remove the journal of an output. It goes at once, by its name: a kill leaves no half."""
    folder, gone = journal_folder(output), _gone(output)
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _gone(output: Path) -> Path:
    """Where a journal lies while it is removed."""
    return journal_folder(output).with_suffix(".gone")


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
        self._broken = False
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = (self.folder / ROWS_NAME).open("a+b")
        try:
            self._lock()
            place = self.folder / JOB_NAME
            shutil.rmtree(_gone(output), ignore_errors=True)  # of a run that was killed at its end
            if restart:
                self._clear()
            known = self._read_job(place)
            self.earlier = job if known is None else known
            if known is None:
                self._clear()
                with self._writing():
                    part = place.with_suffix(".part")
                    part.write_text(canonical_json(job), encoding="utf-8")
                    sync(part)
                    part.replace(place)
                    sync(self.folder)
                    sync(self.folder.parent)
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
                    self._sweep(JOB_NAME, STARTS_NAME)  # what a kill left of products
                self.state.attempts += 1
            with self._writing(), (self.folder / STARTS_NAME).open("ab") as starts:
                starts.write(b".")
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
            self._sweep()

    def _sweep(self, *kept: str) -> None:
        for item in self.folder.iterdir():
            if item.name not in (ROWS_NAME, *kept):
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
        order = [*_WORDS, *sorted({*job, *self.earlier} - {*_WORDS})]
        for key in order:
            if key not in _MAY_CHANGE and job.get(key) != self.earlier.get(key):
                raise InputError(
                    f"the earlier run of {self.output} had another {_WORDS.get(key, key)} "
                    f"({_short(self.earlier.get(key))}, now {_short(job.get(key))}), so its rows "
                    "cannot be used; give the same, or begin again with --restart (restart=True)"
                )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            if self._broken:  # a commit that follows a lost piece would promise what is not there
                raise OSError("an earlier part of it could not be written")
            yield
        except OSError as err:
            self._broken = True
            raise OutputError(
                f"{self.folder} cannot be written: {err.strerror or err}; what is done stays "
                "there: make room and go on with --resume (resume=True)"
            ) from err

    def _scan(self) -> tuple[Commit, int]:
        """The last commit and the byte behind it; anything that does not check ends the search."""
        state, end = Commit(), 0
        read: list[list[int]] = []
        for record in self._records(None):
            if record.kind == _COMMIT:
                state, end = Commit(**json.loads(record.first)), record.after
                read += state.read
        return replace(state, read=read), end

    def _records(self, stop: int | None) -> Generator[_Record, None, None]:
        """Whole records up to a fault or byte ``stop``."""
        size = os.fstat(self._file.fileno()).st_size
        limit = size if stop is None else stop
        place = 0
        with (self.folder / ROWS_NAME).open("rb") as stream:
            while place + _HEAD.size + _CRC.size <= limit:
                record = _read_record(stream, limit - place)
                if record is None:
                    return
                place += record.size
                yield replace(record, after=place)

    def append(
        self,
        y0: int,
        x0: int,
        classes: UInt8Array,
        scores: UInt8Array | None = None,
        planes: UInt8Array | None = None,
    ) -> None:
        """Keep a piece; it counts from the next :meth:`commit` on.

        Pieces that begin in one row have one height, and lie side by side over the whole width.

        Args:
            y0, x0: its first row and column, px.
            classes, scores: ``(h, w)``, see :class:`Block`.
            planes: probability of each class, ``(K, h, w)``, coded as the scores are.

        Raises:
            OutputError: the disk is full.
        """
        second = b"" if scores is None else zlib.compress(np.ascontiguousarray(scores).data, _LEVEL)
        first = zlib.compress(np.ascontiguousarray(classes).data, _LEVEL)
        box = (y0, classes.shape[0], x0, classes.shape[1])
        self._write(_PIECE, box, first, second)
        for number, plane in enumerate(() if planes is None else planes):
            content = zlib.compress(np.ascontiguousarray(plane).data, _LEVEL)
            self._write(_plane(number), box, content, b"")

    def commit(self, state: Commit) -> None:
        """Bring everything to the disk: from here a later attempt goes on.

        Args:
            state: with what was read since the last commit.

        Raises:
            OutputError: the disk is full.
        """
        content = json.dumps(asdict(state)).encode()
        self._write(_COMMIT, (state.rows, 0, 0, 0), content, b"")
        with self._writing():
            self._file.flush()
            os.fsync(self._file.fileno())
            (self.folder / STARTS_NAME).write_bytes(b"")
        self._end = self._file.tell()
        self.state = replace(state, read=[*self.state.read, *state.read])

    def _write(
        self, kind: bytes, box: tuple[int, int, int, int], first: bytes, second: bytes
    ) -> None:
        head = _HEAD.pack(kind, *box, len(first), len(second))
        checksum = zlib.crc32(second, zlib.crc32(first, zlib.crc32(head)))
        with self._writing():
            self._file.write(b"".join((head, first, second, _CRC.pack(checksum))))

    def blocks(self, plane: int | None = None) -> Generator[Block, None, None]:
        """The committed rows from the top, at most :data:`BLOCK_ROWS` at a time.

        Args:
            plane: number of a class: its probabilities take the place of the classes.

        Raises:
            OutputError: the file was changed since.
        """
        row, kind = 0, _PIECE if plane is None else _plane(plane)
        with (self.folder / ROWS_NAME).open("rb") as stream:
            for group in self._pieces(stream, kind):
                for y0 in sorted(group):
                    block = self._block(stream, y0, group[y0])
                    if block is None or y0 != row:
                        break
                    yield block
                    row = y0 + len(block.classes)
        if row != self.state.rows:
            raise OutputError(
                f"{self.folder} was changed: it gives {row} of {self.state.rows} rows; begin again "
                "with --restart (restart=True)"
            )

    def _pieces(
        self, stream: BinaryIO, wanted: bytes
    ) -> Generator[dict[int, list[int]], None, None]:
        """First row -> bytes where its pieces of a kind begin, from commit to commit."""
        found: dict[int, list[int]] = {}
        place = 0
        while place < self._end:
            stream.seek(place)
            head = stream.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return
            kind, y0, *_, first, second = _HEAD.unpack(head)
            if kind == wanted:
                found.setdefault(y0, []).append(place)
            elif kind == _COMMIT:
                yield found
                found = {}
            place += _HEAD.size + first + second + _CRC.size

    def _block(self, stream: BinaryIO, y0: int, places: list[int]) -> Block | None:
        """The rows that pieces make together; None where they do not."""
        block, x1 = None, 0
        for place in places:
            stream.seek(place)
            record = _read_record(stream, self._end - place)
            if record is None:
                return None
            _, rows, x0, columns = record.box
            if block is None:
                shape = rows, self._width
                classes = np.empty(shape, np.uint8)
                block = Block(y0, classes, np.empty(shape, np.uint8) if record.second else None)
            if x0 != x1 or len(block.classes) != rows or x0 + columns > self._width:
                return None
            x1 = x0 + columns
            for content, out in ((record.first, block.classes), (record.second, block.scores)):
                if out is not None:
                    piece = np.frombuffer(zlib.decompress(content), np.uint8)
                    out[:, x0:x1] = piece.reshape(rows, columns)
        return block if x1 == self._width else None

    def discard(self) -> None:
        """Remove it: the output is there, or nothing was done that is worth keeping."""
        discard_journal(self.output)

    def close(self) -> None:
        """Give the lock back; safe to call twice."""
        with contextlib.suppress(OSError):  # a full disk was reported when it was written
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # told in words: no kill
            with contextlib.suppress(OSError):
                os.truncate(self.folder / STARTS_NAME, 0)
        self.close()


def _read_record(stream: BinaryIO, most: int) -> _Record | None:
    """The record that begins here; None where its ``most`` bytes hold no whole one."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, y0, rows, x0, columns, first, second = _HEAD.unpack(head)
    size = _HEAD.size + first + second + _CRC.size
    known = kind in (_PIECE, _COMMIT) or kind.startswith(_PLANE)
    if not known or size > most:
        return None
    content = stream.read(first + second)
    checksum = stream.read(_CRC.size)
    if checksum != _CRC.pack(zlib.crc32(content, zlib.crc32(head))):
        return None
    return _Record(kind, (y0, rows, x0, columns), content[:first], content[first:], size)


def _plane(number: int) -> bytes:
    """Kind of the records that hold the probabilities of a class."""
    return _PLANE + bytes([number])


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
