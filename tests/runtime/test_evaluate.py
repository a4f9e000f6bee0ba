"""Accuracy of a bundle: one confusion matrix over the split, from the map that a user gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.labelled import open_labelled
from edgekd.errors import DatasetError
from edgekd.runtime.evaluate import evaluate_bundle
from edgekd.runtime.session import load
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

CLASSES = [
    {"index": 4, "name": "water", "rgb_hex": "#0000ff"},
    {"index": 1, "name": "land", "rgb_hex": "#00ff00"},
    {"index": 0, "name": "unlabeled", "rgb_hex": "#000000"},
]


def make_set(root: Path, classes: list[dict[str, object]] = CLASSES) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 50), (70, 33), (20, 20)]):
        write_raster(root / "images" / f"{number}.png", smooth_image(height, width, seed=number))
        mask = rng.choice(np.array([0, 1, 4], np.uint8), (height, width))
        write_raster(root / "masks" / f"{number}.png", mask)
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 0}))
    (root / "splits.json").write_text(json.dumps({"test": ["0", "1"], "train": ["2"]}))
    return root


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    classes = [
        {"index": 4, "name": "water", "color": "#0000ff"},
        {"index": 1, "name": "land", "color": "#00ff00"},
    ]
    return make_bundle(tmp_path / "b", tile_px=32, classes=2, changes={"classes": classes})


def test_counts_are_those_of_the_map(tmp_path: Path, bundle: Path) -> None:
    data = open_labelled(make_set(tmp_path / "set"))
    said: list[tuple[int, int]] = []
    with load(bundle) as session:
        result = evaluate_bundle(session, data, "test", lambda *now: said.append(now))
        expected = np.zeros((2, 2), int)
        for sample, own in zip(data.split("test"), result["confusion_by_sample"], strict=True):
            before = expected.copy()
            pixels, target = data.load(sample)
            found = session.run(pixels).classes
            for row in range(2):
                for column, index in enumerate((4, 1)):
                    expected[row, column] += int(((target == row) & (found == index)).sum())
            assert own == {"id": sample.id, "confusion": (expected - before).tolist()}
    assert result["confusion"] == expected.tolist() and result["pixels"] == expected.sum()
    assert result["samples"] == 2 and said == [(1, 2), (2, 2)]
    assert result["per_class"][0]["name"] == "water" and result["data_sha256"] == data.digest
    json.dumps(result, allow_nan=False)


def test_other_classes_or_an_empty_split_are_refused(tmp_path: Path, bundle: Path) -> None:
    with load(bundle) as session:
        turned = open_labelled(make_set(tmp_path / "turned", [CLASSES[1], CLASSES[0]]))
        with pytest.raises(DatasetError, match="the model has 4 water, 1 land"):
            evaluate_bundle(session, turned, "test")
        with pytest.raises(DatasetError, match="no sample in split 'val'"):
            evaluate_bundle(session, open_labelled(make_set(tmp_path / "set")), "val")
