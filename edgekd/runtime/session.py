"""A loaded bundle: the front door for applications.

import edgekd

with edgekd.load("bundles/canopy-x86-cpu") as session:
    prediction = session.run(image)            # (H, W, 3) uint8, any size
    result = session.run_scene("scene.tif", "map.tif")
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.imageio import Nodata, UInt8Array
from edgekd.contracts.manifest import Manifest, TilingDone
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.trust import Requirement, Signers, requirements
from edgekd.contracts.windows import axis_starts
from edgekd.errors import BundleError, GateError, InputError, OutputError
from edgekd.runtime.backends.base import Backend
from edgekd.runtime.bundle import Bundle, open_bundle
from edgekd.runtime.bundle import read_manifest as read_manifest
from edgekd.runtime.bundle import sealed_json as sealed_json
from edgekd.runtime.mapping import SceneResult as SceneResult
from edgekd.runtime.mapping import map_scene
from edgekd.runtime.opening import open_backend, require_tensors
from edgekd.runtime.polygons import Outline
from edgekd.runtime.products import Products
from edgekd.runtime.scene import ArraySource
from edgekd.runtime.tiler import Infer, Progress, TilePlan, TileStats, run_tiles
from edgekd.runtime.video import Frame, stream

if TYPE_CHECKING:
    from edgekd.telemetry.recorder import Recorder

#: windows per stream from which on several model calls run at once; below, the last of them would
#: leave cores idle for longer than the rest gain.
WINDOWS_PER_STREAM = 4


@dataclass(frozen=True)
class Prediction:
    """Result for an image in memory.

    Attributes:
        classes: class index per pixel ``(H, W)`` uint8, values as in the bundle's class list.
        confidence: probability of that class ``(H, W)`` float32, 0-1.
        stats: windows and time.
    """

    classes: UInt8Array
    confidence: npt.NDArray[np.float32]
    stats: TileStats


class Session:
    """A bundle that is loaded and checked; made by :func:`load`.

    A session may be shared by threads: single calls queue, and scenes together never make more
    calls at once than the backend has streams.

    Attributes:
        model: file of the bundle that runs: of a bundle with an engine, on another machine than the
            engine's, the typed graph that stands for it.
        precision: of that file.
        manifest_sha256: of ``manifest.json`` as it was read.
        tiling: of the bundle.
        index: class index of each channel of the output, uint8.
        normalize, fill: pixels to input, and the pixel that replaces those without data.
        signer: id of the key that signed the bundle; None where no signer was asked for, since an
            unasked signature was not looked at.
    """

    def __init__(self, bundle: Bundle, backend: Backend, model: str | None = None) -> None:
        manifest = bundle.manifest
        self.model = model or manifest.model
        graphs = {item.file: item.precision for item in manifest.portable if item.typing == "graph"}
        self.precision = graphs.get(self.model, manifest.precision.done) or "undecided"
        self.path = bundle.path
        self.manifest_sha256 = sha256_bytes(bundle.content)
        self.manifest: Manifest = manifest
        self.tiling = manifest.of_maps(bundle.path)
        self.signer = None if bundle.signer is None else bundle.signer.key_id
        self.backend = backend
        self._golden = bundle.file(manifest.golden.file)
        self._lock = threading.Lock()
        self._tiles_done, self._tiles_lock = 0, threading.Lock()
        self._free_streams = threading.BoundedSemaphore(backend.streams)
        spec = manifest.inputs[0]
        self._input, self._output = spec.name, manifest.outputs[0].name
        self.normalize = Normalizer(spec)
        self.fill = np.clip(np.round(spec.mean), 0, 255).astype(np.uint8)
        self.index = np.array([item.index for item in manifest.classes], dtype=np.uint8)

    @property
    def channels(self) -> int:
        """Channels that an image must have."""
        return self.normalize.channels

    def infer(self, tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """One call of the model: normalised ``(N, C, tile, tile)`` float32 -> logits."""
        with self._lock:
            logits = self.backend.infer({self._input: tiles})[self._output]
        return self._counted(logits)

    def infer_stream(self, tiles: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """As :meth:`infer`, for ``backend.streams`` threads at once: more tiles per second, each of
        which takes longer."""
        with self._free_streams:
            logits = self.backend.infer({self._input: tiles}, stream=True)[self._output]
        return self._counted(logits)

    def _counted(self, logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with self._tiles_lock:
            self._tiles_done += len(logits)
        return logits

    @property
    def tiles_done(self) -> int:
        """Tiles that left the model since it was loaded, whoever asked for them."""
        return self._tiles_done

    def trace(self, path: str | Path, power: str = "auto", interval_s: float = 0.2) -> Recorder:
        """Log tiles and power on one clock while a ``with`` block runs.

            with session.trace("trace.csv") as trace:
                session.run_scene("scene.tif", "map.tif")

        What goes wrong with the sensor or the disk does not stop the work: it stands in the trace,
        also where the sensor is gone when the block begins, and a file that could not be written
        to its end is an error when the block is left.

        Args:
            path: ``.csv``, or ``.parquet`` (extra ``parquet``).
            power: ``auto``, ``none``, a sensor's name, or ``replay:FILE``. Where ``auto`` finds
                none, tiles alone are written and the trace says why.
            interval_s: between samples, asked for, s.

        Returns:
            The recorder: ``samples`` and ``trace`` are what it has so far, ``mark`` names a moment.

        Raises:
            InputError: no such sensor, or an interval that is none.
            EnvironmentLacksError: the sensor that was named cannot be read here.
            OutputError: on entering or leaving the block: the trace cannot be written.
        """
        from edgekd.telemetry.power import choose_sensor
        from edgekd.telemetry.recorder import Recorder

        return Recorder(Path(path), choose_sensor(power), interval_s, lambda: self.tiles_done)

    def calls_for(self, height: int, width: int, geometry: TilePlan) -> tuple[Infer, int]:
        """How to call the model over a scene, and how many calls at once: streams pay off where
        each gets several windows."""
        tile, s = geometry.tile_px, geometry.stride_px
        rows, columns = (
            len(axis_starts(side, tile, geometry.overlap_px, s)) for side in (height, width)
        )
        streams = self.backend.streams
        if streams == 1 or rows * columns < WINDOWS_PER_STREAM * streams:
            return self.infer, 1
        return self.infer_stream, streams

    def streams_for(self, height: int, width: int, overlap_px: int | None = None) -> int:
        """Model calls at once that a scene of this size, in px, makes."""
        return self.calls_for(height, width, self.geometry(overlap_px))[1]

    def geometry(self, overlap_px: int | None = None) -> TilePlan:
        """Window geometry, with another overlap than the bundle's own if given."""
        tiling = self.tiling
        stride = self.manifest.outputs[0].stride_px
        assert stride is not None
        return TilePlan(
            tile_px=tiling.window_px,
            stride_px=stride,
            classes=len(self.manifest.classes),
            overlap_px=tiling.overlap_px if overlap_px is None else overlap_px,
            blend=tiling.blend,
        )

    def run(self, image: npt.NDArray[np.generic], overlap_px: int | None = None) -> Prediction:
        """Classes of an image in memory, tiled like a scene.

        Args:
            image: ``(H, W, C)`` uint8, any size.
            overlap_px: shared pixels of neighbouring windows; the bundle's own if absent.

        Raises:
            ImageError: another shape or type.
        """
        source = ArraySource(image, self.channels)
        classes = np.empty((source.height, source.width), dtype=np.uint8)
        confidence = np.empty((source.height, source.width), dtype=np.float32)
        stats = TileStats()
        geometry = self.geometry(overlap_px)
        infer, streams = self.calls_for(source.height, source.width, geometry)
        work = run_tiles(
            source, infer, self.normalize, geometry, stats, self.fill,
            streams=streams, batch=self.backend.batch_max,
        )  # fmt: skip
        with contextlib.closing(work):
            for piece in work:
                part = slice(piece.y0, piece.y1), slice(piece.x0, piece.x1)
                classes[part] = self.index[piece.channel]
                confidence[part] = piece.confidence
        return Prediction(classes, confidence, stats)

    def stream(
        self, source: str | Path | int, every: int = 1, overlap_px: int | None = None
    ) -> Generator[Frame, None, None]:
        """Frames of a video file or a camera with what the model says of them; close it to end.

        Args:
            source: a file; or, as live sources, the number of a camera, ``/dev/videoN``, a URL
                (``rtsp://...``), or a GStreamer pipeline (holds a ``!``).
            every: of a file, each n-th frame. A live source gives the newest frame and drops what
                came while the model was busy, so that answers do not lag behind.
            overlap_px: shared pixels of neighbouring windows; the bundle's own if absent.

        Raises:
            ImageError: it cannot be opened, was cut or gives not one frame, or the camera is gone.
            InputError: the model does not take three channels.

        Warns:
            RuntimeWarning: an MP4 or AVI, whole by its size, gave fewer frames than it names.
        """
        return stream(self, source, every, overlap_px)

    def run_scene(
        self,
        src: str | Path,
        dst: str | Path,
        bands: list[int] | None = None,
        overlap_px: int | None = None,
        progress: Progress | None = None,
        nodata: Nodata = "auto",
        *,
        scale: Sequence[tuple[float, float]] | tuple[float, float] | None = None,
        scores: str | Path | None = None,
        probabilities: str | Path | None = None,
        polygons: str | Path | None = None,
        summary: str | Path | None = None,
        outline: Outline | None = None,
        cancel: Callable[[], bool] | None = None,
        resume: bool = False,
        restart: bool = False,
        tags: dict[str, str] | None = None,
    ) -> SceneResult:
        """Classes of a scene file as a georeferenced map.

        What is done is kept beside ``dst`` until the map is there; after a kill, a power cut or a
        full disk the same call with ``resume`` goes on and gives the same bytes.

        Args:
            src: GeoTIFF, COG, VRT, PNG, JPEG or another raster that GDAL reads well.
            dst: the GeoTIFF to write (a COG); it appears when it is whole.
            bands: 1-based bands to feed, in the order of the model's channels.
            overlap_px: shared pixels of neighbouring windows; the bundle's own if absent.
            progress: called with (windows done, windows planned).
            nodata: what counts as a pixel without data, see
                :class:`~edgekd.contracts.imageio.Raster`; the result says what was done.
            scale: ``(low, high)``, which become 0 and 255, or a list of such pairs, one for each
                band; needed for pixels of more than 8 bits.
            scores: GeoTIFF of the confidence, value / 254, 255 is no data.
            probabilities: GeoTIFF with a band for each class: its probability, coded likewise. The
                highest band is the class of the map.
            polygons: ``.gpkg`` or ``.geojson`` to write; ``outline`` says how they are drawn.
            summary: JSON of areas, confidences and sizes.
            cancel: asked after every window; True ends the run, which can be resumed.
            resume: go on with an earlier run of this map, if one did not end.
            tags: to add to the GeoTIFFs.
            restart: forget it. Without either, an earlier run that did not end is an error.

        Raises:
            ImageError: the scene cannot be read or does not fit the model.
            InputError: an earlier run did not end, or was another one.
            OutputError: a result cannot be written, or another process is writing it.
            GateError: the model gave NaN, or the counts of the map do not add up.
            CancelledError: as asked by ``cancel``.
        """
        products = Products(
            map=Path(dst),
            scores=None if scores is None else Path(scores),
            probabilities=None if probabilities is None else Path(probabilities),
            polygons=None if polygons is None else Path(polygons),
            summary=None if summary is None else Path(summary),
            outline=outline or Outline(),
        )
        for path in products.paths():
            if path.resolve().is_relative_to(self.path.resolve()):
                raise OutputError(
                    f"{path} is in the bundle, which is sealed as it is; write it elsewhere"
                )
        return map_scene(
            self, Path(src), products, bands=bands, overlap_px=overlap_px, nodata=nodata,
            scale=scale, progress=progress, cancel=cancel, resume=resume, restart=restart,
            tags=tags,
        )  # fmt: skip

    def golden_error(self) -> float:
        """Largest absolute difference, in logits, to the outputs stored in the bundle.

        NaN where the model or the stored output holds NaN.

        Raises:
            BundleError: the stored file is no longer the sealed one, or lacks what it should hold.
        """
        return self._golden_difference()[0]

    def _golden_difference(self) -> tuple[float, float]:
        """Largest difference of a logit, and part of the cells with the stored class."""
        worst, same, cells = 0.0, 0, 0
        path = self._golden.path
        with np.load(io.BytesIO(self._golden.read())) as arrays:
            for number in range(self.manifest.golden.count):
                names = (f"image_{number}", f"{self._output}_{number}")
                if any(name not in arrays for name in names):
                    raise BundleError(f"{path} lacks {' or '.join(names)}; build the bundle again")
                result = self.infer(self.normalize(arrays[names[0]])[None])
                stored = arrays[names[1]]
                if stored.shape not in (result.shape, result.shape[1:]):
                    raise BundleError(
                        f"{path}: {names[1]} has shape {stored.shape}, the model gives "
                        f"{result.shape}; build the bundle again"
                    )
                error = float(np.abs(result - stored).max())
                classes = stored.reshape(result.shape[1:]).argmax(axis=0)
                same += int((result[0].argmax(axis=0) == classes).sum())
                cells += classes.size
                if not error <= worst:  # also when it is NaN
                    worst = error
                if np.isnan(worst):
                    break
        return worst, same / cells

    def verify(self) -> float:
        """Run the golden inputs and compare; returns the largest difference, in logits.

        Raises:
            GateError: the difference exceeds the tolerance that the bundle declares, or fewer
                cells have the stored class than it asks for.
        """
        worst, agreement = self._golden_difference()
        bound = self.manifest.golden.atol
        least = self.manifest.golden.agreement_min
        if least is not None and not agreement >= least:
            raise GateError(
                f"{self.path}: {100 * agreement:.2f} % of the golden cells have the stored class "
                f"on this machine, at least {100 * least:.2f} % must; do not use these results, "
                "build the bundle again"
            )
        if not worst <= bound:
            raise GateError(
                f"{self.path}: golden outputs differ by {worst:.3g} logits on this machine, "
                f"allowed are {bound:.3g}; do not use these results, build the bundle again"
            )
        return worst

    def close(self) -> None:
        """Free the model; safe to call twice."""
        with self._lock:
            for _ in range(self.backend.streams):
                self._free_streams.acquire()
            self.backend.close()
            self._free_streams.release(self.backend.streams)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def load(
    bundle: str | Path,
    *,
    any_device: bool = False,
    streams: int = 0,
    provider: str | Sequence[str] | None = None,
    signer: Signers | None = None,
) -> Session:
    """Open a bundle: check it, load the model, and return a session.

    Args:
        bundle: folder made by ``edgekd build``.
        any_device: load a bundle of another architecture for inspection; its timings say
            nothing about the target.
        streams: model calls at once over a scene, at most; each takes the memory of one. 0 leaves
            it to the backend: one per core on a CPU, two with TensorRT.
        provider: execution provider of ONNX Runtime, or several, most wanted first; absent, the
            CPU's. What it cannot run is an error unless the last one is ``CPUExecutionProvider``.
        signer: public key file, or several: one of them must have signed the bundle, and that is
            checked before anything in it is parsed. The environment variable ``EDGEKD_SIGNER``
            demands the same of every load, beside what is given here.

    Raises:
        InputError: a negative number of streams; a key file that cannot be used; a provider for a
            bundle that runs with TensorRT; a bundle that answers for places.
        BundleError: the bundle is incomplete or changed, or does not fit this machine.
        TrustError: not signed, by another key, or changed since (a kind of BundleError).
        EnvironmentLacksError: the backend's library, or the one for signatures, is not installed.
    """
    return open_session(
        bundle, requirements(signer), any_device=any_device, streams=streams, provider=provider
    )


def open_session(
    bundle: str | Path,
    required: Iterable[Requirement],
    *,
    any_device: bool = False,
    streams: int = 0,
    provider: str | Sequence[str] | None = None,
) -> Session:
    """As :func:`load`, with the signers already read; the environment adds none.

    For what this process has just built itself, and nobody can have signed yet.
    """
    if streams < 0:
        raise InputError(f"expected 0 (one per core) or more streams, received {streams}")
    opened = open_bundle(Path(bundle), required)
    tiling = opened.manifest.of_maps(opened.path)
    backend, model = open_backend(opened, any_device, streams, provider)
    try:
        _check_tensors(opened.path, opened.manifest, tiling, backend)
    except BundleError:
        backend.close()
        raise
    return Session(opened, backend, model)


def _check_tensors(path: Path, manifest: Manifest, tiling: TilingDone, backend: Backend) -> None:
    spec, output = manifest.inputs[0], manifest.outputs[0]
    tile = spec.tile_px
    if output.stride_px is None or tile % output.stride_px or tile != tiling.window_px:
        raise BundleError(f"{path}: tile, window and stride of the manifest do not agree")
    cells = tile // output.stride_px
    require_tensors(
        path,
        backend,
        {spec.name: [None, spec.channel_count, tile, tile]},
        {output.name: [None, len(manifest.classes), cells, cells]},
    )
