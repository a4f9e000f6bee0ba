"""Teacher hf_vision: any layout of hidden states becomes maps; nothing comes from the network."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")
pytest.importorskip("transformers", reason="teachers need the extra train (transformers)")

from safetensors.torch import load_file, save_file  # noqa: E402

from edgekd.errors import CheckpointError, InputError  # noqa: E402
from edgekd.train.teachers import hf_vision  # noqa: E402
from tests.train.teachers.samples import save_model  # noqa: E402

# kind -> strides, channels, tokens in front
KINDS: dict[str, tuple[list[int], list[int], int]] = {
    "ViT": ([8, 8, 8], [24] * 3, 1),
    "Dinov2": ([14, 14], [24] * 2, 1),
    "Dinov2WithRegisters": ([14, 14], [24] * 2, 5),
    "ConvNextV2": ([4, 8, 16, 32], [8, 12, 16, 24], 0),
    "Swin": ([8, 16, 16], [16, 32, 32], 0),
    "Swin4": ([8, 16, 32, 32], [16, 32, 64, 64], 0),
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError(f"network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def picture(teacher: hf_vision.HfVision, rows: int = 2, columns: int = 3) -> torch.Tensor:
    side = teacher.side_multiple * (4 if teacher.side_multiple < 32 else 2)
    side *= max(1, teacher.least_side // (side * min(rows, columns)) + 1)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, 3, rows * side, columns * side, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_behind_the_deepest_tap_is_run(tmp_path: Path, kind: str) -> None:
    save_model(tmp_path, kind)
    teacher = hf_vision.build(None, tmp_path)
    image, taps = picture(teacher), list(teacher.channels)
    whole = teacher.features(image, taps)
    hooked = sum(len(module._forward_hooks) for module in teacher.modules())
    assert list(teacher.places) == taps
    for tap in taps[:-1]:
        ran: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name, ran=ran: ran.append(name))
            for name, module in teacher.model.named_modules()
        ]
        found = teacher.features(image, taps[:tap])
        for hook in hooks:
            hook.remove()
        assert ran and not [name for name in ran if name.startswith(teacher.places[tap + 1][0])]
        for item, expected in zip(found, whole, strict=False):
            assert torch.equal(item, expected)
    assert sum(len(module._forward_hooks) for module in teacher.modules()) == hooked


@pytest.mark.parametrize("kind", KINDS)
def test_maps_hold_what_the_model_gives(tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path, kind)
    teacher = hf_vision.build(None, tmp_path)
    strides, channels, prefix = KINDS[kind]
    assert list(teacher.strides.values()) == strides
    assert list(teacher.channels.values()) == channels
    assert teacher.side_multiple == max(strides) and teacher.only_side == 0
    image = picture(teacher)
    found = teacher.features(image, list(teacher.channels))
    extra = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    with torch.no_grad():
        states = model(image, output_hidden_states=True, **extra).hidden_states
    for tap, item in enumerate(found, start=1):
        rows, columns = (side // strides[tap - 1] for side in image.shape[2:])
        assert item.shape == (1, channels[tap - 1], rows, columns)
        state = states[tap]
        for row, column in ((0, 0), (1, 0), (0, 1), (rows - 1, columns - 1)):
            if state.ndim == 4:
                expected = state[0, :, row, column]
            else:
                expected = state[0, prefix + row * columns + column]
            torch.testing.assert_close(item[0, :, row, column], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "Dinov2"])
def test_the_last_tap_lies_before_the_final_norm(tmp_path: Path, kind: str) -> None:
    model = save_model(tmp_path, kind)
    teacher = hf_vision.build(None, tmp_path)
    image = picture(teacher)
    last = teacher.features(image, [max(teacher.channels)])[0].flatten(2).transpose(1, 2)
    extra = {"interpolate_pos_encoding": True} if kind == "ViT" else {}
    with torch.no_grad():
        normed = model(image, **extra).last_hidden_state[:, 1:]
        torch.testing.assert_close(model.layernorm(last), normed, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(last, normed, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bright_spot_is_seen_at_its_place(tmp_path: Path, kind: str) -> None:
    """Rows and columns are not swapped or shifted by tokens in front."""
    save_model(tmp_path, kind)
    teacher = hf_vision.build(None, tmp_path)
    plain = torch.zeros_like(picture(teacher))
    stride = teacher.strides[1]
    for row, column in ((1, 2), (3, 1)):
        spot = plain.clone()
        spot[..., row * stride : (row + 1) * stride, column * stride : (column + 1) * stride] = 3
        change = (teacher.features(spot, [1])[0] - teacher.features(plain, [1])[0]).abs().sum(1)[0]
        assert divmod(int(change.argmax()), change.shape[1]) == (row, column)


def test_normalisation_comes_from_the_folder(tmp_path: Path) -> None:
    save_model(tmp_path, "ViT")
    teacher = hf_vision.build(None, tmp_path)
    assert teacher.mean == pytest.approx((123.675, 116.28, 103.53))
    assert teacher.std == pytest.approx((58.395, 57.12, 57.375))
    assert "no preprocessor_config.json: mean and std of ImageNet" in teacher.report
    file = tmp_path / "preprocessor_config.json"
    values: dict[str, Any] = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.2, 0.1]}
    file.write_text(json.dumps(values))
    other = hf_vision.build(None, tmp_path)
    assert other.mean == pytest.approx((127.5, 102.0, 76.5))
    assert other.std == pytest.approx((127.5, 51.0, 25.5))
    assert not any("ImageNet" in line for line in other.report)
    assert other.weights_sha256 != teacher.weights_sha256, "the same picture, other features"
    file.write_text(json.dumps({**values, "rescale_factor": 1 / 127.5}))
    assert hf_vision.build(None, tmp_path).mean == pytest.approx((63.75, 51.0, 38.25))
    file.write_text(json.dumps({**values, "do_normalize": False}))
    assert hf_vision.build(None, tmp_path).std == pytest.approx((255.0, 255.0, 255.0))
    for wrong, said in (
        ("{", "is not JSON"),
        (json.dumps({"image_mean": 0.5}), "lacks image_mean"),
        (json.dumps({"do_flip_channel_order": True}), "blue, green, red"),
    ):
        file.write_text(wrong)
        with pytest.raises(InputError, match=said):
            hf_vision.build(None, tmp_path)


def test_weights_that_features_do_not_need_may_be_missing(tmp_path: Path) -> None:
    save_model(tmp_path, "ViT")
    whole = hf_vision.build(None, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    kept = {key: value for key, value in state.items() if "pooler" not in key}
    assert len(kept) == len(state) - 2
    save_file({**kept, "classifier.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    teacher = hf_vision.build(None, tmp_path)
    assert any("2 tensors (pooler" in line for line in teacher.report)
    assert any("1 tensors left out" in line and "classifier" in line for line in teacher.report)
    image = picture(teacher)
    assert torch.equal(teacher.features(image, [3])[0], whole.features(image, [3])[0])
    assert hf_vision.build(None, tmp_path).weights_sha256 == teacher.weights_sha256


def test_weights_that_features_need_may_not_be_missing(tmp_path: Path) -> None:
    save_model(tmp_path, "ViT")
    state = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in state if ".1." in key and key.endswith("weight"))
    save_file({k: v for k, v in state.items() if k != gone}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors \(.*from tap 2 on need them"):
        hf_vision.build(None, tmp_path)


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    save_model(tmp_path, "ConvNextV2").half().save_pretrained(tmp_path)
    teacher = hf_vision.build(None, tmp_path)
    assert {value.dtype for value in teacher.parameters()} == {torch.float32}


@pytest.mark.parametrize("fault", ["empty", "cut", "config", "no config", "no weights", "nan"])
def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, fault: str) -> None:
    save_model(tmp_path, "ViT")
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if fault == "empty":
        weights.write_bytes(b"")
    elif fault == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "config":
        config.write_text("{")
    elif fault == "no config":
        config.unlink()
    elif fault == "no weights":
        weights.unlink()
    else:
        state = load_file(weights)
        next(iter(state.values())).fill_(torch.nan)
        save_file(state, weights)
    with pytest.raises(CheckpointError, match=r"damaged|no config\.json") as caught:
        hf_vision.build(None, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_models_without_maps_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(vocab_size=9, intermediate_size=8, **small)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"\(bert\) cannot be a teacher"):
        hf_vision.build(None, tmp_path)


def test_one_channel_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "ViT", num_channels=1)
    with pytest.raises(InputError, match="takes 1 channels instead of 3"):
        hf_vision.build(None, tmp_path)


@pytest.mark.parametrize("weights", ["package", "random"])
def test_only_folders_are_taken(weights: str) -> None:
    with pytest.raises(InputError, match=f"weights: {weights}, but only a folder"):
        hf_vision.build(None, weights)


@pytest.mark.parametrize(
    ("shape", "side", "patch", "expected"),
    [
        ((1, 24, 8, 16), (64, 128), 0, ("first", 24, 8, 0)),
        ((1, 8, 16, 24), (64, 128), 0, ("last", 24, 8, 0)),
        ((1, 129, 24), (64, 128), 8, ("tokens", 24, 8, 1)),
        ((1, 133, 24), (64, 128), 8, ("tokens", 24, 8, 5)),
        ((1, 32, 24), (64, 128), 4, ("tokens", 24, 16, 0)),
        ((1, 50, 24), (56, 56), 8, ("tokens", 24, 8, 1)),
        ((1, 120, 24), (64, 128), 8, None),
        ((1, 190, 24), (64, 128), 8, None),
        ((1, 24, 8, 8), (64, 128), 0, None),
        ((1, 24), (64, 128), 0, None),
    ],
)
def test_layouts_are_told_apart(
    shape: tuple[int, ...], side: tuple[int, int], patch: int, expected: tuple[Any, ...] | None
) -> None:
    states = [torch.zeros(1), torch.zeros(shape)]
    if expected is None:
        with pytest.raises(InputError, match="neither a map nor a grid"):
            hf_vision.layouts(states, *side, patch)
    else:
        assert hf_vision.layouts(states, *side, patch) == {1: hf_vision.Tap(*expected)}


def test_a_state_that_does_not_fit_its_grid_is_refused() -> None:
    tap = hf_vision.Tap("tokens", 24, 8, 1)
    assert hf_vision.as_map(torch.zeros(2, 13, 24), tap, 24, 32).shape == (2, 24, 3, 4)
    for wrong in ((2, 12, 24), (2, 14, 24), (2, 24, 3, 4)):
        with pytest.raises(InputError, match="no grid of 3 x 4 cells"):
            hf_vision.as_map(torch.zeros(wrong), tap, 24, 32)


def test_a_model_of_one_side_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_model(tmp_path, "ViT")
    real = hf_vision.inspect.signature

    class Blind:  # as models that do not offer to interpolate their positions
        parameters: dict[str, Any] = {}

    monkeypatch.setattr(hf_vision.inspect, "signature", lambda _: Blind)
    teacher = hf_vision.build(None, tmp_path)
    assert teacher.only_side == 64
    assert teacher.features(torch.zeros(1, 3, 64, 64), [1])[0].shape == (1, 24, 8, 8)
    with pytest.raises(InputError, match="takes 64 x 64 px only"):
        teacher.features(torch.zeros(1, 3, 128, 64), [1])
    monkeypatch.setattr(hf_vision.inspect, "signature", real)


def test_a_model_that_breaks_on_small_images_is_asked_with_larger_ones(tmp_path: Path) -> None:
    """Four stages as in Swin-T: the last grid of a small image is smaller than the window, and
    transformers' model then keeps the smaller window for good."""
    model = save_model(tmp_path, "Swin4")
    teacher = hf_vision.build(None, tmp_path)
    assert (teacher.only_side, teacher.least_side, teacher.side_multiple) == (0, 128, 32)
    image = torch.randn(1, 3, 256, 128)
    with torch.no_grad():
        expected = model(image, output_hidden_states=True).reshaped_hidden_states[2]
    torch.testing.assert_close(teacher.features(image, [2])[0], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match="sides of 128 px or more, received 64 x 64 px"):
        teacher.features(image[:, :, :64, :64], [2])
    torch.testing.assert_close(teacher.features(image, [2])[0], expected, atol=1e-5, rtol=1e-5)


class Odd(torch.nn.Module):
    """A stand-in for a model of transformers whose hidden states are hard to catch."""

    class config:
        patch_size, model_type = 8, "odd"

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = (torch.nn.Conv2d(3, 3, 8, 8), torch.nn.Conv2d(3, 3, 1))

    def forward(self, pixel_values: torch.Tensor, **asked: Any) -> Any:
        one = self.first(pixel_values)
        if self.kind == "in place":
            one += 1
        two = self.second(one)
        three = self.second(two) if self.kind == "twice" else two * 2

        class Output:
            hidden_states = (pixel_values, one, two, three)

        return Output()


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("plain", {1: "first", 2: "second"}), ("in place", {2: "second"}), ("twice", {1: "first"})],
)
def test_only_what_a_hook_sees_for_certain_is_caught_there(
    kind: str, expected: dict[int, str]
) -> None:
    model = Odd(kind).eval()
    taps = {n: hf_vision.Tap("first", 3, 8) for n in (1, 2, 3)}
    found = hf_vision.places(model, taps, (32, 64))
    assert {tap: name for tap, (name, _) in found.items()} == expected


def test_a_model_of_images_and_text_says_which_part_to_take(tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1,
             "intermediate_size": 24}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 50},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"CLIPVisionModel.from_pretrained\(FOLDER\)"):
        hf_vision.build(None, tmp_path)
