"""TensorRT backend, and the one place where the version of TensorRT is asked for.

Only names that every TensorRT from 8.6 to 11.4 has are used, except where :class:`Api` says which
generation is here; ``tests/runtime/test_trt_api.py`` holds every name against the table of each
version. Memory and streams come from pycuda.
"""

from __future__ import annotations

import contextlib
import platform
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.board import Absent, read_board, read_l4t
from edgekd.contracts.manifest import Machine
from edgekd.contracts.optional import require
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError
from edgekd.runtime.backends.base import Arrays, Backend
from edgekd.runtime.bundle import SealedFile

#: the TensorRT and the CUDA device of this process
_SHARED: dict[str, Any] = {}
#: what the code was written for; the bindings of these were looked at.
OLDEST, NEWEST = (8, 6), (12, 0)


class Api:
    """The installed TensorRT, and what its generation needs.

    Attributes:
        trt: the module.
        log: what TensorRT says; one for the process, since it takes no second.
        version, text: as numbers, and as it calls itself.
        explicit_batch: networks must be asked for explicit batches (8.x).
        weak: precisions come from flags of the builder (below 10.12; gone in 11).
        strong_flag: a network is strongly typed because a flag says so (10.x); in 11 all are.
        monitored: tells progress, and sizes by ``device_memory_size_v2`` (from 10).
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.text = str(trt.__version__)
        self.version = numbers(self.text)
        self.explicit_batch = self.version < (10, 0)
        self.weak = self.version < (10, 12)
        self.strong_flag = (10, 0) <= self.version < (11, 0)
        self.monitored = self.version >= (10, 0)
        self.log = _make_logger(trt)


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


def _make_logger(trt: Any) -> Any:
    """A logger that keeps what TensorRT says: ``errors`` and ``warnings``, lists of lines."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(" ".join(msg.split()))
            elif severity == trt.ILogger.WARNING:
                self.warnings.append(" ".join(msg.split()))

    return Log()


def why(log: Any) -> str:
    """The first errors of a log, in one line."""
    found = list(dict.fromkeys(log.errors))
    return "; ".join(found[:3])[:600] or "it gave no reason"


class TensorRtBackend(Backend):
    """Runs a TensorRT plan.

    A call copies its inputs to the GPU, runs, copies back and waits for all of it: when
    :meth:`infer` returns, the time it took is the tile's. More tiles than the plan's largest batch
    are run one batch after another.

    Args:
        plan: the engine; of a sealed file the bytes that were hashed are deserialised.
        machine: what it was built for; refused where this machine differs.
        dla_core: deep learning accelerator that it was built for.

    Raises:
        BundleError: built for another TensorRT or GPU, or not readable.
        EnvironmentLacksError: no TensorRT, pycuda or CUDA device.
        EdgeKDError: the GPU has too little memory for it.
    """

    def __init__(
        self,
        plan: SealedFile | bytes,
        machine: Machine | None = None,
        dla_core: int | None = None,
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
        self._host: dict[str, npt.NDArray[np.float32]] = {}
        self._gpu: dict[str, Any] = {}
        self._stream: Any = None
        self._context: Any = None
        self._engine: Any = None
        self._runtime: Any = None
        with self._device.current():
            try:
                self._load(content, name, dla_core)
            except self._device.cuda.Error as err:
                self._free()
                raise EdgeKDError(f"{name} cannot be loaded: {_short(err)}") from err
            except BaseException:
                self._free()
                raise
        self.streams = 1
        self.details = {
            "backend": "trt",
            "tensorrt": self._api.text,
            "gpu": here.gpu,
            "compute_capability": here.compute_capability,
            "batch_max": str(self.batch_max),
        }

    def _load(self, content: bytes, name: str, dla_core: int | None) -> None:
        trt, cuda = self._api.trt, self._device.cuda
        self._log = self._api.log
        self._log.clear()
        self._runtime = trt.Runtime(self._log)
        self._runtime.engine_host_code_allowed = False  # a plan is data here, never a program
        if dla_core is not None:
            self._runtime.DLA_core = dla_core
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise BundleError(
                f"TensorRT {self._api.text} cannot load {name} ({why(self._log)}); build it for "
                "this machine with: edgekd finalize BUNDLE"
            )
        engine = self._engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EdgeKDError(f"TensorRT gave no context for {name}: {why(self._log)}")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        for item in names:
            if engine.get_tensor_dtype(item) != trt.DataType.FLOAT:
                raise BundleError(
                    f"{name}: tensor '{item}' is {engine.get_tensor_dtype(item)}, expected FLOAT"
                )
        shapes = {item: _shape(engine.get_tensor_shape(item)) for item in names}
        self.input_shapes = {item: shapes[item] for item in inputs}
        self.output_shapes = {item: shapes[item] for item in names if item not in inputs}
        batches = [int(engine.get_tensor_profile_shape(item, 0)[2][0]) for item in inputs]
        self.batch_max = min(batches)
        self._stream = cuda.Stream()
        for item in names:
            sides = [self.batch_max if side is None else side for side in shapes[item]]
            self._host[item] = cuda.pagelocked_empty(tuple(sides), np.float32)
            self._gpu[item] = cuda.mem_alloc(self._host[item].nbytes)
            if not self._context.set_tensor_address(item, int(self._gpu[item])):
                raise EdgeKDError(f"TensorRT took no address for '{item}': {why(self._log)}")

    def inspect(self) -> str | None:
        """What TensorRT's inspector says of the engine's layers, JSON; None where it is silent."""
        trt = self._api.trt
        with self._lock, self._device.current():
            inspector = self._engine.create_engine_inspector()
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return str(text) if text else None

    def _infer(self, inputs: Mapping[str, npt.NDArray[np.float32]], stream: bool) -> Arrays:
        batch = len(next(iter(inputs.values())))
        parts: list[Arrays] = []
        with self._lock, self._device.current():
            for start in range(0, batch, self.batch_max):
                end = min(start + self.batch_max, batch)
                part = {name: array[start:end] for name, array in inputs.items()}
                try:
                    parts.append(self._run(part))
                except self._device.cuda.Error as err:
                    raise EdgeKDError(f"the GPU failed: {_short(err)}") from err
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, inputs: dict[str, npt.NDArray[np.float32]]) -> Arrays:
        cuda, context, stream = self._device.cuda, self._context, self._stream
        self._log.clear()
        for name, array in inputs.items():
            host = self._host[name][: len(array)]
            np.copyto(host, array)
            if not context.set_input_shape(name, array.shape):
                raise EdgeKDError(f"TensorRT refused the shape {array.shape}: {why(self._log)}")
            cuda.memcpy_htod_async(self._gpu[name], host, stream)
        if not context.execute_async_v3(stream.handle):
            raise EdgeKDError(f"TensorRT failed: {why(self._log)}")
        batch = len(next(iter(inputs.values())))
        outputs = {name: self._host[name][:batch] for name in self.output_shapes}
        for name, host in outputs.items():
            cuda.memcpy_dtoh_async(host, self._gpu[name], stream)
        stream.synchronize()
        return {name: host.copy() for name, host in outputs.items()}

    def _close(self) -> None:
        with self._lock, self._device.current():
            self._free()

    def _free(self) -> None:
        """Free what the GPU holds, in the current context: each needs the next while it goes."""
        for allocation in self._gpu.values():
            allocation.free()
        self._gpu, self._host = {}, {}
        self._stream = self._context = self._engine = self._runtime = None


def _short(err: BaseException) -> str:
    return " ".join(str(err).split())[:200]


def _shape(sides: Any) -> list[int | None]:
    return [int(side) if side >= 0 else None for side in sides]
