"""Making keys and signing: nothing overwritten, nothing shown, nothing signed that is not whole."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import rsa

from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.contracts.trust import SIGNATURE_NAME, PublicKey, load_public_key, raw_public
from edgekd.deploy import signing
from edgekd.deploy.signing import (
    PASSPHRASE_VARIABLE,
    load_private_key,
    readable_by_others,
    sign_bundle,
    write_key_pair,
)
from edgekd.errors import BundleError, EnvironmentLacksError, InputError, OutputError, TrustError
from edgekd.runtime.bundle import verify_bundle
from tests.helpers.bundles import make_bundle
from tests.helpers.keys import make_pair, sign, without_library


@pytest.fixture(autouse=True)
def no_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "b", 16)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_a_pair(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        pair = write_key_pair(tmp_path / "keys" / "fleet.v2")
    finally:
        os.umask(before)
    assert (pair.private.name, pair.public.name) == ("fleet.v2.key", "fleet.v2.pub")
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert stat.S_IMODE(pair.public.stat().st_mode) == 0o644 & ~umask
    assert not readable_by_others(pair.private) and not pair.encrypted
    key = load_private_key(pair.private)
    assert PublicKey(raw_public(key.public_key())) == load_public_key(pair.public) == pair.key
    assert pair.private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")  # PKCS8
    assert write_key_pair(tmp_path / "other").key != pair.key


@pytest.mark.parametrize("suffix", [".key", ".pub"])
def test_a_key_is_never_overwritten(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fleet{suffix}"
    path.write_text("precious")
    with pytest.raises(OutputError, match=f"fleet{suffix} exists and keys are never overwritten"):
        make_pair(tmp_path)
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")  # a link that leads nowhere is something too
    with pytest.raises(OutputError, match="never overwritten"):
        make_pair(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == [f"fleet{suffix}"]


def test_a_key_that_appears_meanwhile_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fleet.pub").write_text("precious")
    monkeypatch.setattr(signing.os.path, "lexists", lambda _: False)
    with pytest.raises(OutputError, match="cannot be written: File exists"):
        make_pair(tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["fleet.pub"]
    assert (tmp_path / "fleet.pub").read_text() == "precious"


def test_a_name_with_a_suffix_and_a_place_that_cannot_be(tmp_path: Path) -> None:
    for name in ("fleet.key", "fleet.pub", "fleet.pem"):
        with pytest.raises(OutputError, match="path without suffix"):
            write_key_pair(tmp_path / name)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_key_pair(tmp_path / "file" / "fleet")


def test_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = write_key_pair(tmp_path / "fleet", b"open sesame")
    assert pair.encrypted and b"BEGIN ENCRYPTED PRIVATE KEY" in pair.private.read_bytes()
    with pytest.raises(InputError, match=f"is encrypted and no .* set {PASSPHRASE_VARIABLE}"):
        load_private_key(pair.private)
    assert load_private_key(pair.private, lambda: "open sesame")
    with pytest.raises(InputError, match="is encrypted and no passphrase"):
        load_private_key(pair.private, lambda: "")
    for wrong in ("open", "hunter2-secret"):
        monkeypatch.setenv(PASSPHRASE_VARIABLE, wrong)
        with pytest.raises(InputError, match="the passphrase does not open it") as caught:
            load_private_key(pair.private, lambda: pytest.fail("the environment comes first"))
        assert "hunter2" not in str(caught.value)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    key = load_private_key(pair.private)
    assert raw_public(key.public_key()) == pair.key.raw
    plain = make_pair(tmp_path, "plain")
    with pytest.raises(InputError, match=r"is not encrypted, yet EDGEKD_KEY_PASSPHRASE is set"):
        load_private_key(plain.private)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "")
    for use in (lambda: load_private_key(plain.private), signing.passphrase_from_environment):
        with pytest.raises(InputError, match="is set and empty"):
            use()


def test_private_key_files(tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    rsa_key = rsa.generate_private_key(65537, 2048).private_bytes(
        ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()
    )
    good = pair.private.read_bytes()
    file = tmp_path / "k"
    for content, words in (
        (b"", "is empty"),
        (b"x" * 20_000, "has more than 16384 bytes"),
        (b"no key", "cannot be used as a key: expected a private key in PEM"),
        (good[: len(good) // 2], "cannot be used as a key"),
        (rsa_key, r"another kind \(RSAPrivateKey\), expected Ed25519"),
        (pair.public.read_bytes(), "holds a public key, which can only verify"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            load_private_key(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        assert good.splitlines()[1].decode() not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        load_private_key(tmp_path / "gone.key")
    pair.private.chmod(0o640)
    assert readable_by_others(pair.private)


def test_signing_the_same_again_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    key = load_private_key(pair.private)
    first = sign_bundle(bundle, key)
    content = first.path.read_bytes()
    second = sign_bundle(bundle, key)
    assert second.path.read_bytes() == content
    assert (first.had_signature, first.replaced) == (False, None)
    assert (second.had_signature, second.replaced) == (True, pair.key)
    assert verify_bundle(bundle).signer == pair.key
    names = {item.name for item in bundle.iterdir()}
    assert names == {MANIFEST_NAME, SIGNATURE_NAME, "model.onnx", "golden.npz"}


def test_another_key_asks_first(bundle: Path, tmp_path: Path) -> None:
    first, second = make_pair(tmp_path), make_pair(tmp_path, "other")
    sign(bundle, first)
    before = (bundle / SIGNATURE_NAME).read_bytes()
    with pytest.raises(TrustError, match=f"is signed by key {first.key.key_id}.*--replace"):
        sign(bundle, second)
    assert (bundle / SIGNATURE_NAME).read_bytes() == before
    done = sign_bundle(bundle, load_private_key(second.private), replace=True)
    assert done.replaced == PublicKey(first.key.raw)
    assert verify_bundle(bundle).signer == second.key


def test_a_damaged_signature_goes_only_when_told(bundle: Path, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    place = bundle / SIGNATURE_NAME
    place.write_text("{}")
    with pytest.raises(TrustError, match="is not what edgekd sign wrote"):
        sign(bundle, pair)
    assert place.read_text() == "{}"
    sign(bundle, pair, replace=True)
    place.unlink()
    outside = tmp_path / "outside.json"
    outside.write_text("precious")
    place.symlink_to(outside)
    with pytest.raises(TrustError, match="is a symbolic link"):
        sign(bundle, pair)
    sign(bundle, pair, replace=True)  # the link goes, what it led to stays
    assert outside.read_text() == "precious" and not place.is_symlink()
    assert verify_bundle(bundle).signer == pair.key
    place.unlink()
    place.mkdir()
    with pytest.raises(OutputError, match="is a folder; remove it"):
        sign(bundle, pair, replace=True)


def test_only_what_is_whole_is_signed(bundle: Path, tmp_path: Path) -> None:
    pair = make_pair(tmp_path)
    (bundle / "notes.txt").touch()
    with pytest.raises(TrustError, match=r"notes\.txt, which its manifest does not name"):
        sign(bundle, pair)
    (bundle / "notes.txt").unlink()
    for name in ("model.onnx", "golden.npz", MANIFEST_NAME):
        blob = (bundle / name).read_bytes()
        (bundle / name).write_bytes(blob[:-1] + b"?")
        with pytest.raises(BundleError, match="was changed after"):
            sign(bundle, pair)
        (bundle / name).write_bytes(blob)
    assert not (bundle / SIGNATURE_NAME).exists()
    with pytest.raises(BundleError, match="is not a bundle"):
        sign(tmp_path, pair)


def test_a_bundle_that_cannot_be_written(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = make_pair(tmp_path)
    monkeypatch.setattr(signing.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable, so its signature cannot be stored"):
        sign(bundle, pair)


def test_openssl_agrees(bundle: Path, tmp_path: Path) -> None:
    """An independent program verifies what we signed, over what the format's text says."""
    import json
    import shutil
    import subprocess

    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pair = make_pair(tmp_path)
    sign(bundle, pair)
    signed = b"edgekd bundle manifest, signature schema 1\n" + (bundle / MANIFEST_NAME).read_bytes()
    (tmp_path / "message").write_bytes(signed)
    value = json.loads((bundle / SIGNATURE_NAME).read_text())["signature"]
    (tmp_path / "raw").write_bytes(bytes.fromhex(value))
    done = subprocess.run(
        ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", pair.public, "-rawin", "-in",
         tmp_path / "message", "-sigfile", tmp_path / "raw"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "Verified Successfully" in done.stdout, done.stderr


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(tmp_path)
    without_library(monkeypatch)
    for use in (lambda: make_pair(tmp_path, "new"), lambda: load_private_key(pair.private)):
        with pytest.raises(EnvironmentLacksError, match=r"edgekd\[trust\]"):
            use()
    assert not (tmp_path / "new.key").exists()
