"""The main job, end to end, in one process, on pictures made here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

import edgekd
from edgekd.cli.main import main
from edgekd.contracts.artifacts import sha256_file
from tests.helpers.labelled import CLASSES, make_set, recipe_values, write_recipe
from tests.helpers.rasters import write_raster


def scene(path: Path) -> np.ndarray:
    """330 x 290 px of ground with two green fields and a corner without data; the truth."""
    truth = np.zeros((330, 290), np.uint8)
    truth[30:140, 20:130] = 1
    truth[180:300, 100:240] = 1
    random = np.random.default_rng(9)
    colour = np.where(truth[:, :, None] == 1, (60, 120, 60), (130, 100, 80))
    image = np.clip(colour + random.normal(0, 18, (*truth.shape, 3)), 1, 255).astype(np.uint8)
    image[:40, 260:] = 0
    write_raster(
        path, image, nodata=0, crs="EPSG:32633", transform=from_origin(500000, 5000000, 0.5, 0.5)
    )
    truth[:40, 260:] = 255
    return truth


def test_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    data = make_set(tmp_path / "data")
    values = recipe_values(name="line", title="a test of the line")
    values["finetune"] |= {"steps": 60, "lr": 3e-3, "val_every_steps": 20}
    recipe = write_recipe(tmp_path, values)
    truth = scene(tmp_path / "scene.tif")

    def edgekd_(*args: object, codes: tuple[int, ...] = (0,)) -> dict[str, Any]:
        code = main([*(str(arg) for arg in args), "--json"])
        out, err = capfd.readouterr()
        assert code in codes, err
        value: dict[str, Any] = json.loads(out)
        return value

    run, bundle, model = tmp_path / "run", tmp_path / "bundle", tmp_path / "model.onnx"
    tuned = edgekd_("finetune", recipe, "-o", run, "--accelerator", "cpu")
    assert tuned["steps_done"] == 60
    checkpoint = Path(tuned["checkpoint"])

    before = edgekd_("eval", checkpoint, "--data", data)
    assert before["miou"] > before["majority_class"]["miou"] + 0.1

    exported = edgekd_("export", checkpoint, "-o", model)
    built = edgekd_("build", recipe, "--target", "x86-cpu", "--checkpoint", run, "-o", bundle)
    manifest = built["manifest"]
    # two exports, alone and inside a build, of one checkpoint
    assert exported["sha256"] == manifest["files"]["model.onnx"] == sha256_file(model)
    assert manifest["provenance"]["checkpoint_sha256"] == sha256_file(checkpoint)
    assert manifest["provenance"]["data_sha256"] == before["data_sha256"]
    assert manifest["provenance"]["tuning"]["best_val_miou"] == tuned["best_val_miou"]
    assert "real pixels of data, split val" in manifest["golden"]["source"]

    shown = edgekd_("inspect", bundle)
    assert shown.pop("trust")["signature"] == "none" and shown == manifest
    assert edgekd_("validate", bundle, recipe)["results"][0]["valid"]

    result = edgekd_("run", bundle, tmp_path / "scene.tif", "-o", tmp_path / "map.tif")
    assert (result["width"], result["height"], result["crs"]) == (290, 330, "EPSG:32633")
    assert result["pixels"] == 330 * 290
    assert result["pixels_nodata"] == int((truth == 255).sum()) == 1200
    assert result["pixels_covered"] == result["pixels_valid"] == 330 * 290 - 1200
    with (
        rasterio.open(tmp_path / "map.tif") as found,
        rasterio.open(tmp_path / "scene.tif") as given,
    ):
        assert (found.crs, found.transform, found.shape) == (
            given.crs, given.transform, given.shape,
        )  # fmt: skip
        classes = found.read(1)
        assert found.nodata == 255 and found.colormap(1)[1][:3] == (0x11, 0x77, 0x33)
        assert json.loads(found.tags()["CLASS_NAMES"]) == {
            str(item["index"]): item["name"] for item in CLASSES
        }
    assert np.array_equal(classes == 255, truth == 255)
    valid = truth != 255
    assert (classes[valid] == truth[valid]).mean() > 0.85
    for item in CLASSES:
        assert result["class_pixels"][item["name"]] == int((classes == item["index"]).sum())
        area = result["class_area_m2"][item["name"]]
        assert area == pytest.approx(result["class_pixels"][item["name"]] * 0.25)

    after = edgekd_("eval", bundle, "--data", data)
    for key in ("miou", "overall_accuracy", "mean_f1"):
        assert after[key] == pytest.approx(before[key], abs=2e-3)
    assert after["majority_class"] == before["majority_class"]

    record = tmp_path / "record.json"
    # 1: on a busy machine the measurement may say of itself that it is not valid
    measured = edgekd_(
        "bench", bundle, tmp_path / "scene.tif", "--seconds", "0.5", "--warmup", "0.3",
        "--repeats", "1", "-o", record, codes=(0, 1),
    )  # fmt: skip
    assert measured == json.loads(record.read_text())
    shown = edgekd_("report", record, "-o", tmp_path / "report.html")
    assert shown["records"][0]["model_sha256"] == manifest["files"]["model.onnx"]
    page = (tmp_path / "report.html").read_text()
    assert "line-x86-cpu" in page and "<svg" in page
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)  # self-contained

    # what the application calls is what the command ran
    with edgekd.load(bundle) as session, rasterio.open(tmp_path / "scene.tif") as given:
        prediction = session.run(np.moveaxis(given.read(), 0, 2))
    inner = np.s_[290:, :]  # away from the corner without data
    assert (prediction.classes[inner] == classes[inner]).mean() > 0.999

    kept = {item.name for item in tmp_path.iterdir()}
    assert kept == {
        "data", "line.yaml", "scene.tif", "run", "model.onnx", "bundle", "map.tif",
        "record.json", "report.html",
    }  # fmt: skip
