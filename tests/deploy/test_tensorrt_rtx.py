"""What we export parses and compiles in NVIDIA's own parser and builder, where they are installed.

TensorRT-RTX is proprietary and large, so it is no dependency: give a Python that has it,

    python3 -m venv v && v/bin/pip install tensorrt-rtx==1.7.1.116
    EDGEKD_TRT_RTX_PYTHON=v/bin/python pytest tests/deploy/test_tensorrt_rtx.py -s
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekd.contracts import registry
from edgekd.deploy.export.onnx_export import export_onnx
from tests.conftest import ROOT
from tests.helpers.checkpoints import parsed, random_student
from tests.helpers.labelled import lite0_values, recipe_values


def interpreter() -> str:
    """A Python with tensorrt_rtx, or a skip that says how to get one."""
    given = os.environ.get("EDGEKD_TRT_RTX_PYTHON")
    if given:
        return given
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        return sys.executable
    pytest.skip("tensorrt_rtx is not importable; set EDGEKD_TRT_RTX_PYTHON to a python that has it")


def variants() -> Iterator[tuple[str, str | None, str]]:
    """Every student with every attention and head that it offers."""
    for name in registry.module_names("edgekd.train.students"):
        module = registry.load("edgekd.train.students", name, "student")
        for attention in module.ATTENTIONS:
            for head in module.HEADS:
                yield name, attention, head


VARIANTS = list(variants())


def rtx(python: str, path: Path, tile_px: int) -> dict[str, Any]:
    program = ROOT / "tests" / "helpers" / "trt_rtx.py"
    done = subprocess.run(
        [python, str(program), str(path), "SM86", str(tile_px)],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stdout, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def test_every_variant_is_listed() -> None:
    assert len(VARIANTS) == 3 * 4 + 1


@pytest.mark.slow
@pytest.mark.parametrize(("name", "attention", "head"), VARIANTS)
def test_tensorrt_compiles_it(name: str, attention: str | None, head: str, tmp_path: Path) -> None:
    python = interpreter()
    student = {"name": name, "attention": attention, "head": head}
    values = lite0_values() if attention is None else recipe_values(student=student)
    if attention is not None:  # more than one attention window
        values["io"]["inputs"][0]["shape"] = ["N", 3, 512, 512]
    model, recipe = random_student(values), parsed(values)
    exported = export_onnx(model, recipe, tmp_path / "m.onnx")
    found = rtx(python, exported.path, exported.tile_px)
    print(f"\n{name} {attention} {head} {exported.tile_px} px: {found}")
    assert found["errors"] == []
    assert found["inputs"] == ["image"] and found["outputs"] == ["logits"]
    assert found["plan_bytes"] > exported.path.stat().st_size // 2
    assert found["kernels"] > 0


def test_a_graph_that_tensorrt_cannot_read_fails(tmp_path: Path) -> None:
    """Otherwise a check that always says yes would pass."""
    python = interpreter()
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Unique", ["image"], ["logits"])
    shape = ["N", 3, 64, 64]
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["M"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, tmp_path / "m.onnx")
    assert rtx(python, tmp_path / "m.onnx", 64)["errors"]
