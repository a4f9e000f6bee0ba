"""Stages that overlap: a generator runs ahead of its consumer in a thread of its own."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(source: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield what ``source`` yields, in order, computed up to ``depth`` items in advance.

    The source runs in one thread, so its order and its results are those of a plain loop. What it
    raises is raised here, at the item where it was raised. When the consumer stops early the
    source is closed after the step it is in; no thread outlives this generator.

    Args:
        source: closed at the end in any case.
        depth: bounds the memory of items that wait; 0 is a plain loop without a thread.
    """
    if depth == 0:
        with contextlib.closing(source):
            yield from source
        return
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekd")
    waiting: deque[Future[list[T]]] = deque()

    def step() -> list[T]:
        for item in source:
            return [item]
        return []

    try:
        for _ in range(depth):
            waiting.append(pool.submit(step))
        while item := waiting.popleft().result():
            waiting.append(pool.submit(step))
            yield item[0]
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)
        with contextlib.suppress(Exception):  # a second error of a source that is given up
            source.close()
