"""One thread for the model, and a short queue in front of it.

A model that is asked by many at once is slower for each, and memory grows with the number. So one
thread asks it, few requests wait, and whoever comes then is told at once when to come again. Those
that wait go into the model together: eight places at once take 8 ms each where one takes 12.
"""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from typing import Final

from edgekd.contracts.evidence import Answers, Evidence
from edgekd.contracts.projection import Limits
from edgekd.errors import EdgeKDError
from edgekd.serve.model import PlaceModel

#: said to be waited before the model has ever answered, and at most, s
_FIRST_S, _MOST_S = 1.0, 60.0
#: part of the newest time in the running mean of the model's times
_NEWEST: Final = 0.1
#: what to do about a thread that has ended
_AGAIN: Final = "begin the service again"
#: places of waiting requests that go into the model at once; more gain nothing
TOGETHER: Final = 8


class Busy(Exception):
    """There is no room, or no time; the text is a sentence.

    Attributes:
        retry_after_s: when it is worth while to come again.
    """

    def __init__(self, sentence: str, retry_after_s: float) -> None:
        super().__init__(sentence)
        self.retry_after_s = max(1, math.ceil(min(retry_after_s, _MOST_S)))


@dataclass(frozen=True)
class Answered:
    """What came out, and how long it waited and took (with those beside it), s.

    Attributes:
        first: of those that one call of the model answered.
    """

    answers: Answers
    waited_s: float
    model_s: float
    first: bool


@dataclass(frozen=True)
class _Job:
    places: Sequence[Evidence]
    limits: Sequence[Limits] | None
    future: Future[Answered]
    asked_s: float


class Worker:
    """Asks a model, one call at a time.

    Args:
        model: is asked from one thread alone.
        waiting: requests that there is room for beside one in the model.
        clock: monotonic, s.
    """

    def __init__(
        self, model: PlaceModel, waiting: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._clock = model, clock
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._waiting, self._lock = waiting, threading.Lock()
        self._open, self._depth = True, 0
        self._why_ended = ""
        self._mean_s: float | None = None
        self._since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name="edgekd-model", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Requests in the model and before it."""
        return self._depth

    @property
    def stuck_s(self) -> float:
        """How long the model has been at the present request, s; 0 while it has none."""
        since = self._since_s
        return 0.0 if since is None else self._clock() - since

    @property
    def ended(self) -> str:
        """Why nothing is answered any more; empty while something is, and when it was closed.

        The thread does not begin again by itself: what ended it may have left the model half way.
        """
        if self._why_ended or not self._open or self._thread.is_alive():
            return self._why_ended
        return "the thread of the model has ended, so nothing is answered any more; " + _AGAIN

    def retry_after_s(self) -> float:
        """When the queue will have gone, as far as can be told."""
        mean_s = _FIRST_S if self._mean_s is None else self._mean_s
        return (self._depth + 1) * mean_s

    def submit(
        self, places: Sequence[Evidence], limits: Sequence[Limits] | None
    ) -> Future[Answered]:
        """Queue a request; cancel the future, and it is not begun.

        Raises:
            Busy: the queue is full, or closed.
            EdgeKDError: nothing is answered any more.
        """
        with self._lock:
            if why := self.ended:
                raise EdgeKDError(why)
            if not self._open:
                raise Busy("the service is shutting down; ask another, or again later", 5)
            if self._depth > self._waiting:
                raise Busy(
                    f"{self._depth} requests are in the model or wait for it, which is all there "
                    "is room for; ask again after Retry-After",
                    self.retry_after_s(),
                )
            self._depth += 1
            job = _Job(places, limits, Future(), self._clock())
            self._jobs.put(job)
        return job.future

    def close(self) -> None:
        """Take no more, and come back when what was queued is answered; safe to call twice."""
        with self._lock:
            if self._open:
                self._open = False
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        jobs: list[_Job] = []
        try:
            going = True
            while going:
                going = self._take(jobs)
                # not those whose asker has gone
                self._do([job for job in jobs if job.future.set_running_or_notify_cancel()])
                with self._lock:
                    self._depth -= len(jobs)
                jobs.clear()  # their arrays, while the next are waited for
        except BaseException as err:
            self._end(jobs, err)
            raise  # its trace is for the log

    def _end(self, jobs: list[_Job], err: BaseException) -> None:
        """Tell those in hand, those that wait and those to come that nobody answers them."""
        with self._lock:
            self._why_ended = (
                f"the thread of the model has ended ({type(err).__name__}: {str(err)[:200]}), so "
                f"nothing is answered any more; {_AGAIN}"
            )
            with contextlib.suppress(queue.Empty):
                while True:
                    job = self._jobs.get_nowait()
                    if job is not None:
                        jobs.append(job)
            self._depth = 0
        for job in jobs:
            with contextlib.suppress(InvalidStateError):  # answered, or its asker has gone
                job.future.set_exception(EdgeKDError(self._why_ended))

    def _take(self, jobs: list[_Job]) -> bool:
        """Add what waits, as far as it is worth while in one call; whether more may come."""
        while sum(len(job.places) for job in jobs) < TOGETHER:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                return False
            jobs.append(job)
        return True

    def _do(self, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        limits: list[Limits] | None = []
        for job in jobs:
            limits = None if limits is None or job.limits is None else [*limits, *job.limits]
        if limits is None and len(jobs) > 1:
            return self._each(jobs)
        begun = self._since_s = self._clock()
        try:
            answers = self._model.answer([place for job in jobs for place in job.places], limits)
            parts = _parts(answers, [len(job.places) for job in jobs])
        except BaseException as err:  # noqa: BLE001 - whoever asked gets it
            if len(jobs) > 1:  # it is the fault of one
                return self._each(jobs)
            jobs[0].future.set_exception(err)
            return
        finally:
            self._since_s = None
        took = self._clock() - begun
        each, mean = took / len(jobs), self._mean_s
        self._mean_s = each if mean is None else mean + _NEWEST * (each - mean)
        for job, mine in zip(jobs, parts, strict=True):
            job.future.set_result(Answered(mine, begun - job.asked_s, took, job is jobs[0]))

    def _each(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._do([job])


def _parts(answers: Answers, counts: Sequence[int]) -> list[Answers]:
    """The rows of each request, in their order."""
    found, first = [], 0
    for count in counts:
        part = slice(first, first := first + count)
        found.append(
            Answers(answers.scores[part], answers.before[part], answers.probabilities[part])
        )
    return found
