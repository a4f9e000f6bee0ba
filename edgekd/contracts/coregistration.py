"""Whether a camera's image lies where the spectral sensor saw the same ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.sensors import VISUAL
from edgekd.contracts.spectra import CIE1931, camera_weights
from edgekd.errors import DatasetError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

#: further apart the images do not show the same ground in the same pixel
MOST_PX = 1.0
#: a peak of the correlation that holds less of it tells nothing: unrelated images of 90 px reached
#: 0.24, red and blue of one scene 0.92, and a scene moved by a fifth of its width 0.68
_CLEAR = 0.4
_LEAST_SIDE_PX = 32
_VISIBLE_NM = (400.0, 700.0)


def shift_px(first: DoubleArray, second: DoubleArray) -> tuple[float, float, float]:
    """How far the second image lies beside the first, and how clearly that can be told.

    Phase correlation (Kuglin and Hines 1975) of the standardised images below a Hann window, with
    the centroid of its peak, which tells whole pixels within 0.1 px and halves within 0.4 px.

    Args:
        first, second: ``(H, W)``; NaN without data.

    Returns:
        Columns and rows (px, right and down positive) that the second image's content lies from
        that of the first, and the part of the correlation that is in the peak, 0-1.
    """
    import cv2

    height, width = first.shape
    window = cv2.createHanningWindow((width, height), cv2.CV_64F)
    (right, down), response = cv2.phaseCorrelate(_standard(first), _standard(second), window)
    return float(right), float(down), float(response)


def _standard(image: DoubleArray) -> DoubleArray:
    known = np.isfinite(image)
    values = image[known]
    spread = float(values.std()) if values.size else 0.0
    centred = np.where(known, image - (values.mean() if values.size else 0.0), 0.0)
    return np.ascontiguousarray(centred / spread if spread > 0 else centred)


def check_registration(
    scene: str,
    visual: FloatArray,
    spectral: FloatArray,
    wavelengths: DoubleArray,
    unusable: set[int],
    name: str,
) -> str:
    """Raise where the camera's image lies beside that of the spectral sensor; what was found.

    Args:
        scene: its id, for messages.
        visual: ``(3, H, W)`` of the camera.
        spectral: ``(bands, H, W)``.
        wavelengths: ``(bands,)`` nm.
        unusable: bad bands, counted from 0.
        name: of the spectral sensor.

    Raises:
        DatasetError: the shift is above 1 px.
    """
    height, width = visual.shape[1:]
    words = f"{scene}: whether {VISUAL} and {name} show the same ground could not be told"
    if min(height, width) < _LEAST_SIDE_PX:
        return f"{words}: {width}x{height} px are too few for a correlation"
    weights = _brightness(wavelengths, unusable, name)
    if weights is None:
        return f"{words}: {name} has no good band of visible light"
    used = np.flatnonzero(weights)
    seen = np.tensordot(weights[used], spectral[used].astype(np.float64), axes=1)
    right, down, response = shift_px(seen, visual.astype(np.float64).mean(0))
    if response < _CLEAR:
        return (
            f"{words}: the peak of their correlation holds {response:.2f} of it, below {_CLEAR}; "
            "look at both"
        )
    size = float(np.hypot(right, down))
    if size > MOST_PX:
        raise DatasetError(
            f"scene {scene}: {VISUAL} lies {size:.1f} px beside {name} ({right:+.1f} columns, "
            f"{down:+.1f} rows; at most {MOST_PX:g} px), so a pixel of one is not the ground of "
            "the other; move the image by that and write it anew"
        )
    return (
        f"{scene}: {VISUAL} lies {size:.2f} px beside {name} ({right:+.2f} columns, {down:+.2f} "
        f"rows), by phase correlation with {response:.2f} in its peak"
    )


def _brightness(wavelengths: DoubleArray, unusable: set[int], name: str) -> DoubleArray | None:
    """Weights ``(bands,)`` of an image at the camera's wavelengths; None without any band."""
    good = np.array([at not in unusable for at in range(len(wavelengths))], dtype=np.bool_)
    weights = np.zeros(len(wavelengths))
    try:
        weights[good] = camera_weights(CIE1931, wavelengths[good], Path(), name).mean(0)
    except (DatasetError, IndexError):  # few bands in the visible: what there is, alike
        inside = good & (wavelengths >= _VISIBLE_NM[0]) & (wavelengths <= _VISIBLE_NM[1])
        if not inside.any():
            return None
        weights[inside] = 1 / inside.sum()
    return weights
