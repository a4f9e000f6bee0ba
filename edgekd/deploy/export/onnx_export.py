"""Export of a student to ONNX with the operators that every TensorRT from 8.6 on can read.

Opset 17: LayerNormalization as one operator, GELU as Erf, no ``Attention`` or ``Gelu`` operator
(TensorRT 8.6 and 10.3 do not know them), free batch dimension, fixed tile side.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.optional import require
from edgekd.contracts.recipe import Recipe
from edgekd.deploy.parity import FloatArray, TileModel
from edgekd.errors import InputError
from edgekd.train.students._base import Segmenter


@dataclass(frozen=True)
class OnnxModel:
    """An exported model.

    Attributes:
        path: the file.
        input_name, output_name: tensor names.
        tile_px, stride_px: geometry.
        operators: count per operator type.
    """

    path: Path
    input_name: str
    output_name: str
    tile_px: int
    stride_px: int
    operators: dict[str, int]


def torch_model(model: Segmenter) -> TileModel:
    """The student as a function of NumPy arrays, for parity."""

    @torch.inference_mode()
    def run(tensor: FloatArray) -> FloatArray:
        result: FloatArray = model(torch.from_numpy(tensor)).numpy()
        return result

    return run


def export_onnx(model: Segmenter, recipe: Recipe, path: Path) -> OnnxModel:
    """Write a student as ONNX; the file appears when it is whole and has passed the checks.

    Two exports of the same weights give the same bytes.

    Args:
        model: in evaluation mode, on the CPU.
        recipe: names, tile and classes.
        path: the ``.onnx`` file to write.

    Raises:
        InputError: the tile does not fit the student, or the name is no ``.onnx``.
        GateError: the graph is not what this module promises.
    """
    require("onnx", "deploy", "export ONNX")
    require("onnxscript", "deploy", "export ONNX")
    from edgekd.deploy.export import graph

    spec, output = recipe.io.inputs[0], recipe.io.outputs[0]
    tile = spec.tile_px
    if tile % model.side_multiple:
        raise InputError(
            f"the tile is {tile} px; student {model.name} takes multiples of "
            f"{model.side_multiple} px"
        )
    if path.suffix != ".onnx":
        raise InputError(f"give the model a name that ends in .onnx, received {path}")
    # Batch 2: a batch of 1 would be taken for a constant.
    example = torch.zeros(2, spec.channel_count, tile, tile)
    with quiet(), torch.inference_mode():
        model(example[:1])  # positions of this grid become a constant
    proto = traced(model, {"image": example}, [spec.name], output.name)
    cells = tile // model.stride
    graph.check(
        proto,
        [
            (spec.name, ["N", spec.channel_count, tile, tile]),
            (output.name, ["N", model.num_classes, cells, cells]),
        ],
    )
    with publish_file(path) as part:
        part.write_bytes(proto.SerializeToString(deterministic=True))
    operators = dict(sorted(Counter(node.op_type for node in proto.graph.node).items()))
    return OnnxModel(path, spec.name, output.name, tile, model.stride, operators)


def traced(
    model: nn.Module, examples: Mapping[str, torch.Tensor], inputs: list[str], output: str
) -> Any:
    """The graph of a network: named, of opset 17, a free first dimension, nothing of this machine.

    Args:
        model: in evaluation mode, on the CPU.
        examples: name of the argument of ``forward`` -> tensor with a batch of 2, in their order.
        inputs, output: what the tensors are called in the graph.

    Returns:
        ``onnx.ModelProto``; what it holds is still to be checked.

    Raises:
        GateError: an operator that opset 17 cannot say.
    """
    from edgekd.deploy.export import graph

    batch = torch.export.Dim("N")
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            model,
            tuple(examples.values()),
            dynamo=True,
            opset_version=graph.EXPORTER_OPSET,
            input_names=inputs,
            output_names=[output],
            dynamic_shapes={name: {0: batch} for name in examples},
            optimize=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    graph.finish(proto)
    return proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's chatter off the terminal; its errors are exceptions all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch")]
    levels = [item.level for item in loggers]
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        for item in loggers:
            item.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for item, level in zip(loggers, levels, strict=True):
                item.setLevel(level)


def synthetic_tile(tile_px: int, channels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A deterministic picture ``(tile, tile, channels)`` uint8 of waves and noise.

    Serves where no real image is at hand; it is called synthetic wherever it is used.
    """
    y, x = np.mgrid[0:tile_px, 0:tile_px].astype(np.float64) / tile_px
    random = np.random.default_rng(20)
    planes = [
        127 + 80 * np.sin(2 * np.pi * ((3 + k) * x + (2 - k) * y + k / 3)) for k in range(channels)
    ]
    picture = np.stack(planes, axis=2) + random.normal(0, 16, (tile_px, tile_px, channels))
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)
