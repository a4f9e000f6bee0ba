"""What every training run needs besides its loss: folder, precision, learning rate, curves."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import logging
import math
import os
import resource
import socket
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.registry import nearest
from edgekd.contracts.tensors import ImageInput
from edgekd.errors import (
    DivergedError,
    EdgeKDError,
    EnvironmentLacksError,
    InputError,
    OutputError,
)
from edgekd.train.students._base import Segmenter

Result = TypeVar("Result")
#: what to do after a disk was full.
GO_ON = (
    "make room, then go on from the last checkpoint with --resume (or start again with --fresh "
    "where there is none)"
)


def together(work: Callable[[], Result]) -> Result:
    """Do something in every process of a run; where one fails, all end, and the first says why.

    Without this a process that fails alone (a node without the weights, say) is heard of by the
    others as a lost connection. ``work`` must not wait for other processes.

    Raises:
        Exception: of this process; or, in the first process, EdgeKDError with the words of another
            and its place.
        SystemExit: in other processes, with the exit code that the first one ends with.
    """
    result: Result | None = None
    own: Exception | None = None
    try:
        result = work()
    except (EdgeKDError, OSError, RuntimeError, MemoryError) as err:  # a full GPU is among them
        own = err
    if not (distributed.is_available() and distributed.is_initialized()):
        if own is not None:
            raise own
        return result  # type: ignore[return-value]
    code = own.exit_code if isinstance(own, EdgeKDError) else EdgeKDError.exit_code
    said = None if own is None else (code, f"on {socket.gethostname()}: {own or type(own)}")
    found: list[tuple[int, str] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, said)
    failed = [(rank, item) for rank, item in enumerate(found) if item is not None]
    if not failed:
        return result  # type: ignore[return-value]
    rank, (code, text) = failed[0]
    if distributed.get_rank() != 0:
        raise SystemExit(code)
    if own is not None:
        raise own
    error = EdgeKDError(f"process {rank} of {len(found)} {text}")
    error.exit_code = code
    raise error


@contextlib.contextmanager
def quiet_launch() -> Iterator[None]:
    """Without Fabric's banners of each process, and for good without a word on memory layouts that
    DistributedDataParallel says once per process of 1 x 1 convolutions."""
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say which file could not be written, and that nothing of the run is lost.

    Raises:
        OutputError: the disk is full, for example.
    """
    try:
        yield
    except OSError as err:
        raise OutputError(f"{path} cannot be written: {err.strerror or err}; {GO_ON}") from err


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[None]:
    """Hold the folder of a run; two runs in one folder would mix their checkpoints.

    Raises:
        InputError: another process holds it.
        OutputError: the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(
            f"the run's folder {out} cannot be made: {err.strerror}; choose another with -o"
        ) from err
    folder = os.open(out, os.O_RDONLY)  # the folder itself is locked: no file is left behind
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as err:
        raise InputError(
            f"another run works in {out}; wait for it or choose another folder with -o"
        ) from err
    finally:
        os.close(folder)


def make_room(
    out: Path, names: list[str], resumable: str, fresh: bool, look_only: bool = False
) -> None:
    """Refuse a folder that holds a run, or empty it of that run.

    Args:
        out: folder of the run.
        names: files that make a run.
        resumable: the one of them from which a run can go on.
        fresh: the earlier run may be lost.
        look_only: refuse and do no more.

    Raises:
        InputError: a run is in the way and ``fresh`` is False.
    """
    earlier = [name for name in names if (out / name).exists()]
    if earlier and not fresh:
        advice = "add --resume to go on with it, " if resumable in earlier else ""
        raise InputError(
            f"{out} already holds a run ({', '.join(earlier)}); {advice}add --fresh to start anew "
            "in its place, or choose another folder with -o"
        )
    for name in () if look_only else earlier:
        (out / name).unlink()


def fabric_precision(asked: str, accelerator: str, key: str) -> Any:
    """Fabric's name of a precision, refused where the device does not have it.

    Args:
        asked: ``32``, ``bf16`` or ``fp16``.
        accelerator: Fabric's name of the device kind.
        key: of the recipe, for the message.

    Raises:
        EnvironmentLacksError: the device has no such arithmetic.
    """
    if asked == "32":
        return "32-true"
    cuda = accelerator in ("auto", "cuda", "gpu") and torch.cuda.is_available()
    if asked == "bf16":
        capable = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if cuda
            else bool(torch.cpu.get_capabilities().get("avx512_bf16", False))
        )
        if capable:
            return "bf16-mixed"
    elif cuda:
        return "16-mixed"
    device = torch.cuda.get_device_name() if cuda else "this CPU"
    raise EnvironmentLacksError(
        f"{key} is {asked} and {device} has no {asked} arithmetic; set precision: 32"
    )


def check_normalization(model: Segmenter, spec: ImageInput) -> None:
    """Weights that were trained elsewhere work only with the normalisation of that training.

    Raises:
        InputError: the recipe asks for another one.
    """
    asked, trained = (*spec.mean, *spec.std), (*model.mean, *model.std)
    if model.options.get("pretrained") and any(
        abs(a - b) > 0.5 for a, b in zip(asked, trained, strict=True)
    ):
        raise InputError(
            f"io.inputs[0] has mean {spec.mean} and std {spec.std}, but the weights of "
            f"{model.name} were trained with mean {list(model.mean)} and std {list(model.std)}; "
            "write these in the recipe"
        )


def freeze(model: nn.Module, name: str, paths: Sequence[str], key: str) -> None:
    """Take modules out of training, by their paths.

    Raises:
        InputError: ``name`` has no such module; ``key`` is where the recipe says it.
    """
    modules = dict(model.named_modules())
    for path in paths:
        if path not in modules:
            near = nearest(path, sorted(modules))
            raise InputError(f"{key}: {name} has no module '{path}'{near}")
        modules[path].requires_grad_(False)


def hold_statistics(part: nn.Module) -> None:
    """Batch norms of a part keep the statistics that they came with."""
    for module in part.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


#: a loss is of the order of 1; with this one there is nothing left that could be learned
_ABSURD = 1e12


def check_finite(
    losses: Mapping[str, float], norm: Any, step: int, precision: str, section: str = "distill"
) -> None:
    """Stop before NaN or infinity gets into the weights, or a loss of more than 1e12.

    Args:
        losses: of the step.
        norm: of the gradient, or None.
        step: counted from 1.
        precision: with ``fp16`` an infinite gradient is part of finding the scale, and the step is
            left out.
        section: of the recipe, for the message.

    Raises:
        DivergedError: names what became what, and what to change.
    """
    found = {f"the loss {name}".removesuffix(" loss"): item for name, item in losses.items()}
    if norm is not None and precision != "fp16":
        found["the gradient"] = float(norm)
    for name, value in found.items():
        if not math.isfinite(value) or (name != "the gradient" and abs(value) > _ABSURD):
            exact = "" if precision == "32" else f", or set {section}.precision: 32"
            raise DivergedError(
                f"{name} became {value} at step {step}; lower {section}.lr{exact}; curves and log "
                "of the run are kept, and so is its last checkpoint if there was one"
            )


def learning_rate(step: int, steps: int, warmup_fraction: float, decay: str = "cosine") -> float:
    """Factor of the learning rate at ``step`` (from 0): linear warm-up, then ``decay``.

    ``cosine`` ends at 0 with the last step, ``none`` stays at 1.
    """
    warmup = max(1, round(warmup_fraction * steps)) if warmup_fraction else 0
    if step < warmup:
        return (step + 1) / warmup
    if decay == "none":
        return 1.0
    part = (step - warmup) / max(1, steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held so far: of a CUDA device by torch, else resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Curves:
    """Curves of a run: ``curves.csv``, one row per logged step, and TensorBoard beside it.

    The CSV is what a resumed run goes on with: rows behind the checkpoint are cut off, so that
    every step stands there once.

    Args:
        out: folder of the run.
        columns: of the CSV besides ``step``; a value that is absent at a step stays empty.
        after: step of the checkpoint that the run goes on from; 0 for a new run.
    """

    def __init__(self, out: Path, columns: list[str], after: int = 0) -> None:
        from tensorboardX import SummaryWriter

        self._columns = ["step", *columns]
        self._path = path = out / "curves.csv"
        rows = [row for row in read_curves(path) if int(row["step"]) <= after] if after else []
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        with publish_file(path) as part:
            part.write_text(text.getvalue())
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, self._columns, lineterminator="\n")
        self.tensorboard: Any = SummaryWriter(str(out / "tensorboard"), purge_step=after or None)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Append a row; text goes to the CSV only."""
        with writing(self._path):
            self._writer.writerow({"step": step, **values})
            self._file.flush()
        for name, value in values.items():
            if not isinstance(value, str):
                self.tensorboard.add_scalar(name, value, step)

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self.tensorboard.close()


def read_curves(path: Path) -> list[dict[str, str]]:
    """Rows of a ``curves.csv``; a last row that a killed run left incomplete is dropped."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        text = stream.read()
    rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))
    return [row for row in rows if None not in row.values()]
