"""What ``benchmarks/geology_gain.py`` concludes from figures, and which pieces it takes for done.

Nothing is trained here, and no real data is read: sets, pieces and spectra are made up.
"""

from __future__ import annotations

import importlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgekd.contracts.blocks import BUFFER, TEST, TRAIN, VAL
from edgekd.contracts.recipe import load_recipe
from edgekd.errors import DatasetError

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("scipy")


@pytest.fixture
def gain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # the script sets it for good
    return importlib.import_module("geology_gain")


@pytest.fixture
def stats(gain: ModuleType) -> ModuleType:
    return importlib.import_module("_geology_stats")


@pytest.fixture
def sets(gain: ModuleType) -> ModuleType:
    return importlib.import_module("_geology_sets")


# intervals


def test_three_intervals_by_hand(stats: ModuleType) -> None:
    gains = {(0, 1): 1.0, (0, 2): 3.0, (1, 1): 5.0, (1, 2): 7.0}
    found = stats.interval(gains, 0.3)
    # squares from the mean 4 add up to 20, so S^2 = 20/3; t with 3 degrees of freedom is 3.18245
    assert found["mean"] == 4
    assert found["half"] == pytest.approx(3.18245 * (20 / 3 / 4) ** 0.5, rel=1e-5)
    assert found["half_overlap"] == pytest.approx(
        3.18245 * ((1 / 4 + 0.3) * 20 / 3) ** 0.5, rel=1e-5
    )
    # folds 2 and 6: deviation sqrt(8), error 2; t with 1 degree of freedom is 12.7062
    assert found["half_folds"] == pytest.approx(12.7062 * 2, rel=1e-5)
    assert (found["pairs"], found["folds"]) == (4, 2)


@pytest.mark.parametrize(
    "gains", [{(0, 1): 1.0, (0, 2): 2.0}, {(0, 1): 1.0, (0, 2): 2.0, (1, 1): 3.0}]
)
def test_one_fold_or_uneven_ones_have_no_interval(stats: ModuleType, gains: Any) -> None:
    with pytest.raises(ValueError, match="as many draws each"):
        stats.interval(gains, 0.25)


# summary and table


def piece(
    fold: int, draw: int, arm: str, figure: float, *, name: str = "one", labels: int | None = 5,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    found = {
        "name": name, "labels": labels, "fold": fold, "draw": draw, "arm": arm, "code": "aaa",
        "simulated": False, "rare": ["b"], "seconds": 30.0,
        "pixels": {"train": 100, "test": 20 + 20 * fold},
        "student": {"balanced_accuracy": figure, "recall": {"a": 1.0, "b": figure - 0.5}},
    }  # fmt: skip
    if arm != "labels":
        found["fusion"] = {"balanced_accuracy": 0.9, "recall": {"a": 1.0, "b": 0.75}}
    return found | more


def made_up(**more: Any) -> list[dict[str, Any]]:
    """Two folds of two draws; gains 0.01, 0.03, 0.05, 0.07, and none of the other arm."""
    found = []
    for number, (fold, draw) in enumerate([(0, 1), (0, 2), (1, 1), (1, 2)]):
        figures = {"labels": 0.8, "distilled": 0.81 + 0.02 * number, "progressive": 0.8}
        found += [piece(fold, draw, arm, figure, **more) for arm, figure in figures.items()]
    return found


def test_a_row_per_set_and_labels(stats: ModuleType) -> None:
    rows = stats.summarise([*made_up(), *made_up(labels=None), *made_up(name="two")])
    assert [(row["set"], row["labels_per_class"]) for row in rows] == [
        ("one", 5), ("one", None), ("two", 5),
    ]  # fmt: skip
    row = rows[0]
    assert row["test_over_train"] == pytest.approx(0.3)  # of 0.2 and 0.4
    assert row["teacher"] == pytest.approx(0.9)
    assert row["distilled"] == pytest.approx(0.84)
    expected = stats.interval({(0, 1): 1.0, (0, 2): 3.0, (1, 1): 5.0, (1, 2): 7.0}, 0.3)
    for key in ("mean", "half", "half_overlap", "half_folds"):
        assert 100 * row["distilled_gain"][key] == pytest.approx(expected[key])
        assert 100 * row["rare"]["distilled_gain"][key] == pytest.approx(expected[key])
    assert row["progressive_gain"]["mean"] == pytest.approx(0)
    assert row["distilled_kept"] == pytest.approx(0.84 / 0.9)
    assert row["rare"]["classes"] == ["b"] and row["rare"]["labels"] == pytest.approx(0.3)
    assert row["recall"]["labels"] == {"a": 1.0, "b": pytest.approx(0.3)}
    assert row["minutes"] == pytest.approx(12 * 0.5)


def test_a_ratio_counts_every_fold_once(stats: ModuleType) -> None:
    # a fold whose pieces are more does not weigh more
    assert stats.pixel_ratio([*made_up(), piece(0, 3, "labels", 0.8)]) == pytest.approx(0.3)


def test_pairs_are_of_the_same_fold_and_draw(stats: ModuleType) -> None:
    pieces = [item for item in made_up() if (item["arm"], item["draw"]) != ("distilled", 2)]
    (row,) = stats.summarise(pieces)
    assert row["distilled_gain"]["pairs"] == 2
    assert row["distilled_gain"]["mean"] == pytest.approx(0.03)  # of 0.01 and 0.05
    swapped = [item for item in made_up() if (item["arm"], item["draw"]) != ("labels", 1)]
    (row,) = stats.summarise(swapped)
    assert row["distilled_gain"]["mean"] == pytest.approx(0.05)  # of 0.03 and 0.07
    (row,) = stats.summarise([item for item in made_up() if item["fold"] == 0])
    assert "distilled_gain" not in row  # one fold has no interval


def test_the_table_shows_two_intervals_and_both_arms_kept(stats: ModuleType) -> None:
    rows = stats.summarise(made_up())
    _, _, _, header, line, rare, *below = stats.lines(rows, {"aaa": 12})
    # by hand: 3.18245 sqrt(20/3/4) = 4.11, 3.18245 sqrt(0.55 20/3) = 6.09
    assert "+4.0 ±4.1 ±6.1 (4)" in line and "+0.0 ±0.0 ±0.0 (4)" in line
    assert " 93.3/88.9 " in line  # 84/90 and 80/90
    assert header.split()[:3] == ["set", "labels", "teacher"]
    assert line.split()[:5] == ["one", "5", "90.0", "80.0", "84.0"]
    assert "+4.0 ±4.1 ±6.1 (4)" in rare and rare.endswith("(b)")
    assert not any("Ceiling" in text for text in below), "there is no row of all labels"
    (of_b,) = (text for text in below if text.split()[:1] == ["b"])
    assert of_b.split()[2:] == ["30.0", "34.0", "30.0", "rare"]
    (of_a,) = (text for text in below if text.split()[:1] == ["a"])
    assert of_a.split()[2:] == ["100.0", "100.0", "100.0"]


def test_the_ceiling_is_the_student_of_all_labels(stats: ModuleType) -> None:
    rows = stats.summarise([*made_up(), *made_up(labels=None)])
    assert "Ceiling of the camera's student, from all labels: one 80.0." in list(
        stats.lines(rows, {"aaa": 24})
    )


def test_a_table_without_an_arm_says_so(stats: ModuleType) -> None:
    rows = stats.summarise([item for item in made_up() if item["arm"] != "progressive"])
    assert " 93.3/- " in list(stats.lines(rows, {"aaa": 8}))[4]


def test_the_table_ends_with_the_codes_where_there_are_several(stats: ModuleType) -> None:
    rows = stats.summarise(made_up())
    last = list(stats.lines(rows, {"bbb": 5, "aaa": 7}))[-1]
    assert "more than one" in last and "7 by aaa, 5 by bbb" in last
    assert not any("more than one" in line for line in stats.lines(rows, {"aaa": 12}))


# verdict


def row(
    name: str, labels: int | None, mean: float = 2.0, *, arm: str = "distilled", pairs: int = 20,
    halves: tuple[float, float, float] = (1.0, 1.5, 2.5),
) -> dict[str, Any]:  # fmt: skip
    keys = ("half", "half_overlap", "half_folds")
    gain = {"mean": mean, "pairs": pairs, **dict(zip(keys, halves, strict=True))}
    return {"set": name, "labels_per_class": labels, f"{arm}_gain": gain}


@pytest.mark.parametrize(
    ("rows", "by_labels", "passed"),
    [
        ([row("one", 5), row("two", 5)], {"5": True}, True),
        ([row("one", 5), row("two", 5, 0.9)], {"5": False}, False),
        ([row("one", 5), row("two", 5, arm="progressive")], {"5": False}, False),
        ([row("one", 5), row("two", 20)], {"5": False, "20": False}, False),
        (  # the fewest labels decide, wherever they stand
            [row("one", 20), row("two", 20), row("one", 5), row("two", 5, 0.9)],
            {"5": False, "20": True},
            False,
        ),
        ([row("one", 5), row("two", 5), row("two", 20, 0.1)], {"5": True, "20": False}, True),
        ([row("one", 5), row("two", 5, pairs=19)], {"5": False}, False),
        ([row("one", 5, -2.0), row("two", 5, -2.0)], {"5": False}, False),
        ([row("one", None), row("two", None)], {}, False),  # all labels are not few
    ],
)
def test_verdict(stats: ModuleType, rows: Any, by_labels: Any, passed: bool) -> None:
    found = stats.verdict(rows)
    assert (found["by_labels"], found["passed"]) == (by_labels, passed)


def test_the_verdict_names_what_each_interval_excludes(stats: ModuleType) -> None:
    found = stats.verdict([
        row("one", 5),
        row("one", None, 1.2),
        row("two", 5, -3.0),
        row("two", 20, 3.0, arm="progressive"),
        row("three", 5, 0.5),
    ])  # fmt: skip
    two = ["distilled, 5 labels (a loss)", "progressive, 20 labels"]
    assert found["excludes_zero"] == {
        "pairs": {"one": ["distilled, 5 labels", "distilled, all labels"], "two": two},
        "overlap": {"one": ["distilled, 5 labels"], "two": two},
        "folds": {"two": two},
    }


# what a piece was made from


def test_what_decides_a_piece(gain: ModuleType, tmp_path: Path) -> None:
    one, two, same = (tmp_path / name for name in ("one.ckpt", "two.ckpt", "same.ckpt"))
    for path, text in ((one, "1"), (two, "2"), (same, "1")):
        path.write_text(text)

    def digest(*changes: str, data: str = "d", teacher: Path | None = None) -> str:
        piece = gain.Piece("muufl", 5, 0, 1, "progressive" if teacher else "distilled")
        recipe = load_recipe(gain.recipe_path("muufl"), [*gain.overrides(piece, teacher), *changes])
        return str(gain.made_from(recipe, data, teacher))

    base = digest()
    assert digest("title=other", "finetune.steps=11", "data.root=elsewhere") == base
    assert digest("distill.steps=201") != base
    assert digest("data.label_seed=2") != base
    assert digest(data="e") != base
    taught = digest(teacher=one)
    assert digest(teacher=same) == taught != digest(teacher=two)


def test_a_finished_piece_is_read_wherever_it_lies(gain: ModuleType, tmp_path: Path) -> None:
    changes = ("data.root=missing.yaml",)
    run = gain.Run(tmp_path / "one", changes, {"muufl": "d"}, "code")
    piece = gain.Piece("muufl", 5, 0, 1, "labels")
    recipe = load_recipe(gain.recipe_path("muufl"), [*gain.overrides(piece, None), *changes])
    for name in ("one", "two"):
        path = tmp_path / name / "pieces" / "muufl-5-0-1-labels.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"made_from": gain.made_from(recipe, "d", None), "at": name}))
    assert gain.work(piece, run)["at"] == "one"
    assert gain.work(piece, gain.Run(tmp_path / "two", changes, {"muufl": "d"}, "x"))["at"] == "two"
    pytest.importorskip("torch")
    with pytest.raises(DatasetError, match="does not exist"):  # it would train
        gain.work(piece, gain.Run(tmp_path / "one", changes, {"muufl": "e"}, "code"))
    assert not (tmp_path / "one" / "pieces" / "muufl-5-0-1-labels.json").exists()


def test_progressive_says_which_teacher_it_lacks(gain: ModuleType, tmp_path: Path) -> None:
    run = gain.Run(tmp_path, (), {"muufl": "d"}, "code")
    with pytest.raises(gain.click.UsageError, match=r"muufl-5-0-1.teacher\.ckpt"):
        gain.work(gain.Piece("muufl", 5, 0, 1, "progressive"), run)


def test_the_code_of_a_piece(
    gain: ModuleType, sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide = [f"edgekd/{name}/deep/a.py" for name in ("contracts", "train", "simulate")]
    decide.append("benchmarks/_geology_sets.py")
    for name in (*decide, "edgekd/report/a.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(sets, "ROOT", tmp_path)
    monkeypatch.setattr(sets, "THIS", tmp_path / decide[-1])
    base = gain.code_digest()
    (tmp_path / "edgekd/report/a.py").write_text("2")
    assert gain.code_digest() == base
    seen = {base}
    for name in decide:
        (tmp_path / name).write_text("2")
        seen.add(gain.code_digest())
    assert len(seen) == 5


def test_maps_are_drawn_with_the_changes(
    gain: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = importlib.import_module("_geology_maps")
    steps, draws, roots = [], [], []

    def stitched(opened: Any, students: Any, teachers: Any) -> str:
        steps.extend(recipe.distill.steps for recipe, _ in opened)
        draws.extend(recipe.data.label_seed for recipe, _ in opened)
        return "maps"

    def opened(recipe: Any, root: Path) -> None:
        roots.append(root)

    drawn: list[Any] = []
    monkeypatch.setattr(maps, "stitched", stitched)
    monkeypatch.setattr(maps, "draw", lambda path, rows: drawn.append((path, rows)))
    monkeypatch.setattr("edgekd.contracts.sensor_set.open_sensor_set", opened)
    run = gain.Run(tmp_path, ("distill.steps=7",), {}, "code")
    gain.draw_maps(tmp_path / "a.png", ["cuprite"], 5, 3, run)
    assert steps == [7] * 5 and draws == [3] * 5
    assert set(roots) == {tmp_path / "sets" / "cuprite"}
    assert drawn == [(tmp_path / "a.png", {"cuprite, 5 labels per class": "maps"})]


# sets


def described(folder: Path, title: str = "a", file: str = "a.npy") -> Path:
    """A set of one scene with a file of pixels and one of labels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (file, "labels.npy"):
        (folder / name).write_text("pixels")
    path = folder / "sensors.yaml"
    path.write_text(
        f"schema: 1\nname: s\ntitle: {title}\nsimulated: false\nsource: x\nlicence: x\n"
        'classes: [{index: 0, name: a, color: "#000000"}, {index: 1, name: b, color: "#ffffff"}]\n'
        f"scenes: [{{id: one, files: {{visual: {{file: {file}}}}}, labels: {{file: labels.npy}}}}]"
    )
    return path


def test_a_set_is_known_by_its_contents(sets: ModuleType, tmp_path: Path) -> None:
    base = sets.set_digest(described(tmp_path / "here").parent)
    assert sets.set_digest(described(tmp_path / "there", title="other").parent) == base
    for name in ("a.npy", "labels.npy"):
        described(tmp_path / "here")
        (tmp_path / "here" / name).write_text("others")
        assert sets.set_digest(tmp_path / "here") != base
    path = described(tmp_path / "here")
    path.write_text(path.read_text().replace("name: b", "name: c"))
    assert sets.set_digest(tmp_path / "here") != base


def test_pixels_beside_an_envi_header_count(sets: ModuleType, tmp_path: Path) -> None:
    path = described(tmp_path, file="cube.hdr")
    (tmp_path / "cube.img").write_text("pixels")
    base = sets.set_digest(path)
    (tmp_path / "cube.img").write_text("others")
    assert sets.set_digest(path) != base


def test_an_old_set_is_made_again(
    sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = tmp_path / "source.mat", tmp_path / "sets" / "made"
    source.write_text("1")
    made = []

    def make(data: Path, where: Path) -> Path:
        made.append((data, where))
        return described(where)

    monkeypatch.setitem(sets.MAKERS, "made", sets.Maker(make, ("source.mat",)))
    assert sets.make_set("made", tmp_path, folder) == folder / "sensors.yaml"
    sets.make_set("made", tmp_path, folder)
    assert made == [(tmp_path, folder)]
    source.write_text("2")
    (folder / "old").write_text("")
    sets.make_set("made", tmp_path, folder)
    assert len(made) == 2 and not (folder / "old").exists()
    (folder / "sensors.yaml").unlink()
    sets.make_set("made", tmp_path, folder)
    assert len(made) == 3
    monkeypatch.setattr(sets, "code_files", lambda *packages: [("code", source)])
    sets.make_set("made", tmp_path, folder)
    sets.make_set("made", tmp_path, folder)
    assert len(made) == 4


def test_a_set_half_made_is_made_again(
    sets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(data: Path, where: Path) -> Path:
        described(where)
        raise KeyboardInterrupt

    folder = tmp_path / "made"
    monkeypatch.setitem(sets.MAKERS, "made", sets.Maker(lambda _, where: described(where), ()))
    sets.make_set("made", tmp_path, folder)
    monkeypatch.setitem(sets.MAKERS, "made", sets.Maker(stops, ()))
    with monkeypatch.context() as other:  # code that changes, and is put back
        other.setattr(sets, "code_files", lambda *packages: [])
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                sets.make_set("made", tmp_path, folder)
    with pytest.raises(KeyboardInterrupt):
        sets.make_set("made", tmp_path, folder)


class FakeSet:
    """As much of a sensor set as is counted."""

    def __init__(self, truth: dict[str, Any], parts: dict[str, Any], classes: int) -> None:
        self._truth = {name: np.array(values, np.uint8) for name, values in truth.items()}
        self._parts = {name: np.array(values, np.uint8) for name, values in parts.items()}
        self.classes = [SimpleNamespace(name="abcdefgh"[number]) for number in range(classes)]
        self.scene_ids = self.training_ids = list(truth)

    def truth(self, name: str) -> Any:
        return self._truth[name]

    def load(self, name: str) -> Any:
        return SimpleNamespace(parts=self._parts[name])


@pytest.mark.parametrize(
    ("counts", "rare"),
    [
        ((50, 40, 18, 12), ["d"]),  # an equal share is 30
        ((50, 40, 15, 15), []),  # half of it is not less than half
        ((90, 15, 15, 0), ["d"]),
        ((100, 10, 5, 5), ["b", "c", "d"]),
    ],
)
def test_rare_classes(sets: ModuleType, counts: tuple[int, ...], rare: list[str]) -> None:
    every = np.repeat([0, 1, 2, 3, 255], [*counts, 70])  # what is unknown counts for nothing
    data = FakeSet({"one": every[::2], "two": every[1::2]}, {}, 4)
    assert sets.rare_classes(data) == rare


def test_pixels_of_the_parts(sets: ModuleType) -> None:
    truth = {"one": [0, 1, 255, 0, 1, 0, 255], "two": [1, 1, 1, 0]}
    parts = {
        "one": [TRAIN, TRAIN, TRAIN, BUFFER, VAL, TEST, TEST], "two": [TRAIN, TEST, TEST, TEST],
    }  # fmt: skip
    assert sets.part_pixels(FakeSet(truth, parts, 2)) == {"train": 3, "test": 4}


def test_minerals_of_a_made_up_cube(sets: ModuleType) -> None:
    band = np.arange(188)
    flat = np.full(188, 0.6)
    varnish = 0.1 + 0.4 * band / 187  # a slope: no absorption
    montmorillonite = flat * (1 - 0.4 * np.exp(-(((band - 170) / 3) ** 2)))
    alunite = flat * (1 - 0.4 * np.exp(-(((band - 150) / 3) ** 2)))
    endmembers = np.stack([varnish, montmorillonite, alunite], axis=1)
    shares = {
        (1, 0, 0): 0,
        (0, 1, 0): 1,
        (0, 0, 1): 2,
        (0, 0.4, 0.6): 2,  # alunite's part of the absorption is 0.6
        (0, 0.6, 0.4): 1,
        (0, 0.48, 0.52): 255,  # too near to one half
        (0, 0.46, 0.54): 2,
        (0.6, 0.4, 0): 0,
        (0.4, 0.6, 0): 1,
        (0.51, 0.49, 0): 255,
        (0.8, 0.05, 0.15): 2,  # where there is alunite, the absorption decides, not the share
    }
    spectra = np.array(list(shares)) @ endmembers.T
    found = sets.cuprite_truth(spectra, endmembers)
    assert dict(zip(shares, found.tolist(), strict=True)) == shares
    # brightness says nothing of the absorption
    assert sets.cuprite_truth(0.5 * spectra, endmembers).tolist() == found.tolist()


# all of it


@pytest.mark.parametrize(("draws", "code"), [(4, 0), (1, 1)])  # 20 pairs, and 5
def test_finished_pieces_become_a_table_and_an_exit_code(
    gain: ModuleType,
    sets: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    draws: int,
    code: int,
) -> None:
    names, out = ("cuprite", "simulated"), tmp_path / "out"
    (tmp_path / "data" / "hsi").mkdir(parents=True)
    monkeypatch.setattr(gain, "DATA", tmp_path / "data")
    monkeypatch.setattr(gain, "ProcessPoolExecutor", ThreadPoolExecutor)
    for name in names:
        monkeypatch.setitem(sets.MAKERS, name, sets.Maker(lambda _, where: described(where), ()))
        digest = sets.set_digest(described(tmp_path / "same").parent)
        for number in range(10 * draws):
            fold, draw, arm = number % 5, 1 + number // 10, gain.ARMS[number // 5 % 2]
            job = gain.Piece(name, 5, fold, draw, arm)
            recipe = load_recipe(
                gain.recipe_path(name), [*gain.overrides(job, None), "distill.steps=7"]
            )
            figure = 0.8 + (0.02 + 0.001 * fold if arm == "distilled" else 0)
            found = piece(fold, draw, arm, figure, name=name, code=f"made-by-{fold // 4}")
            found["made_from"] = gain.made_from(recipe, digest, None)
            path = out / "pieces" / f"{job.key}-{arm}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found))
    asked = ["-o", str(out), "--sets", ",".join(names), "--labels", "5", "--jobs", "1"]
    asked += ["--draws", str(draws), "--arms", "labels,distilled", "--set", "distill.steps=7"]
    done = CliRunner().invoke(gain.main, asked)
    assert done.exit_code == code, done.output
    said = [line for line in done.output.splitlines() if "pieces were made by" in line]
    assert said and f"{16 * draws} by made-by-0, {4 * draws} by made-by-1" in said[0]
    assert json.loads(done.output[done.output.index('{"rule"') :])["passed"] is (code == 0)
