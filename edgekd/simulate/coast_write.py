"""Made-up coasts into a set of places: ``places.yaml``, table, pictures, series, rules.

Same seed, same places: coast 3 of ten is coast 3 of a hundred. Everything says that it is
simulated.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from edgekd import __version__
from edgekd.contracts.artifacts import canonical_json, publish_folder, sha256_file
from edgekd.contracts.place_set import COLUMNS, SET_FILE, SPLITS
from edgekd.contracts.series import Series
from edgekd.contracts.series_daily import FEATURES, daily_features
from edgekd.errors import InputError, OutputError
from edgekd.simulate.coast import CELL_M, TILE_PX
from edgekd.simulate.coast_levels import DAYS, HOURS, LEAD_DAYS, Tide, Year, load_tide
from edgekd.simulate.coast_places import CLASSES, FACTS, make_shore, places_of, rules_of_law

COAST_VERSION = 1
PROVENANCE_FILE = "provenance.json"
RULES_FILE = "rules.yaml"
#: of levels and heights on simulated coasts: the tide's of the station
DATUM = "MHHW"
MOST_COASTS, MOST_PLACES = 999, 2000
_SAYS = "SIMULATED by edgekd simulate coast; no place is meant"


@dataclass(frozen=True)
class CoastOrder:
    """What is to be made.

    Attributes:
        coasts: how many.
        places: of each coast.
        seed: of the set.
        split: coasts of train, val and test, in turn.
    """

    coasts: int = 20
    places: int = 60
    seed: int = 0
    split: tuple[int, int, int] = (14, 3, 3)

    def check(self) -> None:
        """Raise what is wrong.

        Raises:
            InputError: a number is out of range, or the split does not add up.
        """
        if not 1 <= self.coasts <= MOST_COASTS:
            raise InputError(f"expected 1 to {MOST_COASTS} coasts, received {self.coasts}")
        if not 1 <= self.places <= MOST_PLACES:
            raise InputError(f"expected 1 to {MOST_PLACES} places, received {self.places}")
        if self.seed < 0:
            raise InputError(f"a seed is 0 or above, received {self.seed}")
        if min(self.split) < 0 or sum(self.split) < 1 or self.coasts % sum(self.split):
            raise InputError(
                f"a split of {':'.join(map(str, self.split))} does not go into {self.coasts} "
                "coasts; give --split so that its sum divides --coasts"
            )

    def split_of(self, number: int) -> str:
        """Split of a coast."""
        place = number % sum(self.split)
        return SPLITS[int(np.searchsorted(np.cumsum(self.split), place, side="right"))]


def write_coast(
    out: Path,
    station: Path,
    order: CoastOrder,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Make the coasts and write the set; the folder appears when it is whole.

    Args:
        out: folder that is not there, or is empty.
        station: metadata of a NOAA station with harmonic constituents, whose tide is taken.
        order: what is to be made.
        progress: told coasts done and coasts in all.

    Returns:
        what ``provenance.json`` holds.

    Raises:
        InputError: the order, or the station's file.
        OutputError: the folder exists and holds something, or cannot be written.

    """
    order.check()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; choose another folder with -o")
    tide = load_tide(station)
    series: list[npt.NDArray[np.float32]] = []
    counts: dict[str, Counter[str]] = {name: Counter() for name in SPLITS}
    truth: list[dict[str, Any]] = []
    with publish_folder(out, SET_FILE) as part:
        (part / "tiles").mkdir()
        with (part / "places.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for number in range(order.coasts):
                split = order.split_of(number)
                shore = make_shore(order.seed, number, tide)
                first = len(series)
                series += [features_of(year) for year in shore.years]
                for place in places_of(shore, order.seed, order.places, held_out=split == "test"):
                    label = CLASSES[place.label]
                    image = f"tiles/{place.name}.png"
                    if not cv2.imwrite(str(part / image), place.tile[..., ::-1]):
                        raise OutputError(f"cannot write {out / image}")
                    table.writerow(
                        [place.name, split, f"coast_{number:03d}", place.zone, label, image,
                         first + place.year, place.text]
                    )  # fmt: skip
                    counts[split][label] += 1
                    truth.append(
                        {"name": place.name, "cover": place.cover, "use": place.use,
                         "protects": place.protects, "depth_m": round(place.depth_m, 3)}
                    )  # fmt: skip
                progress(number + 1, order.coasts)
        np.savez(part / "series.npz", values=np.stack(series))
        made = _provenance(order, tide, station, counts)
        (part / PROVENANCE_FILE).write_text(canonical_json(made), encoding="utf-8")
        (part / "truth.json").write_text(canonical_json(truth), encoding="utf-8")
        rules = yaml.safe_dump(rules_of_law("coast-simulated"), sort_keys=False)
        (part / RULES_FILE).write_text(f"# {_SAYS}\n{rules}", encoding="utf-8")
        about = yaml.safe_dump(_about(order, tide), sort_keys=False, width=100)
        (part / SET_FILE).write_text(f"# {_SAYS}\n{about}", encoding="utf-8")
    return made


def features_of(year: Year) -> npt.NDArray[np.float32]:
    """The days of a year as the student takes them, ``(365, 12)``, NaN for gaps."""
    start = np.datetime64(year.start, "s")
    times = np.arange(start, start + np.timedelta64(HOURS, "h"), np.timedelta64(1, "h"))
    levels = Series(times, year.level_m[:, None], ("water_level_m",), "simulated", datum=DATUM)
    weather = Series(
        times,
        np.stack(
            [year.wave_height_m, year.wave_period_s, year.wind_m_s, year.gust_m_s,
             year.pressure_hpa, year.water_c], axis=1,
        ),
        ("wave_height_m", "wave_period_s", "wind_speed_m_s", "gust_m_s", "pressure_hpa",
         "water_temperature_c"),
        "simulated",
    )  # fmt: skip
    begin = start + np.timedelta64(LEAD_DAYS, "D")
    return daily_features(levels, weather, begin, DAYS)[0]


def _about(order: CoastOrder, tide: Tide) -> dict[str, Any]:
    return {
        "schema": 1,
        "name": "coast-simulated",
        "title": "Simulated coasts: what to do with a block, ten classes",
        "source": f"edgekd {__version__} simulate coast, version {COAST_VERSION}, seed "
        f"{order.seed}; tide of {tide.station}, NOAA CO-OPS",
        "licence": "constituents are US public domain; the rest as edgekd (Apache-2.0)",
        "simulated": True,
        "classes": [{"name": name, "facts": FACTS.get(name, {})} for name in CLASSES],
        "image_px": TILE_PX,
        "gsd_m": CELL_M,
        "series": {
            "file": "series.npz",
            "days": DAYS,
            "features": list(FEATURES),
            "datum": DATUM,
        },
        "table": "places.csv",
        "rules": RULES_FILE,
    }


def _provenance(
    order: CoastOrder, tide: Tide, station: Path, counts: dict[str, Counter[str]]
) -> dict[str, Any]:
    return {
        "simulated": True,
        "generator": "edgekd simulate coast",
        "generator_version": COAST_VERSION,
        "edgekd_version": __version__,
        "seed": order.seed,
        "coasts": order.coasts,
        "places_of_each": order.places,
        "split": ":".join(map(str, order.split)),
        "station": tide.station,
        "station_sha256": sha256_file(station),
        "places": {
            split: {name: counts[split][name] for name in CLASSES} for split in SPLITS
        },
    }  # fmt: skip
