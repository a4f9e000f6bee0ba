"""Records to one self-contained HTML page, or to Markdown.

The page holds its style, plots and pictures itself, loads nothing, follows the reader's light or
dark setting and fits a phone. Every text from a record is escaped. A record that is not valid
says so above its figures in every form, and no figure is ever averaged over records.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekd.errors import InputError
from edgekd.report.plot import histogram_svg, series_svg
from edgekd.report.record import BenchmarkRecord
from edgekd.report.words import (
    STATUS,
    banner,
    bundle_rows,
    check_rows,
    device_name,
    device_rows,
    figure,
    milliseconds,
    quality_tables,
    result_rows,
)

Picture = tuple[str, bytes]


def render_html(
    records: Sequence[BenchmarkRecord],
    pictures: Sequence[Picture] = (),
    title: str | None = None,
) -> str:
    """One HTML page.

    Args:
        records: at least one; two or more are also put side by side.
        pictures: (caption, PNG bytes), shown first.
        title: heading; made from the bundles' names if absent.

    Raises:
        InputError: no record, or a picture that is not PNG.
    """
    _some(records)
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = Path(__file__).with_name("template.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(
        title=title or _title(records),
        pictures=[(caption, _data_uri(caption, data)) for caption, data in pictures],
        comparison=_comparison(records) if len(records) > 1 else None,
        records=[_view(record, markupsafe.Markup) for record in records],
    )
    return page


def render_markdown(records: Sequence[BenchmarkRecord]) -> str:
    """The same figures as Markdown, without plots and pictures.

    Raises:
        InputError: no record.
    """
    _some(records)
    parts = [f"# {_md(_title(records))}", ""]
    if len(records) > 1:
        parts += ["## Side by side", "", *_md_table(*_comparison(records)), ""]
    for record in records:
        parts += [f"## {_md(_heading(record))}", "", _md(_when(record)), ""]
        parts += [f"**{_md(banner(record))}**", ""]
        sections = [
            ("Result", ["", ""], [list(row) for row in result_rows(record)]),
            ("Checks", ["check", "verdict", "detail"], check_rows(record)),
            *[(name, head, rows) for name, head, rows in quality_tables(record.quality)],
            ("Device", ["", ""], [list(row) for row in device_rows(record)]),
            ("Bundle", ["", ""], [list(row) for row in bundle_rows(record)]),
        ]
        for name, head, rows in sections:
            parts += [f"### {_md(name)}", "", *_md_table(head, rows), ""]
        parts += [_md(record.ratio.definition), ""]
    return "\n".join(parts).rstrip() + "\n"


def _view(record: BenchmarkRecord, markup: Callable[[str], str]) -> dict[str, Any]:
    """What the template shows of one record; the plots are made of numbers only."""
    summary = record.engine.summary
    return {
        "heading": _heading(record),
        "when": _when(record),
        "valid": record.valid,
        "banner": banner(record),
        "tiles": [
            ("engine, median", milliseconds(summary.p50_s), "ms per tile"),
            ("engine", figure(record.engine.tiles_per_s), "tiles/s"),
            ("end to end", figure(record.scene.unique_mpx_per_s), "Mpx/s"),
            ("peak memory", f"{record.peak_rss_mib:.0f}", "MiB"),
            ("power", record.power.status, ""),
        ],
        "series": markup(series_svg(record)),
        "histogram": markup(histogram_svg(record)),
        "result": result_rows(record),
        "checks": [
            (check.name, check.status, STATUS[check.status], check.detail)
            for check in record.checks
        ],
        "device": device_rows(record),
        "bundle": bundle_rows(record),
        "quality": quality_tables(record.quality),
        "definition": record.ratio.definition,
    }


def _comparison(records: Sequence[BenchmarkRecord]) -> tuple[list[str], list[list[str]]]:
    """One row per record; nothing is averaged."""
    head = [
        "bundle", "precision", "device", "valid", "p50, ms", "p99, ms", "tiles/s",
        "end to end, Mpx/s", "end to end / engine", "peak, MiB", "power",
    ]  # fmt: skip
    rows = [
        [
            record.bundle.name,
            record.bundle.precision,
            device_name(record),
            "yes" if record.valid else "NO",
            milliseconds(record.engine.summary.p50_s),
            milliseconds(record.engine.summary.p99_s),
            figure(record.engine.tiles_per_s),
            figure(record.scene.unique_mpx_per_s),
            figure(record.ratio.end_to_end_over_engine),
            f"{record.peak_rss_mib:.0f}",
            record.power.status,
        ]
        for record in records
    ]
    return head, rows


def _some(records: Sequence[BenchmarkRecord]) -> None:
    if not records:
        raise InputError("a report needs at least one record; give the file of one")


def _title(records: Sequence[BenchmarkRecord]) -> str:
    names = list(dict.fromkeys(record.bundle.name for record in records))
    return f"edgekd: {', '.join(names)} measured"


def _heading(record: BenchmarkRecord) -> str:
    return f"{record.bundle.name}, {record.bundle.precision}, on {device_name(record)}"


def _when(record: BenchmarkRecord) -> str:
    return f"measured {record.created_utc} by edgekd {record.environment.edgekd}"


def _data_uri(caption: str, data: bytes) -> str:
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError(f"the picture '{caption}' is not PNG; convert it first")
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


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
