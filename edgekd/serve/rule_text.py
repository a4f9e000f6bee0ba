"""Rules as somebody sends them: bytes of YAML or JSON from outside, bounded before they are read.

A reader of YAML takes time by the value, and aliases of aliases make millions of values of a few
lines. So a text has at most :data:`MOST_BYTES`, aliases are refused, and JSON is read as JSON (its
tabs and its pairs of surrogates are none in YAML).
"""

from __future__ import annotations

import json
from typing import Any, Final

from edgekd.contracts.policy import Policy
from edgekd.contracts.schema import Place, parse_document, parse_yaml, too_deep
from edgekd.errors import InputError, RecipeError

#: some 700 rules, and seconds to read whatever stands there; 1 MiB of small values took 29 s
MOST_BYTES: Final = 128 * 1024
#: what messages call the text
SOURCE: Final = "this text of rules"


def as_bytes(text: bytes | str) -> bytes:
    """What is kept and hashed.

    Raises:
        InputError: not text, empty, more than :data:`MOST_BYTES`, or no Unicode.
    """
    if not isinstance(text, (str, bytes)):
        raise InputError(f"{SOURCE} is a {type(text).__name__}, expected text or bytes")
    try:
        data = text.encode("utf-8") if isinstance(text, str) else text
    except UnicodeEncodeError as err:
        raise InputError(f"{SOURCE} holds half of a surrogate pair, which is no character") from err
    if len(data) > MOST_BYTES:
        raise InputError(
            f"{SOURCE} has {len(data)} bytes, expected at most {MOST_BYTES}; leave out rules that "
            "are no longer in force"
        )
    if not data.strip():
        raise InputError(f"{SOURCE} is empty; a place without rules has zones, and 'rules: []'")
    return data


def parse_rules(data: bytes) -> Policy:
    """A policy of YAML or JSON.

    Raises:
        InputError: not UTF-8.
        RecipeError: every fault, those of YAML with their lines.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputError(f"{SOURCE} is not UTF-8: byte {err.start} is no part of it") from err
    lines: dict[Place, int] = {}
    value = _json(text)
    if value is None:
        value, lines = parse_yaml(text, SOURCE, aliases=False)
    policy = parse_document(Policy, value, lines, SOURCE)
    try:
        policy.digest  # noqa: B018 - it is of UTF-8, which an escaped half of a pair has not
    except UnicodeEncodeError as err:
        raise RecipeError(SOURCE, ["an escape (\\u...) is half of a surrogate pair"]) from err
    return policy


def require_json(data: bytes) -> None:
    """Raise unless a body that was called JSON is an object of it; YAML would be read as well.

    Raises:
        InputError: it is none.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):  # no UTF-8, too
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"{SOURCE} is no JSON object, and was sent as application/json; send YAML with "
            "Content-Type: application/yaml"
        )


def _json(text: str) -> dict[str, Any] | None:
    """The object of a JSON text; None where it is none, and may be YAML."""
    if not text.lstrip().startswith("{"):
        return None
    problems: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in items:
            if key in found:
                problems.append(f"key '{key}' stands twice")
            found[key] = value
        return found

    try:
        value = json.loads(text, object_pairs_hook=pairs)
    except json.JSONDecodeError:  # braces of YAML, or a fault that its reader tells with its line
        return None
    except (ValueError, RecursionError) as err:  # digits without end; too deep
        raise RecipeError(SOURCE, [f"not JSON that can be read: {too_deep(err)}"]) from err
    if problems:
        raise RecipeError(SOURCE, problems)
    assert isinstance(value, dict)  # it begins with a brace
    return value
