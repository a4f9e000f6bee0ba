"""The image encoder of SAM (Segment Anything, Kirillov et al. 2023).

https://arxiv.org/abs/2304.02643, https://github.com/facebookresearch/segment-anything. A plain
vision transformer with absolute positions, pre-norm blocks, windows of 14 x 14 tokens, four blocks
with global attention, and relative positions split by axis (``q . R_row + q . R_column``, Li et al.
2022, https://arxiv.org/abs/2112.01526). Blocks are counted from 1.

Weights are read from Meta's files (``sam_vit_l_0b3195.pth``) or from the layout of Hugging Face
(``facebook/sam-vit-large``). The modules of ``transformers.SamVisionEncoder`` hold them; the
arithmetic is this file's own: it runs on any grid of tokens, with adapters, and does not depend on
how ``transformers`` calls its parts. The neck (256 channels, made for the mask decoder) is loaded,
so that a checkpoint is known to be complete, and never run: features are the residual stream.

On a grid other than the one of 1024 x 1024 pixels the absolute positions are interpolated
(bicubic) and so are the relative positions of the global blocks (linear, as SAM's ``get_rel_pos``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from edgekd.contracts.optional import require
from edgekd.errors import CheckpointError, InputError
from edgekd.train.teachers._base import Adapter, TransformerTeacher, choose_variant
from edgekd.train.teachers._weights import (
    randomize,
    read_state,
    refuse_not_finite,
    state_sha256,
)

VARIANTS = ("vit_l", "vit_b", "vit_h", "tiny")
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
PATCH_PX = 16
GRID = 64  # tokens per side of the 1024 px image that SAM was trained with
SEED = 0


class Size(NamedTuple):
    """Numbers of a variant; ``globals`` are the blocks with global attention, from 1."""

    dim: int
    depth: int
    heads: int
    globals: tuple[int, ...]
    window: int = 14
    file: str = ""
    model: str = ""


# segment_anything/build_sam.py; ``tiny`` is ours, for tests and shape checks.
SIZES = {
    "vit_b": Size(768, 12, 12, (3, 6, 9, 12), 14, "sam_vit_b_01ec64.pth", "sam-vit-base"),
    "vit_l": Size(1024, 24, 16, (6, 12, 18, 24), 14, "sam_vit_l_0b3195.pth", "sam-vit-large"),
    "vit_h": Size(1280, 32, 16, (8, 16, 24, 32), 14, "sam_vit_h_4b8939.pth", "sam-vit-huge"),
    "tiny": Size(96, 6, 3, (3, 6), 7),
}
#: parts of SAM that a dense teacher does not need.
LEFT_OUT = ("prompt_encoder", "mask_decoder", "shared_image_embedding", "pixel_mean", "pixel_std")
ENCODERS = ("image_encoder.", "vision_encoder.")  # Meta's prefix, Hugging Face's
# Beginnings of names: Meta's, and those of transformers; # stands for a number.
NAMES = (
    ("patch_embed.proj.", "patch_embed.projection."),
    ("blocks.#.norm#.", "layers.#.layer_norm#."),
    ("blocks.#.", "layers.#."),
    ("neck.0.", "neck.conv1."),
    ("neck.1.", "neck.layer_norm1."),
    ("neck.2.", "neck.conv2."),
    ("neck.3.", "neck.layer_norm2."),
)


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A parameter's name under the first pair (old beginning, new beginning) that fits it."""
    for old, new in pairs:
        pattern = re.escape(old).replace(re.escape("#"), r"(\d+)")
        if match := re.match(pattern, name):
            parts = new.split("#")
            numbers = [*match.groups(), ""]
            start = "".join(part + number for part, number in zip(parts, numbers, strict=False))
            return start + name[match.end() :]
    return name


def relative_table(table: Tensor, size: int) -> Tensor:
    """Relative positions along one axis, as SAM's ``get_rel_pos`` with as many keys as queries.

    Args:
        table: ``(L, head_dim)``, one row per distance from ``-(L - 1) / 2``.
        size: tokens along the axis; where ``L`` is not ``2 * size - 1`` the table is interpolated.

    Returns:
        ``(size, size, head_dim)``: row for query ``i`` and key ``j``.
    """
    length = 2 * size - 1
    if table.shape[0] != length:
        wide = table.float().T.unsqueeze(0)
        table = functional.interpolate(wide, size=length, mode="linear")[0].T.to(table.dtype)
    places = torch.arange(size, device=table.device)
    return table[places[:, None] - places[None, :] + size - 1]


def position_bias(query: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What relative positions add to the attention logits.

    Args:
        query: ``(B, heads, h, w, head_dim)``, not scaled.
        rows, columns: ``(h, h, head_dim)`` and ``(w, w, head_dim)`` of :func:`relative_table`.

    Returns:
        ``(B, heads, h * w, h * w)`` in the type of ``query``; the one big tensor of a block.
    """
    batch, heads, height, width, _ = query.shape
    by_row = query @ rows.to(query.dtype).transpose(1, 2)  # (B, heads, h, w, h)
    swapped = query.transpose(2, 3) @ columns.to(query.dtype).transpose(1, 2)
    by_column = swapped.transpose(2, 3)  # (B, heads, h, w, w)
    bias = by_row.unsqueeze(-1) + by_column.unsqueeze(-2)
    return bias.view(batch, heads, height * width, height * width)


def attend(attention: Any, tokens: Tensor, heads: int) -> Tensor:
    """Self-attention with relative positions over a grid: ``(B, h, w, D)`` -> the same shape.

    Args:
        attention: module with ``qkv``, ``proj``, ``rel_pos_h`` and ``rel_pos_w``.
    """
    batch, height, width, dim = tokens.shape
    qkv = attention.qkv(tokens).view(batch, height * width, 3, heads, dim // heads)
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, h * w, head_dim)
    bias = position_bias(
        query.unflatten(2, (height, width)),
        relative_table(attention.rel_pos_h, height),
        relative_table(attention.rel_pos_w, width),
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    out: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, height, width, dim))
    return out


def to_windows(tokens: Tensor, window: int) -> Tensor:
    """``(N, h, w, D)`` -> ``(N * windows, window, window, D)``.

    Grids that are no multiple of the window get zeros at the bottom and at the right; these take
    part in attention as keys, as in SAM's own code.
    """
    batch, height, width, dim = tokens.shape
    down, right = -height % window, -width % window
    if down or right:
        tokens = functional.pad(tokens, (0, 0, 0, right, 0, down))
    rows, columns = (height + down) // window, (width + right) // window
    split = tokens.reshape(batch, rows, window, columns, window, dim)
    return split.transpose(2, 3).reshape(-1, window, window, dim)


def from_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo :func:`to_windows`: back to ``(N, height, width, D)`` without the padding."""
    window, dim = windows.shape[1], windows.shape[3]
    rows, columns = -(-height // window), -(-width // window)
    split = windows.view(-1, rows, columns, window, window, dim).transpose(2, 3)
    return split.reshape(-1, rows * window, columns * window, dim)[:, :height, :width]


def block_parts(
    layer: Any, tokens: Tensor, window: int, heads: int
) -> tuple[Tensor, Tensor, Tensor]:
    """A block up to where an adapter comes in.

    Args:
        layer: of ``transformers.SamVisionEncoder``; only its parameters and layer norms are used.
        tokens: ``(N, h, w, D)``.
        window: side of its windows in tokens; 0 where attention is global.
        heads: number of attention heads.

    Returns:
        Tokens after attention, these normalised, and what the perceptron gives for the normalised
        ones, each ``(N, h, w, D)``.
    """
    normed = layer.layer_norm1(tokens)
    if window:
        mixed = attend(layer.attn, to_windows(normed, window), heads)
        tokens = tokens + from_windows(mixed, tokens.shape[1], tokens.shape[2])
    else:
        tokens = tokens + attend(layer.attn, normed, heads)
    normed = layer.layer_norm2(tokens)
    return tokens, normed, layer.mlp.lin2(functional.gelu(layer.mlp.lin1(normed)))


class SamEncoder(TransformerTeacher):
    """SAM's image encoder without its neck; see :class:`TransformerTeacher` for the interface.

    Args:
        encoder: ``transformers.SamVisionEncoder``, of which only the parameters are used.
        variant: key of :data:`SIZES`.
    """

    encoder: Any

    def __init__(self, encoder: nn.Module, variant: str) -> None:
        super().__init__()
        size = SIZES[variant]
        self.encoder = encoder
        self.name, self.variant = "sam", variant
        self.mean, self.std = MEAN, STD
        self.dim, self.depth, self.heads = size.dim, size.depth, size.heads
        self.patch_px = self.side_multiple = PATCH_PX
        self.channels = dict.fromkeys(range(1, size.depth + 1), size.dim)
        self.strides = dict.fromkeys(range(1, size.depth + 1), PATCH_PX)
        #: side of each block's window in tokens; 0 where attention is global.
        self.windows = [
            0 if block in size.globals else size.window for block in range(1, size.depth + 1)
        ]
        self.report = []
        self._parts = block_parts

    def patchify(self, image: Tensor) -> Tensor:
        """Normalised image ``(N, 3, H, W)`` -> tokens ``(N, H / 16, W / 16, D)`` with positions.

        Raises:
            InputError: a side that is not a multiple of 16 px.
        """
        self.check_image(image)
        tokens: Tensor = self.encoder.patch_embed.projection(image).permute(0, 2, 3, 1)
        table: Tensor = self.encoder.pos_embed
        if table.shape[1:3] != tokens.shape[1:3]:
            wide = table.permute(0, 3, 1, 2).float()
            wide = functional.interpolate(
                wide, size=tokens.shape[1:3], mode="bicubic", align_corners=False
            )
            table = wide.permute(0, 2, 3, 1).to(table.dtype)
        return tokens + table

    def run_block(self, index: int, tokens: Tensor, adapter: Adapter | None = None) -> Tensor:
        """Block ``index`` (from 0) on a grid of tokens ``(N, h, w, D)`` -> the same shape.

        ``adapter`` takes the place of the perceptron's output, see :meth:`run_blocks`.
        """
        layer, window = self.encoder.layers[index], self.windows[index]
        tokens, normed, update = self._parts(layer, tokens, window, self.heads)
        return tokens + (update if adapter is None else adapter(normed, update))

    def compile_blocks(self) -> None:
        """See :meth:`Teacher.compile_blocks`; adapters are compiled by who owns them."""
        self._parts = torch.compile(block_parts)

    def run_blocks(
        self,
        tokens: Tensor,
        taps: Sequence[int],
        adapters: Sequence[Adapter] | None = None,
        checkpointing: bool = False,
    ) -> list[Tensor]:
        """Run the blocks, see :meth:`TransformerTeacher.run_blocks`.

        ``checkpointing`` has an effect only where gradients are recorded.

        Raises:
            InputError: no such tap, or fewer adapters than blocks to run.
        """
        self.check_taps(taps)
        if adapters is not None and len(adapters) < taps[-1]:
            raise InputError(
                f"teacher sam runs {taps[-1]} blocks and got {len(adapters)} adapters; give one "
                "per block"
            )
        tokens = tokens.contiguous()  # or every layer norm would copy them
        recompute = checkpointing and torch.is_grad_enabled()
        outputs: list[Tensor] = []
        for index in range(taps[-1]):
            adapter = None if adapters is None else adapters[index]
            if recompute:
                tokens = checkpoint(self.run_block, index, tokens, adapter, use_reentrant=False)
            else:
                tokens = self.run_block(index, tokens, adapter)
            if index + 1 in taps:
                outputs.append(tokens)
        return outputs

    def features(self, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Normalised image ``(N, 3, H, W)`` -> ``(N, D, H / 16, W / 16)`` per tap.

        Raises:
            InputError: no such tap, or a side that is not a multiple of 16 px.
        """
        self.check_taps(taps)
        return [item.permute(0, 3, 1, 2) for item in self.run_blocks(self.patchify(image), taps)]


def container(variant: str) -> Any:
    """``transformers.SamVisionEncoder`` of a size, on the meta device: shapes without memory.

    Raises:
        EnvironmentLacksError: transformers is not installed.
    """
    library = require("transformers.models.sam.modeling_sam", "train", "hold SAM's weights")
    size = SIZES[variant]
    config = library.SamVisionConfig(
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        mlp_dim=4 * size.dim,
        window_size=size.window,
        global_attn_indexes=[block - 1 for block in size.globals],
        image_size=GRID * PATCH_PX,
        patch_size=PATCH_PX,
    )
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return library.SamVisionEncoder(config)


def sorted_out(
    state: dict[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The image encoder's tensors under the names of transformers, and a word on all others.

    Args:
        state: as stored: Meta's names or those of transformers, with the encoder's prefix or bare.

    Returns:
        Name -> tensor, name -> name in the file, and one counted line for each part that was left
        out.
    """
    prefixes = [p for p in ENCODERS if any(key.startswith(p) for key in state)]
    prefix = prefixes[0] if prefixes else ""
    inside: dict[str, Tensor] = {}
    original: dict[str, str] = {}
    outside: dict[str, int] = {}
    for key, value in state.items():
        part = key.split(".")[0]
        if not key.startswith(prefix) or part in LEFT_OUT:
            outside[part] = outside.get(part, 0) + 1
            continue
        name = renamed(key[len(prefix) :], NAMES)
        inside[name], original[name] = value, key
    report = [
        f"{part}: {count} tensors left out, "
        + ("not needed for features" if part in LEFT_OUT else "no part of SAM")
        for part, count in sorted(outside.items())
    ]
    return inside, original, report


def described(dim: int, depth: int) -> str:
    """What an encoder of this width and depth is called, e.g. for a message."""
    known = [v for v, size in SIZES.items() if (size.dim, size.depth) == (dim, depth)]
    called = {"vit_b": "SAM ViT-B", "vit_l": "SAM ViT-L", "vit_h": "SAM ViT-H", "tiny": "SAM tiny"}
    return f"{called[known[0]] if known else 'an encoder'} ({depth} blocks, width {dim})"


def _in_the_file(name: str, original: Mapping[str, str]) -> str:
    """What a parameter is called in the file, or would be."""
    if name in original:
        return original[name]
    metas = any("blocks." in other for other in original.values())
    prefixes = [p for p in ENCODERS if any(other.startswith(p) for other in original.values())]
    if metas:
        name = renamed(name, ((hugging_face, meta) for meta, hugging_face in NAMES))
    return (prefixes[0] if prefixes else "") + name


def _several(names: Iterable[str]) -> str:
    listed = sorted(names)
    return f"{len(listed)} ({', '.join(listed[:3])}{', …' if len(listed) > 3 else ''})"


def check_fits(
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    original: Mapping[str, str],
    variant: str,
    path: Path,
    first: str,
) -> None:
    """Raise unless ``given`` are exactly the parameters ``own`` of a variant.

    Args:
        original: name -> name in the file.
        first: a key as stored, to show where the file is no image encoder at all.

    Raises:
        CheckpointError: of another size, or names and counts of what does not fit; its cause names
            every one.
    """
    embed = given.get("patch_embed.projection.weight")
    blocks = {int(m[1]) for key in given if (m := re.match(r"layers\.(\d+)\.", key))}
    if embed is None and not blocks:
        raise CheckpointError(
            f"{path} holds no image encoder of SAM "
            f"({f'its first tensor is {first}' if first else 'it holds no tensors'}); "
            f"get the weights from {where(variant)}"
        )
    size = SIZES[variant]
    if embed is not None and blocks and embed.ndim == 4:
        found = (int(embed.shape[0]), max(blocks) + 1)
        named = [v for v, other in SIZES.items() if (other.dim, other.depth) == found]
        if found[0] != size.dim or (named and named[0] != variant):
            hint = f"; set teachers[].variant: {named[0]}" if named else ""
            raise CheckpointError(
                f"{path.name} holds {described(*found)}, the recipe asks for {variant} "
                f"({size.depth} blocks, width {size.dim}){hint}"
            )
    names = {
        "missing": own.keys() - given.keys(),
        "unexpected": given.keys() - own.keys(),
        "of another shape": {k for k in own.keys() & given if own[k].shape != given[k].shape},
    }
    faults = {
        kind: [_in_the_file(name, original) for name in sorted(found)]
        for kind, found in names.items()
        if found
    }
    if faults:
        said = ", ".join(f"{_several(found)} {kind}" for kind, found in faults.items())
        many = any(len(found) > 3 for found in faults.values())
        every = "\n".join(f"{kind}: {name}" for kind, found in faults.items() for name in found)
        raise CheckpointError(
            f"{path} does not fit the image encoder of SAM {variant}: {said}; every parameter must "
            f"fit, or the features are noise{' (--debug names them all)' if many else ''}"
        ) from LookupError(every)


def where(variant: str) -> str:
    """Where a variant's weights come from, for messages."""
    size = SIZES[variant]
    if not size.file:
        return f"nowhere: {variant} is an invented size, for weights: random"
    return f"Meta ({size.file}) or Hugging Face (facebook/{size.model})"


def build(variant: str | None, weights: str | Path) -> SamEncoder:
    """Make the teacher, in float32 on the CPU.

    Args:
        variant: of :data:`VARIANTS`; None is ``vit_l``.
        weights: ``random``, or the path of a file or folder.

    Raises:
        InputError: no such variant, or ``package``: no Python package carries SAM's weights.
        CheckpointError: the weights are missing, damaged, of another size or incomplete.
        EnvironmentLacksError: transformers is not installed.
    """
    variant = choose_variant("sam", variant, VARIANTS)
    if str(weights) == "package":
        raise InputError(
            f"teacher sam got weights: package, but no Python package carries SAM; give the path "
            f"of a file or folder from {where(variant)}"
        )
    if str(weights) == "random":
        encoder = container(variant).to_empty(device="cpu")
        randomize(encoder, SEED)
        report = [f"random weights (seed {SEED}): this teacher teaches nothing"]
    else:
        path = Path(weights)
        state = read_state(path, where(variant))
        given, original, report = sorted_out(state)
        encoder = container(variant)
        first = next(iter(state), "")
        check_fits(encoder.state_dict(), given, original, variant, path, first)
        refuse_not_finite(given, str(path))
        encoder = encoder.to_empty(device="cpu")
        encoder.load_state_dict(given, strict=True)  # copies, so the file may go away
        report = [f"{len(given)} tensors of the image encoder loaded, none missing", *report]
    teacher = SamEncoder(encoder, variant)
    neck = sum(name.startswith("neck.") for name in encoder.state_dict())
    teacher.report = [*report, f"neck: {neck} tensors kept and never run"]
    teacher.weights_sha256 = state_sha256(encoder.state_dict(), {"teacher": ["sam", variant]})
    teacher.freeze()
    return teacher
