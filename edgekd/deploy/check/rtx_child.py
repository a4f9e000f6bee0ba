"""Parse and compile one ONNX file with TensorRT-RTX; a program of its own.

    PYTHON rtx_child.py REQUEST.json ANSWER.json

PYTHON has ``tensorrt_rtx`` and need not have edgekd: nothing but the standard library is imported
besides. The library may abort the process, so the answer is written anew at every stage and the
caller reads how far it came.

REQUEST: ``model`` (path), ``capabilities`` (names such as ``SM87``; the first that the library
takes is used), ``batch_max``, ``memory_mib`` (bound of this process's own memory; 0 is none).
"""

from __future__ import annotations

import importlib
import json
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

MIB = 1 << 20
_KERNEL = re.compile(
    r"^Name: (\S.*?), LayerType: (\w+), Inputs: \[(.*?)\], (?:Constants|Outputs): ", re.M
)
_MEMORY = re.compile(r"Total (Activation|Weights) Memory: (\d+)")
#: the library looks for a driver, which a machine without a GPU does not have.
_NO_DRIVER = "cudaError 35"


def run(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    """The answer; ``tell`` is called with what is known at every stage."""
    answer: dict[str, Any] = {"stage": "import", "errors": [], "warnings": []}
    tell(answer)
    try:
        trt: Any = importlib.import_module("tensorrt_rtx")
    except ImportError as err:
        return answer | {"missing": f"{type(err).__name__}: {err}"}
    answer["version"] = str(trt.__version__)

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

        def said(self, *severities: Any) -> list[str]:
            found = [text for severity, text in self.lines if severity in severities]
            return [text for text in dict.fromkeys(found) if _NO_DRIVER not in text]

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)  # always strongly typed, as in TensorRT 11
    parser = trt.OnnxParser(network, log)
    answer["stage"] = "parse"
    tell(answer)
    if not parser.parse_from_file(request["model"]):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        answer["errors"] = [
            {"node": item.node_name(), "op": item.node_operator(), "why": item.desc()}
            for item in faults
        ] or [{"node": "", "op": "", "why": "the parser gave no reason"}]
        return answer
    answer["stage"] = "build"
    tell(answer)
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    answer["capability"] = _choose(trt, config, request["capabilities"])
    if answer["capability"] is None:
        names = ", ".join(request["capabilities"])
        answer["errors"] = [
            {"node": "", "op": "", "why": f"the library compiles for none of {names}"}
        ]
        return answer
    _profile(builder, config, network, request["batch_max"])
    plan = builder.build_serialized_network(network, config)
    severity = trt.ILogger
    answer["warnings"] = log.said(severity.WARNING)
    if plan is None:
        why = log.said(severity.ERROR, severity.INTERNAL_ERROR) or ["it gave no reason"]
        answer["errors"] = [{"node": "", "op": "", "why": text} for text in why]
        return answer
    text = "\n".join(message for _, message in log.lines)
    kernels = _KERNEL.findall(text)
    answer |= {
        "stage": "done",
        "plan_bytes": plan.nbytes,
        "kernels": len(kernels),
        "fused_attention": sum("mha" in name for name, _, _ in kernels),
        "int8_gemms": sum(
            kind in ("gemm", "correlation") and "Datatype: Int8" in inputs
            for _, kind, inputs in kernels
        ),
        "memory_bytes": {kind.lower(): int(size) for kind, size in _MEMORY.findall(text)},
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return answer


def _choose(trt: Any, config: Any, names: list[str]) -> str | None:
    """The first capability that the library takes.

    ``set_compute_capability`` returns False for others, and a build would then abort.
    """
    config.num_compute_capabilities = 1
    for name in names:
        kind = getattr(trt.ComputeCapability, name, None)
        if kind is not None and config.set_compute_capability(kind, 0):
            return name
    return None


def _profile(builder: Any, config: Any, network: Any, batch_max: int) -> None:
    """Free sides of the inputs: the batch from 1 to ``batch_max``."""
    profile = builder.create_optimization_profile()
    needed = False
    for index in range(network.num_inputs):
        item = network.get_input(index)
        shape = tuple(item.shape)
        if any(side < 0 for side in shape):
            needed = True
            low = tuple(1 if side < 0 else side for side in shape)
            high = tuple(batch_max if side < 0 else side for side in shape)
            profile.set_shape(item.name, low, high, high)
    if needed:
        config.add_optimization_profile(profile)


def main() -> None:
    """Read the request, answer it."""
    sys.path[:] = [item for item in sys.path if Path(item or ".").resolve() != _here()]
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    place = Path(sys.argv[2])

    def tell(answer: dict[str, Any]) -> None:
        part = place.with_suffix(".part")
        part.write_text(json.dumps(answer), encoding="utf-8")
        part.replace(place)

    if request["memory_mib"]:
        bound = request["memory_mib"] * MIB
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
    tell(run(request, tell))
    sys.stdout.flush()
    os._exit(0)  # the library's own clean-up may abort; the answer is written


def _here() -> Path:
    return Path(__file__).resolve().parent


if __name__ == "__main__":
    main()
