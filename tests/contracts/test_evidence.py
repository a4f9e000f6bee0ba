"""Evidence into tensors: scale, gaps, what is missing, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.evidence import KINDS, PRESENT, Evidence, EvidenceTensors, series_statistics
from edgekd.contracts.tensors import ImageInput, SeriesInput, TextInput
from edgekd.errors import InputError

IMAGE = ImageInput(shape=["N", 3, 8, 8], mean=[10, 20, 30], std=[2, 4, 8])
SERIES = SeriesInput(days=40, features=["level_m", "wind_m_s"], mean=[1.0, 5.0], std=[0.5, 2.0])
TEXT = TextInput(width=3)
WHOLE = Evidence(
    image=np.full((8, 8, 3), 30, np.uint8),
    series=np.tile(np.float32([2.0, 5.0]), (40, 1)),
    text=np.float32([0.0, 0.6, 0.8]),
)


@pytest.fixture
def tensors() -> EvidenceTensors:
    return EvidenceTensors(IMAGE, SERIES, TEXT)


def test_everything_is_scaled_and_present(tensors: EvidenceTensors) -> None:
    found = tensors([WHOLE])
    assert {name: value.shape for name, value in found.items()} == {
        "image": (1, 3, 8, 8), "series": (1, 40, 4), "text": (1, 3), PRESENT: (1, 3),
    }  # fmt: skip
    assert all(value.dtype == np.float32 for value in found.values())
    assert found["image"][0, :, 0, 0].tolist() == [10, 2.5, 0]
    assert (found["series"][0] == [2.0, 0.0, 1.0, 1.0]).all()
    assert (found["text"][0] == WHOLE.text).all() and (found[PRESENT] == 1).all()


def test_a_gap_is_zero_and_said_so(tensors: EvidenceTensors) -> None:
    series = WHOLE.series.copy()  # type: ignore[union-attr]
    series[3, 0] = np.nan
    found = tensors([replace(WHOLE, series=series)])["series"][0]
    assert found[3].tolist() == [0, 0, 0, 1] and found[4].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_zero_and_absent(tensors: EvidenceTensors, kind: str) -> None:
    found = tensors([WHOLE, replace(WHOLE, **{kind: None})])
    at = KINDS.index(kind)
    assert found[PRESENT].tolist() == [[1, 1, 1], [float(k != at) for k in range(3)]]
    assert (found[kind][1] == 0).all() and (found[kind][0] != 0).any()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"image": None, "series": None, "text": None}, "nothing is known of a place"),
    ({"image": np.zeros((8, 9, 3), np.uint8)}, r"the picture is uint8 \(8, 9, 3\), expected uint8"),
    ({"image": np.zeros((8, 8, 3), np.float32)}, "the picture is float32"),
    ({"series": np.ones((39, 2), np.float32)}, "too short: 39 days, expected 40"),
    ({"series": np.ones((41, 2), np.float32)}, "too long: 41 days, expected 40"),
    ({"series": np.ones((40, 3), np.float32)}, r"\(40, 3\), expected .* level_m, wind_m_s"),
    ({"series": np.ones((40, 2), np.int64)}, "the series is int64"),
    ({"series": np.full((40, 2), np.nan, np.float32)}, "values on 0 of 40 days, expected 30"),
    ({"series": np.full((40, 2), np.inf, np.float32)}, "infinite values; a gap is NaN"),
    ({"text": np.ones(4, np.float32)}, r"embedding is float32 \(4,\), expected float32 \(3,\)"),
    ({"text": np.float32([1, np.nan, 0])}, "embedding holds a value that is not finite"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_what_does_not_fit_is_one_sentence(
    tensors: EvidenceTensors, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        tensors([WHOLE, replace(WHOLE, **change)])


def test_twenty_nine_days_are_too_few(tensors: EvidenceTensors) -> None:
    series = np.full((40, 2), np.nan, np.float32)
    series[:30, 1] = 5
    assert tensors([replace(WHOLE, series=series)])["series"][0, :, 3].sum() == 30
    series[29] = np.nan
    with pytest.raises(InputError, match="29 of 40"):
        tensors([replace(WHOLE, series=series)])


def test_no_place_and_no_statistics_are_refused(tensors: EvidenceTensors) -> None:
    with pytest.raises(InputError, match="no place"):
        tensors([])
    with pytest.raises(InputError, match="mean and std; they come from training"):
        EvidenceTensors(IMAGE, SERIES.model_copy(update={"mean": None, "std": None}), TEXT)


def test_statistics_leave_gaps_out() -> None:
    values = np.float32(
        [[[1, 7, np.nan], [3, 7, np.nan]], [[5, np.nan, np.nan], [np.nan, 7, np.nan]]]
    )
    mean, std = series_statistics(values)
    assert mean == pytest.approx([3, 7, 0]) and std == pytest.approx([np.sqrt(8 / 3), 1, 1])


def test_an_impossible_value_is_refused_and_a_stored_one_is_not(tensors: EvidenceTensors) -> None:
    series = WHOLE.series.copy()  # type: ignore[union-attr]
    series[6, 1] = 9999
    with pytest.raises(
        InputError,
        match=r"day 7 has 9999 for wind_m_s, expected -95 to 105 \(50 standard deviations .*; a gap"
        " is NaN",
    ):
        tensors([replace(WHOLE, series=series)])
    assert tensors([replace(WHOLE, series=series)], stored=True)["series"][0, 6, 1] == 4997
