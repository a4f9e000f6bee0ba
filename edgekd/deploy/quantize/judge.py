"""What a lower precision costs: the same tiles through FP32 and through a candidate.

Accuracy is measured on single tiles of labelled images, brought to pixels as the runtime does
(softmax on cells, bilinear), without overlap. FP32 is measured the same way, so the difference
is that of the precision alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.metrics import Confusion
from edgekd.contracts.preprocess import Normalizer
from edgekd.deploy.parity import FloatArray, Model
from edgekd.deploy.tiles import LabelledTile


@dataclass(frozen=True)
class Quality:
    """A candidate beside FP32.

    Attributes:
        miou: of the candidate on the labelled tiles, 0-1; None without a labelled pixel.
        agreement: part of the cells with FP32's class, 0-1.
        noise: root of the mean squared difference of the logits, over the deviation of FP32's.
        max_abs: largest difference of a logit.
        tiles: number of tiles.
    """

    miou: float | None
    agreement: float
    noise: float
    max_abs: float
    tiles: int


class Judge:
    """Compares candidates with FP32 on fixed tiles.

    Args:
        reference: the FP32 model.
        tiles: at least one.
        normalize: of the model's input.
        classes: number of channels of the logits.
    """

    def __init__(
        self, reference: Model, tiles: Sequence[LabelledTile], normalize: Normalizer, classes: int
    ) -> None:
        if not tiles:
            raise ValueError("no tile to compare on")
        self._tiles, self._normalize, self._classes = list(tiles), normalize, classes
        self._answers = [reference(normalize(tile.pixels)[None]) for tile in self._tiles]
        self.reference = self._quality(self._answers)

    def __call__(self, candidate: Model, most: int | None = None) -> Quality:
        """Run a candidate on the tiles, or on the first ``most``."""
        tiles = self._tiles[:most]
        return self._quality([candidate(self._normalize(tile.pixels)[None]) for tile in tiles])

    def _quality(self, answers: Sequence[FloatArray]) -> Quality:
        confusion = Confusion(self._classes)
        same, cells, squares, spread, worst = 0, 0, 0.0, 0.0, 0.0
        for tile, want, have in zip(self._tiles, self._answers, answers, strict=False):
            difference = have.astype(np.float64) - want
            finite = bool(np.isfinite(difference).all())
            squares += float(np.square(difference).mean()) if finite else np.inf
            worst = max(worst, float(np.abs(difference).max())) if finite else np.inf
            spread += float(want.var())
            same += int((want.argmax(1) == have.argmax(1)).sum()) if finite else 0
            cells += int(want[:, 0].size)
            if tile.target is not None:
                confusion.add(tile.target, _classes(have[0], tile.target.shape))
        noise = float(np.sqrt(squares / spread)) if spread > 0 else float(np.sqrt(squares))
        return Quality(
            miou=confusion.miou() if confusion.counts.any() else None,
            agreement=same / cells,
            noise=noise,
            max_abs=worst,
            tiles=len(answers),
        )


def _classes(logits: FloatArray, shape: tuple[int, ...]) -> UInt8Array:
    """Logits ``(K, h, w)`` of one tile -> class per pixel ``(H, W)``."""
    shifted = np.exp(logits - logits.max(axis=0))
    probabilities = np.nan_to_num(shifted / shifted.sum(axis=0)).astype(np.float32)
    size = (shape[1], shape[0])
    best = np.zeros(shape, np.uint8)
    top: npt.NDArray[np.float32] | None = None
    for number, plane in enumerate(probabilities):
        wide = cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR)
        if top is None:
            top = wide
            continue
        better = wide > top
        best[better] = number
        np.maximum(top, wide, out=top)
    return best
