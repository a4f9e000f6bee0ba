"""The heads ``linear`` and ``upernet``: geometry, levels, pooling, wrong input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import InputError
from edgekd.train.heads import linear, upernet


def maps(
    channels: list[int], strides: list[int], height: int, width: int, batch: int = 1
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, c, height // s, width // s, generator=generator)
        for c, s in zip(channels, strides, strict=True)
    ]


@pytest.mark.parametrize(("height", "width"), [(256, 256), (512, 512), (256, 512), (768, 256)])
@pytest.mark.parametrize(
    ("channels", "strides"),
    [
        ([32] * 4, [16] * 4),
        ([32] * 2, [16] * 2),
        ([32], [16]),
        ([8, 16, 24, 40], [4, 8, 16, 32]),
    ],
    ids=["vit-4-taps", "vit-2-taps", "vit-1-tap", "pyramid"],
)
def test_upernet_shapes(channels, strides, height, width):
    head = upernet.build(channels, strides, 5, width=16).eval()
    with torch.no_grad():
        logits = head(maps(channels, strides, height, width, batch=2))
    assert head.stride == 4
    assert tuple(logits.shape) == (2, 5, height // 4, width // 4)


@pytest.mark.parametrize(("height", "width"), [(256, 256), (48, 80)])
def test_linear_shapes(height, width):
    head = linear.build([32, 32], [16, 16], 5)
    assert head.stride == 16
    assert tuple(head(maps([32, 32], [16, 16], height, width)).shape) == (
        1, 5, height // 16, width // 16,
    )  # fmt: skip


def test_linear_reads_the_last_map_only():
    head = linear.build([8, 8], [16, 16], 3)
    first, last = maps([8, 8], [16, 16], 64, 64)
    assert torch.equal(head([first, last]), head([first + 1.0, last]))
    assert not torch.equal(head([first, last]), head([first, last + 1.0]))


def test_linear_refuses_a_width():
    with pytest.raises(InputError, match="no inner width"):
        linear.build([8], [16], 3, width=64)


def test_every_level_takes_the_tap_of_its_depth():
    assert upernet.build([8] * 4, [16] * 4, 2).sources == [0, 1, 2, 3]
    assert upernet.build([8] * 2, [16] * 2, 2).sources == [0, 0, 1, 1]
    assert upernet.build([8] * 3, [16] * 3, 2).sources == [0, 0, 1, 2]


@pytest.mark.parametrize("index", range(4))
def test_every_map_reaches_the_logits(index):
    torch.manual_seed(0)
    head = upernet.build([16] * 4, [16] * 4, 3, width=8).eval()
    features = maps([16] * 4, [16] * 4, 256, 256)
    with torch.no_grad():
        before = head(features)
        features[index] = features[index] + 1.0
        assert not torch.equal(before, head(features))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 32), (32, 32)])
def test_pooled_bins_equal_adaptive_pooling(height, width):
    """Nested fixed kernels give the same means as one adaptive pooling per bin count."""
    pooling = upernet.PyramidPooling(4, 4).eval()
    seen = []
    for branch in pooling.branches:
        branch.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    feature = torch.randn(2, 4, height, width)
    with torch.no_grad():
        pooling(feature)
    assert [tuple(pooled.shape[-2:]) for pooled in seen] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    for bins, pooled in zip(upernet.BINS, seen, strict=True):
        expected = nn.functional.adaptive_avg_pool2d(feature, bins)
        torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("height", "width"), [(272, 256), (256, 128)])
def test_upernet_refuses_a_side_that_bins_do_not_divide(height, width):
    head = upernet.build([8] * 4, [16] * 4, 2, width=8)
    with pytest.raises(InputError, match=f"image of {height} x {width} px.*multiples of 256"):
        head(maps([8] * 4, [16] * 4, height, width))


def test_upernet_refuses_strides_it_cannot_reach():
    with pytest.raises(InputError, match="stride 32 to stride 4"):
        upernet.build([8], [32], 2)


def test_upernet_trains_on_a_single_image():
    """The 1 x 1 bin has one value per channel: a BatchNorm there would refuse batch 1."""
    head = upernet.build([8] * 4, [16] * 4, 2, width=8).train()
    head(maps([8] * 4, [16] * 4, 256, 256)).sum().backward()


def test_upernet_has_no_norm_that_cannot_be_folded():
    head = upernet.build([8] * 4, [16] * 4, 2, width=8)
    norms = {type(m).__name__ for m in head.modules() if "Norm" in type(m).__name__}
    assert norms == {"BatchNorm2d"}
