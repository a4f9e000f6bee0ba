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
MANIFEST_SCHEMA = 1


#: a file directly in the bundle: no folders, no way out of it.
FileName = Annotated[str, pydantic.Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$")]


class TilingDone(Document):
    """How the runtime tiles by default; the window is the engine's tile side."""

    window_px: int = pydantic.Field(ge=1)
    overlap_px: int = pydantic.Field(ge=0)
    blend: Blend


class PrecisionDone(Document):
    """Precision that the recipe allowed and that the build delivered."""

    asked: list[str]
    done: str


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
        value, bound: in ``unit``; the gate holds when value <= bound.
    """

    name: str
    value: float
    bound: float
    unit: str
    passed: bool
    detail: str = ""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Gate:
        if self.passed != (self.value <= self.bound):
            raise ValueError(f"gate {self.name}: passed does not follow from value and bound")
        return self


class GoldenSpec(Document):
    """Stored inputs and outputs: arrays ``image_K`` (HWC uint8) and ``OUTPUT_K`` in the file."""

    file: FileName = GOLDEN_NAME
    count: int = pydantic.Field(ge=1)
    atol: float = pydantic.Field(gt=0)
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
