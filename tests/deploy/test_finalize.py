"""From a portable bundle to an engine, on boards that are made up.

The TensorRT and the GPU are fakes (tests/helpers/fake_tensorrt.py): what is real is the bundle, the
files in it, the names of the interface in each version, and the numbers, which ONNX Runtime makes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgekd
from edgekd.cli.main import main
from edgekd.contracts.trust import SIGNATURE_NAME, SIGNER_VARIABLE, requirements
from edgekd.deploy import finalize as finalize_module
from edgekd.deploy.finalize import CACHE_NAME, LAYERS_NAME, Options, finalize
from edgekd.deploy.signing import load_private_key, sign_bundle, write_key_pair
from edgekd.errors import (
    BundleError,
    EnvironmentLacksError,
    GateError,
    InputError,
    TrustError,
)
from edgekd.runtime.bundle import read_manifest, sealed_json, verify_bundle
from tests.helpers.fake_tensorrt import FakeBoard
from tests.helpers.portable import digest, times
from tests.helpers.tensorrt_api import VERSIONS

QUICK = Options(runs=2)


def _nobody() -> str:
    raise AssertionError("the key has no passphrase")


def test_what_a_portable_bundle_holds(made: Path) -> None:
    manifest = read_manifest(made)
    assert manifest.precision.done is None and manifest.engine is None
    assert [(m.precision, m.typing, m.file) for m in manifest.portable] == [
        ("int8", "flags", "int8.onnx"),
        ("int8", "graph", "int8-typed.onnx"),
        ("fp16", "flags", "fp32.onnx"),
        ("fp16", "graph", "fp16-typed.onnx"),
        ("fp32", "flags", "fp32.onnx"),
        ("fp32", "graph", "fp32.onnx"),
    ]
    assert sorted(manifest.files) == [
        "calibration.json", "fp16-typed.onnx", "fp32.onnx", "golden.npz", "int8-typed.onnx",
        "int8.onnx",
    ]  # fmt: skip
    protos = {n: onnx.load(made / n) for n in manifest.files if n.endswith(".onnx")}
    opsets = {name: proto.opset_import[0].version for name, proto in protos.items()}
    assert opsets == {
        "fp32.onnx": 17, "int8.onnx": 17, "fp16-typed.onnx": 17, "int8-typed.onnx": 19
    }  # fmt: skip
    # 8.6 reads scales as FP32 and weights as FP32 with a pair; the typed graph holds FP16 and INT8
    scales = {
        name: {i.data_type for i in proto.graph.initializer if i.name.endswith("/scale")}
        for name, proto in protos.items()
    }
    assert scales["int8.onnx"] == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in {
        i.data_type for i in protos["int8-typed.onnx"].graph.initializer
    }
    flags = manifest.portable[0]
    norms = [n.name for n in protos["fp32.onnx"].graph.node if n.op_type == "LayerNormalization"]
    assert norms and set(norms) <= set(flags.keep_fp32), "FP16 LayerNorm overflows on JetPack 6"
    assert manifest.portable[1].keep_fp32 == []
    tried = {item.precision: item for item in manifest.precision.candidates}
    assert (tried["fp32"].golden_agreement, tried["fp32"].golden_max_abs) == (1.0, 0.0)
    for precision in ("fp16", "int8"):
        assert 0.9 <= tried[precision].golden_agreement <= 1.0
    assert 0 < tried["fp16"].golden_max_abs < tried["int8"].golden_max_abs
    checked = {item.file: item for item in manifest.checks}
    assert set(checked) == set(protos)
    assert checked["int8.onnx"].rules == "TensorRT 10.3"
    assert checked["int8-typed.onnx"].rules == "TensorRT 10.12"
    names = {gate.name for gate in manifest.gates}
    assert {"agreement_with_fp32_int8", "miou_drop_fp16"} <= names


def test_the_integers_of_both_forms_are_the_same(made: Path) -> None:
    """One calibration: whatever TensorRT a board has, it computes with the same numbers."""
    from onnx import numpy_helper

    weak, typed = (
        {i.name: numpy_helper.to_array(i) for i in onnx.load(made / name).graph.initializer}
        for name in ("int8.onnx", "int8-typed.onnx")
    )
    codes = [name for name in typed if name.endswith("/int8")]
    assert len(codes) == 25
    for name in codes:
        stem = name.removesuffix("/int8")
        values, scale = weak[f"{stem}/float"], weak[f"{stem}/scale"]
        axis = 0 if values.ndim == 4 else 1
        shape = [-1 if n == axis else 1 for n in range(values.ndim)]
        assert np.array_equal(np.rint(values / scale.reshape(shape)), typed[name])


def test_a_portable_bundle_says_what_to_do(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match=r"is portable: .* on the orin-nx-16gb type: edgekd fina"):
        edgekd.load(made)
    with edgekd.load(made, any_device=True) as session:  # the typed graph, as it is written
        assert session.backend.details["backend"] == "onnxrt"
        session.verify()


@pytest.mark.parametrize(
    ("version", "typing", "source", "flags"),
    [
        ("8.6", "flags", "int8.onnx", {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}),
        ("10.3", "flags", "int8.onnx", {"FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"}),
        ("10.13", "graph", "int8-typed.onnx", set()),
        ("11.4", "graph", "int8-typed.onnx", set()),
    ],
)
def test_each_generation_is_told_its_way(
    bundle: Path, board: FakeBoard, version: str, typing: str, source: str, flags: set[str]
) -> None:
    board.boot(version)
    said: list[str] = []
    manifest = finalize(bundle, options=Options(runs=2, precision="int8"), say=said.append)
    engine = manifest.engine
    assert engine is not None and manifest.precision.done == "int8"
    assert (engine.source, engine.typing, manifest.model) == (source, typing, "engine.plan")
    assert engine.machine.tensorrt == VERSIONS[version]
    assert board.record["flags"] == flags
    pinned = set(manifest.portable[0].keep_fp32) if typing == "flags" else set()
    assert set(board.record["pinned"]) == pinned
    assert {name for name, _, kind in board.record["typed"] if kind.name == "FLOAT"} == pinned
    strong = {"8.6": 0, "10.3": 0, "10.13": 1, "11.4": 0}[version]
    assert bin(board.record["network_flags"]).count("1") == (1 if version == "8.6" else strong)
    assert board.record["profile"] == {"image": ((1, 3, 256, 256),) + ((1, 3, 256, 256),) * 2}
    assert board.record["workspace"] == ("WORKSPACE", 2 << 30)
    assert (board.record["monitor"] is None) == (version == "8.6")
    assert any("Building Engine" in text for text in said) == (version != "8.6")
    assert "a warning of the builder" in " ".join(said)
    assert board.gpu.depth == 0, "the context is given back as often as it was taken"
    assert json.loads((bundle / LAYERS_NAME).read_text())["Layers"]
    with edgekd.load(bundle) as session:
        assert session.backend.details["tensorrt"] == VERSIONS[version]
        assert session.verify() <= session.manifest.golden.atol
        image = np.zeros((300, 280, 3), np.uint8)
        assert session.run(image).classes.shape == (300, 280)
    assert board.gpu.depth == 0


@pytest.mark.parametrize("fast", ["int8", "fp16"])
def test_the_fastest_that_keeps_its_bounds_is_taken(
    bundle: Path, board: FakeBoard, monkeypatch: pytest.MonkeyPatch, fast: str
) -> None:
    monkeypatch.setattr(finalize_module, "_times", times(fast))
    manifest = finalize(bundle, options=QUICK)
    engine = manifest.engine
    assert engine is not None and manifest.precision.done == engine.precision == fast
    trials = {item.precision: item for item in engine.trials}
    assert {name: item.chosen for name, item in trials.items()} == {
        "int8": fast == "int8", "fp16": fast == "fp16"
    }  # fmt: skip
    slow = trials["fp16" if fast == "int8" else "int8"]
    assert slow.tile_s > trials[fast].tile_s and f"slower than {fast}" in slow.why
    assert {gate.name for gate in manifest.gates} >= {"engine_agreement_with_fp32"}
    assert manifest.golden.atol == next(
        m.golden_atol for m in manifest.portable if m.precision == fast
    )


def test_engines_are_timed_in_turn() -> None:
    ran: list[str] = []

    class Engine:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds, self.input_shapes = name, seconds, {"image": []}

        def infer(self, inputs: dict[str, Any]) -> None:
            ran.append(self.name)
            time.sleep(self.seconds)

    engines: Any = [Engine("a", 0.02), Engine("b", 0.001)]
    slow, fast = finalize_module._times(engines, np.zeros(1, np.float32), 4)
    assert ran == ["a", "b"] * (finalize_module.WARM_UP_RUNS + 4) and slow > fast > 0


def test_an_engine_that_cannot_be_built_leaves_the_others(bundle: Path, board: FakeBoard) -> None:
    board.record["refuse"] = lambda content, flags: "no tactic for INT8" if "INT8" in flags else ""
    engine = finalize(bundle, options=QUICK).engine
    assert engine is not None and engine.precision == "fp16"
    refused = [item for item in engine.trials if item.precision == "int8"]
    assert len(refused) == 1 and "no tactic for INT8" in refused[0].why
    before = digest(bundle)
    board.record["refuse"] = lambda content, flags: "out of memory"
    with pytest.raises(GateError, match=r"no engine could be built: .*int8 .*out of memory; fp16"):
        finalize(bundle, options=QUICK)
    assert digest(bundle) == before, "a failure leaves the bundle as it was"
    assert board.gpu.depth == 0


@pytest.mark.parametrize(
    "perturb", [lambda logits: -logits, lambda logits: logits * np.nan, lambda logits: logits + 50]
)
def test_an_engine_that_answers_otherwise_is_refused(
    bundle: Path, board: FakeBoard, perturb: Callable[[Any], Any]
) -> None:
    before = digest(bundle)
    board.record["perturb"] = perturb
    with pytest.raises(GateError, match=r"no engine keeps the bundle's bounds: .*int8.*fp16"):
        finalize(bundle, options=QUICK)
    assert digest(bundle) == before


def test_a_node_that_must_stay_in_fp32_must_be_found(bundle: Path, board: FakeBoard) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["portable"][2]["keep_fp32"] = ["decoder/LayerNormalization_99"]
    (bundle / "manifest.json").write_text(sealed_json(manifest))
    engine = finalize(bundle, options=QUICK).engine
    assert engine is not None and engine.precision == "int8"
    why = next(item.why for item in engine.trials if item.precision == "fp16")
    assert "decoder/LayerNormalization_99" in why and "--typing graph" in why


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "10.13"}, "TensorRT 10.3.0 there, 10.13.3.9 here"),
        ({"multiprocessors": 16}, "multiprocessors 8 there, 16 here"),
        ({"name": "NVIDIA H200"}, "GPU Orin there, NVIDIA H200 here"),
    ],
)
def test_a_changed_machine_is_named_and_finalize_answers(
    bundle: Path, board: FakeBoard, change: dict[str, Any], words: str
) -> None:
    finalize(bundle, options=QUICK)
    loads = board.record["deserialized"]
    board.boot(**change)
    with pytest.raises(BundleError, match="was built for another machine") as caught:
        edgekd.load(bundle)
    assert words in str(caught.value) and "edgekd finalize" in str(caught.value)
    assert board.record["deserialized"] == loads, "no byte of a foreign plan is deserialised"
    said: list[str] = []
    again = finalize(bundle, options=QUICK, say=said.append)
    assert again.engine is not None and f"built before: {words}" in said
    assert len(again.gates) == len({gate.name for gate in again.gates})
    with edgekd.load(bundle) as session:
        session.verify()


def test_the_timing_cache_is_kept_and_used(bundle: Path, board: FakeBoard, tmp_path: Path) -> None:
    manifest = finalize(bundle, options=QUICK)
    assert manifest.engine is not None and manifest.engine.timing_cache == CACHE_NAME
    assert (bundle / CACHE_NAME).read_bytes() == b"tactics of 10.3"
    finalize(bundle, options=QUICK)
    assert board.record["cache"] == b"tactics of 10.3"
    shared = tmp_path / "shared.cache"
    shared.write_bytes(b"tactics of another")
    said: list[str] = []
    finalize(bundle, options=Options(runs=1, timing_cache=shared), say=said.append)
    assert any("another TensorRT or GPU and is not used" in text for text in said)
    assert shared.read_bytes() == b"tactics of 10.3"


def test_dla(bundle: Path, board: FakeBoard) -> None:
    with pytest.raises(EnvironmentLacksError, match=r"DLA core 0 was asked for .* shows 0 here"):
        finalize(bundle, options=Options(runs=1, dla_core=0))
    board.record["dla_cores"] = 2
    engine = finalize(bundle, options=Options(runs=1, dla_core=1)).engine
    assert engine is not None and engine.dla_core == 1 == board.record["dla"]
    assert board.record["loaded_on"] == 1
    assert "GPU_FALLBACK" in board.record["flags"]


def test_batches(bundle: Path, board: FakeBoard) -> None:
    finalize(bundle, options=Options(runs=1, batch_max=3, precision="int8"))
    assert board.record["profile"]["image"] == ((1, 3, 256, 256), *[(3, 3, 256, 256)] * 2)
    with edgekd.load(bundle) as session:
        tiles = np.random.default_rng(0).standard_normal((7, 3, 256, 256)).astype(np.float32)
        together = session.infer(tiles)
        alone = np.concatenate([session.infer(tile[None]) for tile in tiles])
        assert together.shape[0] == 7 and np.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("boot", "words"),
    [
        ({"arch": "x86_64", "capability": (9, 0), "name": "H200"}, "this is x86_64"),
        ({"capability": (7, 2), "name": "Xavier"}, r"with Xavier \(7.2\)"),
    ],
)
def test_another_class_of_device(
    bundle: Path, board: FakeBoard, boot: dict[str, Any], words: str
) -> None:
    board.boot(**boot)
    with pytest.raises(BundleError, match=rf"is for orin-nx-16gb .* {words}.*--any-device"):
        finalize(bundle, options=QUICK)
    manifest = finalize(bundle, options=Options(runs=1, any_device=True))
    assert manifest.engine is not None
    with edgekd.load(bundle, any_device=True) as session:
        assert session.backend.details["backend"] == "trt"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super", False),
        ("NVIDIA Jetson AGX Orin Developer Kit", True),
        ("NVIDIA Jetson Orin Nano Developer Kit", True),
        (None, False),
    ],
)
def test_a_board_of_another_name_is_told(
    bundle: Path, board: FakeBoard, monkeypatch: pytest.MonkeyPatch, model: str | None, said: bool
) -> None:
    """All Orins have one architecture and one compute capability."""
    real = finalize_module.read_machine
    monkeypatch.setattr(
        finalize_module, "read_machine",
        lambda *given: real(*given).model_copy(update={"board": model}),
    )  # fmt: skip
    lines: list[str] = []
    finalize(bundle, options=QUICK, say=lines.append)
    words = f"note: the bundle is for Jetson Orin NX 16 GB and this board calls itself '{model}'"
    assert any(line.startswith(words) for line in lines) == said


def test_wrong_use(bundle: Path, board: FakeBoard, bundles: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="runs with ONNX Runtime, which needs no engine"):
        finalize(bundles["small"])
    board.boot("11.4")
    with pytest.raises(EnvironmentLacksError, match=r"nothing that TensorRT 11.4.* with flags"):
        finalize(bundle, options=Options(typing="flags"))
    board.boot("10.3")
    engine = finalize(bundle, options=Options(runs=1, typing="graph")).engine
    assert engine is not None and engine.typing == "graph"


def test_without_tensorrt_or_gpu(bundle: Path, board: FakeBoard) -> None:
    board.cuda.init = lambda: (_ for _ in ()).throw(board.cuda.Error("no device"))
    with pytest.raises(EnvironmentLacksError, match="no CUDA device can be used .no device"):
        finalize(bundle)
    board.boot("10.3")
    import sys

    sys.modules["tensorrt"].__version__ = "12.1.0"  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentLacksError, match=r"TensorRT 12.1.0 is here, .* knows 8.6 to 11"):
        finalize(bundle)


def test_a_precision_that_it_does_not_hold(
    bundle: Path, board: FakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["portable"] = [m for m in manifest["portable"] if m["precision"] != "fp32"]
    (bundle / "manifest.json").write_text(sealed_json(manifest))
    assert main(["finalize", str(bundle), "--precision", "fp32"]) == 2
    assert "holds no fp32 (it holds int8, fp16): it was not" in capsys.readouterr().err


def test_fp32_is_what_is_left(bundle: Path, board: FakeBoard) -> None:
    board.record["refuse"] = lambda content, flags: "no tactic" if "FP16" in flags else ""
    engine = finalize(bundle, options=QUICK).engine
    assert engine is not None and (engine.precision, engine.source) == ("fp32", "fp32.onnx")
    assert [t.precision for t in engine.trials] == ["fp32", "int8", "fp16"]
    assert board.record["flags"] == set(), "and nothing lowered or rounded it"


def test_a_workstation_is_told_where_to_go(made: Path) -> None:
    with pytest.raises(BundleError, match=r"is for orin-nx-16gb .* copy it there and type: edgekd"):
        finalize(made)


def test_a_machine_without_tensorrt(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import platform

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    options = Options(any_device=True)
    with pytest.raises(EnvironmentLacksError, match=r"tensorrt is not installed .*edgekd\[trt\]"):
        finalize(made, options=options)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(EnvironmentLacksError, match=r"TensorRT of JetPack .*system-site-packages"):
        finalize(made)


def test_a_signer_is_asked_before_anything_is_built(
    bundle: Path, board: FakeBoard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = write_key_pair(tmp_path / "fleet", None)
    own = write_key_pair(tmp_path / "board", None)
    with pytest.raises(TrustError):
        finalize(bundle, required=requirements([pair.public]))
    assert "deserialized" not in board.record
    sign_bundle(bundle, load_private_key(pair.private, _nobody))
    said: list[str] = []
    manifest = finalize(
        bundle, required=requirements([pair.public]), options=QUICK, say=said.append
    )
    assert manifest.engine is not None and manifest.engine.portable_signer == pair.key.key_id
    assert not (bundle / SIGNATURE_NAME).exists() and any("sign anew" in text for text in said)
    monkeypatch.setenv(SIGNER_VARIABLE, f"{pair.public}:{own.public}")
    loads = board.record["deserialized"]
    with pytest.raises(TrustError, match="not signed"):
        edgekd.load(bundle)
    assert board.record["deserialized"] == loads, "verification comes before deserialising"
    sign_bundle(bundle, load_private_key(own.private, _nobody))
    with edgekd.load(bundle) as session:
        assert session.signer == own.key.key_id
    monkeypatch.delenv(SIGNER_VARIABLE)
    verify_bundle(bundle, requirements([own.public]))


def test_a_changed_plan_is_never_deserialised(bundle: Path, board: FakeBoard) -> None:
    finalize(bundle, options=QUICK)
    loads = board.record["deserialized"]
    plan = bundle / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[-1] ^= 1
    plan.write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"engine.plan was changed after the bundle was sealed"):
        edgekd.load(bundle)
    assert board.record["deserialized"] == loads


def test_the_command(
    bundle: Path, board: FakeBoard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "done"
    assert main(["finalize", str(bundle), "-o", str(out)]) == 0
    said = capsys.readouterr()
    assert "* int8 (flags):" in said.out and "TensorRT 10.3.0, Orin, sealed" in said.out
    assert f"next: edgekd run {out}" in said.err
    assert read_manifest(bundle).engine is None and read_manifest(out).engine is not None
    assert main(["inspect", str(out)]) == 0
    said = capsys.readouterr()
    assert "built 2" in said.out and "on the board: * int8" in said.out
    assert main(["validate", str(out), "--json"]) == 0


def test_the_board_needs_neither_torch_nor_onnx() -> None:
    from tests.architecture.test_imports import _BLOCKED, python

    wall = "torch,onnx,onnxscript,onnxruntime,lightning_fabric,rasterio,cryptography"
    code = python(_BLOCKED, wall, "edgekd.deploy.finalize", "edgekd.deploy.builders.trt")
    assert code.strip() == ""


_REAL = """
import json, sys
import tensorrt_rtx as trt
trt.__version__ = "11.4.0"  # of whose generation it is
from edgekd.contracts.manifest import PortableModel
from edgekd.deploy.builders.trt import BuildOptions, build_plan
from edgekd.errors import EdgeKDError
from edgekd.runtime.backends.trt import Api
def sm86(config):
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM86, 0)
manifest = json.load(open(sys.argv[1] + "/manifest.json"))
said = []
for item in manifest["portable"]:
    if item["typing"] != "graph":
        continue
    model = PortableModel.model_validate(item)
    content = open(sys.argv[1] + "/" + model.file, "rb").read()
    plan = build_plan(Api(trt), content, model, BuildOptions(1024, 2, configure=sm86), said.append)
    options = BuildOptions(1024, 2, timing_cache=plan.timing_cache, configure=sm86)
    build_plan(Api(trt), content, model, options, said.append)
    print(model.precision, len(plan.content) > 100_000, len(plan.timing_cache) > 0)
for fault in (content[:5000], content):
    try:
        build_plan(Api(trt), fault, model, BuildOptions(1024, dla_core=0), said.append)
    except EdgeKDError as err:
        print(type(err).__name__, str(err))
print(any("Building engine" in text for text in said))
"""


def test_the_builder_with_nvidias_own_parser_and_builder(made: Path, tmp_path: Path) -> None:
    """TensorRT-RTX has the interface of 11: typed graphs, progress, timing cache, faults."""
    import os
    import subprocess
    import sys

    from edgekd.contracts.optional import available

    python = os.environ.get("EDGEKD_TRT_RTX_PYTHON")
    if not python and not available("tensorrt_rtx"):
        pytest.skip('tensorrt_rtx is not importable; pip install "edgekd[check]", or set '
                    "EDGEKD_TRT_RTX_PYTHON")  # fmt: skip
    # its Python may lack edgekd and what it imports: those of this one go along
    path = os.pathsep.join([str(Path(edgekd.__file__).parents[1]), *sys.path[1:]])
    result = subprocess.run(
        [python or sys.executable, "-c", _REAL, str(made)], env=os.environ | {"PYTHONPATH": path},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    lines = result.stdout.splitlines()
    assert lines[:3] == ["int8 True True", "fp16 True True", "fp32 True True"]
    assert lines[3].startswith("GateError TensorRT 11.4.0 cannot read fp32.onnx: ")
    assert lines[4].startswith("EnvironmentLacksError DLA core 0 was asked for")
    assert lines[5] == "True"
