"""What every student of places is: evidence into tokens, tokens into an answer.

A student is one file in this folder, which offers ``build_places(io, *, pretrained) ->
PlaceStudent``. Files that begin with an underscore are shared parts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edgekd.contracts.evidence import KINDS
from edgekd.errors import InputError


class PlaceStudent(nn.Module):
    """``image (N, 3, px, px)``, ``series (N, days, 2 features)``, ``text (N, width)``, ``present
    (N, 3)`` -> logits ``(N, classes)``.

    A series has the normalised values, 0 where none was measured, and beside them 1 where one was;
    ``present`` is 1 where a place has the picture, the series, the text, and 0 elsewhere. What
    stands in place of a missing kind is not looked at.

    Attributes:
        name: the file's name.
        pretrained: whether a part of it began with weights.
    """

    name: str
    pretrained: bool

    def tokens(self, image: Tensor, series: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Kind -> ``(N, T, width)``."""
        raise NotImplementedError

    def answer(self, tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of tokens, of which ``present (N, 3)`` says what is there."""
        raise NotImplementedError

    def answers(self, tokens: Mapping[str, Tensor], presents: Tensor) -> Tensor:
        """Logits ``(V, N, classes)`` for several ``presents (V, N, 3)`` of the same tokens."""
        return torch.stack([self.answer(tokens, present) for present in presents])

    def embeddings(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Kind -> ``(N, D)``, what InfoNCE draws together; not part of the answer."""
        raise NotImplementedError

    def pretrained_part(self) -> nn.Module | None:
        """What began with weights, and learns at a rate of its own."""
        return None

    def forward(self, image: Tensor, series: Tensor, text: Tensor, present: Tensor) -> Tensor:
        """Logits ``(N, classes)``."""
        return self.answer(self.tokens(image, series, text), present)


def left_out(count: int, shares: Mapping[str, float], generator: torch.Generator) -> Tensor:
    """Which kinds of evidence places keep, ``(count, 3)`` of 0 and 1; none loses all.

    Args:
        count: of places.
        shares: kind -> part of the places that lose it, 0 to below 1.
        generator: where chance comes from, on the CPU.

    Raises:
        InputError: a share out of range, or of a kind that is not there.
    """
    for kind, share in shares.items():
        if kind not in KINDS or not 0 <= share < 1:
            raise InputError(
                f"part of places that lose {kind} is {share}: expected 0 to below 1, of "
                f"{', '.join(KINDS)}"
            )
    chance = torch.rand(count, len(KINDS), generator=generator)
    there = chance >= torch.tensor([shares.get(kind, 0.0) for kind in KINDS])
    kept = torch.randint(len(KINDS), (count,), generator=generator)
    none = ~there.any(dim=1)
    there[none, kept[none]] = True
    return there.float()
