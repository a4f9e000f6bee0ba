"""Maps for geology_gain.py: what each arm says where it was not trained.

The answer at a pixel is that of the fold whose test blocks hold it, so no network has seen the
pixels (nor, within the buffer, the neighbours) that it answers here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.blocks import PART_NAMES
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_set import SensorSet

UNKNOWN = 255
ChannelMap = npt.NDArray[np.uint8]


def stitched(
    opened: list[tuple[Recipe, SensorSet]], students: dict[str, list[Path]], teachers: list[Path]
) -> tuple[dict[str, Any], Recipe]:
    """Maps of the set's first scene.

    Args:
        opened: of each fold, recipe and set.
        students: arm -> of each fold, the checkpoint.
        teachers: of each fold.

    Returns:
        ``camera`` (H, W, 3) uint8; ``truth``, ``teacher`` and every arm (H, W) of channel numbers,
        255 where nothing is known; and the recipe.
    """
    from edgekd.train.checkpoint import load_checkpoint, rebuild
    from edgekd.train.evaluate import answer, predict
    from edgekd.train.teachers._saved import load_teacher, rebuild_teacher

    maps: dict[str, Any] = {}
    for fold, (recipe, data) in enumerate(opened):
        scene = data.load(data.training_ids[0])
        tested = scene.parts == PART_NAMES["test"]
        if not maps:
            maps["camera"] = scene.visual8
            maps["truth"] = data.truth(data.training_ids[0])
            for name in ("teacher", *students):
                maps[name] = np.full(tested.shape, UNKNOWN, np.uint8)
        known = rebuild_teacher(load_teacher(teachers[fold]), "teacher")
        maps["teacher"][tested] = answer(known, scene)[0].argmax(0)[tested]
        for name, paths in students.items():
            student = rebuild(load_checkpoint(paths[fold]), name).eval()
            found = predict(student, scene.visual8, recipe.io, recipe.tiling)
            maps[name][tested] = found[tested]
    return maps, opened[0][0]


def coloured(channels: ChannelMap, recipe: Recipe) -> npt.NDArray[np.uint8]:
    """``(H, W, 3)``: the classes' colours, white where nothing is known."""
    table = np.full((256, 3), 255, np.uint8)
    for number, item in enumerate(recipe.io.classes):
        table[number] = [int(item.color[at : at + 2], 16) for at in (1, 3, 5)]
    picture: npt.NDArray[np.uint8] = table[channels]
    return picture


def draw(path: Path, rows: dict[str, tuple[dict[str, Any], Recipe]]) -> None:
    """A row of maps per set, with its legend."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    columns = max(len(maps) for maps, _ in rows.values())
    heights = []  # of the rows, inches: a map, its titles and the legend
    for maps, recipe in rows.values():
        height, width = maps["truth"].shape
        heights.append(2.4 * height / width + 0.5 + 0.2 * -(-len(recipe.io.classes) // 6))
    figure = plt.figure(figsize=(2.4 * columns, sum(heights)), layout="constrained")
    parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (title, (maps, recipe)) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, fontsize=10, x=0.005, ha="left")
        for axis, (name, values) in zip(part.subplots(1, columns), maps.items(), strict=True):
            axis.axis("off")
            picture = values if values.ndim == 3 else coloured(values, recipe)
            axis.imshow(picture, interpolation="nearest")
            scored = ""
            if name not in ("camera", "truth"):
                scored = f", {100 * balanced(values, maps['truth']):.0f} %"
            axis.set_title(name + scored, fontsize=9)
        boxes = [Patch(color=item.color, label=item.name) for item in recipe.io.classes]
        part.legend(handles=boxes, fontsize=7, ncols=6, frameon=False, loc="outside lower left")
    with publish_file(path) as file:
        figure.savefig(file, dpi=130)
    plt.close(figure)


def balanced(found: ChannelMap, truth: ChannelMap) -> float:
    """Mean recall over the classes that are there, where both are known."""
    both = (truth != UNKNOWN) & (found != UNKNOWN)
    return float(
        np.mean([(found[both & (truth == k)] == k).mean() for k in np.unique(truth[both])])
    )
