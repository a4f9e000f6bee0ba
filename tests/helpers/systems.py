"""A recipe with the sensors of a rover, and records of its student."""

from __future__ import annotations

from typing import Any

from edgekd.contracts.recipe import parse_recipe
from edgekd.contracts.system import SystemDeclared, declared_system
from edgekd.report.record import BenchmarkRecord
from edgekd.report.system import Bench, make_system
from tests.helpers.labelled import recipe_values

#: of the recipe, W
VISUAL_W, SPECTRAL_W, LIDAR_W, COMPUTING_W = 3.0, 22.5, 8.0, 60.0
TEACHER_W = VISUAL_W + SPECTRAL_W + LIDAR_W + COMPUTING_W
GSD_M, SURVEY_M2_PER_S = 0.1, 250.0


def system_recipe(**changes: Any) -> dict[str, Any]:
    """A recipe with camera, hyperspectral imager and LiDAR, all declared; ``changes`` replace
    top-level keys."""
    values: dict[str, Any] = {
        "name": "rover",
        "sensors": {
            "visual": {
                "kind": "image", "channels": 3, "gsd_m": GSD_M,
                "power": {"watts": VISUAL_W, "source": "data sheet of the camera"},
            },
            "spectral": {
                "kind": "spectral", "channels": 224, "gsd_m": GSD_M,
                "wavelengths_nm": {"first": 380, "last": 2500, "count": 224},
                "power": {"watts": SPECTRAL_W, "source": "data sheet of the imager"},
            },
            "lidar": {
                "kind": "elevation", "channels": 1, "gsd_m": GSD_M,
                "power": {"watts": LIDAR_W, "source": "a clamp meter, mean of a flight"},
            },
        },
        "teachers": [{
            "name": "efficientnet_lite", "variant": "lite0", "weights": "random",
            "sensors": ["visual", "spectral", "lidar"],
        }],
        "system": {
            "teacher_computing": {"watts": COMPUTING_W, "source": "AGX Orin at MAXN"},
            "survey_m2_per_s": SURVEY_M2_PER_S,
        },
    }  # fmt: skip
    return recipe_values(**(values | changes))


def declared(**changes: Any) -> SystemDeclared:
    """What :func:`system_recipe` declares, by the way that a bundle takes it."""
    recipe = parse_recipe(system_recipe(**changes), "a test").plain()
    found = declared_system(recipe, "a test")
    assert found is not None
    return found


def without_power(*names: str) -> dict[str, Any]:
    """The sensors of :func:`system_recipe`, some of them without declared power."""
    sensors: dict[str, Any] = system_recipe()["sensors"]
    return {
        name: {key: item for key, item in spec.items() if key != "power" or name not in names}
        for name, spec in sensors.items()
    }


def with_system(record: BenchmarkRecord, **changes: Any) -> BenchmarkRecord:
    """The record as ``bench`` writes it for a bundle of :func:`system_recipe`."""
    system = make_system(declared(**changes), Bench.of_record(record))
    plain = record.plain() | {"system": system.model_dump(mode="json")}
    return BenchmarkRecord.model_validate(plain)
