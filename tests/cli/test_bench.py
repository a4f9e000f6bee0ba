"""``edgekd bench``, ``edgekd report`` and ``edgekd doctor`` as a user types them."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest

from edgekd.cli import doctor
from edgekd.cli.main import main
from edgekd.errors import EnvironmentLacksError
from edgekd.report.record import BenchmarkRecord, read_record, write_record
from tests.helpers.bundles import make_bundle
from tests.helpers.records import decide, make_evidence, make_golden, make_record

pytest.importorskip("onnxruntime")
FAST = ["--seconds", "0.05", "--warmup", "0"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bundle"), tile_px=64)


@pytest.fixture
def valid_or_not(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Lets a test decide the verdict: this machine may be busy with other tests."""
    decide(monkeypatch)
    return monkeypatch


def test_bench_prints_figures_writes_the_record_and_says_what_to_type_next(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    valid_or_not: pytest.MonkeyPatch,
) -> None:
    record = tmp_path / "record.json"
    assert main(["bench", str(bundle), "-o", str(record), *FAST]) == 0
    out, err = capsys.readouterr()
    passed = sum(check.status == "pass" for check in make_record().checks)
    assert f"Valid: {passed} checks passed" in out
    assert "bare engine: latency p50, ms" in out
    assert "power" in out and "unavailable" in out
    assert f"next: edgekd report {record} -o {record.with_suffix('.html')}" in err
    assert read_record(record).valid


def test_bench_json_is_one_record_on_stdout(
    bundle: Path, capsys: pytest.CaptureFixture[str], valid_or_not: pytest.MonkeyPatch
) -> None:
    assert main(["bench", str(bundle), "--json", *FAST]) == 0
    record = BenchmarkRecord.model_validate(json.loads(capsys.readouterr().out))
    assert record.input.kind == "synthetic"


def test_bench_of_an_invalid_measurement_keeps_the_record_and_ends_with_1(
    bundle: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decide(monkeypatch, make_evidence(golden=make_golden(1.0)))
    record = tmp_path / "record.json"
    assert main(["bench", str(bundle), "-o", str(record), *FAST]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("NOT VALID")
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "outputs_right" in errors[0]
    assert not read_record(record).valid


def test_a_bundle_of_another_architecture_is_measured_only_as_invalid(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    bundle = make_bundle(tmp_path / "other", tile_px=64, arch=arch)
    assert main(["bench", str(bundle), *FAST]) == 2
    capsys.readouterr()
    assert main(["bench", str(bundle), "--any-device", "--json", *FAST]) == 1
    record = BenchmarkRecord.model_validate(json.loads(capsys.readouterr().out))
    assert "device_fits" in [check.name for check in record.failed()]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "is not a bundle"),
        (["BUNDLE", "nowhere.tif"], "does not exist"),
        (["BUNDLE", "--seconds", "0"], "above 0 s"),
        (["BUNDLE", "--repeats", "0"], "at least 1 repeat"),
        (["BUNDLE", "--bands", "a,b"], "numbers like"),
        (["BUNDLE", "--overlap", "64"], "overlap"),
    ],
)
def test_wrong_use_of_bench_is_one_line_and_2(
    bundle: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(bundle) if part == "BUNDLE" else part for part in arguments]
    assert main(["bench", *given]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    errors = [line for line in err.splitlines() if "error:" in line]
    assert len(errors) == 1 and words in errors[0]
    assert "Traceback" not in err


def test_report_writes_html_and_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(tmp_path / f"{name}.json") for name in ("a", "b")]
    for path in paths:
        write_record(make_record(name=Path(path).stem), Path(path))
    for name in ("r.html", "r.md"):
        assert main(["report", *paths, "-o", str(tmp_path / name)]) == 0
        assert "Side by side" in (tmp_path / name).read_text()
    capsys.readouterr()
    assert main(["report", paths[0]]) == 0
    assert capsys.readouterr().out.startswith("# edgekd: a measured")
    assert main(["report", *paths, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [item["bundle"] for item in summary["records"]] == ["a", "b"]
    assert summary["records"][0]["engine_p50_s"] == 0.05


@pytest.mark.parametrize("text", ["", "not json", "{}", '{"kind": "edgekd.benchmark"}', "[1]"])
def test_a_wrong_record_is_one_line_and_2_and_nothing_is_written(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad, page = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "r.html"
    write_record(make_record(), good)
    bad.write_text(text)
    assert main(["report", str(good), str(bad), "-o", str(page)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: ") and str(bad) in err
    assert not page.exists()


def test_report_refuses_other_suffixes_and_its_own_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.md"
    write_record(make_record(), good)
    before = good.read_bytes()
    assert main(["report", str(good), "-o", str(tmp_path / "r.pdf")]) == 2
    assert main(["report", str(good), "-o", str(good)]) == 2
    assert good.read_bytes() == before
    assert main(["report"]) == 2


def test_doctor_says_what_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "running bundles  works" in out
    assert "unavailable" in out
    assert main(["doctor", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["runtime_works"] is True
    assert value["environment"]["hostname"] is None
    assert value["extras"]["onnxrt"]["complete"] is True
    lacking = [item for item in value["extras"].values() if not item["complete"]]
    assert all("pip install" in item["install"] for item in lacking)
    names = {target["name"] for target in value["targets"]}
    assert "x86-cpu" in names
    for target in value["targets"]:
        assert target["fits"] == (target["arch"] == platform.machine())


def test_doctor_ends_with_3_where_bundles_cannot_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import edgekd.contracts.optional as optional

    def lacking(module: str, extra: str, why: str) -> None:
        if module in ("onnxruntime", "tensorrt"):
            raise EnvironmentLacksError(f'{module}; type: pip install "edgekd[{extra}]"')

    monkeypatch.setattr(optional, "require", lacking)
    assert main(["doctor"]) == 3
    out, err = capsys.readouterr()
    assert 'pip install "edgekd[onnxrt]"' in out
    assert err.count("error:") == 1
    assert main(["doctor", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["runtime_works"] is False


@pytest.mark.parametrize(
    ("absent", "code"),
    [
        ({"onnxruntime"}, 0),  # a Jetson
        ({"tensorrt"}, 0),
        ({"pycuda"}, 0),
        ({"onnxruntime", "pycuda"}, 3),  # TensorRT alone runs nothing
        ({"onnxruntime", "tensorrt"}, 3),
        ({"cv2"}, 3),
    ],
)
def test_doctor_wants_one_engine_that_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], absent: set[str], code: int
) -> None:
    import edgekd.contracts.optional as optional

    def lacking(module: str, extra: str, why: str) -> None:
        if module.split(".")[0] in absent:
            raise EnvironmentLacksError(f'{module}; type: pip install "edgekd[{extra}]"')

    monkeypatch.setattr(optional, "require", lacking)
    monkeypatch.setattr(optional, "available", lambda module: module.split(".")[0] not in absent)
    assert main(["doctor", "--json"]) == code
    value = json.loads(capsys.readouterr().out)
    assert value["runtime_works"] is (code == 0)
    if absent == {"onnxruntime", "pycuda"}:  # what is there is what is mended
        assert value["faults"] == ['pycuda.driver; type: pip install "edgekd[trt]"']


def test_doctor_notices_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    assert doctor._writable(str(tmp_path))["verdict"] == "writable"
    assert "not writable" in doctor._writable(str(tmp_path / "nowhere"))["verdict"]
    assert list(tmp_path.iterdir()) == []
