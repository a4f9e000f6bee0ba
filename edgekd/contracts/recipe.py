"""A recipe: one YAML file that says how one product is made, from data to targets.

Paths in a recipe are relative to the recipe's own folder; ``${NAME:-default}`` takes a path from
the environment. :func:`load_recipe` reports every fault at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pydantic_core

from edgekd.contracts import registry
from edgekd.contracts.blocks import BlockSpec
from edgekd.contracts.distill import (
    DistillSpec,
    Fraction,
    JitterSpec,
    Positive,
    TeacherSpec,
    check_chain,
)
from edgekd.contracts.overrides import overridden
from edgekd.contracts.schema import (
    Document,
    parse_document,
    read_yaml,
    resolve_path,
)
from edgekd.contracts.search import SearchSpec, check_search
from edgekd.contracts.sensors import Sensors, check_sensors
from edgekd.contracts.system import SystemSpec, check_system, check_teacher_sensors
from edgekd.contracts.tensors import Classes, ImageInput, LogitsOutput
from edgekd.contracts.windows import Blend
from edgekd.errors import InputError, RecipeError

#: ``kind`` of the recipes of :mod:`edgekd.contracts.place_recipe`
PLACES = "places"


class StudentSpec(Document):
    """Which network; what is absent is the student's own choice, and what was built is recorded.

    Attributes:
        name: a file in ``edgekd/train/students``, see ``edgekd ls students``.
        variant: which size, of students that come in sizes: ``nano``, ``small``.
        attention: of a ViT: ``global``, or ``windowed`` in all blocks but each third.
        head: the decoder, a file in ``edgekd/train/heads``.
        pretrained: start from the weights that the student's package carries.
        drop_path: part of the crops, 0-1, that go without a student's optional path while it is
            trained (stochastic depth, Huang et al. 2016); of students that have one. Large where
            labels are few, 0 where they are many.
    """

    name: str
    variant: str | None = None
    attention: Literal["global", "windowed"] | None = None
    head: str | None = None
    pretrained: bool | None = None
    drop_path: Annotated[float, pydantic.Field(ge=0, lt=1)] | None = None

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_entry(value, "edgekd.train.students", "student")

    @pydantic.field_validator("head")
    @classmethod
    def _known_head(cls, value: str | None) -> str | None:
        return None if value is None else check_entry(value, "edgekd.train.heads", "head")


def check_entry(value: str, package: str, kind: str) -> str:
    """Raise ValueError, for pydantic, unless a package has a file of this name; the name."""
    valid = registry.module_names(package)
    if valid and value not in valid:
        raise ValueError(
            f"{kind} '{value}' does not exist{registry.nearest(value, valid)} "
            f"(valid: {', '.join(valid)})"
        )
    return value


def check_targets(value: list[str]) -> list[str]:
    """Raise ValueError, for pydantic, unless all are classes of devices that are there."""
    valid = registry.yaml_names(registry.engines_root() / "targets")
    wrong = [
        f"target '{name}' does not exist{registry.nearest(name, valid)}"
        for name in value
        if name not in valid
    ]
    if wrong:
        raise ValueError(f"{'; '.join(wrong)} (valid: {', '.join(valid)})")
    return value


class SplitRule(Document):
    """Which samples belong to which split, by a group that the file name holds.

    Attributes:
        pattern: regular expression; its one group is the sample's group, e.g. ``tile(\\d+)_``.
        train, val, test: the groups of each split; no group may stand in two of them.
    """

    pattern: str
    train: list[str | int]
    val: list[str | int]
    test: list[str | int]

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SplitRule:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as err:
            raise ValueError(f"pattern {self.pattern!r} is no regular expression: {err}") from err
        if groups != 1:
            raise ValueError(f"pattern {self.pattern!r} must hold exactly one group (...)")
        names = [str(name) for name in (*self.train, *self.val, *self.test)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"group {', '.join(twice)} stands in two splits")
        return self

    def split_of(self, sample: str) -> str | None:
        """``train``, ``val`` or ``test`` for a sample's file stem; None when no group matches."""
        match = re.search(self.pattern, sample)
        if match is None:
            return None
        for split in ("train", "val", "test"):
            if match[1] in [str(name) for name in getattr(self, split)]:
                return split
        return None


class DataSpec(Document):
    """The labelled set: a folder, a YAML that describes one, or a sensor set, and how it is split.

    Attributes:
        root: relative to the recipe; ``${NAME}`` and ``${NAME:-default}`` from the environment.
        blocks: spatial blocks within every scene of a sensor set, in place of ``split``.
        labels_per_class: so many labelled training pixels of each class are kept, over all
            training scenes of a sensor set; the rest train without a label. Absent, all are kept.
        label_seed: of that draw; a draw of 5 is part of the draw of 20.
    """

    root: str
    split: SplitRule | None = None
    blocks: BlockSpec | None = None
    labels_per_class: int | None = pydantic.Field(default=None, ge=1)
    label_seed: int = pydantic.Field(default=0, ge=0)

    @pydantic.model_validator(mode="after")
    def _one_split(self) -> DataSpec:
        if self.blocks is not None and self.split is not None:
            raise ValueError("split puts whole scenes, blocks parts of them; give one of the two")
        return self


class AugmentSpec(JitterSpec):
    """Random changes of a training crop, drawn anew for every crop.

    Attributes:
        tint: at most this part of 255, added to each channel on its own.
    """

    tint: Fraction = 0.0


class FinetuneSpec(Document):
    """Supervised tuning on labelled crops.

    Attributes:
        scope: ``network`` tunes everything, ``decoder`` leaves the encoder as it is.
        crop_px: side of the random training crop, px; a multiple of the student's side multiple.
        batch: crops per step.
        steps: optimiser steps at most.
        lr, encoder_lr_factor: peak learning rate, and the encoder's share of it.
        weight_decay: of AdamW, on weights of more than one dimension.
        warmup_fraction: part of the steps in which the rate rises linearly; a cosine follows.
        grad_clip: largest norm of the gradient.
        ce_weight, dice_weight: weights of cross-entropy and of soft Dice (mean over classes).
        class_weights: of the cross-entropy: ``none``, ``balanced`` by inverse square root of
            pixel frequency, or one number per class.
        freeze_bn: keep batch statistics of the encoder as they came.
        freeze: module paths, e.g. ``encoder.stem``, whose weights stay as they came.
        rare_crops: part of the crops that are drawn again (20 times at most) until another class
            than the most frequent covers 5 % of them.
        ema: decay of the averaged weights that are evaluated and saved; 0 is off.
        precision: ``32``, ``bf16`` or ``fp16``; refused where the device does not have it.
        val_every_steps, patience: evaluations on the validation split, and how many without a
            better mIoU end the run (0: never early).
        seed: of weights, crops and augmentation.
        workers: processes that prepare crops.
        log_every_steps: of the CSV and TensorBoard logs.
    """

    scope: Literal["network", "decoder"] = "network"
    crop_px: int = pydantic.Field(ge=32)
    batch: int = pydantic.Field(ge=1)
    steps: int = pydantic.Field(ge=1)
    lr: Positive = 1e-3
    encoder_lr_factor: Fraction = 1.0
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    warmup_fraction: Fraction = 0.1
    grad_clip: Positive = 1.0
    ce_weight: float = pydantic.Field(default=1.0, ge=0)
    dice_weight: float = pydantic.Field(default=0.0, ge=0, validate_default=True)
    class_weights: Literal["none", "balanced"] | list[Positive] = "none"
    freeze_bn: bool = False
    freeze: list[str] = []
    rare_crops: Fraction = 0.0
    ema: float = pydantic.Field(default=0.0, ge=0, lt=1)
    augment: AugmentSpec = AugmentSpec()
    precision: Literal["32", "bf16", "fp16"] = "32"
    val_every_steps: int = pydantic.Field(default=100, ge=1)
    patience: int = pydantic.Field(default=0, ge=0)
    seed: int = pydantic.Field(default=0, ge=0)
    workers: int = pydantic.Field(default=0, ge=0)
    log_every_steps: int = pydantic.Field(default=10, ge=1)

    @pydantic.field_validator("precision", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @pydantic.field_validator("dice_weight")
    @classmethod
    def _loss(cls, value: float, info: pydantic.ValidationInfo) -> float:
        if value == 0 and info.data.get("ce_weight") == 0:
            raise ValueError("ce_weight and dice_weight are both 0: there is no loss")
        return value


class IoSpec(Document):
    """What goes in and comes out of the engine, and what the classes are."""

    inputs: list[ImageInput] = pydantic.Field(min_length=1, max_length=1)
    outputs: list[LogitsOutput] = pydantic.Field(
        default=[LogitsOutput()], min_length=1, max_length=1
    )
    classes: Classes


class TilingSpec(Document):
    """How scenes are cut; the window is the engine's tile.

    Attributes:
        overlap_px: pixels that neighbouring windows share at least.
        blend: how probabilities of overlapping windows are weighted.
    """

    overlap_px: int = pydantic.Field(ge=0)
    blend: Blend = "cosine"


class ParityGate(Document):
    """Largest absolute difference allowed between two forms of a model, in logits.

    Attributes:
        atol: the bound; write the reason beside it.
    """

    atol: Positive


class GateSpec(Document):
    """Bounds that a build must keep; each has its reason beside it in the recipe.

    Attributes:
        onnx_vs_torch: bound of the exported graph.
        golden: bound of a bundle's stored outputs on the device; ten times that of the export
            where absent, and derived from the precision where that is lower.
        miou_drop_max: mIoU that a lower precision may lose on validation tiles, percentage points.
        agreement_min: part of the cells in which it must give FP32's class, 0-1.
    """

    onnx_vs_torch: ParityGate
    golden: ParityGate | None = None
    miou_drop_max: float = pydantic.Field(default=0.5, ge=0)
    agreement_min: Fraction = 0.98


class PrecisionSpec(Document):
    """Precisions that a build may choose from, and how INT8 is made.

    Attributes:
        allowed: the target's own list bounds it further (ONNX Runtime targets have no fp16); the
            lowest that keeps the gates is taken, or where a board can time them the fastest.
        keep_high: layers that are never lowered, as patterns: ``encoder.blocks.11.*``.
        int8_layers: kinds of layers in INT8: ``linear`` (matrix products over tokens), ``patch``
            (the patch projection), ``conv`` (any other convolution).
        range: how the range of an activation is chosen from what calibration saw.
        percentile: of ``range: percentile``, part of the values that are not clipped, %.
        smooth: strength of SmoothQuant's rescaling, 0 (off) to 1.
    """

    allowed: list[Literal["fp32", "fp16", "int8"]] = pydantic.Field(
        default=["fp32", "fp16"], min_length=1
    )
    keep_high: list[str] = []
    int8_layers: list[Literal["linear", "patch", "conv"]] = pydantic.Field(
        default=["linear", "patch"], min_length=1
    )
    range: Literal["minmax", "percentile", "entropy"] = "percentile"
    percentile: float = pydantic.Field(default=99.99, gt=50, le=100)
    smooth: Fraction = 0.0

    @pydantic.field_validator("allowed", "int8_layers")
    @classmethod
    def _once(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError(f"something stands twice in {', '.join(value)}")
        return value


class CalibrationSpec(Document):
    """Images from which INT8 learns the ranges of activations.

    Attributes:
        set: labelled or described set, relative to the recipe; the recipe's own data where absent.
        split: of the set; ``val`` only of another set, for the recipe's own judges the result.
        tiles: number of tiles of the model's input, spread evenly over the images.
    """

    set: str | None = None
    split: Literal["train", "val"] = "train"
    tiles: int = pydantic.Field(default=16, ge=2)

    @pydantic.field_validator("split")
    @classmethod
    def _apart(cls, value: str, info: pydantic.ValidationInfo) -> str:
        if value == "val" and info.data.get("set") is None:
            raise ValueError(
                "the recipe's own validation split judges INT8; calibrate on train, or name "
                "another set"
            )
        return value


class Recipe(Document):
    """One product; see the files in ``engines/`` for commented examples.

    Attributes:
        schema: of the recipe: 1.
        preset: name of one of ``presets``.
        name: of the product; runs and bundles are called by it.
        title: one line for a person.
        sensors: name -> what it measures, where ``data.root`` is a sensor set
            (:mod:`edgekd.contracts.sensor_set`); the camera that the student sees is ``visual``.
        teachers, distill: how the encoder learns before it is tuned; absent where it does not.
        system: what computes the first teacher, and how fast the ground is surveyed; reports put
            sensors and computing of teacher and student side by side.
        targets: classes of devices that the product is for, see ``edgekd ls targets``.
        search: which values of ``distill`` ``edgekd search`` may change, and how far.
        presets: name -> values that replace the recipe's where ``preset`` names it; they are
            merged before validation (:func:`load_recipe`) and not kept.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    preset: str | None = None
    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = ""
    student: StudentSpec
    sensors: Annotated[Sensors, pydantic.AfterValidator(check_sensors)] = {}
    teachers: list[TeacherSpec] = []
    system: SystemSpec | None = None
    distill: DistillSpec | None = None
    data: DataSpec
    finetune: FinetuneSpec
    io: IoSpec
    tiling: TilingSpec
    precision: PrecisionSpec = PrecisionSpec()
    calibration: CalibrationSpec | None = pydantic.Field(default=None, validate_default=True)
    gates: GateSpec
    targets: list[str] = pydantic.Field(min_length=1)
    search: SearchSpec | None = None  # the last, for it is held against all others

    @pydantic.field_validator("data")
    @classmethod
    def _of_sensors(cls, value: DataSpec, info: pydantic.ValidationInfo) -> DataSpec:
        asked = [
            name for name in ("blocks", "labels_per_class") if getattr(value, name) is not None
        ]
        if asked and info.data.get("sensors") == {}:
            raise ValueError(
                f"{' and '.join(asked)} apply to sensor sets; name the sensors of the recipe under "
                "sensors, or split by name with split"
            )
        return value

    @pydantic.field_validator("teachers")
    @classmethod
    def _known_teachers(
        cls, value: list[TeacherSpec], info: pydantic.ValidationInfo
    ) -> list[TeacherSpec]:
        for spec in value:
            check_entry(spec.name, "edgekd.train.teachers", "teacher")
        return check_teacher_sensors(value, info.data.get("sensors"))

    @pydantic.field_validator("system")
    @classmethod
    def _system_of(
        cls, value: SystemSpec | None, info: pydantic.ValidationInfo
    ) -> SystemSpec | None:
        return value and check_system(value, info.data.get("sensors"), info.data.get("teachers"))

    @pydantic.field_validator("distill")
    @classmethod
    def _teachers_fit(
        cls, value: DistillSpec | None, info: pydantic.ValidationInfo
    ) -> DistillSpec | None:
        if value is None or "teachers" not in info.data:
            return value
        count = len(info.data["teachers"])
        if value.method == "cross_modal":
            check_chain(value, info.data["teachers"], info.data.get("sensors"))
            return value
        if asked := [item for item in info.data["teachers"] if item.weights == "train"]:
            raise ValueError(
                f"teacher {asked[0].name} has weights: train, which is of method cross_modal; "
                f"{value.method} takes a file, package or random"
            )
        if value.method == "mae" and count:
            raise ValueError("method mae learns without a teacher; leave teachers out")
        if value.method == "mask_cdkd" and any(
            item.norm == "standardize" for item in info.data["teachers"]
        ):
            raise ValueError(
                "teachers[].norm standardize remembers all features seen, and with mask_cdkd the "
                "teacher changes; take layer or none"
            )
        if value.method != "mae" and not count:
            raise ValueError(f"method {value.method} needs a teacher; name one under teachers")
        return value

    @pydantic.field_validator("calibration")
    @classmethod
    def _no_int8_without(
        cls, value: CalibrationSpec | None, info: pydantic.ValidationInfo
    ) -> CalibrationSpec | None:
        precision = info.data.get("precision")
        if value is None and precision is not None and "int8" in precision.allowed:
            raise ValueError(
                "precision.allowed holds int8, which needs calibration; write calibration: "
                "{tiles: 16}"
            )
        return value

    @pydantic.field_validator("targets")
    @classmethod
    def _targets(cls, value: list[str]) -> list[str]:
        return check_targets(value)

    @pydantic.field_validator("io")
    @classmethod
    def _weights(cls, value: IoSpec, info: pydantic.ValidationInfo) -> IoSpec:
        finetune = info.data.get("finetune")  # absent when it has faults of its own
        weights = finetune.class_weights if finetune is not None else "none"
        if isinstance(weights, list) and len(weights) != len(value.classes):
            raise ValueError(
                f"there are {len(value.classes)} classes and finetune.class_weights has "
                f"{len(weights)} numbers"
            )
        return value

    @pydantic.field_validator("tiling")
    @classmethod
    def _overlap(cls, value: TilingSpec, info: pydantic.ValidationInfo) -> TilingSpec:
        io = info.data.get("io")  # absent when it has faults of its own
        if io is not None and value.overlap_px >= io.inputs[0].tile_px:
            raise ValueError(
                f"overlap_px must be smaller than the tile of {io.inputs[0].tile_px} px; "
                f"received {value.overlap_px}"
            )
        return value

    @pydantic.field_validator("search")
    @classmethod
    def _search_of(
        cls, value: SearchSpec | None, info: pydantic.ValidationInfo
    ) -> SearchSpec | None:
        whole = set(cls.model_fields) - {"search"} <= set(info.data)  # not with faults of its own
        if value is not None and whole:
            plain = pydantic_core.to_jsonable_python(info.data, by_alias=True)
            plain["schema"] = plain.pop("schema_version")
            check_search(value, plain, cls.model_validate)
        return value

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON-ready values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: the YAML file.
        overrides: ``dotted.key=value`` texts, the value in YAML, applied before validation and
            after the preset that the recipe or ``preset=NAME`` asks for.

    Raises:
        InputError: the file cannot be read, an override is not ``key=value``, or no such preset.
        RecipeError: lists every fault with its line.
    """
    value, lines = overridden(path, overrides or [])
    if value.get("kind") == PLACES:
        raise InputError(
            f"{path} is a recipe of places (kind: {PLACES}); what is asked for here is one of maps"
        )
    return parse_document(Recipe, value, lines, str(path))


def preset_names(path: Path) -> list[str]:
    """Presets that a recipe offers, in its order.

    Raises:
        InputError, RecipeError: the file cannot be read.
    """
    presets = read_yaml(path)[0].get("presets")
    return list(presets) if isinstance(presets, dict) else []


def parse_recipe(value: dict[str, Any], source: str) -> Recipe:
    """Validate a recipe that travelled inside a checkpoint or bundle."""
    return parse_document(Recipe, value, {}, source)


def unlabeled_roots(recipe: Recipe, recipe_path: Path) -> list[Path]:
    """The images that ``distill.data.roots`` names, as absolute paths; none without distill."""
    base = recipe_path.resolve().parent
    return [
        resolve_path(text, base)
        for text in (recipe.distill.data.roots if recipe.distill and recipe.distill.data else [])
    ]


def data_root(recipe: Recipe, recipe_path: Path) -> Path:
    """The labelled set that a recipe names, as an absolute path."""
    return resolve_path(recipe.data.root, recipe_path.resolve().parent)


__all__ = [
    "AugmentSpec",
    "DataSpec",
    "DistillSpec",
    "FinetuneSpec",
    "GateSpec",
    "IoSpec",
    "Recipe",
    "RecipeError",
    "SplitRule",
    "StudentSpec",
    "TeacherSpec",
    "TilingSpec",
    "data_root",
    "load_recipe",
    "parse_recipe",
    "preset_names",
    "unlabeled_roots",
]
