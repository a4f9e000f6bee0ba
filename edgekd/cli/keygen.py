"""``edgekd keygen``: a pair of keys to sign bundles with."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, ask_passphrase, emit, note, shared_options


@click.command("keygen")
@click.option("-o", "--output", metavar="NAME", type=PathArgument, required=True,
              help="Writes NAME.key (private, mode 0600) and NAME.pub (public).")  # fmt: skip
@click.option("--passphrase", "ask", is_flag=True,
              help="Ask for a passphrase that encrypts the private key; where nobody can type, set "
              "EDGEKD_KEY_PASSPHRASE.")  # fmt: skip
@shared_options
def command(output: Path, ask: bool, as_json: bool) -> None:
    """Make a pair of Ed25519 keys; an existing file is never overwritten."""
    from edgekd.deploy.signing import passphrase_from_environment, write_key_pair

    passphrase = passphrase_from_environment()
    if passphrase is None and ask:
        passphrase = ask_passphrase(f"passphrase for {output}.key", confirm=True).encode()
    pair = write_key_pair(output, passphrase)
    lock = "encrypted" if pair.encrypted else "not encrypted: whoever reads it can sign"
    emit(
        {
            "private_key": str(pair.private),
            "public_key": str(pair.public),
            "key_id": pair.key.key_id,
            "encrypted": pair.encrypted,
        },
        [
            f"private key: {pair.private} (mode 0600, {lock}); keep it off the boards and out of "
            "the repository",
            f"public key: {pair.public}; copy it to every board",
            f"key id: {pair.key.key_id}",
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd sign BUNDLE --key {pair.private}")
