"""Pictures of a run: one row per crop, one column per kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from edgekd.contracts.artifacts import publish_file
from edgekd.errors import OutputError

#: crops are shown at most this large, px
SIDE_PX = 384
_HEAD_PX = 26
_GAP_PX = 6


def write_picture(path: Path, columns: Mapping[str, Tensor]) -> npt.NDArray[np.uint8]:
    """Write a PNG and return its pixels.

    Args:
        path: of the PNG; its folder is made.
        columns: name -> images ``(N, 3, H, W)`` in 0-255, the same shape each.

    Returns:
        ``(height, width, 3)`` uint8, RGB.

    Raises:
        OutputError: the place cannot be written.
    """
    parts = []
    for name, images in columns.items():
        pixels = images.round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()
        side = min(SIDE_PX, pixels.shape[1])
        head = np.full((_HEAD_PX, side, 3), 255, dtype=np.uint8)
        cv2.putText(head, name, (2, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        column = [head]
        for image in pixels:
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            column += [
                np.asarray(small, dtype=np.uint8),
                np.full((_GAP_PX, side, 3), 255, np.uint8),
            ]
        parts += [
            np.concatenate(column),
            np.full((sum(map(len, column)), _GAP_PX, 3), 255, np.uint8),
        ]
    whole: npt.NDArray[np.uint8] = np.concatenate(parts[:-1], axis=1)
    with publish_file(path) as part:
        if not cv2.imwrite(str(part), whole[:, :, ::-1]):
            raise OutputError(f"{path} cannot be written; is the disk full?")
    return whole
