"""The file name is the name: entries of a folder are found, never listed by hand.

A student, teacher, head, sensor or backend is one ``.py`` file; a target or recipe is one
``.yaml`` file. Names that begin with an underscore are shared parts and not entries.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from types import ModuleType

import edgekd
from edgekd.errors import InputError


def package_root() -> Path:
    """Folder of the installed ``edgekd`` package."""
    return Path(edgekd.__file__).resolve().parent


def engines_root() -> Path:
    """Folder that holds the recipes and ``targets/``.

    In a source tree it is ``engines/`` beside the package, in an installed wheel
    ``edgekd/_engines``.

    Raises:
        InputError: neither folder exists.
    """
    for folder in (package_root() / "_engines", package_root().parent / "engines"):
        if folder.is_dir():
            return folder
    raise InputError("the folder engines/ was not found beside the package; reinstall edgekd")


def nearest(name: str, valid: list[str]) -> str:
    """The clause `` Did you mean 'x'?`` for the closest valid name, or an empty string."""
    match = difflib.get_close_matches(name, valid, n=1, cutoff=0.55)
    return f"; did you mean '{match[0]}'?" if match else ""


def module_names(package: str) -> list[str]:
    """Names of the entries of a package folder such as ``edgekd.train.students``, sorted.

    The modules are not imported, so torch is not needed to list them.
    """
    folder = package_root().joinpath(*package.split(".")[1:])
    return sorted(
        path.stem
        for path in folder.glob("*.py")
        if not path.stem.startswith("_") and path.stem != "base"
    )


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import entry ``name`` of ``package``.

    Args:
        package: dotted package, e.g. ``edgekd.train.students``.
        name: the entry.
        kind: what an entry is called in messages, e.g. ``student``.

    Raises:
        InputError: no such entry; names the nearest and all valid ones.
    """
    valid = module_names(package)
    if name not in valid:
        raise InputError(
            f"{kind} '{name}' does not exist{nearest(name, valid)} (valid: {', '.join(valid)})"
        )
    return importlib.import_module(f"{package}.{name}")


def yaml_names(folder: Path) -> list[str]:
    """Names of the ``.yaml`` files directly in ``folder``, sorted."""
    return sorted(path.stem for path in folder.glob("*.yaml"))
