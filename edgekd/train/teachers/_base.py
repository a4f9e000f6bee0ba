"""What every teacher is: a frozen network that gives dense features.

A teacher is one file in this folder; the file's name is the teacher's name. The file offers
``VARIANTS`` (a tuple of names, the first is taken where none is asked for; ``(None,)`` where there
is no choice) and one function::

    def build(variant: str | None, weights: str | Path) -> Teacher

``weights`` is ``"random"``, ``"package"`` (weights that a Python package carries) or the path of a
file or folder; what a teacher does not have is refused. Building leaves the caller's random state
alone. Files that begin with an underscore are shared parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

#: (normalised tokens ``(N, h, w, D)``, what the block's own perceptron gives for them) -> update
Adapter = Callable[[Tensor, Tensor], Tensor]


class Teacher(nn.Module):
    """A frozen dense feature extractor, always in evaluation mode.

    Attributes:
        name, variant: which one.
        mean, std: per-channel (R, G, B) normalisation in units of 0-255 pixel values,
            ``(pixel - mean) / std``.
        channels: tap (block or stage, counted from 1) -> width of its features.
        strides: tap -> input pixels per feature cell.
        side_multiple: sides of the input must be multiples of this many pixels.
        weights_sha256: of the weights as loaded (names, types, shapes and values) and of what else
            decides about features. Two teachers with the same value give the same features.
        report: what loading found, in words: keys missing, unexpected or left out on purpose.
    """

    name: str
    variant: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: dict[int, int]
    strides: dict[int, int]
    side_multiple: int
    weights_sha256: str
    report: list[str]

    def train(self, mode: bool = True) -> Teacher:
        """A teacher has no training mode: dropout and batch statistics stay off."""
        del mode
        super().train(False)
        return self

    def freeze(self) -> None:
        """No parameter learns, and evaluation mode; every ``build`` ends with this."""
        self.requires_grad_(False)
        self.train()

    def compile_blocks(self) -> None:
        """Let torch compile what is run; nothing where a teacher does not offer it."""

    def check_taps(self, taps: Sequence[int]) -> None:
        """Raise unless ``taps`` are known, at least one, and rising.

        Raises:
            InputError: names the first wrong tap and the valid ones.
        """
        valid = f"(valid: {min(self.channels)} to {max(self.channels)}, rising)"
        unknown = [tap for tap in taps if tap not in self.channels]
        if unknown:
            raise InputError(f"teacher {self.name} has no tap {unknown[0]} {valid}")
        if not taps or list(taps) != sorted(set(taps)):
            raise InputError(f"teacher {self.name} got taps {list(taps)}; they must rise {valid}")

    def check_image(self, image: Tensor) -> None:
        """Raise unless ``image`` is ``(N, 3, H, W)`` with sides that the teacher takes.

        Raises:
            InputError: says which sides are allowed.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise InputError(
                f"teacher {self.name} takes images (N, 3, H, W), received {tuple(image.shape)}"
            )
        if any(side < 1 or side % self.side_multiple for side in image.shape[2:]):
            height, width = image.shape[2:]
            raise InputError(
                f"teacher {self.name} takes sides that are multiples of {self.side_multiple} px, "
                f"received {height} x {width} px; change distill.crop_px"
            )

    def features(self, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Dense features of a normalised image.

        Args:
            image: ``(N, 3, H, W)`` float.
            taps: blocks or stages, rising; what lies behind the last is not computed.

        Returns:
            ``(N, C, H / stride, W / stride)`` per tap.

        Raises:
            InputError: no such tap, or a side that is not a multiple of ``side_multiple``.
        """
        raise NotImplementedError


class TransformerTeacher(Teacher):
    """A teacher made of transformer blocks, which Mask-CDKD runs on visible tokens with adapters.

    Attributes:
        dim: width of the tokens.
        depth: number of blocks.
        patch_px: side of a patch.
    """

    dim: int
    depth: int
    patch_px: int

    def patchify(self, image: Tensor) -> Tensor:
        """Normalised image ``(N, 3, H, W)`` -> tokens ``(N, h, w, D)`` with their positions."""
        raise NotImplementedError

    def run_blocks(
        self,
        tokens: Tensor,
        taps: Sequence[int],
        adapters: Sequence[Adapter] | None = None,
        checkpointing: bool = False,
    ) -> list[Tensor]:
        """Run the blocks on a grid of tokens, whole or any subsample of the image's grid.

        Args:
            tokens: ``(N, h, w, D)`` with positions.
            taps: blocks, counted from 1, rising; blocks behind the last are not run.
            adapters: one per block. Block ``i`` is ``x' = x + Attn(LN1(x)); xn = LN2(x');
                x = x' + adapters[i](xn, MLP(xn))``; without adapters ``x = x' + MLP(xn)``.
            checkpointing: recompute each block in the backward pass.

        Returns:
            ``(N, h, w, D)`` per tap: the residual stream after that block.
        """
        raise NotImplementedError


def choose_variant(name: str, variant: str | None, valid: Sequence[str]) -> str:
    """The variant asked for, or the first where none is.

    Raises:
        InputError: no such variant; names the nearest and all valid ones.
    """
    if variant is None:
        return valid[0]
    if variant not in valid:
        raise InputError(
            f"teacher {name} has no variant '{variant}'{nearest(variant, list(valid))} "
            f"(valid: {', '.join(valid)})"
        )
    return variant
