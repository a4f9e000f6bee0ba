"""``edgekd adapt``: what it prints, and that the checkpoint goes on to eval."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from edgekd.cli.main import main
from tests.helpers.recoloured import PLAIN, SHIFTED, make_student, picture, write_site


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_student(tmp_path_factory.mktemp("student"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_it_tells(student: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_site(here / "site", {"a": 11, "b": 12}, SHIFTED)
    command = ["adapt", str(student), "--data", "site", "--labels", "12"]
    assert main([*command, "--json"]) == 0
    value = json.loads(capfd.readouterr().out)
    best = Path(value["checkpoint"])
    assert best == Path("runs/ground-adapt/best.ckpt") and best.is_file()
    assert value["warning"] is None and value["labels"]["used"] == 12
    assert main([*command, "--fresh"]) == 0
    out, err = capfd.readouterr()
    gain = value["measured"]["difference"]["balanced_accuracy"]
    assert f"after: {100 * gain:+.1f} points" in out and "blocks of 32 px" in out
    assert f"chosen: {value['change']}" in out and " s, seed 0\n" in out
    assert "warning" not in err and "next: edgekd build" in err
    assert main(["inspect", str(best)]) == 0
    assert f"adapted to site: {value['change']}" in capfd.readouterr().out
    assert main(["eval", str(best), "--data", "site", "--split", "all", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tuning"]["change"] == value["change"]


def test_points_and_a_warning(student: Path, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Points with the names of two classes exchanged, held out ones right."""
    write_site(here / "site", {"a": 11, "b": 12}, PLAIN)
    names = {1: "olivine", 4: "basalt", 7: "quartz"}
    wrong = {1: "basalt", 4: "olivine", 7: "quartz"}
    random = np.random.default_rng(0)
    rows = ["image,column,row,class,split"]
    for image, seed, said, split in (("a", 11, wrong, ""), ("b", 12, names, "test")):
        _, mask = picture(seed)
        for row, column in random.integers(0, 96, (60, 2)):
            rows.append(f"{image},{column},{row},{said[int(mask[row, column])]},{split}")
    (here / "points.csv").write_text("\n".join(dict.fromkeys(rows)) + "\n")
    command = ["adapt", str(student), "--data", "site", "--points", "points.csv", "-o", "out"]
    assert main(command) == 0
    out, err = capfd.readouterr()
    assert "60 labels of 60" in out
    assert "warning: balanced accuracy on the held-out pixels fell by" in err
    assert f"keep the old checkpoint {student}" in err and "next:" not in err
    assert main([*command[:-1], "more", "--labels", "61"]) == 2
    assert "has 60 labelled pixels" in capfd.readouterr().err
    assert not (here / "more").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--labels", "many"], "expected a number like 20, or all, received 'many'"),
        (["--blocks", "32"], "expected two numbers of pixels like 32,8, received '32'"),
        (["--blocks", "0,8"], "a side of at least 1 px"),
        (["--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_wrong_options(
    student: Path, here: Path, capfd: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert main(["adapt", str(student), "--data", "site", *options]) == 2
    err = capfd.readouterr().err
    assert words in err and err.count("\n") == 1
    assert list(here.iterdir()) == []
