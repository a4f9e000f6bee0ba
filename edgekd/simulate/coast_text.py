"""Zoning clauses as a town would write them, made up: what a block may be used for, in words.

A clause says its use, what it holds of shoreline protection, and things that matter for neither.
Sentences are put together from frames and things. One in four of the things is kept for the test
split, so that a model which has learned words by heart is found out. Frames are the same in both: a
law has few ways to forbid, and a mean of word vectors does not carry a new one (logistic regression
on MiniLM's told allowed from forbidden in 62 % of frames it had not seen).
"""

from __future__ import annotations

from typing import Final

import numpy as np

USES: Final = ("preserve", "recreation", "low", "mid", "high")

THINGS: Final[dict[str, tuple[str, ...]]] = {
    "preserve": (
        "a refuge for plants and animals", "wild land without buildings",
        "nesting places of shore birds", "natural vegetation and nothing built",
        "wetland and open water in their natural state", "an ecological reserve",
        "old forest under protection", "dune grass that nobody may disturb",
        "habitat for wildlife", "dunes in their natural state", "marsh that stays untouched",
        "a nature reserve", "undisturbed vegetation", "protected wetland",
        "wild shore without any structure", "a conservation area free of buildings",
        "coastal scrub that is left to itself", "a bird sanctuary",
        "breeding ground closed to the public", "forest that is kept as it is",
    ),
    "recreation": (
        "a public park", "beaches and bathing places", "tennis courts and playing fields",
        "trails for walking and cycling", "public gardens", "outdoor sports and games",
        "a playground with lawns", "leisure in the open air",
        "parks and playgrounds", "playing fields", "picnic grounds and trails",
        "public lawns beside the beach", "golf courses", "camp sites", "promenades and gardens",
        "sports grounds", "meadows for fairs and play", "an urban park",
        "bicycle paths and open lawns", "swimming places with rest rooms",
    ),
    "low": (
        "single-family homes", "houses of one storey", "detached homes with gardens",
        "low-density housing of two storeys", "a family house on each lot", "cottages of one floor",
        "rural homes and small houses", "two-family houses with yards",
        "detached single-family houses", "bungalows and cottages",
        "dwellings of one or two storeys", "houses of no more than nine metres",
        "duplexes on large lots", "villas with gardens", "small homes at low density",
        "one dwelling per lot", "farm houses and cabins", "family homes with pitched roofs",
        "low houses as in a village", "semi-detached homes of two floors",
    ),
    "mid": (
        "apartment buildings of four floors", "flats in buildings of five storeys",
        "townhouses of three storeys", "medium-density housing",
        "blocks of flats with up to six floors", "multifamily houses of middle height",
        "rows of townhouses", "apartments in mid-rise buildings",
        "apartment houses of three to six storeys", "townhouses and walk-up flats",
        "multifamily buildings up to twenty metres", "row houses at medium density",
        "flats above shops, five floors at most", "perimeter blocks of four storeys",
        "residential buildings of middle height", "tenements of up to six floors",
        "condominiums of four or five storeys", "mid-rise housing", "terraces of flats",
        "garden apartments of three floors",
    ),
    "high": (
        "high-rise buildings", "towers of more than twelve storeys", "tall office buildings",
        "hotels of twenty floors", "high-rise flats and offices", "very tall buildings",
        "office towers", "high-density towers with shops",
        "towers of offices and hotels", "high-rise apartments", "skyscrapers",
        "buildings of ten storeys and more", "mixed use in towers of up to fifty-five metres",
        "tall hotels", "high-density office blocks", "residential towers of any height",
        "structures of at least eight storeys", "downtown towers", "a skyline of tall buildings",
        "headquarters of fifteen floors",
    ),
}  # fmt: skip
FRAMES: Final = (
    "Permitted by right: {}.",
    "The district is reserved for {}.",
    "The principal use of these parcels is {}.",
    "Only {} may be approved here.",
    "The plan provides for {} and nothing else.",
    "Within this zone the council allows {}.",
    "Every lot shall be used for {}.",
    "Land so marked on the map is meant for {}.",
    "The purpose of this section is to provide {}.",
    "The ordinance admits {} in this part of the town.",
    "No use other than {} is lawful.",
    "Owners shall keep to {}.",
)
WALLS: Final = (
    "seawalls", "levees", "bulkheads", "revetments", "walls against the sea", "dikes",
    "flood walls", "structures of shoreline armouring",
)  # fmt: skip
PROTECTION: Final[dict[bool, tuple[str, ...]]] = {
    True: (
        "To protect what is there, {} may be built.",
        "The town shall maintain {} along this reach.",
        "With the engineer's approval {} are allowed.",
        "Owners are entitled to put up {}.",
        "It is lawful to repair and to raise {}.",
        "The council supports {} with public funds.",
        "Permits for {} are granted on request.",
        "Construction of {} is encouraged.",
    ),
    False: (
        "Here {} are prohibited.",
        "The shore shall be left to move, and {} are not permitted.",
        "Existing {} shall be removed.",
        "It is unlawful to build or extend {}.",
        "The council does not allow {}.",
        "Under no circumstances are {} acceptable.",
        "Permits for {} shall be denied.",
        "Nobody may erect {} here.",
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
    """A clause of two to five sentences.

    Args:
        random: where its words come from.
        use: one of :data:`USES`.
        protects: whether walls against the sea are allowed.
        held_out: things of the test split, one in four, in place of the others.
    """
    told = [
        _one(random, FRAMES).format(_one(random, kept(THINGS[use], held_out=held_out))),
        _one(random, PROTECTION[protects]).format(_one(random, kept(WALLS, held_out=held_out))),
    ]
    rest = random.choice(len(_REST), int(random.integers(0, 4)), replace=False)
    sentences = told + [_REST[number] for number in rest]
    order = random.permutation(len(sentences))
    article = f"Sec. {random.integers(1, 40)}.{random.integers(1, 30)}."
    return " ".join([article, *(sentences[number] for number in order)])


def kept(phrases: tuple[str, ...], *, held_out: bool) -> tuple[str, ...]:
    """The part of phrases that the test split has, or the part of the others."""
    last = len(phrases) // 4
    return phrases[-last:] if held_out else phrases[:-last]


def _one(random: np.random.Generator, phrases: tuple[str, ...]) -> str:
    return phrases[int(random.integers(len(phrases)))]
