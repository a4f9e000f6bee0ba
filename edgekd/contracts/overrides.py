"""Values of a recipe that come from a preset or from the command line, with their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.contracts import registry
from edgekd.contracts.schema import FROM_COMMAND, Place, read_yaml
from edgekd.errors import InputError


def overridden(path: Path, overrides: list[str]) -> tuple[dict[str, Any], dict[Place, int]]:
    """A file's values after its preset and what the command line changes, and their lines.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` texts; ``preset=NAME`` comes before all others.

    Raises:
        InputError: the file cannot be read, a text is not ``key=value``, or no such preset.
    """
    value, lines = read_yaml(path)
    chosen = [text for text in overrides if text.partition("=")[0] == "preset"]
    for text in chosen:
        mark(lines, override(value, text))
    apply_preset(value, lines, path)
    for text in overrides:
        if text not in chosen:
            mark(lines, override(value, text))
    return value, lines


def mark(lines: dict[Place, int], place: Place) -> None:
    """This value, and all inside it, came from the command line."""
    for inner in [other for other in lines if other[: len(place)] == place]:
        del lines[inner]
    lines[place] = FROM_COMMAND


def apply_preset(value: dict[str, Any], lines: dict[Place, int], path: Path) -> None:
    """Merge the chosen preset into the recipe: mappings key by key, everything else whole."""
    presets = value.pop("presets", None) or {}
    name = value.get("preset")
    if not isinstance(presets, dict) or not all(isinstance(v, dict) for v in presets.values()):
        raise InputError(f"{path}: presets must hold a name and below it the values to replace")
    if name is None:
        return
    if name not in presets:
        valid = sorted(presets)
        raise InputError(
            f"{path} has no preset '{name}'{registry.nearest(str(name), valid)} "
            f"(valid: {', '.join(valid) or 'none'})"
        )
    places = {place[2:]: line for place, line in lines.items() if place[:2] == ("presets", name)}

    def merge(into: dict[str, Any], new: dict[str, Any], here: Place) -> None:
        for key, item in new.items():
            place = (*here, key)
            lines[place] = places[place]
            if isinstance(item, dict) and isinstance(into.get(key), dict):
                merge(into[key], item, place)
                continue
            into[key] = item
            for inner in [old for old in lines if old[: len(place)] == place and old != place]:
                del lines[inner]
            lines.update({p: n for p, n in places.items() if p[: len(place)] == place})

    merge(value, presets[name], ())


def override(value: dict[str, Any], text: str) -> Place:
    """Put the value of ``dotted.key=value`` in its place; a number counts list items from 0."""
    import yaml

    key, equals, raw = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise InputError(f"--set expects dotted.key=value, received '{text}'")
    try:
        new = yaml.safe_load(raw)
    except yaml.YAMLError as err:
        raise InputError(f"--set {text}: the value is not YAML") from err
    target: Any = value
    place: list[str | int] = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if isinstance(target, list):
            if not (part.isascii() and part.isdigit() and int(part) < len(target)):
                raise InputError(
                    f"--set {text}: '{part}' is no item of a list of {len(target)} (counted from 0)"
                )
            place.append(int(part))
            if last:
                target[int(part)] = new
            else:
                target = target[int(part)]
        elif isinstance(target, dict):
            place.append(part)
            if last:
                target[part] = new
            else:
                target = target.setdefault(part, {})
        else:
            raise InputError(f"--set {text}: '{part}' is inside a value that holds no keys")
    return tuple(place)
