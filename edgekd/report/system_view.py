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
        chart: HTML; empty where nothing is known.
        legend: (class, text) of what the chart shows.
    """

    title: str
    lead: str
    table: Table
    sources: Table
    notes: list[str]
    chart: str
    legend: list[tuple[str, str]]


def system_view(record: BenchmarkRecord) -> SystemView | None:
    """The section; None for a recipe without sensors."""
    system = record.system
    if system is None:
        return None
    known = any(side.total_w for _, side in _sides(system))
    return SystemView(
        title=f"{_TITLE}{_mark(system)}",
        lead=lead(system),
        table=_table(system, record.valid),
        sources=_sources(system),
        notes=_notes(system),
        chart=_chart(system, record.valid) if known else "",
        legend=_legend(system),
    )


def system_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """The sums as (name with unit, value), for the terminal and the list of all figures."""
    system = record.system
    if system is None:
        return []
    rows = []
    for name, side in _sides(system):
        rows.append((f"whole system: {name}, W", f"{_total(side)}: {_sum(name, side)}"))
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


def _mark(system: SystemRecord) -> str:
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
    told = " + ".join(dict.fromkeys(d.status for d in side.draws if d.power_w is not None))
    unknown = ", ".join(draw.name for draw in side.draws if draw.status == "unknown")
    part = ", ".join(draw.name for draw in side.draws if draw.at_least)
    found = (told, unknown and f"not known: {unknown}", part and f"known in part: {part}")
    return "; ".join(filter(None, found))


def _sum(name: str, side: Side) -> str:
    """The parts of a sum, each with its word."""
    return " + ".join(f"{draw.name} {_draw(name, draw)}" for draw in side.draws)


def _draw(name: str, draw: Draw) -> str:
    """``15.9 ± 0.1 (measured)``, ``25.0 (declared)``, ``not known``, ``computed from spectral``."""
    watts = _watts(draw)
    return f"{watts} ({draw.status})" if watts else _absent(name, draw)


def _watts(draw: Draw) -> str:
    """The figure with its interval; empty where there is none."""
    if draw.power_w is None:
        return ""
    text = figure(draw.power_w)
    if draw.half_w:
        low, high = draw.power_w - draw.half_w, draw.power_w + draw.half_w
        text = interval(Figure(value=draw.power_w, low=low, high=high))
    return f"at least {text}" if draw.at_least else text


def _absent(name: str, draw: Draw) -> str:
    """Why there is no figure, in two words or three."""
    if draw.status == "derived":
        return draw.source
    # the student's machine is here, and was not asked
    return "not measured" if (name, draw.name) == ("student", COMPUTING) else "not known"


def _energies(side: Side) -> list[tuple[str, float | None]]:
    return [
        ("J per tile", side.j_per_tile),
        ("J per Mpx", side.j_per_mpx),
        ("J per km²", side.j_per_km2),
    ]


def _table(system: SystemRecord, valid: bool) -> Table:
    """A row per sensor and for the computing, then the sums."""
    sides = _sides(system)
    # as the teacher's list has them: a mapping's order does not outlive a manifest
    order = dict.fromkeys(draw.name for _, side in sides for draw in side.sensors)
    rows = [[f"{name}, W", *(_cell(who, side, name) for who, side in sides)] for name in order]
    rows.append([f"{COMPUTING}, W", *(_draw(who, side.computing) for who, side in sides)])
    sums = [_total(s) + (f" ({_how(s)})" if s.total_w is not None else "") for _, s in sides]
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
    if not valid:
        head[-1] += " NOT VALID"
    if system.power_saved_share is None:
        return head, rows
    shares = {"whole system, W": system.power_saved_share}
    if system.energy_saved_share is not None:
        shares |= dict.fromkeys((unit for unit, _ in found[0]), system.energy_saved_share)
    least = "at least " if system.saved_at_least else ""
    saved = [f"{least}{percent(shares[row[0]])}" if row[0] in shares else "–" for row in rows]
    return [*head, "student saves"], [[*row, text] for row, text in zip(rows, saved, strict=True)]


def _cell(who: str, side: Side, name: str) -> str:
    for draw in side.sensors:
        if draw.name == name:
            return _draw(who, draw)
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
            watts = _watts(draw)
            what = f"{watts} W, {draw.status}" if watts else _absent(name, draw)
            row = [own, what, draw.source]
            if row not in rows:
                rows.append(row)
    return ["power of", "is", "source"], rows


def _notes(system: SystemRecord) -> list[str]:
    """What must stand beside the figures."""
    told = any(draw.status == "declared" for _, side in _sides(system) for draw in side.draws)
    notes = ["Declared figures have no interval, so the sums have none."] if told else []
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


def _legend(system: SystemRecord) -> list[tuple[str, str]]:
    sides = [side for _, side in _sides(system)]
    found = [("sensor", "sensors"), (COMPUTING, COMPUTING), ("told", "dashed: declared")]
    lacking = any(not side.complete for side in sides)
    return [*found, ("open", "?: draws more, not known how much")] if lacking else found


def _chart(system: SystemRecord, valid: bool) -> str:
    """A bar for each system: its sensors, then its computing, then what is not known."""
    sides = _sides(system)
    longest = max(side.total_w or 0.0 for _, side in sides)
    ends = [
        (side.total_w or 0.0) + (0.0 if side.complete else _OPEN * longest) for _, side in sides
    ]
    told = ", ".join(f"{name} {_total(side)} W: {_sum(name, side)}" for name, side in sides)
    plot = Plot(Scale(0.0, 1.03 * max(ends), WIDTH),
                Scale(0, len(sides), _ROW_PX * len(sides), True),
                f"power of the whole system{_mark(system)}, {told}", "rows")  # fmt: skip
    plot.x_grid(5)
    for index, (name, side) in enumerate(sides):
        base = len(sides) - index - 1
        # the record is the student's; the teacher's figures were not made by it
        sound = valid or name == "teacher"
        at = 0.0
        for draw in side.draws:
            if draw.power_w:
                kind = COMPUTING if draw.name == COMPUTING else "sensor"
                state = "told" if draw.status == "declared" else "seen"
                hollow = "" if sound else " hollow"
                text = f"{draw.name} {figure(draw.power_w)}"
                _segment(plot, (at, at + draw.power_w), base, f"{kind} {state}{hollow}", text)
                at += draw.power_w
        if not side.complete:
            _segment(plot, (at, at + _OPEN * longest), base, "open", "?")
        title = _bar_title(system, name, side) + ("" if sound else " NOT VALID")
        plot.text(0.0, base + _BAR[1], title, "row strong", 11)
    return plot.html() + plot.x_axis(f"power at work{_mark(system)}, W", 5)


def _segment(plot: Plot, span: tuple[float, float], base: float, kind: str, text: str) -> None:
    """A part of a bar with its name, where that fits."""
    plot.rect(*span, base + _BAR[0], base + _BAR[1], f"seg {kind}")
    fits = plot.fitting(*span, text)
    plot.text(sum(span) / 2, base + sum(_BAR) / 2, text, f"mid seg {fits}")


def _bar_title(system: SystemRecord, name: str, side: Side) -> str:
    share = system.power_saved_share
    text = f"{name} {_total(side)}{'' if side.total_w is None else ' W'}"
    if name == "student" and share is not None and share > 0:
        text += f", {'at least ' if system.saved_at_least else ''}{percent(share)} less"
    word = side.computing.status
    return f"{text} ({word})" if word in ("replay", "estimate") else text
