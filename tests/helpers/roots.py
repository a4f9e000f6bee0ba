"""Made-up file systems of boards, from tables: what the kernel and JetPack of each would show.

Part numbers, rails and file names are those of real boards; the values are made up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: rail -> mV, mA; a channel that is not connected is NC
Rails = Sequence[tuple[str, int, int]]


def put(root: Path, files: Mapping[str, str | int]) -> None:
    """Write files below a root; a NUL in a text stays."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n" if isinstance(text, int) else text)


def put_program(root: Path, name: str, text: str) -> Path:
    """An executable shell script at ``/usr/bin``."""
    put(root, {f"usr/bin/{name}": f"#!/bin/sh\n{text}\n"})
    (root / "usr/bin" / name).chmod(0o755)
    return root / "usr/bin" / name


def put_tree(root: Path, model: str, compatible: Sequence[str]) -> None:
    """The device tree's names."""
    names = "".join(f"{item}\0" for item in compatible)
    put(root, {"proc/device-tree/model": f"{model}\0", "proc/device-tree/compatible": names})


def put_l4t(root: Path, major: int, revision: str, board: str = "generic") -> None:
    """NVIDIA's release file."""
    line = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: {board}\n"
    put(root, {"etc/nv_tegra_release": line})


def put_modes(root: Path, conf: str, modes: Sequence[str], now: int) -> None:
    """nvpmodel's configuration, a link to an absolute place as on the board, and its status."""
    text = "".join(f"< POWER_MODEL ID={n} NAME={name} >\nCPU_ONLINE CORE_0 1\n\n"
                   for n, name in enumerate(modes))  # fmt: skip
    put(root, {f"etc/nvpmodel/{conf}": f"# header\n{text}< PM_CONFIG DEFAULT=0 >\n",
               "var/lib/nvpmodel/status": f"pmode:{now:04d} fmode:quiet"})  # fmt: skip
    (root / "etc/nvpmodel.conf").symlink_to(f"/etc/nvpmodel/{conf}")


def put_ina3221(root: Path, chip: str, number: int, rails: Rails) -> Path:
    """A chip of JetPack 5 and later, with the shunt voltages that are no rails."""
    folder = f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon{number}"
    files: dict[str, str | int] = {f"{folder}/name": "ina3221\n", f"{folder}/samples": 64,
                                   f"{folder}/update_interval": 422,
                                   f"{folder}/in7_label": "sum of shunt voltages\n"}  # fmt: skip
    for channel in range(4, 8):
        files[f"{folder}/in{channel}_input"] = 9
    for channel, (name, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {f"{folder}/in{channel}_label": f"{name}\n",
                  f"{folder}/in{channel}_input": millivolts,
                  f"{folder}/curr{channel}_input": milliamperes,
                  f"{folder}/curr{channel}_crit_alarm": 0,
                  f"{folder}/curr{channel}_max_alarm": 0}  # fmt: skip
    put(root, files)
    return root / folder


def put_iio(root: Path, chip: str, number: int, rails: Sequence[tuple[str, int]]) -> None:
    """A chip of JetPack 4: rail -> mW."""
    folder = f"sys/bus/i2c/drivers/ina3221x/{chip}/iio:device{number}"
    for channel, (name, power) in enumerate(rails):
        put(root, {f"{folder}/rail_name_{channel}": f"{name}\n",
                   f"{folder}/in_power{channel}_input": power})  # fmt: skip


def put_cores(root: Path, count: int, now: int, low: int, high: int, governor: str) -> None:
    """cpufreq of cores, kHz."""
    for core in range(count):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        put(root, {f"{folder}/scaling_cur_freq": now, f"{folder}/scaling_min_freq": low,
                   f"{folder}/scaling_max_freq": high, f"{folder}/cpuinfo_max_freq": high,
                   f"{folder}/scaling_governor": f"{governor}\n"})  # fmt: skip


def put_devfreq(root: Path, name: str, now: int, low: int, high: int) -> None:
    """A devfreq device, Hz."""
    folder = f"sys/class/devfreq/{name}"
    put(root, {f"{folder}/cur_freq": now, f"{folder}/min_freq": low, f"{folder}/max_freq": high,
               f"{folder}/available_frequencies": f"{low} {high}\n"})  # fmt: skip


def put_zones(root: Path, zones: Mapping[str, int]) -> None:
    """Thermal zones, m°C."""
    for number, (name, value) in enumerate(zones.items()):
        folder = f"sys/class/thermal/thermal_zone{number}"
        put(root, {f"{folder}/type": f"{name}\n", f"{folder}/temp": value})


def put_cooling(root: Path, devices: Mapping[str, int]) -> None:
    """Cooling devices and their state."""
    for number, (name, value) in enumerate(devices.items()):
        folder = f"sys/class/thermal/cooling_device{number}"
        put(root, {f"{folder}/type": f"{name}\n", f"{folder}/cur_state": value})


def put_fan(root: Path, number: int = 0) -> None:
    """JetPack 6's fan."""
    put(root, {f"sys/class/hwmon/hwmon{number}/name": "pwmfan\n",
               f"sys/class/hwmon/hwmon{number}/pwm1": 65,
               f"sys/class/hwmon/hwmon{number + 1}/name": "pwm_tach\n",
               f"sys/class/hwmon/hwmon{number + 1}/rpm": 1636})  # fmt: skip


def put_dpkg(root: Path, packages: Mapping[str, str], status: str = "install ok installed") -> None:
    """dpkg's list."""
    text = "\n".join(f"Package: {name}\nStatus: {status}\nArchitecture: arm64\nVersion: {version}\n"
                     for name, version in packages.items())  # fmt: skip
    put(root, {"var/lib/dpkg/status": text})


_ALERTS = {"pwm-fan": 3, "cpu-throttle-alert": 0, "gpu-throttle-alert": 0, "hot-surface-alert": 0}


def orin_nx(root: Path) -> None:
    """Orin NX 16GB, JetPack 6.2.1."""
    put_tree(root, "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
             ["nvidia,p3768-0000+p3767-0000-super", "nvidia,p3767-0000",
              "nvidia,tegra234"])  # fmt: skip
    put_l4t(root, 36, "4.4")
    put_modes(root, "nvpmodel_p3767_0000_super.conf", ["MAXN_SUPER", "10W", "15W", "25W", "40W"], 3)
    put_ina3221(root, "1-0040", 3, [("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300),
                                    ("VDD_SOC", 5000, 400)])  # fmt: skip
    put_cores(root, 8, 729600, 729600, 1984000, "schedutil")
    put_devfreq(root, "17000000.gpu", 306000000, 306000000, 918000000)
    put_devfreq(root, "15340000.vic", 115200000, 115200000, 729600000)
    put_zones(root, {"cpu-thermal": 49187, "gpu-thermal": 47500, "cv0-thermal": -256000})
    put_cooling(root, _ALERTS)
    put_fan(root)
    put_dpkg(root, {"libnvinfer10": "10.3.0.30-1+cuda12.5", "tensorrt": "10.3.0.30-1+cuda12.5"})


def orin_nano(root: Path) -> None:
    """Orin Nano 8GB whose model's text says Orin NX; JetPack 6.2.1 by apt."""
    put_tree(root, "NVIDIA Jetson Orin NX Engineering Reference Developer Kit Super",
             ["nvidia,p3768-0000+p3767-0003-super", "nvidia,p3767-0003",
              "nvidia,tegra234"])  # fmt: skip
    put_l4t(root, 36, "4.7")
    put_modes(root, "nvpmodel_p3767_0003_super.conf", ["15W", "25W", "MAXN_SUPER", "7W"], 2)
    put_ina3221(root, "1-0040", 1, [("VDD_IN", 4960, 1000), ("VDD_CPU_GPU_CV", 4960, 200),
                                    ("VDD_SOC", 4960, 300)])  # fmt: skip
    put_cores(root, 6, 729600, 729600, 1728000, "schedutil")
    put_devfreq(root, "17000000.gpu", 306000000, 306000000, 1020000000)
    put_zones(root, {"cpu-thermal": 48900, "tj-thermal": 49500})
    put_cooling(root, _ALERTS)


def agx_orin(root: Path) -> None:
    """AGX Orin 64GB, JetPack 6.0: two chips, no rail for all."""
    put_tree(root, "NVIDIA Jetson AGX Orin Developer Kit",
             ["nvidia,p3737-0000+p3701-0005", "nvidia,p3701-0005", "nvidia,tegra234"])  # fmt: skip
    put_l4t(root, 36, "3.0")
    put_modes(root, "nvpmodel_p3701_0005.conf", ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"], 2)
    put_ina3221(root, "1-0040", 1, [("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 100),
                                    ("VIN_SYS_5V0", 5000, 900)])  # fmt: skip
    put_ina3221(root, "1-0041", 4, [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0)])
    put_cores(root, 12, 729600, 729600, 1728000, "schedutil")
    put_devfreq(root, "17000000.gpu", 306000000, 306000000, 612000000)


def xavier_nx(root: Path) -> None:
    """Xavier NX, JetPack 5.1.2."""
    put_tree(root, "NVIDIA Jetson Xavier NX Developer Kit",
             ["nvidia,p3509-0000+p3668-0001", "nvidia,tegra194"])  # fmt: skip
    put_l4t(root, 35, "4.1", "t186ref")
    put_modes(root, "nvpmodel_t194_p3668.conf",
              ["MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE"], 2)  # fmt: skip
    put_ina3221(root, "7-0040", 4, [("VDD_IN", 5000, 800), ("VDD_CPU_GPU_CV", 5000, 200),
                                    ("VDD_SOC", 5000, 200)])  # fmt: skip
    put_cores(root, 6, 1190400, 1190400, 1420800, "schedutil")
    put_devfreq(root, "17000000.gv11b", 114750000, 114750000, 1109250000)


def agx_xavier(root: Path) -> None:
    """AGX Xavier, JetPack 4.6.1: iio, and the fan at its old place."""
    put_tree(root, "Jetson-AGX", ["nvidia,galen", "nvidia,jetson-xavier",
                                  "nvidia,p2822-0000+p2888-0001", "nvidia,tegra194"])  # fmt: skip
    put_l4t(root, 32, "7.1", "t186ref")
    put_modes(root, "nvpmodel_t194.conf", ["MAXN", "MODE_10W", "MODE_15W", "MODE_30W_ALL"], 0)
    put_iio(root, "1-0040", 0, [("GPU", 385), ("CPU", 770), ("SOC", 1155)])
    put_iio(root, "1-0041", 1, [("CV", 0), ("VDDRQ", 192), ("SYS5V", 1440)])
    put(root, {"sys/devices/pwm-fan/cur_pwm": 0})
    put_devfreq(root, "17000000.gv11b", 318750000, 318750000, 1377000000)


def thor(root: Path) -> None:
    """Jetson AGX Thor, JetPack 7.1: an INA238 for the whole board."""
    put_tree(root, "NVIDIA Jetson AGX Thor Developer Kit",
             ["nvidia,p4071-0000+p3834-0008", "nvidia,p3834-0008", "nvidia,tegra264"])  # fmt: skip
    put_l4t(root, 38, "4.0")
    put_modes(root, "nvpmodel_p3834_0008.conf", ["MAXN", "120W", "90W", "70W"], 1)
    put_ina3221(root, "2-0040", 5, [("VDD_GPU", 12040, 640), ("VDD_CPU_SOC_MSS", 12040, 960),
                                    ("VIN_SYS_5V0", 5088, 1740)])  # fmt: skip
    put(root, {"sys/class/hwmon/hwmon2/name": "ina238\n",
               "sys/class/hwmon/hwmon2/power1_input": 24_800_000})  # fmt: skip
    put_devfreq(root, "gpu-gpc-0", 314000000, 314000000, 1575000000)
    put_devfreq(root, "gpu-nvd-0", 500000000, 500000000, 1692000000)
    put_devfreq(root, "bwmgr", 4266000000, 665600000, 4266000000)
    put_cooling(root, {**_ALERTS, "devfreq-gpu-gpc-0": 0})


def pi4(root: Path) -> None:
    """Raspberry Pi 4: no sensor, and a vcgencmd without one behind it."""
    put_tree(root, "Raspberry Pi 4 Model B Rev 1.5", ["raspberrypi,4-model-b", "brcm,bcm2711"])
    put_cores(root, 4, 600000, 600000, 1800000, "ondemand")
    put_zones(root, {"cpu-thermal": 41868})
    put_program(root, "vcgencmd", 'case "$1" in get_throttled) echo throttled=0x0;; '
                '*) echo "error=1 error_msg=\\"Command not registered\\"";; esac')  # fmt: skip


#: answer of a Pi 5, also among the test data
ADC = """ 3V7_WL_SW_A current(0)=0.00000000A
   3V3_SYS_A current(1)=0.06245952A
   1V8_SYS_A current(2)=0.16102850A
  DDR_VDD2_A current(3)=0.00780744A
  DDR_VDDQ_A current(4)=0.00000000A
   1V1_SYS_A current(5)=0.17566740A
    0V8_SW_A current(6)=0.32791250A
  VDD_CORE_A current(7)=10.87674000A
   3V3_DAC_A current(17)=0.00036630A
   3V3_ADC_A current(18)=0.00042735A
   0V8_AON_A current(16)=0.00579975A
      HDMI_A current(22)=0.01367520A
 3V7_WL_SW_V volt(8)=3.79999600V
   3V3_SYS_V volt(9)=3.30632200V
   1V8_SYS_V volt(10)=1.79828900V
  DDR_VDD2_V volt(11)=1.10292900V
  DDR_VDDQ_V volt(12)=0.60476130V
   1V1_SYS_V volt(13)=1.10439400V
    0V8_SW_V volt(14)=0.80256330V
  VDD_CORE_V volt(15)=0.89745940V
   3V3_DAC_V volt(20)=3.30494200V
   3V3_ADC_V volt(21)=3.30219400V
   0V8_AON_V volt(19)=0.79736190V
      HDMI_V volt(23)=5.07056000V
     EXT5V_V volt(24)=5.06788000V
      BATT_V volt(25)=3.01110800V
"""


def pi5(root: Path, adc: str = ADC, flags: str = "0x0") -> None:
    """Raspberry Pi 5 with the official fan."""
    put_tree(root, "Raspberry Pi 5 Model B Rev 1.0", ["raspberrypi,5-model-b", "brcm,bcm2712"])
    put_cores(root, 4, 1500000, 1500000, 2400000, "ondemand")
    put_zones(root, {"cpu-thermal": 55400})
    put(root, {"sys/class/hwmon/hwmon2/name": "pwmfan\n", "sys/class/hwmon/hwmon2/pwm1": 75,
               "sys/class/hwmon/hwmon2/fan1_input": 2900,
               "sys/class/hwmon/hwmon3/name": "rpi_volt\n",
               "sys/class/hwmon/hwmon3/in0_lcrit_alarm": 0,
               "adc": adc, "flags": f"throttled={flags}\n"})  # fmt: skip
    put_program(root, "vcgencmd", f'case "$1" in pmic_read_adc) cat {root}/adc;; '
                f'get_throttled) cat {root}/flags;; *) exit 255;; esac')  # fmt: skip


def x86(root: Path) -> None:
    """A PC with RAPL."""
    put(
        root, {"sys/class/dmi/id/sys_vendor": "LENOVO\n", "sys/class/dmi/id/product_name": "20XW\n"}
    )
    put_cores(root, 4, 800000, 400000, 4200000, "powersave")
    for domain, name in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"),
                         ("intel-rapl:0:1", "dram"), ("intel-rapl:1", "psys")):  # fmt: skip
        put(root, {f"sys/class/powercap/{domain}/name": f"{name}\n",
                   f"sys/class/powercap/{domain}/energy_uj": 123456,
                   f"sys/class/powercap/{domain}/max_energy_range_uj": 262143328850})  # fmt: skip
    for core in range(4):
        folder = f"sys/devices/system/cpu/cpu{core}/thermal_throttle"
        put(root, {f"{folder}/core_throttle_count": 7, f"{folder}/package_throttle_count": 9})


BOARDS: dict[str, Callable[[Path], None]] = {
    "orin_nx": orin_nx, "orin_nano": orin_nano, "agx_orin": agx_orin, "xavier_nx": xavier_nx,
    "agx_xavier": agx_xavier, "thor": thor, "pi4": pi4, "pi5": pi5, "x86": x86,
}  # fmt: skip
