"""Adapting to a site: it helps where light differs, harms nowhere, and sees nothing held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.blocks import grown
from edgekd.contracts.labelled import open_labelled
from edgekd.deploy.export.onnx_export import export_onnx
from edgekd.errors import CheckpointError, DatasetError, InputError
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.train.adapt.run import AdaptResult, adapt
from edgekd.train.adapt.site import open_site
from edgekd.train.checkpoint import load_checkpoint, rebuild
from edgekd.train.evaluate import evaluate_model
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.labelled import make_set
from tests.helpers.recoloured import CLASSES, PLAIN, SHIFTED, make_student, write_site
from tests.helpers.sensors import BLOCKS, sensor_values, write_set

SPLITS = {"train": ["t"], "test": ["e"]}
SEEDS = {"t": 11, "e": 12}


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_student(tmp_path_factory.mktemp("student"))


def weights(result: AdaptResult) -> dict[str, torch.Tensor]:
    return load_checkpoint(result.best).weights


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def gain(result: AdaptResult) -> float:
    return float(result.tuning["measured"]["difference"]["balanced_accuracy"])


def test_another_light_is_learned_from_twelve_labels(student: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    result = adapt(student, site, tmp_path / "out", labels=12)
    measured = result.tuning["measured"]
    assert measured["before"]["balanced_accuracy"] < 0.75
    assert gain(result) > 0.1 and measured["difference"]["interval_95"][0] > 0
    assert result.warning is None and result.tuning["change"] != "no change"
    used = result.tuning["labels"]
    assert used["used"] == 12
    assert [item["used"] for item in used["per_class"].values()] == [4, 4, 4]
    assert result.tuning["adapted_from_sha256"] == sha256_file(student)
    assert result.tuning["before"] == load_checkpoint(student).tuning


def test_the_figures_are_those_of_an_evaluation(student: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    result = adapt(student, site, tmp_path / "out", labels=12)
    for path, name in ((student, "before"), (result.best, "after")):
        checkpoint = load_checkpoint(path)
        recipe = checkpoint.parsed_recipe("a test")
        found = evaluate_model(
            rebuild(checkpoint, "a test"), open_labelled(site), "test", recipe.io, recipe.tiling
        )
        assert found["confusion"] == result.tuning["measured"][name]["confusion"]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_site_like_the_training_one_is_not_made_worse(
    student: Path, tmp_path: Path, seed: int
) -> None:
    site = write_site(tmp_path / "site", SEEDS, PLAIN, SPLITS)
    result = adapt(student, site, tmp_path / "out", labels=12, seed=seed)
    assert result.tuning["measured"]["before"]["balanced_accuracy"] > 0.9
    assert gain(result) > -0.02


def test_the_same_seed_gives_the_same_weights_and_another_others(
    student: Path, tmp_path: Path
) -> None:
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    one, two, other = (
        adapt(student, site, tmp_path / f"out{n}", labels=12, seed=seed)
        for n, seed in enumerate((0, 0, 1))
    )
    assert same(weights(one), weights(two)) and not same(weights(one), weights(other))
    for result in (one, two):
        result.tuning.pop("seconds")
    assert one.tuning == two.tuning


@pytest.mark.parametrize("how", ["split", "blocks"])
def test_nothing_of_held_out_pixels_reaches_the_weights(
    student: Path, tmp_path: Path, how: str
) -> None:
    """Labels too with a split; the deal of blocks alone looks at all labels."""
    splits = SPLITS if how == "split" else None
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, splits)
    plain = adapt(student, site, tmp_path / "out", labels=12)
    hidden = _hidden(student, site)
    random = np.random.default_rng(3)

    def change(name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
        pixels[hidden[name]] = random.integers(0, 256, (int(hidden[name].sum()), 3))
        if how == "split":
            mask[hidden[name]] = 4

    other = write_site(tmp_path / "other", SEEDS, SHIFTED, splits, change)
    changed = adapt(student, other, tmp_path / "changed", labels=12)
    assert same(weights(plain), weights(changed))
    assert plain.tuning["candidates"] == changed.tuning["candidates"]
    assert plain.tuning["measured"] != changed.tuning["measured"]


def _hidden(student: Path, path: Path) -> dict[str, np.ndarray]:
    """What of each image adaptation must not see."""
    recipe = load_checkpoint(student).parsed_recipe("a test")
    site = open_site(recipe, path, None, 0)
    found = {name: np.ones((96, 96), dtype=np.bool_) for name in SEEDS}
    for name, read in site.shown.items():
        found[name] = ~read().shown
    assert all(mask.any() for name, mask in found.items() if name == "e" or len(site.shown) == 2)
    return found


def test_no_shown_pixel_is_near_a_measured_one(student: Path, tmp_path: Path) -> None:
    recipe = load_checkpoint(student).parsed_recipe("a test")
    path = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    site = open_site(recipe, path, (24, 5), 0)  # blocks, although there is a split
    for name, read in site.shown.items():
        picture, held = read(), site.held_out[name]()
        measured = held.target != 255
        assert picture.shown.any() and measured.any()
        assert not (grown(measured, 5) & picture.shown).any()
        assert (picture.target[~picture.shown] == 255).all()
        assert set(np.unique(picture.target)) == {0, 1, 2, 255}


def test_wrong_labels_are_warned_of(student: Path, tmp_path: Path) -> None:
    def swap(name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
        if name == "t":  # every olivine called basalt, and the other way round
            mask[:] = np.where(mask == 1, 4, np.where(mask == 4, 1, mask))

    site = write_site(tmp_path / "site", SEEDS, PLAIN, SPLITS, swap)
    result = adapt(student, site, tmp_path / "out", labels=60)
    assert gain(result) < -0.05
    assert result.warning is not None
    assert f"fell by {-100 * gain(result):.1f} points" in result.warning
    assert f"keep the old checkpoint {student}" in result.warning


def test_an_adapted_checkpoint_is_exported(student: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    result = adapt(student, site, tmp_path / "out", labels=12)
    checkpoint = load_checkpoint(result.best)
    model = rebuild(checkpoint, "a test")
    exported = export_onnx(model, checkpoint.parsed_recipe("a test"), tmp_path / "model.onnx")
    tile = np.random.default_rng(0).normal(0, 1, (1, 3, 64, 64)).astype(np.float32)
    with OnnxRuntimeBackend(exported.path) as backend, torch.inference_mode():
        said = backend.infer({exported.input_name: tile})[exported.output_name]
        np.testing.assert_allclose(said, model(torch.from_numpy(tile)).numpy(), atol=1e-4)


def test_an_adapted_checkpoint_is_adapted_again(student: Path, tmp_path: Path) -> None:
    site = write_site(tmp_path / "site", SEEDS, SHIFTED, SPLITS)
    first = adapt(student, site, tmp_path / "one", labels=12)
    again = adapt(first.best.parent, site, tmp_path / "two", labels=12, seed=1)
    assert again.tuning["adapted_from_sha256"] == sha256_file(first.best)
    assert gain(again) > -0.05
    with pytest.raises(InputError, match="holds the checkpoint that is adapted"):
        adapt(first.best, site, tmp_path / "one", labels=12, fresh=True)
    with pytest.raises(InputError, match="already holds a run .* --fresh"):
        adapt(student, site, tmp_path / "one", labels=12)


def _only_train(folder: Path) -> Path:
    return write_site(folder, {"t": 11}, splits={"train": ["t"]})


def _other_classes(folder: Path) -> Path:
    return make_set(folder)


def _blank(folder: Path) -> Path:
    def erase(name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
        mask[:] = 255

    return write_site(folder, SEEDS, splits=SPLITS, change=erase)


def _one_spot(folder: Path) -> Path:
    def erase(name: str, pixels: np.ndarray, mask: np.ndarray) -> None:
        if name == "t":
            mask[:] = 255
            mask[8:10, 8:11] = 4

    return write_site(folder, SEEDS, splits=SPLITS, change=erase)


def _small(folder: Path) -> Path:
    return write_site(folder, {"t": 11}, side_px=24)


def _no_train(folder: Path) -> Path:
    return write_site(folder, SEEDS, splits={"test": ["t", "e"]})


def _unknown_class(folder: Path) -> Path:
    more = [*CLASSES, {"index": 9, "name": "calcite", "color": "#ffffff"}]
    return write_site(folder, SEEDS, splits=SPLITS, classes=more)


REFUSED: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("nothing held out", _only_train, {}, InputError, "nothing out to measure on .*--unmeasured"),
    ("other classes", _other_classes, {}, DatasetError, "0 ground, 1 tree, the model has 1 olivi"),
    ("a class too many", _unknown_class, {}, DatasetError, "9 calcite, the model has"),
    ("no label", _blank, {}, InputError, "has 0 labelled pixels .* asks for 20"),
    ("labels of one spot", _one_spot, {"labels": 6}, InputError, "within a few pixels"),
    ("more than there are", _one_spot, {"labels": 9}, InputError, "has 6 labelled .* asks for 9"),
    ("one label", _only_train, {"labels": 1, "unmeasured": True}, InputError, "1 is too few"),
    ("too small for blocks", _small, {}, DatasetError, "24x24 px. cannot be cut .*--blocks SIDE"),
    ("no training part", _no_train, {}, DatasetError, "no sample in split train, .*--blocks"),
    ("nothing there", lambda folder: folder, {}, DatasetError, "does not exist"),
]


@pytest.mark.parametrize(
    ("make", "asked", "kind", "words"),
    [row[1:] for row in REFUSED],
    ids=[row[0] for row in REFUSED],
)
def test_what_cannot_be_used_is_refused(
    student: Path,
    tmp_path: Path,
    make: Any,
    asked: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    with pytest.raises(kind, match=words) as caught:
        adapt(student, make(tmp_path / "site"), tmp_path / "out", **asked)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "best.ckpt").exists()


def test_unmeasured_says_so(student: Path, tmp_path: Path) -> None:
    result = adapt(student, _only_train(tmp_path / "site"), tmp_path / "out", unmeasured=True)
    assert result.tuning["measured"] is None and result.warning is None
    assert result.best.is_file()


def test_bundles_and_encoders_are_refused(student: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a bundle.*build again"):
        adapt(bundle, tmp_path, tmp_path / "out")
    for mark, words in (("edgekd_encoder", "an encoder"), ("edgekd_teacher", "a teacher")):
        torch.save({mark: 1}, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=f"is {words}.*give the best.ckpt"):
            adapt(tmp_path / "other.ckpt", tmp_path, tmp_path / "out")


def test_a_sensor_set_is_cut_by_its_recipe_and_only_seen_by_its_camera(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    values = sensor_values(
        data={"blocks": BLOCKS, "labels_per_class": 2},
        student={"name": "geology_rgb", "variant": "nano"},
        name="rocks",
    )
    values["io"]["inputs"][0] |= {"mean": [127.5] * 3, "std": [64.0] * 3}
    checkpoint = make_checkpoint(tmp_path / "random.ckpt", values)
    path = write_set(tmp_path / "set")
    result = adapt(checkpoint, path.parent, tmp_path / "out", labels=30)
    tuning = result.tuning
    assert tuning["simulated"] is True
    assert "split test (blocks of 12 px, fold 0 of 4, buffer 2 px)" in tuning["split"]
    assert tuning["labels"]["used"] == 30  # two per class was how the recipe trained
    recipe = load_checkpoint(checkpoint).parsed_recipe("a test")
    bare = write_set(tmp_path / "bare")  # cut by the command where nobody says how
    values["data"] = {"root": "set"}
    without = make_checkpoint(tmp_path / "without.ckpt", values)
    cut = adapt(without, bare.parent, tmp_path / "cut", labels=30, blocks=(12, 2))
    assert "blocks of 12 px, fold 0 of 2, buffer 2 px" in cut.tuning["split"]
    site = open_site(recipe, path.parent, None, 0)
    (held,) = [read() for read in site.held_out.values()]
    (seen,) = [read() for read in site.shown.values()]
    assert not (grown(held.target != 255, 2) & seen.shown).any()
    with pytest.raises(DatasetError, match="--blocks SIDE,BUFFER"):
        adapt(without, bare.parent, tmp_path / "none", labels=30, blocks=(64, 2))
