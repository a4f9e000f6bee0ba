"""One contract suite over every file in runtime/backends."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.contracts import registry
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError, InputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.fake import FakeBackend
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from tests.helpers.bundles import make_model
from tests.helpers.fake_tensorrt import FakeBoard

TILE, STRIDE, CLASSES = 32, 4, 3


def fake(_: Path, __: pytest.MonkeyPatch) -> Backend:
    return FakeBackend(TILE, CLASSES, STRIDE)


def onnxrt(folder: Path, _: pytest.MonkeyPatch) -> Backend:
    onnx.save(make_model(TILE, STRIDE, CLASSES), folder / "model.onnx")
    return OnnxRuntimeBackend(folder / "model.onnx", threads=1)


def trt(_: Path, patch: pytest.MonkeyPatch) -> Backend:
    """On a made-up board, with batches of at most two."""
    from edgekd.contracts.manifest import PortableModel
    from edgekd.deploy.builders.trt import BuildOptions, build_plan
    from edgekd.runtime.backends.trt import TensorRtBackend, open_api

    FakeBoard(patch).boot("10.3")
    model = PortableModel(
        file="m.onnx", precision="fp32", typing="flags", tensorrt_from="8.6",
        tensorrt_below="10.12", golden_atol=1, golden_agreement_min=0,
    )  # fmt: skip
    content = make_model(TILE, STRIDE, CLASSES).SerializeToString()
    options = BuildOptions(workspace_mib=64, batch_max=2)
    plan = build_plan(open_api(), content, model, options, lambda text: None)
    return TensorRtBackend(plan.content)


#: how to make each; a backend without an entry fails the first test below.
MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Backend]] = {
    "fake": fake,
    "onnxrt": onnxrt,
    "trt": trt,
}


def test_every_backend_file_is_tested() -> None:
    assert registry.module_names("edgekd.runtime.backends") == sorted(MAKERS)


@pytest.fixture(params=sorted(MAKERS))
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Backend:
    return MAKERS[request.param](tmp_path, monkeypatch)


def tensor(count: int = 1, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, TILE, TILE)).astype(np.float32)


def test_shapes_are_declared(backend: Backend) -> None:
    assert backend.input_shapes == {"image": [None, 3, TILE, TILE]}
    cells = TILE // STRIDE
    assert backend.output_shapes == {"logits": [None, CLASSES, cells, cells]}
    assert all(isinstance(value, str) for value in backend.details.values())
    assert "backend" in backend.details


def test_a_batch_is_the_same_as_one_by_one(backend: Backend) -> None:
    both = backend.infer({"image": tensor(3)})["logits"]
    assert both.dtype == np.float32
    for number in range(3):
        one = backend.infer({"image": tensor(3)[number : number + 1]})["logits"]
        np.testing.assert_allclose(one[0], both[number], atol=1e-5)


def test_results_do_not_depend_on_memory_layout_and_belong_to_the_caller(
    backend: Backend,
) -> None:
    plain = tensor()
    turned = np.asfortranarray(plain)
    first = backend.infer({"image": plain})["logits"]
    kept = first.copy()
    np.testing.assert_allclose(backend.infer({"image": turned})["logits"], kept, atol=1e-6)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_allclose(backend.infer({"image": plain})["logits"], kept, atol=1e-6)
    np.testing.assert_array_equal(plain, tensor())


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "takes the inputs ['image'], received []"),
        ({"images": tensor()}, "received ['images']"),
        ({"image": tensor(), "more": tensor()}, "received ['image', 'more']"),
        ({"image": tensor()[0]}, "float32 of shape Nx3x32x32, received float32 of shape 3x32x32"),
        ({"image": tensor().astype(np.float64)}, "received float64"),
        ({"image": tensor().astype(np.uint8)}, "received uint8"),
        ({"image": tensor()[:, :2]}, "of shape 1x2x32x32"),
        ({"image": tensor()[:, :, :28]}, "of shape 1x3x28x32"),
        ({"image": tensor()[:0]}, "batch of at least 1"),
    ],
)
def test_wrong_inputs_are_refused(
    backend: Backend, inputs: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        backend.infer(inputs)
    assert words in str(caught.value)


def test_a_closed_backend_says_so(backend: Backend) -> None:
    with backend:
        backend.infer({"image": tensor()})
    backend.close()
    with pytest.raises(EdgeKDError, match="is closed"):
        backend.infer({"image": tensor()})


class Liar(FakeBackend):
    """Gives what it was told to give."""

    answer: dict[str, np.ndarray]

    def _infer(self, inputs: object, stream: bool) -> dict[str, np.ndarray]:
        return self.answer


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"scores": np.zeros((1, 3, 8, 8), np.float32)},
        {"logits": np.zeros((1, 3, 8, 8), np.float64)},
        {"logits": np.zeros((1, 3, 1, 1), np.float32)},
        {"logits": np.zeros((2, 3, 8, 8), np.float32)},
    ],
)
def test_outputs_are_checked_too(answer: dict[str, np.ndarray]) -> None:
    backend = Liar(TILE, CLASSES, STRIDE)
    backend.answer = answer
    with pytest.raises(EdgeKDError, match="declare"):
        backend.infer({"image": tensor()})


def test_onnxrt_refuses_what_it_cannot_load(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        OnnxRuntimeBackend(tmp_path / "bad.onnx")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load"):
        OnnxRuntimeBackend(tmp_path / "absent.onnx")
    onnx.save(make_model(TILE, STRIDE, CLASSES), tmp_path / "good.onnx")
    with pytest.raises(EnvironmentLacksError, match="has no NowhereExecutionProvider"):
        OnnxRuntimeBackend(tmp_path / "good.onnx", provider="NowhereExecutionProvider")


@pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.DOUBLE])
def test_onnxrt_refuses_other_types_than_float32(tmp_path: Path, kind: int) -> None:
    node = helper.make_node("Identity", ["image"], ["logits"])
    shape = ["N", 3, TILE, TILE]
    info = [helper.make_tensor_value_info(name, kind, shape) for name in ("image", "logits")]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"expected tensor\(float\)"):
        OnnxRuntimeBackend(tmp_path / "model.onnx")


def test_streams_answer_as_single_calls_do(tmp_path: Path) -> None:
    onnx.save(make_model(TILE, STRIDE, CLASSES), tmp_path / "model.onnx")
    with OnnxRuntimeBackend(tmp_path / "model.onnx", threads=3) as backend:
        assert backend.streams == 3
        tensors = [tensor(seed=n) for n in range(12)]
        expected = [backend.infer({"image": item})["logits"] for item in tensors]
        with ThreadPoolExecutor(3) as pool:
            found = pool.map(lambda item: backend.infer({"image": item}, stream=True), tensors)
            for answer, plain in zip(found, expected, strict=True):
                np.testing.assert_allclose(answer["logits"], plain, atol=1e-6)


@pytest.mark.parametrize(
    ("threads", "asked", "streams"), [(4, 0, 4), (4, 2, 2), (4, 9, 4), (1, 0, 1), (1, 3, 1)]
)
def test_a_stream_has_a_core_and_never_more_than_asked(
    tmp_path: Path, threads: int, asked: int, streams: int
) -> None:
    onnx.save(make_model(TILE, STRIDE, CLASSES), tmp_path / "model.onnx")
    with OnnxRuntimeBackend(tmp_path / "model.onnx", threads=threads, streams=asked) as backend:
        assert backend.streams == streams
