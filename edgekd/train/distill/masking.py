"""Which patches an encoder sees, and the tokens that are left.

The visible patches always form a grid of ``(h / cell, w / cell)``, because windows, relative
positions and dilated convolutions work on grids. With ``lattice`` it is a true one: one patch out
of every ``cell x cell`` block, so that neighbours stay neighbours. With ``random`` patches from
anywhere are squeezed into a grid of that size, in reading order, as the authors' code does; their
places in it say little about their places in the image.

A mask is a function of (seed, number of the crop) alone: no random state has to be saved, and the
teacher and the student get the same one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

KINDS = ("lattice", "random", "none")
#: keeps masks apart from the other draws that are made with (seed, number), such as crops.
STREAM = 0x3A5C


def visible_index(
    kind: str, cell: int, grid: tuple[int, int], seed: int, number: int
) -> NDArray[np.int64]:
    """The visible patches of one crop.

    Args:
        kind: ``lattice`` (one patch, drawn uniformly, in every block of ``cell x cell``),
            ``random`` (as many, drawn without replacement from the whole grid, rising) or ``none``
            (all).
        cell: side of the block in patches, at least 1; 1 shows all.
        grid: height and width of the image in patches, multiples of ``cell``.
        seed, number: of the run and of the crop, both at least 0; the mask is a function of them.

    Returns:
        ``(h / cell, w / cell)`` int64, flat indices (row * w + column) into the grid. Its size is
        ``(h, w)`` with ``none``.

    Raises:
        InputError: no such kind, a cell below 1, or a grid that is not a multiple of the cell.
    """
    if kind not in KINDS:
        raise InputError(
            f"mask kind '{kind}' does not exist{nearest(kind, list(KINDS))} "
            f"(valid: {', '.join(KINDS)})"
        )
    if cell < 1:
        raise InputError(f"the side of a mask's cell must be 1 patch or more, received {cell}")
    height, width = grid
    if kind == "none":
        cell = 1
    if height % cell or width % cell or not height * width:
        raise InputError(
            f"a grid of {height} x {width} patches (height x width) cannot be masked: both sides "
            f"must be multiples of {cell}, so that one patch of every {cell} x {cell} stays "
            "visible; choose another crop_px or mask.ratio"
        )
    rows, columns = height // cell, width // cell
    if cell == 1:
        return np.arange(height * width, dtype=np.int64).reshape(height, width)
    random = np.random.default_rng([seed, number, STREAM])
    if kind == "random":
        drawn = random.choice(height * width, size=rows * columns, replace=False, shuffle=False)
        return np.sort(drawn).astype(np.int64).reshape(rows, columns)
    place = random.integers(0, cell * cell, size=(rows, columns))
    row = np.arange(rows)[:, None] * cell + place // cell
    column = np.arange(columns)[None, :] * cell + place % cell
    index: NDArray[np.int64] = (row * width + column).astype(np.int64)
    return index


def batch_index(
    kind: str,
    cell: int,
    grid: tuple[int, int],
    seed: int,
    numbers: Sequence[int],
    device: torch.device | str | None = None,
) -> Tensor:
    """:func:`visible_index` of several crops: ``(N, h / cell, w / cell)`` int64 on ``device``.

    Args:
        numbers: of the crops, one per image of the batch.

    Raises:
        InputError: as :func:`visible_index`.
    """
    stacked = np.stack([visible_index(kind, cell, grid, seed, number) for number in numbers])
    return torch.from_numpy(stacked).to(device)


def take_visible(tokens: Tensor, index: Tensor) -> Tensor:
    """The visible ones of an image's tokens.

    Args:
        tokens: ``(N, h, w, D)``, any memory layout.
        index: ``(N, h', w')`` int64 as :func:`batch_index` gives it.

    Returns:
        ``(N, h', w', D)``, contiguous; gradients reach the visible tokens only.
    """
    flat = tokens.flatten(1, 2)
    where = index.flatten(1)[:, :, None].expand(-1, -1, flat.shape[2])
    return flat.gather(1, where).reshape(*index.shape, flat.shape[2])


def take_positions(table: Tensor, index: Tensor) -> Tensor:
    """The positions of visible tokens: every token keeps that of its place in the whole image.

    Args:
        table: ``(1, h, w, D)``, shared by the batch.
        index: ``(N, h', w')`` int64.

    Returns:
        ``(N, h', w', D)``.
    """
    return table.reshape(-1, table.shape[-1])[index]


def hidden_mask(index: Tensor, grid: tuple[int, int]) -> Tensor:
    """Where patches are hidden.

    Args:
        index: ``(N, h', w')`` int64, the visible ones.
        grid: height and width of the image in patches.

    Returns:
        ``(N, h * w)`` bool, True where hidden, in the order of the flat indices.
    """
    hidden = torch.ones(index.shape[0], grid[0] * grid[1], dtype=torch.bool, device=index.device)
    return hidden.scatter_(1, index.flatten(1), False)
