"""A request's bytes into places, every fault in a sentence that says which place.

What comes from outside is bounded before it is worked on: the caller bounds the bytes; here keys
and rows are counted before values are looked at, and the first wrong value ends it.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, Final, NoReturn

import numpy as np

from edgekd.contracts.evidence import LEAST_DAYS, Evidence, Float32
from edgekd.contracts.schema import parse_document, too_deep
from edgekd.errors import InputError
from edgekd.serve.model import Asks
from edgekd.serve.picture import read_picture
from edgekd.serve.wire import PlaceAsked, PredictAsked

SOURCE: Final = "the request"
_KEYS_MOST: Final = 32
#: beyond any unit's measurement, and far below what single precision holds
_NUMBER_MOST: Final = 1e30
#: what JSON's numbers and null are; true is none
_NUMBERS: Final = frozenset({float, int, type(None)})


def read_json(body: bytes) -> dict[str, Any]:
    """The object of a body.

    Raises:
        InputError: not UTF-8, not JSON, NaN or infinity in it, a key that stands twice, or no
            object.
    """
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputError(f"{SOURCE} is not UTF-8: byte {err.start} is no part of it") from err
    if not text.strip():
        raise InputError(f'{SOURCE} is empty, expected JSON: {{"places": [{{"zone": ...}}]}}')
    try:
        value = json.loads(text, parse_constant=_no_number, object_pairs_hook=_pairs)
    except json.JSONDecodeError as err:
        raise InputError(
            f"{SOURCE} is no JSON: line {err.lineno}, column {err.colno}: {err.msg}"
        ) from err
    except (ValueError, RecursionError) as err:  # digits without end; too deep
        raise InputError(f"{SOURCE} is no JSON that can be read: {too_deep(err)}") from err
    if not isinstance(value, dict):
        raise InputError(f'{SOURCE} is no object, expected {{"places": [{{"zone": ...}}]}}')
    return value


def _no_number(name: str) -> NoReturn:
    raise InputError(f"{SOURCE} holds {name}, which is no JSON and no measurement; a gap is null")


def _pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise InputError(f"{SOURCE} holds the key '{key[:80]}' twice in one object")
        found[key] = value
    return found


def read_places(body: bytes) -> list[PlaceAsked]:
    """What is asked, its pictures and series not yet looked at.

    Raises:
        InputError: see :func:`read_json`.
        RecipeError: keys that lack or are unknown, or values of a wrong kind.
    """
    value = read_json(body)
    places = value.get("places")
    for item in (value, *(places if isinstance(places, list) else [])):
        if isinstance(item, dict) and len(item) > _KEYS_MOST:  # each would be a fault of its own
            raise InputError(f"an object of {SOURCE} has {len(item)} keys, expected a handful")
    return parse_document(PredictAsked, value, {}, SOURCE).places


def evidence_of(place: PlaceAsked, number: int, asks: Asks) -> Evidence:
    """Picture and series of a place; its text is not looked at.

    Args:
        place: as it was asked.
        number: of the place in the request, from 1, for the message.
        asks: what the model takes.

    Raises:
        InputError: a picture, series or datum that does not fit.
    """
    try:
        _same_datum(place, asks)
        return Evidence(
            image=None if place.image is None else _picture(place.image, asks),
            series=None if place.series is None else _series(place.series, asks),
        )
    except InputError as err:
        raise InputError(f"place {number}: {err}") from err


def _same_datum(place: PlaceAsked, asks: Asks) -> None:
    if place.datum is None:
        return
    if place.series is None:
        raise InputError(f"there is a datum, {place.datum}, and no series; leave it out")
    if place.datum == asks.datum:
        return
    if asks.datum is None:
        raise InputError(
            f"levels are said to be above {place.datum}, and the model {asks.name} does not say "
            "what those that it learned from were above; leave datum out"
        )
    raise InputError(
        f"levels are above {place.datum}, and the model {asks.name} takes those above "
        f"{asks.datum}; subtract how much higher {asks.datum} lies"
    )


def _picture(text: str, asks: Asks) -> Any:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as err:
        hint = "; leave out what stands before the comma" if text.startswith("data:") else ""
        raise InputError(f"the picture is not base64: {err}{hint}") from err
    return read_picture(data, asks.side_px)


def _series(rows: list[Any], asks: Asks) -> Float32:
    days, features = asks.days, len(asks.features)
    if len(rows) != days:
        much = "short" if len(rows) < days else "long"
        raise InputError(
            f"the series is too {much}: {len(rows)} days, expected {days}; the newest day is the "
            "last, and a day without a value is a row of null"
        )
    shaped = all(
        type(row) is list and len(row) == features and _NUMBERS.issuperset(map(type, row))
        for row in rows
    )
    if not shaped:
        _say_fault(rows, asks)
    try:
        wide = np.array(rows, np.float64)  # None is NaN
    except OverflowError:  # an integer of hundreds of digits
        _say_fault(rows, asks)
    if not (np.isnan(wide) | (np.abs(wide) <= _NUMBER_MOST)).all():
        _say_fault(rows, asks)
    found = wide.astype(np.float32)
    asks.plausible.require(found, "null")
    measured = int((~np.isnan(found)).any(axis=1).sum())
    if measured < LEAST_DAYS:
        raise InputError(
            f"the series has values on {measured} of {days} days, expected {LEAST_DAYS} or more; "
            "leave it out"
        )
    return found


def _say_fault(rows: list[Any], asks: Asks) -> NoReturn:
    """Raise for the first value that is none; looked for only where there is one."""
    features = len(asks.features)
    for day, row in enumerate(rows, 1):
        if not isinstance(row, list) or len(row) != features:
            held = f"{len(row)} values" if isinstance(row, list) else "no list"
            raise InputError(
                f"day {day} of the series has {held}, expected {features}: "
                f"{', '.join(asks.features)}"
            )
        for value, feature in zip(row, asks.features, strict=True):
            if type(value) not in _NUMBERS:
                said = repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"
                raise InputError(
                    f"{feature} of day {day} of the series is {said}, expected a number, or null "
                    "where nothing was measured"
                )
            if value is not None and not abs(value) <= _NUMBER_MOST:  # 1e999 is read as infinite
                raise InputError(
                    f"{feature} of day {day} of the series is {str(value)[:40]}, which is no "
                    "measurement; null is a gap"
                )
    raise AssertionError("no fault in the series")
