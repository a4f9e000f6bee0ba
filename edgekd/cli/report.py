"""``edgekd report``: records as a page, as Markdown or as JSON."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options


@click.command("report")
@click.argument("records", metavar="RECORD...", type=PathArgument, nargs=-1, required=True)
@click.option(
    "-o", "--output", type=PathArgument,
    help="report.html (charts, one self-contained file), report.md or report.json; default: "
    "Markdown on stdout.",
)  # fmt: skip
@click.option(
    "--teacher-record", type=PathArgument, metavar="RECORD",
    help="Of edgekd bench on the machine that computes the teacher: its power stands beside the "
    "student's in place of the recipe's system.teacher_computing.",
)  # fmt: skip
@shared_options
def command(
    records: tuple[Path, ...], output: Path | None, teacher_record: Path | None, as_json: bool
) -> None:
    """Show one or more RECORDs of edgekd bench; several are compared with the first."""
    import json

    from edgekd.contracts.artifacts import publish_file
    from edgekd.errors import InputError, OutputError
    from edgekd.report.markdown import render_markdown
    from edgekd.report.record import read_record
    from edgekd.report.render import render_html
    from edgekd.report.sections import report_data
    from edgekd.report.system import with_teacher

    kind = None if output is None else output.suffix.lower()
    if kind not in (None, ".html", ".md", ".json"):
        raise OutputError(f"a report ends in .html, .md or .json, received {output}")
    given = [*records, *([] if teacher_record is None else [teacher_record])]
    if output is not None and any(_same(output, path) for path in given):
        raise OutputError(f"{output} is one of the records; write the report to another file")
    loaded = [read_record(path) for path in records]
    if teacher_record is not None:
        if any(_same(teacher_record, path) for path in records):
            raise InputError(
                f"{teacher_record} is the record of a student here and not the teacher's too; give "
                "one that was measured on the teacher's machine"
            )
        if all(record.system is None for record in loaded):
            raise InputError(
                "--teacher-record stands beside sensors, and the recipe of no record here has any; "
                "declare sensors in the recipe, build and measure again"
            )
        teacher = read_record(teacher_record)
        loaded = [with_teacher(record, teacher, teacher_record.name) for record in loaded]
    data = report_data(loaded)
    for path, item in zip(records, data["records"], strict=True):
        item["record"] = str(path)
    if output is None:
        lines = render_markdown(loaded).splitlines()
    else:
        if kind == ".json":
            text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        else:
            text = render_html(loaded) if kind == ".html" else render_markdown(loaded)
        with publish_file(output) as part:
            part.write_text(text, encoding="utf-8")
        lines = [f"report: {output}"]
    invalid = [str(path) for path, record in zip(records, loaded, strict=True) if not record.valid]
    if not as_json:
        for name in invalid:
            note(f"note: {name} is not valid; the report says why")
    emit({"output": None if output is None else str(output), **data}, lines, as_json)


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)
