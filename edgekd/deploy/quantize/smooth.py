"""SmoothQuant: move the difficulty of activations into weights, where it is easier.

Xiao et al. 2023, https://arxiv.org/abs/2211.10438, equation 4: channel ``j`` of an activation is
divided by ``s_j = max|X_j|^a / max|W_j|^(1-a)`` and the weights' rows are multiplied by it; the
division costs nothing where a LayerNorm stands in front, for it goes into gain and bias. The
FP32 model stays the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from edgekd.deploy.quantize.layers import Layer

#: channels that never fire, or rows of zeros, would ask for factors without bound.
SMALLEST = 1e-5


def smooth(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    channels: Mapping[str, npt.NDArray[np.float32]],
    strength: float,
) -> tuple[onnx.ModelProto, dict[str, npt.NDArray[np.float32]]]:
    """Rescale every LayerNorm whose only readers are layers to be quantised.

    Args:
        proto: FP32.
        layers: to be quantised.
        channels: activation tensor -> largest absolute value per channel.
        strength: ``a`` of the equation, 0 to 1.

    Returns:
        A new model, and activation tensor -> the factors it was divided by.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    constants = {item.name: item for item in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {item.name for item in graph.output}
    linear = {layer.node: layer for layer in layers if layer.kind == "linear"}
    done: dict[str, npt.NDArray[np.float32]] = {}
    for norm in graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) < 3:
            continue
        source = norm.output[0]
        mine = [linear.get(node.name) for node in readers.get(source, [])]
        alone = all(len(readers[name]) == 1 for name in norm.input[1:])
        if not mine or None in mine or source in outputs or source not in channels or not alone:
            continue
        names = [layer.weight for layer in mine if layer is not None]
        if any(len(readers[name]) != 1 for name in names):
            continue
        weights = [numpy_helper.to_array(constants[name]) for name in names]
        rows = np.max([np.abs(item).max(axis=1) for item in weights], axis=0)
        factors = _factors(channels[source], rows, strength)
        for name in norm.input[1:]:
            _set(constants[name], numpy_helper.to_array(constants[name]) / factors)
        for name, item in zip(names, weights, strict=True):
            _set(constants[name], item * factors[:, None])
        done[source] = factors
    return result, done


def _factors(
    activations: npt.NDArray[np.float32], rows: npt.NDArray[np.float32], strength: float
) -> npt.NDArray[np.float32]:
    top = np.maximum(activations.astype(np.float64), SMALLEST)
    down = np.maximum(rows.astype(np.float64), SMALLEST)
    return (top**strength / down ** (1 - strength)).clip(SMALLEST, 1 / SMALLEST).astype(np.float32)


def _set(item: onnx.TensorProto, values: npt.NDArray[np.floating]) -> None:
    item.CopyFrom(numpy_helper.from_array(values.astype(np.float32), item.name))
