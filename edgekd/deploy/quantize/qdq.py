"""INT8 as Q/DQ pairs: symmetric, zero point 0, weights per output channel, biases left alone.

What TensorRT asks for (developer guide, "Working with quantized types"; seen with its parser): zero
points 0, scales positive, per-channel scales on weights only, no INT32 biases. Q/DQ stands on both
inputs of a layer's product and nowhere else: attention products, softmax, normalisation and
residual additions keep the precision around them, and a fused attention kernel stays possible.

Two ways to store weights: as INT8 with a DequantizeLinear (small; TensorRT 10 and later, ONNX
Runtime) or as FP32 with a Q/DQ pair, the form that NVIDIA's tools wrote for TensorRT 8 (ONNX
Runtime's ``AddQDQPairToWeight``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgekd.deploy.quantize.layers import Layer
from edgekd.errors import InputError

#: largest integer of an activation; -128 is not used, so that the range is symmetric.
LEVELS = 127


def storable(scales: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Scales as the next FP16 number that is not smaller, as float32.

    So every file has the same integers, and nothing is clipped by the rounding.

    Raises:
        InputError: a scale above 65504, the largest FP16 number.
    """
    wanted = np.asarray(scales, np.float64)
    with np.errstate(over="ignore"):
        near = wanted.astype(np.float16)
        up = np.where(near < wanted, np.nextafter(near, np.float16(np.inf)), near)
    if not np.isfinite(up).all():
        raise InputError(f"a scale of {wanted.max():.3g} is more than FP16 holds (65504)")
    least = np.nextafter(np.float16(0), np.float16(1))
    result: npt.NDArray[np.float32] = np.maximum(up, least).astype(np.float32)
    return result


def weight_scales(values: npt.NDArray[np.float32], axis: int, bits: int) -> npt.NDArray[np.float32]:
    """One scale per output channel: largest absolute weight over ``2**(bits-1) - 1``.

    A channel of zeros gets the scale 1, for scales must be positive.
    """
    others = tuple(number for number in range(values.ndim) if number != axis)
    largest = np.abs(values).max(axis=others).astype(np.float64)
    return storable(np.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0))


def quantized(
    values: npt.NDArray[np.float32], scales: npt.NDArray[np.float32], axis: int, bits: int
) -> npt.NDArray[np.int8]:
    """Nearest integers, half to even, clipped to the symmetric range of ``bits``."""
    shape = [-1 if number == axis else 1 for number in range(values.ndim)]
    limit = 2 ** (bits - 1) - 1
    steps = np.rint(values.astype(np.float64) / scales.astype(np.float64).reshape(shape))
    return np.clip(steps, -limit, limit).astype(np.int8)


def insert_qdq(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    largest: Mapping[str, float],
    *,
    weight_bits: int = 8,
    weights_as_int8: bool = True,
) -> onnx.ModelProto:
    """Put Q/DQ in front of both inputs of each layer.

    Args:
        proto: FP32.
        layers: to quantise; others are left as they are.
        largest: activation tensor -> absolute value that becomes 127.
        weight_bits: 8, or 7 for processors that add two products in 16 bits (x86 without VNNI).
        weights_as_int8: see the module's docstring.

    Returns:
        A new model.

    Raises:
        InputError: no value for an activation, or one that is not positive and finite.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    constants = {item.name: item for item in graph.initializer}
    by_node = {layer.node: layer for layer in layers}
    added: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    zero = "quantize/zero"
    activations: dict[str, str] = {}
    weights: dict[str, str] = {}

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        added.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    for node in graph.node:
        layer = by_node.get(node.name)
        if layer is not None:
            if layer.source not in activations:
                scale = activation_range(layer, largest) / LEVELS
                name = constant(f"{layer.source}/scale", storable(np.array(scale)))
                constant(zero, np.array(0, np.int8))
                activations[layer.source] = pair(nodes, layer.source, name, zero)
            node.input[0] = activations[layer.source]
            if layer.weight not in weights:
                values = numpy_helper.to_array(constants[layer.weight])
                scales = weight_scales(values, layer.axis, weight_bits)
                name = constant(f"{layer.weight}/scale", scales)
                zeros = constant(f"{layer.weight}/zero", np.zeros(len(scales), np.int8))
                codes = quantized(values, scales, layer.axis, weight_bits)
                if weights_as_int8:
                    source = constant(f"{layer.weight}/int8", codes)
                    target = f"{layer.weight}/dequantized"
                    dequantize(nodes, source, name, zeros, target, layer.axis)
                else:
                    # Q of these values gives the codes again, with 7 bits, too.
                    shape = [-1 if n == layer.axis else 1 for n in range(values.ndim)]
                    snapped = codes.astype(np.float32) * scales.reshape(shape)
                    constant(f"{layer.weight}/float", snapped)
                    target = pair(nodes, f"{layer.weight}/float", name, zeros, layer.axis)
                weights[layer.weight] = target
            node.input[1] = weights[layer.weight]
        nodes.append(node)
    return replace_nodes(result, nodes, added)


def replace_nodes(
    proto: onnx.ModelProto,
    nodes: Sequence[onnx.NodeProto],
    added: Mapping[str, onnx.TensorProto],
) -> onnx.ModelProto:
    """A model with other nodes, and of old and new constants those that they read."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    used = {name for node in nodes for name in node.input}
    constants = [i for i in (*proto.graph.initializer, *added.values()) if i.name in used]
    kept = [onnx.NodeProto() for _ in nodes]
    for new, old in zip(kept, nodes, strict=True):
        new.CopyFrom(old)
    copies = [onnx.TensorProto() for _ in constants]
    for copy, item in zip(copies, constants, strict=True):
        copy.CopyFrom(item)
    del result.graph.node[:], result.graph.initializer[:]
    result.graph.node.extend(kept)
    result.graph.initializer.extend(copies)
    return result


def activation_range(layer: Layer, largest: Mapping[str, float]) -> float:
    """Absolute value of a layer's input that becomes the largest integer.

    Raises:
        InputError: there is none, or it is not positive and finite.
    """
    value = largest.get(layer.source)
    if value is None or not np.isfinite(value) or value <= 0:
        raise InputError(
            f"layer {layer.name} has no usable range of its input ({value}); calibrate again with "
            "images that reach it, or keep the layer high with precision.keep_high"
        )
    return value


def pair(
    nodes: list[onnx.NodeProto], source: str, scale: str, zero: str, axis: int | None = None
) -> str:
    """Add QuantizeLinear and DequantizeLinear of a tensor; gives what the second makes."""
    code, target = f"{source}/quantized", f"{source}/dequantized"
    both = [
        helper.make_node("QuantizeLinear", [source, scale, zero], [code]),
        helper.make_node("DequantizeLinear", [code, scale, zero], [target]),
    ]
    for node in both:
        node.name = f"{source}/{node.op_type}"
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
    nodes.extend(both)
    return target


def dequantize(
    nodes: list[onnx.NodeProto], source: str, scale: str, zero: str, target: str, axis: int
) -> str:
    """Add a DequantizeLinear of constants, one scale per channel; ``zero`` may be empty."""
    inputs = [source, scale, zero] if zero else [source, scale]
    name = f"{target}/DequantizeLinear"
    nodes.append(helper.make_node("DequantizeLinear", inputs, [target], name, axis=axis))
    return target
