"""The rows of ``bad_input_table`` that are about carbonation, and the files that they name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.helpers.sites import make_site, write_coefficients, write_confusion, write_site


def make_uptake_files(root: Path) -> None:
    """Beside the files of the other rows."""
    site = make_site(2, side_px=20)
    chance, _ = write_site(root / "up", site)
    bare = write_site(root / "placeless", site, crs=None)[0]
    empty = write_site(root / "void", site, empty_px=40)[0]
    for source, name in ((chance, "chance"), (bare, "chance-bare"), (empty, "chance-void")):
        shutil.move(source, root / f"{name}.tif")
    for folder in ("up", "placeless", "void"):
        shutil.rmtree(root / folder)
    content = (root / "chance.tif").read_bytes()
    (root / "chance-cut.tif").write_bytes(content[: len(content) // 2])
    made_up = {"value": 0.5, "uncertainty": {"kind": "unknown"}, "source": "made up"}
    write_coefficients(root / "up.yaml")
    write_coefficients(root / "up-name.yaml", olivin=made_up, olivine=None)
    write_coefficients(root / "up-unit.yaml", "kg per acre")
    write_coefficients(root / "up-carbon.yaml", "t C per ha")
    write_coefficients(root / "up-negative.yaml", basalt=made_up | {"value": -0.3})
    lacks = {key: value for key, value in made_up.items() if key != "uncertainty"}
    write_coefficients(root / "up-lacks.yaml", basalt=lacks)
    write_confusion(root / "eval.json", site.confusions)
    write_confusion(root / "eval-one.json", site.confusions[:1])
    value = json.loads((root / "eval.json").read_text())
    del value["confusion_by_sample"]
    (root / "eval-old.json").write_text(json.dumps(value))
    value["per_class"][0]["name"] = "sand"
    (root / "eval-other.json").write_text(json.dumps(value))


_UP = "carbonation chance.tif --coefficients up.yaml"

#: name, command, words of the printed line, exit code
UPTAKE_ROWS: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    ("coefficients alone", "validate up-unit.yaml", ("unit", "kg per acre"), 2),
    ("coefficients alone, negative", "validate up-negative.yaml", ("basalt.value",), 2),
    ("uptake: map missing", "carbonation nowhere.tif --coefficients up.yaml",
     ("nowhere.tif does not exist",), 2),
    ("uptake: map cut", "carbonation chance-cut.tif --coefficients up.yaml",
     ("chance-cut.tif", "fetch it again"), 2),
    ("uptake: a scene, no map", "carbonation in.tif --coefficients up.yaml",
     ("in.tif is no map of edgekd", "CLASS_NAMES", "edgekd run", "--probabilities"), 2),
    ("uptake: map without data", "carbonation chance-void.tif --coefficients up.yaml -o r.tif",
     ("chance-void.tif holds no pixel with a class",), 2),
    ("uptake: map without a place", "carbonation chance-bare.tif --coefficients up.yaml",
     ("chance-bare.tif has no CRS", "--gsd-m"), 2),
    ("uptake: map with a place, and a side", f"{_UP} --gsd-m 2",
     ("--gsd-m 2 is for a map without a place", "EPSG:32628", "leave --gsd-m out"), 2),
    ("uptake: side of 0 m", f"{_UP} --gsd-m 0", ("--gsd-m", "0"), 2),
    ("uptake: coefficients left out", "carbonation chance.tif", ("--coefficients",), 2),
    ("uptake: coefficients missing", "carbonation chance.tif --coefficients nowhere.yaml",
     ("nowhere.yaml does not exist",), 2),
    ("uptake: class that is not there", "carbonation chance.tif --coefficients up-name.yaml",
     ("up-name.yaml has coefficients for classes that are not in chance.tif: 'olivin'",
      "did you mean 'olivine'?", "(valid: soil, olivine, wollastonite, serpentine, basalt)"), 2),
    ("uptake: unit that is none", "carbonation chance.tif --coefficients up-unit.yaml",
     ("up-unit.yaml has 1 fault: line 1: unit: 'kg per acre' is no unit of uptake",
      "t CO2 per ha and year", "relative"), 2),
    ("uptake: unit of carbon", "carbonation chance.tif --coefficients up-carbon.yaml",
     ("'t C per ha' is no unit of uptake", "44/12"), 2),
    ("uptake: coefficient below 0", "carbonation chance.tif --coefficients up-negative.yaml",
     ("coefficients.basalt.value is -0.3, but input should be greater than or equal to 0",), 2),
    ("uptake: uncertainty left out", "carbonation chance.tif --coefficients up-lacks.yaml",
     ("coefficients.basalt lacks the key 'uncertainty'",), 2),
    ("uptake: matrix missing", f"{_UP} --confusion nowhere.json",
     ("nowhere.json does not exist",), 2),
    ("uptake: matrix of other classes", f"{_UP} --confusion eval-other.json",
     ("eval-other.json has the classes 0 sand, 1 olivine", "chance.tif has 0 soil, 1 olivine",
      "evaluate the model that made the map"), 2),
    ("uptake: no matrix", f"{_UP} --confusion record.json",
     ("record.json is not what edgekd eval writes", "edgekd eval BUNDLE"), 2),
    ("uptake: matrix without its samples", f"{_UP} --confusion eval-old.json",
     ("eval-old.json does not say which sample", "--independent pixels"), 2),
    ("uptake: matrix of one sample", f"{_UP} --confusion eval-one.json -o r.tif",
     ("eval-one.json is of one sample", "--independent pixels"), 2),
    ("uptake: --independent alone", f"{_UP} --independent pixels",
     ("--independent pixels is about --confusion",), 2),
    ("uptake: output with another suffix", f"{_UP} -o r.png", ("ends in .tif", "r.png"), 2),
    ("uptake: output is the map", f"{_UP} -o chance.tif",
     ("chance.tif is one of the inputs",), 2),
    ("uptake: table with another suffix", f"{_UP} --table t.json", ("ends in .csv", "t.json"), 2),
    ("uptake: output cannot be made", f"{_UP} -o /proc/x/r.tif",
     ("the output folder /proc/x cannot be made", "-o"), 2),
    ("probabilities with another suffix", "run b in.tif -o m.tif --probabilities p.png",
     ("ends in .tif", "p.png"), 2),
    ("probabilities over the map", "run b in.tif -o m.tif --probabilities m.tif",
     ("m.tif is named for two results",), 2),
)  # fmt: skip
