"""Metrics against numbers worked out by hand, and against a brute-force count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.metrics import Confusion
from edgekd.contracts.tensors import ClassSpec

CLASSES = [
    ClassSpec(index=10 * number, name=name, color="#000000")
    for number, name in enumerate(("land", "water", "road"))
]


def u8(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.uint8)


def test_numbers_by_hand() -> None:
    confusion = Confusion(3)
    # land: 3 labels (2 hit, 1 called water); water: 1 label, hit; one pixel does not count
    confusion.add(u8(0, 0, 0, 1, IGNORE), u8(0, 0, 1, 1, 2))
    assert confusion.counts.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert confusion.iou() == [2 / 3, 1 / 2, None]
    assert confusion.f1() == [4 / 5, 2 / 3, None]
    assert confusion.miou() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert confusion.accuracy() == 3 / 4


def test_summary_has_null_for_an_absent_class_and_the_majority_answer() -> None:
    confusion = Confusion(3)
    confusion.add(u8(0, 0, 0, 1), u8(0, 0, 1, 1))
    summary = confusion.summary(CLASSES)
    assert summary["pixels"] == 4
    assert [item["iou"] for item in summary["per_class"]] == [2 / 3, 1 / 2, None]
    assert [item["index"] for item in summary["per_class"]] == [0, 10, 20]
    assert [item["label_pixels"] for item in summary["per_class"]] == [3, 1, 0]
    assert [item["predicted_pixels"] for item in summary["per_class"]] == [2, 2, 0]
    majority = summary["majority_class"]
    # always "land": IoU 3/4 and 0; road occurs nowhere and counts neither way
    assert majority["name"] == "land" and majority["miou"] == pytest.approx(0.375)
    assert majority["overall_accuracy"] == 0.75
    assert majority["mean_f1"] == pytest.approx((6 / 7 + 0) / 2)


def test_a_class_that_is_only_predicted_has_score_zero_not_null() -> None:
    confusion = Confusion(3)
    confusion.add(u8(0, 0), u8(0, 2))
    assert confusion.iou() == [0.5, None, 0.0]


def test_all_ignored_gives_zero_not_nan() -> None:
    confusion = Confusion(2)
    confusion.add(u8(IGNORE, IGNORE), u8(0, 1))
    assert confusion.iou() == [None, None]
    assert (confusion.miou(), confusion.accuracy()) == (0.0, 0.0)


def test_images_count_by_pixels_not_by_image() -> None:
    one, both = Confusion(2), Confusion(2)
    one.add(u8(0, 1, 1, 0, 0, 0), u8(0, 1, 0, 0, 0, 1))
    both.add(u8(0, 1), u8(0, 1))
    both.add(u8(1, 0, 0, 0), u8(0, 0, 0, 1))
    np.testing.assert_array_equal(one.counts, both.counts)


@pytest.mark.parametrize(
    ("target", "predicted"),
    [(u8(0, 2), u8(0, 1)), (u8(0, 1), u8(0, 2)), (u8(0, 1), u8(0, IGNORE)), (u8(0), u8(0, 1))],
)
def test_values_outside_the_classes_are_refused(target: np.ndarray, predicted: np.ndarray) -> None:
    with pytest.raises(ValueError):
        Confusion(2).add(target, predicted)


labels = st.sampled_from([0, 1, 2, 3, IGNORE])


@given(
    hnp.arrays(np.uint8, (5, 7), elements=labels),
    hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, 3)),
)
def test_against_brute_force(target: np.ndarray, predicted: np.ndarray) -> None:
    confusion = Confusion(4)
    confusion.add(target, predicted)
    pairs = [
        (int(t), int(p))
        for t, p in zip(target.ravel(), predicted.ravel(), strict=True)
        if t != IGNORE
    ]
    for k in range(4):
        hit = sum(t == k and p == k for t, p in pairs)
        union = sum(t == k or p == k for t, p in pairs)
        assert confusion.iou()[k] == (hit / union if union else None)
        missed = sum(t == k and p != k for t, p in pairs)
        false = sum(t != k and p == k for t, p in pairs)
        total = 2 * hit + missed + false
        assert confusion.f1()[k] == (2 * hit / total if total else None)
    right = sum(t == p for t, p in pairs)
    assert confusion.accuracy() == (right / len(pairs) if pairs else 0.0)
