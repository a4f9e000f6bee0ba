"""ONNX Runtime needs no compiled form: the ONNX file itself is what the backend loads."""

from __future__ import annotations

import shutil
from pathlib import Path

from edgekd.contracts.optional import require

MODEL_NAME = "model.onnx"


def build(onnx_file: Path, folder: Path) -> dict[str, str]:
    """Put the model into a bundle folder as :data:`MODEL_NAME`.

    Returns:
        Versions of the libraries that decided the result.
    """
    shutil.copyfile(onnx_file, folder / MODEL_NAME)
    onnx = require("onnx", "deploy", "build bundles")
    ort = require("onnxruntime", "deploy", "build bundles")
    return {"onnx": str(onnx.__version__), "onnxruntime": str(ort.__version__)}
