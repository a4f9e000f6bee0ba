"""ONNX Runtime backend: named providers, verified after loading."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.contracts.optional import require
from edgekd.errors import BundleError, EdgeKDError, EnvironmentLacksError, InputError
from edgekd.runtime.backends.base import DTYPES, Array, Arrays, Backend, closed
from edgekd.runtime.bundle import SealedFile

CPU = "CPUExecutionProvider"
#: ONNX Runtime's names of element types -> ours
_DTYPES = {
    f"tensor({name})": DTYPES[ours]
    for name, ours in (
        ("float", "float32"), ("float16", "float16"), ("int64", "int64"), ("int32", "int32"),
        ("int8", "int8"), ("uint8", "uint8"), ("bool", "bool"),
    )
}  # fmt: skip
_UNSIGNED = "session.x64quantprecision"
#: What a Q/DQ graph says is what is computed. Without the first, x86 without VNNI adds pairs of
#: products of unsigned and signed bytes in 16 bits, which saturate; with it both are unsigned,
#: which do not. Without the second, a product whose weights alone are quantised has its input
#: rounded to 8 bits, too. See :func:`exact_entries`.
EXACT = {_UNSIGNED: "1", "session.qdq_matmulnbits_accuracy_level": "1"}
#: Rewriting that rounds a convolution's bias to steps of input times weight, whether or not the
#: convolution becomes one of integers. A depthwise one has few and large weights, so the steps are
#: large: a third of all that INT8 cost a student (EfficientNet-Lite0's branch), on every processor.
ROUNDS_BIASES = ["WeightBiasQuantization"]
#: options of providers that change results or say where it runs
_TOLD = ("device_id", "use_tf32", "trt_fp16_enable", "trt_int8_enable", "trt_bf16_enable")


def has_int8_dot_product() -> bool:
    """Whether this machine's CPU sums products of 8-bit numbers into 32 bits (VNNI, asimddp)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_vnni", "avx_vnni", "asimddp"})


def exact_entries() -> dict[str, str]:
    """:data:`EXACT`, less what this CPU has no need of.

    ONNX Runtime 1.32 makes weights of more than 7 bits unsigned on every x86. With VNNI nothing
    saturates, the numbers are the same, and convolutions took 2.4 times as long.
    """
    kept = dict(EXACT)
    if has_int8_dot_product():
        del kept[_UNSIGNED]
    return kept


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
        provider: execution provider, or several, most wanted first. Others than asked for are an
            error, not a fallback; so is a node that they cannot run, unless CPUExecutionProvider is
            named as the last.
        optimize: False runs the graph as it is written (to judge Q/DQ accuracy).
        spin: threads that wait for work keep their cores busy for a while, which makes calls that
            follow each other a tenth faster. Where calls come now and then it costs the most: two
            threads at 30 calls a second took 47 ms of a CPU each and 31 ms of time, 19 and 21
            without.

    Raises:
        BundleError: ONNX Runtime cannot load the file, it is not the sealed one, or the providers
            cannot run all of it.
        EnvironmentLacksError: onnxruntime or a provider is not installed, or does not start.
        InputError: no provider, or the CPU's before another.
    """

    def __init__(
        self,
        model: Path | SealedFile,
        threads: int = 0,
        streams: int = 0,
        provider: str | Sequence[str] = CPU,
        optimize: bool = True,
        spin: bool = True,
    ) -> None:
        super().__init__()
        ort = require("onnxruntime", "onnxrt", "run ONNX models")
        asked = [provider] if isinstance(provider, str) else list(provider)
        have = ort.get_available_providers()
        if not asked or CPU in asked[:-1]:
            raise InputError(
                f"expected providers, {CPU} only as the last of them since it runs everything; "
                f"received {', '.join(asked) or 'none'} (ONNX Runtime has {', '.join(have)} here)"
            )
        missing = [name for name in asked if name not in have]
        if missing:
            raise EnvironmentLacksError(
                f"ONNX Runtime here has no {missing[0]} (it has {', '.join(have)})"
            )
        self._ort, self._asked, self._optimize, self._spin = ort, asked, optimize, spin
        self._source = model
        self._path = model.path if isinstance(model, SealedFile) else model
        self._session = self._open_session(threads)
        self._stream_session: Any = None
        self._lock = threading.Lock()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        for item in (*inputs, *outputs):
            if item.type not in _DTYPES:
                raise BundleError(
                    f"{self._path}: tensor '{item.name}' is {item.type}, expected one of "
                    f"{', '.join(_DTYPES)}"
                )
        self.input_shapes = {item.name: _shape(item.shape) for item in inputs}
        self.output_shapes = {item.name: _shape(item.shape) for item in outputs}
        self.input_dtypes = {item.name: _DTYPES[item.type] for item in inputs}
        self.output_dtypes = {item.name: _DTYPES[item.type] for item in outputs}
        if asked == [CPU]:
            cores = threads or _cores()
            self.streams = min(streams, cores) if streams else cores
        self._outputs = list(self.output_shapes)
        self.details = {
            "backend": "onnxrt",
            "onnxruntime": str(ort.__version__),
            "provider": ", ".join(asked),
            "threads": str(threads) if threads else "all cores (onnxruntime's choice)",
        }
        options = self._session.get_provider_options()
        for name in asked:
            told = [f"{key}={options[name][key]}" for key in _TOLD if key in options.get(name, {})]
            if told:
                self.details[name] = " ".join(told)

    def _open_session(self, threads: int) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        for entry, value in exact_entries().items():
            options.add_session_config_entry(entry, value)
        if not self._spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not self._optimize:
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if CPU not in self._asked:  # or it would run there what the provider cannot, and not say so
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        source = self._source
        model = source.read() if isinstance(source, SealedFile) else str(source)
        try:
            # by itself it would try again on the CPU when a provider fails
            session = self._ort.InferenceSession(
                model,
                options,
                providers=self._asked,
                enable_fallback=0,
                disabled_optimizers=ROUNDS_BIASES,
            )
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            said = _short(err)
            if "fallback to CPU EP" in said:
                said = (
                    f"{', '.join(self._asked)} cannot run all of it or does not start here; where "
                    f"the rest may run on the CPU, add {CPU} as the last provider ({said})"
                )
            raise BundleError(f"ONNX Runtime cannot load {self._path}: {said}") from err
        # Another provider after a failure is what it would keep the bytes for, as long as it lives.
        session.disable_fallback()
        if isinstance(model, bytes):
            session._model_bytes = None
        active = [name for name in session.get_providers() if name != CPU]  # there in any case
        if active != [name for name in self._asked if name != CPU]:
            raise EnvironmentLacksError(
                f"asked for {', '.join(self._asked)}, ONNX Runtime took "
                f"{', '.join(active) or CPU}: the other does not start here (its CUDA or cuDNN may "
                "be missing; ONNX Runtime's log says which)"
            )
        return session

    def _infer(self, inputs: Mapping[str, Array], stream: bool) -> Arrays:
        session = self._session
        if stream and self.streams > 1:
            with self._lock:
                if self._stream_session is None and self._session is not None:  # many never need it
                    self._stream_session = self._open_session(1)
            session = self._stream_session
        if session is None:
            raise closed()
        try:
            results = session.run(self._outputs, dict(inputs))
        except Exception as err:  # ONNX Runtime's own classes derive from Exception only
            raise EdgeKDError(f"ONNX Runtime failed: {_short(err)}") from err
        return dict(zip(self._outputs, results, strict=True))

    def _close(self) -> None:
        with self._lock:  # calls in other threads hold the session that they began with
            self._session = self._stream_session = None


def _cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _shape(shape: list[object]) -> list[int | None]:
    return [side if isinstance(side, int) else None for side in shape]


def _short(err: BaseException) -> str:
    return " ".join(str(err).split())[:300]
