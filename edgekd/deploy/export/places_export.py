"""Export of a student of places: picture, series, text and what is there -> logits."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.evidence import KINDS, PRESENT, SCORES
from edgekd.contracts.optional import require
from edgekd.contracts.place_recipe import PlaceIo, PlaceRecipe
from edgekd.deploy.export.onnx_export import traced
from edgekd.deploy.parity import FloatArray, Model, Tensors
from edgekd.errors import InputError


def evidence_names(io: PlaceIo) -> list[str]:
    """Tensors that the student takes, in the order of its arguments."""
    return [io.image.name, io.series.name, io.text.name, PRESENT]


def torch_places(model: nn.Module, io: PlaceIo) -> Model:
    """The student as a function of named NumPy arrays, for parity."""
    names = evidence_names(io)

    @torch.inference_mode()
    def run(tensors: Tensors) -> FloatArray:
        result: FloatArray = model(*(torch.from_numpy(tensors[name]) for name in names)).numpy()
        return result

    return run


def export_places(model: nn.Module, recipe: PlaceRecipe, path: Path) -> Path:
    """Write a student of places as ONNX (opset 17), without the projection.

    The file appears when it is whole and has passed the checks; two exports of the same weights
    give the same bytes. What follows (lower precision, then the projection, which stays in double
    precision) is :func:`edgekd.deploy.places.build_places`.

    Args:
        model: ``(image, series, text, present)`` -> ``(N, classes)``, in evaluation mode, on the
            CPU.
        recipe: names and sizes.
        path: the ``.onnx`` file to write.

    Returns:
        ``path``.

    Raises:
        InputError: the name is no ``.onnx``.
        GateError: the graph is not what this module promises.
    """
    require("onnx", "deploy", "export ONNX")
    require("onnxscript", "deploy", "export ONNX")
    from edgekd.deploy.export import graph

    if path.suffix != ".onnx":
        raise InputError(f"give the model a name that ends in .onnx, received {path}")
    io = recipe.io
    names = evidence_names(io)
    side, features = io.image.tile_px, 2 * len(io.series.features)
    shapes: list[list[int]] = [
        [3, side, side], [io.series.days, features], [io.text.width], [len(KINDS)],
    ]  # fmt: skip
    # Batch 2: a batch of 1 would be taken for a constant. Everything is there: it is no constant.
    given = dict(zip((*KINDS, PRESENT), (torch.ones(2, *shape) for shape in shapes), strict=True))
    proto = traced(model, given, names, SCORES)
    promised: list[tuple[str, list[str | int]]] = []
    for name, shape in zip((*names, SCORES), (*shapes, [len(io.classes)]), strict=True):
        promised.append((name, ["N", *shape]))
    graph.check(proto, promised)
    with publish_file(path) as part:
        part.write_bytes(proto.SerializeToString(deterministic=True))
    return path
