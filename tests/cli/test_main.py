"""The entry point: suggestions, one line per error, exit codes, and JSON alone on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio

from edgekd import __version__
from edgekd.cli.main import main
from edgekd.errors import EnvironmentLacksError, GateError
from edgekd.runtime import session
from tests.helpers.bundles import make_bundle
from tests.helpers.rasters import smooth_image, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder with a bundle ``b`` and a scene ``in.tif``."""
    make_bundle(tmp_path / "b", tile_px=32, classes=2)
    write_raster(tmp_path / "in.tif", smooth_image(60, 50))
    return tmp_path


def call(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = main([str(arg) for arg in args])
    out, err = capfd.readouterr()
    return code, out, err


def one_line(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and err.endswith(lines[0] + "\n"), err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rnu"], "command 'rnu' does not exist; did you mean 'run'? (valid: "),
        (["zzzz"], "command 'zzzz' does not exist (valid: "),
        (["run", "--ouput", "x"], "--ouput"),
        (["--versoin"], "--version"),
        (["run"], "BUNDLE"),
        (["run", "a"], "INPUT"),
        (["run", "a", "b"], "--output"),
        (["run", "a", "b", "c", "-o", "d"], "c"),
        (["run", "a", "b", "-o", "c", "--bands", "1,x"], "expected numbers like 1,2,3"),
        (["run", "a", "b", "-o", "c", "--overlap", "x"], "'x'"),
        (["run", "a", "b", "-o", "c"], "a is not a bundle"),
        (["main"], "command 'main' does not exist"),
        (["_common"], "command '_common' does not exist"),
    ],
)
def test_wrong_use(capfd: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    code, out, err = call(capfd, *args)
    assert (code, out) == (2, "") and words in one_line(err)


def test_help_and_version(capfd: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], ["-h"], []):
        code, out, err = call(capfd, *args)
        assert code == 0 and "Commands:" in out and err == ""
    code, out, _ = call(capfd, "run", "--help")
    assert code == 0 and "BUNDLE INPUT" in out
    code, out, _ = call(capfd, "--version")
    assert code == 0 and __version__ in out


def test_run_writes_a_map_and_one_json_object(
    work: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(capfd, "run", work / "b", work / "in.tif", "-o", work / "m.tif", "--json")
    assert code == 0 and "error" not in err
    value = json.loads(out)  # fails if anything else stands there
    assert value["pixels"] == 3000 == value["pixels_valid"] + value["pixels_nodata"]
    assert sum(value["class_pixels"].values()) == value["pixels_covered"]
    with rasterio.open(work / "m.tif") as data:
        assert data.shape == (60, 50)
        index = {"background": 0, "canopy": 1}
        for name, count in value["class_pixels"].items():
            assert int(np.count_nonzero(data.read(1) == index[name])) == count
    code, out, err = call(capfd, "run", work / "b", work / "in.tif", "-o", work / "m.tif")
    assert code == 0 and "3,000 px = 3,000 valid + 0 nodata" in out and "next: edgekd" in err


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_bad_input_ends_with_2_and_writes_nothing(
    work: Path, capfd: pytest.CaptureFixture[str], as_json: list[str]
) -> None:
    blob = (work / "in.tif").read_bytes()
    (work / "cut.tif").write_bytes(blob[: len(blob) // 2])
    (work / "empty.tif").touch()
    (work / "text.tif").write_text("no image")
    write_raster(work / "four.tif", smooth_image(9, 9, bands=4), photometric="minisblack")
    nan = np.full((9, 9, 3), np.nan, np.float32)
    write_raster(work / "nan.tif", nan, photometric="minisblack")
    make_bundle(work / "changed", tile_px=32)
    model = bytearray((work / "changed" / "model.onnx").read_bytes())
    model[100] ^= 1
    (work / "changed" / "model.onnx").write_bytes(model)
    before = sorted(item.name for item in work.iterdir())
    for bundle, scene, out_name, words in (
        ("b", "absent.tif", "m.tif", "does not exist"),
        ("b", "cut.tif", "m.tif", "cut.tif"),
        ("b", "empty.tif", "m.tif", "0 bytes"),
        ("b", "text.tif", "m.tif", "cannot be opened as an image"),
        ("b", "four.tif", "m.tif", "has 4 bands and the model takes 3"),
        ("b", "nan.tif", "m.tif", "with 243 NaN or infinite values"),
        ("b", "b", "m.tif", "is a folder"),
        ("b", "in.tif", "m.jpg", "ends in .tif"),
        ("b", "in.tif", "in.tif", "is the input"),
        ("b", "in.tif", "text.tif/m.tif", "cannot be made"),
        ("changed", "in.tif", "m.tif", "was changed after the bundle was sealed"),
        ("in.tif", "in.tif", "m.tif", "is not a bundle"),
    ):
        code, out, err = call(
            capfd, "run", work / bundle, work / scene, "-o", work / out_name, *as_json
        )
        assert (code, out) == (2, ""), (words, err)
        assert words in one_line(err)
        assert sorted(item.name for item in work.iterdir()) == before


@pytest.mark.parametrize(
    ("failure", "code", "words"),
    [
        (GateError("the verdict is no"), 1, "error: the verdict is no"),
        (EnvironmentLacksError("no such\n  library"), 3, "error: no such library"),
        (OSError(28, "No space left on device", "x"), 2, "error: x: No space left on device"),
        (MemoryError(), 3, "error: out of memory"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (RuntimeError("boom"), 70, "error: unexpected RuntimeError: boom; this is a fault in"),
    ],
)
def test_exit_codes(
    work: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(session, "load", fail)
    args = ("run", work / "b", work / "in.tif", "-o", work / "m.tif", "--json")
    found, out, err = call(capfd, *args)
    assert (found, out) == (code, "") and one_line(err).startswith(words)
    found, out, err = call(capfd, *args, "--debug")
    assert (found, out) == (code, "") and words in err.splitlines()[-1]
    assert ("Traceback" in err) == (code != 130)


def test_a_closed_pipe_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import subprocess

    root = Path(__file__).resolve().parents[2]
    result = subprocess.run(
        f"{sys.executable} -m edgekd --help | true; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
