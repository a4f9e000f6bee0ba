"""A small real bundle of places, without torch: means of the evidence times fixed weights."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.contracts.artifacts import sha256_bytes, sha256_file
from edgekd.contracts.evidence import KINDS, PRESENT, SCORES, Answers, Evidence, EvidenceTensors
from edgekd.contracts.manifest import GOLDEN_NAME, MANIFEST_NAME, MANIFEST_SCHEMA, Manifest
from edgekd.contracts.place_golden import make_golden
from edgekd.contracts.projection import Limits, project
from edgekd.contracts.tensors import SeriesInput
from edgekd.deploy.export.policy import attach_policy
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.bundle import sealed_json
from tests.helpers.place_line import (
    CLASSES,
    DAYS,
    FACTS,
    FEATURES,
    MEAN,
    ROWS,
    SIDE_PX,
    STD,
    WIDTH,
    place_recipe,
)

K = len(CLASSES)


def forbid(*numbers: int) -> Limits:
    """Rules that give some classes no probability."""
    rules, bounds = np.zeros((ROWS, K), np.float32), np.ones(ROWS, np.float32)
    inside = np.zeros(K, np.float32)
    for row, number in enumerate(numbers):
        rules[row, number], bounds[row] = 1, 0
    allowed = [n for n in range(K) if n not in numbers]
    inside[allowed] = 1 / len(allowed)
    return Limits(rules, bounds, inside)


def make_places_model() -> onnx.ModelProto:
    """``image``, ``series``, ``text``, ``present`` -> ``logits``: a linear layer on what is there,
    with the projection behind it."""
    random = np.random.default_rng(12)
    shapes = {
        "image": [3, SIDE_PX, SIDE_PX], "series": [DAYS, 2 * len(FEATURES)], "text": [WIDTH],
        PRESENT: [len(KINDS)],
    }  # fmt: skip
    scales = {"image": 60.0, "series": 9.0, "text": 5.0}
    sizes = {"image": 3, "series": 2 * len(FEATURES), "text": WIDTH}
    nodes: list[Any] = []
    constants: dict[str, np.ndarray] = {"axis": np.array([1])}
    parts = []
    for number, kind in enumerate(KINDS):
        mean = kind
        if kind != "text":
            mean = f"{kind}/mean"
            axes = [2, 3] if kind == "image" else [1]
            nodes.append(helper.make_node("ReduceMean", [kind], [mean], axes=axes, keepdims=0))
        constants |= {f"{kind}/from": np.array([number]), f"{kind}/to": np.array([number + 1])}
        constants[f"{kind}/w"] = random.normal(0, scales[kind], (sizes[kind], K)).astype("f4")
        cut = [PRESENT, f"{kind}/from", f"{kind}/to", "axis"]
        nodes += [
            helper.make_node("MatMul", [mean, f"{kind}/w"], [f"{kind}/said"]),
            helper.make_node("Slice", cut, [f"{kind}/there"]),
            helper.make_node("Mul", [f"{kind}/said", f"{kind}/there"], [f"{kind}/part"]),
        ]
        parts.append(f"{kind}/part")
    nodes.append(helper.make_node("Sum", parts, [SCORES]))
    graph = helper.make_graph(
        nodes, "places",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", *s]) for n, s in shapes.items()],
        [helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["N", K])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    attach_policy(proto, ROWS, keep_scores=True)
    return proto


def some_places(count: int) -> list[Evidence]:
    """Places that lack nothing, each kind in turn, and all kinds but one."""
    random = np.random.default_rng(4)
    lacking = [(), ("image",), ("series",), ("text",), *(
        tuple(k for k in KINDS if k != kind) for kind in KINDS
    )]  # fmt: skip
    found = []
    for number in range(count):
        # each has a tint and a level of its own, or all means would be alike
        tint, level = random.integers(40, 215, 3), random.normal(0, 1, len(FEATURES))
        picture = tint + random.integers(-40, 41, (SIDE_PX, SIDE_PX, 3))
        series = np.array(MEAN) + STD * (level + random.normal(0, 1, (DAYS, len(FEATURES))))
        series[random.random(series.shape) < 0.05] = np.nan
        text = random.normal(size=WIDTH)
        whole = {
            "image": picture.astype(np.uint8), "series": series.astype(np.float32),
            "text": (text / np.linalg.norm(text)).astype(np.float32),
        }  # fmt: skip
        without = lacking[number % len(lacking)]
        found.append(Evidence(**{k: v for k, v in whole.items() if k not in without}))
    return found


def make_place_bundle(folder: Path, **changes: Any) -> Path:
    """Write a sealed FP32 bundle for this machine that ``open_places`` opens.

    Args:
        folder: made if absent.
        changes: keys of the manifest to replace before it is sealed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / "model.onnx"
    onnx.save(make_places_model(), model)
    io = place_recipe().io
    series = SeriesInput(days=DAYS, features=FEATURES, mean=MEAN, std=STD)
    places, limits = some_places(9), [forbid(n % (K - 1)) for n in range(9)]
    rules, bounds, inside = (np.stack(part) for part in zip(*limits, strict=True))
    given = EvidenceTensors(io.image, series, io.text)(places)
    with OnnxRuntimeBackend(model, threads=1) as backend:
        found = backend.infer({**given, "rules": rules, "bounds": bounds, "inside": inside})
    scores = found[SCORES]
    free = np.exp(scores - scores.max(1, keepdims=True))
    free = (free / free.sum(1, keepdims=True)).astype(np.float32)
    answers = Answers(scores, free, project(scores, rules, bounds, inside).astype(np.float32))
    shapes = ((SIDE_PX, SIDE_PX, 3), (DAYS, len(FEATURES)), (WIDTH,))
    golden = make_golden(places, limits, answers, free, shapes)
    np.savez_compressed(folder / GOLDEN_NAME, **golden.arrays())  # type: ignore[arg-type]
    blank = sha256_bytes(b"")
    value: dict[str, Any] = {
        "schema": MANIFEST_SCHEMA,
        "name": "tiny-places",
        "title": "small model with fixed weights, for tests",
        "model": model.name,
        "inputs": [io.image.model_dump(mode="json")],
        "outputs": [{"name": SCORES}],
        "classes": [item.model_dump(mode="json") for item in io.classes],
        "evidence": {
            "series": series.model_dump(mode="json"), "text": {"width": WIDTH},
            "rules": {"rows": ROWS}, "facts": FACTS, "simulated": True,
        },
        "precision": {"asked": ["fp32"], "done": "fp32"},
        "target": {
            "name": "here", "arch": platform.machine(), "backend": "onnxrt", "threads": 1,
            "versions": {},
        },
        "provenance": {
            "recipe": {}, "recipe_sha256": blank, "checkpoint_sha256": blank, "data_name": "none",
            "data_sha256": blank, "student": {"name": "tiny"}, "tuning": {},
            "edgekd_version": "0", "created_utc": "2026-01-01T00:00:00+00:00",
        },
        "gates": [],
        "golden": {"count": len(places), "atol": 1e-3, "source": "random places"},
        "files": {file.name: sha256_file(file) for file in sorted(folder.glob("*.*"))
                  if file.name != MANIFEST_NAME},
    }  # fmt: skip
    manifest = Manifest.model_validate(value | changes)
    (folder / MANIFEST_NAME).write_text(sealed_json(manifest.plain()))
    return folder
