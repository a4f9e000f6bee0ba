"""Pixels to engine input, one definition for training, export, calibration and runtime."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from edgekd.contracts.tensors import ImageInput
from edgekd.errors import ImageError

FloatArray = npt.NDArray[np.float32]


class Normalizer:
    """``(pixel - mean) / std`` from HWC uint8 to CHW float32, by a table of 256 values a channel.

    Args:
        spec: the image input of the recipe or manifest.
    """

    def __init__(self, spec: ImageInput) -> None:
        values = np.arange(256, dtype=np.float64)
        self._tables = [
            ((values - mean) / std).astype(np.float32)
            for mean, std in zip(spec.mean, spec.std, strict=True)
        ]
        self.channels = spec.channel_count

    def __call__(self, pixels: npt.NDArray[np.uint8], out: FloatArray | None = None) -> FloatArray:
        """Normalise one tile.

        Args:
            pixels: ``(H, W, C)`` uint8, channels in the order of the input's specification.
            out: ``(C, H, W)`` float32 to write into; made when absent.

        Raises:
            ImageError: another dtype, rank or number of channels.
        """
        check_pixels(pixels, self.channels)
        if out is None:
            out = np.empty((self.channels, *pixels.shape[:2]), dtype=np.float32)
        for channel, table in enumerate(self._tables):
            plane = out[channel]
            looked_up = cv2.LUT(pixels[:, :, channel], table, dst=plane)
            if looked_up is not plane:  # OpenCV could not write into that layout
                plane[...] = looked_up
        return out


def check_pixels(pixels: npt.NDArray[np.generic], channels: int) -> None:
    """Raise :class:`ImageError` unless ``pixels`` is HWC uint8 with ``channels`` channels."""
    if not isinstance(pixels, np.ndarray):
        raise ImageError(
            f"expected a NumPy array of shape (height, width, {channels}), received "
            f"{type(pixels).__name__}"
        )
    if pixels.ndim != 3 or pixels.shape[2] != channels:
        raise ImageError(
            f"expected an image of shape (height, width, {channels}), received {pixels.shape}"
        )
    if pixels.dtype != np.uint8:
        detail = ""
        if np.issubdtype(pixels.dtype, np.floating):
            missing = int(np.count_nonzero(~np.isfinite(pixels)))
            if missing:
                detail = f" with {missing} NaN or infinite values"
        raise ImageError(
            f"expected uint8 pixels (0-255), received {pixels.dtype}{detail}; scale the image to "
            "8 bits first, e.g. gdal_translate -ot Byte -scale LOW HIGH 0 255 IN OUT"
        )
