"""Random rules that can be met, and the exact answer by a method of another kind."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

Problem = tuple[np.ndarray, np.ndarray, np.ndarray]


def problem(random: np.random.Generator, classes: int = 10) -> Problem:
    """Scores ``(classes,)`` and up to 17 rules that some probabilities meet, often just so.

    Limits of groups of classes from above and below, of single classes, and arbitrary sums; in a
    quarter of the cases a class must have no probability at all.
    """
    scores = random.normal(0, random.choice([1, 3, 6]), classes)
    inside = random.dirichlet(np.full(classes, 0.5))
    gone = int(random.integers(classes)) if random.random() < 0.25 else None
    if gone is not None:
        inside[gone] = 0
        inside /= inside.sum()
    rules, bounds = [], []
    for _ in range(int(random.integers(1, 17))):
        kind = int(random.integers(4))
        row = (random.random(classes) < 0.3).astype(float)
        if kind == 1:
            row = -row
        elif kind == 2:
            row = random.normal(size=classes)
        elif kind == 3:
            row = np.eye(classes)[int(random.integers(classes))]
        if np.abs(row).max() == 0:
            continue
        room = random.choice([0, 0.01, 0.1, 0.5]) * random.random()
        rules.append(row / np.abs(row).max())
        bounds.append(row @ inside / np.abs(row).max() + room)
    if gone is not None or not rules:
        rules.append(np.eye(classes)[gone or 0])
        bounds.append(0.0 if gone is not None else 0.5)
    return scores, np.array(rules), np.array(bounds)


def exact(scores: np.ndarray, rules: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The information projection by an active-set method on the dual, in double precision.

    Multipliers by bounded quasi-Newton search (L-BFGS-B) from several places; the answer is taken
    only where it certifies itself: its distance is that of the dual, which bounds it from below.

    Raises:
        AssertionError: no place led to an answer with a certificate.
    """
    z = scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()
    bounds = bounds + 1e-9  # rules without room have no finite multipliers

    def dual(weight: np.ndarray) -> tuple[float, np.ndarray]:
        x = z - rules.T @ weight
        top = x.max()
        high = np.exp(x - top)
        total = high.sum()
        return (
            float(np.log(total) + top + bounds @ weight),
            bounds - rules @ (high / total),
        )

    best = None
    for start in (0.0, 1.0, 5.0):
        weight = np.full(len(bounds), start)
        for _ in range(8):
            found = minimize(
                dual, weight, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(bounds),
                options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-11,
                         "maxcor": 40},
            )  # fmt: skip
            weight = found.x
        if best is None or found.fun < best[0]:
            best = (found.fun, weight)
    assert best is not None
    x = z - rules.T @ best[1]
    p = np.exp(x - x.max())
    p /= p.sum()
    distance = float((p * (np.log(np.maximum(p, 1e-300)) - z)).sum())
    past = float((rules @ p - bounds).max())
    assert past < 1e-6 and abs(distance + best[0]) < 1e-5, (past, distance, best[0])
    return p
