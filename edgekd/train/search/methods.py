"""How a search chooses candidates: differential evolution, and random draws to compare it with.

Both are functions of the space, the seed and the answers alone, both begin with the recipe's own
values where these lie within the ranges, and both end when the budget is spent.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import differential_evolution

from edgekd.contracts.search import SearchSpec
from edgekd.train.search.space import Space, Values, name_of

FloatArray = npt.NDArray[np.float64]
#: values of candidates -> for each, the values of its trainings (None: diverged)
Answer = Callable[[list[Values]], list[list[float | None]]]
METHODS = ("de", "random")
#: points asked for, per candidate of the budget, after which a space is taken to be used up
_ASKED_MOST = 100


@dataclass(frozen=True)
class Candidate:
    """One that was tried.

    Attributes:
        number: from 1, in the order in which they were asked for.
        round: generation of a differential evolution, from 0; of random draws, the batch.
        values: of the recipe.
        each: balanced accuracy on the validation part, of every training; None: diverged.
    """

    number: int
    round: int
    values: Values
    each: list[float | None]

    @property
    def value(self) -> float | None:
        """Mean of its trainings; None where one diverged."""
        known = [value for value in self.each if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.each) else None


class _Spent(Exception):
    """The budget is used up."""


class _Counter:
    """Asks for candidates that are new, until there have been ``limit``."""

    def __init__(self, space: Space, limit: int, answer: Answer) -> None:
        self._space, self._limit, self._answer = space, limit, answer
        self._by_name: dict[str, Candidate] = {}
        self._asked = self._round = 0
        self.tried: list[Candidate] = []

    def __call__(self, points: Sequence[Sequence[float]] | FloatArray) -> FloatArray:
        """What is to be small, for points ``(S, keys)`` of the unit cube.

        Raises:
            _Spent: the budget ended with, or among, these points.
        """
        values = [self._space.values([float(part) for part in point]) for point in points]
        new: dict[str, Values] = {}
        for item in values:
            if (name := name_of(item)) not in self._by_name:
                new.setdefault(name, item)
        taken = list(new.items())[: self._limit - len(self.tried)]
        answers = self._answer([item for _, item in taken])
        for (name, item), each in zip(taken, answers, strict=True):
            candidate = Candidate(len(self.tried) + 1, self._round, item, each)
            self._by_name[name] = candidate
            self.tried.append(candidate)
        self._round += 1
        self._asked += len(values)
        if len(self.tried) == self._limit or self._asked >= _ASKED_MOST * self._limit:
            raise _Spent
        found = [self._by_name[name_of(item)].value for item in values]
        return np.array([math.inf if value is None else -value for value in found])


def search(
    method: str, space: Space, spec: SearchSpec, seed: int, limit: int, answer: Answer
) -> list[Candidate]:
    """Try ``limit`` different candidates.

    Args:
        method: ``de``: best/1/bin of Storn and Price 1997 as scipy has it, a generation at a time;
            ``random``: each independent of the others, even over the cube.
        space: of the recipe.
        spec: population, mutation, recombination.
        seed: of every random number of the search; trainings have seeds of their own.
        limit: how many.
        answer: trains candidates.

    Returns:
        Those tried, in order. Fewer than ``limit`` where a search came again and again to ones
        that were known (100 points asked for per candidate): it found no others.
    """
    random = np.random.default_rng(seed)
    first = space.written()[1]
    counter = _Counter(space, limit, answer)
    try:
        if method == "de":
            _evolve(counter, space, spec, random, first)
        else:
            _draw(counter, space, spec, random, first)
    except _Spent:
        pass
    return counter.tried


def _evolve(
    counter: _Counter,
    space: Space,
    spec: SearchSpec,
    random: np.random.Generator,
    first: list[float] | None,
) -> None:
    """Generations, until the counter ends them."""
    keys, size = len(space.axes), spec.population
    # a Latin hypercube: of each key, one candidate in each of ``size`` equal parts
    order = random.permuted(np.tile(np.arange(size), (keys, 1)), axis=1).T
    begin = (order + random.random((size, keys))) / size
    if first is not None:
        begin[0] = first
    seeded = "rng" if "rng" in inspect.signature(differential_evolution).parameters else "seed"
    options: dict[str, Any] = {seeded: random}
    differential_evolution(
        lambda points: counter(points.T),
        [(0.0, 1.0)] * keys,
        strategy="best1bin",
        init=begin,
        mutation=(spec.mutation[0], spec.mutation[1]),
        recombination=spec.recombination,
        maxiter=np.iinfo(np.int32).max,
        tol=0,
        atol=-1,  # never taken as converged: equal values are no reason to leave budget unused
        polish=False,
        updating="deferred",  # a generation at once, whatever the number of workers
        vectorized=True,
        **options,
    )


def _draw(
    counter: _Counter,
    space: Space,
    spec: SearchSpec,
    random: np.random.Generator,
    first: list[float] | None,
) -> None:
    """Batches as large as a population, until the counter ends them."""
    while True:
        points = random.random((spec.population, len(space.axes)))
        if first is not None:
            points[0], first = first, None
        counter(points)


def best_of(tried: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the largest value, the earliest of equals; None where all diverged."""
    known = [item for item in tried if item.value is not None]
    return max(known, key=lambda item: (item.value, -item.number), default=None)
