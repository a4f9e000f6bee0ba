"""Accuracy of a checkpoint on labelled data, with torch.

The image is covered by the same windows as in the runtime, but the sums are kept for the whole
image: an independent second implementation that a test compares with the runtime's bands.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.labelled import LabelledSet, check_same_classes
from edgekd.contracts.metrics import Confusion
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import IoSpec, TilingSpec
from edgekd.contracts.windows import blend_weights, padded_size, plan
from edgekd.train.students._base import Segmenter

Progress = Callable[[int, int], None]


@torch.inference_mode()
def predict(
    model: Segmenter, pixels: UInt8Array, io: IoSpec, tiling: TilingSpec
) -> npt.NDArray[np.uint8]:
    """Channel per pixel ``(H, W)`` uint8 for an image ``(H, W, 3)`` uint8.

    The model must be in evaluation mode; it is used on the device that it is on.
    """
    spec = io.inputs[0]
    normalize = Normalizer(spec)
    device = next(model.parameters()).device
    tile, s = spec.tile_px, model.stride
    height, width = pixels.shape[:2]
    cells = tile // s
    weights = torch.from_numpy(blend_weights(cells, -(-tiling.overlap_px // s), tiling.blend))
    weights = weights.to(device)
    full_h, full_w = padded_size(height, tile, s), padded_size(width, tile, s)
    padded = np.pad(pixels, ((0, full_h - height), (0, full_w - width), (0, 0)), mode="symmetric")
    total = torch.zeros(model.num_classes, full_h // s, full_w // s, device=device)
    weight = torch.zeros(full_h // s, full_w // s, device=device)
    for row in plan(height, width, tile, tiling.overlap_px, s):
        for window in row:
            part = padded[window.y0 : window.y1, window.x0 : window.x1]
            tensor = torch.from_numpy(normalize(part))[None].to(device)
            chance = model(tensor).float().softmax(dim=1)[0]
            ys = slice(window.y0 // s, window.y1 // s)
            xs = slice(window.x0 // s, window.x1 // s)
            total[:, ys, xs] += chance * weights
            weight[ys, xs] += weights
    mean = (total / weight)[None]
    fine = F.interpolate(mean, scale_factor=float(s), mode="bilinear", align_corners=False)
    channel: npt.NDArray[np.uint8] = fine[0].argmax(0).to(torch.uint8).cpu().numpy()
    return channel[:height, :width]


def evaluate_model(
    model: Segmenter,
    data: LabelledSet,
    split: str,
    io: IoSpec,
    tiling: TilingSpec,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Metrics of a split from one confusion matrix; see :mod:`edgekd.contracts.metrics`.

    Raises:
        DatasetError: the classes differ from the model's, or the split is empty.
    """
    check_same_classes(data.classes, list(io.classes), str(data.root))
    samples = data.split(split)
    confusion, by_sample = Confusion(len(data.classes)), []
    start = time.perf_counter()
    was_training = model.training
    model.eval()
    try:
        for number, sample in enumerate(samples, start=1):
            pixels, target = data.load(sample)
            counts = confusion.add(target, predict(model, pixels, io, tiling))
            by_sample.append({"id": sample.id, "confusion": counts.tolist()})
            if progress is not None:
                progress(number, len(samples))
    finally:
        model.train(was_training)
    return {
        "what": "checkpoint",
        "data": data.name,
        "data_sha256": data.digest,
        "split": split,
        "samples": len(samples),
        "seconds": time.perf_counter() - start,
        **confusion.summary(data.classes),
        "confusion_by_sample": by_sample,
    }
