"""Teacher sam: equal to two other implementations, on any grid, with adapters and gradients."""

from __future__ import annotations

import functools
import os
import time
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="teachers need the extra train (torch)")
pytest.importorskip("transformers", reason="teachers need the extra train (transformers)")

from torch import Tensor  # noqa: E402

from edgekd.errors import InputError  # noqa: E402
from edgekd.train.teachers import sam  # noqa: E402

GRIDS = [(14, 14), (7, 7), (10, 9), (5, 3), (16, 32)]


@pytest.fixture(scope="module")
def teacher() -> sam.SamEncoder:
    return sam.build("tiny", "random")


def tokens(height: int, width: int, count: int = 2, dim: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    return torch.randn(count, height, width, dim, generator=generator)


# --- a naive implementation: float64, one query at a time, nothing taken from transformers


def stretched(table: Tensor, length: int) -> Tensor:
    """Linear interpolation with pixel centres at half-integers, clamped at the ends."""
    rows = []
    for index in range(length):
        place = (index + 0.5) * len(table) / length - 0.5
        place = min(max(place, 0.0), len(table) - 1.0)
        low = int(place)
        high = min(low + 1, len(table) - 1)
        rows.append(table[low] * (1 - (place - low)) + table[high] * (place - low))
    return torch.stack(rows)


def norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * weights[name + ".weight"] + weights[name + ".bias"]


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[name + ".weight"].T + weights[name + ".bias"]


def naive_attention(x: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> Tensor:
    """Softmax(q k / sqrt(d) + q R_row + q R_column) v over one grid (h, w, D)."""
    height, width, dim = x.shape
    each = dim // heads
    qkv = linear(x, weights, name + ".qkv")
    by_row = stretched(weights[name + ".rel_pos_h"], 2 * height - 1)
    by_column = stretched(weights[name + ".rel_pos_w"], 2 * width - 1)
    out = torch.zeros_like(x)
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        query, key, value = (qkv[..., i * dim : (i + 1) * dim][..., part] for i in range(3))
        for row in range(height):
            for column in range(width):
                q = query[row, column]
                logits = key @ q / each**0.5
                logits = logits + torch.stack(
                    [by_row[row - other + height - 1] @ q for other in range(height)]
                ).unsqueeze(1)
                logits = logits + torch.stack(
                    [by_column[column - other + width - 1] @ q for other in range(width)]
                ).unsqueeze(0)
                attention = torch.softmax(logits.flatten(), 0).view(height, width, 1)
                out[row, column, part] = (attention * value).sum((0, 1))
    return linear(out, weights, name + ".proj")


def naive_block(x: Tensor, weights: dict[str, Tensor], index: int, heads: int, side: int) -> Tensor:
    """One block on one picture's grid (h, w, D); ``side`` of the windows, 0 for global."""
    name = f"layers.{index}"
    normed = norm(x, weights, name + ".layer_norm1")
    height, width, dim = x.shape
    if side == 0:
        x = x + naive_attention(normed, weights, name + ".attn", heads)
    else:
        update = torch.zeros_like(x)
        for top in range(0, height, side):
            for left in range(0, width, side):
                window = torch.zeros(side, side, dim, dtype=x.dtype)
                seen = normed[top : top + side, left : left + side]
                window[: seen.shape[0], : seen.shape[1]] = seen
                mixed = naive_attention(window, weights, name + ".attn", heads)
                update[top : top + side, left : left + side] = mixed[
                    : seen.shape[0], : seen.shape[1]
                ]
        x = x + update
    hidden = linear(norm(x, weights, name + ".layer_norm2"), weights, name + ".mlp.lin1")
    hidden = 0.5 * hidden * (1 + torch.erf(hidden / 2**0.5))
    return x + linear(hidden, weights, name + ".mlp.lin2")


@pytest.mark.parametrize(("height", "width"), [(7, 7), (8, 5), (3, 9)])
def test_equals_a_naive_implementation(teacher: sam.SamEncoder, height: int, width: int) -> None:
    weights = {key: value.double() for key, value in teacher.encoder.state_dict().items()}
    start = tokens(height, width, 1)
    found = teacher.run_blocks(start, range(1, 7))
    x = start[0].double()
    for index, result in enumerate(found):
        side = 0 if index + 1 in (3, 6) else 7
        x = naive_block(x, weights, index, 3, side)
        torch.testing.assert_close(result[0].double(), x, atol=5e-5, rtol=0)
    assert x.std() > 1, "random weights must do something"


def test_patchify_is_a_product_per_patch_plus_positions(teacher: sam.SamEncoder) -> None:
    image = tokens(32, 48, 1, 3).permute(0, 3, 1, 2)
    weights = teacher.encoder.state_dict()
    found = teacher.patchify(image)
    assert found.shape == (1, 2, 3, 96) and found.is_contiguous()
    table = torch.nn.functional.interpolate(
        weights["pos_embed"].permute(0, 3, 1, 2), (2, 3), mode="bicubic"
    )
    kernel, bias = (weights[f"patch_embed.projection.{part}"] for part in ("weight", "bias"))
    for row in range(2):
        for column in range(3):
            patch = image[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            expected = (kernel * patch).sum((1, 2, 3)) + bias + table[0, :, row, column]
            torch.testing.assert_close(found[0, row, column], expected, atol=1e-5, rtol=1e-5)


# --- transformers' own forward


def theirs(teacher: sam.SamEncoder, grid: Tensor) -> list[Tensor]:
    found = []
    for layer in teacher.encoder.layers:
        grid = layer(grid)
        grid = grid[0] if isinstance(grid, tuple) else grid
        found.append(grid)
    return found


@pytest.mark.parametrize(("height", "width"), GRIDS)
def test_blocks_equal_those_of_transformers(
    teacher: sam.SamEncoder, height: int, width: int
) -> None:
    start = tokens(height, width)
    with torch.no_grad():
        expected = theirs(teacher, start)
        found = teacher.run_blocks(start, range(1, 7))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4
    plain = teacher.run_blocks(start, [6])[0]
    for table in ("rel_pos_h", "rel_pos_w"):  # a comparison that does not see them is none
        without = sam.build("tiny", "random")
        for layer in without.encoder.layers:
            getattr(layer.attn, table).zero_()
        assert (without.run_blocks(start, [6])[0] - plain).abs().max() > 0.05


def whole_picture(variant: str) -> tuple[float, float, float]:
    """Largest difference to transformers in front of the neck at 1024 px; seconds: ours, theirs.

    Theirs with the attention that is written out (softmax and products), not the fused one.
    """
    from transformers.models.sam.modeling_sam import SamVisionAttention

    teacher = sam.build(variant, "random")
    for layer in teacher.encoder.layers:
        layer.attn.__class__ = SamVisionAttention
    image = torch.randn(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []
    hook = teacher.encoder.neck.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        begin = time.perf_counter()
        found = teacher.features(image, [teacher.depth])[0]
        middle = time.perf_counter()
        teacher.encoder(image)
        end = time.perf_counter()
    hook.remove()
    assert len(seen) == 1 and found.shape == (1, teacher.dim, 64, 64) and found.std() > 1
    worst = float((found - seen[0].permute(0, 3, 1, 2)).abs().max())
    return worst, middle - begin, end - middle


def test_a_whole_picture_equals_transformers() -> None:
    assert whole_picture("tiny")[0] <= 1e-4


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("EDGEKD_LONG_TESTS") != "1", reason="EDGEKD_LONG_TESTS=1 runs it"
)
@pytest.mark.parametrize("variant", ["vit_b", "vit_l"])
def test_a_whole_picture_equals_transformers_in_true_size(variant: str) -> None:
    worst, ours, their = whole_picture(variant)
    print(f"{variant}: max abs {worst:.2e}, {ours:.1f} s, transformers {their:.1f} s")
    assert worst <= 1e-4


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_sizes_are_the_published_ones(variant: str) -> None:
    """Image encoders of segment_anything/build_sam.py: 89.7, 308.3 and 637.0 M parameters."""
    count = sum(value.numel() for value in sam.container(variant).parameters())
    assert count == {"vit_b": 89_670_912, "vit_l": 308_278_272, "vit_h": 637_026_048}[variant]
    assert {v: sam.SIZES[v].globals for v in ("vit_b", "vit_l", "vit_h")} == {
        "vit_b": (3, 6, 9, 12), "vit_l": (6, 12, 18, 24), "vit_h": (8, 16, 24, 32),
    }  # fmt: skip


# --- grids, adapters, gradients


def test_padding_takes_part_as_keys(teacher: sam.SamEncoder) -> None:
    """Zeros behind the edge are keys (their k and v are the biases), as in SAM's own code."""
    start = tokens(7, 7, 1)
    whole = teacher.run_block(0, start)
    cut = teacher.run_block(0, start[:, :, :6])
    assert (whole[:, :, :6] - cut).abs().max() > 1e-3
    attention = teacher.encoder.layers[0].attn
    normed = teacher.encoder.layers[0].layer_norm1(start[:, :, :6])
    without = start[:, :, :6] + sam.attend(attention, normed, 3)
    assert (teacher.run_block(0, start[:, :, :6]) - without).abs().max() > 1e-3


@pytest.mark.parametrize(("height", "width"), [*GRIDS, (1, 1), (13, 15)])
def test_windows_come_back_to_their_places(height: int, width: int) -> None:
    grid = tokens(height, width, 3, 2)
    windows = sam.to_windows(grid, 7)
    assert windows.shape == (3 * -(-height // 7) * -(-width // 7), 7, 7, 2)
    assert torch.equal(sam.from_windows(windows, height, width), grid)
    rows, columns = min(7, height), min(7, width)
    assert torch.equal(windows[0, :rows, :columns], grid[0, :rows, :columns])
    assert windows.abs().sum() == pytest.approx(grid.abs().sum().item(), rel=1e-5)


def test_adapters_get_normed_tokens_and_the_perceptrons_output(teacher: sam.SamEncoder) -> None:
    start = tokens(9, 8)
    plain = teacher.run_blocks(start, [2, 6])
    calls: list[tuple[Tensor, Tensor]] = []

    def same(normed: Tensor, update: Tensor) -> Tensor:
        calls.append((normed, update))
        return update

    passed = teacher.run_blocks(start, [2, 6], [same] * 6)
    assert all(torch.equal(a, b) for a, b in zip(plain, passed, strict=True))
    assert len(calls) == 6
    for index, (normed, update) in enumerate(calls):
        layer = teacher.encoder.layers[index]
        assert normed.shape == update.shape == start.shape
        torch.testing.assert_close(layer.mlp(normed), update, atol=1e-6, rtol=1e-5)
    nothing = teacher.run_blocks(start, [6], [lambda normed, update: 0 * update] * 6)[0]
    assert not torch.allclose(nothing, plain[1])
    with pytest.raises(InputError, match="runs 6 blocks and got 5 adapters"):
        teacher.run_blocks(start, [6], [same] * 5)


def test_blocks_behind_the_last_tap_do_not_run(teacher: sam.SamEncoder) -> None:
    calls: list[int] = []

    def count(normed: Tensor, update: Tensor) -> Tensor:
        calls.append(1)
        return update

    found = teacher.run_blocks(tokens(4, 4), [1, 3], [count] * 6)
    assert len(found) == 2 and len(calls) == 3


class Gain(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(1.5))

    def forward(self, normed: Tensor, update: Tensor) -> Tensor:
        return update * self.gain + normed


def learnt(teacher: sam.SamEncoder, checkpointing: bool) -> tuple[Tensor, list[Any], Any]:
    adapters = [Gain() for _ in range(6)]
    start = tokens(9, 8).requires_grad_(True)
    found = teacher.run_blocks(start, [3, 6], adapters, checkpointing)
    sum(item.square().mean() for item in found).backward()  # type: ignore[union-attr]
    return found[1].detach(), [a.gain.grad for a in adapters], start.grad


def test_gradients_reach_adapters_and_tokens_and_not_the_weights(teacher: sam.SamEncoder) -> None:
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    _, gains, start = learnt(teacher, False)
    assert all(gain is not None and gain.abs() > 0 for gain in gains)
    assert start is not None and start.abs().sum() > 0
    assert all(value.grad is None for value in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_gradients_are_the_true_ones() -> None:
    teacher = sam.build("tiny", "random").double()
    start = tokens(3, 4, 1).double().requires_grad_(True)
    out = teacher.run_blocks(start, [3])[0]
    (slope,) = torch.autograd.grad(out.square().mean(), start)
    step = torch.randn(start.shape, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        high, low = (
            teacher.run_blocks(start + sign * 1e-5 * step, [3])[0].square().mean()
            for sign in (1, -1)
        )
    assert (high - low).item() / 2e-5 == pytest.approx((slope * step).sum().item(), rel=1e-5)


def test_checkpointing_changes_memory_and_nothing_else(
    teacher: sam.SamEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    real = sam.checkpoint

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["use_reentrant"])
        return real(*args, **kwargs)

    monkeypatch.setattr(sam, "checkpoint", spy)
    plain = learnt(teacher, False)
    assert not calls
    saved = learnt(teacher, True)
    assert calls == [False] * 6
    assert torch.equal(plain[0], saved[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], saved[1], strict=True))
    torch.testing.assert_close(plain[2], saved[2])
    with torch.no_grad():
        teacher.run_blocks(tokens(4, 4), [6], None, True)
    assert len(calls) == 6, "nothing to recompute where no gradient is recorded"


def test_lower_precision_keeps_its_type_and_stays_near(teacher: sam.SamEncoder) -> None:
    image = tokens(112, 144, 1, 3).permute(0, 3, 1, 2)
    exact = teacher.features(image, [6])[0]
    half = sam.build("tiny", "random").bfloat16()
    found = half.features(image.bfloat16(), [6])[0]
    assert found.dtype == torch.bfloat16
    assert (found.float() - exact).abs().mean() < 0.05 * exact.abs().mean()
    query = tokens(3, 4, 1, 8).reshape(1, 1, 3, 4, 8).bfloat16()
    bias = sam.position_bias(query, torch.zeros(3, 3, 8), torch.zeros(4, 4, 8))
    assert bias.dtype == torch.bfloat16 and bias.shape == (1, 1, 12, 12)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = teacher.features(image, [6])[0]
    assert (mixed.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_compiled_blocks_are_one_graph_each_and_give_the_same(
    teacher: sam.SamEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dynamo's eager backend: what is captured, without the time of a compiler."""
    monkeypatch.setattr(teacher, "_parts", teacher._parts)
    whole = functools.partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", whole)
    tokens = torch.randn(1, 16, 16, teacher.dim)
    expected = teacher.run_blocks(tokens, [teacher.depth])[0]
    torch._dynamo.reset()
    teacher.compile_blocks()
    found = teacher.run_blocks(tokens, [teacher.depth])[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "windowed and global"
    torch._dynamo.reset()
