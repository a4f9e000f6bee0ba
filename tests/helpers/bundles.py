"""Small real bundles for tests and benchmarks: a convolutional ONNX made with fixed weights."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts.artifacts import sha256_bytes, sha256_file
from edgekd.contracts.manifest import GOLDEN_NAME, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.tensors import ImageInput
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.session import Session, sealed_json

_COLORS = ("#8c6d46", "#2e8b57", "#4682b4", "#ffd700", "#b22222", "#808080", "#9370db")
_NAMES = ("background", "canopy", "water", "crop", "roof", "road", "other")


def make_model(
    tile_px: int = 256,
    stride_px: int = 4,
    classes: int = 2,
    width: int = 8,
    layers: int = 1,
    seed: int = 0,
) -> onnx.ModelProto:
    """An ONNX graph (opset 17) ``image [N,3,tile,tile] -> logits [N,classes,tile/stride,..]``.

    A patch convolution with stride ``stride_px``, then ``layers`` 3x3 convolutions of ``width``
    channels with ReLU, then a 1x1 convolution. Weights come from ``seed``: the same arguments
    give the same file. ``width`` and ``layers`` make the engine as slow as a test needs it.
    """
    rng = np.random.default_rng(seed)
    weights: list[Any] = []
    nodes: list[Any] = []

    def conv(source: str, target: str, shape: tuple[int, int, int, int], stride: int) -> None:
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        value = (rng.standard_normal(shape) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(value, f"{target}_w"))
        bias = (rng.standard_normal(shape[0]) * 0.1).astype(np.float32)
        weights.append(numpy_helper.from_array(bias, f"{target}_b"))
        pad = (shape[2] - 1) // 2 if stride == 1 else 0
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{target}_w", f"{target}_b"],
                [target],
                kernel_shape=list(shape[2:]),
                strides=[stride, stride],
                pads=[pad] * 4,
            )
        )

    conv("image", "patches", (width, 3, stride_px, stride_px), stride_px)
    last = "patches"
    for number in range(layers):
        nodes.append(helper.make_node("Relu", [last], [f"relu{number}"]))
        conv(f"relu{number}", f"mix{number}", (width, width, 3, 3), 1)
        last = f"mix{number}"
    conv(last, "logits", (classes, width, 1, 1), 1)
    cells = tile_px // stride_px
    shape_in: list[str | int | None] = ["N", 3, tile_px, tile_px]
    shape_out: list[str | int | None] = ["N", classes, cells, cells]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape_in)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape_out)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.checker.check_model(model)
    return model


def make_bundle(
    folder: Path,
    tile_px: int = 256,
    stride_px: int = 4,
    classes: int = 2,
    *,
    width: int = 8,
    layers: int = 1,
    overlap_px: int | None = None,
    name: str = "tiny",
    arch: str | None = None,
    seed: int = 0,
    changes: dict[str, Any] | None = None,
) -> Path:
    """Write a sealed bundle that :func:`edgekd.load` opens, and return ``folder``.

    Args:
        folder: made if absent.
        tile_px, stride_px: px; the tile must be a multiple of the stride.
        classes: 2 to 7.
        width, layers, seed: see :func:`make_model`.
        overlap_px: shared pixels of windows; an eighth of the tile by default.
        name: of the bundle.
        arch: of the target; this machine's by default.
        changes: keys of the manifest to replace before it is sealed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    onnx.save(make_model(tile_px, stride_px, classes, width, layers, seed), model)
    spec: dict[str, Any] = {
        "name": "image",
        "shape": ["N", 3, tile_px, tile_px],
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
    }
    image = np.random.default_rng(seed).integers(0, 256, (tile_px, tile_px, 3), dtype=np.uint8)
    with OnnxRuntimeBackend(model, threads=1) as backend:
        logits = backend.infer({"image": Normalizer(ImageInput(**spec))(image)[None]})["logits"]
    np.savez_compressed(folder / GOLDEN_NAME, image_0=image, logits_0=logits)
    blank = sha256_bytes(b"")
    value: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "name": name,
        "title": "small model with fixed weights, for tests",
        "model": model.name,
        "inputs": [spec],
        "outputs": [{"name": "logits", "stride_px": stride_px}],
        "classes": [
            {"index": index, "name": _NAMES[index], "color": _COLORS[index]}
            for index in range(classes)
        ],
        "tiling": {
            "window_px": tile_px,
            "overlap_px": tile_px // 8 if overlap_px is None else overlap_px,
            "blend": "cosine",
        },
        "precision": {"asked": ["fp32"], "done": "fp32"},
        "target": {
            "name": "x86-cpu",
            "arch": arch or platform.machine(),
            "backend": "onnxrt",
            "threads": 0,
            "versions": {},
        },
        "provenance": {
            "recipe": {"name": name},
            "recipe_sha256": blank,
            "checkpoint_sha256": blank,
            "data_name": "none",
            "data_sha256": blank,
            "student": {"name": "tiny"},
            "tuning": {},
            "edgekd_version": "0.1.0",
            "created_utc": "2026-01-01T00:00:00Z",
        },
        "gates": [],
        "golden": {"file": GOLDEN_NAME, "count": 1, "atol": 1e-3, "source": "1 thread"},
        "files": {item: sha256_file(folder / item) for item in (model.name, GOLDEN_NAME)},
    }
    value |= changes or {}
    manifest = Manifest.model_validate(value)
    (folder / MANIFEST_NAME).write_text(sealed_json(manifest.plain()), encoding="utf-8")
    return folder


def an_origin() -> dict[str, Any]:
    """A provenance whose recipe is valid."""
    from edgekd.contracts.recipe import parse_recipe
    from tests.helpers.labelled import recipe_values

    blank = "0" * 64
    return {
        "recipe": parse_recipe(recipe_values(), "a test").plain(), "recipe_sha256": blank,
        "checkpoint_sha256": blank, "data_name": "none", "data_sha256": blank,
        "student": {"name": "tiny", "parameters": 1}, "tuning": {}, "edgekd_version": "0",
        "created_utc": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip


def slow_down(session: Session, delay_s: float) -> None:
    """Let every call of a session's model take so much longer."""
    model = session.backend.infer

    def infer(*arguments: Any, **options: Any) -> Any:
        time.sleep(delay_s)
        return model(*arguments, **options)

    session.backend.infer = infer  # type: ignore[method-assign]
