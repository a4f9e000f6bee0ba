"""Files that stages hand over: hashes, canonical JSON, and outputs that appear whole or not."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgekd.errors import InputError, OutputError


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of ``data`` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in blocks of 1 MiB, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and two spaces of indent; NaN and infinity are refused."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Parse a UTF-8 JSON file.

    Raises:
        InputError: missing, empty, not text or not JSON; says at which line.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except json.JSONDecodeError as err:
        raise InputError(f"{path} is not JSON: line {err.lineno}: {err.msg}") from err


def read_bytes(path: Path) -> bytes:
    """A file that must exist and hold something.

    Raises:
        InputError: missing, a folder, unreadable, or empty.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as err:
        raise InputError(f"{path} does not exist") from err
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err.strerror}") from err
    if not content.strip():
        raise InputError(f"{path} is empty")
    return content


def read_text(path: Path) -> str:
    """A UTF-8 text file that must exist and hold something; its lines end in ``\\n``.

    Raises:
        InputError: missing, a folder, unreadable, empty, or not UTF-8.
    """
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as err:
        raise InputError(f"{path} is not a UTF-8 text file") from err
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _sibling(path: Path, kind: str = "part") -> Path:
    """A temporary name beside ``path`` that keeps its suffix (drivers look at it)."""
    return path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(3)}.{kind}{path.suffix}")


def prepare_parent(path: Path) -> None:
    """Make the folder that ``path`` goes into.

    Raises:
        OutputError: it cannot be made or written.
    """
    parent = path.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(
            f"the output folder {parent} cannot be made: {err.strerror}; choose another with -o"
        ) from err
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"the output folder {parent} is not writable; choose another with -o or change its "
            "permissions"
        )


@contextlib.contextmanager
def publish_file(path: Path) -> Iterator[Path]:
    """Write a file beside its place and move it there when it is whole.

    Yields a temporary path in the same folder with the same suffix. When the block ends without
    an exception the file is flushed to disk and renamed to ``path`` (atomic on POSIX); otherwise
    it is removed and ``path`` is untouched.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give the name of a file to write")
    prepare_parent(path)
    for item, kind in _leftovers(path):
        if kind == "part" and item.is_file():
            item.unlink(missing_ok=True)
    part = _sibling(path)
    try:
        yield part
        sync(part)
        part.replace(path)
        _sync_names(path.parent)  # what is removed behind it must not be gone before it is there
    except OSError as err:
        if err.filename is not None and Path(err.filename) != part:
            raise  # another file than ours
        raise OutputError(f"{path} cannot be written: {err.strerror or err}") from err
    finally:
        for leftover in part.parent.glob(glob.escape(part.name) + "*"):
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk.

    Raises:
        OSError: the disk is full, or a file system without it.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _sync_names(folder: Path) -> None:
    """:func:`sync` of a folder that holds what is whole already: some file systems cannot."""
    with contextlib.suppress(OSError):
        sync(folder)


def _sweep(path: Path, marker: str) -> None:
    """Clear what killed processes left beside ``path``; give back what one had moved away."""
    for item, kind in _leftovers(path):
        if not item.is_dir():
            continue
        if kind == "moved" and (item / marker).is_file() and not path.exists():
            item.replace(path)
        else:
            shutil.rmtree(item, ignore_errors=True)


def _leftovers(path: Path) -> Iterator[tuple[Path, str]]:
    """(place, ``part`` or ``moved``) of what processes that are gone left of this output."""
    stem, suffix = re.escape(path.stem), re.escape(path.suffix)
    ours = re.compile(rf"\.{stem}\.(\d+)-[0-9a-f]+\.(part|moved){suffix}([.-][a-z.-]+)?")
    for item in list(path.parent.glob(f".{glob.escape(path.stem)}.*-*")):
        found = ours.fullmatch(item.name)
        if found is None or _is_alive(int(found[1])):
            continue
        if found[3] is not None and item.is_dir():
            continue  # of an output with another suffix
        yield item, found[2]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's; no number of a process
        return True
    return True


def _flush(folder: Path) -> None:
    """Bring a folder's files to the disk, so that a power cut after the rename finds them whole."""
    for item in (*(p for p in folder.rglob("*") if p.is_file()), folder):
        sync(item)


def require_folder(path: Path, marker: str) -> None:
    """Raise unless :func:`publish_folder` could fill ``path`` now.

    Raises:
        OutputError: the place is taken by something else or cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path} is a file; give the name of a folder to write")
    if path.is_dir() and any(path.iterdir()) and not (path / marker).is_file():
        raise OutputError(
            f"{path} exists and is not empty and holds no {marker}; choose another folder with -o"
        )
    prepare_parent(path)


@contextlib.contextmanager
def publish_folder(path: Path, marker: str) -> Iterator[Path]:
    """Fill a folder beside its place and move it there when it is whole.

    An existing folder at ``path`` is replaced only if it is empty or holds the file ``marker``
    (so it was made by this product); anything else is left alone.

    Raises:
        OutputError: the place is taken by something else or cannot be written.
    """
    path = Path(path)
    if path.name in ("", ".."):
        path = path.resolve()
    require_folder(path, marker)
    _sweep(path, marker)
    part = _sibling(path)
    old = _sibling(path, "moved")
    try:
        part.mkdir()
        yield part
        _flush(part)
        if path.exists():
            path.replace(old)
        part.replace(path)
        _sync_names(path.parent)  # what is removed behind it must not be gone before it is there
    except OSError as err:
        if err.filename is not None and part not in (name := Path(err.filename), *name.parents):
            raise  # another file than ours
        room = "; make room and run again" if err.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise OutputError(f"{path} cannot be written: {err.strerror or err}{room}") from err
    finally:
        if old.exists() and not path.exists():  # interrupted between the two moves
            old.replace(path)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write canonical JSON so that ``path`` appears whole or not at all."""
    with publish_file(path) as part:
        part.write_text(canonical_json(value), encoding="utf-8")
