"""The projection of :mod:`edgekd.contracts.projection` as ONNX: rules and bounds are inputs.

Opset 17; inputs and output are of single precision, the Newton steps of double. They are one
``Loop``, which keeps the file at some 20 kB and ends where no answer moves any more, at
the latest after a fixed count; the number of rows is fixed, fewer rules are padded with rows of
zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts import projection as fixed
from edgekd.contracts.evidence import PROBABILITIES
from edgekd.errors import InputError

OPSET = 17
_IR_VERSION = 8
RULES, BOUNDS, INSIDE = fixed.Limits._fields
_PREFIX = "policy/"


def policy_model(classes: int, rows: int, scores: str = "scores") -> onnx.ModelProto:
    """A model of the projection alone: ``scores (N, classes)`` and the rules -> probabilities."""
    graph = helper.make_graph(
        [], "policy", [_value(scores, ["N", classes])], [_value(scores, ["N", classes])]
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION
    )
    attach_policy(proto, rows)
    return proto


def attach_policy(proto: onnx.ModelProto, rows: int, keep_scores: bool = False) -> None:
    """Put the projection behind a model's one output ``(N, classes)``, in place.

    The model gets the inputs ``rules (N, rows, classes)``, ``bounds (N, rows)`` and ``inside (N,
    classes)``, and the output ``probabilities (N, classes)``. What is lowered in precision is
    lowered before: these nodes are in double precision, and their names begin with ``policy/``.

    Args:
        proto: of opset 17, with one output of two dimensions, the second one fixed.
        rows: rules that there is room for.
        keep_scores: the scores stay an output, before the probabilities; else these take its place.

    Raises:
        InputError: another model, or a name that is taken.
    """
    graph = proto.graph
    if len(graph.output) != 1:
        raise InputError(f"the model has {len(graph.output)} outputs, expected its scores alone")
    scores = graph.output[0]
    shape = scores.type.tensor_type.shape.dim
    if len(shape) != 2 or not shape[1].dim_value:
        raise InputError(f"output {scores.name} must be (N, classes), with a fixed number of them")
    opset = {item.domain: item.version for item in proto.opset_import}.get("", 0)
    if opset != OPSET:
        raise InputError(f"the model is of opset {opset}, expected {OPSET}")
    if rows < 1:
        raise InputError(f"rows is {rows}, expected at least 1")
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    used |= {item.name for item in graph.input}
    taken = sorted(
        ({RULES, BOUNDS, INSIDE, PROBABILITIES} & used) | {n for n in used if _PREFIX in n}
    )
    if taken:
        raise InputError(f"the model has a tensor called {taken[0]} already")
    classes, first = shape[1].dim_value, shape[0].dim_param or shape[0].dim_value
    write = _Writer()
    write.project(scores.name, classes, rows)
    graph.node.extend(write.nodes)
    graph.initializer.extend(write.constants)
    shapes = {RULES: [first, rows, classes], BOUNDS: [first, rows], INSIDE: [first, classes]}
    graph.input.extend(_value(name, value) for name, value in shapes.items())
    if not keep_scores:
        del graph.output[:]
    graph.output.append(_value(PROBABILITIES, [first, classes]))
    onnx.checker.check_model(proto, full_check=True)


def _value(name: str, shape: list[Any], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


class _Writer:
    """Nodes in the order in which they are asked for; a call gives the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._names: dict[bytes, str] = {}
        self._count = 0

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        self._count += 1
        name = f"{_PREFIX}{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def const(self, value: Any, kind: type[np.generic] = np.float64) -> str:
        """A constant; equal ones are one."""
        array = np.asarray(value, dtype=kind)
        key = repr((array.dtype.str, array.shape)).encode() + array.tobytes()
        if key not in self._names:
            self._names[key] = f"{_PREFIX}constant_{len(self._names)}"
            self.constants.append(numpy_helper.from_array(array, self._names[key]))
        return self._names[key]

    def integers(self, *values: int) -> str:
        return self.const(values, np.int64)

    def cut(self, name: str, axis: int, at: int) -> str:
        """``name[..., at:at + 1, ...]``."""
        return self("Slice", name, self.integers(at), self.integers(at + 1), self.integers(axis))

    def turned(self, name: str) -> str:
        return self("Transpose", name, perm=[0, 2, 1])

    def total(self, name: str, axis: int) -> str:
        return self("ReduceSum", name, self.integers(axis), keepdims=1)

    def most(self, name: str, axis: int) -> str:
        return self("ReduceMax", name, axes=[axis], keepdims=1)

    def log_sum_exp(self, x: str) -> str:
        top = self.most(x, 1)
        return self("Add", self("Log", self.total(self("Exp", self("Sub", x, top)), 1)), top)

    def project(self, scores: str, classes: int, rows: int) -> None:
        """Line by line :func:`edgekd.contracts.projection.project`."""
        z, b, within = (
            self("Unsqueeze", self("Cast", name, to=TensorProto.DOUBLE), self.integers(2))
            for name in (scores, BOUNDS, INSIDE)
        )
        a = self("Cast", RULES, to=TensorProto.DOUBLE)
        at = self.turned(a)
        z = self("Sub", z, self.log_sum_exp(z))
        slack = self.const(fixed.SLACK)
        b = self("Add", b, slack)
        none = self("Mul", b, self.const(0))
        weight = self("Add", none, self.const(1))
        barrier = self("Add", self.most(none, 1), self.const(fixed.BARRIER_FIRST))
        eye = np.eye(classes)
        outside, self.nodes = self.nodes, []
        weight_now, barrier_now = f"{_PREFIX}weight", f"{_PREFIX}barrier"
        going, *ends = self._step(z, a, at, b, self.turned(b), weight_now, barrier_now, eye)
        shapes = {weight_now: ["N", rows, 1], barrier_now: ["N", 1, 1]}
        body = helper.make_graph(
            self.nodes,
            f"{_PREFIX}step",
            [
                helper.make_tensor_value_info(f"{_PREFIX}number", TensorProto.INT64, []),
                helper.make_tensor_value_info(f"{_PREFIX}gone", TensorProto.BOOL, []),
                *(_value(*item, TensorProto.DOUBLE) for item in shapes.items()),
            ],
            [
                helper.make_tensor_value_info(going, TensorProto.BOOL, []),
                *(
                    _value(name, shape, TensorProto.DOUBLE)
                    for name, shape in zip(ends, shapes.values(), strict=True)
                ),
            ],
        )
        self.nodes = outside
        found = [f"{_PREFIX}weight_found", f"{_PREFIX}barrier_found"]
        count, yes = self.const(fixed.STEPS, np.int64), self.const(True, np.bool_)
        self.nodes.append(
            helper.make_node(
                "Loop", [count, yes, weight, barrier], found, name=f"{_PREFIX}Loop", body=body
            )
        )
        p = self("Softmax", self("Sub", z, self("MatMul", at, found[0])), axis=1)
        past = self("Sub", self("Sub", self("MatMul", a, p), b), slack)
        past = self("Max", past, self.const(0))
        room = self("Sub", b, self("MatMul", a, within))
        room = self("Max", room, self.const(fixed.LEAST_ROOM))
        part = self.most(self("Div", past, self("Add", past, room)), 1)
        p = self("Add", p, self("Mul", part, self("Sub", within, p)))
        p = self("Squeeze", p, self.integers(2))
        self.nodes.append(
            helper.make_node(
                "Cast", [p], [PROBABILITIES], name=f"{_PREFIX}Cast", to=TensorProto.FLOAT
            )
        )

    def _step(
        self, z: str, a: str, at: str, b: str, b_turned: str, weight: str, barrier: str,
        eye: np.ndarray[Any, np.dtype[np.float64]],
    ) -> tuple[str, str, str]:  # fmt: skip
        """One Newton step: names of whether another is needed, of the next multipliers and of the
        next barrier."""
        whole = self.const(eye)
        p = self("Softmax", self("Sub", z, self("MatMul", at, weight)), axis=1)
        past = self("MatMul", a, p)
        spread = self("Mul", self("Sub", a, past), self.turned(self("Sqrt", p)))
        spread_turned = self.turned(spread)
        room, pushed = self("Sub", b, past), self("Div", barrier, weight)
        loose = self("Div", weight, self("Max", room, pushed))
        wish = self("Sub", pushed, room)
        system = self("Add", self("MatMul", spread_turned, self("Mul", loose, spread)), whole)
        unit = self("Div", self.const(1), self("Sqrt", self.total(self("Mul", system, whole), 2)))
        system = self("Mul", self("Mul", unit, system), self.turned(unit))
        system = self("Add", system, self.const(fixed.RIDGE * eye))
        right = self("Mul", unit, self("MatMul", spread_turned, self("Mul", loose, wish)))
        shared = self("Mul", unit, self._solve(system, right, eye))
        way = self("Mul", loose, self("Sub", wish, self("MatMul", spread, shared)))
        steepest = self.most(self("Neg", self("Div", way, weight)), 1)
        steepest = self("Max", steepest, self.const(1e-9))
        longest = self("Min", self.const(1), self("Div", self.const(fixed.TO_BOUND), steepest))
        moved = self("MatMul", at, way)
        apart = self("Sub", self.most(moved, 1), self("ReduceMin", moved, axes=[1], keepdims=1))
        wide = self("Max", apart, self.const(1e-9))
        longest = self("Min", longest, self("Div", self.const(fixed.MOVED), wide))
        halved = (0.5 ** np.arange(fixed.HALVINGS)).reshape(1, 1, -1)
        lengths = self("Mul", longest, self.const(halved))
        tried = self("Add", weight, self("Mul", way, lengths))
        value = self.log_sum_exp(self("Sub", z, self("MatMul", at, tried)))
        value = self("Add", value, self("MatMul", b_turned, tried))
        value = self("Sub", value, self("Mul", barrier, self.total(self("Log", tried), 1)))
        least = self("ReduceMin", value, axes=[2], keepdims=1)
        margin = self("Mul", self.const(fixed.SAME), self("Add", self.const(1), self("Abs", least)))
        good = self("LessOrEqual", value, self("Add", least, margin))
        length = self.most(self("Where", good, lengths, self.const(0)), 2)
        found = self(
            "And",
            self("LessOrEqual", barrier, self.const(fixed.BARRIER_LAST)),
            self("Less", self("Mul", length, apart), self.const(fixed.STILL)),
        )
        open_ = self("Cast", self("Not", found), to=TensorProto.FLOAT)
        going = self("Greater", self("ReduceMax", open_, keepdims=0), self.const(0, np.float32))
        length = self("Where", found, self.const(0), length)
        weight = self("Add", weight, self("Mul", length, way))
        weight = self("Max", weight, self.const(fixed.WEIGHT_LEAST))
        weight = self("Min", weight, self.const(fixed.WEIGHT_MOST))
        fine = self(
            "And",
            self("GreaterOrEqual", length, self("Mul", longest, self.const(fixed.GOOD_PART))),
            self("Greater", longest, self.const(fixed.GOOD_STEP)),
        )
        lower = self("Mul", barrier, self.const(fixed.BARRIER_FALL))
        lower = self("Max", lower, self.const(fixed.BARRIER_LAST))
        return going, weight, self("Where", fine, lower, barrier)

    def _solve(self, system: str, right: str, eye: np.ndarray[Any, np.dtype[np.float64]]) -> str:
        whole = self("Concat", system, right, axis=2)
        for row in range(len(eye)):
            this = self.cut(whole, 1, row)
            this = self("Div", this, self.cut(this, 2, row))
            rest = self("Sub", self.cut(whole, 2, row), self.const(eye[None, :, row : row + 1]))
            whole = self("Sub", whole, self("MatMul", rest, this))
        return self.cut(whole, 2, len(eye))
