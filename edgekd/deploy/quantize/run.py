"""The lowered ONNX files of a model, without a checkpoint and without a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgekd.contracts.artifacts import canonical_json, publish_folder, require_folder, sha256_file
from edgekd.contracts.manifest import CALIBRATION_NAME, Gate, PortableModel, PrecisionDone
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.target import Target
from edgekd.deploy.check.graph import read_graph
from edgekd.deploy.quantize.grounds import Say, golden_atol
from edgekd.deploy.quantize.lower import asked_of, lower
from edgekd.deploy.quantize.material import Images, TileMaterial
from edgekd.deploy.quantize.portable import portable
from edgekd.deploy.quantize.ranges import CalibrationFile
from edgekd.errors import InputError, OutputError

REPORT_NAME = "quantize.json"
#: every model file that it may write
_FILES = ("fp32.onnx", "int8.onnx", "fp16-typed.onnx", "int8-typed.onnx")


@dataclass(frozen=True)
class Quantized:
    """What was written.

    Attributes:
        path: the folder.
        precision, gates: what was tried, and what it cost.
        portable: of a target with TensorRT, what can be built from the files.
        files: name -> sha256.
    """

    path: Path
    precision: PrecisionDone
    gates: list[Gate]
    portable: list[PortableModel]
    files: dict[str, str]


def quantize(
    model: Path, recipe: Recipe, target: Target, images: Images, out: Path, say: Say
) -> Quantized:
    """Lower an FP32 model as a build for the target would, and write the files into a folder.

    Args:
        model: ONNX, FP32, as ``edgekd export`` writes it.
        recipe: input, classes, allowed precisions, calibration and gates.
        target: class of device.
        images: that calibrate and judge.
        out: folder; it appears when it is whole.
        say: called with a line for every step.

    Raises:
        InputError: the model cannot be read or is not of the recipe's input and classes; the recipe
            allows nothing lower than FP32 for the target; images are missing.
        GateError: no allowed precision keeps the gates.
        OutputError: the folder cannot be written.
    """
    if asked_of(recipe, target) == ["fp32"]:
        raise InputError(
            f"recipe '{recipe.name}' allows {', '.join(recipe.precision.allowed)}, of which "
            f"{target.name} holds fp32 alone, so there is nothing to lower; allow more, e.g. "
            "--set 'precision.allowed=[fp32,int8]' --set 'calibration={tiles: 16}'"
        )
    _require_place(out)
    read_graph(model)  # says in words what is wrong with a file that is no model
    proto = onnx.load(model)
    _require_same(model, proto, recipe)
    material = TileMaterial(recipe, images)
    if target.backend == "trt":
        atol = golden_atol(recipe)
        made = portable(proto, recipe, target, material, atol, say)
        return _write(out, made.files, made.calibration, made.precision, made.gates, made.models)
    lowered = lower(proto, recipe, target, material, say)
    files = {f"{lowered.precision.done}.onnx": lowered.proto}
    return _write(out, files, lowered.calibration, lowered.precision, lowered.gates, [])


def _require_place(out: Path) -> None:
    """Raise unless results can be written there; asked before the minutes of work."""
    if (out / REPORT_NAME).is_file():
        ours = {REPORT_NAME, CALIBRATION_NAME, *_FILES}
        strange = sorted(item.name for item in out.iterdir() if item.name not in ours)
        if strange:
            raise OutputError(
                f"{out} also holds {strange[0]}, which would be lost; move it away or choose "
                "another folder with -o"
            )
    require_folder(out, REPORT_NAME)


def _require_same(model: Path, proto: onnx.ModelProto, recipe: Recipe) -> None:
    """Raise unless the model takes the recipe's tiles and gives its classes."""
    spec = recipe.io.inputs[0]

    def sides(item: onnx.ValueInfoProto) -> list[int]:
        return [side.dim_value for side in item.type.tensor_type.shape.dim]

    found = {item.name: sides(item) for item in proto.graph.input}
    wanted = [spec.channel_count, spec.tile_px, spec.tile_px]
    if list(found) != [spec.name] or found[spec.name][1:] != wanted:
        raise InputError(
            f"{model} takes {found}, recipe '{recipe.name}' gives '{spec.name}' of {wanted} a "
            "tile; name the recipe that the model was exported with"
        )
    classes = [sides(item)[1:2] for item in proto.graph.output]
    if classes != [[len(recipe.io.classes)]]:
        raise InputError(
            f"{model} gives {classes} channels, recipe '{recipe.name}' has "
            f"{len(recipe.io.classes)} classes; name the recipe that it was exported with"
        )
    kinds = {item.data_type for item in proto.graph.initializer}
    if np.intersect1d(list(kinds), [onnx.TensorProto.FLOAT16, onnx.TensorProto.INT8]).size:
        raise InputError(
            f"{model} holds FP16 or INT8 values, expected an FP32 model; give the file that edgekd "
            "export wrote"
        )


def _write(
    out: Path,
    files: dict[str, onnx.ModelProto],
    calibration: CalibrationFile | None,
    precision: PrecisionDone,
    gates: list[Gate],
    models: list[PortableModel],
) -> Quantized:
    with publish_folder(out, REPORT_NAME) as folder:
        for name, proto in files.items():
            (folder / name).write_bytes(proto.SerializeToString(deterministic=True))
        if calibration is not None:
            (folder / CALIBRATION_NAME).write_text(calibration.text(), encoding="utf-8")
        hashes = {item.name: sha256_file(item) for item in sorted(folder.iterdir())}
        report = {
            "precision": precision.model_dump(mode="json"),
            "gates": [gate.model_dump(mode="json") for gate in gates],
            "portable": [item.model_dump(mode="json") for item in models],
            "files": hashes,
        }
        (folder / REPORT_NAME).write_text(canonical_json(report), encoding="utf-8")
    return Quantized(out, precision, gates, models, hashes)
