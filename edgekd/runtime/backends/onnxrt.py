"""ONNX Runtime backend: named providers, verified after loading."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.optional import require
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError
from edgekd.runtime.backends.base import Arrays, Backend


class OnnxRuntimeBackend(Backend):
    """Runs an ONNX file.

    Args:
        model: the ``.onnx`` file.
        threads: threads inside an operator; 0 takes ONNX Runtime's choice (the physical cores).
        provider: execution provider; another one than asked for is an error, not a fallback.
        optimize: False runs the graph as it is written (to judge Q/DQ accuracy).

    Raises:
        BundleError: ONNX Runtime cannot load the file.
        EnvironmentLacksError: onnxruntime or the provider is not installed.
    """

    def __init__(
        self,
        model: Path,
        threads: int = 0,
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
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(str(model), options, providers=[provider])
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            raise BundleError(f"ONNX Runtime cannot load {model}: {_short(err)}") from err
        active = self._session.get_providers()
        if active[0] != provider:
            raise EnvironmentLacksError(f"asked for {provider}, ONNX Runtime took {active[0]}")
        for item in (*self._session.get_inputs(), *self._session.get_outputs()):
            if item.type != "tensor(float)":
                raise BundleError(
                    f"{model}: tensor '{item.name}' is {item.type}, expected tensor(float)"
                )
        self.input_shapes = {item.name: _shape(item.shape) for item in self._session.get_inputs()}
        self.output_shapes = {item.name: _shape(item.shape) for item in self._session.get_outputs()}
        cores = os.cpu_count() or 1
        self.leaves_cores = provider != "CPUExecutionProvider" or 0 < threads < cores
        self._outputs = list(self.output_shapes)
        self.details = {
            "backend": "onnxrt",
            "onnxruntime": str(ort.__version__),
            "provider": provider,
            "threads": str(threads) if threads else "all cores (onnxruntime's choice)",
        }

    def _infer(self, inputs: Mapping[str, npt.NDArray[np.float32]]) -> Arrays:
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            raise EdgeKDError(f"ONNX Runtime failed: {_short(err)}") from err
        return dict(zip(self._outputs, results, strict=True))

    def _close(self) -> None:
        del self._session


def _shape(shape: list[object]) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in shape]


def _short(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]
