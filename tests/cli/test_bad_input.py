"""Wrong input: one helpful line on stderr, the right exit code, and nothing written anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgekd.cli.main import main
from edgekd.contracts.artifacts import sha256_file
from tests.cli.bad_input_table import CASES, Case, make_work

ROOT = Path(__file__).resolve().parents[2]
#: progress bars and notes that may stand before the error
PROGRESS = (
    "run:", "eval:", "finetune:", "bench:", "build:", "note:", "measure:", "carbonation:", "adapt:"
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_work(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def here(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The work folder as working directory, on one thread, never on a GPU."""
    monkeypatch.chdir(work)
    torch.set_num_threads(1)
    return work


def snapshot(folder: Path) -> dict[str, str]:
    """Every file with its hash and every folder, hidden ones too."""
    return {
        str(item.relative_to(folder)): sha256_file(item) if item.is_file() else ""
        for item in sorted(folder.rglob("*"))
    }


def assert_one_line(err: str, words: tuple[str, ...]) -> None:
    assert "Traceback" not in err and 'File "' not in err
    lines = [
        line
        for line in err.replace("\r", "\n").splitlines()
        if line.strip() and not line.startswith(PROGRESS)
    ]
    assert len(lines) == 1 and lines[0].startswith("error: "), err
    assert err.endswith(lines[0] + "\n")  # the last thing said
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"


def test_the_list_is_long_and_its_names_differ() -> None:
    assert len(CASES) >= 90 and len({case.name for case in CASES}) == len(CASES)
    used = {case.command.split()[0] for case in CASES}
    commands = {"validate", "finetune", "eval", "export", "check", "build", "inspect", "run"}
    assert used >= commands | {"bench", "report", "ls", "keygen", "sign", "verify"}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_wrong_input(case: Case, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = snapshot(here)
    code = main([*case.command.split(), "--json"])
    out, err = capfd.readouterr()
    assert snapshot(here) == before
    assert (code, out) == (case.code, ""), err
    assert_one_line(err, case.words)


@pytest.mark.parametrize(
    "name",
    [
        "GeoTIFF cut, directory in front",
        "JPEG cut in half",
        "float image with NaN",
        "checkpoint cut (export)",
        "recipe with three mistakes",
    ],
)
def test_the_same_in_a_process_of_its_own(name: str, here: Path) -> None:
    """Libraries in C print past Python's streams; only a process shows it."""
    case = next(item for item in CASES if item.name == name)
    before = snapshot(here)
    done = subprocess.run(
        [sys.executable, "-m", "edgekd", *case.command.split()],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert snapshot(here) == before
    assert (done.returncode, done.stdout) == (case.code, "")
    assert_one_line(done.stderr, case.words)


@pytest.mark.parametrize(
    ("command", "folder"),
    [
        ("run b in.tif -o {}/m.tif", "locked"),
        ("export small.ckpt -o {}/m.onnx", "locked"),
        ("build small.yaml --target x86-cpu --checkpoint small.ckpt -o {}/b", "locked"),
        ("eval b --data data -o {}/e.json", "locked"),
        ("finetune small.yaml --data data -o {}", "locked"),
    ],
)
def test_a_folder_without_permission(
    command: str,
    folder: str,
    here: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tests may run as root, for whom every folder is writable, so the question is answered."""
    locked = tmp_path / folder
    locked.mkdir()
    real = os.access

    def access(path: object, mode: int) -> bool:
        return real(path, mode) and not (  # type: ignore[call-overload,no-any-return]
            Path(str(path)) == locked and mode & os.W_OK
        )

    monkeypatch.setattr(os, "access", access)
    code = main(command.format(locked).split())
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert_one_line(err, (f"{locked} is not writable; choose another with -o",))
    assert list(locked.iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "golden.npz", "manifest.json"])
def test_every_byte_of_a_bundle_counts(
    name: str, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first, the last and some between; each changed alone."""
    plain = (here / "b" / name).read_bytes()
    shutil.copytree(here / "b", tmp_path / "b")
    places = {0, 1, len(plain) // 3, len(plain) // 2, len(plain) - 2, len(plain) - 1}
    for place in sorted(places):
        content = bytearray(plain)
        content[place] ^= 0x20
        (tmp_path / "b" / name).write_bytes(content)
        code = main(["run", str(tmp_path / "b"), "in.tif", "-o", str(tmp_path / "m.tif")])
        out, err = capfd.readouterr()
        assert (code, out) == (2, ""), (place, err)
        assert_one_line(err, (name, "was changed after"))
        assert not (tmp_path / "m.tif").exists()
    for content in (plain + b"\n", plain[:-1], b""):
        (tmp_path / "b" / name).write_bytes(content)
        assert main(["inspect", str(tmp_path / "b")]) == 2
    (tmp_path / "b" / name).write_bytes(plain)
    assert main(["inspect", str(tmp_path / "b")]) == 0


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("name", ["in.tif", "in.png", "in.jpg", "small.ckpt"])
def test_files_cut_anywhere(
    name: str, share: float, here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = (here / name).read_bytes()
    cut = tmp_path / f"cut{Path(name).suffix}"
    cut.write_bytes(content[: int(len(content) * share)])
    if name.endswith(".ckpt"):
        code = main(["inspect", str(cut)])
    else:
        code = main(["run", "b", str(cut), "-o", str(tmp_path / "m.tif")])
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    assert_one_line(err, (cut.name,))
    assert [item.name for item in tmp_path.iterdir()] == [cut.name]


def test_an_earlier_result_survives_a_failed_command(
    here: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for command, suffix in (
        ("run b cut.tif -o {}", ".tif"),
        ("export cut.ckpt -o {}", ".onnx"),
        ("eval b --data data-mask-test -o {}", ".json"),
        ("report text.json -o {}", ".html"),
    ):
        place = tmp_path / f"earlier{suffix}"
        place.write_bytes(b"of yesterday")
        assert main(command.format(place).split()) == 2
        assert place.read_bytes() == b"of yesterday"
    capfd.readouterr()
    assert len(list(tmp_path.iterdir())) == 4


def test_an_export_that_differs_keeps_the_earlier_file(
    here: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgekd.deploy.export import onnx_export
    from tests.helpers.bundles import make_model

    def wrong(_model: object, _recipe: object, path: Path) -> onnx_export.OnnxModel:
        path.write_bytes(make_model(tile_px=256, stride_px=16).SerializeToString())
        return onnx_export.OnnxModel(path, "image", "logits", 256, 16, {})

    monkeypatch.setattr(onnx_export, "export_onnx", wrong)
    place = tmp_path / "m.onnx"
    place.write_bytes(b"of yesterday")
    code = main(["export", "small.ckpt", "-o", str(place)])
    out, err = capfd.readouterr()
    assert (code, out) == (1, "")
    assert_one_line(err, ("ONNX and torch differ by", "allowed are 0.0001", "was not written"))
    assert place.read_bytes() == b"of yesterday" and len(list(tmp_path.iterdir())) == 1


def test_cuda_asked_for_and_absent(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = snapshot(here)
    code = main(["finetune", "small.yaml", "--data", "data", "-o", "o", "--accelerator", "cuda"])
    out, err = capfd.readouterr()
    assert (code, out) == (3, "") and snapshot(here) == before
    assert_one_line(err, ("torch sees no CUDA device", "cpu"))


def test_debug_adds_a_traceback_and_keeps_the_line(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "b", "nowhere.tif", "-o", "m.tif", "--debug"]) == 2
    err = capfd.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "error: nowhere.tif does not exist"
