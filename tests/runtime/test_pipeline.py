"""Stages that run ahead: same order, same errors, nothing left behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from edgekd.runtime.pipeline import ahead, spread


def counting(count: int, made: list[int]) -> Generator[int, None, None]:
    for number in range(count):
        made.append(number)
        yield number


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_order_and_number(count: int, depth: int) -> None:
    assert list(ahead(counting(count, []), depth)) == list(range(count))


def test_runs_ahead_but_not_further_than_asked() -> None:
    made: list[int] = []
    stage = ahead(counting(100, made), 3)
    assert next(stage) == 0
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one taken, three wait
    stage.close()


def test_an_error_comes_at_its_place_with_its_own_class() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise KeyError("third")

    stage = ahead(failing(), 2)
    assert [next(stage), next(stage)] == [1, 2]
    with pytest.raises(KeyError, match="third"):
        next(stage)


def test_stopping_early_closes_the_source_and_ends_the_thread() -> None:
    closed: list[bool] = []
    before = threading.active_count()

    def source() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    stage = ahead(source(), 2)
    next(stage)
    stage.close()
    assert closed == [True]
    assert threading.active_count() == before


def test_stages_chain_and_an_error_of_the_first_reaches_the_end() -> None:
    before = threading.active_count()

    def first() -> Generator[int, None, None]:
        yield 1
        raise ValueError("first stage")

    def second() -> Generator[int, None, None]:
        for item in ahead(first(), 2):
            yield item * 10

    stage = ahead(second(), 2)
    assert next(stage) == 10
    with pytest.raises(ValueError, match="first stage"):
        next(stage)
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_spread_keeps_order_and_works_at_once(count: int, workers: int) -> None:
    inside, most = 0, 0
    lock = threading.Lock()

    def slow_first(item: int) -> int:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.004 if item % workers == 0 else 0.001)
        with lock:
            inside -= 1
        return 10 * item

    found = list(spread(counting(count, []), slow_first, workers))
    assert found == [10 * number for number in range(count)]
    assert most <= workers
    if count == 50:
        assert most == workers


def test_spread_takes_one_item_more_than_it_has_workers() -> None:
    made: list[int] = []
    stage = spread(counting(100, made), lambda item: item, 3)
    assert next(stage) == 0
    assert made == [0, 1, 2, 3]
    stage.close()


def test_an_error_in_a_worker_comes_at_its_item_and_nothing_is_left() -> None:
    before = threading.active_count()
    closed: list[bool] = []

    def source() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.append(True)

    def work(item: int) -> int:
        if item == 2:
            raise KeyError("third")
        return item

    stage = spread(source(), work, 2)
    assert [next(stage), next(stage)] == [0, 1]
    with pytest.raises(KeyError, match="third"):
        next(stage)
    assert closed == [True]
    assert threading.active_count() == before
