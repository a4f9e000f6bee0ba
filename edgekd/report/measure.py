"""Measures loaded bundles: bare engine, end to end and power, in turns.

The engine's blocks and the runs over the input alternate (A B A B ...), so that whatever else
the machine does falls on both; several bundles take turns as ABBA. Power is sampled over the
whole measurement: idle, warm-up until latency, power and temperature are flat, the blocks, each
behind a guard, idle again.
"""

from __future__ import annotations

import contextlib
import datetime
import math
import statistics
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edgekd.contracts.system import declared_system
from edgekd.errors import EnvironmentLacksError
from edgekd.report.blocks import (
    EngineBlocks,
    Observer,
    Pace,
    Silent,
    Watch,
    warm_up,
)
from edgekd.report.checks import MIN_TILES, Evidence, check_power, run_checks
from edgekd.report.plan import DEFAULT_PLAN, External, Plan, flatness, require_length, turn_order
from edgekd.report.power import (
    Phase,
    PowerPending,
    PowerRecord,
    make_power,
    round_phases,
)
from edgekd.report.record import (
    Asked,
    BenchmarkRecord,
    Clock,
    Golden,
    Machine,
    Ratio,
    Turns,
    WarmUp,
)
from edgekd.report.subjects import Subject, TileSubject
from edgekd.report.system import Bench, make_system
from edgekd.runtime.session import Session
from edgekd.telemetry.energy import guard_s
from edgekd.telemetry.environment import Environment, read_environment
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.process import peak_rss_mib
from edgekd.telemetry.sampler import Sampler, Samples
from edgekd.telemetry.sensors._base import PowerSensor, SensorLost
from edgekd.telemetry.state import State, StateWatch
from edgekd.telemetry.trace import Trace

Sensor = PowerSensor | PowerUnavailable | External
#: power of a measurement that asked for none
NOT_ASKED = PowerUnavailable(reason="not asked for", sensors={})


def measure(
    session: Session,
    source: Path | None = None,
    bands: list[int] | None = None,
    plan: Plan = DEFAULT_PLAN,
    *,
    sensor: Sensor = NOT_ASKED,
    observer: Observer | None = None,
    command: str | None = None,
    root: Path = Path("/"),
) -> BenchmarkRecord:
    """Measure and judge a bundle; see :func:`measure_in_turns`."""
    return measure_in_turns(
        [session], source, bands, plan, sensor=sensor, observer=observer, command=command, root=root
    )[0]


def measure_in_turns(
    sessions: Sequence[Session],
    source: Path | None = None,
    bands: list[int] | None = None,
    plan: Plan = DEFAULT_PLAN,
    *,
    sensor: Sensor = NOT_ASKED,
    observer: Observer | None = None,
    command: str | None = None,
    traces: list[Trace] | None = None,
    root: Path = Path("/"),
) -> list[BenchmarkRecord]:
    """Measure bundles on the same input, each turn in the order of the last one reversed: ABBA.

    Args:
        sessions: loaded bundles.
        source: image or scene; None measures on synthetic pixels (noise from a fixed seed, two
            tiles square) and says so in the record.
        bands: 1-based bands to feed.
        plan: how long, how often.
        sensor: of power; where there is none the record says why.
        observer: is told how it goes.
        command: how to do this again, for the record.
        traces: gets the samples with all rails, and where phases begin.
        root: of the file system, for environment and state.

    Raises:
        InputError: a plan that measures nothing, an impossible overlap, or a replay that is shorter
            than the measurement.
        ImageError: the input cannot be read or does not fit a model.
        EnvironmentLacksError: a sensor that was found is gone.
    """
    overlap_px = plan.overlap_px
    return measure_subjects(
        [partial(TileSubject, session, source, bands, overlap_px) for session in sessions],
        plan, sensor=sensor, observer=observer, command=command, traces=traces, root=root,
    )  # fmt: skip


def measure_subjects(
    make: Sequence[Callable[[], Subject]],
    plan: Plan = DEFAULT_PLAN,
    *,
    sensor: Sensor = NOT_ASKED,
    observer: Observer | None = None,
    command: str | None = None,
    traces: list[Trace] | None = None,
    root: Path = Path("/"),
) -> list[BenchmarkRecord]:
    """Measure whatever can be, in turns: ABBA.

    Args:
        make: makes the subjects; called when the plan was looked at.
        plan, sensor, observer, command, traces, root: see :func:`measure_in_turns`.

    Raises:
        InputError, EnvironmentLacksError: see :func:`measure_in_turns`.
    """
    plan.require(len(make))
    watcher = observer or Silent()
    powered = not isinstance(sensor, PowerUnavailable)
    guard = 0.0
    if isinstance(sensor, External):
        guard = sensor.guard_s
    elif not isinstance(sensor, PowerUnavailable):
        guard = guard_s(sensor.info)
        require_length(sensor, plan.least_s(guard, len(make)))
    environment = read_environment(root)
    pace = Pace(plan.duration_s / plan.repeats, -(-MIN_TILES // plan.repeats), guard)
    steps = len(make) * (2 * plan.repeats + 1) + (2 if powered else 0)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        watcher.step(done, steps)

    watcher.step(0, steps)
    benches = [_Bench(item(), watcher, root) for item in make]
    ends: list[Phase] = []
    with _sampling(sensor, plan, watcher) as samples, StateWatch(root) as states:
        if powered:
            ends += _idle(plan, guard, watcher)
            ends += _pulse(plan, benches[0], watcher)
            step()
        for bench in benches:
            watcher.phase("warm_up", max(plan.warmup_s, 2 * plan.flat_s if powered else 0))
            bench.warm(plan, samples)
            step()
        order = [turn_order(len(benches), number) for number in range(plan.repeats)]
        for turn in order:
            for place in turn:
                benches[place].engine_turn(pace, watcher)
                step()
                benches[place].scene_turn(pace, watcher)
                step()
        if powered:
            ends += _idle(plan, guard, watcher)
            if samples is not None:  # a sample behind the last window's end
                time.sleep(3 * (samples.achieved_s or plan.interval_s))
            step()
    assert states.before is not None and states.after is not None
    held = Machine(
        before=states.before, after=states.after, found=states.changes(), failure=states.failure
    )
    if traces is not None and samples is not None:
        traces.append(_whole_trace(samples, ends, benches))
    measurement = uuid.uuid4().hex
    letters = [chr(ord("A") + place) for place in range(len(benches))]
    records = []
    for place, bench in enumerate(benches):
        turns = None
        if len(benches) > 1:
            turns = Turns(
                measurement=measurement,
                order="".join(letters[item] for turn in order for item in turn),
                letter=letters[place],
                others={
                    letters[item]: f"{other.subject.manifest.name}, model "
                    f"{other.subject.manifest.files[other.subject.session.model]}"
                    for item, other in enumerate(benches)
                    if item != place
                },
            )
        others = [phase for other in benches if other is not bench for phase in other.phases]
        phases = _on_clock(bench, ends, others)
        power: PowerUnavailable | PowerPending | PowerRecord
        if isinstance(sensor, PowerUnavailable):
            power = sensor
        elif isinstance(sensor, External):
            power = PowerPending(
                reason="an external meter's file is to be added: edgekd power import METER "
                "--record RECORD",
                guard_s=guard, phases=round_phases(phases),
            )  # fmt: skip
        else:
            assert samples is not None
            power = _power(samples, phases, bench.origin_s)
        records.append(
            bench.record(plan, environment, power, held, states.during, turns, command, powered)
        )
    return records


@contextlib.contextmanager
def _sampling(sensor: Sensor, plan: Plan, observer: Observer) -> Iterator[Samples | None]:
    if isinstance(sensor, PowerUnavailable | External):
        yield None
        return
    try:
        with Sampler(sensor, plan.interval_s, observer.reading) as sampler:
            yield sampler.samples
    except SensorLost as err:
        raise EnvironmentLacksError(
            f"power sensor {sensor.info.name} was found and is gone: {err}; look with edgekd doctor"
        ) from err


def _idle(plan: Plan, guard: float, observer: Observer) -> list[Phase]:
    """Do nothing, behind a guard."""
    observer.phase("idle", guard + plan.idle_s)
    begin = time.monotonic()
    time.sleep(guard)
    start = time.monotonic()
    time.sleep(plan.idle_s)
    return [
        Phase(kind="guard", start_s=begin, end_s=start),
        Phase(kind="idle", start_s=start, end_s=time.monotonic()),
    ]


def _pulse(plan: Plan, bench: _Bench, observer: Observer) -> list[Phase]:
    """Work and rest in a pattern that an external meter sees."""
    phases = []
    for busy_s, quiet_s in plan.pulse:
        observer.phase("pulse", busy_s)
        begin = time.monotonic()
        while time.monotonic() - begin < busy_s:
            bench.subject.session.infer(bench.subject.feeds[0])
        phases.append(Phase(kind="pulse", start_s=begin, end_s=time.monotonic()))
        time.sleep(quiet_s)
    return phases


class _Bench:
    """One bundle in a measurement.

    Attributes:
        subject: bundle and work.
        phases: of its work, monotonic clock.
    """

    def __init__(self, subject: Subject, observer: Observer, root: Path) -> None:
        manifest = subject.manifest
        recipe = manifest.provenance.recipe
        self._declared = declared_system(recipe, f"the recipe inside bundle {manifest.name}")
        self.subject, self._root, self._observer = subject, root, observer
        self.phases: list[Phase] = []
        self._golden_error = subject.session.golden_error()
        self._watch = Watch(root)

    def warm(self, plan: Plan, samples: Samples | None) -> None:
        """Warm up; what counts begins behind it."""
        begin = time.monotonic()
        flat = None if samples is None else flatness(samples, begin, plan.flat_s)
        session, feeds = self.subject.session, self.subject.feeds
        self._warm_up: WarmUp = warm_up(
            session, feeds, plan.warmup_s, flat, 0.0 if flat is None else plan.flat_s,
            self._observer,
        )  # fmt: skip
        self.phases.append(Phase(kind="warm_up", start_s=begin, end_s=time.monotonic()))
        self._engine = EngineBlocks(session, feeds, self.subject.tile_px**2, self._observer)
        self.subject.start()

    def engine_turn(self, pace: Pace, observer: Observer) -> None:
        """A block of the bare engine, then one of what is set beside it."""
        observer.phase("engine", pace.guard_s + pace.block_s)
        self._watch.begin()
        self.phases += self._engine.block(pace)
        self.phases += self.subject.beside(pace)
        self._watch.end()

    def scene_turn(self, pace: Pace, observer: Observer) -> None:
        """A block of runs over the input."""
        observer.phase("scene")
        self._watch.begin()
        self.phases += self.subject.runs.block(pace)
        self._watch.end(clock=False)

    @property
    def origin_s(self) -> float:
        """Where the clock of the record begins, monotonic, s."""
        return self._engine.origin_s

    def _gpu_mhz(self, states: Sequence[State]) -> list[float] | None:
        """Median of what was seen in each block of the engine."""
        blocks = [phase for phase in self.phases if phase.kind == "engine"]
        seen = [
            [state.gpu_mhz for state in states
             if state.gpu_mhz and block.start_s <= state.at_s <= block.end_s]
            for block in blocks
        ]  # fmt: skip
        return [statistics.median(values) for values in seen if values] or None

    def record(
        self,
        plan: Plan,
        environment: Environment,
        power: PowerUnavailable | PowerPending | PowerRecord,
        machine: Machine,
        states: Sequence[State],
        turns: Turns | None,
        command: str | None,
        powered: bool,
    ) -> BenchmarkRecord:
        """Judge what was measured."""
        subject = self.subject
        manifest, tile_px = subject.manifest, subject.tile_px
        window = self._engine.window()
        streams = subject.streams()
        scene = subject.runs.window(subject.overlap_px, self.origin_s)
        disturbance = self._watch.disturbance(environment.load_1min).model_copy(
            update={"gpu_mhz": self._gpu_mhz(states)}
        )
        asked = Asked(
            duration_s=plan.duration_s, warmup_s=plan.warmup_s, repeats=plan.repeats,
            power=plan.power, idle_s=plan.idle_s if powered else 0.0,
            interval_s=plan.interval_s if powered else 0.0,
        )  # fmt: skip
        info = time.get_clock_info("monotonic")
        clock = Clock(tick_s=info.resolution, monotonic=info.monotonic)
        error = self._golden_error
        golden = Golden(
            error_logits=error if math.isfinite(error) else None,
            bound_logits=manifest.golden.atol,
        )
        checks = run_checks(
            Evidence(
                asked=asked,
                warm_up=self._warm_up,
                engine=window,
                scene=scene,
                disturbance=disturbance,
                machine=machine,
                clock=clock,
                golden=golden,
                target=manifest.target.name,
                target_arch=manifest.target.arch,
                arch=environment.arch,
                unit=subject.unit,
            )
        )
        checks += check_power(power, asked)
        redundancy = scene.windows_run * tile_px**2 / scene.pixels_unique
        ratio = scene.unique_mpx_per_s / window.mpx_per_s
        at_once = scene.unique_mpx_per_s / streams.mpx_per_s if streams else None
        valid = all(check.status != "fail" for check in checks)
        system = None
        if self._declared is not None:
            system = make_system(self._declared, Bench.of(environment, power, scene, valid))
        return BenchmarkRecord(
            created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            asked=asked,
            bundle=subject.identity(),
            environment=environment,
            input=subject.used,
            warm_up=self._warm_up,
            engine=window,
            engine_streams=streams,
            scene=scene,
            answers=subject.answers(),
            ratio=Ratio(
                definition=subject.definition,
                end_to_end_over_engine=ratio,
                end_to_end_over_streams=at_once,
                redundancy=redundancy,
                tiles_over_engine=ratio * redundancy,
            ),
            disturbance=disturbance,
            golden=golden,
            clock=clock,
            peak_rss_mib=round(peak_rss_mib(self._root), 1),
            power=power,
            system=system,
            machine=machine,
            turns=turns,
            command=command,
            checks=checks,
            valid=valid,
        )


def _whole_trace(samples: Samples, ends: Sequence[Phase], benches: Sequence[_Bench]) -> Trace:
    """All samples with all rails, and where phases begin, from the first sample on."""
    origin = samples.readings[0].at_s if samples.readings else 0.0
    started = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(
        seconds=time.monotonic() - origin
    )
    letters = [chr(ord("A") + place) for place in range(len(benches))]
    named: list[tuple[float, str]] = [(phase.start_s, phase.kind) for phase in ends]
    named += [
        (phase.start_s, phase.kind if len(benches) == 1 else f"{phase.kind} {letter}")
        for letter, bench in zip(letters, benches, strict=True)
        for phase in bench.phases
    ]
    return Trace(
        samples.since(origin),
        started_utc=started.isoformat(timespec="milliseconds"),
        marks=[(at_s - origin, name) for at_s, name in sorted(named)],
    )


def _on_clock(bench: _Bench, ends: Sequence[Phase], others: Sequence[Phase]) -> list[Phase]:
    """All phases on the clock of the bundle's record; another's work has no figures there."""
    foreign = [
        phase.model_copy(update={"kind": "other", "tiles": 0, "pixels": 0, "area_m2": None})
        for phase in others
    ]
    origin = bench.origin_s
    return [
        phase.model_copy(update={"start_s": phase.start_s - origin, "end_s": phase.end_s - origin})
        for phase in sorted([*ends, *bench.phases, *foreign], key=lambda item: item.start_s)
    ]


def _power(
    samples: Samples, phases: Sequence[Phase], origin_s: float
) -> PowerRecord | PowerUnavailable:
    made = make_power(samples, phases, origin_s)
    if isinstance(made, str):
        return PowerUnavailable(
            reason=f"{samples.info.name} was read and gave no power: {made}",
            sensors={samples.info.name: made},
        )
    return made
