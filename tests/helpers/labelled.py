"""Small labelled sets and recipes that train in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

CLASSES = [
    {"index": 0, "name": "ground", "color": "#aa8855"},
    {"index": 1, "name": "tree", "color": "#117733"},
]


def make_set(
    folder: Path, *, count: int = 4, side_px: int = 160, ignore_index: int | None = None
) -> Path:
    """Noisy brown ground with green discs; ``images/``, ``masks/``, ``classes.json``, splits.

    ``count`` training images and one each for validation and test. With an ignore index a strip
    of every mask holds it.
    """
    random = np.random.default_rng(5)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    stems = [f"t{number}" for number in range(count)] + ["v0", "e0"]
    for stem in stems:
        mask = np.zeros((side_px, side_px + 16), dtype=np.uint8)
        for _ in range(5):
            centre = tuple(int(value) for value in random.integers(0, side_px, 2))
            cv2.circle(mask, centre, int(random.integers(10, 28)), 1, -1)
        colour = np.where(mask[..., None] > 0, (60, 120, 60), (130, 100, 80))
        image = colour + random.normal(0, 18, (*mask.shape, 3))
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "images" / f"{stem}.png"), pixels[:, :, ::-1])
        if ignore_index is not None:
            mask[:10] = ignore_index
        cv2.imwrite(str(folder / "masks" / f"{stem}.png"), mask)
    classes = [
        {"index": item["index"], "name": item["name"], "rgb_hex": item["color"]} for item in CLASSES
    ]
    if ignore_index is not None:
        classes.append({"index": ignore_index, "name": "unknown", "rgb_hex": "#000000"})
    (folder / "classes.json").write_text(
        json.dumps({"classes": classes, "ignore_index": ignore_index})
    )
    (folder / "splits.json").write_text(
        json.dumps({"train": stems[:count], "val": ["v0"], "test": ["e0"]})
    )
    return folder


def recipe_values(**changes: Any) -> dict[str, Any]:
    """A recipe of the smallest ViT on tiles of 256 px; ``changes`` replace top-level keys."""
    values: dict[str, Any] = {
        "schema": 1,
        "name": "small",
        "student": {"name": "vit_nano", "attention": "windowed", "head": "linear"},
        "data": {"root": "data"},
        "finetune": {
            "crop_px": 256,
            "batch": 2,
            "steps": 6,
            "lr": 1e-3,
            "val_every_steps": 3,
            "log_every_steps": 2,
            "ema": 0.9,
            "dice_weight": 1.0,
            "augment": {"scale": [0.8, 1.25], "brightness": 0.1, "saturation": 0.1},
            "seed": 3,
        },
        "io": {
            "inputs": [{"shape": ["N", 3, 256, 256], "mean": [127, 127, 127], "std": [64, 64, 64]}],
            "classes": CLASSES,
        },
        "tiling": {"overlap_px": 32},
        "gates": {"onnx_vs_torch": {"atol": 1e-4}},
        "targets": ["x86-cpu"],
    }
    return values | changes


def lite0_values(**changes: Any) -> dict[str, Any]:
    """As :func:`recipe_values` with EfficientNet-Lite0 from random weights on tiles of 64 px."""
    values = recipe_values(student={"name": "lite0", "pretrained": False}, name="conv")
    values["finetune"] |= {"crop_px": 64, "lr": 3e-3}
    values["io"]["inputs"][0]["shape"] = ["N", 3, 64, 64]
    values["tiling"] = {"overlap_px": 16}
    return values | changes


def write_recipe(folder: Path, values: dict[str, Any]) -> Path:
    """``folder/NAME.yaml``."""
    path = folder / f"{values['name']}.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path
