"""A recipe of a product that answers for places: pictures, sensor series and texts into classes.

Where :class:`edgekd.contracts.recipe.Recipe` makes maps, this makes one answer for each place. The
file says ``kind: places``; what both have in common (precision, gates, targets, student) is the
same, and so are ``${NAME:-default}``, presets and ``--set``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.distill import DistillSpec, Fraction, Positive
from edgekd.contracts.evidence import KINDS, PRESENT, PROBABILITIES, SCORES
from edgekd.contracts.overrides import overridden
from edgekd.contracts.projection import Limits
from edgekd.contracts.recipe import (
    PLACES,
    CalibrationSpec,
    GateSpec,
    PrecisionSpec,
    Recipe,
    check_entry,
    check_targets,
)
from edgekd.contracts.schema import Document, parse_document, resolve_path
from edgekd.contracts.tensors import Classes, ImageInput, RulesInput, SeriesInput, TextInput

Kind = Literal["image", "series", "text"]
#: where teachers of pictures, which maps have too, and those of series and texts are
TEACHERS, PLACE_TEACHERS = "edgekd.train.teachers", "edgekd.train.places.teachers"

#: of ``distill.balance_decay``; runs from before it was a key had this
BALANCE_DECAY = 0.98


class PlaceText(TextInput):
    """The embedding of a text, and what makes it.

    Attributes:
        encoder: a file in ``edgekd/train/places/teachers`` that sees texts: ``minilm``,
            ``hf_text``.
        variant: of the encoder, where it has any.
        weights: a folder (relative to the recipe), or ``package``.
    """

    encoder: str = "minilm"
    variant: str | None = None
    weights: str = "package"

    @pydantic.field_validator("encoder")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_entry(value, PLACE_TEACHERS, "encoder of texts")


class PlaceIo(Document):
    """What goes into the engine and what its answers are.

    Attributes:
        image, series, text: the three kinds of evidence.
        rules: room for rules.
        classes: in the order of the answers; names as in the set.
    """

    image: ImageInput
    series: SeriesInput
    text: PlaceText = pydantic.Field(default=PlaceText(), validate_default=True)
    rules: RulesInput = RulesInput()
    classes: Classes

    @pydantic.model_validator(mode="after")
    def _names(self) -> PlaceIo:
        taken = [PRESENT, *Limits._fields, SCORES, PROBABILITIES]
        names = [self.image.name, self.series.name, self.text.name, *taken]
        if len(set(names)) < len(names):
            raise ValueError(
                f"two tensors have one name; image, series and text may not be called "
                f"{', '.join(taken)} nor alike"
            )
        if [item.index for item in self.classes] != list(range(len(self.classes))):
            raise ValueError("classes must be numbered 0, 1, 2, ... in their order")
        return self


class PlaceStudent(Document):
    """Which network; a file in ``edgekd/train/places/students``.

    Attributes:
        name: the file's name.
        pretrained: begin with the weights that the student's package carries (absent: yes).
    """

    name: str
    pretrained: bool | None = None

    @pydantic.field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        return check_entry(value, "edgekd.train.places.students", "student of places")


class PlaceStage(Document):
    """How a teacher of one kind of evidence is trained from labels.

    Attributes:
        steps, batch, lr, weight_decay: of AdamW, with a cosine after a tenth of the steps.
        val_every_steps: validations; the weights with the best likelihood of the validation
            places' labels are kept.
        tune: whether the whole network learns or only what stands behind a frozen encoder.
    """

    steps: int = pydantic.Field(default=200, ge=1)
    batch: int = pydantic.Field(default=64, ge=1)
    lr: Positive = 1e-3
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    val_every_steps: int = pydantic.Field(default=25, ge=1)
    tune: Literal["network", "head"] = "head"


class PlaceTeacher(Document):
    """A network that sees one kind of evidence and answers from it.

    Attributes:
        name: a file in ``edgekd/train/teachers``: ``efficientnet_lite`` or ``hf_vision`` of
            pictures, ``temporal_conv`` of series, ``minilm`` or ``hf_text`` of texts.
        id: what the run's folders call it; the name where absent.
        sees: the kind.
        variant: which size, or another choice of the teacher's own.
        weights: of its encoder: a file or folder (relative to the recipe), ``package``, or
            ``random``, which is what a teacher without an encoder of its own has.
        sha256: of the weights' file; another one is refused.
        image_px: side to which a teacher of pictures brings them; the student's where absent.
        causal: a teacher of series looks back only, so that it can run as days come in.
        temperature: of its softened answers.
        weight: its share of what is learned from teachers.
        stage: how it is trained.
    """

    name: str
    id: Annotated[str, pydantic.Field(pattern=r"^[a-z][a-z0-9_]*$")] | None = None
    sees: Kind
    variant: str | None = None
    weights: str = "package"
    sha256: Sha256 | None = None
    image_px: int | None = pydantic.Field(default=None, ge=32, le=1024)
    causal: bool = False
    temperature: Positive = 3.0
    weight: Positive = 1.0
    stage: PlaceStage = PlaceStage()

    @property
    def called(self) -> str:
        """Name in folders and tables."""
        return self.id or self.name


class ContrastSpec(Document):
    """InfoNCE between kinds of evidence of the same place.

    Attributes:
        weight: of the loss; 0 is off.
        temperature: of its cosines.
    """

    weight: float = pydantic.Field(default=0.3, ge=0)
    temperature: Positive = 0.07


class MissingSpec(Document):
    """Parts of the places that lose a kind of evidence while the student is trained.

    Attributes:
        image, series, text: part that loses it, 0 to below 1; a place never loses all.
    """

    image: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    series: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    text: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1

    def shares(self) -> dict[str, float]:
        """Kind -> part."""
        return {kind: float(getattr(self, kind)) for kind in KINDS}


class PlaceJitter(Document):
    """Random changes of evidence while something is trained.

    Attributes:
        flip, quarter_turn: of pictures: mirror with probability 0.5, turns by 90 degrees.
        brightness, contrast: of pictures: 1 +- at most this, as a factor.
        shift_days: a series is moved by 0 to so many days towards its newest end: the newest days
            fall off, older ones stand in the newest rows, and the oldest rows have no day. As if a
            place were asked so many days later and nothing had come in since; days of the year, and
            so seasons and storms, lie elsewhere than they were.
        noise: of series: standard deviation added, as a part of the feature's own.
        gaps: of series: part of the days that are lost, in one run.
        text_noise: of embeddings: length of a random step, as a part of the embedding's.
    """

    flip: bool = True
    quarter_turn: bool = True
    brightness: Fraction = 0.1
    contrast: Fraction = 0.1
    shift_days: int = pydantic.Field(default=0, ge=0, le=60)
    noise: Fraction = 0.05
    gaps: Fraction = 0.1
    text_noise: Fraction = 0.0


class PlaceDistillSpec(Document):
    """How the student learns: from each teacher by its kind of evidence, and from labels.

    The loss is ``kd_weight * sum over kinds of s_k T_k^2 KL(teacher_k / T_k, student_k / T_k) +
    contrast.weight * InfoNCE + label_weight * cross-entropy``, with ``s_k = weight_k / mean_k``,
    times the mean of all, where ``mean_k`` is a running mean of the teacher's loss: each teacher's
    share is its weight where losses are what their means are. See ``balance_decay``.

    Attributes:
        method: ``cross_modal``.
        kd_weight, label_weight: of the parts; without teachers labels are all there is.
        taught: ``alone`` holds each teacher against what the student answers from that kind
            alone, which is what the teacher knows; ``all`` against its answer from everything.
        contrast: of InfoNCE.
        missing: kinds that are left out.
        sampling: ``kinds`` draws places that have a rare kind of evidence more often, where places
            lack kinds, so that each kind is seen as equally often as the set allows: a place counts
            1 / the part of the training places that have its rarest kind, at most 10, of the kinds
            that have a teacher (of all kinds without teachers). An epoch is as long as the set.
            With pictures and texts everywhere and series at 12 % of the places 53 % of what is seen
            has a series. Where every place has every kind it is ``plain``: each place once in an
            epoch. Teachers see the places of their kind, each once. The log tells how often each
            kind was seen.
        balance: ``shares`` weighs the teachers' losses by their running mean, so that none drowns
            the others; ``none`` takes them as they are.
        balance_decay: of those running means, of a step. While losses fall they lag behind, the
            more the nearer to 1, and a teacher whose loss falls slower than the others' is heard
            more than its weight says: with 0.98, weights 1 : 1 : 1 and 300 steps the teachers of
            picture, series and text of ``engines/coastal.yaml`` had 0.40, 0.28 and 0.32 (the same
            losses, as they were logged, give 0.34, 0.33 and 0.33 with 0.95). With 0 the mean is the
            loss of the step itself, and shares are the weights; the log tells them.
        ema: decay of the averaged weights that are kept; 0 is off.
        batch, steps, lr, weight_decay, warmup_fraction, decay, grad_clip: of AdamW.
        encoder_lr_factor: of the student's picture branch, whose weights are not new.
        freeze: module paths, e.g. ``encoder.stem``, whose weights stay as they came.
        freeze_bn: keep batch statistics of the picture branch as they came.
        augment: random changes.
        val_every_steps, keep: as in ``cross_modal`` of maps, by accuracy.
        precision, log_every_steps, save_every_steps, seed, workers: as in ``distill`` of maps.
    """

    method: Literal["cross_modal"] = "cross_modal"
    kd_weight: float = pydantic.Field(default=1.0, ge=0)
    label_weight: float = pydantic.Field(default=0.7, ge=0)
    taught: Literal["alone", "all"] = "alone"
    contrast: ContrastSpec = ContrastSpec()
    missing: MissingSpec = MissingSpec()
    sampling: Literal["kinds", "plain"] = "kinds"
    balance: Literal["shares", "none"] = "shares"
    balance_decay: float = pydantic.Field(default=BALANCE_DECAY, ge=0, lt=1)
    ema: float = pydantic.Field(default=0.99, ge=0, lt=1)
    batch: int = pydantic.Field(ge=2)
    steps: int = pydantic.Field(ge=1)
    lr: Positive = 1e-3
    encoder_lr_factor: Fraction = 1.0
    freeze: list[str] = []
    freeze_bn: bool = False
    weight_decay: float = pydantic.Field(default=0.05, ge=0)
    warmup_fraction: Fraction = 0.1
    decay: Literal["none", "cosine"] = "cosine"
    grad_clip: Positive = 1.0
    augment: PlaceJitter = PlaceJitter()
    val_every_steps: int = pydantic.Field(default=200, ge=1)
    keep: Literal["last", "best"] = "last"
    precision: Literal["32", "bf16", "fp16"] = "32"
    log_every_steps: int = pydantic.Field(default=10, ge=1)
    save_every_steps: int = pydantic.Field(default=200, ge=1)
    seed: int = pydantic.Field(default=0, ge=0)
    workers: int = pydantic.Field(default=0, ge=0)

    @pydantic.field_validator("precision", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    def that_matter(self) -> dict[str, Any]:
        """Plain values of what a student's weights depend on: all but logging, saving, workers.

        ``balance_decay`` is left out where it is what runs had before it was a key, so that they
        are still known. ``sampling`` is left out always: what it does depends on the set, so that
        whoever has that says it (:func:`edgekd.train.places.data.sampled_kinds`).
        """
        values = self.model_dump(
            mode="json", exclude={"sampling", "workers", "log_every_steps", "save_every_steps"}
        )
        if values["balance_decay"] == BALANCE_DECAY:
            del values["balance_decay"]
        return values

    def loop(self, image_px: int, **changes: Any) -> DistillSpec:
        """What the loop of all methods takes from this: lengths, rates, seed, checkpoints."""
        values = self.model_dump(
            include={
                "method", "batch", "steps", "lr", "weight_decay", "warmup_fraction", "decay",
                "grad_clip", "precision", "log_every_steps", "save_every_steps", "seed", "workers",
            }
        )  # fmt: skip
        return DistillSpec(**(values | {"crop_px": image_px, "picture_every_steps": 0} | changes))


class PlaceData(Document):
    """The set of places (:mod:`edgekd.contracts.place_set`).

    Attributes:
        root: relative to the recipe; ``${NAME:-default}`` from the environment.
    """

    root: str


class PlaceRecipe(Document):
    """One product that answers for places; see ``engines/coastal.yaml``.

    Attributes:
        schema: of the recipe: 1.
        kind: ``places``.
        preset, presets: as in recipes of maps.
        name, title: of the product.
        student: which network.
        teachers: one for each kind of evidence at most.
        distill: how the student learns.
        data: the set.
        io: the engine's inputs and classes.
        precision, calibration, gates: as in recipes of maps; ``miou_drop_max`` bounds the drop of
            accuracy here, in percentage points.
        targets: classes of devices that the product is for.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    kind: Literal["places"]
    preset: str | None = None
    name: str = pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    title: str = ""
    student: PlaceStudent
    teachers: list[PlaceTeacher] = pydantic.Field(default=[], max_length=len(KINDS))
    distill: PlaceDistillSpec
    data: PlaceData
    io: PlaceIo
    precision: PrecisionSpec = PrecisionSpec()
    calibration: CalibrationSpec | None = None
    gates: GateSpec
    targets: list[str] = pydantic.Field(min_length=1)

    @pydantic.field_validator("teachers")
    @classmethod
    def _one_each(cls, value: list[PlaceTeacher]) -> list[PlaceTeacher]:
        for item in value:
            package = TEACHERS if item.sees == "image" else PLACE_TEACHERS
            check_entry(item.name, package, f"teacher of {item.sees}")
        for what, names in (
            ("see", [item.sees for item in value]), ("are called", [i.called for i in value]),
        ):  # fmt: skip
            if twice := [name for name in names if list(names).count(name) > 1]:
                raise ValueError(f"two teachers {what} {twice[0]}; one is enough")
        return value

    @pydantic.field_validator("calibration")
    @classmethod
    def _calibrated(
        cls, value: CalibrationSpec | None, info: pydantic.ValidationInfo
    ) -> CalibrationSpec | None:
        if value is not None and (value.set is not None or value.split == "val"):
            raise ValueError(
                "places calibrate on the training split of their own set; leave set and split out"
            )
        return value

    @pydantic.field_validator("targets")
    @classmethod
    def _targets(cls, value: list[str]) -> list[str]:
        return check_targets(value)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> PlaceRecipe:
        if "int8" in self.precision.allowed and self.calibration is None:
            raise ValueError(
                "precision.allowed holds int8, which needs calibration; write calibration: "
                "{tiles: 64}"
            )
        for item in self.teachers:
            if item.sees == "text" and item.name != self.io.text.encoder:
                raise ValueError(
                    f"teacher {item.called} of texts is {item.name}, and io.text.encoder is "
                    f"{self.io.text.encoder}; the embeddings are made by one of them"
                )
        if not self.teachers and self.distill.label_weight == 0:
            raise ValueError("there are no teachers and distill.label_weight is 0: nothing teaches")
        return self

    def plain(self) -> dict[str, Any]:
        """The recipe as JSON-ready values, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True)


AnyRecipe = Recipe | PlaceRecipe


def load_any_recipe(path: Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Read and validate a recipe of maps or of places, by its ``kind``.

    Args, Raises: as :func:`edgekd.contracts.recipe.load_recipe`.
    """
    value, lines = overridden(path, overrides or [])
    if value.get("kind") == PLACES:
        return parse_document(PlaceRecipe, value, lines, str(path))
    return parse_document(Recipe, value, lines, str(path))


def parse_place_recipe(value: Mapping[str, Any], source: str) -> PlaceRecipe:
    """Validate a recipe that travelled inside a checkpoint or bundle.

    Raises:
        RecipeError: it is another kind's, or does not fit.
    """
    return parse_document(PlaceRecipe, dict(value), {}, source)


def place_root(recipe: PlaceRecipe, recipe_path: Path) -> Path:
    """The set that a recipe names, as an absolute path."""
    return resolve_path(recipe.data.root, recipe_path.resolve().parent)
