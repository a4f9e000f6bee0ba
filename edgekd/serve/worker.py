"""One thread for the model, and a short queue in front of it.

A model that is asked by many at once is slower for each, and memory grows with the number. So one
thread asks it, few requests wait, and whoever comes then is told at once when to come again. Those
that wait go into the model together: eight places at once take 8 ms each where one takes 12.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final

from edgekd.contracts.evidence import Answers, Evidence
from edgekd.contracts.projection import Limits
from edgekd.serve.model import PlaceModel

#: said to be waited before the model has ever answered, and at most, s
_FIRST_S, _MOST_S = 1.0, 60.0
#: part of the newest time in the running mean of the model's times
_NEWEST: Final = 0.1
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
        """
        with self._lock:
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
        going = True
        while going:
            jobs, going = self._take()
            try:
                # not those whose asker has gone
                self._do([job for job in jobs if job.future.set_running_or_notify_cancel()])
            finally:
                with self._lock:
                    self._depth -= len(jobs)
            del jobs  # their arrays, while the next are waited for

    def _take(self) -> tuple[list[_Job], bool]:
        """What waits, as far as it is worth while in one call, and whether more may come."""
        jobs: list[_Job] = []
        while sum(len(job.places) for job in jobs) < TOGETHER:
            try:
                job = self._jobs.get(block=not jobs)
            except queue.Empty:
                break
            if job is None:
                return jobs, False
            jobs.append(job)
        return jobs, True

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
        first = 0
        for job in jobs:
            part = slice(first, first := first + len(job.places))
            mine = Answers(answers.scores[part], answers.before[part], answers.probabilities[part])
            job.future.set_result(Answered(mine, begun - job.asked_s, took, job is jobs[0]))

    def _each(self, jobs: Sequence[_Job]) -> None:
        for job in jobs:
            self._do([job])
