"""Teacher and student as whole systems: sums by hand, bounds, and refusing what was changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekd.errors import InputError
from edgekd.report.power import PowerPending, PowerRecord
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from edgekd.report.system import Bench, SystemRecord, make_system, with_teacher
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sensors._base import SensorInfo
from tests.helpers.powers import ORIN, make_power_record, make_powered, make_samples
from tests.helpers.records import make_evidence, make_golden, make_record, make_scene
from tests.helpers.systems import (
    COMPUTING_W,
    GSD_M,
    LIDAR_W,
    SPECTRAL_W,
    TEACHER_W,
    VISUAL_W,
    declared,
    system_recipe,
    with_system,
    without_power,
)

REPLAY = replace(ORIN, name="replay", source="replay: x.log")
ESTIMATE = replace(ORIN, name="pmic", source="estimate: a formula")
WALL = replace(ORIN, name="meter", scope="wall")
RAPL = SensorInfo("rapl", "module", ("package-0",), "measured", 0.04, 0.45)


@pytest.fixture(scope="module")
def powered() -> BenchmarkRecord:
    return make_powered()


@pytest.fixture(scope="module")
def strong() -> BenchmarkRecord:
    """Of the machine that computes the teacher: about 68 W."""
    return make_powered(
        power=make_power_record(make_samples(idle_w=20.0, engine_w=75.0, scene_w=68.0)),
        name="fusion",
    )


def board(record: BenchmarkRecord, info: SensorInfo | None = None) -> Bench:
    """What the record says of its machine, by another sensor if given."""
    if info is None:
        return Bench.of_record(record)
    power = make_power_record(make_samples(info=info))
    return replace(Bench.of_record(record), power=power)


def scene_w(record: BenchmarkRecord) -> float:
    assert isinstance(record.power, PowerRecord) and record.power.scene is not None
    return record.power.scene.mean_w.value


def unmeasured() -> BenchmarkRecord:
    return make_record(power=PowerUnavailable(reason="no sensor", sensors={}))


def test_the_sums_by_hand(powered: BenchmarkRecord) -> None:
    system = make_system(declared(), board(powered))
    teacher, student, watts = system.teacher, system.student, scene_w(powered)
    assert teacher is not None and teacher.complete and student.complete
    assert (teacher.sensors_w, teacher.total_w) == (VISUAL_W + SPECTRAL_W + LIDAR_W, TEACHER_W)
    assert student.sensors_w == VISUAL_W
    assert student.total_w == pytest.approx(VISUAL_W + watts) and 12 < watts < 14
    assert [draw.status for draw in student.draws] == ["declared", "measured"]
    assert system.power_saved_share == pytest.approx(1 - (VISUAL_W + watts) / TEACHER_W)
    assert not system.saved_at_least and system.not_compared == ""
    assert "ina3221" in student.computing.source and student.computing.scope == "module"


def test_the_articles_example() -> None:
    """45.2 W of camera, imager, LiDAR and computing become 8.7 W: 80.7 % by the article."""
    record = make_powered(power=make_power_record(make_samples(scene_w=6.5, engine_w=7.0)))
    sensors = system_recipe()["sensors"]
    sensors["visual"]["power"]["watts"] = 8.7 - scene_w(record)
    sensors["spectral"]["power"]["watts"] = 12.0
    sensors["lidar"]["power"]["watts"] = 8.0
    rest = 45.2 - (8.7 - scene_w(record)) - 20.0
    computing = {"teacher_computing": {"watts": rest, "source": "the article's sum"}}
    system = make_system(declared(sensors=sensors, system=computing), board(record))
    assert system.teacher is not None
    assert system.teacher.total_w == pytest.approx(45.2)
    assert system.student.total_w == pytest.approx(8.7)
    assert system.power_saved_share == pytest.approx(0.8075, abs=5e-5)


def test_without_a_camera_energy_is_what_the_record_measured(powered: BenchmarkRecord) -> None:
    """As fast as it computes, and a camera of 0 W: the joules of the bench, end to end."""
    assert isinstance(powered.power, PowerRecord) and powered.power.scene is not None
    work = powered.power.scene
    sensors = system_recipe()["sensors"]
    sensors["visual"]["power"]["watts"] = 0.0
    # the scenes there have 4 m² a pixel
    sensors = {name: spec | {"gsd_m": 2.0} for name, spec in sensors.items()}
    student = make_system(declared(sensors=sensors, system=None), board(powered)).student
    assert work.gross_j_per_mpx is not None and work.gross_j_per_km2 is not None
    assert student.paced_by == "computing"
    assert student.j_per_tile == pytest.approx(work.gross_j_per_tile.value, rel=1e-3)
    assert student.j_per_mpx == pytest.approx(work.gross_j_per_mpx.value, rel=1e-3)
    assert student.j_per_km2 == pytest.approx(work.gross_j_per_km2.value, rel=1e-3)


def test_the_survey_sets_the_pace_where_it_is_slower(powered: BenchmarkRecord) -> None:
    bench = board(powered)
    rate = bench.px_per_s * GSD_M**2
    assert rate == pytest.approx(20_000)  # 2 Mpx/s
    for survey, pace, by in ((250.0, 250.0, "survey"), (40_000.0, rate, "computing")):
        spec = system_recipe()["system"] | {"survey_m2_per_s": survey}
        system = make_system(declared(system=spec), bench)
        student, teacher = system.student, system.teacher
        assert teacher is not None and student.total_w is not None
        assert (student.m2_per_s, student.paced_by) == (pytest.approx(pace), by)
        assert student.j_per_km2 == pytest.approx(student.total_w / pace * 1e6)
        assert student.j_per_mpx == pytest.approx(student.total_w / pace * GSD_M**2 * 1e6)
        assert student.j_per_tile == pytest.approx(
            student.total_w / pace * GSD_M**2 * bench.px_per_tile
        )
        # nobody timed the teacher: it is taken to keep up
        assert (teacher.m2_per_s, teacher.paced_by) == (survey, "survey")
        assert teacher.j_per_km2 == pytest.approx(TEACHER_W / survey * 1e6)
        assert system.energy_saved_share == pytest.approx(
            1 - (student.total_w / pace) / (TEACHER_W / survey)
        )


def test_the_ground_is_the_inputs_where_it_has_one(powered: BenchmarkRecord) -> None:
    bench = replace(board(powered), m2_per_px=0.25)
    system = make_system(declared(), bench)
    assert (system.m2_per_px, system.ground) == (0.25, "input")
    system = make_system(declared(), board(powered))
    assert (system.m2_per_px, system.ground) == (pytest.approx(0.01), "declared")
    scene = make_scene([2.0, 2.0, 2.0]).model_copy(update={"area_m2": 1e6})
    assert Bench.of_record(make_record(make_evidence(scene=scene))).m2_per_px == 0.25


def test_a_teacher_that_nobody_timed_has_no_energy_without_a_survey(
    powered: BenchmarkRecord,
) -> None:
    spec = {"teacher_computing": {"watts": 60.0, "source": "a guess"}}
    system = make_system(declared(system=spec), board(powered))
    assert system.teacher is not None and system.teacher.j_per_km2 is None
    assert "survey_m2_per_s" in system.teacher.without_energy
    assert system.student.j_per_km2 is not None and system.energy_saved_share is None
    assert system.power_saved_share is not None


@pytest.mark.parametrize("lost", [["lidar"], ["spectral", "lidar"]])
def test_a_sensor_without_power_makes_a_lower_bound(
    powered: BenchmarkRecord, lost: list[str]
) -> None:
    system = make_system(declared(sensors=without_power(*lost)), board(powered))
    teacher, student = system.teacher, system.student
    assert teacher is not None and not teacher.complete and teacher.missing == lost
    known = TEACHER_W - sum({"lidar": LIDAR_W, "spectral": SPECTRAL_W}[name] for name in lost)
    assert teacher.total_w == pytest.approx(known) and student.complete
    assert system.saved_at_least and system.power_saved_share is not None
    # more power of the teacher would only save more
    whole = make_system(declared(), board(powered)).power_saved_share
    assert whole is not None and system.power_saved_share < whole


def test_what_is_not_known_of_the_student_ends_the_comparison() -> None:
    system = make_system(declared(), board(unmeasured()))
    assert system.student.total_w == VISUAL_W and not system.student.complete
    assert system.student.computing.power_w is None
    assert "not measured: no sensor" in system.student.computing.source
    assert system.power_saved_share is None and "computing" in system.not_compared
    # its rate is known without power
    assert system.student.m2_per_s is not None
    camera = make_system(declared(sensors=without_power("visual")), board(make_powered()))
    assert camera.power_saved_share is None and "visual" in camera.not_compared


def test_nothing_known_is_no_number() -> None:
    bare = declared(
        sensors=without_power("visual", "spectral", "lidar"), system={"survey_m2_per_s": 9.0}
    )
    system = make_system(bare, board(unmeasured()))
    assert system.teacher is not None
    for side in (system.teacher, system.student):
        assert side.total_w is None and side.sensors_w is None and side.j_per_km2 is None
        assert not side.complete and side.without_energy


def test_a_processor_alone_is_a_lower_bound(powered: BenchmarkRecord) -> None:
    system = make_system(declared(), board(powered, RAPL))
    assert system.student.computing.at_least and not system.student.complete
    assert "the processor alone" in system.student.computing.source
    assert system.power_saved_share is None
    # of the teacher it makes "at least"
    system = make_system(declared(), board(powered), board(powered, RAPL), "pc.json")
    assert system.power_saved_share is not None and system.saved_at_least


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        (REPLAY, None, "a replay says nothing"),
        (None, REPLAY, "a replay says nothing"),
        (None, WALL, "power of the wall and of the module are different things"),
        (WALL, None, ""),
        (ESTIMATE, None, ""),
    ],
)
def test_what_may_be_compared(
    powered: BenchmarkRecord, student: SensorInfo | None, teacher: SensorInfo | None, words: str
) -> None:
    theirs = None if teacher is None else board(powered, teacher)
    system = make_system(declared(), board(powered, student), theirs, "t.json")
    assert words in system.not_compared and bool(words) == bool(system.not_compared)
    assert (system.power_saved_share is None) == bool(words)
    if student is not None:
        assert system.student.computing.status == student.status


def test_a_record_that_is_not_valid_is_not_compared() -> None:
    record = with_system(make_powered(golden=make_golden(1.0)))
    assert record.system is not None and record.system.power_saved_share is None
    assert "NOT VALID" in record.system.not_compared


def test_the_teachers_record_takes_the_place_of_what_is_declared(
    powered: BenchmarkRecord, strong: BenchmarkRecord
) -> None:
    record = with_system(powered)
    found = with_teacher(record, strong, "agx.json").system
    assert found is not None and found.teacher is not None
    sensors = VISUAL_W + SPECTRAL_W + LIDAR_W
    assert found.teacher.total_w == pytest.approx(sensors + scene_w(strong))
    assert abs(scene_w(strong) - COMPUTING_W) > 5
    assert found.teacher.computing.status == "measured"
    assert found.teacher.computing.source.startswith("agx.json: ")
    # timed, so that it has energy without a survey, at its own pace
    bare = with_teacher(with_system(powered, system=None), strong, "agx.json").system
    assert bare is not None and bare.teacher is not None
    assert bare.teacher.paced_by == "computing" and bare.energy_saved_share is not None
    assert with_teacher(powered, strong, "agx.json") == powered  # no sensors, no system


def test_a_teachers_record_without_a_figure_is_refused(powered: BenchmarkRecord) -> None:
    record = with_system(powered)
    with pytest.raises(InputError, match="t.json holds no power end to end") as caught:
        with_teacher(record, unmeasured(), "t.json")
    assert "\n" not in str(caught.value) and "teacher_computing" in str(caught.value)
    with pytest.raises(InputError, match="t.json is not valid .failed: outputs_right"):
        with_teacher(record, make_powered(golden=make_golden(1.0)), "t.json")


def test_a_record_comes_back_as_it_was_written(tmp_path: Path, powered: BenchmarkRecord) -> None:
    for record in (with_system(powered), with_system(unmeasured()), powered):
        write_record(record, tmp_path / "r.json")
        assert read_record(tmp_path / "r.json") == record


def test_a_record_of_before_has_no_system(tmp_path: Path, powered: BenchmarkRecord) -> None:
    values = powered.plain()
    del values["system"]
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert read_record(tmp_path / "r.json").system is None


def _set(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        place: Any = values
        for key in path[:-1]:
            place = place[key]
        assert place[path[-1]] != value
        place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _set("student", "total_w", value=3.0),
        _set("student", "sensors_w", value=1.0),
        _set("student", "computing", "power_w", value=5.0),
        _set("student", "computing", "status", value="declared"),
        _set("student", "computing", "at_least", value=True),
        _set("student", "computing", "scope", value="wall"),
        _set("student", "sensors", 0, "power_w", value=0.5),
        _set("student", "sensors", 0, "source", value="measured by us"),
        _set("student", "j_per_km2", value=1.0),
        _set("student", "m2_per_s", value=1.0),
        _set("student", "complete", value=False),
        _set("teacher", "total_w", value=500.0),
        _set("teacher", "computing", "power_w", value=500.0),
        _set("teacher", "computing", "source", value="a data sheet"),
        _set("teacher", value=None),
        _set("power_saved_share", value=0.99),
        _set("energy_saved_share", value=None),
        _set("saved_at_least", value=True),
        _set("m2_per_px", value=4.0),
        _set("ground", value="input"),
        # what is declared must be changed everywhere
        _set("declared", "sensors", 1, "power", "watts", value=99.0),
        _set("declared", "teacher_computing", "watts", value=99.0),
        _set("declared", "survey_m2_per_s", value=None),
        _set("declared", "teacher_sensors", value=None),
    ],
)
def test_a_changed_figure_is_refused(
    tmp_path: Path, powered: BenchmarkRecord, change: Callable[[dict[str, Any]], None]
) -> None:
    values = with_system(powered).plain()
    change(values["system"])
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="system does not follow") as caught:
        read_record(tmp_path / "r.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gsd_m", [1e200, 1e-200, 0.0, -1.0])
def test_an_absurd_figure_is_refused_and_no_traceback(
    tmp_path: Path, powered: BenchmarkRecord, gsd_m: float
) -> None:
    values = with_system(powered).plain()
    values["system"]["declared"]["gsd_m"] = gsd_m
    (tmp_path / "r.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="gsd_m"):
        read_record(tmp_path / "r.json")


def test_sentences_are_those_of_the_reader(tmp_path: Path, powered: BenchmarkRecord) -> None:
    """Another version may word them otherwise; what they say of the machine is made again."""
    record = with_system(powered)
    values = record.plain()
    values["system"]["student"]["computing"]["source"] = "another machine"
    (tmp_path / "r.json").write_text(json.dumps(values))
    assert read_record(tmp_path / "r.json") == record


def test_a_record_that_waits_for_a_meter_is_not_measured() -> None:
    pending = PowerPending(reason="a meter's file is to be added", guard_s=1, phases=[])
    bench = replace(board(unmeasured()), power=pending)
    student = make_system(declared(), bench).student
    assert student.total_w == VISUAL_W and not student.complete
    assert "a meter's file" in student.computing.source


def test_fields_with_a_quantity_carry_their_unit() -> None:
    units = ("_w", "_m", "_share", "_m2_per_s", "_m2_per_px", "watts")
    units += ("j_per_tile", "j_per_mpx", "j_per_km2", "m2_per_s", "m2_per_px")
    system = make_system(declared(), board(unmeasured()))

    def visit(value: Any, name: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, key)
        elif isinstance(value, list):
            for item in value:
                visit(item, name)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            assert name.endswith(units), name

    visit(system.model_dump(), "")
    assert isinstance(system, SystemRecord)
