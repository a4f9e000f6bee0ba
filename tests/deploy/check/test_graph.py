"""Attentions, LayerNorms and quantised products are counted, and a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.deploy.check import rules
from edgekd.deploy.check.graph import read_graph, title, type_name
from edgekd.deploy.export.onnx_export import OnnxModel
from edgekd.errors import InputError
from tests.deploy.check.graphs import good
from tests.helpers.onnx_graphs import Tiny, attention, linear, save


def two_attentions() -> onnx.ModelProto:
    tiny = Tiny(("N", 5, 32))
    first = attention(tiny)
    for node in tiny.nodes:  # the second one gets names of its own
        node.name = f"a/{node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name == "image" else f"a/{name}" for name in names]
    for item in tiny.weights:
        item.name = f"a/{item.name}"
    return tiny.model(attention(tiny, f"a/{first}"))


def test_attentions_are_found_with_tokens_and_heads(tmp_path: Path) -> None:
    graph = read_graph(save(two_attentions(), tmp_path / "m.onnx"))
    assert [title(item.softmax) for item in graph.attentions] == ["a/softmax", "softmax"]
    assert {(item.tokens, item.head_size) for item in graph.attentions} == {(5, 16)}
    assert {type_name(item.dtype) for item in graph.attentions} == {"float"}
    assert not any(item.quantized for item in graph.attentions)


def test_a_softmax_over_classes_is_no_attention(tmp_path: Path) -> None:
    tiny = Tiny()
    soft = tiny.add("Softmax", [linear(tiny, "image", "fc")], "probabilities")
    graph = read_graph(save(tiny.model(linear(tiny, soft, "out")), tmp_path / "m.onnx"))
    assert graph.attentions == []


@pytest.mark.parametrize("name", ["levels", "small"])
def test_students_have_the_attentions_of_their_depth(
    name: str, exports: dict[str, OnnxModel]
) -> None:
    graph = read_graph(exports[name].path)
    blocks = {title(item.softmax) for item in graph.attentions}
    assert len(blocks) == len(graph.attentions) == exports[name].operators["Softmax"] >= 2
    assert all(item.tokens and item.head_size for item in graph.attentions)
    assert rules.precisions(graph) == ["fp32"] and graph.written_layernorms == []


def test_a_large_model_is_read_without_its_weights(tmp_path: Path) -> None:
    tiny = Tiny(("N", 4, 64))
    model = tiny.model(linear(tiny, linear(tiny, "image", "a", 64), "b", 64))
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin",
              size_threshold=0)  # fmt: skip
    (tmp_path / "w.bin").unlink()
    graph = read_graph(tmp_path / "m.onnx")
    assert graph.shapes["logits"] == ["N", 4, 64] and type_name(graph.types["logits"]) == "float"
    assert graph.value("a.w") is None


def test_nodes_inside_branches_are_seen(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [helper.make_node("Unique", ["image"], ["y"], name="inside")],
        "branch",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    tiny = Tiny()
    tiny.weight("yes", [True], bool)
    model = tiny.model(tiny.add("If", ["yes"], "out", then_branch=inner, else_branch=inner))
    graph = read_graph(save(model, tmp_path / "m.onnx"))
    assert [node.op_type for node in graph.all_nodes()] == ["If", "Unique", "Unique"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"this is no model", "damaged or no ONNX model|holds no nodes"),
        (b"\x00" * 64, "damaged or no ONNX model|holds no nodes"),
    ],
)
def test_no_model(content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_graph(tmp_path / "m.onnx")


def test_a_cut_model_is_refused(tmp_path: Path) -> None:
    content = good().SerializeToString()
    refused = 0
    for share in (0.2, 0.5, 0.8, 0.95):
        (tmp_path / "m.onnx").write_bytes(content[: int(len(content) * share)])
        try:
            read_graph(tmp_path / "m.onnx")
        except InputError:
            refused += 1
    assert refused == 4
