"""Compile a model with TensorRT-RTX, without a GPU, in a process that may die.

TensorRT-RTX (extra ``check``) has NVIDIA's real ONNX parser and builder. It is not the TensorRT of
a Jetson: strongly typed always, other tactics, no DLA, a parser of the 11.x generation. A failure
there is expected to be one on TensorRT 11 and mostly on 10.x; a pass says that the graph is valid
and that it compiles and fuses for an Ampere GPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.contracts.optional import available
from edgekd.contracts.target import Target
from edgekd.deploy.check.graph import Graph
from edgekd.deploy.check.report import CompileFacts, Finding, Severity
from edgekd.errors import EnvironmentLacksError

MODULE = "tensorrt_rtx"
VARIABLE = "EDGEKD_TRT_RTX_PYTHON"
INSTALL = 'pip install "edgekd[check]"'
#: seconds until a compile is given up; ViT-Small at 1024 px takes 2 to 5.
TIMEOUT_S = 600.0
#: bound of the compiling process's memory, MiB; ViT-Small at 1024 px takes about 600.
MEMORY_MIB = 6144
#: compute capability of a target -> what may stand in for it, nearest first.
_STAND_IN = {"8.7": ["SM86"]}
_MIB = float(1 << 20)
_SOURCE = "TensorRT-RTX"
_MAX_WARNINGS = 8
#: what every model prints and nobody can act on.
_NOISE = ("Using PyTorch", "unsupported in TensorRT-RTX", "driver", "scales to fp32")


@dataclass(frozen=True)
class Compiled:
    """Facts of a compile and the findings it gives."""

    facts: CompileFacts
    findings: list[Finding] = field(default_factory=list)


def interpreter() -> str | None:
    """The Python that has TensorRT-RTX: what the variable names, else this one; None without.

    Raises:
        EnvironmentLacksError: the variable names no program.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if not os.access(given, os.X_OK) or Path(given).is_dir():
            raise EnvironmentLacksError(
                f"{VARIABLE}={given} is no program; give the path of a python that has "
                "tensorrt-rtx, or unset it"
            )
        return given
    return sys.executable if available(MODULE) else None


def capabilities(target: Target) -> list[str]:
    """``SM87`` and what may stand in for it, nearest first."""
    asked = target.compute_capability or ""
    return ["SM" + asked.replace(".", ""), *_STAND_IN.get(asked, [])]


def compile_model(
    model: Path,
    graph: Graph,
    target: Target,
    batch_max: int = 1,
    timeout_s: float = TIMEOUT_S,
    memory_mib: int = MEMORY_MIB,
) -> Compiled:
    """Compile in a child process; whatever happens to it becomes a finding.

    Args:
        model: the ONNX file.
        graph: the same, read; what should fuse is counted in it.
        target: for its compute capability.
        batch_max: a free batch is compiled for 1 to this many tiles.
        timeout_s: wall clock, s.
        memory_mib: bound of the child's own memory, MiB; 0 is none.

    Raises:
        EnvironmentLacksError: the variable names a python that cannot be run or has no
            TensorRT-RTX (where nothing is named and nothing installed, ``status`` is "not_done").
    """
    python = interpreter()
    if python is None:
        return Compiled(
            CompileFacts(status="not_done", reason=f"TensorRT-RTX is not installed; {INSTALL}")
        )
    names = capabilities(target)
    request = {
        "model": str(model.resolve()),
        "capabilities": names,
        "batch_max": batch_max,
        "memory_mib": memory_mib,
    }
    start = time.monotonic()
    answer, died = _child(python, request, timeout_s)
    seconds = time.monotonic() - start
    if answer.get("missing") or answer.get("stage") in (None, "import"):
        why = answer.get("missing") or died or "it ended without an answer"
        raise EnvironmentLacksError(
            f"{python} cannot use TensorRT-RTX ({why}); type: "
            f"{python} -m pip install tensorrt-rtx==1.7.1.116"
            + (f", or unset {VARIABLE}" if os.environ.get(VARIABLE) else "")
        )
    return _judge(answer, died, graph, target, batch_max, seconds)


def _child(python: str, request: dict[str, Any], timeout_s: float) -> tuple[dict[str, Any], str]:
    """(answer so far, how the process died or an empty text)."""
    program = Path(__file__).with_name("rtx_child.py")
    with tempfile.TemporaryDirectory(prefix="edgekd-check-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        try:
            process = subprocess.Popen(
                [python, str(program), str(asked), str(answered)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as err:
            return {}, str(err.strerror or err)
        died = ""
        try:
            _, said = process.communicate(timeout=timeout_s)
            died = _how(process.returncode, said)
        except subprocess.TimeoutExpired:
            died = f"it did not end within {timeout_s:g} s"
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        answer: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            answer = json.loads(answered.read_text(encoding="utf-8"))
        return answer, died


def _how(code: int, said: str) -> str:
    if code == 0:
        return ""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = f": {lines[-1][:200]}" if lines else ""
    if code == -signal.SIGKILL:
        return "it was killed, most likely because memory ran out"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"it ended by {signal.Signals(-code).name}{last}"
    return f"it ended with {code}{last}"


def _judge(
    answer: dict[str, Any],
    died: str,
    graph: Graph,
    target: Target,
    batch_max: int,
    seconds: float,
) -> Compiled:
    findings = _together([_fault(item, answer["stage"]) for item in answer["errors"]])
    if died and answer["stage"] != "done":
        findings.append(
            _finding(
                "compile.crash",
                "error",
                f"the compiler died while it was to {answer['stage']} the model: {died}",
                "look for operators or shapes that only this model has; nothing can be said about "
                "the board",
            )
        )
    memory = answer.get("memory_bytes", {})
    done = answer["stage"] == "done"
    facts = CompileFacts(
        status="done" if done else "failed",
        reason="" if done else (findings[0].reason if findings else "no answer"),
        library=_SOURCE,
        version=answer.get("version", ""),
        stand_in=_stand_in(answer.get("capability"), target),
        batch_max=batch_max,
        kernels=answer.get("kernels"),
        fused_attention=answer.get("fused_attention"),
        int8_gemms=answer.get("int8_gemms"),
        plan_mib=_mib(answer.get("plan_bytes")),
        activation_mib=_mib(memory.get("activation") if done else None),
        weights_mib=_mib(memory.get("weights") if done else None),
        peak_mib=_mib(answer.get("peak_bytes")),
        seconds=round(seconds, 2),
    )
    if done:
        findings += _expectations(facts, graph)
    findings += _warnings(answer["warnings"])
    return Compiled(facts, findings)


def _mib(count: int | None) -> float | None:
    return None if count is None else round(count / _MIB, 2)


def _stand_in(used: str | None, target: Target) -> str:
    asked = capabilities(target)[0]
    if used is None:
        return ""
    if used == asked:
        return f"compiled for {used}; TensorRT-RTX stands in for TensorRT {target.tensorrt}"
    return (
        f"{used} stands in for {asked} ({target.title}), TensorRT-RTX for TensorRT "
        f"{target.tensorrt}: says nothing about speed there"
    )


def _finding(
    rule: str, severity: Severity, reason: str, fix: str, nodes: list[str] | None = None
) -> Finding:
    return Finding(
        rule=rule, severity=severity, nodes=nodes or [], reason=reason, fix=fix, source=_SOURCE
    )


def _fault(item: dict[str, str], stage: str) -> Finding:
    text = _reason(item["why"])
    node = item["node"] or item["op"]
    if stage == "parse":
        kind = f"{item['op']}: " if item["op"] else ""
        if text in ("", "false"):  # an assertion without words
            kind, text = item["op"], "" if item["op"] else "the model"
        return _finding("compile.parse", "error", f"the parser refuses {kind}{text}",
                        "change this node or export with edgekd export",
                        [node] if node else [])  # fmt: skip
    return _finding(
        "compile.build", "error", f"the builder refuses the model: {text}",
        "change what it names or export with edgekd export",
    )  # fmt: skip


def _together(findings: list[Finding]) -> list[Finding]:
    """Findings of the same reason as one, with all their nodes."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for item in findings:
        found.setdefault((item.rule, item.reason), []).append(item)
    return [
        same[0].model_copy(update={"nodes": [node for item in same for node in item.nodes]})
        for same in found.values()
    ]


def _reason(text: str) -> str:
    """The telling part of a message: without source files, assertions and repeated spaces."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if len(line) > 20), lines[-1] if lines else "")
    if lines and len(lines) > 1 and "Assertion" not in " ".join(lines):
        text = " ".join(lines)
    text = re.sub(r"^(ITensor|IBuilder|[A-Za-z:]+)::\S+: ", "", text)
    text = re.sub(r"\[[\w./]+\.(?:cpp|h)[^\]]*\]\s*|^\w+\.cpp:\d+: ", "", text)
    text = re.sub(r"^Assertion failed: (\(.*?\)|\w+): ", "", text)
    text = re.sub(r'^\(.*?\) && "(.*)"$', r"\1", text)
    text = re.sub(r"\s*Error Code \d+: Cuda.*$", "", text)  # no driver here
    text = re.sub(r" In \w+ at \S+:\d+\)", ")", text)
    return text.strip().rstrip(".;")[:400]


def _expectations(facts: CompileFacts, graph: Graph) -> list[Finding]:
    """What the graph promises and the kernels do not show."""
    findings = []
    able = [
        item.softmax.name or item.softmax.output[0]
        for item in graph.attentions
        if graph.is_half(item.dtype)
    ]
    fused = facts.fused_attention or 0
    if fused < len(able):
        findings.append(
            _finding(
                "compile.attention",
                "error",
                f"{fused} of {len(able)} attentions in FP16 or BF16 were fused: the others write "
                "every score to memory",
                "spell attention softmax(QK^T)V with the scale on Q, two heads or more of 16 to "
                "256 channels, without Q/DQ at its products",
                able if fused == 0 else [],
            )
        )
    wanted, got = len(graph.quantized_gemms), facts.int8_gemms or 0
    if got < wanted:
        findings.append(
            _finding(
                "compile.int8",
                "warning",
                f"{got} of {wanted} quantised products run in INT8",
                "look where Q/DQ stands: directly in front of both inputs",
            )
        )
    return findings


def _warnings(texts: list[str]) -> list[Finding]:
    findings = []
    for text in texts:
        if "layernorm nodes in FP16" in text:
            findings.append(
                _finding(
                    "compile.layernorm-fp16",
                    "warning",
                    "the compiler found a LayerNorm in FP16, which may overflow",
                    "use the LayerNormalization operator (opset 17), or keep it in FP32",
                )
            )
        elif not any(word in text for word in _NOISE):
            findings.append(_finding("compile.warning", "info", _reason(text), "for information"))
    return findings[:_MAX_WARNINGS]
