"""``edgekd ls``: what can be named in a recipe or on the command line."""

from __future__ import annotations

from typing import Any

import click

from edgekd.cli._common import emit, note, shared_options, table

_KINDS = (
    "students", "heads", "teachers", "methods", "targets", "recipes", "sensors", "backends",
    "builders", "keys",
)  # fmt: skip
#: kinds that recipes of places have some of their own of
_OF_PLACES = {
    "students": "edgekd.train.places.students", "teachers": "edgekd.train.places.teachers",
}  # fmt: skip
#: sides that every student takes
_TILE_MULTIPLE_PX = 256


@click.command("ls")
@click.argument("kind", type=click.Choice(_KINDS), required=False)
@click.option("--tile", "tile_px", type=int, default=1024, show_default=True,
              help="Tile side in px for the FLOPs of students.")  # fmt: skip
@click.option("--under", default="", metavar="KEY", help="Of keys: only these, e.g. distill.mask.")
@click.option("--places", "whose", flag_value="places",
              help="Of keys: those of recipes of kind: places.")  # fmt: skip
@click.option("--rules", "whose", flag_value="rules", help="Of keys: those of a file of rules.")
@click.option("--place-set", "whose", flag_value="set",
              help="Of keys: those of places.yaml, a set of places.")  # fmt: skip
@shared_options
def command(kind: str | None, tile_px: int, under: str, whose: str | None, as_json: bool) -> None:
    """List students (with parameters and FLOPs), teachers, targets, recipes, the keys of recipes,
    rules and sets of places, and more."""
    if (under or whose) and kind != "keys":
        raise click.UsageError(
            "--under, --places, --rules and --place-set belong to: edgekd ls keys"
        )
    if kind == "keys":
        found = _keys(under, whose)
        lines = [
            f"{item['key']}{' (' + item['default'] + ')' if item['default'] else ''}: "
            f"{item['meaning']}"
            for item in found
        ]
        emit({"keys": found}, lines, as_json)
        return
    if kind == "students":
        if tile_px < 1 or tile_px % _TILE_MULTIPLE_PX:
            raise click.BadParameter(
                f"expected a multiple of {_TILE_MULTIPLE_PX} px (patch of 16 px x window of 16 "
                f"patches), received {tile_px}",
                param_hint="--tile",
            )
        students = _students(tile_px)
        rows = [
            [
                " ".join(filter(None, (item["name"], item["variant"]))),
                item["attention"] or "-",
                item["head"] or "-",
                f"{item['parameters'] / 1e6:.2f} M",
                f"{item['flops'] / 1e9:.1f}",
                f"{item['flops_attention_products'] / 1e9:.1f}",
            ]
            for item in students
        ]
        head = ["student", "attention", "head", "parameters", "GFLOPs", "of which QK^T and AV"]
        places = _place_students()
        payload = {
            "tile_px": tile_px, "flops_per_multiply_add": 2, "students": students,
            "students_of_places": places,
        }  # fmt: skip
        emit(payload, [*table(head, rows), f"per {tile_px} x {tile_px} px tile, 2 FLOPs per "
             "multiply-add, attention products counted", *(
                 f"of places: {item['name']}" + (
                     f", {item['parameters'] / 1e6:.2f} M parameters in {item['recipe']}"
                     + (f", the picture's branch {item['image_macs'] / 1e9:.2f} GMAC at "
                        f"{item['image_px']} px" if item["image_macs"] else "")
                     if item["recipe"] else ", in no recipe of engines/"
                 ) for item in places
             )], as_json)  # fmt: skip
        return
    if kind == "targets":
        _emit_targets(as_json)
        return
    named = [name for name in _KINDS if name != "keys"]
    listing = {name: _names(name) for name in named if kind in (None, name)}
    lines = [f"{name}: {', '.join(values) or '(none)'}" for name, values in listing.items()]
    if kind is not None:
        lines = listing[kind]
    else:
        lines.append("what may stand in a recipe: edgekd ls keys; in a file of rules: edgekd ls "
                     "keys --rules")  # fmt: skip
    emit(listing, lines, as_json)
    if kind == "teachers" and not as_json:
        from edgekd.contracts import registry

        only = ", ".join(registry.module_names(_OF_PLACES["teachers"]))
        note(f"note: {only}: of series and texts, for recipes of kind: places")


def _keys(under: str, whose: str | None) -> list[dict[str, str]]:
    from edgekd.contracts.describe import keys_of
    from edgekd.contracts.place_recipe import PlaceRecipe
    from edgekd.contracts.place_set import PlaceSetFile
    from edgekd.contracts.policy import Policy
    from edgekd.contracts.recipe import Recipe
    from edgekd.contracts.registry import nearest
    from edgekd.contracts.schema import Document

    kinds: dict[str | None, tuple[str, type[Document]]] = {
        None: ("a recipe", Recipe),
        "places": ("a recipe of places", PlaceRecipe),
        "rules": ("a file of rules", Policy),
        "set": ("places.yaml", PlaceSetFile),
    }
    called, document = kinds[whose]
    found = [key._asdict() for key in keys_of(document)]
    found = [{"key": key.pop("name"), **key} for key in found]
    valid = [item["key"].replace("[]", "") for item in found]
    chosen = [
        item
        for item, name in zip(found, valid, strict=True)
        if not under or name == under or name.startswith(f"{under}.")
    ]
    if not chosen:
        flags = {"places": "--places", "rules": "--rules", "set": "--place-set"}
        others = [
            f"edgekd ls keys {flags[name]}"
            for name, (_, kind) in kinds.items()
            if name and any(key.name.replace("[]", "") == under for key in keys_of(kind))
        ]
        hint = f" (it is one of: {', '.join(others)})" if others else nearest(under, valid)
        raise click.BadParameter(f"{called} has no key '{under}'{hint}", param_hint="--under")
    return chosen


def _emit_targets(as_json: bool) -> None:
    """Names and everything that is declared of each."""
    from edgekd.contracts.target import load_target, target_names

    targets = [load_target(name) for name in target_names()]
    rows = [
        [
            item.name,
            f"TensorRT {item.tensorrt}" if item.tensorrt else f"ONNX Runtime {item.onnxruntime}",
            "+".join(item.precisions),
            f"{item.memory_mib} MiB" if item.memory_mib else "-",
        ]
        for item in targets
    ]
    lines = table(["target", "library", "precisions", "memory"], rows)
    for item in targets:
        facts = [item.board]
        if item.jetpack:
            modes = ", ".join(f"{mode.id} {mode.name}" for mode in item.power_modes)
            facts.append(
                f"JetPack {item.jetpack} (L4T {item.l4t}), compute capability "
                f"{item.compute_capability}, power modes {modes}"
            )
        elif item.cpu:
            dot = "with" if item.cpu.int8_dot_product else "without"
            bits = item.cpu.int8_weight_bits
            facts.append(f"{item.cpu.model}, {dot} 8-bit dot products, INT8 weights of {bits} bits")
        lines.append(f"{item.name}: {'; '.join(facts)}")
    details = {item.name: item.model_dump(mode="json", by_alias=True) for item in targets}
    emit({"targets": list(details), "details": details}, lines, as_json)


def _names(kind: str) -> list[str]:
    from edgekd.contracts import registry

    packages = {
        "students": "edgekd.train.students",
        "heads": "edgekd.train.heads",
        "teachers": "edgekd.train.teachers",
        "methods": "edgekd.train.distill.methods",
        "sensors": "edgekd.telemetry.sensors",
        "backends": "edgekd.runtime.backends",
        "builders": "edgekd.deploy.builders",
    }
    if kind == "targets":
        return registry.yaml_names(registry.engines_root() / "targets")
    if kind == "recipes":
        return registry.yaml_names(registry.engines_root())
    found = registry.module_names(packages[kind])
    more = registry.module_names(_OF_PLACES[kind]) if kind in _OF_PLACES else []
    return sorted({*found, *more})


def _students(tile_px: int) -> list[dict[str, Any]]:
    from edgekd.contracts import registry
    from edgekd.contracts.optional import require

    require("torch", "train", "count the FLOPs of students")
    from edgekd.train.flops import variants

    listing: list[dict[str, Any]] = []
    for name in registry.module_names("edgekd.train.students"):
        listing.extend(variants(name, tile_px))
    return listing


def _place_students() -> list[dict[str, Any]]:
    """Students of places, each with its size in the recipes that use it."""
    from edgekd.contracts import registry
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
    from edgekd.train.flops import count
    from edgekd.train.places.checkpoint import build_student

    used: dict[str, list[PlaceRecipe]] = {}
    root = registry.engines_root()
    for name in registry.yaml_names(root):
        recipe = load_any_recipe(root / f"{name}.yaml")
        if isinstance(recipe, PlaceRecipe):
            used.setdefault(recipe.student.name, []).append(recipe)
    listing: list[dict[str, Any]] = []
    for name in registry.module_names("edgekd.train.places.students"):
        for recipe in used.get(name, []):
            model = build_student(name, recipe.io, pretrained=False)
            side_px, branch = recipe.io.image.tile_px, getattr(model, "encoder", None)
            listing.append({
                "name": name, "recipe": recipe.name,
                "parameters": sum(item.numel() for item in model.parameters()),
                "image_px": side_px,
                "image_macs": None if branch is None else count(branch, side_px).flops // 2,
            })  # fmt: skip
        if name not in used:
            listing.append({"name": name, "recipe": None, "parameters": None, "image_px": None,
                            "image_macs": None})  # fmt: skip
    return listing
