"""Two processes of one run."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed


def _rank(work: Callable[[int], Any], rank: int, port: int, queue: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    queue.put((rank, work(rank)))
    distributed.destroy_process_group()


def in_two_processes(work: Callable[[int], Any]) -> list[Any]:
    """``work(rank)`` of both ranks at once; a function of a module: new processes import it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(work, rank, port, queue)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    return [value for _, value in sorted((queue.get(), queue.get()), key=lambda item: item[0])]
