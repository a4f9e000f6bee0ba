"""The branch that paints hidden patches from visible ones (MAE, He et al. 2022)::

    visible tokens (N, h', w', in_dim) -> linear -> put at their places among mask tokens
        -> + positions of the whole grid -> blocks -> LayerNorm -> linear
        -> pixels of every patch (N, h * w, patch_px ** 2 * 3)

It ends with training; the student that is deployed has no such branch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgekd.errors import InputError
from edgekd.train.students._vit import (
    GLOBAL_EVERY,
    LAYER_NORM_EPS,
    WINDOW_TOKENS,
    Block,
    from_windows,
    sincos_positions,
    to_windows,
)

MLP_RATIO = 4
PATCH_NORM_EPS = 1e-6


def patches(image: Tensor, patch_px: int) -> Tensor:
    """Cut an image into patches.

    Args:
        image: ``(N, 3, H, W)``.
        patch_px: side of a patch; ``H`` and ``W`` are multiples of it.

    Returns:
        ``(N, h * w, patch_px ** 2 * 3)``: patches row by row, and in a patch row, column, channel
        (the channel runs fastest), as MAE does.

    Raises:
        InputError: a side that is not a multiple of the patch.
    """
    batch, channels, height, width = image.shape
    if height % patch_px or width % patch_px or not height * width:
        raise InputError(
            f"image of {height} x {width} px (height x width) cannot be cut into patches: both "
            f"sides must be multiples of {patch_px} px"
        )
    rows, columns = height // patch_px, width // patch_px
    cut = image.reshape(batch, channels, rows, patch_px, columns, patch_px)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatch(patches: Tensor, grid: tuple[int, int], patch_px: int) -> Tensor:
    """Inverse of :func:`patches`.

    Args:
        patches: ``(N, h * w, patch_px ** 2 * 3)``.
        grid: ``(h, w)``, in patches.
        patch_px: side of a patch.

    Returns:
        ``(N, 3, h * patch_px, w * patch_px)``.
    """
    rows, columns = grid
    cut = patches.reshape(-1, rows, columns, patch_px, patch_px, 3)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(-1, 3, rows * patch_px, columns * patch_px)


def reconstruction_loss(
    prediction: Tensor, target_patches: Tensor, hidden: Tensor, patch_norm: bool
) -> Tensor:
    """Mean squared error over the hidden patches only.

    Args:
        prediction, target_patches: ``(N, h * w, patch_px ** 2 * 3)``; the target's pixels are
            already normalised by the data-set constants.
        hidden: ``(N, h * w)`` bool; 0 hidden patches give loss 0 and gradient 0.
        patch_norm: compare with targets normalised each by its own mean and (unbiased) variance,
            over its pixels and channels (MAE's ``norm_pix_loss``; 1e-6 is added to the variance).

    Returns:
        Scalar, float32 or wider. Every hidden patch of the batch counts the same.
    """
    target = target_patches.to(torch.promote_types(target_patches.dtype, torch.float32))
    if patch_norm:
        variance, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) * (variance + PATCH_NORM_EPS).rsqrt()
    per_patch = (prediction - target).square().mean(dim=-1)
    # All patches are computed and most are kept: picking them would wait for the device.
    kept = torch.where(hidden, per_patch, torch.zeros_like(per_patch))
    return kept.sum() / hidden.sum().clamp(min=1)


class MaeBranch(nn.Module):
    """Paints all patches of an image from its visible tokens.

    Tokens see their own 16 x 16 window, in the grid of the whole image, and every third block
    (3, 6, ..., counted from 1) sees all of them; with fewer than three blocks the last one does.
    Where the grid is not a multiple of 16, all blocks are global.

    Args:
        in_dim: width of the visible tokens.
        patch_px: side of a patch.
        dim: width inside, a multiple of 4 and of ``heads``.
        depth: number of blocks, at least 1.
        heads: attention heads per block.

    Attributes:
        positions: ``(1, h * w, dim)``, fixed sine-cosine table of the grid seen last; not saved.

    Raises:
        InputError: a width that does not divide, or no blocks.
    """

    positions: Tensor

    def __init__(self, in_dim: int, patch_px: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        if dim % 4 or dim % heads:
            raise InputError(f"MAE width {dim} must be a multiple of 4 and of its {heads} heads")
        if depth < 1:
            raise InputError(f"the MAE branch needs at least 1 block, received depth {depth}")
        self.dim = dim
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads, MLP_RATIO) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.pixels = nn.Linear(dim, patch_px**2 * 3)
        self.register_buffer("positions", torch.empty(1, 0, dim), persistent=False)
        self._grid = (0, 0)
        self._initialize()

    def _initialize(self) -> None:
        """As in MAE's code: Xavier for the linears, 0.02 for the mask token."""
        nn.init.normal_(self.mask_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def is_global(self, number: int) -> bool:
        """Whether block ``number`` (1-based) sees the whole grid where windows fit into it."""
        depth = len(self.blocks)
        return number % GLOBAL_EVERY == 0 or (depth < GLOBAL_EVERY and number == depth)

    def _positions_for(self, grid: tuple[int, int]) -> Tensor:
        if self._grid != grid:
            table = torch.from_numpy(sincos_positions(grid[0], grid[1], self.dim))
            self.positions = table.reshape(1, -1, self.dim).to(self.mask_token)
            self._grid = grid
        return self.positions

    def forward(self, visible: Tensor, index: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pixels of all patches, the visible ones included (nobody asks for these).

        Args:
            visible: ``(N, h', w', in_dim)``.
            index: ``(N, h', w')`` int64, their places in the grid (row * w + column).
            grid: ``(h, w)`` of the whole image, in patches.

        Returns:
            ``(N, h * w, patch_px ** 2 * 3)``, in the order of :func:`patches`.
        """
        height, width = grid
        known = self.embed(visible.flatten(1, 2))
        places = index.flatten(1)[:, :, None].expand(-1, -1, self.dim)
        tokens = self.mask_token.to(known.dtype).expand(len(known), height * width, self.dim)
        tokens = tokens.scatter(1, places, known) + self._positions_for(grid)
        windowed = height % WINDOW_TOKENS == 0 and width % WINDOW_TOKENS == 0
        if windowed:
            tokens = to_windows(tokens.reshape(-1, height, width, self.dim))
        for number, block in enumerate(self.blocks, start=1):
            everything = not windowed or self.is_global(number)
            length = height * width if everything else WINDOW_TOKENS**2
            tokens = block(tokens.reshape(-1, length, self.dim))
        # Back to reading order before the last linear: patches have three numbers per pixel.
        if windowed:
            tokens = from_windows(tokens, grid)
        out: Tensor = self.pixels(self.norm(tokens.reshape(-1, height * width, self.dim)))
        return out
