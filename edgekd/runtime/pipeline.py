"""Stages that overlap: a generator that runs ahead of its consumer, items worked on at once."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(source: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """Yield what ``source`` yields, in order, computed up to ``depth`` items in advance.

    The source runs in one thread, so its order and its results are those of a plain loop. What it
    raises is raised here, at the item where it was raised. When the consumer stops early the
    source is closed after the step it is in; no thread outlives this generator.

    Args:
        source: closed at the end in any case.
        depth: bounds the memory of items that wait, at least 1.
    """
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


def spread(
    source: Generator[T, None, None], work: Callable[[T], R], workers: int
) -> Generator[R, None, None]:
    """Yield ``work(item)`` for every item of ``source``, in order, several at once.

    At most ``workers + 1`` items are taken and not yet yielded, so that a worker that is done finds
    its next item while the consumer is busy. The source is drawn from in the consumer's thread.
    What ``work`` raises is raised here, at its item; no thread outlives this generator.

    Args:
        source: closed at the end in any case.
        work: called in ``workers`` threads; one thread calls it in order.
        workers: at least 1.
    """
    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="edgekd")
    waiting: deque[Future[R]] = deque()
    try:
        for item in source:
            waiting.append(pool.submit(work, item))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        pool.shutdown(wait=True)
        with contextlib.suppress(Exception):  # a second error of a source that is given up
            source.close()
