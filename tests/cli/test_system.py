"""Whole systems as a user types them: validate, inspect, bench, report, power import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import main
from edgekd.contracts.recipe import parse_recipe
from edgekd.report.external import add_meter
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from edgekd.telemetry.logs import read_power_file
from tests.helpers.bundles import an_origin, make_bundle
from tests.helpers.labelled import recipe_values, write_recipe
from tests.helpers.powers import make_power_record, make_powered, make_samples
from tests.helpers.records import decide, make_golden, make_record
from tests.helpers.systems import system_recipe, with_system
from tests.report.test_external import pending, write_meter

pytest.importorskip("onnxruntime")
FAST = ["--seconds", "0.05", "--warmup", "0", "--power", "none"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose recipe has sensors."""
    recipe = parse_recipe(system_recipe(), "a test").plain()
    changes = {"provenance": an_origin() | {"recipe": recipe}}
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64, changes=changes)


def failure(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that ends with 2."""
    assert main([str(part) for part in arguments]) == 2
    out, err = capsys.readouterr()
    (line,) = [text for text in err.splitlines() if text.startswith("error:")]
    assert out == "" and "Traceback" not in err
    return line


def test_validate_tells_what_is_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, system_recipe())
    assert main(["validate", str(recipe)]) == 0
    assert "declared power: teacher 93.5 W, student's sensors 3 W" in capsys.readouterr().out
    assert main(["validate", str(recipe), "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["results"]
    assert item["system"]["teacher_computing"] == {"watts": 60.0, "source": "AGX Orin at MAXN"}
    plain = write_recipe(tmp_path, recipe_values())
    assert main(["validate", str(plain)]) == 0
    assert "declared power" not in capsys.readouterr().out


def test_inspect_tells_what_is_declared(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(bundle)]) == 0
    out = capsys.readouterr().out
    assert "lidar 8 W (a clamp meter, mean of a flight)" in out
    assert "declared power of the student's sensors: visual 3 W" in out


def test_bench_takes_it_from_the_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    decide(monkeypatch)
    path = tmp_path / "r.json"
    assert main(["bench", str(bundle), "-o", str(path), *FAST]) == 0
    out = capsys.readouterr().out
    assert "whole system: student, W" in out and "computing not measured" in out
    system = read_record(path).system
    assert system is not None and system.teacher is not None
    assert system.teacher.total_w == 93.5 and system.student.total_w == 3.0
    assert system.student.computing.status == "unknown" and system.power_saved_share is None
    # noise has no ground, so the recipe's camera says how large a pixel is
    assert (system.ground, system.student.paced_by) == ("declared", "survey")


def test_bench_refuses_a_recipe_that_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = parse_recipe(system_recipe(), "a test").plain()
    recipe["sensors"]["lidar"]["power"] = {"watts": "many", "source": "nobody"}
    changes = {"provenance": an_origin() | {"recipe": recipe}}
    odd = make_bundle(tmp_path / "odd", tile_px=64, changes=changes)
    line = failure(["bench", odd, *FAST], capsys)
    assert "the recipe inside bundle tiny" in line and "watts" in line


def test_a_meters_file_completes_the_system(tmp_path: Path) -> None:
    record = with_system(pending())
    assert record.system is not None and not record.system.student.complete
    meter = write_meter(tmp_path / "meter.csv", 10.0, 0.3)
    found = add_meter(record, read_power_file(meter, scope="board"), "meter.csv")
    assert found.system is not None and found.system.student.total_w is not None
    assert found.system.student.total_w == pytest.approx(3.0 + 12.0, rel=0.01)
    assert found.system.student.computing.scope == "board"
    write_record(found, tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == found


@pytest.fixture
def records(tmp_path: Path) -> dict[str, Path]:
    """A student's record, one without sensors, and those of three machines for the teacher."""
    made: dict[str, BenchmarkRecord] = {
        "student": with_system(make_powered()),
        "plain": make_powered(),
        "teacher": make_powered(power=make_power_record(make_samples(scene_w=68.0))),
        "invalid": make_powered(golden=make_golden(1.0)),
        "unpowered": make_record(),
    }
    paths = {name: tmp_path / f"{name}.json" for name in made}
    for name, record in made.items():
        write_record(record, paths[name])
    return paths


def test_report_with_the_teachers_record(
    records: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["report", str(records["student"]), "--teacher-record", str(records["teacher"])]
    page, data = tmp_path / "r.html", tmp_path / "out.json"
    assert main([*words, "-o", str(page)]) == 0
    assert "teacher.json: " in page.read_text() and "the figure of the record" in page.read_text()
    assert main([*words, "-o", str(data)]) == 0
    (found,) = json.loads(data.read_text())["records"]
    assert found["system"]["teacher"]["computing"]["status"] == "measured"
    assert found["system"]["teacher"]["total_w"] == pytest.approx(33.5 + 68.0, rel=0.01)
    # the record itself is as it was
    system = read_record(records["student"]).system
    assert system is not None and system.teacher is not None and system.teacher.total_w == 93.5
    # one that has no sensors stands beside it untouched
    capsys.readouterr()
    assert main([*words, str(records["plain"]), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["records"]
    assert first["system"] is not None and second["system"] is None


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ("plain", "teacher", "the recipe of no record here has any"),
        ("student", "student", "is the record of a student here"),
        ("student", "invalid", "invalid.json is not valid (failed: outputs_right)"),
        ("student", "unpowered", "unpowered.json holds no power end to end"),
    ],
)
def test_a_teachers_record_that_does_not_fit_is_one_line(
    records: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    student: str,
    teacher: str,
    words: str,
) -> None:
    line = failure(["report", records[student], "--teacher-record", records[teacher]], capsys)
    assert words in line


def test_the_teachers_record_is_not_written_over(
    records: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = records["teacher"].read_bytes()
    line = failure(
        ["report", records["student"], "--teacher-record", records["teacher"], "-o",
         records["teacher"]], capsys,
    )  # fmt: skip
    assert "is one of the records" in line and records["teacher"].read_bytes() == before
