"""The section of whole systems: in page, Markdown and JSON, marked, escaped, absent where it is."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from edgekd.report.markdown import render_markdown
from edgekd.report.record import BenchmarkRecord
from edgekd.report.render import render_html
from edgekd.report.sections import report_data
from edgekd.report.system import with_teacher
from edgekd.report.system_view import system_rows, system_view
from edgekd.report.words import result_rows
from edgekd.telemetry.power import PowerUnavailable
from tests.helpers.powers import ORIN, make_power_record, make_powered, make_samples
from tests.helpers.records import make_golden, make_record
from tests.helpers.systems import system_recipe, with_system, without_power
from tests.report.test_render import BOTH, EVIL, Render, parse

HEADING = "Whole system: sensors and computing"
REPLAY = replace(ORIN, name="replay", source="replay: x.log")


@pytest.fixture(scope="module")
def powered() -> BenchmarkRecord:
    return with_system(make_powered())


def unmeasured() -> BenchmarkRecord:
    return make_record(power=PowerUnavailable(reason="no sensor here", sensors={}))


def section(record: BenchmarkRecord) -> str:
    """The section of the page, as HTML."""
    found = re.search(r'<div class="block system">.*?\n</div>\n', render_html([record]), re.S)
    assert found is not None
    return found[0]


def rows(record: BenchmarkRecord) -> dict[str, list[str]]:
    """The table by the first cell of its rows."""
    view = system_view(record)
    assert view is not None
    head, body = view.table
    assert all(len(row) == len(head) for row in body)
    return {row[0]: row[1:] for row in [head, *body]}


def drawn(text: str) -> list[tuple[str, float]]:
    """Class and width, units of the plot, of each part of a bar, in order."""
    parts = re.findall(r'<rect class="seg ([^"]*)"[^>]*width="([\d.]+)"', text)
    return [(kind, float(width)) for kind, width in parts]


@BOTH
def test_a_recipe_without_sensors_has_no_such_section(show: Render) -> None:
    record = make_powered()
    assert "Whole system" not in show([record]) and system_view(record) is None
    assert system_rows(record) == [] and report_data([record])["records"][0]["system"] is None


@BOTH
def test_figures_their_words_and_sources_stand_in_both(
    show: Render, powered: BenchmarkRecord
) -> None:
    text = re.sub(r"<[^>]*>", " ", show([powered])).replace("\\", "")
    for word in (HEADING, "82.9 % less power: 16.0 W in place of 93.5 W", "22.5 (declared)",
                 "data sheet of the imager", "AGX Orin at MAXN", "J per km²", "by ina3221",
                 "a clamp meter, mean of a flight", "at work all the while"):  # fmt: skip
        assert word in text, word
    assert re.search(r"1[23]\.\d+ ± 0\.\d+ \(measured\)", text)


def test_the_table_puts_them_side_by_side(powered: BenchmarkRecord) -> None:
    found = rows(powered)
    assert found[""] == ["teacher", "student", "student saves"]
    assert found["spectral, W"] == ["22.5 (declared)", "off", "–"]
    assert list(found)[1:5] == ["visual, W", "spectral, W", "lidar, W", "computing, W"]
    teacher = system_recipe()["teachers"][0] | {"sensors": ["lidar", "visual"]}
    assert list(rows(with_system(make_powered(), teachers=[teacher])))[1] == "lidar, W"
    assert found["whole system, W"] == ["93.5 (declared)", "16.0 (declared + measured)", "82.9 %"]
    # 93.5 W / 250 m² per s; a pixel is 0.01 m²
    assert found["J per km²"][0] == "374,000" and found["J per Mpx"][0] == "3,740"
    assert found["J per km²"][2] == "82.9 %"
    assert found["ground, m² per s"] == ["250 (the declared survey)"] * 2 + ["–"]


def test_what_is_not_known_is_said_and_never_a_number() -> None:
    found = rows(with_system(unmeasured(), sensors=without_power("lidar")))
    assert found["lidar, W"] == ["not known", "off"]
    assert found["computing, W"] == ["60.0 (declared)", "not measured"]
    assert found["whole system, W"] == [
        "at least 85.5 (declared; not known: lidar)",
        "at least 3.00 (declared; not known: computing)",
    ]
    assert found["J per km²"] == ["at least 342,000", "at least 12,000"]
    bare = with_system(
        unmeasured(), sensors=without_power("visual", "spectral", "lidar"), system={}
    )
    found = rows(bare)
    assert found["whole system, W"] == ["not known", "not known"] and "J per km²" not in found
    view = system_view(bare)
    assert view is not None and view.chart == ""  # nothing to draw
    assert not re.search(r"\b0(\.0+)? (W|\(declared)", section(bare))


def test_what_the_teacher_needs_may_be_open_or_come_from_another_sensor() -> None:
    """Where nobody says which sensors are on, none of them is called off."""
    found = rows(with_system(make_powered(), teachers=[{"name": "efficientnet_lite"}]))
    assert found["visual, W"][:2] == ["–", "3.00 (declared)"]
    assert found["sensors, W"][:2] == ["not known", "–"] and "lidar, W" not in found
    assert found["whole system, W"][0] == "at least 60.0 (declared; not known: sensors)"
    sensors = without_power()
    sensors["visual"]["derive"] = {"from": "spectral", "bands": [9, 6, 3]}
    found = rows(with_system(make_powered(), sensors=sensors))
    assert found["visual, W"][:2] == ["computed from spectral", "3.00 (declared)"]
    assert found["whole system, W"][0] == "90.5 (declared)"


@BOTH
def test_a_lower_bound_is_one_in_every_sentence(show: Render) -> None:
    record = with_system(make_powered(), sensors=without_power("lidar"))
    text = re.sub(r"<[^>]*>", " ", show([record]))
    assert "draws at least 81.3 % less power: 16.0 W in place of at least 85.5 W" in text
    assert rows(record)["whole system, W"][2] == "at least 81.3 %"
    dict_rows = dict(system_rows(record))
    assert dict_rows["whole system: teacher, W"].startswith("at least 85.5: ")


def test_a_student_that_draws_more_says_so() -> None:
    sensors = without_power()
    sensors["visual"]["power"]["watts"] = 60.0
    sensors["spectral"]["power"]["watts"] = 1.0
    teacher = {"name": "efficientnet_lite", "sensors": ["spectral"]}
    spec = {"teacher_computing": {"watts": 9.0, "source": "a board"}}
    record = with_system(make_powered(), sensors=sensors, teachers=[teacher], system=spec)
    view = system_view(record)
    assert view is not None and re.match(r"The student's system draws 6\d\d\.\d % more", view.lead)
    assert "less" not in view.lead and "less" not in view.chart


def test_bars_are_as_long_as_their_watts(powered: BenchmarkRecord) -> None:
    text = section(powered)
    parts = drawn(text)
    assert [kind for kind, _ in parts] == [
        "sensor told", "sensor told", "sensor told", "computing told", "sensor told",
        "computing seen",
    ]  # fmt: skip
    system = powered.system
    assert system is not None and system.teacher is not None
    watts = [draw.power_w for side in (system.teacher, system.student) for draw in side.draws]
    shares = [width / parts[0][1] for _, width in parts]
    assert shares == pytest.approx([(value or 0) / 3.0 for value in watts], rel=0.01)
    # each begins where the one before it ends, the student's at 0 again
    begins = [float(x) for x in re.findall(r'<rect class="seg [^"]*" x="([\d.]+)"', text)]
    ends = [begin + width for begin, (_, width) in zip(begins, parts, strict=True)]
    assert begins == pytest.approx([0, *ends[:3], 0, ends[4]], abs=0.2)
    assert 900 < ends[3] < 1000
    label = re.search(r'role="img" aria-label="(power of the whole system[^"]*)"', text)
    assert label is not None
    for word in ("teacher 93.5 W", "student 16.0 W", "lidar 8.00 (declared)", "(measured)"):
        assert word in label[1]


def test_what_is_not_known_is_an_open_end_of_the_bar() -> None:
    parts = drawn(section(with_system(unmeasured())))
    assert [kind for kind, _ in parts][-2:] == ["sensor told", "open"]
    assert "open" not in dict(drawn(section(with_system(make_powered()))))
    assert "not known how much" in section(with_system(unmeasured()))


@BOTH
def test_a_replay_says_so_and_saves_nothing(show: Render) -> None:
    power = make_power_record(make_samples(info=REPLAY))
    record = with_system(make_powered(power=power))
    text = show([record]).replace("\\", "")
    assert f"{HEADING} (replay)" in text and "Not compared: a replay says nothing" in text
    assert "student saves" not in text
    view = system_view(record)
    assert view is not None and "16.0 W (replay)" in view.chart
    assert all("replay" in row[2] for row in view.table[1] if row[0] in
               ("computing, W", "whole system, W"))  # fmt: skip


@BOTH
def test_a_record_that_is_not_valid_says_so_in_the_section(show: Render) -> None:
    record = with_system(make_powered(golden=make_golden(1.0)))
    text = show([record])
    assert "Not compared: this record is NOT VALID." in text and "student NOT VALID" in text
    parts = drawn(section(record))
    assert [("hollow" in kind) for kind, _ in parts] == [False] * 4 + [True] * 2


def test_the_teachers_record_is_named_beside_what_the_recipe_says(
    powered: BenchmarkRecord,
) -> None:
    strong = make_powered(power=make_power_record(make_samples(scene_w=68.0, engine_w=75.0)))
    record = with_teacher(powered, strong, "agx.json")
    view = system_view(record)
    assert view is not None
    sources = {row[0]: row[1:] for row in view.sources[1]}
    assert sources["teacher: computing"][1].startswith("agx.json: ")
    assert "measured" in sources["teacher: computing"][0]
    assert sources["visual"] == ["3.00 W, declared", "data sheet of the camera"]
    assert any("declares 60.0 W" in note for note in view.notes)
    assert not any("not timed" in note for note in view.notes)
    assert any("not timed" in note for note in (system_view(powered) or view).notes)


def test_a_slow_student_holds_up_the_survey() -> None:
    spec = system_recipe()["system"] | {"survey_m2_per_s": 40_000.0}
    view = system_view(with_system(make_powered(), system=spec))
    assert view is not None
    assert any("student computes 20,000 m² per s" in note for note in view.notes)


def test_the_terminal_and_json_hold_it(powered: BenchmarkRecord) -> None:
    names = [name for name, _ in result_rows(powered)]
    assert "whole system: teacher, W" in names and "whole system: student, J per km²" in names
    data = json.loads(json.dumps(report_data([powered]), allow_nan=False))
    system = data["records"][0]["system"]
    assert system["power_saved_share"] == pytest.approx(0.829, abs=1e-3)
    assert system["teacher"]["total_w"] == 93.5
    assert system["student"]["computing"]["status"] == "measured"
    assert system["declared"]["sensors"][1]["power"]["source"] == "data sheet of the imager"


def test_everything_declared_is_escaped() -> None:
    sensors = without_power()
    sensors["lidar"]["power"]["source"] = EVIL
    spec = {"teacher_computing": {"watts": 60.0, "source": EVIL}}
    record = with_system(make_powered(), sensors=sensors, system=spec)
    page = render_html([record])
    assert "alert(1)" in page and parse(page).tags.count("script") == 1
    markdown = render_markdown([record])
    assert "<script" not in markdown and "alert(1)" in markdown
