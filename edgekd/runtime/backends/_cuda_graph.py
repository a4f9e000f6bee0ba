"""CUDA graphs, by functions of the driver itself.

pycuda has none: its releases up to 2026.1 lack them, the pull request (inducer/pycuda#343) is open.
Names and signatures are those of ``cuda.h`` (CUDA 11.4 and later export all of them); a driver
without one is told at once, and engines then run without graphs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

#: what other threads do meanwhile is no part of a capture (``CU_STREAM_CAPTURE_MODE_THREAD_LOCAL``)
_THREAD_LOCAL = 1
_HANDLE, _OUT = ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)
_SIGNATURES: dict[str, list[Any]] = {
    "cuStreamBeginCapture_v2": [_HANDLE, ctypes.c_int],
    "cuStreamEndCapture": [_HANDLE, _OUT],
    "cuGraphInstantiateWithFlags": [_OUT, _HANDLE, ctypes.c_ulonglong],
    "cuGraphLaunch": [_HANDLE, _HANDLE],
    "cuGraphExecDestroy": [_HANDLE],
    "cuGraphDestroy": [_HANDLE],
    "cuGetErrorString": [ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)],
}


class Refusal(Exception):
    """The driver's; the text names the function and its reason. The backend answers it: it runs
    without graphs, or says what failed."""


def _library() -> Any:
    return ctypes.CDLL("libcuda.so.1")


class Driver:
    """The driver's functions for graphs.

    Raises:
        Refusal: no driver, or one that lacks them.
    """

    def __init__(self) -> None:
        try:
            library = _library()
            self._calls = {name: getattr(library, name) for name in _SIGNATURES}
        except (OSError, AttributeError) as err:
            raise Refusal(f"the CUDA driver has no graphs ({err})") from err
        for name, call in self._calls.items():
            call.argtypes, call.restype = _SIGNATURES[name], ctypes.c_int

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the driver.

        Raises:
            Refusal: it does not answer success.
        """
        code = self._calls[name](*arguments)
        if code:
            text = ctypes.c_char_p()
            self._calls["cuGetErrorString"](code, ctypes.byref(text))
            said = text.value.decode() if text.value else "unknown"
            raise Refusal(f"{name} failed: {said} (CUDA error {code})")

    def capture(self, stream: int, work: Callable[[], None]) -> Graph:
        """Record what ``work`` enqueues on a stream, without running it.

        Args:
            stream: handle; not the default stream. Nobody else may use it meanwhile.
            work: what it raises ends the recording and is raised again.

        Raises:
            Refusal: something in ``work`` cannot be recorded. The stream is as before.
        """
        self.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        recorded, made = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            try:
                work()
            except BaseException:
                self._calls["cuStreamEndCapture"](stream, ctypes.byref(recorded))
                raise
            self.call("cuStreamEndCapture", stream, ctypes.byref(recorded))
            self.call("cuGraphInstantiateWithFlags", ctypes.byref(made), recorded, 0)
        finally:
            if recorded.value:
                self._calls["cuGraphDestroy"](recorded)
        return Graph(self, made)


class Graph:
    """Recorded work that one call starts; holds the addresses and shapes of its recording."""

    def __init__(self, driver: Driver, handle: ctypes.c_void_p) -> None:
        self._driver, self._handle = driver, handle

    def launch(self, stream: int) -> None:
        """Enqueue it on a stream.

        Raises:
            Refusal: the driver refused.
        """
        self._driver.call("cuGraphLaunch", self._handle, stream)

    def close(self) -> None:
        """Free it; the work that was enqueued must be done."""
        self._driver.call("cuGraphExecDestroy", self._handle)
