"""From an FP32 graph to the lowest precision that keeps the recipe's gates, with what was tried.

INT8 is calibrated, judged on validation tiles, repaired where a few layers spoil it, and, where
the target can be timed on this machine, taken only when it is faster. What was tried and refused
stands in the manifest beside what was done.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from edgekd.contracts.labelled import LabelledSet
from edgekd.contracts.manifest import (
    CalibrationDone,
    CandidateDone,
    Gate,
    PrecisionDone,
    row,
)
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.target import Target
from edgekd.deploy.parity import FloatArray, Model
from edgekd.deploy.quantize.calibrate import Activations, observe
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.judge import Judge, Quality
from edgekd.deploy.quantize.layers import Layer, choose_layers, find_layers
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.deploy.quantize.search import search
from edgekd.deploy.quantize.smooth import smooth
from edgekd.deploy.tiles import labelled_tiles
from edgekd.errors import GateError, InputError

#: validation tiles that a precision is judged on
JUDGED_TILES = 8
#: runs that a tile's time is the median of, FP32 and candidate in turn
TIMED_RUNS = 5

Say = Callable[[str], None]


@dataclass(frozen=True)
class Lowered:
    """The model that was chosen.

    Attributes:
        proto: of the ONNX file.
        run: a lowered model on this machine: natively where this processor is of the target's
            kind, else as the graph is written; None for FP32.
        precision, gates: for the manifest.
    """

    proto: onnx.ModelProto
    run: Model | None
    precision: PrecisionDone
    gates: list[Gate] = field(default_factory=list)


def has_int8_dot_product() -> bool:
    """Whether this machine's CPU sums products of 8-bit numbers into 32 bits (VNNI, asimddp)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split())
    except OSError:
        return False
    return not words.isdisjoint({"avx512_vnni", "avx_vnni", "asimddp"})


def is_timeable(target: Target) -> bool:
    """Whether this machine runs INT8 models of the target as the target does."""
    if target.backend != "onnxrt" or target.arch != platform.machine():
        return False
    return target.cpu is None or target.cpu.int8_dot_product == has_int8_dot_product()


def lower(
    proto: onnx.ModelProto,
    recipe: Recipe,
    target: Target,
    data: LabelledSet | None,
    calibration: LabelledSet | None,
    say: Say = lambda text: None,
) -> Lowered:
    """Choose the precision for a target that ONNX Runtime serves.

    Args:
        proto: the export, FP32.
        recipe: with allowed precisions, calibration and gates.
        target: bounds the precisions further.
        data: labelled set whose validation split judges.
        calibration: where calibration tiles come from.
        say: called with a line for every step.

    Raises:
        InputError: nothing is allowed that the target holds, or INT8 lacks its images.
        GateError: no allowed precision keeps the gates; the message holds the table.
    """
    asked: list[str] = [name for name in recipe.precision.allowed if name in target.precisions]
    if not asked:
        raise InputError(
            f"precision.allowed is {', '.join(recipe.precision.allowed)}, and target {target.name} "
            f"holds {', '.join(target.precisions)}; allow one of these"
        )
    if "int8" not in asked and asked != ["fp32"]:
        raise InputError(
            f"precision.allowed leaves {', '.join(asked)} for {target.name}, and for ONNX Runtime "
            "this version makes fp32 and int8; allow one of these"
        )
    if asked == ["fp32"]:
        return Lowered(proto, None, PrecisionDone(asked=asked, done="fp32"))
    return _Lowering(proto, recipe, target, data, calibration, say).run(asked)


class _Lowering:
    def __init__(
        self,
        proto: onnx.ModelProto,
        recipe: Recipe,
        target: Target,
        data: LabelledSet | None,
        calibration: LabelledSet | None,
        say: Say,
    ) -> None:
        if data is None or calibration is None:
            raise InputError(
                "INT8 learns its ranges from real images and is judged on others, and the data "
                "set is not here; give its place with --data, or allow fp32 only: "
                "--set precision.allowed=[fp32]"
            )
        self._proto, self._recipe, self._target, self._say = proto, recipe, target, say
        self._calibration = calibration
        self._spec = recipe.io.inputs[0]
        self._normalize = Normalizer(self._spec)
        self._native = is_timeable(target)
        self._reference = emulate(proto, optimize=True)
        self._tiles = labelled_tiles(data, "val", self._spec.tile_px, JUDGED_TILES)
        say(f"judge on {len(self._tiles)} validation tiles")
        self._judge = Judge(self._reference, self._tiles, self._normalize, len(recipe.io.classes))
        if self._judge.reference.miou is None:
            raise InputError(
                f"the validation tiles of {data.name} hold no labelled pixel, so nobody can say "
                "what INT8 costs; label some, or allow fp32 only: --set precision.allowed=[fp32]"
            )
        self._bits = target.cpu.int8_weight_bits if target.cpu is not None else 8

    def run(self, asked: list[str]) -> Lowered:
        reference = self._judge.reference
        candidates = [
            CandidateDone(
                precision="fp32", miou=reference.miou, agreement=1.0, noise=0.0,
                tiles=reference.tiles, size_bytes=self._proto.ByteSize(), chosen=False,
                why="the reference",
            )
        ]  # fmt: skip
        lowered = self._int8()
        seconds: tuple[float | None, float | None] = (None, None)
        passed, why = lowered.passed, lowered.why
        if passed and self._native:
            seconds = self._timed(lowered.run)
            if seconds[0] is not None and seconds[1] is not None and seconds[1] >= seconds[0]:
                passed = "fp32" not in asked
                why = f"not faster than FP32 here ({seconds[1]:.3g} and {seconds[0]:.3g} s a tile)"
        elif passed:
            why += "; not timed, for this machine is not of the target's kind"
            cpu = self._target.cpu
            if cpu is not None and not cpu.int8_dot_product and "fp32" in asked:
                passed = False
                why += (
                    f", and {cpu.model} has no 8-bit dot products, without which INT8 is often "
                    "slower: --precision int8 takes it all the same; time both on the device"
                )
        quality = lowered.quality
        candidates[0] = candidates[0].model_copy(update={"tile_s": seconds[0]})
        candidates.append(
            CandidateDone(
                precision="int8", miou=quality.miou, agreement=quality.agreement,
                noise=min(quality.noise, sys.float_info.max), tiles=quality.tiles,
                size_bytes=lowered.proto.ByteSize(),
                tile_s=seconds[1], kept_high=lowered.kept_high, chosen=passed, why=why,
            )
        )  # fmt: skip
        if not passed and "fp32" not in asked:
            table = "; ".join(row(item).strip(" *") for item in candidates)
            raise GateError(f"no allowed precision keeps the gates: {table}")
        done = "int8" if passed else "fp32"
        if not passed:
            candidates[0] = candidates[0].model_copy(
                update={"chosen": True, "why": "what is left when INT8 is refused"}
            )
        precision = PrecisionDone(
            asked=asked, done=done, kept_high=lowered.kept_high if passed else [],
            calibration=lowered.calibration, candidates=candidates,
            sensitivity=lowered.sensitivity,
        )  # fmt: skip
        for item in candidates:
            self._say(row(item))
        if not passed:
            return Lowered(self._proto, None, precision)
        return Lowered(lowered.proto, lowered.run, precision, self._gates(quality))

    def _int8(self) -> _Int8:
        spec = self._recipe.precision
        layers = choose_layers(find_layers(self._proto), spec.int8_layers, spec.keep_high)
        if not layers:
            raise InputError(
                f"the model has no layer of the kinds {', '.join(spec.int8_layers)} that may be "
                "lowered; name other kinds in precision.int8_layers, or allow fp32 only"
            )
        proto, seen, source = self._calibrated(layers)
        ranges = seen.ranges(spec.range, spec.percentile)
        idle = [layer for layer in layers if not ranges[layer.source] > 0]
        for layer in idle:
            self._say(f"{layer.name} saw nothing but zeros and stays high")
        layers = [layer for layer in layers if layer not in idle]
        if not layers:
            raise InputError("calibration saw nothing but zeros; give images with content")

        def graph(chosen: Sequence[Layer]) -> onnx.ModelProto:
            return insert_qdq(proto, chosen, ranges, weight_bits=self._bits)

        def make(chosen: Sequence[Layer]) -> Model:
            return emulate(graph(chosen), optimize=self._native)

        found = search(layers, make, self._judge, self._passes, self._say)
        high = set(found.kept_high)
        final = graph([layer for layer in layers if layer.name not in high])
        done = CalibrationDone(
            tiles=seen.tiles, sha256=seen.sha256, source=source, range=spec.range,
            percentile=spec.percentile if spec.range == "percentile" else None,
            smooth=spec.smooth, ranges=ranges,
        )  # fmt: skip
        return _Int8(
            final, emulate(final, optimize=self._native), found.quality, found.passed,
            [*found.kept_high, *(layer.name for layer in idle)],
            self._why(found.quality, found.passed, len(found.kept_high)),
            found.sensitivity, done,
        )  # fmt: skip

    def _calibrated(self, layers: Sequence[Layer]) -> tuple[onnx.ModelProto, Activations, str]:
        """The graph (rescaled where the recipe says so), what its layers see, and of what."""
        spec = self._recipe.calibration
        assert spec is not None  # the recipe's own check
        tiles = labelled_tiles(self._calibration, spec.split, self._spec.tile_px, spec.tiles)

        def given() -> Iterator[FloatArray]:
            for tile in tiles:
                yield self._normalize(tile.pixels)[None]

        self._say(f"calibrate on {len(tiles)} tiles of {self._calibration.name}, {spec.split}")
        proto = self._proto
        seen = observe(proto, layers, given(), spec.tiles)
        if self._recipe.precision.smooth:
            proto, factors = smooth(proto, layers, seen.channels, self._recipe.precision.smooth)
            self._say(f"rescaled {len(factors)} norms; calibrate again")
            seen = observe(proto, layers, given(), spec.tiles)
        names = ", ".join(sorted({tile.name.split(" at ")[0] for tile in tiles}))
        return proto, seen, f"{self._calibration.name}, split {spec.split}: {names}"

    def _drop(self, quality: Quality) -> float:
        """mIoU lost, percentage points."""
        before = self._judge.reference.miou
        assert before is not None and quality.miou is not None  # of the same labelled tiles
        return 100 * (before - quality.miou)

    def _passes(self, quality: Quality) -> bool:
        gates = self._recipe.gates
        return (
            quality.agreement >= gates.agreement_min and self._drop(quality) <= gates.miou_drop_max
        )

    def _why(self, quality: Quality, passed: bool, high: int) -> str:
        said = (
            f"agreement {100 * quality.agreement:.2f} %, mIoU {-self._drop(quality):+.2f} points"
            + (f", {high} layers high" if high else "")
        )
        return f"keeps the gates: {said}" if passed else f"fails the gates: {said}"

    def _gates(self, quality: Quality) -> list[Gate]:
        gates, tiles = self._recipe.gates, f"{quality.tiles} validation tiles"
        return [
            Gate(
                name="agreement_with_fp32", value=quality.agreement, bound=gates.agreement_min,
                unit="part of the cells", passed=True, sense="at least", detail=tiles,
            ),
            Gate(
                name="miou_drop", value=self._drop(quality), bound=gates.miou_drop_max,
                unit="percentage points of mIoU", passed=True, detail=tiles,
            ),
        ]  # fmt: skip

    def _timed(self, candidate: Model) -> tuple[float, float]:
        """Median seconds of a tile: FP32 and the candidate in turn, after one run of each."""
        tensor = self._normalize(self._tiles[0].pixels)[None]
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(TIMED_RUNS + 1):
            for model, mine in zip((self._reference, candidate), times, strict=True):
                start = time.perf_counter()
                model(tensor)
                if number:
                    mine.append(time.perf_counter() - start)
        return statistics.median(times[0]), statistics.median(times[1])


@dataclass(frozen=True)
class _Int8:
    proto: onnx.ModelProto
    run: Model
    quality: Quality
    passed: bool
    kept_high: list[str]
    why: str
    sensitivity: dict[str, float]
    calibration: CalibrationDone
