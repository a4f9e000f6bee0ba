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

from edgekd.contracts import registry
from edgekd.contracts.artifacts import canonical_json, sha256_bytes, write_json
from edgekd.contracts.recipe import Recipe
from edgekd.errors import CheckpointError, InputError
from edgekd.train.checkpoint import (
    ENCODER_NAME,
    LAST_NAME,
    EncoderCheckpoint,
    build_student,
    describe_student,
    read_torch,
    save_encoder,
    save_torch,
)
from edgekd.train.datasets.unlabeled import Crop, UnlabeledCrops, UnlabeledSet, open_unlabeled
from edgekd.train.distill.feeding import BrokenFiles, Numbers, next_batch
from edgekd.train.distill.measures import CollapseWatch, effective_rank, feature_std
from edgekd.train.distill.methods._base import Batch, Losses, Method
from edgekd.train.distill.methods.feature import Feature
from edgekd.train.distill.pictures import write_picture
from edgekd.train.distill.schedule import StageMachine
from edgekd.train.distill.teaching import CachedTeachers, build_teachers
from edgekd.train.run import (
    Curves,
    check_finite,
    check_normalization,
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
#: crops that the pictures show
PICTURE_CROPS = 4


@dataclass(frozen=True)
class DistillResult:
    """Where a run ended.

    Attributes:
        encoder: the student's encoder, for ``edgekd finetune --encoder``.
        distilled: what was done; the same values are inside the file.
        main: whether this process is the one that writes and speaks.
    """

    encoder: Path
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
    spec = recipe.distill
    if spec is None:
        raise InputError(f"recipe '{recipe.name}' has no distill section")
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
        run = together(lambda: _Run(fabric, recipe, recipe_folder, roots, out, progress, say))
        run.connect()
        run.start(resume, fresh)
        run.train()
        return run.finish()


class _Run:
    """One run in one process."""

    def __init__(
        self,
        fabric: Fabric,
        recipe: Recipe,
        recipe_folder: Path,
        roots: Sequence[Path],
        out: Path,
        progress: Progress | None,
        say: Say | None,
    ) -> None:
        assert recipe.distill is not None
        self.fabric, self.recipe, self.out, self.spec = fabric, recipe, out, recipe.distill
        self.main = fabric.is_global_zero
        self._progress, self._say = progress, say
        self._early: list[str] | None = []
        fabric.seed_everything(self.spec.seed, verbose=False)
        self.student = build_student(
            recipe.student.name,
            len(recipe.io.classes),
            attention=recipe.student.attention,
            head=recipe.student.head,
            pretrained=recipe.student.pretrained,
        )
        check_normalization(self.student, recipe.io.inputs[0])
        self.teachers = build_teachers(recipe, recipe_folder)
        module = registry.load("edgekd.train.distill.methods", self.spec.method, "method")
        self.method: Method = module.build(recipe, self.student, self.teachers)
        self.data: UnlabeledSet = open_unlabeled(
            roots, self.spec.data, self.spec.crop_px, recipe.io.inputs[0].channel_count, self.log
        )
        self.broken = BrokenFiles(out / "broken.jsonl", self.data.broken)
        self.data.noted = self.broken
        self._told = 0
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
        return max(1, math.ceil(self.spec.epochs * len(self.data) / per_step))

    def _optimizer(self) -> torch.optim.Optimizer:
        """AdamW on what is trained; no weight decay on biases, norms and mask tokens."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, item in self.method.named_parameters():
            if item.requires_grad:
                plain = item.ndim <= 1 or name.endswith("mask_token")
                (free if plain else decayed).append(item)
        groups = [
            {"params": decayed, "weight_decay": self.spec.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=self.spec.lr)

    @property
    def _fingerprint(self) -> str:
        """What must be the same for a run to be resumed: all but logging, workers, tuning."""
        values = self.recipe.plain()
        for key in (
            "log_every_steps", "picture_every_steps", "save_every_steps", "workers", "compile",
            "checkpointing",
        ):  # fmt: skip
            values["distill"].pop(key)
        kept = {key: values[key] for key in ("distill", "teachers", "student", "io")}
        kept["distill"]["data"].pop("roots")
        for teacher in kept["teachers"]:
            teacher.pop("weights")
        parts = {
            "recipe": kept,
            "data": self.data.digest,
            "teachers": [teacher.weights_sha256 for teacher in self.teachers],
            "crops_per_step": self.spec.batch * self.spec.accumulate * self.fabric.world_size,
        }
        return sha256_bytes(canonical_json(parts).encode())

    # -- beginning and end ------------------------------------------------------------------

    def start(self, resume: bool, fresh: bool) -> None:
        """Prepare the folder, or go on from its last checkpoint."""
        names = [ENCODER_NAME, LAST_NAME]
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
        for teacher in self.teachers:
            for line in teacher.report:
                self.log(f"teacher {teacher.name}: {line}")
        verb = f"go on from step {self.step}" if resume else "start"
        trained = sum(p.numel() for p in self.method.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in self.method.parameters() if not p.requires_grad)
        self.log(
            f"{verb}: {len(self.data)} images, {self.steps} steps of {self.spec.batch} x "
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
        """Write the encoder."""
        path = self.out / ENCODER_NAME
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
            "teachers": [
                {"name": t.name, "variant": t.variant, "weights_sha256": t.weights_sha256,
                 "weights": spec.weights if spec.weights in ("random", "package") else "file"}
                for t, spec in zip(self.teachers, self.recipe.teachers, strict=True)
            ],
            "stage": self.stages.stage if self.method.staged else None,
            "losses": self.last,
        }  # fmt: skip
        if self.main:
            weights = {
                name: value.detach().cpu().clone()
                for name, value in self.student.encoder.state_dict().items()
            }
            encoder = EncoderCheckpoint(
                recipe=self.recipe.plain(),
                student=describe_student(self.student),
                weights=weights,
                data={"sha256": self.data.digest, "images": len(self.data)},
                distilled=distilled,
            )
            save_encoder(path, encoder)
            self.log(f"done: {self.step} steps in {self.seconds:.0f} s, encoder in {path.name}")
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
        torch.set_rng_state(state["rng"])
        self.fabric.strategy.precision.load_state_dict(state["precision"])
        self.step, self.seconds_before = int(state["step"]), float(state["seconds"])
        self.last = dict(state["losses"])

    # -- training ---------------------------------------------------------------------------

    def train(self) -> None:
        """Run the steps that are left."""
        spec = self.spec
        self._begin = time.perf_counter()
        cache = None
        if spec.cache.mib:
            assert isinstance(self.method, Feature)
            cache = CachedTeachers(
                self.method, self.out / "features", spec.cache.mib, spec.precision,
                spec.cache.crops, self.log,
            )  # fmt: skip
        loader = self._loader()
        batches = iter(loader)
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
                losses, seen = self._accumulated(batches, cache, logged)
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
                if logged:
                    self._tell_broken()
                    row = self._row(values, seen, rate, norm)
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
        if cache is not None:
            self.log(f"feature cache: {cache.stats}")

    def _accumulated(
        self, batches: Iterator[Crop], cache: CachedTeachers | None, inspect: bool
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Gradients of one step; the parts of each loss and the features of the last part."""
        parts = []
        losses: Losses | None = None
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(self.spec.accumulate):
            batch = self._batch(next_batch(batches), cache)
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

    def _batch(self, crop: Crop, cache: CachedTeachers | None) -> Batch:
        numbers = torch.as_tensor(crop.number).tolist()
        device = self.fabric.device
        clean = crop.clean.to(device, non_blocking=True)
        view = crop.view.to(device, non_blocking=True)
        features = None
        if cache is not None:
            with self.fabric.autocast():
                features = cache.features(crop.clean, clean)
        return Batch(clean, view, numbers, features)

    def _crops(self) -> UnlabeledCrops:
        spec = self.spec
        length = self.steps * spec.batch * spec.accumulate * self.fabric.world_size
        pool = spec.cache.crops if spec.cache.mib else 0
        return UnlabeledCrops(self.data, spec.crop_px, spec.augment, length, spec.seed, pool)

    def _loader(self) -> Any:
        spec, fabric = self.spec, self.fabric
        numbers = Numbers(
            self.step, self.steps, spec.accumulate, fabric.global_rank, fabric.world_size,
            spec.batch,
        )  # fmt: skip
        return DataLoader(
            self._crops(),
            batch_size=spec.batch,
            sampler=numbers,
            num_workers=spec.workers,
            drop_last=True,
            pin_memory=fabric.device.type == "cuda",
        )

    # -- seeing it --------------------------------------------------------------------------

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
        return [*names, "lr", "grad_norm", "images_per_s", "peak_mib"]

    def _tell_broken(self) -> None:
        for why in self.broken.since(self._told):
            self._told += 1
            self.log(f"skipped a broken file: {why}")

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
        crops = self._crops()
        items = [crops[number] for number in range(min(PICTURE_CROPS, len(crops)))]
        device = self.fabric.device
        batch = Batch(
            torch.stack([item.clean for item in items]).to(device),
            torch.stack([item.view for item in items]).to(device),
            [item.number for item in items],
        )
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
