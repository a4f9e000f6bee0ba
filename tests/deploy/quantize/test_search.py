"""Repair: the layer that was spoilt is found, and as few as possible stay high."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from edgekd.contracts.tensors import ImageInput
from edgekd.deploy.quantize.calibrate import observe
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.judge import Judge, Quality
from edgekd.deploy.quantize.layers import Layer, find_layers
from edgekd.deploy.quantize.material import tile_samples
from edgekd.deploy.quantize.qdq import insert_qdq
from edgekd.deploy.quantize.search import search
from edgekd.deploy.tiles import LabelledTile
from tests.deploy.quantize.graphs import CLASSES, SIDE, perceptron

SPEC = ImageInput(name="image", shape=["N", 3, SIDE, SIDE], mean=[128.0] * 3, std=[64.0] * 3)


def pictures(count: int) -> list[LabelledTile]:
    random = np.random.default_rng(4)
    return [
        LabelledTile(
            f"t{n}",
            random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
            random.integers(0, CLASSES, (SIDE, SIDE), dtype=np.uint8),
        )
        for n in range(count)
    ]


def prepared(poison: float):
    proto = perceptron(poison=poison)
    layers = find_layers(proto)
    shown = pictures(6)
    given = tile_samples(shown, SPEC)
    seen = observe(proto, layers, [item.inputs() for item in given], 6)
    judge = Judge(emulate(proto), given, CLASSES)

    def make(chosen: Sequence[Layer]):
        return emulate(insert_qdq(proto, chosen, seen.ranges("minmax", 0)))

    return layers, make, judge


def test_a_sound_model_keeps_nothing_high() -> None:
    layers, make, judge = prepared(1.0)
    found = search(layers, make, judge, lambda q: q.agreement >= 0.93)
    assert found.passed and found.kept_high == [] and not found.sensitivity
    assert found.quality.noise < 0.1 and judge.reference.agreement == 1.0
    assert judge.reference.noise == 0.0


def test_the_poisoned_layer_is_found_and_it_alone_kept_high() -> None:
    """One channel of fc1 times 500 (undone in fc2): FP32 is the same, fc2's input spans 500 times
    more, and 8 bits leave nothing of the other channels."""
    layers, make, judge = prepared(500.0)
    found = search(layers, make, judge, lambda q: q.agreement >= 0.93)
    assert found.tried[0][1].agreement < 0.93
    assert found.kept_high == ["blocks.0.fc2"] and found.passed
    assert max(found.sensitivity, key=found.sensitivity.__getitem__) == "blocks.0.fc2"
    assert set(found.sensitivity) == {layer.name for layer in layers}


@pytest.mark.parametrize(("needed", "expected"), [(1, 1), (2, 2), (3, 3), (5, 5), (6, None)])
def test_the_smallest_number_is_found_and_more_than_half_is_refused(
    needed: int, expected: int | None
) -> None:
    layers = [Layer(f"l{n}", "linear", f"n{n}", f"s{n}", f"w{n}", 1) for n in range(10)]

    class Fake:
        def __call__(self, made: list[str], most: int | None = None) -> Quality:
            worst = [name for name in made if int(name[1:]) < needed]
            noise = sum(1.0 / (1 + int(name[1:])) for name in made)
            return Quality(None, 1.0 - 0.1 * len(worst), noise, 0.0, 1)

    found = search(
        layers,
        lambda chosen: [layer.name for layer in chosen],
        Fake(),
        lambda q: q.agreement >= 0.999,
    )
    if expected is None:
        assert not found.passed and len(found.kept_high) == 5
    else:
        assert found.passed and found.kept_high == [f"l{n}" for n in range(expected)]
    assert found.tried[0][0] == 0


def test_a_module_with_two_nodes_goes_up_as_a_whole() -> None:
    layers = [Layer(f"l{n // 2}", "linear", f"n{n}", f"s{n}", f"w{n}", 1) for n in range(8)]

    class Fake:
        def __call__(self, made: list[Layer], most: int | None = None) -> Quality:
            bad = any(layer.name == "l0" for layer in made)
            return Quality(None, 0.5 if bad else 1.0, 1.0 if bad else 0.1, 0.0, 1)

    made: list[list[Layer]] = []

    def make(chosen: Sequence[Layer]) -> list[Layer]:
        made.append(list(chosen))
        return made[-1]

    found = search(layers, make, Fake(), lambda q: q.agreement >= 0.9)
    assert found.passed and found.kept_high == ["l0"] and set(found.sensitivity) == {
        "l0", "l1", "l2", "l3"
    }  # fmt: skip
    assert [layer.node for layer in made[-1]] == [f"n{n}" for n in range(2, 8)]


def test_quality_counts_by_hand() -> None:
    shown = [LabelledTile("a", np.zeros((SIDE, SIDE, 3), np.uint8), None)]

    def constant(values: list[float]):
        plane = np.array(values, np.float32).reshape(1, 2, 1, 2)
        return lambda tensor: plane

    judge = Judge(constant([1, 0, 0, 2]), tile_samples(shown, SPEC), 2)
    found = judge(constant([1, 3, 0, 2]))
    assert (found.agreement, found.max_abs, found.miou) == (0.5, 3.0, None)
    deviation = np.array([1, 0, 0, 2]).std()
    assert found.noise == pytest.approx(np.sqrt(9 / 4) / deviation)
    bad = judge(constant([1, float("nan"), 0, 2]))
    assert bad.agreement == 0 and bad.noise == np.inf and bad.max_abs == np.inf


def test_miou_by_hand() -> None:
    target = np.full((4, 4), 255, np.uint8)
    target[:2], target[2, :2] = 0, 1
    shown = [LabelledTile("a", np.zeros((4, 4, 3), np.uint8), target)]
    spec = ImageInput(name="image", shape=["N", 3, 4, 4], mean=[0.0] * 3, std=[1.0] * 3)
    always = np.zeros((1, 2, 4, 4), np.float32)
    always[:, 0] = 5
    judge = Judge(lambda tensor: always, tile_samples(shown, spec), 2)
    assert judge.reference.miou == pytest.approx((8 / 10 + 0) / 2)
