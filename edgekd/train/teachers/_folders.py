"""Folders of ``transformers``: what ``save_pretrained`` writes, read without network and code."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgekd.contracts.optional import require
from edgekd.errors import CheckpointError
from edgekd.train.teachers._weights import UNREADABLE

SEED = 0
#: of a configuration, what says who wrote it and not what the model is
_NO_SETTING = ("transformers_version", "torch_dtype", "dtype")


@contextlib.contextmanager
def _quiet(why: str) -> Iterator[None]:
    """Without the bars and the table of missing keys that transformers shows; ``report`` has it."""
    shown = require("transformers.utils.logging", "train", why)
    logger = logging.getLogger("transformers")
    level, bars = logger.level, shown.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    shown.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            shown.enable_progress_bar()


def load(
    folder: Path, report: list[str], who: str, **options: Any
) -> tuple[Any, dict[str, Tensor]]:
    """The model of a folder in float32, and the tensors of it that the folder lacks.

    Whether anything needs what is missing is for :func:`needed_by` to see; what is superfluous is
    counted in ``report``.

    Args:
        folder: ``config.json`` and the weights.
        report: gets lines on what was left out.
        who: reads it, for messages.
        options: for ``from_pretrained``.

    Raises:
        CheckpointError: the folder is incomplete, damaged, or of another size than its config.
        EnvironmentLacksError: transformers is not installed.
    """
    why = f"read the folder of {who}"
    library = require("transformers", "train", why)
    raises = require("safetensors", "train", "read .safetensors files").SafetensorError
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} holds no config.json; give the folder of a model as save_pretrained writes "
            "it (config.json and model.safetensors)"
        )
    try:
        with _quiet(why), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model, found = library.AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **options,
            )
    except (*UNREADABLE, raises, ImportError) as err:
        said = " ".join(str(err).split())[:240] or type(err).__name__
        raise CheckpointError(
            f"{folder} is damaged or no model that transformers reads; copy it again ({said})"
        ) from err
    model = model.float().eval()
    state = model.state_dict()
    missing = {name: state[name] for name in sorted(found["missing_keys"]) if name in state}
    missing = {name: value for name, value in missing.items() if value.is_floating_point()}
    if unexpected := sorted(found["unexpected_keys"]):
        parts = ", ".join(sorted({name.split(".")[0] for name in unexpected}))
        report.append(f"{len(unexpected)} tensors left out, no part of the encoder ({parts})")
    return model, missing


def needed_by(missing: Mapping[str, Tensor], run: Callable[[], Sequence[Tensor]]) -> set[int]:
    """Positions in what ``run`` gives that depend on tensors; afterwards those are 0.

    Two runs with different random values in those places must give the same bits. (NaN would not
    show: PyTorch's fused attention turns a row of NaN into numbers.)
    """
    generator = torch.Generator().manual_seed(SEED)
    runs = []
    for _ in range(2):
        for value in missing.values():
            value.copy_(torch.randn(value.shape, generator=generator))
        with torch.no_grad():
            runs.append(run())
    for value in missing.values():
        value.zero_()
    pairs = zip(*runs, strict=True)
    return {number for number, (one, other) in enumerate(pairs) if not torch.equal(one, other)}


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration says what the model computes."""
    return {k: v for k, v in config.items() if not k.startswith("_") and k not in _NO_SETTING}
