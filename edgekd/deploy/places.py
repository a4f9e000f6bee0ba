"""From recipe and checkpoint of places to a sealed bundle: scores in the precision that keeps the
gates, and behind them, in double precision, the projection onto the rules."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgekd.contracts.artifacts import publish_folder
from edgekd.contracts.evidence import (
    PROBABILITIES,
    SCORES,
    Answers,
    Evidence,
    EvidenceTensors,
    Float32,
)
from edgekd.contracts.manifest import (
    CALIBRATION_NAME,
    GOLDEN_NAME,
    MANIFEST_NAME,
    MANIFEST_SCHEMA,
    EvidenceDone,
    Gate,
    GoldenSpec,
    Manifest,
    TargetDone,
    TextEncoderDone,
)
from edgekd.contracts.memory import give_back_memory
from edgekd.contracts.optional import require
from edgekd.contracts.place_golden import make_golden
from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.place_set import PlaceSet
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import OBEYED, Limits, past_bounds, project
from edgekd.contracts.target import Target, load_target
from edgekd.contracts.tensors import LogitsOutput, TextInput
from edgekd.deploy.bundle import BuildResult
from edgekd.deploy.check.run import require_fit
from edgekd.deploy.export.policy import attach_policy
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
from edgekd.deploy.parity import Tensors, compare
from edgekd.deploy.place_samples import (
    GoldenPlaces,
    PlaceMaterial,
    check_enough,
    golden_places,
    open_reader,
)
from edgekd.deploy.quantize.grounds import golden_atol
from edgekd.deploy.quantize.lower import asked_of, is_native, lower
from edgekd.errors import CheckpointError, InputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.places import PROJECTED, no_limits, open_place_session

MODEL_NAME = "model.onnx"
#: part of the golden places of a lower precision that must have the stored class on any processor:
#: one answer a place, so that three ties of twelve may fall otherwise, and no more
GOLDEN_AGREEMENT = 0.75
#: writes an encoder of texts into the bundle's folder and says what it is
WriteEncoder = Callable[[Path], TextEncoderDone]


def build_places(
    recipe: PlaceRecipe,
    target_name: str,
    checkpoint_path: Path,
    out: Path,
    data: PlaceSet | None,
    texts: Float32 | None,
    step: Step | None = None,
    *,
    encoder: WriteEncoder | None = None,
    saved: Path | None = None,
    day: datetime.date | None = None,
) -> BuildResult:
    """Export, compare, lower the precision, attach the projection, check, pack, seal.

    Args:
        recipe: what the product is.
        target_name: a target that the recipe names, with ONNX Runtime.
        checkpoint_path: a checkpoint of this recipe's student.
        out: folder of the bundle; it appears when it is whole.
        data: set whose training places calibrate and whose validation places judge, compare and
            become golden. Without it only FP32 is made, compared on synthetic places (the manifest
            says so).
        texts: ``(rows, width)`` float32 embeddings of the set's texts; comes with ``data``.
        step: called with a line for every stage.
        encoder: puts an encoder of texts into the bundle; without one it takes embeddings alone.
        saved: a calibration file of an earlier build of the same model.
        day: on which the set's rules are taken for golden answers; today where absent.

    Raises:
        InputError: the target is not one of the recipe's, or is one with TensorRT; the checkpoint
            is another's; the set does not fit, or is missing for a lower precision.
        GateError: a comparison exceeds its bound, or the target would refuse the model; nothing is
            left behind.
    """
    from edgekd.deploy.export.places_export import export_places, torch_places
    from edgekd.train.places.checkpoint import (
        check_matches_places,
        load_places_checkpoint,
        rebuild_places,
        with_statistics,
    )

    say = step or (lambda _text: None)
    target = load_target(target_name)
    require_named(recipe, target_name)
    if target.backend != "onnxrt":
        raise InputError(
            f"target {target_name} takes an engine of TensorRT, and bundles of places are built "
            "for ONNX Runtime alone: TensorRT-RTX had not built the projection's loop after five "
            "minutes, and there it will stand behind the engine; take x86-cpu, rpi4 or rpi5"
        )
    if (data is None) != (texts is None):
        raise InputError("a set of places and the embeddings of its texts come together")
    asked = asked_of(recipe, target)
    if asked == ["fp32"] and saved is not None:
        raise InputError(
            f"--calibration {saved} was given and only fp32 is made for {target.name}, which takes "
            "no ranges; leave it out, or allow int8"
        )
    if asked != ["fp32"] and data is not None:
        check_enough(recipe, data, saved)
    checkpoint = load_places_checkpoint(checkpoint_path)
    source = str(checkpoint_path)
    check_matches_places(checkpoint, recipe, source)
    series = checkpoint.parsed_recipe(source).io.series
    if series.mean is None or series.std is None:
        raise CheckpointError(
            f"{source} has no scale of its series (io.series.mean and std); train it again"
        )
    if not isinstance(checkpoint.tuning.get("simulated"), bool):
        raise CheckpointError(
            f"{source} does not say whether it learned from a simulated set; train it again"
        )
    recipe = with_statistics(recipe, series.mean, series.std, series.datum, series.unmeasured)
    model = rebuild_places(checkpoint, source)
    reader = None
    if data is not None and texts is not None:
        reader = open_reader(recipe, data, texts)
    material = PlaceMaterial(recipe, reader, saved)
    if asked != ["fp32"]:
        material.require()
    facts = {} if data is None else {n: f for n, f in data.facts.items() if f != ClassFacts()}
    golden = golden_places(recipe, reader, facts, day or datetime.date.today())
    io = recipe.io
    tensors = EvidenceTensors(io.image, io.series, io.text)
    require_place(out, say)
    with publish_folder(out, MANIFEST_NAME) as folder:
        say("export to ONNX")
        exported = export_places(model, recipe, folder / "export.onnx")
        say(f"check for {target_name}")
        require_fit(exported, target)
        say("compare ONNX with torch")
        single: list[Tensors] = [tensors([place]) for place in golden.places]
        with OnnxRuntimeBackend(exported, threads=target.threads) as backend:
            gates, exact = _export_gates(recipe, torch_places(model, io), backend, single)
        require_gates(gates)
        proto = onnx.load(exported)
        exported.unlink()
        del model
        give_back_memory()
        lowered = lower(proto, recipe, target, material, say)
        done = lowered.precision.done
        say("attach the projection onto the rules")
        final = lowered.proto
        attach_policy(final, io.rules.rows, keep_scores=True)
        path = folder / MODEL_NAME
        path.write_bytes(final.SerializeToString(deterministic=True))
        report = require_fit(path, target)
        tell(MODEL_NAME, report, say)
        atol, rms, agreement = golden_atol(recipe), None, None
        # as a session will run it: what is INT8 for another kind of processor, as it is written
        optimize = is_native(target) or done == "fp32"
        with OnnxRuntimeBackend(path, threads=target.threads, optimize=optimize) as backend:
            answers = _ask(backend, tensors, golden.places, golden.limits)
            none = no_limits(io.rules.rows, len(io.classes))
            free = _ask(backend, tensors, golden.places, [none] * len(golden.places))
        gates += [*lowered.gates, *_law_gates(golden, answers)]
        require_gates(gates)
        if done != "fp32":
            # Another processor rounds elsewhere, which moves single values by a step: by no more
            # than rounding to these steps did in the first place, neither the worst logit nor all
            # together. (The worst alone would take a model all of whose logits are off by as much:
            # with engines/coastal.yaml INT8 is 0.165 from FP32 at the worst and 0.033 in root mean
            # square. Emulated Arm is 0.033 and 0.005 from x86, other kernels of one x86 0.031 and
            # 0.006; pixels off by 1e-3, which move codes all through the network, 0.1 and 0.02.)
            apart = exact.astype(np.float64) - answers.scores
            # what FP32 may differ by is the least; a bound that the recipe gives is for both
            rms = max(atol, float(np.sqrt((apart**2).mean())))
            if recipe.gates.golden is None:
                atol = max(atol, float(np.abs(apart).max()))
            agreement = GOLDEN_AGREEMENT
        side, days = io.image.tile_px, io.series.days
        shapes = ((side, side, 3), (days, len(io.series.features)), (io.text.width,))
        stored = make_golden(golden.places, golden.limits, answers, free.probabilities, shapes)
        np.savez_compressed(folder / GOLDEN_NAME, **stored.arrays())  # type: ignore[arg-type]
        if lowered.calibration is not None:
            (folder / CALIBRATION_NAME).write_text(lowered.calibration.text(), encoding="utf-8")
        written = None
        if encoder is not None:
            say("write the encoder of texts")
            written = _encoder(encoder(folder), recipe, checkpoint.text, source)
        manifest = Manifest(
            schema=MANIFEST_SCHEMA,
            name=f"{recipe.name}-{target_name}",
            title=recipe.title,
            model=MODEL_NAME,
            inputs=[io.image],
            outputs=[LogitsOutput(name=SCORES)],
            classes=io.classes,
            evidence=EvidenceDone(
                series=io.series,
                text=TextInput(name=io.text.name, width=io.text.width),
                text_encoder=written,
                rules=io.rules,
                facts=facts,
                simulated=checkpoint.tuning["simulated"],
            ),
            precision=lowered.precision,
            target=_target_done(target),
            checks=[checked(MODEL_NAME, report)],
            provenance=provenance(recipe, checkpoint, checkpoint_path),
            gates=gates,
            golden=GoldenSpec(
                count=len(golden.places),
                atol=atol,
                rms_max=rms,
                agreement_min=agreement,
                source=golden.source,
            ),
            files=hashes(folder),
        )
        seal(folder, manifest)
        del final, proto, lowered
        give_back_memory()
        say("load the bundle and answer its golden places")
        with open_place_session(folder, (), any_device=True) as session:
            session.verify()
    tell_signer(out, say)
    return BuildResult(out, manifest)


def _export_gates(
    recipe: PlaceRecipe, model: Any, backend: Backend, single: Sequence[Tensors]
) -> tuple[list[Gate], Float32]:
    """The export beside torch, and a batch beside its places; and its scores."""
    bound = recipe.gates.onnx_vs_torch.atol

    def run(tensors: Tensors) -> Float32:
        found: Float32 = backend.infer(dict(tensors))[SCORES]
        return found

    exact = compare(model, run, single)
    whole = {name: np.concatenate([item[name] for item in single]) for name in single[0]}
    answers = np.concatenate([run(item) for item in single])
    batched = compare(lambda _: answers, run, [whole])
    gates = [
        exact.gate("onnx_vs_torch", bound, "answers"),
        batched.gate("batch_vs_single", bound, "answers"),
    ]
    return gates, answers


def _law_gates(golden: GoldenPlaces, answers: Answers) -> list[Gate]:
    """The projection in the graph beside NumPy's, and whether answers obey."""
    rules, bounds, inside = (np.stack(part) for part in zip(*golden.limits, strict=True))
    want = project(answers.scores, rules, bounds, inside)
    apart = float(np.abs(answers.probabilities.astype(np.float64) - want).max())
    past = float(past_bounds(answers.probabilities, rules, bounds).max())
    count = f"{len(golden.places)} places"
    return [
        Gate(
            name="projection_vs_numpy", value=apart, bound=PROJECTED, passed=apart <= PROJECTED,
            unit="probability, largest absolute difference", detail=count,
        ),
        Gate(
            name="answers_obey", value=max(past, 0.0), bound=OBEYED, passed=past <= OBEYED,
            unit="probability past a rule, largest", detail=count,
        ),
    ]  # fmt: skip


def _ask(
    backend: Backend, tensors: EvidenceTensors, places: Sequence[Evidence], limits: Sequence[Limits]
) -> Answers:
    scores, probabilities = [], []
    for place, item in zip(places, limits, strict=True):
        rules = {name: value[None] for name, value in item._asdict().items()}
        found = backend.infer({**tensors([place]), **rules})
        scores.append(found[SCORES])
        probabilities.append(found[PROBABILITIES])
    stacked = np.concatenate(scores)
    return Answers(stacked, stacked, np.concatenate(probabilities))


def _encoder(
    done: TextEncoderDone, recipe: PlaceRecipe, text: Mapping[str, str], source: str
) -> TextEncoderDone:
    """What was written, if it is the encoder that the student learned with."""
    from edgekd.train.places.checkpoint import check_same_text

    check_same_text({"name": done.name, "sha256": done.sha256}, text, source)
    if done.width != recipe.io.text.width:
        raise InputError(
            f"the encoder of texts gives embeddings of {done.width}, and recipe '{recipe.name}' "
            f"takes {recipe.io.text.width}"
        )
    return done


def _target_done(target: Target) -> TargetDone:
    version = require("onnxruntime", "deploy", "build bundles").__version__
    return TargetDone(
        name=target.name,
        arch=target.arch,
        backend=target.backend,
        threads=target.threads,
        versions={"onnx": str(onnx.__version__), "onnxruntime": str(version)},
    )
