"""Rules for targets that run the ONNX file with ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgekd.deploy.check.graph import Graph, title
from edgekd.deploy.check.rules import Context, Hit, Rule, integer_nodes, precisions
from edgekd.deploy.check.tables import ONNXRUNTIME_OPSETS, shown

_COMPATIBILITY = "https://onnxruntime.ai/docs/reference/compatibility.html"
_QUANTIZATION = (
    "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html, reduce_range"
)
#: weights of 7 bits, signed.
_LOW_7, _HIGH_7 = -64, 63


def _bounds(context: Context) -> tuple[int, int]:
    known = [row for row in ONNXRUNTIME_OPSETS if row[0] <= context.version]
    return (known or ONNXRUNTIME_OPSETS)[-1 if known else 0][1:]


def _opset(graph: Graph, context: Context) -> Iterator[Hit]:
    opset, ir = _bounds(context)
    if graph.opset > opset:
        yield Hit(
            "",
            f"opset {graph.opset}; ONNX Runtime {shown(context.version)} reads up to {opset}",
            "export with edgekd export (opset 17), or raise onnxruntime in the target",
        )
    if graph.proto.ir_version > ir:
        yield Hit(
            "",
            f"IR version {graph.proto.ir_version}; ONNX Runtime {shown(context.version)} reads up "
            f"to {ir}",
            "export with edgekd export (IR version 8), or raise onnxruntime in the target",
        )


def _domains(graph: Graph, context: Context) -> Iterator[Hit]:
    for node in graph.all_nodes():
        if node.domain == "com.microsoft":
            yield Hit(
                title(node),
                f"{node.op_type} is ONNX Runtime's own; no other runtime reads the file",
                "write it in ONNX operators where the model is to be portable",
                "warning",
            )
        elif node.domain not in ("", "ai.onnx", "ai.onnx.ml"):
            yield Hit(
                title(node),
                f"{node.domain}.{node.op_type} is no operator that ONNX Runtime brings",
                "write it in ONNX operators",
            )


def _weight_bits(graph: Graph, context: Context) -> Iterator[Hit]:
    cpu = context.target.cpu
    if cpu is None or cpu.int8_weight_bits == 8:
        return
    for node in graph.quantized_gemms:
        weight = graph.source(node.input[1])
        values = graph.value(weight.input[0]) if weight is not None else None
        if values is None or values.dtype != np.int8:
            continue
        if values.size and (values.min() < _LOW_7 or values.max() > _HIGH_7):
            yield Hit(
                title(node),
                f"8-bit weights ({_LOW_7} to {_HIGH_7} are 7 bits); a CPU of this class without "
                "VNNI saturates when it adds pairs of products in 16 bits",
                "quantise the weights to 7 bits (reduce_range) for this target",
            )


def _integer_operators(graph: Graph, context: Context) -> Iterator[Hit]:
    """What ONNX Runtime's quantize_dynamic and QuantFormat.QOperator write."""
    cpu = context.target.cpu
    for node in integer_nodes(graph):
        said = f"{node.op_type}, a product in an operator of its own"
        fix = "quantise with edgekd build or edgekd quantize, which write Q/DQ"
        if cpu is not None and cpu.int8_weight_bits == 7:
            said += ": its weights have 8 bits by default, with which a CPU of this class saturates"
            yield Hit(title(node), said, fix, "error")
        else:
            yield Hit(title(node), f"{said}; it cannot be judged layer by layer", fix)


def _attention(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.attentions:
        if item.quantized:
            yield Hit(
                title(item.softmax),
                "Q/DQ at the attention products: 8 bits for a softmax of many tokens cost accuracy "
                "and gain little",
                "leave QK^T, softmax and AV unquantised",
            )


def _dot_product(graph: Graph, context: Context) -> Iterator[Hit]:
    cpu = context.target.cpu
    if cpu is not None and not cpu.int8_dot_product and "int8" in precisions(graph):
        yield Hit(
            "",
            f"INT8 on {cpu.model} without dot-product instructions may be slower than FP32",
            "time both on the device before choosing",
        )


RULES: list[Rule] = [
    Rule("onnxrt.opset", "error", _opset, _COMPATIBILITY, "onnxrt"),
    Rule("onnxrt.domain", "error", _domains, "ONNX Runtime, contrib operators", "onnxrt"),
    Rule("onnxrt.weight-bits", "error", _weight_bits, _QUANTIZATION, "onnxrt"),
    Rule("onnxrt.integer-operator", "warning", _integer_operators, _QUANTIZATION, "onnxrt"),
    Rule("onnxrt.attention-quantized", "warning", _attention,
         "edgekd, benchmarks/precision_table.py: ONNX Runtime's defaults", "onnxrt"),
    Rule("onnxrt.dot-product", "warning", _dot_product,
         "https://github.com/ARM-software/armnn/issues/511", "onnxrt"),
]  # fmt: skip
