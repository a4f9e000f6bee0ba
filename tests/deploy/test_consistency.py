"""Torch with whole-image sums and the runtime with bands are two implementations of one map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import edgekd
from edgekd.contracts.recipe import load_recipe
from edgekd.train.checkpoint import load_checkpoint, rebuild
from edgekd.train.evaluate import predict
from tests.helpers.line import Line, variants
from tests.helpers.rasters import smooth_image

#: height, width: smaller than a tile, a tile, not a multiple in one and in both directions
SIZES = {
    "small": [(100, 300), (512, 512), (560, 700)],
    "levels": [(290, 257)],
    "conv": [(1, 1), (64, 64), (63, 200), (150, 65), (333, 217)],
}


@pytest.mark.parametrize(
    ("name", "height", "width"), [(name, *size) for name in SIZES for size in SIZES[name]]
)
def test_both_give_the_same_classes(
    name: str, height: int, width: int, line: Line, bundles: dict[str, Path]
) -> None:
    recipe = load_recipe(line.recipes[name])
    model = rebuild(load_checkpoint(line.checkpoints[name]), name)
    image = smooth_image(height, width, seed=height)
    torch.set_num_threads(1)
    channel = predict(model, image, recipe.io, recipe.tiling)
    with edgekd.load(bundles[name]) as session:
        prediction = session.run(image)
    index = np.array([item.index for item in recipe.io.classes], np.uint8)
    differs = index[channel] != prediction.classes
    assert channel.shape == prediction.classes.shape == (height, width)
    if height * width > 1:  # else the same answer everywhere would pass
        assert 0.02 < (channel == 0).mean() < 0.98
    assert differs.mean() <= 1e-3
    # of two classes the winner of a near tie has a confidence of a half
    assert np.all(prediction.confidence[differs] < 0.5 + 1e-3)


def test_every_variant_is_compared() -> None:
    assert set(SIZES) == set(variants())


def test_the_comparison_notices_a_shift_of_one_cell(line: Line, bundles: dict[str, Path]) -> None:
    recipe = load_recipe(line.recipes["small"])
    model = rebuild(load_checkpoint(line.checkpoints["small"]), "small")
    image = smooth_image(560, 700, seed=560)
    with edgekd.load(bundles["small"]) as session:
        moved = session.run(np.roll(image, 16, axis=1))
    differs = predict(model, image, recipe.io, recipe.tiling) != moved.classes
    assert differs.mean() > 1e-2 and moved.confidence[differs].max() > 0.6
