"""Sets of places with what real ones have: places without a kind, and impossible values."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgekd.contracts.place_set import COLUMNS


def blank(folder: Path, lacks: Callable[[str, int], str]) -> Path:
    """Empty cells of the table.

    Args:
        lacks: split and number in it -> names of columns with spaces between, '' for none.
    """
    with (folder / "places.csv").open(newline="", encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    assert tuple(head) == COLUMNS
    seen: dict[str, int] = {}
    for row in rows:
        split = row[COLUMNS.index("split")]
        number = seen.setdefault(split, 0)
        seen[split] += 1
        for name in lacks(split, number).split():
            row[COLUMNS.index(name)] = ""
    with (folder / "places.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return folder


def some_lack(split: str, number: int) -> str:
    """Of eight places three have all, one each lacks a kind, two have one alone."""
    del split
    return ("", "image", "", "series", "", "text", "series text", "image text")[number % 8]


def put_value(folder: Path, series: int, day: int, feature: int, value: float) -> Path:
    """Change one value of ``series.npz``; the day counts from 1."""
    path = folder / "series.npz"
    values = np.load(path)["values"]
    values[series, day - 1, feature] = value
    np.savez(path, values=values)
    return folder
