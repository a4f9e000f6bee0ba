"""``edgekd bench``: speed of a bundle on this machine, as a record."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    parse_bands,
    progress_bar,
    provider_option,
    shared_options,
    signer_option,
)


@click.command("bench")
@click.argument("bundle", type=PathArgument)
@click.argument("source", metavar="[INPUT]", type=PathArgument, required=False)
@click.option("--bands", callback=parse_bands, help="1-based bands to feed as R,G,B, e.g. 1,2,3.")
@click.option(
    "--seconds", type=float, default=10.0, show_default=True,
    help="Least time of the bare engine's window, s.",
)  # fmt: skip
@click.option(
    "--warmup", type=float, default=2.0, show_default=True,
    help="Least warm-up, s; it goes on until latency is steady, at most five times as long.",
)  # fmt: skip
@click.option("--runs", type=int, default=3, show_default=True, help="Runs over the whole input.")
@click.option("--overlap", type=int, help="Pixels that windows share; default: the bundle's own.")
@click.option("-o", "--output", type=PathArgument, help="Record to write (JSON).")
@provider_option
@click.option("--any-device", is_flag=True, help="Measure a bundle of another architecture.")
@signer_option
@shared_options
def command(
    bundle: Path,
    source: Path | None,
    bands: list[int] | None,
    seconds: float,
    warmup: float,
    runs: int,
    overlap: int | None,
    output: Path | None,
    provider: list[str] | None,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE: bare engine and end to end over INPUT, in turns.

    Without INPUT the pixels are noise, and the record says so. Ends with 1 when a validity check
    fails; the record is written all the same and says why.
    """
    from edgekd.contracts.artifacts import canonical_json, publish_file
    from edgekd.errors import GateError
    from edgekd.report.measure import measure
    from edgekd.report.render import banner, check_rows, result_rows
    from edgekd.runtime.session import load

    with contextlib.ExitStack() as stack:
        # opened first: a place that cannot be written is found before the work, not after it
        part = None if output is None else stack.enter_context(publish_file(output))
        session = stack.enter_context(
            load(bundle, any_device=any_device, provider=provider, signer=signer)
        )
        update = stack.enter_context(progress_bar("bench", "step"))
        record = measure(
            session,
            source,
            bands,
            duration_s=seconds,
            warmup_s=warmup,
            scene_runs=runs,
            overlap_px=overlap,
            progress=update,
        )
        if part is not None:
            part.write_text(canonical_json(record.plain()), encoding="utf-8")
    width = max(len(name) for name, _ in result_rows(record))
    emit(
        record.plain(),
        [
            banner(record),
            "",
            *(f"{name.ljust(width)}  {value}" for name, value in result_rows(record)),
            "",
            *(f"{row[0]}  {row[1]}  {row[2]}" for row in _padded(check_rows(record))),
            *([f"record: {output}"] if output is not None else []),
        ],
        as_json,
    )
    if not as_json:
        given = f"{bundle} {source}" if source is not None else str(bundle)
        report = f"edgekd report {output} -o {output.with_suffix('.html')}" if output else ""
        note(f"next: {report or f'edgekd bench {given} -o record.json'}")
    if not record.valid:
        failed = ", ".join(check.name for check in record.failed())
        kept = f"; {output} says so too" if output is not None else ""
        raise GateError(
            f"the measurement is not valid (failed: {failed}){kept}; stop other programs or "
            "measure longer with --seconds, then run it again"
        )


def _padded(rows: list[list[str]]) -> list[list[str]]:
    """Rows with their first two columns filled to equal width."""
    names = max(len(row[0]) for row in rows)
    words = max(len(row[1]) for row in rows)
    return [[row[0].ljust(names), row[1].ljust(words), row[2]] for row in rows]
