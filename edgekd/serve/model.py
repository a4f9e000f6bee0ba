"""What the service asks of a model of places, and what a request to it must look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgekd.contracts.evidence import KINDS, Answers, Evidence, Float32
from edgekd.contracts.manifest import EvidenceDone
from edgekd.contracts.plausible import Plausible
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import Limits
from edgekd.errors import BundleError


class PlaceModel(Protocol):
    """A bundle that is open: :class:`edgekd.runtime.places.PlaceSession`, or a test's.

    The service asks ``answer`` from one thread and ``embed`` from one at a time, which may be
    another, so both may run at once.
    """

    @property
    def manifest(self) -> Any:
        """:class:`edgekd.contracts.manifest.Manifest`."""
        ...

    @property
    def classes(self) -> list[str]:
        """In the order of the scores."""
        ...

    @property
    def rows(self) -> int:
        """Rules of a zone that there is room for."""
        ...

    @property
    def simulated(self) -> bool:
        """Whether it learned from a simulated set."""
        ...

    def answer(
        self, places: Sequence[Evidence], limits: Limits | Sequence[Limits] | None = None
    ) -> Answers:
        """Scores and probabilities, those on the rules where there are any.

        Raises:
            InputError: evidence that does not fit.
            EdgeKDError: scores that are not finite.
        """
        ...

    def embed(self, texts: Sequence[str]) -> Float32:
        """``(N, width)`` float32.

        Raises:
            EnvironmentLacksError, InputError: nothing reads texts here, or one is too long.
        """
        ...

    def close(self) -> None:
        """Give back what it holds."""
        ...


@dataclass(frozen=True)
class Asks:
    """What a model takes, in the units of a request.

    Attributes:
        name, title: of the bundle.
        classes: in the order of the scores.
        side_px: of a picture.
        days, features: of a series; the newest day is the last.
        plausible: which values the features can have; ``usual``: of each the mean that training
            saw.
        datum: what levels are above; None where it was not said in training.
        text_width: of an embedding.
        reads_texts: whether there is an encoder of texts.
        facts: class -> what rules ask of it.
        rows: rules of a zone that there is room for.
        simulated: whether the model learned from a simulated set.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    side_px: int
    days: int
    features: tuple[str, ...]
    text_width: int
    reads_texts: bool
    facts: dict[str, ClassFacts]
    rows: int
    simulated: bool
    plausible: Plausible
    usual: tuple[float, ...]
    datum: str | None = None

    def warm_up(self) -> Evidence:
        """A place of all kinds of evidence that means nothing: black, every day as the mean."""
        day = self.plausible.clipped(np.array(self.usual))
        return Evidence(
            image=np.zeros((self.side_px, self.side_px, 3), np.uint8),
            series=np.tile(day, (self.days, 1)),
            text=np.zeros(self.text_width, np.float32),
        )


def asks_of(model: PlaceModel) -> Asks:
    """What a model says of itself.

    Raises:
        BundleError: its bundle answers for no places.
    """
    manifest = model.manifest
    found = getattr(manifest, "evidence", None)
    if not isinstance(found, EvidenceDone):
        raise BundleError(
            f"the bundle {manifest.name} maps pictures and answers for no places, so there is "
            "nothing to serve; run it: edgekd run BUNDLE IMAGE -o map.tif"
        )
    return Asks(
        name=manifest.name, title=manifest.title, classes=tuple(model.classes),
        side_px=manifest.inputs[0].tile_px, days=found.series.days,
        features=tuple(found.series.features), text_width=found.text.width,
        reads_texts=found.text_encoder is not None, facts=dict(found.facts), rows=model.rows,
        simulated=model.simulated, plausible=Plausible.of(found.series),
        usual=tuple(found.series.mean or [0.0] * len(found.series.features)),
        datum=found.series.datum,
    )  # fmt: skip


def kinds_of(place: Evidence) -> list[str]:
    """Which kinds of evidence a place has."""
    return [kind for kind in KINDS if getattr(place, kind) is not None]
