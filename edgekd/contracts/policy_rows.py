"""From rules to ``A p <= b``: rows for the classes of a product, contradictions resolved once.

The set of probabilities that obeys all rules does not depend on what a camera sees. So whether it
is empty is decided here, by linear programmes, and not in the network: rules are taken up by
priority, 1 first; where those of a priority cannot all be met beside the ones before, they are
relaxed by as little as possible (the least sum, of those the least maximum), and the ones before
stay as they are (lexicographic, or preemptive, goal programming). Rules of one priority that
contradict each other by themselves are a fault of the file: nobody said which one yields.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgekd.contracts.optional import require
from edgekd.contracts.policy import ClassFacts, Policy, Rule
from edgekd.contracts.projection import SLACK, Limits
from edgekd.contracts.registry import nearest
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float64]
#: of HiGHS, and what is less is none; of a row whose largest coefficient is 1, so of a class whose
#: coefficient is 1000 times smaller (:data:`edgekd.contracts.policy.MOST_SPAN`) 1e-4 is none
_EXACT = 1e-9
_NONE = 1e-7
#: beside a relaxed bound, so that what follows is not judged by the rounding of what came before
_ROOM = 1e-8


@dataclass(frozen=True)
class Row:
    """One rule as ``coefficients @ p <= bound``.

    Attributes:
        rule: what it is made of.
        coefficients: ``(classes,)``, the largest of them 1 or -1.
        bound: as it is in force.
        relaxed: how much of the bound is not the rule's own, in its units of probability.
        says: the rule in words.
    """

    rule: Rule
    coefficients: FloatArray
    bound: float
    relaxed: float
    says: str


@dataclass(frozen=True)
class ZoneRules:
    """What is in force in a zone.

    Attributes:
        zone, day: of which place and date.
        rows: in the order of priority.
        without: rules that limit no class of the product, in words; a class without the fact that
            a rule asks for is none that it limits, and is named.
        implied: ids of rules that the others imply, left out since there was no room.
        limits: what the projection takes.
    """

    zone: str
    day: datetime.date
    rows: list[Row]
    without: list[str]
    implied: list[str]
    limits: Limits

    @property
    def relaxed(self) -> list[str]:
        """A sentence for each rule that had to yield."""
        return [
            f"rule {row.rule.id} ({row.says}, priority {row.rule.priority}) cannot be met beside "
            f"those before it, and is relaxed by {row.relaxed:.4g}"
            for row in self.rows
            if row.relaxed
        ]


def compile_zone(
    policy: Policy,
    zone: str,
    day: datetime.date,
    classes: Sequence[str],
    facts: Mapping[str, ClassFacts],
    rows: int,
) -> ZoneRules:
    """The rows of a zone on a day.

    Args:
        policy: the file.
        zone, day: where and when.
        classes: of the product, in the order of its scores.
        facts: class -> what rules ask of it; classes may be absent.
        rows: how many there is room for.

    Raises:
        InputError: a zone, class or fact that is not there, a rule that nothing can meet, rules of
            one priority that contradict each other, or more rules than there is room for.
        EnvironmentLacksError: scipy is not installed.
    """
    made: list[Row] = []
    without: list[str] = []
    for rule in sorted(policy.in_force(zone, day), key=lambda item: item.priority):
        row = _row(rule, classes, facts)
        if row is None:
            fact, lacking = unsaid(rule, classes, facts)
            without.append(
                f"rule {rule.id} limits none of the classes that have a {fact}, and passes over "
                f"those without ({', '.join(lacking)})"
                if lacking
                else f"rule {rule.id} limits no class of the product"
            )
        else:
            made.append(row)
    settled: list[Row] = []
    for priority in sorted({row.rule.priority for row in made}):
        level = [row for row in made if row.rule.priority == priority]
        settled += _settle(settled, level)
    implied: list[str] = []
    if len(settled) > rows:
        settled, implied = _without_implied(settled, rows)
    if len(settled) > rows:
        raise InputError(
            f"zone {zone} has {len(settled)} rules in force on {day}, none of which the others "
            f"imply, and the product has room for {rows}; merge some, or build it with more room "
            "(io.rules.rows of its recipe)"
        )
    limits = padded(
        np.array([row.coefficients for row in settled]).reshape(-1, len(classes)),
        np.array([row.bound for row in settled]),
        rows,
    )
    return ZoneRules(zone, day, settled, without, implied, limits)


def unsaid(
    rule: Rule, classes: Sequence[str], facts: Mapping[str, ClassFacts]
) -> tuple[str, list[str]]:
    """The fact that a rule asks for, and the classes without it, which it does not limit.

    Returns:
        Name of the fact and names of classes, in their order; ``("", [])`` of a linear rule.
    """
    if rule.coefficients is not None:
        return "", []
    _, fact, _ = _limit(rule)
    known = _known(fact, classes, facts)
    return fact, [name for name in classes if name not in known]


def padded(rules: npt.ArrayLike, bounds: npt.ArrayLike, rows: int) -> Limits:
    """Rows scaled to a largest coefficient of 1, rows without effect up to ``rows``, and a point.

    Args:
        rules: ``(k, classes)``; a row of zeros must have a bound of at least 0.
        bounds: ``(k,)``.
        rows: at least k.

    Raises:
        InputError: too many rows, or such that nothing can meet.
        EnvironmentLacksError: scipy is not installed.
    """
    require("scipy", "places", "compile rules")
    a, b = np.asarray(rules, dtype=np.float64), np.asarray(bounds, dtype=np.float64)
    if a.ndim != 2 or b.shape != a.shape[:1] or len(a) > rows:
        raise InputError(f"rules {a.shape} and bounds {b.shape} do not fit {rows} rows")
    found = np.zeros((rows, a.shape[1]), dtype=np.float32)
    limits = np.ones(rows, dtype=np.float32)
    for number, (row, bound) in enumerate(zip(a, b, strict=True)):
        scale = float(np.abs(row).max())
        if scale == 0 and bound < 0:
            raise InputError(f"row {number} says 0 <= {bound:g}, which nothing can meet")
        if scale > 0:
            found[number], limits[number] = row / scale, bound / scale
    return Limits(found, limits, _inside(found.astype(np.float64), limits.astype(np.float64)))


def _inside(rules: FloatArray, bounds: FloatArray) -> npt.NDArray[np.float32]:
    """Probabilities as far from the nearest bound as can be, ``(classes,)``."""
    classes = rules.shape[1]
    limited = np.abs(rules).max(1) > 0
    if not limited.any():
        return np.full(classes, 1 / classes, dtype=np.float32)
    left = np.concatenate([rules[limited], np.ones((int(limited.sum()), 1))], axis=1)
    farthest = np.append(np.zeros(classes), -1.0)
    found = _solve(farthest, left, bounds[limited] + SLACK, classes)
    return found[:classes].astype(np.float32)


def _row(rule: Rule, classes: Sequence[str], facts: Mapping[str, ClassFacts]) -> Row | None:
    """The row of a rule; None where it limits none of the classes."""
    if rule.coefficients is not None:
        return _linear(rule, rule.coefficients, classes)
    limit, fact, says = _limit(rule)
    above = rule.type == "height_limit"
    known = _known(fact, classes, facts)
    if not known:
        raise InputError(
            f"rule {rule.id} of type {rule.type} asks for {fact}, which no class of the product "
            f"has; say it of its classes ({', '.join(classes)})"
        )
    forbidden = [n for n, value in known.items() if (value > limit if above else value < limit)]
    if len(forbidden) == len(classes):
        raise InputError(
            f"rule {rule.id} ({says}) forbids every class of the product, so it has no answer; "
            "correct the rule, or the facts of the classes"
        )
    if not forbidden:
        return None
    if rule.share:
        says += f" with more than {100 * rule.share:g} % of the probability"
    coefficients = np.array([float(name in forbidden) for name in classes])
    return Row(rule, coefficients, rule.share or 0.0, 0.0, says)


def _known(fact: str, classes: Sequence[str], facts: Mapping[str, ClassFacts]) -> dict[str, float]:
    """Class -> its fact, of classes that have it."""
    return {
        name: value
        for name in classes
        if name in facts and (value := getattr(facts[name], fact)) is not None
    }


def _limit(rule: Rule) -> tuple[float, str, str]:
    """What a rule of the ground limits: the bound, the fact of a class, and both in words."""
    if rule.max_m is not None:
        return rule.max_m, "height_m", f"no buildings above {rule.max_m:g} m"
    if rule.min_m is not None:
        return rule.min_m, "setback_m", f"no buildings within {rule.min_m:g} m of the shore"
    assert rule.min_floor_m is not None
    return rule.min_floor_m, "floor_m", f"no floor below {rule.min_floor_m:g} m"


def _linear(rule: Rule, coefficients: dict[str, float], classes: Sequence[str]) -> Row:
    assert rule.max is not None
    for name in coefficients:
        if name not in classes:
            raise InputError(
                f"rule {rule.id} has a coefficient for class '{name}', which is not there"
                f"{nearest(name, list(classes))} (valid: {', '.join(classes)})"
            )
    given = np.array([coefficients.get(name, 0.0) for name in classes])
    if given.min() > rule.max:
        raise InputError(
            f"rule {rule.id} asks for at most {rule.max:g}, and its sum is at least "
            f"{given.min():g} whatever the probabilities; correct max or the coefficients"
        )
    scale = float(np.abs(given).max())
    terms = " + ".join(f"{value:g} {name}" for name, value in coefficients.items() if value)
    return Row(rule, given / scale, rule.max / scale, 0.0, f"{terms} <= {rule.max:g}")


def _settle(before: list[Row], level: list[Row]) -> list[Row]:
    """The rows of one priority, relaxed where the ones before leave no room for them."""
    least = _least_relaxation(before, level)
    if least.max() <= _NONE:
        # what is too little to speak of still adds up over priorities
        return [
            replace(row, bound=row.bound + more + _ROOM) if more > 0 else row
            for row, more in zip(level, least.tolist(), strict=True)
        ]
    if _least_relaxation([], level).max() > _NONE:
        names = [f"{row.rule.id} ({row.says})" for row in _contradicting(level)]
        raise InputError(
            f"rules {' and '.join(names)} contradict each other at the same priority, "
            f"{level[0].rule.priority}; give the one that yields a higher number"
        )
    return [
        replace(
            row,
            bound=row.bound + more + _ROOM,
            relaxed=more * _scale(row) if more > _NONE else 0.0,
        )
        if more > 0
        else row
        for row, more in zip(level, least.tolist(), strict=True)
    ]


def _scale(row: Row) -> float:
    """What a row's numbers were divided by."""
    return max(abs(value) for value in (row.rule.coefficients or {"": 1.0}).values())


def _least_relaxation(before: list[Row], level: list[Row]) -> FloatArray:
    """Additions to the bounds of ``level``, ``(k,)``: the least sum, of those the least maximum."""
    classes, count = len(level[0].coefficients), len(level)
    rows = [*before, *level]
    # unknowns: probabilities, additions, their maximum
    left = np.zeros((len(rows) + count, classes + count + 1))
    left[: len(rows), :classes] = [row.coefficients for row in rows]
    right = np.concatenate([[row.bound for row in rows], np.zeros(count)])
    at = np.arange(count)
    left[len(before) + at, classes + at] = -1
    left[len(rows) + at, classes + at], left[len(rows) + at, -1] = 1, -1
    total = np.concatenate([np.zeros(classes), np.ones(count), [0.0]])
    found = _solve(total, left, right, classes)
    least = float(found @ total)
    if least <= _EXACT:
        return np.zeros(count)
    bounded = np.vstack([left, total])
    most = np.zeros_like(total)
    most[-1] = 1
    found = _solve(most, bounded, np.append(right, least + _EXACT), classes)
    additions: FloatArray = found[classes : classes + count]
    return additions


def _solve(cost: FloatArray, left: FloatArray, right: FloatArray, classes: int) -> FloatArray:
    from scipy.optimize import linprog

    one = np.zeros((1, len(cost)))
    one[0, :classes] = 1
    exactly = {"primal_feasibility_tolerance": _EXACT, "dual_feasibility_tolerance": _EXACT}
    # one relaxation after the other may leave so little that its own rounding is in the way
    for room in (0.0, _ROOM, 10 * _ROOM):
        found = linprog(
            cost, left, right + room, one, [1.0], bounds=(0, None), method="highs", options=exactly
        )
        if found.success:
            answer: FloatArray = np.asarray(found.x, dtype=np.float64)
            return answer
    raise InputError(f"the rules have no answer: {found.message}")


def _contradicting(level: list[Row]) -> list[Row]:
    """A part of the rows that contradict each other, from which none can be left out."""
    kept = list(level)
    for row in level:
        rest = [item for item in kept if item is not row]
        if rest and _least_relaxation([], rest).max() > _NONE:
            kept = rest
    return kept


def _without_implied(rows: list[Row], room: int) -> tuple[list[Row], list[str]]:
    """Rows without those that the others imply, the least important first, until there is room."""
    kept, implied = list(rows), list[str]()
    for row in reversed(rows):
        if len(kept) <= room:
            break
        rest = [item for item in kept if item is not row]
        left = np.array([item.coefficients for item in rest])
        right = np.array([item.bound for item in rest])
        highest = row.coefficients @ _solve(-row.coefficients, left, right, len(row.coefficients))
        if highest <= row.bound + _EXACT:
            kept, implied = rest, [*implied, row.rule.id]
    return kept, implied
