"""What needs a CUDA device; `pytest -m gpu`. Skipped, and counted as skipped, elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgekd.contracts.recipe import Recipe
from edgekd.train.checkpoint import load_encoder
from edgekd.train.distill.loop import distill
from edgekd.train.run import read_curves
from tests.helpers.unlabeled import distill_values, make_tiles

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiles(tmp_path_factory.mktemp("tiles"))


@pytest.mark.parametrize("method", ["mask_cdkd", "feature", "mae"])
@pytest.mark.parametrize("precision", ["32", "bf16", "fp16"])
def test_a_run_on_the_gpu_is_close_to_one_on_the_cpu(
    tiles: Path, tmp_path: Path, method: str, precision: str
) -> None:
    values = distill_values(method, precision=precision, lr=1e-4)
    recipe = Recipe.model_validate(values)
    distill(recipe, tiles.parent, [tiles], tmp_path / "gpu", accelerator="cuda")
    plain = Recipe.model_validate(distill_values(method, lr=1e-4))
    distill(plain, tiles.parent, [tiles], tmp_path / "cpu", accelerator="cpu")
    assert load_encoder(tmp_path / "gpu").distilled["device"].startswith("cuda")
    pairs = zip(
        read_curves(tmp_path / "gpu" / "curves.csv"),
        read_curves(tmp_path / "cpu" / "curves.csv"),
        strict=True,
    )
    bound = 0.005 if precision == "32" else 0.05  # TF32 is off; bf16 keeps 8 bits
    for gpu, cpu in pairs:
        assert float(gpu["loss"]) == pytest.approx(float(cpu["loss"]), rel=bound)


def test_checkpointing_and_compile_give_the_same_run(tiles: Path, tmp_path: Path) -> None:
    losses = []
    ways = {"plain": {}, "saved": {"checkpointing": True}, "compiled": {"compile": True}}
    for name, change in ways.items():
        recipe = Recipe.model_validate(distill_values(lr=1e-4, **change))
        distill(recipe, tiles.parent, [tiles], tmp_path / name, accelerator="cuda")
        rows = read_curves(tmp_path / name / "curves.csv")
        losses.append([float(row["loss"]) for row in rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[2] == pytest.approx(losses[0], rel=1e-3)


def test_a_resumed_run_goes_on_from_its_checkpoint(tiles: Path, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, steps: int, text: str) -> None:
        if step == 5:
            raise Stop

    recipe = Recipe.model_validate(distill_values(lr=1e-4))
    with pytest.raises(Stop):
        distill(recipe, tiles.parent, [tiles], tmp_path, accelerator="cuda", progress=stop)
    distill(recipe, tiles.parent, [tiles], tmp_path, accelerator="cuda", resume=True)
    assert [int(row["step"]) for row in read_curves(tmp_path / "curves.csv")] == [1, 2, 3, 4, 5, 6]
