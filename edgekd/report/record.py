"""A benchmark record: one measurement with its raw samples, provenance and verdicts.

The file is JSON. Field names carry units (``_s`` seconds, ``_px`` pixels, ``_mib`` 2**20 bytes,
``mpx`` 10**6 pixels, ``share`` and ``ratio`` 0-1). Figures and
verdicts are made again from the raw samples when a record is read, so that one of them changed by
hand is refused. What the samples do not tell (which sensor, which machine) is taken as written.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.artifacts import read_json, write_json
from edgekd.contracts.calibration import Sha256
from edgekd.contracts.schema import Document
from edgekd.errors import InputError
from edgekd.report.answers import AnswersWindow
from edgekd.report.latency import LatencySummary, nearly
from edgekd.report.power import PowerPending, PowerRecord, close
from edgekd.report.system import Bench, SystemRecord, figures_of, make_system
from edgekd.telemetry.environment import Environment
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.state import State

KIND = "edgekd.benchmark"
RECORD_SCHEMA = 3

Seconds = Annotated[float, pydantic.Field(gt=0)]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Status = Literal["pass", "fail", "unknown"]

RATIO_DEFINITION = (
    "end_to_end_over_engine = unique pixels per second of the scene window (pixels with data of "
    "the scene / median total_s of its runs) divided by tile pixels per second of the bare "
    "engine window, one call at a time (tile_px squared / mean latency). end_to_end_over_streams = "
    "the same, divided by what the bare engine gives with as many calls at once as the scene makes "
    "(null where that is one). redundancy = tile pixels that the model "
    "saw / unique pixels: the price of overlap and of tiles beyond the border. "
    "tiles_over_engine = end_to_end_over_engine * redundancy: what reading, blending and "
    "writing cost besides."
)


class BundleIdentity(Document):
    """Which bundle was measured, copied from its manifest.

    Attributes:
        precision, precision_asked: what the model computes in, and what the recipe allowed.
        backend: what really ran: library, version, provider, threads.
        tile_px: side of a tile, or of a place's picture.
        stride_px: of the output; null where there is one answer for a picture.
        gates: checks that the build made, name -> passed.
    """

    name: str
    title: str
    model_sha256: Sha256
    recipe_sha256: Sha256
    checkpoint_sha256: Sha256
    data_name: str
    student: str
    precision: str
    precision_asked: list[str]
    target: str
    target_arch: str
    backend: dict[str, str]
    tile_px: int
    stride_px: int | None
    overlap_px: int
    classes: list[str]
    gates: dict[str, bool]
    built_utc: str


class InputUsed(Document):
    """What was fed.

    Attributes:
        kind: ``file``, or ``synthetic`` for uniform noise from a fixed seed; of a bundle of places
            ``set``, ``golden`` (places that the bundle stores) or ``synthetic``.
        name: file name without its folder, or what the places are.
        width_px, height_px: of the file, or of each place's picture.
        bands: 1-based bands that were read; null for synthetic pixels and for places.
        sha256: of the file, the set's table or the stored places; null for synthetic pixels.
    """

    kind: Literal["file", "synthetic", "set", "golden"]
    name: str
    width_px: int
    height_px: int
    bands: list[int] | None
    sha256: Sha256 | None


class WarmUp(Document):
    """Model calls before anything counted.

    Attributes:
        total_s: wall-clock time.
        steady: whether latency had become steady when it ended.
        detail: how steady was judged and what was seen.
        latencies_s: of each call.
    """

    total_s: float
    iterations: int
    steady: bool
    detail: str
    latencies_s: list[float]


class EngineWindow(Document):
    """The bare engine: one model call after the other on tiles that lie ready in memory.

    Attributes:
        duration_s: summed length of the blocks.
        block_n: calls per block; a run over the scene lies between two blocks.
        starts_s: start of each call, s since the first, on the monotonic clock.
        latencies_s: of each call.
        summary: of ``latencies_s``.
        tiles_per_s, mpx_per_s: 1 / mean latency, and that times the tile's pixels.
    """

    tiles: int
    duration_s: Seconds
    block_n: list[int]
    starts_s: list[float]
    latencies_s: list[Seconds] = pydantic.Field(min_length=1)
    summary: LatencySummary
    tiles_per_s: float
    mpx_per_s: float

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> EngineWindow:
        if not len(self.starts_s) == len(self.latencies_s) == sum(self.block_n):
            raise ValueError("starts, latencies and blocks differ in number")
        expected = LatencySummary.of(self.latencies_s)
        for name, value in expected:
            if not nearly(value, getattr(self.summary, name)):
                raise ValueError(f"summary.{name} does not follow from the latencies")
        if not nearly(self.tiles_per_s, 1 / expected.mean_s):
            raise ValueError("tiles_per_s does not follow from the latencies")
        return self


class StreamsWindow(Document):
    """The bare engine with several calls at once, as a scene uses it.

    Attributes:
        streams: threads that call, each one call after the other.
        calls: of all threads and blocks.
        duration_s: summed length of the blocks.
        tiles_per_s: mean over the blocks' time; of each thread only the time of its own calls
            counts, so that none waits for the last.
        mpx_per_s: that times the tile's pixels.
        block_tiles_per_s: of each block; a run over the scene lies between two blocks.
    """

    streams: int = pydantic.Field(ge=2)
    calls: int = pydantic.Field(ge=1)
    duration_s: Seconds
    tiles_per_s: float
    mpx_per_s: float
    block_tiles_per_s: list[float] = pydantic.Field(min_length=1)


class SceneRun(Document):
    """One run over the whole input: reading, tiling, blending, writing.

    Attributes:
        start_s: s since the first call of the engine window, monotonic clock.
        total_s: wall-clock time from opening the input to the finished map.
        infer_s: time of the model calls; those that ran at once all count.
    """

    start_s: float
    total_s: Seconds
    infer_s: float


class SceneWindow(Document):
    """Repeated end-to-end runs over the input.

    Attributes:
        what: what a run does.
        pixels_unique: pixels with data; each counts once however many windows hold it.
        area_m2: of those pixels on the ground; null where the input has no size there.
        windows_run, windows_skipped: per run; windows without data are not run.
        overlap_px: shared pixels of neighbouring windows.
        total_s: median of the runs.
        unique_mpx_per_s, tiles_per_s: from ``total_s``.
        streams: model calls at once.
        engine_share: time inside the model over total time and streams, all runs together.
    """

    what: str
    runs: list[SceneRun] = pydantic.Field(min_length=1)
    pixels_unique: int
    area_m2: float | None = None
    windows_run: int
    windows_skipped: int
    overlap_px: int
    total_s: float
    unique_mpx_per_s: float
    tiles_per_s: float
    streams: int = pydantic.Field(ge=1)
    engine_share: Share

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SceneWindow:
        total_s = statistics.median(run.total_s for run in self.runs)
        if not nearly(total_s, self.total_s):
            raise ValueError("total_s is not the median of the runs")
        if not nearly(self.pixels_unique / 1e6 / total_s, self.unique_mpx_per_s):
            raise ValueError("unique_mpx_per_s does not follow from the runs")
        return self


class Ratio(Document):
    """End to end against bare engine; ``definition`` says how."""

    definition: str
    end_to_end_over_engine: float
    end_to_end_over_streams: float | None
    redundancy: float
    tiles_over_engine: float


class Disturbance(Document):
    """What else happened on the machine during the measured blocks and runs.

    Attributes:
        other_cpu_share: share of all cores that other processes used; null if not readable.
        load_1min_before, load_1min_after: load averages.
        frequency_mhz: mean clock of the cores after each block; null if not readable.
        gpu_mhz: median clock of the GPU in each block of the engine; null if not readable.
        absent: field -> why it is null.
    """

    other_cpu_share: Share | None
    load_1min_before: float | None
    load_1min_after: float | None
    frequency_mhz: list[float] | None
    gpu_mhz: list[float] | None = None
    absent: dict[str, str]


class Check(Document):
    """A named validity check; ``unknown`` is one that this machine does not allow to make."""

    name: str
    status: Status
    detail: str


class Golden(Document):
    """The engine's outputs against those that the bundle stores.

    Attributes:
        error_logits, bound_logits: largest difference and what the bundle allows; a difference
            that is no number is null.
    """

    error_logits: float | None
    bound_logits: float


class Clock(Document):
    """The clock of all durations.

    Attributes:
        tick_s: its resolution, s.
        monotonic: whether it can only go forward.
    """

    tick_s: float
    monotonic: bool


class Asked(Document):
    """What the caller asked for.

    Attributes:
        duration_s: least time of the bare engine's window, and with power of the scene's, s.
        warmup_s: least warm-up, s.
        repeats: turns of engine and scene.
        power: "none", "auto", a sensor or "replay: FILE".
        idle_s: of each idle window, s; only with power.
        interval_s: between samples, s; only with power.
    """

    duration_s: float
    warmup_s: float
    repeats: int
    power: str = "none"
    idle_s: float = 0.0
    interval_s: float = 0.0


class Turns(Document):
    """Bundles that were measured in turns with this one.

    Attributes:
        measurement: random; the same in all records of one measurement.
        order: of the turns, one letter each, e.g. ``ABBA``.
        letter: this bundle's.
        others: letter -> name and model sha256 of the others.
    """

    measurement: str
    order: str
    letter: str
    others: dict[str, str]


class Machine(Document):
    """What may have held the machine back.

    Attributes:
        before, after: state of the machine; see :class:`edgekd.telemetry.state.State`.
        found: check (throttled, mode_changed, clocks_changed) -> what happened, empty where
            nothing did; a check that cannot be made on this machine is absent.
        failure: why nobody looked any more; empty where that went well.
    """

    before: State
    after: State
    found: dict[str, list[str]]
    failure: str = ""


def _power_kind(value: Any) -> str:
    status = value.get("status") if isinstance(value, dict) else getattr(value, "status", None)
    return status if status in ("unavailable", "pending") else "power"


Power = Annotated[
    Annotated[PowerUnavailable, pydantic.Tag("unavailable")]
    | Annotated[PowerPending, pydantic.Tag("pending")]
    | Annotated[PowerRecord, pydantic.Tag("power")],
    pydantic.Discriminator(_power_kind),
]


class BenchmarkRecord(Document):
    """One measurement.

    Of a bundle of places a tile is a place and its answer, everywhere in the record:
    ``tiles_per_s`` are answers per second, ``gross_j_per_tile`` joules per answer, and a run of the
    scene window is one over all places of the measurement, one at a time.

    Attributes:
        answers: of a bundle of places, answers end to end and their parts; null for maps.
        created_utc: ISO 8601, when the measurement ended.
        peak_rss_mib: largest resident memory of the process, from its start to the end.
        power: figures with their samples, or why there are none; never a number in their place.
        system: sensors and computing of teacher and student, of recipes that have sensors.
        machine: what may have held it back.
        turns: of bundles that were measured in turns with this one; null where there were none.
        command: how to measure this again; null where no command did.
        engine_streams: the bare engine with as many calls at once as the scene makes; null where
            it makes one at a time.
        valid: no check failed. Checks that could not be made are ``unknown`` and are shown.
        quality: accuracy figures that the caller measured on the same bundle, free form.
    """

    schema_version: Literal[3] = pydantic.Field(default=3, alias="schema")
    kind: Literal["edgekd.benchmark"] = "edgekd.benchmark"
    created_utc: str
    asked: Asked
    bundle: BundleIdentity
    environment: Environment
    input: InputUsed
    warm_up: WarmUp
    engine: EngineWindow
    engine_streams: StreamsWindow | None
    scene: SceneWindow
    answers: AnswersWindow | None = None
    ratio: Ratio
    disturbance: Disturbance
    golden: Golden
    clock: Clock
    peak_rss_mib: float
    power: Power
    system: SystemRecord | None = None
    machine: Machine | None = None
    turns: Turns | None = None
    command: str | None = None
    checks: list[Check] = pydantic.Field(min_length=1)
    valid: bool
    quality: dict[str, Any] | None = None

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> BenchmarkRecord:
        self._verdicts_follow()
        if self.valid != all(check.status != "fail" for check in self.checks):
            raise ValueError("valid does not follow from the checks")
        tile_mpx = self.bundle.tile_px**2 / 1e6
        if not nearly(self.engine.mpx_per_s, self.engine.tiles_per_s * tile_mpx):
            raise ValueError("engine.mpx_per_s does not follow from the latencies")
        if not nearly(self.scene.tiles_per_s, self.scene.windows_run / self.scene.total_s):
            raise ValueError("scene.tiles_per_s does not follow from the runs")
        streams = self.engine_streams
        if (1 if streams is None else streams.streams) != self.scene.streams:
            raise ValueError("the bare engine was measured with another number of streams")
        if streams and not nearly(streams.mpx_per_s, streams.tiles_per_s * tile_mpx):
            raise ValueError("engine_streams.mpx_per_s does not follow from tiles_per_s")
        ratio = self.scene.unique_mpx_per_s / self.engine.mpx_per_s
        if not nearly(ratio, self.ratio.end_to_end_over_engine):
            raise ValueError("the ratio does not follow from the windows")
        at_once = self.ratio.end_to_end_over_streams
        expected = self.scene.unique_mpx_per_s / streams.mpx_per_s if streams else None
        if (at_once is None) != (expected is None) or not nearly(at_once or 0, expected or 0):
            raise ValueError("end_to_end_over_streams does not follow from the windows")
        if self.system is not None:
            again = make_system(self.system.declared, Bench.of_record(self))
            if not close(figures_of(self.system), figures_of(again)):
                raise ValueError("system does not follow from what is declared and measured")
        return self

    def _verdicts_follow(self) -> None:
        """Verdicts are made again from what the record holds."""
        from edgekd.report.checks import judge

        given = {check.name: check.status for check in self.checks}
        for check in judge(self):
            if given.get(check.name) != check.status:
                raise ValueError(
                    f"the verdict of {check.name} does not follow from the record: it is "
                    f"{check.status!r}"
                )

    @property
    def unit(self) -> str:
        """What one call of the model gives, in a word."""
        return "tile" if self.answers is None else "answer"

    def plain(self) -> dict[str, Any]:
        """JSON-ready values with the keys as written in the file."""
        return self.model_dump(mode="json", by_alias=True)

    def failed(self) -> list[Check]:
        """Checks that failed: why the record is not valid."""
        return [check for check in self.checks if check.status == "fail"]


def write_record(record: BenchmarkRecord, path: Path) -> None:
    """Write a record; the file appears when it is whole.

    Raises:
        OutputError: the place cannot be written.
    """
    write_json(path, record.plain())


def read_record(path: Path) -> BenchmarkRecord:
    """Read and check a record.

    Raises:
        InputError: missing, empty, damaged, another kind of file or another schema.
    """
    value = read_json(path)
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise InputError(
            f"{path} is not a benchmark record (its kind is not '{KIND}'); make one with: "
            "edgekd bench BUNDLE INPUT -o record.json"
        )
    if value.get("schema") != RECORD_SCHEMA:
        raise InputError(
            f"{path} is a record of schema {value.get('schema')!r} and this edgekd reads schema "
            f"{RECORD_SCHEMA}; measure again, or read it with the edgekd that wrote it"
        )
    try:
        record = BenchmarkRecord.model_validate(value)
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        message = str(first["msg"]).removeprefix("Value error, ")
        more = f" ({err.error_count()} faults)" if err.error_count() > 1 else ""
        raise InputError(
            f"{path} is damaged or was changed: {place}: {message}{more}; measure again"
        ) from err
    return judged_system(record)


def judged_system(record: BenchmarkRecord) -> BenchmarkRecord:
    """The record with its system made anew, sentences too, from what it declares and measured."""
    if record.system is None:
        return record
    system = make_system(record.system.declared, Bench.of_record(record))
    return record.model_copy(update={"system": system})
