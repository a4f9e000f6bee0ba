"""YAML in, typed document out, with every fault at once: line, key, expectation, nearest name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import pydantic
import yaml

from edgekd.contracts.artifacts import read_text
from edgekd.contracts.registry import nearest
from edgekd.errors import InputError, RecipeError

Place = tuple[str | int, ...]
#: "line" of a value that came from the command line (--set) and not from the file.
FROM_COMMAND = -1
#: letters of a wrong value in a message
_SHOWN = 200
#: numbers of YAML 1.1 in another base than ten: octal, hexadecimal, binary, sixties
_OTHER_BASE = re.compile(r"[-+]?(0[0-9xXbBoO_]|[0-9_]+:)")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class Document(pydantic.BaseModel):
    """Base of every schema here: unknown keys are faults, values never change afterwards."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: object, info: pydantic.ValidationInfo) -> object:
        """Refuse ``steps: yes``, which would be read as 1."""
        if isinstance(value, bool):
            annotation = cls.model_fields[str(info.field_name)].annotation
            if not {bool, Any} & {annotation, *get_args(annotation)}:
                raise ValueError(f"{str(value).lower()} (yes/no in YAML) is no value for this key")
        return value


def too_deep(err: Exception) -> str:
    """What a reader said, but for Python's own words on brackets in brackets in brackets."""
    return "nested too deep" if isinstance(err, RecursionError) else str(err)


D = TypeVar("D", bound=Document)


class _Reader:
    """Builds plain Python values from YAML nodes and remembers the line of every key."""

    def __init__(self, aliases: bool) -> None:
        self.lines: dict[Place, int] = {(): 1}
        self.problems: list[str] = []
        self._scalars = yaml.SafeLoader("")
        #: of nodes, which live as long as their tree; None where a second visit is no fault
        self._seen: set[int] | None = None if aliases else set()

    def value(self, node: yaml.Node, place: Place) -> Any:
        if self._seen is not None:
            if id(node) in self._seen:
                line = node.start_mark.line + 1
                fault = f"line {line}: an alias repeats what stands here; write it out"
                if fault not in self.problems:
                    self.problems.append(fault)
                return None
            self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, child in enumerate(node.value):
                here = (*place, index)
                self.lines[here] = child.start_mark.line + 1
                items.append(self.value(child, here))
            return items
        value = self._scalars.construct_object(node, deep=True)
        # 010 is 8 to YAML 1.1, and 1:30 is 90: not what who wrote it meant
        if type(value) in (int, float) and _OTHER_BASE.match(node.value):
            self.problems.append(
                f"line {node.start_mark.line + 1}: {node.value[:40]} would be read as {value:g}; "
                "write a plain decimal number, or a text in quotes"
            )
        return value

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, child in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(f"line {line}: a key must be a plain word")
                continue
            key = key_node.value
            here = (*place, key)
            if key in result:
                self.problems.append(
                    f"line {line}: key '{key}' stands twice (first on line {self.lines[here]})"
                )
            self.lines[here] = line
            result[key] = self.value(child, here)
        return result


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[Place, int]]:
    """Parse a YAML file to plain values and the line number of each key.

    Raises:
        InputError: missing, empty or not text.
        RecipeError: not YAML, not a mapping, or a key that stands twice.
    """
    return parse_yaml(read_text(path), str(path))


def parse_yaml(
    text: str, source: str, aliases: bool = True
) -> tuple[dict[str, Any], dict[Place, int]]:
    """Like :func:`read_yaml`, of a text.

    Args:
        text: the document.
        source: what to call it in messages.
        aliases: whether ``*name`` may repeat ``&name``; a few lines of aliases of aliases stand
            for millions of values, so not in a text from somebody else.

    Raises:
        RecipeError: not YAML, not a mapping, a key that stands twice, or an alias.
    """
    reader = _Reader(aliases)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        value = reader.value(node, ()) if node is not None else None
    except yaml.YAMLError as err:
        mark = getattr(err, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(err, "problem", None) or str(err).splitlines()[0]
        raise RecipeError(source, [f"line {line}: not YAML: {problem}"]) from err
    except (ValueError, RecursionError) as err:  # an impossible date; an anchor inside itself
        raise RecipeError(source, [f"line 1: not YAML that can be read: {too_deep(err)}"]) from err
    if reader.problems:
        raise RecipeError(source, reader.problems)
    if not isinstance(value, dict):
        raise RecipeError(source, ["line 1: expected keys and values, e.g. 'schema: 1'"])
    return value, reader.lines


def parse_document(kind: type[D], value: dict[str, Any], lines: dict[Place, int], source: str) -> D:
    """Validate plain values against a schema.

    Args:
        kind: the schema.
        value: as returned by :func:`read_yaml`.
        lines: line of every key; an empty dict when the values did not come from a file.
        source: what to call the document in messages.

    Raises:
        RecipeError: lists every fault, each with its line.
    """
    try:
        return kind.model_validate(value)
    except pydantic.ValidationError as err:
        faults: list[tuple[int, str]] = []
        for fault in err.errors():
            line, text = _describe(kind, dict(fault), lines, value)
            if lines:
                text = f"{'--set' if line == FROM_COMMAND else f'line {line}'}: {text}"
            if (line, text) not in faults:
                faults.append((line, text))
        raise RecipeError(source, [text for _, text in sorted(faults)]) from err


def load_document(kind: type[D], path: Path) -> D:
    """Read and validate a YAML file; see :func:`read_yaml` and :func:`parse_document`."""
    value, lines = read_yaml(path)
    return parse_document(kind, value, lines, str(path))


def _describe(
    kind: type[Document], fault: dict[str, Any], lines: dict[Place, int], value: Any
) -> tuple[int, str]:
    place: Place = tuple(fault["loc"])
    written = _written(value, place)
    while place and place not in lines and fault["type"] != "missing":
        place = place[:-1]
    parent = place[:-1] if fault["type"] == "missing" else place
    line = lines.get(place) or lines.get(parent) or 1
    dotted = ".".join(str(part) for part in (written if lines else fault["loc"]))
    where = ".".join(str(part) for part in fault["loc"][:-1]) or "the document"
    key = str(fault["loc"][-1]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        valid = sorted(_fields(kind, tuple(fault["loc"][:-1])))
        return (
            line,
            f"unknown key '{key}' in {where}{nearest(key, valid)} (valid: {', '.join(valid)})",
        )
    if fault["type"] == "missing":
        return line, f"{where} lacks the key '{key}'"
    if fault["type"] == "literal_error":
        expected = str(fault["ctx"]["expected"])
        choices = re.findall(r"'([^']*)'", expected)
        hint = nearest(str(fault["input"]), choices)
        return line, f"{dotted} is {fault['input']!r}, expected {expected}{hint}"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return line, f"{dotted}: {message}" if dotted else message
    message = message[0].lower() + message[1:]
    return line, f"{dotted} is {_shown(fault['input'])}, but {message}"


def _shown(value: object) -> str:
    """A value for a message; the message must not drown in it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} letters)"


def _written(value: Any, place: Place) -> Place:
    """The part of a fault's place that stands in the document; pydantic adds names of its own."""
    found: list[str | int] = []
    for part in place:
        inside = isinstance(value, dict) and part in value
        if not inside and isinstance(value, list) and isinstance(part, int):
            inside = part < len(value)
        if not inside:
            break
        value = value[part]
        found.append(part)
    return tuple(found)


def _fields(kind: Any, place: Place) -> set[str]:
    """Valid keys of the (nested) schema at ``place``."""
    named = False  # by a key of the user's own, not of the schema
    for part in place:
        if not isinstance(part, str) or named:
            named = False
            continue
        annotation = kind.model_fields[part].annotation
        kind, named = _inner(annotation), _is_mapping(annotation)
    fields = getattr(kind, "model_fields", {})
    return {field.alias or name for name, field in fields.items()}


def _is_mapping(annotation: Any) -> bool:
    """Whether ``dict[name, schema]`` is what an annotation comes to."""
    return get_origin(annotation) is dict or any(map(_is_mapping, get_args(annotation)))


def _inner(annotation: Any) -> Any:
    """The schema inside ``X | None``, ``list[X]`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return annotation
    if get_origin(annotation) is not None:
        for argument in get_args(annotation):
            found = _inner(argument)
            if found is not None:
                return found
    return None


def resolve_path(text: str, base: Path) -> Path:
    """A path written in a document, as an absolute path.

    ``${NAME}`` and ``${NAME:-default}`` are replaced from the environment; a relative path that
    comes from the environment counts from the working directory (the user typed it there), every
    other relative path from ``base``, the folder of the document.

    Raises:
        InputError: a variable without default is not set.
    """
    from_environment = False

    def substitute(match: re.Match[str]) -> str:
        nonlocal from_environment
        value = os.environ.get(match[1], "")
        if value and match.start() == 0:
            from_environment = True
        if not value and match[2] is None:
            raise InputError(f"{text} names the variable {match[1]}, which is not set")
        return value or str(match[2])

    path = Path(_VARIABLE.sub(substitute, text)).expanduser()
    if path.is_absolute():
        return path
    return ((Path.cwd() if from_environment else base) / path).resolve()
