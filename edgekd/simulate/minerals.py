"""What a scene is made of: minerals, the twelve classes, their spectra as one scene has them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgekd.simulate.library import Library
from edgekd.simulate.mixing import albedo, blend, regrain
from edgekd.simulate.terrain import Seeds

Array = npt.NDArray[np.float32]

#: looks of a mineral that one scene has, each a mixture of library entries
FACIES = 3
#: laboratory reflectance above this (calibrations pass 1 by up to 2 %) is taken as this
_TOP = 0.995
_BOTTOM = 0.002


@dataclass(frozen=True)
class Mineral:
    """A mineral of the library.

    Attributes:
        starts: beginnings of the names of its entries.
        diameter_um: of its grains in the rock, for the share of the cross section.
        without: beginnings of names that are left out.
    """

    starts: tuple[str, ...]
    diameter_um: float = 100.0
    without: tuple[str, ...] = ()


MINERALS: dict[str, Mineral] = {
    "olivine": Mineral(("Olivine ",)),
    "wollastonite": Mineral(("Wollastonite ",)),
    "serpentine": Mineral(("Serpentine ", "Antigorite ", "Lizardite ")),
    "augite": Mineral(("Augite ",)),
    "labradorite": Mineral(("Labradorite ",)),
    "opaque": Mineral(("Magnetite ", "Ilmenite "), 60.0),
    "calcite": Mineral(("Calcite ",)),
    "dolomite": Mineral(("Dolomite ",)),
    "kaolinite": Mineral(("Kaolinite ",), 70.0),
    "alunite": Mineral(("Alunite ",)),
    "muscovite": Mineral(("Muscovite ",)),
    "montmorillonite": Mineral(("Montmorillonite ",), 70.0),
    "goethite": Mineral(("Goethite ",), 50.0),
    "hematite": Mineral(("Hematite GDS27", "Hematite WS161", "Hematite FE2602"), 50.0),
    "quartz": Mineral(("Quartz GDS", "Quartz HS32")),
    "feldspar": Mineral(("Albite ", "Oligoclase ", "Microcline ")),
    "chlorite": Mineral(("Chlorite ", "Clinochlore ")),
    "varnish": Mineral(("Desert_Varnish ",)),
}
MINERAL_NAMES = tuple(MINERALS)


@dataclass(frozen=True)
class MineralClass:
    """One class of the truth.

    Attributes:
        name, color: as in the sensor set.
        minerals: parts by volume of what a pixel of this class alone is made of.
        grain: how much coarser than the library's powders its rock is, as a power of the albedo.
        dark: part of opaque grains in its rock beside those, by volume.
        bedded, blocky, foliated, mottled: how strongly those textures change both.
        relief_m: deviation of its roughness.
    """

    name: str
    color: str
    minerals: dict[str, float]
    grain: float
    dark: float
    bedded: float = 0.0
    blocky: float = 0.0
    foliated: float = 0.0
    mottled: float = 0.1
    relief_m: float = 0.1


#: bedding is a look of carbonates, blocks of lava, foliation of what was sheared. Calcite and
#: dolomite share theirs, and so do kaolinite and alunite: those only a spectrum tells apart.
CLASSES: tuple[MineralClass, ...] = (
    MineralClass("olivine", "#6b8e23", {"olivine": 0.96, "augite": 0.04}, 1.6, 0.014,
                 blocky=0.35, relief_m=0.30),
    MineralClass("wollastonite", "#f0e68c", {"wollastonite": 1.0}, 2.0, 0.001,
                 mottled=0.9, relief_m=0.2),
    MineralClass("serpentine", "#2e8b57", {"serpentine": 1.0}, 1.4, 0.014,
                 foliated=0.6, relief_m=0.16),
    MineralClass("basalt", "#404048",
                 {"augite": 0.46, "labradorite": 0.46, "olivine": 0.08}, 1.8, 0.10,
                 blocky=0.5, relief_m=0.45),
    MineralClass("calcite", "#87ceeb", {"calcite": 1.0}, 2.0, 0.006, bedded=0.8, relief_m=0.2),
    MineralClass("dolomite", "#4682b4", {"dolomite": 0.995, "goethite": 0.005}, 1.4, 0.009,
                 bedded=0.8, relief_m=0.25),
    MineralClass("kaolinite", "#ffb6c1", {"kaolinite": 1.0}, 1.4, 0.001,
                 mottled=0.5, relief_m=0.06),
    MineralClass("alunite", "#c71585", {"alunite": 0.95, "quartz": 0.05}, 1.4, 0.001,
                 mottled=0.5, relief_m=0.06),
    MineralClass("muscovite", "#b39ddb",
                 {"muscovite": 0.82, "quartz": 0.10, "chlorite": 0.08}, 1.4, 0.016,
                 foliated=0.7, relief_m=0.16),
    MineralClass("montmorillonite", "#d2b48c", {"montmorillonite": 0.994, "goethite": 0.006}, 1.3,
                 0.002, mottled=0.1, relief_m=0.02),
    MineralClass("goethite", "#b8620a", {"goethite": 0.7, "hematite": 0.1, "quartz": 0.2}, 1.0,
                 0.01, mottled=0.3, relief_m=0.15),
    MineralClass("quartz_feldspar", "#eeddbb",
                 {"quartz": 0.43, "feldspar": 0.545, "chlorite": 0.025}, 1.8, 0.010,
                 mottled=0.5, relief_m=0.16),
)  # fmt: skip
CLASS_NAMES = tuple(item.name for item in CLASSES)


def recipes() -> npt.NDArray[np.float64]:
    """Parts by volume of each mineral in each class, (classes, minerals); rows sum to 1."""
    table = np.zeros((len(CLASSES), len(MINERALS)))
    for row, item in zip(table, CLASSES, strict=True):
        for name, part in item.minerals.items():
            row[MINERAL_NAMES.index(name)] = part
    return np.asarray(table / table.sum(1, keepdims=True))


def diameters_um() -> npt.NDArray[np.float64]:
    """Of the grains of each mineral, (minerals,)."""
    return np.array([item.diameter_um for item in MINERALS.values()])


class Cabinet:
    """Albedos of the library's entries, mineral by mineral, and what scenes make of them.

    Args:
        library: the spectra.
        bands: indices of the bands that are wanted.

    Attributes:
        wavelengths_nm: of those bands.
        entries: mineral -> names of the entries that are used.

    Raises:
        InputError: the library lacks a mineral.
    """

    def __init__(self, library: Library, bands: npt.NDArray[np.int64]) -> None:
        self.wavelengths_nm = library.wavelengths_nm[bands]
        self.entries: dict[str, tuple[str, ...]] = {}
        self._albedos: dict[str, npt.NDArray[np.float64]] = {}
        for name, mineral in MINERALS.items():
            names, reflectance = library.pick(mineral.starts, mineral.without)
            self.entries[name] = names
            powder = np.clip(reflectance[:, bands], _BOTTOM, _TOP)
            self._albedos[name] = albedo(powder)

    def facies(self, seeds: Seeds) -> Array:
        """Albedo of each mineral in each of its looks in one scene.

        A look is a mixture of entries with random weights (so neither its provenance nor its grain
        is one of the library's) and with random grain.

        Returns:
            float32 (minerals, FACIES, bands).
        """
        looks = np.empty((len(MINERALS), FACIES, len(self.wavelengths_nm)), dtype=np.float32)
        for index, (name, entries) in enumerate(self._albedos.items()):
            rng = seeds.rng("facies", name)
            weights = rng.dirichlet(np.full(len(entries), 0.6), FACIES)
            grain = np.exp(rng.normal(0.0, 0.15, (FACIES, 1)))
            looks[index] = regrain(blend(weights, entries), grain)
        return looks
