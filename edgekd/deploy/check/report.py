"""What a check says: findings, facts about the graph, facts of the compile, and the verdict."""

from __future__ import annotations

from typing import Any, Literal

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.schema import Document

REPORT_SCHEMA = 1
Severity = Literal["error", "warning", "info"]
_ORDER = {"error": 0, "warning": 1, "info": 2}


class Finding(Document):
    """One thing found; findings of a rule with the same reason are one, with all their nodes.

    Attributes:
        rule: id of the rule, e.g. ``qdq.zero-point``; those of a compile begin with ``compile.``.
        nodes: names of the nodes concerned, in graph order; empty where the model as a whole is.
        reason: what was found and why it matters.
        fix: what to do.
        source: where the fact comes from.
    """

    rule: str
    severity: Severity
    nodes: list[str] = []
    reason: str
    fix: str
    source: str

    def line(self) -> str:
        """The finding in one line for a person."""
        where = ""
        if self.nodes:
            more = len(self.nodes) - 1
            where = self.nodes[0] + (f" and {more} more" if more else "") + ": "
        return f"{self.severity.ljust(7)} {self.rule}  {where}{self.reason}; {self.fix}"


class AttentionFacts(Document):
    """One attention: softmax between two products of activations, or an ``Attention`` operator.

    Attributes:
        node: of the softmax or operator.
        dtype: of the first product's inputs, e.g. ``float16``; None where it cannot be derived.
        tokens: keys per query; None where it cannot be derived.
        head_size: channels per head; None where it cannot be derived.
        quantized: Q/DQ stands at one of the products or between them.
    """

    node: str
    dtype: str | None
    tokens: int | None
    head_size: int | None
    quantized: bool


class GraphFacts(Document):
    """What the graph itself says, without any library.

    Attributes:
        opset: of the default domain.
        nodes: count.
        precision: what the products and convolutions compute in: some of fp32, fp16, bf16, int8.
        attentions: all found.
        quantized_gemms: matrix products and convolutions with Q/DQ on both inputs.
        size_mib: of the file and its external data, MiB.
    """

    opset: int
    nodes: int
    precision: list[str]
    attentions: list[AttentionFacts]
    quantized_gemms: int
    size_mib: float


class CompileFacts(Document):
    """What compiling the model, or loading it, gave.

    Attributes:
        status: ``done``; ``failed`` (there is a finding); ``not_done`` (``reason`` says why).
        library, version: what did it, e.g. ``TensorRT-RTX`` 1.7.1.116.
        stand_in: what stood in for the target's own library and device, and what that cannot say.
        batch_max: the profile was 1 to this many tiles.
        kernels, fused_attention, int8_gemms: counted in the compiled kernels.
        plan_mib, activation_mib, weights_mib: MiB, as the compiler reports them.
        peak_mib: largest resident memory of the compiling process, MiB.
        seconds: wall clock, start of the process included, s.
    """

    status: Literal["done", "failed", "not_done"]
    reason: str = ""
    library: str = ""
    version: str = ""
    stand_in: str = ""
    batch_max: int | None = None
    kernels: int | None = None
    fused_attention: int | None = None
    int8_gemms: int | None = None
    plan_mib: float | None = None
    activation_mib: float | None = None
    weights_mib: float | None = None
    peak_mib: float | None = None
    seconds: float | None = None


class CheckReport(Document):
    """Outcome of :func:`edgekd.deploy.check.run.check_model`.

    Attributes:
        model: the file that was looked at; of a bundle, the one inside it.
        tensorrt: version whose rules were applied; None where TensorRT rules do not apply.
        onnxruntime: likewise.
        verdict: ``fail`` when any finding is an error.
        graph: None where the file could not be read as a graph.
    """

    schema_version: Literal[1] = pydantic.Field(default=1, alias="schema")
    model: str
    sha256: Sha256
    target: str
    backend: Literal["onnxrt", "trt"]
    tensorrt: str | None = None
    onnxruntime: str | None = None
    verdict: Literal["pass", "fail"]
    findings: list[Finding]
    graph: GraphFacts | None
    compile: CompileFacts

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> CheckReport:
        if (self.verdict == "fail") != bool(self.errors):
            raise ValueError("the verdict does not follow from the findings")
        return self

    @property
    def lowered(self) -> bool:
        """What was compiled is not what a builder told by flags makes of it."""
        return any(item.rule == "precision.flag" for item in self.findings)

    @property
    def errors(self) -> list[Finding]:
        """The findings that refuse the model."""
        return [item for item in self.findings if item.severity == "error"]

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return self.model_dump(mode="json", by_alias=True)

    def lines(self) -> list[str]:
        """The report for a person: a finding per line, then the figures, then the verdict."""
        lines = [item.line() for item in self.findings]
        if self.graph is not None:
            attention = len(self.graph.attentions)
            lines.append(
                f"graph   opset {self.graph.opset}, {self.graph.nodes} nodes, "
                f"{'+'.join(self.graph.precision) or 'no arithmetic'}, {attention} attentions, "
                f"{self.graph.quantized_gemms} quantised products, {self.graph.size_mib:.1f} MiB"
            )
        lines.append(f"compile {self.compile_line()}")
        count = {kind: sum(f.severity == kind for f in self.findings) for kind in _ORDER}
        lines.append(
            f"{'pass' if self.verdict == 'pass' else 'FAIL'}: {self.model} for {self.target}, "
            f"rules of {self.rules_line()}: {count['error']} errors, {count['warning']} warnings"
        )
        return lines

    def rules_line(self) -> str:
        """Whose rules were applied."""
        if self.tensorrt:
            return f"TensorRT {self.tensorrt}"
        return f"ONNX Runtime {self.onnxruntime} (TensorRT rules do not apply)"

    def compile_line(self) -> str:
        """What was compiled, with what, and what it showed."""
        done = self.compile
        who = f"{done.library} {done.version}".strip()
        if done.status != "done":
            return f"{done.status.replace('_', ' ')}: {done.reason}"
        parts = [who]
        if self.backend == "trt":
            total = len(self.graph.attentions) if self.graph else 0
            parts += [
                *(["as FP32, which the flag lowers on the board"] if self.lowered else []),
                f"fused attention {done.fused_attention} of {total}",
                f"{done.int8_gemms} INT8 products",
                f"activations {done.activation_mib:.0f} MiB",
                f"weights {done.weights_mib:.0f} MiB",
                f"plan {done.plan_mib:.1f} MiB",
                f"batch 1 to {done.batch_max}",
            ]
        parts.append(f"{done.seconds:.1f} s")
        return ", ".join(parts) + (f"; {done.stand_in}" if done.stand_in else "")


def by_severity(findings: list[Finding]) -> list[Finding]:
    """Errors first, then warnings; the order within a severity stays."""
    return sorted(findings, key=lambda item: _ORDER[item.severity])
