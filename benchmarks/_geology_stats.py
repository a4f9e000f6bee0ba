"""Paired differences of ``geology_gain.py``: their intervals, the table, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

ARMS = ("labels", "distilled", "progressive")
#: the arm that the verdict is about
JUDGED = "distilled"
#: fewer pairs of (fold, draw) decide nothing, and nothing is shown by fewer sets
LEAST_PAIRS, LEAST_SETS = 20, 2
#: name of an interval -> key of half its width
HALVES = {"pairs": "half", "overlap": "half_overlap", "folds": "half_folds"}
#: what stands in a record beside its figures
MEANING = {
    "half": "half of Student's 95 % interval over the pairs (fold, draw)",
    "half_overlap": "the same with the variance (1/J + n_test/n_train) S^2 of J pairs, which "
    "allows for training sets that overlap (Nadeau and Bengio 2003)",
    "half_folds": "half of Student's 95 % interval over the means of the folds",
    "test_over_train": "pixels with truth, of the test part over those of the training part, mean "
    "over the folds; the buffer is in neither",
}

_COLUMNS = ("teacher", *ARMS)
#: fold and draw
Place = tuple[int, int]


def interval(gains: Mapping[Place, float], ratio: float) -> dict[str, float]:
    """Mean of paired differences and half its 95 % interval, in three ways.

    ``half``: Student's over the J pairs, as if they were independent. ``half_overlap``: the same
    with the variance (1/J + n_test/n_train) S^2 (Nadeau and Bengio 2003, Machine Learning 52,
    the corrected resampled t-test). ``half_folds``: Student's over the means of the folds, which
    takes draws within a fold for one observation.

    Args:
        gains: of every (fold, draw); every fold has the same number of draws.
        ratio: n_test/n_train in pixels, see :func:`pixel_ratio`.

    Raises:
        ValueError: fewer than two folds, or folds with different numbers of draws.
    """
    from scipy.stats import t

    folds: dict[int, list[float]] = {}
    for (fold, _), value in gains.items():
        folds.setdefault(fold, []).append(value)
    draws = sorted({len(values) for values in folds.values()})
    if len(folds) < 2 or len(draws) != 1:
        raise ValueError(f"expected two folds or more, with as many draws each; got {folds}")
    count = len(gains)
    spread = statistics.stdev(gains.values())
    factor = float(t.ppf(0.975, count - 1)) * spread
    means = [statistics.fmean(values) for values in folds.values()]
    of_folds = float(t.ppf(0.975, len(means) - 1)) * statistics.stdev(means)
    return {
        "mean": statistics.fmean(gains.values()),
        "half": factor * (1 / count) ** 0.5,
        "half_overlap": factor * (1 / count + ratio) ** 0.5,
        "half_folds": of_folds * (1 / len(means)) ** 0.5,
        "pairs": count,
        "folds": len(means),
    }


def pixel_ratio(pieces: Iterable[dict[str, Any]]) -> float:
    """n_test/n_train of a set: pixels with truth of both parts, mean over the folds."""
    of_fold = {item["fold"]: item["pixels"] for item in pieces}
    return statistics.fmean(item["test"] / item["train"] for item in of_fold.values())


def summarise(pieces: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per set and number of labels."""
    rows = []
    keys = dict.fromkeys((item["name"], item["labels"]) for item in pieces)
    for name, labels in keys:
        mine = [item for item in pieces if (item["name"], item["labels"]) == (name, labels)]
        ratio = pixel_ratio(mine)
        row: dict[str, Any] = {
            "set": name,
            "labels_per_class": labels,
            "simulated": mine[0]["simulated"],
            "test_over_train": ratio,
        }
        of: dict[str, dict[Place, float]] = {arm: {} for arm in ARMS}
        for item in mine:
            of[item["arm"]][item["fold"], item["draw"]] = item["student"]["balanced_accuracy"]
        row["teacher"] = _mean(
            item["fusion"]["balanced_accuracy"] for item in mine if item["arm"] == "distilled"
        )
        row |= _arms(of, ratio)
        for arm in ARMS[1:]:
            if row[arm] is not None and row["teacher"]:
                row[f"{arm}_kept"] = row[arm] / row["teacher"]
        row["rare"] = _rare(mine, ratio)
        row["recall"] = {
            "teacher": _recalls([item["fusion"] for item in mine if "fusion" in item]),
            **{arm: _recalls([item["student"] for item in mine if item["arm"] == arm])
               for arm in ARMS},
        }  # fmt: skip
        row["minutes"] = sum(item["seconds"] for item in mine) / 60
        rows.append(row)
    return rows


def _rare(mine: list[dict[str, Any]], ratio: float) -> dict[str, Any]:
    """Mean recall over the rare classes of each arm, and the paired gain."""
    names = mine[0]["rare"]
    of: dict[str, dict[Place, float]] = {arm: {} for arm in ARMS}
    for item in mine:
        values = [item["student"]["recall"][name] for name in names]
        if known := [value for value in values if value is not None]:
            of[item["arm"]][item["fold"], item["draw"]] = statistics.fmean(known)
    taught = [item["fusion"]["recall"][name] for item in mine if "fusion" in item for name in names]
    return {
        "classes": names,
        "teacher": _mean(value for value in taught if value is not None),
        **_arms(of, ratio),
    }


def _arms(of: dict[str, dict[Place, float]], ratio: float) -> dict[str, Any]:
    """Mean of every arm, and its gain over labels only where there are pairs of two folds."""
    found: dict[str, Any] = {}
    for arm in ARMS:
        found[arm] = _mean(of[arm].values())
        both = sorted(of[arm].keys() & of["labels"].keys())
        if arm != "labels" and len({fold for fold, _ in both}) > 1:
            found[f"{arm}_gain"] = interval({p: of[arm][p] - of["labels"][p] for p in both}, ratio)
    return found


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def _recalls(items: list[dict[str, Any]]) -> dict[str, float | None]:
    names = items[0]["recall"] if items else {}
    return {
        name: _mean(item["recall"][name] for item in items if item["recall"][name] is not None)
        for name in names
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the gains show.

    The rule: with the fewest labels per class that were asked for (all of them are not few), the
    mean of the paired differences of ``distilled`` to labels only is above 0 by more than half of
    Student's 95 % interval over at least 20 pairs of (fold, draw), on at least two sets. So a set
    counts by this arm alone, and every number of labels by itself. The other two intervals
    decide nothing; where each excludes 0 is named.

    Returns:
        ``excludes_zero``: interval -> set -> arms and labels, with losses marked; ``by_labels``:
        few labels -> whether the rule holds for them; ``passed``: for the fewest.
    """
    excludes: dict[str, dict[str, list[str]]] = {name: {} for name in HALVES}
    shown: dict[int, int] = {}  # few labels -> sets with a gain
    for row in rows:
        labels = row["labels_per_class"]
        if labels is not None:
            shown.setdefault(labels, 0)
        for arm in ARMS[1:]:
            gain = row.get(f"{arm}_gain")
            if gain is None:
                continue
            for name, half in HALVES.items():
                if abs(gain["mean"]) > gain[half]:
                    said = f"{arm}, {labels or 'all'} labels" + " (a loss)" * (gain["mean"] < 0)
                    excludes[name].setdefault(row["set"], []).append(said)
            enough = gain["pairs"] >= LEAST_PAIRS and gain["mean"] > gain["half"]
            if arm == JUDGED and labels is not None and enough:
                shown[labels] += 1
    by_labels = {labels: shown[labels] >= LEAST_SETS for labels in sorted(shown)}
    return {
        "rule": f"{JUDGED} minus labels only, interval over pairs above 0 with {LEAST_PAIRS} pairs "
        f"or more, on {LEAST_SETS} sets or more, with the fewest labels per class",
        "excludes_zero": excludes,
        "by_labels": {str(labels): held for labels, held in by_labels.items()},
        "passed": next(iter(by_labels.values()), False),
    }


def lines(rows: list[dict[str, Any]], codes: Mapping[str, int]) -> Iterator[str]:
    """The table, as text.

    Args:
        rows: see :func:`summarise`.
        codes: digest of the code -> pieces that it made.
    """
    yield (
        "Balanced accuracy on test blocks, %. gain: mean of the paired differences to labels only, "
        "points,"
    )
    yield (
        "then half of two 95 % intervals: Student's over the pairs; the one that allows for "
        "overlapping training sets"
    )
    yield "(pairs). kept: of the teacher's figure, distilled/progressive."
    yield (
        f"{'set':10s} {'labels':>6s} {'teacher':>8s} {'labels only':>12s} {'distilled':>10s} "
        f"{'gain':>22s} {'progressive':>12s} {'gain':>22s} {'kept':>10s} {'min':>6s}"
    )

    def share(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    def gain(value: dict[str, float] | None) -> str:
        if value is None:
            return "-"
        halves = f"±{100 * value['half']:.1f} ±{100 * value['half_overlap']:.1f}"
        return f"{100 * value['mean']:+.1f} {halves} ({value['pairs']:.0f})"

    def figures(label: object, of: dict[str, Any]) -> str:
        return (
            f"{label:>6} {share(of['teacher']):>8s} {share(of['labels']):>12s} "
            f"{share(of['distilled']):>10s} {gain(of.get('distilled_gain')):>22s} "
            f"{share(of['progressive']):>12s} {gain(of.get('progressive_gain')):>22s}"
        )

    for row in rows:
        kept = f"{share(row.get('distilled_kept'))}/{share(row.get('progressive_kept'))}"
        said = figures(row["labels_per_class"] or "all", row)
        yield f"{row['set']:10s} {said} {kept:>10s} {row['minutes']:>6.1f}"
        if row["rare"]["classes"]:
            yield f"{'':10s} {figures('rare', row['rare'])}   ({', '.join(row['rare']['classes'])})"
    ceilings = {
        row["set"]: row["labels"]
        for row in rows
        if row["labels_per_class"] is None and row["labels"] is not None
    }
    if ceilings:
        said = ", ".join(f"{name} {share(value)}" for name, value in ceilings.items())
        yield f"Ceiling of the camera's student, from all labels: {said}."
    yield "Truth: muufl, the material with the largest share of a pixel; cuprite, spectral matching"
    yield "with three USGS endmembers (no ground survey); simulated, known since it was computed."
    yield "Recall by class, %: teacher, labels only, distilled, progressive."
    for row in rows:
        yield f"{row['set']}, {row['labels_per_class'] or 'all'} labels"
        for name in row["recall"]["labels"]:
            each = "".join(f"{share(row['recall'][arm].get(name)):>7s}" for arm in _COLUMNS)
            rare = "  rare" if name in row["rare"]["classes"] else ""
            yield f"    {name:18s}{each}{rare}"
    if len(codes) > 1:
        made = ", ".join(f"{count} by {code}" for code, count in sorted(codes.items()))
        yield f"These pieces were made by more than one state of the code: {made}."
