"""``edgekd report``: records as a page or as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("report")
@click.argument("records", metavar="RECORD...", type=PathArgument, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=PathArgument,
    help="report.html (plots, one self-contained file) or report.md; default: Markdown on stdout.",
)  # fmt: skip
@shared_options
def command(records: tuple[Path, ...], output: Path | None, as_json: bool) -> None:
    """Show one or more RECORDs of edgekd bench; several are also put side by side."""
    from edgekd.contracts.artifacts import publish_file
    from edgekd.errors import OutputError
    from edgekd.report.record import read_record
    from edgekd.report.render import render_html, render_markdown

    if output is not None and output.suffix.lower() not in (".html", ".md"):
        raise OutputError(f"a report ends in .html or .md, received {output}")
    if output is not None and any(_same(output, path) for path in records):
        raise OutputError(f"{output} is one of the records; write the report to another file")
    loaded = [read_record(path) for path in records]
    lines: list[str] = []
    if output is None:
        lines = render_markdown(loaded).splitlines()
    else:
        html = output.suffix.lower() == ".html"
        text = render_html(loaded) if html else render_markdown(loaded)
        with publish_file(output) as part:
            part.write_text(text, encoding="utf-8")
        lines = [f"report: {output}"]
    invalid = [str(path) for path, record in zip(records, loaded, strict=True) if not record.valid]
    if not as_json:
        for name in invalid:
            note(f"note: {name} is not valid; the report says why")
    summaries = [
        {
            "record": str(path),
            "bundle": record.bundle.name,
            "precision": record.bundle.precision,
            "model_sha256": record.bundle.model_sha256,
            "created_utc": record.created_utc,
            "valid": record.valid,
            "failed": [check.name for check in record.failed()],
            "engine_p50_s": record.engine.summary.p50_s,
            "engine_tiles_per_s": record.engine.tiles_per_s,
            "unique_mpx_per_s": record.scene.unique_mpx_per_s,
            "peak_rss_mib": record.peak_rss_mib,
            "power": record.power.status,
        }
        for path, record in zip(records, loaded, strict=True)
    ]
    written = None if output is None else str(output)
    emit({"output": written, "records": summaries}, lines, as_json)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
