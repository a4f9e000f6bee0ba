"""Which names each TensorRT has, from ``tests/data/tensorrt_api.json``."""

from __future__ import annotations

import json
from pathlib import Path

TABLE = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "tensorrt_api.json").read_text("utf-8")
)["classes"]
#: column of the table -> how that TensorRT calls itself
VERSIONS = {"8.6": "8.6.1", "10.3": "10.3.0", "10.13": "10.13.3.9", "11.4": "11.4.0.106"}


def names(kind: str, version: str) -> set[str]:
    """Attributes of a class in a version, a column of the table."""
    entry = TABLE[kind]
    some = {name for name, have in entry["some"].items() if version in have}
    return {*entry["every"], *some}
