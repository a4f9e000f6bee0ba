"""Session-wide fixtures of the line: checkpoints, their ONNX and bundles, each made once.

An export takes 5 to 15 s, so every test that only needs one takes it from here.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.labelled import lite0_values, make_set, recipe_values, write_recipe

if TYPE_CHECKING:
    from edgekd.deploy.export.onnx_export import OnnxModel


def variants() -> dict[str, dict[str, Any]]:
    """Recipes by name: windowed ViT with linear head, global ViT with UPerNet, Lite0."""
    small = recipe_values()
    # four attention windows: with one alone a wrong partition would not be seen
    small["io"]["inputs"][0]["shape"] = ["N", 3, 512, 512]
    return {
        "small": small,
        "levels": recipe_values(
            name="levels", student={"name": "vit_nano", "attention": "global", "head": "upernet"}
        ),
        "conv": lite0_values(),
    }


@dataclass(frozen=True)
class Line:
    """Where the artefacts of the line lie.

    Attributes:
        data: labelled set (images 160 x 176 px).
        recipes, checkpoints: by the names of :func:`variants`.
    """

    root: Path
    data: Path
    recipes: dict[str, Path]
    checkpoints: dict[str, Path]


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """Data, recipes and untrained checkpoints; not to be written to."""
    from tests.helpers.checkpoints import make_checkpoint

    root = tmp_path_factory.mktemp("line")
    data = make_set(root / "data")
    recipes = {name: write_recipe(root, values) for name, values in variants().items()}
    checkpoints = {
        name: make_checkpoint(root / f"{name}.ckpt", values) for name, values in variants().items()
    }
    return Line(root, data, recipes, checkpoints)


@pytest.fixture(scope="session")
def exports(line: Line) -> dict[str, OnnxModel]:
    """What :func:`export_onnx` wrote for every variant."""
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.export.onnx_export import export_onnx
    from edgekd.train.checkpoint import load_checkpoint, rebuild

    return {
        name: export_onnx(
            rebuild(load_checkpoint(path), name),
            load_recipe(line.recipes[name]),
            line.root / f"{name}.onnx",
        )
        for name, path in line.checkpoints.items()
    }


def reuse(patch: pytest.MonkeyPatch, model: OnnxModel) -> None:
    """Let builds take this export in place of making their own."""
    from dataclasses import replace

    from edgekd.deploy.export import onnx_export

    def copied(_model: Any, _recipe: Any, path: Path) -> OnnxModel:
        shutil.copyfile(model.path, path)
        return replace(model, path=path)

    patch.setattr(onnx_export, "export_onnx", copied)


@pytest.fixture(scope="session")
def bundles(line: Line, exports: dict[str, OnnxModel]) -> dict[str, Path]:
    """A sealed x86-cpu bundle of every variant, with golden tiles of the labelled set."""
    from edgekd.contracts.labelled import open_labelled
    from edgekd.contracts.recipe import load_recipe
    from edgekd.deploy.bundle import build
    from edgekd.deploy.quantize.grounds import Images

    data = open_labelled(line.data)
    made = {}
    for name, path in line.checkpoints.items():
        with pytest.MonkeyPatch.context() as patch:
            reuse(patch, exports[name])
            recipe = load_recipe(line.recipes[name])
            made[name] = build(recipe, "x86-cpu", path, line.root / f"b-{name}", Images(data)).path
    return made
