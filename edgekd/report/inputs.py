"""What a measurement feeds: tiles of a file, or noise that is said to be noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.imageio import Raster, UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import plan
from edgekd.errors import ImageError
from edgekd.report.record import InputUsed
from edgekd.runtime.scene import RasterSource

FloatArray = npt.NDArray[np.float32]
#: different tiles that the bare engine sees in turn, so that no single one stays in the cache.
TILES = 8


def synthetic_image(side_px: int, channels: int) -> UInt8Array:
    """Uniform noise from seed 0, ``(side, side, channels)`` uint8: no real scene looks like it,
    but a convolution takes the same time for it."""
    return np.random.default_rng(0).integers(0, 256, (side_px, side_px, channels), dtype=np.uint8)


def synthetic_tiles(
    image: UInt8Array, tile_px: int, normalize: Normalizer
) -> tuple[list[FloatArray], InputUsed]:
    side = image.shape[0]
    tiles = [
        normalize(image[w.y0 : w.y1, w.x0 : w.x1])[None]
        for row in plan(side, side, tile_px, 0)
        for w in row
    ]
    name = "synthetic: uniform noise, NumPy default_rng(0)"
    return tiles[:TILES], InputUsed(
        kind="synthetic", name=name, width_px=side, height_px=side, bands=None, sha256=None
    )


def file_tiles(
    path: Path, bands: list[int] | None, tile_px: int, normalize: Normalizer
) -> tuple[list[FloatArray], InputUsed]:
    """Up to :data:`TILES` tiles with data, spread evenly over the scene.

    Raises:
        ImageError: the input cannot be read, does not fit, or holds no data at all.
    """
    with Raster(path, "auto") as raster:  # the rule of Session.run_scene
        source = RasterSource(raster, bands, normalize.channels)
        windows = [w for row in plan(raster.height, raster.width, tile_px, 0) for w in row]
        tiles: list[FloatArray] = []
        step = max(len(windows) // TILES, 1)
        # the evenly spread ones first, then the rest, for scenes that are mostly without data
        for window in dict.fromkeys([*windows[step // 2 :: step], *windows]):
            inside = type(window)(
                window.y0, window.x0, min(window.y1, raster.height), min(window.x1, raster.width)
            )
            if not source.read_valid(inside).any():
                continue
            pixels = np.empty((inside.height, inside.width, normalize.channels), dtype=np.uint8)
            source.read(inside, pixels)
            pad = [(0, tile_px - pixels.shape[0]), (0, tile_px - pixels.shape[1]), (0, 0)]
            tiles.append(normalize(np.pad(pixels, pad, mode="symmetric"))[None])
            if len(tiles) == TILES:
                break
        used = InputUsed(
            kind="file",
            name=path.name,
            width_px=raster.width,
            height_px=raster.height,
            bands=source.bands,
            sha256=sha256_file(path),
        )
    if not tiles:
        raise ImageError(f"{path} holds no pixel with data, so there is nothing to measure")
    return tiles, used
