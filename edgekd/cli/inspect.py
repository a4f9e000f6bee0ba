"""``edgekd inspect``: what is in a bundle, checkpoint or sensor set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli._common import PathArgument, emit, percent, shared_options, table

if TYPE_CHECKING:
    from edgekd.contracts.manifest import Manifest
    from edgekd.errors import EdgeKDError
    from edgekd.runtime.bundle import Bundle

#: what ``edgekd distill`` leaves; the name of :mod:`edgekd.train.checkpoint`, which needs torch.
ENCODER_NAME = "encoder.ckpt"


@click.command("inspect")
@click.argument("path", metavar="(BUNDLE|CHECKPOINT|ENCODER|SENSOR_SET)", type=PathArgument)
@click.option(
    "--recipe",
    "recipe_path",
    type=PathArgument,
    help="Of a sensor set: show it as this recipe's sensors, split and labels make it.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of --recipe, e.g. --set data.blocks.fold=2.",
)
@shared_options
def command(
    path: Path, recipe_path: Path | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Show what a bundle, checkpoint, encoder or sensor set holds, and what it was made from.

    A bundle whose signature does not hold is shown all the same, and ends with 1.
    """
    from edgekd.contracts.manifest import MANIFEST_NAME
    from edgekd.contracts.place_set import SET_FILE
    from edgekd.contracts.sensor_scenes import sensor_set_file
    from edgekd.errors import InputError

    if not path.exists():
        raise InputError(
            f"{path} does not exist; give a bundle folder, a checkpoint file or a sensor set"
        )
    if overrides and recipe_path is None:
        raise InputError("--set changes values of a recipe; name one with --recipe")
    if sensor_set_file(path) is not None:
        payload, lines = _sensor_set(path, recipe_path, list(overrides))
        emit(payload, lines, as_json)
        return
    if recipe_path is not None:
        raise InputError(f"--recipe is about sensor sets, and {path} is none")
    refusal: EdgeKDError | None = None
    if path.is_dir() and (path / MANIFEST_NAME).is_file():
        payload, lines, refusal = _bundle(path)
    elif path.name == SET_FILE or (path / SET_FILE).is_file():
        from edgekd.cli._place_sets import validate_set

        payload = validate_set(path)
        lines = [payload["summary"], *payload["data"]]
    elif path.name == ENCODER_NAME or (path / ENCODER_NAME).is_file():
        payload, lines = _encoder(path)
    else:
        payload, lines = _checkpoint(path)
    emit(payload, lines, as_json)
    if refusal is not None:
        raise refusal


def _sensor_set(
    path: Path, recipe_path: Path | None, overrides: list[str]
) -> tuple[dict[str, Any], list[str]]:
    from edgekd.contracts.recipe import load_recipe
    from edgekd.contracts.sensor_scenes import load_set
    from edgekd.contracts.sensor_set import open_sensor_set
    from edgekd.contracts.sensor_summary import summarise, summarise_files

    spec, file = load_set(path)
    if recipe_path is None:
        payload, tables = summarise_files(spec, file)
    else:
        recipe = load_recipe(recipe_path, overrides)
        payload, tables = summarise(open_sensor_set(recipe, path, every_class=False))
    made = "SIMULATED, not measured" if spec.simulated else "measured"
    words = [f"source: {' '.join(spec.source.split())}", f"licence: {spec.licence}"]
    lines = [f"sensor set {spec.name}: {spec.title or 'no title'} ({made})", *words]
    for head, rows in tables:
        lines += ["", *table(head, rows)]
    lines += ["", *payload["report"]] if payload["report"] else []
    if recipe_path is None:
        lines.append(f"as a recipe sees it: edgekd inspect {path} --recipe RECIPE")
    return payload, lines


def _bundle(path: Path) -> tuple[dict[str, Any], list[str], EdgeKDError | None]:
    from edgekd.contracts.manifest import row
    from edgekd.runtime.bundle import open_bundle

    opened = open_bundle(path)
    opened.check_files()
    manifest = opened.manifest
    trust, said, refusal = _trust(opened)
    origin, tuning = manifest.provenance, manifest.provenance.tuning
    lines = [
        f"bundle {manifest.name}: {manifest.title}",
        f"target {manifest.target.name} ({manifest.target.arch}), backend "
        f"{manifest.target.backend}, precision {_precision(manifest)} "
        f"(asked: {', '.join(manifest.precision.asked)})",
        *_inputs(manifest),
        f"classes: {', '.join(f'{item.index} {item.name}' for item in manifest.classes)}",
        f"student {origin.student['name']} "
        f"({origin.student['parameters'] / 1e6:.2f} M parameters), "
        + (
            _made(tuning, origin.data_name)
            if manifest.evidence is None
            else f"trained on {origin.data_name}"
        ),
        *(
            f"gate {gate.name}: {'passed' if gate.passed else 'FAILED'}, {gate.value:.6g}, "
            f"{gate.sense} {gate.bound:.3g} {gate.unit}"
            for gate in manifest.gates
        ),
        *(f"tried {row(item)}" for item in manifest.precision.candidates),
        *_calibration(manifest),
        *(
            f"checked {item.file}, rules of {item.rules}: {item.compile}"
            for item in manifest.checks
        ),
        *_engine(manifest, path),
        *_system(origin.recipe, f"the recipe inside {path}"),
        f"golden: {manifest.golden.count} ({manifest.golden.source})",
        f"made {origin.created_utc} by edgekd {origin.edgekd_version}; every file is as sealed",
        *said,
    ]
    return {**manifest.plain(), "trust": trust}, lines, refusal


def _inputs(manifest: Manifest) -> list[str]:
    tiling, spec = manifest.tiling, manifest.inputs[0]
    if tiling is None:
        from edgekd.cli._answers import manifest_lines

        return manifest_lines(manifest)
    return [
        f"input {spec.name}: {spec.channels}, {spec.tile_px} px tiles, overlap "
        f"{tiling.overlap_px} px, blend {tiling.blend}"
    ]


def _system(recipe: dict[str, Any], source: str) -> list[str]:
    """Declared power of sensors and computing; nothing for a recipe without sensors."""
    from edgekd.contracts.system import declared_lines, declared_system

    declared = declared_system(recipe, source)
    return [] if declared is None else declared_lines(declared)


def _precision(manifest: Manifest) -> str:
    if manifest.precision.done is not None:
        return manifest.precision.done
    held = dict.fromkeys(item.precision for item in manifest.portable)
    return f"left to the board, of {', '.join(held)}"


def _calibration(manifest: Manifest) -> list[str]:
    done = manifest.precision.calibration
    lines = []
    if done is not None:
        how = done.range if done.percentile is None else f"{done.range} {done.percentile}"
        rescaled = f", SmoothQuant {done.smooth}" if done.smooth else ""
        lines.append(
            f"calibrated on {done.tiles} tiles (sha256 {done.sha256[:12]}…; {done.source}), ranges "
            f"by {how}{rescaled}"
        )
    if manifest.precision.kept_high:
        lines.append(f"kept above INT8: {', '.join(manifest.precision.kept_high)}")
    worst = sorted(manifest.precision.sensitivity.items(), key=lambda item: -item[1])[:5]
    if worst:
        lines.append(
            "most sensitive alone: " + ", ".join(f"{name} {value:.3g}" for name, value in worst)
        )
    return lines


def _engine(manifest: Manifest, path: Path) -> list[str]:
    if not manifest.portable:
        return []
    lines = [
        f"holds {item.file}: {item.precision} by {item.typing}, TensorRT {item.tensorrt_from} to "
        f"below {item.tensorrt_below}"
        for item in manifest.portable
    ]
    engine = manifest.engine
    if engine is None:
        return [*lines, f"no engine yet; on the board: edgekd finalize {path}"]
    from edgekd.contracts.manifest import trial_row

    where = engine.machine
    dla = "" if engine.dla_core is None else f", DLA core {engine.dla_core}"
    lines += [
        f"engine {engine.file}: {engine.precision} by {engine.typing} from {engine.source}, built "
        f"{engine.built_utc} with TensorRT {where.tensorrt} on {where.board or where.gpu} "
        f"(compute capability {where.compute_capability}, L4T {where.l4t or 'none'}{dla})",
        *(f"on the board: {trial_row(item)}" for item in engine.trials),
    ]
    if engine.portable_signer is not None:
        lines.append(f"the portable bundle was signed by key {engine.portable_signer}")
    return lines


def _trust(opened: Bundle) -> tuple[dict[str, Any], list[str], EdgeKDError | None]:
    """Who signed and what else lies there; the error if the signature or its signer is refused."""
    from edgekd.contracts.trust import SIGNER_VARIABLE, check_signature, requirements
    from edgekd.errors import EnvironmentLacksError, TrustError
    from edgekd.runtime.bundle import read_signature

    required = requirements()
    trust: dict[str, Any] = {"signature": "none", "key_id": None, "accepted": None, "why": None}
    text = "nobody signed it"
    refusal: EdgeKDError | None = None
    try:
        trust["signature"] = "not valid"
        signature = read_signature(opened.path)
        if signature is None:
            trust["signature"] = "none"
        else:
            trust["key_id"] = signature.key.key_id
            check_signature(opened.path, opened.content, signature)
            trust["signature"] = "valid"
            text = f"valid, by key {signature.key}"
        if required:
            trust["accepted"] = False
            check_signature(opened.path, opened.content, signature, required)
            trust["accepted"] = True
            text += f", which {SIGNER_VARIABLE} accepts"
        elif signature is not None:
            text += f" (whose that is, says: edgekd verify {opened.path} --signer PUBLIC_KEY)"
    except TrustError as err:
        refusal, trust["why"] = err, str(err)
        text = "NOT VALID" if trust["signature"] == "not valid" else f"{text}; NOT ACCEPTED"
    except EnvironmentLacksError as err:
        trust["signature"], trust["why"] = "not checked", str(err)
        text = f"by key {trust['key_id']}, not checked here: {err}"
    extra = opened.extra_files()
    lines = [f"signature: {text}"]
    if extra:
        lines.append(f"not named by the manifest, so never used: {', '.join(extra)}")
    return {**trust, "extra_files": extra}, lines, refusal


def _options(student: dict[str, Any]) -> str:
    chosen = (f"{key} {value}" for key, value in student["options"].items() if value is not None)
    return ", ".join(chosen)


def _encoder(path: Path) -> tuple[dict[str, Any], list[str]]:
    from edgekd.contracts.optional import require

    require("torch", "train", "read encoders")
    from edgekd.train.checkpoint import load_encoder

    encoder = load_encoder(path)
    student, done = encoder.student, encoder.distilled
    payload = {
        "student": student,
        "data": encoder.data,
        "distilled": done,
        "recipe": encoder.recipe,
    }
    teachers = [f"{t['name']} {t['variant']} ({t['weights']})" for t in done["teachers"]]
    losses = ", ".join(f"{name} {value:.4f}" for name, value in done["losses"].items())
    return payload, [
        f"encoder of recipe '{encoder.recipe['name']}'",
        f"student {student['name']} (options {_options(student)})",
        f"{done['method']}, {done['steps']} steps, {done['crops']:,} crops from "
        f"{encoder.data['images']} images",
        f"teachers: {', '.join(teachers) or 'none'}",
        f"last losses: {losses}",
    ]


def _teacher(path: Path) -> tuple[dict[str, Any], list[str]]:
    from edgekd.train.teachers._saved import load_teacher

    saved = load_teacher(path)
    teacher, done = saved.teacher, saved.distilled
    payload = {
        "teacher": teacher,
        "data": saved.data,
        "distilled": done,
        "recipe": saved.recipe,
    }
    sensors = (
        f"{name} ({item['channels']} {'band' if item['channels'] == 1 else 'bands'})"
        for name, item in teacher["sensors"].items()
    )
    return payload, [
        f"teacher of recipe '{saved.recipe['name']}'",
        f"{teacher['name']} {teacher['variant']} ({teacher['parameters'] / 1e6:.2f} M parameters) "
        f"sees {', '.join(sensors)}",
        _made(done, saved.data["name"]),
        *_system(saved.recipe, f"the recipe inside {path}"),
    ]


def _made(tuning: dict[str, Any], data: str) -> str:
    """How a student came about: tuned, distilled across sensors, or adapted to a site."""
    if "adapted_from_sha256" in tuning:
        said = f"adapted to {tuning['site']}: {tuning['change']}"
        if tuning["measured"] is None:
            return f"{said}; not measured"
        before, after = (
            percent(tuning["measured"][when]["balanced_accuracy"]) for when in ("before", "after")
        )
        return f"{said}; balanced accuracy on held-out pixels {before} before, {after} after"
    if tuning.get("method") == "cross_modal":
        by = "labels alone" if tuning["teacher_sha256"] is None else "a teacher of other sensors"
        said = f"distilled on {data}, {tuning['steps']} steps, taught by {by}"
        if "best_step" not in tuning:
            return f"{said}; weights of the last step"
        best = percent(tuning["best_val_balanced_accuracy"])
        return f"{said}; validation balanced accuracy {best} at step {tuning['best_step']}"
    return (
        f"tuned on {data}, {tuning.get('steps_done')} steps, validation mIoU "
        f"{percent(tuning.get('best_val_miou'))} at step {tuning.get('best_step')}"
    )


def _checkpoint(path: Path) -> tuple[dict[str, Any], list[str]]:
    from edgekd.contracts.optional import require

    require("torch", "train", "read checkpoints")
    from edgekd.train.checkpoint import BEST_NAME, in_folder, kind_of, load_checkpoint
    from edgekd.train.teachers._saved import teacher_file

    if kind_of(teacher_file(path)) == "edgekd_teacher":
        return _teacher(path)
    if kind_of(in_folder(path, BEST_NAME)) == "edgekd_places":
        from edgekd.cli._answers import checkpoint_lines

        return checkpoint_lines(path)
    checkpoint = load_checkpoint(path)
    student, tuning = checkpoint.student, checkpoint.tuning
    payload = {
        "student": student,
        "data": checkpoint.data,
        "tuning": tuning,
        "resumable": bool(checkpoint.state),
        "recipe": checkpoint.recipe,
    }
    return payload, [
        f"checkpoint of recipe '{checkpoint.recipe['name']}'",
        f"student {student['name']} ({student['parameters'] / 1e6:.2f} M parameters, options "
        f"{_options(student)})",
        _made(tuning, checkpoint.data["name"]),
        *_system(checkpoint.recipe, f"the recipe inside {path}"),
        "can be resumed" if checkpoint.state else "weights only",
    ]
