"""Slots, streams, events, graphs and messages of the TensorRT backend, on a made-up board.

Its device does what is enqueued late and in any order that events allow
(``tests/helpers/fake_cuda.py``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnxruntime
import pytest

from edgekd.errors import BundleError, EdgeKDError, InputError
from edgekd.runtime.backends import _cuda_graph
from edgekd.runtime.backends._trt_log import LINE_CHARS, LINES, REASON_CHARS, make_log
from edgekd.runtime.backends.trt import TensorRtBackend
from tests.helpers.bundles import make_model
from tests.helpers.fake_cuda import POLICIES, CudaError, Event
from tests.helpers.fake_tensorrt import FakeBoard, trt_backend, trt_plan
from tests.helpers.tensorrt_api import VERSIONS
from tests.runtime.test_backends import F32, graph, many

TILE = 16
MODEL = make_model(TILE, 4, 2, width=4)
_PLAIN = onnxruntime.InferenceSession(MODEL.SerializeToString())


def tile(batch: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((batch, 3, TILE, TILE)).astype(np.float32)


def plain(array: np.ndarray) -> np.ndarray:
    """What ONNX Runtime says, tile by tile."""
    return np.concatenate([_PLAIN.run(None, {"image": item[None]})[0] for item in array])


def check(backend: Any, array: np.ndarray, stream: bool = False) -> None:
    answer = backend.infer({"image": array}, stream=stream)["logits"]
    np.testing.assert_allclose(answer, plain(array), atol=1e-5)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBoard]:
    """A board that must be left as it was found: no memory, graph or context stays."""
    board = FakeBoard(monkeypatch)
    board.boot()
    yield board
    assert board.gpu.memory == {} and board.gpu.graphs == {} and board.gpu.depth == 0


@pytest.mark.parametrize("graphs", [True, False])
@pytest.mark.parametrize(
    ("policy", "seed"),
    [(name, n) for name in POLICIES for n in range(6 if name == "random" else 2)],
)
def test_every_call_gets_its_own_result_whatever_the_timing(
    board: FakeBoard, policy: str, seed: int, graphs: bool
) -> None:
    board.boot(policy=policy, seed=seed, graphs=graphs)
    tiles = [tile(1 + (n * n + seed) % 3, n) for n in range(16)]
    with trt_backend(MODEL) as backend:
        assert backend.streams == 2
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda item: check(backend, item, stream=True), tiles))
        for item in tiles[:4]:
            check(backend, item)


@pytest.mark.parametrize("graphs", [True, False])
def test_a_tile_is_copied_in_while_another_is_computed(board: FakeBoard, graphs: bool) -> None:
    """Both are enqueued before either is waited for, and no copy waits for a computation that it
    does not need."""
    board.boot(policy="copies", graphs=graphs)
    with trt_backend(MODEL) as backend, ThreadPoolExecutor(2) as pool:
        board.gpu.trace.clear()
        board.gpu.together = 2
        list(pool.map(lambda seed: check(backend, tile(1, seed), stream=True), range(2)))
        did = [kind for kind, _ in board.gpu.trace if kind not in ("record", "wait")]
        assert did[:2] == ["in", "in"], "the second is copied in before the first is computed"
        assert did.count("run") == did.count("out") == 2
        assert did.index("out") < len(did) - 1 - did[::-1].index("run"), (
            "the first is copied out before the second is computed"
        )
        computing = {handle for kind, handle in board.gpu.trace if kind.startswith("run")}
        copying = {handle for kind, handle in board.gpu.trace if kind in ("in", "out")}
        assert len(computing) == 1, "one at a time: they share their activations"
        assert len(copying) == 2 and not computing & copying


def test_calls_are_enqueued_one_after_another(board: FakeBoard) -> None:
    """Else one would come into the recording of another, in the stream that both compute in."""
    board.boot(policy="random")
    inside: list[int] = []
    most = 0

    def slowly(context: Any, log: Any) -> bool:
        nonlocal most
        inside.append(1)
        most = max(most, len(inside))
        time.sleep(0.003)
        inside.pop()
        return False

    board.record["fail"] = slowly
    tiles = [tile(1 + n // 2 % 2, n) for n in range(16)]  # shapes change: recorded anew
    with trt_backend(MODEL) as backend, ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda item: check(backend, item, stream=True), tiles))
    assert most == 1


def test_memory_is_that_of_one_context(board: FakeBoard) -> None:
    """Activations once, inputs and outputs for each slot."""
    sizes = {}
    for streams in (1, 2):
        with trt_backend(MODEL, streams=streams) as backend:
            assert backend.streams == streams
            sizes[streams] = sorted(len(item) for item in board.gpu.memory.values())
    image, logits = 2 * 3 * TILE * TILE * 4, 2 * 2 * 4 * 4 * 4
    assert sizes == {1: sorted([4096, image, logits]), 2: sorted([4096, *[image, logits] * 2])}


def test_more_callers_than_slots_wait(board: FakeBoard) -> None:
    board.boot(policy="random")
    with trt_backend(MODEL, streams=1) as backend, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: check(backend, tile(2, seed), stream=True), range(12)))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_graph_takes_the_place_of_the_call(board: FakeBoard, version: str) -> None:
    board.boot(version)
    enqueued: list[int] = []
    board.record["fail"] = lambda context, log: enqueued.append(1)
    with trt_backend(MODEL) as backend:
        assert backend.details["cuda_graph"] == "on"
        before = len(enqueued)
        assert before == 8, "each slot ran a full and a short batch once and recorded each once"
        for batch in (2, 2, 1) * 3:  # rows of five windows
            check(backend, tile(batch, batch))
        assert len(enqueued) == before, "and no call since went through TensorRT"
        assert len(board.gpu.graphs) == 4


def test_two_choices_of_shapes_keep_their_graphs(board: FakeBoard) -> None:
    """A shape runs once before it is recorded, and no graph outlives its context's shapes."""
    for order in itertools.product((1, 2, 3), repeat=4):
        with trt_backend(MODEL, batch_max=3, streams=1) as backend:
            kept = [(3, 2), (1, 2)]  # as rehearsed, the last used first: batch, calls
            for seed, batch in enumerate(order):
                check(backend, tile(batch, seed))
                calls = 1 + sum(n for size, n in kept if size == batch)
                others = [item for item in kept if item[0] != batch]
                kept = [(batch, calls), *others[:1]]
            assert len(board.gpu.graphs) == sum(calls > 1 for _, calls in kept), order


def test_a_refused_shape_costs_no_graph(board: FakeBoard) -> None:
    """What TensorRT refuses leaves the other choice as it is, and the next call finds its way."""
    with trt_backend(MODEL, streams=1) as backend:
        for _ in range(2):  # at once, since infer would split it
            with backend._device.current(), pytest.raises(EdgeKDError, match="refused the shape"):
                backend._run(backend._slots[0], {"image": tile(3, 0)})
        assert len(board.gpu.graphs) == 1
        for batch in (2, 1, 2, 1):
            check(backend, tile(batch, batch))
        assert len(board.gpu.graphs) == 2


def test_a_plan_of_8_6_that_is_not_shared_is_told(board: FakeBoard) -> None:
    """Before TensorRT 10 a profile is one context's unless the builder was told otherwise."""
    board.boot("8.6")
    with trt_backend(MODEL) as backend:
        assert board.record["preview"] == {"PROFILE_SHARING_0806": True}
        check(backend, tile(1, 0))
    plan = trt_plan(MODEL).replace(b'"shared": true', b'"shared": false')
    with pytest.raises(EdgeKDError, match="Profile 0 has been chosen by another"):
        TensorRtBackend(plan)
    board.boot("10.3")
    with trt_backend(MODEL):
        assert board.record["preview"] == {}


@pytest.mark.parametrize("how", ["openly", "silently"])
def test_what_cannot_be_recorded_runs_without(board: FakeBoard, how: str) -> None:
    board.record["unrecordable"] = how
    with trt_backend(MODEL) as backend:
        said = backend.details["cuda_graph"]
        assert said.startswith("off: ") and "a loop cannot be recorded" in said
        if how == "silently":
            assert "cuStreamEndCapture failed: operation failed due to a previous error" in said
        for seed in range(4):
            check(backend, tile(2, seed))
        board.record["fail"] = lambda context, log: True
        with pytest.raises(EdgeKDError, match="^TensorRT failed: it gave no reason$"):
            check(backend, tile(1, 0))


@pytest.mark.parametrize(
    ("boot", "options", "words"),
    [
        ({"graphs": False}, {}, "off: the CUDA driver has no graphs (libcuda.so.1: cannot open"),
        ({}, {"cuda_graph": False}, "off: not wanted"),
        ({}, {"dla_core": 0}, "off: layers run on the DLA"),
    ],
)
def test_without_graphs_it_says_why(
    board: FakeBoard, boot: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    board.boot(**boot)
    with trt_backend(MODEL, **options) as backend:
        assert backend.details["cuda_graph"].startswith(words)
        check(backend, tile(3, 0))


def test_a_driver_without_a_function_is_told(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(board.gpu.library, "cuGraphInstantiateWithFlags")
    with pytest.raises(_cuda_graph.Refusal, match="has no graphs .*cuGraphInstantiateWithFlags"):
        _cuda_graph.Driver()


def test_the_drivers_refusal_is_told(board: FakeBoard) -> None:
    driver = _cuda_graph.Driver()
    with pytest.raises(_cuda_graph.Refusal, match=r"invalid argument \(CUDA error 1\)"):
        driver.call("cuGraphExecDestroy", 77)


class Tagged(threading.local):
    """What this thread's calls of TensorRT shall say."""

    text = ""


def complain(tag: Tagged, count: int = 5) -> Callable[[Any, Any], bool]:
    def fail(context: Any, log: Any) -> bool:
        for number in range(count if tag.text else 0):
            log.log(1, f"{tag.text} error {number}")
            log.log(2, "a warning of a call")
        return bool(tag.text)

    return fail


def test_every_error_text_is_carried_to_its_own_call(board: FakeBoard) -> None:
    tag = Tagged()
    board.record["fail"] = complain(tag)
    with trt_backend(MODEL, cuda_graph=False) as backend:  # a graph would not ask TensorRT

        def call(number: int) -> tuple[str, str]:
            tag.text = f"call {number}" if number % 3 else ""
            try:
                check(backend, tile(2, number), stream=True)
            except EdgeKDError as err:
                return tag.text, str(err)
            return tag.text, ""

        with ThreadPoolExecutor(2) as pool:
            for text, said in pool.map(call, range(30)):
                lines = [f"{text} error {number}" for number in range(5)]
                assert said == (f"TensorRT failed: {'; '.join(lines)}" if text else "")
        assert backend.warnings == ["a warning of the runtime", "a warning of a call"]


def test_a_fault_of_the_gpu_carries_what_tensorrt_said(board: FakeBoard) -> None:
    with trt_backend(MODEL, cuda_graph=False) as backend:

        def fault(context: Any, log: Any) -> bool:
            board.gpu.fault = "an illegal memory access was encountered"
            log.log(1, "a layer is at fault")
            return False

        board.record["fail"] = fault
        with pytest.raises(EdgeKDError) as caught:
            check(backend, tile(1, 0))
        board.record["fail"] = None
        assert str(caught.value) == (
            "the GPU failed: cuEventSynchronize failed: an illegal memory access was encountered "
            "(TensorRT: a layer is at fault)"
        )
        check(backend, tile(1, 0))


@pytest.fixture
def log() -> Any:
    module = type("trt", (), {})
    module.ILogger = type(  # type: ignore[attr-defined]
        "ILogger",
        (),
        {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "__init__": lambda self: None},
    )
    return make_log(module)


def elsewhere(log: Any, *lines: str, severity: int = 1) -> None:
    """Say it from a thread that no call owns."""
    thread = threading.Thread(target=lambda: [log.log(severity, line) for line in lines])
    thread.start()
    thread.join()


def test_what_other_threads_say_reaches_the_one_call_that_runs(log: Any) -> None:
    with log.listen() as heard:
        log.log(1, "mine")
        elsewhere(log, "a worker's", "a worker's")
        elsewhere(log, "an internal one", severity=0)
        elsewhere(log, "only a hint", severity=2)
        elsewhere(log, "for nobody", severity=3)
        assert heard.why() == "mine; a worker's; an internal one"
        assert heard.warnings == ["only a hint"]
        with log.listen() as inner:
            log.log(1, "of the inner")
            elsewhere(log, "of a worker")
        assert inner.why() == "of the inner; of a worker"
        assert "inner" not in heard.why()
    assert log._open == []


def test_what_nobody_can_be_sure_of_reaches_all_and_says_so(log: Any) -> None:
    inside, go = threading.Barrier(2), threading.Event()
    said: list[str] = []

    def other() -> None:
        with log.listen() as heard:
            log.log(1, "the other's")
            inside.wait()
            go.wait()
            said.append(heard.why())

    thread = threading.Thread(target=other)
    thread.start()
    with log.listen() as heard:
        inside.wait()
        log.log(1, "mine")
        elsewhere(log, "whose?")
        go.set()
        thread.join()
        assert heard.why() == "mine; said while several calls ran: whose?"
    assert said == ["the other's; said while several calls ran: whose?"]


def test_what_is_said_between_calls_is_not_lost(log: Any) -> None:
    log.log(1, "late")
    with log.listen() as heard:
        assert heard.why() == "said between calls: late"
        assert heard.why() == "it gave no reason", "it is told once"


def test_reasons_are_bounded_and_say_so(log: Any) -> None:
    with log.listen() as heard:
        log.log(1, "x" * 10_000)
        assert heard.why() == "x" * LINE_CHARS
        for number in range(3 * LINES):
            log.log(1, f"error {number:04d} " + "y" * 40)
    text = heard.why()
    assert text.startswith("x" * LINE_CHARS + "; error 0000 ") and len(text) < REASON_CHARS + 50
    told = text.count("error")
    assert text.endswith(f"; and {LINES - told} more")  # the x, errors, and the line of the bound
    assert len(heard.errors) == LINES + 1 and heard.errors[-1] == "further lines were not kept"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, CudaError])
def test_a_call_that_is_given_up_leaves_nothing_under_way(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    """Else the next call in its slot would write where the GPU still reads."""
    with trt_backend(MODEL, streams=1) as backend:
        wait, waits = Event.synchronize, []

        def interrupted(self: Event) -> Event:
            waits.append(self)
            if len(waits) == 1:
                raise stop
            return wait(self)

        monkeypatch.setattr(Event, "synchronize", interrupted)
        with pytest.raises((KeyboardInterrupt, EdgeKDError)):
            check(backend, tile(1, 0))
        assert not any(stream.queue for stream in board.gpu.streams.values())
        check(backend, tile(1, 1))


def test_a_failing_engine_is_told_when_it_is_loaded(board: FakeBoard) -> None:
    board.record["fail"] = lambda context, log: log.log(1, "no kernel image") or True
    with pytest.raises(EdgeKDError, match="^TensorRT failed: no kernel image$"):
        trt_backend(MODEL)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"dtypes": {"image": "FP8"}}, "'image' is FP8, expected one of FLOAT, HALF"),
        ({"shape_io": ["image"]}, "'image' holds a shape and not data"),
        ({"data_dependent": ["logits"]}, "the shape of output 'logits' depends on data"),
    ],
)
def test_engines_that_cannot_be_passed_are_refused(
    board: FakeBoard, record: dict[str, Any], words: str
) -> None:
    board.record.update(record)
    with pytest.raises(BundleError, match=words):
        trt_backend(MODEL)


def test_a_shape_outside_of_the_engines_is_refused(board: FakeBoard) -> None:
    from onnx import helper

    what = (F32, ["N", "L"])
    model = graph([helper.make_node("Neg", ["x"], ["y"])], {"x": what}, {"y": what})
    with trt_backend(model) as backend:
        with pytest.raises(EdgeKDError) as caught:
            backend.infer({"x": np.zeros((1, 3), np.float32)})
        said = str(caught.value)
        assert "refused the shape (1, 3) of 'x', which was built for (1, 1) to (2, 2)" in said
        assert said.endswith("x: (1, 3) is outside of the profile")
        x = np.ones((1, 2), np.float32)
        np.testing.assert_array_equal(backend.infer({"x": x})["y"], -x)


def test_an_output_never_outgrows_its_memory(board: FakeBoard) -> None:
    """The GPU would write behind it."""
    with trt_backend(MODEL, batch_max=3, streams=1) as backend:
        room = backend._slots[0].host["logits"]
        backend._slots[0].host["logits"] = room[: len(room) // 2]
        board.gpu.trace.clear()
        with pytest.raises(EdgeKDError, match=r"output 'logits' would be \(2, 2, 4, 4\), larger"):
            check(backend, tile(2, 0))
        assert "run" not in {kind for kind, _ in board.gpu.trace}


def test_memory_that_is_not_there_is_told_and_the_rest_given_back(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, taken = board.cuda.mem_alloc, []

    def mem_alloc(size: int) -> Any:
        taken.append(size)
        if len(taken) > 4:
            raise board.cuda.Error("cuMemAlloc failed: out of memory")
        return plain(size)

    monkeypatch.setattr(board.cuda, "mem_alloc", mem_alloc)
    with pytest.raises(EdgeKDError, match="the plan cannot be loaded: cuMemAlloc failed: out of"):
        trt_backend(MODEL)
    assert len(taken) == 5


def test_outputs_without_a_batch_are_not_put_together(board: FakeBoard) -> None:
    from tests.runtime.test_backends import feeds

    with trt_backend(many()) as backend:
        backend.infer(feeds(backend, 2))
        with pytest.raises(InputError, match="batches of at most 2, received 3"):
            backend.infer(feeds(backend, 3))


def test_callers_that_came_before_the_end_are_told(board: FakeBoard) -> None:
    """Those that were let in and waited for a slot while another thread closed the backend."""
    backend = trt_backend(MODEL)
    backend.close()
    backend._open = True  # as it was when they came
    said: list[str] = []

    def call() -> None:
        with pytest.raises(EdgeKDError) as caught:
            check(backend, tile(1, 0))
        said.append(str(caught.value))

    callers = [threading.Thread(target=call, daemon=True) for _ in range(3)]
    for caller in callers:
        caller.start()
        caller.join(10)
    assert said == ["the session is closed; load the bundle again"] * 3


def test_the_script_that_compares_on_a_board(
    board: FakeBoard, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.report.test_benchmarks import script

    module = script("trt_streams")
    monkeypatch.setattr(module, "open_bundle", lambda path: MagicMock())
    monkeypatch.setattr(
        module, "TensorRtBackend", lambda *ignored, **options: trt_backend(MODEL, **options)
    )
    module.main(Path("bundle"), 0.1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("ms/tile")[2] for line in lines[:4]] == [
        "  1 at once  graph off: not wanted", "  2 at once  graph off: not wanted",
        "  1 at once  graph on", "  2 at once  graph on",
    ]  # fmt: skip
    assert all(float(line.partition("ms")[0]) > 0 for line in lines[:4])
