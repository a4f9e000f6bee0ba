"""A build takes the lowest precision that keeps its gates, and says what it tried."""

from __future__ import annotations

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgekd
from edgekd.contracts.labelled import LabelledSet, open_labelled
from edgekd.contracts.recipe import Recipe, load_recipe
from edgekd.contracts.target import load_target
from edgekd.deploy.bundle import build
from edgekd.deploy.export.onnx_export import OnnxModel
from edgekd.deploy.quantize import lower as module
from edgekd.deploy.quantize import material as material_module
from edgekd.deploy.quantize.calibrate import Activations
from edgekd.deploy.quantize.lower import Lowered, lower
from edgekd.deploy.quantize.material import Images, Sample, TileMaterial
from edgekd.errors import GateError, InputError, RecipeError
from tests.deploy.quantize.graphs import constants_of, operators
from tests.helpers.line import Line, reuse

INT8 = ["precision.allowed=[fp32,int8]", "calibration={tiles: 4}", "gates.agreement_min=0.9"]
FOREIGN = "rpi5" if platform.machine() == "x86_64" else "x86-cpu"
NATIVE = "x86-cpu" if platform.machine() == "x86_64" else "rpi5"


@pytest.fixture
def data(line: Line) -> LabelledSet:
    return open_labelled(line.data)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Times that a test sets, in place of a clock on a shared machine."""
    times = [(2.0, 1.0)]
    monkeypatch.setattr(module, "timed", lambda grounds, candidate: times[0])
    cpu = load_target(NATIVE).cpu
    assert cpu is not None
    monkeypatch.setattr(module, "has_int8_dot_product", lambda: cpu.int8_dot_product)
    return times


def recipe(line: Line, *changes: str) -> Recipe:
    return load_recipe(line.recipes["levels"], [*INT8, *changes])


def lowered(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet | None, target: str, *more: str
) -> Lowered:
    proto = onnx.load(exports["levels"].path)
    wanted = recipe(line, *more)
    return lower(proto, wanted, load_target(target), TileMaterial(wanted, Images(data)))


def test_int8_is_taken_where_it_keeps_the_gates_and_is_faster(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any
) -> None:
    found = lowered(line, exports, data, NATIVE)
    done = found.precision
    assert (done.done, done.asked) == ("int8", ["fp32", "int8"])
    assert [(c.precision, c.chosen, c.tile_s) for c in done.candidates] == [
        ("fp32", False, 2.0),
        ("int8", True, 1.0),
    ]
    reference, int8 = done.candidates
    assert reference.agreement == 1.0 and reference.noise == 0.0
    assert int8.agreement >= 0.9 and 0 < int8.noise < 0.5
    assert int8.size_bytes < reference.size_bytes
    assert {gate.name: gate.sense for gate in found.gates} == {
        "agreement_with_fp32": "at least", "miou_drop": "at most"
    }  # fmt: skip
    assert done.calibration is not None and done.calibration.tiles == 4
    assert "split train" in done.calibration.source
    # the patch projection and four linears in each of the six blocks, nothing of the decoder
    assert found.calibration is not None and len(found.calibration.ranges) == 25
    assert operators(found.proto).count("QuantizeLinear") == 25
    assert not [n for n in found.proto.graph.node if "Quantize" in n.op_type and "dec" in n.name]


@pytest.mark.parametrize(("target", "largest"), [("x86-cpu", 63), ("rpi4", 127), ("rpi5", 127)])
def test_the_target_says_how_many_bits_weights_have(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any, target: str,
    largest: int,
) -> None:  # fmt: skip
    codes = [
        value
        for name, value in constants_of(
            lowered(line, exports, data, target, "precision.allowed=[int8]").proto
        ).items()
        if name.endswith("/int8")
    ]
    assert len(codes) == 25
    assert max(int(np.abs(value.astype(int)).max()) for value in codes) == largest


def test_a_lower_precision_that_is_not_faster_is_not_taken(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: list[Any]
) -> None:
    quick[0] = (1.0, 1.0)
    done = lowered(line, exports, data, NATIVE).precision
    assert done.done == "fp32" and done.kept_high == []
    assert "not faster than FP32 here" in done.candidates[1].why
    alone = lowered(line, exports, data, NATIVE, "precision.allowed=[int8]").precision
    assert alone.done == "int8", "asked for alone it is taken, with the time beside it"
    assert alone.candidates[1].tile_s == 1.0


def test_another_kind_of_processor_is_not_timed(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(grounds: Any, candidate: Any) -> Any:
        raise AssertionError("this machine says nothing about that one")

    monkeypatch.setattr(module, "timed", refuse)
    done = lowered(line, exports, data, FOREIGN).precision
    assert done.done == "int8" and done.candidates[1].tile_s is None
    assert "not timed" in done.candidates[1].why


def test_without_dot_products_int8_must_be_timed_or_asked_for(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A Raspberry Pi 4 cannot be timed here, and INT8 may well be slower there."""
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")
    done = lowered(line, exports, data, "rpi4").precision
    assert done.done == "fp32" and "no 8-bit dot products" in done.candidates[1].why
    asked = lowered(line, exports, data, "rpi4", "precision.allowed=[int8]").precision
    assert asked.done == "int8"


@pytest.mark.parametrize(
    ("machine", "dot_product", "target", "expected"),
    [
        ("x86_64", False, "x86-cpu", True),
        ("x86_64", True, "x86-cpu", True),  # the class holds any x86
        ("x86_64", True, "x86-vnni", True),
        ("x86_64", False, "x86-vnni", False),
        ("aarch64", True, "x86-vnni", False),
        ("aarch64", True, "rpi5", True),
        ("aarch64", True, "rpi4", False),
        ("aarch64", False, "rpi4", True),
        ("x86_64", False, "rpi4", False),
        ("aarch64", True, "orin-nx-16gb", False),
    ],
)
def test_what_can_be_timed_where(
    monkeypatch: pytest.MonkeyPatch, machine: str, dot_product: bool, target: str, expected: bool
) -> None:
    monkeypatch.setattr(module.platform, "machine", lambda: machine)
    monkeypatch.setattr(module, "has_int8_dot_product", lambda: dot_product)
    assert module.is_timeable(load_target(target)) == expected


def test_a_layer_that_sees_nothing_stays_high(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    original = Activations.ranges

    def dead(self: Any, method: Any, percentile: float) -> dict[str, float]:
        found = original(self, method, percentile)
        return {name: 0.0 if name == "image" else value for name, value in found.items()}

    monkeypatch.setattr(Activations, "ranges", dead)
    done = lowered(line, exports, data, NATIVE).precision
    assert done.done == "int8" and done.kept_high == ["encoder.patch_embed"]


def test_where_gates_fail_fp32_is_left_or_the_build_ends_with_the_table(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any
) -> None:
    done = lowered(line, exports, data, NATIVE, "gates.agreement_min=1.0").precision
    assert done.done == "fp32" and "fails the gates" in done.candidates[1].why
    assert len(done.sensitivity) == 25 and all(value > 0 for value in done.sensitivity.values())
    with pytest.raises(GateError, match=r"no allowed precision .*fp32: mIoU .*; int8: mIoU"):
        lowered(line, exports, data, NATIVE, "gates.agreement_min=1.0", "precision.allowed=[int8]")


def test_without_images_there_is_no_int8(line: Line, exports: dict[str, OnnxModel]) -> None:
    with pytest.raises(InputError, match=r"judged on real images, .* --data"):
        lowered(line, exports, None, NATIVE)


def test_what_the_target_cannot_hold_is_refused(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet
) -> None:
    with pytest.raises(InputError, match=r"allowed is fp16, and target .* holds fp32, int8"):
        lowered(line, exports, data, NATIVE, "precision.allowed=[fp16]")


def test_kinds_and_patterns_choose_layers(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any
) -> None:
    found = lowered(
        line, exports, data, NATIVE, "precision.int8_layers=[linear]",
        "precision.keep_high=[encoder.blocks.5.*]", "precision.range=entropy",
        "precision.smooth=0.5",
    )  # fmt: skip
    done = found.precision.calibration
    assert done is not None and (done.range, done.percentile, done.smooth) == ("entropy", None, 0.5)
    named = [n.name for n in found.proto.graph.node if n.op_type == "QuantizeLinear"]
    assert len(named) == 20


def test_calibration_twice_gives_the_same_bytes(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any
) -> None:
    one, two = (lowered(line, exports, data, NATIVE) for _ in range(2))
    assert one.proto.SerializeToString(deterministic=True) == two.proto.SerializeToString(
        deterministic=True
    )
    assert one.precision == two.precision
    assert one.calibration is not None and two.calibration is not None
    assert one.calibration.text() == two.calibration.text()


def test_int8_asked_for_without_calibration_is_a_fault_of_the_recipe(line: Line) -> None:
    with pytest.raises(RecipeError, match="which needs calibration; write calibration"):
        load_recipe(line.recipes["levels"], ["precision.allowed=[fp32,int8]"])


def test_what_judges_is_not_calibrated_on(line: Line) -> None:
    with pytest.raises(RecipeError, match="own validation split judges INT8"):
        load_recipe(line.recipes["levels"], [*INT8, "calibration={tiles: 4, split: val}"])


def test_without_a_labelled_pixel_nobody_can_judge(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = material_module.labelled_tiles

    def unlabelled(*args: Any) -> Any:
        return [replace(tile, target=np.full_like(tile.target, 255)) for tile in original(*args)]

    monkeypatch.setattr(material_module, "labelled_tiles", unlabelled)
    with pytest.raises(InputError, match=r"hold no labelled pixel"):
        lowered(line, exports, data, NATIVE)


def test_what_cannot_be_made_for_onnx_runtime_is_not_replaced_by_int8(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet
) -> None:
    target = load_target(NATIVE).model_copy(update={"precisions": ["fp32", "fp16", "int8"]})
    proto = onnx.load(exports["levels"].path)
    with pytest.raises(InputError, match=r"leaves fp32, fp16 .* makes fp32 and int8"):
        wanted = recipe(line, "precision.allowed=[fp32,fp16]")
        lower(proto, wanted, target, TileMaterial(wanted, Images(data)))


def test_timing_runs_both_models_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    class Fake:
        samples = (Sample(lambda: {"image": np.zeros((2, 3, 4, 4), np.float32)}, None, 32, 2),)
        proto = 3_000_000  # here a "model" is the number of steps that it takes

    def emulated(steps: int, threads: int, optimize: bool) -> Any:
        assert threads == 1 and optimize

        def run(tensors: dict[str, np.ndarray]) -> np.ndarray:
            assert tensors["image"].shape == (1, 3, 4, 4), "one of a batch"
            ran.append("fp32" if steps == Fake.proto else "int8")
            for _ in range(steps):
                pass
            return tensors["image"]

        return run

    monkeypatch.setattr(module, "emulate", emulated)
    slow, fast = module.timed(Fake(), 100_000)  # type: ignore[arg-type]
    assert ran == ["fp32", "int8"] * (module.TIMED_RUNS + 1) and slow > fast > 0


@pytest.mark.parametrize("target", [NATIVE, FOREIGN])
def test_an_int8_bundle_loads_verifies_and_runs(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, target: str,
) -> None:  # fmt: skip
    reuse(monkeypatch, exports["levels"])
    made = build(
        recipe(line, f"targets=[{target}]"),
        target,
        line.checkpoints["levels"],
        tmp_path / "b",
        Images(data),
    )
    assert made.manifest.precision.done == "int8"
    assert made.manifest.golden.agreement_min == 0.995
    stored = onnx.load(made.path / made.manifest.model)
    assert operators(stored).count("QuantizeLinear") == 25
    with edgekd.load(made.path, any_device=True) as session:
        assert session.verify() <= session.manifest.golden.atol
        image = data.load(data.split("val")[0])[0]
        assert session.run(image).classes.shape == image.shape[:2]


def test_golden_classes_are_compared(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, quick: Any, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Within the bound of the logits, and other classes all the same."""
    reuse(monkeypatch, exports["levels"])
    made = build(
        recipe(line, "gates.golden.atol=1e6"), NATIVE, line.checkpoints["levels"], tmp_path / "b",
        Images(data),
    )  # fmt: skip
    with edgekd.load(made.path) as session:
        session.verify()
        model = session.backend.infer
        monkeypatch.setattr(
            session.backend, "infer", lambda *a, **k: {n: -v for n, v in model(*a, **k).items()}
        )
        with pytest.raises(GateError, match=r"% of the golden cells have the stored class"):
            session.verify()
