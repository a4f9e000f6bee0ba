"""A picture that came in a request, read as every other picture here is.

The bytes lie in memory under a name of the kernel's, so that the house's one reader
(:mod:`edgekd.contracts.imageio`: checksums, damage, what a header may declare) sees a file, and
nothing is written to a disk. PNG and JPEG alone; what they declare is compared with what the model
takes before a pixel is decoded, so a small file cannot become a large picture.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

import numpy as np

from edgekd.contracts.evidence import UInt8
from edgekd.contracts.imageio import Raster
from edgekd.errors import ImageError, InputError

#: the reader keeps GDAL's warnings quiet by what is the whole process's (``warnings``)
_ONE = threading.Lock()
_KINDS: Final = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")


def read_picture(data: bytes, side_px: int) -> UInt8:
    """``(side_px, side_px, 3)`` uint8, RGB.

    Args:
        data: a PNG or a JPEG of three bands of 8 bits.
        side_px: what the model takes; nothing is scaled or cut to fit.

    Raises:
        InputError: anything else, or damaged.
        EnvironmentLacksError: rasterio is not installed.
    """
    if not data.startswith(_KINDS):
        raise InputError("the picture is no PNG and no JPEG by its first bytes; send one of them")
    number = os.memfd_create("edgekd-picture", os.MFD_CLOEXEC)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(number, left) :]
        place = Path(f"/proc/self/fd/{number}")
        try:
            with _ONE:
                return _pixels(place, side_px)
        except ImageError as err:
            said = str(err).replace(str(place), "the picture")
            raise InputError(said.replace("fetch it again", "send it again")) from err
    finally:
        os.close(number)


def _pixels(place: Path, side_px: int) -> UInt8:
    with Raster(place) as raster:
        if (raster.height, raster.width) != (side_px, side_px):
            raise InputError(
                f"the picture is {raster.width} x {raster.height} px, expected {side_px} x "
                f"{side_px}; cut or scale it as the pictures were that the model learned from, "
                "nothing is scaled here"
            )
        if raster.count != 3 or set(raster.dtypes) != {"uint8"}:
            bands = f"{raster.count} band{'' if raster.count == 1 else 's'}"
            raise InputError(
                f"the picture has {bands} of {raster.dtype}, expected 3 of uint8 (red, green, "
                "blue, without transparency or a palette)"
            )
        return np.ascontiguousarray(raster.read_all(), dtype=np.uint8)
