"""Trust while loading: what is refused, before anything is deserialised, and what is then used."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekd.contracts.artifacts import sha256_bytes, sha256_file
from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.contracts.trust import SIGNATURE_NAME, SIGNER_VARIABLE, requirements
from edgekd.errors import BundleError, EnvironmentLacksError, TrustError
from edgekd.runtime import bundle as bundle_module
from edgekd.runtime.bundle import open_bundle, read_manifest, sealed_json, verify_bundle
from edgekd.runtime.session import load, open_session
from tests.helpers.bundles import make_bundle, make_model
from tests.helpers.keys import make_pair, sign, without_library
from tests.helpers.rasters import smooth_image

TILE = 16
FILES = (MANIFEST_NAME, SIGNATURE_NAME, "model.onnx", "golden.npz")


@dataclass
class Spy:
    """What reached the libraries that make objects of bytes."""

    engines: list[Any] = field(default_factory=list)
    archives: int = 0


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Spy:
    seen = Spy()
    session, archive = onnxruntime.InferenceSession, np.load

    def engine(model: Any, *args: Any, **kwargs: Any) -> Any:
        seen.engines.append(model)
        return session(model, *args, **kwargs)

    def opened(*args: Any, **kwargs: Any) -> Any:
        seen.archives += 1
        return archive(*args, **kwargs)

    monkeypatch.setattr(onnxruntime, "InferenceSession", engine)
    monkeypatch.setattr(np, "load", opened)
    return seen


@pytest.fixture(autouse=True)
def no_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIGNER_VARIABLE, raising=False)


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """A bundle that ``fleet.key`` signed; ``fleet.pub`` and ``other.pub`` lie beside it."""
    pair = make_pair(tmp_path)
    make_pair(tmp_path, "other")
    return sign(make_bundle(tmp_path / "b", TILE, classes=3), pair)


def fleet(bundle: Path) -> Path:
    return bundle.parent / "fleet.pub"


def reseal(bundle: Path, **changes: object) -> None:
    """What an attacker can do to a manifest without the key."""
    path = bundle / MANIFEST_NAME
    path.write_text(sealed_json(json.loads(path.read_text()) | changes), encoding="utf-8")


def test_a_signed_bundle_loads_and_says_who(signed: Path, spy: Spy) -> None:
    key = requirements(fleet(signed))[0].keys[0]
    for signer in (fleet(signed), str(fleet(signed)), [signed.parent / "other.pub", fleet(signed)]):
        with load(signed, signer=signer) as session:
            assert session.signer == key.key_id
            assert session.verify() <= session.manifest.golden.atol
    with load(signed) as session:
        assert session.signer is None  # nobody asked, so nobody looked
    sealed = read_manifest(signed).files["model.onnx"]
    assert len(spy.engines) == 4
    for model in spy.engines:  # the checked bytes, never a path that could change meanwhile
        assert isinstance(model, bytes) and sha256_bytes(model) == sealed


def test_every_changed_byte_is_refused_and_never_deserialised(signed: Path, spy: Spy) -> None:
    """Every byte of the signature and the manifest, and 150 of each other file."""
    required = requirements(fleet(signed))
    tried = 0
    for name in FILES:
        path = signed / name
        blob = path.read_bytes()
        few = name in ("model.onnx", "golden.npz")
        places = np.linspace(0, len(blob) - 1, 150 if few else len(blob)).astype(int)
        with path.open("r+b", buffering=0) as stream:
            for place in sorted(set(places.tolist())):
                os.pwrite(stream.fileno(), bytes([blob[place] ^ (1 << place % 8)]), place)
                with pytest.raises(BundleError) as caught:
                    open_session(signed, required)
                assert name in str(caught.value) and "\n" not in str(caught.value)
                os.pwrite(stream.fileno(), blob[place : place + 1], place)
                tried += 1
    assert tried > 2000 and spy == Spy()
    open_session(signed, required).close()
    assert len(spy.engines) == 1


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(FILES), place=st.integers(0), mask=st.integers(1, 255))
def test_any_change_of_any_byte(name: str, place: int, mask: int, whole: Path, spy: Spy) -> None:
    path = whole / name
    blob = path.read_bytes()
    place %= len(blob)
    try:
        path.write_bytes(blob[:place] + bytes([blob[place] ^ mask]) + blob[place + 1 :])
        required = requirements(fleet(whole))
        with pytest.raises(BundleError, match=name.replace(".", r"\.")):
            open_session(whole, required)
        with pytest.raises(TrustError, match=name.replace(".", r"\.")):
            verify_bundle(whole, required)
    finally:
        path.write_bytes(blob)
    assert spy == Spy()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed bundle that is put back as it was after every change."""
    folder = tmp_path_factory.mktemp("signed")
    return sign(make_bundle(folder / "b", TILE, classes=3), make_pair(folder))


def strip(bundle: Path) -> None:
    (bundle / SIGNATURE_NAME).unlink()


def exchange(bundle: Path) -> None:
    (bundle / "model.onnx").rename(bundle / "t")
    (bundle / "golden.npz").rename(bundle / "model.onnx")
    (bundle / "t").rename(bundle / "golden.npz")


def other_key(bundle: Path) -> None:
    strip(bundle)
    sign(bundle, make_pair(bundle.parent, "mallory"))


def other_model(bundle: Path) -> None:
    """Another engine under a new seal, with the signature left as it was."""
    model = bundle / "model.onnx"
    model.write_bytes(make_model(TILE, 4, 3, seed=9).SerializeToString())
    files = json.loads((bundle / MANIFEST_NAME).read_text())["files"]
    reseal(bundle, files=files | {"model.onnx": sha256_file(model)})


def other_signature(bundle: Path) -> None:
    """The signature of another bundle by the same key."""
    from edgekd.deploy.signing import load_private_key, sign_bundle

    twin = make_bundle(bundle.parent / "twin", TILE, classes=2)
    sign_bundle(twin, load_private_key(bundle.parent / "fleet.key"))
    shutil.copyfile(twin / SIGNATURE_NAME, bundle / SIGNATURE_NAME)


def linked(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).rename(bundle.parent / name)
        (bundle / name).symlink_to(bundle.parent / name)

    return change


def folder_for(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        (bundle / name).mkdir()

    return change


def pipe_for(name: str) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        (bundle / name).unlink()
        os.mkfifo(bundle / name)  # opening it would wait for ever

    return change


def padded(name: str, size: int) -> Callable[[Path], None]:
    def change(bundle: Path) -> None:
        os.truncate(bundle / name, size)

    return change


def resealed(**changes: object) -> Callable[[Path], None]:
    return lambda bundle: reseal(bundle, **changes)


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "signature stripped": (strip, r"is not signed \(it has no signature\.json\), and --signer acc"),
    "two files exchanged": (
        exchange,
        r"golden\.npz was changed after .*it holds the bytes of model\.onnx: files were exchanged",
    ),
    "signed by another key": (other_key, "is signed by key .*, and --signer accepts .*fleet.pub"),
    "other model, resealed": (other_model, r"does not fit its manifest\.json: one of the two"),
    "signature of another bundle": (other_signature, r"does not fit its manifest\.json"),
    "manifest resealed": (resealed(title="mine"), r"does not fit its manifest\.json"),
    "manifest with another key": (resealed(extra=1), r"does not fit its manifest\.json"),
    "manifest gone": (lambda b: (b / MANIFEST_NAME).unlink(), "is not a bundle: it has no manif"),
    "model gone": (lambda b: (b / "model.onnx").unlink(), "lacks the file model.onnx; copy"),
    "golden gone": (lambda b: (b / "golden.npz").unlink(), "lacks the file golden.npz; copy"),
    **{
        f"{name} is a link": (linked(name), f"{name} is a symbolic link, which can point elsewhere")
        for name in FILES
    },
    **{f"{name} is a folder": (folder_for(name), f"{name} is no plain file") for name in FILES},
    **{f"{name} is a pipe": (pipe_for(name), f"{name} is no plain file") for name in FILES},
    "huge manifest": (padded(MANIFEST_NAME, 50 << 30), "has 53,687,091,200 bytes, more than the"),
    "huge signature": (padded(SIGNATURE_NAME, 50 << 30), "bytes, more than the 4,096 that such"),
    "huge model": (padded("model.onnx", 3 << 30), "bytes, more than the 2,147,483,647 that such"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_tampering_is_refused_in_its_own_words(name: str, signed: Path, spy: Spy) -> None:
    attack, words = ATTACKS[name]
    attack(signed)
    spy.engines.clear()  # an attack may have built a bundle of its own
    with pytest.raises(BundleError, match=words) as caught:
        load(signed, signer=fleet(signed))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert spy == Spy()


@pytest.mark.parametrize("name", sorted(set(ATTACKS) - {"huge model"}))
def test_verify_says_the_same_and_ends_with_1(name: str, signed: Path, spy: Spy) -> None:
    attack, words = ATTACKS[name]
    verify_bundle(signed, requirements(fleet(signed)))
    attack(signed)
    spy.engines.clear()  # an attack may have built a bundle of its own
    with pytest.raises(BundleError, match=words) as caught:
        verify_bundle(signed, requirements(fleet(signed)))
    # what is no bundle, or cannot be read as one, is no verdict
    unread = "manifest gone", "manifest.json is a", "huge manifest"
    assert caught.value.exit_code == (2 if name.startswith(unread) else 1)
    assert spy == Spy()


def test_nothing_is_parsed_before_the_signature_holds(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parse(*_: object) -> None:
        raise AssertionError("the manifest was parsed")

    monkeypatch.setattr(bundle_module, "_unseal", parse)
    (signed / MANIFEST_NAME).write_text("[" * 1000)
    with pytest.raises(TrustError, match="does not fit"):
        load(signed, signer=fleet(signed))
    strip(signed)
    with pytest.raises(TrustError, match="is not signed"):
        load(signed, signer=fleet(signed))


def test_a_file_exchanged_between_check_and_use_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine is replaced at the worst moment: right after its bytes were read."""
    bundle = sign(make_bundle(tmp_path / "b", TILE, classes=3), make_pair(tmp_path))
    image = smooth_image(TILE * 12, TILE * 12)
    with load(bundle) as session:
        expected = session.run(image).classes
    wrong = make_model(TILE, 4, 3, seed=9).SerializeToString()
    real = bundle_module._read

    def read(path: Path, limit: int) -> bytes:
        content = real(path, limit)
        if path.name == "model.onnx":
            path.write_bytes(wrong)
        return content

    monkeypatch.setattr(bundle_module, "_read", read)
    with load(bundle, signer=fleet(bundle), streams=1) as session:
        assert (bundle / "model.onnx").read_bytes() == wrong
        np.testing.assert_array_equal(session.run(image).classes, expected)


def test_a_second_copy_of_the_model_is_checked_again(signed: Path) -> None:
    manifest = json.loads((signed / MANIFEST_NAME).read_text())
    strip(signed)
    reseal(signed, target=manifest["target"] | {"threads": 2})
    sign(signed, make_pair(signed.parent, "again"))
    with load(signed, signer=signed.parent / "again.pub") as session:
        assert session.backend.streams == 2
        other_model(signed)
        with pytest.raises(BundleError, match=r"model\.onnx was changed after"):
            session.run(smooth_image(TILE * 12, TILE * 12))


def test_golden_data_is_checked_when_it_is_used(signed: Path, spy: Spy) -> None:
    with load(signed, signer=fleet(signed)) as session:
        blob = (signed / "golden.npz").read_bytes()
        (signed / "golden.npz").write_bytes(blob[:-1] + b"x")
        with pytest.raises(BundleError, match=r"golden\.npz was changed after"):
            session.verify()
        assert spy.archives == 0
        (signed / "golden.npz").write_bytes(blob)
        session.verify()
    assert spy.archives == 1


def test_a_file_too_large_for_a_bundle_is_refused_unread(signed: Path) -> None:
    """A sparse file of 3 GiB takes a minute to hash and no space."""
    with (signed / "golden.npz").open("r+b") as stream:
        stream.truncate(3 << 30)
    start = time.monotonic()
    with pytest.raises(BundleError, match=r"golden\.npz has 3\.0 GiB, a file of a bundle has less"):
        load(signed, signer=fleet(signed))
    assert time.monotonic() - start < 5


def test_the_models_bytes_are_freed_after_loading(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed = []

    class Watched(bytes):
        def __del__(self) -> None:
            freed.append(len(self))

    real = bundle_module._read
    monkeypatch.setattr(bundle_module, "_read", lambda *args: Watched(real(*args)))
    size = (signed / "model.onnx").stat().st_size
    with load(signed, signer=fleet(signed)) as session:
        assert size in freed
        session.run(smooth_image(TILE, TILE))


def test_the_environment_requires_a_signer_of_every_load(
    signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = signed.parent / "other.pub"
    monkeypatch.setenv(SIGNER_VARIABLE, str(fleet(signed)))
    with load(signed) as session:
        assert session.signer == requirements()[0].keys[0].key_id
    with pytest.raises(TrustError, match="--signer accepts"):
        load(signed, signer=other)  # both must hold
    monkeypatch.setenv(SIGNER_VARIABLE, str(other))
    for signer in (None, fleet(signed)):
        with pytest.raises(TrustError, match=f"{SIGNER_VARIABLE} accepts"):
            load(signed, signer=signer)


def test_without_the_library(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    required = requirements(fleet(signed))
    without_library(monkeypatch)
    load(signed).close()  # nobody asks, so a board without the extra runs signed bundles
    with pytest.raises(EnvironmentLacksError, match=r"edgekd\[trust\]"):
        open_session(signed, required)
    with pytest.raises(EnvironmentLacksError, match=r"edgekd\[trust\]"):
        verify_bundle(signed)
    with pytest.raises(EnvironmentLacksError, match=r"edgekd\[trust\]"):
        load(signed, signer=fleet(signed))
    strip(signed)
    with pytest.raises(TrustError, match="is whole .* and not signed"):
        verify_bundle(signed)


def test_verify(signed: Path) -> None:
    opened = verify_bundle(signed)
    assert opened.signer == requirements(fleet(signed))[0].keys[0]
    assert opened.manifest == read_manifest(signed) and opened.extra_files() == []
    strip(signed)
    with pytest.raises(TrustError, match=r"is whole .* and not signed .*edgekd sign") as caught:
        verify_bundle(signed)
    assert caught.value.exit_code == 1


def test_verify_of_a_later_schema_is_no_verdict(signed: Path) -> None:
    strip(signed)
    reseal(signed, schema=9)
    with pytest.raises(BundleError, match="has schema 9") as caught:
        verify_bundle(signed)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name", ["notes.txt", ".hidden", "model.onnx.bak", "libfoo.so", "a\x1b[1m"]
)
def test_a_file_too_many(name: str, signed: Path) -> None:
    """Refused by verify, told by extra_files, and without a say in what runs."""
    (signed / name).write_bytes(b"x")
    shown = name if name.isprintable() else r"'a\x1b[1m'"
    assert open_bundle(signed).extra_files() == [shown]
    with pytest.raises(TrustError) as caught:
        verify_bundle(signed)
    assert f"holds {shown}, which its manifest does not name" in str(caught.value)
    (signed / "zz").mkdir()
    with pytest.raises(TrustError, match="and 1 more, which"):
        verify_bundle(signed)
    load(signed, signer=fleet(signed)).close()


@pytest.mark.parametrize("name", [MANIFEST_NAME, SIGNATURE_NAME])
def test_a_manifest_cannot_vouch_for_what_is_written_after_it(name: str, signed: Path) -> None:
    files = json.loads((signed / MANIFEST_NAME).read_text())["files"]
    reseal(signed, files=files | {name: "0" * 64})
    with pytest.raises(BundleError, match=f"gives a sha256 for {name}"):
        load(signed)


def test_a_link_to_the_folder_is_fine(signed: Path) -> None:
    """Fleets switch versions by turning a link."""
    current = signed.parent / "current"
    current.symlink_to(signed)
    load(current, signer=fleet(signed)).close()
    verify_bundle(current)


def test_an_unreadable_file_says_so(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, *args: Any, **kwargs: Any) -> int:
        if Path(path).name == "model.onnx":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(BundleError, match=r"model\.onnx cannot be read: Permission denied"):
        load(signed)
