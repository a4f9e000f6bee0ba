"""Places of a set, and made-up ones: what a build compares, calibrates and judges on.

A share of them lacks a kind of evidence, as places do in use: what an engine makes of a missing
picture is compared and calibrated like everything else.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.evidence import KINDS, Evidence, EvidenceTensors, Float32
from edgekd.contracts.place_evidence import (
    PlaceReader,
    check_embeddings,
    check_fits,
    rules_of_zones,
    set_rules,
)
from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.place_set import PlaceSet
from edgekd.contracts.plausible import Plausible
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import Limits
from edgekd.contracts.recipe import CalibrationSpec
from edgekd.contracts.tensors import TextInput
from edgekd.deploy.parity import Tensors
from edgekd.deploy.quantize.calibrate import WATCHED_TILES
from edgekd.deploy.quantize.material import Material, Measure, Sample
from edgekd.deploy.quantize.ranges import input_sha256, read_calibration
from edgekd.errors import InputError

#: validation places that a precision is judged on at most: half a point of accuracy is 2.5 of them
MOST_JUDGED_PLACES = 512
#: of these, one call of the model
JUDGED_AT_ONCE = 16
#: what every eighth, counted on, lacks while calibrating and judging
WITHOUT: tuple[tuple[str, ...], ...] = ((), ("image",), (), ("series",), (), ("text",), (), ())
#: what golden places lack: half nothing, some one kind, some all but one
GOLDEN_WITHOUT: tuple[tuple[str, ...], ...] = (
    (), (), (), (), (), (), ("image",), ("series",), ("text",),
    ("series", "text"), ("image", "text"), ("image", "series"),
)  # fmt: skip


def open_reader(recipe: PlaceRecipe, places: PlaceSet, texts: Float32) -> PlaceReader:
    """A set as a recipe's student takes it.

    Args:
        texts: ``(rows, width)`` float32 embeddings, a row of the table each.

    Raises:
        InputError: the set or the embeddings do not fit.
    """
    io = recipe.io
    check_fits(f"recipe '{recipe.name}'", io.classes, io.image, io.series, places)
    return PlaceReader(places, io.image, check_embeddings(texts, places, io.text))


def spread(rows: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the rows, evenly."""
    picks = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return [rows[pick] for pick in dict.fromkeys(picks.tolist())]


def check_enough(recipe: PlaceRecipe, places: PlaceSet, saved: Path | None) -> None:
    """Raise where a set has fewer training places than calibration asks for; nothing is read.

    Args:
        recipe: of which the target takes a precision that needs ranges.
        saved: a calibration file that is taken in place of calibrating.

    Raises:
        InputError: says how many there are.
    """
    if recipe.calibration is None or saved is not None:
        return
    wanted, there = recipe.calibration.tiles, sum(row.split == "train" for row in places.rows)
    if there < wanted:
        fewer = f", or ask for fewer: --set calibration.tiles={there}" if there >= 2 else ""
        raise InputError(
            f"calibration asks for {wanted} training places, and {places.root} has {there}; give "
            f"more{fewer}"
        )


class PlaceMaterial(Material):
    """Places that calibrate (training split) and judge (validation split).

    Args:
        recipe: with the statistics of its series.
        reader: of the set; None where it is not here.
        saved: a calibration file to use in place of calibrating.
    """

    unit: str = "place"
    measure: Measure = "accuracy"

    def __init__(self, recipe: PlaceRecipe, reader: PlaceReader | None, saved: Path | None) -> None:
        self._io, self._reader = recipe.io, reader
        self._tensors = EvidenceTensors(recipe.io.image, recipe.io.series, recipe.io.text)
        self.classes, self.saved = len(recipe.io.classes), saved

    def require(self) -> None:
        """Raise InputError without a set, or with a calibration file that is none."""
        if self._reader is None:
            raise InputError(
                "a lower precision is judged on real places, and the set is not here; give its "
                "place with --data, or allow fp32 only: --set precision.allowed=[fp32]"
            )
        if self.saved is not None:
            read_calibration(self.saved)

    @property
    def input_sha256(self) -> Sha256:
        """Of all kinds of evidence: sizes, normalisation, statistics."""
        text = TextInput(name=self._io.text.name, width=self._io.text.width)
        # what is refused changes no input
        series = self._io.series.model_copy(update={"ranges": {}})
        return input_sha256(self._io.image, series, text)

    def _sample(self, chosen: Sequence[tuple[int, tuple[str, ...]]]) -> Sample:
        reader = self._reader
        assert reader is not None  # of require()
        rows = reader.places.rows

        def inputs() -> Tensors:
            return self._tensors([reader(at, without) for at, without in chosen])

        return Sample(
            inputs,
            np.array([rows[at].label for at, _ in chosen], np.uint8),
            size_px=len(chosen) * self._io.image.tile_px**2,
            count=len(chosen),
        )

    def judged(self) -> list[Sample]:
        """Spread over the validation places."""
        reader = self._reader
        assert reader is not None  # of require()
        picks = spread(reader.rows_of("val"), MOST_JUDGED_PLACES)
        chosen = [
            (at, _takeable(reader, at, WITHOUT[number % len(WITHOUT)]))
            for number, at in enumerate(picks)
        ]
        return [
            self._sample(chosen[first : first + JUDGED_AT_ONCE])
            for first in range(0, len(chosen), JUDGED_AT_ONCE)
        ]

    def calibrating(self, spec: CalibrationSpec | None) -> tuple[Sequence[Sample], int, str]:
        """Spread over the training places; no two with the same evidence."""
        reader = self._reader
        assert reader is not None  # of require()
        wanted = WATCHED_TILES if spec is None else spec.tiles
        rows = reader.rows_of("train")
        first = spread(rows, wanted)
        order = [*first, *(at for at in rows if at not in set(first))]
        found: dict[bytes, tuple[int, tuple[str, ...]]] = {}
        for at in order:
            # places share series and texts: without its picture one may be as another
            for shift in range(len(WITHOUT)):
                without = _takeable(reader, at, WITHOUT[(len(found) + shift) % len(WITHOUT)])
                mark = _mark(reader(at, without))
                if mark not in found:
                    found[mark] = at, without
                    break
            if len(found) == wanted:
                break
        chosen = list(found.values())
        places = reader.places
        names = ", ".join(places.rows[at].name for at, _ in chosen)
        lacking = sum(len(reader.left(at, without)) < len(KINDS) for at, without in chosen)
        source = f"{places.about.name}, split train: {names}; {lacking} of them lack a kind"
        return [self._sample([item]) for item in chosen], wanted, source


def _takeable(reader: PlaceReader, at: int, without: tuple[str, ...]) -> tuple[str, ...]:
    """``without``, or nothing where the place has no other kind."""
    return without if reader.left(at, without) else ()


def _mark(place: Evidence) -> bytes:
    digest = hashlib.sha256()
    for kind in KINDS:
        value = getattr(place, kind)
        digest.update(b"-" if value is None else value.tobytes())
    return digest.digest()


@dataclass(frozen=True)
class GoldenPlaces:
    """Places to compare on, and the rules where they lie.

    Attributes:
        source: where both come from, in words.
    """

    places: list[Evidence]
    limits: list[Limits]
    source: str


def golden_places(
    recipe: PlaceRecipe,
    reader: PlaceReader | None,
    facts: Mapping[str, ClassFacts],
    day: datetime.date,
) -> GoldenPlaces:
    """A few validation places with the rules of their set, or made-up ones where it is not here.

    Args:
        recipe: with the statistics of its series.
        reader: of the set; None where it is not here.
        facts: of the classes.
        day: on which rules are in force.

    Raises:
        InputError: the set has no validation place, or its rules do not fit.
        EnvironmentLacksError: scipy, which compiles rules, is not installed.
    """
    made_up = [_forbidden(recipe, 0)] * len(GOLDEN_WITHOUT)
    invented = f"the made-up rule that {recipe.io.classes[0].name} has no probability"
    if reader is None:
        return GoldenPlaces(
            [_synthetic(recipe, without) for without in GOLDEN_WITHOUT], made_up,
            f"synthetic places (no data set at hand), with {invented}",
        )  # fmt: skip
    every = reader.rows_of("val")
    # kinds are left out of places that have all, where there are such
    whole = [at for at in every if len(reader.left(at, ())) == len(KINDS)]
    rows = whole or every
    picks = [rows[(number * len(rows)) // len(GOLDEN_WITHOUT)] for number in range(len(made_up))]
    places = [
        reader(at, _takeable(reader, at, without))
        for at, without in zip(picks, GOLDEN_WITHOUT, strict=True)
    ]
    about = reader.places.about
    names = ", ".join(dict.fromkeys(reader.places.rows[at].name for at in picks))
    source = f"real places of {about.name}, split val: {names}"
    if about.simulated:
        source = f"SIMULATED places of {about.name}, split val: {names}"
    policy = set_rules(reader.places)
    if policy is None:
        return GoldenPlaces(places, made_up, f"{source}; with {invented}")
    zones = [reader.places.rows[at].zone for at in picks]
    known = rules_of_zones(
        policy, zones, day, reader.places.classes, facts, recipe.io.rules.rows
    )  # fmt: skip
    limits = [known[zone].limits for zone in zones]
    return GoldenPlaces(places, limits, f"{source}; with the rules {policy.name} on {day}")


def _forbidden(recipe: PlaceRecipe, number: int) -> Limits:
    """The rule that a class has no probability, filled up with rows that limit nothing."""
    rows, classes = recipe.io.rules.rows, len(recipe.io.classes)
    rules, bounds = np.zeros((rows, classes), np.float32), np.ones(rows, np.float32)
    rules[0, number], bounds[0] = 1, 0
    inside = np.full(classes, 1 / (classes - 1), np.float32)
    inside[number] = 0
    return Limits(rules, bounds, inside)


def _synthetic(recipe: PlaceRecipe, without: Sequence[str]) -> Evidence:
    from edgekd.deploy.export.onnx_export import synthetic_tile

    io = recipe.io
    mean, std = np.array(io.series.mean), np.array(io.series.std)
    waves = np.sin(np.arange(io.series.days)[:, None] / 9 + np.arange(len(mean)))
    vector = np.random.default_rng(20).normal(size=io.text.width)
    whole = {
        "image": synthetic_tile(io.image.tile_px, io.image.channel_count),
        "series": Plausible.of(io.series).clipped(mean + std * waves),
        "text": (vector / np.linalg.norm(vector)).astype(np.float32),
    }
    return Evidence(**{kind: value for kind, value in whole.items() if kind not in without})
