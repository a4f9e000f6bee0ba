"""The part of a recipe that says how a student's encoder is distilled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.schema import Document

Positive = Annotated[float, pydantic.Field(gt=0)]
Fraction = Annotated[float, pydantic.Field(ge=0, le=1)]
Range = Annotated[list[float], pydantic.Field(min_length=2, max_length=2)]
Three = Annotated[list[Positive], pydantic.Field(min_length=3, max_length=3)]
#: (teacher block or stage, student block), both counted from 1
Pair = Annotated[list[int], pydantic.Field(min_length=2, max_length=2)]

#: mask ratio -> side of the lattice cell of which one patch stays visible.
LATTICE = {0.75: 2, 8 / 9: 3, 15 / 16: 4}


class TemperatureSpec(Document):
    """Temperature of the softened answers over a run (Hinton et al. 2015).

    Attributes:
        start, end: at the first and the last step; losses are multiplied by T squared.
        schedule: ``constant`` stays at ``start``; ``linear`` and ``cosine`` go to ``end``.
    """

    start: Positive = 3.0
    end: Positive = 1.0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"

    def at(self, part: float) -> float:
        """Temperature when ``part`` (0-1) of the run is over."""
        if self.schedule == "constant":
            return self.start
        share = part if self.schedule == "linear" else (1 - math.cos(math.pi * part)) / 2
        return self.start + (self.end - self.start) * share


class BalanceSpec(Document):
    """Weights of the classes, for rare ones.

    Attributes:
        kind: ``none``; ``effective_number``: in proportion to ``(1 - beta) / (1 - beta ** n)``
            (Cui et al. 2019, equation 2), scaled to a mean of 1 over the classes that have any.
            ``n`` of a class is its labelled pixels in cross-entropy, and the training pixels that
            the teacher expects of it, the sum of its probabilities, in KL.
        beta: 0 weighs all classes alike, towards 1 by the inverse of their pixels; classes with
            more than about ``1 / (1 - beta)`` pixels weigh alike.
    """

    kind: Literal["none", "effective_number"] = "effective_number"
    beta: float = pydantic.Field(default=0.9999, ge=0, lt=1)


class SensorJitterSpec(Document):
    """Random changes of a crop, sensor by sensor; mirroring and turns are the same for all.

    Attributes:
        flip, quarter_turn: mirror with probability 0.5; turn by 0, 90, 180 or 270 degrees.
        illumination: of images: 1 +- at most this as a factor, and an offset of the same size in
            standard deviations.
        colour: of images: the same again, drawn for each channel on its own.
        spectral_gain: of spectra: standard deviation of a factor per crop, ``1 + gain``.
        spectral_warp: of spectra: standard deviation of a smooth factor over the wavelengths (a
            curve through 8 random points): another atmosphere or calibration.
        spectral_noise: of spectra: standard deviation added to every band and pixel, as a part of
            the band's own standard deviation.
        elevation_noise_m: standard deviation added to every height, m.
        elevation_dropout: part of the heights that are lost, and replaced by the crop's median.
        sensor_dropout: probability that a crop lacks a sensor that may be missing.
    """

    flip: bool = True
    quarter_turn: bool = True
    illumination: Fraction = 0.1
    colour: Fraction = 0.0
    spectral_gain: Fraction = 0.05
    spectral_warp: Fraction = 0.02
    spectral_noise: Fraction = 0.1
    elevation_noise_m: float = pydantic.Field(default=0.0, ge=0)
    elevation_dropout: Fraction = 0.0
    sensor_dropout: Fraction = 0.0


class CrossModalSpec(Document):
    """Learning of one set of sensors from a network that sees another.

    The loss is ``kd_weight * T^2 * KL(teacher / T, student / T) + feature_weight * (1 - cosine) +
    label_weight * cross-entropy``; the first two over all training pixels, labelled or not.

    Attributes:
        temperature: of the softened answers.
        kd_weight, feature_weight, label_weight: of the three parts.
        balance: weights of the classes in cross-entropy and, by what the teacher answers, in KL.
        trust: unlabeled pixels where the teacher's largest probability (at temperature 1) is lower
            do not count.
        pixels: of a batch, that the losses look at: labelled ones first, then others, at random.
        labelled_crops: part of the crops that lie around a labelled pixel, whose class is drawn
            with equal chances; the others lie anywhere in the training pixels.
        ema: decay of the averaged weights that are kept; 0 is off.
        augment: random changes.
        val_every_steps: evaluations on the validation part, where there is one.
        keep: ``last`` keeps the weights of the last step, ``best`` those with the best balanced
            accuracy on the validation part.
    """

    temperature: TemperatureSpec = TemperatureSpec()
    kd_weight: float = pydantic.Field(default=1.0, ge=0)
    feature_weight: float = pydantic.Field(default=0.5, ge=0)
    label_weight: float = pydantic.Field(default=1.0, ge=0)
    balance: BalanceSpec = BalanceSpec()
    trust: Fraction = 0.0
    pixels: int = pydantic.Field(default=2048, ge=1)
    labelled_crops: Fraction = 0.5
    ema: float = pydantic.Field(default=0.98, ge=0, lt=1)
    augment: SensorJitterSpec = SensorJitterSpec()
    val_every_steps: int = pydantic.Field(default=100, ge=1)
    keep: Literal["last", "best"] = "last"


class StageSpec(Document):
    """How a teacher of a chain is trained; what is absent is as in ``distill``.

    Attributes:
        crop_px, batch, steps, lr, weight_decay: as in ``distill``.
        cross_modal: replaces the values of ``distill.cross_modal`` that it names.
    """

    crop_px: int | None = pydantic.Field(default=None, ge=1)
    batch: int | None = pydantic.Field(default=None, ge=1)
    steps: int | None = pydantic.Field(default=None, ge=1)
    lr: Positive | None = None
    weight_decay: float | None = pydantic.Field(default=None, ge=0)
    cross_modal: dict[str, Any] = {}

    def rules(self, base: CrossModalSpec) -> CrossModalSpec:
        """``distill.cross_modal`` with what this stage changes.

        Raises:
            ValueError: a key that is not there, or a value that does not fit.
        """
        return CrossModalSpec.model_validate(_merged(base.model_dump(), self.cross_modal))


def _merged(old: dict[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        inner = result.get(key)
        nested = isinstance(inner, dict) and isinstance(value, Mapping)
        result[key] = _merged(inner, value) if nested else value  # type: ignore[arg-type]
    return result


class TeacherSpec(Document):
    """A frozen network to learn from: one file in ``edgekd/train/teachers``.

    Attributes:
        name: the file's name: ``sam``, ``hf_vision``, ``efficientnet_lite``, ``geology_fusion``.
        id: what a chain calls this entry; the name where absent.
        sensors: of the recipe, that it sees and that must be on for it; of method ``cross_modal``
            all where absent.
        stage: how it is trained where ``weights`` is ``train``.
        whitening: of spectra, where it is trained: ``noise`` weighs directions by how much
            neighbouring training pixels differ in them, for which no label is needed (minimum noise
            fraction, Green et al. 1988).
        variant: which size, e.g. ``vit_l``; the teacher's own choice where absent.
        weights: a file or folder (relative to the recipe, ``${NAME}`` from the environment),
            ``package`` for weights that a Python package carries, or ``random`` for tests and
            shape checks; a random teacher teaches nothing, so it must be written out. ``train``:
            made by this recipe, of method ``cross_modal``: the first teacher learns from labels,
            each further one from the one before it, and the student from the last.
        sha256: of the weights' file; another file is refused.
        weight: its share of the distillation loss; the shares of all teachers are scaled to sum 1.
        pairs: (teacher block or stage, student block) whose features are compared; the method's
            own choice where absent.
        projector: from the student's features to the teacher's width: ``linear`` without bias, or
            ``mlp`` with one hidden layer.
        norm: of the teacher's features before they are compared: ``none``, ``layer`` (LayerNorm
            over channels, without gain), or ``standardize`` (zero mean and unit variance per
            channel, over data seen so far; with ``accumulate`` part by part).
    """

    name: str
    id: Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    sensors: list[str] | None = pydantic.Field(default=None, min_length=1)
    stage: StageSpec | None = None
    whitening: Literal["none", "noise"] = "none"
    variant: str | None = None
    weights: str = "package"
    sha256: Sha256 | None = None
    weight: Positive = 1.0
    pairs: list[Pair] | None = pydantic.Field(default=None, min_length=1)
    projector: Literal["linear", "mlp"] = "linear"
    norm: Literal["none", "layer", "standardize"] = "none"


class UnlabeledSpec(Document):
    """Images without labels.

    Attributes:
        roots: folders (searched with their subfolders), single images, or text files with one
            path per line; relative to the recipe.
        bands: 1-based bands to use as the model's channels; needed where a file has more than the
            model takes.
        range: pixel values of 16-bit files that become 0 and 255; where absent, the 2nd and 98th
            percentile of each file over its chosen bands. 8-bit files are used as they are.
        max_nodata: crops with a larger part of pixels without data are drawn again.
    """

    roots: list[str] = pydantic.Field(min_length=1)
    bands: list[Annotated[int, pydantic.Field(ge=1)]] | None = None
    range: Range | None = None
    max_nodata: Fraction = 0.5

    @pydantic.field_validator("range")
    @classmethod
    def _ordered(cls, value: list[float] | None) -> list[float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"range must be [low, high] with low < high, received {value}")
        return value


class MaskSpec(Document):
    """Which patches the encoders do not see.

    Attributes:
        kind: ``lattice`` leaves one patch visible in every cell of 2x2 (3x3, 4x4), so that the
            visible ones are a true grid; ``random`` draws them from the whole image and squeezes
            them into a grid of the same size, as the published code does; ``none`` shows all.
        ratio: hidden part: 0.75, 0.8889 or 0.9375, for cells of 2, 3 and 4 patches.
    """

    kind: Literal["lattice", "random", "none"] = "lattice"
    ratio: float = 0.75

    @pydantic.field_validator("ratio")
    @classmethod
    def _fits(cls, value: float) -> float:
        if not any(abs(value - ratio) < 1e-3 for ratio in LATTICE):
            valid = ", ".join(f"{ratio:.4g} ({k}x{k})" for ratio, k in LATTICE.items())
            raise ValueError(
                f"the visible patches must form a grid, one per cell of the lattice; ratio "
                f"{value:g} leaves no such grid (valid: {valid})"
            )
        return value

    @property
    def cell(self) -> int:
        """Side of the lattice cell in patches; 1 where nothing is hidden."""
        if self.kind == "none":
            return 1
        return next(cell for ratio, cell in LATTICE.items() if abs(self.ratio - ratio) < 1e-3)


class AdapterSpec(Document):
    """MMoA, the trainable part of a teacher's block; the switches are the paper's ablations.

    Attributes:
        reduction: width of the adapters is the block's divided by this.
        multi_scale: False gives both adapters dilation 1 throughout.
        gate: ``softmax`` weighs the three streams per token, ``sum`` adds them.
    """

    reduction: int = pydantic.Field(default=4, ge=1)
    multi_scale: bool = True
    gate: Literal["softmax", "sum"] = "softmax"


class MaeSpec(Document):
    """The branch that paints hidden patches from visible ones.

    Attributes:
        weight: of its loss beside the distillation loss in method ``feature`` (0: no branch);
            ``mask_cdkd`` takes its weights from the schedule.
        dim, depth, heads: of its transformer blocks.
        patch_norm: reconstruct patches normalised each by its own mean and variance.
    """

    weight: float = pydantic.Field(default=0.0, ge=0)
    dim: int = pydantic.Field(default=256, ge=16)
    depth: int = pydantic.Field(default=4, ge=1)
    heads: int = pydantic.Field(default=8, ge=1)
    patch_norm: bool = False

    @pydantic.field_validator("heads")
    @classmethod
    def _divides(cls, value: int, info: pydantic.ValidationInfo) -> int:
        dim = info.data.get("dim", value)
        if dim % value or dim % 4:
            raise ValueError(f"dim {dim} must be a multiple of 4 and of its {value} heads")
        return value


class StagesSpec(Document):
    """Weights (KD, teacher MAE, student MAE) of the three stages, and when the next one begins.

    ``r`` is the teacher's reconstruction loss over the student's, both smoothed.

    Attributes:
        early, middle, late: the three weights of each stage.
        to_middle: the middle stage begins when r falls below.
        to_late: the late stage begins when r then reaches.
        smoothing: decay of the moving average of both losses per step.
        patience_steps: steps in a row that the condition must hold.
    """

    early: Three = [0.2, 0.4, 0.4]
    middle: Three = [0.6, 0.2, 0.2]
    late: Three = [0.7, 0.15, 0.15]
    to_middle: Positive = 0.85
    to_late: Positive = 0.95
    smoothing: float = pydantic.Field(default=0.98, ge=0, lt=1)
    patience_steps: int = pydantic.Field(default=1, ge=1)


class JitterSpec(Document):
    """Random changes of a crop; colours change for the student and leave cached features alone.

    Attributes:
        flip, quarter_turn: mirror with probability 0.5; turn by 0, 90, 180 or 270 degrees.
        scale: smallest and largest magnification, drawn log-uniformly; limited by the image.
        brightness, contrast, saturation: 1 +- at most this, as a factor on the pixel, on its
            distance from the crop's mean, and on its distance from grey.
    """

    flip: bool = True
    quarter_turn: bool = True
    scale: Range = [1.0, 1.0]
    brightness: Fraction = 0.0
    contrast: Fraction = 0.0
    saturation: Fraction = 0.0

    @pydantic.field_validator("scale")
    @classmethod
    def _ordered(cls, value: list[float]) -> list[float]:
        if not 0.25 <= value[0] <= value[1] <= 4.0:
            raise ValueError(f"scale must be [low, high] with 0.25 <= low <= high <= 4: {value}")
        return value


class CacheSpec(Document):
    """Teacher features on disk, so that a crop goes through the teacher once.

    Attributes:
        mib: most space to use; 0 is off.
        crops: number of different crops that training draws from, again and again.
    """

    mib: int = pydantic.Field(default=0, ge=0)
    crops: int = pydantic.Field(default=4096, ge=1)


class DistillSpec(Document):
    """Training without labels, or with few.

    Attributes:
        method: ``mask_cdkd`` (teachers are transformers and learn along, through MMoA),
            ``feature`` (any frozen teacher), ``mae`` (no teacher: the control), ``cross_modal``
            (from sensors that the student does not have).
        data: the images; with ``cross_modal`` absent, for ``data.root`` is a sensor set.
        cross_modal: of method ``cross_modal``.
        crop_px: side of the random crop, px.
        batch: crops per step, device and accumulated part.
        accumulate: parts whose gradients are added up before a step.
        steps, epochs: how long; one of the two. An epoch is as many crops as there are images.
        lr: peak learning rate; ``decay`` says what follows the warm-up.
        weight_decay: of AdamW, on weights of more than one dimension.
        warmup_fraction: part of the steps in which the rate rises linearly.
        decay: after the warm-up: ``none`` stays at the peak, ``cosine`` falls to 0.
        grad_clip: largest norm of the gradient.
        detach_teacher: KD gradients do not reach the teacher's MMoA (an ablation: the paper's
            method is bidirectional).
        checkpointing: recompute block activations in the backward pass: less memory, more time.
        compile: ``torch.compile`` the blocks.
        precision: ``32``, ``bf16`` or ``fp16``; refused where the device does not have it.
        log_every_steps, picture_every_steps, save_every_steps: of curves, pictures, checkpoints;
            0 pictures means none.
        seed: of weights, crops, masks.
        workers: processes that prepare crops.
    """

    method: Literal["mask_cdkd", "feature", "mae", "cross_modal"]
    data: UnlabeledSpec | None = pydantic.Field(default=None, validate_default=True)
    cross_modal: CrossModalSpec = CrossModalSpec()
    crop_px: int = pydantic.Field(ge=8)
    batch: int = pydantic.Field(ge=1)
    accumulate: int = pydantic.Field(default=1, ge=1)
    epochs: Positive | None = None
    steps: int | None = pydantic.Field(default=None, ge=1, validate_default=True)
    lr: Positive = 1e-5
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    warmup_fraction: Fraction = 0.0
    decay: Literal["none", "cosine"] = "none"
    grad_clip: Positive = 1.0
    mask: MaskSpec = MaskSpec()
    adapter: AdapterSpec = AdapterSpec()
    mae: MaeSpec = MaeSpec()
    stages: StagesSpec = StagesSpec()
    detach_teacher: bool = False
    augment: JitterSpec = JitterSpec()
    cache: CacheSpec = CacheSpec()
    checkpointing: bool = False
    compile: bool = False
    precision: Literal["32", "bf16", "fp16"] = "32"
    log_every_steps: int = pydantic.Field(default=10, ge=1)
    picture_every_steps: int = pydantic.Field(default=500, ge=0)
    save_every_steps: int = pydantic.Field(default=200, ge=1)
    seed: int = pydantic.Field(default=0, ge=0)
    workers: int = pydantic.Field(default=0, ge=0)

    def unused(self) -> list[str]:
        """Keys that were written and that this method does not look at."""
        used = {
            "adapter": self.method == "mask_cdkd",
            "stages": self.method == "mask_cdkd",
            "detach_teacher": self.method == "mask_cdkd",
            "mae": self.method in ("mask_cdkd", "mae")
            or (self.method == "feature" and self.mae.weight > 0),
            "cross_modal": self.method == "cross_modal",
            "mask": self.method != "cross_modal",
            "augment": self.method != "cross_modal",
        }
        return [f"distill.{key}" for key in used if key in self.model_fields_set and not used[key]]

    @pydantic.field_validator("precision", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @pydantic.field_validator("steps")
    @classmethod
    def _length(cls, value: int | None, info: pydantic.ValidationInfo) -> int | None:
        if "epochs" in info.data and (value is None) == (info.data["epochs"] is None):
            raise ValueError("give either steps or epochs")
        return value

    @pydantic.field_validator("data")
    @classmethod
    def _data(
        cls, value: UnlabeledSpec | None, info: pydantic.ValidationInfo
    ) -> UnlabeledSpec | None:
        method = info.data.get("method")
        if method == "cross_modal" and value is not None:
            raise ValueError(
                "method cross_modal learns from the sensor set in data.root; leave it out"
            )
        if method not in (None, "cross_modal") and value is None:
            raise ValueError(f"method {method} needs images: data: {{roots: [FOLDER]}}")
        return value

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> DistillSpec:
        if self.method == "cross_modal":
            if self.accumulate != 1 or self.compile or self.checkpointing or self.cache.mib:
                raise ValueError(
                    "method cross_modal has no accumulate, compile, checkpointing or cache; leave "
                    "them out"
                )
            return self
        if self.crop_px < 32:
            raise ValueError(
                f"crop_px is {self.crop_px}; method {self.method} takes crops of at least 32 px"
            )
        if self.mask.kind == "none" and (self.method != "feature" or self.mae.weight > 0):
            raise ValueError(
                f"method {self.method} reconstructs hidden patches, and mask.kind is none; take "
                "lattice or random"
            )
        if self.cache.mib and self.method != "feature":
            raise ValueError(
                f"teacher features can be cached with method feature only: with {self.method} "
                "the teacher changes or there is none; set cache.mib: 0"
            )
        return self


def check_chain(
    spec: DistillSpec, teachers: Sequence[TeacherSpec], sensors: Mapping[str, object] | None
) -> None:
    """What method ``cross_modal`` asks of teachers and sensors; None has faults of its own.

    Raises:
        ValueError: for pydantic.
    """
    if sensors is not None and not sensors:
        raise ValueError(
            "method cross_modal needs sensors, among them the student's camera, visual; declare "
            "sensors: {visual: {kind: image, channels: 3, gsd_m: ...}, ...}"
        )
    names = [item.id or item.name for item in teachers]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two teachers are called {twice[0]}; give each an id of its own")
    for item, name in zip(teachers, names, strict=True):
        if item.stage is not None and item.weights != "train":
            raise ValueError(f"teacher {name} has a stage, which is of weights: train")
        if item.stage is not None:
            try:
                item.stage.rules(spec.cross_modal)
            except pydantic.ValidationError as err:
                fault = err.errors()[0]
                place = ".".join(map(str, fault["loc"]))
                raise ValueError(
                    f"teacher {name}: stage.cross_modal.{place} is {fault['input']!r}: "
                    f"{fault['msg'].lower()}"
                ) from err
