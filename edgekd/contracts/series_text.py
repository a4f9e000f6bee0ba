"""Text of sensors, bounded: lines of a file or a gzip file, numbers and times in them."""

from __future__ import annotations

import contextlib
import gzip
import math
import re
import zlib
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.contracts.series import Times
from edgekd.contracts.station import read_json_bytes
from edgekd.errors import InputError

MOST_BYTES = 200_000_000
_MOST_LINE = 10_000
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?", re.ASCII)


def read_value(path: Path, place: str, word: str, what: str, gaps: set[str]) -> float:
    """A finite number, or NaN for one of the words in ``gaps``; no "nan", "inf" or "1_000".

    Raises:
        InputError: anything else.
    """
    if word in gaps:
        return math.nan
    if _NUMBER.fullmatch(word):
        value = float(word)
        if math.isfinite(value):
            return value
    raise InputError(
        f"{path}: {place} has '{word[:40]}' for {what}, expected a number"
        f"{' or MM' if 'MM' in gaps else ', or nothing for a gap'}"
    )


def read_times(path: Path, stamps: list[str], places: list[str]) -> Times:
    """Times of texts; goes through them one by one only to find a wrong one.

    Raises:
        InputError: one is no time of a calendar; says where.
    """
    if all(map(_TIME.fullmatch, stamps)):
        with contextlib.suppress(ValueError):
            return np.array(stamps, dtype="datetime64[s]")
    for stamp, place in zip(stamps, places, strict=True):
        try:
            if not _TIME.fullmatch(stamp):
                raise ValueError
            np.array([stamp], dtype="datetime64[s]")
        except ValueError as err:
            raise InputError(
                f"{path}: {place} has the time '{stamp[:40]}', expected one such as "
                "2015-01-31 23:54"
            ) from err
    raise AssertionError("numpy refused times together that it takes one by one")


def _open(path: Path) -> Any:
    """The file's bytes, unpacked where it is gzip, whatever its name."""
    try:
        stream = path.open("rb")
        with contextlib.ExitStack() as keep:
            keep.callback(stream.close)
            packed = stream.read(2) == b"\x1f\x8b"
            stream.seek(0)
            keep.pop_all()
    except FileNotFoundError as err:
        raise InputError(f"{path} does not exist") from err
    except OSError as err:
        raise InputError(f"{path} cannot be read: {err.strerror}") from err
    return gzip.GzipFile(fileobj=stream, mode="rb") if packed else stream


def _too_large(path: Path) -> InputError:
    return InputError(
        f"{path} holds more than {MOST_BYTES:,} bytes, expected a year or so of one station; "
        "split it"
    )


def _read(path: Path, stream: Any, most: int, line: bool) -> bytes:
    try:
        return bytes(stream.readline(most) if line else stream.read(most))
    except (OSError, EOFError, zlib.error) as err:
        raise InputError(f"{path} cannot be unpacked: {err}; fetch it again") from err


def head(path: Path) -> bytes:
    """The first bytes, unpacked, without spaces and byte order mark."""
    with _open(path) as stream:
        return _read(path, stream, 256, False).removeprefix(b"\xef\xbb\xbf").lstrip()


def whole_json(path: Path) -> bytes:
    """All bytes, unpacked, of a file that is not too large for JSON."""
    with _open(path) as stream:
        if not isinstance(stream, gzip.GzipFile):
            return read_json_bytes(path)
        raw = _read(path, stream, MOST_BYTES // 4 + 1, False)
    if len(raw) > MOST_BYTES // 4:
        raise _too_large(path)
    return raw


def read_lines(path: Path) -> Generator[str, None, None]:
    """Lines of text, bounded in length and number however far a gzip file unfolds."""
    total = 0
    with _open(path) as stream:
        while raw := _read(path, stream, _MOST_LINE + 1, True):
            total += len(raw)
            if total > MOST_BYTES:
                raise _too_large(path)
            if total == len(raw):
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as err:
                raise InputError(f"{path} is no text, expected CSV or columns of text") from err
            if len(raw) > _MOST_LINE or "\x00" in text:
                raise InputError(f"{path} is no text of lines, expected CSV or columns of text")
            yield text
