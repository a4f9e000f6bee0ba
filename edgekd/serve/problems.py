"""Every error as one shape: a status, a sentence, and no traceback."""

from __future__ import annotations

import json
from typing import Any, Final

from edgekd.errors import (
    ConflictError,
    EdgeKDError,
    EnvironmentLacksError,
    InputError,
    OutputError,
    RecipeError,
)
from edgekd.serve.wire import Problem
from edgekd.serve.worker import Busy

#: a request of a thousand faults is not answered with a thousand sentences
_LETTERS: Final = 2000
#: what the machine lacks, somebody must bring first
_LATER_S: Final = 30
_FAULTS, _FAULT_LETTERS = 20, 500
#: the first that fits: what cannot be written is a kind of wrong input elsewhere
_STATUS: Final[tuple[tuple[type[EdgeKDError], int], ...]] = (
    (OutputError, 507),
    (ConflictError, 409),
    (EnvironmentLacksError, 503),
    (InputError, 422),
    (EdgeKDError, 500),
)
JSON_TYPE: Final = "application/json"


def encoded(value: Any) -> bytes:
    """JSON; what is no Unicode (half of a surrogate pair) is written as its number."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def problem(status: int, sentence: str, faults: list[str] | None = None) -> bytes:
    """The body of an error."""
    cut = [_short(fault, _FAULT_LETTERS) for fault in (faults or [])[:_FAULTS]]
    if faults and len(faults) > _FAULTS:
        cut.append(f"... and {len(faults) - _FAULTS} more")
    said = Problem(error=_short(sentence, _LETTERS), faults=cut, status=status)
    return encoded(said.model_dump())


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} ... ({len(text)} letters in all)"


def of_error(err: EdgeKDError | Busy) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of what was raised."""
    if isinstance(err, Busy):
        return 503, problem(503, str(err)), {"retry-after": str(err.retry_after_s)}
    status = next(number for kind, number in _STATUS if isinstance(err, kind))
    faults = err.problems if isinstance(err, RecipeError) else None
    headers = {"retry-after": str(_LATER_S)} if status == 503 else {}
    return status, problem(status, str(err), faults), headers


def of_status(status: int, path: str, method: str, allowed: str, detail: str) -> bytes:
    """The sentence of what the framework refuses by itself, and of what it is told to."""
    if status == 404:
        sentence = f"there is nothing at {path[:200]}; /openapi.json tells what there is"
    elif status == 405:
        sentence = f"{path[:200]} does not take {method[:20]}, expected {allowed}"
    else:
        sentence = detail
    return problem(status, sentence)
