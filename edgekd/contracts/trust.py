"""Who signed a bundle: keys, the signature file, and what a machine requires of it.

A signature is Ed25519 over :data:`PREFIX` and the exact bytes of ``manifest.json``. The manifest
holds the sha256 of every other file, so that one signature stands for the whole folder. This is the
one place of these rules; private keys are used in :mod:`edgekd.deploy.signing` alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from edgekd.contracts.artifacts import canonical_json, sha256_bytes
from edgekd.contracts.manifest import MANIFEST_NAME
from edgekd.contracts.optional import require
from edgekd.contracts.schema import Document
from edgekd.errors import InputError, TrustError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_NAME = "signature.json"
SIGNATURE_SCHEMA = 1
ALGORITHM: Literal["ed25519"] = "ed25519"
#: stands before the manifest in what is signed, so that a signature made by the same key for
#: another purpose, or under another version of this format, is never one of a bundle.
PREFIX = b"edgekd bundle manifest, signature schema 1\n"
#: a file with paths of public keys, all absolute, as PATH is written; see :func:`requirements`.
SIGNER_VARIABLE = "EDGEKD_SIGNER"
#: hexadecimal digits of a key's id: 128 bits. People compare ids, the code compares whole keys.
KEY_ID_DIGITS = 32
#: a signature file has 400 bytes and a key file 200; whatever is longer is something else.
SIGNATURE_MAX_BYTES = 4096
KEY_MAX_BYTES = 16384

#: where the library keeps what is used here.
_ED25519 = "cryptography.hazmat.primitives.asymmetric.ed25519"
_SERIALIZATION = "cryptography.hazmat.primitives.serialization"

#: one public key file or several.
Signers = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class PublicKey:
    """A signer.

    Attributes:
        raw: the 32 bytes of the Ed25519 key; two keys are the same when these are.
        file: where it was read from; empty for a key that a signature brought along.
    """

    raw: bytes
    file: str = field(default="", compare=False)

    @property
    def key_id(self) -> str:
        """The first 32 hexadecimal digits of the key's SHA-256."""
        return sha256_bytes(self.raw)[:KEY_ID_DIGITS]

    def __str__(self) -> str:
        return f"{self.key_id} ({self.file})" if self.file else self.key_id


@dataclass(frozen=True)
class Requirement:
    """A signer that somebody insists on.

    Attributes:
        source: who insists, as a person wrote it: ``--signer`` or ``EDGEKD_SIGNER``.
        keys: one of them must have signed.
    """

    source: str
    keys: tuple[PublicKey, ...]

    def __str__(self) -> str:
        return f"{self.source} accepts {' or '.join(map(str, self.keys))}"


def _hexadecimal(digits: int) -> Any:
    return pydantic.Field(pattern=rf"^[0-9a-f]{{{digits}}}$")


class Signature(Document):
    """Contents of ``signature.json``. Nothing in it is believed that the signature does not bind:
    the key id follows from the key, the rest is constant, so there is no room for a remark or a
    date that somebody could change."""

    schema_version: int = pydantic.Field(alias="schema")
    algorithm: Literal["ed25519"]
    key_id: Annotated[str, _hexadecimal(KEY_ID_DIGITS)]
    public_key: Annotated[str, _hexadecimal(64)]
    signature: Annotated[str, _hexadecimal(128)]

    @property
    def key(self) -> PublicKey:
        """The key that the signature claims to be by."""
        return PublicKey(bytes.fromhex(self.public_key))

    def text(self) -> str:
        """The one way to write it."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))


def message(manifest: bytes) -> bytes:
    """What is signed for a manifest."""
    return PREFIX + manifest


def make_signature(key: PublicKey, signed: bytes) -> Signature:
    """The document for ``signed``, 64 bytes by ``key``."""
    return Signature(
        schema=SIGNATURE_SCHEMA,
        algorithm=ALGORITHM,
        key_id=key.key_id,
        public_key=key.raw.hex(),
        signature=signed.hex(),
    )


def parse_signature(content: bytes, where: Path) -> Signature:
    """Read a ``signature.json``; ``where`` is its path, for the sentences.

    Raises:
        TrustError: not the exact text that ``edgekd sign`` writes, white space included.
    """
    try:
        value = json.loads(content.decode("utf-8"))
        schema = value.get("schema") if isinstance(value, dict) else None
        if isinstance(schema, int) and schema > SIGNATURE_SCHEMA:
            raise TrustError(
                f"{where} has schema {schema} and this edgekd reads schema {SIGNATURE_SCHEMA}; "
                "verify with a newer edgekd, or sign the bundle again with this one"
            )
        signature = Signature.model_validate(value)
        intact = (
            signature.schema_version == SIGNATURE_SCHEMA
            and signature.key_id == signature.key.key_id
            and signature.text().encode() == content
        )
    except (ValueError, RecursionError):
        intact = False
    if not intact:
        raise TrustError(
            f"{where} is not what edgekd sign wrote: it is damaged or was changed; copy the "
            "bundle again, or sign it again with: edgekd sign BUNDLE --key PRIVATE_KEY --replace"
        )
    return signature


def check_signature(
    bundle: Path,
    manifest: bytes,
    signature: Signature | None,
    required: Iterable[Requirement] = (),
) -> PublicKey:
    """Who signed ``manifest``; nothing of it is parsed here.

    Args:
        bundle: the folder, for the sentences.
        manifest: the bytes of ``manifest.json``; the caller must go on with these very bytes.
        signature: what the folder holds; None where it holds none.
        required: each must be met. Without any the answer says only which key made the signature,
            and anybody can make a key.

    Raises:
        TrustError: no signature, by a key that is not accepted, or one that does not fit.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    required = tuple(required)
    if signature is None:
        wanted = f", and {required[0]}" if required else ""
        raise TrustError(
            f"{bundle} is not signed (it has no {SIGNATURE_NAME}){wanted}; get the signed bundle, "
            f"or sign this one with: edgekd sign {bundle} --key PRIVATE_KEY"
        )
    for requirement in required:
        if signature.key not in requirement.keys:
            raise TrustError(
                f"{bundle} is signed by key {signature.key}, and {requirement}; get the bundle "
                "that this signer signed, or name the other key if you trust it"
            )
    module = require(_ED25519, "trust", "verify the signature of a bundle")
    exceptions = require("cryptography.exceptions", "trust", "verify the signature of a bundle")
    try:
        key: Ed25519PublicKey = module.Ed25519PublicKey.from_public_bytes(signature.key.raw)
        key.verify(bytes.fromhex(signature.signature), message(manifest))
    except (exceptions.InvalidSignature, ValueError) as err:
        raise TrustError(
            f"{bundle / SIGNATURE_NAME} by key {signature.key} does not fit its {MANIFEST_NAME}: "
            "one of the two was changed after signing; copy the bundle again, or have it signed "
            "again"
        ) from err
    return signature.key


def requirements(signer: Signers | None = None) -> tuple[Requirement, ...]:
    """What a signature has to meet here: the keys given, and those of ``EDGEKD_SIGNER``.

    A bundle must be by one key of each, so that neither can widen what the other allows. The
    variable holds absolute paths, with ``:`` between them (``os.pathsep``). Set and empty is a
    fault: a policy that lost its value must not become no policy.

    Raises:
        InputError: a key file cannot be used, or no key is named where one is expected.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    found = []
    if signer is not None:
        paths = [signer] if isinstance(signer, str | os.PathLike) else signer
        if not isinstance(paths, Iterable) or isinstance(paths, bytes):
            raise InputError(f"signer is a public key file or a list of them, received {signer!r}")
        paths = list(paths)
        if not paths:
            raise InputError(
                "signer holds no key, and no bundle can be by none of them; name a public key "
                "file, or leave signer out to load without asking who signed"
            )
        found.append(Requirement("--signer", tuple(load_public_key(Path(p)) for p in paths)))
    value = os.environ.get(SIGNER_VARIABLE)
    if value is not None:
        keys = []
        for part in value.split(os.pathsep):
            if not Path(part).is_absolute():
                raise InputError(
                    f"{SIGNER_VARIABLE} is set to '{value}', expected absolute paths of public key "
                    f"files with '{os.pathsep}' between them (the same keys in every folder); "
                    "correct it, or unset it to load without asking who signed"
                )
            keys.append(load_public_key(Path(part)))
        found.append(Requirement(SIGNER_VARIABLE, tuple(keys)))
    return tuple(found)


def load_public_key(path: Path) -> PublicKey:
    """A public key in PEM, as ``edgekd keygen`` and ``openssl pkey -pubout`` write it.

    Raises:
        InputError: missing, unreadable, of another kind, or not exactly one key.
        EnvironmentLacksError: ``cryptography`` is not installed.
    """
    content = read_key_file(path)
    if b"PRIVATE KEY-----" in content:
        raise InputError(
            f"{path} holds a private key, expected the public one; give the file that ends in .pub "
            "(edgekd keygen wrote both), and keep the private key off this machine"
        )
    count = content.count(b"-----BEGIN ")
    if count > 1:
        raise InputError(f"{path} holds {count} keys, expected one; give each a file of its own")
    module = require(_SERIALIZATION, "trust", "read keys")
    ed25519 = require(_ED25519, "trust", "read keys")
    exceptions = require("cryptography.exceptions", "trust", "read keys")
    try:
        key = module.load_pem_public_key(content)
    except (ValueError, exceptions.UnsupportedAlgorithm) as err:
        raise InputError(
            f"{path} is no public key in PEM; expected the file that ends in .pub from edgekd "
            "keygen"
        ) from err
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise InputError(
            f"{path} holds a key of another kind ({type(key).__name__.strip('_')}), expected "
            "Ed25519; make one with: edgekd keygen -o NAME"
        )
    return PublicKey(raw_public(key), str(path))


def raw_public(key: Ed25519PublicKey) -> bytes:
    """The 32 bytes of a public key."""
    module = require(_SERIALIZATION, "trust", "read keys")
    raw: bytes = key.public_bytes(module.Encoding.Raw, module.PublicFormat.Raw)
    return raw


def read_key_file(path: Path) -> bytes:
    """The bytes of a key file, which may be a pipe (``--key <(vault read ...)``).

    Raises:
        InputError: missing, a folder, unreadable, empty, or longer than any key.
    """
    try:
        with path.open("rb") as stream:
            content = stream.read(KEY_MAX_BYTES + 1)
    except FileNotFoundError as err:
        raise InputError(
            f"the key file {path} does not exist; give the path of one that edgekd keygen wrote"
        ) from err
    except OSError as err:
        raise InputError(f"the key file {path} cannot be read: {err.strerror}") from err
    if not content.strip() or len(content) > KEY_MAX_BYTES:
        size = "is empty" if not content.strip() else f"has more than {KEY_MAX_BYTES} bytes"
        raise InputError(f"{path} {size}, expected a key in PEM from edgekd keygen")
    return content
