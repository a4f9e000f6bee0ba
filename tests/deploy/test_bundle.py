"""Building: the manifest tells the truth, gates hold, and a failure leaves nothing behind."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import edgekd
from edgekd.cli.main import main
from edgekd.contracts.artifacts import canonical_json, sha256_bytes, sha256_file
from edgekd.contracts.labelled import LabelledSet, open_labelled
from edgekd.contracts.manifest import Manifest
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe, load_recipe
from edgekd.deploy import bundle as bundle_module
from edgekd.deploy.bundle import BuildResult, build
from edgekd.deploy.export.onnx_export import OnnxModel, torch_model
from edgekd.deploy.quantize.grounds import Images
from edgekd.deploy.tiles import golden_tiles, labelled_tiles
from edgekd.errors import (
    BundleError,
    CheckpointError,
    EdgeKDError,
    GateError,
    InputError,
    OutputError,
    TrustError,
)
from edgekd.runtime.session import read_manifest
from edgekd.train.checkpoint import load_checkpoint, rebuild
from tests.helpers.checkpoints import make_checkpoint
from tests.helpers.labelled import lite0_values, make_set
from tests.helpers.line import Line, reuse, variants
from tests.helpers.rasters import write_raster

NAMES = sorted(variants())


def small_values(**changes: Any) -> dict[str, Any]:
    """The recipe of the variant ``small`` with changed keys."""
    return variants()["small"] | changes


@pytest.fixture
def recipe(line: Line) -> Recipe:
    return load_recipe(line.recipes["small"])


@pytest.fixture
def data(line: Line) -> LabelledSet:
    return open_labelled(line.data)


@pytest.fixture
def quick(exports: dict[str, OnnxModel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds of the variant ``small`` take its finished export."""
    reuse(monkeypatch, exports["small"])


def listed(folder: Path) -> list[str]:
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_tells_the_truth(name: str, line: Line, bundles: dict[str, Path]) -> None:
    folder = bundles[name]
    value = json.loads((folder / "manifest.json").read_text())
    files = {item.name for item in folder.iterdir()} - {"manifest.json"}
    assert files == set(value["files"]) == {"model.onnx", "golden.npz"}
    for file, digest in value["files"].items():
        assert sha256_file(folder / file) == digest
    manifest = read_manifest(folder)
    recipe, checkpoint = load_recipe(line.recipes[name]), line.checkpoints[name]
    labelled, stored = open_labelled(line.data), load_checkpoint(checkpoint)
    origin = manifest.provenance
    assert origin.checkpoint_sha256 == sha256_file(checkpoint)
    assert origin.recipe == recipe.plain()
    assert origin.recipe_sha256 == sha256_bytes(canonical_json(recipe.plain()).encode())
    assert (origin.data_name, origin.data_sha256) == ("none", "0" * 64)  # of the checkpoint
    assert origin.student == stored.student and origin.tuning == stored.tuning
    assert origin.edgekd_version == edgekd.__version__
    made = datetime.datetime.fromisoformat(origin.created_utc)
    assert made.utcoffset() == datetime.timedelta(0)
    assert manifest.classes == recipe.io.classes and manifest.inputs == recipe.io.inputs
    assert manifest.tiling.window_px == recipe.io.inputs[0].tile_px
    assert manifest.tiling.overlap_px == recipe.tiling.overlap_px
    assert (manifest.precision.asked, manifest.precision.done) == (["fp32"], "fp32")
    assert (manifest.target.name, manifest.target.backend) == ("x86-cpu", "onnxrt")
    import onnxruntime

    assert manifest.target.versions["onnxruntime"] == onnxruntime.__version__
    proto = onnx.load(folder / "model.onnx")
    sides = [item.dim_value for item in proto.graph.output[0].type.tensor_type.shape.dim]
    assert manifest.outputs[0].stride_px == manifest.tiling.window_px // sides[2]
    gates = {gate.name: gate for gate in manifest.gates}
    assert set(gates) == {"onnx_vs_torch", "batch_vs_single"}
    for gate in gates.values():
        assert gate.passed and 0 <= gate.value <= gate.bound == 1e-4
    assert gates["batch_vs_single"].detail.startswith(f"{max(manifest.golden.count, 2)} inputs")
    assert manifest.golden.atol == 1e-3  # ten times the export's bound
    assert labelled.name in manifest.golden.source


@pytest.mark.parametrize("name", NAMES)
def test_golden_tiles_are_real_validation_pixels(
    name: str, line: Line, bundles: dict[str, Path]
) -> None:
    manifest = read_manifest(bundles[name])
    data = open_labelled(line.data)
    tile = manifest.tiling.window_px

    def parts(split: str) -> set[bytes]:
        found = set()
        for sample in data.split(split):
            pixels, _ = data.load(sample)
            rim = [(0, max(0, tile - side)) for side in pixels.shape[:2]]
            full = np.pad(pixels, [*rim, (0, 0)], mode="symmetric")
            for y in range(full.shape[0] - tile + 1):
                for x in range(full.shape[1] - tile + 1):
                    found.add(full[y : y + tile, x : x + tile].tobytes())
        return found

    model = rebuild(load_checkpoint(line.checkpoints[name]), name)
    with np.load(bundles[name] / "golden.npz") as arrays:
        count = manifest.golden.count
        assert sorted(arrays) == sorted(
            [*(f"image_{n}" for n in range(count)), *(f"logits_{n}" for n in range(count))]
        )
        validation, test = parts("val"), parts("test") | parts("train")
        for number in range(count):
            image, logits = arrays[f"image_{number}"], arrays[f"logits_{number}"]
            assert image.shape == (tile, tile, 3) and image.dtype == np.uint8
            assert image.tobytes() in validation and image.tobytes() not in test
            said = torch_model(model)(Normalizer(manifest.inputs[0])(image)[None])[0]
            assert logits.shape == said.shape and np.abs(logits - said).max() <= 1e-4
    assert "split val: v0 at row 0 column 0" in manifest.golden.source


@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs_are_verified_on_loading_here(name: str, bundles: dict[str, Path]) -> None:
    with edgekd.load(bundles[name]) as session:
        assert session.verify() <= 1e-5


def perturbed(path: Path, amount: float) -> None:
    """Move one logit channel of a model by ``amount``."""
    proto = onnx.load(path)
    bias = next(item for item in proto.graph.initializer if item.name.endswith("classify.bias"))
    value = numpy_helper.to_array(bias).copy()
    value[0] += amount
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    onnx.save(proto, path)


@pytest.fixture
def spoil(exports: dict[str, OnnxModel], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """``spoil(amount)``: from now on exports are wrong by so many logits."""
    from dataclasses import replace

    from edgekd.deploy.export import onnx_export

    def arm(amount: float) -> None:
        def wrong(_model: Any, _recipe: Any, path: Path) -> OnnxModel:
            path.write_bytes(exports["small"].path.read_bytes())
            perturbed(path, amount)
            return replace(exports["small"], path=path)

        monkeypatch.setattr(onnx_export, "export_onnx", wrong)

    yield arm


def test_an_export_with_other_numbers_is_no_bundle(
    line: Line, recipe: Recipe, data: LabelledSet, spoil: Any, tmp_path: Path
) -> None:
    spoil(2e-4)  # twice the bound
    with pytest.raises(
        GateError, match=r"gate onnx_vs_torch failed: 0\.0002\d* .*no bundle"
    ) as err:
        build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert err.value.exit_code == 1
    assert listed(tmp_path) == []
    spoil(0.5e-4)  # half of it
    made = build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert made.manifest.gates[0].value == pytest.approx(0.5e-4, abs=2e-5)  # the export's own


def test_a_model_that_mixes_the_images_of_a_batch_is_no_bundle(
    line: Line, recipe: Recipe, data: LabelledSet, quick: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend

    plain = OnnxRuntimeBackend.infer

    def mixed(self: OnnxRuntimeBackend, inputs: Any) -> Any:
        result = plain(self, inputs)
        return {key: value + 0.01 * (len(value) > 1) for key, value in result.items()}

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", mixed)
    with pytest.raises(GateError, match=r"gate batch_vs_single failed: 0\.01"):
        build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert listed(tmp_path) == []


def test_what_was_packed_is_loaded_and_compared(
    line: Line, recipe: Recipe, data: LabelledSet, quick: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    plain = bundle_module._onnxrt

    def wrong(folder: Path, *args: Any) -> Any:
        packed = plain(folder, *args)
        perturbed(folder / "model.onnx", 0.02)
        return packed

    monkeypatch.setattr(bundle_module, "_onnxrt", wrong)
    with pytest.raises(GateError, match=r"golden outputs differ by 0\.02 logits"):
        build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ("rpi6", InputError, "target 'rpi6' does not exist; did you mean 'rpi5'"),
        ("x86", InputError, "did you mean 'x86-cpu'"),
        ("rpi5", InputError, r"recipe 'small' does not name the target rpi5 \(targets: x86-cpu"),
    ],
)
def test_targets_that_cannot_be_built(
    line: Line, data: LabelledSet, tmp_path: Path, target: str, error: type[EdgeKDError], words: str
) -> None:
    values = small_values(targets=["x86-cpu", "orin-nano-8gb"])
    with pytest.raises(error, match=words) as err:
        build(
            Recipe.model_validate(values), target, line.checkpoints["small"], tmp_path / "b",
            Images(data),
        )  # fmt: skip
    assert type(err.value) is error and err.value.exit_code == 2
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {"name": "vit_tiny", "attention": "windowed", "head": "linear"}},
         "checkpoint of student vit_nano .* asks for name vit_tiny.*edgekd finetune"),
        ({"student": {"name": "vit_nano", "attention": "global", "head": "linear"}},
         r"\(attention windowed\).* asks for attention global"),
        ({"student": {"name": "vit_nano", "head": "upernet"}}, "asks for head upernet"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_student_is_refused(
    line: Line, data: LabelledSet, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    wanted = Recipe.model_validate(small_values(**changes))
    with pytest.raises(CheckpointError, match=words):
        build(wanted, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert listed(tmp_path) == []


def test_a_checkpoint_for_other_classes_is_refused(
    line: Line, data: LabelledSet, tmp_path: Path
) -> None:
    values = small_values()
    values["io"] = {
        **values["io"],
        "classes": [{"index": 0, "name": "sea", "color": "#000000"}, values["io"]["classes"][1]],
    }
    with pytest.raises(CheckpointError, match=r"classes \['ground', 'tree'\].*\['sea', 'tree'\]"):
        build(
            Recipe.model_validate(values), "x86-cpu", line.checkpoints["small"],
            tmp_path / "b", Images(data),
        )  # fmt: skip
    assert listed(tmp_path) == []


def test_a_foreign_folder_stays_and_an_own_bundle_is_replaced(
    line: Line, recipe: Recipe, data: LabelledSet, quick: None, tmp_path: Path
) -> None:
    foreign = tmp_path / "thesis"
    foreign.mkdir()
    (foreign / "chapter1.txt").write_text("years of work")
    with pytest.raises(OutputError, match=r"not empty and holds no manifest\.json"):
        build(recipe, "x86-cpu", line.checkpoints["small"], foreign, Images(data))
    assert listed(tmp_path) == ["thesis", "thesis/chapter1.txt"]
    own = tmp_path / "b"
    own.mkdir()  # empty is fine

    def make(used: Path) -> BuildResult:
        return build(recipe, "x86-cpu", used, own, Images(data))

    first = make(line.checkpoints["small"])
    second = make(line.checkpoints["small"])
    assert second.manifest.files == first.manifest.files  # golden data included
    assert {item.name for item in own.iterdir()} == {"model.onnx", "golden.npz", "manifest.json"}
    read_manifest(own)


def test_a_signature_goes_with_the_bundle_that_it_stands_for(
    line: Line, recipe: Recipe, data: LabelledSet, quick: None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from edgekd.contracts.trust import SIGNER_VARIABLE
    from tests.helpers.keys import make_pair, sign

    pair, said = make_pair(tmp_path), []
    # also where every load wants a signer: what was just built, nobody can have signed
    monkeypatch.setenv(SIGNER_VARIABLE, str(pair.public))

    def make() -> BuildResult:
        return build(
            recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data), said.append
        )

    folder = make().path
    with pytest.raises(TrustError, match="is not signed"):
        edgekd.load(folder)
    assert any("EDGEKD_SIGNER is set" in text and "edgekd sign" in text for text in said)
    assert not any("is signed" in text for text in said)
    edgekd.load(sign(folder, pair)).close()
    make()
    assert any("b is signed; the signature goes with the bundle" in text for text in said)
    assert {item.name for item in folder.iterdir()} == {"model.onnx", "golden.npz", "manifest.json"}


def test_a_failed_rebuild_keeps_the_bundle_that_was_there(
    line: Line, recipe: Recipe, data: LabelledSet, bundles: dict[str, Path], spoil: Any,
    tmp_path: Path,
) -> None:  # fmt: skip
    import shutil

    shutil.copytree(bundles["small"], tmp_path / "b")
    before = {item.name: sha256_file(item) for item in (tmp_path / "b").iterdir()}
    spoil(0.1)
    with pytest.raises(GateError):
        build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(data))
    assert {item.name: sha256_file(item) for item in (tmp_path / "b").iterdir()} == before
    assert [item.name for item in tmp_path.iterdir()] == ["b"]


def test_a_synthetic_golden_says_so(
    line: Line, recipe: Recipe, quick: None, tmp_path: Path
) -> None:
    made = build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(None))
    assert made.manifest.golden.source == "synthetic picture (no data set at hand)"
    assert made.manifest.golden.count == 1
    with edgekd.load(made.path) as session:
        session.verify()


def test_the_command_says_so_too(
    line: Line, quick: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["build", str(line.recipes["small"]), "--target", "x86-cpu", "--checkpoint",
            str(line.checkpoints["small"]), "-o", str(tmp_path / "b")]  # fmt: skip
    code = main([*args, "--set", "data.root=nowhere", "--json"])
    out, err = capfd.readouterr()
    assert code == 0 and "a synthetic picture is used" in err and "nowhere is not here" in err
    assert "synthetic" in json.loads(out)["manifest"]["golden"]["source"]
    assert main([*args, "--data", str(tmp_path / "nowhere")]) == 2  # asked for: no stand-in
    assert "nowhere does not exist" in capfd.readouterr().err


def test_the_recipes_own_golden_bound_is_used(line: Line, quick: None, tmp_path: Path) -> None:
    wanted = Recipe.model_validate(
        small_values(gates={"onnx_vs_torch": {"atol": 1e-4}, "golden": {"atol": 0.03}})
    )
    made = build(wanted, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(None))
    assert made.manifest.golden.atol == 0.03


def test_steps_are_told_in_order(line: Line, recipe: Recipe, quick: None, tmp_path: Path) -> None:
    said: list[str] = []
    build(recipe, "x86-cpu", line.checkpoints["small"], tmp_path / "b", Images(None), said.append)
    assert [text.split()[0] for text in said] == ["export", "check", "compare", "load"]


def test_the_run_folder_stands_for_its_best_checkpoint(
    line: Line, recipe: Recipe, quick: None, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.ckpt").write_bytes(line.checkpoints["small"].read_bytes())
    (run / "last.ckpt").write_bytes(b"something else")
    made = build(recipe, "x86-cpu", run, tmp_path / "b", Images(None))
    assert made.manifest.provenance.checkpoint_sha256 == sha256_file(run / "best.ckpt")


def test_bundles_of_another_architecture_need_consent(
    line: Line, exports: dict[str, OnnxModel], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A Raspberry Pi's bundle is built and verified on this computer, then guarded."""
    reuse(monkeypatch, exports["conv"])
    wanted = Recipe.model_validate(lite0_values(targets=["rpi5"]))
    made = build(wanted, "rpi5", line.checkpoints["conv"], tmp_path / "b", Images(None))
    assert (made.manifest.target.arch, made.manifest.target.name) == ("aarch64", "rpi5")
    if platform.machine() != "aarch64":
        with pytest.raises(BundleError, match=r"was built for rpi5.*--any-device"):
            edgekd.load(tmp_path / "b")
    with edgekd.load(tmp_path / "b", any_device=True) as session:
        session.verify()


@pytest.mark.parametrize(("tile", "expected"), [(32, 2), (64, 2), (160, 2), (176, 1), (512, 1)])
def test_golden_tiles_are_whole_and_different(
    tile: int, expected: int, tmp_path_factory: pytest.TempPathFactory, line: Line
) -> None:
    values = lite0_values()
    values["io"]["inputs"][0]["shape"] = ["N", 3, tile, tile]
    values["finetune"]["crop_px"] = 32
    tiles, origin = golden_tiles(Recipe.model_validate(values), open_labelled(line.data), 2)
    assert len(tiles) == expected and origin.count(" at row ") == expected
    assert all(item.shape == (tile, tile, 3) and item.flags.c_contiguous for item in tiles)
    assert len({item.tobytes() for item in tiles}) == expected
    for word in origin.split("split val: ")[1].split(", "):
        assert word.startswith("v0 at row ")


@pytest.mark.parametrize("count", [3, 4, 8, 16, 32])
def test_golden_tiles_are_the_ends_of_what_is_judged(count: int, tmp_path: Path) -> None:
    """Where the last places are black margins, too: bounds are measured on the golden tiles."""
    rng = np.random.default_rng(0)
    image = rng.integers(1, 255, (160, 160, 3), dtype=np.uint8)
    image[96:], image[:, 96:] = 0, 0
    folder = make_set(tmp_path / "set")
    splits = {"train": ["t0"], "val": ["v0"], "test": ["e0"]}
    (folder / "splits.json").write_text(json.dumps(splits))
    write_raster(next(folder.glob("images/v0.*")), image)
    write_raster(next(folder.glob("masks/v0.*")), np.zeros((160, 160, 1), np.uint8))
    data = open_labelled(folder)
    ends = labelled_tiles(data, "val", 32, 2)
    assert ends[0].name == "v0 at row 0 column 0"
    judged = labelled_tiles(data, "val", 32, count)
    assert [judged[0].name, judged[-1].name] == [tile.name for tile in ends]
    assert len({tile.pixels.tobytes() for tile in judged}) == len(judged) == min(count, 10)


def test_a_set_without_validation_images_is_refused(
    recipe: Recipe, line: Line, quick: None, tmp_path: Path
) -> None:
    folder = make_set(tmp_path / "set")
    (folder / "splits.json").write_text(json.dumps({"train": ["t0"], "test": ["e0"]}))
    with pytest.raises(InputError, match="no sample in split 'val'"):
        build(
            recipe,
            "x86-cpu",
            line.checkpoints["small"],
            tmp_path / "b",
            Images(open_labelled(folder)),
        )
    assert not (tmp_path / "b").exists() and bundle_module.GOLDEN_COUNT == 2


def test_a_manifest_with_a_nan_gate_cannot_be_written(bundles: dict[str, Path]) -> None:
    """JSON has no NaN: the schema refuses it before a file is written."""
    value = read_manifest(bundles["small"]).plain()
    value["gates"][0]["value"] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        Manifest.model_validate(value)


def test_two_checkpoints_give_two_models(
    line: Line, bundles: dict[str, Path], recipe: Recipe, quick: None, tmp_path: Path
) -> None:
    """An export that is stale (of other weights) is caught by the gate."""
    other = make_checkpoint(tmp_path / "other.ckpt", variants()["small"], seed=12)
    with pytest.raises(GateError, match="onnx_vs_torch"):
        build(recipe, "x86-cpu", other, tmp_path / "b", Images(None))
    assert os.listdir(tmp_path) == ["other.ckpt"]  # noqa: PTH208


@pytest.mark.parametrize("text", ['{"name": "my web app"}', "[]", "no json"])
def test_a_strangers_folder_with_a_manifest_is_left_alone(tmp_path: Path, text: str) -> None:
    from edgekd.errors import OutputError
    from edgekd.runtime.bundle import require_replaceable

    (tmp_path / "manifest.json").write_text(text)
    (tmp_path / "app.js").write_text("precious")
    with pytest.raises(OutputError, match="not of edgekd"):
        require_replaceable(tmp_path)


def test_a_bundle_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    from edgekd.errors import OutputError
    from edgekd.runtime.bundle import require_replaceable
    from tests.helpers.bundles import make_bundle

    folder = make_bundle(tmp_path / "b")
    require_replaceable(folder)
    (folder / "signature.json").write_text("{}")  # part of a bundle, whatever it holds
    require_replaceable(folder)
    (folder / "notes.txt").write_text("precious")
    with pytest.raises(OutputError, match=r"notes\.txt, which would be lost"):
        require_replaceable(folder)
