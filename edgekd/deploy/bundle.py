"""From recipe and checkpoint to a sealed bundle."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import edgekd
from edgekd.contracts import registry
from edgekd.contracts.artifacts import (
    canonical_json,
    publish_folder,
    sha256_bytes,
    sha256_file,
)
from edgekd.contracts.labelled import LabelledSet
from edgekd.contracts.manifest import (
    GOLDEN_NAME,
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    Gate,
    GoldenSpec,
    Manifest,
    Provenance,
    TargetDone,
    TilingDone,
)
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.target import Target, load_target
from edgekd.contracts.trust import SIGNATURE_NAME, SIGNER_VARIABLE
from edgekd.deploy.check.run import require_fit
from edgekd.deploy.parity import FloatArray, Model, compare
from edgekd.deploy.quantize.lower import lower
from edgekd.deploy.tiles import golden_tiles
from edgekd.errors import EnvironmentLacksError, GateError, InputError, OutputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.bundle import sealed_json

#: golden outputs are stored from ONNX Runtime on the build host; on another processor the same
#: float32 graph differs by the order of its sums, so the bound is wider than the export's.
GOLDEN_FACTOR = 10.0
GOLDEN_COUNT = 2
#: part of the golden cells of a lower precision that must have the stored class on any processor.
GOLDEN_AGREEMENT = 0.995

Step = Callable[[str], None]


@dataclass(frozen=True)
class BuildResult:
    """A finished bundle."""

    path: Path
    manifest: Manifest


def default_folder(recipe: Recipe, target: str) -> Path:
    """Where a bundle goes when no folder is named."""
    return Path("bundles") / f"{recipe.name}-{target}"


def build(
    recipe: Recipe,
    target_name: str,
    checkpoint_path: Path,
    out: Path,
    data: LabelledSet | None,
    step: Step | None = None,
    calibration: LabelledSet | None = None,
) -> BuildResult:
    """Export, compare, lower the precision, build for the target, store golden data, seal.

    Args:
        recipe: what the product is.
        target_name: a target that the recipe names.
        checkpoint_path: a checkpoint of this recipe's student.
        out: folder of the bundle; it appears when it is whole.
        data: labelled set for real golden and parity inputs; synthetic tiles where absent (the
            manifest says which).
        step: called with a line for every stage.
        calibration: where INT8 learns its ranges, in place of ``data``.

    Raises:
        InputError: the target is not one of the recipe's; the checkpoint is another's.
        GateError: a comparison exceeds the recipe's bound, or the target would refuse the model;
            nothing is left behind.
        EnvironmentLacksError: the target's backend has no builder in this version.
    """
    from edgekd.deploy.export.onnx_export import export_onnx, torch_model
    from edgekd.train.checkpoint import check_matches, load_checkpoint, rebuild

    say = step or (lambda _text: None)
    target = load_target(target_name)
    if target_name not in recipe.targets:
        raise InputError(
            f"recipe '{recipe.name}' does not name the target {target_name} (targets: "
            f"{', '.join(recipe.targets)}); add it there if the product is to run on it"
        )
    builders = registry.module_names("edgekd.deploy.builders")
    if target.backend not in builders:
        raise EnvironmentLacksError(
            f"target {target_name} runs with the backend '{target.backend}', for which this "
            f"version has no builder (it has: {', '.join(builders)}); build for x86-cpu, rpi4 or "
            "rpi5, or write the model alone with: edgekd export CHECKPOINT -o model.onnx"
        )
    checkpoint = load_checkpoint(checkpoint_path)
    source = str(checkpoint_path)
    check_matches(checkpoint, recipe, source)
    model = rebuild(checkpoint, source)
    normalize = Normalizer(recipe.io.inputs[0])
    tiles, origin = golden_tiles(recipe, data, GOLDEN_COUNT)
    _check_replaceable(out)
    if (out / SIGNATURE_NAME).exists():
        say(f"{out} is signed; the signature goes with the bundle that it stands for: sign anew")
    with publish_folder(out, MANIFEST_NAME) as folder:
        say("export to ONNX")
        exported = export_onnx(model, recipe, folder / "export.onnx")
        say(f"check for {target_name}")
        require_fit(exported.path, target)
        say("compare ONNX with torch")
        tensors = [normalize(tile)[None] for tile in tiles]
        with OnnxRuntimeBackend(exported.path, threads=target.threads) as backend:
            run = _runner(backend, exported.input_name, exported.output_name)
            bound = recipe.gates.onnx_vs_torch.atol
            gates = [compare(torch_model(model), run, tensors).gate("onnx_vs_torch", bound)]
            both = np.concatenate([*tensors, tensors[0][:, :, ::-1]])
            batched = compare(
                lambda tensor: np.concatenate([run(part[None]) for part in tensor]), run, [both]
            )
            gates.append(batched.gate("batch_vs_single", bound))
            _require(gates)
            golden = [run(tensor)[0] for tensor in tensors]
        atol = recipe.gates.golden.atol if recipe.gates.golden else bound * GOLDEN_FACTOR
        lowered = lower(onnx.load(exported.path), recipe, target, data, calibration or data, say)
        gates += lowered.gates
        if lowered.precision.done != "fp32":
            exported.path.write_bytes(lowered.proto.SerializeToString(deterministic=True))
            say(f"check the {lowered.precision.done} model for {target_name}")
            for finding in require_fit(exported.path, target).findings:
                if finding.severity == "warning":
                    say(f"warning: {finding.reason}; {finding.fix}")
            assert lowered.run is not None
            exact, golden = golden, [lowered.run(tensor)[0] for tensor in tensors]
            # Another processor rounds elsewhere, which moves single values by a step: by no more
            # than rounding to these steps did in the first place.
            apart = max(float(np.abs(a - b).max()) for a, b in zip(exact, golden, strict=True))
            atol = recipe.gates.golden.atol if recipe.gates.golden else max(atol, apart)
        say(f"build for {target_name}")
        builder = registry.load("edgekd.deploy.builders", target.backend, "builder")
        versions = builder.build(exported.path, folder)
        exported.path.unlink()
        arrays: dict[str, Any] = {f"image_{n}": tile for n, tile in enumerate(tiles)}
        arrays |= {f"{exported.output_name}_{n}": value for n, value in enumerate(golden)}
        np.savez_compressed(folder / GOLDEN_NAME, **arrays)
        manifest = Manifest(
            schema=MANIFEST_SCHEMA,
            name=f"{recipe.name}-{target_name}",
            title=recipe.title,
            model=builder.MODEL_NAME,
            inputs=recipe.io.inputs,
            outputs=[recipe.io.outputs[0].model_copy(update={"stride_px": model.stride})],
            classes=recipe.io.classes,
            tiling=TilingDone(
                window_px=exported.tile_px,
                overlap_px=recipe.tiling.overlap_px,
                blend=recipe.tiling.blend,
            ),
            precision=lowered.precision,
            target=_target_done(target, versions),
            provenance=Provenance(
                recipe=recipe.plain(),
                recipe_sha256=sha256_bytes(canonical_json(recipe.plain()).encode()),
                checkpoint_sha256=sha256_file(_file(checkpoint_path)),
                data_name=checkpoint.data["name"],
                data_sha256=checkpoint.data["sha256"],
                student=checkpoint.student,
                tuning=checkpoint.tuning,
                edgekd_version=edgekd.__version__,
                created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(
                    timespec="seconds"
                ),
            ),
            gates=gates,
            golden=GoldenSpec(
                count=len(tiles),
                atol=atol,
                agreement_min=None if lowered.precision.done == "fp32" else GOLDEN_AGREEMENT,
                source=origin,
            ),
            files={
                file.name: sha256_file(file)
                for file in sorted(folder.iterdir())
                if file.name != MANIFEST_NAME
            },
        )
        (folder / MANIFEST_NAME).write_text(sealed_json(manifest.plain()), encoding="utf-8")
        say("load the bundle and run its golden inputs")
        _verify(folder)
    if SIGNER_VARIABLE in os.environ:
        say(
            f"{SIGNER_VARIABLE} is set: this bundle loads after edgekd sign {out} --key PRIVATE_KEY"
        )
    return BuildResult(out, manifest)


def _check_replaceable(out: Path) -> None:
    """Raise unless ``out`` is free, or a bundle and nothing besides.

    A damaged bundle may be replaced, a stranger's folder with a ``manifest.json`` may not. A
    signature belongs to the bundle that is replaced and vanishes with it.
    """
    if not (out / MANIFEST_NAME).is_file():
        return  # publish_folder decides
    try:
        value = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
        ours = "seal" in value and {MANIFEST_NAME, SIGNATURE_NAME, *value["files"]}
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out} holds a {MANIFEST_NAME} that is not of edgekd; choose another folder with -o"
        )
    strange = sorted(item.name for item in out.iterdir() if item.name not in ours)
    if strange:
        raise OutputError(
            f"{out} is a bundle but also holds {strange[0]}, which would be lost; move it away or "
            "choose another folder with -o"
        )


def _verify(folder: Path) -> None:
    """Load what was packed, as a user will, and compare with the stored outputs.

    Without a signer even where ``EDGEKD_SIGNER`` names one: nobody can have signed it yet.
    """
    from edgekd.runtime.session import open_session

    with open_session(folder, (), any_device=True) as session:
        session.verify()


def _runner(backend: Backend, input_name: str, output_name: str) -> Model:
    def run(tensor: FloatArray) -> FloatArray:
        return backend.infer({input_name: tensor})[output_name]

    return run


def _require(gates: list[Gate]) -> None:
    for gate in gates:
        if not gate.passed:
            raise GateError(
                f"gate {gate.name} failed: {gate.value:.3g} {gate.unit}, allowed are "
                f"{gate.bound:.3g} ({gate.detail}); no bundle was written"
            )


def _file(checkpoint_path: Path) -> Path:
    from edgekd.train.checkpoint import BEST_NAME

    return checkpoint_path / BEST_NAME if checkpoint_path.is_dir() else checkpoint_path


def _target_done(target: Target, versions: dict[str, str]) -> TargetDone:
    return TargetDone(
        name=target.name,
        arch=target.arch,
        backend=target.backend,
        threads=target.threads,
        versions=versions,
    )
