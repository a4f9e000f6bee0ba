"""Sensors: what they keep, and the noise that they add."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edgekd.simulate.instrument import (
    FULL_WELL,
    LIDAR_NOISE_M,
    LIDAR_PLACE_M,
    SNR,
    Camera,
    Spectrometer,
    camera_weights,
    in_water,
    lidar_blots,
    photograph,
    range_heights,
)
from edgekd.simulate.terrain import Seeds
from tests.helpers.spectra import aviris_nm

NM = np.sort(aviris_nm())
PLAIN = Camera(1.0, (1.0, 1.0, 1.0))


def test_the_camera_sees_colours_and_leaves_white_white() -> None:
    weights = camera_weights(NM)
    assert np.allclose(weights.sum(1), 1, atol=1e-6) and weights.shape == (3, 224)
    assert weights @ NM == pytest.approx([600, 540, 460], abs=8)  # the violet end is cut
    assert weights[:, NM > 720].sum() < 1e-3
    flat = np.full((40, 40, 224), 0.5, dtype=np.float32)
    grey = photograph(flat, weights, PLAIN, np.random.default_rng(0))
    # sRGB of 0.5 is 188
    assert np.allclose(grey.reshape(-1, 3).mean(0), 188, atol=1) and grey.dtype == np.uint8
    red = np.where(NM > 580, 0.8, 0.05).astype(np.float32)
    seen = photograph(red[None, None], weights, PLAIN, np.random.default_rng(0))[0, 0]
    assert seen[0] > seen[1] + 60 > seen[2] + 60


def test_the_cameras_noise_is_that_of_its_electrons() -> None:
    weights = camera_weights(NM)
    bright = photograph(
        np.full((200, 200, 224), 0.5, np.float32), weights, PLAIN, np.random.default_rng(1)
    )
    linear = ((bright / 255 + 0.055) / 1.055) ** 2.4
    assert linear.std() == pytest.approx(np.sqrt(0.5 / FULL_WELL), rel=0.1)
    full = photograph(
        np.full((2, 2, 224), 3.0, np.float32), weights, PLAIN, np.random.default_rng(1)
    )
    assert (full == 255).all()


def measured(level: float, seed: int = 0) -> np.ndarray:
    instrument = Spectrometer(Seeds(seed, 0), NM, 64)
    apparent = np.full((400, 64, 224), level, dtype=np.float32)
    return instrument.measure(apparent, np.random.default_rng(seed))


def test_the_spectrometers_noise_is_as_declared() -> None:
    cube = measured(0.5)
    noise = (cube - cube.mean(0)).std((0, 1))  # within columns: without gains and stripes
    for nm in (500, 700, 1000, 1250, 1700, 2200, 2350):
        band = int(np.argmin(abs(NM - nm)))
        assert 0.5 / noise[band] == pytest.approx(
            np.interp(NM[band], *zip(*SNR, strict=True)), rel=0.1
        )
    dark = measured(0.05)
    ratio = (dark - dark.mean(0)).std((0, 1))[40] / noise[40]
    assert 0.55 < ratio < 0.75  # less light, less shot noise, but the read-out stays


def test_nothing_is_left_where_water_vapour_absorbs() -> None:
    water = in_water(NM)
    assert water.sum() > 20
    assert not water[[np.argmin(abs(NM - nm)) for nm in (1330, 1460, 1780, 1975)]].any()
    low, high = measured(0.05), measured(0.8)
    assert np.allclose(low[..., water].mean(), high[..., water].mean(), atol=0.01)
    assert (high[..., ~water].mean((0, 1)) > 0.7).all()
    assert low.min() >= 0


def test_columns_have_gains_and_some_bands_stripes() -> None:
    columns = measured(0.5).mean(0)
    water = in_water(NM)
    off = np.abs(columns - np.median(columns, axis=0))[:, ~water]
    striped = (off > 0.01).mean()
    assert 0.001 < striped < 0.008
    gains = columns[:, 30:60].mean(1)
    assert 0.0005 < gains.std() / gains.mean() < 0.004
    other = measured(0.5, seed=1).mean(0)
    assert not np.allclose(columns[:, 50], other[:, 50])


def test_lidar_errs_more_on_slopes_and_loses_points() -> None:
    shape = (500, 500)
    heights = np.full(shape, 1400, dtype=np.float32)
    blots = lidar_blots(Seeds(0, 0), 500)
    assert 20 < len(blots) < 70  # one in 6000 of 250 000
    slope = np.zeros(shape, np.float32)
    slope[:, 250:] = 1.0
    seen = range_heights(heights, slope, 0, -9999.0, blots, np.random.default_rng(0))
    lost = seen == -9999
    assert seen.dtype == np.float32 and 0.003 < lost.mean() < 0.006
    level, steep = (part[part > 0].std() for part in (seen[:, :250], seen[:, 250:]))
    assert level == pytest.approx(LIDAR_NOISE_M, rel=0.1)
    assert steep == pytest.approx(np.hypot(LIDAR_NOISE_M, LIDAR_PLACE_M), rel=0.1)


def test_a_blot_is_round_whatever_rows_it_falls_into() -> None:
    blot = np.array([[20.0, 10.0, 2.4]])
    heights, flat = np.zeros((40, 40), np.float32), np.zeros((40, 40), np.float32)

    def lost(rows: list[int]) -> np.ndarray:
        parts = [
            range_heights(heights[a:b], flat[a:b], a, -1e4, blot, np.random.default_rng(7)) == -1e4
            for a, b in itertools.pairwise(rows)
        ]
        return np.concatenate(parts)[15:26, 5:16]

    whole = lost([0, 40])
    down, east = np.mgrid[15:26, 5:16] + 0.5
    round_ = (down - 20) ** 2 + (east - 10) ** 2 < 2.4**2
    assert whole[round_].all() and lost([0, 19, 20, 21, 40])[round_].all()
    assert whole.sum() < round_.sum() + 4
