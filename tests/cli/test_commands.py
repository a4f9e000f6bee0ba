"""Every command on good input: one JSON object, text for a person, and what it says is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgekd.cli.main import _ORDER, main
from edgekd.contracts import registry
from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.recipe import Recipe
from edgekd.deploy.export.onnx_export import OnnxModel
from edgekd.runtime.session import read_manifest
from edgekd.train.distill.loop import distill
from tests.conftest import ROOT
from tests.helpers.labelled import make_set, write_recipe
from tests.helpers.line import Line, reuse
from tests.helpers.rasters import smooth_image, write_raster
from tests.helpers.unlabeled import distill_values, make_tiles

RECIPES = sorted((ROOT / "engines").glob("*.yaml"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Any:
    """``call(*args)`` -> the JSON object that a successful command printed, alone, on stdout."""

    def run(*args: object, code: int = 0) -> dict[str, Any]:
        found = main([*(str(arg) for arg in args), "--json"])
        out, err = capfd.readouterr()
        assert found == code, err
        if code == 0:
            assert "error:" not in err
        assert out.startswith("{\n") and out.endswith("}\n")
        value = json.loads(out)  # a second object or a stray line would be "Extra data"
        assert isinstance(value, dict) and value
        return value

    return run


@pytest.fixture
def told(capfd: pytest.CaptureFixture[str]) -> Any:
    """``told(*args)`` -> stdout and stderr of a successful command without ``--json``."""

    def run(*args: object) -> tuple[str, str]:
        assert main([str(arg) for arg in args]) == 0, capfd.readouterr().err
        out, err = capfd.readouterr()
        assert not out.startswith("{")
        return out, err

    return run


def test_the_commands_are_the_issues() -> None:
    found = {
        path.stem
        for path in (ROOT / "edgekd" / "cli").glob("*.py")
        if not path.stem.startswith("_") and path.stem != "main"
    }
    assert found == set(_ORDER) and len(found) == 26


@pytest.mark.parametrize("name", _ORDER)
def test_help(name: str, told: Any) -> None:
    out, err = told(name, "--help")
    assert out.startswith(f"Usage: edgekd {name} ") and err == ""
    assert "--json" in out and "--debug" in out
    described = out.split("\n\n")[1].strip()
    assert described[0].isupper() and described.rstrip().endswith((".", ")"))
    assert max(len(line) for line in out.splitlines()) <= 100


def test_ls_students_counts_the_attention_products(call: Any, told: Any) -> None:
    value = call("ls", "students")
    assert value["tile_px"] == 1024 and value["flops_per_multiply_add"] == 2
    sizes = [row["variant"] for row in value["students"] if row["name"] == "geology_rgb"]
    assert sizes == ["small", "nano"]
    rows = {(row["name"], row["attention"], row["head"]): row for row in value["students"]}
    assert {name for name, _, _ in rows} == set(registry.module_names("edgekd.train.students"))
    assert len(rows) == 3 * 4 + 1 + 1
    # 64 x 64 tokens; QK^T and AV take 2 x tokens² x width multiply-adds per block
    tokens, width = 4096, 384
    whole = 12 * 2 * 2 * tokens**2 * width
    assert rows["vit_small", "global", "linear"]["flops_attention_products"] == whole
    # 8 of 12 blocks see only their window of 16 x 16 tokens
    windowed = (4 * tokens + 8 * 256) * 2 * 2 * tokens * width
    row = rows["vit_small", "windowed", "linear"]
    assert row["flops_attention_products"] == windowed < row["flops"]
    assert rows["lite0", None, "pyramid"]["flops_attention_products"] == 0
    for row in rows.values():
        assert row["parameters"] > 0 and 1024 % row["side_multiple"] == 0
    (coastal,) = value["students_of_places"]
    assert coastal["recipe"] == "coastal" and coastal["image_px"] == 128
    assert 0.1e9 < coastal["image_macs"] <= 1e9, "the bound of the picture's branch on a Pi"
    out, _ = told("ls", "students", "--tile", 256)
    assert "the picture's branch 0.12 GMAC at 128 px" in out
    assert "of which QK^T and AV" in out and "per 256 x 256 px tile" in out


def test_ls(call: Any, told: Any) -> None:
    value = call("ls")
    assert set(value) == {
        "students", "heads", "teachers", "methods", "targets", "recipes", "sensors", "backends",
        "builders",
    }  # fmt: skip
    assert value["teachers"] == [
        "efficientnet_lite", "geology_fusion", "hf_text", "hf_vision", "minilm", "sam",
        "temporal_conv",
    ]  # fmt: skip
    assert {"lite0", "coastal"} <= set(value["students"])
    note = "hf_text, minilm, temporal_conv: of series and texts, for recipes of kind: places"
    assert note in told("ls", "teachers")[1]
    assert value["methods"] == ["cross_modal", "feature", "mae", "mask_cdkd"]
    assert value["recipes"] == sorted(path.stem for path in RECIPES)
    assert "x86-cpu" in value["targets"] and "onnxrt" in value["backends"]
    for kind in (
        "heads",
        "teachers",
        "methods",
        "recipes",
        "sensors",
        "backends",
        "builders",
    ):
        assert call("ls", kind) == {kind: value[kind]}
        assert told("ls", kind)[0].split() == value[kind]


def test_ls_keys_of_rules_and_of_a_set(
    call: Any, told: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    law = {item["key"]: item for item in call("ls", "keys", "--rules")["keys"]}
    assert law["rules[].valid.until"]["meaning"].startswith("first day on which it is no longer")
    assert all(item["meaning"] for item in law.values())
    assert "rules[].min_m" in law and law["zones"]["default"] == "required"
    assert "image_px" in {item["key"] for item in call("ls", "keys", "--place-set")["keys"]}
    assert "edgekd ls keys --rules" in told("ls")[0]
    for words, said in (
        (["--under", "rules"], "a recipe has no key 'rules' (it is one of: edgekd ls keys --rules"),
        (["--rules", "--under", "student"], "a file of rules has no key 'student'"),
    ):
        assert main(["ls", "keys", *words]) == 2
        assert said in capfd.readouterr().err
    assert main(["ls", "heads", "--rules"]) == 2


def test_ls_targets(call: Any, told: Any) -> None:
    value = call("ls", "targets")
    assert value["targets"] == call("ls")["targets"] == sorted(value["details"])
    nano = value["details"]["orin-nano-8gb"]
    assert (nano["tensorrt"], nano["memory_mib"], nano["precisions"]) == (
        "10.3", 8192, ["fp32", "fp16", "int8"])  # fmt: skip
    assert {"id": 2, "name": "MAXN_SUPER", "budget_w": None} in nano["power_modes"]
    out, _ = told("ls", "targets")
    assert "TensorRT 10.3" in out and "ONNX Runtime 1.17" in out
    assert "JetPack 6.2 (L4T 36.4.3), compute capability 8.7, power modes 0 MAXN, 1 10W" in out
    assert "Cortex-A72, without 8-bit dot products, INT8 weights of 8 bits" in out
    assert "x86-64 with AVX2 or less, without 8-bit dot products, INT8 weights of 7" in out


def test_validate(call: Any, told: Any, bundles: dict[str, Path]) -> None:
    assert len(RECIPES) == 7
    value = call("validate", *RECIPES, bundles["small"])
    assert [item["path"] for item in value["results"]] == [
        *map(str, RECIPES),
        str(bundles["small"]),
    ]
    assert all(item["valid"] for item in value["results"])
    packed = value["results"][-1]
    assert packed["kind"] == "bundle"
    assert 0 <= packed["golden_max_abs_logits"] <= packed["golden_atol_logits"]
    out, _ = told("validate", bundles["small"])
    assert "golden outputs within" in out


def test_validate_of_several_names_each_bad_one(
    call: Any, bundles: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.yaml").touch()
    value = call("validate", tmp_path / "empty.yaml", bundles["small"], tmp_path, code=2)
    assert [item["valid"] for item in value["results"]] == [False, True, False]
    assert "is empty" in value["results"][0]["error"]
    assert "is not a bundle" in value["results"][2]["error"]


def test_validate_knows_coefficients(call: Any, told: Any) -> None:
    path = Path(__file__).parents[2] / "engines" / "coefficients" / "carbonation.yaml"
    (found,) = call("validate", path)["results"]
    assert found["kind"] == "coefficients" and found["unit"] == "relative"
    assert "olivine, wollastonite, serpentine, basalt, uncertainty unknown of" in found["summary"]


def test_inspect(call: Any, told: Any, line: Line, bundles: dict[str, Path]) -> None:
    value = call("inspect", bundles["small"])
    assert value.pop("trust")["signature"] == "none"
    assert value == read_manifest(bundles["small"]).plain()
    out, _ = told("inspect", bundles["small"])
    for word in ("vit_nano", "0 ground, 1 tree", "gate onnx_vs_torch: passed", "as sealed"):
        assert word in out
    value = call("inspect", line.checkpoints["levels"])
    assert value["student"]["options"]["head"] == "upernet" and value["resumable"] is False
    assert value["recipe"]["name"] == "levels"
    out, _ = told("inspect", line.checkpoints["levels"])
    assert "attention global" in out and "weights only" in out


def test_the_next_command_keeps_what_was_set(told: Any, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, distill_values("mae", steps=9))
    tiles = make_tiles(tmp_path / "tiles", count=2)
    name = "title=two words"
    _, err = told("distill", recipe, "--data", tiles, "-o", tmp_path / "run", "--accelerator",
                  "cpu", "--set", "distill.steps=1", "--set", name)  # fmt: skip
    expected = (
        f"next: edgekd finetune {recipe} --encoder {tmp_path / 'run'} "
        "--set distill.steps=1 --set 'title=two words'"
    )
    assert expected in err


def test_inspect_an_encoder(call: Any, told: Any, tmp_path: Path) -> None:
    recipe = Recipe.model_validate(distill_values("feature", steps=2))
    tiles = make_tiles(tmp_path / "tiles")
    distill(recipe, tmp_path, [tiles], tmp_path / "run", accelerator="cpu")
    value = call("inspect", tmp_path / "run" / "encoder.ckpt")
    assert value["distilled"]["method"] == "feature" and value["data"]["images"] == 6
    assert value == call("inspect", tmp_path / "run")
    out, _ = told("inspect", tmp_path / "run")
    for word in ("encoder of recipe 'small'", "vit_nano", "feature, 2 steps", "6 images",
                 "efficientnet_lite lite0 (random)"):  # fmt: skip
        assert word in out


@pytest.fixture
def quick(exports: dict[str, OnnxModel], monkeypatch: pytest.MonkeyPatch) -> None:
    reuse(monkeypatch, exports["small"])


def test_export(call: Any, told: Any, line: Line, quick: None, tmp_path: Path) -> None:
    place = tmp_path / "deep" / "m.onnx"
    value = call("export", line.checkpoints["small"], "-o", place)
    assert value["onnx"] == str(place) and value["sha256"] == sha256_file(place)
    assert value["opset"] == 17 and value["input"] == {"name": "image", "tile_px": 512}
    assert value["output"] == {"name": "logits", "stride_px": 16}
    assert value["operators"]["LayerNormalization"] == 13
    gate = value["parity"]
    assert gate["passed"] and 0 <= gate["value"] <= gate["bound"] == 1e-4
    out, err = told("export", line.checkpoints["small"], "-o", place)
    assert "largest difference to torch" in out and "next: edgekd check" in err
    assert "or edgekd build" in err
    assert [item.name for item in place.parent.iterdir()] == ["m.onnx"]


def test_build(call: Any, told: Any, line: Line, quick: None, tmp_path: Path) -> None:
    args = ("build", line.recipes["small"], "--target", "x86-cpu", "--checkpoint",
            line.checkpoints["small"], "-o", tmp_path / "b")  # fmt: skip
    value = call(*args)
    assert value["bundle"] == str(tmp_path / "b")
    assert value["manifest"] == read_manifest(tmp_path / "b").plain()
    out, err = told(*args, "--set", "tiling.overlap_px=64")
    assert "gate batch_vs_single" in out and "sealed" in out
    assert "build: export to ONNX" in err and "next: edgekd run" in err
    assert read_manifest(tmp_path / "b").tiling.overlap_px == 64


def test_build_of_one_precision_with_a_set_of_its_own_to_calibrate_on(
    call: Any, line: Line, quick: None, tmp_path: Path
) -> None:
    other = make_set(tmp_path / "other", count=5)
    value = call(
        "build", line.recipes["small"], "--target", "x86-cpu", "--checkpoint",
        line.checkpoints["small"], "-o", tmp_path / "b", "--precision", "int8",
        "--data", line.data, "--set", f"calibration={{set: {other}, tiles: 2}}",
        "--set", "gates.agreement_min=0.5", "--set", "gates.miou_drop_max=100",
    )  # fmt: skip
    precision = value["manifest"]["precision"]
    assert (precision["asked"], precision["done"]) == (["int8"], "int8")
    assert precision["calibration"]["source"].startswith("other, split train: ")


def test_build_takes_runs_name_and_writes_bundles_name_target(
    call: Any, line: Line, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "small").mkdir(parents=True)
    content = line.checkpoints["small"].read_bytes()
    (tmp_path / "runs" / "small" / "best.ckpt").write_bytes(content)
    value = call("build", line.recipes["small"], "--target", "x86-cpu")
    assert value["bundle"] == "bundles/small-x86-cpu"
    read_manifest(tmp_path / "bundles" / "small-x86-cpu")


def test_run(call: Any, told: Any, bundles: dict[str, Path], tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "in.png", smooth_image(90, 100))
    value = call("run", bundles["conv"], scene, "-o", tmp_path / "m.tif", "--overlap", 32)
    assert value["pixels"] == 9000 == sum(value["class_pixels"].values())
    assert value["overlap_px"] == 32 and value["crs"] is None
    out, err = told("run", bundles["conv"], scene, "-o", tmp_path / "m.tif")
    assert "9,000 px" in out and "next: edgekd bench" in err


@pytest.mark.parametrize("name", ["small", "conv"])
def test_eval_of_checkpoint_and_bundle_agree(
    name: str, call: Any, line: Line, bundles: dict[str, Path], tmp_path: Path
) -> None:
    written = tmp_path / "e.json"
    torch_said = call("eval", line.checkpoints[name], "--data", line.data, "--split", "all")
    ort_said = call("eval", bundles[name], "--data", line.data, "--split", "all", "-o", written)
    assert json.loads(written.read_text()) == ort_said
    assert (torch_said["what"], ort_said["what"]) == ("checkpoint", "bundle")
    for key in ("data", "data_sha256", "samples", "pixels", "majority_class"):
        assert torch_said[key] == ort_said[key]
    assert ort_said["samples"] == 6 and ort_said["pixels"] == 6 * 160 * 176
    for key in ("miou", "overall_accuracy", "mean_f1"):
        assert torch_said[key] == pytest.approx(ort_said[key], abs=1e-3)
    moved = sum(
        abs(a - b)
        for rows in zip(torch_said["confusion"], ort_said["confusion"], strict=True)
        for a, b in zip(*rows, strict=True)
    )
    assert moved <= 2e-3 * ort_said["pixels"]
    assert torch_said["model_sha256"] == sha256_file(line.checkpoints[name])
    assert ort_said["model_sha256"] == sha256_file(bundles[name] / "model.onnx")


def test_eval_tells_a_person(told: Any, line: Line, bundles: dict[str, Path]) -> None:
    out, _ = told("eval", bundles["conv"], "--data", line.data)
    assert "mIoU" in out and "always 'ground'" in out and "1 samples of data, split test" in out
    _, err = told("eval", line.checkpoints["conv"], "--data", line.data)
    assert "next: edgekd build" in err


def test_finetune(call: Any, told: Any, line: Line, tmp_path: Path) -> None:
    args = ("finetune", line.recipes["conv"], "-o", tmp_path / "run", "--accelerator", "cpu",
            "--set", "finetune.steps=2", "--set", "finetune.val_every_steps=1")  # fmt: skip
    value = call(*args)
    assert value["checkpoint"] == str(tmp_path / "run" / "best.ckpt")
    assert (value["steps_asked"], value["steps_done"]) == (2, 2)
    out, err = told(*args, "--fresh")
    assert "2 steps" in out and "next: edgekd build" in err


def test_bench_and_report(call: Any, bundles: dict[str, Path], tmp_path: Path) -> None:
    scene = write_raster(tmp_path / "in.tif", smooth_image(150, 150))
    record = tmp_path / "r.json"
    main_args = ("bench", bundles["conv"], scene, "--seconds", 0.3, "--warmup", 0.2, "--repeats", 1)
    try:
        value = call(*main_args, "-o", record)
    except AssertionError:  # a busy machine: the verdict is no, and the object is still alone
        value = call(*main_args, "-o", record, code=1)
    assert json.loads(record.read_text()) == value
    shown = call("report", record, "-o", tmp_path / "r.html")
    assert shown["records"][0]["bundle"] == "conv-x86-cpu"
    assert (tmp_path / "r.html").stat().st_size > 5000


def test_doctor(call: Any) -> None:
    assert call("doctor")
