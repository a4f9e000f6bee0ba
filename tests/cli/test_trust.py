"""keygen, sign and verify as typed, and --signer wherever a bundle is loaded."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgekd.cli.main import main
from edgekd.contracts.trust import SIGNATURE_NAME, SIGNER_VARIABLE
from edgekd.deploy.signing import PASSPHRASE_VARIABLE
from edgekd.runtime.bundle import sealed_json
from edgekd.runtime.session import read_manifest
from tests.conftest import ROOT
from tests.helpers.bundles import an_origin, make_bundle
from tests.helpers.keys import make_pair, sign, without_library
from tests.helpers.labelled import CLASSES, make_set
from tests.helpers.rasters import smooth_image, write_raster

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys ``fleet`` and ``other``; bundles ``b`` (signed by fleet), ``plain``; data; a scene."""
    root = tmp_path_factory.mktemp("trust")
    make_bundle(root / "plain", 64, changes={"classes": CLASSES, "provenance": an_origin()})
    shutil.copytree(root / "plain", root / "b")
    make_pair(root, "other")
    sign(root / "b", make_pair(root))
    make_set(root / "data", count=1)
    write_raster(root / "in.tif", smooth_image(60, 50))
    (root / "arriving").mkdir()
    return root


@pytest.fixture
def work(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as working directory, without a policy in the environment."""
    monkeypatch.delenv(SIGNER_VARIABLE, raising=False)
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    return tmp_path / "w"


@pytest.fixture
def call(work: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """``call("verify b")`` -> exit code, stdout, stderr."""

    def run(command: str) -> tuple[int, str, str]:
        code = main(command.split())
        return code, *capfd.readouterr()

    return run


def test_from_keys_to_a_required_signer(call: Any, work: Path) -> None:
    code, out, err = call("keygen -o keys/new")
    assert code == 0 and err == "next: edgekd sign BUNDLE --key keys/new.key\n"
    assert "keys/new.key (mode 0600, not encrypted: whoever reads it can sign)" in out
    assert (work / "keys" / "new.key").read_text().splitlines()[1] not in out + err
    key = out.splitlines()[2].removeprefix("key id: ")
    code, out, err = call("sign plain --key keys/new.key")
    assert code == 0 and f"signed by key {key}" in out
    assert err == "next: edgekd verify plain --signer keys/new.pub\n"
    code, out, err = call("verify plain")
    assert code == 0 and f"signed by key {key}" in out and "2 files are as signed" in out
    assert "not who made it" in err and "verify plain --signer PUBLIC_KEY" in err
    code, out, err = call("verify plain --signer other.pub --signer keys/new.pub")
    assert (code, err) == (0, "") and "accepted by --signer (keys/new.pub)" in out
    code, out, err = call("run plain in.tif -o m.tif --signer keys/new.pub")
    assert code == 0 and (work / "m.tif").is_file()


def test_json_is_one_object(call: Any) -> None:
    code, out, _ = call("keygen -o new --json")
    pair = json.loads(out)
    assert code == 0 and pair["private_key"] == "new.key" and pair["encrypted"] is False
    code, out, err = call("sign plain --key new.key --json")
    done = json.loads(out)
    assert (code, err, done["key_id"], done["replaced"]) == (0, "", pair["key_id"], None)
    code, out, err = call("verify plain --json --signer new.pub")
    value = json.loads(out)
    assert (code, err) == (0, "") and value["public_key"] == done["public_key"]
    assert value["signer_required"] is True
    assert value["accepted"] == [{"by": "--signer", "public_key_file": "new.pub"}]
    value = json.loads(call("verify plain --json")[1])
    assert value["signer_required"] is False and value["accepted"] == []
    code, out, _ = call("sign plain --key other.key --replace --json")
    assert code == 0 and json.loads(out)["replaced"] == pair["key_id"]


LOADS = {
    "run": "run {} in.tif -o m.tif",
    "watch": "watch {} arriving maps --once --settle 0",
    "bench": "bench {} in.tif --seconds 0.1 --warmup 0.1 --repeats 1 -o r.json",
    "eval": "eval {} --data data --split all",
    "validate": "validate {}",
    "verify": "verify {}",
}


@pytest.mark.parametrize("name", LOADS)
def test_a_signer_can_be_required_wherever_a_bundle_is_loaded(
    name: str, call: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = LOADS[name]
    before = sorted(item.name for item in work.iterdir())
    for bundle, words in (("b", "is signed by key"), ("plain", "is not signed (it has no")):
        code, out, err = call(command.format(bundle) + " --signer other.pub")
        assert (code, out) == (1, "") and words in err and "--signer accepts" in err
        monkeypatch.setenv(SIGNER_VARIABLE, str(work / "other.pub"))
        code, out, err = call(command.format(bundle))
        assert (code, out) == (1, "") and words in err and "EDGEKD_SIGNER accepts" in err
        code, out, err = call(command.format(bundle) + " --signer fleet.pub")
        assert (code, out) == (1, "")
        monkeypatch.setenv(SIGNER_VARIABLE, "")
        code, out, err = call(command.format(bundle))
        assert (code, out) == (2, "") and "EDGEKD_SIGNER is set to ''" in err
        monkeypatch.delenv(SIGNER_VARIABLE)
    assert sorted(item.name for item in work.iterdir()) == before
    code, _, err = call(command.format("b") + " --signer fleet.pub --signer other.pub")
    assert code in ((0, 1) if name == "bench" else (0,)), err  # a busy machine spoils a record
    assert "signed by key" not in err


def test_every_command_that_loads_bundles_is_in_that_list() -> None:
    loading = {
        path.stem
        for path in (ROOT / "edgekd" / "cli").glob("*.py")
        if "session import load\n" in path.read_text() or "verify_bundle" in path.read_text()
    }
    assert loading == set(LOADS)


def test_a_check_of_a_bundle_requires_the_devices_signer(
    call: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "other.pub"))
    code, out, err = call("check b --target x86-cpu")
    assert (code, out) == (1, "") and "EDGEKD_SIGNER accepts" in err
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "fleet.pub"))
    assert "EDGEKD_SIGNER" not in call("check b --target x86-cpu")[2]


def test_signer_without_a_bundle_is_not_ignored(call: Any, work: Path) -> None:
    recipe = ROOT / "engines" / "canopy.yaml"
    code, _, err = call(f"validate {recipe} --signer fleet.pub")
    assert code == 2 and "--signer is about bundles" in err
    assert call(f"validate {recipe} b --signer fleet.pub")[0] == 0
    code, _, err = call("eval in.tif --data data --signer fleet.pub")
    assert code == 2 and "--signer is about bundles, and in.tif is none" in err


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_tampering_each_with_its_own_sentence(call: Any, work: Path) -> None:
    """The list of the issue, as a user types it."""
    said = {}

    def refused(what: str, command: str, *words: str) -> None:
        code, out, err = call(command)
        # whether a bundle is whole is what verify is asked; for run a damaged one is bad input
        assert out == "" and code in ((1,) if command.startswith("verify") else (1, 2))
        assert err.startswith("error: ") and err.count("\n") == 1
        for word in words:
            assert word in err, (what, err)
        said[what + command.split()[0]] = err

    def fresh() -> Path:
        shutil.rmtree(work / "b", ignore_errors=True)
        return Path(shutil.copytree(work / "kept", work / "b"))

    shutil.copytree(work / "b", work / "kept")
    names = sorted(item.name for item in (work / "kept").iterdir())
    assert len(names) == 4
    for command in ("verify b --signer fleet.pub", "run b in.tif -o m.tif --signer fleet.pub"):
        for name in names:
            flip(fresh() / name)
            refused(name, command, name)
        bundle = fresh()
        (bundle / "model.onnx").rename(bundle / "t")
        (bundle / "golden.npz").rename(bundle / "model.onnx")
        (bundle / "t").rename(bundle / "golden.npz")
        refused("swap", command, "files were exchanged")
        (fresh() / SIGNATURE_NAME).unlink()
        refused("strip", command, "is not signed (it has no signature.json)")
        sign(fresh(), make_pair(work, f"mallory-{command[:3]}"), replace=True)
        refused("other", command, "is signed by key", "--signer accepts")
    assert not (work / "m.tif").exists()
    for command in ("verify", "run"):
        sentences = [text for what, text in said.items() if what.endswith(command)]
        assert len(sentences) == 7 == len(set(sentences))


def test_what_a_bundle_calls_itself_forges_no_line(call: Any, work: Path) -> None:
    path = work / "b" / "manifest.json"
    value = json.loads(path.read_text())
    value["title"] = "x\nsignature: valid, by key fleet\x1b[2J\u202e"
    path.write_text(sealed_json(value))
    (work / "b" / SIGNATURE_NAME).unlink()
    _, text, _ = call("inspect b")
    assert "x\\nsignature: valid, by key fleet\\x1b[2J\\u202e" in text
    assert not [line for line in text.splitlines() if line.startswith("signature: valid")]


def test_inspect_tells_a_person(call: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = json.loads((work / "b" / SIGNATURE_NAME).read_text())["key_id"]

    def trust(code: int = 0) -> tuple[dict[str, Any], str, str]:
        found, out, _ = call("inspect b --json")
        assert found == code
        value = json.loads(out)
        found, text, err = call("inspect b")
        assert found == code and ("error: " in err) == (code != 0)
        told = value.pop("trust")
        assert value == read_manifest(work / "b").plain()
        return told, text, err

    told, text, _ = trust()
    assert (told["signature"], told["key_id"], told["accepted"]) == ("valid", key, None)
    assert f"signature: valid, by key {key}" in text and told["extra_files"] == []
    (work / "b" / "notes.txt").touch()
    told, text, _ = trust()
    assert told["extra_files"] == ["notes.txt"]
    assert "not named by the manifest, so never used: notes.txt" in text
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "fleet.pub"))
    told, text, _ = trust()
    assert told["accepted"] is True and "which EDGEKD_SIGNER accepts" in text
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "other.pub"))
    told, text, err = trust(1)
    assert (told["signature"], told["accepted"]) == ("valid", False)
    assert "NOT ACCEPTED" in text and told["why"] in err
    monkeypatch.delenv(SIGNER_VARIABLE)
    shutil.copyfile(work / "b" / SIGNATURE_NAME, work / "kept")
    flip(work / "b" / SIGNATURE_NAME)
    told, text, err = trust(1)
    assert told["signature"] == "not valid" and "signature: NOT VALID" in text
    (work / "b" / SIGNATURE_NAME).unlink()
    told, text, _ = trust()
    assert told["signature"] == "none" and "signature: nobody signed it" in text
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "fleet.pub"))
    told, text, err = trust(1)
    assert told["accepted"] is False and "is not signed" in err
    monkeypatch.delenv(SIGNER_VARIABLE)
    shutil.copyfile(work / "kept", work / "b" / SIGNATURE_NAME)
    without_library(monkeypatch)
    told, text, _ = trust()
    assert told["signature"] == "not checked" and "edgekd[trust]" in text


def test_without_the_library_verify_ends_with_3(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    for command in (
        "verify b", "verify b --signer fleet.pub", "run b in.tif -o m.tif --signer fleet.pub",
        "keygen -o new", "sign plain --key fleet.key",
    ):  # fmt: skip
        code, out, err = call(command)
        assert (code, out) == (3, "") and 'pip install "edgekd[trust]"' in err


def test_doctor_knows_the_policy(call: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = call("doctor --json")
    value = json.loads(out)
    assert value["signer"] is None and "cryptography" in value["extras"]["trust"]["has"]
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "fleet.pub"))
    assert "EDGEKD_SIGNER accepts" in json.loads(call("doctor --json")[1])["signer"]
    monkeypatch.setenv(SIGNER_VARIABLE, str(work / "gone.pub"))
    code, out, err = call("doctor")
    assert code == 3 and "gone.pub does not exist" in err


def test_a_key_that_others_can_read_is_remarked_on(call: Any, work: Path) -> None:
    (work / "fleet.key").chmod(0o644)
    code, _, err = call("sign plain --key fleet.key")
    assert code == 0 and "note: other accounts can read fleet.key; type: chmod 600" in err


def test_a_key_from_a_pipe(work: Path) -> None:
    """As a secret store hands it over, without a file on disk."""
    done = subprocess.run(
        f"{sys.executable} -m edgekd sign plain --key <(cat fleet.key) --json",
        shell=True, executable="/bin/bash", cwd=work, capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (work / "plain" / SIGNATURE_NAME).is_file()


def in_a_terminal(work: Path, command: str, typed: str) -> tuple[int, str]:
    """Exit code and everything a person sees."""
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "edgekd", *command.split()],
        cwd=work, stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # it controls the session
    ) as process:  # fmt: skip
        os.close(secondary)
        seen, left = b"", typed.splitlines()
        while select.select([primary], [], [], 60)[0]:
            try:
                part = os.read(primary, 4096)
            except OSError:  # the terminal is gone with the process
                break
            if not part:
                break
            seen += part
            # the space comes when echo is off; what is typed before is thrown away
            if left and seen.endswith(b": "):
                seen += b"\n"
                os.write(primary, f"{left.pop(0)}\n".encode())
        else:
            process.kill()
        code = process.wait(60)
    os.close(primary)
    return code, seen.decode()


def test_a_passphrase_is_asked_for_and_never_shown(work: Path) -> None:
    code, seen = in_a_terminal(work, "keygen -o new --passphrase", "hunter2\nhunter2")
    assert code == 0 and "encrypted" in seen and "hunter2" not in seen
    assert "ENCRYPTED" in (work / "new.key").read_text()
    code, seen = in_a_terminal(work, "sign plain --key new.key", "hunter2")
    assert code == 0 and "passphrase of new.key" in seen and "hunter2" not in seen
    code, seen = in_a_terminal(work, "sign plain --key new.key", "hunter3")
    assert code == 2 and "does not open it" in seen and "hunter3" not in seen


def test_a_passphrase_without_a_terminal(
    call: Any, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "hunter2")
    code, out, err = call("keygen -o new")
    assert code == 0 and "(mode 0600, encrypted)" in out and "hunter2" not in out + err
    code, out, err = call("sign plain --key new.key")
    assert code == 0 and "hunter2" not in out + err
    monkeypatch.delenv(PASSPHRASE_VARIABLE)
    for command in ("sign plain --key new.key", "keygen -o more --passphrase"):
        monkeypatch.setattr(sys, "stdin", (work / "in.tif").open())
        code, _, err = call(command)
        assert code == 2 and "no terminal to ask in; set EDGEKD_KEY_PASSPHRASE" in err
    assert not (work / "more.key").exists()
