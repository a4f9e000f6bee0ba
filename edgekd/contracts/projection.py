"""Class probabilities, moved as little as possible until they obey linear rules.

For scores ``z`` and rules ``A p <= b`` the answer is the information projection (Csiszar 1975)

    p* = argmin KL(p || softmax(z))   over   p >= 0, sum p = 1, A p <= b,

whose solution is ``softmax(z - A^T w)`` with multipliers ``w >= 0`` that maximise the dual
``-log sum exp(z - A^T w) - b^T w``: smooth, concave, as many unknowns as rules. Newton steps on
that dual with a logarithmic barrier (Boyd and Vandenberghe 2004, 11.3) find them: a fixed number,
which bounds the time, of which those that would move nothing any more are left out (some dozen are
enough as a rule). What is found stays, so an answer does not depend on those beside it.
The step length is the longest of ten halvings that is as good as the best, beginning where the
scores move by no more than :data:`MOVED`: further out softmax is flat, and a Newton step means
nothing. A step's system has as many unknowns as classes, however many rules there are: the dual's
curvature is ``S S^T`` with ``S = (A - A p 1^T) diag(sqrt(p))``, and a diagonal beside it, which the
matrix inversion lemma (Woodbury) turns around. It is scaled to a unit diagonal.

Steps are in double precision: rules that were relaxed leave a set of hardly any width, whose
multipliers are large. Should they not suffice, the answer is drawn towards a point that is known
to obey, found with the rules on the host, by as little as makes it obey: it always does.

The same arithmetic stands in torch (:mod:`edgekd.train.policy`) and in ONNX
(:mod:`edgekd.deploy.export.policy`); the constants are here.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgekd.errors import InputError

FloatArray = npt.NDArray[np.floating]

#: Newton steps at most; ``benchmarks/policy_exact.py`` shows what they reach, and how many it takes
STEPS: Final = 48
#: an answer is found where a step at the last barrier would move its scores apart by less
STILL: Final = 1e-9
#: a step is tried whole, halved, quartered, ...
HALVINGS: Final = 10
#: weight of the barrier: at first, at last, and what becomes of it after a good step
BARRIER_FIRST, BARRIER_LAST, BARRIER_FALL = 1.0, 1e-8, 0.15
#: rules are met to within this: without it those that leave no room have no barrier
SLACK: Final = 1e-6
#: beside the unit diagonal, far above the rounding of double precision
RIDGE: Final = 1e-13
#: part of the way to the nearest bound that a step may go
TO_BOUND: Final = 0.95
#: by how much a step may move the scores apart
MOVED: Final = 256.0
#: two values of the dual that differ by less, relative, are equal
SAME: Final = 1e-10
#: a step is good where it goes this part of the allowed way, and that is this part of a whole
GOOD_PART, GOOD_STEP = 0.49, 0.3
#: between the point that obeys and a bound, so that no division is by zero
LEAST_ROOM: Final = 1e-7
WEIGHT_LEAST, WEIGHT_MOST = 1e-9, 1e9
#: an answer obeys a rule where it is past the bound by no more than this
OBEYED: Final = 1e-5


class Limits(NamedTuple):
    """Rules as the projection takes them, of one zone.

    Attributes:
        rules: ``(rows, classes)``; a row's largest coefficient is 1 or -1, or all are 0.
        bounds: ``(rows,)``.
        inside: ``(classes,)``, probabilities that obey.
    """

    rules: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.float32]
    inside: npt.NDArray[np.float32]


def project(
    scores: FloatArray, rules: FloatArray, bounds: FloatArray, inside: FloatArray
) -> FloatArray:
    """Probabilities that obey the rules and are nearest to those of the scores.

    Args:
        scores: ``(N, classes)`` logits, any finite values.
        rules: ``(N, rows, classes)``, or ``(rows, classes)`` for all, as in :class:`Limits`, which
            :func:`edgekd.contracts.policy_rows.padded` makes. A row of zeros is no rule.
        bounds: ``(N, rows)`` or ``(rows,)``.
        inside: ``(N, classes)`` or ``(classes,)``.

    Returns:
        ``(N, classes)``, of the scores' type, past a bound by at most :data:`OBEYED`.

    Raises:
        InputError: shapes that do not fit, a value that is not finite, or ``inside`` does not obey.
    """
    z, a, b = _checked(scores, rules, bounds)
    within = np.asarray(inside, dtype=np.float64)
    within = within[None] if within.ndim == 1 else within
    if within.shape[-1] != z.shape[1] or within.ndim != 2 or len(within) not in (1, len(z)):
        raise InputError(f"inside {np.shape(inside)} does not fit scores {z.shape}")
    within = within[:, :, None]
    if not ((a @ within)[:, :, 0] <= b + OBEYED).all():
        raise InputError("inside does not obey the rules; take what comes with them")
    if within.min() < -OBEYED or np.abs(within.sum(1) - 1).max() > OBEYED:
        raise InputError("inside holds no probabilities; take what comes with the rules")
    given, kind = z.dtype, np.float64
    count, rows, _ = a.shape
    at = a.swapaxes(1, 2)
    z = z[:, :, None]
    z = z - _log_sum_exp(z)
    b = b[:, :, None] + kind(SLACK)
    weight = np.ones((count, rows, 1), kind)
    barrier = np.full((count, 1, 1), BARRIER_FIRST, kind)
    eye = np.eye(z.shape[1], dtype=kind)
    ridge = kind(RIDGE) * eye
    halved = (kind(0.5) ** np.arange(HALVINGS)).astype(kind).reshape(1, 1, -1)
    for _ in range(STEPS):
        p = _softmax(z - at @ weight)
        past = a @ p
        spread = (a - past) * np.sqrt(p).swapaxes(1, 2)
        room, pushed = b - past, barrier / weight
        loose, wish = weight / np.maximum(room, pushed), pushed - room
        system = spread.swapaxes(1, 2) @ (loose * spread) + eye
        unit = 1 / np.sqrt((system * eye).sum(2, keepdims=True))
        system = unit * system * unit.swapaxes(1, 2) + ridge
        shared = unit * _solve(system, unit * (spread.swapaxes(1, 2) @ (loose * wish)), eye)
        way = loose * (wish - spread @ shared)
        longest = np.minimum(
            kind(1),
            kind(TO_BOUND) / np.maximum((-way / weight).max(1, keepdims=True), kind(1e-9)),
        )
        moved = at @ way
        apart = moved.max(1, keepdims=True) - moved.min(1, keepdims=True)
        longest = np.minimum(longest, kind(MOVED) / np.maximum(apart, kind(1e-9)))
        lengths = longest * halved
        tried = weight + way * lengths
        value = (
            _log_sum_exp(z - at @ tried)
            + b.swapaxes(1, 2) @ tried
            - barrier * np.log(tried).sum(1, keepdims=True)
        )
        least = value.min(2, keepdims=True)
        good = value <= least + kind(SAME) * (1 + np.abs(least))
        length = np.where(good, lengths, kind(0)).max(2, keepdims=True)
        found = (barrier <= kind(BARRIER_LAST)) & (length * apart < kind(STILL))
        if found.all():
            break
        length = np.where(found, kind(0), length)
        weight = np.clip(weight + length * way, kind(WEIGHT_LEAST), kind(WEIGHT_MOST))
        fine = (length >= longest * kind(GOOD_PART)) & (longest > kind(GOOD_STEP))
        lower = np.maximum(barrier * kind(BARRIER_FALL), kind(BARRIER_LAST))
        barrier = np.where(fine, lower, barrier)
    p = _softmax(z - at @ weight)
    past = np.maximum(a @ p - b - kind(SLACK), 0)
    room = np.maximum(b - a @ within, kind(LEAST_ROOM))
    p = p + (past / (past + room)).max(1, keepdims=True) * (within - p)
    answer: FloatArray = p[:, :, 0].astype(given)
    return answer


def past_bounds(probabilities: FloatArray, rules: FloatArray, bounds: FloatArray) -> FloatArray:
    """How far the worst rule is exceeded, ``(N,)``, negative where all are met.

    Args:
        probabilities: ``(N, classes)``.
        rules, bounds: as for :func:`project`.
    """
    p, a, b = _checked(probabilities, rules, bounds)
    worst: FloatArray = ((a @ p[:, :, None])[:, :, 0] - b).max(1)
    return worst


def _checked(
    scores: FloatArray, rules: FloatArray, bounds: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    z = np.asarray(scores)
    if z.ndim != 2 or z.dtype.kind != "f" or z.dtype.itemsize < 4:
        raise InputError(
            f"scores must be (N, classes) of floats of 32 bits or more, received {z.dtype} "
            f"{z.shape}"
        )
    a, b = np.asarray(rules, dtype=np.float64), np.asarray(bounds, dtype=np.float64)
    a, b = (a[None] if a.ndim == 2 else a), (b[None] if b.ndim == 1 else b)
    if a.ndim != 3 or b.shape != a.shape[:2] or a.shape[2] != z.shape[1] or a.shape[1] < 1:
        raise InputError(
            f"rules {np.shape(rules)} and bounds {np.shape(bounds)} do not fit scores {z.shape}: "
            "expected (N, rows, classes) and (N, rows), or (rows, classes) and (rows,)"
        )
    if len(a) not in (1, len(z)):
        raise InputError(f"{len(a)} sets of rules for {len(z)} scores; give one for each, or one")
    for name, value in (("scores", z), ("rules", a), ("bounds", b)):
        if not np.isfinite(value).all():
            raise InputError(f"{name} hold a value that is not finite")
    return (
        z,
        np.broadcast_to(a, (len(z), *a.shape[1:])),
        np.broadcast_to(b, (len(z), b.shape[1])),
    )


def _softmax(x: FloatArray) -> FloatArray:
    high = np.exp(x - x.max(1, keepdims=True))
    found: FloatArray = high / high.sum(1, keepdims=True)
    return found


def _log_sum_exp(x: FloatArray) -> FloatArray:
    top = x.max(1, keepdims=True)
    total: FloatArray = np.log(np.exp(x - top).sum(1, keepdims=True)) + top
    return total


def _solve(system: FloatArray, right: FloatArray, eye: FloatArray) -> FloatArray:
    """Gauss-Jordan elimination without pivots: the system is positive definite and scaled.

    Written out, so that torch and ONNX do the same in the same order.
    """
    whole = np.concatenate([system, right], axis=2)
    for row in range(len(eye)):
        this = whole[:, row : row + 1] / whole[:, row : row + 1, row : row + 1]
        whole = whole - (whole[:, :, row : row + 1] - eye[:, row : row + 1]) @ this
    return whole[:, :, len(eye) :]
