"""Calibration: what is counted is what the model sees; a set that is no set stops the build."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from edgekd.deploy.quantize.calibrate import observe
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.layers import find_layers
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.deploy.quantize.smooth import smooth
from edgekd.errors import InputError
from tests.deploy.quantize.graphs import CLASSES, constants_of, named, perceptron, tiles


def activations(proto, tile: np.ndarray) -> dict[str, np.ndarray]:
    """By hand, with NumPy."""
    c = constants_of(proto)
    values = {"image": tile}
    n = tile.shape[2] // 8
    cut = tile.reshape(1, 3, n, 8, n, 8).transpose(0, 2, 4, 1, 3, 5).reshape(1, n, n, -1)
    stream = cut @ c["embed.weight"].reshape(len(c["embed.weight"]), -1).T
    for block in range(2):
        mean, var = stream.mean(-1, keepdims=True), stream.var(-1, keepdims=True)
        normed = (stream - mean) / np.sqrt(var + 1e-5)
        normed = normed * c[f"blocks.{block}.norm.weight"] + c[f"blocks.{block}.norm.bias"]
        act = np.maximum(normed @ c[f"blocks.{block}.fc1.weight_t"], 0)
        values[f"blocks.{block}.normed"], values[f"blocks.{block}.act"] = normed, act
        stream = stream + act @ c[f"blocks.{block}.fc2.weight_t"]
    values["stream2"] = stream
    values["last"] = stream.transpose(0, 3, 1, 2)
    return values


def test_ranges_channels_and_count_are_those_of_the_tiles() -> None:
    proto, given = perceptron(), tiles(5)
    steps: list[tuple[int, int]] = []
    found = observe(proto, find_layers(proto), named(given), 5, step=lambda *at: steps.append(at))
    by_hand = [activations(proto, tile) for tile in given]
    assert found.tiles == 5 and steps == [(n, 5) for n in range(1, 6)]
    assert found.sha256 == hashlib.sha256(b"".join(t.tobytes() for t in given)).hexdigest()
    assert set(found.histograms) == {
        "image", "last", *(f"blocks.{b}.{n}" for b in (0, 1) for n in ("normed", "act"))
    }  # fmt: skip
    for name, histogram in found.histograms.items():
        top = max(np.abs(values[name]).max() for values in by_hand)
        assert histogram.largest == pytest.approx(top, rel=1e-5)
        assert histogram.count == sum(values[name].size for values in by_hand)
        axes = (0, 2, 3) if name in ("image", "last") else (0, 1, 2)
        channels = np.max([np.abs(values[name]).max(axis=axes) for values in by_hand], axis=0)
        np.testing.assert_allclose(found.channels[name], channels, rtol=1e-4)
    for name in ("stream2", "blocks.1.act"):
        top = max(np.abs(values[name]).max() for values in by_hand)
        assert found.largest[name] == pytest.approx(top, rel=1e-5)
    assert {"map", "logits", "cells", "blocks.0.up"} <= set(found.largest)


def test_two_calibrations_are_equal_and_one_tile_more_is_another() -> None:
    proto = perceptron()
    layers = find_layers(proto)
    one, two = (observe(proto, layers, named(tiles(4)), 4) for _ in range(2))
    for method in ("minmax", "percentile", "entropy"):
        assert one.ranges(method, 99.9) == two.ranges(method, 99.9)
    assert one.sha256 == two.sha256 != observe(proto, layers, named(tiles(5)), 5).sha256


@pytest.mark.parametrize(
    ("count", "given", "says"),
    [
        (0, 0, "at least 2 tiles"),
        (1, 5, "at least 2 tiles"),
        (4, 3, "asked for 4 tiles and the set gave 3"),
        (4, 0, "asked for 4 tiles and the set gave 0"),
    ],
)
def test_empty_and_short_sets_stop(count: int, given: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        observe(perceptron(), find_layers(perceptron()), named(tiles(given)), count)


def test_a_set_that_repeats_stops() -> None:
    one, two = tiles(2)
    with pytest.raises(InputError, match="tile 3 is the same as an earlier one"):
        observe(perceptron(), find_layers(perceptron()), named([one, two, one.copy()]), 3)


def test_a_set_of_plain_colours_stops_and_one_black_margin_does_not() -> None:
    plain = [np.full_like(tiles(1)[0], number) for number in range(4)]
    with pytest.raises(InputError, match="none of the 4 calibration tiles shows anything"):
        observe(perceptron(), find_layers(perceptron()), named(plain), 4)
    mixed = [*plain[:3], tiles(1)[0]]
    assert observe(perceptron(), find_layers(perceptron()), named(mixed), 4).tiles == 4


def test_a_set_that_fails_stops_with_its_own_error() -> None:
    def broken():
        yield from named(tiles(2))
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        observe(perceptron(), find_layers(perceptron()), broken(), 4)


def test_nan_in_a_tile_stops() -> None:
    bad = tiles(3)
    bad[1][0, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="calibration tile 2: .*NaN"):
        observe(perceptron(), find_layers(perceptron()), named(bad), 3)


def test_tiles_beyond_the_number_asked_for_are_not_touched() -> None:
    taken = 0

    def counted():
        nonlocal taken
        for tile in named(tiles(9)):
            taken += 1
            yield tile

    observe(perceptron(), find_layers(perceptron()), counted(), 3)
    assert taken == 3


_PEAK = """
import resource, sys
import numpy as np, onnx
from onnx import TensorProto, helper
from edgekd.deploy.quantize.calibrate import observe
from edgekd.deploy.quantize.emulate import emulate
SIDE, DEPTH = 1024, 40
nodes, name = [], "image"
for number in range(DEPTH):
    for op in ("Relu", "Neg"):
        nodes.append(helper.make_node(op, [name], [f"{op}{number}"], f"b{number}/{op}"))
        name = f"{op}{number}"
nodes.append(helper.make_node("Identity", [name], ["logits"], "end/Identity"))
info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, SIDE, SIDE])
        for n in ("image", "logits")]
graph = helper.make_graph(nodes, "chain", info[:1], info[1:])
proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
tiles = [{"image": np.random.default_rng(n).normal(size=(1, 1, SIDE, SIDE)).astype("f4")}
         for n in range(2)]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
emulate(proto, 1, True)(tiles[0])
before = peak()
found = observe(proto, [], tiles, 2, threads=1)
print(peak() - before, len(found.largest))
"""


def test_activations_are_let_go_as_soon_as_they_were_looked_at() -> None:
    """80 tensors of 4 MiB one after another; all of them would be 320 MiB."""
    done = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, text=True, check=True)
    grown_kib, tensors = map(int, done.stdout.split())
    assert tensors == 81
    assert grown_kib < 100 * 1024


def test_smoothing_leaves_the_model_and_evens_out_a_channel() -> None:
    """A channel that a gain makes 60 times larger than the others."""
    proto = perceptron()
    from onnx import numpy_helper

    for item in proto.graph.initializer:
        if item.name == "blocks.0.norm.weight":
            values = numpy_helper.to_array(item).copy()
            values[3] *= 60
            item.CopyFrom(numpy_helper.from_array(values, item.name))
        if item.name == "blocks.0.fc1.weight_t":
            values = numpy_helper.to_array(item).copy()
            values[3] /= 60
            item.CopyFrom(numpy_helper.from_array(values, item.name))
    layers = find_layers(proto)
    seen = observe(proto, layers, named(tiles(4)), 4)
    result, factors = smooth(proto, layers, seen.channels, 0.5)
    assert set(factors) == {"blocks.0.normed", "blocks.1.normed"}
    given = named(tiles(1, seed=9))[0]
    want = emulate(proto)(given)
    np.testing.assert_allclose(emulate(result)(given), want, atol=1e-4)
    after = observe(result, layers, named(tiles(4)), 4)
    uneven = {
        name: float(item.channels["blocks.0.normed"].max() / item.channels["blocks.0.normed"].min())
        for name, item in (("before", seen), ("after", after))
    }
    assert uneven["after"] < uneven["before"] / 4
    errors = [
        np.abs(emulate(insert_qdq(p, layers, s.ranges("minmax", 0)))(given) - want).mean()
        for p, s in ((proto, seen), (result, after))
    ]
    assert errors[1] < errors[0], "and eight bits lose less"
    assert want.shape[1] == CLASSES


def test_smoothing_leaves_a_norm_alone_that_somebody_else_reads() -> None:
    from onnx import TensorProto, helper

    proto = perceptron()
    proto.graph.node.append(helper.make_node("Relu", ["blocks.0.normed"], ["x"], "other/Relu"))
    proto.graph.output.append(
        helper.make_tensor_value_info("blocks.1.normed", TensorProto.FLOAT, None)
    )
    layers = find_layers(proto)
    seen = observe(perceptron(), layers, named(tiles(2)), 2)
    assert not smooth(proto, layers, seen.channels, 0.5)[1]
