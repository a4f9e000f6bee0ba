"""Images in folders, in lists, and named one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from edgekd.contracts.artifacts import read_text
from edgekd.errors import DatasetError, InputError

#: formats that are decoded from the first row on.
SEQUENTIAL = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: looked for in folders; a VRT only counts where it is named, because it repeats other files.
_SUFFIXES = (".tif", ".tiff", ".jp2", *SEQUENTIAL)
_LISTS = (".txt", ".lst", ".list")


def find_images(root: Path) -> list[tuple[str, Path]]:
    """Name and path of every image at ``root``, in the order of names."""
    try:
        if root.is_dir():
            found = sorted((path.relative_to(root).as_posix(), path) for path in _walk(root))
        elif not root.exists():
            raise InputError(f"{root} does not exist; correct distill.data.roots")
        elif root.suffix.lower() in _LISTS:
            found = list(_listed(root))
        elif root.suffix.lower() in (*_SUFFIXES, ".vrt"):
            return [(root.name, root)]
        else:
            raise InputError(
                f"{root} is neither a folder, nor an image ({', '.join(_SUFFIXES)}, .vrt), nor a "
                f"list of images ({', '.join(_LISTS)}); correct distill.data.roots"
            )
    except OSError as err:
        raise InputError(f"{err.filename or root} cannot be searched: {err.strerror}") from err
    if not found:
        raise DatasetError(
            f"{root} holds no image ({', '.join(_SUFFIXES)}); correct distill.data.roots"
        )
    return found


def _walk(folder: Path) -> Iterator[Path]:
    def stop(err: OSError) -> None:
        raise err

    seen = set()
    for place, folders, names in os.walk(folder, onerror=stop, followlinks=True):
        real = Path(place).resolve()
        # a link back to a folder above would never end
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        for name in () if real in seen else names:
            if name[0] != "." and name.lower().endswith(_SUFFIXES):
                yield Path(place, name)
        seen.add(real)


def _listed(path: Path) -> Iterator[tuple[str, Path]]:
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        entry = path.parent / text
        if not entry.exists():
            raise InputError(f"{path} line {number}: {entry} does not exist; correct the list")
        if entry.suffix.lower() in _LISTS:
            raise InputError(f"{path} line {number}: a list may not name another list")
        inside = find_images(entry)
        for name, file in inside:
            yield (f"{text}/{name}" if entry.is_dir() else text), file
