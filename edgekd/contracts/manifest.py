"""The manifest: what a bundle holds, what it was made from, and what was promised and done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.schema import Document
from edgekd.contracts.target import VersionText
from edgekd.contracts.tensors import (
    Classes,
    ImageInput,
    LogitsOutput,
    RulesInput,
    SeriesInput,
    TextInput,
)
from edgekd.contracts.windows import Blend
from edgekd.errors import InputError

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
MANIFEST_SCHEMA = 4
CALIBRATION_NAME = "calibration.json"


#: a file directly in the bundle: no folders, no way out of it.
FileName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class TilingDone(Document):
    """How the runtime tiles by default; the window is the engine's tile side."""

    window_px: int = pydantic.Field(ge=1)
    overlap_px: int = pydantic.Field(ge=0)
    blend: Blend


class CalibrationDone(Document):
    """What INT8 learned its ranges from; the ranges are in the bundle's ``calibration.json``.

    Attributes:
        tiles, sha256: number of tiles (or places), and hash over their bytes in order.
        source: where they come from, in words.
        file: the calibration file in the bundle.
    """

    tiles: int
    sha256: Sha256
    source: str
    range: str
    percentile: float | None
    smooth: float
    file: FileName = CALIBRATION_NAME


class CandidateDone(Document):
    """A precision that was tried, with what it costs beside FP32 on the same validation tiles.

    Attributes:
        miou: 0-1; None where there are no labels, and of places.
        accuracy: of places, 0-1; None of maps.
        agreement: part of the cells, or of the places, with FP32's class, 0-1.
        noise: root mean square of the logits' difference over their deviation.
        tiles: that it was measured on; of places their number.
        golden_agreement, golden_max_abs: on the golden tiles alone (of places: on the first and the
            last): part of the cells with FP32's class, and the largest difference of a logit.
        size_bytes: of the model file.
        tile_s: median time of one core for a tile, or a place, on the build host, s; None where it
            says nothing about the target.
        kept_high: layers that had to stay in high precision, the worst first.
        chosen, why: whether it was taken, and the reason in words.
    """

    precision: str
    miou: float | None
    accuracy: float | None = None
    agreement: float
    noise: float
    tiles: int
    golden_agreement: float
    golden_max_abs: float
    size_bytes: int
    tile_s: float | None = None
    kept_high: list[str] = []
    chosen: bool
    why: str


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def row(item: CandidateDone) -> str:
    """A candidate as a line for a person."""
    miou = "no labels" if item.miou is None else f"mIoU {100 * item.miou:.2f} %"
    of = "tiles"
    if item.accuracy is not None:
        miou, of = f"accuracy {100 * item.accuracy:.2f} %", "places"
    seconds = "" if item.tile_s is None else f", {1 / item.tile_s:.2f} {of}/s a core"
    mark = "*" if item.chosen else " "
    return (
        f"{mark} {item.precision}: {miou}, agreement {100 * item.agreement:.2f} %, golden {of} "
        f"{100 * item.golden_agreement:.2f} %, {item.size_bytes / 1e6:.1f} MB{seconds} ({item.why})"
    )


class PrecisionDone(Document):
    """Precision that the recipe allowed and that the build delivered.

    Attributes:
        asked: what the recipe allowed and the target can hold.
        done: what the model in the bundle is; None while that is left to the board, which times
            what :attr:`Manifest.portable` holds.
        kept_high: its layers that stayed in high precision although they may be lowered.
        calibration: absent where nothing was calibrated.
        candidates: everything that was tried.
        sensitivity: layer -> noise at the output when it alone is lowered; empty where the gates
            held with all of them.
    """

    asked: list[str]
    done: str | None
    kept_high: list[str] = []
    calibration: CalibrationDone | None = None
    candidates: list[CandidateDone] = []
    sensitivity: dict[str, float] = {}


class TargetDone(Document):
    """Where the bundle is to run, and what it was built with."""

    name: str
    arch: str
    backend: Literal["onnxrt", "trt"]
    threads: int
    versions: dict[str, str]


class Provenance(Document):
    """What the bundle was made from."""

    recipe: dict[str, Any]
    recipe_sha256: Sha256
    checkpoint_sha256: Sha256
    data_name: str
    data_sha256: Sha256
    student: dict[str, Any]
    tuning: dict[str, Any]
    edgekd_version: str
    created_utc: str


class Gate(Document):
    """A check that the build made.

    Attributes:
        value, bound: in ``unit``.
        sense: the gate holds when the value is at most the bound, or at least.
    """

    name: str
    value: float
    bound: float
    unit: str
    passed: bool
    sense: Literal["at most", "at least"] = "at most"
    detail: str = ""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Gate:
        holds = self.value <= self.bound if self.sense == "at most" else self.value >= self.bound
        if self.passed != holds:
            raise ValueError(f"gate {self.name}: passed does not follow from value and bound")
        return self


class GoldenSpec(Document):
    """Stored inputs and outputs: arrays ``image_K`` (HWC uint8) and ``OUTPUT_K`` in the file.

    Of a bundle of places what :class:`edgekd.contracts.place_golden.Golden` holds.

    Attributes:
        atol: largest difference of a logit allowed on the device.
        rms_max: largest root mean square of the logits' differences allowed there, over all places
            and classes; None where ``atol`` says it all, as of bundles from before it was stored.
        agreement_min: part of the cells that must have the stored class there, 0-1; None where
            ``atol`` says it all.
    """

    file: FileName = GOLDEN_NAME
    count: int = pydantic.Field(ge=1)
    atol: float = pydantic.Field(gt=0)
    rms_max: float | None = pydantic.Field(default=None, gt=0)
    agreement_min: float | None = pydantic.Field(default=None, ge=0, le=1)
    source: str


class PortableModel(Document):
    """An ONNX file from which a board builds its engine.

    Attributes:
        precision: of the engine.
        typing: how TensorRT learns it: ``flags`` of the builder over a graph in FP32 (up to 10.11),
            or the types in the ``graph`` (strongly typed).
        tensorrt_from, tensorrt_below: versions that can build it.
        keep_fp32: nodes that a builder with flags must hold in FP32; a typed graph needs no list.
        golden_atol, golden_agreement_min: what an engine keeps to beside FP32's golden outputs.
    """

    file: FileName
    precision: Literal["fp32", "fp16", "int8"]
    typing: Literal["flags", "graph"]
    tensorrt_from: VersionText
    tensorrt_below: VersionText
    keep_fp32: list[str] = []
    golden_atol: float = pydantic.Field(gt=0)
    golden_agreement_min: float = pydantic.Field(ge=0, le=1)

    @property
    def lowered(self) -> bool:
        """The file is FP32, and flags of the builder make it something lower."""
        return self.typing == "flags" and self.precision != "fp32"

    def suits(self, version: tuple[int, ...]) -> bool:
        """Whether this TensorRT, as numbers, can build it."""
        first, end = _numbers(self.tensorrt_from), _numbers(self.tensorrt_below)
        return first <= version[: len(first)] and version[: len(end)] < end


class EngineTrial(Document):
    """An engine that was built on the board, and what it did there.

    Attributes:
        tile_s: median time of one tile, s, copies to and from the GPU included.
        agreement: part of the golden cells with FP32's class, 0-1.
        max_abs: largest difference of a golden logit to FP32; None where it was not finite.
        fused_attention: kernels whose name says fused attention; None where the engine cannot be
            inspected.
    """

    precision: str
    typing: str
    source: FileName
    plan_bytes: int
    build_s: float
    tile_s: float
    agreement: float
    max_abs: float | None
    fused_attention: int | None = None
    chosen: bool
    why: str


def trial_row(trial: EngineTrial) -> str:
    """A trial as a line for a person."""
    mark = "*" if trial.chosen else " "
    if not trial.tile_s:
        return f"{mark} {trial.precision} ({trial.typing}): {trial.why}"
    fused = "" if trial.fused_attention is None else f", fused attention {trial.fused_attention}"
    return (
        f"{mark} {trial.precision} ({trial.typing}): {1e3 * trial.tile_s:.2f} ms a tile, "
        f"{trial.plan_bytes / 1e6:.1f} MB{fused}; {trial.why}"
    )


class Machine(Document):
    """What an engine is bound to.

    Attributes:
        arch: ``platform.machine()``.
        tensorrt: as its Python module says it.
        gpu: the CUDA device's name.
        compute_capability: e.g. ``8.7``.
        multiprocessors: of the GPU; tells an Orin NX from an AGX Orin.
        board: model as the device tree or DMI says it; None where neither does.
        l4t: NVIDIA's Linux for Tegra release; None elsewhere.
    """

    arch: str
    tensorrt: str
    gpu: str
    compute_capability: str
    multiprocessors: int
    board: str | None
    l4t: str | None

    def changes(self, here: Machine) -> list[str]:
        """What differs on another machine so that a plan cannot be trusted there, in words."""
        words = {
            "arch": "architecture",
            "tensorrt": "TensorRT",
            "gpu": "GPU",
            "compute_capability": "compute capability",
            "multiprocessors": "multiprocessors",
        }
        return [
            f"{word} {getattr(self, key)} there, {getattr(here, key)} here"
            for key, word in words.items()
            if getattr(self, key) != getattr(here, key)
        ]


class EngineDone(Document):
    """The engine that ``edgekd finalize`` built on a board.

    Attributes:
        file: the plan.
        precision, typing: what it is, and how TensorRT was told.
        source: the ONNX file of the bundle that it was built from.
        layers: what TensorRT's inspector says of it; None where it says nothing.
        timing_cache: measured tactics, to build again sooner.
        machine: what the plan is bound to.
        workspace_mib: bound of the builder's scratch memory.
        dla_core: deep learning accelerator that it uses; None is the GPU alone.
        trials: everything that was built and timed.
        portable_sha256: of the manifest that was finalised, as it was before.
        portable_signer: key that had signed that manifest; None where nobody asked.
    """

    file: FileName
    precision: str
    typing: str
    source: FileName
    layers: FileName | None
    timing_cache: FileName | None
    machine: Machine
    workspace_mib: int
    dla_core: int | None
    built_utc: str
    trials: list[EngineTrial]
    portable_sha256: Sha256
    portable_signer: str | None


class CheckDone(Document):
    """What ``edgekd check`` said of a model file of the bundle.

    Attributes:
        rules: version of the library that the rules were for.
        compile: what was compiled, with what, and what stands in for what; in words.
    """

    file: FileName
    rules: str
    verdict: Literal["pass"]
    warnings: list[str]
    compile: str


class TextEncoderDone(Document):
    """What makes embeddings of texts on the device, when rules change and not for every answer.

    Attributes:
        model: ONNX file: ``input_ids`` and ``attention_mask`` ``(N, tokens)`` int64 -> ``embedding
            (N, width)``, of length 1.
        tokenizer: ``tokenizer.json`` of the ``tokenizers`` library.
        name, sha256: of the encoder that the student was trained with, and of its weights.
        width: of an embedding.
        max_tokens: that are read at once; longer texts are not cut but embedded by windows, whose
            mean is brought to length 1 (:mod:`edgekd.contracts.texts`).
        overlap_tokens: that neighbouring windows share, at least.
        precision: of the file; in ``int8`` weights are 8 bits and so are a layer's inputs, by the
            range that they have in the text at hand.
        trial_texts: that the file was compared on with the encoder in training, each by itself.
        max_abs: largest difference of a value there.
        cosine_least, cosine_mean: of an embedding to the encoder's own there.
    """

    model: FileName
    tokenizer: FileName
    name: str
    sha256: Sha256
    width: int = pydantic.Field(ge=1)
    max_tokens: int = pydantic.Field(ge=8)
    overlap_tokens: int = pydantic.Field(ge=0)
    precision: Literal["fp32", "int8"]
    trial_texts: int = pydantic.Field(ge=1)
    max_abs: float = pydantic.Field(ge=0)
    cosine_least: float
    cosine_mean: float


class EvidenceDone(Document):
    """What a bundle that answers for places takes besides pictures.

    Attributes:
        series: with the scale that training found.
        text: the embedding; ``text_encoder``: what makes it, None where nothing does.
        rules: room for rules; the graph projects its answers onto them.
        facts: class -> what rules ask of it.
        simulated: whether the student learned from a simulated set.
    """

    series: SeriesInput
    text: TextInput
    text_encoder: TextEncoderDone | None = None
    rules: RulesInput
    facts: dict[str, ClassFacts] = {}
    simulated: bool


class Manifest(Document):
    """Contents of ``manifest.json``.

    Attributes:
        model: what a session loads: an ONNX file, or the plan that a board built.
        tiling: of a bundle that makes maps; ``evidence``: of one that answers for places. A bundle
            has exactly one of them.
        portable: what a board can build from; empty where nothing has to be built.
        engine: what was built; None until then.
    """

    schema_version: int = pydantic.Field(alias="schema")
    name: str
    title: str = ""
    model: FileName
    inputs: list[ImageInput] = pydantic.Field(min_length=1)
    outputs: list[LogitsOutput] = pydantic.Field(min_length=1)
    classes: Classes
    tiling: TilingDone | None = None
    evidence: EvidenceDone | None = None
    precision: PrecisionDone
    target: TargetDone
    portable: list[PortableModel] = []
    engine: EngineDone | None = None
    checks: list[CheckDone] = []
    provenance: Provenance
    gates: list[Gate]
    golden: GoldenSpec
    files: dict[FileName, Sha256]

    @pydantic.model_validator(mode="after")
    def _one_state(self) -> Manifest:
        if (self.tiling is None) == (self.evidence is None):
            raise ValueError("a bundle has tiling (maps) or evidence (places), one of them")
        if bool(self.portable) != (self.target.backend == "trt"):
            raise ValueError("portable models belong to the backend trt, and it to them")
        if self.engine is None and not self.model.endswith(".onnx"):
            raise ValueError(f"the model {self.model} is no .onnx file")
        if self.engine is not None and self.model != self.engine.file:
            raise ValueError(f"the engine is {self.engine.file}, the model {self.model}")
        if (self.precision.done is None) != (bool(self.portable) and self.engine is None):
            raise ValueError("precision.done is left open exactly until an engine is built")
        named = [item.file for item in self.portable]
        kinds = [(item.precision, item.typing) for item in self.portable]
        if len(set(kinds)) < len(kinds):
            raise ValueError("a portable model stands twice")
        if any((precision, "graph") not in kinds for precision, _ in kinds):
            raise ValueError("a portable model has no typed graph")
        if not all(name.endswith(".onnx") for name in named):
            raise ValueError("a portable model is no .onnx file")
        if self.engine is not None:
            source = (self.engine.source, self.engine.precision, self.engine.typing)
            if source not in {(i.file, i.precision, i.typing) for i in self.portable}:
                raise ValueError("the engine was built from none of the portable models")
            if self.precision.done != self.engine.precision:
                raise ValueError(f"precision.done is not the engine's, {self.engine.precision}")
            parts = (self.engine.layers, self.engine.timing_cache, self.engine.source)
            named += [name for name in parts if name is not None]
        if self.precision.calibration is not None:
            named.append(self.precision.calibration.file)
        if self.evidence is not None and self.evidence.text_encoder is not None:
            named += [self.evidence.text_encoder.model, self.evidence.text_encoder.tokenizer]
        for name in named:
            if name not in self.files:
                raise ValueError(f"no sha256 for {name}")
        return self

    def of_maps(self, where: object) -> TilingDone:
        """The tiling of a bundle that makes maps.

        Raises:
            InputError: it answers for places.
        """
        if self.tiling is None:
            raise InputError(
                f"{where} answers for places (a picture, a series and a text each), and a bundle "
                f"that makes maps is expected here; ask it with: edgekd run {where} SET -o "
                "answers.csv --rules FILE, or edgekd.runtime.places.open_places"
            )
        return self.tiling

    def of_places(self, where: object) -> EvidenceDone:
        """What a bundle that answers for places takes.

        Raises:
            InputError: it makes maps.
        """
        if self.evidence is None:
            raise InputError(
                f"{where} makes maps of images, and a bundle that answers for places is expected "
                f"here; run it with: edgekd run {where} SCENE.tif -o map.tif, or edgekd.load"
            )
        return self.evidence

    def plain(self) -> dict[str, Any]:
        """JSON-ready values with the keys as written in the file."""
        return self.model_dump(mode="json", by_alias=True)
