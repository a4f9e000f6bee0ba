"""What a lower precision costs: the same samples through FP32 and through a candidate.

Accuracy is measured on single tiles of labelled images, brought to pixels as the runtime does
(softmax on cells, bilinear), without overlap; of places on their one answer. FP32 is measured the
same way, so the difference is that of the precision alone.
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
from edgekd.deploy.parity import FloatArray, Model
from edgekd.deploy.quantize.material import Measure, Sample


@dataclass(frozen=True)
class Quality:
    """A candidate beside FP32.

    Attributes:
        miou: of the candidate on the labelled tiles, 0-1; None without a labelled pixel, and of
            places.
        agreement: part of the cells (of places: of the answers) with FP32's class, 0-1.
        noise: root of the mean squared difference of the logits, over the deviation of FP32's.
        max_abs: largest difference of a logit.
        ends_max_abs, ends_agreement: of the first and the last sample alone, which of maps are what
            a bundle keeps as golden.
        tiles: number of tiles or places.
        accuracy: of places, 0-1; None of maps.
    """

    miou: float | None
    agreement: float
    noise: float
    max_abs: float
    tiles: int
    ends_max_abs: float = np.inf
    ends_agreement: float = 0.0
    accuracy: float | None = None

    @property
    def score(self) -> float | None:
        """What a gate of accuracy is about, 0-1: accuracy of places, mIoU of maps."""
        return self.miou if self.accuracy is None else self.accuracy


class Judge:
    """Compares candidates with FP32 on fixed samples.

    Args:
        reference: the FP32 model.
        samples: at least one.
        classes: number of channels of the logits.
        measure: what of the answers is held against the labels.
    """

    def __init__(
        self, reference: Model, samples: Sequence[Sample], classes: int, measure: Measure = "mIoU"
    ) -> None:
        if not samples:
            raise ValueError("nothing to compare on")
        self._samples, self._classes, self._measure = list(samples), classes, measure
        self._answers = [reference(sample.inputs()) for sample in self._samples]
        self.reference = self._quality(dict(enumerate(self._answers)))

    def __call__(self, candidate: Model, most_px: int | None = None) -> Quality:
        """Run a candidate on the samples, or on some with at most so many pixels, spread evenly."""
        chosen = list(range(len(self._samples)))
        if most_px is not None:
            count = max(2, most_px // self._samples[0].size_px)
            even = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round()
            chosen = sorted({int(place) for place in even})
        answers = {}
        for place in chosen:
            answers[place] = candidate(self._samples[place].inputs())
            give_back_memory()
        return self._quality(answers)

    def _quality(self, answers: Mapping[int, FloatArray]) -> Quality:
        confusion = Confusion(self._classes)
        ends: list[tuple[float, int, int]] = []
        same, cells, squares, spread, worst = 0, 0, 0.0, 0.0, 0.0
        for place, have in answers.items():
            sample, want = self._samples[place], self._answers[place]
            difference = have.astype(np.float64) - want
            finite = bool(np.isfinite(difference).all())
            squares += float(np.square(difference).mean()) if finite else np.inf
            mine_worst = float(np.abs(difference).max()) if finite else np.inf
            worst = max(worst, mine_worst)
            spread += float(want.var())
            mine = int((want.argmax(1) == have.argmax(1)).sum()) if finite else 0
            if place in (0, len(self._samples) - 1):
                ends.append((mine_worst, mine, want[:, 0].size))
            same += mine
            cells += int(want[:, 0].size)
            if sample.labels is not None:
                confusion.add(sample.labels, _classes(have, sample.labels.shape))
        noise = float(np.sqrt(squares / spread)) if spread > 0 else float(np.sqrt(squares))
        known, places = bool(confusion.counts.any()), self._measure == "accuracy"
        return Quality(
            miou=confusion.miou() if known and not places else None,
            accuracy=confusion.accuracy() if known and places else None,
            agreement=same / cells,
            noise=noise,
            max_abs=worst,
            ends_max_abs=max(item[0] for item in ends),
            ends_agreement=sum(item[1] for item in ends) / sum(item[2] for item in ends),
            tiles=sum(self._samples[place].count for place in answers),
        )


def _classes(logits: FloatArray, shape: tuple[int, ...]) -> UInt8Array:
    """Logits ``(1, K, h, w)`` of a tile -> class per pixel ``(H, W)``; of places ``(N, K)`` ->
    class of each ``(N,)``."""
    if logits.ndim == 2:
        best: UInt8Array = np.nan_to_num(logits).argmax(axis=1).astype(np.uint8)
        return best
    logits = logits[0]
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
