"""What ``edgekd validate`` says of sets of places."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from edgekd.contracts.place_set import PlaceSet


def validate_set(path: Path) -> dict[str, Any]:
    """What ``edgekd validate`` says of a set of places: every picture is read, rules are made."""
    from edgekd.cli._answers import load_set
    from edgekd.contracts.optional import available
    from edgekd.contracts.place_evidence import read_picture, rules_of_zones, set_rules
    from edgekd.contracts.place_twins import picture_hashes, twins

    places = load_set(path, labels=False)
    places.require_apart()  # it may yet be learned from
    places.require_plausible(places.known_ranges())
    for row in places.rows:
        if row.image is not None:
            read_picture(row, places.about.image_px)
    data = [*set_lines(places), *_datum_lines(places), *_series_lines(places)]
    data += twins(places, picture_hashes(places))
    policy = set_rules(places)
    today = datetime.date.today()
    if policy is not None and available("scipy"):
        most = len(policy.rules) or 1
        zones = [row.zone for row in places.rows]
        made = rules_of_zones(policy, zones, today, places.classes, places.facts, most)
        for zone, item in made.items():
            data += [f"zone {zone}: {len(item.rows)} rules in force on {today}", *item.relaxed]
    elif policy is not None:
        data.append("its rules were read and not made: scipy is not installed (extra places)")
    simulated = ", SIMULATED" if places.about.simulated else ""
    return {
        "kind": "set of places",
        "summary": f"valid set of places '{places.about.name}'{simulated}: {len(places.rows)} "
        f"places, {len(places.series)} series, {len(places.classes)} classes; its pictures are "
        "whole",
        "data": data,
    }


def _datum_lines(places: PlaceSet) -> list[str]:
    """What levels are above, or that nobody said it."""
    from edgekd.contracts.series_daily import HEIGHTS

    shape = places.about.series
    if not set(HEIGHTS) & set(shape.features):
        return []
    if shape.datum is None:
        return [
            "series.datum is not said, so nothing compares it with a model's: add it "
            "(datum: MLLW, MHHW, NAVD88, ...)"
        ]
    return [f"levels are above {shape.datum}"]


def _series_lines(places: PlaceSet) -> list[str]:
    """What ``edgekd series`` wrote of the series, where it made them."""
    record = places.record
    if record is None or not record.series:
        return []
    days = [day for item in record.series for day in (item.first_day, item.last_day)]
    stations = sorted({item.station for item in record.sources if item.station})
    buoys = sorted({item.buoy for item in record.sources if item.buoy})
    datums = sorted({item.datum for item in record.sources if item.datum})
    return [
        f"series: of station {', '.join(stations) or 'not known'} above "
        f"{', '.join(datums) or 'no datum'}, buoy {', '.join(buoys) or 'none known'}, "
        f"{min(days)} to {max(days)}"
    ]


def set_lines(places: PlaceSet) -> list[str]:
    """Places of each split, of each class, and without a kind of evidence."""
    from edgekd.contracts.evidence import KINDS

    splits = {row.split: 0 for row in places.rows}
    classes = dict.fromkeys(places.classes, 0)
    for row in places.rows:
        splits[row.split] += 1
        if row.label is not None:
            classes[places.classes[row.label]] += 1
    unlabelled = len(places.rows) - sum(classes.values())
    lacking = {kind: sum(kind not in row.kinds for row in places.rows) for kind in KINDS}
    said = ", ".join(f"{kind} {count}" for kind, count in lacking.items() if count)
    simulated = ["SIMULATED, not measured"] if places.about.simulated else []
    return [
        *simulated,
        "places: " + ", ".join(f"{name} {count}" for name, count in splits.items()),
        "labels: " + ", ".join(f"{name} {count}" for name, count in classes.items()),
        *([f"places without a kind: {said}"] if said else []),
        *([f"without a label: {unlabelled}; edgekd run and bench take them"] if unlabelled else []),
    ]
