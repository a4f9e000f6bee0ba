"""Bands of the sensors of a set: derived ones made, bad ones found, in the order of derivation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.blocks import TRAIN
from edgekd.contracts.coregistration import check_registration
from edgekd.contracts.sensor_scenes import RawScene
from edgekd.contracts.sensors import VISUAL, Sensors, SensorSpec
from edgekd.contracts.spectra import DroppedBand, band_runs, constants, find_bad, plan_mixing
from edgekd.errors import DatasetError

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
UInt8Array = npt.NDArray[np.uint8]


@dataclass
class Bands:
    """All bands of all scenes, and which of them are good.

    Attributes:
        sensors: of the recipe.
        planes: scene -> sensor -> ``(C, H, W)`` float32 with NaN, derived ones too; all bands.
        dropped: spectral sensor -> bad bands.
        wavelengths_nm: spectral sensor -> of the bands that are left.
        report: what was found, in words.
    """

    sensors: Sensors
    planes: dict[str, dict[str, FloatArray]]
    dropped: dict[str, list[DroppedBand]] = field(default_factory=dict)
    wavelengths_nm: dict[str, DoubleArray] = field(default_factory=dict)
    report: list[str] = field(default_factory=list)

    def kept(self, name: str) -> npt.NDArray[np.int64]:
        """Bands of a sensor that are left, counted from 0."""
        bad = [item.band - 1 for item in self.dropped.get(name, [])]
        return np.setdiff1d(np.arange(self.sensors[name].channels), bad)


def find_bands(
    raw: list[RawScene], parts: dict[str, UInt8Array], sensors: Sensors, base: Path
) -> Bands:
    """Derive what is derived and find bad bands, from training pixels alone.

    Both in one go, since a derived sensor must not rest on a bad band.

    Args:
        raw: the scenes.
        parts: scene -> part of every pixel.
        sensors: of the recipe.
        base: folder that a camera's file counts from.

    Raises:
        DatasetError: all bands of a sensor are bad, one that a derived sensor needs is, or a
            camera's image lies beside the spectral sensor's.
    """
    planes = {scene.id: {name: a.values for name, a in scene.arrays.items()} for scene in raw}
    bands = Bands(sensors, planes)
    full_nm: dict[str, DoubleArray] = {}
    unusable: dict[str, list[DroppedBand]] = {}
    for name in _ordered(sensors):
        spec = sensors[name]
        full_nm[name] = spec.wavelengths()
        if spec.derive is not None:
            source = spec.derive.source
            count = sensors[source].channels
            plan = plan_mixing(name, spec.derive, full_nm[source], count, unusable[source], base)
            if not len(full_nm[name]):
                full_nm[name] = plan.wavelengths_nm
            bands.report += plan.notes
            for found in planes.values():
                if source in found:
                    found[name] = plan(found[source])
        unusable[name] = _bad(bands, name, spec, raw, parts, full_nm[name])
        if spec.kind == "spectral":
            bands.wavelengths_nm[name] = full_nm[name][bands.kept(name)]
    _check_registration(bands, raw, full_nm, unusable)
    return bands


def _bad(
    bands: Bands,
    name: str,
    spec: SensorSpec,
    raw: list[RawScene],
    parts: dict[str, UInt8Array],
    nm: DoubleArray,
) -> list[DroppedBand]:
    """Enter the bands of a sensor that are dropped; those, and others that nothing may rest on."""
    having = [scene for scene in raw if name in bands.planes[scene.id]]
    training = [(bands.planes[scene.id][name], parts[scene.id] == TRAIN) for scene in having]
    marked = np.zeros(spec.channels, dtype=np.bool_)
    for scene in having:
        array = scene.arrays.get(name)
        if array is not None and array.good is not None:
            marked |= ~array.good
    dropped: list[DroppedBand] = []
    if spec.kind == "spectral":
        where = f"{len(training)} scene{'' if len(training) == 1 else 's'}"
        dropped = find_bad(spec.bad_bands, nm, training, marked, where)
        if len(dropped) == spec.channels:
            raise DatasetError(
                f"all {spec.channels} bands of {name} are bad, e.g. {dropped[0]}; correct the "
                f"data, or sensors.{name}.bad_bands of the recipe"
            )
        bands.dropped[name] = dropped
        rules = "" if spec.bad_bands is not None else " (the recipe has no bad_bands)"
        bands.report.append(
            f"{name}: {spec.channels - len(dropped)} of {spec.channels} bands left, "
            f"{len(dropped)} dropped{rules}"
        )
        bands.report += [f"{name}: dropped {text}" for text in band_runs(dropped)]
    flat = constants(training) if training else {}
    known = {item.band - 1 for item in dropped}
    kept = []
    for at, value in flat.items():
        if at not in known:
            says = f"constant, {value:g}," if np.isfinite(value) else "without data"
            kept.append(
                DroppedBand(
                    at + 1,
                    float(nm[at]) if len(nm) else None,
                    "constant" if np.isfinite(value) else "empty",
                    f"{says} in all training pixels",
                )
            )
    bands.report += [f"{name}: kept, and tells nothing: {text}" for text in band_runs(kept)]
    return sorted([*dropped, *kept], key=lambda item: item.band)


def _check_registration(
    bands: Bands,
    raw: list[RawScene],
    full_nm: dict[str, DoubleArray],
    unusable: dict[str, list[DroppedBand]],
) -> None:
    """Compare a camera's own file with what the first spectral sensor with files saw."""
    for scene in raw:
        names = [name for name in scene.arrays if bands.sensors[name].kind == "spectral"]
        if VISUAL in scene.arrays and names:
            found, first = bands.planes[scene.id], names[0]
            bad = {item.band - 1 for item in unusable[first]}
            bands.report.append(
                check_registration(
                    scene.id, found[VISUAL], found[first], full_nm[first], bad, first
                )
            )
    heights = [name for name, spec in bands.sensors.items() if spec.kind == "elevation"]
    if heights and any(name in scene.arrays for scene in raw for name in heights):
        bands.report.append(
            f"{', '.join(heights)}: on the others' grid by what the files say; whether the heights "
            "show the same ground is not checked"
        )


def _ordered(sensors: Sensors) -> Iterator[str]:
    """Names, each after the one that it is derived from."""
    done: set[str] = set()

    def visit(name: str) -> Iterator[str]:
        if name in done:
            return
        source = sensors[name].derive
        if source is not None:
            yield from visit(source.source)
        done.add(name)
        yield name

    for name in sensors:
        yield from visit(name)
