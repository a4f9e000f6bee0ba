"""The network of the coastal student: a picture, a year of sensors and a text, into ten answers.

Each kind becomes tokens of one width: the picture by EfficientNet-Lite0 (its middle, which is what
is asked of, at strides 8 and 16, and the whole at stride 32), the sensors by weeks, the text by
four projections of its embedding. A few learned latents read all tokens by cross-attention and
exchange what they read (Perceiver IO, Jaegle et al. 2021, https://arxiv.org/abs/2107.14795), so
that kinds of any rate need no common grid, and the cost does not grow with the square of the
tokens.

Which kinds a place has is an input of its own, and hides the tokens of a missing kind from the
latents: what stands in its place is not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_recipe import PlaceIo
from edgekd.errors import InputError
from edgekd.train.places.students._base import PlaceStudent
from edgekd.train.students._efficientnet_lite import (
    MEAN,
    STAGES,
    STD,
    STRIDES,
    Encoder,
    load_imagenet,
    weights_path,
)

_TAPS = (3, 5, 7)
_WEEK_DAYS = 7
_TEXT_TOKENS = 4
_EMBEDDING = 128
#: added to the score of what is not there: nothing is left of it behind softmax
_HIDDEN = -1e4


class Sizes(NamedTuple):
    """What the network is made for.

    Attributes:
        classes: answers.
        image_px: side of the picture, a multiple of 32; ``middle_px``: of what is asked of.
        days, features: of a series.
        text: length of the text's embedding.
        width, depth, heads, latents: of the part that reads the tokens.
    """

    classes: int = 10
    image_px: int = 128
    middle_px: int = 64
    days: int = 365
    features: int = 12
    text: int = 384
    width: int = 384
    depth: int = 3
    heads: int = 6
    latents: int = 8


class Attention(nn.Module):
    """Queries ``(N, Q, width)`` attend to tokens ``(N, T, width)``, with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.both = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, own: Tensor) -> Tensor:
        """``(N, Q, width)`` of queries that attend to each other."""
        q, (k, v) = self._split(self.query(own), 1)[0], self._split(self.both(own), 2)
        # scaled before the product: TensorRT fuses no other spelling
        scores = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
        read = (torch.softmax(scores, dim=3) @ v).transpose(1, 2).flatten(2)
        found: Tensor = self.out(read)
        return found

    def read(self, queries: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        """``(N, Q, width)`` of a few queries and many tokens; ``hidden (N, 1, T)``, or ``(N, heads
        Q, T)``, is added to the scores of the tokens.

        Keys and values of the tokens are never made: their weights are applied to the queries and
        to what these read, which is the same product in another order (the keys' bias adds the
        same to all scores of a query, so softmax does not see it), and a fifth of the work.
        """
        q, width = self._split(self.query(queries), 1)[0], queries.shape[2]
        keys, values = self.both.weight.reshape(2, self.heads, -1, width).unbind(0)
        asked = (q @ keys).flatten(1, 2) * q.shape[3] ** -0.5  # (N, heads Q, width)
        weights = torch.softmax(asked @ tokens.transpose(1, 2) + hidden, dim=2)
        seen = (weights @ tokens).reshape(-1, self.heads, q.shape[2], width)
        read = (seen @ values.transpose(1, 2)).transpose(1, 2).flatten(2) + self.both.bias[width:]
        found: Tensor = self.out(read)
        return found

    def _split(self, x: Tensor, parts: int) -> list[Tensor]:
        """``(N, T, parts width)`` -> of each part ``(N, heads, T, width / heads)``."""
        x = x.reshape(x.shape[0], x.shape[1], parts, self.heads, -1).permute(2, 0, 3, 1, 4)
        return [x[part] for part in range(parts)]


class Reader(nn.Module):
    """Latents read all tokens, then each other, then think for themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.across = Attention(width, heads)
        self.among = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, latents: Tensor, tokens: Tensor, hidden: Tensor, sets: int = 1) -> Tensor:
        """``(N, sets L, width)`` of so many sets of latents, which do not know each other."""
        latents = latents + self.across.read(self.norms[0](latents), tokens, hidden)
        count, _, width = latents.shape
        latents = latents.reshape(count * sets, -1, width) if sets > 1 else latents
        latents = latents + self.among(self.norms[1](latents))
        latents = latents + self.mlp(self.norms[2](latents))
        return latents.reshape(count, -1, width) if sets > 1 else latents


def _hidden(tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
    """``(N, T)`` to be added to the scores of all tokens: of kinds that are not there, a lot."""
    return torch.cat(
        [
            (_HIDDEN * (1 - present[:, at : at + 1])).expand(-1, tokens[kind].shape[1])
            for at, kind in enumerate(KINDS)
        ],
        dim=1,
    )


class CoastalNet(PlaceStudent):
    """See the module."""

    name = "coastal"

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.pretrained = False
        if sizes.image_px % 32 or sizes.middle_px % 16 or not 0 < sizes.middle_px < sizes.image_px:
            raise InputError(
                f"a picture of {sizes.image_px} px with a middle of {sizes.middle_px} px: expected "
                "a multiple of 32 and, smaller, one of 16"
            )
        self.sizes, width = sizes, sizes.width
        self.encoder = Encoder("lite0")
        sides = [*(sizes.middle_px // STRIDES[t] for t in _TAPS[:2]), sizes.image_px // 32]
        self._sides = sides
        self.image = nn.ModuleList(nn.Linear(STAGES[tap - 1].channels, width) for tap in _TAPS)
        self.days = nn.Conv1d(2 * sizes.features, width // 2, 5, padding=2)
        self.weeks = nn.Linear(width, width)
        self.text = nn.Linear(sizes.text, _TEXT_TOKENS * width)
        weeks = -(-sizes.days // _WEEK_DAYS)
        self.places = nn.ParameterDict(
            {
                "image": nn.Parameter(0.02 * torch.randn(1, sum(side**2 for side in sides), width)),
                "series": nn.Parameter(0.02 * torch.randn(1, weeks, width)),
                "text": nn.Parameter(0.02 * torch.randn(1, _TEXT_TOKENS, width)),
            }
        )
        self.norms = nn.ModuleDict({kind: nn.LayerNorm(width) for kind in KINDS})
        self.alike = nn.ModuleDict({kind: nn.Linear(width, _EMBEDDING) for kind in KINDS})
        self.latents = nn.Parameter(0.02 * torch.randn(1, sizes.latents, width))
        self.readers = nn.ModuleList(Reader(width, sizes.heads) for _ in range(sizes.depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sizes.classes)

    def tokens(self, image: Tensor, series: Tensor, text: Tensor) -> dict[str, Tensor]:
        """Kind -> ``(N, T, width)``."""
        maps = self.encoder.stages(image, _TAPS)
        for at in (0, 1):
            edge = (maps[at].shape[3] - self._sides[at]) // 2
            maps[at] = maps[at][:, :, edge : edge + self._sides[at], edge : edge + self._sides[at]]
        cells = [
            project(part.flatten(2).transpose(1, 2))
            for part, project in zip(maps, self.image, strict=True)
        ]
        lead = -self.sizes.days % _WEEK_DAYS
        days = F.gelu(self.days(F.pad(series.transpose(1, 2), (lead, 0))))
        high = F.max_pool1d(days, _WEEK_DAYS)  # one high water decides
        mean = F.avg_pool1d(days, _WEEK_DAYS)
        found = {
            "image": torch.cat(cells, dim=1),
            "series": self.weeks(torch.cat([high, mean], dim=1).transpose(1, 2)),
            "text": self.text(text).reshape(text.shape[0], _TEXT_TOKENS, -1),
        }
        return {
            kind: self.norms[kind](values + self.places[kind]) for kind, values in found.items()
        }

    def answer(self, tokens: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """Logits ``(N, classes)`` of tokens, of which ``present (N, 3)`` says what is there."""
        every = torch.cat([tokens[kind] for kind in KINDS], dim=1)
        hidden = _hidden(tokens, present)[:, None]
        latents: Tensor = self.latents  # of one place: the first reader's products spread it
        for reader in self.readers:
            latents = reader(latents, every, hidden)
        found: Tensor = self.head(self.norm(latents).mean(dim=1))
        return found

    def answers(self, tokens: Mapping[str, Tensor], presents: Tensor) -> Tensor:
        """Logits ``(V, N, classes)``; each reader looks at the tokens once for all V."""
        every = torch.cat([tokens[kind] for kind in KINDS], dim=1)
        sets, count = presents.shape[:2]
        each, heads, alike = self.sizes.latents, self.sizes.heads, every.shape[1]
        hidden = torch.stack([_hidden(tokens, present) for present in presents], dim=1)
        hidden = hidden[:, None, :, None].expand(count, heads, sets, each, alike)
        latents = self.latents.expand(count, -1, -1).repeat(1, sets, 1)
        for reader in self.readers:
            latents = reader(latents, every, hidden.reshape(count, -1, alike), sets)
        latents = self.norm(latents).reshape(count, sets, each, -1).mean(dim=2)
        found: Tensor = self.head(latents).transpose(0, 1)
        return found

    def embeddings(self, tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Kind -> ``(N, 128)``, what InfoNCE draws together; not part of the answer."""
        return {kind: self.alike[kind](tokens[kind].mean(dim=1)) for kind in KINDS}

    def pretrained_part(self) -> nn.Module | None:
        """The picture's branch."""
        return self.encoder if self.pretrained else None


def build_places(io: PlaceIo, *, pretrained: bool | None = None) -> CoastalNet:
    """Make the student.

    Args:
        io: sizes of the evidence, and the classes.
        pretrained: begin the picture branch with ImageNet weights (None: yes).

    Raises:
        InputError: a side that does not fit, or pixels that the weights were not made for.
        EnvironmentLacksError: ``pretrained`` without the package that carries the weights.
    """
    side = io.image.tile_px
    model = CoastalNet(
        Sizes(
            classes=len(io.classes),
            image_px=side,
            middle_px=max(16, side // 32 * 16),
            days=io.series.days,
            features=len(io.series.features),
            text=io.text.width,
        )
    )
    model.pretrained = True if pretrained is None else pretrained
    if model.pretrained:
        if io.image.mean != list(MEAN) or io.image.std != list(STD):
            raise InputError(
                f"io.image has mean {io.image.mean} and std {io.image.std}, but the weights of "
                f"student coastal were trained with mean {list(MEAN)} and std {list(STD)}; write "
                "these in the recipe"
            )
        load_imagenet(
            model.encoder,
            weights_path("lite0", "start student coastal from ImageNet weights (or pretrained: "
                         "false)"),
        )  # fmt: skip
    return model
