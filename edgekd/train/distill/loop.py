"""The loop that all methods of distillation share, whole on one page.

Crops and masks are functions of the seed and the crop's number, and the random state is kept, so on
the CPU a run that was stopped and resumed with as many threads gives the same weights as one that
ran through, bit for bit. Crop numbers do not depend on the number of processes either: with ``N``
processes and batch ``b`` a step sees the crops that one process with batch ``N b`` sees.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edgekd.contracts.artifacts import canonical_json, sha256_bytes, write_json
from edgekd.contracts.distill import DistillSpec
from edgekd.contracts.place_recipe import AnyRecipe
from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError, InputError
from edgekd.train.checkpoint import LAST_NAME, read_torch, save_torch
from edgekd.train.distill.feeding import Numbers, next_batch
from edgekd.train.distill.measures import CollapseWatch, effective_rank, feature_std
from edgekd.train.distill.methods._base import Losses, Method
from edgekd.train.distill.pictures import write_picture
from edgekd.train.distill.schedule import StageMachine
from edgekd.train.distill.tasks import ImageTask, Task
from edgekd.train.run import (
    Curves,
    check_finite,
    fabric_precision,
    learning_rate,
    make_room,
    only_one,
    peak_memory_mib,
    quiet_launch,
    together,
    writing,
)

#: called with (step, steps, text) after every step
Progress = Callable[[int, int, str], None]
Say = Callable[[str], None]
FORMAT = 1
COMMAND = "edgekd distill RECIPE"
#: a launcher has set one of these
LAUNCHED = {"SLURM_NTASKS", "NODE_RANK", "GROUP_RANK", "LOCAL_RANK", "OMPI_COMM_WORLD_SIZE"}


def what_matters(spec: DistillSpec) -> dict[str, Any]:
    """What a run's weights depend on, as plain values: all but logging, workers, tuning."""
    values = spec.model_dump(mode="json", by_alias=True)
    for key in (
        "log_every_steps", "picture_every_steps", "save_every_steps", "workers", "compile",
        "checkpointing",
    ):  # fmt: skip
        values.pop(key)
    return values


@dataclass(frozen=True)
class DistillResult:
    """Where a run ended.

    Attributes:
        path: what the run was for: a student's encoder for ``edgekd finetune --encoder``, a
            student (``best.ckpt``), or a teacher of the next stage.
        distilled: what was done; the same values are inside the file.
        main: whether this process is the one that writes and speaks.
    """

    path: Path
    distilled: dict[str, Any]
    main: bool


def distill(
    recipe: Recipe,
    recipe_folder: Path,
    roots: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: Progress | None = None,
    say: Say | None = None,
) -> DistillResult:
    """Train the recipe's student encoder without labels.

    Args:
        recipe: what to train and how; ``recipe.distill`` must be there.
        recipe_folder: paths of weights are relative to it.
        roots: unlabeled images, see :mod:`edgekd.train.datasets.unlabeled`.
        out: folder of the run: ``encoder.ckpt``, ``last.ckpt``, ``curves.csv``, ``tensorboard/``,
            ``pictures/``, ``log.txt``, ``features/`` (the cache).
        resume: go on from ``out/last.ckpt``.
        fresh: start anew although ``out`` holds a run, which is lost.
        accelerator: Lightning Fabric's name of the device kind.
        devices, nodes: processes per node, and nodes; above one in all by ``torchrun``, SLURM, or
            started from here.
        progress: called after every step.
        say: gets lines for the log as they come.

    Raises:
        InputError: crop, mask, student, teacher or pairs do not fit; a run is in the way.
        DatasetError, ImageError: the images cannot be used.
        CheckpointError: weights that do not fit, nothing to resume, or another recipe or data.
        EnvironmentLacksError: the device lacks the precision, or weights are not installed.
    """
    if recipe.distill is None:
        raise InputError(f"recipe '{recipe.name}' has no distill section")
    return run_task(
        recipe,
        lambda log: ImageTask(recipe, recipe_folder, roots, out, log),
        out,
        resume=resume,
        fresh=fresh,
        accelerator=accelerator,
        devices=devices,
        nodes=nodes,
        progress=progress,
        say=say,
    )


def run_task(
    recipe: AnyRecipe,
    make: Callable[[Say], Task],
    out: Path,
    *,
    spec: DistillSpec | None = None,
    resume: bool = False,
    fresh: bool = False,
    accelerator: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    progress: Progress | None = None,
    say: Say | None = None,
) -> DistillResult:
    """Run the loop for one task; see :func:`distill` for what is not said here.

    Args:
        make: builds the task, given where its lines go; called when all processes run and the
            random state is set.
        spec: of this run where it is not ``recipe.distill``: a stage of a chain, or of places.
    """
    spec = spec or recipe.distill  # type: ignore[assignment]
    assert isinstance(spec, DistillSpec)
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > 1 and devices * nodes == 1:
        raise InputError(
            f"{started} processes were started (WORLD_SIZE), and --devices x --nodes is 1; give "
            "--devices PROCESSES_PER_NODE and --nodes NODES, as the launcher has them"
        )
    if nodes > 1 and started == 1 and LAUNCHED.isdisjoint(os.environ):
        raise InputError(
            f"--nodes is {nodes} and neither torchrun nor SLURM started this process: the others "
            f"would never come; on every node type: torchrun --nnodes {nodes} --nproc-per-node "
            f"{devices} --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m edgekd distill RECIPE "
            f"--nodes {nodes} --devices {devices}"
        )
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=fabric_precision(spec.precision, accelerator, "distill.precision"),
    )
    with quiet_launch():
        fabric.launch()
    with contextlib.ExitStack() as stack:
        hold = only_one(out) if fabric.is_global_zero else contextlib.nullcontext()
        together(lambda: stack.enter_context(hold))
        run = together(lambda: _Run(fabric, recipe, spec, make, out, progress, say))
        run.connect()
        run.start(resume, fresh)
        run.train()
        return run.finish()


class _Run:
    """One run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: AnyRecipe,
        spec: DistillSpec,
        make: Callable[[Say], Task],
        out: Path,
        progress: Progress | None,
        say: Say | None,
    ) -> None:
        self.fabric, self.recipe, self.out, self.spec = fabric, recipe, out, spec
        self.main = fabric.is_global_zero
        self._progress, self._say = progress, say
        self._early: list[str] | None = []
        fabric.seed_everything(self.spec.seed, verbose=False)
        self.task = make(self.log)
        self.method: Method = self.task.method
        self.steps = self._length()
        self.stages = StageMachine(self.spec.stages)
        self.watch = CollapseWatch()
        self.step = 0
        self.seconds_before = 0.0
        self.last: dict[str, float] = {}

    def connect(self) -> None:
        """Join the networks of all processes, and make what trains them."""
        if self.spec.compile:
            self.method.compile_blocks()
        self.wrapped, self.optimizer = self.fabric.setup(self.method, self._optimizer())
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: learning_rate(
                step, self.steps, self.spec.warmup_fraction, self.spec.decay
            ),
        )

    def log(self, text: str) -> None:
        """A line for ``log.txt`` and whoever listens; kept until the run really begins."""
        if not self.main:
            return
        if self._early is not None:
            self._early.append(text)
            return
        self.out.mkdir(parents=True, exist_ok=True)
        with writing(path := self.out / "log.txt"), path.open("a", encoding="utf-8") as stream:
            stream.write(text + "\n")
        if self._say is not None:
            self._say(text)

    def _length(self) -> int:
        if self.spec.steps is not None:
            return self.spec.steps
        assert self.spec.epochs is not None
        per_step = self.spec.batch * self.spec.accumulate * self.fabric.world_size
        return max(1, math.ceil(self.spec.epochs * self.task.size / per_step))

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW on what is trained; no weight decay on biases, norms and mask tokens."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, False): [], (1.0, True): []}
        for name, item in self.method.named_parameters():
            if item.requires_grad:
                plain = item.ndim <= 1 or name.endswith("mask_token")
                groups.setdefault((self.task.rate(name), plain), []).append(item)
        made = [
            {
                "params": items,
                "weight_decay": 0.0 if plain else self.spec.weight_decay,
                "lr": factor * self.spec.lr,
            }
            for (factor, plain), items in groups.items()
            if items
        ]
        return torch.optim.AdamW(made, lr=self.spec.lr)

    @property
    def _fingerprint(self) -> str:
        """What must be the same for a run to be resumed: all but logging, workers, tuning."""
        values = self.recipe.plain()
        values["distill"] = what_matters(self.spec)
        asked = ("distill", "teachers", "student", "io", "sensors")
        kept = {key: values[key] for key in asked if key in values}
        if kept["distill"]["data"] is not None:
            kept["distill"]["data"].pop("roots")
        for teacher in kept["teachers"]:
            teacher.pop("weights")
        parts = {
            "recipe": kept,
            **self.task.identity(),
            "crops_per_step": self.spec.batch * self.spec.accumulate * self.fabric.world_size,
        }
        return sha256_bytes(canonical_json(parts).encode())

    # -- beginning and end ------------------------------------------------------------------

    def start(self, resume: bool, fresh: bool) -> None:
        """Prepare the folder, or go on from its last checkpoint."""
        names = [self.task.result, LAST_NAME]
        if resume:
            together(self._restore)
        else:
            together(lambda: make_room(self.out, names, LAST_NAME, fresh, look_only=True))
            together(lambda: self._clear(names, fresh) if self.main else None)
        early, self._early = self._early or [], None
        for line in early:
            self.log(line)
        if unused := self.spec.unused():
            self.log(f"set and not used by method {self.spec.method}: {', '.join(unused)}")
        for line in self.task.report():
            self.log(line)
        verb = f"go on from step {self.step}" if resume else "start"
        trained = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.method.parameters() if not p.requires_grad)
        self.log(
            f"{verb}: {self.steps} steps of {self.spec.batch} x "
            f"{self.spec.accumulate} x {self.fabric.world_size} crops of {self.spec.crop_px} px; "
            f"{trained / 1e6:.2f} M parameters trained, {frozen / 1e6:.2f} M frozen"
        )
        self.fabric.barrier()

    def _clear(self, names: list[str], fresh: bool) -> None:
        """Take an earlier run away."""
        make_room(self.out, names, LAST_NAME, fresh)
        for pattern in ("pictures/step_*.png", "tensorboard/events.*", "log.txt", "broken.jsonl"):
            for old in self.out.glob(pattern):
                old.unlink()
        write_json(self.out / "recipe.json", self.recipe.plain())

    def finish(self) -> DistillResult:
        """Write what the run is for."""
        path = self.out / self.task.result
        distilled = {
            "method": self.spec.method,
            "steps": self.step,
            "crops": self.step * self.spec.batch * self.spec.accumulate * self.fabric.world_size,
            "seconds": self.seconds,
            "seed": self.spec.seed,
            "precision": self.spec.precision,
            "device": str(self.fabric.device),
            "processes": self.fabric.world_size,
            "torch": str(torch.__version__),
            "stage": self.stages.stage if self.method.staged else None,
            "losses": self.last,
        }
        if self.main:
            self.task.save(path, distilled)
            self.log(f"done: {self.step} steps in {self.seconds:.0f} s, {path.name} written")
        self.fabric.barrier()
        return DistillResult(path, distilled, self.main)

    @property
    def seconds(self) -> float:
        """Time in the loop, of all parts of the run."""
        return self.seconds_before + (time.perf_counter() - self._begin)

    _begin = 0.0

    # -- checkpoints ------------------------------------------------------------------------

    def _save(self) -> None:
        """Write ``last.ckpt``: everything that the rest of the run depends on."""
        if not self.main:
            return
        state = {
            "edgekd_distill": FORMAT,
            "fingerprint": self._fingerprint,
            "step": self.step,
            "method": self.method.trained_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "stages": self.stages.state_dict(),
            "watch": self.watch.state_dict(),
            "task": self.task.state(),
            "rng": torch.get_rng_state(),
            "precision": self.fabric.strategy.precision.state_dict(),  # the scale of fp16
            "seconds": self.seconds,
            "losses": self.last,
        }
        save_torch(state, self.out / LAST_NAME)

    def _restore(self) -> None:
        path = self.out / LAST_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist: there is nothing to resume; leave out --resume, and add "
                "--fresh if an earlier run was stopped before its first checkpoint"
            )
        state = read_torch(path, "edgekd_distill", FORMAT, COMMAND)
        if state["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"{path} was made with another recipe, data, teacher or number of crops per step; "
                "resume with the same ones, or start anew with --fresh"
            )
        self.method.load_trained_state(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.stages.load_state_dict(state["stages"])
        self.watch.load_state_dict(state["watch"])
        self.task.load_state(state["task"])
        torch.set_rng_state(state["rng"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.seconds_before = int(state["step"]), float(state["seconds"])
        self.last = dict(state["losses"])

    # -- training ---------------------------------------------------------------------------

    def train(self) -> None:
        """Run the steps that are left."""
        spec = self.spec
        self._begin = time.perf_counter()
        self.task.begin(self.out, self.log)
        loader = self._loader()
        state = torch.get_rng_state()
        batches = iter(loader)  # draws a seed for workers, which a resumed run would draw twice
        torch.set_rng_state(state)
        self.method.train()
        names = self._columns()
        curves: Any = Curves(self.out, names, self.step) if self.main else contextlib.nullcontext()
        done, since = 0, time.perf_counter()
        with curves:
            if self.step == 0:
                self._picture(curves)
            while self.step < self.steps:
                number = self.step + 1
                logged = number % spec.log_every_steps == 0 or number == self.steps or number == 1
                self.task.progress(self.step, self.steps)
                losses, seen = self._accumulated(batches, logged)
                values = self._mean_parts(losses)
                norm = self.fabric.clip_gradients(
                    self.wrapped,
                    self.optimizer,
                    max_norm=spec.grad_clip,
                    error_if_nonfinite=False,
                )
                check_finite(values, norm, number, spec.precision)
                self.optimizer.step()
                rate = self.optimizer.param_groups[0]["lr"]
                self.schedule.step()
                self.task.stepped()
                self.step = number
                done += 1
                if self.method.staged:
                    before = self.stages.stage
                    self.stages.update(values["teacher_mae"], values["student_mae"])
                    if self.stages.stage != before:
                        self.log(
                            f"step {number}: stage {before} -> {self.stages.stage}, "
                            f"r {self.stages.ratio:.3f}"
                        )
                self.last = values
                figures = self.task.validate(number)
                if logged or figures:
                    for line in self.task.news():
                        self.log(line)
                    row = self._row(values, seen, rate, norm) | figures
                    row["images_per_s"] = (
                        done * spec.batch * spec.accumulate * self.fabric.world_size
                        / (time.perf_counter() - since)
                    )  # fmt: skip
                    if self.main:
                        curves.log(number, row)
                if spec.picture_every_steps and (
                    number % spec.picture_every_steps == 0 or number == self.steps
                ):
                    self._picture(curves)
                if number % spec.save_every_steps == 0 or number == self.steps:
                    self._save()
                    self.fabric.barrier()
                if self._progress is not None and self.main:
                    self._progress(number, self.steps, self._text(values))
        self.task.close(self.log)

    def _accumulated(
        self, batches: Iterator[Any], inspect: bool
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Gradients of one step; the parts of each loss and the features of the last part."""
        parts = []
        losses: Losses | None = None
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.spec.accumulate):
            batch = self.task.batch(next_batch(batches), self.fabric.device, self.fabric.autocast)
            last = part == self.spec.accumulate - 1
            with self.fabric.no_backward_sync(self.wrapped, enabled=not last):
                losses = self.wrapped(batch, self.stages.weights, inspect=inspect and last)
                self.fabric.backward(losses.total / self.spec.accumulate)
            parts.append({"loss": losses.total.detach(), **losses.parts})
        assert losses is not None
        return parts, losses.features

    def _mean_parts(self, parts: list[dict[str, Tensor]]) -> dict[str, float]:
        """Losses averaged over parts of the step and processes; the same in all of them."""
        names = list(parts[0])
        mean = torch.stack([torch.stack([p[n].float() for n in names]) for p in parts]).mean(0)
        reduced = self.fabric.all_reduce(mean, reduce_op="mean")
        assert isinstance(reduced, Tensor)
        return dict(zip(names, reduced.tolist(), strict=True))

    def _loader(self) -> Any:
        spec, fabric = self.spec, self.fabric
        numbers = Numbers(
            self.step, self.steps, spec.accumulate, fabric.global_rank, fabric.world_size,
            spec.batch,
        )  # fmt: skip
        return DataLoader(
            self.task.dataset(self.steps * spec.batch * spec.accumulate * fabric.world_size),
            batch_size=spec.batch,
            sampler=numbers,
            num_workers=spec.workers,
            drop_last=True,
            pin_memory=fabric.device.type == "cuda",
        )

    # -- seeing it --------------------------------------------------------------------------

    def _columns(self) -> list[str]:
        names = self.task.columns
        return [*names, "lr", "grad_norm", "images_per_s", "peak_mib"]

    def _row(
        self, values: dict[str, float], seen: dict[str, Tensor], rate: float, norm: Any
    ) -> dict[str, float | str]:
        """One row of the curves; looks at the features and warns of a collapse."""
        row: dict[str, float | str] = dict(values)
        if self.method.staged:
            ratio = self.stages.ratio
            row |= {"r": math.nan if ratio is None else ratio, "stage": self.stages.stage}
        for side, features in seen.items():
            spread, rank = feature_std(features), effective_rank(features)
            row |= {f"{side}_std": spread, f"{side}_rank": rank}
            # A frozen teacher cannot collapse; it is mask_cdkd's that learns along.
            learns = side == "student" or self.method.staged
            warning = self.watch.update(self.step, side, spread, rank) if learns else None
            if warning:
                self.log(f"warning: {warning}")
        row["lr"] = rate
        row["grad_norm"] = float(norm) if norm is not None else math.nan
        row["peak_mib"] = round(peak_memory_mib(self.fabric.device), 1)
        return row

    def _text(self, values: dict[str, float]) -> str:
        text = ", ".join(f"{name} {value:.3f}" for name, value in values.items() if "_" not in name)
        if self.method.staged and self.stages.ratio is not None:
            text += f", r {self.stages.ratio:.2f} {self.stages.stage}"
        return text

    @torch.no_grad()
    def _picture(self, curves: Any) -> None:
        """Tile, mask and reconstructions of the same crops each time.

        All processes compute it, so that what their networks keep (tables of positions) is the
        same in all of them; the first one writes.
        """
        if not (self.spec.picture_every_steps and self.method.draws):
            return
        batch = self.task.picture_batch(self.fabric.device)
        state = torch.get_rng_state()
        self.method.eval()
        losses = self.method(batch, self.stages.weights, draw=True)
        self.method.train()
        torch.set_rng_state(state)
        if not self.main:
            return
        path = self.out / "pictures" / f"step_{self.step:06d}.png"
        image = write_picture(path, losses.pictures)
        curves.tensorboard.add_image("reconstruction", image, self.step, dataformats="HWC")
