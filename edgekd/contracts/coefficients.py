"""Coefficients by class: what a square metre of each takes up, in a unit that is declared.

One YAML holds the unit and, for each class that takes anything up, value, uncertainty and source.
Classes that do not stand there take up nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from edgekd.contracts.registry import nearest
from edgekd.contracts.schema import Document, load_document
from edgekd.errors import InputError

#: half of a 95 % interval over the standard deviation, of a normal distribution
NORMAL_95 = 1.959964

_MASSES_T = {
    "g": 1e-6, "kg": 1e-3, "t": 1.0, "tonne": 1.0, "Mg": 1.0, "kt": 1e3, "Gg": 1e3, "Mt": 1e6,
    "Tg": 1e6,
}  # fmt: skip
_AREAS_M2 = {"m2": 1.0, "ha": 1e4, "km2": 1e6}
_TIMES = {"a": "year", "y": "year", "yr": "year", "year": "year", "d": "day", "day": "day"}
_MASS, _AREA, _TIME = ("|".join(words) for words in (_MASSES_T, _AREAS_M2, _TIMES))
_PER = r"(?: per |\s?/\s?)"
_FORMS = (
    re.compile(rf"({_MASS}) CO2{_PER}({_AREA})(?:(?:{_PER}| and per | and | )({_TIME}))?"),
    re.compile(rf"({_MASS}) CO2 ({_AREA})-1(?: ({_TIME})-1)?"),
    re.compile(rf"({_MASS}) CO2 (m|km)-2(?: ({_TIME})-1)?"),
)
_SPELLING = str.maketrans({
    "²": "2", "₂": "2", "⁻": "-", "¹": "1", "·": " ", "*": " ", "^": "", "(": "", ")": "",
    "−": "-",
})  # fmt: skip


@dataclass(frozen=True)
class RateUnit:
    """Unit of a coefficient.

    Attributes:
        text: as it was written.
        t_per_m2: tonnes of CO2 that one unit is on a square metre; None where it is relative.
        time: ``year``, ``day``, or empty where the unit holds no time.
    """

    text: str
    t_per_m2: float | None = None
    time: str = ""

    @property
    def total(self) -> str:
        """Unit of a sum over an area."""
        if self.t_per_m2 is None:
            return "m² of full potential"
        return f"t CO2 per {self.time}" if self.time else "t CO2"

    @property
    def total_per_m2(self) -> float:
        """What one unit on a square metre adds to the sum, in units of :attr:`total`."""
        return 1.0 if self.t_per_m2 is None else self.t_per_m2


def parse_unit(text: str) -> RateUnit:
    """``relative``, or a mass of CO2 per area, with or without a time.

    Raises:
        ValueError: anything else; says what is understood.
    """
    plain = " ".join(text.translate(_SPELLING).split())
    if plain == "relative":
        return RateUnit(text)
    for form in _FORMS:
        found = form.fullmatch(plain)
        if found is not None:
            mass, area, time = found.groups()
            area_m2 = _AREAS_M2[area if area in _AREAS_M2 else f"{area}2"]
            return RateUnit(text, _MASSES_T[mass] / area_m2, _TIMES.get(time or "", ""))
    carbon = ""
    if re.search(r"\bC\b", plain):
        carbon = "; a mass of carbon is 12/44 of that of its CO2: multiply values by 44/12"
    raise ValueError(
        f"'{text}' is no unit of uptake, expected relative, or a mass of CO2 per area, with or "
        "without a time, e.g. t CO2 per ha and year, kg CO2 m-2 a-1, t CO2/ha (masses: "
        f"{', '.join(_MASSES_T)}; areas: {', '.join(_AREAS_M2)}; times: {', '.join(_TIMES)})"
        + carbon
    )


class Uncertainty(Document):
    """How far a coefficient may be off; give ``sd`` or ``interval95``.

    Attributes:
        kind: ``absolute`` (in the file's unit), ``relative`` (parts of the value), or ``unknown``,
            which must be said and leaves the interval of the uptake unknown.
        sd: standard deviation.
        interval95: 95 % interval around the value; of kind relative, as factors, e.g. [0.7, 1.4].
    """

    kind: Literal["absolute", "relative", "unknown"]
    sd: Annotated[float, pydantic.Field(ge=0)] | None = None
    interval95: Annotated[list[float], pydantic.Field(min_length=2, max_length=2)] | None = None

    @pydantic.model_validator(mode="after")
    def _one_way(self) -> Uncertainty:
        given = [key for key in ("sd", "interval95") if getattr(self, key) is not None]
        if self.kind == "unknown" and given:
            raise ValueError(f"kind is unknown and {' and '.join(given)} is given; say which kind")
        if self.kind != "unknown" and len(given) != 1:
            raise ValueError(
                f"give one of sd, interval95; received {' and '.join(given) or 'none'} (or kind: "
                "unknown)"
            )
        return self


class Coefficient(Document):
    """What one class takes up.

    Attributes:
        value: in the file's unit, at least 0.
        uncertainty: of the value, independent of that of the other classes.
        source: where the value is from: a paper, a laboratory, a measurement.
    """

    value: float = pydantic.Field(ge=0)
    uncertainty: Uncertainty
    source: str = pydantic.Field(min_length=3)

    @pydantic.model_validator(mode="after")
    def _inside(self) -> Coefficient:
        bounds = self.uncertainty.interval95
        if bounds is not None:
            middle = self.value if self.uncertainty.kind == "absolute" else 1.0
            if not 0 <= bounds[0] <= middle <= bounds[1]:
                raise ValueError(
                    f"interval95 must be [low, high] with 0 <= low <= {middle:g} <= high, received "
                    f"{bounds}"
                )
        return self

    @property
    def sd(self) -> float | None:
        """Standard deviation in the file's unit, a quarter of an interval or so; None: unknown."""
        spec = self.uncertainty
        if spec.kind == "unknown":
            return None
        scale = self.value if spec.kind == "relative" else 1.0
        if spec.sd is not None:
            return scale * spec.sd
        assert spec.interval95 is not None
        return scale * (spec.interval95[1] - spec.interval95[0]) / (2 * NORMAL_95)


class Coefficients(Document):
    """A file of coefficients.

    Attributes:
        title: what they are, in a line.
        unit: see :func:`parse_unit`; ``relative`` is parts of a full potential, 0-1.
        coefficients: class name -> coefficient.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    title: str = ""
    unit: str
    coefficients: dict[str, Coefficient] = pydantic.Field(min_length=1)

    @pydantic.field_validator("unit")
    @classmethod
    def _understood(cls, value: str) -> str:
        parse_unit(value)
        return value

    @pydantic.model_validator(mode="after")
    def _parts_of_a_whole(self) -> Coefficients:
        if self.rate_unit.t_per_m2 is None:
            for name, item in self.coefficients.items():
                if item.value > 1:
                    raise ValueError(
                        f"coefficients.{name}.value is {item.value:g}, and the unit is relative: "
                        "parts of a full potential, 0 to 1; give the values' own unit"
                    )
        return self

    @property
    def rate_unit(self) -> RateUnit:
        """The unit, parsed."""
        return parse_unit(self.unit)

    def require_classes(self, valid: list[str], source: Path, where: Path) -> None:
        """Raise unless every coefficient is that of a class of the map.

        Raises:
            InputError: names each one that is not, the nearest class, and all.
        """
        unknown = [name for name in self.coefficients if name not in valid]
        if unknown:
            named = ", ".join(f"'{name}'{nearest(name, valid)}" for name in unknown)
            raise InputError(
                f"{source} has coefficients for classes that are not in {where}: {named} (valid: "
                f"{', '.join(valid)})"
            )


def load_coefficients(path: Path) -> Coefficients:
    """Read a file of coefficients.

    Raises:
        InputError: missing, not text.
        RecipeError: every fault, each with its line.
    """
    return load_document(Coefficients, path)
