"""Small ONNX graphs for checks, and conversions of exports that stand in for the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_IR = {17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


class Tiny:
    """Builds a graph node by node; the last tensor is the output ``logits``."""

    def __init__(
        self, shape: Sequence[Any] = ("N", 4, 8), dtype: int = TensorProto.FLOAT, opset: int = 17
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.shape, self.dtype, self.opset = list(shape), dtype, opset
        self.out_dtype = dtype
        self.domains: list[str] = []
        self.numpy = {10: np.float16, 1: np.float32, 11: np.float64}.get(dtype, np.float32)

    def weight(self, name: str, value: Any, dtype: Any = None) -> str:
        """An initialiser; in the graph's float type unless ``dtype`` says otherwise."""
        array = np.asarray(value, dtype=dtype or self.numpy)
        if self.dtype == TensorProto.BFLOAT16 and dtype is None:
            tensor = helper.make_tensor(name, self.dtype, array.shape, array.reshape(-1).tolist())
        else:
            tensor = numpy_helper.from_array(array, name)
        self.weights.append(tensor)
        return name

    def add(self, kind: str, inputs: list[str], output: str, domain: str = "", **more: Any) -> str:
        """A node named after its output."""
        outputs = more.pop("outputs", [output])
        node = helper.make_node(kind, inputs, outputs, name=output, domain=domain, **more)
        self.nodes.append(node)
        return output

    def model(self, last: str, shape: Sequence[Any] | None = None) -> onnx.ModelProto:
        """The model; ``last`` becomes the output."""
        for node in self.nodes:
            for place, name in enumerate(node.output):
                node.output[place] = "logits" if name == last else name
            for place, name in enumerate(node.input):
                node.input[place] = "logits" if name == last else name
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("image", self.dtype, self.shape)],
            [helper.make_tensor_value_info("logits", self.out_dtype, shape)],
            self.weights,
        )
        opsets = [helper.make_opsetid("", self.opset)]
        opsets += [helper.make_opsetid(name, 1) for name in self.domains]
        made = helper.make_model(graph, opset_imports=opsets)
        made.ir_version = _IR.get(self.opset, 8)
        if shape is None:  # an output must have a shape
            inferred = onnx.shape_inference.infer_shapes(made).graph.output[0]
            made.graph.output[0].CopyFrom(inferred)
        return made


def ramp(*shape: int) -> np.ndarray[Any, Any]:
    """Weights between -0.5 and 0.5 that differ."""
    return (np.arange(np.prod(shape)).reshape(shape) % 13 / 12 - 0.5).astype(np.float32)


def linear(tiny: Tiny, source: str, name: str, width: int = 8, out: int | None = None) -> str:
    """``source`` times a constant matrix."""
    return tiny.add("MatMul", [source, tiny.weight(f"{name}.w", ramp(width, out or width))], name)


def quantized(
    tiny: Tiny,
    source: str,
    name: str,
    scale: Any = 0.02,
    zero: Any = 0,
    kind: Any = np.int8,
    scale_type: Any = None,
    **more: Any,
) -> str:
    """Q and DQ behind ``source``; ``zero=None`` leaves the zero point out."""
    names = [tiny.weight(f"{name}.scale", scale, scale_type)]
    if zero is not None:
        names.append(tiny.weight(f"{name}.zero", np.broadcast_to(zero, np.shape(scale)), kind))
    tiny.add("QuantizeLinear", [source, *names], f"{name}.q", **more)
    return tiny.add("DequantizeLinear", [f"{name}.q", *names], f"{name}.dq", **more)


def quantized_weight(
    tiny: Tiny, name: str, high: int = 127, width: int = 8, per_channel: bool = True
) -> str:
    """INT8 weights ``(width, width)`` up to ``high`` behind a DQ."""
    values = np.clip(np.round(ramp(width, width) * 2 * high), -high, high)
    tiny.weight(f"{name}.q8", values, np.int8)
    shape = (width,) if per_channel else ()
    tiny.weight(f"{name}.wscale", np.full(shape, 0.01))
    tiny.weight(f"{name}.wzero", np.zeros(shape), np.int8)
    names = [f"{name}.q8", f"{name}.wscale", f"{name}.wzero"]
    return tiny.add("DequantizeLinear", names, f"{name}.wdq", axis=1 if per_channel else 0)


def attention(
    tiny: Tiny, source: str = "image", width: int = 32, quantize: Sequence[str] = ()
) -> str:
    """Two heads over ``(N, tokens, width)``; Q/DQ at any of q, k, v, scores, softmax.

    One head alone is not fused by TensorRT-RTX 1.7.1.
    """
    tokens, head = int(tiny.shape[1]), width // 2
    apart = tiny.weight("apart", [0, tokens, 2, head], np.int64)

    def maybe(name: str, tensor: str) -> str:
        return quantized(tiny, tensor, f"{name}_") if name in quantize else tensor

    def heads(name: str, perm: list[int]) -> str:
        tiny.add("Reshape", [linear(tiny, source, name, width), apart], f"{name}.heads")
        return tiny.add("Transpose", [maybe(name, f"{name}.heads")], f"{name}.turned", perm=perm)

    q = tiny.add("Mul", [heads("q", [0, 2, 1, 3]), tiny.weight("scale", head**-0.5)], "q.scaled")
    k, v = heads("k", [0, 2, 3, 1]), heads("v", [0, 2, 1, 3])
    if "q" in quantize:  # behind the scale
        q = quantized(tiny, q, "q.scaled_")
    scores = tiny.add("MatMul", [q, k], "scores")
    soft = tiny.add("Softmax", [maybe("scores", scores)], "softmax", axis=-1)
    tiny.add("MatMul", [maybe("softmax", soft), v], "context")
    tiny.add("Transpose", ["context"], "context.turned", perm=[0, 2, 1, 3])
    whole = tiny.weight("whole", [0, tokens, width], np.int64)
    return tiny.add("Reshape", ["context.turned", whole], "attended")


def written_layernorm(tiny: Tiny, source: str = "image", square: str = "Pow") -> str:
    """LayerNorm in single operators."""
    mean = tiny.add("ReduceMean", [source], "mean", axes=[-1])
    centred = tiny.add("Sub", [source, mean], "centred")
    if square == "Pow":
        inputs = [centred, tiny.weight("two", 2)]
    else:
        inputs = [centred, centred]
    tiny.add(square, inputs, "square")
    tiny.add("ReduceMean", ["square"], "variance", axes=[-1])
    tiny.add("Add", ["variance", tiny.weight("eps", 1e-5)], "shifted")
    tiny.add("Sqrt", ["shifted"], "root")
    return tiny.add("Div", [centred, "root"], "norm")


def half(model: onnx.ModelProto, opset: int = 17) -> onnx.ModelProto:
    """All of a model in FP16, input and output too: as ``model.half()`` before the export.

    Good for looking at kernels; a real conversion keeps some layers in FP32.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    keep = {name for node in copy.graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.name not in keep:
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for item in (*copy.graph.input, *copy.graph.output):
        item.type.tensor_type.elem_type = TensorProto.FLOAT16
    del copy.graph.value_info[:]
    copy.opset_import[0].version = opset
    copy.ir_version = _IR[opset]
    return copy


def quantize_linears(model: onnx.ModelProto, around_attention: bool = False) -> onnx.ModelProto:
    """Symmetric Q/DQ in front of every product with constant weights, with made-up scales.

    Scales have the model's float type. For looking at kernels, not at numbers.
    """
    graph = model.graph
    constants = {item.name: item for item in graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def q_dq(source: str, name: str, kind: Any) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(0.05, kind), f"{name}.scale"))
        graph.initializer.append(numpy_helper.from_array(np.asarray(0, np.int8), f"{name}.zero"))
        rest = [f"{name}.scale", f"{name}.zero"]
        nodes.append(helper.make_node("QuantizeLinear", [source, *rest], [f"{name}.q"],
                                      name=f"{name}/Q"))  # fmt: skip
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.q", *rest], [f"{name}.dq"],
                                      name=f"{name}/DQ"))  # fmt: skip
        return f"{name}.dq"

    first = next(item for item in constants.values() if item.data_type in (1, 10))
    float_type = numpy_helper.to_array(first).dtype
    for node in list(graph.node):
        weight = constants.get(node.input[1]) if node.op_type == "MatMul" else None
        if node.op_type == "MatMul" and weight is None and around_attention:
            for place in (0, 1):
                node.input[place] = q_dq(node.input[place], f"{node.name}.{place}", float_type)
        if weight is not None:
            values = numpy_helper.to_array(weight).astype(np.float32)
            scale = np.maximum(np.abs(values).max(axis=0), 1e-6) / 127
            made = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
            names = [f"{weight.name}.q8", f"{weight.name}.scale", f"{weight.name}.zero"]
            arrays = [made, scale.astype(float_type), np.zeros(len(scale), np.int8)]
            for name, array in zip(names, arrays, strict=True):
                graph.initializer.append(numpy_helper.from_array(array, name))
            nodes.append(helper.make_node("DequantizeLinear", names, [f"{weight.name}.dq"],
                                          name=f"{node.name}/WDQ", axis=1))  # fmt: skip
            node.input[0] = q_dq(node.input[0], node.name, float_type)
            node.input[1] = f"{weight.name}.dq"
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return model


def save(model: onnx.ModelProto, path: Path) -> Path:
    """Write and return the path."""
    onnx.save(model, str(path))
    return path
