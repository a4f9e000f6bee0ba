"""From recipe and checkpoint to a sealed bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekd.contracts.artifacts import (
    publish_folder,
)
from edgekd.contracts.manifest import (
    CALIBRATION_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    CheckDone,
    Gate,
    GoldenSpec,
    Manifest,
    PortableModel,
    PrecisionDone,
    TargetDone,
    TilingDone,
)
from edgekd.contracts.memory import give_back_memory
from edgekd.contracts.optional import require
from edgekd.contracts.place_recipe import AnyRecipe
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.target import Target, load_target
from edgekd.deploy.check.report import CheckReport
from edgekd.deploy.check.run import Options, require_fit
from edgekd.deploy.check.tables import parse_version
from edgekd.deploy.packing import (
    Step,
    checked,
    hashes,
    provenance,
    require_gates,
    require_named,
    require_place,
    seal,
    tell,
    tell_signer,
)
from edgekd.deploy.parity import FloatArray, TileModel, compare
from edgekd.deploy.quantize.grounds import golden_atol
from edgekd.deploy.quantize.lower import asked_of, lower
from edgekd.deploy.quantize.material import Images, TileMaterial, require_images
from edgekd.deploy.quantize.portable import portable
from edgekd.deploy.quantize.ranges import CalibrationFile
from edgekd.deploy.tiles import golden_tiles
from edgekd.errors import InputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend

GOLDEN_COUNT = 2
#: part of the golden cells of a lower precision that must have the stored class on any processor.
GOLDEN_AGREEMENT = 0.995

#: TensorRT versions whose rules a file is checked by where the target has a later or earlier one
STRONG, WEAK = "10.12", "10.11"


@dataclass(frozen=True)
class BuildResult:
    """A finished bundle."""

    path: Path
    manifest: Manifest


def default_folder(recipe: AnyRecipe, target: str) -> Path:
    """Where a bundle goes when no folder is named."""
    return Path("bundles") / f"{recipe.name}-{target}"


def build(
    recipe: Recipe,
    target_name: str,
    checkpoint_path: Path,
    out: Path,
    images: Images,
    step: Step | None = None,
) -> BuildResult:
    """Export, compare, lower the precision, check, pack for the target, store golden data, seal.

    For a target with ONNX Runtime the bundle is finished. For one with TensorRT it is portable: it
    holds what a board builds its engine from, and :func:`edgekd.deploy.finalize.finalize` does so.

    Args:
        recipe: what the product is.
        target_name: a target that the recipe names.
        checkpoint_path: a checkpoint of this recipe's student.
        out: folder of the bundle; it appears when it is whole.
        images: real golden, parity and validation tiles, and where INT8 learns its ranges. Without
            them only FP32 is made, compared on a synthetic tile (the manifest says so).
        step: called with a line for every stage.

    Raises:
        InputError: the target is not one of the recipe's; the checkpoint is another's; images are
            missing for a lower precision.
        GateError: a comparison exceeds the recipe's bound, or the target would refuse the model;
            nothing is left behind.
    """
    from edgekd.deploy.export.onnx_export import export_onnx, torch_model
    from edgekd.train.checkpoint import check_matches, load_checkpoint, rebuild

    say = step or (lambda _text: None)
    target = load_target(target_name)
    require_named(recipe, target_name)
    asked = asked_of(recipe, target)
    if asked != ["fp32"]:
        require_images(images)
    elif images.saved is not None:
        raise InputError(
            f"--calibration {images.saved} was given and only fp32 is made for {target.name}, "
            "which takes no ranges; leave it out, or allow int8"
        )
    checkpoint = load_checkpoint(checkpoint_path)
    source = str(checkpoint_path)
    check_matches(checkpoint, recipe, source)
    model = rebuild(checkpoint, source)
    normalize = Normalizer(recipe.io.inputs[0])
    tiles, origin = golden_tiles(recipe, images.data, GOLDEN_COUNT)
    require_place(out, say)
    with publish_folder(out, MANIFEST_NAME) as folder:
        say("export to ONNX")
        exported = export_onnx(model, recipe, folder / "export.onnx")
        say(f"check for {target_name}")
        # For TensorRT the files that are made from it are compiled, the export itself is none.
        trt = target.backend == "trt"
        meant = Options(precision="fp32", compile_model=False) if trt else Options()
        report = require_fit(exported.path, target, meant)
        say("compare ONNX with torch")
        tensors = [normalize(tile)[None] for tile in tiles]
        with OnnxRuntimeBackend(exported.path, threads=target.threads) as backend:
            run = _runner(backend, exported.input_name, exported.output_name)
            bound = recipe.gates.onnx_vs_torch.atol
            # A batch needs two: where there is one picture, the other is its mirror image.
            mirrored = [np.ascontiguousarray(tensors[0][..., ::-1])] if len(tensors) < 2 else []
            shown = [*tensors, *mirrored]
            answers = [run(tensor) for tensor in shown]
            known = iter(answers)
            exact = compare(torch_model(model), lambda _: next(known), shown)
            gates = [exact.gate("onnx_vs_torch", bound)]
            batched = compare(
                lambda _: np.concatenate(answers[:2]), run, [np.concatenate(shown[:2])]
            )
            gates.append(batched.gate("batch_vs_single", bound))
            require_gates(gates)
        give_back_memory()
        atol = golden_atol(recipe)
        proto = onnx.load(exported.path)
        exported.path.unlink()
        golden = _Golden(tensors, answers[: len(tensors)], atol)
        if trt:
            packed = _portable(folder, proto, recipe, target, images, golden, say)
        else:
            packed = _onnxrt(folder, proto, recipe, target, images, golden, report, say)
        if packed.calibration is not None:
            (folder / CALIBRATION_NAME).write_text(packed.calibration.text(), encoding="utf-8")
        arrays: dict[str, Any] = {f"image_{n}": tile for n, tile in enumerate(tiles)}
        arrays |= {f"{exported.output_name}_{n}": item[0] for n, item in enumerate(packed.logits)}
        np.savez_compressed(folder / GOLDEN_NAME, **arrays)
        manifest = Manifest(
            schema=MANIFEST_SCHEMA,
            name=f"{recipe.name}-{target_name}",
            title=recipe.title,
            model=packed.model,
            inputs=recipe.io.inputs,
            outputs=[recipe.io.outputs[0].model_copy(update={"stride_px": model.stride})],
            classes=recipe.io.classes,
            tiling=TilingDone(
                window_px=exported.tile_px,
                overlap_px=recipe.tiling.overlap_px,
                blend=recipe.tiling.blend,
            ),
            precision=packed.precision,
            target=TargetDone(
                name=target.name,
                arch=target.arch,
                backend=target.backend,
                threads=target.threads,
                versions={"onnx": str(onnx.__version__), **packed.versions},
            ),
            portable=packed.portable,
            checks=packed.checks,
            provenance=provenance(recipe, checkpoint, checkpoint_path),
            gates=gates + packed.gates,
            golden=GoldenSpec(
                count=len(tiles),
                atol=packed.atol,
                agreement_min=packed.agreement_min,
                source=origin,
            ),
            files=hashes(folder),
        )
        seal(folder, manifest)
        del packed, proto, golden
        give_back_memory()
        say("load the bundle and run its golden inputs")
        _verify(folder)
    tell_signer(out, say)
    return BuildResult(out, manifest)


@dataclass(frozen=True)
class _Golden:
    """_Golden inputs, normalised ``(1, C, H, W)``, and FP32's logits ``(1, K, h, w)`` for them.

    Attributes:
        atol: bound for an FP32 engine, logits.
    """

    tensors: Sequence[FloatArray]
    logits: Sequence[FloatArray]
    atol: float


@dataclass(frozen=True)
class _Packed:
    """What one kind of target adds to a bundle; ``logits`` are the golden outputs to store."""

    model: str
    precision: PrecisionDone
    gates: list[Gate]
    checks: list[CheckDone]
    atol: float
    agreement_min: float | None
    logits: Sequence[FloatArray]
    versions: dict[str, str]
    calibration: CalibrationFile | None
    portable: list[PortableModel] = field(default_factory=list)


def _onnxrt(
    folder: Path,
    proto: onnx.ModelProto,
    recipe: Recipe,
    target: Target,
    images: Images,
    golden: _Golden,
    report: CheckReport,
    say: Step,
) -> _Packed:
    """ONNX Runtime needs no compiled form: the ONNX file itself is what it loads."""
    lowered = lower(proto, recipe, target, TileMaterial(recipe, images), say)
    name = "model.onnx"
    path = folder / name
    path.write_bytes(lowered.proto.SerializeToString(deterministic=True))
    logits, atol, agreement = golden.logits, golden.atol, None
    if lowered.precision.done != "fp32":
        report = require_fit(path, target)
        tell(name, report, say)
        assert lowered.run is not None
        name_in = recipe.io.inputs[0].name
        logits = [lowered.run({name_in: tensor}) for tensor in golden.tensors]
        # Another processor rounds elsewhere, which moves single values by a step: by no more than
        # rounding to these steps did in the first place.
        pairs = zip(golden.logits, logits, strict=True)
        apart = max(float(np.abs(have - want).max()) for want, have in pairs)
        atol = recipe.gates.golden.atol if recipe.gates.golden else max(atol, apart)
        agreement = GOLDEN_AGREEMENT
    version = require("onnxruntime", "deploy", "build bundles").__version__
    return _Packed(
        model=name,
        precision=lowered.precision,
        gates=lowered.gates,
        checks=[checked(name, report)],
        atol=atol,
        agreement_min=agreement,
        logits=logits,
        versions={"onnxruntime": str(version)},
        calibration=lowered.calibration,
    )


def _portable(
    folder: Path,
    proto: onnx.ModelProto,
    recipe: Recipe,
    target: Target,
    images: Images,
    golden: _Golden,
    say: Step,
) -> _Packed:
    """What a board builds its engine from; golden outputs are those of FP32."""
    made = portable(proto, recipe, target, TileMaterial(recipe, images), golden.atol, say)
    checks = {}
    for name, graph in made.files.items():
        path = folder / name
        path.write_bytes(graph.SerializeToString(deterministic=True))
        mine = [item for item in made.models if item.file == name]
        # A typed graph is for a TensorRT that takes types from it, whatever the board has today.
        typed = all(item.typing == "graph" for item in mine)
        lowered = any(item.lowered for item in mine)
        version = target.tensorrt
        if typed:
            version = max(version or STRONG, STRONG, key=parse_version)
        elif lowered:  # and the other way round, whatever the board will have
            version = min(version or WEAK, WEAK, key=parse_version)
        options = Options(tensorrt=version, precision="fp16" if lowered else "fp32")
        report = require_fit(path, target, options)
        tell(name, report, say)
        checks[name] = checked(name, report)
    first = made.models[-1] if made.models[0].precision == "fp32" else made.models[1]
    return _Packed(
        model=first.file,
        precision=made.precision,
        gates=made.gates,
        checks=list(checks.values()),
        atol=first.golden_atol,
        agreement_min=first.golden_agreement_min,
        logits=golden.logits,
        versions={},
        calibration=made.calibration,
        portable=made.models,
    )


def _verify(folder: Path) -> None:
    """Load what was packed, as a user will, and compare with the stored outputs.

    Without a signer even where ``EDGEKD_SIGNER`` names one: nobody can have signed it yet.
    """
    from edgekd.runtime.session import open_session

    with open_session(folder, (), any_device=True) as session:
        session.verify()


def _runner(backend: Backend, input_name: str, output_name: str) -> TileModel:
    def run(tensor: FloatArray) -> FloatArray:
        # A copy: ONNX Runtime's own output holds the memory of the whole session for as long as it
        # lives, 2.5 GB for ViT-Small at 1024 px.
        result: FloatArray = backend.infer({input_name: tensor})[output_name].copy()
        return result

    return run
