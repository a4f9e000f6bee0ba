"""Accuracy of a bundle on labelled data: tiled as it runs, without torch.

Pixels without data are not counted, but unlike in a scene the model sees their stored values.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgekd.contracts.labelled import LabelledSet, check_same_classes
from edgekd.contracts.metrics import Confusion
from edgekd.runtime.session import Session


def evaluate_bundle(
    session: Session,
    data: LabelledSet,
    split: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Metrics of a split from one confusion matrix; see :mod:`edgekd.contracts.metrics`.

    Raises:
        DatasetError: the classes differ from the bundle's, or the split is empty.
    """
    check_same_classes(data.classes, session.manifest.classes, str(data.root))
    channel = np.zeros(256, dtype=np.uint8)
    for number, item in enumerate(session.manifest.classes):
        channel[item.index] = number
    samples = data.split(split)
    confusion, by_sample = Confusion(len(data.classes)), []
    start = time.perf_counter()
    for number, sample in enumerate(samples, start=1):
        pixels, target = data.load(sample)
        counts = confusion.add(target, channel[session.run(pixels).classes])
        by_sample.append({"id": sample.id, "confusion": counts.tolist()})
        if progress is not None:
            progress(number, len(samples))
    return {
        "what": "bundle",
        "model": session.manifest.name,
        "model_sha256": session.manifest.files[session.model],
        "data": data.name,
        "data_sha256": data.digest,
        "simulated": data.simulated,
        "split": split,
        "samples": len(samples),
        "seconds": time.perf_counter() - start,
        **confusion.summary(data.classes),
        "confusion_by_sample": by_sample,
    }
