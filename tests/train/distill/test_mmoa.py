"""MMoA: identity at the start, the paper's dilations and gate, and gradients for everything."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from edgekd.errors import InputError
from edgekd.train.distill.mmoa import MMoA


def tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stirred(dim: int = 32, **options) -> MMoA:
    """Every parameter random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    mmoa = MMoA(dim, **options)
    for parameter in mmoa.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return mmoa


@pytest.mark.parametrize("gate", ["softmax", "sum"])
@pytest.mark.parametrize("multi_scale", [True, False])
@pytest.mark.parametrize("reduction", [1, 4])
def test_a_fresh_one_changes_nothing(gate, multi_scale, reduction):
    torch.manual_seed(0)
    mmoa = MMoA(64, reduction, multi_scale, gate)
    xn, ffn = tokens(1, 2, 16, 12, 64), 30 * tokens(2, 2, 16, 12, 64)
    with torch.no_grad():
        assert torch.equal(mmoa(xn, ffn), ffn)
        assert mmoa(xn, ffn).shape == ffn.shape


def test_a_fresh_one_changes_nothing_under_autocast():
    xn, ffn = tokens(1, 1, 8, 8, 64), tokens(2, 1, 8, 8, 64).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(MMoA(64)(xn, ffn), ffn.float())


def test_the_weights_keep_float32_under_autocast():
    """bfloat16 next to 1 has steps of 0.008: a change of 0.001 would be lost."""
    mmoa = MMoA(64)
    with torch.no_grad():
        mmoa.gate.value.weight[0] = 1e-3
        with torch.autocast("cpu", torch.bfloat16):
            weight = mmoa.gate(torch.full((1, 1, 1, 64), 0.05))
    assert 0 < float((weight - 1).abs().max()) < 0.004


def test_gradients_at_the_start_and_one_step_later():
    torch.manual_seed(0)
    mmoa = MMoA(32)
    xn, ffn, goal = (tokens(seed, 2, 24, 24, 32) for seed in (1, 2, 3))
    optimiser = torch.optim.SGD(mmoa.parameters(), lr=0.1)

    def with_gradient() -> set[str]:
        optimiser.zero_grad()
        (mmoa(xn, ffn) - goal).square().mean().backward()
        return {n for n, p in mmoa.named_parameters() if p.grad is not None and p.grad.any()}

    ups = {f"{side}.up.{what}" for side in ("fine", "coarse") for what in ("weight", "bias")}
    assert with_gradient() == ups | {"gate.value.weight"}
    optimiser.step()
    assert with_gradient() == {name for name, _ in mmoa.named_parameters()}


@pytest.mark.parametrize(
    ("multi_scale", "fine", "coarse"), [(True, (1, 3, 5), (7, 9, 11)), (False, (1,), (1,))]
)
def test_the_dilations(multi_scale, fine, coarse):
    """What one token of the answer looks at, without the parts that look at the whole image."""
    mmoa = stirred(multi_scale=multi_scale)
    for adapter, dilations in ((mmoa.fine, fine), (mmoa.coarse, coarse)):
        with torch.no_grad():
            adapter.aspp.pooled.weight.zero_()
            adapter.excite.weigh[2].weight.zero_()
            kernel = adapter.spread[0].weight
            kernel.copy_(F.pad(kernel[..., 1:2, 1:2], (1, 1, 1, 1)))  # its centre only
        xn = tokens(1, 1, 31, 31, 32).requires_grad_()
        adapter(xn)[0, 15, 15].sum().backward()
        seen = {tuple(place) for place in (xn.grad[0].abs().sum(-1) != 0).nonzero().tolist()}
        expected = {
            (15 + d * row, 15 + d * column)
            for d in dilations
            for row in (-1, 0, 1)
            for column in (-1, 0, 1)
        }
        assert seen == expected


@pytest.mark.parametrize("part", ["pooled", "excite"])
def test_the_averages_look_at_the_whole_image_and_not_at_the_next_one(part):
    adapter = stirred().fine
    with torch.no_grad():
        if part == "excite":
            adapter.aspp.pooled.weight.zero_()
        else:
            adapter.excite.weigh[2].weight.zero_()
    xn = tokens(1, 2, 31, 31, 32).requires_grad_()
    adapter(xn)[0, 15, 15].sum().backward()
    assert (xn.grad[0].abs().sum(-1) != 0).all()
    assert not xn.grad[1].any()


def by_the_table(mmoa: MMoA, xn: torch.Tensor, ffn: torch.Tensor, multi_scale: bool):
    """The reference table, written out with other means: convolutions, einsum, a concatenation."""
    weights = dict(mmoa.named_parameters())

    def linear(values, name):
        return F.linear(values, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def depthwise(grid, name, dilation):
        weight = weights[f"{name}.weight"]
        return F.conv2d(
            grid, weight, weights[f"{name}.bias"], 1, dilation, dilation, groups=len(weight)
        )

    def pointwise(grid, weight, bias):
        return F.conv2d(grid, weight[:, :, None, None], bias)

    streams = [ffn]
    for side, dilations in (("fine", (1, 3, 5)), ("coarse", (7, 9, 11))):
        grid = F.gelu(linear(xn, f"{side}.down.0")).permute(0, 3, 1, 2)
        branches = []
        for number, dilation in enumerate(dilations if multi_scale else (1, 1, 1)):
            name = f"{side}.aspp.branches.{number}"
            branch = F.gelu(depthwise(grid, f"{name}.0", dilation))
            mix = weights[f"{name}.2.weight"], weights[f"{name}.2.bias"]
            branches.append(F.gelu(pointwise(branch, *mix)))
        branches.append(F.adaptive_avg_pool2d(grid, 1).expand_as(grid))
        both = [weights[f"{side}.aspp.{part}.weight"] for part in ("join", "pooled")]
        pyramid = F.gelu(
            pointwise(torch.cat(branches, 1), torch.cat(both, 1), weights[f"{side}.aspp.join.bias"])
        )
        squeezed = F.gelu(linear(pyramid.mean((2, 3)), f"{side}.excite.weigh.0"))
        excited = torch.sigmoid(linear(squeezed, f"{side}.excite.weigh.2"))
        spread = F.gelu(depthwise(pyramid * excited[:, :, None, None], f"{side}.spread.0", 1))
        streams.append(linear(spread.permute(0, 2, 3, 1), f"{side}.up"))
    if mmoa.gate is None:
        return sum(streams)
    query, key, value = (linear(xn, f"gate.{name}") for name in ("query", "key", "value"))
    attention = torch.einsum("nhwi,nhwj->nhwij", query, key).div(3**0.5).softmax(-1)
    gate = 3 * torch.einsum("nhwij,nhwj->nhwi", attention, value).softmax(-1)
    return torch.einsum("nhwi,inhwd->nhwd", gate, torch.stack(streams))


@pytest.mark.parametrize("gate", ["softmax", "sum"])
@pytest.mark.parametrize("multi_scale", [True, False])
def test_it_is_what_the_table_says(gate, multi_scale):
    mmoa = stirred(multi_scale=multi_scale, gate=gate)
    xn, ffn = tokens(1, 2, 24, 16, 32), tokens(2, 2, 24, 16, 32)
    with torch.no_grad():
        expected = by_the_table(mmoa, xn, ffn, multi_scale)
        torch.testing.assert_close(mmoa(xn, ffn), expected, atol=1e-4, rtol=1e-4)


def test_the_gate_is_per_token_and_sums_to_three():
    gate = stirred().gate
    xn = tokens(1, 2, 6, 6, 32)
    with torch.no_grad():
        weight = gate(xn)
        torch.testing.assert_close(weight.sum(-1), torch.full((2, 6, 6), 3.0))
        assert weight.flatten(0, 2).std(dim=0).min() > 0.01
        other = xn.clone()
        other[0, 2, 3] += 1.0
        changed = (gate(other) != weight).any(-1)
    assert changed.nonzero().tolist() == [[0, 2, 3]]


def test_sum_has_no_idle_parameters():
    assert MMoA(32, gate="sum").gate is None


def test_parameters_of_the_papers_width():
    mmoa = MMoA(1024)
    assert sum(p.numel() for p in mmoa.parameters()) == 2_017_312
    assert sum(p.numel() for p in mmoa.gate.parameters()) == 3 * 3 * 1024


def test_a_gate_that_does_not_exist():
    with pytest.raises(InputError, match="did you mean 'softmax'"):
        MMoA(32, gate="sofmax")
