"""A small set of places whose label needs all three kinds of evidence, and a recipe for it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from edgekd.contracts.place_recipe import PlaceRecipe, parse_place_recipe
from edgekd.contracts.place_set import COLUMNS, PlaceSet, load_places

SIDE, DAYS, WIDTH = 64, 35, 8
FEATURES = ["level_m", "wind_m_s"]
CLASSES = ["dry", "low", "high", "wall"]
FACTS: dict[str, dict[str, float]] = {
    "low": {"height_m": 8, "floor_m": 0.5}, "high": {"height_m": 30, "floor_m": 3.0},
}  # fmt: skip


def write_tiny_places(folder: Path, counts: tuple[int, int, int] = (24, 8, 8)) -> Path:
    """Red or green pictures, high or low water, two texts; ``dry`` where the picture is green,
    otherwise what water and text say."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows, series = [], []
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        first = len(series)
        for high in (0, 1):
            values = random.normal(3.0 * high, 0.2, (DAYS, 2)).astype(np.float32)
            values[:2, 0] = np.nan
            series.append(values)
        for number in range(count):
            green, high, text = (number >> bit & 1 for bit in range(3))
            label = "dry" if green else ("wall" if text else "high") if high else "low"
            name = f"{split}_{number:02d}"
            picture = random.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
            picture[..., 1 if green else 2] += 150  # OpenCV's order is blue, green, red
            cv2.imwrite(str(folder / f"{name}.png"), picture)
            clause = "Walls may be built." if text else "No walls."
            zone = "shore" if high else "upland"
            rows.append(
                [name, split, f"coast_{split}", zone, label, f"{name}.png", first + high, clause]
            )
    with (folder / "places.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    np.savez(folder / "series.npz", values=np.stack(series))
    about = {
        "schema": 1, "name": "tiny", "source": "a test", "licence": "none", "simulated": True,
        "classes": [{"name": name, "facts": FACTS.get(name, {})} for name in CLASSES],
        "image_px": SIDE, "gsd_m": 2.0,
        "series": {"days": DAYS, "features": FEATURES, "datum": "MHHW"},
    }  # fmt: skip
    (folder / "places.yaml").write_text(yaml.safe_dump(about), encoding="utf-8")
    return folder


def tiny_values(**changes: Any) -> dict[str, Any]:
    """A recipe of :func:`write_tiny_places`, with top-level keys replaced."""
    values: dict[str, Any] = {
        "schema": 1, "kind": "places", "name": "tiny",
        "student": {"name": "coastal", "pretrained": False},
        "teachers": [
            {"name": "efficientnet_lite", "variant": "lite0", "sees": "image",
             "weights": "random", "stage": {"steps": 3, "batch": 4}},
            {"name": "temporal_conv", "variant": "small", "sees": "series", "weights": "random",
             "temperature": 4, "stage": {"steps": 3, "batch": 4}},
            {"name": "minilm", "sees": "text", "temperature": 2, "weight": 2,
             "stage": {"steps": 3, "batch": 4}},
        ],
        "distill": {"batch": 4, "steps": 4, "val_every_steps": 2, "save_every_steps": 2,
                    "log_every_steps": 1},
        "data": {"root": "places"},
        "io": {
            "image": {"shape": ["N", 3, SIDE, SIDE], "mean": [127] * 3, "std": [128] * 3},
            "series": {"days": DAYS, "features": FEATURES},
            "text": {"width": WIDTH},
            "rules": {"rows": 4},
            "classes": [
                {"index": number, "name": name, "color": f"#0000{number:02d}"}
                for number, name in enumerate(CLASSES)
            ],
        },
        "precision": {"allowed": ["fp32", "int8"], "int8_layers": ["linear", "patch", "conv"]},
        "calibration": {"tiles": 8},
        "gates": {"onnx_vs_torch": {"atol": 1e-3}},
        "targets": ["rpi5", "x86-cpu"],
    }  # fmt: skip
    return values | changes


def tiny_recipe(**changes: Any) -> PlaceRecipe:
    """:func:`tiny_values`, validated."""
    return parse_place_recipe(tiny_values(**changes), "tiny.yaml")


def fake_embeddings(places: PlaceSet) -> npt.NDArray[np.float32]:
    """``(rows, WIDTH)``, of length 1: a text's own random direction."""
    found = []
    for row in places.rows:
        random = np.random.default_rng(len(row.text))
        vector = random.normal(size=WIDTH)
        found.append(vector / np.linalg.norm(vector))
    return np.array(found, np.float32)


def load_tiny(folder: Path) -> tuple[PlaceSet, npt.NDArray[np.float32]]:
    """The set and its embeddings."""
    places = load_places(folder)
    return places, fake_embeddings(places)
