"""Energy of a record: known loads through a lag, what is refused, what is told beside a figure."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekd.contracts.artifacts import write_json
from edgekd.errors import InputError
from edgekd.report.blocks import guard_phase
from edgekd.report.power import (
    Phase,
    PowerRecord,
    PowerTrace,
    evaluate,
    guard_s,
    make_power,
    make_trace,
)
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from edgekd.report.words import banner, interval, power_rows
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading
from tests.helpers.powers import (
    BLOCK_S,
    GUARD_S,
    ORIGIN_S,
    ORIN,
    REPEATS,
    TURN_S,
    WARM_S,
    make_phases,
    make_power_record,
    make_powered,
    make_samples,
)


def test_joules_per_tile_of_a_known_load() -> None:
    """16 W for 200 tiles in 10 s; 13 W for 20 Mpx and 80 km² in 10 s; idle 6 W."""
    found = make_power_record()
    assert found.engine is not None and found.scene is not None and found.idle is not None
    assert found.idle.mean_w.value == pytest.approx(6.0, rel=0.01)
    assert found.engine.mean_w.value == pytest.approx(16.0, rel=0.01)
    assert found.engine.tiles == 600 and found.engine.seconds == pytest.approx(30)
    assert found.engine.gross_j_per_tile.value == pytest.approx(16 / 20, rel=0.01)
    assert found.engine.net_j_per_tile is not None
    assert found.engine.net_j_per_tile.value == pytest.approx(10 / 20, rel=0.01)
    assert found.engine.tiles_per_j == pytest.approx(20 / 16, rel=0.01)
    assert found.engine.gross_j_per_km2 is None  # noise has no size on the ground
    assert found.scene.gross_j_per_mpx is not None and found.scene.gross_j_per_km2 is not None
    assert found.scene.gross_j_per_mpx.value == pytest.approx(130 / 20, rel=0.01)
    assert found.scene.gross_j_per_km2.value == pytest.approx(130 / 80, rel=0.01)
    assert found.scene.net_j_per_km2 is not None
    assert found.scene.net_j_per_km2.value == pytest.approx(70 / 80, rel=0.02)
    assert found.engine.joules == pytest.approx(16 * 30, rel=0.01)
    for value in (found.engine.mean_w, found.scene.mean_w, found.idle.mean_w):
        assert value.low < value.value < value.high
        assert value.half > 0.04 / np.sqrt(12)


def test_the_guard_takes_the_lag_out_and_without_it_the_error_shows() -> None:
    """Through 0.45 s, the scene at 13 W behind the engine at 16 W, idle at 6 W."""
    samples = make_samples(noise_w=0.0)
    phases = make_phases()
    guarded = make_power_record(samples, phases)
    bare = [
        phase.model_copy(update={"start_s": phase.start_s - GUARD_S})
        if phase.kind in ("engine", "scene", "idle") and phase.start_s > -GUARD_S
        else phase
        for phase in phases
        if phase.kind != "guard"
    ]
    without = make_power_record(samples, bare)
    assert guarded.scene is not None and without.scene is not None
    assert guarded.scene.mean_w.value == pytest.approx(13.0, rel=0.01)
    lost_j = 0.45 * (16 - 13)
    expected = 13 + lost_j / (BLOCK_S + GUARD_S)
    assert without.scene.mean_w.value == pytest.approx(expected, rel=0.005)
    assert guarded.idle is not None and without.idle is not None
    assert guarded.idle.after_w is not None and without.idle.after_w is not None
    assert guarded.idle.after_w.value == pytest.approx(6.0, rel=0.01)
    assert without.idle.after_w.value == pytest.approx(6 + 0.45 * 7 / 22.25, rel=0.005)


def test_repeats_that_differ_widen_the_interval() -> None:
    def level(step_w: float) -> PowerRecord:
        found = make_samples()
        found.readings = [
            replace(item, watts=(item.watts or 0) + step_w * int((item.at_s - ORIGIN_S) // TURN_S))
            for item in found.readings
        ]
        return make_power_record(found)

    same, apart = level(0.0).engine, level(1.0).engine
    assert same is not None and apart is not None
    assert apart.mean_w.half > 5 * same.mean_w.half
    # three repeats at 0, 1, 2 W: t(2) * sqrt(2/3 / 2)
    assert apart.mean_w.half == pytest.approx(4.303 * np.sqrt(2 / 3 / 2), rel=0.05)


@pytest.mark.parametrize("spread", [0.0, 0.01, 0.03])
def test_joules_per_tile_cover_the_truth_when_speed_varies(spread: float) -> None:
    """400 random records of three windows, 15 W at 40 tiles/s on average: gross and net."""
    rng = np.random.default_rng(int(spread * 100))
    at = np.arange(-40.0, 90.0, 0.1)
    held = {"gross": 0, "net": 0}
    count = 400
    for seed in range(count):
        working = (at >= -WARM_S) & (at < REPEATS * TURN_S)
        watts = np.where(working, 15.0, 5.0) + 0.2 * rng.standard_normal(len(at))
        trace = PowerTrace(at_s=at.tolist(), watts=watts.tolist())
        phases = make_phases(40.0, spread=spread, seed=seed)
        found = evaluate(trace, [p for p in phases if p.kind != "scene"], None).engine
        assert found is not None and found.net_j_per_tile is not None
        gross, net = found.gross_j_per_tile, found.net_j_per_tile
        held["gross"] += gross.low <= 15 / 40 <= gross.high
        held["net"] += net.low <= 10 / 40 <= net.high
    for share in held.values():
        assert share / count >= 0.93, held


def test_what_idle_moved_is_in_the_interval_of_net() -> None:
    found = make_samples(noise_w=0.05)
    end = REPEATS * TURN_S
    found.readings = [
        replace(item, watts=(item.watts or 0) + (0.4 if item.at_s - ORIGIN_S > end else 0))
        for item in found.readings
    ]
    idle = make_power_record(found).idle
    assert idle is not None and idle.before_w is not None and idle.after_w is not None
    assert idle.after_w.value - idle.before_w.value == pytest.approx(0.4, abs=0.02)
    assert idle.mean_w.half >= 0.19
    assert idle.mean_w.low <= idle.before_w.value and idle.after_w.value <= idle.mean_w.high


def test_a_window_without_energy_or_tiles() -> None:
    nothing = make_samples(idle_w=0.0, engine_w=0.0, scene_w=0.0, noise_w=0.0)
    engine = make_power_record(nothing).engine
    assert engine is not None and engine.tiles_per_j is None
    empty = [p.model_copy(update={"tiles": 0}) if p.kind == "engine" else p for p in make_phases()]
    found = make_power_record(phases=empty)
    assert found.engine is None and found.without == {"engine": "a window holds no tile"}


def test_a_guard_shorter_than_a_millisecond_is_no_phase() -> None:
    """It would begin and end at the same microsecond."""
    assert guard_phase(1.0, 1.0000004) == [] == guard_phase(1.0, 1.0)
    assert len(guard_phase(1.0, 1.01)) == 1


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("measured", "measured"),
        ("meter: fnirsi", "measured"),
        ("estimate", "estimate"),
        ("replay: orin.log", "replay"),
    ],
)
def test_what_was_not_measured_says_so_in_every_row(source: str, status: str) -> None:
    record = make_powered(power=make_power_record(make_samples(info=replace(ORIN, source=source))))
    assert record.power.status == status
    for name, _ in power_rows(record):
        assert (f"({status})" in name) == (status != "measured"), name
    said = banner(record)
    assert ("another time (replay: orin.log), not of this work" in said) == (status == "replay")
    assert ("an estimate" in said) == (status == "estimate")


def test_what_stands_beside_the_figure() -> None:
    rows = dict(power_rows(make_powered()))
    assert rows["power: sensor"] == (
        "ina3221, measured, scope module: VDD_IN; step 0.04 W, lag 0.45 s, a sample every 0.109 s"
    )
    unknown = replace(ORIN, resolution_w=None, lag_s=None)
    rows = dict(power_rows(make_powered(power=make_power_record(make_samples(info=unknown)))))
    assert "step unknown, lag unknown" in rows["power: sensor"]
    assert guard_s(unknown) == 2.5 and guard_s(ORIN) == 2.25


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (8.3141, 0.1234, "8.31 ± 0.12"),
        (8.3141, 0.0567, "8.314 ± 0.057"),
        (1234.5, 3.2, "1,234.5 ± 3.2"),
        (1234.5, 320, "1,234 ± 320"),
        (0.5, 0.0, "0.500"),
        (2.0, 1.0, "2.0 ± 1.0"),
    ],
)
def test_an_interval_decides_the_digits(value: float, half: float, text: str) -> None:
    from edgekd.report.power import Figure

    assert interval(Figure(value=value, low=value - half, high=value + half)) == text


def changed(record: BenchmarkRecord, path: str, value: Any) -> dict[str, Any]:
    plain = copy.deepcopy(record.plain())
    place: Any = plain
    *steps, last = path.split(".")
    for step in steps:
        place = place[int(step)] if step.isdigit() else place[step]
    place[int(last) if last.isdigit() else last] = value
    return plain


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("power.engine.gross_j_per_tile.value", 0.5, "power.engine does not follow"),
        ("power.scene.joules", 1.0, "power.scene does not follow"),
        ("power.idle.mean_w.low", 1.0, "power.idle does not follow"),
        ("power.trace.watts.400", 90.0, "does not follow from the samples"),
        ("power.status", "measured", "status does not follow"),
        ("power.engine", None, "power.engine does not follow"),
        ("power.interval_s", 0.05, "interval_s does not follow"),
        ("power.lag_known", False, "lag_known does not follow"),
        ("power.faults", ["lost"], "verdict of power_sampled does not follow"),
        ("checks.12.status", "fail", "verdict of power_sampled does not follow"),
        ("power.without", {"engine": "x"}, "without does not follow"),
        ("power.trace.watts", [1.0, 2.0], "differ in number"),
        ("power.phases.0.end_s", -1e6, "ends before it begins"),
    ],
)
def test_a_figure_that_was_changed_by_hand_is_refused(
    tmp_path: Path, path: str, value: Any, words: str
) -> None:
    record = make_powered(
        power=make_power_record(make_samples(info=replace(ORIN, source="replay: x")))
    )
    place = tmp_path / "r.json"
    write_record(record, place)
    assert read_record(place) == record
    write_json(place, changed(record, path, value))
    with pytest.raises(InputError, match=words):
        read_record(place)


def test_a_reading_at_the_same_moment_and_one_without_power_are_left_out() -> None:
    readings = [Reading(10.0, 5.0), Reading(10.0, 6.0), Reading(11.0, None), Reading(12.0, -0.4)]
    found = make_trace([item for item in readings if item.watts is not None], 10.0)
    assert found is not None and found.at_s == [0.0, 2.0] and found.watts == [5.0, -0.4]
    assert make_trace(readings[:2], 10.0) is None


def test_the_zone_that_is_shown_is_the_hottest_that_moves() -> None:
    found = make_power_record().trace
    assert found.zone == "tj"  # and not PMIC, which tells a constant 100
    still = [Reading(float(n), 5.0, temperatures_c={"PMIC": 100.0, "cpu": 40.0}) for n in range(3)]
    trace = make_trace(still, 0.0)
    assert trace is not None and trace.zone == "cpu"


def test_samples_that_say_nothing_give_no_figures_and_the_reason() -> None:
    lost = Samples(ORIN, 0.1, lost="tegrastats ended with 1")
    assert make_power(lost, make_phases(), ORIGIN_S) == (
        "the sensor was lost: tegrastats ended with 1"
    )
    silent = Samples(ORIN, 0.1)
    assert "fewer than two samples" in str(make_power(silent, make_phases(), ORIGIN_S))


def test_windows_that_are_missing_are_named() -> None:
    phases = [phase for phase in make_phases() if phase.kind != "scene"]
    found = make_power_record(phases=phases)
    assert found.scene is None and found.without == {"scene": "no window was long enough"}
    short = Phase(kind="scene", start_s=12.0, end_s=12.2, tiles=1)
    found = make_power_record(phases=[*phases, short])
    assert found.without == {"scene": "a window has 2 samples"}
    assert REPEATS == 3
