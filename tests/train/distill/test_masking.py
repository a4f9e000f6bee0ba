"""Masks: one patch per cell, a function of (seed, number), and nothing hidden gets through."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import InputError
from edgekd.train.distill.masking import (
    batch_index,
    hidden_mask,
    take_positions,
    take_visible,
    visible_index,
)
from edgekd.train.students import _vit
from edgekd.train.students._vit import ViT


@settings(max_examples=60, deadline=None)
@given(
    cell=st.integers(1, 4),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    number=st.integers(0, 2**40),
)
def test_lattice_shows_exactly_one_patch_per_cell_in_its_place(cell, rows, columns, seed, number):
    grid = (rows * cell, columns * cell)
    index = visible_index("lattice", cell, grid, seed, number)
    assert index.shape == (rows, columns)
    assert index.dtype == np.int64
    row, column = np.divmod(index, grid[1])
    np.testing.assert_array_equal(row // cell, np.arange(rows)[:, None].repeat(columns, 1))
    np.testing.assert_array_equal(column // cell, np.arange(columns)[None].repeat(rows, 0))


@pytest.mark.parametrize("cell", [2, 3, 4])
def test_every_place_of_a_cell_is_drawn_equally_often(cell):
    grid = (12 * 4, 12 * 4)
    places = np.zeros((cell, cell), dtype=int)
    for number in range(20):
        row, column = np.divmod(visible_index("lattice", cell, grid, 0, number), grid[1])
        np.add.at(places, (row % cell, column % cell), 1)
    expected = places.sum() / cell**2
    assert np.abs(places - expected).max() < 5 * np.sqrt(expected)  # five standard deviations


@settings(max_examples=40, deadline=None)
@given(cell=st.integers(1, 4), rows=st.integers(1, 6), columns=st.integers(1, 6))
def test_random_draws_without_replacement_in_reading_order(cell, rows, columns):
    index = visible_index("random", cell, (rows * cell, columns * cell), 0, 7)
    assert index.shape == (rows, columns)
    assert (np.diff(index.ravel()) > 0).all()
    assert 0 <= index.min() <= index.max() < rows * columns * cell**2


def test_random_leaves_some_cells_empty():
    """Otherwise it would be the lattice by another name."""
    row, column = np.divmod(visible_index("random", 2, (32, 32), 0, 0), 32)
    assert len({*zip((row // 2).ravel(), (column // 2).ravel(), strict=True)}) < 256


def test_random_reaches_every_patch():
    seen = {int(i) for n in range(60) for i in visible_index("random", 2, (8, 8), 0, n).ravel()}
    assert seen == set(range(64))


@pytest.mark.parametrize(
    ("kind", "cell"), [("none", 1), ("none", 2), ("lattice", 1), ("random", 1)]
)
def test_everything_is_visible(kind, cell):
    index = visible_index(kind, cell, (3, 5), 0, 0)
    np.testing.assert_array_equal(index, np.arange(15).reshape(3, 5))


@pytest.mark.parametrize("kind", ["lattice", "random"])
def test_a_mask_is_a_function_of_seed_and_number(kind):
    def draw(seed, number):
        return visible_index(kind, 2, (16, 16), seed, number).tobytes()

    np.random.seed(0)
    first = draw(3, 5)
    np.random.random(10)
    assert draw(3, 5) == first
    assert len({draw(seed, number) for seed in range(5) for number in range(40)}) == 200


@pytest.mark.parametrize(
    ("kind", "cell", "grid", "message"),
    [
        ("lattice", 3, (32, 33), "32 x 33 patches .* multiples of 3"),
        ("random", 2, (33, 32), "33 x 32 patches .* multiples of 2"),
        ("lattice", 2, (0, 4), "0 x 4 patches"),
        ("latice", 2, (4, 4), "did you mean 'lattice'"),
        ("lattice", 0, (4, 4), "1 patch or more, received 0"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(kind, cell, grid, message):
    with pytest.raises(InputError, match=message) as caught:
        visible_index(kind, cell, grid, 0, 0)
    assert "\n" not in str(caught.value)


def test_a_batch_holds_the_masks_of_its_crops():
    index = batch_index("lattice", 2, (8, 4), 9, [5, 2, 5], "cpu")
    assert (index.dtype, tuple(index.shape)) == (torch.int64, (3, 4, 2))
    for part, number in zip(index, [5, 2, 5], strict=True):
        np.testing.assert_array_equal(part.numpy(), visible_index("lattice", 2, (8, 4), 9, number))


def test_tokens_and_positions_are_those_of_the_index():
    tokens = torch.arange(2 * 4 * 6).reshape(2, 4, 6, 1) * torch.tensor([1, 100])
    table = torch.arange(24.0).reshape(1, 4, 6, 1)
    index = batch_index("lattice", 2, (4, 6), 0, [0, 1])
    taken, places = take_visible(tokens, index), take_positions(table, index)
    assert tuple(taken.shape) == (2, 2, 3, 2)
    for n, i, j in np.ndindex(2, 2, 3):
        row, column = divmod(int(index[n, i, j]), 6)
        assert torch.equal(taken[n, i, j], tokens[n, row, column])
        assert places[n, i, j] == table[0, row, column]


def test_memory_layout_does_not_matter():
    image = torch.randn(2, 5, 4, 6)
    index = batch_index("random", 2, (4, 6), 0, [0, 1])
    view = image.permute(0, 2, 3, 1)
    assert torch.equal(take_visible(view, index), take_visible(view.contiguous(), index))


def test_gradients_reach_visible_tokens_only():
    tokens = torch.randn(2, 4, 6, 3, requires_grad=True)
    index = batch_index("lattice", 2, (4, 6), 0, [0, 1])
    take_visible(tokens, index).sum().backward()
    hidden = hidden_mask(index, (4, 6)).reshape(2, 4, 6)
    assert (tokens.grad[hidden] == 0).all()
    assert (tokens.grad[~hidden] == 1).all()


@pytest.mark.parametrize(("cell", "part"), [(1, 0.0), (2, 3 / 4), (3, 8 / 9), (4, 15 / 16)])
@pytest.mark.parametrize("kind", ["lattice", "random"])
def test_hidden_is_what_is_not_visible(kind, cell, part):
    index = batch_index(kind, cell, (12, 24), 0, [3, 4])
    hidden = hidden_mask(index, (12, 24))
    assert (hidden.dtype, tuple(hidden.shape)) == (torch.bool, (2, 288))
    for row, places in zip(hidden, index, strict=True):
        assert row.float().mean() == pytest.approx(part)
        assert not row[places.flatten()].any()


@pytest.mark.parametrize("attention", ["global", "windowed"])
@pytest.mark.parametrize("kind", ["lattice", "random"])
def test_no_hidden_pixel_reaches_the_encoder(kind, attention):
    """Hidden patches changed altogether: features stay bit for bit. One visible pixel: not."""
    torch.manual_seed(0)
    vit = ViT(dim=24, depth=3, heads=2, taps=(1, 2, 3), attention=attention).eval()
    grid = (32, 64)
    index = batch_index(kind, 2, grid, 1, [0, 1])
    hidden = hidden_mask(index, grid).reshape(2, 1, *grid)
    pixels = hidden.repeat_interleave(16, 2).repeat_interleave(16, 3)

    def encode(image):
        tokens = vit.patchify(image) + vit.positions_for(*grid)
        late = vit.run_blocks(take_visible(tokens, index))
        # the other order, positions after choosing, is the same
        chosen = take_visible(vit.patchify(image), index)
        early = vit.run_blocks(chosen + take_positions(vit.positions_for(*grid), index))
        assert all(torch.equal(a, b) for a, b in zip(late, early, strict=True))
        return late

    image = torch.randn(2, 3, 512, 1024)
    with torch.no_grad():
        before = encode(image)
        after = encode(torch.where(pixels, 1e3 * torch.randn_like(image), image))
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        seen = image.clone()
        row, column = divmod(int(index[0, 5, 7]), 64)
        seen[0, 0, row * 16 + 3, column * 16 + 9] += 1.0
        assert all(not torch.equal(a, b) for a, b in zip(before, encode(seen), strict=True))


@pytest.mark.parametrize("attention", ["global", "windowed"])
def test_taps_may_be_chosen_and_later_blocks_are_not_run(attention):
    torch.manual_seed(0)
    vit = ViT(dim=24, depth=6, heads=2, taps=(3, 6), attention=attention).eval()
    tokens = torch.randn(2, 16, 32, 24)
    calls = []
    for number, block in enumerate(vit.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    with torch.no_grad():
        own = vit.run_blocks(tokens)
        assert calls == [1, 2, 3, 4, 5, 6]
        calls.clear()
        chosen = vit.run_blocks(tokens, [1, 3])
        assert calls == [1, 2, 3]
        assert torch.equal(chosen[1], own[0])
        assert torch.equal(vit.run_blocks(tokens, (6,))[0], own[1])
        assert torch.equal(chosen[0].flatten(1, 2), vit.run_blocks(tokens, (1,))[0].flatten(1, 2))
    for wrong in ([], [0], [3, 2], [2, 2], [7]):
        with pytest.raises(InputError, match=r"must rise within the blocks 1\.\.6"):
            vit.run_blocks(tokens, wrong)


def test_all_blocks_are_run_where_no_taps_are_given():
    vit = ViT(dim=24, depth=4, heads=2, taps=(2,), attention="global")
    calls = []
    for number, block in enumerate(vit.blocks, start=1):
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
    vit.run_blocks(torch.randn(1, 2, 2, 24))
    assert calls == [1, 2, 3, 4]


@pytest.mark.parametrize("attention", ["global", "windowed"])
def test_checkpointing_recomputes_and_gives_the_same_gradients(attention, monkeypatch):
    torch.manual_seed(0)
    vit = ViT(dim=24, depth=3, heads=2, taps=(1, 3), attention=attention)
    tokens = torch.randn(2, 16, 32, 24)
    calls = []
    vit.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    answers = []
    for checkpointing in (False, True):
        vit.zero_grad()
        calls.clear()
        features = vit.run_blocks(tokens, checkpointing=checkpointing)
        sum(feature.square().mean() for feature in features).backward()
        gradients = [p.grad.clone() for p in vit.blocks.parameters()]
        answers.append((features, gradients, len(calls)))
    (plain, grads, once), (recomputed, again, twice) = answers
    assert all(torch.equal(a, b) for a, b in zip(plain, recomputed, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(grads, again, strict=True))
    assert (once, twice) == (1, 2)
    monkeypatch.setattr(_vit, "checkpoint", None)  # calling it would fail
    with torch.no_grad():
        vit.run_blocks(tokens, checkpointing=True)
