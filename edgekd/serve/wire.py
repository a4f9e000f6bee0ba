"""What goes over the wire: requests, answers, and the one shape of every error."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import pydantic

from edgekd.contracts.datum import Datum
from edgekd.contracts.policy import MOST_LETTERS
from edgekd.contracts.schema import Document

MOST_PLACES: Final = 16

Image = Annotated[str, pydantic.Field(json_schema_extra={"contentEncoding": "base64"})]
#: values are looked at one by one where they are read: a fault of a thousand is told once
Series = Annotated[
    list[Any],
    pydantic.WithJsonSchema(
        {"type": "array", "items": {"type": "array", "items": {"type": ["number", "null"]}}}
    ),
]


class PlaceAsked(Document):
    """What is known of a place; a picture, a series or a text at least.

    Attributes:
        zone: of the rules.
        image: PNG or JPEG of the model's own side, RGB of 8 bits, as base64.
        series: a row for each day, the newest last, and in it a number for each feature, in its
            own unit; null is a gap.
        datum: what the levels of the series are above, e.g. ``MHHW``; another than the model's is
            refused. null: nothing is compared.
        text: what the ordinance says there. Absent: what the rules in force say of the zone, if
            anything. null: none.
    """

    zone: str = pydantic.Field(min_length=1, max_length=64)
    image: Image | None = None
    series: Series | None = None
    datum: Datum | None = None
    text: str | None = pydantic.Field(default=None, min_length=1, max_length=MOST_LETTERS)


class PredictAsked(Document):
    """Places to answer for, by one version of the rules."""

    places: list[PlaceAsked] = pydantic.Field(min_length=1, max_length=MOST_PLACES)


class ActiveRule(Document):
    """A rule that the answer stands at, after the model's own broke rules.

    Attributes:
        relaxed: by how much it yields to rules before it, in the rule's own units.
    """

    id: str
    says: str
    source: str
    relaxed: float


class PlaceAnswer(Document):
    """The answer for a place.

    Attributes:
        top, probability: the likeliest class that the rules leave, and its probability.
        top_before: what the model alone would have said.
        probabilities: class -> 0-1, as near to the model's own as the rules allow.
        before: class -> 0-1, the model's own.
        changed: whether the model's own answer broke a rule.
        active: rules that the answer stands at; empty where nothing was changed.
        evidence: kinds that were used.
        text: whose text was used.
    """

    zone: str
    top: str
    probability: float
    top_before: str
    probabilities: dict[str, float]
    before: dict[str, float]
    changed: bool
    active: list[ActiveRule]
    evidence: list[Literal["image", "series", "text"]]
    text: Literal["rules", "request", "none"]


class RulesNamed(Document):
    """Which rules every answer of a response obeys.

    Attributes:
        sha256: of the text.
        policy_sha256: of what it says, whatever its spelling; ``eval``, ``run``, ``bench`` and
            ``validate`` name rules by it.
        day: of the law, in ``time_zone``.
    """

    version: int
    sha256: str
    policy_sha256: str
    policy: str
    day: str
    time_zone: str


class ModelNamed(Document):
    """Who answered.

    Attributes:
        simulated: whether it learned from a simulated set; its answers are then no advice.
    """

    name: str
    simulated: bool


class Took(Document):
    """Milliseconds: in the queue, in the model, and from the whole request to the answer."""

    waiting: float
    model: float
    total: float


class PredictAnswer(Document):
    """Answers in the order of the places."""

    rules: RulesNamed
    model: ModelNamed
    answers: list[PlaceAnswer]
    milliseconds: Took


class RuleSaid(Document):
    """A rule in force; ``relaxed`` in the rule's own units."""

    id: str
    says: str
    source: str
    priority: int
    relaxed: float


class ZoneSaid(Document):
    """What is in force in a zone; see :meth:`edgekd.serve.rule_set.RuleSet.report`."""

    title: str
    rules: list[RuleSaid]
    relaxed: list[str]
    without: list[str]
    implied: list[str]
    text: str | None


class ConstraintsSaid(Document):
    """The rules in force; see :meth:`edgekd.serve.rule_set.RuleSet.report`."""

    version: int
    digest: str
    policy_sha256: str
    who: str
    when: str
    policy: str
    title: str
    day: str
    next_change: str | None
    zones: dict[str, ZoneSaid]


class EventSaid(Document):
    """A line of the trail; see :class:`edgekd.serve.audit.Event`."""

    when: str
    who: str | None
    event: Literal["accepted", "unchanged", "refused", "opened", "closed"]
    version_before: int
    version_after: int
    digest: str | None
    sentence: str


class HistorySaid(Document):
    """The newest events first."""

    events: list[EventSaid]


class Health(Document):
    """Whether the process, or the service, is well; ``reason`` where it is not."""

    ok: bool
    reason: str = ""


class Problem(Document):
    """The one shape of every error.

    Attributes:
        error: what was received, what was expected, and what to do.
        faults: each by itself, where a document has several; the first of them.
        status: as in the first line of the response.
    """

    error: str
    faults: list[str] = []
    status: int
