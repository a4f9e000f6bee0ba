"""What every teacher is: a frozen network that gives dense features.

A teacher is one file in this folder; the file's name is the teacher's name. The file offers
``VARIANTS`` (a tuple of names, the first is taken where none is asked for; ``(None,)`` where there
is no choice) and one function::

    def build(variant: str | None, weights: str | Path) -> Teacher

``weights`` is ``"random"``, ``"package"`` (weights that a Python package carries; refused where there
are none) or the path of a file or folder. Files that begin with an underscore are shared parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

#: (normalised tokens ``(N, h, w, D)``, what the block's own perceptron gives for them) -> update
Adapter = Callable[[Tensor, Tensor], Tensor]


class Teacher(nn.Module):
    """A frozen dense feature extractor, always in evaluation mode.

    Attributes:
        name, variant: which one.
        mean, std: per-channel normalisation in units of 0-255 pixel values, ``(pixel - mean) / std``.
        channels: tap (block or stage, counted from 1) -> width of its features.
        strides: tap -> input pixels per feature cell.
        side_multiple: sides of the input must be multiples of this many pixels.
        weights_sha256: of the weights as loaded (names, shapes and values), or of the variant and
            seed for random ones. Two teachers with the same value give the same features.
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
