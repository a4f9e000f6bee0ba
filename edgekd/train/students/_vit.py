"""The plain vision transformer behind every ``vit_*`` student (Dosovitskiy et al. 2021).

Square patches, no class token, pre-norm blocks, fixed 2-D sine-cosine positions, and features
tapped after chosen blocks. Blocks and taps are numbered from 1, as the papers do.

Attention is ``global`` (every token sees every token) or ``windowed``: tokens see their own
16 x 16 window, and every third block stays global so that windows exchange what they know
(the plan of ViTDet, Li et al. 2022, section 3). At 1024 x 1024 pixels the windowed plan needs
about 0.6 times the arithmetic of the global one.

Pipeline, with every step public so that distillation can run the encoder on visible tokens only::

    image (N, 3, H, W) -> patchify -> tokens (N, h, w, D)   h = H / patch, w = W / patch
                       -> + positions(h, w)                 two tables, (1, 1, w, D) + (1, h, 1, D)
                       -> run_blocks                        list of (N, h, w, D), one per tap
                       -> normalize                         list of (N, D, h, w), one per tap
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgekd.contracts.registry import load, nearest
from edgekd.errors import InputError
from edgekd.train.students._base import Segmenter

ATTENTIONS = ("global", "windowed")
HEADS = ("linear", "upernet")
WINDOW_TOKENS = 16
GLOBAL_EVERY = 3
LAYER_NORM_EPS = 1e-6
# ImageNet statistics in 0-255 units; SAM, the teacher of Mask-CDKD, uses the same numbers.
MEAN_RGB = (123.675, 116.28, 103.53)
STD_RGB = (58.395, 57.12, 57.375)


def sincos_positions(height: int, width: int, dim: int) -> NDArray[np.float32]:
    """Fixed 2-D sine-cosine positions (MAE, He et al. 2022, appendix A.1; Vaswani et al. 2017).

    The first half of the channels encodes the column, the second half the row, each as
    ``[sin(p * f), cos(p * f)]`` with ``f_i = 10000 ** (-i / (dim / 4))``, ``p`` in tokens from 0.

    Args:
        height, width: the grid in tokens.
        dim: channels, a multiple of 4.

    Returns:
        ``(height, width, dim)`` float32 in -1..1, computed in float64.
    """
    frequency = 10000.0 ** (-np.arange(dim // 4, dtype=np.float64) / (dim / 4))

    def encode(count: int) -> NDArray[np.float64]:
        angle = np.arange(count, dtype=np.float64)[:, None] * frequency[None, :]
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    columns = np.broadcast_to(encode(width)[None, :, :], (height, width, dim // 2))
    rows = np.broadcast_to(encode(height)[:, None, :], (height, width, dim // 2))
    return np.concatenate([columns, rows], axis=2).astype(np.float32)


def attend(query: Tensor, key: Tensor, value: Tensor, *, explicit: bool) -> Tensor:
    """Attention ``softmax(Q K^T) V``; the caller has already scaled Q.

    Args:
        query, key, value: ``(B, heads, T, head_dim)``.
        explicit: spell the two products and the softmax out. The exported graph must hold this
            form (no ``Attention`` op; scale in front of the first product, which is what
            TensorRT's fused kernel looks for). Otherwise PyTorch's fused kernel runs, which does
            not keep the ``(B, heads, T, T)`` map. Both give the same numbers up to rounding.

    Returns:
        ``(B, heads, T, head_dim)``.
    """
    if explicit:
        return torch.softmax(query @ key.transpose(-2, -1), dim=-1) @ value
    return functional.scaled_dot_product_attention(query, key, value, scale=1.0)


def _exporting() -> bool:
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


class Attention(nn.Module):
    """Multi-head self-attention over tokens ``(B, T, dim)``.

    Args:
        dim: channels, a multiple of ``heads``.
        heads: number of heads; each works on ``dim / heads`` channels.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, T, dim)`` -> ``(B, T, dim)``."""
        length, dim = tokens.shape[1], tokens.shape[2]
        # Sizes spelled out: chunk() exports as a Split with an attribute that opset 17 lacks.
        query, key, value = self.qkv(tokens).split([dim, dim, dim], dim=-1)
        split = (-1, length, self.heads, self.head_dim)
        mixed = attend(
            (query * self.scale).reshape(split).transpose(1, 2),
            key.reshape(split).transpose(1, 2),
            value.reshape(split).transpose(1, 2),
            explicit=_exporting(),
        )
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, length, dim))
        return out


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron with exact (erf) GELU.

    Args:
        dim: channels.
        heads: attention heads.
        mlp_ratio: width of the perceptron's hidden layer over ``dim``.
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_ratio * dim),
            nn.GELU(approximate="none"),
            nn.Linear(mlp_ratio * dim, dim),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """``(B, T, dim)`` -> ``(B, T, dim)``."""
        tokens = tokens + self.attention(self.norm1(tokens))
        out: Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


class ViT(nn.Module):
    """Vision transformer encoder without a class token.

    Args:
        dim: token width, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: attention heads per block.
        taps: blocks (1-based, rising) whose outputs are the features.
        mlp_ratio: hidden width of the perceptron over ``dim``.
        patch_px: side of a patch in pixels.
        attention: ``global`` or ``windowed`` (module docstring).

    Attributes:
        side_multiple: height and width of the image must be multiples of this many pixels:
            the patch for ``global``, patch x window for ``windowed``.
        channels: channels of each tapped feature.
        strides: pixels per token of each tapped feature (all equal ``patch_px``).
        columns, rows: the positions of the grid seen last as two tables, ``(1, 1, w, dim)`` and
            ``(1, h, 1, dim)``, each zero in the other's half of the channels. Constants, not saved.
            Adding one after the other gives the bits of adding the whole table, and an exported
            graph holds ``h + w`` vectors instead of ``h * w`` (64 times less of the tile).
    """

    columns: Tensor
    rows: Tensor

    def __init__(
        self,
        *,
        dim: int,
        depth: int,
        heads: int,
        taps: Sequence[int],
        mlp_ratio: int = 4,
        patch_px: int = 16,
        attention: str = "windowed",
    ) -> None:
        super().__init__()
        _choose("attention", attention, ATTENTIONS)
        if dim % 4 or dim % heads:
            raise InputError(f"ViT width {dim} must be a multiple of 4 and of its {heads} heads")
        _check_taps(taps, depth)
        self.dim = dim
        self.patch_px = patch_px
        self.attention = attention
        self.taps = tuple(taps)
        self.channels = [dim] * len(self.taps)
        self.strides = [patch_px] * len(self.taps)
        self.side_multiple = patch_px * (WINDOW_TOKENS if attention == "windowed" else 1)
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=patch_px, stride=patch_px)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        # One norm for all taps, as in DINOv2 (Oquab et al. 2023): it evens out the growth of the
        # residual stream with depth, and a gain per tap would only repeat the head's first layer.
        # Plain ViT weights bring exactly this norm, and no parameter is idle with any head.
        self.norm = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.register_buffer("columns", torch.empty(1, 1, 0, dim), persistent=False)
        self.register_buffer("rows", torch.empty(1, 0, 1, dim), persistent=False)
        self._rounded = torch.float32  # what the tables were rounded to when they were made
        self._initialize()

    def _initialize(self) -> None:
        """Weights as in MAE's code: Xavier for the linears and the flattened patch embedding."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.patch_embed.weight.view(self.dim, -1))
        if self.patch_embed.bias is not None:
            nn.init.zeros_(self.patch_embed.bias)

    def is_global(self, number: int) -> bool:
        """Whether block ``number`` (1-based) sees all tokens rather than its own window."""
        return self.attention == "global" or number % GLOBAL_EVERY == 0

    def patchify(self, image: Tensor) -> Tensor:
        """Normalised image ``(N, 3, H, W)`` -> tokens ``(N, h, w, dim)`` without positions.

        Raises:
            InputError: a side is not a multiple of ``side_multiple``.
        """
        height, width = image.shape[-2], image.shape[-1]
        if height % self.side_multiple or width % self.side_multiple or not height * width:
            raise InputError(
                f"image of {height} x {width} px (height x width) does not fit: with "
                f"{self.attention} attention both sides must be multiples of "
                f"{self.side_multiple} px; choose such a tile size or pad the image"
            )
        tokens: Tensor = self.patch_embed(image)
        return tokens.permute(0, 2, 3, 1)

    def positions_for(self, height: int, width: int) -> Tensor:
        """Position table ``(1, height, width, dim)`` of a token grid, on the encoder's device.

        Subsample it together with the tokens when only some of them are run: a visible token keeps
        the position that it had in the full grid.
        """
        columns, rows = self._tables_for(height, width)
        return columns + rows

    def place(self, tokens: Tensor) -> Tensor:
        """Tokens ``(N, h, w, dim)`` of a whole grid -> the same with their positions added."""
        columns, rows = self._tables_for(tokens.shape[1], tokens.shape[2])
        return tokens + columns + rows

    def _tables_for(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """``columns`` and ``rows`` of a grid; the last are kept, an exported graph's constants."""
        columns, rows, like = self.columns, self.rows, self.patch_embed.weight
        if (rows.shape[1], columns.shape[2]) != (height, width) or self._rounded != like.dtype:
            table = torch.from_numpy(sincos_positions(height, width, self.dim)[None])
            half = self.dim // 2
            columns = torch.zeros(1, 1, width, self.dim, device=like.device, dtype=like.dtype)
            rows = torch.zeros(1, height, 1, self.dim, device=like.device, dtype=like.dtype)
            columns[..., :half] = table[:, :1, :, :half]
            rows[..., half:] = table[:, :, :1, half:]
            if not _exporting():  # a traced function must not change the module
                self.columns, self.rows, self._rounded = columns, rows, like.dtype
        return columns, rows

    def run_blocks(
        self, tokens: Tensor, taps: Sequence[int] | None = None, checkpointing: bool = False
    ) -> list[Tensor]:
        """Tokens with positions ``(N, h, w, dim)`` -> residual stream after each tapped block.

        The grid may be any subsample of the image's grid. With ``windowed`` attention its sides
        must be multiples of 16 tokens, and windows are counted on the grid given here.

        Inside, windowed tokens are kept in window order: a global block does not care about the
        order of its tokens, so nothing is moved between blocks, only at the start and the taps.

        Args:
            tokens: ``(N, h, w, dim)`` with positions.
            taps: blocks (1-based, rising) to give instead of the encoder's own; those behind the
                last are not run. Where absent, the encoder's taps and all blocks.
            checkpointing: recompute each block in the backward pass instead of keeping its
                activations; nothing changes where no gradient is asked for.

        Returns:
            One ``(N, h, w, dim)`` per tap, shallow first, before the taps' norms.

        Raises:
            InputError: taps do not rise within the blocks.
        """
        wanted = self.taps if taps is None else tuple(taps)
        if taps is not None:
            _check_taps(wanted, len(self.blocks))
        last = len(self.blocks) if taps is None else wanted[-1]
        recompute = checkpointing and torch.is_grad_enabled()
        grid = (tokens.shape[1], tokens.shape[2])
        windowed = self.attention == "windowed"
        stream = to_windows(tokens) if windowed else tokens.flatten(1, 2)
        features: list[Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            if number > last:
                break
            length = grid[0] * grid[1] if self.is_global(number) else WINDOW_TOKENS**2
            stream = stream.reshape(-1, length, self.dim)
            stream = checkpoint(block, stream, use_reentrant=False) if recompute else block(stream)
            if number in wanted:
                features.append(
                    from_windows(stream, grid)
                    if windowed
                    else stream.reshape(-1, grid[0], grid[1], self.dim)
                )
        return features

    def normalize(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Tapped streams ``(N, h, w, dim)`` -> LayerNorm -> feature maps ``(N, dim, h, w)``."""
        return [self.norm(feature).permute(0, 3, 1, 2) for feature in features]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Normalised image ``(N, 3, H, W)`` -> features ``(N, dim, H/16, W/16)``, one per tap."""
        return self.normalize(self.run_blocks(self.place(self.patchify(image))))


def to_windows(tokens: Tensor) -> Tensor:
    """``(N, h, w, D)`` -> ``(N * windows, 256, D)``: windows, and tokens in them, row by row."""
    side = WINDOW_TOKENS
    rows, columns, dim = tokens.shape[1] // side, tokens.shape[2] // side, tokens.shape[3]
    cells = tokens.reshape(-1, rows, side, columns, side, dim)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, side * side, dim)


def from_windows(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Inverse of :func:`to_windows`; takes any grouping of the same order of tokens."""
    side, dim = WINDOW_TOKENS, tokens.shape[-1]
    cells = tokens.reshape(-1, grid[0] // side, grid[1] // side, side, side, dim)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(-1, grid[0], grid[1], dim)


def _check_taps(taps: Sequence[int], depth: int) -> None:
    if not taps or list(taps) != sorted(set(taps)) or not 1 <= taps[0] <= taps[-1] <= depth:
        raise InputError(f"ViT taps {list(taps)} must rise within the blocks 1..{depth}")


def _choose(what: str, value: str, valid: Sequence[str]) -> str:
    if value not in valid:
        raise InputError(
            f"{what} '{value}' does not exist{nearest(value, list(valid))} "
            f"(valid: {', '.join(valid)})"
        )
    return value


def build_vit(
    name: str,
    num_classes: int,
    *,
    attention: str,
    head: str,
    pretrained: bool | None,
    dim: int,
    depth: int,
    heads: int,
    taps: Sequence[int],
) -> Segmenter:
    """Assemble a ViT student; the ``vit_*`` files call it with their numbers.

    Args:
        name: the student's name.
        num_classes: output channels, at least 1.
        attention: ``global`` or ``windowed``.
        head: ``linear`` or ``upernet``.
        pretrained: ``True`` is refused, no weights come with these students.
        dim, depth, heads, taps: see :class:`ViT`.

    Raises:
        InputError: an option does not exist or has no meaning here.
    """
    _choose("attention", attention, ATTENTIONS)
    _choose("head", head, HEADS)
    if pretrained:
        raise InputError(
            f"student '{name}' has no bundled weights, so pretrained=True cannot be honoured; "
            "leave it out, or choose student 'lite0', which carries ImageNet weights"
        )
    encoder = ViT(dim=dim, depth=depth, heads=heads, taps=taps, attention=attention)
    build_head = load("edgekd.train.heads", head, "head").build
    decoder = build_head(encoder.channels, encoder.strides, num_classes)
    return Segmenter(
        encoder,
        decoder,
        name=name,
        num_classes=num_classes,
        stride=decoder.stride,
        side_multiple=int(np.lcm(encoder.side_multiple, decoder.side_multiple)),
        mean=MEAN_RGB,
        std=STD_RGB,
        options={"attention": attention, "head": head, "pretrained": False},
    )
