"""Normalisation: exact values, and pixels that cannot be meant."""

from __future__ import annotations

import numpy as np
import pytest

from edgekd.contracts.preprocess import Normalizer, check_pixels
from edgekd.contracts.tensors import ImageInput
from edgekd.errors import ImageError

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def spec(**changes: object) -> ImageInput:
    values = {"shape": ["N", 3, 32, 32], "mean": MEAN, "std": STD}
    return ImageInput.model_validate(values | changes)


def test_every_pixel_value_matches_the_formula() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.stack([values, values.T, values[::-1]], axis=2)
    result = Normalizer(spec())(image)
    assert result.shape == (3, 16, 16) and result.dtype == np.float32
    for channel in range(3):
        exact = (image[:, :, channel].astype(np.float64) - MEAN[channel]) / STD[channel]
        np.testing.assert_allclose(result[channel], exact, atol=1e-6)


def test_channels_keep_their_order() -> None:
    image = np.zeros((2, 2, 3), dtype=np.uint8)
    image[:, :, 2] = 255
    result = Normalizer(spec(mean=[0, 0, 0], std=[1, 1, 1]))(image)
    assert result[:, 0, 0].tolist() == [0, 0, 255]


def test_writes_into_the_given_array_and_leaves_the_pixels_alone() -> None:
    image = np.full((4, 4, 3), 7, dtype=np.uint8)
    out = np.full((3, 4, 4), np.nan, dtype=np.float32)
    assert Normalizer(spec())(image[::-1], out=out) is out
    assert np.isfinite(out).all() and (image == 7).all()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4), np.uint8), "(height, width, 3)"),
        (np.zeros((3, 4, 4), np.uint8), "received (3, 4, 4)"),
        (np.zeros((4, 4, 4), np.uint8), "received (4, 4, 4)"),
        (np.zeros((4, 4, 3), np.uint16), "received uint16; scale"),
        (np.zeros((4, 4, 3), np.int8), "received int8"),
        (np.zeros((4, 4, 3), np.float32), "received float32; scale"),
        (np.full((2, 2, 3), np.nan, np.float32), "with 12 NaN or infinite values"),
        (np.full((1, 1, 3), np.inf, np.float64), "with 3 NaN or infinite values"),
    ],
)
def test_other_pixels_are_refused(image: np.ndarray, words: str) -> None:
    with pytest.raises(ImageError) as caught:
        check_pixels(image, 3)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"shape": ["N", 3, 32, 64]}, "tiles are square"),
        ({"shape": [1, 3, 32, 32]}, "must be [N, channels, side, side]"),
        ({"shape": ["N", 3, "N", "N"]}, "must be [N, channels, side, side]"),
        ({"shape": ["N", 4, 32, 32]}, "all must agree"),
        ({"mean": [1.0]}, "all must agree"),
        ({"std": [1.0, 1.0, 0.0]}, "std must be above 0"),
        ({"std": [1.0, 1.0, -2.0]}, "std must be above 0"),
        ({"mean": [1.0, 1.0, float("nan")]}, "finite"),
    ],
)
def test_inconsistent_input_descriptions_are_refused(
    changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        spec(**changes)
    assert words in str(caught.value)
