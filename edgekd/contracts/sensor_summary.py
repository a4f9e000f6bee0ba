"""What a sensor set holds, as rows for a person and values for a program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekd.contracts.blocks import BUFFER, PART_NAMES
from edgekd.contracts.schema import resolve_path
from edgekd.contracts.sensor_files import read_sensor
from edgekd.contracts.sensor_scenes import (
    SensorSetSpec,
    pixel_side_m,
    read_labels,
    require_files,
)
from edgekd.contracts.sensor_set import SensorSet

Table = tuple[list[str], list[list[str]]]
_HEAD = ["scene", "sensor", "bands", "pixels", "wavelengths", "gsd", "range"]
_LABELS = ["class", "train", "val", "test"]


def summarise(found: SensorSet) -> tuple[dict[str, Any], list[Table]]:
    """An open set: its scenes by sensors, and labels by class and part.

    Returns:
        JSON-ready values, and two tables (head, rows).
    """
    rows, scenes = [], []
    for name in found.scene_ids:
        scene = found.load(name)
        parts = {key: int((scene.parts == value).sum()) for key, value in PART_NAMES.items()}
        parts["unused"] = int((scene.parts == BUFFER).sum())
        sensors: dict[str, Any] = {}
        for sensor, spec in found.sensors.items():
            if sensor not in scene.sensors:
                rows.append([name, sensor, "missing", "", "", "", ""])
                continue
            values = scene.sensors[sensor]
            bands, height, width = values.shape
            left = f"{bands} of {spec.channels}" if bands != spec.channels else str(bands)
            nm = found.wavelengths_nm.get(sensor)
            low, high = float(values.min()), float(values.max())
            how = "" if spec.derive is None else f" (from {spec.derive.source})"
            rows.append(
                [name, sensor + how, left, f"{width}x{height}", _span(nm), f"{spec.gsd_m:g} m",
                 f"{low:.4g} to {high:.4g}"]
            )  # fmt: skip
            sensors[sensor] = {
                "bands": bands, "height_px": height, "width_px": width, "gsd_m": spec.gsd_m,
                "wavelengths_nm": None if nm is None else [float(value) for value in nm],
                "derived_from": None if spec.derive is None else spec.derive.source,
                "least": low, "most": high,
            }  # fmt: skip
        crs = None if scene.crs is None else str(scene.crs)
        scenes.append({"id": name, "crs": crs, "parts_px": parts, "sensors": sensors})
    counts = found.label_counts()
    labels = [
        [item.name, *(f"{counts[part][at]:,}" for part in PART_NAMES)]
        for at, item in enumerate(found.classes)
    ]
    payload = {
        **_said(found.spec),
        "sha256": found.digest,
        "scenes": scenes,
        "labels": {
            item.name: {part: counts[part][at] for part in PART_NAMES}
            for at, item in enumerate(found.classes)
        },
        "dropped": {
            name: [{"band": item.band, "nm": item.nm, "cause": item.cause, "text": item.text}
                   for item in bands]
            for name, bands in found.dropped.items()
        },
        "ranges": {name: list(values) for name, values in found.ranges.items()},
        "report": found.report,
    }  # fmt: skip
    return payload, [(_HEAD, rows), (_LABELS, labels)]


def summarise_files(spec: SensorSetSpec, file: Path) -> tuple[dict[str, Any], list[Table]]:
    """A set as its files have it, without a recipe: nothing is derived, left out or split.

    Raises:
        ImageError, DatasetError, InputError, EnvironmentLacksError: a file cannot be read, or its
            labels are not of the classes.
    """
    require_files(spec, file)
    base = file.resolve().parent
    rows, scenes = [], []
    counts: dict[str, npt.NDArray[np.int64]] = {}
    notes: list[str] = []
    for scene in spec.scenes:
        sensors: dict[str, Any] = {}
        for sensor, item in scene.files.items():
            found = read_sensor(resolve_path(item.file, base), item)
            bands, height, width = found.values.shape
            side = pixel_side_m(found)
            known = np.isfinite(found.values)
            low = float(found.values[known].min()) if known.any() else None
            high = float(found.values[known].max()) if known.any() else None
            rows.append(
                [scene.id, sensor, str(bands), f"{width}x{height}", _span(found.wavelengths_nm),
                 "" if side is None else f"{side:.4g} m",
                 "no data" if low is None else f"{low:.4g} to {high:.4g}"]
            )  # fmt: skip
            nm = found.wavelengths_nm
            notes += [f"{scene.id}: {text}" for text in found.notes]
            sensors[sensor] = {
                "bands": bands, "height_px": height, "width_px": width, "gsd_m": side,
                "wavelengths_nm": None if nm is None else [float(value) for value in nm],
                "without_data": float(1 - known.mean()), "least": low, "most": high,
                "crs": None if found.crs is None else str(found.crs),
            }  # fmt: skip
        split = scene.split or "no split"
        if scene.labels is not None:
            marks = read_labels(spec, scene.labels, base)
            found_here = np.bincount(marks.ravel(), minlength=256)[: len(spec.classes)]
            counts[split] = counts.get(split, np.zeros(len(spec.classes), np.int64)) + found_here
        scenes.append({"id": scene.id, "split": scene.split, "sensors": sensors})
    labels = [
        [item.name, *(f"{counts[split][at]:,}" for split in counts)]
        for at, item in enumerate(spec.classes)
    ]
    payload = {
        **_said(spec),
        "scenes": scenes,
        "labels": {
            item.name: {split: int(counts[split][at]) for split in counts}
            for at, item in enumerate(spec.classes)
        },
        "report": notes,
    }
    return payload, [(_HEAD, rows), (["class", *counts], labels)]


def _said(spec: SensorSetSpec) -> dict[str, Any]:
    return {
        "kind": "sensor set", "name": spec.name, "title": spec.title, "simulated": spec.simulated,
        "source": spec.source, "licence": spec.licence,
    }  # fmt: skip


def _span(nm: npt.NDArray[np.float64] | None) -> str:
    return "" if nm is None or not len(nm) else f"{nm[0]:.0f}-{nm[-1]:.0f} nm"
