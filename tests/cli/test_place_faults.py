"""Sets as they come: places that lack a kind are answered for, impossible values are not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgekd.cli.main import main
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_set import load_places
from edgekd.runtime.places import open_places
from tests.helpers.place_bundles import make_place_bundle
from tests.helpers.place_changes import blank, put_value, some_lack
from tests.helpers.place_line import WIDTH, make_place_set, place_values, vectors_of

pytest.importorskip("onnxruntime")
Capture = pytest.CaptureFixture[str]
FAST = ["--seconds", "0.05", "--warmup", "0", "--power", "none"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = blank(make_place_set(tmp_path / "set"), some_lack)
    places = load_places(folder)
    np.save(folder / "texts.npy", row_embeddings(places, WIDTH, vectors_of))
    return folder


def words_of(command: str, bundle: Path, data: Path, out: Path) -> list[str]:
    given = ["--embeddings", str(data / "texts.npy")]
    if command == "run":
        return ["run", str(bundle), str(data), "-o", str(out / "a.csv"), "--rules", "set", *given]
    if command == "eval":
        return ["eval", str(bundle), "--data", str(data), "--split", "test", "--json", *given]
    if command == "bench":
        return ["bench", str(bundle), "--data", str(data), "-o", str(out / "b.json"), *FAST, *given]
    if command == "validate":
        return ["validate", str(data)]
    recipe = out / "small.yaml"
    recipe.write_text(yaml.safe_dump(place_values(data={"root": str(data)})))
    if command == "validate RECIPE":
        return ["validate", str(recipe)]
    return ["distill", str(recipe), "-o", str(out / "run")]


COMMANDS = ["run", "eval", "bench", "validate", "validate RECIPE"]


def test_run_answers_from_what_a_place_has(
    bundle: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words_of("run", bundle, data, tmp_path)) == 0
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    places = load_places(data)
    assert [row["name"] for row in rows] == [row.name for row in places.rows]
    at = next(n for n, row in enumerate(places.rows) if row.kinds == ("image",))
    from edgekd.contracts.evidence import Evidence
    from edgekd.contracts.place_evidence import read_picture

    with open_places(bundle) as session:
        alone = session.answer([Evidence(image=read_picture(places.rows[at], 64))])
    free = float(rows[at]["probability_without_rules"])
    assert free == pytest.approx(float(alone.before.max()), abs=1e-5)


def test_eval_and_validate_count_them(
    bundle: Path, data: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(words_of("eval", bundle, data, tmp_path)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["has"] == {"image": 9, "series": 9, "text": 9}
    assert found["evidence"]["without image"]["places"] == 11
    assert main(["eval", str(bundle), "--data", str(data), "--split", "test", "--embeddings",
                 str(data / "texts.npy")]) == 0  # fmt: skip
    assert "without image (11 places), after the rules" in capsys.readouterr().out
    for command in ("validate", "validate RECIPE"):
        assert main(words_of(command, bundle, data, tmp_path)) == 0
        assert "places without a kind: image 13, series 13, text 18" in capsys.readouterr().out


def test_bench_asks_about_them(bundle: Path, data: Path, tmp_path: Path) -> None:
    assert main(words_of("bench", bundle, data, tmp_path)) in (0, 1)  # 1: a check of so short a run
    answers = json.loads((tmp_path / "b.json").read_text())["answers"]
    assert answers["places"] == 16 and "of them lack a kind" in answers["evidence"]


@pytest.mark.parametrize("command", [*COMMANDS, "distill"])
def test_an_impossible_value_is_exit_two(
    bundle: Path, data: Path, tmp_path: Path, capsys: Capture, command: str
) -> None:
    put_value(data, 7, 12, 2, -5)
    assert main(words_of(command, bundle, data, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "series 7 (place test_01 and 3 more): day 12 has -5 for pressure_hpa, expected" in said
    assert "850 to 1090 (what a coast can have); a gap is NaN" in said
    assert not (tmp_path / "a.csv").exists() and not (tmp_path / "b.json").exists()


def test_a_bundle_keeps_its_own_golden_places_whatever_their_values(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.contracts.evidence import EvidenceTensors
    from edgekd.contracts.plausible import Plausible, Range

    real = EvidenceTensors.__init__

    def narrow(self: EvidenceTensors, image, series, text) -> None:  # type: ignore[no-untyped-def]
        real(self, image, series, text)
        self.plausible = Plausible(series.features, [Range(0, 1e-9, "nothing")] * 3)

    monkeypatch.setattr(EvidenceTensors, "__init__", narrow)
    with open_places(bundle) as session:
        session.verify()
        assert session.golden_error() < 1e-3
        with pytest.raises(Exception, match="0 to 1e-09 .nothing."):
            session.answer(session.read_golden().places())
    assert main(["bench", str(bundle), "-o", str(tmp_path / "r.json"), *FAST]) != 2
