"""TensorRT backend, and the one place where the version of TensorRT is asked for.

Only names that every TensorRT from 8.6 to 11.4 has are used, except where :class:`Api` says which
generation is here; ``tests/runtime/test_trt_api.py`` holds every name against the table of each
version. Memory and streams come from pycuda.
"""

from __future__ import annotations

import contextlib
import platform
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd.contracts.board import Absent, read_board, read_l4t
from edgekd.contracts.manifest import Machine
from edgekd.contracts.optional import require
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError, InputError
from edgekd.runtime.backends._cuda_graph import Driver, Graph, Refusal
from edgekd.runtime.backends._trt_log import Heard, make_log
from edgekd.runtime.backends._trt_slots import NON_BLOCKING, BoundContext, Slot, size_bytes
from edgekd.runtime.backends.base import DTYPES, Array, Arrays, Backend, DType, closed
from edgekd.runtime.bundle import SealedFile

#: the TensorRT and the CUDA device of this process
_SHARED: dict[str, Any] = {}
#: what the code was written for; the bindings of these were looked at.
OLDEST, NEWEST = (8, 6), (12, 0)


class Api:
    """The installed TensorRT, and what its generation needs.

    Attributes:
        trt: the module.
        log: what TensorRT says (``log.listen()``); one for the process, since it takes no second.
        version, text: as numbers, and as it calls itself.
        explicit_batch: networks must be asked for explicit batches (8.x).
        weak: precisions come from flags of the builder (below 10.12; gone in 11).
        strong_flag: a network is strongly typed because a flag says so (10.x); in 11 all are.
        sharing_flag: several contexts may use one profile of dynamic shapes only where a plan was
            built so (below 10; later ones all are).
        monitored: tells progress (from 10).
        managed: a context's memory is asked for by a strategy and given with its size (from 10).
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.text = str(trt.__version__)
        self.version = numbers(self.text)
        self.explicit_batch = self.version < (10, 0)
        self.weak = self.version < (10, 12)
        self.strong_flag = (10, 0) <= self.version < (11, 0)
        self.sharing_flag = self.version < (10, 0)
        self.monitored = self.version >= (10, 0)
        self.managed = self.version >= (10, 0)
        self.log = make_log(trt)


def numbers(version: str) -> tuple[int, ...]:
    """``10.3.0.26`` -> (10, 3, 0, 26); what is no number ends it."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)


def open_api() -> Api:
    """The installed TensorRT.

    Raises:
        EnvironmentLacksError: not installed, or a version that nobody looked at.
    """
    try:
        trt = require("tensorrt", "trt", "run TensorRT engines")
    except EnvironmentLacksError as err:
        if platform.machine() != "aarch64":
            raise
        raise EnvironmentLacksError(
            "the TensorRT of JetPack is not seen from this Python; make the environment with: "
            f"python3 -m venv --system-site-packages VENV ({err})"
        ) from err
    if _SHARED.get("trt") is not trt:
        _SHARED.update(trt=trt, api=Api(trt))
    api: Api = _SHARED["api"]
    if not OLDEST <= numbers(str(trt.__version__))[:2] < NEWEST:
        raise EnvironmentLacksError(
            f"TensorRT {api.text} is here, and this version of edgekd knows 8.6 to 11.x; update "
            "JetPack or edgekd"
        )
    return api


def open_device() -> Device:
    """The first CUDA device.

    One object for the process: its primary context is retained once and kept, as pycuda leaves
    entries on a thread's stack of contexts each time that one is detached.

    Raises:
        EnvironmentLacksError: no pycuda, or no device that can be used.
    """
    cuda = require("pycuda.driver", "trt", "use the GPU")
    if _SHARED.get("cuda") is not cuda:
        _SHARED.update(cuda=cuda, device=Device(cuda))
    device: Device = _SHARED["device"]
    return device


class Device:
    """A CUDA device and its primary context, which other libraries share; see open_device."""

    def __init__(self, cuda: Any) -> None:
        self.cuda = cuda
        try:
            self.cuda.init()
            device = self.cuda.Device(0)
            self._primary = device.retain_primary_context()
        except self.cuda.Error as err:
            raise EnvironmentLacksError(
                f"no CUDA device can be used ({' '.join(str(err).split())[:200]}); on a Jetson, is "
                "the user in the group video? In a container, was it started with --runtime nvidia?"
            ) from err
        major, minor = device.compute_capability()
        self.name = str(device.name())
        self.compute_capability = f"{major}.{minor}"
        count = self.cuda.device_attribute.MULTIPROCESSOR_COUNT
        self.multiprocessors = int(device.get_attribute(count))
        self.memory_bytes = int(device.total_memory())

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context this thread's; TensorRT and pycuda work in the current one."""
        self._primary.push()
        try:
            yield
        finally:
            self.cuda.Context.pop()


def read_machine(api: Api, device: Device, root: Path = Path("/")) -> Machine:
    """What an engine is bound to, here."""

    def tell(read: Any) -> Any:
        try:
            return read(root)
        except Absent:
            return None

    board = tell(read_board)
    return Machine(
        arch=platform.machine(),
        tensorrt=api.text,
        gpu=device.name,
        compute_capability=device.compute_capability,
        multiprocessors=device.multiprocessors,
        board=board[0] if board else None,
        l4t=tell(read_l4t),
    )


#: TensorRT's names of element types -> ours
_DTYPES = {
    "FLOAT": DTYPES["float32"], "HALF": DTYPES["float16"], "INT64": DTYPES["int64"],
    "INT32": DTYPES["int32"], "INT8": DTYPES["int8"], "UINT8": DTYPES["uint8"],
    "BOOL": DTYPES["bool"],
}  # fmt: skip
#: calls at once: while one computes, the other is copied in and out. More would wait behind them.
STREAMS = 2
#: choices of shapes that a slot keeps ready: the full batch, and what is left at the end of a row
_CONTEXTS = 2
#: warnings kept, since an engine lives long
_WARNINGS = 100


class TensorRtBackend(Backend):
    """Runs a TensorRT plan.

    There are :attr:`streams` slots, each with page-locked and device memory and a stream of copies;
    what is computed is computed in one stream, in one memory of activations. So with calls from
    several threads one is computed while the next is copied in and the last is copied out. When
    :meth:`infer` returns, its own result is there. More tiles than the plan's largest batch are run
    one batch after another.

    From a slot's second call with the same shapes on, the call is a CUDA graph, where the driver
    has them and the engine can be recorded; ``details["cuda_graph"]`` is "on", or "off" with the
    reason. Two choices of shapes are kept ready, as a row of windows ends with a smaller batch. It
    is tried while loading, with zeros.

    Args:
        plan: the engine; of a sealed file the bytes that were hashed are deserialised.
        machine: what it was built for; refused where this machine differs.
        dla_core: deep learning accelerator that it was built for.
        streams: calls at once, at most; each has memory for inputs and outputs. 0 is two.
        cuda_graph: False runs without, to compare.

    Raises:
        BundleError: built for another TensorRT or GPU, not readable, or with inputs or outputs
            that cannot be passed.
        EnvironmentLacksError: no TensorRT, pycuda or CUDA device.
        EdgeKDError: the GPU has too little memory for it, or it fails on zeros.
    """

    def __init__(
        self,
        plan: SealedFile | bytes,
        machine: Machine | None = None,
        dla_core: int | None = None,
        streams: int = 0,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__()
        self._api, self._device = open_api(), open_device()
        self._lock = threading.Lock()
        name = str(plan.path) if isinstance(plan, SealedFile) else "the plan"
        here = read_machine(self._api, self._device)
        changes = [] if machine is None else machine.changes(here)
        if changes:
            raise BundleError(
                f"{name} was built for another machine ({'; '.join(changes)}), and an engine "
                "runs where it was built; build it for this one with: edgekd finalize BUNDLE"
            )
        content = plan.read() if isinstance(plan, SealedFile) else plan
        self.streams = min(streams, STREAMS) if streams else STREAMS
        self._warnings: list[str] = []
        self._slots: list[Slot] = []
        #: free slots; None for each of them once they are gone
        self._free: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._compute: Any = None
        self._activations: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        self._driver, no_graph = _open_driver(cuda_graph, dla_core)
        self.details = {
            "backend": "trt",
            "tensorrt": self._api.text,
            "gpu": here.gpu,
            "compute_capability": here.compute_capability,
            "cuda_graph": f"off: {no_graph}" if no_graph else "on",
        }
        with self._device.current(), self._api.log.listen() as heard:
            try:
                self._load(content, name, dla_core, heard)
            except self._device.cuda.Error as err:
                self._release()
                raise EdgeKDError(f"{name} cannot be loaded: {_failure(err, heard)}") from err
            except BaseException:
                self._release()
                raise
            self._note(heard)
        self.details["batch_max"] = str(self.batch_max)
        try:
            self._rehearse()
        except BaseException:
            self.close()
            raise

    @property
    def warnings(self) -> list[str]:
        """What TensorRT warned of while it loaded and ran the engine."""
        return list(self._warnings)

    def _load(self, content: bytes, name: str, dla_core: int | None, heard: Heard) -> None:
        trt, cuda = self._api.trt, self._device.cuda
        self._runtime = trt.Runtime(self._api.log)
        self._runtime.engine_host_code_allowed = False  # a plan is data here, never a program
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise BundleError(
                f"TensorRT {self._api.text} cannot load {name} ({heard.why()}); build it for "
                "this machine with: edgekd finalize BUNDLE"
            )
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        dtypes: dict[str, DType] = {}
        for item in names:
            kind = engine.get_tensor_dtype(item).name
            if kind not in _DTYPES:
                raise BundleError(
                    f"{name}: tensor '{item}' is {kind}, expected one of {', '.join(_DTYPES)}"
                )
            if engine.is_shape_inference_io(item):
                raise BundleError(
                    f"{name}: '{item}' holds a shape and not data, which edgekd does not pass"
                )
            dtypes[item] = _DTYPES[kind]
        shapes = {item: _shape(engine.get_tensor_shape(item)) for item in names}
        self.input_shapes = {item: shapes[item] for item in inputs}
        self.output_shapes = {item: shapes[item] for item in names if item not in inputs}
        self.input_dtypes = {item: dtypes[item] for item in inputs}
        self.output_dtypes = {item: dtypes[item] for item in self.output_shapes}
        #: smallest and largest shape of each input
        self._bounds = {item: self._span(item) for item in inputs}
        self._batched = [item for item in inputs if shapes[item][:1] == [None]]
        self.batch_max = min((self._bounds[item][1][0] for item in self._batched), default=1)
        self._compute = cuda.Stream(NON_BLOCKING)
        for _ in range(self.streams):
            self._free.put(self._open_slot(heard))

    def _span(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The smallest and the largest shape that an input may have."""
        engine, shape = self._engine, self.input_shapes[name]
        if None not in shape:
            fixed = tuple(side for side in shape if side is not None)
            return fixed, fixed
        low, _, high = engine.get_tensor_profile_shape(name, 0)
        return tuple(int(side) for side in low), tuple(int(side) for side in high)

    def _open_slot(self, heard: Heard) -> Slot:
        """A slot with memory for the largest shapes."""
        cuda = self._device.cuda
        slot = Slot(cuda, self._open_context(heard))
        self._slots.append(slot)  # whatever comes, it is freed with the others
        self._set_shapes(slot, {item: high for item, (_, high) in self._bounds.items()}, heard)
        for item, dtype in (*self.input_dtypes.items(), *self.output_dtypes.items()):
            size = max(slot.size(item, dtype), 1)
            slot.host[item] = cuda.pagelocked_empty(size, np.uint8)
            slot.gpu[item] = cuda.mem_alloc(size)
        self._set_addresses(slot, slot.bound.context, heard)
        return slot

    def _set_addresses(self, slot: Slot, context: Any, heard: Heard) -> None:
        for item, memory in slot.gpu.items():
            if not context.set_tensor_address(item, int(memory)):
                raise EdgeKDError(f"TensorRT took no address for '{item}': {heard.why()}")

    def _open_context(self, heard: Heard) -> Any:
        """A context in the memory of activations, which all share: they run one after another."""
        trt, engine = self._api.trt, self._engine
        if self._api.managed:
            size = int(engine.device_memory_size_v2)
            strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = engine.create_execution_context(strategy)
        else:
            size = int(engine.device_memory_size)
            context = engine.create_execution_context_without_device_memory()
        if context is None:
            raise EdgeKDError(f"TensorRT gave no context: {heard.why()}")
        if self._activations is None:
            self._activations = self._device.cuda.mem_alloc(max(size, 1))
        if self._api.managed:
            context.set_device_memory(int(self._activations), size)
        else:
            context.device_memory = int(self._activations)
        # NVIDIA: of several contexts the first alone has a profile by itself, before TensorRT 10
        if context.active_optimization_profile != 0 and not context.set_optimization_profile_async(
            0, self._compute.handle
        ):
            raise EdgeKDError(f"TensorRT gave a context no profile: {heard.why()}")
        return context

    def _choose(self, slot: Slot, shapes: dict[str, tuple[int, ...]], heard: Heard) -> None:
        """Bring the context of these shapes to the front: one that is ready, a new one as long as
        there are few, or the one that was used least lately."""
        contexts = slot.contexts
        for place, bound in enumerate(contexts):
            if bound.fits(shapes):
                contexts.insert(0, contexts.pop(place))
                return
        if contexts[0].shapes:  # otherwise it was refused its last shapes
            if len(contexts) < _CONTEXTS:
                with self._lock:  # nothing is being recorded meanwhile
                    context = self._open_context(heard)
                    self._set_addresses(slot, context, heard)
                contexts.insert(0, BoundContext(context))
            else:
                contexts.insert(0, contexts.pop())
        self._set_shapes(slot, shapes, heard)

    def _set_shapes(self, slot: Slot, shapes: dict[str, tuple[int, ...]], heard: Heard) -> None:
        """Set a context to the shapes of the inputs, and read those of the outputs."""
        bound = slot.bound
        bound.forget()
        bound.shapes = {}  # until all are set they are those of no call
        context = bound.context
        for name, shape in shapes.items():
            if None in self.input_shapes[name] and not context.set_input_shape(name, shape):
                raise EdgeKDError(
                    f"TensorRT refused the shape {shape} of '{name}', which was built for "
                    f"{self._bounds[name][0]} to {self._bounds[name][1]}: {heard.why()}"
                )
        outputs = {}
        for name in self.output_shapes:
            outputs[name] = tuple(int(side) for side in context.get_tensor_shape(name))
            if min(outputs[name], default=0) < 0:
                raise BundleError(
                    f"the shape of output '{name}' depends on data ({outputs[name]}), which edgekd "
                    "does not run with TensorRT"
                )
            room = slot.host.get(name)  # none yet for the largest shapes, which make it
            if room is not None and size_bytes(outputs[name], self.output_dtypes[name]) > len(room):
                raise EdgeKDError(
                    f"output '{name}' would be {outputs[name]}, larger than for the largest inputs"
                )
        bound.shapes = {**shapes, **outputs}

    def _rehearse(self) -> None:
        """Run each slot on zeros, in the smallest and the largest batch: what fails does so now, it
        is known whether graphs work, and no kernel is loaded during the first tile."""
        ends = [{name: span[end] for name, span in self._bounds.items()} for end in (0, 1)]
        for slot in self._slots:
            for shapes in ends if ends[0] != ends[1] else ends[1:]:
                inputs = {name: np.zeros(shapes[name], self.input_dtypes[name]) for name in shapes}
                with self._device.current():
                    for _ in range(2):  # the second call is recorded
                        self._run(slot, inputs)

    def inspect(self) -> str | None:
        """What TensorRT's inspector says of the engine's layers, JSON; None where it is silent."""
        trt = self._api.trt
        with self._lock, self._device.current():
            inspector = self._engine.create_engine_inspector()
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return str(text) if text else None

    def _infer(self, inputs: Mapping[str, Array], stream: bool) -> Arrays:
        batch = len(inputs[self._batched[0]]) if self._batched else 1
        starts = range(0, batch, self.batch_max)
        if len(starts) > 1 and any(shape[:1] != [None] for shape in self.output_shapes.values()):
            raise InputError(
                f"the engine takes batches of at most {self.batch_max}, received {batch}, and not "
                "all of its outputs have a batch, so that they could be put together"
            )
        parts: list[Arrays] = []
        slot = self._take()
        try:
            with self._device.current():
                for start in starts:
                    part = dict(inputs)
                    for name in self._batched:
                        part[name] = inputs[name][start : start + self.batch_max]
                    parts.append(self._run(slot, part))
        finally:
            self._free.put(slot)
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _take(self) -> Slot:
        """Wait for a free slot."""
        slot = self._free.get()
        if slot is None:
            self._free.put(None)  # for the next that waits
            raise closed()
        return slot

    def _run(self, slot: Slot, inputs: Mapping[str, Array]) -> Arrays:
        """One call in a slot that is this thread's."""
        with self._api.log.listen() as heard:
            finished = False
            try:
                self._choose(slot, {name: item.shape for name, item in inputs.items()}, heard)
                for name, array in inputs.items():
                    np.copyto(slot.view(name, self.input_dtypes[name]), array)
                with self._lock:  # until all is enqueued, never while it runs
                    self._enqueue(slot, heard)
                slot.back.synchronize()
                finished = True
            except (self._device.cuda.Error, Refusal) as err:
                raise EdgeKDError(f"the GPU failed: {_failure(err, heard)}") from err
            finally:
                if not finished:
                    self._drain(slot)
                self._note(heard)
        return {name: slot.view(name, dtype).copy() for name, dtype in self.output_dtypes.items()}

    def _enqueue(self, slot: Slot, heard: Heard) -> None:
        """Copies in, the model, copies out, each when what it needs is there."""
        cuda, compute, copies = self._device.cuda, self._compute, slot.copies
        for name, dtype in self.input_dtypes.items():
            size = slot.size(name, dtype)
            cuda.memcpy_htod_async(slot.gpu[name], slot.host[name][:size], copies)
        slot.arrived.record(copies)
        compute.wait_for_event(slot.arrived)
        self._execute(slot, heard)
        slot.done.record(compute)
        copies.wait_for_event(slot.done)
        for name, dtype in self.output_dtypes.items():
            size = slot.size(name, dtype)
            cuda.memcpy_dtoh_async(slot.host[name][:size], slot.gpu[name], copies)
        slot.back.record(copies)

    def _execute(self, slot: Slot, heard: Heard) -> None:
        """Enqueue the model itself."""
        handle, bound = self._compute.handle, slot.bound
        if bound.graph is None and bound.warm and self._driver is not None:
            bound.graph = self._record(bound, self._driver)
        if bound.graph is not None and self._driver is not None:
            bound.graph.launch(handle)
        elif bound.context.execute_async_v3(handle):
            bound.warm = True
        else:
            raise EdgeKDError(f"TensorRT failed: {heard.why()}")

    def _record(self, bound: BoundContext, driver: Driver) -> Graph | None:
        """The call as a graph; None, and no further attempt, where the engine cannot be recorded
        (loops, conditions, shapes that depend on data)."""
        handle = self._compute.handle

        def enqueue() -> None:
            if not bound.context.execute_async_v3(handle):
                raise Refusal("TensorRT cannot be recorded")

        with self._api.log.listen() as heard:
            try:
                return driver.capture(handle, enqueue)
            except Refusal as err:
                self._driver = None
                self.details["cuda_graph"] = f"off: {_failure(err, heard)}"
                return None

    def _drain(self, slot: Slot) -> None:
        """After a failure, wait for what is still under way in a slot, since it will be reused."""
        with contextlib.suppress(self._device.cuda.Error):  # told by the failure itself
            with self._lock:  # the stream may be recording for another slot
                slot.done.record(self._compute)
            slot.done.synchronize()
            slot.copies.synchronize()

    def _note(self, heard: Heard) -> None:
        with self._lock:
            for line in heard.warnings:
                if line not in self._warnings and len(self._warnings) < _WARNINGS:
                    self._warnings.append(line)

    def _close(self) -> None:
        for _ in self._slots:
            self._free.get()  # calls in other threads end first
        with self._lock, self._device.current():
            self._release()
        self._free.put(None)

    def _release(self) -> None:
        """Free what the GPU holds, in the current context: each needs the next while it goes."""
        while self._slots:
            slot = self._slots.pop()
            slot.forget()
            for allocation in slot.gpu.values():
                allocation.free()
            del slot
        if self._activations is not None:
            self._activations.free()
        self._compute = self._activations = self._engine = self._runtime = None


def _open_driver(wanted: bool, dla_core: int | None) -> tuple[Driver | None, str]:
    """The driver's graphs, or why there will be none."""
    if not wanted:
        return None, "not wanted"
    if dla_core is not None:
        return None, "layers run on the DLA"
    try:
        return Driver(), ""
    except Refusal as err:
        return None, str(err)


def _failure(err: BaseException, heard: Heard) -> str:
    """An error of CUDA and what TensorRT said to the call."""
    text, said = " ".join(str(err).split())[:200], heard.why(otherwise="")
    return f"{text} (TensorRT: {said})" if said else text


def _shape(sides: Any) -> list[int | None]:
    return [int(side) if side >= 0 else None for side in sides]
