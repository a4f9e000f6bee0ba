"""Pictures and series that stand in two splits under different names.

Names, groups and numbers are on one side of every split (:func:`edgekd.contracts.place_set.
load_places`); what they stand for may be on both all the same, and is told: open water may look
alike, and a copied file is learned and then asked about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from edgekd.contracts.place_set import SPLITS, PlaceSet


def picture_hashes(places: PlaceSet) -> list[bytes | None]:
    """sha256 of each row's picture file; None where it has none. Every file is read once."""
    known: dict[Path, bytes] = {}
    found: list[bytes | None] = []
    for row in places.rows:
        if row.image is not None and row.image not in known:
            known[row.image] = hashlib.sha256(row.image.read_bytes()).digest()
        found.append(None if row.image is None else known[row.image])
    return found


def twins(places: PlaceSet, hashes: Sequence[bytes | None]) -> list[str]:
    """A line for two splits that have pictures, or series, in common; none where none do.

    Args:
        hashes: of :func:`picture_hashes`.
    """
    pictures = [
        (row.split, row.image.relative_to(places.root).as_posix(), digest)
        for row, digest in zip(places.rows, hashes, strict=True)
        if row.image is not None and digest is not None
    ]
    sides = {row.series: row.split for row in places.rows if row.series is not None}
    series = []
    for number, split in sorted(sides.items()):
        values = places.series[number]
        # NaN has many patterns of bits, and each of them is a gap
        plain = np.where(np.isnan(values), np.float32(np.nan), values)
        series.append((split, str(number), hashlib.sha256(plain.tobytes()).digest()))
    return [
        *_lines("picture", "pictures", "byte for byte", pictures),
        *_lines("series", "series", "value for value", series),
    ]


def _lines(one: str, many: str, how: str, items: Iterable[tuple[str, str, bytes]]) -> list[str]:
    """Sentences on ``(split, name, digest)`` of the same digest in two splits."""
    parts: dict[str, dict[str, bytes]] = {split: {} for split in SPLITS}
    for split, name, digest in items:
        parts[split][name] = digest
    found = []
    for number, split in enumerate(SPLITS):
        for earlier in SPLITS[:number]:
            there = {digest: name for name, digest in reversed(parts[earlier].items())}
            both = [(name, there[d]) for name, d in parts[split].items() if d in there]
            if both:
                what = f"{one} of {split} is" if len(both) == 1 else f"{many} of {split} are"
                names = " and ".join(dict.fromkeys(both[0]))
                found.append(
                    f"{len(both)} {what} {how} in {earlier}, too, e.g. {names}; where that is a "
                    "copy, what is learned is tested on itself"
                )
    return found
