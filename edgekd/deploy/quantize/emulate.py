"""Running a graph on the build host exactly as it is written, to see what its precision costs.

ONNX Runtime's optimiser rewrites Q/DQ, which says nothing about another target, so it is off here:
values are quantised and dequantised where the graph says, and products are made in float32. FP16
tensors are rounded to FP16 after each operator; sums inside one are float32.
"""

from __future__ import annotations

from typing import Any

import onnx

from edgekd.contracts.optional import require
from edgekd.deploy.parity import FloatArray, Model, Tensors
from edgekd.runtime.backends.onnxrt import CPU, ROUNDS_BIASES, exact_entries


def open_graph(proto: onnx.ModelProto, threads: int = 0, optimize: bool = False) -> Any:
    """An ONNX Runtime session on the CPU.

    Args:
        proto: below 2 GiB.
        threads: 0 takes all cores.
        optimize: let ONNX Runtime rewrite the graph, as a device's session does.
    """
    ort = require("onnxruntime", "deploy", "run models on the build host")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # An arena keeps the most that it ever held, and a build has several sessions: ViT-Small at
    # 1024 px took 9.9 GB so, and takes 3.7 without, in no more time.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    for entry, value in exact_entries().items():
        options.add_session_config_entry(entry, value)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(
        proto.SerializeToString(), options, providers=[CPU], disabled_optimizers=ROUNDS_BIASES
    )


def emulate(proto: onnx.ModelProto, threads: int = 0, optimize: bool = False) -> Model:
    """The graph as a function: its inputs by name, normalised -> logits, all float32."""
    session = open_graph(proto, threads, optimize)

    def run(tensors: Tensors) -> FloatArray:
        result: FloatArray = session.run(None, dict(tensors))[0]
        return result

    return run
