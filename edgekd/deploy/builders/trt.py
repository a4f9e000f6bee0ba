"""TensorRT plans, built on the machine that will run them.

How a precision is asked for depends on the generation (:class:`~edgekd.runtime.backends.trt.Api`):
flags over an FP32 graph, with the nodes that must stay FP32 pinned one by one, or the types of the
graph alone. Needs neither torch nor onnx.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from edgekd.contracts.manifest import PortableModel
from edgekd.errors import EnvironmentLacksError, GateError
from edgekd.runtime.backends._trt_log import Heard, joined
from edgekd.runtime.backends.trt import Api

MODEL_NAME = "engine.plan"
_MIB = 1 << 20

Say = Callable[[str], None]


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Attributes:
        workspace_mib: bound of the builder's scratch memory, MiB.
        batch_max: largest batch; the engine is tuned for it and takes any from 1.
        dla_core: deep learning accelerator to use where layers fit it; None is the GPU alone.
        timing_cache: measured tactics of an earlier build with the same TensorRT and GPU.
        configure: called with the builder's configuration before the build; for tests that compile
            without a GPU.
    """

    workspace_mib: int
    batch_max: int = 1
    dla_core: int | None = None
    timing_cache: bytes = b""
    configure: Callable[[Any], None] | None = None


@dataclass(frozen=True)
class Plan:
    """A built engine.

    Attributes:
        content: the serialised engine.
        timing_cache: for the next build.
        seconds: it took.
        warnings: of TensorRT.
    """

    content: bytes
    timing_cache: bytes
    seconds: float
    warnings: list[str]


def build_plan(
    api: Api, onnx_file: bytes, model: PortableModel, options: BuildOptions, say: Say
) -> Plan:
    """Parse and build.

    Args:
        api: the installed TensorRT.
        onnx_file: the bytes of ``model.file``, already checked.
        model: which precision, and how TensorRT learns it.
        options: how to build.
        say: called with a line for every step.

    Raises:
        GateError: this TensorRT cannot parse or build it, or a node that must stay FP32 is not
            found; the message holds its reasons.
        EnvironmentLacksError: a DLA was asked for and there is none.
    """
    with api.log.listen() as heard:
        return _build(api, onnx_file, model, options, say, heard)


def _build(
    api: Api, onnx_file: bytes, model: PortableModel, options: BuildOptions, say: Say, heard: Heard
) -> Plan:
    trt = api.trt
    builder = trt.Builder(api.log)
    network = builder.create_network(_network_flags(api, model))
    parser = trt.OnnxParser(network, api.log)
    if not parser.parse(onnx_file):
        faults = [str(parser.get_error(i).desc()) for i in range(parser.num_errors)]
        raise GateError(
            f"TensorRT {api.text} cannot read {model.file}: "
            f"{joined([' '.join(fault.split()) for fault in faults]) or heard.why()}"
        )
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
    # On by default, it rounds what is called FP32 to 10 bits of mantissa: as coarse as FP16.
    config.clear_flag(trt.BuilderFlag.TF32)
    if api.weak and model.typing == "flags":
        _lower(api, config, network, model)
    _profile(builder, config, network, options.batch_max)
    if api.sharing_flag:  # the runtime has several contexts
        config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
    if options.dla_core is not None:
        _use_dla(api, builder, config, options.dla_core)
    cache = config.create_timing_cache(options.timing_cache)
    if cache is None or not config.set_timing_cache(cache, False):
        say("the timing cache is of another TensorRT or GPU and is not used")
        cache = config.create_timing_cache(b"")
        if cache is not None:
            config.set_timing_cache(cache, False)
    monitor = _monitor(api, say)
    if api.monitored:
        config.progress_monitor = monitor
    if options.configure is not None:
        options.configure(config)
    heard.errors.clear()  # what a refused timing cache left is no reason for what comes
    start = time.monotonic()
    content = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - start
    if monitor is not None and monitor.failed is not None:
        raise monitor.failed
    if content is None:
        raise GateError(f"TensorRT {api.text} cannot build {model.file}: {heard.why()}")
    kept = config.get_timing_cache()
    return Plan(
        content=bytes(content),
        timing_cache=b"" if kept is None else bytes(kept.serialize()),
        seconds=seconds,
        warnings=heard.warnings,
    )


def _network_flags(api: Api, model: PortableModel) -> int:
    trt = api.trt
    flags = 0
    if api.explicit_batch:
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)
    if api.strong_flag and model.typing == "graph":
        flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return flags


def _lower(api: Api, config: Any, network: Any, model: PortableModel) -> None:
    """Precision by flags, the nodes of ``keep_fp32`` pinned to FP32."""
    trt = api.trt
    if model.precision == "fp32":
        return
    if api.weak:
        config.set_flag(trt.BuilderFlag.FP16)
        if model.precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
        if model.keep_fp32:
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            _pin(api, network, set(model.keep_fp32), model)


def _pin(api: Api, network: Any, names: Collection[str], model: PortableModel) -> None:
    """Hold the layers of some ONNX nodes in FP32.

    onnx-tensorrt names a layer like its node, and where it makes several of one node it puts the
    node's name into their metadata.
    """
    trt = api.trt
    found = set()
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        name = _node_of(layer, names)
        if name is None:
            continue
        found.add(name)
        floats = [
            place
            for place in range(layer.num_outputs)
            if layer.get_output(place).dtype == trt.DataType.FLOAT
        ]
        if floats and api.weak:
            layer.precision = trt.DataType.FLOAT
            for place in floats:
                layer.set_output_type(place, trt.DataType.FLOAT)
    missing = sorted(set(names) - found)
    if missing:
        raise GateError(
            f"{missing[0]} of {model.file} must stay in FP32, and TensorRT {api.text} shows no "
            f"layer of that name ({len(missing)} of {len(names)} missing), so FP16 may overflow "
            "unseen; build from the typed graph: edgekd finalize BUNDLE --typing graph"
        )


def _node_of(layer: Any, names: Collection[str]) -> str | None:
    if layer.name in names:
        return str(layer.name)
    for part in str(layer.metadata).split("]"):
        name = part.partition("[ONNX Layer: ")[2].strip()
        if name in names:
            return name
    return None


def _profile(builder: Any, config: Any, network: Any, batch_max: int) -> None:
    """The batch from 1 to ``batch_max``, tuned for the largest."""
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        item = network.get_input(index)
        shape = tuple(item.shape)
        low = tuple(1 if side < 0 else side for side in shape)
        high = tuple(batch_max if side < 0 else side for side in shape)
        profile.set_shape(item.name, low, high, high)
    config.add_optimization_profile(profile)


def _use_dla(api: Api, builder: Any, config: Any, core: int) -> None:
    trt, count = api.trt, int(builder.num_DLA_cores)
    if core >= count:
        raise EnvironmentLacksError(
            f"DLA core {core} was asked for and TensorRT {api.text} shows {count} here (an Orin "
            "Nano has none, and TensorRT 10.8 to 11.4.0 have no DLA); leave --dla out"
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)


def _monitor(api: Api, say: Say) -> Any:
    """Tells the builder's phases, and how far a long one is; nothing before TensorRT 10."""
    if not api.monitored:
        say("building; this TensorRT tells no progress, minutes are usual")
        return None
    trt = api.trt

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.last = time.monotonic()
            #: what a callback raised, e.g. KeyboardInterrupt: the binding would swallow it
            self.failed: BaseException | None = None

        def tell(self, text: str) -> None:
            try:
                say(text)
            except BaseException as err:  # noqa: BLE001 - raised again after the build
                self.failed = err

        def phase_start(self, phase_name: str, parent_phase: Any, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            if parent_phase is None:
                self.tell(f"{phase_name} ({num_steps} steps)")

        def phase_finish(self, phase_name: str) -> None:
            self.steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            try:
                now = time.monotonic()
                if now - self.last >= 5.0:
                    self.last = now
                    self.tell(f"{phase_name}: step {step + 1} of {self.steps.get(phase_name, 0)}")
            except BaseException as err:  # noqa: BLE001 - Ctrl-C comes to any Python
                self.failed = err
            return self.failed is None  # False cancels the build

    return Monitor()
