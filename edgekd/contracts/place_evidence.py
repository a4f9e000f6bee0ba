"""Places of a set as evidence, and the rules that are in force where they lie."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.datum import differ
from edgekd.contracts.evidence import Evidence, Float32, UInt8
from edgekd.contracts.imageio import Raster
from edgekd.contracts.place_set import PlaceRow, PlaceSet
from edgekd.contracts.plausible import ranges_of
from edgekd.contracts.policy import ClassFacts, Policy, load_policy
from edgekd.contracts.policy_rows import ZoneRules, compile_zone
from edgekd.contracts.tensors import ClassSpec, ImageInput, SeriesInput, TextInput
from edgekd.contracts.windows import Window
from edgekd.errors import ImageError, InputError


def check_fits(
    what: str,
    classes: Sequence[ClassSpec],
    image: ImageInput,
    series: SeriesInput,
    places: PlaceSet,
) -> None:
    """Raise unless a set has these classes, sizes, features and datum, and possible values.

    Args:
        what: whose they are, for the sentence.

    Raises:
        InputError: names what differs, or the place, day and feature of an impossible value.
    """
    about = places.about
    pairs: list[tuple[str, Any, Any]] = [
        ("classes", [item.name for item in classes], places.classes),
        ("pictures of side, px", image.tile_px, about.image_px),
        ("days of a series", series.days, about.series.days),
        ("features of a series", series.features, about.series.features),
    ]
    for name, asked, given in pairs:
        if asked != given:
            raise InputError(
                f"{what} and the set {places.root} differ in {name}: {asked} and {given}; give a "
                "set that is made for it"
            )
    if differ(series.datum, about.series.datum):
        raise InputError(
            f"{what} takes levels above {series.datum}, and those of the set {places.root} are "
            f"above {about.series.datum}: make its series again (edgekd series --to-datum "
            f"{series.datum})"
        )
    places.require_plausible(ranges_of(series))


def read_picture(row: PlaceRow, side_px: int) -> UInt8:
    """A place's picture ``(side, side, 3)`` uint8.

    Raises:
        InputError: the place has none.
        ImageError: it cannot be read, or is not of this side with three channels of 8 bits.
    """
    if row.image is None:
        raise InputError(f"place {row.name} has no picture")
    return read_picture_file(row.image, side_px)


def read_picture_file(path: Path, side_px: int) -> UInt8:
    """A picture ``(side, side, 3)`` uint8; see :func:`read_picture`."""
    with Raster(path) as image:
        if (image.height, image.width) != (side_px, side_px):
            raise ImageError(
                f"{path} has {image.height} x {image.width} px, expected {side_px} x {side_px}"
            )
        bands = image.choose_bands(None, 3)
        if image.dtypes[bands[0] - 1] != "uint8":
            raise ImageError(f"{path} has {image.dtypes[bands[0] - 1]} pixels, expected uint8")
        found: UInt8 = np.ascontiguousarray(
            image.read(Window(0, 0, side_px, side_px), bands), dtype=np.uint8
        )
    return found


def check_embeddings(texts: npt.NDArray[Any], places: PlaceSet, text: TextInput) -> Float32:
    """The embeddings of a set's texts, a row of the table each.

    Raises:
        InputError: another shape or type, or a value that is not finite.
    """
    expected = (len(places.rows), text.width)
    if texts.shape != expected or texts.dtype != np.float32:
        raise InputError(
            f"the embeddings are {texts.dtype} {texts.shape}, expected float32 {expected}: a row "
            f"for each place of {places.root}"
        )
    if not np.isfinite(texts).all():
        raise InputError("the embeddings hold a value that is not finite")
    return texts


def row_embeddings(
    places: PlaceSet,
    width: int,
    embed: Callable[[list[str]], npt.NDArray[Any]],
    split: str = "all",
) -> Float32:
    """``(rows, width)`` float32, a row of the table each; 0 where a place has no text.

    Args:
        embed: makes embeddings ``(N, width)`` of texts, each of which it is given once.
        split: whose texts are embedded; rows of others are 0, and nobody may ask for them.
    """
    found = np.zeros((len(places.rows), width), np.float32)
    asked = [row.text if split in ("all", row.split) else None for row in places.rows]
    texts = list(dict.fromkeys(text for text in asked if text is not None))
    if texts:
        known = dict(zip(texts, embed(texts), strict=True))
        for at, text in enumerate(asked):
            if text is not None:
                found[at] = known[text]
    return found


def read_embeddings(path: Path, places: PlaceSet, text: TextInput) -> Float32:
    """Embeddings from a ``.npy`` file; see :func:`check_embeddings`.

    Raises:
        InputError: it cannot be read, or does not fit.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as err:
        said = f"cannot be read as a .npy file of embeddings ({type(err).__name__})"
        if isinstance(err, FileNotFoundError):
            said = "does not exist; give a .npy file of embeddings, a row for each place"
        raise InputError(f"{path} {said}") from err
    if not isinstance(values, np.ndarray):
        raise InputError(f"{path} holds several arrays, expected one .npy array of embeddings")
    return check_embeddings(values, places, text)


class PlaceReader:
    """What is known of the places of a set.

    Args:
        places: the set, that :func:`check_fits` accepted.
        image: input that pictures are for.
        texts: ``(rows, width)`` float32 embeddings, a row of the table each; those of places
            without a text are not looked at.
    """

    def __init__(self, places: PlaceSet, image: ImageInput, texts: Float32) -> None:
        self.places, self.texts = places, texts
        self._side_px = image.tile_px

    def __call__(self, at: int, without: Sequence[str] = ()) -> Evidence:
        """What the place in row ``at`` of the table has, less some kinds.

        Raises:
            ImageError: its picture cannot be read, or has another size.
        """
        row = self.places.rows[at]
        kinds = self.left(at, without)
        return Evidence(
            image=read_picture(row, self._side_px) if "image" in kinds else None,
            series=self.places.series[row.series]
            if row.series is not None and "series" in kinds
            else None,
            text=self.texts[at] if "text" in kinds else None,
        )

    def left(self, at: int, without: Sequence[str]) -> tuple[str, ...]:
        """Kinds that the place in row ``at`` has besides some."""
        return tuple(kind for kind in self.places.rows[at].kinds if kind not in without)

    def rows_of(self, split: str) -> list[int]:
        """Numbers of a split's rows, or of ``all``.

        Raises:
            InputError: no such split, or the set has no place of it.
        """
        if split == "all":
            return list(range(len(self.places.rows)))
        wanted = {row.name for row in self.places.part(split)}
        return [at for at, row in enumerate(self.places.rows) if row.name in wanted]


def set_rules(places: PlaceSet) -> Policy | None:
    """The rules that come with a set; None where it has none."""
    if places.about.rules is None:
        return None
    found = load_policy(places.root / places.about.rules)
    found.require_datum(places.about.series.datum, f"the set {places.root} has")
    return found


def rules_of_zones(
    policy: Policy,
    zones: Iterable[str],
    day: datetime.date,
    classes: Sequence[str],
    facts: Mapping[str, ClassFacts],
    rows: int,
) -> dict[str, ZoneRules]:
    """Zone -> its rules on a day, each made once.

    Raises:
        InputError: see :func:`edgekd.contracts.policy_rows.compile_zone`.
        EnvironmentLacksError: scipy is not installed.
    """
    return {
        zone: compile_zone(policy, zone, day, classes, facts, rows) for zone in sorted(set(zones))
    }
