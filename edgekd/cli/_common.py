"""What every command shares: output, progress, options."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from edgekd.contracts.recipe import Recipe
    from edgekd.deploy.quantize.grounds import Images

F = TypeVar("F", bound=Callable[..., Any])
PathArgument = click.Path(path_type=Path)
#: folder of a run of places that keeps embeddings and features, for whoever asks again
CACHE_NAME = "cache"


def shared_options(function: F) -> F:
    """Add ``--json`` (as ``as_json``) and ``--debug`` to a command."""
    function = click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, nothing else."
    )(function)
    return debug_option(function)


def debug_option(function: F) -> F:
    """Add ``--debug``; :func:`edgekd.cli.main.main` looks for it, the command does not."""

    @click.option("--debug", is_flag=True, help="Show a traceback with an error.")
    @functools.wraps(function)
    def wrapped(*args: Any, debug: bool, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def signer_option(function: F) -> F:
    """Add ``--signer`` (as ``signer``): public key files, or None; for every use of a bundle."""
    return click.option(
        "--signer", multiple=True, type=PathArgument, metavar="PUBLIC_KEY",
        callback=lambda _context, _parameter, value: list(value) or None,
        help="Refuse a bundle that this key did not sign; several: one of them must have. "
        "EDGEKD_SIGNER demands the same.",
    )(function)  # fmt: skip


def provider_option(function: F) -> F:
    """Add ``--provider``; the function gets a list, or None where it is left out."""
    return click.option(
        "--provider", multiple=True, metavar="NAME",
        callback=lambda context, parameter, value: list(value) or None,
        help="ONNX Runtime's execution provider, e.g. CUDAExecutionProvider; again for the next "
        "that may be used. Without CPUExecutionProvider nothing is left to the CPU.",
    )(function)  # fmt: skip


def embeddings_option(function: F) -> F:
    """Add ``--embeddings`` (as ``embeddings``), for commands that read a set of places."""
    return click.option(
        "--embeddings", type=PathArgument, metavar="FILE.npy",
        help="Of places: embeddings of the set's texts, a row for each place, in place of making "
        "them.",
    )(function)  # fmt: skip


def day_option(function: F) -> F:
    """Add ``--day`` (as ``day``, text), for commands that put rules in force."""
    return click.option(
        "--day", metavar="YYYY-MM-DD",
        help="Of places: day on which rules are in force; default: today.",
    )(function)  # fmt: skip


def ask_passphrase(text: str, confirm: bool = False) -> str:
    """Ask in the terminal without showing what is typed.

    Raises:
        InputError: there is no terminal to ask in.
    """
    from edgekd.errors import InputError

    if not sys.stdin.isatty():
        raise InputError(
            f"a {text} is needed and there is no terminal to ask in; set EDGEKD_KEY_PASSPHRASE"
        )
    answer: str = click.prompt(text, hide_input=True, confirmation_prompt=confirm, err=True)
    return answer


def emit(payload: dict[str, Any], lines: list[str], as_json: bool) -> None:
    """Print a result on stdout: one JSON object, or lines for a person."""
    if as_json:
        click.echo(json.dumps(payload, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        for line in lines:
            click.echo(_shown(line))


def _shown(line: str) -> str:
    """A line that stays one and moves no cursor, whatever a bundle calls itself."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def note(text: str) -> None:
    """Print a line on stderr."""
    click.echo(_shown(text), err=True)


def open_images(
    recipe: Recipe, recipe_path: Path, data: Path | None, calibration: Path | None
) -> Images:
    """The sets that a build compares, calibrates and judges on.

    Args:
        recipe, recipe_path: whose own set is taken unless ``data`` names another.
        calibration: file of an earlier calibration, in place of calibrating.
    """
    from edgekd.contracts.recipe import data_root
    from edgekd.contracts.schema import resolve_path
    from edgekd.contracts.sensor_labelled import is_here, open_data
    from edgekd.deploy.quantize.grounds import Images

    place = data or data_root(recipe, recipe_path)
    labelled = sets = None
    if data is not None or is_here(place):  # a set that is there must be whole
        labelled = open_data(recipe, place, training=False)
    else:
        note(f"note: {place} is not here, so there are no real pixels to compare on; a synthetic "
             "picture is used and the manifest says so (--data gives another place)")  # fmt: skip
    spec = recipe.calibration
    if recipe.precision.allowed != ["fp32"] and spec is not None and spec.set is not None:
        sets = open_data(
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"split": None})}),
            resolve_path(spec.set, recipe_path.resolve().parent),
            training=False,
        )
    shown = sets or labelled
    if spec is not None and shown is not None and calibration is None and (
        recipe.precision.allowed != ["fp32"]
    ):  # fmt: skip
        from edgekd.deploy.tiles import check_enough

        check_enough(shown, spec.split, recipe.io.inputs[0].tile_px, spec.tiles)
    return Images(labelled, sets, calibration)


class Update(Protocol):
    """Tells a progress bar how far the work is, with a short text to show beside it."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """``done`` of ``total`` units."""


@contextlib.contextmanager
def progress_bar(title: str, unit: str) -> Iterator[Update]:
    """A progress bar with time left on stderr.

    In a terminal it is redrawn ten times a second, elsewhere a line appears every 10 s at most.
    """
    from tqdm import tqdm

    bar: Any = None
    terminal = sys.stderr.isatty()

    def update(done: int, total: int, text: str = "") -> None:
        nonlocal bar
        if bar is not None and (done < bar.n or total != bar.total):
            bar.close()  # the next of several pieces of work: a bar of its own
            bar = None
        if bar is None:
            bar = tqdm(
                total=total,
                desc=title,
                unit=unit,
                file=sys.stderr,
                leave=True,
                mininterval=0.1 if terminal else 10.0,
                maxinterval=10.0,
                dynamic_ncols=terminal,
                ascii=not terminal,
            )
        if text:
            bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()


@contextlib.contextmanager
def run_folder(out: Path) -> Iterator[None]:
    """Make the run's folder at once, and take it away again if the run did not begin.

    A place that cannot be written must be found before hours of work, not after them.

    Raises:
        OutputError: the folder cannot be made or written.
    """
    from edgekd.errors import OutputError

    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise OutputError(
            f"the run's folder {out} cannot be made: {err.strerror}; choose another with -o"
        ) from err
    if not os.access(out, os.W_OK | os.X_OK):
        raise OutputError(
            f"the run's folder {out} is not writable; choose another with -o or change its "
            "permissions"
        )
    try:
        yield
    except BaseException as err:
        # What a person stopped is theirs to look at, and so are curves of a run that had begun,
        # and teachers and stages that were trained before it, which have folders of their own.
        left = ("*.ckpt", "curves.csv", "journal.jsonl")
        begun = any(True for name in left for _ in out.rglob(name))
        if not isinstance(err, KeyboardInterrupt) and out in missing and not begun:
            shutil.rmtree(out, ignore_errors=True)
            with contextlib.suppress(OSError):  # a parent that another run uses by now stays
                for folder in missing[1:]:
                    folder.rmdir()
        raise


def parse_bands(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[int] | None:
    """Callback of ``--bands 1,2,3``."""
    if value is None:
        return None
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as err:
        raise click.BadParameter(f"expected numbers like 1,2,3, received '{value}'") from err


def parse_nodata(context: click.Context, parameter: click.Parameter, value: str) -> float | str:
    """Callback of ``--nodata``."""
    if value in ("auto", "declared", "none"):
        return value
    try:
        return float(value)
    except ValueError as err:
        raise click.BadParameter(
            f"expected auto, declared, none or a number, received '{value}'"
        ) from err


def parse_scale(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> list[tuple[float, float]] | None:
    """Callback of ``--scale LOW,HIGH[,LOW,HIGH...]``."""
    if value is None:
        return None
    try:
        numbers = [float(part) for part in value.split(",")]
    except ValueError:
        numbers = []
    if not numbers or len(numbers) % 2:
        raise click.BadParameter(
            f"expected pairs of numbers like 0,3000 or 0,3000,0,2800,0,2500, received '{value}'"
        )
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def scene_options(function: F) -> F:
    """Add what ``run`` and ``watch`` share: how scenes are read and cut into windows."""
    options = (
        click.option("--bands", callback=parse_bands,
                     help="1-based bands to feed as R,G,B, e.g. 1,2,3."),
        click.option("--scale", callback=parse_scale, metavar="LOW,HIGH[,LOW,HIGH...]",
                     help="What becomes 0 and 255, for all bands or each; needed for pixels of "
                     "more than 8 bits."),
        click.option("--overlap", type=int,
                     help="Pixels that windows share; default: the bundle's own."),
        click.option("--nodata", default="auto", callback=parse_nodata, show_default=True,
                     help="auto, declared, none, or the value that every band holds there."),
        click.option("--streams", type=click.IntRange(min=0), default=0, show_default=True,
                     help="Tiles in the model at once, at most; 1 needs the least memory, 0 is one "
                     "per core, two with TensorRT."),
        provider_option,
        click.option("--simplify", type=click.FloatRange(min=0), default=1.0, show_default=True,
                     help="Pixels that simplified outlines of polygons may be off; 0 keeps all."),
        click.option("--min-area", type=click.IntRange(min=0), default=16, show_default=True,
                     help="Pixels below which an area takes the class around it in the polygons."),
        click.option("--any-device", is_flag=True, help="Run a bundle of another architecture."),
    )  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


class Asked(threading.Event):
    """Whether somebody asked to stop.

    Attributes:
        code: what a shell expects then: 130 for Ctrl-C, 143 for SIGTERM.
    """

    code = 1


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Asked]:
    """Set by the first SIGTERM or Ctrl-C; from the second on they do what they did before."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():  # which alone may have handlers
        yield asked
        return

    def stop(number: int, _frame: Any) -> None:
        asked.code = 128 + number
        asked.set()
        give_back()

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    from edgekd.errors import CancelledError

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield asked
    except CancelledError as err:
        err.exit_code = asked.code
        raise
    finally:
        give_back()


def repeated(overrides: tuple[str, ...]) -> str:
    """`` --set ...`` for the command that comes next, quoted for a shell; empty without any."""
    return "".join(f" --set {shlex.quote(text)}" for text in overrides)


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Columns padded to equal width; the first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(head), *(line(row) for row in rows)]


def percent(value: float | None) -> str:
    """``0.5432`` -> ``54.3 %``; None -> ``-``."""
    return "-" if value is None else f"{100 * value:.1f} %"


def typed(context: click.Context) -> set[str]:
    """Options that were typed, by their names in the function."""
    source = click.core.ParameterSource.COMMANDLINE
    return {name for name in context.params if context.get_parameter_source(name) is source}


def refuse_others(names: set[str], why: str) -> None:
    """Raise InputError where options were typed that mean nothing here."""
    from edgekd.errors import InputError

    if names:
        said = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))
        raise InputError(f"{said} cannot be used here: {why}; leave it out")
