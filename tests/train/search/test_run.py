"""A search with its files: killed and resumed, workers, hidden parts, what is refused."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

from edgekd.cli.main import main
from edgekd.contracts.recipe import Recipe
from edgekd.contracts.sensor_labelled import camera_view
from edgekd.contracts.sensor_set import open_sensor_set
from edgekd.errors import DatasetError, DivergedError, InputError
from edgekd.train.checkpoint import load_checkpoint, rebuild
from edgekd.train.evaluate import evaluate_model
from edgekd.train.search.journal import Job, Outcome
from edgekd.train.search.run import Run, _made_from, run_search
from edgekd.train.search.training import Setting, train_and_judge
from edgekd.train.search.written import settings
from tests.helpers.sensors import BLOCKS, chain_values, materials, write_set

C = "distill.cross_modal"
FILES = ("table.csv", "best.json", "best.yaml", "plot.svg")
FAST = {"distill.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}, f"{C}.label_weight": [0.1, 2]}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("rocks"))


class Computed:
    """Answers by a formula, in any order; ends after some."""

    def __init__(self, ends_after: int | None = None, seed: int = 0) -> None:
        self.jobs: list[Job] = []
        self._ends_after, self._random = ends_after, random.Random(seed)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
        for job in self._random.sample(list(jobs), len(jobs)):
            if len(self.jobs) == self._ends_after:
                raise KeyboardInterrupt
            self.jobs.append(job)
            if job.values["distill.lr"] > 7e-3:
                yield job, Outcome(None, 1.0, "the loss became nan at step 1")
                continue
            value = 0.9 - abs(np.log10(job.values["distill.lr"]) + 3) / 10 + 0.001 * job.seed
            yield job, Outcome(float(value), self._random.random())


def plain_recipe(rocks: Path, search: dict[str, Any] | None = None, **distill: Any) -> Recipe:
    """Without teachers, so that nothing is trained before the first candidate."""
    values = chain_values(rocks, teachers=[], **distill)
    values["search"] = {"ranges": FAST, "population": 5, **(search or {})}
    return Recipe.model_validate(values)


def do(
    recipe: Recipe, rocks: Path, out: Path, runs: Any = None, budget: int = 12, **more: Any
) -> Any:
    more.setdefault("trainer", Computed())
    return run_search(
        recipe, rocks.parent, rocks, out, runs or [Run("de", 0)], budget, accelerator="cpu", **more
    )


def contents(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


def trainings(out: Path) -> dict[str, Any]:
    """The journal without its first line, times and order."""
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()[1:]]
    found = {json.dumps([line["values"], line["seed"]]): line["value"] for line in lines}
    assert len(found) == len(lines), "none twice"
    return found


# -- with answers that are computed ----------------------------------------------------------


def test_files_say_what_was_done(rocks: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    told: list[tuple[int, int, str]] = []
    value = do(
        plain_recipe(rocks, {"repeats": 2}), rocks, tmp_path, say=lines.append,
        progress=lambda *text: told.append(text), called="r.yaml --data rocks --set a=1",
    )  # fmt: skip
    assert json.loads((tmp_path / "best.json").read_text()) == value
    with (tmp_path / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 6 == value["runs"][0]["candidates"]  # of two trainings each
    assert value["runs"][0]["trainings"] == 12 == len(trainings(tmp_path)) == told[-1][0]
    assert value["seeds_of_trainings"] == [3, 4]
    for row in rows:
        each = json.loads(row["each"])
        lost = None in each
        assert lost or each[1] - each[0] == pytest.approx(0.001), "a training for each seed"
        assert (row["val_balanced_accuracy"] == "") == lost
        assert lost or float(row["val_balanced_accuracy"]) == pytest.approx(sum(each) / 2)
    best = max(float(row["val_balanced_accuracy"] or 0) for row in rows)
    assert value["best"]["value"] == best == float(rows[-1]["best"])
    assert value["as_written"]["value"] == float(rows[0]["val_balanced_accuracy"])
    assert value["judged_on"] == "val" and value["data"]["simulated"] is True
    root = ElementTree.parse(tmp_path / "plot.svg").getroot()
    dots = root.findall("{http://www.w3.org/2000/svg}circle")
    assert len(dots) == 6 - value["runs"][0]["diverged"]
    assert "SIMULATED" in str(root.find("{http://www.w3.org/2000/svg}title").text)  # type: ignore[union-attr]
    said = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert said == value["best"]["values"]
    command = (tmp_path / "best.yaml").read_text().splitlines()[1]
    assert command.startswith("#   edgekd distill r.yaml --data rocks --set a=1 --set ")
    assert any("judged by validation labels alone: olivine" in line for line in lines)


@pytest.mark.parametrize("ends_after", [0, 1, 4, 5, 8, 11])
def test_stopped_anywhere_and_resumed_is_the_same(
    rocks: Path, tmp_path: Path, ends_after: int
) -> None:
    recipe = plain_recipe(rocks)
    do(recipe, rocks, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        do(recipe, rocks, tmp_path / "cut", trainer=Computed(ends_after, seed=1))
    journal = tmp_path / "cut" / "journal.jsonl"
    with journal.open("a") as stream:
        stream.write('{"values": {"distill.lr"')  # a line that was being written
    again = Computed(seed=2)
    do(recipe, rocks, tmp_path / "cut", resume=True, trainer=again)
    assert len(again.jobs) == 12 - ends_after, "what was done is not done again"
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert trainings(tmp_path / "cut") == trainings(tmp_path / "whole")


def test_a_larger_budget_goes_on(rocks: Path, tmp_path: Path) -> None:
    recipe = plain_recipe(rocks)
    do(recipe, rocks, tmp_path / "one", budget=23)
    do(recipe, rocks, tmp_path / "two", budget=12)
    again = Computed()
    do(recipe, rocks, tmp_path / "two", budget=23, resume=True, trainer=again)
    assert len(again.jobs) == 11 and contents(tmp_path / "two") == contents(tmp_path / "one")


def test_both_methods_have_the_same_budget(rocks: Path, tmp_path: Path) -> None:
    runs = [Run(method, seed) for seed in (0, 1, 2) for method in ("de", "random")]
    trainer = Computed()
    value = do(plain_recipe(rocks), rocks, tmp_path, runs, trainer=trainer)
    assert [item["trainings"] for item in value["runs"]] == [12] * 6
    assert len(trainer.jobs) == 6 * 12 - 5, "the recipe as written is trained once"
    compared = value["compared"]
    by = {(item["method"], item["seed"]): item["best"]["value"] for item in value["runs"]}
    for row in compared["rows"]:
        assert (row["de"], row["random"]) == (by["de", row["seed"]], by["random", row["seed"]])
        assert row["difference"] == row["de"] - row["random"]
    assert compared["mean_difference"] == pytest.approx(
        np.mean([row["difference"] for row in compared["rows"]])
    )
    assert value["best"]["value"] == max(by.values())
    alone = do(plain_recipe(rocks), rocks, tmp_path / "alone", [Run("random", 1)])
    assert alone["runs"][0] == next(
        item for item in value["runs"] if (item["method"], item["seed"]) == ("random", 1)
    )
    assert alone["compared"] is None


def test_a_folder_is_not_lost_unasked(rocks: Path, tmp_path: Path) -> None:
    recipe, out = plain_recipe(rocks), tmp_path / "out"
    with pytest.raises(InputError, match=r"journal\.jsonl does not exist: there is nothing to res"):
        do(recipe, rocks, out, resume=True)
    do(recipe, rocks, out)
    with pytest.raises(InputError, match="already holds a run.*--resume.*--fresh"):
        do(recipe, rocks, out)
    trainer = Computed()
    do(recipe, rocks, out, fresh=True, trainer=trainer)
    assert len(trainer.jobs) == 12


def test_another_recipe_or_data_is_not_gone_on_with(rocks: Path, tmp_path: Path) -> None:
    do(plain_recipe(rocks), rocks, tmp_path)
    with pytest.raises(InputError, match="was made with another distill, so its trainings"):
        do(plain_recipe(rocks, steps=7), rocks, tmp_path, resume=True)
    with pytest.raises(InputError, match="was made with another search,"):
        do(plain_recipe(rocks, {"population": 6}), rocks, tmp_path, resume=True)
    values = chain_values(rocks)
    teacher = tmp_path / "teacher.ckpt"
    values["teachers"] = [{"name": "geology_fusion", "weights": str(teacher)}]
    found, data = [], open_sensor_set(Recipe.model_validate(values), rocks)
    for content in (b"one", b"two"):
        teacher.write_bytes(content)
        found.append(_made_from(Recipe.model_validate(values), tmp_path, data, "cpu"))
    differ = [key for key in found[0] if found[0][key] != found[1][key]]
    assert differ == ["weights of teachers"], "another file behind the same name"
    assert "edgekd" in found[0]["versions"]
    arrays = materials(seed=5)
    other = write_set(tmp_path / "other", {"one": arrays})
    with pytest.raises(InputError, match="was made with another data,"):
        do(plain_recipe(rocks), other, tmp_path, resume=True)


def test_a_damaged_journal_is_refused(rocks: Path, tmp_path: Path) -> None:
    do(plain_recipe(rocks), rocks, tmp_path)
    path = tmp_path / "journal.jsonl"
    lines = path.read_text().splitlines()
    for spoiled in ("no json", '{"values": {}}', "[]"):
        path.write_text("\n".join([*lines[:4], spoiled, *lines[5:]]) + "\n")
        with pytest.raises(InputError, match=r"line 5 of .*journal\.jsonl is no line of a search"):
            do(plain_recipe(rocks), rocks, tmp_path, resume=True)
    for spoiled in ("", '{"a": 1}\n', "half a line"):
        path.write_text(spoiled)
        with pytest.raises(InputError, match=r"journal\.jsonl is no search's journal"):
            do(plain_recipe(rocks), rocks, tmp_path, resume=True)


@pytest.mark.parametrize(
    ("search", "budget", "said"),
    [
        ({}, 4, "--budget 4 is less than one generation: 5 candidates; give 5 at least"),
        ({"repeats": 3}, 14, "5 candidates of 3 trainings; give 15 at least"),
        ({"repeats": 3}, 16, "no multiple of the 3 trainings of a candidate.*give 15 or 18"),
        ({"ranges": {"distill.batch": [1, 8]}}, 9, "hold 8 different candidates.*pays for 9; giv"),
    ],
)
def test_budgets_that_do_not_fit(
    rocks: Path, tmp_path: Path, search: dict[str, Any], budget: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        do(plain_recipe(rocks, search), rocks, tmp_path / "x", budget=budget)
    assert not (tmp_path / "x").exists()


def test_a_set_without_validation_is_refused(rocks: Path, tmp_path: Path) -> None:
    values = plain_recipe(rocks).plain()
    values["data"]["blocks"]["val"] = 0
    with pytest.raises(DatasetError, match=r"val of recipe 'conv' is 0.*data\.blocks\.val=1"):
        do(Recipe.model_validate(values), rocks, tmp_path / "x")
    arrays = materials()
    lone = write_set(tmp_path / "lone", {"one": {**arrays, "split": "train"}})
    values["data"]["blocks"] = None
    with pytest.raises(DatasetError, match="has no validation label, and a search judges by noth"):
        do(Recipe.model_validate(values), lone, tmp_path / "x")
    values["search"] = None
    with pytest.raises(InputError, match="has no search section; add search:"):
        do(Recipe.model_validate(values), lone, tmp_path / "x")


# -- with trainings ---------------------------------------------------------------------------


REAL = {f"{C}.temperature.start": [1, 8], f"{C}.feature_weight": [0, 2],
        "distill.lr": {"low": 1e-4, "high": 1e-2, "scale": "log"}}  # fmt: skip


def real_values(rocks: Path) -> dict[str, Any]:
    teacher = {"name": "geology_fusion", "weights": "train", "stage": {"crop_px": 8}}
    values = chain_values(rocks, {"blocks": {**BLOCKS, "stratified": False}}, [teacher], steps=8)
    values["search"] = {"ranges": REAL, "population": 5}
    return values


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "edgekd", "search", str(folder / "recipe.yaml"), "--budget", "7",
            "-o", str(out), "--accelerator", "cpu", *more]  # fmt: skip


@pytest.fixture(scope="module")
def whole(rocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and, in ``out``, an undisturbed search by one worker."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(real_values(rocks), sort_keys=False))
    done = subprocess.run(
        [*command(folder, folder / "out"), "--json"], check=True,
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert json.loads(done.stdout)["runs"][0]["trainings"] == 7
    assert len(set(trainings(folder / "out").values())) >= 4, "candidates differ in what they reach"
    return folder


def children(process: int) -> list[int]:
    text = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(word) for word in text.split()]


def test_killed_with_two_workers_and_resumed_is_the_same(whole: Path, tmp_path: Path) -> None:
    out = whole / "killed"
    process = subprocess.Popen(
        command(whole, out, "--workers", "2"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    journal = out / "journal.jsonl"
    while time.monotonic() < deadline and process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.005)
    workers = children(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not (out / "best.json").exists()
    assert len(workers) >= 2
    while any(Path(f"/proc/{number}").exists() for number in workers):
        assert time.monotonic() < deadline, "workers outlive the search"
        time.sleep(0.05)
    known = journal.read_bytes().count(b"\n") - 1
    assert 0 < known < 7
    subprocess.run([*command(whole, out, "--resume"), "--json"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    ours, theirs = contents(out), contents(whole / "out")
    assert trainings(out) == trainings(whole / "out")
    assert ours["table.csv"] == theirs["table.csv"] and ours["plot.svg"] == theirs["plot.svg"]
    first, second = json.loads(ours["best.json"]), json.loads(theirs["best.json"])
    for value in (first, second):  # a teacher's file holds the seconds that it took
        value["teachers"][0].pop("sha256")
    assert first == second
    assert not (out / "candidates").exists()


def real_trainer(recipe: Recipe, rocks: Path, out: Path) -> Any:
    class Here:
        def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
            weights = (str(out / "teachers" / "1-geology_fusion" / "teacher.ckpt"),)
            setting = Setting(recipe, rocks, weights, out, "cpu")
            data = open_sensor_set(recipe, rocks)
            return ((job, train_and_judge(setting, data, job)) for job in jobs)

    return Here()


def test_hidden_parts_change_nothing(rocks: Path, whole: Path, tmp_path: Path) -> None:
    """Pixels and labels of test blocks, and pixels of buffers, are other ones; values are not."""
    recipe = Recipe.model_validate(real_values(rocks))
    parts = open_sensor_set(recipe, rocks).load("one").parts
    hidden, test = parts > 1, parts == 2
    arrays = materials()
    noise = np.random.default_rng(1)
    arrays["spectral"][hidden] = noise.random((int(hidden.sum()), 24))
    arrays["lidar"][hidden] = 50.0
    arrays["labels"][test] = noise.choice([1, 4, 7], int(test.sum()))
    spoiled = write_set(tmp_path / "spoiled", {"one": arrays})
    out = tmp_path / "out"
    do(recipe, spoiled, out, budget=7, trainer=real_trainer(recipe, spoiled, out))
    assert trainings(out) == trainings(whole / "out")
    assert (out / "table.csv").read_bytes() == (whole / "out" / "table.csv").read_bytes()


def test_the_command_that_is_told_gives_the_best_again(rocks: Path, whole: Path) -> None:
    value = json.loads((whole / "out" / "best.json").read_text())
    texts = settings(value, whole / "out", whole)
    sets = [word for text in texts for word in ("--set", text)]
    arguments = ["distill", str(whole / "recipe.yaml"), *sets, "-o", str(whole / "again"),
                 "--accelerator", "cpu", "--json"]  # fmt: skip
    assert main(arguments) == 0
    assert not (whole / "again" / "teachers").exists()
    recipe = Recipe.model_validate(real_values(rocks))
    student = rebuild(load_checkpoint(whole / "again"), "student")
    view = camera_view(open_sensor_set(recipe, rocks))
    found = evaluate_model(student, view, "val", recipe.io, recipe.tiling)
    assert found["balanced_accuracy"] == value["best"]["value"]


def test_a_training_that_diverges_has_no_value(
    rocks: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_args: Any, **_options: Any) -> None:
        raise DivergedError("the loss became nan at step 1; lower distill.lr")

    monkeypatch.setattr("edgekd.train.distill.loop.check_finite", diverge)
    recipe = Recipe.model_validate(real_values(rocks))
    out = whole / "out"
    ((_, found),) = real_trainer(recipe, rocks, out).run([Job({"distill.lr": 1e-3}, 0)])
    assert found.value is None and "became nan" in str(found.said)
    assert not list((out / "candidates").iterdir())
    (out / "candidates").rmdir()


def test_a_person_is_told(
    rocks: Path, whole: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(whole)
    arguments = ["search", "recipe.yaml", "--budget", "7", "-o", "out", "--accelerator", "cpu"]
    assert main(arguments) == 2
    assert "already holds a run" in capfd.readouterr().err
    assert main([*arguments, "--resume"]) == 0  # all is known
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["search", "number", "cross_modal.feature_weight",
                                "temperature.start", "distill.lr", "val", "balanced",
                                "accuracy"]  # fmt: skip
    assert len(lines) == 1 + 7 + 3 and lines[8].startswith("best: ") and "as written" in lines[8]
    assert "SIMULATED" in lines[9]
    assert "7 trainings are known" in err
    said = [
        line for line in err.splitlines() if line.startswith("next: edgekd distill recipe.yaml")
    ]
    assert len(said) == 1 and "--set teachers.0.stage=null" in said[0]
