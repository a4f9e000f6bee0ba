"""The reconstruction branch: patches, places, positions, windows and the loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import InputError
from edgekd.train.distill.mae import MaeBranch, patches, reconstruction_loss, unpatch
from edgekd.train.distill.masking import batch_index, hidden_mask


def branch(depth: int = 3, patch_px: int = 2) -> MaeBranch:
    torch.manual_seed(0)
    return MaeBranch(in_dim=12, patch_px=patch_px, dim=16, depth=depth, heads=2).eval()


@settings(max_examples=50, deadline=None)
@given(
    batch=st.integers(1, 3),
    rows=st.integers(1, 5),
    columns=st.integers(1, 5),
    patch_px=st.integers(1, 8),
)
def test_patches_and_back(batch, rows, columns, patch_px):
    image = torch.randn(batch, 3, rows * patch_px, columns * patch_px)
    cut = patches(image, patch_px)
    assert tuple(cut.shape) == (batch, rows * columns, patch_px**2 * 3)
    assert torch.equal(unpatch(cut, (rows, columns), patch_px), image)
    assert torch.equal(patches(unpatch(cut, (rows, columns), patch_px), patch_px), cut)


def test_the_order_within_a_patch_is_row_column_channel():
    image = torch.randn(2, 3, 8, 12)
    cut = patches(image, 4)
    for row, column, y, x, channel in ((0, 0, 0, 0, 0), (1, 2, 3, 1, 2), (1, 0, 0, 3, 1)):
        value = cut[1, row * 3 + column, (y * 4 + x) * 3 + channel]
        assert value == image[1, channel, row * 4 + y, column * 4 + x]


@pytest.mark.parametrize(("height", "width"), [(8, 10), (10, 8), (0, 8)])
def test_an_image_that_cannot_be_cut(height, width):
    with pytest.raises(InputError, match=f"{height} x {width} px .* multiples of 4 px"):
        patches(torch.zeros(1, 3, height, width), 4)


@pytest.mark.parametrize("grid", [(4, 6), (16, 32)])
@pytest.mark.parametrize("kind", ["lattice", "random"])
def test_shapes(kind, grid):
    index = batch_index(kind, 2, grid, 0, [0, 1])
    out = branch()(torch.randn(*index.shape, 12), index, grid)
    assert tuple(out.shape) == (2, grid[0] * grid[1], 12)


@pytest.mark.parametrize("grid", [(4, 6), (16, 32)])
def test_gradients_reach_everything(grid):
    model = branch().train()
    index = batch_index("lattice", 2, grid, 0, [0, 1])
    visible = torch.randn(*index.shape, 12, requires_grad=True)
    prediction = model(visible, index, grid)
    goal = torch.randn_like(prediction)
    reconstruction_loss(prediction, goal, hidden_mask(index, grid), False).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    assert (visible.grad.abs().sum(-1) > 0).all()


def seen_by(model: MaeBranch, grid: tuple[int, int], place: int) -> torch.Tensor:
    """Which predictions change when the visible token at one place of the grid does."""
    index = batch_index("none", 1, grid, 0, [0])
    visible = torch.randn(1, *grid, 12)
    other = visible.clone()
    other.view(1, -1, 12)[0, place] += 3.0
    with torch.no_grad():
        changed = model(visible, index, grid) != model(other, index, grid)
    return changed[0].any(dim=-1).reshape(grid)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_a_window_is_left_in_the_global_block(depth):
    """Block 3, or the last of fewer, is global: one token reaches every patch."""
    model = branch(depth)
    numbers = [n for n in range(1, depth + 1) if model.is_global(n)]
    assert numbers == [min(3, depth)]
    assert seen_by(model, (32, 48), 700).all()


def test_the_other_blocks_see_their_own_window():
    """Global blocks taken out of the branch: a token then stays within 16 x 16 of the image."""
    model = branch(4)
    model.blocks[2] = torch.nn.Identity()
    seen = seen_by(model, (32, 48), 18 * 48 + 33)
    window = torch.zeros(32, 48, dtype=torch.bool)
    window[16:32, 32:48] = True
    assert torch.equal(seen, window)


def test_a_grid_that_windows_do_not_fit_is_global_throughout():
    model = branch(2)
    model.blocks[1] = torch.nn.Identity()
    assert seen_by(model, (16, 24), 0).all()


def test_windowed_blocks_equal_attention_on_each_crop():
    """Independent of the branch's reordering: one windowed block on each piece of the grid."""
    model = branch(4)
    model.blocks[1] = model.blocks[2] = model.blocks[3] = torch.nn.Identity()
    grid = (32, 32)
    index = batch_index("lattice", 2, grid, 0, [0])
    visible = torch.randn(1, 16, 16, 12)
    with torch.no_grad():
        got = model(visible, index, grid).reshape(32, 32, 12)
        tokens = model.mask_token.repeat(1, 1024, 1)
        tokens[0, index.flatten()] = model.embed(visible).reshape(256, 16)
        tokens = (tokens + model.positions).reshape(32, 32, 16)
        for row in (0, 16):
            for column in (0, 16):
                crop = tokens[row : row + 16, column : column + 16].reshape(1, 256, 16)
                out = model.pixels(model.norm(model.blocks[0](crop))).reshape(16, 16, 12)
                torch.testing.assert_close(
                    got[row : row + 16, column : column + 16], out, atol=1e-5, rtol=1e-5
                )


@pytest.mark.parametrize("grid", [(4, 4), (16, 16)])
def test_the_place_of_a_visible_token_matters(grid):
    """Two tokens change places; without decoder positions the others could not notice."""
    model = branch()
    index = batch_index("lattice", 2, grid, 0, [0])
    swapped = index.clone()
    swapped[0, 0, 0], swapped[0, 1, 1] = index[0, 1, 1], index[0, 0, 0]
    visible = torch.randn(*index.shape, 12)
    hidden = hidden_mask(index, grid)
    with torch.no_grad():
        difference = model(visible, index, grid) - model(visible, swapped, grid)
    assert difference[hidden].abs().max() > 1e-3


def test_hidden_patches_get_answers_of_their_own():
    model = branch()
    index = batch_index("lattice", 2, (8, 8), 0, [0])
    with torch.no_grad():
        painted = model(torch.randn(*index.shape, 12), index, (8, 8))
    painted = painted[hidden_mask(index, (8, 8))]
    assert torch.pdist(painted).min() > 1e-4


def test_the_grid_may_change_between_calls():
    """Same number of patches, other shape: the positions must follow."""
    model = branch()

    def answer(grid):
        index = batch_index("none", 1, grid, 0, [0])
        with torch.no_grad():
            return model(torch.ones(1, *grid, 12), index, grid)

    wide, tall = answer((4, 8)), answer((8, 4))
    assert not torch.equal(wide, tall)
    assert torch.equal(answer((4, 8)), wide)
    assert "positions" not in model.state_dict()


def test_visible_patches_do_not_count_in_the_loss():
    index = batch_index("lattice", 2, (4, 6), 0, [0, 1])
    hidden = hidden_mask(index, (4, 6))
    prediction, target = torch.randn(2, 24, 12), torch.randn(2, 24, 12)
    before = reconstruction_loss(prediction, target, hidden, False)
    assert before == pytest.approx(float((prediction - target)[hidden].square().mean()), rel=1e-6)
    prediction[~hidden] += 100.0
    target[~hidden] -= 100.0
    assert torch.equal(reconstruction_loss(prediction, target, hidden, False), before)
    prediction[0, int(hidden[0].nonzero()[0])] += 1.0
    assert not torch.equal(reconstruction_loss(prediction, target, hidden, False), before)


def test_hidden_predictions_depend_on_visible_tokens_and_only_on_them():
    model = branch()
    grid = (16, 16)
    index = batch_index("lattice", 2, grid, 0, [0])
    hidden = hidden_mask(index, grid)
    visible = torch.randn(*index.shape, 12, requires_grad=True)
    loss = reconstruction_loss(model(visible, index, grid), torch.randn(1, 256, 12), hidden, False)
    (gradient,) = torch.autograd.grad(loss, visible)
    assert (gradient.abs().sum(-1) > 0).all()


def test_patch_norm_is_that_of_mae():
    hidden = torch.ones(1, 2, dtype=torch.bool)
    target = torch.stack([5 + 2 * torch.randn(12), torch.full((12,), 3.0)])[None]
    normal = (target[0, 0] - target[0, 0].mean()) / (target[0, 0].var(unbiased=True) + 1e-6).sqrt()
    right = torch.stack([normal, torch.zeros(12)])[None]
    assert reconstruction_loss(right, target, hidden, True) == pytest.approx(0.0, abs=1e-10)
    assert reconstruction_loss(right + 2, target, hidden, True) == pytest.approx(4.0, rel=1e-5)
    assert reconstruction_loss(target, target, hidden, True) > 1
    assert reconstruction_loss(target, target, hidden, False) == 0


def test_the_loss_of_half_precision_is_float32():
    hidden = torch.ones(1, 4, dtype=torch.bool)
    half = torch.zeros(1, 4, 12, dtype=torch.bfloat16)
    loss = reconstruction_loss(half, half + 1, hidden, False)
    assert (loss.dtype, float(loss)) == (torch.float32, 1.0)


def test_nothing_hidden_is_no_loss():
    prediction = torch.randn(1, 4, 12, requires_grad=True)
    loss = reconstruction_loss(prediction, torch.randn(1, 4, 12), torch.zeros(1, 4).bool(), False)
    loss.backward()
    assert loss == 0
    assert not prediction.grad.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 18, "heads": 2}, "width 18 must be a multiple of 4"),
        ({"dim": 16, "heads": 3}, "of its 3 heads"),
        ({"depth": 0}, "at least 1 block"),
    ],
)
def test_wrong_sizes_are_refused(options, message):
    sizes = {"in_dim": 12, "patch_px": 2, "dim": 16, "depth": 1, "heads": 2} | options
    with pytest.raises(InputError, match=message):
        MaeBranch(**sizes)
