"""Targets: what a declaration may say, and what contradicts itself."""

from __future__ import annotations

import re
from typing import Any

import pytest

from edgekd.contracts import registry
from edgekd.contracts.target import Target, load_target, target_names
from edgekd.deploy.check.tables import ONNXRUNTIME_OPSETS, TENSORRT_KNOWN, parse_version
from tests.conftest import ROOT

CPU = {"model": "x", "int8_dot_product": True, "int8_weight_bits": 8}
TRT: dict[str, Any] = {
    "schema": 1, "name": "t", "title": "t", "arch": "aarch64", "backend": "trt",
    "tensorrt": "10.3", "compute_capability": "8.7",
}  # fmt: skip
ORT: dict[str, Any] = {
    "schema": 1, "name": "t", "title": "t", "arch": "x86_64", "backend": "onnxrt",
    "onnxruntime": "1.17",
}  # fmt: skip


def test_the_least_that_a_target_says() -> None:
    assert Target.model_validate(ORT).precisions == ["fp32"]
    assert Target.model_validate(TRT).power_modes == []


@pytest.mark.parametrize(
    ("base", "changes", "words"),
    [
        (TRT, {"tensorrt": None}, "backend trt needs the key 'tensorrt'"),
        (TRT, {"compute_capability": None}, "backend trt needs the key 'compute_capability'"),
        (TRT, {"onnxruntime": "1.17"}, "backend trt has no use for the key 'onnxruntime'"),
        (ORT, {"onnxruntime": None}, "backend onnxrt needs the key 'onnxruntime'"),
        (ORT, {"tensorrt": "10.3"}, "backend onnxrt has no use for the key 'tensorrt'"),
        (ORT, {"jetpack": "6.2"}, "belong to a Jetson"),
        (ORT, {"power_modes": [{"id": 0, "name": "15W"}]}, "belong to a Jetson"),
        (TRT, {"tensorrt": "ten"}, "should match pattern"),
        (TRT, {"tensorrt": 10.3}, "valid string"),
        (TRT, {"compute_capability": "87"}, "should match pattern"),
        (TRT, {"precisions": []}, "at least 1 item"),
        (TRT, {"precisions": ["fp16", "fp16"]}, "stands twice"),
        (TRT, {"precisions": ["fp17"]}, "'fp32', 'fp16', 'bf16' or 'int8'"),
        (TRT, {"memory_mib": 16}, "greater than or equal to 256"),
        (TRT, {"power_modes": [{"id": 0, "name": "A"}, {"id": 0, "name": "B"}]}, "its own id"),
        (TRT, {"power_modes": [{"id": 0, "name": "A"}, {"id": 1, "name": "A"}]}, "its own id"),
        (TRT, {"power_modes": [{"id": 0, "name": "15 W"}]}, "should match pattern"),
        (TRT, {"power_modes": [{"id": 0, "name": "A", "budget_w": 0}]}, "greater than 0"),
        (ORT, {"cpu": CPU | {"int8_weight_bits": 7}}, "does not saturate: write 8"),
        (ORT, {"cpu": CPU | {"int8_weight_bits": 6}}, "Input should be 7 or 8"),
    ],
)
def test_what_contradicts_itself(base: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    Target.model_validate(base)
    with pytest.raises(ValueError, match=re.escape(words)):
        Target.model_validate(base | changes)


@pytest.mark.parametrize("name", target_names())
def test_declared_targets(name: str) -> None:
    target = load_target(name)
    assert target.board and target.cpu is not None and target.precisions[0] == "fp32"
    if target.backend == "trt":
        assert target.tensorrt is not None and target.memory_mib is not None
        assert TENSORRT_KNOWN[0] <= parse_version(target.tensorrt) < TENSORRT_KNOWN[1]
        assert target.jetpack and target.l4t and len(target.power_modes) == 4
        assert "int8" in target.precisions and "fp16" in target.precisions
    else:
        assert target.precisions == ["fp32", "int8"]
        assert target.onnxruntime is not None
        version = parse_version(target.onnxruntime)
        assert version in [row[0] for row in ONNXRUNTIME_OPSETS]
        # the oldest that pip will install beside us
        assert f'onnxrt = ["onnxruntime>={target.onnxruntime}"]' in (
            ROOT / "pyproject.toml").read_text()  # fmt: skip
    text = (registry.engines_root() / "targets" / f"{name}.yaml").read_text()
    assert "https://" in text or "Technical Reference" in text, "a fact without its source"


def test_what_decides_int8() -> None:
    traits = {name: load_target(name).cpu for name in target_names()}
    found = {k: (v.int8_dot_product, v.int8_weight_bits) for k, v in traits.items() if v}
    jetsons = {name: (True, 8) for name in ("agx-orin", "orin-nano-8gb", "orin-nx-16gb")}
    assert found == jetsons | {
        "rpi4": (False, 8), "rpi5": (True, 8), "x86-cpu": (False, 7), "x86-vnni": (True, 8),
    }  # fmt: skip
