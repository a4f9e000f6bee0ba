"""The parts of a report that the page, Markdown and JSON share: figures, energy, reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekd.report.advice import next_steps, ordered
from edgekd.report.answers import PARTS
from edgekd.report.charts import change_words
from edgekd.report.compare import (
    Difference,
    caution,
    compare,
    labels,
    plain_difference,
    power_mode,
)
from edgekd.report.power import PowerRecord
from edgekd.report.record import BenchmarkRecord
from edgekd.report.words import (
    device_name,
    figure,
    interval,
    milliseconds,
    per_joule,
    power_mark,
    rules_words,
)
from edgekd.telemetry.state import State

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Comparison:
    """A record against the first.

    Attributes:
        label, first: short names of the two.
        differences: a quantity each.
        caution: what the intervals do not hold; empty where there is nothing.
    """

    label: str
    first: str
    differences: list[Difference]
    caution: str


def title(records: Sequence[BenchmarkRecord]) -> str:
    names = list(dict.fromkeys(record.bundle.name for record in records))
    return f"edgekd: {', '.join(names)} measured"


def heading(record: BenchmarkRecord) -> str:
    parts = [record.bundle.name, record.bundle.precision, f"on {device_name(record)}"]
    mode = power_mode(record)
    return ", ".join([*parts, f"power mode {mode}"] if mode else parts)


def when(record: BenchmarkRecord) -> str:
    text = f"measured {record.created_utc} by edgekd {record.environment.edgekd}"
    turns = record.turns
    if turns is not None:
        others = ", ".join(f"{letter} is {what}" for letter, what in turns.others.items())
        text += f"; in turns {turns.order}, where {turns.letter} is this one and {others}"
    return text


def not_of_this_run(record: BenchmarkRecord) -> str:
    """What must be said of power that was not measured; empty where it was."""
    power = record.power
    if power.status == "replay" and isinstance(power, PowerRecord):
        return (
            f"Power is a replay ({power.sensor.source}): samples of another time, shown on this "
            "measurement's clock. They say nothing about this work."
        )
    if power.status == "estimate" and isinstance(power, PowerRecord):
        return f"Power is an estimate ({power.sensor.source}), not a measurement."
    return ""


def side_by_side(records: Sequence[BenchmarkRecord]) -> Table:
    """One row per record; nothing is averaged, and nothing of another scope looks alike."""
    units = {record.unit for record in records}
    unit, many = ("answer", "answers") if units == {"answer"} else ("tile", "tiles")
    if len(units) > 1:
        unit, many = "tile or answer", "tiles or answers"
    head = [
        "record", "valid", "p50, ms", "p99, ms", f"{many}/s",
        "power, W", f"J/{unit}", f"{many}/J", "end to end, answers/s", "end to end, p50, ms",
        "end to end, p99, ms", "end to end, J/answer", "end to end, Mpx/s", "end to end, J/Mpx",
        "peak, MiB", "power of", "device",
    ]  # fmt: skip
    one_device = len({device_name(record) for record in records}) == 1
    rows = []
    for name, record in zip(labels(records), records, strict=True):
        power = record.power
        watts = joules = per_j = per_mpx = per_answer = "–"
        rate = record.engine.tiles_per_s
        of = "unavailable"
        if isinstance(power, PowerRecord):
            mark = power_mark(power)
            of = f"{power.sensor.scope}{mark or ' (measured)'}"
            if power.engine is not None:
                rate = power.engine.tiles_per_s  # of the seconds of the watts beside it
                watts = interval(power.engine.mean_w) + mark
                joules = interval(power.engine.gross_j_per_tile) + mark
                per_j = per_joule(power.engine) + mark
            if power.scene is not None and record.answers is not None:
                per_answer = interval(power.scene.gross_j_per_tile) + mark
            elif power.scene is not None and power.scene.gross_j_per_mpx is not None:
                per_mpx = interval(power.scene.gross_j_per_mpx) + mark
        answers = record.answers
        ends = ["–"] * 3
        if answers is not None:
            total = answers.total
            ends = [figure(answers.answers_per_s), *map(milliseconds, (total.p50_s, total.p99_s))]
        mpx = figure(record.scene.unique_mpx_per_s) if answers is None else "–"
        rows.append([
            name, "yes" if record.valid else "NOT VALID",
            milliseconds(record.engine.summary.p50_s),
            milliseconds(record.engine.summary.p99_s), figure(rate), watts,
            joules, per_j, *ends, per_answer, mpx, per_mpx,
            f"{record.peak_rss_mib:.0f}", of, "–" if one_device else device_name(record),
        ])  # fmt: skip
    return _without_empty(head, rows)


def common(records: Sequence[BenchmarkRecord]) -> str:
    """What is the same for all records and so in none of their labels."""
    parts = (
        lambda r: f"bundle {r.bundle.name}",
        lambda r: r.bundle.precision,
        lambda r: f"{'pictures' if r.answers else 'tiles'} of {r.bundle.tile_px} px",
        lambda r: f"rules {rules_words(r.answers)}" if r.answers else "",
        lambda r: f"power mode {power_mode(r)}" if power_mode(r) else "",
        device_name,
    )  # fmt: skip
    same = [part(records[0]) for part in parts if len({part(record) for record in records}) == 1]
    return ", ".join(text for text in same if text)


def _without_empty(head: list[str], rows: list[list[str]]) -> Table:
    """Columns in which nobody has anything are left out."""
    kept = [i for i in range(len(head)) if any(row[i] != "–" for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def comparisons(records: Sequence[BenchmarkRecord]) -> list[Comparison]:
    """Each record against the first."""
    names = labels(records)
    return [
        Comparison(name, names[0], compare(records[0], record), caution(records[0], record))
        for name, record in zip(names[1:], records[1:], strict=True)
    ]


def difference_table(found: Sequence[Comparison]) -> Table:
    """A row per difference."""
    head = ["record", "quantity", "change", "in percent", "verdict"]
    rows = []
    for item in found:
        for difference in item.differences:
            text, share = change_words(difference)
            verdict = difference.verdict + (f": {difference.why}" if difference.why else "")
            quantity = f"{difference.name}, {difference.unit}"
            rows.append([item.label, quantity, text or "–", share or "–", verdict])
    return head, rows


def energy_table(record: BenchmarkRecord) -> Table | None:
    """Gross and net energy per tile, Mpx and km², or per answer; None without power."""
    power = record.power
    if not isinstance(power, PowerRecord):
        return None
    mark = power_mark(power)
    unit = record.unit
    head = [
        f"energy{mark}", f"J per {unit}", "J per Mpx", "J per km²", "mean power, W",
        f"{unit}s per J",
    ]  # fmt: skip
    rows = []
    for name, work in (("bare engine", power.engine), ("end to end", power.scene)):
        if work is None:
            why = power.without["engine" if name == "bare engine" else "scene"]
            rows.append([f"{name}{mark}", f"unavailable: {why}", "–", "–", "–", "–"])
            continue
        for what, values, rest in (
            ("gross", (work.gross_j_per_tile, work.gross_j_per_mpx, work.gross_j_per_km2),
             [interval(work.mean_w), per_joule(work)]),
            ("net of idle", (work.net_j_per_tile, work.net_j_per_mpx, work.net_j_per_km2),
             ["–", "–"]),
        ):  # fmt: skip
            if any(value is not None for value in values):
                shown = ["–" if value is None else interval(value) for value in values]
                if record.answers is not None:
                    shown[1:] = ["–", "–"]  # a place is no number of pixels
                rows.append([f"{name}{mark}, {what}", *shown, *rest])
    return _without_empty(head, rows)


def reproduce_rows(record: BenchmarkRecord) -> list[tuple[str, str]]:
    """What must be the same to measure this again, as (name, value)."""
    bundle, environment, used = record.bundle, record.environment, record.input
    packages = [f"{name} {version}" for name, version in environment.packages.items() if version]
    runtime = [f"edgekd {environment.edgekd}", environment.python, *packages]
    system = [environment.os, environment.kernel, environment.l4t and f"L4T {environment.l4t}"]
    mode = power_mode(record)
    rows = [
        ("bundle", f"{bundle.name}, {bundle.precision}, built {bundle.built_utc}"),
        ("model sha256", bundle.model_sha256),
        ("recipe sha256", bundle.recipe_sha256),
        ("checkpoint sha256", bundle.checkpoint_sha256),
        ("input", f"{used.name}, {used.width_px} x {used.height_px} px"),
        ("input sha256", used.sha256 or "none: synthetic pixels from a fixed seed"),
        *([] if record.answers is None else [("rules", rules_words(record.answers))]),
        ("asked", _asked(record)),
        ("machine", device_name(record) + (f", power mode {mode}" if mode else "")),
        ("system", ", ".join(text for text in system if text)),
        ("versions", ", ".join(runtime)),
    ]
    return rows


def _asked(record: BenchmarkRecord) -> str:
    asked = record.asked
    text = (
        f"{asked.duration_s:g} s, {asked.repeats} repeats, warm-up {asked.warmup_s:g} s, power "
        f"{asked.power}"
    )
    if asked.power != "none":
        text += f", idle {asked.idle_s:g} s, a sample every {asked.interval_s:g} s"
    return text


def command_words(record: BenchmarkRecord) -> str:
    """The command, or that there was none."""
    return record.command or (
        "No command made this record; it was measured by a program. Measure with: edgekd bench "
        "BUNDLE INPUT -o record.json"
    )


def machine_tables(record: BenchmarkRecord) -> list[tuple[str, Table]]:
    """State of the machine before and after, whatever fields it has, and what was found."""
    machine = record.machine
    if machine is None:
        return []
    before, after = _state(machine.before), _state(machine.after)
    rows = [[key, before.get(key, "–"), after.get(key, "–")] for key in {**before, **after}]
    found = [[name, "; ".join(what) or "nothing"] for name, what in machine.found.items()]
    tables = [("State of the machine", (["", "before", "behind"], rows))]
    return [*tables, ("Found meanwhile", (["", ""], found))] if found else tables


def _state(state: State) -> dict[str, str]:
    """Fields in words; one that is absent has its reason in its place."""
    plain = state.model_dump(mode="json", exclude={"absent", "at_s"})
    told = {key: state.absent.get(key) if value is None else value for key, value in plain.items()}
    return {key.replace("_", " "): value for key, value in _flat(told).items()}


def _flat(value: Any, name: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for key, item in value.items():
            found |= _flat(item, f"{name}.{key}" if name else str(key))
        return found
    if isinstance(value, list):
        return {name: ", ".join(map(str, value)) or "–"}
    return {name: "–" if value is None or value == {} else str(value)}


def report_data(records: Sequence[BenchmarkRecord]) -> dict[str, Any]:
    """The report as JSON-ready values: figures, checks, differences; without raw samples."""
    names = labels(records)
    return {
        "title": title(records),
        "records": [_data(record, name) for record, name in zip(records, names, strict=True)],
        "differences": [
            {
                "record": item.label,
                "against": item.first,
                "caution": item.caution,
                "quantities": [plain_difference(difference) for difference in item.differences],
            }
            for item in comparisons(records)
        ],
    }


def _data(record: BenchmarkRecord, label: str) -> dict[str, Any]:
    power = record.power.model_dump(mode="json", exclude={"trace", "phases"})
    scene = record.scene.model_dump(mode="json", exclude={"runs"})
    raw = {"with_rules_s", "without_rules_s", *(f"{name}_s" for name in PARTS)}
    answers = None if record.answers is None else record.answers.model_dump(
        mode="json", exclude=raw
    )  # fmt: skip
    return {
        "label": label,
        "heading": heading(record),
        "created_utc": record.created_utc,
        "valid": record.valid,
        "power_mode": power_mode(record),
        "device": device_name(record),
        "bundle": record.bundle.name,
        "precision": record.bundle.precision,
        "model_sha256": record.bundle.model_sha256,
        "failed": [check.name for check in record.failed()],
        "unit": record.unit,
        "engine_p50_s": record.engine.summary.p50_s,
        "engine_tiles_per_s": record.engine.tiles_per_s,
        "unique_mpx_per_s": record.scene.unique_mpx_per_s,
        "peak_rss_mib": record.peak_rss_mib,
        "power": record.power.status,
        "system": None if record.system is None else record.system.model_dump(mode="json"),
        "built": record.bundle.model_dump(mode="json"),
        "input": record.input.model_dump(mode="json"),
        "figures": {
            "latency": record.engine.summary.model_dump(mode="json"),
            "mpx_per_s": record.engine.mpx_per_s,
            "scene": scene,
            "answers": answers,
            "ratio": record.ratio.model_dump(mode="json"),
            "power": power,
        },
        "checks": [check.model_dump(mode="json") for check in ordered(record)],
        "next_steps": next_steps(record),
        "command": record.command,
        "environment": record.environment.model_dump(mode="json"),
    }
