"""The rows of ``bad_input_table`` that are about sensor sets, and the files that they name."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.labelled import write_recipe
from tests.helpers.sensors import (
    LIDAR,
    NM,
    SPECTRAL,
    VISUAL,
    chain_values,
    materials,
    sensor_values,
    write_set,
)


def make_sensor_files(root: Path) -> None:
    """Beside the files of the other rows."""

    def recipe(name: str, data: dict[str, Any] | None = None, **sensors: Any) -> None:
        given = copy.deepcopy({"spectral": SPECTRAL, "lidar": LIDAR, "visual": VISUAL})
        for sensor, changes in sensors.items():
            given[sensor] = {**given[sensor], **changes}
        values = sensor_values(given, {"root": "rocks", **(data or {})}, name=name)
        write_recipe(root, values)

    nm = [float(value) for value in NM]
    whole = {"one": {**materials(), "split": "train"}, "two": {**materials(seed=1), "split": "val"}}
    write_set(root / "rocks", whole)
    wide, bare, flat = (copy.deepcopy(whole) for _ in range(3))
    wide["one"]["lidar"] = np.zeros((48, 61), dtype=np.float32)
    bare["one"]["labels"][bare["one"]["labels"] == 7] = 255
    flat["one"]["spectral"][..., 8] = 0.25
    twice = {name: {**whole["one"], "split": whole[name]["split"]} for name in whole}
    write_set(root / "twice", twice)
    for name, scenes in (("wide", wide), ("bare", bare), ("flat", flat)):
        write_set(root / name, scenes)
    recipe("rocks-recipe")
    recipe("rocks-nm", spectral={"wavelengths_nm": None})
    recipe("rocks-unsorted", spectral={"wavelengths_nm": [*nm[:4], nm[3], *nm[5:]]})
    recipe("rocks-um", spectral={"wavelengths_nm": [value / 1000 for value in nm]})
    recipe("rocks-bands", spectral={"channels": 20, "wavelengths_nm": nm[:20]})
    for name in ("wide", "bare", "flat"):
        recipe(f"rocks-{name}", {"root": name})
    write_set(root / "uncut")
    recipe(
        "rocks-blocks",
        {"root": "uncut", "blocks": {"side_px": 12, "buffer_px": 24, "folds": 4}},
    )
    recipe("rocks-mono", visual={"kind": "spectral"})
    values = chain_values(root / "uncut") | {"name": "rocks-search"}
    values["search"] = {"ranges": {"distill.cross_modal.temperature.start": [1, 8]}}
    write_recipe(root, values)


#: name, command, words of the printed line, exit code
SENSOR_ROWS: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    ("wavelengths missing", "validate rocks-nm.yaml",
     ("rocks-nm.yaml", "a spectral sensor needs wavelengths_nm", "{first: 380"), 2),
    ("wavelengths unsorted", "validate rocks-unsorted.yaml",
     ("wavelengths_nm must rise; band 5 has 491.304 nm after 491.304 nm",), 2),
    ("wavelengths in micrometres", "validate rocks-um.yaml",
     ("wavelengths_nm ends at 1.1: those are micrometres; multiply by 1000",), 2),
    ("scenes twice", "inspect twice --recipe rocks-recipe.yaml",
     ("scenes one and two of", "have the same values of spectral", "leave one of them out"), 2),
    ("camera that is no image", "validate rocks-mono.yaml",
     ("must be named visual, of kind image with 3 channels; it has 3 of spectral",), 2),
    ("bands that do not match", "validate rocks-bands.yaml",
     ("one_spectral.npy has 24 bands, and sensors.spectral.channels of the recipe is 20",), 2),
    ("LiDAR of another grid", "finetune rocks-wide.yaml",
     ("one_lidar.npy has 61x48 px and", "one_spectral.npy 60x48 px", "gdalwarp"), 2),
    ("class without a label", "finetune rocks-bare.yaml",
     ("not a single training label of quartz",), 2),
    ("camera on a bad band", "validate rocks-flat.yaml",
     ("visual would rest on a bad band of spectral, band 9", "constant, 0.25"), 2),
    ("buffer that eats the blocks", "validate rocks-blocks.yaml",
     ("scene one of", "leaves no", "smaller buffer_px"), 2),
    ("sensor set without sensors", "finetune small.yaml --data rocks",
     ("rocks is a sensor set, and recipe 'small' names no sensors",), 2),
    ("no blocks without a sensor set", "finetune rocks-blocks.yaml --data data",
     ("data is no sensor set, and data.blocks of recipe", "--set data.blocks=null"), 2),
    ("no blocks without sensors", "validate small.yaml --set data.labels_per_class=5",
     ("labels_per_class apply to sensor sets",), 2),
    ("--recipe for no sensor set", "inspect in.tif --recipe small.yaml",
     ("--recipe is about sensor sets, and in.tif is none",), 2),
    ("search without ranges", "search rocks-recipe.yaml --budget 20",
     ("recipe 'rocks-recipe' has no search section; add search: {ranges:",), 2),
    ("search upside down",
     "search rocks-search.yaml --budget 20 "
     "--set search.ranges={distill.cross_modal.temperature.start:[8,1]}",
     ("rocks-search.yaml has 1 fault: --set: search.ranges", "received [8, 1]"), 2),
    ("search of no key",
     "search rocks-search.yaml --budget 20 "
     "--set search.ranges={distill.cross_modal.temperature.begin:[1,8]}",
     ("distill.cross_modal.temperature has no key 'begin'", "valid: end, schedule, start"), 2),
    ("search of another method", "search rocks-search.yaml --budget 20 --set distill=null",
     ("a search needs distill.method: cross_modal, and there is no distill section",), 2),
    ("search with a small budget", "search rocks-search.yaml --budget 7",
     ("--budget 7 is less than one generation: 8 candidates; give 8 at least",), 2),
    ("search without validation",
     "search rocks-search.yaml --budget 20 --set data.blocks.val=0",
     ("data.blocks.val of recipe 'rocks-search' is 0", "--set data.blocks.val=1"), 2),
    ("search with nothing to resume", "search rocks-search.yaml --budget 20 --resume",
     ("journal.jsonl does not exist: there is nothing to resume",), 2),
    ("search that resumes and begins", "search rocks-search.yaml --budget 9 --resume --fresh",
     ("--resume and --fresh exclude each other",), 2),
    ("--set without --recipe", "inspect rocks --set data.root=x", ("name one with --recipe",), 2),
)  # fmt: skip
