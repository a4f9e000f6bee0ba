"""``edgekd doctor --root`` on made-up boards: names, modes, sensors and totals."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import main
from tests.helpers.roots import BOARDS, pi5

#: board -> family, module, JetPack, mode, modes, sensors (the first is taken) with scope, total
#: and source
EXPECTED: dict[str, tuple[Any, ...]] = {
    "orin_nx": ("jetson", "Jetson Orin NX 16GB", "6.2.1", "25W",
                ["MAXN_SUPER", "10W", "15W", "25W", "40W"],
                [("ina3221", "module", ["VDD_IN"], "measured", 0.04, 0.45)]),
    "orin_nano": ("jetson", "Jetson Orin Nano 8GB", "6.2.1", "MAXN_SUPER",
                  ["15W", "25W", "MAXN_SUPER", "7W"],
                  [("ina3221", "module", ["VDD_IN"], "measured", 0.04, 0.45)]),
    "agx_orin": ("jetson", "Jetson AGX Orin 64GB", "6.0", "MODE_30W",
                 ["MAXN", "MODE_15W", "MODE_30W", "MODE_50W"],
                 [("ina3221", "module", ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"], "measured",
                   0.5745, None)]),
    "xavier_nx": ("jetson", "Jetson Xavier NX", "5.1.2", "MODE_15W_6CORE",
                  ["MODE_15W_2CORE", "MODE_15W_4CORE", "MODE_15W_6CORE"],
                  [("ina3221", "module", ["VDD_IN"], "measured", 0.04, 0.45)]),
    "agx_xavier": ("jetson", "Jetson AGX Xavier", "4.6.1", "MAXN",
                   ["MAXN", "MODE_10W", "MODE_15W", "MODE_30W_ALL"],
                   [("ina3221", "module", ["GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"],
                     "measured", None, None)]),
    "thor": ("jetson", "Jetson T5000", "7.1", "120W", ["MAXN", "120W", "90W", "70W"],
             [("ina238", "board", ["VIN"], "measured", None, None),
              ("ina3221", "module", ["VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"], "measured",
               None, None)]),
    "pi4": ("raspberry-pi", None, None, None, None, []),
    "pi5": ("raspberry-pi", None, None, None, None,
            [("pmic", "board", ["pmic_sum"], "estimate", None, None)]),
    "x86": ("other", None, None, None, None,
            [("rapl", "module", ["package-0", "dram-0"], "measured", None, None)]),
}  # fmt: skip


def doctor(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    assert main(["doctor", "--root", str(root), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert main(["doctor", "--root", str(root)]) == 0
    return value, capsys.readouterr().out


@pytest.mark.parametrize("name", EXPECTED)
def test_doctor_on_a_board(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    BOARDS[name](tmp_path)
    value, out = doctor(tmp_path, capsys)
    family, module, jetpack, mode, modes, sensors = EXPECTED[name]
    board = value["board"]
    assert (board["family"], board["module"], board["jetpack"]) == (family, module, jetpack)
    now, every = value["power_modes"]["now"], value["power_modes"]["all"]
    assert (now and now["name"], every and [item["name"] for item in every]) == (mode, modes)
    found = value["sensors"]["found"]
    fields = ("name", "scope", "total", "source", "resolution_w", "lag_s")
    assert [tuple(item[field] for field in fields) for item in found] == sensors
    assert [item["taken"] for item in found] == [index == 0 for index in range(len(found))]
    for sensor in sensors:
        assert f"{sensor[0]} (" in out and " + ".join(sensor[2]) in out and sensor[3] in out
    every_sensor = {item["name"] for item in found} | set(value["sensors"]["unavailable"])
    assert {"ina3221", "ina238", "tegrastats", "pmic", "rapl"} <= every_sensor
    assert all(value["sensors"]["unavailable"].values())
    for text in (module, jetpack, mode, board["name"]):
        assert text is None or text in out
    assert (value["sensors"]["advice"] is None) == bool(sensors)
    assert sensors or value["sensors"]["advice"] in out


def test_nothing_of_this_machine_is_said_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"this machine was asked: {args}")

    import shutil

    monkeypatch.setattr(shutil, "which", asked)
    BOARDS["orin_nx"](tmp_path)
    value, out = doctor(tmp_path, capsys)
    for field in ("arch", "kernel", "python", "packages", "cores_usable", "hostname"):
        assert field not in value["environment"]
        assert field not in value["environment"]["absent"]
        assert field in value["left_out"] and field in out
    for field in ("extras", "targets", "writable", "signer", "runtime_works"):
        assert field not in value
    assert sys.executable not in out and platform.release() not in out
    assert value["environment"]["tensorrt"] == "10.3.0.30-1+cuda12.5"


def test_an_unknown_revision_is_shown_as_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BOARDS["orin_nx"](tmp_path)
    release = tmp_path / "etc/nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 9.1, GCID: 1\n")
    value, out = doctor(tmp_path, capsys)
    assert (value["board"]["l4t"], value["board"]["jetpack"]) == ("36.9.1", None)
    assert "JetPack          unknown: L4T 36.9.1 is not in the table" in out


def test_rapl_that_only_root_may_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    BOARDS["x86"](tmp_path)
    real = Path.read_text

    def read_text(self: Path, *given: Any, **more: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *given, **more)

    monkeypatch.setattr(Path, "read_text", read_text)
    value, out = doctor(tmp_path, capsys)
    assert value["sensors"]["found"] == [] and value["power"]["status"] == "unavailable"
    assert "by root alone" in value["sensors"]["unavailable"]["rapl"]
    assert "edgekd power import" in out


def test_the_whole_answer_of_a_real_pi5(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], test_data: Path
) -> None:
    pi5(tmp_path, (test_data / "telemetry/samples/pi5_pmic_read_adc.txt").read_text())
    value, out = doctor(tmp_path, capsys)
    assert value["power"] == {"status": "available", "sensor": "pmic", "scope": "board"}
    assert "estimate" in out and "1.1327 * sum + 0.6444 W" in out


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_root_that_is_none_is_one_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["doctor", "--root", str(tmp_path / name)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and f"{name} is not a folder" in err
