"""Supervised tuning of a student on labelled crops, whole on one page.

Crops are a function of the seed and their number, and the CPU's random state is kept, so on the
CPU a run that was stopped and resumed with as many threads gives the same weights as one that ran
through, bit for bit.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers.csv_logs import CSVLogger
from lightning_fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from edgekd.contracts.artifacts import canonical_json, sha256_bytes, write_json
from edgekd.contracts.labelled import LabelledSet, check_same_classes
from edgekd.contracts.recipe import FinetuneSpec, Recipe
from edgekd.contracts.sensor_labelled import open_data
from edgekd.errors import CheckpointError, InputError
from edgekd.train.average import Average
from edgekd.train.checkpoint import (
    BEST_NAME,
    LAST_NAME,
    Checkpoint,
    EncoderCheckpoint,
    build_for,
    check_same_input,
    describe_student,
    load_checkpoint,
    load_encoder,
    save_checkpoint,
    use_encoder,
)
from edgekd.train.datasets.crops import CropDataset
from edgekd.train.evaluate import evaluate_model
from edgekd.train.losses import balanced_weights, segmentation_loss
from edgekd.train.run import (
    check_normalization,
    fabric_precision,
    freeze,
    hold_statistics,
    learning_rate,
    make_room,
    only_one,
)
from edgekd.train.students._base import Segmenter

#: called with (step, steps, text) after every step
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FinetuneResult:
    """Where a run ended.

    Attributes:
        best: checkpoint with the best validation mIoU.
        tuning: what was done; the same values are inside the checkpoint.
    """

    best: Path
    tuning: dict[str, Any]


def finetune(
    recipe: Recipe,
    data_path: Path,
    out: Path,
    *,
    resume: bool = False,
    fresh: bool = False,
    encoder: Path | None = None,
    random_encoder: bool = False,
    accelerator: str = "auto",
    progress: Progress | None = None,
) -> FinetuneResult:
    """Tune the recipe's student and keep the weights that do best on the validation split.

    Args:
        recipe: what to tune and how.
        data_path: the labelled set, see :mod:`edgekd.contracts.labelled`.
        out: folder of the run: ``best.ckpt``, ``last.ckpt``, ``logs/``.
        resume: go on from ``out/last.ckpt``.
        fresh: start anew although ``out`` holds a run, which is lost.
        encoder: distilled encoder to start from (``encoder.ckpt`` or its folder).
        random_encoder: with ``scope: decoder`` and no encoder, tune on a random one all the same;
            that is a control, no product.
        accelerator: Lightning Fabric's name of the device kind.
        progress: called after every step.

    Raises:
        DatasetError, ImageError: the data cannot be used.
        InputError: crop, tile or normalisation do not fit the student; a run is in the way.
        CheckpointError: nothing to resume, or another recipe or data set.
        EnvironmentLacksError: the device lacks the precision, or weights are not installed.
    """
    with only_one(out):
        return _finetune(
            recipe, data_path, out, resume, fresh, encoder, random_encoder, accelerator, progress
        )


def _finetune(
    recipe: Recipe,
    data_path: Path,
    out: Path,
    resume: bool,
    fresh: bool,
    encoder: Path | None,
    random_encoder: bool,
    accelerator: str,
    progress: Progress | None,
) -> FinetuneResult:
    spec = recipe.finetune
    start_from = None if encoder is None else load_encoder(encoder)
    data = open_data(recipe, data_path)
    check_same_classes(data.classes, list(recipe.io.classes), str(data.root))
    for sample in data.split("val"):  # a fault in them must not wait for the first evaluation
        data.load(sample)
    fabric = Fabric(
        accelerator=accelerator,
        devices=1,
        precision=fabric_precision(spec.precision, accelerator, "finetune.precision"),
        loggers=_loggers(out),
    )
    fabric.launch()
    fabric.seed_everything(spec.seed, verbose=False)
    model = build_for(recipe)
    _check_geometry(model, recipe)
    if start_from is not None:
        check_same_input(start_from, recipe, str(encoder))
        use_encoder(model, start_from, str(encoder))
    elif spec.scope == "decoder" and not (model.options.get("pretrained") or random_encoder):
        raise InputError(
            "finetune.scope is decoder, and the encoder would stay random; give a distilled one "
            "with --encoder FOLDER (made by edgekd distill), or --encoder random for a control"
        )
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    crops = CropDataset(
        data,
        "train",
        recipe.io.inputs[0],
        spec.crop_px,
        spec.augment,
        spec.steps * spec.batch,
        spec.seed,
        spec.rare_crops,
    )
    weights = _class_weights(spec, crops, fabric)
    plain = model
    wrapped, optimizer = fabric.setup(model, _optimizer(model, spec))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, spec.steps, spec.warmup_fraction)
    )
    average = Average(plain, spec.ema)
    origin = _origin(start_from, random_encoder)
    run = _Run(recipe, data, out, _fingerprint(recipe, data, origin), origin)
    first = run.restore(plain, optimizer, schedule, average) if resume else run.begin(fresh)
    loader = DataLoader(
        crops,
        batch_size=spec.batch,
        sampler=range(first * spec.batch, spec.steps * spec.batch),
        num_workers=spec.workers,
        drop_last=True,
    )
    start = time.perf_counter()
    step = first
    _train_mode(plain, spec)
    if not run.stopped:
        for image, target in fabric.setup_dataloaders(loader):
            image = image.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            loss = segmentation_loss(
                wrapped(image),
                target,
                ce_weight=spec.ce_weight,
                dice_weight=spec.dice_weight,
                class_weights=weights,
            )
            fabric.backward(loss)
            norm = fabric.clip_gradients(wrapped, optimizer, max_norm=spec.grad_clip)
            optimizer.step()
            schedule.step()
            step += 1
            average.update(plain)
            value = loss.item()
            if not math.isfinite(value):
                raise InputError(
                    f"the loss became {value} at step {step}; lower finetune.lr or use precision 32"
                )
            if step % spec.log_every_steps == 0 or step == spec.steps:
                rate = step - first
                fabric.log_dict(
                    {
                        "train/loss": value,
                        "train/grad_norm": float(norm) if norm is not None else math.nan,
                        "train/lr": optimizer.param_groups[0]["lr"],
                        "train/images_per_s": rate * spec.batch / (time.perf_counter() - start),
                    },
                    step=step,
                )
            if progress is not None:
                progress(step, spec.steps, f"loss {value:.3f}{run.best_text}")
            if step % spec.val_every_steps == 0 or step == spec.steps:
                with average.applied(plain):
                    metrics = evaluate_model(plain, data, "val", recipe.io, recipe.tiling)
                fabric.log_dict({"val/miou": metrics["miou"]}, step=step)
                run.validated(step, metrics, plain, average, fabric, time.perf_counter() - start)
                start_state = _state(optimizer, schedule, average, run, step)
                run.save_last(plain, start_state)
                _train_mode(plain, spec)
                if run.stopped:
                    break
    best = load_checkpoint(out / BEST_NAME)
    if best.tuning != run.tuning:  # it was saved before the run was over
        save_checkpoint(out / BEST_NAME, dataclasses.replace(best, tuning=run.tuning))
    for logger in fabric.loggers:
        logger.finalize("success")
    return FinetuneResult(out / BEST_NAME, run.tuning)


def _loggers(out: Path) -> list[Any]:
    folder = out / "logs"
    return [
        CSVLogger(root_dir=str(folder), name="csv"),
        TensorBoardLogger(root_dir=str(folder), name="tensorboard"),
    ]


def _check_geometry(model: Segmenter, recipe: Recipe) -> None:
    """Crop, tile and normalisation must be what the student needs."""
    spec = recipe.io.inputs[0]
    for what, side in (
        ("finetune.crop_px", recipe.finetune.crop_px),
        ("the tile (io.inputs[0].shape)", spec.tile_px),
    ):
        if side % model.side_multiple:
            raise InputError(
                f"{what} is {side} px; student {model.name} takes multiples of "
                f"{model.side_multiple} px"
            )
    check_normalization(model, spec)


def _class_weights(spec: FinetuneSpec, crops: CropDataset, fabric: Fabric) -> Tensor | None:
    if spec.class_weights == "none":
        return None
    if spec.class_weights == "balanced":
        return balanced_weights(crops.class_pixels.tolist()).to(fabric.device)
    return torch.tensor(spec.class_weights, dtype=torch.float32, device=fabric.device)


def _freeze(model: Segmenter, spec: FinetuneSpec) -> None:
    """Take what the recipe leaves alone out of training."""
    if spec.scope == "decoder":
        model.encoder.requires_grad_(False)
    freeze(model, model.name, spec.freeze, "finetune.freeze")


def _optimizer(model: Segmenter, spec: FinetuneSpec) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and norms; the encoder has its own rate."""
    _freeze(model, spec)
    groups = []
    for part, factor in ((model.decoder, 1.0), (model.encoder, spec.encoder_lr_factor)):
        for decayed in (True, False):
            parameters = [
                item
                for item in part.parameters()
                if item.requires_grad and (item.ndim > 1) == decayed
            ]
            if parameters and factor > 0:
                groups.append(
                    {
                        "params": parameters,
                        "lr": spec.lr * factor,
                        "weight_decay": spec.weight_decay if decayed else 0.0,
                    }
                )
    return torch.optim.AdamW(groups, lr=spec.lr)


def _train_mode(model: Segmenter, spec: FinetuneSpec) -> None:
    model.train()
    if spec.scope == "decoder" or spec.freeze_bn:
        hold_statistics(model.encoder)
    for prefix in spec.freeze:
        hold_statistics(model.get_submodule(prefix))


def _origin(encoder: EncoderCheckpoint | None, random: bool) -> dict[str, Any]:
    """Where the encoder came from, for the checkpoint; a control says that it is one."""
    if encoder is None:
        return {"random": True} if random else {}
    return {**encoder.distilled, "data": encoder.data}


def _fingerprint(recipe: Recipe, data: LabelledSet, origin: dict[str, Any]) -> str:
    """What must be the same for a run to be resumed: all but logging, workers and targets."""
    values = recipe.plain()
    for key in ("log_every_steps", "workers"):
        values["finetune"].pop(key)
    for key in ("targets", "gates", "precision", "calibration", "title"):
        values.pop(key)
    values["data"].pop("root")
    for key in ("distill", "teachers", "preset"):
        values.pop(key)
    parts = {"recipe": values, "data": data.digest, "encoder": origin}
    return sha256_bytes(canonical_json(parts).encode())


class _Run:
    """Files and bookkeeping of one run."""

    def __init__(
        self,
        recipe: Recipe,
        data: LabelledSet,
        out: Path,
        fingerprint: str,
        distilled: dict[str, Any],
    ) -> None:
        self._recipe, self._data, self._out = recipe, data, out
        self._distilled = distilled
        self._fingerprint = fingerprint
        self.best_miou = -1.0
        self.best_step = 0
        self.without_gain = 0
        self.seconds_before = 0.0
        self.tuning: dict[str, Any] = {}

    @property
    def best_text(self) -> str:
        """The best validation figure so far, for the progress bar."""
        return f", val mIoU {self.best_miou:.3f}" if self.best_miou >= 0 else ""

    @property
    def stopped(self) -> bool:
        """Whether patience is used up."""
        patience = self._recipe.finetune.patience
        return patience > 0 and self.without_gain >= patience

    def begin(self, fresh: bool) -> int:
        """Start at step 0; an earlier run in the folder is only given up when asked for."""
        make_room(self._out, [BEST_NAME, LAST_NAME], LAST_NAME, fresh)
        # Before hours of training: is the place writable?
        write_json(self._out / "recipe.json", self._recipe.plain())
        return 0

    def restore(
        self,
        model: nn.Module,
        optimizer: Any,
        schedule: Any,
        average: Average,
    ) -> int:
        """Load ``last.ckpt``; returns the step to go on from."""
        path = self._out / LAST_NAME
        if not path.is_file():
            raise CheckpointError(
                f"{path} does not exist: there is nothing to resume; leave out --resume, and add "
                "--fresh if an earlier run was stopped before its first full checkpoint"
            )
        checkpoint = load_checkpoint(path)
        state = checkpoint.state
        if state.get("fingerprint") != self._fingerprint:
            raise CheckpointError(
                f"{path} was made with another recipe, data set or encoder; resume with the same "
                "ones or start anew without --resume"
            )
        model.load_state_dict(checkpoint.weights)
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        average.updates = state["average_updates"]
        for name, value in state["average"].items():
            average.shadow[name].copy_(value)
        torch.set_rng_state(state["rng"])
        self.best_miou, self.best_step = state["best_miou"], state["best_step"]
        self.without_gain, self.seconds_before = state["without_gain"], state["seconds"]
        self.tuning = checkpoint.tuning
        return int(state["step"])

    def validated(
        self,
        step: int,
        metrics: dict[str, Any],
        model: Segmenter,
        average: Average,
        fabric: Fabric,
        seconds: float,
    ) -> None:
        """Take note of an evaluation and keep the weights if they are the best so far."""
        better = metrics["miou"] > self.best_miou
        self.without_gain = 0 if better else self.without_gain + 1
        if better:
            self.best_miou, self.best_step = metrics["miou"], step
        spec = self._recipe.finetune
        self.tuning = {
            "steps_asked": spec.steps,
            "steps_done": step,
            "best_step": self.best_step,
            "best_val_miou": self.best_miou,
            "stopped_early": self.stopped and step < spec.steps,
            "seconds": self.seconds_before + seconds,
            "seed": spec.seed,
            "precision": spec.precision,
            "device": str(fabric.device),
            "torch": str(torch.__version__),
            "encoder": self._distilled,
            "simulated": self._data.simulated,
        }
        if better:
            save_checkpoint(self._out / BEST_NAME, self._checkpoint(model, average.weights(model)))

    def save_last(self, model: Segmenter, state: dict[str, Any]) -> None:
        """Write ``last.ckpt``, from which the run can be resumed."""
        weights = {name: value.detach().cpu() for name, value in model.state_dict().items()}
        state["fingerprint"] = self._fingerprint
        state["seconds"] = self.tuning["seconds"]
        save_checkpoint(self._out / LAST_NAME, self._checkpoint(model, weights, state))

    def _checkpoint(
        self,
        model: Segmenter,
        weights: dict[str, Tensor],
        state: dict[str, Any] | None = None,
    ) -> Checkpoint:
        return Checkpoint(
            recipe=self._recipe.plain(),
            student=describe_student(model),
            weights=weights,
            data={"name": self._data.name, "sha256": self._data.digest},
            tuning=self.tuning,
            state=state or {},
        )


def _state(optimizer: Any, schedule: Any, average: Average, run: _Run, step: int) -> dict[str, Any]:
    return {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "average": average.shadow,
        "average_updates": average.updates,
        "rng": torch.get_rng_state(),
        "best_miou": run.best_miou,
        "best_step": run.best_step,
        "without_gain": run.without_gain,
    }
