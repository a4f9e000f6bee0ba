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
from edgekd.contracts.sensor_set import Part, SensorScene, SensorSet
from edgekd.contracts.windows import blend_weights, padded_size, plan
from edgekd.train.students._base import Segmenter
from edgekd.train.teachers._sensors import SensorTeacher

Progress = Callable[[int, int], None]
#: pixels that a teacher of several sensors answers at once
_ROWS_PX = 1 << 15


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
        "simulated": data.simulated,
        "split": split,
        "samples": len(samples),
        "seconds": time.perf_counter() - start,
        **confusion.summary(data.classes),
        "confusion_by_sample": by_sample,
    }


@torch.inference_mode()
def answer(
    teacher: SensorTeacher, scene: SensorScene, features: bool = False
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float16] | None]:
    """What a teacher of several sensors says of a scene.

    Args:
        teacher: in evaluation mode.
        scene: or a view of one.
        features: whether they are wanted.

    Returns:
        Scores ``(K, H, W)``, and features ``(H, W, D)`` or None: a pixel's lie together.
    """
    height, width = scene.valid.shape
    device = next(teacher.parameters()).device
    sensors, present = {}, []
    for name, sensor in teacher.plans.items():
        values = scene.sensors.get(name)
        present.append(values is not None)
        planes = (
            np.zeros((sensor.channels, height, width), np.float32) if values is None else values
        )
        sensors[name] = torch.from_numpy(np.array(planes, np.float32))[None].to(device)
    there = torch.tensor([present], device=device)
    scores = np.empty((teacher.num_classes, height, width), np.float32)
    found = np.empty((height, width, teacher.width), np.float16) if features else None
    rows = max(1, _ROWS_PX // width)
    for first in range(0, height, rows):
        at = torch.zeros(1, height, width, dtype=torch.bool, device=device)
        at[:, first : first + rows] = True
        said, feature = teacher(sensors, there, at)
        shape = (-1, width, said.shape[1])
        scores[:, first : first + rows] = said.reshape(shape).permute(2, 0, 1).cpu().numpy()
        if found is not None:
            shape = (-1, width, teacher.width)
            found[first : first + rows] = feature.reshape(shape).cpu().numpy()
    return scores, found


def evaluate_teacher(
    teacher: SensorTeacher, data: SensorSet, part: Part, progress: Progress | None = None
) -> dict[str, Any]:
    """Metrics of a teacher of several sensors on a part of a set, as :func:`evaluate_model`.

    ``lacking`` names the scenes without some sensor that it sees: there it answered without.

    Raises:
        DatasetError: the set has no labelled pixel of the part, or a scene of it has none of the
            sensors that the teacher sees.
    """
    confusion = Confusion(len(data.classes))
    start = time.perf_counter()
    was_training = teacher.training
    teacher.eval()
    scenes = [name for name in data.scene_ids if data.has(name, part)]
    data.require_one_of(list(teacher.plans), scenes, f"teacher {teacher.name}")
    try:
        for number, name in enumerate(scenes, start=1):
            view = data.view(name, part)
            scores, _ = answer(teacher, view)
            confusion.add(view.target, scores.argmax(0).astype(np.uint8))
            if progress is not None:
                progress(number, len(scenes))
    finally:
        teacher.train(was_training)
    return {
        "what": "teacher",
        "data": data.name,
        "data_sha256": data.digest,
        "simulated": data.simulated,
        "split": part,
        "samples": len(scenes),
        "lacking": {
            sensor: lacks
            for sensor in teacher.plans
            if (lacks := [name for name in scenes if sensor not in data.load(name).sensors])
        },
        "seconds": time.perf_counter() - start,
        **confusion.summary(data.classes),
    }
