"""Small image files for tests, written through rasterio."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio


def smooth_image(height: int, width: int, seed: int = 0, bands: int = 3) -> np.ndarray:
    """A textured ``(height, width, bands)`` uint8 image that no codec can shrink to nothing."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, bands), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(image).reshape(height, width, bands)


def write_raster(path: Path, image: np.ndarray, **options: Any) -> Path:
    """Write ``(H, W)`` or ``(H, W, C)`` with the driver that the suffix names.

    ``driver="COG"`` and the like override it; ``alpha=True`` marks the last band as alpha.
    """
    planes = image[None] if image.ndim == 2 else np.moveaxis(image, 2, 0)
    drivers = {
        ".tif": "GTiff",
        ".tiff": "GTiff",
        ".png": "PNG",
        ".jpg": "JPEG",
        ".jp2": "JP2OpenJPEG",
    }
    drivers |= {".webp": "WEBP", ".bmp": "BMP", ".img": "HFA"}
    alpha, palette = options.pop("alpha", False), options.pop("palette", None)
    profile = {"driver": drivers[path.suffix], "dtype": planes.dtype.name, "count": len(planes)}
    profile |= {"height": planes.shape[1], "width": planes.shape[2], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as data:
            data.write(planes)
            if alpha:
                kinds = list(data.colorinterp)
                data.colorinterp = [*kinds[:-1], rasterio.enums.ColorInterp.alpha]
            if palette:
                data.write_colormap(1, palette)
    return path
