"""What a run of the loop trains, on which data, and what it leaves behind.

The loop (:mod:`edgekd.train.distill.loop`) owns optimiser, schedule, checkpoints and curves and is
the same for all; a task owns networks, data and the file that a finished run is about.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from edgekd.contracts import registry
from edgekd.contracts.distill import DistillSpec
from edgekd.contracts.recipe import Recipe
from edgekd.train.checkpoint import (
    ENCODER_NAME,
    EncoderCheckpoint,
    build_for,
    describe_student,
    save_encoder,
)
from edgekd.train.datasets.unlabeled import Crop, UnlabeledCrops, UnlabeledSet, open_unlabeled
from edgekd.train.distill.feeding import BrokenFiles
from edgekd.train.distill.methods._base import Batch, Method
from edgekd.train.distill.methods.feature import Feature
from edgekd.train.distill.teaching import CachedTeachers, build_teachers
from edgekd.train.run import check_normalization
from edgekd.train.teachers._base import Teacher

Say = Callable[[str], None]
#: crops that the pictures show
PICTURE_CROPS = 4


class Task:
    """What the loop asks for.

    Attributes:
        spec: how long and how fast, ``distill`` of the recipe or a stage's own.
        method: gives the losses of a batch.
        result: name of the file that a finished run leaves.
        size: number of images, of which an epoch is made.
        columns: of the curves, besides those that the loop adds.
    """

    spec: DistillSpec
    method: Method
    result: str
    size: int
    columns: list[str]

    def identity(self) -> dict[str, Any]:
        """Besides the recipe, what must be the same for a run to be resumed."""
        raise NotImplementedError

    def report(self) -> list[str]:
        """Lines for the log, before the first step."""
        return []

    def news(self) -> list[str]:
        """Lines for the log since the last call."""
        return []

    def begin(self, out: Path, log: Say) -> None:
        """Called once before the first step, with the folder of the run."""

    def dataset(self, length: int) -> Dataset[Any]:
        """Items by number; item ``n`` is a function of the data, the seed and ``n`` alone."""
        raise NotImplementedError

    def batch(self, items: Any, device: torch.device, autocast: Callable[[], Any]) -> Any:
        """What the method's forward takes, on ``device``, from collated items."""
        raise NotImplementedError

    def rate(self, name: str) -> float:
        """Factor of the learning rate of one of the method's parameters."""
        del name
        return 1.0

    def progress(self, step: int, steps: int) -> None:
        """Called before each step; ``step`` counts from 0."""

    def stepped(self) -> None:
        """Called after each step of the optimiser."""

    def validate(self, step: int) -> dict[str, float]:
        """Figures on the validation split, where the task has one; they go to the curves."""
        del step
        return {}

    def state(self) -> dict[str, Any]:
        """What ``last.ckpt`` must hold besides the method's weights."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state`."""
        del state

    def close(self, log: Say) -> None:
        """Called after the last step."""

    def picture_batch(self, device: torch.device) -> Any:
        """The crops that are drawn each time; only for methods that draw."""
        raise NotImplementedError

    def save(self, path: Path, done: dict[str, Any]) -> None:
        """Write the result; ``done`` says what was done."""
        raise NotImplementedError


class ImageTask(Task):
    """A student's encoder on unlabeled images, by the recipe's method and teachers.

    Args:
        recipe: with ``distill``.
        recipe_folder: paths of weights are relative to it.
        roots: the images.
        out: folder of the run; broken files are noted there.
        log: takes lines.

    Raises:
        InputError, DatasetError, CheckpointError, EnvironmentLacksError: as
            :func:`edgekd.train.distill.loop.distill`.
    """

    result = ENCODER_NAME

    def __init__(
        self, recipe: Recipe, recipe_folder: Path, roots: Sequence[Path], out: Path, log: Say
    ) -> None:
        assert recipe.distill is not None and recipe.distill.data is not None
        self.recipe, self.spec = recipe, recipe.distill
        self.student = build_for(recipe)
        check_normalization(self.student, recipe.io.inputs[0])
        self.teachers: list[Teacher] = build_teachers(recipe, recipe_folder)
        module = registry.load("edgekd.train.distill.methods", self.spec.method, "method")
        self.method = module.build(recipe, self.student, self.teachers)
        self.data: UnlabeledSet = open_unlabeled(
            roots, recipe.distill.data, self.spec.crop_px, recipe.io.inputs[0].channel_count, log
        )
        self.broken = BrokenFiles(out / "broken.jsonl", self.data.broken)
        self.data.noted = self.broken
        self._told = 0
        self._cache: CachedTeachers | None = None
        self.size = len(self.data)
        self.columns = self._columns()

    def _columns(self) -> list[str]:
        names = ["loss"]
        if self.recipe.teachers:
            names.append("kd")
        if self.method.staged:
            names += ["teacher_mae", "student_mae", "r", "stage"]
        elif self.method.draws:
            names.append("student_mae")
        count = len(self.teachers)
        if count > 1:
            names += [f"kd_{n}" for n in range(count)]
            names += [f"teacher_mae_{n}" for n in range(count)] if self.method.staged else []
        for side in ["student", *(f"teacher{n or ''}" for n in range(count))]:
            names += [f"{side}_std", f"{side}_rank"]
        return names

    def identity(self) -> dict[str, Any]:
        """See :meth:`Task.identity`."""
        return {
            "data": self.data.digest,
            "teachers": [teacher.weights_sha256 for teacher in self.teachers],
        }

    def report(self) -> list[str]:
        """See :meth:`Task.report`."""
        lines = [f"teacher {t.name}: {line}" for t in self.teachers for line in t.report]
        return [*lines, f"{len(self.data)} images"]

    def news(self) -> list[str]:
        """Files that turned out broken."""
        found = self.broken.since(self._told)
        self._told += len(found)
        return [f"skipped a broken file: {why}" for why in found]

    def begin(self, out: Path, log: Say) -> None:
        """Open the cache of features."""
        spec = self.spec
        if spec.cache.mib:
            assert isinstance(self.method, Feature)
            self._cache = CachedTeachers(
                self.method, out / "features", spec.cache.mib, spec.precision, spec.cache.crops,
                log,
            )  # fmt: skip

    def close(self, log: Say) -> None:
        """Tell what the cache was worth."""
        if self._cache is not None:
            log(f"feature cache: {self._cache.stats}")

    def dataset(self, length: int) -> UnlabeledCrops:
        """Random crops of the images."""
        spec = self.spec
        pool = spec.cache.crops if spec.cache.mib else 0
        return UnlabeledCrops(self.data, spec.crop_px, spec.augment, length, spec.seed, pool)

    def batch(self, items: Crop, device: torch.device, autocast: Callable[[], Any]) -> Batch:
        """Crops on the device, with the teachers' features where they are cached."""
        numbers = torch.as_tensor(items.number).tolist()
        clean = items.clean.to(device, non_blocking=True)
        view = items.view.to(device, non_blocking=True)
        features = None
        if self._cache is not None:
            with autocast():
                features = self._cache.features(items.clean, clean)
        return Batch(clean, view, numbers, features)

    def picture_batch(self, device: torch.device) -> Batch:
        """The first crops of the run."""
        crops = self.dataset(PICTURE_CROPS)
        items = [crops[number] for number in range(PICTURE_CROPS)]
        return Batch(
            torch.stack([item.clean for item in items]).to(device),
            torch.stack([item.view for item in items]).to(device),
            [item.number for item in items],
        )

    def save(self, path: Path, done: dict[str, Any]) -> None:
        """Write the encoder."""
        encoder: nn.Module = self.student.encoder
        weights = {
            name: value.detach().cpu().clone() for name, value in encoder.state_dict().items()
        }
        teachers = [
            {"name": t.name, "variant": t.variant, "weights_sha256": t.weights_sha256,
             "weights": spec.weights if spec.weights in ("random", "package") else "file"}
            for t, spec in zip(self.teachers, self.recipe.teachers, strict=True)
        ]  # fmt: skip
        done["teachers"] = teachers
        save_encoder(
            path,
            EncoderCheckpoint(
                recipe=self.recipe.plain(),
                student=describe_student(self.student),
                weights=weights,
                data={"sha256": self.data.digest, "images": len(self.data)},
                distilled=done,
            ),
        )
