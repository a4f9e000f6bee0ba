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
#: of a bootstrap
DRAWS = 10_000
#: what a reader of the figures must know
NOTES = (
    "the zone of a place (shore, upland), which decides which rules it has, is drawn from the "
    "truth: shore where the hidden highest water reaches it; so the rules know a part of the "
    "answer, and accuracy after the rules is partly an oracle's, no measure of a network",
    "all seeds are judged on the same test places: an interval over seeds says nothing of other "
    "coasts; one over coasts and seeds draws both again with replacement, and coasts are few",
)


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

    Returns:
        ``ensemble_is``, ``rows``, and ``right``: name of a row -> ``(places,)`` bool, before the
        rules.
    """
    taught = pieces["distilled"].scores
    how = better_ensemble(taught, labels["val"])
    answers = {f"teacher {kind}": softmax(taught[f"test/teacher {kind}"]) for kind in KINDS}
    answers["ensemble"] = ensemble(taught, "test", how)
    for arm, piece in pieces.items():
        for case in CASES:
            name = arm if case == "all" else f"{arm}, {case}"
            answers[name] = softmax(piece.scores[f"test/{case}"])
    truth = labels["test"]
    return {
        "ensemble_is": how,
        "rows": {name: figures(values, truth, limits) for name, values in answers.items()},
        "right": {name: values.argmax(1) == truth for name, values in answers.items()},
    }


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


def drawn_again(
    seeds: Mapping[int, Mapping[str, Any]],
    coasts: Sequence[str],
    one: str,
    other: str,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """The gain of accuracy of ``one`` over ``other``, with an interval over coasts and seeds.

    Coasts and seeds are drawn with replacement, independently of each other, since every seed is
    judged on every coast (the pigeonhole bootstrap; Owen 2007,
    https://doi.org/10.1214/07-AOAS122); the gain of a draw is the mean over its places.

    Args:
        seeds: seed -> what :func:`of_seed` found.
        coasts: of every test place.
        one, other: names of rows.
        draws: how many; their random state is fixed.

    Returns:
        ``mean``, ``low`` and ``high`` (2.5 and 97.5 percent of the draws), ``coasts``, ``draws``.
    """
    names, at = np.unique(np.asarray(coasts), return_inverse=True)
    places = np.bincount(at)
    gained = np.array(
        [
            np.bincount(at, item["right"][one].astype(float) - item["right"][other])
            for item in seeds.values()
        ]
    )
    random = np.random.default_rng(0)
    of_seeds = random.multinomial(len(gained), np.full(len(gained), 1 / len(gained)), draws)
    of_coasts = random.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)
    each = np.einsum("ds,sc,dc->d", of_seeds, gained, of_coasts)
    low, high = np.percentile(each / (len(gained) * (of_coasts @ places)), [2.5, 97.5])
    return {
        "mean": float(gained.sum() / (len(gained) * places.sum())),
        "low": float(low),
        "high": float(high),
        "coasts": len(names),
        "draws": draws,
    }


def gain_lines(gains: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines for a person, in points, of what :func:`paired` and :func:`drawn_again` found."""
    said = []
    for name, item in gains.items():
        wide = item["coasts_and_seeds"]
        said.append(
            f"{name}: {100 * item['mean']:+.1f} points; 95 %: ±{100 * item['half']:.1f} over the "
            f"{item['seeds']:.0f} seeds alone, {100 * wide['low']:+.1f} to "
            f"{100 * wide['high']:+.1f} over {wide['coasts']} coasts and the seeds"
        )
    return said


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
    """What was asked for, and whether it holds; ``times`` is None where nothing was timed, and then
    ``not_judged`` says so."""
    below = 100 * (rows["ensemble"]["accuracy"]["mean"] - rows["distilled"]["accuracy"]["mean"])
    obey = min(item["rows"][name]["obey_after"] for item in seeds.values() for name in item["rows"])
    return {
        "points_below_ensemble": below,
        "within_points": below <= MOST_POINTS,
        "times_faster": times,
        "fast_enough": None if times is None else times >= LEAST_TIMES,
        "least_obey_after": obey,
        "all_obey": obey == 1.0,
        "not_judged": ["fast_enough"] if times is None else [],
        "seeds": len(seeds),
    }


def held(found: Mapping[str, Any], no_timing: bool) -> bool:
    """Whether all that was asked for holds; what was not judged does not.

    Args:
        found: by :func:`verdict`.
        no_timing: nobody asks how fast; where it is known all the same, it counts.
    """
    excused = no_timing and found["fast_enough"] is None
    fast = excused or bool(found["fast_enough"])
    return bool(found["within_points"] and found["all_obey"] and fast)
