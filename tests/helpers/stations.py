"""Metadata of a made-up tide station, as NOAA's service gives it."""

from __future__ import annotations

from typing import Any

STATION: dict[str, Any] = {
    "stations": [
        {
            "name": "Made Up", "id": "1", "lat": 47.6, "lng": -122.3,
            "harmonicConstituents": {
                "units": "feet",
                "HarmonicConstituents": [
                    {"amplitude": 3.5, "phase_GMT": 10.8, "speed": 28.984104},
                    {"amplitude": 2.7, "phase_GMT": 277.0, "speed": 15.041069},
                ],
            },
            "datums": {
                "units": "feet",
                "datums": [
                    {"name": "STND", "value": 0.0}, {"name": "MSL", "value": 6.6},
                    {"name": "MHHW", "value": 11.4},
                ],
            },
        }
    ]
}  # fmt: skip
