"""Comparison of two forms of a model: exact numbers by hand, and that a fault fails."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgekd.deploy.parity import FloatArray, Parity, compare

ATOL = 1e-3


def inputs(count: int = 2) -> list[FloatArray]:
    random = np.random.default_rng(2)
    return [random.normal(0, 1, (count, 3, 4, 4)).astype(np.float32) for _ in range(3)]


def reference(tensor: FloatArray) -> FloatArray:
    return np.ascontiguousarray(tensor[:, :2] * 4)


def test_exact_numbers() -> None:
    want = np.array([[[[1.0, 5.0]], [[2.0, -3.0]]]], np.float32)  # classes 1, 0
    have = np.array([[[[1.0, 5.5]], [[0.0, -3.0]]]], np.float32)  # classes 0, 0
    parity = compare(lambda _: want, lambda _: have, [np.zeros((1, 3, 1, 2), np.float32)])
    assert parity == Parity(max_abs=2.0, logit_range=8.0, agreement=0.5, inputs=1)


def test_counts_over_all_inputs_of_different_sizes() -> None:
    batches = [*inputs(1), *inputs(3)]
    parity = compare(reference, lambda x: reference(x) + np.float32(0.25), batches)
    assert parity.inputs == 12 and parity.agreement == 1.0
    assert parity.max_abs == pytest.approx(0.25, abs=1e-5)
    values = np.concatenate([reference(item).ravel() for item in batches])
    assert parity.logit_range == pytest.approx(float(np.ptp(values)))


def test_the_worst_difference_is_kept_wherever_it_is() -> None:
    for place in range(3):
        calls = iter(range(3))

        def spoiled(tensor: FloatArray, place: int = place, calls: object = calls) -> FloatArray:
            result = reference(tensor).copy()
            if next(calls) == place:  # type: ignore[call-overload]
                result[0, 1, 2, 3] -= 2 * ATOL
            return result

        parity = compare(reference, spoiled, inputs())
        assert parity.max_abs == pytest.approx(2 * ATOL, rel=1e-2)
        gate = parity.gate("onnx_vs_torch", ATOL)
        assert not gate.passed and gate.value == parity.max_abs and gate.bound == ATOL
    assert compare(reference, reference, inputs()).gate("g", ATOL).passed


def test_a_difference_of_exactly_the_bound_passes() -> None:
    parity = Parity(max_abs=ATOL, logit_range=1, agreement=1, inputs=1)
    assert parity.gate("g", ATOL).passed
    assert not Parity(math.nextafter(ATOL, 1), 1, 1, 1).gate("g", ATOL).passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_nan_or_infinity_anywhere_fails(value: float, side: str) -> None:
    def spoiled(tensor: FloatArray) -> FloatArray:
        result = reference(tensor).copy()
        result[1, 0, 0, 0] = value
        return result

    first = spoiled if side != "candidate" else reference
    second = spoiled if side != "reference" else reference
    batches = inputs()
    with np.errstate(invalid="ignore"):
        parity = compare(first, second, [*batches, *batches])
    gate = parity.gate("g", 1e30)
    assert not gate.passed
    assert np.isfinite(gate.value)  # JSON has no NaN


def test_a_nan_in_the_first_input_is_not_forgotten() -> None:
    calls = iter([True, False, False])

    def spoiled(tensor: FloatArray) -> FloatArray:
        return reference(tensor) * np.float32(np.nan if next(calls) else 1)

    assert math.isnan(compare(reference, spoiled, inputs()).max_abs)


def test_other_shapes_and_no_input_are_errors() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2, 4, 4\) and \(2, 1, 4, 4\)"):
        compare(reference, lambda x: reference(x)[:, :1], inputs())
    with pytest.raises(ValueError, match="no input"):
        compare(reference, reference, [])


def test_integers_do_not_wrap() -> None:
    have = np.full((1, 2, 1, 1), 200, np.uint8)
    want = np.full((1, 2, 1, 1), 250, np.uint8)
    tensor = np.zeros((1, 3, 1, 1), np.float32)
    assert compare(lambda _: have, lambda _: want, [tensor]).max_abs == 50  # type: ignore[arg-type,return-value]
