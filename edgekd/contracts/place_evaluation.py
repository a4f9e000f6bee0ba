"""A model of places over a split of a set: the same figures of a checkpoint and of a bundle."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgekd.contracts.answer_metrics import BINS, answer_figures
from edgekd.contracts.evidence import KINDS, Answers, Evidence
from edgekd.contracts.place_evidence import PlaceReader, rules_of_zones, set_rules
from edgekd.contracts.policy import ClassFacts
from edgekd.contracts.projection import Limits
from edgekd.errors import InputError

#: asks a model: places and the rules of each, None is none
Asked = Callable[[Sequence[Evidence], Sequence[Limits] | None], Answers]
Progress = Callable[[int, int], None]
#: places that are in memory at once
BATCH = 32


def evaluate_places(
    ask: Asked,
    reader: PlaceReader,
    split: str,
    facts: Mapping[str, ClassFacts],
    rows: int,
    day: datetime.date,
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Figures over a split: with all kinds of evidence, and without each of them.

    Args:
        ask: the model.
        reader: of the set; rules are those that come with it.
        split: train, val, test or all.
        facts: class -> what rules ask of it; of the product, the set's own where it has none.
        rows: rules that the model has room for.
        day: on which rules are in force.
        progress: told places asked, and in all.

    Returns:
        JSON-ready values; ``evidence`` has a part for ``all`` and for each kind left out, with
        figures ``before`` and ``after`` the projection (None where the set has no rules) over the
        number of ``places`` that have another kind; with none such both are None.
        ``has`` says how many places have each kind.

    Raises:
        InputError: no such split, rules that do not fit, or facts of product and set that differ.
    """
    start = time.monotonic()
    places = reader.places
    chosen = reader.rows_of(split)
    labels = np.array([places.rows[at].label for at in chosen])
    policy = set_rules(places)
    limits: list[Limits] | None = None
    if policy is not None:
        zones = [places.rows[at].zone for at in chosen]
        mine = same_facts(facts, places.facts, str(places.root))
        known = rules_of_zones(policy, zones, day, places.classes, mine, rows)
        limits = [known[zone].limits for zone in zones]
    parts: list[tuple[str, tuple[str, ...]]] = [("all", ())]
    parts += [(f"without {kind}", (kind,)) for kind in KINDS]
    evidence: dict[str, Any] = {}
    kept = {
        name: [number for number, at in enumerate(chosen) if reader.left(at, without)]
        for name, without in parts
    }
    done, total = 0, sum(map(len, kept.values()))
    for name, without in parts:
        numbers = kept[name]
        evidence[name] = {"places": len(numbers), "before": None, "after": None}
        if not numbers:
            continue
        before, after = [], []
        for first in range(0, len(numbers), BATCH):
            part = numbers[first : first + BATCH]
            given = [reader(chosen[number], without) for number in part]
            answers = ask(given, None if limits is None else [limits[number] for number in part])
            before.append(answers.before)
            after.append(answers.probabilities)
            done += len(given)
            progress(done, total)
        theirs = None if limits is None else [limits[number] for number in numbers]
        truth = labels[numbers]
        evidence[name]["before"] = answer_figures(np.concatenate(before), truth, theirs)
        if theirs is not None:
            evidence[name]["after"] = answer_figures(np.concatenate(after), truth, theirs)
    counts = np.bincount(labels, minlength=len(places.classes)).tolist()
    return {
        "data": places.about.name,
        "simulated": places.about.simulated,
        "split": split,
        "places": len(chosen),
        "has": {kind: sum(kind in places.rows[at].kinds for at in chosen) for kind in KINDS},
        "labels": dict(zip(places.classes, counts, strict=True)),
        "rules": None if policy is None else {"name": policy.name, "sha256": policy.digest},
        "day": None if policy is None else day.isoformat(),
        "ece_bins": BINS,
        "evidence": evidence,
        "seconds": time.monotonic() - start,
    }


def same_facts(
    product: Mapping[str, ClassFacts], given: Mapping[str, ClassFacts], where: str
) -> Mapping[str, ClassFacts]:
    """The product's facts of classes, or those that are given where it has none.

    Raises:
        InputError: both say something, and not the same.
    """
    said = {name: item for name, item in given.items() if item != ClassFacts()}
    mine = {name: item for name, item in product.items() if item != ClassFacts()}
    if mine and said and mine != said:
        raise InputError(
            f"{where} says other facts of the classes (height, setback, floor) than the product "
            "was built with, so rules would mean something else; build it again from that set"
        )
    return mine or said
