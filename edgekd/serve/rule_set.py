"""One version of the rules: what it says, who gave it, and what it limits on a day.

A version never changes, so whoever holds one has one law for the whole of an answer, whatever is
put meanwhile. Its rows are made once for each zone and each time between two changes there.
"""

from __future__ import annotations

import datetime
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from edgekd.contracts.evidence import Float32
from edgekd.contracts.policy import ClassFacts, Policy
from edgekd.contracts.policy_rows import ZoneRules, compile_zone
from edgekd.contracts.projection import OBEYED, past_bounds, project
from edgekd.contracts.registry import nearest
from edgekd.errors import InputError, RecipeError
from edgekd.serve.rule_text import SOURCE

#: rules in force in one zone at one time, and to look at when a text is checked, over all zones and
#: all times from today on. Contradictions cost the square of the first: 200 took 4 s on one core
#: at worst, so ten such zones and times under a minute
MOST_AT_ONCE: Final = 200
MOST_ROWS: Final = 2000
#: zones and times whose rows are kept; others are made again
KEPT: Final = 1024


@dataclass(frozen=True)
class Product:
    """What rules are compiled for.

    Args:
        classes: in the order of its scores.
        facts: class -> what rules ask of it; classes may be absent.
        rows: how many rules of a zone there is room for.
        datum: what levels, and floors in the facts, are above; None where nobody said it.

    Raises:
        InputError: no class, a class that stands twice, facts of another class, or no room.
    """

    classes: tuple[str, ...]
    facts: Mapping[str, ClassFacts]
    rows: int
    datum: str | None = None

    def __post_init__(self) -> None:
        if not self.classes or len(set(self.classes)) != len(self.classes):
            raise InputError(f"classes {list(self.classes)} are none, or one of them stands twice")
        for name in self.facts:
            if name not in self.classes:
                raise InputError(
                    f"there are facts of class '{name}', which the product has not"
                    f"{nearest(name, list(self.classes))} (valid: {', '.join(self.classes)})"
                )
        if self.rows < 1:
            raise InputError(f"rows is {self.rows}, expected at least 1")


class Compiled:
    """Rows of a policy, made when they are asked for the first time; for any number of threads."""

    def __init__(self, policy: Policy, product: Product) -> None:
        policy.require_datum(product.datum, "the product has")
        self.policy, self.product, self.digest = policy, product, policy.digest
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, int], ZoneRules] = OrderedDict()
        #: zone -> the days on which other rules are in force there than on the day before
        self._edges: dict[str, list[datetime.date]] = {
            zone: sorted(
                {
                    edge
                    for rule in policy.rules
                    if rule.zones is None or zone in rule.zones
                    for edge in (rule.valid.from_, rule.valid.until)
                    if edge is not None
                }
            )
            for zone in policy.zones
        }

    def limits(self, zone: str, day: datetime.date) -> ZoneRules:
        """See :meth:`RuleSet.limits`."""
        if zone not in self._edges:
            self.policy.in_force(zone, day)  # says so
        key = zone, bisect_right(self._edges[zone], day)
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._make(zone, day)
                if len(self._known) > KEPT:
                    self._known.popitem(last=False)
            else:
                self._known.move_to_end(key)
        return found if found.day == day else replace(found, day=day)

    def _make(self, zone: str, day: datetime.date) -> ZoneRules:
        made = compile_zone(
            self.policy, zone, day, self.product.classes, self.product.facts, self.product.rows
        )
        for array in made.limits:  # many hold them
            array.setflags(write=False)
        for row in made.rows:
            row.coefficients.setflags(write=False)
        return made

    def check(self, today: datetime.date) -> None:
        """See :meth:`RuleSet.check`."""
        days = self._days(today)
        problems: dict[str, str] = {}
        scores = np.zeros((1, len(self.product.classes)))
        for zone, day in days:
            try:
                limits = self.limits(zone, day).limits
                past = float(past_bounds(project(scores, *limits), *limits[:2])[0])
                if past > OBEYED:
                    raise InputError(f"an answer is {past:.2g} past a bound")
            except InputError as err:
                when = "today" if day == today else f"from {day} on"
                problems.setdefault(str(err), f"zone {zone}, {when}: {err}")
        if problems:
            raise RecipeError(SOURCE, list(problems.values()))

    def _days(self, today: datetime.date) -> list[tuple[str, datetime.date]]:
        found: list[tuple[str, datetime.date]] = []
        work = 0
        for zone, edges in self._edges.items():
            for day in (today, *edges[bisect_right(edges, today) :]):
                count = len(self.policy.in_force(zone, day))
                if count > MOST_AT_ONCE:
                    raise InputError(
                        f"{SOURCE} has {count} rules in force in zone {zone} on {day}, expected at "
                        f"most {MOST_AT_ONCE}; merge some"
                    )
                work += 1 + count
                if work > MOST_ROWS:
                    raise InputError(
                        f"{SOURCE} has more than {MOST_ROWS} rules to check, counted in each zone "
                        "and again after each day on which they change; leave out what begins "
                        "late, or split the place"
                    )
                found.append((zone, day))
        return found


@dataclass(frozen=True)
class RuleSet:
    """A version of the rules; immutable, for any number of threads.

    Attributes:
        version: from 1, each later one higher; numbers of changes that failed are left out.
        digest: SHA-256 of ``text``.
        who: who put it.
        when: UTC, ISO 8601.
        text: as it was given, to the byte.
        policy: what it says.
        embeddings: zone -> ``(width,)``, of the policy's texts, made when the version was.
    """

    version: int
    digest: str
    who: str
    when: str
    text: bytes = field(repr=False)
    policy: Policy = field(repr=False)
    embeddings: Mapping[str, Float32] = field(repr=False, compare=False)
    _compiled: Compiled = field(repr=False, compare=False)
    _today: Callable[[], datetime.date] = field(repr=False, compare=False)

    @property
    def policy_digest(self) -> str:
        """SHA-256 of what the text says, whatever its spelling."""
        return self._compiled.digest

    def limits(self, zone: str, day: datetime.date | None = None) -> ZoneRules:
        """The rows in force in a zone.

        Args:
            zone: of the policy.
            day: where it is there; absent, today by the clock and time zone of the store.

        Raises:
            InputError: no such zone; or a day before the rules were put, on which what the file
                says of it cannot be met. From that day on they were checked.
        """
        return self._compiled.limits(zone, self._today() if day is None else day)

    def check(self, day: datetime.date) -> None:
        """Make and use the rows of every zone, on a day and on each later one with other rules.

        Raises:
            RecipeError: every fault, with its zone and first day.
            InputError: more than :data:`MOST_AT_ONCE` rules in a zone, or more than
                :data:`MOST_ROWS` to look at.
            EnvironmentLacksError: scipy is not installed.
        """
        self._compiled.check(day)

    def report(self, day: datetime.date | None = None) -> dict[str, Any]:
        """What is in force on a day, absent today, as plain values.

        Returns:
            ``version``, ``digest``, ``policy_sha256``, ``who``, ``when``, ``policy``, ``title``,
            ``day``, ``next_change`` (the day, or None) and ``zones``: name -> ``title``, ``rules``
            (``id``, ``says``, ``source``, ``priority``, ``relaxed`` in its units), ``relaxed``,
            ``without`` (sentences), ``implied`` (ids) and ``text`` (None where there is none).
        """
        day = self._today() if day is None else day
        change = self.policy.next_change(day)
        return {
            "version": self.version,
            "digest": self.digest,
            "policy_sha256": self.policy_digest,
            "who": self.who,
            "when": self.when,
            "policy": self.policy.name,
            "title": self.policy.title,
            "day": day.isoformat(),
            "next_change": None if change is None else change.isoformat(),
            "zones": {zone: self._zone(zone, day) for zone in self.policy.zones},
        }

    def _zone(self, zone: str, day: datetime.date) -> dict[str, Any]:
        found = self.limits(zone, day)
        return {
            "title": self.policy.zones[zone],
            "rules": [
                {
                    "id": row.rule.id, "says": row.says, "source": row.rule.source,
                    "priority": row.rule.priority, "relaxed": row.relaxed,
                }
                for row in found.rows
            ],
            "relaxed": found.relaxed,
            "without": list(found.without),
            "implied": list(found.implied),
            "text": self.policy.texts.get(zone),
        }  # fmt: skip
