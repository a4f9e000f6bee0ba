"""Q/DQ stands where it should and nowhere else, and loses what 8 bits lose."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import helper

from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.layers import choose_layers, find_layers, require_modules
from edgekd.deploy.quantize.qdq import insert_qdq, quantized, storable, weight_scales
from edgekd.errors import InputError
from tests.deploy.quantize.graphs import constants_of, named, operators, perceptron, tiles


def ranges(proto: onnx.ModelProto, value: float = 4.0) -> dict[str, float]:
    return {layer.source: value for layer in find_layers(proto)}


def test_layers_are_found_by_their_names_and_kinds() -> None:
    found = {layer.name: (layer.kind, layer.axis) for layer in find_layers(perceptron())}
    assert found == {
        "embed": ("patch", 0),
        "blocks.0.fc1": ("linear", 1),
        "blocks.0.fc2": ("linear", 1),
        "blocks.1.fc1": ("linear", 1),
        "blocks.1.fc2": ("linear", 1),
        "decoder": ("conv", 0),
    }


def test_products_of_two_activations_are_no_layers() -> None:
    proto = perceptron()
    node = helper.make_node("MatMul", ["stream2", "stream2"], ["square"], "attention/MatMul")
    proto.graph.node.append(node)
    assert "attention" not in [layer.name for layer in find_layers(proto)]


def test_patterns_keep_layers_high_and_a_slip_is_refused() -> None:
    layers = find_layers(perceptron())
    chosen = choose_layers(layers, ["linear", "patch"], ["blocks.1.*"])
    assert [layer.name for layer in chosen] == ["embed", "blocks.0.fc1", "blocks.0.fc2"]
    require_modules(perceptron(), ["blocks.1.*", "embed"])
    with pytest.raises(InputError, match=r"'block.1.fc2' matches no layer; did you mean 'blocks"):
        require_modules(perceptron(), ["block.1.fc2"])


@pytest.mark.parametrize("as_int8", [True, False])
def test_pairs_stand_on_both_inputs_of_the_chosen_layers_only(as_int8: bool) -> None:
    proto = perceptron()
    layers = [layer for layer in find_layers(proto) if layer.name in ("embed", "blocks.1.fc1")]
    result = insert_qdq(proto, layers, ranges(proto), weights_as_int8=as_int8)
    onnx.checker.check_model(result, full_check=True)
    made_by = {name: node for node in result.graph.node for name in node.output}
    constants = constants_of(result)
    for node in result.graph.node:
        fed = [made_by[name].op_type for name in node.input if name in made_by]
        if node.name in ("embed/Conv", "blocks.1.fc1/MatMul"):
            assert [made_by[name].op_type for name in node.input] == ["DequantizeLinear"] * 2
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert "DequantizeLinear" not in fed, node.name
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = constants[node.input[1]], constants[node.input[2]]
            assert zero.dtype == np.int8 and not zero.any() and (scale > 0).all()
            weight = "weight" in node.input[1]
            assert (scale.ndim == 1) == weight, "per channel on weights, per tensor on activations"
            assert scale.shape == zero.shape
    kinds = operators(result)
    assert kinds.count("QuantizeLinear") == (2 if as_int8 else 4)
    assert kinds.count("DequantizeLinear") == 4
    untouched = [name for name in constants if name in constants_of(proto)]
    assert "blocks.0.fc1.weight_t" in untouched and "embed.weight" not in untouched
    assert operators(proto) == operators(perceptron()), "the given model is left alone"


def test_both_forms_of_weights_give_the_same_numbers() -> None:
    proto = perceptron()
    layers = find_layers(proto)
    for bits in (8, 7):
        given_ranges = ranges(proto)
        one = insert_qdq(proto, layers, given_ranges, weight_bits=bits)
        two = insert_qdq(proto, layers, given_ranges, weight_bits=bits, weights_as_int8=False)
        for tile in named(tiles(2)):
            assert np.array_equal(emulate(one)(tile), emulate(two)(tile))


def test_seven_bits_stay_below_the_pair_sum_that_saturates() -> None:
    proto = perceptron()
    result = insert_qdq(proto, find_layers(proto), ranges(proto), weight_bits=7)
    codes = [value for name, value in constants_of(result).items() if name.endswith("/int8")]
    assert codes and max(int(np.abs(value.astype(int)).max()) for value in codes) == 63
    assert 2 * 255 * 63 < 2**15


@settings(max_examples=60, deadline=None)
@given(
    npst.arrays(np.float32, (6, 5), elements=st.floats(-50, 50, width=32, allow_subnormal=False)),
    st.sampled_from([7, 8]),
    st.sampled_from([0, 1]),
)
def test_a_weight_is_off_by_half_a_step_at_most(values: np.ndarray, bits: int, axis: int) -> None:
    scales = weight_scales(values, axis, bits)
    codes = quantized(values, scales, axis, bits)
    assert codes.dtype == np.int8 and np.abs(codes.astype(int)).max() <= 2 ** (bits - 1) - 1
    wide = scales.reshape((-1, 1) if axis == 0 else (1, -1)).astype(np.float64)
    assert (np.abs(codes * wide - values) <= wide / 2 * (1 + 1e-9)).all()
    assert (scales.astype(np.float16).astype(np.float32) == scales).all()


def test_a_channel_of_zeros_has_a_positive_scale() -> None:
    assert (weight_scales(np.zeros((3, 4), np.float32), 0, 8) == 1).all()
    assert storable(np.array([1e-12]))[0] == np.float32(2.0**-24)
    with pytest.raises(InputError, match="more than FP16 holds"):
        storable(np.array([1.0, 7e4]))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), None])
def test_a_range_that_cannot_be_used_is_refused(value: float | None) -> None:
    proto = perceptron()
    given_ranges = ranges(proto)
    if value is None:
        del given_ranges["blocks.0.act"]
    else:
        given_ranges["blocks.0.act"] = value
    with pytest.raises(InputError, match=r"blocks\.0\.fc2 has no usable range"):
        insert_qdq(proto, find_layers(proto), given_ranges)


def test_biases_stay_float_and_nothing_is_int32() -> None:
    proto = perceptron()
    result = insert_qdq(proto, find_layers(proto), ranges(proto))
    assert {value.dtype.name for value in constants_of(result).values()} == {"float32", "int8"}
