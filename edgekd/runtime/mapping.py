"""One scene to its map: reading, inference, blending and keeping overlap; nothing done is lost.

Reading and normalising have a thread, the model has one for each stream, blending is done in the
caller's, and compressing and keeping rows in another; all queues are bounded, and the order is that
of the windows.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt

import edgekd
from edgekd.contracts.imageio import Nodata, Raster, UInt8Array
from edgekd.contracts.memory import give_back_memory
from edgekd.contracts.tensors import MAP_NODATA
from edgekd.contracts.windows import axis_starts
from edgekd.errors import CancelledError, EdgeKDError, GateError, ImageError, OutputError
from edgekd.runtime.journal import BLOCK_ROWS, Commit, Journal
from edgekd.runtime.maps import code_scores
from edgekd.runtime.products import Products, finish
from edgekd.runtime.scene import RasterSource
from edgekd.runtime.tiler import Piece, Progress, TilePlan, TileStats, panel_px, run_tiles

if TYPE_CHECKING:
    from edgekd.runtime.session import Session

Cancel = Callable[[], bool]
#: pieces that wait to be kept
_WAITING = 4


@dataclass(frozen=True)
class SceneResult:
    """Result for a scene that was written to a file.

    ``pixels = valid + nodata`` and ``covered = valid``: every pixel with data has a class and no
    other pixel has one. ``nodata_rule`` says in words what was taken for "no data" and why. Times
    are wall-clock seconds; ``infer_s`` adds up the model's calls, of which ``streams`` ran at once.
    With ``attempts`` above 1 the run was resumed: ``resumed_rows`` were there before, times are of
    all attempts, ``latencies_s`` of the last one. ``file_bytes`` holds the sizes of what was
    written (``map``, ``scores``, ``probabilities``, ``polygons``, ``summary``).
    """

    input: str
    output: str
    width: int
    height: int
    crs: str | None
    bands: list[int]
    window_px: int
    overlap_px: int
    windows: int
    windows_run: int
    windows_skipped: int
    pixels: int
    pixels_valid: int
    pixels_nodata: int
    nodata_rule: str
    pixels_covered: int
    class_pixels: dict[str, int]
    class_area_m2: dict[str, float] | None
    total_s: float
    streams: int
    infer_s: float
    mpx_per_s: float
    scale: list[tuple[float, float]] | None = None
    attempts: int = 1
    resumed_rows: int = 0
    polygons: int | None = None
    file_bytes: dict[str, int] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list, repr=False)

    def plain(self) -> dict[str, Any]:
        """JSON-ready values, without the list of latencies."""
        values = asdict(self)
        del values["latencies_s"]
        return values


def map_scene(
    session: Session,
    src: Path,
    products: Products,
    *,
    bands: list[int] | None = None,
    overlap_px: int | None = None,
    nodata: Nodata = "auto",
    scale: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
    progress: Progress | None = None,
    cancel: Cancel | None = None,
    resume: bool = False,
    restart: bool = False,
    tags: dict[str, str] | None = None,
) -> SceneResult:
    """See :meth:`edgekd.runtime.session.Session.run_scene`."""
    with Raster(src, nodata) as raster:
        products.require_places(raster)
        source = RasterSource(raster, bands, session.channels, scale)
        geometry = session.geometry(overlap_px)
        infer, streams = session.calls_for(raster.height, raster.width, geometry)
        job = _job(session, raster, source, geometry, streams, products)
        with Journal(products.map, job, raster.width, resume, restart) as journal:
            resumed = journal.state.rows
            stats = TileStats(streams=streams)
            try:
                if journal.earlier["scene_mtime_ns"] != job["scene_mtime_ns"]:
                    source.require_unchanged(journal.state.read)
                if journal.state.rows < raster.height:
                    stats = _keep_rows(
                        session, source, infer, geometry, streams, journal, products,
                        progress, cancel,
                    )  # fmt: skip
                if _stamp(src) != (job["scene_bytes"], job["scene_mtime_ns"]):
                    with Raster(src, nodata) as now:  # it changed, or only its time did
                        RasterSource(now, bands, session.channels, scale).require_unchanged(
                            journal.state.read
                        )
                give_back_memory()
                start = time.perf_counter()
                about = {
                    "bundle": session.manifest.name,
                    "model_sha256": job["model_sha256"],
                    "nodata_rule": raster.nodata_rule,
                }
                figures = finish(
                    journal,
                    raster,
                    session.manifest.classes,
                    products,
                    {**_tags(session, raster), **(tags or {})},
                    about,
                    cancel,
                )
            except BaseException as err:
                if journal.state.rows == 0 or isinstance(err, GateError):
                    journal.discard()  # nothing is done, or would be done otherwise
                elif isinstance(err, ImageError | OutputError) and "--re" not in str(err):
                    raise type(err)(
                        f"{err}; {journal.state.rows} of {raster.height} rows are done and kept, "
                        "go on with --resume (resume=True)"
                    ) from err
                raise
            state = journal.state
            journal.discard()
        total_s = state.total_s + time.perf_counter() - start
        pixels = raster.height * raster.width
        return SceneResult(
            input=str(src),
            output=str(products.map),
            width=raster.width,
            height=raster.height,
            crs=None if raster.crs is None else str(raster.crs),
            bands=source.bands,
            window_px=geometry.tile_px,
            overlap_px=geometry.overlap_px,
            windows=state.run + state.skipped,
            windows_run=state.run,
            windows_skipped=state.skipped,
            pixels=pixels,
            pixels_valid=state.valid,
            pixels_nodata=figures.nodata,
            nodata_rule=raster.nodata_rule,
            pixels_covered=sum(figures.class_pixels.values()),
            class_pixels=figures.class_pixels,
            class_area_m2=figures.class_area_m2,
            total_s=total_s,
            streams=streams,
            infer_s=state.infer_s,
            mpx_per_s=pixels / 1e6 / total_s,
            scale=source.scale,
            attempts=state.attempts,
            resumed_rows=resumed,
            polygons=figures.polygons,
            file_bytes=figures.file_bytes,
            latencies_s=stats.latencies_s,
        )


def _job(
    session: Session,
    raster: Raster,
    source: RasterSource,
    geometry: TilePlan,
    streams: int,
    products: Products,
) -> dict[str, Any]:
    """What decides the bytes of the map."""
    status = raster.path.stat()
    job = {
        "edgekd": edgekd.__version__,
        "scene": str(raster.path.resolve()),
        "scene_bytes": status.st_size,
        "scene_mtime_ns": status.st_mtime_ns,
        "size_px": [raster.height, raster.width],
        "bands": source.bands,
        "scale": None if source.scale is None else [list(pair) for pair in source.scale],
        "nodata_rule": raster.nodata_rule,
        "manifest_sha256": session.manifest_sha256,
        "model_sha256": session.manifest.files[session.model],
        # a graph computes the same; it may be given up while a scene is run
        "backend": {k: v for k, v in session.backend.details.items() if k != "cuda_graph"},
        "concurrent": streams > 1,
        "overlap_px": geometry.overlap_px,
        "blend": geometry.blend,
        "panel_px": panel_px(source),
        "confidence": products.confidence,
    }
    if products.probabilities is not None:  # a job without is as it was before there were any
        job["probabilities"] = True
    return job


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _tags(session: Session, raster: Raster) -> dict[str, str]:
    """Of the model; and that the scene was computed and not measured, where it says so."""
    said = {key: value for key, value in raster.tags.items() if key == "SIMULATED"}
    return {
        **said,
        "EDGEKD_VERSION": edgekd.__version__,
        "EDGEKD_BUNDLE": session.manifest.name,
        "EDGEKD_MODEL_SHA256": session.manifest.files[session.model],
    }


def _keep_rows(
    session: Session,
    source: RasterSource,
    infer: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]],
    geometry: TilePlan,
    streams: int,
    journal: Journal,
    products: Products,
    progress: Progress | None,
    cancel: Cancel | None,
) -> TileStats:
    """Run the model over what is missing and bring the rows into the journal."""
    stats = TileStats()

    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(done, total)
        if cancel is not None and cancel():
            raise CancelledError(
                f"{products.map} was cancelled after {done} of {total} windows; go on with "
                "--resume (resume=True)"
            )

    tops = axis_starts(source.height, geometry.tile_px, geometry.overlap_px, geometry.stride_px)
    bottoms = [top + geometry.tile_px for top in tops]
    work = run_tiles(
        source,
        infer,
        session.normalize,
        geometry,
        stats,
        session.fill,
        step if progress is not None or cancel is not None else None,
        confidence=products.confidence,
        streams=streams,
        behind=journal.state.windows,
        batch=session.backend.batch_max,
        planes=products.probabilities is not None,
    )
    # Closed before the raster: a thread may still be reading.
    with (
        contextlib.closing(work),
        _Keeper(journal, source, session.index, products.confidence, bottoms) as keeper,
    ):
        for piece in work:
            keeper.add(piece, stats)
    return stats


class _Keeper:
    """Joins what comes into larger pieces, and has a thread compress and write them."""

    def __init__(
        self,
        journal: Journal,
        source: RasterSource,
        index: UInt8Array,
        scores: bool,
        bottoms: list[int],
    ) -> None:
        self._journal, self._source, self._bottoms = journal, source, bottoms
        self._base, self._start = journal.state, time.perf_counter()
        self._known = self._base.read[-1][1] if self._base.read else 0  # rows whose pixels are seen
        self._table = np.full(256, MAP_NODATA, dtype=np.uint8)
        self._table[: len(index)] = index
        self._same = list(index) == list(range(len(index)))
        self._scores = scores
        self._parts: list[tuple[UInt8Array, UInt8Array | None, UInt8Array | None]] = []
        self._y0 = self._x0 = self._y1 = 0  # of the parts together
        self._valid = journal.state.valid
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgekd")
        self._waiting: deque[Future[None]] = deque()

    def add(self, piece: Piece, stats: TileStats) -> None:
        """Take a piece; behind a row of windows all is committed."""
        values = piece.channel if self._same else np.asarray(cv2.LUT(piece.channel, self._table))
        codes = code_scores(piece.confidence) if self._scores else None
        if self._source.masked:
            empty = ~piece.valid
            values[empty] = MAP_NODATA
            if codes is not None:
                codes[empty] = MAP_NODATA
            if piece.planes is not None:
                piece.planes[:, empty] = MAP_NODATA
            self._valid += int(np.count_nonzero(piece.valid))
        else:
            self._valid += values.size
        values = values.astype(np.uint8, copy=False)
        if self._parts and (piece.x0, piece.y0) != (self._x0, self._y1):
            self._flush()
        y = piece.y0
        while y < piece.y1:  # all panels are cut in the same rows
            y1 = min(piece.y1, y - y % BLOCK_ROWS + BLOCK_ROWS)
            rows = slice(y - piece.y0, y1 - piece.y0)
            if not self._parts:
                self._y0, self._x0 = y, piece.x0
            self._parts.append((
                values[rows], None if codes is None else codes[rows],
                None if piece.planes is None else piece.planes[:, rows],
            ))  # fmt: skip
            y = self._y1 = y1
            if y % BLOCK_ROWS == 0:
                self._flush()
        if piece.windows is not None:
            self._flush()
            self._submit(self._journal.commit, self._commit(piece.windows, piece.y1, stats))

    def _commit(self, windows: int, rows: int, stats: TileStats) -> Commit:
        base = self._base
        bottom = self._bottoms[windows - 1]
        fresh = [item for item in list(self._source.seen) if self._known < item[1] <= bottom]
        self._known = bottom
        return replace(
            base,
            windows=windows,
            rows=rows,
            run=base.run + stats.run,
            skipped=base.skipped + stats.skipped,
            valid=self._valid,
            infer_s=base.infer_s + stats.infer_s,
            total_s=base.total_s + time.perf_counter() - self._start,
            read=fresh,
        )

    def _flush(self) -> None:
        """Have the parts that came written as one piece."""
        taken, self._parts = self._parts, []
        if not taken:
            return

        def work(y0: int, x0: int) -> None:
            classes = np.concatenate([item[0] for item in taken])
            codes = [item[1] for item in taken if item[1] is not None]
            planes = [item[2] for item in taken if item[2] is not None]
            self._journal.append(
                y0, x0, classes, np.concatenate(codes) if codes else None,
                np.concatenate(planes, axis=1) if planes else None,
            )  # fmt: skip

        self._submit(work, self._y0, self._x0)

    def _submit(self, work: Callable[..., None], *arguments: Any) -> None:
        self._waiting.append(self._pool.submit(work, *arguments))
        while len(self._waiting) > _WAITING:
            self._waiting.popleft().result()

    def __enter__(self) -> _Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._waiting:
                future = self._waiting.popleft()
                if kind is None:
                    future.result()
                else:  # what was handed over is kept, and the first error is the one to tell
                    with contextlib.suppress(EdgeKDError):
                        future.result()
        finally:
            self._pool.shutdown(wait=True)
