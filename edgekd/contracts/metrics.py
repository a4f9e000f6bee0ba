"""Segmentation metrics from one confusion matrix over a whole split.

Per-image averages and classes that never occur are the usual ways to get a wrong mIoU; here
every pixel of the split counts once, and a class that is neither in the labels nor in the
prediction has no score (null) instead of 0 or 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.labelled import IGNORE
from edgekd.contracts.tensors import ClassSpec
from edgekd.errors import DatasetError


class Confusion:
    """Counts of (label, prediction) pairs.

    Attributes:
        counts: ``(classes, classes)`` int64, rows are labels, columns predictions.
    """

    def __init__(self, classes: int) -> None:
        self.counts = np.zeros((classes, classes), dtype=np.int64)

    def add(
        self, target: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8]
    ) -> npt.NDArray[np.int64]:
        """Count the pixels of one image; returns its own ``(classes, classes)``.

        Args:
            target: channel numbers, :data:`~edgekd.contracts.labelled.IGNORE` is left out.
            predicted: channel numbers of the same shape.

        Raises:
            ValueError: the shapes differ, or a value is outside the classes.
        """
        if target.shape != predicted.shape:
            raise ValueError(f"target {target.shape} and prediction {predicted.shape} differ")
        classes = len(self.counts)
        keep = target != IGNORE
        rows, columns = target[keep].astype(np.int64), predicted[keep].astype(np.int64)
        if rows.size and max(int(rows.max()), int(columns.max())) >= classes:
            raise ValueError(f"a label or prediction is outside 0..{classes - 1}")
        counts: npt.NDArray[np.int64] = np.bincount(
            rows * classes + columns, minlength=classes**2
        ).reshape(classes, classes)
        self.counts += counts
        return counts

    def iou(self) -> list[float | None]:
        """Intersection over union per class, 0-1; None for a class that occurs nowhere."""
        hit = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return [float(h / u) if u else None for h, u in zip(hit, union, strict=True)]

    def f1(self) -> list[float | None]:
        """F1 score (Dice) per class, 0-1; None for a class that occurs nowhere."""
        hit = np.diag(self.counts)
        total = self.counts.sum(0) + self.counts.sum(1)
        return [float(2 * h / t) if t else None for h, t in zip(hit, total, strict=True)]

    def recall(self) -> list[float | None]:
        """Part of each class's labels that was found, 0-1; None for a class without a label."""
        hit, total = np.diag(self.counts), self.counts.sum(1)
        return [float(h / t) if t else None for h, t in zip(hit, total, strict=True)]

    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that have labels: rare ones count as much as others."""
        return _mean(self.recall())

    def miou(self) -> float:
        """Mean of the per-class IoU over the classes that occur; 0 for an empty matrix."""
        return _mean(self.iou())

    def accuracy(self) -> float:
        """Overall pixel accuracy, 0-1."""
        total = int(self.counts.sum())
        return float(np.trace(self.counts) / total) if total else 0.0

    def summary(self, classes: list[ClassSpec]) -> dict[str, Any]:
        """Everything as JSON-ready values, with the majority-class answer beside it.

        Raises:
            DatasetError: not a single pixel was counted.
        """
        if not self.counts.any():
            raise DatasetError("the split holds no labelled pixel; there is nothing to score")
        labels = self.counts.sum(1)
        iou, f1, recall = self.iou(), self.f1(), self.recall()
        return {
            "pixels": int(self.counts.sum()),
            "miou": self.miou(),
            "overall_accuracy": self.accuracy(),
            "balanced_accuracy": self.balanced_accuracy(),
            "mean_f1": _mean(f1),
            "per_class": [
                {
                    "index": item.index,
                    "name": item.name,
                    "iou": iou[channel],
                    "f1": f1[channel],
                    "recall": recall[channel],
                    "label_pixels": int(labels[channel]),
                    "predicted_pixels": int(self.counts[:, channel].sum()),
                }
                for channel, item in enumerate(classes)
            ],
            "majority_class": self.majority(classes),
            "confusion": self.counts.tolist(),
        }

    def majority(self, classes: list[ClassSpec]) -> dict[str, Any]:
        """Scores of the answer "always the most frequent class of this split"."""
        labels = self.counts.sum(1)
        best = int(labels.argmax())
        constant = Confusion(len(labels))
        constant.counts[:, best] = labels
        return {
            "name": classes[best].name,
            "miou": constant.miou(),
            "overall_accuracy": constant.accuracy(),
            "mean_f1": _mean(constant.f1()),
        }


def _mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else 0.0
