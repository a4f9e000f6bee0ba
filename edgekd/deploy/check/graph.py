"""An ONNX file as rules see it: constants, producers, types, attentions, Q/DQ, LayerNorms.

Large weights stay on disk: types and shapes are inferred on a skeleton without them, and only small
constants (scales, zero points, scalars) are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from edgekd.errors import InputError

#: initialisers up to this many bytes are kept for shape inference.
_SMALL_BYTES = 4096
#: what may stand between the products of an attention and its softmax.
_BETWEEN = frozenset(
    {"Add", "Sub", "Mul", "Div", "Where", "Reshape", "Transpose", "Cast", "Identity", "Squeeze",
     "Unsqueeze", "QuantizeLinear", "DequantizeLinear", "Dropout", "Expand", "Clip"}
)  # fmt: skip
_MOVES = frozenset({"Reshape", "Transpose", "Identity", "Cast", "Squeeze", "Unsqueeze"})
_PRODUCTS = frozenset({"MatMul", "Einsum", "Gemm"})
_DEPTH = 12


@dataclass(frozen=True)
class Attention:
    """Nodes of one attention; ``scores`` and ``context`` are None for the ``Attention`` operator.

    Attributes:
        scores, softmax, context: QKᵀ, softmax, and the product with V.
        tokens, head_size: None where shapes do not tell.
        quantized: Q/DQ at the inputs of a product.
        between: Q/DQ between the first product and the softmax.
    """

    softmax: onnx.NodeProto
    scores: onnx.NodeProto | None
    context: onnx.NodeProto | None
    dtype: int
    tokens: int | None
    head_size: int | None
    quantized: bool
    between: bool


@dataclass(frozen=True)
class QuantNode:
    """A QuantizeLinear or DequantizeLinear with what can be read of its parameters.

    Attributes:
        scale, zero_point: values; None where they are not constants.
        has_zero_point: an input for it is there.
        of_constant: works on weights or biases, not on an activation.
        data_type: TensorProto type of the quantised side.
        scale_type: TensorProto type of the scale.
    """

    node: onnx.NodeProto
    scale: npt.NDArray[Any] | None
    zero_point: npt.NDArray[Any] | None
    has_zero_point: bool
    of_constant: bool
    data_type: int
    scale_type: int


@dataclass
class Graph:
    """A model's main graph with look-ups; see :func:`read_graph`.

    Attributes:
        proto: the model, external data not loaded.
        folder: where external data lies.
        opset: version of the default domain; 0 when it is not imported.
        problem: why types and shapes could not be inferred, or empty.
    """

    proto: onnx.ModelProto
    folder: Path
    opset: int
    problem: str = ""
    types: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, list[int | str]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """Nodes of the main graph, in its order."""
        return list(self.proto.graph.node)

    def all_nodes(self) -> Iterator[onnx.NodeProto]:
        """Nodes of the main graph and of the graphs inside If, Loop and Scan."""
        yield from _nested(self.proto.graph)

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {item.name: item for item in self.proto.graph.initializer}

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """Inputs that a caller gives (old files list initialisers among them)."""
        return [item for item in self.proto.graph.input if item.name not in self.initializers]

    @cached_property
    def producer(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        table: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                table.setdefault(name, []).append(node)
        return table

    @cached_property
    def constants(self) -> set[str]:
        """Tensors that do not depend on an input."""
        known = set(self.initializers)
        for node in self.nodes:
            if node.op_type == "Constant" or (
                node.input and all(name in known or not name for name in node.input)
            ):
                known.update(node.output)
        return known

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """The array of a constant; None for an activation, or where the data is not there."""
        node = self.producer.get(name)
        if node is not None and node.op_type == "Identity":
            return self.value(node.input[0])
        tensor = self.initializers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant":
            found = attribute(node, "value")
            if isinstance(found, onnx.TensorProto):
                tensor = found
            else:
                plain = [attribute(node, key) for key in ("value_float", "value_int")]
                return next((np.asarray(item) for item in plain if item is not None), None)
        if tensor is None:
            return None
        try:
            return np.asarray(numpy_helper.to_array(tensor, base_dir=str(self.folder)))
        except (OSError, ValueError, TypeError, onnx.checker.ValidationError):
            return None

    @cached_property
    def external(self) -> list[tuple[str, str, int]]:
        """(tensor, file, bytes needed) of every initialiser that lies outside the file."""
        found = []
        for tensor in self.proto.graph.initializer:
            if external_data_helper.uses_external_data(tensor):
                info = external_data_helper.ExternalDataInfo(tensor)
                found.append((tensor.name, info.location, (info.offset or 0) + (info.length or 0)))
        return found

    @staticmethod
    def is_half(data_type: int) -> bool:
        """FP16 or BF16."""
        return data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)

    def source(self, name: str) -> onnx.NodeProto | None:
        """Producer of a tensor, behind nodes that only move or cast it."""
        node = self.producer.get(name)
        while node is not None and node.op_type in _MOVES:
            node = self.producer.get(node.input[0])
        return node

    @cached_property
    def quant_nodes(self) -> list[QuantNode]:
        found = []
        for node in self.nodes:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 2:
                continue
            third = node.input[2] if len(node.input) > 2 else ""
            side = node.input[0] if node.op_type == "DequantizeLinear" else node.output[0]
            found.append(
                QuantNode(
                    node=node,
                    scale=self.value(node.input[1]),
                    zero_point=self.value(third) if third else None,
                    has_zero_point=bool(third),
                    of_constant=node.input[0] in self.constants,
                    data_type=self.types.get(third or side, 0) or self.types.get(side, 0),
                    scale_type=self.types.get(node.input[1], 0),
                )
            )
        return found

    @cached_property
    def attentions(self) -> list[Attention]:
        found = []
        for node in self.nodes:
            if node.op_type == "Attention":
                shape = self.shapes.get(node.input[1], [])
                found.append(
                    Attention(
                        softmax=node,
                        scores=None,
                        context=None,
                        dtype=self.types.get(node.input[0], 0),
                        tokens=_number(shape, -2) if len(shape) == 4 else None,
                        head_size=_number(shape, -1) if len(shape) == 4 else None,
                        quantized=self._quantized(node),
                        between=False,
                    )
                )
            elif node.op_type == "Softmax":
                scores, between = self._upstream(node.input[0], 0)
                context = self._downstream(node.output[0], 0)
                if scores is not None and context is not None:
                    found.append(self._attention(node, scores, context, between))
        return found

    def _attention(
        self, softmax: onnx.NodeProto, scores: onnx.NodeProto, context: onnx.NodeProto, q: bool
    ) -> Attention:
        head = self.shapes.get(scores.input[0], []) if scores.op_type == "MatMul" else []
        return Attention(
            softmax=softmax,
            scores=scores,
            context=context,
            dtype=self.types.get(scores.input[0], 0),
            tokens=_number(self.shapes.get(softmax.input[0], []), -1),
            head_size=_number(head, -1),
            quantized=q or self._quantized(scores) or self._quantized(context),
            between=q,
        )

    def _quantized(self, node: onnx.NodeProto) -> bool:
        sources = [self.source(name) for name in node.input]
        return any(item is not None and item.op_type == "DequantizeLinear" for item in sources)

    def _product(self, node: onnx.NodeProto) -> bool:
        return node.op_type in _PRODUCTS and not self.constants & set(node.input[:2])

    def _upstream(self, name: str, depth: int) -> tuple[onnx.NodeProto | None, bool]:
        """The product of activations that feeds a softmax, and whether Q/DQ lies between."""
        node = self.producer.get(name)
        if node is None or depth > _DEPTH or name in self.constants:
            return None, False
        if self._product(node):
            return node, False
        if node.op_type not in _BETWEEN:
            return None, False
        for source in node.input:
            found, between = self._upstream(source, depth + 1)
            if found is not None:
                return found, between or node.op_type == "QuantizeLinear"
        return None, False

    def _downstream(self, name: str, depth: int) -> onnx.NodeProto | None:
        for node in self.consumers.get(name, []) if depth <= _DEPTH else []:
            if self._product(node):
                return node
            if node.op_type in _BETWEEN and node.input[0] == name:
                found = self._downstream(node.output[0], depth + 1)
                if found is not None:
                    return found
        return None

    @cached_property
    def written_layernorms(self) -> list[onnx.NodeProto]:
        """The last division of every LayerNorm that is spelled in single operators.

        ``(x - mean) / sqrt(mean((x - mean)²) + eps)`` with the square as Pow or Mul, and with Div
        or a product with the reciprocal.
        """
        found = []
        for node in self.nodes:
            if node.op_type == "Div" or node.op_type == "Mul":
                centred, root = (self.source(name) for name in node.input[:2])
                if node.op_type == "Mul" and root is not None and root.op_type == "Reciprocal":
                    root = self.source(root.input[0])
                if root is None or centred is None or root.op_type != "Sqrt":
                    continue
                mean = self._through_add(root.input[0])
                if mean is None or mean.op_type != "ReduceMean" or centred.op_type != "Sub":
                    continue
                square = self.source(mean.input[0])
                if square is not None and square.op_type in ("Pow", "Mul"):
                    found.append(node)
        return found

    def _through_add(self, name: str) -> onnx.NodeProto | None:
        node = self.source(name)
        if node is None or node.op_type != "Add":
            return node
        sources = [self.source(item) for item in node.input if item not in self.constants]
        return sources[0] if sources else None

    @cached_property
    def gemms(self) -> list[onnx.NodeProto]:
        """Products and convolutions with constant weights, and products of activations."""
        kinds = {*_PRODUCTS, "Conv", "ConvTranspose", "Attention"}
        return [node for node in self.nodes if node.op_type in kinds]

    @cached_property
    def quantized_gemms(self) -> list[onnx.NodeProto]:
        """Those with a DequantizeLinear in front of both inputs."""
        found = []
        for node in self.gemms:
            sources = [self.source(name) for name in node.input[:2]]
            if len(sources) == 2 and all(
                item is not None and item.op_type == "DequantizeLinear" for item in sources
            ):
                found.append(node)
        return found


def read_graph(path: Path) -> Graph:
    """Read an ONNX file, without its external data, and infer types and shapes.

    Raises:
        InputError: the file is missing, empty or no ONNX model.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {kind}; give an .onnx file or a bundle")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); export it again")
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except DecodeError as err:
        raise InputError(
            f"{path} is damaged or no ONNX model ({type(err).__name__}); export it again"
        ) from err
    if not proto.graph.node:
        raise InputError(f"{path} holds no nodes, so it is no ONNX model; export it again")
    opset = max((i.version for i in proto.opset_import if i.domain in ("", "ai.onnx")), default=0)
    graph = Graph(proto, path.parent, opset)
    _infer(graph)
    return graph


def _infer(graph: Graph) -> None:
    proto = graph.proto
    skeleton = onnx.ModelProto()
    skeleton.CopyFrom(_without_weights(proto))
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as err:
        graph.problem = " ".join(str(err).split())[:300]
        inferred = skeleton
    for item in proto.graph.initializer:
        graph.types[item.name] = item.data_type
        graph.shapes[item.name] = list(item.dims)
    values = inferred.graph
    for item in (*values.value_info, *values.input, *values.output):
        kind = item.type.tensor_type
        if kind.elem_type:
            graph.types[item.name] = kind.elem_type
        if kind.HasField("shape"):
            graph.shapes[item.name] = [side.dim_param or side.dim_value for side in kind.shape.dim]


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy whose large initialisers have a type and a shape, but no data."""
    copy = onnx.ModelProto()
    for item, value in proto.ListFields():
        if item.name != "graph":
            if item.is_repeated:
                getattr(copy, item.name).extend(value)
            else:
                setattr(copy, item.name, value)
    for item, value in proto.graph.ListFields():
        if item.name == "initializer":
            continue
        if item.is_repeated:
            getattr(copy.graph, item.name).extend(value)
        else:
            setattr(copy.graph, item.name, value)
    for tensor in proto.graph.initializer:
        small = tensor.ByteSize() <= _SMALL_BYTES
        if small and tensor.data_location != TensorProto.EXTERNAL:
            copy.graph.initializer.append(tensor)
        else:
            info = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(info)
    return copy


def _nested(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for item in node.attribute:
            for inner in (item.g, *item.graphs) if item.type in (5, 10) else ():
                yield from _nested(inner)


def attribute(node: onnx.NodeProto, name: str) -> Any:
    """Value of an attribute; None where it is not set."""
    for item in node.attribute:
        if item.name == name:
            return helper.get_attribute_value(item)
    return None


def title(node: onnx.NodeProto) -> str:
    """A node's name, or its operator and first output where it has none."""
    return node.name or f"{node.op_type} -> {node.output[0] if node.output else '?'}"


def type_name(data_type: int) -> str:
    """``float16`` for 10; ``unknown`` for 0."""
    return TensorProto.DataType.Name(data_type).lower() if data_type else "unknown"


def _number(shape: list[int | str], place: int) -> int | None:
    side = shape[place] if len(shape) >= abs(place) else None
    return side if isinstance(side, int) and side > 0 else None
