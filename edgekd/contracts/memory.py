"""Freed memory, given back to the system; a matter of glibc, and nothing elsewhere."""

from __future__ import annotations

import ctypes
import sys

#: M_MMAP_THRESHOLD of ``malloc.h``
_MMAP_THRESHOLD = -3
_LARGE_BYTES = 1 << 20


def give_back_memory() -> None:
    """Return freed memory to the system, between two stages that need different things.

    glibc keeps what was freed for its own next use, in pieces that the next stage may not fit.
    """
    _ask("malloc_trim", 0)


def separate_large_memory() -> None:
    """Give memory of 1 MiB and more back as soon as it is freed, in this whole process.

    glibc raises that limit to 32 MiB by itself as a process goes on, and what it then keeps is in
    pieces between what is in use: finishing a map of 20 000 px a side leaves 30 MB so. For the
    processes that are edgekd's own (``edgekd run``, ``edgekd watch``); in another application the
    environment variable ``MALLOC_MMAP_THRESHOLD_=1048576`` is the same.
    """
    _ask("mallopt", _MMAP_THRESHOLD, _LARGE_BYTES)


def _ask(name: str, *arguments: int) -> None:
    if sys.platform == "linux":
        try:
            getattr(ctypes.CDLL("libc.so.6"), name)(*arguments)
        except (OSError, AttributeError):  # another C library, which has its own habits
            return
