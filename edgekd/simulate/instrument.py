"""What sensors make of the light: a colour camera, an imaging spectrometer, LiDAR.

The figures are declared here and are of the order of AVIRIS in the 1990s (Green et al. 1998, Remote
Sens. Environ. 65, 227-248), a machine vision camera and airborne LiDAR; none was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.simulate.mixing import blend
from edgekd.simulate.terrain import Seeds

Array = npt.NDArray[np.float32]
Wavelengths = npt.NDArray[np.float64]

#: centre of the camera's filters R, G, B and their full width at half maximum, Gaussian, nm
CAMERA_NM = (600.0, 540.0, 460.0)
CAMERA_FWHM_NM = 80.0
#: electrons of a full pixel, and of its read-out noise
FULL_WELL, READ_NOISE = 9000.0, 8.0

#: signal to noise of the spectrometer over a level surface of this reflectance
SNR_REFLECTANCE = 0.5
SNR = (
    (380, 60), (420, 180), (500, 450), (700, 550), (1000, 450), (1250, 350), (1700, 280),
    (2000, 150), (2200, 220), (2350, 140), (2510, 60),
)  # fmt: skip
#: of the noise's variance at that reflectance, what does not depend on the light
_READ_SHARE = 0.35
#: where water vapour lets no light through, nm
WATER_NM = ((1340.0, 1450.0), (1790.0, 1960.0))
_WATER_NOISE = 0.2
#: deviation of a column's gain, of a band's gain in a scene, share of (column, band) that are bad
_COLUMN_GAIN, _BAND_GAIN, _STRIPES, _STRIPE = 0.002, 0.008, 0.004, 0.02

#: of a height, m; of a place, m (times the slope); share of pixels and of blots without a return
LIDAR_NOISE_M, LIDAR_PLACE_M = 0.08, 0.25
_LOST, _BLOTS_PER_PX = 0.002, 1 / 6000


@dataclass(frozen=True)
class Camera:
    """The camera as it is set in one scene.

    Attributes:
        full_scale: apparent reflectance that fills a pixel.
        balance: gain of R, G, B that is left after the white balance.
    """

    full_scale: float
    balance: tuple[float, float, float]


def camera_weights(wavelengths_nm: Wavelengths) -> Array:
    """Weight of each band in R, G, B, (3, bands), rows sum to 1: white stays white."""
    sigma = CAMERA_FWHM_NM / (2 * np.sqrt(2 * np.log(2)))
    centre = np.array(CAMERA_NM)[:, None]
    weights = np.exp(-0.5 * ((wavelengths_nm[None, :] - centre) / sigma) ** 2)
    weights *= np.gradient(wavelengths_nm)  # bands of overlapping spectrometers lie closer
    return np.asarray(weights / weights.sum(1, keepdims=True), dtype=np.float32)


def photograph(
    apparent: Array, weights: Array, camera: Camera, rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """8-bit picture.

    Args:
        apparent: (..., bands) apparent reflectance.
        weights: (3, bands) of :func:`camera_weights`.

    Returns:
        uint8 (..., 3): shot and read-out noise, clipped, with sRGB's curve (IEC 61966-2-1).
    """
    gain = np.asarray(camera.balance, dtype=np.float32) / np.float32(camera.full_scale)
    light = gain * blend(apparent, weights.T)
    deviation = np.sqrt(np.maximum(light, 0) / FULL_WELL + (READ_NOISE / FULL_WELL) ** 2)
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    linear = np.clip(light + deviation * noise, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * curve), dtype=np.uint8)


def in_water(wavelengths_nm: Wavelengths) -> npt.NDArray[np.bool_]:
    """Bands in which the air's water vapour leaves nothing but noise, (bands,)."""
    inside = [(low <= wavelengths_nm) & (wavelengths_nm <= high) for low, high in WATER_NM]
    return np.asarray(np.any(inside, axis=0))


class Spectrometer:
    """The imaging spectrometer in one scene: its noise, its gains and its stripes.

    Args:
        seeds: of the scene.
        wavelengths_nm: of the bands.
        columns: of the scene; each is one element across the track.
    """

    def __init__(self, seeds: Seeds, wavelengths_nm: Wavelengths, columns: int) -> None:
        rng = seeds.rng("spectrometer")
        bands = len(wavelengths_nm)
        self.water = in_water(wavelengths_nm)
        at, snr = (np.array(values, dtype=np.float64) for values in zip(*SNR, strict=True))
        deviation = SNR_REFLECTANCE / np.interp(wavelengths_nm, at, snr)
        # shoulders of weaker water vapour, at 940 and 1130 nm, are noisier
        for centre in (940.0, 1130.0):
            deviation *= 1 + 1.5 * np.exp(-0.5 * ((wavelengths_nm - centre) / 15) ** 2)
        self._variance = (deviation**2).astype(np.float32)
        smooth = np.interp(
            wavelengths_nm, np.linspace(350, 2550, 12), rng.normal(0, _BAND_GAIN, 12)
        )
        gain = 1 + smooth + rng.normal(0, _BAND_GAIN / 4, bands)
        self._gain = (gain * (1 + rng.normal(0, _COLUMN_GAIN, (columns, 1)))).astype(np.float32)
        bad = rng.random((columns, bands), dtype=np.float32) < _STRIPES
        self._offset = np.where(bad, rng.normal(0, _STRIPE, (columns, bands)), 0).astype(np.float32)

    def measure(self, apparent: Array, rng: np.random.Generator) -> Array:
        """Apparent reflectance as it is delivered.

        Args:
            apparent: (rows, columns, bands).

        Returns:
            float32 (rows, columns, bands), 0 or above; in water vapour noise alone.
        """
        noise = rng.standard_normal(apparent.shape, dtype=np.float32)
        light = np.maximum(apparent, 0) / np.float32(SNR_REFLECTANCE)
        deviation = np.sqrt(self._variance * (_READ_SHARE + (1 - _READ_SHARE) * light))
        measured = apparent * self._gain + self._offset + deviation * noise
        measured[..., self.water] = np.float32(_WATER_NOISE) * np.abs(noise[..., self.water])
        return np.asarray(np.maximum(measured, 0))


def lidar_blots(seeds: Seeds, side_px: int) -> npt.NDArray[np.float64]:
    """Small round places without a return, (blots, 3): row, column and radius, px."""
    rng = seeds.rng("blots")
    count = rng.poisson(side_px**2 * _BLOTS_PER_PX)
    return rng.uniform([0, 0, 1.0], [side_px, side_px, 2.6], (count, 3))


def range_heights(
    heights_m: Array,
    slope: Array,
    first_row: int,
    nodata: float,
    blots: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> Array:
    """Heights as LiDAR gives them.

    Args:
        heights_m: true heights of some rows of the scene.
        slope: m per m, of the same pixels: a place that is off is a height that is off.
        first_row: number of the first of those rows in the scene.
        nodata: what stands where no pulse came back: in the blots, and in single pixels.
        blots: of the scene.

    Returns:
        float32 as ``heights_m``.
    """
    rows, columns = heights_m.shape
    deviation = np.hypot(np.float32(LIDAR_NOISE_M), np.float32(LIDAR_PLACE_M) * slope)
    measured = heights_m + deviation * rng.standard_normal((rows, columns), dtype=np.float32)
    lost = rng.random((rows, columns)) < _LOST
    down = np.arange(first_row, first_row + rows)[:, None] + 0.5
    near = (blots[:, 0] > first_row - 3) & (blots[:, 0] < first_row + rows + 3)
    for row, column, radius in blots[near]:
        low, high = max(int(column) - 4, 0), min(int(column) + 5, columns)
        east = np.arange(low, high)[None, :] + 0.5
        lost[:, low:high] |= (down - row) ** 2 + (east - column) ** 2 < radius**2
    return np.asarray(np.where(lost, np.float32(nodata), measured), dtype=np.float32)
