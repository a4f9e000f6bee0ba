"""What a document's keys mean, read from the docstrings of its schema."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args, get_origin

import pydantic
from pydantic_core import PydanticUndefined

from edgekd.contracts.schema import Document


class Key(NamedTuple):
    """A key that may be written.

    Attributes:
        name: dotted; ``[]`` stands for an item of a list, ``*`` for a name of one's own.
        default: as YAML would show it; ``required`` where there is none.
        meaning: in words.
    """

    name: str
    default: str
    meaning: str


def keys_of(kind: type[Document], prefix: str = "") -> Iterator[Key]:
    """Every key of a document and of those inside it, in the order of the schema."""
    meanings = _meanings(kind)
    for name, field in kind.model_fields.items():
        key = field.alias or name
        written, meaning = f"{prefix}{key}", meanings.get(name) or meanings.get(key, "")
        inner, many = _inside(field.annotation)
        if inner is not None:
            first = (inspect.getdoc(inner) or "").split("\n\n")[0]
            written += "" if many is None else "[]" if many is list else ".*"
            yield Key(written, "", meaning or " ".join(first.split()))
            yield from keys_of(inner, f"{written}.")
        else:
            yield Key(written, _default(field), meaning)


def _meanings(kind: type[Document]) -> dict[str, str]:
    """Field -> its entry under ``Attributes``, of the class and those it extends."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        text = inspect.cleandoc(base.__doc__ or "")
        part = text.partition("Attributes:\n")[2]
        for match in re.finditer(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", part, re.MULTILINE):
            for name in match[1].split(", "):
                found[name] = " ".join(match[2].replace("``", "").split())
    return found


def _inside(annotation: Any) -> tuple[type[Document] | None, type | None]:
    """The document in ``X``, ``X | None``, ``list[X]`` or ``dict[str, X]``; ``list`` or ``dict``
    where it is of those."""
    if isinstance(annotation, type) and issubclass(annotation, Document):
        return annotation, None
    for argument in get_args(annotation):
        inner, many = _inside(argument)
        if inner is not None:
            here = get_origin(annotation)
            return inner, many or (here if here in (list, dict) else None)
    return None, None


def _default(field: pydantic.fields.FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
