"""Typed FP16: every type written down, FP32 where it must be, numbers as good as FP16 is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.deploy.export.graph import LIFTED_OPSET, OPSET, lift
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.half import high_nodes, overflowing, to_half
from edgekd.deploy.quantize.layers import find_layers
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.errors import GateError
from tests.deploy.quantize.graphs import named, operators, perceptron, tiles
from tests.deploy.quantize.test_qdq import ranges

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT


def types(proto: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    found = {item.name: item.data_type for item in proto.graph.initializer}
    for item in (*inferred.value_info, *inferred.input, *inferred.output):
        found[item.name] = item.type.tensor_type.elem_type
    return found


def computed_in(proto: onnx.ModelProto) -> dict[str, set[int]]:
    """Node -> float types of its inputs and outputs; Resize's scales and casts left out."""
    found = types(proto)
    return {
        node.name: {
            found[name]
            for name in (*node.input[: 1 if node.op_type == "Resize" else None], *node.output)
            if found.get(name) in (HALF, FLOAT)
        }
        for node in proto.graph.node
        if node.op_type != "Cast"
    }


def test_all_is_half_but_the_ends() -> None:
    result = to_half(perceptron())
    onnx.checker.check_model(result, full_check=True)
    assert all(kinds == {HALF} for kinds in computed_in(result).values())
    found = types(result)
    assert found["image"] == found["logits"] == FLOAT
    assert operators(result).count("Cast") == 2
    resize = next(node for node in result.graph.node if node.op_type == "Resize")
    assert found[resize.input[2]] == FLOAT, "Resize takes its scales in FP32 only"
    halves = [i for i in result.graph.initializer if i.data_type == HALF]
    assert len(result.graph.initializer) == len(halves) + 1


def test_numbers_are_those_of_fp32_to_the_rounding_of_fp16() -> None:
    proto = perceptron()
    for tile in named(tiles(3)):
        want, have = emulate(proto)(tile), emulate(to_half(proto))(tile)
        error = np.abs(want - have).max() / np.abs(want).max()
        assert 0 < error < 5e-3


def test_kept_nodes_are_islands_of_fp32_with_casts_around_them() -> None:
    keep = {"blocks.0.norm/LayerNormalization", "blocks.0.fc1/MatMul"}
    result = to_half(perceptron(), keep)
    onnx.checker.check_model(result, full_check=True)
    kinds = computed_in(result)
    assert {name for name, value in kinds.items() if value == {FLOAT}} == keep
    assert all(len(value) == 1 for value in kinds.values()), "never two types on one node"
    assert set(high_nodes(perceptron(), keep, ())) == keep


def test_nodes_around_a_tensor_that_half_cannot_hold_stay_high() -> None:
    """The residual stream at 1e6: in FP16 infinite, with islands as good as FP32."""
    proto = perceptron()
    for item in proto.graph.initializer:
        if item.name == "embed.weight":
            values = numpy_helper.to_array(item) * np.float32(1e6)
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    tile = named(tiles(1))[0]
    want = emulate(proto)(tile)
    assert not np.isfinite(emulate(to_half(proto))(tile)).all()
    seen = {"map": 1e6, "stream0": 1e6, "stream1": 1e6, "stream2": 1e6, "last": 1e6, "cells": 1e6,
            "wide": 1e6, "logits": 1e6, "blocks.0.normed": 5.0, "blocks.0.up": 9000.0}  # fmt: skip
    large = overflowing(seen)
    assert "blocks.0.normed" not in large and "blocks.0.up" in large, "9000 x 8 is above 65504"
    result = to_half(proto, too_large=large)
    kinds = computed_in(result)
    assert kinds["blocks.1.fc1/MatMul"] == {HALF} and kinds["blocks.0/Add"] == {FLOAT}
    assert kinds["blocks.0.norm/LayerNormalization"] == {FLOAT}
    have = emulate(result)(tile)
    assert np.abs(want - have).max() / np.abs(want).max() < 1e-3


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_values_that_are_not_finite_count_as_too_large(value: float) -> None:
    assert overflowing({"a": value, "b": 1.0}) == {"a"}


def test_a_constant_that_half_cannot_hold_keeps_its_node_high() -> None:
    proto = perceptron()
    for item in proto.graph.initializer:
        if item.name == "decoder.factor":
            item.CopyFrom(numpy_helper.from_array(np.array(1e6, np.float32), item.name))
    assert computed_in(to_half(proto))["decoder/Mul"] == {FLOAT}


def test_an_epsilon_that_half_would_lose_keeps_its_node_high() -> None:
    """1e-12 becomes 0 in FP16, and a division by a length of 0 no number."""
    proto = perceptron()
    for item in proto.graph.initializer:
        if item.name == "decoder.factor":
            item.CopyFrom(numpy_helper.from_array(np.array(1e-12, np.float32), item.name))
    assert computed_in(to_half(proto))["decoder/Mul"] == {FLOAT}
    assert computed_in(to_half(proto))["decoder/Conv"] == {HALF}


def test_operators_without_a_rule_are_refused() -> None:
    proto = perceptron()
    node = helper.make_node("Constant", [], ["c"], "odd/Constant", value_float=1.0)
    proto.graph.node.insert(0, node)
    with pytest.raises(GateError, match="odd/Constant.* no rule for FP16"):
        to_half(proto)


def test_int8_with_half_has_half_scales_and_the_same_integers() -> None:
    proto = perceptron()
    float_scales = insert_qdq(proto, find_layers(proto), ranges(proto))
    result = to_half(lift(float_scales))
    onnx.checker.check_model(result, full_check=True)
    assert result.opset_import[0].version == LIFTED_OPSET and OPSET < LIFTED_OPSET
    found = types(result)
    pairs = [n for n in result.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs and all(found[node.input[1]] == HALF for node in pairs)
    for tile in named(tiles(2)):
        want, have = emulate(float_scales)(tile), emulate(result)(tile)
        assert np.abs(want - have).max() / np.abs(want).max() < 0.02
    scales = {i.name: numpy_helper.to_array(i) for i in float_scales.graph.initializer}
    for item in result.graph.initializer:
        if item.name.endswith("/scale_half"):
            exact = scales[item.name.removesuffix("_half")]
            assert np.array_equal(numpy_helper.to_array(item).astype(np.float32), exact)


def test_lift_knows_reductions_and_refuses_what_it_does_not_know() -> None:
    proto = perceptron()
    proto.graph.node.append(
        helper.make_node("ReduceMean", ["stream2"], ["mean"], "r/ReduceMean", axes=[1], keepdims=1)
    )
    proto.graph.output.append(helper.make_tensor_value_info("mean", FLOAT, ["N", 1, 4, 24]))
    lifted = lift(proto)
    onnx.checker.check_model(lifted, full_check=True)
    node = next(n for n in lifted.graph.node if n.op_type == "ReduceMean")
    assert len(node.input) == 2 and [a.name for a in node.attribute] == ["keepdims"]
    proto.graph.node.append(helper.make_node("BitShift", ["a", "b"], ["c"], "x", direction="LEFT"))
    assert lift(proto).opset_import[0].version == LIFTED_OPSET
    proto.graph.node.append(helper.make_node("ScatterElements", ["a", "b", "c"], ["d"], "odd/S"))
    with pytest.raises(GateError, match="ScatterElements .odd/S. changed between opset 17 and 19"):
        lift(proto)
