"""Records to one self-contained HTML page.

The page holds its style, charts, pictures and its little script itself, forbids every request by
its content security policy, is complete without the script, follows the reader's light or dark
setting, fits a phone and prints. Every text from a record is escaped. A record that is not valid
says so above its figures and in its charts, and no figure is ever averaged over records.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekd.errors import InputError
from edgekd.report import charts, sections
from edgekd.report.advice import next_steps, ordered
from edgekd.report.compare import Difference, labels, power_mode
from edgekd.report.power import Figure, PowerRecord
from edgekd.report.record import BenchmarkRecord
from edgekd.report.system_view import system_view
from edgekd.report.timeline import timeline, why_no_power
from edgekd.report.words import (
    STATUS,
    banner,
    bundle_rows,
    device_name,
    device_rows,
    figure,
    interval,
    milliseconds,
    power_mark,
    quality_tables,
    result_rows,
    sensor_words,
)

Picture = tuple[str, bytes]


@dataclass(frozen=True)
class Card:
    """A figure that is set large: name, value, what follows it smaller, unit, lines below."""

    name: str
    value: str
    spread: str
    unit: str
    below: list[str]
    kind: str = ""


def render_html(
    records: Sequence[BenchmarkRecord],
    pictures: Sequence[Picture] = (),
    title: str | None = None,
) -> str:
    """One HTML page.

    Args:
        records: at least one; two or more are also put side by side and compared with the first.
        pictures: (caption, PNG bytes), shown first.
        title: heading; made from the bundles' names if absent.

    Raises:
        InputError: no record, or a picture that is not PNG.
    """
    if not records:
        raise InputError("a report needs at least one record; give the file of one")
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    here = Path(__file__)
    source = here.with_name("template.html.j2").read_text(encoding="utf-8")
    names = labels(records)
    page: str = environment.from_string(source).render(
        style=markupsafe.Markup(here.with_name("page.css").read_text(encoding="utf-8")),
        script=markupsafe.Markup(here.with_name("page.js").read_text(encoding="utf-8")),
        title=title or sections.title(records),
        pictures=[(caption, _data_uri(caption, data)) for caption, data in pictures],
        comparison=_comparison(records, markupsafe.Markup) if len(records) > 1 else None,
        records=[
            _view(record, name, markupsafe.Markup)
            for record, name in zip(records, names, strict=True)
        ],
    )
    return page


def _view(record: BenchmarkRecord, label: str, markup: Callable[[str], str]) -> dict[str, Any]:
    """What the template shows of one record."""
    power = record.power
    mode = power_mode(record)
    system = system_view(record)
    facts = [
        record.bundle.name,
        record.bundle.precision,
        device_name(record),
        f"power mode {mode}" if mode else "",
    ]
    return {
        "label": label,
        "facts": [fact for fact in facts if fact],
        "when": sections.when(record),
        "valid": record.valid,
        "banner": banner(record),
        "foreign": sections.not_of_this_run(record),
        "no_power": why_no_power(record),
        "tiles": _cards(record),
        "timeline": markup(timeline(record)),
        "histogram": markup(charts.histogram(record)),
        "calls": record.engine.summary.n,
        "unit": record.unit,
        "energy": markup(charts.energy(power, record.valid, record.unit))
        if isinstance(power, PowerRecord)
        else "",
        "energy_table": sections.energy_table(record),
        "system": system,
        "system_chart": markup(system.chart) if system is not None else "",
        "mark": power_mark(power),
        "scope": power.sensor.scope if isinstance(power, PowerRecord) else "",
        "sensor": sensor_words(power) if isinstance(power, PowerRecord) else "",
        "checks": [
            (check.name, check.status, STATUS[check.status], check.detail)
            for check in ordered(record)
        ],
        "next": next_steps(record),
        "command": record.command,
        "command_words": sections.command_words(record),
        "reproduce": sections.reproduce_rows(record),
        "machine": sections.machine_tables(record),
        "result": result_rows(record),
        "device": device_rows(record),
        "bundle": bundle_rows(record),
        "quality": quality_tables(record.quality),
        "definition": record.ratio.definition,
    }


def _cards(record: BenchmarkRecord) -> list[Card]:
    """The few figures that matter."""
    engine, scene, power, unit = record.engine, record.scene, record.power, record.unit
    answers = record.answers
    found = []
    if isinstance(power, PowerRecord):
        mark = power_mark(power)
        if power.engine is not None:
            net = power.engine.net_j_per_tile
            below = [f"net of idle {interval(net)}"] if net else []
            if power.scene is not None:
                below.append(f"end to end {interval(power.scene.gross_j_per_tile)}")
            found.append(_card(f"energy per {unit}{mark}", power.engine.gross_j_per_tile,
                               f"J/{unit}", below, "lead"))  # fmt: skip
            idle = [f"idle {interval(power.idle.mean_w)} W"] if power.idle else []
            found.append(_card(f"power{mark}", power.engine.mean_w, "W",
                               [f"of the {power.sensor.scope}", *idle]))  # fmt: skip
        else:
            why = power.without["engine"]
            found.append(Card(f"energy per {unit}{mark}", "unavailable", "", "", [why], "word"))
    if answers is not None:
        whole, model = answers.total, answers.model
        found += [
            Card("end to end", figure(answers.answers_per_s), "", "answers/s",
                 ["one place at a time", f"bare engine {figure(engine.tiles_per_s)} answers/s"]),
            Card("one answer", milliseconds(whole.p50_s), "", "ms",
                 [f"p90 {milliseconds(whole.p90_s)}, p99 {milliseconds(whole.p99_s)} ms",
                  f"of it network and projection {milliseconds(model.p50_s)} ms"]),
            Card("rules", "none" if answers.rules is None else answers.rules.name, "", "",
                 [] if answers.rules_s is None
                 else [f"cost {1e3 * answers.rules_s:+.3g} ms in the engine"], "word"),
        ]  # fmt: skip
    found += [] if answers is not None else [
        Card("throughput", figure(engine.tiles_per_s), "", "tiles/s",
             ["bare engine", f"{figure(engine.mpx_per_s)} Mpx/s of tiles"]),
        Card("end to end", figure(scene.unique_mpx_per_s), "", "Mpx/s",
             ["of the input", f"{figure(scene.tiles_per_s)} tiles/s"]),
        Card("latency", milliseconds(engine.summary.p50_s), "", "ms",
             ["median per tile", f"p99 {milliseconds(engine.summary.p99_s)} ms"]),
    ]  # fmt: skip
    if not isinstance(power, PowerRecord):
        found.append(Card("power", "unavailable", "", "", [power.reason], "word"))
    return found


def _card(name: str, value: Figure, unit: str, below: list[str], kind: str = "") -> Card:
    number, _, half = interval(value).partition(" ± ")
    return Card(name, number, f"± {half}" if half else "", unit, below, kind)


def _comparison(records: Sequence[BenchmarkRecord], markup: Callable[[str], str]) -> dict[str, Any]:
    """Table, scatter and differences from the first record."""
    found = sections.comparisons(records)
    names = labels(records)
    quantities: dict[tuple[str, str], list[tuple[str, Difference]]] = {}
    for item in found:
        for difference in item.differences:
            key = (difference.name, difference.unit)
            quantities.setdefault(key, []).append((item.label, difference))
    scatters, left_out = charts.scatters(records, names)
    cautions: dict[str, list[str]] = {}
    for item in found:
        if item.caution:
            cautions.setdefault(item.caution, []).append(item.label)
    return {
        "table": sections.side_by_side(records),
        "common": sections.common(records),
        "first": names[0],
        "scatters": [(name, markup(chart)) for name, chart in scatters],
        "left_out": left_out,
        "quantities": [
            _quantity(f"{name}, {unit}", rows, markup) for (name, unit), rows in quantities.items()
        ],
        "cautions": [
            text if len(who) == len(found) else f"{', '.join(who)}: {text}"
            for text, who in cautions.items()
        ],
    }


def _quantity(
    name: str, rows: Sequence[tuple[str, Difference]], markup: Callable[[str], str]
) -> dict[str, Any]:
    """The differences in one quantity on one axis."""
    end = charts.reach([difference for _, difference in rows])
    shown = []
    for label, difference in rows:
        text, share = charts.change_words(difference)
        shown.append(
            {
                "label": label,
                "text": text,
                "share": share,
                "verdict": difference.verdict,
                "why": difference.why,
                "chart": markup(charts.change_chart(difference, end)),
            }
        )
    compared = any(difference.relative is not None for _, difference in rows)
    return {"name": name, "rows": shown, "reach": f"{100 * end:g} %" if compared else ""}


def _data_uri(caption: str, data: bytes) -> str:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"the picture '{caption}' is not PNG; convert it first")
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")
