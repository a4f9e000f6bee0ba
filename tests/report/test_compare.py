"""Differences: real where they are, not where they are not, refused where they mean nothing."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from edgekd.report.compare import (
    Difference,
    caution,
    compare,
    labels,
    latency_p50_ms,
    over_blocks,
    tiles_per_s,
)
from edgekd.report.power import PowerRecord
from edgekd.report.record import BenchmarkRecord, Turns
from edgekd.telemetry.energy import Estimate
from edgekd.telemetry.power import PowerUnavailable
from edgekd.telemetry.sensors._base import SensorInfo
from tests.helpers.powers import make_phases, make_power_record, make_powered, make_samples
from tests.helpers.records import make_engine, make_evidence, make_golden, make_record

BOARD = SensorInfo("pmic", "board", ("sum",), "measured", 0.04, 0.45)
REPLAY = SensorInfo("replay", "module", ("VDD_IN",), "replay: x.log", 0.04, 0.45)


def powered(latency_s: float = 0.05, seed: int = 0, name: str = "tiny",
            info: SensorInfo | None = None, **changes: Any) -> BenchmarkRecord:  # fmt: skip
    watts = changes.pop("engine_w", 16.0)
    more = {} if info is None else {"info": info}
    samples = make_samples(seed=seed, engine_w=watts, **more)
    power = make_power_record(samples, make_phases(1 / latency_s / 1.005))
    return make_powered(latency_s, seed, **({"power": power} | changes), name=name)


def by_name(differences: list[Difference]) -> dict[str, Difference]:
    return {item.name: item for item in differences}


def test_a_known_difference_is_real_and_has_its_size() -> None:
    found = by_name(compare(powered(), powered(0.06, seed=1, engine_w=12.0)))
    assert set(found) == {"energy per tile", "power", "throughput", "latency p50"}
    expected = {"energy per tile": -0.08, "power": -4.0, "throughput": -3.32, "latency p50": 10.05}
    for name, size in expected.items():
        item = found[name]
        assert item.verdict == "real" and item.why == ""
        assert item.change is not None
        assert item.change.value == pytest.approx(size, rel=0.06)
        assert item.change.low < size < item.change.high or abs(item.change.value) > 0.9 * abs(size)
    relative = found["power"].relative
    assert relative is not None and relative.value == pytest.approx(-0.25, abs=0.01)


def test_half_widths_are_added_in_squares() -> None:
    item = by_name(compare(powered(), powered(seed=1)))["energy per tile"]
    assert item.first and item.other and item.change
    assert item.change.half == pytest.approx(np.hypot(item.first.half, item.other.half))


def test_equal_records_are_not_called_different() -> None:
    """Student's t over three blocks, added in squares, is wider than it must be, never narrower."""
    rng = np.random.default_rng(3)
    records = []
    for seed in range(24):
        blocks = np.repeat(rng.normal(0.05, 0.0005, 3), 100)
        latencies = (blocks * (1 + 0.01 * rng.standard_normal(300))).tolist()
        starts = np.concatenate([[0], np.cumsum(latencies)[:-1]]).tolist()
        engine = make_engine(latencies, starts, [100] * 3)
        records.append(powered(seed=seed).model_copy(update={"engine": engine}))
    pairs = list(itertools.combinations(records, 2))
    called = {"energy per tile": 0, "power": 0, "throughput": 0, "latency p50": 0}
    for first, other in pairs:
        for item in compare(first, other):
            called[item.name] += item.verdict == "real"
    assert all(count <= 0.08 * len(pairs) for count in called.values()), called


def test_with_many_blocks_about_one_in_twenty_equal_pairs_is_called_different() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(2000):
        a, b = (
            over_blocks(values.tolist(), [1.0] * 20, float(values.mean()))
            for values in rng.standard_normal((2, 20))
        )
        assert isinstance(a, Estimate) and isinstance(b, Estimate)
        change = b.minus(a)
        called += change.low > 0 or change.high < 0
    assert 0.02 < called / 2000 < 0.06


def test_an_interval_over_blocks_is_that_of_a_textbook() -> None:
    """Five equal blocks: mean ± t(4) s / sqrt(5), t(4) = 2.776."""
    values = [10.0, 12.0, 11.0, 9.0, 13.0]
    found = over_blocks(values, [1] * 5, 11.0)
    assert isinstance(found, Estimate)
    assert found.half == pytest.approx(2.776 * np.std(values, ddof=1) / np.sqrt(5))
    assert (found.value, found.batches) == (11.0, 5)


def test_throughput_and_median_are_those_of_the_record() -> None:
    record = powered()
    rate, median = tiles_per_s(record), latency_p50_ms(record)
    assert isinstance(rate, Estimate) and isinstance(median, Estimate)
    assert rate.value == record.engine.tiles_per_s
    assert median.value == record.engine.summary.p50_s * 1e3
    assert rate.batches == median.batches == 3


def test_one_block_tells_no_interval() -> None:
    found = by_name(compare(make_record(make_evidence()), make_record(make_evidence())))
    for name in ("throughput", "latency p50"):
        assert found[name].verdict == "not compared" and "one block" in found[name].why
        assert found[name].change is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"info": BOARD}, "power of the module and of the board are different things"),
        ({"info": REPLAY}, "the first is measured, this one a replay"),
        ({"power": PowerUnavailable(reason="no sensor", sensors={})}, "no power: no sensor"),
    ],
)
def test_power_of_another_kind_is_not_compared_and_the_rest_is(
    other: dict[str, Any], words: str
) -> None:
    for item in compare(powered(), powered(0.06, **other)):
        if item.name.startswith(("energy", "power")):
            assert item.verdict == "not compared" and words in item.why
            assert item.change is None and item.relative is None
        else:
            assert item.verdict == "real"


def test_a_replay_against_a_replay_carries_the_word() -> None:
    found = by_name(compare(powered(info=REPLAY), powered(info=REPLAY, engine_w=12.0)))
    assert found["power (replay)"].verdict == "not compared"
    assert found["power (replay)"].why == "a replay says nothing about this work"
    assert "energy per tile (replay)" in found and "throughput" in found


def test_power_of_a_card_and_of_a_processor_are_different_things() -> None:
    card = SensorInfo("nvml", "module", ("GPU 0",), "measured", 0.04, 0.45)
    processor = SensorInfo("rapl", "module", ("package-0",), "measured", 0.04, 0.45)
    found = by_name(compare(powered(info=card), powered(info=processor)))
    assert found["power"].verdict == "not compared"
    assert found["power"].why == "power of the card and of the processor are different things"
    assert (
        by_name(compare(powered(info=card), powered(info=card)))["power"].verdict != "not compared"
    )


def test_one_window_tells_nothing_of_repeats() -> None:
    first = make_powered()
    assert isinstance(first.power, PowerRecord) and first.power.engine is not None
    one = first.power.model_copy(
        update={"engine": first.power.engine.model_copy(update={"windows": 1})}
    )
    single = first.model_copy(update={"power": one})
    found = by_name(compare(single, powered(engine_w=30.0)))["energy per tile"]
    assert found.verdict == "not compared" and "one window tells nothing of repeats" in found.why


def test_tiles_that_vary_from_turn_to_turn_are_in_the_verdict() -> None:
    """Equal bundles whose tiles per second differ by 2 % from one turn to the next: with the
    interval of power alone two of three pairs were called different."""
    real = 0
    for seed in range(30):
        pair = [
            make_powered(seed=2 * seed + half, power=make_power_record(
                make_samples(seed=2 * seed + half),
                make_phases(20 / 1.005, spread=0.02, seed=2 * seed + half),
            ))
            for half in range(2)
        ]  # fmt: skip
        real += by_name(compare(*pair))["energy per tile"].verdict == "real"
    assert real <= 4


def test_what_is_not_valid_is_never_part_of_a_verdict() -> None:
    bad = powered(0.06, golden=make_golden(1.0))
    assert not bad.valid
    for pair in ((powered(), bad), (bad, powered())):
        for item in compare(*pair):
            assert item.verdict == "not compared" and "NOT VALID" in item.why


def test_tiles_of_another_size_are_compared_per_mpx() -> None:
    first, other = powered(), powered(seed=1)
    smaller = other.model_copy(update={"bundle": other.bundle.model_copy(update={"tile_px": 512})})
    found = compare(first, smaller)
    assert [(item.name, item.unit) for item in found] == [
        ("energy per Mpx", "J"), ("power", "W"), ("throughput", "Mpx/s")
    ]  # fmt: skip
    rate = found[2].other
    assert rate is not None
    assert rate.value == pytest.approx(other.engine.tiles_per_s * 0.512**2)


def test_what_an_interval_does_not_hold_is_said() -> None:
    first, other = powered(), powered(name="other")
    assert "not measured in turns" in caution(first, other)

    def turned(record: BenchmarkRecord, measurement: str, letter: str) -> BenchmarkRecord:
        turns = Turns(measurement=measurement, order="ABBA", letter=letter, others={})
        return record.model_copy(update={"turns": turns})

    together = turned(first, "m1", "A")
    assert caution(together, turned(other, "m1", "B")) == ""
    assert "not measured in turns" in caution(together, turned(other, "m2", "B"))
    assert caution(together, turned(powered(name="other", info=BOARD), "m1", "B")) == (
        "another sensor, whose accuracy is not part of the interval"
    )


def with_mode(record: BenchmarkRecord, mode: str) -> BenchmarkRecord:
    environment = record.environment.model_copy()
    object.__setattr__(environment, "power_mode", mode)
    return record.model_copy(update={"environment": environment})


def test_labels_say_what_differs() -> None:
    record, other = make_record(), make_record(name="other")
    assert labels([record]) == ["tiny"]
    assert labels([record, record, other]) == ["tiny #1", "tiny #2", "other"]
    assert labels([with_mode(record, "MAXN"), with_mode(record, "15W")]) == ["MAXN", "15W"]
    elsewhere = record.environment.model_copy(update={"board": "Raspberry Pi 5 Model B Rev 1.0"})
    there = record.model_copy(update={"environment": elsewhere})
    assert labels([record, there]) == ["x86_64", "Raspberry Pi 5 Model B Rev …"]
    assert labels([other, there]) == ["other", "tiny"]
    assert labels([with_mode(record, "MAXN"), with_mode(other, "15W")]) == [
        "tiny · MAXN", "other · 15W"
    ]  # fmt: skip
