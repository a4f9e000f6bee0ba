"""``edgekd verify``: is a bundle what its signer signed?"""

from __future__ import annotations

from pathlib import Path

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options, signer_option


@click.command("verify")
@click.argument("bundle", type=PathArgument)
@signer_option
@shared_options
def command(bundle: Path, signer: list[Path] | None, as_json: bool) -> None:
    """Check the signature of BUNDLE, every file in it, and that there is no other.

    Ends with 1 when it is changed, incomplete, unsigned or by another signer. Nothing of it is run:
    edgekd validate runs the golden inputs.
    """
    from edgekd.contracts.trust import requirements
    from edgekd.runtime.bundle import verify_bundle

    required = requirements(signer)
    opened = verify_bundle(bundle, required)
    key = opened.signer
    assert key is not None
    accepted = [
        {"by": item.source, "public_key_file": known.file}
        for item in required
        for known in item.keys
        if known == key
    ]
    by = "; ".join(f"accepted by {item['by']} ({item['public_key_file']})" for item in accepted)
    count = len(opened.manifest.files)
    emit(
        {
            "bundle": str(bundle),
            "name": opened.manifest.name,
            "files": count,
            "key_id": key.key_id,
            "public_key": key.raw.hex(),
            "signer_required": bool(required),
            "accepted": accepted,
        },
        [
            f"{bundle} is whole: the manifest and {count} files are as signed, and there is no "
            "other file",
            f"signed by key {key}" + (f", {by}" if by else ""),
        ],
        as_json,
    )
    if not required and not as_json:
        note(
            "note: nobody was asked for, and anybody can make a key: this says that the bundle is "
            "whole, not who made it"
        )
        note(f"next: edgekd verify {bundle} --signer PUBLIC_KEY")
