"""What bundles of places are asked on both processors: a set's test places, as arrays.

Rules are compiled and texts embedded here, so that both processors are asked the same.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _arm_run import Arrays

from edgekd.contracts.evidence import KINDS, Evidence, Float32
from edgekd.contracts.manifest import EvidenceDone, Manifest
from edgekd.contracts.place_evaluation import same_facts
from edgekd.contracts.place_evidence import PlaceReader, check_fits, read_embeddings, rules_of_zones
from edgekd.contracts.place_set import PlaceSet, load_places
from edgekd.contracts.policy import Policy, load_policy
from edgekd.contracts.projection import Limits
from edgekd.deploy.place_samples import WITHOUT, spread
from edgekd.errors import InputError
from edgekd.runtime.places import open_places

#: test places that are asked about, and texts that are embedded on both.
COUNT, TEXTS = 200, 8


@dataclass(frozen=True)
class AskedPlaces:
    """What bundles are asked about.

    Attributes:
        places: the set.
        policy: rules; ``day``: on which they are in force.
        count: places of the split ``test``, at most, spread over it.
        texts: that are embedded on both processors, at most.
        embeddings: ``.npy`` file, a row for each place of the set; None where the bundle has an
            encoder of texts.
    """

    places: PlaceSet
    policy: Policy
    day: datetime.date
    count: int
    texts: int
    embeddings: Path | None

    @classmethod
    def read(
        cls, folder: Path, rules: Path | None, day: datetime.date, count: int, texts: int,
        embeddings: Path | None,
    ) -> AskedPlaces:  # fmt: skip
        """Read the set and its rules.

        Raises:
            InputError: a file that does not fit, or no rules.
        """
        places = load_places(folder)
        if rules is None and places.about.rules is None:
            raise InputError(
                f"{folder} comes without rules, and answers are compared before and after them; "
                "give a file with --rules"
            )
        policy = load_policy(rules or places.root / str(places.about.rules))
        return cls(places, policy, day, count, texts, embeddings)

    def chosen(self) -> list[tuple[int, tuple[str, ...]]]:
        """Row of the table and what it lacks: nothing in five of eight, one kind in the others."""
        rows = [at for at, row in enumerate(self.places.rows) if row.split == "test"]
        if not rows:
            raise InputError(f"{self.places.root} has no place of split test")
        found = []
        for number, at in enumerate(spread(rows, self.count)):
            without = WITHOUT[number % len(WITHOUT)]
            other = set(self.places.rows[at].kinds) - set(without)
            found.append((at, without if other else ()))
        return found

    def about(self) -> dict[str, Any]:
        """For the record."""
        chosen, about = self.chosen(), self.places.about
        return {
            "what": "INT8 bundles of places for Arm boards: same likeliest class as x86, before "
            "and after the rules; every answer obeys; embeddings of texts",
            "set": about.name,
            "simulated": about.simulated,
            "source": about.source,
            "split": "test",
            "places": len(chosen),
            "without": {
                kind: sum(kind in without for _, without in chosen) for kind in KINDS
            },
            "rules": {"name": self.policy.name, "sha256": self.policy.digest},
            "rules_compiled": "once, on x86; both processors get the same rows",
            "day": self.day.isoformat(),
            "embeddings": "of all places made on x86, or given; on Arm only of the texts under "
            "'texts'",
        }  # fmt: skip

    def _vectors(self, bundle: Path, evidence: EvidenceDone) -> Float32:
        """An embedding for each row of the table; rows that are not asked about have zeros."""
        if evidence.text_encoder is None:
            if self.embeddings is None:
                raise InputError(
                    f"{bundle} has no encoder of texts; give the embeddings of the set's texts "
                    "with --embeddings"
                )
            return read_embeddings(self.embeddings, self.places, evidence.text)
        rows = self.places.rows
        asked = {
            at: text
            for at, without in self.chosen()
            if "text" not in without and (text := rows[at].text) is not None
        }
        texts = list(dict.fromkeys(asked.values()))
        with open_places(bundle, any_device=True) as session:
            known = dict(zip(texts, session.embed(texts), strict=True)) if texts else {}
        found = np.zeros((len(rows), evidence.text.width), np.float32)
        for at, text in asked.items():
            found[at] = known[text]
        return found

    def given(self, bundle: Path, manifest: Manifest) -> Arrays:
        """What the child is given; see :func:`pack`.

        Raises:
            InputError: set, rules or embeddings do not fit the bundle.
            EnvironmentLacksError: scipy or tokenizers is not installed.
        """
        evidence = manifest.of_places(bundle)
        image = manifest.inputs[0]
        check_fits(str(bundle), manifest.classes, image, evidence.series, self.places)
        rows, chosen = self.places.rows, self.chosen()
        facts = same_facts(evidence.facts, self.places.facts, str(self.places.root))
        zones = [rows[at].zone for at, _ in chosen]
        room = evidence.rules.rows
        known = rules_of_zones(self.policy, zones, self.day, self.places.classes, facts, room)
        reader = PlaceReader(self.places, image, self._vectors(bundle, evidence))
        places = [reader(at, without) for at, without in chosen]
        texts: list[str] = []
        if evidence.text_encoder is not None and self.texts:
            by_length = sorted(
                {text for at, _ in chosen if (text := rows[at].text) is not None},
                key=lambda text: (len(text), text),
            )
            texts = [by_length[at] for at in spread(range(len(by_length)), self.texts)]
        blank: Arrays = {
            "image": np.zeros((image.tile_px, image.tile_px, 3), np.uint8),
            "series": np.zeros(self.places.series.shape[1:], np.float32),
            "text": np.zeros(evidence.text.width, np.float32),
        }
        return pack(places, [known[zone].limits for zone in zones], blank, texts)


def pack(
    places: Sequence[Evidence],
    limits: Sequence[Limits],
    blank: Mapping[str, npt.NDArray[Any]],
    texts: Sequence[str],
) -> Arrays:
    """Places and rules as arrays: kinds, ``present (N, 3)``, rules, and ``texts`` to embed.

    Args:
        blank: kind -> what stands where a place lacks it.
    """
    found: Arrays = {}
    for kind in KINDS:
        values = [getattr(place, kind) for place in places]
        found[kind] = np.stack([blank[kind] if item is None else item for item in values])
    there = [[getattr(place, kind) is not None for kind in KINDS] for place in places]
    found["present"] = np.array(there, bool)
    for name in Limits._fields:
        found[name] = np.stack([getattr(item, name) for item in limits])
    found["texts"] = np.array(texts, dtype=np.str_)
    return found
