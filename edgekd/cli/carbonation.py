"""``edgekd carbonation``: what a mapped site takes up."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from edgekd.cli._common import PathArgument, emit, note, progress_bar, shared_options, table

if TYPE_CHECKING:
    from edgekd.report.uptake import Bounds, Carbonation

#: area from which on hectares are easier to read, m²
_HECTARES_FROM_M2 = 1e5


@click.command("carbonation")
@click.argument("chart", metavar="MAP", type=PathArgument)
@click.option("--coefficients", type=PathArgument, required=True, metavar="YAML",
              help="Uptake of each class: unit, value, uncertainty, source; "
              "e.g. engines/coefficients/carbonation.yaml.")  # fmt: skip
@click.option("--confusion", type=PathArgument, metavar="JSON",
              help="What edgekd eval -o wrote of the model: areas are adjusted by its mistakes, "
              "and get an interval.")  # fmt: skip
@click.option("--independent", type=click.Choice(["samples", "pixels"]),
              help="What of the confusion matrix was drawn by itself: the evaluated samples "
              "(default), or each pixel, where points were labelled by chance.")  # fmt: skip
@click.option("--gsd-m", type=click.FloatRange(min=0, min_open=True), metavar="M",
              help="Side of a pixel on the ground, for a map without a place.")  # fmt: skip
@click.option("-o", "--output", type=PathArgument, metavar="TIF",
              help="Rate of each pixel as float32, in the unit of the coefficients.")  # fmt: skip
@click.option("--table", "table_path", type=PathArgument, metavar="CSV",
              help="The table, unrounded.")  # fmt: skip
@shared_options
def command(
    chart: Path,
    coefficients: Path,
    confusion: Path | None,
    independent: Literal["samples", "pixels"] | None,
    gsd_m: float | None,
    output: Path | None,
    table_path: Path | None,
    as_json: bool,
) -> None:
    """Estimate what a site takes up from MAP: class probabilities x coefficients x area.

    MAP is what edgekd run --probabilities wrote; a class map will do, and counts each pixel as its
    class. The total goes by areas that are adjusted by the confusion matrix where there is one, and
    only then has an interval.
    """
    from edgekd.errors import InputError
    from edgekd.report.carbonation import carbonation

    if independent is not None and confusion is None:
        raise InputError(
            f"--independent {independent} is about --confusion, which is missing; add --confusion "
            "eval.json, from edgekd eval -o eval.json"
        )
    with progress_bar("carbonation", "row") as update:
        result = carbonation(
            chart, coefficients, confusion=confusion, independent=independent or "samples",
            gsd_m=gsd_m, output=output, table=table_path, progress=update,
        )  # fmt: skip
    emit(result.plain(), _lines(result), as_json)
    if not as_json:
        for text in result.notes:
            note(f"note: {text}")


def _lines(result: Carbonation) -> list[str]:
    hectares = result.area_m2 >= _HECTARES_FROM_M2
    unit, scale = ("ha", 1e-4) if hectares else ("m²", 1.0)
    soft, total = result.map["holds"] == "probabilities", result.total
    head = ["class", f"mapped {unit}"]
    head += [f"by probability {unit}"] if soft else []
    head += [f"adjusted {unit}", "95 %"] if result.confusion else []
    head += [f"coefficient ({result.coefficients['unit']})", f"uptake ({total.unit})"]
    head += ["95 %"] if result.confusion else []
    rows = []
    for item in result.classes:
        row = [item.name, _number(item.mapped_m2 * scale)]
        if item.expected_m2 is not None:
            row.append(_number(item.expected_m2 * scale))
        if item.adjusted_m2 is not None:
            row += [_number(item.adjusted_m2 * scale), _range(item.adjusted_interval, scale)]
        sd = "?" if item.coefficient_sd is None else f"{item.coefficient_sd:.2g}"
        row.append(f"{item.coefficient:g} ± {sd}" if item.named else "-")
        row.append(_number(item.uptake) if item.named else "-")
        if result.confusion:
            row.append(_range(item.uptake_interval) if item.named else "-")
        rows.append(row)
    by = {
        "adjusted": "areas adjusted by the confusion matrix",
        "probabilities": "class probabilities, not adjusted",
        "mapped": "mapped classes, not adjusted",
    }[total.by]
    interval = result.interval
    known = "95 % interval not known"
    if total.interval is not None:
        known = f"95 %: {_range(total.interval)}"
    lines = [
        *table(head, rows),
        f"total: {_number(total.uptake)} {total.unit} ({known}), an estimate by {by}",
    ]
    if not interval["known"]:
        lines.append(f"interval: not known, since {interval['reason']}")
    else:
        lines.append(
            f"interval: areas by {interval['areas']}; coefficients by {interval['coefficients']}"
        )
    if total.interval is None and total.interval_of_areas is not None:
        lines.append(
            f"the map's mistakes alone leave open: {_range(total.interval_of_areas)} {total.unit}"
        )
    if total.by == "adjusted":
        alone = "probabilities" if soft else "pixels"
        lines.append(f"by the map's {alone} alone: {_number(total.by_map)} {total.unit}")
    lines += [f"area: {_number(result.area_m2 * scale)} {unit}, {result.area_rule}",
              *(f"assumes: {text}" for text in result.assumes),
              *(f"{name}: {place}" for name, place in result.outputs.items())]  # fmt: skip
    return lines


def _range(bounds: Bounds | None, scale: float = 1.0) -> str:
    if bounds is None:
        return "not known"
    return f"{_number(bounds.low * scale)} to {_number(bounds.high * scale)}"


def _number(value: float) -> str:
    """Four digits that count, without an exponent where people write none."""
    if value == 0 or not 1e-4 <= abs(value) < 1e15:
        return f"{value:.4g}"
    return f"{value:,.{max(3 - math.floor(math.log10(abs(value))), 0)}f}"
