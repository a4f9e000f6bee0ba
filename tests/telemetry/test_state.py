"""The state of a machine, what changed between two, and what a look costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from edgekd.contracts.board import Absent
from edgekd.telemetry import state
from edgekd.telemetry.state import State, StateReader, StateWatch, compare, read_state
from tests.helpers import roots
from tests.helpers.roots import BOARDS, put, put_cooling, put_program, put_zones


def test_the_state_of_an_orin_nx(tmp_path: Path) -> None:
    roots.orin_nx(tmp_path)
    found = read_state(tmp_path)
    assert found.power_mode == "25W"
    assert found.cpu_mhz == {f"cpu{n}": 729.6 for n in range(8)}
    assert found.cpu_max_mhz == {f"cpu{n}": 1984.0 for n in range(8)}
    assert (found.gpu_mhz, found.gpu_min_mhz, found.gpu_max_mhz) == (306.0, 306.0, 918.0)
    assert found.fans == {"pwmfan pwm1": 65.0, "pwm_tach rpm": 1636.0}
    assert found.temperatures_c == {"cpu-thermal": 49.187, "gpu-thermal": 47.5}, "-256 is off"
    assert found.throttling == [] and found.emc_mhz is None
    assert "needs root" in found.absent["emc_mhz"]
    assert State.model_validate_json(found.model_dump_json()) == found
    look = StateReader(tmp_path).read(whole=False)
    assert look.cpu_mhz == found.cpu_mhz and look.throttling == []
    assert look.power_mode is None and look.absent["power_mode"] == look.absent["governors"]
    assert look.absent["governors"] == "looked at before and after alone"


def test_the_gpu_of_thor_is_not_its_decoder_and_its_memory_is_told(tmp_path: Path) -> None:
    roots.thor(tmp_path)
    found = read_state(tmp_path)
    assert (found.gpu_mhz, found.gpu_max_mhz, found.emc_mhz) == (314.0, 1575.0, 4266.0)


def test_an_empty_root_gives_reasons_and_no_zeros(tmp_path: Path) -> None:
    found = read_state(tmp_path)
    empty = {name: value for name, value in found.model_dump().items() if value is None}
    assert set(empty) == set(found.absent) == set(State.model_fields) - {"absent", "at_s"}
    assert compare(found, read_state(tmp_path)) == {}, "nothing can be told here"


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    roots.orin_nx(tmp_path)
    put_zones(tmp_path, {"cpu-thermal": 50000, "cpu-thermal ": 51000})
    cores = "sys/devices/system/cpu"
    put(tmp_path, {"sys/class/thermal/thermal_zone2/temp": "",
                   f"{cores}/cpu7/cpufreq/scaling_cur_freq": "<unknown>\n"})  # fmt: skip
    reader = StateReader(tmp_path)
    (tmp_path / cores / "cpu6/cpufreq/scaling_cur_freq").unlink()
    found = reader.read()
    assert found.temperatures_c == {"cpu-thermal": 50.0, "cpu-thermal (thermal_zone1)": 51.0}
    assert found.cpu_mhz is not None and set(found.cpu_mhz) == {f"cpu{n}" for n in range(6)}


def changed(
    tmp_path: Path, board: str, change: Callable[[Path], None], *, during: bool = False
) -> dict[str, list[str]]:
    BOARDS[board](tmp_path)
    reader = StateReader(tmp_path)
    before = reader.read()
    change(tmp_path)
    seen = [reader.read(whole=False)]
    if during:  # and it went away again
        BOARDS[board](tmp_path / "again")
        return compare(before, read_state(tmp_path / "again"), seen)
    return compare(before, read_state(tmp_path), seen)


def test_nothing_happened(tmp_path: Path) -> None:
    nothing: dict[str, list[str]] = {"throttled": [], "mode_changed": [], "clocks_changed": []}
    assert changed(tmp_path / "a", "orin_nx", lambda root: None) == nothing
    del nothing["mode_changed"]
    assert changed(tmp_path / "b", "pi5", lambda root: None) == nothing
    assert changed(tmp_path / "c", "x86", lambda root: None) == nothing


def test_a_governor_at_work_is_no_change_of_settings(tmp_path: Path) -> None:
    def work(root: Path) -> None:
        put(root, {"sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1984000,
                   "sys/class/devfreq/17000000.gpu/cur_freq": 918000000})  # fmt: skip

    assert changed(tmp_path, "orin_nx", work)["clocks_changed"] == []


CORE0 = "sys/devices/system/cpu/cpu0/cpufreq"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({f"{CORE0}/scaling_max_freq": 1190400},
         "highest clock of cpu0 went from 1984 to 1190.4 MHz"),
        ({f"{CORE0}/scaling_min_freq": 1984000,
          "sys/devices/system/cpu/cpu1/cpufreq/scaling_min_freq": 1984000},
         "lowest clock of cpu0, cpu1 went from 729.6 to 1984 MHz"),
        ({f"{CORE0}/scaling_governor": "performance\n"},
         "governor of cpu0 went from schedutil to performance"),
        ({"sys/class/devfreq/17000000.gpu/max_freq": 612000000},
         "highest GPU clock went from 918 to 612 MHz"),
        ({"sys/class/devfreq/17000000.gpu/min_freq": 918000000},
         "lowest GPU clock went from 306 to 918 MHz"),
    ],
)  # fmt: skip
def test_limits_that_changed_are_named(
    tmp_path: Path, files: dict[str, str | int], words: str
) -> None:
    told = changed(tmp_path, "orin_nx", lambda root: put(root, files))
    assert told["clocks_changed"] == [words]
    assert told["throttled"] == told["mode_changed"] == []


def test_cores_that_went_off_and_another_mode(tmp_path: Path) -> None:
    def other_mode(root: Path) -> None:
        put(root, {"var/lib/nvpmodel/status": "pmode:0001"})
        for core in (6, 7):
            (root / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_max_freq").unlink()

    told = changed(tmp_path, "orin_nx", other_mode)
    assert told["mode_changed"] == ["the power mode went from 25W to 10W"]
    assert told["clocks_changed"] == ["highest clock of cpu6, cpu7 went from 1984 to off MHz"]


INA = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"


@pytest.mark.parametrize(
    ("board", "change", "words"),
    [
        ("orin_nx", lambda r: put_cooling(r, {"pwm-fan": 9, "cpu-throttle-alert": 1}),
         "cpu-throttle-alert: in 1 of 2 looks, first after 0 s"),
        ("orin_nx", lambda r: put(r, {f"{INA}/curr1_crit_alarm": 1}),
         "VDD_IN over its critical current limit: in 1 of 2 looks"),
        ("orin_nx", lambda r: put(r, {f"{INA}/curr3_max_alarm": 1}),
         "VDD_SOC over its average current limit: in 1 of 2 looks"),
        ("thor", lambda r: put(r, {"sys/class/thermal/cooling_device4/cur_state": 18}),
         "devfreq-gpu-gpc-0: in 1 of 2 looks"),
        ("pi5", lambda r: put(r, {"sys/class/hwmon/hwmon3/in0_lcrit_alarm": 1}),
         "under-voltage (rpi_volt): in 1 of 2 looks"),
    ],
)  # fmt: skip
def test_throttling_in_between_is_seen(
    tmp_path: Path, board: str, change: Callable[[Path], None], words: str
) -> None:
    told = changed(tmp_path, board, change, during=True)
    assert len(told["throttled"]) == 1 and told["throttled"][0].startswith(words)


def test_a_fan_or_a_warm_surface_is_no_throttling(tmp_path: Path) -> None:
    told = changed(tmp_path, "orin_nx", lambda root: put_cooling(
        root, {"pwm-fan": 4, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0,
               "hot-surface-alert": 1}))  # fmt: skip
    assert told["throttled"] == []


def test_counters_of_x86_count_what_is_new(tmp_path: Path) -> None:
    file = "sys/devices/system/cpu/cpu2/thermal_throttle/core_throttle_count"
    told = changed(tmp_path, "x86", lambda root: put(root, {file: 10}))
    assert told["throttled"] == ["cpu2 core_throttle_count rose by 3"]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("0x0", "0x0", []),
        ("0x0", "0x50000", ["under-voltage, kept since then (get_throttled)",
                            "throttled, kept since then (get_throttled)"]),
        ("0x0", "0x50005", ["under-voltage (get_throttled): in 1 of 3 looks, first after 0 s",
                            "throttled (get_throttled): in 1 of 3 looks, first after 0 s",
                            "under-voltage, kept since then (get_throttled)",
                            "throttled, kept since then (get_throttled)"]),
        ("0x50000", "0x50000", None),
        ("0x50000", "0xd0000", ["soft temperature limit, kept since then (get_throttled)"]),
        ("0x80008", "0x80008", ["soft temperature limit (get_throttled): in 1 of 3 looks, "
                                "first after 0 s"]),
    ],
)  # fmt: skip
def test_what_a_pi_keeps_counts_when_it_is_new(
    tmp_path: Path, before: str, after: str, expected: list[str] | None
) -> None:
    roots.pi5(tmp_path, flags=before)
    reader = StateReader(tmp_path)
    first, seen = reader.read(), [reader.read(whole=False)] * 2
    put(tmp_path, {"flags": f"throttled={after}\n"})
    assert compare(first, reader.read(), seen).get("throttled") == expected


@pytest.mark.parametrize(
    "answer",
    ['echo "error=1 error_msg=\\"Command not registered\\""', "echo throttled=", "exit 0",
     "echo VCHI initialization failed >&2; exit 255", "echo throttled=0xzz"],
)  # fmt: skip
def test_an_answer_that_is_no_value_is_none(tmp_path: Path, answer: str) -> None:
    put_program(tmp_path, "vcgencmd", answer)
    with pytest.raises(Absent, match="gives no value"):
        state.ask_pi(tmp_path)
    found = read_state(tmp_path)
    assert found.pi_throttled is None and found.throttling is None


def test_a_watch_keeps_looking_and_asks_processes_at_its_ends_alone(tmp_path: Path) -> None:
    roots.pi5(tmp_path)
    calls = tmp_path / "calls"
    put_program(tmp_path, "vcgencmd", f"echo x >> {calls}; cat {tmp_path}/flags")
    with StateWatch(tmp_path, interval_s=0.02) as watch:
        time.sleep(0.1)
        put_zones(tmp_path, {"cpu-thermal": 80000})
        put(tmp_path, {"flags": "throttled=0x80008\n"})
        end = time.monotonic() + 5
        while not (watch.during and watch.during[-1].temperatures_c == {"cpu-thermal": 80.0}):
            assert time.monotonic() < end
            time.sleep(0.01)
        assert len(calls.read_text().split()) == 1
    assert len(calls.read_text().split()) == 2
    assert watch.during[0].temperatures_c == {"cpu-thermal": 55.4}
    assert watch.after is not None and watch.after.pi_throttled == 0x80008
    assert any("soft temperature limit" in text for text in watch.changes()["throttled"])
    assert not watch._thread.is_alive()


def test_a_watch_ends_with_an_exception(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), StateWatch(tmp_path, interval_s=60) as watch:
        raise ValueError("mine")
    assert watch.after is not None and not watch._thread.is_alive()


@pytest.mark.parametrize("name", BOARDS)
def test_a_look_a_second_costs_less_than_half_a_percent_of_a_core(
    name: str, tmp_path: Path
) -> None:
    BOARDS[name](tmp_path)
    reader = StateReader(tmp_path)
    costs = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(10):
            reader.read(whole=False)
        costs.append((time.thread_time() - start) / 10)
    assert min(costs) < 0.005 / 5, "a board is some five times as slow"


def test_an_alarm_that_was_on_before_holds_the_machine_back_all_the_same(tmp_path: Path) -> None:
    """Alarms tell of the moment: INA3221's flags and a throttle alert go off by themselves."""
    roots.orin_nx(tmp_path)
    put(tmp_path, {f"{INA}/curr1_crit_alarm": 1})
    put_cooling(tmp_path, {"cpu-throttle-alert": 1})
    reader = StateReader(tmp_path)
    before, seen = reader.read(), [reader.read(whole=False)]
    told = compare(before, reader.read(), seen)["throttled"]
    assert [text.partition(": ")[2] for text in told] == ["in 2 of 2 looks, first after 0 s"] * 2
    assert "alarms that were on before are not counted" not in (compare.__doc__ or "").lower()


@pytest.mark.parametrize(("board", "knows"), [("orin_nx", False), ("x86", True)])
def test_looks_that_ended_pass_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, board: str, knows: bool
) -> None:
    """Counters since boot still tell; without them nobody knows."""
    BOARDS[board](tmp_path)
    real = StateReader.read

    def read(self: StateReader, *, whole: bool = True) -> State:
        if not whole:
            raise RuntimeError("mine")
        return real(self, whole=whole)

    monkeypatch.setattr(StateReader, "read", read)
    with StateWatch(tmp_path, interval_s=0.01) as watch:
        watch._thread.join(5)
        assert "RuntimeError: mine" in watch.failure, "while it runs"
    changes = watch.changes()
    assert ("throttled" in changes) == knows
    assert changes["clocks_changed"] == []


def test_looks_that_ended_keep_what_they_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots.orin_nx(tmp_path)
    put(tmp_path, {f"{INA}/curr1_crit_alarm": 1})
    real, left = StateReader.read, iter(range(2))

    def read(self: StateReader, *, whole: bool = True) -> State:
        if not whole and next(left, None) is None:
            raise RuntimeError("mine")
        return real(self, whole=whole)

    monkeypatch.setattr(StateReader, "read", read)
    with StateWatch(tmp_path, interval_s=0.01) as watch:
        watch._thread.join(5)
    assert watch.failure and "VDD_IN over its critical" in watch.changes()["throttled"][0]
