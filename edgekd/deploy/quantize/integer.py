"""Q/DQ as ONNX Runtime's CPU provider wants it: chains of convolutions in integers, end to end.

It makes a convolution one of integers (QLinearConv) where input, weights and bias come from
DequantizeLinear and the output goes to one QuantizeLinear and nowhere else. So each quantised
convolution has Q/DQ behind it too, whoever comes next reads that, and a residual addition of two
such tensors (QLinearAdd) as well. A bias is INT32 with the scale input times weight, here, in the
file: what is written is what is computed.

A tensor behind a Relu or a Clip from 0 has its zero at the lowest code: all 256 codes for what can
occur, and their range is the activation's, which is therefore left out: QuantizeLinear saturates at
the same values. (ONNX Runtime's ClipQuantFusion and ReluQuantFusion would, but not every version.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from edgekd.deploy.quantize.layers import Layer
from edgekd.deploy.quantize.qdq import (
    LEVELS,
    activation_range,
    dequantize,
    pair,
    quantized,
    replace_nodes,
    storable,
    weight_scales,
)

#: largest absolute value of a bias in steps: half of what INT32 holds, the rest is for the products
MOST_STEPS = 2**30
#: codes of a tensor that is never negative: 0 to 255, or -128 to 127
CODES = 255


@dataclass(frozen=True)
class Chain:
    """A convolution with the activation that its QuantizeLinear replaces.

    Attributes:
        layer: the convolution.
        output: of the convolution, or of the activation behind it.
        activation: name of that node; None without.
    """

    layer: Layer
    output: str
    activation: str | None


class Graph:
    """Who makes and who reads a tensor, and what bounds it."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.constants = {item.name: item for item in proto.graph.initializer}
        self.ends = {item.name for item in proto.graph.output}
        self.maker = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def top(self, tensor: str) -> float | None:
        """Upper bound of a tensor that a Relu or a Clip keeps at 0 or above; None for others."""
        node = self.maker.get(tensor)
        if node is None or node.op_type not in ("Relu", "Clip"):
            return None
        if node.op_type == "Relu":
            return float(np.inf)
        low, high = (self._bound(node, place) for place in (1, 2))
        return high if low == 0 and high is not None and high > 0 else None

    def _bound(self, node: onnx.NodeProto, place: int) -> float | None:
        """A constant limit of a Clip, also behind a Cast; None where it is not known."""
        if len(node.input) <= place or not node.input[place]:
            return (-np.inf, np.inf)[place - 1]
        name = node.input[place]
        maker = self.maker.get(name)
        if maker is not None and maker.op_type == "Cast":
            name = maker.input[0]
            maker = self.maker.get(name)
        if name in self.constants:
            return float(numpy_helper.to_array(self.constants[name]).reshape(()))
        if maker is not None and maker.op_type == "Constant":
            value = helper.get_attribute_value(maker.attribute[0])
            return float(numpy_helper.to_array(value).reshape(()))
        return None

    def chain(self, layer: Layer) -> Chain:
        """A convolution and the activation that only it feeds."""
        node = next(item for item in self.proto.graph.node if item.name == layer.node)
        output = node.output[0]
        readers = self.readers.get(output, [])
        if len(readers) == 1 and output not in self.ends and readers[0].input[0] == output:
            behind = readers[0].output[0]
            if self.top(behind) is not None:
                return Chain(layer, behind, readers[0].name)
        return Chain(layer, output, None)

    def sums(self) -> Iterator[onnx.NodeProto]:
        """Additions of two tensors that are both made by nodes."""
        for node in self.proto.graph.node:
            if node.op_type == "Add" and all(name in self.maker for name in node.input):
                yield node


def outputs(proto: onnx.ModelProto, layers: Sequence[Layer]) -> list[str]:
    """Tensors behind convolutions, and sums of such, whose ranges the layout needs, in order."""
    graph = Graph(proto)
    found = [graph.chain(layer).output for layer in layers if layer.kind == "conv"]
    known = {*found, *(layer.source for layer in layers if layer.kind == "conv")}
    for node in graph.sums():
        if known.issuperset(node.input):
            found.append(node.output[0])
            known.add(node.output[0])
    return [name for name in dict.fromkeys(found) if name not in graph.ends]


@dataclass(frozen=True)
class Integer:
    """What the layout needs besides what every layout does.

    Attributes:
        behind: tensor of :func:`outputs` -> largest absolute value.
        signed: INT8 codes, which Arm's kernels prefer, rather than UINT8, the only ones that x86
            has: there ONNX Runtime rewrites INT8, but not where two read a tensor.
    """

    behind: Mapping[str, float]
    signed: bool


@dataclass(frozen=True)
class Codes:
    """How a tensor becomes integers."""

    scale: np.float32
    zero: int


@dataclass(frozen=True)
class Plan:
    """What is laid where.

    Attributes:
        codes: tensor -> its integers.
        inner: those of them that everyone reads as integers, for integers made them.
        chains: node of a convolution of integers -> it.
        sums: nodes that add integers.
    """

    codes: dict[str, Codes]
    inner: set[str]
    chains: dict[str, Chain]
    sums: set[str]


def plan(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    largest: Mapping[str, float],
    behind: Mapping[str, float],
    signed: bool,
) -> Plan:
    """Decide which tensors are integers.

    Args:
        proto: FP32.
        layers: to quantise.
        largest: layer's input -> largest absolute value.
        behind: the same of :func:`outputs`; a convolution whose output is not known, or 0, or the
            model's own, keeps its products in float.
        signed: see :class:`Integer`.
    """
    graph = Graph(proto)
    convs = {layer.source for layer in layers if layer.kind == "conv"}
    codes: dict[str, Codes] = {}
    lowest = -128 if signed else 0

    def add(tensor: str, value: float) -> None:
        top = graph.top(tensor)
        if top is None:
            codes[tensor] = Codes(np.float32(storable(np.array(value / LEVELS))), lowest + 128)
        else:
            codes[tensor] = Codes(np.float32(min(value, top) / CODES), lowest)

    for layer in layers:
        value = activation_range(layer, largest)
        if layer.source in convs:
            add(layer.source, value)
        else:
            codes[layer.source] = Codes(
                np.float32(storable(np.array(value / LEVELS))), lowest + 128
            )
    chains: dict[str, Chain] = {}
    inner: set[str] = set()
    for layer in layers:
        if layer.kind != "conv":
            continue
        chain = graph.chain(layer)
        if chain.output not in codes:
            value = behind.get(chain.output, 0.0)
            if chain.output in graph.ends or not value > 0:
                continue
            add(chain.output, value)
        elif chain.output in graph.ends or chain.output not in convs:
            continue
        chains[layer.node] = chain
        inner.add(chain.output)
    sums: set[str] = set()
    for node in graph.sums():
        result = node.output[0]
        known = all(name in codes and (name in inner or name in convs) for name in node.input)
        if not known or result in graph.ends:
            continue
        if result not in codes:
            value = behind.get(result, 0.0)
            if not value > 0:
                continue
            add(result, value)
        elif result not in convs:
            continue
        sums.add(node.name)
        inner.add(result)
    return Plan(codes, inner, chains, sums)


def insert_integer(
    proto: onnx.ModelProto,
    layers: Sequence[Layer],
    largest: Mapping[str, float],
    integer: Integer,
    weight_bits: int = 8,
) -> onnx.ModelProto:
    """Put Q/DQ in front of each layer, as :func:`insert_qdq` does, and behind convolutions.

    Args:
        proto, layers, largest: see :func:`plan`.
        integer: ranges of outputs, and the codes' type.
        weight_bits: 8, or 7 for processors that add two products in 16 bits (x86 without VNNI).

    Returns:
        A new model.

    Raises:
        InputError: no value for a layer's input, or one that is not positive and finite.
    """
    made = plan(proto, layers, largest, integer.behind, integer.signed)
    graph = Graph(proto)
    by_node = {layer.node: layer for layer in layers}
    added: dict[str, onnx.TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    read: dict[str, str] = {}
    kind = np.int8 if integer.signed else np.uint8

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        added.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    def integers(tensor: str) -> str:
        if tensor not in read:
            item = made.codes[tensor]
            scale = constant(f"{tensor}/scale", np.array(item.scale, np.float32))
            end = f"/{item.zero}" if item.zero else ""
            zero = constant(f"quantize/zero{end}", np.array(item.zero, kind))
            read[tensor] = pair(nodes, tensor, scale, zero)
        return read[tensor]

    scales = _weight_scales(graph, made, layers, weight_bits)
    weights: dict[str, str] = {}
    dropped = {chain.activation: chain for chain in made.chains.values() if chain.activation}
    for original in proto.graph.node:
        if original.name in dropped:
            continue
        node = onnx.NodeProto()
        node.CopyFrom(original)
        layer = by_node.get(node.name)
        for place, name in enumerate(node.input):
            mine = layer is not None and place == 0
            if mine or name in made.inner or (node.name in made.sums and name in made.codes):
                node.input[place] = integers(name)
        if layer is not None:
            if layer.weight not in weights:
                values = numpy_helper.to_array(graph.constants[layer.weight])
                mine_scales = scales[layer.weight]
                scale = constant(f"{layer.weight}/scale", mine_scales)
                zero = constant(f"{layer.weight}/zero", np.zeros(len(mine_scales), np.int8))
                ints = quantized(values, mine_scales, layer.axis, weight_bits)
                source = constant(f"{layer.weight}/int8", ints)
                target = f"{layer.weight}/dequantized"
                weights[layer.weight] = dequantize(nodes, source, scale, zero, target, layer.axis)
            node.input[1] = weights[layer.weight]
        chain = made.chains.get(node.name)
        if chain is not None:
            assert layer is not None
            node.output[0] = chain.output
            if len(node.input) > 2 and node.input[2]:
                step = made.codes[layer.source].scale * scales[layer.weight]
                bias = numpy_helper.to_array(graph.constants[node.input[2]]).astype(np.float64)
                name = f"{node.name}/bias"
                node.input[2] = dequantize(
                    nodes,
                    constant(f"{name}/int32", np.rint(bias / step).astype(np.int32)),
                    constant(f"{name}/scale", step),
                    "",
                    f"{name}/dequantized",
                    0,
                )
        nodes.append(node)
    return replace_nodes(proto, nodes, added)


def _weight_scales(
    graph: Graph, made: Plan, layers: Sequence[Layer], bits: int
) -> dict[str, npt.NDArray[np.float32]]:
    """Scales per output channel, wider where the bias would not fit into INT32."""
    found: dict[str, npt.NDArray[np.float32]] = {}
    for layer in layers:
        values = numpy_helper.to_array(graph.constants[layer.weight])
        mine = weight_scales(values, layer.axis, bits)
        chain = made.chains.get(layer.node)
        node = graph.maker[chain.output] if chain is not None else None
        if node is not None and chain is not None and chain.activation is not None:
            node = graph.maker[node.input[0]]
        if node is not None and len(node.input) > 2 and node.input[2] in graph.constants:
            bias = np.abs(numpy_helper.to_array(graph.constants[node.input[2]])).astype(np.float64)
            least = bias / (float(made.codes[layer.source].scale) * MOST_STEPS)
            mine = np.maximum(mine, storable(least))
        before = found.get(layer.weight)
        found[layer.weight] = mine if before is None else np.maximum(mine, before)
    return found
