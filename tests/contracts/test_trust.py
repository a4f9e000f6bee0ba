"""Keys, the signature file, and what a machine requires: each refusal with its own sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekd.contracts import trust
from edgekd.contracts.trust import PublicKey, Requirement, Signature
from edgekd.errors import BundleError, EnvironmentLacksError, InputError, TrustError
from tests.helpers.keys import without_library

MANIFEST = b'{"name": "x"}\n'
WHERE = Path("b/signature.json")


def private(seed: int = 1) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)


def signature(seed: int = 1, manifest: bytes = MANIFEST) -> Signature:
    key = private(seed)
    public = PublicKey(trust.raw_public(key.public_key()))
    return trust.make_signature(public, key.sign(trust.message(manifest)))


def pem(key: object) -> bytes:
    return key.public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)  # type: ignore


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two public key files."""
    monkeypatch.delenv(trust.SIGNER_VARIABLE, raising=False)
    files = []
    for seed in (1, 2):
        file = tmp_path / f"{seed}.pub"
        file.write_bytes(pem(private(seed).public_key()))
        files.append(file)
    return files


def test_the_format_never_changes() -> None:
    """Boards in the field verify what is signed later: these bytes are a promise."""
    found = signature()
    assert found.text() == (
        "{\n"
        '  "algorithm": "ed25519",\n'
        '  "key_id": "34750f98bd59fcfc946da45aaabe933b",\n'
        '  "public_key": "8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121bf3748801b40f6f5c",\n'
        '  "schema": 1,\n'
        f'  "signature": "{found.signature}"\n'
        "}\n"
    )
    assert found.signature == SIGNED
    assert trust.parse_signature(found.text().encode(), WHERE) == found


SIGNED = (
    "6ef41fb34eb0bef2636adf39bdaa94f785b0081b571b8a04c1bfc9747025e361"
    "5ff8853e05aaf575f2a441576399398e1570f4a280309cce15e7c1d781fe970e"
)


def test_a_signature_holds_for_its_manifest_alone() -> None:
    key = trust.check_signature(Path("b"), MANIFEST, signature())
    assert key == signature().key and key.file == ""
    for manifest in (MANIFEST + b" ", b"", MANIFEST.replace(b"x", b"y")):
        with pytest.raises(TrustError, match=r"does not fit its manifest\.json") as caught:
            trust.check_signature(Path("b"), manifest, signature())
        assert caught.value.exit_code == 1 and isinstance(caught.value, BundleError)


def test_a_signature_without_the_prefix_is_none() -> None:
    """What the same key signed for another purpose is no signature of a bundle."""
    bare = private().sign(MANIFEST)
    with pytest.raises(TrustError, match="does not fit"):
        trust.check_signature(Path("b"), MANIFEST, trust.make_signature(signature().key, bare))


def test_every_bit_of_a_signature_file_counts() -> None:
    content = signature().text().encode()
    refused = 0
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(TrustError):
                trust.check_signature(
                    Path("b"), MANIFEST, trust.parse_signature(bytes(changed), WHERE)
                )
            refused += 1
    assert refused == 8 * len(content)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "[" * 100_000,
        lambda text: text.replace("{\n", '{\n  "remark": "by me",\n'),
        lambda text: text.replace('"schema": 1', '"schema": 1,\n  "schema": 1'),
        lambda text: text.replace('"schema": 1', '"schema": 0'),
        lambda text: text.replace('"schema": 1', '"schema": true'),
        lambda text: text.replace("ed25519", "none"),
        lambda text: text.replace('"key_id": "3', '"key_id": "4'),
        lambda text: text.upper(),
    ],
)
def test_a_signature_file_is_what_sign_writes_to_the_letter(change: object) -> None:
    text = signature().text()
    changed = change(text)  # type: ignore[operator]
    assert changed != text
    with pytest.raises(TrustError, match="is not what edgekd sign wrote"):
        trust.parse_signature(changed.encode(), WHERE)


def test_a_later_schema_asks_for_a_newer_edgekd() -> None:
    text = signature().text().replace('"schema": 1', '"schema": 2')
    with pytest.raises(TrustError, match="has schema 2 and this edgekd reads schema 1"):
        trust.parse_signature(text.encode(), WHERE)


def test_who_is_accepted(keys: list[Path]) -> None:
    first, second = trust.requirements(keys[0]), trust.requirements(keys[1])
    both = trust.requirements(keys)
    assert [len(item[0].keys) for item in (first, second, both)] == [1, 1, 2]
    for required in (first, both, (*first, *both)):
        assert trust.check_signature(Path("b"), MANIFEST, signature(), required).raw
    for required in (second, (*first, *second), (*second, *first)):
        with pytest.raises(TrustError) as caught:
            trust.check_signature(Path("b"), MANIFEST, signature(), required)
        for word in (signature().key.key_id, "--signer accepts", str(keys[1]), "is signed by key"):
            assert word in str(caught.value)


def test_a_claimed_key_is_not_a_signature(keys: list[Path]) -> None:
    """The accepted key written over another's signature."""
    liar = trust.make_signature(signature(1).key, bytes.fromhex(signature(2).signature))
    with pytest.raises(TrustError, match="does not fit"):
        trust.check_signature(Path("b"), MANIFEST, liar, trust.requirements(keys[0]))


def test_no_signature(keys: list[Path]) -> None:
    with pytest.raises(TrustError, match=r"b is not signed \(it has no signature.json\); get") as e:
        trust.check_signature(Path("b"), MANIFEST, None)
    with pytest.raises(TrustError, match=r"b is not signed .*, and --signer accepts") as e:
        trust.check_signature(Path("b"), MANIFEST, None, trust.requirements(keys[0]))
    assert str(keys[0]) in str(e.value)


def test_the_environment_is_never_ignored(
    keys: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert trust.requirements() == ()
    name = trust.SIGNER_VARIABLE
    monkeypatch.setenv(name, str(keys[0]))
    assert [item.source for item in trust.requirements()] == [name]
    given = trust.requirements(keys[1])  # neither widens the other
    assert [item.source for item in given] == ["--signer", name]
    for seed in (1, 2):
        with pytest.raises(TrustError, match="accepts"):
            trust.check_signature(Path("b"), MANIFEST, signature(seed), given)
    monkeypatch.setenv(name, os.pathsep.join(map(str, keys)))
    assert len(trust.requirements()[0].keys) == 2
    monkeypatch.chdir(tmp_path)
    for value in ("", " ", "1.pub", f"{keys[0]}{os.pathsep}", f"{os.pathsep}{keys[0]}"):
        monkeypatch.setenv(name, value)
        with pytest.raises(InputError, match=f"{name} is set to '{value}', expected absolute"):
            trust.requirements(keys[0])
    monkeypatch.setenv(name, str(tmp_path / "gone.pub"))
    with pytest.raises(InputError, match="gone.pub does not exist"):
        trust.requirements()


def test_a_list_without_a_key_is_refused(keys: list[Path]) -> None:
    for empty in ([], (), iter([])):
        with pytest.raises(InputError, match="signer holds no key"):
            trust.requirements(empty)
    assert trust.requirements(str(keys[0])) == trust.requirements([keys[0]])


def test_key_files(keys: list[Path], tmp_path: Path) -> None:
    assert trust.load_public_key(keys[0]) == PublicKey(signature().key.raw)
    assert str(trust.load_public_key(keys[0])) == f"{signature().key.key_id} ({keys[0]})"
    file = tmp_path / "k"
    secret = private().private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    other = rsa.generate_private_key(65537, 2048).public_key()
    two = keys[0].read_bytes() + keys[1].read_bytes()
    good = keys[0].read_bytes()
    for content, words in (
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"x" * 20_000, "has more than 16384 bytes"),
        (b"no key", "is no public key in PEM"),
        (good.replace(b"MCow", b"MCox"), "is no public key in PEM"),
        (good[: len(good) // 2], "is no public key in PEM"),
        (secret, "holds a private key, expected the public one"),
        (pem(other), r"another kind \(RSAPublicKey\), expected Ed25519"),
        (two, "holds 2 keys, expected one"),
    ):
        file.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            trust.load_public_key(file)
        assert str(file) in str(caught.value) and "\n" not in str(caught.value)
        assert b"MC4C".decode() not in str(caught.value)  # the private key's bytes
    with pytest.raises(InputError, match="cannot be read"):
        trust.load_public_key(tmp_path)


def test_keys_are_compared_whole_not_by_id() -> None:
    raw = signature().key.raw
    assert PublicKey(raw, "a") == PublicKey(raw, "b") != PublicKey(raw[:-1] + b"\0")
    assert Requirement("x", (PublicKey(raw),)).keys[0].key_id == signature().key_id


def test_without_the_library_one_sentence_names_the_extra(
    keys: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = signature()
    without_library(monkeypatch)
    with pytest.raises(EnvironmentLacksError) as caught:
        trust.check_signature(Path("b"), MANIFEST, sample)
    assert 'pip install "edgekd[trust]"' in str(caught.value) and caught.value.exit_code == 3
    with pytest.raises(EnvironmentLacksError, match="trust"):
        trust.load_public_key(keys[0])
