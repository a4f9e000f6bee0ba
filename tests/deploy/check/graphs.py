"""One small graph for every rule of ``edgekd check``, each wrong in one way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.helpers.onnx_graphs import (
    Tiny,
    attention,
    linear,
    quantized,
    quantized_weight,
    ramp,
    written_layernorm,
)

Build = Callable[[], onnx.ModelProto]
FLOAT, HALF, BFLOAT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
ORIN = "agx-orin"


@dataclass(frozen=True)
class Case:
    """A graph, and the rule that finds it.

    Attributes:
        name: what is wrong.
        build: makes the model.
        rule, severity: what is found; ``words`` stand in its line.
        target, version: for which; the version is TensorRT's and None is the target's.
        fine: targets or TensorRT versions for which the rule says nothing.
        precision: what the engine is to compute in where the file holds FP32.
    """

    name: str
    build: Build
    rule: str
    words: tuple[str, ...]
    severity: str = "error"
    target: str = ORIN
    version: str | None = None
    fine: tuple[str, ...] = ()
    precision: Literal["fp32", "fp16"] | None = None


def good(dtype: int = FLOAT, opset: int = 17) -> onnx.ModelProto:
    """Attention with two heads of 16 and a linear layer: nothing is wrong with it."""
    tiny = Tiny(("N", 64, 32), dtype, opset)
    return tiny.model(linear(tiny, attention(tiny), "out", 32))


def _node(
    kind: str, opset: int = 17, dtype: int = FLOAT, shape: Any = ("N", 4, 8), **more: Any
) -> Build:
    def build() -> onnx.ModelProto:
        tiny = Tiny(shape, dtype, opset)
        domain = more.get("domain", "")
        if domain:
            tiny.domains.append(domain)
        return tiny.model(tiny.add(kind, ["image"], "out", **more))

    return build


def _layernorm(**more: Any) -> Build:
    def build() -> onnx.ModelProto:
        tiny = Tiny()
        names = ["image", tiny.weight("w", np.ones(8)), tiny.weight("b", np.zeros(8))]
        return tiny.model(tiny.add("LayerNormalization", names, "out", **more))

    return build


def _attention(dtype: int, shape: Any, width: int, quantize: tuple[str, ...] = ()) -> Build:
    def build() -> onnx.ModelProto:
        tiny = Tiny(shape, dtype, 20 if dtype == HALF else 17)
        return tiny.model(attention(tiny, width=width, quantize=quantize))

    return build


def _written(dtype: int, square: str = "Pow") -> Build:
    def build() -> onnx.ModelProto:
        tiny = Tiny(dtype=dtype)
        return tiny.model(written_layernorm(tiny, square=square))

    return build


def _quantized(opset: int = 17, dtype: int = FLOAT, high: int = 127, **more: Any) -> Build:
    """A product with Q/DQ on both inputs; ``more`` goes to the activation's Q/DQ."""

    def build() -> onnx.ModelProto:
        tiny = Tiny(("N", 4, 8), dtype, opset)
        source = quantized(tiny, "image", "in", **more)
        weight = quantized_weight(tiny, "w", high)
        return tiny.model(tiny.add("MatMul", [source, weight], "out"))

    return build


def _quantized_bias() -> onnx.ModelProto:
    tiny = Tiny()
    product = tiny.add(
        "MatMul", [quantized(tiny, "image", "in"), quantized_weight(tiny, "w")], "product"
    )
    names = [
        tiny.weight("b", np.arange(8), np.int32),
        tiny.weight("b.scale", np.asarray(0.001)),
        tiny.weight("b.zero", np.asarray(0), np.int32),
    ]
    bias = tiny.add("DequantizeLinear", names, "bias")
    return tiny.model(tiny.add("Add", [product, bias], "out"))


def _bare_weight() -> onnx.ModelProto:
    tiny = Tiny()
    tiny.weight("w8", np.ones((8, 8)), np.int8)
    weight = tiny.add("DequantizeLinear", ["w8", tiny.weight("scale", np.asarray(0.1))], "w")
    return tiny.model(tiny.add("MatMul", ["image", weight], "out"))


def _computed_scale() -> onnx.ModelProto:
    tiny = Tiny()
    tiny.add("ReduceMax", ["image"], "scale", keepdims=0)
    tiny.weight("zero", np.asarray(0), np.int8)
    tiny.add("QuantizeLinear", ["image", "scale", "zero"], "q")
    return tiny.model(tiny.add("DequantizeLinear", ["q", "scale", "zero"], "out"))


def _mixed() -> onnx.ModelProto:
    tiny = Tiny(dtype=HALF)
    weight = tiny.weight("divisor", ramp(8) + 2, np.float32)
    return tiny.model(tiny.add("Div", ["image", weight], "out"))


def _antialias() -> onnx.ModelProto:
    tiny = Tiny(("N", 4, 8, 8), opset=18)
    sizes = tiny.weight("scales", [1, 1, 0.5, 0.5])
    return tiny.model(tiny.add("Resize", ["image", "", sizes], "out", mode="linear", antialias=1))


def _dynamic(shape: Any) -> Build:
    return _node("Relu", shape=shape)


def _uint8_inside() -> onnx.ModelProto:
    tiny = Tiny()
    tiny.add("Cast", ["image"], "small", to=TensorProto.UINT8)
    return tiny.model(tiny.add("Cast", ["small"], "out", to=FLOAT))


def _function() -> onnx.ModelProto:
    model = _node("Relu")()
    model.functions.append(
        helper.make_function(
            "local", "twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])],
            [helper.make_opsetid("", 17)],
        )
    )  # fmt: skip
    return model


def _ir(version: int) -> Build:
    def build() -> onnx.ModelProto:
        model = good()
        model.ir_version = version
        return model

    return build


def _attention_operator(dtype: int) -> Build:
    def build() -> onnx.ModelProto:
        tiny = Tiny(("N", 2, 64, 32), dtype, 23)
        return tiny.model(tiny.add("Attention", ["image", "image", "image"], "out"))

    return build


def _integer_product() -> onnx.ModelProto:
    """What quantize_dynamic writes."""
    tiny = Tiny(("N", 4, 8))
    weight = tiny.weight("w", np.ones((8, 8)), np.int8)
    tiny.add("DynamicQuantizeLinear", ["image"], "q", outputs=["q", "scale", "zero"])
    tiny.add("MatMulInteger", ["q", weight], "sum")
    return tiny.model(tiny.add("Cast", ["sum"], "out", to=FLOAT))


CASES = [
    Case("opset of torch's default for 8.6", lambda: good(opset=18), "opset",
         ("opset 18", "TensorRT 8.6 reads up to 17"), version="8.6", fine=("10.3", "11.4")),
    Case("opset 23", lambda: good(opset=23), "opset", ("opset 23", "10.3 reads up to 20"),
         fine=("10.15", "11.0")),
    Case("opset between documented ones", lambda: good(opset=21), "opset",
         ("for TensorRT 10.7 only 20 is documented",), "warning", version="10.7", fine=("11.4",)),
    Case("opset too old", lambda: good(opset=8), "opset", ("reads 9 and later",)),
    Case("Attention operator, old", _attention_operator(HALF), "operator",
         ("Attention is read from TensorRT 10.14 on", "the target has 10.3"),
         fine=("10.14", "11.4")),
    Case("Gelu operator", _node("Gelu", 20), "operator", ("Gelu is read from TensorRT 10.0",),
         version="8.6", fine=("10.3", "11.4")),
    Case("LayerNormalization, JetPack 5", _layernorm(), "operator",
         ("LayerNormalization is read from TensorRT 8.6 on",), version="8.5", fine=("8.6",)),
    Case("operator that no version has", _node("Unique"), "operator",
         ("TensorRT has no operator Unique",), version="11.4"),
    Case("operator of an unknown version", _node("HardSwish"), "operator",
         ("taken up between TensorRT 8.4 and 10.15",), "warning", fine=("10.15",)),
    Case("operator of a plug-in", _node("FusedGelu", domain="com.acme"), "operator",
         ("com.acme.FusedGelu is no ONNX operator", "plug-in")),
    Case("local functions", _function, "functions", ("local functions", "8.6"), version="8.6",
         fine=("10.3",)),
    Case("BF16 on 8.6", lambda: good(BFLOAT), "types.unknown",
         ("8.6 holds no tensors of bfloat16; 10.0 and later do",), version="8.6", fine=("10.3",)),
    Case("uint8 inside", _uint8_inside, "types.unknown", ("uint8 inside the network",)),
    Case("float64", _node("Relu", dtype=TensorProto.DOUBLE), "types.unknown", ("float64",),
         "warning"),
    Case("Resize with antialias", _antialias, "resize.antialias", ("antialias",), version="11.4"),
    Case("LayerNormalization with mean", _layernorm(outputs=["out", "mean"]),
         "layernorm.outputs", ("only the first is read",)),
    Case("Attention operator in FP32", _attention_operator(FLOAT), "attention.operator",
         ("Attention in float has no fused kernel", "the build fails"), version="11.4",
         fine=("10.3",)),
    Case("attention in FP32", good, "attention.fp32", ("never fuses", "64 x 64 for every head",
         "--precision fp32 where FP32 is meant"), version="11.4"),
    Case("attention in FP32 before 10.12", good, "attention.fp32",
         ("--precision fp16 where the builder lowers it by flag",)),
    Case("attention in FP32 that is meant", good, "attention.fp32", ("never fuses",), "warning",
         precision="fp32"),
    Case("attention in FP32, flags that are gone", good, "attention.fp32",
         ("TensorRT 10.13 has no flag that lowers it",), version="10.13", fine=("10.3", "8.6"),
         precision="fp16"),
    Case("FP32 that a flag lowers", good, "precision.flag", ("show only on the board",),
         "warning", fine=("10.13", "11.4"), precision="fp16"),
    Case("INT8 attention, many tokens", _attention(HALF, ("N", 600, 64), 64, ("q", "k", "softmax",
         "v")), "attention.quantized", ("breaks fusion", "600 tokens, INT8 fuses up to 512")),
    Case("INT8 attention, head size", _attention(HALF, ("N", 64, 96), 96, ("q", "k", "softmax",
         "v")), "attention.quantized", ("head size 48",)),
    Case("Q/DQ between QK^T and softmax", _attention(FLOAT, ("N", 64, 64), 64, ("scores",)),
         "attention.quantized", ("between QK^T and softmax",)),
    Case("INT8 attention that may fuse", _attention(HALF, ("N", 64, 64), 64, ("q", "k",
         "softmax", "v")), "attention.quantized", ("all three",), "warning"),
    Case("tiny heads", _attention(HALF, ("N", 64, 16), 16), "attention.head-size",
         ("head size 8",), "warning"),
    Case("hand-written LayerNorm, FP16", _written(HALF), "layernorm.written-out",
         ("in FP16", "overflow above 255"), "warning", version="11.4"),
    Case("the same, squared by Mul", _written(HALF, "Mul"), "layernorm.written-out",
         ("in FP16",), "warning"),
    Case("hand-written LayerNorm, FP16 by flag", _written(FLOAT), "layernorm.written-out",
         ("builder's FP16 flag",), "warning", fine=("11.4", "10.13")),
    Case("asymmetric activations", _quantized(zero=3), "qdq.zero-point",
         ("in.q and 1 more: a zero point is not 0", "symmetric")),
    Case("UINT8 activations", _quantized(zero=0, kind=np.uint8), "qdq.type",
         ("quantised to uint8", "cuts values above 127")),
    Case("no zero point", _quantized(zero=None), "qdq.type",
         ("there is no zero point, which means uint8",)),
    Case("INT32 bias", _quantized_bias, "qdq.type", ("INT32 (a quantised bias)",)),
    Case("weights without a zero point", _bare_weight, "qdq.no-zero-point", ("zero point",),
         version="8.6", fine=("10.3",)),
    Case("FP16 scales", _quantized(20, HALF), "qdq.half-scale",
         ("a scale is float16", "8.6 reads scales as float32"), version="8.6", fine=("10.3",)),
    Case("computed scale", _computed_scale, "qdq.free-scale", ("no constant",), "warning"),
    Case("per-channel activations", _quantized(scale=np.full(8, 0.02), axis=2),
         "qdq.per-channel", ("8 scales",)),
    Case("scale 0", _quantized(scale=0.0), "qdq.scale-value", ("a scale is 0",)),
    Case("negative scale", _quantized(scale=-0.5), "qdq.scale-value", ("a scale is -0.5",)),
    Case("scale NaN", _quantized(scale=np.nan), "qdq.scale-value", ("a scale is nan",),
         target="rpi5"),
    Case("FP16 and FP32 at one node", _mixed, "types.mixed",
         ("Div mixes inputs of float and float16",)),
    Case("the same for ONNX Runtime", _mixed, "types.mixed", ("Div mixes",), target="rpi5"),
    Case("FP16 scale in opset 17", _quantized(17, HALF), "types.mixed",
         ("of opset 17 takes no float16", "19")),
    Case("free side", _dynamic(("N", 3, "H", "W")), "input.dynamic-side",
         ("the sides H, W are free",)),
    Case("free side, ONNX Runtime", _dynamic(("N", 3, "H", 32)), "input.dynamic-side",
         ("the sides H are free",), target="x86-cpu"),
    Case("FP16 for a CPU", lambda: good(HALF), "precision",
         ("computes in fp16, the target takes fp32, int8",), target="rpi5", fine=(ORIN,)),
    Case("BF16 for Orin", lambda: good(BFLOAT), "precision", ("computes in bf16",)),
    Case("opset for ONNX Runtime", lambda: good(opset=21), "onnxrt.opset",
         ("opset 21; ONNX Runtime 1.17 reads up to 20",), target="rpi4", fine=(ORIN,)),
    Case("IR version for ONNX Runtime", _ir(10), "onnxrt.opset", ("IR version 10", "up to 9"),
         target="rpi4"),
    Case("foreign operator for ONNX Runtime", _node("FusedGelu", domain="com.acme"),
         "onnxrt.domain", ("com.acme.FusedGelu",), target="x86-cpu"),
    Case("ONNX Runtime's own operator", _node("Gelu", domain="com.microsoft"), "onnxrt.domain",
         ("ONNX Runtime's own",), "warning", target="x86-cpu"),
    Case("8-bit weights on x86 without VNNI", _quantized(), "onnxrt.weight-bits",
         ("-64 to 63 are 7 bits", "VNNI"), target="x86-cpu", fine=("rpi4", "rpi5", ORIN)),
    Case("integer products on x86", _integer_product, "onnxrt.integer-operator",
         ("MatMulInteger, a product in an operator", "saturates"), target="x86-cpu",
         fine=(ORIN,)),
    Case("integer products on Arm", _integer_product, "onnxrt.integer-operator",
         ("cannot be judged layer by layer",), "warning", target="rpi5"),
    Case("INT8 attention on a CPU", _attention(FLOAT, ("N", 64, 64), 64, ("q", "k", "softmax",
         "v")), "onnxrt.attention-quantized", ("cost accuracy",), "warning", target="rpi5",
         fine=(ORIN,)),
    Case("INT8 without dot products", _quantized(high=63), "onnxrt.dot-product",
         ("Cortex-A72", "may be slower"), "warning", target="rpi4", fine=("rpi5", ORIN)),
]  # fmt: skip
