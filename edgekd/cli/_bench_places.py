"""``edgekd bench`` of bundles of places: what is asked, and by which rules."""

from __future__ import annotations

import contextlib
import datetime
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgekd.contracts.place_set import PlaceSet
    from edgekd.report.places import RulesAsked
    from edgekd.report.subjects import Subject


@dataclass(frozen=True)
class PlacesTyped:
    """What was typed.

    Attributes:
        data: a set, of which ``split`` is asked about; None for what the bundle stores.
        rules: a file, ``set`` or ``none``; in force on ``day``.
        embeddings: of the set's texts; None has the bundle's own encoder make them.
    """

    data: Path | None
    split: str
    rules: str
    day: datetime.date
    embeddings: Path | None

    def subjects(
        self,
        bundles: Sequence[Path],
        signer: list[Path] | None,
        any_device: bool,
        stack: contextlib.ExitStack,
    ) -> list[Callable[[], Subject]]:
        """Opened bundles, all asked about the places that the first one is."""
        from edgekd.cli._answers import load_set
        from edgekd.report.places import PlaceSubject, of_set, stored_or_random
        from edgekd.runtime.places import open_places

        places = None if self.data is None else load_set(self.data, labels=False)
        rules = self._rules(places)
        sessions = [stack.enter_context(open_places(path, signer, any_device)) for path in bundles]
        if places is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekd-bench-"))
            asked = stored_or_random(sessions[0], Path(folder), rules)
        else:
            asked = of_set(sessions[0], places, self.split, self.embeddings, rules)
        return [partial(PlaceSubject, session, asked) for session in sessions]

    def _rules(self, places: PlaceSet | None) -> RulesAsked | None:
        from edgekd.cli._answers import policy_of
        from edgekd.errors import InputError
        from edgekd.report.places import RulesAsked

        if self.rules == "set" and places is None:
            raise InputError("--rules set are those of a set, and there is none; give --data")
        policy = policy_of(self.rules, places)
        return None if policy is None else RulesAsked(policy, self.day)

    def words(self) -> list[str]:
        """How to type it again; names without their folders."""
        words = [] if self.data is None else ["--data", self.data.name, "--split", self.split]
        words += [] if self.embeddings is None else ["--embeddings", self.embeddings.name]
        if self.rules != "none":
            name = self.rules if self.rules == "set" else Path(self.rules).name
            words += ["--rules", name, "--day", self.day.isoformat()]
        return words


def typed_places(
    data: Path | None, split: str, rules: str, day: str | None, embeddings: Path | None
) -> PlacesTyped:
    """Raise InputError where an option is about another that is missing."""
    from edgekd.cli._answers import day_of
    from edgekd.errors import InputError

    if data is None and (split != "all" or embeddings is not None):
        name = "--split" if split != "all" else "--embeddings"
        raise InputError(f"{name} is about a set's places, and there is no set; give --data SET")
    return PlacesTyped(data, split, rules, day_of(day) or datetime.date.today(), embeddings)
