"""Chains of convolutions in integers: what is written is what ONNX Runtime computes, fused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts.target import load_target
from edgekd.deploy.quantize import lower as lower_module
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.grounds import Int8
from edgekd.deploy.quantize.integer import MOST_STEPS, Graph, Integer, insert_integer, outputs
from edgekd.deploy.quantize.judge import Quality
from edgekd.deploy.quantize.layers import Layer, find_layers
from edgekd.deploy.quantize.lower import _int8
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.deploy.quantize.ranges import CalibrationFile, read_calibration
from edgekd.runtime.backends.onnxrt import EXACT, ROUNDS_BIASES
from tests.deploy.quantize.graphs import perceptron


def residual(seed: int = 0) -> onnx.ModelProto:
    """A block of a MobileNet: expand, Clip, depthwise, Clip, project, addition; then a mean."""
    draw = np.random.default_rng(seed)
    shapes = {
        "stem": (16, 3, 3, 3), "a.expand": (64, 16, 1, 1), "a.depthwise": (64, 1, 3, 3),
        "a.project": (16, 64, 1, 1), "b.expand": (32, 16, 1, 1), "b.project": (16, 32, 1, 1),
    }  # fmt: skip
    constants = {"low": np.float32(0), "high": np.float32(6)}
    for name, shape in shapes.items():
        size = np.sqrt(np.prod(shape[1:]))
        constants[f"{name}.weight"] = (draw.normal(size=shape) / size).astype(np.float32)
        constants[f"{name}.bias"] = draw.normal(size=shape[0]).astype(np.float32)
    nodes: list[onnx.NodeProto] = []

    def conv(name: str, source: str, clip: bool) -> str:
        side = shapes[name][2]
        group = 64 if name.endswith("depthwise") else 1
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.weight", f"{name}.bias"], [f"{name}.out"], f"{name}/Conv",
                kernel_shape=[side, side], pads=[side // 2] * 4, group=group,
            )
        )  # fmt: skip
        if not clip:
            return f"{name}.out"
        nodes.append(
            helper.make_node(
                "Clip", [f"{name}.out", "low", "high"], [f"{name}.act"], f"{name}/Clip"
            )
        )
        return f"{name}.act"

    start = conv("stem", "image", True)
    deep = conv("a.depthwise", conv("a.expand", start, True), True)
    one = conv("a.project", deep, False)
    nodes.append(helper.make_node("Add", [start, one], ["a.sum"], "a/Add"))
    two = conv("b.project", conv("b.expand", "a.sum", True), False)
    nodes.append(helper.make_node("Add", ["a.sum", two], ["b.sum"], "b/Add"))
    nodes.append(helper.make_node("ReduceMean", ["b.sum"], ["logits"], "mean", axes=[2, 3]))
    graph = helper.make_graph(
        nodes, "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 16, 1, 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made


def picture(seed: int = 1) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).normal(size=(1, 3, 16, 16)).astype(np.float32)}


def values(proto: onnx.ModelProto, names: list[str]) -> dict[str, float]:
    """Largest absolute value of tensors."""
    seen = onnx.ModelProto()
    seen.CopyFrom(proto)
    for name in names:
        if name != "image":
            seen.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(seen.SerializeToString(), providers=["CPUExecutionProvider"])
    found = {"image": picture()["image"]}
    asked = [name for name in names if name != "image"]
    found.update(zip(asked, session.run(asked, picture()), strict=True))
    return {name: float(np.abs(found[name]).max()) for name in names}


def laid(proto: onnx.ModelProto, signed: bool, bits: int = 8) -> onnx.ModelProto:
    layers = find_layers(proto)
    ranges = values(proto, sorted({layer.source for layer in layers}))
    behind = values(proto, outputs(proto, layers))
    made = insert_integer(proto, layers, ranges, Integer(behind, signed), bits)
    onnx.checker.check_model(made)
    return made


def fused(proto: onnx.ModelProto, path: Path) -> Counter[str]:
    """Operators of what ONNX Runtime makes of a graph, with the runtime's own settings."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    for entry, value in EXACT.items():
        options.add_session_config_entry(entry, value)
    ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"],
        disabled_optimizers=ROUNDS_BIASES,
    )  # fmt: skip
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_every_convolution_and_sum_becomes_one_of_integers(tmp_path: Path) -> None:
    proto = residual()
    found = fused(laid(proto, signed=False, bits=7), tmp_path / "model.onnx")
    assert (found["QLinearConv"], found["QLinearAdd"]) == (6, 2)
    assert found["Conv"] + found["FusedConv"] + found["Clip"] + found["Add"] == 0
    layers = find_layers(proto)
    old = insert_qdq(proto, layers, values(proto, sorted({item.source for item in layers})))
    assert fused(old, tmp_path / "old.onnx")["QLinearConv"] < 3


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [(0, 6, 6), (-1, 1, None), (1, 6, None), (0, 0, None), (None, 6, None), (0, None, np.inf)],
)
def test_what_is_never_negative(low: float | None, high: float | None, want: float | None) -> None:
    """A Clip from 0; any other needs codes on both sides of it, or its bottom is not the lowest."""
    limits = {"low": low, "high": high}
    names = [name if value is not None else "" for name, value in limits.items()]
    graph = helper.make_graph(
        [helper.make_node("Clip", ["x", *names], ["y"])], "clip",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.float32(v), n) for n, v in limits.items() if v is not None],
    )  # fmt: skip
    assert Graph(helper.make_model(graph)).top("y") == want


@pytest.mark.parametrize("signed", [True, False])
def test_a_clip_of_both_signs_keeps_its_negative_values(signed: bool) -> None:
    proto = residual()
    for item in proto.graph.initializer:
        if item.name in ("low", "high"):
            limit = np.float32(-1 if item.name == "low" else 1)
            item.CopyFrom(numpy_helper.from_array(limit, item.name))
    want = emulate(proto)(picture())
    made = laid(proto, signed)
    assert np.abs(emulate(made)(picture()) - want).max() < 0.1 * want.std()
    zeros = {item.name: int(numpy_helper.to_array(item)) for item in made.graph.initializer
             if item.name.startswith("quantize/zero")}  # fmt: skip
    assert set(zeros.values()) == {0 if signed else 128}


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_written_is_what_is_fused(signed: bool) -> None:
    proto = residual()
    made = laid(proto, signed, bits=7)
    written, run = emulate(made)(picture()), emulate(made, 1, optimize=True)(picture())
    want = emulate(proto)(picture())
    # a code that rounds the other way moves a mean of 256 by a 256th of a step or two
    assert np.abs(written - run).max() < 0.1 * np.abs(written - want).max()
    assert np.abs(written - want).max() < 0.05 * want.std()


def test_signed_and_unsigned_codes_are_the_same_numbers() -> None:
    proto = residual()
    one, two = (emulate(laid(proto, signed))(picture()) for signed in (True, False))
    assert np.array_equal(one, two)


def test_what_is_never_negative_has_all_codes_and_no_clip() -> None:
    made = laid(residual(), signed=True)
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    for node in made.graph.node:
        assert node.op_type != "Clip"
        if node.op_type == "QuantizeLinear":
            scale, zero = (constants[name] for name in node.input[1:])
            assert zero == (-128 if node.input[0].endswith(".act") else 0), node.name
            if zero == -128:  # QuantizeLinear saturates no later than the Clip would
                assert scale * 255 <= 6.000001


def test_biases_are_int32_with_the_product_s_scale() -> None:
    proto = residual()
    made = laid(proto, signed=True)
    constants = {item.name: numpy_helper.to_array(item) for item in made.graph.initializer}
    makers = {node.output[0]: node for node in made.graph.node}
    for conv in [node for node in made.graph.node if node.op_type == "Conv"]:
        source, weight, bias = (makers[name] for name in conv.input)
        step = constants[source.input[1]] * constants[weight.input[1]]
        assert constants[bias.input[0]].dtype == np.int32
        assert np.array_equal(constants[bias.input[1]], step)
        name = conv.name.split("/")[0]
        want = numpy_helper.to_array(
            next(i for i in proto.graph.initializer if i.name == f"{name}.bias")
        )
        assert (np.abs(constants[bias.input[0]] * step - want) <= 0.501 * step).all()


def test_a_bias_that_int32_cannot_hold_widens_its_weights() -> None:
    proto = residual()
    tiny = next(item for item in proto.graph.initializer if item.name == "a.project.weight")
    tiny.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(tiny) * np.float32(1e-12), tiny.name)
    )
    made = laid(proto, signed=True)
    codes = [numpy_helper.to_array(i) for i in made.graph.initializer if i.name.endswith("int32")]
    assert max(np.abs(item.astype(np.int64)).max() for item in codes) <= MOST_STEPS * 1.001
    written, run = emulate(made)(picture()), emulate(made, 1, optimize=True)(picture())
    assert np.abs(written - run).max() <= 0.01 * np.abs(written).max()


def test_a_convolution_whose_output_is_unknown_keeps_its_products_in_float() -> None:
    proto = residual()
    layers = find_layers(proto)
    ranges = values(proto, sorted({layer.source for layer in layers}))
    made = insert_integer(proto, layers, ranges, Integer({}, True))
    read = {node.name: list(node.input) for node in made.graph.node}
    assert read["a.project/Conv"][2] == "a.project.bias"
    assert read["a/Add"] == ["stem.act/dequantized", "a.project.out"]
    assert read["mean"] == ["b.sum"]


def test_without_convolutions_the_file_is_as_ever() -> None:
    proto = perceptron()
    layers = [layer for layer in find_layers(proto) if layer.kind != "conv"]
    ranges = {layer.source: 3.0 for layer in layers}
    assert outputs(proto, layers) == []
    made = insert_integer(proto, layers, ranges, Integer({}, True))
    assert made.SerializeToString(deterministic=True) == insert_qdq(
        proto, layers, ranges
    ).SerializeToString(deterministic=True)


class Tried:
    """Stands for :class:`Grounds`: the verdict on each layout is given."""

    def __init__(self, *verdicts: tuple[bool, int]) -> None:
        self.proto = residual()
        self.verdicts = dict(zip((True, False), verdicts, strict=True))
        self.said: list[str] = []
        self.say = self.said.append

    def layers(self) -> list[Layer]:
        return find_layers(self.proto)

    def int8(
        self,
        calibration: CalibrationFile,
        bits: int,
        optimize: bool,
        integer: Integer | None = None,
    ) -> Int8:
        passed, high = self.verdicts[integer is not None]
        quality = Quality(0.5, 0.99, 0.01, 0.1, 2, 0.1, 1.0)
        names = [f"layer {number}" for number in range(high)]
        ranges = calibration.ranges
        why = "keeps the gates" if passed else "fails the gates"
        return Int8(self.proto, self.layers(), ranges, quality, passed, why, names, {}, integer)


def calibrated(schema: int) -> CalibrationFile:
    proto = residual()
    sources = sorted({layer.source for layer in find_layers(proto)})
    return CalibrationFile(
        schema=schema, model_sha256="0" * 64, input_sha256="0" * 64, tiles=2,
        tiles_sha256="0" * 64, source="made up", range="minmax", percentile=None, smooth=0,
        channels={}, ranges=values(proto, sources), largest={},
        outputs=values(proto, outputs(proto, find_layers(proto))) if schema == 2 else {},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("chains", "products", "taken"),
    [
        ((True, 0), (True, 0), "chains"),
        ((True, 2), (True, 0), "chains"),  # nobody can time them here, and they are the fast ones
        ((False, 3), (True, 3), "products"),
        ((False, 1), (False, 1), "chains"),
    ],
)
def test_products_alone_are_what_a_build_falls_back_to_and_says_so(
    chains: tuple[bool, int], products: tuple[bool, int], taken: str
) -> None:
    tried = Tried(chains, products)
    found, others = _int8(tried, calibrated(2), load_target("rpi5"), 8)  # type: ignore[arg-type]
    assert ("chains" if found.integer is not None else "products") == taken
    assert len(others) == (not chains[0])
    for item in others:
        assert not item.chosen and "end to end" in item.why and "products alone" in item.why


@pytest.mark.parametrize(
    ("chains", "seconds", "taken"),
    [
        ((True, 0), (9.0, 1.0), "chains"),  # nothing to be asked: products are not tried
        ((True, 1), (2.0, 3.0), "chains"),
        ((True, 1), (3.0, 2.0), "products"),
        ((False, 1), (2.0, 3.0), "products"),
    ],
)
def test_of_two_layouts_that_keep_the_gates_the_faster_is_taken(
    monkeypatch: pytest.MonkeyPatch, chains: tuple[bool, int], seconds: tuple[float, float],
    taken: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(lower_module, "is_timeable", lambda target: True)
    left = list(seconds)
    monkeypatch.setattr(lower_module, "timed", lambda grounds, proto: (1.0, left.pop(0)))
    tried: Any = Tried(chains, (True, 0))
    tried.material = SimpleNamespace(unit="place")
    found, others = _int8(tried, calibrated(2), load_target("x86-cpu"), 7)
    assert ("chains" if found.integer is not None else "products") == taken
    assert len(others) == (chains != (True, 0)) and not any(item.chosen for item in others)
    if chains == (True, 1):
        assert "3 s of one core a place" in others[0].why and "is faster: 2 s" in others[0].why


def test_a_calibration_without_outputs_keeps_convolutions_in_float_and_says_so() -> None:
    tried = Tried((True, 0), (True, 0))
    found, _ = _int8(tried, calibrated(1), load_target("rpi5"), 8)  # type: ignore[arg-type]
    assert found.integer is None
    assert "calibrate again" in tried.said[0]


def test_codes_are_unsigned_on_x86_alone() -> None:
    for target, signed in (("rpi4", True), ("rpi5", True), ("x86-cpu", False)):
        found, _ = _int8(Tried((True, 0), (True, 0)), calibrated(2), load_target(target), 8)  # type: ignore[arg-type]
        assert found.integer is not None and found.integer.signed == signed


@pytest.mark.parametrize("schema", [1, 2])
def test_calibration_files_of_both_schemas_are_read(schema: int, tmp_path: Path) -> None:
    file = calibrated(schema)
    (tmp_path / "calibration.json").write_text(file.text())
    assert ("outputs" in file.text()) == (schema == 2)
    assert read_calibration(tmp_path / "calibration.json") == file
