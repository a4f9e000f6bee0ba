"""What students and teachers of places answer for rows of a set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from edgekd.train.places.data import PlaceData
from edgekd.train.places.networks import KindTeacher
from edgekd.train.places.students._base import PlaceStudent

Float32 = npt.NDArray[np.float32]
_BATCH = 64


def student_scores(
    model: PlaceStudent, data: PlaceData, rows: Sequence[int], without: Sequence[str] = ()
) -> Float32:
    """``(rows, classes)`` logits, in evaluation mode; the mode is put back.

    Args:
        model: the student.
        data: the set.
        rows: of its table.
        without: kinds of evidence that are left out.
    """
    io = data.recipe.io
    names = (io.image.name, io.series.name, io.text.name, "present")

    def ask(part: Sequence[int]) -> torch.Tensor:
        arrays = data.tensors([data.evidence(at, without) for at in part])
        found: torch.Tensor = model(*(_on(model, arrays[name]) for name in names))
        return found

    return _asked(model, ask, rows)


def teacher_scores(teacher: KindTeacher, data: PlaceData, rows: Sequence[int]) -> Float32:
    """``(rows, classes)`` logits of a teacher, in evaluation mode; the mode is put back."""
    return _asked(teacher, lambda part: teacher(_on(teacher, seen(teacher, data, part))), rows)


def teacher_features(teacher: KindTeacher, data: PlaceData, rows: Sequence[int]) -> Float32:
    """``(rows, width)`` of what stands before a teacher's head, in evaluation mode."""
    return _asked(
        teacher, lambda part: teacher.features(_on(teacher, seen(teacher, data, part))), rows
    )


def seen(teacher: KindTeacher, data: PlaceData, part: Sequence[int]) -> npt.NDArray[np.generic]:
    """What a teacher is given of rows."""
    if teacher.sees == "image":
        return np.stack([data.picture(at).transpose(2, 0, 1) for at in part])
    if teacher.sees == "text":
        return data.text[list(part)]
    without = ("image", "text")
    arrays = data.tensors([data.evidence(at, without) for at in part])
    return arrays[data.recipe.io.series.name]


def _on(model: torch.nn.Module, values: npt.NDArray[np.generic]) -> torch.Tensor:
    return torch.from_numpy(values).to(next(model.parameters()).device)


@torch.inference_mode()
def _asked(model: torch.nn.Module, ask: object, rows: Sequence[int]) -> Float32:
    assert callable(ask)
    training = model.training
    model.eval()
    found = [
        ask(rows[start : start + _BATCH]).float().cpu().numpy()
        for start in range(0, len(rows), _BATCH)
    ]
    model.train(training)
    return np.concatenate(found)
