"""Water levels of a year, hour by hour, and weather: a real tide, a made-up surge.

The tide is the sum of a station's harmonic constituents as NOAA publishes them (amplitude, phase
against Greenwich, speed). Equilibrium arguments and nodal corrections are left out: the range and
its fortnightly and yearly course are the station's, but high water comes at another hour than in
the almanac, and amplitudes do not change over 18.6 years (4 % for M2). Surge, waves, wind and
pressure are made up around storms: pressure falls, the sea rises by 1 cm per hPa (inverse
barometer) and by the wind's stress, all within two days.
"""

from __future__ import annotations

import datetime
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import read_text
from edgekd.contracts.station import UNITS_M, read_station
from edgekd.errors import InputError

FloatArray = npt.NDArray[np.float64]

#: a year, and the month before it that its first days are judged by
DAYS, LEAD_DAYS = 365, 31
HOURS: Final = (LEAD_DAYS + DAYS) * 24
#: phases are counted from this moment
_EPOCH: Final = datetime.datetime(2000, 1, 1)
_SURGE_HOURS, _SURGE_SD_M = 36.0, 0.07
_NORMAL_HPA: Final = 1015.0
#: the largest amplitude of a constituent anywhere is some 4 m (M2 in the Bay of Fundy)
_MOST_M: Final = 6.0


@dataclass(frozen=True)
class Tide:
    """A station's harmonic constituents.

    Attributes:
        station: its name and number.
        amplitude_m, phase_deg, speed_deg_h: ``(constituents,)``.
        mhhw_m: mean higher high water above mean sea level.
    """

    station: str
    amplitude_m: FloatArray
    phase_deg: FloatArray
    speed_deg_h: FloatArray
    mhhw_m: float

    def levels_m(self, hours: FloatArray) -> FloatArray:
        """Above mean sea level at hours since the epoch, ``(n,)``."""
        angle = np.radians(self.speed_deg_h[None] * hours[:, None] - self.phase_deg[None])
        found: FloatArray = (self.amplitude_m * np.cos(angle)).sum(1)
        return found


@dataclass(frozen=True)
class Year:
    """What a station measures in a month and a year, hourly, ``(HOURS,)``, NaN for gaps.

    Attributes:
        start: first day of the month before; the year begins :data:`LEAD_DAYS` later.
        level_m: above MHHW.
        wave_height_m, wave_period_s, wind_m_s, gust_m_s, pressure_hpa, water_c: weather.
        highest_m: of the year's levels, before any was lost: what the truth is made of.
    """

    start: datetime.date
    level_m: FloatArray
    wave_height_m: FloatArray
    wave_period_s: FloatArray
    wind_m_s: FloatArray
    gust_m_s: FloatArray
    pressure_hpa: FloatArray
    water_c: FloatArray
    highest_m: float


def load_tide(path: Path) -> Tide:
    """The tide of a station, from the metadata of NOAA's service (``expand=harcon,datums``).

    Raises:
        InputError: not such a file, or it has no constituents, MHHW or MSL.
    """
    station = read_station(path)
    try:
        part = json.loads(read_text(path))["stations"][0]["harmonicConstituents"]
        scale = UNITS_M[part["units"]]
        rows = [
            (float(item["amplitude"]) * scale, float(item["phase_GMT"]), float(item["speed"]))
            for item in part["HarmonicConstituents"]
        ]
    except (KeyError, IndexError, TypeError, ValueError) as err:
        raise InputError(
            f"{path} holds no harmonic constituents ({type(err).__name__}: {err}); download it "
            "with expand=harcon,datums"
        ) from err
    if not rows:
        raise InputError(f"{path} holds no harmonic constituents: the station has no tide")
    for high, late, fast in rows:
        if not (0 <= high <= _MOST_M and -360 <= late <= 360 and 0 < fast < 360):
            raise InputError(
                f"{path} has a constituent of {high:g} m, {late:g} degrees and {fast:g} degrees an "
                f"hour, expected at most {_MOST_M:g} m, -360 to 360 and above 0 to 360"
            )
    amplitude, phase, speed = np.array(rows, dtype=np.float64).T
    above = station.height_m("MHHW") - station.height_m("MSL")
    most = float(amplitude.sum())
    if not 0.3 * above <= most <= 12 * above:
        raise InputError(
            f"{path}: its constituents add up to {most:.2f} m, and mean higher high water is "
            f"{above:.2f} m above mean sea level, so one of them is in another unit than it says"
        )
    return Tide(f"{station.name} ({station.id})", amplitude, phase, speed, above)


def make_year(
    random: np.random.Generator, tide: Tide, exposure: float, rise_m: float, part: float
) -> Year:
    """A year at a coast.

    Args:
        random: where storms come from.
        tide: of a real station.
        exposure: 0 to 1, how high storms drive the sea: peaks of some 0.2 to 2.5 m.
        rise_m: of the mean sea level since the heights were measured, m.
        part: of the tide's range; 1 as at the station.
    """
    start = datetime.date(2010, 1, 1) + datetime.timedelta(days=int(random.integers(0, 4000)))
    first = (datetime.datetime.combine(start, datetime.time()) - _EPOCH).total_seconds() / 3600
    hours = np.arange(HOURS, dtype=np.float64)
    day = (start.timetuple().tm_yday + hours / 24) / 365.25
    winter = 0.5 + 0.5 * np.cos(2 * np.pi * (day - 0.05))
    storm = np.zeros(HOURS)
    for _ in range(int(random.poisson(14))):
        at = float(random.uniform(0, HOURS))
        if random.random() > 0.25 + 0.75 * winter[int(at)]:
            continue
        width = random.uniform(8, 24)
        size = min(float(random.lognormal(-0.7, 0.6)), 2.5)
        storm = np.maximum(storm, size * np.exp(-0.5 * ((hours - at) / width) ** 2))
    restless = _red(random, 1.0, _SURGE_HOURS)
    pressure = _NORMAL_HPA + 4 * restless * (0.5 + winter) - 28 * storm
    barometer = (_NORMAL_HPA - pressure) / 100
    surge = barometer + _SURGE_SD_M * _red(random, 1.0, _SURGE_HOURS) + exposure * 1.6 * storm
    level = part * tide.levels_m(first + hours) - part * tide.mhhw_m + rise_m + surge
    wind = np.abs(4 + 2 * _red(random, 1.0, 12.0)) + 14 * storm
    waves = np.abs(0.5 + 0.2 * _red(random, 1.0, 24.0)) * (0.5 + winter) + 3.5 * exposure * storm
    period = 5 + 1.5 * waves + 0.5 * _red(random, 1.0, 24.0)
    water = 12 - 5 * np.cos(2 * np.pi * (day - 0.12)) + 0.5 * _red(random, 1.0, 120.0)
    highest = float(level[LEAD_DAYS * 24 :].max())
    gust = wind * 1.35 + 0.5 * np.abs(random.normal(size=HOURS))
    measured = {
        "level_m": level, "wave_height_m": waves, "wave_period_s": period, "wind_m_s": wind,
        "gust_m_s": gust, "pressure_hpa": pressure, "water_c": water,
    }  # fmt: skip
    for values in measured.values():
        noisy = values + random.normal(0, 0.01, HOURS) * (1 if values is level else 5)
        values[:] = noisy if values is level or values is water else np.maximum(noisy, 0)
        for _ in range(int(random.poisson(3))):  # an instrument that is silent for a while
            at = int(random.integers(0, HOURS))
            values[at : at + int(random.exponential(40)) + 1] = np.nan
    return Year(start=start, highest_m=highest, **measured)


def _red(random: np.random.Generator, deviation: float, hours: float) -> FloatArray:
    """Noise that remembers for some hours (first order autoregression)."""
    from scipy.signal import lfilter

    keep = float(np.exp(-1 / hours))
    noise = random.normal(0, deviation * np.sqrt(1 - keep**2), HOURS)
    found: FloatArray = lfilter([1.0], [1.0, -keep], noise)
    return found
