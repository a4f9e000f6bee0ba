"""What a whole system draws: the sensors that must be on, and what computes, as a recipe tells it.

The student's system is the camera ``visual`` and a board that ``edgekd bench`` measures; the
teacher's is the sensors of the recipe's first teacher and the machine that computes it. What a
recipe declares is copied with its source, and what nobody declared is not known, never 0 W.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.distill import TeacherSpec
from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, parse_document
from edgekd.contracts.sensors import DeclaredPower, GroundDistance, Sensors

#: m² per s; from a rover that hardly moves to a satellite
Rate = Annotated[float, pydantic.Field(ge=1e-9, le=1e15)]
#: where a figure of power is from; ``derived`` is a sensor that is computed from another one that
#: is on already, ``unknown`` has no figure
Origin = Literal["measured", "estimate", "replay", "declared", "derived", "unknown"]

#: what must be on in the field for a student
STUDENT_SENSORS = ("visual",)
#: of a :class:`Draw` that is no sensor
COMPUTING = "computing"


class SystemSpec(Document):
    """What must be told of a system beside the power of its sensors.

    Attributes:
        teacher_computing: what the machine that computes the first teacher draws at work; a record
            of a measurement takes its place: ``edgekd report --teacher-record``.
        survey_m2_per_s: ground that the platform covers, m² per s, while its sensors are on;
            absent, it is taken to go as fast as the computing.
    """

    teacher_computing: DeclaredPower | None = None
    survey_m2_per_s: Rate | None = None


def check_teacher_sensors(
    teachers: list[TeacherSpec], sensors: Sensors | None
) -> list[TeacherSpec]:
    """Teachers may need sensors that the recipe has; nothing is said where those have faults.

    Raises:
        ValueError: names the first that it does not have.
    """
    for spec in teachers if sensors is not None else []:
        valid = list(sensors or {})
        for name in spec.sensors or []:
            if name not in valid:
                raise ValueError(
                    f"teacher {spec.name} needs sensor '{name}', which the recipe does not have"
                    f"{nearest(name, valid)} (valid: {', '.join(valid) or 'none'})"
                )
    return teachers


def check_system(
    system: SystemSpec, sensors: Sensors | None, teachers: list[TeacherSpec] | None
) -> SystemSpec:
    """A system has sensors, and the computing of a teacher has one; None is one with faults.

    Raises:
        ValueError: says which is absent.
    """
    if sensors == {}:
        raise ValueError(
            "a system is sensors and computing, and the recipe has no sensors; write sensors: "
            "{visual: {kind: image, channels: 3, gsd_m: 0.1, power: {watts: 2.5, source: ...}}}"
        )
    if system.teacher_computing is not None and teachers == []:
        raise ValueError(
            "teacher_computing is of a teacher, and the recipe has none; name it under teachers"
        )
    return system


class Draw(Document):
    """One thing that draws power.

    Attributes:
        name: of a sensor, or ``computing``; ``sensors`` where nobody says which ones.
        power_w: mean while it works, W; null where it is not known, or nothing of its own.
        half_w: half the 95 % interval of what was sampled, W; null of what was not.
        status: where the figure is from.
        at_least: it is of a part of the thing, so that the whole draws more.
        scope: of a sensor of power; null of what was not sampled.
        source: who says so, or why it is not known.
    """

    name: str
    power_w: float | None
    half_w: float | None = None
    status: Origin
    at_least: bool = False
    scope: str | None = None
    source: str

    @property
    def lacking(self) -> bool:
        """The thing draws more than is known of it."""
        return self.status == "unknown" or self.at_least


class DeclaredSensor(Document):
    """A sensor of the recipe.

    Attributes:
        power: as declared.
        derived_from: sensors that it is computed from, the nearest first.
    """

    name: str
    power: DeclaredPower | None
    derived_from: list[str] = []


class SystemDeclared(Document):
    """What a recipe says about the system, copied.

    Attributes:
        sensors: all of them.
        student_sensors: names of those that must be on for the student.
        teacher: name of the first teacher; null where there is none.
        teacher_sensors: those that must be on for it; null where the recipe does not say.
        teacher_computing, survey_m2_per_s: see :class:`SystemSpec`.
        gsd_m: ground sampling distance of the student's sensor, m; null where there is none.
    """

    sensors: list[DeclaredSensor]
    student_sensors: list[str]
    teacher: str | None
    teacher_sensors: list[str] | None
    teacher_computing: DeclaredPower | None
    survey_m2_per_s: Rate | None
    gsd_m: GroundDistance | None

    def student_draws(self) -> list[Draw]:
        """The student's sensors."""
        return self._draws(self.student_sensors)

    def teacher_draws(self) -> list[Draw]:
        """The teacher's sensors; one that is not known where the recipe does not name them."""
        if self.teacher_sensors is None:
            why = "the recipe does not say which ones are on; write teachers: [{sensors: [...]}]"
            return [Draw(name="sensors", power_w=None, status="unknown", source=why)]
        return self._draws(self.teacher_sensors)

    def teacher_computes(self) -> Draw:
        """What computes the teacher, as declared."""
        power = self.teacher_computing
        if power is None:
            why = (
                "neither declared nor measured; write system.teacher_computing in the recipe, or "
                "give edgekd report a --teacher-record"
            )
            return Draw(name=COMPUTING, power_w=None, status="unknown", source=why)
        return _declared(COMPUTING, power)

    def _draws(self, names: Sequence[str]) -> list[Draw]:
        known = {sensor.name: sensor for sensor in self.sensors}
        return [_draw(name, known.get(name), names) for name in names]


def _declared(name: str, power: DeclaredPower) -> Draw:
    return Draw(name=name, power_w=power.watts, status="declared", source=power.source)


def _draw(name: str, sensor: DeclaredSensor | None, names: Sequence[str]) -> Draw:
    if sensor is None:
        why = f"the recipe has no sensor {name}"
        return Draw(name=name, power_w=None, status="unknown", source=why)
    on = [other for other in sensor.derived_from if other in names]
    if on:  # its pixels come out of a device that is counted already
        return Draw(name=name, power_w=None, status="derived", source=f"computed from {on[0]}")
    if sensor.power is None:
        why = f"no power is declared; write sensors.{name}.power"
        if sensor.derived_from:
            why += f", of the device that stands in for what {sensor.derived_from[0]} gives here"
        return Draw(name=name, power_w=None, status="unknown", source=why)
    return _declared(name, sensor.power)


def known_w(draws: Sequence[Draw]) -> float | None:
    """Sum of what is known, W; None where nothing is."""
    known = [draw.power_w for draw in draws if draw.power_w is not None]
    return math.fsum(known) if known else None


class _Parts(Document):
    """The parts of a recipe that tell about the system."""

    sensors: Sensors
    teachers: list[TeacherSpec] = []
    system: SystemSpec = SystemSpec()


def declared_system(recipe: Mapping[str, Any], source: str) -> SystemDeclared | None:
    """What a recipe declares; None where that is nothing.

    Args:
        recipe: as :meth:`edgekd.contracts.recipe.Recipe.plain` gives it, or as it travelled inside
            a bundle or checkpoint.
        source: what to call it in messages.

    Raises:
        RecipeError: sensors, first teacher or system are not what this version reads.
    """
    if not recipe.get("sensors"):
        return None
    value = {"sensors": recipe["sensors"], "teachers": (recipe.get("teachers") or [])[:1]}
    if recipe.get("system") is not None:
        value["system"] = recipe["system"]
    parts = parse_document(_Parts, value, {}, source)
    if not any(spec.power for spec in parts.sensors.values()) and "system" not in value:
        return None
    first = parts.teachers[0] if parts.teachers else None
    own = [parts.sensors[name] for name in STUDENT_SENSORS if name in parts.sensors]
    return SystemDeclared(
        sensors=[
            DeclaredSensor(
                name=name, power=spec.power, derived_from=_ancestors(parts.sensors, name)
            )
            for name, spec in parts.sensors.items()
        ],
        student_sensors=list(STUDENT_SENSORS),
        teacher=None if first is None else " ".join(filter(None, (first.name, first.variant))),
        teacher_sensors=None if first is None else first.sensors,
        teacher_computing=parts.system.teacher_computing,
        survey_m2_per_s=parts.system.survey_m2_per_s,
        gsd_m=own[0].gsd_m if own else None,
    )


def _ancestors(sensors: Sensors, name: str) -> list[str]:
    found: list[str] = []
    spec = sensors.get(name)
    while spec is not None and spec.derive is not None and spec.derive.source not in found:
        found.append(spec.derive.source)
        spec = sensors.get(spec.derive.source)
    return found


def declared_lines(declared: SystemDeclared) -> list[str]:
    """What is declared, for a person: a line for the teacher and one for the student."""
    lines = []
    if declared.teacher is not None:
        draws = [*declared.teacher_draws(), declared.teacher_computes()]
        lines.append(f"declared power of the teacher {declared.teacher}: {_together(draws)}")
    draws = declared.student_draws()
    rest = "" if known_w(draws) is None else ", and what edgekd bench measures"
    lines.append(f"declared power of the student's sensors: {_together(draws)}{rest}")
    if declared.survey_m2_per_s is not None:
        lines.append(f"declared rate of the survey: {declared.survey_m2_per_s:g} m² per s")
    return lines


def declared_summary(declared: SystemDeclared) -> str:
    """The same in a clause."""
    told = []
    if declared.teacher is not None:
        told.append(f"teacher {_sum([*declared.teacher_draws(), declared.teacher_computes()])}")
    told.append(f"student's sensors {_sum(declared.student_draws())}")
    return f"declared power: {', '.join(told)}"


def _together(draws: Sequence[Draw]) -> str:
    return f"{'; '.join(_words(draw) for draw in draws)}: {_sum(draws)}"


def _words(draw: Draw) -> str:
    if draw.power_w is None:
        known = "" if draw.status == "derived" else "not known, "
        return f"{draw.name} {known}{draw.source}"
    return f"{draw.name} {draw.power_w:g} W ({draw.source})"


def _sum(draws: Sequence[Draw]) -> str:
    total = known_w(draws)
    if total is None:
        return "not known"
    return f"{'at least ' if any(draw.lacking for draw in draws) else ''}{total:g} W"
