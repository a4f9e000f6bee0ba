"""Ground and light: random fields by spectral synthesis, slopes, the sun's share, shadows.

Rows run south and columns east, ``gsd_m`` apart; places are given in metres from the scene's north
western corner. Heights are metres, angles degrees, azimuth clockwise from north.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft

Array = npt.NDArray[np.float32]

#: cells of a field's tile, and cells per shortest wave; a field comes back after
#: ``_TILE / _CELLS_PER_WAVE`` of its shortest waves
_TILE, _CELLS_PER_WAVE = 512, 4.0
#: the sun's disc is half a degree wide, so the edge of a shadow is soft
_SUN_DEG = 0.53
#: shadows longer than this are cut; in px
_LONGEST_SHADOW_PX = 256


@dataclass(frozen=True)
class Seeds:
    """Random numbers by purpose, so that none depends on what else was drawn before.

    Attributes:
        seed: of the whole set.
        scene: number of the scene.
    """

    seed: int
    scene: int

    def rng(self, *purpose: object) -> np.random.Generator:
        """A generator that depends on seed, scene and purpose alone."""
        text = "/".join(str(part) for part in (self.seed, self.scene, *purpose))
        digest = hashlib.sha256(text.encode()).digest()
        return np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))


class Field:
    """A Gaussian random field of mean 0 and deviation 1: noise, filtered by frequency.

    Its power falls as ``frequency ** -beta`` between two wavelengths (Saupe 1988, in The Science
    of Fractal Images, ch. 2: spectral synthesis). It is periodic, and is evaluated anywhere by
    cubic convolution, so a scene of any size costs one tile of memory.

    Args:
        rng: where the noise comes from.
        short_m, long_m: shortest and longest wavelength, m.
        beta: exponent of the power spectrum; 2 to 3 looks like terrain, 0 is a band of noise.
        stretch: how many times longer the waves are along ``along_deg`` (clockwise from north).
    """

    def __init__(
        self,
        rng: np.random.Generator,
        short_m: float,
        long_m: float,
        beta: float = 2.0,
        stretch: float = 1.0,
        along_deg: float = 0.0,
    ) -> None:
        self.cell_m = short_m / _CELLS_PER_WAVE
        noise = rng.standard_normal((_TILE, _TILE), dtype=np.float32)
        down = np.fft.fftfreq(_TILE, self.cell_m)[:, None]
        east = np.fft.rfftfreq(_TILE, self.cell_m)[None, :]
        angle = np.radians(along_deg)
        along = np.sin(angle) * east - np.cos(angle) * down
        across = np.cos(angle) * east + np.sin(angle) * down
        frequency = np.hypot(along * stretch, across)
        band = (frequency >= 1 / long_m) & (frequency <= 1 / short_m)
        # in two dimensions an amplitude of f ** -(beta + 1) / 2 gives sections of power f ** -beta
        amplitude = np.zeros(frequency.shape)
        amplitude[band] = frequency[band] ** (-(beta + 1) / 2)
        shape = scipy.fft.rfft2(noise, workers=1) * amplitude.astype(np.float32)
        tile = scipy.fft.irfft2(shape, s=(_TILE, _TILE), workers=1)
        self.tile: Array = ((tile - tile.mean()) / tile.std()).astype(np.float32)

    def __call__(self, down_m: npt.NDArray[np.float64], east_m: npt.NDArray[np.float64]) -> Array:
        """Values on the grid of these rows and columns, float32 (rows, columns)."""
        first, weights = _taps(down_m / self.cell_m)
        rows = sum(
            weights[k][:, None] * self.tile[(first + k) % _TILE] for k in range(len(weights))
        )
        first, weights = _taps(east_m / self.cell_m)
        result = sum(
            weights[k][None, :] * np.asarray(rows)[:, (first + k) % _TILE]
            for k in range(len(weights))
        )
        return np.asarray(result, dtype=np.float32)


def _taps(places: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], list[Array]]:
    """First of four cells around each place, and their weights: Catmull and Rom's cubic."""
    cell = np.floor(places)
    t = (places - cell).astype(np.float32)
    weights = [
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (-(t**2) + t**3) / 2,
    ]
    return cell.astype(np.int64) - 1, [np.asarray(item, dtype=np.float32) for item in weights]


@dataclass(frozen=True)
class Sun:
    """The light of a scene.

    Attributes:
        azimuth_deg: where the sun stands, clockwise from north.
        elevation_deg: above the horizon.
        diffuse: share of the light on level ground that comes from the sky, at 550 nm.
    """

    azimuth_deg: float
    elevation_deg: float
    diffuse: float

    @property
    def mu0(self) -> float:
        """Cosine of incidence on level ground."""
        return float(np.sin(np.radians(self.elevation_deg)))

    def diffuse_share(self, wavelengths_nm: npt.NDArray[np.float64]) -> Array:
        """Share of skylight on level ground by wavelength: bluer than the sun, as haze makes it.

        Falls as wavelength ** -1.5, between Rayleigh's -4 and coarse dust's 0.
        """
        share = self.diffuse * (np.asarray(wavelengths_nm) / 550.0) ** -1.5
        return np.minimum(share, 0.6).astype(np.float32)


def slopes(heights_m: Array, gsd_m: float) -> tuple[Array, Array]:
    """Rise to the south and to the east, m per m, by central differences."""
    south, east = np.gradient(heights_m, np.float32(gsd_m))
    return np.asarray(south), np.asarray(east)


def incidence(south: Array, east: Array, sun: Sun) -> tuple[Array, Array]:
    """Cosines of the sun's incidence (0 where turned away) and of the view from above."""
    mu = np.asarray(1 / np.sqrt(1 + south**2 + east**2), dtype=np.float32)
    up = np.radians(sun.elevation_deg)
    azimuth = np.radians(sun.azimuth_deg)
    toward_north, toward_east = np.cos(azimuth) * np.cos(up), np.sin(azimuth) * np.cos(up)
    # the normal is (south, -east, 1) * mu in (north, east, up)
    cosine = (south * toward_north - east * toward_east + np.sin(up)) * mu
    return np.asarray(np.maximum(cosine, 0), dtype=np.float32), mu


def sky_view(mu: Array) -> Array:
    """Share of the sky that a slope sees, ``(1 + cos slope) / 2``; other slopes are not counted."""
    return np.asarray((1 + mu) / 2, dtype=np.float32)


def longest_shadow_px(heights_m: Array, gsd_m: float, sun: Sun) -> int:
    """How far the highest place can throw a shadow on the lowest, px."""
    relief = float(heights_m.max() - heights_m.min())
    reach_m = relief / float(np.tan(np.radians(sun.elevation_deg - _SUN_DEG)))
    return min(int(np.ceil(reach_m / gsd_m)), _LONGEST_SHADOW_PX, sum(heights_m.shape))


def sunlit(heights_m: Array, gsd_m: float, sun: Sun, reach_px: int, first: int, last: int) -> Array:
    """Share of the sun's disc that is not behind other ground, 0 to 1.

    Walks from every pixel towards the sun in steps of a pixel; outside the scene the ground goes on
    as at its edge.

    Args:
        heights_m: (rows, columns) of the whole scene.
        reach_px: how far to walk, of :func:`longest_shadow_px`.
        first, last: rows to answer for, ``last`` not among them.

    Returns:
        float32 (last - first, columns).
    """
    azimuth = np.radians(sun.azimuth_deg)
    step_down, step_east = -float(np.cos(azimuth)), float(np.sin(azimuth))
    here = heights_m[first:last]
    horizon = np.full(here.shape, -np.inf, dtype=np.float32)
    for step in range(1, reach_px + 1):
        away = _shifted(heights_m, step * step_down, step * step_east, first, last)
        np.maximum(horizon, (away - here) / np.float32(step * gsd_m), out=horizon)
    angle = np.degrees(np.arctan(horizon))
    covered = (angle - (sun.elevation_deg - _SUN_DEG / 2)) / _SUN_DEG
    return np.asarray(1 - np.clip(covered, 0, 1), dtype=np.float32)


def _shifted(heights_m: Array, down: float, east: float, first: int, last: int) -> Array:
    """Heights so many pixels down and east of each pixel of some rows, bilinear."""
    rows, columns = heights_m.shape
    whole_down, whole_east = int(np.floor(down)), int(np.floor(east))
    t, u = np.float32(down - whole_down), np.float32(east - whole_east)
    row = np.clip(np.arange(first, last) + whole_down, 0, rows - 1)
    next_row = np.clip(np.arange(first, last) + whole_down + 1, 0, rows - 1)
    band = heights_m[row] * (1 - t) + heights_m[next_row] * t
    column = np.clip(np.arange(columns) + whole_east, 0, columns - 1)
    next_column = np.clip(np.arange(columns) + whole_east + 1, 0, columns - 1)
    return np.asarray(band[:, column] * (1 - u) + band[:, next_column] * u)
