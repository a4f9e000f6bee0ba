"""Every key of a recipe is explained, from the schema itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edgekd.cli.main import main
from edgekd.contracts.describe import Key, keys_of
from edgekd.contracts.place_recipe import PlaceRecipe
from edgekd.contracts.recipe import Recipe
from tests.conftest import ROOT

KEYS = list(keys_of(Recipe))
PLACE_KEYS = list(keys_of(PlaceRecipe))


@pytest.mark.parametrize(("keys", "least"), [(KEYS, 120), (PLACE_KEYS, 80)])
def test_every_key_has_a_meaning_and_stands_once(keys: list[Key], least: int) -> None:
    assert len(keys) > least
    assert [key.name for key in keys if not key.meaning] == []
    assert len({key.name for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("name", "default", "part"),
    [
        ("distill.mask.kind", "lattice", "one patch visible in every cell"),
        ("teachers[].pairs", "none", "teacher block or stage, student block"),
        ("distill.stages.early", "[0.2, 0.4, 0.4]", "three weights of each stage"),
        ("distill.mae.heads", "8", "transformer blocks"),
        ("finetune.augment.tint", "0.0", "each channel"),
        ("finetune.augment.scale", "[1.0, 1.0]", "magnification"),
        ("schema", "required", "of the recipe: 1"),
        ("io.classes[].color", "required", "palette"),
        ("sensors.*", "", "where data.root is a sensor set"),
        ("sensors.*.gsd_m", "required", "ground sampling distance"),
        ("sensors.*.derive.camera", "none", "standard observer"),
        ("data.blocks.buffer_px", "required", "neither train nor validate"),
    ],
)
def test_some_keys(name: str, default: str, part: str) -> None:
    key = next(key for key in KEYS if key.name == name)
    assert key.default == default and part in key.meaning


def written(value: object, prefix: str = "") -> set[str]:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return set().union(*(written(item, f"{prefix}[]") for item in value))
    if not isinstance(value, dict):
        return {prefix}
    dot = f"{prefix}." if prefix else ""
    own = f"{prefix}.*" in {key.name for key in KEYS}
    return set().union(*(written(item, dot + ("*" if own else key)) for key, item in value.items()))


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*.yaml")), ids=lambda p: p.stem)
def test_what_recipes_write_is_listed(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    values.pop("presets", None)
    keys = PLACE_KEYS if values.get("kind") == "places" else KEYS
    names = {key.name for key in keys}
    # a stage's are those of distill.cross_modal, checked when a recipe is read
    lacking = {name for name in written(values) if name not in names}
    assert {name for name in lacking if "stage.cross_modal." not in name} == set()


def test_keys_of_places_are_listed_by_their_own_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "keys", "--places", "--under", "distill.missing"]) == 0
    out = capfd.readouterr().out
    assert "distill.missing.image (0.1): part that loses it" in out and "mask" not in out
    assert main(["ls", "targets", "--places"]) == 2
    assert "--under, --places, --rules and --place-set belong to" in capfd.readouterr().err
