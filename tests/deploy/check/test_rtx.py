"""The compile: what becomes of a process that dies, and what the real library says.

TensorRT-RTX is proprietary and large, so it is no dependency: install the extra ``check``, or
give a Python that has it,

    python3 -m venv v && v/bin/pip install tensorrt-rtx==1.7.1.116
    EDGEKD_TRT_RTX_PYTHON=v/bin/python pytest tests/deploy/check/test_rtx.py -s
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from edgekd.contracts import registry
from edgekd.contracts.target import Target, load_target
from edgekd.deploy.check import rtx
from edgekd.deploy.check.graph import read_graph
from edgekd.deploy.check.report import CheckReport
from edgekd.deploy.check.run import Options, check_model
from edgekd.deploy.export.graph import lift
from edgekd.deploy.export.onnx_export import OnnxModel, export_onnx
from edgekd.deploy.quantize.half import to_half
from edgekd.deploy.quantize.layers import choose_layers, find_layers
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.errors import EnvironmentLacksError
from tests.deploy.check.graphs import CASES, Case, _attention_operator, good
from tests.helpers.checkpoints import parsed, random_student
from tests.helpers.labelled import recipe_values
from tests.helpers.onnx_graphs import Tiny, half, linear, quantize_linears, save

ORIN = "orin-nx-16gb"


@pytest.fixture(scope="module")
def real() -> None:
    """TensorRT-RTX is there, or a skip that says how to get it."""
    if rtx.interpreter() is None:
        pytest.skip(f"tensorrt_rtx is not importable; {rtx.INSTALL}, or set {rtx.VARIABLE}")


@pytest.fixture
def orin() -> Target:
    return load_target(ORIN)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(good(), tmp_path / "m.onnx")


def meant(model: Path, target: Target, options: Options | None = None) -> CheckReport:
    """A check of the small model, whose FP32 is meant."""
    return check_model(model, target, replace(options or Options(), precision="fp32"))


def errors(report: CheckReport) -> set[str]:
    return {item.rule for item in report.errors}


# A program in place of Python: what the child may do.


def stand_in(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = folder / "python"
    program.write_text("#!/bin/sh\n# $1 the program, $2 the request, $3 the answer\n" + script)
    program.chmod(0o755)
    monkeypatch.setenv(rtx.VARIABLE, str(program))


ANSWER = '{{"stage": "{}", "errors": [], "warnings": [], "version": "1.7.1"}}'


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("kill -ABRT $$", "while it was to build the model: it ended by SIGABRT"),
        ("kill -SEGV $$", "it ended by SIGSEGV"),
        ("kill -KILL $$", "it was killed, most likely because memory ran out"),
        ("echo 'bad optional access' >&2; exit 134", "it ended with 134: bad optional access"),
        ("sleep 60", "it did not end within 1 s"),
    ],
)
def test_a_process_that_dies_is_a_finding(
    script: str,
    words: str,
    tmp_path: Path,
    model: Path,
    orin: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(tmp_path, f"echo '{ANSWER.format('build')}' > $3\n{script}\n", monkeypatch)
    report = meant(model, orin, Options(timeout_s=1))
    assert report.verdict == "fail" and errors(report) == {"compile.crash"}
    assert words in report.errors[0].reason and report.compile.status == "failed"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("exit 1", "it ended with 1"),
        ("exit 0", "it ended without an answer"),
        ("echo 'No module named rtx' >&2; exit 1", "No module named rtx"),
        ("""echo '{"stage": "import", "missing": "No module named tensorrt_rtx"}' > $3""",
         "No module named tensorrt_rtx"),
    ],
)  # fmt: skip
def test_a_named_python_without_the_library_is_no_silent_fallback(
    script: str,
    words: str,
    tmp_path: Path,
    model: Path,
    orin: Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(tmp_path, script + "\n", monkeypatch)
    with pytest.raises(EnvironmentLacksError, match="cannot use TensorRT-RTX") as caught:
        meant(model, orin)
    assert words in str(caught.value) and "unset EDGEKD_TRT_RTX_PYTHON" in str(caught.value)


@pytest.mark.parametrize("place", ["nowhere", ""])
def test_a_python_that_is_none(
    place: str, tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rtx.VARIABLE, str(tmp_path / place))
    with pytest.raises(EnvironmentLacksError, match="is no program"):
        meant(model, orin)


def test_a_crash_after_the_answer_does_not_matter(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.loads(ANSWER.format("done")) | {
        "capability": "SM86", "plan_bytes": 3 << 20, "kernels": 4, "fused_attention": 0,
        "int8_gemms": 0, "memory_bytes": {"activation": 2 << 20, "weights": 1 << 20},
        "peak_bytes": 5 << 20,
    }  # fmt: skip
    script = f"echo '{json.dumps(answer)}' > $3\nkill -ABRT $$\n"
    stand_in(tmp_path, script, monkeypatch)
    report = meant(model, orin)
    assert report.verdict == "pass" and report.compile.status == "done"
    facts = report.compile
    assert (facts.plan_mib, facts.activation_mib, facts.weights_mib, facts.peak_mib) == (3, 2, 1, 5)
    assert "SM86 stands in for SM87" in facts.stand_in


# The child's program against a library of our own.

LIBRARY = """
class ComputeCapability: SM86, SM120 = 86, 120
class ProfilingVerbosity: DETAILED = 1
class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)
    def __init__(self): pass
__version__ = "0.fake"
class Input:
    name, shape = "image", (-1, 3, 8, 8)
class Network:
    num_inputs = 1
    def get_input(self, index): return Input
class Profile:
    def set_shape(self, *given): Builder.shapes = given
class Config:
    def set_compute_capability(self, kind, index): return kind in TAKEN
    def add_optimization_profile(self, profile): pass
class Plan: nbytes = 1048576
class Builder:
    shapes = None
    def __init__(self, log): self.logger = log
    def create_network(self, flags): return Network()
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        hog = bytearray(HOG_MIB << 20)
        say = self.logger.log
        say(ILogger.WARNING, f"shapes {Builder.shapes}")
        say(ILogger.WARNING, "Detected layernorm nodes in FP16.")
        say(ILogger.ERROR, "cudaError 35")
        say(ILogger.INFO, LOG)
        return Plan
class Fault:
    def node_name(self): return "blocks.0/Div"
    def node_operator(self): return "Div"
    def desc(self): return "In node 3: [x/y.cpp:12]\\nDIV must have the same input types."
class OnnxParser:
    num_errors = 1
    def __init__(self, network, log): pass
    def parse_from_file(self, path): return PARSED
    def get_error(self, index): return Fault()
"""
KERNELS = (
    "Name: _gemm_mha_v2_myl0_3, LayerType: kgen, Inputs: [x, Datatype: Half], Outputs: [y]\n"
    "Name: __myl_Fc, LayerType: gemm, Inputs: [x, Datatype: Int8], Constants: [w]\n"
    "Name: __myl_Move, LayerType: kgen, Inputs: [x, Datatype: Int8], Outputs: [y]\n"
    "Total Activation Memory: 2097152\nTotal Weights Memory: 1048576\n"
)


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    given = {"TAKEN": [86], "PARSED": True, "LOG": KERNELS, "HOG_MIB": 0} | values
    lines = "".join(f"{name} = {value!r}\n" for name, value in given.items())
    (folder / "tensorrt_rtx.py").write_text(lines + LIBRARY)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv(rtx.VARIABLE, sys.executable)


def test_the_child_reads_kernels_and_memory(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch)
    report = meant(model, orin, Options(batch_max=5))
    facts = report.compile
    assert (facts.version, facts.kernels, facts.fused_attention, facts.int8_gemms) == (
        "0.fake", 3, 1, 1)  # fmt: skip
    assert (facts.activation_mib, facts.weights_mib, facts.plan_mib) == (2.0, 1.0, 1.0)
    reasons = {item.rule: item.reason for item in report.findings}
    low, high = "(1, 3, 8, 8)", "(5, 3, 8, 8)"
    assert reasons["compile.warning"] == f"shapes ('image', {low}, {high}, {high})"
    assert "LayerNorm in FP16" in reasons["compile.layernorm-fp16"]
    assert report.verdict == "pass" and facts.batch_max == 5


def test_a_capability_that_the_library_refuses(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real one returns False and would abort in the build."""
    library(tmp_path, monkeypatch, TAKEN=[120])
    report = meant(model, orin)
    assert errors(report) == {"compile.build"}
    assert "compiles for none of SM87, SM86" in report.errors[0].reason


def test_a_parse_error_names_its_node(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch, PARSED=False)
    finding = meant(model, orin).errors[0]
    assert (finding.rule, finding.nodes) == ("compile.parse", ["blocks.0/Div"])
    assert "Div" in finding.reason and "DIV must have the same input types" in finding.reason
    assert ".cpp" not in finding.reason


def test_nodes_refused_for_the_same_reason_are_one_finding(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parser that only says "false" said nothing."""
    names = [f"blocks.{n}/MatMul" for n in range(3)]
    faults = [{"node": name, "op": "MatMulInteger", "why": "false"} for name in names]
    answer = {"stage": "parse", "version": "1.7.1", "warnings": [], "errors": faults}
    stand_in(tmp_path, f"echo '{json.dumps(answer)}' > $3\n", monkeypatch)
    (finding,) = meant(model, orin).errors
    assert finding.nodes == names and finding.reason == "the parser refuses MatMulInteger"
    assert "blocks.0/MatMul and 2 more: the parser refuses MatMulInteger; " in finding.line()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("x.cpp:12: TensorRT goes on.", "TensorRT goes on"),
        ('(antialias == 0) && "Antialiasing is not supported currently."',
         "Antialiasing is not supported currently"),
        ("Assertion failed: (a || b): Scale coefficients must all be positive",
         "Scale coefficients must all be positive"),
        ("DIV must have same input types. In validate at /_src/a/b.cpp:40) Error Code 1: Cuda Run",
         "DIV must have same input types.)"),
    ],
)  # fmt: skip
def test_reasons_lose_what_nobody_can_use(said: str, reason: str) -> None:
    assert rtx._reason(said) == reason


def test_too_much_activation_memory(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch)
    report = meant(model, orin, Options(max_activation_mib=1.5))
    assert errors(report) == {"compile.activation-memory"}
    assert "take 2 MiB, allowed are 2 (asked for)" in report.errors[0].reason
    small = orin.model_copy(update={"memory_mib": 8})
    report = meant(model, small)
    assert "an eighth of the memory of Jetson Orin NX 16 GB" in report.errors[0].reason
    assert meant(model, orin, Options(max_activation_mib=2.0)).verdict == "pass"


def test_attention_in_fp16_that_does_not_fuse_is_an_error(
    tmp_path: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    library(tmp_path, monkeypatch, LOG="Total Activation Memory: 1\n")
    model = save(good(TensorProto.FLOAT16), tmp_path / "m.onnx")
    finding = meant(model, orin).errors[0]
    assert finding.rule == "compile.attention" and finding.nodes == ["softmax"]
    assert "0 of 1 attentions" in finding.reason


def test_a_bound_of_memory_holds(
    tmp_path: Path, model: Path, orin: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that takes more than it may dies, and that is a finding."""
    library(tmp_path, monkeypatch, HOG_MIB=900)
    done = rtx.compile_model(model, read_graph(model), orin, memory_mib=200)
    assert done.facts.status == "failed" and [f.rule for f in done.findings] == ["compile.crash"]
    assert "MemoryError" in done.findings[0].reason
    assert rtx.compile_model(model, read_graph(model), orin).facts.status == "done"


# The real library.


def test_attention_fuses_in_fp16_and_not_in_fp32(real: None, tmp_path: Path, orin: Target) -> None:
    for dtype, fused in ((TensorProto.FLOAT16, 1), (TensorProto.FLOAT, 0)):
        path = save(good(dtype), tmp_path / "m.onnx")
        report = meant(path, orin, Options(require_compile=True))
        assert report.compile.fused_attention == fused and report.verdict == "pass", report
        assert "SM86 stands in for SM87" in report.compile.stand_in
        assert report.compile.version.startswith("1.")


#: what the compiler of the 11.x generation refuses as well.
REFUSED = [
    case
    for case in CASES
    if case.rule in ("qdq.zero-point", "resize.antialias", "attention.operator")
    or case.name in ("operator that no version has", "INT32 bias", "scale 0",
                     "FP16 and FP32 at one node", "negative scale", "uint8 inside")
]  # fmt: skip


@pytest.mark.parametrize("case", REFUSED, ids=[case.name for case in REFUSED])
def test_the_compiler_agrees_with_the_rule(
    real: None, case: Case, tmp_path: Path, orin: Target
) -> None:
    report = check_model(save(case.build(), tmp_path / "m.onnx"), orin,
                         Options(tensorrt="11.4"))  # fmt: skip
    found = errors(report)
    assert case.rule in found, report.lines()
    assert found & {"compile.parse", "compile.build", "compile.crash"}, report.lines()
    print("\n" + "\n".join(report.lines()))


def test_a_free_batch_is_compiled(real: None, tmp_path: Path, orin: Target) -> None:
    path = save(good(TensorProto.FLOAT16), tmp_path / "m.onnx")
    for batch in (1, 8):
        report = check_model(path, orin, Options(batch_max=batch))
        assert report.verdict == "pass" and report.compile.batch_max == batch


def variants() -> Iterator[dict[str, str | None]]:
    """Every student with every size, attention and head that it offers."""
    for name in registry.module_names("edgekd.train.students"):
        module = registry.load("edgekd.train.students", name, "student")
        for size in getattr(module, "VARIANTS", (None,)):
            for attention in module.ATTENTIONS:
                for head in module.HEADS:
                    yield {"name": name, "variant": size, "attention": attention, "head": head}


VARIANTS = list(variants())


def test_every_variant_is_listed() -> None:
    assert len(VARIANTS) == 3 * 4 + 1 + 2  # vit_*, lite0, geology_rgb


def student(chosen: dict[str, str | None], path: Path, side_px: int = 512) -> OnnxModel:
    values = recipe_values(student=chosen)
    if chosen["attention"] is None:
        values["io"]["inputs"][0]["shape"] = ["N", 3, 64, 64]
        values["tiling"] = {"overlap_px": 16}
    else:  # more than one attention window
        values["io"]["inputs"][0]["shape"] = ["N", 3, side_px, side_px]
    return export_onnx(random_student(values), parsed(values), path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "chosen", VARIANTS, ids=["-".join(filter(None, item.values())) for item in VARIANTS]
)
def test_tensorrt_compiles_every_student(
    real: None, chosen: dict[str, str | None], tmp_path: Path, orin: Target
) -> None:
    exported = student(chosen, tmp_path / "m.onnx")
    options = Options(batch_max=8, require_compile=True, precision="fp16")
    report = check_model(exported.path, orin, options)
    print("\n" + "\n".join(report.lines()))
    assert report.verdict == "pass" and report.graph is not None
    assert {item.rule for item in report.findings} <= {"precision.flag"}
    assert report.compile.plan_mib > exported.path.stat().st_size / 2**21  # type: ignore[operator]
    assert report.compile.kernels and report.compile.fused_attention == 0  # FP32


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["windowed", "global"])
@pytest.mark.parametrize(("head", "most_mib"), [("linear", 40), ("upernet", 160)])
def test_vit_small_at_full_size(
    real: None, attention: str, head: str, most_mib: float, tmp_path: Path, orin: Target
) -> None:
    """As a build makes it: FP16 fuses all and so does INT8; Q/DQ round attention is refused."""
    chosen = {"name": "vit_small", "attention": attention, "head": head}
    exported = student(chosen, tmp_path / "m.onnx", 1024)
    single = onnx.load(exported.path)
    layers = choose_layers(find_layers(single), ["linear", "patch"], [])
    ranges = {item.source: 4.0 + 0.37 * place for place, item in enumerate(layers)}
    made = {
        "fp16": to_half(single),
        "int8": to_half(lift(insert_qdq(single, layers, ranges))),
        "int8 round attention": quantize_linears(half(single, 20), around_attention=True),
    }
    reports = {}
    for name, proto in made.items():
        path = save(proto, tmp_path / f"{name}.onnx")
        options = Options(tensorrt="11.4", require_compile=True)
        reports[name] = check_model(path, orin, options)
        print("\n" + "\n".join(reports[name].lines()))
    for name in ("fp16", "int8"):
        facts, graph = reports[name].compile, reports[name].graph
        assert reports[name].findings == [] and graph is not None
        assert facts.fused_attention == len(graph.attentions) == 12
        assert facts.activation_mib is not None and facts.activation_mib <= most_mib
    int8 = reports["int8"].compile
    assert int8.int8_gemms is not None and int8.int8_gemms >= 48
    assert int8.plan_mib is not None and int8.plan_mib * 2**20 <= 50e6
    bad = reports["int8 round attention"]
    assert {"attention.quantized", "compile.attention"} <= errors(bad)
    assert bad.compile.fused_attention is not None and bad.compile.fused_attention < 12


@pytest.mark.slow
def test_vit_small_by_library_defaults_is_refused(real: None, tmp_path: Path, orin: Target) -> None:
    """torch's exporter and ONNX Runtime's dynamic quantisation at full size, as anybody calls them.

    (Static quantisation holds every map of 4096 x 4096 while it calibrates; it has a test below.)
    """
    from onnxruntime.quantization import quantize_dynamic

    values = recipe_values(
        student={"name": "vit_small", "attention": "windowed", "head": "upernet"}
    )
    naive = tmp_path / "naive.onnx"
    torch.onnx.export(
        random_student(values), (torch.randn(1, 3, 1024, 1024),), naive, dynamo=True,
        external_data=False, verbose=False,
    )  # fmt: skip
    for version in ("10.3", "11.4"):
        report = check_model(naive, orin, Options(tensorrt=version))
        print("\n" + "\n".join(report.lines()))
        found = next(item for item in report.errors if item.rule == "attention.fp32")
        assert "4096 x 4096 for every head" in " ".join(item.reason for item in report.errors)
        assert found.nodes and report.compile.fused_attention == 0
        assert report.compile.activation_mib is not None and report.compile.activation_mib > 800
    quantize_dynamic(naive, tmp_path / "dynamic.onnx")
    report = check_model(tmp_path / "dynamic.onnx", orin)
    print("\n" + "\n".join(report.lines()))
    assert report.compile.status == "failed" and "operator" in errors(report)


def test_library_defaults_are_refused(real: None, tmp_path: Path, orin: Target) -> None:
    """ONNX Runtime's own static quantisation: asymmetric; then symmetric with an INT32 bias."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            random = np.random.default_rng(0)
            self.left = [{"image": random.random((1, 4, 8), np.float32)} for _ in range(4)]

        def get_next(self) -> dict[str, Any] | None:
            return self.left.pop() if self.left else None

    tiny = Tiny(("N", 4, 8))
    bias = tiny.weight("bias", np.arange(8) / 8)
    tiny.add("Reshape", ["image", tiny.weight("flat", [-1, 8], np.int64)], "rows")
    weight = tiny.weight("gemm.w", np.ones((8, 8)) / 9)
    last = tiny.add("Gemm", ["rows", weight, bias], "gemm")
    source = save(tiny.model(linear(tiny, last, "out")), tmp_path / "m.onnx")
    quantize_static(source, tmp_path / "defaults.onnx", Reader())
    report = check_model(tmp_path / "defaults.onnx", orin)
    print("\n" + "\n".join(report.lines()))
    assert {"qdq.zero-point"} <= errors(report)
    assert errors(report) & {"compile.parse", "compile.build"}
    quantize_static(
        source,
        tmp_path / "symmetric.onnx",
        Reader(),
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    report = check_model(tmp_path / "symmetric.onnx", orin)
    print("\n" + "\n".join(report.lines()))
    assert "qdq.type" in errors(report) and errors(report) & {"compile.parse", "compile.build"}
    assert any("INT32" in item.reason for item in report.errors)


def test_naive_export_of_attention_is_refused(real: None, tmp_path: Path, orin: Target) -> None:
    path = save(_attention_operator(TensorProto.FLOAT)(), tmp_path / "m.onnx")
    report = check_model(path, orin)
    assert {"opset", "operator"} <= errors(report)
    report = check_model(path, orin, Options(tensorrt="11.4"))
    assert "attention.operator" in errors(report) and report.compile.status == "failed"
