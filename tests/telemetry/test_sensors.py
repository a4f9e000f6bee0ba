"""Every sensor on made-up roots: what it reads, what it adds up, and why it gives nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.telemetry.power import PowerUnavailable, find_power, find_sensors
from edgekd.telemetry.sensors import ina238, ina3221, pmic, rapl, tegrastats
from edgekd.telemetry.sensors._base import Reading, SensorLost, Unavailable
from tests.helpers.fake_tegrastats import make_tegrastats

SUPPLIES = ("3V7_WL_SW", "3V3_SYS", "1V8_SYS", "DDR_VDD2", "DDR_VDDQ", "1V1_SYS", "0V8_SW",
            "VDD_CORE", "3V3_DAC", "3V3_ADC", "0V8_AON", "HDMI")  # fmt: skip


def adc_text(*without: str) -> str:
    """Supply n draws n + 1 A at 2 V; what the chip does not tell of those ``without``."""
    kept = [(n, name) for n, name in enumerate(SUPPLIES) if name not in without]
    rows = [f" {name}_A current({n})={n + 1}.00000000A" for n, name in kept]
    rows += [f" {name}_V volt({n + 12})=2.00000000V" for n, name in kept]
    return "\n".join([*rows, "     EXT5V_V volt(24)=5.06788000V", ""])


def write(root: Path, name: str, text: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def hwmon(root: Path, chip: str, number: int, rails: dict[int, tuple[str, int, int]]) -> Path:
    """An INA3221 of JetPack 5 and later: channel -> name, mV, mA; with the sum that is no rail."""
    folder = root / f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    for channel, (name, millivolts, milliamperes) in rails.items():
        write(folder, f"in{channel}_label", f"{name}\n")
        write(folder, f"in{channel}_input", f"{millivolts}\n")
        write(folder, f"curr{channel}_input", f"{milliamperes}\n")
    write(folder, "in7_label", "sum of shunt voltages\n")
    write(folder, "in7_input", "9\n")
    write(folder, "samples", "64\n")
    write(folder, "update_interval", "422\n")
    return folder


def executable(root: Path, name: str, text: str) -> Path:
    path = write(root, f"usr/bin/{name}", f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def take(sensor: object, count: int = 1) -> list[Reading]:
    stream = sensor.open(0.01)  # type: ignore[attr-defined]
    found: list[Reading] = []
    try:
        while len(found) < count:
            found += stream.read(5.0)
    finally:
        stream.close()
    return found


def test_ina3221_of_an_orin(tmp_path: Path) -> None:
    rails = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 400)}
    folder = hwmon(tmp_path, "1-0040", 3, rails)
    sensor = ina3221.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    info = sensor.info
    assert (info.scope, info.total, info.resolution_w, info.lag_s) == (
        "module",
        ("VDD_IN",),
        0.04,
        0.45,
    )
    assert info.config == {
        "1-0040.samples": "64",
        "1-0040.update_interval": "422",
        "lag": "measured on an Orin Nano with JetPack 6 alone",
    }
    reading = take(sensor)[0]
    assert reading.watts == 6.0, "the parts are in it"
    assert reading.rails_w == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 1.5, "VDD_SOC": 2.0}
    write(folder, "curr2_input", "broken")
    assert take(sensor)[0].watts == 6.0, "a part that fails is not the total"
    write(folder, "curr1_input", "")
    reading = take(sensor)[0]
    assert reading.watts is None and "rail VDD_IN gives nothing" in reading.why
    write(folder, "curr1_input", "-100")
    assert take(sensor)[0].watts == -0.5
    (folder / "curr1_input").unlink()
    with pytest.raises(SensorLost, match="rail VDD_IN is gone"):
        take(sensor)


def test_ina3221_of_an_agx_orin_has_two_chips_and_no_total_rail(tmp_path: Path) -> None:
    gpu, cpu, none = ("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 100), ("NC", 0, 0)
    hwmon(tmp_path, "1-0040", 1, {1: gpu, 2: cpu, 3: ("VIN_SYS_5V0", 5000, 900)})
    hwmon(tmp_path, "1-0041", 4, {1: none, 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: none})
    sensor = ina3221.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    reading = take(sensor)[0]
    assert reading.watts == 4 + 2 + 4.5, "VDDQ is behind VIN_SYS_5V0"
    assert "NC" not in reading.rails_w and reading.rails_w["VDDQ_VDD2_1V8AO"] == 0.5
    assert sensor.info.lag_s is None and "lag" not in sensor.info.config
    assert sensor.info.resolution_w == 0.5745, "0.4, 0.4 and 0.1 W in squares"


@pytest.mark.parametrize(
    ("setting", "text", "words"),
    [
        ("samples", "4", "1-0040.samples is 4, and it was measured with 64"),
        ("update_interval", "1596", "1-0040.update_interval is 1596 ms, and it was measured with"),
        ("update_interval", "?", "update_interval is ? ms"),
    ],
)
def test_another_averaging_has_another_lag(
    tmp_path: Path, setting: str, text: str, words: str
) -> None:
    rails = {1: ("VDD_IN", 5000, 1200), 2: ("VDD_CPU_GPU_CV", 5000, 300), 3: ("VDD_SOC", 5000, 400)}
    write(hwmon(tmp_path, "1-0040", 3, rails), setting, f"{text}\n")
    sensor = ina3221.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert sensor.info.lag_s is None and sensor.info.resolution_w == 0.04
    assert (
        sensor.info.config["lag"].startswith("not known: ") and words in sensor.info.config["lag"]
    )


def test_ina3221_of_jetpack_4(tmp_path: Path) -> None:
    folder = tmp_path / "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    for channel, (name, power) in enumerate(
        [("POM_5V_IN", 2000), ("POM_5V_GPU", 40), ("POM_5V_CPU", 400)]
    ):
        write(folder, f"rail_name_{channel}", name)
        write(folder, f"in_power{channel}_input", f"{power}\n")
    sensor = ina3221.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert sensor.info.scope == "board" and take(sensor)[0].watts == 2.0


@pytest.mark.parametrize(
    ("rails", "words"),
    [
        ({}, "no INA3221 is at"),
        ({1: ("VDD_CPU_GPU_CV", 5000, 1)}, "nobody knows which of the rails VDD_CPU_GPU_CV add up"),
        ({1: ("VDD_IN", 5000, "x")}, "rail VDD_IN gives nothing"),
    ],
)  # fmt: skip
def test_ina3221_that_gives_no_total(tmp_path: Path, rails: dict, words: str) -> None:  # type: ignore[type-arg]
    if rails:
        hwmon(tmp_path, "1-0040", 1, rails)
    found = ina3221.find(tmp_path)
    assert isinstance(found, Unavailable) and words in found.reason


THOR = {1: ("VDD_GPU", 12040, 640), 2: ("VDD_CPU_SOC_MSS", 12040, 960),
        3: ("VIN_SYS_5V0", 5088, 1740)}  # fmt: skip


@pytest.mark.parametrize("told_by", ["rails", "device tree"])
def test_ina238_of_thors_carrier(tmp_path: Path, told_by: str) -> None:
    assert "no INA238" in ina238.find(tmp_path).reason  # type: ignore[union-attr]
    write(tmp_path, "sys/class/hwmon/hwmon2/name", "ina238\n")
    write(tmp_path, "sys/class/hwmon/hwmon2/power1_input", "16800000\n")
    sensor = ina238.find(tmp_path)
    assert isinstance(sensor, Unavailable), "it may be on a HAT, or in a power supply"
    assert sensor.reason.startswith("there is an INA238 (hwmon2), but this is no Jetson Thor")
    if told_by == "rails":
        hwmon(tmp_path, "1-0040", 1, THOR)
    else:
        names = "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0"
        write(tmp_path, "proc/device-tree/compatible", names)
    sensor = ina238.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert sensor.info.scope == "board" and take(sensor)[0].watts == pytest.approx(16.8)
    write(tmp_path, "sys/class/hwmon/hwmon3/name", "ina238\n")
    assert "several INA238 (hwmon2, hwmon3)" in ina238.find(tmp_path).reason  # type: ignore[union-attr]


def powercap(root: Path, name: str, kind: str, energy: int, range_uj: int | None = 1000) -> Path:
    folder = root / "sys/class/powercap" / name
    write(folder, "name", f"{kind}\n")
    if range_uj is not None:
        write(folder, "max_energy_range_uj", f"{range_uj}\n")
    return write(folder, "energy_uj", f"{energy}\n")


def test_rapl_adds_packages_and_memory_and_survives_the_wrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = powercap(tmp_path, "intel-rapl:0", "package-0", 900)
    powercap(tmp_path, "intel-rapl:0:0", "core", 10**9)
    memory = powercap(tmp_path, "intel-rapl:0:1", "dram", 50)
    two = powercap(tmp_path, "intel-rapl:1", "package-1", 0)
    powercap(tmp_path, "intel-rapl:2", "psys", 10**9)
    powercap(tmp_path, "intel-rapl-mmio:0", "package-0", 10**9)
    sensor = rapl.find(tmp_path)
    assert isinstance(sensor, rapl._Rapl)
    assert sensor.info.total == ("package-0", "dram-0", "package-1")
    times = iter([10.0, 12.0, 14.0])
    monkeypatch.setattr(rapl.time, "monotonic", lambda: next(times))
    first = sensor.ask()
    assert first.watts is None and first.energy_j == 0 and "from its second" in first.why
    one.write_text("100\n")  # wrapped: 200 µJ
    memory.write_text("60\n")
    two.write_text("30\n")
    second = sensor.ask()
    assert second.energy_j == pytest.approx(240e-6) and second.watts == pytest.approx(120e-6)
    assert (second.at_s, second.over_s) == (11.0, 2.0), "a mean is that of its middle"
    assert second.rails_w["package-0"] == pytest.approx(100e-6)
    two.unlink()
    with pytest.raises(SensorLost, match="package-1 cannot be read"):
        sensor.ask()


def test_rapl_never_guesses_a_wrap(tmp_path: Path) -> None:
    counter = powercap(tmp_path, "intel-rapl:0", "package-0", 900, None)
    sensor = rapl.find(tmp_path)
    assert isinstance(sensor, rapl._Rapl)
    sensor.ask()
    counter.write_text("100\n")
    with pytest.raises(SensorLost, match="wrapped, and its range cannot be read"):
        sensor.ask()


def test_rapl_without_permission_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap(tmp_path, "intel-rapl:0", "package-0", 900)
    real = Path.read_text

    def read_text(self: Path, *given: object, **more: object) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "read_text", read_text)
    found = rapl.find(tmp_path)
    assert isinstance(found, Unavailable) and "by root alone" in found.reason


def test_pmic_is_an_estimate_and_keeps_its_sum(tmp_path: Path) -> None:
    adc = write(tmp_path, "adc", adc_text())
    executable(tmp_path, "vcgencmd", f'[ "$1" = pmic_read_adc ] && cat {adc}')
    sensor = pmic.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert sensor.info.source == "estimate" and sensor.info.scope == "board"
    total = 2 * sum(range(1, 13))
    reading = take(sensor)[0]
    assert reading.rails_w["pmic_sum"] == pytest.approx(total)
    assert reading.watts == pytest.approx(1.1327 * total + 0.6444)
    assert set(reading.rails_w) == {*SUPPLIES, "pmic_sum"}
    write(tmp_path, "adc", adc_text("HDMI", "VDD_CORE"))
    reading = take(sensor)[0]
    assert reading.watts is None, "a lost supply lowers no estimate"
    assert reading.why == "the power chip does not tell VDD_CORE, HDMI"
    assert "pmic_sum" not in reading.rails_w
    adc.unlink()
    with pytest.raises(SensorLost, match="ended with 1: 'cat: "):
        take(sensor)


def test_pmic_that_lacks_a_supply_from_the_first(tmp_path: Path) -> None:
    adc = write(tmp_path, "adc", adc_text("VDD_CORE"))
    executable(tmp_path, "vcgencmd", f"cat {adc}")
    found = pmic.find(tmp_path)
    assert isinstance(found, Unavailable)
    assert found.reason == (
        "the power chip does not tell VDD_CORE, and the estimate is of all 12 supplies"
    )


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("cat {adc}; echo mailbox >&2; exit 3", "ended with 3: 'mailbox'"),
        ("echo 'error=1 error_msg=\"busy\"'; cat {adc}", "error=1 error_msg="),
    ],
)
def test_an_answer_with_an_error_is_none(tmp_path: Path, answer: str, words: str) -> None:
    adc = write(tmp_path, "adc", adc_text())
    executable(tmp_path, "vcgencmd", f"cat {adc}")
    sensor = pmic.find(tmp_path)
    executable(tmp_path, "vcgencmd", answer.format(adc=adc))
    with pytest.raises(SensorLost, match=words):
        take(sensor)


def test_pmic_on_the_real_sample(test_data: Path) -> None:
    text = (test_data / "telemetry" / "samples" / "pi5_pmic_read_adc.txt").read_text()
    powers = pmic.read_adc(text)
    assert len(powers) == 12 and "EXT5V" not in powers
    assert sum(powers.values()) == pytest.approx(10.80, abs=0.005)


@pytest.mark.parametrize(
    "answer",
    [
        'echo error=1 error_msg="Command not registered"',
        "echo VCHI initialization failed",
        "exit 255",
    ],
)
def test_pmic_of_another_pi_is_unavailable(tmp_path: Path, answer: str) -> None:
    executable(tmp_path, "vcgencmd", answer)
    found = pmic.find(tmp_path)
    assert isinstance(found, Unavailable) and "only a Raspberry Pi 5" in found.reason


LINE = (
    "04-19-2026 01:31:10 RAM 519/7607MB (lfb 61x4MB) CPU [10%@1728,30%@729,off] EMC_FREQ 0%@3199 "
    "GR3D_FREQ 99%@[1018] VIC off cpu@48.9C tj@49.5C VDD_IN 5971mW/5971mW VDD_SOC 2308mW/2308mW"
)


def test_tegrastats_as_a_process(tmp_path: Path) -> None:
    make_tegrastats(tmp_path / "usr/bin", [LINE] * 50)
    sensor = tegrastats.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert sensor.info.total == ("VDD_IN",) and sensor.info.scope == "module"
    found = take(sensor, 3)
    assert [item.watts for item in found] == [5.971] * 3
    assert found[0].clocks_mhz == {"emc": 3199, "gr3d": 1018, "cpu": 1728}
    assert (
        found[0].loads == {"emc": 0, "gr3d": 99, "cpu": 20}
        and found[0].temperatures_c["tj"] == 49.5
    )
    assert found[0].at_s < found[1].at_s < found[2].at_s


THOR_LINE = (
    "RAM 5/128000MB (lfb 61x4MB) CPU [1%@972] VDD_GPU 1000mW/1000mW VDD_CPU_SOC_MSS 4000mW/4000mW "
    "VIN_SYS_5V0 5600mW/5600mW VIN 16800mW/16800mW"
)


def test_a_total_rail_that_is_lost_leaves_no_power(tmp_path: Path) -> None:
    """The module's rails are still there; their sum is no power of the board."""
    lines = [THOR_LINE] * 3 + [THOR_LINE.partition(" VIN ")[0] + " tj@40C"] * 50
    make_tegrastats(tmp_path / "usr/bin", lines)
    sensor = tegrastats.find(tmp_path)
    assert not isinstance(sensor, Unavailable)
    assert (sensor.info.total, sensor.info.scope) == (("VIN",), "board")
    found = take(sensor, 6)
    assert [item.watts for item in found[:3]] == [16.8] * 3
    assert {item.watts for item in found[3:]} == {None}
    assert {item.why for item in found[3:]} == {"rail VIN is missing"}
    assert found[-1].rails_w["VDD_CPU_SOC_MSS"] == 4.0


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([LINE.partition(" VDD_IN")[0]] * 9, "needs root"),
        (
            [LINE.replace("VDD_IN", "VDD_CPU")] * 9,
            "nobody knows which of the rails VDD_CPU, VDD_SOC",
        ),
        ([], "ended with 0"),
    ],
)
def test_tegrastats_without_a_total_is_unavailable(
    tmp_path: Path, lines: list[str], words: str
) -> None:
    make_tegrastats(tmp_path / "usr/bin", lines)
    found = tegrastats.find(tmp_path)
    assert isinstance(found, Unavailable) and words in found.reason


def test_what_reads_the_board_is_preferred_and_the_rest_is_explained(tmp_path: Path) -> None:
    found = find_power(tmp_path)
    assert isinstance(found, PowerUnavailable) and "tegrastats" in found.sensors
    make_tegrastats(tmp_path / "usr/bin", [LINE] * 50)
    hwmon(tmp_path, "1-0040", 1, THOR)
    write(tmp_path, "sys/class/hwmon/hwmon2/name", "ina238\n")
    write(tmp_path, "sys/class/hwmon/hwmon2/power1_input", "16800000\n")
    sensors, reasons = find_sensors(tmp_path)
    assert [sensor.info.name for sensor in sensors] == ["ina238", "ina3221", "tegrastats"]
    assert take(sensors[1])[0].watts == pytest.approx(
        (12040 * 640 + 12040 * 960 + 5088 * 1740) / 1e6
    )
    assert set(reasons) >= {"rapl", "pmic", "null"}
