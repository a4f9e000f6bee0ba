"""Stored places and answers of a bundle, by which a device tells whether it computes the same."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.evidence import KINDS, Answers, Evidence, Float32, UInt8
from edgekd.contracts.projection import Limits
from edgekd.errors import BundleError


@dataclass(frozen=True)
class Golden:
    """Contents of ``golden.npz`` of a bundle of places; an array for each attribute.

    Attributes:
        image: ``(G, side, side, 3)`` uint8.
        series: ``(G, days, features)`` float32 in the features' units, NaN for gaps.
        text: ``(G, width)`` float32.
        present: ``(G, 3)`` float32, 1 for each kind that the place has; where it is 0 the array
            above holds zeros.
        rules, bounds, inside: of each place, as :class:`edgekd.contracts.projection.Limits`.
        logits: ``(G, classes)`` float32 that the build host gave.
        probabilities: ``(G, classes)`` float32, with these rules; ``free``: without rules.
    """

    image: UInt8
    series: Float32
    text: Float32
    present: Float32
    rules: Float32
    bounds: Float32
    inside: Float32
    logits: Float32
    probabilities: Float32
    free: Float32

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Name -> array, for :func:`numpy.savez_compressed`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def places(self) -> list[Evidence]:
        """What is known of each place."""
        given: dict[str, npt.NDArray[Any]] = {k: getattr(self, k) for k in KINDS}
        return [
            Evidence(**{k: given[k][at] for number, k in enumerate(KINDS) if there[number]})
            for at, there in enumerate(self.present)
        ]

    def limits(self) -> list[Limits]:
        """The rules of each place."""
        return [Limits(*item) for item in zip(self.rules, self.bounds, self.inside, strict=True)]


def make_golden(
    places: Sequence[Evidence],
    limits: Sequence[Limits],
    answers: Answers,
    free: Float32,
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> Golden:
    """Stored form of places and of what a model said of them.

    Args:
        places, limits: of each place.
        answers: with the rules; ``free``: probabilities without.
        shapes: of a picture, a series and an embedding, for places that lack them.
    """
    blank: dict[str, npt.NDArray[Any]] = {
        "image": np.zeros(shapes[0], np.uint8),
        "series": np.zeros(shapes[1], np.float32),
        "text": np.zeros(shapes[2], np.float32),
    }
    stacked: dict[str, npt.NDArray[Any]] = {}
    for kind in KINDS:
        given = [getattr(place, kind) for place in places]
        stacked[kind] = np.stack([blank[kind] if item is None else item for item in given])
    there = [[getattr(place, kind) is not None for kind in KINDS] for place in places]
    return Golden(
        **stacked,
        present=np.array(there, np.float32),
        **{name: np.stack([getattr(item, name) for item in limits]) for name in Limits._fields},
        logits=answers.scores,
        probabilities=answers.probabilities,
        free=free,
    )


def read_golden(content: bytes, path: Path) -> Golden:
    """From the bytes of ``golden.npz``.

    Args:
        path: where they come from, for the sentence.

    Raises:
        BundleError: no such file, an array that is missing, or arrays of different lengths.
    """
    names = [item.name for item in fields(Golden)]
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            lacking = [name for name in names if name not in arrays]
            values = {} if lacking else {name: arrays[name] for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as err:
        raise BundleError(f"{path} is no .npz file; build the bundle again") from err
    if lacking:
        raise BundleError(f"{path} lacks {', '.join(lacking)}; build the bundle again")
    counts = {len(value) if value.ndim else 0 for value in values.values()}
    if len(counts) != 1 or 0 in counts:
        raise BundleError(
            f"{path} holds arrays of {sorted(counts)} places, expected one number of 1 or more; "
            "build the bundle again"
        )
    return Golden(**values)
