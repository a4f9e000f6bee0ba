"""``edgekd adapt``: a student at a new site, by a handful of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgekd.cli._common import (
    PathArgument,
    emit,
    note,
    percent,
    progress_bar,
    run_folder,
    shared_options,
    table,
)


def _labels(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> int | str | None:
    """Callback of ``--labels``."""
    if value in (None, "all"):
        return value
    try:
        return int(value)
    except ValueError as err:
        raise click.BadParameter(f"expected a number like 20, or all, received '{value}'") from err


def _blocks(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """Callback of ``--blocks SIDE,BUFFER``."""
    if value is None:
        return None
    try:
        side, buffer = (int(part) for part in value.split(","))
    except ValueError as err:
        raise click.BadParameter(
            f"expected two numbers of pixels like 32,8, received '{value}'"
        ) from err
    if side < 1 or buffer < 0:
        raise click.BadParameter(
            f"a block has a side of at least 1 px and a buffer of at least 0, received '{value}'"
        )
    return side, buffer


@click.command("adapt")
@click.argument("checkpoint", metavar="CHECKPOINT", type=PathArgument)
@click.option("--data", type=PathArgument, required=True, metavar="SITE",
              help="The site: a labelled set, or a sensor set.")  # fmt: skip
@click.option("--labels", callback=_labels, metavar="N|all",
              help="Labelled pixels to learn from, drawn evenly over the classes; default 20, with "
              "--points all.")  # fmt: skip
@click.option("--points", type=PathArgument, metavar="CSV",
              help="Labels as points: columns image, column, row, class, and split (train or "
              "test); SITE is then the folder of the images.")  # fmt: skip
@click.option("--blocks", callback=_blocks, metavar="SIDE,BUFFER",
              help="Cut every image into blocks, px, and hold half of them out; a site that names "
              "no split is cut into 32,8.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True,
              help="Of the draw of labels, blocks and pixels.")  # fmt: skip
@click.option("--unmeasured", is_flag=True,
              help="Go on although nothing is held out to measure on.")  # fmt: skip
@click.option("-o", "--output", type=PathArgument,
              help="Folder of the new checkpoint; default runs/NAME-adapt.")  # fmt: skip
@click.option("--fresh", is_flag=True, help="Replace the checkpoint of an earlier run there.")
@shared_options
def command(
    checkpoint: Path,
    data: Path,
    labels: int | str | None,
    points: Path | None,
    blocks: tuple[int, int] | None,
    seed: int,
    unmeasured: bool,
    output: Path | None,
    fresh: bool,
    as_json: bool,
) -> None:
    """Adapt CHECKPOINT to a new site by a few labelled pixels, and say whether it helped.

    Batch-norm statistics of the site, last layers tuned on the labels, both, or no change: the
    labels choose by cross-validation. What is held out only measures.
    """
    from edgekd.contracts.optional import require

    require("torch", "train", "adapt students")
    from edgekd.train.adapt.run import adapt, student_file
    from edgekd.train.checkpoint import load_checkpoint

    if labels is None:
        labels = 20 if points is None else "all"
    if output is None:
        file = student_file(checkpoint)
        name = load_checkpoint(file).parsed_recipe(str(file)).name
        output = Path("runs") / f"{name}-adapt"
    with run_folder(output), progress_bar("adapt", "stage") as update:
        result = adapt(
            checkpoint,
            data,
            output,
            labels=None if labels == "all" else int(labels),
            points=points,
            blocks=blocks,
            seed=seed,
            unmeasured=unmeasured,
            fresh=fresh,
            progress=update,
        )
    emit(
        {"checkpoint": str(result.best), "warning": result.warning, **result.tuning},
        [*_lines(result.tuning), f"checkpoint: {result.best}"],
        as_json,
    )
    if result.warning is not None:
        note(f"warning: {result.warning}")
    elif not as_json:
        note(f"next: edgekd build RECIPE --target x86-cpu --checkpoint {result.best}")


def _lines(tuning: dict[str, Any]) -> list[str]:
    used = tuning["labels"]
    judged = [
        [
            item["change"],
            f"{item['loss']:.3f}",
            f"{item['better_by']:+.3f} ± {item['standard_error']:.3f}",
            percent(item["balanced_accuracy"]),
        ]
        for item in tuning["candidates"]
    ]
    lines = ["SIMULATED: the site was computed, not measured"] if tuning["simulated"] else []
    lines += [
        f"{used['used']:,} labels of {used['available']:,} ({tuning['split']})",
        *table(["change, judged by labels left out", "loss", "better by", "found"], judged),
        f"chosen: {tuning['change']}",
    ]
    if tuning["labels_asked"] == "all" and used["used"] < used["available"]:
        lines.append("that is the most that are drawn; with so many, edgekd finetune learns more")
    measured = tuning["measured"]
    if measured is None:
        lines.append("accuracy not measured: nothing is held out")
    else:
        lines += _measured(measured, used["per_class"])
    return [*lines, f"{tuning['seconds']:.1f} s, seed {tuning['seed']}"]


def _measured(measured: dict[str, Any], used: dict[str, dict[str, int]]) -> list[str]:
    before, after = measured["before"], measured["after"]
    rows = [
        [
            old["name"],
            str(used[old["name"]]["used"]),
            percent(old["recall"]),
            percent(new["recall"]),
            f"{old['label_pixels']:,}",
        ]
        for old, new in zip(before["per_class"], after["per_class"], strict=True)
    ]
    gain = measured["difference"]

    def within(item: dict[str, Any], sign: str = "") -> str:
        if item["interval_95"] is None:
            return ""
        low, high = (format(100 * value, f"{sign}.1f") for value in item["interval_95"])
        return f" ({low} to {high})"

    def told(item: dict[str, Any]) -> str:
        return f"{percent(item['balanced_accuracy'])}{within(item)}"

    how = f"95 % intervals over {measured['squares']} squares of {measured['square_px']} px"
    if gain["interval_95"] is None:
        how = (
            f"no intervals: {measured['squares']} squares of {measured['square_px']} px are too few"
        )
    return [
        *table(["class", "labels", "found before", "after", "held-out px"], rows),
        f"balanced accuracy {told(before)} before, {told(after)} after: "
        f"{100 * gain['balanced_accuracy']:+.1f} points{within(gain, '+')}",
        f"{before['pixels']:,} held-out px; {how}",
    ]
