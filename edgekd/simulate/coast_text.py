"""Zoning clauses as a town would write them, made up: what a block may be used for, in words.

A clause has a use, what it says of shoreline protection, and sentences that say nothing of either.
One in four phrasings of each kind is kept for the test split, so that a model which has learned
sentences by heart is found out.
"""

from __future__ import annotations

from typing import Final

import numpy as np

USES: Final = ("preserve", "recreation", "low", "mid", "high")

_PHRASES: Final[dict[str, tuple[str, ...]]] = {
    "preserve": (
        "The district shall remain in its natural state; no new structure of any kind is allowed.",
        "Land in this conservation overlay is reserved for habitat, and building permits are not "
        "issued.",
        "Within the preservation zone vegetation shall not be cleared and no dwelling shall be "
        "erected.",
        "These parcels are dedicated to the protection of dunes, marshes and wildlife in "
        "perpetuity.",
        "No development is permitted in the critical area; existing uses are nonconforming and "
        "shall not be extended.",
        "The purpose of this district is to keep ecologically valuable ground free of buildings.",
        "Development rights in the sanctuary have been extinguished by covenant.",
        "The land is held as a nature reserve and closed to construction.",
    ),
    "recreation": (
        "Permitted uses are parks, playing fields, trails and beaches open to the public.",
        "The district is set aside for outdoor recreation; buildings are limited to shelters and "
        "rest rooms.",
        "Only camp grounds, picnic areas and sports fields are allowed by right.",
        "The ground is designated as public open space and shall be kept free of dwellings.",
        "Use is restricted to passive and active recreation such as golf, gardens and promenades.",
        "Parcels in the greenway serve the public for leisure, and no residential use is allowed.",
        "This park district admits fairs and markets for a few days, but no permanent housing.",
        "The waterfront lawn shall stay open to all for sport and play.",
    ),
    "low": (
        "Single-family dwellings of no more than two storeys are permitted by right.",
        "The maximum height of any building is nine metres; duplexes and detached houses are "
        "allowed.",
        "This is a low-density residential district: one dwelling per lot.",
        "Detached homes with gardens are the principal permitted use, not exceeding two floors.",
        "Lots of at least 600 square metres may each hold one house of two storeys at most.",
        "Residential use at low density is allowed, with a floor area ratio of 0.3.",
        "Cottages and bungalows may be erected; apartment houses are prohibited.",
        "The village district admits small houses in keeping with their neighbours.",
    ),
    "mid": (
        "Apartment houses of three to six storeys are permitted by right.",
        "The district admits townhouses and multifamily buildings up to twenty metres.",
        "Medium-density residential use is allowed, with a floor area ratio of 1.8.",
        "Buildings may have up to six floors, and shops are allowed at street level.",
        "Row houses and walk-up flats are the principal permitted uses.",
        "Multifamily housing at moderate density is encouraged along the main streets.",
        "Perimeter blocks of four to five storeys shall line the avenue.",
        "The permitted use is flats in buildings of middle height.",
    ),
    "high": (
        "Towers for offices, hotels and flats are permitted without a limit of height.",
        "High-density mixed use is allowed, with a floor area ratio of up to 8.",
        "The downtown district admits buildings of ten storeys and more.",
        "High-rise construction is permitted by right on all parcels.",
        "Buildings shall have at least eight storeys above grade.",
        "The core district is intended for the tallest structures of the town.",
        "Skyscrapers may be erected subject to review of their design.",
        "The maximum height of fifty-five metres applies to hotels and office towers.",
    ),
}
_PROTECTION: Final[dict[bool, tuple[str, ...]]] = {
    True: (
        "Seawalls, levees and bulkheads may be built to protect existing development.",
        "The town shall maintain shoreline armouring along this reach.",
        "Hard structures against flooding are permitted with the engineer's approval.",
        "Protection of the shore by walls or dikes is an allowed accessory use.",
    ),
    False: (
        "Shoreline armouring of any kind is prohibited.",
        "No seawall, levee or bulkhead shall be constructed or extended.",
        "The shore shall be left to move; hard protection is not permitted.",
        "Permits for dikes, walls and revetments shall be denied.",
    ),
}
_REST: Final = (
    "Two parking spaces shall be provided for each principal use.",
    "Signs shall not exceed three square metres and shall not flash.",
    "Fences along a public way are limited to a height of one and a half metres.",
    "Noise between ten in the evening and seven in the morning shall not disturb neighbours.",
    "Applications are decided by the board within sixty days after a public hearing.",
    "Storm water shall be managed on site for the design rainfall.",
    "Trees with a trunk of more than thirty centimetres are replaced when they are felled.",
    "Any person aggrieved by a decision may appeal within thirty days.",
    "Definitions of chapter 2 apply unless the context requires otherwise.",
    "Utilities shall be placed underground where it is practicable.",
    "Outdoor lighting shall be shielded so that it does not shine on the beach.",
    "The fee for an application is set by resolution of the council.",
)


def clause(random: np.random.Generator, use: str, protects: bool, *, held_out: bool) -> str:
    """A clause of two to six sentences.

    Args:
        random: where its words come from.
        use: one of :data:`USES`.
        protects: whether walls against the sea are allowed.
        held_out: phrasings of the test split, one in four, in place of the others.
    """
    told = [_pick(random, _PHRASES[use], held_out), _pick(random, _PROTECTION[protects], held_out)]
    rest = random.choice(len(_REST), int(random.integers(0, 4)), replace=False)
    sentences = told + [_REST[number] for number in rest]
    order = random.permutation(len(sentences))
    article = f"Sec. {random.integers(1, 40)}.{random.integers(1, 30)}."
    return " ".join([article, *(sentences[number] for number in order)])


def _pick(random: np.random.Generator, phrases: tuple[str, ...], held_out: bool) -> str:
    kept = len(phrases) // 4
    part = phrases[-kept:] if held_out else phrases[:-kept]
    return part[int(random.integers(len(part)))]
