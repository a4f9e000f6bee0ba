"""What a mapped site takes up: class areas x coefficients, with an interval where it can be told.

Two estimates of each class's area stand beside each other. *By the map*: the sum of probabilities
over the ground (what is expected, if the probabilities are true), or pixels counted where the map
holds classes alone. *Adjusted*: mapped classes corrected by the confusion matrix
(:mod:`edgekd.report.adjusted`). The first rests on the model's opinion of itself, the second on
labels, so the total is the adjusted one wherever there is a matrix, and the interval is known only
then. The map of rates is by probabilities: a matrix says how much is wrong, not where.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

import edgekd
from edgekd.contracts.coefficients import Coefficients
from edgekd.errors import InputError
from edgekd.report.adjusted import (
    FEW,
    AdjustedAreas,
    FloatArray,
    Reference,
)
from edgekd.report.classmap import ClassMap

#: part of the truth that intervals hold
LEVEL = 0.95


@dataclass(frozen=True)
class MapAreas:
    """What a map adds up to.

    Attributes:
        mapped_m2: pixels of each class, ``(K,)`` m².
        expected_m2: sum of each class's probabilities over the ground, likewise; of a map of
            classes alone the same.
        valid_px: pixels with data.
        rule: where the areas of pixels are from.
    """

    mapped_m2: FloatArray
    expected_m2: FloatArray
    valid_px: int
    rule: str


@dataclass(frozen=True)
class Bounds:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class ClassUptake:
    """What is known of one class.

    Attributes:
        mapped_m2: pixels of this class, m².
        expected_m2: sum of its probabilities over the ground, m²; None where the map has none.
        adjusted_m2: corrected by the confusion matrix, m²; None without one.
        adjusted_interval: of that; None where it is not known.
        coefficient: in the file's unit; 0 where the file does not name the class.
        named: whether it does.
        coefficient_sd: standard deviation, same unit; None where it is unknown.
        source: of the coefficient.
        uptake: in the unit of the total.
        uptake_interval: None where it is not known.
    """

    name: str
    index: int
    mapped_m2: float
    expected_m2: float | None
    adjusted_m2: float | None
    adjusted_interval: Bounds | None
    coefficient: float
    named: bool
    coefficient_sd: float | None
    source: str | None
    uptake: float
    uptake_interval: Bounds | None


@dataclass(frozen=True)
class Total:
    """The site's uptake.

    Attributes:
        uptake: in ``unit``; by the areas that ``by`` names: ``adjusted``, ``probabilities`` or
            ``mapped``.
        interval: None where it is not known.
        interval_of_areas: what the map's mistakes alone leave open; None without a matrix.
        by_map: uptake by the map alone: probabilities, or pixels where it has none.
    """

    uptake: float
    unit: str
    by: str
    interval: Bounds | None
    interval_of_areas: Bounds | None
    by_map: float


@dataclass(frozen=True)
class Carbonation:
    """The result; all of it is an estimate.

    Attributes:
        map: file, what it holds, size and what it says of its model.
        coefficients: file, hash, title and unit.
        confusion: what the matrix is from; None without one.
        area_rule: where the areas of pixels are from.
        interval: level, whether it is known, and why not or how it was made.
        assumes: what must hold for the figures to.
        notes: what to look at.
        outputs: files that were written.
    """

    map: dict[str, Any]
    coefficients: dict[str, Any]
    confusion: dict[str, Any] | None
    area_rule: str
    area_m2: float
    classes: list[ClassUptake]
    total: Total
    interval: dict[str, Any]
    assumes: list[str]
    notes: list[str]
    outputs: dict[str, str] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {"edgekd": edgekd.__version__, "what": "estimate", **asdict(self)}


def estimate(
    chart: ClassMap, sums: MapAreas, spec: Coefficients, reference: Reference | None
) -> Carbonation:
    """Put together what is known.

    Args:
        chart: the map.
        sums: what it adds up to.
        spec: coefficients, of its classes.
        reference: its mistakes; without them nothing has an interval.

    Raises:
        InputError: the mistakes are of classes that are not mapped here.
    """
    names = [name for _, name in chart.classes]
    unit = spec.rate_unit
    found = [spec.coefficients.get(name) for name in names]
    weights = np.array([item.value if item else 0.0 for item in found]) * unit.total_per_m2
    sds = [item.sd if item else 0.0 for item in found]
    unknown = [name for name, sd in zip(names, sds, strict=True) if sd is None]
    spreads = np.array([sd or 0.0 for sd in sds]) * unit.total_per_m2
    adjusted = None
    if reference is not None:
        try:
            adjusted = AdjustedAreas(sums.mapped_m2, reference)
        except ValueError as err:
            raise InputError(
                f"{reference.about['file']} says nothing of the classes that "
                f"{chart.raster.path} holds: fewer than two of its {reference.independent} were "
                "mapped as any of them; evaluate on images like the scene"
            ) from err
    areas = sums.expected_m2 if adjusted is None else adjusted.areas_m2
    rows = []
    for number, (index, name) in enumerate(chart.classes):
        item, one = found[number], np.eye(len(names))[number]
        area_interval = uptake_interval = None
        if adjusted is not None:
            total_m2 = float(sums.mapped_m2.sum())
            area_interval = _bounds(adjusted.sum(one).interval(), total_m2)
            if sds[number] is not None:
                figure = adjusted.sum(weights * one, spreads * one)
                uptake_interval = _bounds(figure.interval())
        rows.append(
            ClassUptake(
                name=name, index=index, mapped_m2=float(sums.mapped_m2[number]),
                expected_m2=float(sums.expected_m2[number]) if chart.soft else None,
                adjusted_m2=None if adjusted is None else float(adjusted.areas_m2[number]),
                adjusted_interval=area_interval, coefficient=item.value if item else 0.0,
                named=item is not None, coefficient_sd=sds[number],
                source=item.source if item else None,
                uptake=float(weights[number] * areas[number]), uptake_interval=uptake_interval,
            )
        )  # fmt: skip
    total = Total(
        uptake=float(weights @ areas),
        unit=unit.total,
        by="adjusted" if adjusted else "probabilities" if chart.soft else "mapped",
        interval=None
        if adjusted is None or unknown
        else _bounds(adjusted.sum(weights, spreads).interval()),
        interval_of_areas=None
        if adjusted is None
        else _bounds(adjusted.sum(weights).interval(), float(weights.max() * areas.sum())),
        by_map=float(weights @ sums.expected_m2),
    )
    raster = chart.raster
    return Carbonation(
        map={
            "file": str(raster.path),
            "holds": "probabilities" if chart.soft else "classes",
            "width": raster.width,
            "height": raster.height,
            "crs": None if raster.crs is None else str(raster.crs),
            "pixels_valid": sums.valid_px,
            "pixels_nodata": raster.width * raster.height - sums.valid_px,
            **chart.model,
        },
        coefficients={"title": spec.title, "unit": spec.unit},
        confusion=None if reference is None else reference.about,
        area_rule=sums.rule,
        area_m2=float(sums.mapped_m2.sum()),
        classes=rows,
        total=total,
        interval=_interval(reference, unknown),
        assumes=_assumes(chart, reference),
        notes=_notes(chart, reference, adjusted, total, names),
    )  # fmt: skip


def _bounds(pair: tuple[float, float], most: float = math.inf) -> Bounds:
    """An interval without what cannot be: less than nothing, more than there is."""
    return Bounds(max(pair[0], 0.0), min(pair[1], most))


def _interval(reference: Reference | None, unknown: list[str]) -> dict[str, Any]:
    if reference is None:
        return {
            "level": LEVEL,
            "known": False,
            "reason": "no confusion matrix was given, so nothing tells how wrong the map is "
            "(--confusion, from edgekd eval -o)",
        }
    by_samples = reference.independent == "samples"
    how = (
        f"leaving out each of {len(reference.counts)} samples in turn (jackknife), Student's t"
        if by_samples
        else "Olofsson et al. 2014, equation 10, each labelled pixel drawn by itself, as said "
        "(--independent pixels)"
    )
    if unknown:
        return {
            "level": LEVEL,
            "known": False,
            "reason": f"the uncertainty of the coefficient of {', '.join(unknown)} is unknown; "
            "what the map's mistakes alone leave open is known",
            "areas": how,
        }
    return {
        "level": LEVEL,
        "known": True,
        "areas": how,
        "coefficients": "their standard deviations, independent of the areas and of each other; "
        "variance of the products in closed form",
    }


def _assumes(chart: ClassMap, reference: Reference | None) -> list[str]:
    assumed = ["a coefficient holds for every square metre of its class, whatever its neighbours"]
    if reference is None:
        assumed.append(
            "the probabilities are true: of all pixels with 0.7, 7 in 10 are of the class"
            if chart.soft
            else "the map makes no mistakes"
        )
        return assumed
    assumed.append(
        "what was mapped as a class is truly each other class as often here as in the evaluated "
        f"split ({reference.about.get('data')}, {reference.about.get('split')}); how much of each "
        "class is mapped may differ"
    )
    assumed.append(
        "the evaluated samples lie apart: neighbours of one scene are one sample"
        if reference.independent == "samples"
        else f"each of the {reference.about['units']} labelled pixels was chosen by chance, by "
        "itself: pixels of one image are mistaken together, and would give an interval many times "
        "too narrow"
    )
    return assumed


def _notes(
    chart: ClassMap,
    reference: Reference | None,
    adjusted: AdjustedAreas | None,
    total: Total,
    names: list[str],
) -> list[str]:
    notes = []
    if "simulated" in chart.model:
        notes.append("SIMULATED: the scene was computed, not measured, and so is what follows")
    if not chart.soft:
        notes.append(
            "the map holds classes alone: each pixel counts as its class with probability 1 (give "
            "what edgekd run --probabilities wrote)"
        )
    if reference is None or adjusted is None:
        return notes
    evaluated = reference.about.get("model_sha256")
    made_by = chart.model.get("edgekd_model_sha256")
    what = reference.about.get("what")
    if what != "bundle":
        notes.append(
            f"the confusion matrix is of a {what or 'model of an unknown kind'}, not of the bundle "
            "that made the map; its mistakes may be others: edgekd eval BUNDLE --data SET -o FILE"
        )
    elif None is not made_by != evaluated:
        notes.append(
            f"the confusion matrix is of another model file ({str(evaluated)[:12]}) than the map "
            f"({str(made_by)[:12]}); its mistakes may be others"
        )

    split = reference.about.get("split")
    if split in ("train", "all"):
        notes.append(
            f"the confusion matrix is of split {split}: where the model learned from those labels "
            "it makes fewer mistakes than elsewhere, and the areas are adjusted by too little"
        )

    def listed(numbers: list[int]) -> str:
        return ", ".join(names[number] for number in numbers)

    kind = reference.independent
    if adjusted.unseen:
        notes.append(
            f"fewer than two {kind} of the confusion matrix were mapped as "
            f"{listed(adjusted.unseen)}: its area stands as mapped, and the interval holds "
            "whatever it may truly be"
        )
    if adjusted.few:
        notes.append(
            f"fewer than {FEW[kind]} {kind} tell how often {listed(adjusted.few)} is mistaken: the "
            "interval may be too narrow"
        )
    if adjusted.faultless:
        notes.append(
            f"no mistake was seen where the map says {listed(adjusted.faultless)}: its error rate "
            "counts as 0"
        )
    bounds = total.interval or total.interval_of_areas
    if bounds is not None and not bounds.low <= total.by_map <= bounds.high:
        notes.append(
            f"the map alone ({'probabilities' if chart.soft else 'pixels'}) gives "
            f"{total.by_map:.4g} {total.unit}, outside the interval of the adjusted total: "
            "it is not calibrated for this; the adjusted one stands"
        )
    return notes


def table_text(result: Carbonation) -> str:
    """As CSV: a line for each class and one for all; empty where something is not known."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([
        "class", "mapped_m2", "expected_m2", "adjusted_m2", "adjusted_low_m2", "adjusted_high_m2",
        "coefficient", "coefficient_sd", "coefficient_unit", "uptake", "uptake_low", "uptake_high",
        "uptake_unit",
    ])  # fmt: skip
    unit, total = result.coefficients["unit"], result.total

    def pair(bounds: Bounds | None) -> list[float | None]:
        return [None, None] if bounds is None else [bounds.low, bounds.high]

    for item in result.classes:
        writer.writerow([
            item.name, item.mapped_m2, item.expected_m2, item.adjusted_m2,
            *pair(item.adjusted_interval), item.coefficient, item.coefficient_sd, unit,
            item.uptake, *pair(item.uptake_interval), total.unit,
        ])  # fmt: skip
    area = result.area_m2
    expected = area if result.map["holds"] == "probabilities" else None
    adjusted = None if result.confusion is None else area
    writer.writerow([
        "total", area, expected, adjusted, None, None, None, None, unit, total.uptake,
        *pair(total.interval), total.unit,
    ])  # fmt: skip
    return stream.getvalue()
