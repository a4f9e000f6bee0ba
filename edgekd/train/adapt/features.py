"""What a student makes of single pixels before its last, linear layer.

Scores of the students here are linear in what their last 1 x 1 convolutions get, and bringing them
to pixels is linear too. So the scores of a pixel are ``W f + b`` with the features ``f`` brought to
pixels, and tuning the last layers on a handful of pixels needs the network once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.windows import Window, plan
from edgekd.errors import InputError
from edgekd.train.adapt.labels import Labels
from edgekd.train.adapt.site import Picture, Site
from edgekd.train.students._base import Segmenter

#: side of the windows that are looked at, px, where the student and its tile allow it
_SIDE_PX = 256
#: windows in which unlabeled pixels are looked at, and pixels taken from them
_WINDOWS = 8
_UNLABELED = 400
#: part of the largest score that the linear form may be off
_LINEAR = 1e-3


@dataclass(frozen=True)
class Look:
    """Windows of a site, as a batch.

    Attributes:
        pixels: ``(n, side, side, 3)`` uint8.
        shown: ``(n, 1, side, side)`` float32, 1 where adaptation may see the pixel.
        places: for every wanted pixel its window, row and column, ``(m, 3)`` int64.
        normalize: of the recipe.
    """

    pixels: UInt8Array
    shown: Tensor
    places: npt.NDArray[np.int64]
    normalize: Normalizer

    def images(self, first: int = 0, end: int | None = None) -> Tensor:
        """``(n, 3, side, side)`` float32, normalised, of some windows."""
        return torch.stack(
            [torch.from_numpy(self.normalize(item)) for item in self.pixels[first:end]]
        )


@dataclass(frozen=True)
class Features:
    """What a student makes of pixels.

    Attributes:
        values: ``(m, D)`` float64.
        scores: ``(m, K)`` float64.
        linear: whether the last layers give these scores of these features.
    """

    values: Tensor
    scores: Tensor
    linear: bool


def side_px(model: Segmenter, recipe: Recipe) -> int:
    """Side of a window: a multiple of what the student takes, at most its tile."""
    tile, step = recipe.io.inputs[0].tile_px, model.side_multiple
    return min(tile, max(step, _SIDE_PX // step * step))


def look_at_labels(site: Site, labels: Labels, recipe: Recipe, side: int, step: int) -> Look:
    """The windows that hold labels; a label is looked at where it is nearest to a middle."""
    images: list[UInt8Array] = []
    shown: list[Tensor] = []
    places = np.zeros((len(labels), 3), np.int64)
    for number, name in enumerate(labels.images):
        mine = np.flatnonzero(labels.image == number)
        if not mine.size:
            continue
        picture = site.shown[name]()
        windows = _windows(picture, side, step)
        middles = np.array([(item.y0 + side / 2, item.x0 + side / 2) for item in windows])
        at = np.stack([labels.row[mine], labels.column[mine]], axis=1)
        off = np.abs(at[:, None] + 0.5 - middles[None]).max(2)
        chosen = off.argmin(1)
        for index in np.unique(chosen):
            window = windows[index]
            here = mine[chosen == index]
            places[here, 0] = len(images)
            places[here, 1] = labels.row[here] - window.y0
            places[here, 2] = labels.column[here] - window.x0
            pixels, seen = _cut_out(picture, window)
            images.append(pixels)
            shown.append(seen)
    return Look(np.stack(images), torch.stack(shown), places, Normalizer(recipe.io.inputs[0]))


def look_around(site: Site, recipe: Recipe, side: int, step: int, seed: int) -> Look:
    """Some windows of a site with some shown pixels of each, drawn by the seed.

    Raises:
        InputError: nothing is shown.
    """
    random = np.random.default_rng([seed, 3])
    names = list(site.shown)
    chosen = [names[int(i)] for i in random.permutation(len(names))[:_WINDOWS]]
    found: list[tuple[UInt8Array, Tensor]] = []
    for number, name in enumerate(chosen):
        picture = site.shown[name]()
        windows = [
            item for item in _windows(picture, side, step)
            if picture.shown[item.y0 : item.y1, item.x0 : item.x1].any()
        ]  # fmt: skip
        share = _WINDOWS // len(chosen) + (number < _WINDOWS % len(chosen))
        for i in random.permutation(len(windows))[:share]:
            found.append(_cut_out(picture, windows[int(i)]))
    if not found:
        raise InputError(f"{site.name} shows no pixel with data; there is nothing to adapt to")
    shown = torch.stack([item[1] for item in found])
    every = np.argwhere(shown[:, 0].numpy() > 0)
    drawn = np.sort(random.permutation(len(every))[:_UNLABELED])
    return Look(
        np.stack([item[0] for item in found]),
        shown,
        every[drawn].astype(np.int64),
        Normalizer(recipe.io.inputs[0]),
    )


def _windows(picture: Picture, side: int, step: int) -> list[Window]:
    height, width = picture.shown.shape
    return [
        item for row in plan(height, width, side, side // 4 // step * step, step) for item in row
    ]


def _cut_out(picture: Picture, window: Window) -> tuple[UInt8Array, Tensor]:
    """Pixels and what is shown, mirrored beyond the image as the runtime does."""
    height, width = picture.shown.shape
    more = max(0, window.y1 - height), max(0, window.x1 - width)
    box = (slice(window.y0, window.y1), slice(window.x0, window.x1))
    pixels = np.pad(picture.pixels[box], ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
    shown = np.pad(picture.shown[box], ((0, more[0]), (0, more[1])))
    return pixels, torch.from_numpy(shown[None].astype(np.float32))


class LastLayers:
    """The 1 x 1 convolutions whose outputs, added up, are a student's scores.

    Attributes:
        layers: the convolutions, in the order of the decoder.
    """

    def __init__(self, model: Segmenter) -> None:
        self._model = model
        self.layers = [
            item
            for item in model.decoder.modules()
            if isinstance(item, nn.Conv2d)
            and item.kernel_size == (1, 1)
            and item.out_channels == model.num_classes
            and item.groups == 1
            and item.bias is not None
        ]

    def weights(self) -> tuple[Tensor, Tensor]:
        """``(K, D)`` and ``(K,)`` float64 of all layers together."""
        matrix = torch.cat([item.weight.detach().flatten(1) for item in self.layers], dim=1)
        bias = torch.stack([_bias(item).detach() for item in self.layers]).sum(0)
        return matrix.double(), bias.double()

    @torch.no_grad()
    def write(self, matrix: Tensor, bias: Tensor) -> None:
        """Put other weights in; the first layer takes what the bias differs by."""
        _, before = self.weights()
        start = 0
        for item in self.layers:
            count = item.in_channels
            item.weight.copy_(matrix[:, start : start + count].reshape(item.weight.shape))
            start += count
        _bias(self.layers[0]).add_((bias - before).float())

    @torch.inference_mode()
    def look(self, look: Look) -> Features:
        """Features and scores of a look's pixels."""
        values: list[Tensor] = []
        scores: list[Tensor] = []
        order: list[npt.NDArray[np.int64]] = []
        got: dict[int, Tensor] = {}

        def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
            return lambda _module, given, _made: got.__setitem__(number, given[0])

        hooks = [item.register_forward_hook(keep(n)) for n, item in enumerate(self.layers)]
        try:
            for number in range(len(look.pixels)):
                mine = np.flatnonzero(look.places[:, 0] == number)
                if not mine.size:
                    continue
                logits = self._model(look.images(number, number + 1))
                rows, columns = (torch.from_numpy(look.places[mine, k]) for k in (1, 2))
                side = look.pixels.shape[1]
                maps = [got[n] for n in range(len(self.layers))]
                at = [_at(item, side, rows, columns).double() for item in (*maps, logits)]
                values.append(torch.cat(at[:-1], dim=1) if maps else at[-1][:, :0])
                scores.append(at[-1])
                order.append(mine)
        finally:
            for hook in hooks:
                hook.remove()
        back = torch.from_numpy(np.argsort(np.concatenate(order)))
        feature, score = torch.cat(values)[back], torch.cat(scores)[back]
        if not self.layers:
            return Features(feature, score, False)
        matrix, bias = self.weights()
        off = (feature @ matrix.T + bias - score).abs().max()
        return Features(feature, score, bool(off <= _LINEAR * (1 + score.abs().max())))


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _at(values: Tensor, side: int, rows: Tensor, columns: Tensor) -> Tensor:
    """``(1, C, h, w)`` brought to ``side`` bilinearly, at pixels: ``(m, C)``."""
    if values.shape[-1] != side:
        values = F.interpolate(values, size=(side, side), mode="bilinear", align_corners=False)
    return values[0][:, rows, columns].T
