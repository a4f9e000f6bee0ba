"""Hapke's model: known values, the way back, and what tells a mixture from a mosaic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.errors import InputError
from edgekd.simulate.mixing import (
    LABORATORY,
    albedo,
    albedo_factor,
    cross_sections,
    mix_intimate,
    reflect,
    reflect_diffuse,
    regrain,
)

UNIT = st.floats(0.0, 1.0)
COSINE = st.floats(0.05, 1.0)


@pytest.mark.parametrize(
    ("w", "mu0", "mu", "expected"),
    [
        # gamma = sqrt(1 - w) = 0.5: (1 - 0.25) / ((1 + 1)(1 + 1))
        (0.75, 1.0, 1.0, 0.1875),
        # gamma = 0.2: 0.96 / ((1 + 0.2)(1 + 0.4))
        (0.96, 0.5, 1.0, 0.96 / (1.2 * 1.4)),
        (1.0, 0.3, 0.7, 1.0),
        (0.0, 0.3, 0.7, 0.0),
    ],
)
def test_reflectance_by_hand(w: float, mu0: float, mu: float, expected: float) -> None:
    gamma = albedo_factor(np.array(w))
    assert reflect(gamma, mu0, mu) == pytest.approx(expected, abs=1e-12)


def test_light_from_the_whole_sky_by_hand() -> None:
    assert reflect_diffuse(albedo_factor(np.array(0.75))) == pytest.approx((1 - 0.5) / 1.5)


@given(reflectance=UNIT, mu0=COSINE, mu=COSINE)
def test_there_and_back(reflectance: float, mu0: float, mu: float) -> None:
    w = albedo(np.array(reflectance), mu0, mu)
    assert -1e-9 <= w <= 1 + 1e-9
    assert reflect(albedo_factor(w), mu0, mu) == pytest.approx(reflectance, abs=1e-6)


@given(first=UNIT, second=UNIT, mu0=COSINE)
def test_more_albedo_is_more_light(first: float, second: float, mu0: float) -> None:
    low, high = sorted((first, second))
    dark, bright = (reflect(albedo_factor(np.array(w)), mu0, 1.0) for w in (low, high))
    assert 0 <= dark <= bright + 1e-12 <= 1 + 1e-9


def test_what_is_no_reflectance_is_refused() -> None:
    for wrong in (-0.01, 1.01, float("nan")):
        with pytest.raises(InputError, match="within 0 and 1"):
            albedo(np.array([0.5, wrong]))


def test_a_pure_mineral_is_unchanged() -> None:
    spectra = np.array([[0.1, 0.5, 0.9], [0.3, 0.2, 0.8]])
    for index in range(2):
        mixed = mix_intimate(np.eye(2)[index], spectra)
        assert np.allclose(mixed, spectra[index], atol=1e-12)
    assert np.allclose(mix_intimate(np.array([0.4, 0.6]), spectra[[0, 0]]), spectra[0])


def test_grains_among_each_other_are_darker_than_side_by_side() -> None:
    spectra = np.array([[0.9], [0.05]])
    for dark in (0.05, 0.2, 0.5, 0.8):
        shares = np.array([1 - dark, dark])
        mosaic = float((shares @ spectra)[0])
        mixture = float(mix_intimate(shares, spectra)[0])
        assert mixture < 0.9 * mosaic
        assert 0.05 < mixture < 0.9
    # one part in five of a black mineral takes away more than half of the light
    assert mix_intimate(np.array([0.8, 0.2]), spectra)[0] < 0.45


def test_fine_grains_show_more_of_themselves() -> None:
    # equal volumes, diameters 1 to 4: cross sections 4 to 1
    assert cross_sections(np.array([0.5, 0.5]), np.array([25.0, 100.0])) == pytest.approx(
        [0.8, 0.2]
    )
    shares = cross_sections(np.random.default_rng(0).random((4, 3)), np.array([50.0, 100.0, 70.0]))
    assert np.allclose(shares.sum(-1), 1)


def test_coarser_grains_are_darker_and_their_bands_deeper() -> None:
    w = albedo(np.array([0.8, 0.4]))  # shoulder and centre of a band
    assert np.array_equal(regrain(w, 1.0), w)
    fine, coarse = (reflect(albedo_factor(regrain(w, k)), *LABORATORY) for k in (0.5, 2.0))
    assert (coarse < fine).all()
    assert 1 - coarse[1] / coarse[0] > 1 - fine[1] / fine[0]
