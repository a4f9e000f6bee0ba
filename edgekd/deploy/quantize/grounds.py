"""What every precision of one product is made from and measured with: samples, judge and gates.

One calibration serves all files: it gives INT8 its ranges and tells FP16 which tensors it cannot
hold.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from edgekd.contracts.manifest import CalibrationDone, CandidateDone, Gate, row
from edgekd.contracts.place_recipe import AnyRecipe
from edgekd.deploy.parity import Model
from edgekd.deploy.quantize.calibrate import Activations, observe
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.integer import Integer, insert_integer, outputs
from edgekd.deploy.quantize.judge import Judge, Quality
from edgekd.deploy.quantize.layers import Layer, choose_layers, find_layers, require_modules
from edgekd.deploy.quantize.material import Images as Images
from edgekd.deploy.quantize.material import Material
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.deploy.quantize.ranges import CalibrationFile, calibration_file, read_calibration
from edgekd.deploy.quantize.search import search
from edgekd.deploy.quantize.smooth import smooth
from edgekd.errors import GateError, InputError

#: golden outputs come from ONNX Runtime on the build host; on another processor the same float32
#: graph differs by the order of its sums, so the bound is wider than the export's.
GOLDEN_FACTOR = 10.0

#: layers that a refusal names
SHOWN_LAYERS = 5

Say = Callable[[str], None]


def golden_atol(recipe: AnyRecipe) -> float:
    """Bound of FP32's golden outputs on another machine, logits."""
    if recipe.gates.golden is not None:
        return recipe.gates.golden.atol
    return recipe.gates.onnx_vs_torch.atol * GOLDEN_FACTOR


@dataclass(frozen=True)
class Int8:
    """Where the search for an INT8 model ended.

    Attributes:
        proto: FP32, rescaled where the recipe says so.
        layers: that are in INT8.
        ranges: layer's input -> absolute value that becomes 127.
        quality, passed, why: of the model as it was emulated in the search.
        kept_high: layers that had to stay high, the worst first.
        sensitivity: layer -> noise when it alone is lowered; empty where the gates held at once.
        integer: chains of convolutions are in integers end to end; None: products alone are.
    """

    proto: onnx.ModelProto
    layers: list[Layer]
    ranges: dict[str, float]
    quality: Quality
    passed: bool
    why: str
    kept_high: list[str]
    sensitivity: dict[str, float]
    integer: Integer | None = None

    def graph(self, weight_bits: int = 8, weights_as_int8: bool = True) -> onnx.ModelProto:
        """FP32 with Q/DQ; see :func:`~edgekd.deploy.quantize.qdq.insert_qdq` and, where that is
        the layout, :func:`~edgekd.deploy.quantize.integer.insert_integer`."""
        if self.integer is not None:
            return insert_integer(self.proto, self.layers, self.ranges, self.integer, weight_bits)
        return insert_qdq(
            self.proto, self.layers, self.ranges, weight_bits=weight_bits,
            weights_as_int8=weights_as_int8,
        )  # fmt: skip


class Grounds:
    """Samples, FP32's answers and the gates.

    Args:
        proto: the export, FP32.
        recipe: with precision, calibration and gates.
        material: what it is calibrated and judged on.
        say: called with a line for every step.

    Raises:
        InputError: nothing labelled to judge on, or a calibration file of another model.
    """

    def __init__(
        self, proto: onnx.ModelProto, recipe: AnyRecipe, material: Material, say: Say
    ) -> None:
        material.require()
        self.proto, self.recipe, self.material, self.say = proto, recipe, material, say
        require_modules(proto, recipe.precision.keep_high)
        self.saved = None if material.saved is None else read_calibration(material.saved)
        if self.saved is not None and material.saved is not None:
            self.saved.require_for(proto, recipe.precision, material.input_sha256, material.saved)
        self.reference = emulate(proto, optimize=True)
        self.samples = material.judged()
        count = sum(item.count for item in self.samples)
        say(f"judge on {count} validation {material.unit}s")
        self.judge = Judge(self.reference, self.samples, material.classes, material.measure)

    def calibrate(self, outputs_too: bool = False) -> CalibrationFile:
        """What the tensors hold: from the file that was given, else from samples.

        Args:
            outputs_too: also ranges of what convolutions put out.
        """
        material = self.material
        if self.saved is not None:
            self.say(
                f"calibration of {self.saved.tiles} {material.unit}s taken from {material.saved}"
            )
            return self.saved
        precision = self.recipe.precision
        layers = self.layers() if "int8" in precision.allowed else []
        behind = outputs(self.proto, layers) if outputs_too else []
        samples, wanted, source = material.calibrating(self.recipe.calibration)

        def seen_by(proto: onnx.ModelProto) -> Activations:
            given = (item.inputs() for item in samples)
            return observe(proto, layers, given, wanted, unit=material.unit, behind=behind)

        self.say(f"calibrate on {len(samples)} {material.unit}s of {source.split(':')[0]}")
        seen = seen_by(self.proto)
        channels: dict[str, list[float]] = {}
        if precision.smooth and layers:
            proto, factors = smooth(self.proto, layers, seen.channels, precision.smooth)
            self.say(f"rescaled {len(factors)} norms; calibrate again")
            channels = {name: seen.channels[name].tolist() for name in factors}
            before, seen = seen, seen_by(proto)
            for name, value in before.largest.items():
                seen.largest[name] = max(value, seen.largest.get(name, 0.0))
        return calibration_file(
            self.proto, precision, material.input_sha256, source, seen, channels
        )

    def layers(self) -> list[Layer]:
        """Layers that may be quantised."""
        spec = self.recipe.precision
        layers = choose_layers(find_layers(self.proto), spec.int8_layers, spec.keep_high)
        if not layers:
            raise InputError(
                f"the model has no layer of the kinds {', '.join(spec.int8_layers)} that may be "
                "lowered; name other kinds in precision.int8_layers, or allow no int8"
            )
        return layers

    def int8(
        self,
        calibration: CalibrationFile,
        bits: int = 8,
        optimize: bool = False,
        finish: Callable[[onnx.ModelProto], onnx.ModelProto] = lambda graph: graph,
        integer: Integer | None = None,
    ) -> Int8:
        """The INT8 model that keeps the gates with the fewest layers high.

        Args:
            calibration: of this model.
            bits: of weights.
            optimize: run candidates as this machine's ONNX Runtime does, rather than as written.
            finish: what becomes of a graph with Q/DQ before it is judged.
            integer: lay chains of convolutions in integers; None quantises products alone.
        """
        ranges = calibration.ranges
        if not ranges:
            raise InputError(
                "the calibration holds no ranges, since INT8 was not allowed when it was made; "
                "calibrate again without --calibration"
            )
        layers = self.layers()
        proto = calibration.rescaled(self.proto, layers)
        missing = [layer.name for layer in layers if layer.source not in ranges]
        if missing:
            raise InputError(
                f"the calibration knows nothing of {missing[0]} ({len(missing)} of {len(layers)} "
                "layers), since other layers were chosen when it was made; calibrate again without "
                "--calibration"
            )
        idle = [layer for layer in layers if not ranges[layer.source] > 0]
        if len(idle) > len(layers) // 2:
            raise InputError(
                f"calibration saw nothing but zeros in {len(idle)} of {len(layers)} layers; give "
                "images with content"
            )
        for layer in idle:
            self.say(f"{layer.name} saw nothing but zeros and stays high")
        layers = [layer for layer in layers if layer not in idle]

        def make(chosen: Sequence[Layer]) -> Model:
            if integer is None:
                graph = insert_qdq(proto, chosen, ranges, weight_bits=bits)
            else:
                graph = insert_integer(proto, chosen, ranges, integer, bits)
            return emulate(finish(graph), optimize=optimize)

        found = search(layers, make, self.judge, self.passes, self.say)
        high = set(found.kept_high)
        return Int8(
            proto=proto,
            layers=[layer for layer in layers if layer.name not in high],
            ranges=ranges,
            quality=found.quality,
            passed=found.passed,
            why=self.why(found.quality, len(found.kept_high)),
            kept_high=[*found.kept_high, *(layer.name for layer in idle)],
            sensitivity=found.sensitivity,
            integer=integer,
        )

    def drop(self, quality: Quality) -> float:
        """mIoU (of places: accuracy) lost, percentage points."""
        before, after = self.judge.reference.score, quality.score
        assert before is not None and after is not None  # of the same labelled samples
        return 100 * (before - after)

    def passes(self, quality: Quality) -> bool:
        """Whether the gates hold."""
        gates = self.recipe.gates
        return (
            bool(np.isfinite(quality.noise))
            and quality.agreement >= gates.agreement_min
            and self.drop(quality) <= gates.miou_drop_max
        )

    def why(self, quality: Quality, high: int = 0) -> str:
        """The verdict with its figures."""
        said = (
            f"agreement {100 * quality.agreement:.3f} %, {self.material.measure} "
            f"{-self.drop(quality):+.3f} points" + (f", {high} layers high" if high else "")
        )
        return f"{'keeps' if self.passes(quality) else 'fails'} the gates: {said}"

    def candidate(self, size_bytes: int) -> CandidateDone:
        """FP32, the reference."""
        reference = self.judge.reference
        return candidate("fp32", reference, size_bytes, chosen=False, why="the reference")

    def gates(self, quality: Quality, end: str = "") -> list[Gate]:
        """The gates of a precision that holds them; ``end`` makes names of several differ."""
        gates, material = self.recipe.gates, self.material
        tiles = f"{quality.tiles} validation {material.unit}s"
        lost = "miou_drop" if material.measure == "mIoU" else "accuracy_drop"
        return [
            Gate(
                name=f"agreement_with_fp32{end}", value=quality.agreement,
                bound=gates.agreement_min,
                unit="part of the cells" if material.unit == "tile" else "part of the places",
                passed=True, sense="at least", detail=tiles,
            ),
            Gate(
                name=f"{lost}{end}", value=self.drop(quality), bound=gates.miou_drop_max,
                unit=f"percentage points of {material.measure}", passed=True, detail=tiles,
            ),
        ]  # fmt: skip


def candidate(
    precision: str, quality: Quality, size_bytes: int, *, chosen: bool, why: str, **rest: Any
) -> CandidateDone:
    """A tried precision's line in the manifest; the golden tiles are the first and last judged."""
    largest = sys.float_info.max  # JSON has no infinity
    return CandidateDone(
        precision=precision, miou=quality.miou, accuracy=quality.accuracy,
        agreement=quality.agreement,
        noise=min(quality.noise, largest), tiles=quality.tiles,
        golden_agreement=quality.ends_agreement,
        golden_max_abs=min(quality.ends_max_abs, largest), size_bytes=size_bytes,
        chosen=chosen, why=why, **rest,
    )  # fmt: skip


def refusal(
    candidates: Sequence[CandidateDone], sensitivity: Mapping[str, float], asked: Sequence[str]
) -> GateError:
    """The error where nothing that is allowed keeps the gates, with the table that shows why."""
    text = "no allowed precision keeps the gates: "
    text += "; ".join(row(item).strip(" *") for item in candidates)
    if sensitivity:
        worst = sorted(sensitivity.items(), key=lambda item: -item[1])[:SHOWN_LAYERS]
        text += "; lowered alone, the worst layers change the logits by " + ", ".join(
            f"{name} {100 * value:.2g} %" for name, value in worst
        )
        text += f" of their deviation ({len(sensitivity)} layers; at most half may stay high)"
    return GateError(
        f"{text}; allow a higher precision (asked: {', '.join(asked)}), calibrate otherwise "
        "(precision.range, precision.smooth, calibration.tiles), or lower gates.agreement_min"
    )


def calibration_done(file: CalibrationFile) -> CalibrationDone:
    """A calibration's line in the manifest."""
    return CalibrationDone(
        tiles=file.tiles, sha256=file.tiles_sha256, source=file.source, range=file.range,
        percentile=file.percentile, smooth=file.smooth,
    )  # fmt: skip
