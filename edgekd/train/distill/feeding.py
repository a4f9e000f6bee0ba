"""Which crops a process prepares, and how their errors come out of the workers."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from edgekd.errors import EdgeKDError


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


def next_batch(batches: Iterator[Any]) -> Any:
    """The next batch; an error of ours in a worker comes as the one sentence that it was."""
    try:
        return next(batches)
    except EdgeKDError as err:
        text = str(err).strip()
        if "Original Traceback" not in text:
            raise
        sentence = text.splitlines()[-1].partition(": ")[2]
        raise type(err)(sentence or text.splitlines()[-1]) from err


class BrokenFiles:
    """Files that turned out broken during a run, known to all its processes and workers.

    Args:
        path: text file that holds them, a JSON list ``[path, why]`` per line.
        before: those that were found when the images were opened.
    """

    def __init__(self, path: Path, before: list[tuple[Path, str]]) -> None:
        self._path, self._before = path, list(before)

    def __call__(self, path: Path, why: str) -> list[tuple[Path, str]]:
        """Keep one more, once; returns all."""
        with self._path.open("a+", encoding="utf-8") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)  # given up when the file is closed
            stream.seek(0)
            known = [json.loads(line) for line in stream]
            if all(str(path) != other for other, _ in known):
                known.append([str(path), why])
                stream.write(json.dumps(known[-1]) + "\n")
        return [*self._before, *((Path(name), text) for name, text in known)]

    def since(self, count: int) -> list[str]:
        """What is wrong with those that came after the first ``count``."""
        if not self._path.is_file():
            return []
        lines = self._path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line)[1] for line in lines[count:]]
