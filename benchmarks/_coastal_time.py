"""Milliseconds of an answer for ``coastal_gain.py``: the student's bundle against its teachers.

All run with one thread and take turns, so that what else the machine does meets all. The student's
answer is all that a bundle does with decoded evidence: checks, tensors, the network, the rules, and
that the answer obeys; the embedding of the text is there already, since it is made when rules
change. It is timed twice, in FP32 and as ``edgekd build`` makes it for this processor's class
(``x86-vnni`` or ``x86-cpu``), which is INT8 where that keeps the gates and is faster; the second is
what is deployed. The ensemble's answer is its networks alone, in FP32: in ONNX Runtime, as the
student, and in PyTorch, as they were trained (edgekd deploys no teachers); each once with the
encoder of texts (a text with every answer, as the teachers were taught), once without.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.projection import Limits
from edgekd.deploy.export.onnx_export import traced
from edgekd.deploy.export.text_encoder import export_text_encoder
from edgekd.deploy.places import build_places
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend, has_int8_dot_product
from edgekd.runtime.places import open_places
from edgekd.runtime.text import TextEncoder
from edgekd.train.places.networks import KindTeacher, build_kind_teacher
from edgekd.train.places.predict import seen
from edgekd.train.places.run import OpenedPlaces
from edgekd.train.places.teachers._saved import load_kind_teacher

Array = npt.NDArray[Any]
_TURNS, _WARM = 120, 10


class _Seen(torch.nn.Module):
    """A teacher whose one argument has a name that a graph can have."""

    def __init__(self, teacher: KindTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, evidence: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.teacher(evidence)
        return found


def measure(
    recipe: PlaceRecipe, folder: Path, opened: OpenedPlaces, trained: Path, limits: Limits
) -> dict[str, Any]:
    """Time the student of a run and its teachers.

    Args:
        recipe: of the product.
        folder: paths of weights are relative to it.
        opened: the set.
        trained: folder of the run; the networks of all seeds have the same shapes.
        limits: rules of the answers.

    Returns:
        ``milliseconds`` (medians), how many times those of each student all others are
        (``ratios``), ``built`` (what the build chose, and what it tried), ``times`` (the ensemble
        in ONNX Runtime with its encoder of texts, over the student that is deployed), ``lines``.
    """
    data = opened.data
    rows = data.rows["test"][:_TURNS]
    known = {at: data.evidence(at) for at in rows}  # pictures are decoded before
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        done = export_text_encoder(opened.encoder, root, "fp32")
        writer = TextEncoder(root, done, threads=1)
        plain = recipe.model_copy(
            update={"precision": recipe.precision.model_copy(update={"allowed": ["fp32"]})}
        )
        places = (data.places, data.text)
        kind = "x86-vnni" if has_int8_dot_product() else "x86-cpu"
        exact = build_places(plain, kind, trained, root / "fp32", *places)
        built = build_places(recipe, kind, trained, root / "built", *places)
        chosen = built.manifest.precision
        deployed = f"student, as built ({chosen.done})"
        with (
            open_places(exact.path, threads=1) as one,
            open_places(built.path, threads=1) as other,
        ):
            asked: dict[str, Callable[[int], Any]] = {
                "student, FP32": lambda at: one.answer([known[at]], limits),
                deployed: lambda at: other.answer([known[at]], limits),
                **_ensemble(recipe, folder, opened, trained, root, writer),
            }
            found = _in_turns(asked, rows)
    students = ["student, FP32", deployed]
    ratios = {
        name: {other: value / found[name] for other, value in found.items() if other != name}
        for name in students
    }
    return {
        "milliseconds": found,
        "ratios": ratios,
        "times": ratios[deployed]["ensemble, ONNX Runtime"],
        "built": {
            "target": kind,
            "done": chosen.done,
            "candidates": [item.model_dump(mode="json") for item in chosen.candidates],
        },
        "threads": 1,
        "turns": len(rows),
        "lines": [
            f"an answer, one thread, medians of {len(rows)} in turns; the student's in ONNX "
            "Runtime with the rules, its text embedded when rules change:",
            *(f"  {name:36} {found[name]:6.1f} ms" for name in students),
            *(
                f"  {name:36} {value:6.1f} ms, {value / found[students[0]]:4.1f} and "
                f"{value / found[deployed]:4.1f} times the students'"
                for name, value in found.items()
                if name not in students
            ),
        ],
    }


def _ensemble(
    recipe: PlaceRecipe,
    folder: Path,
    opened: OpenedPlaces,
    trained: Path,
    root: Path,
    writer: TextEncoder,
) -> dict[str, Callable[[int], Any]]:
    """Two ways to ask all teachers about a row."""
    data = opened.data
    nets: dict[str, tuple[KindTeacher, OnnxRuntimeBackend]] = {}
    for path in sorted((trained / "teachers").glob("*/teacher.ckpt")):
        saved = load_kind_teacher(path)
        entry = next(item for item in recipe.teachers if item.sees == saved["entry"]["sees"])
        teacher = build_kind_teacher(entry, data.recipe, folder, opened.text["sha256"])
        teacher.load_state_dict(saved["weights"])
        teacher.eval()
        example = torch.from_numpy(np.ascontiguousarray(seen(teacher, data, [0, 1])))
        if entry.sees == "image":
            example = example.float()
        proto = traced(_Seen(teacher), {"evidence": example}, ["evidence"], "logits")
        file = root / f"{entry.sees}.onnx"
        file.write_bytes(proto.SerializeToString())
        nets[entry.sees] = (teacher, OnnxRuntimeBackend(file, threads=1))
    given = {
        (kind, at): np.ascontiguousarray(np.float32(seen(nets[kind][0], data, [at])))
        for kind in ("image", "series")
        for at in data.rows["test"][:_TURNS]
    }

    def onnx(at: int, text: Array) -> Array:
        return _mean(
            backend.infer({"evidence": text if kind == "text" else given[kind, at]})["logits"]
            for kind, (_, backend) in nets.items()
        )

    @torch.inference_mode()
    def as_trained(at: int, text: Array) -> Array:
        return _mean(
            teacher(torch.from_numpy(text if kind == "text" else given[kind, at])).numpy()
            for kind, (teacher, _) in nets.items()
        )

    def said(at: int) -> list[str]:
        return [str(data.places.rows[at].text)]  # every place of the simulated set has one

    return {
        "ensemble, ONNX Runtime": lambda at: onnx(at, writer.embed(said(at))),
        "ensemble, ONNX Runtime, text known": lambda at: onnx(at, data.text[[at]]),
        "ensemble, PyTorch": lambda at: as_trained(at, opened.encoder.embed(said(at))),
        "ensemble, PyTorch, text known": lambda at: as_trained(at, data.text[[at]]),
    }


def _mean(scores: Iterable[Array]) -> Array:
    """The mean of the probabilities."""
    high = [np.exp(values - values.max()) for values in scores]
    found: Array = np.mean([values / values.sum() for values in high], axis=0)
    return found


def _in_turns(asked: dict[str, Callable[[int], Any]], rows: list[int]) -> dict[str, float]:
    """Median milliseconds of each, one row after the other."""
    taken: dict[str, list[float]] = {name: [] for name in asked}
    for number, at in enumerate([*rows[:_WARM], *rows]):
        for name, ask in asked.items():
            begin = time.perf_counter()
            ask(at)
            if number >= _WARM:
                taken[name].append(1e3 * (time.perf_counter() - begin))
    return {name: statistics.median(values) for name, values in taken.items()}
