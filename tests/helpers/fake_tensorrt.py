"""A TensorRT and a pycuda that need no GPU: "plans" are ONNX files, run by ONNX Runtime.

Every class has exactly the names that the real one has in that version (``tensorrt_api.json``),
so a name that is gone raises AttributeError as it would on the board. What is computed says nothing
about TensorRT; the order of calls, the memory copies and the refusals are what is tested.
"""

from __future__ import annotations

import enum
import importlib.machinery
import json
import types
from typing import Any

import numpy as np
import onnx
import pytest

from tests.helpers.tensorrt_api import VERSIONS, names

_MAGIC = b"fake plan\n"


class _Strict:
    """Answers only to names that the class has in this version."""

    _kind = ""
    _version = ""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            kind = type(self)._kind
            if name not in names(kind, type(self)._version):
                raise AttributeError(f"{kind} of TensorRT {type(self)._version} has no {name}")
        return object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name not in names(type(self)._kind, type(self)._version):
            raise AttributeError(f"{type(self)._kind} of {type(self)._version} has no {name}")
        object.__setattr__(self, name, value)


class Record(dict[str, Any]):
    """What the last build was asked for, for tests to look at."""


def fake_tensorrt(version: str, record: Record | None = None) -> types.ModuleType:
    """The module ``tensorrt`` of a version, a column of the table.

    ``record`` receives what a build was asked for: ``flags``, ``network_flags``, ``pinned``,
    ``workspace``, ``cache``, ``dla``, ``profile``, ``monitor``. It may hold ``refuse`` (a
    function of the ONNX bytes and the flags giving a reason to fail the build), ``perturb`` (a
    function of logits) and ``dla_cores``.
    """
    record = record if record is not None else Record()
    module = types.ModuleType("tensorrt")
    module.__version__ = VERSIONS[version]  # type: ignore[attr-defined]

    def strict(kind: str) -> type[_Strict]:
        return type(kind, (_Strict,), {"_kind": kind, "_version": version})

    def enumeration(kind: str) -> Any:
        return enum.IntEnum(kind, sorted(names(kind, version)), start=0)  # type: ignore[misc]

    for kind in (
        "BuilderFlag", "NetworkDefinitionCreationFlag", "MemoryPoolType", "ProfilingVerbosity",
        "DataType", "TensorIOMode", "DeviceType",
    ):  # fmt: skip
        setattr(module, kind, enumeration(kind))
    trt: Any = module

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    trt.ILogger = ILogger
    trt.LayerInformationFormat = enum.IntEnum("LayerInformationFormat", ["ONELINE", "JSON"])
    if version != "8.6":
        trt.IProgressMonitor = type("IProgressMonitor", (), {"__init__": lambda self: None})

    class Tensor(strict("ITensor")):  # type: ignore[misc]
        def __init__(self, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
            self.name, self.dtype, self.shape = name, dtype, shape

    class Layer(strict("ILayer")):  # type: ignore[misc]
        def __init__(self, node: onnx.NodeProto, outputs: list[Any], whole: bool) -> None:
            self.name = node.name if whole else f"{node.name}_part"
            self.metadata = f"[ONNX Layer: {node.name}]"
            self.num_outputs = len(outputs)
            self._outputs, self._node = outputs, node

        def get_output(self, index: int) -> Any:
            return self._outputs[index]

        def set_output_type(self, index: int, kind: Any) -> None:
            record.setdefault("typed", []).append((self._node.name, index, kind))

        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "precision":
                record.setdefault("pinned", []).append(self._node.name)

    class Network(strict("INetworkDefinition")):  # type: ignore[misc]
        def __init__(self) -> None:
            self._layers: list[Any] = []
            self._inputs: list[Any] = []
            self._content = b""

        @property
        def num_layers(self) -> int:
            return len(self._layers)

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        def get_layer(self, index: int) -> Any:
            return self._layers[index]

        def get_input(self, index: int) -> Any:
            return self._inputs[index]

    class Fault(strict("ParserError")):  # type: ignore[misc]
        def __init__(self, text: str) -> None:
            self._text = text

        def desc(self) -> str:
            return self._text

    class Parser(strict("OnnxParser")):  # type: ignore[misc]
        def __init__(self, network: Any, log: Any) -> None:
            self._network, self._faults = network, []

        @property
        def num_errors(self) -> int:
            return len(self._faults)

        def get_error(self, index: int) -> Any:
            return self._faults[index]

        def parse(self, content: bytes) -> bool:
            try:
                proto = onnx.load_model_from_string(content)
                inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
            except Exception as err:  # noqa: BLE001 - whatever onnx raises
                self._faults.append(Fault(f"not ONNX: {err}"))
                return False
            kinds = {
                item.name: item.type.tensor_type.elem_type
                for item in (*inferred.value_info, *inferred.output)
            }
            known = {1: trt.DataType.FLOAT, 10: trt.DataType.HALF, 3: trt.DataType.INT8}
            for number, node in enumerate(proto.graph.node):
                outputs = [
                    Tensor(name, known.get(kinds.get(name, 0), trt.DataType.INT32), ())
                    for name in node.output
                ]
                self._network._layers.append(Layer(node, outputs, number % 2 == 0))
            for item in proto.graph.input:
                dims = item.type.tensor_type.shape.dim
                shape = tuple(side.dim_value or -1 for side in dims)
                self._network._inputs.append(Tensor(item.name, trt.DataType.FLOAT, shape))
            self._network._content = content
            return True

    class Profile(strict("IOptimizationProfile")):  # type: ignore[misc]
        def __init__(self) -> None:
            self._shapes: dict[str, Any] = {}

        def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
            self._shapes[name] = (low, best, high)

    class Cache(strict("ITimingCache")):  # type: ignore[misc]
        def __init__(self, content: bytes) -> None:
            self._content = content

        def serialize(self) -> bytes:
            return self._content

    class Config(strict("IBuilderConfig")):  # type: ignore[misc]
        def __init__(self) -> None:
            record.update(flags={"TF32"}, pinned=[], typed=[], profile={}, monitor=None)
            self._cache: Any = None

        def set_flag(self, flag: Any) -> None:
            record["flags"].add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            record["flags"].discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            record["workspace"] = (pool.name, size)

        def add_optimization_profile(self, profile: Any) -> None:
            record["profile"] = profile._shapes

        def create_timing_cache(self, content: bytes) -> Any:
            return Cache(content)

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            mine = f"tactics of {version}".encode()
            if cache._content and cache._content != mine and not ignore_mismatch:
                return False
            record["cache"] = cache._content
            self._cache = Cache(mine)
            return True

        def get_timing_cache(self) -> Any:
            return self._cache

    class Builder(strict("Builder")):  # type: ignore[misc]
        def __init__(self, log: Any) -> None:
            self._log = log

        def create_network(self, flags: int) -> Any:
            record["network_flags"] = flags
            if version == "8.6" and not flags & 1 << int(
                trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
            ):
                raise AssertionError("TensorRT 8 needs explicit batches for ONNX")
            return Network()

        @property
        def num_DLA_cores(self) -> int:
            return int(record.get("dla_cores", 0))

        def create_builder_config(self) -> Any:
            return Config()

        def create_optimization_profile(self) -> Any:
            return Profile()

        def build_serialized_network(self, network: Any, config: Any) -> bytes | None:
            monitor = config.__dict__.get("progress_monitor")
            record["monitor"] = monitor
            record["dla"] = config.__dict__.get("DLA_core")
            if monitor is not None:
                monitor.phase_start("Building Engine", None, 2)
                if not monitor.step_complete("Building Engine", 0):
                    self._log.log(ILogger.ERROR, "the build was cancelled")
                    return None
                monitor.phase_finish("Building Engine")
            self._log.log(ILogger.WARNING, "a warning of the builder")
            refuse = record.get("refuse")
            reason = refuse(network._content, set(record["flags"])) if refuse else None
            if reason:
                self._log.log(ILogger.ERROR, reason)
                return None
            head = {"version": version, "profile": record["profile"]}
            return _MAGIC + json.dumps(head).encode() + b"\n" + network._content

    class Inspector(strict("EngineInspector")):  # type: ignore[misc]
        def get_engine_information(self, form: Any) -> str:
            assert form == trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": [{"Name": "_gemm_mha_v2_0"}, {"Name": "conv"}]})

    class Context(strict("IExecutionContext")):  # type: ignore[misc]
        def __init__(self, engine: Any) -> None:
            self._engine = engine
            self._addresses: dict[str, int] = {}
            self._shapes: dict[str, tuple[int, ...]] = {}

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._addresses[name] = address
            return True

        def set_input_shape(self, name: str, shape: Any) -> bool:
            low, _, high = self._engine._profile[name]
            fits = all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
            self._shapes[name] = tuple(shape)
            return fits

        def execute_async_v3(self, handle: int) -> bool:
            inputs = {}
            for name, shape in self._shapes.items():
                size = int(np.prod(shape))
                inputs[name] = memory(self._addresses[name])[:size].reshape(shape).copy()
            for name, value in zip(
                self._engine._outputs, self._engine._session.run(None, inputs), strict=True
            ):
                perturb = record.get("perturb")
                value = perturb(value) if perturb else value
                memory(self._addresses[name])[: value.size] = value.ravel()
            return True

    class Engine(strict("ICudaEngine")):  # type: ignore[misc]
        def __init__(self, content: bytes, profile: dict[str, Any]) -> None:
            from edgekd.deploy.quantize.emulate import open_graph

            self._content, self._profile = content, profile
            proto = onnx.load_model_from_string(content)
            self._session = open_graph(proto, 1)
            self._shapes = {
                item.name: tuple(s.dim_value or -1 for s in item.type.tensor_type.shape.dim)
                for item in (*proto.graph.input, *proto.graph.output)
            }
            self._inputs = [item.name for item in proto.graph.input]
            self._outputs = [item.name for item in proto.graph.output]

        @property
        def num_io_tensors(self) -> int:
            return len(self._shapes)

        def get_tensor_name(self, index: int) -> str:
            return list(self._shapes)[index]

        def get_tensor_mode(self, name: str) -> Any:
            modes = trt.TensorIOMode
            return modes.INPUT if name in self._inputs else modes.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType.FLOAT

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shapes[name]

        def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
            assert profile == 0
            return self._profile[name]

        def create_execution_context(self) -> Any:
            return Context(self)

        def create_engine_inspector(self) -> Any:
            return Inspector()

    class Runtime(strict("Runtime")):  # type: ignore[misc]
        def __init__(self, log: Any) -> None:
            self._log = log

        def deserialize_cuda_engine(self, content: bytes) -> Any:
            assert self.__dict__.get("engine_host_code_allowed") is False
            record["deserialized"] = record.get("deserialized", 0) + 1
            record["loaded_on"] = self.__dict__.get("DLA_core")
            if record.get("unloadable") and record["unloadable"](content):
                self._log.log(ILogger.ERROR, "out of memory")
                return None
            if not content.startswith(_MAGIC):
                self._log.log(ILogger.ERROR, "magicTag mismatch")
                return None
            head, _, body = content[len(_MAGIC) :].partition(b"\n")
            value = json.loads(head)
            if value["version"] != version:
                self._log.log(ILogger.ERROR, "the plan is of another TensorRT")
                return None
            return Engine(body, value["profile"])

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, Parser, Runtime
    return module


_MEMORY: dict[int, np.ndarray] = {}


def memory(address: int) -> Any:
    """The float32 numbers of a device allocation."""
    return _MEMORY[address]


def fake_pycuda(
    name: str = "Orin", capability: tuple[int, int] = (8, 7), multiprocessors: int = 8
) -> types.ModuleType:
    """The module ``pycuda.driver`` with one device; counts pushes and pops of its context."""
    cuda: Any = types.ModuleType("pycuda.driver")
    cuda.depth = 0

    class Error(Exception):
        pass

    class Context:
        def push(self) -> None:
            cuda.depth += 1

        @staticmethod
        def pop() -> None:
            cuda.depth -= 1

        def detach(self) -> None:
            pass

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

    class Allocation:
        def __init__(self, size: int) -> None:
            assert cuda.depth > 0, "memory without a current context"
            self.address = max(_MEMORY, default=4096) + 4096
            _MEMORY[self.address] = np.full(size // 4, np.nan, np.float32)

        def __int__(self) -> int:
            return self.address

        def free(self) -> None:
            del _MEMORY[self.address]

    class Stream:
        handle = 7

        def synchronize(self) -> None:
            cuda.synchronized = True

    def to_device(target: Allocation, source: np.ndarray, stream: Stream) -> None:
        memory(int(target))[: source.size] = source.ravel()

    def to_host(target: np.ndarray, source: Allocation, stream: Stream) -> None:
        target.ravel()[:] = memory(int(source))[: target.size]

    cuda.Error, cuda.Context, cuda.Device, cuda.Stream = Error, Context, Device, Stream
    cuda.device_attribute = types.SimpleNamespace(MULTIPROCESSOR_COUNT=16)
    cuda.init = lambda: None
    cuda.mem_alloc = Allocation
    cuda.pagelocked_empty = lambda shape, kind: np.empty(shape, kind)
    cuda.memcpy_htod_async, cuda.memcpy_dtoh_async = to_device, to_host
    return cuda  # type: ignore[no-any-return]


class FakeBoard:
    """A machine with a TensorRT and a GPU, put in the way of ``import``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.record = Record()
        self.cuda: Any = None

    def boot(self, version: str = "10.3", *, arch: str = "aarch64", **gpu: Any) -> None:
        """Come up with a TensorRT version and a GPU; a second time with another."""
        import platform
        import sys

        self.cuda = fake_pycuda(**gpu)
        package = types.ModuleType("pycuda")
        trt = fake_tensorrt(version, self.record)
        trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        package.driver = self.cuda  # type: ignore[attr-defined]
        put = self._monkeypatch.setitem
        put(sys.modules, "tensorrt", trt)
        put(sys.modules, "pycuda", package)
        put(sys.modules, "pycuda.driver", self.cuda)
        self._monkeypatch.setattr(platform, "machine", lambda: arch)
