"""What ``arm_emulation.py --places`` runs, as Arm code and natively alike: a bundle of places.

    python _arm_places_child.py BUNDLE GIVEN.npz OUT [--any-device]

It is the runtime itself: :func:`edgekd.runtime.places.open_places`, ``answer``, ``embed`` and
``verify``. GIVEN holds places and their rules as arrays (``_arm_asked.pack``), so that neither a
reader of pictures nor a solver of linear programmes is asked for here. OUT, a folder, gets
``outputs.npz``, without ``--any-device`` also ``graph.onnx`` (the graph as ONNX Runtime rewrote it
for this processor), and last ``facts.json``. Ends with 2 and one line where the runtime refuses the
bundle, or an answer.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from _arm_child import PACKAGES, machine, write_graph

from edgekd.contracts.evidence import KINDS, Evidence
from edgekd.contracts.projection import Limits
from edgekd.errors import EdgeKDError, EnvironmentLacksError
from edgekd.runtime.places import PlaceSession, open_places


def answer(session: PlaceSession, given: dict[str, Any]) -> dict[str, Any]:
    """Scores and probabilities of the given places, ``before`` and ``after`` their rules."""
    places = [
        Evidence(**{kind: given[kind][at] for kind, has in zip(KINDS, there, strict=True) if has})
        for at, there in enumerate(given["present"])
    ]
    parts = [given[name] for name in Limits._fields]
    found = session.answer(places, [Limits(*item) for item in zip(*parts, strict=True)])
    return {"scores": found.scores, "before": found.before, "after": found.probabilities}


def verify(session: PlaceSession) -> dict[str, Any]:
    """Whether the golden places pass, by how much scores differ, and how many classes are as stored
    before and after the rules."""
    facts: dict[str, Any] = {"passed": False, "error_logits": None, "why": None}
    try:
        session.verify()
        golden = session.read_golden()
        found = session.answer(golden.places(), golden.limits())
    except EdgeKDError as err:
        return {**facts, "why": str(err)}
    pairs = {
        "before": (found.scores, golden.logits),
        "after": (found.probabilities, golden.probabilities),
    }
    return {
        "passed": True,
        "why": None,
        "error_logits": float(np.abs(found.scores - golden.logits).max()),
        "places": len(golden.logits),
        "same_as_stored": {
            key: int((mine.argmax(1) == stored.argmax(1)).sum())
            for key, (mine, stored) in pairs.items()
        },
    }


def version(name: str) -> str | None:
    """Of a distribution; None where it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def main() -> None:
    """Run everything and write OUT."""
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    parser.add_argument("given", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--any-device", action="store_true")
    args = parser.parse_args()
    facts = machine()
    facts["packages"] = {name: version(name) for name in (*PACKAGES, "tokenizers")}
    with np.load(args.given, allow_pickle=False) as stored:
        given = dict(stored)
    start = time.perf_counter()
    with open_places(args.bundle, any_device=args.any_device) as session:
        arrays = answer(session, given)
        facts["verify"] = verify(session)
        facts["no_embeddings"] = None if len(given["texts"]) else "no text was given"
        if len(given["texts"]):
            try:
                arrays["embeddings"] = session.embed([str(text) for text in given["texts"]])
            except EnvironmentLacksError as err:
                facts["no_embeddings"] = str(err)
        manifest = session.manifest
    np.savez(args.out / "outputs.npz", **arrays)
    if not args.any_device:
        model = args.bundle / manifest.model
        write_graph(model, manifest.target.threads, args.out / "graph.onnx")
    facts["seconds"] = time.perf_counter() - start
    (args.out / "facts.json").write_text(json.dumps(facts), encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except EdgeKDError as fault:
        print(fault, file=sys.stderr)
        sys.exit(2)
