"""The line of places at its smallest: a set, a recipe, a checkpoint with random weights, its ONNX.

One export takes half a minute, so every test takes it from here. Pictures have 64 px, classes are
four, a series has 40 days of three features, an embedding eight numbers.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from edgekd.contracts.evidence import Float32
from edgekd.contracts.place_recipe import PlaceRecipe, parse_place_recipe
from edgekd.contracts.place_set import COLUMNS, PlaceSet, load_places

CLASSES = ("water", "house", "tower", "park")
FEATURES = ["level_m", "wind_m_s", "pressure_hpa"]
SIDE_PX, DAYS, WIDTH, ROWS = 64, 40, 8, 5
MEAN, STD = [1.0, 6.0, 1010.0], [0.5, 2.0, 8.0]
COUNTS = {"train": 24, "val": 16, "test": 12}
RULES: dict[str, Any] = {
    "schema": 1, "name": "made-up", "zones": {"shore": "by the water", "upland": "above it"},
    "rules": [
        {"id": "floor", "type": "flood_zone", "min_floor_m": 2.0, "zones": ["shore"],
         "priority": 1, "source": "invented"},
        {"id": "towers", "type": "height_limit", "max_m": 20, "share": 0.1, "priority": 2,
         "source": "invented"},
    ],
}  # fmt: skip
FACTS = {"house": {"height_m": 8, "floor_m": 0.5}, "tower": {"height_m": 60, "floor_m": 4.0}}


def make_place_set(folder: Path, rules: bool = True) -> Path:
    """Write a set that :func:`load_places` reads; the same on every call."""
    random = np.random.default_rng(6)
    (folder / "tiles").mkdir(parents=True)
    rows: list[list[str]] = []
    series = []
    for split, count in COUNTS.items():
        first = len(series)
        for _ in range(3):
            values = random.normal(MEAN, STD, (DAYS, len(FEATURES))).astype(np.float32)
            values[random.random((DAYS, len(FEATURES))) < 0.05] = np.nan
            series.append(values)
        for number in range(count):
            name, label = f"{split}_{number:02d}", CLASSES[number % len(CLASSES)]
            picture = random.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
            cv2.imwrite(str(folder / "tiles" / f"{name}.png"), picture)
            zone = ("shore", "upland")[number // 3 % 2]
            rows.append([
                name, split, f"coast_{split}", zone, label, f"tiles/{name}.png",
                str(first + number % 3), f"Sec. {number % 5}. A {label} may stand here.",
            ])  # fmt: skip
    np.savez(folder / "series.npz", values=np.stack(series))
    with (folder / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    about: dict[str, Any] = {
        "schema": 1, "name": "small", "source": "made up for tests", "licence": "none",
        "simulated": True, "image_px": SIDE_PX, "gsd_m": 2.0,
        "classes": [{"name": name, "facts": FACTS.get(name, {})} for name in CLASSES],
        "series": {"days": DAYS, "features": FEATURES},
    }  # fmt: skip
    if rules:
        about["rules"] = "rules.yaml"
        (folder / "rules.yaml").write_text(yaml.safe_dump(RULES))
    (folder / "places.yaml").write_text(yaml.safe_dump(about))
    return folder


def vectors_of(texts: list[str]) -> Float32:
    """Embeddings of length 1 that the text alone decides."""
    found = []
    for text in texts:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        vector = np.random.default_rng(seed).normal(size=WIDTH)
        found.append(vector / np.linalg.norm(vector))
    return np.array(found, np.float32)


def embeddings(places: PlaceSet) -> Float32:
    """Of every row of a set."""
    return vectors_of([row.text for row in places.rows])


def place_values(**changes: Any) -> dict[str, Any]:
    """A recipe of places as plain values."""
    colours = ("#3b6ea8", "#e6b8a2", "#6f3f8f", "#3f7d3a")
    return {
        "schema": 1,
        "kind": "places",
        "name": "small-coast",
        "title": "small, for tests",
        "student": {"name": "coastal", "pretrained": False},
        "distill": {"batch": 4, "steps": 1},
        "data": {"root": "set"},
        "io": {
            "image": {"shape": ["N", 3, SIDE_PX, SIDE_PX], "mean": [127.0] * 3, "std": [128.0] * 3},
            "series": {"days": DAYS, "features": FEATURES},
            "text": {"width": WIDTH},
            "rules": {"rows": ROWS},
            "classes": [
                {"index": number, "name": name, "color": colours[number]}
                for number, name in enumerate(CLASSES)
            ],
        },
        "precision": {"allowed": ["fp32"], "int8_layers": ["linear", "patch", "conv"]},
        "gates": {"onnx_vs_torch": {"atol": 1e-3}, "agreement_min": 0.8, "miou_drop_max": 15},
        "targets": ["x86-cpu", "rpi4", "rpi5", "orin-nx-16gb"],
    } | changes  # fmt: skip


def place_recipe(**changes: Any) -> PlaceRecipe:
    """The same, checked."""
    return parse_place_recipe(place_values(**changes), "a test")


def small_student(io: Any, pretrained: bool | None = None) -> Any:
    """The coastal network with little width and depth, so that its export is quick."""
    import torch
    from torch import nn

    from edgekd.train.places.students.coastal import CoastalNet, Sizes

    torch.manual_seed(3)
    model = CoastalNet(
        Sizes(
            classes=len(io.classes), image_px=io.image.tile_px, middle_px=32, days=io.series.days,
            features=len(io.series.features), text=io.text.width, width=48, depth=1, heads=2,
            latents=4,
        )
    )  # fmt: skip
    model.pretrained = False
    # at their initial 0 and 1 an export that forgets one of them would still compare equal
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        for name, item in model.named_parameters():
            if name.endswith("bias"):
                item.normal_(0, 0.1)
        model.eval()
        # answers that differ from place to place: scores of such evidence are 0 +- 3
        noise = np.random.default_rng(8)
        days, text = noise.normal(size=(64, DAYS, 3)), noise.normal(size=(64, WIDTH))
        given = [
            noise.uniform(-1, 1, (64, 3, SIDE_PX, SIDE_PX)),
            np.concatenate([days, np.ones_like(days)], axis=2),
            text / np.linalg.norm(text, axis=1, keepdims=True),
            np.ones((64, 3)),
        ]
        scores = model(*(torch.from_numpy(item.astype(np.float32)) for item in given))
        factor = 3 / scores.std(0)
        model.head.bias.sub_(scores.mean(0)).mul_(factor)
        model.head.weight.mul_(factor[:, None])
    return model


def make_place_checkpoint(path: Path, **changes: Any) -> Path:
    """A checkpoint of :func:`small_student`, as training leaves it."""
    from edgekd.train.places.checkpoint import PlaceCheckpoint, save_places, with_statistics

    recipe = with_statistics(place_recipe(), MEAN, STD)
    model = small_student(recipe.io)
    given: dict[str, Any] = {
        "recipe": recipe.plain(),
        "student": {
            "name": "coastal", "pretrained": False,
            "parameters": sum(item.numel() for item in model.parameters()),
        },
        "weights": model.state_dict(),
        "data": {"name": "small", "sha256": "0" * 64},
        "tuning": {"steps": 1, "simulated": True},
        "text": {"name": "made-up", "sha256": "1" * 64},
    }  # fmt: skip
    save_places(path, PlaceCheckpoint(**(given | changes)))
    return path


@dataclass(frozen=True)
class PlaceLine:
    """Where the artefacts lie; not to be written to.

    Attributes:
        data: the set; ``texts``: a ``.npy`` file of its embeddings.
        recipe, checkpoint: of the small student; ``export``: its ONNX file without projection.
    """

    root: Path
    data: Path
    texts: Path
    recipe: Path
    checkpoint: Path
    export: Path

    def places(self) -> PlaceSet:
        """The set, read."""
        return load_places(self.data)


def use_small_student(patch: pytest.MonkeyPatch) -> None:
    """Let the recipe's student be the small one."""
    from edgekd.train.places.students import coastal

    patch.setattr(coastal, "build_places", small_student)


def reuse_export(patch: pytest.MonkeyPatch, line: PlaceLine) -> None:
    """Let builds take the finished export in place of making their own."""
    from edgekd.deploy.export import places_export

    def copied(_model: Any, _recipe: Any, path: Path) -> Path:
        return Path(shutil.copyfile(line.export, path))

    use_small_student(patch)
    patch.setattr(places_export, "export_places", copied)


@pytest.fixture(scope="session")
def place_line(tmp_path_factory: pytest.TempPathFactory) -> PlaceLine:
    """Set, recipe, checkpoint and export, each made once."""
    from edgekd.deploy.export.places_export import export_places

    root = tmp_path_factory.mktemp("place-line")
    data = make_place_set(root / "set")
    texts = root / "texts.npy"
    np.save(texts, embeddings(load_places(data)))
    recipe = root / "small.yaml"
    recipe.write_text(yaml.safe_dump(place_values()))
    parsed = place_recipe()
    export = export_places(small_student(parsed.io), parsed, root / "export.onnx")
    checkpoint = make_place_checkpoint(root / "best.ckpt")
    return PlaceLine(root, data, texts, recipe, checkpoint, export)


@pytest.fixture(scope="session")
def place_bundle(place_line: PlaceLine) -> Path:
    """A sealed x86-cpu bundle, FP32, with the set's golden places; not to be written to."""
    from edgekd.deploy.places import build_places

    with pytest.MonkeyPatch.context() as patch:
        reuse_export(patch, place_line)
        places = place_line.places()
        return build_places(
            place_recipe(), "x86-cpu", place_line.checkpoint, place_line.root / "bundle",
            places, embeddings(places),
        ).path  # fmt: skip
