"""Measuring a bundle that answers for places: what it is asked, and answers one at a time.

This is the work of a post on a seawall: one picture after the other, each with a year of series and
with the embedding of its zone's papers, which is made when the papers change and not with every
picture.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.evidence import KINDS, Evidence, Float32
from edgekd.contracts.optional import available
from edgekd.contracts.place_evaluation import same_facts
from edgekd.contracts.place_evidence import (
    check_fits,
    read_embeddings,
    read_picture_file,
    rules_of_zones,
)
from edgekd.contracts.place_set import PlaceRow, PlaceSet
from edgekd.contracts.policy import ClassFacts, Policy
from edgekd.contracts.policy_rows import ZoneRules
from edgekd.contracts.projection import Limits
from edgekd.errors import InputError
from edgekd.report.answers import PARTS, AnswersWindow, RulesUsed, rules_cost_s, totals_s
from edgekd.report.blocks import Pace, Run, RunBlocks
from edgekd.report.latency import LatencySummary, rounded
from edgekd.report.power import Phase
from edgekd.report.record import InputUsed
from edgekd.report.subjects import Subject
from edgekd.runtime.places import PlaceSession, Spent

#: different places that are asked about in turn, so that no single one stays in the cache
PLACES = 16
RATIO_OF_ANSWERS = (
    "end_to_end_over_engine = answers per second end to end (median run over the places) divided "
    "by calls per second of the bare engine, one at a time (1 / mean latency). redundancy is 1: "
    "each place is one picture and one call."
)
#: said of every text
#: of an embedding's length: a text by an INT8 encoder is some 0.1 from what FP32 makes of it, and
#: two texts are about 1 apart
_SAME_TEXT = 0.5
BEFORE = "not part of an answer: embeddings lie ready, as they are made when a text changes"


@dataclass(frozen=True)
class PlacesAsked:
    """What a bundle is asked in a measurement.

    Attributes:
        pictures: a file for each place, None where it has none.
        rest: series and embedding of each.
        limits: rules of each; None for none.
        used, evidence, simulated, rules: for the record.
    """

    pictures: list[Path | None]
    rest: list[Evidence]
    limits: list[Limits] | None
    used: InputUsed
    evidence: str
    simulated: bool
    rules: RulesUsed | None


@dataclass(frozen=True)
class RulesAsked:
    """Rules that are to be in force on a day."""

    policy: Policy
    day: datetime.date


def stored_or_random(
    session: PlaceSession, folder: Path, rules: RulesAsked | None = None
) -> PlacesAsked:
    """Golden places of the bundle that lack nothing, or random evidence where it has none.

    Args:
        folder: where their pictures are written as PNG, which every answer reads and decodes.
        rules: each place is in one of their zones, in turn.

    Raises:
        InputError, EnvironmentLacksError: rules that do not fit, or no scipy.
    """
    golden = session.manifest.golden
    places = [
        place
        for place in session.read_golden().places()
        if all(getattr(place, kind) is not None for kind in KINDS)
        and place.series is not None
        and session.plausible.first(place.series) is None  # old bundles may store others
    ][:PLACES]
    side = session.manifest.inputs[0].tile_px
    if places:
        kind = "golden"
        name = f"{len(places)} places that the bundle stores"
        told = f"golden places of the bundle ({golden.source}), their pictures written as PNG"
        digest: str | None = session.manifest.files[golden.file]
    else:
        kind, digest = "synthetic", None
        places = _random(session, side)
        name = "synthetic: random evidence, NumPy default_rng(0)"
        told = (
            "random: pictures are uniform noise written as PNG, series normal about the training "
            "set's mean, embeddings of random direction; times are those of real ones but for "
            "decoding, as noise does not compress"
        )
    zones: list[str] = []
    if rules is not None:
        every = sorted(rules.policy.zones)
        zones = [every[number % len(every)] for number in range(len(places))]
    limits, in_force = _rules(session, rules, zones, session.evidence.facts)
    return PlacesAsked(
        pictures=list(_written(places, folder)),
        rest=[replace(place, image=None) for place in places],
        used=InputUsed.model_validate(
            {"kind": kind, "name": name, "width_px": side, "height_px": side, "bands": None,
             "sha256": digest}
        ),
        evidence=told,
        simulated=session.simulated,
        limits=limits,
        rules=in_force,
    )  # fmt: skip


def require_same_encoder(
    session: PlaceSession, places: PlaceSet, given: Float32, source: str
) -> None:
    """Raise where embeddings of a set are not what the bundle's own encoder makes of its texts.

    The first text is embedded and compared; where the bundle has no encoder, or none can read
    here, nobody can tell.

    Raises:
        InputError: another encoder made them, or other texts.
    """
    at = next((n for n, row in enumerate(places.rows) if row.text is not None), None)
    if at is None or session.evidence.text_encoder is None or not available("tokenizers"):
        return
    own, mine = session.embed([str(places.rows[at].text)])[0], given[at]
    apart = float(np.linalg.norm(own - mine))
    if apart > _SAME_TEXT * float(np.linalg.norm(own)):
        raise InputError(
            f"{source}: the embedding of the text of place {places.rows[at].name} is {apart:.2g} "
            f"from what the bundle's encoder makes of it, whose length is "
            f"{float(np.linalg.norm(own)):.2g}; they are another encoder's, or of other texts: "
            "leave --embeddings out"
        )


def of_set(
    session: PlaceSession,
    places: PlaceSet,
    split: str = "all",
    embeddings: Path | None = None,
    rules: RulesAsked | None = None,
) -> PlacesAsked:
    """Places of a set, evenly spread over a split.

    Args:
        embeddings: of all texts of the set; None has the bundle's own encoder make those needed.
        rules: in force where each place lies.

    Raises:
        InputError: a set, split, embeddings or rules that do not fit.
        EnvironmentLacksError: texts cannot be read here, or rules not be made.
    """
    manifest, evidence = session.manifest, session.evidence
    check_fits(str(session.path), manifest.classes, manifest.inputs[0], evidence.series, places)
    found = places.rows if split == "all" else places.part(split)
    picks = np.linspace(0, len(found) - 1, min(PLACES, len(found))).round().astype(int)
    rows: list[PlaceRow] = [found[at] for at in dict.fromkeys(picks.tolist())]
    texts: dict[str, Float32] = {}
    if embeddings is None:
        having = {row.name: row.text for row in rows if row.text is not None}
        if having:
            texts = dict(zip(having, session.embed(list(having.values())), strict=True))
    else:
        every = read_embeddings(embeddings, places, evidence.text)
        require_same_encoder(session, places, every, str(embeddings))
        texts = {
            row.name: every[number]
            for number, row in enumerate(places.rows)
            if row.text is not None
        }
    side, about = manifest.inputs[0].tile_px, places.about
    facts = same_facts(evidence.facts, places.facts, str(places.root))
    limits, in_force = _rules(session, rules, [row.zone for row in rows], facts)
    made = "SIMULATED" if about.simulated else "real"
    lacking = sum(len(row.kinds) < len(KINDS) for row in rows)
    return PlacesAsked(
        pictures=[row.image for row in rows],
        rest=[
            Evidence(
                series=None if row.series is None else places.series[row.series],
                text=texts.get(row.name),
            )
            for row in rows
        ],
        used=InputUsed(
            kind="set", name=f"{len(rows)} places of {about.name}, split {split}", width_px=side,
            height_px=side, bands=None, sha256=sha256_file(places.root / about.table),
        ),
        evidence=f"places of the set {about.name} ({made}: {about.source})"
        + (f"; {lacking} of them lack a kind" if lacking else ""),
        simulated=session.simulated or about.simulated,
        limits=limits,
        rules=in_force,
    )  # fmt: skip


def _rules(
    session: PlaceSession,
    rules: RulesAsked | None,
    zones: Sequence[str],
    facts: Mapping[str, ClassFacts],
) -> tuple[list[Limits] | None, RulesUsed | None]:
    """Rules of each place, and what the record says of them."""
    if rules is None:
        return None, None
    policy, day = rules.policy, rules.day
    policy.require_datum(session.evidence.series.datum, f"{session.path} takes")
    unknown = sorted(set(zones) - set(policy.zones))
    if unknown:
        raise InputError(
            f"the set's column zone names {', '.join(unknown[:4])}, and the rules {policy.name} "
            f"have the zones {', '.join(policy.zones)}; give rules that are made for it"
        )
    known: dict[str, ZoneRules] = rules_of_zones(
        policy, zones, day, session.classes, facts, session.rows
    )
    used = RulesUsed(
        name=policy.name, sha256=policy.digest, day=day.isoformat(),
        rows={zone: len(item.rows) for zone, item in known.items()},
    )  # fmt: skip
    return [known[zone].limits for zone in zones], used


def _random(session: PlaceSession, side: int) -> list[Evidence]:
    random = np.random.default_rng(0)
    series, width = session.evidence.series, session.evidence.text.width
    mean, std = np.array(series.mean), np.array(series.std)
    found = []
    for _ in range(PLACES):
        text = random.normal(size=width)
        values = random.normal(mean, std, (series.days, len(series.features)))
        found.append(
            Evidence(
                image=random.integers(0, 256, (side, side, 3), dtype=np.uint8),
                series=session.plausible.clipped(values),
                text=(text / np.linalg.norm(text)).astype(np.float32),
            )
        )
    return found


def _written(places: Sequence[Evidence], folder: Path) -> list[Path]:
    import cv2

    found = []
    for number, place in enumerate(places):
        assert place.image is not None
        path = folder / f"{number:02d}.png"
        _, data = cv2.imencode(".png", place.image[:, :, ::-1])
        path.write_bytes(data.tobytes())
        found.append(path)
    return found


class AnswerBlocks(RunBlocks):
    """Answers for places, one at a time; a run is one over all places.

    Attributes:
        parts: name -> its time in each answer so far, s.
    """

    what = (
        "PlaceSession.answer for one place after the other: read its picture from a file that the "
        "system keeps in memory and decode it, make the inputs, network and projection, hold the "
        "answer against its rules; a run is one over all places"
    )

    def __init__(self, session: PlaceSession, asked: PlacesAsked) -> None:
        super().__init__(fills=True)
        self._session, self._asked = session, asked
        self._side_px = session.manifest.inputs[0].tile_px
        self.parts: dict[str, list[float]] = {name: [] for name in PARTS}

    def run(self) -> Run:
        """See :class:`~edgekd.report.blocks.RunBlocks`."""
        asked, count = self._asked, len(self._asked.pictures)
        start, infer_s = time.monotonic(), 0.0
        for at in range(count):
            spent = Spent()
            begin = time.monotonic()
            file = asked.pictures[at]
            picture = None if file is None else read_picture_file(file, self._side_px)
            decoded = time.monotonic()
            limits = None if asked.limits is None else asked.limits[at]
            self._session.answer([replace(asked.rest[at], image=picture)], limits, spent)
            rest = time.monotonic() - decoded - spent.tensors_s - spent.model_s
            times = (decoded - begin, spent.tensors_s, spent.model_s, max(rest, 0.0))
            for name, value in zip(PARTS, times, strict=True):
                self.parts[name].append(value)
            infer_s += spent.model_s
        total_s = time.monotonic() - start
        pixels = count * self._side_px**2
        return Run(start, total_s, infer_s, pixels, None, count, 0, 1)


class PlaceSubject(Subject):
    """A bundle of places in a measurement.

    Args:
        session: loaded.
        asked: what it is asked; made for it, or for the one that it is measured in turns with.

    Raises:
        InputError: what is asked does not fit the bundle.
    """

    unit = "answer"
    definition = RATIO_OF_ANSWERS

    def __init__(self, session: PlaceSession, asked: PlacesAsked) -> None:
        side = session.manifest.inputs[0].tile_px
        whole = [
            replace(rest, image=None if path is None else read_picture_file(path, side))
            for path, rest in zip(asked.pictures, asked.rest, strict=True)
        ]
        free = [session.inputs(place) for place in whole]
        feeds = free
        if asked.limits is not None:
            feeds = [
                session.inputs(place, limits)
                for place, limits in zip(whole, asked.limits, strict=True)
            ]
        self._work = AnswerBlocks(session, asked)
        super().__init__(session, feeds, asked.used, self._work)
        self._asked, self._places = asked, session
        self._pairs = list(zip(feeds, free, strict=True)) if asked.rules is not None else []
        self._with_s: list[float] = []
        self._without_s: list[float] = []

    def beside(self, pace: Pace) -> list[Phase]:
        """The bare engine with rules and without in turn, where some are in force."""
        if not self._pairs:
            return []
        begin, done = time.monotonic(), len(self._with_s)
        while time.monotonic() - begin < pace.block_s or len(self._with_s) - done < pace.least:
            pair = self._pairs[len(self._with_s) % len(self._pairs)]
            for feed, times in zip(pair, (self._with_s, self._without_s), strict=True):
                start = time.monotonic()
                self._places.infer(feed)
                times.append(time.monotonic() - start)
        return [Phase(kind="rules", start_s=begin, end_s=time.monotonic())]

    def answers(self) -> AnswersWindow:
        """See :class:`~edgekd.report.subjects.Subject`."""
        parts = {name: rounded(values) for name, values in self._work.parts.items()}
        total = LatencySummary.of(totals_s(parts))
        pairs = rounded(self._with_s), rounded(self._without_s)
        asked = self._asked
        return AnswersWindow.model_validate(
            {
                "places": len(asked.pictures),
                "evidence": asked.evidence,
                "simulated": asked.simulated or self._places.simulated,
                "text": BEFORE,
                "rules": asked.rules,
                "total": total,
                "answers_per_s": 1 / total.mean_s,
                "with_rules_s": pairs[0],
                "without_rules_s": pairs[1],
                "rules_s": rules_cost_s(*pairs),
                **{f"{name}_s": values for name, values in parts.items()},
                **{name: LatencySummary.of(values) for name, values in parts.items()},
            }
        )
