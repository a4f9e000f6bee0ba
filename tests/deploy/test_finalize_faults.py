"""What finalize refuses, and what it leaves alone; on boards that are made up.

The TensorRT and the GPU are fakes (tests/helpers/fake_tensorrt.py): what is real is the bundle, the
files in it, the names of the interface in each version, and the numbers, which ONNX Runtime makes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekd
from edgekd.deploy import finalize as finalize_module
from edgekd.deploy.finalize import Options, finalize
from edgekd.errors import (
    BundleError,
    GateError,
    InputError,
    OutputError,
)
from edgekd.runtime.bundle import read_manifest, sealed_json
from tests.helpers.fake_tensorrt import FakeBoard
from tests.helpers.portable import digest, read_only

QUICK = Options(runs=2)


@pytest.mark.parametrize(("kept", "passes"), [(0.999, False), (0.0, True)])
def test_classes_decide_as_well(bundle: Path, board: FakeBoard, kept: float, passes: bool) -> None:
    """Within the bound of the logits, and an eighth of the cells of another class."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    for item in manifest["portable"]:
        item |= {"golden_atol": 1e6, "golden_agreement_min": kept}
    (bundle / "manifest.json").write_text(sealed_json(manifest))

    def some_rows(logits: np.ndarray) -> np.ndarray:
        changed = logits.copy()
        rows = changed.shape[2] // 8
        changed[:, :, :rows] = -changed[:, :, :rows]
        return changed

    board.record["perturb"] = some_rows
    if passes:
        assert finalize(bundle, options=Options(runs=1, any_device=True)).engine is not None
    else:
        with pytest.raises(GateError, match=r"golden agreement \d\d\.\d+ % \(at least 99.90"):
            finalize(bundle, options=QUICK)


@pytest.mark.parametrize(("factor", "passes"), [(0.98, True), (1.02, False)])
def test_the_bound_of_the_logits_is_where_it_is_said_to_be(
    bundle: Path, board: FakeBoard, monkeypatch: pytest.MonkeyPatch, factor: float, passes: bool
) -> None:
    atol = next(m for m in read_manifest(bundle).portable if m.precision == "int8").golden_atol
    monkeypatch.setattr(
        finalize_module, "_beside", lambda backend, golden, batch: (factor * atol, 1.0)
    )
    options = Options(runs=1, precision="int8")
    if passes:
        monkeypatch.setattr(finalize_module, "_verify", lambda folder, any_device: None)
        assert finalize(bundle, options=options).engine is not None
    else:
        with pytest.raises(GateError, match="no engine keeps"):
            finalize(bundle, options=options)


def test_full_batches_are_compared(bundle: Path, board: FakeBoard) -> None:
    def later_tiles(logits: np.ndarray) -> np.ndarray:
        return np.concatenate([logits[:1], -logits[1:]])

    board.record["perturb"] = later_tiles
    finalize(bundle, options=Options(runs=1))
    with pytest.raises(GateError, match="no engine keeps"):
        finalize(bundle, options=Options(runs=1, batch_max=2))


def test_fp32_is_not_tf32(bundle: Path, board: FakeBoard) -> None:
    """A flag that TensorRT sets by itself and that rounds FP32 to the digits of FP16."""
    finalize(bundle, options=QUICK)
    assert "TF32" not in board.record["flags"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, BrokenPipeError])
def test_who_stops_a_build_stops_it(
    bundle: Path, board: FakeBoard, stop: type[BaseException]
) -> None:
    before = digest(bundle)

    def say(text: str) -> None:
        if "Building Engine" in text:
            raise stop

    with pytest.raises(stop):
        finalize(bundle, options=QUICK, say=say)
    assert digest(bundle) == before and board.gpu.depth == 0


def test_an_engine_that_does_not_load_leaves_the_others(bundle: Path, board: FakeBoard) -> None:
    board.record["unloadable"] = lambda content: b"QuantizeLinear" in content
    engine = finalize(bundle, options=QUICK).engine
    assert engine is not None and engine.precision == "fp16"
    assert "out of memory" in next(t.why for t in engine.trials if t.precision == "int8")


def test_files_exchanged_while_it_builds_are_not_sealed(bundle: Path, board: FakeBoard) -> None:
    def say(text: str) -> None:
        if text.startswith("build fp16"):
            (bundle / "int8-typed.onnx").write_bytes((bundle / "fp32.onnx").read_bytes())

    with pytest.raises(BundleError, match=r"int8-typed.onnx was changed after"):
        finalize(bundle, options=QUICK, say=say)
    assert read_only(bundle).engine is None


def test_other_peoples_files_stay(bundle: Path, board: FakeBoard, tmp_path: Path) -> None:
    foreign = tmp_path / "webapp"
    foreign.mkdir()
    (foreign / "manifest.json").write_text("{}")
    for place in (foreign, bundle):
        (place / "notes.txt").write_text("mine")
        with pytest.raises(OutputError):
            finalize(bundle, place, options=QUICK)
        assert (place / "notes.txt").read_text() == "mine"
    assert "workspace" not in board.record, "said before the first build"
    (bundle / "notes.txt").unlink()
    with pytest.raises(OutputError, match="is a folder; give a file for the timing cache"):
        finalize(bundle, options=Options(timing_cache=tmp_path))


def test_the_portable_bundle_and_the_finished_one_share_no_file(
    bundle: Path, board: FakeBoard, tmp_path: Path
) -> None:
    finalize(bundle, tmp_path / "done", options=QUICK)
    assert all(item.stat().st_nlink == 1 for item in (tmp_path / "done").iterdir())


def test_an_engine_of_another_kind_of_machine_is_no_reason_to_run_on_the_cpu(
    bundle: Path, board: FakeBoard
) -> None:
    board.boot(arch="x86_64", capability=(9, 0), name="H200")
    finalize(bundle, options=Options(runs=1, any_device=True))
    board.boot()
    with pytest.raises(BundleError, match="was finished on x86_64 and this is aarch64"):
        edgekd.load(bundle)
    with edgekd.load(bundle, any_device=True) as session:
        assert session.backend.details["backend"] == "onnxrt"
        assert (session.model, session.precision) == ("int8-typed.onnx", "int8")


def test_an_engine_takes_no_provider(finished: Path, board: FakeBoard) -> None:
    with pytest.raises(InputError, match="runs its engine with TensorRT, and a provider is one of"):
        edgekd.load(finished, provider="CUDAExecutionProvider")
    with edgekd.load(finished) as session:
        assert session.backend.streams == 2 and session.backend.details["cuda_graph"] == "on"
    with edgekd.load(finished, streams=1) as session:
        assert session.backend.streams == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["portable"].pop(1), "no typed graph"),
        (lambda m: m["portable"].append(m["portable"][0]), "stands twice"),
        (lambda m: m["portable"][0].update(file="golden.npz"), "is no .onnx file"),
        (lambda m: m["engine"].update(typing="graph"), "built from none of the portable"),
        (lambda m: m["precision"].update(done="fp32"), "precision.done is not the engine's"),
        (lambda m: m.update(engine=None, model="int8.onnx"), "precision.done is left open exact"),
        (lambda m: m.update(engine=None), "the model engine.plan is no .onnx file"),
        (lambda m: m.update(model="int8.onnx"), "the engine is engine.plan, the model int8.onnx"),
        (lambda m: m["engine"].update(layers="other.json"), "no sha256 for other.json"),
    ],
)
def test_manifests_that_contradict_themselves(
    finished: Path, tmp_path: Path, change: Callable[[Any], Any], words: str
) -> None:
    import shutil

    own = Path(shutil.copytree(finished, tmp_path / "own"))
    manifest = json.loads((own / "manifest.json").read_text())
    change(manifest)
    (own / "manifest.json").write_text(sealed_json(manifest))
    with pytest.raises(BundleError, match=words):
        read_manifest(own)


def test_a_golden_tile_that_is_missing(bundle: Path, board: FakeBoard) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["golden"]["count"] = 5
    (bundle / "manifest.json").write_text(sealed_json(manifest))
    with pytest.raises(BundleError, match="lacks the golden image_1"):
        finalize(bundle, options=QUICK)
    assert "profile" not in board.record
