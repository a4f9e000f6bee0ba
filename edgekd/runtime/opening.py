"""What runs a bundle on this machine; the same for maps and for places."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from edgekd.contracts.optional import available
from edgekd.errors import BundleError, InputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.bundle import Bundle

#: of every tensor that goes in or comes out
DTYPE = "float32"


def open_backend(
    opened: Bundle,
    any_device: bool,
    streams: int,
    provider: str | Sequence[str] | None,
    threads: int | None = None,
    spin: bool = True,
) -> tuple[Backend, str]:
    """What runs a bundle here, and the file of the bundle that it runs.

    Every file's hash is compared; those that the backend reads are hashed as it reads them.

    Args:
        opened: after its signature was checked, where one is required.
        any_device: load a bundle of another architecture.
        streams: model calls at once, at most; 0 leaves it to the backend.
        provider: of ONNX Runtime; None is the CPU's.
        threads: of ONNX Runtime; None is what the target says.
        spin: see :class:`edgekd.runtime.backends.onnxrt.OnnxRuntimeBackend`.

    Raises:
        BundleError: it does not fit this machine, or a file is not the sealed one.
        InputError: a provider for a bundle that runs with TensorRT.
        EnvironmentLacksError: the backend's library is not installed.
    """
    path, manifest = opened.path, opened.manifest
    here, arch = platform.machine(), manifest.target.arch
    if manifest.portable and manifest.engine is None and not any_device:
        raise BundleError(
            f"{path} is portable: it has no engine yet, because engines are built where they run; "
            f"on the {manifest.target.name} type: edgekd finalize {path} (or add --any-device, "
            "any_device=True, to try it here with ONNX Runtime, slowly)"
        )
    if arch != here and not any_device:
        raise BundleError(
            f"{path} was built for {manifest.target.name} ({arch}) and this is {here}; build it "
            "for this machine, or add --any-device (any_device=True) to try it"
        )
    engine = manifest.engine
    if engine is not None and engine.machine.arch != here and not any_device:
        raise BundleError(
            f"{path} was finished on {engine.machine.arch} and this is {here}; build its engine "
            f"here with: edgekd finalize {path}"
        )
    mine = engine is not None and engine.machine.arch == here
    if engine is not None and mine and (available("tensorrt") or not any_device):
        if provider is not None:
            raise InputError(
                f"{path} runs its engine with TensorRT, and a provider is one of ONNX Runtime's; "
                "leave the provider out"
            )
        opened.check_files(besides={manifest.model})  # the backend reads that one, once
        from edgekd.runtime.backends.trt import TensorRtBackend

        plan = opened.file(manifest.model)
        backend = TensorRtBackend(plan, engine.machine, engine.dla_core, streams)
        return backend, manifest.model
    from edgekd.runtime.backends.onnxrt import CPU, OnnxRuntimeBackend

    model = manifest.model
    if manifest.portable:  # another machine than the engine's: the typed graph as it is written
        done = engine.precision if engine else manifest.portable[0].precision
        graphs = [item for item in manifest.portable if item.typing == "graph"]
        typed: dict[str, str] = {item.precision: item.file for item in graphs}
        model = typed[done]  # the manifest's own rules say that it is there
    opened.check_files(besides={model})
    # INT8 made for another kind of processor may saturate in this one's kernels (x86 without VNNI
    # adds pairs of products in 16 bits): there the graph is run as it is written.
    foreign = bool(manifest.portable) or (arch != here and manifest.precision.done != "fp32")
    return (
        OnnxRuntimeBackend(
            opened.file(model),
            threads=manifest.target.threads if threads is None else threads,
            streams=streams,
            provider=CPU if provider is None else provider,
            optimize=not foreign,
            spin=spin,
        ),
        model,
    )


def require_tensors(
    path: Path,
    backend: Backend,
    inputs: Mapping[str, list[int | None]],
    outputs: Mapping[str, list[int | None]],
) -> None:
    """Raise BundleError unless a model has exactly these tensors, all of :data:`DTYPE`.

    Args:
        inputs, outputs: name -> shape that the manifest promises; None is the batch.
    """
    expected = {"inputs": dict(inputs), "outputs": dict(outputs)}
    found = {"inputs": backend.input_shapes, "outputs": backend.output_shapes}
    if found != expected:
        raise BundleError(
            f"{path}: the manifest promises {expected}, the model has {found}; build it again"
        )
    types = {**backend.input_dtypes, **backend.output_dtypes}
    for name, dtype in types.items():
        if dtype != DTYPE:
            raise BundleError(
                f"{path}: tensor '{name}' is {dtype}, expected {DTYPE}; build it again"
            )
