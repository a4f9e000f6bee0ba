"""Rules on the graph alone: what a TensorRT version refuses, and what no version runs well.

``RULES`` is the table. A rule yields hits; :func:`apply` turns them into findings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx

from edgekd.contracts.target import Target
from edgekd.deploy.check.graph import Attention, Graph, QuantNode, attribute, title, type_name
from edgekd.deploy.check.report import Finding, Severity
from edgekd.deploy.check.tables import (
    BASE,
    SINCE,
    SOMEWHERE,
    SOMEWHERE_FROM,
    TYPES,
    Version,
    opset_bounds,
    shown,
)

#: INT8 attention fuses up to this many tokens and with these head sizes (NVIDIA/TensorRT#4167).
INT8_MHA_TOKENS, INT8_MHA_HEADS = 512, (16, 32, 64)
_HALF = ("float16", "bfloat16")
_INTEGER_PRODUCTS = ("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "QGemm",
                     "DynamicQuantizeMatMul", "MatMulIntegerToFloat")  # fmt: skip
_NO_ARITHMETIC = ("Cast", "Constant", "QuantizeLinear", "DequantizeLinear")
_EDGEKD = "export it with edgekd export"
_REQUANTIZE = "quantise it again, by symmetric INT8"
_OPERATORS = "onnx-tensorrt docs/operators.md"
_SEEN = "seen with TensorRT-RTX 1.7.1"
_GUIDE = "NVIDIA/TensorRT#4167 (developer guide, MHA fusion)"
STRONG_FROM: Version = (10, 12)


@dataclass(frozen=True)
class Context:
    """What rules are asked for.

    Attributes:
        target: class of device.
        version: of the target's library: TensorRT for ``trt``, ONNX Runtime for ``onnxrt``.
        precision: what the engine is to compute in where the file holds FP32: ``fp16`` is the
            builder's flag, ``fp32`` says that FP32 is meant; None takes the file as it stands.
    """

    target: Target
    version: Version
    precision: Literal["fp32", "fp16"] | None = None

    @property
    def strong(self) -> bool:
        """TensorRT takes types from the graph, not from flags (the default from 10.12 on)."""
        return self.version >= STRONG_FROM

    @property
    def lowered(self) -> bool:
        """The builder is told by flag to take FP16 in place of the file's FP32."""
        return self.precision == "fp16" and not self.strong


@dataclass(frozen=True)
class Hit:
    """One place where a rule finds something; see :class:`Finding` for the fields."""

    node: str
    reason: str
    fix: str
    severity: Severity | None = None


Finder = Callable[[Graph, Context], Iterable[Hit]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Attributes:
        id: stable name.
        severity: of its hits, unless a hit says otherwise.
        find: yields hits.
        source: where the fact comes from.
        backend: whose rule it is.
        below, since: applies to versions below, and from, this one; None is no bound.
    """

    id: str
    severity: Severity
    find: Finder
    source: str
    backend: Literal["any", "trt", "onnxrt"] = "trt"
    below: Version | None = None
    since: Version | None = None

    def applies(self, context: Context) -> bool:
        """Whether the target's backend and version fall under the rule."""
        return (
            self.backend in ("any", context.target.backend)
            and (self.below is None or context.version < self.below)
            and (self.since is None or context.version >= self.since)
        )


@dataclass
class _Group:
    severity: Severity
    fix: str
    nodes: list[str] = field(default_factory=list)


def apply(rules: Iterable[Rule], graph: Graph, context: Context) -> list[Finding]:
    """Findings of every rule that applies; hits with the same reason are one finding."""
    findings = []
    for rule in rules:
        if not rule.applies(context):
            continue
        groups: dict[str, _Group] = {}
        for hit in rule.find(graph, context):
            group = groups.setdefault(hit.reason, _Group(hit.severity or rule.severity, hit.fix))
            if hit.node and hit.node not in group.nodes:
                group.nodes.append(hit.node)
        findings += [
            Finding(
                rule=rule.id,
                severity=group.severity,
                nodes=group.nodes,
                reason=reason,
                fix=group.fix,
                source=rule.source,
            )
            for reason, group in groups.items()
        ]
    return findings


# Rules of every backend


def _external_data(graph: Graph, context: Context) -> Iterator[Hit]:
    for tensor, location, needed in graph.external:
        path = graph.folder / location
        fix = "copy the data file beside the model, or export into one file"
        if not path.is_file():
            yield Hit(tensor, f"its values lie in {location}, which is not beside the model", fix)
        elif path.stat().st_size < needed:
            yield Hit(
                tensor,
                f"its values lie in {location}, which is cut: {path.stat().st_size} bytes, "
                f"{needed} needed",
                fix,
            )


def _types_of_ports(graph: Graph, node: onnx.NodeProto) -> Iterator[tuple[str, str, list[str]]]:
    """(tensor, type variable or fixed type, types it may have) of a node's known inputs."""
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
    except onnx.defs.SchemaError:
        return
    allowed = {item.type_param_str: item.allowed_type_strs for item in schema.type_constraints}
    for place, name in enumerate(node.input):
        if not name or not graph.types.get(name) or not schema.inputs:
            continue
        port = schema.inputs[min(place, len(schema.inputs) - 1)]
        if place >= len(schema.inputs) and not port.is_homogeneous:
            continue
        yield name, port.type_str, list(allowed.get(port.type_str, [port.type_str]))


def _mixed_types(graph: Graph, context: Context) -> Iterator[Hit]:
    for node in graph.nodes:
        seen: dict[str, str] = {}
        for name, variable, allowed in _types_of_ports(graph, node):
            kind = type_name(graph.types[name])
            first = seen.setdefault(variable, kind)
            fix = "cast one side, or convert the model to FP16 with a tool that follows types"
            if first != kind:
                pair = " and ".join(sorted({first, kind}))
                yield Hit(title(node), f"{node.op_type} mixes inputs of {pair}", fix)
                break
            if f"tensor({kind})" not in allowed:
                yield Hit(
                    title(node),
                    f"{node.op_type} of opset {graph.opset} takes no {kind} here",
                    "export with an opset that does (FP16 scales of Q/DQ: 19), or cast",
                )
                break


def _scale_values(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.quant_nodes:
        if item.scale is None:
            continue
        scale = np.asarray(item.scale, dtype=np.float64)
        if not np.isfinite(scale).all() or (scale <= 0).any():
            worst = float(scale.reshape(-1)[np.argmin(np.nan_to_num(scale, nan=-np.inf))])
            yield Hit(
                title(item.node),
                f"a scale is {worst:g}; it must be above 0 and finite",
                "calibrate again with samples that reach this layer",
            )


def _dynamic_sides(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.inputs:
        shape = graph.shapes.get(item.name)
        if shape is None:
            yield Hit(item.name, "the input has no shape", "export with a fixed tile side")
            continue
        free = [str(side or "?") for side in shape[1:] if not isinstance(side, int) or side == 0]
        if free:
            yield Hit(
                item.name,
                f"the sides {', '.join(free)} are free; only the batch may be: a plan is made for "
                "one tile side, and positions and windows are constants",
                "export with a fixed tile side",
            )


def _precision(graph: Graph, context: Context) -> Iterator[Hit]:
    target = context.target
    for name in precisions(graph):
        if name not in target.precisions:
            yield Hit(
                "",
                f"the model computes in {name}, the target takes {', '.join(target.precisions)}",
                "export or quantise for this target",
            )


def computes_in_fp32(graph: Graph) -> bool:
    """Whether any node gives FP32 that a flag could lower; casts and Q/DQ compute nothing."""
    return any(
        type_name(graph.types.get(node.output[0], 0)) == "float"
        for node in graph.nodes
        if node.output and node.op_type not in _NO_ARITHMETIC
    )


def integer_nodes(graph: Graph) -> list[onnx.NodeProto]:
    """Products in operators of their own on integers, in place of Q/DQ around float ones."""
    return [node for node in graph.all_nodes() if node.op_type in _INTEGER_PRODUCTS]


def precisions(graph: Graph) -> list[str]:
    """What products and convolutions compute in, a subset of fp32, fp16, bf16, int8."""
    words = {"float": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    quantized = [node.name or node.output[0] for node in graph.quantized_gemms]
    found = {"int8"} if quantized or integer_nodes(graph) else set()
    for node in graph.gemms:
        if (node.name or node.output[0]) not in quantized:
            kind = words.get(type_name(graph.types.get(node.input[0], 0)))
            if kind:
                found.add(kind)
    return [name for name in ("fp32", "fp16", "bf16", "int8") if name in found]


# TensorRT: operators, opset, types


def _opset(graph: Graph, context: Context) -> Iterator[Hit]:
    sure, maybe = opset_bounds(context.version)
    trt = shown(context.version)
    fix = f"{_EDGEKD} (opset 17), which every version from 8.6 on reads"
    if graph.opset > maybe:
        yield Hit("", f"opset {graph.opset}; TensorRT {trt} reads up to {maybe}", fix)
    elif graph.opset > sure:
        reason = f"opset {graph.opset}; for TensorRT {trt} only {sure} is documented"
        yield Hit("", reason, fix, "warning")
    elif graph.opset < 9:
        yield Hit("", f"opset {graph.opset}; TensorRT reads 9 and later", fix)


def _operators(graph: Graph, context: Context) -> Iterator[Hit]:
    trt = shown(context.version)
    for node in graph.all_nodes():
        kind = node.op_type
        if node.domain not in ("", "ai.onnx"):
            yield Hit(
                title(node),
                f"{node.domain}.{kind} is no ONNX operator; TensorRT needs a plug-in for it",
                f"write it in ONNX operators; {_EDGEKD}",
            )
        elif kind in SINCE:
            if context.version < SINCE[kind]:
                yield Hit(
                    title(node),
                    f"operator {kind} is read from TensorRT {shown(SINCE[kind])} on, "
                    f"the target has {trt}",
                    "write it in older operators, or update TensorRT on the board",
                )
        elif kind in SOMEWHERE:
            if context.version < SOMEWHERE_FROM:
                yield Hit(
                    title(node),
                    f"operator {kind} was taken up between TensorRT 8.4 and "
                    f"{shown(SOMEWHERE_FROM)}; for {trt} nothing is documented",
                    "write it in older operators, or try it on the board",
                    "warning",
                )
        elif kind not in BASE:
            yield Hit(title(node), f"TensorRT has no operator {kind}", "write the model without it")


def _functions(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.proto.functions:
        yield Hit(
            item.name,
            f"the model holds local functions, which TensorRT {shown(context.version)} cannot read",
            f"inline them (onnx.inliner); {_EDGEKD}",
        )


def _tensor_types(graph: Graph, context: Context) -> Iterator[Hit]:
    made = {name: title(node) for node in graph.nodes for name in node.output}
    ends = {item.name for item in (*graph.inputs, *graph.proto.graph.output)}
    quantized = {name for item in graph.quant_nodes for name in (*item.node.input,
                                                                  *item.node.output)}  # fmt: skip
    for name, number in graph.types.items():
        kind = type_name(number)
        first = TYPES.get(kind)
        if first is None or context.version < first:
            if name in quantized:
                continue  # has rules of its own
            since = f"; {shown(first)} and later do" if first else ""
            yield Hit(
                made.get(name, name),
                f"TensorRT {shown(context.version)} holds no tensors of {kind}{since}",
                "export in FP32 or FP16",
            )
        elif kind == "uint8" and name not in ends and name not in quantized:
            yield Hit(
                made.get(name, name),
                "uint8 inside the network; TensorRT takes it as input or output alone",
                "cast to float right behind the input",
            )
        elif kind == "double":
            yield Hit(
                made.get(name, name),
                "float64, which TensorRT narrows to float32",
                "export in FP32",
                "warning",
            )


def _antialias(graph: Graph, context: Context) -> Iterator[Hit]:
    for node in graph.all_nodes():
        if node.op_type == "Resize" and attribute(node, "antialias"):
            yield Hit(
                title(node),
                "Resize with antialias, which TensorRT refuses",
                "resize without antialias, or shrink by average pooling first",
            )


def _extra_outputs(graph: Graph, context: Context) -> Iterator[Hit]:
    for node in graph.nodes:
        if node.op_type == "LayerNormalization" and any(node.output[1:]):
            yield Hit(
                title(node),
                "LayerNormalization with mean or deviation as output; only the first is read",
                "leave the other outputs out",
            )


# TensorRT: attention and normalisation


def _attention_operator(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.attentions:
        if item.scores is None and type_name(item.dtype) not in _HALF:
            yield Hit(
                title(item.softmax),
                f"operator Attention in {type_name(item.dtype)} has no fused kernel, and TensorRT "
                "does not take it apart: the build fails",
                f"spell it softmax(QK^T)V; {_EDGEKD}",
            )


def _attention_fp32(graph: Graph, context: Context) -> Iterator[Hit]:
    if context.lowered:
        return
    for item in graph.attentions:
        if item.scores is not None and type_name(item.dtype) == "float" and not item.between:
            reason = "attention in FP32 never fuses: every score is written to memory"
            if context.precision == "fp32":
                yield Hit(title(item.softmax), reason, "FP16 would fuse it", "warning")
                continue
            if item.tokens:
                reason += f", {item.tokens} x {item.tokens} for every head"
            fix = "let edgekd build make FP16 of it, or say --precision fp32 where FP32 is meant"
            if context.precision == "fp16":
                reason += f"; TensorRT {shown(context.version)} has no flag that lowers it"
                fix = "let edgekd build make FP16 of it"
            elif not context.strong:
                fix += " and --precision fp16 where the builder lowers it by flag"
            yield Hit(title(item.softmax), reason, fix)


def _lowered_by_flag(graph: Graph, context: Context) -> Iterator[Hit]:
    if context.lowered and computes_in_fp32(graph):
        yield Hit(
            "",
            "FP32 in the file, lowered by the builder's flag: fusion, memory and accuracy show "
            "only on the board",
            "edgekd finalize on the board compares and times it",
        )


def _attention_quantized(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.attentions:
        if not item.quantized or item.scores is None:
            continue
        fix = "leave QK^T, softmax and AV unquantised; quantise the linear layers alone"
        why = _why_int8_breaks(item)
        if why:
            yield Hit(title(item.softmax), f"Q/DQ at the attention products breaks fusion: {why}",
                      fix)  # fmt: skip
        else:
            yield Hit(
                title(item.softmax),
                "Q/DQ at the attention products: fuses only with Q/DQ before QK^T, after softmax "
                "and on V, all three",
                fix,
                "warning",
            )


def _why_int8_breaks(item: Attention) -> str:
    if item.between:
        return "there is Q/DQ between QK^T and softmax"
    if item.tokens is not None and item.tokens > INT8_MHA_TOKENS:
        return f"{item.tokens} tokens, INT8 fuses up to {INT8_MHA_TOKENS}"
    if item.head_size is not None and item.head_size not in INT8_MHA_HEADS:
        return f"head size {item.head_size}, INT8 fuses with 16, 32 and 64"
    return ""


def _attention_shape(graph: Graph, context: Context) -> Iterator[Hit]:
    for item in graph.attentions:
        head = item.head_size
        if head is not None and (head > 256 or head < 16):
            yield Hit(
                title(item.softmax),
                f"head size {head}; FP16 attention fuses from 16 to 256",
                "choose another number of heads",
            )


def _layernorm(graph: Graph, context: Context) -> Iterator[Hit]:
    for node in graph.written_layernorms:
        kind = type_name(graph.types.get(node.output[0], 0))
        fix = f"use the LayerNormalization operator (opset 17); {_EDGEKD}"
        if kind == "float16":
            yield Hit(
                title(node),
                "LayerNorm in single operators in FP16: its squares overflow above 255",
                fix,
            )
        elif kind == "float" and not context.strong:
            yield Hit(
                title(node),
                "LayerNorm in single operators: the builder's FP16 flag takes its squares to FP16, "
                "where they overflow above 255",
                fix,
            )


# TensorRT: quantisation


def _each(find: Callable[[QuantNode, Context], tuple[str, str] | None]) -> Finder:
    """A rule over every Q and DQ; ``find`` gives reason and fix, or None."""

    def run(graph: Graph, context: Context) -> Iterator[Hit]:
        for item in graph.quant_nodes:
            found = find(item, context)
            if found:
                yield Hit(title(item.node), *found)

    return run


def _zero_point(item: QuantNode, context: Context) -> tuple[str, str] | None:
    if item.zero_point is not None and np.any(np.asarray(item.zero_point) != 0):
        return (
            "a zero point is not 0; TensorRT takes symmetric quantisation alone "
            "(ONNX Runtime's default is asymmetric)",
            _REQUANTIZE,
        )
    return None


def _quant_type(item: QuantNode, context: Context) -> tuple[str, str] | None:
    kind = type_name(item.data_type)
    if kind == "int32":
        return (
            "DequantizeLinear of INT32 (a quantised bias), which TensorRT refuses",
            "keep biases in float (ONNX Runtime: extra_options QuantizeBias False)",
        )
    if kind in ("uint8", "uint16", "int16", "uint4"):
        why = "" if item.has_zero_point else " (there is no zero point, which means uint8)"
        return (
            f"quantised to {kind}{why}; TensorRT takes int8 (a parser that goes on nevertheless "
            "takes the numbers for int8, which cuts values above 127)",
            _REQUANTIZE,
        )
    if kind != "int8" and (TYPES.get(kind) is None or context.version < TYPES[kind]):
        return f"quantised to {kind}, unknown to TensorRT {shown(context.version)}", _REQUANTIZE
    return None


def _no_zero_point(item: QuantNode, context: Context) -> tuple[str, str] | None:
    if not item.has_zero_point and type_name(item.data_type) == "int8":
        return "Q/DQ without a zero point", "give a zero point of int8 0"
    return None


def _half_scale(item: QuantNode, context: Context) -> tuple[str, str] | None:
    if type_name(item.scale_type) in _HALF:
        return (
            f"a scale is {type_name(item.scale_type)}; TensorRT {shown(context.version)} reads "
            "scales as float32",
            "take the file with FP32 scales for this version",
        )
    return None


def _free_scale(item: QuantNode, context: Context) -> tuple[str, str] | None:
    if item.scale is None:
        return "a scale is no constant in the file, so nothing can be said about it", _REQUANTIZE
    return None


def _per_channel(item: QuantNode, context: Context) -> tuple[str, str] | None:
    if item.scale is not None and item.scale.size > 1 and not item.of_constant:
        return (
            f"an activation has {item.scale.size} scales; TensorRT takes one per tensor "
            "(per channel is for weights), and the product would not run in INT8",
            "quantise activations per tensor",
        )
    return None


RULES: list[Rule] = [
    Rule("external-data", "error", _external_data, "ONNX, external data", "any"),
    Rule("types.mixed", "error", _mixed_types, f"ONNX operator schemas; {_SEEN}", "any"),
    Rule("qdq.scale-value", "error", _scale_values, f"ONNX, QuantizeLinear; {_SEEN}", "any"),
    Rule("input.dynamic-side", "error", _dynamic_sides, "edgekd: tiles have one side", "any"),
    Rule("precision", "error", _precision, "the target's declaration", "any"),
    Rule("opset", "error", _opset, f"{_OPERATORS}; NVIDIA ONNX Opset Guide"),
    Rule("operator", "error", _operators, f"{_OPERATORS}, docs/Changelog.md"),
    Rule("functions", "error", _functions, "onnx-tensorrt docs/Changelog.md, 9.0", below=(9, 0)),
    Rule("types.unknown", "error", _tensor_types, f"{_OPERATORS}, data types"),
    Rule("resize.antialias", "error", _antialias, f"{_OPERATORS}; {_SEEN}"),
    Rule("layernorm.outputs", "error", _extra_outputs, _OPERATORS),
    Rule("attention.operator", "error", _attention_operator, _SEEN, since=(10, 14)),
    Rule("attention.fp32", "error", _attention_fp32, f"{_GUIDE}; {_SEEN}"),
    Rule("precision.flag", "warning", _lowered_by_flag, "NVIDIA, Reduced Precision (to 10.11)"),
    Rule("attention.quantized", "error", _attention_quantized, f"{_GUIDE}; {_SEEN}"),
    Rule("attention.head-size", "warning", _attention_shape, f"{_GUIDE}; {_SEEN}"),
    Rule("layernorm.written-out", "warning", _layernorm, "NVIDIA/TensorRT#2922, #4355; " + _SEEN),
    Rule("qdq.zero-point", "error", _each(_zero_point), f"{_OPERATORS}; {_SEEN}"),
    Rule("qdq.type", "error", _each(_quant_type), f"{_OPERATORS}; {_SEEN}"),
    Rule("qdq.no-zero-point", "error", _each(_no_zero_point), "onnx-tensorrt release/8.6-GA",
         below=(9, 0)),
    Rule("qdq.half-scale", "error", _each(_half_scale), "onnx-tensorrt release/8.6-GA",
         below=(10, 0)),
    Rule("qdq.free-scale", "warning", _each(_free_scale), "edgekd"),
    Rule("qdq.per-channel", "error", _each(_per_channel),
         f"NVIDIA, Working with Quantized Types; {_SEEN}"),
]  # fmt: skip
