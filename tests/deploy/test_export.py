"""The export: operators, names, shapes, numbers, and that a wrong graph is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import edgekd
from edgekd.contracts.artifacts import sha256_file
from edgekd.deploy.export import graph
from edgekd.deploy.export.onnx_export import OnnxModel, export_onnx, synthetic_tile, torch_model
from edgekd.deploy.parity import compare
from edgekd.errors import GateError, InputError
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.train.checkpoint import load_checkpoint, rebuild
from edgekd.train.students._base import Segmenter
from tests.helpers.checkpoints import parsed
from tests.helpers.labelled import recipe_values
from tests.helpers.line import Line, variants

#: everything a student may consist of; all known to the parsers of TensorRT 8.6 to 11.
ALLOWED = {
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Div", "Erf",
    "LayerNormalization", "MatMul", "MaxPool", "Mul", "Relu", "Reshape", "Resize", "Softmax",
    "Split", "Transpose",
}  # fmt: skip
NAMES = sorted(variants())
VITS = [name for name in NAMES if variants()[name]["student"]["name"].startswith("vit")]


@pytest.fixture(scope="module")
def protos(exports: dict[str, OnnxModel]) -> dict[str, onnx.ModelProto]:
    return {name: onnx.load(model.path) for name, model in exports.items()}


def test_there_are_three_variants_and_two_are_vits() -> None:
    assert len(NAMES) == 3 and len(VITS) == 2


@pytest.mark.parametrize("name", NAMES)
def test_opset_operators_and_tensors(name: str, protos: dict[str, onnx.ModelProto]) -> None:
    proto = protos[name]
    onnx.checker.check_model(proto, full_check=True)
    assert [(item.domain, item.version) for item in proto.opset_import] == [("", 17)]
    assert proto.ir_version == 8 and not proto.functions
    used = {node.op_type for node in proto.graph.node}
    assert used <= ALLOWED, used - ALLOWED
    for node in proto.graph.node:  # what stands there must also mean the same in 17
        assert onnx.defs.get_schema(node.op_type, 17).since_version <= 17
    recipe = parsed(variants()[name])
    tile = recipe.io.inputs[0].tile_px
    (image,), (logits,) = proto.graph.input, proto.graph.output
    sides = [item.dim_param or item.dim_value for item in image.type.tensor_type.shape.dim]
    assert (image.name, sides) == ("image", ["N", 3, tile, tile])
    cells = [item.dim_param or item.dim_value for item in logits.type.tensor_type.shape.dim]
    assert logits.name == "logits" and cells[:2] == ["N", 2] and cells[2] == cells[3]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("name", VITS)
def test_vit_uses_layernorm_and_erf_operators(
    name: str, protos: dict[str, onnx.ModelProto]
) -> None:
    found = [node.op_type for node in protos[name].graph.node]
    assert found.count("LayerNormalization") >= 2 * 6 + 1  # two per block and the last
    assert found.count("Erf") == found.count("Softmax") == 6
    assert not {"Tanh", "ReduceMean", "Sqrt", "Pow"} & set(found)  # no taken-apart norm or GELU


@pytest.mark.parametrize("name", NAMES)
def test_onnx_equals_torch_at_batch_1_and_3(
    name: str, line: Line, exports: dict[str, OnnxModel]
) -> None:
    exported = exports[name]
    model = rebuild(load_checkpoint(line.checkpoints[name]), name)
    random = np.random.default_rng(4)
    side = exported.tile_px
    inputs = [random.normal(0, 1, (n, 3, side, side)).astype(np.float32) for n in (1, 3)]
    with OnnxRuntimeBackend(exported.path, threads=1) as backend:
        parity = compare(
            torch_model(model), lambda x: backend.infer({"image": x})["logits"], inputs
        )
    assert parity.inputs == 4 and parity.logit_range > 1.0  # else the bound below says nothing
    assert parity.max_abs <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_nodes_are_named_after_modules(
    name: str, line: Line, protos: dict[str, onnx.ModelProto]
) -> None:
    model = rebuild(load_checkpoint(line.checkpoints[name]), name)
    modules = {path for path, _ in model.named_modules()}
    names = [node.name for node in protos[name].graph.node]
    assert len(set(names)) == len(names)
    for node in protos[name].graph.node:
        path, _, kind = node.name.rpartition("/")
        assert path in modules, node.name
        assert kind.split("_")[0] == node.op_type
    for path, module in model.named_modules():  # every layer with weights is found by its name
        kind = {nn.Conv2d: "Conv", nn.Linear: "MatMul", nn.LayerNorm: "LayerNormalization"}
        if type(module) in kind:
            assert f"{path}/{kind[type(module)]}" in names
    weights = {item.name for item in protos[name].graph.initializer if len(item.dims) > 1}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            assert f"{path}.weight_t" in weights
    layers = {item.rpartition(".")[0] for item in weights} - {"encoder"}  # encoder.positions
    assert layers <= modules | {f"{path}.conv" for path in modules}, layers - modules


@pytest.mark.parametrize("name", NAMES)
def test_the_file_does_not_name_the_build_machine(
    name: str, line: Line, exports: dict[str, OnnxModel]
) -> None:
    content = exports[name].path.read_bytes()
    assert len(content) > 10_000
    package = Path(edgekd.__file__).resolve().parent
    for word in (str(line.root), str(package), str(Path.home()), "/site-packages", ".py", "File "):
        assert word.encode() not in content, word


def test_an_export_in_another_process_has_the_same_bytes(
    line: Line, exports: dict[str, OnnxModel], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", "export", line.checkpoints["small"], "-o", "m.onnx"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sha256_file(tmp_path / "m.onnx") == sha256_file(exports["small"].path)
    assert [item.name for item in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("name", VITS)
def test_attention_scales_q_before_the_product(
    name: str, protos: dict[str, onnx.ModelProto]
) -> None:
    graph_ = protos[name].graph
    assert graph.unscaled_attention(protos[name]) == []
    constants = {item.name: onnx.numpy_helper.to_array(item) for item in graph_.initializer}
    scales = [node for node in graph_.node if node.name.endswith(".attention/Mul")]
    assert len(scales) == 6
    for node in scales:  # 3 heads of 32
        factor = next(constants[item] for item in node.input if item in constants)
        assert factor == pytest.approx(32**-0.5)


class Pixels(nn.Module):
    """Encoder of these tests: one feature map at stride 16."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 16, 16)
        self.change = change

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.change(self.patches(image))]


class Last(nn.Module):
    """Decoder of these tests."""

    def __init__(self) -> None:
        super().__init__()
        self.classify = nn.Conv2d(8, 2, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        logits: Tensor = self.classify(features[-1])
        return logits


def tiny(change: Callable[[Tensor], Tensor], side_multiple: int = 16) -> Segmenter:
    """A student of two layers with something in between."""
    torch.manual_seed(1)
    return Segmenter(
        Pixels(change), Last(), name="tiny", num_classes=2, stride=16,
        side_multiple=side_multiple, mean=(0, 0, 0), std=(1, 1, 1), options={},
    ).eval()  # fmt: skip


def recipe_64() -> Any:
    values = recipe_values()
    values["io"]["inputs"][0]["shape"] = ["N", 3, 64, 64]
    values["finetune"]["crop_px"] = 64
    return parsed(values)


def attention(scale: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def change(feature: Tensor) -> Tensor:
        tokens = feature.flatten(2).transpose(1, 2).reshape(-1, 16, 8)
        mixed = torch.softmax(scale(tokens, (tokens + 1).transpose(-2, -1)), dim=-1) @ tokens
        return mixed.transpose(1, 2).reshape(-1, 8, 4, 4)

    return change


def test_scaling_after_the_product_is_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    export_onnx(tiny(attention(lambda q, k: (q * 0.35) @ k)), recipe_64(), good)
    assert good.is_file()
    masked = tmp_path / "good.onnx"  # with tokens hidden, which is added behind the product
    export_onnx(tiny(attention(lambda q, k: (q * 0.35) @ k + 9 * q[:, :, :1])), recipe_64(), masked)
    with pytest.raises(GateError, match="must scale Q"):
        export_onnx(tiny(attention(lambda q, k: q @ k + q[:, :, :1])), recipe_64(), bad)
    with pytest.raises(GateError, match=r"must scale Q before the product.*encoder/Softmax"):
        export_onnx(tiny(attention(lambda q, k: (q @ k) * 0.35)), recipe_64(), bad)
    with pytest.raises(GateError, match="must scale Q"):  # not at all
        export_onnx(tiny(attention(lambda q, k: q @ k)), recipe_64(), bad)
    with pytest.raises(GateError, match="must scale Q"):  # a product with something else
        export_onnx(tiny(attention(lambda q, k: (q * q) @ k)), recipe_64(), bad)
    assert [item.name for item in tmp_path.iterdir()] == ["good.onnx"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.sin, "holds Sin, which TensorRT"),
        (lambda x: torch.cos(x) + torch.sin(x), "holds Cos, Sin, which TensorRT"),
        (torch.nn.functional.mish, "Mish"),
    ],
)
def test_a_forbidden_operator_is_refused(
    tmp_path: Path, change: Callable[[Tensor], Tensor], words: str
) -> None:
    with pytest.raises(GateError, match=words):
        export_onnx(tiny(change), recipe_64(), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_each_promise_about_the_graph_is_checked(exports: dict[str, OnnxModel]) -> None:
    def fresh() -> onnx.ModelProto:
        return onnx.load(exports["small"].path)

    expected = [("image", ["N", 3, 512, 512]), ("logits", ["N", 2, 32, 32])]
    graph.check(fresh(), expected)
    for wrong in (
        [("picture", ["N", 3, 512, 512]), expected[1]],
        [("image", [1, 3, 512, 512]), expected[1]],
        [expected[0], ("logits", ["N", 3, 32, 32])],
        [*expected, expected[1]],
    ):
        with pytest.raises(GateError, match="the exported graph has"):
            graph.check(fresh(), wrong)
    later = fresh()
    later.opset_import[0].version = 18
    with pytest.raises(GateError, match=r"operator sets .*18.*expected 17 only|not valid ONNX"):
        graph.check(later, expected)
    more = fresh()
    more.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(GateError, match=r"operator sets .*com.microsoft.* expected 17 only"):
        graph.check(more, expected)
    cut = fresh()
    del cut.graph.node[3]
    with pytest.raises(GateError, match="not valid ONNX"):
        graph.check(cut, expected)


def test_wrong_tile_or_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the tile is 64 px; student tiny takes multiples of 48"):
        export_onnx(tiny(torch.relu, side_multiple=48), recipe_64(), tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"ends in \.onnx, received .*m\.pt"):
        export_onnx(tiny(torch.relu), recipe_64(), tmp_path / "m.pt")
    assert list(tmp_path.iterdir()) == []


def test_the_synthetic_picture_is_the_same_everywhere() -> None:
    one, two = synthetic_tile(64, 3), synthetic_tile(64, 3)
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8 and np.array_equal(one, two)
    assert all(one[:, :, channel].std() > 30 for channel in range(3))
