"""The calibration file: what a model's tensors were seen to hold, on which tiles.

It belongs to one model, whose hash it carries, so that it cannot be used for another by its name.
The same model, tiles and settings give the same bytes. With it INT8 and FP16 files are made again
without calibrating; validation tiles still judge them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import onnx
import pydantic

from edgekd.contracts.artifacts import canonical_json, read_json, sha256_bytes
from edgekd.contracts.calibration import Sha256
from edgekd.contracts.recipe import PrecisionSpec
from edgekd.contracts.schema import Document
from edgekd.deploy.quantize.calibrate import Activations
from edgekd.deploy.quantize.layers import Layer
from edgekd.deploy.quantize.smooth import smooth
from edgekd.errors import InputError


class CalibrationFile(Document):
    """Contents of ``calibration.json``.

    Attributes:
        model_sha256: of the FP32 graph's canonical bytes.
        input_sha256: of the recipe's input: channels, tile and normalisation; of places of all
            kinds of evidence.
        tiles, tiles_sha256: number of tiles (or places), and hash over their bytes in order.
        source: where they come from, in words.
        range, percentile: how a range was chosen from what was seen.
        smooth: strength of SmoothQuant's rescaling, 0 (off) to 1.
        channels: layer's input -> largest absolute value per channel before rescaling; empty
            without ``smooth``.
        ranges: layer's input -> absolute value that becomes 127, after rescaling.
        largest: tensor -> largest absolute value, after rescaling; None where it was not finite.
        outputs: what convolutions put out -> absolute value that becomes the largest integer; empty
            in a file of schema 1, which is written where no convolution may be quantised.
    """

    schema_version: Literal[1, 2] = pydantic.Field(default=1, alias="schema")
    model_sha256: Sha256
    input_sha256: Sha256
    tiles: int = pydantic.Field(ge=2)
    tiles_sha256: Sha256
    source: str
    range: Literal["minmax", "percentile", "entropy"]
    percentile: float | None
    smooth: float
    channels: dict[str, list[float]]
    ranges: dict[str, Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]]
    largest: dict[str, float | None]
    outputs: dict[str, Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]] = {}

    def text(self) -> str:
        """Canonical JSON, with a ``seal`` over everything else."""
        body = self.model_dump(mode="json", by_alias=True)
        if self.schema_version == 1:
            del body["outputs"]
        return canonical_json({**body, "seal": sha256_bytes(canonical_json(body).encode())})

    def rescaled(self, proto: onnx.ModelProto, layers: list[Layer]) -> onnx.ModelProto:
        """The graph that the ranges belong to."""
        if not self.smooth:
            return proto
        channels = {name: np.array(value, np.float32) for name, value in self.channels.items()}
        return smooth(proto, layers, channels, self.smooth)[0]

    def require_for(
        self, proto: onnx.ModelProto, spec: PrecisionSpec, given_sha256: str, where: Path
    ) -> None:
        """Raise InputError unless it was made from this graph and with these settings."""
        if self.model_sha256 != model_sha256(proto):
            raise InputError(
                f"{where} was made from another model (sha256 {self.model_sha256[:12]}…, this one "
                f"has {model_sha256(proto)[:12]}…); ranges of one model are wrong for another: "
                "calibrate again without --calibration"
            )
        if self.input_sha256 != given_sha256:
            raise InputError(
                f"{where} was made with another input (channels, tile or normalisation) than the "
                "recipe has; calibrate again without --calibration"
            )
        percentile = spec.percentile if spec.range == "percentile" else None
        made, asked = (
            (self.range, self.percentile, self.smooth),
            (spec.range, percentile, spec.smooth),
        )
        if made != asked:
            raise InputError(
                f"{where} was made with range, percentile and smooth of {made}, the recipe asks "
                f"for {asked}; calibrate again without --calibration, or correct the recipe"
            )


def model_sha256(proto: onnx.ModelProto) -> str:
    """Hash of a graph, whatever file it came from."""
    return sha256_bytes(proto.SerializeToString(deterministic=True))


def input_sha256(*inputs: Document) -> str:
    """Hash of what an image, or each kind of evidence, becomes before the model sees it."""
    values = [item.model_dump(mode="json") for item in inputs]
    return sha256_bytes(canonical_json(values[0] if len(values) == 1 else values).encode())


def calibration_file(
    proto: onnx.ModelProto,
    spec: PrecisionSpec,
    given_sha256: str,
    source: str,
    seen: Activations,
    channels: dict[str, list[float]],
) -> CalibrationFile:
    """What calibration saw, as a document.

    Args:
        proto: FP32, before rescaling.
        spec: how ranges are chosen.
        given_sha256: of the recipe's input, or inputs.
        source: of the tiles, in words.
        seen: after rescaling.
        channels: see :class:`CalibrationFile`.
    """
    finite = {
        name: value if np.isfinite(value) else None for name, value in sorted(seen.largest.items())
    }
    outputs = seen.outputs(spec.range, spec.percentile)
    return CalibrationFile(
        schema=2 if outputs else 1,
        model_sha256=model_sha256(proto),
        input_sha256=given_sha256,
        tiles=seen.tiles,
        tiles_sha256=seen.sha256,
        source=source,
        range=spec.range,
        percentile=spec.percentile if spec.range == "percentile" else None,
        smooth=spec.smooth,
        channels=channels,
        ranges=seen.ranges(spec.range, spec.percentile),
        largest=finite,
        outputs=outputs,
    )


def read_calibration(path: Path) -> CalibrationFile:
    """A calibration file.

    Raises:
        InputError: missing, damaged or of another schema.
    """
    value = read_json(path)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    try:
        file = CalibrationFile.model_validate(value)
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is no calibration file of edgekd: {place}: {first['msg']}; make one with: "
            "edgekd quantize RECIPE MODEL.onnx --target TARGET -o FOLDER"
        ) from err
    if seal != sha256_bytes(canonical_json(value).encode()):
        raise InputError(
            f"{path} was changed after it was written (its seal does not match); calibrate again "
            "without --calibration"
        )
    return file
