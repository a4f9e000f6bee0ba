"""Typed FP16: every tensor of the graph has its type written down, with islands of FP32.

TensorRT from 10.12 on takes types from the graph and no flags; 11 has no flags left. So FP16 is
not asked for, it is exported: constants are stored in FP16 and casts stand where an island of
FP32 begins and ends. Inputs and outputs of the graph stay FP32.

LayerNormalization may run on FP16 tensors: by the operator's definition (``stash_type`` 1, ONNX
operator reference, opset 17) its mean and variance are computed in FP32, and TensorRT does so.

A value above 65504 is infinite in FP16. Nodes that read or write a tensor which calibration has
seen near that bound are kept in FP32, and so is a node with such a constant or with a single small
one, such as an epsilon.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import GateError

HALF_MAX = 65504.0
#: values seen in calibration may be exceeded by this factor later.
HEADROOM = 8.0
#: smallest normal number; below it digits are lost.
HALF_TINY = 2.0**-14
#: inputs that stay FP32 whatever the node computes in: (operator, position).
_FLOAT_ALWAYS = {("Resize", 1), ("Resize", 2)}
#: operators that make floats out of shapes or attributes, for which there is no rule.
_REFUSED = frozenset({"ConstantOfShape", "Range", "If", "Loop", "Scan", "RandomNormal"})


def overflowing(largest: Mapping[str, float | None]) -> set[str]:
    """Tensors that FP16 may not hold, of ``tensor -> largest absolute value seen``.

    A value that is not finite, or None in its place, counts as too large.
    """
    return {
        name for name, value in largest.items() if value is None or not value * HEADROOM <= HALF_MAX
    }


def to_half(
    proto: onnx.ModelProto,
    keep: Collection[str] = (),
    too_large: Collection[str] = (),
) -> onnx.ModelProto:
    """The same graph with FP16 inside.

    Args:
        proto: FP32, valid, with every shape known to ONNX's inference.
        keep: names of nodes that stay FP32.
        too_large: tensors that FP16 cannot hold; the nodes around them stay FP32.

    Returns:
        A new model; inputs and outputs are FP32 as before.

    Raises:
        GateError: an operator for which there is no rule.
    """
    return _Typing(proto, keep, too_large).run()


def high_nodes(
    proto: onnx.ModelProto, keep: Collection[str], too_large: Collection[str]
) -> list[str]:
    """Names of the nodes that :func:`to_half` leaves in FP32, in order."""
    typing = _Typing(proto, keep, too_large)
    return [node.name for node in proto.graph.node if typing.is_high(node)]


def _fits(values: np.ndarray) -> bool:
    """Whether FP16 holds a constant: nothing too large, and no single number that loses digits.

    An epsilon of 1e-12 would become 0. Among the many numbers of a weight, small ones may.
    """
    size = np.abs(values)
    if not size.max(initial=0.0) <= HALF_MAX:
        return False
    return values.size != 1 or float(size.max()) == 0.0 or float(size.max()) >= HALF_TINY


class _Typing:
    def __init__(
        self, proto: onnx.ModelProto, keep: Collection[str], too_large: Collection[str]
    ) -> None:
        self._proto = proto
        self._keep, self._too_large = frozenset(keep), frozenset(too_large)
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
        self._type = {item.name: item.data_type for item in proto.graph.initializer}
        for item in (*inferred.value_info, *inferred.input, *inferred.output):
            self._type[item.name] = item.type.tensor_type.elem_type
        self._constants = {item.name: item for item in proto.graph.initializer}
        self._made: dict[tuple[str, int], str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: list[onnx.TensorProto] = []
        self._now: dict[str, int] = {}
        self._large = {
            item.name
            for item in proto.graph.initializer
            if item.data_type == TensorProto.FLOAT and not _fits(numpy_helper.to_array(item))
        }

    def is_high(self, node: onnx.NodeProto) -> bool:
        """Whether a node stays in FP32."""
        touched = {*node.input, *node.output}
        return bool(
            node.name in self._keep
            or not self._too_large.isdisjoint(touched)
            or not self._large.isdisjoint(node.input)
        )

    def run(self) -> onnx.ModelProto:
        graph = self._proto.graph
        outputs = {item.name for item in graph.output}
        self._now = {
            item.name: TensorProto.FLOAT for item in graph.input if self._is_float(item.name)
        }
        for node in graph.node:
            if node.op_type in _REFUSED or node.op_type == "Constant":
                raise GateError(
                    f"{node.op_type} ({node.name}) has no rule for FP16; write the student "
                    "without it, or add a rule in edgekd/deploy/quantize/half.py"
                )
            kind = TensorProto.FLOAT if self.is_high(node) else TensorProto.FLOAT16
            new = onnx.NodeProto()
            new.CopyFrom(node)
            for place, name in enumerate(node.input):
                if name and self._is_float(name):
                    always = (node.op_type, place) in _FLOAT_ALWAYS
                    new.input[place] = self._as(name, TensorProto.FLOAT if always else kind)
            for attribute in new.attribute:
                if new.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                    attribute.i = kind
            self._nodes.append(new)
            for place, name in enumerate(node.output):
                if not self._is_float(name):
                    continue
                self._now[name] = kind
                if name in outputs and kind != TensorProto.FLOAT:
                    new.output[place] = f"{name}_half"
                    self._now[name] = TensorProto.FLOAT
                    self._made[name, TensorProto.FLOAT16] = f"{name}_half"
                    self._cast(f"{name}_half", name, TensorProto.FLOAT)
        result = onnx.ModelProto()
        result.CopyFrom(self._proto)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(self._nodes)
        used = {name for node in self._nodes for name in node.input}
        untouched = [i for i in graph.initializer if i.name in used]
        result.graph.initializer.extend([*untouched, *self._initializers])
        return result

    def _is_float(self, name: str) -> bool:
        return self._type.get(name) == TensorProto.FLOAT

    def _as(self, name: str, kind: int) -> str:
        """The tensor's name in a type; a cast or another constant is made where needed."""
        constant = self._constants.get(name)
        if kind == (TensorProto.FLOAT if constant is not None else self._now[name]):
            return name
        if (name, kind) not in self._made:
            made = f"{name}_half" if kind == TensorProto.FLOAT16 else f"{name}_float"
            self._made[name, kind] = made
            if constant is not None:
                values = numpy_helper.to_array(constant).astype(np.float16)
                self._initializers.append(numpy_helper.from_array(values, made))
            else:
                self._cast(name, made, kind)
        return self._made[name, kind]

    def _cast(self, source: str, target: str, kind: int) -> None:
        self._nodes.append(
            helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)
        )
