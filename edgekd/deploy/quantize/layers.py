"""Layers of an exported graph whose products can run in INT8, by the student's own names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

Kind = Literal["linear", "patch", "conv"]


@dataclass(frozen=True)
class Layer:
    """One product of an activation with constant weights.

    Attributes:
        name: the module's path in the student, e.g. ``encoder.blocks.0.attention.qkv``.
        kind: ``linear`` (a matrix product over tokens), ``patch`` (a convolution of the input
            image whose windows do not overlap), ``conv`` (any other convolution).
        node: name of the graph's node.
        source: tensor of the activation.
        weight: initializer of the weights.
        axis: of the output channels in the weights.
    """

    name: str
    kind: Kind
    node: str
    source: str
    weight: str
    axis: int


def find_layers(proto: onnx.ModelProto) -> list[Layer]:
    """All layers, in the graph's order. Products of two activations (attention) are none."""
    constants = {item.name: item for item in proto.graph.initializer}
    images = {item.name for item in proto.graph.input}
    found = []
    for node in proto.graph.node:
        if node.op_type not in ("MatMul", "Conv") or len(node.input) < 2:
            continue
        weight = constants.get(node.input[1])
        if weight is None or weight.data_type != onnx.TensorProto.FLOAT:
            continue
        if node.input[0] in constants:
            continue
        name = node.name.rsplit("/", 1)[0]
        if node.op_type == "MatMul":
            if len(weight.dims) == 2:
                found.append(Layer(name, "linear", node.name, node.input[0], weight.name, 1))
            continue
        attributes = {item.name: helper.get_attribute_value(item) for item in node.attribute}
        apart = list(attributes.get("strides", [])) == list(weight.dims[2:])
        kind: Kind = "patch" if apart and node.input[0] in images else "conv"
        found.append(Layer(name, kind, node.name, node.input[0], weight.name, 0))
    return found


def module_of(node: onnx.NodeProto) -> str:
    """The module of the student that a node of the export came from."""
    return node.name.rsplit("/", 1)[0]


def require_modules(proto: onnx.ModelProto, keep_high: Sequence[str]) -> None:
    """Raise where a pattern keeps nothing high, whichever precisions are made.

    Raises:
        InputError: it matches no module of the graph, most likely a slip.
    """
    names = list(dict.fromkeys(module_of(node) for node in proto.graph.node))
    for pattern in keep_high:
        if not fnmatch.filter(names, pattern):
            raise InputError(
                f"precision.keep_high: '{pattern}' matches no layer"
                f"{nearest(pattern, names)} (layers: {', '.join(names[:3])}, ... {names[-1]})"
            )


def choose_layers(
    layers: Sequence[Layer], kinds: Iterable[str], keep_high: Sequence[str]
) -> list[Layer]:
    """Those of some kinds whose names match no pattern.

    Args:
        layers: of the graph.
        kinds: to take.
        keep_high: patterns as of file names (``encoder.blocks.11.*``) that stay in high precision.
    """
    wanted = set(kinds)
    return [
        layer
        for layer in layers
        if layer.kind in wanted and not any(fnmatch.fnmatch(layer.name, p) for p in keep_high)
    ]


def weights_of(proto: onnx.ModelProto, layers: Iterable[Layer]) -> dict[str, np.ndarray]:
    """Initializer's name -> float32 values, of these layers."""
    wanted = {layer.weight for layer in layers}
    return {
        item.name: numpy_helper.to_array(item)
        for item in proto.graph.initializer
        if item.name in wanted
    }
