"""What is known of a place when it is asked about: a picture, a year of sensors, a text.

One kind or two may be missing. This is the seam between who asks (a service, an evaluation), who
answers (a bundle) and who trains: all three make the same tensors here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgekd.contracts.plausible import Plausible
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.tensors import ImageInput, SeriesInput, TextInput
from edgekd.errors import InputError

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]

#: kinds of evidence, in the order of the input ``present``
KINDS: Final = ("image", "series", "text")
PRESENT: Final = "present"
#: what the graph gives: ``(N, classes)`` logits, and probabilities that obey the rules. Rules are
#: inputs with the names of :class:`edgekd.contracts.projection.Limits`.
SCORES, PROBABILITIES = "logits", "probabilities"
#: of a series, days that need one value or more
LEAST_DAYS: Final = 30


@dataclass(frozen=True)
class Evidence:
    """What is known of one place; None is missing, and one kind at least is there.

    Attributes:
        image: ``(side, side, 3)`` uint8, RGB.
        series: ``(days, features)`` float32 in the features' own units, NaN where nothing was
            measured; the last row is the newest day.
        text: ``(width,)`` float32, the embedding of what the place's papers say.
    """

    image: UInt8 | None = None
    series: Float32 | None = None
    text: Float32 | None = None


@dataclass(frozen=True)
class Answers:
    """What a model says of places.

    Attributes:
        scores: ``(N, classes)`` logits.
        before: ``(N, classes)`` probabilities, as the scores have them.
        probabilities: ``(N, classes)``, the nearest that obey the rules; ``before`` without rules.
    """

    scores: Float32
    before: Float32
    probabilities: Float32


class EvidenceTensors:
    """Evidence into the inputs of an engine, and checks on the way.

    Args:
        image, series, text: what the engine takes; the series with its statistics.

    Raises:
        InputError: the series has no mean and deviation.
    """

    def __init__(self, image: ImageInput, series: SeriesInput, text: TextInput) -> None:
        if series.mean is None or series.std is None:
            raise InputError(
                "the series input has no mean and std; they come from training and travel with "
                "the weights"
            )
        self.image, self.series, self.text = image, series, text
        self._normal = Normalizer(image)
        #: which values the series' features can have
        self.plausible = Plausible.of(series)
        self._mean = np.asarray(series.mean, np.float32)
        self._std = np.asarray(series.std, np.float32)

    def __call__(
        self, places: Sequence[Evidence], *, stored: bool = False
    ) -> dict[str, npt.NDArray[Any]]:
        """Input name -> array ``(N, ...)`` float32.

        Args:
            places: what is known of each.
            stored: they are a bundle's own, sealed with what was answered: any value is taken.

        Raises:
            InputError: nothing is known of a place, something does not fit, or a sensor's value is
                one that its feature cannot have.
        """
        if not places:
            raise InputError("no place is asked about")
        side, days, width = self.image.tile_px, self.series.days, self.text.width
        count, features = len(places), len(self.series.features)
        image = np.zeros((count, 3, side, side), np.float32)
        series = np.zeros((count, days, 2 * features), np.float32)
        text = np.zeros((count, width), np.float32)
        present = np.zeros((count, len(KINDS)), np.float32)
        for at, place in enumerate(places):
            if place.image is None and place.series is None and place.text is None:
                raise InputError("nothing is known of a place: give a picture, a series or a text")
            if place.image is not None:
                image[at] = self._image(place.image)
            if place.series is not None:
                series[at] = self._series(place.series, stored)
            if place.text is not None:
                text[at] = self._text(place.text)
            present[at] = [getattr(place, kind) is not None for kind in KINDS]
        return {
            self.image.name: image,
            self.series.name: series,
            self.text.name: text,
            PRESENT: present,
        }

    def _image(self, picture: UInt8) -> Float32:
        side = self.image.tile_px
        if picture.dtype != np.uint8 or picture.shape != (side, side, 3):
            raise InputError(
                f"the picture is {picture.dtype} {picture.shape}, expected uint8 ({side}, {side}, "
                "3), RGB"
            )
        return self._normal(picture)

    def _series(self, values: Float32, stored: bool) -> Float32:
        days, features = self.series.days, len(self.series.features)
        values = np.asarray(values)
        if values.ndim != 2 or values.shape[1] != features or values.dtype.kind != "f":
            raise InputError(
                f"the series is {values.dtype} {values.shape}, expected float32 ({days}, "
                f"{features}): {', '.join(self.series.features)}"
            )
        if len(values) != days:
            much = "short" if len(values) < days else "long"
            raise InputError(
                f"the series is too {much}: {len(values)} days, expected {days}; the newest day is "
                "the last, and days without a value are NaN"
            )
        if np.isinf(values).any():
            raise InputError("the series holds infinite values; a gap is NaN")
        if not stored:
            self.plausible.require(values, "NaN")
        there = ~np.isnan(values)
        measured = int(there.any(axis=1).sum())
        if measured < LEAST_DAYS:
            raise InputError(
                f"the series has values on {measured} of {days} days, expected {LEAST_DAYS} or "
                "more; leave it out"
            )
        scaled = np.where(there, (values - self._mean) / self._std, np.float32(0))
        found: Float32 = np.concatenate([scaled, there], axis=1).astype(np.float32)
        return found

    def _text(self, embedding: Float32) -> Float32:
        embedding = np.asarray(embedding)
        if embedding.shape != (self.text.width,) or embedding.dtype != np.float32:
            raise InputError(
                f"the text's embedding is {embedding.dtype} {embedding.shape}, expected float32 "
                f"({self.text.width},)"
            )
        if not np.isfinite(embedding).all():
            raise InputError("the text's embedding holds a value that is not finite")
        return embedding


def never_measured(values: Float32, features: Sequence[str]) -> list[str]:
    """Features of ``(series, days, features)`` that are nothing but gaps."""
    gone = np.isnan(values).reshape(-1, len(features)).all(axis=0)
    return [features[int(at)] for at in np.flatnonzero(gone)]


def series_statistics(values: Float32) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per feature of ``(series, days, features)``, gaps left out.

    A feature that never changes, or was never measured, has deviation 1; see
    :func:`never_measured`.
    """
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    there = ~np.isnan(flat)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, flat, 0).sum(axis=0) / count
    spread = np.sqrt((np.where(there, flat - mean, 0) ** 2).sum(axis=0) / count)
    std = np.where(spread > 1e-6, spread, 1.0)
    return [float(x) for x in mean], [float(x) for x in std]
