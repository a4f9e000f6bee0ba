"""What a run of the loop trains here: a teacher of one kind of evidence, or the student."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from edgekd.contracts.artifacts import publish_file, sha256_bytes
from edgekd.contracts.distill import DistillSpec
from edgekd.contracts.evidence import KINDS
from edgekd.contracts.place_recipe import PlaceJitter, PlaceRecipe, PlaceTeacher
from edgekd.train.checkpoint import BEST_NAME, save_torch
from edgekd.train.distill.keeping import Keeper
from edgekd.train.distill.tasks import Say, Task
from edgekd.train.places.checkpoint import PlaceCheckpoint, save_places
from edgekd.train.places.data import PlaceData, PlaceItem, PlaceItems, sampled_kinds
from edgekd.train.places.method import KindMethod, PlaceBatch, PlaceMethod
from edgekd.train.places.networks import KindTeacher, answers_sha256
from edgekd.train.places.predict import Float32, student_scores, teacher_features, teacher_scores
from edgekd.train.places.students._base import PlaceStudent, left_out
from edgekd.train.places.teachers._saved import TEACHER_FORMAT, TEACHER_MARK
from edgekd.train.teachers._saved import TEACHER_NAME

Learner = TypeVar("Learner", bound=nn.Module)
_VALIDATED = ("val_accuracy", "val_loss")
#: of a teacher's averaged weights
_TEACHER_EMA = 0.98


def in_channels_last(learner: Learner) -> Learner:
    """The same network, whose convolutions take half the time on a CPU, and no more on a GPU."""
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return learner


def said_of_seen(seen: Mapping[str, Mapping[str, float]]) -> str:
    """Of :meth:`StudentTask.seen`: ``image 100 %, series 53 % (of 12 % of the places)``."""
    return ", ".join(
        f"{kind} {_percent(part['items'])}"
        + (f" (of {_percent(part['places'])} of the places)" if part["places"] < 1 else "")
        for kind, part in seen.items()
    )


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.01 else f"{100 * part:.2g} %"


class _PlaceTask(Task):
    """What both have in common: items, validation by accuracy, weights that are kept."""

    data: PlaceData
    keeper: Keeper
    jitter: PlaceJitter
    validate_every: int
    #: only places that have it are shown; None is all
    kind: str | None = None
    _steps = 0

    def dataset(self, length: int) -> PlaceItems:
        """Training places."""
        return PlaceItems(self.data, self.jitter, length, self.spec.seed, kind=self.kind)

    def _rows(self, split: str) -> list[int]:
        """Rows of a split that are shown."""
        if self.kind is None:
            return self.data.rows.get(split, [])
        return self.data.having(split, self.kind)

    def progress(self, step: int, steps: int) -> None:
        """Learn how many steps there are."""
        del step
        self._steps = steps

    def stepped(self) -> None:
        """Take the weights into their average."""
        self.keeper.stepped()

    def scores(self, rows: list[int]) -> Float32:
        """The learner's answers for rows."""
        raise NotImplementedError

    def validate(self, step: int) -> dict[str, float]:
        """Accuracy on the validation places."""
        rows = self._rows("val")
        if not rows or (step % self.validate_every and step != self._steps):
            return {}
        with self.keeper.average.applied(self.keeper.learner):
            scores = torch.from_numpy(self.scores(rows))
        labels = torch.from_numpy(self.data.labels[rows])
        found = {
            "val_accuracy": float((scores.argmax(1) == labels).float().mean()),
            "val_loss": float(F.cross_entropy(scores, labels)),
        }
        self.keeper.saw(self.judged(found), step)
        return found

    def judged(self, found: Mapping[str, float]) -> float:
        """Of the validation's figures the one by which weights are kept, the higher the better."""
        return found["val_accuracy"]

    def state(self) -> dict[str, Any]:
        """Averaged weights and the best so far."""
        return self.keeper.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """See :meth:`Task.load_state`."""
        self.keeper.load_state(state)


class KindTask(_PlaceTask):
    """A teacher of one kind of evidence, from labels.

    Args:
        recipe: whose teacher it is.
        entry: of the recipe.
        spec: of the loop.
        data: the set.
        learner: the teacher.
        first: whether the log must tell of the set.
        cache: folder that keeps what a frozen encoder says of the set's pictures, for other runs
            too; None is the run's own.
    """

    result = TEACHER_NAME

    def __init__(
        self,
        recipe: PlaceRecipe,
        entry: PlaceTeacher,
        spec: DistillSpec,
        data: PlaceData,
        learner: KindTeacher,
        first: bool,
        cache: Path | None = None,
    ) -> None:
        self._cache = cache
        self._lines = list(data.report) if first else []
        self.recipe, self.entry, self.spec, self.data = recipe, entry, spec, data
        self.learner = in_channels_last(learner)
        self.method = KindMethod(spec, learner)
        self.keeper = Keeper(learner, _TEACHER_EMA, "best", "log_likelihood")
        self.jitter = recipe.distill.augment
        self.validate_every = entry.stage.val_every_steps
        self.kind = entry.sees
        self.size = len(self._rows("train"))
        self.columns = ["loss", "label", "student_std", "student_rank", *_VALIDATED]
        self._features: Float32 | None = None

    def identity(self) -> dict[str, Any]:
        """See :meth:`Task.identity`."""
        entry = self.entry.model_dump(mode="json", exclude={"weights", "temperature", "weight"})
        return {
            "data": self.data.digest,
            "entry": entry,
            "encoder": self.learner.encoder_sha256,
            "augment": self.jitter.model_dump(mode="json"),
        }

    def report(self) -> list[str]:
        """What the set says of itself, and what is learned."""
        how = "whole" if self.learner.tuned else "its head alone"
        return [*self._lines, f"learns teacher {self.entry.called} of {self.entry.sees}, {how}"]

    def begin(self, out: Path, log: Say) -> None:
        """Ask a frozen encoder of pictures once for each place."""
        if self.learner.tuned or self.learner.sees != "image":
            return
        side = self.entry.image_px or self.recipe.io.image.tile_px
        mark = f"{self.data.digest} {self.learner.encoder_sha256} {side}"
        path = (self._cache or out) / f"features-{sha256_bytes(mark.encode())[:16]}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as stored:
                if str(stored["mark"]) == mark:
                    self._features = stored["features"]
                    return
        rows = [at for at, row in enumerate(self.data.places.rows) if row.image is not None]
        log(f"features of {len(rows):,} pictures at {side} px, kept in {path}")
        self._features = self._spread(rows, teacher_features(self.learner, self.data, rows))
        path.parent.mkdir(parents=True, exist_ok=True)
        with publish_file(path) as part, part.open("wb") as file:
            np.savez(file, features=self._features, mark=np.array(mark))

    def batch(
        self, items: PlaceItem, device: torch.device, autocast: Callable[[], Any]
    ) -> PlaceBatch:
        """On the device."""
        del autocast
        rows = items.row
        known = None if self._features is None else torch.from_numpy(self._features[rows])
        return PlaceBatch(
            image=items.image.to(device),
            series=items.series.to(device),
            text=items.text.to(device),
            label=torch.as_tensor(items.label).to(device),
            present=torch.ones(len(items.image), len(KINDS), device=device),
            sources=items.sources.to(device),
            answers={},
            features=None if known is None else known.to(device),
        )

    def scores(self, rows: list[int]) -> Float32:
        """See :meth:`_PlaceTask.scores`."""
        if self._features is None:
            return teacher_scores(self.learner, self.data, rows)
        training = self.learner.training
        self.learner.eval()
        device = next(self.learner.parameters()).device
        with torch.inference_mode():
            found = self.learner.head(torch.from_numpy(self._features[rows]).to(device))
        self.method.train(training)
        scores: Float32 = found.float().cpu().numpy()
        return scores

    def judged(self, found: Mapping[str, float]) -> float:
        """A teacher is asked for probabilities, so the likelihood of the labels counts: one that
        is as often right and surer of its mistakes teaches them."""
        return -found["val_loss"]

    def save(self, path: Path, done: dict[str, Any]) -> None:
        """Write the teacher, and what it answers for every place of the set."""
        weights = self.keeper.weights(done)
        done["simulated"] = self.data.places.about.simulated
        self.learner.load_state_dict(weights)
        every = [at for at, row in enumerate(self.data.places.rows) if self.kind in row.kinds]
        value = {
            TEACHER_MARK: TEACHER_FORMAT,
            "recipe": self.recipe.plain(),
            "entry": self.entry.model_dump(mode="json"),
            "weights": weights,
            "sha256": answers_sha256(self.learner),
            "data": {"name": self.data.places.about.name, "sha256": self.data.digest},
            # 0 for places without the kind, which nobody asks this teacher about
            "answers": torch.from_numpy(self._spread(every, self.scores(every))),
            "distilled": done,
        }
        save_torch(value, path)

    def _spread(self, rows: list[int], values: Float32) -> Float32:
        """``values`` of rows in a table of all rows, 0 elsewhere."""
        found = np.zeros((len(self.data.places.rows), values.shape[1]), values.dtype)
        found[rows] = values
        return found


class StudentTask(_PlaceTask):
    """The student, from its teachers and labels.

    Args:
        recipe: with the statistics of the series.
        spec: of the loop.
        data: the set.
        learner: the student.
        answers: kind -> ``(rows, classes)`` logits of its teacher for the whole table.
        taught_by: kind -> sha256 of the teacher.
        text: what made the embeddings: name and sha256.
    """

    result = BEST_NAME
    method: PlaceMethod

    def __init__(
        self,
        recipe: PlaceRecipe,
        spec: DistillSpec,
        data: PlaceData,
        learner: PlaceStudent,
        answers: Mapping[str, Float32],
        taught_by: Mapping[str, str],
        text: Mapping[str, str],
    ) -> None:
        self.recipe, self.spec, self.data = recipe, spec, data
        self.learner = in_channels_last(learner)
        self.method = PlaceMethod(recipe, spec, learner)
        rules = recipe.distill
        self.keeper = Keeper(learner, rules.ema, rules.keep, "accuracy")
        self.jitter, self.validate_every = rules.augment, rules.val_every_steps
        self.size = len(data.rows["train"])
        self._answers = {kind: torch.from_numpy(values) for kind, values in answers.items()}
        self._taught_by, self._text = dict(taught_by), dict(text)
        self._sampled = sampled_kinds(recipe, data)
        self.columns = ["loss", "label"]
        if answers and rules.kd_weight:
            self.columns += ["kd", *(f"kd_{k}" for k in answers), *(f"share_{k}" for k in answers)]
        if rules.contrast.weight:
            self.columns.append("contrast")
        self.columns += ["student_std", "student_rank", *_VALIDATED]
        part = learner.pretrained_part()
        self._slow = set() if part is None else {id(item) for item in part.parameters()}
        self._slow_names = {
            name for name, item in self.method.named_parameters() if id(item) in self._slow
        }

    def identity(self) -> dict[str, Any]:
        """See :meth:`Task.identity`; runs from before places were drawn by kinds are known where
        the same places come."""
        sampled = {"sampled": list(self._sampled)} if self._sampled else {}
        return {
            "data": self.data.digest,
            "teacher": self._taught_by,
            "text": self._text,
            "rules": self.recipe.distill.that_matter(),
            **sampled,
        }

    def dataset(self, length: int) -> PlaceItems:
        """Training places, those with rare kinds more often."""
        return PlaceItems(self.data, self.jitter, length, self.spec.seed, balanced=self._sampled)

    def rate(self, name: str) -> float:
        """Weights that are not new learn at their own rate."""
        return self.recipe.distill.encoder_lr_factor if name in self._slow_names else 1.0

    def report(self) -> list[str]:
        """What the set says of itself, and who teaches."""
        taught = [f"{item.called} of {item.sees}" for item in self.recipe.teachers]
        by = "labels alone" if not self._answers else f"teachers {', '.join(taught)}, and labels"
        parameters = sum(item.numel() for item in self.learner.parameters())
        return [
            *self.data.report,
            f"learns student {self.learner.name}, {parameters / 1e6:.2f} M parameters, from {by}",
            f"of the places that it is shown: {said_of_seen(self.seen())}",
        ]

    def seen(self) -> dict[str, dict[str, float]]:
        """Kind -> the part of the run's items that have it (``items``), and of the training places
        (``places``)."""
        assert self.spec.steps is not None
        count = self.spec.steps * self.spec.batch
        items = self.dataset(count).seen(count)
        places = self.data.present[self.data.rows["train"]].mean(0, dtype=np.float64).tolist()
        return {
            kind: {"items": items[kind], "places": part}
            for kind, part in zip(KINDS, places, strict=True)
        }

    def batch(
        self, items: PlaceItem, device: torch.device, autocast: Callable[[], Any]
    ) -> PlaceBatch:
        """On the device; what is left out is drawn here, from the run's own random state.

        A place that would lose all that it has keeps it.
        """
        del autocast
        present = items.present * left_out(
            len(items.image), self.recipe.distill.missing.shares(), torch.default_generator
        )
        none = present.sum(1) == 0
        present[none] = items.present[none]
        rows = torch.as_tensor(items.row)
        return PlaceBatch(
            image=items.image.to(device),
            series=items.series.to(device),
            text=items.text.to(device),
            label=torch.as_tensor(items.label).to(device),
            present=present.to(device),
            sources=items.sources.to(device),
            answers={kind: values[rows].to(device) for kind, values in self._answers.items()},
            there=items.present.to(device),
        )

    def scores(self, rows: list[int]) -> Float32:
        """See :meth:`_PlaceTask.scores`."""
        return student_scores(self.learner, self.data, rows)

    def save(self, path: Path, done: dict[str, Any]) -> None:
        """Write the student's checkpoint."""
        weights = self.keeper.weights(done)
        done["teachers"] = self._taught_by
        done["simulated"] = self.data.places.about.simulated
        heard = self.method.heard.tolist()
        done["shares"] = {kind: heard[KINDS.index(kind)] for kind in self._answers}
        done["seen"] = self.seen()
        save_places(
            path,
            PlaceCheckpoint(
                recipe=self.recipe.plain(),
                student={
                    "name": self.learner.name,
                    "pretrained": self.learner.pretrained,
                    "parameters": sum(item.numel() for item in self.learner.parameters()),
                },
                weights=weights,
                data={"name": self.data.places.about.name, "sha256": self.data.digest},
                tuning=done,
                text=self._text,
            ),
        )
