"""The command and the gate of a build: verdict, exit code, what is printed and what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto

from edgekd.cli.main import main
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.labelled import open_labelled
from edgekd.contracts.recipe import load_recipe
from edgekd.contracts.target import load_target, target_names
from edgekd.deploy.bundle import build
from edgekd.deploy.check import rtx, run
from edgekd.deploy.check.report import CheckReport, CompileFacts
from edgekd.deploy.check.run import Options, check_model
from edgekd.deploy.export import onnx_export
from edgekd.deploy.export.onnx_export import OnnxModel
from edgekd.deploy.quantize.grounds import Images
from edgekd.errors import EnvironmentLacksError, GateError, InputError
from tests.deploy.check.graphs import _quantized, _written, good
from tests.helpers.line import Line
from tests.helpers.onnx_graphs import save

ORIN = "orin-nano-8gb"


@pytest.fixture(autouse=True)
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without TensorRT-RTX; what it says has tests of its own."""
    monkeypatch.delenv(rtx.VARIABLE, raising=False)
    monkeypatch.setattr(rtx, "available", lambda _module: False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(good(TensorProto.FLOAT16), tmp_path / "good.onnx")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    return save(_quantized(zero=3)(), tmp_path / "bad.onnx")


def test_pass_without_the_library(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model), "--target", ORIN]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith("warning compile.not-done") and "unknown" in lines[0]
    assert 'pip install "edgekd[check]"' in lines[0]
    assert lines[1].startswith("graph   opset 17") and "fp16, 1 attentions" in lines[1]
    assert lines[2].startswith("compile not done: TensorRT-RTX is not installed")
    assert lines[3].startswith("pass: ") and "rules of TensorRT 10.3: 0 errors" in lines[3]
    assert err == f"next: edgekd build RECIPE --target {ORIN}\n" and len(lines) == 4


def test_fail(bad: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(bad), "--target", ORIN]) == 1
    out, err = capfd.readouterr()
    assert out.splitlines()[0].startswith("error   qdq.zero-point  in.q and 1 more: ")
    assert "FAIL: " in out.splitlines()[-1]
    assert err.startswith(f"error: {bad} does not suit {ORIN}: qdq.zero-point: in.q: a zero point")
    assert err.count("\n") == 1


def test_json_is_one_object_and_reads_back(
    bad: Path, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for path, code in ((bad, 1), (model, 0)):
        assert main(["check", str(path), "--target", ORIN, "--json"]) == code
        value = json.loads(capfd.readouterr().out)
        report = CheckReport.model_validate(value)
        assert report.plain() == value and report.verdict == ("fail" if code else "pass")
        assert (report.target, report.tensorrt, report.onnxruntime) == (ORIN, "10.3", None)


def test_a_report_cannot_contradict_itself(bad: Path) -> None:
    value = check_model(bad, load_target(ORIN)).plain()
    with pytest.raises(ValueError, match="verdict does not follow"):
        CheckReport.model_validate(value | {"verdict": "pass"})


def test_a_compile_that_is_required(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(model), "--target", ORIN, "--require-compile", "--json"]) == 3
    out, err = capfd.readouterr()
    assert out == "" and 'pip install "edgekd[check]"' in err
    with pytest.raises(EnvironmentLacksError):
        check_model(model, load_target(ORIN), Options(require_compile=True))
    assert check_model(model, load_target(ORIN), Options(compile_model=False)).verdict == "pass"


@pytest.mark.parametrize(
    ("version", "rules"),
    [
        ("8.5", {"layernorm.written-out"}),
        ("10.3", {"layernorm.written-out"}),
        ("11.4", set()),
    ],
)
def test_the_version_can_be_chosen(version: str, rules: set[str], tmp_path: Path) -> None:
    path = save(_written(TensorProto.FLOAT)(), tmp_path / "m.onnx")
    report = check_model(path, load_target(ORIN), Options(tensorrt=version))
    assert {item.rule for item in report.findings} - {"compile.not-done"} == rules
    assert report.tensorrt == version


@pytest.mark.parametrize(
    ("target", "version", "words"),
    [
        (ORIN, "7.2", r"no rules are known for TensorRT 7.2; expected 8.4 to 11.x"),
        (ORIN, "12.0", "no rules are known"),
        (ORIN, "new", "expected a version like 10.3, received 'new'"),
        ("rpi5", "10.3", "does not apply: target rpi5 runs the model with ONNX Runtime"),
    ],
)
def test_versions_that_make_no_sense(target: str, version: str, words: str, model: Path) -> None:
    with pytest.raises(InputError, match=words):
        check_model(model, load_target(target), Options(tensorrt=version))


def test_a_cpu_target_says_that_other_rules_apply(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(good(), tmp_path / "m.onnx")
    assert main(["check", str(path), "--target", "rpi4"]) == 0
    out, _ = capfd.readouterr()
    assert "rules of ONNX Runtime 1.17 (TensorRT rules do not apply)" in out
    assert "loaded here; Raspberry Pi 4 may have 1.17 or later" in out
    report = check_model(path, load_target("rpi4"))
    assert (report.tensorrt, report.onnxruntime) == (None, "1.17")
    assert report.compile.status == "done" and report.compile.library == "ONNX Runtime"


def test_what_onnx_runtime_cannot_load(tmp_path: Path) -> None:
    model = good()
    model.graph.node[0].op_type = "MatMull"
    report = check_model(save(model, tmp_path / "m.onnx"), load_target("x86-cpu"))
    rules = {item.rule for item in report.errors}
    assert rules == {"onnx.valid", "compile.load"} and report.compile.status == "failed"


def test_missing_data_stops_the_compile(tmp_path: Path) -> None:
    onnx.save(good(TensorProto.FLOAT16), str(tmp_path / "m.onnx"), save_as_external_data=True,
              location="w.bin", size_threshold=0)  # fmt: skip
    size = check_model(tmp_path / "m.onnx", load_target(ORIN)).graph
    (tmp_path / "w.bin").unlink()
    for target, more in ((ORIN, set()), ("rpi5", {"precision"})):
        report = check_model(tmp_path / "m.onnx", load_target(target))
        assert {item.rule for item in report.errors} == {"external-data", *more}
        assert report.compile.reason == "values of the model are missing"
    assert size is not None and size.size_mib > 0


def test_a_bundle_is_checked_by_its_model(bundles: dict[str, Path], tmp_path: Path) -> None:
    for target in map(load_target, target_names()):
        report = check_model(bundles["small"], target)
        assert report.model == str(bundles["small"] / "model.onnx")
        wrong = {"attention.fp32"} if target.backend == "trt" else set()  # made for a CPU
        assert {item.rule for item in report.errors} == wrong
    with pytest.raises(InputError, match="is a folder"):
        check_model(tmp_path, load_target(ORIN))


@pytest.mark.parametrize("name", ["conv", "levels", "small"])
def test_every_export_suits_every_target(name: str, exports: dict[str, OnnxModel]) -> None:
    for target in map(load_target, target_names()):
        lowered = Options(precision="fp16") if target.backend == "trt" else Options()
        report = check_model(exports[name].path, target, lowered)
        rules = {item.rule for item in report.findings}
        assert rules <= {"precision.flag", "compile.not-done"}, report.lines()


@pytest.mark.parametrize(
    ("version", "file", "precision"),
    [("8.6", "int8.onnx", ["fp32", "int8"]), ("10.3", "int8.onnx", ["fp32", "int8"]),
     ("10.13", "int8-typed.onnx", ["fp16", "int8"]), ("11.4", "int8-typed.onnx", ["fp16", "int8"])],
)  # fmt: skip
def test_of_a_portable_bundle_the_file_of_this_tensorrt_is_checked(
    version: str, file: str, precision: list[str], made: Path
) -> None:
    report = check_model(made, load_target(ORIN), Options(tensorrt=version))
    assert report.verdict == "pass" and report.graph is not None
    assert report.sha256 == sha256_file(made / file) and report.model == str(made / file)
    assert set(report.graph.precision) == set(precision)
    rules = {item.rule for item in report.findings} - {"compile.not-done"}
    assert rules == ({"precision.flag"} if "fp32" in precision else set())


def test_a_flag_excuses_memory_only_where_there_is_something_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never a bound that somebody gave."""
    facts = CompileFacts(status="done", library="made up", activation_mib=5000.0)
    monkeypatch.setattr(run, "_compile", lambda *_: rtx.Compiled(facts))
    target = load_target(ORIN)
    single, half = save(good(), tmp_path / "s.onnx"), save(good(10), tmp_path / "h.onnx")
    for path, given, severity in ((single, None, "warning"), (half, None, "error"),
                                  (single, 10.0, "error")):  # fmt: skip
        report = check_model(path, target, Options(precision="fp16", max_activation_mib=given))
        found = {item.rule: item.severity for item in report.findings}
        assert found["compile.activation-memory"] == severity
        assert ("precision.flag" in found) == (path == single)


def test_fp32_is_refused_unless_it_is_meant(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = save(good(), tmp_path / "m.onnx")
    for options, code, words in (
        ([], 1, "error   attention.fp32  softmax: attention in FP32 never fuses"),
        (["--precision", "fp32"], 0, "warning attention.fp32"),
        (["--precision", "fp16"], 0, "warning precision.flag"),
        (["--precision", "fp16", "--tensorrt", "11.4"], 1, "TensorRT 11.4 has no flag"),
    ):
        assert main(["check", str(path), "--target", ORIN, *options]) == code
        assert words in capfd.readouterr().out
    assert main(["check", str(path), "--target", "rpi5", "--precision", "fp16"]) == 2
    assert "--precision fp16 does not apply: target rpi5" in capfd.readouterr().err


def test_a_build_refuses_what_the_target_would(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_model: Any, _recipe: Any, path: Path) -> OnnxModel:
        model = good()
        model.ir_version = 10
        return OnnxModel(save(model, path), "image", "logits", 512, 16, {})

    monkeypatch.setattr(onnx_export, "export_onnx", wrong)
    said: list[str] = []
    recipe = load_recipe(line.recipes["small"])
    with pytest.raises(GateError, match=r"export.onnx does not suit x86-cpu: onnxrt.opset: IR vers"
                       r"ion 10; .* no bundle was written") as caught:  # fmt: skip
        build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b",
              Images(open_labelled(line.data)), said.append)  # fmt: skip
    assert caught.value.exit_code == 1 and said[-1] == "check for x86-cpu"
    assert list(tmp_path.iterdir()) == []


def test_require_fit_returns_the_report(model: Path) -> None:
    assert run.require_fit(model, load_target(ORIN)).verdict == "pass"
