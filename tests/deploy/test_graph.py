"""Opset 18 to 17: every rule gives a graph with the same numbers, and what has none is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.deploy.export import graph
from edgekd.errors import GateError

SHAPE = (2, 3, 6, 8)
Node = onnx.NodeProto


def model(
    nodes: list[Node], constants: dict[str, Any] | None = None, opset: int = 18
) -> onnx.ModelProto:
    """``x (2, 3, 6, 8)`` through the nodes to ``y``; constants are initializers."""
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
    )
    proto.ir_version = 9
    return proto


def result(proto: onnx.ModelProto) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.random.default_rng(8).normal(0, 1, SHAPE).astype(np.float32)
    return np.asarray(session.run(None, {"x": x})[0])


def reduced(kind: str, **attributes: Any) -> tuple[list[Node], dict[str, Any]]:
    node = helper.make_node(kind, ["x", "axes"], ["y"], name=kind, **attributes)
    return [node], {"axes": np.array([1, 3], np.int64)}


RESIZE = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
RULES: dict[str, Callable[[], tuple[list[Node], dict[str, Any]]]] = {
    "Resize with the defaults of 18": lambda: (
        [helper.make_node("Resize", ["x", "", "scales"], ["y"], antialias=0,
                          keep_aspect_ratio_policy="stretch", **RESIZE)],
        {"scales": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize without them": lambda: (
        [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **RESIZE)],
        {"sizes": np.array([2, 3, 9, 20], np.int64)},
    ),
    "Split with sizes": lambda: (
        [helper.make_node("Split", ["x", "sizes"], ["a", "b"], axis=3),
         helper.make_node("Concat", ["b", "a"], ["y"], axis=3)],
        {"sizes": np.array([3, 5], np.int64)},
    ),
    "Pad": lambda: (
        [helper.make_node("Pad", ["x", "pads", "value"], ["y"], mode="constant")],
        {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4], np.int64), "value": np.float32(7)},
    ),
    "Pad by reflection": lambda: (
        [helper.make_node("Pad", ["x", "pads"], ["y"], mode="reflect")],
        {"pads": np.array([0, 0, 1, 2, 0, 0, 3, 4], np.int64)},
    ),
    "ReduceMean": lambda: reduced("ReduceMean", keepdims=1),
    "ReduceMax without keepdims": lambda: reduced("ReduceMax", keepdims=0),
    "ReduceL2 with noop 0": lambda: reduced("ReduceL2", noop_with_empty_axes=0),
    "ReduceMin over everything": lambda: (
        [helper.make_node("ReduceMin", ["x"], ["y"])], {}
    ),
    "ReduceSum keeps its input": lambda: reduced("ReduceSum", keepdims=1),
    "Add is the same in both": lambda: (
        [helper.make_node("Add", ["x", "one"], ["y"])], {"one": np.float32(1)}
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_a_lowered_graph_gives_the_same_numbers(rule: str) -> None:
    proto = model(*RULES[rule]())
    before = result(proto)
    shaped = helper.make_tensor_value_info("y", TensorProto.FLOAT, before.shape)
    proto.graph.output[0].CopyFrom(shaped)  # the checker wants one
    graph._lower(proto)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
    onnx.checker.check_model(proto)
    for node in proto.graph.node:  # the checker lets unknown attributes pass
        known = set(onnx.defs.get_schema(node.op_type, 17).attributes)
        assert {item.name for item in node.attribute} <= known, node
    after = result(proto)
    assert after.shape == before.shape and np.array_equal(before, after)


def test_constants_that_nothing_uses_any_more_go() -> None:
    proto = model(*reduced("ReduceMean"))
    graph._lower(proto)
    assert [item.name for item in proto.graph.initializer] == []


@pytest.mark.parametrize(
    ("node", "constants", "words"),
    [
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], name="up", antialias=1, **RESIZE),
            {"s": np.array([1, 1, 0.5, 0.5], np.float32)},
            r"Resize \(up\) needs antialias",
        ),
        (
            helper.make_node("Resize", ["x", "", "", "s"], ["y"], name="up",
                             keep_aspect_ratio_policy="not_larger", **RESIZE),
            {"s": np.array([2, 3, 9, 9], np.int64)},
            r"Resize \(up\) needs keep_aspect_ratio_policy",
        ),
        (
            helper.make_node("Resize", ["x", "", "s"], ["y"], name="up", axes=[2, 3], **RESIZE),
            {"s": np.array([2, 2], np.float32)},
            r"holds a Resize \(up\) that opset 17 cannot say",
        ),
        (
            helper.make_node("Split", ["x"], ["y", "z"], name="cut", axis=3, num_outputs=2),
            {},
            r"holds a Split \(cut\) that opset 17 cannot say",
        ),
        (
            helper.make_node("Pad", ["x", "p", "", "axes"], ["y"], name="rim"),
            {"p": np.array([1, 1], np.int64), "axes": np.array([2], np.int64)},
            r"holds a Pad \(rim\) that opset 17 cannot say",
        ),
        (
            helper.make_node("ReduceMean", ["x"], ["y"], name="mean", noop_with_empty_axes=1),
            {},
            r"ReduceMean \(mean\) needs noop_with_empty_axes",
        ),
        (
            helper.make_node("Mish", ["x"], ["y"], name="act"),
            {},
            r"holds a Mish \(act\) that opset 17 cannot say; write the student without it",
        ),
        (
            helper.make_node("BitwiseNot", ["x"], ["y"], name="bits"),
            {},
            r"holds a BitwiseNot \(bits\)",
        ),
        (
            helper.make_node("FusedConv", ["x"], ["y"], domain="com.microsoft"),
            {},
            r"holds com.microsoft.FusedConv, not an ONNX operator",
        ),
    ],
)  # fmt: skip
def test_what_17_cannot_say_is_refused(node: Node, constants: dict[str, Any], words: str) -> None:
    with pytest.raises(GateError, match=words):
        graph._lower(model([node], constants))


def test_axes_that_are_computed_are_refused() -> None:
    nodes = [
        helper.make_node("Identity", ["a"], ["axes"]),
        helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="mean"),
    ]
    with pytest.raises(GateError, match=r"ReduceMean \(mean\)"):
        graph._lower(model(nodes, {"a": np.array([1], np.int64)}))


def test_strip_leaves_nothing_of_the_build_machine() -> None:
    proto = model([helper.make_node("Relu", ["x"], ["y"], name="r", doc_string="/home/me/a.py")])
    proto.doc_string = proto.graph.doc_string = "File /home/me/b.py, line 3"
    proto.producer_version = "/home/me/2.13"
    for item in (proto, proto.graph.node[0], proto.graph):
        if hasattr(item, "metadata_props"):
            item.metadata_props.add(key="trace", value="/home/me/c.py")
    proto.graph.input[0].doc_string = "/home/me"
    proto.graph.value_info.append(helper.make_tensor_value_info("/home/me", 1, None))
    assert b"/home/me" in proto.SerializeToString()
    graph._strip(proto)
    assert b"/home/me" not in proto.SerializeToString()
