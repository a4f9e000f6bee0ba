"""``series.json`` of a set that a test made, as ``edgekd series`` would have written it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from edgekd.contracts.artifacts import sha256_file, write_json
from edgekd.contracts.schema import parse_document
from edgekd.contracts.series_windows import SeriesRecord


def source(
    station: str = "", buoy: str = "", datum: str | None = None, *files: str
) -> dict[str, Any]:
    """Of what series are made; ``files`` are hashes of files of levels."""
    return {
        "station": station, "buoy": buoy, "datum": datum, "weather": [], "notes": [],
        "levels": [{"name": f"{name}.csv", "sha256": name} for name in files],
    }  # fmt: skip


def record_values(
    windows: Sequence[tuple[int, str, str]], sources: Sequence[dict[str, Any]], **more: Any
) -> dict[str, Any]:
    """Values of a record whose windows are ``(source, first day, last day)``."""
    return {
        "schema": 1, "file": "series.npz", "sha256": "0", "edgekd_version": "0", "days": 1,
        "features": ["level_m"], "least": 0.75, "sources": list(sources),
        "series": [
            {"source": of, "first_day": first, "last_day": last, "days_measured": {}}
            for of, first, last in windows
        ],
        **more,
    }  # fmt: skip


def record_of(
    windows: Sequence[tuple[int, str, str]], sources: Sequence[dict[str, Any]]
) -> SeriesRecord:
    """The same, parsed."""
    return parse_document(SeriesRecord, record_values(windows, sources), {}, "a test")


def write_record(folder: Path, years: Sequence[int], datum: str = "MHHW", **more: Any) -> Path:
    """Write ``series.json`` of a set: of one station, a series of the first days of each year.

    Args:
        years: of each series; the same year twice are the same days.
        more: values in place of those that fit.
    """
    shape = yaml.safe_load((folder / "places.yaml").read_text())["series"]
    with np.load(folder / "series.npz") as stored:
        assert len(stored["values"]) == len(years)
    windows = [(0, f"{year}-01-01", f"{year}-02-04") for year in years]
    values = record_values(windows, [source("9447130", datum=datum)], days=shape["days"])
    values |= {"sha256": sha256_file(folder / "series.npz"), "features": shape["features"]}
    write_json(folder / "series.json", values | more)
    return folder / "series.json"
