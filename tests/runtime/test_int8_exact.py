"""What a Q/DQ graph says is what ONNX Runtime computes, however it rewrites the graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.deploy.quantize.emulate import emulate
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend

RNG = np.random.default_rng(0)


def pair(source: str) -> list[onnx.NodeProto]:
    names = [source, f"{source}/scale", "zero"]
    return [
        helper.make_node("QuantizeLinear", names, [f"{source}/q"]),
        helper.make_node("DequantizeLinear", [f"{source}/q", *names[1:]], [f"{source}/dq"]),
    ]


def model(
    nodes: list[onnx.NodeProto], shape: list[int], constants: dict[str, npt.NDArray[np.generic]]
) -> onnx.ModelProto:
    """x -> y with a zero point of 0 in int8."""
    values = {"zero": np.array(0, np.int8), **constants}
    given, found = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)
        for name, dims in (("x", ["N", *shape]), ("y", ["N", *["?"] * len(shape)]))
    )
    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in values.items()]
    graph = helper.make_graph(nodes, "g", [given], [found], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 9
    onnx.checker.check_model(proto)
    return proto


def full_product() -> tuple[onnx.ModelProto, npt.NDArray[np.float32]]:
    """Pairs of products that are past 16 bits, where one of the bytes is taken as unsigned."""
    weights = np.full((64, 8), 127, np.int8)
    weight = helper.make_node("DequantizeLinear", ["w", "w/scale", "zero"], ["w/dq"])
    product = helper.make_node("MatMul", ["x/dq", "w/dq"], ["y"])
    constants = {"w": weights, "w/scale": np.float32(1 / 127), "x/scale": np.float32(1 / 127)}
    proto = model([*pair("x"), weight, product], [4, 64], constants)
    return proto, np.ones((1, 4, 64), np.float32)


def bias_between_steps() -> tuple[onnx.ModelProto, npt.NDArray[np.float32]]:
    """A depthwise convolution whose bias lies half a step of input times weight from each."""
    weights = RNG.integers(-127, 128, (8, 1, 3, 3), np.int8)
    scale, bias = np.full(8, 0.1, np.float32), np.full(8, 0.505, np.float32)
    weight = helper.make_node("DequantizeLinear", ["w", "w/scale", "w/zero"], ["w/dq"], axis=0)
    conv = helper.make_node(
        "Conv", ["x/dq", "w/dq", "b"], ["conv"], group=8, kernel_shape=[3, 3], pads=[1] * 4
    )
    # the rewriting looks for what is quantised again
    again = [helper.make_node("Relu", ["conv"], ["relu"]), *pair("relu")]
    again[-1].output[0] = "y"
    proto = model(
        [*pair("x"), weight, conv, *again],
        [8, 6, 6],
        {"w": weights, "w/scale": scale, "w/zero": np.zeros(8, np.int8), "b": bias,
         "x/scale": np.float32(0.1), "relu/scale": np.float32(0.05)},
    )  # fmt: skip
    return proto, RNG.normal(size=(1, 8, 6, 6)).astype(np.float32)


def weights_alone() -> tuple[onnx.ModelProto, npt.NDArray[np.float32]]:
    """A product whose input stays float32."""
    weights = RNG.integers(-127, 128, (64, 16), np.int8)
    names = ["w", "w/scale", "w/zero"]
    weight = helper.make_node("DequantizeLinear", names, ["w/dq"], axis=1)
    product = helper.make_node("MatMul", ["x", "w/dq"], ["y"])
    constants = {"w": weights, "w/scale": np.full(16, 0.01, np.float32),
                 "w/zero": np.zeros(16, np.int8)}  # fmt: skip
    return model([weight, product], [4, 64], constants), RNG.normal(size=(1, 4, 64)).astype(
        np.float32
    )


@pytest.mark.parametrize("make", [full_product, bias_between_steps, weights_alone])
def test_fused_is_as_written(
    make: Callable[[], tuple[onnx.ModelProto, npt.NDArray[np.float32]]], tmp_path: Path
) -> None:
    proto, x = make()
    onnx.save(proto, tmp_path / "model.onnx")
    written = emulate(proto)({"x": x})
    with OnnxRuntimeBackend(tmp_path / "model.onnx", threads=1) as backend:
        fused = backend.infer({"x": x})["y"]
    np.testing.assert_allclose(fused, written, rtol=0, atol=2e-5 * np.abs(written).max())
    np.testing.assert_array_equal(emulate(proto, 1, optimize=True)({"x": x}), fused)


@pytest.mark.parametrize(
    ("words", "unsigned"),
    [
        ("flags : fpu avx2 avx512f", True), ("flags : fpu avx2 avx512_vnni", False),
        ("flags : avx2 avx_vnni", False), ("Features : fp asimd asimddp", False),
        ("Features : fp asimd", True),
    ],
)  # fmt: skip
def test_weights_are_made_unsigned_where_pairs_would_saturate_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, unsigned: bool
) -> None:
    from edgekd.runtime.backends import onnxrt as module

    place = tmp_path / "cpuinfo"
    place.write_text(words + "\n")
    monkeypatch.setattr(module, "Path", lambda path: place if path == "/proc/cpuinfo" else path)
    assert ("session.x64quantprecision" in module.exact_entries()) == unsigned
    assert "session.qdq_matmulnbits_accuracy_level" in module.exact_entries()
