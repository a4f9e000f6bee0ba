"""``edgekd validate``: recipes, bundles, sets and rules, checked before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli._common import (
    PathArgument,
    day_option,
    emit,
    note,
    shared_options,
    signer_option,
)

if TYPE_CHECKING:
    from edgekd.contracts.recipe import Recipe


@click.command("validate")
@click.argument("paths", metavar="RECIPE|BUNDLE|SET|RULES|COEFFICIENTS...", nargs=-1, required=True,
                type=PathArgument)  # fmt: skip
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a recipe's value, e.g. --set finetune.steps=100.")  # fmt: skip
@click.option("--any-device", is_flag=True, help="Accept bundles of another architecture.")
@click.option(
    "--against",
    type=PathArgument,
    metavar="BUNDLE|SET|RECIPE",
    help="Of rules: whose classes they are held against, as edgekd serve would.",
)
@day_option
@signer_option
@shared_options
def command(
    paths: tuple[Path, ...],
    overrides: tuple[str, ...],
    any_device: bool,
    against: Path | None,
    day: str | None,
    signer: list[Path] | None,
    as_json: bool,
) -> int:
    """Check recipes and coefficients (every fault at once) or bundles (hashes and golden outputs).

    Of a recipe with sensors its sensor set is opened as well, where it is on this machine. Of a
    sensor set alone its description is checked, and that its files are there; a set of places is
    read whole. Rules are told in words, zone by zone, for the day and every later one on which
    others begin; with --against they are held against a product's classes, as edgekd serve does.
    """
    from edgekd.contracts.place_set import SET_FILE
    from edgekd.contracts.sensor_scenes import sensor_set_file
    from edgekd.errors import EdgeKDError, InputError

    if (against or day) and not any(path.is_file() and _is_rules(path) for path in paths):
        raise InputError("--against and --day are about rules, and none are validated here")
    folders = [path for path in (*paths, against) if path is not None and path.is_dir()]
    if signer is not None and not folders:
        raise InputError("--signer is about bundles, and none is among what is validated here")
    results: list[dict[str, Any]] = []
    worst = 0
    for path in paths:
        try:
            if sensor_set_file(path) is not None:
                detail = _sensor_set(path)
            elif path.name == SET_FILE or (path / SET_FILE).is_file():
                from edgekd.cli._place_sets import validate_set

                detail = validate_set(path)
            elif path.is_dir():
                detail = _bundle(path, any_device, signer)
            elif _is_rules(path):
                detail = _rules(path, against, day, signer, any_device)
            elif _is_coefficients(path):
                detail = _coefficients(path)
            else:
                detail = _recipe(path, list(overrides))
            results.append({"path": str(path), "valid": True, **detail})
        except EdgeKDError as err:
            worst = max(worst, err.exit_code)
            text = " ".join(str(err).split())
            results.append({"path": str(path), "valid": False, "error": text})
            if len(paths) == 1:
                raise
            note(f"error: {text}")
    lines = []
    for item in results:
        said = item["summary"] if item["valid"] else f"no: {item['error']}"
        lines += [f"{item['path']}: {said}", *(f"  {line}" for line in item.get("data", []))]
    emit({"results": results}, lines, as_json)
    return worst


def _is_rules(path: Path) -> bool:
    from edgekd.cli._rules import is_rules
    from edgekd.contracts.schema import read_yaml
    from edgekd.errors import RecipeError

    try:
        return is_rules(read_yaml(path)[0])
    except RecipeError:
        if path.suffix != ".json":
            raise
        return True  # its tabs are no YAML, and nothing else here is JSON


def _rules(
    path: Path, against: Path | None, day: str | None, signer: list[Path] | None, any_device: bool
) -> dict[str, Any]:
    import datetime

    from edgekd.cli._answers import day_of
    from edgekd.cli._rules import against_of, validate

    product = None if against is None else against_of(against, signer, any_device)
    return validate(path, product, day_of(day) or datetime.date.today())


def _is_coefficients(path: Path) -> bool:
    from edgekd.contracts.schema import read_yaml

    return "coefficients" in read_yaml(path)[0]


def _sensor_set(path: Path) -> dict[str, Any]:
    from edgekd.contracts.sensor_scenes import load_set, require_files

    spec, file = load_set(path)
    require_files(spec, file)
    sensors = sorted({name for scene in spec.scenes for name in scene.files})
    simulated = ", SIMULATED" if spec.simulated else ""
    return {
        "kind": "sensor set",
        "summary": f"valid description of sensor set '{spec.name}'{simulated}: "
        f"{_many(len(spec.scenes), 'scene')}, sensors {', '.join(sensors)}, "
        f"{len(spec.classes)} classes; its files are there",
        "data": [
            "what is in them is checked with the recipe that declares the sensors: "
            f"edgekd validate RECIPE --set data.root={path}"
        ],
    }


def _coefficients(path: Path) -> dict[str, Any]:
    from edgekd.contracts.coefficients import load_coefficients

    found = load_coefficients(path)
    unknown = [name for name, item in found.coefficients.items() if item.sd is None]
    said = f", uncertainty unknown of {', '.join(unknown)}" if unknown else ""
    return {
        "kind": "coefficients",
        "unit": found.unit,
        "summary": f"valid coefficients in {found.unit}: {', '.join(found.coefficients)}{said}",
    }


def _recipe(path: Path, overrides: list[str]) -> dict[str, Any]:
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
    from edgekd.contracts.recipe import preset_names
    from edgekd.contracts.system import declared_summary, declared_system

    recipe = load_any_recipe(path, overrides)
    presets = preset_names(path)
    for name in presets:
        load_any_recipe(path, [*overrides, f"preset={name}"])
    if isinstance(recipe, PlaceRecipe):
        from edgekd.cli._answers import validate_recipe

        return validate_recipe(recipe, path, presets)
    also = f", presets {', '.join(presets)}" if presets else ""
    declared = declared_system(recipe.plain(), str(path))
    power = "" if declared is None else f", {declared_summary(declared)}"
    result = {
        "kind": "recipe",
        "system": None if declared is None else declared.model_dump(mode="json"),
        "summary": f"valid recipe '{recipe.name}', student {recipe.student.name}, "
        f"{len(recipe.io.classes)} classes, targets {', '.join(recipe.targets)}{also}{power}",
    }
    return {**result, "data": _sensors(recipe, path)} if recipe.sensors else result


def _sensors(recipe: Recipe, path: Path) -> list[str]:
    """The sensors of a recipe, and what its set has of them.

    Raises:
        EdgeKDError: the set is on this machine and does not fit the recipe.
    """
    from edgekd.contracts.recipe import data_root
    from edgekd.contracts.schema import resolve_path
    from edgekd.contracts.sensor_labelled import is_here
    from edgekd.contracts.sensor_scenes import sensor_set_file
    from edgekd.contracts.sensor_set import open_sensor_set
    from edgekd.errors import EnvironmentLacksError

    lines = []
    for name, spec in recipe.sensors.items():
        source = "" if spec.derive is None else f", from {spec.derive.source}"
        channels = _many(spec.channels, "channel")
        lines.append(f"sensor {name}: {spec.kind}, {channels}, {spec.gsd_m:g} m{source}")
    for number, entry in enumerate(recipe.teachers):
        place = resolve_path(entry.weights, path.resolve().parent)
        if entry.weights != "train" and not place.exists():
            lines.append(f"teachers[{number}].weights: {place} is not on this machine")
    root = data_root(recipe, path)
    if not is_here(root):
        return [*lines, f"data: {root} is not on this machine, so it was not looked at"]
    if sensor_set_file(root) is None:
        return [*lines, f"data: {root} is no sensor set, so the sensors were not looked at"]
    try:
        found = open_sensor_set(recipe, root)
    except EnvironmentLacksError as err:
        return [*lines, f"data: not looked at: {err}"]
    counts = found.label_counts()
    labels = [f"{part} {sum(numbers):,}" for part, numbers in counts.items()]
    scenes = _many(len(found.scene_ids), "scene")
    lines.append(f"data: {found.name}, {scenes}, labels: {', '.join(labels)} px")
    return [*lines, *found.report]


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _bundle(path: Path, any_device: bool, signer: list[Path] | None) -> dict[str, Any]:
    from edgekd.contracts.trust import requirements
    from edgekd.errors import BundleError, TrustError
    from edgekd.runtime.bundle import open_bundle
    from edgekd.runtime.places import PlaceSession, open_places
    from edgekd.runtime.session import load

    opened = open_bundle(path, requirements(signer))
    opened.check_files()
    places = opened.manifest.evidence is not None
    try:
        session = (
            open_places(path, signer, any_device)
            if places
            else load(path, any_device=any_device, signer=signer)
        )
    except TrustError:
        raise
    except BundleError as err:
        raise type(err)(
            f"{path} is whole (its {len(opened.manifest.files)} files are as sealed) and was not "
            f"run, so nothing is said about its answers: {err}"
        ) from err
    with session:
        by = "" if session.signer is None else f", signed by key {session.signer}"
        if isinstance(session, PlaceSession):
            session.verify()
            error = session.golden_error()
        else:
            error = session.verify()
        bound = session.manifest.golden.atol
        files = len(session.manifest.files)
    return {
        "kind": "bundle",
        "signer": session.signer,
        "golden_max_abs_logits": error,
        "golden_atol_logits": bound,
        "summary": f"valid bundle, {files} files as sealed, golden outputs within {error:.2g} "
        f"logits (allowed {bound:.2g})" + (", answers obey their rules" if places else "") + by,
    }
