"""Running a graph on the build host exactly as it is written, to see what its precision costs.

ONNX Runtime's fused INT8 kernels add pairs of products in 16 bits on x86 without VNNI and saturate;
its optimiser also rewrites Q/DQ. Neither says anything about the target, so both are off here:
values are quantised and dequantised where the graph says, and products are made in float32. FP16
tensors are rounded to FP16 after each operator; sums inside one are float32.
"""

from __future__ import annotations

from typing import Any

import onnx

from edgekd.contracts.optional import require
from edgekd.deploy.parity import FloatArray, Model, Tensors


def open_graph(proto: onnx.ModelProto, threads: int = 0, optimize: bool = False) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        proto: below 2 GiB.
        threads: 0 takes all cores.
        optimize: let ONNX Runtime rewrite the graph.
    """
    ort = require("onnxruntime", "deploy", "run models on the build host")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # An arena keeps the most that it ever held, and a build has several sessions: ViT-Small at
    # 1024 px took 9.9 GB so, and takes 3.7 without, in no more time.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def emulate(proto: onnx.ModelProto, threads: int = 0, optimize: bool = False) -> Model:
    """The graph as a function: its inputs by name, normalised -> logits, all float32."""
    session = open_graph(proto, threads, optimize)

    def run(tensors: Tensors) -> FloatArray:
        result: FloatArray = session.run(None, dict(tensors))[0]
        return result

    return run
