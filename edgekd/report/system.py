"""Teacher and student as whole systems: the sensors that must be on, and what computes.

Power is a sum: what the recipe declares of its sensors, and the computing, which is measured end to
end (gross) or declared. What is not known leaves a sum that is a lower bound and says so. Energy
over ground is that power times the time that the ground takes: the survey's, where the recipe
declares its rate, and the computing's, where that is slower or nothing is declared. Everything is
taken to draw its power at work all the while; a machine that waits for the survey draws less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgekd.contracts.schema import Document
from edgekd.contracts.system import COMPUTING, Draw, SystemDeclared, known_w
from edgekd.errors import InputError
from edgekd.report.power import WHOLE, PowerRecord, part_of

if TYPE_CHECKING:
    from edgekd.report.record import BenchmarkRecord, Power, SceneWindow
    from edgekd.telemetry.environment import Environment

#: m² in a km², and px in a Mpx
_M2, _PX = 1e6, 1e6


class Side(Document):
    """The system of the teacher, or of the student.

    Attributes:
        sensors, computing: what draws.
        sensors_w, total_w: sums of what is known of them, W; null where nothing is.
        complete: the total is all that it draws; otherwise it draws more.
        missing: names of what is not known, or known in part.
        m2_per_s: ground that it covers; null where that is not known.
        paced_by: whether survey or computing sets that.
        j_per_tile, j_per_mpx, j_per_km2: of the ground of the student's tiles and pixels; lower
            bounds where the total is not complete, null where power or pace is not known.
        without_energy: why they are null; empty where they are not.
    """

    sensors: list[Draw]
    computing: Draw
    sensors_w: float | None
    total_w: float | None
    complete: bool
    missing: list[str]
    m2_per_s: float | None
    paced_by: Literal["survey", "computing"] | None
    j_per_tile: float | None
    j_per_mpx: float | None
    j_per_km2: float | None
    without_energy: str = ""

    @property
    def draws(self) -> list[Draw]:
        """All that draws, sensors first."""
        return [*self.sensors, self.computing]


class SystemRecord(Document):
    """Both systems.

    Attributes:
        declared: what the recipe in the bundle says.
        m2_per_px: ground of a pixel; null where neither input nor recipe tells.
        ground: whether that is the input's, or the recipe's ground sampling distance.
        teacher: null where the recipe has none.
        power_saved_share, energy_saved_share: 1 - student / teacher, of W and of J per km²;
            negative where the student draws more, null where they are not compared.
        saved_at_least: the teacher's total is a lower bound, and so the shares are.
        not_compared: why there is no share of power; empty where there is one.
    """

    declared: SystemDeclared
    m2_per_px: float | None
    ground: Literal["input", "declared"] | None
    student: Side
    teacher: Side | None
    power_saved_share: float | None
    energy_saved_share: float | None
    saved_at_least: bool
    not_compared: str = ""


@dataclass(frozen=True)
class Bench:
    """What a measurement says about what computes.

    Attributes:
        device: its name.
        power: of the measurement.
        px_per_s: unique pixels mapped end to end, in the windows of power where there are such.
        px_per_tile: unique pixels per tile.
        m2_per_px: ground of a pixel of the input; None where it has none.
        valid: no check failed.
    """

    device: str
    power: Power
    px_per_s: float
    px_per_tile: float
    m2_per_px: float | None
    valid: bool

    @classmethod
    def of(cls, environment: Environment, power: Power, scene: SceneWindow, valid: bool) -> Bench:
        """From the parts of a record."""
        rate = scene.unique_mpx_per_s * _PX
        px_per_tile = scene.pixels_unique / max(scene.windows_run, 1)
        if isinstance(power, PowerRecord) and power.scene is not None:
            work = power.scene  # of the same time as the watts, and it holds tiles
            rate, px_per_tile = work.pixels / work.seconds, work.pixels / work.tiles
        return cls(
            device=environment.board or environment.cpu_model or environment.arch,
            power=power,
            px_per_s=rate,
            px_per_tile=px_per_tile,
            m2_per_px=scene.area_m2 / scene.pixels_unique
            if scene.area_m2 and scene.pixels_unique
            else None,
            valid=valid,
        )

    @classmethod
    def of_record(cls, record: BenchmarkRecord) -> Bench:
        """From a record."""
        return cls.of(record.environment, record.power, record.scene, record.valid)

    def draw(self, name: str = "") -> Draw:
        """What computes, as it was measured.

        Args:
            name: of the record's file, where it is another one's.
        """
        power = self.power
        if not isinstance(power, PowerRecord):
            return _unknown(f"not measured: {power.reason}")
        if power.scene is None:
            return _unknown(f"not measured end to end: {power.without['scene']}")
        part, sensor = part_of(power), power.sensor
        alone = "" if part == WHOLE else f", {part} alone"
        source = f"{self.device}, by {sensor.name} ({sensor.source}), scope {sensor.scope}{alone}"
        return Draw(
            name=COMPUTING,
            power_w=power.scene.mean_w.value,
            half_w=power.scene.mean_w.half,
            status=power.status,
            at_least=part != WHOLE,
            scope=sensor.scope,
            source=f"{name}: {source}" if name else source,
        )


def _unknown(why: str) -> Draw:
    return Draw(name=COMPUTING, power_w=None, status="unknown", source=why)


def make_system(
    declared: SystemDeclared, student: Bench, teacher: Bench | None = None, name: str = ""
) -> SystemRecord:
    """Both systems.

    Args:
        declared: what the recipe says.
        student: the measurement of the student's bundle.
        teacher: a measurement on the teacher's own machine, which takes the place of what the
            recipe declares.
        name: of that one's file.
    """
    ground: Literal["input", "declared"] | None = None
    m2_per_px = student.m2_per_px
    if m2_per_px is not None:
        ground = "input"
    elif declared.gsd_m is not None:
        m2_per_px, ground = declared.gsd_m**2, "declared"
    pixel = (m2_per_px, student.px_per_tile)
    survey = declared.survey_m2_per_s
    rate = None if m2_per_px is None else student.px_per_s * m2_per_px
    mine = _side(declared.student_draws(), student.draw(), rate, survey, pixel)
    theirs = None
    if teacher is not None:
        draw = teacher.draw(name)
        size = teacher.m2_per_px or (declared.gsd_m and declared.gsd_m**2)
        pace = None if size is None else teacher.px_per_s * size
        theirs = _side(declared.teacher_draws(), draw, pace, survey, pixel)
    elif declared.teacher is not None:
        draws = declared.teacher_draws()
        theirs = _side(draws, declared.teacher_computes(), None, survey, pixel)
    why = _not_compared(mine, theirs, student.valid)
    compared = theirs is not None and not why
    return SystemRecord(
        declared=declared,
        m2_per_px=m2_per_px,
        ground=ground,
        student=mine,
        teacher=theirs,
        power_saved_share=_saved(mine.total_w, theirs.total_w) if theirs and compared else None,
        energy_saved_share=(
            _saved(mine.j_per_km2, theirs.j_per_km2) if theirs and compared else None
        ),
        saved_at_least=bool(theirs and compared and not theirs.complete),
        not_compared=why,
    )


def _side(
    sensors: list[Draw], computing: Draw, rate: float | None, survey: float | None,
    pixel: tuple[float | None, float],
) -> Side:  # fmt: skip
    """A system that covers ground at the survey's rate, or at that of its computing, m² per s."""
    draws = [*sensors, computing]
    total = known_w(draws)
    paces = [value for value in (survey, rate) if value]
    pace = min(paces) if paces else None
    paced_by: Literal["survey", "computing"] | None = None
    if pace is not None:
        paced_by = "survey" if pace == survey else "computing"
    m2_per_px, px_per_tile = pixel
    why = ""
    if total is None:
        why = "nothing of its power is known"
    elif pace is None:
        why = (
            "nobody says how fast it covers ground; write system.survey_m2_per_s in the recipe, or "
            "give edgekd report a --teacher-record"
        )
    per_m2 = None if total is None or pace is None else total / pace
    per_px = None if per_m2 is None or m2_per_px is None else per_m2 * m2_per_px
    return Side(
        sensors=sensors,
        computing=computing,
        sensors_w=known_w(sensors),
        total_w=total,
        complete=not any(draw.lacking for draw in draws),
        missing=[draw.name for draw in draws if draw.lacking],
        m2_per_s=pace,
        paced_by=paced_by,
        j_per_tile=None if per_px is None else per_px * px_per_tile,
        j_per_mpx=None if per_px is None else per_px * _PX,
        j_per_km2=None if per_m2 is None else per_m2 * _M2,
        without_energy=why,
    )


def _not_compared(student: Side, teacher: Side | None, valid: bool) -> str:
    """Why the two must not be compared; empty where they may."""
    if not valid:
        return "this record is NOT VALID"
    if teacher is None:
        return "the recipe names no teacher"
    if "replay" in (student.computing.status, teacher.computing.status):
        return "a replay says nothing about this work"
    if not student.complete:
        lacking = ", ".join(student.missing)
        return f"what the student's system draws is not known whole ({lacking})"
    if not teacher.total_w:
        return "nothing of the teacher's system is known to draw power"
    scopes = [side.computing.scope for side in (teacher, student)]
    if None not in scopes and scopes[0] != scopes[1]:
        return f"power of the {scopes[0]} and of the {scopes[1]} are different things"
    return ""


def _saved(student: float | None, teacher: float | None) -> float | None:
    if student is None or not teacher:
        return None
    return 1 - student / teacher


def figures_of(system: SystemRecord) -> dict[str, Any]:
    """All of it but the sentences, which another version may word otherwise: of those that the
    recipe declares the source, of the others whether there is one."""

    def visit(value: Any) -> Any:
        if isinstance(value, list):
            return [visit(item) for item in value]
        if not isinstance(value, dict):
            return value
        found = {key: visit(item) for key, item in value.items()}
        for key in ("without_energy", "not_compared"):
            if key in found:
                found[key] = bool(found[key])
        if "source" in found and found.get("status", "declared") != "declared":
            found["source"] = bool(found["source"])
        return found

    plain: dict[str, Any] = visit(system.model_dump())
    return plain


def with_teacher(record: BenchmarkRecord, teacher: BenchmarkRecord, name: str) -> BenchmarkRecord:
    """The record with the teacher's computing as another record measured it, to be shown.

    Args:
        record: of the student; one whose recipe has no sensors is returned as it is.
        teacher: a valid record with power, measured on the teacher's machine.
        name: of that one's file.

    Raises:
        InputError: the teacher's record is not valid, or holds no power end to end.
    """
    if not teacher.valid:
        failed = ", ".join(check.name for check in teacher.failed())
        raise InputError(
            f"the teacher's record {name} is not valid (failed: {failed}), so it says nothing of "
            "what the teacher draws; measure again"
        )
    bench = Bench.of_record(teacher)
    draw = bench.draw(name)
    if draw.power_w is None:
        raise InputError(
            f"the teacher's record {name} holds no power end to end ({draw.source}); measure with "
            "edgekd bench ... --power auto, or declare system.teacher_computing in the recipe"
        )
    if record.system is None:
        return record
    system = make_system(record.system.declared, Bench.of_record(record), bench, name)
    return record.model_copy(update={"system": system})
