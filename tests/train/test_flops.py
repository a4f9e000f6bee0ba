"""The FLOP counter against a count by hand, and against the published figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekd.errors import InputError
from edgekd.train import flops
from edgekd.train.students import vit_nano, vit_small, vit_tiny

SIDE_PX = 1024
TOKENS = (SIDE_PX // 16) ** 2  # 4096
WINDOW = 16 * 16


def encoder_linears_by_hand(dim: int, depth: int, tokens: int = TOKENS) -> int:
    """Two operations per multiply-add of patch embedding, qkv, projection and perceptron."""
    patch_embed = 2 * tokens * (16 * 16 * 3) * dim
    qkv = 2 * tokens * dim * (3 * dim)
    proj = 2 * tokens * dim * dim
    mlp = 2 * tokens * dim * (4 * dim) + 2 * tokens * (4 * dim) * dim
    return patch_embed + depth * (qkv + proj + mlp)


def attention_products_by_hand(dim: int, depth: int, attention: str, tokens: int = TOKENS) -> int:
    """Q K^T and A V: every token against the tokens that it sees, head by head."""
    total = 0
    for block in range(1, depth + 1):
        seen = tokens if attention == "global" or block % 3 == 0 else WINDOW
        total += 2 * (2 * tokens * seen * dim)
    return total


def parameters_by_hand(dim: int, depth: int) -> int:
    patch_embed = 16 * 16 * 3 * dim + dim
    block = (3 * dim * dim + 3 * dim) + (dim * dim + dim) + (8 * dim * dim + 5 * dim) + 4 * dim
    return patch_embed + depth * block + 2 * dim


@pytest.mark.parametrize("attention", ["global", "windowed"])
@pytest.mark.parametrize(
    ("module", "dim", "depth"),
    [(vit_nano, 96, 6), (vit_tiny, 192, 12), (vit_small, 384, 12)],
)
def test_encoder_equals_the_hand_count_to_the_integer(module, dim, depth, attention):
    encoder = module.build(4, attention=attention).encoder
    cost = flops.count(encoder, SIDE_PX)
    products = attention_products_by_hand(dim, depth, attention)
    assert cost.flops_attention_products == products
    assert cost.flops - products == encoder_linears_by_hand(dim, depth)
    assert cost.parameters == parameters_by_hand(dim, depth)


def test_upernet_equals_the_hand_count_to_the_integer():
    classes, dim, width = 5, 96, 64
    whole = flops.count(vit_nano.build(classes, head="upernet"), SIDE_PX)
    encoder = flops.count(vit_nano.build(classes).encoder, SIDE_PX)
    n4, n8, n16, n32 = ((SIDE_PX // stride) ** 2 for stride in (4, 8, 16, 32))
    # A transposed convolution with kernel 2 and stride 2 multiplies each input cell 4 times.
    raise_4 = n16 * 4 * dim * (dim // 2) + n8 * 4 * (dim // 2) * (dim // 4)
    raise_8 = n16 * 4 * dim * (dim // 2)
    pooling = (1 + 4 + 16 + 64) * dim * dim + n32 * (9 * (5 * dim) * dim + dim * width)
    lateral = n4 * (dim // 4) * width + n8 * (dim // 2) * width + n16 * dim * width
    smooth = (n4 + n8 + n16) * 9 * width * width
    fuse = n4 * (9 * 4 * width * width + width * classes)
    by_hand = 2 * (raise_4 + raise_8 + pooling + lateral + smooth + fuse)
    assert whole.flops - encoder.flops == by_hand
    assert whole.flops_attention_products == encoder.flops_attention_products


def test_linear_head_equals_the_hand_count_to_the_integer():
    whole = flops.count(vit_nano.build(7), SIDE_PX)
    encoder = flops.count(vit_nano.build(7).encoder, SIDE_PX)
    assert whole.flops - encoder.flops == 2 * TOKENS * 96 * 7
    assert whole.parameters - encoder.parameters == 96 * 7 + 7


def test_vit_small_agrees_with_the_published_figures():
    """29.65 M parameters and 119.76 G multiply-adds with decoder, attention products left out."""
    everywhere = flops.count(vit_small.build(8, attention="global", head="upernet"), SIDE_PX)
    windowed = flops.count(vit_small.build(8, attention="windowed", head="upernet"), SIDE_PX)
    encoder = flops.count(vit_small.build(8, attention="global").encoder, SIDE_PX)
    windowed_encoder = flops.count(vit_small.build(8, attention="windowed").encoder, SIDE_PX)
    assert encoder.by_operator["addmm"] / 1e9 == pytest.approx(174, abs=0.5)
    assert encoder.flops_attention_products / 1e9 == pytest.approx(309, abs=0.5)
    assert windowed_encoder.flops / 1e9 == pytest.approx(290, rel=0.01)
    assert everywhere.parameters / 1e6 == pytest.approx(29.65, rel=0.01)
    without_products = everywhere.flops - everywhere.flops_attention_products
    assert without_products / 2 / 1e9 == pytest.approx(119.76, rel=0.07)
    assert windowed.parameters == everywhere.parameters


def test_operators_add_up_and_are_sorted():
    cost = flops.count(vit_nano.build(4, head="upernet"), 256)
    assert sum(cost.by_operator.values()) == cost.flops
    assert list(cost.by_operator.values()) == sorted(cost.by_operator.values(), reverse=True)
    assert set(cost.by_operator) == {"addmm", "bmm", "convolution"}


def test_fused_attention_is_counted_too():
    """A network that calls PyTorch's attention directly must not come out free of charge."""

    class Direct(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            heads = image.flatten(2).unsqueeze(1)  # (1, 1, 3, 256): 3 tokens, 256 wide
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)

    assert flops.count(Direct(), 16).flops_attention_products == 2 * (2 * 3 * 3 * 256)


def test_counting_leaves_the_model_as_it_was():
    model = vit_nano.build(4, head="upernet").train()
    model.encoder.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flops.count(model, 512)
    assert model.training
    assert model.decoder.training
    assert not model.encoder.training
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert model.encoder.columns.device.type == model.encoder.rows.device.type == "cpu"
    assert model(torch.zeros(1, 3, 256, 256)).isfinite().all()


def test_a_side_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match="multiples of 256 px"):
        flops.count(vit_nano.build(4), 1000)
