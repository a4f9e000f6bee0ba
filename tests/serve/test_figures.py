"""What is counted, for Prometheus and for the page, and power as it is or is not there."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from edgekd.errors import EnvironmentLacksError, InputError
from edgekd.serve import figures as figures_module
from edgekd.serve import power as power_module
from edgekd.serve.figures import POINT_S, POINTS, Figures
from edgekd.serve.power import PowerNow, PowerWatch
from edgekd.telemetry.process import rss_mib
from edgekd.telemetry.sampler import Samples
from edgekd.telemetry.sensors._base import Reading, SensorInfo
from edgekd.telemetry.trace import Trace, write_trace
from tests.helpers.places import FakePlaces
from tests.helpers.rules import towers
from tests.helpers.serving import Served, series


def metrics(served: Served) -> dict[tuple[str, tuple[str, ...]], float]:
    text = served.ask("GET", "/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_was_done(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.25) + "texts: {A: words}\n") as served:
        served.predict({"zone": "A", "series": series()}, {"zone": "B", "series": series(2.0)})
        served.predict({"zone": "A", "text": "others"})
        served.predict({"zone": "C"})
        for number in range(30):
            served.ask("GET", f"/nothing/{number}")
        served.ask("BREW", "/healthz")
        served.put(towers(0.5))
        found = metrics(served)
    assert found["edgekd_requests_total", ("/v1/predict", "200", "POST")] == 2
    assert found["edgekd_requests_total", ("/v1/predict", "422", "POST")] == 1
    assert found["edgekd_requests_total", ("404", "GET", "other")] == 30
    assert found["edgekd_requests_total", ("/healthz", "405", "other")] == 1
    assert found["edgekd_request_seconds_count", ("/v1/predict",)] == 3
    assert found["edgekd_model_seconds_count", ()] == 2
    assert found["edgekd_answers_total", ("yes",)] + found["edgekd_answers_total", ("no",)] == 3
    assert found["edgekd_answers_total", ("no",)] >= 1
    assert found["edgekd_embeddings_total", ("rules",)] == 1
    assert found["edgekd_embeddings_total", ("request",)] == 1
    assert found["edgekd_rules_version", ()] == 2 and found["edgekd_ready", ()] == 1
    assert found["edgekd_queue_depth", ()] == 0
    assert found["process_resident_memory_bytes", ()] > 10e6
    assert not [name for name, _ in found if name.startswith("edgekd_power")], "never 0 W"


def test_the_page_has_the_last_minutes() -> None:
    now = [1000.0]
    kept = Figures((), clock=lambda: now[0])
    place = {"changed": True}
    for _ in range(24):
        for took in (0.01, 0.03):
            kept.answered([place], 0, took, took)
        kept.power(4.0)
        now[0] += 2.5
    value = kept.page()
    assert value["answers"] == 48 and value["answers_per_s"] == pytest.approx(0.8)
    assert (value["p50_ms"], value["p99_ms"], value["up_s"]) == (10.0, 30.0, 60.0)
    assert value["curves"]["answers_per_s"] == [0.8] * 12
    assert value["curves"]["slowest_ms"] == [30.0] * 12
    assert value["curves"]["watts"] == [4.0] * 12
    assert len(value["last"]) == figures_module.SHOWN
    now[0] += 120
    value = kept.page()
    assert value["p50_ms"] is None and value["answers_per_s"] == 0 and value["answers"] == 48
    assert value["curves"]["slowest_ms"][-1] is None, "nothing is not zero milliseconds"
    now[0] += 10_000
    assert kept.page()["curves"]["watts"] == [None] * POINTS


def test_percentiles_are_of_the_whole_last_minute() -> None:
    """A hundred answers a second: slow ones, quick ones, and what is older than a minute."""
    now = [1000.0]
    kept = Figures((), clock=lambda: now[0])
    for second in range(90):
        took = 60.0 if second < 25 else 5.0 if second < 32 else 0.01
        for _ in range(100):
            kept.answered([{"changed": False}], 0, took, took)
        now[0] += 1
    found = kept.page()
    assert (found["p50_ms"], found["p99_ms"]) == (10.0, 5000.0)
    for _ in range(3 * 58):  # now two seconds of five, of more than sixty
        kept.answered([{"changed": False}], 0, 0.01, 0.01)
    now[0] += 5
    assert kept.page()["p99_ms"] == 10.0
    for _ in range(80):
        kept.answered([{"changed": False}], 0, 3.0, 3.0)
    assert kept.page()["p99_ms"] == 3000.0, "1.3 of a hundred, where 95 of them are quicker"


def test_a_call_of_the_model_is_counted_once(tmp_path: Path) -> None:
    async def talk(client: httpx.AsyncClient) -> None:
        places = {"places": [{"zone": "A", "series": series()}]}
        found = await asyncio.gather(*(client.post("/v1/predict", json=places) for _ in range(7)))
        assert [item.status_code for item in found] == [200] * 7

    with Served(tmp_path, towers(0.25), FakePlaces(delay_s=0.1)) as served:
        before = served.model.asked
        served.run(talk)
        calls = served.model.asked - before
        found = metrics(served)
    assert calls < 7 and found["edgekd_model_seconds_count", ()] == calls
    assert found["edgekd_waited_seconds_count", ()] == 7
    assert found["edgekd_model_seconds_sum", ()] == pytest.approx(0.1 * calls, rel=0.5)


def test_memory_does_not_grow_with_what_was_answered() -> None:
    now = [0.0]
    kept = Figures((), clock=lambda: now[0])
    for number in range(6000):
        kept.answered([{"changed": False}], 0, 0.1, 0.1)
        kept.power(1.0)
        now[0] += POINT_S * (number % 2)
    assert len(kept._points) == POINTS
    assert sum(len(point.times_s) for point in kept._points) <= 2 * (60 // POINT_S + 1)
    assert len(kept._last) == figures_module.SHOWN


def replay(tmp_path: Path, count: int = 200) -> str:
    info = SensorInfo("ina3221", "module", ("VDD_IN",), "measured", 0.04, 0.45)
    readings = [Reading(3 + n * 0.02, 5.0, {"VDD_IN": 5.0}) for n in range(count)]
    write_trace(tmp_path / "t.csv", Trace(Samples(info, 0.02, readings)))
    return f"replay:{tmp_path / 't.csv'}"


def wait_for(what: Any) -> None:
    end = time.monotonic() + 8
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_power_is_told_with_its_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power_module, "_KEPT", 5)
    given = replay(tmp_path)
    seen: list[float] = []
    watch = PowerWatch(given, each=seen.append)
    assert watch.now() == PowerNow(None, "ina3221", "module", "replay", "no reading yet")
    with Served(tmp_path / "rules", towers(0.2), power=watch) as served:
        wait_for(lambda: watch.now().watts)
        assert watch.now() == PowerNow(5.0, "ina3221", "module", "replay")
        assert served.ask("GET", "/v1/status").json()["power"] == {
            "watts": 5.0, "sensor": "ina3221", "scope": "module", "status": "replay", "why": ""
        }  # fmt: skip
        found = metrics(served)
        assert found["edgekd_power_watts", ("ina3221", "module", "replay")] == 5.0
        wait_for(lambda: len(seen) > 50)
        sampler = watch._sampler
        assert sampler is not None and len(sampler.samples.readings) <= 6, "months are long"
        wait_for(lambda: watch.now().watts is None)
        assert watch.now().why == "the sensor was lost: the replay has come to its end"
        assert not [name for name, _ in metrics(served) if name.startswith("edgekd_power_watts")]


def test_no_sensor_is_said(tmp_path: Path) -> None:
    watch = PowerWatch("auto", tmp_path)
    watch.start()
    assert watch.now() == PowerNow(None, why="no power sensor on this machine")
    watch.close()
    assert PowerWatch("none").now() == PowerNow(None, why="not asked for")
    with pytest.raises(InputError, match="power sensor 'rapll' does not exist; did you mean"):
        PowerWatch("rapll", tmp_path)
    with pytest.raises(EnvironmentLacksError, match="power sensor ina3221 cannot be read"):
        PowerWatch("ina3221", tmp_path)


def test_an_old_reading_is_none_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = PowerWatch(replay(tmp_path))
    watch._last = Reading(time.monotonic() - 11, 5.0)
    assert watch.now().watts is None and "has said nothing for 11 s" in watch.now().why


def test_resident_memory_is_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    assert rss_mib(tmp_path) is None
    (tmp_path / "proc/self/status").write_text("VmHWM:\t 9 kB\nVmRSS:\t  2048 kB\n")
    assert rss_mib(tmp_path) == 2.0
