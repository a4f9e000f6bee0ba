"""Which rock stands where: strata that were folded and faulted, what intruded, altered, filled.

Fields are evaluated at any place, so a scene is worked through in rows and never held whole.
Thresholds are quantiles over a coarse grid of the scene: what the shares say is what comes out,
also in a scene of a few hundred metres.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgekd.simulate.minerals import CLASS_NAMES
from edgekd.simulate.terrain import Field, Seeds

Array = npt.NDArray[np.float32]
Units = npt.NDArray[np.uint8]
Places = npt.NDArray[np.float64]

UNITS = (
    "ultramafic", "basalt", "carbonate", "schist", "granite", "skarn", "altered", "gossan",
    "alluvium",
)  # fmt: skip
#: the strata, from below, and how thick they are on the map, m
_STRATA = {"ultramafic": 75.0, "basalt": 60.0, "carbonate": 65.0, "schist": 45.0}
#: expected share of the scene for what came later; each scene varies by a quarter or so
SHARES = {"alluvium": 0.16, "granite": 0.08, "altered": 0.10, "gossan": 0.012, "skarn": 0.014}
#: of the carbonate that is dolomite, of the ultramafic that is serpentine, and so on
PARTS = {"serpentine": 0.42, "dolomite": 0.40, "alunite": 0.17, "clay": 0.30, "playa": 0.25}
#: what erosion leaves standing, m above or below: of a rock, and by the share of a class in it (the
#: cores of veins are silicified and stand out as ledges)
_RESISTANCE_M = {
    "ultramafic": 1.0, "basalt": 4.0, "carbonate": 2.0, "schist": -2.5, "granite": 4.5,
    "skarn": 4.0, "altered": -3.0, "gossan": 2.5, "alluvium": 0.0,
}  # fmt: skip
_STANDS_M = {"dolomite": 3.0, "serpentine": -3.0, "alunite": 8.0}
#: deviation of the ground's height, m, before erosion
RELIEF_M = 9.0
_SAMPLES = 96

#: parts of the classes in a rock, before gradual changes; each row is made to sum to 1
_ROCKS: dict[str, dict[str, float]] = {
    "ultramafic": {"basalt": 0.05, "goethite": 0.01, "dolomite": 0.01},
    "basalt": {"basalt": 0.86, "montmorillonite": 0.05, "calcite": 0.03, "goethite": 0.015,
               "serpentine": 0.03, "quartz_feldspar": 0.015},
    "carbonate": {"quartz_feldspar": 0.05, "montmorillonite": 0.05, "muscovite": 0.02},
    "schist": {"muscovite": 0.66, "quartz_feldspar": 0.27, "kaolinite": 0.03, "goethite": 0.01,
               "montmorillonite": 0.03},
    "granite": {"quartz_feldspar": 0.82, "muscovite": 0.08, "kaolinite": 0.05,
                "montmorillonite": 0.05},
    "skarn": {"wollastonite": 0.76, "calcite": 0.15, "quartz_feldspar": 0.07, "basalt": 0.02},
    "altered": {"quartz_feldspar": 0.20, "muscovite": 0.05, "goethite": 0.01},
    "gossan": {"goethite": 0.72, "quartz_feldspar": 0.18, "kaolinite": 0.10},
    "alluvium": {"muscovite": 0.05, "basalt": 0.05, "calcite": 0.04},
}  # fmt: skip
#: concentration of Dirichlet's distribution of the parts, pixel by pixel
_CONCENTRATION = 35.0


class Structure:
    """The geology of one scene.

    Args:
        seeds: of the scene.
        extent_m: side of the scene.

    Attributes:
        strike_deg: direction of the strata, clockwise from north.
        shares: share of the scene that each unit was given, beside the strata.
    """

    def __init__(self, seeds: Seeds, extent_m: float) -> None:
        rng = seeds.rng("structure")
        self.strike_deg = float(rng.uniform(0, 180))
        self._tilt = float(rng.uniform(0.7, 1.1))
        self._offset_m = float(rng.uniform(0, 1000))
        self._throw_m = float(rng.uniform(20, 60))
        names = list(_STRATA)
        thick = np.array([_STRATA[name] for name in names]) * np.exp(rng.normal(0, 0.15, 4))
        self._layers = np.array([UNITS.index(name) for name in names], dtype=np.uint8)
        self._tops = np.cumsum(thick)
        strike = self.strike_deg
        make = {
            "ground": (30.0, 420.0, 2.4, 1.0, strike),
            "detail": (6.0, 30.0, 2.4, 1.0, 0.0),
            "fold": (110.0, 500.0, 2.0, 1.8, strike),
            "ripple": (14.0, 110.0, 1.6, 1.5, strike),
            "fault": (220.0, 700.0, 2.0, 2.5, strike + float(rng.uniform(40, 90))),
            "stock": (50.0, 220.0, 3.0, 1.0, 0.0),
            "vein": (36.0, 300.0, 1.5, 2.0, strike + float(rng.uniform(20, 70))),
            "spot": (24.0, 120.0, 2.0, 1.0, 0.0),
            "serpentine": (20.0, 160.0, 2.0, 1.6, strike),
            "dolomite": (20.0, 160.0, 2.0, 1.4, strike),
            "patch": (8.0, 60.0, 1.5, 1.0, 0.0),
            "patch_too": (8.0, 60.0, 1.5, 1.0, 0.0),
        }
        self._fields = {name: Field(seeds.rng(name), *made) for name, made in make.items()}
        self._cuts: dict[str, float] = {}
        self.shares = {
            name: share * float(np.clip(np.exp(rng.normal(0, 0.25)), 0.6, 1.6))
            for name, share in SHARES.items()
        }
        self._set_cuts(extent_m)

    def scores(self, down_m: Places, east_m: Places) -> dict[str, Array]:
        """Every field on a grid of rows and columns; ``strata`` is in metres."""
        found = {name: field(down_m, east_m) for name, field in self._fields.items()}
        strike = np.radians(self.strike_deg)
        across = np.sin(strike) * down_m[:, None] + np.cos(strike) * east_m[None, :]
        fault = np.tanh(found["fault"] / np.float32(0.02))
        found["strata"] = (
            self._offset_m
            + self._tilt * across
            + 32.0 * found["fold"]
            + 4.0 * found["ripple"]
            + self._throw_m * fault
            + 0.5 * RELIEF_M * found["ground"]
        ).astype(np.float32)
        # a vein runs where its field is 0; on both sides its halo
        found["vein"] = -np.abs(found["vein"]) + np.float32(0.05) * found["patch"]
        found["low"] = -found["ground"] + np.float32(0.12) * found["patch"]
        return found

    def _set_cuts(self, extent_m: float) -> None:
        places = (np.arange(_SAMPLES, dtype=np.float64) + 0.5) * (extent_m / _SAMPLES)
        scores = {name: value.ravel() for name, value in self.scores(places, places).items()}
        total = _SAMPLES**2

        def cut(name: str, key: str, where: npt.NDArray[np.bool_], share: float) -> None:
            values = scores[key][where]
            # where there is too little of the host rock, half of it is all that is taken
            part = min(share / max(len(values), 1), 0.5)
            self._cuts[name] = float(np.quantile(values, 1 - part)) if len(values) else np.inf

        everywhere = np.ones(total, dtype=bool)
        cut("alluvium", "low", everywhere, total * self.shares["alluvium"])
        free = scores["low"] <= self._cuts["alluvium"]
        cut("granite", "stock", free, total * self.shares["granite"])
        layer = self._stratum(scores["strata"])
        solid = free & (scores["stock"] <= self._cuts["granite"])
        cut("skarn", "stock", solid & (layer == UNITS.index("carbonate")),
            total * self.shares["skarn"])  # fmt: skip
        acid = np.isin(layer, [UNITS.index("basalt"), UNITS.index("schist")])
        granite = scores["stock"] > self._cuts["granite"]
        cut("altered", "vein", free & (granite | acid), total * self.shares["altered"])
        dark = np.isin(layer, [UNITS.index("ultramafic"), UNITS.index("basalt")])
        calm = scores["vein"] <= self._cuts["altered"]
        cut("gossan", "spot", solid & dark & calm, total * self.shares["gossan"])
        unit = self.units(scores)
        for name, key, rock in (
            ("serpentine", "serpentine", "ultramafic"),
            ("dolomite", "dolomite", "carbonate"),
            ("alunite", "vein", "altered"),
            ("playa", "low", "alluvium"),
        ):
            where = unit == UNITS.index(rock)
            cut(name, key, where, where.sum() * PARTS[name])
        where = unit == UNITS.index("altered")
        cut("clay", "vein", where, where.sum() * (1 - PARTS["clay"]))

    def _stratum(self, strata: Array) -> Units:
        place = np.mod(strata, self._tops[-1])
        return np.asarray(self._layers[np.searchsorted(self._tops[:-1], place, side="right")])

    def units(self, scores: dict[str, Array]) -> Units:
        """Index into :data:`UNITS` of every place."""
        cuts = self._cuts
        unit = self._stratum(scores["strata"])
        layer = unit.copy()
        granite = scores["stock"] > cuts["granite"]
        carbonate = layer == UNITS.index("carbonate")
        ultramafic = layer == UNITS.index("ultramafic")
        unit[carbonate & (scores["stock"] > cuts["skarn"])] = UNITS.index("skarn")
        unit[granite] = UNITS.index("granite")
        spots = ultramafic | (layer == UNITS.index("basalt"))
        unit[spots & ~granite & (scores["spot"] > cuts["gossan"])] = UNITS.index("gossan")
        host = granite | ~(carbonate | ultramafic)
        unit[host & (scores["vein"] > cuts["altered"])] = UNITS.index("altered")
        unit[scores["low"] > cuts["alluvium"]] = UNITS.index("alluvium")
        return unit

    def parts(self, scores: dict[str, Array], unit: Units, rng: np.random.Generator) -> Array:
        """Parts of the classes in the rock of each place.

        Gradual within a unit (how far olivine turned to serpentine, calcite to dolomite, how near a
        vein is, how low the ground), patchy, and Dirichlet's distribution pixel by pixel.

        Args:
            scores, unit: of the places, all of one shape.
            rng: for the distribution.

        Returns:
            float32 (..., classes), sum 1.
        """
        parts = self.expected(scores, unit)
        patches = (scores["patch"], scores["patch_too"], -scores["patch"], -scores["patch_too"])
        for index in range(parts.shape[-1]):
            parts[..., index] *= np.exp(np.float32(0.3) * patches[index % 4])
        parts /= parts.sum(-1, keepdims=True)
        drawn = rng.standard_gamma(_CONCENTRATION * parts + np.float32(0.02), dtype=np.float32)
        return np.asarray(drawn / drawn.sum(-1, keepdims=True))

    def expected(self, scores: dict[str, Array], unit: Units) -> Array:
        """Parts of the classes before chance, (..., classes), sum 1."""
        table = np.zeros((len(UNITS), len(CLASS_NAMES)), dtype=np.float32)
        for row, name in zip(table, UNITS, strict=True):
            for kind, part in _ROCKS[name].items():
                row[CLASS_NAMES.index(kind)] = part
        parts = table[unit]
        rest = 1 - parts.sum(-1)

        def share(name: str, key: str, width: float) -> Array:
            edge = (scores[key] - np.float32(min(self._cuts[name], 1e6))) / np.float32(width)
            return np.asarray(1 / (1 + np.exp(-np.clip(edge, -30, 30))), dtype=np.float32)

        def put(rock: str, kinds: dict[str, Array]) -> None:
            where = unit == UNITS.index(rock)
            for kind, part in kinds.items():
                parts[..., CLASS_NAMES.index(kind)] += np.where(where, part * rest, 0)

        green = share("serpentine", "serpentine", 0.15)
        put("ultramafic", {"olivine": 1 - green, "serpentine": green})
        white = share("dolomite", "dolomite", 0.15)
        put("carbonate", {"calcite": 1 - white, "dolomite": white})
        core, inner = share("alunite", "vein", 0.012), share("clay", "vein", 0.015)
        put("altered", {"alunite": core, "kaolinite": inner * (1 - core),
                        "montmorillonite": (1 - inner) * (1 - core)})  # fmt: skip
        fine = share("playa", "low", 0.1)
        put("alluvium", {"quartz_feldspar": 1 - fine, "montmorillonite": fine})
        return np.asarray(parts / parts.sum(-1, keepdims=True))

    def ground_m(self, scores: dict[str, Array], unit: Units) -> tuple[Array, Array]:
        """Height before erosion, and what erosion leaves above or below it, both m.

        Valley floors are flat: below the alluvium's edge the ground falls at a sixth of its slope.
        """
        edge = np.float32(-self._cuts["alluvium"])
        low = np.minimum(scores["ground"] - edge, 0)
        base = RELIEF_M * (scores["ground"] - np.float32(5 / 6) * low)
        stands = np.array([_RESISTANCE_M[name] for name in UNITS], dtype=np.float32)[unit]
        parts = self.expected(scores, unit)
        for name, more in _STANDS_M.items():
            stands += more * parts[..., CLASS_NAMES.index(name)]
        return base.astype(np.float32), stands
