"""Commands on bundles, checkpoints, recipes and sets of places."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edgekd.cli.main import main
from edgekd.contracts.evidence import SCORES
from edgekd.contracts.place_evidence import PlaceReader, rules_of_zones
from edgekd.contracts.policy import load_policy
from edgekd.contracts.projection import OBEYED, past_bounds
from edgekd.errors import InputError
from edgekd.runtime.backends.onnxrt import OnnxRuntimeBackend
from edgekd.runtime.bundle import read_manifest
from edgekd.runtime.places import open_places
from tests.helpers.bundles import make_bundle
from tests.helpers.keys import make_pair
from tests.helpers.place_line import (
    CLASSES,
    ROWS,
    RULES,
    PlaceLine,
    embeddings,
    make_place_set,
    place_values,
    reuse_export,
    use_small_student,
)
from tests.helpers.series_record import write_record

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The set's rules, and a ban on parks from a day on."""
    ban = {
        "id": "parks", "type": "linear", "coefficients": {"park": 1}, "max": 0, "priority": 3,
        "source": "invented", "valid": {"from": "2030-01-01"},
    }  # fmt: skip
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(RULES | {"rules": [*RULES["rules"], ban]}))
    return path


def run(bundle: Path, line: PlaceLine, out: Path, *more: str) -> int:
    return main(["run", str(bundle), str(line.data), "-o", str(out), "--embeddings",
                 str(line.texts), *more])  # fmt: skip


def test_run_writes_an_answer_for_each_place(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, rules: Path, capsys: Capture
) -> None:
    out = tmp_path / "a.csv"
    day = ["--rules", str(rules), "--day", "2031-05-01", "--json"]
    assert run(place_bundle, place_line, out, *day) == 0
    said = json.loads(capsys.readouterr().out)
    places = place_line.places()
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [row.name for row in places.rows]
    assert {row["simulated"] for row in rows} == {"true"} and said["simulated"] is True
    given = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in rows])
    policy = load_policy(rules)
    import datetime

    known = rules_of_zones(
        policy, policy.zones, datetime.date(2031, 5, 1), CLASSES, places.facts, ROWS
    )
    for row, answer in zip(rows, given, strict=True):
        limits = known[row["zone"]].limits
        assert past_bounds(answer[None], limits.rules, limits.bounds)[0] <= OBEYED + 4e-6
        assert row["answer"] == CLASSES[answer.argmax()]
        assert float(row["probability"]) == answer.max()
    assert given[:, 3].max() <= 2e-5, "no parks from 2030 on"
    assert "park" in {row["answer_without_rules"] for row in rows}
    assert said["changed_by_rules"] == sum(r["answer"] != r["answer_without_rules"] for r in rows)
    assert said["rules"]["day"] == "2031-05-01" and sum(said["answers"].values()) == len(rows)
    with open_places(place_bundle) as session:
        reader = PlaceReader(places, session.manifest.inputs[0], embeddings(places))
        one = session.answer([reader(0)], known[rows[0]["zone"]].limits)
    assert np.abs(one.probabilities[0] - given[0]).max() < 1e-5
    earlier = tmp_path / "b.csv"
    assert run(place_bundle, place_line, earlier, "--rules", str(rules), "--day", "2029-12-31",
               "--split", "test") == 0  # fmt: skip
    assert "SIMULATED" in capsys.readouterr().out
    with earlier.open(newline="") as file:
        before = list(csv.DictReader(file))
    assert len(before) == 12 and max(float(row["p_park"]) for row in before) > 0.3


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ([], 2, "name them with --rules FILE, --rules set"),
        (["--rules", "none.yaml"], 2, "none.yaml"),
        (["--rules", "set", "--bands", "1,2,3"], 2, "--bands cannot be used here"),
        (["--rules", "set", "--zone-column", "group"], 2, "the rules made-up have the zones"),
        (["--rules", "set", "--day", "soon"], 2, "expected a day like"),
        (["--rules", "set", "--split", "spare"], 2, "no place of split spare"),
        (["--rules", "set", "--embeddings", "none.npy"], 2, "none.npy does not exist; give"),
    ],
)
def test_what_run_refuses_leaves_nothing(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture, more: list[str],
    code: int, words: str,
) -> None:  # fmt: skip
    assert run(place_bundle, place_line, tmp_path / "a.csv", *more) == code
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_a_run_that_breaks_off_leaves_no_file(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    real, calls = OnnxRuntimeBackend.infer, iter(range(100))

    def late(self: Any, inputs: Any, stream: bool = False) -> Any:
        found = real(self, inputs, stream)
        if next(calls) == 5:
            found[SCORES][0, 0] = np.nan
        return found

    monkeypatch.setattr(OnnxRuntimeBackend, "infer", late)
    assert run(place_bundle, place_line, tmp_path / "a.csv", "--rules", "set") == 1
    assert "scores are not finite" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_run_without_rules_and_names_that_are_no_csv(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture
) -> None:
    assert run(place_bundle, place_line, tmp_path / "a.csv", "--rules", "none") == 0
    assert "no rules; 52 places" in capsys.readouterr().out
    assert run(place_bundle, place_line, tmp_path / "a.tif", "--rules", "none") == 2
    assert "are a .csv file" in capsys.readouterr().err


def test_options_of_places_are_refused_for_maps(tmp_path: Path, capsys: Capture) -> None:
    maps = make_bundle(tmp_path / "maps")
    words = ["run", str(maps), "scene.tif", "-o", "x.tif", "--rules", "set"]
    assert main(words) == 2
    assert "--rules cannot be used here: " in capsys.readouterr().err
    words = ["eval", str(maps), "--data", str(tmp_path), "--day", "2026-01-01"]
    assert main(words) == 2
    assert "about places, and" in capsys.readouterr().err


def test_eval_gives_the_same_of_bundle_and_checkpoint(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    use_small_student(monkeypatch)
    found = []
    for model in (place_bundle, place_line.checkpoint):
        words = ["eval", str(model), "--data", str(place_line.data), "--embeddings",
                 str(place_line.texts), "--day", "2026-04-30", "--split", "all"]  # fmt: skip
        assert main([*words, "--json", "-o", str(tmp_path / "e.json")]) == 0
        found.append(json.loads(capsys.readouterr().out))
        assert json.loads((tmp_path / "e.json").read_text()) == found[-1]
    bundle, checkpoint = found
    assert bundle["what"] == "bundle of places" and checkpoint["what"] == "checkpoint of places"
    for name, both in bundle["evidence"].items():
        for when in ("before", "after"):
            mine, other = both[when], checkpoint["evidence"][name][when]
            for key in ("accuracy", "balanced_accuracy", "ece"):
                assert mine[key] == pytest.approx(other[key], abs=1e-3), (name, when, key)
    whole = bundle["evidence"]["all"]
    assert whole["after"]["compliance"]["obey"] == 1.0 > whole["before"]["compliance"]["obey"]
    assert bundle["places"] == 52 and bundle["simulated"] and bundle["day"] == "2026-04-30"
    assert main(words) == 0
    said = capsys.readouterr()
    assert "without series, after the rules" in said.out and "SIMULATED" in said.out
    assert "next: edgekd build RECIPE --target rpi5" in said.err


def test_eval_needs_what_makes_embeddings(
    place_bundle: Path, place_line: PlaceLine, capsys: Capture
) -> None:
    assert main(["eval", str(place_bundle), "--data", str(place_line.data)]) == 2
    assert "has no text encoder" in capsys.readouterr().err


def test_build_takes_a_recipe_of_places(
    place_line: PlaceLine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    reuse_export(monkeypatch, place_line)
    out = tmp_path / "b"
    words = ["build", str(place_line.recipe), "--target", "x86-cpu", "--checkpoint",
             str(place_line.checkpoint), "-o", str(out), "--embeddings", str(place_line.texts),
             "--text-encoder", "none"]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr()
    assert "gate answers_obey:" in said.out and "SIMULATED" in said.out
    assert f"next: edgekd validate {out}; edgekd run {out} SET -o answers.csv" in said.err
    manifest = read_manifest(out)
    assert manifest.provenance.recipe["name"] == "small-coast"
    assert main([*words, "--target", "orin-nx-16gb"]) == 2
    assert "takes an engine of TensorRT" in capsys.readouterr().err
    pair = make_pair(tmp_path)
    assert main(["sign", str(out), "--key", str(pair.private)]) == 0
    assert main(["verify", str(out), "--signer", str(pair.public)]) == 0
    assert main(["validate", str(out), "--signer", str(pair.public)]) == 0
    assert "answers obey their rules, signed by key" in capsys.readouterr().out
    assert main(["check", str(out), "--target", "rpi5"]) == 0
    said = capsys.readouterr()
    assert "pass: " in said.out and "SET -o answers.csv --rules FILE" in said.err
    (out / "golden.npz").write_bytes(b"x")
    assert main(["verify", str(out), "--signer", str(pair.public)]) == 1


def test_options_of_places_are_refused_by_a_build_of_maps(tmp_path: Path, capsys: Capture) -> None:
    recipe = Path(__file__).resolve().parents[2] / "engines" / "canopy.yaml"
    words = ["build", str(recipe), "--target", "x86-cpu", "--text-encoder", "none"]
    assert main(words) == 2
    assert "are about places, and" in capsys.readouterr().err


def test_inspect_tells_of_bundle_and_checkpoint(
    place_bundle: Path, place_line: PlaceLine, capsys: Capture
) -> None:
    assert main(["inspect", str(place_bundle)]) == 0
    said = capsys.readouterr().out
    for words in (
        "input image: RGB, 64 px", "input series: 40 days of level_m, wind_m_s, pressure_hpa",
        "embeddings of 8, embeddings alone", "rules: room for 5", "class house: height_m 8",
        "SIMULATED", "gate projection_vs_numpy: passed",
    ):  # fmt: skip
        assert words in said
    assert main(["inspect", str(place_line.checkpoint)]) == 0
    said = capsys.readouterr().out
    assert "which answers for places" in said and "embeddings by made-up" in said


def test_validate_reads_recipe_and_set(
    place_line: PlaceLine, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["validate", str(place_line.recipe), str(place_line.data)]) == 0
    said = capsys.readouterr().out
    assert "valid recipe of places 'small-coast', student coastal" in said
    assert "places: train 24, val 16, test 12" in said, "the recipe's own set is looked at"
    assert "valid set of places 'small', SIMULATED: 52 places, 9 series, 4 classes" in said
    data = make_place_set(tmp_path / "set")
    (data / "tiles" / "val_03.png").write_bytes(b"no picture")
    assert main(["validate", str(data / "places.yaml")]) == 2
    assert "val_03.png" in capsys.readouterr().err
    other = tmp_path / "other.yaml"
    values: dict[str, Any] = place_values(data={"root": str(place_line.data)})
    values["io"]["series"]["days"] = 50
    other.write_text(yaml.safe_dump(values))
    assert main(["validate", str(other)]) == 2
    assert "differ in days of a series: 50 and 40" in capsys.readouterr().err
    engine = Path(__file__).resolve().parents[2] / "engines" / "coastal.yaml"
    shutil.copyfile(engine, tmp_path / "coastal.yaml")
    assert main(["validate", str(tmp_path / "coastal.yaml")]) == 0
    assert "teachers efficientnet_lite (image), " in capsys.readouterr().out


def test_what_is_about_maps_refuses_a_bundle_of_places(
    place_bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["finalize", str(place_bundle)]) == 2
    assert "SET -o answers.csv" in capsys.readouterr().err


def test_students_of_places_are_listed() -> None:
    """The whole command counts FLOPs of all students of maps, which other tests do."""
    from edgekd.cli.ls import _place_students

    (coastal,) = [item for item in _place_students() if item["name"] == "coastal"]
    assert coastal["recipe"] == "coastal" and 11e6 < coastal["parameters"] < 13e6


def test_a_set_that_is_too_small_to_calibrate_is_refused_before_any_work(
    place_line: PlaceLine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.cli import _answers

    def late(*_: object) -> None:
        raise AssertionError("the encoder was opened, or the model exported, before the check")

    monkeypatch.setattr(_answers, "_training_encoder", late)
    recipe = tmp_path / "r.yaml"
    values: dict[str, Any] = place_values(data={"root": str(place_line.data)})
    values |= {"precision": {"allowed": ["fp32", "int8"]}, "calibration": {"tiles": 64}}
    recipe.write_text(yaml.safe_dump(values))
    words = ["build", str(recipe), "--target", "x86-cpu", "--checkpoint",
             str(place_line.checkpoint), "-o", str(tmp_path / "b")]  # fmt: skip
    for more in ([], ["--embeddings", str(place_line.texts), "--text-encoder", "none"]):
        assert main([*words, *more]) == 2
        said = capsys.readouterr().err
        assert "calibration asks for 64 training places, and " in said and "has 24" in said
        assert "--set calibration.tiles=24" in said and not (tmp_path / "b").exists()


def test_who_wants_rules_that_are_not_there_is_named(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture
) -> None:
    data = make_place_set(tmp_path / "set")
    (data / "rules.yaml").unlink()
    for words in (
        ["run", str(place_bundle), str(data), "-o", str(tmp_path / "a.csv"), "--rules", "none"],
        ["validate", str(data)],
    ):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert f"{data / 'places.yaml'} names the rules rules.yaml, and there is no" in said
        assert "take the key 'rules' out" in said


def test_every_command_holds_series_against_their_record(
    place_bundle: Path, place_line: PlaceLine, tmp_path: Path, capsys: Capture
) -> None:
    """Days in two splits are no matter to who only wants answers; other series are to all."""
    data, texts = make_place_set(tmp_path / "set"), ["--embeddings", str(place_line.texts)]
    about = data / "places.yaml"
    about.write_text(about.read_text().replace("  features:", "  datum: MHHW\n  features:"))
    recipe, out = tmp_path / "r.yaml", tmp_path / "a.csv"
    recipe.write_text(yaml.safe_dump(place_values(data={"root": str(data)})))
    checkpoint = str(place_line.checkpoint)
    judge = [
        ["eval", str(place_bundle), "--data", str(data), *texts],
        ["eval", checkpoint, "--data", str(data), *texts],
        ["build", str(recipe), "--target", "x86-cpu", "--checkpoint", checkpoint, *texts,
         "--text-encoder", "none", "-o", str(tmp_path / "b")],
        ["validate", str(data)],
        ["validate", str(recipe)],
    ]  # fmt: skip
    ask = ["run", str(place_bundle), str(data), "-o", str(out), "--rules", "none", *texts]
    bench = ["bench", str(place_bundle), "-o", str(tmp_path / "r.json"), "--rules", "none",
             "--data", str(data), *texts]  # fmt: skip
    years = [2010, 2011, 2012, 2013, 2014, 2015, 2016, 2011, 2018]
    write_record(data, years)
    for words in judge:
        assert main(words) == 2, words
        assert "series 1 (train) and 7 (test) share 35 days" in capsys.readouterr().err
    assert main(ask) == 0 and out.is_file()
    out.unlink()
    for more, said in (
        ({"datum": "MLLW"}, "above MHHW, and series.json that they are above MLLW"),
        ({"sha256": "0"}, "series.npz is not the file that"),
    ):
        write_record(data, range(2010, 2019), **more)
        for words in (*judge, ask, bench):
            capsys.readouterr()
            assert main(words) == 2, words
            assert said in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "b").exists()
    write_record(data, range(2010, 2019))
    assert main(judge[-1]) == main(ask) == 0


def test_embeddings_of_another_encoder_are_refused(
    place_line: PlaceLine, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from edgekd.report.places import require_same_encoder

    places = place_line.places()
    right = embeddings(places)
    own = {row.text: right[at] for at, row in enumerate(places.rows)}
    session: Any = SimpleNamespace(
        evidence=SimpleNamespace(text_encoder=object()),
        embed=lambda texts: np.stack([own[text] for text in texts]),
    )
    require_same_encoder(session, places, right, "t.npy")
    near = right + np.float32(0.02)  # as eight bits are from FP32
    require_same_encoder(session, places, near, "t.npy")
    others = np.random.default_rng(0).standard_normal(right.shape).astype(np.float32)
    for wrong in (100 * right, np.roll(right, 1, axis=1), others):
        with pytest.raises(
            InputError, match="t.npy: the embedding of the text of place .* another"
        ):
            require_same_encoder(session, places, wrong, "t.npy")
    session.evidence.text_encoder = None  # then nobody can tell
    require_same_encoder(session, places, others, "t.npy")
