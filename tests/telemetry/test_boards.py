"""Boards, modules and JetPack by files: what the tables know, and that the rest stays unknown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.contracts.board import Absent, inside, read_small
from edgekd.telemetry.boards import (
    JETPACK,
    MODULES,
    Board,
    find_jetpack,
    identify,
    read_dpkg,
)
from edgekd.telemetry.environment import read_environment
from tests.helpers.roots import BOARDS, put, put_dpkg, put_l4t, put_tree

#: board -> family, module, Pi, L4T, JetPack
EXPECTED = {
    "orin_nx": ("jetson", "Jetson Orin NX 16GB", None, "36.4.4", "6.2.1"),
    "orin_nano": ("jetson", "Jetson Orin Nano 8GB", None, "36.4.7", "6.2.1"),
    "agx_orin": ("jetson", "Jetson AGX Orin 64GB", None, "36.3.0", "6.0"),
    "xavier_nx": ("jetson", "Jetson Xavier NX", None, "35.4.1", "5.1.2"),
    "agx_xavier": ("jetson", "Jetson AGX Xavier", None, "32.7.1", "4.6.1"),
    "thor": ("jetson", "Jetson T5000", None, "38.4.0", "7.1"),
    "pi4": ("raspberry-pi", None, "Raspberry Pi 4 Model B Rev 1.5", None, None),
    "pi5": ("raspberry-pi", None, "Raspberry Pi 5 Model B Rev 1.0", None, None),
    "x86": ("other", None, None, None, None),
}


def test_every_made_up_board_is_expected() -> None:
    assert set(EXPECTED) == set(BOARDS)


@pytest.mark.parametrize("name", BOARDS)
def test_a_board_is_identified(name: str, tmp_path: Path) -> None:
    BOARDS[name](tmp_path)
    found = identify(tmp_path)
    assert (found.family, found.module, found.pi_model, found.l4t, found.jetpack) == EXPECTED[name]
    assert Board.model_validate_json(found.model_dump_json()) == found


def test_the_text_of_the_model_decides_nothing(tmp_path: Path) -> None:
    put_tree(tmp_path, "NVIDIA Jetson Orin NX 16GB Developer Kit", ["nvidia,tegra234"])
    found = identify(tmp_path)
    assert found.family == "jetson" and found.module is None
    assert "has no module's part number: nvidia,tegra234" in found.absent["module"]
    put_tree(tmp_path, "NVIDIA Jetson Orin NX", ["nvidia,p3768-0000+p3767-0000",
                                                 "nvidia,p3768-0000+p3767-0001",
                                                 "nvidia,tegra234"])  # fmt: skip
    assert "several modules: p3767-0000, p3767-0001" in identify(tmp_path).absent["module"]
    put_tree(tmp_path, "NVIDIA Jetson Orin NX", ["nvidia,p3767-0007", "nvidia,tegra234"])
    assert "p3767-0007 is not known" in identify(tmp_path).absent["module"]
    put_tree(tmp_path, "Raspberry Pi 5 Model B Rev 1.0", ["acme,clone"])
    assert identify(tmp_path).family == "other" and identify(tmp_path).pi_model is None


@pytest.mark.parametrize("number", MODULES)
def test_every_part_number_is_found_beside_its_carrier(number: str, tmp_path: Path) -> None:
    put_tree(tmp_path, "x", [f"nvidia,p9999-0000+{number}-super", "nvidia,tegra234"])
    assert identify(tmp_path).module == MODULES[number]


@settings(max_examples=40)
@given(st.from_regex(r"\A[0-9]{2}\.[0-9]{1,2}(\.[0-9]{1,2})?\Z"))
def test_an_unknown_revision_stays_unknown(l4t: str) -> None:
    try:
        found = find_jetpack(l4t)
    except Absent as err:
        assert l4t in str(err)
    else:
        assert found == JETPACK[l4t if l4t in JETPACK else f"{l4t}.0"]


@pytest.mark.parametrize("l4t", ["36.4.5", "36.4.2", "36.9.9", "99.1.0", "36"])
def test_the_nearest_revision_is_never_taken(l4t: str, tmp_path: Path) -> None:
    with pytest.raises(Absent, match="is not in the table"):
        find_jetpack(l4t)
    major, _, revision = l4t.partition(".")
    put_l4t(tmp_path, int(major), revision or "0")
    found = identify(tmp_path)
    assert found.jetpack is None and found.l4t and found.absent["jetpack"]


def test_36_3_and_36_3_0_are_one() -> None:
    assert find_jetpack("36.3") == find_jetpack("36.3.0") == "6.0"


def test_collected_revisions(tmp_path: Path, test_data: Path) -> None:
    text = (test_data / "telemetry/samples/nv_tegra_release.txt").read_text()
    found = {}
    for line in text.splitlines():
        if "(release)" in line and not line.startswith("#"):
            put(tmp_path, {"etc/nv_tegra_release": line[line.index("# R") :] + "\n"})
            board = identify(tmp_path)
            found[board.l4t] = board.jetpack
    assert found == {
        "36.4.7": "6.2.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "32.5.1": "4.5.1", "38.2.0": "7.0",
        "38.2.2": None, "38.4.0": "7.1", "39.2.1": "7.2.1",
    }  # fmt: skip


def test_without_the_release_file_the_package_tells_l4t(tmp_path: Path) -> None:
    put_dpkg(tmp_path, {"bash": "5.1", "nvidia-l4t-core": "36.4.4-20250616085344"})
    found = identify(tmp_path)
    assert (found.l4t, found.jetpack, found.family) == ("36.4.4", "6.2.1", "jetson")


def test_a_removed_package_has_no_version(tmp_path: Path) -> None:
    put_dpkg(tmp_path, {"libnvinfer8": "8.5"}, status="deinstall ok config-files")
    with pytest.raises(Absent, match="none of libnvinfer8, tensorrt"):
        read_dpkg(tmp_path, "libnvinfer8", "tensorrt")


def test_a_link_of_a_root_stays_in_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root, {"etc/real": "inside", "sys/base/model": "tree"})
    put(tmp_path, {"secret": "outside", "etc/real": "outside"})
    for name, target in (("absolute", "/etc/real"), ("above", "../../../../etc/real"),
                         ("out", "../../secret"), ("loop", "loop")):  # fmt: skip
        (root / "etc" / name).symlink_to(target)
    (root / "proc").mkdir()
    (root / "proc/device-tree").symlink_to("/sys/base")
    assert read_small(root, "etc/absolute") == read_small(root, "etc/above") == "inside"
    assert read_small(root, "proc/device-tree/model") == "tree"
    with pytest.raises(Absent, match="etc/out does not exist"):
        read_small(root, "etc/out")
    with pytest.raises(Absent, match="circle of links"):
        inside(root, "etc/loop")


@pytest.mark.parametrize("name", BOARDS)
def test_the_environment_of_a_board(name: str, tmp_path: Path) -> None:
    BOARDS[name](tmp_path)
    found = read_environment(tmp_path)
    assert (found.module, found.l4t, found.jetpack) == (EXPECTED[name][1], *EXPECTED[name][3:])
    if name == "orin_nx":
        assert found.tensorrt == "10.3.0.30-1+cuda12.5" and found.power_mode == "25W"
        assert (found.gpu_frequency_mhz, found.gpu_frequency_max_mhz) == (306.0, 918.0)
        assert found.fan == "pwmfan pwm1 65 of 255, pwm_tach rpm 1636"
        assert found.temperatures_c == {"cpu-thermal": 49.187, "gpu-thermal": 47.5}
    if name == "pi5":
        assert found.fan == "pwmfan pwm1 75 of 255, pwmfan fan1_input 2900 rpm"
        assert found.absent["power_mode"] == "/var/lib/nvpmodel/status does not exist"


def test_tensorrt_of_another_root_is_not_this_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.telemetry import environment

    monkeypatch.setattr(environment, "package_version", lambda *names: "10.7.0")
    assert environment._tensorrt(Path("/")) == "10.7.0"
    with pytest.raises(Absent):
        environment._tensorrt(tmp_path)
