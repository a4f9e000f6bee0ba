"""``edgekd sign``: vouch for a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, ask_passphrase, emit, note, shared_options


@click.command("sign")
@click.argument("bundle", type=PathArgument)
@click.option("--key", "key_file", metavar="PRIVATE_KEY", type=PathArgument, required=True,
              help="NAME.key of edgekd keygen; EDGEKD_KEY_PASSPHRASE opens an encrypted one, or it "
              "asks.")  # fmt: skip
@click.option("--replace", is_flag=True,
              help="Take the place of another key's signature, or of a damaged one.")  # fmt: skip
@shared_options
def command(bundle: Path, key_file: Path, replace: bool, as_json: bool) -> None:
    """Check that BUNDLE is whole and write its signature.json.

    The signature is over the manifest, which holds the sha256 of every file. A bundle has one;
    the same key may sign again.
    """
    from edgekd.contracts.artifacts import sha256_file
    from edgekd.contracts.manifest import MANIFEST_NAME
    from edgekd.deploy.signing import PUBLIC_SUFFIX, load_private_key, readable_by_others
    from edgekd.deploy.signing import sign_bundle as sign

    key = load_private_key(key_file, lambda: ask_passphrase(f"passphrase of {key_file}"))
    if readable_by_others(key_file):
        note(f"note: other accounts can read {key_file}; type: chmod 600 {key_file}")
    done = sign(bundle, key, replace)
    replaced = None if done.replaced in (None, done.key) else str(done.replaced)
    lines = [f"signature: {done.path}", f"signed by key {done.key}"]
    if replaced is not None:
        lines.append(f"in place of key {replaced}")
    emit(
        {
            "bundle": str(bundle),
            "signature": str(done.path),
            "key_id": done.key.key_id,
            "public_key": done.key.raw.hex(),
            "manifest_sha256": sha256_file(bundle / MANIFEST_NAME),
            "replaced": replaced,
        },
        lines,
        as_json,
    )
    if not as_json:
        beside = key_file.with_suffix(PUBLIC_SUFFIX)
        public = beside if beside.is_file() else "PUBLIC_KEY"
        note(f"next: edgekd verify {bundle} --signer {public}")
