"""A portable bundle, made-up boards, and times in which one precision wins."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.helpers.line import Line, reuse

if TYPE_CHECKING:
    from edgekd.deploy.export.onnx_export import OnnxModel
    from tests.helpers.fake_tensorrt import FakeBoard

TARGET = "orin-nx-16gb"
CHANGES = [
    "precision.allowed=[fp32,fp16,int8]", "calibration={tiles: 4}", "gates.agreement_min=0.9",
    f"targets=[{TARGET}, x86-cpu]",
]  # fmt: skip


@pytest.fixture(scope="session")
def made(
    line: Line, exports: dict[str, OnnxModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A portable bundle with INT8 and FP16; not to be written to."""
    from edgekd.contracts.labelled import open_labelled
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEKD_TRT_RTX_PYTHON", "")
        reuse(patch, exports["levels"])
        out = tmp_path_factory.mktemp("portable") / "b"
        recipe = load_recipe(line.recipes["levels"], CHANGES)
        images = Images(open_labelled(line.data))
        return build(recipe, TARGET, line.checkpoints["levels"], out, images).path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "b"))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> FakeBoard:
    from edgekd.deploy import finalize as finalize_module
    from tests.helpers.fake_tensorrt import FakeBoard

    board = FakeBoard(monkeypatch)
    board.boot("10.3")
    monkeypatch.setattr(finalize_module, "_times", times("int8"))
    return board


def times(fast: str) -> Callable[..., list[float]]:
    """Times in which one precision wins, in place of a clock on a shared machine."""

    def timed(backends: list[Any], tensor: np.ndarray, runs: int, batch: int) -> list[float]:
        quantized = [b"QuantizeLinear" in item._engine._content for item in backends]
        return [1e-3 if (fast == "int8") == item else 2e-3 for item in quantized]

    return timed


@pytest.fixture(scope="session")
def finished(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine; not to be written to."""
    from edgekd.deploy.finalize import Options, finalize
    from tests.helpers.fake_tensorrt import FakeBoard

    with pytest.MonkeyPatch.context() as patch:
        FakeBoard(patch).boot("10.3")
        out = tmp_path_factory.mktemp("finished") / "b"
        finalize(made, out, options=Options(runs=1))
    return out


def read_only(folder: Path) -> Any:
    """The manifest, whatever became of the files."""
    from edgekd.runtime.bundle import open_bundle

    return open_bundle(folder).manifest


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
