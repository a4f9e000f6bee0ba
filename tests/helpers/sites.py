"""A simulated site for uptake figures: what is truly there, and a map of it that makes mistakes.

Mistakes are those of maps: patches, not single pixels, and each place has its own bent, as another
light or another weathering would give it. Everything about it is made up but the truth is known.

    python -m tests.helpers.sites FOLDER    # chance.tif, map.tif, eval.json, coefficients.yaml
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
from rasterio.transform import from_origin

from edgekd.contracts.artifacts import canonical_json
from edgekd.contracts.imageio import Raster
from edgekd.contracts.metrics import Confusion
from edgekd.contracts.tensors import ClassSpec
from edgekd.runtime.maps import class_look, code_scores, create_map, probability_look
from tests.helpers.rasters import write_raster

ROCKS = [
    ClassSpec(index=number, name=name, color=color)
    for number, (name, color) in enumerate([
        ("soil", "#8c6d46"), ("olivine", "#6b8e23"), ("wollastonite", "#e8e4d8"),
        ("serpentine", "#2e8b57"), ("basalt", "#3c3c46"),
    ])
]  # fmt: skip
UTM = {"crs": "EPSG:32628", "transform": from_origin(500000, 7000000, 0.5, 0.5)}


@dataclass(frozen=True)
class Site:
    """A square grid of places.

    Attributes:
        truth: class of each pixel ``(H, W)`` uint8.
        chances: probabilities as the map holds them, ``(K, H, W)`` uint8; the highest is the map.
        side_px: of a place.
    """

    truth: np.ndarray
    chances: np.ndarray
    side_px: int

    @property
    def mapped(self) -> np.ndarray:
        """Class of each pixel in the map."""
        return np.asarray(self.chances.argmax(axis=0), np.uint8)

    @cached_property
    def confusions(self) -> np.ndarray:
        """Counts ``(places, K, K)`` of (truth, map)."""
        found, side, mapped = [], self.side_px, self.mapped
        for y in range(0, self.truth.shape[0], side):
            for x in range(0, self.truth.shape[1], side):
                here = np.s_[y : y + side, x : x + side]
                found.append(Confusion(len(self.chances)).add(self.truth[here], mapped[here]))
        return np.stack(found)


def make_site(places: int = 20, side_px: int = 32, seed: int = 0, bent: float = 0.7) -> Site:
    """A site of ``places`` x ``places`` places; ``bent`` is how far their mistakes differ."""
    rng = np.random.default_rng(seed)
    side, count = places * side_px, len(ROCKS)

    def patches(scale_px: float) -> np.ndarray:
        fields = [
            cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), scale_px)
            for _ in range(count)
        ]
        return np.stack([field / field.std() for field in fields])

    common = np.array([0.9, 0.3, -0.5, 0.2, 0.4], np.float32)  # wollastonite is rare
    truth = (patches(side_px / 3) + common[:, None, None]).argmax(axis=0).astype(np.uint8)
    own = bent * rng.standard_normal((count, places, places)).astype(np.float32)
    logits = 2.2 * (truth == np.arange(count)[:, None, None]) + 0.9 * patches(2)
    logits += np.kron(own, np.ones((side_px, side_px), np.float32))
    logits[4] += 0.5  # it sees basalt too often
    chance = np.exp(1.5 * logits)  # and is surer than it should be
    codes = code_scores((chance / chance.sum(axis=0)).astype(np.float32))
    best = chance.argmax(axis=0)
    for number, plane in enumerate(codes):  # as the runtime has it
        np.minimum(plane, codes.max(axis=0) - 1, out=plane, where=best != number)
    return Site(truth, codes, side_px)


def write_site(folder: Path, site: Site, empty_px: int = 0, **place: object) -> tuple[Path, Path]:
    """Probabilities and classes as ``edgekd run`` writes them, ``empty_px`` rows without data."""
    folder.mkdir(parents=True, exist_ok=True)
    height, width = site.truth.shape
    chances, mapped = site.chances.copy(), site.mapped
    chances[:, :empty_px], mapped[:empty_px] = 255, 255
    scene = write_raster(
        folder / "scene.tif", np.zeros((height, width), np.uint8), **(place or UTM)
    )
    tags = {"EDGEKD_MODEL_SHA256": "5" * 64, "EDGEKD_BUNDLE": "simulated"}
    with Raster(scene) as raster:
        look = probability_look(ROCKS, tags)
        with create_map(folder / "chance.tif", height, width, look, raster) as writer:
            for number, plane in enumerate(chances):
                if number:
                    writer.next_band()
                writer.write(plane)
        look = class_look(ROCKS, tags)
        with create_map(folder / "map.tif", height, width, look, raster) as writer:
            writer.write(mapped)
    scene.unlink()
    return folder / "chance.tif", folder / "map.tif"


def write_confusion(path: Path, counts: np.ndarray, **changes: object) -> Path:
    """What ``edgekd eval -o`` writes, of samples with these counts ``(m, K, K)``."""
    whole = Confusion(counts.shape[1])
    whole.counts += counts.sum(axis=0)
    value = {
        "what": "bundle", "model": "simulated", "model_sha256": "5" * 64, "data": "simulated site",
        "data_sha256": "0" * 64, "split": "test", "samples": len(counts), "seconds": 1.0,
        **whole.summary(ROCKS),
        "confusion_by_sample": [
            {"id": f"place{n}", "confusion": item.tolist()} for n, item in enumerate(counts)
        ],
    }  # fmt: skip
    path.write_text(canonical_json(value | changes), encoding="utf-8")
    return path


def write_coefficients(path: Path, unit: str = "t CO2 per ha and year", **changes: object) -> Path:
    """Values that are made up, with an uncertainty of each kind; ``changes`` replace or add."""
    value: dict[str, object] = {
        "olivine": {"value": 0.8, "uncertainty": {"kind": "relative", "sd": 0.2}},
        "wollastonite": {"value": 0.9, "uncertainty": {"kind": "absolute", "sd": 0.1}},
        "serpentine": {"value": 0.4,
                       "uncertainty": {"kind": "absolute", "interval95": [0.3, 0.55]}},
        "basalt": {"value": 0.3, "uncertainty": {"kind": "relative", "interval95": [0.8, 1.3]}},
    }  # fmt: skip
    for item in value.values():
        assert isinstance(item, dict)
        item["source"] = "made up for a test"
    value |= changes
    whole = {"schema": 1, "title": "made up", "unit": unit,
             "coefficients": {key: item for key, item in value.items() if item}}  # fmt: skip
    path.write_text(json.dumps(whole), encoding="utf-8")  # JSON is YAML
    return path


if __name__ == "__main__":
    made = make_site()
    place = write_site(Path(sys.argv[1]), made)[0].parent
    evaluated = np.random.default_rng(0).choice(len(made.confusions), 20, replace=False)
    write_confusion(place / "eval.json", made.confusions[evaluated])
    write_coefficients(place / "coefficients.yaml")
    areas_m2 = 0.25 * np.bincount(made.truth.ravel(), minlength=len(ROCKS))
    uptake_t = 1e-4 * areas_m2 @ [0, 0.8, 0.9, 0.4, 0.3]
    named = zip([item.name for item in ROCKS], areas_m2, strict=True)
    print(
        "truth:", *(f"{name} {area:,.0f} m²," for name, area in named), f"{uptake_t:.3f} t a year"
    )
