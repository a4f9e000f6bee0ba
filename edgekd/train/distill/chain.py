"""A chain of teachers, each learning from the one before it, and the student from the last.

Every stage is a run of the loop with a folder of its own below ``teachers/``; the student's is the
run's folder itself. A stage that is done is not done again; one that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.distill import DistillSpec, StageSpec, TeacherSpec
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.schema import resolve_path
from edgekd.contracts.sensor_labelled import camera_view
from edgekd.contracts.sensor_set import SensorSet, open_sensor_set
from edgekd.contracts.sensors import VISUAL
from edgekd.errors import CheckpointError, InputError
from edgekd.train.checkpoint import (
    BEST_NAME,
    LAST_NAME,
    Checkpoint,
    build_for,
    describe_student,
    save_checkpoint,
)
from edgekd.train.datasets.sensor_crops import Answers, SensorCrop, SensorCrops
from edgekd.train.distill.keeping import Keeper
from edgekd.train.distill.loop import DistillResult, Progress, Say, run_task, what_matters
from edgekd.train.distill.methods.cross_modal import CrossModal, SensorBatch
from edgekd.train.distill.tasks import Task
from edgekd.train.distill.teaching import check_sha256
from edgekd.train.evaluate import answer, evaluate_model, evaluate_teacher
from edgekd.train.run import check_normalization
from edgekd.train.students._base import Segmenter
from edgekd.train.teachers._saved import (
    TEACHER_NAME,
    TeacherCheckpoint,
    build_teacher,
    check_teacher,
    describe_teacher,
    load_teacher,
    rebuild_teacher,
    save_teacher,
    teacher_file,
)
from edgekd.train.teachers._sensors import SensorPlan, SensorTeacher
from edgekd.train.teachers._weights import state_sha256
from edgekd.train.teachers._whitening import Scene, noise_whitening

FOLDER = "teachers"


class SensorTask(Task):
    """One stage: a teacher or the student, on the training views of a sensor set.

    Args:
        recipe: with sensors.
        spec: of this stage.
        data: the set.
        learner: what learns.
        names: sensors that the crops hold.
        taught: the teacher before it with the sha256 of its weights, or None: labels alone.
        entry: of the recipe, where a teacher learns.
        first: whether the log must tell of the set.
    """

    method: CrossModal

    def __init__(
        self,
        recipe: Recipe,
        spec: DistillSpec,
        data: SensorSet,
        learner: Segmenter | SensorTeacher,
        names: list[str],
        taught: tuple[SensorTeacher, str] | None,
        entry: TeacherSpec | None = None,
        first: bool = True,
    ) -> None:
        self._lines = list(data.report) if first else []
        self.recipe, self.spec, self.data = recipe, spec, data
        self.learner, self.names, self.entry = learner, names, entry
        rules = spec.cross_modal
        if taught is None and rules.label_weight == 0:
            raise InputError(
                f"{learner.name} learns from labels alone, and cross_modal.label_weight is 0; give "
                "it a weight, in teachers[].stage.cross_modal where the student shall have none"
            )
        data.require_one_of(names, data.training_ids, learner.name)
        if taught is not None:
            seen = list(taught[0].plans)
            data.require_one_of(seen, data.training_ids, f"teacher {taught[0].name}")
        self._taught = taught
        self._labels = data.label_counts()["train"]
        width = None if taught is None else taught[0].width
        self.method = CrossModal(spec, learner, recipe.io.inputs[0], self._labels, width)
        self.keeper = Keeper(learner, rules.ema, rules.keep, "balanced_accuracy")
        self.size = len(data.training_ids)
        self.result = BEST_NAME if isinstance(learner, Segmenter) else TEACHER_NAME
        self.columns = ["loss", "label"]
        if taught is not None:
            self.columns += ["kd", "trusted", "temperature"]
            if self.method.project is not None:
                self.columns.append("feature")
        self.columns += ["student_std", "student_rank", "val_balanced_accuracy"]
        self._steps = 0
        self._validates = bool(sum(data.label_counts()["val"]))
        if rules.keep == "best" and not self._validates:
            raise InputError(
                f"cross_modal.keep is best, and {data.file} has no validation label; take keep: "
                "last, or give a validation split (data.blocks.val, data.split)"
            )
        self._answers: dict[str, Answers] | None = None

    def identity(self) -> dict[str, Any]:
        """See :meth:`Task.identity`."""
        return {
            "data": self.data.digest,
            "teacher": None if self._taught is None else self._taught[1],
            "entry": None if self.entry is None else self.entry.model_dump(exclude={"weights"}),
        }

    def report(self) -> list[str]:
        """What the set says of itself, and the labels."""
        labels = ", ".join(
            f"{item.name} {count}"
            for item, count in zip(self.data.classes, self._labels, strict=True)
        )
        what = f"learns {self.learner.name} from {', '.join(self.names)}"
        taught = "labels alone" if self._taught is None else f"teacher {self._taught[0].name}"
        return [*self._lines, f"labels: {labels}", f"{what}, taught by {taught}"]

    def begin(self, out: Path, log: Callable[[str], None]) -> None:
        """Ask the teacher once for each scene."""
        del out
        if self._taught is None:
            return
        teacher = self._taught[0].to(next(self.learner.parameters()).device)
        features = self.method.project is not None
        self._answers = {}
        expected = torch.zeros(len(self.data.classes), dtype=torch.float64)
        for name in self.data.training_ids:
            view = self.data.training_view(name)
            scores, feature = answer(teacher, view, features)
            self._answers[name] = Answers(scores, feature)
            expected += torch.from_numpy(scores[:, view.valid]).double().softmax(0).sum(1)
        self.method.expect(expected.tolist())
        teacher.to("cpu")  # its work is done
        held = sum(
            item.scores.nbytes + (0 if item.features is None else item.features.nbytes)
            for item in self._answers.values()
        )
        log(f"the teacher's answers for {len(self._answers)} scenes take {held / 2**20:.0f} MiB")
        told = zip(self.data.classes, expected, strict=True)
        log("pixels that it expects: " + ", ".join(f"{k.name} {n:.0f}" for k, n in told))

    def dataset(self, length: int) -> SensorCrops:
        """Random crops of the training views."""
        rules = self.spec.cross_modal
        share = 1.0 if self._taught is None else rules.labelled_crops
        return SensorCrops(
            self.data, self.names, self.spec.crop_px, rules.augment, length, self.spec.seed,
            share, self._answers,
        )  # fmt: skip

    def batch(
        self, items: SensorCrop, device: torch.device, autocast: Callable[[], Any]
    ) -> SensorBatch:
        """Crops on the device."""
        del autocast
        return SensorBatch(
            {name: values.to(device) for name, values in items.sensors.items()},
            items.present.to(device),
            items.target.to(device),
            items.counted.to(device),
            items.scores.to(device),
            items.features.to(device),
        )

    def progress(self, step: int, steps: int) -> None:
        """Set the temperature, and learn how many steps there are."""
        self._steps = steps
        part = step / max(1, steps - 1)
        self.method.temperature = self.spec.cross_modal.temperature.at(part)

    def stepped(self) -> None:
        """Take the weights into their average."""
        self.keeper.stepped()

    def validate(self, step: int) -> dict[str, float]:
        """Balanced accuracy on the validation part; keeps the best weights where asked for."""
        rules = self.spec.cross_modal
        last = step == self._steps
        if not self._validates or (step % rules.val_every_steps and not last):
            return {}
        with self.keeper.average.applied(self.learner):
            found = self.measured("val")["balanced_accuracy"]
        self.keeper.saw(found, step)
        return {"val_balanced_accuracy": found}

    def measured(self, part: Any) -> dict[str, Any]:
        """Metrics of the learner as it stands on a part of the set."""
        if isinstance(self.learner, SensorTeacher):
            return evaluate_teacher(self.learner, self.data, part)
        view = camera_view(self.data)
        return evaluate_model(self.learner, view, part, self.recipe.io, self.recipe.tiling)

    def state(self) -> dict[str, Any]:
        """Averaged weights and the best so far."""
        return self.keeper.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """See :meth:`Task.load_state`."""
        self.keeper.load_state(state)

    def save(self, path: Path, done: dict[str, Any]) -> None:
        """Write the student's checkpoint, or the teacher's."""
        weights = self.keeper.weights(done)
        done["teacher_sha256"] = None if self._taught is None else self._taught[1]
        done["simulated"] = self.data.simulated
        done["labels"] = self._labels
        data = {"name": self.data.name, "sha256": self.data.digest}
        if isinstance(self.learner, SensorTeacher):
            saved = TeacherCheckpoint(
                self.recipe.plain(),
                describe_teacher(self.learner, self.data.wavelengths_nm),
                weights,
                data,
                done,
            )
            save_teacher(path, saved)
            return
        save_checkpoint(
            path,
            Checkpoint(
                recipe=self.recipe.plain(),
                student=describe_student(self.learner),
                weights=weights,
                data=data,
                tuning=done,
            ),
        )


def stage_spec(spec: DistillSpec, stage: StageSpec | None) -> DistillSpec:
    """``distill`` with what a stage changes."""
    if stage is None:
        return spec
    asked = stage.model_dump(exclude={"cross_modal"}, exclude_none=True)
    if "steps" in asked:
        asked["epochs"] = None
    asked["cross_modal"] = stage.rules(spec.cross_modal)
    return spec.model_copy(update=asked)


def distill_chain(
    recipe: Recipe,
    recipe_folder: Path,
    data_path: Path,
    out: Path,
    *,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
    data: SensorSet | None = None,
) -> DistillResult:
    """Train the recipe's teachers one after the other, then its student.

    Args:
        recipe: with sensors and ``distill.method: cross_modal``.
        recipe_folder: paths of weights are relative to it.
        data_path: the sensor set.
        out: folder of the run: the student's ``best.ckpt``, ``last.ckpt``, ``curves.csv``,
            ``log.txt``; below ``teachers/`` the same of each teacher, with ``teacher.ckpt``.
        resume, fresh, accelerator, progress, say: as :func:`edgekd.train.distill.loop.distill`.
        data: the set where it is open already.

    Raises:
        InputError, DatasetError, CheckpointError, EnvironmentLacksError, OutputError: as there.
    """
    if recipe.distill is None or recipe.distill.method != "cross_modal":
        raise InputError(f"recipe '{recipe.name}' has no distill section of method cross_modal")
    found = data or open_sensor_set(recipe, data_path)
    if resume and not any(_begun(out, recipe)):
        raise CheckpointError(
            f"{out} holds no checkpoint of this recipe's stages: there is nothing to resume; leave "
            "out --resume, and add --fresh if an earlier run was stopped before its first "
            "checkpoint"
        )
    with torch.random.fork_rng(devices=[]):  # what does not fit is told before hours of teachers
        check_normalization(build_for(recipe), recipe.io.inputs[0])
    _, taught = train_teachers(
        recipe, recipe_folder, found, out, resume=resume, fresh=fresh, accelerator=accelerator,
        progress=progress, say=say,
    )  # fmt: skip
    student = recipe.distill
    going_on = resume and (out / LAST_NAME).is_file()

    def make(log: Say) -> Task:
        del log
        learner = build_for(recipe)
        check_normalization(learner, recipe.io.inputs[0])
        return SensorTask(recipe, student, found, learner, [VISUAL], taught, first=taught is None)

    return run_task(
        recipe, make, out, resume=going_on, fresh=fresh, accelerator=accelerator,
        progress=progress, say=say,
    )  # fmt: skip


def _folders(out: Path, recipe: Recipe) -> list[Path]:
    """Folder of each teacher's stage."""
    return [
        out / FOLDER / f"{number}-{entry.id or entry.name}"
        for number, entry in enumerate(recipe.teachers, start=1)
    ]


def _begun(out: Path, recipe: Recipe) -> list[bool]:
    """Whether each stage, the student's last, left something to go on from."""
    return [
        any((folder / name).is_file() for name in (LAST_NAME, TEACHER_NAME))
        for folder in (*_folders(out, recipe), out)
    ]


def train_teachers(
    recipe: Recipe,
    recipe_folder: Path,
    data: SensorSet,
    out: Path,
    *,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    progress: Progress | None = None,
    say: Say | None = None,
) -> tuple[list[Path], tuple[SensorTeacher, str] | None]:
    """Train the recipe's teachers one after the other, or take those that are there.

    Args:
        recipe, recipe_folder, out, resume, fresh, accelerator, progress, say: as
            :func:`distill_chain`.
        data: the set.

    Returns:
        The file of each teacher; and the last of them with the sha256 of its weights, None
        without any.

    Raises:
        InputError, DatasetError, CheckpointError, EnvironmentLacksError, OutputError: as there.
    """
    taught: tuple[SensorTeacher, str] | None = None
    paths = []
    folders = _folders(out, recipe)
    for number, (entry, folder) in enumerate(zip(recipe.teachers, folders, strict=True)):
        if entry.weights == "train":
            check_sha256("train", entry, number)
            path = _stage(
                recipe, entry, data, folder, taught, resume, fresh, accelerator, progress, say
            )
        else:
            path = teacher_file(resolve_path(entry.weights, recipe_folder))
            check_sha256(path, entry, number)
        saved = load_teacher(path)
        check_teacher(saved, recipe, data, path, entry.sensors)
        taught = (rebuild_teacher(saved, str(path)), state_sha256(saved.weights, saved.teacher))
        paths.append(path)
    return paths, taught


def _stage(
    recipe: Recipe,
    entry: TeacherSpec,
    data: SensorSet,
    folder: Path,
    taught: tuple[SensorTeacher, str] | None,
    resume: bool,
    fresh: bool,
    accelerator: str,
    progress: Progress | None,
    say: Say | None,
) -> Path:
    """Train one teacher, unless it is there already; its file."""
    assert recipe.distill is not None
    spec = stage_spec(recipe.distill, entry.stage)
    names = list(entry.sensors or recipe.sensors)
    mark = folder / "made_from.txt"
    made_from = sha256_bytes(
        canonical_json(
            {
                "spec": what_matters(spec),
                "entry": entry.model_dump(mode="json"),
                "data": data.digest,
                "teacher": None if taught is None else taught[1],
            }
        ).encode()
    )
    path = folder / TEACHER_NAME
    if resume and path.is_file() and mark.is_file() and mark.read_text() == made_from:
        return path
    going_on = resume and (folder / LAST_NAME).is_file()

    def scenes(name: str) -> Callable[[], Iterator[Scene]]:
        def walk() -> Iterator[Scene]:
            for item in data.training_ids:
                view = data.training_view(item)
                if name in view.sensors:
                    yield view.sensors[name], view.valid

        return walk

    def make(log: Say) -> Task:
        del log
        plans = {name: SensorPlan(data.sensors[name].kind, data.channels[name]) for name in names}
        learner = build_teacher(entry.name, len(recipe.io.classes), plans, entry.variant)
        for name, item in data.statistics().items():
            if name in plans:
                learner.set_statistics(name, item.mean, item.std)
                if entry.whitening == "noise" and plans[name].kind == "spectral":
                    learner.set_whitening(name, noise_whitening(scenes(name), item.mean, item.std))
        return SensorTask(recipe, spec, data, learner, names, taught, entry, taught is None)

    result = run_task(
        recipe, make, folder, spec=spec, resume=going_on, fresh=fresh, accelerator=accelerator,
        progress=progress, say=say,
    )  # fmt: skip
    mark.write_text(made_from)
    return result.path
