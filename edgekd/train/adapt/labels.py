"""Which labels of a site are used: a draw that is even over the classes, and folds over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError
from edgekd.train.adapt.site import Site

IntArray = npt.NDArray[np.int64]
#: with more, tuning anew (edgekd finetune) learns more and takes no longer
MAX_LABELS = 1000
#: labels so near to each other are left out of a fit together, px
_NEAR_PX = 8
_FOLDS = 10


@dataclass(frozen=True)
class Labels:
    """Labelled pixels.

    Attributes:
        images: their ids.
        image, row, column, channel: ``(n,)`` int64 each; ``image`` is a position in ``images``.
        available: how many there were to draw from, by class.
    """

    images: list[str]
    image: IntArray
    row: IntArray
    column: IntArray
    channel: IntArray
    available: list[int]

    def __len__(self) -> int:
        return len(self.channel)

    def per_class(self, classes: int) -> list[int]:
        """Number of labels of each class."""
        return [int(value) for value in np.bincount(self.channel, minlength=classes)]


def draw(site: Site, asked: int | None, seed: int) -> Labels:
    """Draw labelled pixels, as evenly over the classes as they allow.

    Args:
        site: whose shown pictures are drawn from.
        asked: how many in all; None takes every one, up to :data:`MAX_LABELS`.
        seed: of the draw.

    Raises:
        InputError: fewer than two asked for, or more than there are.
    """
    if asked is not None and asked < 2:
        raise InputError(
            f"--labels {asked} is too few to learn from and to choose by; give 2 or more (10 to 20 "
            "are usual), or all"
        )
    images = list(site.shown)
    pools: list[list[IntArray]] = [[] for _ in site.classes]
    for number, name in enumerate(images):
        target = site.shown[name]().target
        for channel in range(len(site.classes)):
            rows, columns = np.nonzero(target == channel)
            if rows.size:
                pools[channel].append(np.stack([np.full_like(rows, number), rows, columns], axis=1))
    pool = [np.concatenate(found) if found else np.zeros((0, 3), np.int64) for found in pools]
    available = [len(places) for places in pool]
    total = sum(available)
    if total < max(2, asked or 0):
        raise InputError(
            f"{site.name} has {total} labelled pixels to adapt with ({site.split}), "
            f"{'at least 2 are needed' if asked is None else f'--labels asks for {asked}'}; label "
            "more of the site" + (", or give a smaller number" if total >= 2 else "")
        )
    wanted = min(total, MAX_LABELS if asked is None else asked)
    random = np.random.default_rng([seed, 1])
    places, channels = [], []
    for channel, count in enumerate(shares(available, wanted, random)):
        chosen = random.permutation(available[channel])[:count]
        places.append(pool[channel][chosen])
        channels.append(np.full(count, channel, dtype=np.int64))
    image, row, column = np.concatenate(places).T
    return Labels(images, image, row, column, np.concatenate(channels), available)


def shares(available: list[int], wanted: int, random: np.random.Generator) -> list[int]:
    """How many of each class: as even as may be, what a scarce class cannot give goes to others.

    Args:
        available: labels of each class; they add up to ``wanted`` at least.
        random: decides which classes get one more where ``wanted`` does not divide.
    """
    given = [0] * len(available)
    left = wanted
    while left:
        open_ = [i for i, count in enumerate(available) if given[i] < count]
        each = left // len(open_)
        if each == 0:
            for i in random.permutation(open_)[:left]:
                given[int(i)] += 1
            return given
        for i in open_:
            take = min(each, available[i] - given[i])
            given[i] += take
            left -= take
    return given


def folds(labels: Labels, seed: int) -> IntArray:
    """Fold of each label, ``(n,)`` int64, for cross-validation.

    Labels within the same square of some pixels share a fold, and a class's labels are dealt to
    different folds as far as that allows; with few labels each is a fold of its own.
    """
    key = np.stack([labels.image, labels.row // _NEAR_PX, labels.column // _NEAR_PX], axis=1)
    _, group = np.unique(key, axis=0, return_inverse=True)
    group = np.asarray(group).reshape(-1)
    count = int(group.max()) + 1
    random = np.random.default_rng([seed, 2])
    main = np.zeros(count, dtype=np.int64)
    main[group[::-1]] = labels.channel[::-1]
    order = np.lexsort((random.random(count), main))  # classes in turn, at random within one
    fold = np.empty(count, dtype=np.int64)
    fold[order] = np.arange(count) % min(_FOLDS, count)
    result: IntArray = fold[group]
    return result
