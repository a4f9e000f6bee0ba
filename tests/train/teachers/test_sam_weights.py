"""Weights of teacher sam: Meta's and Hugging Face's layouts, and every way they can be wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")
pytest.importorskip("transformers", reason="teachers need the extra train (transformers)")

from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from edgekd.errors import CheckpointError, EdgeKDError, InputError  # noqa: E402
from edgekd.train.teachers import sam  # noqa: E402
from edgekd.train.teachers._weights import read_state  # noqa: E402

State = dict[str, Tensor]
# Meta's names, written out by hand from segment_anything/modeling/image_encoder.py.
OUTER = {
    "pos_embed": "pos_embed",
    "patch_embed.projection.weight": "patch_embed.proj.weight",
    "patch_embed.projection.bias": "patch_embed.proj.bias",
    "neck.conv1.weight": "neck.0.weight",
    "neck.layer_norm1.weight": "neck.1.weight",
    "neck.layer_norm1.bias": "neck.1.bias",
    "neck.conv2.weight": "neck.2.weight",
    "neck.layer_norm2.weight": "neck.3.weight",
    "neck.layer_norm2.bias": "neck.3.bias",
}
BLOCK = [
    "norm1.weight", "norm1.bias", "attn.rel_pos_h", "attn.rel_pos_w", "attn.qkv.weight",
    "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias", "norm2.weight", "norm2.bias",
    "mlp.lin1.weight", "mlp.lin1.bias", "mlp.lin2.weight", "mlp.lin2.bias",
]  # fmt: skip
META_OTHERS = {
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": torch.zeros(2, 128),
    "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256),
    "mask_decoder.iou_token.weight": torch.zeros(1, 256),
}
HF_OTHERS = {
    "shared_image_embedding.positional_embedding": torch.zeros(2, 128),
    "prompt_encoder.no_mask_embed.weight": torch.zeros(1, 256),
    "mask_decoder.iou_token.weight": torch.zeros(1, 256),
    "mask_decoder.mask_tokens.weight": torch.zeros(4, 256),
}


@pytest.fixture(scope="module")
def teacher() -> sam.SamEncoder:
    return sam.build("tiny", "random")


def meta(own: State) -> State:
    names = dict(OUTER)
    for index in range(6):
        for name in BLOCK:
            theirs = re.sub(r"^norm(\d)", r"layer_norm\1", name)
            names[f"layers.{index}.{theirs}"] = f"blocks.{index}.{name}"
    assert names.keys() == own.keys()
    return {**META_OTHERS, **{"image_encoder." + names[k]: v.clone() for k, v in own.items()}}


def hugging(own: State, prefix: str = "vision_encoder.") -> State:
    return {**HF_OTHERS, **{prefix + key: value.clone() for key, value in own.items()}}


def pth(path: Path, state: State) -> Path:
    torch.save(state, path / "sam.pth")
    return path / "sam.pth"


def old_pth(path: Path, state: State) -> Path:
    torch.save(state, path / "sam.pth", _use_new_zipfile_serialization=False)
    return path / "sam.pth"


def wrapped(path: Path, state: State) -> Path:
    torch.save({"model": state, "epoch": 3}, path / "sam.pth")
    return path / "sam.pth"


def tensors(path: Path, state: State) -> Path:
    save_file(state, path / "sam.safetensors")
    return path / "sam.safetensors"


def folder(path: Path, state: State) -> Path:
    save_file(state, path / "model.safetensors")
    return path


def bin_folder(path: Path, state: State) -> Path:
    torch.save(state, path / "pytorch_model.bin")
    return path


def sharded(path: Path, state: State) -> Path:
    names = sorted(state)
    places = {}
    for part in range(2):
        file = f"model-0000{part + 1}-of-00002.safetensors"
        save_file({name: state[name] for name in names[part::2]}, path / file)
        places.update(dict.fromkeys(names[part::2], file))
    text = json.dumps({"metadata": {}, "weight_map": places})
    (path / "model.safetensors.index.json").write_text(text)
    return path


@pytest.mark.parametrize("layout", [meta, hugging, lambda own: dict(own)])
@pytest.mark.parametrize("write", [pth, old_pth, wrapped, tensors, folder, bin_folder, sharded])
def test_layouts_and_files_all_give_the_same_teacher(
    teacher: sam.SamEncoder,
    tmp_path: Path,
    layout: Callable[[State], State],
    write: Callable[[Path, State], Path],
) -> None:
    own = teacher.encoder.state_dict()
    loaded = sam.build("tiny", write(tmp_path, layout(own)))
    for key, value in loaded.encoder.state_dict().items():
        assert torch.equal(value, own[key]) and value.dtype == torch.float32, key
    assert loaded.weights_sha256 == teacher.weights_sha256
    assert not any(value.requires_grad for value in loaded.parameters())


def test_half_precision_files_become_float32(teacher: sam.SamEncoder, tmp_path: Path) -> None:
    state = {key: value.half() for key, value in hugging(teacher.encoder.state_dict()).items()}
    loaded = sam.build("tiny", tensors(tmp_path, state))
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    assert loaded.weights_sha256 != teacher.weights_sha256


def test_what_is_left_out_is_counted(teacher: sam.SamEncoder, tmp_path: Path) -> None:
    own = teacher.encoder.state_dict()
    state = {**hugging(own), "pixel_mean": torch.zeros(3), "strange.weight": torch.zeros(3)}
    assert sam.build("tiny", pth(tmp_path, state)).report == [
        f"{len(own)} tensors of the image encoder loaded, none missing",
        "mask_decoder: 2 tensors left out, not needed for features",
        "pixel_mean: 1 tensors left out, not needed for features",
        "prompt_encoder: 1 tensors left out, not needed for features",
        "shared_image_embedding: 1 tensors left out, not needed for features",
        "strange: 1 tensors left out, no part of SAM",
        "neck: 6 tensors kept and never run",
    ]
    assert len(sam.build("tiny", pth(tmp_path, meta(own))).report) == 4


def without(*names: str) -> Callable[[State], State]:
    return lambda state: {
        key: value for key, value in state.items() if not any(name in key for name in names)
    }


def with_extra(state: State) -> State:
    return {**state, "image_encoder.blocks.0.attn.gate": torch.zeros(1)}


def misshapen(state: State) -> State:
    return {**state, "image_encoder.blocks.0.attn.rel_pos_h": torch.zeros(27, 32)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("blocks.3.norm1"), r"2 \(image_encoder.blocks.3.norm1.bias, .*weight\) missing"),
        (without("attn.qkv"), r"12 \(image_encoder.blocks.0.attn.qkv.bias, .*…\) missing"),
        (without("neck"), r"6 \(image_encoder.neck.0.weight, .*…\) missing"),
        (without("blocks.5"), r"14 \(image_encoder.blocks.5.attn.proj.bias, .*…\) missing"),
        (with_extra, r"1 \(image_encoder.blocks.0.attn.gate\) unexpected"),
        (misshapen, r"1 \(image_encoder.blocks.0.attn.rel_pos_h\) of another shape"),
    ],
)
def test_faults_inside_the_encoder_are_refused(
    teacher: sam.SamEncoder, tmp_path: Path, change: Callable[[State], State], said: str
) -> None:
    path = pth(tmp_path, change(meta(teacher.encoder.state_dict())))
    with pytest.raises(CheckpointError, match=rf"sam\.pth does not fit .* SAM tiny: {said}"):
        sam.build("tiny", path)


def test_every_fault_is_named_under_its_name_in_the_file(
    teacher: sam.SamEncoder, tmp_path: Path
) -> None:
    """Three in the sentence, all in its cause, which --debug prints."""
    whole = meta(teacher.encoder.state_dict())
    state = with_extra(without("blocks.5", "neck.1")(whole))
    with pytest.raises(CheckpointError, match="--debug names them all") as caught:
        sam.build("tiny", pth(tmp_path, state))
    lost = {key for key in whole if "blocks.5" in key or "neck.1" in key}
    named = str(caught.value.__cause__.args[0]).splitlines()
    expected = {f"missing: {key}" for key in lost if key.startswith("image_encoder.")}
    assert set(named) == expected | {"unexpected: image_encoder.blocks.0.attn.gate"}
    assert len(named) == len(expected) + 1 == 17


def hollow(variant: str) -> State:
    """Names and shapes of a true size; one stored number behind each."""
    own = sam.container(variant).state_dict()
    return {"vision_encoder." + key: torch.zeros(1).expand(v.shape) for key, v in own.items()}


@pytest.mark.parametrize(
    ("stored", "asked", "said"),
    [
        ("vit_b", "vit_l",
         "holds SAM ViT-B (12 blocks, width 768), the recipe asks for vit_l (24 blocks, width "
         "1024); set teachers[].variant: vit_b"),
        ("vit_h", None, "holds SAM ViT-H (32 blocks, width 1280), the recipe asks for vit_l"),
        ("vit_l", "tiny", "(6 blocks, width 96); set teachers[].variant: vit_l"),
    ],
)  # fmt: skip
def test_another_size_is_named(tmp_path: Path, stored: str, asked: str | None, said: str) -> None:
    path = tmp_path / "sam_x.pth"
    torch.save(hollow(stored), path)
    with pytest.raises(CheckpointError, match=rf"^sam_x\.pth .*{re.escape(said)}"):
        sam.build(asked, path)


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


@pytest.mark.parametrize("write", [pth, tensors, folder, bin_folder, old_pth])
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_cut_files_are_damaged(
    teacher: sam.SamEncoder, tmp_path: Path, write: Callable[[Path, State], Path], keep: float
) -> None:
    path = write(tmp_path, meta(teacher.encoder.state_dict()))
    cut(next(item for item in tmp_path.rglob("*") if item.is_file()), keep)
    with pytest.raises(CheckpointError, match="is damaged .*copy it again"):
        sam.build("tiny", path)


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin"])
@pytest.mark.parametrize("content", [b"text\n", b"\x00" * 4096, b"PK\x03\x04" + b"\x01" * 500])
def test_other_files_are_no_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is damaged"):
        sam.build("tiny", tmp_path / name)


def test_values_that_are_not_finite_are_damage(teacher: sam.SamEncoder, tmp_path: Path) -> None:
    state = meta(teacher.encoder.state_dict())
    state["image_encoder.blocks.4.mlp.lin2.weight"][7, 7] = torch.nan
    with pytest.raises(CheckpointError, match=r"damaged: layers\.4\.mlp\.lin2\.weight"):
        sam.build("tiny", pth(tmp_path, state))


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(tmp_path / "sprung").write_text, ("x",))

    torch.save({"a": Trap()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="damaged"):
        sam.build("tiny", tmp_path / "x.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "it holds no tensors"),
        ({"conv.weight": torch.zeros(2)}, "its first tensor is conv.weight"),
        (META_OTHERS, "holds no image encoder of SAM"),
    ],
)
def test_other_networks_are_named(tmp_path: Path, state: State, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        sam.build("vit_b", pth(tmp_path, state))


def test_a_missing_shard_is_named(teacher: sam.SamEncoder, tmp_path: Path) -> None:
    path = sharded(tmp_path, hugging(teacher.encoder.state_dict()))
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors is missing"):
        sam.build("tiny", path)
    (path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json is damaged"):
        sam.build("tiny", path)


def test_what_is_not_there_says_where_to_get_it(tmp_path: Path) -> None:
    where = r"Meta \(sam_vit_l_0b3195\.pth\) or Hugging Face \(facebook/sam-vit-large\)"
    with pytest.raises(CheckpointError, match=rf"nothing\.pth does not exist; .*{where}"):
        sam.build(None, tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match=rf"holds none of model\.safetensors, .*{where}"):
        sam.build(None, tmp_path)
    with pytest.raises(InputError, match=rf"no Python package carries SAM.*{where}"):
        sam.build(None, "package")
    for call in (lambda: sam.build(None, tmp_path), lambda: read_state(tmp_path / "x", "there")):
        with pytest.raises(EdgeKDError) as caught:
            call()
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2
