"""The picture of ``coastal_gain.py``: accuracy, missing evidence, calibration, obedience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _coastal_pieces import Piece
from _coastal_table import ensemble, softmax

from edgekd.contracts.artifacts import publish_file
from edgekd.contracts.evidence import KINDS

Rows = Mapping[str, Mapping[str, Mapping[str, float]]]
FloatArray = npt.NDArray[np.floating]
_BEFORE, _AFTER = "#9db7d5", "#1f4e79"
_ARMS = {"labels": "#c9a06a", "distilled": "#1f4e79"}
#: of equal width, for the reliability curves
_BINS = 10


def draw(
    path: Path,
    rows: Rows,
    pieces: Mapping[int, Mapping[str, Piece]],
    ensembles: Mapping[int, str],
    labels: npt.NDArray[np.integer],
) -> None:
    """Write the picture.

    Args:
        path: a PNG.
        rows: of :func:`_coastal_table.together`.
        pieces: seed -> arm -> piece.
        ensembles: seed -> how its teachers' answers became one.
        labels: of the test places.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((one, two), (three, four)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    names = [*(f"teacher {kind}" for kind in KINDS), "ensemble", "labels", "distilled"]
    _bars(one, rows, names, {"accuracy": ("before the rules", _BEFORE),
                             "accuracy_after": ("after the rules", _AFTER)})  # fmt: skip
    one.set_title("Accuracy, % (rules go by zones, zones by the truth)")
    cases = ["all", *(f"no {kind}" for kind in KINDS), *(f"{kind} alone" for kind in KINDS)]
    at = np.arange(len(cases))
    for number, (arm, color) in enumerate(_ARMS.items()):
        each = [rows[arm if case == "all" else f"{arm}, {case}"]["accuracy"] for case in cases]
        two.bar(
            at + 0.38 * (number - 0.5), [100 * item["mean"] for item in each], 0.38,
            yerr=[100 * item["sd"] for item in each], color=color, label=f"student, {arm}",
            capsize=2,
        )  # fmt: skip
    two.set_xticks(at, [case.replace(" ", "\n") for case in cases])
    two.axhline(100 * rows["ensemble"]["accuracy"]["mean"], color="0.4", ls="--", lw=1,
                label="ensemble of the teachers")  # fmt: skip
    two.set_title("Accuracy with evidence missing, before the rules, %")
    two.legend(fontsize=8)
    three.plot([0, 100], [0, 100], color="0.6", lw=1)
    shown = {
        "ensemble": ("0.35", [ensemble(group["distilled"].scores, "test", ensembles[seed])
                              for seed, group in pieces.items()]),
        **{arm: (color, [softmax(group[arm].scores["test/all"]) for group in pieces.values()])
           for arm, color in _ARMS.items()},
    }  # fmt: skip
    for name, (color, answers) in shown.items():
        sure, right = _reliability(answers, labels)
        three.plot(100 * sure, 100 * right, "o-", color=color, label=name, ms=4)
    three.set(xlabel="how sure, %", ylabel="how often right, %", xlim=(0, 100), ylim=(0, 100))
    three.set_title("Calibration, before the rules")
    three.legend(fontsize=8)
    _bars(four, rows, names, {"winners_obey_before": ("before the projection", _BEFORE),
                              "winners_obey_after": ("after it", _AFTER)})  # fmt: skip
    four.set_title("Likeliest class obeys the rules, %")
    seeds = len(pieces)
    figure.suptitle(
        f"SIMULATED coasts: {len(labels)} places never trained on, mean of {seeds} seeds, bars ± "
        "standard deviation",
        fontsize=11,
    )
    with publish_file(path) as part:
        figure.savefig(part, dpi=90, format="png")
    plt.close(figure)


def _bars(axes: Any, rows: Rows, names: Sequence[str], keys: dict[str, tuple[str, str]]) -> None:
    at = np.arange(len(names))
    for number, (key, (label, color)) in enumerate(keys.items()):
        each = [rows[name][key] for name in names]
        axes.bar(
            at + 0.38 * (number - 0.5), [100 * item["mean"] for item in each], 0.38,
            yerr=[100 * item["sd"] for item in each], color=color, label=label, capsize=2,
        )  # fmt: skip
    axes.set_xticks(at, [name.replace(" ", "\n") for name in names])
    axes.set_ylim(0, 112)
    axes.legend(fontsize=8, loc="upper left", ncols=2)


def _reliability(
    answers: Sequence[FloatArray], labels: npt.NDArray[np.integer]
) -> tuple[FloatArray, FloatArray]:
    """Mean of the highest probability and the part that is right, of bins that have 20 answers."""
    top = np.concatenate([values.max(1) for values in answers])
    hit = np.concatenate([values.argmax(1) == labels for values in answers])
    place = np.clip((top * _BINS).astype(int), 0, _BINS - 1)
    full = [number for number in range(_BINS) if (place == number).sum() >= 20]
    sure = np.array([top[place == number].mean() for number in full])
    right = np.array([hit[place == number].mean() for number in full])
    return sure, right
