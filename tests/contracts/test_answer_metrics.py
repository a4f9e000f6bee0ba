"""Figures of answers, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.contracts.answer_metrics import (
    accuracy,
    answer_figures,
    balanced_accuracy,
    compliance,
    ece,
)
from edgekd.contracts.projection import Limits
from edgekd.errors import InputError

ANSWERS = np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.5, 0.1, 0.4]])
LABELS = np.array([0, 0, 1, 2])


def limit(row: list[float], bound: float) -> Limits:
    rules = np.zeros((2, 3), np.float32)
    rules[0] = row
    return Limits(rules, np.array([bound, 1], np.float32), np.full(3, 1 / 3, np.float32))


def test_accuracy_and_its_balance() -> None:
    assert accuracy(ANSWERS, LABELS) == pytest.approx(3 / 4)
    assert balanced_accuracy(ANSWERS, LABELS) == pytest.approx((1 + 1 + 0) / 3)
    assert balanced_accuracy(ANSWERS, np.array([0, 0, 0, 0])) == pytest.approx(3 / 4)


def test_calibration_error_by_bins() -> None:
    """With two bins: (0, 0.5] has the last place, (0.5, 1] the others."""
    low = abs(0.5 - 0)
    high = abs((0.9 + 0.8 + 0.6) / 3 - 1)
    assert ece(ANSWERS, LABELS, bins=2) == pytest.approx(low / 4 + 3 * high / 4)
    one = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert ece(one, np.array([0, 0])) == 0 and ece(one, np.array([0, 1])) == pytest.approx(0.5)


def test_errors_of_opposite_sign_in_one_bin_cancel_and_in_two_do_not() -> None:
    given = np.array([[0.6, 0.4], [0.9, 0.1]])  # wrong at 0.6, right at 0.9
    labels = np.array([1, 0])
    assert ece(given, labels, bins=1) == pytest.approx(abs(0.75 - 0.5))
    assert ece(given, labels, bins=15) == pytest.approx((0.6 + 0.1) / 2)


def test_compliance_of_answers_and_of_their_top_class() -> None:
    limits = [
        limit([1, 0, 0], 0.9), limit([1, 0, 0], 0.5), limit([1, 0, 0], 0.2), limit([0, 0, 1], 0.4),
    ]  # fmt: skip
    found = compliance(ANSWERS, limits)
    assert found.obey == 2 / 4, "0.8 and 0.3 are past 0.5 and 0.2"
    assert found.winners_obey == 2 / 4, "a certain first class is past 0.9 and 0.5"
    assert found.worst_past == pytest.approx(0.3) and found.mean_past == pytest.approx(0.4 / 4)
    whole = answer_figures(ANSWERS, LABELS, limits)
    assert whole["compliance"]["obey"] == 0.5 and whole["accuracy"] == 0.75
    assert answer_figures(ANSWERS, LABELS)["compliance"] is None


@pytest.mark.parametrize(
    ("answers", "labels", "words"),
    [
        (ANSWERS, LABELS[:3], "do not fit"),
        (ANSWERS[:0], LABELS[:0], "one place at least"),
        (ANSWERS, LABELS + 1, r"outside 0\.\.2"),
        (ANSWERS * np.nan, LABELS, "not finite"),
    ],
)
def test_what_cannot_be_counted(answers: np.ndarray, labels: np.ndarray, words: str) -> None:
    for figure in (accuracy, balanced_accuracy, ece):
        with pytest.raises(InputError, match=words):
            figure(answers, labels)


def test_scores_have_no_calibration_and_rules_are_one_for_each() -> None:
    with pytest.raises(InputError, match="sum to 1"):
        ece(ANSWERS * 3, LABELS)
    with pytest.raises(InputError, match="1 sets of rules for 4 places"):
        compliance(ANSWERS, [limit([1, 0, 0], 1)])
