"""``edgekd bench``: speed, power and energy of a bundle on this machine, as a record."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import (
    PathArgument,
    day_option,
    embeddings_option,
    emit,
    note,
    parse_bands,
    provider_option,
    refuse_others,
    shared_options,
    signer_option,
    table,
    typed,
)

if TYPE_CHECKING:
    from edgekd.cli._bench_places import PlacesTyped
    from edgekd.cli._live import LiveView
    from edgekd.report.measure import Sensor
    from edgekd.report.plan import Plan
    from edgekd.report.record import BenchmarkRecord
    from edgekd.report.subjects import Subject
    from edgekd.telemetry.trace import Trace

#: of a steady window, s: without power, and with it
_SECONDS, _SECONDS_WITH_POWER = 10.0, 30.0


@click.command("bench")
@click.argument("bundle", type=PathArgument)
@click.argument("source", metavar="[INPUT]", type=PathArgument, required=False)
@click.option("--bands", callback=parse_bands, help="1-based bands to feed as R,G,B, e.g. 1,2,3.")
@click.option(
    "--power", default="auto", show_default=True, metavar="auto|none|external|SENSOR|replay:FILE",
    help="Where power is read; edgekd doctor lists the sensors. external: a meter that records by "
    "itself; its file is added with edgekd power import.",
)  # fmt: skip
@click.option(
    "--seconds", type=float,
    help="Least time of the bare engine's windows together, s, and with power of the scene's; "
    f"default: {_SECONDS:g}, with power {_SECONDS_WITH_POWER:g}.",
)  # fmt: skip
@click.option("--idle", type=float, default=30.0, show_default=True,
              help="Idling before and behind, s; only with power.")  # fmt: skip
@click.option(
    "--warmup", type=float, default=2.0, show_default=True,
    help="Least warm-up, s; it goes on until latency, power and temperature are steady, at most "
    "five times as long.",
)  # fmt: skip
@click.option("--repeats", type=int,
              help="Turns of engine and whole runs; 3, with --interleave 4.")  # fmt: skip
@click.option("--interval", type=float, default=0.1, show_default=True,
              help="Between samples of power, s; what is achieved is told.")  # fmt: skip
@click.option(
    "--interleave",
    type=PathArgument,
    metavar="OTHER_BUNDLE",
    help="Another bundle, measured in turns with this one (ABBA) to compare them.",
)
@click.option("--sweep", type=click.Choice(["power-modes"]),
              help="Measure in each of nvpmodel's modes; the old one is put back.")  # fmt: skip
@click.option("--overlap", type=int, help="Pixels that windows share; default: the bundle's own.")
@click.option("-o", "--output", type=PathArgument,
              help="Record to write (JSON); with --interleave and --sweep a folder of records and "
              "their report.")  # fmt: skip
@click.option("--trace", type=PathArgument, metavar="CSV|PARQUET",
              help="Samples of power with all rails, and where each phase begins.")  # fmt: skip
@click.option("--data", type=PathArgument, metavar="SET",
              help="Of a bundle of places: ask about this set's places; default: those that the "
              "bundle stores.")  # fmt: skip
@click.option("--split", default="all", show_default=True,
              help="Of --data: train, val, test or all.")  # fmt: skip
@click.option("--rules", metavar="FILE|set|none", default="none", show_default=True,
              help="Of a bundle of places: the rules that answers obey; set: those of "
              "--data.")  # fmt: skip
@day_option
@embeddings_option
@provider_option
@click.option("--any-device", is_flag=True, help="Measure a bundle of another architecture.")
@signer_option
@shared_options
@click.pass_context
def command(
    context: click.Context,
    bundle: Path,
    source: Path | None,
    bands: list[int] | None,
    power: str,
    seconds: float | None,
    idle: float,
    warmup: float,
    repeats: int | None,
    interval: float,
    interleave: Path | None,
    sweep: str | None,
    overlap: int | None,
    output: Path | None,
    trace: Path | None,
    data: Path | None,
    split: str,
    rules: str,
    day: str | None,
    embeddings: Path | None,
    provider: list[str] | None,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE: bare engine, end to end over INPUT, and power, in turns.

    With a power sensor: idle, warm-up, then engine and INPUT in turns, each behind a guard of five
    lags of the sensor, idle again; joules per tile come from the same run as the tiles per second.
    Without INPUT the pixels are noise, and the record says so. Ends with 1 when a validity check
    fails; the record is written all the same and says why.

    Of a bundle that answers for places, end to end is one answer after the other, from a picture in
    a file on; texts are embedded beforehand.
    """
    from edgekd.contracts.artifacts import publish_file
    from edgekd.errors import InputError, OutputError
    from edgekd.report.measure import measure_subjects
    from edgekd.report.plan import External, Plan
    from edgekd.telemetry.align import PULSE
    from edgekd.telemetry.power import PowerUnavailable, choose_sensor
    from edgekd.telemetry.trace import check_suffix, write_trace

    if interleave is not None and sweep is not None:
        raise InputError("--interleave compares bundles and --sweep modes; give one of them")
    external = power == "external"
    sensor: Sensor = External() if external else choose_sensor(power, also=["external"])
    powered = not isinstance(sensor, PowerUnavailable)
    plan = Plan(
        duration_s=seconds if seconds is not None
        else _SECONDS_WITH_POWER if powered else _SECONDS,
        warmup_s=warmup, repeats=repeats if repeats is not None else 3 if interleave is None else 4,
        overlap_px=overlap, idle_s=idle, interval_s=interval,
        power=_without_folder(power), pulse=PULSE if external else (),
    )  # fmt: skip
    plan.require(1 if interleave is None else 2)
    if trace is not None:
        check_suffix(trace)
        if sweep is not None or isinstance(sensor, PowerUnavailable | External):
            raise InputError("--trace needs a power sensor, and one measurement; leave it out")
    asked = _Asked(
        bundle, source, bands, plan, interleave, output, provider or [], any_device, signer
    )
    asked = replace(
        asked, places=_places(asked, typed(context), data, split, rules, day, embeddings)
    )
    if sweep is not None or interleave is not None:
        _require_folder(output)
    elif output is not None and output.suffix != ".json":
        raise OutputError(f"a record ends in .json, received {output}")
    if sweep is not None:
        _sweep(asked, sensor, as_json)
        return
    traces: list[Trace] = []
    with contextlib.ExitStack() as outer:
        # opened first: a place that cannot be written is found before the work, not after it
        kept = None if trace is None else outer.enter_context(publish_file(trace))
        if kept is not None:
            kept.touch()
        with contextlib.ExitStack() as stack:
            parts = asked.open(stack)
            subjects = asked.subjects(stack)
            view = stack.enter_context(_view("bench", sensor))
            records = measure_subjects(
                subjects, plan, sensor=sensor, observer=view, command=asked.command(),
                traces=traces,
            )  # fmt: skip
            for part, record in zip(parts, records, strict=False):
                _write(part, record)
        if kept is not None:  # the records are there by now, whatever becomes of the trace
            write_trace(kept, traces[0])
    if interleave is None:
        _tell(records[0], asked, as_json)
    else:
        _tell_several(dict(zip("AB", records, strict=True)), {}, asked, as_json)


#: options of maps, and of places
_OF_MAPS, _OF_PLACES = (
    {"bands", "overlap", "provider"},
    {"data", "split", "rules", "day", "embeddings"},
)


def _places(
    asked: _Asked, names: set[str], data: Path | None, split: str, rules: str, day: str | None,
    embeddings: Path | None,
) -> PlacesTyped | None:  # fmt: skip
    """What was typed of places; None where the bundles make maps."""
    from edgekd.cli._answers import answers_for_places
    from edgekd.cli._bench_places import typed_places
    from edgekd.errors import InputError

    kinds = {path: answers_for_places(path, asked.signer) for path in asked.bundles}
    if len(set(kinds.values())) > 1:
        raise InputError(
            "one of the bundles makes maps and the other answers for places; tiles and answers are "
            "not compared, so measure them one by one"
        )
    if not any(kinds.values()):
        refuse_others(names & _OF_PLACES, f"{asked.bundle} makes maps")
        return None
    refuse_others(names & _OF_MAPS, f"{asked.bundle} answers for places")
    if asked.source is not None:
        raise InputError(
            f"{asked.bundle} answers for places, and takes no scene: leave {asked.source} out, or "
            "give a set of places with --data"
        )
    found: PlacesTyped = typed_places(data, split, rules, day, embeddings)
    return found


def _without_folder(power: str) -> str:
    """``replay:FILE`` by the file's name: a record is shown to others."""
    from edgekd.telemetry.power import REPLAY

    return REPLAY + Path(power[len(REPLAY) :]).name if power.startswith(REPLAY) else power


@dataclass(frozen=True)
class _Asked:
    """What was typed."""

    bundle: Path
    source: Path | None
    bands: list[int] | None
    plan: Plan
    interleave: Path | None
    output: Path | None
    providers: list[str]
    any_device: bool
    signer: list[Path] | None
    places: PlacesTyped | None = None

    @property
    def bundles(self) -> list[Path]:
        return [self.bundle] if self.interleave is None else [self.bundle, self.interleave]

    def open(self, stack: contextlib.ExitStack) -> list[Path]:
        """Places of the records, which appear when they are whole; empty without an output."""
        from edgekd.contracts.artifacts import publish_file

        if self.output is None:
            return []
        places = [self.output]
        if self.interleave is not None:
            places = [self.output / f"{letter}.json" for letter in "AB"]
        parts = [stack.enter_context(publish_file(place)) for place in places]
        for part in parts:
            part.touch()
        return parts

    def subjects(self, stack: contextlib.ExitStack) -> list[Callable[[], Subject]]:
        """Opened bundles with what they are fed; all is closed with the stack."""
        from edgekd.report.subjects import TileSubject
        from edgekd.runtime.session import load

        if self.places is not None:
            return self.places.subjects(self.bundles, self.signer, self.any_device, stack)
        found: list[Callable[[], Subject]] = []
        for path in self.bundles:
            session = stack.enter_context(
                load(path, any_device=self.any_device, provider=self.providers or None,
                     signer=self.signer)
            )  # fmt: skip
            found.append(
                partial(TileSubject, session, self.source, self.bands, self.plan.overlap_px)
            )
        return found

    def command(self, sweep: bool = False) -> str:
        """How to do this again; names without their folders, since a record is shown to others."""
        plan = self.plan
        words = ["edgekd", "bench", self.bundle.name]
        words += [] if self.source is None else [self.source.name]
        words += [] if self.places is None else self.places.words()
        words += ["--power", plan.power, "--seconds", f"{plan.duration_s:g}"]
        words += ["--idle", f"{plan.idle_s:g}", "--warmup", f"{plan.warmup_s:g}"]
        words += ["--repeats", str(plan.repeats), "--interval", f"{plan.interval_s:g}"]
        words += [] if plan.overlap_px is None else ["--overlap", str(plan.overlap_px)]
        words += [] if self.bands is None else ["--bands", ",".join(map(str, self.bands))]
        words += [word for name in self.providers for word in ("--provider", name)]
        words += ["--any-device"] if self.any_device else []
        words += [] if self.interleave is None else ["--interleave", self.interleave.name]
        words += ["--sweep", "power-modes", "-o", "sweep"] if sweep else []
        words += ["-o", "turns"] if self.interleave is not None else []
        return shlex.join(words)


def _require_folder(output: Path | None) -> None:
    from edgekd.errors import OutputError

    if output is None:
        raise OutputError("several records need a folder; give one with -o FOLDER")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(f"the folder {output} cannot be made: {err.strerror}") from err


def _view(title: str, sensor: Sensor) -> LiveView:
    from edgekd.cli._live import LiveView
    from edgekd.telemetry.sensors._base import PowerSensor

    return LiveView(title, sensor.info.word if isinstance(sensor, PowerSensor) else "")


def _write(part: Path, record: BenchmarkRecord) -> None:
    from edgekd.contracts.artifacts import canonical_json

    part.write_text(canonical_json(record.plain()), encoding="utf-8")


def _tell(record: BenchmarkRecord, asked: _Asked, as_json: bool) -> None:
    from edgekd.errors import GateError
    from edgekd.report.advice import next_steps
    from edgekd.report.words import banner, check_rows, result_rows

    output, source = asked.output, asked.source
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
        given = f"{asked.bundle} {source}" if source is not None else str(asked.bundle)
        report = f"edgekd report {output} -o {output.with_suffix('.html')}" if output else ""
        if record.power.status == "pending" and output is not None:
            report = f"edgekd power import METER.csv --record {output} -o {output}"
        note(f"next: {report or f'edgekd bench {given} -o record.json'}")
    if not record.valid:
        failed = ", ".join(check.name for check in record.failed())
        kept = f"; {output} says so too" if output is not None else ""
        raise GateError(
            f"the measurement is not valid (failed: {failed}){kept}. {' '.join(next_steps(record))}"
        )


def _sweep(asked: _Asked, sensor: Sensor, as_json: bool) -> None:
    from edgekd.contracts.artifacts import publish_file
    from edgekd.report.measure import measure_subjects
    from edgekd.report.sweep import sweep_modes
    from edgekd.telemetry.modes import Mode

    assert asked.output is not None
    folder = asked.output
    with contextlib.ExitStack() as stack:
        subjects = asked.subjects(stack)

        def one(mode: Mode) -> BenchmarkRecord:
            with _view(f"bench {mode.name}", sensor) as view:
                record = measure_subjects(
                    subjects, asked.plan, sensor=sensor, observer=view,
                    command=asked.command(sweep=True),
                )[0]  # fmt: skip
            with publish_file(folder / f"{_file_name(mode.name)}.json") as part:
                _write(part, record)
            return record

        found = sweep_modes(one, say=note)
    _tell_several(found.records, found.skipped, asked, as_json)


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text) or "_"


def _tell_several(
    records: dict[str, BenchmarkRecord], skipped: dict[str, str], asked: _Asked, as_json: bool
) -> None:
    """Side by side, with their report; ends with 1 where one is not valid or was skipped."""
    from edgekd.contracts.artifacts import publish_file
    from edgekd.errors import GateError
    from edgekd.report.render import render_html

    assert asked.output is not None
    if not records:
        raise GateError("no mode could be set: " + "; ".join(skipped.values()))
    page = asked.output / "report.html"
    with publish_file(page) as part:
        part.write_text(render_html(list(records.values())), encoding="utf-8")
    emit(
        {
            "records": {name: record.plain() for name, record in records.items()},
            "skipped": skipped,
            "output": str(asked.output),
        },
        [
            *_side_by_side(records),
            *(f"skipped {name}: {why}" for name, why in skipped.items()),
            f"records: {asked.output}",
            f"report: {page}",
        ],
        as_json,
    )
    bad = [name for name, record in records.items() if not record.valid]
    if bad or skipped:
        told = [f"not valid: {', '.join(bad)}"] if bad else []
        told += [f"skipped: {', '.join(skipped)}"] if skipped else []
        raise GateError(f"{'; '.join(told)}; the records and the report say why")


def _side_by_side(records: dict[str, BenchmarkRecord]) -> list[str]:
    """A line for each record, and what differs from the first."""
    from edgekd.report.sections import comparisons, difference_table, side_by_side

    every = list(records.values())
    head, rows = side_by_side(every)
    lines = table(["", *head], [[name, *row] for name, row in zip(records, rows, strict=True)])
    if len(every) > 1:
        lines += ["", *table(*difference_table(comparisons(every)))]
    return lines


def _padded(rows: list[list[str]]) -> list[list[str]]:
    """Rows with their first two columns filled to equal width."""
    names = max(len(row[0]) for row in rows)
    words = max(len(row[1]) for row in rows)
    return [[row[0].ljust(names), row[1].ljust(words), row[2]] for row in rows]
