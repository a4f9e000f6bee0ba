"""``edgekd power``: record a sensor, take over logs and meters, and say what energy they hold."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options, stop_on_signals

if TYPE_CHECKING:
    from edgekd.cli._common import Asked
    from edgekd.telemetry.figures import Figures
    from edgekd.telemetry.recorder import Recorder
    from edgekd.telemetry.trace import Trace

#: how often the live line appears, s
_LIVE_S = 1.0
#: before and behind a command, the sensor's guard; and at least so many s
_GUARD_LEAST_S = 1.0


@click.group(
    "power", epilog="Each takes --json and --debug.", invoke_without_command=True
)  # fmt: skip
@click.pass_context
def command(context: click.Context) -> None:
    """Power on disk: record a sensor, import logs and meters, add up energy."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@command.command("record")
@click.option("-o", "--output", type=PathArgument, metavar="CSV|PARQUET", help="Trace to write.")
@click.option("--power", default="auto", show_default=True, metavar="auto|SENSOR|replay:FILE",
              help="The sensor; edgekd doctor lists them.")  # fmt: skip
@click.option("--interval", type=click.FloatRange(min=0, min_open=True), default=0.1,
              show_default=True, help="Between samples, asked for, s.")  # fmt: skip
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True),
              help="How long; without it until Ctrl-C, or the end of COMMAND.")  # fmt: skip
@click.argument("program", metavar="[-- COMMAND...]", nargs=-1)
@shared_options
def record(
    output: Path | None,
    power: str,
    interval: float,
    seconds: float | None,
    program: tuple[str, ...],
    as_json: bool,
) -> None:
    """Record a power sensor, until Ctrl-C or while COMMAND runs.

    With a COMMAND its begin and end are marked, and the energy is that of exactly its time. Ends
    with 1 when the sensor failed meanwhile, or COMMAND did.
    """
    from edgekd.errors import EnvironmentLacksError, GateError, InputError
    from edgekd.telemetry.figures import figures
    from edgekd.telemetry.power import PowerUnavailable, choose_sensor
    from edgekd.telemetry.recorder import Recorder, reason_of

    if program and seconds is not None:
        raise InputError("--seconds ends a recording without COMMAND; leave one of them out")
    if program and shutil.which(program[0]) is None:
        raise InputError(f"the command '{program[0]}' is not found; is it on PATH?")
    for name, given, most in (("--seconds", seconds, 604_800.0), ("--interval", interval, 3600.0)):
        if given is not None and not 0.001 <= given <= most:
            raise InputError(f"expected {name} of 0.001 to {most:g} s, received {given:g}")
    sensor = choose_sensor(power)
    if isinstance(sensor, PowerUnavailable):
        raise EnvironmentLacksError(f"there is nothing to record: {reason_of(sensor)}")
    ended: dict[str, Any] = {}
    with stop_on_signals() as asked, Recorder(output, sensor, interval) as recorder:
        _need(recorder)
        note(f"recording {sensor.info.name} ({sensor.info.scope}, {sensor.info.source})")
        if program:
            ended = _run(program, recorder, asked, as_json)
        else:
            _wait(recorder, asked, seconds)
    _need(recorder)
    trace = recorder.trace
    start_s, end_s = ended.get("begin_s"), ended.get("end_s")
    found = figures(trace, start_s, end_s)
    notes = _guard_notes(trace, found) if program else []
    lines = [*found.lines(), *notes]
    if program:
        lines.insert(0, f"command   ended with {ended['exit_code']} after {found.duration_s:.3f} s")
    if output is not None:
        lines.append(f"trace     {output}")
    value = {"trace": None if output is None else str(output), **found.plain()}
    emit(value | ({"command": ended, "notes": notes} if program else {}), lines, as_json)
    if not as_json and output is not None:
        note(f"next: edgekd power energy {output}")
    wrong = [f"{program[0]} ended with {ended['exit_code']}"] if ended.get("exit_code") else []
    if found.faults:
        wrong.append(f"the recording is not valid: {'; '.join(found.faults)}")
    if wrong:
        raise GateError("; ".join(wrong))


def _need(recorder: Recorder) -> None:
    """A sensor that was lost before it said anything: there is nothing that could be recorded."""
    from edgekd.errors import EnvironmentLacksError

    samples = recorder.samples
    if samples.lost and not samples.readings:
        raise EnvironmentLacksError(
            f"power sensor {samples.info.name} gives no reading: {samples.lost}; edgekd doctor "
            "tells which can be read"
        )


def _wait(recorder: Recorder, asked: Asked, seconds: float | None) -> None:
    """Until somebody stops it, the time is over, or there is nothing more to record."""
    end_s = None if seconds is None else recorder.start_s + seconds
    told = recorder.start_s
    while not (asked.is_set() or recorder.samples.lost or recorder.failure):
        now = time.monotonic()
        if end_s is not None and now >= end_s:
            return
        if now - told >= _LIVE_S:
            told = now
            _live(recorder)
        asked.wait(0.05 if end_s is None else min(0.05, max(end_s - now, 0.0)))


def _live(recorder: Recorder) -> None:
    readings = recorder.samples.readings
    last = next((item for item in reversed(readings[-5:]) if item.watts is not None), None)
    if last is None:
        note(f"{time.monotonic() - recorder.start_s:8.1f} s  no power yet")
        return
    about = [*last.temperatures_c.items()]
    warm = f"  {max(value for _, value in about):.1f} °C" if about else ""
    word = recorder.samples.info.word
    note(f"{last.at_s - recorder.start_s:8.1f} s  {last.watts:8.3f} W{word}{warm}")


def _guard(recorder: Recorder) -> float:
    from edgekd.telemetry.energy import guard_s

    return max(guard_s(recorder.samples.info), _GUARD_LEAST_S)


def _run(
    program: tuple[str, ...], recorder: Recorder, asked: Asked, as_json: bool
) -> dict[str, Any]:
    """Run the command between two guards, so that its time lies within the samples."""
    from edgekd.errors import InputError

    _wait(recorder, asked, _guard(recorder))
    begin = recorder.mark("begin")
    try:
        # with --json stdout is ours alone
        process = subprocess.Popen(program, stdout=2 if as_json else None)
    except OSError as err:
        raise InputError(f"{program[0]} cannot be started: {err.strerror or err}") from err
    told, stopped = begin, False
    try:
        while process.poll() is None:
            now = time.monotonic()
            if now - told >= _LIVE_S:
                told = now
                _live(recorder)
            if asked.is_set() and not stopped:
                stopped = True
                if asked.code == 128 + signal.SIGTERM:  # Ctrl-C reached it, too
                    process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.02)
    except BaseException:
        process.kill()
        process.wait()
        raise
    end = recorder.mark("end")
    rest = time.monotonic() + _guard(recorder)
    while time.monotonic() < rest and not (recorder.samples.lost or recorder.failure):
        time.sleep(0.05)
    return {
        "argv": list(program), "exit_code": process.returncode,
        "begin_s": begin - recorder.start_s, "end_s": end - recorder.start_s,
    }  # fmt: skip


def _guard_notes(trace: Trace, found: Figures) -> list[str]:
    """What the sensor's lag does to a window that is cut where the load is."""
    from edgekd.telemetry.energy import energy_j, guard_s

    lag = trace.samples.info.lag_s
    if lag is None:
        return ["the sensor's lag is not known: of a short command a part may lie behind its end"]
    at_s, power = trace.samples.power()
    tail = min(found.end_s + guard_s(trace.samples.info), float(at_s[-1]))
    if tail <= found.end_s:
        return [f"the sensor lags by {lag:g} s and nothing was recorded behind the command"]
    after = (at_s > tail - lag) & (at_s <= tail)
    rest = float(power[after].mean()) if after.any() else float(power[-1])
    late = energy_j(at_s, power, found.end_s, tail) - rest * (tail - found.end_s)
    return [
        f"the sensor lags by {lag:g} s: {late:.4g} J above what followed were read behind the "
        "command's end and are not in its energy"
    ]


@command.command("import")
@click.argument("file", type=PathArgument)
@click.option("-o", "--output", type=PathArgument, required=True, metavar="CSV|PARQUET",
              help="Trace to write.")  # fmt: skip
@click.option("--interval", type=click.FloatRange(min=0, min_open=True),
              help="Pause between the lines of a log without times, s.")  # fmt: skip
@click.option("--scope", type=click.Choice(["board", "wall"]),
              help="What a meter measured, where its file does not say.")  # fmt: skip
@click.option(
    "--format", "form", metavar="FORMAT",
    help="trace, tegrastats, fnirsi, tasmota, shelly or csv; default: what it looks like.",
)  # fmt: skip
@click.option("--record", "of", type=PathArgument, metavar="RECORD",
              help="Of edgekd bench --power external: the meter's power is added to it, and OUTPUT "
              "is the record.")  # fmt: skip
@shared_options
def import_(
    file: Path,
    output: Path,
    interval: float | None,
    scope: Any,
    form: str | None,
    of: Path | None,
    as_json: bool,
) -> None:
    """Make a trace of FILE: a log of tegrastats, or what a meter left.

    Meters: FNIRSI, Tasmota, Shelly, or CSV with columns time and power_w. With --record the meter's
    clock is found by the load that both saw, and the record gets its energy.
    """
    if of is not None:
        _add_to_record(file, of, output, interval, scope, form, as_json)
        return
    from edgekd.errors import InputError
    from edgekd.telemetry.logs import read_power_file
    from edgekd.telemetry.trace import check_suffix, write_trace

    check_suffix(output)
    if output.exists() and file.exists() and output.samefile(file):
        raise InputError(f"{output} is the file that is read; give another name with -o")
    trace = read_power_file(file, interval, scope=scope, form=form)
    write_trace(output, trace)
    at_s, power = trace.samples.power()
    info, counts = trace.samples.info, trace.counts
    mean = None
    if len(at_s) > 1:
        from edgekd.telemetry.energy import energy_j

        first, last = float(at_s[0]), float(at_s[-1])
        mean = energy_j(at_s, power, first, last) / (last - first)
    value = {
        "trace": str(output), "status": info.status, "source": info.source,
        "scope": info.scope, "total": list(info.total),
        "readings": len(trace.samples.readings), "with_power": len(at_s),
        "started": trace.started_utc, "duration_s": float(at_s[-1] - at_s[0]) if len(at_s) else 0.0,
        "mean_w": mean, "faults": trace.faults(),
        "lines": None if counts is None else counts.lines,
        "dropped": {} if counts is None else dict(counts.damaged),
        "tokens_understood": None if counts is None else counts.understood,
        "tokens_aside": {} if counts is None else dict(counts.aside),
    }  # fmt: skip
    rows = [f"{info.source}, scope {info.scope}, total {' + '.join(info.total) or 'unknown'}"]
    if counts is not None:
        dropped = ", ".join(f"{count} {kind}" for kind, count in counts.damaged.items())
        rows.append(f"lines     {counts.lines} understood, dropped: {dropped or 'none'}")
        if counts.understood:
            aside = ", ".join(f"{name} {count}" for name, count in counts.aside.items())
            rows.append(f"tokens    {counts.understood} understood, set aside: {aside or 'none'}")
    rows.append(f"samples   {len(at_s)} with power over {value['duration_s']:.3f} s")
    rows += [] if mean is None else [f"power{info.word}".ljust(9) + f" {mean:.4g} W mean"]
    rows += [f"note      {fault}" for fault in trace.faults()]
    emit(value, [*rows, f"trace     {output}"], as_json)
    if not as_json:
        note(f"next: edgekd power energy {output}")


def _add_to_record(
    file: Path, of: Path, output: Path, interval: float | None, scope: Any, form: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    from edgekd.errors import GateError
    from edgekd.report.external import add_meter
    from edgekd.report.record import read_record, write_record
    from edgekd.report.words import banner, check_rows, power_rows
    from edgekd.telemetry.logs import read_power_file

    found = add_meter(
        read_record(of), read_power_file(file, interval, scope=scope, form=form), file.name
    )
    write_record(found, output)
    rows = [f"{name}: {value}" for name, value in power_rows(found)]
    rows += [f"{name}  {verdict}  {detail}" for name, verdict, detail in check_rows(found)]
    emit(found.plain(), [banner(found), "", *rows, f"record: {output}"], as_json)
    if not as_json:
        note(f"next: edgekd report {output} -o {output.with_suffix('.html')}")
    if not found.valid:
        failed = ", ".join(check.name for check in found.failed())
        raise GateError(f"the measurement is not valid (failed: {failed}); {output} says so too")


def _pair(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        first, last = (float(part) for part in value.split(","))
    except ValueError as err:
        raise click.BadParameter(f"expected two times like 0,30, received '{value}'") from err
    return first, last


@command.command("energy")
@click.argument("file", metavar="TRACE|LOG", type=PathArgument)
@click.option("--from", "start", type=float, help="Begin of the window, s since the start.")
@click.option("--to", "end", type=float, help="Its end; default: all that has power.")
@click.option("--idle", callback=_pair, metavar="FROM,TO",
              help="When nothing was done, s: what is above it is told as net.")  # fmt: skip
@click.option("--interval", type=click.FloatRange(min=0, min_open=True),
              help="Pause between the lines of a log without times, s.")  # fmt: skip
@click.option("--scope", type=click.Choice(["board", "wall"]),
              help="What a meter measured, where its file does not say.")  # fmt: skip
@shared_options
def energy(
    file: Path,
    start: float | None,
    end: float | None,
    idle: tuple[float, float] | None,
    interval: float | None,
    scope: Any,
    as_json: bool,
) -> None:
    """Add up the energy of a trace, a log of tegrastats or a meter's file, or of a part of it.

    Ends with 1 when the samples cannot carry the figure; it is told all the same, as not valid.
    """
    from edgekd.errors import GateError, InputError
    from edgekd.telemetry.figures import figures
    from edgekd.telemetry.logs import read_power_file

    trace = read_power_file(file, interval, scope=scope)
    try:
        found = figures(trace, start, end, idle)
    except InputError as err:
        raise InputError(f"{file}: {err}") from err
    marks = [{"t_s": at_s, "name": name} for at_s, name in trace.marks]
    lines = [
        *found.lines(),
        *(f"mark      {item['name']} at {item['t_s']:.3f} s" for item in marks),
    ]
    emit(found.plain() | {"file": str(file), "marks": marks}, lines, as_json)
    if found.faults:
        raise GateError(f"{file}: the figure is not valid: {'; '.join(found.faults)}")
