"""What heights of water are above: the name of a datum, which travels with every level.

A level of 1.2 m is a flood above MHHW and ebb above MLLW. Names are those of NOAA
(tidesandcurrents.noaa.gov/datum_options.html); others (NAP, ODN) are taken as they are written, in
capitals, so that the same name means the same datum.
"""

from __future__ import annotations

import re
from typing import Annotated

import pydantic

#: the same datum under the two names that NOAA's data and metadata services have for it
_ALIASES = {"NAVD": "NAVD88", "IGLD": "IGLD85", "NGVD": "NGVD29"}
#: letters, digits, ``_``, ``+``, ``-`` and ``.``, at most 32
_NAME = "[A-Za-z0-9][A-Za-z0-9_+.-]{0,31}"


def datum_name(datum: str) -> str:
    """The one name of a datum that has several: NAVD is NAVD88, IGLD is IGLD85."""
    name = datum.strip().upper()
    return _ALIASES.get(name, name)


def _named(datum: str) -> str:
    name = datum_name(datum)
    if not re.fullmatch(_NAME, name):
        raise ValueError(
            f"'{datum[:40]}' is no name of a datum; expected e.g. MLLW, MHHW or NAVD88"
        )
    return name


#: name of a datum in a file
Datum = Annotated[
    str,
    pydantic.AfterValidator(_named),
    pydantic.WithJsonSchema({"type": "string", "pattern": f"^{_NAME}$"}),
]


def differ(one: str | None, other: str | None) -> bool:
    """Whether two datums are known to differ; None is one that nobody said."""
    return one is not None and other is not None and datum_name(one) != datum_name(other)
