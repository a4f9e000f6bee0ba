"""What a portable bundle is made of: precisions that keep the gates, islands, calibration files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgekd.cli.main import main
from edgekd.contracts.labelled import LabelledSet, open_labelled
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe, load_recipe
from edgekd.contracts.target import load_target
from edgekd.deploy import bundle as bundle_module
from edgekd.deploy.bundle import build
from edgekd.deploy.export.onnx_export import OnnxModel
from edgekd.deploy.quantize import material as material_module
from edgekd.deploy.quantize import search as search_module
from edgekd.deploy.quantize.emulate import emulate
from edgekd.deploy.quantize.grounds import Grounds
from edgekd.deploy.quantize.material import Images, TileMaterial
from edgekd.deploy.quantize.portable import Portable, portable
from edgekd.deploy.quantize.ranges import read_calibration
from edgekd.deploy.tiles import golden_tiles
from edgekd.errors import DatasetError, GateError, InputError
from tests.helpers.line import Line

TARGET = load_target("orin-nx-16gb")
ALL = ["precision.allowed=[fp32,fp16,int8]", "calibration={tiles: 4}", "gates.agreement_min=0.9"]


@pytest.fixture
def data(line: Line) -> LabelledSet:
    return open_labelled(line.data)


def recipe(line: Line, *changes: str) -> Recipe:
    return load_recipe(line.recipes["levels"], [*ALL, *changes])


def make(
    line: Line, exports: dict[str, OnnxModel], images: Images, *changes: str,
    proto: onnx.ModelProto | None = None, said: list[str] | None = None,
) -> Portable:  # fmt: skip
    wanted = recipe(line, *changes)
    proto = proto or onnx.load(exports["levels"].path)
    say = said.append if said is not None else (lambda text: None)
    return portable(proto, wanted, TARGET, TileMaterial(wanted, images), 1e-3, say)


def test_bounds_come_from_the_emulation(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet
) -> None:
    made = make(line, exports, Images(data))
    int8, fp16 = made.models[0], made.models[2]
    assert (int8.precision, fp16.precision) == ("int8", "fp16")
    assert int8.golden_atol > 3 * fp16.golden_atol > 0, "INT8 rounds more than FP16"
    assert 0.9 < int8.golden_agreement_min < 1 and fp16.golden_agreement_min < 1
    run = emulate(made.files["int8-typed.onnx"])
    exact = emulate(made.files["fp32.onnx"], optimize=True)
    tensor = Normalizer(recipe(line).io.inputs[0])(golden_tiles(recipe(line), data, 2)[0][0])[None]
    assert (
        np.abs(run({"image": tensor}) - exact({"image": tensor})).max()
        <= int8.golden_atol / 2 + 1e-6
    )


def test_precisions_that_fail_are_refused_with_the_table(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "SENSITIVITY_PX", 1)
    monkeypatch.setattr(material_module, "MOST_JUDGED", 1)
    strict = "gates.agreement_min=1.0"
    plain = Grounds.passes
    monkeypatch.setattr(
        Grounds, "passes", lambda self, quality: plain(self, quality) and quality.noise < 1e-6
    )
    said: list[str] = []
    made = make(line, exports, Images(data), strict, said=said)
    assert [m.precision for m in made.models] == ["fp32", "fp32"] and made.gates == []
    assert list(made.files) == ["fp32.onnx"]
    assert [(c.precision, c.chosen) for c in made.precision.candidates] == [
        ("fp32", True), ("fp16", False), ("int8", False)
    ]  # fmt: skip
    assert len(made.precision.sensitivity) >= 25
    assert any("look for the worst" in text for text in said)
    with pytest.raises(GateError, match=r"no allowed precision .*; fp16: .*; int8: .*fails the"
                       r".*worst layers change the logits by encoder\.\S+ [\d.]+ %.*at most "
                       r"half may .*; allow a higher precision \(asked: fp16, int8\)"):  # fmt: skip
        make(line, exports, Images(data), strict, "precision.allowed=[fp16,int8]")


def test_fp32_alone_needs_no_image(line: Line, exports: dict[str, OnnxModel]) -> None:
    made = make(line, exports, Images(None), "precision.allowed=[fp32]")
    assert [(m.precision, m.typing, m.file) for m in made.models] == [
        ("fp32", "flags", "fp32.onnx"), ("fp32", "graph", "fp32.onnx")
    ]  # fmt: skip
    assert made.calibration is None
    with pytest.raises(InputError, match="judged on real images, .* --data"):
        make(line, exports, Images(None), "precision.allowed=[fp16]")


def test_fp16_without_calibration_still_looks_for_overflow(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet
) -> None:
    """A residual stream beyond 65504 / 8: the nodes around it stay in FP32 in both forms."""
    proto = onnx.load(exports["levels"].path)
    first = next(n for n in proto.graph.node if n.name == "encoder.blocks.0/Add")
    weights = {i.name: i for i in proto.graph.initializer}
    scaled = next(w for n in proto.graph.node if n.name.startswith("encoder.patch_embed")
                  for w in n.input if w in weights and len(weights[w].dims) == 4)  # fmt: skip
    item = weights[scaled]
    item.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(item) * 1e6, item.name))
    changes = ["precision.allowed=[fp16]", "gates.agreement_min=0.5", "gates.miou_drop_max=50"]
    values = [*changes, "calibration=null"]
    made = make(line, exports, Images(data), *values, proto=proto)
    flags, typed = made.models
    assert first.name in flags.keep_fp32 and typed.keep_fp32 == []
    nodes = {n.name: n for n in made.files["fp16-typed.onnx"].graph.node}
    kinds = {i.name: i.data_type for i in made.files["fp16-typed.onnx"].graph.initializer}
    patch = next(n for n in nodes.values() if n.name.startswith("encoder.patch_embed"))
    assert kinds[patch.input[1]] == onnx.TensorProto.FLOAT
    assert made.calibration is not None and made.calibration.ranges == {}
    assert any(value and value > 65504 / 8 for value in made.calibration.largest.values())
    assert "nodes in FP32" in made.precision.candidates[1].why


def test_keep_high_holds_in_every_form(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet
) -> None:
    made = make(line, exports, Images(data), "precision.keep_high=[encoder.blocks.3.mlp.*]")
    kept = [n for n in made.files["int8.onnx"].graph.node if "blocks.3.mlp" in n.name]
    assert kept and not [n for n in kept if "Quantize" in n.op_type]
    for model in made.models:
        names = {n.name for n in kept if n.op_type == "MatMul"}
        pinned = model.typing == "flags" and model.precision != "fp32"
        assert (names <= set(model.keep_fp32)) == pinned
    typed = made.files["fp16-typed.onnx"].graph
    kinds = {i.name: i.data_type for i in typed.initializer}
    products = [n for n in typed.node if n.op_type == "MatMul" and "blocks.3.mlp" in n.name]
    assert {kinds[n.input[1]] for n in products} == {onnx.TensorProto.FLOAT}


def test_a_calibration_file_stands_for_the_images(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, tmp_path: Path
) -> None:
    smooth = "precision.smooth=0.5"
    first = make(line, exports, Images(data), smooth)
    assert first.calibration is not None and first.calibration.channels
    place = tmp_path / "calibration.json"
    place.write_text(first.calibration.text())
    assert read_calibration(place) == first.calibration
    said: list[str] = []
    again = make(line, exports, Images(data, None, place), smooth, said=said)
    assert f"calibration of 4 tiles taken from {place}" in said
    assert not any("calibrate on" in text for text in said)
    for name, proto in first.files.items():
        assert proto.SerializeToString(deterministic=True) == again.files[name].SerializeToString(
            deterministic=True
        ), name


def test_a_calibration_file_that_does_not_fit(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, tmp_path: Path
) -> None:
    place = tmp_path / "calibration.json"
    half = make(line, exports, Images(data), "precision.allowed=[fp16]")
    assert half.calibration is not None
    place.write_text(half.calibration.text())
    with pytest.raises(InputError, match="holds no ranges, since INT8 was not allowed"):
        make(line, exports, Images(data, None, place))
    with pytest.raises(InputError, match=r"was made with .*'percentile'.* asks for .*'entropy'"):
        make(line, exports, Images(data, None, place), "precision.range=entropy")
    value = json.loads(place.read_text())
    for edit in ({"tiles": 9999}, {"largest": {}}, {"source": "elsewhere"}):
        place.write_text(json.dumps(value | edit))
        with pytest.raises(InputError, match="was changed after it was written .its seal"):
            make(line, exports, Images(data, None, place))
    few = make(line, exports, Images(data), "precision.int8_layers=[patch]")
    assert few.calibration is not None
    place.write_text(few.calibration.text())
    with pytest.raises(InputError, match=r"knows nothing of encoder.blocks.0.* .24 of 25 layers"):
        make(line, exports, Images(data, None, place))
    place.write_text(half.calibration.model_copy(update={"input_sha256": "0" * 64}).text())
    with pytest.raises(InputError, match="another input .channels, tile or normalisation."):
        make(line, exports, Images(data, None, place))
    place.write_text(half.calibration.model_copy(update={"model_sha256": "0" * 64}).text())
    with pytest.raises(InputError, match="was made from another model .* wrong for another"):
        make(line, exports, Images(data, None, place))
    for text in ("{}", "[1]", "no json", json.dumps(value | {"tiles": "many"})):
        place.write_text(text)
        with pytest.raises(InputError):
            make(line, exports, Images(data, None, place))


def test_the_command(
    line: Line, exports: dict[str, OnnxModel], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["quantize", str(line.recipes["levels"]), str(exports["levels"].path), "--data",
             str(line.data), "--target"]  # fmt: skip
    sets = [part for change in ALL for part in ("--set", change)]
    assert main([*start, "orin-nx-16gb", "-o", str(tmp_path / "q"), *sets, "--json"]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert set(value["files"]) == {item.name for item in (tmp_path / "q").iterdir()} - {
        "quantize.json"
    }
    assert value["portable"][0]["file"] == "int8.onnx"
    more = ["--set", "precision.allowed=[int8]", "--calibration",
            str(tmp_path / "q" / "calibration.json")]  # fmt: skip
    assert main([*start, "rpi5", "-o", str(tmp_path / "r"), *sets, *more]) == 0
    said = capsys.readouterr()
    assert "* int8: mIoU" in said.out and "next: edgekd check" in said.err
    assert (tmp_path / "r" / "int8.onnx").is_file()
    assert main([*start, "rpi5", "-o", str(tmp_path / "s")]) == 2
    assert "holds fp32 alone, so there is nothing to lower" in capsys.readouterr().err
    start[1] = str(line.recipes["small"])
    assert main([*start, "orin-nx-16gb", "-o", str(tmp_path / "s"), *sets]) == 2
    assert "takes {'image': [0, 3, 256, 256]}, recipe 'small' gives" in capsys.readouterr().err
    start[1], start[2] = str(line.recipes["levels"]), str(tmp_path / "q" / "int8-typed.onnx")
    assert main([*start, "orin-nx-16gb", "-o", str(tmp_path / "s"), *sets]) == 2
    assert "holds FP16 or INT8 values, expected an FP32 model" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    start[2] = str(exports["levels"].path)
    (tmp_path / "q" / "notes.txt").write_text("mine")
    assert main([*start, "orin-nx-16gb", "-o", str(tmp_path / "q"), *sets]) == 2
    assert "q also holds notes.txt, which would be lost" in capsys.readouterr().err
    assert (tmp_path / "q" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.12", "10.13", "11.4"])
def test_every_file_is_checked_by_rules_of_a_tensorrt_that_builds_it(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, tmp_path: Path, version: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Also where the target's own has no flags any more, or takes no types from the graph yet."""
    monkeypatch.setenv("EDGEKD_TRT_RTX_PYTHON", "")
    monkeypatch.setattr(bundle_module, "load_target",
                        lambda _: TARGET.model_copy(update={"tensorrt": version}))  # fmt: skip
    wanted = recipe(line, "targets=[orin-nx-16gb]")
    manifest = build(
        wanted, TARGET.name, line.checkpoints["levels"], tmp_path / "b", Images(data)
    ).manifest
    rules = {item.file: item.rules.removeprefix("TensorRT ") for item in manifest.checks}
    weak = version if version in ("8.6", "10.3") else "10.11"
    strong = version if version in ("10.13", "11.4") else "10.12"
    assert rules == {"int8.onnx": weak, "fp32.onnx": weak,
                     "int8-typed.onnx": strong, "fp16-typed.onnx": strong}  # fmt: skip


@pytest.mark.parametrize("allowed", ["fp16", "fp16,int8"])
def test_a_pattern_that_keeps_nothing_high_is_a_slip(
    line: Line, exports: dict[str, OnnxModel], data: LabelledSet, allowed: str
) -> None:
    changes = [f"precision.allowed=[{allowed}]", "precision.keep_high=['encoder.blokcs.0.*']"]
    with pytest.raises(InputError, match="'encoder.blokcs.0.*' matches no layer"):
        make(line, exports, Images(data), *changes)
    kept = make(line, exports, Images(data), changes[0], "precision.keep_high=['*.norm1']")
    norms = [name for name in kept.models[0].keep_fp32 if name.split("/")[0].endswith("norm1")]
    assert len(norms) == 6


def test_ranges_for_a_bundle_that_takes_none_are_refused(
    line: Line, data: LabelledSet, tmp_path: Path
) -> None:
    """Somebody who hands over a calibration means INT8; silence would give them FP32."""
    wanted = recipe(line, "precision.allowed=[fp32]", "targets=[orin-nx-16gb]")
    images = Images(data, saved=tmp_path / "calibration.json")
    with pytest.raises(InputError, match=r"calibration.json was given and only fp32 is made for"):
        build(wanted, TARGET.name, line.checkpoints["levels"], tmp_path / "b", images)


def test_a_set_that_repeats_itself_stops(
    line: Line, exports: dict[str, OnnxModel], tmp_path: Path
) -> None:
    """Copies of an image under other names, which would be counted as more than they are."""
    import shutil

    folder = Path(shutil.copytree(line.data, tmp_path / "data"))
    splits = json.loads((folder / "splits.json").read_text())
    first = splits["train"][0]
    for name in splits["train"][1:]:
        for kind in ("images", "masks"):
            (source,) = (folder / kind).glob(f"{first}.*")
            (target,) = (folder / kind).glob(f"{name}.*")
            target.unlink()
            shutil.copyfile(source, target.with_suffix(source.suffix))
    with pytest.raises(DatasetError, match=rf"{first} and .* hold the same pixels; .* remove copi"):
        make(line, exports, Images(open_labelled(folder)))
