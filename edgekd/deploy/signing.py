"""Key pairs and signatures: what whoever vouches for a bundle does; devices only verify.

The rules are those of :mod:`edgekd.contracts.trust`.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.optional import require
from edgekd.contracts.trust import (
    SIGNATURE_NAME,
    PublicKey,
    check_signature,
    make_signature,
    message,
    raw_public,
    read_key_file,
)
from edgekd.errors import InputError, OutputError, TrustError
from edgekd.runtime.bundle import open_bundle, read_signature, refuse_extra

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: the passphrase of a private key, for machines where nobody can type it.
PASSPHRASE_VARIABLE = "EDGEKD_KEY_PASSPHRASE"
PRIVATE_SUFFIX, PUBLIC_SUFFIX = ".key", ".pub"

_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_SERIALIZATION = "cryptography.hazmat.primitives.serialization"

#: asks a person; called only when a key needs a passphrase and the environment holds none.
Ask = Callable[[], str]


@dataclass(frozen=True)
class KeyPair:
    """What :func:`write_key_pair` wrote."""

    private: Path
    public: Path
    key: PublicKey
    encrypted: bool


@dataclass(frozen=True)
class Signed:
    """What :func:`sign_bundle` did.

    Attributes:
        replaced: the key of the signature that was there before, if it could be read.
        had_signature: whether there was one at all.
    """

    path: Path
    key: PublicKey
    replaced: PublicKey | None
    had_signature: bool


def passphrase_from_environment() -> bytes | None:
    """The passphrase of ``EDGEKD_KEY_PASSPHRASE``; None where it is not set.

    Raises:
        InputError: set and empty, which would mean a key without one.
    """
    value = os.environ.get(PASSPHRASE_VARIABLE)
    if value == "":
        raise InputError(
            f"{PASSPHRASE_VARIABLE} is set and empty, expected a passphrase; unset it for a key "
            "without one"
        )
    return None if value is None else os.fsencode(value)


def write_key_pair(name: Path, passphrase: bytes | None = None) -> KeyPair:
    """Make a key pair: ``NAME.key`` (PKCS8, mode 0600) and ``NAME.pub``, both in PEM.

    Args:
        name: path without suffix.
        passphrase: encrypts the private key; None leaves it readable to whoever has the file.

    Raises:
        OutputError: one of the two exists, or cannot be written; nothing is left then.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    ed25519 = require(_ED25519, "trust", "make keys")
    module = require(_SERIALIZATION, "trust", "make keys")
    if name.suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX, ".pem") or name.name in ("", ".."):
        raise OutputError(
            f"-o {name} is no name for a pair, expected a path without suffix; the files are "
            f"called NAME{PRIVATE_SUFFIX} and NAME{PUBLIC_SUFFIX}"
        )
    private, public = (
        name.with_name(name.name + suffix) for suffix in (PRIVATE_SUFFIX, PUBLIC_SUFFIX)
    )
    for path in (private, public):
        if os.path.lexists(path):
            raise OutputError(
                f"{path} exists and keys are never overwritten, since what it signed could not be "
                "signed again; choose another name with -o"
            )
    key: Ed25519PrivateKey = ed25519.Ed25519PrivateKey.generate()
    encryption = (
        module.NoEncryption() if passphrase is None else module.BestAvailableEncryption(passphrase)
    )
    contents = (
        (private, 0o600, key.private_bytes(
            module.Encoding.PEM, module.PrivateFormat.PKCS8, encryption)),
        (public, 0o644, key.public_key().public_bytes(
            module.Encoding.PEM, module.PublicFormat.SubjectPublicKeyInfo)),
    )  # fmt: skip
    written: list[Path] = []
    try:
        name.parent.mkdir(parents=True, exist_ok=True)
        for path, mode, content in contents:
            # O_EXCL: what appeared since the look above is not overwritten either
            number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            written.append(path)
            with os.fdopen(number, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
    except OSError as err:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise OutputError(
            f"the keys {name} cannot be written: {err.strerror}; choose another place with -o"
        ) from err
    public_key = PublicKey(raw_public(key.public_key()), str(public))
    return KeyPair(private, public, public_key, encrypted=passphrase is not None)


def readable_by_others(path: Path) -> bool:
    """Whether a private key's file lets other accounts of this machine read it."""
    info = path.stat()
    return stat.S_ISREG(info.st_mode) and bool(info.st_mode & 0o077)


def load_private_key(path: Path, ask: Ask | None = None) -> Ed25519PrivateKey:
    """A private key in PEM, its passphrase from the environment or from ``ask``.

    Raises:
        InputError: missing, damaged, of another kind, or not opened by the passphrase; a
            passphrase for a key without one.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    content = read_key_file(path)
    if b"-----BEGIN PUBLIC KEY-----" in content:
        raise InputError(
            f"{path} holds a public key, which can only verify; give the file that ends in "
            f"{PRIVATE_SUFFIX} (edgekd keygen wrote both)"
        )
    module = require(_SERIALIZATION, "trust", "sign bundles")
    ed25519 = require(_ED25519, "trust", "sign bundles")
    exceptions = require("cryptography.exceptions", "trust", "sign bundles")
    passphrase = passphrase_from_environment()
    encrypted = b"ENCRYPTED" in content
    if encrypted and passphrase is None and ask is not None:
        passphrase = ask().encode()
    if encrypted and not passphrase:
        raise InputError(
            f"{path} is encrypted and no passphrase was given; set {PASSPHRASE_VARIABLE}, or run "
            "the command in a terminal, where it asks"
        )
    if not encrypted and passphrase is not None:
        raise InputError(
            f"{path} is not encrypted, yet {PASSPHRASE_VARIABLE} is set: whoever reads the file "
            "can sign; unset it to sign with this key all the same"
        )
    try:
        key = module.load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, exceptions.UnsupportedAlgorithm) as err:
        why = (
            "the passphrase does not open it, or it is damaged; try again"
            if encrypted
            else "expected a private key in PEM, as edgekd keygen writes it"
        )
        raise InputError(f"{path} cannot be used as a key: {why}") from err
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise InputError(
            f"{path} holds a key of another kind ({type(key).__name__.strip('_')}), expected "
            "Ed25519; make one with: edgekd keygen -o NAME"
        )
    signing: Ed25519PrivateKey = key
    return signing


def sign_bundle(bundle: Path, key: Ed25519PrivateKey, replace: bool = False) -> Signed:
    """Check a bundle, sign its manifest, and write ``signature.json`` (whole or not at all).

    A bundle has one signature. The same key may sign again; ``replace`` lets another key take the
    place, or a damaged signature go.

    Raises:
        BundleError: not whole; nothing is written.
        TrustError: a file that the manifest does not name, or another's signature is there.
        OutputError: the folder cannot be written.
    """
    opened = open_bundle(bundle)
    opened.check_files()
    refuse_extra(opened)
    public = PublicKey(raw_public(key.public_key()))
    place = opened.path / SIGNATURE_NAME
    had_signature = os.path.lexists(place)
    before = None
    if had_signature:
        try:
            found = read_signature(opened.path)
            before = None if found is None else found.key
        except TrustError:
            if not replace:
                raise
        if before not in (None, public) and not replace:
            raise TrustError(
                f"{bundle} is signed by key {before}, and a bundle has one signature; add "
                f"--replace to sign with key {public} in its place"
            )
    if not os.access(opened.path, os.W_OK | os.X_OK):
        raise OutputError(
            f"{bundle} is not writable, so its signature cannot be stored; change its permissions, "
            "or sign a copy"
        )
    signature = make_signature(public, key.sign(message(opened.content)))
    check_signature(opened.path, opened.content, signature)
    if place.is_dir() and not place.is_symlink():
        raise OutputError(f"{place} is a folder; remove it and sign again")
    with publish_file(place) as part:
        part.write_text(signature.text(), encoding="utf-8")
    return Signed(place, public, before, had_signature)
