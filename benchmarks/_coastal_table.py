"""Figures of ``coastal_gain.py``: the ensemble, the table, and the verdict."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from _coastal_pieces import CASES, Piece

from edgekd.contracts.answer_metrics import accuracy, answer_figures
from edgekd.contracts.evidence import KINDS
from edgekd.contracts.projection import Limits, project

FloatArray = npt.NDArray[np.floating]
#: how answers of several teachers become one; the better one on the validation places is taken
ENSEMBLES = ("mean", "product")
#: bounds of the verdict: points below the ensemble, times faster
MOST_POINTS, LEAST_TIMES = 4.0, 15.0


def softmax(scores: FloatArray) -> FloatArray:
    """Rows of probabilities."""
    high = np.exp(scores - scores.max(1, keepdims=True))
    found: FloatArray = high / high.sum(1, keepdims=True)
    return found


def ensemble(scores: Mapping[str, FloatArray], split: str, how: str) -> FloatArray:
    """Probabilities of all teachers together.

    Args:
        scores: ``split/teacher kind`` -> logits.
        split: ``val`` or ``test``.
        how: ``mean`` of the probabilities, or their ``product`` (the sum of the logarithms).
    """
    each = [softmax(scores[f"{split}/teacher {kind}"]) for kind in KINDS]
    if how == "mean":
        found: FloatArray = np.mean(each, axis=0)
        return found
    return softmax(np.sum([np.log(np.maximum(item, 1e-12)) for item in each], axis=0))


def better_ensemble(scores: Mapping[str, FloatArray], labels: npt.NDArray[np.integer]) -> str:
    """The kind of :data:`ENSEMBLES` with the best accuracy on the validation places."""
    return max(ENSEMBLES, key=lambda how: accuracy(ensemble(scores, "val", how), labels))


def projected(values: FloatArray, limits: Sequence[Limits]) -> FloatArray:
    """Answers as the rules allow."""
    scores = np.log(np.maximum(values.astype(np.float64), 1e-30))
    return project(scores, *(np.stack([item[at] for item in limits]) for at in range(3)))


def figures(
    values: FloatArray, labels: npt.NDArray[np.integer], limits: Sequence[Limits]
) -> dict[str, float]:
    """Of one network's probabilities on the test places, all 0-1."""
    before = answer_figures(values, labels, limits)
    after = answer_figures(projected(values, limits), labels, limits)
    return {
        "accuracy": before["accuracy"],
        "balanced_accuracy": before["balanced_accuracy"],
        "ece": before["ece"],
        "obey_before": before["compliance"]["obey"],
        "winners_obey_before": before["compliance"]["winners_obey"],
        "accuracy_after": after["accuracy"],
        "ece_after": after["ece"],
        "obey_after": after["compliance"]["obey"],
        "winners_obey_after": after["compliance"]["winners_obey"],
    }


def of_seed(
    pieces: Mapping[str, Piece],
    labels: Mapping[str, npt.NDArray[np.integer]],
    limits: Sequence[Limits],
) -> dict[str, Any]:
    """Name of a row -> its figures, of one seed.

    Args:
        pieces: arm -> piece; ``distilled`` has the teachers.
        labels: split -> class numbers.
        limits: of every test place.
    """
    taught = pieces["distilled"].scores
    how = better_ensemble(taught, labels["val"])
    found = {
        f"teacher {kind}": figures(softmax(taught[f"test/teacher {kind}"]), labels["test"], limits)
        for kind in KINDS
    }
    found["ensemble"] = figures(ensemble(taught, "test", how), labels["test"], limits)
    for arm, piece in pieces.items():
        for case in CASES:
            name = arm if case == "all" else f"{arm}, {case}"
            found[name] = figures(softmax(piece.scores[f"test/{case}"]), labels["test"], limits)
    return {"ensemble_is": how, "rows": found}


def together(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Row -> figure -> mean and standard deviation over the seeds."""
    first = next(iter(seeds.values()))["rows"]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row, values in first.items():
        found[row] = {}
        for key in values:
            each = [float(item["rows"][row][key]) for item in seeds.values()]
            found[row][key] = {
                "mean": statistics.fmean(each),
                "sd": statistics.stdev(each) if len(each) > 1 else float("nan"),
            }
    return found


def paired(
    seeds: Mapping[int, Mapping[str, Any]], one: str, other: str, key: str = "accuracy"
) -> dict[str, float]:
    """Mean of ``one`` less ``other`` over the seeds, and half Student's 95 % interval."""
    from scipy.stats import t

    each = [item["rows"][one][key] - item["rows"][other][key] for item in seeds.values()]
    half = (
        float(t.ppf(0.975, len(each) - 1)) * statistics.stdev(each) / len(each) ** 0.5
        if len(each) > 1
        else float("nan")
    )
    return {"mean": statistics.fmean(each), "half": half, "seeds": float(len(each))}


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]], seeds: int) -> list[str]:
    """Lines for a person, in percent."""
    said = [
        f"{'':28} accuracy     ECE | winner obeys: before  after | whole answer: before  after | "
        "accuracy after",
    ]
    for name, values in rows.items():
        mean = {key: 100 * item["mean"] for key, item in values.items()}
        said.append(
            f"{name:28} {mean['accuracy']:5.1f} ±{100 * values['accuracy']['sd']:3.1f} "
            f"{mean['ece']:5.1f} | {mean['winners_obey_before']:20.1f} "
            f"{mean['winners_obey_after']:6.1f} | {mean['obey_before']:20.1f} "
            f"{mean['obey_after']:6.1f} | {mean['accuracy_after']:14.1f}"
        )
    said.append(f"percent, mean over {seeds} seeds (± standard deviation)")
    return said


def verdict(
    seeds: Mapping[int, Mapping[str, Any]],
    rows: Mapping[str, Mapping[str, Mapping[str, float]]],
    times: float | None,
) -> dict[str, Any]:
    """What was asked for, and whether it holds; ``times`` is None where nothing was timed."""
    below = 100 * (rows["ensemble"]["accuracy"]["mean"] - rows["distilled"]["accuracy"]["mean"])
    obey = min(item["rows"][name]["obey_after"] for item in seeds.values() for name in item["rows"])
    return {
        "points_below_ensemble": below,
        "within_points": below <= MOST_POINTS,
        "times_faster": times,
        "fast_enough": None if times is None else times >= LEAST_TIMES,
        "least_obey_after": obey,
        "all_obey": obey == 1.0,
        "seeds": len(seeds),
    }
