"""Weights of teachers: reading files of several layouts, random ones, and their fingerprint."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekd.contracts.artifacts import read_json
from edgekd.contracts.optional import require
from edgekd.errors import CheckpointError, InputError

#: what torch.load and safetensors raise for files that are cut, of another kind, or hold code.
UNREADABLE = (
    RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError,
    LookupError, ValueError, AttributeError, TypeError, struct.error,
)  # fmt: skip
#: files of a folder in the Hugging Face layout, in the order in which they are looked for.
FOLDER_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: training scripts put the state dict under one of these names.
WRAPPERS = ("model", "state_dict")


def read_state(path: Path, where: str) -> dict[str, Tensor]:
    """Names and tensors of a weights file, or of a folder in the Hugging Face layout.

    Only tensors and plain containers are unpickled. PyTorch files are mapped into memory, so what
    nobody looks at is not read.

    Args:
        path: a ``.safetensors`` file, a PyTorch file (any other suffix), or a folder with one of
            :data:`FOLDER_FILES`; an index names the files of a sharded checkpoint.
        where: where to get the weights, as the end of "...; get them from".

    Raises:
        CheckpointError: missing, damaged, or no state dict.
    """
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; get the weights from {where}, and give their place in the "
            "recipe or with --set teachers.0.weights=FILE"
        )
    if not path.is_dir():
        return _read_file(path)
    for name in FOLDER_FILES:
        file = path / name
        if file.is_file():
            return _read_index(file) if name.endswith(".json") else _read_file(file)
    raise CheckpointError(
        f"{path} holds none of {', '.join(FOLDER_FILES)}; get the weights from {where}"
    )


def _damaged(path: Path, said: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged or holds no weights ({said}); copy it again")


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        state: Any = _read_safetensors(path)
    else:
        try:  # the format of before torch 1.6 is no zip file and cannot be mapped
            state = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
        except UNREADABLE as err:
            raise _damaged(path, type(err).__name__) from err
    for key in WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise _damaged(path, f"a {type(state).__name__} instead of named tensors")
    return {str(key): value for key, value in state.items() if isinstance(value, Tensor)}


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    library = require("safetensors.torch", "train", "read .safetensors files")
    raises = require("safetensors", "train", "read .safetensors files").SafetensorError
    try:
        state: dict[str, Tensor] = library.load_file(path)
    except (*UNREADABLE, raises) as err:
        raise _damaged(path, type(err).__name__) from err
    return state


def _read_index(path: Path) -> dict[str, Tensor]:
    try:
        places: dict[str, str] = dict(read_json(path)["weight_map"])
    except (InputError, LookupError, TypeError, ValueError) as err:
        raise _damaged(path, "no weight_map") from err
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        shard = path.parent / Path(name).name
        if not shard.is_file():
            raise CheckpointError(
                f"{shard} is missing, and {path.name} names it; copy the whole folder again"
            )
        state.update(_read_file(shard))
    return state


def refuse_not_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Raise where a weight is NaN or infinite, which no sound file holds.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                f"{source} is damaged: {name} holds values that are not finite; copy it again"
            )


def state_sha256(state: Mapping[str, Tensor], about: Mapping[str, Any]) -> str:
    """Fingerprint of weights: 64 hexadecimal digits.

    Args:
        state: name -> tensor; names, types, shapes and bytes count, the order does not.
        about: what else decides about features (variant, normalisation); plain values.
    """
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def randomize(module: nn.Module, seed: int) -> None:
    """Fill every parameter with seeded values that keep activations near unit size.

    Matrices and kernels: normal, cut at two deviations, variance 1 / (inputs of a unit). Gains lie
    around 1. Biases and tables of positions are small but not zero, so that a comparison with
    another implementation sees them. The caller's random state is left alone, and the values
    depend on the parameters' names, not on their order.
    """
    for name, value in sorted(module.named_parameters()):
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        last = name.rpartition(".")[2]
        table = "pos" in last  # pos_embed, rel_pos_h, rel_pos_w
        if value.ndim >= 2:
            spread = 0.2 if table else float(value[0].numel()) ** -0.5
            values = torch.randn(value.shape, generator=generator).clamp_(-2, 2) * spread
        else:
            values = torch.randn(value.shape, generator=generator) * 0.05
            values += 1.0 if last == "weight" else 0.0
        with torch.no_grad():
            value.copy_(values)
