"""Parse and build an ONNX file with TensorRT-RTX, without a GPU; a program of its own.

    PYTHON tests/helpers/trt_rtx.py model.onnx SM86 TILE      # prints one JSON object

PYTHON is one that has ``tensorrt-rtx`` (1.7.1 was tried; proprietary, so it is no dependency of
edgekd). This is not the TensorRT of a Jetson: a pass says that the graph is valid, strongly typed
and compiles for Ampere (SM86; an Orin is SM87, which RTX does not offer). It says nothing about
speed, memory or accuracy there.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from typing import Any


def check(path: str, target: str, tile_px: int) -> dict[str, Any]:
    """Build with a profile of 1 to 8 tiles; ``errors`` is empty when all went well."""
    trt: Any = importlib.import_module("tensorrt_rtx")

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.lines.append((severity, message))

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(path):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        return {"errors": [f"{item.node_name()}: {item.desc()}" for item in faults]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(getattr(trt.ComputeCapability, target), 0):
        return {"errors": [f"TensorRT-RTX does not build for {target}"]}
    profile = builder.create_optimization_profile()
    profile.set_shape("image", *((n, 3, tile_px, tile_px) for n in (1, 4, 8)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    text = "\n".join(message for _, message in log.lines)
    kernels = re.findall(r"^Name: (\S.*?), LayerType: (\w+), Inputs: ", text, re.M)
    serious = [message for severity, message in log.lines if severity <= trt.ILogger.ERROR]
    return {
        "version": str(trt.__version__),
        "target": target,
        "errors": [] if plan is not None else serious,
        "plan_bytes": None if plan is None else plan.nbytes,
        "kernels": len(kernels),
        "fused_attention": sum("mha" in name for name, _ in kernels),
        "memory_bytes": {
            kind.lower(): int(size)
            for kind, size in re.findall(r"Total (Activation|Weights) Memory: (\d+)", text)
        },
        "inputs": [network.get_input(index).name for index in range(network.num_inputs)],
        "outputs": [network.get_output(index).name for index in range(network.num_outputs)],
    }


if __name__ == "__main__":
    result = check(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(json.dumps(result))
    sys.exit(1 if result["errors"] else 0)
