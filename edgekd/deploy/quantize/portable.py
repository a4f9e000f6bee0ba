"""The ONNX files from which a board with TensorRT builds its engine, all from one calibration.

TensorRT changed how it learns precisions (developer guide, "Strongly typed networks"; release
notes of 10.12 and 11.0): up to 10.11 the builder's flags lower an FP32 graph, and scales of Q/DQ
are FP32; from 10.12 on the types stand in the graph, and 11 has no flags left. Both forms go into
a portable bundle, so that an update of the board does not need the build host. Which precision is
faster only the board can tell: every precision that keeps the gates goes along.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from edgekd.contracts.manifest import CandidateDone, Gate, PortableModel, PrecisionDone, row
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.target import Target
from edgekd.deploy.export.graph import lift
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.grounds import (
    Grounds,
    Say,
    calibration_done,
    candidate,
    refusal,
)
from edgekd.deploy.quantize.half import high_nodes, overflowing, to_half
from edgekd.deploy.quantize.judge import Quality
from edgekd.deploy.quantize.layers import Layer, module_of
from edgekd.deploy.quantize.lower import asked_of
from edgekd.deploy.quantize.material import Material
from edgekd.deploy.quantize.ranges import CalibrationFile
from edgekd.deploy.quantize.search import search

#: flags of the builder exist from TensorRT 8 and are gone in 11; NVIDIA calls strong typing fully
#: available from 10.12, the flag for it is in the bindings from 10.3 on (API table).
FLAGS, GRAPH = ("8.6", "10.12"), ("10.3", "12.0")
#: a board rounds elsewhere than the emulation: part of the golden cells that may differ more
GOLDEN_SLACK = 0.005
#: the largest difference of a golden logit to FP32 that a board may have, of the emulation's
BOARD_FACTOR = 2.0
_FILES = {
    ("fp32", "flags"): "fp32.onnx",
    ("fp32", "graph"): "fp32.onnx",
    ("fp16", "flags"): "fp32.onnx",  # lowered by the flag
    ("fp16", "graph"): "fp16-typed.onnx",
    ("int8", "flags"): "int8.onnx",
    ("int8", "graph"): "int8-typed.onnx",
}


@dataclass(frozen=True)
class Portable:
    """What goes into a portable bundle.

    Attributes:
        files: name -> graph.
        models: what can be built from them, the lowest precision first.
        precision, gates, calibration: for the manifest and beside it.
    """

    files: dict[str, onnx.ModelProto]
    models: list[PortableModel]
    precision: PrecisionDone
    gates: list[Gate] = field(default_factory=list)
    calibration: CalibrationFile | None = None


@dataclass(frozen=True)
class _Tried:
    precision: str
    typed: onnx.ModelProto
    flags: onnx.ModelProto
    keep: list[str]
    quality: Quality
    passed: bool
    candidate: CandidateDone
    bounds: tuple[float, float]
    sensitivity: dict[str, float]


def portable(
    proto: onnx.ModelProto,
    recipe: Recipe,
    target: Target,
    material: Material,
    atol: float,
    say: Say = lambda text: None,
) -> Portable:
    """Every allowed precision that keeps the gates, in every form that a TensorRT may need.

    Args:
        proto: the export, FP32.
        recipe: with allowed precisions, calibration and gates.
        target: with the backend ``trt``.
        material: what calibrates and judges.
        atol: bound of an FP32 engine's golden outputs, logits.
        say: called with a line for every step.

    Raises:
        InputError: nothing is allowed that the target holds, or samples are missing.
        GateError: no allowed precision keeps the gates; the message holds the table.
    """
    asked = asked_of(recipe, target)
    full = _models("fp32", [], (atol, 1.0 - GOLDEN_SLACK))
    if asked == ["fp32"]:
        return Portable({"fp32.onnx": proto}, full, PrecisionDone(asked=asked, done=None))
    grounds = Grounds(proto, recipe, material, say)
    calibration = grounds.calibrate()
    making = _Making(grounds, calibration, atol)
    tried = []
    if "int8" in asked:
        tried.append(making.int8())
    if "fp16" in asked:
        tried.append(making.fp16())
    kept = [item for item in tried if item.passed]
    fp32 = grounds.candidate(proto.ByteSize())
    if not kept and "fp32" in asked:
        fp32 = fp32.model_copy(
            update={"chosen": True, "why": "what is left when lower precisions are refused"}
        )
    candidates = [fp32, *(item.candidate for item in reversed(tried))]
    for line in map(row, candidates):
        say(line)
    if not kept and "fp32" not in asked:
        sensitivity = next((item.sensitivity for item in tried if item.sensitivity), {})
        raise refusal(candidates, sensitivity, asked)
    files: dict[str, onnx.ModelProto] = {}
    models: list[PortableModel] = []
    for item in kept:
        files[_FILES[item.precision, "flags"]] = item.flags
        files[_FILES[item.precision, "graph"]] = item.typed
        models += _models(item.precision, item.keep, item.bounds)
    if "fp32" in asked:  # what is left should the board refuse the others
        files, models = {**files, "fp32.onnx": proto}, [*models, *full]
    return Portable(
        files=files,
        models=models,
        precision=PrecisionDone(
            asked=asked,
            done=None,
            kept_high=next((i.candidate.kept_high for i in kept if i.precision == "int8"), []),
            calibration=calibration_done(calibration),
            candidates=candidates,
            sensitivity=next((i.sensitivity for i in tried if i.sensitivity), {}),
        ),
        gates=[gate for i in kept for gate in grounds.gates(i.quality, f"_{i.precision}")],
        calibration=calibration,
    )


def _models(precision: str, keep: list[str], bounds: tuple[float, float]) -> list[PortableModel]:
    made = []
    for typing, (first, end) in (("flags", FLAGS), ("graph", GRAPH)):
        made.append(
            PortableModel.model_validate(
                {
                    "file": _FILES[precision, typing],
                    "precision": precision,
                    "typing": typing,
                    "tensorrt_from": first,
                    "tensorrt_below": end,
                    "keep_fp32": keep if typing == "flags" else [],
                    "golden_atol": bounds[0],
                    "golden_agreement_min": bounds[1],
                }
            )
        )
    return made


class _Making:
    def __init__(self, grounds: Grounds, calibration: CalibrationFile, atol: float) -> None:
        self._grounds, self._atol = grounds, atol
        self._calibration = calibration
        self._too_large = overflowing(calibration.largest)
        patterns = grounds.recipe.precision.keep_high
        self._keep = {
            node.name
            for node in grounds.proto.graph.node
            if any(fnmatch.fnmatch(module_of(node), pattern) for pattern in patterns)
        }

    def int8(self) -> _Tried:
        """INT8 where the search leaves it, FP16 around."""

        def finish(graph: onnx.ModelProto) -> onnx.ModelProto:
            return self._typed(lift(graph), self._keep)

        found = self._grounds.int8(self._calibration, finish=finish)
        return self._tried(
            "int8", finish(found.graph()), found.graph(weights_as_int8=False), found.proto,
            self._keep, found.quality, found.kept_high, found.sensitivity,
        )  # fmt: skip

    def fp16(self) -> _Tried:
        """FP16, with islands of FP32 where tensors are too large or the gates need it."""
        grounds, proto = self._grounds, self._grounds.proto
        typed = self._typed(proto, self._keep)
        grounds.say("judge fp16")
        quality = grounds.judge(emulate(typed))
        if grounds.passes(quality):
            return self._tried("fp16", typed, proto, proto, self._keep, quality, [], {})
        names = list(dict.fromkeys(module_of(node) for node in proto.graph.node))
        modules = [Layer(name, "linear", "", "", "", 0) for name in names]

        def kept(chosen: Sequence[Layer]) -> set[str]:
            low = {item.name for item in chosen}
            high = {node.name for node in proto.graph.node if module_of(node) not in low}
            return high | self._keep

        found = search(
            modules, lambda chosen: emulate(self._typed(proto, kept(chosen))), grounds.judge,
            grounds.passes, grounds.say,
        )  # fmt: skip
        high = set(found.kept_high)
        keep = kept([item for item in modules if item.name not in high])
        return self._tried(
            "fp16", self._typed(proto, keep), proto, proto, keep, found.quality,
            found.kept_high, found.sensitivity,
        )  # fmt: skip

    def _typed(self, proto: onnx.ModelProto, keep: set[str]) -> onnx.ModelProto:
        return to_half(proto, keep, self._too_large)

    def _tried(
        self,
        precision: str,
        typed: onnx.ModelProto,
        flags: onnx.ModelProto,
        proto: onnx.ModelProto,
        keep: set[str],
        quality: Quality,
        kept_high: list[str],
        sensitivity: dict[str, float],
    ) -> _Tried:
        grounds = self._grounds
        passed = grounds.passes(quality)
        # The golden tiles are among those that were judged: the first and the last.
        worst, same = quality.ends_max_abs, quality.ends_agreement
        islands = high_nodes(proto, keep, self._too_large)
        # NVIDIA, "Accuracy considerations": a LayerNorm in FP16 may overflow, hold it in FP32.
        norms = [n.name for n in proto.graph.node if n.op_type == "LayerNormalization"]
        why = grounds.why(quality, len(kept_high))
        if islands:
            why += f", {len(islands)} nodes in FP32"
        return _Tried(
            precision=precision,
            typed=typed,
            flags=flags,
            keep=list(dict.fromkeys([*islands, *norms])),
            quality=quality,
            passed=passed,
            candidate=candidate(
                precision, quality, typed.ByteSize(), kept_high=kept_high, chosen=passed,
                why=f"{why}; the board times it" if passed else why,
            ),
            bounds=(
                max(BOARD_FACTOR * worst, self._atol) if np.isfinite(worst) else 1.0,
                max(same - GOLDEN_SLACK, 0.0),
            ),
            sensitivity=sensitivity,
        )  # fmt: skip
