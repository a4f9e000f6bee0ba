"""Small sensor sets: three materials with spectra and heights of their own."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from edgekd.contracts.recipe import Recipe
from tests.helpers.labelled import lite0_values

BANDS = 24
NM = np.linspace(400.0, 1100.0, BANDS)
SPECTRAL = {
    "kind": "spectral",
    "channels": BANDS,
    "wavelengths_nm": {"first": 400, "last": 1100, "count": BANDS},
    "gsd_m": 2.0,
    "bad_bands": {},
}
LIDAR = {"kind": "elevation", "channels": 1, "gsd_m": 2.0}
VISUAL = {
    "kind": "image", "channels": 3, "gsd_m": 2.0, "derive": {"from": "spectral", "bands": [9, 6, 3]}
}  # fmt: skip
CLASSES = [
    {"index": 1, "name": "olivine", "color": "#557722"},
    {"index": 4, "name": "basalt", "color": "#333333"},
    {"index": 7, "name": "quartz", "color": "#eeddcc"},
]


def materials(height: int = 48, width: int = 60, seed: int = 0) -> dict[str, np.ndarray]:
    """``spectral`` (H, W, BANDS), ``lidar`` (H, W) and ``labels`` (H, W) of class indices."""
    random = np.random.default_rng(seed)
    coarse = random.random((height // 6 + 2, width // 6 + 2, 3)).astype(np.float32)
    material = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).argmax(2)
    spectra = np.stack(
        [0.1 + 0.5 * np.exp(-(((NM - peak) / 180) ** 2)) for peak in (520, 700, 900)]
    )
    spectral = spectra[material] + random.normal(0, 0.01, (height, width, BANDS))
    lidar = 2.0 * material + random.normal(0, 0.05, (height, width))
    indices = np.array([item["index"] for item in CLASSES], dtype=np.uint8)
    return {
        "spectral": spectral.astype(np.float32),
        "lidar": lidar.astype(np.float32),
        "labels": indices[material],
    }


def write_set(
    folder: Path, scenes: dict[str, dict[str, np.ndarray]] | None = None, **changes: Any
) -> Path:
    """A set of ``.npy`` files with ``sensors.yaml``; ``changes`` replace keys of the set.

    Scenes are those of :func:`materials`; ``split`` of a scene's dict is its split.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = []
    for name, arrays in (scenes or {"one": dict(materials())}).items():
        item: dict[str, Any] = {"id": name, "files": {}}
        for key, value in arrays.items():
            if key == "split":
                item["split"] = str(value)
                continue
            np.save(folder / f"{name}_{key}.npy", value)
            spec: dict[str, Any] = {"file": f"{name}_{key}.npy"}
            if value.ndim == 3:
                spec["layout"] = "hwc"
            if key == "labels":
                item["labels"] = spec
            else:
                item["files"][key] = spec
        described.append(item)
    values = {
        "schema": 1,
        "name": "rocks",
        "simulated": True,
        "source": "made by a test",
        "licence": "none",
        "classes": CLASSES,
        "scenes": described,
    }
    path = folder / "sensors.yaml"
    path.write_text(yaml.safe_dump(values | changes, sort_keys=False))
    return path


def edit_set(path: Path, change: Any) -> None:
    """Change the description of a set in place: ``change(values)``."""
    values = yaml.safe_load(path.read_text())
    change(values)
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def sensor_values(
    sensors: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """A recipe of Lite0 on tiles of 64 px that sees ``visual`` of a set."""
    values = lite0_values(**changes)
    usual = {"spectral": SPECTRAL, "lidar": LIDAR, "visual": VISUAL}
    values["sensors"] = usual if sensors is None else sensors
    values["data"] = {"root": "set", **(data or {})}
    values["io"]["classes"] = CLASSES
    return copy.deepcopy(values)  # tests change it


def sensor_recipe(
    sensors: dict[str, Any] | None = None, data: dict[str, Any] | None = None
) -> Recipe:
    """The same, validated."""
    return Recipe.model_validate(sensor_values(sensors, data))


BLOCKS = {"side_px": 12, "buffer_px": 2, "folds": 4}


FEW = {
    "kind": "spectral", "channels": 3, "gsd_m": 2.0,
    "derive": {"from": "spectral", "windows_nm": [[400, 600], [600, 800], [800, 1100]]},
}  # fmt: skip


def chain_values(
    root: Path, data: dict[str, Any] | None = None, teachers: list[dict[str, Any]] | None = None,
    **distill: Any,
) -> dict[str, Any]:  # fmt: skip
    """A recipe whose student geology_rgb learns from a chain of two teachers, in a few steps."""
    sensors = {"spectral": SPECTRAL, "lidar": LIDAR, "visual": VISUAL, "few": FEW}
    values = sensor_values(sensors, {"root": str(root), "blocks": BLOCKS, **(data or {})})
    values["student"] = {"name": "geology_rgb", "variant": "nano"}
    values["io"]["inputs"][0] |= {"mean": [127.5] * 3, "std": [64.0] * 3}
    usual = [
        {"name": "geology_fusion", "id": "fusion", "sensors": ["visual", "spectral", "lidar"],
         "weights": "train", "stage": {"crop_px": 8, "batch": 8}},
        {"name": "geology_fusion", "id": "few", "sensors": ["visual", "few"], "weights": "train"},
    ]  # fmt: skip
    values["teachers"] = usual if teachers is None else teachers
    values["distill"] = {
        "method": "cross_modal", "crop_px": 16, "batch": 2, "steps": 6, "lr": 3e-3,
        "log_every_steps": 1, "save_every_steps": 2, "seed": 3, **distill,
    }  # fmt: skip
    return copy.deepcopy(values)
