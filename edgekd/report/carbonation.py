"""What a mapped site takes up: map, coefficients and confusion matrix to table and map of rates.

Of the figures and their intervals see :mod:`edgekd.report.uptake`. The map of rates is by
probabilities and not adjusted: a confusion matrix says how much is wrong, not where.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import prepare_parent, publish_file, sha256_file
from edgekd.contracts.coefficients import Coefficients, RateUnit, load_coefficients
from edgekd.contracts.tensors import MAP_NODATA
from edgekd.errors import InputError, OutputError
from edgekd.report.adjusted import FloatArray, Independent, read_reference
from edgekd.report.classmap import ClassMap, Part
from edgekd.report.ratemap import Quantity, RateWriter, create_rate_map
from edgekd.report.uptake import Carbonation, MapAreas, estimate, table_text
from edgekd.runtime.maps import PRODUCT_TAG, require_map_place

Progress = Callable[[int, int], None]


def carbonation(
    path: Path,
    coefficients: Path,
    *,
    confusion: Path | None = None,
    independent: Independent = "samples",
    gsd_m: float | None = None,
    output: Path | None = None,
    table: Path | None = None,
    progress: Progress | None = None,
) -> Carbonation:
    """Estimate what a mapped site takes up; memory does not depend on the map's size.

    Args:
        path: map of probabilities, or of classes, as ``edgekd run`` writes them.
        coefficients: YAML, see :class:`~edgekd.contracts.coefficients.Coefficients`.
        confusion: JSON of ``edgekd eval -o``, of the model that made the map.
        independent: what was drawn by itself for it, see
            :func:`~edgekd.report.adjusted.read_reference`.
        gsd_m: side of a pixel on the ground, m, for a map that has no place.
        output: GeoTIFF of the rate of each pixel to write, float32.
        table: CSV to write.
        progress: called with (rows done, rows).

    Raises:
        InputError: something that was given cannot be used, or the map holds no data.
        OutputError: a result cannot be written.
    """
    spec = load_coefficients(coefficients)
    with ClassMap(path) as chart, contextlib.ExitStack() as stack:
        spec.require_classes([name for _, name in chart.classes], coefficients, path)
        reference = None
        if confusion is not None:
            reference = read_reference(confusion, chart.classes, path, independent)
        areas_m2, rule = chart.areas_m2(gsd_m)
        inputs = [item for item in (path, coefficients, confusion) if item is not None]
        _require_places(output, table, inputs)
        place = None if table is None else stack.enter_context(publish_file(table))
        writer = None
        if output is not None:
            quantity = _quantity(chart, coefficients, spec.rate_unit)
            writer = stack.enter_context(create_rate_map(output, quantity, chart.raster))
        areas = _add_up(chart, spec, areas_m2, rule, writer, progress)
        result = estimate(chart, areas, spec, reference)
        result = replace(
            result,
            coefficients={
                "file": str(coefficients), "sha256": sha256_file(coefficients),
                **result.coefficients,
            },
            outputs={
                key: str(item)
                for key, item in (("rates", output), ("table", table))
                if item is not None
            },
        )  # fmt: skip
        if place is not None:
            place.write_text(table_text(result), encoding="utf-8")
        return result


def _require_places(output: Path | None, table: Path | None, inputs: list[Path]) -> None:
    if output is not None:
        require_map_place(output, None)
    if table is not None and table.suffix.lower() != ".csv":
        raise OutputError(f"the table is CSV: give a name that ends in .csv, received {table}")
    for place in (output, table):
        if place is None:
            continue
        if place.is_dir():
            raise OutputError(f"{place} is a folder; give the name of a file to write")
        if any(place.exists() and place.samefile(item) for item in inputs):
            raise OutputError(f"{place} is one of the inputs; choose another file")
        prepare_parent(place)


def _quantity(chart: ClassMap, coefficients: Path, unit: RateUnit) -> Quantity:
    relative = unit.t_per_m2 is None
    rule = (
        "sum of class probabilities x coefficients"
        if chart.soft
        else "coefficient of each pixel's class"
    )
    return Quantity(
        "carbonation potential" if relative else "carbonation rate",
        "1" if relative else unit.text,
        {
            PRODUCT_TAG: "carbonation",
            "EDGEKD_UNIT": unit.text,
            "EDGEKD_RULE": f"estimate: {rule}; not adjusted for the map's mistakes",
            "EDGEKD_COEFFICIENTS_SHA256": sha256_file(coefficients),
            **{key.upper(): value for key, value in chart.model.items()},
        },
    )


def _add_up(
    chart: ClassMap,
    spec: Coefficients,
    areas_m2: FloatArray,
    rule: str,
    writer: RateWriter | None,
    progress: Progress | None,
) -> MapAreas:
    """One pass over the map: areas of classes, and the map of rates where somebody wants it."""
    names = [name for _, name in chart.classes]
    found = [spec.coefficients.get(name) for name in names]
    rates = np.array([item.value if item else 0.0 for item in found])
    mapped_m2, expected_m2, valid_px = np.zeros(len(names)), np.zeros(len(names)), 0
    for part in chart.parts():
        rows = areas_m2[part.window.y0 : part.window.y1]
        counts = np.stack([np.bincount(row, minlength=256) for row in part.classes])
        mapped_m2 += rows @ counts[:, : len(names)]
        valid_px += int(counts[:, :MAP_NODATA].sum())
        if part.codes is None:
            expected_m2 = mapped_m2
        else:
            expected_m2 += rows @ part.chances()
        if writer is not None:
            writer.write(part.window, _rates(part, rates))
        if progress is not None and part.window.x1 == chart.raster.width:
            progress(part.window.y1, chart.raster.height)
    if not valid_px:
        raise InputError(
            f"{chart.raster.path} holds no pixel with a class, so there is nothing to add up; was "
            "the scene without data?"
        )
    return MapAreas(mapped_m2, expected_m2, valid_px, rule)


def _rates(part: Part, rates: FloatArray) -> npt.NDArray[np.float32]:
    """Rate of each pixel ``(h, w)``, NaN where no data is."""
    if part.codes is None:
        table = np.full(256, np.nan, np.float32)
        table[: len(rates)] = rates
        return np.asarray(table[part.classes], np.float32)
    rate = np.zeros(part.classes.shape, np.float32)
    for number in np.flatnonzero(rates):
        rate += np.float32(rates[number]) * part.chance(int(number))
    rate[part.classes == MAP_NODATA] = np.nan
    return rate
