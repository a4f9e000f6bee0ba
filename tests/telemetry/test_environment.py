"""The description of a machine, read from made-up file systems and from collected real lines."""

from __future__ import annotations

import re
from pathlib import Path

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.contracts.board import Absent, read_board, read_l4t
from edgekd.telemetry.environment import (
    Environment,
    read_container,
    read_environment,
    read_packages,
)


def put(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


@pytest.fixture
def orin(tmp_path: Path) -> Path:
    """A made-up Orin NX: files as the kernel and L4T write them."""
    model = "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    put(tmp_path, "proc/device-tree/model", model + "\0")
    put(tmp_path, "proc/device-tree/compatible", "nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    line = "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64\n"
    put(tmp_path, "etc/nv_tegra_release", line + "# KERNEL_VARIANT: oot\n")
    cpu = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
    put(tmp_path, "proc/cpuinfo", "".join(cpu.format(n) for n in range(8)))
    put(tmp_path, "proc/meminfo", "MemTotal:       16037516 kB\nMemFree: 1 kB\n")
    put(tmp_path, "proc/loadavg", "0.52 0.58 0.59 1/467 31337\n")
    put(tmp_path, "etc/os-release", 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.4 LTS"\n')
    put(tmp_path, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    for n in range(8):
        folder = f"sys/devices/system/cpu/cpu{n}/cpufreq"
        put(tmp_path, f"{folder}/scaling_governor", "schedutil\n")
        put(tmp_path, f"{folder}/scaling_cur_freq", f"{729600 + n}\n")
        put(tmp_path, f"{folder}/cpuinfo_max_freq", "1984000\n")
    return tmp_path


def test_a_jetson_is_described_from_its_files(orin: Path) -> None:
    found = read_environment(orin)
    assert found.board == "NVIDIA Jetson Orin NX Engineering Reference Developer Kit"
    assert found.board_source == "/proc/device-tree/model"
    assert found.compatible == ["nvidia,p3768-0000+p3767-0000", "nvidia,tegra234"]
    assert found.l4t == "36.4.7"
    assert found.cpu_model == "ARM implementer 0x41 part 0xd42 (revision 1)"
    assert (found.cores, found.memory_mib, found.load_1min) == (8, 15661.6, 0.52)
    assert (found.cpu_quota_cores, found.os) == (1.5, "Ubuntu 22.04.4 LTS")
    assert found.governor == "schedutil"
    assert found.frequency_mhz == pytest.approx([729.6 + n / 1000 for n in range(8)])
    assert found.frequency_max_mhz == [1984.0] * 8
    assert found.container == "none seen"


def test_an_empty_file_system_gives_nulls_with_reasons_and_no_invented_value(
    tmp_path: Path,
) -> None:
    found = read_environment(tmp_path)
    for name in ("board", "compatible", "cpu_model", "cores", "memory_mib", "os", "l4t"):
        assert getattr(found, name) is None
        assert found.absent[name]
    assert "does not exist" in found.absent["l4t"]


def test_the_host_name_is_left_out_unless_asked_for() -> None:
    assert read_environment().hostname is None
    assert read_environment().absent["hostname"] == "left out for privacy"
    assert read_environment(hostname=True).hostname


def test_a_null_without_a_reason_is_refused(tmp_path: Path) -> None:
    values = read_environment(tmp_path).model_dump()
    del values["absent"]["board"]
    with pytest.raises(pydantic.ValidationError, match="do not agree"):
        Environment.model_validate(values)


def test_a_pc_is_named_by_dmi(tmp_path: Path) -> None:
    put(tmp_path, "sys/class/dmi/id/sys_vendor", "LENOVO\n")
    put(tmp_path, "sys/class/dmi/id/product_name", "20XW\n")
    assert read_board(tmp_path) == ("LENOVO 20XW", "/sys/class/dmi/id")


@pytest.mark.parametrize(
    "text", ["max 100000", "abc def", "100000", "100000 0"], ids=lambda text: text
)
def test_a_cpu_limit_that_is_none_or_not_understood_is_null(tmp_path: Path, text: str) -> None:
    put(tmp_path, "sys/fs/cgroup/cpu.max", text)
    found = read_environment(tmp_path)
    assert found.cpu_quota_cores is None
    assert found.absent["cpu_quota_cores"]


def test_a_container_is_hinted_at(tmp_path: Path) -> None:
    put(tmp_path, ".dockerenv", "")
    put(tmp_path, "proc/1/cgroup", "0::/system.slice/containerd.service\n")
    assert read_container(tmp_path) == "/.dockerenv, /proc/1/cgroup names containerd"


def test_packages_are_read_without_importing_and_null_where_absent() -> None:
    found = read_packages()
    assert set(found) == {"numpy", "onnxruntime", "opencv", "rasterio"}
    assert found["numpy"]


@given(major=st.integers(21, 99), parts=st.lists(st.integers(0, 99), min_size=1, max_size=3))
def test_every_l4t_revision_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, major: int, parts: list[int]
) -> None:
    root = tmp_path_factory.mktemp("root")
    revision = ".".join(map(str, parts))
    put(root, "etc/nv_tegra_release", f"# R{major} (release), REVISION: {revision}, GCID: 1\n")
    assert read_l4t(root) == f"{major}.{revision}"


@pytest.mark.parametrize("text", ["", "R36", "# R36 (release), REVISION: , GCID", "\0\0"])
def test_an_l4t_line_that_is_not_understood_is_absent_not_guessed(
    tmp_path: Path, text: str
) -> None:
    put(tmp_path, "etc/nv_tegra_release", text)
    with pytest.raises(Absent):
        read_l4t(tmp_path)


def test_collected_l4t_lines_are_read(tmp_path: Path, test_data: Path) -> None:
    text = (test_data / "telemetry/samples/nv_tegra_release.txt").read_text()
    lines = re.findall(r"# R(\d+) \(release\), REVISION: ([\d.]+)(.*)", text)
    assert len(lines) == 8
    for major, revision, rest in lines:
        put(
            tmp_path,
            "etc/nv_tegra_release",
            f"# R{major} (release), REVISION: {revision}{rest}\n",
        )
        assert read_l4t(tmp_path) == f"{major}.{revision}"


def test_collected_board_names_are_read(tmp_path: Path, test_data: Path) -> None:
    text = (test_data / "telemetry/samples/device_tree_model.txt").read_text()
    lines = [line for line in text.splitlines() if line.startswith("NVIDIA Jetson")]
    assert len(lines) == 4
    for line in lines:
        put(tmp_path, "proc/device-tree/model", line + "\0")
        assert read_board(tmp_path)[0] == line
