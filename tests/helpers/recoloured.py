"""A student of three ground colours, and sites where the camera sees them otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgekd.train.finetune import finetune
from tests.helpers.checkpoints import parsed
from tests.helpers.labelled import recipe_values

CLASSES = [
    {"index": 1, "name": "olivine", "color": "#557722"},
    {"index": 4, "name": "basalt", "color": "#333333"},
    {"index": 7, "name": "quartz", "color": "#eeddcc"},
]
COLOURS = np.array([[105, 130, 85], [115, 105, 110], [155, 140, 130]])
Shift = tuple[tuple[float, float, float], tuple[float, float, float]]
#: gain and offset of each channel: another light, another camera
PLAIN: Shift = ((1, 1, 1), (0, 0, 0))
SHIFTED: Shift = ((0.8, 0.75, 1.0), (0, 10, 45))


def picture(
    seed: int, shift: Shift = PLAIN, height: int = 96, width: int = 96
) -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``(H, W, 3)`` and class indices ``(H, W)``."""
    random = np.random.default_rng(seed)
    coarse = random.random((height // 8 + 2, width // 8 + 2, 3)).astype(np.float32)
    which = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).argmax(2)
    seen = (COLOURS[which] + random.normal(0, 14, (height, width, 3))) * shift[0] + shift[1]
    indices = np.array([item["index"] for item in CLASSES], dtype=np.uint8)
    return np.clip(seen, 0, 255).astype(np.uint8), indices[which]


def write_site(
    folder: Path,
    seeds: dict[str, int],
    shift: Shift = PLAIN,
    splits: dict[str, list[str]] | None = None,
    change: Callable[[str, np.ndarray, np.ndarray], None] | None = None,
    classes: list[dict[str, Any]] | None = None,
    side_px: int = 96,
) -> Path:
    """A labelled set; ``change(name, pixels, mask)`` works in place before writing."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, seed in seeds.items():
        pixels, mask = picture(seed, shift, side_px, side_px)
        if change is not None:
            change(name, pixels, mask)
        cv2.imwrite(str(folder / "images" / f"{name}.png"), pixels[:, :, ::-1])
        cv2.imwrite(str(folder / "masks" / f"{name}.png"), mask)
    said = [
        {"index": item["index"], "name": item["name"], "rgb_hex": item["color"]}
        for item in classes or CLASSES
    ]
    (folder / "classes.json").write_text(json.dumps({"classes": said, "ignore_index": 255}))
    if splits is not None:
        (folder / "splits.json").write_text(
            json.dumps({"train": [], "val": [], "test": []} | splits)
        )
    return folder


def site_values(**changes: Any) -> dict[str, Any]:
    """A recipe of geology_rgb nano on tiles of 64 px, tuned in some seconds."""
    values = recipe_values(student={"name": "geology_rgb", "variant": "nano"}, name="ground")
    values["finetune"] |= {
        "crop_px": 32, "batch": 8, "steps": 60, "lr": 1e-2, "val_every_steps": 30,
        "augment": {}, "dice_weight": 0.0,
    }  # fmt: skip
    values["io"]["inputs"][0] |= {
        "shape": ["N", 3, 64, 64], "mean": [127.5] * 3, "std": [64.0] * 3
    }  # fmt: skip
    values["io"]["classes"] = CLASSES
    values["tiling"] = {"overlap_px": 16}
    return values | changes


def make_student(folder: Path) -> Path:
    """The checkpoint of a student that knows the grounds in plain light."""
    data = write_site(folder / "data", {"a": 1, "b": 2}, splits={"train": ["a"], "val": ["b"]})
    return finetune(parsed(site_values()), data, folder / "run", accelerator="cpu").best
