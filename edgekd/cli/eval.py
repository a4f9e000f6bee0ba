"""``edgekd eval``: accuracy of a checkpoint or a bundle on labelled data."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from edgekd.cli._common import (
    PathArgument,
    day_option,
    embeddings_option,
    emit,
    note,
    percent,
    progress_bar,
    shared_options,
    signer_option,
    table,
)


@click.command("eval")
@click.argument("model", metavar="(CHECKPOINT|BUNDLE)", type=PathArgument)
@click.option("--data", type=PathArgument, required=True,
              help="Labelled set: a folder, or the YAML that describes one.")  # fmt: skip
@click.option("--split", default="test", show_default=True, help="train, val, test or all.")
@click.option("--any-device", is_flag=True, help="Evaluate a bundle of another architecture.")
@click.option("-o", "--output", type=PathArgument, help="Also write the figures to this JSON file.")
@embeddings_option
@day_option
@signer_option
@shared_options
def command(
    model: Path,
    data: Path,
    split: str,
    any_device: bool,
    signer: list[Path] | None,
    output: Path | None,
    embeddings: Path | None,
    day: str | None,
    as_json: bool,
) -> None:
    """Measure mIoU, overall accuracy, mean F1 and per-class figures over a whole split.

    Of what answers for places: accuracy, calibration, and whether answers obey the set's rules,
    with all evidence and without each kind.
    """
    from edgekd.contracts.artifacts import canonical_json, publish_file
    from edgekd.contracts.manifest import MANIFEST_NAME
    from edgekd.errors import InputError

    if not model.exists():
        raise InputError(f"{model} does not exist; give a checkpoint file or a bundle folder")
    is_bundle = (model / MANIFEST_NAME).is_file()
    if signer is not None and not is_bundle:
        raise InputError(
            f"--signer is about bundles, and {model} is none (it has no {MANIFEST_NAME}); give the "
            "bundle, or leave --signer out to evaluate a checkpoint"
        )
    with contextlib.ExitStack() as stack:
        # opened first: a place that cannot be written is found before the work, not after it
        part = None if output is None else stack.enter_context(publish_file(output))
        if _is_of_places(model, is_bundle, signer):
            result = _places(model, data, split, any_device, is_bundle, signer, embeddings, day)
        elif embeddings is not None or day is not None:
            raise InputError(f"--embeddings and --day are about places, and {model} makes maps")
        elif is_bundle:
            result = _bundle(model, data, split, any_device, signer)
        else:
            result = _checkpoint(model, data, split)
        if part is not None:
            part.write_text(canonical_json(result), encoding="utf-8")
    if "evidence" in result:
        from edgekd.cli._answers import figure_lines

        emit(result, figure_lines(result), as_json)
        if not as_json and not is_bundle:
            note(f"next: edgekd build RECIPE --target rpi5 --checkpoint {model}")
        return
    majority = result["majority_class"]
    rows = [
        [
            item["name"],
            percent(item["iou"]),
            percent(item["f1"]),
            f"{item['label_pixels']:,}",
        ]
        for item in result["per_class"]
    ]
    emit(
        result,
        [
            *table(["class", "IoU", "F1", "labelled px"], rows),
            f"mIoU {percent(result['miou'])}, overall accuracy "
            f"{percent(result['overall_accuracy'])}, balanced accuracy "
            f"{percent(result['balanced_accuracy'])}, mean F1 {percent(result['mean_f1'])}",
            f"always '{majority['name']}': mIoU {percent(majority['miou'])}, overall accuracy "
            f"{percent(majority['overall_accuracy'])}, mean F1 {percent(majority['mean_f1'])}",
            f"{result['samples']} samples of {result['data']}, split {split}, "
            f"{result['pixels']:,} px, {result['seconds']:.1f} s",
            *(["SIMULATED: the set was computed, not measured"] if result["simulated"] else []),
            *(
                f"without {sensor}, which this teacher sees: {', '.join(scenes[:4])}"
                + (f" and {len(scenes) - 4} more" if scenes[4:] else "")
                + f", {len(scenes)} of {result['samples']} scenes"
                for sensor, scenes in result.get("lacking", {}).items()
            ),
        ],
        as_json,
    )
    if not as_json and result["what"] == "checkpoint":
        note(f"next: edgekd build RECIPE --target x86-cpu --checkpoint {model}")


def _is_of_places(model: Path, is_bundle: bool, signer: list[Path] | None) -> bool:
    from edgekd.contracts.optional import require

    if is_bundle:
        from edgekd.cli._answers import answers_for_places

        return answers_for_places(model, signer)
    require("torch", "train", "evaluate checkpoints")
    from edgekd.train.checkpoint import BEST_NAME, in_folder, kind_of

    return kind_of(in_folder(model, BEST_NAME)) == "edgekd_places"


def _places(
    model: Path, data: Path, split: str, any_device: bool, is_bundle: bool,
    signer: list[Path] | None, embeddings: Path | None, day: str | None,
) -> dict[str, Any]:  # fmt: skip
    import datetime

    from edgekd.cli import _answers

    when = _answers.day_of(day) or datetime.date.today()
    if is_bundle:
        return _answers.evaluate_bundle(model, data, split, any_device, signer, embeddings, when)
    return _answers.evaluate_checkpoint(model, data, split, embeddings, when)


def _bundle(
    model: Path, data: Path, split: str, any_device: bool, signer: list[Path] | None
) -> dict[str, Any]:
    from edgekd.contracts.recipe import parse_recipe
    from edgekd.contracts.sensor_labelled import open_data
    from edgekd.runtime.evaluate import evaluate_bundle
    from edgekd.runtime.session import load

    with (
        load(model, any_device=any_device, signer=signer) as session,
        progress_bar("eval", "image") as update,
    ):
        recipe = parse_recipe(session.manifest.provenance.recipe, f"the recipe inside {model}")
        labelled = open_data(recipe, data, training=False)
        return evaluate_bundle(session, labelled, split, update)


def _checkpoint(model: Path, data: Path, split: str) -> dict[str, Any]:
    from edgekd.contracts.artifacts import sha256_file
    from edgekd.contracts.optional import require
    from edgekd.contracts.sensor_labelled import open_data

    require("torch", "train", "evaluate checkpoints")
    from edgekd.train.checkpoint import BEST_NAME, kind_of, load_checkpoint, rebuild
    from edgekd.train.evaluate import evaluate_model
    from edgekd.train.teachers._saved import teacher_file

    if kind_of(teacher_file(model)) == "edgekd_teacher":
        return _teacher(teacher_file(model), data, split)
    checkpoint = load_checkpoint(model)
    recipe = checkpoint.parsed_recipe(str(model))
    network = rebuild(checkpoint, str(model))
    labelled = open_data(recipe, data, training=False)
    with progress_bar("eval", "image") as update:
        result = evaluate_model(network, labelled, split, recipe.io, recipe.tiling, update)
    file = model / BEST_NAME if model.is_dir() else model
    return {
        "model": f"{recipe.name} ({checkpoint.student['name']})",
        "model_sha256": sha256_file(file),
        "tuning": checkpoint.tuning,
        **result,
    }


def _teacher(model: Path, data: Path, split: str) -> dict[str, Any]:
    """A teacher of several sensors on the sensor set that it takes them from."""
    from edgekd.contracts.artifacts import sha256_file
    from edgekd.contracts.recipe import parse_recipe
    from edgekd.contracts.sensor_labelled import by_own_split
    from edgekd.contracts.sensor_scenes import sensor_set_file
    from edgekd.contracts.sensor_set import open_sensor_set
    from edgekd.errors import InputError
    from edgekd.train.evaluate import evaluate_teacher
    from edgekd.train.teachers._saved import check_teacher, load_teacher, rebuild_teacher

    saved = load_teacher(model)
    recipe = parse_recipe(saved.recipe, f"the recipe inside {model}")
    if split not in ("train", "val", "test"):
        raise InputError(f"split '{split}' does not exist (valid: train, val, test)")
    file = sensor_set_file(data)
    recipe = recipe if file is None else by_own_split(recipe, file)
    found = open_sensor_set(recipe, data, every_class=False)
    check_teacher(saved, recipe, found, model)
    teacher = rebuild_teacher(saved, str(model))
    with progress_bar("eval", "scene") as update:
        result = evaluate_teacher(teacher, found, split, update)  # type: ignore[arg-type]
    return {
        "model": f"{recipe.name} ({saved.teacher['name']}: {', '.join(saved.teacher['sensors'])})",
        "model_sha256": sha256_file(model),
        "tuning": saved.distilled,
        **result,
    }
