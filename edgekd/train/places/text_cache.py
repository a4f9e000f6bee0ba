"""Embeddings on disk, by encoder and text.

One SQLite file, since it is what survives a kill between two writes and takes several processes;
every entry carries a checksum of its own, since SQLite has none over what it stores.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from edgekd.contracts.artifacts import prepare_parent
from edgekd.contracts.texts import UNIT, Float32
from edgekd.errors import OutputError

FILE: Final = "embeddings.sqlite"
#: beside it, of a process that was killed while it wrote
_BESIDE: Final = ("-journal", "-wal", "-shm")
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, value BLOB, seal BLOB)"
)
_WAIT_S: Final = 60.0


class EmbeddingCache:
    """Embeddings of one encoder in a folder that several processes and encoders may share.

    Args:
        folder: made if it does not exist.
        encoder_sha256: identity of the encoder.
        width: of its embeddings.
        say: gets a line for what was damaged.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(
        self, folder: Path, encoder_sha256: str, width: int, say: Callable[[str], None]
    ) -> None:
        self._path, self._encoder = Path(folder) / FILE, encoder_sha256
        self._width, self._say = width, say
        prepare_parent(self._path)
        self._base = self._open()

    def _open(self) -> sqlite3.Connection:
        with self._failing():
            try:
                return self._connect()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as err:  # no database, or a damaged one
                return self._afresh(err)

    def _connect(self) -> sqlite3.Connection:
        base = sqlite3.connect(self._path, timeout=_WAIT_S)
        try:
            with base:
                base.execute(_TABLE)
        except sqlite3.Error:
            base.close()
            raise
        return base

    def _afresh(self, err: sqlite3.Error) -> sqlite3.Connection:
        self._say(f"{self._path} is damaged ({err}); embeddings are made again")
        for end in ("", *_BESIDE):
            self._path.with_name(FILE + end).unlink(missing_ok=True)
        return self._connect()

    def get(self, texts: Sequence[str]) -> dict[str, Float32]:
        """Text -> embedding ``(width,)``, of those that are there and whole."""
        found: dict[str, Float32] = {}
        damaged = 0
        with self._failing():
            try:
                for text in texts:
                    key = self._key(text)
                    row = self._base.execute(
                        "SELECT value, seal FROM embeddings WHERE key = ?", (key,)
                    ).fetchone()
                    if row is None:
                        continue
                    value = self._whole(key, *row)
                    if value is None:
                        damaged += 1
                    else:
                        found[text] = value
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as err:
                self._base.close()
                self._base = self._afresh(err)
                found = {}
        if damaged:
            self._say(f"{damaged} embeddings in {self._path} are damaged and made again")
        return found

    def put(self, embeddings: Mapping[str, Float32]) -> None:
        """Store embeddings; on the disk when this returns.

        Raises:
            OutputError: the disk is full, or the file cannot be written.
        """
        rows = []
        for text, value in embeddings.items():
            key, content = self._key(text), value.astype("<f4").tobytes()
            rows.append((key, content, _seal(key, content)))
        with self._failing(), self._base:
            self._base.executemany("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)", rows)

    def close(self) -> None:
        """Give the file back."""
        self._base.close()

    def _key(self, text: str) -> bytes:
        return hashlib.sha256(f"{self._encoder}\n{text}".encode()).digest()

    def _whole(self, key: bytes, content: object, seal: object) -> Float32 | None:
        if not isinstance(content, bytes) or seal != _seal(key, content):
            return None
        value = np.frombuffer(content, "<f4").astype(np.float32)
        unit = value.shape == (self._width,) and abs(float(np.linalg.norm(value)) - 1) <= UNIT
        return value if unit else None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as err:
            raise OutputError(
                f"the cache of embeddings {self._path} cannot be used: {err}; make room, or remove "
                "the file: embeddings are made again"
            ) from err


def _seal(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(key + content).digest()
