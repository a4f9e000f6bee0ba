"""How minerals mix: areas side by side add reflectance, grains among each other do not.

Hapke's model for isotropic scatterers without opposition effect (Hapke 1981, J. Geophys. Res. 86,
3039-3054). With the albedo factor ``gamma = sqrt(1 - w)`` of the single scattering albedo ``w``
and his approximation ``H(x) = (1 + 2x) / (1 + 2 x gamma)``, the reflectance relative to a perfect
diffuser under the same geometry is

    R(w; mu0, mu) = (1 - gamma²) / ((1 + 2 mu0 gamma) (1 + 2 mu gamma))

with ``mu0``, ``mu`` the cosines of incidence and emission. Albedos of grains that are mixed add by
their share of the geometric cross section (Hapke 1981; Mustard and Pieters 1987, J. Geophys. Res.
92, E617-E626), reflectance of patches by their share of the area; both together are the linear
mixture of intimate mixtures of Heylen and Gader (2014, IEEE Geosci. Remote Sens. Lett. 11,
1195-1199).

Everything here is dimensionless, 0 to 1, and works on arrays that broadcast.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError

Array = npt.NDArray[Any]

#: cosine of incidence and emission at which the library's spectra are taken to be measured: 30 and
#: 0 degrees, as in RELAB. (USGS measured with an integrating sphere; the exact geometry cancels
#: except for the small change of R with the sun's height.)
LABORATORY = (float(np.cos(np.radians(30.0))), 1.0)


def albedo(reflectance: Array, mu0: float = LABORATORY[0], mu: float = LABORATORY[1]) -> Array:
    """Single scattering albedo of a powder with this relative reflectance; inverse of `reflect`.

    Solves R = (1 - g²) / ((1 + 2 mu0 g)(1 + 2 mu g)) for g, a quadratic with one root in 0-1.

    Raises:
        InputError: a value is not within 0 and 1.
    """
    values = np.asarray(reflectance)
    if not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"reflectance must be within 0 and 1, received {np.min(values):g} to {np.max(values):g}"
        )
    total, product = (mu0 + mu) * values, 1 + 4 * mu0 * mu * values
    gamma = (np.sqrt(total**2 + product * (1 - values)) - total) / product
    return np.asarray(1 - gamma**2)


def reflect(gamma: Array, mu0: Array | float, mu: Array | float) -> Array:
    """Reflectance relative to a perfect diffuser in the same light, from the albedo factor."""
    return np.asarray((1 - gamma * gamma) / ((1 + 2 * mu0 * gamma) * (1 + 2 * mu * gamma)))


def reflect_diffuse(gamma: Array) -> Array:
    """Reflectance for light from the whole sky: Hapke's r0 = (1 - gamma) / (1 + gamma)."""
    return np.asarray((1 - gamma) / (1 + gamma))


def albedo_factor(w: Array) -> Array:
    """``gamma = sqrt(1 - w)``."""
    return np.asarray(np.sqrt(np.maximum(1 - w, 0)))


def blend(shares: Array, values: Array) -> Array:
    """``shares @ values``, (..., n) and (n, bands) or (n,), added up in one order always.

    A matrix product of BLAS depends in its last bit on the number of threads, and the same seed
    must give the same bytes.
    """
    return np.asarray(
        np.einsum("...n,nb->...b" if values.ndim == 2 else "...n,n->...", shares, values)
    )


def cross_sections(volumes: Array, diameters_um: Array) -> Array:
    """Share of each mineral in the geometric cross section of a mixture.

    Args:
        volumes: (..., minerals), parts by volume, any sum above 0.
        diameters_um: (minerals,), of the grains; fine grains show more of themselves.

    Returns:
        (..., minerals), sum 1: volume over diameter, normalised.
    """
    weights = np.asarray(volumes) / np.asarray(diameters_um)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def mix_intimate(
    shares: Array,
    reflectance: Array,
    mu0: float = LABORATORY[0],
    mu: float = LABORATORY[1],
) -> Array:
    """Reflectance of an intimate mixture.

    Args:
        shares: (..., minerals), shares of the cross section, sum 1.
        reflectance: (minerals, bands) of the pure powders under the same geometry.

    Returns:
        (..., bands).
    """
    w = blend(np.asarray(shares), albedo(reflectance, mu0, mu))
    return reflect(albedo_factor(w), mu0, mu)


def regrain(w: Array, factor: Array | float) -> Array:
    """Albedo of the same mineral with grains ``factor`` times as large: ``w ** factor``.

    Where most light that is scattered went through the grain, w is near to its transmission
    exp(-absorption x path) (Hapke 1981), and the path grows with the grain: larger grains
    are darker and their bands deeper, as in the library's own sieve fractions.
    """
    return np.asarray(w**factor)
