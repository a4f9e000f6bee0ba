"""Surgery on the exported ONNX graph: names, operator set, and what is promised about it.

torch's exporter speaks opset 18 at the lowest and, asked for 17, silently returns 18 where its
converter fails. TensorRT 8.6 reads up to 17, so the step down is made here, operator by operator,
and refuses what it does not know.
"""

from __future__ import annotations

import ast
from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekd.errors import GateError

OPSET = 17
#: opset that torch's exporter is asked for.
EXPORTER_OPSET = 18
#: IR version that belongs to opset 17.
_IR_VERSION = 8
#: operators that a supported TensorRT refuses, or that mean that a constant was not folded.
FORBIDDEN = frozenset(
    {"Attention", "Gelu", "GroupNormalization", "Sin", "Cos", "Shape", "If", "Loop"}
)
#: opset in which Q/DQ takes FP16 scales; TensorRT reads it from 10.0 on.
LIFTED_OPSET = 19
_LIFTED_IR_VERSION = 9
#: got types or optional attributes between the two opsets, and mean the same without them.
_SAME_IN_LIFTED = frozenset(
    {
        "AveragePool", "Cast", "Constant", "DequantizeLinear", "Equal", "Identity", "Pad",
        "QuantizeLinear", "Reshape", "Resize", "Shape",
    }
)  # fmt: skip
_SCOPES = "pkg.torch.onnx.name_scopes"


def finish(proto: onnx.ModelProto) -> None:
    """Name, lower to opset 17 and strip an exported model in place.

    Raises:
        GateError: an operator for which there is no rule.
    """
    _name_nodes(proto)
    _lower(proto)
    _strip(proto)


def _name_nodes(proto: onnx.ModelProto) -> None:
    """Nodes become ``module.path/OpType``, linear weights ``module.path.weight_t``.

    Precision and sensitivity are chosen per layer by these names, so they must be the student's
    own and the same in every export.
    """
    graph = proto.graph
    constants = {item.name for item in graph.initializer}
    made: dict[str, str] = {}
    renamed: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for node in graph.node:
        scope = _scope(node)
        if scope is None:  # made by the optimiser: belongs to what it is fed from
            scope = next((made[name] for name in node.input if name in made), "")
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1].endswith(".weight"):
            scope = node.input[1].removesuffix(".weight")  # a folded BatchNorm left its own scope
        for name in node.output:
            made[name] = scope
        base = f"{scope}/{node.op_type}" if scope else node.op_type
        seen[base] += 1
        node.name = base if seen[base] == 1 else f"{base}_{seen[base]}"
        weight = node.input[1] if len(node.input) > 1 else ""
        if node.op_type == "MatMul" and weight in constants and weight.startswith("val_"):
            renamed.setdefault(weight, f"{scope}.weight_t")
    for item in graph.initializer:
        item.name = renamed.get(item.name, item.name)
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)


def _scope(node: onnx.NodeProto) -> str | None:
    """Path of the torch module that a node comes from; None for the optimiser's own nodes."""
    for item in node.metadata_props:
        if item.key == _SCOPES:
            scopes = ast.literal_eval(item.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return None


def _lower(proto: onnx.ModelProto) -> None:
    """Opset 18 to 17 for the operators that changed in 18."""
    graph = proto.graph
    constants = {item.name: item for item in graph.initializer}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise GateError(f"the export holds {node.domain}.{node.op_type}, not an ONNX operator")
        if onnx.defs.get_schema(node.op_type, EXPORTER_OPSET).since_version > OPSET:
            _lower_node(node, constants)
    used = {name for node in graph.node for name in node.input}
    kept = [item for item in graph.initializer if item.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del proto.opset_import[:]
    proto.opset_import.append(helper.make_opsetid("", OPSET))
    proto.ir_version = _IR_VERSION


def _lower_node(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    if node.op_type == "Resize":
        _drop(node, "antialias", 0)
        _drop(node, "keep_aspect_ratio_policy", b"stretch")
        fits = not _has(node, "axes")
    elif node.op_type == "Split":
        fits = len(node.input) == 2 and not _has(node, "num_outputs")
    elif node.op_type == "Pad":
        fits = len(node.input) <= 3
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
        _drop(node, "noop_with_empty_axes", 0)
        name = node.input[1] if len(node.input) > 1 else ""
        fits = not name or name in constants
        if name and fits:
            axes = numpy_helper.to_array(constants[name]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes))
        del node.input[1:]
    else:
        fits = False
    if not fits:
        raise GateError(
            f"the export holds a {node.op_type} ({node.name}) that opset {OPSET} cannot say; "
            "write the student without it, or add a rule in edgekd/deploy/export/graph.py"
        )


def lift(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Opset 17 to 19, in which scales of Q/DQ may be FP16.

    Returns:
        A new model.

    Raises:
        GateError: an operator for which there is no rule.
    """
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    for node in graph.node:
        since = onnx.defs.get_schema(node.op_type, LIFTED_OPSET).since_version
        if since <= OPSET or node.op_type in _SAME_IN_LIFTED:
            continue
        if node.op_type == "Split" and len(node.input) == 2:
            continue
        axes = [item for item in node.attribute if item.name == "axes"]
        if not node.op_type.startswith("Reduce") or len(node.input) != 1 or len(axes) > 1:
            raise GateError(
                f"{node.op_type} ({node.name}) changed between opset {OPSET} and {LIFTED_OPSET}; "
                "add a rule in edgekd/deploy/export/graph.py"
            )
        for item in axes:
            values = numpy_helper.from_array(np.array(item.ints, np.int64), f"{node.name}/axes")
            graph.initializer.append(values)
            node.input.append(values.name)
            node.attribute.remove(item)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", LIFTED_OPSET))
    result.ir_version = _LIFTED_IR_VERSION
    return result


def _has(node: onnx.NodeProto, name: str) -> bool:
    return any(item.name == name for item in node.attribute)


def _drop(node: onnx.NodeProto, name: str, harmless: object) -> None:
    """Remove an attribute that opset 17 lacks, if it has the value that 17 implies."""
    kept = []
    for item in node.attribute:
        if item.name != name:
            kept.append(item)
        elif helper.get_attribute_value(item) != harmless:
            raise GateError(f"{node.op_type} ({node.name}) needs {name}, unknown to opset {OPSET}")
    del node.attribute[:]
    node.attribute.extend(kept)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop what names the build machine's files and makes two exports differ."""
    graph = proto.graph
    groups: list[Any] = [
        proto,
        graph,
        *graph.node,
        *graph.initializer,
        *graph.input,
        *graph.output,
    ]
    del graph.value_info[:]
    for item in groups:
        if hasattr(item, "metadata_props"):
            del item.metadata_props[:]
        if hasattr(item, "doc_string"):
            item.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            attribute.ClearField("doc_string")
    proto.producer_name, proto.producer_version = "edgekd", ""
    graph.name = "edgekd"


def check(proto: onnx.ModelProto, expected_io: list[tuple[str, list[str | int]]]) -> None:
    """Everything that the export promises about its graph.

    Args:
        expected_io: name and shape of each input, then of each output; ``"N"`` is the batch.

    Raises:
        GateError: the first promise that does not hold.
    """
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as err:
        raise GateError(
            f"the exported graph is not valid ONNX: {' '.join(str(err).split())[:300]}"
        ) from err
    opsets = {item.domain or "ai.onnx": item.version for item in proto.opset_import}
    if opsets != {"ai.onnx": OPSET} or proto.functions:
        raise GateError(f"the exported graph has the operator sets {opsets}, expected {OPSET} only")
    found = sorted({node.op_type for node in proto.graph.node} & FORBIDDEN)
    if found:
        raise GateError(
            f"the exported graph holds {', '.join(found)}, which TensorRT 8.6 to 10.3 cannot read"
        )
    found_io = [
        (item.name, [side.dim_param or side.dim_value for side in item.type.tensor_type.shape.dim])
        for item in (*proto.graph.input, *proto.graph.output)
    ]
    if found_io != expected_io:
        raise GateError(f"the exported graph has {found_io}, expected {expected_io}")
    unscaled = unscaled_attention(proto)
    if unscaled:
        raise GateError(
            f"attention must scale Q before the product (TensorRT fuses no other spelling), which "
            f"{unscaled[0]} does not"
        )


def unscaled_attention(proto: onnx.ModelProto) -> list[str]:
    """Names of softmax nodes whose product's first factor is not Q times a constant scalar.

    Between the product and softmax something may be added that hides tokens.
    """
    scalars = {item.name for item in proto.graph.initializer if not any(s > 1 for s in item.dims)}
    producer = {name: node for node in proto.graph.node for name in node.output}

    def source(name: str) -> onnx.NodeProto | None:
        node = producer.get(name)
        while node is not None and node.op_type in ("Reshape", "Transpose"):
            node = producer.get(node.input[0])
        return node

    wrong = []
    for node in proto.graph.node:
        if node.op_type != "Softmax":
            continue
        product = producer.get(node.input[0])
        if product is not None and product.op_type == "Add":
            added = [producer.get(name) for name in product.input]
            products = [item for item in added if item is not None and item.op_type == "MatMul"]
            product = products[0] if len(products) == 1 else None
        first = source(product.input[0]) if product is not None and product.input else None
        if (
            product is None
            or product.op_type != "MatMul"
            or first is None
            or first.op_type != "Mul"
            or scalars.isdisjoint(first.input)
        ):
            wrong.append(node.name)
    return wrong
