"""The sampler on real pipes: what a sensor does wrong is in the samples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from edgekd.telemetry.rails import Total
from edgekd.telemetry.sampler import Sampler, Samples
from edgekd.telemetry.sensors import tegrastats
from edgekd.telemetry.sensors._base import Polled, Reading, SensorInfo, SensorLost, Unavailable
from tests.helpers.fake_tegrastats import make_tegrastats

INFO = SensorInfo("made-up", "board", ("VIN",))
TOTAL = Total(("VDD_IN",), "module")


def line(now: int, mean: int) -> str:
    return (f"04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) CPU [10%@1728] GR3D_FREQ 9%@[1018] "
            f"tj@49.5C VDD_IN {now}mW/{mean}mW VDD_SOC 2308mW/2308mW")  # fmt: skip


LINES = [line(6000 + 10 * n, round(6000 + 5 * n)) for n in range(400)]


def run(tmp_path: Path, seconds: float, interval_s: float = 0.02, **faults: object) -> Samples:
    make_tegrastats(tmp_path / "usr/bin", faults.pop("lines", LINES), **faults)  # type: ignore[arg-type]
    program = str(tmp_path / "usr/bin/tegrastats")
    sensor = tegrastats._Tegrastats(program, TOTAL)
    with Sampler(sensor, interval_s) as sampler:
        end = time.monotonic() + 20  # an emulated Python takes seconds to begin
        while not (sampler.samples.readings or sampler.samples.lost) and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(seconds)
    return sampler.samples


def gone(tmp_path: Path) -> bool:
    """Whether all of a made-up tegrastats ends within some seconds: a kill takes its time."""
    end = time.monotonic() + 10
    while running(tmp_path) and time.monotonic() < end:
        time.sleep(0.05)
    return not running(tmp_path)


def running(tmp_path: Path) -> bool:
    """Whether anything of a made-up tegrastats is left."""
    said = subprocess.run(
        ["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False
    )
    return bool(said.stdout.strip())


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_samples_of_a_pipe(tmp_path: Path, end: bytes) -> None:
    samples = run(tmp_path, 1.0, end=end)
    assert samples.faults() == [] and 3 <= len(samples.readings) <= 60
    at, watts = samples.power()
    assert (np.diff(at) > 0).all()
    np.testing.assert_allclose(watts, 6 + 0.01 * np.arange(len(watts)))
    assert samples.achieved_s == pytest.approx(float(np.median(np.diff(at))))
    assert samples.achieved_s > 0.01, "never faster than asked for"
    assert not running(tmp_path)


def test_pieces_of_lines(tmp_path: Path) -> None:
    """Written byte by byte and in halves: the same lines, each once."""
    samples = run(
        tmp_path, 1.0, each="say(line[:7]); time.sleep(0.003); say(line[7:90])\nline = line[90:]"
    )
    assert samples.faults() == [] and len(samples.readings) > 10
    np.testing.assert_allclose(samples.power()[1], 6 + 0.01 * np.arange(len(samples.readings)))


def test_lines_that_come_at_once_keep_their_order_in_time(tmp_path: Path) -> None:
    each = """held = globals().get('held', b'') + line + b'\\n'
if number % 8 < 7:
    continue
line, held = held[:-1], b''"""
    samples = run(tmp_path, 1.5, each=each)
    at, watts = samples.power()
    assert len(at) >= 16 and (np.diff(at) > 0).all()
    np.testing.assert_allclose(watts, 6 + 0.01 * np.arange(len(watts)))
    inner = np.diff(at)[8:15]
    assert inner.max() / inner.min() < 4, "spread since the burst before; as they came, 10^4"


def test_foreign_lines_are_left_out(tmp_path: Path) -> None:
    each = "if number % 3 == 0: say(b'Sun Apr 19\\n{\"fps\": 3}\\n\\0\\0\\0\\n')"
    samples = run(tmp_path, 0.8, each=each)
    assert samples.faults() == []
    np.testing.assert_allclose(samples.power()[1], 6 + 0.01 * np.arange(len(samples.readings)))
    assert samples.dropped.get("foreign", 0) >= 2, "dropped and counted"


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ({"lines": LINES[:10]}, "the sensor was lost: .*tegrastats ended with 0"),
        ({"each": "if number == 10: os._exit(7)"}, "ended with 7"),
        ({"each": "if number == 10: os.kill(os.getpid(), 9)"}, "ended with -9"),
        ({"each": "if number == 10: time.sleep(1.5)"}, r"said nothing for [1-9]"),
        ({"each": "if number == 10: time.sleep(60)"}, r"said nothing for [1-9]"),
        (
            {"lines": [*LINES[:10], *LINES[200:210], line(9000, 9000), *LINES[:200]]},
            "began again 2 times",
        ),
        (
            {"lines": [*LINES[:10], *(text.partition(" VDD_IN")[0] for text in LINES)]},
            r"\d+ readings without power: .*needs root",
        ),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, faults: dict[str, object], words: str) -> None:
    samples = run(tmp_path, 2.2, **faults)
    assert any(re.search(words, fault) for fault in samples.faults()), samples.faults()
    assert len(samples.power()[0]) >= 10, "what was read before is kept"
    assert not running(tmp_path)


@pytest.mark.parametrize("listens", [False, True])
def test_who_does_not_listen_is_ended(tmp_path: Path, listens: bool) -> None:
    """The child never does, and has a name of its own; the parent may, and be gone before it."""
    child = shutil.copy(shutil.which("sleep") or "", tmp_path / "sleep")
    setup = (
        "import subprocess; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"subprocess.Popen([{str(child)!r}, '77'])\n"
        + ("signal.signal(signal.SIGTERM, signal.SIG_DFL)" if listens else "")
    )
    samples = run(tmp_path, 0.3, setup=setup)
    assert samples.readings
    assert gone(tmp_path)


def test_a_group_that_may_not_be_ended_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper that became sudo belongs to root; it ends when it writes to nobody."""

    def refuse(group: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(tegrastats.os, "killpg", refuse)
    assert run(tmp_path, 0.1).readings
    assert gone(tmp_path)


def test_a_process_that_closes_its_output_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tegrastats, "_END_S", 0.3)
    samples = run(tmp_path, 1.0, each="if number == 10: os.close(1); time.sleep(77)")
    assert samples.lost.endswith("closed its output and did not end")
    assert gone(tmp_path)


class Made:
    """A sensor of readings that a function gives."""

    info = INFO

    def __init__(self, ask: object) -> None:
        self._ask = ask

    def open(self, interval_s: float) -> Polled:
        return Polled(self._ask, interval_s)  # type: ignore[arg-type]


def test_what_the_caller_raises_is_raised_again() -> None:
    def each(reading: Reading) -> None:
        raise ZeroDivisionError("mine")

    made = Made(lambda: Reading(time.monotonic(), 1.0))
    with pytest.raises(ZeroDivisionError, match="mine"), Sampler(made, 0.01, each) as sampler:
        end = time.monotonic() + 5
        while sampler.failure is None and time.monotonic() < end:
            time.sleep(0.01)
        assert isinstance(sampler.failure, ZeroDivisionError), "seen while the block runs"
    with pytest.raises(KeyError), Sampler(made, 0.01, each):
        time.sleep(0.05)
        raise KeyError("the block's own comes first")


def test_a_mean_that_ends_late_is_a_stall_and_a_steady_one_is_none() -> None:
    """Readings stamped at the middle of what they are the mean over; by a clock of their own."""
    begin = time.monotonic()
    ends = iter([0.1, 0.2, 0.3, 2.3, 2.4])
    before = [0.0]

    def ask() -> Reading:
        end = next(ends, None)
        if end is None:
            raise SensorLost("over")
        over, before[0] = end - before[0], end
        return Reading(begin + end - over / 2, 1.0, over_s=over)

    with Sampler(Made(ask), 0.01) as sampler:
        deadline = time.monotonic() + 5
        while not sampler.samples.lost and time.monotonic() < deadline:
            time.sleep(0.01)
    samples = sampler.samples
    assert len(samples.readings) == 5, "their order holds"
    assert [(a - begin, b - begin) for a, b in samples.stalls] == [pytest.approx((0.3, 2.3))]


def test_a_restart_has_its_time(tmp_path: Path) -> None:
    lines = [*LINES[:10], line(9000, 9000), *[line(9000, 9000)] * 60]
    samples = run(tmp_path, 0.6, lines=lines)
    assert samples.restarts == 1 == len(samples.restarted_s)
    assert samples.readings[9].at_s < samples.restarted_s[0] <= samples.readings[-1].at_s
    moved = samples.since(samples.readings[0].at_s)
    assert moved.readings[0].at_s == 0 and moved.restarts == 1
    assert moved.restarted_s[0] == samples.restarted_s[0] - samples.readings[0].at_s


def test_a_moment_has_one_reading() -> None:
    with Sampler(Made(lambda: Reading(5.0, 1.0)), 0.01) as sampler:
        time.sleep(0.1)
    assert len(sampler.samples.readings) == 1


def test_polling_keeps_its_grid() -> None:
    now, slept, asked = [0.0], [], []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    def ask() -> Reading:
        asked.append(now[0])
        now[0] += 0.35 if len(asked) == 3 else 0.01
        return Reading(now[0], 1.0)

    stream = Polled(ask, 0.1, lambda: now[0], sleep)
    while len(asked) < 6:
        stream.read(0.03)
    np.testing.assert_allclose(asked, [0, 0.1, 0.2, 0.6, 0.7, 0.8])
    assert max(slept) <= 0.03 + 1e-9


def test_the_sampler_takes_little_of_a_core(tmp_path: Path) -> None:
    """At 10 Hz from a process that replays tegrastats; the bound is 1 % of a core. The least of
    three windows counts: what other tests left running in this process is not the sampler's. An
    emulated processor is ten times slower."""
    bound = 0.1 if os.environ.get("EDGEKD_EMULATED") else 0.01
    make_tegrastats(tmp_path / "usr/bin", LINES)
    sensor = tegrastats._Tegrastats(str(tmp_path / "usr/bin/tegrastats"), TOTAL)
    shares = []
    with Sampler(sensor, 0.1) as sampler:
        time.sleep(0.5)
        while len(shares) < 3 and min(shares, default=1.0) >= bound:
            before, start = time.process_time(), time.monotonic()
            time.sleep(3.0)
            shares.append((time.process_time() - before) / (time.monotonic() - start))
    assert len(sampler.samples.readings) > 20 and min(shares) < bound, shares


def test_a_sensor_that_cannot_be_found_is_not_opened(tmp_path: Path) -> None:
    assert isinstance(tegrastats.find(tmp_path), Unavailable)
    assert not list(tmp_path.iterdir())
