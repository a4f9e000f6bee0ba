"""Measuring a real small bundle, and with an engine of known speed."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import edgekd
from edgekd.contracts.imageio import gdal_environment
from edgekd.errors import ImageError, InputError
from edgekd.report import blocks as module
from edgekd.report import measure as measuring
from edgekd.report.blocks import Silent
from edgekd.report.inputs import synthetic_image
from edgekd.report.measure import measure, measure_in_turns
from edgekd.report.plan import External, Plan, flatness, turn_order
from edgekd.report.power import Kind, PowerPending, PowerRecord
from edgekd.report.record import read_record, write_record
from edgekd.runtime.session import Session
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Polled, Reading, SensorInfo, SensorLost
from edgekd.telemetry.trace import Trace
from tests.helpers.bundles import make_bundle

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64)


def write_image(path: Path, height: int, width: int, nodata: bool = False) -> Path:
    pixels = np.random.default_rng(1).integers(1, 256, (3, height, width), dtype=np.uint8)
    if nodata:
        pixels[:] = 0
    with (
        gdal_environment() as rasterio,
        rasterio.open(
            path, "w", driver="GTiff", dtype="uint8", count=3, height=height, width=width, nodata=0
        ) as dataset,
    ):
        dataset.write(pixels)
    return path


def test_a_file_is_measured_end_to_end(bundle: Path, tmp_path: Path) -> None:
    scene = write_image(tmp_path / "scene.tif", 150, 200)
    steps: list[tuple[int, int]] = []

    class Told(Silent):
        def step(self, done: int, total: int) -> None:
            steps.append((done, total))

    with edgekd.load(bundle) as session:
        record = measure(
            session,
            scene,
            plan=Plan(duration_s=0.3, warmup_s=0.05, repeats=3),
            observer=Told(),
        )
    assert steps == [(done, 7) for done in range(8)]
    assert record.input.name == "scene.tif"
    assert (record.input.width_px, record.input.height_px) == (200, 150)
    assert record.input.bands == [1, 2, 3]
    assert record.engine.duration_s >= 0.3
    assert record.engine.summary.n >= 30
    assert len(record.engine.block_n) == len(record.scene.runs) == 3
    assert record.scene.pixels_unique == 150 * 200
    # 64 px windows, 8 px overlap, step 56: starts 0, 56, 86 and 0, 56, 112, 136
    assert record.scene.windows_run == 12
    assert record.ratio.redundancy == pytest.approx(12 * 64**2 / 30000)
    assert record.power.status == "unavailable"
    assert record.peak_rss_mib > 20
    verdict = {check.name: check.status for check in record.checks}
    assert verdict["outputs_right"] == verdict["device_fits"] == "pass"
    assert verdict["enough_samples"] == verdict["clock_sound"] == "pass"
    write_record(record, tmp_path / "record.json")
    assert read_record(tmp_path / "record.json") == record
    assert sorted(path.name for path in tmp_path.iterdir()) == ["record.json", "scene.tif"]
    assert str(tmp_path) not in (tmp_path / "record.json").read_text()


def test_engine_and_scene_take_turns(bundle: Path) -> None:
    with edgekd.load(bundle) as session:
        record = measure(session, plan=Plan(duration_s=0.2, warmup_s=0.02, repeats=3))
    first = 0
    previous_end_s = 0.0
    for count, run in zip(record.engine.block_n, record.scene.runs, strict=True):
        last = first + count - 1
        assert record.engine.starts_s[first] >= previous_end_s - 1e-6
        assert run.start_s >= record.engine.starts_s[last] + record.engine.latencies_s[last] - 1e-6
        previous_end_s = run.start_s + run.total_s
        first += count


def test_synthetic_pixels_are_said_to_be_synthetic_and_are_the_same_each_time(
    bundle: Path,
) -> None:
    with edgekd.load(bundle) as session:
        record = measure(session, plan=Plan(duration_s=0.1, warmup_s=0.02, overlap_px=0))
    assert record.input.kind == "synthetic"
    assert "synthetic" in record.input.name
    assert (record.input.width_px, record.input.bands, record.input.sha256) == (128, None, None)
    assert record.ratio.redundancy == 1.0
    assert np.array_equal(synthetic_image(8, 3), synthetic_image(8, 3))


def test_an_engine_of_known_speed_is_measured_at_that_speed(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(self: Session, tiles: np.ndarray) -> np.ndarray:
        time.sleep(0.004)
        return np.zeros((len(tiles), 2, 16, 16), dtype=np.float32)

    monkeypatch.setattr(Session, "infer", slow)
    with edgekd.load(bundle) as session:
        record = measure(session, plan=Plan(duration_s=0.2, warmup_s=0.02))
    assert record.engine.summary.min_s >= 0.004
    assert record.engine.summary.p50_s < 0.05
    assert record.engine.mpx_per_s == pytest.approx(64**2 / 1e6 / record.engine.summary.mean_s)
    # zeros are not what the bundle promised: a fast wrong engine is no result
    assert "outputs_right" in [check.name for check in record.failed()]
    assert not record.valid


@pytest.mark.parametrize(("growth", "steady", "calls"), [(1.05, False, 24), (1.0, True, 12)])
def test_the_warm_up_ends_when_latency_settles_or_at_its_limit(
    monkeypatch: pytest.MonkeyPatch, growth: float, steady: bool, calls: int
) -> None:
    now_s = [0.0]
    latency_s = [0.01]

    def infer(tiles: np.ndarray) -> None:
        now_s[0] += latency_s[0]
        latency_s[0] *= growth

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    warm_up = module.warm_up(SimpleNamespace(infer=infer), [np.zeros(1)], 0.05)  # type: ignore[arg-type]
    assert warm_up.steady is steady
    assert warm_up.iterations == len(warm_up.latencies_s) == calls
    assert warm_up.detail.startswith("steady" if steady else "not steady")


def test_a_small_image_and_one_with_little_data_can_be_measured(
    bundle: Path, tmp_path: Path
) -> None:
    scene = write_image(tmp_path / "small.tif", 10, 20)
    with edgekd.load(bundle) as session:
        record = measure(session, scene, plan=Plan(duration_s=0.05, warmup_s=0))
    assert record.scene.windows_run == 1
    assert record.engine.tiles == 1


def test_an_image_without_data_is_an_error(bundle: Path, tmp_path: Path) -> None:
    scene = write_image(tmp_path / "empty.tif", 100, 100, nodata=True)
    with edgekd.load(bundle) as session, pytest.raises(ImageError, match="no pixel with data"):
        measure(session, scene)


@pytest.mark.parametrize(
    "values", [{"duration_s": 0}, {"duration_s": -1}, {"warmup_s": -1}, {"repeats": 0}]
)
def test_a_measurement_of_nothing_is_refused(bundle: Path, values: dict[str, float]) -> None:
    with edgekd.load(bundle) as session, pytest.raises(InputError, match="above 0"):
        measure(session, plan=Plan(**values))  # type: ignore[arg-type]


class LoadSensor:
    """Power of a machine that draws more while the model runs, through a sensor's lag."""

    def __init__(self, busy: threading.Event, lag_s: float = 0.05) -> None:
        self.info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, lag_s)
        self._busy, self._lag_s = busy, lag_s
        self._shown, self._last_s = 5.0, time.monotonic()
        self.asked = 0

    def ask(self) -> Reading:
        now = time.monotonic()
        target = 15.0 if self._busy.is_set() else 5.0
        self._shown += (target - self._shown) * (1 - np.exp(-(now - self._last_s) / self._lag_s))
        self._last_s = now
        self.asked += 1
        return Reading(now, float(self._shown), temperatures_c={"tj": 50.0})

    def open(self, interval_s: float) -> Polled:
        return Polled(self.ask, interval_s)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set but while the measurement idles; calls take long enough to be told from one another."""
    busy = threading.Event()
    idle, infer = measuring._idle, Session.infer

    def idles(*given: Any) -> Any:
        busy.clear()
        found = idle(*given)
        busy.set()
        return found

    def slow(self: Session, tiles: np.ndarray) -> np.ndarray:
        time.sleep(0.004)
        return infer(self, tiles)

    monkeypatch.setattr(measuring, "_idle", idles)
    monkeypatch.setattr(Session, "infer", slow)
    return busy


POWERED = Plan(
    duration_s=1.5, warmup_s=0.1, repeats=3, idle_s=0.7, interval_s=0.01, power="ina3221"
)


def test_power_and_throughput_come_from_one_run(
    bundle: Path, loaded: threading.Event, tmp_path: Path
) -> None:
    sensor = LoadSensor(loaded)
    kinds: list[str] = []
    traces: list[Trace] = []

    class Told(Silent):
        def phase(self, kind: Kind, seconds: float | None = None) -> None:
            kinds.append(kind)

    scene = write_image(tmp_path / "scene.tif", 100, 120)
    with edgekd.load(bundle) as session:
        record = measure_in_turns(
            [session], scene, plan=POWERED, sensor=sensor, observer=Told(), command="x",
            traces=traces,
        )[0]  # fmt: skip
    power = record.power
    assert isinstance(power, PowerRecord)
    assert power.guard_s == pytest.approx(0.25)
    assert power.engine is not None and power.idle is not None and power.scene is not None
    assert power.engine.mean_w.value == pytest.approx(15.0, rel=0.02)
    assert power.idle.mean_w.value == pytest.approx(5.0, rel=0.03)
    # a tile takes as long as the calls of the windows do
    expected = 15.0 * power.engine.seconds / power.engine.tiles
    assert power.engine.gross_j_per_tile.value == pytest.approx(expected, rel=0.02)
    assert power.engine.seconds >= 1.5 and power.engine.windows == 3
    assert power.scene.pixels % (100 * 120) == 0 and power.scene.gross_j_per_km2 is None
    assert "other" not in {phase.kind for phase in power.phases}
    assert [kind for kind in kinds if kind != "idle"] == ["warm_up", *["engine", "scene"] * 3]
    assert kinds[0] == kinds[-1] == "idle"
    order = [phase.kind for phase in power.phases]
    assert order[:3] == ["guard", "idle", "warm_up"] and order[-2:] == ["guard", "idle"]
    edges = [edge for phase in power.phases for edge in (phase.start_s, phase.end_s)]
    assert edges == sorted(edges)
    # the phases lie on the clock of the calls
    engine = [phase for phase in power.phases if phase.kind == "engine"]
    starts = np.array(record.engine.starts_s)
    for phase in engine:
        assert np.abs(starts - phase.start_s).min() < 1e-5
        inside = (starts >= phase.start_s - 1e-5) & (starts < phase.end_s - 1e-5)
        assert inside.sum() == phase.tiles
    verdict = {check.name: check for check in record.checks}
    for name in ("power_sampled", "power_steady", "idle_steady", "synchronised"):
        assert verdict[name].status == "pass", verdict[name]
    windows = verdict["power_windows"]  # on a busy machine the sampler itself has to wait
    told = [] if windows.status == "pass" else windows.detail.split("; ")
    assert all("a gap of" in text or "samples cover" in text for text in told), told
    assert record.asked.power == "ina3221" and record.command == "x"
    assert "power went from" in record.warm_up.detail
    write_record(record, tmp_path / "r.json")
    assert read_record(tmp_path / "r.json") == record
    trace = traces[0]
    _, watts = trace.samples.power()
    assert np.allclose(watts, power.trace.watts, atol=1e-4) and trace.whole
    begins = [at_s for at_s, name in trace.marks if name == "engine"]
    shift = power.trace.at_s[0]
    assert np.allclose(begins, [phase.start_s - shift for phase in engine], atol=1e-5)


def test_a_sensor_that_is_lost_spoils_the_record_and_not_the_run(
    bundle: Path, loaded: threading.Event
) -> None:
    class Dies(LoadSensor):
        def ask(self) -> Reading:
            if self.asked > 150:
                raise SensorLost("it was pulled out")
            return super().ask()

    with edgekd.load(bundle) as session:
        record = measure(session, plan=POWERED, sensor=Dies(loaded))
    failed = {check.name: check.detail for check in record.failed()}
    assert failed["power_sampled"] == "the sensor was lost: it was pulled out"
    assert isinstance(record.power, PowerRecord) and record.power.engine is None
    assert record.engine.summary.n >= 30 and not record.valid


def test_a_sensor_that_never_answers_leaves_no_power_and_the_reason(
    bundle: Path, loaded: threading.Event
) -> None:
    class Dead(LoadSensor):
        def ask(self) -> Reading:
            raise SensorLost("nobody at home")

    with edgekd.load(bundle) as session:
        record = measure(session, plan=POWERED, sensor=Dead(loaded))
    assert isinstance(record.power, PowerUnavailable)
    assert "nobody at home" in record.power.reason
    assert not record.valid and "power_sampled" in [check.name for check in record.failed()]


def test_two_bundles_take_turns_as_abba(bundle: Path, loaded: threading.Event) -> None:
    plan = replace(POWERED, repeats=2, duration_s=0.6)
    with edgekd.load(bundle) as one, edgekd.load(bundle) as other:
        records = measure_in_turns([one, other], plan=plan, sensor=LoadSensor(loaded))
    assert [record.turns.letter for record in records if record.turns] == ["A", "B"]
    first = records[0]
    assert first.turns is not None and first.turns.order == "ABBA"
    assert list(first.turns.others) == ["B"] and "model " in first.turns.others["B"]
    assert isinstance(first.power, PowerRecord)
    work = [phase.kind for phase in first.power.phases if phase.kind in ("engine", "other")]
    assert work.count("engine") == 2
    # on one clock: where A works, B's record says other
    second = records[1].power
    assert isinstance(second, PowerRecord)
    assert len(second.trace.at_s) == len(first.power.trace.at_s)
    shift = second.trace.at_s[0] - first.power.trace.at_s[0]
    mine = [phase for phase in first.power.phases if phase.kind == "engine"]
    theirs = [phase for phase in second.phases if phase.kind == "other"]
    for phase in mine:
        assert any(abs(item.start_s - phase.start_s - shift) < 1e-5 for item in theirs)
    assert [turn_order(2, n) for n in range(4)] == [[0, 1], [1, 0], [0, 1], [1, 0]]


def test_a_replay_that_is_shorter_than_the_measurement_is_refused_at_once(
    bundle: Path, loaded: threading.Event
) -> None:
    sensor = LoadSensor(loaded)
    sensor.info = replace(sensor.info, source="replay: short.log")
    sensor.duration_s = 4.0  # type: ignore[attr-defined]
    begin = time.monotonic()
    with (
        edgekd.load(bundle) as session,
        pytest.raises(InputError, match="replay: short.log holds 4.0 s and .* at least 7.[0-9] s"),
    ):
        measure(session, plan=POWERED, sensor=sensor)
    assert time.monotonic() - begin < 3 and sensor.asked == 0


def test_an_external_meter_leaves_phases_to_be_filled(bundle: Path) -> None:
    plan = replace(POWERED, pulse=((0.2, 0.1), (0.1, 0.0)), power="external")
    with edgekd.load(bundle) as session:
        record = measure(session, plan=plan, sensor=External(guard_s=0.1))
    assert isinstance(record.power, PowerPending)
    kinds = [phase.kind for phase in record.power.phases]
    assert kinds.count("pulse") == 2 and kinds.count("idle") == 2
    assert "edgekd power import" in record.power.reason


@pytest.mark.parametrize(
    ("watts", "kelvin", "flat"),
    [([5.0, 5.05], [50, 50.3], True), ([5.0, 5.2], [50, 50], False), ([5, 5], [50, 51], False)],
)
def test_a_warm_up_is_over_when_power_and_temperature_are_flat(
    watts: list[float], kelvin: list[float], flat: bool
) -> None:
    samples = Samples(SensorInfo("x", "module", ("VDD_IN",)), 0.1)
    for number in range(40):
        late = number // 20
        at_s = 100.0 + 0.1 * number
        samples.readings.append(Reading(at_s, watts[late], temperatures_c={"tj": kelvin[late]}))
    found, words = flatness(samples, 100.0, 2.0)(4.0)
    assert found is flat and "power went from 5" in words
    assert flatness(samples, 100.0, 2.0)(20.0) == (False, "power was not sampled")
