"""One contract suite over every file in runtime/backends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts import registry
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError, InputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.fake import FakeBackend
from edgekd.runtime.backends.onnxrt import ROUNDS_BIASES, OnnxRuntimeBackend
from tests.helpers.bundles import make_model
from tests.helpers.fake_cuda import GPU
from tests.helpers.fake_tensorrt import FakeBoard, trt_backend
from tests.helpers.tensorrt_api import VERSIONS

TILE, STRIDE, CLASSES = 32, 4, 3
CLOSED = "the session is closed; load the bundle again"


def fake(_: Path, __: pytest.MonkeyPatch) -> Backend:
    return FakeBackend(TILE, CLASSES, STRIDE, streams=2)


def with_model(
    kind: str, model: onnx.ModelProto, folder: Path, patch: pytest.MonkeyPatch
) -> Backend:
    """A backend that runs an ONNX model; TensorRT's on a made-up board, in batches of two."""
    if kind == "onnxrt":
        onnx.save(model, folder / "model.onnx")
        return OnnxRuntimeBackend(folder / "model.onnx", threads=2)
    FakeBoard(patch).boot(kind.removeprefix("trt-"), policy="random")
    return trt_backend(model)


#: backends that run any model
RUNNERS = ["onnxrt", *(f"trt-{version}" for version in VERSIONS)]
#: how to make each; a backend without an entry fails the first test below.
MAKERS: dict[str, Callable[[Path, pytest.MonkeyPatch], Backend]] = {
    "fake": fake,
    **{
        kind: lambda folder, patch, kind=kind: with_model(  # type: ignore[misc]
            kind, make_model(TILE, STRIDE, CLASSES), folder, patch
        )
        for kind in RUNNERS
    },
}


def test_every_backend_file_is_tested() -> None:
    tested = {name.partition("-")[0] for name in MAKERS}
    assert registry.module_names("edgekd.runtime.backends") == sorted(tested)
    assert len(MAKERS) == 6


@pytest.fixture(params=sorted(MAKERS))
def backend(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    with MAKERS[request.param](tmp_path, monkeypatch) as backend:
        yield backend


@pytest.fixture(params=RUNNERS)
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[onnx.ModelProto], Backend]:
    return lambda model: with_model(request.param, model, tmp_path, monkeypatch)


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


def test_concurrent_calls_each_get_their_own(backend: Backend) -> None:
    tensors = [tensor(1 + n % 3, seed=n) for n in range(12)]
    expected = [backend.infer({"image": item})["logits"] for item in tensors]
    with ThreadPoolExecutor(3) as pool:  # one more than there are streams
        found = pool.map(lambda item: backend.infer({"image": item}, stream=True), tensors)
        for answer, plain in zip(found, expected, strict=True):
            np.testing.assert_allclose(answer["logits"], plain, atol=1e-5)


def test_closing_lets_calls_end(backend: Backend) -> None:
    expected = backend.infer({"image": tensor()})["logits"]
    answers: list[np.ndarray] = []

    def call() -> str:
        try:
            while True:
                answers.append(backend.infer({"image": tensor()}, stream=True)["logits"])
        except EdgeKDError as err:
            return str(err)

    with ThreadPoolExecutor(6) as pool:  # some of them wait for a slot
        calls = [pool.submit(call) for _ in range(6)]
        while len(answers) < 10:
            time.sleep(0.001)
        backend.close()
        assert {item.result(timeout=20) for item in calls} == {CLOSED}
    for answer in answers:
        np.testing.assert_allclose(answer, expected, atol=1e-5)


def test_what_fails_says_why_and_the_next_call_works(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = backend.infer({"image": tensor()})["logits"]
    with monkeypatch.context() as patch:
        words = broken(backend, patch)
        with pytest.raises(EdgeKDError) as caught:
            backend.infer({"image": tensor()})
        assert words in str(caught.value)
    np.testing.assert_allclose(backend.infer({"image": tensor()})["logits"], expected, atol=1e-5)


def broken(backend: Backend, patch: pytest.MonkeyPatch) -> str:
    """Let the next call fail; what its error must say."""
    if isinstance(backend, FakeBackend):
        patch.setattr(backend, "_model", lambda tile: tile)
        return "output 'logits' is declared as float32 of shape 1x3x8x8"
    if isinstance(backend, OnnxRuntimeBackend):
        patch.setattr(backend, "_outputs", ["nothing"])
        return "Invalid output name:nothing"
    GPU.current.fault = "an illegal memory access was encountered"
    return "the GPU failed: cuEventSynchronize failed: an illegal memory access was encountered"


def graph(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: dict[str, Any], **constants: Any
) -> onnx.ModelProto:
    """A model of named tensors, each (ONNX type, shape)."""
    infos = [
        [helper.make_tensor_value_info(name, *what) for name, what in side.items()]
        for side in (inputs, outputs)
    ]
    values = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    body = helper.make_graph(nodes, "g", *infos, values)
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


F32, F16, I64, U8, BOOL = (
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL,
)  # fmt: skip


def many() -> onnx.ModelProto:
    """Six inputs and eight outputs, of ranks 0 to 5 and five types."""
    node = helper.make_node
    return graph(
        [
            node("ReduceMean", ["image"], ["mean"], axes=[1, 2, 3], keepdims=0),
            node("Mul", ["mean", "scale"], ["vector"]),
            node("Mul", ["table", "scale"], ["rows"]),
            node("Unsqueeze", ["image", "one"], ["cube"]),
            node("Mul", ["scale", "scale"], ["square"]),
            node("Add", ["ids", "one"], ["next"]),
            node("Not", ["flags"], ["others"]),
            node("Identity", ["pixels"], ["same"]),
            node("Identity", ["halves"], ["again"]),
        ],
        {
            "image": (F32, ["N", 3, 4, 4]), "table": (F32, ["N", 5]), "scale": (F32, []),
            "ids": (I64, ["N", 2]), "flags": (BOOL, ["N"]), "pixels": (U8, ["N", 2, 2]),
            "halves": (F16, ["N", 3]),
        },
        {
            "vector": (F32, ["N"]), "rows": (F32, ["N", 5]), "cube": (F32, ["N", 1, 3, 4, 4]),
            "square": (F32, []), "next": (I64, ["N", 2]), "others": (BOOL, ["N"]),
            "same": (U8, ["N", 2, 2]), "again": (F16, ["N", 3]),
        },
        one=np.array([1], np.int64),
    )  # fmt: skip


def feeds(backend: Backend, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    plain = {
        "image": rng.standard_normal((batch, 3, 4, 4)), "table": rng.standard_normal((batch, 5)),
        "scale": np.array(1.5), "ids": rng.integers(0, 9, (batch, 2)),
        "flags": rng.random(batch) < 0.5, "pixels": rng.integers(0, 256, (batch, 2, 2)),
        "halves": rng.standard_normal((batch, 3)),
    }  # fmt: skip
    return {name: array.astype(backend.input_dtypes[name]) for name, array in plain.items()}


def test_several_inputs_and_outputs_of_any_rank_and_type(
    run: Callable[[onnx.ModelProto], Backend],
) -> None:
    with run(many()) as backend:
        assert backend.input_shapes["scale"] == [] == backend.output_shapes["square"]
        assert backend.output_shapes["cube"] == [None, 1, 3, 4, 4]
        narrow = backend.details.get("tensorrt", "").startswith("8.6")
        assert backend.input_dtypes["ids"] == ("int32" if narrow else "int64")
        for batch in (1, 2, 1):
            given = feeds(backend, batch)
            answers = backend.infer(given)
            expected = {
                "vector": given["image"].mean((1, 2, 3)) * given["scale"],
                "rows": given["table"] * given["scale"], "cube": given["image"][:, None],
                "square": given["scale"] ** 2, "next": given["ids"] + 1,
                "others": ~given["flags"], "same": given["pixels"], "again": given["halves"],
            }  # fmt: skip
            for name, value in expected.items():
                assert answers[name].dtype == backend.output_dtypes[name], name
                assert answers[name].shape == value.shape, name
                # a mean of 48 values near 1 is summed in any order: 48 roundings of 6e-8, over 48
                np.testing.assert_allclose(answers[name], value, 1e-6, 6e-8, err_msg=name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ids": np.zeros((1, 2), np.float32)}, "of shape Nx2, received float32 of shape 1x2"),
        ({"scale": np.zeros(1, np.float32)}, "float32 of shape () (a scalar), received float32 of"),
        ({"halves": np.zeros((1, 3), np.float32)}, "'halves' must be float16 of shape Nx3"),
        ({"flags": np.zeros(1, np.uint8)}, "'flags' must be bool of shape N, received uint8"),
        ({"flags": np.zeros(2, bool)}, "all inputs need the same batch"),
        ({"pixels": np.zeros((1, 2, 3), np.uint8)}, "uint8 of shape Nx2x2, received uint8 of"),
    ],
)
def test_other_ranks_and_types_are_refused(
    run: Callable[[onnx.ModelProto], Backend], change: dict[str, np.ndarray], words: str
) -> None:
    with run(many()) as backend, pytest.raises(InputError) as caught:
        backend.infer(feeds(backend, 1) | change)
    assert words in str(caught.value)


def test_a_model_without_a_batch(run: Callable[[onnx.ModelProto], Backend]) -> None:
    model = graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        {"a": (F32, [2]), "b": (F32, [2, 3])},
        {"c": (F32, [3])},
    )
    a, b = np.array([1, 2], np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    with run(model) as backend:
        assert backend.input_shapes == {"a": [2], "b": [2, 3]}
        np.testing.assert_allclose(backend.infer({"a": a, "b": b})["c"], a @ b)
        with pytest.raises(InputError, match="float32 of shape 2, received float32 of shape 3"):
            backend.infer({"a": np.zeros(3, np.float32), "b": b})


def test_a_second_free_dimension(run: Callable[[onnx.ModelProto], Backend]) -> None:
    model = graph(
        [
            helper.make_node("Add", ["x", "x"], ["twice"]),
            helper.make_node("ReduceSum", ["x", "one"], ["sums"], keepdims=0),
        ],
        {"x": (F32, ["N", "L"])},
        {"twice": (F32, ["N", "L"]), "sums": (F32, ["N"])},
        one=np.array([1], np.int64),
    )
    with run(model) as backend:
        assert backend.input_shapes == {"x": [None, None]}
        for shape in ((1, 2), (2, 1), (3, 2), (1, 1), (2, 2)):
            x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
            answers = backend.infer({"x": x})
            np.testing.assert_allclose(answers["twice"], 2 * x, rtol=1e-6)
            np.testing.assert_allclose(answers["sums"], x.sum(1), rtol=1e-5)
        with pytest.raises(InputError, match="is empty: its shape is 1x0"):
            backend.infer({"x": np.zeros((1, 0), np.float32)})


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


def test_onnxrt_refuses_types_that_it_does_not_carry(tmp_path: Path) -> None:
    what = (TensorProto.DOUBLE, ["N", 3])
    model = graph([helper.make_node("Identity", ["x"], ["y"])], {"x": what}, {"y": what})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(BundleError, match=r"'x' is tensor\(double\), expected one of tensor\(flo"):
        OnnxRuntimeBackend(tmp_path / "model.onnx")


AZURE, CPU = "AzureExecutionProvider", "CPUExecutionProvider"


def test_what_a_provider_cannot_run_is_no_silent_work_of_the_cpu(tmp_path: Path) -> None:
    """Azure's provider is in ONNX Runtime's wheel and runs no ordinary node."""
    path = tmp_path / "model.onnx"
    onnx.save(make_model(TILE, STRIDE, CLASSES), path)
    if AZURE not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CPU's provider alone")
    with pytest.raises(BundleError, match="AzureExecutionProvider cannot run all of it or does no"):
        OnnxRuntimeBackend(path, provider=AZURE)
    with OnnxRuntimeBackend(path, provider=[AZURE, CPU]) as backend:
        assert backend.details["provider"] == f"{AZURE}, {CPU}"
        assert backend.streams == 1, "what is good for a CPU is not known of another provider"
    for wrong in ([CPU, AZURE], []):
        with pytest.raises(InputError, match="CPUExecutionProvider only as the last"):
            OnnxRuntimeBackend(path, provider=wrong)


def test_a_provider_that_does_not_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its libraries missing ONNX Runtime logs a line and takes the next provider."""
    path = tmp_path / "model.onnx"
    onnx.save(make_model(TILE, STRIDE, CLASSES), path)
    gpu, real = "CUDAExecutionProvider", onnxruntime.InferenceSession
    options: list[dict[str, Any]] = []

    def start(model: Any, settings: Any, providers: list[str], **more: Any) -> Any:
        options.append(more)
        return real(model, providers=[item for item in providers if item != gpu])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [gpu, CPU])
    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    with pytest.raises(EnvironmentLacksError, match=f"asked for {gpu}, {CPU}, ONNX Runtime took"):
        OnnxRuntimeBackend(path, provider=[gpu, CPU])
    assert options == [{"enable_fallback": 0, "disabled_optimizers": ROUNDS_BIASES}]


def test_details_name_the_device_of_a_provider(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make_model(TILE, STRIDE, CLASSES), path)
    told = {CPU: {"device_id": "1", "use_tf32": "0", "arena": "9"}}
    monkeypatch.setattr(onnxruntime.InferenceSession, "get_provider_options", lambda self: told)
    with OnnxRuntimeBackend(path) as backend:
        assert backend.details[CPU] == "device_id=1 use_tf32=0"


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


@pytest.mark.parametrize("stream", [False, True])
def test_onnxrt_tells_callers_that_came_before_the_end(tmp_path: Path, stream: bool) -> None:
    onnx.save(make_model(TILE, STRIDE, CLASSES), tmp_path / "model.onnx")
    backend = OnnxRuntimeBackend(tmp_path / "model.onnx", threads=2)
    backend.close()
    backend._open = True  # as it was when they came
    with pytest.raises(EdgeKDError, match=CLOSED):
        backend.infer({"image": tensor()}, stream=stream)
