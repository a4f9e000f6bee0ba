"""What a recipe declares of its system: copied with its source, and what is absent is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgekd.contracts.recipe import load_recipe, parse_recipe
from edgekd.contracts.system import declared_lines, declared_summary, declared_system, known_w
from edgekd.errors import RecipeError
from tests.helpers.labelled import recipe_values, write_recipe
from tests.helpers.systems import (
    COMPUTING_W,
    LIDAR_W,
    SPECTRAL_W,
    SURVEY_M2_PER_S,
    TEACHER_W,
    VISUAL_W,
    declared,
    system_recipe,
    without_power,
)

CAMERA: dict[str, Any] = {"kind": "image", "channels": 3, "gsd_m": 0.1}


def derived(**more: Any) -> dict[str, Any]:
    """Sensors of which the camera is made from the imager, as in a set without a camera."""
    sensors: dict[str, Any] = system_recipe()["sensors"]
    return sensors | {
        "visual": CAMERA | {"derive": {"from": "spectral", "bands": [9, 6, 3]}} | more
    }


def test_a_recipe_without_sensors_declares_no_system() -> None:
    assert declared_system(parse_recipe(recipe_values(), "a test").plain(), "a test") is None
    assert declared_system({"name": "as old bundles hold it"}, "a test") is None
    bare = system_recipe(sensors=without_power("visual", "spectral", "lidar"), system=None)
    assert declared_system(parse_recipe(bare, "a test").plain(), "a test") is None


def test_what_is_declared_is_copied_with_its_source() -> None:
    found = declared()
    assert [draw.power_w for draw in found.teacher_draws()] == [VISUAL_W, SPECTRAL_W, LIDAR_W]
    assert [draw.power_w for draw in found.student_draws()] == [VISUAL_W]
    assert found.teacher_computes().power_w == COMPUTING_W
    every = [*found.teacher_draws(), found.teacher_computes()]
    assert {draw.status for draw in every} == {"declared"}
    assert every[1].source == "data sheet of the imager" and every[3].source == "AGX Orin at MAXN"
    assert known_w(every) == TEACHER_W
    assert (found.survey_m2_per_s, found.gsd_m) == (SURVEY_M2_PER_S, 0.1)
    assert found.teacher == "efficientnet_lite lite0"


def test_a_sensor_without_power_is_not_known_and_never_zero() -> None:
    found = declared(sensors=without_power("lidar", "visual"))
    visual, spectral, lidar = found.teacher_draws()
    for draw in (visual, lidar):
        assert (draw.power_w, draw.status) == (None, "unknown") and draw.lacking
        assert f"sensors.{draw.name}.power" in draw.source
    assert spectral.power_w == SPECTRAL_W and not spectral.lacking
    assert known_w(found.student_draws()) is None


@pytest.mark.parametrize(
    ("sensors", "names", "expected"),
    [
        # computed from a device that is on: nothing more, even where a camera is declared
        (derived(), ["visual", "spectral"], ["derived", "declared"]),
        (derived(power={"watts": 2.0, "source": "a camera"}), ["visual", "spectral"],
         ["derived", "declared"]),
        # alone in the field it is a camera, declared or not
        (derived(power={"watts": 2.0, "source": "a camera"}), ["visual"], ["declared"]),
        (derived(), ["visual"], ["unknown"]),
    ],
)  # fmt: skip
def test_a_derived_sensor_draws_nothing_beside_its_source(
    sensors: dict[str, Any], names: list[str], expected: list[str]
) -> None:
    teacher = {"name": "efficientnet_lite", "weights": "random", "sensors": names}
    found = declared(sensors=sensors, teachers=[teacher])
    assert [draw.status for draw in found.teacher_draws()] == expected
    assert [draw.power_w is None for draw in found.teacher_draws()] == [
        status != "declared" for status in expected
    ]


def test_a_sensor_is_derived_over_several_steps() -> None:
    sensors = derived()
    step = {"kind": "spectral", "channels": 9, "gsd_m": 0.1,
            "derive": {"from": "spectral", "bands": list(range(1, 10))}}  # fmt: skip
    sensors |= {"few": step, "visual": CAMERA | {"derive": {"from": "few", "bands": [9, 6, 3]}}}
    teacher = {"name": "efficientnet_lite", "sensors": ["visual", "spectral"]}
    visual, _ = declared(sensors=sensors, teachers=[teacher]).teacher_draws()
    assert (visual.status, visual.source) == ("derived", "computed from spectral")


def test_a_teacher_whose_sensors_nobody_names_is_not_known() -> None:
    (draw,) = declared(teachers=[{"name": "efficientnet_lite"}]).teacher_draws()
    assert (draw.name, draw.power_w, draw.status) == ("sensors", None, "unknown")
    assert "teachers" in draw.source
    computes = declared(system=None).teacher_computes()
    assert computes.lacking and "--teacher-record" in computes.source


def test_a_recipe_without_the_students_camera_is_refused() -> None:
    sensors = {"spectral": system_recipe()["sensors"]["spectral"]}
    with pytest.raises(RecipeError, match="must be named visual"):
        declared(sensors=sensors, teachers=[], system=None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"teachers": [{"name": "efficientnet_lite", "sensors": ["lidr"]}]},
         "needs sensor 'lidr', which the recipe does not have; did you mean 'lidar'?"),
        ({"teachers": [{"name": "efficientnet_lite", "sensors": []}]}, "at least 1 item"),
        ({"sensors": {}, "teachers": [{"name": "efficientnet_lite"}]}, "has no sensors"),
        ({"teachers": []}, "teacher_computing is of a teacher"),
        ({"system": {"teacher_computing": {"watts": 60}}}, "lacks the key 'source'"),
        ({"system": {"teacher_computing": {"watts": -1, "source": "none"}}}, "watts is -1"),
        ({"system": {"survey_m2_per_s": 0}}, "greater than or equal to 0.000000001"),
        ({"system": {"survey_m2_per_s": 1e300}}, "less than or equal to 1000000000000000"),
        ({"sensors": derived(power={"watts": 1e308, "source": "all"})}, "watts is 1e+308"),
        ({"sensors": derived(gsd_m=1e200)}, "gsd_m is 1e+200"),
        ({"system": {"survey": 1}}, "unknown key 'survey'"),
    ],
)  # fmt: skip
def test_a_fault_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(tmp_path, system_recipe(**changes)))
    assert [text for text in caught.value.problems if words in text and text.startswith("line ")]
    assert len(caught.value.problems) == 1


def test_a_recipe_in_a_bundle_that_cannot_be_read_is_an_error() -> None:
    recipe = parse_recipe(system_recipe(), "a test").plain()
    recipe["sensors"]["lidar"]["power"] = {"watts": "many", "source": "x"}
    with pytest.raises(RecipeError, match="the recipe inside b"):
        declared_system(recipe, "the recipe inside b")


def test_words() -> None:
    teacher, student, rate = declared_lines(declared())
    assert teacher.endswith("computing 60 W (AGX Orin at MAXN): 93.5 W")
    assert "spectral 22.5 W (data sheet of the imager)" in teacher
    assert student.endswith("3 W, and what edgekd bench measures") and "250 m²" in rate
    assert declared_summary(declared()) == ("declared power: teacher 93.5 W, student's sensors 3 W")
    lacking = declared(sensors=without_power("lidar", "visual"))
    assert declared_summary(lacking) == (
        "declared power: teacher at least 82.5 W, student's sensors not known"
    )
    assert "lidar not known, no power is declared" in declared_lines(lacking)[0]
