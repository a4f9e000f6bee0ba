"""A record's part on answers for places: end to end, one place at a time, and where time goes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Annotated

import pydantic

from edgekd.contracts.calibration import Sha256
from edgekd.contracts.schema import Document
from edgekd.report.latency import LatencySummary, nearly

Seconds = Annotated[float, pydantic.Field(ge=0)]

#: parts of an answer, in their order
PARTS = ("picture", "tensors", "model", "check")


class RulesUsed(Document):
    """Rules that were in force.

    Attributes:
        name, sha256: of the file; ``day``: on which they were asked for.
        rows: zone -> rules in force there, of the zones that were measured.
    """

    name: str
    sha256: Sha256
    day: str
    rows: dict[str, int]


class AnswersWindow(Document):
    """Answers one at a time: from a picture in a file to probabilities that obey.

    Attributes:
        places: different ones, asked about in turn.
        evidence: where pictures, series and texts come from, in words.
        simulated: whether evidence or what was learned was computed.
        text: what was done with texts: their embeddings are made before the measurement.
        rules: that the answers obey; null for none.
        picture_s, tensors_s, model_s, check_s: of each answer: reading and decoding its picture;
            evidence and rules into the inputs of the engine; network and projection, which are one
            graph; holding the answer against its rules, and the rest.
        total, picture, tensors, model, check: figures of these.
        answers_per_s: 1 / mean of the whole.
        with_rules_s, without_rules_s: calls of the bare engine on the same place, one behind the
            other, so that whatever else the machine does falls on both; empty without rules.
        rules_s: what the rules cost: median of the differences of these pairs.
    """

    places: int = pydantic.Field(ge=1)
    evidence: str
    simulated: bool
    text: str
    rules: RulesUsed | None
    picture_s: list[Seconds] = pydantic.Field(min_length=1)
    tensors_s: list[Seconds]
    model_s: list[Seconds]
    check_s: list[Seconds]
    total: LatencySummary
    picture: LatencySummary
    tensors: LatencySummary
    model: LatencySummary
    check: LatencySummary
    answers_per_s: float
    with_rules_s: list[Seconds] = []
    without_rules_s: list[Seconds] = []
    rules_s: float | None = None

    def parts_s(self) -> dict[str, list[float]]:
        """Part -> its time in each answer, s."""
        return {name: getattr(self, f"{name}_s") for name in PARTS}

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> AnswersWindow:
        parts = self.parts_s()
        if len({len(values) for values in parts.values()}) != 1:
            raise ValueError("parts of the answers differ in number")
        given = parts | {"total": totals_s(parts)}
        for name, values in given.items():
            summary = getattr(self, name)
            for key, value in LatencySummary.of(values):
                if not nearly(value, getattr(summary, key)):
                    raise ValueError(f"{name}.{key} does not follow from the latencies")
        if not nearly(self.answers_per_s, 1 / self.total.mean_s):
            raise ValueError("answers_per_s does not follow from the latencies")
        if len(self.with_rules_s) != len(self.without_rules_s):
            raise ValueError("calls with rules and without differ in number")
        cost_s = rules_cost_s(self.with_rules_s, self.without_rules_s)
        if (self.rules is None) != (cost_s is None) or (cost_s is None) != (self.rules_s is None):
            raise ValueError("rules, and calls with and without them, do not go together")
        if not nearly(cost_s or 0, self.rules_s or 0):
            raise ValueError("rules_s does not follow from the latencies")
        return self


def totals_s(parts: dict[str, list[float]]) -> list[float]:
    """Each answer as a whole, s."""
    return [sum(values) for values in zip(*(parts[name] for name in PARTS), strict=True)]


def rules_cost_s(with_s: Sequence[float], without_s: Sequence[float]) -> float | None:
    """What rules add to a call, s; None where no pairs of calls were made."""
    pairs = zip(with_s, without_s, strict=True)
    return statistics.median(a - b for a, b in pairs) if with_s else None
