"""A meter with a clock of its own is brought to the record, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.cli.main import main
from edgekd.errors import InputError
from edgekd.report.external import add_meter, busy_intervals
from edgekd.report.power import Phase, PowerPending, PowerRecord, round_phases
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from edgekd.telemetry.logs import read_power_file
from tests.helpers.powers import make_phases, pulse
from tests.helpers.records import make_record

#: the meter's clock is ahead by this
AHEAD_S = 86_400.0 * 3 + 0.37
PULSE_AT_S = -45.0


def phases() -> list[Phase]:
    """As measured: idle, pulse, warm-up, work, idle."""
    found = make_phases()
    shift = -30.0
    early = [
        item.model_copy(update={"start_s": item.start_s + shift, "end_s": item.end_s + shift})
        for item in found[:2]
    ]
    middle = [
        Phase(kind="pulse", start_s=start, end_s=end) for start, end in pulse(PULSE_AT_S + 0.1)
    ]
    return [*early, *middle, *found[2:]]


def pending() -> BenchmarkRecord:
    record = make_record()
    power = PowerPending(reason="a meter", guard_s=2.25, phases=round_phases(phases()))
    return BenchmarkRecord.model_validate(record.plain() | {"power": power.model_dump()})


def write_meter(path: Path, rate_hz: float, lag_s: float, noise_w: float = 0.1) -> Path:
    """A CSV as a meter's logger writes it: 5 W idle, 12 W at work, its own clock and lag."""
    rng = np.random.default_rng(3)
    step = min(1 / rate_hz, 0.01)
    at = np.arange(-90.0, 110.0, step)
    load = np.full(len(at), 5.0)
    for start, end in busy_intervals(phases()):
        load[(at >= start) & (at < end)] = 12.0
    shown, value = np.empty(len(at)), 5.0
    for place, watts in enumerate(load):
        value += (watts - value) * (1 - np.exp(-step / lag_s)) if lag_s else watts - value
        shown[place] = value
    every = max(round(1 / rate_hz / step), 1)
    rows = [
        f"{1.7e9 + AHEAD_S + t:.3f},{w + noise_w * rng.standard_normal():.3f}"
        for t, w in zip(at[::every], shown[::every], strict=True)
    ]
    path.write_text("time,power_w\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(("rate_hz", "lag_s"), [(100.0, 0.0), (10.0, 0.3)])
def test_a_meter_gives_the_record_its_energy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rate_hz: float, lag_s: float
) -> None:
    meter = write_meter(tmp_path / "meter.csv", rate_hz, lag_s)
    record, output = tmp_path / "r.json", tmp_path / "r2.json"
    write_record(pending(), record)
    words = ["power", "import", str(meter), "--record", str(record), "-o", str(output)]
    assert main([*words, "--scope", "board"]) == 0, capsys.readouterr()
    out, err = capsys.readouterr()
    assert out.startswith("Valid") and f"next: edgekd report {output}" in err
    power = read_record(output).power
    assert isinstance(power, PowerRecord) and power.engine is not None
    assert power.synchronised is not None and power.idle is not None
    assert power.engine.mean_w.value == pytest.approx(12.0, rel=0.01)
    assert power.idle.mean_w.value == pytest.approx(5.0, rel=0.01)
    assert power.sensor.scope == "board" and power.status == "measured"
    # the meter's first sample lies 90 s before the first call
    assert power.synchronised.offset_s == pytest.approx(90.0, abs=1 / rate_hz + 0.1)
    checks = {check.name: check.status for check in read_record(output).checks}
    assert checks["synchronised"] == checks["power_windows"] == "pass"
    assert checks["outputs_right"] == "pass"  # what was judged before stays


def test_a_lag_that_is_longer_than_the_guard_allows_is_told(tmp_path: Path) -> None:
    meter = write_meter(tmp_path / "meter.csv", 10.0, 2.0)
    found = add_meter(pending(), read_power_file(meter, scope="wall"), "meter.csv")
    failed = {check.name: check.detail for check in found.failed()}
    assert "the guard of 2.25 s is shorter than five times the lag" in failed["power_windows"]
    assert not found.valid


def test_a_meter_that_saw_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    rows = [f"{1.7e9 + 0.1 * n:.1f},{8 + rng.standard_normal():.3f}" for n in range(3000)]
    meter = tmp_path / "m.csv"
    meter.write_text("time,power_w\n" + "\n".join(rows) + "\n")
    record, output = tmp_path / "r.json", tmp_path / "r2.json"
    write_record(pending(), record)
    words = ["power", "import", str(meter), "--record", str(record), "-o", str(output)]
    assert main([*words, "--scope", "wall"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("error:") == 1
    assert "not synchronised" in err and not output.exists()


def test_a_record_that_waits_for_no_meter_is_refused(tmp_path: Path) -> None:
    meter = write_meter(tmp_path / "meter.csv", 10.0, 0.0)
    with pytest.raises(InputError, match="waits for no meter"):
        add_meter(make_record(), read_power_file(meter, scope="wall"), "meter.csv")
    assert json.loads(json.dumps(pending().plain()))["power"]["status"] == "pending"
