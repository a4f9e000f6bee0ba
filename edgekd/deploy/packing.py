"""What every kind of bundle is packed with: checks told, gates held, what it was made from."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import edgekd
from edgekd.contracts.artifacts import canonical_json, sha256_bytes, sha256_file
from edgekd.contracts.manifest import MANIFEST_NAME, CheckDone, Gate, Manifest, Provenance
from edgekd.contracts.place_recipe import AnyRecipe
from edgekd.contracts.trust import SIGNATURE_NAME, SIGNER_VARIABLE
from edgekd.deploy.check.report import CheckReport
from edgekd.errors import GateError, InputError
from edgekd.runtime.bundle import require_replaceable, sealed_json

Step = Callable[[str], None]


def require_named(recipe: AnyRecipe, target_name: str) -> None:
    """Raise InputError unless the recipe names the target."""
    if target_name not in recipe.targets:
        raise InputError(
            f"recipe '{recipe.name}' does not name the target {target_name} (targets: "
            f"{', '.join(recipe.targets)}); add it there if the product is to run on it"
        )


def require_place(out: Path, say: Step) -> None:
    """Raise unless a bundle may be put there; tell what becomes of a signature."""
    require_replaceable(out)
    if (out / SIGNATURE_NAME).exists():
        say(f"{out} is signed; the signature goes with the bundle that it stands for: sign anew")


def require_gates(gates: Sequence[Gate]) -> None:
    """Raise GateError for the first gate that does not hold."""
    for gate in gates:
        if not gate.passed:
            raise GateError(
                f"gate {gate.name} failed: {gate.value:.3g} {gate.unit}, allowed are "
                f"{gate.bound:.3g} ({gate.detail}); no bundle was written"
            )


def tell(name: str, report: CheckReport, say: Step) -> None:
    """What the check of a file of the bundle showed, and what it warns of."""
    say(f"check {name}: {report.compile_line()}")
    for finding in report.findings:
        if finding.severity == "warning":
            say(f"warning: {name}: {finding.reason}; {finding.fix}")


def checked(name: str, report: CheckReport) -> CheckDone:
    """A check's line in the manifest."""
    return CheckDone(
        file=name,
        rules=report.rules_line(),
        verdict="pass",
        warnings=[item.reason for item in report.findings if item.severity == "warning"],
        compile=report.compile_line(),
    )


def provenance(recipe: AnyRecipe, checkpoint: Any, checkpoint_path: Path) -> Provenance:
    """What a bundle is made from.

    Args:
        recipe: as built.
        checkpoint: with ``data``, ``student`` and ``tuning``.
        checkpoint_path: its file, or the folder of its run.
    """
    from edgekd.train.checkpoint import BEST_NAME, in_folder

    return Provenance(
        recipe=recipe.plain(),
        recipe_sha256=sha256_bytes(canonical_json(recipe.plain()).encode()),
        checkpoint_sha256=sha256_file(in_folder(checkpoint_path, BEST_NAME)),
        data_name=checkpoint.data["name"],
        data_sha256=checkpoint.data["sha256"],
        student=checkpoint.student,
        tuning=checkpoint.tuning,
        edgekd_version=edgekd.__version__,
        created_utc=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def hashes(folder: Path) -> dict[str, str]:
    """File name -> sha256 of everything that is to be sealed."""
    return {
        file.name: sha256_file(file)
        for file in sorted(folder.iterdir())
        if file.name != MANIFEST_NAME
    }


def seal(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which completes a bundle."""
    (folder / MANIFEST_NAME).write_text(sealed_json(manifest.plain()), encoding="utf-8")


def tell_signer(out: Path, say: Step) -> None:
    """That this machine will not load what was just built, where it demands a signer."""
    if SIGNER_VARIABLE in os.environ:
        say(
            f"{SIGNER_VARIABLE} is set: this bundle loads after edgekd sign {out} --key PRIVATE_KEY"
        )
