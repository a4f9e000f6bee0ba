"""Files in a folder, each to its results: once, or as they arrive (``edgekd watch``).

A file goes through four states, each of which is a name on the disk, so that a kill at any moment
loses nothing and does nothing twice:

* ``IN/name`` is waiting (or still arriving: it is taken when it has stopped changing);
* ``OUT/.name.edgekd`` beside it: begun, and gone on with after a restart;
* ``OUT/name.tif`` is there and that is not: its results are whole, since the map comes last (it
  carries the name, size and time of the file that it was made of, so that a result is never taken
  for that of another file);
* ``IN/done/name``, or ``IN/failed/name`` beside ``IN/failed/name.txt``, which says why. World
  files, masks and overviews beside a file go where it goes: the next of that name has its own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgekd.contracts.imageio import Nodata, gdal_environment, gdal_failures, open_quietly
from edgekd.errors import (
    CancelledError,
    EdgeKDError,
    GateError,
    ImageError,
    InputError,
    OutputError,
)
from edgekd.runtime.journal import count_starts, discard_journal, journal_folder
from edgekd.runtime.polygons import Outline
from edgekd.runtime.session import SceneResult, Session

DONE, FAILED = "done", "failed"
SUFFIXES = (".tif", ".tiff", ".vrt", ".png", ".jpg", ".jpeg", ".jp2", ".webp", ".bmp")
_SOURCE_TAG = "EDGEKD_SCENE"
_LOCK_NAME = ".edgekd-watch.lock"
#: bytes that a name may have; results and temporary files have longer ones, 255 is the system's
_MOST_NAME_BYTES = 190
#: starts without a row of windows more, behind which a file is what kills the process
_MOST_STARTS = 10
#: what GDAL reads beside an image: by its whole name, and by its name without suffix
_BESIDE = (".aux.xml", ".msk", ".msk.ovr", ".ovr")
_BESIDE_STEM = (".wld", ".prj", ".tab")

Say = Callable[[str], None]
Stop = Callable[[], bool]


@dataclass(frozen=True)
class Wanted:
    """What is made of every file; see :meth:`edgekd.runtime.session.Session.run_scene`.

    Attributes:
        scores, probabilities, summary: whether to write ``name.scores.tif``,
            ``name.probabilities.tif`` and ``name.json``.
        polygons: suffix of ``name.gpkg`` or ``name.geojson``; None writes none.
    """

    bands: list[int] | None = None
    overlap_px: int | None = None
    nodata: Nodata = "auto"
    scale: Sequence[tuple[float, float]] | tuple[float, float] | None = None
    scores: bool = False
    probabilities: bool = False
    polygons: str | None = None
    summary: bool = False
    outline: Outline = field(default_factory=Outline)


@dataclass
class Tally:
    """What became of the files.

    Attributes:
        done: result file of each.
        failed: name -> reason.
        stopped: whether somebody asked to stop.
    """

    done: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: bool = False

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"done": self.done, "failed": self.failed, "stopped": self.stopped}


def run_folder(
    session: Session,
    inputs: Path,
    outputs: Path,
    wanted: Wanted,
    *,
    resume: bool = False,
    restart: bool = False,
    say: Say = lambda text: None,
    stop: Stop = lambda: False,
) -> Tally:
    """Every image of a folder to its results; the images stay where they are.

    A file that cannot be read is told and does not stop the others.

    Raises:
        InputError: no image there, or the two folders are one.
        OutputError: the disk is full, or a place cannot be written.
    """
    _require_apart(inputs, outputs)
    if outputs.suffix.lower() in SUFFIXES and not outputs.exists():
        raise InputError(
            f"{inputs} is a folder and {outputs} the name of one map; give a folder for the maps, "
            "or one image"
        )
    files = sorted(_files(inputs))
    if not files:
        raise InputError(
            f"{inputs} holds no image (looked for {', '.join(SUFFIXES)}); give another folder"
        )
    _require_own_results(files, wanted)
    _make(outputs)
    tally = Tally()
    for number, path in enumerate(files, start=1):
        output = outputs / _result_name(path)
        say(f"{number} of {len(files)}: {path.name}")
        try:
            _run(session, path, output, wanted, stop, resume=resume, restart=restart)
        except CancelledError:
            tally.stopped = True
            break
        except Exception as err:
            if not _of_the_file(err):
                raise
            tally.failed[path.name] = _fault(err)
            say(f"failed: {tally.failed[path.name]}")
            continue
        tally.done.append(str(output))
    return tally


def watch(
    session: Session,
    inputs: Path,
    outputs: Path,
    wanted: Wanted,
    *,
    settle_s: float = 2.0,
    poll_s: float = 0.5,
    once: bool = False,
    say: Say = lambda text: None,
    stop: Stop = lambda: False,
) -> Tally:
    """Take files as they arrive, the oldest first, until asked to stop.

    Args:
        session: of the bundle.
        inputs: folder that files arrive in; sub-folders and names that begin with a dot or end with
            ``.part`` or ``.tmp`` are left alone.
        outputs: folder of the results.
        wanted: what is made.
        settle_s: a file is whole when size and time have not changed for so long, s.
        poll_s: pause between two looks, s.
        once: end when nothing is waiting.
        say: called with a line for every file.
        stop: asked after every window and look.

    Raises:
        InputError: no such folder, or the two are one.
        OutputError: the disk is full or a place cannot be written (nothing is lost: start again),
            or another watch writes there.
    """
    _require_apart(inputs, outputs)
    for place in (inputs / DONE, inputs / FAILED):
        if outputs.resolve().is_relative_to(place.resolve()):
            raise InputError(
                f"{outputs} is where files go that are {place.name}; give results another folder"
            )
    tally = Tally()
    seen: dict[str, tuple[tuple[int, int], float]] = {}
    with _alone(outputs):
        say(f"watching {inputs}; results go to {outputs}")
        while not stop():
            ready, waiting = _ready(inputs, seen, settle_s)
            for path in ready:
                if stop():
                    break
                try:
                    _take(session, path, inputs, outputs, wanted, tally, say, stop)
                except CancelledError:
                    break
            if once and not ready and not waiting:
                return tally
            if not ready:
                time.sleep(poll_s)
    tally.stopped = True
    return tally


def _take(
    session: Session,
    path: Path,
    inputs: Path,
    outputs: Path,
    wanted: Wanted,
    tally: Tally,
    say: Say,
    stop: Stop,
) -> None:
    """One file from waiting to done or failed."""
    try:
        identity = _identity(path)
    except FileNotFoundError:
        return  # somebody took it away
    if len(os.fsencode(path.name)) > _MOST_NAME_BYTES:
        _fail(path, inputs, f"its name has more than {_MOST_NAME_BYTES} bytes", tally, say)
        return
    output = _free_result(outputs, path, identity, wanted)
    if _made_of(output) != identity or journal_folder(output).exists():
        try:
            if count_starts(output) >= _MOST_STARTS:
                raise ImageError(
                    f"{path}: {_MOST_STARTS} starts ended in it without getting further; was the "
                    "process killed for the memory that it takes?"
                )
            result = _run(session, path, output, wanted, stop, resume=True, source=identity)
        except Exception as err:
            if not _of_the_file(err):
                raise
            if not path.exists():
                return
            if _identity(path) != identity:
                say(f"{path.name} changed while it was read; waiting for it")
                discard_journal(output)
                return
            _fail(path, inputs, _fault(err), tally, say)
            discard_journal(output)
            return
        say(f"done: {path.name} -> {output.name}, {result.total_s:.1f} s")
    tally.done.append(str(output))
    with contextlib.suppress(FileNotFoundError):
        if _identity(path) == identity:  # otherwise a new one has come in its place
            _move(path, inputs / DONE)


def _fail(path: Path, inputs: Path, reason: str, tally: Tally, say: Say) -> None:
    tally.failed[path.name] = reason
    _set_aside(path, inputs / FAILED, reason)
    say(f"failed: {path.name}: {reason}")


def _of_the_file(err: Exception) -> bool:
    """Whether it stops none of the files behind: not what lies with the place, the bundle or what
    was asked for, but the image itself, or a fault of ours in it."""
    return not isinstance(err, EdgeKDError) or isinstance(err, ImageError | GateError)


def _fault(err: Exception) -> str:
    """What a person reads of it."""
    if isinstance(err, EdgeKDError):
        return str(err)
    return f"unexpected {type(err).__name__}: {err}; this is a fault in edgekd, please report it"


def _run(
    session: Session,
    path: Path,
    output: Path,
    wanted: Wanted,
    stop: Stop,
    *,
    resume: bool = False,
    restart: bool = False,
    source: str = "",
) -> SceneResult:
    def beside(suffix: str) -> Path:
        return output.with_name(output.name.removesuffix(".tif") + suffix)

    options: dict[str, Any] = {
        "bands": wanted.bands,
        "overlap_px": wanted.overlap_px,
        "nodata": wanted.nodata,
        "scale": wanted.scale,
        "scores": beside(".scores.tif") if wanted.scores else None,
        "probabilities": beside(".probabilities.tif") if wanted.probabilities else None,
        "polygons": beside(wanted.polygons) if wanted.polygons else None,
        "summary": beside(".json") if wanted.summary else None,
        "outline": wanted.outline,
        "cancel": stop,
        "tags": {_SOURCE_TAG: source} if source else None,
    }
    try:
        return session.run_scene(path, output, resume=resume, restart=restart, **options)
    except InputError as err:
        # Another version of the program, the bundle or the file began it: its rows cannot be used.
        if source and "--restart" in str(err) and not isinstance(err, ImageError | OutputError):
            return session.run_scene(path, output, restart=True, **options)
        other = isinstance(err, ImageError) and "holds other pixels" in str(err)
        if source and other and _identity(path) == source:
            return session.run_scene(path, output, restart=True, **options)
        raise


def _identity(path: Path) -> str:
    status = path.stat()
    return f"{path.name} {status.st_size} {status.st_mtime_ns}"


def _made_of(output: Path) -> str | None:
    """What file a result was made of; None where there is no result."""
    if not output.is_file():
        return None
    with gdal_environment() as rasterio:
        try:
            with open_quietly(rasterio, output) as data:
                return str(data.tags().get(_SOURCE_TAG, ""))
        except gdal_failures(rasterio):
            return ""


def _free_result(outputs: Path, path: Path, identity: str, wanted: Wanted) -> Path:
    """Where the result goes: beside results of other files that had the same name."""
    name = _result_name(path)
    number = 1
    while True:
        place = outputs / (name if number == 1 else f"{name.removesuffix('.tif')}-{number}.tif")
        made_of = _made_of(place)
        begun = made_of is None and journal_folder(place).exists()
        if made_of == identity or begun:
            return place
        if not any(item.exists() for item in _results(place, wanted)):
            return place
        number += 1


def _result_name(path: Path) -> str:
    return path.name if path.suffix == ".tif" else f"{path.name}.tif"


def _results(output: Path, wanted: Wanted) -> list[Path]:
    """All files that are made of one image."""
    ends = [".tif", *([".scores.tif"] if wanted.scores else []),
            *([".probabilities.tif"] if wanted.probabilities else []),
            *([wanted.polygons] if wanted.polygons else []),
            *([".json"] if wanted.summary else [])]  # fmt: skip
    return [output.with_name(output.name.removesuffix(".tif") + end) for end in ends]


def _require_own_results(files: list[Path], wanted: Wanted) -> None:
    owner: dict[str, Path] = {}
    for path in files:
        for result in _results(Path(_result_name(path)), wanted):
            other = owner.setdefault(result.name, path)
            if other != path:
                raise InputError(
                    f"{other.name} and {path.name} would both give {result.name}; rename one"
                )


def _set_aside(path: Path, folder: Path, reason: str) -> None:
    """Move a bad file; what says why is there before it is."""
    place = _free(folder, path.name)
    short = os.fsencode(place.name)[:_MOST_NAME_BYTES].decode(errors="ignore")
    note = place.with_name(f"{short}.txt")
    part = note.with_name(f".{note.name}.part")
    with _writing(folder):
        part.write_text(reason + "\n", encoding="utf-8", errors="surrogateescape")
        part.replace(note)
    _move_to(path, place)


def _move(path: Path, folder: Path) -> None:
    _move_to(path, _free(folder, path.name))


def _move_to(path: Path, place: Path) -> None:
    """Move an image, and before it what says where it lies and what it masks."""
    with _writing(place.parent), contextlib.suppress(FileNotFoundError):
        for end in _BESIDE:
            beside = path.with_name(path.name + end)
            if os.path.isfile(beside):  # noqa: PTH113 (a name may be too long for it)
                beside.replace(place.with_name(place.name + end))
        kind = path.suffix.lower().lstrip(".")
        ends = [f".{kind[0]}{kind[-1]}w", f".{kind}w"]
        if not any(other.stem == path.stem and other != path for other in _files(path.parent)):
            ends += _BESIDE_STEM
        for beside in list(path.parent.iterdir()):
            if beside.stem == path.stem and beside.suffix.lower() in ends and beside.is_file():
                beside.replace(place.with_name(place.stem + beside.suffix))
        path.replace(place)


def _free(folder: Path, name: str) -> Path:
    _make(folder)
    place, number = folder / name, 1
    while place.exists():
        number += 1
        place = folder / f"{Path(name).stem}-{number}{Path(name).suffix}"
    return place


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as err:
        raise OutputError(f"{folder} cannot be written: {err.strerror or err}") from err


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        hidden = path.name.startswith(".")
        if not hidden and path.suffix.lower() in SUFFIXES and path.is_file():
            yield path


def _ready(
    inputs: Path, seen: dict[str, tuple[tuple[int, int], float]], settle_s: float
) -> tuple[list[Path], int]:
    """Files that have stopped changing, the oldest first, and how many have not yet."""
    now = time.monotonic()
    found: dict[str, tuple[tuple[int, int], float]] = {}
    ready: list[tuple[int, str, Path]] = []
    for path in _files(inputs):
        try:
            status = path.stat()
        except OSError:
            continue
        state = (status.st_size, status.st_mtime_ns)
        before = seen.get(path.name)
        since = before[1] if before is not None and before[0] == state else now
        found[path.name] = (state, since)
        old = time.time() - status.st_mtime > settle_s  # it lay there before we came
        if now - since >= settle_s or (old and before is not None):
            ready.append((status.st_mtime_ns, path.name, path))
    seen.clear()
    seen.update(found)
    return [item[2] for item in sorted(ready)], len(found) - len(ready)


def _require_apart(inputs: Path, outputs: Path) -> None:
    if not inputs.is_dir():
        raise InputError(f"{inputs} is no folder; give the folder that files arrive in")
    if outputs.exists() and not outputs.is_dir():
        raise OutputError(f"{outputs} is a file; results go into a folder")
    if inputs.resolve() == outputs.resolve():
        raise InputError(f"{outputs} is the folder of the inputs; give results one of their own")


def _make(folder: Path) -> None:
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _alone(outputs: Path) -> Iterator[None]:
    """One watch for a folder of results; the lock ends with the process."""
    _make(outputs)
    with _writing(outputs):
        number = os.open(outputs / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as err:
            if err.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise OutputError(
                    f"another edgekd watch writes into {outputs}; stop it, or give another folder"
                ) from err
        yield
    finally:
        os.close(number)
