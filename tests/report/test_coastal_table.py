"""What ``benchmarks/coastal_gain.py`` concludes from answers, by cases computed by hand.

Nothing is trained here: the answers of teachers and students are made up.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgekd.contracts.evidence import KINDS
from edgekd.contracts.projection import Limits
from edgekd.errors import InputError
from tests.helpers.tiny_places import tiny_recipe

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("scipy")
#: the second class has at most 0.3
RULE = Limits(
    np.array([[0, 1]], np.float32), np.array([0.3], np.float32), np.array([0.9, 0.1], np.float32)
)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("_coastal_table")


@pytest.fixture
def pieces(table: ModuleType) -> ModuleType:
    return importlib.import_module("_coastal_pieces")


def logits(*rows: tuple[float, ...]) -> np.ndarray:
    return np.log(np.array(rows, np.float32))


#: teachers that disagree: their mean answers the first class (0.503), their product the second
TORN = {"image": (0.01, 0.99), "series": (0.75, 0.25), "text": (0.75, 0.25)}


def scores_of(table: ModuleType, students: np.ndarray, **cases: np.ndarray) -> dict[str, Any]:
    """Of an arm: torn teachers on both splits, the same answer in every case but those named."""
    count = len(students)
    found = {f"test/{case}": cases.get(case.replace(" ", "_"), students) for case in table.CASES}
    for split in ("val", "test"):
        found |= {f"{split}/teacher {k}": logits(*[TORN[k]] * count) for k in KINDS}
    return found


def group(pieces: ModuleType, scores: dict[str, Any], labels: dict[str, Any]) -> dict[str, Any]:
    return {
        "distilled": pieces.Piece("distilled", 0, scores, 2.0, {k: 1 / 3 for k in KINDS}),
        "labels": pieces.Piece("labels", 0, labels, 1.0, {}),
    }


def test_ensembles_by_hand(table: ModuleType) -> None:
    scores = {f"val/teacher {k}": logits(TORN[k]) for k in KINDS}
    assert table.ensemble(scores, "val", "mean")[0] == pytest.approx([0.503333, 0.496667], abs=1e-5)
    # 0.01 0.75 0.75 : 0.99 0.25 0.25
    assert table.ensemble(scores, "val", "product")[0] == pytest.approx(
        [0.005625 / 0.0675, 0.061875 / 0.0675], abs=1e-5
    )


def test_the_ensemble_is_chosen_by_validation_places_and_no_other(
    table: ModuleType, pieces: ModuleType
) -> None:
    """Of the validation places the mean is right, of the test places the product."""
    scores = scores_of(table, logits((0.6, 0.4), (0.6, 0.4)))
    both = group(pieces, scores, scores)
    for right, how in ((0, "mean"), (1, "product")):
        labels = {"val": np.array([right] * 2), "test": np.array([1 - right] * 2)}
        found = table.of_seed(both, labels, [RULE] * 2)
        assert found["ensemble_is"] == how
        assert found["rows"]["ensemble"]["accuracy"] == 0, "the one that is wrong on the test"
        assert found["right"]["ensemble"].tolist() == [False, False]
        # of teachers whose answers are the other way round on the test, labels as before
        mirrored = {name: v[:, ::-1] if "test/t" in name else v for name, v in scores.items()}
        found = table.of_seed(group(pieces, mirrored, scores), labels, [RULE] * 2)
        assert found["ensemble_is"] == how and found["rows"]["ensemble"]["accuracy"] == 1


def test_figures_of_three_places_by_hand(table: ModuleType, pieces: ModuleType) -> None:
    """The rule moves (0.2, 0.8) and (0.6, 0.4) to (0.7, 0.3), and leaves (0.9, 0.1)."""
    students = logits((0.2, 0.8), (0.6, 0.4), (0.9, 0.1))
    scores = scores_of(table, students, no_text=logits(*[(0.9, 0.1)] * 3))
    labels = {"val": np.zeros(3, int), "test": np.array([0, 0, 1])}
    found = table.of_seed(group(pieces, scores, scores_of(table, students)), labels, [RULE] * 3)
    row = found["rows"]["distilled"]
    assert row["accuracy"] == pytest.approx(1 / 3) and row["accuracy_after"] == pytest.approx(2 / 3)
    assert row["balanced_accuracy"] == pytest.approx(1 / 4)
    assert row["ece"] == pytest.approx((0.8 + 0.4 + 0.9) / 3, abs=1e-5)
    assert row["ece_after"] == pytest.approx((0.3 + 0.3 + 0.9) / 3, abs=1e-4)
    assert (row["obey_before"], row["obey_after"]) == (pytest.approx(1 / 3), 1)
    assert (row["winners_obey_before"], row["winners_obey_after"]) == (pytest.approx(2 / 3), 1)
    assert found["right"]["distilled"].tolist() == [False, True, False]
    assert found["rows"]["distilled, no text"]["obey_before"] == 1, "a case has its own answers"
    assert found["rows"]["labels, no text"]["obey_before"] == pytest.approx(1 / 3)
    assert found["rows"]["teacher text"]["accuracy"] == pytest.approx(2 / 3)
    assert set(found["rows"]) == set(found["right"]) == {
        *(f"teacher {kind}" for kind in KINDS), "ensemble",
        *(a if case == "all" else f"{a}, {case}" for a in pieces.ARMS for case in table.CASES),
    }  # fmt: skip


def seed(one: float, other: float = 0.0, **more: float) -> dict[str, Any]:
    return {"rows": {"one": {"accuracy": one, **more}, "other": {"accuracy": other, **more}}}


def test_means_and_the_interval_over_seeds_by_hand(table: ModuleType) -> None:
    seeds = {0: seed(0.3, 0.2), 1: seed(0.7, 0.4)}
    found = table.together(seeds)
    assert found["one"]["accuracy"] == pytest.approx({"mean": 0.5, "sd": 0.08**0.5})
    assert np.isnan(table.together({0: seed(1)})["one"]["accuracy"]["sd"])
    # gains 0.1 and 0.3: deviation sqrt(0.02), error 0.1; t with 1 degree of freedom is 12.7062
    assert table.paired(seeds, "one", "other") == pytest.approx(
        {"mean": 0.2, "half": 1.27062, "seeds": 2}, rel=1e-5
    )
    assert np.isnan(table.paired({0: seed(1)}, "one", "other")["half"])


def right(*one: str) -> dict[int, Any]:
    """Seed -> which places are right, as ``"+.-"``: by ``one`` alone, by both, by the other."""
    return {
        number: {
            "right": {"one": np.array([c != "-" for c in text]),
                      "other": np.array([c != "+" for c in text])}
        }
        for number, text in enumerate(one)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seeds", "coasts", "expected"),
    [
        # two coasts: a quarter of the draws has one of them twice, so both are inside 95 %
        (("++..",) * 3, "aabb", (0.5, 0.0, 1.0)),
        (("+.+.",) * 3, "abab", (0.5, 0.0, 1.0)),  # in any order
        (("+.-.",) * 3, "aabb", (0.0, -0.5, 0.5)),
        # the same gain on both: no coast and no seed says anything else
        (("+.+.",) * 3, "aabb", (0.5, 0.5, 0.5)),
        # the same on all coasts, other seeds
        (("++++", "...."), "aabb", (0.5, 0.0, 1.0)),
        # one coast and one seed: nothing to draw
        (("+.--",), "aaaa", (-0.25, -0.25, -0.25)),
        # places count, not coasts: one of one place, one of three
        (("+...",), "abbb", (0.25, 0.0, 1.0)),
    ],
)
def test_the_interval_over_coasts_and_seeds_by_hand(
    table: ModuleType, seeds: tuple[str, ...], coasts: str, expected: tuple[float, float, float]
) -> None:
    found = table.drawn_again(right(*seeds), list(coasts), "one", "other", draws=2000)
    assert (found["mean"], found["low"], found["high"]) == pytest.approx(expected)
    assert (found["coasts"], found["draws"]) == (len(set(coasts)), 2000)
    assert found == table.drawn_again(right(*seeds), list(coasts), "one", "other", draws=2000)


def test_seeds_that_agree_say_nothing_of_coasts(table: ModuleType) -> None:
    """Half of ten coasts gain: over seeds without any doubt, over coasts with a wide one.

    The mean of ten draws of 0 or 1 has a deviation of 0.158: 0.5 +- 0.31.
    """
    seeds = right(*["+" * 50 + "." * 50] * 5)
    found = table.drawn_again(seeds, [f"c{at // 10}" for at in range(100)], "one", "other")
    assert found["mean"] == 0.5
    assert found["low"] == pytest.approx(0.2, abs=0.11)
    assert found["high"] == pytest.approx(0.8, abs=0.11)
    rows = {n: seed(0.5) for n in range(5)}
    assert table.paired(rows, "one", "other")["half"] == 0
    gains = {"one less other": {**table.paired(rows, "one", "other"), "coasts_and_seeds": found}}
    (line,) = table.gain_lines(gains)
    assert line.startswith("one less other: +50.0 points; 95 %: ±0.0 over the 5 seeds alone, +")
    assert line.endswith(" over 10 coasts and the seeds")


def test_the_verdict_takes_the_worst_of_all_seeds_and_rows(table: ModuleType) -> None:
    def rows(obey: float) -> dict[str, Any]:
        return {
            "rows": {
                "ensemble": {"accuracy": 0.60, "obey_after": 1.0},
                "distilled": {"accuracy": 0.57, "obey_after": 1.0},
                "labels": {"accuracy": 0.10, "obey_after": obey},
            }
        }

    seeds = {0: rows(1.0), 1: rows(1.0)}
    found = table.verdict(seeds, table.together(seeds), 15.0)
    assert found["points_below_ensemble"] == pytest.approx(3)
    assert found["within_points"] and found["fast_enough"] and found["all_obey"]
    seeds = {0: rows(1.0), 1: rows(0.998)}
    found = table.verdict(seeds, table.together(seeds), 14.9)
    assert found["least_obey_after"] == 0.998 and not found["all_obey"] and not found["fast_enough"]
    seeds[0]["rows"]["ensemble"]["accuracy"] = 0.63  # 4.5 points on the mean of both
    found = table.verdict(seeds, table.together(seeds), None)
    assert not found["within_points"] and found["fast_enough"] is None


@pytest.mark.parametrize(
    ("times", "no_timing", "want"),
    [
        (15.0, False, True), (14.9, False, False), (14.9, True, False), (15.0, True, True),
        (None, False, False), (None, True, True),
    ],
)  # fmt: skip
def test_what_was_not_timed_does_not_hold_unless_nobody_asked(
    table: ModuleType, times: float | None, no_timing: bool, want: bool
) -> None:
    rows = {name: {"accuracy": 0.9, "obey_after": 1.0} for name in ("ensemble", "distilled")}
    seeds = {0: {"rows": rows}}
    found = table.verdict(seeds, table.together(seeds), times)
    assert found["not_judged"] == (["fast_enough"] if times is None else [])
    assert table.held(found, no_timing) == want
    for key in ("within_points", "all_obey"):
        assert not table.held(found | {key: False}, no_timing)


# the pieces, and the record


def test_kept_pieces_are_taken_and_never_trained_nor_removed(
    pieces: ModuleType, tmp_path: Path
) -> None:
    data = SimpleNamespace(digest="d", present=np.ones((2, 3), "f4"), rows={"train": [0, 1]})
    opened = SimpleNamespace(data=data, text={"sha256": "t"})
    folder = tmp_path / "seed_3" / "labels"
    folder.mkdir(parents=True)
    (folder / "begun.txt").write_text("of other settings")
    asked = (tmp_path, opened, tmp_path, "labels", 3, print)
    with pytest.raises(InputError, match="seed_3/labels holds no finished piece .* --kept"):
        pieces.make(tiny_recipe(), *asked, kept=True)
    assert (folder / "begun.txt").is_file()


def test_pieces_from_before_a_key_are_still_known(pieces: ModuleType) -> None:
    recipe = tiny_recipe()
    before, after = (
        pieces._that_matters(
            recipe.model_copy(
                update={"distill": recipe.distill.model_copy(update={"balance_decay": decay})}
            )
        )
        for decay in (0.98, 0.9)
    )
    assert "balance_decay" not in before["distill"] and "targets" not in before
    assert "sampling" not in before["distill"], "what it does depends on the set"
    assert after["distill"] == before["distill"] | {"balance_decay": 0.9}


@pytest.fixture
def gain(table: ModuleType, pieces: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script with a set of four places on two coasts and answers that are made up."""
    found = importlib.import_module("coastal_gain")
    rows = [SimpleNamespace(group=f"coast_{at // 2}") for at in range(4)]
    places = SimpleNamespace(about=SimpleNamespace(source="a test"), rows=rows)
    data = SimpleNamespace(
        places=places, rows={"val": [0], "test": [0, 1, 2, 3]}, labels=np.zeros(4, int), digest="d"
    )
    opened = SimpleNamespace(data=data, text={"sha256": "t"})

    def make(*given: Any) -> Any:
        arm, kept = given[4], given[7]
        assert kept
        sure = {"distilled": (0.8, 0.8, 0.2, 0.2), "labels": (0.2,) * 4}[arm]
        scores = scores_of(table, logits(*[(value, 1 - value) for value in sure]))
        scores |= {f"val/teacher {kind}": logits(TORN[kind]) for kind in KINDS}
        return pieces.Piece(arm, given[5], scores, 1.0, {k: 1 / 3 for k in KINDS})

    monkeypatch.setattr(found, "open_for_training", lambda *given: opened)
    monkeypatch.setattr(found, "limits_of", lambda *given: [RULE] * 4)
    monkeypatch.setattr(found, "make", make)
    return found


@pytest.mark.parametrize(("options", "code"), [([], 1), (["--no-timing"], 0)])
def test_without_milliseconds_it_ends_as_its_help_says(
    gain: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], code: int
) -> None:
    """No record is there to take them from; nothing but them is wanting."""
    environment = gain.here()[1]
    monkeypatch.setattr(gain, "here", lambda: (tmp_path, environment))
    monkeypatch.setattr(gain.tables, "MOST_POINTS", 100)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "places.yaml").touch()
    asked = ["--data", str(tmp_path / "set"), "-o", str(tmp_path), "--seeds", "2", "--kept"]
    result = CliRunner().invoke(gain.main, [*asked, *options])
    assert '"not_judged": ["fast_enough"]' in result.output, result.output
    assert result.exit_code == code, result.output


def test_the_record_says_what_its_reader_must_know(
    gain: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    environment = gain.here()[1]
    monkeypatch.setattr(gain, "here", lambda: (tmp_path, environment))
    timing = {"times": 16.0, "lines": ["  student 1 ms"]}
    (tmp_path / "coastal_gain.json").write_text(json.dumps({"timing": timing}))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "places.yaml").touch()
    asked = ["--data", str(tmp_path / "set"), "-o", str(tmp_path), "--seeds", "2", "--kept"]
    for _ in range(2):  # the second takes over what the first took over
        result = CliRunner().invoke(gain.main, [*asked, "--write"])
        assert result.exit_code == 1, "half are right, and all of the ensemble" + result.output
        assert (
            isinstance(result.exception, SystemExit) and '"within_points": false' in result.output
        )
        text = (tmp_path / "coastal_gain.txt").read_text()
        record = json.loads((tmp_path / "coastal_gain.json").read_text())
        for said in (text, " ".join(record["notes"])):
            assert "zone of a place" in said and "is drawn from the truth" in said
            assert "partly an oracle" in said
        gains = record["gains"]["distilled less labels"]
        assert (gains["mean"], gains["half"]) == (0.5, 0)
        wide = gains["coasts_and_seeds"]
        assert (wide["low"], wide["high"], wide["coasts"]) == (0, 1, 2), (
            "of the test places' coasts"
        )
        assert "+0.0 to +100.0 over 2 coasts and the seeds" in text
        assert record["timing"]["taken_over"] and record["timing"]["times"] == 16
        assert text.count("taken over from an earlier record") == 1
        assert (tmp_path / "coastal_gain.png").stat().st_size > 10_000
