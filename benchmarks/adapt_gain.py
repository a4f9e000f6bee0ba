"""What a handful of labels does at a new site: ``python benchmarks/adapt_gain.py [--write]``.

A student of colours learns from all labels of one place and is adapted to others by
``edgekd adapt``, with few labels. Places differ in light, or in what is there, or in both:

* ``simulated``: trained on six simulated scenes of the 12-class district, adapted to others, as
  they are and recoloured (another gain and offset for each channel, drawn by the site's number);
* ``muufl``: trained on the left half of MUUFL Gulfport, adapted to the right half, whose light is
  the same and whose surfaces are not, as it is and recoloured.

Of every image half of the blocks give labels, and the other half measures. Beside the student as
it was and the adapted one stands what many do without asking: batch-norm statistics of the site,
always. Counted is how often a student became worse by more than half a point.

The rule by which ``adapt`` chooses was settled on sites 0 to 5 and seeds 0 and 1; the benchmark
begins at 100, which have served nothing else. Of MUUFL there is one right half, which has room for
two blocks: its labels and colours are drawn anew, its pixels and blocks are the same.

The real data is needed (EDGEKD_TEST_DATA); without it the script says so and ends with 2.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a trial per core

import click
import numpy as np
import numpy.typing as npt
from _records import here

from edgekd.contracts.artifacts import publish_folder, write_json
from edgekd.contracts.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("EDGEKD_TEST_DATA") or ROOT.parent / "shared" / "data")
LIBRARY = DATA / "hsi" / "USGS_1995_Library.mat"
MUUFL = DATA / "hsi" / "muufl_gulfport_crop_hsi_lidar.mat"
UInt8Array = npt.NDArray[np.uint8]
LABELS = (10, 20)
#: a loss that counts, points
LOSS = 0.5
SIDE_PX = 128
#: of a channel: standard deviation of the gain's logarithm, and of the offset, grey values
GAIN, OFFSET = 0.25, 15.0
STEPS = {"simulated": 500, "muufl": 300}


@dataclass(frozen=True)
class Trial:
    """One adaptation."""

    place: str
    light: str
    site: int
    labels: int

    @property
    def folder(self) -> str:
        """Of the site's pictures."""
        return f"{self.place}-{self.light}-{self.site}"


def recoloured(pixels: UInt8Array, site: int) -> UInt8Array:
    """``(H, W, 3)`` under another light, by another camera; the same for the same number."""
    random = np.random.default_rng((7, site))
    gain, offset = np.exp(GAIN * random.standard_normal(3)), OFFSET * random.standard_normal(3)
    return np.clip(np.rint(pixels * gain + offset), 0, 255).astype(np.uint8)


def recipe_of(place: str, classes: list[dict[str, Any]], root: Path) -> Recipe:
    """How the student learns at its first place."""
    tile = [128, 128]
    return Recipe.model_validate(
        {
            "schema": 1,
            "name": f"adapt-{place}",
            "student": {"name": "geology_rgb", "variant": "small"},
            "data": {"root": str(root)},
            "finetune": {
                "crop_px": 64 if place == "simulated" else 32, "batch": 8, "steps": STEPS[place],
                "lr": 3e-3, "val_every_steps": 100, "ema": 0.9, "class_weights": "balanced",
                "augment": {"scale": [0.8, 1.25], "brightness": 0.1, "saturation": 0.1}, "seed": 3,
            },
            "io": {
                "inputs": [
                    {"shape": ["N", 3, *tile], "mean": [127.5] * 3, "std": [64.0] * 3}
                ],
                "classes": classes,
            },
            "tiling": {"overlap_px": 16},
            "gates": {"onnx_vs_torch": {"atol": 1e-3}},
            "targets": ["x86-cpu"],
        }
    )  # fmt: skip


def write_pictures(
    folder: Path,
    pictures: dict[str, tuple[UInt8Array, UInt8Array]],
    recipe_classes: list[Any],
    splits: dict[str, list[str]] | None = None,
) -> None:
    """A labelled set of PNG files."""
    import cv2

    with publish_folder(folder, "classes.json") as part:
        for name in ("images", "masks"):
            (part / name).mkdir()
        for name, (pixels, mask) in pictures.items():
            cv2.imwrite(str(part / "images" / f"{name}.png"), pixels[:, :, ::-1])
            cv2.imwrite(str(part / "masks" / f"{name}.png"), mask)
        said = [
            {"index": item["index"], "name": item["name"], "rgb_hex": item["color"]}
            for item in recipe_classes
        ]
        (part / "classes.json").write_text(json.dumps({"classes": said, "ignore_index": 255}))
        if splits is not None:
            (part / "splits.json").write_text(json.dumps(splits))


def simulated(seed: int, count: int, folder: Path) -> list[tuple[UInt8Array, UInt8Array]]:
    """Pictures and class indices of ``count`` scenes."""
    from edgekd.contracts.imageio import Raster
    from edgekd.contracts.windows import Window
    from edgekd.simulate.write import Order, write_geology

    if not folder.exists():
        write_geology(folder, LIBRARY, Order(count, SIDE_PX, seed, (1, 0, 0), rgb_only=True))
    whole, found = Window(0, 0, SIDE_PX, SIDE_PX), []
    for number in range(count):
        with Raster(folder / f"scene_{number:03d}_rgb.tif") as picture:
            pixels = np.asarray(picture.read(whole, [1, 2, 3]), dtype=np.uint8)
        with Raster(folder / f"scene_{number:03d}_labels.tif") as mask:
            found.append((pixels, np.asarray(mask.read(whole, [1]), dtype=np.uint8)[..., 0]))
    return found


def simulated_classes() -> list[dict[str, Any]]:
    """Index, name and colour of the district's classes."""
    from edgekd.simulate.minerals import CLASSES

    return [
        {"index": index, "name": item.name, "color": item.color}
        for index, item in enumerate(CLASSES)
    ]


def muufl() -> tuple[UInt8Array, UInt8Array, list[dict[str, Any]]]:
    """Picture ``(H, W, 3)``, class indices ``(H, W)`` and classes of the crop."""
    from edgekd.contracts.recipe import load_recipe
    from edgekd.contracts.sensor_set import open_sensor_set

    path = Path(__file__).parent / "search_gain.yaml"
    recipe = load_recipe(path, ["data.blocks=null", "data.labels_per_class=null",
        "data.split={pattern: '(.*)', train: [gulfport], val: [], test: []}"])  # fmt: skip
    found = open_sensor_set(recipe, ROOT / "calibration" / "muufl_gulfport.yaml", every_class=False)
    (name,) = found.scene_ids
    classes = [item.model_dump(include={"index", "name", "color"}) for item in recipe.io.classes]
    index = np.full(256, 255, dtype=np.uint8)
    index[: len(classes)] = [item["index"] for item in classes]
    return found.load(name).visual8, index[found.truth(name)], classes


def prepare(out: Path, first: int, sites: int) -> list[Trial]:
    """Sets, sites and the two students, where they are not there; the trials."""
    from edgekd.train.finetune import finetune

    trials = []
    classes = simulated_classes()
    parts = simulated(1, 6, out / "district")
    elsewhere = simulated(1000 + first, sites, out / f"elsewhere-{first}-{sites}")
    pictures, mask, ground = muufl()
    half = pictures.shape[1] // 2
    quarter = half * 3 // 4
    left = {"train": (pictures[:, :quarter], mask[:, :quarter]),
            "val": (pictures[:, quarter:half], mask[:, quarter:half])}  # fmt: skip
    right = (pictures[:, half:], mask[:, half:])
    sets = {
        "simulated": (
            {f"s{number}": item for number, item in enumerate(parts)}, classes,
            {"train": ["s0", "s1", "s2", "s3", "s4"], "val": ["s5"], "test": []}, elsewhere,
        ),
        "muufl": (
            left, ground, {"train": ["train"], "val": ["val"], "test": []}, [right] * sites,
        ),
    }  # fmt: skip
    for place, (learned, named, splits, others) in sets.items():
        root = out / f"{place}-first"
        if not root.exists():
            write_pictures(root, learned, named, splits)
        student = out / f"{place}-student"
        if not (student / "best.ckpt").exists():
            click.echo(f"training the student of {place}", err=True)
            finetune(recipe_of(place, named, root), root, student, accelerator="cpu", fresh=True)
        for number, (pixels, truth) in enumerate(others):
            for light in ("same", "other"):
                for labels in LABELS:
                    trial = Trial(place, light, first + number, labels)
                    trials.append(trial)
                    if not (out / trial.folder).exists():
                        seen = pixels if light == "same" else recoloured(pixels, trial.site)
                        write_pictures(out / trial.folder, {"site": (seen, truth)}, named)
    return trials


def run_trial(out: Path, trial: Trial) -> dict[str, Any]:
    """Balanced accuracy before, adapted, and with statistics of the site whatever they do."""
    import torch

    from edgekd.train.adapt.features import look_around, side_px
    from edgekd.train.adapt.measure import measure
    from edgekd.train.adapt.norms import with_norms
    from edgekd.train.adapt.run import adapt
    from edgekd.train.adapt.site import open_site
    from edgekd.train.checkpoint import load_checkpoint, rebuild

    torch.set_num_threads(1)
    student = out / f"{trial.place}-student"
    start = time.perf_counter()
    found = adapt(
        student, out / trial.folder, out / "adapted" / f"{trial.folder}-{trial.labels}",
        labels=trial.labels, seed=trial.site, fresh=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    saved = load_checkpoint(student)
    recipe = saved.parsed_recipe(str(student))
    model = rebuild(saved, str(student))
    site = open_site(recipe, out / trial.folder, None, trial.site)
    around = look_around(site, recipe, side_px(model, recipe), model.side_multiple, trial.site)
    always = measure(model, with_norms(model, around, 1.0), site, recipe)
    measured = found.tuning["measured"]
    return {
        "place": trial.place,
        "light": trial.light,
        "site": trial.site,
        "labels": trial.labels,
        "before": measured["before"]["balanced_accuracy"],
        "after": measured["after"]["balanced_accuracy"],
        "statistics_always": always["after"]["balanced_accuracy"],
        "change": found.tuning["change"],
        "warned": found.warning is not None,
        "seconds": round(seconds, 2),
    }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per place, light and number of labels; accuracies in percent, changes in points."""
    from edgekd.train.adapt.choose import NO_CHANGE

    found = []
    for key in dict.fromkeys((row["place"], row["light"], row["labels"]) for row in rows):
        mine = [row for row in rows if (row["place"], row["light"], row["labels"]) == key]
        before, after, always = (
            100 * np.array([row[name] for row in mine])
            for name in ("before", "after", "statistics_always")
        )
        found.append(
            {
                "place": key[0],
                "light": key[1],
                "labels": key[2],
                "sites": len(mine),
                "before": float(before.mean()),
                "after": float(after.mean()),
                "worst_change": float((after - before).min()),
                "worse": int((after - before < -LOSS).sum()),
                "unchanged": sum(row["change"] == NO_CHANGE.name for row in mine),
                "statistics_always": float(always.mean()),
                "statistics_worst_change": float((always - before).min()),
                "statistics_worse": int((always - before < -LOSS).sum()),
                "seconds": float(np.mean([row["seconds"] for row in mine])),
            }
        )
    return found


def lines(table: list[dict[str, Any]]) -> list[str]:
    """The table for a person."""
    said = [
        "balanced accuracy on held-out blocks, %; worst: the worst change, points; worse: sites "
        f"that lost more than {LOSS:g} points",
        f"{'place':10} {'light':6} {'labels':>6} {'before':>7} {'adapted':>8} {'worst':>6} "
        f"{'worse':>7} {'kept as is':>11} | {'statistics always':>17} {'worst':>6} {'worse':>7} "
        f"{'s':>5}",
    ]
    for row in table:
        count = row["sites"]
        said.append(
            f"{row['place']:10} {row['light']:6} {row['labels']:6} {row['before']:7.1f} "
            f"{row['after']:8.1f} {row['worst_change']:+6.1f} {row['worse']:4}/{count:<2} "
            f"{row['unchanged']:8}/{count:<2} | {row['statistics_always']:17.1f} "
            f"{row['statistics_worst_change']:+6.1f} {row['statistics_worse']:4}/{count:<2} "
            f"{row['seconds']:5.1f}"
        )
    return said


@click.command(help=__doc__)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=ROOT / "out/adapt_gain",
              show_default=True, help="Folder of sets and students; those are kept.")  # fmt: skip
@click.option("--sites", type=click.IntRange(min=1), default=10, show_default=True,
              help="Of each place and light.")  # fmt: skip
@click.option("--first-site", type=click.IntRange(min=0), default=100, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=os.cpu_count() or 1, show_default=True)
@click.option("--write", is_flag=True, help="Write benchmarks/results/<device>/adapt_gain.json")
def main(output: Path, sites: int, first_site: int, jobs: int, write: bool) -> None:
    for file in (LIBRARY, MUUFL):
        if not file.is_file():
            raise click.UsageError(f"{file} is not there; set EDGEKD_TEST_DATA")
    output.mkdir(parents=True, exist_ok=True)
    trials = prepare(output, first_site, sites)
    with ProcessPoolExecutor(jobs) as pool:
        rows = list(pool.map(run_trial, [output] * len(trials), trials))
    table = summarise(rows)
    for line in lines(table):
        click.echo(line)
    if write:
        folder, environment = here()
        write_json(
            folder / "adapt_gain.json",
            {
                "what": "balanced accuracy of a student at a new site, before and after "
                "edgekd adapt; 'simulated' was computed, 'other' light was computed",
                "command": f"python benchmarks/adapt_gain.py --sites {sites} --first-site "
                f"{first_site} --write",
                "table": table,
                "trials": rows,
                "times": "of a core, on a machine that other work may have shared",
                "environment": environment.model_dump(mode="json"),
            },
        )
        click.echo(f"written: {folder}/adapt_gain.json", err=True)


if __name__ == "__main__":
    sys.exit(main())
