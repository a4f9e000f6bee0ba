"""Records as Markdown: the figures of the page without its charts."""

from __future__ import annotations

from collections.abc import Sequence

from edgekd.errors import InputError
from edgekd.report import sections
from edgekd.report.advice import next_steps, ordered
from edgekd.report.record import BenchmarkRecord
from edgekd.report.system_view import SystemView, system_view
from edgekd.report.words import (
    STATUS,
    banner,
    bundle_rows,
    device_rows,
    quality_tables,
    result_rows,
)


def render_markdown(records: Sequence[BenchmarkRecord]) -> str:
    """Markdown with the same figures as the page, differences and verdicts.

    Raises:
        InputError: no record.
    """
    if not records:
        raise InputError("a report needs at least one record; give the file of one")
    parts = [f"# {_md(sections.title(records))}", ""]
    if len(records) > 1:
        parts += ["## Side by side", "", *_md_table(*sections.side_by_side(records)), ""]
        found = sections.comparisons(records)
        parts += [f"### Differences from {_md(found[0].first)}", ""]
        parts += [*_md_table(*sections.difference_table(found)), ""]
        for item in found:
            if item.caution:
                parts += [_md(f"{item.label}: {item.caution}."), ""]
    for record in records:
        parts += _record(record)
    return "\n".join(parts).rstrip() + "\n"


def _record(record: BenchmarkRecord) -> list[str]:
    parts = [f"## {_md(sections.heading(record))}", "", _md(sections.when(record)), ""]
    parts += [f"**{_md(banner(record))}**", ""]
    if sections.not_of_this_run(record):
        parts += [f"**{_md(sections.not_of_this_run(record))}**", ""]
    parts += [line for step in next_steps(record) for line in (f"- {_md(step)}",)]
    parts += [""] if next_steps(record) else []
    checks = [[check.name, STATUS[check.status], check.detail] for check in ordered(record)]
    energy = sections.energy_table(record)
    system = system_view(record)
    parts += [] if system is None else _system(system)
    blocks = [
        *([] if energy is None else [("Energy", *energy)]),
        ("Result", ["", ""], [list(row) for row in result_rows(record)]),
        ("Checks", ["check", "verdict", "detail"], checks),
        *quality_tables(record.quality),
        ("How to reproduce", ["", ""], [list(row) for row in sections.reproduce_rows(record)]),
        *[(name, *table) for name, table in sections.machine_tables(record)],
        ("Device", ["", ""], [list(row) for row in device_rows(record)]),
        ("Bundle", ["", ""], [list(row) for row in bundle_rows(record)]),
    ]
    for name, head, rows in blocks:
        parts += [f"### {_md(name)}", ""]
        if name == "How to reproduce":
            parts += [_md(sections.command_words(record)), ""]
        parts += [*_md_table(head, rows), ""]
    return [*parts, _md(record.ratio.definition), ""]


def _system(view: SystemView) -> list[str]:
    """Teacher and student as whole systems."""
    parts = [f"### {_md(view.title)}", "", f"**{_md(view.lead)}**", ""]
    parts += [*_md_table(*view.table), "", *_md_table(*view.sources), ""]
    return [*parts, _md(" ".join(view.notes)), ""]


def _md(text: str) -> str:
    """Text for Markdown: on one line, and nothing in it acts as markup or HTML."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\`*_[]|#":
        text = text.replace(mark, "\\" + mark)
    return text


def _md_table(head: list[str], rows: list[list[str]]) -> list[str]:
    escaped = [[_md(cell) for cell in row] for row in (head, *rows)]
    lines = [escaped[0], ["---"] * len(head), *escaped[1:]]
    return ["| " + " | ".join(line) + " |" for line in lines]
