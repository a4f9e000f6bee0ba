"""ONNX Runtime backend: named providers, verified after loading."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.optional import require
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError
from edgekd.runtime.backends.base import Arrays, Backend
from edgekd.runtime.bundle import SealedFile


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX file.

    Args:
        model: the ``.onnx`` file. Of a sealed one the bytes are read and hashed, and ONNX Runtime
            gets those bytes, never the file; they are freed when it has loaded them, and read and
            hashed again should a second copy be needed for concurrent calls.
        threads: cores that the model may use; 0 takes all that this process has. A single call
            spreads each operator over them; of concurrent calls each has one to itself, which
            wastes none at the operators' joints.
        streams: concurrent calls at most, each with the memory of one; 0 takes one per core.
        provider: execution provider; another one than asked for is an error, not a fallback.
        optimize: False runs the graph as it is written (to judge Q/DQ accuracy).

    Raises:
        BundleError: ONNX Runtime cannot load the file, or it is not the sealed one.
        EnvironmentLacksError: onnxruntime or the provider is not installed.
    """

    def __init__(
        self,
        model: Path | SealedFile,
        threads: int = 0,
        streams: int = 0,
        provider: str = "CPUExecutionProvider",
        optimize: bool = True,
    ) -> None:
        super().__init__()
        ort = require("onnxruntime", "onnxrt", "run ONNX models")
        if provider not in ort.get_available_providers():
            raise EnvironmentLacksError(
                f"ONNX Runtime here has no {provider} (it has "
                f"{', '.join(ort.get_available_providers())})"
            )
        self._ort, self._provider, self._optimize = ort, provider, optimize
        self._source = model
        self._path = model.path if isinstance(model, SealedFile) else model
        self._session = self._open_session(threads)
        self._stream_session: Any = None
        self._lock = threading.Lock()
        for item in (*self._session.get_inputs(), *self._session.get_outputs()):
            if item.type != "tensor(float)":
                raise BundleError(
                    f"{self._path}: tensor '{item.name}' is {item.type}, expected tensor(float)"
                )
        self.input_shapes = {item.name: _shape(item.shape) for item in self._session.get_inputs()}
        self.output_shapes = {item.name: _shape(item.shape) for item in self._session.get_outputs()}
        if provider == "CPUExecutionProvider":
            cores = threads or _cores()
            self.streams = min(streams, cores) if streams else cores
        self._outputs = list(self.output_shapes)
        self.details = {
            "backend": "onnxrt",
            "onnxruntime": str(ort.__version__),
            "provider": provider,
            "threads": str(threads) if threads else "all cores (onnxruntime's choice)",
        }

    def _open_session(self, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not self._optimize:
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        source = self._source
        model = source.read() if isinstance(source, SealedFile) else str(source)
        try:
            session = self._ort.InferenceSession(model, options, providers=[self._provider])
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            raise BundleError(f"ONNX Runtime cannot load {self._path}: {_short(err)}") from err
        # Another provider after a failure is what it would keep the bytes for, as long as it lives.
        session.disable_fallback()
        if isinstance(model, bytes):
            session._model_bytes = None
        active = session.get_providers()
        if active[0] != self._provider:
            raise EnvironmentLacksError(
                f"asked for {self._provider}, ONNX Runtime took {active[0]}"
            )
        return session

    def _infer(self, inputs: Mapping[str, npt.NDArray[np.float32]], stream: bool) -> Arrays:
        session = self._session
        if stream and self.streams > 1:
            with self._lock:
                if self._stream_session is None:  # most sessions never need it
                    self._stream_session = self._open_session(1)
            session = self._stream_session
        try:
            results = session.run(self._outputs, dict(inputs))
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            raise EdgeKDError(f"ONNX Runtime failed: {_short(err)}") from err
        return dict(zip(self._outputs, results, strict=True))

    def _close(self) -> None:
        del self._session, self._stream_session


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shape(shape: list[object]) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in shape]


def _short(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]
