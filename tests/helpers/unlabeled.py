"""Small unlabeled sets and recipes whose distillation takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.helpers.labelled import recipe_values

SAM = {"name": "sam", "variant": "tiny", "weights": "random"}
LITE = {"name": "efficientnet_lite", "variant": "lite0", "weights": "random"}


def make_tiles(folder: Path, *, count: int = 6, side_px: int = 160) -> Path:
    """Smooth coloured blobs with edges, PNG, so that there is something to reconstruct."""
    random = np.random.default_rng(11)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rough = random.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        image = cv2.resize(rough, (side_px, side_px), interpolation=cv2.INTER_CUBIC)
        for _ in range(6):
            corner = tuple(int(value) for value in random.integers(0, side_px, 2))
            far = tuple(int(value) for value in random.integers(0, side_px, 2))
            colour = tuple(int(value) for value in random.integers(0, 256, 3))
            cv2.rectangle(image, corner, far, colour, -1)
        cv2.imwrite(str(folder / f"tile{number:02d}.png"), image)
    return folder


def distill_values(method: str = "mask_cdkd", **changes: Any) -> dict[str, Any]:
    """A recipe of the smallest ViT, 128 px crops, six steps; ``changes`` go into ``distill``."""
    values = recipe_values(student={"name": "vit_nano", "attention": "global", "head": "linear"})
    values["io"]["inputs"][0]["shape"] = ["N", 3, 128, 128]
    values["finetune"]["crop_px"] = 128
    values["teachers"] = {"mask_cdkd": [SAM], "feature": [LITE], "mae": []}[method]
    values["distill"] = {
        "method": method,
        "data": {"roots": ["tiles"]},
        "crop_px": 128,
        "batch": 2,
        "steps": 6,
        "lr": 1e-3,
        "mae": {"dim": 32, "depth": 1, "heads": 2},
        "augment": {"scale": [0.9, 1.2], "brightness": 0.1},
        "log_every_steps": 1,
        "picture_every_steps": 3,
        "save_every_steps": 2,
        "seed": 4,
    } | changes
    return values
