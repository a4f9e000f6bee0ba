"""What a lower precision costs: the same tiles through FP32 and through a candidate.

Accuracy is measured on single tiles of labelled images, brought to pixels as the runtime does
(softmax on cells, bilinear), without overlap. FP32 is measured the same way, so the difference
is that of the precision alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.memory import give_back_memory
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
        ends_max_abs, ends_agreement: of the first and the last tile alone, which are what a bundle
            keeps as golden.
        tiles: number of tiles.
    """

    miou: float | None
    agreement: float
    noise: float
    max_abs: float
    tiles: int
    ends_max_abs: float = np.inf
    ends_agreement: float = 0.0


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
        self.reference = self._quality(dict(enumerate(self._answers)))

    def __call__(self, candidate: Model, most_px: int | None = None) -> Quality:
        """Run a candidate on the tiles, or on some with at most so many pixels, spread evenly."""
        chosen = list(range(len(self._tiles)))
        if most_px is not None:
            count = max(2, most_px // self._tiles[0].pixels[..., 0].size)
            even = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round()
            chosen = sorted({int(place) for place in even})
        answers = {}
        for place in chosen:
            answers[place] = candidate(self._normalize(self._tiles[place].pixels)[None])
            give_back_memory()
        return self._quality(answers)

    def _quality(self, answers: Mapping[int, FloatArray]) -> Quality:
        confusion = Confusion(self._classes)
        ends: list[tuple[float, int, int]] = []
        same, cells, squares, spread, worst = 0, 0, 0.0, 0.0, 0.0
        for place, have in answers.items():
            tile, want = self._tiles[place], self._answers[place]
            difference = have.astype(np.float64) - want
            finite = bool(np.isfinite(difference).all())
            squares += float(np.square(difference).mean()) if finite else np.inf
            mine_worst = float(np.abs(difference).max()) if finite else np.inf
            worst = max(worst, mine_worst)
            spread += float(want.var())
            mine = int((want.argmax(1) == have.argmax(1)).sum()) if finite else 0
            if place in (0, len(self._tiles) - 1):
                ends.append((mine_worst, mine, want[:, 0].size))
            same += mine
            cells += int(want[:, 0].size)
            if tile.target is not None:
                confusion.add(tile.target, _classes(have[0], tile.target.shape))
        noise = float(np.sqrt(squares / spread)) if spread > 0 else float(np.sqrt(squares))
        return Quality(
            miou=confusion.miou() if confusion.counts.any() else None,
            agreement=same / cells,
            noise=noise,
            max_abs=worst,
            ends_max_abs=max(item[0] for item in ends),
            ends_agreement=sum(item[1] for item in ends) / sum(item[2] for item in ends),
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
