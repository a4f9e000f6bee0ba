"""Whitening by the noise between neighbours: what it divides out, and what it does not look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgekd.train.teachers import _whitening
from edgekd.train.teachers._whitening import RIDGE, Scene, noise_whitening

BANDS = 6


def scene(height: int = 90, width: int = 80, seed: int = 0) -> tuple[Scene, np.ndarray]:
    """Two materials in large squares, under noise of a known covariance."""
    random = np.random.default_rng(seed)
    mixing = random.normal(0, 1, (BANDS, BANDS)) * np.array([2.0, 1, 1, 0.5, 0.5, 0.2])
    material = (np.indices((height, width)) // 4).sum(0) % 2
    spectra = np.array([np.arange(BANDS), np.arange(BANDS)[::-1]], dtype=float) * 5
    values = spectra[material] + random.normal(0, 1, (height, width, BANDS)) @ mixing.T
    planes = np.ascontiguousarray(np.moveaxis(values, 2, 0)).astype(np.float32)
    return (planes, np.ones((height, width), dtype=bool)), mixing @ mixing.T


def again(*scenes: Scene) -> Callable[[], Iterator[Scene]]:
    return lambda: iter(scenes)


def scale(*scenes: Scene) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.concatenate([planes[:, known].T for planes, known in scenes]).astype(float)
    return pixels.mean(axis=0), pixels.std(axis=0)


def test_it_divides_by_the_noise_and_not_by_the_materials() -> None:
    one, covariance = scene()
    mean, std = scale(one)
    found = noise_whitening(again(one), mean, std).astype(float)
    assert np.allclose(found, found.T, atol=1e-6)
    wanted = covariance / np.outer(std, std)
    wanted += RIDGE * np.trace(wanted) / BANDS * np.eye(BANDS)
    values, vectors = np.linalg.eigh(wanted)
    expected = (vectors / np.sqrt(values)) @ vectors.T
    # up to a scale: near pairs are the small ones, so their noise is smaller alike
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.98
    pixels = ((one[0].reshape(BANDS, -1).T - mean) / std) @ found
    assert (pixels**2).mean() == pytest.approx(1.0, rel=1e-3)


def test_a_weak_direction_that_tells_materials_apart_counts() -> None:
    """Light varies twenty times as much as what tells the materials apart, from pixel to pixel."""
    random = np.random.default_rng(1)
    material = (np.indices((60, 60)) // 20).sum(0) % 2
    light = random.normal(0, 1.0, (60, 60, 1)) * np.ones(BANDS)
    told = 0.05 * np.array([1, -1, 1, -1, 1, -1.0]) * (2 * material[..., None] - 1)
    values = light + told + random.normal(0, 0.02, (60, 60, BANDS))
    planes = np.moveaxis(values, 2, 0).astype(np.float32)
    one = (planes, np.ones((60, 60), dtype=bool))
    mean, std = scale(one)
    plain = ((planes.reshape(BANDS, -1).T - mean) / std).astype(float)

    def apart(pixels: np.ndarray) -> float:
        """Distance of the materials' means over the spread within them."""
        first, second = (pixels[material.ravel() == k] for k in (0, 1))
        return float(np.linalg.norm(first.mean(0) - second.mean(0)) / np.sqrt(first.var(0).sum()))

    assert apart(plain @ noise_whitening(again(one), mean, std)) > 2.5 * apart(plain)


def test_pixels_that_do_not_count_change_nothing() -> None:
    (planes, known), _ = scene()
    known = known.copy()
    known[20:50, 10:70] = False
    mean, std = scale((planes, known))
    found = noise_whitening(again((planes, known)), mean, std)
    other = planes.copy()
    other[:, ~known] = np.nan
    assert np.array_equal(found, noise_whitening(again((other, known)), mean, std))


def test_it_does_not_depend_on_how_much_is_looked_at_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, _ = scene()
    two, _ = scene(41, 57, seed=3)
    mean, std = scale(one, two)
    whole = noise_whitening(again(one, two), mean, std)
    monkeypatch.setattr(_whitening, "_ROWS", 7)
    assert np.allclose(noise_whitening(again(one, two), mean, std), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("pixels", [[(3, 3)], [(0, 0), (2, 2), (5, 1)]])
def test_without_neighbours_nothing_is_whitened(pixels: list[tuple[int, int]]) -> None:
    (planes, known), _ = scene(8, 8)
    known = np.zeros_like(known)
    for place in pixels:
        known[place] = True
    found = noise_whitening(again((planes, known)), np.zeros(BANDS), np.ones(BANDS))
    assert np.array_equal(found, np.eye(BANDS, dtype=np.float32))


def test_bands_without_any_noise_do_not_break_it() -> None:
    planes = np.zeros((BANDS, 12, 12), np.float32)
    planes[0, :, 6:] = 1.0
    one = (planes, np.ones((12, 12), dtype=bool))
    mean, std = scale(one)
    assert np.isfinite(noise_whitening(again(one), mean, std)).all()
