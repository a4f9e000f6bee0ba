"""Teacher and student as whole systems, for a person: sentences, tables and a chart."""

from __future__ import annotations

from dataclasses import dataclass

from edgekd.contracts.system import COMPUTING, Draw
from edgekd.report.plot import WIDTH, Plot, Scale
from edgekd.report.power import Figure
from edgekd.report.record import BenchmarkRecord
from edgekd.report.system import Side, SystemRecord
from edgekd.report.words import figure, interval, percent

#: height of a bar with its title, CSS pixels, and the part of it that the bar takes
_ROW_PX, _BAR = 60, (0.14, 0.60)
#: what is not known of a bar, as a share of the longest one
_OPEN = 0.12
_TITLE = "Whole system: sensors and computing"

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class SystemView:
    """The section of a report.

    Attributes:
        title: its heading.
        lead: the comparison in a sentence, or why there is none.
        table: what draws how much, teacher beside student, with the energy over ground.
        sources: who says so.
        notes: sentences that must stand beside the figures.
        chart: HTML.
    """

    title: str
    lead: str
    table: Table
    sources: Table
    notes: list[str]
    chart: str


def system_view(record: BenchmarkRecord) -> SystemView | None:
    """The section; None for a recipe without sensors."""
    system = record.system
    if system is None:
        return None
    mark = _replayed(system)
    return SystemView(
        title=f"{_TITLE}{mark}",
        lead=lead(system),
        table=_table(system),
        sources=_sources(system),
        notes=_notes(system),
        chart=_chart(system, record.valid),
    )


def system_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """The sums as (name with unit, value), for the terminal and the list of all figures."""
    system = record.system
    if system is None:
        return []
    rows = []
    for name, side in _sides(system):
        rows.append((f"whole system: {name}, W", f"{_total(side)}: {_sum(side)}"))
        for unit, value in _energies(side):
            if value is not None:
                rows.append((f"whole system: {name}, {unit}", _bound(side, value)))
    return [*rows, ("whole system: teacher and student", lead(system))]


def lead(system: SystemRecord) -> str:
    """``The student's system draws 80.5 % less power ...``, or why that is not said."""
    share, teacher = system.power_saved_share, system.teacher
    if share is None or teacher is None:
        return f"Not compared: {system.not_compared}."
    least = "at least " if system.saved_at_least else ""
    both = f"{_total(system.student)} W in place of {_total(teacher)} W"
    if share < 0:
        # the teacher's sum may be too low, and then this is too much
        most = "at most " if system.saved_at_least else ""
        return f"The student's system draws {most}{percent(-share)} more power: {both}."
    return f"The student's system draws {least}{percent(share)} less power: {both}."


def _sides(system: SystemRecord) -> list[tuple[str, Side]]:
    """By name, the teacher first."""
    teacher = [] if system.teacher is None else [("teacher", system.teacher)]
    return [*teacher, ("student", system.student)]


def _replayed(system: SystemRecord) -> str:
    """What every figure and chart must carry that holds no measurement of this work."""
    found = {side.computing.status for _, side in _sides(system)}
    marks = [f" ({word})" for word in ("replay", "estimate") if word in found]
    return "".join(marks)


def _total(side: Side) -> str:
    """``18.9``, ``at least 3.00`` or ``not known``."""
    return "not known" if side.total_w is None else _bound(side, side.total_w)


def _bound(side: Side, value: float) -> str:
    return figure(value) if side.complete else f"at least {figure(value)}"


def _how(side: Side) -> str:
    """Where the parts of a sum are from: ``declared + measured; not known: lidar``."""
    known = [draw.status for draw in side.draws if draw.power_w is not None]
    told = " + ".join(dict.fromkeys(known))
    lacking = f"not known whole: {', '.join(side.missing)}" if side.missing else ""
    return "; ".join(filter(None, (told, lacking)))


def _sum(side: Side) -> str:
    """The parts of a sum, each with its word."""
    return " + ".join(f"{draw.name} {_draw(draw)}" for draw in side.draws)


def _draw(draw: Draw) -> str:
    """``15.9 ± 0.1 (measured)``, ``25.0 (declared)``, ``not known``, ``computed from spectral``."""
    if draw.power_w is None:
        return draw.source if draw.status == "derived" else "not known"
    text = figure(draw.power_w)
    if draw.half_w:
        low, high = draw.power_w - draw.half_w, draw.power_w + draw.half_w
        text = interval(Figure(value=draw.power_w, low=low, high=high))
    return f"{'at least ' if draw.at_least else ''}{text} ({draw.status})"


def _energies(side: Side) -> list[tuple[str, float | None]]:
    return [
        ("J per tile", side.j_per_tile),
        ("J per Mpx", side.j_per_mpx),
        ("J per km²", side.j_per_km2),
    ]


def _table(system: SystemRecord) -> Table:
    """A row per sensor and for the computing, then the sums."""
    sides = _sides(system)
    names = [sensor.name for sensor in system.declared.sensors]
    told = [draw.name for _, side in sides for draw in side.sensors]
    order = [name for name in names if name in told]
    order += [name for name in dict.fromkeys(told) if name not in names]
    rows = [[f"{name}, W", *(_cell(side, name) for _, side in sides)] for name in order]
    rows.append([f"{COMPUTING}, W", *(_draw(side.computing) for _, side in sides)])
    sums = [
        _total(side) + (f" ({_how(side)})" if side.total_w is not None else "") for _, side in sides
    ]
    rows.append(["whole system, W", *sums])
    found = [_energies(side) for _, side in sides]
    for line in zip(*found, strict=True):
        values = [value for _, value in line]
        if any(value is not None for value in values):
            shown = [
                "–" if value is None else _bound(side, value)
                for value, (_, side) in zip(values, sides, strict=True)
            ]
            rows.append([line[0][0], *shown])
    if any(side.m2_per_s for _, side in sides):
        rows.append(["ground, m² per s", *(_pace(side) for _, side in sides)])
    head = ["", *(name for name, _ in sides)]
    if system.power_saved_share is None:
        return head, rows
    shares = {"whole system, W": system.power_saved_share}
    if system.energy_saved_share is not None:
        shares |= dict.fromkeys((unit for unit, _ in found[0]), system.energy_saved_share)
    least = "at least " if system.saved_at_least else ""
    saved = [f"{least}{percent(shares[row[0]])}" if row[0] in shares else "–" for row in rows]
    return [*head, "student saves"], [[*row, text] for row, text in zip(rows, saved, strict=True)]


def _cell(side: Side, name: str) -> str:
    for draw in side.sensors:
        if draw.name == name:
            return _draw(draw)
    known = {draw.name for draw in side.sensors}
    return "–" if name == "sensors" or "sensors" in known else "off"


def _pace(side: Side) -> str:
    if side.m2_per_s is None:
        return "–"
    how = "the declared survey" if side.paced_by == "survey" else "as fast as it computes"
    return f"{figure(side.m2_per_s)} ({how})"


def _sources(system: SystemRecord) -> Table:
    """Who says so: a row for what both have, and one for each where they differ."""
    sides = _sides(system)
    rows: list[list[str]] = []
    for name, side in sides:
        for draw in side.draws:
            shared = len(sides) > 1 and all(draw in other.draws for _, other in sides)
            own = draw.name if shared else f"{name}: {draw.name}"
            watts = "" if draw.power_w is None else f"{_draw(draw).split(' (')[0]} W, "
            word = {"unknown": "not known", "derived": "nothing of its own"}
            row = [own, watts + word.get(draw.status, draw.status), draw.source]
            if row not in rows:
                rows.append(row)
    return ["power of", "is", "says"], rows


def _notes(system: SystemRecord) -> list[str]:
    """What must stand beside the figures."""
    notes = ["Declared figures have no interval, so the sums have none."]
    computing = system.student.computing
    if computing.power_w is not None:
        notes.append(f"The student computes end to end; all that the {computing.scope} drew.")
    declared, teacher = system.declared.teacher_computing, system.teacher
    if declared is not None and teacher is not None and teacher.computing.status != "declared":
        notes.append(
            f"The recipe declares {figure(declared.watts)} W for the teacher's computing; the "
            "figure of the record is taken."
        )
    if system.not_compared and system.teacher is None:
        notes.append("Name the teacher in the recipe (teachers) to see it beside the student.")
    return notes + _energy_notes(system)


def _energy_notes(system: SystemRecord) -> list[str]:
    sides = _sides(system)
    notes = [
        f"No energy of the {name}: {s.without_energy}." for name, s in sides if s.j_per_km2 is None
    ]
    if len(notes) == len(sides):
        return notes
    size = ""
    if system.m2_per_px is not None:
        by = "in the input" if system.ground == "input" else "by the recipe's gsd_m"
        size = f" A pixel is {system.m2_per_px:.3g} m² {by}; tiles are the student's."
    notes.append(
        "Energy is power times the time that the ground takes, with everything at work all the "
        f"while; a machine that waits for the survey draws less.{size}"
    )
    survey = system.declared.survey_m2_per_s
    for name, side in sides:
        if survey is not None and side.paced_by == "computing" and side.m2_per_s is not None:
            notes.append(
                f"The {name} computes {figure(side.m2_per_s)} m² per s and the survey goes at "
                f"{figure(survey)}: the survey waits for it."
            )
        if side.paced_by == "survey" and side.computing.status == "declared":
            notes.append(f"The {name} was not timed; it is taken to keep up with the survey.")
    return notes


def _chart(system: SystemRecord, valid: bool) -> str:
    """A bar for each system: its sensors, then its computing, then what is not known."""
    sides = _sides(system)
    longest = max(side.total_w or 0.0 for _, side in sides) or 1.0
    high = 1.03 * max(
        (side.total_w or 0.0) + (0.0 if side.complete else _OPEN * longest) for _, side in sides
    )
    height = _ROW_PX * len(sides)
    told = ", ".join(f"{name} {_total(side)} W: {_sum(side)}" for name, side in sides)
    plot = Plot(Scale(0.0, high, WIDTH), Scale(0, len(sides), height, True),
                f"power of the whole system, {told}", "rows")  # fmt: skip
    plot.x_grid(5)
    for index, (name, side) in enumerate(sides):
        base = len(sides) - index - 1
        at = 0.0
        for draw in side.draws:
            if draw.power_w:
                kind = COMPUTING if draw.name == COMPUTING else "sensor"
                state = "told" if draw.status == "declared" else "seen"
                hollow = "" if valid else " hollow"
                _segment(plot, at, at + draw.power_w, base, f"seg {kind} {state}{hollow}")
                text = f"{draw.name} {figure(draw.power_w)}"
                fits = plot.fitting(at, at + draw.power_w, text)
                plot.text(at + draw.power_w / 2, base + sum(_BAR) / 2, text, f"mid seg {fits}")
                at += draw.power_w
        if not side.complete:
            _segment(plot, at, at + _OPEN * longest, base, "seg open")
            plot.text(at + _OPEN * longest / 2, base + sum(_BAR) / 2, "?", "mid seg")
        plot.text(0.0, base + _BAR[1], _bar_title(system, name, side, valid), "row strong", 11)
    return plot.html() + plot.x_axis(f"power at work{_replayed(system)}, W", 5)


def _segment(plot: Plot, x0: float, x1: float, base: float, kind: str) -> None:
    plot.rect(x0, x1, base + _BAR[0], base + _BAR[1], kind)


def _bar_title(system: SystemRecord, name: str, side: Side, valid: bool) -> str:
    share = system.power_saved_share
    text = f"{name} {_total(side)}{'' if side.total_w is None else ' W'}"
    if name == "student" and share is not None and share > 0:
        text += f", {'at least ' if system.saved_at_least else ''}{percent(share)} less"
    word = side.computing.status
    text += f" ({word})" if word in ("replay", "estimate") else ""
    return text if valid else f"{text} NOT VALID"
