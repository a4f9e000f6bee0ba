"""``check_model``: rules and compile for one model and one target, and the gate of a build."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.contracts.target import Target
from edgekd.contracts.trust import requirements
from edgekd.deploy.check import rtx, rules, rules_onnxrt
from edgekd.deploy.check.graph import Graph, read_graph, title, type_name
from edgekd.deploy.check.report import (
    AttentionFacts,
    CheckReport,
    CompileFacts,
    Finding,
    GraphFacts,
    by_severity,
)
from edgekd.deploy.check.rules import STRONG_FROM, Context
from edgekd.deploy.check.tables import TENSORRT_KNOWN, parse_version, shown
from edgekd.errors import BundleError, EnvironmentLacksError, GateError, InputError
from edgekd.runtime.bundle import open_bundle

#: of a target's memory, what activations may take: system, camera, scene and weights need the rest
ACTIVATION_SHARE = 1 / 8
_MIB = float(1 << 20)


@dataclass(frozen=True)
class Options:
    """How to check.

    Attributes:
        tensorrt: apply the rules of this TensorRT in place of the target's.
        compile_model: compile (TensorRT) or load (ONNX Runtime) as well.
        require_compile: end with an error where compiling is not possible.
        precision: see :class:`edgekd.deploy.check.rules.Context`; None takes a file as it stands
            and a file of a portable bundle as its manifest says.
        batch_max: the largest batch of a profile.
        max_activation_mib: bound, MiB; None is an eighth of the target's memory.
        timeout_s: of the compile, s.
    """

    tensorrt: str | None = None
    compile_model: bool = True
    require_compile: bool = False
    precision: Literal["fp32", "fp16"] | None = None
    batch_max: int = 1
    max_activation_mib: float | None = None
    timeout_s: float = rtx.TIMEOUT_S


def model_file(
    path: Path, tensorrt: tuple[int, ...] | None = None
) -> tuple[Path, Literal["fp32", "fp16"] | None]:
    """The ONNX file of a bundle, or the path itself; and what its engine is to compute in.

    Of a portable bundle the one that this TensorRT would build first: the lowest precision, told by
    flags where the version has them.

    A signer that ``EDGEKD_SIGNER`` requires is required here, too. The file is then read by its
    path: who can exchange files meanwhile can mislead a check, not a session.

    Raises:
        BundleError: the bundle is damaged, or not signed as required.
        InputError: the bundle's model is no ONNX file.
    """
    if not (path.is_dir() and (path / MANIFEST_NAME).is_file()):
        return path, None
    opened = open_bundle(path, requirements())
    opened.check_files()
    manifest = opened.manifest
    if manifest.portable and tensorrt is not None:
        typing = "flags" if tensorrt < STRONG_FROM else "graph"
        for item in manifest.portable:
            if item.suits(tensorrt) and item.typing == typing:
                # as a build meant it
                return path / item.file, "fp16" if item.lowered else "fp32"
    model = path / manifest.model
    if model.suffix != ".onnx":
        raise InputError(
            f"the model of bundle {path} is {manifest.model}, not ONNX; check the .onnx file that "
            "it was built from"
        )
    return model, None


def check_model(path: Path, target: Target, options: Options | None = None) -> CheckReport:
    """Apply the target's rules to a model and compile it.

    Args:
        path: an ``.onnx`` file or a bundle that holds one.
        target: class of device.
        options: how.

    Raises:
        InputError: the model cannot be read, or a TensorRT version makes no sense here.
        EnvironmentLacksError: compiling was required and is not possible here.
    """
    options = options or Options()
    version = _version(target, options.tensorrt)
    if options.tensorrt is not None:
        target = target.model_copy(update={"tensorrt": options.tensorrt})
    if options.precision is not None and target.backend != "trt":
        raise InputError(
            f"--precision {options.precision} does not apply: target {target.name} runs the model "
            "with ONNX Runtime, which computes in what the file holds"
        )
    model, precision = model_file(path, version if target.backend == "trt" else None)
    context = Context(target, version, options.precision or precision)
    graph = read_graph(model)
    findings = rules.apply([*rules.RULES, *rules_onnxrt.RULES], graph, context)
    if not any(item.rule == "external-data" for item in findings):
        findings += _valid(model, graph)
    compiled = _compile(model, graph, target, findings, options)
    lowered = context.lowered and rules.computes_in_fp32(graph)
    findings += compiled.findings + _memory(compiled.facts, target, options, lowered)
    findings = by_severity(findings)
    trt = target.backend == "trt"
    return CheckReport(
        model=str(model),
        sha256=sha256_file(model),
        target=target.name,
        backend=target.backend,
        tensorrt=shown(context.version) if trt else None,
        onnxruntime=None if trt else shown(context.version),
        verdict="fail" if any(item.severity == "error" for item in findings) else "pass",
        findings=findings,
        graph=_facts(model, graph),
        compile=compiled.facts,
    )


def require_fit(path: Path, target: Target, options: Options | None = None) -> CheckReport:
    """The gate of a build: check, and raise with the first reason when the verdict is no.

    Args:
        path: an ONNX file.
        target: class of device.
        options: how.

    Raises:
        GateError: the target would refuse the model.
    """
    report = check_model(path, target, options)
    if report.errors:
        raise refusal(report, "; no bundle was written")
    return report


def refusal(report: CheckReport, end: str = "") -> GateError:
    """The error for a report whose verdict is no."""
    first, more = report.errors[0], len(report.errors) - 1
    node = f"{first.nodes[0]}: " if first.nodes else ""
    rest = f" (and {more} more)" if more else ""
    return GateError(
        f"{report.model} does not suit {report.target}: {first.rule}: {node}{first.reason}; "
        f"{first.fix}{rest}{end}"
    )


def _version(target: Target, asked: str | None) -> tuple[int, int]:
    if target.backend == "onnxrt":
        if asked is not None:
            raise InputError(
                f"--tensorrt {asked} does not apply: target {target.name} runs the model with ONNX "
                "Runtime; name a target with backend trt (edgekd ls targets)"
            )
        return parse_version(target.onnxruntime or "")
    first, end = TENSORRT_KNOWN
    try:
        version = parse_version(asked or target.tensorrt or "")
    except ValueError as err:
        raise InputError(f"--tensorrt: {err}") from err
    if not first <= version < end:
        raise InputError(
            f"no rules are known for TensorRT {shown(version)}; expected {shown(first)} to "
            f"{end[0] - 1}.x"
        )
    return version


def _valid(model: Path, graph: Graph) -> list[Finding]:
    """What the ONNX checker says, where this onnx knows the opset."""
    reason = graph.problem
    if graph.opset > onnx.defs.onnx_opset_version():
        return []
    try:
        onnx.checker.check_model(str(model))
    except (onnx.checker.ValidationError, ValueError) as err:
        reason = " ".join(str(err).split("==> Context")[0].split())[:300]
    if not reason:
        return []
    return [
        Finding(
            rule="onnx.valid",
            severity="error",
            reason=f"not valid ONNX: {reason}",
            fix="export it again",
            source=f"onnx {onnx.__version__}",
        )
    ]


def _compile(
    model: Path, graph: Graph, target: Target, findings: list[Finding], options: Options
) -> rtx.Compiled:
    reason = ""
    if not options.compile_model:
        reason = "it was not asked for"
    elif any(item.rule == "external-data" for item in findings):
        reason = "values of the model are missing"
    if target.backend == "onnxrt":
        return rtx.Compiled(_not_done(reason)) if reason else _load(model, target)
    if not reason:
        compiled = rtx.compile_model(
            model, graph, target, batch_max=options.batch_max, timeout_s=options.timeout_s
        )
        reason = compiled.facts.reason if compiled.facts.status == "not_done" else ""
        if not reason:
            return compiled
    if options.require_compile:
        raise EnvironmentLacksError(f"the model was to be compiled and was not: {reason}")
    finding = Finding(
        rule="compile.not-done",
        severity="warning",
        reason=f"the model was not compiled, so fusion and memory are unknown: {reason}",
        fix="install the extra, or look at the board's build log",
        source="edgekd",
    )
    return rtx.Compiled(_not_done(reason), [finding])


def _not_done(reason: str) -> CompileFacts:
    return CompileFacts(status="not_done", reason=reason)


def _load(model: Path, target: Target) -> rtx.Compiled:
    """Open the model with the ONNX Runtime that is here; it stands in for the device's."""
    from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend

    start = time.monotonic()
    try:
        with OnnxRuntimeBackend(model, threads=1) as backend:
            version = backend.details["onnxruntime"]
    except EnvironmentLacksError as err:
        return rtx.Compiled(_not_done(str(err)))
    except BundleError as err:
        finding = Finding(
            rule="compile.load",
            severity="error",
            reason=str(err).replace(str(model), "the model"),
            fix="export or quantise it again",
            source="ONNX Runtime",
        )
        facts = CompileFacts(status="failed", reason=finding.reason, library="ONNX Runtime")
        return rtx.Compiled(facts, [finding])
    return rtx.Compiled(
        CompileFacts(
            status="done",
            library="ONNX Runtime",
            version=version,
            stand_in=f"loaded here; {target.title} may have {target.onnxruntime} or later",
            seconds=round(time.monotonic() - start, 2),
        )
    )


def _memory(facts: CompileFacts, target: Target, options: Options, lowered: bool) -> list[Finding]:
    """Activations over the bound; what the builder's flag will lower was compiled as FP32 here."""
    bound, whose = options.max_activation_mib, "asked for"
    if bound is None:
        if target.memory_mib is None:
            return []
        bound = target.memory_mib * ACTIVATION_SHARE
        whose = f"an eighth of the memory of {target.title}"
    if facts.activation_mib is None or facts.activation_mib <= bound:
        return []
    return [
        Finding(
            rule="compile.activation-memory",
            severity="warning" if lowered and options.max_activation_mib is None else "error",
            reason=f"activations take {facts.activation_mib:.0f} MiB, allowed are {bound:.0f} "
            f"({whose})",
            fix="build in fp16 so that attention fuses, take a smaller tile or batch, or raise "
            "--max-activation-mib",
            source="TensorRT-RTX",
        )
    ]


def _facts(model: Path, graph: Graph) -> GraphFacts:
    sizes = [model.stat().st_size]
    for location in {item[1] for item in graph.external}:
        path = graph.folder / location
        sizes.append(path.stat().st_size if path.is_file() else 0)
    return GraphFacts(
        opset=graph.opset,
        nodes=len(graph.nodes),
        precision=rules.precisions(graph),
        attentions=[
            AttentionFacts(
                node=title(item.softmax),
                dtype=type_name(item.dtype) if item.dtype else None,
                tokens=item.tokens,
                head_size=item.head_size,
                quantized=item.quantized,
            )
            for item in graph.attentions
        ],
        quantized_gemms=len(graph.quantized_gemms),
        size_mib=round(sum(sizes) / _MIB, 2),
    )
