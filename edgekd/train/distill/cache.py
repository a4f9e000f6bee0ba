"""Teacher features on disk: found by content, bounded, verified.

One file per entry, ``ab/<key>.feat``, written beside its place and renamed, so that an entry is
whole or absent whatever stops the process. Files rather than a database: entries are megabytes,
a file is dropped without compaction, its space is its size, and reading takes no lock. Writing
does: a lock of the operating system on ``.lock``, which a killed process gives back, so that all
processes together keep the bound. ``.used`` holds the space taken, raised before an entry is
written: a process killed in between leaves a number that is too large, never one that is too
small, and the folder is measured again when the number says that it is full.

**What goes when it is full.** Entries not used since this cache was opened, the longest unused
first. What this run wrote or read stays, and further entries are declined: training walks through
its pool of crops in the same order again and again, and giving up the longest unused entry then
gives up the one that is needed next. (A pool a quarter larger than the cache would find nothing at
all; this way it finds four fifths.)

**Precision.** float16, or float32 for a tensor with a value that float16 cannot hold. float16 is
within 2**-11 of a value, relative, from 2**-14 up, and within 2**-25, absolute, below.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgekd.contracts.artifacts import publish_file, read_json, write_json
from edgekd.errors import InputError, OutputError

FORMAT = 1
_SUFFIX = ".feat"
_BLOCK = 4096  # bytes; files take whole blocks of a disk
_DIGEST = 32


class FeatureCache:
    """Features by key, in a folder that several processes may share.

    Args:
        folder: made if it does not exist; empty, or of an earlier cache.
        limit_mib: most space that the entries of all processes take together, MiB, at least 1,
            while they are written too; in whole blocks of 4 KiB, without the folders themselves.

    Raises:
        InputError: ``limit_mib`` is below 1, or the folder holds something else or entries of
            another format.
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, limit_mib: int) -> None:
        if limit_mib < 1:
            raise InputError(f"a feature cache of {limit_mib} MiB holds nothing; give at least 1")
        self._folder = Path(folder)
        self._limit = limit_mib << 20
        self._counts = {"hits": 0, "misses": 0, "rejected": 0, "declined": 0, "evicted": 0}
        self._full: int | None = None  # what .used said when nothing could give way
        with self._failing():
            self._folder.mkdir(parents=True, exist_ok=True)
            self._check_format()
            with self._locked():
                self._since = time.time_ns()
                self._bytes = self._measure(self._limit)

    @property
    def stats(self) -> dict[str, int]:
        """What happened since this cache was opened in this process.

        ``hits`` and ``misses`` of :meth:`get`; ``rejected``: misses whose entry was damaged;
        ``declined``: features not stored; ``evicted``: entries removed for room; ``bytes``: space
        that the entries of all processes took when this one last wrote.
        """
        return {**self._counts, "bytes": self._bytes}

    @staticmethod
    def key(teacher_sha256: str, taps: Sequence[int], pixels: Tensor | npt.NDArray[Any]) -> str:
        """What decides the features, as 64 hexadecimal digits.

        Args:
            teacher_sha256: identity of the teacher, with all that changes its features.
            taps: its blocks or stages, in the order of the features.
            pixels: of one crop, before normalisation; shape and type count too.
        """
        values = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
        about = [teacher_sha256, [int(tap) for tap in taps], list(values.shape), str(values.dtype)]
        digest = hashlib.sha256(json.dumps(about).encode() + b"\n")
        digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def get(self, key: str) -> list[Tensor] | None:
        """The features stored under ``key``, float32; None if there are none or they are damaged.

        A damaged entry is removed and counted, so that the next :meth:`put` replaces it.
        """
        path = self._path(key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            self._counts["misses"] += 1
            return None
        except OSError:
            data = b""
        seal, body = data[:_DIGEST], memoryview(data)[_DIGEST:]
        if seal != _seal(key, body):
            with contextlib.suppress(OSError):
                path.unlink()
            self._counts["misses"] += 1
            self._counts["rejected"] += 1
            self._full = None
            return None
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours: the features are good
            os.utime(path, ns=(time.time_ns(),) * 2)
        self._counts["hits"] += 1
        return [torch.from_numpy(array.copy()).float() for array in _unpack(body)]

    def put(self, key: str, features: Sequence[Tensor]) -> None:
        """Store features, unless they are stored, there is no room, or a value is not finite.

        Raises:
            OutputError: the folder cannot be written, or the disk is full.
        """
        if not all(bool(_extremes(item).isfinite().all()) for item in features):
            self._counts["declined"] += 1
            return
        body = _pack([_reduced(item).numpy() for item in features])
        path, size = self._path(key), _space(_DIGEST + len(body))
        with self._failing(), self._locked():
            if path.exists():  # another process was first
                return
            used = self._used()
            if used is None or (used + size > self._limit and used != self._full):
                used = self._measure(self._limit - size)
            self._bytes = used
            if used + size > self._limit:
                self._full = used
                self._counts["declined"] += 1
                return
            self._bytes += size
            self._write_used(self._bytes)
            with publish_file(path) as part:
                part.write_bytes(_seal(key, body) + body)
                os.utime(part, ns=(time.time_ns(),) * 2)

    @staticmethod
    def as_stored(features: Sequence[Tensor]) -> list[Tensor]:
        """What :meth:`get` would give for ``features``, float32 on the CPU.

        Learning from this on a miss makes a run independent of what the cache held.
        """
        return [_reduced(item).float().clone() for item in features]

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}{_SUFFIX}"

    def _check_format(self) -> None:
        path = self._folder / "format.json"
        filled = any(item.name[0] != "." for item in self._folder.iterdir())
        if path.is_file():
            found = read_json(path)
            if found != {"edgekd_features": FORMAT}:
                raise InputError(
                    f"{self._folder} holds teacher features of another version ({found}, this one "
                    f"writes {FORMAT}); remove the folder, they will be computed again"
                )
        elif filled:
            raise InputError(
                f"{self._folder} is not empty and holds no feature cache; choose another folder"
            )
        else:
            write_json(path, {"edgekd_features": FORMAT})

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # Opened anew each time: a lock belongs to the open file, which forked processes share.
        with (self._folder / ".lock").open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, OutputError) as err:
            cause = err.strerror if isinstance(err, OSError) else str(err)
            raise OutputError(
                f"the feature cache {self._folder} cannot be written: {cause}; make room, or set "
                "distill.cache.mib lower, or to 0 to do without"
            ) from err

    def _used(self) -> int | None:
        try:
            return int((self._folder / ".used").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return None

    def _write_used(self, used: int) -> None:
        (self._folder / ".used").write_text(str(used), encoding="ascii")

    def _measure(self, most: int) -> int:
        """Space that entries take, after those unused since the start gave way down to ``most``.

        Called with the lock, so that a part of a file is what a killed process left.
        """
        found = []
        for folder in os.scandir(self._folder):
            for item in os.scandir(folder) if folder.is_dir() else ():
                if item.name.startswith("."):
                    Path(item).unlink(missing_ok=True)
                    continue
                with contextlib.suppress(FileNotFoundError):  # a reader found it damaged
                    state = item.stat()
                    found.append((state.st_mtime_ns, _space(state.st_size), item.path))
        used = sum(size for _, size, _ in found)
        for moment, size, path in sorted(found):
            if used <= most or moment >= self._since:
                break
            Path(path).unlink(missing_ok=True)
            self._counts["evicted"] += 1
            used -= size
        self._write_used(used)
        return used


def _space(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _seal(key: str, body: bytes | memoryview) -> bytes:
    """SHA-256 over key and body: an entry under another name is damaged, too."""
    digest = hashlib.sha256(key.encode())
    digest.update(body)
    return digest.digest()


def _extremes(feature: Tensor) -> Tensor:
    """Smallest and largest value, float32; NaN if there is any."""
    return torch.stack(feature.detach().float().aminmax())


def _reduced(feature: Tensor) -> Tensor:
    overflows = bool(_extremes(feature).half().isinf().any())
    kind = torch.float32 if overflows else torch.float16
    return feature.detach().to("cpu", torch.float32).to(kind).contiguous()


def _pack(arrays: Sequence[npt.NDArray[Any]]) -> bytes:
    header = json.dumps([[array.dtype.str, list(array.shape)] for array in arrays]).encode()
    parts = [len(header).to_bytes(4, "little"), header, *(array.tobytes() for array in arrays)]
    return b"".join(parts)


def _unpack(body: memoryview) -> list[npt.NDArray[Any]]:
    start = 4 + int.from_bytes(body[:4], "little")
    arrays = []
    for kind, shape in json.loads(bytes(body[4:start])):
        array = np.frombuffer(body, np.dtype(kind), int(np.prod(shape)), start).reshape(shape)
        arrays.append(array)
        start += array.nbytes
    return arrays
