"""What is said of a part of a trace."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from edgekd.errors import InputError
from edgekd.report.latency import percentile
from edgekd.telemetry.figures import figures
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.trace import Trace

INFO = SensorInfo("made-up", "module", ("VDD_IN",), "replay: x", 0.04, 0.45)


def trace(lost: str = "") -> Trace:
    """4 W, from 30 to 70 s 10 W with 20 tiles/s, 4 W again until 100 s; ten a second."""
    at_s = 0.05 + np.arange(1000) / 10
    busy = (at_s >= 30) & (at_s < 70)
    readings = [Reading(float(t), 10.0 if b else 4.0) for t, b in zip(at_s, busy, strict=True)]
    tiles = np.round(20 * np.clip(at_s - 30, 0, 40)).astype(np.int64)
    return Trace(Samples(INFO, 0.1, readings, lost=lost), tiles)


def test_a_part_above_its_idle() -> None:
    found = figures(trace(), 35, 65, (0, 29))
    assert found.mean_w is not None and found.net_j is not None and found.net_w is not None
    assert found.mean_w.value == pytest.approx(10) and found.energy_j == pytest.approx(300)
    assert found.net_w.value == pytest.approx(6) and found.net_j.value == pytest.approx(180)
    assert found.net_w.half >= 0.04 / 12**0.5, "never finer than the sensor"
    assert found.tiles == pytest.approx(600, abs=1)
    assert found.gross_j_per_tile == pytest.approx(0.5, rel=2e-3)
    assert (found.p50_w, found.p95_w, found.max_w, found.samples) == (10, 10, 10, 300)
    assert found.faults == () and found.plain()["valid"] is True
    value = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert (value["scope"], value["source"], value["lag_s"]) == ("module", "replay: x", 0.45)
    text = "\n".join(found.lines())
    for word in ("scope module", "source replay: x", "lag 0.45 s", "resolution 0.04 W", "per tile"):
        assert word in text


def test_all_of_it_and_edges() -> None:
    found = figures(trace())
    assert (found.start_s, found.end_s) == (0.05, pytest.approx(99.95))
    assert figures(trace(), 0, 100).start_s == 0.05, "the trace begins a little before its samples"
    assert figures(trace(), 0, 100).tiles == pytest.approx(800)


@pytest.mark.parametrize("window", [(-1, 50), (50, 101), (60, 50), (50, 50), (200, 300)])
def test_a_part_that_is_not_there(window: tuple[float, float]) -> None:
    with pytest.raises(
        InputError, match=r"is not within the samples, which are from 0.05 to 99.95"
    ):
        figures(trace(), *window)
    with pytest.raises(InputError, match="is not within the samples"):
        figures(trace(), idle=window)


def test_what_is_wrong_makes_it_invalid() -> None:
    found = figures(trace("it fell off"), 99, 99.95, (0, 1))
    assert found.faults == (
        "the sensor was lost: it fell off", "10 samples, at least 20 are needed",
        "idle: 10 samples, at least 20 are needed",
    )  # fmt: skip
    assert found.plain()["valid"] is False and found.lines()[-1].startswith("NOT VALID the sensor")


def wrong(**faults: Any) -> Trace:
    made = trace()
    return dataclasses.replace(
        made,
        samples=dataclasses.replace(made.samples, **faults),
    )


GONE = {"readings": [Reading(n / 10, None if 500 <= n < 503 else 5.0, why="off" * (500 <= n < 503))
                     for n in range(1000)], "without": {"off": 3}}  # fmt: skip


@pytest.mark.parametrize(
    ("faults", "words", "windows", "harmless"),
    [
        ({"stalls": [(40.0, 42.0)]}, "said nothing for 2 s",
         [(None, None), (35, 41), (41, 50), (40.5, 41.5)], [(10, 40), (42, 60)]),
        ({"restarts": 1, "restarted_s": [50.05]}, "began again 1 times",
         [(None, None), (40, 60)], [(10, 40), (60, 90)]),
        ({"restarts": 1}, "began again 1 times", [(None, None), (10, 40), (60, 90)], []),
        ({"restarts": 1, "restarted_s": [5e6]}, "began again 1 times", [(10, 40)], []),
        ({"lost": "gone"}, "lost: gone", [(None, None), (40, 99.95)], [(10, 40), (60, 90)]),
        (GONE, "3 readings without power: off", [(None, None), (40, 60)], [(10, 40), (60, 90)]),
    ],
)  # fmt: skip
def test_what_went_wrong_elsewhere_does_no_harm(
    faults: Any, words: str, windows: Any, harmless: Any
) -> None:
    made = wrong(**faults)
    for window in windows:
        assert any(words in fault for fault in figures(made, *window).faults), window
    for window in harmless:
        assert figures(made, *window).faults == (), window
        if words != "lost: gone":
            assert any(words in fault for fault in figures(made, *window, windows[0]).faults)


def test_a_killed_writer_harms_the_end_alone() -> None:
    made = dataclasses.replace(trace(), whole=False)
    assert figures(made, 10, 40).faults == ()
    assert "its writer was killed" in figures(made).faults[0]


@pytest.mark.parametrize("count", [20, 21, 39, 40, 59, 60, 100, 140])
def test_quantiles_are_those_of_the_rest_of_the_project(count: int) -> None:
    readings = [Reading(float(n), float((n * 37) % count)) for n in range(count)]
    found = figures(Trace(Samples(INFO, 1.0, readings)))
    values = [item.watts or 0.0 for item in readings]
    assert (found.p50_w, found.p95_w) == (percentile(values, 50), percentile(values, 95))


@pytest.mark.parametrize(
    ("source", "status"),
    [("replay: x", "replay"), ("replay: x (of an estimate)", "replay"), ("estimate", "estimate"),
     ("measured", "measured"), ("meter: csv", "measured")],
)  # fmt: skip
def test_every_figure_says_what_it_is(source: str, status: str) -> None:
    made = wrong(info=dataclasses.replace(INFO, source=source))
    found = figures(made, 35, 65, (0, 29))
    assert found.plain()["status"] == status
    rows = found.lines()[2:]
    for row in rows:
        held = f"({status})" in row
        assert held == (status != "measured"), row
    assert len(rows) == 4 and rows[0].startswith(
        "power     " if status == "measured" else f"power ({status}) "
    )
    assert figures(trace(), 50.01, 50.02).p50_w == 10.0, "between two samples"
