"""The manifest: what a bundle holds, what it was made from, and what was promised and done."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.schema import Document
from edgekd.contracts.tensors import Classes, ImageInput, LogitsOutput
from edgekd.contracts.windows import Blend

MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
MANIFEST_SCHEMA = 2


#: a file directly in the bundle: no folders, no way out of it.
FileName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class TilingDone(Document):
    """How the runtime tiles by default; the window is the engine's tile side."""

    window_px: int = pydantic.Field(ge=1)
    overlap_px: int = pydantic.Field(ge=0)
    blend: Blend


class CalibrationDone(Document):
    """What INT8 learned its ranges from.

    Attributes:
        tiles, sha256: number of tiles, and hash over their bytes in order.
        source: where they come from, in words.
        ranges: layer's input -> absolute value that becomes 127.
    """

    tiles: int
    sha256: Sha256
    source: str
    range: str
    percentile: float | None
    smooth: float
    ranges: dict[str, float]


class CandidateDone(Document):
    """A precision that was tried, with what it costs beside FP32 on the same validation tiles.

    Attributes:
        miou: 0-1; None where there are no labels.
        agreement: part of the cells with FP32's class, 0-1.
        noise: root mean square of the logits' difference over their deviation.
        tiles: that it was measured on.
        size_bytes: of the model file.
        tile_s: median time of a tile on the build host, s; None where it says nothing about the
            target.
        kept_high: layers that had to stay in high precision, the worst first.
        chosen, why: whether it was taken, and the reason in words.
    """

    precision: str
    miou: float | None
    agreement: float
    noise: float
    tiles: int
    size_bytes: int
    tile_s: float | None = None
    kept_high: list[str] = []
    chosen: bool
    why: str


def row(item: CandidateDone) -> str:
    """A candidate as a line for a person."""
    miou = "no labels" if item.miou is None else f"mIoU {100 * item.miou:.2f} %"
    seconds = "" if item.tile_s is None else f", {1 / item.tile_s:.2f} tiles/s"
    mark = "*" if item.chosen else " "
    return (
        f"{mark} {item.precision}: {miou}, agreement {100 * item.agreement:.2f} %, "
        f"{item.size_bytes / 1e6:.1f} MB{seconds} ({item.why})"
    )


class PrecisionDone(Document):
    """Precision that the recipe allowed and that the build delivered.

    Attributes:
        asked: what the recipe allowed and the target can hold.
        done: what the model in the bundle is.
        kept_high: its layers that stayed in high precision although they may be lowered.
        calibration: absent where nothing was calibrated.
        candidates: everything that was tried.
        sensitivity: layer -> noise at the output when it alone is lowered; empty where the gates
            held with all of them.
    """

    asked: list[str]
    done: str
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

    Attributes:
        atol: largest difference of a logit allowed on the device.
        agreement_min: part of the cells that must have the stored class there, 0-1; None where
            ``atol`` says it all.
    """

    file: FileName = GOLDEN_NAME
    count: int = pydantic.Field(ge=1)
    atol: float = pydantic.Field(gt=0)
    agreement_min: float | None = pydantic.Field(default=None, ge=0, le=1)
    source: str


class Manifest(Document):
    """Contents of ``manifest.json``."""

    schema_version: int = pydantic.Field(alias="schema")
    name: str
    title: str = ""
    model: FileName
    inputs: list[ImageInput] = pydantic.Field(min_length=1)
    outputs: list[LogitsOutput] = pydantic.Field(min_length=1)
    classes: Classes
    tiling: TilingDone
    precision: PrecisionDone
    target: TargetDone
    provenance: Provenance
    gates: list[Gate]
    golden: GoldenSpec
    files: dict[FileName, Sha256]

    def plain(self) -> dict[str, Any]:
        """JSON-ready values with the keys as written in the file."""
        return self.model_dump(mode="json", by_alias=True)
