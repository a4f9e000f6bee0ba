"""A TensorRT and a pycuda that need no GPU: "plans" are ONNX files, run by ONNX Runtime.

Every class has exactly the names that the real one has in that version (``tensorrt_api.json``),
so a name that is gone raises AttributeError as it would on the board. What is computed says nothing
about TensorRT; the order of calls, the memory copies and the refusals are what is tested.
"""

from __future__ import annotations

import enum
import importlib.machinery
import json
import threading
import types
import weakref
from typing import Any

import numpy as np
import onnx
import pytest

from tests.helpers.fake_cuda import Gpu, Op, fake_pycuda
from tests.helpers.tensorrt_api import VERSIONS, names

_MAGIC = b"fake plan\n"
#: ONNX's element types -> TensorRT's, and those -> NumPy's
_TYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
_NUMPY = {"FLOAT": "float32", "UINT8": "uint8", "INT8": "int8", "INT32": "int32",
          "INT64": "int64", "BOOL": "bool", "HALF": "float16"}  # fmt: skip


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
    function of logits), ``dla_cores``, ``fail`` (called with context and log when a call is
    enqueued; True fails it), ``unrecordable`` (as a graph: "openly", "silently"), ``shape_io``,
    ``data_dependent`` (names of tensors) and ``dtypes`` (name -> TensorRT's type).
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
        "DataType", "TensorIOMode", "DeviceType", "PreviewFeature",
    ):  # fmt: skip
        setattr(module, kind, enumeration(kind))
    trt: Any = module

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

        def __init__(self) -> None:
            pass

    trt.ILogger = ILogger
    if version != "8.6":
        trt.ExecutionContextAllocationStrategy = enum.IntEnum(
            "ExecutionContextAllocationStrategy",
            ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"],
            start=0,
        )
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
                kind = trt.DataType.FLOAT  # of no interest to a builder
                self._network._inputs.append(Tensor(item.name, kind, shape))
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
            record.update(flags={"TF32"}, pinned=[], typed=[], profile={}, monitor=None, preview={})
            self._cache: Any = None

        def set_flag(self, flag: Any) -> None:
            record["flags"].add(flag.name)

        def clear_flag(self, flag: Any) -> None:
            record["flags"].discard(flag.name)

        def set_memory_pool_limit(self, pool: Any, size: int) -> None:
            record["workspace"] = (pool.name, size)

        def add_optimization_profile(self, profile: Any) -> None:
            record["profile"] = profile._shapes

        def set_preview_feature(self, feature: Any, enable: bool) -> None:
            record["preview"][feature.name] = enable

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
            shared = version != "8.6" or record["preview"].get("PROFILE_SHARING_0806", False)
            head = {"version": version, "profile": record["profile"], "shared": shared}
            return _MAGIC + json.dumps(head).encode() + b"\n" + network._content

    class Inspector(strict("EngineInspector")):  # type: ignore[misc]
        def get_engine_information(self, form: Any) -> str:
            assert form == trt.LayerInformationFormat.JSON
            return json.dumps({"Layers": [{"Name": "_gemm_mha_v2_0"}, {"Name": "conv"}]})

    class Context(strict("IExecutionContext")):  # type: ignore[misc]
        def __init__(self, engine: Any, log: Any) -> None:
            self._engine, self._log = engine, log
            self._addresses: dict[str, int] = {}
            self._shapes = {n: s for n, s in engine._shapes.items() if n in engine._inputs}
            self._memory = 0
            #: NVIDIA: of several contexts the first alone has profile 0 by itself before 10
            alone = version != "8.6" or not engine._contexts
            self._profiled = alone or not any(-1 in engine._shapes[n] for n in engine._inputs)
            engine._contexts.add(self)
            #: counts what a recorded graph must not survive
            self._changes = 0
            self._warm = False

        def set_tensor_address(self, name: str, address: int) -> bool:
            self._alone()
            self._addresses[name] = address
            self._changes += 1
            return name in self._engine._shapes

        def set_input_shape(self, name: str, shape: Any) -> bool:
            self._alone()
            if not self._profiled:
                self._log.log(ILogger.ERROR, "no profile was set")
                return False
            low, _, high = self._engine._profile[name]
            if len(shape) != len(low) or not all(
                a <= b <= c for a, b, c in zip(low, shape, high, strict=True)
            ):
                self._log.log(ILogger.ERROR, f"{name}: {tuple(shape)} is outside of the profile")
                return False
            if self._shapes[name] != tuple(shape):
                self._shapes[name] = tuple(shape)
                self._changes += 1
                self._warm = False
            return True

        @property
        def active_optimization_profile(self) -> int:
            return 0 if self._profiled else -1

        def set_optimization_profile_async(self, index: int, handle: int) -> bool:
            assert index == 0 and handle in module._gpu.streams  # type: ignore[attr-defined]
            if not self._engine._shared:
                self._log.log(
                    ILogger.ERROR,
                    "Profile 0 has been chosen by another IExecutionContext. Use another "
                    "profileIndex or destroy the IExecutionContext that use this profile.",
                )
                return False
            self._profiled = True
            return True

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            if name in self._shapes:
                return self._shapes[name]
            if name in record.get("data_dependent", ()):
                return (-1, *self._engine._shapes[name][1:])
            return tuple(self._engine._sizes(self._shapes)[name])

        @property
        def device_memory(self) -> int:
            raise AttributeError("unreadable attribute")

        @device_memory.setter
        def device_memory(self, address: int) -> None:
            self._set_memory(address)

        def set_device_memory(self, memory: int, size: int) -> None:
            assert size == self._engine._activation_bytes
            self._set_memory(memory)

        def _set_memory(self, address: int) -> None:
            self._memory = address
            self._changes += 1

        def _alone(self) -> None:
            """NVIDIA: the APIs of a context are not called from several threads at once."""
            for stream in module._gpu.streams.values():  # type: ignore[attr-defined]
                if stream.recording is not None and stream.context is self:
                    assert stream.recorder == threading.get_ident(), "the context is being recorded"

        def execute_async_v3(self, handle: int) -> bool:
            gpu = module._gpu  # type: ignore[attr-defined]
            stream = gpu.streams[handle]
            fail = record.get("fail")
            if fail is not None and fail(self, self._log):
                return False
            with gpu.lock:
                self._alone()
                recording = stream.recording is not None
                if recording:
                    stream.context = self
                if recording and record.get("unrecordable"):
                    stream.broken = record["unrecordable"] == "silently"
                    self._log.log(ILogger.ERROR, "a loop cannot be recorded")
                    return bool(stream.broken)
                if recording and not self._warm:
                    self._log.log(ILogger.ERROR, "shapes changed and nothing ran since")
                    return False
                assert self._memory in gpu.memory, "the context has no memory for activations"
                assert set(self._addresses) == set(self._engine._shapes)
                self._warm = True
                before = self._changes
                shapes, addresses = dict(self._shapes), dict(self._addresses)

                def begin() -> None:
                    if gpu.fault:
                        gpu.error, gpu.fault = gpu.fault, ""
                    inputs = {
                        name: self._engine._read(gpu.memory[addresses[name]], name, shape)
                        for name, shape in shapes.items()
                    }
                    gpu.activations[self._memory] = self._engine._compute(inputs)

                def end() -> None:
                    # a graph that outlived a change of its context does what nobody knows
                    spoilt = recording and self._changes != before
                    results = gpu.activations[self._memory]
                    for name, value in results.items():
                        raw = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
                        gpu.memory[addresses[name]][: len(raw)] = 0x7F if spoilt else raw

                gpu.enqueue(stream, Op("run", begin))
                gpu.enqueue(stream, Op("run end", end))
            return True

    class Engine(strict("ICudaEngine")):  # type: ignore[misc]
        def __init__(self, content: bytes, head: dict[str, Any], log: Any) -> None:
            from edgekd.deploy.quantize.emulate import open_graph

            self._content, self._profile, self._log = content, head["profile"], log
            self._shared, self._contexts = head["shared"], weakref.WeakSet[Any]()
            proto = onnx.load_model_from_string(content)
            self._session = open_graph(proto, 1)
            both = (*proto.graph.input, *proto.graph.output)
            self._shapes = {
                item.name: tuple(s.dim_value or -1 for s in item.type.tensor_type.shape.dim)
                for item in both
            }
            self._onnx_types = {item.name: item.type.tensor_type.elem_type for item in both}
            self._inputs = [item.name for item in proto.graph.input]
            self._outputs = [item.name for item in proto.graph.output]
            self._activation_bytes = 4096
            self._known: dict[Any, dict[str, Any]] = {}

        def _type(self, name: str) -> str:
            kind = _TYPES[self._onnx_types[name]]
            return "INT32" if kind == "INT64" and version == "8.6" else kind  # its parser narrows

        def _read(self, raw: Any, name: str, shape: tuple[int, ...]) -> Any:
            dtype = np.dtype(_NUMPY[self._type(name)])
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            wanted = np.dtype(_NUMPY[_TYPES[self._onnx_types[name]]])
            return raw[:size].view(dtype).reshape(shape).astype(wanted)

        def _compute(self, inputs: dict[str, Any]) -> dict[str, Any]:
            values = self._session.run(None, inputs)
            perturb = record.get("perturb")
            return {
                name: np.asarray(
                    perturb(value) if perturb else value, np.dtype(_NUMPY[self._type(name)])
                )
                for name, value in zip(self._outputs, values, strict=True)
            }

        def _sizes(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
            """Shapes of the outputs for those of the inputs."""
            key = tuple(sorted(shapes.items()))
            if key not in self._known:
                inputs = {
                    name: np.zeros(shape, np.dtype(_NUMPY[_TYPES[self._onnx_types[name]]]))
                    for name, shape in shapes.items()
                }
                values = self._session.run(None, inputs)
                self._known[key] = {
                    name: value.shape for name, value in zip(self._outputs, values, strict=True)
                }
            return self._known[key]

        @property
        def num_io_tensors(self) -> int:
            return len(self._shapes)

        def get_tensor_name(self, index: int) -> str:
            return list(self._shapes)[index]

        def get_tensor_mode(self, name: str) -> Any:
            modes = trt.TensorIOMode
            return modes.INPUT if name in self._inputs else modes.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[record.get("dtypes", {}).get(name, self._type(name))]

        def is_shape_inference_io(self, name: str) -> bool:
            return name in record.get("shape_io", ())

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return self._shapes[name]

        def get_tensor_profile_shape(self, name: str, profile: int) -> Any:
            assert profile == 0
            return self._profile[name]

        @property
        def device_memory_size(self) -> int:
            return self._activation_bytes

        @property
        def device_memory_size_v2(self) -> int:
            return self._activation_bytes

        def create_execution_context(self, strategy: Any) -> Any:
            assert strategy == trt.ExecutionContextAllocationStrategy.USER_MANAGED
            return Context(self, self._log)

        def create_execution_context_without_device_memory(self) -> Any:
            return Context(self, self._log)

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
            self._log.log(ILogger.WARNING, "a warning of the runtime")
            return Engine(body, value, self._log)

    trt.Builder, trt.OnnxParser, trt.Runtime = Builder, Parser, Runtime
    return module


class FakeBoard:
    """A machine with a TensorRT and a GPU, put in the way of ``import``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.record = Record()
        self.cuda: Any = None

    @property
    def gpu(self) -> Gpu:
        """What is behind pycuda."""
        return self.cuda._gpu  # type: ignore[no-any-return]

    def boot(
        self, version: str = "10.3", *, arch: str = "aarch64", graphs: bool = True, **gpu: Any
    ) -> None:
        """Come up with a TensorRT version and a GPU; a second time with another.

        ``graphs``: whether there is a driver that knows CUDA graphs. ``gpu``: see fake_pycuda.
        """
        import platform
        import sys

        from edgekd.runtime.backends import _cuda_graph

        self.cuda = fake_pycuda(**gpu)
        package = types.ModuleType("pycuda")
        trt = fake_tensorrt(version, self.record)
        trt._gpu = self.gpu  # type: ignore[attr-defined]

        def library() -> Any:
            if not graphs:
                raise OSError("libcuda.so.1: cannot open shared object file")
            return self.gpu.library

        self._monkeypatch.setattr(_cuda_graph, "_library", library)
        trt.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
        package.driver = self.cuda  # type: ignore[attr-defined]
        put = self._monkeypatch.setitem
        put(sys.modules, "tensorrt", trt)
        put(sys.modules, "pycuda", package)
        put(sys.modules, "pycuda.driver", self.cuda)
        self._monkeypatch.setattr(platform, "machine", lambda: arch)


def trt_plan(model: onnx.ModelProto, batch_max: int = 2) -> bytes:
    """Build a model on the board that is booted."""
    from edgekd.contracts.manifest import PortableModel
    from edgekd.deploy.builders.trt import BuildOptions, build_plan
    from edgekd.runtime.backends.trt import open_api

    api = open_api()
    portable = PortableModel(
        file="m.onnx", precision="fp32", typing="flags" if api.weak else "graph",
        tensorrt_from="8.6", tensorrt_below="12.0", golden_atol=1, golden_agreement_min=0,
    )  # fmt: skip
    settings = BuildOptions(workspace_mib=64, batch_max=batch_max)
    return build_plan(api, model.SerializeToString(), portable, settings, lambda text: None).content


def trt_backend(model: onnx.ModelProto, batch_max: int = 2, **options: Any) -> Any:
    """Build a model on the board that is booted, and load it."""
    from edgekd.runtime.backends.trt import TensorRtBackend

    return TensorRtBackend(trt_plan(model, batch_max), **options)
