"""What ``arm_emulation.py`` runs, as Arm code and natively alike: a bundle on given tiles.

    python _arm_child.py BUNDLE TILES.npz OUT [--any-device]

It is the runtime itself: :func:`edgekd.load`, ``Session.infer`` (logits), ``Session.run`` (classes
per pixel, through the tiler) and ``Session.verify``. OUT, a folder, gets ``outputs.npz``, without
``--any-device`` also ``graph.onnx`` (the graph as ONNX Runtime rewrote it for this processor), and
last ``facts.json``. Ends with 2 and one line where the runtime refuses the bundle.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import edgekd
from edgekd.contracts.preprocess import Normalizer
from edgekd.runtime.session import Session

#: distributions whose code takes part in the result.
PACKAGES = ("numpy", "onnxruntime", "opencv-python-headless", "pydantic")
#: AT_HWCAP of getauxval(3), and HWCAP_ASIMDDP of Linux's asm/hwcap.h for arm64.
_AT_HWCAP, _ASIMDDP = 16, 1 << 20


def machine() -> dict[str, Any]:
    """What this process takes its processor for: both places that ONNX Runtime looks at."""
    facts: dict[str, Any] = {"machine": platform.machine(), "python": platform.python_version()}
    if facts["machine"] == "aarch64":
        fields: dict[str, str] = {}
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
        for line in text.splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        getauxval = ctypes.CDLL(None).getauxval
        getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
        facts["cpu_part"] = fields.get("CPU part")
        facts["cpuinfo_dot_product"] = "asimddp" in fields.get("Features", "").split()
        facts["hwcap_dot_product"] = bool(getauxval(_AT_HWCAP) & _ASIMDDP)
    return facts


def write_graph(model: Path, threads: int, path: Path) -> None:
    """Let ONNX Runtime write down what it makes of the model, with the runtime's options."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run(session: Session, tiles: Path, out: Path) -> None:
    """Write ``logits_K`` and, per pixel, ``classes_K`` of the tiles ``image_K``."""
    normalize = Normalizer(session.manifest.inputs[0])
    arrays: dict[str, Any] = {}
    with np.load(tiles) as given:
        for number in range(len(given.files)):
            image = given[f"image_{number}"]
            arrays[f"logits_{number}"] = session.infer(normalize(image)[None])[0]
            arrays[f"classes_{number}"] = session.run(image).classes
    np.savez(out, **arrays)


def main() -> None:
    """Run everything and write OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("tiles", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--any-device", action="store_true")
    args = parser.parse_args()
    facts = machine()
    facts["packages"] = {name: importlib.metadata.version(name) for name in PACKAGES}
    start = time.perf_counter()
    with edgekd.load(args.bundle, any_device=args.any_device) as session:
        run(session, args.tiles, args.out / "outputs.npz")
        try:
            facts["verify"] = {"passed": True, "error_logits": session.verify(), "why": None}
        except edgekd.EdgeKDError as err:
            facts["verify"] = {"passed": False, "error_logits": None, "why": str(err)}
        manifest = session.manifest
    if not args.any_device:
        model = args.bundle / manifest.model
        write_graph(model, manifest.target.threads, args.out / "graph.onnx")
    facts["seconds"] = time.perf_counter() - start
    (args.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except edgekd.EdgeKDError as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
