"""CPU time of others, clocks and memory from made-up counters."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.telemetry.process import (
    CpuCounters,
    other_cpu_share,
    peak_rss_mib,
    read_cpu,
    read_frequencies,
)

SELF = "4711 (a b) c) R 1 1 1 0 -1 4194304 100 0 0 0 {} {} 0 0 20 0 1 0 171761 3133440 413 1 0"


def counters(root: Path, stat: str, user: int, system: int) -> None:
    (root / "proc/self").mkdir(parents=True, exist_ok=True)
    (root / "proc/stat").write_text(stat)
    (root / "proc/self/stat").write_text(SELF.format(user, system))


def test_counters_are_read_by_hand(tmp_path: Path) -> None:
    # user 100, nice 10, system 20, idle 5000, iowait 7, irq 1, softirq 2, steal 4, guest 50
    stat = "cpu  100 10 20 5000 7 1 2 4 50 0\ncpu0 1 1\ncpu1 1 1\nintr 5\n"
    counters(tmp_path, stat, user=30, system=5)
    found = read_cpu(tmp_path, clock=lambda: 12.5)
    assert found == CpuCounters(at_s=12.5, busy_s=1.37, own_s=0.35, cores=2)


@pytest.mark.parametrize(
    "stat", ["", "cpu  0 0 0 0 0 0 0 0 0 0\ncpu0 0\n", "cpu a b\n", "cpu  1 2 3 4 5 6 7 8\n"]
)
def test_counters_that_say_nothing_are_none(tmp_path: Path, stat: str) -> None:
    counters(tmp_path, stat, 1, 1)
    assert read_cpu(tmp_path) is None
    assert read_cpu(tmp_path / "nowhere") is None


def test_share_of_others_by_hand() -> None:
    # 10 s on 2 cores = 20 s of CPU time; 13 s busy, of which 9 s were ours
    start = CpuCounters(at_s=100, busy_s=50, own_s=3, cores=2)
    end = CpuCounters(at_s=110, busy_s=63, own_s=12, cores=2)
    assert other_cpu_share(start, end) == pytest.approx(4 / 20)


def test_share_needs_time_between() -> None:
    moment = CpuCounters(1, 1, 1, 1)
    with pytest.raises(ValueError, match="later"):
        other_cpu_share(moment, moment)


@given(st.floats(0.01, 1e4), st.floats(0, 1e4), st.floats(0, 1e4), st.integers(1, 64))
def test_share_is_always_between_0_and_1(
    elapsed_s: float, busy_s: float, own_s: float, cores: int
) -> None:
    start = CpuCounters(0, 0, 0, cores)
    end = CpuCounters(elapsed_s, busy_s, own_s, cores)
    assert 0 <= other_cpu_share(start, end) <= 1


def test_frequencies_follow_the_number_of_the_core_and_are_mhz(tmp_path: Path) -> None:
    for core in (0, 2, 10):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(f"{1000000 + core * 1000}\n")
    assert read_frequencies(tmp_path) == [1000.0, 1002.0, 1010.0]
    assert read_frequencies(tmp_path / "nowhere") is None


def test_one_unreadable_core_makes_the_clocks_unreadable(tmp_path: Path) -> None:
    for core, text in enumerate(("1000000", "<unknown>")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq"
        folder.mkdir(parents=True)
        (folder / "scaling_cur_freq").write_text(text)
    assert read_frequencies(tmp_path) is None


def test_peak_memory_is_the_high_water_mark_in_mib(tmp_path: Path) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmHWM:\t  204800 kB\nVmRSS:\t 1 kB\n")
    assert peak_rss_mib(tmp_path) == 200.0
    assert peak_rss_mib(tmp_path / "nowhere") > 5
