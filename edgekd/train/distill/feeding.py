"""Which crops a process prepares, and how their errors come out of the workers."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import Sampler

from edgekd.errors import EdgeKDError
from edgekd.train.datasets.unlabeled import Crop


class Numbers(Sampler[int]):
    """Numbers of the crops that this process prepares, from step ``first`` on."""

    def __init__(self, first: int, steps: int, parts: int, rank: int, world: int, batch: int):
        self._steps, self._parts = range(first, steps), parts
        self._rank, self._world, self._batch = rank, world, batch

    def __iter__(self) -> Iterator[int]:
        for step in self._steps:
            for part in range(self._parts):
                start = ((step * self._parts + part) * self._world + self._rank) * self._batch
                yield from range(start, start + self._batch)

    def __len__(self) -> int:
        return len(self._steps) * self._parts * self._batch


def next_batch(batches: Iterator[Crop]) -> Crop:
    """The next batch; an error of ours in a worker comes as the one sentence that it was."""
    try:
        return next(batches)
    except EdgeKDError as err:
        text = str(err).strip()
        if "Original Traceback" not in text:
            raise
        sentence = text.splitlines()[-1].partition(": ")[2]
        raise type(err)(sentence or text.splitlines()[-1]) from err
