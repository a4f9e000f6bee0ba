"""Trainings of candidates in processes of their own, one core each.

The number of threads changes the last bits of a sum, and with it a training; so each has one,
whatever the number of processes. A training's result depends on its job alone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_labelled import camera_view
from edgekd.contracts.sensor_set import SensorSet, open_sensor_set
from edgekd.errors import DivergedError, EdgeKDError, EnvironmentLacksError
from edgekd.train.search.journal import Job, Outcome
from edgekd.train.search.space import Space

FOLDER = "candidates"


@dataclass(frozen=True)
class Setting:
    """What all trainings of a search share.

    Attributes:
        recipe: with ``search``.
        data_path: the sensor set.
        weights: file of each teacher.
        out: folder of the search; trainings work below ``candidates/`` and leave nothing there.
        accelerator: kind of device.
    """

    recipe: Recipe
    data_path: Path
    weights: tuple[str, ...]
    out: Path
    accelerator: str


class Trainer(Protocol):
    """Does trainings, in any order."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """Each job with what came of it, as they are done."""


def train_and_judge(setting: Setting, data: SensorSet, job: Job, stop: Any = None) -> Outcome:
    """One training, and the student's balanced accuracy on the validation part.

    Args:
        setting: of the search.
        data: the open set.
        job: what to train.
        stop: an event that ends the training early.
    """
    from edgekd.train.checkpoint import load_checkpoint, rebuild
    from edgekd.train.distill.chain import distill_chain
    from edgekd.train.evaluate import evaluate_model

    def progress(step: int, steps: int, text: str) -> None:
        del step, steps, text
        if stop is not None and stop.is_set():
            raise KeyboardInterrupt

    begin = time.perf_counter()
    recipe = Space(setting.recipe).recipe(job.values, job.seed, setting.weights)
    folder = setting.out / FOLDER / sha256_bytes(repr(job.name).encode())[:16]
    try:
        result = distill_chain(
            recipe, setting.out, setting.data_path, folder, fresh=True,
            accelerator=setting.accelerator, progress=progress, data=data,
        )  # fmt: skip
        student = rebuild(load_checkpoint(result.path), str(result.path))
        found = evaluate_model(student, camera_view(data), "val", recipe.io, recipe.tiling)
        return Outcome(float(found["balanced_accuracy"]), time.perf_counter() - begin)
    except DivergedError as err:
        return Outcome(None, time.perf_counter() - begin, str(err))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_state: dict[str, Any] = {}


def _begin(setting: Setting, stop: Any) -> None:
    """Of a process that trains."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it and sets the event
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _state.update(setting=setting, stop=stop)


def _end_with_parent() -> None:
    """A process that outlived a killed search would train on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> Outcome | tuple[int, str]:
    """Do a job; an error goes back as (exit code, text), for not every error can be pickled."""
    try:
        setting: Setting = _state["setting"]
        if "data" not in _state:
            _state["data"] = open_sensor_set(setting.recipe, setting.data_path)
        return train_and_judge(setting, _state["data"], job, _state["stop"])
    except EdgeKDError as err:
        return err.exit_code, str(err)


class Workers:
    """Trainings in ``count`` processes at once; a context manager.

    Args:
        setting: of the search.
        count: of processes.
    """

    def __init__(self, setting: Setting, count: int) -> None:
        context = multiprocessing.get_context("spawn")  # torch does not survive a fork
        self._stop = context.Event()
        self._pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(setting, self._stop)
        )

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        """See :meth:`Trainer.run`.

        Raises:
            EdgeKDError: what a training met.
            EnvironmentLacksError: a process was killed.
        """
        waiting: dict[Future[Outcome | tuple[int, str]], Job] = {}
        try:
            for job in jobs:
                waiting[self._pool.submit(_work, job)] = job
            for done in as_completed(waiting):
                found = done.result()
                if not isinstance(found, Outcome):
                    error = EdgeKDError(f"training {waiting[done].name[0]}: {found[1]}")
                    error.exit_code = found[0]
                    raise error
                yield waiting[done], found
        except BrokenProcessPool as err:
            raise EnvironmentLacksError(
                "a process that trained was killed, which is what happens when memory runs out; "
                "give fewer --workers, and go on with --resume"
            ) from err

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            with contextlib.suppress(OSError):
                self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
