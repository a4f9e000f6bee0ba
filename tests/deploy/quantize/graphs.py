"""Small graphs of known numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DIM, HIDDEN, CLASSES, SIDE, PATCH = 24, 40, 3, 32, 8


def perceptron(seed: int = 0, poison: float = 1.0) -> onnx.ModelProto:
    """A patch embedding, two residual blocks of LayerNorm and perceptron, and a classifier.

    Args:
        seed: of the weights.
        poison: factor of one output channel of ``blocks.0.fc1`` (and so of what ``fc2`` sees).
    """
    random = np.random.default_rng(seed)
    nodes, constants = [], []

    def constant(name: str, values: np.ndarray, kind: type = np.float32) -> str:
        constants.append(numpy_helper.from_array(values.astype(kind), name))
        return name

    def node(op: str, inputs: list[str], output: str, name: str, **more: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name, **more))
        return output

    weight = constant("embed.weight", random.normal(0, 0.1, (DIM, 3, PATCH, PATCH)))
    node("Conv", ["image", weight], "map", "embed/Conv", strides=[PATCH, PATCH],
         kernel_shape=[PATCH, PATCH])  # fmt: skip
    node("Transpose", ["map"], "stream0", "embed/Transpose", perm=[0, 2, 3, 1])
    for block in range(2):
        here = f"blocks.{block}"
        gain = constant(f"{here}.norm.weight", random.uniform(0.5, 2.0, DIM))
        bias = constant(f"{here}.norm.bias", random.normal(0, 0.1, DIM))
        normed = node("LayerNormalization", [f"stream{block}", gain, bias], f"{here}.normed",
                      f"{here}.norm/LayerNormalization", axis=-1)  # fmt: skip
        first = random.normal(0, DIM**-0.5, (DIM, HIDDEN))
        first[:, 5] *= poison if block == 0 else 1.0
        up = constant(f"{here}.fc1.weight_t", first)
        node("MatMul", [normed, up], f"{here}.up", f"{here}.fc1/MatMul")
        node("Relu", [f"{here}.up"], f"{here}.act", f"{here}.act/Relu")
        second = random.normal(0, HIDDEN**-0.5, (HIDDEN, DIM))
        second[5] /= poison if block == 0 else 1.0
        down = constant(f"{here}.fc2.weight_t", second)
        node("MatMul", [f"{here}.act", down], f"{here}.down", f"{here}.fc2/MatMul")
        node("Add", [f"stream{block}", f"{here}.down"], f"stream{block + 1}", f"{here}/Add")
    node("Transpose", ["stream2"], "last", "decoder/Transpose", perm=[0, 3, 1, 2])
    weight = constant("decoder.weight", random.normal(0, 0.3, (CLASSES, DIM, 1, 1)))
    node("Conv", ["last", weight], "cells", "decoder/Conv", kernel_shape=[1, 1])
    scales = constant("decoder.scales", np.array([1, 1, 2, 2]))
    node("Resize", ["cells", "", scales], "wide", "decoder/Resize", mode="linear")
    factor = constant("decoder.factor", np.array(1.0))
    node("Mul", ["wide", factor], "logits", "decoder/Mul")
    cells = 2 * SIDE // PATCH
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", CLASSES, cells, cells])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def tiles(count: int, seed: int = 1) -> list[np.ndarray]:
    """Normalised tiles ``(1, 3, SIDE, SIDE)``."""
    random = np.random.default_rng(seed)
    return [random.normal(0, 1, (1, 3, SIDE, SIDE)).astype(np.float32) for _ in range(count)]


def named(given: Iterable[np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Tiles as the model's inputs."""
    return [{"image": tile} for tile in given]


def constants_of(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Initializer's name -> values."""
    return {item.name: numpy_helper.to_array(item) for item in proto.graph.initializer}


def operators(proto: onnx.ModelProto) -> list[str]:
    """Of the nodes, in order."""
    return [node.op_type for node in proto.graph.node]
