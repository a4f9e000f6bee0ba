"""The part of ``arm_emulation.py`` that judges bundles of places: ``--places SET``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from _arm_asked import AskedPlaces
from _arm_run import BOUND, Arrays, head, read_int8, run_both
from _emulated import REPOSITORY, Emulator

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.evidence import KINDS, Float32
from edgekd.contracts.manifest import EvidenceDone
from edgekd.contracts.projection import OBEYED, Limits, past_bounds
from edgekd.errors import InputError

CHILD = REPOSITORY / "benchmarks" / "_arm_places_child.py"
#: an FP32 encoder's embeddings may differ by this: two processors add up in different orders.
TEXT_ATOL = 1e-4
#: by how much an answer's probabilities may miss a sum of 1.
SUM = 1e-4
#: places with another class that the record names.
NAMED = 20


def same_classes(found: Float32, other: Float32) -> npt.NDArray[np.bool_]:
    """Whether the likeliest class is the same, ``(N,)``; NaN or infinity agrees with nothing."""
    if found.shape != other.shape or found.ndim != 2 or not len(found):
        raise InputError(f"answers of shape {found.shape} and {other.shape} do not compare")
    sound = np.isfinite(found).all(axis=1) & np.isfinite(other).all(axis=1)
    same: npt.NDArray[np.bool_] = sound & (found.argmax(axis=1) == other.argmax(axis=1))
    return same


def _apart(found: npt.NDArray[Any], other: npt.NDArray[Any]) -> float | None:
    worst = float(np.abs(found.astype(np.float64) - other).max())
    return worst if np.isfinite(worst) else None


def compare_answers(arm: Arrays, x86: Arrays) -> dict[str, Any]:
    """Likeliest classes and probabilities, ``before`` and ``after`` the rules."""
    compared = {}
    for key in ("before", "after"):
        same = same_classes(arm[key], x86[key])
        compared[key] = {
            "places": len(same),
            "places_differ": int((~same).sum()),
            "agreement": float(same.mean()),
            "max_abs_probability": _apart(arm[key], x86[key]),
        }
    return {**compared, "max_abs_logits": _apart(arm["scores"], x86["scores"])}


def obedience(answers: Float32, rules: Float32, bounds: Float32) -> dict[str, Any]:
    """How far answers ``(N, classes)`` are past their rules, and how many are lawful probabilities.

    Held against the rules here, whatever the runtime under test says of them.
    """
    sound = np.asarray(np.isfinite(answers).all(axis=1))
    clean = np.where(sound[:, None], answers, 0)  # whose sum is not 1
    past = past_bounds(clean, rules, bounds)
    is_sum = (clean.min(axis=1) >= -OBEYED) & (np.abs(clean.sum(axis=1) - 1) <= SUM)
    obeys = is_sum & (past <= OBEYED)
    return {
        "obey": int(obeys.sum()),
        "of": len(answers),
        "worst_past_a_rule": max(float(past[sound].max()), 0.0) if sound.any() else None,
        "allowed": OBEYED,
    }


def compare_texts(
    arm: Arrays, x86: Arrays, bundle: EvidenceDone, why: str | None
) -> dict[str, Any]:
    """Embeddings of texts; an INT8 encoder may differ by what 8 bits cost when it was made.

    Args:
        why: there are none on Arm.
    """
    done = bundle.text_encoder
    if done is None or why is not None:
        return {"compared": False, "why": why or "the bundle has no encoder of texts"}
    mine, theirs = arm["embeddings"].astype(np.float64), x86["embeddings"].astype(np.float64)
    worst, allowed = _apart(mine, theirs), max(done.max_abs, TEXT_ATOL)
    return {
        "compared": True,
        "encoder": done.name,
        "precision": done.precision,
        "texts": len(mine),
        "max_abs": worst,
        "allowed": allowed,
        "cosine_least": float((mine * theirs).sum(axis=1).min()),
        "passed": worst is not None and worst <= allowed,
    }


def examine_places(
    name: str, bundle: Path, asked: AskedPlaces, emulator: Emulator, timeout: float
) -> dict[str, Any]:
    """Run one bundle both ways and compare."""
    manifest = read_int8(name, bundle)
    evidence = manifest.of_places(bundle)
    given = asked.given(bundle, manifest)
    sent = b"".join(given[key].tobytes() for key in (*KINDS, "present", *Limits._fields))
    result: dict[str, Any] = {
        **head(name, manifest),
        "simulated": evidence.simulated,
        "gates": {item.name: {"value": item.value, "bound": item.bound} for item in manifest.gates},
        "given_sha256": sha256_bytes(sent),
    }
    x86, arm = run_both(CHILD, bundle, given, name, emulator, timeout)
    if isinstance(arm, str):
        return {**result, "failed": arm, "passed": False}
    compared = compare_answers(arm.arrays, x86.arrays)
    obeyed = obedience(arm.arrays["after"], given["rules"], given["bounds"])
    why = arm.facts["no_embeddings"] or x86.facts["no_embeddings"]
    texts = compare_texts(arm.arrays, x86.arrays, evidence, why)
    verified = arm.facts["verify"]
    agreed = all(compared[key]["agreement"] >= BOUND for key in ("before", "after"))
    lawful = obeyed["obey"] == obeyed["of"]
    return {
        **result,
        "compared": compared,
        "differ": _differ(arm.arrays, x86.arrays, asked),
        "changed_by_rules": int((~same_classes(x86.arrays["before"], x86.arrays["after"])).sum()),
        "obeyed_on_arm": obeyed,
        "texts": texts,
        "verify": {**verified, "allowed_logits": manifest.golden.atol},
        "integer_operators_on_arm": arm.integer,
        "arm": arm.facts,
        "x86": x86.facts,
        "failed": None,
        # where nothing is summed in integers, nothing was said about INT8
        "passed": agreed and lawful and texts.get("passed", True) and verified["passed"]
        and bool(arm.integer),
    }  # fmt: skip


def _differ(arm: Arrays, x86: Arrays, asked: AskedPlaces) -> list[dict[str, Any]]:
    """The first places of another class, and how near the two likeliest were on x86."""
    found = []
    rows, classes = asked.places.rows, asked.places.classes
    for key in ("before", "after"):
        for number in np.flatnonzero(~same_classes(arm[key], x86[key]))[:NAMED]:
            first, second = np.sort(x86[key][number])[::-1][:2]
            found.append({
                "place": rows[asked.chosen()[number][0]].name, "rules": key,
                "x86": classes[int(x86[key][number].argmax())],
                "arm": classes[int(arm[key][number].argmax())],
                "lead_on_x86": float(first - second),
            })  # fmt: skip
    return found


def print_places(result: Mapping[str, Any]) -> None:
    """Say what came out of one bundle."""
    note = ", SIMULATED" if result["simulated"] else ""
    click.echo(f"{result['target']} ({result['emulated_cpu']}), {result['bundle']}{note}")
    if result["failed"]:
        click.echo(f"  FAILED: {result['failed']}")
        return
    for key in ("before", "after"):
        item = result["compared"][key]
        worst = item["max_abs_probability"]
        click.echo(
            f"  {key + ' the rules':16s} same likeliest class as x86 "
            f"{100 * item['agreement']:6.2f} % of {item['places']} places, largest difference "
            f"{'not finite' if worst is None else f'{worst:.3g}'} in probability"
        )
    obeyed = result["obeyed_on_arm"]
    click.echo(
        f"  rules: {obeyed['obey']} of {obeyed['of']} answers obey on Arm; they change "
        f"{result['changed_by_rules']} of the likeliest classes"
    )
    texts = result["texts"]
    if texts["compared"]:
        worst = texts["max_abs"]
        click.echo(
            f"  {texts['texts']} texts ({texts['precision']}): embeddings differ by "
            f"{'what is not finite' if worst is None else f'{worst:.3g}'} at most, "
            f"allowed {texts['allowed']:.3g}, least cosine {texts['cosine_least']:.5f}"
        )
    else:
        click.echo(f"  texts: NOT compared, {texts['why']}")
    verified = result["verify"]
    said = verified["why"]
    if verified["passed"]:
        same = verified["same_as_stored"]
        said = (
            f"{verified['error_logits']:.3g} logits; of {verified['places']} golden places "
            f"{same['before']} and {same['after']} have the stored class before and after the rules"
        )
    click.echo(f"  verify: {'ok' if verified['passed'] else 'REFUSED'}, {said}")
    click.echo(f"  integer operators on Arm: {result['integer_operators_on_arm'] or 'NONE'}")
