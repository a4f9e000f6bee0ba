"""A CUDA device without a GPU: pycuda's names over streams that run later, in an order of choice.

Nothing that is enqueued is done by the call that enqueues it. It is done when somebody waits for
it, or before, as the :class:`Gpu`'s policy says: so a copy without an event before it, a buffer
that is used again too early or a result that is read too early give wrong numbers here, as on a
board. The names are those of pycuda (``tests/data/pycuda_api.json``) and of ``cuda.h``.
"""

from __future__ import annotations

import ctypes
import enum
import itertools
import random
import threading
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

Work = Callable[[], None]
#: how the device gets on: ``lazy`` does what is waited for and nothing else, ``eager`` all that can
#: be done at once, ``random`` anything in between, ``copies`` copies before anything else and
#: ``compute`` copies last.
POLICIES = ("lazy", "eager", "random", "copies", "compute")
_SUCCESS, _INVALID, _UNSUPPORTED, _INVALIDATED = 0, 1, 900, 901
_TEXTS = {
    _INVALID: b"invalid argument",
    _UNSUPPORTED: b"operation not permitted when stream is capturing",
    _INVALIDATED: b"operation failed due to a previous error during capture",
}


class CudaError(Exception):
    """``pycuda.driver.Error``."""


class CudaLogicError(CudaError):
    """``pycuda.driver.LogicError``."""


class CudaLaunchError(CudaError):
    """``pycuda.driver.LaunchError``."""


class Op:
    """Something that a stream does. ``waits``: an event and the record of it that must be done."""

    def __init__(self, kind: str, work: Work, waits: tuple[Event, int] | None = None) -> None:
        self.kind, self.work, self.waits = kind, work, waits

    @property
    def ready(self) -> bool:
        return self.waits is None or self.waits[0].done >= self.waits[1]


class Gpu:
    """The device: memory, streams, and who goes on when.

    Attributes:
        memory: address -> bytes.
        activations: address of a context's memory -> what is being computed in it.
        trace: kinds of what was done, in order, with the stream's handle.
        together: calls that must have been enqueued before any wait goes on, once; a thread that
            waits with a lock held lets it run out.
        fault: text of the error with which the next computation ends.
    """

    def __init__(self, policy: str = "lazy", seed: int = 0) -> None:
        assert policy in POLICIES
        self.policy, self.random = policy, random.Random(seed)
        self.lock = threading.Condition(threading.RLock())
        self.local = threading.local()
        self.memory: dict[int, Any] = {}
        self.locked: dict[int, int] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs: dict[int, list[Op]] = {}
        self.activations: dict[int, Any] = {}
        self.trace: list[tuple[str, int]] = []
        self.depth = 0
        self.together = 0
        self.waiting = 0
        self.fault = ""
        self.error = ""
        self.handles = itertools.count(0x7F00_0000_1000, 0x1000)  # as wide as the real ones
        self.library = Library(self)

    def require_context(self) -> None:
        assert getattr(self.local, "depth", 0) > 0, "no context is current in this thread"

    def enqueue(self, stream: Stream, op: Op) -> None:
        with self.lock:
            self.require_context()
            if stream.recording is not None:
                stream.recording.append(op)
                return
            stream.queue.append(op)
            if self.policy == "eager":
                while self.step():
                    pass
            elif self.policy == "random":
                for _ in range(self.random.randrange(4)):
                    self.step()

    def step(self) -> bool:
        """Do one thing that can be done; False where there is none."""
        able = [s for s in self.streams.values() if s.queue and s.queue[0].ready]
        if not able:
            return False
        if self.policy in ("copies", "compute"):
            last = ("run", "run end") if self.policy == "copies" else ("in", "out")
            able.sort(key=lambda stream: stream.queue[0].kind in last)
            self.do(able[0])
        else:
            self.do(self.random.choice(able))
        return True

    def do(self, stream: Stream) -> None:
        op = stream.queue.popleft()
        assert op.ready
        self.trace.append((op.kind, stream.handle))
        op.work()

    def advance(self, stream: Stream, done: Callable[[], bool]) -> None:
        """Do what a stream has in front of a point, and what that waits for: the least possible."""
        while not done():
            op = stream.queue[0]
            if not op.ready:
                assert op.waits is not None
                event, number = op.waits
                assert event.stream is not None
                self.advance(event.stream, lambda e=event, n=number: e.done >= n)  # type: ignore[misc]
            self.do(stream)

    def wait(self, stream: Stream | None, done: Callable[[], bool]) -> None:
        with self.lock:
            self.require_context()
            if stream is not None and stream.recording is not None:
                stream.broken = True
                raise CudaLogicError("cuStreamSynchronize failed: operation not permitted when "
                                     "stream is capturing")  # fmt: skip
            if self.together:
                self.waiting += 1
                self.lock.notify_all()
                met = self.lock.wait_for(lambda: self.waiting >= self.together, timeout=10)
                assert met, "the other call was never enqueued: who waits holds what it needs"
                self.together = 0
                self.lock.notify_all()
            if self.policy == "lazy":
                if stream is not None:
                    self.advance(stream, done)
            else:
                while not done():
                    assert self.step(), "nothing can go on: streams wait for each other"
            if self.error:
                text, self.error = self.error, ""
                raise CudaLaunchError(f"cuEventSynchronize failed: {text}")

    def host(self, array: Any) -> Any:
        """The bytes of page-locked memory; other memory would be copied before the call returns."""
        assert array.flags.c_contiguous
        start = array.__array_interface__["data"][0]
        assert any(
            first <= start and start + array.nbytes <= first + size
            for first, size in self.locked.items()
        ), "the memory is not page-locked"
        return array.reshape(-1).view(np.uint8)


class Stream:
    """``pycuda.driver.Stream``."""

    def __init__(self, flags: int = 0) -> None:
        assert flags in (0, 1)
        self._gpu = GPU.current
        self._gpu.require_context()
        self.handle = next(self._gpu.handles)
        self.queue: deque[Op] = deque()
        self.recording: list[Op] | None = None
        self.recorder = 0
        self.context: Any = None  # that is recorded
        self.broken = False
        self._gpu.streams[self.handle] = self

    def synchronize(self) -> None:
        last = self.queue[-1] if self.queue else None
        self._gpu.wait(self, lambda: last is None or last not in self.queue)

    def wait_for_event(self, event: Event) -> None:
        if self.recording is not None:
            self.broken = True
            raise CudaLogicError("cuStreamWaitEvent failed: dependency created on uncaptured work "
                                 "in another stream")  # fmt: skip
        self._gpu.enqueue(self, Op("wait", lambda: None, (event, event.asked)))


class Event:
    """``pycuda.driver.Event``."""

    def __init__(self, flags: int = 0) -> None:
        self._gpu = GPU.current
        self._gpu.require_context()
        assert flags & 1, "a thread that waits for this event spins"
        self.asked = self.done = 0
        self.stream: Stream | None = None

    def record(self, stream: Stream) -> Event:
        assert stream.recording is None, "the event would be part of the recording"
        with self._gpu.lock:
            self.asked += 1
            self.stream, number = stream, self.asked

            def work() -> None:
                self.done = max(self.done, number)

            self._gpu.enqueue(stream, Op("record", work))
        return self

    def synchronize(self) -> Event:
        number = self.asked
        self._gpu.wait(self.stream, lambda: self.done >= number)
        return self

    def query(self) -> bool:
        return self.done >= self.asked


class DeviceAllocation:
    """``pycuda.driver.DeviceAllocation``; its bytes are 0xff, NaN as floats."""

    def __init__(self, size: int) -> None:
        assert size > 0
        self._gpu = GPU.current
        self._gpu.require_context()
        self._address = next(self._gpu.handles)
        self._gpu.memory[self._address] = np.full(size, 0xFF, np.uint8)

    def __int__(self) -> int:
        return self._address

    def free(self) -> None:
        self._gpu.require_context()
        del self._gpu.memory[self._address]


class GPU:
    """The device of the pycuda that was made last."""

    current: Gpu


class event_flags(enum.IntFlag):
    DEFAULT, BLOCKING_SYNC, DISABLE_TIMING, INTERPROCESS = 0, 1, 2, 4


def _copy(kind: str, device: DeviceAllocation, array: Any, stream: Stream) -> None:
    gpu = GPU.current
    host, memory = gpu.host(array), gpu.memory[int(device)]
    assert len(host) <= len(memory), "the copy is larger than the allocation"

    def work() -> None:
        if kind == "in":
            memory[: len(host)] = host
        else:
            host[:] = memory[: len(host)]

    gpu.enqueue(stream, Op(kind, work))


def memcpy_htod_async(dest: DeviceAllocation, src: Any, stream: Stream) -> None:
    _copy("in", dest, src, stream)


def memcpy_dtoh_async(dest: Any, src: DeviceAllocation, stream: Stream) -> None:
    _copy("out", src, dest, stream)


def pagelocked_empty(shape: Any, dtype: Any, order: str = "C", mem_flags: int = 0) -> Any:
    gpu = GPU.current
    gpu.require_context()
    array = np.empty(shape, dtype, order)  # type: ignore[call-overload]
    array.reshape(-1).view(np.uint8)[:] = 0xFF
    gpu.locked[array.__array_interface__["data"][0]] = array.nbytes
    return array


class Library:
    """What of ``libcuda.so.1`` has to do with graphs, as real C functions."""

    def __init__(self, gpu: Gpu) -> None:
        handle, out = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
        text = ctypes.POINTER(ctypes.c_char_p)

        def begin(stream: int, mode: int) -> int:
            with gpu.lock:
                item = gpu.streams[stream]
                if item.recording is not None or mode != 1:
                    return _INVALID
                item.recording, item.broken, item.context = [], False, None
                item.recorder = threading.get_ident()
                return _SUCCESS

        def end(stream: int, graph: Any) -> int:
            with gpu.lock:
                item = gpu.streams[stream]
                if item.recording is None:
                    return _INVALID
                ops, item.recording = item.recording, None
                if item.broken or item.recorder != threading.get_ident():
                    return _INVALIDATED
                graph[0] = next(gpu.handles)
                gpu.graphs[graph[0]] = ops
                return _SUCCESS

        def instantiate(made: Any, graph: int, flags: int) -> int:
            if flags:
                return _INVALID
            made[0] = next(gpu.handles)
            gpu.graphs[made[0]] = list(gpu.graphs[graph])
            return _SUCCESS

        def launch(graph: int, stream: int) -> int:
            with gpu.lock:
                for op in gpu.graphs[graph]:
                    gpu.enqueue(gpu.streams[stream], op)
            return _SUCCESS

        def destroy(graph: int) -> int:
            return _SUCCESS if gpu.graphs.pop(graph, None) is not None else _INVALID

        def error_string(code: int, target: Any) -> int:
            target[0] = _TEXTS[code]
            return _SUCCESS

        def c(work: Any, *arguments: Any) -> Any:
            return ctypes.CFUNCTYPE(ctypes.c_int, *arguments)(work)

        self.cuStreamBeginCapture_v2 = c(begin, handle, ctypes.c_int)
        self.cuStreamEndCapture = c(end, handle, out)
        self.cuGraphInstantiateWithFlags = c(instantiate, out, handle, ctypes.c_ulonglong)
        self.cuGraphLaunch = c(launch, handle, handle)
        self.cuGraphExecDestroy = c(destroy, handle)
        self.cuGraphDestroy = c(destroy, handle)
        self.cuGetErrorString = c(error_string, ctypes.c_int, text)


def fake_pycuda(
    name: str = "Orin",
    capability: tuple[int, int] = (8, 7),
    multiprocessors: int = 8,
    policy: str = "lazy",
    seed: int = 0,
) -> types.ModuleType:
    """The module ``pycuda.driver`` with one device; ``cuda._gpu`` is the device behind it."""
    cuda: Any = types.ModuleType("pycuda.driver")
    gpu = cuda._gpu = GPU.current = Gpu(policy, seed)

    class Context:
        def push(self) -> None:
            with gpu.lock:
                gpu.depth += 1
            gpu.local.depth = getattr(gpu.local, "depth", 0) + 1

        @staticmethod
        def pop() -> None:
            gpu.require_context()
            with gpu.lock:
                gpu.depth -= 1
            gpu.local.depth -= 1

    class Device:
        def __init__(self, number: int) -> None:
            assert number == 0

        def retain_primary_context(self) -> Context:
            return Context()

        def compute_capability(self) -> tuple[int, int]:
            return capability

        def name(self) -> str:
            return name

        def get_attribute(self, attribute: Any) -> int:
            return multiprocessors

        def total_memory(self) -> int:
            return 8 << 30

    cuda.Error, cuda.LogicError, cuda.LaunchError = CudaError, CudaLogicError, CudaLaunchError
    cuda.Context, cuda.Device, cuda.Stream, cuda.Event = Context, Device, Stream, Event
    cuda.device_attribute = types.SimpleNamespace(MULTIPROCESSOR_COUNT=16)
    cuda.event_flags = event_flags
    cuda.init = lambda: None
    cuda.mem_alloc, cuda.pagelocked_empty = DeviceAllocation, pagelocked_empty
    cuda.memcpy_htod_async, cuda.memcpy_dtoh_async = memcpy_htod_async, memcpy_dtoh_async
    return cuda  # type: ignore[no-any-return]
