"""From an FP32 graph to the lowest precision that keeps the recipe's gates, for ONNX Runtime.

INT8 is calibrated, judged on validation tiles, repaired where a few layers spoil it, and, where
the target can be timed on this machine, taken only when it is faster. What was tried and refused
stands in the manifest beside what was done.
"""

from __future__ import annotations

import platform
import statistics
import time
from dataclasses import dataclass, field

import onnx

from edgekd.contracts.manifest import CandidateDone, Gate, PrecisionDone, row
from edgekd.contracts.place_recipe import AnyRecipe
from edgekd.contracts.target import Target
from edgekd.deploy.parity import Model
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.grounds import (
    Grounds,
    Int8,
    Say,
    calibration_done,
    candidate,
    refusal,
)
from edgekd.deploy.quantize.integer import Integer
from edgekd.deploy.quantize.material import Material
from edgekd.deploy.quantize.ranges import CalibrationFile
from edgekd.errors import InputError
from edgekd.runtime.backends.onnxrt import has_int8_dot_product

#: runs that a tile's time is the median of, FP32 and candidate in turn
TIMED_RUNS = 5


@dataclass(frozen=True)
class Lowered:
    """The model that was chosen.

    Attributes:
        proto: of the ONNX file.
        run: a lowered model on this machine: natively where this processor is of the target's
            kind, else as the graph is written; None for FP32.
        precision, gates: for the manifest.
        calibration: None where nothing was calibrated.
    """

    proto: onnx.ModelProto
    run: Model | None
    precision: PrecisionDone
    gates: list[Gate] = field(default_factory=list)
    calibration: CalibrationFile | None = None


def is_native(target: Target) -> bool:
    """Whether a session on this machine runs the target's models with ONNX Runtime's own kernels.

    The same rule as when a bundle is loaded, so that golden outputs are what a session gives.
    """
    return target.backend == "onnxrt" and target.arch == platform.machine()


def is_timeable(target: Target) -> bool:
    """Whether times of this machine say something about the target.

    A class without one board holds this machine: ``x86-cpu`` whatever it has, ``x86-vnni`` where
    it has 8-bit dot products. Boards of one kind of core are timed on that kind alone.
    """
    if not is_native(target) or target.cpu is None:
        return is_native(target)
    if target.cpu.cores is None:
        return has_int8_dot_product() or not target.cpu.int8_dot_product
    return target.cpu.int8_dot_product == has_int8_dot_product()


def asked_of(recipe: AnyRecipe, target: Target) -> list[str]:
    """Precisions that the recipe allows and the target holds, in the recipe's order.

    Raises:
        InputError: there is none.
    """
    asked: list[str] = [name for name in recipe.precision.allowed if name in target.precisions]
    if not asked:
        raise InputError(
            f"precision.allowed is {', '.join(recipe.precision.allowed)}, and target {target.name} "
            f"holds {', '.join(target.precisions)}; allow one of these"
        )
    return asked


def lower(
    proto: onnx.ModelProto,
    recipe: AnyRecipe,
    target: Target,
    material: Material,
    say: Say = lambda text: None,
) -> Lowered:
    """Choose the precision for a target that ONNX Runtime serves.

    Args:
        proto: the export, FP32.
        recipe: with allowed precisions, calibration and gates.
        target: bounds the precisions further.
        material: what calibrates and judges.
        say: called with a line for every step.

    Raises:
        InputError: nothing is allowed that the target holds, or INT8 lacks its samples.
        GateError: no allowed precision keeps the gates; the message holds the table.
    """
    asked = asked_of(recipe, target)
    if "int8" not in asked and asked != ["fp32"]:
        raise InputError(
            f"precision.allowed leaves {', '.join(asked)} for {target.name}, and for ONNX Runtime "
            "this version makes fp32 and int8; allow one of these"
        )
    if asked == ["fp32"]:
        return Lowered(proto, None, PrecisionDone(asked=asked, done="fp32"))
    grounds = Grounds(proto, recipe, material, say)
    return _choose(grounds, target, asked)


def _choose(grounds: Grounds, target: Target, asked: list[str]) -> Lowered:
    native, timeable = is_native(target), is_timeable(target)
    bits = target.cpu.int8_weight_bits if target.cpu is not None else 8
    fp32 = grounds.candidate(grounds.proto.ByteSize())
    calibration = grounds.calibrate(outputs_too=True)
    int8, others = _int8(grounds, calibration, target, bits)
    proto = int8.graph(weight_bits=bits)
    # with as many threads as the target: the order of sums decides single roundings
    run = emulate(proto, target.threads, optimize=native)
    seconds: tuple[float | None, float | None] = (None, None)
    passed, why = int8.passed, int8.why
    if passed and timeable:
        seconds = timed(grounds, proto)
        if seconds[0] is not None and seconds[1] is not None and seconds[1] >= seconds[0]:
            passed = "fp32" not in asked
            why = (
                f"not faster than FP32 here ({seconds[1]:.3g} and {seconds[0]:.3g} s of one core "
                f"a {grounds.material.unit})"
            )
    elif passed:
        why += "; not timed, for this machine is not of the target's kind"
        cpu = target.cpu
        if cpu is not None and not cpu.int8_dot_product and "fp32" in asked:
            passed = False
            why += (
                f", and {cpu.model} has no 8-bit dot products, without which INT8 is often "
                "slower: --precision int8 takes it all the same; time both on the device"
            )
    candidates = [
        fp32.model_copy(update={"tile_s": seconds[0]}),
        *others,
        candidate(
            "int8", int8.quality, proto.ByteSize(), chosen=passed, why=why, tile_s=seconds[1],
            kept_high=int8.kept_high,
        ),
    ]  # fmt: skip
    if not passed and "fp32" not in asked:
        raise refusal(candidates, int8.sensitivity, asked)
    if not passed:
        candidates[0] = candidates[0].model_copy(
            update={"chosen": True, "why": "what is left when INT8 is refused"}
        )
    precision = PrecisionDone(
        asked=asked, done="int8" if passed else "fp32",
        kept_high=int8.kept_high if passed else [],
        calibration=calibration_done(calibration), candidates=candidates,
        sensitivity=int8.sensitivity,
    )  # fmt: skip
    for item in candidates:
        grounds.say(row(item))
    if not passed:
        return Lowered(grounds.proto, None, precision, calibration=calibration)
    return Lowered(proto, run, precision, grounds.gates(int8.quality), calibration)


def _int8(
    grounds: Grounds, calibration: CalibrationFile, target: Target, bits: int
) -> tuple[Int8, list[CandidateDone]]:
    """The INT8 model, and what stands in the manifest of a layout that was tried and left.

    Chains of convolutions in integers, where there are any. Where that layout keeps the gates with
    layers high alone, or not at all, products alone are tried as well: taken where they keep the
    gates and the chains do not, or where this machine can time them and they are faster.
    """
    native, timeable = is_native(target), is_timeable(target)
    chains = any(layer.kind == "conv" for layer in grounds.layers())
    integer = Integer(calibration.outputs, signed=target.arch != "x86_64")
    if chains and not calibration.outputs:
        grounds.say(
            "the calibration knows no outputs of convolutions, which therefore stay in float "
            "between their quantised inputs; calibrate again without --calibration"
        )
        return grounds.int8(calibration, bits, optimize=native), []
    first = grounds.int8(calibration, bits, optimize=native, integer=integer)
    if not chains or (first.passed and not (first.kept_high and timeable)):
        return first, []
    grounds.say("convolutions in integers do not keep the gates as they are: try products alone")
    second = grounds.int8(calibration, bits, optimize=native)
    names = {True: "convolutions in integers end to end", False: "products alone in integers"}
    if first.passed and second.passed:
        seconds = [timed(grounds, item.graph(weight_bits=bits))[1] for item in (first, second)]
        taken, left = (first, second) if seconds[0] <= seconds[1] else (second, first)
        said = f"{names[left.integer is not None]}: {left.why}, {max(seconds):.3g} s of one core a "
        said += f"{grounds.material.unit}; {names[taken.integer is not None]} is faster: "
        said += f"{min(seconds):.3g} s"
    else:
        taken, left = (second, first) if second.passed else (first, second)
        said = f"{names[left.integer is not None]}: {left.why}; "
        said += f"{names[taken.integer is not None]} is better: it {taken.why}"
    size = left.graph(weight_bits=bits).ByteSize()
    return taken, [
        candidate(
            "int8", left.quality, size, chosen=False, why=said, kept_high=left.kept_high
        )
    ]  # fmt: skip


def timed(grounds: Grounds, candidate: onnx.ModelProto) -> tuple[float, float]:
    """Median seconds of one core for a tile, or a place: FP32 and the candidate in turn.

    One thread each, and that thread's own time: on a shared machine the wall clock of two pools of
    threads, each of which waits spinning, called a model that is 1.1 times faster slower in 14 of
    40 trials, and this in none.
    """
    sample = grounds.samples[0]
    tensors = {name: array[:1] for name, array in sample.inputs().items()}
    models = [emulate(item, 1, optimize=True) for item in (grounds.proto, candidate)]
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(TIMED_RUNS + 1):
        for model, mine in zip(models, times, strict=True):
            start = time.thread_time()
            model(tensors)
            if number:
                mine.append(time.thread_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])
