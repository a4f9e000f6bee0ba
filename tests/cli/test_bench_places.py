"""``edgekd bench``, ``run`` and ``eval`` of bundles of places as a planner types them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.contracts.place_set import load_places
from edgekd.report.record import BenchmarkRecord, read_record
from tests.helpers.bundles import make_bundle
from tests.helpers.place_bundles import make_place_bundle
from tests.helpers.place_line import embeddings, make_place_set
from tests.helpers.records import decide

pytest.importorskip("onnxruntime")
Capture = pytest.CaptureFixture[str]
FAST = ["--seconds", "0.05", "--warmup", "0", "--power", "none"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set without the column, and its embeddings beside it."""
    root = make_place_set(tmp_path_factory.mktemp("data") / "set")
    np.save(root.parent / "texts.npy", embeddings(load_places(root)))
    with (root / "places.csv").open(newline="") as file:
        rows = [[*row[:4], *row[5:]] for row in csv.reader(file)]
    with (root / "places.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def test_bench_prints_answers_writes_the_record_and_its_report(
    bundle: Path, unlabelled: Path, tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    decide(monkeypatch)
    record = tmp_path / "record.json"
    words = ["--data", str(unlabelled), "--embeddings", str(unlabelled.parent / "texts.npy"),
             "--rules", "set", "--day", "2026-01-01", "--split", "val"]  # fmt: skip
    assert main(["bench", str(bundle), "-o", str(record), *words, *FAST]) == 0
    out, err = capsys.readouterr()
    for said in ("end to end: answers/s", "end to end: network and projection, p50, p90, p99, ms",
                 "end to end: one answer p99, ms", "SIMULATED", "made-up (", "embeddings lie ready",
                 "16 places of small, split val"):  # fmt: skip
        assert said in out, said
    figures = out.split("outputs_right")[0]  # the checks are those of a record of tiles
    assert "tiles" not in figures and f"next: edgekd report {record}" in err
    kept = read_record(record)
    assert kept.command is not None and kept.command.startswith(
        f"edgekd bench {bundle.name} --data set --split val --embeddings texts.npy --rules set "
        "--day 2026-01-01 --power none"
    )
    for name in ("r.html", "r.md", "r.json"):
        assert main(["report", str(record), "-o", str(tmp_path / name)]) == 0
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["records"][0]["unit"] == "answer"


def test_bench_by_default_asks_about_what_the_bundle_stores_without_rules(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch)
    assert main(["bench", str(bundle), "--json", *FAST]) == 0
    record = BenchmarkRecord.model_validate(json.loads(capsys.readouterr().out))
    assert record.input.kind == "golden" and record.answers is not None
    assert record.answers.rules is None and "golden places of the bundle" in record.answers.evidence


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--rules", "set"], "--rules set are those of a set, and there is none; give --data"),
        (["--split", "val"], "--split is about a set's places, and there is no set"),
        (["--embeddings", "x.npy"], "--embeddings is about a set's places"),
        (["--bands", "1,2,3"], "--bands cannot be used here: "),
        (["--overlap", "4"], "--overlap cannot be used here: "),
        (["--provider", "CPUExecutionProvider"], "--provider cannot be used here: "),
        (["--rules", "absent.yaml"], "absent.yaml"),
        (["--data", "absent"], "absent is no set of places"),
        (["--day", "soon"], "expected a day like"),
        (["scene.tif"], "leave scene.tif out, or give a set of places with --data"),
    ],
)
def test_what_bench_refuses(
    bundle: Path, tmp_path: Path, capsys: Capture, more: list[str], words: str
) -> None:
    record = tmp_path / "r.json"
    assert main(["bench", str(bundle), *more, "-o", str(record), *FAST]) == 2
    err = capsys.readouterr().err
    assert words in err and len([x for x in err.splitlines() if x.startswith("error:")]) == 1
    assert not record.exists()


def test_a_set_without_a_text_encoder_needs_embeddings(
    bundle: Path, unlabelled: Path, capsys: Capture
) -> None:
    assert main(["bench", str(bundle), "--data", str(unlabelled), *FAST]) == 2
    assert "has no text encoder" in capsys.readouterr().err


def test_options_of_places_are_refused_for_maps_and_both_are_not_mixed(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    maps = make_bundle(tmp_path / "maps", tile_px=64)
    assert main(["bench", str(maps), "--data", "x", "--rules", "none", *FAST]) == 2
    assert "--data, --rules cannot be used here: " in capsys.readouterr().err
    both = ["bench", str(maps), "--interleave", str(bundle), "-o", str(tmp_path / "o"), *FAST]
    assert main(both) == 2
    assert "tiles and answers are not compared" in capsys.readouterr().err


def test_two_bundles_of_places_are_measured_in_turns(
    bundle: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    decide(monkeypatch)
    out = tmp_path / "turns"
    both = ["bench", str(bundle), "--interleave", str(bundle), "-o", str(out), *FAST]
    assert main([*both, "--repeats", "2"]) == 0
    assert (out / "report.html").exists() and "tiles" not in capsys.readouterr().out
    records = [read_record(out / f"{letter}.json") for letter in "AB"]
    assert all(record.turns and record.turns.order == "ABBA" for record in records)


def test_run_answers_for_places_that_nobody_knows(
    bundle: Path, unlabelled: Path, tmp_path: Path, capsys: Capture
) -> None:
    texts = ["--embeddings", str(unlabelled.parent / "texts.npy")]
    labelled = make_place_set(tmp_path / "set")
    found = []
    for data in (unlabelled, labelled):
        out = tmp_path / f"{len(found)}.csv"
        words = ["run", str(bundle), str(data), "-o", str(out), "--rules", "set", *texts]
        assert main([*words, "--day", "2026-01-01"]) == 0
        found.append(out.read_text())
    assert found[0] == found[1] and len(found[0].splitlines()) == 53
    assert main(["eval", str(bundle), "--data", str(unlabelled), *texts]) == 2
    err = capsys.readouterr().err
    assert "places.csv, line 2: place train_00 has no label, and learning and counting" in err
    assert main(["validate", str(unlabelled)]) == 0
    assert "without a label: 52; edgekd run and bench take them" in capsys.readouterr().out
