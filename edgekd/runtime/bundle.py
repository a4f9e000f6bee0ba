"""A bundle's folder: who signed it, whether it is whole, and its files' bytes.

The order is: signature over the manifest's bytes, seal, schema, hashes. Whatever is used later is
read once, and those same bytes are hashed and handed on, so that a file which is exchanged between
check and use is noticed. Nothing follows a link.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pydantic

import edgekd
from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.manifest import MANIFEST_NAME, MANIFEST_SCHEMA, Manifest
from edgekd.contracts.trust import (
    SIGNATURE_MAX_BYTES,
    SIGNATURE_NAME,
    PublicKey,
    Requirement,
    Signature,
    check_signature,
    parse_signature,
)
from edgekd.errors import BundleError, OutputError, TrustError

#: read before anything vouches for it, so its size is bounded; real ones have some 10 KiB.
MANIFEST_MAX_BYTES = 4 << 20
#: a file that is held in memory; an ONNX file (protobuf) cannot be larger either.
FILE_MAX_BYTES = (2 << 30) - 1
_BLOCK = 1 << 20


class SealedFile:
    """A file of a bundle with the sha256 that the manifest gives it.

    Args:
        folder: the bundle.
        name: the file in it.
        sealed: sha256 of every file that the manifest names.
    """

    def __init__(self, folder: Path, name: str, sealed: Mapping[str, str]) -> None:
        self.path = folder / name
        self._name, self._sealed = name, sealed

    def read(self) -> bytes:
        """The file's bytes: read once, hashed, and only then given out.

        Raises:
            BundleError: missing, no plain file, too large for memory, or not the sealed bytes.
        """
        content = _read(self.path, FILE_MAX_BYTES)
        self._compare(sha256_bytes(content))
        return content

    def check(self) -> None:
        """Compare the hash without holding the file in memory; raises as :meth:`read`."""
        digest = hashlib.sha256()
        with _plain(self.path) as (stream, size):
            if size > FILE_MAX_BYTES:
                raise BundleError(
                    f"{self.path} has {size / 2**30:.1f} GiB, a file of a bundle has less than 2; "
                    "it is not the one that was sealed: copy the bundle again"
                )
            while block := stream.read(_BLOCK):
                digest.update(block)
        self._compare(digest.hexdigest())

    def _compare(self, found: str) -> None:
        expected = self._sealed[self._name]
        if found == expected:
            return
        others = [name for name, value in self._sealed.items() if value == found]
        what = (
            f"it holds the bytes of {others[0]}: files were exchanged"
            if others
            else f"sha256 {found[:12]}…, sealed {expected[:12]}…"
        )
        raise BundleError(
            f"{self.path} was changed after the bundle was sealed ({what}); copy the bundle again "
            "or build it again"
        )


@dataclass(frozen=True)
class Bundle:
    """An opened folder: the manifest is checked, of the files only what was asked for.

    Attributes:
        path: the folder.
        content: the bytes of ``manifest.json`` that everything here was read from.
        signer: who signed those bytes; None where nobody asked.
    """

    path: Path
    content: bytes
    manifest: Manifest
    signer: PublicKey | None = None

    def file(self, name: str) -> SealedFile:
        """A file that the manifest names."""
        return SealedFile(self.path, name, self.manifest.files)

    def check_files(self, besides: Collection[str] = ()) -> None:
        """Compare every file's hash, ``besides`` aside.

        Raises:
            BundleError: the first file that is missing, no plain file, or changed.
        """
        for name in self.manifest.files:
            if name not in besides:
                self.file(name).check()

    def extra_files(self) -> list[str]:
        """What lies in the folder that the manifest does not name, sorted, for printing.

        The runtime opens named files alone, so these change nothing of what runs.
        """
        known = {MANIFEST_NAME, SIGNATURE_NAME, *self.manifest.files}
        return sorted(
            item.name if item.name.isprintable() else ascii(item.name)
            for item in self.path.iterdir()
            if item.name not in known
        )


def open_bundle(bundle: Path, required: Iterable[Requirement] = ()) -> Bundle:
    """Read a bundle's manifest, after its signature where one is required.

    No other file is read. Without ``required`` a signature is not looked at: by itself it says
    nothing about who made the bundle, since whoever changes one can sign it anew or take the
    signature away.

    Raises:
        BundleError: no bundle, damaged, or of another schema.
        TrustError: ``required`` is not met; nothing was parsed then.
        EnvironmentLacksError: ``cryptography`` is needed and not installed.
    """
    bundle, required = Path(bundle), tuple(required)
    content = _read_manifest(bundle)
    signer = None
    if required:
        signer = check_signature(bundle, content, read_signature(bundle), required)
    return Bundle(bundle, content, _validate(bundle, _unseal(bundle, content)), signer)


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle, its seal and every file's hash checked.

    Raises:
        BundleError: missing, damaged, of another schema, or any byte changed since sealing.
    """
    opened = open_bundle(bundle)
    opened.check_files()
    return opened.manifest


def verify_bundle(bundle: Path, required: Iterable[Requirement] = ()) -> Bundle:
    """Whether a bundle is whole, signed, and nothing besides; stricter than loading.

    A file that the manifest does not name is refused here: it would change nothing of what runs,
    but whoever asks whether a folder is what was signed should hear about it.

    Raises:
        BundleError: there is no bundle to judge, or one of another schema.
        TrustError: changed, incomplete, unsigned, by another signer, or with a file too many.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    bundle, required = Path(bundle), tuple(required)
    content = _read_manifest(bundle)
    signature = read_signature(bundle)
    signer = None
    if signature is not None or required:
        signer = check_signature(bundle, content, signature, required)
    with _verdict():
        value = _unseal(bundle, content)
    opened = Bundle(bundle, content, _validate(bundle, value), signer)
    with _verdict():
        opened.check_files()
    refuse_extra(opened)
    if signer is None:  # said last: by now it is known to be whole
        raise TrustError(
            f"{bundle} is whole (every file is as sealed) and not signed (it has no "
            f"{SIGNATURE_NAME}), so nothing says who made it; sign it with: edgekd sign {bundle} "
            "--key PRIVATE_KEY"
        )
    return opened


def refuse_extra(opened: Bundle) -> None:
    """Raise TrustError if the folder holds a file that the manifest does not name."""
    extra = opened.extra_files()
    if extra:
        more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
        raise TrustError(
            f"{opened.path} holds {extra[0]}{more}, which its manifest does not name, so nobody "
            "vouches for it; move it out of the bundle, or copy the bundle again"
        )


def read_signature(bundle: Path) -> Signature | None:
    """The folder's ``signature.json``, as written; None where there is none.

    Raises:
        TrustError: damaged, no plain file, or too long.
    """
    path = Path(bundle) / SIGNATURE_NAME
    if not os.path.lexists(path):
        return None
    with _verdict():
        content = _read(path, SIGNATURE_MAX_BYTES)
    return parse_signature(content, path)


def require_replaceable(out: Path) -> None:
    """Raise unless ``out`` is free, or a bundle and nothing besides.

    A damaged bundle may be replaced, a stranger's folder with a ``manifest.json`` may not. A
    signature belongs to the bundle that is replaced and vanishes with it.
    """
    if not (out / MANIFEST_NAME).is_file():
        return  # publish_folder decides
    try:
        value = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
        ours = "seal" in value and {MANIFEST_NAME, SIGNATURE_NAME, *value["files"]}
    except (ValueError, TypeError, KeyError):
        ours = False
    if not ours:
        raise OutputError(
            f"{out} holds a {MANIFEST_NAME} that is not of edgekd; choose another folder with -o"
        )
    strange = sorted(item.name for item in out.iterdir() if item.name not in ours)
    if strange:
        raise OutputError(
            f"{out} is a bundle but also holds {strange[0]}, which would be lost; move it away or "
            "choose another folder with -o"
        )


def sealed_json(value: dict[str, Any]) -> str:
    """Canonical JSON of a manifest with a ``seal`` over everything else."""
    body = {key: item for key, item in value.items() if key != "seal"}
    return canonical_json({**body, "seal": sha256_bytes(canonical_json(body).encode())})


def _read_manifest(bundle: Path) -> bytes:
    path = bundle / MANIFEST_NAME
    if not os.path.lexists(path):
        raise BundleError(
            f"{bundle} is not a bundle: it has no {MANIFEST_NAME}; make one with: "
            "edgekd build RECIPE --target TARGET"
        )
    return _read(path, MANIFEST_MAX_BYTES)


def _unseal(bundle: Path, content: bytes) -> dict[str, Any]:
    try:
        text = content.decode("utf-8")
        value = json.loads(text)
        if not isinstance(value, dict) or sealed_json(value) != text:
            raise ValueError("its seal does not match")
    except (ValueError, RecursionError) as err:
        raise BundleError(
            f"{bundle / MANIFEST_NAME} was changed after it was sealed ({err}); build it again"
        ) from err
    value.pop("seal")
    return value


def _validate(bundle: Path, value: dict[str, Any]) -> Manifest:
    path = bundle / MANIFEST_NAME
    schema = value.get("schema")
    if schema != MANIFEST_SCHEMA:
        raise BundleError(
            f"{path} has schema {schema}, this edgekd {edgekd.__version__} reads schema "
            f"{MANIFEST_SCHEMA}; build the bundle again with this version"
        )
    try:
        manifest = Manifest.model_validate(value)
    except pydantic.ValidationError as err:
        first = err.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: {place}: {first['msg']}; build the bundle again") from err
    failed = [gate.name for gate in manifest.gates if not gate.passed]
    if failed:
        raise BundleError(f"{path}: the gate {failed[0]} did not hold; build the bundle again")
    for name in (manifest.model, manifest.golden.file):
        if name not in manifest.files:
            raise BundleError(f"{path} gives no sha256 for {name}; build the bundle again")
    for name in (MANIFEST_NAME, SIGNATURE_NAME):
        if name in manifest.files:
            raise BundleError(
                f"{path} gives a sha256 for {name}, which is written after it and cannot have one; "
                "build the bundle again"
            )
    return manifest


@contextlib.contextmanager
def _verdict() -> Iterator[None]:
    """A damaged file is the answer "no" where somebody asks whether it is whole."""
    try:
        yield
    except BundleError as err:
        raise TrustError(str(err)) from err


def _read(path: Path, limit: int) -> bytes:
    with _plain(path) as (stream, size):
        if size > limit:
            raise BundleError(
                f"{path} has {size:,} bytes, more than the {limit:,} that such a file can have; "
                "copy the bundle again or build it again"
            )
        return stream.read(size)  # of a file that grows meanwhile, the bytes that are hashed


@contextlib.contextmanager
def _plain(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A plain file and its size in bytes, opened without following a link or waiting for a pipe.

    Raises:
        BundleError: missing, a link, a folder or device, or unreadable.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    try:
        if path.is_symlink():
            raise BundleError(
                f"{path} is a symbolic link, which can point elsewhere after the check; copy the "
                "bundle with the files themselves (cp -L)"
            )
        number = os.open(path, flags)
        try:
            info = os.fstat(number)
            if not stat.S_ISREG(info.st_mode):
                raise BundleError(f"{path} is no plain file; copy the bundle again, whole")
            stream = os.fdopen(number, "rb")
        except BaseException:
            os.close(number)
            raise
        with stream:
            yield stream, info.st_size
    except FileNotFoundError as err:
        raise BundleError(
            f"{path.parent} lacks the file {path.name}; copy the bundle again, whole"
        ) from err
    except OSError as err:
        raise BundleError(f"{path} cannot be read: {err.strerror or err}") from err
