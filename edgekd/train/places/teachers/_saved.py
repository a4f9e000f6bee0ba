"""Teachers of places on disk: weights, and what they answer for every place of their set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd.train.checkpoint import in_folder, read_torch
from edgekd.train.teachers._saved import TEACHER_NAME

TEACHER_MARK, TEACHER_FORMAT = "edgekd_place_teacher", 1


def load_kind_teacher(path: Path) -> dict[str, Any]:
    """Read a teacher's file, or that of a stage's folder.

    Returns:
        ``recipe``, ``entry``, ``weights``, ``sha256`` of all that decides about its answers,
        ``data``, ``answers`` ``(rows, classes)`` and ``distilled``.

    Raises:
        CheckpointError: missing, damaged, or another kind of file.
    """
    return read_torch(
        in_folder(path, TEACHER_NAME), TEACHER_MARK, TEACHER_FORMAT, "edgekd distill RECIPE"
    )
