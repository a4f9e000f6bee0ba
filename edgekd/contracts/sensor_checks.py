"""What the values of a set say against it: one scene twice, other units, a camera of one grey."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.sensor_scenes import RawScene
from edgekd.contracts.sensors import Sensors
from edgekd.errors import DatasetError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
#: scenes of one sensor differ by less between night and snow
_OTHER_UNIT = 30.0
#: a reading differs by less from the brightest tenth of its scene
_NO_READING = 1e4
#: grey levels of 255 between the 1st and 99th percentile of a picture that shows anything
_LEAST_LEVELS = 4


def check_values(scenes: Sequence[RawScene], sensors: Sensors, file: Path) -> None:
    """Raise where the values of the files cannot all be what they are said to be.

    Raises:
        DatasetError: two scenes with the same values, spectra of several units in one set, or
            values that are no readings.
    """
    _check_twice(scenes, file)
    for name, spec in sensors.items():
        if spec.kind == "spectral" and spec.derive is None:
            _check_units(name, scenes, file)


def _check_twice(scenes: Sequence[RawScene], file: Path) -> None:
    seen: dict[str, tuple[str, str]] = {}
    for scene in scenes:
        for name, array in scene.arrays.items():
            values = array.values
            if not np.nanmin(values, initial=np.inf) < np.nanmax(values, initial=-np.inf):
                continue  # flat ground may well be the same
            content = hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()
            key = f"{name} {values.shape} {content}"
            if key in seen:
                raise DatasetError(
                    f"scenes {seen[key][0]} and {scene.id} of {file} have the same values of "
                    f"{name}, so what is learned from the one would be measured on the other; "
                    "leave one of them out"
                )
            seen[key] = (scene.id, name)


def _check_units(name: str, scenes: Sequence[RawScene], file: Path) -> None:
    high: dict[str, float] = {}
    for scene in scenes:
        if name not in scene.arrays:
            continue
        values = np.abs(scene.arrays[name].values[:, :: _step(scene), :: _step(scene)])
        known = values[np.isfinite(values)]
        if not known.size:
            continue
        bright = float(np.percentile(known, 90))
        every = scene.arrays[name].values
        top = max(float(np.nanmax(every)), -float(np.nanmin(every)))
        if bright > 0 and top > _NO_READING * bright:
            raise DatasetError(
                f"scene {scene.id} of {file} has values of {name} up to {top:.4g}, and nine in ten "
                f"are below {bright:.4g}: those are no readings; say which value means no data: "
                "nodata beside its file"
            )
        if bright > 0:
            high[scene.id] = bright
    if not high:
        return
    dark, light = min(high, key=high.__getitem__), max(high, key=high.__getitem__)
    if high[light] > _OTHER_UNIT * high[dark]:
        raise DatasetError(
            f"scenes of {file} have {name} in several units: nine in ten values are below "
            f"{high[dark]:.4g} in {dark}, and below {high[light]:.4g} in {light}; give a scale "
            "beside the files of one of them"
        )


def _step(scene: RawScene) -> int:
    """Every so many rows and columns, so that some 100,000 pixels are looked at."""
    height, width = scene.size
    return max(1, int((height * width / 1e5) ** 0.5))


def check_picture(
    name: str,
    planes: Mapping[str, FloatArray],
    known: Mapping[str, BoolArray],
    bounds: tuple[float, float],
    before: tuple[float, float],
    file: Path,
) -> None:
    """Raise where a sensor's range leaves no picture.

    Args:
        name: of the sensor.
        planes: scene -> ``(C, H, W)``, 0-255.
        known: scene -> ``(H, W)``, the pixels that count.
        bounds: what became 0 and 255.
        before: the lowest and highest value that the files had.

    Raises:
        DatasetError: nearly all pixels are of one grey.
    """
    values = [planes[scene][:, mask] for scene, mask in known.items() if scene in planes]
    every = np.concatenate(values, axis=1) if values else np.zeros((1, 0), dtype=np.float32)
    if not every.shape[1]:
        return
    low, high = np.percentile(every, (1, 99), axis=1)
    if float((high - low).max()) < _LEAST_LEVELS:
        raise DatasetError(
            f"{name} of {file} has values from {before[0]:.6g} to {before[1]:.6g}, of which the "
            f"range [{bounds[0]:g}, {bounds[1]:g}] leaves one grey, {low.min():g} to "
            f"{high.max():g} of 255; write the range of the values into the recipe: "
            f"sensors.{name}.range, or leave it out"
        )
